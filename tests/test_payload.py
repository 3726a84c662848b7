"""JSON: what can be sent, and what a peer can send without hurting."""

import dataclasses
import json
import math
import re
from collections import OrderedDict
from datetime import UTC, date, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaat.constants import WebSocketCloseEvent
from yaat.exceptions import ArgumentError, MalformedError
from yaat.payload import check_encodable, decode, encode, kind_of
from yaat.requests import URL

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=JSON)
def test_every_json_value_comes_back(value: Any) -> None:
    if "inf" in repr(value) and not _is_finite(value):
        return  # JSON has no infinity: that is the next test
    try:
        encoded = encode(value)
    except UnicodeEncodeError:
        with pytest.raises(UnicodeEncodeError):
            json.dumps(value, ensure_ascii=False).encode()
        return
    assert decode(encoded) == value
    assert decode(encoded.decode()) == value
    assert json.loads(encoded) == value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_finite(each) for each in value.values())
    if isinstance(value, list):
        return all(_is_finite(each) for each in value)
    return not isinstance(value, float) or math.isfinite(value)


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    BIG = "big"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class User:
    name: str
    born: date


class Message(msgspec.Struct):
    text: str


class Words(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not what it is"


class Count(int):
    pass


class Share(float):
    pass


BEYOND = [
    ({"a": [1, 2], "é": None}, '{"a":[1,2],"é":null}'),
    (User("Ada", date(1815, 12, 10)), '{"name":"Ada","born":"1815-12-10"}'),
    (Message("hi"), '{"text":"hi"}'),
    (datetime(2020, 1, 2, 3, 4, tzinfo=UTC), '"2020-01-02T03:04:00Z"'),
    (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    (Colour.RED, '"red"'),
    (Size.BIG, '"big"'),
    (Level.HIGH, "3"),
    (WebSocketCloseEvent.ABNORMAL_CLOSURE, "1006"),
    ((1, 2), "[1,2]"),
    (Point(1, 2), "[1,2]"),
    (OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
    ({1: "a"}, '{"1":"a"}'),
    (2**80, str(2**80)),
    (math.nan, "null"),
    (math.inf, "null"),
    (Words("what it is"), '"what it is"'),
    (Count(7), "7"),
    (Share(0.5), "0.5"),
    ([URL("http://example.com/é")], '["http://example.com/é"]'),
    ({URL("http://example.com/"): 1}, '{"http://example.com/":1}'),
]


@pytest.mark.parametrize(("value", "text"), BEYOND)
def test_what_has_a_form_in_json(value: Any, text: str) -> None:
    assert encode(value) == text.encode()


@pytest.mark.parametrize("value", [object(), 1j, print, range(3), {(1, 2): 3}, [set(), object()]])
def test_what_has_none(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value)


MALFORMED: list[str | bytes] = [
    "",
    " ",
    "{",
    '{"a":1',
    "[1,]",
    "{'a': 1}",
    "NaN",
    "Infinity",
    "-",
    "01",
    "1 2",
    "1e999",
    '"\\ud800"',
    '"\\x"',
    '"\n"',
    "nul",
    "\ud800",
    '"\udc80"',
    b"\xff",
    b'"\xff"',
    b"\xef\xbb\xbf1",
    b"\xff\xfe1\x00",
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" * 100_000 + "]" * 100_000,
    "1" * 5000,
]


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[:12]))
def test_what_is_no_json(data: str | bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        decode(data)
    assert str(caught.value) == "the message is not valid JSON", "it quotes nothing of the payload"
    assert caught.value.__suppress_context__, "nor does what it came from"
    assert isinstance(caught.value, ValueError)
    assert caught.value.close_code == 1007


@given(data=st.binary() | st.text())
def test_whatever_a_peer_sends_is_json_or_malformed(data: str | bytes) -> None:
    try:
        decode(data)
    except MalformedError:
        return


@given(data=st.text(alphabet='[]{}",:0123456789.eE-+ \\untrfalse', max_size=30))
def test_what_it_takes_is_what_the_standard_library_takes(data: str) -> None:
    try:
        value = decode(data)
    except MalformedError:
        return
    assert json.loads(data) == value


@pytest.mark.parametrize(
    ("mode", "kind"), [("text", "text"), ("bytes", "bytes"), ("binary", "bytes")]
)
def test_the_modes(mode: str, kind: str) -> None:
    assert kind_of(mode) == kind


@pytest.mark.parametrize("mode", ["", "TEXT", "json", None, b"text", 1])
def test_a_mode_that_is_none(mode: Any) -> None:
    with pytest.raises(ArgumentError, match=re.escape(repr(mode))) as caught:
        kind_of(mode)
    assert isinstance(caught.value, ValueError)


@given(text=st.text(alphabet=st.characters(exclude_categories=())))
@example(text="half a \ud800 pair")
@example(text="a whole one: \N{PILE OF POO}")
def test_what_has_no_form_in_utf_8_is_refused(text: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        with pytest.raises(ArgumentError, match="lone surrogate"):
            check_encodable(text)
    else:
        check_encodable(text)
