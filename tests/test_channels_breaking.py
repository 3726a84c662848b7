"""What may go wrong with a hub: cancelled anywhere, closed anytime, failed by all it relies on.

After each of these nothing is left of who was there, and it works for everybody else.
"""

import asyncio
import gc
import logging
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from brokers import DistantBroker
from scripted import ScriptedServer, in_scripted_time
from yaat.brokers.contract import Position, Publication
from yaat.brokers.memory import MemoryBroker
from yaat.channels import POSITIONED, Channel, ChannelOptions, Channels
from yaat.channels.hub import Hub
from yaat.exceptions import (
    BrokerError,
    BrokerUnavailable,
    PositionLost,
    StateError,
    UsageError,
    WebSocketDisconnect,
)
from yaat.frames import Frame
from yaat.outbox import OVERHEAD
from yaat.policy import Policy
from yaat.websockets import WebSocket

CHANNELS = Channels(
    {
        "kept:{id}": ChannelOptions(history=50, presence=True),
        "long:{id}": ChannelOptions(history=5000),
        "narrow:{id}": ChannelOptions(history=50, max_waiting=3 * (OVERHEAD + 10)),
    }
)

LATER = 5.0
"""How long it may take, in seconds, until nothing is left of who has gone."""

BUSY = 500
"""No more often than this is a broker asked for anything here."""


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[ScriptedServer, WebSocket]]:
    server = ScriptedServer(**{"yaat.policy": Policy(close_timeout=1.0)})
    websocket = server.websocket()
    async with websocket:
        await websocket.accept()
        server.sent.clear()
        yield server, websocket


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def nothing_is_left(hub: Hub, others: set[asyncio.Task[Any]]) -> None:
    """Check it some time after everybody has gone."""
    await asyncio.sleep(LATER)
    assert hub._rooms == {}
    assert hub._present == {}
    assert hub._tasks == set()
    assert isinstance(hub.broker, MemoryBroker)
    assert hub.broker._space.listeners == {}
    assert hub.broker._space.presence.channels == {}
    # What reads ahead is the connection's, and whether it does is a matter of real time.
    left = {task for task in asyncio.all_tasks() if task.get_name() != "yaat read-ahead"}
    assert left <= others


async def sent(server: ScriptedServer, count: int) -> list[Any]:
    """Wait until so much was sent; return it all."""
    async with asyncio.timeout(5):
        while len(server.texts) < count:  # noqa: ASYNC110 - a scripted server tells nobody
            await asyncio.sleep(0)
    await turns(10)
    return server.texts


async def listen(channel: Channel, heard: list[Any], **options: Any) -> None:
    async with aclosing(channel.subscribe(**options)) as source:
        async for publication in source:
            heard.append(publication.data)  # noqa: PERF401 - it may be cancelled in between


# Cancelled


JOINS: dict[str, dict[str, Any]] = {
    "live": {},
    "last": {"last": 3},
    "since": {"since": "first"},
    "lost": {"since": "nonsense", "last": 3},
}


async def sit(channel: Channel, websocket: WebSocket, options: dict[str, Any]) -> None:
    async def on_lost(_: PositionLost) -> None:
        await asyncio.sleep(0.001)

    async with channel.join(websocket, user="u", on_lost=on_lost, **options):
        await asyncio.sleep(0.005)


async def is_cancelled_at(moment: float, again: float | None, options: dict[str, Any]) -> None:
    """Cancel somebody who joins and leaves, so much later; and `again` even later."""
    hub = Hub(DistantBroker(there=0.001, back=0.001), CHANNELS)
    channel = hub.channel("kept:a")
    places = [(await channel.publish(number)).position for number in range(5)]
    if options.get("since") == "first":
        options = {"since": places[0]}
    async with accepted() as (server, websocket):
        others = asyncio.all_tasks()
        task = asyncio.create_task(sit(channel, websocket, options))
        await asyncio.sleep(moment)
        task.cancel()
        if again is not None:
            await asyncio.sleep(again)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await nothing_is_left(hub, others)
        seen = list(server.texts)
        await channel.publish("after")
        await websocket.send_text("mine")
        assert server.texts == [*seen, "mine"]
        async with channel.join(websocket, last=1):
            assert await sent(server, len(seen) + 2) == [*seen, "mine", "after"]
    await hub.close()


