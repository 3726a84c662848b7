"""What `yaat run` starts, seen from within: what uvicorn is told, and in which order it stops.

Processes, sockets and clients are real in other tests. Here the connections and the processes of
workers are scripted, and the time of a stop is the test's.
"""

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ParamSpec, cast

import pytest
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import basereload, multiprocess
from uvicorn.supervisors.multiprocess import SIGNALS

from scripted import in_scripted_time
from wires import certificate
from yaat import processes
from yaat.exceptions import UsageError
from yaat.server import ServerSettings, WebSocketProtocol, serving
from yaat.server.http import HTTPProtocol
from yaat.server.protocol import FAREWELL, HANDLER
from yaat.server.serving import Config, Reloader, Server, Worker, Workers, check, remove_socket, run
from yaat.types import Message, Receive, Scope, Send

P = ParamSpec("P")

SOURCES = Path(serving.__file__).parent
LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture(autouse=True)
def undisturbed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A server sets up logging, signals and the path for its whole process: put it all back."""
    monkeypatch.setattr(uvicorn.Config, "configure_logging", lambda _config: None)
    monkeypatch.setattr(multiprocess, "Process", multiprocess.Process)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR1)}
    caplog.set_level(logging.INFO, "uvicorn.error")
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a test wait without waiting."""

    @functools.wraps(test)
    def play(*args: P.args, **keys: P.kwargs) -> None:
        in_scripted_time(lambda: test(*args, **keys))

    return play


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """An application without a lifespan."""
    assert scope["type"] != "lifespan"


class Served:
    """An application that notes its lifespan, and stops the server when it has started."""

    def __init__(self, *signals: int) -> None:
        self.events: list[str] = []
        self._signals = signals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        for event in ("startup", "shutdown"):
            message: Message = await receive()
            self.events.append(message["type"])
            await send({"type": f"lifespan.{event}.complete"})
            for number in self._signals if event == "startup" else ():
                signal.raise_signal(number)


# What uvicorn is told.

# The setting, what it is called there, a value, and what becomes of it.
TOLD: dict[str, tuple[str, Any, Any]] = {
    "host": ("host", "::1", "::1"),
    "port": ("port", 99, 99),
    "uds": ("uds", "/there", "/there"),
    "fd": ("fd", 3, 3),
    "backlog": ("backlog", 7, 7),
    "factory": ("factory", True, True),
    "root_path": ("root_path", "/api", "/api"),
    "workers": ("workers", 3, 3),
    "reload": ("reload", True, True),
    "reload_dirs": ("reload_dirs", ("a", "b"), ["a", "b"]),
    "reload_includes": ("reload_includes", ("*.txt",), ["*.txt"]),
    "reload_excludes": ("reload_excludes", ("x.py",), ["x.py"]),
    "loop": ("loop", "asyncio", "asyncio"),
    "ssl_certfile": ("ssl_certfile", "c", "c"),
    "ssl_keyfile": ("ssl_keyfile", "k", "k"),
    "ssl_keyfile_password": ("ssl_keyfile_password", "p", "p"),
    "ssl_ca_certs": ("ssl_ca_certs", "a", "a"),
    "ssl_cert_reqs": ("ssl_cert_reqs", 2, 2),
    "proxy_headers": ("proxy_headers", False, False),
    "forwarded_allow_ips": ("forwarded_allow_ips", "*", "*"),
    "access_log": ("access_log", False, False),
    "log_level": ("log_level", "debug", "debug"),
    "log_config": ("log_config", "l.json", "l.json"),
    "keep_alive_timeout": ("timeout_keep_alive", 1.5, 1.5),
    "shutdown_timeout": ("timeout_graceful_shutdown", 1.5, 1.5),
    "max_message_bytes": ("ws_max_size", 7, 7),
    "ping_interval": ("ws_ping_interval", None, None),
    "ping_timeout": ("ws_ping_timeout", None, None),
    "compression": ("ws_per_message_deflate", False, False),
}
# Where those that uvicorn knows nothing of are read.
KEPT = {
    "app_dir": "serving",
    "handshake_timeout": "http",
    "max_headers": "http",
    "max_header_bytes": "http",
    "max_connections": "admission",
    "max_connections_per_address": "admission",
    "idle_timeout": "protocol",
    "write_buffer": "protocol",
    "read_buffer": "protocol",
    "max_tiny_fragments": "protocol",
    "compress_from": "protocol",
    "close_timeout": "protocol",
    "drain": "serving",
    "handler_timeout": "serving",
}
OPTIONS = inspect.signature(uvicorn.Config).parameters


def test_every_setting_reaches_uvicorn_or_a_class_of_ours() -> None:
    """Who adds one says here where it goes."""
    names = ServerSettings.__dataclass_fields__
    assert sorted([*TOLD, *KEPT]) == sorted(names)
    assert set(serving._NAMES) <= set(names)
    assert sorted(KEPT) == sorted(name for name, to in serving._NAMES.items() if to is None)


@pytest.mark.parametrize("name", TOLD)
def test_uvicorn_is_told(name: str) -> None:
    option, value, told = TOLD[name]
    assert option in OPTIONS
    assert serving._options(ServerSettings(**{name: value}))[option] == told


