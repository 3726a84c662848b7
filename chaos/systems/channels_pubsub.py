"""channels_redis, its second layer: Redis Pub/Sub."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from channels_redis.pubsub import RedisPubSubChannelLayer  # type: ignore[import-untyped]

from chaos.systems import Options
from chaos.systems.channels_core import LayerSystem


@asynccontextmanager
async def opened(options: Options) -> AsyncIterator[LayerSystem]:
    # "The PubSub layer can drop messages in the event of a network partition. [...] accepts
    # optional arguments which will notify consumers of Redis disconnect/reconnect events."
    layer = RedisPubSubChannelLayer(
        hosts=[options.url], on_disconnect="redis.disconnect", on_reconnect="redis.reconnect"
    )
    try:
        yield LayerSystem(layer, options.channel)
    finally:
        await layer.flush()
