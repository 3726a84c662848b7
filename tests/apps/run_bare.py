"""Bare ASGI for the tests of `yaat run`: it tells what it got and what its process holds.

The first step of a path says what is asked for; the second, where there is one, is a name. What a
connection or a request with a name waits for is allowed by `GET /allow/NAME`.
"""

import asyncio
import gc
import json
import logging
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final
from zlib import crc32

from uvicorn.server import ServerState

from yaat.server import WebSocketProtocol

Message = dict[str, Any]
Handler = Callable[[Message, Any, Any], Awaitable[None]]

PLAIN: Final = [(b"content-type", b"text/plain")]
ALLOWED: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
SAID: defaultdict[str, "asyncio.Queue[str]"] = defaultdict(asyncio.Queue)

logger = logging.getLogger("apps.run_bare")


async def app(scope: Message, receive: Any, send: Any) -> None:
    """Do what the first step of the path says."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    what = steps(scope)[0]
    if scope["type"] == "http":
        await HTTP.get(what, page)(scope, receive, send)
    else:
        assert (await receive())["type"] == "websocket.connect"
        await WEBSOCKETS.get(what, refuse)(scope, receive, send)


def make() -> Handler:
    """Return the application: what `--factory` calls."""
    return app


async def lifespan(receive: Any, send: Any) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


async def broken(scope: Message, receive: Any, send: Any) -> None:
    """An application whose lifespan fails."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the cellar is under water"})


async def without_lifespan(scope: Message, receive: Any, send: Any) -> None:
    """An application that knows of no lifespan: it raises (ASGI, "Scope" of lifespan)."""
    assert scope["type"] != "lifespan"
    await app(scope, receive, send)


def steps(scope: Message) -> list[str]:
    path: str = scope["path"].removeprefix(scope["root_path"])
    return path.split("/")[1:]


def described(scope: Message) -> Message:
    """What can be told of a scope in JSON."""
    told = {key: scope.get(key) for key in ("type", "method", "path", "root_path", "http_version")}
    told |= {key: scope[key].decode("latin-1") for key in ("raw_path", "query_string")}
    told |= {key: scope[key] for key in ("client", "server", "scheme")}
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
    ]
    return told | {"headers": headers, "extensions": sorted(scope.get("extensions") or {})}


# Over HTTP


async def answer(send: Any, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", b"%d" % len(body))
    start = {"status": status, "headers": [*PLAIN, length, *headers]}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})


async def page(scope: Message, receive: Any, send: Any) -> None:
    await answer(send, b"a page")


async def tell_scope(scope: Message, receive: Any, send: Any) -> None:
    await answer(send, json.dumps(described(scope)).encode())


async def weigh(scope: Message, receive: Any, send: Any) -> None:
    """Tell the size and the checksum of the body."""
    size = total = 0
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size += len(event["body"])
        total = crc32(event["body"], total)
        more = event["more_body"]
    await answer(send, b"%d bytes, %08x" % (size, total))


async def ignore(scope: Message, receive: Any, send: Any) -> None:
    """Answer without a look at the body."""
    await answer(send, b"whatever")


async def parts(scope: Message, receive: Any, send: Any) -> None:
    """Answer in parts, of a length that is not told before."""
    await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
    for part in (b"one ", b"two ", b""):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"three"})


