"""Handlers that end in every way when their server stops, in three applications.

The first part of the path says what a handler does, the name in the query string whose it is. Each
tells when it was opened and, last of all in its `finally`, that it has ended; so does lifespan.
`GATE` of the records' file, when it is there, lets go on what waits for the test.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from servers import RECORDS
from yaat import Yaat

HOUR = 3600.0
LINGER = 0.02
"""In seconds: how long a `finally` waits for something."""
GATE = ".open"
STARTUP, SHUTDOWN = "YAAT_TEST_STARTUP", "YAAT_TEST_SHUTDOWN"
"""How long lifespan takes to start and to shut down, in seconds; "gate": until the gate opens."""
SONG = "la " * 1_000

Handler = Callable[[Any], Awaitable[None]]
HANDLERS: dict[str, Handler] = {}


def report(event: str, **facts: Any) -> None:
    """Tell the test that `event` happened."""
    line = json.dumps({"event": event, "pid": os.getpid(), "at": time.monotonic(), **facts})
    with open(os.environ[RECORDS], "a") as records:  # noqa: PTH123 - called very often
        records.write(f"{line}\n")


async def wait_for_gate() -> None:
    gate = Path(os.environ[RECORDS] + GATE)
    while not gate.exists():  # noqa: ASYNC110, ASYNC240 - another process opens it
        await asyncio.sleep(0.01)


class Leaving(Exception):  # noqa: N818 - the peer's departure is not an error
    """What a handler on bare ASGI calls the disconnect."""


class Bare:
    """As much of a WebSocket on bare ASGI as the handlers below need."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.url = scope["path"]
        self.query = scope["query_string"]
        self.receive = receive
        self.send = send

    async def accept(self) -> None:
        await self.receive()
        await self.send({"type": "websocket.accept"})

    async def receive_text(self) -> str:
        message = await self.receive()
        if message["type"] == "websocket.disconnect":
            raise Leaving(message["code"])
        return str(message["text"])

    async def send_text(self, data: str) -> None:
        await self.send({"type": "websocket.send", "text": data})


def handler(function: Handler) -> Handler:
    """Serve the path that is the function's name, and tell its beginning and its end."""
    kind = function.__name__.replace("_", "-")

    async def told(websocket: Any) -> None:
        name = name_of(websocket)
        report("opened", kind=kind, name=name)
        how = "returned"
        try:
            await function(websocket)
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            await asyncio.sleep(LINGER)
            report("ended", kind=kind, name=name, how=how)

    HANDLERS[f"/{kind}"] = told
    return told


def name_of(websocket: Any) -> str:
    query = websocket.query if isinstance(websocket, Bare) else websocket.scope["query_string"]
    return str(parse_qs(query.decode()).get("name", [""])[0])


# What handlers do


@handler
async def wait(websocket: Any) -> None:
    await websocket.accept()
    while True:
        await websocket.receive_text()


@handler
async def echo(websocket: Any) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


@handler
async def pour(websocket: Any) -> None:
    """Send for ever and never receive."""
    await websocket.accept()
    while True:
        await websocket.send_text(SONG)


@handler
async def tick(websocket: Any) -> None:
    """Send now and then."""
    await websocket.accept()
    while True:
        await websocket.send_text("tick")
        await asyncio.sleep(0.01)


@handler
async def sleep(websocket: Any) -> None:
    await websocket.accept()
    await asyncio.sleep(HOUR)


@handler
async def go_on(websocket: Any) -> None:
    """Swallow the disconnect."""
    await websocket.accept()
    with suppress(Exception):
        while True:
            await websocket.receive_text()
    report("left", kind="go-on", name=name_of(websocket))
    await asyncio.sleep(HOUR)


@handler
async def finish(websocket: Any) -> None:
    """Have something to do when the peer has gone: as long as the gate is closed."""
    await websocket.accept()
    try:
        while True:
            await websocket.receive_text()
    finally:
        await wait_for_gate()


@handler
async def stubborn(websocket: Any) -> None:
    """Swallow every cancellation."""
    await websocket.accept()
    while True:
        try:
            await asyncio.sleep(HOUR)
        except asyncio.CancelledError:
            report("swallowed", name=name_of(websocket))


@handler
async def block(websocket: Any) -> None:
    """Hold the event loop as soon as a message has come."""
    await websocket.accept()
    await websocket.receive_text()
    report("blocking")
    time.sleep(HOUR)  # noqa: ASYNC251 - that is what it is for


@handler
async def work(websocket: Any) -> None:
    """Have something done beside."""
    await websocket.accept()
    name = name_of(websocket)
    task = (
        websocket.start_soon(worked, name)
        if hasattr(websocket, "start_soon")
        else asyncio.create_task(worked(name))
    )
    try:
        while True:
            await websocket.receive_text()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def worked(name: str) -> None:
    try:
        await asyncio.sleep(HOUR)
    finally:
        await asyncio.sleep(LINGER)
        report("worked", name=name)


@handler
async def stream(websocket: Any) -> None:
    """Send what an asynchronous generator makes."""
    await websocket.accept()
    items = numbers(name_of(websocket))
    if hasattr(websocket, "stream"):
        await websocket.stream(items)
        return
    async with aclosing(items):
        async for item in items:
            await websocket.send_text(item)


async def numbers(name: str) -> AsyncGenerator[str]:
    try:
        for number in range(10**9):
            yield str(number)
            await asyncio.sleep(0.01)
    finally:
        await asyncio.sleep(LINGER)
        report("streamed", name=name)


@handler
async def pending(websocket: Any) -> None:
    """Do not answer the handshake."""
    await asyncio.sleep(HOUR)


@handler
async def half_deny(websocket: Any) -> None:
    """Begin a denial, and have no end of it."""
    await websocket.receive()
    await websocket.send({"type": "websocket.http.response.start", "status": 418, "headers": []})
    part = {"type": "websocket.http.response.body", "body": b"half", "more_body": True}
    await websocket.send(part)
    await asyncio.sleep(HOUR)


# What is asked over HTTP


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def slow(request: Request) -> Response:
    """Answer in two parts, the second when the gate opens."""

    async def parts() -> AsyncIterator[str]:
        report("begun")
        yield "one "
        await wait_for_gate()
        yield "two"

    return StreamingResponse(parts(), media_type="text/plain")


async def stuck(request: Request) -> Response:
    """Answer never."""
    report("begun")
    try:
        await asyncio.sleep(HOUR)
    finally:
        await asyncio.sleep(LINGER)
        report("ended", kind="stuck", name="")
    return PlainTextResponse("at last")


# The applications


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    report("starting")
    await take(os.environ.get(STARTUP))
    report("started")
    yield
    report("stopping")
    await take(os.environ.get(SHUTDOWN))
    report("stopped")


async def take(how_long: str | None) -> None:
    if how_long == "gate":
        await wait_for_gate()
    elif how_long is not None:
        await asyncio.sleep(float(how_long))


ROUTES = [Route("/hello", hello), Route("/slow", slow), Route("/stuck", stuck)]

starlette_app = Starlette(
    routes=[*ROUTES, *(WebSocketRoute(path, each) for path, each in HANDLERS.items())],
    lifespan=lifespan,
)

yaat_app = Yaat(routes=ROUTES, lifespan=lifespan)
for path, each in HANDLERS.items():
    yaat_app.add_websocket_route(path, each)


async def bare_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve WebSockets on nothing but ASGI, and HTTP as Starlette does."""
    if scope["type"] == "websocket":
        with suppress(Leaving):
            await HANDLERS[scope["path"]](Bare(scope, receive, send))
    else:
        await starlette_app(scope, receive, send)
