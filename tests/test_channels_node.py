"""A node: it starts by itself, has rooms while they are needed, and says who is there."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from scripted import ScriptedLoop, idle
from scripted_broker import ScriptedBroker, down, in_no_time
from yaat.brokers.contract import Content, Position, Present
from yaat.brokers.memory import MemoryBroker
from yaat.channels.formats import AS_PUBLISHED
from yaat.channels.members import Subscriber
from yaat.channels.node import BREATH, CHECK, CLOSE, LINGER, REFRESH, SPREAD, Node
from yaat.channels.options import ChannelOptions, Channels
from yaat.channels.room import READERS, RETRY, Room
from yaat.exceptions import BrokerRefused, BrokerUnavailable, PositionLost, UsageError

ROOM, OTHER = "room:1", "room:2"
KEPT = ChannelOptions(history=10, presence=True)
BARE = ChannelOptions()
CHANNELS = Channels({"room:{id}": KEPT})
OFTEN = ScriptedBroker.presence_ttl / REFRESH
ALICE = Present("a", "alice", {"n": 1})
BOB = Present("b", "bob")


class Place:
    """A node at a broker that does as it is told."""

    def __init__(self) -> None:
        self.broker = ScriptedBroker()
        self.node = Node(self.broker, CHANNELS)

    async def enter(self, channel: str = ROOM) -> Room:
        return await self.node.enter(channel, KEPT)

    def entering(self, channel: str = ROOM) -> "asyncio.Task[Room]":
        return asyncio.create_task(self.enter(channel))

    async def publish(self, text: str = "x", channel: str = ROOM) -> Position:
        content = Content("text", text.encode())
        return (await self.node.publish(channel, KEPT, content, None)).position

    def say_state(self, state: Literal["up", "down"]) -> None:
        assert self.broker.tell_state is not None
        self.broker.tell_state(state)

    def say_missed(self, *channels: str) -> None:
        assert self.broker.tell_missed is not None
        self.broker.tell_missed(channels)

    async def listener(self, channel: str = ROOM) -> "Listener":
        listener = Listener(await self.enter(channel))
        await listener.room.catch_up(listener, None, 0)
        return listener

    @property
    def events(self) -> list[tuple[str, str]]:
        """Who was told to come and go."""
        return [
            (content.kind, content.payload.decode().split('"')[3])
            for _, content in self.broker.published
            if content.kind in {"join", "leave"}
        ]


class Listener(Subscriber):
    """Somebody in a room."""

    def __init__(self, room: Room) -> None:
        super().__init__(AS_PUBLISHED, 100_000)
        self.room = room

    def leave(self, node: Node) -> None:
        self.room.remove(self)
        node.leave(self.room)

    @property
    def texts(self) -> list[str]:
        found = []
        while (publication := self.take()) is not None:
            found.append(publication.data)
        return found


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """Nothing is left of it in the end."""
    place = Place()
    yield place
    await place.node.close()
    await idle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert place.node._timers == {}


def failing(message: str = "away") -> Any:
    return pytest.raises(BrokerUnavailable, match=message)


# Its start


async def test_it_has_memory_of_its_own_unless_it_is_told_otherwise() -> None:
    broker = ScriptedBroker()
    assert isinstance(Node(None, None).broker, MemoryBroker)
    assert isinstance(Node("memory://", None).broker, MemoryBroker)
    assert Node(broker, None).broker is broker
    assert Node(broker, CHANNELS).channels is CHANNELS


@in_no_time
async def test_it_starts_once_for_all_who_use_it() -> None:
    async with place() as here:
        here.broker.hold("start")
        entering = [here.entering(), here.entering(OTHER)]
        others = [asyncio.create_task(here.publish()), asyncio.create_task(here.node.start())]
        await idle()
        assert here.broker.calls == ["start"]  # nothing is asked of it before it has started
        here.broker.let_go("start")
        await asyncio.gather(*entering, *others)
        await here.publish()
        assert here.broker.count("start") == 1
        for task in entering:
            here.node.leave(task.result())


@in_no_time
async def test_who_comes_after_a_start_that_failed_tries_again() -> None:
    async with place() as here:
        here.broker.fail("start", down(), down())
        both = await asyncio.gather(here.enter(), here.publish(), return_exceptions=True)
        assert [type(each) for each in both] == [BrokerUnavailable] * 2
        assert here.broker.count("start") == 1
        with failing():
            await here.publish()
        assert here.broker.calls == ["start", "start"]
        await here.publish()
        assert here.broker.count("start") == 3


@in_no_time
async def test_who_waits_for_the_start_is_cancelled_alone() -> None:
    async with place() as here:
        here.broker.hold("start")
        first, second = asyncio.create_task(here.publish()), asyncio.create_task(here.publish())
        await idle()
        first.cancel()
        await idle()
        assert first.cancelled()
        here.broker.let_go("start")
        assert await second == (1, "one")


def test_it_belongs_to_one_loop_until_that_is_closed() -> None:
    here = Place()

    async def use() -> None:
        listener = await here.listener()
        here.broker.say(ROOM, "x")
        assert listener.texts == ["x"]

    first, second = ScriptedLoop(), ScriptedLoop()
    first.run_until_complete(use())
    with pytest.raises(UsageError, match="one event loop"):
        second.run_until_complete(here.publish())
    first.close()
    here.broker.calls.clear()
    second.run_until_complete(use())
    assert here.broker.calls[:2] == ["start", f"subscribe {ROOM}"]
    second.run_until_complete(here.node.close())
    second.close()


def test_closing_in_another_loop_than_that_of_its_use() -> None:
    """As a lifespan does that ends after its tests' loop was closed."""
    here = Place()
    first, second = ScriptedLoop(), ScriptedLoop()
    first.run_until_complete(here.listener())
    first.close()
    second.run_until_complete(here.node.close())
    assert here.broker.calls[-1] == "close"
    second.run_until_complete(here.publish())
    second.run_until_complete(here.node.close())
    second.close()


