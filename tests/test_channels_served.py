"""Channels over real sockets: each behaviour is one test, run on every server.

What a member sees, in which order, and how it leaves. That the server's fast way is not taken where
a middleware stands in it is seen here too.
"""

import asyncio
import json
import random
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from apps.channels_peer import Rooms, done, joined, number, numbers, order, sleep, wake
from clients import Client, Refused, SocketClient
from served import closed, read_all
from servers import Server, ServerPool, ServerSpec

Leave = Callable[[Client], Any]

# The ways of a member to leave a room, and how many errors are logged of each.
LEAVING: dict[str, tuple[Leave, int]] = {
    "close": (lambda client: client.hang_up(4321, "done"), 0),
    "fin": (lambda client: client.vanish(), 0),
    "rst": (lambda client: client.reset(), 0),
    "return": (lambda client: client.send_json({"do": "end"}), 0),
    "exception": (lambda client: client.send_json({"do": "fail"}), 1),
    "stray-cancellation": (lambda client: client.send_json({"do": "stray"}), 1),
}

FALSE: tuple[Any, ...] = (0, None, False, [], {})
GARBAGE = (
    *(
        "1",
        "-",
        "12-",
        "-1-abc",
        "0-nosuch",
        "1-2-3",
        "12 -kD3fQ9",
        "\u0661-abc",
        "1e3-x",
        "nonsense",
    ),
    *(f"{2**64}-abc", "9" * 5_000 + "-x", "1-" + "x" * 5_000, "1-\x00", "💥", "null", "[]"),
)


@pytest.fixture
async def rooms(spec: ServerSpec, servers: ServerPool) -> AsyncIterator[Rooms]:
    """The rooms of one test; in the end whoever came has gone, and nobody noticed."""
    rooms = Rooms(spec, servers.get(spec, "apps.channels:app"))
    before = await rooms.get("/inspect")
    yield rooms
    await rooms.assert_nothing_left(before)


def assert_quiet(rooms: Rooms) -> None:
    """Assert that nothing was logged as an error, by whomever."""
    assert rooms.complaints() == []
    assert rooms.tracebacks() == 0, rooms.written()


async def receive_all(clients: list[SocketClient], count: int) -> None:
    """Let all receive the next `count` numbers, from 0."""
    for received in await asyncio.gather(*(numbers(client, count) for client in clients)):
        assert received == list(range(count))


# As it is printed


async def test_the_chat(rooms: Rooms) -> None:
    path = f"/chat/{rooms.key}"
    async with (
        rooms.connect(f"{path}?user=ann") as ann,
        rooms.connect(f"{path}?user=bob") as bob,
    ):
        is_full = lambda now: now["clients"] == 2  # noqa: E731
        who = await rooms.until(is_full, "/presence/room")
        assert who["present"] == [["ann", None], ["bob", None]]
        await ann.send_text("grüß dich")
        await bob.send_text("hello")
        for client in (ann, bob):
            assert {await client.receive() for _ in range(2)} == {"grüß dich", "hello"}
        await ann.close()
        await rooms.until(lambda now: now["present"] == [["bob", None]], "/presence/room")
    await rooms.until(lambda now: now["clients"] == 0, "/presence/room")
    assert_quiet(rooms)


async def test_the_notification(rooms: Rooms) -> None:
    async with rooms.connect("/chat/1?user=ann") as ann:
        await ann.send_text("ready")
        assert await ann.receive() == "ready"
        assert await rooms.post("/notify") is None
        assert await ann.receive() == '{"n":1}'


# What is sent


async def test_text_bytes_and_json_arrive_as_they_were(rooms: Rooms) -> None:
    everything = bytes(range(256))
    value = {"text": "grüß dich \u2028 \x00", "list": [1, -2.5, None, True], "empty": {}}
    async with rooms.join("live") as raw, rooms.join("live", format="positioned") as positioned:
        await asyncio.gather(joined(raw), done(positioned, "joined"))
        await order(raw, "publish", data="zwölf \U0001f600")
        assert (await order(raw, "publish", binary=everything.hex()))[1] == [everything]
        assert json.loads((await order(raw, "publish", data=value))[1][0]) == value
        for false in FALSE:
            assert (await order(raw, "publish", data=false))[1] == [json.dumps(false)]
        _, received = await order(raw, "publish", data="")
        assert received == ([""] if rooms.facts.sends_empty else [])
        seen = [await positioned.receive_json() for _ in range(9)]
    name = rooms.channel("live")
    assert all(each["channel"] == name for each in seen)
    assert seen[0]["data"] == "zwölf \U0001f600"
    assert (seen[1]["data"], seen[1]["encoding"]) == (b64encode(everything).decode(), "base64")
    assert [each["data"] for each in seen[2:]] == [value, *FALSE, ""]
    assert_quiet(rooms)


