"""Line: a connection to a server that is made anew whenever it is lost."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from yaat.brokers.redis.settings import Settings
from yaat.brokers.redis.wire import AnswerError, Wire, as_broker_error
from yaat.exceptions import BrokerError, BrokerUnavailable
from yaat.tasks import failure_of

logger = logging.getLogger("yaat.broker")

STEADY: Final = 10.0
"""A connection that lasted so long, in seconds, or was of use, was a good one: the next wait is
short again. That it could be made is not enough: a server may accept and drop, again and again."""


NOT_YET: Final = "not connected yet"


class Backoff:
    """How long to wait before the next try: at random, so that many nodes do not come at once.

    Args:
        base: The upper bound of the first wait, in seconds. It doubles each time.
        cap: The highest upper bound.
    """

    def __init__(self, base: float, cap: float) -> None:
        self._base = base
        self._cap = cap
        self._tries = 0

    def next(self) -> float:
        """Return how long to wait, in seconds."""
        most = min(self._cap, self._base * 2.0 ** min(self._tries, 60))
        self._tries += 1
        return random.uniform(0, most)  # noqa: S311 - no secret

    def reset(self) -> None:
        """Begin anew."""
        self._tries = 0


class Line:
    """A connection that is made anew whenever it is lost.

    Args:
        connect: Makes it.
        settings: How long to wait between.
        prepare: Called with a new connection; what it does belongs to making it.
        on_change: Called when the connection can be used, and when it is lost or could not be made.

    Attributes:
        wire: The connection, if there is one.
        is_up: Whether there is one, and it is prepared.
        why: Why there is none; None: it has not been tried to the end yet.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Wire]],
        settings: Settings,
        prepare: Callable[[Wire], Awaitable[None]],
        on_change: Callable[[], object],
    ) -> None:
        self._connect = connect
        self._backoff = Backoff(settings.retry_base, settings.retry_cap)
        self._prepare = prepare
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self.wire: Wire | None = None
        self.is_up = False
        self.why: BrokerError | None = None
        self._next_try = 0.0
        self._task: Final = self._loop.create_task(self._keep(), name="yaat broker line")
        self._task.add_done_callback(failure_of)

    def get(self) -> Wire:
        """Return the connection.

        Raises:
            BrokerUnavailable: There is none. Nothing waits for one.
        """
        wire = self.wire
        if wire is None or wire.ended.done():
            why = self.why or NOT_YET if wire is None else wire.ended.result()
            wait = max(0.0, self._next_try - self._loop.time())
            raise BrokerUnavailable(str(why), retry_in=wait)
        return wire

    def close(self) -> "asyncio.Task[None]":
        """End it for good; return the task that ends."""
        self._task.cancel()
        if self.wire is not None:
            self.wire.end()
        return self._task

    async def _keep(self) -> None:
        """Connect, for ever: whatever goes wrong, it is tried again."""
        while True:
            try:
                self.why = await self._hold()
            except BrokerError as error:
                self.why = error
            except AnswerError as error:
                self.why = as_broker_error(error)
            except Exception as error:
                logger.exception("connecting failed in a way that nobody expected")
                self.why = BrokerUnavailable(f"connecting failed: {error!r}")
            wait = self._backoff.next()
            self._next_try = self._loop.time() + wait
            self._on_change()
            await asyncio.sleep(wait)

    async def _hold(self) -> BrokerUnavailable:
        """Connect, and wait until the connection is over; return why it is."""
        wire = self.wire = await self._connect()
        try:
            await self._prepare(wire)
            begin, received = self._loop.time(), wire.received
            self.is_up, self.why = True, None
            self._on_change()
            why = await asyncio.shield(wire.ended)
            if wire.received > received or self._loop.time() - begin >= STEADY:
                self._backoff.reset()
        finally:
            self.wire, self.is_up = None, False
            wire.end()
        return why
