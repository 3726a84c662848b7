"""Litestar, with its `ChannelsPlugin` and the backend in memory."""

from contextlib import suppress
from typing import Any

from litestar import Litestar, WebSocket, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.exceptions import WebSocketDisconnect


@websocket("/listen/{names:str}")
async def listen(socket: WebSocket[Any, Any, Any], names: str, channels: ChannelsPlugin) -> None:
    await socket.accept()
    async with channels.start_subscription(names.split("-")) as subscriber:
        await socket.send_text("ready")
        async with subscriber.run_in_background(socket.send_text):
            with suppress(WebSocketDisconnect):
                while True:
                    await socket.receive_text()


@websocket("/publish")
async def publish(socket: WebSocket[Any, Any, Any], channels: ChannelsPlugin) -> None:
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            text = await socket.receive_text()
            channels.publish(text, text[:6])


plugin = ChannelsPlugin(MemoryChannelsBackend(), arbitrary_channels_allowed=True)
app = Litestar([listen, publish], plugins=[plugin])