@pytest.mark.parametrize("how", JOINS)
@pytest.mark.parametrize("again", [None, 0.0, 0.0005], ids=["once", "at once", "twice"])
def test_who_is_cancelled_in_the_middle_leaves_nothing(how: str, again: float | None) -> None:
    async def play() -> None:
        for moment in range(60):
            await is_cancelled_at(moment * 0.0005, again, JOINS[how])

    in_scripted_time(play)


def test_a_subscriber_that_is_cancelled_in_the_middle_leaves_nothing() -> None:
    async def play() -> None:
        for moment in range(30):
            hub = Hub(DistantBroker(there=0.001, back=0.001), CHANNELS)
            channel = hub.channel("kept:a")
            await channel.publish(0)
            others = asyncio.all_tasks()
            task = asyncio.create_task(listen(channel, [], last=1))
            await asyncio.sleep(moment * 0.0005)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await nothing_is_left(hub, others)
            await hub.close()

    in_scripted_time(play)


def test_one_of_those_who_come_together_is_cancelled_alone() -> None:
    """They wait for the same subscription: it goes on for the others."""

    async def play() -> None:
        for which in range(3):
            hub = Hub(DistantBroker(there=0.01, back=0.01), CHANNELS)
            heard: list[list[int]] = [[], [], []]
            tasks = [asyncio.create_task(listen(hub.channel("kept:a"), each)) for each in heard]
            await asyncio.sleep(0.015)
            tasks.pop(which).cancel()
            await asyncio.sleep(1)
            await hub.channel("kept:a").publish(1)
            await asyncio.sleep(1)
            expected = [[1], [1], [1]]
            expected[which] = []
            assert heard == expected
            await hub.close()
            await asyncio.gather(*tasks)

    in_scripted_time(play)


async def test_a_subscription_that_is_left_open_is_given_up_with_its_iterator() -> None:
    hub = Hub(None, CHANNELS)
    await hub.channel("kept:a").publish(1)
    source = hub.channel("kept:a").subscribe(last=1)
    assert (await anext(source)).data == 1
    room = hub._rooms["kept:a"]
    assert room.uses == 1
    del source
    gc.collect()
    await turns(5)
    assert room.uses == 0
    assert room.members == []
    await hub.close()


# Closed


async def sit_again_and_again(channel: Channel) -> None:
    async with accepted() as (_, websocket):
        for _ in range(5):
            async with channel.join(websocket, user="u", last=2):
                await asyncio.sleep(0.001)


async def publish(channel: Channel) -> None:
    for number in range(20):
        await channel.publish(number)


async def look(channel: Channel) -> None:
    for _ in range(5):
        await channel.history()
        await channel.presence()


@pytest.mark.parametrize("moment", range(0, 40, 3))
def test_it_is_closed_in_the_middle_of_everything(moment: int) -> None:
    """Who is waiting for it is told, and by no cancellation; who listens comes to an end."""

    async def play() -> None:
        hub = Hub(DistantBroker(there=0.001, back=0.001), CHANNELS)
        channel = hub.channel("kept:a")
        others = asyncio.all_tasks()
        works = [sit_again_and_again(channel), sit_again_and_again(channel), publish(channel)]
        works += [look(channel), listen(channel, []), listen(channel, [], last=1)]
        tasks = [asyncio.create_task(work) for work in works]
        await asyncio.sleep(moment * 0.0005)
        await asyncio.gather(hub.close(), hub.close())
        await asyncio.sleep(LATER)
        await hub.close()  # some of them have started it again by what they did next
        await asyncio.wait(tasks)
        for task in tasks:
            assert not task.cancelled()
            assert isinstance(task.exception(), BrokerError | None)
        await asyncio.sleep(LATER)
        assert asyncio.all_tasks() == others

    in_scripted_time(play)


