"""What becomes of publications when the server, or the network before it, fails.

The promise is that of `Reader.check`: everybody gets each publication that was accepted, once and
in order; or is told that something is missing.
"""

import asyncio
import logging
import random
import re
import ssl
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import hiredis
import pytest

from brokers import PATIENCE, TOLD, Node, Reader, Writer, settled, text, until
from proxy import Link, Proxy
from redis_servers import REDIS_8, VALKEY, RedisServer, builds
from servers import Port
from wires import certificate
from yaat.brokers import open_broker
from yaat.brokers.contract import PresenceStats, Present, Publication
from yaat.brokers.redis import RedisBroker
from yaat.channels import ChannelOptions, Channels, node
from yaat.channels.hub import Hub
from yaat.exceptions import (
    ArgumentError,
    BrokerError,
    BrokerRefused,
    BrokerTimeout,
    BrokerUnavailable,
    PositionLost,
)

HASTY: Final[dict[str, Any]] = {"retry_base": 0.01, "retry_cap": 0.05}
"""Nobody else waits for the server, so it can be asked often whether it is back."""

CHANNELS: Final = Channels(
    {
        "kept:{id}": ChannelOptions(history=50_000, ttl=600.0, presence=True),
        "some:{id}": ChannelOptions(history=10, ttl=600.0),
    }
)
ROOM: Final = "kept:a"

SUBSCRIBES: Final = b"SUBSCRIBE"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that this test may do anything to."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=builds())
def each_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """The same, one of each build."""
    with RedisServer(request.param) as server:
        yield server


class Everything(logging.Handler):
    """Keeps all that is logged, as it would be written."""

    def __init__(self) -> None:
        super().__init__(0)
        self.texts: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """All that is logged, of every logger and level."""
    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(1)
    yield handler.texts
    root.setLevel(level)
    root.removeHandler(handler)


@asynccontextmanager
async def node_of(url: str, **options: Any) -> AsyncIterator[Node]:
    """Run a node that is connected, or with `require=False` may be."""
    node = Node(RedisBroker(url, **{**HASTY, **options}))
    await node.start()
    try:
        yield node
    finally:
        await node.broker.close()


@asynccontextmanager
async def hub_of(url: str, **options: Any) -> AsyncIterator[Hub]:
    """Run a hub that is connected."""
    hub = Hub(RedisBroker(url, **{**HASTY, **options}), CHANNELS)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.close()


def payloads(publications: list[Publication]) -> list[str]:
    return [publication.content.payload.decode() for publication in publications]


async def until_state(node: Node, state: str) -> None:
    await until(lambda: node.states[-1:] == [state], lambda: node.states)


async def until_more(writer: Writer, count: int) -> None:
    """Wait until so many more have been accepted."""
    some = len(writer.accepted) + count
    await until(lambda: len(writer.accepted) >= some)


