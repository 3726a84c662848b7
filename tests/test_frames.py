"""Frame: what it takes, what it holds, and what it refuses."""

from dataclasses import FrozenInstanceError
from typing import Any, Literal

import pytest

from yaat.exceptions import ArgumentError, UsageError
from yaat.frames import Frame

KINDS = [
    pytest.param("text", "é\0", "é\0".encode(), id="text"),
    pytest.param("text", "", b"", id="empty text"),
    pytest.param("bytes", b"\xff\0", b"\xff\0", id="bytes"),
    pytest.param("bytes", b"", b"", id="no bytes"),
]


@pytest.mark.parametrize(("kind", "data", "payload"), KINDS)
def test_what_it_holds(kind: Literal["text", "bytes"], data: str | bytes, payload: bytes) -> None:
    frame = Frame(kind, data)
    assert (frame.kind, frame.data, frame.payload) == (kind, data, payload)
    assert frame.encodings == {}
    assert frame.event() == {"type": "websocket.send", kind: data}


def test_bytes_are_not_copied() -> None:
    data = b"a" * 100
    assert Frame("bytes", data).payload is data


@pytest.mark.parametrize(("kind", "data", "payload"), KINDS)
def test_one_of_a_payload_that_is_known_to_be_right(
    kind: Literal["text", "bytes"], data: str | bytes, payload: bytes
) -> None:
    frame = Frame.of(kind, payload)
    assert frame == Frame(kind, data)
    assert (frame.kind, frame.payload, frame.encodings) == (kind, payload, {})
    assert frame.data == frame.data == data
    assert frame.event() == Frame(kind, data).event()


def test_what_is_kept_of_it_is_the_payload_alone() -> None:
    frame = Frame("text", "a" * 100)
    frame.encodings[0] = b"..."
    kept = frame.to_keep()
    assert kept == frame
    assert kept.payload is frame.payload
    assert kept.encodings == {}
    assert kept._data is None


def test_it_is_equal_to_nothing_else() -> None:
    assert Frame("text", "a") != "a"


def test_a_frame_is_what_was_said_and_not_what_became_of_it() -> None:
    one, other = Frame("text", "a"), Frame("text", "a")
    one.encodings[0] = b"\x81\x01a"
    assert one == other
    assert hash(one) == hash(other)
    assert other.encodings == {}
    assert repr(one) == "Frame(kind='text', data='a')"
    assert one != Frame("bytes", b"a")


@pytest.mark.parametrize("name", ["kind", "data", "payload", "encodings"])
def test_it_does_not_change(name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(Frame("text", "a"), name, "b")


def test_it_has_no_room_for_more() -> None:
    assert not hasattr(Frame("text", "a"), "__dict__")


@pytest.mark.parametrize("kind", ["", "binary", "TEXT", b"text", None, 1])
def test_there_are_two_kinds(kind: Any) -> None:
    with pytest.raises(ArgumentError, match=r"text.*bytes") as refused:
        Frame(kind, "a")
    assert repr(kind) in str(refused.value)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("text", b"a"),
        ("text", None),
        ("text", 1),
        ("bytes", "a"),
        ("bytes", None),
        ("bytes", [1]),
        # They may change after they were encoded.
        ("bytes", bytearray(b"a")),
        ("bytes", memoryview(b"a")),
    ],
    ids=range(8),
)
def test_the_data_is_of_its_kind(kind: Any, data: Any) -> None:
    with pytest.raises(TypeError, match=f"{kind} frame is .*not {type(data).__name__}$"):
        Frame(kind, data)


def test_text_without_a_form_in_utf_8_is_refused() -> None:
    with pytest.raises(ArgumentError, match="UTF-8") as refused:
        Frame("text", "a\ud800")
    assert refused.value.__cause__ is None
    assert isinstance(refused.value, UsageError)


async def test_its_event_is_what_every_server_takes() -> None:
    """The test client's server, which checks what it is sent."""
    from yaat.testing import TestClient
    from yaat.types import Receive, Scope, Send

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send(Frame("text", "é").event())
        await send(Frame("bytes", b"\xff").event())

    async with TestClient(app) as client, client.websocket("/") as session:
        assert await session.receive() == "é"
        assert await session.receive() == b"\xff"