@pytest.mark.parametrize("seconds", [0.5, 2.5, 4.5, 6.5])
def test_to_close_ends_who_waits_to_get_in(seconds: float) -> None:
    """It is being started, or subscribed to, or looked where it stands; or its history is read."""

    async def play() -> None:
        hub = Hub(DistantBroker(there=1.0, back=1.0), CHANNELS)
        others = asyncio.all_tasks()
        async with accepted() as (_, websocket):

            async def sit() -> None:
                async with hub.channel("kept:a").join(websocket, last=1):
                    raise AssertionError("it is closed")

            tasks = [
                asyncio.create_task(work)
                for work in (sit(), listen(hub.channel("kept:a"), [], last=1))
            ]
            await asyncio.sleep(seconds)
            await hub.close()
            await asyncio.wait(tasks)
            for task in tasks:
                assert not task.cancelled()
                assert isinstance(task.exception(), BrokerError)
        await asyncio.sleep(LATER)
        assert asyncio.all_tasks() == others

    in_scripted_time(play)


async def test_what_was_published_before_it_was_closed_is_read_to_the_end() -> None:
    hub = Hub(None, CHANNELS)
    heard: list[int] = []
    task = asyncio.create_task(listen(hub.channel("kept:a"), heard))
    await turns(10)
    for number in range(3):
        await hub.channel("kept:a").publish(number)
    await hub.close()
    await task
    assert heard == [0, 1, 2]


async def test_who_is_in_when_it_is_closed_leaves_as_ever() -> None:
    hub = Hub(None, CHANNELS)
    others = asyncio.all_tasks()
    async with accepted() as (server, websocket):
        async with hub.channel("kept:a").join(websocket, user="u"):
            await hub.close()
            await websocket.send_text("still here")
            assert server.texts == ["still here"]
            await hub.channel("kept:a").publish("again")  # its next use starts it
        async with hub.channel("kept:a").join(websocket, user="u"):
            await hub.channel("kept:a").publish("new")
            assert await sent(server, 2) == ["still here", "new"]
    await hub.close()
    await turns(10)
    assert asyncio.all_tasks() == others


# Started


async def test_the_first_uses_may_come_together() -> None:
    hub = Hub(None, CHANNELS)
    channel = hub.channel("kept:a")
    published = await asyncio.gather(*(channel.publish(number) for number in range(5)))
    assert [each.offset for each in published] == [1, 2, 3, 4, 5]
    await hub.close()


def test_who_publishes_while_it_starts_waits_for_that() -> None:
    async def play() -> None:
        hub = Hub(DistantBroker(there=0.5, back=0.5), CHANNELS)
        starting = asyncio.create_task(hub.start())
        await asyncio.sleep(0.1)
        await hub.channel("kept:a").publish(1)
        await starting
        await hub.close()

    in_scripted_time(play)


def test_a_start_that_fails_is_tried_again_by_the_next_use() -> None:
    async def play() -> None:
        broker = DistantBroker(there=0.1)
        broker.failing["start"] = 1
        hub = Hub(broker, CHANNELS)
        calls = [hub.channel("kept:a").publish(number) for number in range(3)]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, BrokerUnavailable)
        assert (await hub.channel("kept:a").publish(3)).offset == 1
        await hub.close()

    in_scripted_time(play)


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "left as it was"])
def test_one_event_loop_after_the_other(is_closed: bool) -> None:  # noqa: FBT001
    hub = Hub(None, CHANNELS)

    async def use() -> None:
        heard: list[int] = []
        task = asyncio.create_task(listen(hub.channel("kept:a"), heard))
        await turns(10)
        channel = hub.channel("kept:a")
        async with accepted() as (server, websocket), channel.join(websocket, user="u"):
            await channel.publish(1)
            assert await sent(server, 1) == ["1"]
            assert len(await channel.presence()) == 1
        await turns(5)
        assert heard == [1]
        task.cancel()
        if is_closed:
            await hub.close()

    for _ in range(3):
        asyncio.run(use())
    asyncio.run(hub.close())


