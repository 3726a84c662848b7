"""Admission: who may become a WebSocket connection of this process."""

import random
from collections import Counter
from typing import Final

from yaat.server.settings import ServerSettings

LATER: Final = (1, 10)
"""Between how many seconds, at random, whom there is no room for is asked to wait: those who obey
shall not come back in one moment."""


class Admission:
    """Counts the WebSocket connections, and turns away those that are too many.

    Args:
        settings: `max_connections` and `max_connections_per_address` are the limits.

    Attributes:
        draining: Whether the server stops, so that nobody gets in any more.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.draining = False
        self._most = settings.max_connections
        self._most_of_one = settings.max_connections_per_address
        self._count = 0
        self._of: Counter[str] = Counter()

    @property
    def counts(self) -> bool:
        """Whether there is any limit: if not, nobody need call `enter` and `leave`."""
        return self._most is not None or self._most_of_one is not None

    def enter(self, address: str) -> str | None:
        """Count a connection in.

        Args:
            address: The peer's, without its port; empty if it has none, as on a unix socket: such
                ones are not counted together.

        Returns:
            Why not, or None: then it has to `leave`.
        """
        if self._most is not None and self._count >= self._most:
            return "max_connections"
        if address and self._most_of_one is not None and self._of[address] >= self._most_of_one:
            return "max_connections_per_address"
        self._count += 1
        self._of[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Count it out."""
        self._count -= 1
        self._of[address] -= 1
        if not self._of[address]:
            del self._of[address]


def retry_after() -> tuple[bytes, bytes]:
    """Return the header that says when to come back (RFC 9110, section 10.2.3)."""
    return b"retry-after", b"%d" % random.randint(*LATER)  # noqa: S311 - no secret
