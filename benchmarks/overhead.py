"""What a framework adds to one message, without a server: the whole stack between two callables.

A real server only dilutes this figure. Here the receiving and the sending side do nearly nothing,
so what a connection costs beyond a bare function is what the framework's code costs.
"""

import asyncio
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import plot
from benchmarks.figures import Figure, differences, figure, table
from benchmarks.peers import AGAIN, BARE, STARLETTE, YAAT, Peer
from benchmarks.scripted import MEASURED, MODES, application, turn
from benchmarks.settings import Settings

ROUNDS = 200
COUNT = 1000  # messages a turn
Turns = dict[tuple[str, str, Peer], list[float]]


def run(settings: Settings) -> None:
    """Measure, report, and draw."""
    peers = settings.only(BARE, AGAIN, YAAT, STARLETTE)
    turns = asyncio.run(measure(peers, settings.rounds or ROUNDS))
    print(heading(settings.rounds or ROUNDS))
    for name in MEASURED:
        for mode in MODES:
            print(f"\n### {name}, {mode}\n")
            print(table(["", "ns/msg", "ns added to bare"], lines(turns, name, mode)))
            print("\n" + verdict(turns, name, mode))
    draw(turns, settings.output)
    if settings.instructions:
        instructions(peers)


def heading(rounds: int) -> str:
    return (
        f"\n## In process\n\nOne message received and one sent through the whole application, "
        f"no sockets; {rounds} interleaved rounds of {COUNT} messages. "
        "Median (10th to 90th percentile)."
    )


async def measure(peers: list[Peer], rounds: int) -> Turns:
    apps = {peer: application(peer.app) for peer in peers}
    turns: Turns = {(n, mode, peer): [] for n in MEASURED for mode in MODES for peer in peers}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for (name, mode, peer), results in turns.items():
            results.append(await turn(apps[peer], MEASURED[name], mode, COUNT))
    return turns


def added(turns: Turns, name: str, mode: str, peer: Peer) -> Figure:
    return differences(turns[name, mode, peer], turns[name, mode, BARE])


def lines(turns: Turns, name: str, mode: str) -> Iterator[list[str]]:
    for other_name, other_mode, peer in turns:
        if (other_name, other_mode) == (name, mode):
            whole = figure(turns[name, mode, peer])
            yield [peer.name, f"{whole:.0f}", f"{added(turns, name, mode, peer):+.0f}"]


def verdict(turns: Turns, name: str, mode: str) -> str:
    if not {(name, mode, YAAT), (name, mode, STARLETTE)} <= turns.keys():
        return ""
    yaat, starlette = (added(turns, name, mode, peer).middle for peer in (YAAT, STARLETTE))
    return f"Yaat adds {yaat / starlette:.2f} of what Starlette adds."


def draw(turns: Turns, output: Path) -> None:
    panels: dict[str, dict[str, Figure]] = {}
    for name, mode, peer in turns:
        panels.setdefault(f"{name}, {mode}", {})[peer.name] = added(turns, name, mode, peer)
    plot.draw(
        output / "bench-overhead.svg",
        "Added to one message received and one sent, in process",
        "nanoseconds added to a bare ASGI function (less is better)",
        panels,
        floor=0.0,
    )


def instructions(peers: list[Peer]) -> None:
    """The same in instructions, which do not depend on what else the machine is doing."""
    if shutil.which("valgrind") is None:
        print("\nInstructions were not counted: valgrind is not installed.")
        return
    print(f"\n### Instructions a message ({MODES[1]})\n")
    counts = {(name, peer): counted(peer, name) for name in MEASURED for peer in peers}
    rows = [
        [name, peer.name, f"{count:,.0f}", f"{count - counts[name, BARE]:+,.0f}"]
        for (name, peer), count in counts.items()
    ]
    print(table(["", "", "instructions", "added to bare"], rows))


def counted(peer: Peer, name: str) -> float:
    """The difference between a long and a short connection is messages alone."""
    short, long = (executed(peer, name, count) for count in (COUNT // 2, COUNT * 2))
    return (long - short) / (COUNT * 2 - COUNT // 2)


def executed(peer: Peer, name: str, count: int) -> int:
    """All instructions of one whole process."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    command += ["-m", "benchmarks.scripted", peer.app, name, MODES[1], str(count)]
    # The order of a set must not differ between the two runs that are subtracted.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        raise SystemExit(f"valgrind counted nothing: {done.stderr[-500:]}")
    return int(found[1])
