"""One uvicorn process a peer. `python -m benchmarks.server APP WS PROCESSOR` is that process."""

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import uvicorn

from benchmarks import processors
from benchmarks.peers import Peer

NOWHERE = -1


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and what it is made of."""

    peer: Peer
    pid: int
    port: int
    parts: str


@contextmanager
def serving(
    peers: Iterable[Peer], websockets: str, processor: int = NOWHERE
) -> Iterator[list[Server]]:
    """Start a server process for each; all of them listen when this returns."""
    with ExitStack() as stack:
        processes = [
            (peer, stack.enter_context(process(peer, websockets, processor))) for peer in peers
        ]
        yield [announced(peer, started) for peer, started in processes]


@contextmanager
def process(peer: Peer, websockets: str, processor: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.server", peer.app, websockets, str(processor)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.terminate()


def announced(peer: Peer, started: subprocess.Popen[str]) -> Server:
    """Read what the process says of itself as soon as it listens."""
    assert started.stdout is not None
    line = started.stdout.readline()
    if not line:
        raise SystemExit(f"{peer.name} did not start ({peer.app})")
    return Server(peer, started.pid, **json.loads(line))


def raise_file_limit() -> None:
    """Allow as many sockets as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(app: str, websockets: str, processor: int) -> None:
    """Run uvicorn as it runs by itself, but for the access log, and say what it chose."""
    raise_file_limit()
    if processor != NOWHERE:
        processors.pin(processor)
    config = uvicorn.Config(app, ws=websockets, log_level="warning", access_log=False)
    listener = socket.create_server(("127.0.0.1", 0), backlog=config.backlog)
    config.load()
    print(json.dumps({"port": listener.getsockname()[1], "parts": parts(config)}), flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def parts(config: uvicorn.Config) -> str:
    """The WebSocket class, the HTTP class and the event loop that this uvicorn uses."""
    loop = config.get_loop_factory()
    chosen = [config.ws_protocol_class, config.http_protocol_class, loop]
    names = [f"{part.__module__}.{part.__qualname__}" for part in chosen if part is not None]
    return f"uvicorn {uvicorn.__version__}, --ws {config.ws}: " + ", ".join(names)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
