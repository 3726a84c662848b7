"""How a test talks to `apps.channels`, and what has to be true when it is done."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlencode

from clients import TIMEOUT, Client, SocketClient
from peers import Record, ServerPeer
from served import Served
from servers import Server, ServerSpec

# What the interpreter says of what was thrown away unfinished.
LITTER = ("was destroyed but it is pending", "never retrieved", "was never awaited")


async def ask(server: Server, method: str, target: str, body: Any = None) -> Any:
    """Make one HTTP request on a connection of its own; return the JSON value of the answer."""
    content = json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(head.encode() + content)
        async with asyncio.timeout(20):
            answer = await reader.read()
    finally:
        writer.transport.abort()
    head, _, text = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 "), f"{method} {target}: {answer!r}"
    return json.loads(text)


class Rooms(Served):
    """The application of channels on one server, and the rooms of one test."""

    def __init__(self, spec: ServerSpec, server: Server, app: str = "channels") -> None:
        super().__init__(app, server)
        # Two specifications may share a process: which one it is, the test says.
        ServerPeer.__init__(self, spec, server)

    async def get(self, path: str, **query: Any) -> Any:
        return await ask(self.server, "GET", self._target(path, query))

    async def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return await ask(self.server, "POST", self._target(path, query), body)

    def _target(self, path: str, query: dict[str, Any]) -> str:
        return self.keyed(f"{path}?{urlencode(query)}" if query else path)

    async def publish(self, kind: str, data: Any = None, **how: Any) -> Any:
        """Publish by HTTP; return what became of it."""
        return await self.post(f"/publish/{kind}", {"data": data, **how})

    @asynccontextmanager
    async def join(
        self, kind: str, path: str = "/join", *, receive_buffer: int | None = None, **query: Any
    ) -> AsyncIterator[SocketClient]:
        """Connect, and be a member soon."""
        target = f"{path}/{kind}?{urlencode(query)}" if query else f"{path}/{kind}"
        async with self.connect(target, receive_buffer=receive_buffer) as client:
            assert isinstance(client, SocketClient)
            yield client

    @asynccontextmanager
    async def member(self, kind: str, *args: Any, **options: Any) -> AsyncIterator[SocketClient]:
        """Be a member from the beginning of the block; what came until then is read."""
        async with self.join(kind, *args, **options) as client:
            await joined(client)
            yield client

    async def until(self, condition: Callable[[Any], bool], path: str, **query: Any) -> Any:
        """Ask again and again until the condition holds for the answer; return that."""
        answer = None
        try:
            async with asyncio.timeout(TIMEOUT):
                # Another process tells, and only who asks.
                while not condition(answer := await self.get(path, **query)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise TimeoutError(f"{self.name}: {path} still says {answer}") from None
        return answer

    def channel(self, kind: str) -> str:
        return f"{kind}:{self.key}"

    def complaints(self) -> list[Record]:
        """What was logged as an error since the test began, but for what is the server's alone."""
        return [
            log
            for log in self.errors()
            if self._is_ours(log) and not self._is_complaint(log["message"])
        ]

    def forget(self) -> None:
        """Let what was logged so far be as it should."""
        self._begin = len(self._lines())
        self._mark = self.server.mark()

    def _is_ours(self, log: Record) -> bool:
        """Whether it is of this test, of Yaat, of what was thrown away, or of our own server."""
        if log["key"] == self.key or log["logger"].startswith("yaat"):
            return True
        return self.name.startswith("yaat") or any(each in log["message"] for each in LITTER)

    async def assert_nothing_left(self, before: Any) -> None:
        """Assert that whoever came has gone, and left no task, no room and no litter."""
        await self.until(lambda now: now["left"] == before["left"], "/inspect")
        litter = [log for log in self.errors() if any(each in log["message"] for each in LITTER)]
        assert litter == []
        written = self.written()
        assert [each for each in LITTER if each in written] == [], written


async def joined(client: Client) -> list[Any]:
    """Read until the handler says that it has joined; return what came before."""
    return await done(client, "joined")


async def done(client: Client, answer: Any) -> list[Any]:
    """Read until the handler says so; return what came before."""
    before: list[Any] = []
    while (message := await client.receive()) != compact({"done": answer}):
        before.append(message)
    return before


async def order(client: Client, do: str, **details: Any) -> tuple[Any, list[Any]]:
    """Give an order and wait until it is obeyed; return its answer and what came before that."""
    await client.send_json({"do": do, **details})
    before: list[Any] = []
    while True:
        message = await client.receive()
        if isinstance(message, str) and message.startswith('{"done":'):
            return json.loads(message)["done"], before
        before.append(message)


def sleep(client: SocketClient) -> None:
    """Read no more, however much comes."""
    _transport(client).pause_reading()


def wake(client: SocketClient) -> None:
    """Read again."""
    transport = _transport(client)
    if not transport.is_closing() and not transport.is_reading():
        transport.resume_reading()


def _transport(client: SocketClient) -> asyncio.Transport:
    return cast("asyncio.Transport", client.wire.writer.transport)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def number(message: str | bytes) -> int:
    """The number that a message begins with, altered or not."""
    text = message if isinstance(message, str) else message.decode()
    return int(text.removeprefix("!").split()[0])


async def numbers(client: Client, count: int) -> list[int]:
    """Receive so many numbered messages."""
    return [number(await client.receive()) for _ in range(count)]
