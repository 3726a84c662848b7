"""What the server does in one step each, on real servers: where a channel stands, who is there."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from redis_servers import RedisServer, builds
from yaat.brokers.redis import scripts
from yaat.brokers.redis.feed import live
from yaat.brokers.redis.scripts import Script
from yaat.brokers.redis.settings import Address, Settings
from yaat.brokers.redis.wire import AnswerError, Wire, connect

STREAM, KNOWN, ONCE = b"{0}s", b"{0}m", b"{0}i"
PRESENCE = (b"{0}ph", b"{0}pz", b"{0}pu", b"{0}uh")
LASTING, TTL, ONCE_TTL = 1_000_000, 50_000, 70_000
Answers = list[Any]


@pytest.fixture(scope="module", params=builds())
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(request.param) as server:
        yield server


class Channel:
    """One channel on a real server."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.run_id = wire.identity.run_id
        self.pushed: Answers = []
        self.epochs = 0

    async def call(self, *command: Any) -> Any:
        return await self.wire.call(*command)

    async def run(self, script: Script, keys: tuple[bytes, ...], *arguments: Any) -> Any:
        return await self.wire.call("EVAL", script.text, len(keys), *keys, *arguments)

    async def standing(self, script: Script, keys: tuple[bytes, ...], *rest: Any, run: str) -> Any:
        self.epochs += 1
        fresh = b"fresh%d" % self.epochs
        return await self.run(script, keys, run, fresh, LASTING, *rest)

    async def publish(
        self,
        data: bytes = b"data",
        *,
        run: str | None = None,
        size: int = 10,
        ttl: int = TTL,
        once: bool = False,
    ) -> tuple[int, bytes, int]:
        answer = await self.standing(
            scripts.PUBLISH,
            (STREAM, KNOWN, ONCE) if once else (STREAM, KNOWN),
            *(size, ttl, data, "PUBLISH", b"{0}c", ONCE_TTL),
            run=self.run_id if run is None else run,
        )
        return tuple(answer)

    async def history(
        self,
        command: str = "XRANGE",
        begin: str = "-",
        end: str = "+",
        limit: int = -1,
        *,
        run: str | None = None,
    ) -> tuple[int, bytes, list[tuple[int, bytes]]]:
        """Return the last offset, the epoch, and offset and data of what is kept."""
        offset, epoch, *entries = await self.standing(
            scripts.HISTORY,
            (STREAM, KNOWN),
            *(command, begin, end, limit),
            run=self.run_id if run is None else run,
        )
        found = [(int(id_.partition(b"-")[0]), data) for id_, data in _pairs(entries)]
        return offset, epoch, found

    async def presence(self, script: Script, *arguments: Any, ttl: int = TTL) -> Any:
        return await self.run(script, PRESENCE, ttl, *arguments)

    async def add(self, client: str, user: str | None, info: str = "") -> int:
        added: int = await self.presence(
            scripts.PRESENCE_ADD, client, int(user is not None), user or "", f"{client} {info}"
        )
        return added

    async def there(self) -> list[str]:
        """Return what is told of those who are there, in the order of their coming."""
        told = await self.presence(scripts.PRESENCE_GET)
        return [each.partition(b"\n")[2].decode() for each in sorted(told)]

    async def counts(self) -> list[int]:
        found: list[int] = await self.presence(scripts.PRESENCE_STATS)
        return found

    async def expire(self, client: str) -> None:
        """Let a client's time be over."""
        await self.call("ZADD", PRESENCE[1], "XX", 1, client)


def _pairs(items: Answers) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


@pytest.fixture
async def channel(server: RedisServer) -> AsyncIterator[Channel]:
    server.call("FLUSHALL")
    pushed: Answers = []
    wire = await connect(Address("127.0.0.1", server.port), Settings(), None, pushed.append)
    channel = Channel(wire)
    channel.pushed = pushed
    yield channel
    wire.end()
    await wire.ended


# The name by which a server knows a script


