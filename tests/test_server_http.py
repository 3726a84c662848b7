"""The HTTP class between a transport and time that do as they are told.

How bytes come is chance on a real socket. Here every way is taken: each cut of a head, byte by
byte, all at once, with what belongs to the next behind it; and each second is the test's.
"""

import asyncio
import functools
import gc
import itertools
import logging
import math
import pickle
import re
import resource
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple, ParamSpec

import pytest
import uvicorn
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from fuzz.frames import frame
from scripted import idle, in_scripted_time
from yaat.server import ServerSettings, WebSocketProtocol, codec
from yaat.server.http import HTTPProtocol, State
from yaat.server.protocol import FAREWELL
from yaat.types import Message, Receive, Scope, Send

P = ParamSpec("P")

HERE = ("127.0.0.1", 8000)
PEER = ("192.0.2.1", 50_000)
HIGH = 65_536
BODY = b"hello, world"


class Line(asyncio.Transport):
    """A transport as asyncio's are, with the network's part played by the test.

    Attributes:
        written: What was written.
        calls: How it was ended, in order.
        reads: Whether the peer reads what is written.
        lost: Whether the connection is over.
        lingers: Whether it is not over when we close it: on TLS the peer has a part in that.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        *,
        client: tuple[str, int] | None = PEER,
        can_write_eof: bool = True,
    ) -> None:
        super().__init__({"sockname": HERE, "peername": client})
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = protocol
        self._can_write_eof = can_write_eof
        self._coming: deque[bytes] = deque()
        self._paused = self._closing = self._full = self._eof = False
        self._unsent = 0
        self.written = b""
        self.calls: list[str] = []
        self.reads = True
        self.lost = False
        self.lingers = False
        protocol.connection_made(self)

    # The network's part.

    def bring(self, *packets: bytes) -> None:
        """Something comes in; while reading is paused it waits in the kernel."""
        self._coming.extend(packets)
        self._deliver()

    def _deliver(self) -> None:
        if self._coming and not (self._paused or self._closing):
            self._protocol.data_received(self._coming.popleft())
            self._loop.call_soon(self._deliver)

    def lose(self, error: Exception | None = None) -> None:
        """The connection is over."""
        if not self.lost:
            self.lost = self._closing = True
            self._protocol.connection_lost(error)

    def drain(self) -> None:
        """The peer reads what it has not read."""
        self.reads = True
        self._unsent = 0
        if self._full:
            self._full = False
            self._protocol.resume_writing()
        if self._closing:
            self.lose()

    # The protocol's part.

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.lost:
            return
        self.written += bytes(data)
        self._unsent += 0 if self.reads else len(data)
        if self._unsent > HIGH and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return self._can_write_eof

    def write_eof(self) -> None:
        assert self._can_write_eof
        self._eof = True
        self.calls.append("write_eof")

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.calls.append("close")
            if not (self._unsent or self.lingers):
                self._loop.call_soon(self.lose)

    def abort(self) -> None:
        self._closing = True
        self.calls.append("abort")
        self._loop.call_soon(self.lose)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self._deliver)


class Stage:
    """A server without a socket, and the application that it serves.

    What a path does: `/slow` answers when the gate is open; `/listen` too, and waits for a
    disconnect meanwhile, as streaming responses do; `/parts` gives the first part of its answer
    before; `/body` answers with the body, `/deaf` without having read it; all others answer at
    once, `/long` with a lot. A WebSocket echoes what comes.
    """

    def __init__(self, settings: ServerSettings | None = None, **options: Any) -> None:
        self.settings = settings or ServerSettings()
        self.gate = asyncio.Event()
        self.asked: list[str] = []
        self.scopes: list[Scope] = []
        self.received: list[Message] = []
        self.sent = 0
        self.errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: self.errors.append(context)
        )
        self.config = uvicorn.Config(
            self._app,
            http=HTTPProtocol,
            ws=WebSocketProtocol,
            interface="asgi3",
            log_config=None,
            timeout_keep_alive=self.settings.keep_alive_timeout,  # type: ignore[arg-type]
            **{"proxy_headers": False, **options},
        )
        self.config.settings = self.settings  # type: ignore[attr-defined]
        self.config.load()
        self.state = State(self.settings)

    def line(self, **keys: Any) -> Line:
        """A client connects."""
        return Line(HTTPProtocol(self.config, self.state, {"shared": 1}), **keys)

    @property
    def tasks(self) -> int:
        return len(self.state.tasks)

    @property
    def connections(self) -> list[type]:
        return [type(each) for each in self.state.connections]

    # The application.

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await self._websocket(receive, send)
        else:
            self.asked.append(f"{scope['method']} {scope['path']}")
            await self._http(scope["path"], receive, send)

    async def _http(self, path: str, receive: Receive, send: Send) -> None:
        body = b"answer of " + path.encode()
        begins: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "/slow": self._wait,
            "/listen": functools.partial(self._listen, receive),
        }
        if path in begins:
            await begins[path]()
        elif path == "/body":
            body = await self._body(receive)
        elif path == "/long":
            body = bytes(HIGH + 1)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        if path == "/parts":
            await send({"type": "http.response.body", "body": body[:3], "more_body": True})
            await self.gate.wait()
            body = body[3:]
        await send({"type": "http.response.body", "body": body})

    async def _wait(self) -> None:
        await self.gate.wait()

    async def _listen(self, receive: Receive) -> None:
        await receive()
        hears = asyncio.create_task(self._hear(receive))
        await self.gate.wait()
        hears.cancel()

    async def _hear(self, receive: Receive) -> None:
        self.received.append(await receive())

    async def _body(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            self.received.append(message)
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def _websocket(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
            self.sent += 1


class Answer(NamedTuple):
    """An answer to a request."""

    status: int
    body: bytes
    headers: dict[bytes, bytes]


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Read what was written: each answer, and behind an upgrade each frame as (opcode, payload)."""
    return [(each[0], each[1]) for each in _answers(written)]


def _answers(written: bytes) -> Iterator[tuple[int, bytes, dict[bytes, bytes]]]:
    while written:
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, head
        status, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        number = int(status.split()[1])
        size = int(headers.get(b"content-length", b"0"))
        assert len(written) >= size, "half an answer"
        yield number, written[:size], headers
        written = written[size:]
        if number == 101:
            yield from _frames(written)
            return


