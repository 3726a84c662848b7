"""Yaat."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from chaos.systems import Options, System, Told
from yaat import ChannelOptions, Channels, Position, PositionLost, Yaat
from yaat.channels.channel import Channel
from yaat.exceptions import BrokerRefused, BrokerUnavailable

MAX_WAITING: Final = 16_384
"""So little that who reads slowly for a second goes on from the history."""

RETRY: Final = 0.2


class YaatSystem(System):
    """A channel of an application."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def publish(self, text: str) -> None:
        await self._channel.publish(text)

    def is_unsure(self, error: Exception) -> bool:
        if isinstance(error, BrokerRefused):
            return False
        return error.maybe_published if isinstance(error, BrokerUnavailable) else True

    async def listen(self) -> AsyncGenerator[Told, None]:
        position: Position | None = None
        is_anew = False
        while True:
            last = self._channel.options.history
            try:
                async with aclosing(self._channel.subscribe(since=position, last=last)) as there:
                    async for publication in there:
                        if is_anew:
                            yield "anew", ""
                        is_anew = False
                        position = publication.position if publication.offset else None
                        yield "seen", publication.data
            except PositionLost as error:
                position, is_anew = None, True
                yield "told", str(error)
            except BrokerUnavailable as error:
                yield "note", repr(error)
                await asyncio.sleep(error.retry_in or RETRY)
            else:
                return  # the channels have been closed


@asynccontextmanager
async def opened(options: Options) -> AsyncIterator[YaatSystem]:
    kept = ChannelOptions(history=options.history, ttl=options.ttl, max_waiting=MAX_WAITING)
    app = Yaat(broker=options.url, channels=Channels({options.channel: kept}))
    try:
        yield YaatSystem(app.channel(options.channel))
    finally:
        await app.hub.close()
