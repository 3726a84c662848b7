"""Turns: first come, first served, for what only one may use at a time."""

import asyncio
from collections import deque
from typing import Protocol


class Place(Protocol):
    """What stands in a queue: a future, or what is like one in this."""

    def done(self) -> bool:
        """Tell whether it needs no turn any more."""
        ...

    def set_result(self, result: None, /) -> None:
        """Be given the turn."""


class Turns:
    """A queue at a counter.

    Like `asyncio.Lock`, but who finds `taken` false may set it by itself, and clear it again; only
    if `queue` is not None by then is `give` to be called. So a message of a connection that nobody
    shares costs no call and no coroutine.
    """

    __slots__ = ("queue", "taken")

    def __init__(self) -> None:
        self.taken = False
        self.queue: deque[Place] | None = None

    async def take(self) -> None:
        """Wait for our turn; those who called earlier come first."""
        if not self.taken:
            self.taken = True
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mind().append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # the turn came in the same moment: it is the next one's
                self.give()
            raise

    def mind(self) -> deque[Place]:
        """See to it that who has the turn will call `give`."""
        if self.queue is None:
            self.queue = deque()
        return self.queue

    def give(self) -> None:
        """Give the turn to the next in the queue."""
        while self.queue:
            place = self.queue.popleft()
            if not place.done():  # else who waited there has been cancelled
                self.taken = True
                place.set_result(None)
                return
        self.queue = None
        self.taken = False
