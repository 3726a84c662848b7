"""Tornado, on uvloop, which its documentation permits."""

import asyncio
import json
import sys

import uvloop
from tornado.web import Application
from tornado.websocket import WebSocketHandler


class Echo(WebSocketHandler):
    """Echoes text and bytes."""

    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(message, binary=isinstance(message, bytes))


class EchoJSON(WebSocketHandler):
    """Parses and writes JSON."""

    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(json.dumps(json.loads(message)))


async def main(port: int) -> None:
    app = Application([("/text", Echo), ("/bytes", Echo), ("/json", EchoJSON)])
    app.listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
