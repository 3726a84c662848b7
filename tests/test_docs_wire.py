"""What the page on the extension `yaat.wire` says: its programs on real servers, its promises."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import starlette.websockets
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

import yaat
from clients import Closed, Refused, SocketClient, connect
from documents import DOCS, code, tables, write
from running import until
from servers import SPECS, Server, ServerSpec
from yaat.server.wire import Wire
from yaat.types import Message, Send

PAGE = DOCS / "topics" / "wire.md"
OURS = tuple(name for name in SPECS if name.startswith("yaat-"))
# daphne keeps what a client does not read, so that nobody ever waits for it.
NOBODY: Any = None
WAITING = (*OURS, "uvicorn-sansio", "hypercorn-h1")

# What the page's programs do not show: which of the ways is taken.
ASKED = """
from wall import app as wall, members
import json

async def app(scope, receive, send):
    if scope["type"] == "websocket" and scope["path"] == "/kinds":
        await receive()
        await send({"type": "websocket.accept"})
        kinds = sorted(type(each).__name__ for each in members)
        await send({"type": "websocket.send", "text": json.dumps(kinds)})
        await receive()
    elif scope["type"] == "websocket" and scope["path"] == "/altered":
        async def altering(event):
            if event["type"] == "websocket.send":
                event = {**event, "text": event["text"].upper()}
            await send(event)
        await wall(scope, receive, altering)
    else:
        await wall(scope, receive, send)
"""


@asynccontextmanager
async def wall(spec: ServerSpec, directory: Path) -> AsyncIterator[Server]:
    """Serve the page's program."""
    write(PAGE, directory)
    (directory / "asked.py").write_text(ASKED)
    with Server(spec, "asked:app", directory, {"PYTHONPATH": str(directory)}) as server:
        yield server


def version(spec: ServerSpec) -> str:
    return spec.facts.http_version


async def kinds(server: Server) -> Any:
    async with connect(server.url("/kinds"), http_version=version(server.spec)) as client:
        return await client.receive_json()


@asynccontextmanager
async def members(server: Server, count: int) -> AsyncIterator[list[SocketClient]]:
    """Open connections; each is a member when its own message has come back."""
    async with AsyncExitStack() as stack:
        clients: list[SocketClient] = []
        for number in range(count):
            opening = connect(server.url("/"), http_version=version(server.spec))
            clients.append(await stack.enter_async_context(opening))
            await clients[-1].send_text(f"{number} is here")
            for each in clients:
                assert await each.receive() == f"{number} is here"
        yield clients


@pytest.mark.parametrize("name", SPECS)
async def test_what_one_sends_all_receive(name: str, tmp_path: Path) -> None:
    async with wall(SPECS[name], tmp_path) as server:
        async with members(server, 3) as clients:
            said: list[str | bytes] = ["a text", b"bytes", "x" * 5_000, "€" * 2_000]
            for number, message in enumerate(said * 3):
                send = clients[number % 3]
                await (
                    send.send_text(message)
                    if isinstance(message, str)
                    else send.send_bytes(message)
                )
                for each in clients:
                    assert await each.receive() == message
            kind = "Wired" if name in OURS else "Queued"
            assert await kinds(server) == [kind] * 3
            await clients[0].close()
            await clients[1].send_text("one is gone")
            assert await clients[2].receive() == "one is gone"
            assert await kinds(server) == [kind] * 2
        assert "Traceback" not in server.written_since()


@pytest.mark.parametrize("name", WAITING)
async def test_who_reads_slowly_delays_nobody_and_misses_the_middle(
    name: str, tmp_path: Path
) -> None:
    async with wall(SPECS[name], tmp_path) as server:
        slow_one = connect(server.url("/"), receive_buffer=4_096, timeout=20)
        async with connect(server.url("/"), timeout=20) as quick, slow_one as slow:
            await slow.send_text("here")
            assert await slow.receive() == await quick.receive() == "here"
            for number in range(400):
                await quick.send_bytes(number.to_bytes(65_536))
                assert await quick.receive() == number.to_bytes(65_536)
            received = [-1]
            while received[-1] < 399:
                message = await slow.receive()
                assert isinstance(message, bytes)
                received.append(int.from_bytes(message))
    assert received == sorted(set(received))
    assert received[-64:] == list(range(400 - 64, 400))
    assert 64 < len(received) < 400


@pytest.mark.parametrize("name", ["yaat-run-uvloop", "yaat-asyncio"])
async def test_middleware_that_alters_messages_sees_them_all(name: str, tmp_path: Path) -> None:
    async with (
        wall(SPECS[name], tmp_path) as server,
        connect(server.url("/altered")) as altered,
        connect(server.url("/")) as plain,
    ):
        for client, told in ((altered, "HELLO"), (plain, "hello")):
            await client.send_text("hello")
            assert await altered.receive() == "HELLO"
            assert told == "HELLO" or await plain.receive() == told
        assert await kinds(server) == ["Queued", "Wired"]


@pytest.mark.parametrize("name", ["yaat-run-uvloop", "yaat-asyncio"])
async def test_a_log_of_every_event_wraps_send(name: str, tmp_path: Path) -> None:
    spec = SPECS[name].but("--log-level", "trace")
    async with wall(spec, tmp_path) as server, members(server, 1):
        assert await kinds(server) == ["Queued"]


# The entries

