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

from benchmarks.costs import Costs
from benchmarks.figures import table
from benchmarks.peers import BARE, Peer
from benchmarks.scripted import MEASURED, MODES, application, turn
from benchmarks.settings import Settings

ROUNDS = 200
COUNT = 1000  # messages a turn
THINGS = {f"{name}, {mode}": (name, mode) for name in MEASURED for mode in MODES}


def run(settings: Settings) -> None:
    """Measure, report, and draw."""
    costs = Costs.none("ns/message", THINGS, settings.peers)
    rounds = settings.rounds or ROUNDS
    measure(costs, rounds)
    print(heading(rounds))
    costs.report()
    costs.draw(
        settings.output / "bench-overhead.svg",
        "One message received and one sent, in process",
    )
    if settings.instructions:
        instructions([peer for thing, peer in costs.turns if thing == next(iter(THINGS))])


def heading(rounds: int) -> str:
    return (
        f"\n## In process\n\nOne message received and one sent through the whole application, "
        f"no sockets; {rounds} interleaved rounds of {COUNT} messages. "
        "Median (10th to 90th percentile)."
    )


def measure(costs: Costs, rounds: int) -> None:
    apps = {peer: application(peer.app) for _, peer in costs.turns}
    gc.collect()
    gc.freeze()
    with asyncio.Runner() as runner:

        def played(thing: str, peer: Peer) -> float:
            name, mode = THINGS[thing]
            return runner.run(turn(apps[peer], MEASURED[name], mode, COUNT))

        for _ in range(rounds):
            costs.one_round(played)


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
