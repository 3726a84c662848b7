"""The contract of the brokers, held against each kind: one body for all.

What recovery is made of (a position, a history, the order of looking at them) is the hub's, so
those tests go by way of it.
"""

import asyncio
import gc
import logging
import random
import tracemalloc
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from brokers import KINDS, Node, Nodes, Server, gone, serving, text
from yaat.brokers.contract import Content, Position, PresenceStats, Present, Publication, Published
from yaat.channels import Channel, ChannelOptions, Channels
from yaat.channels.hub import Hub
from yaat.exceptions import BrokerError, ChannelNameError, PositionLost, TooBigError, UsageError


# Of session scope, so that pytest runs the tests of one kind after each other: with several workers
# each starts some of the servers rather than all.
@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    return str(request.param)


@pytest.fixture
async def server(kind: str) -> AsyncIterator[Server]:
    """A server of each kind in turn."""
    async with serving(kind) as server:
        yield server


@pytest.fixture
async def nodes(server: Server) -> AsyncIterator[Nodes]:
    """Call it for a node of that server, started."""
    nodes = Nodes(server)
    async with nodes.made:
        yield nodes


Play = Callable[[Server, Nodes], Coroutine[Any, Any, None]]
PLAYS: list[Play] = []


def takes_time(play: Play) -> Play:
    """Let a play be one of those whose time passes at once, as it does on a real server."""
    PLAYS.append(play)
    return play


async def test_as_time_goes_by(kind: str) -> None:
    """All plays below that are said to take time, each with channels of its own."""

    async def perform(play: Play) -> None:
        async with serving(kind) as server:
            nodes = Nodes(server)
            async with nodes.made:
                await play(server, nodes)

    assert len(PLAYS) == 10
    async with asyncio.TaskGroup() as group:
        for play in PLAYS:
            group.create_task(perform(play), name=play.__name__)


def offsets(publications: list[Publication]) -> list[int]:
    return [publication.offset for publication in publications]


def texts(publications: list[Publication]) -> list[str]:
    return [publication.content.payload.decode() for publication in publications]


def is_chain(publications: list[Publication]) -> bool:
    """Whether each one follows the one before it, and none is missing between."""
    return all(
        before.epoch == after.epoch and before.offset == after.prev < after.offset
        for before, after in pairwise(publications)
    )


# Publishing


async def test_offsets_grow_in_one_epoch(nodes: Nodes) -> None:
    node = await nodes()
    published = [await node.publish("a", number) for number in range(20)]
    assert published[0].offset >= 1
    assert all(first.offset < second.offset for first, second in pairwise(published))
    assert len({each.epoch for each in published}) == 1
    assert not any(each.duplicate for each in published)
    assert published[-1].position == await node.top("a")


async def test_an_epoch_is_hard_to_guess_and_safe_in_a_url(nodes: Nodes) -> None:
    node = await nodes()
    epochs = {(await node.publish(f"a{number}", "x")).epoch for number in range(50)}
    # At least 48 random bits: no two channels had the same.
    assert len(epochs) == 50
    for epoch in epochs:
        assert len(epoch) >= 8
        assert epoch.isascii()
        assert epoch.replace("-", "").replace("_", "").isalnum()
        assert Position.parse(str(Position(7, epoch))) == Position(7, epoch)


async def test_what_is_published_comes_as_it_is_to_all_nodes(nodes: Nodes) -> None:
    """To the one that published it too: no broker leaves anybody out."""
    first, second = await nodes.two()
    contents = [
        Content("text", "né 😀".encode(), key="k", sender="s"),
        Content("bytes", b"\x00\xff", key="", sender=None),
        Content("json", b'{"a":[1,null]}', key="clé", sender="né\n\x00"),
        Content("join", b'{"client":"c","user":null,"info":null}'),
        Content("leave", b'{"client":"c"}', sender=""),
    ]
    for node in (first, second):
        await node.broker.subscribe("a")
    published = [await first.publish("a", content) for content in contents]
    for node in (first, second):
        heard = await node.until("a", len(contents))
        assert [publication.content for publication in heard] == contents
        assert [publication.position for publication in heard] == [
            each.position for each in published
        ]
    kept, _ = await second.broker.history("a")
    assert kept == second.heard["a"]
    assert all(abs(publication.time - kept[0].time) < 60 for publication in kept)
    assert kept[0].time > 1_700_000_000


@pytest.mark.parametrize(("size", "ttl"), [(0, 60.0), (100, 0.0)])
async def test_what_is_not_to_be_kept_is_only_sent_out(nodes: Nodes, size: int, ttl: float) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")
    for number in range(3):
        published = await first.publish("a", number, size=size, ttl=ttl)
        assert published == Published(0, "")
    heard = await second.until("a", 3)
    assert texts(heard) == ["0", "1", "2"]
    assert {(each.offset, each.epoch, each.prev) for each in heard} == {(0, "", 0)}
    assert await first.texts("a") == []
    assert (await first.top("a")).offset == 0


async def test_what_is_only_sent_out_takes_no_place(nodes: Nodes) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")
    kept = [
        await first.publish("a", "kept"),
        await first.publish("a", "sent", size=0),
        await first.publish("a", "kept too"),
    ]
    heard = await second.until("a", 3)
    assert texts(heard) == ["kept", "sent", "kept too"]
    assert heard[2].prev == heard[0].offset == kept[0].offset
    assert await first.texts("a") == ["kept", "kept too"]


