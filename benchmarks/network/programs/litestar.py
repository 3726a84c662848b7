"""Litestar's channels: its plugin over its two backends, and the backends alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.channels import ChannelsPlugin
from litestar.channels.backends.base import ChannelsBackend
from litestar.channels.backends.redis import (
    RedisChannelsPubSubBackend,
    RedisChannelsStreamBackend,
)
from redis.asyncio import Redis

from benchmarks.network.ends import KEPT, NAME, Came, Ends, reading


@asynccontextmanager
async def streams(url: str, came: Came) -> AsyncIterator[Ends]:
    """The plugin, with a history."""
    async with Redis.from_url(url) as redis:
        backend = RedisChannelsStreamBackend(KEPT, redis=redis)
        async with plugged(backend, came) as ends:
            yield Ends(ends.publish, lambda: backend.get_history(NAME))


@asynccontextmanager
async def pubsub(url: str, came: Came) -> AsyncIterator[Ends]:
    """The plugin, without one."""
    async with (
        Redis.from_url(url) as redis,
        plugged(RedisChannelsPubSubBackend(redis=redis), came) as ends,
    ):
        yield ends


@asynccontextmanager
async def plugged(backend: ChannelsBackend, came: Came) -> AsyncIterator[Ends]:
    async with ChannelsPlugin(backend, channels=[NAME]) as channels:
        subscriber = await channels.subscribe(NAME)
        async with reading(subscriber.iter_events(), came):
            yield Ends(lambda payload: channels.wait_published(payload, NAME))


@asynccontextmanager
async def streams_alone(url: str, came: Came) -> AsyncIterator[Ends]:
    """The backend alone, with a history."""
    async with Redis.from_url(url) as redis:
        backend = RedisChannelsStreamBackend(KEPT, redis=redis)
        async with alone(backend, came) as ends:
            yield Ends(ends.publish, lambda: backend.get_history(NAME))


@asynccontextmanager
async def pubsub_alone(url: str, came: Came) -> AsyncIterator[Ends]:
    """The backend alone, without one."""
    async with (
        Redis.from_url(url) as redis,
        alone(RedisChannelsPubSubBackend(redis=redis), came) as ends,
    ):
        yield ends


@asynccontextmanager
async def alone(backend: ChannelsBackend, came: Came) -> AsyncIterator[Ends]:
    await backend.on_startup()
    await backend.subscribe([NAME])
    try:
        async with reading(backend.stream_events(), lambda event: came(event[1])):
            yield Ends(lambda payload: backend.publish(payload, [NAME]))
    finally:
        await backend.on_shutdown()
