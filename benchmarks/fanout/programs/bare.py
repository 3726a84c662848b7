"""A bare ASGI application, with the extension `yaat.wire`."""

from collections.abc import Awaitable, Callable
from typing import Any

from yaat.frames import Frame

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Write = Callable[[Frame], bool]

READY = Frame("text", "ready")
writes: set[Write] = set()


async def listen(write: Write, receive: Receive) -> None:
    writes.add(write)
    write(READY)
    while (await receive())["type"] == "websocket.receive":
        pass
    writes.discard(write)


async def publish(receive: Receive) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        frame = Frame("text", message["text"])
        for write in writes:
            write(frame)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/publish":
        await publish(receive)
    else:
        await listen(scope["extensions"]["yaat.wire"]["write"], receive)
