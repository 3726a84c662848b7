"""Frame: one message to send, made once for many connections."""

from dataclasses import FrozenInstanceError
from typing import Any, Final, Literal, NoReturn, Self

from yaat.exceptions import ArgumentError
from yaat.lifecycle import SEND
from yaat.types import Message

__all__ = ["Frame"]

_set: Final = object.__setattr__


class Frame:
    """One whole message that a server sends to many connections. It does not change.

    Args:
        kind: `"text"` or `"bytes"`.
        data: A str or bytes, accordingly.

    Attributes:
        payload: The data as it travels: text in UTF-8.
        encodings: What goes out on the wire, by the window that was agreed on for compression (9
            to 15, 0 for none). A server fills it with the first connection that needs it, so that
            the message is framed and compressed once for all of them. Nobody else touches it.

    Raises:
        ArgumentError: Another kind, or text that has no form in UTF-8. It is a `ValueError`.
        TypeError: Data of another type than its kind says.

    Spec: RFC 6455, section 5.6.
    """

    __slots__ = ("_data", "encodings", "kind", "payload")

    kind: Literal["text", "bytes"]
    payload: bytes
    encodings: dict[int, bytes]
    _data: str | bytes | None

    def __init__(self, kind: Literal["text", "bytes"], data: str | bytes) -> None:
        if kind not in ("text", "bytes"):
            raise ArgumentError(f'the kind of a frame is "text" or "bytes", not {kind!r}')
        expected = str if kind == "text" else bytes
        if not isinstance(data, expected):
            raise TypeError(
                f"the data of a {kind} frame is {expected.__name__}, not {type(data).__name__}"
            )
        try:
            payload = data.encode() if isinstance(data, str) else data
        except UnicodeEncodeError:
            raise ArgumentError("a lone surrogate has no form in UTF-8") from None
        _fill(self, kind, payload, data)

    @classmethod
    def of(cls, kind: Literal["text", "bytes"], payload: bytes) -> Self:
        """Return a frame of a payload that is known to be right: text in UTF-8."""
        frame = cls.__new__(cls)
        _fill(frame, kind, payload, None)
        return frame

    @property
    def data(self) -> str | bytes:
        """What was said: a str or bytes, as `kind` says."""
        if self._data is None:
            _set(self, "_data", self.payload.decode() if self.kind == "text" else self.payload)
        assert self._data is not None  # noqa: S101 - it has just been set
        return self._data

    def event(self) -> Message:
        """Return the ASGI event that sends this message, for a server without `yaat.wire`."""
        return {"type": SEND, self.kind: self.data}

    def to_keep(self) -> Self:
        """Return the same message for one who waits: it holds the payload and nothing more."""
        return self.of(self.kind, self.payload)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(f"a frame does not change: {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return (self.kind, self.payload) == (other.kind, other.payload)

    def __hash__(self) -> int:
        return hash((self.kind, self.payload))

    def __repr__(self) -> str:
        return f"Frame(kind={self.kind!r}, data={self.data!r})"


def _fill(frame: Frame, kind: str, payload: bytes, data: str | bytes | None) -> None:
    _set(frame, "kind", kind)
    _set(frame, "payload", payload)
    _set(frame, "encodings", {})
    _set(frame, "_data", data)
