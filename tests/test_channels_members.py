"""Members: a connection in a channel, and a reader in Python."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from scripted import ScriptedServer, accepted, idle
from scripted_broker import ScriptedBroker
from yaat.brokers.contract import Content, Publication
from yaat.channels.formats import AS_PUBLISHED, EVENTS, POSITIONED, RAW, Format
from yaat.channels.members import Counts, SocketMember, Subscriber, called, client_of
from yaat.channels.options import ChannelOptions
from yaat.exceptions import PositionLost, UsageError
from yaat.frames import Frame
from yaat.observer import Observer
from yaat.outbox import OVERHEAD
from yaat.websockets import WebSocket

ROOM = "room:1"


def made(*texts: str) -> list[Publication]:
    return ScriptedBroker().keep(ROOM, *texts)


def frame(text: str) -> Frame:
    return Frame("text", text)


def cost(*sizes: int) -> int:
    return sum(sizes) + OVERHEAD * len(sizes)


class Noting(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def dropped(self, scope: Any, channel: str, slow: str) -> None:
        self.told.append(("dropped", scope["path"], channel, slow))

    def cut(self, scope: Any, channel: str) -> None:
        self.told.append(("cut", scope["path"], channel))


class Seat:
    """A connection, and its membership."""

    def __init__(
        self,
        server: ScriptedServer,
        websocket: WebSocket,
        *,
        form: Format = RAW,
        is_told: bool = False,
        name: str = ROOM,
        **options: Any,
    ) -> None:
        self.server = server
        self.counts = Counts()
        self.lost: list[PositionLost] = []
        self.member = SocketMember(
            websocket,
            name,
            ChannelOptions(**options),
            self.counts,
            format=form,
            on_lost=self.lost.append if is_told else None,
        )


@asynccontextmanager
async def seated(**options: Any) -> AsyncIterator[tuple[Seat, Noting]]:
    observer = Noting()
    async with accepted(**{"yaat.observers": (observer,), "client": ("10.0.0.7", 4711)}) as (
        server,
        websocket,
    ):
        seat = Seat(server, websocket, **options)
        yield seat, observer
        seat.member.leave()


# On a socket


async def test_it_is_offered_frames() -> None:
    async with seated() as (seat, _):
        assert seat.member.offer(frame("a"))
        await idle()
        assert seat.server.texts == ["a"]
        assert (seat.counts.dropped, seat.counts.cut) == (0, 0)


async def test_what_it_missed_is_sent_in_its_format() -> None:
    async with seated(form=POSITIONED) as (seat, _):
        (publication,) = made("a")
        await seat.member.bring(publication)
        assert seat.server.texts == [
            '{"channel":"room:1","offset":1,"epoch":"one","data":"a"}',
        ]


async def test_what_its_format_does_not_tell_is_not_sent() -> None:
    async with seated(form=RAW) as (seat, _):
        content = Content("join", b'{"client":"x","user":null,"info":null}')
        await seat.member.bring(Publication(content, 0, "", 0, 0.0))
        assert seat.server.texts == []


async def test_what_it_missed_waits_for_room() -> None:
    """Its budget is for what comes live; nobody is cut for having been away."""
    async with seated(max_waiting=1) as (seat, _):
        seat.server.gate.clear()
        first, second = made("a", "b")
        bringing = asyncio.create_task(seat.member.bring(first))
        await idle()
        assert not bringing.done()
        seat.server.gate.set()
        await bringing
        await seat.member.bring(second)
        assert seat.server.texts == ["a", "b"]
        assert seat.counts.cut == 0


@pytest.mark.parametrize("is_room", [True, False])
async def test_what_it_missed_takes_the_short_way_if_there_is_one(*, is_room: bool) -> None:
    written: list[str] = []

    def write(frame: Frame) -> bool:
        written.append(str(frame.data))
        return is_room

    server = ScriptedServer()
    server.scope["extensions"] = {
        "yaat.wire": {
            "version": 1,
            "send": server.send,
            "write": write,
            "on_room": lambda callback: None,
            "on_loss": lambda callback: None,
            "buffered": lambda: 0,
        }
    }
    websocket = server.websocket()
    async with websocket:
        await websocket.accept()
        seat = Seat(server, websocket)
        first, second = made("a", "b")
        await seat.member.bring(first)
        assert written == ["a"]
        assert server.texts == ([] if is_room else ["a"])
        websocket.outbox.turns.taken = True  # somebody is sending
        bringing = asyncio.create_task(seat.member.bring(second))
        await idle()
        assert written == ["a"]
        websocket.outbox.turns.give()
        await bringing
        assert server.texts[-1:] == ["b"]
        seat.member.leave()


async def test_a_connection_is_in_a_channel_once() -> None:
    async with seated() as (seat, _):
        websocket = seat.member._socket
        assert isinstance(websocket, WebSocket)
        with pytest.raises(UsageError, match="room:1"):
            Seat(seat.server, websocket)
        other = Seat(seat.server, websocket, name="room:2")
        assert other.member.client == seat.member.client
        other.member.leave()


async def test_each_drop_is_counted_and_told_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with seated(slow="drop_newest", max_waiting=cost(1)) as (seat, observer):
        seat.server.gate.clear()
        seat.member.offer(frame("0"))
        await idle()
        taken = [seat.member.offer(frame(text)) for text in "1234"]
        assert taken == [True, False, False, False]
        assert (seat.counts.dropped, seat.counts.cut) == (3, 0)
        assert observer.told == [("dropped", "/", ROOM, "drop_newest")] * 3
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("yaat.channel", logging.WARNING)
        assert record.message == (
            "a member of 'room:1' reads too slowly: publications are left out (drop_newest); "
            "('10.0.0.7', 4711)"
        )
        seat.server.gate.set()
        await idle()
        assert seat.server.texts == ["0", "1"]


async def test_the_cut_is_counted_and_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with seated(slow="cut", max_waiting=cost(1)) as (seat, observer):
        seat.server.gate.clear()
        seat.member.offer(frame("0"))
        await idle()
        assert [seat.member.offer(frame(text)) for text in "123"] == [True, False, False]
        assert (seat.counts.dropped, seat.counts.cut) == (0, 1)
        assert observer.told == [("cut", "/", ROOM)]
        seat.server.gate.set()
        await idle()
        assert seat.server.sent[-1] == {
            "type": "websocket.close",
            "code": 1013,
            "reason": "reads too slowly",
        }
        (record,) = caplog.records
        assert record.message == (
            "a member of 'room:1' reads too slowly: its connection is closed; ('10.0.0.7', 4711)"
        )


async def test_a_long_name_is_logged_in_part(caplog: pytest.LogCaptureFixture) -> None:
    async with seated(name="x" * 255 + "\n", slow="drop_newest", max_waiting=1) as (seat, _):
        seat.server.gate.clear()
        for _ in range(3):
            seat.member.offer(frame("0"))
            await idle()
        assert len(caplog.records) == 1
        assert "\n" not in caplog.records[0].message
        seat.server.gate.set()


async def test_who_wants_to_know_of_a_loss_is_told() -> None:
    async with seated(is_told=True) as (seat, _):
        error = PositionLost(ROOM)
        seat.member.lose(error)
        assert seat.lost == [error]
        assert seat.member.offer(frame("a"))
        await idle()
        assert seat.server.types == ["send"]


async def test_for_who_does_not_want_to_know_it_is_the_end() -> None:
    async with seated() as (seat, _):
        seat.member.lose(PositionLost(ROOM))
        seat.member.lose(PositionLost(ROOM))
        assert not seat.member.offer(frame("a"))
        await idle()
        assert seat.server.sent == [
            {"type": "websocket.close", "code": 4010, "reason": "position lost"}
        ]


async def test_the_end_of_the_channels_is_not_that_of_a_connection() -> None:
    async with seated() as (seat, _):
        seat.member.close()
        assert seat.member.offer(frame("a"))
        await idle()
        assert seat.server.types == ["send"]


def test_a_connection_has_one_name() -> None:
    scopes: list[dict[str, Any]] = [{}, {}]
    first, second = (client_of(scope) for scope in scopes)
    assert first != second
    assert client_of(scopes[0]) == first
    assert len(first) >= 12  # 72 bits


# In Python


def reading(max_waiting: int = 10_000, form: Format = AS_PUBLISHED) -> Subscriber:
    return Subscriber(form, max_waiting)


def taken(subscriber: Subscriber) -> list[str]:
    found = []
    while (publication := subscriber.take()) is not None:
        found.append(publication.data)
    return found


async def test_a_reader_takes_what_it_is_offered_and_brought() -> None:
    subscriber = reading()
    first, second, third = made("a", "b", "c")
    await subscriber.bring(first)
    assert subscriber.offer(second)
    assert subscriber.offer(third, "key")
    assert taken(subscriber) == ["a", "b", "c"]
    assert subscriber.client is None


async def test_a_reader_of_events_has_no_position_to_lose() -> None:
    subscriber = reading(form=EVENTS)
    subscriber.lose(PositionLost("room:1"))
    waiting = asyncio.create_task(subscriber.wait())
    await idle()
    assert not waiting.done()
    waiting.cancel()


async def test_a_reader_of_events_is_brought_no_publications() -> None:
    subscriber = reading(form=EVENTS)
    for publication in made("a"):
        await subscriber.bring(publication)
    assert taken(subscriber) == []


async def test_a_reader_that_waits_is_woken() -> None:
    subscriber = reading()
    (publication,) = made("a")
    waiting = asyncio.create_task(subscriber.wait())
    await idle()
    assert not waiting.done()
    subscriber.offer(publication)
    subscriber.offer(publication)
    await waiting
    await subscriber.wait()  # there is something
    assert taken(subscriber) == ["a", "a"]
    again = asyncio.create_task(subscriber.wait())
    await idle()
    assert not again.done()
    subscriber.close()
    await again


async def test_a_reader_that_is_too_slow_is_behind() -> None:
    subscriber = reading(max_waiting=cost(1, 1))
    first, second, third, fourth = made("a", "b", "c", "d")
    assert subscriber.offer(first)
    assert subscriber.offer(second)
    assert not subscriber.offer(third)
    assert subscriber.is_behind
    assert taken(subscriber) == []  # it is all in the history
    assert not subscriber.offer(fourth)
    await subscriber.wait()
    subscriber.is_behind = False
    assert subscriber.offer(fourth)
    assert subscriber.offer(fourth)  # the budget counts from nothing
    assert taken(subscriber) == ["d", "d"]


async def test_a_reader_that_keeps_up_is_never_behind() -> None:
    subscriber = reading(max_waiting=cost(1, 1))
    for publication in made(*"abcdefgh"):
        assert subscriber.offer(publication)
        assert taken(subscriber) == [publication.data]
    assert not subscriber.is_behind


async def test_a_reader_takes_one_however_long_it_is() -> None:
    subscriber = reading(max_waiting=1)
    long, other = made("a" * 1000, "b")
    assert subscriber.offer(long)
    assert not subscriber.offer(other)
    assert subscriber.is_behind


async def test_what_is_brought_is_bounded_by_the_history() -> None:
    subscriber = reading(max_waiting=1)
    for publication in made("a", "b", "c"):
        await subscriber.bring(publication)
    assert not subscriber.is_behind
    assert taken(subscriber) == ["a", "b", "c"]
    (publication,) = made("d")
    assert subscriber.offer(publication)


async def test_a_loss_is_told_where_it_is() -> None:
    """After what came before it, and nothing comes after it."""
    subscriber = reading()
    before, after = made("a", "b")
    error = PositionLost(ROOM)
    subscriber.offer(before)
    subscriber.lose(error)
    subscriber.lose(PositionLost(ROOM))  # of what is told the first counts
    assert not subscriber.offer(after)
    await subscriber.wait()
    assert taken(subscriber) == ["a"]
    for _ in range(2):
        with pytest.raises(PositionLost) as caught:
            await subscriber.wait()
        assert caught.value is error


async def test_a_loss_wakes_who_waits() -> None:
    subscriber = reading()
    waiting = asyncio.create_task(subscriber.wait())
    await idle()
    subscriber.lose(PositionLost(ROOM))
    with pytest.raises(PositionLost):
        await waiting


async def test_the_end_comes_after_what_is_in_the_queue() -> None:
    subscriber = reading()
    (publication,) = made("a")
    subscriber.offer(publication)
    subscriber.close()
    await subscriber.wait()
    assert subscriber.is_over
    assert taken(subscriber) == ["a"]
    await subscriber.wait()


async def test_who_wants_to_know_may_be_a_coroutine_function_or_not() -> None:
    told: list[PositionLost] = []

    async def later(error: PositionLost) -> None:
        await asyncio.sleep(0)
        told.append(error)

    error = PositionLost(ROOM)
    await called(told.append, error)
    await called(later, error)
    assert told == [error, error]
