"""The floor: an ASGI function, no framework."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def echo_text(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def echo_bytes(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


async def echo_json(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        value = json.loads(message["text"])
        await send({"type": "websocket.send", "text": json.dumps(value)})


HANDLERS = {"/text": echo_text, "/bytes": echo_bytes, "/json": echo_json}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    await HANDLERS[scope["path"]](receive, send)