def _frames(data: bytes) -> Iterator[tuple[int, bytes, dict[bytes, bytes]]]:
    while data:
        size = data[1]
        assert size < 126
        yield data[0] & 0x7F, data[2 : 2 + size], {}
        data = data[2 + size :]


def last_answer(line: Line) -> Answer:
    number, body, headers = list(_answers(line.written))[-1]
    return Answer(number, body, headers)


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a test wait without waiting."""

    @functools.wraps(test)
    def play(*args: P.args, **keys: P.kwargs) -> None:
        in_scripted_time(lambda: test(*args, **keys))

    return play


def request(path: str = "/", *lines: bytes, method: str = "GET", body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1".encode(), b"Host: a", *lines, b"", b""]
    return b"\r\n".join(head) + body


def post(path: str = "/body", body: bytes = BODY, *lines: bytes) -> bytes:
    return request(path, b"Content-Length: %d" % len(body), *lines, method="POST", body=body)


def chunked(*chunks: bytes, trailer: bytes = b"", path: str = "/body") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    coding = b"Transfer-Encoding: chunked"
    return request(path, coding, method="POST", body=body + b"0\r\n" + trailer + b"\r\n")


UPGRADE = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
HANDSHAKE = request("/ws", *UPGRADE)
HI, THERE = frame(codec.TEXT, b"hi"), frame(codec.TEXT, b"there")
BYE = frame(codec.CLOSE, b"\x03\xe8")
ECHOED = [(101, b""), (codec.TEXT, b"hi"), (codec.TEXT, b"there")]
BAD = (400, b"Bad Request")
TOO_LARGE = (431, b"Request Header Fields Too Large")
TOO_LATE = (408, b"Request Timeout")
UNAVAILABLE = (503, b"Service Unavailable")


def answered(path: str) -> tuple[int, bytes]:
    return 200, b"answer of " + path.encode()


# What comes, and what follows from it, in whatever pieces it comes.
COMES: dict[str, tuple[bytes, list[tuple[int, bytes]]]] = {
    "request": (request("/now"), [answered("/now")]),
    "empty lines first": (b"\r\n\r\n" + request("/now"), [answered("/now")]),
    "query": (request("/now?a=%20"), [answered("/now")]),
    "body": (post(), [(200, BODY)]),
    "no body": (post(body=b""), [(200, b"")]),
    "chunks": (chunked(BODY[:5], BODY[5:]), [(200, BODY)]),
    "trailers": (chunked(BODY, trailer=b"X: 1\r\nY: 2\r\n"), [(200, BODY)]),
    "body not read": (post("/deaf"), [answered("/deaf")]),
    "two requests": (request("/one") + request("/two"), [answered("/one"), answered("/two")]),
    "three": (
        request("/one") + post() + request("/two"),
        [answered("/one"), (200, BODY), answered("/two")],
    ),
    "chunks, and a request": (chunked(BODY) + request("/two"), [(200, BODY), answered("/two")]),
    "last": (request("/one", b"Connection: close"), [answered("/one")]),
    "old": (b"GET /old HTTP/1.0\r\n\r\n", [answered("/old")]),
    "handshake": (HANDSHAKE, ECHOED[:1]),
    "handshake, frames": (HANDSHAKE + HI + THERE, ECHOED),
    "request, handshake, frames": (
        request("/one") + HANDSHAKE + HI + THERE,
        [answered("/one"), *ECHOED],
    ),
    "body, handshake, frames": (post() + HANDSHAKE + HI + THERE, [(200, BODY), *ECHOED]),
    "two requests, handshake, frames": (
        request("/one") + request("/two") + HANDSHAKE + HI + THERE,
        [answered("/one"), answered("/two"), *ECHOED],
    ),
    "handshake, good bye": (
        HANDSHAKE + HI + THERE + BYE,
        [*ECHOED, (codec.CLOSE, b"\x03\xe8")],
    ),
    "old handshake": (HANDSHAKE.replace(b"1.1", b"1.0"), [answered("/ws")]),
    "another upgrade": (
        request("/up", b"Upgrade: h2c", b"Connection: Upgrade"),
        [answered("/up")],
    ),
    "upgrade without connection": (request("/up", b"Upgrade: websocket"), [answered("/up")]),
    "another upgrade, a request": (
        request("/up", b"Upgrade: h2c", b"Connection: Upgrade") + request("/two"),
        [answered("/up"), answered("/two")],
    ),
    "wrong handshake": (
        request("/ws", *UPGRADE[:3]),
        [(400, b"There has to be one Sec-WebSocket-Key, of 16 bytes in base64.")],
    ),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [BAD]),
    "no header": (b"GET /now HTTP/1.1\r\nHost a\r\n\r\n", [BAD]),
    "too many headers": (request("/now", *[b"X: 1"] * 130), [TOO_LARGE]),
    "too many trailers": (chunked(BODY, trailer=b"X: 1\r\n" * 130), [TOO_LARGE]),
}


def settled(stage: Stage, line: Line, expected: list[tuple[int, bytes]], cut: object) -> None:
    assert answers(line.written) == expected, cut
    assert stage.errors == [], cut


async def brought(stage: Stage, *packets: bytes) -> Line:
    """A client sends packets, a turn of the loop each, and all that can be done is done."""
    line = stage.line()
    for packet in packets:
        line.bring(packet)
        await idle(2)
    await idle(40)
    return line


def two(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """Every cut; of what is long not every one."""
    for at in range(1, len(data), 1 + len(data) // 400):
        yield data[:at], data[at:]


def three(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """Every cut where something ends or begins, with every other one."""
    ends = [at + shift for at in _ends(data) for shift in (-1, 0, 1)]
    places = sorted({at for at in ends if 0 < at < len(data)})
    for first, second in itertools.combinations(places, 2):
        yield data[:first], data[first:second], data[second:]


def _ends(data: bytes) -> list[int]:
    return [found.end() for found in re.finditer(rb"\r\n|: | ", data)][:14]


WAYS: dict[str, Callable[[bytes], Iterable[tuple[bytes, ...]]]] = {
    "at once": lambda data: [(data,)],
    "in two": two,
    "in three": three,
    "byte by byte": lambda data: [tuple(data[at : at + 1] for at in range(len(data)))],
    "by sevens": lambda data: [tuple(data[at : at + 7] for at in range(0, len(data), 7))],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", COMES)
async def test_however_it_comes_the_same_follows(
    what: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, expected = COMES[what]
    for packets in WAYS[way](data):
        stage = Stage()
        line = await brought(stage, *packets)
        settled(stage, line, expected, packets)
        line.lose()
        await idle()
        assert stage.tasks == 0
        assert stage.connections == []
    assert "Traceback" not in caplog.text


async def test_every_cut_of_a_request_into_three() -> None:
    data, expected = COMES["request"]
    stage = Stage()
    for first, second in itertools.combinations(range(1, len(data)), 2):
        line = await brought(stage, data[:first], data[first:second], data[second:])
        settled(stage, line, expected, (first, second))


async def test_what_an_application_is_told() -> None:
    stage = Stage(root_path="/api")
    line = await brought(stage, request("/a%20b?c=d", b"X-One: 1", b"X-ONE:  2"))
    assert stage.scopes == [
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": HERE,
            "client": PEER,
            "scheme": "http",
            "method": "GET",
            "root_path": "/api",
            "path": "/api/a b",
            "raw_path": b"/api/a%20b",
            "query_string": b"c=d",
            "headers": [(b"host", b"a"), (b"x-one", b"1"), (b"x-one", b"2")],
            "state": {"shared": 1},
        }
    ]
    line.bring(request("/ws?e=f", *UPGRADE, b"X-One: 1"))
    await idle()
    scope = stage.scopes[1]
    assert (scope["type"], scope["path"], scope["query_string"]) == ("websocket", "/api/ws", b"e=f")
    assert scope["headers"][0] == (b"host", b"a")
    assert scope["headers"][-1] == (b"x-one", b"1")
    assert (scope["client"], scope["server"]) == (PEER, HERE)


@pytest.mark.parametrize("line", range(4))
async def test_white_space_behind_a_value_is_none_of_it(line: int) -> None:
    """RFC 9112, 5.1: "optional leading and/or trailing whitespace" is "excluded"."""
    lines = [each + b" \t" * (number == line) for number, each in enumerate(UPGRADE)]
    stage = Stage()
    assert answers((await brought(stage, request("/ws", *lines))).written) == ECHOED[:1]
    stage = Stage()
    await brought(stage, request("/now", b"X: v \t"))
    assert stage.scopes[0]["headers"][-1] == (b"x", b"v")


async def test_a_handshake_has_another_class() -> None:
    stage = Stage()
    line = await brought(stage, request("/one"))
    before = line.get_protocol()
    assert isinstance(before, HTTPProtocol)
    line.bring(HANDSHAKE)
    await idle()
    assert stage.connections == [WebSocketProtocol]
    assert before.parser is None, "each holds the other"
    line.lose()
    await idle()
    assert stage.connections == []


# A handshake behind a request that is still being answered.


@pytest.mark.parametrize("path", ["/slow", "/listen", "/parts"])
@pytest.mark.parametrize(
    "packets",
    [
        pytest.param([HANDSHAKE, HI + THERE], id="frames later"),
        pytest.param([HANDSHAKE + HI + THERE], id="frames with it"),
        pytest.param([HANDSHAKE + HI, THERE], id="one with it and one later"),
        pytest.param([HANDSHAKE + HI[:3], HI[3:] + THERE], id="half of one"),
        pytest.param([HANDSHAKE[:50], HANDSHAKE[50:] + HI + THERE], id="in two"),
        pytest.param([HANDSHAKE[:50], HANDSHAKE[50:], HI, THERE], id="in many"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_a_handshake_waits_for_the_answer_before(
    path: str, packets: list[bytes], *, together: bool
) -> None:
    """Who asks for what is told of the end of a request reads on meanwhile."""
    stage = Stage()
    packets = [request(path), *packets]
    if together:
        packets[:2] = [packets[0] + packets[1]]
    line = await brought(stage, *packets)
    assert stage.tasks == 1
    assert b"101" not in line.written
    stage.gate.set()
    await idle(60)
    assert answers(line.written) == [answered(path), *ECHOED]
    assert stage.connections == [WebSocketProtocol]
    line.lose()
    await idle()
    assert stage.tasks == 0


async def test_what_waits_with_a_handshake_is_bounded() -> None:
    stage = Stage(ServerSettings(read_buffer=1_000))
    line = await brought(stage, request("/listen") + HANDSHAKE, *[HI * 50] * 10)
    protocol = line.get_protocol()
    assert isinstance(protocol, HTTPProtocol)
    assert 1_000 < len(protocol._behind or b"") <= 1_000 + len(HI * 50)
    stage.gate.set()
    await idle(2_000)
    assert answers(line.written) == [answered("/listen"), (101, b""), *[ECHOED[1]] * 500]


@pytest.mark.parametrize("packets", [1, 40])
@pytest.mark.parametrize("last", [b"", HANDSHAKE + HI + THERE], ids=["requests", "handshake"])
async def test_requests_that_wait_for_their_turn_are_bounded(packets: int, last: bytes) -> None:
    """They are kept as they came, and what is too much stays with the peer."""
    stage = Stage(ServerSettings(read_buffer=10_000))
    data = request("/now") * 2_000 + last
    size = len(data) // packets + 1
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    line = await brought(stage, request("/listen") + pieces[0], *pieces[1:])
    protocol = line.get_protocol()
    assert isinstance(protocol, HTTPProtocol)
    assert 0 < len(protocol.pipeline) <= 4_096 // len(request("/now")) + 1
    assert len(protocol._behind or b"") <= 10_000 + size
    stage.gate.set()
    while len(stage.asked) < 2_001 or stage.tasks > bool(last):
        await idle()
    await idle(40)
    answered_all = [answered("/listen"), *[answered("/now")] * 2_000]
    assert answers(line.written) == [*answered_all, *(ECHOED if last else [])]


async def test_a_handshake_behind_two_requests_waits_for_both() -> None:
    stage = Stage()
    line = await brought(stage, request("/slow") + request("/slow") + HANDSHAKE + HI + THERE)
    assert line.written == b""
    stage.gate.set()
    await idle(60)
    assert answers(line.written) == [answered("/slow"), answered("/slow"), *ECHOED]


async def test_a_handshake_behind_an_answer_that_closes_is_none() -> None:
    stage = Stage()
    line = await brought(stage, request("/slow", b"Connection: close") + HANDSHAKE + HI)
    stage.gate.set()
    await idle(60)
    assert answers(line.written) == [answered("/slow")]
    assert line.lost
    assert [scope["type"] for scope in stage.scopes] == ["http"]
    assert stage.connections == []


async def test_who_leaves_while_a_handshake_waits() -> None:
    stage = Stage(ServerSettings(max_connections=1))
    line = await brought(stage, request("/slow") + HANDSHAKE + HI)
    line.lose(ConnectionResetError())
    stage.gate.set()
    await idle(60)
    assert len(stage.scopes) == 1
    assert stage.tasks == 0
    assert stage.state.admission._count == 0


@pytest.mark.parametrize("queued", [b"", request("/body"), post()[:-3], HANDSHAKE])
@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_loss_is_told_to_the_request_that_is_answered(
    queued: bytes, error: Exception | None
) -> None:
    """And those that wait for their turn never have it."""
    stage = Stage()
    line = await brought(stage, request("/listen") + queued)
    line.lose(error)
    await idle()
    assert stage.received == [{"type": "http.disconnect"}]
    stage.gate.set()
    await idle()
    assert stage.asked == ["GET /listen"]
    assert stage.tasks == 0
    assert line.written == b""


async def test_a_websocket_behind_an_answer_that_is_not_read_is_made_to_wait() -> None:
    """The transport has told the class before that it is full, and tells nobody twice."""
    stage = Stage()
    line = stage.line()
    line.reads = False
    line.bring(request("/long"))
    await idle()
    line.bring(HANDSHAKE + HI * 50)
    await idle(200)
    assert stage.sent <= 1
    line.drain()
    await idle(200)
    assert stage.sent == 50
    assert line.written.endswith(b"\x81\x02hi" * 50)


# What is wrong.


@pytest.mark.parametrize("path", ["/slow", "/listen", "/parts"])
@pytest.mark.parametrize("wrong", [b"\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"X" * 20_000])
async def test_what_is_wrong_behind_a_request_does_not_spoil_its_answer(
    path: str, wrong: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    line = await brought(stage, request(path), wrong, request("/never asked for"))
    assert not line.is_closing()
    stage.gate.set()
    await idle(60)
    assert answers(line.written) == [answered(path)]
    assert stage.asked == [f"GET {path}"]
    assert line.lost
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("second", ["/slow", "/body"])
async def test_what_is_wrong_behind_two_requests_does_not_spoil_their_answers(
    second: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    line = await brought(stage, request("/slow") + post(second) + b"\x00\x01")
    assert line.written == b""
    stage.gate.set()
    await idle(60)
    expected = {"/slow": answered("/slow"), "/body": (200, BODY)}
    assert answers(line.written) == [answered("/slow"), expected[second]]
    assert line.lost
    assert "Traceback" not in caplog.text


async def test_a_wrong_body_that_waits_for_its_turn_is_not_answered_before_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client takes the first answer for that to its first request."""
    stage = Stage()
    broken = request("/body", b"Transfer-Encoding: chunked", method="POST", body=b"zz\r\n")
    line = await brought(stage, request("/slow") + broken)
    assert line.written == b""
    stage.gate.set()
    await idle(60)
    assert answers(line.written)[0] == answered("/slow")
    assert answers(line.written)[1:] in ([], [BAD])
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("lines", [(), (b"Expect: 100-continue",)])
@pytest.mark.parametrize("turns", [0, 12])
async def test_a_wrong_body_is_the_answer_to_its_request(
    lines: tuple[bytes, ...], turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The application hears that nobody is there any more."""
    stage = Stage()
    line = stage.line()
    line.bring(request("/body", b"Transfer-Encoding: chunked", *lines, method="POST"))
    await idle(turns)
    line.bring(b"zz\r\n")
    await idle(40)
    wanted = [(100, b""), BAD] if lines and turns else [BAD]
    assert answers(line.written) == wanted
    assert stage.received == [{"type": "http.disconnect"}]
    assert stage.tasks == 0
    assert line.calls == ["write_eof"]
    assert "Traceback" not in caplog.text


async def test_a_wrong_body_within_an_answer_ends_the_connection() -> None:
    """Half an answer is there already, and a second one would be taken for its other half."""
    stage = Stage()
    head = request("/parts", b"Transfer-Encoding: chunked", method="POST")
    line = await brought(stage, head, b"zz\r\n")
    assert line.written.endswith(b"\r\n\r\nans")
    assert line.lost
    stage.gate.set()
    await idle()
    assert line.written.endswith(b"\r\n\r\nans")
    assert stage.tasks == 0


@pytest.mark.parametrize("can_write_eof", [True, False])
@in_no_time
async def test_an_answer_of_ours_can_be_read(*, can_write_eof: bool) -> None:
    """The peer has a while to hang up; on TLS nobody can half close."""
    stage = Stage()
    stage.state.default_headers = [(b"server", b"here")]
    line = stage.line(can_write_eof=can_write_eof)
    line.bring(b"\x00")
    assert line.calls == (["write_eof"] if can_write_eof else ["close"])
    answer = last_answer(line)
    assert (answer.status, answer.body) == BAD
    assert answer.headers == {
        b"server": b"here",
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": b"11",
        b"connection": b"close",
    }
    line.bring(request("/late"), b"\x00" * 100_000)
    await asyncio.sleep(FAREWELL - 0.01)
    assert line.lost is not can_write_eof
    await asyncio.sleep(0.02)
    assert line.lost
    assert line.calls[1:] == (["abort"] if can_write_eof else [])
    assert stage.asked == []
    assert line.written.count(b"HTTP/1.1") == 1


@in_no_time
async def test_who_hangs_up_behind_an_answer_of_ours_is_not_waited_for() -> None:
    stage = Stage()
    line = stage.line()
    line.bring(b"\x00")
    line.lose()
    await asyncio.sleep(FAREWELL * 2)
    assert line.calls == ["write_eof"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (b"\x00", "Invalid HTTP request received."),
        (request("/", b"X: " + b"v" * 9_000), "refused a request: its head is too large"),
    ],
)
async def test_what_is_wrong_is_logged(
    wrong: bytes, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    await brought(Stage(), wrong)
    assert caplog.messages == [sentence]


# How large a head may be: each limit, and one more.

SMALL = ServerSettings(max_header_bytes=200, max_headers=6)
HEAD = 200 * 8


def headers(*sizes: int) -> list[bytes]:
    """Lines of so many bytes, their ends counted too."""
    return [b"X: " + b"v" * (size - len("X: \r\n")) for size in sizes]


def sized(total: int) -> bytes:
    """A head of which so many bytes count: its target, and its lines."""
    path = "/" + "p" * 99
    left = total - len(path) - len("Host: a\r\n")
    lines = headers(*[200] * (left // 200), *([left % 200] if left % 200 else []))
    return request(path, *lines)


LIMITS: dict[str, tuple[ServerSettings, bytes, bytes]] = {
    "target": (SMALL, request("/" + "p" * 199), request("/" + "p" * 200)),
    "query": (SMALL, request("/?" + "p" * 198), request("/?" + "p" * 199)),
    "line": (SMALL, request("/", *headers(200)), request("/", *headers(201))),
    "name": (SMALL, request("/", b"n" * 195 + b": v"), request("/", b"n" * 196 + b": v")),
    "last line": (
        SMALL,
        request("/", *headers(20, 30, 200)),
        request("/", *headers(20, 30, 201)),
    ),
    "headers": (SMALL, request("/", *headers(*[20] * 5)), request("/", *headers(*[20] * 6))),
    "head": (SMALL.but(max_headers=99), sized(HEAD), sized(HEAD + 1)),
    "handshake": (
        SMALL,
        request("/ws", *UPGRADE, *headers(200)),
        request("/ws", *UPGRADE, *headers(201)),
    ),
}


@pytest.mark.parametrize("way", ["at once", "in two", "by sevens", "byte by byte"])
@pytest.mark.parametrize("before", [b"", request("/one")], ids=["first", "second"])
@pytest.mark.parametrize("what", LIMITS)
async def test_at_the_limit_it_passes_and_one_over_it_does_not(
    what: str, before: bytes, way: str
) -> None:
    settings, most, over = LIMITS[what]
    for packets in WAYS[way](most):
        stage = Stage(settings)
        line = await brought(stage, *([before] if before else []), *packets)
        status, _ = answers(line.written)[-1]
        assert status == (101 if what == "handshake" else 200), packets
    for packets in WAYS[way](over):
        stage = Stage(settings)
        line = await brought(stage, *([before] if before else []), *packets)
        assert answers(line.written)[-1] == TOO_LARGE, packets
        assert stage.asked == ["GET /one"] * bool(before)


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "target": (b"GET /", b"p"),
    "method": (b"G", b"E"),
    "name": (b"GET / HTTP/1.1\r\n", b"n"),
    "value": (b"GET / HTTP/1.1\r\nX: ", b"v"),
    "spaces": (b"GET / HTTP/1.1\r\nX:", b" "),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: 1\r\n"),
    "empty lines": (b"", b"\r\n"),
    "trailer": (chunked(BODY, path="/slow")[:-2] + b"X: ", b"v"),
    "trailers": (chunked(BODY, path="/slow")[:-2], b"X: 1\r\n"),
    "size of a chunk": (chunked(path="/slow")[:-5], b"0"),
    "extension of a chunk": (chunked(path="/slow")[:-5] + b"1;", b"e"),
}


@pytest.mark.parametrize("size", [1, 100, 5_000, 200_000])
@pytest.mark.parametrize("what", ENDLESS)
async def test_what_has_no_end_is_cut(what: str, size: int) -> None:
    """In packets of any size, and with not much more taken than the whole head may be."""
    beginning, more = ENDLESS[what]
    stage = Stage()
    line = stage.line()
    line.bring(beginning)
    packet = (more * size)[:size] if what != "headers" else more * max(1, size // len(more))
    taken = 0
    while not line.calls:
        assert taken <= 8 * 8_192 + 200_000
        line.bring(packet)
        taken += len(packet)
        if taken % 1_000 < size:
            await idle(1)
    assert line.calls == ["write_eof"]
    assert answers(line.written)[0] in (TOO_LARGE, BAD)


async def test_a_body_has_no_such_limit() -> None:
    stage = Stage(SMALL)
    line = await brought(stage, post(body=bytes(60_000)), chunked(*[bytes(1_000)] * 60))
    assert answers(line.written) == [(200, bytes(60_000))] * 2


# Time.


@in_no_time
async def test_who_says_nothing_is_hung_up_on() -> None:
    stage = Stage()
    line = stage.line()
    await asyncio.sleep(9.99)
    assert not line.is_closing()
    await asyncio.sleep(0.02)
    assert (line.written, line.calls, line.lost) == (b"", ["close"], True)
    assert stage.connections == []


@pytest.mark.parametrize("beginning", [b"", b"GET", b"\x00"])
@in_no_time
async def test_who_does_not_go_is_cut(beginning: bytes) -> None:
    line = Stage().line(can_write_eof=False)
    line.lingers = True
    line.bring(*[beginning] * bool(beginning))
    begin = 0 if beginning == b"\x00" else 10
    await asyncio.sleep(begin + FAREWELL - 0.01)
    assert line.calls == ["close"]
    await asyncio.sleep(0.02)
    assert line.calls == ["close", "abort"]
    assert line.lost


@pytest.mark.parametrize("beginning", [b"\r\n", b"\r\n\r\n"])
@in_no_time
async def test_empty_lines_are_no_beginning(beginning: bytes) -> None:
    line = Stage().line()
    await asyncio.sleep(5)
    line.bring(beginning)
    await asyncio.sleep(4.99)
    assert not line.is_closing()
    await asyncio.sleep(0.02)
    assert (line.written, line.calls) == (b"", ["close"])


@pytest.mark.parametrize("at", [1, 10, 25, len(HANDSHAKE) - 1])
@in_no_time
async def test_a_head_that_is_not_whole_in_time_is_answered(at: int) -> None:
    stage = Stage()
    line = stage.line()
    await asyncio.sleep(5)
    line.bring(HANDSHAKE[:at])
    await asyncio.sleep(4.99)
    assert line.written == b""
    await asyncio.sleep(0.02)
    assert answers(line.written) == [TOO_LATE]
    assert line.calls == ["write_eof"]
    line.bring(HANDSHAKE[at:])
    await asyncio.sleep(FAREWELL)
    assert line.lost
    assert stage.scopes == []


@in_no_time
async def test_to_drip_does_not_help() -> None:
    line = Stage().line()
    for byte in HANDSHAKE[:100]:
        line.bring(bytes((byte,)))
        await asyncio.sleep(0.11)
        if line.calls:
            break
    assert answers(line.written) == [TOO_LATE]
    assert asyncio.get_running_loop().time() == pytest.approx(1010, abs=0.2)


@pytest.mark.parametrize("last", [HANDSHAKE[-1:], HANDSHAKE[-1:] + HI + THERE])
@in_no_time
async def test_a_head_that_is_whole_in_time_is_not_cut_later(last: bytes) -> None:
    stage = Stage(ws_ping_interval=None)
    line = stage.line()
    line.bring(HANDSHAKE[:-1])
    await asyncio.sleep(9.99)
    line.bring(last)
    await asyncio.sleep(100)
    assert answers(line.written) == ECHOED[: 1 + 2 * (len(last) > 1)]
    assert line.calls == []


@pytest.mark.parametrize("path", ["/slow", "/listen", "/parts"])
@in_no_time
async def test_an_answer_takes_its_time(path: str) -> None:
    stage = Stage()
    line = stage.line()
    line.bring(request(path))
    await asyncio.sleep(1_000)
    assert not line.is_closing()
    stage.gate.set()
    await asyncio.sleep(4.99)
    assert answers(line.written) == [answered(path)]
    assert not line.is_closing()
    await asyncio.sleep(0.02)
    assert line.calls == ["close"]


@in_no_time
async def test_a_body_takes_its_time() -> None:
    stage = Stage()
    line = stage.line()
    whole = post()
    line.bring(whole[:-5])
    await asyncio.sleep(1_000)
    line.bring(whole[-5:])
    await idle()
    assert answers(line.written) == [(200, BODY)]


@pytest.mark.parametrize("keep_alive", [0.5, 5.0, 60.0])
@in_no_time
async def test_between_requests_there_is_another_time(keep_alive: float) -> None:
    stage = Stage(ServerSettings(keep_alive_timeout=keep_alive))
    line = stage.line()
    for number in range(3):
        line.bring(request("/now"))
        await asyncio.sleep(keep_alive - 0.01)
        assert len(answers(line.written)) == number + 1
        assert not line.is_closing()
    await asyncio.sleep(0.02)
    assert line.calls == ["close"]
    assert len(answers(line.written)) == 3


@pytest.mark.parametrize("beginning", [b"G", HANDSHAKE[:-1], b"\r\n"])
@in_no_time
async def test_each_head_has_the_whole_time(beginning: bytes) -> None:
    """From its first byte, though there were only some seconds left for that."""
    stage = Stage()
    line = stage.line()
    line.bring(request("/now"))
    await asyncio.sleep(4)
    line.bring(beginning)
    await asyncio.sleep(9.99)
    assert not line.calls
    await asyncio.sleep(0.02)
    assert answers(line.written)[1:] == [TOO_LATE] * (beginning != b"\r\n")
    assert line.calls == ["close" if beginning == b"\r\n" else "write_eof"]


@pytest.mark.parametrize("path", ["/slow", "/listen", "/parts"])
@pytest.mark.parametrize("packets", [1, 2])
@in_no_time
async def test_the_time_of_a_head_behind_a_request_begins_when_that_is_answered(
    path: str, packets: int
) -> None:
    stage = Stage()
    line = stage.line()
    line.bring(*[request(path) + b"GET /", request(path), b"GET /"][packets - 1 : 2 * packets - 1])
    await asyncio.sleep(100)
    assert not line.is_closing()
    stage.gate.set()
    await asyncio.sleep(9.99)
    assert answers(line.written) == [answered(path)]
    assert not line.calls
    await asyncio.sleep(0.02)
    assert answers(line.written) == [answered(path), TOO_LATE]


@pytest.mark.parametrize("packets", [1, 2])
@in_no_time
async def test_a_head_that_is_whole_only_behind_the_answer(packets: int) -> None:
    stage = Stage()
    line = stage.line()
    second = request("/two")
    whole = request("/slow") + second[:20]
    line.bring(*[whole] if packets == 1 else [whole[:-20], whole[-20:]])
    await asyncio.sleep(100)
    stage.gate.set()
    await asyncio.sleep(9)
    line.bring(second[20:])
    await asyncio.sleep(4.9)
    assert answers(line.written) == [answered("/slow"), answered("/two")]
    assert not line.calls
    await asyncio.sleep(0.2)
    assert line.calls == ["close"]


@in_no_time
async def test_a_body_that_nobody_reads_does_not_hold_a_connection() -> None:
    """The answer is there, and the rest of the body never comes."""
    stage = Stage()
    line = stage.line()
    whole = post("/deaf", bytes(1_000))
    line.bring(whole[:-900])
    await asyncio.sleep(4)
    assert answers(line.written) == [answered("/deaf")]
    line.bring(bytes(100))
    await asyncio.sleep(60)
    assert line.lost
    assert len(answers(line.written)) == 1


@in_no_time
async def test_who_leaves_is_forgotten() -> None:
    """No timer goes off for a connection that is gone."""
    stage = Stage()
    for packets in [[], [b"GET"], [request("/now")], [request("/now"), b"GET"]]:
        for error in (None, ConnectionResetError()):
            line = await brought(stage, *packets)
            line.lose(error)
            calls, written = [*line.calls], line.written
            await asyncio.sleep(100)
            assert (line.calls, line.written) == (calls, written)
    assert stage.errors == []
    assert stage.connections == []


# Any bytes at all.

PIECES = [
    request("/now"),
    request("/slow"),
    request("/listen"),
    request("/parts"),
    post(),
    chunked(BODY),
    HANDSHAKE,
    HI,
    BYE,
    post("/deaf"),
    request("/body", b"Transfer-Encoding: chunked", b"Expect: 100-continue", method="POST"),
    request("/up", b"Upgrade: h2c", b"Connection: Upgrade"),
    request("/now", b"Connection: close"),
    b"GET / HTTP/1.0\r\n\r\n",
    b"\r\n",
    b"zz\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"X: " + b"v" * 150,
    b" " * 300,
    b"\x00",
]


@st.composite
def packets(draw: st.DrawFn) -> list[bytes]:
    """What comes in: of what could mean something and what does not, in pieces of any size."""
    data = b"".join(draw(st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=8)))
    places = draw(st.lists(st.integers(0, len(data)), max_size=6).map(sorted))
    return [data[a:b] for a, b in itertools.pairwise([0, *places, len(data)]) if a < b]


class Trace(logging.Handler):
    """Remembers what was logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.records.append(str(record.exc_info))


@given(packets(), st.booleans(), st.booleans(), st.floats(0, 12))
@bounds(max_examples=400, deadline=None)
def test_whatever_comes_nothing_waits_for_ever(
    packets: list[bytes],
    opens: bool,  # noqa: FBT001
    can_write_eof: bool,  # noqa: FBT001
    pause: float,
) -> None:
    """And nothing is raised, and what is kept is bounded."""
    trace = Trace()
    logging.getLogger("uvicorn.error").addHandler(trace)

    async def play() -> None:
        stage = Stage(SMALL)
        line = stage.line(can_write_eof=can_write_eof)
        for number, packet in enumerate(packets):
            line.bring(packet)
            await idle(number % 3)
            is_bounded(line)
            looked_after(stage, line)
            await asyncio.sleep(pause if number == 2 else 0)
        if opens:
            stage.gate.set()
        await asyncio.sleep(200)
        assert line.lost or stage.tasks, "there is somebody at work, or nobody there"
        stage.gate.set()
        await asyncio.sleep(200)
        at_work = [scope for scope in stage.scopes if scope.get("path") == "/body"]
        assert line.lost or (stage.tasks and at_work), "it waits for a body"
        line.lose()
        await idle()
        assert stage.tasks == 0
        assert stage.connections == []
        assert stage.errors == []

    try:
        in_scripted_time(play)
    finally:
        logging.getLogger("uvicorn.error").removeHandler(trace)
    assert trace.records == []


def is_bounded(line: Line) -> None:
    protocol = line.get_protocol()
    if isinstance(protocol, HTTPProtocol) and protocol.headers is not None:
        kept = sum(len(name) + len(value) for name, value in protocol.headers)
        assert kept + len(protocol.url) <= HEAD + 300
        assert len(protocol.headers) <= SMALL.max_headers + 1


def looked_after(stage: Stage, line: Line) -> None:
    protocol = line.get_protocol()
    if isinstance(protocol, HTTPProtocol) and not line.is_closing() and not stage.tasks:
        timers = [protocol._deadline, protocol.timeout_keep_alive_task]
        loop = asyncio.get_running_loop()
        due = [timer.when() for timer in timers if timer is not None and not timer.cancelled()]
        assert due
        assert min(due) <= loop.time() + SMALL.handshake_timeout


# Draining.


async def test_who_comes_while_the_server_stops_is_asked_to_come_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    stage = Stage()
    stage.state.admission.draining = True
    line = await brought(stage, HANDSHAKE + HI)
    answer = last_answer(line)
    assert (answer.status, answer.body) == UNAVAILABLE
    assert answer.headers[b"connection"] == b"close"
    assert 1 <= int(answer.headers[b"retry-after"]) <= 10
    assert line.calls == ["write_eof"]
    assert stage.scopes == []
    (record,) = caplog.records  # as many come as there were clients: that is no warning
    assert record.levelname == "INFO"
    assert record.getMessage() == "refused a handshake of 192.0.2.1: the server stops"


async def test_a_request_that_comes_while_the_server_stops_is_the_last_of_its_connection() -> None:
    stage = Stage()
    kept = await brought(stage, request("/now"))
    stage.state.stopping = True
    kept.bring(request("/now"))
    line = await brought(stage, request("/now") + request("/now"))
    await idle()
    for each, most in ((kept, 2), (line, 2)):
        assert last_answer(each).headers[b"connection"] == b"close"
        assert len(answers(each.written)) <= most
        assert each.lost


async def test_a_handshake_that_waits_when_the_server_stops_is_refused() -> None:
    stage = Stage()
    line = await brought(stage, request("/slow") + HANDSHAKE)
    stage.state.admission.draining = True
    stage.gate.set()
    await idle(40)
    assert answers(line.written) == [answered("/slow"), UNAVAILABLE]


@pytest.mark.parametrize("path", ["/slow", "/listen", "/parts"])
async def test_the_server_stops_within_an_answer(path: str) -> None:
    stage = Stage()
    line = await brought(stage, request(path))
    protocol = line.get_protocol()
    assert isinstance(protocol, HTTPProtocol)
    protocol.shutdown()
    assert not line.calls
    stage.gate.set()
    await idle(40)
    assert answers(line.written) == [answered(path)]
    assert line.lost


@pytest.mark.parametrize("beginning", [b"", b"GET /", request("/now"), b"\x00"])
async def test_the_server_stops_between_requests(beginning: bytes) -> None:
    stage = Stage()
    line = await brought(stage, *([beginning] if beginning else []))
    written = line.written
    protocol = line.get_protocol()
    assert isinstance(protocol, HTTPProtocol)
    protocol.shutdown()
    await idle()
    assert line.lost
    assert line.written == written


@pytest.mark.parametrize("beginning", [b"", b"GET /", b"\r\n"])
async def test_who_has_not_asked_for_anything_is_known(beginning: bytes) -> None:
    """Who serves others first, or stops, can wait for those."""
    stage = Stage()
    line = await brought(stage, *([beginning] if beginning else []))
    assert list(stage.state.unheard) == [line.get_protocol()]
    line.bring(request("/slow").removeprefix(beginning))
    await idle()
    assert not stage.state.unheard
    stage.gate.set()
    await idle(40)
    assert answers(line.written) == [answered("/slow")]
    assert not stage.state.unheard, "who has asked once may do without"


@pytest.mark.parametrize(
    "ending", [HANDSHAKE, b"\x00", b"GET /", b"", None], ids=["ws", "wrong", "late", "mute", "gone"]
)
async def test_who_will_not_ask_is_not_waited_for(ending: bytes | None) -> None:
    stage = Stage(ServerSettings(handshake_timeout=0.01))
    line = await brought(stage, *([ending] if ending else []))
    if ending is None:
        line.lose()
    elif ending in (b"GET /", b""):
        await asyncio.sleep(0.1)
    assert not stage.state.unheard


async def test_who_is_never_connected_is_forgotten() -> None:
    """On TLS a connection is made when that is: it may fail."""
    stage = Stage()
    protocol = HTTPProtocol(stage.config, stage.state, {})
    assert list(stage.state.unheard) == [protocol]
    del protocol
    gc.collect()
    assert not stage.state.unheard


async def test_another_process_begins_with_nobody() -> None:
    """A server that reloads is given to one: it has to be one that can be."""
    stage = Stage(ServerSettings(max_connections=1))
    line = stage.line()
    assert stage.state.unheard
    state = pickle.loads(pickle.dumps(stage.state))
    assert (type(state), set(state.unheard), state.connections) == (State, set(), set())
    assert [state.admission.enter("") for _ in range(2)] == [None, "max_connections"]
    line.lose()


# Admission.


async def opened(stage: Stage, *lines: bytes, client: tuple[str, int] | None = PEER) -> Line:
    line = stage.line(client=client)
    line.bring(request("/ws", *UPGRADE, *lines))
    await idle()
    return line


def status(line: Line) -> int:
    return answers(line.written)[0][0]


async def test_there_is_room_for_so_many(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(ServerSettings(max_connections=2))
    lines = [await opened(stage) for _ in range(3)]
    assert [status(line) for line in lines] == [101, 101, 503]
    assert b"retry-after" in last_answer(lines[2]).headers
    assert caplog.messages[-1] == "refused a handshake of 192.0.2.1: max_connections"
    lines[0].lose()
    assert status(await opened(stage)) == 101
    assert status(await opened(stage)) == 503


@pytest.mark.parametrize("end", ["lost", "wrong handshake", "closed by us"])
async def test_everybody_counted_in_is_counted_out(end: str) -> None:
    stage = Stage(ServerSettings(max_connections=1, max_connections_per_address=1))
    for _ in range(3):
        line = stage.line()
        line.bring(HANDSHAKE if end != "wrong handshake" else request("/ws", *UPGRADE[:2]))
        await idle()
        assert status(line) in (101, 426)
        if end == "closed by us":
            line.bring(BYE)
            await idle()
        line.lose()
        await idle()
        admission = stage.state.admission
        assert (admission._count, dict(admission._of)) == (0, {})


async def test_requests_are_not_counted() -> None:
    stage = Stage(ServerSettings(max_connections=1))
    lines = [await brought(stage, request("/now")) for _ in range(3)]
    assert [status(line) for line in lines] == [200] * 3
    assert status(await opened(stage)) == 101


async def test_without_limits_nobody_is_counted() -> None:
    stage = Stage()
    line = await opened(stage)
    assert stage.state.admission._count == 0
    line.lose()
    assert stage.state.admission._count == 0


FORWARDED: dict[str, tuple[list[bytes], str]] = {
    "nothing": ([], "127.0.0.1"),
    "empty": ([b"X-Forwarded-For: "], "127.0.0.1"),
    "one": ([b"X-Forwarded-For: 203.0.113.7"], "203.0.113.7"),
    "with a port": ([b"X-Forwarded-For: 203.0.113.7:99"], "203.0.113.7"),
    "through two": ([b"X-Forwarded-For: 198.51.100.1, 203.0.113.7"], "203.0.113.7"),
    "in two lines": (
        [b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-For: 127.0.0.1"],
        "203.0.113.7",
    ),
    "IPv6": ([b"X-Forwarded-For: [2001:db8::1]:99"], "2001:db8::1"),
    "no address": ([b"X-Forwarded-For: \xff\xfe"], "\xff\xfe"),
}


@pytest.mark.parametrize("who", FORWARDED)
async def test_behind_a_proxy_its_clients_are_counted(who: str) -> None:
    lines, address = FORWARDED[who]
    settings = ServerSettings(max_connections_per_address=1)
    stage = Stage(settings, proxy_headers=True, forwarded_allow_ips="127.0.0.1")
    first = await opened(stage, *lines, client=("127.0.0.1", 1))
    assert status(first) == 101
    assert dict(stage.state.admission._of) == {address: 1}
    assert stage.scopes[0]["client"][0] == address, "as the application is told"
    assert status(await opened(stage, *lines, client=("127.0.0.1", 2))) == 503
    first.lose()
    assert dict(stage.state.admission._of) == {}


@pytest.mark.parametrize("proxy_headers", [True, False])
async def test_who_is_no_proxy_is_not_believed(*, proxy_headers: bool) -> None:
    settings = ServerSettings(max_connections_per_address=1)
    stage = Stage(settings, proxy_headers=proxy_headers, forwarded_allow_ips="10.0.0.1")
    lines = [b"X-Forwarded-For: 203.0.113.%d" % number for number in range(2)]
    assert [status(await opened(stage, line)) for line in lines] == [101, 503]
    assert dict(stage.state.admission._of) == {"192.0.2.1": 1}


@pytest.mark.parametrize("allowed", ["*", "127.0.0.1"])
async def test_a_unix_socket_has_no_address(allowed: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(max_connections=3, max_connections_per_address=1)
    stage = Stage(settings, proxy_headers=True, forwarded_allow_ips=allowed)
    lines = [await opened(stage, client=None) for _ in range(4)]
    assert [status(line) for line in lines] == [101, 101, 101, 503]
    assert caplog.messages[-1] == "refused a handshake of a client: max_connections"


async def test_a_proxy_on_a_unix_socket_tells_the_addresses() -> None:
    settings = ServerSettings(max_connections_per_address=1)
    stage = Stage(settings, proxy_headers=True, forwarded_allow_ips="*")
    one, two = (b"X-Forwarded-For: 203.0.113.%d" % number for number in (1, 2))
    lines = [await opened(stage, line, client=None) for line in (one, two, one)]
    assert [status(line) for line in lines] == [101, 101, 503]


async def test_who_runs_out_of_files_says_so(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.state._most_files = 64 + 2
    lines = [await opened(stage) for _ in range(3)]
    assert [status(line) for line in lines] == [101, 101, 503]
    assert caplog.messages[-1].endswith("the process has too many files open (ulimit -n)")
    lines[0].lose()
    assert status(await opened(stage)) == 503, "who waits for its answer to be read is one too"
    lines[2].lose()


async def test_who_has_no_more_files_hangs_up_and_says_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage()
    stage.state._most_files = 32 + 2
    for _ in range(2):
        lines = [stage.line() for _ in range(5)]
        await idle()
        assert [line.lost for line in lines] == [False] * 2 + [True] * 3
        assert [line.calls for line in lines] == [[]] * 2 + [["abort"]] * 3
        assert stage.connections == [HTTPProtocol] * 2
        lines[0].lose()
        stage.line().lose()
        lines[1].lose()
    sentence = "no more files may be opened (ulimit -n): further connections are cut"
    assert caplog.messages == [sentence] * 2


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        (1_024, 1_024),
        (128, 128),
        (127, 128),
        (1, 128),
        (resource.RLIM_INFINITY, math.inf),
    ],
)
async def test_how_many_files_a_process_may_open(
    limit: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few there are, some connections are served."""
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_NOFILE: (limit, limit)}.get)
    state = State(ServerSettings())
    assert state._most_files == most
    assert not state.is_crowded(64)
    assert state.has_room(64)