async def test_two_nodes_see_the_same_order(nodes: Nodes) -> None:
    both = await nodes.two()
    for node in both:
        await node.broker.subscribe("a")

    async def publish(node: Node, name: str) -> None:
        for number in range(125):
            await node.publish("a", f"{name} {number}", size=10)

    async with asyncio.TaskGroup() as group:
        for publisher in range(8):
            group.create_task(publish(both[publisher % 2], str(publisher)))
    first, second = [list(await node.until("a", 1000)) for node in both]
    assert first == second
    assert Counter(texts(first)) == Counter(f"{p} {n}" for p in range(8) for n in range(125))
    for publisher in range(8):  # who publishes one after another is heard in that order
        own = [each for each in texts(first) if each.startswith(f"{publisher} ")]
        assert own == [f"{publisher} {number}" for number in range(125)]


async def test_many_publish_at_once_and_the_chain_is_whole(nodes: Nodes) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")

    async def publish() -> list[int]:
        return [(await first.publish("a", "x", size=2000)).offset for _ in range(100)]

    async with asyncio.TaskGroup() as group:
        publishers = [group.create_task(publish()) for _ in range(16)]
    given = [offset for publisher in publishers for offset in publisher.result()]
    heard = await second.until("a", 1600)
    assert sorted(given) == offsets(heard)
    assert len(set(given)) == 1600
    assert heard[0].prev == 0
    assert is_chain(heard)
    kept, _ = await first.broker.history("a")
    assert kept == heard


async def test_what_is_live_is_in_the_history(nodes: Nodes) -> None:
    first, second = await nodes.two()
    looks: list[asyncio.Task[tuple[list[Publication], Position]]] = []
    broker = second.broker

    def look(channel: str, _: Publication) -> None:
        looks.append(asyncio.ensure_future(broker.history(channel)))

    second.listener = look
    await broker.subscribe("a")
    for number in range(50):
        await first.publish("a", number)
    heard = await second.until("a", 50)
    for publication, (kept, top) in zip(heard, await asyncio.gather(*looks), strict=True):
        assert top.offset >= publication.offset
        assert top.epoch == publication.epoch
        assert publication in kept
        assert is_chain(kept)


# Subscribing


async def test_who_is_subscribed_receives_what_is_published_next(
    nodes: Nodes, server: Server
) -> None:
    first, second = await nodes.two()
    for number in range(server.some(1000)):
        channel = f"a{number % 50}"
        await second.broker.subscribe(channel)
        await first.publish(channel, number, size=0)
        assert texts(await second.until(channel, 1)) == [str(number)]
        del second.heard[channel]
        await second.broker.unsubscribe(channel)


async def test_the_first_subscribers_of_a_channel_are_one_upstream(
    nodes: Nodes, server: Server
) -> None:
    first, second = await nodes.two()
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(second.broker.subscribe("a"))
    assert await server.upstream("a") == 1
    await first.publish("a", "once")
    await first.publish("a", "again")
    assert texts(await second.until("a", 2)) == ["once", "again"]
    await second.broker.unsubscribe("a")  # however often it was called, the last call counts
    await gone(lambda: server.upstream("a"))


@pytest.mark.parametrize("seed", range(3))
async def test_of_subscribe_and_unsubscribe_the_last_call_counts(nodes: Nodes, seed: int) -> None:
    first, second = await nodes.two()
    chance = random.Random(seed)
    channels = [f"a{number}" for number in range(5)]
    wanted = dict.fromkeys(channels, False)

    async def toggle() -> None:
        for _ in range(100):
            channel = chance.choice(channels)
            wanted[channel] = chance.random() < 0.5
            call = second.broker.subscribe if wanted[channel] else second.broker.unsubscribe
            await call(channel)
            if chance.random() < 0.3:
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(toggle())
    await second.broker.subscribe("last")
    for channel in [*channels, "last"]:
        await first.publish(channel, "x", size=0)
    await second.until("last", 1)
    for channel in channels:
        if wanted[channel]:
            await second.until(channel, 1)
    assert {channel: len(second.heard[channel]) for channel in channels} == {
        channel: int(is_wanted) for channel, is_wanted in wanted.items()
    }


async def test_who_has_unsubscribed_hears_nothing(nodes: Nodes, server: Server) -> None:
    first, second, third = await nodes(), await nodes(), await nodes()
    for node in (second, third):
        await node.broker.subscribe("a")
        await node.broker.subscribe("last")
    await first.publish("a", "before")
    await second.until("a", 1)
    await second.broker.unsubscribe("a")
    await second.broker.unsubscribe("a")
    await second.broker.unsubscribe("never subscribed")
    await first.publish("a", "after")
    await first.publish("last", "x")
    await third.until("a", 2)
    await second.until("last", 1)
    assert texts(second.heard["a"]) == ["before"]
    await third.broker.unsubscribe("a")
    await gone(lambda: server.upstream("a"))
    assert await server.upstream("last") == 2


async def test_who_unsubscribes_and_subscribes_again_sees_what_it_missed(nodes: Nodes) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")
    await first.publish("a", 0)
    await second.until("a", 1)
    await second.broker.unsubscribe("a")
    missed = await first.publish("a", 1)
    await second.broker.subscribe("a")
    await first.publish("a", 2)
    before, after = await second.until("a", 2)
    assert texts([before, after]) == ["0", "2"]
    assert before.offset != after.prev == missed.offset


