"""`yaat run` in a process of its own, and what a client does to it below HTTP: with bytes."""

import asyncio
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from servers import TESTS, Server, ServerPool, ServerSpec, yaat_run

T = TypeVar("T")

APP = "apps.run_bare:app"
LOOPS = ("uvloop", "asyncio")
TIMEOUT = 8.0
"""In seconds: below the default of `--handshake-timeout`, by which an absent option would work."""

UPGRADE: dict[str, str] = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
HELLO = b"\x81\x85\0\0\0\0hello"
"""A text message as a client frames it, with a mask that changes nothing."""
ECHOED = b"\x81\x05hello"


def specification(loop: str, *options: str) -> ServerSpec:
    """Return how `yaat run` is started on `loop` with these options, under a name of their own."""
    name = re.sub(r"[^\w.-]", "_", "".join(("run-", loop, *options)))[:150]
    return ServerSpec(name, yaat_run(loop)).but(*options)


def start(pool: ServerPool, loop: str, *options: str, app: str = APP) -> Server:
    return pool.get(specification(loop, *options), app)


class Answer(NamedTuple):
    """An HTTP response, and what came behind it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class Raw:
    """A connection that sends and reads bytes; every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(TIMEOUT):
            await self.writer.drain()

    async def ask(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a GET and read the answer."""
        await self.send(request(path, headers))
        return await self.answer()

    async def answer(self, *, of_head: bool = False) -> Answer:
        """Read one response, its body as long as its headers say."""
        async with asyncio.timeout(TIMEOUT):
            head = await self.reader.readuntil(b"\r\n\r\n")
            answer = parsed(head)
            if of_head or answer.status in (101, 204, 304) or answer.status < 200:
                return answer
            return answer._replace(body=await self._body(answer))

    async def _body(self, answer: Answer) -> bytes:
        length = answer.header("content-length")
        if length is not None:
            return await self.reader.readexactly(int(length))
        if answer.header("transfer-encoding") != "chunked":
            return await self.reader.read()
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body

    async def exactly(self, data: bytes) -> None:
        """Read so much, and assert that it is this."""
        async with asyncio.timeout(TIMEOUT):
            assert await self.reader.readexactly(len(data)) == data

    async def rest(self) -> bytes:
        """Read until the server hangs up."""
        received = b""
        async with asyncio.timeout(TIMEOUT):
            with suppress(ConnectionError):
                while data := await self.reader.read(65_536):
                    received += data
        return received

    async def upgraded(self, path: str, headers: Mapping[str, str] | None = None) -> None:
        """Open a WebSocket on this connection."""
        answer = await self.ask(path, {**UPGRADE, **(headers or {})})
        assert answer.status == 101, answer

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        """Send RST: SO_LINGER with a time of zero."""
        peer = self.writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def cut(self) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()


def parsed(head: bytes) -> Answer:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = [(name.lower(), value.strip()) for name, _, value in pairs]
    return Answer(int(first.split()[1]), headers, b"")


def request(path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> bytes:
    """Return the head of a request, whole."""
    fields = {"Host": "127.0.0.1", **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@asynccontextmanager
async def dialled(server: Server, address: str = "127.0.0.1") -> AsyncIterator[Raw]:
    """Open a TCP connection from an address of this machine."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, local_addr=(address, 0), limit=2**20
    )
    raw = Raw(reader, writer)
    try:
        yield raw
    finally:
        await raw.cut()


@asynccontextmanager
async def dialled_unix(path: str) -> AsyncIterator[Raw]:
    raw = Raw(*await asyncio.open_unix_connection(path))
    try:
        yield raw
    finally:
        await raw.cut()


@asynccontextmanager
async def dialled_tls(server: Server, context: ssl.SSLContext) -> AsyncIterator[Raw]:
    raw = Raw(*await asyncio.open_connection("127.0.0.1", server.port, ssl=context))
    try:
        yield raw
    finally:
        await raw.cut()


async def fetch(server: Server, path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Ask on a connection of its own."""
    async with dialled(server) as raw:
        return await raw.ask(path, headers)


async def until(condition: Callable[[], Awaitable[T | None]]) -> T:
    """Wait until there is something true, and return it."""
    value = None
    try:
        async with asyncio.timeout(TIMEOUT):
            while not (value := await condition()):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {TIMEOUT} s in vain") from None
    return value


async def until_written(server: Server, text: str, mark: int = 0, count: int = 1) -> str:
    """Wait until the server has written a text so often, and return all that it wrote."""

    async def written() -> str | None:
        output = server.written_since(mark)
        return output if output.count(text) >= count else None

    try:
        return await until(written)
    except AssertionError:
        raise AssertionError(f"{text!r} was not written:\n{server.written_since(mark)}") from None


class Held(NamedTuple):
    """What a process holds: open files, and what the application counts."""

    files: int
    counts: dict[str, int]


async def held(server: Server) -> Held:
    counts: dict[str, int] = json.loads((await fetch(server, "/held")).body)
    return Held(files_of(server.pid), counts)


def files_of(pid: int) -> int:
    """Count the open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a name for each is all there is


@asynccontextmanager
async def nothing_leaks(server: Server) -> AsyncIterator[None]:
    """Assert that the process holds at the end what it held before, and that it logged no trace."""
    await until(lambda: is_idle(server))
    before = await held(server)
    mark = server.mark()
    yield
    now = before

    async def is_back() -> bool:
        nonlocal now
        now = await held(server)
        # The connection of the question may be among the files, or may have gone already.
        return now.counts == before.counts and now.files <= before.files + 1

    try:
        await until(is_back)
    except AssertionError:
        raise AssertionError(f"held {before} before and {now} now") from None
    assert "Traceback" not in server.written_since(mark), server.written_since(mark)


async def is_idle(server: Server) -> bool:
    """Whether nobody is connected, and what the last test left behind has ended."""
    counts = (await held(server)).counts
    return counts["connections"] == counts["websockets"] == counts["https"] == 0


def memory(server: Server, line: str = "VmRSS") -> int:
    """The memory of the process in bytes: now, or (`VmHWM`) the most since `forget_peak`."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition(f"{line}:")[2].split()[0]) * 1024


def forget_peak(server: Server) -> None:
    # proc(5): "5: Reset the peak resident set size to the process's current" one.
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


def run_once(
    *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path = TESTS
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m yaat` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "yaat", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT * 3,
        check=False,
    )


async def gathered(works: Iterable[Awaitable[T]]) -> list[T]:
    """Do it all at once."""
    return list(await asyncio.gather(*works))
