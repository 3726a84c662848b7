"""Quart."""

from quart import Quart, websocket

app = Quart(__name__)


@app.websocket("/text")
@app.websocket("/bytes")
async def echo() -> None:
    while True:
        await websocket.send(await websocket.receive())


@app.websocket("/json")
async def echo_json() -> None:
    while True:
        await websocket.send_json(await websocket.receive_json())
