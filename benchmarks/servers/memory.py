"""What a connection that does nothing keeps in memory: the growth of the server's processes."""

import statistics
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import processors
from benchmarks.exchange import WORDS
from benchmarks.figures import table
from benchmarks.servers.load import Holding, LoadFailedError, Target, holding
from benchmarks.servers.peers import (
    BASE,
    OURS_BARE,
    OURS_YAAT,
    SANSIO_BARE,
    SANSIO_STARLETTE,
    Served,
)
from benchmarks.servers.processes import Running, serving
from benchmarks.settings import Settings

MEASURED = (OURS_YAAT, OURS_BARE, SANSIO_BARE, SANSIO_STARLETTE)
FIRST, MORE = 100, 2000  # connections that fill every cache, and those that count
MOST_ROUNDS = 3  # memory does not depend on the mood of the machine
AIM_BYTES, AIM_RATIO = 9 * 1024, 0.4
REST = 0.05  # seconds without work, after which a server is at rest
TEXT = (WORDS * 22)[:1024]


@dataclass(frozen=True)
class Situation:
    """What the connections did before they went quiet.

    Args:
        title: In the report.
        offer: permessage-deflate is offered, and has to be taken.
        talk: One compressed message went in and was echoed.
    """

    title: str
    offer: bool = False
    talk: bool = False


SITUATIONS = (
    Situation("no deflate"),
    Situation("deflate negotiated", offer=True),
    Situation("deflate, 1 KiB echoed", offer=True, talk=True),
)
Sizes = dict[tuple[Served, Situation], list[float]]


def measured(peers: Sequence[Served], settings: Settings, rounds: int) -> Sizes:
    """Bytes a connection, round by round, each in a new process."""
    asked = [peer for peer in MEASURED if peer in peers]
    sizes: Sizes = {(peer, situation): [] for peer in asked for situation in SITUATIONS}
    for _ in range(min(rounds, MOST_ROUNDS)):
        for (peer, situation), results in sizes.items():
            with serving([peer], None) as [server]:
                results.append(turn(server, situation, settings.connections or MORE))
    return sizes


def turn(server: Running, situation: Situation, more: int) -> float:
    try:
        return bytes_each(server.target, situation, more)
    except LoadFailedError as error:
        raise server.failed(situation.title, error) from error


def bytes_each(target: Target, situation: Situation, more: int) -> float:
    with TemporaryDirectory() as place:
        message = Path(place) / "message"
        message.write_bytes(compressed(TEXT))
        with holding(target, offer=situation.offer, message=message) as load:
            opened(load, FIRST, situation)
            before = resting(target)
            opened(load, more, situation)
            return (resting(target) - before) / more


def opened(load: Holding, number: int, situation: Situation) -> None:
    load.open(number)
    if situation.talk:
        check(load.say())


def compressed(text: bytes) -> bytes:
    """RFC 7692, 7.2.1."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def check(answer: bytes) -> None:
    """Every connection got this: whether it was compressed (RSV1), and the payload."""
    text = answer[1:]
    if answer[0]:
        text = zlib.decompressobj(wbits=-15).decompress(text + b"\x00\x00\xff\xff")
    if text != TEXT:
        raise LoadFailedError(f"another text came back: {text[:80]!r}")


def resting(target: Target) -> int:
    """Resident bytes of the server, once it has nothing left to do."""
    worked = REST
    while worked > REST / 10:
        before = used(target)
        time.sleep(REST)
        worked = used(target) - before
    return sum(map(processors.resident, target.pids))


def used(target: Target) -> float:
    return sum(map(processors.used_by, target.pids)) / 1e9


def report(sizes: Sizes) -> None:
    if not sizes:
        return
    peers = list(dict.fromkeys(peer for peer, _ in sizes))
    print("\n### Memory of an idle connection\n")
    print(table(["KiB/connection", *(each.title for each in SITUATIONS)], lines(sizes, peers)))


def lines(sizes: Sizes, peers: Sequence[Served]) -> Iterator[list[str]]:
    for peer in peers:
        cells = (f"{size(sizes, peer, each) / 1024:.1f}" for each in SITUATIONS)
        yield [peer.name, *cells]


def size(sizes: Sizes, peer: Served, situation: Situation) -> float:
    return statistics.median(sizes[peer, situation])


def verdicts(sizes: Sizes) -> Iterator[str]:
    if {(OURS_YAAT, SITUATIONS[0]), (BASE, SITUATIONS[0])} <= sizes.keys():
        for situation in SITUATIONS:
            yield verdict(sizes, situation)


def verdict(sizes: Sizes, situation: Situation) -> str:
    ours, theirs = (size(sizes, peer, situation) for peer in (OURS_YAAT, BASE))
    said = "reached" if ours <= AIM_BYTES and ours <= AIM_RATIO * theirs else "MISSED"
    return (
        f"{said}: idle memory, {situation.title}: {OURS_YAAT.name} keeps {ours / 1024:.1f} KiB, "
        f"wanted ≤ {AIM_BYTES / 1024:.0f}; that is {ours / theirs:.2f} of {BASE.name}, "
        f"wanted ≤ {AIM_RATIO}"
    )