@pytest.mark.parametrize("name", KEPT)
def test_what_uvicorn_knows_nothing_of_is_read_by_a_class_of_ours(name: str) -> None:
    assert name not in OPTIONS
    assert re.search(rf"settings\.{name}\b", (SOURCES / f"{KEPT[name]}.py").read_text())


def test_it_is_told_of_nothing_else() -> None:
    ours = {"http", "ws", "ws_max_queue"}
    everything = ServerSettings(**{name: value for name, (_, value, _) in TOLD.items()})
    assert set(serving._options(everything)) == {option for option, _, _ in TOLD.values()} | ours
    assert set(serving._options(everything)) <= set(OPTIONS)


def test_what_is_not_given_is_left_to_uvicorn() -> None:
    """None means something else there, but for pings."""
    told = serving._options(ServerSettings())
    left_out = {name for name in TOLD if getattr(ServerSettings(), name) is None}
    assert not left_out & set(told)
    assert len(left_out) == 9
    assert Config(silent, ServerSettings()).log_config is uvicorn.config.LOGGING_CONFIG


def test_the_classes_are_ours() -> None:
    config = Config(silent, ServerSettings(max_headers=3))
    config.load()
    assert config.http_protocol_class is HTTPProtocol
    assert config.ws_protocol_class is WebSocketProtocol
    assert config.settings == ServerSettings(max_headers=3)
    assert config.ws_max_queue > 1 << 40, "bytes are counted, not messages"


# Where it listens.


