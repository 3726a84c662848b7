"""The command `yaat`: what each option becomes, what is refused, and what its help says.

What `yaat publish` publishes a real server has.
"""

import asyncio
import io
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import yaat.server
from redis_servers import RedisServer
from running import run_once
from yaat import cli
from yaat.brokers.memory import MemoryBroker
from yaat.channels import Channel, ChannelOptions, Channels, connect
from yaat.cli import WIDTH, main
from yaat.exceptions import ArgumentError, BrokerRefused, BrokerUnavailable, UsageError
from yaat.server import ServerSettings

FIELDS = {field.name: field for field in fields(ServerSettings)}
Started = list[tuple[str, ServerSettings]]

# What is written for each setting, and what it becomes. A switch is written alone.
WRITTEN: dict[str, tuple[str, Any]] = {
    "host": ("--host 0.0.0.0", "0.0.0.0"),
    "port": ("--port 0", 0),
    "uds": ("--uds /run/yaat.socket", "/run/yaat.socket"),
    "fd": ("--fd 3", 3),
    "backlog": ("--backlog 10", 10),
    "app_dir": ("--app-dir src", "src"),
    "factory": ("--factory", True),
    "root_path": ("--root-path /api", "/api"),
    "workers": ("--workers 2", 2),
    "reload": ("--reload", True),
    "reload_dirs": ("--reload-dir a --reload-dir b", ("a", "b")),
    "reload_includes": ("--reload-include *.html --reload-include *.css", ("*.html", "*.css")),
    "reload_excludes": ("--reload-exclude x.py", ("x.py",)),
    "loop": ("--loop asyncio", "asyncio"),
    "ssl_certfile": ("--ssl-certfile c.pem", "c.pem"),
    "ssl_keyfile": ("--ssl-keyfile k.pem", "k.pem"),
    "ssl_keyfile_password": ("--ssl-keyfile-password secret", "secret"),
    "ssl_ca_certs": ("--ssl-ca-certs a.pem", "a.pem"),
    "ssl_cert_reqs": ("--ssl-cert-reqs 2", 2),
    "proxy_headers": ("--no-proxy-headers", False),
    "forwarded_allow_ips": ("--forwarded-allow-ips 10.0.0.1,10.0.0.2", "10.0.0.1,10.0.0.2"),
    "access_log": ("--no-access-log", False),
    "log_level": ("--log-level trace", "trace"),
    "log_config": ("--log-config log.json", "log.json"),
    "handshake_timeout": ("--handshake-timeout 2.5", 2.5),
    "max_headers": ("--max-headers 10", 10),
    "max_header_bytes": ("--max-header-bytes 1000", 1000),
    "keep_alive_timeout": ("--keep-alive-timeout 0", 0.0),
    "max_connections": ("--max-connections 10", 10),
    "max_connections_per_address": ("--max-connections-per-address 5", 5),
    "max_message_bytes": ("--max-message-bytes 1000000", 1_000_000),
    "idle_timeout": ("--idle-timeout 60", 60.0),
    "write_buffer": ("--write-buffer 1", 1),
    "read_buffer": ("--read-buffer 1", 1),
    "max_tiny_fragments": ("--max-tiny-fragments 0", 0),
    "ping_interval": ("--ping-interval 1e1", 10.0),
    "ping_timeout": ("--ping-timeout .5", 0.5),
    "compression": ("--no-compression", False),
    "compress_from": ("--compress-from 0", 0),
    "drain": ("--drain 30", 30.0),
    "handler_timeout": ("--handler-timeout 0", 0.0),
    "close_timeout": ("--close-timeout 1", 1.0),
    "shutdown_timeout": ("--shutdown-timeout 1", 1.0),
}
SWITCHES = [name for name, field in FIELDS.items() if field.type is bool]
LISTS = [name for name, field in FIELDS.items() if typing.get_origin(field.type) is tuple]
OPTIONAL = [name for name, field in FIELDS.items() if isinstance(field.type, types.UnionType)]
WHOLE = [name for name, (_, value) in WRITTEN.items() if type(value) is int]
REAL = [name for name, (_, value) in WRITTEN.items() if type(value) is float]


