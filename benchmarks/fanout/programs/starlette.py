"""Starlette, with the loop that everyone writes."""

from collections import defaultdict
from contextlib import suppress

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

rooms: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    names = websocket.path_params["names"].split("-")
    for name in names:
        rooms[name].add(websocket)
    await websocket.send_text("ready")
    try:
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
    finally:
        for name in names:
            rooms[name].discard(websocket)


async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        for each in list(rooms[text[:6]]):
            await each.send_text(text)


app = Starlette(
    routes=[WebSocketRoute("/listen/{names}", listen), WebSocketRoute("/publish", publish)],
)