# History


async def test_the_history_is_as_long_as_it_is_asked_to_be(nodes: Nodes) -> None:
    first, second = await nodes.two()
    for number in range(20):
        await first.publish("a", number, size=5)
        assert await second.texts("a") == [str(n) for n in range(max(0, number - 4), number + 1)]
    await second.publish("a", 20, size=3)
    assert await first.texts("a") == ["18", "19", "20"]
    await first.publish("a", 21, size=5)
    assert await second.texts("a") == ["18", "19", "20", "21"]
    await first.publish("a", 22, size=1)
    assert await second.texts("a") == ["22"]


@takes_time
async def each_publication_is_kept_as_long_as_it_is_asked_to_be(
    server: Server, nodes: Nodes
) -> None:
    """In a busy channel too, where a new one never lets the history as a whole expire."""
    node = await nodes()
    begun: dict[int, float] = {}
    made: dict[int, float] = {}
    for number in range(15):
        before = begun[number] = server.now()
        await node.publish("a", number, ttl=1.0)
        made[number] = server.now()
        kept = [int(each) for each in await node.texts("a")]
        assert all(made[each] > before - 1.2 for each in kept)
        assert kept[-1:] == [number]
        assert kept == list(range(kept[0], number + 1))
        still = server.now()
        assert all(each in kept for each in begun if begun[each] > still - 0.8)
        await server.pass_time(0.15)
    await server.pass_time(1.2)
    assert await node.texts("a") == []


@takes_time
async def the_position_outlives_the_history(server: Server, nodes: Nodes) -> None:
    node = await nodes()
    published = [await node.publish("a", number, ttl=1.0) for number in range(3)]
    await server.pass_time(1.3)
    assert await node.broker.history("a") == ([], published[-1].position)
    following = await node.publish("a", 3, ttl=1.0)
    assert following.epoch == published[-1].epoch
    assert [each.prev for each in (await node.broker.history("a"))[0]] == [published[-1].offset]


@takes_time
async def a_channel_that_is_long_forgotten_begins_another_epoch(
    server: Server, nodes: Nodes
) -> None:
    node = await nodes(position_ttl=1.5)
    before = await node.publish("a", 0, ttl=0.1)
    for _ in range(2):  # whoever asks for a position keeps it
        await server.pass_time(0.8)
        assert await node.top("a") == before.position
    await server.pass_time(1.8)
    after = await node.publish("a", 1, ttl=0.1)
    assert after.epoch != before.epoch
    (kept,), top = await node.broker.history("a")
    assert kept.prev == 0
    assert top == after.position


async def test_the_history_is_read_in_pages(nodes: Nodes) -> None:
    first, second = await nodes.two()
    published = [await first.publish("a", number) for number in range(10)]
    top = published[-1].position
    everything = await second.broker.history("a")
    assert texts(everything[0]) == [str(number) for number in range(10)]
    assert everything[1] == top
    assert is_chain(everything[0])

    for reverse in (False, True):
        pages: list[list[str]] = []
        since: Position | None = None
        while True:
            page, at = await second.broker.history("a", since=since, limit=4, reverse=reverse)
            assert at == top
            if not page:
                break
            pages.append(texts(page))
            since = page[-1].position
        order = "9876543210" if reverse else "0123456789"
        assert pages == [list(order[:4]), list(order[4:8]), list(order[8:])]


async def test_the_history_from_a_position_that_is_at_the_edge(nodes: Nodes) -> None:
    node = await nodes()
    published = [await node.publish("a", number, size=4) for number in range(6)]
    epoch = published[0].epoch
    assert await node.texts("a", since=published[4].position) == ["5"]
    assert await node.texts("a", since=published[5].position) == []
    assert await node.texts("a", since=Position(published[5].offset + 5, epoch)) == []
    assert await node.texts("a", since=Position(0, epoch)) == ["2", "3", "4", "5"]
    assert await node.texts("a", since=published[2].position, reverse=True) == []
    assert await node.texts("a", since=published[4].position, reverse=True) == ["3", "2"]
    assert await node.texts("a", since=Position(0, epoch), reverse=True) == []
    # Whose epoch it is the caller compares.
    assert await node.texts("a", since=Position(published[4].offset, "other")) == ["5"]
    assert await node.texts("a", limit=100) == ["2", "3", "4", "5"]
    assert await node.texts("a", limit=1, reverse=True) == ["5"]
    assert await node.texts("a", limit=0, reverse=True) == []


async def test_to_ask_for_the_position_begins_the_epoch(nodes: Nodes) -> None:
    first, second = await nodes.two()
    top = await first.top("a")
    assert top.offset == 0
    assert top.epoch
    assert await second.top("a") == top
    assert await second.broker.history("a") == ([], top)
    published = await second.publish("a", "x")
    assert published.epoch == top.epoch
    (kept,), _ = await first.broker.history("a", since=top)
    assert (kept.prev, kept.position) == (top.offset, published.position)


async def test_the_position_stays_when_the_history_is_removed(nodes: Nodes) -> None:
    first, second = await nodes.two()
    published = [await first.publish("a", number) for number in range(3)]
    await second.broker.remove_history("a")
    await second.broker.remove_history("never used")
    assert await first.broker.history("a") == ([], published[-1].position)
    following = await first.publish("a", 3)
    (kept,), top = await second.broker.history("a")
    assert (kept.prev, kept.epoch) == published[-1].position
    assert top == following.position