async def test_a_script_is_known_by_its_name(channel: Channel) -> None:
    for script in (scripts.PUBLISH, scripts.HISTORY, scripts.REMOVE, scripts.PRESENCE_STATS):
        assert await channel.call("SCRIPT", "LOAD", script.text) == script.sha.encode()


# Publishing


async def test_offsets_grow_by_one_in_one_epoch(channel: Channel) -> None:
    answers = [await channel.publish(b"%d" % each) for each in range(1, 6)]
    assert answers == [(each, b"fresh1", 0) for each in range(1, 6)]
    assert await channel.history() == (5, b"fresh1", [(each, b"%d" % each) for each in range(1, 6)])


async def test_what_is_sent_out_is_what_the_feed_reads(channel: Channel) -> None:
    await channel.call("SUBSCRIBE", b"{0}c")
    await channel.publish(b"\0data")
    await channel.call("PING")
    ((_, name, sent),) = channel.pushed
    (((id_, _),)) = await channel.call("XRANGE", STREAM, "-", "+")
    offset, _, time = id_.partition(b"-")
    assert (name, offset) == (b"{0}c", b"1")
    assert sent == live(1, int(time), b"fresh1", b"\0data")


async def test_what_is_kept_is_bounded_exactly(channel: Channel) -> None:
    for each in range(1, 31):
        await channel.publish(b"%d" % each, size=7)
    assert [offset for offset, _ in (await channel.history())[2]] == [*range(24, 31)]
    await channel.publish(size=1)
    assert [offset for offset, _ in (await channel.history())[2]] == [31]
    await channel.publish(size=10**15)
    assert [offset for offset, _ in (await channel.history())[2]] == [31, 32]


async def test_what_is_not_to_be_kept_is_not(channel: Channel) -> None:
    for options in ({"size": 0}, {"ttl": 0}):
        assert await channel.publish(once=True, **options) == (0, b"", 0)  # type: ignore[arg-type]
        assert await channel.publish(once=True, **options) == (0, b"", 1)  # type: ignore[arg-type]
        await channel.call("DEL", ONCE)
    assert await channel.call("EXISTS", STREAM, KNOWN) == 0


async def test_how_long_what_is_kept(channel: Channel) -> None:
    await channel.publish(ttl=5_000_000, once=True)
    for key, ttl in ((STREAM, 5_000_000), (KNOWN, LASTING), (ONCE, ONCE_TTL)):
        assert ttl - 30_000 < await channel.call("PTTL", key) <= ttl
    longest = 10**15  # as the broker bounds it
    await channel.publish(ttl=longest)
    assert await channel.call("PTTL", STREAM) > longest - 30_000
    assert len((await channel.history())[2]) == 2


async def test_offsets_are_exact_as_far_as_they_go(channel: Channel) -> None:
    await channel.history()
    most = 2**53 - 1
    await channel.call("HSET", KNOWN, "o", most - 1)
    await channel.call("SUBSCRIBE", b"{0}c")
    assert (await channel.publish())[0] == most
    offset, _, kept = await channel.history()
    assert (offset, kept) == (most, [(most, b"data")])
    assert channel.pushed[0][2][1:9] == most.to_bytes(8, "big")
    assert await channel.call("HGET", KNOWN, "o") == b"%d" % most


# Once


async def test_once_is_once(channel: Channel) -> None:
    await channel.call("SUBSCRIBE", b"{0}c")
    answers = await asyncio.gather(*(channel.publish(once=True) for _ in range(10)))
    assert answers == [(1, b"fresh1", 0)] + [(1, b"fresh1", 1)] * 9
    await channel.publish()
    assert await channel.publish(once=True) == (1, b"fresh1", 1)
    assert len(channel.pushed) == 2


@pytest.mark.parametrize("lost", [KNOWN, STREAM])
async def test_what_was_published_once_in_another_epoch(channel: Channel, lost: bytes) -> None:
    await channel.publish(once=True)
    await channel.call("DEL", lost)
    again = await channel.publish(once=True)
    assert again == ((1, b"fresh2", 0) if lost == KNOWN else (1, b"fresh1", 1))
    assert await channel.publish(once=True) == (*again[:2], 1)


