"""The command `yaat`: what it says, what every option reaches, and the processes that it starts."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization

import yaat.server
from clients import Closed, connect
from running import (
    APP,
    ECHOED,
    HELLO,
    LOOPS,
    TIMEOUT,
    UPGRADE,
    Answer,
    Raw,
    dialled,
    dialled_tls,
    dialled_unix,
    fetch,
    request,
    run_once,
    specification,
    start,
    until,
    until_written,
)
from servers import TESTS, Server, ServerPool, ServerSpec
from wires import TlsServer, UnixServer, certificate
from yaat.cli import main
from yaat.exceptions import UsageError
from yaat.server import ServerSettings
from yaat.server.serving import Config

FIELDS = {field.name: field for field in fields(ServerSettings)}
MANY = ("reload_dirs", "reload_includes", "reload_excludes")


def option(name: str) -> str:
    """The name of a setting on the command line."""
    return f"--{(name.removesuffix('s') if name in MANY else name).replace('_', '-')}"


@pytest.fixture(scope="module", params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    return str(request.param)


# What it says


def shown(default: Any) -> str:
    if default is None or default in ("", ()):
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


@pytest.fixture(scope="module")
def page() -> str:
    """What `yaat run --help` prints."""
    asked = run_once("run", "--help")
    assert (asked.returncode, asked.stderr) == (0, "")
    return asked.stdout


def test_the_help_is_short(page: str) -> None:
    assert max(map(len, page.splitlines())) <= 100
    assert len(page.splitlines()) <= 80


@pytest.mark.parametrize("name", FIELDS)
def test_the_help_tells_each_option_and_its_default(page: str, name: str) -> None:
    told = re.split(r"\n\s+(?=--|-h)|\n\n", page)
    [mine] = [each for each in told if re.match(rf"{option(name)}[ ,]", each)]
    sentence = " ".join(mine.split())
    assert sentence.endswith(f"({shown(FIELDS[name].default)})")
    assert len(sentence.split("  ")[0]) > len(option(name)) + 20, "it says what it is for"


def test_the_version() -> None:
    asked = run_once("--version")
    assert (asked.returncode, asked.stdout) == (0, f"yaat {version('yaat')}\n")


def test_without_a_command_it_tells_them() -> None:
    asked = run_once()
    assert asked.returncode == 2
    assert "yaat" in asked.stderr
    assert "run" in run_once("--help").stdout


@pytest.mark.parametrize("missing", ["uvicorn", "websockets", "httptools"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """The module is hidden from a process of its own, as it is where nobody installed it."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from yaat.cli import main; main(['run', {APP!r}])"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=TESTS, check=False
    )
    assert asked.returncode == 1
    assert missing in asked.stderr
    assert "yaat[server]" in asked.stderr
    assert "Traceback" not in asked.stderr


# What cannot be meant

