"""`python -m benchmarks.size`: very many idle sockets on `yaat run`, their memory and their pings.

A Yaat application at its defaults. The clients are held by the load in C, which answers pings; they
offer permessage-deflate, as browsers do. A process is allowed so many files, so the sockets of two
workers are held by two processes, each with an address of its own to connect from.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import page, processors
from benchmarks.figures import table
from benchmarks.server import raise_file_limit
from benchmarks.servers import memory
from benchmarks.servers.load import Holding, Target, holding
from benchmarks.servers.peers import YAAT, Kind, Served, yaat_run
from benchmarks.servers.processes import Running, serving

FIRST = 200  # connections that fill every cache and are not counted
AIM_BYTES, AIM_CORE = 9 * 1024, 0.2
SWEEPS = 2
SHORTER = 5.0  # seconds between two pings, besides the default
INTERVAL = 20.0


@dataclass(frozen=True)
class Memory:
    """Bytes of all processes of a server."""

    resident: int
    proportional: int

    def since(self, before: "Memory", sockets: int) -> tuple[float, float]:
        """What each socket added, in KiB."""
        resident = (self.resident - before.resident) / sockets
        return resident / 1024, (self.proportional - before.proportional) / sockets / 1024


@dataclass(frozen=True)
class Pings:
    """What a while of pings cost."""

    seconds: float
    answered: int
    cpu: float

    @property
    def share(self) -> float:
        return self.cpu / self.seconds


def main() -> None:
    given = arguments()
    raise_file_limit()
    with page.written(given.page, "a size"):
        lines = [*one_process(given.sockets, given.interval), *two_workers(given.sockets)]
        print(table(["", "measured", "aim"], lines))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=__doc__)
    parser.add_argument("--sockets", type=int, default=10_000, help="of each process")
    parser.add_argument("--interval", type=float, default=INTERVAL, help="between two pings")
    parser.add_argument("--page", type=Path, help="a page to put the table into, between marks")
    return parser.parse_args()


def one_process(sockets: int, interval: float) -> Iterator[list[str]]:
    """Memory at once and after each has said something, then pings, the default ones first."""
    with server("--ping-interval", str(interval)) as running, crowd(running, 1) as [load]:
        yield from sizes(running, [load], sockets)
        yield pings_line(watched(running.target, load, interval * SWEEPS), interval, sockets)
    shorter = interval * SHORTER / INTERVAL
    with server("--ping-interval", str(shorter)) as running, crowd(running, 1) as [load]:
        load.open(sockets)
        yield pings_line(watched(running.target, load, shorter * 2 * SWEEPS), shorter, sockets)


def two_workers(sockets: int) -> Iterator[list[str]]:
    with server("--workers", "2") as running, crowd(running, 2) as loads:
        wait_for_workers(running, 2)
        yield from sizes(running, loads, sockets)


@contextmanager
def server(*options: str) -> Iterator[Running]:
    peer = Served("yaat run", Kind.OURS, yaat_run(YAAT, *options))
    pair = processors.split()
    with serving([peer], None if pair is None or "--workers" in options else pair[1]) as [running]:
        yield running


@contextmanager
def crowd(running: Running, processes: int) -> Iterator[list[Holding]]:
    """Processes that hold connections, from an address each."""
    with TemporaryDirectory() as place, ExitStack() as stack:
        message = Path(place) / "message"
        message.write_bytes(memory.compressed(memory.TEXT))
        target = Target(running.port, ())
        yield [
            stack.enter_context(
                holding(target, offer=True, message=message, address=f"127.0.0.{number}")
            )
            for number in range(1, processes + 1)
        ]


def wait_for_workers(running: Running, number: int) -> None:
    """Until each answers: they start one beside the other."""
    while len(serving_processes(running)) < number:
        time.sleep(memory.REST)


def serving_processes(running: Running) -> list[int]:
    """Those that have opened an event loop."""
    members = processors.family(running.process.pid)
    return [pid for pid in members if any(map(is_poller, descriptors(pid)))]


def descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def is_poller(descriptor: Path) -> bool:
    try:
        return "eventpoll" in str(descriptor.readlink())
    except OSError:  # it was closed meanwhile
        return False


def sizes(running: Running, loads: Sequence[Holding], sockets: int) -> Iterator[list[str]]:
    """Bytes a socket: accepted, then after it has echoed a message."""
    for load in loads:
        load.open(FIRST)
        memory.check(load.say())
    before, held = at_rest(running.target), sockets * len(loads)
    files = {pid: len(descriptors(pid)) for pid in running.target.pids}
    for load in loads:
        load.open(sockets)
    where = title(files, held)
    yield memory_line(f"{where}, accepted", at_rest(running.target).since(before, held))
    for load in loads:
        memory.check(load.say())
    yield memory_line(f"{where}, each has echoed", at_rest(running.target).since(before, held))


def title(before: dict[int, int], held: int) -> str:
    """How many sockets on how many processes."""
    grown = [len(descriptors(pid)) - files for pid, files in before.items()]
    shares = sorted((each for each in grown if each > 1), reverse=True)
    if len(shares) < 2:
        return f"{held:,} sockets"
    return f"{held:,} sockets on {' + '.join(f'{each:,}' for each in shares)}"


def at_rest(target: Target) -> Memory:
    resident = memory.resting(target)
    return Memory(resident, sum(map(processors.proportional, target.pids)))


def watched(target: Target, load: Holding, seconds: float) -> Pings:
    memory.resting(target)
    used, pings, began = memory.used(target), load.pings(), time.monotonic()
    time.sleep(seconds)
    lasted = time.monotonic() - began
    return Pings(lasted, load.pings() - pings, memory.used(target) - used)


def memory_line(what: str, each: tuple[float, float]) -> list[str]:
    resident, proportional = each
    said = f"{resident:.1f} KiB a socket (PSS {proportional:.1f})"
    return [what, said, aim(resident * 1024 <= AIM_BYTES, "≤ 9 KiB")]


def pings_line(pings: Pings, interval: float, sockets: int) -> list[str]:
    if pings.answered < sockets:
        raise SystemExit(f"{pings.answered} pings in {pings.seconds:.0f} s to {sockets} sockets")
    cost = pings.cpu / pings.answered * 1e6
    said = f"{pings.share:.3f} of a core, {cost:.0f} µs a ping ({pings.answered:,} answered)"
    return [
        f"{sockets:,} sockets, a ping every {interval:g} s",
        said,
        aim(pings.share < AIM_CORE, "< 0.2"),
    ]


def aim(reached: bool, wanted: str) -> str:  # noqa: FBT001 - what is asked
    return f"{wanted}: {'reached' if reached else 'MISSED'}"


if __name__ == "__main__":
    main()
