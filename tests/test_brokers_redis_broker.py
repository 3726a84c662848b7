"""The broker itself: what it asks of the servers, and what it makes of their answers."""

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from brokers import Node, text, until
from redis_servers import RedisServer
from scripted import idle
from scripted_redis import (
    SILENCE,
    Answer,
    Peer,
    Server,
    array,
    bulk,
    error,
    in_network,
    info,
    number,
    server_at,
    slots,
)
from yaat.brokers import open_broker
from yaat.brokers.contract import Content, Position, PresenceStats, Present
from yaat.brokers.redis import RedisBroker, scripts
from yaat.brokers.redis.broker import MANY, TRIES
from yaat.brokers.redis.keys import Keys
from yaat.exceptions import (
    BrokerError,
    BrokerRefused,
    BrokerTimeout,
    BrokerUnavailable,
    ChannelNameError,
    TooBigError,
    UsageError,
)

NUMBERS = itertools.count()
ANSWER = array(number(7), bulk("epoch"), number(0))
PUBLISHED = (7, "epoch", False)


# A real server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


Make = Callable[..., Any]


@pytest.fixture
async def make(server: RedisServer) -> AsyncIterator[Make]:
    """Call it for a node that is started; all of them have keys of their own."""
    made: list[Node] = []
    prefix = f"t{next(NUMBERS)}"

    async def start(**options: Any) -> Node:
        node = Node(RedisBroker(server.url(), **{"prefix": prefix, **options}))
        await node.start()
        made.append(node)
        return node

    yield start
    for node in made:
        await node.broker.close()


async def test_what_is_published_is_kept_and_comes(make: Make) -> None:
    here, there = await make(), await make()
    await there.broker.subscribe("a")
    content = Content("json", b'{"a": 1}', "key", "sender")
    first = await here.publish("a", content)
    second = await here.publish("a", "two", once="k")
    again = await here.publish("a", "three", once="k")
    assert (first.offset, second.offset) == (1, 2)
    assert again == (2, first.epoch, True)
    live = await there.until("a", 2)
    kept, top = await here.broker.history("a")
    assert kept == live
    assert [each.prev for each in kept] == [0, 1]
    assert kept[0].content == content
    assert top == second.position


async def test_what_is_not_kept_comes_all_the_same(make: Make) -> None:
    here = await make()
    await here.broker.subscribe("a")
    assert await here.publish("a", "one", size=0) == (0, "", False)
    assert await here.publish("a", "two", ttl=0, once="k") == (0, "", False)
    assert await here.publish("a", "three", ttl=0, once="k") == (0, "", True)
    live = await here.until("a", 2)
    assert [(each.data, each.offset, each.epoch, each.prev) for each in live] == [
        ("one", 0, "", 0),
        ("two", 0, "", 0),
    ]
    assert live[1].time == pytest.approx(live[0].time, abs=60)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["1", "2", "3", "4", "5"]),
        ({"limit": 2}, ["1", "2"]),
        ({"limit": 0}, []),
        ({"reverse": True}, ["5", "4", "3", "2", "1"]),
        ({"reverse": True, "limit": 2}, ["5", "4"]),
        ({"since": Position(3, "any")}, ["4", "5"]),
        ({"since": Position(3, ""), "limit": 1}, ["4"]),
        ({"since": Position(3, ""), "reverse": True}, ["2", "1"]),
        ({"since": Position(0, "")}, ["1", "2", "3", "4", "5"]),
        ({"since": Position(0, ""), "reverse": True}, []),
        ({"since": Position(1, ""), "reverse": True}, []),
        ({"since": Position(5, "")}, []),
        ({"since": Position(2**63 - 1, "")}, []),
        ({"since": Position(2**80, "")}, []),
        ({"since": Position(2**80, ""), "reverse": True}, ["5", "4", "3", "2", "1"]),
        ({"limit": 2**62}, ["1", "2", "3", "4", "5"]),
    ],
)
async def test_history(make: Make, options: dict[str, Any], expected: list[str]) -> None:
    here = await make()
    for each in range(1, 6):
        await here.publish("a", each)
    assert await here.texts("a", **options) == expected
    await here.broker.remove_history("a")
    assert await here.texts("a", **options) == []
    assert (await here.top("a")).offset == 5


