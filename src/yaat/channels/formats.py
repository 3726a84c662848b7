"""Formats: how a publication is told to a member."""

from base64 import b64encode
from typing import Any, Final, Protocol

from yaat.brokers.contract import Content, Position, Publication
from yaat.frames import Frame
from yaat.payload import encode


class Format(Protocol):
    """How publications are told to members on sockets. Hashable; one for many members.

    A publication is encoded once for all members of the same format.
    """

    def encode(self, channel: str, publication: Publication) -> Frame | None:
        """Return what is sent for a publication; None: this format does not tell of its kind."""
        ...

    def stand(self, channel: str, position: Position) -> Frame | None:
        """Return what tells a new member where it stands, before anything live; None: nothing."""
        ...


class Raw:
    """What was published, as it was: text as text, bytes as bytes, JSON as compact text."""

    def encode(self, channel: str, publication: Publication) -> Frame | None:  # noqa: ARG002
        """Return the publication; nothing tells of presence."""
        kind, payload, _, _ = publication.content
        if kind == "bytes":
            return Frame.of("bytes", payload)
        if kind in ("join", "leave"):
            return None
        if not payload.isascii():
            payload.decode()  # a broken frame would end the connection of whoever gets it
        return Frame.of("text", payload)

    def stand(self, channel: str, position: Position) -> None:
        """Return nothing: it does not know of positions."""

    def __repr__(self) -> str:
        return "RAW"


class Positioned:
    """JSON text with the position, by which a client resumes: see `POSITIONED`."""

    def encode(self, channel: str, publication: Publication) -> Frame:
        """Return a publication or a presence event."""
        kind, payload, _, _ = publication.content
        if kind in ("join", "leave"):
            return Frame("text", f'{{"channel":{_json(channel)},"{kind}":{payload.decode()}}}')
        start = _start(channel, publication.offset, publication.epoch)
        return Frame("text", f'{start},"data":{_value(publication.content)}}}')

    def stand(self, channel: str, position: Position) -> Frame:
        """Return where a member stands: a publication without data."""
        return Frame("text", _start(channel, *position) + "}")

    def __repr__(self) -> str:
        return "POSITIONED"


class _Whole:
    """The publication itself, for members in Python. Either what was published, or the events."""

    def __init__(self, *, events: bool) -> None:
        self._events: Final = events

    def encode(self, channel: str, publication: Publication) -> Any:  # noqa: ARG002 - as Format
        is_event = publication.content.kind in ("join", "leave")
        return publication if is_event is self._events else None

    def stand(self, channel: str, position: Position) -> None: ...


def _start(channel: str, offset: int, epoch: str) -> str:
    return f'{{"channel":{_json(channel)},"offset":{offset},"epoch":{_json(epoch)}'


def _value(content: Content) -> str:
    if content.kind == "json":
        return content.payload.decode()
    if content.kind == "text":
        return _json(content.payload.decode())
    return f'"{b64encode(content.payload).decode()}","encoding":"base64"'


def _json(text: str) -> str:
    return encode(text).decode()


RAW: Final[Format] = Raw()
"""Sends what was published: a str as text, bytes as bytes, any other value as compact JSON text.
It does not tell of positions, nor of who comes and goes."""

POSITIONED: Final[Format] = Positioned()
"""Sends JSON text that a plain browser can resume from.

`{"channel", "offset", "epoch", "data"}` is a publication: `data` is the string or the JSON value
that was published; bytes are in base64, with `"encoding": "base64"` beside it. The same without
`data` tells a new member where it stands, before anything live. `{"channel", "join": {"client",
"user", "info"}}` and `{"channel", "leave": ...}` tell who comes and goes, where the channel has
presence. `f"{offset}-{epoch}"` is the position that `join(since=...)` takes."""

AS_PUBLISHED: Final[Format] = _Whole(events=False)
EVENTS: Final[Format] = _Whole(events=True)