async def published(node: Node, channel: str, what: object, **options: Any) -> None:
    """Publish, as soon as that can be done."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await node.publish(channel, what, **options)
            except BrokerUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


# The server ends


@pytest.mark.parametrize("build", builds())
async def test_a_server_that_is_killed_comes_back_with_all_that_it_accepted(build: str) -> None:
    """It writes everything down, so its word can be trusted."""
    with RedisServer(build, durable=True) as server:
        trusting: dict[str, Any] = {"epochs": "trust"}
        async with (
            node_of(server.url(), **trusting) as node,
            hub_of(server.url(), **trusting) as hub,
            hub_of(server.url(), **trusting) as other,
            Reader(hub.channel(ROOM)) as here,
            Reader(other.channel(ROOM)) as there,
        ):
            await node.broker.subscribe(ROOM)
            writer, is_over = Writer(hub.channel(ROOM)), asyncio.Event()
            writing = asyncio.create_task(writer.write_until(is_over.is_set))
            for outages in (1, 2):
                await until_more(writer, 50)
                await asyncio.to_thread(server.restart)
                states = ["up", *["down", "up"] * outages]
                await until(partial(lambda states: node.states == states, states))
            is_over.set()
            await writing
            await writer.write(20)
            for reader in (here, there):
                await reader.heard(writer.accepted[-1])
                reader.check(writer)
                assert TOLD not in reader.log
            assert len(writer.epochs) == 1
            assert node.missed == [{ROOM}] * 2


async def flushed(server: RedisServer) -> None:
    server.call("FLUSHALL")


async def emptied(server: RedisServer) -> None:
    await asyncio.to_thread(server.restart_empty)


async def gone_back(server: RedisServer) -> None:
    await asyncio.to_thread(server.restart_from_snapshot)


@pytest.mark.parametrize("disaster", [flushed, emptied, gone_back])
async def test_who_lost_something_is_told(
    server: RedisServer, disaster: Callable[[RedisServer], Any]
) -> None:
    async with (
        hub_of(server.url()) as hub,
        hub_of(server.url()) as other,
        Reader(other.channel(ROOM)) as reader,
    ):
        writer, channel = Writer(hub.channel(ROOM)), other.channel(ROOM)
        await writer.write(5)
        server.snapshot()
        early = (await channel.history(limit=0)).top
        await writer.write(5)
        await reader.heard(writer.accepted[-1])
        late = (await channel.history(limit=0)).top
        await disaster(server)
        await writer.write(20)  # beyond where it stood
        await settled(writer, reader)
        reader.check(writer)
        assert reader.log.count(TOLD) == 1
        assert len(writer.epochs) == 2
        for position in (early, late):
            assert not (await channel.history(since=position)).complete
            with pytest.raises(PositionLost):
                await anext(channel.subscribe(since=position))


@pytest.mark.parametrize("disaster", [emptied, gone_back])
async def test_who_lost_something_is_told_though_nobody_publishes(
    server: RedisServer, disaster: Callable[[RedisServer], Any]
) -> None:
    async with hub_of(server.url()) as hub, Reader(hub.channel(ROOM)) as reader:
        writer = Writer(hub.channel(ROOM))
        server.snapshot()
        await writer.write(5)
        await reader.heard(writer.accepted[-1])
        await disaster(server)
        await until(lambda: TOLD in reader.log, lambda: reader.log)
        await settled(writer, reader)
        reader.check(writer)


async def test_even_who_trusts_is_told_when_the_server_has_gone_back(server: RedisServer) -> None:
    async with (
        hub_of(server.url(), epochs="trust") as hub,
        Reader(hub.channel(ROOM)) as reader,
    ):
        writer = Writer(hub.channel(ROOM))
        await writer.write(5)
        server.snapshot()
        await writer.write(5)
        await reader.heard(writer.accepted[-1])
        await gone_back(server)
        await until(lambda: TOLD in reader.log, lambda: reader.log)
        await settled(writer, reader)
        reader.check(writer)
        assert len(writer.epochs) == 1


async def test_what_is_published_while_it_is_down_fails_at_once_and_is_not_sent_later() -> None:
    # Who waited for a timeout here would wait longer than this test may take.
    patient = {"timeout": 600.0, "connect_timeout": 600.0, "epochs": "trust"}
    with RedisServer(durable=True) as server:
        async with node_of(server.url(), **patient) as node:
            await node.broker.subscribe("a")
            await node.publish("a", "before")
            await node.until("a", 1)
            server.kill()
            await until_state(node, "down")
            broker = node.broker
            calls: list[Callable[[], Any]] = [
                lambda: node.publish("a", "while it is down"),
                lambda: node.publish("a", "while it is down", size=0),
                lambda: node.publish("a", "while it is down", once="key"),
                lambda: broker.subscribe("b"),
                lambda: broker.history("a"),
                lambda: broker.remove_history("a"),
                lambda: broker.presence_add("a", Present("c")),
                lambda: broker.presence_get("a"),
            ]
            for call in calls:
                with pytest.raises(BrokerUnavailable) as error:
                    await call()
                assert not error.value.maybe_published
                assert error.value.retry_in is not None
                assert 0 <= error.value.retry_in <= 0.05
                assert f"127.0.0.1:{server.port}" in str(error.value)
            await broker.unsubscribe("a")  # it is enough that it is not wanted any more
            server.start()
            await until_state(node, "up")
            assert server.subscriptions("yaat:{0}:c") == {}
            await broker.subscribe("a")
            assert not (await node.publish("a", "after", once="key")).duplicate
            assert await node.texts("a") == ["before", "after"]
            assert payloads(await node.until("a", 2)) == ["before", "after"]
            assert await broker.presence_get("a") == []


async def test_what_is_in_flight_when_it_ends_may_have_been_published(server: RedisServer) -> None:
    async with node_of(server.url()) as node:
        await node.publish("a", "x")
        server.freeze()
        calls = [asyncio.ensure_future(node.publish("a", number)) for number in range(20)]
        asking = asyncio.ensure_future(node.broker.history("a"))
        await asyncio.sleep(0)
        server.kill()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        for error in errors:
            assert isinstance(error, BrokerUnavailable)
            assert error.maybe_published
            assert not isinstance(error, BrokerTimeout)
        with pytest.raises(BrokerUnavailable):
            await asking


# It is there, and does not answer


async def test_a_frozen_server_may_have_published(server: RedisServer) -> None:
    async with node_of(server.url(), timeout=0.3) as node, node_of(server.url()) as other:
        await other.broker.subscribe("a")
        await node.publish("a", "before")
        server.freeze()
        with pytest.raises(BrokerTimeout) as error:
            await node.publish("a", "once", once="key")
        assert error.value.maybe_published
        assert f"127.0.0.1:{server.port}" in str(error.value)
        with pytest.raises(BrokerUnavailable) as unavailable:
            await node.publish("a", "never")
        assert not unavailable.value.maybe_published
        server.thaw()
        await published(node, "a", "once", once="key")
        await published(node, "a", "after")
        assert payloads(await other.until("a", 3)) == ["before", "once", "after"]
        assert await node.texts("a") == ["before", "once", "after"]


async def test_a_network_that_stands_still_may_have_published(server: RedisServer) -> None:
    async with (
        Proxy(server.port) as proxy,
        node_of(server.url()) as other,
        node_of(server.url(port=proxy.port), timeout=0.3) as node,
    ):
        await node.publish("a", "before")
        proxy.pause()
        with pytest.raises(BrokerTimeout) as error:
            await node.publish("a", "once", once="key")
        assert error.value.maybe_published
        proxy.resume()
        await published(node, "a", "once", once="key")
        assert await other.texts("a") == ["before", "once"]


async def test_who_does_not_wait_for_an_answer_does_not_upset_the_others(
    server: RedisServer,
) -> None:
    async with Proxy(server.port) as proxy, node_of(server.url(port=proxy.port)) as node:
        proxy.delay = 0.02
        calls = [asyncio.ensure_future(node.publish(f"a{number}", number)) for number in range(100)]
        await asyncio.sleep(0.01)
        for call in calls[::3]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        proxy.delay = 0.0
        for number, answer in enumerate(answers):
            if number % 3:
                assert not isinstance(answer, BaseException)
                assert answer.position == await node.top(f"a{number}")
            else:
                assert isinstance(answer, asyncio.CancelledError)


async def test_a_feed_that_is_half_open_is_found_and_nothing_is_lost(server: RedisServer) -> None:
    async with (
        Proxy(server.port, watch=[SUBSCRIBES]) as proxy,
        hub_of(server.url(port=proxy.port), probe=0.2, timeout=0.5) as hub,
        hub_of(server.url()) as other,
        Reader(hub.channel(ROOM)) as reader,
    ):
        writer = Writer(other.channel(ROOM))
        await writer.write(5)
        await reader.heard(writer.accepted[-1])
        proxy.half_open(said=SUBSCRIBES)
        await writer.write(5)
        await reader.heard(writer.accepted[-1])
        reader.check(writer)
        assert TOLD not in reader.log
        assert len(proxy.found(SUBSCRIBES)) == 1
        await until(lambda: hub.is_up)


async def test_a_feed_that_answers_and_brings_nothing_is_found(server: RedisServer) -> None:
    """As one does that leads to a server which was replaced."""

    def deafened(link: Link, data: bytes) -> bytes:
        return b"" if link in deaf and b"$7\r\nmessage\r\n" in data else data

    async with (
        Proxy(server.port, watch=[SUBSCRIBES]) as proxy,
        hub_of(server.url(port=proxy.port), probe=0.2) as hub,
        hub_of(server.url()) as other,
        Reader(hub.channel(ROOM)) as reader,
    ):
        writer = Writer(other.channel(ROOM))
        await writer.write(1)
        await reader.heard(0)
        deaf, proxy.alter = proxy.found(SUBSCRIBES), deafened
        await writer.write(5)
        await reader.heard(writer.accepted[-1])
        reader.check(writer)
        assert TOLD not in reader.log
        assert proxy.found(SUBSCRIBES) != deaf


async def test_commands_that_are_half_open_are_found(server: RedisServer) -> None:
    async with (
        Proxy(server.port, watch=[SUBSCRIBES]) as proxy,
        node_of(server.url(port=proxy.port), timeout=0.3) as node,
    ):
        await node.broker.subscribe("a")
        await node.publish("a", 0)
        for link in proxy.links:
            link.swallows = SUBSCRIBES not in link.said
        with pytest.raises(BrokerTimeout) as error:
            await node.publish("a", 1)
        assert error.value.maybe_published
        await published(node, "a", 2)
        assert payloads(await node.until("a", 3)) == ["0", "1", "2"]


async def test_a_node_that_is_cut_off_for_a_while_misses_nothing(server: RedisServer) -> None:
    async with (
        Proxy(server.port) as proxy,
        hub_of(server.url(port=proxy.port)) as hub,
        hub_of(server.url()) as other,
        Reader(hub.channel(ROOM)) as reader,
    ):
        writer = Writer(other.channel(ROOM))
        await writer.write(3)
        await proxy.refuse()
        proxy.reset()
        await until(lambda: not hub.is_up)
        await writer.write(300)
        await proxy.listen()
        await reader.heard(writer.accepted[-1])
        assert reader.log == writer.accepted


async def test_a_feed_in_which_nothing_happens_is_left_alone(server: RedisServer) -> None:
    async with (
        Proxy(server.port, watch=[SUBSCRIBES]) as proxy,
        node_of(server.url(port=proxy.port), probe=0.1) as node,
    ):
        await node.broker.subscribe("a")
        beats = server.ran("publish")
        # As often as it takes to give up a feed that is dead, twice.
        await until(lambda: server.ran("publish") >= beats + 4)
        assert node.states == ["up"]
        assert proxy.made == 2 + 1  # one more to see who it is


async def test_a_second_drop_while_it_subscribes_again(server: RedisServer) -> None:
    channels = [f"a{number}" for number in range(5000)]
    acknowledged = 0

    def reset_in_the_middle(link: Link, data: bytes) -> bytes:
        nonlocal acknowledged
        if acknowledged >= 0:
            acknowledged += data.count(b"$9\r\nsubscribe\r\n")
            if acknowledged >= 1500:
                acknowledged = -1
                link.reset()
        return data

    async with (
        Proxy(server.port, watch=[SUBSCRIBES]) as proxy,
        node_of(server.url(port=proxy.port)) as node,
        node_of(server.url()) as other,
    ):
        for begin in range(0, len(channels), 1000):
            batch = channels[begin : begin + 1000]
            await asyncio.gather(*(node.broker.subscribe(each) for each in batch))
        proxy.alter = reset_in_the_middle
        proxy.reset(said=SUBSCRIBES)
        await until(lambda: acknowledged < 0)
        await until_state(node, "up")
        assert set.union(*node.missed) == set(channels)
        assert len(server.subscriptions("yaat:{0}:c")) == 5000
        for begin in range(0, len(channels), 1000):
            batch = channels[begin : begin + 1000]
            await asyncio.gather(*(other.publish(each, "x", size=0) for each in batch))
        await until(lambda: len(node.heard) == 5000, lambda: len(node.heard))
        assert {len(heard) for heard in node.heard.values()} == {1}


async def test_of_subscribe_and_unsubscribe_the_last_call_counts_through_all_outages(
    server: RedisServer,
) -> None:
    chance = random.Random(1)
    channels = [f"a{number}" for number in range(10)]
    wanted = dict.fromkeys(channels, False)
    async with (
        Proxy(server.port) as proxy,
        node_of(server.url(port=proxy.port)) as node,
        node_of(server.url()) as other,
    ):

        async def toggle() -> None:
            for _ in range(100):
                channel = chance.choice(channels)
                with suppress(BrokerUnavailable):
                    await set_wanted(channel, is_wanted=chance.random() < 0.5)
                await asyncio.sleep(0.001)

        async def set_wanted(channel: str, *, is_wanted: bool) -> None:
            wanted[channel] = is_wanted
            broker = node.broker
            await (broker.subscribe if is_wanted else broker.unsubscribe)(channel)

        async with asyncio.TaskGroup() as group:
            toggling = [group.create_task(toggle()) for _ in range(10)]
            while not all(task.done() for task in toggling):
                proxy.reset()
                await asyncio.sleep(0.02)
        for channel in channels:  # what was not done is done now
            async with asyncio.timeout(PATIENCE):
                while True:
                    with suppress(BrokerUnavailable):
                        await set_wanted(channel, is_wanted=wanted[channel])
                        break
                    await asyncio.sleep(0.01)
        await until_state(node, "up")
        await node.broker.subscribe("last")
        for channel in (*channels, "last"):
            await other.publish(channel, "x", size=0)
        await node.until("last", 1)
        heard = {channel: payloads(node.heard[channel]).count("x") for channel in channels}
        assert heard == {channel: int(is_wanted) for channel, is_wanted in wanted.items()}
        names = server.subscriptions("yaat:{0}:c")
        assert len(names) == sum(wanted.values()) + 1
        assert set(names.values()) == {1}


# The start


async def test_who_cannot_be_reached_at_the_start_is_named() -> None:
    port = Port()
    try:
        url = f"redis://ann:s3cr3t@127.0.0.1:{port.number}"
        broker = RedisBroker(url, connect_timeout=0.3)
        with pytest.raises(BrokerUnavailable) as error:
            await Node(broker).start()
        assert f"127.0.0.1:{port.number}" in str(error.value)
        assert "s3cr3t" not in str(error.value)
        with pytest.raises(BrokerUnavailable):  # it is not started
            await broker.history("a")
    finally:
        port.release()


async def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    broker = RedisBroker(f"unix://{tmp_path}/no.sock?require=yes&connect_timeout=0.3")
    with pytest.raises(BrokerUnavailable, match=re.escape(f"{tmp_path}/no.sock")):
        await Node(broker).start()


async def test_a_server_that_is_not_required_comes_up_later() -> None:
    server = RedisServer()
    try:
        async with node_of(server.url(), require=False) as node:
            with pytest.raises(BrokerUnavailable) as error:
                await node.publish("a", "x")
            assert not error.value.maybe_published
            with pytest.raises(BrokerUnavailable):
                await node.broker.subscribe("a")
            assert "up" not in node.states
            await asyncio.to_thread(server.start)
            await until_state(node, "up")
            await node.broker.subscribe("a")
            await node.publish("a", "x")
            assert payloads(await node.until("a", 1)) == ["x"]
    finally:
        server.close()


async def test_what_speaks_another_protocol_is_no_server() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other, asyncio.timeout(PATIENCE):
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            await Node(RedisBroker(f"redis://127.0.0.1:{port}", connect_timeout=0.3)).start()


async def test_what_accepts_and_says_nothing_is_given_up() -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    other = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other, asyncio.timeout(PATIENCE):
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port}"):
            await Node(RedisBroker(f"redis://127.0.0.1:{port}", connect_timeout=0.3)).start()


async def test_a_start_that_is_given_up_leaves_nothing_behind(server: RedisServer) -> None:
    others = asyncio.all_tasks()
    for turns in (0, 1, 2, 5):
        broker = RedisBroker(server.url(), **HASTY)
        starting = asyncio.create_task(Node(broker).start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        await broker.close()
    server.freeze()
    broker = RedisBroker(server.url(), **HASTY)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await Node(broker).start()
    later = RedisBroker(server.url(), require=False, **HASTY)
    await Node(later).start()
    async with asyncio.timeout(5):
        await later.close()
    assert asyncio.all_tasks() == others
    server.thaw()
    await until(lambda: not [each for each in server.clients() if each["name"] == "yaat"])


async def test_it_is_closed_while_the_server_is_away(server: RedisServer) -> None:
    others = asyncio.all_tasks()
    node = Node(RedisBroker(server.url(), **HASTY))
    await node.start()
    server.kill()
    await until_state(node, "down")
    async with asyncio.timeout(5):
        await asyncio.gather(node.broker.close(), node.broker.close())
    assert asyncio.all_tasks() == others


async def test_it_is_closed_while_the_server_is_frozen(server: RedisServer) -> None:
    others = asyncio.all_tasks()
    node = Node(RedisBroker(server.url(), **HASTY))
    await node.start()
    server.freeze()
    call = asyncio.ensure_future(node.publish("a", "x"))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await node.broker.close()
        with pytest.raises(BrokerUnavailable):
            await call
    assert asyncio.all_tasks() == others
    server.thaw()


# Slow readers, and what gets lost on the way


@pytest.mark.parametrize("channel", ["kept:a", "some:a"])
async def test_a_node_that_reads_too_slowly_is_cut_off_and_catches_up(channel: str) -> None:
    """What is kept is brought to it; of what is not kept any more it is told."""
    count = 500

    def publish(url: str) -> None:
        async def work() -> None:
            async with hub_of(url) as other:
                for number in range(count):
                    await other.channel(channel).publish([number, "x" * 10_000])

        asyncio.run(work())

    limit = "client-output-buffer-limit pubsub 1mb 1mb 0"
    with RedisServer(options=[limit]) as slow:
        url = f"unix://{slow.path}"  # of which the kernel holds less than of a TCP connection
        async with hub_of(url) as hub, Reader(hub.channel(channel)) as reader:
            await hub.channel(channel).publish([-1])
            await until(lambda: reader.log)
            thread = threading.Thread(target=publish, args=[url])
            thread.start()
            thread.join()  # the event loop stands still
            if channel == "kept:a":
                await until(lambda: reader.log[-1][0] == count - 1)
                assert [number for number, *_ in reader.log] == list(range(-1, count))
            else:
                await until(lambda: TOLD in reader.log)
                numbers = [entry[0] for entry in reader.log if entry is not TOLD]
                assert numbers == sorted(set(numbers))
            assert slow.info("stats")["client_output_buffer_limit_disconnections"] != "0"


async def test_a_gap_in_a_quiet_channel_is_found(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "CHECK", (0.05, 0.1))
    async with (
        Proxy(server.port) as proxy,
        hub_of(server.url(port=proxy.port)) as hub,
        hub_of(server.url()) as other,
        Reader(hub.channel(ROOM)) as reader,
    ):
        writer = Writer(other.channel(ROOM))
        await writer.write(3)
        await reader.heard(2)
        is_dropped = proxy.drop(ROOM.encode())
        await writer.write(1)
        async with asyncio.timeout(PATIENCE):
            await is_dropped.wait()
        await reader.heard(3)
        assert reader.log == [0, 1, 2, 3]


async def test_a_quiet_channel_that_was_wiped_is_found(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "CHECK", (0.05, 0.1))
    async with hub_of(server.url()) as hub, Reader(hub.channel(ROOM)) as reader:
        await Writer(hub.channel(ROOM)).write(3)
        await reader.heard(2)
        server.call("FLUSHALL")
        await until(lambda: TOLD in reader.log, lambda: reader.log)
        assert reader.log == [0, 1, 2, TOLD]


async def test_one_that_is_lost_is_brought_before_the_next(server: RedisServer) -> None:
    async with (
        Proxy(server.port) as proxy,
        hub_of(server.url(port=proxy.port)) as hub,
        hub_of(server.url()) as other,
        Reader(hub.channel(ROOM)) as reader,
    ):
        writer = Writer(other.channel(ROOM))
        await writer.write(1)
        await reader.heard(0)
        is_dropped = proxy.drop(ROOM.encode())
        await writer.write(1)
        async with asyncio.timeout(PATIENCE):
            await is_dropped.wait()
        await writer.write(1)
        await reader.heard(2)
        assert reader.log == [0, 1, 2]


# Presence


async def test_who_is_there_is_there_again_after_the_server_forgot(server: RedisServer) -> None:
    async with hub_of(server.url()) as hub, hub_of(server.url()) as other:
        ann, ben = Present("c1", "ann", {"a": 1}), Present("c2", "ben")
        await hub.arrive(ROOM, ann)
        await other.arrive(ROOM, ben)
        await asyncio.to_thread(server.restart_empty)
        there: list[Present] = []
        async with asyncio.timeout(PATIENCE):
            while len(there) < 2:
                try:
                    there = await hub.channel(ROOM).presence()
                except BrokerUnavailable:
                    await asyncio.sleep(0.01)
        assert {each.client: each for each in there} == {"c1": ann, "c2": ben}
        await hub.depart(ROOM, ann)
        assert await other.channel(ROOM).presence() == [ben]


async def test_a_restart_is_nobody_coming_or_going(server: RedisServer) -> None:
    async with hub_of(server.url()) as hub, hub_of(server.url()) as other:
        events: list[Any] = []

        async def note() -> None:
            async for event in other.channel(ROOM).presence_events():
                events.append((event.kind, event.present.client))  # noqa: PERF401 - one by one

        noting = asyncio.create_task(note())
        await until(lambda: server.subscriptions("yaat:{0}:c"))
        await hub.arrive(ROOM, Present("c1"))
        await until(lambda: len(events) == 1)
        await asyncio.to_thread(server.restart_empty)
        await until(lambda: server.subscriptions("yaat:{0}:c"))
        await until(lambda: hub.is_up and other.is_up)
        await until(lambda: server.call("KEYS", "*"))
        await hub.depart(ROOM, Present("c1"))
        await until(lambda: len(events) == 2)
        assert events == [("join", "c1"), ("leave", "c1")]
        noting.cancel()
        await asyncio.wait([noting])


# What the server refuses


async def test_a_full_server_refuses_and_nothing_is_half_done(each_server: RedisServer) -> None:
    server = each_server
    async with node_of(server.url()) as node:
        await node.broker.subscribe("a")
        before = await node.publish("a", "before")
        server.call("CONFIG", "SET", "maxmemory", 1)
        for channel in ("a", "new"):
            with pytest.raises(BrokerRefused):
                await node.publish(channel, "while it is full", once="key")
        with pytest.raises(BrokerRefused):
            await node.broker.presence_add("a", Present("c"))
        assert await node.top("a") == before.position
        server.call("CONFIG", "SET", "maxmemory", 0)
        after = await node.publish("a", "after", once="key")
        assert not after.duplicate
        assert after.offset == before.offset + 1
        assert payloads(await node.until("a", 2)) == ["before", "after"]
        assert await node.texts("a") == ["before", "after"]
        assert node.states == ["up"]


def acl(server: RedisServer, rules: str) -> None:
    """Change what the user `ann` may do."""
    server.call("ACL", "SETUSER", "ann", *rules.split())


@pytest.mark.parametrize("build", builds())
async def test_who_is_not_allowed_to_is_refused(build: str) -> None:
    with RedisServer(build) as server:
        acl(server, "on >pw ~yaat:* resetchannels &yaat:* +@all -@dangerous +info")
        async with node_of(f"redis://ann:pw@127.0.0.1:{server.port}") as node:
            await node.broker.subscribe("a")
            await node.publish("a", "x")
            acl(server, "resetkeys")
            with pytest.raises(BrokerRefused):
                await node.publish("a", "y")
            with pytest.raises(BrokerRefused):
                await node.broker.history("a")
            acl(server, "~yaat:*")
            assert (await node.publish("a", "z")).offset == 2
            assert payloads(await node.until("a", 2)) == ["x", "z"]
            assert node.states == ["up"]


async def test_channels_that_are_not_allowed_are_refused(server: RedisServer) -> None:
    acl(server, "on >pw ~* resetchannels &yaat:{0}:n:* +@all")
    async with node_of(f"redis://ann:pw@127.0.0.1:{server.port}") as node:
        with pytest.raises(BrokerRefused):
            await node.broker.subscribe("a")
        for size in (0, 10):
            with pytest.raises(BrokerRefused):
                await node.publish("a", "x", size=size)
        assert node.states == ["up"]


async def test_a_server_that_becomes_a_replica_is_none_to_publish_to(
    each_server: RedisServer,
) -> None:
    server = each_server
    async with node_of(server.url()) as node:
        await node.broker.subscribe("a")
        before = await node.publish("a", "before")
        server.call("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(BrokerUnavailable) as error:
            await node.publish("a", "while it follows another")
        assert not error.value.maybe_published
        await until_state(node, "down")
        for _ in range(20):  # it is not taken for anything else when it is connected to again
            with pytest.raises(BrokerUnavailable, match="takes no publications"):
                await node.publish("a", "while it follows another")
            await asyncio.sleep(0.01)
        server.call("REPLICAOF", "NO", "ONE")
        await until_state(node, "up")
        after = await node.publish("a", "after")
        assert after.offset == before.offset + 1
        assert payloads(await node.until("a", 2)) == ["before", "after"]
        assert node.states == ["up", "down", "up"]


async def test_a_server_without_the_replicas_that_it_needs_publishes_nothing(
    server: RedisServer,
) -> None:
    """Redis 6.2 does not look at them for a script."""
    async with node_of(server.url()) as node:
        await node.broker.subscribe("a")
        before = await node.publish("a", "before")
        server.call("CONFIG", "SET", "min-replicas-to-write", 1)
        with pytest.raises(BrokerError) as error:
            await node.publish("a", "while it has none")
        assert not getattr(error.value, "maybe_published", False)
        server.call("CONFIG", "SET", "min-replicas-to-write", 0)
        assert (await node.publish("a", "after")).offset == before.offset + 1
        assert payloads(await node.until("a", 2)) == ["before", "after"]


async def test_a_password_that_was_changed_is_an_outage(server: RedisServer) -> None:
    async with node_of(server.url()) as node:
        await node.broker.subscribe("a")
        before = await node.publish("a", "before")
        server.calls(
            [
                ("CONFIG", "SET", "requirepass", "s3cr3t"),
                ("CLIENT", "KILL", "TYPE", "pubsub"),
                ("CLIENT", "KILL", "TYPE", "normal"),  # but for this one
            ]
        )
        await until_state(node, "down")
        why = ""
        async with asyncio.timeout(PATIENCE):
            while "NOAUTH" not in why:
                with pytest.raises(BrokerError) as error:
                    await node.publish("a", "while it is another")
                assert not getattr(error.value, "maybe_published", False)
                why = str(error.value)
                await asyncio.sleep(0.01)
        server.calls([("AUTH", "s3cr3t"), ("CONFIG", "SET", "requirepass", "")])
        await until_state(node, "up")
        after = await node.publish("a", "after")
        assert after.position == (before.offset + 1, before.epoch)
        assert payloads(await node.until("a", 2)) == ["before", "after"]


async def test_who_gives_a_wrong_password_is_refused_at_once(server: RedisServer) -> None:
    server.call("CONFIG", "SET", "requirepass", "right")
    for login in (":wr0ng", "ann:wr0ng"):
        broker = RedisBroker(f"redis://{login}@127.0.0.1:{server.port}", connect_timeout=600.0)
        with pytest.raises(BrokerRefused) as error:
            await Node(broker).start()
        assert f"127.0.0.1:{server.port}" in str(error.value)
        assert "wr0ng" not in str(error.value)
    with pytest.raises(BrokerError, match=f"127.0.0.1:{server.port}"):
        await Node(RedisBroker(server.url(), connect_timeout=600.0)).start()


async def test_a_server_that_loads_what_it_kept_is_waited_for() -> None:
    options = ["key-load-delay 300", "loading-process-events-interval-bytes 1024"]
    with RedisServer(durable=True, options=options) as server:
        async with node_of(server.url(), epochs="trust") as node:
            await node.broker.subscribe("a")
            before = await node.publish("a", "before")
            server.calls([("SET", number, "x") for number in range(3000)])
            server.kill()
            await until_state(node, "down")
            server.launch()
            await until(lambda: is_loading(server))
            with pytest.raises(BrokerUnavailable) as error:
                await node.publish("a", "while it loads")
            assert not error.value.maybe_published
            await until_state(node, "up")
            after = await node.publish("a", "after")
            assert after.position == (before.offset + 1, before.epoch)
            assert payloads(await node.until("a", 2)) == ["before", "after"]


def is_loading(server: RedisServer) -> bool:
    try:
        server.call("PING")
    except hiredis.ReplyError as error:
        return str(error).startswith("LOADING")
    except ConnectionError:
        return False
    raise AssertionError("it has loaded already")


# What others do at the server


async def test_scripts_that_are_forgotten_are_loaded_again(server: RedisServer) -> None:
    async with node_of(server.url()) as node:
        await node.broker.subscribe("a")

        async def publish(name: int) -> None:
            for number in range(50):
                await node.publish("a", f"{name} {number}", size=1000)
                await node.broker.presence_add("a", Present(str(name)))

        async with asyncio.TaskGroup() as group:
            for name in range(8):
                group.create_task(publish(name))
            for count in range(0, 400, 40):
                await node.until("a", count)
                server.call("SCRIPT", "FLUSH")
        heard = await node.until("a", 400)
        assert [each.offset for each in heard] == list(range(1, 401))
        assert [each.prev for each in heard] == list(range(400))
        assert len(await node.texts("a")) == 400


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_a_connection_that_is_killed_is_made_anew(server: RedisServer, kind: str) -> None:
    async with (
        hub_of(server.url()) as hub,
        hub_of(server.url()) as other,
        Reader(hub.channel(ROOM)) as here,
        Reader(other.channel(ROOM)) as there,
    ):
        writer, is_over = Writer(hub.channel(ROOM)), asyncio.Event()
        writing = asyncio.create_task(writer.write_until(is_over.is_set))
        for _ in range(3):
            await until_more(writer, 20)
            connections = server.clients(kind)
            assert len(connections) == 2
            for connection in connections:
                server.call("CLIENT", "KILL", "ID", connection["id"])
            await until(lambda: len(server.clients(kind)) == 2)
        await until(lambda: hub.is_up and other.is_up)
        is_over.set()
        await writing
        await writer.write(20)
        for reader in (here, there):
            await reader.heard(writer.accepted[-1])
            reader.check(writer)
            assert TOLD not in reader.log
        assert len(writer.epochs) == 1
        assert bool(writer.unknown) is (kind == "normal")


def keys_of(server: RedisServer, kind: str) -> list[bytes]:
    """Return the keys of one kind: a channel has one stream and one hash."""
    keys = server.call("KEYS", "*")
    return [key for key in keys if server.call("TYPE", key) == kind.encode()]


async def test_a_history_that_was_evicted_is_missed_by_those_only_who_need_it(
    server: RedisServer,
) -> None:
    async with hub_of(server.url()) as hub, Reader(hub.channel(ROOM)) as reader:
        writer, channel = Writer(hub.channel(ROOM)), hub.channel(ROOM)
        await writer.write(3)
        top = (await channel.history(limit=0)).top
        (stream,) = keys_of(server, "stream")
        server.call("DEL", stream)
        assert (await channel.history(since=top)).complete
        await writer.write(3)
        await reader.heard(writer.accepted[-1])
        assert reader.log == writer.accepted
        assert (await channel.history(since=top)).complete
        assert not (await channel.history(since=top._replace(offset=1))).complete


async def test_a_position_that_was_evicted_begins_anew(server: RedisServer) -> None:
    async with hub_of(server.url()) as hub, Reader(hub.channel(ROOM)) as reader:
        writer, channel = Writer(hub.channel(ROOM)), hub.channel(ROOM)
        await writer.write(3)
        await reader.heard(2)
        top = (await channel.history(limit=0)).top
        (known,) = keys_of(server, "hash")
        server.call("DEL", known)
        await writer.write(5)
        await settled(writer, reader)
        reader.check(writer)
        assert TOLD in reader.log
        assert not (await channel.history(since=top)).complete
        assert len(writer.epochs) == 2


@pytest.mark.parametrize("number", range(4))
async def test_presence_that_was_evicted_in_part_is_whole_after_a_refresh(
    server: RedisServer, number: int
) -> None:
    async with node_of(server.url()) as node:
        there = [Present("c1", "ann", 1), Present("c2", "ann"), Present("c3")]
        for each in there:
            await node.broker.presence_add("a", each)
        keys = sorted(server.call("KEYS", "*"))
        assert len(keys) == 4
        server.call("DEL", keys[number])
        await node.broker.presence_refresh([("a", each) for each in there])
        found = await node.broker.presence_get("a")
        assert {each.client: each for each in found} == {each.client: each for each in there}
        assert await node.broker.presence_stats("a") == PresenceStats(3, 1)
        for each in there:
            assert await node.broker.presence_remove("a", each.client)
        assert await node.broker.presence_get("a") == []
        assert await node.broker.presence_stats("a") == PresenceStats(0, 0)


@pytest.mark.parametrize("kind", ["stream", "hash"])
async def test_a_key_that_is_something_else_is_an_error_of_that_channel(
    each_server: RedisServer, kind: str
) -> None:
    server = each_server
    async with hub_of(server.url()) as hub, Reader(hub.channel(ROOM)) as reader:
        writer, channel = Writer(hub.channel(ROOM)), hub.channel(ROOM)
        await writer.write(3)
        await reader.heard(2)
        (key,) = keys_of(server, kind)
        server.call("SET", key, "x")
        with pytest.raises(BrokerRefused, match="WRONGTYPE"):
            await channel.publish("x")
        with pytest.raises(BrokerRefused, match="WRONGTYPE"):
            await channel.history()
        await hub.channel("kept:b").publish("x")
        server.call("DEL", key)
        await settled(writer, reader)
        reader.check(writer)
        await until(lambda: hub.is_up)


GARBAGE: Final = [b"", b"\x00", b"\x01", b"\x01" + bytes(7), b"\x01" * 17, b"\x01" * 300, b"hello"]


async def test_what_others_publish_there_is_logged_and_nothing_else(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with node_of(server.url()) as node:
        await node.broker.subscribe("a")
        before = await node.publish("a", "before")
        await node.until("a", 1)
        real = server.call("XRANGE", keys_of(server, "stream")[0], "-", "+")[0][1][1]
        name = next(iter(server.subscriptions("yaat:{0}:c")))
        for garbage in (*GARBAGE, real, real[::-1]):
            server.call("PUBLISH", name, garbage)
        await node.publish("a", "after")
        heard = await node.until("a", 2)
        assert payloads(heard) == ["before", "after"]
        assert heard[1].prev == before.offset
        assert node.states == ["up"]
        strange = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(strange) == len(GARBAGE) + 2
        assert not any(record.exc_info for record in strange)


@pytest.mark.parametrize("entry", ["d x", "foo bar", "d x x 1", "x 99999999999999 d hello"])
async def test_what_others_put_into_the_history_is_no_end_of_the_channel(
    server: RedisServer, entry: str
) -> None:
    async with hub_of(server.url()) as hub, Reader(hub.channel(ROOM)) as reader:
        writer, channel = Writer(hub.channel(ROOM)), hub.channel(ROOM)
        await writer.write(3)
        await reader.heard(2)
        (stream,) = keys_of(server, "stream")
        server.call("XADD", stream, "*", *entry.split())
        with suppress(BrokerRefused):
            await channel.history()
        with suppress(BrokerRefused):
            await channel.publish(-1)
        await hub.channel("kept:b").publish("x")
        await channel.remove_history()
        await settled(writer, reader)
        reader.log = [each for each in reader.log if each != -1]
        reader.check(writer)
        await until(lambda: hub.is_up)


# Secrets


def told(error: BaseException) -> str:
    """Return all that a traceback shows, and what the errors hold."""
    lines = traceback.format_exception(error)
    seen: BaseException | None = error
    while seen is not None:
        lines += [repr(seen), str(seen), repr(seen.args), repr(vars(seen))]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(lines)


async def test_nobody_learns_the_password(logged: list[str]) -> None:
    user, password = "ann", "s3cr%t@w/rd:"
    said: list[str] = []
    with RedisServer(user=user, password=password, durable=True) as server:
        url = server.url()
        assert "s3cr%25t%40w%2Frd%3A@" in url
        async with node_of(url, epochs="trust", timeout=0.3) as node:
            said += [repr(node.broker), str(node.broker), repr(vars(node.broker))]
            await node.broker.subscribe("a")
            await node.publish("a", "x")
            server.freeze()
            with pytest.raises(BrokerTimeout) as timeout:
                await node.publish("a", "x")
            server.kill()
            await until_state(node, "down")
            with pytest.raises(BrokerUnavailable) as unavailable:
                await node.publish("a", "x")
            await asyncio.to_thread(server.start)
            await until_state(node, "up")
            server.call("ACL", "SETUSER", user, "resetkeys")
            with pytest.raises(BrokerRefused) as refused:
                await node.publish("a", "x")
            said += map(told, (timeout.value, unavailable.value, refused.value))
        wrong = url.replace("s3cr", "S3CR")
        with pytest.raises(BrokerRefused) as rejected:
            await Node(RedisBroker(wrong)).start()
        said.append(told(rejected.value).replace("S3CR", "s3cr"))
    with pytest.raises(BrokerUnavailable) as unreachable:
        await Node(RedisBroker(url, connect_timeout=0.3)).start()
    said.append(told(unreachable.value))
    for bad in (
        f"{url}?nonsense=1",
        f"{url}?timeout=never",
        f"{url}/x/y",
        url.replace("redis://", "rediss+nothing://"),
        url.replace("redis://", ""),
        url.replace("redis:", ""),
        url.partition("@")[0].rpartition(":")[2],
        url.replace("127.0.0.1", "[::1"),
        url.replace(f":{server.port}", ":port"),
    ):
        with pytest.raises(ArgumentError) as argument:
            open_broker(bad)
        said.append(str(argument.value))
        said.append(repr(argument.value.__cause__))
    assert logged
    for line in (*said, *logged):
        assert "s3cr" not in line, line


async def test_nobody_learns_the_password_of_a_url_in_a_traceback() -> None:
    """A traceback prints the lines of the source and what is said in the error: no values."""
    password = "s3cr3t"
    with pytest.raises(ArgumentError) as error:
        RedisBroker(f"redis://ann:{password}@127.0.0.1/x")
    assert password not in told(error.value)


# Encrypted, and by a socket


async def test_it_speaks_tls(server: RedisServer, tmp_path: Path) -> None:
    paths = certificate(tmp_path)
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(*paths)
    async with Proxy(server.port, tls=own) as proxy:
        url = server.url("rediss", port=proxy.port)
        for query in (f"?ssl_ca_certs={paths[0]}", "?ssl_cert_reqs=none"):
            async with node_of(url + query) as node:
                await node.broker.subscribe("a")
                await node.publish("a", "x")
                await node.until("a", 1)
                proxy.reset()
                await until(lambda: node.states == ["up", "down", "up"])
                await published(node, "a", "y")
                assert payloads(await node.until("a", 2)) == ["x", "y"]
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{proxy.port}.*certificate"):
            await Node(RedisBroker(url, connect_timeout=0.3)).start()
        localhost = url.replace("127.0.0.1", "localhost") + f"?ssl_ca_certs={paths[0]}"
        with pytest.raises(BrokerUnavailable, match="localhost"):  # it is of 127.0.0.1
            await Node(RedisBroker(localhost, connect_timeout=0.3)).start()
        async with node_of(localhost + "&ssl_check_hostname=no") as node:
            await node.publish("a", "z")


@pytest.mark.parametrize("build", [VALKEY, REDIS_8])
async def test_it_speaks_by_a_unix_socket(build: str) -> None:
    with RedisServer(build) as server:
        async with node_of(f"unix://{server.path}?db=3") as node, node_of(server.url()) as other:
            for each in (node, other):
                await each.broker.subscribe("a")
            await node.publish("a", "x")
            await node.until("a", 1)
            await other.publish("a", "y")
            await other.until("a", 1)
            # Another database is another server, to all that can be seen.
            assert payloads(node.heard["a"]) == ["x"]
            assert payloads(other.heard["a"]) == ["y"]
            assert await node.texts("a") == ["x"]


async def test_two_prefixes_are_two_servers(server: RedisServer) -> None:
    async with node_of(server.url()) as node, node_of(f"{server.url()}?prefix=other") as other:
        for each in (node, other):
            await each.broker.subscribe("a")
            await each.broker.presence_add("a", Present(f"c{id(each)}"))
        await node.publish("a", text("x"))
        await other.publish("a", text("y"))
        assert payloads(await node.until("a", 1)) == ["x"]
        assert payloads(await other.until("a", 1)) == ["y"]
        assert await other.texts("a") == ["y"]
        assert len(await node.broker.presence_get("a")) == 1