# Its end


@in_no_time
async def test_closing_what_was_never_used() -> None:
    here = Place()
    await here.node.close()
    assert here.broker.calls == []


@in_no_time
async def test_closing_twice_and_using_it_again() -> None:
    async with place() as here:
        listener = await here.listener()
        await here.node.arrive(ROOM, ALICE)
        await here.node.close()
        await here.node.close()
        assert here.broker.count("close") == 1
        assert listener.is_over
        listener.leave(here.node)
        assert here.broker.count("presence_remove") == 1, "who is there is taken along"
        await here.node.depart(ROOM, ALICE)  # it is all over, and nobody is asked
        assert here.broker.count("presence_remove") == 1
        await here.publish()
        assert here.broker.count("start") == 2
        again = await here.listener()
        here.broker.say(ROOM, "x")
        assert (again.texts, listener.texts) == (["x"], [])


@pytest.mark.parametrize("held", ["start", "subscribe", "history"])
@in_no_time
async def test_closing_while_somebody_comes(held: str) -> None:
    """Who waits hears that it is closed, and not that he was cancelled, for he was not."""
    async with place() as here:
        here.broker.hold(held)
        entering = [here.entering(), here.entering()]
        await idle()
        await here.node.close()
        answers = await asyncio.gather(*entering, return_exceptions=True)
        assert [type(each) for each in answers] == [BrokerUnavailable] * 2
        assert here.broker.deliver is None
        here.broker.let_go(held)
        await asyncio.sleep(10)
        assert (here.node._loop, here.broker.deliver) == (None, None)
        here.node.leave(await here.enter())


@in_no_time
async def test_closing_while_somebody_goes() -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.hold("presence_remove")
        departing = asyncio.create_task(here.node.depart(ROOM, ALICE))
        await idle()
        await here.node.close()
        await departing


@in_no_time
async def test_closing_while_somebody_who_goes_is_cancelled() -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.hold("presence_remove")
        departing = asyncio.create_task(here.node.depart(ROOM, ALICE))
        await idle()
        departing.cancel()
        await here.node.close()
        with pytest.raises(asyncio.CancelledError):
            await departing


@pytest.mark.parametrize("turns", range(6))
@in_no_time
async def test_who_goes_is_cancelled_while_it_closes(turns: int) -> None:
    """A cancellation is not taken for the end of the channels, which nobody need hear of."""
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.hold("presence_remove")
        departing = asyncio.create_task(here.node.depart(ROOM, ALICE))
        await idle()
        closing = asyncio.create_task(here.node.close())
        await idle(turns)
        is_in_time = departing.cancel()
        await closing
        await asyncio.gather(departing, return_exceptions=True)
        assert departing.cancelled() == is_in_time