# Once


@takes_time
async def what_is_published_once_is_published_once(server: Server, nodes: Nodes) -> None:
    both = await nodes.two(once_ttl=1.5)
    for node in both:
        await node.broker.subscribe("a")
    calls = [both[number % 2].publish("a", number, once="key") for number in range(20)]
    published = await asyncio.gather(*calls)
    assert len({each.position for each in published}) == 1
    assert sum(not each.duplicate for each in published) == 1
    await both[0].publish("a", "last")
    for node in both:
        heard = await node.until("a", 2)
        assert len(heard) == 2
        assert is_chain(heard)
    assert await both[0].texts("a") == texts(both[1].heard["a"])
    await server.pass_time(1.8)
    again = await both[0].publish("a", "again", once="key")
    assert not again.duplicate
    assert again.offset > published[0].offset
    assert texts(await both[1].until("a", 3))[2] == "again"


async def test_once_is_within_a_channel_and_by_the_whole_key(nodes: Nodes) -> None:
    node = await nodes()
    keys = ["k", "K", "k ", "a:k", "", "é", "e\u0301", "k\x00", "x" * 500]
    for channel in ("a", "a:k", "b"):
        for key in keys:
            assert not (await node.publish(channel, key, once=key)).duplicate, (channel, key)
    for channel in ("a", "a:k", "b"):
        kept, _ = await node.broker.history(channel)
        assert texts(kept) == keys
        for key, publication in zip(keys, kept, strict=True):
            again = await node.publish(channel, "again", once=key)
            assert again == Published(*publication.position, duplicate=True)


async def test_once_holds_for_what_is_only_sent_out(nodes: Nodes) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")
    assert await first.publish("a", "x", size=0, once="key") == Published(0, "", duplicate=False)
    assert await second.publish("a", "y", size=0, once="key") == Published(0, "", duplicate=True)
    await first.publish("a", "last", size=0)
    assert texts(await second.until("a", 2)) == ["x", "last"]


@takes_time
async def once_outlives_the_history(server: Server, nodes: Nodes) -> None:
    node = await nodes(once_ttl=60.0)
    first = await node.publish("a", "x", ttl=0.2, once="key")
    await server.pass_time(0.5)
    await node.broker.remove_history("a")
    assert await node.publish("a", "y", once="key") == Published(*first.position, duplicate=True)


# What is published, and where


async def test_payloads_of_all_sizes(nodes: Nodes) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")
    sizes = [0, 1, 5500, 5501, 7999, 8000, 65_536, 1_048_576]
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    for payload in payloads:
        await first.publish("a", Content("bytes", payload))
    top = await first.top("a")
    with pytest.raises(TooBigError) as error:
        await first.publish("a", Content("bytes", bytes(1_048_577)))
    assert isinstance(error.value, ValueError)
    assert await second.top("a") == top
    await first.publish("a", "last")
    heard = await second.until("a", len(sizes) + 1)
    assert [each.content.payload for each in heard[:-1]] == payloads
    kept, _ = await second.broker.history("a")
    assert kept == heard


async def test_a_node_takes_no_more_than_it_is_told(nodes: Nodes) -> None:
    node = await nodes(max_payload=10)
    await node.publish("a", Content("bytes", bytes(10)))
    for size in (0, 100):
        with pytest.raises(TooBigError):
            await node.publish("a", Content("bytes", bytes(11)), size=size, once="key")
    assert not (await node.publish("a", "y", once="key")).duplicate


async def test_payloads_of_any_bytes(nodes: Nodes) -> None:
    first, second = await nodes.two()
    await second.broker.subscribe("a")
    payloads = [
        bytes(range(256)),
        bytes(range(255, -1, -1)) * 3,
        b"\xff\xfe\xfd",
        b"\xed\xa0\x80",
        b"\x00",
        b"\x00" * 100,
        b"\r\n",
        b"$-1\r\n",
        b"*3\r\n$7\r\nmessage\r\n",
        b"+OK\r\n",
        b"PUB a 1\r\nx\r\n",
        b"\x01\x00\x00\x00\x05",
        b"\x81\x05hello",
        b"\\x00 \\\\ '';--",
        b"__f__:1:2:3",
    ]
    for payload in payloads:
        await first.publish("a", Content("bytes", payload))
    heard = await second.until("a", len(payloads))
    assert [each.content.payload for each in heard] == payloads
    assert {each.content.kind for each in heard} == {"bytes"}
    assert (await first.broker.history("a"))[0] == heard


ODD_NAMES = [
    *("a", "A", "b", "a.b", "a.>", ">", "*", "a.*", "?", "[a]", "a b", " a", "a ", " ", "."),
    *(
        "..",
        "a..b",
        ".a",
        "\t",
        "\r\n",
        "a\r\nb",
        "\n",
        "\x00",
        "a\x00",
        "\x00a",
        "{x}",
        "}{",
        "{a",
    ),
    *(
        '"',
        "'",
        "a';--",
        "$a",
        "$SYS.>",
        "a:b",
        "a/b",
        "/",
        "\\",
        "\\x61",
        "%61",
        "%",
        "a%s",
        "a#1",
    ),
    *("é", "e\u0301", "É", "日本語", "😀", "\u200b", "\ufeffa", "ß", "ss", "\u0131", "i", "\u0130"),
    *(
        "x" * 255,
        "x" * 254,
        "é" * 127,
        "😀" * 63,
        "\x01",
        "\x7f",
        "\x85",
        "null",
        "None",
        "0",
        "-1",
    ),
]


