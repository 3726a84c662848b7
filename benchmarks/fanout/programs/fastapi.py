"""FastAPI, with the `ConnectionManager` of its documentation, one for each channel."""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


class ConnectionManager:
    """The connections of one channel."""

    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    def connect(self, websocket: WebSocket) -> None:
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        for connection in self.active_connections:
            await connection.send_text(message)


managers: defaultdict[str, ConnectionManager] = defaultdict(ConnectionManager)


@app.websocket("/listen/{names}")
async def listen(websocket: WebSocket, names: str) -> None:
    await websocket.accept()
    for name in names.split("-"):
        managers[name].connect(websocket)
    await websocket.send_text("ready")
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        for name in names.split("-"):
            managers[name].disconnect(websocket)


@app.websocket("/publish")
async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            text = await websocket.receive_text()
            await managers[text[:6]].broadcast(text)
    except WebSocketDisconnect:
        pass
