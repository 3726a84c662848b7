"""Yaat, with the extension `yaat.wire`."""

from collections.abc import Callable

from yaat import WebSocket, Yaat
from yaat.frames import Frame

app = Yaat()
READY = Frame("text", "ready")
writes: set[Callable[[Frame], bool]] = set()


@app.websocket_route("/listen")
async def listen(websocket: WebSocket) -> None:
    await websocket.accept()
    write = websocket.scope["extensions"]["yaat.wire"]["write"]
    writes.add(write)
    write(READY)
    try:
        while True:
            await websocket.receive_text()
    finally:
        writes.discard(write)


@app.websocket_route("/publish")
async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        frame = Frame("text", await websocket.receive_text())
        for write in writes:
            write(frame)
