"""The settings of the server: their defaults, their bounds, and what is said of each."""

import ast
import copy
import dataclasses
import inspect
import math
import pickle
import re
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaat.exceptions import ArgumentError, YaatError
from yaat.server import settings as module
from yaat.server.settings import ServerSettings, described

DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8000,
    "uds": None,
    "fd": None,
    "backlog": 2_048,
    "app_dir": ".",
    "factory": False,
    "root_path": "",
    "workers": None,
    "reload": False,
    "reload_dirs": (),
    "reload_includes": (),
    "reload_excludes": (),
    "loop": "auto",
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "ssl_keyfile_password": None,
    "ssl_ca_certs": None,
    "ssl_cert_reqs": 0,
    "proxy_headers": True,
    "forwarded_allow_ips": None,
    "access_log": True,
    "log_level": "info",
    "log_config": None,
    "handshake_timeout": 10.0,
    "max_headers": 128,
    "max_header_bytes": 8_192,
    "keep_alive_timeout": 5.0,
    "max_connections": None,
    "max_connections_per_address": None,
    "max_message_bytes": 1_048_576,
    "idle_timeout": None,
    "write_buffer": 65_536,
    "read_buffer": 65_536,
    "max_tiny_fragments": 1_024,
    "ping_interval": 20.0,
    "ping_timeout": 20.0,
    "compression": True,
    "compress_from": 512,
    "drain": 0.0,
    "handler_timeout": 1.0,
    "close_timeout": 10.0,
    "shutdown_timeout": 10.0,
}

GROUPS = {
    "Where to listen": "host port uds fd backlog",
    "What to serve": "app_dir factory root_path",
    "Processes": "workers reload reload_dirs reload_includes reload_excludes loop",
    "TLS": "ssl_certfile ssl_keyfile ssl_keyfile_password ssl_ca_certs ssl_cert_reqs",
    "Behind a proxy": "proxy_headers forwarded_allow_ips",
    "Log": "access_log log_level log_config",
    "Requests and handshakes": (
        "handshake_timeout max_headers max_header_bytes keep_alive_timeout"
    ),
    "Connections": (
        "max_connections max_connections_per_address max_message_bytes idle_timeout write_buffer"
        " read_buffer max_tiny_fragments ping_interval ping_timeout compression compress_from"
    ),
    "Stopping": "drain handler_timeout close_timeout shutdown_timeout",
}

# Every setting is in one of these: a number with a bound, one of a few values, or neither.
ABOVE_ZERO = [
    "backlog",
    "workers",
    "handshake_timeout",
    "max_headers",
    "max_header_bytes",
    "max_connections",
    "max_connections_per_address",
    "max_message_bytes",
    "idle_timeout",
    "write_buffer",
    "read_buffer",
    "ping_interval",
    "ping_timeout",
    "close_timeout",
]
FROM_ZERO = [
    "port",
    "fd",
    "keep_alive_timeout",
    "max_tiny_fragments",
    "compress_from",
    "drain",
    "handler_timeout",
    "shutdown_timeout",
]
CHOICES: dict[str, tuple[Any, ...]] = {
    "loop": ("auto", "asyncio", "uvloop"),
    "log_level": ("critical", "error", "warning", "info", "debug", "trace"),
    "ssl_cert_reqs": (0, 1, 2),
}
SWITCHES = ["factory", "reload", "proxy_headers", "access_log", "compression"]
TEXTS = [
    "host",
    "uds",
    "app_dir",
    "root_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_ca_certs",
    "forwarded_allow_ips",
    "log_config",
]
LISTS = ["reload_dirs", "reload_includes", "reload_excludes"]

FIELDS = {field.name: field for field in dataclasses.fields(ServerSettings)}
OPTIONAL = [
    name
    for name, field in FIELDS.items()
    if None in getattr(field.type, "__args__", ()) or field.default is None
]


def settings(name: str, value: object) -> ServerSettings:
    return ServerSettings(**{name: value})  # type: ignore[arg-type]


