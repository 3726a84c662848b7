"""The extension `yaat.wire`: what our server can do beyond ASGI, offered to an application."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from yaat.frames import Frame
from yaat.types import Message

NAME: Final = "yaat.wire"
VERSION: Final = 1
LossCallback = Callable[[int, str], object]
RoomCallback = Callable[[], object]
_WAYS = ("write", "buffered", "on_room", "on_loss", "send")


class Connection(Protocol):
    """What a connection does for those who use the extension."""

    async def send(self, message: Message) -> None:
        """Send an event, as ASGI has it."""

    def write(self, frame: Frame, /) -> bool:
        """Take a frame, whole, in order with `send`; or nothing."""
        ...

    def buffered(self) -> int:
        """Return how many bytes wait for the peer."""
        ...

    def on_room(self, callback: RoomCallback, /) -> None:
        """Call back once when `write` is worth another try."""

    def on_loss(self, callback: LossCallback, /) -> None:
        """Call back once when the connection has ended."""


class Wire(Mapping[str, Any]):
    """`scope["extensions"]["yaat.wire"]`.

    A mapping that makes each entry when it is asked for: a dict of them would cost every idle
    connection 0.7 KiB.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getitem__(self, name: str) -> Any:
        if name in _WAYS:
            return getattr(self._connection, name)
        if name == "version":
            return VERSION
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(("version", *_WAYS))

    def __len__(self) -> int:
        return 1 + len(_WAYS)