@pytest.mark.parametrize("bound", [1e-9, 0.0004, 1e6, 1e300, math.inf])
async def test_bounds_at_their_edges(make: Make, bound: float) -> None:
    here = await make(position_ttl=bound, presence_ttl=bound, once_ttl=bound)
    published = await here.publish("a", "x", ttl=bound, size=1, once="k")
    assert published.offset == 1
    await here.broker.presence_add("a", Present("c"))
    if bound > 1:
        assert await here.texts("a") == ["x"]
        assert await here.broker.presence_get("a") == [Present("c")]
        assert (await here.publish("a", "x", once="k")).duplicate


@pytest.mark.parametrize("size", [1, 10**15, 10**30])
async def test_sizes_at_their_edges(make: Make, size: int) -> None:
    here = await make()
    for each in range(3):
        await here.publish("a", each, size=size)
    assert await here.texts("a") == (["2"] if size == 1 else ["0", "1", "2"])


@pytest.mark.parametrize("name", ["{" * 255, "}{", "{}", "ä" * 127, "\r\n\0", "a" * 255, "*"])
async def test_odd_names(make: Make, name: str) -> None:
    here = await make()
    await here.broker.subscribe(name)
    await here.publish(name, "x", once=name)
    await here.broker.presence_add(name, Present(name, name))
    assert [each.data for each in await here.until(name, 1)] == ["x"]
    assert await here.broker.presence_stats(name) == PresenceStats(1, 1)


async def test_databases_do_not_hear_each_other(make: Make) -> None:
    one, other = await make(db=1), await make(db=2)
    for node in (one, other):
        await node.broker.subscribe("a")
    await one.publish("a", "x")
    await other.publish("a", "y")
    assert [each.data for each in await one.until("a", 1)] == ["x"]
    assert [each.data for each in await other.until("a", 1)] == ["y"]
    assert await one.texts("a") == ["x"]


async def test_what_is_refused_before_anything_is_asked(make: Make) -> None:
    here = await make(max_payload=10)
    for name in ("", "a" * 256, "\ud800"):
        with pytest.raises(ChannelNameError):
            await here.publish(name, "x")
        with pytest.raises(ChannelNameError):
            await here.broker.subscribe(name)
        with pytest.raises(ChannelNameError):
            await here.broker.unsubscribe(name)
    with pytest.raises(TooBigError):
        await here.publish("a", "x" * 11)
    await here.publish("a", Content("text", b"x" * 10, "a key that does not count"))
    for once in ("\ud800", None):
        content = Content("text", b"x", "\ud800") if once is None else text("x")
        with pytest.raises(UnicodeEncodeError):
            await here.publish("a", content, once=once)
    with pytest.raises(UnicodeEncodeError):
        await here.broker.presence_remove("a", "\ud800")
    assert (await here.publish("a", "y")).offset == 2