def test_the_defaults() -> None:
    assert dataclasses.asdict(ServerSettings()) == DEFAULTS
    assert list(FIELDS) == list(DEFAULTS), "in the order of the command line"


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_is_of_its_type(name: str) -> None:
    annotation, default = FIELDS[name].type, DEFAULTS[name]
    kinds = getattr(annotation, "__args__", (annotation,))
    if name in LISTS:
        assert annotation == tuple[str, ...]
    else:
        assert type(default) in kinds or (default is None and type(None) in kinds)


def test_every_setting_has_a_bound_or_values_or_is_free() -> None:
    sorts = [*ABOVE_ZERO, *FROM_ZERO, *CHOICES, *SWITCHES, *TEXTS, *LISTS]
    assert sorted(sorts) == sorted(FIELDS)


def test_every_number_has_a_bound() -> None:
    for name, field in FIELDS.items():
        kinds = {*getattr(field.type, "__args__", (field.type,))}
        if kinds & {int, float} and name not in CHOICES:
            assert name in ABOVE_ZERO or name in FROM_ZERO


def test_the_groups_and_their_order() -> None:
    groups: dict[str, list[str]] = {}
    for field in FIELDS.values():
        groups.setdefault(field.metadata["group"], []).append(field.name)
    assert groups == {group: names.split() for group, names in GROUPS.items()}
    assert list(groups) == list(GROUPS)


# What cannot be meant.


@pytest.mark.parametrize("name", ABOVE_ZERO)
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf])
def test_what_has_to_be_above_zero(name: str, value: float) -> None:
    sentence = f"ServerSettings.{name} must be above 0, not {value!r}"
    with pytest.raises(ArgumentError) as raised:
        settings(name, value)
    assert str(raised.value) == sentence
    with pytest.raises(ArgumentError):
        ServerSettings().but(**{name: value})


@pytest.mark.parametrize("name", FROM_ZERO)
@pytest.mark.parametrize("value", [-1, -1_000, -1e-9, math.nan, math.inf, -math.inf])
def test_what_must_not_be_below_zero(name: str, value: float) -> None:
    sentence = f"ServerSettings.{name} must not be below 0, but is {value!r}"
    with pytest.raises(ArgumentError) as raised:
        settings(name, value)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("port", [65_536, 1 << 40])
def test_a_port_has_sixteen_bits(port: int) -> None:
    assert settings("port", 65_535).port == 65_535
    with pytest.raises(ArgumentError) as raised:
        settings("port", port)
    assert str(raised.value) == f"ServerSettings.port is at most 65535, not {port}"


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["", "fast", "INFO", 3, -1, None])
def test_what_is_one_of_a_few(name: str, value: object) -> None:
    known = ", ".join(map(str, CHOICES[name]))
    with pytest.raises(ArgumentError) as raised:
        settings(name, value)
    assert str(raised.value) == f"ServerSettings.{name} is one of {known}, not {value!r}"


def test_a_refusal_is_an_error_of_python_and_of_ours() -> None:
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(ArgumentError, YaatError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 1) for name in ABOVE_ZERO),
        *((name, 1 << 40) for name in ABOVE_ZERO),
        *((name, 0) for name in FROM_ZERO),
        *((name, value) for name, values in CHOICES.items() for value in values),
        *((name, not DEFAULTS[name]) for name in SWITCHES),
        *((name, "any text: 100 %, ünïcödé") for name in TEXTS),
        *((name, ("one", "two")) for name in LISTS),
        *((name, None) for name in OPTIONAL),
    ],
)
def test_what_is_taken(name: str, value: object) -> None:
    assert getattr(settings(name, value), name) == value
    assert dataclasses.asdict(settings(name, value)) == {**DEFAULTS, name: value}


@given(st.floats(), st.sampled_from(ABOVE_ZERO))
def test_any_number_above_zero(value: float, name: str) -> None:
    try:
        taken = settings(name, value)
    except ArgumentError:
        assert not (value > 0 and math.isfinite(value))
    else:
        assert getattr(taken, name) == value > 0


