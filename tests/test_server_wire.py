"""The mapping in the scope: what it offers, and that it is a mapping."""

from collections.abc import Mapping

import pytest

from yaat.frames import Frame
from yaat.server.wire import NAME, VERSION, LossCallback, RoomCallback, Wire
from yaat.types import Message

WAYS = ("write", "buffered", "on_room", "on_loss", "send")


class Connection:
    """One that does nothing."""

    secret = "not to be had"

    async def send(self, message: Message) -> None: ...
    def write(self, frame: Frame) -> bool:
        return frame.kind == "text"

    def buffered(self) -> int:
        return 0

    def on_room(self, callback: RoomCallback) -> None: ...
    def on_loss(self, callback: LossCallback) -> None: ...


def test_the_names() -> None:
    assert NAME == "yaat.wire"
    assert VERSION == 1


def test_it_is_a_mapping_of_these_entries_and_no_others() -> None:
    connection = Connection()
    wire = Wire(connection)
    assert isinstance(wire, Mapping)
    assert dict(wire) == {"version": 1, **{name: getattr(connection, name) for name in WAYS}}
    assert len(wire) == len(list(wire)) == 6
    assert next(iter(wire)) == "version"
    assert "write" in wire
    assert wire.get("version") == 1


@pytest.mark.parametrize("name", ["secret", "close", "__class__", "_connection", "", 1, None])
def test_what_it_does_not_offer(name: str) -> None:
    wire = Wire(Connection())
    assert name not in wire
    assert wire.get(name) is None
    with pytest.raises(KeyError) as missing:
        wire[name]
    assert missing.value.args == (name,)


def test_each_entry_is_the_connections_own() -> None:
    connection, other = Connection(), Connection()
    wire = Wire(connection)
    # Bound methods are never `is`.
    assert wire["send"] == connection.send
    assert wire["send"] != other.send
    assert wire["write"](Frame("text", "a")) is True
    assert wire["write"](Frame("bytes", b"a")) is False


def test_it_cannot_be_changed() -> None:
    wire = Wire(Connection())
    with pytest.raises(TypeError):
        wire["write"] = None  # type: ignore[index]
    with pytest.raises(AttributeError):
        wire.more = 1  # type: ignore[attr-defined]
