"""The programs in C, compiled at their first use into the user's cache."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
OPTIONS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


class NoCompilerError(Exception):
    """Nothing here compiles C."""


def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        raise NoCompilerError("no C compiler (cc, or what CC names) is here")
    return found


def cache() -> Path:
    """XDG Base Directory Specification: what can be made again at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yaat-benchmarks"


def compiled(name: str) -> Path:
    """The program of `name`.c, made of its present source."""
    source = HERE / f"{name}.c"
    command = [compiler(), *OPTIONS]
    digest = hashlib.sha256(repr(command).encode())
    for part in (source, HERE / "websocket.h"):
        digest.update(part.read_bytes())
    program = cache() / f"{name}-{digest.hexdigest()[:16]}"
    if not program.exists():
        compile_into(program, [*command, str(source)])
    return program


def compile_into(program: Path, command: list[str]) -> None:
    """Beside it first: whoever finds the program finds all of it."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=program.parent) as place:
        made = Path(place) / program.name
        subprocess.run([*command, "-o", str(made)], check=True)
        made.rename(program)
