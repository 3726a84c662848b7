"""Members: who listens to a channel, on a socket or in Python."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, Protocol

from yaat.brokers.contract import Publication
from yaat.channels.formats import EVENTS, Format
from yaat.channels.options import ChannelOptions
from yaat.exceptions import ChannelError, PositionLost
from yaat.frames import Frame
from yaat.observer import tell
from yaat.outbox import OVERHEAD, Outbox, Share
from yaat.types import Message, Scope

logger = logging.getLogger("yaat.channel")

OnLost = Callable[[PositionLost], Awaitable[object] | None]
"""Called when a position is lost; it may be a coroutine function."""


class Socket(Protocol):
    """What a channel needs of a connection: a `WebSocket` has it."""

    scope: Scope

    @property
    def outbox(self) -> Outbox:
        """What waits to be sent on it."""
        ...

    async def send(self, message: Message) -> None:
        """Send an event, as ASGI has it."""

    async def close(self, code: int = 1000, reason: str | None = "") -> None:
        """Close it."""


class Member(Protocol):
    """Who listens to a channel. What it is offered was made once for all of its format."""

    @property
    def format(self) -> Format:
        """How publications are told to it."""
        ...

    @property
    def client(self) -> str | None:
        """Which connection it is, if it is one."""
        ...

    def offer(self, frame: Frame, key: str | None = None) -> bool:
        """Take a frame. It never blocks, awaits or raises; False: gone, or it was not taken."""
        ...

    async def bring(self, publication: Publication) -> None:
        """Take what was missed; wait while there is no room."""

    def lose(self, error: PositionLost) -> None:
        """Be told that something was missed that cannot be brought any more."""

    def close(self) -> None:
        """Be told that nothing more will come."""


class Counts:
    """What was not delivered, of all the channels of a hub."""

    def __init__(self) -> None:
        self.dropped = 0
        self.cut = 0


class SocketMember(Share):
    """A connection in a channel."""

    __slots__ = (
        "_counts",
        "_has_warned",
        "_on_lost",
        "_socket",
        "client",
        "format",
    )

    def __init__(
        self,
        socket: Socket,
        channel: str,
        options: ChannelOptions,
        counts: Counts,
        *,
        format: Format,  # noqa: A002 - as `join` has it
        on_lost: Callable[[PositionLost], object] | None,
    ) -> None:
        super().__init__(socket.outbox, channel, options.slow, options.max_waiting)
        self.format = format
        self.client = client_of(socket.scope)
        self._socket = socket
        self._counts = counts
        self._on_lost = on_lost
        self._has_warned = False

    async def bring(self, publication: Publication) -> None:
        """Send what it missed, and wait while there is no room.

        Raises:
            WebSocketDisconnect: The peer has left.
        """
        frame = self.format.encode(self.name, publication)
        if frame is not None and (self._turns.taken or not self.write(frame)):
            await self._socket.send(frame.event())

    def lose(self, error: PositionLost) -> None:
        """Tell the application, or else close the connection."""
        if self._on_lost is not None:
            self._on_lost(error)
        else:
            self._outbox.end(error.close_code, "position lost")

    def close(self) -> None:
        """Do nothing: the connection has its own end."""

    def on_drop(self) -> None:
        """Count a frame that is dropped, and tell."""
        self._counts.dropped += 1
        self._warn(f"publications are left out ({self._slow})")
        tell(self._socket.scope, "dropped", self.name, self._slow)

    def on_cut(self) -> None:
        """Count that the connection is cut, and tell."""
        self._counts.cut += 1
        self._warn("its connection is closed")
        tell(self._socket.scope, "cut", self.name)

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            who = self._socket.scope.get("client")
            logger.warning("a member of %.300r reads too slowly: %s; %s", self.name, what, who)


class Subscriber:
    """A member in Python: a queue that is read by one.

    When it is full it is emptied, and `is_behind` says so: what was in it has to be brought from
    the history.
    """

    __slots__ = (
        "_error",
        "_max_waiting",
        "_news",
        "_queue",
        "_waiting",
        "format",
        "is_behind",
        "is_over",
    )

    client = None

    def __init__(self, format: Format, max_waiting: int) -> None:  # noqa: A002 - as in Member
        self.format = format
        self.is_behind = False
        self.is_over = False
        self._error: ChannelError | None = None
        self._max_waiting = max_waiting
        self._queue: deque[Any] = deque()
        self._waiting = 0
        self._news: asyncio.Future[None] | None = None

    def offer(self, frame: Any, key: str | None = None) -> bool:  # noqa: ARG002 - as Member has it
        """Put a publication into the queue, if there is room."""
        if self._error is not None:
            return False  # something is missing before it
        size = len(frame.content.payload) + OVERHEAD
        if self._queue and self._waiting + size > self._max_waiting:
            self._clear()
            self.is_behind = True
        if not self.is_behind:
            self._put(frame)
        self._wake()
        return not self.is_behind

    async def bring(self, publication: Publication) -> None:
        """Put what was missed into the queue; its bound is that of the history."""
        if self.format.encode("", publication) is not None:
            self._put(publication)

    def _put(self, publication: Publication) -> None:
        self._queue.append(publication)
        self._waiting += len(publication.content.payload) + OVERHEAD

    def lose(self, error: ChannelError) -> None:
        """Let who reads have this error, after what is in the queue; events have no position."""
        if self.format is EVENTS:
            return
        self._error = self._error or error
        self._wake()

    def close(self) -> None:
        """Let who reads come to an end, after what is in the queue."""
        self.is_over = True
        self._wake()

    def take(self) -> Publication | None:
        """Return the oldest publication; None: there is none."""
        if not self._queue:
            return None
        publication: Publication = self._queue.popleft()
        self._waiting -= len(publication.content.payload) + OVERHEAD
        return publication

    async def wait(self) -> None:
        """Wait until there is something to take, or to know.

        Raises:
            PositionLost: Something was missed.
        """
        if not (self._queue or self.is_behind or self.is_over or self._error):
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if self._error is not None and not self._queue:
            raise self._error

    def _clear(self) -> None:
        self._queue.clear()
        self._waiting = 0

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


async def called(on_lost: OnLost, error: PositionLost) -> None:
    """Call who wants to know that a position is lost, and wait for it if it is to be waited for."""
    result = on_lost(error)
    if isawaitable(result):
        await result


def client_of(scope: Scope) -> str:
    """Return the name of a connection among all others. It says nothing of who it is."""
    client: str | None = scope.get(_CLIENT)
    if client is None:
        client = scope[_CLIENT] = secrets.token_urlsafe(9)
    return client


_CLIENT: Final = "yaat.client"