@pytest.mark.parametrize("turns", range(8))
@in_no_time
async def test_closing_in_the_moment_in_which_it_has_started(turns: int) -> None:
    async with place() as here:
        here.broker.hold("start")
        publishing = asyncio.create_task(here.publish())
        await idle()
        here.broker.let_go("start")
        await idle(turns)
        await here.node.close()
        await asyncio.gather(publishing, return_exceptions=True)
        await here.publish()  # it starts again


@pytest.mark.parametrize("turns", range(10))
@in_no_time
async def test_closing_in_any_moment_in_which_somebody_comes(turns: int) -> None:
    async with place() as here:
        entering = here.entering()
        await idle(turns)
        await here.node.close()
        (answer,) = await asyncio.gather(entering, return_exceptions=True)
        assert isinstance(answer, Room | BrokerUnavailable)
        if isinstance(answer, Room):
            here.node.leave(answer)
        await asyncio.sleep(2 * LINGER)
        listener = await here.listener()
        here.broker.say(ROOM, "x")
        assert listener.texts == ["x"]


@in_no_time
async def test_closing_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    here = Place()
    await here.node.start()
    gate = asyncio.Event()

    async def be_stubborn() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    here.node.run(be_stubborn())
    await idle()
    start = asyncio.get_running_loop().time()
    await here.node.close()
    assert asyncio.get_running_loop().time() - start == CLOSE
    assert "did not end" in caplog.text
    gate.set()
    await idle()


@in_no_time
async def test_closing_while_a_gap_is_healed_and_rooms_are_given_up() -> None:
    async with place() as here:
        listener, other = await here.listener(), await here.listener(OTHER)
        await here.node.arrive(ROOM, ALICE)
        here.broker.hold("history")
        here.broker.keep(ROOM, "lost")
        here.broker.say(ROOM, "x")
        other.leave(here.node)
        here.broker.hold("unsubscribe")
        await asyncio.sleep(3 * LINGER)
        here.broker.hold("presence_refresh")
        await asyncio.sleep(2 * OFTEN)
        await here.node.close()
        assert listener.texts == []
        assert listener.is_over


# What comes in, and what goes out


@in_no_time
async def test_what_comes_in_for_a_channel_that_nobody_needs() -> None:
    async with place() as here:
        await here.node.start()
        here.broker.subscribed.add("nobody")
        here.broker.flash("nobody", "x")


@in_no_time
async def test_the_state_of_the_broker_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "yaat.channel")
    async with place() as here:
        await here.node.start()
        here.say_state("down")
        assert "the broker is down" in caplog.text


@in_no_time
async def test_who_publishes_without_end_leaves_others_their_turn() -> None:
    async with place() as here:
        await here.node.start()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        for _ in range(10 * BREATH):
            await here.publish()
        counting.cancel()
        assert turns >= 9


@in_no_time
async def test_what_the_broker_refuses_is_told_to_who_publishes() -> None:
    async with place() as here:
        await here.publish()
        here.broker.fail("publish", down())
        with failing():
            await here.publish()
        assert await here.publish() == (2, "one")


@in_no_time
async def test_work_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with place() as here:
        await here.node.start()

        async def fail(error: Exception) -> None:
            raise error

        here.node.run(fail(down()))
        here.node.run(fail(ValueError("it is ours")))
        await idle()
        levels = [(record.levelno, bool(record.exc_info)) for record in caplog.records]
        assert levels == [(logging.WARNING, False), (logging.ERROR, True)]


# Rooms


@in_no_time
async def test_two_who_come_first_at_once_share_one_subscription() -> None:
    async with place() as here:
        here.broker.hold("subscribe")
        first, second = here.entering(), here.entering()
        await idle()
        here.broker.let_go("subscribe")
        rooms = await asyncio.gather(first, second)
        assert rooms[0] is rooms[1]
        assert (rooms[0].uses, here.broker.count("subscribe")) == (2, 1)


