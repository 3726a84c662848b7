"""Applications that use `yaat.wire`: bare ones by themselves, and Yaat's handlers over it.

`bare` asks the server for its ways. `app` is a Yaat of which a test may take the extension away;
`altered` is one behind a middleware that changes every message.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from apps.reporting import KEY, Reporting, report
from yaat.app import Yaat
from yaat.exceptions import WebSocketDisconnect
from yaat.frames import Frame
from yaat.middleware import Middleware
from yaat.types import ASGIApp, Message, Receive, Scope, Send
from yaat.websockets import WebSocket

Wire = Mapping[str, Any]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

ACCEPT: Message = {"type": "websocket.accept"}
HANDLERS: dict[str, Handler] = {}
GATES: dict[str | None, asyncio.Event] = {}
ROOMS: dict[str | None, list[Wire]] = {}


def at(path: str) -> Callable[[Handler], Handler]:
    """Serve `path` with the decorated handler, once the handshake has come."""

    def decorate(handler: Handler) -> Handler:
        HANDLERS[path] = handler
        return handler

    return decorate


def gate() -> asyncio.Event:
    """What a handler of this test waits at until another connection opens it."""
    return GATES.setdefault(KEY.get(), asyncio.Event())


def wire_of(scope: Scope) -> Wire:
    wire: Wire = scope["extensions"]["yaat.wire"]
    return wire


async def lifespan(receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    handler = HANDLERS[scope["path"]]
    await receive()
    await send(ACCEPT)
    await handler(scope, receive, send)


class Wrapping:
    """Middleware that stands in the way of `send`, if the query says so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wrapped(message: Message) -> None:
            await send(message)

        is_wanted = b"wrapped" in scope.get("query_string", b"")
        await self.app(scope, receive, wrapped if is_wanted else send)


bare = Reporting(Wrapping(serve))


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] == "websocket.receive":
        pass


# What a framework does that uses it


@at("/echo")
async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@at("/open-the-gate")
async def open_the_gate(scope: Scope, receive: Receive, send: Send) -> None:
    gate().set()


