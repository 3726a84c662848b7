"""Yaat: a channel, and the broker alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.network.ends import KEPT, NAME, TTL, Came, Ends, reading
from yaat import ChannelOptions, Channels, Yaat
from yaat.brokers import open_broker
from yaat.brokers.contract import Content, Publication


@asynccontextmanager
async def channel(url: str, came: Came) -> AsyncIterator[Ends]:
    """A channel that keeps a history."""
    async with joined(url, came, KEPT) as ends:
        yield ends


@asynccontextmanager
async def forgetful(url: str, came: Came) -> AsyncIterator[Ends]:
    """A channel that keeps none."""
    async with joined(url, came, 0) as ends:
        yield Ends(ends.publish)


@asynccontextmanager
async def joined(url: str, came: Came, kept: int) -> AsyncIterator[Ends]:
    app = Yaat(broker=url, channels=Channels({NAME: ChannelOptions(history=kept, ttl=TTL)}))
    channel = app.channel(NAME)

    async def payloads() -> AsyncIterator[bytes]:
        async for publication in channel.subscribe():
            yield publication.content.payload

    async def history() -> list[bytes]:
        publications, _, _ = await channel.history()
        return [each.content.payload for each in publications]

    try:
        async with reading(payloads(), came):
            yield Ends(channel.publish, history)
    finally:
        await app.hub.close()


@asynccontextmanager
async def broker(url: str, came: Came) -> AsyncIterator[Ends]:
    """The broker alone; who subscribes is called."""

    def take(_channel: str, publication: Publication) -> None:
        came(publication.content.payload)

    async def publish(payload: bytes) -> None:
        await opened.publish(NAME, Content("bytes", payload), size=KEPT, ttl=TTL)

    async def history() -> list[bytes]:
        publications, _ = await opened.history(NAME)
        return [each.content.payload for each in publications]

    opened = open_broker(url)
    await opened.start(take, lambda _state: None, lambda _channels: None)
    try:
        await opened.subscribe(NAME)
        yield Ends(publish, history)
    finally:
        await opened.close()