def flag(name: str) -> str:
    """The option as it is written when it is not negated."""
    return WRITTEN[name][0].split()[0].replace("--no-", "--")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What would be started."""
    calls: Started = []
    monkeypatch.setattr(yaat.server, "run", lambda app, settings: calls.append((app, settings)))
    return calls


class Said(typing.NamedTuple):
    """What the command said when it ended."""

    code: object
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]


Say = Callable[..., Said]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run the command to its early end."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/else.py"])
    monkeypatch.setenv("COLUMNS", "60")

    def said(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Said(ended.value.code, *capsys.readouterr())

    return said


# What each option becomes.


def test_every_setting_is_written_here() -> None:
    assert list(WRITTEN) == list(FIELDS)


@pytest.mark.parametrize("name", WRITTEN)
def test_an_option_becomes_its_setting(name: str, started: Started) -> None:
    written, value = WRITTEN[name]
    main(["run", *written.split(), "module:name"])
    assert started == [("module:name", ServerSettings(**{name: value}))]
    got = getattr(started[0][1], name)
    assert type(got) is type(value)
    assert got != FIELDS[name].default


def test_all_of_them_at_once(started: Started) -> None:
    main(["run", *[word for written, _ in WRITTEN.values() for word in written.split()], "m:n"])
    everything = ServerSettings(**{name: value for name, (_, value) in WRITTEN.items()})
    assert started == [("m:n", everything)]


def test_without_options_it_is_the_defaults(started: Started) -> None:
    main(["run", "module:name"])
    assert started == [("module:name", ServerSettings())]


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_may_be_none_can_be_said_to_be(name: str, started: Started) -> None:
    main(["run", "m:n", flag(name), "none"])
    assert started == [("m:n", ServerSettings(**{name: None}))]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_can_be_said_both_ways(name: str, started: Started) -> None:
    negated = flag(name).replace("--", "--no-", 1)
    for words in ([flag(name)], [negated], [negated, flag(name)], [flag(name), negated]):
        main(["run", "m:n", *words])
    assert [getattr(settings, name) for _, settings in started] == [True, False, True, False]


@pytest.mark.parametrize("name", LISTS)
def test_what_is_said_again_is_one_more(name: str, started: Started) -> None:
    """And does not stay for the next command of this process."""
    for count in (3, 1, 0):
        main(["run", "m:n", *[word for at in range(count) for word in (flag(name), str(at))]])
    values = [getattr(settings, name) for _, settings in started]
    assert values == [("0", "1", "2"), ("0",), ()]
    assert all(type(value) is tuple for value in values)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in {*SWITCHES, *LISTS}])
def test_what_is_said_twice_counts_once(name: str, started: Started) -> None:
    written, value = WRITTEN[name]
    other = {"loop": "uvloop", "log_level": "debug", "ssl_cert_reqs": "1"}.get(name, "77")
    main(["run", "m:n", flag(name), other, *written.split()])
    assert getattr(started[0][1], name) == value


@pytest.mark.parametrize("words", ["run m:n --port=1", "run --port=1 m:n", "run --port 1 -- m:n"])
def test_ways_to_write_it(words: str, started: Started) -> None:
    main(words.split())
    assert started == [("m:n", ServerSettings(port=1))]


def test_the_arguments_are_those_of_the_process(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["yaat", "run", "m:n", "--port", "1"])
    main()
    assert started == [("m:n", ServerSettings(port=1))]


# What is refused: with 2, and a sentence that names it.

WRONG = [
    *((name, "x", "invalid int value: 'x'") for name in WHOLE),
    *((name, "1.5", "invalid int value: '1.5'") for name in WHOLE),
    *((name, "x", "invalid float value: 'x'") for name in REAL),
    *((name, "nan", "nan") for name in REAL),
    *((name, "inf", "inf") for name in REAL),
    *((name, "-1", "-1") for name in [*WHOLE, *REAL]),
    *((name, "none", "invalid") for name in [*WHOLE, *REAL] if name not in OPTIONAL),
    ("loop", "fast", "auto, asyncio, uvloop"),
    ("log_level", "INFO", "critical, error, warning, info, debug, trace"),
    ("ssl_cert_reqs", "3", "0, 1, 2"),
    ("port", "65536", "65535"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_what_cannot_be_meant(name: str, value: str, sentence: str, say: Say) -> None:
    said = say("run", "m:n", flag(name), value)
    assert (said.code, said.out) == (2, "")
    assert said.last.startswith("yaat run: error: ")
    assert sentence in said.last
    assert name in said.last.replace("-", "_")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "yaat: error: the following arguments are required: COMMAND"),
        (["run"], "yaat run: error: the following arguments are required: APP"),
        (["run", "m:n", "--port"], "yaat run: error: argument --port: expected one argument"),
        (["run", "m:n", "--what"], "yaat run: error: unknown: --what"),
        (["run", "m:n", "x:y", "--what", "z"], "yaat run: error: unknown: x:y --what z"),
        (["run", "m:n", "--reload=yes"], "ignored explicit argument 'yes'"),
        (["stop"], "invalid choice: 'stop'"),
    ],
)
def test_what_is_no_command(words: list[str], sentence: str, say: Say) -> None:
    said = say(*words)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.last


@pytest.mark.parametrize("error", [UsageError("no such thing"), ArgumentError("no such thing")])
def test_what_cannot_be_served_is_a_sentence(
    error: Exception, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_app: str, _settings: ServerSettings) -> None:
        raise error

    monkeypatch.setattr(yaat.server, "run", refuse)
    said = say("run", "m:n")
    assert (said.code, said.last) == (2, "yaat run: error: no such thing")


def test_an_error_of_the_application_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `ValueError` of its own is not for us to explain."""

    def fail(_app: str, _settings: ServerSettings) -> None:
        raise ValueError("theirs")

    monkeypatch.setattr(yaat.server, "run", fail)
    with pytest.raises(ValueError, match="theirs"):
        main(["run", "m:n"])


