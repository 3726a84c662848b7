"""Fuzzes every target, each in a process of its own, with atheris.

`make fuzz` runs it. What was found to lead somewhere new is kept in `.fuzz`, where the next run
begins; so is what made a target fail, with the command that runs it again.
"""

import argparse
import importlib
import subprocess
import sys
from hashlib import sha1
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".fuzz"
NAMES = ("decoding", "inflation", "opening")


def main() -> int:
    """Run all targets, or the one that was named, and return how many failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for how long, in all")
    parser.add_argument("--target", choices=NAMES, help="only this one, in this process")
    parser.add_argument("inputs", nargs="*", help="with --target: run these and nothing else")
    options = parser.parse_args()
    if options.target:
        fuzz(options.target, options.seconds, options.inputs)
    seconds = str(max(1, options.seconds // len(NAMES)))
    command = [sys.executable, "-m", "fuzz", "--seconds", seconds, "--target"]
    return sum(bool(subprocess.run([*command, name], check=False).returncode) for name in NAMES)


def fuzz(target: str, seconds: int, inputs: list[str]) -> None:
    """Run one target for a time; ends the process."""
    atheris = importlib.import_module("atheris")  # it is of Linux, and of its own group
    with atheris.instrument_imports(
        include=["yaat.server", "yaat.constants", "websockets.headers"]
    ):
        targets = importlib.import_module("fuzz.targets")
    options = [f"-artifact_prefix={KEPT}/{target}-", "-print_final_stats=1"]
    if not inputs:
        inputs = [str(_corpus(target, targets.seeds(target)))]
        options += [
            f"-max_total_time={seconds}",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=512",
        ]
    atheris.Setup([f"fuzz {target}", *options, *inputs], targets.TARGETS[target])
    atheris.Fuzz()


def _corpus(target: str, seeds: list[bytes]) -> Path:
    directory = KEPT / target
    directory.mkdir(parents=True, exist_ok=True)
    (KEPT / ".gitignore").write_text("*\n")
    for seed in seeds:
        (directory / sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    return directory


if __name__ == "__main__":
    sys.exit(main())
