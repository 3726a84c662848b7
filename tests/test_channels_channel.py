"""A channel in the hands of an application: every argument, and every error of it."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import starlette.websockets

from yaat.app import Yaat
from yaat.brokers.contract import Broker, Position, PresenceStats, Present, Publication, Published
from yaat.brokers.memory import MemoryBroker
from yaat.channels import POSITIONED, Channel, ChannelOptions, Channels, Hub, PresenceEvent
from yaat.channels.channel import MAX_INFO
from yaat.exceptions import (
    ArgumentError,
    BrokerError,
    BrokerUnavailable,
    ChannelNameError,
    PositionLost,
    StateError,
    TooBigError,
    UsageError,
    WebSocketDisconnect,
)
from yaat.testing import TestClient, WebSocketSession
from yaat.websockets import WebSocket

CHANNELS = Channels(
    {
        "kept:{id}": ChannelOptions(history=5, ttl=60),
        "both:{id}": ChannelOptions(history=5, presence=True),
        "who:{id}": ChannelOptions(presence=True),
        "small:{id}": ChannelOptions(history=5, max_waiting=1),
        "small who:{id}": ChannelOptions(history=5, presence=True, max_waiting=1),
    }
)
LOST = "position lost"


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub(None, CHANNELS)
    yield hub
    await hub.close()


def data(publications: list[Publication]) -> list[Any]:
    return [publication.data for publication in publications]


async def settled() -> None:
    """Let everybody do what they can do now."""
    for _ in range(20):
        await asyncio.sleep(0)


class Reader:
    """Reads an async iterator in a task of its own.

    Attributes:
        items: What came so far, in order.
        go: While it is clear, the reader is busy with what it has read.
    """

    def __init__(self, source: Any) -> None:
        self.items: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._read(source))

    async def _read(self, source: Any) -> None:
        async with aclosing(source) as items:
            async for item in items:
                self.items.append(item)
                self._news.set()
                await self.go.wait()

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(10):
            while len(self.items) < count:
                self._news.clear()
                await self._news.wait()
        return self.items

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


# Publishing


class Text(str):
    """Text of a class of its own."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("né 😀", "text", "né 😀"),
        ("", "text", ""),
        (Text("text"), "text", "text"),
        (b"\x00\xff", "bytes", b"\x00\xff"),
        (bytearray(b"ab"), "bytes", b"ab"),
        (memoryview(b"abcd")[::2], "bytes", b"ac"),
        ({"a": [1, None]}, "json", {"a": [1, None]}),
        ([], "json", []),
        (None, "json", None),
        (5, "json", 5),
        (1.5, "json", 1.5),
        (True, "json", True),
        ((1, 2), "json", [1, 2]),
        (Present("c"), "json", {"client": "c", "user": None, "info": None}),
    ],
)
async def test_what_may_be_published(hub: Hub, value: Any, kind: str, expected: Any) -> None:
    channel = hub.channel("kept:1")
    published = await channel.publish(value)
    (publication,) = (await channel.history()).publications
    assert publication.content.kind == kind
    assert publication.data == expected
    assert type(publication.data) is type(expected)
    assert publication.position == published.position


async def test_what_is_published_is_what_it_was_then(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    value, buffer = [1], bytearray(b"a")
    await channel.publish(value)
    await channel.publish(buffer)
    value.append(2)
    buffer[:] = b"b"
    assert data((await channel.history()).publications) == [[1], b"a"]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("\ud800", ArgumentError),
        (["\ud800"], ValueError),
        (object(), TypeError),
        ({"a": object()}, TypeError),
        ({(1, 2): 3}, TypeError),
        ("x" * 1_048_577, TooBigError),
        (b"x" * 1_048_577, TooBigError),
    ],
    ids=["surrogate", "in a list", "object", "in a dict", "key", "long text", "long bytes"],
)
async def test_what_cannot_be_published(hub: Hub, value: object, error: type[Exception]) -> None:
    channel = hub.channel("kept:1")
    with pytest.raises(error):
        await channel.publish(value)
    assert (await channel.history()).top.offset == 0
    await channel.publish("x" * 1_048_576)
    assert (await channel.history()).top.offset == 1


@pytest.mark.parametrize("label", ["once", "key"])
async def test_labels_are_text(hub: Hub, label: str) -> None:
    """One broker would take any value, and others not."""
    channel = hub.channel("kept:1")
    with pytest.raises(TypeError, match=f"^{label} is a str, not int$"):
        await channel.publish("x", **{label: 5})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):
        await channel.publish("x", **{label: "\ud800"})  # type: ignore[arg-type]
    await channel.publish("x", **{label: ""})  # type: ignore[arg-type]
    assert (await channel.history()).top.offset == 1


