"""ReadAhead: what came in before the application asked for it."""

import asyncio
import sys
from collections import deque
from typing import Final

from yaat.lifecycle import RECEIVE
from yaat.tasks import cancel, failure_of
from yaat.types import Message, Receive


class StoppedError(Exception):
    """Reading was given up while somebody waited for what it would bring."""


class ReadAhead:
    """Reads a connection while its handler does not, so that the end of it is noticed.

    One task makes one call of `receive` at a time, and such a call is never cancelled while the
    connection lives: a message would be lost with it. Who wants a message while the call is under
    way waits for that same call. From `limit` bytes on the task stops, and the peer feels it.

    What `receive` raises is told to the next who wants a message.

    Args:
        limit: How many bytes to hold; the message that crosses the line is held as well.
    """

    __slots__ = ("_limit", "_messages", "_size", "_task", "_waiter", "watchers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: Final[deque[Message]] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.watchers = 0  # how many want to know of the end, whether or not somebody receives

    @property
    def is_empty(self) -> bool:
        """Whether the next message can only come by a call that is not under way yet."""
        return not self._messages and not self._is_reading

    @property
    def _is_reading(self) -> bool:
        """Whether the task reads, or has failed to and has not told anybody."""
        task = self._task
        return task is not None and (not task.done() or failure_of(task) is not None)

    def start(self, receive: Receive) -> None:
        """Read on, if there is room. Nobody else may call `receive` while this reads.

        Args:
            receive: Reads the next message from the server. It is not kept, as it may well be a
                method of him who keeps this.
        """
        if not self._is_reading and self._size < self._limit:
            self._task = asyncio.create_task(self._read(receive), name="yaat read-ahead")

    def unwatch(self, _: object = None) -> None:
        """Note that one watcher less wants to know of the end."""
        self.watchers -= 1

    def stop(self) -> asyncio.Task[None] | None:
        """Give up reading, at the end of the connection; return the task to wait for."""
        task, self._task = self._task, None
        if task is not None:
            cancel(task)
        return task

    async def next(self) -> Message:
        """Return the oldest message held, or else the one that the call under way brings.

        One at a time may wait here, and only while it is not empty.

        Raises:
            StoppedError: Reading was given up meanwhile.
            Exception: What the server's `receive` raised.
        """
        if not self._messages:
            await self._news()
        message = self._messages.popleft()
        self._size -= _size(message)
        return message

    async def _news(self) -> None:
        """Wait until the task has brought a message; raise what it raised instead."""
        task = self._task
        assert task is not None  # noqa: S101 - who waits has seen that it reads
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((self._waiter, task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiter = None
        if not self._messages:
            if self._task is not task:
                raise StoppedError
            self._task = None
            task.result()

    async def _read(self, receive: Receive) -> None:
        while self._size < self._limit:
            message = await receive()
            self._messages.append(message)
            self._size += _size(message)
            waiter, self._waiter = self._waiter, None
            if waiter is not None:
                waiter.set_result(None)
                if not self.watchers:
                    return  # a handler that receives needs nobody to read ahead of it
            if message["type"] != RECEIVE:
                return  # the end; or something unheard of, which is for who receives to refuse


def _size(message: Message) -> int:
    """Return what a message costs to hold, in bytes: a million empty ones are not free."""
    return sys.getsizeof(message) + sys.getsizeof(message.get("bytes") or message.get("text"))
