"""The outbox: what waits leaves in the order in which it was given, within its budget, or not."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import idle
from yaat.exceptions import UsageError, WebSocketDisconnect
from yaat.frames import Frame
from yaat.outbox import OVERHEAD, Outbox, Share
from yaat.turns import Turns
from yaat.types import Message

LOW = 2
"""So much room a server has before it says that there is room again."""


def frame(label: str, size: int = 0) -> Frame:
    """Return a frame whose payload is so many bytes long, and tells what it is."""
    return Frame("text", label.ljust(size, "."))


def cost(*sizes: int) -> int:
    """Return what entries of these sizes take of a budget."""
    return sum(sizes) + OVERHEAD * len(sizes)


class Pipe:
    """A server, and what becomes of what it is given.

    Attributes:
        room: So many messages it takes at once.
        sent: What it took, in order.
        failure: What the next `send` raises.
    """

    sender: asyncio.Task[None]
    closing: asyncio.Task[None]

    def __init__(self, way: str, room: int = 0) -> None:
        self.room = room
        self.sent: list[str] = []
        self.failure: BaseException | None = None
        self.is_open = True
        self.turns = Turns()
        self._news = asyncio.Event()
        self._is_sending = False
        self._on_room: list[Callable[[], None]] = []
        self.outbox = Outbox(
            self.turns,
            {"write": self.write, "on_room": self.on_room} if way == "wire" else None,
            step=self.carry if way == "step" else None,
            carry=self.carry,
            is_open=lambda: self.is_open,
            close=self.begin_close,
        )

    def share(self, name: str = "a", slow: str = "cut", max_waiting: int = 10**7) -> "Told":
        return Told(self.outbox, name, slow, max_waiting)

    # The server

    def let_in(self, count: int) -> None:
        """Let so many messages more go."""
        self.room += count
        self._news.set()
        self._tell_room()

    def _tell_room(self) -> None:
        for _ in self._on_room:
            asyncio.get_running_loop().call_soon(self._call_room)

    def _call_room(self) -> None:
        if self._on_room and self.room >= LOW and not self._is_sending:
            self._on_room.pop(0)()

    def on_room(self, callback: Callable[[], None]) -> None:
        self._on_room.append(callback)
        self._tell_room()

    def write(self, frame: Frame) -> bool:
        if not self.room or self._is_sending or not self.is_open:
            return False
        self._take(str(frame.data))
        return True

    def _take(self, label: str) -> None:
        self.room -= 1
        self.sent.append(label.rstrip("."))

    async def carry(self, message: Message) -> None:
        self._is_sending = True
        try:
            while not self.room:
                self._news.clear()
                await self._news.wait()
            if self.failure is not None:
                raise self.failure
            self._take(message["text"])
        finally:
            self._is_sending = False
            self._tell_room()

    # The connection

    async def send(self, label: str) -> None:
        """Send a message, as a `WebSocket` does."""
        if self.turns.taken:
            await self.turns.take()
            try:
                await self.carry({"text": label})
            finally:
                self.turns.give()
            return
        self.turns.taken = True
        try:
            await self.carry({"text": label})
        finally:
            self.turns.taken = False
            if self.turns.queue is not None:
                self.turns.give()

    def begin_close(self, code: int, reason: str) -> None:
        self.closing = asyncio.create_task(self.close(code, reason))

    async def close(self, code: int, reason: str) -> None:
        self.is_open = False
        await self.turns.take()
        self.sent.append(f"{code} {reason}")
        self.turns.give()


class Told(Share):
    """A share that counts what it is told."""

    drops = 0
    cuts = 0

    def on_drop(self) -> None:
        super().on_drop()
        self.drops += 1

    def on_cut(self) -> None:
        super().on_cut()
        self.cuts += 1

    @property
    def labels(self) -> list[str]:
        """What waits, the oldest first."""
        return [str(entry.frame.data).rstrip(".") for entry in self._entries]

    def give(self, *labels: str, size: int = 0, key: str | None = None) -> list[bool]:
        return [self.offer(frame(label, size), key) for label in labels]


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def assert_nothing_left(pipe: Pipe, *shares: Share) -> None:
    """See that nothing is held, nobody has the turn, and no task is left."""
    for share in shares:
        assert (share.waiting, list(share._entries), share._keys) == (0, [], {})
        if share in pipe.outbox._shares.values():
            share.leave()
    await idle()
    assert (pipe.turns.taken, pipe.turns.queue) == (False, None)
    assert pipe.outbox._current is None
    assert others() == set()


@pytest.fixture(params=["wire", "send", "step"])
def way(request: pytest.FixtureRequest) -> str:
    """How the server takes frames: without waiting, by `send` alone, or by a step of `send`."""
    return str(request.param)


async def busy(way: str) -> Pipe:
    """Return a connection on which somebody is sending "0", and there is no room."""
    pipe = Pipe(way)
    pipe.sender = asyncio.create_task(pipe.send("0"))
    await idle()
    return pipe


async def test_who_comes_and_goes_and_reads_nothing_is_cut(way: str) -> None:
    pipe = await busy(way)
    visits = [pipe.share(slow="drop_oldest", max_waiting=1000)]
    for number in range(9):
        visits[-1].give(str(number))
        visits[-1].leave()
        visits[-1].leave()
        if visits[-1].cuts:
            break
        assert pipe.outbox.left_behind == (number + 1) * (OVERHEAD + 1) <= 1000
        visits.append(pipe.share(slow="drop_oldest", max_waiting=1000))
    assert len(visits) == 3
    assert pipe.outbox.left_behind == 0
    pipe.let_in(9)
    await pipe.closing
    assert pipe.sent == ["0", "1013 reads too slowly"]
    await assert_nothing_left(pipe, *visits)


# What need not wait


async def test_with_the_wire_it_leaves_at_once() -> None:
    pipe = Pipe("wire", room=3)
    share = pipe.share()
    assert share.give("1", "2", "3") == [True] * 3
    assert pipe.sent == ["1", "2", "3"]
    assert share.waiting == 0
    await assert_nothing_left(pipe, share)


async def test_what_the_server_does_not_take_waits_for_room(way: str) -> None:
    pipe = await busy(way)
    share = pipe.share()
    assert share.give("1", "2", "3", size=10) == [True] * 3
    assert share.waiting == cost(10, 10, 10)
    await idle()
    assert pipe.sent == []
    pipe.let_in(1 + LOW)
    await idle()
    assert pipe.sent == ["0", "1", "2"]
    pipe.let_in(LOW)
    await idle()
    assert pipe.sent == ["0", "1", "2", "3"]
    await assert_nothing_left(pipe, share)


async def test_the_server_takes_a_part_and_then_the_rest() -> None:
    pipe = Pipe("wire", room=1)
    share = pipe.share()
    share.give("1", "2", "3", "4", "5")
    assert pipe.sent == ["1"]
    pipe.let_in(LOW)
    await idle()
    assert pipe.sent == ["1", "2", "3"]
    assert share.labels == ["4", "5"]
    pipe.let_in(LOW)
    await idle()
    assert pipe.sent == ["1", "2", "3", "4", "5"]
    await assert_nothing_left(pipe, share)


async def test_who_comes_to_one_that_waits_waits_behind(way: str) -> None:
    """Though the server would take it: the low mark is not reached, and others came first."""
    pipe = Pipe(way)
    share = pipe.share()
    share.give("1")
    pipe.let_in(1)
    share.give("2")
    sending = asyncio.create_task(pipe.send("3"))
    await idle()
    share.give("4")
    assert pipe.sent in ([], ["1"])
    pipe.let_in(10)
    await sending
    await idle()
    assert pipe.sent == ["1", "2", "3", "4"]
    await assert_nothing_left(pipe, share)


async def test_a_publication_behind_a_send_that_is_on_its_way(way: str) -> None:
    pipe = Pipe(way)
    first, second = pipe.share("first"), pipe.share("second")
    sending = asyncio.create_task(pipe.send("0"))
    await idle()
    first.give("1")
    second.give("2")
    first.give("3")
    pipe.let_in(10)
    await sending
    await idle()
    assert pipe.sent == ["0", "1", "2", "3"]
    await assert_nothing_left(pipe, first, second)


# One writer, where there is no wire


async def test_the_writer_waits_for_more_and_ends_with_the_last_share() -> None:
    pipe = Pipe("send", room=10)
    first, second = pipe.share("first"), pipe.share("second")
    first.give("1")
    await idle()
    (writer,) = others()
    first.leave()
    second.give("2")
    await idle()
    assert others() == {writer}
    second.leave()
    await idle()
    assert others() == set()
    third = pipe.share("third")
    third.give("3")
    await idle()
    assert pipe.sent == ["1", "2", "3"]
    await assert_nothing_left(pipe, third)


async def test_the_last_share_leaves_while_something_waits(way: str) -> None:
    pipe = Pipe(way)
    share = pipe.share()
    share.give("1", "2")
    await idle()
    share.leave()
    pipe.let_in(5)
    await idle()
    assert pipe.sent == ["1", "2"]
    await assert_nothing_left(pipe, share)


async def test_a_share_comes_in_the_moment_in_which_the_last_one_leaves() -> None:
    pipe = Pipe("send", room=10)
    share = pipe.share()
    share.give("1")
    await idle()
    share.leave()  # the writer has been told, but not run
    again = pipe.share()
    again.give("2")
    again.give("3")
    await idle()
    assert pipe.sent == ["1", "2", "3"]
    again.leave()
    quiet = pipe.share()
    await idle()
    assert len(others()) == 1  # it waits for more
    await assert_nothing_left(pipe, quiet)


@pytest.mark.parametrize("turns", range(6))
async def test_a_share_comes_while_the_writer_ends(turns: int) -> None:
    pipe = Pipe("send", room=10)
    share = pipe.share()
    share.give("1")
    await idle()
    share.leave()
    await idle(turns)
    again = pipe.share()
    again.give("2")
    await idle()
    assert pipe.sent == ["1", "2"]
    await assert_nothing_left(pipe, again)


async def test_the_writer_that_is_told_twice_is_told_once() -> None:
    pipe = Pipe("send", room=1)
    share = pipe.share()
    share.give("1")
    await idle()
    share.give("2", "3")  # tells it, and so does the loss
    pipe.outbox.lose()
    await idle()
    assert pipe.sent == ["1"]
    await assert_nothing_left(pipe, share)


async def test_a_connection_is_a_member_once() -> None:
    pipe = Pipe("wire")
    share = pipe.share("room:1")
    with pytest.raises(UsageError, match=r"a member of 'room:1' already"):
        pipe.share("room:1")
    share.leave()
    pipe.share("room:1")


# The four policies


async def full(slow: str, way: str, size: int = 10, count: int = 3) -> tuple[Pipe, Told]:
    """Return a share of which `count` entries wait, and no more may."""
    pipe = await busy(way)
    share = pipe.share("a", slow, cost(*[size] * count))
    assert share.give(*"123456789"[:count], size=size) == [True] * count
    return pipe, share


async def drained(pipe: Pipe, share: Told) -> list[str]:
    """Return what leaves when there is room for all."""
    pipe.let_in(100)
    await idle()
    await assert_nothing_left(pipe, share)
    assert pipe.sent[0] == "0"
    return pipe.sent[1:]


async def test_drop_oldest(way: str) -> None:
    pipe, share = await full("drop_oldest", way=way)
    assert share.give("4", size=10) == [True]
    assert (share.labels, share.drops) == (["2", "3", "4"], 1)
    assert share.give("5", size=11) == [True]  # takes the place of two
    assert (share.labels, share.drops, share.waiting) == (["4", "5"], 3, cost(10, 11))
    assert await drained(pipe, share) == ["4", "5"]


async def test_drop_newest(way: str) -> None:
    pipe, share = await full("drop_newest", way=way)
    assert share.give("4", "5", size=1) == [False, False]
    assert (share.labels, share.drops) == (["1", "2", "3"], 2)
    assert await drained(pipe, share) == ["1", "2", "3"]


async def test_drop_newest_takes_what_still_fits(way: str) -> None:
    pipe, share = await full("drop_newest", way=way, size=300)
    share.forget(next(iter(share._entries)))
    assert share.give("4", size=301) == [False]
    assert share.give("5", size=300) == [True]
    assert await drained(pipe, share) == ["2", "3", "5"]


async def test_cut(way: str) -> None:
    pipe, share = await full("cut", way=way)
    assert share.give("4", size=10) == [False]
    assert (share.waiting, share.labels, share.cuts, share.drops) == (0, [], 1, 0)
    assert share.give("5", "6") == [False, False]
    assert share.cuts == 1
    assert not pipe.outbox.is_open
    assert await drained(pipe, share) == ["1013 reads too slowly"]


async def test_latest_without_a_key_is_drop_oldest(way: str) -> None:
    pipe, share = await full("latest", way=way)
    assert share.give("4", size=10) == [True]
    assert (share.labels, share.drops) == (["2", "3", "4"], 1)
    assert await drained(pipe, share) == ["2", "3", "4"]


async def test_latest_takes_the_place_of_the_one_with_its_key(way: str) -> None:
    pipe, share = await full("latest", way=way, count=5, size=20)
    share.forget(next(iter(share._entries)))
    share.forget(next(iter(share._entries)))
    share.give("x1", size=20, key="x")
    share.give("y1", size=20, key="y")
    assert share.give("x2", size=20, key="x") == [True]
    assert share.labels == ["3", "4", "5", "x2", "y1"]
    assert share.give("x3", size=5, key="x") == [True]  # a shorter one makes room
    assert share.waiting == cost(20, 20, 20, 20, 5)
    assert share.give("x4", size=20, key="x") == [True]  # and a longer one may, as far as it fits
    assert (share.labels, share.drops) == (["3", "4", "5", "x4", "y1"], 3)
    assert share.waiting == cost(*[20] * 5)
    assert await drained(pipe, share) == ["3", "4", "5", "x4", "y1"]


async def test_latest_that_is_too_long_for_its_place_goes_to_the_end(way: str) -> None:
    pipe, share = await full("latest", way=way)
    share.give("x1", size=10, key="x")
    share.give("4", size=10)
    assert (share.labels, share.drops) == (["3", "x1", "4"], 2)
    assert share.give("x2", size=11, key="x") == [True]
    assert share.labels == ["4", "x2"]  # x1 is superseded; 3 had to go for the one byte
    assert (share.drops, share.waiting) == (4, cost(10, 11))
    assert share.give("x3", size=11, key="x") == [True]
    assert share.labels == ["4", "x3"]
    assert await drained(pipe, share) == ["4", "x3"]


async def test_latest_alone_and_longer_than_the_budget(way: str) -> None:
    pipe = await busy(way)
    share = pipe.share("a", "latest", cost(10))
    assert share.give("x1", size=10, key="x") == [True]
    assert share.give("x2", size=5000, key="x") == [True]
    assert (share.labels, share.waiting, share.drops) == (["x2"], cost(5000), 1)
    pipe.let_in(5)
    await idle()
    assert pipe.sent == ["0", "x2"]
    await assert_nothing_left(pipe, share)


async def test_the_key_of_one_that_has_left_is_forgotten(way: str) -> None:
    pipe = await busy(way)
    share = pipe.share("a", "latest", 1000)
    share.give("x1", "y1", key="x")
    pipe.let_in(4)
    await idle()
    pipe.sender = asyncio.create_task(pipe.send("1"))
    pipe.room = 0
    await idle()
    assert share.give("x2", key="x") == [True]
    assert share.drops == 1
    pipe.let_in(5)
    await idle()
    assert pipe.sent == ["0", "y1", "1", "x2"]
    await assert_nothing_left(pipe, share)


async def test_other_policies_know_no_keys(way: str) -> None:
    pipe = await busy(way)
    share = pipe.share("a", "drop_oldest", 10_000)
    share.give("x1", "x2", "x3", key="x")
    assert (share.labels, share.drops) == (["x1", "x2", "x3"], 0)
    share.forget(next(iter(share._entries)))  # an older one takes no newer one's key along
    assert set(share._keys) == {"x"}
    pipe.let_in(10)
    await idle()
    assert pipe.sent == ["0", "x2", "x3"]
    await assert_nothing_left(pipe, share)


@pytest.mark.parametrize("slow", ["cut", "drop_oldest", "drop_newest", "latest"])
async def test_one_entry_is_always_held(slow: str, way: str) -> None:
    pipe = await busy(way)
    share = pipe.share("a", slow, 1)
    assert share.give("1", size=5000) == [True]
    assert share.waiting == cost(5000)
    assert share.give("2", size=6000) == [slow in {"drop_oldest", "latest"}]
    assert share.labels == {"cut": [], "drop_newest": ["1"]}.get(slow, ["2"])
    pipe.let_in(10)
    await idle()
    await assert_nothing_left(pipe, share)


async def test_a_budget_is_of_one_share_alone(way: str) -> None:
    pipe = await busy(way)
    narrow, wide = pipe.share("narrow", "drop_oldest", cost(10)), pipe.share("wide")
    narrow.give("n1", size=10)
    wide.give("w1", "w2", size=1000)
    narrow.give("n2", size=10)
    wide.give("w3", size=1000)
    assert (narrow.labels, wide.labels) == (["n2"], ["w1", "w2", "w3"])
    pipe.let_in(10)
    await idle()
    assert pipe.sent == ["0", "w1", "w2", "n2", "w3"]
    assert wide.drops == 0
    await assert_nothing_left(pipe, narrow, wide)


# The end


async def test_nothing_is_taken_after_the_end(way: str) -> None:
    """Of what is cut off, no later part may leave: who resumes after that would miss the rest."""
    pipe = Pipe(way)
    cut, other = pipe.share("cut", "cut", cost(1)), pipe.share("other")
    while not cut.cuts:
        cut.give("x")
    pipe.let_in(1)  # less than the low mark; but `write` would take it
    assert other.give("3") == [False]
    assert cut.give("4") == [False]
    later = pipe.share("later")
    assert later.give("5") == [False]
    await idle()
    assert pipe.sent == ["1013 reads too slowly"]
    await assert_nothing_left(pipe, cut, other, later)


async def test_the_end_though_nothing_waits(way: str) -> None:
    pipe = Pipe(way, room=5)
    share = pipe.share()
    share.give("1")
    await idle()
    pipe.outbox.end(4010, "position lost")
    pipe.outbox.end(1013, "reads too slowly")  # the first one counts
    assert share.give("2") == [False]
    await idle()
    assert pipe.sent == ["1", "4010 position lost"]
    await assert_nothing_left(pipe, share)


async def test_the_end_before_the_writer_has_run(way: str) -> None:
    """A burst: all in one turn of the loop."""
    pipe = Pipe(way)
    share = pipe.share("a", "cut", 1)
    taken = share.give("1", "2", "3", "4")
    assert taken in ([True, False, False, False], [way == "step", True, False, False])
    await idle()
    assert pipe.sent == ["1013 reads too slowly"]
    await assert_nothing_left(pipe, share)


async def test_the_end_while_the_writer_is_stuck() -> None:
    pipe = Pipe("send")
    share = pipe.share("a", "cut", cost(1))
    share.give("1")
    await idle()  # it is on its way, and waits no more
    assert share.waiting == 0
    assert share.give("2", "3") == [True, False]
    await idle()
    assert pipe.sent == ["1013 reads too slowly"]
    await assert_nothing_left(pipe, share)


async def test_the_end_while_the_writer_has_been_told_and_has_not_run() -> None:
    pipe = Pipe("send", room=1)
    share = pipe.share("a", "cut", cost(1))
    share.give("1")
    await idle()
    assert share.give("2", "3") == [True, False]
    await idle()
    assert pipe.sent == ["1", "1013 reads too slowly"]
    await assert_nothing_left(pipe, share)


async def test_a_loss_while_somebody_sends(way: str) -> None:
    pipe = Pipe(way)
    share = pipe.share()
    sending = asyncio.create_task(pipe.send("0"))
    await idle()
    share.give("1")
    behind = asyncio.create_task(pipe.send("2"))
    await idle()
    share.give("3")
    pipe.outbox.lose()
    pipe.outbox.lose()
    assert (share.waiting, share.give("4")) == (0, [False])
    pipe.let_in(10)
    await asyncio.gather(sending, behind)
    assert pipe.sent == ["0", "2"]
    await assert_nothing_left(pipe, share)


async def test_a_loss_while_it_has_the_turn(way: str) -> None:
    pipe = Pipe(way)
    share = pipe.share()
    share.give("1", "2")
    sending = asyncio.create_task(pipe.send("3"))
    await idle()
    share.give("4")
    pipe.is_open = False
    pipe.outbox.lose()
    pipe.let_in(10)
    await sending
    await idle()
    assert pipe.sent == ["3"]
    await assert_nothing_left(pipe, share)


async def test_lost_and_nothing_waited(way: str) -> None:
    pipe = Pipe(way, room=2)
    share = pipe.share()
    pipe.outbox.lose()
    await assert_nothing_left(pipe, share)


async def test_the_writer_learns_that_the_peer_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = Pipe("send")
    share = pipe.share()
    share.give("1", "2")
    await idle()
    pipe.is_open = False
    pipe.failure = WebSocketDisconnect(1006, "")
    pipe.let_in(1)
    await idle()
    assert caplog.records == []
    assert share.give("3") == [False]
    await assert_nothing_left(pipe, share)


async def test_a_server_that_cancels_the_writer() -> None:
    """None of what waited may be left out in silence."""
    pipe = Pipe("send")
    share = pipe.share()
    share.give("1", "2")
    await idle()
    pipe.failure = asyncio.CancelledError()
    pipe.let_in(1)
    await idle()
    pipe.failure = None
    share.give("3")
    pipe.let_in(5)
    await idle()
    assert pipe.sent == ["1", "2", "3"] or not {"1", "2", "3"} & set(pipe.sent)
    await assert_nothing_left(pipe, share)


async def test_somebody_cancels_a_writer_that_has_nothing_to_do() -> None:
    pipe = Pipe("send", room=5)
    share = pipe.share()
    share.give("1")
    await idle()
    (writer,) = others()
    writer.cancel()
    await idle()
    share.give("2")
    await idle()
    assert pipe.sent in (["1"], ["1", "2"])
    await assert_nothing_left(pipe, share)


async def test_a_server_that_cancels_a_step() -> None:
    pipe = Pipe("step", room=5)
    share = pipe.share()
    pipe.failure = asyncio.CancelledError()
    assert share.give("1", "2") == [False, False]
    pipe.failure = None
    assert share.give("3") == [False]
    await assert_nothing_left(pipe, share)


async def test_a_server_that_cleans_up_after_a_step(way: str) -> None:
    """It waits for something when its `send` is cancelled, and nothing is lost on the way."""
    pipe = Pipe(way)
    cleaned = []

    async def carry(message: Message) -> None:
        try:
            await Pipe.carry(pipe, message)
        finally:
            await asyncio.sleep(0)
            cleaned.append(message["text"])

    pipe.outbox._carry = carry
    pipe.outbox._step = carry if way == "step" else None
    share = pipe.share()
    share.give("1", "2")
    pipe.outbox.end(4010, "position lost")
    await idle()
    assert pipe.sent == ["4010 position lost"]
    assert cleaned == (["1"] if way == "step" else [])
    await assert_nothing_left(pipe, share)


async def test_the_writer_keeps_nothing_of_who_offered_first() -> None:
    """It lives as long as the connection, and what it is given comes from many."""
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    pipe = Pipe("send", room=5)
    seen = []

    async def carry(message: Message) -> None:
        seen.append(whose.get())

    pipe.outbox._carry = carry
    share = pipe.share()
    whose.set("a request's")
    share.give("1")
    await idle()
    assert seen == ["nobody's"]
    await assert_nothing_left(pipe, share)


async def test_a_writer_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pipe = Pipe("send")
    share = pipe.share()
    share.give("1", "2")
    await idle()
    pipe.failure = RuntimeError("the server is mad")
    pipe.let_in(1)
    await idle()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("yaat.channel", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is pipe.failure
    assert share.give("3") == [False]
    await assert_nothing_left(pipe, share)


# A step, where the server's `send` needs no task


async def test_by_a_step_it_leaves_at_once() -> None:
    pipe = Pipe("step", room=3)
    share = pipe.share()
    assert share.give("1", "2", "3") == [True] * 3
    assert pipe.sent == ["1", "2", "3"]
    assert others() == set()
    await assert_nothing_left(pipe, share)


async def test_a_step_that_has_to_wait_is_gone_on_with() -> None:
    pipe = Pipe("step")
    share = pipe.share()
    assert share.give("1", "2", size=10) == [True, True]
    assert share.waiting == cost(10)
    sending = asyncio.create_task(pipe.send("3"))
    for count in range(1, 4):
        await idle()
        pipe.let_in(1)
        await idle()
        assert pipe.sent == ["1", "2", "3"][:count]
    await sending
    share.give("4")
    pipe.let_in(1)
    await idle()
    assert pipe.sent == ["1", "2", "3", "4"]
    await assert_nothing_left(pipe, share)


@pytest.mark.parametrize("turns", [0, 1, 2, 12])
async def test_a_loss_in_the_middle_of_a_step(turns: int) -> None:
    pipe = Pipe("step")
    share = pipe.share()
    share.give("1", "2")
    await idle(turns)
    pipe.is_open = False
    pipe.outbox.lose()
    await idle()
    pipe.let_in(5)
    await idle()
    assert pipe.sent == []
    await assert_nothing_left(pipe, share)


@pytest.mark.parametrize("turns", [0, 1, 2, 12])
async def test_the_end_in_the_middle_of_a_step_that_is_not_the_first(turns: int) -> None:
    pipe = Pipe("step", room=1)
    share = pipe.share()
    share.give("1", "2")
    await idle()
    pipe.let_in(1)
    await idle()
    share.give("3", "4")
    await idle(turns)
    pipe.outbox.end(4010, "position lost")
    await idle()
    assert pipe.sent == ["1", "2", "4010 position lost"]
    await assert_nothing_left(pipe, share)


@pytest.mark.parametrize("error", [OSError("gone"), WebSocketDisconnect(1006, "")])
async def test_a_step_learns_that_the_peer_has_left(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipe("step", room=5)
    share = pipe.share()
    pipe.failure = error
    assert share.give("1", "2") == [False, False]
    assert caplog.records == []
    await assert_nothing_left(pipe, share)


async def test_a_step_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pipe = Pipe("step", room=5)
    share = pipe.share()
    pipe.failure = RuntimeError("the server is mad")
    assert share.give("1", "2") == [False, False]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    await assert_nothing_left(pipe, share)


async def test_a_step_that_fails_later(caplog: pytest.LogCaptureFixture) -> None:
    pipe = Pipe("step")
    share = pipe.share()
    assert share.give("1", "2") == [True, True]
    pipe.failure = RuntimeError("the server is mad")
    pipe.let_in(5)
    await idle()
    assert len(caplog.records) == 1
    assert share.give("3") == [False]
    await assert_nothing_left(pipe, share)


async def test_a_step_after_the_connection_has_ended() -> None:
    pipe = Pipe("step", room=5)
    share = pipe.share()
    pipe.is_open = False
    assert share.give("1") == [False]
    assert pipe.sent == []
    await assert_nothing_left(pipe, share)


async def test_a_share_that_tells_nobody() -> None:
    """By itself it tells nobody what it does."""
    pipe = Pipe("wire")
    dropping = Share(pipe.outbox, "dropping", "drop_newest", 1)
    cut = Share(pipe.outbox, "cut", "cut", 1)
    for share in (dropping, cut):
        assert [share.offer(frame("1")), share.offer(frame("2"))] == [True, False]
    await idle()
    assert pipe.sent == ["1013 reads too slowly"]


# Many


async def test_senders_that_gave_up_between_publications(way: str) -> None:
    """However many: nobody calls himself once for each of them."""
    pipe = Pipe(way)
    share = pipe.share()
    sending = asyncio.create_task(pipe.send("0"))
    await idle()
    senders = []
    for number in range(3000):
        share.give(str(number))
        senders.append(asyncio.create_task(pipe.send("x")))
        await asyncio.sleep(0)
    assert len(pipe.turns.queue or ()) == 6000
    for task in senders:
        task.cancel()
    await asyncio.gather(*senders, return_exceptions=True)
    pipe.let_in(10_000)
    await sending
    await idle()
    assert pipe.sent == ["0", *map(str, range(3000))]
    await assert_nothing_left(pipe, share)


async def test_publications_that_were_dropped_between_senders(way: str) -> None:
    pipe = Pipe(way)
    share = pipe.share("a", "drop_oldest", cost(10))
    sending = asyncio.create_task(pipe.send("first"))
    await idle()
    senders = []
    for number in range(3000):
        share.give(f"p{number}", size=10)
        senders.append(asyncio.create_task(pipe.send(str(number))))
        await asyncio.sleep(0)
    assert (share.labels, share.drops) == (["p2999"], 2999)
    pipe.let_in(10_000)
    await asyncio.gather(sending, *senders)
    await idle()
    assert pipe.sent == ["first", *map(str, range(2999)), "p2999", "2999"]
    await assert_nothing_left(pipe, share)


# Everything at once, against a model


SHARES = [
    ("cut", cost(4, 4, 4, 4, 4)),
    ("drop_oldest", cost(4, 4)),
    ("drop_newest", cost(4, 4)),
    ("latest", cost(4, 4, 4)),
]


@dataclass(eq=False)
class Item:
    """Something that was given to be sent, in its place among all.

    Attributes:
        task: Sends it, if it is no publication.
    """

    label: str
    size: int = 0
    key: str | None = None
    task: asyncio.Task[None] | None = None


class Outcome(NamedTuple):
    """What becomes of an offer that has to wait.

    Attributes:
        line: What waits in the share then.
        drops: How many were dropped.
        is_taken: What the offer returns.
        replaced: Whose place the new one took.
    """

    line: list[Item]
    drops: int
    is_taken: bool
    replaced: Item | None = None


def expected(slow: str, budget: int, line: list[Item], new: Item) -> Outcome:
    """Return what is to become of an offer, as the documentation has it."""
    line, drops = list(line), 0
    same = [item for item in line if item.key and item.key == new.key]
    if slow == "latest" and same:
        place = line.index(same[0])
        drops = 1
        line[place] = new
        if cost(*[item.size for item in line]) <= budget:
            return Outcome(line, drops, is_taken=True, replaced=same[0])
        del line[place]
    while line and cost(*[item.size for item in line], new.size) > budget:
        if slow == "cut":
            return Outcome([], drops, is_taken=False)
        drops += 1
        if slow == "drop_newest":
            return Outcome(line, drops, is_taken=False)
        del line[0]
    return Outcome([*line, new], drops, is_taken=True)


class Game:
    """One connection with several shares, some who send, and the line in which all should leave."""

    def __init__(self, way: str, room: int) -> None:
        self.way = way
        self.pipe = Pipe(way, room=room)
        self.shares = [self.pipe.share(str(i), *each) for i, each in enumerate(SHARES)]
        self.gone: list[Told] = []
        self.line: list[Item] = []
        self.count = 0
        self.is_over = False

    def _label(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def offer(self, which: int, size: int, key: str | None) -> None:
        if self.shares[which] in self.gone:
            self.come_and_go(which)
        share, (slow, budget) = self.shares[which], SHARES[which]
        label = self._label("p")
        new = Item(label, size + len(label), key)
        before = [item for item in self.line if item.label in share.labels]
        sent, drops = len(self.pipe.sent), share.drops
        (is_taken,) = share.give(label, size=new.size, key=key)
        if self.is_over:
            assert (is_taken, len(self.pipe.sent)) == (False, sent)
        elif len(self.pipe.sent) > sent or (is_taken and label not in share.labels):
            assert not [item for item in self.line if self._is_due(item)], "nobody is overtaken"
            assert is_taken
            assert self.pipe.sent[sent:] == [label] or self.way == "step"
            self.line.append(new)
        else:
            outcome = expected(slow, budget, before, new)
            assert share.labels == [item.label for item in outcome.line]
            assert (is_taken, share.drops - drops) == (outcome.is_taken, outcome.drops)
            self._note(new, before, outcome)
            if share.cuts:
                self._end()

    def _note(self, new: Item, before: list[Item], outcome: Outcome) -> None:
        """Bring the line up to date."""
        if outcome.replaced is not None:
            self.line[self.line.index(outcome.replaced)] = new
            return
        gone = [item for item in before if item not in outcome.line]
        self.line = [item for item in self.line if item not in gone]
        if outcome.is_taken:
            self.line.append(new)

    def _is_due(self, item: Item) -> bool:
        """Whether something has yet to leave."""
        if item.label in self.pipe.sent:
            return False
        return item.task is None or not item.task.done()

    def send(self) -> None:
        label = self._label("s")

        async def send() -> None:
            self.line.append(Item(label, task=task))
            await self.pipe.send(label)

        task = asyncio.create_task(send())

    def come_and_go(self, which: int) -> None:
        """A member leaves, and may leave something behind; and comes again."""
        share = self.shares[which]
        if share not in self.gone:
            self._part(share)
            self.gone.append(share)
        self.shares[which] = self.pipe.share(str(which), *SHARES[which])

    def leave(self) -> None:
        """All leave, so that the writer ends, if there is one; who offers comes again."""
        for share in self.shares:
            if share not in self.gone:
                self._part(share)
        self.gone += self.shares

    def _part(self, share: Told) -> None:
        """One leaves; and what those who have left behind may not be more than its budget."""
        left = share.waiting + self.pipe.outbox.left_behind
        is_too_much = share.waiting < left > share._max_waiting and not self.is_over
        cuts = share.cuts
        share.leave()
        assert share.cuts - cuts == is_too_much
        if is_too_much:
            self._end()

    def cancel(self, number: int) -> None:
        waiting = [item for item in self.line if item.task is not None and self._is_due(item)]
        if waiting:
            task = waiting[number % len(waiting)].task
            assert task is not None
            task.cancel()

    def lose(self) -> None:
        self.pipe.is_open = False
        self.pipe.outbox.lose()
        self._end()

    def end(self) -> None:
        self.pipe.outbox.end(4010, "position lost")
        self._end()

    def _end(self) -> None:
        """Nothing of the publications leaves any more."""
        self.is_over = True
        gone = {item.label for item in self.line if item.task is None and self._is_due(item)}
        self.line = [item for item in self.line if item.label not in gone]

    def check(self) -> None:
        for share in {*self.shares, *self.gone}:
            budget = share._max_waiting
            assert share.waiting == sum(entry.size for entry in share._entries)
            assert share.waiting <= budget or len(share._entries) == 1
            assert {e.key for e in share._entries if e.key} == set(share._keys)
        sent = [label for label in self.pipe.sent if label[0] in "ps"]
        order = [item.label for item in self.line if item.label in sent]
        assert sent == order, "in the order of the calls"
        late = [item for item in self.line if self._is_due(item)]
        if late and sent:
            last = max(i for i, item in enumerate(self.line) if item.label in sent)
            assert all(self.line.index(item) > last for item in late), "nobody is overtaken"

    async def finish(self) -> None:
        self.pipe.let_in(1000)
        await idle(20)
        self.check()
        assert [item.label for item in self.line if self._is_due(item)] == []
        if self.is_over:
            assert not any(share.offer(frame("after")) for share in self.shares + self.gone)
        closes = [label for label in self.pipe.sent if label[0] in "14"]
        assert len(closes) <= 1
        assert bool(closes) >= any(share.cuts for share in self.shares + self.gone)
        for item in self.line:
            if item.task is not None and not item.task.cancelled():
                item.task.result()
        await assert_nothing_left(self.pipe, *self.shares, *self.gone)


OFFER = st.tuples(
    st.just("offer"),
    st.integers(0, len(SHARES) - 1),
    st.sampled_from([0, 0, 0, 1, 2, 250, 5000]),
    st.sampled_from([None, "x", "y"]),
)
STEP: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    OFFER,
    OFFER,
    OFFER,
    st.tuples(st.just("send")),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("room"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.integers(1, 3)),
    st.tuples(st.just("come_and_go"), st.integers(0, len(SHARES) - 1)),
    st.just(("leave",)),
)
ENDS = st.sampled_from([None, None, ("lose",), ("end",)])


@settings(max_examples=400, deadline=None)
@given(
    way=st.sampled_from(["wire", "send", "step"]),
    room=st.integers(0, 3),
    steps=st.lists(STEP, max_size=40),
    end=ENDS,
    rest=st.lists(STEP, max_size=8),
)
def test_any_schedule(
    *,
    way: str,
    room: int,
    steps: list[tuple[Any, ...]],
    end: tuple[str] | None,
    rest: list[tuple[Any, ...]],
) -> None:
    async def play() -> None:
        game = Game(way, room=room)
        ways: dict[str, Callable[..., None]] = {
            "offer": game.offer,
            "send": game.send,
            "cancel": game.cancel,
            "come_and_go": game.come_and_go,
            "leave": game.leave,
            "room": game.pipe.let_in,
            "lose": game.lose,
            "end": game.end,
        }
        for name, *values in [*steps, *([end] if end else []), *rest]:
            if name == "wait":
                await idle(*values)
            else:
                ways[name](*values)
            game.check()
        await game.finish()

    asyncio.run(play())
