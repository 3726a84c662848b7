"""The way to the channels from outside of the application: a worker of a queue, a script, WSGI."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yaat.brokers.contract import Broker
from yaat.channels.blocking import BlockingHub
from yaat.channels.hub import Hub
from yaat.channels.options import Channels


@asynccontextmanager
async def connect(broker: Broker | str, *, channels: Channels | None = None) -> AsyncIterator[Hub]:
    """Connect to the broker of an application, for as long as this is entered.

        async with yaat.connect("redis://localhost", channels=CHANNELS) as broker:
            await broker.channel("room:1").publish({"n": 1})

    Args:
        broker: The URL that the application has, or a `Broker`. With `"memory://"` nobody else
            hears it.
        channels: The options that the application has: publishers and members share them.

    Raises:
        ArgumentError: There is no broker for that URL.
        BrokerUnavailable: It cannot be reached.
        TypeError: There is no URL at all.
    """
    if broker is None:
        raise TypeError("a broker is a URL or a Broker, not None")
    hub = Hub(broker, channels)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.close()


def connect_blocking(broker: str, *, channels: Channels | None = None) -> BlockingHub:
    """Return what `connect` gives, for code without an event loop: a script, a WSGI application.

        with yaat.connect_blocking("redis://localhost", channels=CHANNELS) as broker:
            broker.channel("room:1").publish({"n": 1})

    Without `with` it connects when it is first used, and is closed with the process: so a module
    may have one for all threads, and a server may fork after it was imported.

    Args:
        broker: The URL that the application has. With `"memory://"` nobody else hears it.
        channels: The options that the application has: publishers and members share them.

    Raises:
        ArgumentError: There is no broker for that URL.
        TypeError: It is no URL.
    """
    return BlockingHub(broker, channels)