async def test_odd_names_of_channels_are_all_different(nodes: Nodes, server: Server) -> None:
    first, second = await nodes.two()
    assert len(set(ODD_NAMES)) == len(ODD_NAMES)
    for name in ODD_NAMES:
        await second.broker.subscribe(name)
    for number, name in enumerate(ODD_NAMES):
        await first.publish(name, number)
        await first.broker.presence_add(name, Present(str(number)))
    for number, name in enumerate(ODD_NAMES):
        heard = await second.until(name, 1)
        assert texts(heard) == [str(number)], name
        assert (await second.broker.history(name))[0] == heard, name
        assert await second.broker.presence_get(name) == [Present(str(number))], name
        assert await server.upstream(name) == 1, name
    assert set(second.heard) == set(ODD_NAMES)
    for name in ODD_NAMES[::2]:
        await second.broker.unsubscribe(name)
        await first.broker.remove_history(name)
        await first.broker.presence_remove(name, str(ODD_NAMES.index(name)))
    for name in ODD_NAMES[1::2]:
        await first.publish(name, "again")
        assert len(await second.until(name, 2)) == 2
        assert len(await first.texts(name)) == 2
        assert len(await first.broker.presence_get(name)) == 1


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, "x" * 5000, "\ud800", "a\udfff"])
async def test_names_that_no_channel_can_have(nodes: Nodes, name: str) -> None:
    node = await nodes()
    broker = node.broker
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: node.publish(name, "x"),
        lambda: node.publish(name, "x", size=0, once="key"),
        lambda: broker.subscribe(name),
        lambda: broker.unsubscribe(name),
        lambda: broker.history(name),
        lambda: broker.history(name, limit=0),
        lambda: broker.remove_history(name),
        lambda: broker.presence_add(name, Present("c")),
        lambda: broker.presence_refresh([(name, Present("c"))]),
        lambda: broker.presence_remove(name, "c"),
        lambda: broker.presence_get(name),
        lambda: broker.presence_stats(name),
    ]
    for call in calls:
        with pytest.raises(ChannelNameError) as error:
            await call()
        assert isinstance(error.value, ValueError)
        assert error.value.close_code == 1008
    await broker.subscribe("a")
    await node.publish("a", "x")
    assert texts(await node.until("a", 1)) == ["x"]


async def test_ten_thousand_channels(nodes: Nodes, server: Server) -> None:
    first, second = await nodes.two()
    channels = [f"room:{number}" for number in range(server.some(10_000))]
    gc.collect()
    tracemalloc.start()
    try:
        async with asyncio.timeout(10):
            for start in range(0, len(channels), 500):
                calls = [second.broker.subscribe(name) for name in channels[start : start + 500]]
                await asyncio.gather(*calls)
        assert await server.all_upstream() == len(channels)
        for start in range(0, len(channels), 500):
            batch = channels[start : start + 500]
            await asyncio.gather(*(first.publish(name, name) for name in batch))
        for channel in channels:
            assert texts(await second.until(channel, 1)) == [channel]
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    for start in range(0, len(channels), 500):
        calls = [second.broker.unsubscribe(name) for name in channels[start : start + 500]]
        await asyncio.gather(*calls)
    await gone(server.all_upstream)


# Recovery


KEPT = Channels({"kept:{id}": ChannelOptions(history=5, ttl=100.0)})


@asynccontextmanager
async def hub_of(server: Server, channels: Channels = KEPT) -> AsyncIterator[Hub]:
    """Run a hub over a node of its own."""
    hub = Hub(server.node(), channels)
    try:
        yield hub
    finally:
        await hub.close()


async def take(source: AsyncIterator[Publication], count: int) -> list[Any]:
    """Return the data of the next publications."""
    async with asyncio.timeout(5):
        return [(await anext(source)).data for _ in range(count)]


async def published(channel: Channel, count: int) -> list[Position]:
    """Publish the numbers from 0; return where each is, after where it began."""
    begin = (await channel.history(limit=0)).top
    return [begin, *[(await channel.publish(number)).position for number in range(count)]]


@pytest.mark.parametrize("missed", [0, 1, 4, 5])
async def test_what_was_missed_is_brought_back(server: Server, missed: int) -> None:
    async with hub_of(server) as hub, hub_of(server) as other:
        positions = await published(hub.channel("kept:a"), 8)
        since = positions[8 - missed]
        history = await other.channel("kept:a").history(since=since)
        assert history.complete
        assert history.top == positions[-1]
        assert [each.data for each in history.publications] == list(range(8 - missed, 8))
        missing = other.channel("kept:a").subscribe(since=since)
        if missed:
            assert await take(missing, missed) == list(range(8 - missed, 8))
        following = asyncio.create_task(take(missing, 2))
        await hub.channel("kept:a").publish("live")
        await other.channel("kept:a").publish("more")
        assert await following == ["live", "more"]
        await missing.aclose()


async def test_from_the_very_beginning(server: Server) -> None:
    async with hub_of(server) as hub:
        positions = await published(hub.channel("kept:a"), 3)
        assert positions[0].offset == 0
        everything = hub.channel("kept:a").subscribe(since=positions[0])
        assert await take(everything, 3) == [0, 1, 2]
        await everything.aclose()