@pytest.mark.parametrize("turns", [0, 1, 2, 12])
@in_no_time
async def test_two_who_come_first_at_once_and_one_is_cancelled(turns: int) -> None:
    async with place() as here:
        here.broker.hold("subscribe")
        first, second = here.entering(), here.entering()
        await idle(turns)
        first.cancel()
        await idle()
        here.broker.let_go("subscribe")
        room = await second
        assert first.cancelled()
        assert (room.uses, here.broker.count("subscribe")) == (1, 1)
        await asyncio.sleep(3 * LINGER)
        listener = await here.listener()
        here.broker.say(ROOM, "x")
        assert listener.texts == ["x"]


@in_no_time
async def test_all_who_came_were_cancelled() -> None:
    async with place() as here:
        here.broker.hold("subscribe")
        entering = [here.entering(), here.entering()]
        await idle()
        for task in entering:
            task.cancel()
        await idle()
        here.broker.let_go("subscribe")
        await asyncio.sleep(3 * LINGER)
        assert here.broker.subscribed == set()
        assert here.node._rooms == {}


@pytest.mark.parametrize("operation", ["subscribe", "history"])
@in_no_time
async def test_who_comes_after_a_subscription_that_failed_tries_again(operation: str) -> None:
    async with place() as here:
        await here.node.start()
        here.broker.hold(operation)
        here.broker.fail(operation, down())
        both = await asyncio.gather(here.entering(), here.entering(), return_exceptions=True)
        assert [type(each) for each in both] == [BrokerUnavailable] * 2
        here.broker.let_go(operation)
        assert here.broker.count("subscribe") == 1
        listener = await here.listener()
        here.broker.say(ROOM, "x")
        assert (listener.texts, listener.room.uses) == (["x"], 1)
        assert here.broker.count("subscribe") == 2
        listener.leave(here.node)
        await asyncio.sleep(3 * LINGER)
        assert here.broker.subscribed == set()


@in_no_time
async def test_what_comes_in_while_it_could_not_be_opened_is_not_told() -> None:
    async with place() as here:
        await here.node.start()
        here.broker.fail("history", down())
        with failing():
            await here.enter()
        here.broker.say(ROOM, "early")  # it is subscribed, but nobody is there
        listener = await here.listener()
        here.broker.say(ROOM, "x")
        assert listener.texts == ["x"]


@in_no_time
async def test_a_room_that_nobody_needs_stays_a_while() -> None:
    async with place() as here:
        listener = await here.listener()
        listener.leave(here.node)
        await asyncio.sleep(LINGER * 0.9)
        assert here.broker.subscribed == {ROOM}
        again = await here.listener()
        assert here.broker.count("subscribe") == 1
        await asyncio.sleep(LINGER * 3)
        assert here.broker.subscribed == {ROOM}
        again.leave(here.node)
        await asyncio.sleep(LINGER * 0.9)
        assert here.broker.subscribed == {ROOM}
        await asyncio.sleep(LINGER * 2)
        assert (here.broker.subscribed, here.node._rooms) == (set(), {})


@in_no_time
async def test_each_room_stays_for_its_own_while() -> None:
    async with place() as here:
        first, second = await here.listener(), await here.listener(OTHER)
        first.leave(here.node)
        await asyncio.sleep(LINGER * 0.9)
        second.leave(here.node)
        await asyncio.sleep(LINGER * 0.2)
        assert here.broker.subscribed == {OTHER}
        await asyncio.sleep(LINGER * 0.6)
        assert here.broker.subscribed == {OTHER}
        await asyncio.sleep(LINGER * 2)
        assert here.broker.subscribed == set()


@pytest.mark.parametrize("turns", [0, 1, 2, 12])
@in_no_time
async def test_somebody_comes_while_it_unsubscribes(turns: int) -> None:
    async with place() as here:
        listener = await here.listener()
        here.broker.hold("unsubscribe")
        listener.leave(here.node)
        await asyncio.sleep(LINGER)
        await idle(turns)
        again = await here.listener()
        here.broker.say(ROOM, "x")
        here.broker.let_go("unsubscribe")
        await idle()
        here.broker.say(ROOM, "y")
        assert here.broker.subscribed == {ROOM}
        assert again.texts == ["x", "y"]


