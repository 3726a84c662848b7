"""broadcaster."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from broadcaster import Broadcast

from chaos.systems import Options, System, Told


class BroadcasterSystem(System):
    """A channel of it."""

    def __init__(self, broadcast: Broadcast, channel: str) -> None:
        self._broadcast = broadcast
        self._channel = channel

    async def publish(self, text: str) -> None:
        await self._broadcast.publish(channel=self._channel, message=text)

    async def listen(self) -> AsyncGenerator[Told, None]:
        async with self._broadcast.subscribe(channel=self._channel) as subscriber:
            async for event in subscriber:  # type: ignore[union-attr]
                if event is not None:
                    yield "seen", event.message


@asynccontextmanager
async def opened(options: Options) -> AsyncIterator[BroadcasterSystem]:
    async with Broadcast(options.url) as broadcast:
        yield BroadcasterSystem(broadcast, options.channel)