async def assert_lost(hub: Hub, since: Position, top: Position) -> None:
    """Whoever stands at `since` is told that it is lost."""
    channel = hub.channel("kept:a")
    history = await channel.history(since=since)
    assert not history.complete
    assert history.top == top
    with pytest.raises(PositionLost) as error:
        await anext(channel.subscribe(since=since))
    assert error.value.channel == "kept:a"
    assert error.value.close_code == 4010


@pytest.mark.parametrize("missed", [6, 7, 10])
async def test_what_the_history_holds_no_longer_is_lost(server: Server, missed: int) -> None:
    async with hub_of(server) as hub, hub_of(server) as other:
        positions = await published(hub.channel("kept:a"), 10)
        await assert_lost(other, positions[10 - missed], positions[-1])


@takes_time
async def what_has_expired_is_lost(server: Server, nodes: Nodes) -> None:
    channels = Channels({"kept:a": ChannelOptions(history=10, ttl=1.0)})
    async with hub_of(server, channels) as hub:
        positions = await published(hub.channel("kept:a"), 3)
        await server.pass_time(1.3)
        await assert_lost(hub, positions[2], positions[3])
        history = await hub.channel("kept:a").history(since=positions[3])
        assert (history.publications, history.complete) == ([], True)


async def test_another_epoch_is_lost(server: Server) -> None:
    async with hub_of(server) as hub:
        positions = await published(hub.channel("kept:a"), 3)
        for offset in (0, 1, positions[-1].offset):
            await assert_lost(hub, Position(offset, "another1"), positions[-1])


async def test_a_position_of_the_future_is_lost(server: Server) -> None:
    """The server has gone back in time: with the same epoch, but not what came last."""
    async with hub_of(server) as hub:
        positions = await published(hub.channel("kept:a"), 3)
        top = positions[-1]
        await assert_lost(hub, Position(top.offset + 1, top.epoch), top)
        await assert_lost(hub, Position(2**60, top.epoch), top)


async def test_what_was_removed_is_lost(server: Server) -> None:
    async with hub_of(server) as hub, hub_of(server) as other:
        channel = hub.channel("kept:a")
        positions = await published(channel, 3)
        await channel.remove_history()
        await assert_lost(other, positions[2], positions[3])
        await channel.publish("next")
        assert (await channel.history(since=positions[3])).complete
        await assert_lost(other, positions[2], (await channel.history(limit=0)).top)


async def test_who_has_a_position_and_nothing_was_kept_is_told(server: Server) -> None:
    """A channel without history has no positions: none can be resumed from there."""
    async with hub_of(server) as hub:
        await hub.channel("bare").publish("x")
        with pytest.raises(PositionLost):
            await anext(hub.channel("bare").subscribe(since=Position(1, "another1")))