async def test_something_strange_in_a_history_is_missing(
    make: Make, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    here = await make()
    for each in range(3):
        await here.publish("a", each)
    (stream,) = (key for key in server.call("KEYS", f"{here.broker.settings.prefix}:*:s:a"))
    (*_, (last, _)) = server.call("XRANGE", stream, "-", "+")
    server.call("XDEL", stream, last)
    server.call("XADD", stream, f"3-{2**53}", "d", "strange", "x", 10**15)
    assert await here.texts("a") == ["0", "1"]
    assert (await here.top("a")).offset == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_presence(make: Make) -> None:
    here = (await make()).broker
    there = [Present("a", "u", {"x": [1]}), Present("b", None, None), Present("c", "u", "ä")]
    for present in there:
        assert await here.presence_add("r", present)
        assert not await here.presence_add("r", present)
    assert await here.presence_get("r") == there
    assert await here.presence_stats("r") == PresenceStats(3, 1)
    assert await here.presence_remove("r", "a")
    assert not await here.presence_remove("r", "a")
    assert await here.presence_get("r") == there[1:]
    assert await here.presence_get("other") == []


async def test_very_many_are_refreshed(make: Make) -> None:
    here = (await make()).broker
    await here.presence_refresh([])
    entries = [(f"r{each % 150}", Present(f"c{each}")) for each in range(600)]
    entries += [("big", Present(f"c{each}", f"u{each}")) for each in range(2 * MANY + 1)]
    await here.presence_refresh(iter(entries))
    assert await here.presence_stats("big") == PresenceStats(2 * MANY + 1, 2 * MANY + 1)
    assert await here.presence_stats("r149") == PresenceStats(4, 0)


async def test_very_many_who_have_gone_are_swept(make: Make, server: RedisServer) -> None:
    here = (await make()).broker
    await here.presence_refresh([("r", Present(f"c{each}", "u")) for each in range(2500)])
    (key,) = server.call("KEYS", f"{here.settings.prefix}:*:pz:r")
    server.calls([("ZADD", key, "XX", 1, f"c{each}") for each in range(2400)])
    assert await here.presence_stats("r") == PresenceStats(100, 1)


async def test_two_epochs_by_two_servers_of_one_history(tmp_path: Any) -> None:
    for epochs in ("strict", "trust"):
        with RedisServer(durable=True) as server:
            broker = RedisBroker(server.url(), epochs=epochs)
            node = Node(broker)
            await node.start()
            await broker.subscribe("a")
            before = await node.publish("a", "one")
            await node.until("a", 1)
            server.restart()
            await until(partial(node.states.__eq__, ["up", "down", "up"]))
            after = await node.publish("a", "two")
            assert (before.epoch == after.epoch) == (epochs == "trust")
            assert after.offset == (2 if epochs == "trust" else 1)
            assert node.missed == [{"a"}]
            await node.until("a", 2)
            await broker.close()


async def test_a_scripts_name_is_forgotten(make: Make, server: RedisServer) -> None:
    here = await make()
    await here.publish("a", "one")
    server.call("SCRIPT", "FLUSH")
    outcomes = await asyncio.gather(*(here.publish("a", each) for each in range(50)))
    assert sorted(each.offset for each in outcomes) == [*range(2, 52)]


async def test_ten_thousand_channels(make: Make, server: RedisServer) -> None:
    here = await make(timeout=30)
    names = [f"room:{each}" for each in range(10_000)]
    await asyncio.gather(*map(here.broker.subscribe, names))
    prefix = here.broker.settings.prefix
    assert len(server.subscriptions(prefix)) == 10_000
    await asyncio.gather(*(here.publish(name, "x", size=0) for name in names))
    await here.until(names[-1], 1)
    assert all(len(here.heard[name]) == 1 for name in names)
    await asyncio.gather(*map(here.broker.unsubscribe, names))
    assert server.subscriptions(prefix) == {}


# A scripted server


async def node_to(url: str = "redis://h", /, **answers: Answer) -> tuple[Node, Server]:
    """Return a node that is started, and the server, which has these answers from now on."""
    server = server_at()
    server.answers.setdefault("EVALSHA", ANSWER)
    node = Node(RedisBroker(url))
    await node.start()
    server.heard.clear()
    server.answers |= answers
    return node, server


CALLS: dict[str, Callable[[RedisBroker], Any]] = {
    "publish": lambda broker: broker.publish("a", text("x"), size=1, ttl=1),
    "send": lambda broker: broker.publish("a", text("x"), size=0, ttl=0),
    "history": lambda broker: broker.history("a"),
    "remove_history": lambda broker: broker.remove_history("a"),
    "presence_add": lambda broker: broker.presence_add("a", Present("c")),
    "presence_refresh": lambda broker: broker.presence_refresh([("a", Present("c"))]),
    "presence_remove": lambda broker: broker.presence_remove("a", "c"),
    "presence_get": lambda broker: broker.presence_get("a"),
    "presence_stats": lambda broker: broker.presence_stats("a"),
    "subscribe": lambda broker: broker.subscribe("a"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error("NOPERM no"), BrokerRefused),
        (error("OOM command not allowed"), BrokerRefused),
        (error("LOADING loading"), BrokerUnavailable),
        (error("NOSCRIPT for ever"), BrokerError),
        (error("MOVED 1 h:1"), BrokerUnavailable),
        (error("TRYAGAIN for ever"), BrokerUnavailable),
        (error("ASK 1 nobody:1"), BrokerUnavailable),
    ],
)
def test_what_is_refused(name: str, answer: bytes, kind: type[Exception]) -> None:
    async def play() -> None:
        commands = ("EVALSHA", "PUBLISH", "SUBSCRIBE")
        node, server = await node_to(**dict.fromkeys(commands, answer))
        assert isinstance(node.broker, RedisBroker)
        with pytest.raises(kind) as caught:
            await CALLS[name](node.broker)
        assert isinstance(caught.value, BrokerError)
        assert not getattr(caught.value, "maybe_published", False)
        assert sum(server.count(command) for command in commands) <= TRIES
        assert node.states == ["up"]
        await node.broker.close()

    in_network(play)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_not_answered(name: str) -> None:
    async def play() -> None:
        node, _ = await node_to(EVALSHA=SILENCE, PUBLISH=SILENCE, SUBSCRIBE=SILENCE)
        assert isinstance(node.broker, RedisBroker)
        with pytest.raises(BrokerTimeout) as caught:
            await CALLS[name](node.broker)
        assert caught.value.maybe_published
        await asyncio.sleep(0.01)
        assert node.states[1] == "down"
        await node.broker.close()

    in_network(play)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_asked_when_the_connection_is_lost(name: str) -> None:
    async def play() -> None:
        node, server = await node_to(EVALSHA=SILENCE, PUBLISH=SILENCE, SUBSCRIBE=SILENCE)
        assert isinstance(node.broker, RedisBroker)
        asked = asyncio.ensure_future(CALLS[name](node.broker))
        await idle()
        server.hang_up()
        with pytest.raises(BrokerUnavailable) as caught:
            await asked
        assert caught.value.maybe_published
        await node.broker.close()

    in_network(play)


