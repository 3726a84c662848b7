"""An older redis-py, for who does not work with the present one: pip brings it into the cache."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.servers.compiled import cache

QUIET = ("-qq", "--disable-pip-version-check", "--no-warn-conflicts")


def folder(requirement: str) -> Path:
    """The folder with this package in it, for the front of the path."""
    place = cache() / requirement.replace("==", "-")
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as beside:
            made = Path(beside) / place.name
            install = [sys.executable, "-m", "pip", "install", *QUIET, "--target", str(made)]
            subprocess.run([*install, requirement], check=True, stdin=subprocess.DEVNULL)
            try:
                made.rename(place)
            except OSError:  # another process was faster
                if not place.exists():
                    raise
    return place


def environment(requirement: str) -> dict[str, str]:
    """In which Python finds that package first; any, if none is asked for."""
    if not requirement:
        return dict(os.environ)
    path = f"{folder(requirement)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}
