"""What one connection can cost the server: no more than is promised, whatever its peer does.

A real uvicorn process with our class is tried by a client that does nothing by itself: it reads no
byte, answers no ping and sends no close frame unless it is told to. Memory is what the process has
in RAM, as the kernel counts it.
"""

import http.client
import json
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count, islice, repeat
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import pytest
from uvicorn.config import Config
from websockets.utils import apply_mask

from clients import Closed, close_frame
from documents import DOCS, tables
from servers import Server, ServerPool, ServerSpec
from yaat.server import ServerSettings, WebSocketProtocol

T = TypeVar("T")

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN, RSV1 = 0x80, 0x40
MASK = b"\x12\x34\x56\x78"
CHUNK = 65_536
MIB = 1_048_576
DEFAULTS = ServerSettings()
DEFLATE = "permessage-deflate"

TIMEOUT = 10.0
QUIET = 0.25
"""In seconds: a server that takes nothing for so long has stopped reading."""

HASTY = "apps.bounds:Hasty"
# In few processes, since each costs half a second to start.
SMALL = ("--ws", HASTY, "--ws-max-size", str(MIB), "--ws-ping-interval", "0")
LIVELY = (
    *("--ws-ping-interval", "0.5", "--ws-ping-timeout", "0.5"),
    *("--ws-max-queue", "4", "--ws-per-message-deflate", "false"),
)


# The server


