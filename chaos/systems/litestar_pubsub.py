"""Litestar's channels over Redis Pub/Sub."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from litestar.channels import ChannelsPlugin
from litestar.channels.backends.base import ChannelsBackend
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from redis.asyncio import Redis

from chaos.systems import Options, System, Told


class LitestarSystem(System):
    """A channel of its plugin."""

    def __init__(self, plugin: ChannelsPlugin, channel: str) -> None:
        self._plugin = plugin
        self._channel = channel

    async def publish(self, text: str) -> None:
        # `publish` returns at once; "for that" (a guarantee), it says, "use wait_published".
        await self._plugin.wait_published(text, self._channel)

    async def listen(self) -> AsyncGenerator[Told, None]:
        async with self._plugin.start_subscription([self._channel]) as subscriber:
            async for event in subscriber.iter_events():
                yield "seen", event.decode()


@asynccontextmanager
async def running(backend: ChannelsBackend, channel: str) -> AsyncIterator[LitestarSystem]:
    async with ChannelsPlugin(backend, channels=[channel]) as plugin:
        yield LitestarSystem(plugin, channel)


@asynccontextmanager
async def opened(options: Options) -> AsyncIterator[LitestarSystem]:
    backend = RedisChannelsPubSubBackend(redis=Redis.from_url(options.url))
    async with running(backend, options.channel) as system:
        yield system