async def flood(scope: Message, receive: Any, send: Any) -> None:
    """Answer with 32 MiB, of a length that is told before."""
    headers = [*PLAIN, (b"content-length", b"%d" % 2**25)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(2**9):
        await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
    await send({"type": "http.response.body"})


async def slow(scope: Message, receive: Any, send: Any) -> None:
    """Answer the first part at once and the rest when it is allowed."""
    await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
    await send({"type": "http.response.body", "body": b"first, ", "more_body": True})
    await ALLOWED[steps(scope)[1]].wait()
    await send({"type": "http.response.body", "body": b"then the rest"})


async def undecided_page(scope: Message, receive: Any, send: Any) -> None:
    """Answer when it is allowed."""
    await ALLOWED[steps(scope)[1]].wait()
    await answer(send, b"at last")


async def allow(scope: Message, receive: Any, send: Any) -> None:
    ALLOWED[steps(scope)[1]].set()
    await answer(send, b"allowed")


async def say(scope: Message, receive: Any, send: Any) -> None:
    """Let the connection of that name send a message."""
    SAID[steps(scope)[1]].put_nowait("said")
    await answer(send, b"said")


async def crash(scope: Message, receive: Any, send: Any) -> None:
    raise ValueError("the page is broken")


async def closing(scope: Message, receive: Any, send: Any) -> None:
    await answer(send, b"for the last time", (b"connection", b"close"))


async def nothing(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def pid(scope: Message, receive: Any, send: Any) -> None:
    await answer(send, b"%d" % os.getpid(), (b"connection", b"close"))


async def loop(scope: Message, receive: Any, send: Any) -> None:
    await answer(send, type(asyncio.get_running_loop()).__module__.encode())


async def log(scope: Message, receive: Any, send: Any) -> None:
    """Log a line at the level that the path names, as this application and as the server."""
    level = steps(scope)[1]
    logger.log(logging.getLevelName(level.upper()), "the application says %s", level)
    logging.getLogger("uvicorn.error").log(logging.getLevelName(level.upper()), "and so %s", level)
    await answer(send, b"logged")


async def held(scope: Message, receive: Any, send: Any) -> None:
    """Count what the process holds, but for this request and its connection."""
    gc.collect()
    things: list[Any] = gc.get_objects()
    kinds = [type(thing) for thing in things]
    # Not by `isinstance`, which asks a thing for its `__class__`: among all things are proxies.
    states = [thing for thing in things if issubclass(type(thing), ServerState)]
    counts = {
        "tasks": len(asyncio.all_tasks()) - 1,
        "connections": sum(len(state.connections) for state in states) - 1,
        "websockets": sum(issubclass(kind, WebSocketProtocol) for kind in kinds),
        "https": sum(kind.__name__ == "HTTPProtocol" for kind in kinds) - 1,
    }
    await answer(send, json.dumps(counts).encode(), (b"connection", b"close"))


HTTP: dict[str, Handler] = {
    "": page,
    "scope": tell_scope,
    "weigh": weigh,
    "ignore": ignore,
    "parts": parts,
    "flood": flood,
    "slow": slow,
    "undecided": undecided_page,
    "allow": allow,
    "say": say,
    "crash": crash,
    "closing": closing,
    "nothing": nothing,
    "pid": pid,
    "loop": loop,
    "log": log,
    "held": held,
}


# Over WebSockets


ACCEPT = {"type": "websocket.accept"}


async def echo(scope: Message, receive: Any, send: Any) -> None:
    await send(ACCEPT)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def pid_first(scope: Message, receive: Any, send: Any) -> None:
    """Tell the process, then echo."""
    await send(ACCEPT)
    await send({"type": "websocket.send", "text": str(os.getpid())})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def tell_websocket_scope(scope: Message, receive: Any, send: Any) -> None:
    await send(ACCEPT)
    await send({"type": "websocket.send", "text": json.dumps(described(scope))})
    await receive()


async def refuse(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "websocket.close"})


async def deny(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "websocket.http.response.start", "status": 418, "headers": PLAIN})
    await send({"type": "websocket.http.response.body", "body": b"full"})


async def crash_at_once(scope: Message, receive: Any, send: Any) -> None:
    raise ValueError("broken before it was accepted")


async def crash_at_a_message(scope: Message, receive: Any, send: Any) -> None:
    await send(ACCEPT)
    await receive()
    raise ValueError("broken after it was accepted")


async def leave(scope: Message, receive: Any, send: Any) -> None:
    """Close at the first message."""
    await send(ACCEPT)
    await receive()
    await send({"type": "websocket.close", "code": 4001})


async def return_at_once(scope: Message, receive: Any, send: Any) -> None:
    """Neither accept nor refuse."""


async def undecided(scope: Message, receive: Any, send: Any) -> None:
    """Accept when that is allowed, and echo."""
    await ALLOWED[steps(scope)[1]].wait()
    await echo(scope, receive, send)


async def speak(scope: Message, receive: Any, send: Any) -> None:
    """Send what is said to this name, and nothing else; tell of nothing that comes."""
    await send(ACCEPT)
    said = asyncio.create_task(repeat(SAID[steps(scope)[1]], send))
    while (await receive())["type"] == "websocket.receive":
        pass
    said.cancel()


async def repeat(said: "asyncio.Queue[str]", send: Any) -> None:
    while True:
        await send({"type": "websocket.send", "text": await said.get()})


WEBSOCKETS: dict[str, Handler] = {
    "echo": echo,
    "pid": pid_first,
    "scope": tell_websocket_scope,
    "refuse": refuse,
    "deny": deny,
    "crash": crash_at_once,
    "crash-later": crash_at_a_message,
    "leave": leave,
    "return": return_at_once,
    "undecided": undecided,
    "speak": speak,
}