@in_no_time
async def test_somebody_comes_before_it_unsubscribes() -> None:
    """Two rooms are given up at once, and somebody comes to the second during the first."""
    async with place() as here:
        listeners = [await here.listener(), await here.listener(OTHER)]
        here.broker.hold("unsubscribe")
        for listener in listeners:
            listener.leave(here.node)
        await asyncio.sleep(LINGER)
        await idle()
        again = await here.listener(OTHER)
        here.broker.let_go("unsubscribe")
        await idle()
        assert here.broker.subscribed == {OTHER}
        assert here.broker.count("unsubscribe") == 1
        here.broker.say(OTHER, "x")
        assert again.texts == ["x"]


@in_no_time
async def test_somebody_comes_and_goes_while_it_unsubscribes() -> None:
    async with place() as here:
        listener = await here.listener()
        here.broker.hold("unsubscribe")
        listener.leave(here.node)
        await asyncio.sleep(2 * LINGER)
        (await here.listener()).leave(here.node)
        await asyncio.sleep(LINGER * 0.5)
        here.broker.let_go("unsubscribe")
        await asyncio.sleep(LINGER * 3)
        assert (here.broker.subscribed, here.node._rooms) == (set(), {})


@in_no_time
async def test_one_subscription_that_cannot_be_given_up_keeps_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And it is tried again."""
    async with place() as here:
        listeners = [await here.listener(f"room:{n}") for n in range(3)]
        here.broker.fail("unsubscribe", None, down(), None)
        for listener in listeners:
            listener.leave(here.node)
        await asyncio.sleep(1.9 * LINGER)
        assert len(here.broker.subscribed) == 1
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert next(iter(here.broker.subscribed)) in record.message
        await asyncio.sleep(LINGER)
        assert here.broker.subscribed == set()


@pytest.mark.parametrize("comes_back", [False, True])
@in_no_time
async def test_the_broker_is_away_when_a_room_is_given_up(
    *, comes_back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is given up when the broker is back, unless somebody needs it then."""
    async with place() as here:
        (await here.listener()).leave(here.node)
        here.say_state("down")
        here.broker.fail("unsubscribe", down())
        await asyncio.sleep(10 * LINGER)
        assert here.broker.count("unsubscribe") == 1
        assert here.broker.subscribed == {ROOM}
        if comes_back:
            again = await here.listener()
        here.say_state("up")
        await asyncio.sleep(3 * LINGER)
        assert here.broker.subscribed == ({ROOM} if comes_back else set())
        assert caplog.records == []  # that it is away is for the broker to say
        if comes_back:
            here.broker.say(ROOM, "x")
            assert again.texts == ["x"]
            assert here.broker.count("unsubscribe") == 1


# An outage


@pytest.mark.parametrize(
    ("lost", "kept", "texts"),
    [([], 9, []), (["a"], 9, ["a"]), (["a", "b"], 2, ["a", "b"]), (["a", "b"], 1, None)],
)
@in_no_time
async def test_what_an_outage_cost_is_brought_or_told(
    lost: list[str], kept: int, texts: list[str] | None
) -> None:
    async with place() as here:
        listener = await here.listener()
        here.say_state("down")
        here.broker.keep(ROOM, *lost)
        del here.broker.kept[ROOM][: len(lost) - kept if kept < len(lost) else 0]
        here.say_missed(ROOM)
        here.say_state("up")
        assert not here.node.is_up
        await asyncio.sleep(SPREAD)
        await idle()
        assert here.node.is_up
        assert here.broker.count("history") == 2
        if texts is None:
            with pytest.raises(PositionLost):
                await listener.wait()
        else:
            assert listener.texts == texts


@in_no_time
async def test_what_cannot_have_missed_anything_is_not_looked_for() -> None:
    async with place() as here:
        await here.listener()
        (await here.listener(OTHER)).leave(here.node)
        here.node.leave(await here.node.enter("bare", BARE))
        here.say_missed(OTHER, "bare", "room:unknown")
        await asyncio.sleep(SPREAD)
        await idle()
        assert here.broker.count("history") == 2  # of who came
        assert here.node.is_up


@in_no_time
async def test_the_nodes_do_not_look_all_at_once() -> None:
    async with place() as here:
        await here.listener()
        loop, waited = asyncio.get_running_loop(), set()
        for _ in range(60):
            asked = here.broker.next("history")
            start = loop.time()
            here.say_missed(ROOM)
            await asked
            waited.add(loop.time() - start)
            await idle()
        assert min(waited) < SPREAD / 2 < max(waited) < 1.01 * SPREAD


