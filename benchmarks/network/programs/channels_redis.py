"""Django Channels' two layers over Redis: a message to a group with one channel in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from channels_redis.core import RedisChannelLayer  # type: ignore[import-untyped]
from channels_redis.pubsub import RedisPubSubChannelLayer  # type: ignore[import-untyped]

from benchmarks.network.ends import Came, Ends, reading

GROUP = "room"  # of letters, digits, hyphens, underscores and periods alone


@asynccontextmanager
async def core(url: str, came: Came) -> AsyncIterator[Ends]:
    """Its lists."""
    async with grouped(RedisChannelLayer(hosts=[url]), came) as ends:
        yield ends


@asynccontextmanager
async def pubsub(url: str, came: Came) -> AsyncIterator[Ends]:
    """Its layer over pub/sub."""
    async with grouped(RedisPubSubChannelLayer(hosts=[url]), came) as ends:
        yield ends


@asynccontextmanager
async def grouped(layer: Any, came: Came) -> AsyncIterator[Ends]:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)

    async def payloads() -> AsyncIterator[bytes]:
        while True:
            yield (await layer.receive(channel))["payload"]

    async def publish(payload: bytes) -> None:
        await layer.group_send(GROUP, {"type": "said", "payload": payload})

    try:
        async with reading(payloads(), came):
            yield Ends(publish)
    finally:
        await layer.flush()
