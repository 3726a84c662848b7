"""Starlette, with the loop that everyone writes."""

from contextlib import suppress

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

sockets: set[WebSocket] = set()


async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    sockets.add(websocket)
    await websocket.send_text("ready")
    try:
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()
    finally:
        sockets.discard(websocket)


async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        for each in list(sockets):
            await each.send_text(text)


app = Starlette(
    routes=[WebSocketRoute("/listen", listen), WebSocketRoute("/publish", publish)],
)