async def test_once_for_what_is_kept_and_for_what_is_not(channel: Channel) -> None:
    await channel.publish(once=True, size=0)
    assert await channel.publish(once=True) == (0, b"", 1)
    await channel.call("DEL", ONCE)
    await channel.publish(once=True)
    assert (await channel.publish(once=True, size=0))[2] == 0  # it has another place: none


# Epochs


async def test_who_knows_another_run_is_put_right(channel: Channel) -> None:
    await channel.publish()
    assert await channel.publish(run="f" * 40) == (2, b"fresh1", 0)
    assert await channel.publish() == (3, b"fresh1", 0)
    assert await channel.call("HGET", KNOWN, "r") == channel.run_id.encode()


@pytest.mark.parametrize("first", ["publish", "history", "remove"])
async def test_a_server_that_was_started_anew_begins_an_epoch(channel: Channel, first: str) -> None:
    for each in range(5):
        await channel.publish(b"%d" % each)
    await channel.call("HSET", KNOWN, "r", "e" * 40)  # as the one before left it
    if first == "publish":
        assert await channel.publish(b"new") == (1, b"fresh6", 0)
        assert await channel.history() == (1, b"fresh6", [(1, b"new")])
    elif first == "history":
        assert await channel.history() == (0, b"fresh6", [])
        assert await channel.publish() == (1, b"fresh6", 0)
    else:
        await channel.standing(scripts.REMOVE, (STREAM, KNOWN), run=channel.run_id)
        assert await channel.history() == (0, b"fresh6", [])
    assert (await channel.history())[1] == b"fresh6"


async def test_who_trusts_goes_on_after_a_restart(channel: Channel) -> None:
    await channel.publish()
    await channel.call("HSET", KNOWN, "r", "e" * 40)
    assert await channel.publish(run="") == (2, b"fresh1", 0)
    assert await channel.history(run="") == (2, b"fresh1", [(1, b"data"), (2, b"data")])


async def test_who_trusted_and_does_not_any_more_begins_an_epoch_once(channel: Channel) -> None:
    assert await channel.publish(run="") == (1, b"fresh1", 0)
    assert await channel.publish(run="") == (2, b"fresh1", 0)
    assert await channel.publish() == (1, b"fresh3", 0)
    assert await channel.publish() == (2, b"fresh3", 0)
    assert await channel.publish(run="") == (3, b"fresh3", 0)
    assert await channel.publish() == (4, b"fresh3", 0)


async def test_who_may_not_ask_changes_nothing(server: RedisServer, channel: Channel) -> None:
    await channel.publish()
    await channel.call("HSET", KNOWN, "r", "e" * 40)
    rules = [
        "on",
        ">p",
        "~*",
        "+@all",
        "-info",
        *(["&*"] if server.has_shards else ["allchannels"]),
    ]
    await channel.call("ACL", "SETUSER", "blind", *rules)
    wire = await connect(
        Address("127.0.0.1", server.port),
        Settings(username="blind", password="p", epochs="trust"),
    )
    blind = Channel(wire)
    with pytest.raises(AnswerError, match=r"(?i)noperm|permission|acl|run this command"):
        await blind.publish(run="d" * 40)
    assert await blind.publish(run="") == (2, b"fresh1", 0)
    wire.end()


async def test_who_stands_is_forgotten_with_what_is_kept(channel: Channel) -> None:
    for _ in range(3):
        await channel.publish()
    await channel.call("DEL", KNOWN)  # evicted
    assert await channel.publish(b"new") == (1, b"fresh4", 0)
    assert await channel.history() == (1, b"fresh4", [(1, b"new")])


async def test_what_is_kept_may_be_forgotten_alone(channel: Channel) -> None:
    for _ in range(3):
        await channel.publish()
    await channel.call("DEL", STREAM)
    assert await channel.history() == (3, b"fresh1", [])
    assert await channel.publish(b"new") == (4, b"fresh1", 0)
    assert await channel.history() == (4, b"fresh1", [(4, b"new")])


