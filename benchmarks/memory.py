"""What a connection costs that does nothing: bytes, in process and on uvicorn."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import plot, processors
from benchmarks.figures import Figure, differences, figure, table
from benchmarks.idle import PATH, WARM
from benchmarks.load import handshake
from benchmarks.peers import AGAIN, BARE, STARLETTE, YAAT, Peer
from benchmarks.server import raise_file_limit, serving
from benchmarks.settings import Settings

ROUNDS = 5
IN_PROCESS, ON_SOCKETS = 3000, 2000
METERS = {
    "traced": "objects (tracemalloc)",
    "resident": "resident memory, in process",
    "sockets": "resident memory of uvicorn",
}
Turns = dict[tuple[str, Peer], list[float]]


def in_another_process(peer: Peer, connections: int, meter: str) -> float:
    command = [sys.executable, "-m", "benchmarks.idle", peer.app, str(connections), meter]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def on_sockets(peer: Peer, connections: int, websockets: str) -> float:
    """Bytes of the server a connection that a real client keeps open."""
    with serving(peer, websockets) as server:
        sockets = [handshake(server.port, PATH) for _ in range(WARM)]
        before = processors.resident(server.pid)
        sockets += [handshake(server.port, PATH) for _ in range(connections)]
        used = processors.resident(server.pid) - before
        for sock in sockets:
            sock.close()
    return used / connections


def run(settings: Settings) -> None:
    """Measure, report, and draw."""
    raise_file_limit()
    peers = settings.only(BARE, AGAIN, YAAT, STARLETTE)
    turns: Turns = {(meter, peer): [] for meter in METERS for peer in peers}
    for _ in range(settings.rounds or ROUNDS):
        for (meter, peer), results in turns.items():
            results.append(turn(meter, peer, settings))
    print(heading(settings))
    for meter, title in METERS.items():
        print(f"\n### {title[0].upper()}{title[1:]}\n")
        print(table(["", "bytes/connection", "added to bare"], lines(turns, meter)))
        print("\n" + verdict(turns, meter))
    draw(turns, settings.output)


def turn(meter: str, peer: Peer, settings: Settings) -> float:
    if meter == "sockets":
        return on_sockets(peer, settings.connections or ON_SOCKETS, settings.websockets)
    return in_another_process(peer, settings.connections or IN_PROCESS, meter)


def heading(settings: Settings) -> str:
    return (
        f"\n## Memory\n\nBytes of a connection that was accepted and waits in `receive()`: "
        f"{settings.connections or IN_PROCESS} of them in process, "
        f"{settings.connections or ON_SOCKETS} sockets on uvicorn; "
        f"{settings.rounds or ROUNDS} interleaved rounds, a new process each."
    )


def added(turns: Turns, meter: str, peer: Peer) -> Figure:
    return differences(turns[meter, peer], turns[meter, BARE])


def lines(turns: Turns, meter: str) -> Iterator[list[str]]:
    for other, peer in turns:
        if other == meter:
            whole = figure(turns[meter, peer])
            yield [peer.name, f"{whole:,.0f}", f"{added(turns, meter, peer):+,.0f}"]


def verdict(turns: Turns, meter: str) -> str:
    if not {(meter, YAAT), (meter, STARLETTE)} <= turns.keys():
        return ""
    yaat, starlette = (added(turns, meter, peer).middle for peer in (YAAT, STARLETTE))
    return f"Yaat adds {yaat / starlette:.2f} of what Starlette adds."


def draw(turns: Turns, output: Path) -> None:
    panels: dict[str, dict[str, Figure]] = {}
    for meter, peer in turns:
        panels.setdefault(METERS[meter], {})[peer.name] = added(turns, meter, peer)
    plot.draw(
        output / "bench-memory.svg",
        "Added to one idle connection",
        "bytes added to a bare ASGI function (less is better)",
        panels,
        floor=0.0,
    )