async def test_where_it_was_published(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    first, second = await channel.publish("a"), await channel.publish("b")
    assert isinstance(first, Published)
    assert (first.offset, second.offset) == (1, 2)
    assert first.epoch == second.epoch != ""
    assert await hub.channel("other").publish("a") == Published(0, "")
    assert (await hub.channel("kept:2").publish("a")).epoch != first.epoch


async def test_once(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    first = await channel.publish("a", once="k")
    again = await hub.channel("kept:1").publish("b", once="k")
    assert again == first._replace(duplicate=True)
    assert not (await channel.publish("c")).duplicate
    assert not (await hub.channel("kept:2").publish("a", once="k")).duplicate
    assert data((await channel.history()).publications) == ["a", "c"]


async def test_a_key_is_kept(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    await channel.publish("a", key="k")
    await channel.publish("b")
    publications = (await channel.history()).publications
    assert [publication.content.key for publication in publications] == ["k", None]


# The history


async def test_history(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    top = (await channel.history()).top
    assert top.offset == 0
    for number in range(1, 8):
        await channel.publish(number)
    at = [Position(number, top.epoch) for number in range(8)]

    async def got(**options: Any) -> tuple[list[Any], bool]:
        publications, stands, complete = await channel.history(**options)
        assert stands == at[7]
        return data(publications), complete

    assert await got() == ([3, 4, 5, 6, 7], True)
    assert await got(limit=2) == ([3, 4], True)
    assert await got(reverse=True) == ([7, 6, 5, 4, 3], True)
    assert await got(reverse=True, limit=2) == ([7, 6], True)
    assert await got(limit=0) == ([], True)
    assert await got(since=at[5]) == ([6, 7], True)
    assert await got(since=str(at[5])) == ([6, 7], True)
    assert await got(since=at[5], limit=1) == ([6], True)
    assert await got(since=at[7]) == ([], True)
    assert await got(since=at[2]) == ([3, 4, 5, 6, 7], True), "3 is still there"
    assert await got(since=at[1]) == ([3, 4, 5, 6, 7], False)
    assert await got(since=at[5], reverse=True) == ([4, 3], True)
    assert await got(since=at[5], reverse=True, limit=1) == ([4], True)
    assert await got(since=Position(8, top.epoch)) == ([], False)
    assert await got(since=Position(5, "other")) == ([6, 7], False)
    assert await got(since="") == ([3, 4, 5, 6, 7], True)
    assert await got(since="0-") == ([3, 4, 5, 6, 7], True)
    assert await got(since="nonsense") == ([3, 4, 5, 6, 7], False)


@pytest.mark.parametrize("limit", [-1, -(2**40)])
async def test_a_limit_that_cannot_be(hub: Hub, limit: int) -> None:
    with pytest.raises(ArgumentError, match=f"^limit is 0 or more, not {limit}$"):
        await hub.channel("kept:1").history(limit=limit)


async def test_history_where_nothing_is_kept(hub: Hub) -> None:
    channel = hub.channel("other")
    await channel.publish("x")
    publications, top, complete = await channel.history()
    assert (publications, top.offset, complete) == ([], 0, True)


async def test_remove_history(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    await channel.remove_history()
    before = await channel.publish("a")
    await channel.publish("b")
    await channel.remove_history()
    publications, top, _ = await channel.history()
    assert (publications, top) == ([], Position(2, before.epoch))
    assert not (await channel.history(since=before.position)).complete
    assert (await channel.history(since=top)).complete
    assert (await channel.publish("c")).offset == 3


# Without a socket


async def test_subscribe(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    await channel.publish("before")
    reader = Reader(channel.subscribe())
    await settled()
    for value in ("text", b"bytes", {"a": 1}):
        await channel.publish(value)
    publications = await reader.until(3)
    assert data(publications) == ["text", b"bytes", {"a": 1}]
    assert [each.offset for each in publications] == [2, 3, 4]
    await reader.stop()
    assert not hub._rooms["kept:1"].members


async def test_subscribe_to_what_is_not_kept(hub: Hub) -> None:
    channel = hub.channel("other")
    reader = Reader(channel.subscribe(last=5))
    await settled()
    await channel.publish("a")
    (publication,) = await reader.until(1)
    assert (publication.data, publication.position) == ("a", Position(0, ""))
    await reader.stop()


@pytest.mark.parametrize(
    ("last", "expected"), [(0, [7]), (1, [6, 7]), (3, [4, 5, 6, 7]), (99, [2, 3, 4, 5, 6, 7])]
)
async def test_subscribe_with_the_last(hub: Hub, last: int, expected: list[int]) -> None:
    channel = hub.channel("kept:1")
    for number in range(1, 7):
        await channel.publish(number)
    reader = Reader(channel.subscribe(last=last))
    await settled()
    await channel.publish(7)
    assert data(await reader.until(len(expected))) == expected
    await reader.stop()


async def test_subscribe_since(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    published = [await channel.publish(number) for number in range(1, 4)]
    since = published[0].position
    for each in (since, str(since)):
        reader = Reader(channel.subscribe(since=each, last=99))
        assert data(await reader.until(2)) == [2, 3]
        await reader.stop()
    nowhere: list[Any] = [None, "", "0-", Position(0, "")]
    for each in nowhere:
        reader = Reader(channel.subscribe(since=each, last=1))
        assert data(await reader.until(1)) == [3]
        await reader.stop()


@pytest.mark.parametrize("since", ["nonsense", "9-x", "1-", Position(1, "other"), Position(5, "")])
async def test_subscribe_since_what_is_lost(hub: Hub, since: Any) -> None:
    channel = hub.channel("kept:1")
    await channel.publish("x")
    with pytest.raises(PositionLost) as caught:
        await anext(channel.subscribe(since=since))
    assert caught.value.channel == "kept:1"
    await settled()
    assert not hub._rooms["kept:1"].members


@pytest.mark.parametrize("name", ["subscribe", "join"])
async def test_a_last_that_cannot_be(hub: Hub, name: str) -> None:
    channel = hub.channel("kept:1")
    begin = anext(channel.subscribe(last=-1)) if name == "subscribe" else None
    with pytest.raises(ArgumentError, match=r"^last is 0 or more, not -1$"):
        await (begin or join_once(hub, channel, last=-1))


async def test_a_slow_reader_goes_on_from_the_history(hub: Hub) -> None:
    channel = hub.channel("small:1")
    reader = Reader(channel.subscribe())
    await settled()
    reader.go.clear()
    for number in range(1, 5):
        await channel.publish(number)
    await settled()
    reader.go.set()
    assert data(await reader.until(4)) == [1, 2, 3, 4]
    assert [each.offset for each in reader.items] == [1, 2, 3, 4]
    await channel.publish(5)
    assert data(await reader.until(5)) == [1, 2, 3, 4, 5]
    await reader.stop()


async def test_a_reader_that_is_slow_from_the_start(hub: Hub) -> None:
    """It has not taken anything yet: it goes on from where it began."""
    channel = hub.channel("small:1")
    await channel.publish(0)
    reader = Reader(channel.subscribe())
    await settled()
    for number in range(1, 4):
        await channel.publish(number)
    assert data(await reader.until(3)) == [1, 2, 3]
    await reader.stop()


async def test_a_reader_that_is_too_slow(hub: Hub) -> None:
    channel = hub.channel("small:1")
    reader = Reader(channel.subscribe())
    await settled()
    reader.go.clear()
    await channel.publish(1)
    await reader.until(1)
    for number in range(2, 20):
        await channel.publish(number)
    await settled()
    reader.go.set()
    with pytest.raises(PositionLost):
        await reader.task
    assert data(reader.items) == [1], "and not one out of order"


async def test_a_reader_that_is_too_slow_where_nothing_is_kept() -> None:
    hub = Hub(None, Channels({"a": ChannelOptions(max_waiting=1)}))
    channel = hub.channel("a")
    reader = Reader(channel.subscribe())
    await settled()
    for number in range(3):
        await channel.publish(number)
    with pytest.raises(PositionLost):
        await reader.task
    assert reader.items == []
    await hub.close()


async def test_a_subscription_ends_with_the_hub(hub: Hub) -> None:
    reader = Reader(hub.channel("kept:1").subscribe())
    await settled()
    await hub.close()
    await reader.task
    assert reader.items == []


async def test_two_read_without_knowing_of_each_other(hub: Hub) -> None:
    channel = hub.channel("kept:1")
    first, second = Reader(channel.subscribe()), Reader(channel.subscribe())
    await settled()
    await channel.publish(1)
    await first.until(1)
    await first.stop()
    await channel.publish(2)
    assert data(await second.until(2)) == [1, 2]
    assert data(first.items) == [1]
    await second.stop()


# Who is there, without a socket


async def test_presence_is_asked_for_where_there_is_some(hub: Hub) -> None:
    channel = hub.channel("who:1")
    assert await channel.presence() == []
    assert await channel.presence_stats() == PresenceStats(0, 0)
    other = hub.channel("kept:1")
    why = r"^Channel\('kept:1'\) has no presence: give its pattern ChannelOptions\(presence=True\)$"
    for call in (other.presence, other.presence_stats, other.presence_events().__anext__):
        with pytest.raises(UsageError, match=why):
            await call()


async def come(hub: Hub, name: str, client: str) -> Present:
    present = Present(client, f"user {client}", {"a": [client]})
    await hub.arrive(name, present)
    return present


@pytest.mark.parametrize("name", ["who:1", "both:1"])
async def test_who_comes_and_goes(hub: Hub, name: str) -> None:
    channel = hub.channel(name)
    reader = Reader(channel.presence_events())
    await settled()
    present = await come(hub, name, "1")
    await channel.publish("no event")
    await hub.depart(name, present)
    events = await reader.until(2)
    assert events == [PresenceEvent("join", present), PresenceEvent("leave", present)]
    await reader.stop()
    assert await channel.presence() == []


async def test_events_are_no_publications(hub: Hub) -> None:
    channel = hub.channel("both:1")
    reader = Reader(channel.subscribe())
    await settled()
    await come(hub, "both:1", "1")
    await channel.publish("text")
    assert data(await reader.until(1)) == ["text"]
    assert data((await channel.history()).publications) == ["text"]
    await reader.stop()


@pytest.mark.parametrize("name", ["small who:1", "small who:2"])
async def test_who_reads_events_too_slowly(hub: Hub, name: str) -> None:
    """Events are in no history: there is nothing to go on from."""
    channel = hub.channel(name)
    await channel.publish("kept")
    reader = Reader(channel.presence_events())
    await settled()
    if name.endswith("2"):
        reader.go.clear()
        await come(hub, name, "0")
        await reader.until(1)
    for number in range(1, 4):
        await channel.publish("kept")
        await come(hub, name, str(number))
    reader.go.set()
    with pytest.raises(PositionLost):
        await reader.task
    assert [event.present.client for event in reader.items] == (["0"] if "2" in name else [])


async def test_events_that_are_closed_early(hub: Hub) -> None:
    channel = hub.channel("who:1")
    events = channel.presence_events()
    coming = asyncio.ensure_future(anext(events))
    await settled()
    await come(hub, "who:1", "1")
    assert (await coming).present.client == "1"
    assert len(hub._rooms["who:1"].members) == 1
    await events.aclose()
    assert not hub._rooms["who:1"].members
    assert hub._rooms["who:1"].uses == 0


async def test_a_subscription_that_is_only_let_go(hub: Hub) -> None:
    """`async for` and `break`: the event loop closes the iterator."""
    channel = hub.channel("kept:1")
    await channel.publish("x")
    async for publication in channel.subscribe(last=1):
        assert publication.data == "x"
        break
    gc.collect()
    await settled()
    assert not hub._rooms["kept:1"].members
    assert hub._rooms["kept:1"].uses == 0


# With a socket


Handler = Callable[[WebSocket, Channel], Awaitable[None]]


async def stays(websocket: WebSocket, channel: Channel) -> None:
    """Publish what comes in."""
    async for text in websocket.iter_text():
        await channel.publish(text, skip=websocket if text.startswith("skip") else None)


class Chat:
    """An application with one channel, and a client for it.

    Attributes:
        options: Of `join`.
        left: How often `join` has been left.
        raised: What came out of it.
    """

    def __init__(self, broker: Broker | None = None) -> None:
        self.app = Yaat(broker=broker, channels=CHANNELS)
        self.client = self.app.test_client()
        self.options: dict[str, Any] = {}
        self.inside: Handler = stays
        self.left = 0
        self.raised: list[BaseException] = []
        self.app.add_websocket_route("/{name}", self.handle)

    async def handle(self, websocket: WebSocket, name: str) -> None:
        await websocket.accept()
        channel = websocket.channel(name)
        try:
            async with channel.join(websocket, **self.options) as same:
                assert same is channel
                await self.inside(websocket, same)
        except BaseException as error:
            self.raised.append(error)
            raise
        finally:
            self.left += 1

    def channel(self, name: str) -> Channel:
        return self.app.channel(name)

    async def entered(self, name: str, count: int = 1) -> None:
        """Wait until so many are members."""
        async with asyncio.timeout(10):
            while len(self.members(name)) != count:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)

    def members(self, name: str) -> list[Any]:
        room = self.app.hub._rooms.get(name)
        return room.members if room is not None else []

    async def gone(self, name: str) -> None:
        """Wait until nothing is left of those who were there."""
        async with asyncio.timeout(10):
            while self.members(name) or self.app.hub._present:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        room = self.app.hub._rooms.get(name)
        assert room is None or room.uses == 0


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    chat = Chat()
    async with chat.client:
        yield chat


async def test_join(chat: Chat) -> None:
    async with chat.client.websocket("/other") as ann, chat.client.websocket("/other") as bob:
        await chat.entered("other", 2)
        await ann.send_text("hello")
        assert await ann.receive_text() == "hello"
        assert await bob.receive_text() == "hello"
        for value, expected in (("né", "né"), (b"\xff", b"\xff"), ({"a": 1}, '{"a":1}')):
            await chat.channel("other").publish(value)
            assert await bob.receive() == expected
    await chat.gone("other")
    assert chat.left == 2


async def test_the_sender_may_be_left_out(chat: Chat) -> None:
    async with chat.client.websocket("/other") as ann, chat.client.websocket("/other") as bob:
        await chat.entered("other", 2)
        await ann.send_text("skip me")
        await ann.send_text("all")
        assert [await bob.receive_text() for _ in range(2)] == ["skip me", "all"]
        assert await ann.receive_text() == "all"


@pytest.mark.parametrize(
    ("last", "expected"), [(0, []), (2, ["6", "7"]), (5, list("34567")), (99, list("34567"))]
)
async def test_join_with_the_last(chat: Chat, last: int, expected: list[str]) -> None:
    for number in range(1, 8):
        await chat.channel("kept:1").publish(str(number))
    chat.options = {"last": last}
    async with chat.client.websocket("/kept:1") as session:
        await chat.entered("kept:1")
        await chat.channel("kept:1").publish("live")
        expected = [*expected, "live"]
        assert [await session.receive_text() for _ in expected] == expected


@pytest.mark.parametrize("kind", [str, Position])
async def test_join_since(chat: Chat, kind: Callable[[Any], Any]) -> None:
    published = [await chat.channel("kept:1").publish(str(number)) for number in range(1, 4)]
    position = published[0].position
    chat.options = {"since": str(position) if kind is str else position, "last": 99}
    async with chat.client.websocket("/kept:1") as session:
        assert [await session.receive_text() for _ in range(2)] == ["2", "3"]


@pytest.mark.parametrize("since", [None, "", "0-", Position(0, "")])
async def test_join_since_nowhere(chat: Chat, since: Any) -> None:
    for number in range(1, 4):
        await chat.channel("kept:1").publish(str(number))
    chat.options = {"since": since, "last": 1}
    async with chat.client.websocket("/kept:1") as session:
        assert await session.receive_text() == "3"


async def test_join_positioned(chat: Chat) -> None:
    published = await chat.channel("both:1").publish("before")
    place = {"channel": "both:1", "offset": 1, "epoch": published.epoch}
    chat.options = {"format": POSITIONED, "last": 9, "user": "ann", "info": {"a": 1}}
    async with chat.client.websocket("/both:1") as session:
        assert await session.receive_json() == {**place, "data": "before"}
        assert await session.receive_json() == place
        (present,) = await chat.channel("both:1").presence()
        joined = {"client": present.client, "user": "ann", "info": {"a": 1}}
        assert await session.receive_json() == {"channel": "both:1", "join": joined}
        await chat.channel("both:1").publish(b"\x00")
        expected = {**place, "offset": 2, "data": "AA==", "encoding": "base64"}
        assert await session.receive_json() == expected


LOST_POSITIONS = ["nonsense", "1-other", "9", "12-", Position(1, "other")]


@pytest.mark.parametrize("since", LOST_POSITIONS)
async def test_a_position_that_is_lost(chat: Chat, since: Any) -> None:
    await chat.channel("kept:1").publish("x")
    chat.options = {"since": since}
    async with chat.client.websocket("/kept:1") as session:
        with pytest.raises(WebSocketDisconnect) as caught:
            await session.receive()
    assert (caught.value.code, caught.value.reason) == (4010, LOST)
    assert [type(error) for error in chat.raised] == [PositionLost]
    await chat.gone("kept:1")


@pytest.mark.parametrize("is_async", [False, True])
async def test_who_wants_to_know_of_it(chat: Chat, *, is_async: bool) -> None:
    told: list[PositionLost] = []

    async def wait(error: PositionLost) -> None:
        await asyncio.sleep(0)
        told.append(error)

    for number in range(1, 4):
        await chat.channel("kept:1").publish(str(number))
    chat.options = {"since": "9-x", "last": 2, "on_lost": wait if is_async else told.append}
    async with chat.client.websocket("/kept:1") as session:
        assert [await session.receive_text() for _ in range(2)] == ["2", "3"]
        assert [error.channel for error in told] == ["kept:1"]
        await session.send_text("live")
        assert await session.receive_text() == "live"


async def test_who_fails_when_told_of_it(chat: Chat) -> None:
    def fail(_: PositionLost) -> None:
        raise LookupError("mine")

    chat.options = {"since": "9-x", "on_lost": fail}
    with pytest.raises(LookupError, match="mine"):
        async with chat.client.websocket("/kept:1") as session:
            await session.receive()
    await chat.gone("kept:1")


async def test_who_is_told_while_it_listens(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    """Of what is lost in between: the broker starts anew, and numbers from 1."""
    told: list[PositionLost] = []

    async def wait(error: PositionLost) -> None:
        told.append(error)
        raise LookupError("mine")

    chat.options = {"on_lost": wait}
    channel = chat.channel("kept:1")
    async with chat.client.websocket("/kept:1") as session:
        await chat.entered("kept:1")
        await channel.publish("1")
        assert await session.receive_text() == "1"
        broker = chat.app.hub.broker
        assert isinstance(broker, MemoryBroker)
        broker._space.histories.clear()
        with caplog.at_level(logging.ERROR, "yaat.channel"):
            await channel.publish("2")
            await settled()
            await channel.publish("3")
            assert await session.receive_text() == "3"
    assert [error.channel for error in told] == ["kept:1"]
    assert "a task of the channels failed" in caplog.text


# Who is there


async def test_presence(chat: Chat) -> None:
    channel = chat.channel("who:1")
    reader = Reader(channel.presence_events())
    await settled()
    chat.options = {"user": "ann", "info": {"colour": "red"}}
    async with chat.client.websocket("/who:1"), chat.client.websocket("/who:1"):
        chat.options = {"user": "bob"}
        async with chat.client.websocket("/who:1"):
            await reader.until(3)
            ann, also_ann, bob = await channel.presence()
            assert (ann.user, ann.info) == ("ann", {"colour": "red"})
            assert (bob.user, bob.info) == ("bob", None)
            assert len({ann.client, also_ann.client, bob.client}) == 3
            assert await channel.presence_stats() == PresenceStats(3, 2)
        await reader.until(4)
        assert await channel.presence() == [ann, also_ann]
    await reader.until(6)
    assert [event.kind for event in reader.items] == ["join"] * 3 + ["leave"] * 3
    assert reader.items[3].present == bob
    assert await channel.presence() == []
    await reader.stop()


async def test_presence_without_a_name(chat: Chat) -> None:
    async with chat.client.websocket("/who:1"):
        await chat.entered("who:1")
        await settled()
        (present,) = await chat.channel("who:1").presence()
        assert (present.user, present.info) == (None, None)
        assert await chat.channel("who:1").presence_stats() == PresenceStats(1, 0)


async def test_info_is_what_it_was_then(chat: Chat) -> None:
    """And JSON, whatever carries it."""
    info = {"tuple": (1, 2), "present": Present("c")}
    chat.options = {"info": info}
    async with chat.client.websocket("/who:1"):
        await chat.entered("who:1")
        info["tuple"] = ()
        await settled()
        (present,) = await chat.channel("who:1").presence()
        dumped = {"client": "c", "user": None, "info": None}
        assert present.info == {"tuple": [1, 2], "present": dumped}


# What join refuses


async def join_once(hub: Hub, channel: Channel, **options: Any) -> WebSocket:
    """Join from a connection of its own, and leave again."""
    app = Yaat()
    used: list[WebSocket] = []

    @app.websocket_route("/")
    async def enter(websocket: WebSocket) -> None:
        used.append(websocket)
        await websocket.accept()
        async with channel.join(websocket, **options):
            pass

    async with TestClient(app).websocket("/") as session:
        try:
            with pytest.raises(WebSocketDisconnect):
                await session.receive()
        finally:
            for room in hub._rooms.values():
                assert not room.members
                assert not room.uses
    return used[0]


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("kept:1", {"user": "ann"}, UsageError),
        ("kept:1", {"info": 1}, UsageError),
        ("who:1", {"user": 5}, TypeError),
        ("who:1", {"info": object()}, TypeError),
        ("who:1", {"info": "\ud800"}, ValueError),
        ("who:1", {"user": "\ud800"}, ValueError),
        ("kept:1", {"last": -1}, ArgumentError),
    ],
)
async def test_what_cannot_be_said_of_a_member(
    hub: Hub, name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await join_once(hub, hub.channel(name), **options)
    assert not hub._present


@pytest.mark.parametrize("part", ["user", "info"])
async def test_how_much_may_be_said(chat: Chat, part: str) -> None:
    chat.options = {part: "x" * (MAX_INFO - 2)}
    async with chat.client.websocket("/who:1"):
        await chat.entered("who:1")
    chat.options = {part: "x" * (MAX_INFO - 1)}
    async with chat.client.websocket("/who:1") as session:
        with pytest.raises(WebSocketDisconnect) as caught:
            await session.receive()
    assert caught.value.code == 1009
    (error,) = chat.raised
    assert isinstance(error, TooBigError)
    assert str(error) == "user and info have at most 4096 bytes of JSON, not 4097"
    await chat.gone("who:1")


async def test_twice_in_one_channel(chat: Chat) -> None:
    async def again(websocket: WebSocket, channel: Channel) -> None:
        with pytest.raises(UsageError, match="a member of 'kept:1' already"):
            async with channel.join(websocket):
                raise AssertionError
        async with websocket.channel("kept:2").join(websocket):
            await stays(websocket, channel)

    chat.inside = again
    async with chat.client.websocket("/kept:1") as session:
        await chat.entered("kept:2")
        await session.send_text("1")
        assert await session.receive_text() == "1", "the first is still a member"
        await chat.channel("kept:2").publish("2")
        assert await session.receive_text() == "2"
    await chat.gone("kept:1")
    await chat.gone("kept:2")


async def test_one_after_the_other(chat: Chat) -> None:
    async def again(websocket: WebSocket, channel: Channel) -> None:
        await websocket.receive_text()

    async def handle(websocket: WebSocket) -> None:
        await websocket.accept()
        for _ in range(2):
            async with websocket.channel("who:1").join(websocket) as channel:
                await again(websocket, channel)

    chat.app.add_websocket_route("/twice/again", handle)
    reader = Reader(chat.channel("who:1").presence_events())
    await settled()
    async with chat.client.websocket("/twice/again") as session:
        await reader.until(1)
        await session.send_text("x")
        await reader.until(3)
    await reader.until(4)
    assert [event.kind for event in reader.items] == ["join", "leave"] * 2
    assert len({event.present.client for event in reader.items}) == 1
    await reader.stop()


async def test_before_accept_and_after_the_end(hub: Hub) -> None:
    app = Yaat()
    channel = hub.channel("kept:1")
    raised: list[Exception] = []

    async def enter(websocket: WebSocket) -> None:
        with pytest.raises((StateError, WebSocketDisconnect)) as caught:
            async with channel.join(websocket):
                raise AssertionError
        raised.append(caught.value)

    @app.websocket_route("/")
    async def handle(websocket: WebSocket) -> None:
        await enter(websocket)
        await websocket.accept()
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
        await enter(websocket)

    @app.websocket_route("/closed")
    async def close(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()
        await enter(websocket)

    client = TestClient(app)
    async with client.websocket("/"):
        pass
    async with client.websocket("/closed"):
        pass
    assert [type(error) for error in raised] == [StateError, WebSocketDisconnect, StateError]
    assert not hub._rooms


async def test_a_connection_of_another_framework(hub: Hub) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        websocket: Any = starlette.websockets.WebSocket(scope, receive, send)
        await websocket.accept()
        with pytest.raises(TypeError, match=r"not starlette\.websockets\.WebSocket"):
            async with hub.channel("kept:1").join(websocket):
                raise AssertionError
        await hub.channel("kept:1").publish("x", skip=websocket)
        await websocket.close()

    async with TestClient(app).websocket("/"):
        pass
    assert (await hub.channel("kept:1").history()).top.offset == 1


@pytest.mark.parametrize("name", ["", "\ud800", "a" * 256])
async def test_a_name_that_cannot_be(hub: Hub, name: str) -> None:
    with pytest.raises(ChannelNameError):
        hub.channel(name)


# However it is left


async def test_it_is_left_when_the_handler_fails(chat: Chat) -> None:
    async def fail(websocket: WebSocket, channel: Channel) -> None:
        raise LookupError(await websocket.receive_text())

    chat.inside = fail
    chat.options = {"user": "ann"}
    with pytest.raises(LookupError, match="mine"):  # noqa: PT012 - the client raises it at the end
        async with chat.client.websocket("/both:1") as session:
            await chat.entered("both:1")
            await session.send_text("mine")
            await session.receive()
    await chat.gone("both:1")
    assert await chat.channel("both:1").presence() == []


async def test_it_is_left_when_the_peer_is_cut_off(chat: Chat) -> None:
    async with chat.client.websocket("/both:1") as session:
        await chat.entered("both:1")
        await session.cut()
    await chat.gone("both:1")
    assert await chat.channel("both:1").presence() == []


async def test_it_is_left_when_the_handler_is_cancelled(hub: Hub) -> None:
    app = Yaat()
    inside = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    @app.websocket_route("/")
    async def handle(websocket: WebSocket) -> None:
        await websocket.accept()

        async def enter() -> None:
            async with hub.channel("both:1").join(websocket):
                inside.set()
                await asyncio.Event().wait()

        tasks.append(websocket.start_soon(enter))
        await websocket.receive_text()

    async with TestClient(app).websocket("/") as session:
        await inside.wait()
        assert len(await hub.channel("both:1").presence()) == 1
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert await hub.channel("both:1").presence() == []
        assert not hub._rooms["both:1"].members
        await session.send_text("still here")


class Failing(MemoryBroker):
    """Does not do what it is told not to do."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: set[str] = set()

    def _check(self, name: str) -> None:
        if name in self.fails:
            raise BrokerUnavailable(f"no {name}")

    async def subscribe(self, channel: str) -> None:
        self._check("subscribe")
        await super().subscribe(channel)

    async def history(self, channel: str, **options: Any) -> Any:
        self._check("history")
        return await super().history(channel, **options)

    async def presence_add(self, channel: str, present: Present) -> bool:
        self._check("presence_add")
        return await super().presence_add(channel, present)

    async def presence_remove(self, channel: str, client: str) -> bool:
        self._check("presence_remove")
        return await super().presence_remove(channel, client)


@pytest.mark.parametrize("step", ["subscribe", "history", "presence_add"])
async def test_the_broker_fails_at_the_door(step: str) -> None:
    broker = Failing()
    broker.fails = {step}
    chat = Chat(broker)
    async with chat.client:
        async with chat.client.websocket("/both:1") as session:
            with pytest.raises(WebSocketDisconnect) as caught:
                await session.receive()
        assert (caught.value.code, caught.value.reason) == (1013, "")
        assert [str(error) for error in chat.raised] == [f"no {step}"]
        await chat.gone("both:1")
        broker.fails.clear()
        async with chat.client.websocket("/both:1") as session:
            await chat.entered("both:1")
            await session.send_text("x")
            assert await session.receive_text() == "x", "who comes next tries again"
        await chat.gone("both:1")


async def test_the_broker_fails_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    broker = Failing()
    chat = Chat(broker)
    with caplog.at_level(logging.WARNING, "yaat.channel"):
        async with chat.client:
            async with chat.client.websocket("/both:1"):
                await chat.entered("both:1")
                await settled()
                broker.fails = {"presence_remove"}
            await chat.gone("both:1")
    assert chat.raised == [], "the handler has done its work"
    assert "the broker did not do it: no presence_remove" in caplog.text


async def test_a_reader_that_the_broker_fails() -> None:
    broker = Failing()
    broker.fails = {"history"}
    hub = Hub(broker, CHANNELS)
    with pytest.raises(BrokerError):
        await anext(hub.channel("kept:1").subscribe())
    for call in (hub.channel("kept:1").history,):
        with pytest.raises(BrokerError):
            await call()
    assert hub._rooms["kept:1"].uses == 0
    await hub.close()


async def test_who_is_inside_when_the_hub_closes(chat: Chat) -> None:
    session: WebSocketSession
    async with chat.client.websocket("/both:1") as session:
        await chat.entered("both:1")
        await chat.app.hub.close()
        await session.send_text("x")  # the next use starts it again, and nobody is a member
    assert chat.left == 1
    assert chat.raised == []


async def test_who_leaves_is_not_told_that_it_left(chat: Chat) -> None:
    async def leave(websocket: WebSocket) -> None:
        await websocket.accept()
        async with websocket.channel("who:1").join(websocket, format=POSITIONED):
            await websocket.receive_text()
        await websocket.send_text("left")
        await websocket.receive_text()

    chat.app.add_websocket_route("/and/stay", leave)
    async with chat.client.websocket("/and/stay") as session:
        await session.send_text("go")
        told = [await session.receive_text()]
        while told[-1] != "left":
            told.append(await session.receive_text())
        assert not any('"leave"' in text for text in told)
        assert any('"join"' in text for text in told), "but that it came"


class Hesitant(MemoryBroker):
    """Its history takes a while, in which other things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], Awaitable[object]]] = []

    async def history(self, channel: str, **options: Any) -> Any:
        result = await super().history(channel, **options)
        if options.get("since") is not None:
            while self.meanwhile:
                await self.meanwhile.pop()()
        return result


async def test_what_comes_while_a_slow_reader_catches_up_comes_once() -> None:
    broker = Hesitant()
    hub = Hub(broker, CHANNELS)
    channel = hub.channel("small:1")
    reader = Reader(channel.subscribe())
    await settled()
    reader.go.clear()
    await channel.publish(1)
    await reader.until(1)
    broker.meanwhile = [lambda: channel.publish(4)]
    for number in (2, 3):
        await channel.publish(number)
    await settled()
    reader.go.set()
    assert data(await reader.until(4)) == [1, 2, 3, 4]
    await channel.publish(5)
    assert data(await reader.until(5)) == [1, 2, 3, 4, 5]
    await reader.stop()
    await hub.close()