@pytest.mark.parametrize("key", [STREAM, KNOWN, ONCE])
async def test_a_key_of_somebody_else_is_an_error_that_changes_nothing(
    channel: Channel, key: bytes
) -> None:
    await channel.publish()
    await channel.call("SUBSCRIBE", b"{0}c")
    await channel.call("DEL", key)
    await channel.call("SET", key, "mine")
    for _ in range(2):
        with pytest.raises(AnswerError, match="WRONGTYPE"):
            await channel.publish(once=True)
    assert await channel.call("GET", key) == b"mine"
    await channel.call("DEL", key)
    expected = (1, b"fresh4", 0) if key == KNOWN else (2, b"fresh1", 0)
    assert await channel.publish(once=True) == expected
    assert len(channel.pushed) == 1


async def test_a_full_server_changes_nothing(channel: Channel) -> None:
    await channel.publish(b"first")
    await channel.call("SUBSCRIBE", b"{0}c")
    full: list[dict[str, Any]] = [{}, {"once": True}, {"size": 0, "once": True}]
    await channel.call("CONFIG", "SET", "maxmemory", 1)
    try:
        for options in full:
            with pytest.raises(AnswerError, match=r"(?i)oom|maxmemory"):
                await channel.publish(**options)
        with pytest.raises(AnswerError, match=r"(?i)oom|maxmemory"):
            await channel.add("c", "u")
        assert await channel.history() == (1, b"fresh1", [(1, b"first")])
        await channel.presence(scripts.PRESENCE_REMOVE, "c")
        assert await channel.counts() == [0, 0]
        await channel.standing(scripts.REMOVE, (STREAM, KNOWN), run=channel.run_id)
    finally:
        await channel.call("CONFIG", "SET", "maxmemory", 0)
    assert await channel.history() == (1, b"fresh1", [])
    assert await channel.call("EXISTS", ONCE, *PRESENCE) == 0
    assert not channel.pushed
    assert await channel.publish(once=True) == (2, b"fresh1", 0)


# History


async def test_a_channel_gets_its_epoch_by_a_look(channel: Channel) -> None:
    assert await channel.history(limit=0) == (0, b"fresh1", [])
    assert await channel.history() == (0, b"fresh1", [])
    assert await channel.publish() == (1, b"fresh1", 0)


async def test_a_look_lets_the_position_last(channel: Channel) -> None:
    await channel.publish()
    await channel.call("PEXPIRE", KNOWN, 10_000)
    await channel.history(limit=0)
    assert await channel.call("PTTL", KNOWN) > LASTING - 30_000


LAST = 2**63 - 1


@pytest.mark.parametrize(
    ("bounds", "offsets"),
    [
        (("XRANGE", "-", "+", -1), [1, 2, 3, 4, 5]),
        (("XRANGE", "-", "+", 2), [1, 2]),
        (("XRANGE", "3-0", "+", -1), [3, 4, 5]),
        (("XRANGE", "3-0", "+", 1), [3]),
        (("XRANGE", "6-0", "+", -1), []),
        (("XRANGE", f"{2**63}-0", "+", -1), []),
        (("XREVRANGE", "+", "-", -1), [5, 4, 3, 2, 1]),
        (("XREVRANGE", "+", "-", 2), [5, 4]),
        (("XREVRANGE", f"2-{LAST}", "-", -1), [2, 1]),
        (("XREVRANGE", f"0-{LAST}", "-", -1), []),
        (("XRANGE", "-", "+", 10**15), [1, 2, 3, 4, 5]),
    ],
)
async def test_a_part_of_what_is_kept(
    channel: Channel, bounds: tuple[str, str, str, int], offsets: list[int]
) -> None:
    for _ in range(5):
        await channel.publish()
    offset, _, kept = await channel.history(*bounds)
    assert offset == 5
    assert [offset for offset, _ in kept] == offsets


async def keep(channel: Channel, *expiries: int) -> None:
    """Let the channel have kept something that expires at these times, in milliseconds."""
    await channel.history()
    for offset, expiry in enumerate(expiries, 1):
        await channel.call("XADD", STREAM, f"{offset}-1", "d", b"%d" % offset, "x", expiry)
    await channel.call("HSET", KNOWN, "o", len(expiries))


