"""broadcaster, which sends text and keeps nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from broadcaster import Broadcast, Event

from benchmarks.network.ends import NAME, Came, Ends, reading


@asynccontextmanager
async def pubsub(url: str, came: Came) -> AsyncIterator[Ends]:
    """Its backend for Redis."""

    def take(event: Event) -> None:
        came(event.message.encode())

    async with Broadcast(url) as broadcast, broadcast.subscribe(NAME) as subscriber:
        events: Any = subscriber  # its annotations say that it may be None
        async with reading(events, take):
            yield Ends(lambda payload: broadcast.publish(NAME, payload))