class Measured:
    """A server process, its memory, and what its application tells."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._names = count()

    def connect(self, what: str, **options: Any) -> "BareClient":
        """Open a connection on which the application does `what`, see `apps.bounds`."""
        client = BareClient(self, what, f"{next(self._names)}-{time.monotonic_ns()}", **options)
        client.open()
        return client

    def ask(self, path: str) -> Any:
        """Ask the application over HTTP."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=TIMEOUT)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def held(self) -> dict[str, int]:
        """Count what the process holds."""
        held: dict[str, int] = self.ask("/held/")
        return held

    def memory(self) -> int:
        """The memory of the process now, in bytes."""
        pages = Path(f"/proc/{self.server.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def peak(self) -> int:
        """The most memory that it had since `forget_peak`, in bytes."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def forget_peak(self) -> None:
        # proc(5): "5: Reset the peak resident set size to the process's current" one.
        Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")

    @contextmanager
    def grows_by_at_most(self, bytes_: int) -> Iterator[None]:
        """Assert that the process has at most so much more memory at the end of the block."""
        self.held()
        before = self.memory()
        yield
        grown = self.memory() - before
        assert grown <= bytes_, f"grew by {grown / MIB:.2f} MiB, not {bytes_ / MIB:.2f}"

    @contextmanager
    def peaks_at_most(self, bytes_: int) -> Iterator[None]:
        """Assert that it never had more than so much beyond what it has now."""
        self.held()
        self.forget_peak()
        before = self.peak()
        yield
        grown = self.peak() - before
        assert grown <= bytes_, f"peaked at {grown / MIB:.2f} MiB, not {bytes_ / MIB:.2f}"

    def is_rid_of_all(self) -> bool:
        """Whether the server knows of no connection any more."""
        return self.held()["connections"] == 0


def until(condition: Callable[[], T | None]) -> T:
    """Wait until there is something true, and return it."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """Server processes of this module alone."""
    pool = ServerPool(tmp_path_factory.mktemp("bounds"))
    yield pool
    pool.stop()


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    return str(request.param)


def specification(loop: str, *options: str) -> ServerSpec:
    """Return how uvicorn is started on `loop`, with our class and options of its own."""
    fixed = ("--host", "127.0.0.1", "--loop", loop, "--log-level", "warning", "--no-access-log")
    classes = () if "--ws" in options else ("--ws", "yaat.server:WebSocketProtocol")

    def arguments(app: str, port: int) -> list[str]:
        return ["uvicorn", app, "--port", str(port), *fixed, *classes, *options]

    return ServerSpec("".join(("bounds-", loop, *options)).replace(":", "."), arguments)


def test_the_page_tells_the_defaults() -> None:
    *told, _ = tables(DOCS / "topics" / "server-bounds.md")
    assert len(told) == 3
    for _, default, ours, uvicorns, _ in chain(*told):
        values = [getattr(DEFAULTS, name) for name in named(ours) if name != "no_compression"]
        values += [getattr(Config("app"), name) for name in named(uvicorns) if name[:3] == "ws_"]
        for value in values:
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert f"{value:,.0f}" in re.findall(r"\d[\d,]*", default.replace(", ", " ")), ours
            else:
                assert value is True or default == "no bound", ours


def named(cell: str) -> list[str]:
    """The options that a cell names, as settings."""
    return [name[2:].replace("-", "_") for name in re.findall(r"`(--[\w-]+)`", cell)]


def start(pool: ServerPool, loop: str, *options: str) -> Measured:
    return Measured(pool.get(specification(loop, *options), "apps.bounds:app"))


@pytest.fixture
def server(pool: ServerPool, loop: str) -> Measured:
    """Our class with uvicorn's defaults and our own."""
    return start(pool, loop)


@pytest.fixture
def small(pool: ServerPool, loop: str) -> Measured:
    """It takes messages of 1 MiB, sends no pings, and waits 0.3 s for the answer to a close."""
    return start(pool, loop, *SMALL)


@pytest.fixture
def lively(pool: ServerPool, loop: str) -> Measured:
    """It pings every 0.5 s and waits as long for the answer; it queues 4 messages."""
    return start(pool, loop, *LIVELY)


@pytest.fixture
def fresh(loop: str, tmp_path: Path) -> Iterator[Measured]:
    """A process of its own, whose memory nobody else has stirred."""
    with Server(specification(loop), "apps.bounds:app", tmp_path) as server:
        yield Measured(server)


@pytest.fixture
def weighed(loop: str, tmp_path: Path) -> Iterator[Measured]:
    """A process that can say to the byte what it has allocated."""
    all_of_it = {"PYTHONMALLOC": "malloc"}
    with Server(specification(loop), "apps.bounds:app", tmp_path, all_of_it) as server:
        yield Measured(server)


# The client


class Frame(NamedTuple):
    """A frame that came from the server."""

    opcode: int
    data: bytes
    is_compressed: bool


class BareClient:
    """A connection on which nothing happens that was not asked for.

    Args:
        server: Where to.
        what: What the application does.
        name: Of the connection, among all of that application.
        extensions: What is offered.
        send_buffer: Of the socket (SO_SNDBUF), so that a server that does not read is felt soon.
        waits: For the answer to the handshake.
    """

    def __init__(
        self,
        server: Measured,
        what: str,
        name: str,
        *,
        extensions: str = "",
        send_buffer: int | None = None,
        waits: bool = True,
    ) -> None:
        self.server = server
        self.name = name
        self.response = b""
        self._path = f"/{what}/{name}"
        self._extensions = extensions
        self._waits = waits
        self._received = bytearray()
        self._unsent = bytearray()
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.reset()

    def open(self) -> None:
        self.socket.connect(("127.0.0.1", self.server.server.port))
        lines = [
            f"GET {self._path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        if self._extensions:
            lines.append(f"Sec-WebSocket-Extensions: {self._extensions}")
        self.send("\r\n".join([*lines, "", ""]).encode())
        if self._waits:
            self.read_response()

    def read_response(self) -> None:
        while b"\r\n\r\n" not in self._received:
            self._read()
        response, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received[:] = rest
        assert response.startswith(b"HTTP/1.1 101 "), response
        self.response = response.lower()

    def told(self) -> dict[str, Any]:
        """What happened to this connection, as the application has it."""
        told: dict[str, Any] = self.server.ask(f"/told/{self.name}")
        return told

    def allow(self) -> None:
        """Let the application go on."""
        self.server.ask(f"/allow/{self.name}")

    def ended(self) -> dict[str, Any]:
        """Wait until the application has ended, and return what it told."""
        return until(lambda: told if (told := self.told())["ended"] else None)

    # To the server

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def push(self, frames: Iterable[bytes]) -> int:
        """Send until the server takes no more; return how many frames it took in part."""
        pushed = 0
        for frame in frames:
            pushed += 1
            self._unsent += frame
            if len(self._unsent) >= CHUNK and not self._drain():
                return pushed
        self._drain()
        return pushed

    def _drain(self) -> bool:
        while self._unsent:
            if not select.select([], [self.socket], [], QUIET)[1]:
                return False
            self._send_some()
        return True

    def _send_some(self, size: int = CHUNK) -> None:
        sent = self.socket.send(self._unsent[:size], socket.MSG_DONTWAIT)
        del self._unsent[:sent]

    def is_blocked(self) -> bool:
        """Whether `push` ended because the server took no more."""
        return bool(self._unsent)

    def flood(self, chunks: Iterable[bytes], seconds: float) -> None:
        """Send for so long, as much as is taken."""
        deadline = time.monotonic() + seconds
        for chunk in chunks:
            self._unsent += chunk
            while self._unsent:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([], [self.socket], [], left)[1]:
                    return
                self._send_some(MIB)

    def finish(self) -> None:
        """Send the rest of what was pushed, and read what comes meanwhile, for later."""
        deadline = time.monotonic() + TIMEOUT
        while self._unsent:
            assert time.monotonic() < deadline, "the server takes nothing"
            readable, writable, _ = select.select([self.socket], [self.socket], [], 1)
            if writable:
                self._send_some()
            if readable:
                self._read()

    def frame(self, opcode: int, payload: bytes, **options: Any) -> None:
        """Send one frame, legal or not."""
        self.send(frame(opcode, payload, **options))

    def shut(self) -> None:
        """Send FIN, and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # From the server

    def read(self) -> Frame:
        """The next frame.

        Raises:
            EOFError: The server has hung up.
        """
        first, second = self._exactly(2)
        assert not second & 0x80, "a server masks nothing"
        size = second
        if second == 126:
            size = int.from_bytes(self._exactly(2))
        elif second == 127:
            size = int.from_bytes(self._exactly(8))
        return Frame(first & 0x0F, self._exactly(size), bool(first & RSV1))

    def message(self) -> bytes:
        """The next message; pings are answered meanwhile."""
        while (received := self.read()).opcode not in (TEXT, BINARY):
            assert received.opcode in (PING, PONG), self._what_ended(received)
            if received.opcode == PING:
                self.frame(PONG, received.data)
        return received.data

    def _what_ended(self, received: Frame) -> str:
        return f"{received} came; {self.server.server.written_since()}"

    def closed(self) -> Closed:
        """Read to the server's close frame; answer nothing."""
        while (received := self.read()).opcode != CLOSE:
            pass
        return close_frame(received.data)

    def cut(self) -> None:
        """Wait until the server has hung up."""
        with suppress(ConnectionError):
            while self.socket.recv(CHUNK):
                pass

    def drain(self) -> None:
        """Read as fast as can be, and throw it away, until the end."""
        with suppress(OSError):
            while self.socket.recv(MIB):
                pass

    def is_silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        return not self._received and not select.select([self.socket], [], [], seconds)[0]

    def read_until(self, end: bytes) -> bytes:
        """What comes up to `end`, and with it."""
        while not self._received.endswith(end):
            self._read()
        data = bytes(self._received)
        self._received.clear()
        return data

    def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._read()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _read(self) -> None:
        if not (data := self.socket.recv(4 * CHUNK)):
            raise EOFError("the server has hung up")
        self._received += data


def frame(opcode: int, payload: bytes, *, flags: int = FIN, size: int | None = None) -> bytes:
    """Return a client's frame, legal or not; one that claims `size` may have less."""
    size = len(payload) if size is None else size
    if size < 126:
        head = struct.pack("!BB", flags | opcode, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", flags | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", flags | opcode, 0x80 | 127, size)
    return head + MASK + apply_mask(payload, MASK)


def fragments(opcode: int, payload: bytes, size: int, *, flags: int = 0) -> Iterator[bytes]:
    """Return a message in fragments of `size` bytes, the last of which ends it."""
    starts = range(0, len(payload), size)
    for start in starts:
        end = FIN if start == starts[-1] else 0
        yield frame(opcode, payload[start : start + size], flags=flags | end)
        opcode, flags = CONTINUATION, 0


def compressed(payload: bytes) -> bytes:
    """Return `payload` as RFC 7692, 7.2.1 has it."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(
        b"\x00\x00\xff\xff"
    )


def bomb(mebibytes: int) -> bytes:
    """Return so many zeros, compressed to a thousandth."""
    stream = zlib.compressobj(level=9, wbits=-15)
    # A full flush ends on a byte and refers to nothing before it: the piece can be repeated.
    piece = stream.compress(bytes(MIB)) + stream.flush(zlib.Z_FULL_FLUSH)
    return piece * mebibytes


def numbered(size: int) -> Iterator[bytes]:
    """Return messages that begin with their number, for ever."""
    for number in count():
        yield b"%08d" % number * (size // 8) or b"x" * size


# A client that does not read


def stands_still(client: BareClient) -> int:
    """Wait until the application's sends return no more, and return how many have."""
    since, sent = time.monotonic(), 0
    while time.monotonic() < since + QUIET or not sent:
        if (now := client.told()["sent"]) != sent:
            since, sent = time.monotonic(), now
        time.sleep(0.01)
    return sent


def warm_up(server: Measured, what: str) -> None:
    with server.connect(what) as client:
        for _ in range(100):
            client.read()


def test_send_waits_for_a_client_that_never_reads(server: Measured) -> None:
    warm_up(server, "feed")
    with server.grows_by_at_most(DEFAULTS.write_buffer + 2 * MIB):
        client = server.connect("feed")
        stands_still(client)
    client.reset()
    assert "OSError" in client.ended()["raised"]


def test_everything_arrives_when_it_begins_to_read(server: Measured) -> None:
    with server.connect("feed") as client:
        waiting = stands_still(client) + 50
        for expected in islice(numbered(65_536), waiting):
            assert client.read() == (BINARY, expected, False)


def test_send_waits_in_every_task(server: Measured) -> None:
    warm_up(server, "choir")
    with server.grows_by_at_most(DEFAULTS.write_buffer + 2 * MIB):
        client = server.connect("choir")
        stands_still(client)
        # Room for some: not all who wait may take it.
        for _ in range(20):
            client.read()
        stands_still(client)
    client.reset()
    assert "OSError" in client.ended()["raised"]


@pytest.mark.parametrize("what", ["feed", "patter"])
def test_who_sends_for_ever_starves_nobody(server: Measured, what: str) -> None:
    with server.connect("echo") as other, server.connect(what) as client:
        reader = threading.Thread(target=client.drain)
        reader.start()
        for _ in range(10):
            other.frame(TEXT, b"still here")
            assert other.message() == b"still here"
        client.shut()
        reader.join(TIMEOUT)
        assert not reader.is_alive()


# An application that does not receive


class Pushed(NamedTuple):
    """What a client pushes: messages that the application counts.

    Args:
        frames: Of one message after the other, with its number.
        size: Of a message.
        at_most: How many are pushed where nothing stops it.
    """

    frames: Callable[[bytes], Iterable[bytes]]
    size: int
    at_most: int
    allowance: int = 0


def whole(message: bytes) -> Iterable[bytes]:
    return [frame(BINARY, message)]


NOISE = random.Random(1).randbytes(8192).hex().encode()


def noisy(message: bytes) -> bytes:
    """Return it compressed, but to a hundredth, not a thousandth: there are many to inflate."""
    noise = NOISE[: len(message) // 64]
    return compressed(message[:8] + noise + message[8 + len(noise) :])


def whole_compressed(message: bytes) -> Iterable[bytes]:
    return [frame(BINARY, noisy(message), flags=FIN | RSV1)]


def compressed_fragments(message: bytes) -> Iterable[bytes]:
    return fragments(TEXT, noisy(message), 500, flags=RSV1)


PUSHED = {
    "empty": Pushed(whole, 0, 5_000_000),
    "tiny": Pushed(lambda message: [frame(TEXT, "ā".encode())], 1, 3_000_000),
    "small": Pushed(whole, 32, 1_000_000),
    "large": Pushed(whole, CHUNK, 1_000),
    "fragments": Pushed(lambda message: fragments(TEXT, message, 128), 1024, 50_000),
    "compressed": Pushed(whole_compressed, MIB, 2_000, 16 * MIB),
    "compressed, small": Pushed(whole_compressed, 4096, 200_000, 16 * MIB),
    "compressed fragments": Pushed(compressed_fragments, MIB, 2_000, 16 * MIB),
}


@pytest.mark.parametrize(
    ("kind", "what"),
    # Where it waits when the first of many come, and takes one, another read follows that.
    [(kind, "hold") for kind in PUSHED]
    + [("tiny", "sip"), ("large", "sip"), ("compressed", "sip")],
)
def test_reading_pauses_while_the_application_does_not_receive(
    server: Measured, kind: str, what: str
) -> None:
    pushed = PUSHED[kind]
    messages = islice(numbered(pushed.size), pushed.at_most)
    frames = (b"".join(pushed.frames(message)) for message in messages)
    options: dict[str, Any] = {"extensions": DEFLATE, "send_buffer": CHUNK}
    with server.connect("hold", **options) as client:
        client.allow()
        client.send(b"".join(pushed.frames(b"0" * pushed.size)))
        client.frame(TEXT, b"end")
        client.message()
    with server.grows_by_at_most(2 * MIB + pushed.allowance):
        client = server.connect(what, **options)
        if what == "sip":
            client.frame(TEXT, b"a first one")
        sent = client.push(frames)
        assert client.is_blocked()
    with client:
        client.allow()
        client.finish()
        client.frame(TEXT, b"end")
        told = json.loads(client.message())
        assert told == {"messages": sent, "size": sent * pushed.size, "in order": True}


@pytest.mark.parametrize("way", ["it reads at last", "it goes"])
def test_an_echo_whose_client_only_sends(server: Measured, way: str) -> None:
    """Neither the application nor the client comes to the other's next message."""
    with server.grows_by_at_most(DEFAULTS.write_buffer + 2 * MIB):
        client = server.connect("echo", send_buffer=CHUNK)
        sent = client.push(frame(BINARY, each) for each in islice(numbered(CHUNK), 1_000))
        assert client.is_blocked()
    with client:
        if way == "it goes":
            client.reset()
            assert "OSError" in client.ended()["raised"]
            return
        client.finish()
        for expected in islice(numbered(CHUNK), sent):
            assert client.message() == expected


def test_what_comes_before_the_accept_is_bounded_too(server: Measured) -> None:
    with server.grows_by_at_most(2 * MIB):
        client = server.connect("undecided", send_buffer=CHUNK, waits=False)
        frames = (frame(BINARY, message) for message in numbered(CHUNK))
        client.push(islice(frames, 1_000))
        assert client.is_blocked()
    client.reset()
    client.allow()
    client.ended()


# Pings


def pings(number: int) -> bytes:
    """Return so many numbered pings."""
    return b"".join(frame(PING, b"%d" % each) for each in range(number))


@pytest.mark.parametrize(("size", "seconds"), [(0, 3.0), (125, 1.0)])
def test_a_flood_of_pings_whose_answers_nobody_reads(
    fresh: Measured, size: int, seconds: float
) -> None:
    with fresh.connect("echo") as client:
        client.send(pings(500))
        for number in range(500):
            assert client.read().data == b"%d" % number
    # In one piece, so that the client is not what is measured.
    many = frame(PING, b"x" * size) * (4 * CHUNK // (6 + size))
    with fresh.grows_by_at_most(5 * MIB):
        client = fresh.connect("echo")
        client.flood(repeat(many), seconds)
    with client:
        client.finish()
        client.frame(PING, b"the last one")
        answered = client.read_until(struct.pack("!BB", FIN | PONG, 12) + b"the last one")
        assert len(answered) % (2 + size) == 14 % (2 + size)
        client.frame(TEXT, b"still here")
        assert client.message() == b"still here"


def test_who_reads_gets_a_pong_for_each_ping(server: Measured) -> None:
    with server.connect("echo") as client:
        for number in range(200):
            client.frame(PING, b"%d" % number)
            assert client.read() == (PONG, b"%d" % number, False)
        client.send(pings(500))
        for number in range(500):
            assert client.read() == (PONG, b"%d" % number, False)


def test_pings_are_answered_while_the_application_does_not_receive(server: Measured) -> None:
    with server.connect("hold") as client:
        client.frame(TEXT, b"00000000")
        client.frame(PING, b"are you there?")
        assert client.read() == (PONG, b"are you there?", False)
        client.allow()


def test_pongs_that_nobody_asked_for_cost_nothing(server: Measured) -> None:
    pong = frame(PONG, b"x" * 125)
    with server.connect("echo") as client, server.grows_by_at_most(MIB):
        client.send(pong * 100_000)
        client.frame(TEXT, b"still here")
        assert client.message() == b"still here"


# How long a message may be


@pytest.mark.parametrize("size", [2 * MIB, 65_536, 1_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_as_long_as_it_may_be(small: Measured, opcode: int, size: int) -> None:
    with small.connect("measure") as client:
        for part in fragments(opcode, b"x" * MIB, size):
            client.send(part)
        assert client.message() == b"%d" % MIB


@pytest.mark.parametrize("size", [2 * MIB, 65_536, 1_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_that_is_too_long_by_one(small: Measured, opcode: int, size: int) -> None:
    with small.connect("measure") as client:
        with suppress(ConnectionError):
            for part in fragments(opcode, b"x" * (MIB + 1), size):
                client.send(part)
        assert client.closed().code == 1009


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [10_000, 100])
def test_what_is_inflated_counts(small: Measured, opcode: int, size: int) -> None:
    with small.connect("measure", extensions=DEFLATE) as client:
        for part in fragments(opcode, compressed(b"x" * MIB), size, flags=RSV1):
            client.send(part)
        assert client.message() == b"%d" % MIB
        for part in fragments(opcode, compressed(b"x" * (MIB + 1)), size, flags=RSV1):
            client.send(part)
        assert client.closed().code == 1009


@pytest.mark.parametrize("claimed", [MIB + 1, 2**31, 2**62])
def test_a_claim_is_enough(small: Measured, claimed: int) -> None:
    with small.connect("measure") as client:
        client.frame(BINARY, b"", size=claimed)
        assert client.closed().code == 1009


def test_a_claim_that_is_too_much_for_all_fragments(small: Measured) -> None:
    with small.connect("measure") as client:
        client.frame(BINARY, bytes(MIB - 1), flags=0)
        client.frame(CONTINUATION, b"", size=2)
        assert client.closed().code == 1009


def test_the_limit_of_uvicorn_is_kept_to_the_byte(server: Measured) -> None:
    with server.connect("measure") as client:
        client.frame(BINARY, bytes(16 * MIB))
        assert client.message() == b"%d" % (16 * MIB)
        client.frame(BINARY, b"", size=16 * MIB + 1)
        assert client.closed().code == 1009


def test_a_long_message_leaves_nothing_behind(server: Measured) -> None:
    with server.connect("measure") as client:
        client.frame(BINARY, bytes(CHUNK))
        client.message()
        server.held()
        before = server.memory()
        client.frame(BINARY, bytes(16 * MIB))
        client.message()
        # The application may still hold what it has last received.
        client.frame(BINARY, b"")
        client.message()
        server.held()
        assert server.memory() - before <= MIB


BOMBS: dict[str, Callable[[], Iterable[bytes]]] = {
    "in one frame": lambda: [frame(BINARY, bomb(256), flags=FIN | RSV1)],
    "as a text": lambda: [frame(TEXT, bomb(256), flags=FIN | RSV1)],
    "in fragments": lambda: fragments(BINARY, bomb(256), 4096, flags=RSV1),
    "in small fragments": lambda: fragments(TEXT, bomb(256), 64, flags=RSV1),
}


@pytest.mark.parametrize("way", BOMBS)
def test_a_bomb(server: Measured, way: str) -> None:
    with server.peaks_at_most((16 + 8) * MIB):
        throw(server, BOMBS[way]())


def test_a_bomb_behind_a_small_limit(small: Measured) -> None:
    with small.peaks_at_most((1 + 8) * MIB):
        for bomb_ in BOMBS.values():
            throw(small, bomb_())


def throw(server: Measured, frames: Iterable[bytes]) -> None:
    with server.connect("measure", extensions=DEFLATE) as client:
        client.push(frames)
        assert client.closed().code == 1009


def test_a_compressed_message_that_never_grows(small: Measured) -> None:
    """Stored blocks with nothing in them: whatever comes, it inflates to nothing."""
    nothing = bytes.fromhex("000000ffff") * 13_107
    with small.peaks_at_most(2 * MIB), small.connect("measure", extensions=DEFLATE) as client:
        client.frame(BINARY, nothing, flags=RSV1)
        client.push(repeat(frame(CONTINUATION, nothing, flags=0), 1_000))
        assert client.closed().code == 1009


def test_a_compressed_message_that_ends_again_and_again(server: Measured) -> None:
    """RFC 7692, 7.2.3.4: a block may say that it is the last; that is true for its stream only."""
    ends = bytes.fromhex("0300")
    with server.connect("measure", extensions=DEFLATE) as client:
        client.frame(BINARY, ends * 50 + b"\0", flags=FIN | RSV1)
        assert client.message() == b"0"
        # A stream for every other byte is work for nothing.
        client.frame(BINARY, ends * 100_000 + b"\0", flags=FIN | RSV1)
        assert client.closed().code == 1007


# In how many pieces


def test_four_mebibytes_in_fragments_of_64_bytes(server: Measured) -> None:
    with server.connect("measure") as client:
        client.send(b"".join(fragments(BINARY, bytes(4 * MIB), 64)))
        assert client.message() == b"%d" % (4 * MIB)


def crumbs(number: int, size: int) -> Iterator[bytes]:
    """Return a message of so many fragments of `size` bytes, and an empty one that ends it."""
    yield frame(BINARY, bytes(size), flags=0)
    yield from (frame(CONTINUATION, bytes(size), flags=0) for _ in range(number - 1))
    yield frame(CONTINUATION, b"")


@pytest.mark.parametrize("size", [0, 1, 63])
def test_as_many_crumbs_as_there_may_be(server: Measured, size: int) -> None:
    number = DEFAULTS.max_tiny_fragments
    with server.connect("measure") as client:
        for _ in range(3):  # the limit is one of each message
            client.send(b"".join(crumbs(number, size)))
            assert client.message() == b"%d" % (number * size)


@pytest.mark.parametrize("size", [0, 1, 63])
def test_too_many_crumbs(server: Measured, size: int) -> None:
    with server.connect("measure") as client:
        client.send(b"".join(crumbs(DEFAULTS.max_tiny_fragments + 1, size)))
        assert client.closed().code == 1009


def test_crumbs_of_a_compressed_message(server: Measured) -> None:
    with server.connect("measure", extensions=DEFLATE) as client:
        client.frame(BINARY, b"", flags=RSV1)
        client.send(frame(CONTINUATION, b"", flags=0) * DEFAULTS.max_tiny_fragments)
        assert client.closed().code == 1009


def test_a_message_byte_by_byte(server: Measured) -> None:
    message = frame(BINARY, bytes(CHUNK))
    with server.connect("measure") as client:
        client.send(message)
        assert client.message() == b"65536"
        with server.peaks_at_most(MIB):
            for at in range(len(message)):
                client.send(message[at : at + 1])
            assert client.message() == b"65536"


def test_half_messages(server: Measured) -> None:
    """Of many clients at once, in small pieces: no more than a few times what has come."""
    half = frame(BINARY, bytes(2 * CHUNK))[:CHUNK]
    with server.grows_by_at_most(4 * 40 * CHUNK):
        clients = [server.connect("measure") for _ in range(40)]
        for at in range(0, CHUNK, 1024):
            for client in clients:
                client.send(half[at : at + 1024])
        server.ask("/held/")
    for client in clients:
        client.reset()


# Control frames


BAD_FRAMES = {
    "a ping of 126 bytes": (frame(PING, bytes(126)), 1002),
    "a ping that claims 126 bytes": (frame(PING, b"", size=126), 1002),
    "a pong of 126 bytes": (frame(PONG, bytes(126)), 1002),
    "a close of 126 bytes": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "a ping in fragments": (frame(PING, b"", flags=0), 1002),
    "a close in fragments": (frame(CLOSE, b"\x03\xe8", flags=0), 1002),
    "a compressed ping": (frame(PING, b"", flags=FIN | RSV1), 1002),
    "half a code": (frame(CLOSE, b"\x03"), 1002),
    "a reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    **{
        f"code {code}": (frame(CLOSE, struct.pack("!H", code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("wrong", BAD_FRAMES)
def test_a_control_frame_that_cannot_be(small: Measured, wrong: str) -> None:
    data, code = BAD_FRAMES[wrong]
    with small.connect("echo", extensions=DEFLATE) as client:
        client.send(data)
        assert client.closed().code == code
        client.cut()
        assert client.ended()["code"] in (code, 1006)


# The end


def test_ten_seconds_are_given_to_a_close() -> None:
    assert WebSocketProtocol.settings.close_timeout == 10


def test_a_peer_that_never_answers_a_close_is_cut(small: Measured) -> None:
    with small.connect("leave") as client:
        assert client.closed().code == 1000
        client.cut()
        client.ended()


def endless() -> Iterator[bytes]:
    yield from (frame(BINARY, message) for message in numbered(CHUNK))


def garbage() -> Iterator[bytes]:
    while True:
        yield b"\xff" * CHUNK


@pytest.mark.parametrize("chatter", [endless, garbage])
def test_a_peer_that_goes_on_instead_is_cut(
    small: Measured, chatter: Callable[[], Iterator[bytes]]
) -> None:
    with small.grows_by_at_most(2 * MIB), small.connect("leave") as client:
        assert client.closed().code == 1000
        with pytest.raises(ConnectionError):
            client.flood(chatter(), TIMEOUT)
        client.ended()


@pytest.mark.parametrize(
    ("data", "code"), [(b"\xff\xff", 1002), (frame(BINARY, b"", size=MIB + 1), 1009)]
)
def test_a_peer_that_broke_the_rules_and_does_not_go_is_cut(
    small: Measured, data: bytes, code: int
) -> None:
    with small.connect("echo") as client:
        client.send(data)
        assert client.closed().code == code
        client.cut()
        client.ended()


@pytest.mark.parametrize("chatter", [endless, garbage])
def test_a_peer_that_broke_the_rules_and_goes_on_is_cut(
    small: Measured, chatter: Callable[[], Iterator[bytes]]
) -> None:
    with small.grows_by_at_most(2 * MIB), small.connect("echo") as client:
        client.send(b"\xff\xff")
        assert client.closed().code == 1002
        with pytest.raises(ConnectionError):
            client.flood(chatter(), TIMEOUT)
        client.ended()


@pytest.mark.parametrize("payload", [b"\x03\xe8", b""])
def test_a_peer_that_closes_and_does_not_go_is_cut(small: Measured, payload: bytes) -> None:
    with small.connect("echo") as client:
        client.frame(CLOSE, payload)
        assert client.closed().code == (1000 if payload else 1005)
        client.cut()
        client.ended()


@pytest.mark.parametrize("way", ["leave", "return"])
def test_a_close_that_does_not_get_through(small: Measured, way: str) -> None:
    with small.connect(f"stuff-and-{way}"):
        until(small.is_rid_of_all)


LAST_WORDS: dict[str, Callable[[BareClient], object]] = {
    "a close": lambda client: client.frame(CLOSE, b"\x03\xe8"),
    "a wrong frame": lambda client: client.send(b"\xff\xff"),
    "a FIN": lambda client: client.shut(),
}


@pytest.mark.parametrize("words", LAST_WORDS)
def test_an_answer_that_does_not_get_through(small: Measured, words: str) -> None:
    with small.connect("stuff-and-receive") as client:
        stands_still(client)
        LAST_WORDS[words](client)
        until(small.is_rid_of_all)
        client.ended()


def test_a_server_that_is_stopped_waits_no_longer_for_who_does_not_read(
    loop: str, tmp_path: Path
) -> None:
    specified = specification(loop, "--ws", HASTY)
    with (
        Server(specified, "apps.bounds:app", tmp_path) as server,
        Measured(server).connect("stuff-and-receive") as client,
    ):
        stands_still(client)
        server.terminate()
        until(lambda: not server.alive)


# Keepalive


def test_a_silent_peer_is_found(lively: Measured) -> None:
    with lively.connect("echo") as client:
        assert client.read().opcode == PING
        assert client.closed().code == 1011
        client.cut()
        assert client.ended()["code"] in (1006, 1011)


def test_a_frozen_process_is_found(lively: Measured) -> None:
    program = "import sys, websockets.sync.client as client\n"
    program += "with client.connect(sys.argv[1]) as peer:\n peer.send('here'); print(peer.recv())\n"
    program += " peer.recv()"
    url = lively.server.url("/echo/frozen")
    command = [sys.executable, "-c", program, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"here\n"
            child.send_signal(signal.SIGSTOP)
            until(lambda: lively.ask("/told/frozen")["ended"])
            assert lively.ask("/told/frozen")["code"] in (1006, 1011)
        finally:
            child.kill()


def test_a_peer_that_answers_stays(lively: Measured) -> None:
    with lively.connect("echo") as client:
        for _ in range(4):
            ping = client.read()
            assert ping.opcode == PING
            client.frame(PONG, ping.data)
        client.frame(TEXT, b"still here")
        assert client.message() == b"still here"


def test_half_a_frame_and_then_silence(lively: Measured) -> None:
    with lively.connect("echo") as client:
        client.frame(BINARY, b"half", size=8)
        assert client.closed().code == 1011
        client.cut()
        assert client.ended()["code"] in (1006, 1011)


def test_no_pings_where_none_are_wanted(small: Measured) -> None:
    with small.connect("echo") as client:
        assert client.is_silent(1.0)
        client.frame(TEXT, b"still here")
        assert client.message() == b"still here"


def held_up(server: Measured) -> tuple[BareClient, int]:
    """Push until an application that does not receive has stopped the server's reading."""
    client = server.connect("hold", send_buffer=CHUNK)
    pushed = client.push(frame(BINARY, message) for message in islice(numbered(4096), 100_000))
    assert client.is_blocked()
    return client, pushed


def test_a_peer_is_not_lost_while_the_application_is_slow(lively: Measured) -> None:
    client, pushed = held_up(lively)
    with client:
        # Its pongs wait behind its messages, so it cannot be asked whether it is there.
        deadline = time.monotonic() + 2.0
        while (left := deadline - time.monotonic()) > 0:
            if not client.is_silent(left):
                ping = client.read()
                assert ping.opcode == PING
                client.push([frame(PONG, ping.data)])
        client.allow()
        client.finish()
        client.frame(TEXT, b"end")
        told = json.loads(client.message())
        assert told == {"messages": pushed, "size": pushed * 4096, "in order": True}


def test_a_peer_that_went_while_the_application_was_slow_is_found_later(lively: Measured) -> None:
    client, _ = held_up(lively)
    with client:
        client.allow()
        assert client.ended()["code"] in (1006, 1011)


def test_a_reset_is_found_though_nobody_receives(lively: Measured) -> None:
    client, _ = held_up(lively)
    client.reset()
    until(lively.is_rid_of_all)
    client.allow()
    assert client.ended()["code"] in (1006, 1011)


# uvicorn's other options


def unread(server: Measured, client: BareClient) -> int:
    """How many bytes of what the client sent the kernel has and the server has not read."""
    ends = f"{server.server.port:04X} 0100007F:{client.socket.getsockname()[1]:04X}"

    def connections() -> list[str]:
        # Read while others come and go, the table may lack some.
        table = Path("/proc/net/tcp").read_text()
        return [line for line in table.splitlines() if ends in line]

    (connection,) = until(connections)
    return int(connection.split()[4].partition(":")[2], 16)


def test_no_more_messages_are_queued_than_uvicorn_was_told(lively: Measured) -> None:
    message = frame(TEXT, b"00000000")
    with lively.connect("hold") as client:
        taken = 0
        while True:
            client.send(message)
            # What was there to be read has been when it has answered somebody else twice.
            client.told()
            client.told()
            if unread(lively, client):
                break
            taken += 1
            assert taken < 10
        client.allow()
        assert 4 <= taken <= 5


def test_no_compression_where_none_is_wanted(lively: Measured) -> None:
    with lively.connect("echo", extensions=DEFLATE) as client:
        assert DEFLATE.encode() not in client.response
        client.frame(TEXT, compressed(b"hello"), flags=FIN | RSV1)
        assert client.closed().code == 1002


# Many


def test_a_thousand_that_are_cut_leave_nothing_behind(weighed: Measured) -> None:
    def come_and_go() -> None:
        clients = [BareClient(weighed, "echo", "crowd") for _ in range(1_000)]
        for client in clients:
            client.open()
        for client in clients:
            client.frame(TEXT, b"hello")
        for client in clients:
            client.reset()
        until(weighed.is_rid_of_all)

    def left() -> tuple[int, ...]:
        held = weighed.held()
        return held["tasks"], held["connections"], held["objects"]

    at_first = left()
    come_and_go()  # what is made once is made here
    allocated, memory = weighed.held()["allocated"], weighed.memory()
    come_and_go()
    until(lambda: left() == at_first)
    assert weighed.held()["allocated"] - allocated < 64 * 1_000
    # That which the allocator keeps is less sure: a page, at most, for each of them.
    assert weighed.memory() - memory <= 4 * MIB


def test_compression_costs_nothing_to_hold(weighed: Measured) -> None:
    def cost(number: int, extensions: str) -> float:
        before = weighed.held()["allocated"]
        clients = [weighed.connect("echo", extensions=extensions) for _ in range(number)]
        for client in clients:
            if extensions:
                assert DEFLATE.encode() in client.response
                client.frame(TEXT, compressed(b"hello" * 200), flags=FIN | RSV1)
            else:
                client.frame(TEXT, b"hello" * 200)
            assert client.read().is_compressed == bool(extensions)
        each = (weighed.held()["allocated"] - before) / number
        for client in clients:
            client.reset()
        until(weighed.is_rid_of_all)
        return each

    offers = ("", DEFLATE, f"{DEFLATE}; client_max_window_bits; server_max_window_bits=15")
    for offer in offers:  # what is made once is made here
        cost(100, offer)
    rounds = [[cost(100, offer) for offer in offers] for _ in range(2)]
    # The least of each: now and then something that all share grows, as a dict does.
    without, *with_ = map(min, zip(*rounds, strict=True))
    assert max(with_) - without < 256