async def test_fifty_first_subscribers_all_receive(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yaat.channels.node.LINGER", 0.1)
    async with hub_of(server) as hub, hub_of(server) as other:
        top = (await other.channel("kept:a").history(limit=0)).top
        subscriptions = [hub.channel("kept:a").subscribe(since=top) for _ in range(50)]
        taking = [asyncio.create_task(take(each, 3)) for each in subscriptions]
        for number in range(3):
            await other.channel("kept:a").publish(number)
        assert await asyncio.gather(*taking) == [[0, 1, 2]] * 50
        assert await server.upstream("kept:a") == 1
        for each in subscriptions:
            await each.aclose()
        await gone(lambda: server.upstream("kept:a"))


@pytest.mark.parametrize("size", [5000, 20])
async def test_who_comes_again_and_again_misses_nothing_or_is_told(  # noqa: C901 - it is a play
    server: Server, size: int
) -> None:
    count = server.some(5000)
    channels = Channels({"kept:a": ChannelOptions(history=size, ttl=100.0)})
    chance = random.Random(size)
    made: list[int] = []
    seen: list[int] = []
    came = lost = 0
    async with hub_of(server, channels) as hub, hub_of(server, channels) as other:
        since = (await other.channel("kept:a").history(limit=0)).top

        async def publish() -> None:
            for number in range(count):
                await hub.channel("kept:a").publish(number)
                made.append(number)
                if chance.random() < 0.2:
                    await asyncio.sleep(0)

        async def read(since: Position, most: int) -> Position:
            """Read some of what comes; each has to follow what was seen before."""
            async with aclosing(other.channel("kept:a").subscribe(since=since)) as source:
                while most and (not seen or seen[-1] < count - 1):
                    publication = await anext(source)
                    assert (publication.prev, publication.epoch) == since
                    seen.append(publication.data)
                    since = publication.position
                    most -= 1
            return since

        async def be_away(some: int) -> None:
            until = min(len(made) + some, count - 1)
            while len(made) < until:  # noqa: ASYNC110 - as long as others do their work
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        while not seen or seen[-1] < count - 1:
            came += 1
            await be_away(30 if came % 10 == 0 else 0)
            try:
                since = await read(since, chance.randint(1, 45))
            except PositionLost:
                lost += 1
                since = (await other.channel("kept:a").history(limit=0)).top
                if since.offset == count:
                    break
        await publishing
    assert all(before < after for before, after in pairwise(seen))
    if size == 5000:
        assert (lost, seen) == (0, list(range(count)))
        assert came >= count // 25
    else:
        assert lost


# Presence


async def test_who_is_there(nodes: Nodes) -> None:
    first, second = await nodes.two()
    people = [
        Present("c1", "ann", {"name": "Ann", "tags": [1, None, "é"]}),
        Present("c2", "ann"),
        Present("c3"),
        Present("c4", None, 0),
        Present("c5", "", ""),
        Present("c\x00\r\n é:*>", "ben"),
    ]
    for number, present in enumerate(people):
        assert await (first, second)[number % 2].broker.presence_add("a", present)
    assert await first.broker.presence_get("a") == people
    assert await second.broker.presence_get("a") == people
    # Two of them named no user; the empty string is a user as any other.
    assert await first.broker.presence_stats("a") == PresenceStats(clients=6, users=3)
    assert await first.broker.presence_get("b") == []
    assert await first.broker.presence_stats("b") == PresenceStats(0, 0)


async def test_who_comes_again_is_no_news_but_may_have_changed(nodes: Nodes) -> None:
    first, second = await nodes.two()
    ben = Present("c2", "ben", 1)
    assert await first.broker.presence_add("a", Present("c1", "ann", 1))
    assert await first.broker.presence_add("a", ben)
    assert not await second.broker.presence_add("a", Present("c1", "cleo", 2))
    assert await first.broker.presence_get("a") == [Present("c1", "cleo", 2), ben]
    assert await second.broker.presence_stats("a") == PresenceStats(2, 2)


async def test_who_leaves_leaves_alone(nodes: Nodes) -> None:
    first, second = await nodes.two()
    for client in ("c1", "c2"):
        await first.broker.presence_add("a", Present(client, "ann"))
        await first.broker.presence_add("b", Present(client, "ann"))
    assert await second.broker.presence_remove("a", "c1")
    assert not await first.broker.presence_remove("a", "c1")
    assert not await first.broker.presence_remove("a", "never there")
    assert not await first.broker.presence_remove("never used", "c1")
    assert await first.broker.presence_get("a") == [Present("c2", "ann")]
    assert await first.broker.presence_stats("a") == PresenceStats(1, 1)
    assert len(await first.broker.presence_get("b")) == 2
    assert await first.broker.presence_add("a", Present("c1"))
    assert await second.broker.presence_get("a") == [Present("c2", "ann"), Present("c1")]


@takes_time
async def who_is_no_longer_refreshed_is_gone(server: Server, nodes: Nodes) -> None:
    """As after the crash of a node."""
    crashed, node = await nodes.two(presence_ttl=1.5)
    for client in ("c1", "c2"):
        await crashed.broker.presence_add("a", Present(client, "ann"))
    kept = [("a", Present("c3", "ann")), ("a", Present("c4", "ben")), ("b", Present("c3", "ann"))]
    for channel, present in kept:
        await node.broker.presence_add(channel, present)
    await crashed.broker.presence_add("b", Present("c1", "cleo"))
    for _ in range(2):
        await server.pass_time(0.8)
        await node.broker.presence_refresh(iter(kept))
    for each in (crashed, node):
        assert await each.broker.presence_get("a") == [kept[0][1], kept[1][1]]
        assert await each.broker.presence_stats("a") == PresenceStats(2, 2)
        assert await each.broker.presence_stats("b") == PresenceStats(1, 1)
    assert not await node.broker.presence_remove("a", "c1")
    assert await node.broker.presence_add("a", Present("c2", "ann"))
    assert (await crashed.broker.presence_get("a"))[2:] == [Present("c2", "ann")]
    await server.pass_time(1.8)
    assert await node.broker.presence_get("a") == []
    assert await node.broker.presence_stats("a") == PresenceStats(0, 0)


@takes_time
async def to_leave_when_nobody_knew_any_more_is_no_news(server: Server, nodes: Nodes) -> None:
    node = await nodes(presence_ttl=1.0)
    await node.broker.presence_add("a", Present("c1"))
    await node.broker.presence_add("a", Present("c2"))
    await server.pass_time(0.9)
    await node.broker.presence_refresh([("a", Present("c2"))])
    await server.pass_time(0.3)
    assert not await node.broker.presence_remove("a", "c1")
    assert await node.broker.presence_remove("a", "c2")


@takes_time
async def who_was_forgotten_is_there_again_after_a_refresh(server: Server, nodes: Nodes) -> None:
    node = await nodes(presence_ttl=1.0)
    present = Present("c1", "ann", {"a": 1})
    await node.broker.presence_add("a", present)
    await server.pass_time(1.3)
    await node.broker.presence_refresh([])
    assert await node.broker.presence_get("a") == []
    await node.broker.presence_refresh([("a", present)])
    assert await node.broker.presence_get("a") == [present]
    assert not await node.broker.presence_add("a", present)


@takes_time
async def who_comes_back_when_nobody_knew_any_more_comes_last(server: Server, nodes: Nodes) -> None:
    node = await nodes(presence_ttl=1.5)
    await node.broker.presence_add("a", Present("c1"))
    await server.pass_time(1.0)
    await node.broker.presence_add("a", Present("c2"))
    await server.pass_time(0.8)
    assert await node.broker.presence_add("a", Present("c1"))
    assert await node.broker.presence_get("a") == [Present("c2"), Present("c1")]


async def test_presence_is_no_history_and_no_history_is_presence(nodes: Nodes) -> None:
    node = await nodes()
    await node.broker.subscribe("a")
    await node.broker.presence_add("a", Present("c1"))
    await node.publish("a", "x")
    await node.broker.remove_history("a")
    assert await node.broker.presence_get("a") == [Present("c1")]
    await node.broker.presence_remove("a", "c1")
    await node.publish("a", "y")
    # The broker tells nobody of it: that is what the hub publishes.
    assert texts(await node.until("a", 2)) == ["x", "y"]


# The end


async def busy(node: Node) -> None:
    """Do all there is to do, again and again, until it can be done no more."""
    number = 0
    while True:
        number += 1
        await node.broker.subscribe(f"a{number % 7}")
        await node.publish(f"a{number % 7}", number, once=str(number % 5))
        await node.broker.history("a")
        await node.broker.presence_add("a", Present(str(number)))
        await node.broker.unsubscribe(f"a{number % 7}")
        await asyncio.sleep(0)


@pytest.mark.parametrize("moment", [0, 1, 5, 50, 500])
async def test_it_ends_cleanly_in_the_middle_of_traffic(
    nodes: Nodes, server: Server, moment: int
) -> None:
    node, other = await nodes.two()
    await node.broker.subscribe("b")
    await other.broker.subscribe("b")
    others = asyncio.all_tasks()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        work = [asyncio.create_task(busy(node)) for _ in range(5)]
        for _ in range(moment):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.gather(node.broker.close(), node.broker.close())
            await node.broker.close()
        _, waiting = await asyncio.wait(work, timeout=5)
        assert not waiting, "who works on a broker that is closed is told"
        for each in work:
            assert isinstance(each.exception(), (BrokerError, UsageError))
        assert asyncio.all_tasks() - others - set(work) == set()
        gc.collect()
    assert [str(each.message) for each in warned] == []
    heard = {channel: len(publications) for channel, publications in node.heard.items()}
    for channel in [*node.heard, "b"]:
        await other.publish(channel, "goes on")
    assert texts(await other.until("b", 1)) == ["goes on"]
    assert {channel: len(node.heard[channel]) for channel in heard} == heard
    assert node.heard["b"] == []
    await other.broker.unsubscribe("b")
    await gone(server.all_upstream)


async def test_nothing_can_be_done_with_a_broker_that_is_closed(nodes: Nodes) -> None:
    node = await nodes()
    broker = node.broker
    await broker.close()
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: node.publish("a", "x"),
        lambda: broker.subscribe("a"),
        lambda: broker.history("a"),
        lambda: broker.remove_history("a"),
        lambda: broker.presence_add("a", Present("c")),
        lambda: broker.presence_get("a"),
        lambda: broker.presence_stats("a"),
    ]
    for call in calls:
        with pytest.raises((BrokerError, UsageError)):
            await call()