async def test_raw_members_see_no_positions_and_positioned_ones_see_where_they_stand(
    rooms: Rooms,
) -> None:
    first = await rooms.publish("kept", "before")
    async with rooms.join("kept") as raw, rooms.join("kept", format="positioned") as positioned:
        assert await joined(raw) == []
        stand = json.loads((await joined(positioned))[0])
        assert stand == {
            "channel": rooms.channel("kept"),
            "offset": first["offset"],
            "epoch": first["epoch"],
        }
        await rooms.publish("kept", "live")
        assert await raw.receive() == "live"
        seen = await positioned.receive_json()
        assert seen == {**stand, "offset": first["offset"] + 1, "data": "live"}


async def test_a_megabyte_arrives_and_a_byte_more_does_not(rooms: Rooms) -> None:
    data = "ä" * 524_288
    async with rooms.join("live") as client:
        await joined(client)
        await rooms.publish("live", data)
        assert await client.receive() == data
        with pytest.raises(AssertionError, match=r"HTTP/1\.1 500"):
            await rooms.publish("live", data + "x")
        await rooms.publish("live", "still there")
        assert await client.receive() == "still there"


async def test_the_sender_may_be_skipped(rooms: Rooms) -> None:
    async with rooms.join("kept") as sender, rooms.join("kept") as other:
        await asyncio.gather(joined(sender), joined(other))
        assert await order(sender, "publish", data="one", skip=True) == ([1, False], [])
        assert await order(sender, "publish", data="two") == ([2, False], ["two"])
        assert [await other.receive(), await other.receive()] == ["one", "two"]
    assert await rooms.get("/history/kept") == [[1, "one"], [2, "two"]]


async def test_once_is_once(rooms: Rooms) -> None:
    async with rooms.join("kept") as client:
        await joined(client)
        answers = [await rooms.publish("kept", "paid", once="order 7") for _ in range(3)]
        assert [answer["duplicate"] for answer in answers] == [False, True, True]
        assert [answer["offset"] for answer in answers] == [1, 1, 1]
        await rooms.publish("kept", "other", once="order 8")
        assert [await client.receive(), await client.receive()] == ["paid", "other"]


# What was before


@pytest.mark.parametrize(("last", "seen"), [(0, 0), (3, 3), (10, 10), (11, 10), (1000, 10)])
async def test_the_last_ones_come_first(rooms: Rooms, last: int, seen: int) -> None:
    await rooms.post("/flow/kept", count=10)
    async with rooms.join("kept", last=last) as client:
        assert list(map(number, await joined(client))) == list(range(10 - seen, 10))
        await rooms.publish("kept", "10 live")
        assert number(await client.receive()) == 10


async def test_who_resumes_gets_what_it_missed(rooms: Rooms) -> None:
    position = (await rooms.publish("kept", "seen"))["position"]
    await rooms.post("/flow/kept", count=5)
    async with rooms.join("kept", since=position) as client:
        assert list(map(number, await joined(client))) == [0, 1, 2, 3, 4]
        await rooms.publish("kept", "5")
        assert await client.receive() == "5"
    top = (await rooms.publish("kept", "6"))["position"]
    async with rooms.join("kept", since=top, last=3) as client:
        assert await joined(client) == []


async def test_an_empty_position_is_none(rooms: Rooms) -> None:
    await rooms.post("/flow/kept", count=3)
    async with rooms.join("kept", since="", last=1) as client:
        assert list(map(number, await joined(client))) == [2]


async def positions(client: Client, count: int) -> list[tuple[int, str, int]]:
    """Receive so many publications with their positions: offset, epoch, number."""
    seen: list[tuple[int, str, int]] = []
    while len(seen) < count:
        told = await client.receive_json()
        if "data" in told:
            seen.append((told["offset"], told["epoch"], number(told["data"])))
    return seen


