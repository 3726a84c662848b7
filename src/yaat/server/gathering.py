"""Gathering: what is to go out when the loop's turn ends, of all its connections."""

import asyncio
import logging
from typing import Protocol
from weakref import WeakKeyDictionary

_logger = logging.getLogger("uvicorn.error")


class Flushable(Protocol):
    """Who has gathered something."""

    def flush(self) -> None:
        """Hand it over to the kernel."""


class Gathering:
    """The connections of one event loop that have gathered what they send.

    A system call for each small message is most of what sending it costs; what is sent to one
    connection in one turn of the loop leaves by one. One callback serves all connections: one for
    each would cost as much as gathering.
    """

    __slots__ = ("_connections",)

    def __init__(self) -> None:
        self._connections: list[Flushable] = []

    def add(self, connection: Flushable, loop: asyncio.AbstractEventLoop) -> None:
        """Flush `connection` when all else that is to run in this turn of the loop has run."""
        if not self._connections:
            loop.call_soon(self._flush)
        self._connections.append(connection)

    def _flush(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            try:
                connection.flush()
            except Exception:
                _logger.exception("what was gathered could not be written")


_gatherings: WeakKeyDictionary[asyncio.AbstractEventLoop, Gathering] = WeakKeyDictionary()


def gathering(loop: asyncio.AbstractEventLoop) -> Gathering:
    """Return the one of `loop`."""
    found = _gatherings.get(loop)
    if found is None:
        found = _gatherings[loop] = Gathering()
    return found