async def test_two_event_loops_at_once_are_refused() -> None:
    hub = Hub(None, CHANNELS)
    await hub.channel("kept:a").publish(1)

    def elsewhere() -> None:
        with pytest.raises(UsageError, match="loop"):
            asyncio.run(hub.channel("kept:a").publish(2))

    await asyncio.to_thread(elsewhere)
    assert (await hub.channel("kept:a").publish(3)).offset == 2
    await hub.close()


# Failed


@pytest.mark.parametrize("operation", ["subscribe", "history", "presence_add", "publish"])
def test_a_join_that_the_broker_fails_leaves_nothing(operation: str) -> None:
    async def play() -> None:
        broker = DistantBroker(there=0.001, back=0.001)
        hub = Hub(broker, CHANNELS)
        channel = hub.channel("kept:a")
        await channel.publish(0)
        others = asyncio.all_tasks()
        async with accepted() as (server, websocket):
            broker.failing[operation] = 1
            with pytest.raises(BrokerUnavailable):
                async with channel.join(websocket, user="u", last=1):
                    raise AssertionError("it is not in")
            broker.failing.clear()
            async with channel.join(websocket, user="u"):
                await channel.publish(1)
                assert (await sent(server, 1))[-1] == "1"
        await nothing_is_left(hub, others)
        await hub.close()

    in_scripted_time(play)


