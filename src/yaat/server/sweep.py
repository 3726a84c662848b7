"""Sweep: one timer for all connections that are to be looked at once in a while."""

import asyncio
import logging
import math
from typing import Final, Protocol
from weakref import WeakKeyDictionary

_logger = logging.getLogger("uvicorn.error")
# What a sum of floats may be off; in steps.
_ROUNDING: Final = 1e-6


class Swept(Protocol):
    """Who is looked at."""

    def look(self) -> None:
        """Do what is due."""


class Sweep:
    """The connections of one event loop, by the step of time at which they are due.

    A timer for each idle connection would cost it half a KiB, and each ping a timer more.

    Args:
        step: How long a step takes, in seconds: what is due is so much late at the most.
    """

    __slots__ = ("_begin", "_due", "_is_running", "_now", "_number", "_step")

    def __init__(self, step: float) -> None:
        self._step = step
        self._due: dict[int, set[Swept]] = {}
        self._is_running = False
        self._begin = 0.0
        self._number = 0
        self._now: float | None = None  # while connections are looked at: when that was to be

    def put(self, connection: Swept, seconds: float, loop: asyncio.AbstractEventLoop) -> set[Swept]:
        """Look at `connection` in so many seconds, once.

        Returns:
            Those who are due at the same time; who leaves them (`leave`) is not looked at.
        """
        now = loop.time() if self._now is None else self._now
        if not self._is_running:
            self._is_running = True
            self._begin, self._number = now, 0
            self._wait(loop)
        number = math.ceil((now - self._begin + seconds) / self._step - _ROUNDING)
        due = self._due.setdefault(max(number, self._number + 1), set())
        due.add(connection)
        return due

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(self._begin + (self._number + 1) * self._step, self._fire, loop)

    def _fire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._number += 1
        self._now = self._begin + self._number * self._step
        due = self._due.pop(self._number, set())
        while due:
            try:
                due.pop().look()
            except Exception:
                _logger.exception("a connection could not be looked at")
        self._now = None
        if self._due:
            self._wait(loop)
        else:
            self._is_running = False


def leave(due: set[Swept], connection: Swept) -> None:
    """Take `connection` out of those who are due; the last one gives their memory back."""
    due.discard(connection)
    if not due:
        due.clear()  # a set that was large keeps its table otherwise


_sweeps: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, Sweep]] = WeakKeyDictionary()


def sweep(loop: asyncio.AbstractEventLoop, step: float) -> Sweep:
    """Return the one of `loop` with this step."""
    sweeps = _sweeps.setdefault(loop, {})
    return sweeps.setdefault(step, Sweep(step))
