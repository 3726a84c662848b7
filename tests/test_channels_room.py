"""A room, at a broker that answers when, and what, the test says."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import idle, in_scripted_time
from scripted_broker import EPOCH, PATIENCE, ScriptedBroker, down, in_no_time
from yaat.brokers.contract import Position, Publication
from yaat.channels.formats import AS_PUBLISHED, EVENTS
from yaat.channels.members import Subscriber
from yaat.channels.options import ChannelOptions
from yaat.channels.room import HELD, HELD_BYTES, READERS, RETRY, TRIES, Healing, Held, Room
from yaat.exceptions import BrokerError, PositionLost
from yaat.frames import Frame

ROOM = "room:1"


class Numbered:
    """A format that can be read: `3:text`, and `@3` for where one stands."""

    def encode(self, channel: str, publication: Publication) -> Frame | None:
        text = publication.data
        if text == "silence":
            return None
        if text == "nonsense":
            raise ValueError(text)
        return Frame("text", f"{publication.offset}:{text}")

    def stand(self, channel: str, position: Position) -> Frame | None:
        return Frame("text", f"@{position}".removesuffix(f"-{EPOCH}"))


class Mute(Numbered):
    """The same for who does not want to know where he stands."""

    def stand(self, channel: str, position: Position) -> Frame | None:
        return None


NUMBERED, MUTE = Numbered(), Mute()


class Listener:
    """A member that notes what it gets.

    Attributes:
        seen: What it was offered, or brought.
        told: What it was told of a loss, in the order of things in `seen`.
        gate: While it is clear, there is no room for what it is brought.
    """

    def __init__(self, form: Numbered = NUMBERED, client: str | None = None) -> None:
        self.format = form
        self.client = client
        self.seen: list[str] = []
        self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def offer(self, frame: Frame, key: str | None = None) -> bool:
        self.seen.append(str(frame.data))
        return True

    async def bring(self, publication: Publication) -> None:
        await self.gate.wait()
        frame = self.format.encode(ROOM, publication)
        if frame is not None:
            self.seen.append(f"brought {frame.data!s}")

    def lose(self, error: PositionLost) -> None:
        assert error.channel == ROOM
        self.seen.append("lost")

    def close(self) -> None:
        self.closed += 1

    @property
    def texts(self) -> list[str]:
        """The publications alone, however they came."""
        return [each.removeprefix("brought ") for each in self.seen if ":" in each]


class House:
    """A broker and one room at it."""

    def __init__(self, **options: Any) -> None:
        self.broker = ScriptedBroker()
        self.tasks: set[asyncio.Task[None]] = set()
        self.started = 0
        options = {"history": 100} | options
        self.healing = Healing(self.start)
        self.room = Room(ROOM, ChannelOptions(**options), self.broker, self.healing.add)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self.started += 1
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def rest(self) -> None:
        """Wait until nothing is to be done any more."""
        while self.tasks:
            await asyncio.gather(*self.tasks)

    async def open(self) -> "House":
        await self.broker.start(
            lambda _, each: self.room.take(each), lambda _: None, lambda _: None
        )
        self.room.uses += 1
        await self.room.open()
        return self

    async def join(
        self, since: int | str | None = None, last: int = 0, member: Listener | None = None
    ) -> Listener:
        member = member or Listener()
        await self.room.catch_up(member, standing(since), last)
        return member

    def joining(
        self, since: int | str | None = None, last: int = 0, member: Listener | None = None
    ) -> "asyncio.Task[Listener]":
        return asyncio.create_task(self.join(since, last, member))

    def say(self, *texts: str) -> None:
        self.broker.say(ROOM, *texts)

    def lose(self, *texts: str) -> list[Publication]:
        """Publish what gets lost on its way here."""
        return self.broker.keep(ROOM, *texts)

    def bring(self, *publications: Publication) -> None:
        self.broker.bring(ROOM, *publications)

    @property
    def stands(self) -> str:
        return str(self.room.position).removesuffix(f"-{EPOCH}")


def standing(since: int | str | None) -> Position | None:
    if isinstance(since, str):
        return Position.parse(since)
    return None if since is None else Position(since, EPOCH)


async def opened(**options: Any) -> House:
    return await House(**options).open()


# Opening


@in_no_time
async def test_it_learns_where_the_channel_stands() -> None:
    house = House()
    house.broker.keep(ROOM, "a", "b")
    await house.open()
    assert house.stands == "2"
    assert house.broker.calls == ["start", f"subscribe {ROOM}", f"history {ROOM}"]
    member = await house.join()
    house.say("c")
    assert member.seen == ["@2", "3:c"]


@in_no_time
async def test_without_history_there_is_nothing_to_learn() -> None:
    house = await opened(history=0)
    member = await house.join()
    house.broker.flash(ROOM, "a", "b")
    assert member.seen == ["@0-", "0:a", "0:b"]
    assert house.broker.count("history") == 0


@in_no_time
async def test_another_node_may_know_of_a_history() -> None:
    """Then there are positions, but nobody here was promised that none is missing."""
    house = await opened(history=0)
    member = await house.join()
    house.say("a")
    house.lose("b")
    house.say("c")
    assert member.texts == ["1:a", "3:c"]
    assert house.started == 0


@pytest.mark.parametrize("held", ["subscribe", "history"])
@in_no_time
async def test_what_comes_in_while_it_opens(held: str) -> None:
    house = House()
    house.broker.keep(ROOM, "a")
    house.broker.hold(held)
    opening = asyncio.create_task(house.open())
    await idle()
    house.say("b")
    house.broker.let_go(held)
    await opening
    assert house.stands == "2"
    member = await house.join()
    house.say("c")
    assert member.seen == ["@2", "3:c"]
    assert house.started == 0


# Live


@in_no_time
async def test_a_format_is_asked_once_for_all_its_members() -> None:
    house = await opened()
    asked = []

    class Counting(Numbered):
        def encode(self, channel: str, publication: Publication) -> Frame | None:
            asked.append(publication.data)
            return super().encode(channel, publication)

    counting = Counting()
    members = [await house.join(member=Listener(counting)) for _ in range(5)]
    other = await house.join()
    house.say("a", "silence", "b")
    assert asked == ["a", "silence", "b"]
    assert {tuple(each.texts) for each in [*members, other]} == {("1:a", "3:b")}


@in_no_time
async def test_the_sender_is_left_out() -> None:
    house = await opened()
    alice, bob, nobody = [await house.join(member=Listener(client=c)) for c in ("a", "b", None)]
    house.broker.say(ROOM, "x", sender="a")
    house.broker.say(ROOM, "y", sender="c")
    house.say("z")
    assert alice.texts == ["2:y", "3:z"]
    assert bob.texts == nobody.texts == ["1:x", "2:y", "3:z"]


@in_no_time
async def test_the_sender_is_left_out_of_what_it_missed() -> None:
    house = await opened()
    house.broker.say(ROOM, "x", sender="a")
    house.say("y")
    house.broker.say(ROOM, "z", sender="a")
    alice = await house.join(since=0, member=Listener(client="a"))
    bob = await house.join(since=0, member=Listener(client="b"))
    house.broker.say(ROOM, "w", sender="a")
    assert alice.seen == ["brought 2:y", "@3"]
    assert bob.texts == ["1:x", "2:y", "3:z", "4:w"]


@in_no_time
async def test_it_ends_while_somebody_comes() -> None:
    house = await opened()
    house.say("a")
    member = Listener()
    member.gate.clear()
    joining = house.joining(since=0, member=member)
    await idle()
    house.room.close()
    member.gate.set()
    with pytest.raises(BrokerError, match="closed"):
        await joining
    assert house.room.members == []


@in_no_time
async def test_a_format_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    house = await opened()
    member = await house.join()
    house.say("a", "nonsense", "b")
    assert member.texts == ["1:a", "3:b"]
    (record,) = caplog.records
    assert "could not encode" in record.message


@in_no_time
async def test_who_has_left_gets_nothing_more() -> None:
    house = await opened()
    first, second = await house.join(), await house.join()
    house.say("a")
    house.room.remove(first)
    house.room.remove(first)
    house.say("b")
    house.room.remove(second)
    house.say("c")
    assert first.texts == ["1:a"]
    assert second.texts == ["1:a", "2:b"]
    assert house.room.members == []
    assert house.room._groups == {}
    assert house.stands == "3"


@in_no_time
async def test_who_leaves_while_it_is_told() -> None:
    house = await opened()

    class Leaving(Listener):
        def offer(self, frame: Frame, key: str | None = None) -> bool:
            house.room.remove(self)
            return super().offer(frame, key)

    leaving = await house.join(member=Leaving(MUTE))
    staying = await house.join(member=Listener(MUTE))
    house.say("a", "b")
    assert (leaving.texts, staying.texts) == (["1:a"], ["1:a", "2:b"])


@in_no_time
async def test_all_are_told_that_it_ends() -> None:
    house = await opened()
    early = house.joining(since=0)
    house.lose("a")
    await early
    live = await house.join()
    house.room.close()
    assert [each.closed for each in (early.result(), live)] == [1, 1]


# A gap


@in_no_time
async def test_a_gap_is_healed_from_the_history_in_order() -> None:
    house = await opened()
    member = await house.join()
    house.say("a")
    house.lose("b", "c")
    house.broker.hold("history")
    house.say("d")
    await idle()
    assert member.texts == ["1:a"]
    house.say("e")  # held, and in no answer
    house.lose("f")  # and one more is lost meanwhile
    house.say("g")
    house.broker.let_go("history")
    await idle()
    assert member.texts == ["1:a", "2:b", "3:c", "4:d", "5:e", "6:f", "7:g"]
    assert "lost" not in member.seen
    assert (house.stands, house.started, house.tasks) == ("7", 2, set())


@in_no_time
async def test_what_history_has_brought_already_comes_once() -> None:
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.hold("history")
    house.say("b", "c", "d")  # all of them are in the answer, too
    house.broker.let_go("history")
    await idle()
    assert member.texts == ["1:a", "2:b", "3:c", "4:d"]
    assert (house.broker.count("history"), house.started) == (2, 1)


@in_no_time
async def test_what_is_not_kept_waits_with_the_rest() -> None:
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.hold("history")
    house.say("b")
    await idle()
    house.broker.flash(ROOM, "flash")
    house.say("c")
    house.broker.let_go("history")
    await idle()
    assert member.texts == ["1:a", "2:b", "0:flash", "3:c"]


@in_no_time
async def test_a_publication_that_comes_twice_is_told_once() -> None:
    house = await opened()
    member = await house.join()
    (first,) = house.lose("a")
    house.bring(first, first)
    house.say("b")
    await idle()
    assert member.texts == ["1:a", "2:b"]
    assert "lost" not in member.seen


@in_no_time
async def test_what_comes_in_behind_the_history() -> None:
    """As where a server answers on one connection and publishes on another."""
    house = House()
    late = house.broker.keep(ROOM, "a", "b", "c")
    await house.open()
    member = await house.join()
    house.bring(*late)
    house.say("d")
    await idle()
    assert member.seen == ["@3", "4:d"]
    assert house.broker.count("history") == 1  # nothing of it is asked for again


@pytest.mark.parametrize("failures", [1, 3])
@in_no_time
async def test_the_history_is_asked_again_until_it_answers(failures: int) -> None:
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.fail("history", *[down() for _ in range(failures)])
    start = asyncio.get_running_loop().time()
    house.say("b")
    await asyncio.sleep(0.4 * RETRY)
    house.say("c")
    assert member.texts == []
    await house.rest()
    waited = asyncio.get_running_loop().time() - start
    assert failures * 0.5 * RETRY <= waited <= failures * 1.5 * RETRY
    assert member.texts == ["1:a", "2:b", "3:c"]


@in_no_time
async def test_an_error_that_no_broker_should_raise_leaves_nobody_deaf(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.fail("history", RuntimeError("the driver is mad"))
    house.say("b")
    await asyncio.sleep(10)
    house.say("c")
    await idle()
    assert member.texts == ["1:a", "2:b", "3:c"]
    (record,) = caplog.records
    assert record.levelno >= logging.WARNING
    assert "the driver is mad" in record.message


@in_no_time
async def test_more_comes_in_than_is_held() -> None:
    house = await opened(history=10 * HELD)
    member = await house.join()
    house.lose("a")
    house.broker.hold("history")
    house.say("b")
    await idle()
    house.say(*["x"] * (2 * HELD + 5))
    house.broker.let_go("history")
    await idle()
    total = 2 * HELD + 7
    assert [int(text.split(":")[0]) for text in member.texts] == list(range(1, total + 1))
    assert "lost" not in member.seen


@in_no_time
async def test_a_gap_when_nobody_is_there() -> None:
    """Between the last who leaves and the end of the room: who comes then has to be right."""
    house = await opened()
    house.room.uses = 0
    house.lose("a")
    house.say("b")
    for _ in range(50):
        await asyncio.sleep(0.01)
    assert house.started < 5
    assert house.tasks == set()
    house.room.uses = 1
    house.say("c")
    member = await house.join()
    house.say("d")
    await idle()
    assert member.texts[-1:] == ["4:d"]


@in_no_time
async def test_the_last_leaves_while_a_gap_is_healed() -> None:
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.fail("history", down())
    house.say("b")
    await idle()
    house.room.remove(member)
    house.room.uses = 0
    for _ in range(500):
        await asyncio.sleep(0.01)
    assert house.tasks == set()
    assert house.started < 5


# A gap that cannot be healed


@in_no_time
async def test_what_the_history_has_no_more_is_told() -> None:
    house = await opened()
    members = [await house.join(), await house.join(member=Listener(MUTE))]
    house.say("a")
    house.lose("b", "c")
    del house.broker.kept[ROOM][:2]
    house.say("d")
    await idle()
    house.say("e")
    assert members[0].seen == ["@0", "1:a", "lost", "@4", "5:e"]
    assert members[1].seen == ["1:a", "lost", "5:e"]
    assert house.stands == "5"


@in_no_time
async def test_who_leaves_when_it_is_told_of_a_loss() -> None:
    house = await opened()

    class Leaving(Listener):
        def lose(self, error: PositionLost) -> None:
            super().lose(error)
            house.room.remove(self)

    leaving = [await house.join(member=Leaving(MUTE)) for _ in range(3)]
    staying = await house.join(member=Listener(MUTE))
    house.lose("a")
    house.broker.kept[ROOM].clear()
    house.say("b")
    await idle()
    house.say("c")
    assert [each.seen for each in leaving] == [["lost"]] * 3
    assert staying.seen == ["lost", "3:c"]


@in_no_time
async def test_another_epoch() -> None:
    house = await opened()
    member = await house.join()
    house.say("a", "b")
    house.broker.begin_anew(ROOM, "two")
    house.say("c")
    await idle()
    house.say("d")
    assert member.seen == ["@0", "1:a", "2:b", "lost", "@1-two", "2:d"]


@in_no_time
async def test_a_lower_top_in_the_same_epoch() -> None:
    """A server that came back from a snapshot."""
    house = await opened()
    member = await house.join()
    house.say("a", "b", "c")
    house.broker.rewind(ROOM, 1)
    house.say("d")
    await idle()
    house.say("e")
    assert member.seen == ["@0", "1:a", "2:b", "3:c", "lost", "@1", "2:d", "3:e"]
    assert house.broker.count("history") == 1  # by its answer nobody could tell


@in_no_time
async def test_a_hole_in_what_the_history_answers() -> None:
    house = await opened()
    member = await house.join()
    house.lose("a", "b", "c")
    del house.broker.kept[ROOM][1]
    house.say("d")
    await idle()
    house.say("e")
    assert "lost" in member.seen
    assert member.seen[-2:] == ["@4", "5:e"]


@pytest.mark.parametrize("lag", [0.0, 0.4 * RETRY, 60.0])
@in_no_time
async def test_a_gap_and_a_history_that_lags(lag: float) -> None:
    """For a moment it is waited for; then it is said that something is lost."""
    house = await opened()
    member = await house.join()
    house.say("a")
    last = house.lose("b", "c")[-1]
    kept, top = list(house.broker.kept[ROOM]), house.broker.tops[ROOM]
    house.broker.rewind(ROOM, 1)
    house.bring(last)
    house.broker.flash(ROOM, "flash")
    await asyncio.sleep(lag)
    house.broker.kept[ROOM], house.broker.tops[ROOM] = kept, top
    await house.rest()
    assert house.broker.count("history") <= 1 + TRIES
    house.say("d")
    await house.rest()
    if lag < 1:
        assert member.seen == ["@0", "1:a", "2:b", "3:c", "0:flash", "4:d"]
    else:
        assert member.seen == ["@0", "1:a", "lost", "@1", "0:flash", "2:b", "3:c", "4:d"]


@in_no_time
async def test_a_history_that_answers_bit_by_bit() -> None:
    """As long as it goes on, nothing is lost."""
    house = await opened()
    member = await house.join()
    whole = house.broker.history

    async def history(channel: str, **options: Any) -> tuple[list[Publication], Position]:
        publications, top = await whole(channel, **options)
        return publications[:1], top

    setattr(house.broker, "history", history)  # noqa: B010 - a method, as mypy knows
    house.lose(*"abcdefg")
    house.say("h")
    await house.rest()
    assert member.seen == ["@0", *(f"{i}:{text}" for i, text in enumerate("abcdefgh", 1))]


@in_no_time
async def test_an_old_epoch_comes_late() -> None:
    """What is left of it on its way is no gap that could be healed, nor one that is asked for."""
    house = await opened()
    member = await house.join()
    house.say("a")
    late = house.lose("b", "c")
    house.broker.begin_anew(ROOM, "two")
    house.say("x")
    await idle()
    house.bring(*late)
    await house.rest()
    house.say("y")
    await house.rest()
    assert member.seen == ["@0", "1:a", "lost", "@1-two", "2:y"]
    assert house.broker.count("history") <= 4


@in_no_time
async def test_an_answer_that_ends_before_the_top_is_asked_for_the_rest() -> None:
    house = await opened()
    member = await house.join()
    house.lose("a", "b")
    (last,) = house.lose("c")
    rest, house.broker.kept[ROOM] = house.broker.kept[ROOM][1:], house.broker.kept[ROOM][:1]
    house.broker.hold("history")
    house.bring(last)
    await idle()
    house.broker.kept[ROOM] += rest
    house.broker.let_go("history")
    await house.rest()
    assert member.texts == ["1:a", "2:b", "3:c"]
    assert "lost" not in member.seen


@in_no_time
async def test_who_has_read_on_has_lost_less() -> None:
    """Each is told of what it lost itself, and once."""
    house = await opened()
    behind = await house.join()
    house.lose("a", "b")
    between = await house.join(since=0)  # has read 1 and 2, of which nothing came in
    house.lose("c")
    del house.broker.kept[ROOM][:2]
    house.lose("d")
    at_top = await house.join(since=2)
    house.broker.hold("history")
    house.bring(house.broker.kept[ROOM][-1])
    await idle()
    beyond_task = house.joining(since=4)
    house.lose("e")
    house.broker.let_go("history")
    beyond = await beyond_task
    await idle()
    house.broker.flash(ROOM, "now")
    house.say("f")
    await idle()
    came = ["0:now", "5:e", "6:f"]
    assert behind.seen == ["@0", "lost", "@4", *came]
    assert between.seen == ["brought 1:a", "brought 2:b", "@2", "lost", "@4", *came]
    assert at_top.seen == ["brought 3:c", "brought 4:d", "@4", *came]
    assert beyond.texts == ["5:e", "0:now", "6:f"]
    assert "lost" not in beyond.seen


@in_no_time
async def test_who_has_read_beyond_what_is_lost_is_not_told() -> None:
    house = await opened()
    behind = await house.join()
    house.lose("a", "b")
    house.broker.hold("history")
    house.broker.kept[ROOM].clear()
    house.bring(Publication(house.lose("c")[0].content, 3, EPOCH, 2, 0.0))
    await idle()
    house.broker.let_go("history")  # its answer: nothing but 3 is kept
    house.lose("d")
    ahead = house.joining(since=3)
    await ahead
    await idle()
    house.say("e")
    await idle()
    assert behind.seen[:2] == ["@0", "lost"]
    assert ahead.result().seen[-1] == "5:e"
    assert "lost" not in ahead.result().seen


# Coming


@in_no_time
async def test_what_was_missed_comes_first() -> None:
    house = await opened()
    house.say("a", "b", "c")
    member = await house.join(since=1)
    house.say("d")
    assert member.seen == ["brought 2:b", "brought 3:c", "@3", "4:d"]


@pytest.mark.parametrize(
    ("last", "brought"), [(0, []), (1, ["3:c"]), (2, ["2:b", "3:c"]), (9, ["1:a", "2:b", "3:c"])]
)
@in_no_time
async def test_the_last_come_first(last: int, brought: list[str]) -> None:
    house = await opened()
    house.say("a", "b", "c")
    member = await house.join(last=last)
    house.say("d")
    assert member.seen == [*(f"brought {each}" for each in brought), "@3", "4:d"]


@in_no_time
async def test_the_last_of_nothing() -> None:
    house = await opened()
    member = await house.join(last=5)
    house.say("a")
    assert member.seen == ["@0", "1:a"]
    house.broker.kept[ROOM].clear()
    assert (await house.join(last=5)).seen == ["@1"]


@in_no_time
async def test_the_last_where_nothing_is_kept() -> None:
    house = await opened(history=0)
    assert (await house.join(last=5)).seen == ["@0-"]
    assert house.broker.count("history") == 0


@in_no_time
async def test_who_stands_at_the_top_misses_nothing() -> None:
    house = await opened()
    house.say("a")
    member = await house.join(since=1)
    house.say("b")
    assert member.seen == ["@1", "2:b"]


@pytest.mark.parametrize("since", ["1-another", 7, 0])
@in_no_time
async def test_a_position_that_is_lost(since: int | str) -> None:
    house = await opened()
    house.say("a", "b")
    del house.broker.kept[ROOM][0]
    with pytest.raises(PositionLost):
        await house.join(since=since)
    assert (house.room.members, house.room._joining) == ([], set())


@in_no_time
async def test_who_wants_to_know_goes_on_from_where_it_was_then() -> None:
    house = await opened()
    house.say("a", "b")
    member = Listener()

    async def learn(error: PositionLost) -> None:
        assert error.channel == ROOM
        member.seen.append("learning")
        house.say("c")
        await asyncio.sleep(5)
        house.say("d")
        member.seen.append("learnt")

    await house.room.catch_up(member, standing("9-another"), 1, learn)
    house.say("e")
    assert member.seen == [
        "learning",
        "learnt",
        "brought 2:b",
        "brought 3:c",
        "brought 4:d",
        "@4",
        "5:e",
    ]


@in_no_time
async def test_who_wants_to_know_loses_again_while_learning() -> None:
    house = await opened()
    house.say("a", "b")
    member = Listener()
    errors = []

    async def learn(error: PositionLost) -> None:
        errors.append(error)
        if len(errors) < 3:
            house.broker.begin_anew(ROOM, f"epoch{len(errors)}")
            house.say("x")
            await asyncio.sleep(1)

    await house.room.catch_up(member, standing(9), 0, learn)
    assert len(errors) == 3
    house.say("y")
    assert member.seen == ["@1-epoch2", "2:y"]


@in_no_time
async def test_who_reads_slowly_what_it_missed() -> None:
    """What comes in meanwhile is held, and then read in turn."""
    house = await opened()
    house.say("a", "b")
    member = Listener()
    member.gate.clear()
    joining = house.joining(since=0, member=member)
    await idle()
    house.say("c", "d")
    house.broker.flash(ROOM, "gone")  # what is not kept is for those who are there
    member.gate.set()
    await joining
    house.say("e")
    assert member.texts == ["1:a", "2:b", "3:c", "4:d", "5:e"]
    assert house.broker.count("history") == 2


@in_no_time
async def test_who_reads_more_slowly_than_is_held() -> None:
    house = await opened(history=10 * HELD)
    house.say("a")
    member = Listener(MUTE)
    member.gate.clear()
    joining = house.joining(since=0, member=member)
    await idle()
    house.say(*["x"] * (HELD + 5))
    member.gate.set()
    await joining
    assert [int(text.split(":")[0]) for text in member.texts] == list(range(1, HELD + 7))
    assert "lost" not in member.seen


@in_no_time
async def test_who_reads_more_slowly_than_is_kept() -> None:
    house = await opened()
    house.say("a")
    member = Listener()
    member.gate.clear()
    joining = house.joining(since=0, member=member)
    await idle()
    house.say(*["x"] * (HELD + 5))
    del house.broker.kept[ROOM][:-3]
    member.gate.set()
    with pytest.raises(PositionLost):
        await joining
    assert member.texts == ["1:a"]


@in_no_time
async def test_an_answer_from_before_what_came_in() -> None:
    """The history answers late: what it has not is held."""
    house = await opened()
    house.say("a")
    house.broker.hold("history")
    joining = house.joining(since=0)
    await idle()
    house.say("b", "c")
    house.broker.let_go("history")
    member = await joining
    house.say("d")
    assert member.texts == ["1:a", "2:b", "3:c", "4:d"]


@in_no_time
async def test_who_comes_while_a_gap_is_healed() -> None:
    house = await opened()
    house.say("a")
    house.lose("b")
    house.broker.hold("history")
    house.say("c")
    joining = [house.joining(since=0), house.joining(), house.joining(last=1)]
    await idle()
    house.say("d")
    house.broker.let_go("history")
    members = await asyncio.gather(*joining)
    await idle()
    house.say("e")
    assert members[0].texts == ["1:a", "2:b", "3:c", "4:d", "5:e"]
    assert members[1].texts == ["2:b", "3:c", "4:d", "5:e"]  # from where the room stood
    assert members[2].texts == ["3:c", "4:d", "5:e"]
    assert not any("lost" in each.seen for each in members)


@in_no_time
async def test_who_has_read_further_than_what_came_in() -> None:
    """The history is ahead of what comes in live: nothing twice, and nothing too early."""
    house = await opened()
    late = house.lose("a", "b", "c")
    member = await house.join(since=0)
    other = await house.join()
    assert member.seen == ["brought 1:a", "brought 2:b", "brought 3:c", "@3"]
    assert set(house.room.members) == {member, other}
    house.bring(*late[:2])
    house.broker.flash(ROOM, "flash")  # it has no place among them: at once
    house.bring(late[2])
    house.say("d", "e")
    assert member.texts == ["1:a", "2:b", "3:c", "0:flash", "4:d", "5:e"]
    assert other.texts == ["1:a", "2:b", "0:flash", "3:c", "4:d", "5:e"]


@in_no_time
async def test_who_has_read_further_and_is_told_of_no_such_thing() -> None:
    house = await opened()
    late = house.lose("a", "b", "c")
    subscriber = Subscriber(EVENTS, 10_000)
    await house.room.catch_up(subscriber, Position(0, EPOCH), 0)
    house.broker.flash(ROOM, "flash")  # of which its format does not tell
    house.bring(late[0])
    assert subscriber.take() is None
    assert subscriber in house.room.members


@in_no_time
async def test_who_has_read_further_leaves() -> None:
    house = await opened()
    late = house.lose("a", "b")
    member = await house.join(since=0)
    house.room.remove(member)
    house.bring(*late)
    assert (member.texts, house.room.members) == (["1:a", "2:b"], [])


@in_no_time
async def test_who_has_read_further_in_an_epoch_that_is_over() -> None:
    house = await opened()
    house.lose("a", "b", "c")
    member = await house.join(since=0)
    house.broker.begin_anew(ROOM, "two")
    house.say("x")
    await idle()
    house.say("y")
    assert member.seen[-3:] == ["lost", "@1-two", "2:y"]
    assert member.seen.count("lost") == 1


@in_no_time
async def test_an_answer_from_an_epoch_that_is_over() -> None:
    house = await opened()
    other = await house.join()
    house.say("a")
    house.broker.hold("history")
    joining = house.joining(since=0)
    await idle()
    house.broker.begin_anew(ROOM, "two")
    house.broker._gates["history"], gate = asyncio.Event(), house.broker._gates["history"]
    house.say("x")
    await idle()
    house.broker.let_go("history")  # that of the gap
    await idle()
    assert other.seen == ["@0", "1:a", "lost", "@1-two"]
    gate.set()
    with pytest.raises(PositionLost):
        await joining


@in_no_time
async def test_a_history_that_lags_does_not_stop_the_loop() -> None:
    """Its top is lower than what came in: a replica, or a server that has lost something."""
    house = await opened()
    house.say("a", "b", "c")
    house.broker.rewind(ROOM, 1)
    for since, last in ((1, 0), (None, 1)):
        before = house.broker.count("history")
        joining = house.joining(since=since, last=last)
        for _ in range(200):
            await asyncio.sleep(0)
        assert house.broker.count("history") - before < 50
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)


@pytest.mark.parametrize("is_rewound", [True, False])
@in_no_time
async def test_who_came_by_a_history_that_lags_is_told_of_its_loss(*, is_rewound: bool) -> None:
    """A replica that has not got it yet; or a server that has lost it for good: nothing to tell."""
    house = await opened()
    house.say("a", "b", "c")
    kept, top = list(house.broker.kept[ROOM]), house.broker.tops[ROOM]
    house.broker.rewind(ROOM, 1)
    member = await house.join(since=1)
    assert member.seen == ["@1"]
    if not is_rewound:
        house.broker.kept[ROOM], house.broker.tops[ROOM] = kept, top
    house.say("d")
    await idle()
    house.say("e")
    await idle()
    assert member.seen[1:] == (["2:d", "3:e"] if is_rewound else ["lost", "@4", "4:d", "5:e"])


@in_no_time
async def test_a_history_that_lags_for_a_moment() -> None:
    house = await opened()
    house.say("a", "b", "c")
    kept, house.broker.kept[ROOM] = house.broker.kept[ROOM], house.broker.kept[ROOM][:1]
    top, house.broker.tops[ROOM] = house.broker.tops[ROOM], Position(1, EPOCH)
    house.broker.hold("history")
    joining = house.joining(since=0)
    await idle()
    house.broker.kept[ROOM], house.broker.tops[ROOM] = kept, top
    house.broker.let_go("history")
    member = await joining
    house.say("d")
    assert member.texts == ["1:a", "2:b", "3:c", "4:d"]


@in_no_time
async def test_the_history_cannot_be_read() -> None:
    house = await opened()
    house.broker.fail("history", down(), down())
    for since, last in ((0, 0), (None, 1)):
        with pytest.raises(BrokerError):
            await house.join(since, last)
    assert (house.room.members, house.room._joining) == ([], set())


@in_no_time
async def test_who_is_cancelled_while_coming() -> None:
    house = await opened()
    house.say("a")
    member = Listener()
    member.gate.clear()
    joining = house.joining(since=0, member=member)
    await idle()
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert (house.room.members, house.room._joining) == ([], set())


@in_no_time
async def test_a_subscriber_is_told_of_a_loss_before_what_comes_after() -> None:
    house = await opened()
    subscriber = Subscriber(AS_PUBLISHED, 10_000)
    await house.room.catch_up(subscriber, None, 0)
    house.say("a")
    house.lose("b")
    house.broker.kept[ROOM].clear()
    house.say("c")
    await idle()
    house.say("d")
    taken = []
    while (publication := subscriber.take()) is not None:
        taken.append(publication.data)
    assert taken == ["a"]
    with pytest.raises(PositionLost):
        await subscriber.wait()


# What is held


def test_what_is_held_is_bounded() -> None:
    broker = ScriptedBroker()
    publications = broker.keep(ROOM, *["x"] * (HELD + 2))
    held = Held()
    for publication in publications:
        held.hold(publication)
    assert held.following(Position(0, EPOCH)) is None  # and it is taken out
    assert held.following(Position(0, EPOCH)) == []
    for publication in publications[:3]:
        held.hold(publication)
    assert held.beyond(Position(1, EPOCH)) == publications[1:3]


def test_what_is_held_is_bounded_in_bytes() -> None:
    broker = ScriptedBroker()
    publications = broker.keep(ROOM, *["x" * (HELD_BYTES // 2)] * 3)
    held = Held()
    for publication in publications[:2]:
        held.hold(publication)
    assert held.following(Position(0, EPOCH)) == publications[:2]
    for publication in publications:
        held.hold(publication)
    assert held.following(Position(0, EPOCH)) is None  # only the last is held
    for publication in publications[:2]:
        held.hold(publication)
    assert held.beyond(Position(0, EPOCH)) == publications[:2]  # it counts from nothing


# A server that has gone back in time, and kept its epoch


@in_no_time
async def test_it_publishes_anew_what_was_read_and_not_heard() -> None:
    """Their places are taken here; but what is there now was published later."""
    house = await opened()
    member = await house.join()
    house.say("a")
    house.lose("b", "c")
    house.say("d")
    await house.rest()  # b and c were read, d heard as well
    house.lose("e", "f")
    house.room.look()
    await house.rest()
    assert member.texts == ["1:a", "2:b", "3:c", "4:d", "5:e", "6:f"]
    house.broker.rewind(ROOM, 3)
    house.say("x", "y", "z")
    house.say("w")
    await house.rest()
    assert member.seen[7:] == ["lost", "@3", "4:x", "5:y", "6:z", "7:w"]


@pytest.mark.parametrize(
    ("clock", "then"),
    [
        (0.0, ["lost", "@1", "2:x", "3:y"]),
        (-100.0, ["lost", "@2", "3:y"]),  # the history tells, which has x already
    ],
)
@in_no_time
async def test_it_publishes_anew_what_was_heard(clock: float, then: list[str]) -> None:
    """Another server may have taken over, by whose clock it is earlier."""
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.room.look()
    await house.rest()
    house.say("b", "c")
    house.broker.rewind(ROOM, 1)
    house.broker.time += clock
    house.say("x")
    await house.rest()
    house.say("y")
    assert member.seen == ["@0", "1:a", "2:b", "3:c", *then]


@in_no_time
async def test_what_comes_late_after_a_loss_is_no_other() -> None:
    """When it was published what is lost, nobody knows here."""
    house = await opened()
    member = await house.join()
    house.say("a")
    house.broker.begin_anew(ROOM, "two")
    late = house.lose("x", "y")
    house.broker.kept[ROOM].clear()
    house.room.look()
    await house.rest()
    house.bring(*late)
    await house.rest()
    house.say("z")
    assert member.seen == ["@0", "1:a", "lost", "@2-two", "3:z"]


@in_no_time
async def test_what_comes_late_after_a_gap_that_nobody_missed_is_no_other() -> None:
    house = await opened()
    house.say("a")
    late, last = house.lose("b", "c")
    house.room.uses = 0
    house.bring(last)
    house.room.uses = 1
    member = await house.join()
    house.bring(late)
    await house.rest()
    house.say("d")
    assert member.seen == ["@3", "4:d"]


@in_no_time
async def test_it_has_overtaken_what_was_told_before_the_history_is_read() -> None:
    """By the offsets alone nothing is missing."""
    house = await opened()
    member = await house.join()
    house.say("a", "b", "c")
    house.broker.hold("history")
    house.room.look()
    await idle()
    house.broker.rewind(ROOM, 1)
    house.say("x", "y", "z")  # 2, 3 and 4
    house.broker._gates["history"], gate = asyncio.Event(), house.broker._gates["history"]
    gate.set()
    house.broker.let_go("history")
    await house.rest()
    house.say("w")
    await house.rest()
    assert member.seen.count("lost") == 1
    assert member.seen[-1] == "5:w"
    assert member.seen.index("lost") == 4


@in_no_time
async def test_who_has_read_what_it_publishes_anew() -> None:
    house = await opened()
    house.say("a")
    house.lose("b", "c")
    early = await house.join(since=1)
    standing_there = await house.join(since=3)  # of whom nobody knows what it has seen
    house.broker.rewind(ROOM, 1)
    house.say("x", "y", "z")
    await house.rest()
    assert early.seen == ["brought 2:b", "brought 3:c", "@3", "lost", "@2", "2:x", "3:y", "4:z"]
    assert standing_there.seen == ["@3", "4:z"]


@pytest.mark.parametrize("times", [(5.0, 4.0), (5.0, 5.0), (4.0, 5.0)])
@in_no_time
async def test_a_clock_that_is_set_back_costs_nothing(times: tuple[float, float]) -> None:
    """What was read comes live later, and is nothing new, whenever it was published."""
    house = await opened()
    member = await house.join()
    made = []
    for text, time in zip("ab", times, strict=True):
        house.broker.time = time - 1
        made += house.lose(text)
    late = await house.join(since=0)
    house.room.look()
    await house.rest()
    house.bring(*made)
    await house.rest()
    house.say("c")
    assert member.seen == ["@0", "1:a", "2:b", "3:c"]
    assert late.texts == ["1:a", "2:b", "3:c"]
    assert "lost" not in late.seen
    assert house.broker.count("history") == 3


# Something may not have come


@pytest.mark.parametrize(
    ("lost", "kept", "seen"),
    [
        (0, 9, []),
        (1, 9, ["2:x"]),
        (3, 9, ["2:x", "3:x", "4:x"]),
        (3, 3, ["2:x", "3:x", "4:x"]),
        (3, 2, ["lost", "@4"]),
        (3, 0, ["lost", "@4"]),
    ],
)
@in_no_time
async def test_it_looks_into_the_history(lost: int, kept: int, seen: list[str]) -> None:
    house = await opened()
    member = await house.join()
    house.say("a")
    house.lose(*["x"] * lost)
    del house.broker.kept[ROOM][: 1 + lost - kept if kept < 1 + lost else 0]
    house.room.doubt()
    assert house.room.doubts
    house.room.look()
    await house.rest()
    assert member.seen[2:] == seen
    assert not house.room.doubts
    assert house.broker.count("history") == 2
    house.say("y")
    assert member.seen[-1].endswith(":y")


@in_no_time
async def test_without_history_there_is_nothing_to_look_into() -> None:
    house = await opened(history=0)
    house.room.doubt()
    assert not house.room.doubts


@in_no_time
async def test_what_is_on_its_way_is_no_loss() -> None:
    """It is read before it comes: that is right at once, and one look suffices."""
    house = await opened()
    member = await house.join()
    late = house.lose("a", "b")
    house.room.look()
    await house.rest()
    assert member.texts == ["1:a", "2:b"]
    house.bring(*late)
    house.say("c")
    await house.rest()
    assert member.seen == ["@0", "1:a", "2:b", "3:c"]
    assert house.broker.count("history") == 2


@in_no_time
async def test_what_comes_in_while_it_looks() -> None:
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.hold("history")
    house.room.look()
    await idle()
    house.say("b")
    house.broker.flash(ROOM, "flash")
    house.room.look()  # that is being done
    house.broker.let_go("history")
    await house.rest()
    house.say("c")
    assert member.texts == ["1:a", "2:b", "0:flash", "3:c"]
    assert "lost" not in member.seen


@pytest.mark.parametrize("is_in_doubt", [False, True])
@in_no_time
async def test_a_doubt_that_comes_while_it_reads(*, is_in_doubt: bool) -> None:
    """The answer that is on its way may be older than what was lost."""
    house = await opened()
    member = await house.join()
    house.broker.hold("history")
    house.room.look()
    await idle()
    house.lose("a")
    if is_in_doubt:
        house.room.doubt()
        house.room.look()
    house.broker.let_go("history")
    await house.rest()
    assert member.texts == (["1:a"] if is_in_doubt else [])
    assert house.broker.count("history") == (3 if is_in_doubt else 2)
    assert not house.room.doubts


@pytest.mark.parametrize("held", ["subscribe", "history"])
@in_no_time
async def test_a_doubt_that_comes_while_it_opens(held: str) -> None:
    house = House()
    house.broker.hold(held)
    opening = asyncio.create_task(house.open())
    await idle()
    house.lose("a")
    house.room.doubt()
    house.room.look()  # it is not open yet
    assert house.started == 0
    house.broker.let_go(held)
    await opening
    await house.rest()
    assert house.stands == "1"
    assert house.broker.count("history") == 2
    assert not house.room.doubts


@in_no_time
async def test_a_doubt_before_it_is_opened_is_none() -> None:
    house = House()
    house.broker.fail("subscribe", down())
    with pytest.raises(BrokerError):
        await house.open()
    house.room.doubt()
    await house.room.open()
    assert not house.room.doubts
    assert house.tasks == set()


@in_no_time
async def test_a_doubt_when_nobody_is_there() -> None:
    house = await opened()
    house.room.uses = 0
    house.room.doubt()
    house.room.look()
    await house.rest()
    assert not house.room.doubts
    assert house.broker.count("history") == 1


@in_no_time
async def test_a_history_that_cannot_be_read_leaves_it_in_doubt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    house = await opened()
    member = await house.join()
    house.lose("a")
    house.broker.fail("history", down())
    house.room.doubt()
    house.room.look()
    await idle()
    assert house.room.doubts
    house.say("b")  # what comes then waits
    assert member.texts == []
    house.room.look()  # it has not to wait for its next time
    await idle()
    assert member.texts == ["1:a", "2:b"]
    assert not house.room.doubts
    assert caplog.records == []  # that the broker is away is for the broker to say
    await house.rest()
    assert house.broker.count("history") == 3


@in_no_time
async def test_a_channel_of_which_nothing_comes_is_checked() -> None:
    house = await opened()
    member = await house.join()
    house.room.check()
    assert house.started == 0  # it has just begun
    house.say("a")
    house.room.check()
    assert house.started == 0
    house.lose("b")
    house.room.check()
    await house.rest()
    assert member.texts == ["1:a", "2:b"]
    house.room.check()
    assert house.started == 1
    house.room.check()
    await house.rest()
    assert house.broker.count("history") == 3


# Many rooms


class Many:
    """Many rooms at one broker."""

    def __init__(self, count: int) -> None:
        self.house = House()
        self.healing = Healing(self.house.start)
        options, broker = ChannelOptions(history=100), self.house.broker
        self.rooms = [Room(f"room:{n}", options, broker, self.healing.add) for n in range(count)]

    async def open(self) -> "Many":
        await self.house.open()
        for room in self.rooms:
            room.uses = 1
            await room.open()
            self.house.broker.keep(room.name, "lost")
        self.house.broker.calls.clear()
        return self

    def look(self) -> None:
        for room in self.rooms:
            room.look()

    @property
    def level(self) -> int:
        return sum(room.position.offset == 1 for room in self.rooms)


@in_no_time
async def test_so_many_rooms_are_healed_at_a_time() -> None:
    many = await Many(10 * READERS).open()
    many.house.broker.hold("history")
    many.look()
    many.look()
    await idle()
    assert many.house.started == READERS
    assert many.house.broker.count("history") == READERS
    many.house.broker.let_go("history")
    await many.house.rest()
    assert many.level == len(many.rooms)
    assert many.house.broker.count("history") == len(many.rooms)
    many.look()
    await many.house.rest()
    assert many.house.broker.count("history") == 2 * len(many.rooms)


@in_no_time
async def test_many_rooms_leave_others_their_turn() -> None:
    many = await Many(2 * READERS).open()
    many.rooms[READERS:] = []
    many.healing._readers = READERS - 1  # so that one does it all
    many.look()
    await idle(READERS // 2)
    assert 0 < many.level < READERS
    many.healing._readers = READERS
    await many.house.rest()


@in_no_time
async def test_one_room_that_cannot_be_healed_holds_up_no_other() -> None:
    many = await Many(3 * READERS).open()
    many.house.broker.fail("history", *[down()] * (2 * READERS))
    many.look()
    await asyncio.sleep(0.1 * RETRY)
    assert many.level == READERS
    await asyncio.sleep(1.5 * RETRY)
    assert many.level == 3 * READERS
    assert many.house.tasks == set()


@in_no_time
async def test_while_the_broker_is_away_nothing_is_tried() -> None:
    many = await Many(5).open()
    many.house.broker.fail("history", *[down()] * 8)
    many.healing.is_away = True
    many.look()
    await asyncio.sleep(100 * RETRY)
    assert many.house.broker.count("history") == 5
    many.rooms[0].look()  # but who is asked to, tries
    await asyncio.sleep(100 * RETRY)
    assert many.house.broker.count("history") == 6
    many.healing.is_away = False
    many.healing.retry()
    await idle()
    assert many.level == 3
    await asyncio.sleep(1.5 * RETRY)
    assert many.level == 5
    await many.house.rest()


# Everything at once


class Game:
    """A room, who comes and goes there, and a server of which not everything arrives."""

    def __init__(self) -> None:
        self.house = House(history=6)
        self.log: list[Publication] = []
        self.epochs = 1
        self.players: list[Player] = []

    def say(self, count: int) -> None:
        for _ in range(count):
            self.house.bring(*self._made(1))

    def lose(self, count: int) -> None:
        self._made(count)

    def _made(self, count: int) -> list[Publication]:
        made = self.house.lose(*[str(len(self.log) + i) for i in range(count)])
        self.log += made
        del self.house.broker.kept[ROOM][:-6]
        return made

    def begin_anew(self) -> None:
        self.epochs += 1
        self.house.broker.begin_anew(ROOM, f"epoch{self.epochs}")

    def look(self) -> None:
        self.house.room.doubt()
        self.house.room.look()

    def check_room(self) -> None:
        self.house.room.check()

    def trim(self, count: int) -> None:
        del self.house.broker.kept[ROOM][:count]

    def hold(self) -> None:
        if "history" not in self.house.broker._gates:
            self.house.broker.hold("history")

    def let_go(self) -> None:
        if "history" in self.house.broker._gates:
            self.house.broker.let_go("history")

    def fail(self) -> None:
        self.house.broker.fail("history", down())

    def join(self, back: int | None, last: int, *, is_told: bool, is_slow: bool) -> None:
        since = None
        if back is not None and self.log:
            since = self.log[-1 - back % len(self.log)].position
        self.players.append(Player(self, since, last, is_told=is_told, is_slow=is_slow))

    def leave(self, number: int) -> None:
        here = [player for player in self.players if not player.has_left]
        if here:
            here[number % len(here)].leave()

    def read(self) -> None:
        for player in self.players:
            player.gate.set()

    async def wait(self, seconds: float) -> None:
        await (asyncio.sleep(seconds) if seconds else idle(2))

    def check(self) -> None:
        for player in self.players:
            player.check()

    async def finish(self) -> None:
        """All arrives in the end, so all who are there have to be at the top."""
        self.house.broker._failures.clear()
        self.let_go()
        self.read()
        await asyncio.sleep(10)
        self.look()
        await asyncio.sleep(10)
        assert self.house.room.position == self.house.broker.tops[ROOM] or not self.players
        assert not self.house.room.doubts
        for _ in range(2):
            self.say(1)
            await asyncio.sleep(10)
        self.check()
        for player in self.players:
            player.check_end()
        assert self.house.tasks == set()
        assert self.house.room._joining == set()
        assert len(self.house.broker.calls) < PATIENCE


class Player(Listener):
    """A member that knows what it should see."""

    def __init__(
        self, game: Game, since: Position | None, last: int, *, is_told: bool, is_slow: bool
    ) -> None:
        super().__init__()
        self.game = game
        self.since = since
        self.begun = len(game.log)
        self.has_left = False
        if is_slow:
            self.gate.clear()
        on_lost = self.learn if is_told else None
        game.house.room.uses += 1
        self.task = asyncio.create_task(game.house.room.catch_up(self, since, last, on_lost))

    async def learn(self, error: PositionLost) -> None:
        self.lose(error)
        await asyncio.sleep(0)

    def leave(self) -> None:
        self.has_left = True
        self.task.cancel()
        self.game.house.room.remove(self)
        self.game.house.room.uses -= 1

    def check(self) -> None:
        """What it saw follows one upon the other, unless it was told."""
        expected = None
        for position, publication in enumerate(self.game.log):
            if publication.position == self.since:
                expected = position + 1
        for each in self.seen:
            if each == "lost":
                expected = None
            elif ":" in each:
                number = int(each.split(":")[1])
                assert expected in {None, number}, (number, self.seen)
                expected = number + 1

    def check_end(self) -> None:
        if self.has_left:
            return
        if self.task.done() and self.task.exception() is not None:
            assert isinstance(self.task.exception(), PositionLost | BrokerError)
            return
        assert self.task.done()
        assert self.texts[-1].split(":")[1] == str(len(self.game.log) - 1)
        first = int(self.texts[0].split(":")[1])
        assert first <= len(self.game.log) - 1


STEPS: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just("say"), st.integers(1, 3)),
    st.tuples(st.just("say"), st.integers(1, 3)),
    st.tuples(st.just("lose"), st.integers(1, 3)),
    st.tuples(st.just("lose"), st.integers(1, 8)),
    st.tuples(st.just("trim"), st.integers(1, 6)),
    st.just(("begin_anew",)),
    st.just(("hold",)),
    st.just(("let_go",)),
    st.just(("let_go",)),
    st.just(("fail",)),
    st.just(("look",)),
    st.just(("check_room",)),
    st.just(("read",)),
    st.tuples(st.just("leave"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from([0, 0, 3.0])),
    st.tuples(st.just("wait"), st.sampled_from([0, 0, 3.0])),
)
JOIN = st.tuples(
    st.just("join"),
    st.none() | st.integers(0, 8),
    st.sampled_from([0, 0, 2]),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(STEPS, STEPS, STEPS, JOIN), max_size=40))
def test_any_schedule(steps: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        game = Game()
        await game.house.open()
        for name, *values in steps:
            if name == "join":
                back, last, is_told, is_slow = values
                game.join(back, last, is_told=is_told, is_slow=is_slow)
            else:
                result = getattr(game, name)(*values)
                if name == "wait":
                    await result
            game.check()
        await game.finish()

    in_scripted_time(play)
