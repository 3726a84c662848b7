"""Programs of Debian that the tests run: where one is missing, its package is unpacked.

Unpacked, not installed: that needs no root, and starts no service.
"""

import os
import shutil
import subprocess
from pathlib import Path

from browser import only_one_process
from documents import ROOT


def program(name: str, *packages: str) -> str:
    """Return the path of a program; `packages` are those of Debian that it is made of."""
    if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        return found
    directory = ROOT / ".venv" / packages[0]
    with only_one_process():
        if not directory.exists():
            _unpack(packages, directory)
    return next(str(path) for path in directory.rglob(f"*bin/{name}"))


def libraries(path: str) -> dict[str, str]:
    """Return the environment in which an unpacked program finds what was unpacked with it."""
    directory = next((each for each in Path(path).parents if each.parent.name == ".venv"), None)
    found = {each.parent for each in directory.rglob("lib*.so")} if directory else ()
    return {"LD_LIBRARY_PATH": ":".join(map(str, found))} if found else {}


def _unpack(packages: tuple[str, ...], directory: Path) -> None:
    archives = directory.with_suffix(".archives")
    archives.mkdir(exist_ok=True)
    for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", *packages]):
        done = subprocess.run(command, cwd=archives, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the tests need {', '.join(packages)}: {done.stderr}"
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, directory], check=True)
    shutil.rmtree(archives)
