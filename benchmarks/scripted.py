"""The server's side of a connection without a server: a scope, and who plays the callables.

`python -m benchmarks.scripted APP EXCHANGE MODE COUNT` plays one connection and prints how many
nanoseconds a message took.
"""

import asyncio
import importlib
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from types import coroutine
from typing import Any, cast

from benchmarks.exchange import EXCHANGES, Exchange

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MEASURED = {exchange.name: exchange for exchange in (EXCHANGES[0], EXCHANGES[-1])}
# `ready`: the message is there when it is asked for, so nothing is ever suspended.
# `waited for`: as in life, every layer is left and entered again for each message.
MODES = ("ready", "waited for")
HEADERS = {
    b"host": b"127.0.0.1:8000",
    b"upgrade": b"websocket",
    b"connection": b"Upgrade",
    b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
    b"sec-websocket-version": b"13",
    b"user-agent": b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
    b"accept-encoding": b"gzip, deflate, br",
    b"accept-language": b"en-GB,en;q=0.9",
}


def application(location: str) -> App:
    """The object behind `module:attribute`, as a user builds it."""
    module, _, attribute = location.partition(":")
    app: App = getattr(importlib.import_module(module), attribute)
    return app


def scope(path: str) -> Scope:
    """A new scope, made of new objects as a server makes it."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(bytes(bytearray(name)), bytes(bytearray(HEADERS[name]))) for name in HEADERS],
        "subprotocols": [],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }


@coroutine
def pause() -> Generator[None, None, None]:
    yield


@coroutine
def drive(connection: Coroutine[Any, Any, None]) -> Generator[Any, None, None]:
    """Resume at once what only pauses; what waits for something real waits in the event loop."""
    try:
        while True:
            awaited = connection.send(None)
            if awaited is not None:
                yield awaited
    except StopIteration:
        return


class Script:
    """Connects, says the same `count` times, and leaves; remembers when it began and ended."""

    def __init__(self, exchange: Exchange, count: int) -> None:
        self.messages = self.play(exchange.payload.decode(), count)
        self.began = self.ended = 0
        self.sent: Message = {}

    def play(self, text: str, count: int) -> Iterator[Message]:
        yield {"type": "websocket.connect"}
        self.began = time.perf_counter_ns()
        for _ in range(count):
            yield {"type": "websocket.receive", "text": text}
        self.ended = time.perf_counter_ns()
        while True:
            yield {"type": "websocket.disconnect", "code": 1000, "reason": ""}

    async def ready(self) -> Message:
        return next(self.messages)

    async def waited_for(self) -> Message:
        await pause()
        return next(self.messages)

    async def send(self, message: Message) -> None:
        self.sent = message


async def turn(app: App, exchange: Exchange, mode: str, count: int) -> float:
    """Nanoseconds a message; the last echo is checked."""
    script = Script(exchange, count)
    receive = script.ready if mode == "ready" else script.waited_for
    connection = app(scope(exchange.path), receive, script.send)
    await drive(cast(Coroutine[Any, Any, None], connection))
    exchange.check(exchange.opcode, script.sent["text"].encode())
    return (script.ended - script.began) / count


if __name__ == "__main__":
    location, asked, how, times = sys.argv[1:]
    print(asyncio.run(turn(application(location), MEASURED[asked], how, int(times))))
