"""Channels inside FastAPI, Starlette and another Yaat, on every server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from apps.channels_peer import Rooms
from clients import Client, Refused
from servers import ServerPool, ServerSpec


@pytest.fixture
async def rooms(spec: ServerSpec, servers: ServerPool) -> AsyncIterator[Rooms]:
    rooms = Rooms(spec, servers.get(spec, "apps.channels_fastapi:app"), "channels_fastapi")
    yield rooms
    assert rooms.complaints() == []
    assert rooms.tracebacks() == 0, rooms.written()


@asynccontextmanager
async def join(rooms: Rooms, path: str) -> AsyncIterator[Client]:
    """Be a member from the beginning of the block; what came until then is read."""
    async with rooms.connect(path) as client:
        while await client.receive() != "joined":
            pass
        yield client


async def test_a_route_of_fastapi_publishes_to_the_members_of_a_mounted_yaat(rooms: Rooms) -> None:
    # That of FastAPI; what is mounted never has one.
    assert await rooms.get("/life") == (["began"] if rooms.facts.runs_lifespan else [])
    async with join(rooms, "/live/join") as ann, join(rooms, "/live/join") as bob:
        assert await rooms.get("/who") == 2
        assert await rooms.post("/notify", {"n": 1}) == [1]
        assert await rooms.post("/notify-later", "later") == []
        for client in (ann, bob):
            assert [await client.receive() for _ in range(2)] == ['{"n":1}', "later"]
        await ann.send_text("hello")
        assert await ann.receive() == await bob.receive() == "hello"
        assert await rooms.post("/live/publish", "within") == [4]
        assert await ann.receive() == await bob.receive() == "within"
        await ann.reset()
        await rooms.until(lambda count: count == 1, "/who")
    await rooms.until(lambda count: count == 0, "/who")
    assert await rooms.get("/history") == [{"n": 1}, "later", "hello", "within"]


async def test_who_comes_later_is_given_the_last_ones(rooms: Rooms) -> None:
    for number in range(5):
        await rooms.post("/notify", f"{number}")
    async with rooms.connect("/live/join?last=3") as client:
        assert [await client.receive() for _ in range(4)] == ["2", "3", "4", "joined"]


async def test_a_mounted_yaat_without_options_works(rooms: Rooms) -> None:
    async with join(rooms, "/without-options/join") as client:
        assert await rooms.post("/without-options/publish", "hello") == [0]
        assert await client.receive() == "hello"


async def test_without_a_broker_the_channels_are_those_of_the_yaat_around_it(rooms: Rooms) -> None:
    async with (
        join(rooms, "/outer/join") as outside,
        join(rooms, "/outer/inner/join") as inside,
    ):
        ways = ("/outer/publish", "/outer/inner/publish", "/notify-inner")
        for place, way in enumerate(ways, 1):
            assert await rooms.post(way, f"by {way}") == [place]
            assert await outside.receive() == await inside.receive() == f"by {way}"
        await outside.send_text("from outside")
        await inside.send_text("from inside")
        seen = [{await client.receive() for _ in range(2)} for client in (outside, inside)]
        assert seen == [{"from outside", "from inside"}] * 2


async def test_a_broker_of_its_own_is_its_own(rooms: Rooms) -> None:
    async with join(rooms, "/outer/join") as outside, join(rooms, "/outer/own/join") as inside:
        assert await rooms.post("/outer/publish", "outer") == [1]
        assert await rooms.post("/outer/own/publish", "own") == [1]
        assert await outside.receive() == "outer"
        assert await inside.receive() == "own"


async def test_patterns_without_a_broker_where_another_has_the_channels_are_a_mistake(
    rooms: Rooms,
) -> None:
    with pytest.raises(Refused):
        async with rooms.connect("/outer/wrong/join"):
            pytest.fail("it was accepted")
    await rooms.recorded("ended")
    (escaped,) = rooms.records("escaped")
    assert "UsageError" in escaped["error"]
    assert "give the patterns there" in escaped["error"]
    async with join(rooms, "/outer/join"):  # by now the server has said what it had to say
        rooms.forget()


async def test_within_starlette(rooms: Rooms) -> None:
    async with join(rooms, "/starlette/live/join") as client:
        assert await rooms.post("/starlette/live/publish", [1, None]) == [1]
        assert await client.receive() == "[1,null]"


async def test_an_endpoint_as_a_route_of_fastapi_joins(rooms: Rooms) -> None:
    async with join(rooms, "/endpoint") as client, join(rooms, "/live/join") as other:
        await client.send_text("hello")
        assert await client.receive() == await other.receive() == "hello"
        await rooms.post("/notify", "notified")
        assert await client.receive() == await other.receive() == "notified"


async def test_a_websocket_of_starlette_is_told_what_can_join(rooms: Rooms) -> None:
    async with rooms.connect("/native") as client:
        assert await client.receive() == "still here"
    record = await rooms.recorded("join")
    assert {"UsageError", "TypeError"} & set(record["kinds"]), record
    assert "yaat" in record["error"].lower()


async def test_many_in_rooms_of_three_applications(rooms: Rooms) -> None:
    paths = ("/live", "/outer", "/starlette/live")

    async def visit(path: str) -> None:
        async with join(rooms, f"{path}/join") as client:
            while await client.receive() != "that was all":
                pass

    visits = [asyncio.create_task(visit(path)) for path in paths for _ in range(10)]
    for path in paths:
        await rooms.post(f"{path}/publish", "not that")
    while not all(each.done() for each in visits):
        for path in paths:
            await rooms.post(f"{path}/publish", "that was all")
    await asyncio.gather(*visits)
