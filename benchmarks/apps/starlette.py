"""Starlette."""

from contextlib import suppress

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def echo_text(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())


async def echo_bytes(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_bytes(await websocket.receive_bytes())


async def echo_json(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_json(await websocket.receive_json())


app = Starlette(
    routes=[
        WebSocketRoute("/text", echo_text),
        WebSocketRoute("/bytes", echo_bytes),
        WebSocketRoute("/json", echo_json),
    ]
)
