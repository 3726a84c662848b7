"""Members that read slowly, or not at all, on every server.

What becomes of them is the policy of their channel; what becomes of everybody else is: nothing. How
much the kernel and the server hold of a connection is made small, so that little is enough.

Two servers hold whatever they are given, however much it is (`Facts.send_waits`): there nothing
ever waits for us, so that nothing is dropped, and everything arrives as soon as it is read.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apps.budgets import BUDGET
from apps.channels_peer import Rooms, done, joined, number, numbers, order, sleep, wake
from clients import NO_CLOSE, SocketClient
from served import closed, read_all
from servers import SPECS, Server, ServerPool, ServerSpec
from yaat.outbox import OVERHEAD

SIZE = 4096
FITS = BUDGET // (SIZE + OVERHEAD)
"""So many publications of that size may wait for a member."""
MANY = 120
"""So many are more than the kernel, the server and the budget hold together."""
STEP = 10
"""So many are published at a time: fewer than may wait for a member that reads."""


@pytest.fixture
async def rooms(spec: ServerSpec, servers: ServerPool) -> AsyncIterator[Rooms]:
    """The rooms of one test; in the end whoever came has gone, and nobody noticed."""
    async with rooms_on(spec, servers) as rooms:
        yield rooms


@pytest.fixture(params=["yaat-uvloop", "yaat-run-asyncio"])
async def our_rooms(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[Rooms]:
    """The same on our own server alone."""
    async with rooms_on(SPECS[request.param], servers) as rooms:
        yield rooms


@asynccontextmanager
async def rooms_on(spec: ServerSpec, servers: ServerPool) -> AsyncIterator[Rooms]:
    rooms = Rooms(spec, servers.get(spec, "apps.channels:app"))
    before = await rooms.get("/inspect")
    yield rooms
    await rooms.assert_nothing_left(before)
    assert rooms.complaints() == []
    assert rooms.tracebacks() == 0, rooms.written()


@asynccontextmanager
async def stalled(
    rooms: Rooms, kind: str, path: str = "/join", **query: Any
) -> AsyncIterator[SocketClient]:
    """Be a member that reads nothing after it has joined."""
    query = {"receive_buffer": 4096, "small": 1, "silent": 1, **query}
    async with rooms.join(kind, path, **query) as client:
        await rooms.recorded("joined")
        sleep(client)
        yield client
        wake(client)


async def publish_in_steps(
    rooms: Rooms,
    kind: str,
    *clients: SocketClient,
    count: int = MANY,
    step: int = STEP,
    **how: Any,
) -> int:
    """Publish numbers, and let these clients read them meanwhile; return the most that waited."""
    waiting = 0
    for first in range(0, count, step):
        flow = rooms.post(f"/flow/{kind}", count=step, first=first, **{"size": SIZE, **how})
        told, *received = await asyncio.gather(flow, *(numbers(each, step) for each in clients))
        assert all(each == list(range(first, first + step)) for each in received)
        waiting = max(waiting, told["waiting"])
    return waiting


async def left_out(rooms: Rooms, kind: str, policy: str, before: Any) -> int:
    """Return how many publications were left out, after all who count agreed on that."""
    now = await rooms.get("/inspect")
    count = int(now["told"].get(f"{policy} {rooms.channel(kind)}", 0))
    assert now["dropped"] - before["dropped"] == count
    assert now["cut"] == before["cut"]
    return count


def warnings(rooms: Rooms) -> list[str]:
    logs = [log for log in rooms.records("log") if log["logger"] == "yaat.channel"]
    assert {log["level"] for log in logs} <= {"WARNING"}
    return [log["message"] for log in logs]


def assert_warned_once(rooms: Rooms, kind: str) -> None:
    (message,) = warnings(rooms)
    assert rooms.channel(kind) in message
    assert "too slowly" in message


async def assert_all_held(rooms: Rooms, client: SocketClient, kind: str, count: int) -> None:
    """Assert that the server held everything: whoever wakes up has missed nothing."""
    assert rooms.facts.send_waits is False
    wake(client)
    assert await numbers(client, count) == list(range(count))
    assert warnings(rooms) == []


# Dropping


@pytest.mark.parametrize("kind", ["oldest", "latest"])
async def test_drop_oldest_leaves_the_newest(rooms: Rooms, kind: str) -> None:
    """Without a key `latest` is the same."""
    policy = {"oldest": "drop_oldest", "latest": "latest"}[kind]
    before = await rooms.get("/inspect")
    async with rooms.member(kind) as reader, stalled(rooms, kind) as sleeper:
        waiting = await publish_in_steps(rooms, kind, reader)
        dropped = await left_out(rooms, kind, policy, before)
        if not rooms.facts.send_waits:
            await assert_all_held(rooms, sleeper, kind, MANY)
            return
        assert waiting == FITS * (SIZE + OVERHEAD) <= BUDGET
        wake(sleeper)
        received = await numbers(sleeper, MANY - dropped)
        tail = range(MANY - FITS, MANY)
        assert received == [*range(MANY - dropped - FITS), *tail]
        assert_warned_once(rooms, kind)
        # It has caught up: what comes now comes at once.
        await rooms.publish(kind, f"{MANY}")
        assert await numbers(sleeper, 1) == await numbers(reader, 1) == [MANY]


async def test_drop_newest_leaves_the_oldest(rooms: Rooms) -> None:
    before = await rooms.get("/inspect")
    async with rooms.member("newest") as reader, stalled(rooms, "newest") as sleeper:
        waiting = await publish_in_steps(rooms, "newest", reader)
        dropped = await left_out(rooms, "newest", "drop_newest", before)
        if not rooms.facts.send_waits:
            await assert_all_held(rooms, sleeper, "newest", MANY)
            return
        assert waiting == FITS * (SIZE + OVERHEAD)
        assert dropped > 0
        wake(sleeper)
        assert await numbers(sleeper, MANY - dropped) == list(range(MANY - dropped))
        assert_warned_once(rooms, "newest")
        await rooms.publish("newest", f"{MANY}")
        assert await numbers(sleeper, 1) == await numbers(reader, 1) == [MANY]


async def test_latest_leaves_the_newest_of_each_key(rooms: Rooms) -> None:
    keys = 5
    before = await rooms.get("/inspect")
    async with rooms.member("latest") as reader, stalled(rooms, "latest") as sleeper:
        # One of each key at a time: none that a reader could have takes the place of another.
        waiting = await publish_in_steps(rooms, "latest", reader, step=keys, keys=keys)
        dropped = await left_out(rooms, "latest", "latest", before)
        if not rooms.facts.send_waits:
            wake(sleeper)
            received = await numbers(sleeper, MANY - dropped)
            assert received[-keys:] == sorted(received[-keys:]) == list(range(MANY - keys, MANY))
            return
        assert waiting == keys * (SIZE + OVERHEAD)
        wake(sleeper)
        received = await numbers(sleeper, MANY - dropped)
        head, tail = received[:-keys], received[-keys:]
        assert head == sorted(set(head))
        # Each newer one took the place of the older one with its key.
        assert sorted(tail) == list(range(MANY - keys, MANY))
        assert all((other - one) % keys == 1 for one, other in pairwise(tail))
        assert_warned_once(rooms, "latest")


async def test_a_publication_greater_than_the_budget_is_held_all_the_same(rooms: Rooms) -> None:
    async with stalled(rooms, "oldest") as sleeper:
        await publish_in_steps(rooms, "oldest")
        waiting = (await rooms.post("/flow/oldest", first=MANY, count=3, size=4 * BUDGET))[
            "waiting"
        ]
        if rooms.facts.send_waits:
            assert waiting == 4 * BUDGET + OVERHEAD
        wake(sleeper)
        last = 0
        while last < MANY + 2:
            (last,) = await numbers(sleeper, 1)


# Cutting


async def test_cut_closes_with_1013_and_who_resumes_has_lost_nothing(rooms: Rooms) -> None:
    before = await rooms.get("/inspect")
    async with (
        rooms.member("resume") as reader,
        stalled(rooms, "resume", format="positioned") as sleeper,
    ):
        await publish_in_steps(rooms, "resume", reader)
        now = await rooms.get("/inspect")
        if not rooms.facts.send_waits:
            assert now["cut"] == before["cut"]
            wake(sleeper)
            while (await sleeper.receive_json())["offset"] < MANY:
                pass
            return
        assert now["cut"] - before["cut"] == 1
        assert now["dropped"] == before["dropped"]
        assert now["told"] == {f"cut {rooms.channel('resume')}": 1}
        assert_warned_once(rooms, "resume")
        wake(sleeper)
        messages, end = await read_all(sleeper)
    assert (end.code, end.reason) == (1013, "reads too slowly")
    told = [sleeper_told(each) for each in messages]
    offsets = [offset for offset, _ in told]
    assert offsets == list(range(len(offsets)))  # 0: where it stood
    assert 1 < len(offsets) < MANY
    since = f"{offsets[-1]}-{told[-1][1]}"
    async with rooms.join("resume", since=since) as client:
        assert list(map(number, await joined(client))) == list(range(offsets[-1], MANY))


def sleeper_told(message: str | bytes) -> tuple[int, str]:
    told = json.loads(message)
    return told["offset"], told["epoch"]


async def test_who_is_cut_is_no_longer_there(rooms: Rooms) -> None:
    """Though it never wakes up: its handler ends, and nothing of it is left."""
    async with (
        rooms.member("cut", user="ann") as reader,
        stalled(rooms, "cut", "/join-impatiently", user="bob") as sleeper,
    ):
        await publish_in_steps(rooms, "cut", reader)
        if not rooms.facts.send_waits:
            await assert_all_held(rooms, sleeper, "cut", MANY)
            return
        await rooms.recorded("left")
        await rooms.recorded("ended")
        assert (await rooms.get("/presence/cut"))["present"] == [["ann", None]]
        assert (await rooms.get("/inspect"))["members"] == {rooms.channel("cut"): 1}
        await sleeper.reset()


async def test_who_is_cut_while_its_handler_sends_has_not_failed(rooms: Rooms) -> None:
    async with rooms.member("cut") as reader, stalled(rooms, "cut") as sleeper:
        if not rooms.facts.send_waits:
            await publish_in_steps(rooms, "cut", reader)
            await assert_all_held(rooms, sleeper, "cut", MANY)
            return
        # So much is held that the next send has to wait; then comes what is too much.
        await sleeper.send_json({"do": "flood", "size": SIZE})
        await rooms.until(lambda now: now["members"][rooms.channel("cut")] == 2, "/inspect")
        await publish_in_steps(rooms, "cut", reader)
        wake(sleeper)
        assert (await closed(sleeper))[0] == 1013
        await rooms.recorded("left")
    await rooms.recorded("ended", 2)


async def test_one_of_a_hundred_costs_the_others_nothing(rooms: Rooms) -> None:
    # Over HTTP/2 a client in Python takes a millisecond for each message.
    others = 99 if rooms.facts.http_version == "1.1" else 19
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(rooms.join("cut")) for _ in range(others)]
        await asyncio.gather(*map(joined, readers))
        sleeper = await stack.enter_async_context(stalled(rooms, "cut"))
        # What is sent to it alone fills the buffers between us.
        await sleeper.send_json({"do": "join", "kind": "roomy"})
        await rooms.until(lambda now: now["clients"] == 1, "/presence/roomy")
        await rooms.post("/flow/roomy", count=120, size=SIZE)
        await publish_in_steps(rooms, "cut", *readers, count=80, size=1_000)
        now = await rooms.get("/inspect")
        assert now["told"] == ({f"cut {rooms.channel('cut')}": 1} if rooms.facts.send_waits else {})
        wake(sleeper)
        if rooms.facts.send_waits:
            assert (await closed(sleeper))[0] == 1013


# Memory


async def test_what_waits_is_bounded_whatever_is_published(rooms: Rooms) -> None:
    """Four that sleep: 32 MiB come by, of which each may keep 64 KiB."""
    if not rooms.facts.send_waits:
        async with stalled(rooms, "oldest") as sleeper:
            assert await publish_in_steps(rooms, "oldest", count=50) <= BUDGET
            await assert_all_held(rooms, sleeper, "oldest", 50)
        return
    size, count = 16_384, 2_048
    async with AsyncExitStack() as stack:
        sleepers = [await stack.enter_async_context(stalled(rooms, "oldest")) for _ in range(4)]
        before = await rooms.get("/inspect")
        waiting = (await rooms.post("/flow/oldest", count=count, size=size))["waiting"]
        now = await rooms.get("/inspect")
        assert waiting == BUDGET // (size + OVERHEAD) * (size + OVERHEAD) <= BUDGET
        assert now["memory"] - before["memory"] < 16 * 2**20
        assert len(warnings(rooms)) == 4
        for sleeper in sleepers:
            wake(sleeper)
            last = -1
            while last < count - 1:
                following = number(await sleeper.receive())
                assert following > last
                last = following


# Who reads very slowly


async def trickle(client: SocketClient, times: int) -> bytes:
    """Read a byte at a time; return them all."""
    read = b""
    descriptor = client.wire.writer.get_extra_info("socket").fileno()
    for _ in range(times):
        await asyncio.sleep(0.001)
        read += os.read(descriptor, 1)
    return read


async def test_who_reads_a_byte_at_a_time_delays_nobody(rooms: Rooms) -> None:
    # TCP waits with what is left of a window as small as that of the others.
    wide: dict[str, Any] = {"receive_buffer": 65_536}
    async with rooms.member("oldest") as reader, stalled(rooms, "oldest", **wide) as sleeper:
        await publish_in_steps(rooms, "oldest", reader, count=20)
        trickling = asyncio.create_task(trickle(sleeper, 200))
        await publish_in_steps(rooms, "oldest", reader)
        sleeper.wire.reader.feed_data(await trickling)
        wake(sleeper)
        assert await numbers(sleeper, 20) == list(range(20))  # not a byte of it was lost
        received = await numbers(sleeper, 1)
        while received[-1] < MANY - 1:
            received += await numbers(sleeper, 1)
        assert received == sorted(set(received))


# Order, and the end


async def test_what_is_sent_waits_behind_what_is_published(rooms: Rooms) -> None:
    async with stalled(rooms, "roomy") as sleeper:
        await rooms.post("/flow/roomy", count=MANY, size=SIZE)
        await sleeper.send_json({"do": "send", "text": "behind"})
        await rooms.post("/flow/roomy", first=MANY, count=20, size=SIZE)
        if rooms.facts.send_waits:
            assert rooms.records("sent") == []
        wake(sleeper)
        messages = await done(sleeper, "sent")
        place = messages.index("behind")
        del messages[place]
        assert list(map(number, messages)) == list(range(len(messages)))
        assert place >= MANY
        left = MANY + 20 - len(messages)
        assert await numbers(sleeper, left) == list(range(len(messages), MANY + 20))


async def test_what_waits_for_a_member_that_leaves_still_leaves(rooms: Rooms) -> None:
    async with stalled(rooms, "live") as sleeper:
        await sleeper.send_json({"do": "join", "kind": "roomy"})
        await rooms.until(lambda now: now["clients"] == 1, "/presence/roomy")
        await rooms.post("/flow/roomy", count=MANY, size=SIZE)
        await sleeper.send_json({"do": "leave", "kind": "roomy"})
        await rooms.until(lambda now: now["clients"] == 0, "/presence/roomy")
        await rooms.post("/flow/roomy", first=MANY, count=10, size=SIZE)
        wake(sleeper)
        assert await done(sleeper, "joined") == []
        assert list(map(number, await done(sleeper, "left"))) == list(range(MANY))
        assert (await order(sleeper, "publish", data="still there"))[1] == ["still there"]


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_a_connection_is_lost_while_much_waits(rooms: Rooms, way: str) -> None:
    async with rooms.member("roomy") as reader, stalled(rooms, "roomy") as sleeper:
        await publish_in_steps(rooms, "roomy", reader)
        await (sleeper.vanish() if way == "fin" else sleeper.reset())
        await rooms.recorded("left")
        await rooms.recorded("ended")
        await publish_in_steps(rooms, "roomy", reader, count=20)
    assert warnings(rooms) == []


@pytest.mark.parametrize(("do", "code"), [("end", 1000), ("refuse", 4007)])
async def test_a_handler_ends_while_much_waits(rooms: Rooms, do: str, code: int) -> None:
    """The close comes behind what waits.

    Where `send` does not wait, nothing waits with us: the server has it all and the close behind
    it, and how long it keeps them is its own affair. autobahn, under daphne, hangs up a second
    after the close, with all that is not read yet.
    """
    async with stalled(rooms, "roomy") as sleeper:
        await rooms.post("/flow/roomy", count=MANY, size=SIZE)
        await sleeper.send_json({"do": do})
        await rooms.recorded("left")
        wake(sleeper)
        messages, end = await read_all(sleeper)
        received = list(map(number, messages))
        if not rooms.facts.send_waits and end.code == NO_CLOSE:
            assert received == list(range(len(received)))
            return
        assert received == list(range(MANY))
        assert end.code == code


async def test_a_handler_ends_while_much_waits_for_who_never_reads(rooms: Rooms) -> None:
    async with stalled(rooms, "roomy", "/join-impatiently") as sleeper:
        await rooms.post("/flow/roomy", count=MANY, size=SIZE)
        await sleeper.send_json({"do": "end"})
        await rooms.recorded("ended")
        await sleeper.reset()


async def test_history_is_brought_as_fast_as_it_is_read(rooms: Rooms) -> None:
    await rooms.post("/flow/kept", count=MANY, size=SIZE)
    query: dict[str, Any] = {"small": 1, "last": MANY}
    async with (
        rooms.member("kept") as reader,
        rooms.join("kept", receive_buffer=4096, **query) as sleeper,
    ):
        sleep(sleeper)
        await rooms.post("/flow/kept", first=MANY, count=20, size=SIZE)
        assert await numbers(reader, 20) == list(range(MANY, MANY + 20))
        if rooms.facts.send_waits:
            assert len(rooms.records("joined")) == 1
        wake(sleeper)
        before = list(map(number, await joined(sleeper)))
        left = MANY + 20 - len(before)
        assert before + await numbers(sleeper, left) == list(range(MANY + 20))


# Our own server, when a middleware stands in the way of `send`: ASGI's way, with the same outcome


async def test_behind_a_middleware_the_policy_is_the_same(our_rooms: Rooms) -> None:
    rooms = our_rooms
    before = await rooms.get("/inspect")
    async with (
        rooms.member("oldest") as reader,
        stalled(rooms, "oldest", wrap="send") as sleeper,
    ):
        await publish_in_steps(rooms, "oldest", reader)
        dropped = await left_out(rooms, "oldest", "drop_oldest", before)
        wake(sleeper)
        received = await numbers(sleeper, MANY - dropped)
        assert received == [*range(MANY - dropped - FITS), *range(MANY - FITS, MANY)]


async def test_behind_a_middleware_the_cut_is_the_same(our_rooms: Rooms) -> None:
    rooms = our_rooms
    async with rooms.member("cut") as reader, stalled(rooms, "cut", wrap="send") as sleeper:
        await publish_in_steps(rooms, "cut", reader)
        assert_warned_once(rooms, "cut")
        wake(sleeper)
        assert await closed(sleeper) == (1013, "reads too slowly")


@pytest.mark.parametrize("name", ["yaat-asyncio", "yaat-run-uvloop"])
async def test_who_never_reads_does_not_keep_our_server_from_stopping(
    name: str, tmp_path: Path
) -> None:
    with Server(SPECS[name], "apps.channels:app", tmp_path) as server:
        rooms = Rooms(SPECS[name], server)
        async with stalled(rooms, "roomy") as sleeper:
            await rooms.post("/flow/roomy", count=MANY, size=SIZE)
            server.terminate()
            await asyncio.to_thread(server.wait)
            await rooms.recorded("left")
            await rooms.recorded("ended")
            wake(sleeper)
            messages, _ = await read_all(sleeper)
        assert list(map(number, messages)) == list(range(len(messages)))
        assert rooms.complaints() == []
        assert rooms.tracebacks() == 0, rooms.written()
