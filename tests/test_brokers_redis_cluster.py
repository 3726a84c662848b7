"""A cluster: where things are kept, and that what is published follows them when they move."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest

from brokers import TOLD, Node, Reader, Writer, settled, until
from redis_servers import VALKEY, OneNodeCluster, RedisServer, ThreeNodeCluster, builds
from yaat.brokers.contract import Present
from yaat.brokers.redis import RedisBroker
from yaat.channels import ChannelOptions, Channels
from yaat.channels.hub import Hub
from yaat.exceptions import BrokerUnavailable

CHANNELS: Final = Channels({"kept:{id}": ChannelOptions(history=50_000, ttl=600.0, presence=True)})
HASTY: Final[dict[str, Any]] = {"retry_base": 0.01, "retry_cap": 0.05, "timeout": 2.0, "probe": 1.0}
ROOMS: Final = [f"kept:{number}" for number in range(12)]
"""Enough that each of three servers has some of them."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ThreeNodeCluster]:
    """A cluster in which things move, and nobody ends."""
    with ThreeNodeCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module", params=sorted({VALKEY, *builds()[-1:]}))
def alone(request: pytest.FixtureRequest) -> Iterator[OneNodeCluster]:
    """A cluster of one of each build."""
    with OneNodeCluster(request.param) as alone:
        yield alone


@asynccontextmanager
async def hub_of(url: str, **options: Any) -> AsyncIterator[Hub]:
    """Run a hub that is connected."""
    hub = Hub(RedisBroker(url, **{**HASTY, **options}), CHANNELS)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.close()


@asynccontextmanager
async def node_of(url: str, **options: Any) -> AsyncIterator[Node]:
    node = Node(RedisBroker(url, **{**HASTY, **options}))
    await node.start()
    try:
        yield node
    finally:
        await node.broker.close()


class Traffic:
    """Somebody writes to each room by one hub, and somebody reads it by another."""

    def __init__(self, hub: Hub, other: Hub) -> None:
        self.writers: Final = [Writer(hub.channel(room)) for room in ROOMS]
        self.readers: Final = [Reader(other.channel(room)) for room in ROOMS]
        self._is_over = asyncio.Event()

    async def until_more(self, count: int) -> None:
        """Wait until so many more have been accepted in each room."""
        wanted = [len(writer.accepted) + count for writer in self.writers]

        def have_more() -> bool:
            return all(
                len(writer.accepted) >= some
                for writer, some in zip(self.writers, wanted, strict=True)
            )

        await until(have_more, lambda: [len(writer.accepted) for writer in self.writers])

    async def write(self) -> None:
        """Write to all rooms until it is enough."""
        await asyncio.gather(*map(self._write, self.writers))

    async def _write(self, writer: Writer) -> None:
        while not self._is_over.is_set():
            await writer.write()
            await asyncio.sleep(0.005)

    def end(self) -> None:
        """Let it be enough."""
        self._is_over.set()

    async def check(self) -> None:
        """Assert the promise."""
        await asyncio.gather(
            *(settled(w, r) for w, r in zip(self.writers, self.readers, strict=True))
        )
        for writer, reader in zip(self.writers, self.readers, strict=True):
            reader.check(writer)

    @property
    def told(self) -> int:
        """How many readers were told that something is missing."""
        return sum(TOLD in reader.log for reader in self.readers)


@asynccontextmanager
async def traffic_at(cluster: ThreeNodeCluster, **options: Any) -> AsyncIterator[Traffic]:
    """Run the traffic, which flows by now; in the end it is checked."""
    async with (
        hub_of(cluster.url(), **options) as hub,
        hub_of(cluster.url(), **options) as other,
        AsyncExitStack() as stack,
    ):
        traffic = Traffic(hub, other)
        for reader in traffic.readers:
            await stack.enter_async_context(reader)
        writing = asyncio.create_task(traffic.write())
        await traffic.until_more(5)
        yield traffic
        await traffic.until_more(5)
        traffic.end()
        await writing  # a writer that has company cannot say in which order they were
        await traffic.check()


def slots_of(server: RedisServer) -> dict[int, list[bytes]]:
    """Return the keys of a server by their slots."""
    found = defaultdict(list)
    keys = server.call("KEYS", "*")
    slots = server.calls([("CLUSTER", "KEYSLOT", key) for key in keys])
    for key, slot in zip(keys, slots, strict=True):
        found[slot].append(key)
    return found


# Where things are


