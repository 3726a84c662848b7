"""Which server has what, and what becomes of a broker when that changes or nobody says."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from brokers import Node
from scripted import idle
from scripted_redis import (
    OK,
    SILENCE,
    Peer,
    Server,
    array,
    bulk,
    error,
    in_network,
    info,
    now,
    number,
    push,
    server_at,
    slots,
)
from yaat.brokers.contract import Content
from yaat.brokers.redis import RedisBroker
from yaat.brokers.redis.keys import Keys
from yaat.brokers.redis.servers import AGAIN, Finder
from yaat.exceptions import BrokerRefused, BrokerTimeout, BrokerUnavailable, UsageError

CLUSTER = info(mode="cluster")
URL = "redis://h"
SLOTS = 16_384


class Here(Node):
    """A node of the scripted network."""

    def __init__(self, url: str = URL, **options: Any) -> None:
        super().__init__(RedisBroker(url, **options))
        self._ups = 1

    async def wait(self, condition: Callable[[], object], within: float = 100.0) -> None:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - time is scripted
                await asyncio.sleep(0.01)

    async def up(self, count: int = 1) -> None:
        """Wait until it has come up so often."""
        await self.wait(lambda: self.states.count("up") >= count)
        self._ups = count

    async def back(self) -> None:
        """Wait until it has been down and is up again."""
        await self.up(self._ups + 1)

    async def hears(self, channel: str) -> bool:
        """Return whether what is published now comes."""
        before = len(self.heard[channel])
        await self.broker.publish(channel, Content("text", b"x"), size=0, ttl=0)
        await idle()
        return len(self.heard[channel]) > before

    async def close(self) -> None:
        await self.broker.close()
        assert all(one != two for one, two in itertools.pairwise(self.states))


async def started(url: str = URL, **options: Any) -> Here:
    here = Here(url, **options)
    await here.start()
    assert here.states == ["up"]
    await asyncio.sleep(2)  # until nobody looks any more whether it has come up
    return here


def live_of(server: Server) -> Peer:
    """Return the connection by which publications come: the one that subscribes."""
    (found,) = (peer for peer in server.peers if peer.names)
    return found


def commands_of(server: Server) -> Peer:
    (found,) = (peer for peer in server.peers if not peer.names)
    return found


# One server


def test_a_server_has_two_connections_while_the_broker_is_open() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        assert len(server.peers) == 2
        assert here.missed == []
        with pytest.raises(UsageError, match="started already"):
            await here.start()
        await here.close()
        await idle()
        assert not server.peers
        assert here.states == ["up"]
        here.states.clear()
        await here.start()
        assert here.states == ["up"]
        await here.close()

    in_network(play)


def test_what_was_lost_of_the_live_connection_is_told() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        for channel in "abc":
            await here.broker.subscribe(channel)
        await here.broker.unsubscribe("b")
        live_of(server).hang_up()
        await here.back()
        assert here.states == ["up", "down", "up"]
        assert here.missed == [{"a", "c"}]
        assert await here.hears("a")
        assert not await here.hears("b")
        await here.close()

    in_network(play)


def test_commands_that_are_lost_miss_nothing() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        await here.broker.subscribe("a")
        commands_of(server).hang_up()
        await here.back()
        assert here.states == ["up", "down", "up"]
        assert here.missed == []
        await here.close()

    in_network(play)


def test_what_was_missed_is_told_when_it_can_be_asked_for() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        await here.broker.subscribe("a")
        server.takes = False
        server.hang_up()
        await asyncio.sleep(30)
        assert here.states == ["up", "down"]
        assert here.missed == []
        server.takes = True
        await here.up(2)
        assert here.missed == [{"a"}]
        assert await here.hears("a")
        await here.close()

    in_network(play)


def test_what_was_missed_is_not_told_while_it_cannot_be_asked_for() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        await here.broker.subscribe("a")
        server.answers["PUBLISH"] = error("LOADING loading")
        server.hang_up()
        await asyncio.sleep(5)
        assert live_of(server)
        assert here.missed == []
        del server.answers["PUBLISH"]
        await here.up(2)
        assert here.missed == [{"a"}]
        await here.close()

    in_network(play)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_up_or_down_twice(seed: int) -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        await here.broker.subscribe("a")
        for each in range(40):
            for place, peer in enumerate(list(server.peers)):
                if (each * 7 + seed + place) % 3 == 0:
                    peer.hang_up()
            await idle((each * 5 + seed) % 11)
            if each % 4 == seed % 4:
                await asyncio.sleep(0.3)
        await asyncio.sleep(10)
        assert here.states[-1] == "up"
        assert set().union(*here.missed) == {"a"}
        assert await here.hears("a")
        await here.close()

    in_network(play)


def test_who_is_down_says_so_at_once_and_when_it_is_tried_again() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        await here.broker.subscribe("a")
        server.takes = False
        server.hang_up()
        await here.wait(lambda: here.states[-1] == "down")
        for _ in range(20):
            begin = now()
            for call in (
                here.broker.publish("a", Content("text", b"x"), size=1, ttl=1),
                here.broker.subscribe("b"),
                here.broker.history("a"),
                here.broker.presence_get("a"),
            ):
                with pytest.raises(BrokerUnavailable, match="h:6379") as caught:
                    await call
                assert not caught.value.maybe_published
                assert caught.value.retry_in is not None
                assert 0 <= caught.value.retry_in <= 0.5
            await here.broker.unsubscribe("a")
            assert now() == begin
            await asyncio.sleep(0.1)
        server.takes = True
        await here.up(2)
        assert not await here.hears("a")
        assert not await here.hears("b")
        await here.close()

    in_network(play)


# The start


@pytest.mark.parametrize(
    ("answers", "kind", "words", "seconds"),
    [
        ({"PING": error("NOPERM no")}, BrokerRefused, "NOPERM", 0),
        ({"HELLO": error("WRONGPASS no")}, BrokerRefused, "WRONGPASS", 0),
        ({"PUBLISH": error("NOPERM no")}, BrokerRefused, "NOPERM", 0),
        ({"PING": error("LOADING loading")}, BrokerUnavailable, "LOADING", 5),
        ({"ROLE": array(bulk("slave"))}, BrokerUnavailable, "h:6379 is a", 5),
        ({"PING": SILENCE}, BrokerUnavailable, "h:6379", 5),
    ],
)
def test_a_start_that_fails(
    answers: dict[str, Any], kind: type[Exception], words: str, seconds: float
) -> None:
    async def play() -> None:
        server = server_at(**answers)
        here = Here()
        begin = now()
        for _ in range(2):
            with pytest.raises(kind, match=words) as caught:
                await here.start()
            assert type(caught.value) in (BrokerRefused, BrokerUnavailable, BrokerTimeout)
        assert now() - begin == pytest.approx(2 * seconds, abs=0.5)
        assert here.states == []
        await idle()
        assert not server.peers
        server.answers.clear()
        await here.start()
        await here.close()

    in_network(play)


@pytest.mark.parametrize("takes", ["no", "silent", "nobody"])
def test_a_server_that_is_away_at_the_start(takes: str) -> None:
    async def play() -> None:
        if takes != "nobody":
            server_at().takes = None if takes == "silent" else False
        with pytest.raises(BrokerUnavailable, match=r"h:6379 (cannot be|has not)"):
            await Here().start()

    in_network(play)


def test_a_server_that_comes_in_time() -> None:
    async def play() -> None:
        server = server_at(PING=error("LOADING loading"))
        asyncio.get_running_loop().call_later(3, server.answers.clear)
        here = await started()
        await here.close()

    in_network(play)


def test_it_may_start_while_nobody_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        server = server_at()
        server.takes = False
        here = Here(require=False)
        await here.start()
        with pytest.raises(BrokerUnavailable):
            await here.broker.subscribe("a")
        await here.broker.unsubscribe("a")
        await asyncio.sleep(2.5 * AGAIN)
        assert here.states == []
        server.takes = True
        await here.up()
        assert here.states == ["up"]
        assert here.missed == []
        await here.broker.subscribe("a")
        assert await here.hears("a")
        await here.close()

    in_network(play)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert all("h:6379 cannot be reached" in each for each in said[:3])
    assert "up again" in said[3]


def test_an_outage_is_logged_once_and_then_every_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        await asyncio.sleep(1000)
        assert not caplog.records
        for minutes in (0.5, 3.5):
            server.takes = False
            server.hang_up()
            await asyncio.sleep(minutes * AGAIN)
            server.takes = True
            await here.wait(lambda: here.states[-1] == "up")
            await asyncio.sleep(1000)
        server.takes = False
        server.hang_up()
        await here.wait(lambda: here.states[-1] == "down")
        await here.close()
        await asyncio.sleep(1000)

    in_network(play)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 8
    downs = ["is down" in record.getMessage() for record in caplog.records]
    assert downs == [True, False, True, True, True, True, False, True]


@pytest.mark.parametrize("which", ["on_state", "on_missed"])
def test_who_is_told_cannot_stop_it(which: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise LookupError("what")

    async def play() -> None:
        server = server_at()
        broker = RedisBroker(URL)
        heard: list[str] = []
        callbacks: dict[str, Any] = {"on_state": lambda _: None, "on_missed": lambda _: None}
        await broker.start(lambda channel, _: heard.append(channel), **callbacks | {which: fail})
        await broker.subscribe("a")
        for _ in range(5):
            server.hang_up()
            await asyncio.sleep(30)
        await broker.publish("a", Content("text", b"x"), size=0, ttl=0)
        await idle()
        assert heard == ["a"]
        await broker.close()

    in_network(play)
    assert any(record.exc_info for record in caplog.records)


# The end


@pytest.mark.parametrize("turns", range(1, 60))
def test_it_may_be_closed_at_any_moment_of_the_start(turns: int) -> None:
    async def play() -> None:
        server = server_at()
        here = Here()
        starting = asyncio.ensure_future(here.start())
        await idle(turns)
        begin = now()
        await here.close()
        await here.close()
        outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
        assert outcome is None or isinstance(outcome, BrokerUnavailable)
        assert now() - begin < 1
        await idle()
        assert not server.peers
        with pytest.raises(BrokerUnavailable, match="not started, or closed"):
            await here.broker.subscribe("a")
        await here.broker.unsubscribe("a")

    in_network(play)


@pytest.mark.parametrize("turns", [1, 5, 10, 20, 30, 40])
def test_a_start_may_be_given_up_at_any_moment(turns: int) -> None:
    async def play() -> None:
        server = server_at()
        here = Here()
        starting = asyncio.ensure_future(here.start())
        await idle(turns)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():  # it had come to its end
            await here.close()
        await idle()
        assert not server.peers

    in_network(play)


def test_a_start_that_was_closed_leaves_the_next_one_alone() -> None:
    async def play() -> None:
        server = server_at(PING=SILENCE)
        here = Here()
        first = asyncio.ensure_future(here.start())
        await idle()
        await here.broker.close()
        server.answers.clear()
        await here.start()
        with pytest.raises(BrokerUnavailable):
            await first
        await asyncio.sleep(20)
        await here.broker.subscribe("a")
        assert await here.hears("a")
        await here.close()

    in_network(play)


@pytest.mark.parametrize("turns", range(0, 60, 3))
def test_it_may_be_closed_at_any_moment_of_coming_back(turns: int) -> None:
    async def play() -> None:
        server = server_at()
        here = await started(retry_base=1e-9, retry_cap=1e-9)
        for channel in "abc":
            await here.broker.subscribe(channel)
        server.hang_up()
        await idle(turns)
        closing = [asyncio.ensure_future(here.broker.close()) for _ in range(2)]
        await asyncio.gather(*closing)
        await idle()
        assert not server.peers

    in_network(play)


def test_who_waits_when_it_is_closed_is_told() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        server.answers |= {"EVALSHA": SILENCE, "SUBSCRIBE": SILENCE}
        asked = [
            asyncio.ensure_future(here.broker.history("a")),
            asyncio.ensure_future(here.broker.subscribe("a")),
        ]
        await idle()
        await here.close()
        for each in asked:
            with pytest.raises(BrokerUnavailable, match="closed"):
                await each

    in_network(play)


@pytest.mark.parametrize("turns", [0, 60])
def test_to_close_once_more_does_nothing(turns: int) -> None:
    async def play() -> None:
        server_at()
        broker = RedisBroker(URL, require=False)
        await broker.start(lambda *_: None, lambda _: None, lambda _: None)
        await idle(turns)
        servers = broker._servers
        assert servers is not None
        for _ in range(3):
            await servers.close()
            await idle()
        await broker.close()

    in_network(play)


def test_a_close_may_be_given_up() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        closing = asyncio.ensure_future(here.broker.close())
        await idle(1)
        closing.cancel()
        await asyncio.wait([closing])
        await idle()
        assert not server.peers
        await here.close()

    in_network(play)


async def test_what_does_not_end_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("yaat.brokers.redis.servers.CLOSE", 0.01)
    broker = RedisBroker("redis://127.0.0.1:1", require=False)
    await broker.start(lambda *_: None, lambda _: None, lambda _: None)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    assert broker._servers is not None
    broker._servers.run(stubborn())
    await asyncio.sleep(0)
    await broker.close()
    assert any("did not end" in record.getMessage() for record in caplog.records)
    release.set()


# The pulse


def test_a_connection_that_brings_nothing_is_made_anew() -> None:
    async def play() -> None:
        server = server_at()
        here = await started(probe=10)
        await here.broker.subscribe("a")
        before = live_of(server)
        server.answers["PUBLISH"] = number(0)  # taken, and never seen again
        await here.wait(lambda: "down" in here.states, 31)
        assert before not in server.peers
        await here.up(2)
        assert here.missed == [{"a"}]
        del server.answers["PUBLISH"]
        await here.close()

    in_network(play)


def test_a_connection_that_is_silent_is_made_anew() -> None:
    async def play() -> None:
        server = server_at()
        here = await started(probe=10, timeout=3)
        await here.broker.subscribe("a")
        server.answers["SUBSCRIBE"] = SILENCE
        await here.wait(lambda: "down" in here.states, 24)
        del server.answers["SUBSCRIBE"]
        await here.up(2)
        assert here.missed == [{"a"}]
        await here.close()

    in_network(play)


def test_a_quiet_connection_that_works_stays() -> None:
    async def play() -> None:
        server = server_at()
        here = await started(probe=10)
        await here.broker.subscribe("a")
        server.heard.clear()
        await asyncio.sleep(1000)
        assert here.states == ["up"]
        assert 40 <= server.count("PUBLISH") <= 101
        await here.close()

    in_network(play)


def test_one_by_which_something_comes_is_not_asked() -> None:
    async def play() -> None:
        server = server_at()
        here = await started(probe=10)
        await here.broker.subscribe("a")
        server.heard.clear()
        for _ in range(100):
            await asyncio.sleep(9)
            assert await here.hears("a")
        assert server.count("SUBSCRIBE") == 0
        await here.close()

    in_network(play)


@pytest.mark.parametrize("answer", [error("NOPERM no"), SILENCE])
def test_a_pulse_that_cannot_be_sent_does_no_harm(answer: bytes) -> None:
    async def play() -> None:
        server = server_at()
        here = await started(probe=10, timeout=2)
        await here.broker.subscribe("a")
        server.answers["PUBLISH"] = answer
        await asyncio.sleep(25)
        del server.answers["PUBLISH"]
        await asyncio.sleep(100)
        assert here.states[-1] == "up"
        assert await here.hears("a")
        await here.close()

    in_network(play)


# Sentinels

SENTINELS = "redis+sentinel://s1,s2,s3/main"


def names(host: str, port: int | str = 6379) -> bytes:
    return array(bulk(host), bulk(str(port)))


def sentinels(**answers: Any) -> list[Server]:
    """Return three that know each other, all with the same answers."""
    return [server_at(f"s{each}", 26379, **answers) for each in (1, 2, 3)]


def test_the_master_is_whom_a_sentinel_names() -> None:
    async def play() -> None:
        first, *_ = sentinels(SENTINEL=names("m", 7))
        server_at("m", 7)
        url = SENTINELS.replace("//", "//u:p@") + "?sentinel_username=su&sentinel_password=sp"
        here = await started(url)
        assert first.heard[0][2:5] == (b"AUTH", b"su", b"sp")
        assert first.heard[1] == (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", b"main")
        assert server_at("m", 7).heard[0][2:5] == (b"AUTH", b"u", b"p")
        assert not first.peers
        await here.close()

    in_network(play)


def test_another_master_is_found() -> None:
    async def play() -> None:
        watching = sentinels(SENTINEL=names("m1"))
        old, new = server_at("m1"), server_at("m2")
        here = await started(SENTINELS)
        await here.broker.subscribe("a")
        old.takes = False
        old.hang_up()
        await asyncio.sleep(10)
        assert here.states == ["up", "down"]
        for each in watching:
            each.answers["SENTINEL"] = names("m2")
        await here.up(2)
        assert here.missed == [{"a"}]
        assert await here.hears("a")
        assert len(new.peers) == 2
        await here.close()

    in_network(play)


def test_another_master_is_looked_for_at_once() -> None:
    async def play() -> None:
        watching = sentinels(SENTINEL=names("m1"))
        old = server_at("m1")
        server_at("m2")
        here = await started(SENTINELS, probe=1000)
        for each in watching:
            each.answers["SENTINEL"] = names("m2")
        old.takes = False
        old.hang_up()
        await here.wait(lambda: here.states == ["up", "down", "up"], 3)
        await here.close()

    in_network(play)


def test_another_master_is_found_though_the_old_one_is_well() -> None:
    async def play() -> None:
        watching = sentinels(SENTINEL=names("m1"))
        old, new = server_at("m1"), server_at("m2")
        here = await started(SENTINELS, probe=10)
        await here.broker.subscribe("a")
        for each in watching:
            each.answers["SENTINEL"] = names("m2")
        await here.wait(lambda: len(new.peers) == 2, 11)
        await here.wait(lambda: here.states[-1] == "up")
        assert not old.peers
        assert here.missed == [{"a"}]
        assert await here.hears("a")
        await here.close()

    in_network(play)


def test_a_server_that_is_no_master_any_more_is_left() -> None:
    async def play() -> None:
        watching = sentinels(SENTINEL=names("m1"))
        old = server_at("m1")
        here = await started(SENTINELS, probe=1000)
        await here.broker.subscribe("a")
        old.answers["PUBLISH"] = error("READONLY You can't write against a read only replica.")
        old.answers["ROLE"] = array(bulk("slave"))
        server_at("m2")
        for each in watching:
            each.answers["SENTINEL"] = names("m2")
        with pytest.raises(BrokerUnavailable, match="READONLY"):
            await here.hears("a")
        await here.back()
        assert await here.hears("a")
        await here.close()

    in_network(play)


@pytest.mark.parametrize(
    "lie",
    [
        names("nobody"),
        names("replica"),
        names("m", "port"),
        array(),
        b"_\r\n",
        OK,
        number(1),
        error("ERR unknown command"),
        error("NOAUTH Authentication required."),
        SILENCE,
    ],
)
def test_a_sentinel_that_lies_is_not_the_only_one(lie: bytes) -> None:
    async def play() -> None:
        first, *_ = sentinels(SENTINEL=names("m"))
        first.answers["SENTINEL"] = lie
        server_at("m")
        server_at("replica", ROLE=array(bulk("slave")))
        here = Here(SENTINELS, require=False)
        await here.start()
        await here.up()
        assert len(server_at("m").peers) == 2
        await here.close()

    in_network(play)


@pytest.mark.parametrize("takes", [False, None])
def test_a_sentinel_that_is_away_is_not_the_only_one(takes: Any) -> None:
    async def play() -> None:
        first, second, third = sentinels(SENTINEL=names("m"))
        first.takes = second.takes = takes
        server_at("m")
        here = Here(SENTINELS, require=False)
        await here.start()
        await here.up()
        await asyncio.sleep(30)
        asked = len(first.times), len(second.times)
        await asyncio.sleep(100)
        assert (len(first.times), len(second.times)) == asked  # who answered is asked first
        assert len(third.times) > 5
        await here.close()

    in_network(play)


@pytest.mark.parametrize(
    ("answers", "kind", "words"),
    [
        ({"SENTINEL": b"_\r\n"}, BrokerUnavailable, "s2:26379 knows no service 'main'"),
        ({"HELLO": error("WRONGPASS no")}, BrokerRefused, "s3:26379.*WRONGPASS"),
        ({"SENTINEL": names("nobody")}, BrokerUnavailable, "nobody:6379 cannot be reached"),
        ({"SENTINEL": SILENCE}, BrokerUnavailable, "s1"),
    ],
)
def test_sentinels_that_do_not_help(
    answers: dict[str, Any], kind: type[Exception], words: str
) -> None:
    async def play() -> None:
        sentinels(**answers)
        with pytest.raises(kind, match=words):
            await Here(SENTINELS).start()

    in_network(play)


def test_sentinels_are_not_stormed_while_there_is_no_master() -> None:
    async def play() -> None:
        watching = sentinels(SENTINEL=names("m"))
        server = server_at("m")
        here = await started(SENTINELS)
        for answer in (names("m"), b"_\r\n"):
            for each in watching:
                each.times.clear()
                each.answers["SENTINEL"] = answer
            server.takes = False
            server.hang_up()
            await asyncio.sleep(60)
            assert sum(len(each.times) for each in watching) < 60 * 3 * 4
        for each in watching:
            each.answers["SENTINEL"] = names("m")
        server.takes = True
        await here.up(2)
        await here.close()

    in_network(play)


# Clusters

THREE = slots(
    (0, 5460, [("n1", 1), ("r1", 1)]), (5461, 10922, [("n2", 2)]), (10923, SLOTS - 1, [("n3", 3)])
)


def nodes(answer: bytes = THREE, **answers: Any) -> list[Server]:
    answers = {"INFO": CLUSTER, "CLUSTER": answer, **answers}
    return [server_at(f"n{each}", each, **answers) for each in (1, 2, 3)]


def tell(servers: list[Server], answer: bytes) -> None:
    for each in servers:
        each.answers["CLUSTER"] = answer


def channel_in(first: int, last: int, partitions: int = 64) -> str:
    """Return a channel whose slot is between these."""
    keys = Keys("yaat", 0, partitions)
    names = (f"room:{each}" for each in itertools.count())
    return next(name for name in names if first <= keys.slot(keys.partition(name.encode())) <= last)


ONE, TWO, LAST = channel_in(0, 5460), channel_in(5461, 10922), channel_in(10923, SLOTS - 1)


def test_each_server_of_a_cluster_has_its_channels() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n2:2")
        for channel, server in zip((ONE, TWO, LAST), servers, strict=True):
            await here.broker.subscribe(channel)
            assert [name.rpartition(b":c0:")[2].decode() for name in live_of(server).names] == [
                channel
            ]
            assert await here.hears(channel)
            assert server.count("SSUBSCRIBE") == 1
        assert [len(server.peers) for server in servers] == [2, 2, 2]
        await here.close()

    in_network(play)


def test_a_server_that_turns_out_to_be_of_a_cluster() -> None:
    async def play() -> None:
        nodes()
        here = await started("redis://n1:1")
        await here.broker.subscribe(LAST)
        assert await here.hears(LAST)
        await here.close()

    in_network(play)


def test_an_old_cluster_has_one_kind_of_channel() -> None:
    async def play() -> None:
        servers = nodes(INFO=info(version="6.2.5", mode="cluster"))
        here = await started("redis+cluster://n1:1")
        await here.broker.subscribe(TWO)
        assert servers[1].count("SUBSCRIBE") == 1
        assert await here.hears(TWO)
        await here.close()

    in_network(play)


def test_a_cluster_that_becomes_a_new_one_is_subscribed_to_anew() -> None:
    async def play() -> None:
        servers = nodes(INFO=info(version="6.2.5", mode="cluster"))
        here = await started("redis+cluster://n1:1", probe=10)
        await here.broker.subscribe(TWO)
        for server in servers:
            server.answers["INFO"] = CLUSTER
        await here.wait(lambda: servers[1].count("SSUBSCRIBE"), 30)
        await here.wait(lambda: here.states[-1] == "up")
        assert await here.hears(TWO)
        assert {TWO} in here.missed
        await here.close()

    in_network(play)


def test_who_trusts_a_cluster_need_not_be_told_who_it_is() -> None:
    async def play() -> None:
        nodes(INFO=error("NOPERM no"))
        here = await started("redis+cluster://n1:1?epochs=trust")
        await here.broker.subscribe(ONE)
        assert await here.hears(ONE)
        await here.close()

    in_network(play)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (array(), "no server of the cluster has slot"),
        (slots((0, 100, [("n1", 1)])), "no server of the cluster has slot"),
        (slots((0, 8000, [("n1", 1)]), (8100, SLOTS - 1, [("n2", 2)])), "no server|n2:2"),
        (slots((0, SLOTS - 1, [("gone", 1)])), "gone:1 cannot be reached"),
        (array(array(number(0), number(1))), "n1:1"),
        (OK, "n1:1"),
        (error("ERR This instance has cluster support disabled"), "cluster support disabled"),
        (SILENCE, "n1:1"),
    ],
)
def test_a_cluster_that_is_not_whole(answer: bytes, words: str) -> None:
    async def play() -> None:
        tell(nodes()[:1], answer)
        server_at("n2", 2).takes = False
        with pytest.raises((BrokerUnavailable, BrokerRefused), match=words):
            await Here("redis+cluster://n1:1").start()

    in_network(play)


@pytest.mark.parametrize("host", [b"$0\r\n\r\n", b"_\r\n", b"$-1\r\n"])
def test_a_server_that_does_not_know_its_own_name(host: bytes) -> None:
    async def play() -> None:
        told = array(array(number(0), number(SLOTS - 1), array(host, number(1), bulk("id"))))
        tell(nodes(), told)
        here = await started("redis+cluster://n1:1")
        assert len(server_at("n1", 1).peers) == 2
        await here.close()

    in_network(play)


def test_addresses_of_the_sixth_version() -> None:
    async def play() -> None:
        server_at("::1", 1, INFO=CLUSTER, CLUSTER=slots((0, SLOTS - 1, [("::1", 1)])))
        here = await started("redis+cluster://[::1]:1")
        await here.broker.subscribe("a")
        assert await here.hears("a")
        await here.close()

    in_network(play)


MOVED = slots((0, 10922, [("n1", 1)]), (10923, SLOTS - 1, [("n3", 3)]))


def moved(host: str, port: int) -> bytes:
    return error(f"MOVED 7000 {host}:{port}")


def test_who_is_told_that_something_moved_goes_there() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        await here.broker.subscribe(ONE)
        await here.broker.subscribe(TWO)
        tell(servers, MOVED)
        servers[1].answers["SPUBLISH"] = servers[1].answers["SSUBSCRIBE"] = moved("n1", 1)
        assert await here.hears(TWO) in (True, False)  # the new server has it; soon we hear
        await here.wait(lambda: here.missed)
        assert here.missed == [{TWO}]
        assert await here.hears(TWO)
        assert await here.hears(ONE)
        assert not servers[1].peers
        await here.close()

    in_network(play)


def test_what_stays_where_something_has_moved_away_stays() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        going, staying = channel_in(5461, 8000), channel_in(8001, 10_922)
        for channel in (going, staying):
            await here.broker.subscribe(channel)
        names_there = dict(zip((going, staying), servers[1].names("SSUBSCRIBE"), strict=True))
        part = (
            (0, 8000, [("n1", 1)]),
            (8001, 10_922, [("n2", 2)]),
            (10_923, SLOTS - 1, [("n3", 3)]),
        )
        tell(servers, slots(*part))
        servers[1].answers["SPUBLISH"] = moved("n1", 1)
        await here.hears(going)
        del servers[1].answers["SPUBLISH"]
        await here.wait(lambda: here.states[-1] == "up" and len(here.missed) == 2)
        assert sorted(map(sorted, here.missed)) == sorted([[going], [staying]])
        assert live_of(servers[1]).names == {names_there[staying]}
        assert await here.hears(going)
        assert await here.hears(staying)
        await here.close()

    in_network(play)


def test_who_subscribes_where_something_moved_goes_there() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        tell(servers, MOVED)
        servers[1].answers["SSUBSCRIBE"] = moved("n1", 1)
        await here.broker.subscribe(TWO)
        assert await here.hears(TWO)
        await here.close()

    in_network(play)


def test_what_is_unsubscribed_while_it_is_looked_for_is_not_subscribed_to() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        servers[1].answers["SSUBSCRIBE"] = moved("n1", 1)
        subscribing = asyncio.ensure_future(here.broker.subscribe(TWO))
        await here.wait(lambda: servers[1].count("SSUBSCRIBE"))
        tell(servers, MOVED)
        await here.broker.unsubscribe(TWO)
        await asyncio.gather(subscribing, return_exceptions=True)
        await asyncio.sleep(5)
        assert not any(peer.names for server in servers for peer in server.peers)
        await here.close()

    in_network(play)


def test_to_unsubscribe_where_something_moved_is_no_error() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        await here.broker.subscribe(TWO)
        servers[1].answers["SUNSUBSCRIBE"] = moved("n1", 1)
        await here.broker.unsubscribe(TWO)
        await here.close()

    in_network(play)


def test_what_has_moved_for_ever_is_unavailable() -> None:
    async def play() -> None:
        servers = nodes(SPUBLISH=moved("n9", 9), SSUBSCRIBE=moved("n9", 9))
        here = Here("redis+cluster://n1:1", require=False)
        await here.start()
        await asyncio.sleep(1)
        for server in servers:
            server.answers.pop("SPUBLISH")
        await here.up()
        for server in servers:
            server.answers["SPUBLISH"] = moved("n9", 9)
            server.times.clear()
        for call in (here.hears(ONE), here.broker.subscribe(ONE)):
            with pytest.raises(BrokerUnavailable, match="MOVED") as caught:
                await call
            assert not caught.value.maybe_published
        assert sum(len(server.times) for server in servers) < 30
        assert here.states == ["up"]
        await here.close()

    in_network(play)


def test_a_server_alone_from_which_something_has_moved() -> None:
    async def play() -> None:
        server = server_at()
        here = await started()
        server.answers["PUBLISH"] = moved("n1", 1)
        server.times.clear()
        with pytest.raises(BrokerUnavailable, match="MOVED"):
            await here.hears("a")
        assert not server.times
        await here.close()

    in_network(play)


def ask(host: str, port: int | str) -> bytes:
    return error(f"ASK 7000 {host}:{port}")


def test_what_is_on_its_way_is_asked_for_there() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        servers[1].answers["SPUBLISH"] = ask("n3", 3)
        for server in servers:
            server.heard.clear()
        await here.hears(TWO)
        assert [words[0] for words in servers[2].heard] == [b"ASKING", b"SPUBLISH"]
        assert not any(server.count("CLUSTER") for server in servers)
        await here.close()

    in_network(play)


@pytest.mark.parametrize("answer", [ask("n9", 9), ask("n3", "x"), error("ASK"), ask("", 3)])
def test_what_is_on_its_way_to_where_nobody_knows_is_unavailable(answer: bytes) -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        servers[1].answers["SPUBLISH"] = answer
        with pytest.raises(BrokerUnavailable, match="ASK") as caught:
            await here.hears(TWO)
        assert not caught.value.maybe_published
        await here.close()

    in_network(play)


def test_a_hundred_who_are_told_that_something_moved_look_once() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        for server in servers:
            server.heard.clear()
        tell(servers, MOVED)
        servers[1].answers["SPUBLISH"] = moved("n1", 1)
        await asyncio.gather(*(here.hears(TWO) for _ in range(100)))
        assert sum(server.count("CLUSTER") for server in servers) <= 2
        await here.close()

    in_network(play)


def test_a_slot_that_is_given_up_is_subscribed_to_where_it_has_gone() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        await here.broker.subscribe(TWO)
        name = next(iter(live_of(servers[1]).names))
        tell(servers, MOVED)
        servers[1].answers["SSUBSCRIBE"] = servers[1].answers["SPUBLISH"] = moved("n1", 1)
        live_of(servers[1]).say(push(bulk("sunsubscribe"), bulk(name), number(0)))
        await here.wait(lambda: here.missed)
        await here.wait(lambda: here.states[-1] == "up")
        assert here.missed == [{TWO}]
        assert await here.hears(TWO)
        await here.close()

    in_network(play)


@pytest.mark.parametrize("answer", [moved("n2", 2), error("CLUSTERDOWN down"), SILENCE])
def test_a_server_that_does_not_know_yet_what_it_has_is_asked_again(answer: bytes) -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=10, timeout=3)
        await here.broker.subscribe(TWO)
        tell(servers, MOVED)
        servers[0].answers["SSUBSCRIBE"] = answer
        await asyncio.sleep(20)
        del servers[0].answers["SSUBSCRIBE"]
        await asyncio.sleep(20)
        assert here.states[-1] == "up"
        assert TWO in set().union(*here.missed)
        assert await here.hears(TWO)
        await here.close()

    in_network(play)


def test_a_cluster_that_loses_slots_and_gets_them_back() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=10)
        for channel in (ONE, TWO):
            await here.broker.subscribe(channel)
        hole = slots((0, 5460, [("n1", 1)]), (10923, SLOTS - 1, [("n3", 3)]))
        tell(servers, hole)
        servers[1].takes = False
        servers[1].hang_up()
        await asyncio.sleep(60)
        assert here.states == ["up", "down"]
        assert await here.hears(ONE)  # the others go on
        with pytest.raises(BrokerUnavailable):
            await here.hears(TWO)
        tell(servers, THREE)
        servers[1].takes = True
        await here.up(2)
        assert here.missed == [{TWO}]
        assert await here.hears(TWO)
        await here.close()

    in_network(play)


def test_a_replica_that_takes_over() -> None:
    async def play() -> None:
        servers = nodes()
        replica = server_at("r1", 1, INFO=info("b" * 40, mode="cluster"), CLUSTER=THREE)
        here = await started("redis+cluster://n1:1", probe=10)
        await here.broker.subscribe(ONE)
        servers[0].takes = False
        servers[0].hang_up()
        await asyncio.sleep(3)
        for each in (*servers, replica):
            each.answers["CLUSTER"] = THREE.replace(b"$2\r\nn1", b"$2\r\nr1", 1)
        await here.up(2)
        assert here.missed == [{ONE}]
        assert len(replica.peers) == 2
        assert await here.hears(ONE)
        await here.close()

    in_network(play)


def test_a_node_that_is_cut_off_from_the_others_is_not_believed_for_ever() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=10)
        await here.broker.subscribe(TWO)
        servers[1].takes = False
        servers[1].hang_up()
        new = server_at("n4", 4, INFO=CLUSTER)
        for each in (servers[2], new):  # and not the first
            each.answers["CLUSTER"] = THREE.replace(b"$2\r\nn2\r\n:2", b"$2\r\nn4\r\n:4")
        await here.up(2)
        assert here.missed == [{TWO}]
        assert await here.hears(TWO)
        await here.close()

    in_network(play)


def test_a_cluster_is_not_stormed_while_a_server_is_away() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1")
        servers[1].takes = False
        servers[1].hang_up()
        for server in servers:
            server.times.clear()
        await asyncio.sleep(60)
        assert sum(len(server.times) for server in (servers[0], servers[2])) < 60 * 4
        servers[1].takes = True
        await here.up(2)
        await here.close()

    in_network(play)


def test_what_is_asked_while_it_is_looked_for_ends_with_the_broker() -> None:
    async def play() -> None:
        servers = nodes()
        here = await started("redis+cluster://n1:1", probe=1000)
        for server in servers:
            server.answers |= {"CLUSTER": SILENCE, "SPUBLISH": moved("n1", 1)}
        asked = asyncio.ensure_future(here.hears(ONE))
        await asyncio.sleep(0.5)
        begin = now()
        await here.close()
        with pytest.raises(BrokerUnavailable):
            await asked
        assert now() - begin < 1

    in_network(play)


def test_a_failure_that_nobody_expected_is_logged_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = Finder.find
    fails = [True]

    async def fail(self: Finder) -> Any:
        if fails:
            fails.pop()
            raise LookupError("what")
        return await find(self)

    monkeypatch.setattr(Finder, "find", fail)

    async def play() -> None:
        server_at()
        here = await started()
        await here.close()

    in_network(play)
    assert any(record.exc_info for record in caplog.records)
