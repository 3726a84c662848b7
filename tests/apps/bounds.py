"""Too fast, too slow, absent-minded: an ASGI application that tries the bounds of its server.

Each connection has a name, the second part of its path. What happened to it is told by
`GET /told/NAME`, what it waits for is allowed by `GET /allow/NAME`; `GET /held` counts what the
process holds, after it gave back to the kernel what it does not.
"""

import asyncio
import ctypes
import gc
import json
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from uvicorn.server import ServerState

from yaat.server import ServerSettings, WebSocketProtocol

Message = dict[str, Any]
Handler = Callable[["Connection"], Coroutine[Any, Any, None]]

LIBC: Final = ctypes.CDLL(None)
BIG: Final = 65_536
SINGERS: Final = 100
DROP: Final = b"x" * 32
SONG: Final = b"la " * (BIG // 3)
PATIENCE: Final = 0.3
"""In seconds: a send that takes longer waits for the peer."""


class MallInfo(ctypes.Structure):
    """The structure of mallinfo2(3)."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class Hasty(WebSocketProtocol):
    """Has no patience with a peer that does not answer a close frame."""

    settings = ServerSettings(close_timeout=0.3)


class Told:
    """What happened to a connection.

    Attributes:
        sent: How many sends have returned.
        received: How many messages have come in.
        raised: What a send raised: its class and the classes that it is one of.
        code: Of the disconnect.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.raised: list[str] = []
        self.code: int | None = None
        self.ended = False


TOLD: defaultdict[str, Told] = defaultdict(Told)
ALLOWED: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


class Connection:
    """The ASGI callables of one connection, and a record of what comes of them."""

    def __init__(self, name: str, receive: Any, send: Any) -> None:
        self._receive = receive
        self._send = send
        self.told = TOLD[name]
        self.allowed = ALLOWED[name]

    async def accept(self) -> None:
        await self._receive()
        await self._send({"type": "websocket.accept"})

    async def send(self, data: bytes | str) -> None:
        kind = "text" if isinstance(data, str) else "bytes"
        await self.send_event({"type": "websocket.send", kind: data})
        self.told.sent += 1

    async def send_event(self, event: Message) -> None:
        try:
            await self._send(event)
        except Exception as error:
            self.told.raised = [kind.__name__ for kind in type(error).__mro__]
            raise

    async def close(self, code: int = 1000) -> None:
        await self.send_event({"type": "websocket.close", "code": code})

    async def receive(self) -> bytes | str | None:
        """The next message; None when there will be no more."""
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            self.told.code = event["code"]
            return None
        self.told.received += 1
        text: str | None = event.get("text")
        return event["bytes"] if text is None else text


async def app(scope: Message, receive: Any, send: Any) -> None:
    """Do what the first part of the path says."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    _, what, name = scope["path"].split("/")
    if scope["type"] == "http":
        await answer(send, REQUESTS[what](name))
        return
    connection = Connection(name, receive, send)
    try:
        await HANDLERS[what](connection)
    except OSError:
        pass  # the peer has gone, and `Connection` has noted it
    finally:
        connection.told.ended = True


# What is asked over HTTP


async def answer(send: Any, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def tell(name: str) -> Message:
    return vars(TOLD[name])


def allow(name: str) -> None:
    ALLOWED[name].set()


def held(_: str) -> Message:
    """Count tasks, WebSocket connections as the server knows them, and their objects."""
    gc.collect()
    # What malloc keeps for later is no longer counted as ours.
    LIBC.malloc_trim(0)
    things = gc.get_objects()
    states = [thing for thing in things if type(thing) is ServerState]
    known = [connection for state in states for connection in state.connections]
    return {
        "tasks": len(asyncio.all_tasks()),
        "connections": sum(map(is_websocket, known)),
        "objects": sum(map(is_websocket, things)),
        "allocated": allocated(),
    }


def allocated() -> int:
    """Return the bytes that malloc has given out: with PYTHONMALLOC=malloc, all that are in use."""
    mallinfo2 = LIBC.mallinfo2
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def is_websocket(thing: object) -> bool:
    # Not by `isinstance`, which asks the thing for its `__class__`: among all things are proxies.
    return issubclass(type(thing), WebSocketProtocol)


REQUESTS: dict[str, Callable[[str], Any]] = {"told": tell, "allow": allow, "held": held}


# What is done on a connection


def numbered(number: int) -> bytes:
    """Return a message of 64 KiB that tells its place."""
    return b"%08d" % number * (BIG // 8)


async def feed(connection: Connection) -> None:
    """Send for ever and never receive."""
    await connection.accept()
    while True:
        await connection.send(numbered(connection.told.sent))


async def patter(connection: Connection) -> None:
    """Send little for ever, and never receive."""
    await connection.accept()
    while True:
        await connection.send(DROP)


async def choir(connection: Connection) -> None:
    """Send for ever from many tasks at once."""
    await connection.accept()

    async def sing() -> None:
        while True:
            await connection.send(SONG)

    # Each of them has to be told that the peer has gone.
    await asyncio.wait([asyncio.create_task(sing()) for _ in range(SINGERS)])


async def hold(connection: Connection) -> None:
    """Receive when that is allowed; tell after "end" what came since, and in what order."""
    await connection.accept()
    await connection.allowed.wait()
    await count(connection)


async def sip(connection: Connection) -> None:
    """Receive a first message and one of many, and be a `hold` then."""
    await connection.accept()
    await connection.receive()
    one_of_many = await connection.receive()
    await connection.allowed.wait()
    await count(connection, one_of_many)


async def refuse_to_decide(connection: Connection) -> None:
    """Accept when that is allowed, and be a `hold`."""
    await connection.allowed.wait()
    await connection.accept()
    await count(connection)


async def count(connection: Connection, message: bytes | str | None = None) -> None:
    numbers: list[int] = []
    size = 0
    if message is None:
        message = await connection.receive()
    while message is not None:
        if message in ("end", b"end"):
            in_order = numbers == list(range(len(numbers)))
            tale = {"messages": len(numbers), "size": size, "in order": in_order}
            await connection.send(json.dumps(tale))
            numbers, size = [], 0
        else:
            numbers.append(int(message[:8]) if len(message) > 7 else len(numbers))
            size += len(message)
        message = await connection.receive()


async def echo(connection: Connection) -> None:
    await connection.accept()
    while (message := await connection.receive()) is not None:
        await connection.send(message)


async def measure(connection: Connection) -> None:
    """Answer each message with its length."""
    await connection.accept()
    while (message := await connection.receive()) is not None:
        await connection.send(str(len(message)))


async def leave(connection: Connection) -> None:
    """Close at once, and wait for the end."""
    await connection.accept()
    await connection.close()
    while await connection.receive() is not None:
        pass


async def stuff_and_leave(connection: Connection) -> None:
    """Send until nothing more is taken, then close."""
    await connection.accept()
    await stuff(connection)
    await connection.close()


async def stuff_and_return(connection: Connection) -> None:
    await connection.accept()
    await stuff(connection)


async def stuff_and_receive(connection: Connection) -> None:
    await connection.accept()
    await stuff(connection)
    while await connection.receive() is not None:
        pass


async def stuff(connection: Connection) -> None:
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.send(numbered(connection.told.sent))
        except TimeoutError:
            return


HANDLERS: dict[str, Handler] = {
    "feed": feed,
    "patter": patter,
    "choir": choir,
    "hold": hold,
    "sip": sip,
    "undecided": refuse_to_decide,
    "echo": echo,
    "measure": measure,
    "leave": leave,
    "stuff-and-leave": stuff_and_leave,
    "stuff-and-return": stuff_and_return,
    "stuff-and-receive": stuff_and_receive,
}