@in_no_time
async def test_many_rooms_look_into_their_histories_by_few_tasks() -> None:
    async with place() as here:
        listeners = [await here.listener(f"room:{n}") for n in range(500)]
        for listener in listeners:
            here.broker.keep(listener.room.name, "lost")
        here.broker.calls.clear()
        here.broker.hold("history")
        here.say_missed(*(listener.room.name for listener in listeners))
        await asyncio.sleep(SPREAD)
        await idle()
        assert here.broker.count("history") == READERS
        assert len(asyncio.all_tasks()) == 1 + READERS
        assert not here.node.is_up
        here.broker.let_go("history")
        await idle(3 * len(listeners))
        assert here.broker.count("history") == len(listeners)
        assert {tuple(listener.texts) for listener in listeners} == {("lost",)}
        assert here.node.is_up


@pytest.mark.parametrize("moment", ["waits", "is due", "is read", "failed"])
@in_no_time
async def test_another_outage_while_a_room_is_healed(moment: str) -> None:
    async with place() as here:
        listener = await here.listener()
        if moment == "failed":
            here.broker.fail("history", down())
        elif moment == "is read":
            here.broker.hold("history")
        here.broker.keep(ROOM, "a")
        here.say_missed(ROOM)
        if moment != "waits":
            await asyncio.sleep(SPREAD)
            await idle(0 if moment == "is due" else 12)
        here.broker.keep(ROOM, "b")
        here.say_missed(ROOM)
        if moment == "is read":
            here.broker.let_go("history")
        await asyncio.sleep(SPREAD)
        await idle()
        assert listener.texts == ["a", "b"]
        assert here.node.is_up


@in_no_time
async def test_another_outage_before_a_room_is_healed(caplog: pytest.LogCaptureFixture) -> None:
    """While it lasts nothing is asked for; then it goes on at once."""
    async with place() as here:
        listeners = [await here.listener(f"room:{n}") for n in range(3)]
        for listener in listeners:
            here.broker.keep(listener.room.name, "a")
        here.broker.calls.clear()
        here.broker.fail("history", *[down()] * 3)
        here.say_missed(*(listener.room.name for listener in listeners))
        await asyncio.sleep(SPREAD)
        here.say_state("down")
        await asyncio.sleep(10 * CHECK[1])
        assert here.broker.count("history") == 3
        assert not here.node.is_up
        here.say_state("up")
        assert not here.node.is_up
        await idle()
        assert [listener.texts for listener in listeners] == [["a"]] * 3
        assert here.node.is_up
        assert caplog.records == []


@in_no_time
async def test_a_history_that_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """That is said, and the node is not well until it is over."""
    async with place() as here:
        listener = await here.listener()
        here.broker.keep(ROOM, "a")
        here.broker.fail("history", *[BrokerRefused("no permission")] * 2)
        here.say_missed(ROOM)
        await asyncio.sleep(SPREAD)
        await idle()
        assert not here.node.is_up
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        await asyncio.sleep(3 * RETRY)
        assert listener.texts == ["a"]
        assert here.node.is_up


@in_no_time
async def test_an_outage_while_a_room_opens() -> None:
    async with place() as here:
        here.broker.hold("history")
        entering = here.entering()
        await idle()
        here.broker.keep(ROOM, "a")  # its answer is older than that
        here.say_missed(ROOM)
        here.broker.let_go("history")
        listener = Listener(await entering)
        await listener.room.catch_up(listener, None, 0)
        await asyncio.sleep(SPREAD)
        await idle()
        assert listener.room.position.offset == 1
        assert here.node.is_up


@in_no_time
async def test_whether_it_is_up() -> None:
    here = Place()
    assert not here.node.is_up
    here.broker.hold("start")
    starting = asyncio.create_task(here.node.start())
    await idle()
    assert not here.node.is_up
    here.broker.let_go("start")
    await starting
    assert here.node.is_up
    here.say_state("down")
    assert not here.node.is_up
    here.say_state("up")
    assert here.node.is_up
    await here.node.close()
    assert not here.node.is_up


