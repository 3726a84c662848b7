"""What comes live: what is wanted, in whatever order that changes, and what comes of it."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripted import idle
from scripted_redis import (
    SILENCE,
    Peer,
    Server,
    bulk,
    error,
    in_network,
    number,
    push,
    server_at,
)
from yaat.brokers.contract import Content, Publication
from yaat.brokers.envelope import pack
from yaat.brokers.redis.feed import Feed, live, read, seen
from yaat.brokers.redis.keys import Keys
from yaat.brokers.redis.settings import Address, Settings
from yaat.brokers.redis.wire import AnswerError, Wire, connect
from yaat.exceptions import BrokerUnavailable, MalformedError

KEYS = Keys("p", 0, 4)
HELLO = Content("text", b"hello", "key", "sender")

numbers = st.integers(0, 2**64 - 1)


# What is sent


@given(st.integers(1, 2**53), st.integers(0, 2**53), st.text(max_size=60), st.binary())
@example(2**53, 2**53, "", b"")
def test_what_is_sent_is_what_comes(offset: int, time: int, epoch: str, payload: bytes) -> None:
    content = Content("bytes", payload, None, "s")
    found = read(live(offset, time, epoch.encode(), pack(content)))
    assert found == Publication(content, offset, epoch, offset - 1, time / 1e6)


def test_what_is_not_kept_has_no_place() -> None:
    found = read(live(0, 1_500_000, b"", pack(HELLO)))
    assert found == Publication(HELLO, 0, "", 0, 1.5)


def test_the_bytes_that_the_script_sends() -> None:
    sent = b"\x01" + (7).to_bytes(8, "big") + (9).to_bytes(8, "big") + b"\x02" + b"ab"
    assert live(7, 9, b"ab", b"envelope") == sent + b"envelope"


WHOLE = live(1, 2, b"epoch", pack(HELLO))


@pytest.mark.parametrize("end", range(len(WHOLE) - len(HELLO.payload)))
def test_what_ends_early_is_none(end: int) -> None:
    with pytest.raises(MalformedError):
        read(WHOLE[:end])


@given(st.binary())
@example(b"")
@example(WHOLE[:18] + b"\xff" * 9)
@example(b"\x02" + WHOLE[1:])
@example(b"\x01" + b"\xff" * 40)
def test_garbage_is_refused_or_read_but_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        read(data)


@pytest.mark.parametrize("rest", [WHOLE[1:], b"\xff" * 40], ids=["known", "unknown"])
def test_a_later_version_is_called_one(rest: bytes) -> None:
    with pytest.raises(MalformedError, match="version 2; version 1 is known"):
        read(b"\x02" + rest)


# What is wanted


def name_of(channel: str) -> bytes:
    return KEYS.live(0, channel.encode())


class Listener:
    """A feed, a connection to a scripted server, and what came.

    Attributes:
        came: The channel and the text of each publication.
        fails: What to raise when one comes.
    """

    def __init__(self, *, is_sharded: bool = False) -> None:
        self.came: list[tuple[str, str]] = []
        self.fails: Exception | None = None
        self.feed = Feed(self._note)
        self.feed.settle(KEYS, is_sharded=is_sharded)
        self.server = server_at()
        self.wire: Wire

    def _note(self, channel: str, publication: Publication) -> None:
        if self.fails is not None:
            raise self.fails
        self.came.append((channel, publication.data))

    async def connect(self) -> None:
        self.wire = await connect(Address("h", 6379), Settings(), None, self.feed.take)

    async def subscribe(self, channel: str, partition: int = 0) -> None:
        name = KEYS.live(partition, channel.encode())
        with self.feed.wanting(partition, name, channel) as want:
            await self.feed.subscribe(self.wire, want)

    async def unsubscribe(self, channel: str) -> None:
        if self.feed.forget(0, name_of(channel)):
            with contextlib.suppress(BrokerUnavailable):  # as the broker does
                await self.feed.unsubscribe(self.wire, name_of(channel))

    async def hears(self, channel: str) -> bool:
        """Return whether what is published now comes; it comes once."""
        self.came.clear()
        self.server.publish(name_of(channel), live(1, 2, b"e", pack(HELLO)))
        await idle()
        assert self.came in ([], [(channel, "hello")])
        return bool(self.came)

    def upstream(self) -> set[bytes]:
        return self.server.peers[-1].names


async def listener(**options: Any) -> Listener:
    made = Listener(**options)
    await made.connect()
    return made


def test_what_is_subscribed_to_comes() -> None:
    async def play() -> None:
        here = await listener()
        assert not await here.hears("a")
        await here.subscribe("a")
        assert await here.hears("a")
        assert not await here.hears("b")
        await here.subscribe("a")
        assert await here.hears("a")
        await here.unsubscribe("a")
        assert not await here.hears("a")
        assert not here.upstream()
        await here.unsubscribe("a")
        here.wire.end()

    in_network(play)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_the_commands_are_those_of_the_server(is_sharded: bool) -> None:  # noqa: FBT001
    async def play() -> None:
        here = await listener(is_sharded=is_sharded)
        shard = "S" if is_sharded else ""
        assert here.feed.publish == shard + "PUBLISH"
        here.server.heard.clear()
        await here.subscribe("a")
        await here.feed.restore(here.wire, [0])
        await here.unsubscribe("a")
        await here.feed.listen_to_pulse(here.wire, 2)
        await here.feed.beat(here.wire, 2)
        told = [words[0].decode() for words in here.server.heard]
        ways = ("SUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE", "PUBLISH")
        assert told == [shard + way for way in ways]
        await idle()
        assert here.came == []
        here.wire.end()

    in_network(play)


def test_what_came_for_nobody_is_left_alone() -> None:
    async def play() -> None:
        here = await listener()
        feed = here.feed
        await here.subscribe("a")
        name = name_of("a")
        feed.take([b"message", b"other", WHOLE])
        feed.take([b"subscribe", name, 1])
        feed.take([b"pmessage", b"*", name, WHOLE])
        feed.take([b"invalidate", None])
        assert here.came == []
        feed.take([b"smessage", name, WHOLE])
        feed.take([b"message", name, WHOLE])
        assert here.came == [("a", "hello")] * 2
        here.wire.end()

    in_network(play)


def test_what_is_strange_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        here = await listener()
        await here.subscribe("a" * 255)
        name = name_of("a" * 255)
        deep = b"\x01\x01\x85\x80\x04\x81\xa1x" + b"\x91" * 66_000
        for data in (b"", b"nonsense", WHOLE[:20], live(1, 2, b"e", deep)):
            here.server.publish(name, data)
        assert await here.hears("a" * 255)
        here.wire.end()

    in_network(play)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    assert all(len(record.getMessage()) < 500 for record in caplog.records)


def test_who_fails_to_take_it_gets_the_next(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        here = await listener()
        await here.subscribe("a")
        here.fails = LookupError("what")
        assert not await here.hears("a")
        here.fails = None
        assert await here.hears("a")
        here.wire.end()

    in_network(play)
    (record,) = caplog.records
    assert record.exc_info


# The last call counts


@pytest.mark.parametrize("answer", [error("NOPERM no"), error("MOVED 1 h:1")])
def test_what_is_refused_is_not_wanted(answer: bytes) -> None:
    async def play() -> None:
        here = await listener()
        here.server.answers["SUBSCRIBE"] = answer
        with pytest.raises(AnswerError):
            await here.subscribe("a")
        del here.server.answers["SUBSCRIBE"]
        assert await here.feed.restore(here.wire, range(4)) == set()
        assert not here.upstream()
        here.wire.end()

    in_network(play)


def test_what_is_refused_again_stays_wanted() -> None:
    async def play() -> None:
        here = await listener()
        await here.subscribe("a")
        here.server.answers["SUBSCRIBE"] = error("NOPERM no")
        with pytest.raises(AnswerError):
            await here.subscribe("a")
        assert await here.hears("a")
        here.wire.end()

    in_network(play)


def test_what_was_asked_when_the_connection_was_lost_is_not_wanted() -> None:
    async def play() -> None:
        here = await listener()
        await here.subscribe("old")
        here.server.answers["SUBSCRIBE"] = SILENCE
        asked = [asyncio.ensure_future(here.subscribe(name)) for name in ("old", "new", "new")]
        await idle()
        here.server.hang_up()
        failures = await asyncio.gather(*asked, return_exceptions=True)
        assert all(type(failure) is BrokerUnavailable for failure in failures)
        del here.server.answers["SUBSCRIBE"]
        await here.connect()
        assert await here.feed.restore(here.wire, range(4)) == {"old"}
        assert await here.hears("old")
        assert not await here.hears("new")
        here.wire.end()

    in_network(play)


@pytest.mark.parametrize("given_up", [0, 1])
def test_of_two_who_subscribe_one_may_give_up(given_up: int) -> None:
    async def play() -> None:
        here = await listener()
        asked = [asyncio.ensure_future(here.subscribe("a")) for _ in range(2)]
        await idle(1)
        asked[given_up].cancel()
        await asked[1 - given_up]
        assert await here.hears("a")
        here.wire.end()

    in_network(play)


def test_if_all_give_up_it_is_not_wanted_nor_subscribed_to() -> None:
    async def play() -> None:
        here = await listener()
        asked = [asyncio.ensure_future(here.subscribe("a")) for _ in range(2)]
        await idle(1)
        for each in asked:
            each.cancel()
        await idle()
        assert not await here.hears("a")
        assert not here.upstream()
        await here.subscribe("a")
        assert await here.hears("a")
        here.wire.end()

    in_network(play)


def test_who_gives_up_does_not_undo_what_was_asked_later() -> None:
    async def play() -> None:
        here = await listener()
        first = asyncio.ensure_future(here.subscribe("a"))
        await idle(1)
        gone = asyncio.ensure_future(here.unsubscribe("a"))
        await idle(1)
        again = asyncio.ensure_future(here.subscribe("a"))
        await idle(1)
        first.cancel()
        await asyncio.gather(gone, again)
        assert await here.hears("a")
        here.wire.end()

    in_network(play)


class Calls:
    """What is called in some order, and what came of it."""

    def __init__(self, here: Listener) -> None:
        self.here = here
        self.made: list[tuple[bool, asyncio.Future[None]]] = []

    async def subscribe(self, _: int) -> None:
        self.made.append((True, asyncio.ensure_future(self.here.subscribe("a"))))
        await idle(1)

    async def unsubscribe(self, _: int) -> None:
        self.made.append((False, asyncio.ensure_future(self.here.unsubscribe("a"))))
        await idle(1)

    async def cancel(self, place: int) -> None:
        for _, task in self.made[place : place + 1]:
            task.cancel()

    async def wait(self, turns: int) -> None:
        await idle(turns)

    async def lose(self, _: int) -> None:
        self.here.wire.end()
        await idle()
        await self.here.connect()
        await self.here.feed.restore(self.here.wire, range(4))

    def is_wanted(self) -> bool:
        """What the last call says that was not in vain."""
        wanted = False
        for is_subscribed, task in self.made:
            if not is_subscribed:
                wanted = False
            elif not task.cancelled() and task.exception() is None:
                wanted = True
        return wanted


steps = st.tuples(
    st.sampled_from(
        (Calls.subscribe, Calls.subscribe, Calls.unsubscribe, Calls.cancel, Calls.wait, Calls.lose)
    ),
    st.integers(0, 7),
)


@settings(max_examples=60)
@given(st.lists(steps, max_size=20))
@example([(Calls.subscribe, 0), (Calls.subscribe, 0), (Calls.cancel, 0)])
@example([(Calls.subscribe, 0), (Calls.unsubscribe, 0), (Calls.subscribe, 0), (Calls.cancel, 0)])
@example([(Calls.subscribe, 0), (Calls.cancel, 0), (Calls.unsubscribe, 0)])
@example([(Calls.subscribe, 0), (Calls.lose, 0), (Calls.subscribe, 0)])
@example([(Calls.subscribe, 0), (Calls.unsubscribe, 0), (Calls.lose, 0)])
def test_the_last_call_that_succeeds_counts(steps: list[tuple[Any, int]]) -> None:
    async def play() -> None:
        here = await listener()
        calls = Calls(here)
        for step, number_ in steps:
            await step(calls, number_)
        await idle()
        assert all(task.done() for _, task in calls.made)
        wanted = calls.is_wanted()
        assert await here.hears("a") == wanted
        assert here.upstream() == ({name_of("a")} if wanted else set())
        here.wire.end()

    in_network(play)


# After a loss

MANY = 10
"""How many are subscribed to at once in these tests."""


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yaat.brokers.redis.feed.BATCH", MANY)


def test_all_that_is_wanted_is_restored_and_told() -> None:
    async def play() -> None:
        here = await listener()
        for number_, channel in enumerate(("a", "b", "c", "d")):
            await here.subscribe(channel, number_)
        here.wire.end()
        await here.connect()
        assert await here.feed.restore(here.wire, []) == set()
        assert await here.feed.restore(here.wire, [1, 3]) == {"b", "d"}
        assert here.upstream() == {KEYS.live(1, b"b"), KEYS.live(3, b"d")}
        assert await here.feed.restore(here.wire, range(4)) == {"a", "b", "c", "d"}
        here.wire.end()

    in_network(play)


async def many(here: Listener) -> list[str]:
    channels = [f"room:{each}" for each in range(2 * MANY + 5)]
    await asyncio.gather(*(here.subscribe(channel) for channel in channels))
    here.wire.end()
    await here.connect()
    return channels


def test_very_many_are_restored() -> None:
    async def play() -> None:
        here = await listener()
        channels = await many(here)
        assert await here.feed.restore(here.wire, [0]) == set(channels)
        assert here.upstream() == {name_of(channel) for channel in channels}
        here.wire.end()

    in_network(play)


def test_what_changes_during_the_restoration() -> None:
    async def play() -> None:
        here = await listener()
        channels = await many(here)
        restoring = asyncio.ensure_future(here.feed.restore(here.wire, [0]))
        await idle(2)
        await asyncio.gather(here.subscribe("new"), *map(here.unsubscribe, channels[::2]))
        told = await restoring
        assert told == set(channels[1::2])
        assert here.upstream() == {name_of(channel) for channel in ("new", *channels[1::2])}
        here.wire.end()

    in_network(play)


@pytest.mark.parametrize("at", [0, 1, MANY - 1, MANY, 2 * MANY, 2 * MANY + 4])
def test_a_connection_that_is_lost_during_the_restoration(at: int) -> None:
    async def play() -> None:
        here = await listener()
        await many(here)

        def answer(peer: Peer, words: tuple[bytes, ...]) -> bytes:
            peer.names.add(words[1])
            if len(peer.names) == at + 1:
                peer.hang_up()
            return push(bulk("subscribe"), bulk(words[1]), number(1))

        here.server.answers["SUBSCRIBE"] = answer
        async with asyncio.timeout(1000):
            try:
                await here.feed.restore(here.wire, [0])
            except BrokerUnavailable:
                pass
            else:
                assert at == 2 * MANY + 4
        await idle()
        assert here.wire.ended.done()

    in_network(play)


def test_a_connection_that_is_lost_before_the_restoration() -> None:
    async def play() -> None:
        here = await listener()
        await here.subscribe("a")
        here.wire.end()
        async with asyncio.timeout(1000):
            with pytest.raises(BrokerUnavailable):
                await here.feed.restore(here.wire, [0])

    in_network(play)


def test_one_refusal_ends_the_restoration() -> None:
    async def play() -> None:
        here = await listener()
        await here.subscribe("a")
        await here.subscribe("b")
        here.server.answers["SUBSCRIBE"] = error("CLUSTERDOWN down")
        with pytest.raises(AnswerError, match="CLUSTERDOWN"):
            await here.feed.restore(here.wire, [0])
        del here.server.answers["SUBSCRIBE"]
        assert await here.feed.restore(here.wire, [0]) == {"a", "b"}
        here.wire.end()

    in_network(play)


def test_a_restoration_may_be_given_up() -> None:
    async def play() -> None:
        here = await listener()
        await many(here)
        for turns in range(1, 8):
            restoring = asyncio.ensure_future(here.feed.restore(here.wire, [0]))
            await idle(turns)
            restoring.cancel()
            await idle()
        assert len(await here.feed.restore(here.wire, [0])) == 2 * MANY + 5
        here.wire.end()

    in_network(play)


def test_an_answer_that_nobody_waits_for() -> None:
    async def play() -> None:
        here = await listener()
        here.wire.send(("PING",)).add_done_callback(seen)
        lost = here.wire.send(("PING",))
        lost.add_done_callback(seen)
        lost.cancel()
        here.wire.end()
        here.wire.send(("PING",)).add_done_callback(seen)
        await idle()

    in_network(play)


def test_two_nodes_have_two_pulses() -> None:
    async def play() -> None:
        nodes = [Listener() for _ in range(2)]
        server: Server = nodes[0].server
        for node in nodes:
            await node.connect()
            await node.feed.listen_to_pulse(node.wire, 3)
        assert len(set(server.names("SUBSCRIBE"))) == 2
        before = [node.wire.received for node in nodes]
        await nodes[0].feed.beat(nodes[0].wire, 3)
        await idle()
        assert nodes[0].wire.received > before[0]
        assert nodes[1].wire.received == before[1]
        for node in nodes:
            node.wire.end()

    in_network(play)