# What it says of itself.


@pytest.fixture
def page(say: Say) -> str:
    """What `yaat run --help` prints, however narrow the window is."""
    said = say("run", "--help")
    assert (said.code, said.err) == (0, "")
    return said.out


def options(page: str) -> dict[str, str]:
    """The text of each option, in its order."""
    found = re.findall(r"^  (--[^\n]*(?:\n {3,}[^\n]*)*)", page, re.MULTILINE)
    return {re.split(r"[ ,]", text)[0]: " ".join(text.split()) for text in found}


def test_the_help_fits(page: str) -> None:
    lines = page.splitlines()
    assert lines[0] == "usage: yaat run [options] APP"
    assert max(map(len, lines)) <= WIDTH == 100
    assert not any(line != line.rstrip() for line in lines)


def test_the_groups_are_in_the_order_of_the_fields(page: str) -> None:
    titles = re.findall(r"^(\S.*):$", page, re.MULTILINE)
    groups = dict.fromkeys(field.metadata["group"] for field in FIELDS.values())
    assert [title for title in titles if title in groups] == list(groups)
    assert list(options(page)) == [flag(name) for name in FIELDS]


@pytest.mark.parametrize("name", FIELDS)
def test_it_tells_what_an_option_is_and_its_default(name: str, page: str) -> None:
    text = options(page)[flag(name)]
    default = FIELDS[name].default
    shown = {True: "on", False: "off"}.get(default) if type(default) is bool else str(default)
    if default is None or default in ("", ()):
        shown = "none"
    elif type(default) is float:
        shown = str(int(default))
    assert text.endswith(f" ({shown})")
    sentence = yaat.server.settings.described()[name]
    assert f"{sentence[0].lower()}{sentence[1:]} ({shown})" in text
    kind = {"int": "N", "float": "SECONDS", "str": "TEXT"}
    if name in SWITCHES:
        assert text.startswith(f"{flag(name)}, {flag(name).replace('--', '--no-', 1)} ")
    else:
        [metavar] = [word for type_, word in kind.items() if type_ in str(FIELDS[name].type)]
        assert text.startswith(f"{flag(name)} {metavar} ")


