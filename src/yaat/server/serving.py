"""What `yaat run` starts: uvicorn's server with our classes, and how it stops."""

import asyncio
import logging
import os
import random
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import ChangeReload, multiprocess

from yaat import processes
from yaat.exceptions import UsageError
from yaat.server.http import HTTPProtocol, State
from yaat.server.protocol import FAREWELL, HANDLER, WebSocketProtocol
from yaat.server.settings import ServerSettings
from yaat.types import ASGIApp

_logger = logging.getLogger("uvicorn.error")
_TICK = 0.1  # how often, in seconds, is looked whether something has ended
_AT_ONCE = 8  # connections that are accepted in one turn of the event loop
# What a parent tells a worker whose place another one has taken. Windows has no such signal.
_RETIRE = getattr(signal, "SIGUSR1", None)

# Which option of uvicorn's a setting is, where it has another name. Those that uvicorn has none
# for are None: our classes keep to them.
_NAMES: dict[str, str | None] = {
    "app_dir": None,
    "keep_alive_timeout": "timeout_keep_alive",
    "shutdown_timeout": "timeout_graceful_shutdown",
    "max_message_bytes": "ws_max_size",
    "ping_interval": "ws_ping_interval",
    "ping_timeout": "ws_ping_timeout",
    "compression": "ws_per_message_deflate",
    **dict.fromkeys(
        (
            "handshake_timeout",
            "max_headers",
            "max_header_bytes",
            "max_connections",
            "max_connections_per_address",
            "idle_timeout",
            "write_buffer",
            "read_buffer",
            "max_tiny_fragments",
            "compress_from",
            "drain",
            "handler_timeout",
            "close_timeout",
        )
    ),
}


class Config(uvicorn.Config):
    """uvicorn's configuration, made from our settings.

    Args:
        app: The application, or where it is: `module:name`.
        settings: How to serve it.
    """

    def __init__(self, app: ASGIApp | str, settings: ServerSettings) -> None:
        super().__init__(cast(Any, app), **_options(settings))
        self.settings = settings

    def bind_socket(self) -> socket.socket:
        """Return the socket to listen on; ends the process if it cannot be had."""
        try:
            return self._bound()
        except OSError as error:
            _logger.error("Cannot listen on %s: %s", self._wanted, error)  # noqa: TRY400
            sys.exit(STARTUP_FAILURE)

    @property
    def _wanted(self) -> str:
        if self.fd is not None:
            return f"file descriptor {self.fd}"
        return self.uds or f"{self.host}, port {self.port}"

    def _bound(self) -> socket.socket:
        if self.fd is not None:
            # Its family is asked for; uvicorn takes each for a unix socket.
            return socket.socket(fileno=os.dup(self.fd))
        if self.uds is not None:
            return _bound_to_path(self.uds)
        bound = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
        except OSError:
            bound.close()
            raise
        return bound

    def announce(self, listener: socket.socket) -> None:
        """Log where it listens, in uvicorn's words."""
        where = listener.getsockname()
        if isinstance(where, tuple):
            host = f"[{where[0]}]" if ":" in where[0] else where[0]
            where = f"{'https' if self.is_ssl else 'http'}://{host}:{where[1]}"
        _logger.info("Uvicorn running on %s (Press CTRL+C to quit)", where)