async def test_who_is_cut_twenty_times_sees_each_publication_once(rooms: Rooms) -> None:
    seen: list[tuple[int, str, int]] = []
    lengths = random.Random(5)
    flow = None
    while len(seen) < 500:
        since = f"{seen[-1][0]}-{seen[-1][1]}" if seen else ""
        async with rooms.join("kept", since=since, format="positioned", silent=1) as client:
            if flow is None:
                await client.receive_json()  # where it stands
                flow = asyncio.create_task(rooms.post("/flow/kept", count=500, pause=0.001))
            left = 500 - len(seen)
            seen += await positions(client, min(left, lengths.randint(5, 45)))
            await client.reset()
    assert flow is not None
    await flow
    assert [offset for offset, _, _ in seen] == list(range(1, 501))
    assert [each for _, _, each in seen] == list(range(500))
    assert len({epoch for _, epoch, _ in seen}) == 1
    assert_quiet(rooms)


async def test_who_joins_while_others_publish_has_no_gap_and_no_double(rooms: Rooms) -> None:
    visits: list[asyncio.Task[None]] = []

    async def visit(last: int) -> None:
        async with rooms.join("kept", last=last, silent=1) as client:
            seen = await numbers(client, 60)
            assert seen == list(range(seen[0], seen[0] + 60))

    first = 0
    while not (visits and all(each.done() for each in visits)):
        if len(visits) < 20:
            visits += [asyncio.create_task(visit(last)) for last in (0, 1, 30, 60)]
        await rooms.post("/flow/kept", first=first, count=20, pause=0.0005)
        first += 20
    await asyncio.gather(*visits)
    assert_quiet(rooms)


# A position that is lost


async def lose_a_position(rooms: Rooms) -> str:
    """Publish more than `short` keeps; return a position that is out of its reach."""
    position = str((await rooms.publish("short", "seen"))["position"])
    await rooms.post("/flow/short", count=10)
    return position


async def test_a_lost_position_closes_with_4010(rooms: Rooms) -> None:
    position = await lose_a_position(rooms)
    async with rooms.join("short", since=position) as client:
        messages, end = await read_all(client)
    assert messages == []
    assert end.code == 4010
    assert end.reason == ("position lost" if rooms.facts.sends_reason else "")
    await rooms.recorded("ended")
    assert_quiet(rooms)


@pytest.mark.parametrize("on_lost", ["sync", "async"])
async def test_a_lost_position_is_told_and_then_it_goes_on(rooms: Rooms, on_lost: str) -> None:
    position = await lose_a_position(rooms)
    async with rooms.join("short", since=position, last=2, on_lost=on_lost) as client:
        assert list(map(number, await joined(client))) == [8, 9]
        lost = await rooms.recorded("lost")
        assert lost["code"] == 4010
        await rooms.publish("short", "10")
        assert await client.receive() == "10"
    assert len(rooms.records("lost")) == 1
    assert_quiet(rooms)


async def test_the_oldest_that_is_kept_is_within_reach(rooms: Rooms) -> None:
    epoch = (await rooms.publish("short", "0"))["epoch"]
    await rooms.post("/flow/short", first=1, count=9)
    async with rooms.join("short", since=f"5-{epoch}") as client:
        assert list(map(number, await joined(client))) == [5, 6, 7, 8, 9]
    async with rooms.join("short", since=f"4-{epoch}") as client:
        assert (await closed(client))[0] == 4010
    async with rooms.join("short", since=f"11-{epoch}") as client:  # nobody has been there yet
        assert (await closed(client))[0] == 4010
    async with rooms.join("short", since="10-another") as client:
        assert (await closed(client))[0] == 4010


async def test_a_garbage_position_is_a_lost_one(rooms: Rooms) -> None:
    await rooms.publish("kept", "one")
    for garbage in GARBAGE:
        async with rooms.join("kept", since=garbage) as client:
            assert (await closed(client))[0] == 4010, garbage
    async with rooms.join("kept", since=GARBAGE[0], last=1, on_lost="sync") as client:
        assert await joined(client) == ["one"]
    assert_quiet(rooms)


