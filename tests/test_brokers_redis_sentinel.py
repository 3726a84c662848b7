"""A server whose place another one takes, as sentinels decide."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from brokers import Node, Reader, Writer, settled, until
from redis_servers import VALKEY, SentinelSet, builds
from yaat.brokers.redis import RedisBroker
from yaat.channels import ChannelOptions, Channels
from yaat.channels.hub import Hub
from yaat.exceptions import BrokerRefused, BrokerUnavailable

CHANNELS: Final = Channels({"kept:{id}": ChannelOptions(history=50_000, ttl=600.0, presence=True)})
ROOM: Final = "kept:a"
QUICK: Final = builds()[-1]
"""The sentinels of Valkey take a second to find that all is well."""
HASTY: Final[dict[str, Any]] = {"retry_base": 0.01, "retry_cap": 0.05, "timeout": 1.0}


@asynccontextmanager
async def hub_of(url: str, **options: Any) -> AsyncIterator[Hub]:
    """Run a hub that is connected."""
    hub = Hub(RedisBroker(url, **{**HASTY, **options}), CHANNELS)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.close()


async def until_another(servers: SentinelSet) -> None:
    """Wait until another server has taken the place of the first."""
    first, watching = servers.data[0], servers.sentinels[0]

    def is_another() -> bool:
        _, port = watching.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", servers.service)
        return int(port) != first.port and servers.data[1].call("ROLE")[0] == b"master"

    await until(is_another, lambda: watching.log)


@pytest.mark.parametrize("build", sorted({VALKEY, *builds()[-1:]}))
async def test_a_master_ends_and_another_takes_over(build: str) -> None:
    """Who missed something is told; and nobody goes back to the first when it comes back.

    It holds itself for the master for 8 seconds, until the sentinels say that it is not.
    """
    with SentinelSet(build, password="pw", sentinel_password="spw") as servers:
        url = servers.url() + "?sentinel_password=spw"
        async with (
            hub_of(url) as hub,
            hub_of(url) as other,
            Reader(hub.channel(ROOM)) as here,
            Reader(other.channel(ROOM)) as there,
        ):
            writer, is_over = Writer(hub.channel(ROOM)), asyncio.Event()
            await writer.write(20)
            writing = asyncio.create_task(writer.write_until(is_over.is_set))
            await until(lambda: len(writer.accepted) > 50)
            servers.data[0].kill()
            await until_another(servers)
            some = len(writer.accepted)
            await until(lambda: len(writer.accepted) > some + 20)
            await asyncio.to_thread(servers.data[0].start)
            await until(lambda: len(writer.accepted) > some + 40)
            is_over.set()
            await writing
            await settled(writer, here, there)
            await until(lambda: hub.is_up)
            for reader in (here, there):
                reader.check(writer)
            assert len(writer.epochs) == 2


async def test_a_master_that_was_frozen_is_not_asked_again() -> None:
    with SentinelSet(QUICK) as servers:
        async with (
            hub_of(servers.url(), probe=1.0) as hub,
            hub_of(servers.url(), probe=1.0) as other,
            Reader(other.channel(ROOM)) as reader,
        ):
            writer = Writer(hub.channel(ROOM))
            await writer.write(20)
            await reader.heard(writer.accepted[-1])
            servers.data[0].freeze()
            await until_another(servers)
            await writer.write(20)
            servers.data[0].thaw()
            await writer.write(20)
            await settled(writer, reader)
            reader.check(writer)
            assert servers.data[0].call("ROLE")[0] == b"master"  # as it still believes
            assert "yaat" not in [each["name"] for each in servers.data[0].clients("pubsub")]


async def test_a_service_that_no_sentinel_knows_is_named() -> None:
    with SentinelSet(QUICK) as servers:
        url = servers.url(path="/nobody")
        with pytest.raises(BrokerUnavailable, match="'nobody'") as error:
            await Node(RedisBroker(url, connect_timeout=0.3)).start()
        for sentinel in servers.sentinels:
            assert f"127.0.0.1:{sentinel.port}" in str(error.value)
        # One sentinel is enough to find the way, whichever it is.
        for sentinel in servers.sentinels[:2]:
            sentinel.kill()
        async with hub_of(servers.url()) as hub:
            await hub.channel(ROOM).publish("x")
        servers.sentinels[2].kill()
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{servers.sentinels[2].port}"):
            await Node(RedisBroker(servers.url(), connect_timeout=0.3)).start()


async def test_who_may_not_ask_the_sentinels_is_refused() -> None:
    with SentinelSet(QUICK, sentinel_password="spw") as servers:
        for query in ("", "?sentinel_password=wr0ng"):
            with pytest.raises((BrokerUnavailable, BrokerRefused)) as error:
                await Node(RedisBroker(servers.url() + query, connect_timeout=0.3)).start()
            assert f"127.0.0.1:{servers.sentinels[0].port}" in str(error.value)
            assert "wr0ng" not in str(error.value)


async def test_the_outage_ends_when_the_sentinels_are_back() -> None:
    """While neither a master nor a sentinel is there, everything fails at once."""
    with SentinelSet(QUICK) as servers:
        node = Node(RedisBroker(servers.url(), **HASTY))
        await node.start()
        try:
            await node.broker.subscribe("a")
            before = await node.publish("a", "x")
            for server in (*servers.sentinels, *servers.data):
                server.kill()
            await until(lambda: node.states == ["up", "down"])
            with pytest.raises(BrokerUnavailable) as error:
                await node.publish("a", "x")
            assert not error.value.maybe_published
            for server in servers.data:
                server.start()
            for server in servers.sentinels:
                server.start()
            await until(lambda: node.states == ["up", "down", "up"], lambda: node.states)
            assert (await node.publish("a", "x")).epoch != before.epoch
        finally:
            await node.broker.close()