WRONG: dict[str, list[str]] = {
    "a-port-below-zero": ["--port", "-1"],
    "a-port-that-is-none": ["--port", "80a"],
    "a-port-that-is-too-high": ["--port", "65536"],
    "a-descriptor-below-zero": ["--fd", "-1"],
    "no-backlog": ["--backlog", "0"],
    "no-workers": ["--workers", "0"],
    "a-loop": ["--loop", "fast"],
    "a-level": ["--log-level", "loud"],
    "a-requirement": ["--ssl-cert-reqs", "3"],
    "no-time-for-a-handshake": ["--handshake-timeout", "0"],
    "an-endless-time": ["--handshake-timeout", "inf"],
    "no-number": ["--handshake-timeout", "nan"],
    "no-headers": ["--max-headers", "0"],
    "no-bytes": ["--max-header-bytes", "-5"],
    "half-a-connection": ["--max-connections", "0.5"],
    "no-connections": ["--max-connections", "0"],
    "no-connections-of-one": ["--max-connections-per-address", "0"],
    "no-message": ["--max-message-bytes", "0"],
    "no-idle-time": ["--idle-timeout", "0"],
    "a-ping-before-the-last": ["--ping-interval", "-1"],
    "a-drain-below-zero": ["--drain", "-1"],
    "a-handler-below-zero": ["--handler-timeout", "-1"],
    "an-option": ["--what-is-this"],
    "a-value-that-is-missing": ["--port"],
    "a-value-for-a-switch": ["--reload=yes"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant(wrong: str) -> None:
    asked = run_once("run", APP, *WRONG[wrong])
    assert asked.returncode == 2, asked
    assert "Traceback" not in asked.stderr
    last = asked.stderr.splitlines()[-1]
    assert last.startswith("yaat run: error: "), asked.stderr
    name = WRONG[wrong][0].split("=")[0].removeprefix("--")
    assert name in last.replace("_", "-"), "it names what is wrong"


def test_without_an_application() -> None:
    asked = run_once("run")
    assert asked.returncode == 2
    assert "APP" in asked.stderr.splitlines()[-1]


@pytest.mark.parametrize("settings", [{"workers": 2}, {"reload": True}])
def test_what_imports_the_application_needs_its_name(settings: dict[str, Any]) -> None:
    from apps.run_bare import app

    with pytest.raises(UsageError, match="module:name"):
        yaat.server.run(cast(Any, app), ServerSettings(**settings))


# What cannot be started

CANNOT: dict[str, tuple[str, list[str], str]] = {
    "no-module": ("apps.nowhere:app", [], "apps.nowhere"),
    "no-attribute": ("apps.run_bare:nowhere", [], "nowhere"),
    "no-colon": ("apps.run_bare", [], "apps.run_bare"),
    "no-name": ("apps.run_bare:", [], "apps.run_bare:"),
    "a-factory-that-is-none": ("apps.run_bare:PLAIN", ["--factory"], "factory"),
    "a-lifespan-that-fails": ("apps.run_bare:broken", [], "the cellar is under water"),
    "no-directory-for-a-socket": (APP, ["--uds", "/nowhere/to/be/found"], "/nowhere/to/be/found"),
    "a-socket-that-is-a-file": (APP, ["--uds", "FILE"], "FILE"),
    "no-such-descriptor": (APP, ["--fd", "977"], "977"),
    "a-descriptor-that-is-no-socket": (APP, ["--fd", "0"], "0"),
    "no-host": (APP, ["--host", "nowhere.invalid"], "nowhere.invalid"),
    "no-such-address": (APP, ["--host", "203.0.113.77"], "203.0.113.77"),
    "no-certificate": (APP, ["--ssl-certfile", "/nowhere.pem"], "/nowhere.pem"),
    "a-certificate-that-is-none": (APP, ["--ssl-certfile", "FILE"], "FILE"),
    "a-key-without-a-certificate": (APP, ["--ssl-keyfile", "KEY"], "ssl_certfile"),
    "no-log-config": (APP, ["--log-config", "/nowhere.json"], "/nowhere.json"),
    "a-log-config-that-is-none": (APP, ["--log-config", "FILE"], "FILE"),
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("why", CANNOT)
def test_what_cannot_be_started(why: str, workers: str, tmp_path: Path) -> None:
    app, options, sentence = CANNOT[why]
    file = tmp_path / "a file.txt"
    file.write_text("nothing of use")
    _, key = certificate(tmp_path)
    paths = {"FILE": str(file), "KEY": str(key)}
    options = [paths.get(each, each) for each in options]
    asked = run_once("run", app, "--port", "0", "--workers", workers, *options)
    written = asked.stdout + asked.stderr
    assert asked.returncode not in (0, None), written
    assert paths.get(sentence, sentence) in written, written
    assert "Traceback" not in written, written
    assert file.read_text() == "nothing of use"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        asked = run_once("run", APP, "--port", port, "--workers", workers)
    assert asked.returncode != 0
    assert "address already in use" in asked.stderr.lower()
    assert port in asked.stderr
    assert "Traceback" not in asked.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_application_that_raises_when_it_is_imported(tmp_path: Path, workers: str) -> None:
    """Its own traceback is what is needed: it comes last, and names the file."""
    (tmp_path / "hasty.py").write_text("import json\n\napp = json.loads('{')\n")
    options = ("--port", "0", "--workers", workers, "--app-dir", str(tmp_path))
    asked = run_once("run", "hasty:app", *options)
    assert asked.returncode != 0
    assert "hasty.py" in asked.stderr
    assert "JSONDecodeError" in asked.stderr


# What an option reaches


def other(field: Field[Any]) -> tuple[list[str], Any]:
    """Return a value on the command line that is not the default, and what it is in Python."""
    flag = option(field.name)
    given = OTHER.get(field.name)
    if given is not None:
        kind: type = type(field.default)
        return [flag, given], kind(given)
    if isinstance(field.default, bool):
        value = not field.default
        return [flag if value else flag.replace("--", "--no-", 1)], value
    if field.name in MANY:
        return [flag, "one", flag, "two"], ("one", "two")
    if isinstance(field.default, float) or field.name in TIMES:
        return [flag, "7.5"], 7.5
    if isinstance(field.default, int) or field.name in NUMBERS:
        return [flag, "7"], 7
    return [flag, "something"], "something"


OTHER = {"loop": "asyncio", "log_level": "debug", "ssl_cert_reqs": "2"}
TIMES = ("idle_timeout", "ping_interval", "ping_timeout")
NUMBERS = ("fd", "workers", "max_connections", "max_connections_per_address")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ServerSettings]]:
    """What would be started, if it were."""
    calls: list[tuple[Any, ServerSettings]] = []
    monkeypatch.setattr(yaat.server, "run", lambda *given: calls.append(given))
    return calls


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_becomes_its_setting(
    started: list[tuple[Any, ServerSettings]], name: str
) -> None:
    given, value = other(FIELDS[name])
    main(["run", "module:name", *given])
    main(["run", *given, "module:name"])
    assert started == [("module:name", ServerSettings(**{name: value}))] * 2
    assert getattr(ServerSettings(), name) != value


def test_without_options_it_is_the_defaults(started: list[tuple[Any, ServerSettings]]) -> None:
    main(["run", "module:name"])
    assert started == [("module:name", ServerSettings())]


@pytest.mark.parametrize("name", ["proxy_headers", "access_log", "compression", "reload"])
def test_every_switch_can_be_said_both_ways(
    started: list[tuple[Any, ServerSettings]], name: str
) -> None:
    main(["run", "module:name", option(name)])
    main(["run", "module:name", option(name).replace("--", "--no-", 1)])
    assert [getattr(settings, name) for _, settings in started] == [True, False]


@pytest.mark.parametrize("name", ["ping_interval", "ping_timeout", "idle_timeout"])
def test_what_may_be_left_out_can_be_said_to_be(
    started: list[tuple[Any, ServerSettings]], name: str
) -> None:
    main(["run", "module:name", option(name), "none"])
    assert started == [("module:name", ServerSettings(**{name: None}))]  # type: ignore[arg-type]


# What uvicorn calls what it does itself; all the others are seen to work, here and in the tests of
# handshakes, of connections and of drains.
UVICORNS = {
    **{name: name for name in ("host", "port", "uds", "fd", "backlog", "factory", "root_path")},
    **{name: name for name in ("workers", "reload_includes", "reload_excludes", "loop")},
    **{name: name for name in ("ssl_certfile", "ssl_keyfile", "ssl_keyfile_password")},
    **{name: name for name in ("ssl_ca_certs", "ssl_cert_reqs", "proxy_headers", "access_log")},
    **{name: name for name in ("forwarded_allow_ips", "reload")},
    "keep_alive_timeout": "timeout_keep_alive",
    "shutdown_timeout": "timeout_graceful_shutdown",
    "max_message_bytes": "ws_max_size",
    "ping_interval": "ws_ping_interval",
    "ping_timeout": "ws_ping_timeout",
    "compression": "ws_per_message_deflate",
}


# Of these uvicorn makes something else when they are not given.
UVICORNS_OWN = {*MANY, "workers", "forwarded_allow_ips"}


@pytest.mark.parametrize("name", UVICORNS)
def test_uvicorn_is_told_of_it(name: str) -> None:
    _, value = other(FIELDS[name])
    # It looks at what to watch only where it reloads.
    settings = ServerSettings(**{"reload": name in MANY, name: value})
    told = getattr(Config("module:name", settings), UVICORNS[name])
    # What there are many of is a set for it.
    assert (sorted(told) == sorted(value)) if isinstance(value, tuple) else (told == value)


@pytest.mark.parametrize("name", sorted(UVICORNS.keys() - UVICORNS_OWN))
def test_uvicorn_is_told_the_defaults(name: str) -> None:
    assert getattr(Config("module:name", ServerSettings()), UVICORNS[name]) == FIELDS[name].default


async def test_the_loop(servers: ServerPool, loop: str) -> None:
    module = (await fetch(start(servers, loop), "/loop")).body.decode()
    assert module.startswith(loop)


async def test_the_root_path(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--root-path", "/api")
    scope = json.loads((await fetch(server, "/scope/x")).body)
    assert (scope["root_path"], scope["path"]) == ("/api", "/api/scope/x")
    async with connect(server.url("/scope/x")) as client:
        scope = await client.receive_json()
        assert (scope["root_path"], scope["path"]) == ("/api", "/api/scope/x")


async def test_a_factory(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--factory", app="apps.run_bare:make")
    assert (await fetch(server, "/")).body == b"a page"
    async with connect(server.url("/echo")) as client:
        await client.send_text("hello")
        assert await client.receive() == "hello"


async def test_an_application_without_a_lifespan(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, app="apps.run_bare:without_lifespan")
    assert (await fetch(server, "/")).body == b"a page"
    assert "Traceback" not in server.written_since()


NAMED = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"version 1"})
"""


async def test_an_application_of_another_directory(loop: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(NAMED)
    with Server(
        specification(loop, "--app-dir", str(tmp_path)), "elsewhere:app", tmp_path
    ) as server:
        assert (await fetch(server, "/")).body == b"version 1"


async def test_an_application_of_the_current_directory(loop: str, tmp_path: Path) -> None:
    """Found without an option: `python -m apps.run_in DIRECTORY` goes there before."""
    (tmp_path / "here.py").write_text(NAMED)
    spec = specification(loop)

    def arguments(app: str, port: int) -> list[str]:
        return ["apps.run_in", str(tmp_path), *spec.arguments(app, port)[1:]]

    with Server(ServerSpec(f"here-{loop}", arguments), "here:app", tmp_path) as server:
        assert (await fetch(server, "/")).body == b"version 1"


PROXIED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("options", "is_believed"),
    [
        ((), True),
        (("--no-proxy-headers",), False),
        (("--forwarded-allow-ips", "10.0.0.0/8"), False),
        (("--forwarded-allow-ips", "10.0.0.1,127.0.0.0/8"), True),
    ],
)
async def test_proxy_headers(
    servers: ServerPool, loop: str, options: tuple[str, ...], *, is_believed: bool
) -> None:
    server = start(servers, loop, *options)
    scope = json.loads((await fetch(server, "/scope", PROXIED)).body)
    assert (scope["client"][0], scope["scheme"]) == (
        ("203.0.113.7", "https") if is_believed else ("127.0.0.1", "http")
    )
    async with connect(server.url("/scope"), headers=PROXIED.items()) as client:
        scope = await client.receive_json()
        assert (scope["client"][0], scope["scheme"]) == (
            ("203.0.113.7", "wss") if is_believed else ("127.0.0.1", "ws")
        )


async def test_whom_to_believe_by_the_environment(tmp_path: Path) -> None:
    with Server(
        specification("asyncio"), APP, tmp_path, {"FORWARDED_ALLOW_IPS": "10.0.0.1"}
    ) as server:
        scope = json.loads((await fetch(server, "/scope", PROXIED)).body)
        assert scope["client"][0] == "127.0.0.1"


# The log


async def test_the_access_lines(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--access-log")
    mark = server.mark()
    await fetch(server, "/scope?a=1")
    await fetch(server, "/nothing")
    for path in ("/echo", "/refuse", "/deny"):
        async with dialled(server) as raw:
            await raw.ask(f"{path}?b=2", UPGRADE)
    written = await until_written(server, "/deny", mark)
    client = r'^INFO: +127\.0\.0\.1:\d+ - "'
    for line in (
        r'GET /scope\?a=1 HTTP/1\.1" 200 OK$',
        r'GET /nothing HTTP/1\.1" 204 No Content$',
        r'WebSocket /echo\?b=2" \[accepted\]$',
        r'WebSocket /refuse\?b=2" 403$',
        r'WebSocket /deny\?b=2" 418$',
    ):
        assert len(re.findall(client + line, written, re.MULTILINE)) == 1, (line, written)


async def test_no_access_lines(servers: ServerPool, loop: str) -> None:
    server = start(servers, loop, "--no-access-log")
    mark = server.mark()
    await fetch(server, "/scope?quiet")
    await fetch(server, "/log/info")
    assert "quiet" not in await until_written(server, "and so info", mark)


LEVELS = ("critical", "error", "warning", "info", "debug")


@pytest.mark.parametrize("level", LEVELS)
async def test_the_log_level(servers: ServerPool, level: str) -> None:
    server = start(servers, "asyncio", "--log-level", level)
    mark = server.mark()
    for each in reversed(LEVELS):
        await fetch(server, f"/log/{each}")
    written = await until_written(server, "and so critical", mark)
    said = [each for each in LEVELS if f"and so {each}" in written]
    assert said == list(LEVELS[: LEVELS.index(level) + 1])
    # At this level a start is no news.
    assert ("Application startup complete" in server.written_since()) is (level in LEVELS[3:])


def dict_config(file: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"own": {"format": "own %(levelname)s %(message)s"}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": str(file), "formatter": "own"}
        },
        "loggers": {"uvicorn": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }


def ini_config(file: Path) -> str:
    return f"""
[loggers]
keys=root,uvicorn
[handlers]
keys=file
[formatters]
keys=own
[logger_root]
handlers=
[logger_uvicorn]
qualname=uvicorn
level=INFO
handlers=file
[handler_file]
class=FileHandler
args=({str(file)!r},)
formatter=own
[formatter_own]
format=own %(levelname)s %(message)s
"""


@pytest.mark.parametrize("kind", ["json", "yaml", "ini"])
async def test_a_file_that_sets_up_logging(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "own.log"
    config = tmp_path / f"logging.{kind}"
    # JSON is YAML.
    config.write_text(ini_config(log) if kind == "ini" else json.dumps(dict_config(log)))
    spec = specification("asyncio", "--log-config", str(config), "--access-log")
    with Server(spec, APP, tmp_path) as server:
        await fetch(server, "/scope?own")

        async def is_written() -> bool:
            return "/scope?own" in log.read_text()

        await until(is_written)
        assert "own INFO Application startup complete." in log.read_text()
        assert "INFO: " not in server.written_since()


# Where it listens


async def test_tls(loop: str, tmp_path: Path) -> None:
    with TlsServer(specification(loop), APP, tmp_path) as server:
        async with dialled_tls(server, server.context()) as raw:
            assert json.loads((await raw.ask("/scope")).body)["scheme"] == "https"
            await raw.upgraded("/echo")
            await raw.send(HELLO)
            await raw.exactly(ECHOED)
        async with dialled_tls(server, server.context()) as raw:
            await raw.ask("/")
            await raw.upgraded("/scope")
        assert f"https://127.0.0.1:{server.port}" in server.written_since()


async def test_tls_with_certificates_of_clients(loop: str, tmp_path: Path) -> None:
    theirs = tmp_path / "client"
    theirs.mkdir()
    cert, key = certificate(theirs)
    options = ("--ssl-ca-certs", str(cert), "--ssl-cert-reqs", "2")
    spec = specification(loop, *options)
    with Known(spec, APP, tmp_path, cert, key) as server:
        async with dialled_tls(server, server.context()) as raw:
            assert (await raw.ask("/")).body == b"a page"
        stranger = ssl.create_default_context(cafile=server.certificate)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            async with dialled_tls(server, stranger) as raw:
                await raw.ask("/")


class Known(TlsServer):
    """A server that serves those only who show a certificate."""

    def __init__(
        self, spec: ServerSpec, app: str, directory: Path, certificate: Path, key: Path
    ) -> None:
        super().__init__(spec, app, directory)
        self._shown = certificate, key

    def context(self) -> ssl.SSLContext:
        context = super().context()
        context.load_cert_chain(*self._shown)
        return context


class Locked(TlsServer):
    """A server whose key has a password."""

    def __init__(self, spec: ServerSpec, app: str, directory: Path) -> None:
        super().__init__(spec, app, directory)
        path = directory / "key.pem"
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )


async def test_a_key_with_a_password(loop: str, tmp_path: Path) -> None:
    spec = specification(loop, "--ssl-keyfile-password", "secret")
    with Locked(spec, APP, tmp_path) as server:
        async with dialled_tls(server, server.context()) as raw:
            assert (await raw.ask("/")).body == b"a page"


async def test_a_unix_socket(loop: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with UnixServer(specification(loop), APP, tmp_path) as server:
        assert path.is_socket()
        assert str(path) in server.written_since()
        for _ in range(2):
            async with dialled_unix(server.path) as raw:
                assert (await raw.ask("/")).body == b"a page"
                await raw.upgraded("/echo")
                await raw.send(HELLO)
                await raw.exactly(ECHOED)
        # What a crash leaves behind is taken over.
        server.kill()
        assert path.exists()
        server.restart()
        async with dialled_unix(server.path) as raw:
            assert (await raw.ask("/")).body == b"a page"
        server.terminate()
        assert server.wait() == 0
        assert not path.exists()


async def test_a_unix_socket_of_workers(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with UnixServer(specification("uvloop", "--workers", "2"), APP, tmp_path) as server:
        async with dialled_unix(server.path) as raw:
            assert (await raw.ask("/")).body == b"a page"
        server.terminate()
        assert server.wait() == 0
        assert not path.exists()


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_inherited_socket(loop: str, tmp_path: Path, family: str, workers: str) -> None:
    options = ["--loop", loop, "--workers", workers]
    path = str(tmp_path / "socket")

    def arguments(app: str, port: int) -> list[str]:
        where = str(port) if family == "tcp" else path
        return ["apps.run_with_socket", where, app, *options]

    spec = ServerSpec(f"inherited-{family}-{loop}-{workers}", arguments)
    server = Server(spec, APP, tmp_path) if family == "tcp" else Inherited(spec, tmp_path, path)
    with server:
        async with dialled(server) if family == "tcp" else dialled_unix(path) as raw:
            scope = json.loads((await raw.ask("/scope")).body)
            assert scope["client"] == (None if family == "unix" else ["127.0.0.1", ANY])
            await raw.upgraded("/echo")
            await raw.send(HELLO)
            await raw.exactly(ECHOED)
        assert "Traceback" not in server.written_since()


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


ANY = _Any()


class Inherited(UnixServer):
    """A server on a unix socket that somebody else has bound."""

    def __init__(self, spec: ServerSpec, directory: Path, path: str) -> None:
        super().__init__(spec, APP, directory)
        self.spec = spec
        self.path = path


@contextmanager
def on_any_port(tmp_path: Path, *command: str) -> Iterator[int]:
    """Run a program that serves on a free port, until the end of the block; give the port."""
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, *command], cwd=TESTS, env=environment, stderr=output
        ) as process,
    ):
        try:
            yield waited_for(lambda: re.findall(r"http://\S+:(\d+)", log.read_text()))
        finally:
            process.terminate()
    assert process.returncode == 0, log.read_text()


def waited_for(ports: Callable[[], list[str]]) -> int:
    async def told() -> list[str]:
        return ports()

    return int(asyncio.run(until(told))[0])


def status(address: str, port: int, head: bytes) -> bytes:
    """Send a head when somebody listens, and return the status."""

    async def answer() -> bytes | None:
        try:
            peer = socket.create_connection((address, port), timeout=TIMEOUT)
        except ConnectionRefusedError:
            return None
        with peer:
            peer.sendall(head)
            return peer.recv(12)

    return asyncio.run(until(answer)).removeprefix(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("::1", "::1"),
        ("0.0.0.0", "127.0.0.1"),
    ],
)
def test_any_free_port(tmp_path: Path, host: str, address: str) -> None:
    """The log tells which one it is."""
    options = ("-m", "yaat", "run", APP, "--port", "0", "--host", host)
    with on_any_port(tmp_path, *options) as port:
        assert port > 0
        assert status(address, port, b"GET / HTTP/1.0\r\n\r\n") == b"200"


def test_run_from_python(tmp_path: Path) -> None:
    """`yaat.server.run` is the same without a command line."""
    program = (
        "from yaat.server import ServerSettings, run\n"
        "from apps.run_bare import app\n"
        "run(app, ServerSettings(port=0, max_headers=3))\n"
    )
    with on_any_port(tmp_path, "-c", program) as port:
        for count, expected in ((3, b"200"), (4, b"431")):
            head = b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * count + b"\r\n"
            assert status("127.0.0.1", port, head) == expected


# Several processes


@pytest.fixture
def pair(loop: str, tmp_path: Path) -> Iterator[Server]:
    """Two workers."""
    with Server(specification(loop, "--workers", "2", "--access-log"), APP, tmp_path) as server:
        yield server


async def pids(server: Server, *, but: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
    """Ask until two processes have answered that are not among those."""
    seen: set[int] = set()

    async def both() -> bool:
        seen.add(int((await fetch(server, "/pid")).body))
        return len(seen - but) >= 2

    await until(both)
    return seen - but


async def test_two_workers_serve(pair: Server) -> None:
    serving = await pids(pair)
    assert pair.pid not in serving
    held = set()
    for _ in range(50):
        async with connect(pair.url("/pid")) as client:
            held.add(int(await client.receive()))
            await client.send_text("hello")
            assert await client.receive() == "hello"
    assert held <= serving
    assert len(re.findall("Started server process", pair.written_since())) == 2


async def test_a_worker_that_was_killed_is_replaced(pair: Server) -> None:
    first, second = await pids(pair)
    os.kill(first, signal.SIGKILL)
    now = await pids(pair, but={first})
    assert second in now
    assert len(now) == 2
    assert "Traceback" not in pair.written_since()


async def test_a_hangup_restarts_them_one_by_one(pair: Server) -> None:
    """Who asks meanwhile is answered, each time; who is connected is told to come again."""
    before = await pids(pair)
    async with connect(pair.url("/pid")) as client:
        assert int(await client.receive()) in before
        client.timeout = 30  # two processes start one after the other
        os.kill(pair.pid, signal.SIGHUP)
        ended = asyncio.create_task(end_of(client))
        for count in (3, 4):
            await until_written(pair, "Started server process", count=count)
        after = await pids(pair, but=before)
        assert await ended == 1012
    assert not after & before

    async def have_gone() -> bool:
        assert (await fetch(pair, "/pid")).status == 200
        return not running(before)

    await until(have_gone)
    assert "Traceback" not in pair.written_since()
    assert pair.alive


# The stop begins, and goes on when it is allowed: meanwhile nothing is read.
GATED = """
import logging
import time
from pathlib import Path

from apps.run_bare import app

GATE = Path(__file__).with_name("gate")


def hold(record):
    if record.getMessage() == "Shutting down":
        print("held", flush=True)
        while not GATE.exists():
            time.sleep(0.01)
    return True


logging.getLogger("uvicorn.error").addFilter(hold)
"""


class Gated(Server):
    """A server that is held when it begins to stop, so that a test can do something just then."""

    def __init__(self, loop: str, workers: int, directory: Path) -> None:
        (directory / "gated.py").write_text(GATED)
        options = ("--workers", str(workers), "--app-dir", str(directory))
        super().__init__(specification(loop, *options), "gated:app", directory)
        self._workers = workers
        self.retires = workers > 1
        self._gate = directory / "gate"

    async def begin_to_stop(self) -> None:
        """Let all stop who serve: alone for good, else others take their places."""
        os.kill(self.pid, signal.SIGHUP if self.retires else signal.SIGTERM)
        for count in range(1, self._workers + 1):  # the next one starts when that retires
            await until_written(self, "held", count=count)

    async def go_on(self) -> None:
        self._gate.touch()
        await until_written(self, "Finished server process", count=self._workers)


@pytest.fixture(params=[1, 2])
def gated(request: pytest.FixtureRequest, loop: str, tmp_path: Path) -> Iterator[Gated]:
    """One process that is asked to stop, and two of which each is replaced."""
    with Gated(loop, request.param, tmp_path) as server:
        yield server
        assert "Traceback" not in server.written_since()


@asynccontextmanager
async def taken(server: Server) -> AsyncIterator[Raw]:
    """Connect, and be accepted: whoever came later has been answered already."""
    async with dialled(server) as raw:
        await fetch(server, "/")
        yield raw


async def test_who_had_come_and_asks_in_the_moment_of_the_stop_is_answered(gated: Gated) -> None:
    """It is not reset with its request unread."""
    async with taken(gated) as raw:
        await gated.begin_to_stop()
        await raw.send(request("/"))
        await gated.go_on()
        answer = await raw.answer()
        assert (answer.status, answer.body) == (200, b"a page")
        assert answer.header("connection") == "close"
        assert await raw.reader.read() == b""


async def test_a_handshake_that_comes_in_the_moment_of_the_stop_is_answered(gated: Gated) -> None:
    """Who retires still takes it, and closes it with the others; else they may come again."""
    async with taken(gated) as raw:
        await gated.begin_to_stop()
        await raw.send(request("/echo", UPGRADE))
        await gated.go_on()
        answer = await raw.answer()
        if gated.retires:
            assert answer.status == 101
            assert await raw.rest() == b"\x88\x02" + (1012).to_bytes(2, "big")
        else:
            assert answer.status == 503
            assert answer.header("retry-after")


async def test_who_says_nothing_does_not_hold_the_stop(gated: Gated) -> None:
    async with taken(gated) as raw, taken(gated) as another:
        await another.send(b"GET / HT")
        await gated.begin_to_stop()
        await gated.go_on()
        for each in (raw, another):
            assert await each.reader.read() == b""


def running(pids: set[int]) -> set[int]:
    """Those of the processes that have not ended, or for whose end nobody has asked."""
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


async def end_of(client: Any) -> int:
    with pytest.raises(Closed) as end:
        await client.receive()
    return end.value.code


async def test_the_workers_end_with_their_parent(pair: Server) -> None:
    serving = await pids(pair)
    pair.terminate()
    assert pair.wait() == 0
    assert not running(serving)
    assert "Traceback" not in pair.written_since()


async def test_as_many_workers_as_the_environment_says(tmp_path: Path) -> None:
    with Server(specification("asyncio"), APP, tmp_path, {"WEB_CONCURRENCY": "2"}) as server:
        assert server.pid not in await pids(server)


async def test_each_worker_has_the_settings(tmp_path: Path) -> None:
    options = ("--workers", "2", "--max-connections", "1", "--max-headers", "10")
    with Server(specification("uvloop", *options), APP, tmp_path) as server:
        await pids(server)
        statuses: list[int] = []

        async def full() -> bool:
            raw = await stack.enter_async_context(dialled(server))
            answer: Answer = await raw.ask("/echo", UPGRADE)
            statuses.append(answer.status)
            return answer.status == 503 and statuses.count(101) == 2

        async with AsyncExitStack() as stack:
            await until(full)
        headers = {f"X-{number}": "1" for number in range(10)}
        assert (await fetch(server, "/", headers)).status == 431


# New code


SAVE_AGAIN = 1.0
"""After so many seconds: uvicorn's reloader does not see what changes before its first look."""


async def save(server: Server, module: Path, text: str) -> None:
    """Save a file whole, and again from time to time, until the reloader has seen it."""
    loop = asyncio.get_running_loop()
    mark, again = server.mark(), loop.time()

    async def is_seen() -> bool:
        nonlocal again
        if loop.time() >= again:
            replace_text(module, text)
            again += SAVE_AGAIN
        return "detected changes" in server.written_since(mark)

    await until(is_seen)
    assert module.name in server.written_since(mark)


def replace_text(file: Path, text: str) -> None:
    """At once, so that nobody reads half of it."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


async def test_reload(loop: str, tmp_path: Path) -> None:
    module = tmp_path / "growing.py"
    module.write_text(NAMED)
    options = ("--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path))
    with Server(specification(loop, *options), "growing:app", tmp_path) as server:
        assert (await fetch(server, "/")).body == b"version 1"
        # Of different sizes: Python takes a file of the same size and second for the same.
        for version in ("version 20", "version 300"):
            await save(server, module, NAMED.replace("version 1", version))
            await until(answers(server, version.encode()))
        # A mistake is told of, and mended.
        mark = server.mark()
        await save(server, module, "app = (")
        await until_written(server, "SyntaxError", mark)
        await save(server, module, NAMED.replace("version 1", "version 4000"))
        await until(answers(server, b"version 4000"))
        server.terminate()
        assert server.wait() == 0


def answers(server: Server, body: bytes) -> Callable[[], Awaitable[bool]]:
    async def does() -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):
            return (await fetch(server, "/")).body == body
        return False

    return does