# Names


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128, "x" * 5_000])
async def test_a_name_that_is_too_long_closes_with_1008(rooms: Rooms, name: str) -> None:
    async with rooms.connect(f"/any/{quote(name)}") as client:
        assert (await closed(client))[0] == rooms.facts.close_code(1008)
    await rooms.recorded("ended")
    assert_quiet(rooms)


async def test_names_of_all_kinds_are_different_rooms(rooms: Rooms) -> None:
    names = ["x" * 255, "a", "A", "a b", "a.b", "*", ">", "{x}", "'\";--", "é", "e\u0301", "💥"]
    names += ["a/b", "line\r\nline", "nul\x00", "%41", "tab\t", "room:a"]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(rooms.connect(f"/any?name={quote(each, safe='')}"))
            for each in names
        ]
        for name, client in zip(names, clients, strict=True):
            await client.send_text(f"in {name}")
        for name, client in zip(names, clients, strict=True):
            assert await client.receive() == f"in {name}"
            await client.send_text("and nothing else")
            assert await client.receive() == "and nothing else"
    assert_quiet(rooms)


async def test_nobody_joins_before_the_accept(rooms: Rooms) -> None:
    with pytest.raises(Refused):
        async with rooms.connect("/join-before-accept/room"):
            pass
    await rooms.recorded("ended")
    (log,) = rooms.complaints()
    assert "StateError" in log["error"]
    assert rooms.records("joined") == []


async def test_a_second_membership_is_a_mistake_and_the_first_one_ends_as_it_should(
    rooms: Rooms,
) -> None:
    async with rooms.join("room", user="ann") as client:
        await joined(client)
        await client.send_json({"do": "join", "kind": "room"})
        assert (await closed(client))[0] == 1011
    await rooms.recorded("ended")
    (log,) = rooms.complaints()
    assert "UsageError" in log["error"]
    assert (await rooms.get("/presence/room"))["clients"] == 0


# Who is there


def join_event(user: str, info: Any = None) -> list[Any]:
    return ["join", user, info]


def leave_event(user: str, info: Any = None) -> list[Any]:
    return ["leave", user, info]


async def presence_event(client: Client) -> list[Any]:
    """Receive what a positioned member is told of who comes and goes."""
    told = await client.receive_json()
    (kind,) = set(told) - {"channel"}
    return [kind, told[kind]["user"], told[kind]["info"]]


async def test_presence_tells_who_and_how_many(rooms: Rooms) -> None:
    async with (
        rooms.join("room", user="ann", info='{"colour":"red"}') as first,
        rooms.join("room", user="ann") as second,
        rooms.join("room") as third,
    ):
        for client in (first, second, third):
            await joined(client)
        assert await rooms.get("/presence/room") == {
            "present": [["ann", None], ["ann", {"colour": "red"}], [None, None]],
            "clients": 3,
            "users": 1,
        }


async def test_who_comes_and_goes_is_told_to_positioned_members_and_watchers_alone(
    rooms: Rooms,
) -> None:
    async with AsyncExitStack() as stack:
        raw = await stack.enter_async_context(rooms.member("room"))
        eve = rooms.member("room", format="positioned", user="eve")
        positioned = await stack.enter_async_context(eve)
        watcher = await stack.enter_async_context(rooms.connect("/watch/room"))
        await rooms.until(lambda now: now["listeners"] == 1, "/inspect")
        async with rooms.member("room", user="ann", info="[1]"):
            assert await presence_event(positioned) == join_event("ann", [1])
            assert await watcher.receive_json() == join_event("ann", [1])
        assert await presence_event(positioned) == leave_event("ann", [1])
        assert await watcher.receive_json() == leave_event("ann", [1])
        await rooms.publish("room", "only this")
        assert await raw.receive() == "only this"
    assert_quiet(rooms)


@pytest.mark.parametrize("way", LEAVING)
async def test_a_member_leaves_whatever_happens(rooms: Rooms, way: str) -> None:
    leave, errors = LEAVING[way]
    async with rooms.join("room", format="positioned", user="eve") as eve:
        await joined(eve)
        async with rooms.join("room", user="ann") as ann:
            await joined(ann)
            assert await presence_event(eve) == join_event("ann")
            await leave(ann)
            assert await presence_event(eve) == leave_event("ann")
        await rooms.recorded("left")
        assert (await rooms.get("/presence/room"))["present"] == [["eve", None]]
        await rooms.publish("room", "who is there?")
        assert (await eve.receive_json())["data"] == "who is there?"
    await rooms.recorded("ended", 2)
    assert len(rooms.complaints()) == errors


