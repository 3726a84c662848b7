"""The answer to a handshake: nothing reaches a server that some server would choke on."""

import re
import string
from http import HTTPStatus
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from yaat.exceptions import ArgumentError
from yaat.handshake import checked_headers, checked_status, chosen_subprotocol, is_token

# RFC 9110, 5.6.2: "tchar".
TCHAR = set("!#$%&'*+-.^_`|~") | set(string.digits) | set(string.ascii_letters)


@given(text=st.text())
@example(text="")
@example(text="graphql-transport-ws")
@example(text="chat\n")
@example(text="ch\tat")
@example(text="\N{ARABIC-INDIC DIGIT ONE}")
def test_what_is_a_token(text: str) -> None:
    assert is_token(text) is (text != "" and set(text) <= TCHAR)


@pytest.mark.parametrize("value", [b"chat", None, 1, ["chat"]])
def test_what_is_no_str_is_no_token(value: object) -> None:
    assert not is_token(value)


# Subprotocols

CHOICES: list[tuple[Any, list[str], str | None]] = [
    (None, [], None),
    (None, ["chat"], None),
    ("chat", ["soap", "chat"], "chat"),
    (["chat", "soap"], ["soap", "chat"], "chat"),
    (("soap", "chat"), ["soap", "chat"], "soap"),
    (["bogus", "chat"], ["soap", "chat"], "chat"),
    (["bogus"], ["soap", "chat"], None),
    (["bogus"], [], None),
    ([], ["chat"], None),
    (["chat", "chat"], ["chat"], "chat"),
    (iter(["chat"]), ["chat"], "chat"),
    (["Chat"], ["chat"], None),  # RFC 6455, 11.3.4: they are not compared without case
]


@pytest.mark.parametrize(("wanted", "offered", "chosen"), CHOICES)
def test_the_first_wanted_that_was_offered(
    wanted: Any, offered: list[str], chosen: str | None
) -> None:
    assert chosen_subprotocol(wanted, offered) == chosen


@pytest.mark.parametrize("offered", [[], ["soap"], ["Chat"], ["chat, soap"], ("soap",)])
def test_one_that_was_never_offered(offered: list[str]) -> None:
    with pytest.raises(ArgumentError) as caught:
        chosen_subprotocol("chat", offered)
    assert "'chat'" in str(caught.value)
    assert repr(list(offered)) in str(caught.value), "it says what the client did offer"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "bad", ["", " ", "chat ", "ch at", "chat,soap", "chat\r\nx: y", "ch\x01at"]
)
@pytest.mark.parametrize("several", [False, True])
def test_what_can_be_no_subprotocol(bad: str, several: bool) -> None:  # noqa: FBT001
    """Not even if the client offered it: some servers pass on what is no token."""
    with pytest.raises(ArgumentError, match="token"):
        chosen_subprotocol(["chat", bad] if several else bad, ["chat", bad])


@pytest.mark.parametrize("bad", [b"chat", [b"chat"], [None], [1], 1, object()])
def test_a_subprotocol_of_another_type(bad: Any) -> None:
    with pytest.raises(TypeError):
        chosen_subprotocol(bad, ["chat"])


# Headers

SHAPES: list[tuple[Any, list[tuple[bytes, bytes]]]] = [
    (None, []),
    ([], []),
    ({}, []),
    ([(b"x-a", b"1"), (b"X-B", b"2")], [(b"x-a", b"1"), (b"x-b", b"2")]),
    ([("X-A", "1"), (b"x-a", "2")], [(b"x-a", b"1"), (b"x-a", b"2")]),
    ([[b"x-a", b"1"]], [(b"x-a", b"1")]),
    ({"X-A": "1", "x-b": "2"}, [(b"x-a", b"1"), (b"x-b", b"2")]),
    (Headers(raw=[(b"x-a", b"1"), (b"x-a", b"2")]), [(b"x-a", b"1"), (b"x-a", b"2")]),
    (iter([("a", "b")]), [(b"a", b"b")]),
    ([("x-a", "")], [(b"x-a", b"")]),
    ([("x-a", "caf\xe9")], [(b"x-a", b"caf\xe9")]),
    ([(b"x-a", b"\xff\x80")], [(b"x-a", b"\xff\x80")]),
    ([("x-a", "a\tb")], [(b"x-a", b"a\tb")]),
    (
        [("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2")],
        [
            (b"set-cookie", b"a=1; Path=/"),
            (b"set-cookie", b"b=2"),
        ],
    ),
]


