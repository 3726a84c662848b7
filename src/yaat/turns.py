"""Turns: first come, first served, for what only one may use at a time."""

import asyncio
from collections import deque


class Turns:
    """A queue at a counter.

    Like `asyncio.Lock`, but who finds `taken` false may set it by itself, and clear it again if
    `queue` is None: one message of a connection that nobody shares costs no call and no coroutine.
    """

    __slots__ = ("queue", "taken")

    def __init__(self) -> None:
        self.taken = False
        self.queue: deque[asyncio.Future[None]] | None = None

    async def take(self) -> None:
        """Wait for our turn; those who called earlier come first."""
        if not self.taken:
            self.taken = True
            return
        if self.queue is None:
            self.queue = deque()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # the turn came in the same moment: it is the next one's
                self.give()
            raise

    def give(self) -> None:
        """Give the turn to the next in the queue."""
        while self.queue:
            place = self.queue.popleft()
            if not place.done():  # else who waited there has been cancelled
                place.set_result(None)
                return
        self.taken = False
