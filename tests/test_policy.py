"""Which pages may connect, and which limits cannot be meant."""

import dataclasses
import logging
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaat import policy
from yaat.app import Yaat
from yaat.exceptions import ArgumentError
from yaat.policy import DEFAULT, Policy
from yaat.testing import HandshakeRefused
from yaat.websockets import WebSocket

SAME = [
    ("http://example.com", "example.com"),
    ("https://example.com", "example.com"),  # TLS may end at a proxy: only the host is known
    ("http://example.com:80", "example.com"),
    ("http://example.com", "example.com:80"),
    ("https://example.com", "example.com:443"),
    ("https://example.com:443", "example.com"),
    ("ws://example.com", "example.com:80"),
    ("wss://example.com:443", "example.com"),
    ("http://example.com:8000", "example.com:8000"),
    ("HTTP://EXAMPLE.com", "example.COM"),
    ("http://example.com.", "example.com"),
    ("http://example.com", "example.com."),
    ("http://example.com/", "example.com"),
    ("http://127.0.0.1:8000", "127.0.0.1:8000"),
    ("http://[::1]", "[::1]"),
    ("http://[::1]:8000", "[::1]:8000"),
    ("http://[2001:DB8::1]:8000", "[2001:db8::1]:8000"),
    ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
]

OTHER = [
    ("http://evil.example", "example.com"),
    ("http://example.com.evil.example", "example.com"),
    ("http://evilexample.com", "example.com"),
    ("http://sub.example.com", "example.com"),
    ("http://example.com", "sub.example.com"),
    ("http://example.com:8000", "example.com:8001"),
    ("http://example.com:8000", "example.com"),
    ("http://example.com", "example.com:8000"),
    ("http://example.com", "example.com:443"),
    ("https://example.com", "example.com:80"),
    ("http://[::1]", "[::2]"),
    ("http://[::1]:8000", "[::1]"),
    ("http://[::1", "[::1"),
    ("http://[::1]evil.example", "[::1]"),
    ("null", "null"),
    ("null", "example.com"),
    ("", "example.com"),
    ("", ""),
    ("http://", ""),
    ("http://example.com", ""),
    ("http://none", None),
    ("http://example.com", None),
    ("example.com", "example.com"),
    ("//example.com", "example.com"),
    ("://example.com", "example.com"),
    ("file://example.com", "example.com"),
    ("chrome-extension://example.com", "example.com"),
    ("http://user@example.com", "example.com"),
    ("http://user:secret@example.com", "example.com"),
    ("http://@example.com", "example.com"),
    ("http://example.com@evil.example", "example.com"),
    ("http://example.com:80@evil.example", "example.com"),
    ("http://example.com", "example.com@evil.example"),
    ("http://example.com", "user@example.com"),
    ("http://example.com/path", "example.com"),
    ("http://example.com", "example.com/path"),
    ("http://example.com?evil.example", "example.com"),
    ("http://example.com#.evil.example", "example.com"),
    ("http://example.com", "example.com#.evil.example"),
    ("http://example.com\\.evil.example", "example.com"),
    ("http://example.com:", "example.com:8000"),
    ("http://example.com:http", "example.com:http"),
    ("http://example.com:" + "9" * 5000, "example.com:" + "9" * 5000),
    ("http://example.com:-80", "example.com"),
    ("http://example.com http://evil.example", "example.com"),
    ("http://example.com, http://evil.example", "example.com"),
]


@pytest.mark.parametrize(("origin", "host"), SAME)
def test_a_page_of_the_host_itself_may_connect(origin: str, host: str) -> None:
    assert Policy().allows_origin(origin, host)


@pytest.mark.parametrize(("origin", "host"), OTHER)
def test_a_page_of_another_host_may_not(origin: str, host: str | None) -> None:
    assert not Policy().allows_origin(origin, host)
    assert not Policy(origins=["https://allowed.example"]).allows_origin(origin, host)
    assert Policy(origins="*").allows_origin(origin, host)


ALLOWED = [
    ("https://example.com", "https://example.com"),
    ("https://example.com", "HTTPS://Example.COM"),
    ("https://example.com/", "https://example.com"),
    ("https://example.com:8443", "https://example.com:8443"),
    ("https://*.example.com", "https://www.example.com"),
    ("https://*.example.com", "https://a.b-c.example.com"),
    ("https://*.example.com:8443", "https://www.example.com:8443"),
    ("http://localhost:*", "http://localhost:5173"),
    ("http://192.168.1.*", "http://192.168.1.77"),
    ("*://example.com", "http://example.com"),
    ("https://[2001:db8::1]:8000", "https://[2001:db8::1]:8000"),
    ("https://*", "https://anything.example"),
    ("null", "null"),
    ("capacitor://localhost", "capacitor://localhost"),
    ("*", "https://anything.example:8000"),
    (re.compile(r"https://(www|api)\.example\.com"), "https://api.example.com"),
    (re.compile("null"), "null"),
]