PROMISES = """
import asyncio, json
from contextlib import suppress
from yaat.frames import Frame

told = []
ACCEPT = {"type": "websocket.accept"}
BIG = Frame("bytes", bytes(65_536))


def text(number):
    return {"type": "websocket.send", "text": str(number)}


async def order(wire, receive, send):
    told.append(wire["write"](Frame("text", "early")))
    await send(ACCEPT)
    for number in range(0, 60, 3):
        assert wire["write"](Frame("text", str(number)))
        await send(text(number + 1))
        assert wire["write"](Frame("text", str(number + 2)))
    assert wire["buffered"]() > 0
    await send({"type": "websocket.close", "code": 4001})
    told.append(wire["write"](Frame("text", "late")))


async def room(wire, receive, send):
    wire["on_room"](lambda: told.append("accepted"))
    await asyncio.sleep(0.01)
    assert not told
    await send(ACCEPT)
    assert not told
    room = asyncio.Event()
    wire["on_room"](room.set)
    assert not room.is_set()
    await room.wait()
    count = 0
    while wire["write"](BIG):
        count += 1
    told.append(wire["buffered"]())
    room.clear()
    wire["on_room"](room.set)
    first = asyncio.create_task(send(text("waited")))
    told.append(count)
    await room.wait()
    assert first.done()
    assert wire["buffered"]() < 65_536 / 4
    assert wire["write"](Frame("text", "last"))
    with suppress(OSError):
        await receive()


async def loss(wire, receive, send):
    wire["on_loss"](lambda *end: told.append(["first", *end]))
    wire["on_loss"](lambda *end: told.append(["second", *end]))
    wire["on_room"](lambda: told.append("room"))
    await send(ACCEPT)
    lost = asyncio.Event()
    wire["on_loss"](lambda *end: lost.set())
    await lost.wait()
    wire["on_room"](lambda: told.append("never"))
    late = asyncio.Event()
    wire["on_loss"](lambda *end: late.set())
    assert not late.is_set()
    while (event := await receive())["type"] != "websocket.disconnect":
        told.append(event.get("text", event["type"]))
    await late.wait()
    told.append(["told", event["code"], event["reason"]])


async def refusal(wire, receive, send):
    wire["on_loss"](lambda *end: told.append(list(end)))
    await send({"type": "websocket.close"})


async def rule(wire, receive, send):
    told.append([send == wire["send"], send is wire["send"], wire["version"], list(wire)])
    await send(ACCEPT)


async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    if scope["path"] == "/told":
        await receive()
        await send(ACCEPT)
        await send(text(json.dumps(told)))
        await receive()
    else:
        told.clear()
        wire = scope["extensions"]["yaat.wire"]
        if scope["path"] != "/loss":
            await receive()
        await globals()[scope["path"][1:]](wire, receive, send)
"""


@pytest.fixture(params=["yaat-run-uvloop", "yaat-asyncio"])
def promises(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server whose application tries the entries, one on each path."""
    (tmp_path / "promises.py").write_text(PROMISES)
    path = {"PYTHONPATH": str(tmp_path)}
    with Server(SPECS[request.param], "promises:app", tmp_path, path) as server:
        yield server
        assert "Traceback" not in server.written_since()


async def told(server: Server, count: int) -> Any:
    """What the application has noted, when it is so much."""

    async def all_of_it() -> Any:
        async with connect(server.url("/told")) as client:
            said = await client.receive_json()
        return said if len(said) >= count else None

    return await until(all_of_it)


def test_table_of_entries() -> None:
    [table] = tables(PAGE)
    assert [code(row[0]).partition("(")[0] for row in table] == list(Wire(NOBODY))


async def test_the_rule(promises: Server) -> None:
    async with connect(promises.url("/rule")) as client:
        with pytest.raises(Closed):
            await client.receive()
    [table] = tables(PAGE)
    names = [code(row[0]).partition("(")[0] for row in table]
    assert await told(promises, 1) == [[True, False, 1, names]]


async def test_what_is_written_and_what_is_sent_leave_in_order(promises: Server) -> None:
    async with connect(promises.url("/order")) as client:
        assert [await client.receive() for _ in range(60)] == [str(each) for each in range(60)]
        with pytest.raises(Closed) as end:
            await client.receive()
        assert end.value.code == 4001
    assert await told(promises, 2) == [False, False]


async def test_the_bound_and_the_room_below_it(promises: Server) -> None:
    async with connect(promises.url("/room"), receive_buffer=4_096, timeout=20) as client:
        accepted, buffered, count = await told(promises, 3)
        assert accepted == "accepted"
        assert 65_536 < buffered <= 65_536 + 65_536 + 16
        for _ in range(count):
            assert await client.receive() == bytes(65_536)
        assert await client.receive() == "waited"
        assert await client.receive() == "last"
    assert len(await told(promises, 3)) == 3


async def test_a_loss_is_told_before_what_came_in_before_it(promises: Server) -> None:
    async with connect(promises.url("/loss")) as client:
        for number in range(40):  # more than uvicorn's queue of 32
            await client.send_text(str(number))
        await client.close(4000, "bye")
    end = [4000, "bye"]
    assert await told(promises, 45) == [
        "room",
        ["first", *end],
        ["second", *end],
        "websocket.connect",
        *map(str, range(40)),
        ["told", *end],
    ]


async def test_the_end_of_a_connection_that_was_never_accepted(promises: Server) -> None:
    with pytest.raises(Refused):
        async with connect(promises.url("/refusal")):
            pass
    assert await told(promises, 1) == [[1006, ""]]


async def test_starlette_wraps_send() -> None:
    seen: list[Send] = []

    async def handler(websocket: starlette.websockets.WebSocket) -> None:
        seen.append(websocket._send)
        await websocket.close()

    async def yaats(websocket: yaat.WebSocket) -> None:
        seen.append(websocket._send)
        await websocket.close()

    async def send(_: Message) -> None: ...

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": []}
    await Starlette(routes=[WebSocketRoute("/", handler)])(dict(scope), receive, send)
    app = yaat.Yaat()
    app.add_websocket_route("/", yaats)
    await app(dict(scope), receive, send)
    assert [each == send for each in seen] == [False, True]
