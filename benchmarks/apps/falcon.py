"""Falcon."""

from contextlib import suppress

from falcon import WebSocketDisconnected
from falcon.asgi import App, Request, Response, WebSocket


class EchoText:
    async def on_websocket(self, _request: Request, ws: WebSocket) -> None:
        await ws.accept()
        with suppress(WebSocketDisconnected):
            while True:
                await ws.send_text(await ws.receive_text())


class EchoBytes:
    async def on_websocket(self, _request: Request, ws: WebSocket) -> None:
        await ws.accept()
        with suppress(WebSocketDisconnected):
            while True:
                await ws.send_data(await ws.receive_data())


class EchoJSON:
    async def on_websocket(self, _request: Request, ws: WebSocket) -> None:
        await ws.accept()
        with suppress(WebSocketDisconnected):
            while True:
                await ws.send_media(await ws.receive_media())


app: App[Request, Response] = App()
app.add_route("/text", EchoText())
app.add_route("/bytes", EchoBytes())
app.add_route("/json", EchoJSON())
