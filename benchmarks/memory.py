"""What a connection costs that does nothing: bytes, in process and on uvicorn."""

import subprocess
import sys
from functools import partial

from benchmarks import processors
from benchmarks.costs import Costs
from benchmarks.idle import PATH, WARM
from benchmarks.load import handshake
from benchmarks.peers import Peer
from benchmarks.server import raise_file_limit, serving
from benchmarks.settings import Settings

ROUNDS = 3
IN_PROCESS, ON_SOCKETS = 3000, 2000
METERS = {
    "Objects, in process (tracemalloc)": "traced",
    "Resident memory, in process": "resident",
    "Resident memory of uvicorn": "sockets",
}


def run(settings: Settings) -> None:
    """Measure, report, and draw."""
    raise_file_limit()
    costs = Costs.none("bytes/connection", METERS, settings.peers)
    for _ in range(settings.rounds or ROUNDS):
        costs.one_round(partial(turn, settings))
    print(heading(settings))
    costs.report()
    costs.draw(settings.output / "bench-memory.svg", "One idle connection")


def heading(settings: Settings) -> str:
    return (
        f"\n## Memory\n\nBytes of a connection that was accepted and waits in `receive()`: "
        f"{settings.connections or IN_PROCESS} of them in process, "
        f"{settings.connections or ON_SOCKETS} sockets on uvicorn; "
        f"{settings.rounds or ROUNDS} interleaved rounds, a new process each."
    )


def turn(settings: Settings, title: str, peer: Peer) -> float:
    meter = METERS[title]
    if meter == "sockets":
        return on_sockets(peer, settings.connections or ON_SOCKETS, settings.websockets)
    return in_another_process(peer, settings.connections or IN_PROCESS, meter)


def in_another_process(peer: Peer, connections: int, meter: str) -> float:
    command = [sys.executable, "-m", "benchmarks.idle", peer.app, str(connections), meter]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def on_sockets(peer: Peer, connections: int, websockets: str) -> float:
    """Bytes of the server a connection that a real client keeps open."""
    with serving([peer], websockets) as [server]:
        sockets = [handshake(server.port, PATH) for _ in range(WARM)]
        before = processors.resident(server.pid)
        sockets += [handshake(server.port, PATH) for _ in range(connections)]
        used = processors.resident(server.pid) - before
        for sock in sockets:
            sock.close()
    return used / connections