@pytest.mark.parametrize(
    ("default", "shown"),
    [
        (None, "none"),
        ("", "none"),
        ((), "none"),
        (True, "on"),
        (False, "off"),
        (0, "0"),
        (0.0, "0"),
        (10.0, "10"),
        (0.5, "0.5"),
        (1_048_576, "1048576"),
        ("auto", "auto"),
    ],
)
def test_how_a_default_is_shown(default: object, shown: str) -> None:
    assert cli._shown(default) == shown


def test_per_cent_is_no_format(monkeypatch: pytest.MonkeyPatch, say: Say) -> None:
    said_of = {**yaat.server.settings.described(), "host": "Half of it, 50% or %s"}
    monkeypatch.setattr(yaat.server.settings, "described", lambda: said_of)
    assert "half of it, 50% or %s (127.0.0.1)" in say("run", "--help").out


def test_the_version(say: Say) -> None:
    said = say("--version")
    assert (said.code, said.out) == (0, f"yaat {version('yaat')}\n")


def test_the_commands(say: Say) -> None:
    said = say("--help")
    assert said.code == 0
    assert re.search(r"^ +run +serve an application$", said.out, re.MULTILINE)
    assert re.search(r"^ +publish +publish to a channel of an application$", said.out, re.MULTILINE)


# Where something is missing.


@pytest.mark.parametrize("missing", ["uvicorn", "websockets"])
def test_without_the_extra_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("yaat.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("yaat.server")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        main(["run", "m:n"])
    assert ended.value.code == f"yaat: the server needs {missing}: pip install 'yaat[server]'"


def test_without_docstrings_there_are_still_options() -> None:
    program = "from yaat.cli import main; main(['run', '--help'])"
    asked = subprocess.run(
        [sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=False
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    assert all(flag(name) in asked.stdout for name in FIELDS)


def test_it_is_a_module_and_a_command() -> None:
    for command in ([sys.executable, "-m", "yaat"], [Path(sys.executable).with_name("yaat")]):
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert (asked.returncode, asked.stdout) == (0, f"yaat {version('yaat')}\n")


def test_a_field_knows_its_group() -> None:
    """Who adds one without it learns so here."""
    assert all(isinstance(field, Field) and field.metadata["group"] for field in FIELDS.values())


# yaat publish

CHANNELS = Channels({"room:{id}": ChannelOptions(history=10)})
PROGRAM = """
import yaat

CHANNELS = yaat.Channels({"room:{id}": yaat.ChannelOptions(history=10)})
app = yaat.Yaat(channels=CHANNELS)
OTHER = 5
"""
PASSWORD = "s3/cr@t"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(password=PASSWORD) as server:
        yield server


@pytest.fixture
def url(server: RedisServer) -> Iterator[str]:
    yield server.url()
    server.call("FLUSHALL")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with channels, and the options by which they are found."""
    (tmp_path / "published.py").write_text(PROGRAM)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "published", raising=False)
    return f"--app-dir {tmp_path} --channels published"


def kept(url: str, name: str = "room:1") -> list[Any]:
    async def read() -> list[Any]:
        async with connect(url, channels=CHANNELS) as broker:
            history = await broker.channel(name).history()
            assert all(each.position.epoch == history.top.epoch for each in history.publications)
            return [(each.data, each.content.key) for each in history.publications]

    return asyncio.run(read())


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Give the standard input."""

    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["a text"], "a text"),
        (["5"], "5"),
        (["--", "-x"], "-x"),
        (["--json", '{"n": [1, null]}'], {"n": [1, None]}),
        (["--bytes", "a\udcff"], b"a\xff"),
    ],
)
def test_what_is_published(
    words: list[str], data: Any, url: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["publish", *f"{program}:CHANNELS {url} room:1".split(), *words])
    out, err = capsys.readouterr()
    assert re.fullmatch(r"1-[\w-]+\n", out)
    assert err == ""
    assert kept(url) == [(data, None)]