@pytest.mark.parametrize("name", [*CALLS, "unsubscribe"])
@pytest.mark.parametrize("turns", range(6))
def test_who_gives_up_harms_nobody_else(name: str, turns: int) -> None:
    async def play() -> None:
        node, _ = await node_to()
        broker = node.broker
        assert isinstance(broker, RedisBroker)
        await broker.subscribe("b")
        call: Callable[[RedisBroker], Any] = CALLS.get(name, lambda each: each.unsubscribe("b"))
        given_up = [asyncio.ensure_future(call(broker)) for _ in range(3)]
        await idle(turns)
        for each in given_up:
            each.cancel()
        published = await broker.publish("a", text("x"), size=1, ttl=1)
        assert published == PUBLISHED
        await asyncio.gather(*given_up, return_exceptions=True)
        await broker.close()

    in_network(play)


@pytest.mark.parametrize("call", [*CALLS.values()], ids=[*CALLS])
async def test_who_is_not_started_or_closed_does_nothing(call: Callable[[Any], Any]) -> None:
    broker = RedisBroker("redis://h")
    with pytest.raises(BrokerUnavailable, match="not started, or closed") as caught:
        await call(broker)
    assert caught.value.retry_in is None
    await broker.unsubscribe("a")
    await broker.close()


def test_a_script_that_is_not_known_is_told_once() -> None:
    async def play() -> None:
        known: list[bytes] = []

        def run(_: Peer, words: tuple[bytes, ...]) -> bytes:
            return ANSWER if words[1] in known else error("NOSCRIPT No matching script")

        def load(_: Peer, words: tuple[bytes, ...]) -> bytes:
            assert words[1:] == (b"LOAD", scripts.PUBLISH.text.encode())
            known.append(scripts.PUBLISH.sha.encode())
            return bulk(known[0])

        node, server = await node_to(EVALSHA=run, SCRIPT=load)
        for _ in range(3):
            assert await node.publish("a", "x") == PUBLISHED
        assert (server.count("EVALSHA"), server.count("SCRIPT")) == (4, 1)
        await node.broker.close()

    in_network(play)


