"""Many clients at once, each as cheap as can be, and what each of them saw of its end.

    async with crowd(server.url("/wait"), 1_000) as visitors:
        server.terminate()
        ends = [await each.ended for each in visitors]

A `Visitor` answers what RFC 6455 wants answered and waits for the server to hang up, as a browser
does. A `Returner` comes back like the page of the demo: after a random wait that grows.
"""

import asyncio
import base64
import os
import random
import resource
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from socket import SO_ERROR, SOL_SOCKET
from typing import Self, cast
from urllib.parse import urlsplit

from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from clients import NO_CLOSE, Frames, Headers, Refused, Violation, close_frame

AT_ONCE = 100
"""So many handshakes are under way at a time: more would wait in the kernel's queue."""
PATIENCE = 20.0
ECHO = 0.02
"""In seconds: how long an RST takes at most on this machine."""


def raise_file_limit() -> None:
    """Let this process, and the servers that it starts, have as many files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True)
class End:
    """How a connection ended, as its client saw it.

    Attributes:
        code: Of the close frame; 1006 if none came.
        reason: Its text.
        at: When it came, or when the connection was lost without one (`time.monotonic`).
        error: What was wrong with the end of TCP. None: the server took our answer to its close
            frame, and nothing was reset.
    """

    code: int
    reason: str
    at: float
    error: str | None = None

    @property
    def clean(self) -> bool:
        return self.error is None and self.code != NO_CLOSE


class Visitor(asyncio.Protocol):
    """One connection.

    Args:
        url: Where to.
        headers: Added to the handshake.
        answer_after: How long it takes to answer a close frame, in seconds. None: for ever.

    Attributes:
        answered: Done when the handshake was: raises `Refused`.
        ended: Done with the `End`, when the connection is no more.
    """

    def __init__(
        self, url: str, headers: Iterable[tuple[str, str]] = (), answer_after: float | None = 0.0
    ) -> None:
        loop = asyncio.get_running_loop()
        self.url = urlsplit(url)
        self.answered: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[End] = loop.create_future()
        self.told: End | None = None
        self.messages: list[str | bytes] = []
        self._heard = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._headers = headers
        self._answer_after = answer_after
        self._has_answered = False
        self._has_ended = False
        self._is_lost = False  # `ended` may also be done as who awaited it was cancelled
        self._error: str | None = None
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._head = b""
        self._frames: Frames | None = None

    async def open(self, context: ssl.SSLContext | None = None) -> Self:
        """Connect, and wait for the answer to the handshake.

        Raises:
            Refused: It was another than 101.
            OSError: Nobody listens, or whoever did has hung up.
        """
        loop = asyncio.get_running_loop()
        host, port = self.url.hostname or "", self.url.port or 0
        await loop.create_connection(lambda: self, host, port, ssl=context)
        async with asyncio.timeout(PATIENCE):
            await self.answered
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        fields = [("Host", self.url.netloc), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
        fields += [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", self._key)]
        lines = "".join(f"{name}: {value}\r\n" for name, value in [*fields, *self._headers])
        target = f"{self.url.path}?{self.url.query}"
        self._transport.write(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if self._frames is None:
            self._head += data
            head, _, data = self._head.partition(b"\r\n\r\n")
            if len(head) == len(self._head):
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                return  # the rest is its body: `connection_lost` tells what was said
            if accept_key(self._key).encode() not in head:
                self._transport.abort()
                raise Violation(f"sec-websocket-accept does not fit: {head!r}")
            self._frames = Frames()
            self.answered.set_result(None)
        if data:
            self._frames.feed(data)
            while (frame := self._frames.next()) is not None:
                self._hear(frame)

    def _hear(self, frame: Frame) -> None:
        data = bytes(frame.data)
        match frame.opcode:
            case Opcode.TEXT:
                self.messages.append(data.decode())
            case Opcode.BINARY:
                self.messages.append(data)
            case Opcode.PING:
                self.send(Opcode.PONG, data)
            case Opcode.CLOSE:
                told = close_frame(data)
                self.told = End(told.code, told.reason, time.monotonic())
                if self._answer_after is not None:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self._answer_after, self._answer, data[:2])
        self._heard.set()

    def _answer(self, payload: bytes) -> None:
        # RFC 6455, 5.5.1: an endpoint that did not send one answers with a close frame; 7.1.1: it
        # is the server that hangs up.
        if not self._transport.is_closing():
            self._has_answered = True
            self.send(Opcode.CLOSE, payload)
            if self._has_ended:
                # A server that is no longer there answers with RST, and nobody else looks for it.
                asyncio.get_running_loop().call_later(ECHO, self._look_for_reset)

    def _look_for_reset(self) -> None:
        peer = self._transport.get_extra_info("socket")
        number = 0 if self._transport.is_closing() else peer.getsockopt(SOL_SOCKET, SO_ERROR)
        if number:
            self._error = os.strerror(number)
        self._transport.close()

    def send(self, opcode: Opcode, data: bytes) -> None:
        self._transport.write(bytes(Frame(opcode, data).serialize(mask=True)))

    async def hears(self, count: int) -> list[str | bytes]:
        """Wait until so many messages have come in all, or there will be no more; return them."""
        async with asyncio.timeout(PATIENCE):
            while len(self.messages) < count and not self.ended.done() and self.told is None:
                self._heard.clear()
                await self._heard.wait()
        return self.messages

    def eof_received(self) -> bool:
        """Stay to give the answer that we owe; over TLS nobody can."""
        self._has_ended = True
        return self._owes_answer and self._transport.can_write_eof()

    @property
    def _owes_answer(self) -> bool:
        return self.told is not None and self._answer_after is not None and not self._has_answered

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        told = self.told or End(NO_CLOSE, "", time.monotonic())
        if error is not None:
            self._error = repr(error)
        elif self._owes_answer:
            self._error = "the server hung up before our answer"
        if not self.ended.done():  # who awaited it may have been cancelled
            self.ended.set_result(replace(told, error=self._error))
        self._heard.set()
        self._has_room.set()
        if not self.answered.done():
            self.answered.set_exception(self._refusal(error))

    def _refusal(self, error: Exception | None) -> Exception:
        head, _, body = self._head.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        if not status:
            return error or ConnectionResetError("hung up instead of answering the handshake")
        fields: Headers = [(name.lower(), value) for name, value in map(_field, lines)]
        return Refused(int(status.split()[1]), fields, body)

    def pause(self) -> None:
        """Read no more."""
        self._transport.pause_reading()

    async def room(self) -> None:
        """Wait until what was sent has left, or the connection has ended."""
        await self._has_room.wait()

    def pause_writing(self) -> None:
        self._has_room.clear()

    def resume_writing(self) -> None:
        self._has_room.set()

    def leave(self) -> None:
        """End the connection without a word."""
        if hasattr(self, "_transport") and not self._is_lost:
            self._transport.abort()
        if self.answered.done():
            self.answered.exception()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


@asynccontextmanager
async def crowd(
    url: str, count: int, context: ssl.SSLContext | None = None, answer_after: float | None = 0.0
) -> AsyncIterator[list[Visitor]]:
    """Open `count` connections, named by their number; in the end those that are left are cut."""
    visitors = [Visitor(f"{url}?name={number}", (), answer_after) for number in range(count)]
    places = asyncio.Semaphore(AT_ONCE)

    async def open_in_turn(visitor: Visitor) -> None:
        async with places:
            await visitor.open(context)

    try:
        async with asyncio.TaskGroup() as group:
            for visitor in visitors:
                group.create_task(open_in_turn(visitor))
        yield visitors
    finally:
        for visitor in visitors:
            visitor.leave()


async def ends_of(visitors: Iterable[Visitor]) -> list[End]:
    """Wait until all of them have ended."""
    async with asyncio.timeout(PATIENCE):
        return [await visitor.ended for visitor in visitors]


class Returner:
    """A client that comes back when it was lost, as the page of the demo does.

    Args:
        url: Where to.
        source: Of its random waits.

    Attributes:
        returns: When it was back, each time (`time.monotonic`), the first connection left out.
        refusals: What its attempts in between came to: a status, or 0 where nobody listened.
    """

    def __init__(self, url: str, source: random.Random) -> None:
        self.url = url
        self.ends: list[End] = []
        self.returns: list[float] = []
        self.refusals: list[int] = []
        self._random = source
        self._attempts = 0
        self._visitor: Visitor | None = None

    async def stay(self, on_open: Callable[[], None]) -> None:
        """Be connected, again and again, until cancelled."""
        is_first = True
        while True:
            if await self._connect():
                if not is_first:
                    self.returns.append(time.monotonic())
                is_first = False
                self._attempts = 0
                on_open()
                assert self._visitor is not None
                self.ends.append(await self._visitor.ended)
            # examples/chat/chat.html: setTimeout(connect, Math.random() * Math.min(8_000, …))
            wait = self._random.random() * min(8.0, 0.5 * 2**self._attempts)
            self._attempts += 1
            await asyncio.sleep(wait)

    async def _connect(self) -> bool:
        self._visitor = Visitor(self.url)
        try:
            await self._visitor.open()
        except Refused as refused:
            self.refusals.append(refused.status)
            return False
        except (OSError, TimeoutError):
            self.refusals.append(0)
            return False
        return True

    @property
    def is_back(self) -> bool:
        return bool(self.returns)

    def leave(self) -> None:
        if self._visitor is not None:
            self._visitor.leave()


@asynccontextmanager
async def returning(url: str, count: int, seed: int = 1) -> AsyncIterator[list[Returner]]:
    """Keep so many clients connected, who come back whenever they are lost."""
    source = random.Random(seed)
    returners = [Returner(f"{url}?name={number}", source) for number in range(count)]
    opened = asyncio.Semaphore(0)
    tasks: list[asyncio.Task[None]] = []
    try:
        for number, returner in enumerate(returners):
            tasks.append(asyncio.create_task(returner.stay(opened.release)))
            if number >= AT_ONCE:
                await opened.acquire()
        for _ in range(min(count, AT_ONCE)):
            await opened.acquire()
        yield returners
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        for returner in returners:
            returner.leave()


def histogram(moments: Iterable[float], start: float, end: float, bins: int) -> list[int]:
    """Count the moments in each of so many equal parts of the time from `start` to `end`."""
    counts = [0] * bins
    for moment in moments:
        counts[min(bins - 1, max(0, int((moment - start) / (end - start) * bins)))] += 1
    return counts


async def _open(urls: Iterable[str]) -> None:
    """Be a client process: open these, say so, and stay."""
    for url in urls:
        await Visitor(url).open()
    print("open", flush=True)  # noqa: T201 - to whoever started this
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_open(sys.argv[1:]))