NOT_ALLOWED = [
    ("https://example.com", "http://example.com"),
    ("https://example.com", "https://example.com:8443"),
    ("https://example.com", "https://example.com."),
    ("https://example.com", "https://www.example.com"),
    ("https://example.com", "https://examplexcom"),
    ("https://example.com", "https://example.com.evil.example"),
    ("https://example.com", "https://example.com\n"),
    ("https://example.com", "xhttps://example.com"),
    ("https://example.com:8443", "https://example.com"),
    ("https://*.example.com", "https://example.com"),
    ("https://*.example.com", "https://evil.com#.example.com"),
    ("https://*.example.com", "https://evil.com/.example.com"),
    ("https://*.example.com", "https://evil.com?.example.com"),
    ("https://*.example.com", "https://evil.com\\.example.com"),
    ("https://*.example.com", "https://evil.com:80.example.com"),
    ("https://*.example.com", "https://evil@www.example.com"),
    ("https://*.example.com", "https://evil.com .example.com"),
    ("https://*.example.com", "https://evil.com\t.example.com"),
    ("https://*.example.com", "https://evil.com\x00.example.com"),
    ("https://*.example.com", "https://b\xfccher.example.com"),
    ("https://*.example.com", "https://www.example.com:8443"),
    ("https://*.example.com", "https://www.example.com.evil.example"),
    ("https://*.example.com", "https://wwwexample.com"),
    ("https://*.example.com", "http://www.example.com"),
    ("http://localhost:*", "http://localhost"),
    ("http://localhost:*", "http://localhost:80@evil.example"),
    ("https://*", "https://anything.example:8000"),
    ("https://example.com", "null"),
    ("null", "https://example.com"),
    ("https://example.com", ""),
    (re.compile(r"https://(www|api)\.example\.com"), "https://api.example.com.evil.example"),
    (re.compile(r"https://(www|api)\.example\.com"), "xhttps://api.example.com"),
    (re.compile("https://example.com"), "HTTPS://example.com"),
]


@pytest.mark.parametrize(("allowed", "origin"), ALLOWED)
def test_an_origin_that_was_named_may_connect(allowed: str | re.Pattern[str], origin: str) -> None:
    for origins in ([allowed], ["https://unlike.example", allowed]):
        assert Policy(origins=origins).allows_origin(origin, "elsewhere.example")
        assert Policy(origins=origins).allows_origin(origin, None)


@pytest.mark.parametrize(("allowed", "origin"), NOT_ALLOWED)
def test_an_origin_that_only_looks_like_it_may_not(
    allowed: str | re.Pattern[str], origin: str
) -> None:
    assert not Policy(origins=[allowed]).allows_origin(origin, "elsewhere.example")


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
HOST = st.lists(LABEL, min_size=2, max_size=4).map(".".join)


@given(origin=st.text(), host=st.text())
def test_whatever_is_sent_gets_an_answer(origin: str, host: str) -> None:
    assert Policy().allows_origin(origin, host) in {True, False}


@given(scheme=st.sampled_from(["http", "https"]), host=HOST, other=HOST, port=st.integers(1, 65535))
def test_the_host_and_the_port_decide(scheme: str, host: str, other: str, port: int) -> None:
    assert Policy().allows_origin(f"{scheme}://{host}:{port}", f"{host}:{port}")
    assert Policy().allows_origin(f"{scheme}://{host}", f"{other}") is (host == other)
    assert not Policy().allows_origin(f"{scheme}://{host}:{port}", f"{host}:{port - 1}")


@given(origin=st.text(alphabet=st.characters(max_codepoint=255)))
def test_a_pattern_only_lets_subdomains_in(origin: str) -> None:
    """No header, of whatever bytes, gets between the pattern's star and what stands around it."""
    crafted = f"https://{origin}.example.com"
    harmless = re.fullmatch(r"[a-zA-Z0-9.-]+", origin) is not None
    assert Policy(origins=["https://*.example.com"]).allows_origin(crafted, None) is harmless


def test_one_star_among_others_opens_all() -> None:
    """As Starlette's `CORSMiddleware(allow_origins=["*"])` has it."""
    assert Policy(origins=["https://a.example", "*"]).allows_origin("http://b.example:1", None)


# The limits