@pytest.mark.parametrize(("given_", "checked"), SHAPES)
def test_headers_come_in_many_shapes(given_: Any, checked: list[tuple[bytes, bytes]]) -> None:
    assert checked_headers(given_) == checked


@pytest.mark.parametrize("value", ["  1", "1 ", "\t1 \t"])
def test_the_space_around_a_value_is_no_part_of_it(value: str) -> None:
    """RFC 9110, 5.5. Some servers refuse it, others send it: so it goes here."""
    assert checked_headers([("x-a", value)]) == [(b"x-a", b"1")]


@given(value=st.binary())
@example(value=b"a\r\nset-cookie: b=1")
@example(value=b"a\nb")
@example(value=b"a\x00b")
@example(value=b"a\x7fb")
@example(value=b"\n")
def test_a_value_has_no_control_characters(value: bytes) -> None:
    if re.search(rb"[^\t\x20-\x7e\x80-\xff]", value):
        with pytest.raises(ArgumentError, match="control character") as caught:
            checked_headers([(b"x-secret", value)])
        assert repr(value)[2:-1] not in str(caught.value) or len(value) < 3, "it may be a secret"
    else:
        [(_, checked)] = checked_headers([(b"x-secret", value)])
        assert checked == value.strip(b" \t")
        h11.InformationalResponse(status_code=101, headers=[(b"x-secret", checked)])


@given(name=st.text())
@example(name="")
@example(name=":status")
@example(name="x a")
@example(name="x-a\r\nx-evil")
@example(name="x-a:")
@example(name="é")
def test_a_name_is_a_token(name: str) -> None:
    if is_token(name):
        assert checked_headers([(name, "1")], accept=False) == [(name.lower().encode(), b"1")]
    else:
        with pytest.raises(ArgumentError):
            checked_headers([(name, "1")], accept=False)


OF_THE_SERVER = [
    "sec-websocket-protocol",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Accept",
    "sec-websocket-extensions",
    "sec-websocket-version",
    "sec-websocket-",
    "Connection",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
]


@pytest.mark.parametrize("name", OF_THE_SERVER)
def test_what_only_the_server_sets_with_an_accept(name: str) -> None:
    with pytest.raises(ArgumentError, match="set by the server"):
        checked_headers([(name, "1")])
    assert checked_headers([(name, "1")], accept=False) == [(name.lower().encode(), b"1")]


@pytest.mark.parametrize("name", ["x-sec-websocket-accept", "connection-id", "upgrade-insecure"])
def test_what_only_looks_like_it(name: str) -> None:
    assert checked_headers({name: "1"}) == [(name.encode(), b"1")]


@pytest.mark.parametrize("bad", [[("x-a", "\u20ac")], [("\u20ac", "1")], {"x-a": "\ud800"}])
def test_what_is_no_latin_1(bad: Any) -> None:
    with pytest.raises(ArgumentError, match="latin-1"):
        checked_headers(bad)


@pytest.mark.parametrize("bad", [[("x-a", 1)], [(1, "x-a")], [("x-a", None)], [("x", bytearray())]])
def test_what_is_neither_bytes_nor_str(bad: Any) -> None:
    with pytest.raises(TypeError, match="bytes or str"):
        checked_headers(bad)


def test_the_texts_are_arguments_errors() -> None:
    with pytest.raises(ValueError, match="token"):
        checked_headers({"": "1"})


# The status of a denial


@pytest.mark.parametrize("status", [300, 307, 401, HTTPStatus.FORBIDDEN, 404, 426, 500, 503, 511])
def test_a_status_that_denies(status: int) -> None:
    assert checked_status(status) == status
    assert type(checked_status(status)) is int


@pytest.mark.parametrize("status", [-1, 0, 100, 101, 200, 204, 299, 399, 418 + 1, 499, 600, 999])
def test_a_status_that_does_not(status: int) -> None:
    with pytest.raises(ArgumentError, match=f"not {status}$"):
        checked_status(status)