@contextlib.contextmanager
def bound(**settings: Any) -> Iterator[tuple[Config, socket.socket]]:
    config = Config(silent, ServerSettings(**settings))
    listener = config.bind_socket()
    try:
        yield config, listener
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("host", "family", "shown"),
    [
        ("127.0.0.1", socket.AF_INET, "http://127.0.0.1:"),
        ("localhost", socket.AF_INET, "http://127.0.0.1:"),
        ("::1", socket.AF_INET6, "http://[::1]:"),
    ],
)
def test_a_host_and_a_port(
    host: str, family: int, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with bound(host=host, port=0) as (config, listener):
        port = listener.getsockname()[1]
        assert (listener.family, bool(port)) == (family, True)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        config.announce(listener)
    assert caplog.messages == [f"Uvicorn running on {shown}{port} (Press CTRL+C to quit)"]


def test_with_a_certificate_it_is_https(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with bound(port=0, ssl_certfile=str(certificate(tmp_path)[0])) as (config, listener):
        config.announce(listener)
    assert "https://127.0.0.1:" in caplog.text


def test_a_unix_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "socket"
    with bound(uds=str(path)) as (config, listener):
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o666, "a proxy is another user"
        config.announce(listener)
    assert f"running on {path} (" in caplog.text
    with bound(uds=str(path)) as (_, listener):  # the one before was left behind
        listener.listen()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_socket_that_is_given(family: int, tmp_path: Path) -> None:
    """Its family is kept, and it stays open for who gave it."""
    with socket.socket(family) as given:
        given.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        with bound(fd=given.fileno()) as (_, listener):
            assert listener.family == family
            assert listener.getsockname() == given.getsockname()
            assert listener.fileno() != given.fileno()
        assert given.getsockname()


@pytest.mark.parametrize("what", ["port", "host", "path", "file", "descriptor", "no socket"])
def test_what_cannot_be_listened_on(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as other, file.open() as opened:
        port = other.getsockname()[1]
        settings, name = {
            "port": ({"port": port}, f"127.0.0.1, port {port}"),
            "host": ({"host": "203.0.113.77"}, "203.0.113.77, port 8000"),
            "path": ({"uds": "/nowhere/at/all"}, "/nowhere/at/all"),
            "file": ({"uds": str(file)}, str(file)),
            "descriptor": ({"fd": 977}, "file descriptor 977"),
            "no socket": ({"fd": opened.fileno()}, f"file descriptor {opened.fileno()}"),
        }[what]
        with pytest.raises(SystemExit) as ended:
            Config(silent, ServerSettings(**settings)).bind_socket()
    assert ended.value.code == STARTUP_FAILURE
    assert caplog.messages[0].startswith(f"Cannot listen on {name}: ")
    assert file.read_text() == "mine"


def test_a_socket_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    remove_socket(str(path))
    assert not path.exists()
    remove_socket(str(path))
    file = tmp_path / "file"
    file.write_text("mine")
    remove_socket(str(file))
    remove_socket(str(tmp_path))
    assert file.read_text() == "mine"


# Before anything is started.


@pytest.mark.parametrize("settings", [{"workers": 2}, {"reload": True}])
def test_what_imports_the_application_needs_its_name(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give it as 'module:name'"):
        run(silent, ServerSettings(**settings))
    check("module:name", ServerSettings(**settings))


@pytest.mark.parametrize("workers", ["2", "17"])
def test_what_the_environment_asks_for_needs_its_name_too(
    workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    with pytest.raises(UsageError, match="give it as 'module:name'"):
        run(silent)
    check(silent, ServerSettings(workers=1))
    monkeypatch.setenv("WEB_CONCURRENCY", "1")
    check(silent, ServerSettings())


@pytest.mark.parametrize("workers", ["", "two", "-1", "1.5"])
def test_an_environment_that_cannot_be_meant(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    with pytest.raises(UsageError, match="WEB_CONCURRENCY is the number of workers"):
        run(silent)


def test_a_certificate_is_looked_at_first(tmp_path: Path) -> None:
    cert, key = map(str, certificate(tmp_path))
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nothing of use")
    check(silent, ServerSettings(ssl_certfile=cert, ssl_keyfile=key))
    check(silent, ServerSettings(ssl_certfile=cert, ssl_keyfile=key, ssl_ca_certs=cert))
    with pytest.raises(UsageError, match="ssl_certfile"):
        check(silent, ServerSettings(ssl_keyfile=key))
    for wrong in (
        {"ssl_certfile": str(nonsense)},
        {"ssl_certfile": "/nowhere"},
        {"ssl_certfile": cert},  # its key is in another file
        {"ssl_certfile": cert, "ssl_keyfile": str(nonsense)},
        {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_ca_certs": "/nowhere"},
        {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_ca_certs": str(nonsense)},
    ):
        with pytest.raises(UsageError, match="cannot be used"):
            check(silent, ServerSettings(**wrong))  # type: ignore[arg-type]


def test_settings_that_uvicorn_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"these settings cannot be used: .*nowhere\.ini"):
        run(silent, ServerSettings(log_config="/nowhere.ini"))


@pytest.mark.parametrize("module", ["nowhere", "nowhere.at.all", "yaat.nowhere", "yaat.cli:nobody"])
def test_an_application_that_is_not_there_is_a_sentence(
    module: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((UsageError, SystemExit)) as ended:
        run(module if ":" in module else f"{module}:app", ServerSettings(port=0))
    said = [*caplog.messages, str(ended.value)]
    missing = {"nowhere.at.all": "nowhere"}.get(module, module.rpartition(":")[2])
    assert any(missing in sentence for sentence in said)


@pytest.mark.parametrize("name", ["lacking", "parcel.lacking"])
def test_an_application_that_lacks_something_shows_where(name: str, tmp_path: Path) -> None:
    """A traceback is what its author needs."""
    file = tmp_path / f"{name.replace('.', '/')}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("import nowhere_else\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_else") as raised:
        run(f"{name}:app", ServerSettings(port=0, app_dir=str(tmp_path)))
    assert raised.traceback[-1].path == file


# From the start to the end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_stops_it(number: int, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """The exit code is 0: nothing is raised, and no signal is left to be."""
    app = Served(number)
    before = signal.getsignal(number)
    run(app, ServerSettings(port=0, loop=loop))
    assert app.events == ["lifespan.startup", "lifespan.shutdown"]
    assert signal.getsignal(number) == before
    words = ["Application startup complete.", "Uvicorn running on", "Shutting down"]
    assert [word for word in words if word in caplog.text] == words


def test_it_imports_from_the_directory(tmp_path: Path) -> None:
    (tmp_path / "here_alone.py").write_text(
        "import signal\nfrom test_server_serving import Served\napp = Served(signal.SIGTERM)\n"
    )
    run("here_alone:app", ServerSettings(port=0, app_dir=str(tmp_path)))
    assert sys.path[0] == str(tmp_path)
    assert sys.modules.pop("here_alone").app.events[-1] == "lifespan.shutdown"


def test_a_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    run(Served(signal.SIGTERM), ServerSettings(uds=str(path)))
    assert not path.exists()


def test_an_application_that_fails_to_start(tmp_path: Path) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no"})

    path = tmp_path / "socket"
    with pytest.raises(SystemExit) as ended:
        run(broken, ServerSettings(uds=str(path)))
    assert ended.value.code == STARTUP_FAILURE
    assert not path.exists()


def test_without_settings_it_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Config] = []
    monkeypatch.setattr(serving, "_serve", lambda config, _listener: served.append(config))
    monkeypatch.setattr(Config, "_bound", lambda _config: socket.socket())
    run(silent)
    assert served[0].settings == ServerSettings()


def backlog_of(listener: socket.socket) -> int:
    """How many connections the kernel holds (tcp(7): of a listening socket `tcpi_sacked`)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int.from_bytes(info[28:32], sys.byteorder)


async def test_what_it_listens_with(tmp_path: Path) -> None:
    cert, key = map(str, certificate(tmp_path))
    plain = ServerSettings(port=0, backlog=77, handshake_timeout=3.0, close_timeout=4.0)
    for settings in (plain, plain.but(ssl_certfile=cert, ssl_keyfile=key)):
        config = Config(silent, settings)
        config.load()
        server = Server(config)
        server.lifespan = config.lifespan_class(config)
        listener = config.bind_socket()
        await server.startup([listener])
        [listens] = cast(list[Any], server.servers)
        assert backlog_of(listener) == 77
        tls = (listens._ssl_handshake_timeout, listens._ssl_shutdown_timeout)
        assert tls == ((3.0, 4.0) if settings.ssl_certfile else (None, None))
        assert isinstance(listens._protocol_factory(), HTTPProtocol)
        listens.close()
        await listens.wait_closed()


@pytest.mark.parametrize("workers", [1, 2])
async def test_who_says_where_it_listens(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Of several processes the parent."""
    config = Config("test_server_serving:silent", ServerSettings(port=0, workers=workers))
    config.load()
    server = Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = config.bind_socket()
    await server.startup([listener])
    server.servers[0].close()
    await server.servers[0].wait_closed()
    assert ("Uvicorn running on" in caplog.text) is (workers == 1)


def test_which_supervisor_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def note(supervisor: object) -> None:
        started.append(supervisor)

    for supervisor in (Reloader, Workers):
        monkeypatch.setattr(supervisor, "run", note)
    name = "test_server_serving:silent"
    run(name, ServerSettings(port=0, workers=2))
    run(name, ServerSettings(port=0, reload=True))
    run(name, ServerSettings(port=0, reload=True, workers=2))
    assert [type(each) for each in started] == [Workers, Reloader, Reloader]
    assert started[1].target.__name__ == "run"
    assert isinstance(started[1].target.__self__, Server)
    assert len(started[0].sockets) == 1


# How it stops: what is told to whom, and when.


class Scene:
    """A server that is about to stop, and a story of what it does, with the seconds."""

    def __init__(self, **settings: Any) -> None:
        self.server = Server(Config(silent, ServerSettings(**settings)))
        self.state = self.server.server_state
        self.story: list[tuple[float, str]] = []
        self.server.servers = [cast(Any, Listener(self, "server"))]
        self.sockets = [cast(Any, Listener(self, "socket"))]
        self.server.lifespan = cast(Any, self)
        self._loop = asyncio.get_running_loop()
        self._begin = self._loop.time()

    def note(self, what: str) -> None:
        self.story.append((round(self._loop.time() - self._begin, 3), what))

    async def shutdown(self) -> None:
        """The lifespan ends."""
        self.note("lifespan")

    async def stop(self) -> None:
        await self.server.shutdown(self.sockets)

    def task(self, name: str, ends: asyncio.Event, *, is_handler: bool, last: float = 0.0) -> None:
        """A handler, or a request; it ends when `ends` is set, so long after."""

        async def work() -> None:
            try:
                await ends.wait()
            except asyncio.CancelledError:
                self.note(f"{name} is cancelled")
                raise
            finally:
                await asyncio.sleep(last)
                self.note(f"{name} ends")

        task = asyncio.create_task(work(), name=HANDLER if is_handler else None)
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)

    def websocket(
        self, name: str, *, heeds: bool = True, last: float = 0.0, lag: float = 0
    ) -> "Told":
        """A WebSocket with its handler, which heeds the end, or not."""
        ends = asyncio.Event()
        told = Told(self, name, ends if heeds else asyncio.Event(), lag)
        self.task(name, ends, is_handler=True, last=last)
        return told

    def request(self, name: str, seconds: float | None) -> None:
        """A request that is answered in so many seconds, or never."""
        ends = asyncio.Event()
        if seconds is not None:
            self._loop.call_later(seconds, ends.set)
        Asked(self, name)
        self.task(name, ends, is_handler=False)

    @property
    def what(self) -> list[str]:
        return [what for _, what in self.story]

    def when(self, what: str) -> float:
        [time] = [time for time, each in self.story if each == what]
        return time


class Listener:
    """A listener that tells when it is closed."""

    def __init__(self, scene: Scene, name: str) -> None:
        self._scene, self._name = scene, name

    def close(self) -> None:
        self._scene.note(f"{self._name} closes")


class Told(WebSocketProtocol):
    """A WebSocket that tells when it is told to end; it goes so long after."""

    is_unanswered = False

    def __init__(self, scene: Scene, name: str, ends: asyncio.Event, lag: float) -> None:
        self.scene, self.name, self.ends, self.lag = scene, name, ends, lag
        scene.state.connections.add(cast(Any, self))

    def shutdown(self) -> None:
        assert self.scene.state.admission.draining
        self.scene.note(f"{self.name} is told")
        self.ends.set()
        connections = cast(set[Any], self.scene.state.connections)
        asyncio.get_running_loop().call_later(self.lag, connections.discard, self)


class Silent(HTTPProtocol):
    """A connection on which nothing has been asked for; it is, in so many seconds, or never."""

    def __init__(self, scene: Scene, name: str, seconds: float | None) -> None:
        self.scene, self.name = scene, name
        scene.state.connections.add(cast(Any, self))
        scene.state.unheard.add(self)
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.ask)

    def ask(self) -> None:
        assert self.scene.state.stopping
        # Who retires serves on; else it is too late for a handshake.
        self.scene.note(f"{self.name} {'late' if self.scene.state.admission.draining else 'asks'}")
        self.scene.state.unheard.discard(self)

    def shutdown(self) -> None:
        self.scene.note(f"{self.name} is told")
        cast(set[Any], self.scene.state.connections).discard(self)


class Asked(HTTPProtocol):
    """A connection with a request."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        scene.state.connections.add(cast(Any, self))

    def shutdown(self) -> None:
        self.scene.note(f"connection of {self.name} is told")
        cast(set[Any], self.scene.state.connections).discard(self)


@in_no_time
async def test_it_stops_in_its_order() -> None:
    scene = Scene()
    scene.websocket("chat", last=0.5)
    scene.request("page", 0.8)
    await scene.stop()
    assert scene.what == [
        "chat is told",
        "chat ends",
        "server closes",
        "socket closes",
        "connection of page is told",
        "page ends",
        "lifespan",
    ]
    assert scene.when("chat ends") == 0.5
    assert scene.when("page ends") == 0.8
    assert scene.when("lifespan") <= 0.8 + 2 * serving._TICK


@in_no_time
async def test_with_nobody_there_it_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(drain=60.0)
    await scene.stop()
    assert scene.story == [(0, "server closes"), (0, "socket closes"), (0, "lifespan")]
    assert caplog.messages == ["Shutting down"]


@in_no_time
async def test_without_sockets_of_its_own() -> None:
    scene = Scene()
    await scene.server.shutdown()
    assert scene.what == ["server closes", "lifespan"]


@pytest.mark.parametrize("drain", [0.0, 10.0])
@in_no_time
async def test_the_closes_are_spread(*, drain: float) -> None:
    """Each has its own share of the time, and a moment within it; others have turns meanwhile."""
    scene = Scene(drain=drain)
    names = [f"{number} is told" for number in range(20)]
    for number in range(20):
        scene.websocket(str(number))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while sum(what in names for what in scene.what) < 20:
            turns += 1
            await asyncio.sleep(0 if drain == 0 else 0.01)

    working = asyncio.create_task(other())
    await scene.stop()
    await working
    times = [time for time, what in scene.story if what in names]
    assert len(times) == 20
    for number, time in enumerate(times):
        assert drain * number / 20 <= time + 0.001
        assert time - 0.001 <= drain * (number + 1) / 20
    assert turns >= 20
    if drain:
        gaps = {round(after - before, 3) for before, after in itertools.pairwise(times)}
        assert len(gaps) > 10, "they do not come back in step"


@in_no_time
async def test_the_closes_are_in_no_order() -> None:
    orders = set()
    for _ in range(4):
        scene = Scene()
        for number in range(30):
            scene.websocket(str(number))
        await scene.stop()
        orders.add(tuple(what for what in scene.what if what.endswith("told")))
    assert len(orders) == 4


@pytest.mark.parametrize("seconds", [0.0, 0.05, 1.0, 3.0])
@in_no_time
async def test_a_handler_that_does_not_end_is_cancelled(
    *, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(handler_timeout=seconds)
    scene.websocket("deaf", heeds=False, last=0.3)
    if seconds:  # with no time at all nobody has any
        scene.websocket("kind")
    await scene.stop()
    assert scene.when("deaf is cancelled") == pytest.approx(seconds, abs=serving._TICK)
    assert scene.when("deaf ends") < scene.when("lifespan"), "its finally runs first"
    assert "kind is cancelled" not in scene.what
    assert "Cancelling 1 handlers that did not end." in caplog.messages
    assert scene.state.tasks == set()


@in_no_time
async def test_a_handler_may_last_so_long() -> None:
    scene = Scene(handler_timeout=5.0)
    scene.websocket("slow", last=4.8)
    await scene.stop()
    assert "slow is cancelled" not in scene.what
    assert scene.when("server closes") >= scene.when("slow ends") == 4.8


@in_no_time
async def test_a_request_that_does_not_end_is_cancelled() -> None:
    scene = Scene(shutdown_timeout=3.0)
    scene.request("endless", None)
    scene.request("slow", 2.0)
    await scene.stop()
    assert scene.when("slow ends") == 2.0
    assert scene.when("endless is cancelled") == pytest.approx(3.0, abs=serving._TICK)
    assert scene.when("endless ends") <= scene.when("lifespan")


@in_no_time
async def test_a_request_is_not_cancelled_with_the_handlers() -> None:
    scene = Scene(handler_timeout=1.0)
    scene.websocket("deaf", heeds=False)
    scene.request("page", 5.0)
    await scene.stop()
    assert "page is cancelled" not in scene.what
    assert scene.when("page ends") == 5.0


@in_no_time
async def test_with_no_time_at_all_each_task_ends_before_the_application() -> None:
    scene = Scene(handler_timeout=0.0, shutdown_timeout=0.0)
    scene.websocket("deaf", heeds=False)
    scene.request("endless", None)
    await scene.stop()
    assert scene.what[-1] == "lifespan"
    assert {"deaf ends", "endless ends"} < set(scene.what)
    assert scene.state.tasks == set()


@pytest.mark.parametrize(("lag", "waits"), [(0.3, 0.3), (60.0, FAREWELL)])
@in_no_time
async def test_it_waits_for_who_has_not_hung_up(lag: float, waits: float) -> None:
    scene = Scene()
    scene.websocket("chat", lag=lag)
    await scene.stop()
    assert scene.when("lifespan") == pytest.approx(waits, abs=2 * serving._TICK)


@in_no_time
async def test_who_retires_closes_the_listener_first() -> None:
    """Others listen there too."""
    scene = Scene(drain=10.0)
    scene.websocket("chat")
    scene.server._obey_parent(cast(int, serving._RETIRE), None)
    await scene.stop()
    assert scene.story[0] == (0, "server closes")
    assert scene.what[1:3] == ["chat is told", "chat ends"]
    assert scene.what[-1] == "lifespan"


@in_no_time
async def test_who_has_just_come_is_heard() -> None:
    """What the kernel has of a request would be answered with a reset."""
    scene = Scene(handler_timeout=3.0)
    Silent(scene, "guest", 0.7)
    scene.websocket("chat", last=0.5)
    await scene.stop()
    words = ["server closes", "socket closes", "guest late", "guest is told", "lifespan"]
    assert scene.what == ["chat is told", "chat ends", *words]
    assert scene.when("guest is told") == pytest.approx(0.7, abs=serving._TICK)


@in_no_time
async def test_who_is_heard_has_as_long_as_others() -> None:
    scene = Scene(shutdown_timeout=3.0)
    Silent(scene, "guest", 0.7)
    scene.request("slow", 3.5)
    await scene.stop()
    assert "slow is cancelled" not in scene.what
    assert scene.when("lifespan") == pytest.approx(3.5, abs=2 * serving._TICK)


@pytest.mark.parametrize("retires", [False, True])
@pytest.mark.parametrize(("handshake_timeout", "moment"), [(10.0, FAREWELL), (0.5, 0.5)])
@in_no_time
async def test_who_says_nothing_is_not_waited_for_long(
    *, retires: bool, handshake_timeout: float, moment: float
) -> None:
    scene = Scene(handshake_timeout=handshake_timeout)
    if retires:
        scene.server._obey_parent(cast(int, serving._RETIRE), None)
    Silent(scene, "mute", None)
    # Over TLS: a connection that is not made yet cannot be hung up on.
    hidden = Silent(scene, "hidden", None)
    cast(set[Any], scene.state.connections).discard(hidden)
    await scene.stop()
    assert "hidden is told" not in scene.what
    assert scene.when("mute is told") == pytest.approx(moment, abs=serving._TICK)
    assert scene.when("lifespan") <= moment + serving._TICK


@in_no_time
async def test_who_retires_serves_those_who_have_come() -> None:
    """No handshake that it took is refused, and none that waits for its answer."""
    scene = Scene()
    Silent(scene, "guest", 0.3)
    chat = scene.websocket("chat")
    chat.is_unanswered = True
    asyncio.get_running_loop().call_later(0.6, setattr, chat, "is_unanswered", False)
    scene.server._obey_parent(cast(int, serving._RETIRE), None)
    await scene.stop()
    assert scene.what[:4] == ["server closes", "guest asks", "chat is told", "chat ends"]
    assert scene.when("chat is told") == pytest.approx(0.6, abs=serving._TICK)


@in_no_time
async def test_an_answer_that_does_not_come_holds_nobody() -> None:
    scene = Scene()
    undecided = scene.websocket("undecided")
    undecided.is_unanswered = True
    scene.server._obey_parent(cast(int, serving._RETIRE), None)
    await scene.stop()
    assert scene.when("undecided is told") == pytest.approx(FAREWELL, abs=serving._TICK)


@in_no_time
async def test_what_is_accepted_in_the_turn_of_the_stop_is_heard() -> None:
    """It becomes a connection in the next."""
    scene = Scene()
    asyncio.get_running_loop().call_soon(lambda: Silent(scene, "guest", 0.2))
    await scene.stop()
    assert scene.what == [
        "server closes",
        "socket closes",
        "guest late",
        "guest is told",
        "lifespan",
    ]


class Gone(BaseException):
    """What ends a process."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes that this process would have ended with."""
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Gone

    monkeypatch.setattr(os, "_exit", leave)
    return codes


@pytest.mark.parametrize("on", ["port", "uds"])
def test_a_handler_that_cannot_be_cancelled_does_not_hold_the_process(
    on: str, exits: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "socket"
    settings = ServerSettings(uds=str(path) if on == "uds" else None, port=0, shutdown_timeout=0.0)
    config = Config(Served(signal.SIGTERM), settings)
    server = Server(config)

    async def play() -> None:
        ends = asyncio.Event()

        async def stubborn() -> None:
            while not ends.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await ends.wait()

        task = asyncio.create_task(stubborn())
        server.server_state.tasks.add(task)
        try:
            with pytest.raises(Gone):
                await server.serve([config.bind_socket()])
        finally:
            ends.set()
            await task

    asyncio.run(play())
    assert exits == [1]
    assert caplog.messages[-1] == "1 handlers refuse to be cancelled."
    assert not path.exists()


# Signals.


def test_the_first_signal_asks_and_the_second_ends() -> None:
    """In a process of its own, which ends by that signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        program = f"""
from yaat.server import ServerSettings
from yaat.server.serving import Config, Server

async def app(scope, receive, send): ...

server = Server(Config(app, ServerSettings()))
server.handle_exit({number:d}, None)
print(server.should_exit, flush=True)
server.handle_exit({number:d}, None)
print("not this")
"""
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (-number, "True\n"), ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_cannot_be_ended_by_a_signal_ends_all_the_same(
    number: int, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel spares the first process of a container."""
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    server = Server(Config(silent, ServerSettings()))
    server.handle_exit(number, None)
    assert server.should_exit
    with pytest.raises(Gone):
        server.handle_exit(number, None)
    assert (raised, exits) == ([number], [128 + number])
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_worker_obeys_its_parent() -> None:
    """All of a group of processes get a Ctrl-C; the parent counts it."""
    config = Config("test_server_serving:silent", ServerSettings(workers=2))
    stops = [(signal.SIGINT, False, False), (signal.SIGTERM, True, False)]
    for number, stopped, retired in [*stops, (signal.SIGUSR1, True, True)]:
        server = Server(config)
        with server.capture_signals():
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert (server.should_exit, server._retires) == (stopped, retired)
    server = Server(config)
    with server.capture_signals():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert server._retires, "who retires and is stopped then has closed the listener already"


def test_a_server_alone_does_not_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Server(Config(silent, ServerSettings())).capture_signals():
        assert signal.getsignal(signal.SIGUSR1) == before
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL


def test_where_there_is_no_signal_to_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows."""
    monkeypatch.setattr(serving, "_RETIRE", None)
    server = Server(Config("test_server_serving:silent", ServerSettings(workers=2)))
    before = signal.getsignal(signal.SIGUSR1)
    with server.capture_signals():
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGUSR1) == before
    assert server.should_exit


# Several processes.


class ScriptedProcess:
    """A process that comes up, or does not, and ends as it is told.

    Attributes:
        sent: The signals that it was sent.
    """

    numbers = itertools.count(10_000_000)  # above what Linux has: nobody is hit by mistake

    def __init__(self, office: "Office", worker: Worker | None) -> None:
        self.pid = next(self.numbers)
        self.exitcode: int | None = None
        self.sent: list[int] = []
        self.heeds = True
        self._office, self._worker = office, worker
        self._begun = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._begun = True
        fate = self._office.fates.pop(0) if self._office.fates else None
        self._office.note(self, "starts")
        if fate is not None:
            self.exitcode = fate
        elif self._worker is not None:
            self._worker.server.started = True
            self._thread = threading.Thread(target=self._worker.always_pong)
            self._thread.start()

    def dispose(self) -> None:
        """Let the thread hear that the parent is gone, and end."""
        if self._thread is not None:
            assert self._worker is not None
            self._worker.parent_conn.close()
            self._thread.join()

    def is_alive(self) -> bool:
        return self._begun and self.exitcode is None

    def signal(self, number: int) -> None:
        self.sent.append(number)
        self._office.note(self, signal.Signals(number).name)
        if self.exitcode is not None:
            return
        if self.heeds or number == signal.SIGKILL:
            self.exitcode = 0 if self.heeds else -number

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None or not self.is_alive(), "it would wait for ever"
        self._office.waits += 1
        for heard in self._office.hears.pop(self._office.waits, ()):
            heard()


class Office:
    """All processes that are started, and the story of what becomes of them.

    Attributes:
        fates: With which code the next ones end at once; None: they come up.
        hears: What happens when somebody waits for the nth time.
    """

    def __init__(self) -> None:
        self.processes: list[ScriptedProcess] = []
        self.fates: list[int | None] = []
        self.story: list[str] = []
        self.waits = 0
        self.hears: dict[int, list[Callable[[], object]]] = {}

    def subprocess(self, config: Config, target: Any, sockets: object) -> ScriptedProcess:
        owner = target.__self__
        self.processes.append(ScriptedProcess(self, owner if isinstance(owner, Worker) else None))
        return self.processes[-1]

    def note(self, process: ScriptedProcess, what: str) -> None:
        self.story.append(f"{self.processes.index(process)} {what}")

    def kill(self, pid: int, number: int) -> None:
        for process in self.processes:
            if process.pid == pid:
                process.signal(number)


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office()
    monkeypatch.setattr(multiprocess, "get_subprocess", office.subprocess)
    monkeypatch.setattr(basereload, "get_subprocess", office.subprocess)
    monkeypatch.setattr(os, "kill", office.kill)
    yield office
    for process in office.processes:
        process.dispose()


def workers(number: int) -> Workers:
    settings = ServerSettings(workers=number)
    made = Workers(Config("test_server_serving:silent", settings), [])
    made.init_processes()
    return made


def places(office: Office, made: Workers) -> list[int]:
    """Which processes are at work."""
    return [office.processes.index(cast(Any, each.process)) for each in made.processes]


def test_the_workers_are_ours(office: Office) -> None:
    made = workers(2)
    assert [type(worker) for worker in made.processes] == [Worker] * 2
    assert [type(worker.server) for worker in made.processes] == [Server] * 2
    assert made.processes[0].server is made.processes[0].server
    assert made.processes[0].server is not made.processes[1].server
    assert office.story == ["0 starts", "1 starts"]


def test_a_worker_that_cannot_start_says_so(
    monkeypatch: pytest.MonkeyPatch, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    [worker] = workers(1).processes

    def fail(_sockets: object) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr(worker.server, "run", fail)
    worker.server.started = False
    with pytest.raises(SystemExit) as ended:
        worker.target([])
    assert ended.value.code == STARTUP_FAILURE
    assert "A worker cannot start." in caplog.messages
    assert "no such thing" in caplog.text
    worker.server.started = True
    with pytest.raises(LookupError):
        worker.target([])


def test_a_worker_that_is_refused_says_why(
    monkeypatch: pytest.MonkeyPatch, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """And knows by then how many there are."""
    [worker] = workers(1).processes
    monkeypatch.setattr(processes, "_count", 0)

    def refuse(_sockets: object) -> None:
        raise UsageError(f"not by {processes.count()}")

    monkeypatch.setattr(worker.server, "run", refuse)
    worker.server.started = False
    with pytest.raises(SystemExit) as ended:
        worker.target([])
    assert ended.value.code == STARTUP_FAILURE
    assert caplog.messages == ["A worker cannot start: not by 1"]
    assert "Traceback" not in caplog.text


def test_a_worker_serves(monkeypatch: pytest.MonkeyPatch, office: Office) -> None:
    [worker] = workers(1).processes
    served: list[object] = []
    monkeypatch.setattr(worker.server, "run", served.append)
    sockets: list[socket.socket] = []
    worker.target(sockets)
    assert served == [sockets]


def test_a_hangup_puts_a_new_one_in_the_place_of_each(office: Office) -> None:
    made = workers(2)
    for process in office.processes:
        process.heeds = False  # they drain
    made.handle_hup()
    assert office.story[2:] == ["2 starts", "0 SIGUSR1", "3 starts", "1 SIGUSR1"]
    assert places(office, made) == [2, 3]
    assert [cast(Any, worker.process).is_alive() for worker in made._retired] == [True, True]
    office.processes[0].exitcode = 0
    made.keep_subprocess_alive()
    assert [worker.process for worker in made._retired] == [cast(Any, office.processes[1])]
    assert len(office.processes) == 4


@pytest.mark.parametrize("at", [0, 1])
def test_one_that_does_not_come_up_changes_nothing_more(
    office: Office, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    made = workers(2)
    office.fates = [*[None] * at, 1]
    made.restart_all()
    assert places(office, made) == [[0, 1], [2, 1]][at]
    assert cast(Any, made.processes[1].process).is_alive()
    failed = 2 + at
    assert office.story[-1] == f"{failed} SIGKILL"
    assert len(office.processes) == failed + 1
    assert "A new worker was not ready in time" in caplog.text


def test_one_more_and_one_less(office: Office) -> None:
    made = workers(1)
    made.handle_ttin()
    assert (places(office, made), made.processes_num) == ([0, 1], 2)
    assert isinstance(made.processes[1], Worker)
    made.handle_ttou()
    assert (places(office, made), made.processes_num) == ([0], 1)
    assert office.story[-1] == "1 SIGUSR1"
    made.handle_ttou()
    assert (places(office, made), made.processes_num) == ([0], 1)
    assert cast(Any, made.processes[0].process).is_alive()


@pytest.mark.parametrize("why", ["it has ended", "there is no signal"])
def test_who_cannot_retire_is_left(
    why: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    [worker] = workers(1).processes
    if why == "it has ended":
        office.processes[0].exitcode = 0
    else:
        monkeypatch.setattr(serving, "_RETIRE", None)
    worker.retire()
    assert office.processes[0].sent == []


def test_who_has_died_is_replaced_and_who_retired_is_not(office: Office) -> None:
    made = workers(3)
    made.handle_ttou()
    office.processes[0].exitcode = -signal.SIGKILL
    made.keep_subprocess_alive()
    assert places(office, made) == [3, 1]
    assert made._retired == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_workers(
    number: int, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """Those too that retire; the signal may come before anybody is there to heed it."""
    made = Workers(Config("test_server_serving:silent", ServerSettings(workers=2)), [])
    signal.raise_signal(number)
    made.run()
    assert sorted(office.story[2:]) == ["0 SIGTERM", "1 SIGTERM"]
    assert "Stopping all workers." in caplog.messages
    assert not any(process.is_alive() for process in office.processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_workers_at_once(
    number: int, office: Office, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = workers(3)
    for process in office.processes:
        process.heeds = False
    made.handle_ttou()
    raise_signal = signal.raise_signal
    monkeypatch.setattr(signal, "raise_signal", lambda _number: None)
    office.hears = {2: [lambda: raise_signal(number)], 4: [lambda: raise_signal(number)]}
    with pytest.raises(Gone):
        made.join_all()
    assert exits == [128 + number]
    assert [process.sent[-1] for process in office.processes] == [signal.SIGKILL] * 3
    assert office.waits == 4


def test_all_are_waited_for(office: Office) -> None:
    made = workers(2)
    made.handle_ttou()
    for process in office.processes:
        process.exitcode = None
        process.heeds = False
    first, second = office.processes
    office.hears = {
        3: [lambda: setattr(first, "exitcode", 0)],
        5: [lambda: setattr(second, "exitcode", 0)],
    }
    made.join_all()
    assert office.waits == 5


def test_an_application_that_no_worker_can_start(office: Office) -> None:
    made = Workers(Config("test_server_serving:silent", ServerSettings(workers=2)), [])
    office.fates = [STARTUP_FAILURE] * 2
    with pytest.raises(SystemExit) as ended:
        made.run()
    assert ended.value.code == STARTUP_FAILURE
    assert len(office.processes) == 2, "nobody tries again"


def test_a_worker_stops_when_its_parent_is_gone(office: Office) -> None:
    """It hears the end of the pipe."""
    worker = Worker(Config("test_server_serving:silent", ServerSettings(workers=2)), [])
    worker.parent_conn.close()
    with Server(cast(Config, worker.config)).capture_signals():
        worker.always_pong()
    assert worker.server.should_exit


# Reload.


def test_a_signal_stops_what_reloads(office: Office, exits: list[int]) -> None:
    config = Config("test_server_serving:silent", ServerSettings(reload=True))
    reloader = Reloader(config, target=Server(config).run, sockets=[])
    reloader.startup()
    signal.raise_signal(signal.SIGINT)
    reloader.shutdown()
    assert office.story == ["0 starts", "0 SIGTERM"]
    assert exits == []


def test_a_second_signal_ends_what_reloads(
    office: Office, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config("test_server_serving:silent", ServerSettings(reload=True))
    reloader = Reloader(config, target=Server(config).run, sockets=[])
    reloader.startup()
    signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(signal, "raise_signal", lambda _number: None)
    with pytest.raises(Gone):
        reloader.signal_handler(signal.SIGTERM, None)
    assert office.story == ["0 starts", "0 SIGKILL"]
    assert exits == [128 + signal.SIGTERM]
