"""Yaat, with its channels."""

from contextlib import AsyncExitStack

from yaat import ChannelOptions, Channels, WebSocket, Yaat

app = Yaat()
# Who reads too slowly stays, and misses what it is too slow for.
dropping = Yaat(channels=Channels({"{all:path}": ChannelOptions(slow="drop_oldest")}))


@dropping.websocket_route("/listen/{names}")
@app.websocket_route("/listen/{names}")
async def listen(websocket: WebSocket, names: str) -> None:
    await websocket.accept()
    async with AsyncExitStack() as stack:
        for name in names.split("-"):
            await stack.enter_async_context(websocket.channel(name).join(websocket))
        await websocket.send_text("ready")
        async for _ in websocket.iter_text():
            pass


@dropping.websocket_route("/publish")
@app.websocket_route("/publish")
async def publish(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.channel(text[:6]).publish(text)
