"""Yaat."""

from yaat import WebSocket, Yaat

app = Yaat()


@app.websocket_route("/text")
async def echo_text(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


@app.websocket_route("/bytes")
async def echo_bytes(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_bytes(await websocket.receive_bytes())


@app.websocket_route("/json")
async def echo_json(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_json(await websocket.receive_json())