async def test_a_broker_that_was_never_started_can_be_closed(server: Server) -> None:
    broker = server.node()
    await broker.close()
    await broker.close()


async def test_what_a_callback_raises_stops_nothing(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await nodes.two()

    def fail(channel: str, publication: Publication) -> None:
        if publication.content.payload != b"last":
            raise LookupError(f"of {channel}")

    second.listener = fail
    for node in (first, second):
        await node.broker.subscribe("a")
    with caplog.at_level(logging.ERROR, logger="yaat"):
        for number in range(3):
            assert not (await first.publish("a", number)).duplicate
        await second.publish("a", "last")
        for node in (second, first):
            heard = await node.until("a", 4)
            assert texts(heard) == ["0", "1", "2", "last"]
            assert is_chain(heard)
    errors = [record.exc_info for record in caplog.records if record.exc_info]
    assert [error[0] for error in errors] == [LookupError] * 3


async def test_a_callback_may_begin_whatever_it_likes(nodes: Nodes) -> None:
    """What it begins is of another moment: the order of what follows is not upset by it."""
    first, second = await nodes.two()
    begun: list[asyncio.Future[Any]] = []

    def begin(_: str, publication: Publication) -> None:
        if publication.content.payload == b"0":
            begun.append(asyncio.ensure_future(second.publish("a", "answer")))
            begun.append(asyncio.ensure_future(second.broker.subscribe("b")))

    second.listener = begin
    for node in (first, second):
        await node.broker.subscribe("a")
    for number in range(3):
        await first.publish("a", number)
    for node in (first, second):
        heard = await node.until("a", 4)
        assert sorted(texts(heard)) == ["0", "1", "2", "answer"]
        assert is_chain(heard)
    await asyncio.gather(*begun)
    await first.publish("b", "x")
    await second.until("b", 1)


async def test_nodes_are_two_though_they_call_the_same_function(server: Server) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def note(_: str, publication: Publication) -> None:
        heard.put_nowait(publication.content.payload.decode())

    brokers = [server.node(), server.node()]
    try:
        for broker in brokers:
            await broker.start(note, lambda _: None, lambda _: None)
            await broker.subscribe("a")
        await brokers[0].publish("a", text("x"), size=10, ttl=10.0)
        async with asyncio.timeout(5):
            assert [await heard.get(), await heard.get()] == ["x", "x"]
            await brokers[0].unsubscribe("a")
            await brokers[0].publish("a", text("y"), size=10, ttl=10.0)
            assert await heard.get() == "y"
    finally:
        for broker in brokers:
            await broker.close()
    assert heard.empty()
