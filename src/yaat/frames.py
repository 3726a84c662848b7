"""Frame: one message to send, made once for many connections."""

from dataclasses import dataclass, field
from typing import Literal

from yaat.exceptions import ArgumentError
from yaat.lifecycle import SEND
from yaat.types import Message

__all__ = ["Frame"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole message that a server sends to many connections.

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

    kind: Literal["text", "bytes"]
    data: str | bytes
    payload: bytes = field(init=False, repr=False, compare=False)
    encodings: dict[int, bytes] = field(
        init=False, repr=False, compare=False, default_factory=dict[int, bytes]
    )

    def __post_init__(self) -> None:
        if self.kind not in ("text", "bytes"):
            raise ArgumentError(f'the kind of a frame is "text" or "bytes", not {self.kind!r}')
        expected = str if self.kind == "text" else bytes
        if not isinstance(self.data, expected):
            raise TypeError(
                f"the data of a {self.kind} frame is {expected.__name__}, "
                f"not {type(self.data).__name__}"
            )
        try:
            payload = self.data.encode() if isinstance(self.data, str) else self.data
        except UnicodeEncodeError:
            raise ArgumentError("a lone surrogate has no form in UTF-8") from None
        object.__setattr__(self, "payload", payload)

    def event(self) -> Message:
        """Return the ASGI event that sends this message, for a server without `yaat.wire`."""
        return {"type": SEND, self.kind: self.data}
