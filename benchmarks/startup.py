"""How long `import yaat` takes beside `import starlette.applications`: whole processes, in turn."""

import os
import subprocess
import sys
import time

from benchmarks.figures import Figure, figure, ratios, table
from benchmarks.settings import Settings

ROUNDS = 25
NOTHING = "pass"
STARLETTE = "import starlette.applications"
YAAT = "import yaat"
STATEMENTS = (NOTHING, STARLETTE, YAAT)
Turns = dict[str, list[tuple[float, float]]]


def started(statement: str) -> tuple[float, float]:
    """Seconds of CPU and of the clock that a Python process takes for one statement."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", statement]) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{statement!r} failed")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def run(settings: Settings) -> None:
    """Measure and report."""
    rounds = settings.rounds or ROUNDS
    turns: Turns = {statement: [] for statement in STATEMENTS}
    for statement in STATEMENTS:
        started(statement)  # compiles what is not compiled yet
    for _ in range(rounds):
        for statement, results in turns.items():
            results.append(started(statement))
    print(f"\n## Import\n\nWhole processes, {rounds} interleaved rounds.\n")
    print(table(["", "CPU ms", "wall ms"], [line(turns, statement) for statement in turns]))
    print("\n" + verdict(turns))


def column(turns: Turns, statement: str, which: int) -> list[float]:
    return [result[which] * 1000 for result in turns[statement]]


def line(turns: Turns, statement: str) -> list[str]:
    return [statement, *(f"{figure(column(turns, statement, which)):.0f}" for which in (0, 1))]


def raw(turns: Turns, which: int) -> Figure:
    return ratios(column(turns, YAAT, which), column(turns, STARLETTE, which))


def net(turns: Turns, which: int) -> float:
    """The same without what an empty Python process takes."""
    nothing, starlette, yaat = (
        figure(column(turns, statement, which)).middle for statement in STATEMENTS
    )
    return (yaat - nothing) / (starlette - nothing)


def verdict(turns: Turns) -> str:
    return (
        f"Yaat takes {raw(turns, 0):.2f} of the CPU and {raw(turns, 1):.2f} of the time of "
        f"Starlette; without the start of Python {net(turns, 0):.2f} and {net(turns, 1):.2f}."
    )