@in_no_time
async def test_the_broker_comes_up_after_the_start() -> None:
    """As one does that may be away then."""
    async with place() as here:
        begin = here.broker.start

        async def start(*callbacks: Any) -> None:
            await begin(callbacks[0], lambda _: None, callbacks[2])
            here.broker.tell_state = callbacks[1]

        setattr(here.broker, "start", start)  # noqa: B010 - a method, as mypy knows
        await here.node.start()
        assert not here.node.is_up
        here.say_state("up")
        assert here.node.is_up


@in_no_time
async def test_a_gap_or_a_check_is_no_outage() -> None:
    async with place() as here:
        await here.listener()
        here.broker.hold("history")
        here.broker.keep(ROOM, "a")
        here.broker.say(ROOM, "b")
        await idle()
        assert here.broker.count("history") == 2
        assert here.node.is_up


# Channels of which nothing comes


@in_no_time
async def test_what_got_lost_last_of_all_is_found() -> None:
    async with place() as here:
        listener = await here.listener()
        here.broker.say(ROOM, "a")
        assert listener.texts == ["a"]
        here.broker.keep(ROOM, "b")
        await asyncio.sleep(2 * CHECK[1])
        assert listener.texts == ["b"]
        here.broker.keep(ROOM, "c")
        del here.broker.kept[ROOM][:]
        await asyncio.sleep(2 * CHECK[1])
        with pytest.raises(PositionLost):
            await listener.wait()


@in_no_time
async def test_a_channel_that_is_heard_of_is_not_checked() -> None:
    async with place() as here:
        listener = await here.listener()
        for _ in range(20):
            await asyncio.sleep(0.4 * CHECK[0])
            here.broker.say(ROOM, "x")
        assert len(listener.texts) == 20
        assert here.broker.count("history") == 1
        await asyncio.sleep(10 * CHECK[1])
        assert 8 <= here.broker.count("history") - 1 <= 10 * CHECK[1] / CHECK[0]


@pytest.mark.parametrize("case", ["down", "unused", "without history"])
@in_no_time
async def test_what_is_not_checked(case: str) -> None:
    async with place() as here:
        room = await here.node.enter(ROOM, BARE if case == "without history" else KEPT)
        before = here.broker.count("history")
        if case == "down":
            here.say_state("down")
        elif case == "unused":
            here.node.leave(room)
        await asyncio.sleep(10 * CHECK[1])
        assert here.broker.count("history") == before
        assert bool(here.node._timers) == (case == "down")
        await here.listener(OTHER)
        here.say_state("up")
        await asyncio.sleep(2 * CHECK[1])
        assert here.broker.count("history") > before + 1  # and it goes on


@in_no_time
async def test_how_often_it_is_checked_is_read_when_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("yaat.channels.node.CHECK", (0.1, 0.2))
    async with place() as here:
        await here.listener()
        await asyncio.sleep(2)
        assert 8 <= here.broker.count("history") <= 20


# Who is there


@in_no_time
async def test_who_comes_and_goes_is_told() -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        await here.node.arrive(ROOM, BOB)
        await here.node.arrive(ROOM, ALICE)  # again, which is no news
        assert here.broker.present[ROOM] == {"a": ALICE, "b": BOB}
        await here.node.depart(ROOM, ALICE)
        await here.node.depart(ROOM, ALICE)
        assert here.broker.present[ROOM] == {"b": BOB}
        assert here.events == [("join", "a"), ("join", "b"), ("leave", "a")]
        assert here.broker.tops[ROOM].offset == 0  # they are not kept


@in_no_time
async def test_who_has_been_forgotten_meanwhile_leaves_without_a_word() -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.present.clear()
        await here.node.depart(ROOM, ALICE)
        assert here.events == [("join", "a")]


@in_no_time
async def test_the_broker_is_told_again_and_again_who_is_there() -> None:
    async with place() as here:
        await here.node.start()
        loop = asyncio.get_running_loop()
        await here.node.arrive(ROOM, ALICE)
        await asyncio.sleep(1)
        await here.node.arrive(OTHER, BOB)
        start = loop.time() - 1
        for count in range(1, 5):
            here.broker.present.clear()  # it has lost them
            refreshed = here.broker.next("presence_refresh")
            await refreshed
            assert here.broker.present == {ROOM: {"a": ALICE}, OTHER: {"b": BOB}}
            assert 0.8 * OFTEN * count <= loop.time() - start <= 1.2 * OFTEN * count
        assert here.events == [("join", "a"), ("join", "b")]