LATER = 10**13


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250])
async def test_what_has_expired_goes(channel: Channel, count: int) -> None:
    await keep(channel, *[1] * count, LATER)
    assert await channel.history(limit=0) == (count + 1, b"fresh1", [])
    assert await channel.call("XLEN", STREAM) == count + 1
    assert (await channel.history(limit=1))[2] == [(count + 1, b"%d" % (count + 1))]
    assert await channel.call("XLEN", STREAM) == 1


async def test_if_all_has_expired_the_position_stays(channel: Channel) -> None:
    await keep(channel, *[1] * 100)
    assert await channel.history() == (100, b"fresh1", [])
    assert await channel.publish() == (101, b"fresh1", 0)


async def test_what_expires_before_what_is_older_is_left_out(channel: Channel) -> None:
    await keep(channel, LATER, 1, LATER)
    assert [offset for offset, _ in (await channel.history())[2]] == [1, 3]
    assert [offset for offset, _ in (await channel.history("XREVRANGE", "+", "-"))[2]] == [3, 1]


async def test_to_drop_what_is_kept(channel: Channel) -> None:
    for _ in range(3):
        await channel.publish()
    await channel.standing(scripts.REMOVE, (STREAM, KNOWN), run=channel.run_id)
    assert await channel.history() == (3, b"fresh1", [])
    assert await channel.publish(b"new") == (4, b"fresh1", 0)
    assert await channel.history() == (4, b"fresh1", [(4, b"new")])


# Presence


async def test_who_comes_is_there_until_it_goes(channel: Channel) -> None:
    assert await channel.add("a", "u", "1") == 1
    assert await channel.add("b", None) == 1
    assert await channel.add("a", "u", "2") == 0
    assert await channel.there() == ["a 2", "b "]
    assert await channel.counts() == [2, 1]
    assert await channel.presence(scripts.PRESENCE_REMOVE, "a") == 1
    assert await channel.presence(scripts.PRESENCE_REMOVE, "a") == 0
    assert await channel.presence(scripts.PRESENCE_REMOVE, "nobody") == 0
    assert await channel.there() == ["b "]
    assert await channel.counts() == [1, 0]
    await channel.presence(scripts.PRESENCE_REMOVE, "b")
    assert await channel.call("EXISTS", *PRESENCE) == 0


async def test_many_come_at_once(channel: Channel) -> None:
    arguments = [
        item for each in range(500) for item in (f"c{each}", 1, f"u{each % 7}", f"t{each}")
    ]
    assert await channel.presence(scripts.PRESENCE_ADD, *arguments) == 500
    assert await channel.presence(scripts.PRESENCE_ADD, *arguments) == 0
    assert await channel.there() == [f"t{each}" for each in range(500)]
    assert await channel.counts() == [500, 7]


async def test_the_order_of_coming(channel: Channel) -> None:
    for client in "zay":
        await channel.add(client, None)
    await channel.add("z", None)
    assert await channel.there() == ["z ", "a ", "y "]
    await channel.expire("z")
    assert await channel.add("z", None) == 1
    assert await channel.there() == ["a ", "y ", "z "]


async def test_a_user_without_a_name_is_one(channel: Channel) -> None:
    await channel.add("a", "")
    await channel.add("b", "")
    await channel.add("c", None)
    assert await channel.counts() == [3, 1]


async def test_odd_names(channel: Channel) -> None:
    for client in ("a\nb", "\n", "", "ä\0", "x" * 10_000):
        assert await channel.add(client, client) == 1
        assert await channel.presence(scripts.PRESENCE_REMOVE, client) == 1
    assert await channel.counts() == [0, 0]


async def test_who_expires_is_not_there(channel: Channel) -> None:
    await channel.add("a", "u")
    await channel.add("b", "u")
    await channel.expire("a")
    assert await channel.there() == ["b "]
    assert await channel.presence(scripts.PRESENCE_REMOVE, "a") == 0
    assert await channel.counts() == [1, 1]
    await channel.expire("b")
    assert await channel.counts() == [0, 0]
    assert await channel.call("EXISTS", *PRESENCE) == 0