@pytest.mark.parametrize(
    ("options", "data"),
    [([], '{"n": 1}\n'), (["--json"], {"n": 1}), (["--bytes"], b'{"n": 1}\n')],
)
def test_what_comes_by_the_standard_input(
    options: list[str], data: Any, url: str, program: str, given: Callable[[bytes], None]
) -> None:
    """As it is, with its last line feed."""
    given(b'{"n": 1}\n')
    main(["publish", *f"{program}:app {url} room:1 -".split(), *options])
    assert kept(url) == [(data, None)]


def test_once_and_key(url: str, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"publish {program}:app.hub.channels {url} room:1 x --once o --key k".split()
    for _ in range(2):
        main(words)
    first, again = capsys.readouterr().out.split()
    assert first == again
    assert kept(url) == [("x", "k")]


def test_without_channels_it_is_only_sent_out(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_BROKER", url)
    main(["publish", "env:THE_BROKER", "room:1", "x"])
    assert capsys.readouterr() == ("", "")
    assert kept(url) == []


async def test_a_subscriber_elsewhere_hears_it(url: str, tmp_path: Path) -> None:
    """From a process of its own, whose arguments have no password in them."""
    (tmp_path / "published.py").write_text(PROGRAM)
    async with connect(url, channels=CHANNELS) as broker:
        channel = broker.channel("room:1")
        await channel.publish("before")
        heard = channel.subscribe(last=1)
        assert (await anext(heard)).data == "before"
        words = ["publish", "env:THE_BROKER", "room:1", "live", "--channels", "published:CHANNELS"]
        variable = {"THE_BROKER": url}
        asked = await asyncio.to_thread(run_once, *words, environment=variable, cwd=tmp_path)
        assert (asked.returncode, asked.stderr) == (0, "")
        publication = await anext(heard)
        assert publication.data == "live"
        assert asked.stdout == f"{publication.position}\n"
        await heard.aclose()


# What it refuses

ANYWHERE = "redis://:se%2Fcret@127.0.0.1:1"
UNMEANT = {
    f"{ANYWHERE} a": "required: DATA",
    f"{ANYWHERE} a b c": "unknown: c",
    f"{ANYWHERE} a b --what": "unknown: --what",
    f"{ANYWHERE} a b --json --bytes": "not allowed with",
    f"{ANYWHERE} a {{ --json": "DATA is not JSON",
    f"{ANYWHERE} a \udcff": "DATA is not UTF-8; is it --bytes?",
    f"{ANYWHERE} {256 * 'a'} b": "1 to 255 bytes",
    f"{ANYWHERE} a b --once \udcff": "UTF-8",
    f"{ANYWHERE} a b --channels nowhere:CHANNELS": "there is no module 'nowhere' in ",
    f"{ANYWHERE} a b --channels os.nowhere:CHANNELS": "there is no module 'os.nowhere' in ",
    f"{ANYWHERE} a b --channels os:CHANNELS": "there is no 'CHANNELS' in 'os'",
    f"{ANYWHERE} a b --channels os:name": "os:name is neither Channels nor a Yaat, but a str",
    f"{ANYWHERE} a b --channels os": "--channels is module:NAME, not 'os'",
    f"{ANYWHERE} a b --channels .os:a": "--channels is module:NAME, not '.os:a'",
    f"{ANYWHERE} a b --channels os:": "--channels is module:NAME, not 'os:'",
    "smoke://:se%2Fcret@nowhere a b": "no broker is known for 'smoke'",
    "redis://:se/cret@nowhere a b": "%2F",
    "redis://:se%2Fcret@[nowhere a b": "URL",
    "env:NOTHING_OF_THE_KIND a b": "the environment has no 'NOTHING_OF_THE_KIND'",
    "env:EMPTY a b": "the environment has no 'EMPTY'",
    "memory:// a b": "memory:// is of one process: nobody would hear",
}


@pytest.mark.parametrize("words", UNMEANT)
def test_what_cannot_be_published(words: str, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("EMPTY", "")
    said = say("publish", *words.split())
    assert (said.code, said.out) == (2, "")
    assert said.last.startswith("yaat publish: error: ")
    assert UNMEANT[words] in said.last
    assert "cret" not in said.err


def test_what_is_too_big(url: str, say: Say) -> None:
    said = say("publish", f"{url}?max_payload=3", "a", "long")
    assert (said.code, said.out) == (2, "")
    assert "4 bytes; the broker takes 3" in said.last


def test_an_error_of_the_module_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "lacking.py").write_text("import nothing_of_the_kind")
    words = f"publish {ANYWHERE} a b --app-dir {tmp_path} --channels lacking:CHANNELS"
    with pytest.raises(ModuleNotFoundError, match="nothing_of_the_kind"):
        main(words.split())


def test_a_broker_that_is_away(server: RedisServer, say: Say) -> None:
    """One line, without the password."""
    for away in (f"{ANYWHERE}?connect_timeout=0.2", server.url().replace("s3", "s4")):
        said = say("publish", away, "a", "b")
        assert (said.code, said.out) == (1, "")
        assert len(said.err.splitlines()) == 1
        assert re.match(r"yaat publish: 127\.0\.0\.1:\d+", said.err)
        assert "cr" not in said.err.replace("credentials", "")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BrokerRefused("it is full"), "it is full"),
        (BrokerUnavailable("it went"), "it went"),
        (
            BrokerUnavailable("it went", maybe_published=True),
            "it went. It may have been published: with --once it can be said again",
        ),
    ],
)
def test_what_it_says_of_an_error(
    error: Exception, sentence: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MemoryBroker, "is_shared", True)
    monkeypatch.setattr(Channel, "publish", fail)
    said = say("publish", "memory://", "a", "b")
    assert (said.code, said.out, said.err) == (1, "", f"yaat publish: {sentence}\n")


def test_it_says_it_once() -> None:
    """What is logged where nobody has set up logging would come to the same place."""
    program = """
import logging
from yaat.brokers.memory import MemoryBroker
from yaat.cli import main
from yaat.exceptions import BrokerUnavailable


async def fail(*_, **__):
    logging.getLogger("yaat.broker").warning("the broker is down: it went")
    raise BrokerUnavailable("it went")


MemoryBroker.is_shared = True
MemoryBroker.publish = fail
main(["publish", "memory://", "a", "b"])
"""
    asked = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (asked.returncode, asked.stderr) == (1, "yaat publish: it went\n")


# And what it says of itself


def test_the_help_of_publish(say: Say) -> None:
    said = say("publish", "--help")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "usage: yaat publish [options] URL CHANNEL DATA"
    assert max(map(len, lines)) <= WIDTH
    flags = ["--channels", "--app-dir", "--json", "--bytes", "--once", "--key"]
    assert list(options(said.out)) == flags


def test_it_needs_no_server() -> None:
    """The extra of `yaat run` may be missing."""
    program = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from yaat.cli import main; main(['publish', '--help'])"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (asked.returncode, asked.stderr) == (0, "")