@pytest.mark.parametrize("answer", [error("NOPERM no"), SILENCE])
def test_a_script_that_cannot_be_told(answer: bytes) -> None:
    async def play() -> None:
        node, _ = await node_to(EVALSHA=error("NOSCRIPT"), SCRIPT=answer)
        with pytest.raises(BrokerError):
            await node.publish("a", "x")
        await node.broker.close()

    in_network(play)


def test_what_has_to_be_tried_again_is() -> None:
    async def play() -> None:
        answers = [ANSWER, error("TRYAGAIN"), error("TRYAGAIN")]
        node, server = await node_to(EVALSHA=lambda *_: answers.pop())
        assert await node.publish("a", "x") == PUBLISHED
        assert server.count("EVALSHA") == 3
        await node.broker.close()

    in_network(play)


def test_a_server_that_has_become_a_replica_is_left() -> None:
    async def play() -> None:
        node, server = await node_to(EVALSHA=error("READONLY You can't write"))
        server.answers["ROLE"] = array(bulk("slave"))
        with pytest.raises(BrokerUnavailable, match="READONLY") as caught:
            await node.publish("a", "x")
        assert not caught.value.maybe_published
        await asyncio.sleep(5)
        assert node.states == ["up", "down"]
        with pytest.raises(BrokerUnavailable, match=r"slave|replica"):
            await node.publish("a", "x")
        await node.broker.close()

    in_network(play)


def test_what_is_asked_in_strict_epochs_names_the_process() -> None:
    async def play() -> None:
        for url, run_id in (("redis://h", b"a" * 40), ("redis://h?epochs=trust", b"")):
            node, server = await node_to(url)
            await node.publish("a", "x", size=3, ttl=0.0001, once="k")
            (command,) = server.heard
            assert command[1:3] == (scripts.PUBLISH.sha.encode(), b"3")
            assert command[6] == run_id
            assert command[9:11] == (b"3", b"1")
            await node.publish("a", "x")
            assert len({words[-8] for words in server.heard}) == 2 or len(server.heard[1]) != len(
                command
            )
            await node.broker.close()

    in_network(play)


def test_who_is_refreshed_in_vain_is_told_after_all_have_been_tried() -> None:
    async def play() -> None:
        node, server = await node_to()

        def run(_: Peer, words: tuple[bytes, ...]) -> bytes:
            return error("NOPERM no") if words[3].endswith(b":bad") else number(1)

        server.answers["EVALSHA"] = run
        entries = [(name, Present("c")) for name in ("good", "bad", "other", *map(str, range(250)))]
        with pytest.raises(BrokerRefused, match="NOPERM"):
            await node.broker.presence_refresh(entries)
        assert server.count("EVALSHA") == 253
        await node.broker.close()

    in_network(play)


def nodes() -> list[Server]:
    """Return two servers of a cluster, each with a half."""
    halves = slots((0, 8191, [("n1", 1)]), (8192, 16_383, [("n2", 2)]))
    cluster: dict[str, Answer] = {"INFO": info(mode="cluster"), "CLUSTER": halves}
    return [server_at(f"n{each}", each, EVALSHA=ANSWER, **cluster) for each in (1, 2)]