@pytest.mark.parametrize("name", ["max_message_bytes", "read_ahead", "close_timeout"])
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, -math.inf])
def test_a_limit_that_cannot_be_meant(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ArgumentError, match=f"Policy.{name} must be above 0") as caught:
        Policy(**changes)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ArgumentError):
        DEFAULT.but(**changes)


@pytest.mark.parametrize("origins", ["https://example.com", "", "**"])
def test_a_single_origin_is_not_a_list_of_its_letters(origins: Any) -> None:
    with pytest.raises(ArgumentError, match=f"not {re.escape(repr(origins))}"):
        Policy(origins=origins)


def test_the_defaults() -> None:
    assert dataclasses.asdict(DEFAULT) == {
        "origins": (),
        "max_message_bytes": 2**20,
        "read_ahead": 2**16,
        "close_timeout": 10.0,
    }
    assert Policy() == DEFAULT


def test_it_is_frozen_all_through() -> None:
    origins = ["https://a.example"]
    shared = Policy(origins=origins)
    origins.append("https://evil.example")
    assert not shared.allows_origin("https://evil.example", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        shared.read_ahead = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Policy(["https://a.example"])  # type: ignore[call-arg]
    assert hash(shared) == hash(Policy(origins=("https://a.example",)))


def test_one_derived_from_another() -> None:
    strict = Policy(origins=["https://a.example"], read_ahead=7)
    wider = strict.but(max_message_bytes=9)
    assert (wider.origins, wider.read_ahead, wider.max_message_bytes) == (
        ("https://a.example",),
        7,
        9,
    )
    assert strict.max_message_bytes == 2**20
    assert wider.but(origins="*").origins == "*"
    with pytest.raises(TypeError):
        strict.but(colour="red")


def test_a_limit_without_a_limit() -> None:
    assert Policy(close_timeout=math.inf).close_timeout == math.inf


# The check of a handshake


def greeting(origins: Any = ()) -> Yaat:
    app = Yaat(policy=Policy(origins=origins))

    @app.websocket_route("/ws")
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")

    return app


HANDSHAKES = [
    ([], ["example.com"], True),
    ([], [], True),
    (["http://example.com"], ["example.com"], True),
    (["http://example.com"], [], False),
    (["null"], ["example.com"], False),
    ([""], ["example.com"], False),
    (["http://evil.example"], ["example.com"], False),
    (["http://example.com", "http://example.com"], ["example.com"], True),
    (["http://example.com", "http://evil.example"], ["example.com"], False),
    (["http://evil.example", "http://example.com"], ["example.com"], False),
    (["http://example.com"], ["example.com", "evil.example"], True),
    (["http://evil.example"], ["example.com", "evil.example"], False),
    (["http://\xe9vil.example"], ["example.com"], False),
]


@pytest.mark.parametrize(("origins", "hosts", "welcome"), HANDSHAKES)
async def test_every_origin_of_a_handshake_counts(
    origins: list[str],
    hosts: list[str],
    welcome: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = [(b"origin", each.encode("latin-1")) for each in origins]
    headers += [(b"host", each.encode("latin-1")) for each in hosts]
    client = greeting().test_client()
    caplog.set_level(logging.INFO)
    if welcome:
        async with client.websocket("/ws", scope={"headers": headers}) as session:
            assert await session.receive_text() == "hello"
        assert not caplog.records
        return
    with pytest.raises(HandshakeRefused) as refused:
        await client.websocket("/ws", scope={"headers": headers}).__aenter__()
    assert refused.value.status == 403
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "Policy(origins=[...])" in record.getMessage()
    assert "\n" not in record.getMessage()
    for origin in origins:
        assert origin in record.getMessage()


async def test_an_origin_that_the_policy_names_is_welcome() -> None:
    client = greeting(["https://*.friends.example"]).test_client()
    headers = {"origin": "https://best.friends.example"}
    async with client.websocket("/ws", headers=headers) as session:
        assert await session.receive_text() == "hello"


async def test_a_long_origin_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    headers = {"origin": "http://" + "e" * 100_000, "host": "h" * 100_000}
    with pytest.raises(HandshakeRefused):
        await greeting().test_client().websocket("/ws", headers=headers).__aenter__()
    assert len(caplog.records[0].getMessage()) < 1000


def test_what_is_exported() -> None:
    assert policy.DEFAULT is DEFAULT


@pytest.mark.parametrize("origin", ["example.com", "*.example.com", "localhost:8000", ""])
def test_an_origin_without_a_scheme_could_never_match(origin: str) -> None:
    with pytest.raises(ArgumentError, match="an origin has a scheme"):
        Policy(origins=[origin])