@given(st.floats(), st.sampled_from([name for name in FROM_ZERO if name != "port"]))
def test_any_number_from_zero(value: float, name: str) -> None:
    try:
        taken = settings(name, value)
    except ArgumentError:
        assert not (value >= 0 and math.isfinite(value))
    else:
        assert getattr(taken, name) == value >= 0


# What they are.


def test_settings_like_others() -> None:
    class Own(ServerSettings):
        pass

    before = Own(close_timeout=5.0)
    changed = before.but(write_buffer=1)
    assert type(changed) is Own
    assert (changed.close_timeout, changed.write_buffer) == (5.0, 1)
    assert before.write_buffer == 65_536
    assert before.but() == before
    with pytest.raises(TypeError):
        before.but(unknown=1)


@pytest.mark.parametrize("name", FIELDS)
def test_they_are_frozen(name: str) -> None:
    mine = ServerSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(mine, name, DEFAULTS[name])
    assert mine == ServerSettings()


def test_they_are_named() -> None:
    with pytest.raises(TypeError):
        ServerSettings("127.0.0.1")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ServerSettings(unknown=1)  # type: ignore[call-arg]
    assert not hasattr(ServerSettings(), "__dict__")


def test_they_go_to_another_process() -> None:
    mine = ServerSettings(port=1, reload_dirs=("a", "b"), ping_interval=None)
    assert pickle.loads(pickle.dumps(mine)) == mine == copy.deepcopy(mine)
    assert hash(mine) == hash(copy.deepcopy(mine))


# What is said of them.


def test_of_each_a_sentence_is_said() -> None:
    sentences = described()
    assert list(sentences) == list(FIELDS)
    for name, sentence in sentences.items():
        assert re.fullmatch(r"[A-Z$][^\n]{7,95}[^.]", sentence), (name, sentence)
        assert "  " not in sentence
    assert len(set(sentences.values())) == len(FIELDS)


def test_it_is_the_first_sentence_and_no_more() -> None:
    sentences = described()
    assert sentences["host"] == "Address to listen on"
    assert sentences["reload_includes"] == "Pattern of files to watch besides `*.py`"
    assert sentences["log_config"] == "File that sets up logging, .ini, .json or .yaml"
    # This one takes two lines.
    assert sentences["write_buffer"] == "High-water mark of what a peer has not read"
    assert sentences["max_message_bytes"].endswith("inflated")


def test_each_sentence_stands_in_the_docstring_under_its_name() -> None:
    """In the order of the fields, and of nothing else."""
    doc = inspect.getdoc(ServerSettings) or ""
    section = doc.partition("Args:\n")[2].partition("\n\n")[0]
    named = re.findall(r"^ {4}(\w+): ", section, re.MULTILINE)
    assert sorted(named) == sorted(FIELDS)
    whole = " ".join(section.split())
    for name, sentence in described().items():
        assert f"{name}: {sentence}." in whole


def test_values_that_are_said_are_those_that_are_taken() -> None:
    sentences = described()
    for name in ("loop", "log_level"):
        assert ", ".join(CHOICES[name]) in sentences[name]
    assert all(re.search(rf"\b{value}\b", sentences["ssl_cert_reqs"]) for value in (0, 1, 2))


def test_without_docstrings_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `python -OO`."""
    monkeypatch.setattr(ServerSettings, "__doc__", None)
    assert described() == dict.fromkeys(FIELDS, "")


def test_the_tables_of_bounds_name_fields_and_name_them_once() -> None:
    """What is in two of them has two bounds, and is told the wrong one."""
    tables = [*module._ABOVE_ZERO, *module._FROM_ZERO, *module._CHOICES]
    assert len(tables) == len(set(tables))
    assert set(tables) <= set(FIELDS)


def test_the_module_is_pure() -> None:
    """Made from the standard library and the ground: uvicorn has no say in it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(module)))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert [name for name in imported if name and name.startswith("yaat")] == ["yaat.exceptions"]