async def test_a_member_whose_task_is_cancelled_leaves(rooms: Rooms) -> None:
    async with rooms.join("room", format="positioned", user="eve") as eve:
        await joined(eve)
        async with rooms.join("room", "/join-in-a-child", user="ann") as ann:
            await joined(ann)
            assert await presence_event(eve) == join_event("ann")
            assert await rooms.post("/cancel") is True
            assert await presence_event(eve) == leave_event("ann")
            assert (await closed(ann))[0] == 1000
    assert_quiet(rooms)


async def test_members_leave_when_the_server_stops(spec: ServerSpec, tmp_path: Path) -> None:
    with Server(spec, "apps.channels:app", tmp_path) as server:
        rooms = Rooms(spec, server)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(rooms.join("room")) for _ in range(5)]
            for client in clients:
                await joined(client)
            server.terminate()
            codes = {(await closed(client))[0] for client in clients}
            assert codes == {spec.facts.code_on_stop}
        await asyncio.to_thread(server.wait)
        if spec.facts.ends_handlers:
            await rooms.recorded("left", 5)
        assert_quiet(rooms)
        assert "was destroyed" not in rooms.written()


# Several rooms, several doors


async def test_one_socket_in_several_rooms(rooms: Rooms) -> None:
    async with rooms.join("live") as client, rooms.join("kept") as other:
        await joined(client)
        await joined(other)
        for kind in ("kept", "room"):
            assert await order(client, "join", kind=kind) == ("joined", [])
        for kind in ("kept", "live", "room"):
            await rooms.publish(kind, f"in {kind}")
        assert [await client.receive() for _ in range(3)] == ["in kept", "in live", "in room"]
        assert await order(client, "leave", kind="kept") == ("left", [])
        for kind in ("kept", "live", "room"):
            await rooms.publish(kind, f"again in {kind}")
        assert [await client.receive() for _ in range(2)] == ["again in live", "again in room"]
        assert [await other.receive() for _ in range(2)] == ["in kept", "again in kept"]
        assert (await rooms.get("/presence/room"))["clients"] == 1
        await client.reset()
        await rooms.until(lambda now: now["clients"] == 0, "/presence/room")
    assert_quiet(rooms)


async def test_a_subscription_without_membership(rooms: Rooms) -> None:
    position = (await rooms.publish("kept", "one"))["position"]
    await rooms.publish("kept", {"two": 2})
    async with (
        rooms.connect(f"/subscribe/kept?since={position}") as since,
        rooms.connect("/subscribe/kept?last=2") as last,
    ):
        assert await since.receive_json() == [2, {"two": 2}]
        assert [await last.receive_json(), await last.receive_json()] == [
            [1, "one"],
            [2, {"two": 2}],
        ]
        await rooms.post("/publish/kept", {"binary": "ff00"})
        assert await since.receive_json() == await last.receive_json() == [3, "ff00"]
        await since.reset()
        await rooms.recorded("unsubscribed")
        await rooms.publish("kept", "four")
        assert await last.receive_json() == [4, "four"]
    await rooms.recorded("unsubscribed", 2)
    assert_quiet(rooms)


# Order


@pytest.mark.parametrize("wrap", ["", "send"])
async def test_what_is_sent_and_what_is_published_leaves_in_the_order_of_the_calls(
    rooms: Rooms, wrap: str
) -> None:
    async with rooms.join("live", wrap=wrap) as client:
        await client.receive()
        await client.send_json({"do": "mix", "count": 150, "size": 500})
        assert await numbers(client, 600) == list(range(600))
    assert_quiet(rooms)


@pytest.mark.parametrize("wrap", ["", "send"])
async def test_that_order_holds_for_who_does_not_read_for_a_while(rooms: Rooms, wrap: str) -> None:
    query: dict[str, Any] = {"wrap": wrap, "small": 1}
    async with rooms.join("roomy", receive_buffer=4096, **query) as client:
        await client.receive()
        sleep(client)
        await client.send_json({"do": "mix", "count": 100, "size": 8_000})
        await rooms.post("/flow/roomy", first=1_000_000, count=50, size=8_000)
        wake(client)
        received = await numbers(client, 450)
    assert [each for each in received if each < 1_000_000] == list(range(400))
    assert [each for each in received if each >= 1_000_000] == list(range(1_000_000, 1_000_050))
    assert_quiet(rooms)


