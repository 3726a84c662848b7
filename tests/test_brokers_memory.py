"""The broker in this process: its bounds, its clock, its spaces and its URL."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import pytest

from brokers import Node, text
from scripted import Clock, in_scripted_time
from yaat.brokers import open_broker
from yaat.brokers.contract import Broker, Position, PresenceStats, Present, Published
from yaat.brokers.memory import CROWDED, OVERHEAD, SWEEP, MemoryBroker
from yaat.exceptions import (
    ArgumentError,
    BrokerUnavailable,
    ChannelNameError,
    TooBigError,
    UsageError,
)

NUMBERS = count()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Any]


@pytest.fixture
async def make(clock: Clock) -> AsyncIterator[Make]:
    """Call it for a node, started, with these bounds; its time passes by `clock`."""
    made: list[Node] = []

    async def start(space: str = "", **options: Any) -> Node:
        node = Node(MemoryBroker(space, clock=clock, **options))
        made.append(node)
        await node.start()
        return node

    yield start
    for node in made:
        await node.broker.close()


def new_space() -> str:
    return f"space {next(NUMBERS)}"


def held(node: Node) -> dict[str, int]:
    """Return how much of each a space holds."""
    assert isinstance(node.broker, MemoryBroker)
    space = node.broker._space
    return {
        "bytes": space.histories._bytes,
        "channels": len(space.histories.channels),
        "once": len(space._once),
        "present": len(space.presence.channels),
        "listeners": len(space.listeners),
        "timetable": len(space._timetable),
    }


def sweep(node: Node) -> None:
    """Do what the timer does."""
    assert isinstance(node.broker, MemoryBroker)
    node.broker._space._sweep()


EMPTY = dict.fromkeys(("bytes", "channels", "once", "present", "listeners", "timetable"), 0)


# Its life


@pytest.mark.parametrize(
    "bound",
    [
        "max_channels",
        "max_bytes",
        "position_ttl",
        "presence_ttl",
        "once_ttl",
        "max_once",
        "max_payload",
    ],
)
def test_a_bound_that_cannot_be(bound: str) -> None:
    for value in (0, -1):
        with pytest.raises(ArgumentError, match=rf"^{bound} must be above 0, not {value}$"):
            MemoryBroker(**{bound: value})  # type: ignore[arg-type]


def operations(broker: Broker) -> list[Any]:
    present = Present("c")
    return [
        lambda: broker.publish("a", text(1), size=1, ttl=1.0),
        lambda: broker.publish("a", text(1), size=0, ttl=1.0, once="k"),
        lambda: broker.subscribe("a"),
        lambda: broker.history("a"),
        lambda: broker.remove_history("a"),
        lambda: broker.presence_add("a", present),
        lambda: broker.presence_refresh([("a", present)]),
        lambda: broker.presence_remove("a", "c"),
        lambda: broker.presence_get("a"),
        lambda: broker.presence_stats("a"),
    ]


async def test_before_the_start_and_after_the_end(make: Make) -> None:
    broker = MemoryBroker()
    await broker.close()
    for operation in operations(broker):
        with pytest.raises(BrokerUnavailable):
            await operation()
    node = await make()
    await node.broker.close()
    await node.broker.close()
    for operation in operations(node.broker):
        with pytest.raises(BrokerUnavailable):
            await operation()
    await node.broker.unsubscribe("a")
    assert held(node) == EMPTY


async def test_it_is_up_at_once_and_may_be_started_again(make: Make) -> None:
    node = await make()
    assert node.states == ["up"]
    first = await node.publish("a", 1)
    await node.broker.subscribe("a")
    await node.broker.close()
    await node.start()
    assert node.states == ["up", "up"]
    second = await node.publish("a", 2)
    assert second.offset == 1
    assert second.epoch != first.epoch, "what was there has gone"
    assert not node.heard["a"], "nobody is subscribed"


async def test_names_are_checked(make: Make) -> None:
    node = await make()
    broker, present = node.broker, Present("c")
    named: list[Callable[[], Any]] = [
        lambda: broker.publish("", text(1), size=1, ttl=1.0),
        lambda: broker.publish("", text(1), size=0, ttl=1.0),
        lambda: broker.publish("", text(1), size=1, ttl=1.0, once="k"),
        lambda: broker.subscribe(""),
        lambda: broker.unsubscribe(""),
        lambda: broker.history(""),
        lambda: broker.remove_history(""),
        lambda: broker.presence_add("", present),
        lambda: broker.presence_refresh([("", present)]),
        lambda: broker.presence_remove("", "c"),
        lambda: broker.presence_get(""),
        lambda: broker.presence_stats(""),
    ]
    for operation in named:
        with pytest.raises(ChannelNameError):
            await operation()
    assert held(node) == EMPTY


# Publishing


async def test_a_publication_bears_the_time_of_day(make: Make, clock: Clock) -> None:
    node = await make()
    await node.publish("a", 1)
    clock.now += 5
    await node.publish("a", 2)
    await node.publish("a", 3, size=0)
    publications, _ = await node.broker.history("a")
    first, second = (publication.time for publication in publications)
    assert second - first == pytest.approx(5)
    assert abs(first - time.time()) < 60


async def test_what_is_too_long(make: Make) -> None:
    node = await make(max_payload=3)
    await node.publish("a", "abc")
    with pytest.raises(TooBigError, match="a publication of 4 bytes; the broker takes 3"):
        await node.publish("a", "abcd")
    with pytest.raises(TooBigError):
        await node.publish("a", "abcd", once="k")
    assert await node.texts("a") == ["abc"]
    assert held(node)["once"] == 0


async def test_whoever_is_told_may_change_who_is_told(make: Make) -> None:
    """It subscribes, unsubscribes and publishes from within, as far as it can without waiting."""
    space = new_space()
    first, second = await make(space), await make(space)
    for node in (first, second):
        await node.broker.subscribe("a")

    def leave(*_: object) -> None:
        with pytest.raises(StopIteration):
            second.broker.unsubscribe("a").send(None)

    first.listener = leave
    await first.publish("a", 1)
    await first.publish("a", 2)
    assert [each.data for each in first.heard["a"]] == ["1", "2"]
    assert [each.data for each in second.heard["a"]] == ["1"]


@pytest.mark.parametrize("size", [0, 100])
async def test_who_fails_to_take_it_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    space = new_space()
    first, second = await make(space), await make(space)
    for node in (first, second):
        await node.broker.subscribe("a")

    def fail(*_: object) -> None:
        raise LookupError("mine")

    first.listener = fail
    with caplog.at_level(logging.ERROR, "yaat.broker"):
        await first.publish("a", 1, size=size)
        await first.publish("a", 2, size=size)
    assert [each.data for each in second.heard["a"]] == ["1", "2"]
    assert [record.getMessage() for record in caplog.records] == [
        "a publication could not be delivered"
    ] * 2
    assert caplog.records[0].exc_info is not None


async def test_subscribing_again_and_again(make: Make) -> None:
    node = await make()
    for _ in range(3):
        await node.broker.subscribe("a")
    await node.publish("a", 1)
    assert len(node.heard["a"]) == 1
    for _ in range(3):
        await node.broker.unsubscribe("a")
    await node.broker.unsubscribe("b")
    await node.publish("a", 2)
    assert len(node.heard["a"]) == 1
    assert held(node)["listeners"] == 0


# How many channels


async def test_the_channel_used_least_recently_is_forgotten(make: Make) -> None:
    node = await make(max_channels=3)
    epochs = {name: (await node.publish(name, 1)).epoch for name in "abc"}
    await node.publish("a", 2)  # used by this,
    await node.top("b")  # and by this
    await node.publish("d", 1)
    assert held(node)["channels"] == 3
    assert (await node.top("a")).epoch == epochs["a"]
    assert (await node.top("b")).epoch == epochs["b"]
    assert (await node.top("d")).offset == 1
    top = await node.top("c")  # forgets again
    assert top.offset == 0
    assert top.epoch != epochs["c"]
    assert await node.texts("c") == []


async def test_a_channel_that_somebody_listens_to_is_not_forgotten(make: Make) -> None:
    node = await make(max_channels=2)
    await node.broker.subscribe("a")
    first = await node.publish("a", 1)
    for number in range(20):
        await node.publish(f"b{number}", 1)
    assert (await node.publish("a", 2)) == Published(2, first.epoch)
    assert held(node)["channels"] == 2
    assert held(node)["bytes"] == 3 * (OVERHEAD + 1)


async def test_if_there_are_too_many_of_those_there_are_more(make: Make) -> None:
    node = await make(max_channels=2)
    names = [f"a{number}" for number in range(CROWDED + 4)]
    for name in names:
        await node.broker.subscribe(name)
        await node.publish(name, 1)
    assert {(await node.publish(name, 2)).offset for name in names} == {2}
    assert held(node)["channels"] == len(names)
    # Not all are looked at for one that can go, but the next time others are.
    for name in names:
        await node.broker.unsubscribe(name)
    for number in range(3):
        await node.publish(f"b{number}", 1)
    assert held(node)["channels"] == len(names), "one came, and one went"


async def test_a_new_channel_is_not_the_one_that_is_forgotten(make: Make) -> None:
    node = await make(max_channels=2)
    for name in "ab":
        await node.broker.subscribe(name)
        await node.publish(name, 1)
    published = [await node.publish("c", number) for number in range(3)]
    assert [each.offset for each in published] == [1, 2, 3]
    assert await node.texts("c") == ["0", "1", "2"]


# How many bytes


async def test_the_history_used_least_recently_is_dropped(make: Make) -> None:
    node = await make(max_bytes=10 * (OVERHEAD + 10))
    tops = {}
    for name in "abcde":
        await node.publish(name, "x" * 10)
        tops[name] = (await node.publish(name, "y" * 10)).position
    assert held(node)["bytes"] == 10 * (OVERHEAD + 10)
    await node.publish("e", "z" * 10)
    assert await node.texts("a") == [], "two went, so that there is room for more than one"
    assert await node.top("a") == tops["a"], "the position stays"
    assert len(await node.texts("b")) == 2
    assert len(await node.texts("e")) == 3
    assert held(node)["bytes"] == 9 * (OVERHEAD + 10)
    before = held(node)["bytes"]
    assert before <= 10 * (OVERHEAD + 10)


async def test_one_that_is_longer_than_all_may_be_is_not_kept(make: Make) -> None:
    node = await make(max_bytes=1000)
    await node.broker.subscribe("a")
    published = await node.publish("a", "x" * 1000)
    assert published.offset == 1
    assert [each.offset for each in node.heard["a"]] == [1], "it came all the same"
    assert await node.texts("a") == []
    assert held(node)["bytes"] == 0
    await node.publish("a", "x")
    assert await node.texts("a") == ["x"]


async def test_bytes_are_counted_until_they_go(make: Make, clock: Clock) -> None:
    node = await make(max_channels=3)
    for number in range(4):
        await node.publish("size", "x" * number, size=2)
    assert held(node)["bytes"] == 2 * OVERHEAD + 5
    await node.publish("size", "", size=1)
    assert held(node)["bytes"] == OVERHEAD
    await node.broker.remove_history("size")
    assert held(node)["bytes"] == 0
    await node.publish("evicted", "x" * 7)
    for name in "abc":
        await node.publish(name, "")
    assert held(node)["bytes"] == 3 * OVERHEAD
    clock.now += 61
    sweep(node)
    assert held(node)["bytes"] == 0
    assert held(node)["channels"] == 3, "their positions stay"


# How long


async def test_what_has_expired_is_never_returned(make: Make, clock: Clock) -> None:
    node = await make()
    await node.publish("a", 1, ttl=10)
    clock.now += 6
    top = (await node.publish("a", 2, ttl=10)).position
    clock.now += 5
    assert await node.texts("a") == ["2"]
    assert await node.texts("a", reverse=True) == ["2"]
    assert await node.texts("a", since=Position(0, top.epoch)) == ["2"]
    clock.now += 6
    assert await node.texts("a") == []
    assert await node.texts("a", since=Position(9, top.epoch), reverse=True) == []
    assert await node.top("a") == top


async def test_a_publication_drops_what_has_expired(make: Make, clock: Clock) -> None:
    node = await make()
    for number in range(5):
        await node.publish("a", number, ttl=10)
    clock.now += 10
    await node.publish("a", 5, ttl=10)
    assert await node.texts("a") == ["5"]
    assert held(node)["bytes"] == OVERHEAD + 1
    await node.publish("a", 6, ttl=1e-9)  # less than the clock can tell
    assert await node.texts("a") == []
    assert (await node.publish("a", 7, ttl=10)).offset == 8


async def test_what_is_asked_of_the_history(make: Make) -> None:
    node = await make()
    for number in range(1, 6):
        top = (await node.publish("a", number)).position
    at = Position(3, top.epoch)
    assert await node.texts("a", limit=2) == ["1", "2"]
    assert await node.texts("a", limit=2, reverse=True) == ["5", "4"]
    assert await node.texts("a", since=at) == ["4", "5"]
    assert await node.texts("a", since=at, limit=1) == ["4"]
    assert await node.texts("a", since=at, reverse=True) == ["2", "1"]
    assert await node.texts("a", since=at, reverse=True, limit=1) == ["2"]
    assert await node.texts("a", limit=0) == []
    assert await node.texts("a", since=top) == []
    assert await node.texts("a", limit=100) == list("12345")


async def test_a_position_is_forgotten(make: Make, clock: Clock) -> None:
    node = await make(position_ttl=100.0)
    epochs = {name: (await node.publish(name, 1, ttl=1)).epoch for name in "ab"}
    clock.now += 99
    assert (await node.top("b")).epoch == epochs["b"]
    clock.now += 2
    sweep(node)
    assert held(node)["channels"] == 1
    assert (await node.top("b")).epoch == epochs["b"], "it was looked at"
    assert (await node.top("a")).epoch != epochs["a"]


async def test_not_while_somebody_listens_or_something_is_kept(make: Make, clock: Clock) -> None:
    node = await make(position_ttl=100.0)
    await node.broker.subscribe("heard")
    tops = {
        "heard": (await node.publish("heard", 1, ttl=1)).position,
        "kept": (await node.publish("kept", 1, ttl=1000)).position,
    }
    for _ in range(5):
        clock.now += 101
        sweep(node)
    assert held(node)["channels"] == 2
    assert {name: await node.top(name) for name in tops} == tops
    await node.broker.unsubscribe("heard")
    clock.now += 1000
    sweep(node)
    clock.now += 101
    sweep(node)
    assert held(node) == EMPTY


async def test_a_history_is_looked_at_again_while_something_is_kept(
    make: Make, clock: Clock
) -> None:
    node = await make()
    for number in range(4):
        await node.publish("a", number, ttl=9)
        clock.now += 4  # they expire at 9, 13, 17 and 21
    left = []
    for _ in range(4):
        sweep(node)  # at 16, 18, 20 and 22
        left.append((held(node)["bytes"] // OVERHEAD, held(node)["timetable"]))
        clock.now += 2
    assert left == [(2, 1), (1, 1), (1, 1), (0, 0)]


async def test_a_channel_stands_in_the_timetable_once(make: Make, clock: Clock) -> None:
    node = await make(max_channels=10)
    for number in range(1000):
        await node.publish(f"a{number % 20}", number)
        await node.broker.presence_add("p", Present(f"c{number}"))
        await node.broker.presence_remove("p", f"c{number}")
    assert held(node)["timetable"] <= 20 + 1
    names = [f"b{number}" for number in range(1000)]
    for name in names:
        await node.publish(name, 1)
        await node.broker.presence_add(name, Present("c"))
        await node.broker.presence_remove(name, "c")
    assert held(node)["timetable"] < 100, "what is forgotten is not in it"
    clock.now += 61
    sweep(node)
    assert held(node)["timetable"] == 0


# Idempotency keys


async def test_a_key_is_remembered(make: Make, clock: Clock) -> None:
    node = await make(once_ttl=10.0)
    await node.broker.subscribe("a")
    first = await node.publish("a", 1, once="k")
    assert not first.duplicate
    clock.now += 9
    assert await node.publish("a", 2, once="k") == first._replace(duplicate=True)
    assert not (await node.publish("b", 1, once="k")).duplicate, "each channel has its own"
    assert not (await node.publish("a", 3, once="l")).duplicate
    clock.now += 1
    again = await node.publish("a", 4, once="k")
    assert again == Published(3, first.epoch)
    assert [each.data for each in node.heard["a"]] == ["1", "3", "4"]


async def test_only_so_many_keys_are_remembered(make: Make) -> None:
    node = await make(max_once=3)
    for key in "klmn":
        await node.publish("a", key, once=key)
    assert held(node)["once"] == 3
    assert (await node.publish("a", 1, once="n")).duplicate
    assert (await node.publish("a", 1, once="l")).duplicate
    assert not (await node.publish("a", 1, once="k")).duplicate, "the oldest was forgotten"


async def test_a_key_of_what_is_not_kept(make: Make) -> None:
    node = await make()
    await node.broker.subscribe("a")
    assert await node.publish("a", 1, size=0, once="k") == Published(0, "", duplicate=False)
    assert await node.publish("a", 2, size=0, once="k") == Published(0, "", duplicate=True)
    assert len(node.heard["a"]) == 1


async def test_a_key_goes_with_the_epoch(make: Make) -> None:
    """Where a duplicate is said to be, there it has to be."""
    node = await make(max_channels=1)
    first = await node.publish("a", 1, once="k")
    await node.publish("b", 1)
    again = await node.publish("a", 2, once="k")
    assert again.offset == 1
    assert again.epoch != first.epoch
    assert not again.duplicate
    assert (await node.publish("a", 3, once="k")) == again._replace(duplicate=True)


async def test_keys_are_swept(make: Make, clock: Clock) -> None:
    node = await make(once_ttl=10.0)
    await node.publish("a", 1, once="k")
    clock.now += 5
    await node.publish("a", 1, once="l")
    clock.now += 6
    sweep(node)
    assert held(node)["once"] == 1


# Who is there


async def test_who_is_not_refreshed_expires(make: Make, clock: Clock) -> None:
    node = await make(presence_ttl=60.0)
    broker = node.broker
    ann, bob, cy = Present("1", "ann"), Present("2", "bob", {"a": 1}), Present("3", "ann")
    assert [await broker.presence_add("a", each) for each in (ann, bob, cy)] == [True] * 3
    assert await broker.presence_get("a") == [ann, bob, cy]
    assert await broker.presence_stats("a") == PresenceStats(3, 2)
    clock.now += 59
    await broker.presence_refresh([("a", bob), ("b", cy)])
    assert not await broker.presence_add("a", Present("1", "eve"))
    clock.now += 2
    assert await broker.presence_get("a") == [Present("1", "eve"), bob]
    assert await broker.presence_get("b") == [cy]
    assert await broker.presence_stats("a") == PresenceStats(2, 2)
    assert not await broker.presence_remove("a", "3"), "it had gone already"
    assert await broker.presence_add("a", Present("3")), "and comes again"
    assert await broker.presence_stats("a") == PresenceStats(3, 2), "who is nobody's counts as none"


async def test_who_comes_back_comes_last(make: Make, clock: Clock) -> None:
    node = await make(presence_ttl=60.0)
    for client in "12":
        await node.broker.presence_add("a", Present(client))
    clock.now += 59
    await node.broker.presence_refresh([("a", Present("2"))])
    clock.now += 2
    assert await node.broker.presence_add("a", Present("1"))
    assert [each.client for each in await node.broker.presence_get("a")] == ["2", "1"]


async def test_who_has_gone_takes_no_memory(make: Make, clock: Clock) -> None:
    node = await make(presence_ttl=60.0)
    for client in "123":
        await node.broker.presence_add("a", Present(client))
    await node.broker.presence_add("b", Present("1"))
    assert await node.broker.presence_remove("b", "1")
    assert not await node.broker.presence_remove("b", "1")
    assert not await node.broker.presence_remove("nowhere", "1")
    assert held(node)["present"] == 1
    clock.now += 30
    await node.broker.presence_refresh([("a", Present("3"))])
    clock.now += 31
    sweep(node)
    assert held(node)["present"] == 1
    clock.now += 61
    sweep(node)
    assert held(node) == EMPTY


# The timer


def test_one_timer_and_none_when_there_is_nothing() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        broker = MemoryBroker(clock=loop.time, position_ttl=100.0, once_ttl=50.0, presence_ttl=30.0)
        node = Node(broker)
        await node.start()
        assert broker._space._timer is None
        start = loop.time()
        await node.publish("a", 1, ttl=10.0, once="k")
        await broker.presence_add("a", Present("1"))
        timer = broker._space._timer
        assert timer is not None
        assert timer.when() == start + SWEEP
        await node.publish("b", 1, ttl=10.0)
        assert broker._space._timer is timer
        gone: dict[str, float] = {}
        while broker._space._timer is not None:
            await asyncio.sleep(SWEEP)
            for name, number in held(node).items():
                if not number:
                    gone.setdefault(name, loop.time() - start)
        assert gone["bytes"] == pytest.approx(11, abs=1.5)
        assert gone["present"] == pytest.approx(31, abs=1.5)
        assert gone["once"] == pytest.approx(51, abs=1.5)
        assert gone["channels"] == pytest.approx(101, abs=1.5)
        await node.publish("a", 1)
        assert broker._space._timer is not None, "and again"
        await broker.close()
        assert broker._space._timer is None

    in_scripted_time(play)


async def test_who_is_present_is_swept_though_the_timetable_was_rewritten(
    make: Make, clock: Clock
) -> None:
    for forgotten in range(80):  # at one of these it is rewritten for who comes
        node = await make(max_channels=1)
        for number in range(forgotten):
            await node.publish(f"a{number}", 1)
        await node.broker.presence_add("a", Present("c"))
        clock.now += 61
        sweep(node)
        assert held(node)["present"] == 0, forgotten


async def test_it_is_of_one_application(make: Make) -> None:
    """A second one that is given it would take away what the first is told."""
    node = await make()
    with pytest.raises(UsageError, match="'memory://name'"):
        await node.start()


# Spaces


async def test_without_a_name_each_is_alone(make: Make) -> None:
    first, second = await make(), await make()
    for node in (first, second):
        await node.broker.subscribe("a")
    await first.publish("a", 1)
    assert len(first.heard["a"]) == 1
    assert not second.heard["a"]
    assert await second.texts("a") == []


async def test_with_a_name_they_are_nodes_of_one(make: Make) -> None:
    space = new_space()
    first, second, other = await make(space), await make(space), await make(new_space())
    for node in (first, second, other):
        await node.broker.subscribe("a")
    published = await first.publish("a", 1, once="k")
    assert (await second.publish("a", 2, once="k")) == published._replace(duplicate=True)
    assert [len(node.heard["a"]) for node in (first, second, other)] == [1, 1, 0]
    assert await second.top("a") == published.position
    await first.broker.presence_add("a", Present("1"))
    assert await second.broker.presence_get("a") == [Present("1")]
    assert await other.broker.presence_get("a") == []


async def test_two_nodes_may_tell_the_same_function() -> None:
    heard: list[object] = []

    def note(*each: object) -> None:
        heard.append(each)

    space = new_space()
    first, second = MemoryBroker(space), MemoryBroker(space)
    for broker in (first, second):
        await broker.start(note, lambda _: None, lambda _: None)
        await broker.subscribe("a")
    await first.publish("a", text(1), size=0, ttl=1)
    assert len(heard) == 2
    await first.unsubscribe("a")
    await first.publish("a", text(1), size=0, ttl=1)
    assert len(heard) == 3
    for broker in (first, second):
        await broker.close()


async def test_who_leaves_a_space_is_told_nothing_more(make: Make) -> None:
    space = new_space()
    first, second = await make(space), await make(space)
    for node in (first, second):
        await node.broker.subscribe("a")
        await node.broker.subscribe("b")
    top = (await first.publish("a", 1)).position
    await first.broker.close()
    await second.publish("a", 2)
    assert len(first.heard["a"]) == 1
    assert len(second.heard["a"]) == 2
    await first.start()
    assert (await first.top("a")) == Position(2, top.epoch), "it was there all the time"


async def test_with_the_last_node_all_goes(make: Make) -> None:
    space = new_space()
    first, second = await make(space), await make(space)
    top = (await first.publish("a", 1, once="k")).position
    await first.broker.presence_add("a", Present("1"))
    await first.broker.subscribe("a")
    await first.broker.close()
    assert held(second)["channels"] == 1
    await second.broker.close()
    assert held(second) == EMPTY
    third = await make(space)
    assert (await third.top("a")).epoch != top.epoch


async def test_the_bounds_of_a_space_are_those_of_the_first(make: Make) -> None:
    space = new_space()
    first, second = await make(space, max_channels=1), await make(space, max_payload=1)
    for name in "ab":
        await second.publish(name, 1)
    assert held(second)["channels"] == 1
    await first.publish("a", "long")
    with pytest.raises(TooBigError):
        await second.publish("a", "long")


async def test_a_space_that_nobody_has_is_forgotten() -> None:
    space = new_space()
    broker = MemoryBroker(space, max_channels=1)
    assert MemoryBroker(space)._space is broker._space
    del broker
    gc.collect()
    anew = Node(MemoryBroker(space))
    await anew.start()
    for name in "ab":
        await anew.publish(name, 1)
    assert held(anew)["channels"] == 2
    await anew.broker.close()


# Event loops


async def test_a_space_belongs_to_one_event_loop(make: Make) -> None:
    space = new_space()
    await make(space)

    def elsewhere() -> str:
        async def start() -> None:
            await MemoryBroker(space).start(lambda *_: None, lambda _: None, lambda _: None)

        with pytest.raises(UsageError) as caught:
            asyncio.run(start())
        return str(caught.value)

    assert "one event loop" in await asyncio.to_thread(elsewhere)


def test_after_a_loop_has_gone_the_next_begins_anew() -> None:
    space = new_space()
    node = Node(MemoryBroker(space))
    other = Node(MemoryBroker(space))

    async def first() -> Position:
        await node.start()
        await node.broker.subscribe("a")
        await node.broker.presence_add("a", Present("1"))
        return (await node.publish("a", 1)).position

    async def second() -> Position:
        await other.start()
        assert held(other) == EMPTY
        top = await other.top("a")
        await other.publish("a", 2)
        assert len(node.heard["a"]) == 1, "who was there has gone with the loop"
        await other.broker.close()
        return top

    with asyncio.Runner() as runner:
        before = runner.run(first())  # and nobody closes it
    with asyncio.Runner() as runner:
        after = runner.run(second())
    assert before.epoch != after.epoch
    assert after.offset == 0


# URLs


@pytest.mark.parametrize("url", ["memory://", "memory://?max_channels=1"])
def test_a_url_without_a_name(url: str) -> None:
    first, second = open_broker(url), open_broker(url)
    assert isinstance(first, MemoryBroker)
    assert isinstance(second, MemoryBroker)
    assert first._space is not second._space


def test_a_url_with_a_name() -> None:
    space = new_space().replace(" ", "-")
    broker = open_broker(f"memory://{space}?max_payload=5")
    assert isinstance(broker, MemoryBroker)
    assert broker._space is MemoryBroker(space)._space
    assert broker._space is not MemoryBroker(space + "s")._space
    assert broker._max_payload == 5


def test_every_bound_may_stand_in_the_url() -> None:
    options: dict[str, float] = {
        "max_channels": 1,
        "max_bytes": 2,
        "position_ttl": 3.5,
        "presence_ttl": 4.5,
        "once_ttl": 5.5,
        "max_once": 6,
        "max_payload": 7,
    }
    query = "&".join(f"{name}={value}" for name, value in options.items())
    broker = open_broker(f"memory://?{query}")
    assert isinstance(broker, MemoryBroker)
    space = broker._space
    assert options == {
        "max_channels": space.histories._max_channels,
        "max_bytes": space.histories._max_bytes,
        "position_ttl": space.histories._position_ttl,
        "presence_ttl": space.presence.ttl,
        "once_ttl": space._once._ttl,
        "max_once": space._once._most,
        "max_payload": broker._max_payload,
    }


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("memory://?ttl=5", "'ttl' is no option of memory://; it has max_channels, max_bytes,"),
        ("memory://?clock=5", "'clock' is no option of memory://"),
        ("memory://?max_channels=many", "max_channels of memory:// is a number, not 'many'"),
        ("memory://?max_channels=1.5", "max_channels of memory:// is a number, not '1.5'"),
        ("memory://?max_channels=", "max_channels of memory:// is a number, not ''"),
        ("memory://?max_channels=0", "max_channels must be above 0, not 0"),
        ("memory://?once_ttl=nan", "once_ttl must be above 0, not nan"),
        ("memory:chat", "'memory:chat' is neither 'memory://' nor 'memory://name'"),
        ("memory:///chat", "'memory:///chat' is neither"),
        ("memory://a/b", "'memory://a/b' is neither"),
        ("memory://a#b", "'memory://a#b' is neither"),
        ("MEMORY://", "'MEMORY://' is neither"),
        ("memory://[", "'memory://[' is no URL: "),
        ("smoke://user:secret@host", "no broker is known for smoke; there are: memory://"),
        ("memory", "no broker is known for that; there are: memory://"),
        ("", "no broker is known for that; there are: memory://"),
    ],
)
def test_a_url_that_cannot_be_meant(url: str, why: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        open_broker(url)
    said = str(caught.value)
    assert said.startswith(why) or said.replace("'", "").startswith(why)
    assert "secret" not in said
