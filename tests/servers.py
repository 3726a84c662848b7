"""Real ASGI servers as child processes, and what each of them can do and tell.

A `ServerSpec` says how a server is started; its `Facts` say, with the reason, where it cannot do
what the others do. A test asserts a fact; it never skips for one.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

TESTS = Path(__file__).parent
# The environment variable by which an application learns where to write what it has to report.
RECORDS = "YAAT_TEST_RECORDS"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0


@dataclass(frozen=True)
class Facts:
    """What a peer can do. The defaults are what the ASGI specification asks for."""

    http_version: str = "1.1"
    can_deny: bool = True
    """It offers `websocket.http.response`. Without it every refusal is a bare 403."""
    tells_close_code: bool = True
    """The handler learns the code that the client sent; without it the code is always 1006."""
    tells_reason: bool = True
    """`websocket.disconnect` carries the client's reason (ASGI 2.5)."""
    code_after_loss: int = 1006
    """What the handler learns after a FIN or RST without a close frame."""
    sends_accept_headers: bool = True
    """It sends the headers of `websocket.accept` (ASGI 2.1)."""
    sends_reason: bool = True
    """It sends the reason of `websocket.close` (ASGI 2.3)."""
    sends_registered_codes: bool = True
    """It sends the close codes from 1001 to 1014; if not, the client sees 1011 for all of them."""
    sends_empty: bool = True
    """It can send an empty message."""
    pushes_back: bool = True
    """It waits for whoever does not read: `await send()` for the client, the client for us."""
    send_waits: bool = True
    """`await send()` waits for a client that does not read; else the server holds all of it."""
    runs_lifespan: bool = True
    """It tells the application when it starts and when it stops."""
    ends_handlers: bool = True
    """When it is asked to stop, it lets the handlers come to their end."""
    code_on_stop: int = 1012
    """What an idle client sees when the server is asked to stop; 1006 if it just hangs up."""
    prints_logs: bool = False
    """It prints what the application logs, too."""
    complaint: str = ""
    """What it logs as an error of an application that did what the specification asks for."""

    def close_code(self, code: int) -> int:
        """What the client sees of a close code that may travel."""
        return code if self.sends_registered_codes or not 1000 < code < 3000 else 1011


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started.

    Args:
        name: The parameter's id in a test.
        arguments: Of `python -m`, for an application and a port.
        facts: What it can do and tell.
    """

    name: str
    arguments: Callable[[str, int], list[str]] = field(repr=False)
    facts: Facts = Facts()

    def command(self, app: str, port: int) -> tuple[str, ...]:
        return (sys.executable, "-m", *self.arguments(app, port))

    def but(self, *options: str) -> Self:
        """The same server with more options."""
        return replace(self, arguments=lambda app, port: [*self.arguments(app, port), *options])


def uvicorn(
    websocket_class: str, loop: str = "asyncio", http: str = "h11"
) -> Callable[[str, int], list[str]]:
    """Start uvicorn with nothing left to what happens to be installed.

    Args:
        websocket_class: Its own name for one of its classes, or `module:Class`.
        loop: The event loop.
        http: The class that reads a handshake before the WebSocket class gets it.
    """

    def arguments(app: str, port: int) -> list[str]:
        options = (
            f"--host 127.0.0.1 --port {port} --ws {websocket_class} --loop {loop} --http {http}"
        )
        return ["uvicorn", app, *options.split(), "--no-access-log"]

    return arguments


def yaat_run(loop: str) -> Callable[[str, int], list[str]]:
    """Start `yaat run` on an event loop."""

    def arguments(app: str, port: int) -> list[str]:
        options = f"--host 127.0.0.1 --port {port} --loop {loop} --no-access-log"
        return ["yaat", "run", app, *options.split()]

    return arguments


def hypercorn(app: str, port: int) -> list[str]:
    # With no workers it serves in the process that was started: one process, one log.
    return ["hypercorn", app, *f"--bind 127.0.0.1:{port} --workers 0 --graceful-timeout 0".split()]


def granian(app: str, port: int) -> list[str]:
    options = f"--host 127.0.0.1 --port {port} --interface asgi --loop asyncio"
    return ["granian", app, *options.split()]


def daphne(app: str, port: int) -> list[str]:
    return ["daphne", "-b", "127.0.0.1", "-p", str(port), app]


# Over HTTP/1.1 and over HTTP/2 the same process serves: it tells them apart by the first bytes.
# hypercorn's `StreamClosed` carries neither the client's code nor its reason.
HYPERCORN = Facts(tells_close_code=False, tells_reason=False)

# Our own class: all that the specification asks for. One of the two with the fast parts of uvicorn,
# the other with those in plain Python.
OURS = "yaat.server:WebSocketProtocol"

SPECS: Mapping[str, ServerSpec] = {
    spec.name: spec
    for spec in (
        ServerSpec("yaat-uvloop", uvicorn(OURS, "uvloop", "httptools")),
        ServerSpec("yaat-asyncio", uvicorn(OURS, "asyncio", "h11")),
        # And what `yaat run` serves with, which has an HTTP class of ours too.
        ServerSpec("yaat-run-uvloop", yaat_run("uvloop")),
        ServerSpec("yaat-run-asyncio", yaat_run("asyncio")),
        # websockets-sansio and wsproto report a lost connection as if the close frame was empty.
        ServerSpec(
            "uvicorn-sansio",
            uvicorn("websockets-sansio"),
            # It takes a handshake for complete only when it was accepted or closed: each denial
            # response, though sent as it should be, ends with this line.
            Facts(
                code_after_loss=1005,
                complaint="ASGI callable returned without completing handshake.",
            ),
        ),
        ServerSpec("uvicorn-wsproto", uvicorn("wsproto"), Facts(code_after_loss=1005)),
        ServerSpec("uvicorn-websockets", uvicorn("websockets")),
        ServerSpec("hypercorn-h1", hypercorn, HYPERCORN),
        # When it stops it ends what writes to HTTP/2 streams first: our goodbye is left behind. And
        # a stream without room for a byte of its buffer lets go of whoever waits for more room.
        ServerSpec(
            "hypercorn-h2",
            hypercorn,
            replace(HYPERCORN, http_version="2", code_on_stop=1006, send_waits=False),
        ),
        ServerSpec(
            "granian",
            granian,
            # It announces 2.3 and drops the headers of an accept all the same. When it is asked to
            # stop it hangs up on everybody, and mostly is gone before the handlers are.
            Facts(
                tells_reason=False,
                code_after_loss=1005,
                sends_accept_headers=False,
                ends_handlers=False,
                code_on_stop=1006,
            ),
        ),
        ServerSpec(
            "daphne",
            daphne,
            # It announces no version, which means ASGI 2.0: no headers, no reasons; and knows no
            # lifespan. A message without a byte fails its test for truth and is dropped. Its writes
            # never wait, nor do its reads. autobahn closes with 1000 and from 3000 on; for another
            # code it raises, and what the application raises becomes 1011. When it stops it hangs
            # up and is gone.
            Facts(
                can_deny=False,
                tells_reason=False,
                sends_accept_headers=False,
                sends_reason=False,
                sends_registered_codes=False,
                sends_empty=False,
                pushes_back=False,
                send_waits=False,
                runs_lifespan=False,
                ends_handlers=False,
                code_on_stop=1006,
                prints_logs=True,
                complaint="invalid close code",
            ),
        ),
    )
}


class Port:
    """A loopback port that nobody else is given while it is held.

    Bound without SO_REUSEADDR, so that the kernel gives it to no other `bind` or `connect`; the
    option is set afterwards, so that a server which sets it too may listen there.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        self._socket.close()