# Middleware


async def test_a_middleware_around_send_sees_every_publication(rooms: Rooms) -> None:
    await rooms.post("/flow/kept", count=3)
    async with rooms.join("kept", wrap="send", last=3) as client, rooms.join("kept") as other:
        await joined(other)
        heads = [str(await client.receive()).split()[0] for _ in range(3)]
        assert heads == ["!0", "!1", "!2"]
        assert await client.receive() == '!{"done":"joined"}'
        await rooms.post("/flow/kept", first=3, count=100)
        heads = [str(await client.receive()).split()[0] for _ in range(100)]
        assert heads == [f"!{each}" for each in range(3, 103)]
        await rooms.post("/publish/kept", {"binary": "ff"})
        assert await client.receive() == b"!\xff"
        assert await numbers(other, 100) == list(range(3, 103))
        await client.close()
        assert (await rooms.recorded("counted"))["count"] == 3 + 1 + 100 + 1
    assert_quiet(rooms)


async def test_a_middleware_around_receive_sees_every_order(rooms: Rooms) -> None:
    async with rooms.join("kept", wrap="receive") as client:
        await joined(client)
        for each in range(20):
            answer, received = await order(client, "publish", data=f"{each}")
            assert (answer, received) == ([each + 1, False], [f"{each}"])
        await rooms.post("/flow/kept", first=20, count=50)
        assert await numbers(client, 50) == list(range(20, 70))
        await client.close()
        # The connect, the orders and the disconnect.
        assert (await rooms.recorded("counted"))["count"] == 22
    assert_quiet(rooms)


async def test_a_loss_is_noticed_behind_a_middleware_around_receive(rooms: Rooms) -> None:
    async with rooms.join("room", wrap="receive", user="ann") as client:
        await joined(client)
        await client.reset()
        await rooms.until(lambda now: now["clients"] == 0, "/presence/room")
    assert_quiet(rooms)


# Many


async def test_who_leaves_in_the_middle_of_a_fan_out_takes_nobody_along(rooms: Rooms) -> None:
    ways = [LEAVING[way][0] for way in ("close", "fin", "rst")]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(rooms.join("kept")) for _ in range(40)]
        await asyncio.gather(*map(joined, clients))
        flow = asyncio.create_task(rooms.post("/flow/kept", count=200, size=1_000, pause=0.001))
        leavers, stayers = clients[::2], clients[1::2]

        async def leave(place: int, client: SocketClient) -> None:
            await numbers(client, place * 5)
            await ways[place % 3](client)

        await asyncio.gather(
            *(leave(place, client) for place, client in enumerate(leavers)),
            receive_all(stayers, 200),
        )
        await flow
    assert_quiet(rooms)


async def test_a_thousand_joins_and_leaves_at_once(rooms: Rooms) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(rooms.join("room")) for _ in range(20)]
        await asyncio.gather(*map(joined, clients))
        flow = asyncio.create_task(rooms.post("/flow/fleeting0", count=100))
        for client in clients:
            await client.send_json({"do": "come_and_go", "rounds": 10})
        ends = [asyncio.create_task(done(client, "gone")) for client in clients]
        for gone in await asyncio.gather(*ends):
            seen = list(map(number, gone))
            assert seen == sorted(set(seen))
        await flow
        # Whoever left has left; whoever is here still hears.
        await rooms.publish("fleeting0", "nobody")
        await rooms.publish("room", "everybody")
        assert {await client.receive() for client in clients} == {"everybody"}
        inspected = await rooms.get("/inspect")
        assert inspected["members"].get(rooms.channel("fleeting0"), 0) == 0
    assert_quiet(rooms)


async def test_a_member_may_leave_while_it_joins(rooms: Rooms) -> None:
    await rooms.post("/flow/kept", count=500, size=100)

    async def glance() -> None:
        async with rooms.join("kept", last=500, silent=1) as client:
            await client.reset()

    await asyncio.gather(*(glance() for _ in range(20)))
    await rooms.recorded("ended", 20)
    assert_quiet(rooms)
