"""channels_redis, its first layer: a sorted set for each consumer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from channels_redis.core import RedisChannelLayer  # type: ignore[import-untyped]

from chaos.systems import Options, System, Told

COME_BACK = 0.5
"""How long, in seconds, a client takes to connect again when its connection was closed."""


class LayerSystem(System):
    """A group of a channel layer.

    A consumer is what Channels makes it: with a channel of its own, which is in the group. When
    `receive` raises, the consumer ends and its connection is closed, so its client knows, and comes
    back to another consumer.
    """

    def __init__(self, layer: Any, group: str) -> None:
        self._layer = layer
        self._group = group

    async def publish(self, text: str) -> None:
        await self._layer.group_send(self._group, {"type": "chat.message", "text": text})

    async def listen(self) -> AsyncGenerator[Told, None]:
        is_anew = False
        while True:
            try:
                channel = await self._layer.new_channel()
                await self._layer.group_add(self._group, channel)
                if is_anew:
                    yield "anew", ""
                is_anew = False
                while True:
                    yield self._told(await self._layer.receive(channel))
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends the consumer
                is_anew = True
                yield "told", repr(error)
            await asyncio.sleep(COME_BACK)

    def _told(self, message: dict[str, Any]) -> Told:
        if message["type"] == "chat.message":
            return "seen", message["text"]
        return "told", message["type"]


@asynccontextmanager
async def opened(options: Options) -> AsyncIterator[LayerSystem]:
    layer = RedisChannelLayer(hosts=[options.url])
    try:
        yield LayerSystem(layer, options.channel)
    finally:
        await layer.close_pools()