async def test_all_of_a_channel_is_in_one_slot_and_the_channels_are_spread(
    alone: OneNodeCluster,
) -> None:
    alone.call("FLUSHALL")
    async with node_of(alone.url("redis+cluster")) as node:
        for name in ("kept:1", "}{", "{x}", "a{b}c", "{}", "é", "\x00", "{", "}"):
            await node.publish(name, "x", once="key")
            await node.broker.presence_add(name, Present("c", "u"))
            ((slot, keys),) = slots_of(alone).items()
            assert len(keys) >= 4, slot
            alone.call("FLUSHALL")
        for number in range(500):
            await node.publish(f"kept:{number}", "x")
        slots = sorted(slots_of(alone))
        assert len(slots) == 64
        # One in each 64th part of the slots, so that any server has its share.
        assert [slot * 64 // 16_384 for slot in slots] == list(range(64))


async def test_publications_go_to_the_one_server_that_has_the_slot_if_it_can_do_that(
    alone: OneNodeCluster,
) -> None:
    """Sharded pub/sub, since Redis 7; before that each one goes to all servers of the cluster."""
    alone.call("CONFIG", "RESETSTAT")
    async with node_of(alone.url("redis+cluster")) as node:
        for number in range(10):
            await node.broker.subscribe(f"kept:{number}")
            await node.publish(f"kept:{number}", "x")
            await node.publish(f"kept:{number}", "y", size=0)
        for number in range(10):
            await node.until(f"kept:{number}", 2)
        names = ("spublish", "ssubscribe") if alone.has_shards else ("publish", "subscribe")
        others = ("publish", "subscribe") if alone.has_shards else ("spublish", "ssubscribe")
        assert [alone.ran(name) >= count for name, count in zip(names, (20, 10), strict=True)] == [
            True,
            True,
        ]
        assert [alone.ran(name) for name in others] == [0, 0]


async def test_a_url_of_one_server_that_is_a_cluster_is_taken_for_one(
    alone: OneNodeCluster,
) -> None:
    async with node_of(alone.url()) as node, node_of(alone.url("redis+cluster")) as other:
        for number in range(10):
            await node.broker.subscribe(f"kept:{number}")
            await other.publish(f"kept:{number}", "x")
        for number in range(10):
            await node.until(f"kept:{number}", 1)


async def test_each_server_has_its_share(cluster: ThreeNodeCluster) -> None:
    async with node_of(cluster.url()) as node, node_of(cluster.masters[2].url()) as other:
        for number in range(100):
            await node.broker.subscribe(f"share:{number}")
            await other.publish(f"share:{number}", "x")
        for number in range(100):
            await node.until(f"share:{number}", 1)
        for master in cluster.masters:
            found = [name for name in master.subscriptions("yaat") if b":share:" in name]
            assert len(found) > 10


# What moves


@pytest.mark.parametrize("epochs", ["trust", "strict"])
async def test_slots_are_moved_while_publications_are_made(
    cluster: ThreeNodeCluster, epochs: str
) -> None:
    # It has to be told, since it does not look by itself.
    options = {"epochs": epochs, "prefix": epochs, "probe": 600.0}
    async with traffic_at(cluster, **options) as traffic:
        owned = {slot: node for node in cluster.masters for slot in slots_of(node)}
        moved = list(owned)[:6]
        for slot in moved:
            source = owned[slot]
            target = cluster.masters[(cluster.masters.index(source) + 1) % 3]
            target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
            source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)
            # Key by key, while others are read and written.
            while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 1):
                source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
                await asyncio.sleep(0.02)
            await traffic.until_more(2)  # all is there, but the slot is not yet
            for node in (target, source, *cluster.masters):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target.name)
            await traffic.until_more(3)
            assert slot not in slots_of(source)
        for writer in traffic.writers:
            assert (writer.refused, writer.unknown) == ([], [])
    # Another server may have been started anew, for all that can be seen from here.
    assert traffic.told == 0 if epochs == "trust" else traffic.told <= len(moved)


async def test_a_replica_takes_over_when_it_is_asked_to(cluster: ThreeNodeCluster) -> None:
    """As before the server is updated: nothing gets lost."""
    first, replica = cluster.masters[0], cluster.replica
    async with traffic_at(cluster, epochs="trust", prefix="failover") as traffic:
        for old, new in ((first, replica), (replica, first)):
            new.call("CLUSTER", "FAILOVER")
            await until(lambda new=new: new.role == "master")  # type: ignore[misc]
            await traffic.until_more(10)
            await until(lambda old=old: old.call("ROLE")[3:4] == [b"connected"])  # type: ignore[misc]
    assert traffic.told == 0


# What ends


async def test_a_master_ends_and_its_replica_takes_over() -> None:
    with ThreeNodeCluster(builds()[-1]) as cluster:
        async with traffic_at(cluster) as traffic:
            others = {slot for node in cluster.masters[1:] for slot in slots_of(node)}
            mine = set(slots_of(cluster.masters[0]))
            assert mine
            assert others
            cluster.masters[0].kill()
            await until(lambda: cluster.replica.role == "master")
            await traffic.until_more(10)
            await asyncio.to_thread(cluster.masters[0].start)
            await until(lambda: cluster.masters[0].role == "slave")
        changed = [writer for writer in traffic.writers if len(writer.epochs) > 1]
        assert {len(writer.epochs) for writer in changed} == {2}
        assert 0 < len(changed) < len(ROOMS)


async def test_what_is_at_the_other_servers_goes_on_while_one_is_away() -> None:
    options = ["cluster-require-full-coverage no"]
    with ThreeNodeCluster(options=options) as cluster:
        async with node_of(cluster.url()) as node:
            for room in ROOMS:
                await node.publish(room, "x")
            away = {room for room in ROOMS if has(cluster.masters[1], room)}
            assert away
            cluster.masters[1].kill()
            await until(lambda: node.states[-1:] == ["down"])
            for room in ROOMS:
                if room in away:
                    with pytest.raises(BrokerUnavailable) as error:
                        await node.publish(room, "y")
                    assert not error.value.maybe_published
                else:
                    await node.publish(room, "y")
                    assert await node.texts(room) == ["x", "y"]


def has(server: RedisServer, channel: str) -> bool:
    """Whether a server keeps a channel."""
    return any(key.endswith(b":" + channel.encode()) for key in server.call("KEYS", "*"))
