"""Litestar's channels over Redis Streams."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from litestar.channels.backends.redis import RedisChannelsStreamBackend
from redis.asyncio import Redis

from chaos.systems import Options
from chaos.systems.litestar_pubsub import LitestarSystem, running


@asynccontextmanager
async def opened(options: Options) -> AsyncIterator[LitestarSystem]:
    backend = RedisChannelsStreamBackend(
        options.history,
        redis=Redis.from_url(options.url),
        stream_ttl=timedelta(seconds=options.ttl),
    )
    async with running(backend, options.channel) as system:
        yield system