@at("/is-it-mine")
async def is_it_mine(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell whether what was given is the server's own `send`."""
    wire = wire_of(scope)
    tells = {"mine": send == wire["send"], "version": wire["version"], "names": sorted(wire)}
    await send({"type": "websocket.send", "text": json.dumps(tells)})


@at("/join")
async def join(scope: Scope, receive: Receive, send: Send) -> None:
    room = ROOMS.setdefault(KEY.get(), [])
    room.append(wire_of(scope))
    report("joined")
    await until_gone(receive)


@at("/broadcast")
async def broadcast(scope: Scope, receive: Receive, send: Send) -> None:
    """Write what comes in to all who joined; tell who took it, and how often it was encoded."""
    while (message := await receive())["type"] == "websocket.receive":
        data = message.get("text")
        frame = Frame("bytes", message["bytes"]) if data is None else Frame("text", data)
        taken = [wire["write"](frame) for wire in ROOMS[KEY.get()]]
        told = {"taken": taken, "windows": sorted(frame.encodings)}
        await send({"type": "websocket.send", "text": json.dumps(told)})


MIXED = 400


@at("/mix")
async def mix(scope: Scope, receive: Receive, send: Send) -> None:
    """Send numbers in order, by whichever way; `await send` where a write takes nothing."""
    chance, wire = random.Random(scope["query_string"]), wire_of(scope)
    for number in range(MIXED):
        if wire["buffered"]() > 65_536:
            report("blocked")
        # Random digits shrink by half and no more: in the end the peer has to read.
        size = chance.choice((0, 10, 700, 4_090, 60_000))
        text = f"{number} {chance.randbytes(size).hex()}"
        if chance.random() < 0.6 and wire["write"](Frame("text", text)):
            continue
        await send({"type": "websocket.send", "text": text})
        if chance.random() < 0.1:
            await asyncio.sleep(0)


@at("/fill")
async def fill(scope: Scope, receive: Receive, send: Send) -> None:
    """Write until nothing is taken; wait for room; write once more."""
    wire, room = wire_of(scope), asyncio.Event()
    frame, count = Frame("bytes", bytes(10_000)), 0
    while wire["write"](frame):
        count += 1
        await asyncio.sleep(0)
    buffered = wire["buffered"]()
    wire["on_room"](room.set)
    report("full", count=count, buffered=buffered)
    await room.wait()
    taken = wire["write"](Frame("text", "room"))
    report("room", taken=taken, buffered=wire["buffered"]())


@at("/lose")
async def lose(scope: Scope, receive: Receive, send: Send) -> None:
    """Do nothing but wait to be told of the loss; then receive what the server says."""
    wire: Wire = wire_of(scope)
    told = asyncio.get_running_loop().create_future()
    wire["on_loss"](lambda code, reason: told.set_result((code, reason)))
    report("asked")
    code, reason = await told
    report("told", code=code, reason=reason)
    messages = []
    while (message := await receive())["type"] == "websocket.receive":
        messages.append(message["text"])
    report("end", messages=messages, code=message["code"], reason=message["reason"])
    report("late", taken=wire["write"](Frame("text", "late")), buffered=wire["buffered"]())


# A Yaat with the extension and without it


class Without:
    """Middleware that takes the extension out of the scope, if the query says so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if b"without" in scope.get("query_string", b""):
            extensions = dict(scope["extensions"])
            extensions.pop("yaat.wire", None)
            scope = {**scope, "extensions": extensions}
        await self.app(scope, receive, send)


app = Yaat(middleware=[Middleware(Reporting), Middleware(Without)])


@app.websocket_route("/echo")
async def yaat_echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket_route("/open-the-gate")
async def yaat_gate(websocket: WebSocket) -> None:
    gate().set()
    await websocket.accept()


async def for_ever() -> None:
    await asyncio.Event().wait()


async def never_ending() -> AsyncIterator[str]:
    yield "first"
    await for_ever()


async def by_sending(websocket: WebSocket) -> None:
    try:
        while True:
            await websocket.send_text("tick")
            await asyncio.sleep(0.005)
    except WebSocketDisconnect as departure:
        report("raised", code=departure.code, reason=departure.reason)


async def by_waiting(websocket: WebSocket) -> None:
    await websocket.wait_closed()


async def by_streaming(websocket: WebSocket) -> None:
    await websocket.stream(never_ending())


async def by_working(websocket: WebSocket) -> None:
    await asyncio.wait((websocket.start_soon(for_ever),))


WATCHES = {
    "sending": by_sending,
    "waiting": by_waiting,
    "streaming": by_streaming,
    "working": by_working,
}


@app.websocket_route("/watch/{way}")
async def watch(websocket: WebSocket, way: str) -> None:
    """Notice the loss, without receiving; then receive all that had come in."""
    await websocket.accept()
    report("accepted")
    await WATCHES[way](websocket)
    report("noticed", code=websocket.close_code, reason=websocket.close_reason)
    await tell_the_rest(websocket)


@app.websocket_route("/watch-in-vain/{way}")
async def watch_in_vain(websocket: WebSocket, way: str) -> None:
    """Tell, when the gate opens, whether the loss was noticed; then receive all there is."""
    await websocket.accept()
    report("accepted")
    watching = asyncio.create_task(WATCHES[way](websocket))
    await gate().wait()
    report("noticed", done=watching.done())
    await tell_the_rest(websocket)
    watching.cancel()
    await asyncio.wait((watching,))


async def tell_the_rest(websocket: WebSocket) -> None:
    numbers = []
    while (message := await websocket.receive())["type"] == "websocket.receive":
        numbers.append(int(message["text"].strip()))
    report("rest", numbers=numbers, code=message["code"], reason=message["reason"])
    with_disconnect = False
    try:
        await websocket.send_text("late")
    except WebSocketDisconnect as departure:
        with_disconnect = (departure.code, departure.reason) == (message["code"], message["reason"])
    await websocket.close()
    report("late", raises_the_same=with_disconnect)


@app.websocket_route("/together")
async def together(websocket: WebSocket) -> None:
    """Send from several tasks, and tell in which order they did."""
    await websocket.accept()
    calls: list[str] = []

    async def send(name: str) -> None:
        for number in range(50):
            calls.append(f"{name}{number} {'x' * (number * 300)}")
            await websocket.send_text(calls[-1])
            await asyncio.sleep(0)

    await asyncio.gather(*(websocket.start_soon(send, name) for name in "abc"))
    report("calls", calls=[call.strip("x ") for call in calls])


@app.websocket_route("/close/{code}")
async def close(websocket: WebSocket, code: int) -> None:
    await websocket.accept()
    working = websocket.start_soon(for_ever)
    await websocket.send_text("last")
    await websocket.close(code, "bye")
    await websocket.wait_closed()
    await asyncio.wait((working,))
    report("closed", code=websocket.close_code, reason=websocket.close_reason)


# A Yaat behind a middleware that changes every message


class Altering:
    """Middleware that counts and alters every message."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def alter(message: Message) -> None:
            report("passed", type=message["type"])
            if message.get("text") is not None:
                message = {**message, "text": message["text"] + "!"}
            elif message.get("bytes") is not None:
                message = {**message, "bytes": message["bytes"] + b"!"}
            elif message["type"] == "websocket.close":
                message = {**message, "code": message["code"] + 1}
            await send(message)

        await self.app(scope, receive, alter if scope["type"] == "websocket" else send)


altered = Yaat(middleware=[Middleware(Reporting), Middleware(Altering)])


async def some() -> AsyncIterator[Any]:
    for item in ("three", b"four", {"five": 5}):
        yield item


@altered.websocket_route("/all")
async def all_ways(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("one")
    await websocket.start_soon(websocket.send_bytes, b"two")
    await websocket.stream(some())
    await asyncio.sleep(0.03)  # the next send looks whether the peer is there
    await websocket.send_json(6)
    await websocket.send({"type": "websocket.send", "text": "seven"})
    await websocket.close(4000)


@altered.websocket_route("/lose")
async def lose_altered(websocket: WebSocket) -> None:
    """Notice the loss behind a middleware, in every way at once."""
    await websocket.accept()
    report("accepted")
    await asyncio.gather(*(watch(websocket) for watch in WATCHES.values()))
    report("noticed", code=websocket.close_code, reason=websocket.close_reason)


altered.add_websocket_route("/echo", yaat_echo)