@pytest.mark.parametrize("operation", ["presence_remove", "unsubscribe"])
def test_who_leaves_is_not_held_up_by_a_broker_that_fails(
    operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        broker = DistantBroker(there=0.001)
        hub = Hub(broker, CHANNELS)
        async with accepted() as (_, websocket):
            broker.failing[operation] = 1
            async with hub.channel("kept:a").join(websocket, user="u"):
                pass
            await asyncio.sleep(LATER)
            assert broker.failing[operation] == 0
            assert hub._rooms == {}
            async with hub.channel("kept:a").join(websocket, user="u"):
                assert len(await hub.channel("kept:a").presence()) == 1
        await hub.close()

    with caplog.at_level(logging.WARNING):
        in_scripted_time(play)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_those_who_come_together_are_all_told_and_the_next_gets_in() -> None:
    async def play() -> None:
        broker = DistantBroker(there=0.01, back=0.01)
        hub = Hub(broker, CHANNELS)
        await hub.start()
        broker.failing["subscribe"] = 1
        heard: list[int] = []
        works = [listen(hub.channel("kept:a"), []) for _ in range(3)]
        results = asyncio.gather(*works, return_exceptions=True)
        await asyncio.sleep(0.03)
        following = asyncio.create_task(listen(hub.channel("kept:a"), heard))
        for result in await results:
            assert isinstance(result, BrokerUnavailable)
        await asyncio.sleep(1)
        await hub.channel("kept:a").publish(1)
        await asyncio.sleep(1)
        assert heard == [1]
        assert broker.calls["subscribe"] == 2
        await hub.close()
        await following

    in_scripted_time(play)


def test_what_is_missing_is_asked_for_until_it_is_there() -> None:
    async def play() -> None:
        broker = DistantBroker(there=0.01)
        hub = Hub(broker, CHANNELS)
        heard: list[int] = []
        task = asyncio.create_task(listen(hub.channel("kept:a"), heard))
        await asyncio.sleep(1)
        broker.to_lose = 2
        broker.failing["history"] = 5
        for number in range(4):
            await hub.channel("kept:a").publish(number)
        await asyncio.sleep(60)
        assert heard == [0, 1, 2, 3]
        assert broker.calls["history"] < BUSY
        await hub.close()
        await task

    in_scripted_time(play)


def test_what_is_missing_when_nobody_listens_is_nobody_s_loss() -> None:
    """The channel is still subscribed to for a moment after the last one has left."""

    async def play() -> None:
        broker = DistantBroker()
        hub = Hub(broker, CHANNELS)
        channel = hub.channel("kept:a")
        others = asyncio.all_tasks()
        async with accepted() as (_, websocket):
            async with channel.join(websocket):
                pass
            broker.to_lose = 1
            for number in range(3):
                await channel.publish(number)
            for _ in range(BUSY):  # time does not pass while there is anything to do
                await asyncio.sleep(0)
            assert broker.calls["history"] < 5
            assert len(hub._tasks) < 2
        await nothing_is_left(hub, others)
        await hub.close()

    in_scripted_time(play)


def test_who_comes_when_something_was_missed_and_nobody_was_there() -> None:
    async def play() -> None:
        broker = DistantBroker()
        hub = Hub(broker, CHANNELS)
        channel = hub.channel("kept:a")
        async with accepted() as (server, websocket):
            async with channel.join(websocket):
                pass
            broker.to_lose = 1
            for number in range(3):
                await channel.publish(number)
            async with channel.join(websocket, last=2):
                await channel.publish(3)
                await asyncio.sleep(0.1)
                assert server.texts == ["1", "2", "3"]
        await hub.close()

    in_scripted_time(play)


class BrokenFormat:
    """A format that cannot do it."""

    def encode(self, channel: str, publication: Publication) -> Frame:
        raise LookupError("in a format")

    def stand(self, channel: str, position: Position) -> None:
        return None


async def test_a_format_that_fails_is_nobody_else_s_loss(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(None, CHANNELS)
    channel = hub.channel("long:a")
    async with accepted() as (broken, one), accepted() as (server, other):
        async with channel.join(one, format=BrokenFormat()), channel.join(other):
            await channel.publish(1)
            await channel.publish(2)
            assert await sent(server, 2) == ["1", "2"]
            assert broken.texts == []
        with pytest.raises(LookupError):
            async with channel.join(one, format=BrokenFormat(), last=2):
                raise AssertionError("it is not in")
        assert hub._rooms["long:a"].uses == 0
    await hub.close()
    errors = [record.exc_info for record in caplog.records if record.exc_info]
    assert [error[0] for error in errors] == [LookupError, LookupError]


async def fails_later(_: PositionLost) -> None:
    await asyncio.sleep(0)
    raise LookupError("in on_lost")


def fails_at_once(_: PositionLost) -> None:
    raise LookupError("in on_lost")


@pytest.mark.parametrize("on_lost", [fails_at_once, fails_later])
async def test_what_on_lost_raises_ends_the_join(on_lost: Callable[[PositionLost], Any]) -> None:
    hub = Hub(None, CHANNELS)
    async with accepted() as (_, websocket):
        with pytest.raises(LookupError):
            async with hub.channel("kept:a").join(websocket, since="nonsense", on_lost=on_lost):
                raise AssertionError("it is not in")
        assert hub._rooms["kept:a"].uses == 0
    await hub.close()


@pytest.mark.parametrize("on_lost", [fails_at_once, fails_later])
def test_what_on_lost_raises_later_is_logged(
    on_lost: Callable[[PositionLost], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        broker = DistantBroker()
        hub = Hub(broker, Channels({"kept:a": ChannelOptions(history=1)}))
        channel = hub.channel("kept:a")
        async with accepted() as (server, websocket), channel.join(websocket, on_lost=on_lost):
            broker.to_lose = 2
            for number in range(3):
                await channel.publish(number)
            await asyncio.sleep(1)
            await channel.publish(3)
            assert await sent(server, 1) == ["3"]
        await hub.close()

    in_scripted_time(play)
    errors = [record.exc_info for record in caplog.records if record.exc_info]
    assert [error[0] for error in errors] == [LookupError]


async def test_who_cannot_join_leaves_nothing() -> None:
    hub = Hub(None, CHANNELS)
    channel = hub.channel("kept:a")
    server = ScriptedServer()
    with pytest.raises(StateError):
        async with channel.join(server.websocket()):
            raise AssertionError("it is not accepted")
    async with accepted() as (server, websocket):
        server.leave()
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
        with pytest.raises(WebSocketDisconnect):
            async with channel.join(websocket):
                raise AssertionError("it has left")
    async with accepted() as (server, websocket), channel.join(websocket):
        with pytest.raises(UsageError, match="already"):
            async with channel.join(websocket):
                raise AssertionError("it is in")
        await channel.publish(1)
        assert await sent(server, 1) == ["1"]
    assert hub._rooms["kept:a"].uses == 0
    assert await channel.presence() == []
    await hub.close()


def test_a_peer_that_leaves_while_it_is_brought_what_it_missed() -> None:
    async def play() -> None:
        hub = Hub(None, CHANNELS)
        channel = hub.channel("kept:a")
        for number in range(20):
            await channel.publish(number)
        others = asyncio.all_tasks()

        async def sit(server: ScriptedServer, websocket: WebSocket) -> None:
            async with channel.join(websocket, last=20):
                raise AssertionError("it has left")

        server = ScriptedServer(**{"yaat.policy": Policy(close_timeout=1.0)})
        websocket = server.websocket()
        async with websocket:
            await websocket.accept()
            server.gate.clear()
            task = asyncio.create_task(sit(server, websocket))
            await asyncio.sleep(0.1)
            server.leave()
            server.gate.set()
            await asyncio.wait([task])
            assert isinstance(task.exception(), WebSocketDisconnect)
        await nothing_is_left(hub, others)
        await hub.close()

    in_scripted_time(play)


# Much of it


def test_more_is_published_than_can_be_held_while_somebody_joins() -> None:
    async def play() -> None:
        hub = Hub(DistantBroker(there=0.1, back=0.5), CHANNELS)
        channel = hub.channel("long:a")
        heard: list[list[int]] = [[], [], []]
        begin = (await channel.history(limit=0)).top
        options: list[dict[str, Any]] = [{"since": begin}, {"last": 4000}, {"since": begin}]
        tasks = []
        for start, each, option in zip((0, 1500, 3000), heard, options, strict=True):
            tasks.append(asyncio.create_task(listen(channel, each, **option)))
            await asyncio.sleep(0.65 if start else 1.25)  # in the middle of reading the history
            numbers = range(start, start + 1500)
            await asyncio.gather(*(channel.publish(number) for number in numbers))
        await asyncio.sleep(10)
        for each in heard:
            assert each == list(range(4500))
        await hub.close()
        await asyncio.gather(*tasks)

    in_scripted_time(play)


def test_more_is_published_than_can_be_held_while_something_is_missing() -> None:
    async def play() -> None:
        broker = DistantBroker(there=0.1, back=0.5)
        hub = Hub(broker, CHANNELS)
        heard: list[int] = []
        task = asyncio.create_task(listen(hub.channel("long:a"), heard))
        await asyncio.sleep(5)
        broker.to_lose = 3
        publishing = [hub.channel("long:a").publish(number) for number in range(3500)]
        await asyncio.gather(*publishing)
        await asyncio.sleep(10)
        assert heard == list(range(3500))
        await hub.close()
        await task

    in_scripted_time(play)


async def listen_on(source: AsyncIterator[Publication]) -> None:
    async for _ in source:
        pass


async def test_a_reader_that_is_slow_goes_on_from_the_history() -> None:
    hub = Hub(None, CHANNELS)
    channel = hub.channel("narrow:a")
    source = channel.subscribe(last=1)
    await channel.publish(0)
    assert (await anext(source)).data == 0
    for number in range(1, 40):
        await channel.publish(number)
    assert [(await anext(source)).data for _ in range(39)] == list(range(1, 40))
    for number in range(60):
        await channel.publish(number)
    with pytest.raises(PositionLost):
        await listen_on(source)
    await hub.close()


def test_ten_thousand_channels_come_and_go() -> None:
    async def play() -> None:
        hub = Hub(None, CHANNELS)
        names = [f"room:{number}" for number in range(10_000)]
        sources = [hub.channel(name).subscribe() for name in names]
        others = asyncio.all_tasks()
        waiting = [asyncio.ensure_future(anext(source)) for source in sources]
        await turns(10)
        assert len(hub._rooms) == 10_000
        for name in names:
            await hub.channel(name).publish(name)
        assert [publication.data for publication in await asyncio.gather(*waiting)] == names
        for source in sources:
            await source.aclose()
        await nothing_is_left(hub, others)
        await hub.close()

    in_scripted_time(play)


def test_nothing_is_remembered_of_who_has_left() -> None:
    """Be it of connections, of members, or of channels without history."""

    async def play() -> None:
        hub = Hub(None, CHANNELS)
        gone: list[weakref.ref[Any]] = []

        async def visit(number: int) -> None:
            async with accepted() as (_, websocket):
                if not tracemalloc.is_tracing():
                    gone.append(weakref.ref(websocket))
                for name in (f"room:{number % 1000}", "kept:a"):
                    async with hub.channel(name).join(websocket, format=POSITIONED):
                        await hub.channel(name).publish(number)
                        await turns(1)

        async def crowd(start: int) -> None:
            await asyncio.gather(*(visit(number) for number in range(start, start + 40)))
            await asyncio.sleep(LATER)

        await crowd(0)
        gc.collect()
        assert [each() for each in gone if each() is not None] == []
        held = []
        tracemalloc.start()
        try:
            for start in range(1000, 7000, 1000):
                await crowd(start)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        # What is made but once is made by then; 160 more have come, and left next to nothing.
        assert held[5] - held[1] < 160 * 50
        await hub.close()

    in_scripted_time(play)


@pytest.mark.parametrize("disturbed", [False, True], ids=["from the beginning", "after a loss"])
def test_answers_that_are_faster_than_what_comes_live(disturbed: bool) -> None:  # noqa: FBT001
    """What the history has brought comes once more, live: that is nothing missing."""

    async def play() -> None:
        broker = DistantBroker(there=0.025, live=0.1)
        hub = Hub(broker, CHANNELS)
        heard: list[int] = []

        async def publish() -> None:
            for number in range(200):
                await hub.channel("kept:a").publish(number)
                await asyncio.sleep(0.01)
                if disturbed and number == 100:
                    broker.to_lose = 1

        publishing = asyncio.create_task(publish())
        await asyncio.sleep(0.5)
        task = asyncio.create_task(listen(hub.channel("kept:a"), heard))
        await publishing
        await asyncio.sleep(1)
        assert heard == list(range(heard[0], 200))
        assert broker.calls["history"] == (2 if disturbed else 1)
        await hub.close()
        await task

    in_scripted_time(play)


def test_who_looks_on_loses_no_position() -> None:
    """Who comes and goes has none, whatever becomes of what is published there."""

    async def play() -> None:
        broker = DistantBroker()
        hub = Hub(broker, Channels({"kept:a": ChannelOptions(history=1, presence=True)}))
        channel = hub.channel("kept:a")
        seen: list[str] = []

        async def look_on() -> None:
            async with aclosing(channel.presence_events()) as events:
                async for event in events:
                    seen.append(event.kind)  # noqa: PERF401 - it never ends by itself

        task = asyncio.create_task(look_on())
        await asyncio.sleep(1)
        broker.to_lose = 2
        for number in range(4):
            await channel.publish(number)
        await asyncio.sleep(1)
        async with accepted() as (_, websocket), channel.join(websocket):
            pass
        await asyncio.sleep(1)
        assert seen == ["join", "leave"]
        await hub.close()
        await task

    in_scripted_time(play)
