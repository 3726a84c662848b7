"""Sanic, which takes uvloop by itself."""

import json
import sys
from typing import Any

from sanic import Request, Sanic, Websocket

app: Sanic[Any, Any] = Sanic("echo")


async def echo(_request: Request, socket: Websocket) -> None:
    async for message in socket:
        await socket.send(message)


async def echo_json(_request: Request, socket: Websocket) -> None:
    async for message in socket:
        await socket.send(json.dumps(json.loads(message)))


app.add_websocket_route(echo, "/text", name="echo_text")
app.add_websocket_route(echo, "/bytes", name="echo_bytes")
app.add_websocket_route(echo_json, "/json", name="echo_json")

if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]), single_process=True, access_log=False, motd=False)