async def test_very_many_expire(channel: Channel) -> None:
    arguments = [item for each in range(2500) for item in (f"c{each}", 1, f"u{each}", "t")]
    for at in range(0, len(arguments), 2000):
        await channel.presence(scripts.PRESENCE_ADD, *arguments[at : at + 2000])
    for each in range(2400):
        channel.wire.send(("ZADD", PRESENCE[1], "XX", 1, f"c{each}"))
    assert await channel.counts() == []
    assert await channel.counts() == []
    assert await channel.counts() == [100, 100]


async def test_who_is_refreshed_drives_out_who_has_expired(channel: Channel) -> None:
    for each in range(50):
        await channel.add(f"c{each}", f"u{each}")
        await channel.expire(f"c{each}")
    await channel.add("a", "u")
    assert [await channel.call("HLEN", key) for key in (PRESENCE[0], PRESENCE[3])] == [1, 1]


async def test_all_of_it_goes_when_nobody_comes(channel: Channel) -> None:
    await channel.add("a", "u")
    for key in PRESENCE:
        assert TTL < await channel.call("PTTL", key) <= 2 * TTL


async def test_parts_of_it_may_be_forgotten(channel: Channel) -> None:
    for lost in PRESENCE:
        await channel.call("DEL", *PRESENCE)
        await channel.add("a", "u")
        await channel.call("DEL", lost)
        assert set(await channel.presence(scripts.PRESENCE_GET)) <= {None, *await told(channel)}
        await channel.add("a", "u")
        assert await channel.there() == ["a "]
        assert await channel.counts() == [1, 1] or lost == PRESENCE[3]
        await channel.presence(scripts.PRESENCE_REMOVE, "a")
        assert (await channel.counts())[0] == 0


async def told(channel: Channel) -> Answers:
    found: Answers = await channel.call("HVALS", PRESENCE[0])
    return found


CLIENTS, USERS = ["a", "b", "c"], [None, "", "u", "v"]
steps = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(CLIENTS), st.sampled_from(USERS)),
    st.tuples(st.just("remove"), st.sampled_from(CLIENTS), st.none()),
    st.tuples(st.just("expire"), st.sampled_from(CLIENTS), st.none()),
    st.tuples(st.just("stats"), st.none(), st.none()),
)


class Model:
    """Who is there, as simply as it can be said."""

    def __init__(self) -> None:
        self.users: dict[str, str | None] = {}

    def add(self, client: str, user: str | None) -> int:
        is_new = client not in self.users
        self.users[client] = user
        return int(is_new)

    def remove(self, client: str) -> int:
        is_there = client in self.users
        self.users.pop(client, None)
        return int(is_there)

    def counts(self) -> list[int]:
        return [len(self.users), len(set(self.users.values()) - {None})]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(steps, max_size=20))
@example([("add", "a", "u"), ("add", "b", "u"), ("remove", "a", None), ("stats", None, None)])
@example([("add", "a", "u"), ("expire", "a", None), ("add", "a", "v"), ("stats", None, None)])
@example([("add", "a", "u"), ("expire", "a", None), ("remove", "a", None), ("add", "a", "u")])
@example([("add", "a", "u"), ("add", "a", None), ("add", "a", ""), ("stats", None, None)])
def test_presence_is_as_simple_as_that(server: RedisServer, steps: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        wire = await connect(Address("127.0.0.1", server.port), Settings())
        channel, model = Channel(wire), Model()
        await channel.call("DEL", *PRESENCE)
        for step, client, user in steps:
            if step == "add":
                assert await channel.add(client, user) == model.add(client, user)
            elif step == "remove":
                removed = await channel.presence(scripts.PRESENCE_REMOVE, client)
                assert removed == model.remove(client)
            elif step == "expire":
                await channel.expire(client)
                model.remove(client)
            else:
                assert await channel.counts() == model.counts()
            assert await channel.there() == [f"{client} " for client in model.users]
        assert await channel.counts() == model.counts()
        wire.end()
        await wire.ended

    asyncio.run(play())