def test_what_is_on_its_way_is_published_there_though_the_script_is_new_there() -> None:
    async def play() -> None:
        one, two = nodes()
        node = Node(RedisBroker("redis+cluster://n1:1"))
        await node.start()
        keys = Keys("yaat", 0, 64)
        one.answers["EVALSHA"] = error("ASK 7 n2:2")
        two.answers["EVALSHA"] = error("NOSCRIPT No matching script")
        two.answers["EVAL"] = ANSWER
        name = next(
            name
            for name in map(str, itertools.count())
            if keys.slot(keys.partition(name.encode())) < 8192
        )
        two.heard.clear()
        assert await node.publish(name, "x") == PUBLISHED
        assert two.heard[0] == (b"ASKING",)
        two.answers |= {"EVALSHA": error("OOM full"), "EVAL": error("OOM full")}
        with pytest.raises(BrokerRefused, match="memory"):
            await node.publish(name, "x")
        for dead in ({"EVALSHA": SILENCE, "EVAL": SILENCE},):
            two.answers |= dead
            with pytest.raises(BrokerUnavailable) as caught:
                await node.publish(name, "x")
            assert caught.value.maybe_published
        await node.broker.close()

    in_network(play)


def test_what_is_on_its_way_and_not_kept_is_published_there() -> None:
    async def play() -> None:
        one, two = nodes()
        node = Node(RedisBroker("redis+cluster://n1:1"))
        await node.start()
        one.answers["SPUBLISH"] = error("ASK 7 n2:2")
        two.heard.clear()
        for name in map(str, range(10)):
            await node.publish(name, "x", size=0)
        assert [words[0] for words in two.heard].count(b"ASKING") > 0
        await node.broker.close()

    in_network(play)


def test_what_is_subscribed_to_goes_where_it_has_moved() -> None:
    async def play() -> None:
        one, two = nodes()
        node = Node(RedisBroker("redis+cluster://n1:1"))
        await node.start()
        await node.broker.subscribe("0")
        await node.broker.unsubscribe("0")
        for each in (one, two):
            each.answers["SSUBSCRIBE"] = error("MOVED 1 n3:3")
        with pytest.raises(BrokerUnavailable, match="MOVED"):
            await node.broker.subscribe("0")
        subscribing = asyncio.ensure_future(node.broker.subscribe("1"))
        await idle(4)
        await node.broker.unsubscribe("1")
        await subscribing  # it is not what counts any more
        for each in (one, two):
            del each.answers["SSUBSCRIBE"]
            each.answers["SUNSUBSCRIBE"] = error("MOVED 1 n3:3")
        await node.broker.subscribe("0")
        await node.broker.unsubscribe("0")
        await node.broker.close()

    in_network(play)


def test_a_start_that_fails_may_be_tried_again() -> None:
    async def play() -> None:
        server = server_at(PING=error("NOPERM no"))
        node = Node(RedisBroker("redis://h"))
        with pytest.raises(BrokerRefused):
            await node.start()
        server.answers.clear()
        await node.start()
        with pytest.raises(UsageError, match="started already"):
            await node.start()
        await node.broker.close()
        await node.broker.close()

        server.answers["PING"] = SILENCE
        starting = asyncio.ensure_future(node.start())
        await idle()
        await node.broker.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await starting

        server.takes = False
        node = Node(RedisBroker("redis://h", require=False))
        await node.start()
        await node.broker.close()

    in_network(play)


def test_it_is_opened_by_its_url() -> None:
    broker = open_broker("valkey://u:p@h:1/2?prefix=x&presence_ttl=7")
    assert isinstance(broker, RedisBroker)
    assert broker.is_shared
    assert broker.presence_ttl == 7
    assert repr(broker) == "RedisBroker('h:1')"