def _bound_to_path(path: str) -> socket.socket:
    remove_socket(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    Path(path).chmod(0o666)  # as uvicorn does: a proxy is another user
    return bound


def _options(settings: ServerSettings) -> dict[str, Any]:
    """Return what uvicorn is told. What is None here is its default there, but for pings."""
    # What waits for the application is bounded by `read_buffer`.
    options = {"http": HTTPProtocol, "ws": WebSocketProtocol, "ws_max_queue": sys.maxsize}
    for name in ServerSettings.__dataclass_fields__:
        option, value = _NAMES.get(name, name), getattr(settings, name)
        if option is not None and (value is not None or name.startswith("ping_")):
            options[option] = list(value) if isinstance(value, tuple) else value
    return options


def remove_socket(path: str) -> None:
    """Remove a unix socket that a server left behind, and nothing else."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            Path(path).unlink()


class Server(uvicorn.Server):
    """uvicorn's server, which stops in this order.

    The listener stays open and answers handshakes with 503. Every WebSocket is closed with 1012, at
    once or spread over `ServerSettings.drain`. Handlers end; who has not after `handler_timeout` is
    cancelled. Then the listener closes, and requests have `shutdown_timeout`, until they are
    cancelled too. In the end the lifespan's shutdown runs, and the process ends with exit code 0. A
    second signal ends it at once, by that signal. A worker whose place another one has taken closes
    the listener first, and answers who has come by then as ever.

    Who has connected and not asked for anything when the listener closes has `FAREWELL` or
    `handshake_timeout` for it, whichever is less: to close on a request that has come and is not
    read is to reset the connection.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.server_state: State = State(config.settings)
        self._retires = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self.servers = []
        for listener in sockets or ():
            self.servers.append(await self._listen(listener))
            if not self.config.use_subprocess:
                self.config.announce(listener)
        self.started = True

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        config, settings = self.config, self.config.settings
        server = await asyncio.get_running_loop().create_server(
            self._protocol,
            sock=listener,
            ssl=config.ssl,
            backlog=_AT_ONCE,
            ssl_handshake_timeout=settings.handshake_timeout if config.ssl else None,
            ssl_shutdown_timeout=settings.close_timeout if config.ssl else None,
        )
        # For asyncio the backlog is also how many it accepts before anything else has a turn. Who
        # is to be cut when there are too many has to have been cut before more are taken.
        listener.listen(settings.backlog)
        return server

    def _protocol(self) -> asyncio.Protocol:
        return HTTPProtocol(self.config, self.server_state, self.lifespan.state)

    # How it stops.

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - its signature
        """Stop; for a second signal, at once."""
        if self.should_exit:
            _die(sig)
        self.should_exit = True

    def _obey_parent(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Stop as a worker: its parent counts signals, as all of a group of processes get each."""
        if sig != signal.SIGINT:
            self._retires = self._retires or sig == _RETIRE
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals stop the server."""
        with super().capture_signals():
            if self.config.use_subprocess:
                for number in (signal.SIGINT, signal.SIGTERM, _RETIRE):
                    if number is not None:
                        signal.signal(number, self._obey_parent)
            yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes, and stop."""
        await super().serve(sockets)
        if self.server_state.tasks:
            # asyncio would wait for them without end.
            _logger.error("%d handlers refuse to be cancelled.", len(self.server_state.tasks))
            if self.config.uds is not None:
                remove_socket(self.config.uds)
            logging.shutdown()
            os._exit(1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop in the order that the class describes."""
        state, settings = self.server_state, self.config.settings
        _logger.info("Shutting down")
        state.stopping = True
        if self._retires:
            self._stop_listening()
            await self._hear()
        state.admission.draining = True
        await self._close_connections(settings.drain)
        handlers = {task for task in state.tasks if task.get_name() == HANDLER}
        for handler in handlers:
            handler.add_done_callback(handlers.discard)
        await _ended(handlers, settings.handler_timeout)
        _cancel(handlers)
        self._stop_listening()
        for listener in sockets or ():
            listener.close()
        await self._hear()
        for connection in list(state.connections):
            connection.shutdown()
        await _ended(state.tasks, settings.shutdown_timeout)
        await _ended(cast(set[Any], state.connections), FAREWELL)
        if state.tasks:
            _cancel(state.tasks)
            await _ended(state.tasks, FAREWELL)
        await self.lifespan.shutdown()

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    async def _hear(self) -> None:
        """Let those who have come ask, and hang up on who does not; let handshakes be answered."""
        state, settings = self.server_state, self.config.settings
        # What asyncio accepts in one turn becomes a connection in the next.
        await asyncio.sleep(0)
        moment = min(FAREWELL, settings.handshake_timeout)
        await _until(lambda: not (state.unheard or _unanswered(state.connections)), moment)
        for _ in range(2):  # who was late because we were: uvloop has timers before it reads
            await asyncio.sleep(0)
        for connection in state.connections & set(state.unheard):
            connection.shutdown()
        state.unheard.clear()

    async def _close_connections(self, seconds: float) -> None:
        """Close every WebSocket, each at a random moment of its own share of the time."""
        connections = [
            each
            for each in cast(set[asyncio.Protocol], self.server_state.connections)
            if isinstance(each, WebSocketProtocol)
        ]
        random.shuffle(connections)
        if connections:
            _logger.info("Closing %d WebSocket connections.", len(connections))
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number, connection in enumerate(connections):
            share = (number + random.random()) / len(connections)  # noqa: S311 - no secret
            # With no time at all, others have a turn all the same.
            await asyncio.sleep(begin + seconds * share - loop.time())
            connection.shutdown()


async def _ended(those: Collection[Any], seconds: float) -> None:
    """Wait until `those`, which leave by themselves when they end, have all left, but so long."""
    await _until(lambda: not those, seconds)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition() and loop.time() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(min(_TICK, seconds))


def _unanswered(connections: Collection[Any]) -> bool:
    """Tell whether there is a handshake among them that is not answered yet."""
    return any(isinstance(each, WebSocketProtocol) and each.is_unanswered for each in connections)


def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    if tasks:
        _logger.warning("Cancelling %d handlers that did not end.", len(tasks))
    for task in tasks:
        task.cancel("the server stops")


def _die(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # the kernel spares the first process of a container (PID 1)


class Reloader(ChangeReload):  # type: ignore[misc, valid-type]
    """uvicorn's supervisor that starts a new process when a file has changed."""

    def signal_handler(self, sig: int, frame: FrameType | None) -> None:
        """Stop; for a second signal, at once."""
        if self.should_exit.is_set():
            self.process.kill()
            _die(sig)
        super().signal_handler(sig, frame)


class Worker(multiprocess.Process):
    """A process that serves beside others."""

    @property
    def server(self) -> Server:
        """Its server, which is made in that process."""
        if self._server is None:
            self._server = Server(cast(Config, self.config))
        return cast(Server, self._server)

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; who cannot even start says so to the parent, which would start it for ever."""
        self.parent_conn.close()  # a copy: with it open the end of the parent would not be seen
        processes.note(self.config.workers)
        server = self.server  # made before a thread asks for it too
        try:
            super().target(sockets)
        except Exception as error:
            if server.started:
                raise
            if isinstance(error, UsageError):  # as in one process: it is a sentence
                _logger.error("A worker cannot start: %s", error)  # noqa: TRY400
            else:
                _logger.exception("A worker cannot start.")
            sys.exit(STARTUP_FAILURE)

    def always_pong(self) -> None:
        """Answer the parent, until it waits for our end, or is gone: then we stop as well."""
        with suppress(EOFError, OSError):
            super().always_pong()
        self.server.should_exit = True

    def retire(self) -> None:
        """Let it end while others serve on."""
        if _RETIRE is not None and self.process.is_alive():
            os.kill(cast(int, self.pid), _RETIRE)


class Workers(multiprocess.Multiprocess):
    """uvicorn's supervisor of several processes, with ours for them.

    SIGHUP puts a new worker in the place of each, SIGTTIN adds one, SIGTTOU retires one; who
    retires closes its connections while the others serve on.
    """

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        # It names the class by itself, and has no other way to be told of one.
        multiprocess.Process = Worker  # type: ignore[misc]
        super().__init__(config, sockets)
        self.processes: list[Worker] = []  # type: ignore[assignment]
        self._retired: list[Worker] = []

    def run(self) -> None:
        """Start them, keep them alive, and end them.

        Raises:
            SystemExit: The application cannot be started.
        """
        super().run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            sys.exit(STARTUP_FAILURE)

    def restart_all(self) -> None:
        """Put a new worker in the place of each; the old ones drain meanwhile, all at once."""
        for place, old in enumerate(self.processes):
            new = Worker(self.config, self.sockets)
            new.start()
            if not new.wait_until_ready(self.config.timeout_worker_healthcheck, self.should_exit):
                _logger.error("A new worker was not ready in time; the others stay as they are.")
                new.kill()
                new.join()
                return
            self.processes[place] = new
            self._retire(old)

    def handle_ttou(self) -> None:
        """Retire one worker, but not the last."""
        if len(self.processes) > 1:
            self.processes_num -= 1
            self._retire(self.processes.pop())

    def handle_int(self) -> None:
        """Stop; for a second signal, at once."""
        self._stop(signal.SIGINT)

    def handle_term(self) -> None:
        """Stop; for a second signal, at once."""
        self._stop(signal.SIGTERM)

    def _stop(self, number: int) -> None:
        if self.should_exit.is_set():
            for worker in [*self.processes, *self._retired]:
                worker.process.kill()
            _die(number)
        _logger.info("Stopping all workers.")
        self.should_exit.set()

    def _retire(self, worker: Worker) -> None:
        worker.retire()
        self._retired.append(worker)

    def keep_subprocess_alive(self) -> None:
        """Replace who has died; forget who has retired."""
        self._retired = [worker for worker in self._retired if worker.process.is_alive()]
        super().keep_subprocess_alive()

    def join_all(self) -> None:
        """Wait for all, heeding signals meanwhile."""
        for worker in [*self.processes, *self._retired]:
            while worker.process.is_alive():
                worker.process.join(_TICK)
                self.handle_signals()


def run(app: ASGIApp | str, settings: ServerSettings | None = None) -> None:
    """Serve an application until a signal comes.

    Args:
        app: An ASGI application, or where it is: `module:name`.
        settings: How to serve it.

    Raises:
        UsageError: What the settings ask for cannot work with this application.
        SystemExit: It could not be started; the log says why.
    """
    settings = settings or ServerSettings()
    check(app, settings)
    sys.path.insert(0, str(Path(settings.app_dir).resolve()))
    try:
        config = Config(app, settings)
    except Exception as error:  # whatever a file that sets up logging makes of it
        raise UsageError(f"these settings cannot be used: {error}") from error
    if not config.use_subprocess:
        _load(config)
    listener = config.bind_socket()
    try:
        _serve(config, listener)
    finally:
        listener.close()
        if config.uds is not None:
            remove_socket(config.uds)


def _load(config: Config) -> None:
    """Import the application.

    Raises:
        UsageError: There is no such module.
        SystemExit: There is no such name in it; the log says so.
        Exception: What the module raised.
    """
    try:
        config.load_app()
    except ModuleNotFoundError as error:
        module = str(config.app).partition(":")[0]
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the application itself lacks something
        raise UsageError(f"there is no module {error.name!r} in {sys.path[0]}") from None


def check(app: ASGIApp | str, settings: ServerSettings) -> None:
    """Refuse what cannot work, before anything is started.

    Raises:
        UsageError: It says what to do.
    """
    if (settings.reload or _workers(settings) > 1) and not isinstance(app, str):
        raise UsageError("workers and reload import the application: give it as 'module:name'")
    _check_tls(settings)


def _workers(settings: ServerSettings) -> int:
    if settings.workers is not None:
        return settings.workers
    told = os.environ.get("WEB_CONCURRENCY", "1")
    if not told.isdecimal():
        raise UsageError(f"$WEB_CONCURRENCY is the number of workers, not {told!r}")
    return int(told)


def _check_tls(settings: ServerSettings) -> None:
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None:
        if key is not None:
            raise UsageError("ssl_keyfile is the key of a certificate: give ssl_certfile too")
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, settings.ssl_keyfile_password)
        if settings.ssl_ca_certs is not None:
            context.load_verify_locations(settings.ssl_ca_certs)
    except OSError as error:
        raise UsageError(f"the certificate {certificate!r} cannot be used: {error}") from error


def _serve(config: Config, listener: socket.socket) -> None:
    server = Server(config)
    if config.use_subprocess:
        config.announce(listener)
    if config.should_reload:
        Reloader(config, target=server.run, sockets=[listener]).run()
    elif config.workers > 1:
        Workers(config, sockets=[listener]).run()
    else:
        server.run(sockets=[listener])
