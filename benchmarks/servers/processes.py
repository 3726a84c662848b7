"""The processes of the peers: started, found listening, counted together, stopped."""

import random
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryFile
from typing import IO

from benchmarks import processors
from benchmarks.exchange import WrongAnswerError
from benchmarks.load import handshake
from benchmarks.servers.load import Target
from benchmarks.servers.peers import Served

PATIENCE = 60.0  # seconds, to start
MOST = 4000  # bytes of what a peer said before it failed
STOP = 3.0  # seconds, to end when asked
# Below the range from which Linux takes ports for outgoing connections: nobody gets ours by chance.
PORTS = range(20_000, 32_000)


class NotStartedError(Exception):
    """A peer does not run here."""


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    peer: Served
    process: subprocess.Popen[bytes]
    port: int
    log: IO[bytes]

    @cached_property
    def target(self) -> Target:
        """With the workers that it has started by now."""
        return Target(self.port, tuple(processors.family(self.process.pid)))

    def failed(self, what: str, error: Exception) -> SystemExit:
        """Say who failed at what, and the last that it printed."""
        return SystemExit(f"{self.peer.name} fails at {what}: {error}\n{self.printed()}".strip())

    def printed(self) -> str:
        self.log.seek(0)
        return self.log.read()[-MOST:].decode(errors="replace")


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def serving(peers: Iterable[Served], processor: int | None) -> Iterator[list[Running]]:
    """Start all of them on one processor; they listen when this returns."""
    with ExitStack() as stack:
        started = [stack.enter_context(running(peer, processor)) for peer in peers]
        for server in started:
            wait_for(server)
        yield started


@contextmanager
def running(peer: Served, processor: int | None) -> Iterator[Running]:
    port = free_port()
    with TemporaryFile() as log:
        with processors.pinned(processor):  # what it starts inherits it
            process = subprocess.Popen(peer.command(port), stdout=log, stderr=log)
        try:
            yield Running(peer, process, port, log)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, then end it with all that it has started."""
    members = processors.family(process.pid)
    process.terminate()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        for pid in members:
            processors.end(pid)
        process.wait()


def wait_for(server: Running) -> None:
    """Until it answers a handshake: some listen before they have started who serves."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.process.poll() is None:
        try:
            handshake(server.port, "/text").close()
        except WrongAnswerError:
            return  # what is wrong with it the load will say
        except OSError:
            time.sleep(0.02)
        else:
            return
    command = " ".join(server.peer.command(server.port))
    said = f"{server.peer.name} did not start: {command}\n{server.printed()}"
    raise NotStartedError(said.strip())
