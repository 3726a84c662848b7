"""A connection that is made anew whenever it is lost: when, how often, and until when."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from scripted import idle
from scripted_redis import SILENCE, Peer, Server, array, error, in_network, now, number, server_at
from yaat.brokers.redis.line import STEADY, Backoff, Line
from yaat.brokers.redis.settings import Address, Settings
from yaat.brokers.redis.wire import Wire, connect
from yaat.exceptions import BrokerRefused, BrokerUnavailable

H = Address("h", 6379)


class Kept:
    """A line to the scripted server, and what it has told.

    Attributes:
        told: Whether it was up, at each change.
    """

    def __init__(self, prepare: Callable[[Wire], Awaitable[None]] | None = None, **options: Any):
        self.server = server_at()
        self.told: list[bool] = []
        self.news = asyncio.Event()
        settings = Settings(**options)
        self.line = Line(
            lambda: connect(H, settings), settings, prepare or self._nothing, self._note
        )

    async def _nothing(self, wire: Wire) -> None:
        pass

    def _note(self) -> None:
        self.told.append(self.line.is_up)
        self.news.set()

    async def changed(self) -> bool:
        """Wait for a change; return whether it is up."""
        self.news.clear()
        await self.news.wait()
        return self.told[-1]

    async def up(self) -> Wire:
        while not self.line.is_up:
            await self.changed()
        return self.line.get()

    async def close(self) -> None:
        task = self.line.close()
        assert self.line.close() is task
        await asyncio.wait([task])
        assert task.cancelled()
        with pytest.raises(BrokerUnavailable):
            self.line.get()
        await idle()
        assert not self.server.peers


# How long to wait


def test_the_wait_is_anywhere_up_to_a_bound_that_doubles() -> None:
    many = [Backoff(0.1, 3.0) for _ in range(400)]
    for bound in (0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0):
        waits = [each.next() for each in many]
        assert 0 <= min(waits) < bound / 10
        assert bound * 0.9 < max(waits) <= bound
        assert bound * 0.4 < sum(waits) / len(waits) < bound * 0.6


def test_the_first_wait_is_capped_too() -> None:
    assert max(Backoff(10.0, 0.5).next() for _ in range(100)) <= 0.5


def test_a_wait_after_very_many_is_as_the_others() -> None:
    backoff = Backoff(0.1, 0.75)
    assert max(backoff.next() for _ in range(5000)) <= 0.75


def test_it_begins_anew() -> None:
    many = [Backoff(0.1, 10.0) for _ in range(100)]
    for each in many:
        for _ in range(10):
            each.next()
        each.reset()
    assert max(each.next() for each in many) <= 0.1


# One line


def test_a_line_is_up_until_it_is_lost_and_up_again() -> None:
    async def play() -> None:
        kept = Kept()
        with pytest.raises(BrokerUnavailable) as caught:
            kept.line.get()
        assert caught.value.retry_in == 0
        assert not caught.value.maybe_published
        for _ in range(3):
            wire = await kept.up()
            assert kept.line.get() is wire
            kept.server.hang_up()
            await kept.changed()
            assert wire.ended.done()
            assert kept.line.wire is None
        await kept.up()
        assert kept.told == [True, False] * 3 + [True]
        await kept.close()

    in_network(play)


def test_in_the_moment_of_its_loss_there_is_none() -> None:
    async def play() -> None:
        kept = Kept()
        wire = await kept.up()
        wire.end("gone")
        with pytest.raises(BrokerUnavailable, match="gone"):
            kept.line.get()
        assert not await kept.changed()
        await kept.up()
        await kept.close()

    in_network(play)


def test_it_says_why_there_is_none_and_when_it_is_tried_again() -> None:
    async def play() -> None:
        kept = Kept(retry_base=0.5, retry_cap=0.5)
        kept.server.takes = False
        for _ in range(20):
            assert not await kept.changed()
            with pytest.raises(BrokerUnavailable, match="h:6379 cannot be reached") as caught:
                kept.line.get()
            begin, retry_in = now(), caught.value.retry_in
            assert retry_in is not None
            assert 0 <= retry_in <= 0.5
            tries = len(kept.server.times)
            await kept.changed()
            assert len(kept.server.times) == tries + 1
            assert kept.server.times[-1] == pytest.approx(begin + retry_in)
        await kept.close()

    in_network(play)


def test_it_says_why_it_was_lost() -> None:
    async def play() -> None:
        kept = Kept()
        (await kept.up()).end("somebody pulled the plug")
        await kept.changed()
        with pytest.raises(BrokerUnavailable, match="pulled the plug"):
            kept.line.get()
        await kept.close()

    in_network(play)


def test_a_server_that_refuses_is_asked_again() -> None:
    async def play() -> None:
        kept = Kept()
        kept.server.answers["PING"] = error("NOPERM no")
        await kept.changed()
        assert isinstance(kept.line.why, BrokerRefused)
        del kept.server.answers["PING"]
        await kept.up()
        await kept.close()

    in_network(play)


def test_a_server_that_loads_for_long_is_waited_for() -> None:
    async def play() -> None:
        kept = Kept(retry_cap=0.75)
        kept.server.answers["PING"] = error("LOADING Redis is loading the dataset in memory")
        begin = now()
        while now() < begin + 300:
            assert not await kept.changed()
            assert "LOADING" in str(kept.line.why)
        assert len(kept.server.times) < 300 / 0.375 * 1.3
        del kept.server.answers["PING"]
        begin = now()
        await kept.up()
        assert now() - begin <= 0.75
        await kept.close()

    in_network(play)


def test_a_replica_is_left_and_tried_again_until_it_is_a_master() -> None:
    async def play() -> None:
        kept = Kept()
        kept.server.answers["ROLE"] = array(b"$5\r\nslave\r\n", number(0))
        assert not await kept.changed()
        assert not kept.server.peers
        del kept.server.answers["ROLE"]
        await kept.up()
        await kept.close()

    in_network(play)


def test_what_prepares_it_belongs_to_it() -> None:
    async def play() -> None:
        gate = asyncio.Event()

        async def prepare(wire: Wire) -> None:
            assert kept.line.get() is wire
            await gate.wait()

        kept = Kept(prepare)
        await asyncio.sleep(1)
        assert kept.line.wire is not None
        assert not kept.line.is_up
        assert kept.told == []
        gate.set()
        assert await kept.changed()
        await kept.close()

    in_network(play)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(error("NOPERM no"), "NOPERM"), (error("CLUSTERDOWN down"), "CLUSTERDOWN")],
)
def test_a_refusal_in_preparing_is_one_more_try(
    answer: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        async def prepare(wire: Wire) -> None:
            await wire.call("SUBSCRIBE", b"c")

        kept = Kept(prepare)
        kept.server.answers["SUBSCRIBE"] = answer
        for _ in range(5):
            assert not await kept.changed()
            assert words in str(kept.line.why)
        del kept.server.answers["SUBSCRIBE"]
        await kept.up()
        await kept.close()

    in_network(play)
    assert not caplog.records


def test_what_nobody_expected_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        bad = [True]

        async def prepare(wire: Wire) -> None:
            if bad:
                bad.pop()
                raise LookupError("what")

        kept = Kept(prepare)
        assert not await kept.changed()
        with pytest.raises(BrokerUnavailable, match="LookupError"):
            kept.line.get()
        await kept.up()
        await kept.close()

    in_network(play)
    (record,) = caplog.records
    assert record.name == "yaat.broker"
    assert record.levelno == logging.ERROR
    assert record.exc_info


# When the wait is short again


async def waits(kept: Kept, count: int) -> list[float]:
    """Return how long was waited before each of the next connections."""
    begin = len(kept.server.times)
    while len(kept.server.times) < begin + count:
        await kept.changed()
    return [after - before for before, after in pairwise(kept.server.times[begin:])]


def hang_up(peer: Peer, _: tuple[bytes, ...]) -> bytes:
    peer.hang_up()
    return array(b"$6\r\nmaster\r\n")


def drop_after(server: Server, count: int) -> None:
    """Let the server answer so many that subscribe, and hang up."""

    def answer(peer: Peer, words: tuple[bytes, ...]) -> bytes:
        subscribed = sum(heard[0] == b"SUBSCRIBE" for heard in peer.heard)
        if subscribed == count:
            peer.hang_up()
        return b">3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(words[1]), words[1])

    server.answers["SUBSCRIBE"] = answer


def test_that_it_can_be_made_makes_no_wait_short() -> None:
    async def play() -> None:
        kept = Kept(retry_base=0.1, retry_cap=10)
        kept.server.answers["ROLE"] = hang_up
        await waits(kept, 10)
        assert sum(await waits(kept, 40)) / 39 > 2.5
        await kept.close()

    in_network(play)


def test_that_a_server_answers_while_it_is_made_makes_no_wait_short() -> None:
    async def play() -> None:
        async def prepare(wire: Wire) -> None:
            for name in (b"a", b"b", b"c"):
                await wire.call("SUBSCRIBE", name)

        kept = Kept(prepare, retry_base=0.1, retry_cap=10)
        drop_after(kept.server, 2)
        await waits(kept, 10)
        assert sum(await waits(kept, 40)) / 39 > 2.5
        await kept.close()

    in_network(play)


async def wear(kept: Kept) -> None:
    """Let it be in vain until its waits are long."""
    kept.server.takes = False
    await waits(kept, 20)
    kept.server.takes = True
    await kept.up()


@pytest.mark.parametrize("use", ["lasts", "receives", "neither"])
def test_what_lasted_or_was_of_use_makes_the_wait_short(use: str) -> None:
    async def play() -> None:
        found: list[float] = []
        for _ in range(20):
            kept = Kept(retry_base=0.01, retry_cap=1000)
            await wear(kept)
            if use == "lasts":
                await asyncio.sleep(STEADY)
            elif use == "receives":
                kept.server.peers[-1].say(b">1\r\n$5\r\nhello\r\n")
                await idle()
            begin = now()
            kept.server.hang_up()
            await kept.changed()
            await kept.up()
            found.append(now() - begin)
            await kept.close()
        assert (max(found) <= 0.01) == (use != "neither")

    in_network(play)


def test_fifty_nodes_do_not_come_back_in_one_moment() -> None:
    async def play() -> None:
        nodes = [Kept() for _ in range(50)]
        server = nodes[0].server
        for node in nodes:
            await node.up()
        await asyncio.sleep(60)
        server.takes = False
        server.times.clear()
        server.hang_up()
        await asyncio.sleep(30)
        first, rate = sorted(server.times)[:50], len(server.times) / 30 / 50
        assert first[-1] - first[0] > 0.05
        mean = Settings().retry_cap / 2
        assert 0.5 < rate * mean < 2  # a second, for each
        server.times.clear()
        server.takes = True
        for node in nodes:
            await node.up()
        assert max(server.times) - min(server.times) > 0.3
        for node in nodes:
            node.line.close()
        await idle()

    in_network(play)


# Its end


@pytest.mark.parametrize("turns", range(30))
def test_it_may_be_closed_at_any_moment(turns: int) -> None:
    async def play() -> None:
        async def prepare(wire: Wire) -> None:
            await wire.call("SUBSCRIBE", b"a")

        kept = Kept(prepare)
        await idle(turns)
        await kept.close()

    in_network(play)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1.0, 4.999, 5.0, 5.001])
def test_it_may_be_closed_while_nobody_answers(seconds: float) -> None:
    async def play() -> None:
        for command in ("HELLO", "PING", "ROLE"):
            kept = Kept()
            kept.server.answers[command] = SILENCE
            await asyncio.sleep(seconds)
            await kept.close()
            del kept.server.answers[command]
        kept = Kept()
        kept.server.takes = None
        await asyncio.sleep(seconds)
        await kept.close()

    in_network(play)


def test_who_waits_for_an_answer_is_told_of_the_end() -> None:
    async def play() -> None:
        kept = Kept()
        kept.server.answers["SLEEP"] = SILENCE
        wire = await kept.up()
        asked = asyncio.ensure_future(wire.call("SLEEP"))
        await idle()
        await kept.close()
        with pytest.raises(BrokerUnavailable, match="closed") as caught:
            await asked
        assert caught.value.maybe_published

    in_network(play)