class Server:
    """A server process that serves one application, from `start` to `stop`.

    Args:
        spec: Which server.
        app: `module:attribute`, the module found under `tests`.
        directory: Where its output is kept.
        environment: Added to this process's own.
    """

    def __init__(
        self,
        spec: ServerSpec,
        app: str,
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.spec = spec
        self.app = app
        self.output = directory / f"{spec.name}-{app.replace(':', '.')}.log"
        self.records = self.output.with_suffix(".records")
        self._environment = {
            "PYTHONPATH": str(TESTS),
            "PYTHONUNBUFFERED": "1",
            RECORDS: str(self.records),
            **(environment or {}),
        }
        self._port: Port | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.spec.name} {self.app}>"

    @property
    def port(self) -> int:
        assert self._port is not None, f"{self!r} was not started"
        return self._port.number

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self!r} was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, path: str = "/") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def mark(self) -> int:
        """Where the output ends now; give it to `written_since`."""
        return self.output.stat().st_size

    def written_since(self, mark: int = 0) -> str:
        """What the process wrote to stdout and stderr since `mark`."""
        with self.output.open("rb") as output:
            output.seek(mark)
            return output.read().decode(errors="replace")

    def start(self) -> None:
        """Start the process and return when it answers. A port once taken is kept."""
        self._port = self._port or Port()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self.spec.command(self.app, self.port),
                cwd=TESTS,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # granian has a worker process: a session of its own lets `stop` reach both.
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def terminate(self) -> None:
        """Ask the process to end, and do not wait."""
        assert self._process is not None, f"{self!r} was not started"
        self._process.terminate()

    def wait(self) -> int:
        """Wait until the process has ended by itself, and return its exit code."""
        assert self._process is not None, f"{self!r} was not started"
        return self._process.wait(STOP_TIMEOUT)

    def stop(self) -> None:
        """End the process: SIGTERM first, SIGKILL for it and its children after a while."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        if self._port is not None:
            self._port.release()
            self._port = None

    def restart(self) -> None:
        """Stop and start on the same port."""
        port, self._port = self._port, None
        self.stop()
        self._port = port
        self.start()

    def kill(self) -> None:
        """End the process and its children at once, as a crash does."""
        assert self._process is not None, f"{self!r} was not started"
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if not self.alive:
                raise RuntimeError(f"{self!r} ended at its start:\n{self.written_since()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self!r} does not answer:\n{self.written_since()}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        """Whether the event loop behind the port runs: something that is not HTTP gets a 400.

        The application does not see it. To accept is not enough: granian listens before its worker
        is there.
        """
        try:
            with self._dial() as peer:
                peer.sendall(b"?\r\n\r\n")
                return peer.recv(16).startswith(b"HTTP/1.1 400")
        except OSError:
            return False

    def _dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT)


class ServerPool:
    """Servers by specification and application, each started at its first use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[tuple[str, ...], Server] = {}

    def get(self, spec: ServerSpec, app: str) -> Server:
        # Two specifications with one command line differ in the client only: they share a process.
        key = spec.command(app, 0)
        if key not in self._servers:
            self._servers[key] = Server(spec, app, self._directory)
        server = self._servers[key]
        if not server.alive:
            server.start()
        return server

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()
