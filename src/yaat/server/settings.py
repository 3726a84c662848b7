"""The bounds of a connection that uvicorn has no option for."""

from dataclasses import dataclass, replace
from typing import Any, Self

from yaat.exceptions import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What `WebSocketProtocol` keeps to besides uvicorn's own `ws_*` options.

    Args:
        write_buffer: High-water mark: once more bytes than this wait for a peer that does not
            read, `send()` waits until a quarter of it is left.
        read_buffer: Once more bytes than this have come in and wait for the application, no more
            are read, so that the peer feels it. One message is always taken.
        max_tiny_fragments: How many fragments of fewer than 64 bytes, empty ones included, one
            message may have.
        close_timeout: How long, in seconds, a peer may take to answer our close frame, or to hang
            up after what ended the connection.
        compress_from: The size in bytes from which a message is compressed, where compression was
            agreed on. From 512 on, JSON shrinks by half or more; below, it fits in one packet
            either way.

    Raises:
        ArgumentError: A value that cannot be meant.
    """

    write_buffer: int = 65_536
    read_buffer: int = 65_536
    max_tiny_fragments: int = 1_024
    close_timeout: float = 10.0
    compress_from: int = 512

    def __post_init__(self) -> None:
        for name in ("write_buffer", "read_buffer", "close_timeout"):
            if not getattr(self, name) > 0:
                raise ArgumentError(
                    f"ServerSettings.{name} must be above 0, not {getattr(self, name)!r}"
                )
        for name in ("max_tiny_fragments", "compress_from"):
            if getattr(self, name) < 0:
                raise ArgumentError(
                    f"ServerSettings.{name} must not be below 0, but is {getattr(self, name)!r}"
                )

    def but(self, **changes: Any) -> Self:
        """Return settings like these but for `changes`."""
        return replace(self, **changes)
