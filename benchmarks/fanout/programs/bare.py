"""A bare ASGI application, with the extension `yaat.wire`."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from yaat.frames import Frame

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Write = Callable[[Frame], bool]

READY = Frame("text", "ready")
rooms: defaultdict[str, set[Write]] = defaultdict(set)


async def listen(names: list[str], write: Write, receive: Receive) -> None:
    for name in names:
        rooms[name].add(write)
    write(READY)
    while (await receive())["type"] == "websocket.receive":
        pass
    for name in names:
        rooms[name].discard(write)


async def publish(receive: Receive) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        frame = Frame("text", message["text"])
        for write in rooms[message["text"][:6]]:
            write(frame)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/publish":
        await publish(receive)
    else:
        names = scope["path"].removeprefix("/listen/").split("-")
        await listen(names, scope["extensions"]["yaat.wire"]["write"], receive)