@in_no_time
async def test_nothing_is_told_of_nobody() -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        await here.node.depart(ROOM, ALICE)
        await asyncio.sleep(3 * OFTEN)
        assert here.broker.count("presence_refresh") == 0
        assert here.node._timers == {}
        await here.node.arrive(ROOM, ALICE)
        await asyncio.sleep(1.5 * OFTEN)
        assert here.broker.count("presence_refresh") == 1


@in_no_time
async def test_a_refresh_that_fails_is_made_the_next_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.present.clear()
        here.broker.fail("presence_refresh", down())
        await asyncio.sleep(1.25 * OFTEN)
        assert here.broker.present == {}
        await asyncio.sleep(1.25 * OFTEN)
        assert here.broker.present == {ROOM: {"a": ALICE}}
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


@in_no_time
async def test_who_is_there_is_added_again_after_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.say_state("down")
        await asyncio.sleep(10 * OFTEN)
        before = here.broker.count("presence_refresh")
        assert 8 <= before <= 13  # a part of the broker may be there
        here.broker.present.clear()
        here.say_state("up")
        await idle()
        assert here.broker.present == {ROOM: {"a": ALICE}}
        assert here.broker.count("presence_refresh") == before + 1
        assert caplog.records == []
        assert here.events == [("join", "a")]
        assert here.broker.count("presence_add") == 1


@in_no_time
async def test_how_often_it_is_told_is_for_the_broker_to_say() -> None:
    async with place() as here:
        here.broker.presence_ttl = 3.0
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        await asyncio.sleep(12)
        assert 9 <= here.broker.count("presence_refresh") <= 15


@in_no_time
async def test_who_goes_while_the_broker_is_away_is_not_worth_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.say_state("down")
        here.broker.fail("presence_remove", down())
        await here.node.depart(ROOM, ALICE)
        assert caplog.records == []


@pytest.mark.parametrize("operation", ["presence_remove", "publish"])
@in_no_time
async def test_the_broker_is_away_when_somebody_goes(
    operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.fail(operation, down())
        await here.node.depart(ROOM, ALICE)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        await asyncio.sleep(3 * OFTEN)
        assert here.broker.count("presence_refresh") == 0


@pytest.mark.parametrize("operation", ["presence_add", "publish"])
@in_no_time
async def test_the_broker_is_away_when_somebody_comes(operation: str) -> None:
    async with place() as here:
        await here.node.start()
        here.broker.fail(operation, down())
        with failing():
            await here.node.arrive(ROOM, ALICE)
        await here.node.depart(ROOM, ALICE)  # as who arrives has to
        assert here.broker.present[ROOM] == {}


@pytest.mark.parametrize("turns", [1, 2, 12])
@in_no_time
async def test_who_is_cancelled_while_going_is_gone(turns: int) -> None:
    async with place() as here:
        await here.node.start()
        await here.node.arrive(ROOM, ALICE)
        here.broker.hold("presence_remove")
        departing = asyncio.create_task(here.node.depart(ROOM, ALICE))
        await idle(turns)
        departing.cancel()
        await idle()
        assert departing.cancelled()
        here.broker.let_go("presence_remove")
        await idle()
        assert here.broker.present[ROOM] == {}
        assert here.events == [("join", "a"), ("leave", "a")]


@in_no_time
async def test_closing_takes_along_who_is_there_if_the_broker_lets_it() -> None:
    async with place() as here:
        listener = await here.listener()
        await here.node.arrive(ROOM, ALICE)
        here.broker.fail("presence_remove", down())
        await here.node.close()
        assert here.broker.count("close") == 1
        listener.leave(here.node)


@pytest.mark.parametrize(
    ("broker", "channels", "wanted"),
    [
        (5, None, "a URL or a Broker"),
        (ScriptedBroker, None, "a URL or a Broker"),
        (None, {"room": KEPT}, r"Channels\(\{\.\.\.\}\), not a dict"),
    ],
)
def test_what_a_node_is_made_of(broker: Any, channels: Any, wanted: str) -> None:
    with pytest.raises(TypeError, match=wanted):
        Node(broker, channels)
