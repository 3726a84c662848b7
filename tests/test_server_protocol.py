"""The protocol class between a transport that does as it is told and an application.

What real sockets show is shown elsewhere. Here is what they show only by chance: a transport that
is full at this very message, a loss between two turns of the loop, twenty seconds of silence.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
import weakref
import zlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Literal, ParamSpec

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from fuzz.frames import deflated, frame
from scripted import idle, in_scripted_time
from yaat.exceptions import ArgumentError, StateError, WebSocketDisconnect
from yaat.frames import Frame
from yaat.lifecycle import (
    ACCEPT,
    CLOSE,
    CONNECT,
    DISCONNECT,
    INCOMING,
    OUTGOING,
    RECEIVE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    SEND,
    State,
)
from yaat.server import ServerSettings, WebSocketProtocol, codec, opening, protocol
from yaat.server.codec import Decoder
from yaat.server.protocol import FAREWELL, HANDLER, MOST_GATHERED, MOST_IN_A_ROW
from yaat.types import ASGIApp, Message, Receive, Scope, Send

P = ParamSpec("P")

HANDSHAKE = (
    b"GET /caf%C3%A9?q=1 HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
HASTY = ServerSettings(close_timeout=3.0)

CLOSE_1000 = (codec.CLOSE, b"\x03\xe8")
CLOSE_1002 = (codec.CLOSE, b"\x03\xea")
CLOSE_1011 = (codec.CLOSE, b"\x03\xf3")
CLOSE_1012 = (codec.CLOSE, b"\x03\xf4")
PEERS_CLOSE = frame(codec.CLOSE, b"\x0f\xa1bye")
BROKEN = frame(codec.TEXT, b"", rsv=1)
LAST_WORDS = [
    pytest.param(PEERS_CLOSE, 4001, id="close"),
    pytest.param(BROKEN, 1002, id="wrong"),
]


def text(*words: str) -> bytes:
    """What a client sends."""
    return b"".join(frame(codec.TEXT, word.encode()) for word in words)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Read what a server sent: the opcode (with RSV1) and the payload of each frame."""
    found = []
    while data:
        opcode, size, start = data[0] & 0x7F, data[1], 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start])
        assert len(data) >= start + size
        found.append((opcode, data[start : start + size]))
        data = data[start + size :]
    return found


@pytest.fixture(autouse=True)
def usual_level(caplog: pytest.LogCaptureFixture) -> None:
    """Log what a test expects: who configured a server in this process may have said otherwise."""
    caplog.set_level(logging.WARNING, "uvicorn.error")


class ScriptedTransport(asyncio.Transport):
    """Takes what is written, and is full, closing or lost when the test says so.

    Attributes:
        protocol: Whose transport it is.
        writes: What was written, a write each.
        calls: What else was asked of it, in order.
        closing: What `is_closing` says.
        stuck: Whether the next write makes it full.
        heed: Called with what is written.
    """

    protocol: WebSocketProtocol

    def __init__(self, before: object, *, can_write_eof: bool, extra: dict[str, object]) -> None:
        super().__init__(extra)
        self.writes: list[bytes] = []
        self.calls: list[str] = []
        self.closing = False
        self.stuck = False
        self.limits: tuple[int | None, int | None] = (None, None)
        self.heed: Callable[[bytes], object] = len
        self._before = before
        self._can_write_eof = can_write_eof
        self._full = self._eof = False
        self._unsent = 0

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert isinstance(self._before, asyncio.BaseProtocol)
        return self._before

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = high, low

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._eof, "nothing may be written behind the end"
        self.writes.append(bytes(data))
        self._unsent += len(data) if self.stuck else 0
        if self.stuck and not self._full:
            self._full = True
            self.protocol.pause_writing()
        self.heed(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def drain(self) -> None:
        """The peer reads."""
        self.stuck = self._full = False
        self._unsent = 0
        self.protocol.resume_writing()

    def lose(self) -> None:
        """The connection is lost."""
        self.closing = True
        self.protocol.connection_lost(None)

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def can_write_eof(self) -> bool:
        return self._can_write_eof

    def write_eof(self) -> None:
        assert self._can_write_eof
        self._eof = True
        self.calls.append("write_eof")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self.calls.append("close")

    def abort(self) -> None:
        self.closing = True
        self.calls.append("abort")

    def pause_reading(self) -> None:
        self.calls.append("pause_reading")

    def resume_reading(self) -> None:
        self.calls.append("resume_reading")


class Before(asyncio.Protocol):
    """The HTTP class, which had the connection before."""


class Known(Before):
    """One that knows the addresses, as uvicorn's own do."""

    server = ("127.0.0.1", 8000)
    client = ("127.0.0.1", 1234)


class Stage:
    """A connection. The application ends as it is told; the test receives and sends for it.

    Args:
        app: Another application.
        settings: Of the class.
        before: The protocol that the transport had before.
        extra: What the transport knows about itself.
        can_write_eof: Whether it can be half closed: with TLS it cannot.
        default_headers: Of the server.
        options: Of uvicorn.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        settings: ServerSettings = HASTY,
        before: Before | None = None,
        extra: dict[str, object] | None = None,
        can_write_eof: bool = True,
        default_headers: Iterable[tuple[bytes, bytes]] = (),
        **options: Any,
    ) -> None:
        class Protocol(WebSocketProtocol):
            pass

        Protocol.settings = settings
        self.given: Scope = {}
        self.config = Config(
            app or self._app,
            **{
                "interface": "asgi3",
                "proxy_headers": False,
                "log_config": None,
                "ws": "none",
                **options,
            },
        )
        self.server = ServerState()
        self.server.default_headers = list(default_headers)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.protocol = Protocol(self.config, self.server, {"shared": 1})
        self.transport = ScriptedTransport(
            before or Known(), can_write_eof=can_write_eof, extra=extra or {}
        )
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)
        self.receive, self.send = self.protocol.receive, self.protocol.send

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.given = scope
        await self.ended

    def bring(self, data: bytes) -> None:
        """Something has come in."""
        self.protocol.data_received(data)

    async def hang_up(self) -> None:
        """The peer has closed its half."""
        stays = self.protocol.eof_received()
        assert stays is self.transport.can_write_eof()
        await idle()

    async def begun(self, headers: bytes = b"", *, early: bytes = b"") -> "Stage":
        """The handshake comes in and the application is told of it."""
        self.bring(HANDSHAKE + headers + b"\r\n" + early)
        await idle()
        assert await self.receive() == {"type": CONNECT}
        return self

    async def opened(self, headers: bytes = b"") -> "Stage":
        """The application accepts."""
        await self.begun(headers)
        await self.send({"type": ACCEPT})
        self.transport.writes.clear()
        return self

    async def say(self, *words: str) -> None:
        for word in words:
            await self.send({"type": SEND, "text": word})

    async def hear(self) -> object:
        """Receive; give the payload of a message, and the code of an end."""
        message = await self.receive()
        return message.get("text", message.get("bytes", message.get("code")))

    async def end(self, error: BaseException | None = None) -> None:
        """The application returns, or raises."""
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
        await idle()
        assert self.server.tasks == set()

    @property
    def connections(self) -> list[object]:
        """All that the server knows of."""
        return list(self.server.connections)

    @property
    def state(self) -> State:
        return self.protocol._state

    @property
    def written(self) -> bytes:
        return b"".join(self.transport.writes)

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        """The frames that were written."""
        return frames(self.written)

    @property
    def words(self) -> list[str]:
        """The text messages that were written."""
        return [payload.decode() for opcode, payload in self.sent if opcode == codec.TEXT]

    @property
    def calls(self) -> list[str]:
        return self.transport.calls


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer each message with itself until the end."""
    assert (await receive())["type"] == CONNECT
    await send({"type": ACCEPT})
    while (message := await receive())["type"] == RECEIVE:
        await send({**message, "type": SEND})


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a test wait without waiting."""

    @functools.wraps(test)
    def play(*args: P.args, **keys: P.kwargs) -> None:
        in_scripted_time(lambda: test(*args, **keys))

    return play


def now() -> float:
    return asyncio.get_running_loop().time()


# The handshake.


async def test_the_scope_says_what_the_handshake_said() -> None:
    stage = await Stage(root_path="/api").begun()
    assert stage.given == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1234),
        "root_path": "/api",
        "path": "/api/café",
        "raw_path": b"/api/caf%C3%A9",
        "query_string": b"q=1",
        "headers": stage.given["headers"],
        "subprotocols": [],
        "state": {"shared": 1},
        "extensions": {
            "websocket.http.response": {},
            "yaat.wire": stage.given["extensions"]["yaat.wire"],
        },
    }
    assert stage.transport.limits == (HASTY.write_buffer, None)
    assert stage.connections == [stage.protocol]
    assert len(stage.server.tasks) == 1


async def test_the_addresses_are_those_of_the_transport_where_nobody_was_before() -> None:
    addresses = {"sockname": ("::1", 8000, 0, 0)[:2], "peername": ("::1", 1234)}
    stage = await Stage(before=Before(), extra={**addresses, "sslcontext": object()}).begun()
    assert stage.given["server"] == ("::1", 8000)
    assert stage.given["client"] == ("::1", 1234)
    assert stage.given["scheme"] == "wss"


async def test_a_configuration_is_loaded_once() -> None:
    stage = Stage()
    assert stage.config.loaded
    loaded = stage.config.loaded_app
    loop = asyncio.get_running_loop()
    other = WebSocketProtocol(stage.config, stage.server, {}, loop)
    assert stage.config.loaded_app is loaded
    assert other._loop is loop


WORD: contextvars.ContextVar[str] = contextvars.ContextVar("WORD", default="")


@pytest.mark.parametrize("reset", [True, False])
async def test_an_application_has_a_context_of_its_own_if_that_is_wanted(*, reset: bool) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(WORD.get())

    WORD.set("outside")
    stage = Stage(app, reset_contextvars=reset)
    stage.bring(HANDSHAKE + b"\r\n")
    await idle()
    assert seen == ["" if reset else "outside"]


@pytest.mark.parametrize(
    ("headers", "wanted", "agreed"),
    [(DEFLATE, True, True), (DEFLATE, False, False), (b"", True, False)],
)
async def test_compression_is_agreed_on(headers: bytes, *, wanted: bool, agreed: bool) -> None:
    stage = await Stage(ws_per_message_deflate=wanted).begun(headers)
    await stage.send({"type": ACCEPT})
    assert (b"Sec-WebSocket-Extensions: permessage-deflate" in stage.written) is agreed
    stage.transport.writes.clear()
    await stage.say("a" * 600)
    assert (stage.sent[0][0] & codec.RSV1 != 0) is agreed


@pytest.mark.parametrize(
    ("wrong", "status"),
    [(b"Sec-WebSocket-Extensions: =\r\n", 400), (b"Sec-WebSocket-Version: 8\r\n", 426)],
)
async def test_what_is_no_handshake_is_answered(
    wrong: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(default_headers=[(b"server", b"here")])
    stage.bring(HANDSHAKE + wrong + b"\r\n")
    assert stage.written.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nserver: here\r\n" in stage.written
    assert stage.calls == ["close"]
    assert caplog.messages[0].startswith("Invalid WebSocket handshake: ")
    stage.bring(HANDSHAKE + b"\r\n")  # one is enough
    assert stage.server.tasks == set()
    await stage.hang_up()
    stage.protocol.shutdown()
    stage.transport.lose()
    assert stage.state is State.CONNECTING
    assert stage.connections == []
    assert len(stage.transport.writes) == 1


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"type": ACCEPT}, "[accepted]"),
        ({"type": CLOSE}, "403"),
        ({"type": RESPONSE_START, "status": 401}, "401"),
    ],
)
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
async def test_what_became_of_a_handshake_is_logged(
    level: int, answer: Message, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, "uvicorn.error")
    stage = await Stage().begun()
    await stage.send(answer)
    said = [f'127.0.0.1:1234 - "WebSocket /caf%C3%A9?q=1" {outcome}']
    assert caplog.messages == (said if level == logging.INFO else [])


async def test_a_query_that_is_no_uri_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    stage = Stage()
    stage.bring(HANDSHAKE.replace(b"q=1", b"q=\xc3\xa9") + b"\r\n")
    if stage.server.tasks:
        await stage.send({"type": ACCEPT})
    assert stage.written.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize(
    ("answer", "status"),
    [({"type": ACCEPT, "headers": [(b"a", b"b")]}, 101), ({"type": CLOSE}, 403)],
)
async def test_the_headers_of_the_server_go_with_every_answer(answer: Message, status: int) -> None:
    stage = await Stage(default_headers=[(b"server", b"here")]).begun()
    await stage.send(answer)
    assert stage.written.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nserver: here\r\n" in stage.written
    assert (b"\r\na: b\r\n" in stage.written) is (status == 101)
    assert stage.calls == ([] if status == 101 else ["close"])


async def test_a_denial_of_two_parts() -> None:
    stage = await Stage(default_headers=[(b"server", b"here")]).begun()
    headers = [(b"a", b"b"), (b"Connection", b"keep-alive"), (b"upgrade", b"x")]
    await stage.send({"type": RESPONSE_START, "status": 401, "headers": headers})
    assert stage.written == b""
    await stage.send({"type": RESPONSE_BODY, "body": b"no", "more_body": True})
    assert stage.calls == []
    await stage.send({"type": RESPONSE_BODY, "body": bytearray(b"!")})
    head, _, body = stage.written.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 401 Unauthorized",
        b"server: here",
        b"a: b",
        b"transfer-encoding: chunked",
        b"connection: close",
    ]
    assert body == b"2\r\nno\r\n1\r\n!\r\n0\r\n\r\n"
    assert stage.calls == ["close"]
    assert stage.state is State.CLOSING


@pytest.mark.parametrize("status", [None, "401", 101, 600])
async def test_a_denial_has_a_status(status: object) -> None:
    stage = await Stage().begun()
    with pytest.raises(ArgumentError, match="status from 200 to 599"):
        await stage.send({"type": RESPONSE_START, "status": status})
    await stage.send({"type": ACCEPT})
    assert stage.state is State.OPEN


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("denial", ["none", "not begun", "begun"])
async def test_a_handshake_is_answered_when_the_application_ends(
    denial: str, *, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stage = await Stage().begun()
    if denial != "none":
        await stage.send({"type": RESPONSE_START, "status": 401})
    if denial == "begun":
        await stage.send({"type": RESPONSE_BODY, "body": b"no", "more_body": True})
    await stage.end(LookupError("of the application") if raises else None)
    status = 401 if denial == "begun" else 500
    assert stage.written.startswith(b"HTTP/1.1 %d " % status)
    assert stage.written.count(b"HTTP/1.1") == 1
    assert stage.calls == ["close"]
    assert stage.state is State.GONE
    assert await stage.hear() == 1006
    assert [record.message for record in caplog.records] == [
        "Exception in ASGI application\n"
        if raises
        else "ASGI callable returned without completing handshake."
    ]


# What comes before it is answered.


async def test_what_comes_too_early_is_kept() -> None:
    stage = await Stage().begun(early=text("one", "two")[:-1])
    stage.bring(text("two")[-1:] + text("three"))
    assert stage.calls == []
    await stage.send({"type": ACCEPT})
    assert [await stage.hear() for _ in range(3)] == ["one", "two", "three"]
    assert stage.calls == []


async def test_reading_pauses_when_too_much_comes_too_early() -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=40)).begun()
    stage.bring(frame(codec.PING, b"x" * 20))
    assert stage.calls == []
    for _ in range(2):
        stage.bring(frame(codec.PING, b"x" * 20))
    assert stage.calls == ["pause_reading"]
    await stage.send({"type": ACCEPT})
    assert stage.calls == ["pause_reading", "resume_reading"]
    head, _, rest = stage.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert frames(rest) == [(codec.PONG, b"x" * 20)] * 3


async def test_reading_goes_on_when_what_came_too_early_has_been_received() -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=40)).begun()
    stage.bring(text("x" * 40, "last"))
    await stage.send({"type": ACCEPT})
    assert stage.calls == ["pause_reading"]
    assert [await stage.hear() for _ in range(2)] == ["x" * 40, "last"]
    assert stage.calls == ["pause_reading", "resume_reading"]


@pytest.mark.parametrize(("early", "code"), LAST_WORDS)
async def test_an_end_that_came_too_early(early: bytes, code: int) -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=1)).begun()
    stage.bring(early)
    assert stage.calls == ["pause_reading"]
    await stage.send({"type": ACCEPT})
    await idle()
    rest = stage.written.partition(b"\r\n\r\n")[2]
    assert frames(rest)[0][1][:2] == code.to_bytes(2)
    last = "close" if code == 4001 else "write_eof"
    assert stage.calls == ["pause_reading", "resume_reading", last]
    assert await stage.hear() == code
    with pytest.raises(ClientDisconnected):
        await stage.say("a")


async def test_what_comes_while_a_handshake_is_denied_is_dropped() -> None:
    stage = await Stage().begun()
    await stage.send({"type": RESPONSE_START, "status": 401})
    stage.bring(text("a"))
    stage.transport.lose()
    assert [await stage.hear() for _ in range(2)] == [1006, 1006]


# What is legal when.

WHAT: dict[str, Message] = {
    ACCEPT: {"type": ACCEPT},
    SEND: {"type": SEND, "text": "a"},
    CLOSE: {"type": CLOSE},
    RESPONSE_START: {"type": RESPONSE_START, "status": 401},
    RESPONSE_BODY: {"type": RESPONSE_BODY, "body": b"no", "more_body": True},
    "the last body": {"type": RESPONSE_BODY, "body": b"no"},
    RESPONSE_END: {"type": RESPONSE_END},
    **{kind: {"type": kind} for kind in sorted(INCOMING)},
    "unknown": {"type": "websocket.unknown"},
    "nothing": {},
}
# What is written, and which state follows.
DOES: dict[tuple[State, str], tuple[bytes, State]] = {
    (State.PENDING, ACCEPT): (b"HTTP/1.1 101 ", State.OPEN),
    (State.PENDING, CLOSE): (b"HTTP/1.1 403 ", State.CLOSING),
    (State.PENDING, RESPONSE_START): (b"", State.DENYING),
    (State.DENYING, RESPONSE_BODY): (b"HTTP/1.1 401 ", State.DENYING),
    (State.DENYING, "the last body"): (b"HTTP/1.1 401 ", State.CLOSING),
    (State.OPEN, SEND): (b"\x81\x01a", State.OPEN),
    (State.OPEN, CLOSE): (b"\x88\x02\x03\xe8", State.CLOSING),
    (State.CLOSING, CLOSE): (b"", State.CLOSING),
    (State.GONE, CLOSE): (b"", State.GONE),
    (State.CLOSED, CLOSE): (b"", State.CLOSED),
}
OF_APPLICATIONS = {*OUTGOING, "the last body"} - {RESPONSE_END}


async def reached(state: State) -> Stage:
    """Bring a connection into a state, in the shortest way."""
    stage = Stage()
    if state is State.CONNECTING:
        return stage
    await stage.begun()
    if state in {State.OPEN, State.CLOSING, State.CLOSED}:
        await stage.send(WHAT[ACCEPT])
    if state in {State.CLOSING, State.CLOSED}:
        await stage.send(WHAT[CLOSE])
    if state is State.DENYING:
        await stage.send(WHAT[RESPONSE_START])
    if state in {State.GONE, State.CLOSED}:
        stage.transport.lose()
    stage.transport.writes.clear()
    assert stage.state is state
    return stage


@pytest.mark.parametrize("way", ["at once", "in turn"])
@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("state", State)
async def test_what_becomes_of_every_event_in_every_state(
    state: State, what: str, way: str
) -> None:
    stage = await reached(state)
    if way == "in turn":
        stage.protocol.pause_writing()
    sending = asyncio.ensure_future(stage.send(WHAT[what]))
    if way == "in turn":
        await idle()
        # After the end there is nothing to wait for.
        assert sending.done() is (state in {State.GONE, State.CLOSED})
        assert stage.written == b""
        stage.protocol.resume_writing()
    if (state, what) in DOES:
        await sending
    elif state is State.GONE and what in OF_APPLICATIONS:
        with pytest.raises(ClientDisconnected):
            await sending
    else:
        kind = WHAT[what].get("type")
        with pytest.raises(StateError, match=f"^{kind} is not legal while {state}; .* '{kind}'$"):
            await sending
    written, follows = DOES.get((state, what), (b"", state))
    assert stage.written.startswith(written)
    assert bool(stage.written) is bool(written)
    assert stage.state is follows


# What the application receives.


async def test_messages_come_in_their_order_and_then_the_end_for_ever() -> None:
    stage = await Stage().opened()
    stage.bring(text("one") + frame(codec.BINARY, b"two") + text("three")[:4])
    stage.bring(text("three")[4:])
    assert await stage.receive() == {"type": RECEIVE, "text": "one"}
    stage.bring(text("four") + PEERS_CLOSE)
    assert await stage.receive() == {"type": RECEIVE, "bytes": b"two"}
    assert [await stage.hear() for _ in range(2)] == ["three", "four"]
    end = {"type": DISCONNECT, "code": 4001, "reason": "bye"}
    assert [await stage.receive() for _ in range(2)] == [end, end]


async def test_two_who_receive_share_what_comes() -> None:
    stage = await Stage().opened()
    first, second = (asyncio.ensure_future(stage.hear()) for _ in range(2))
    await idle()
    stage.bring(text("one"))
    await idle()
    assert (first.done(), second.done()) == (True, False)
    stage.bring(text("two"))
    assert (await first, await second) == ("one", "two")


@pytest.mark.parametrize("moment", ["before it comes", "as it comes"])
async def test_a_receiver_that_gives_up_leaves_all_to_the_other(moment: str) -> None:
    stage = await Stage().opened()
    first, second = (asyncio.ensure_future(stage.hear()) for _ in range(2))
    await idle()
    if moment == "as it comes":
        stage.bring(text("one"))
    first.cancel()
    if moment == "before it comes":
        stage.bring(text("one"))
    assert await second == "one"
    assert first.cancelled()


async def test_who_has_given_up_is_not_woken() -> None:
    stage = await Stage().opened()
    waiting = asyncio.ensure_future(stage.hear())
    await idle()
    waiting.cancel()
    stage.transport.lose()
    await idle()
    assert waiting.cancelled()
    assert await stage.hear() == 1006


async def test_who_waits_is_told_of_the_end() -> None:
    stage = await Stage().opened()
    both = [asyncio.ensure_future(stage.hear()) for _ in range(2)]
    await idle()
    stage.transport.lose()
    assert await asyncio.gather(*both) == [1006, 1006]


@pytest.mark.parametrize(
    ("options", "settings"),
    [({"ws_max_queue": 2}, HASTY), ({"ws_max_queue": 0}, HASTY), ({}, HASTY.but(read_buffer=9))],
    ids=["messages", "no messages", "bytes"],
)
async def test_reading_pauses_while_nobody_receives(
    options: dict[str, Any], settings: ServerSettings
) -> None:
    stage = await Stage(settings=settings, **options).opened()
    stage.bring(text("one", "two"))
    stage.bring(text("three"))
    assert stage.calls == ["pause_reading"]
    assert [await stage.hear() for _ in range(3)] == ["one", "two", "three"]
    assert stage.calls == ["pause_reading", "resume_reading"]


async def test_who_waits_takes_all_there_is() -> None:
    stage = await Stage(ws_max_queue=1).opened()
    waiting = asyncio.ensure_future(stage.hear())
    await idle()
    stage.bring(text("one", "two"))
    assert stage.calls == []
    assert await waiting == "one"
    assert await stage.hear() == "two"


async def test_reading_neither_pauses_nor_goes_on_when_the_transport_closes() -> None:
    stage = await Stage(ws_max_queue=1).opened()
    stage.transport.closing = True
    stage.bring(text("one"))
    assert stage.calls == []
    stage.transport.closing = False
    stage.bring(text("two"))
    stage.transport.closing = True
    assert [await stage.hear() for _ in range(2)] == ["one", "two"]
    assert stage.calls == ["pause_reading"]


def compressed(word: str) -> bytes:
    return frame(codec.TEXT, deflated(word.encode()), rsv=4)


@pytest.mark.parametrize("waits", [True, False])
async def test_what_would_inflate_to_too_much_waits(*, waits: bool) -> None:
    settings = HASTY.but(read_buffer=1_000)
    stage = await Stage(settings=settings).opened(DEFLATE)
    words = [*(letter * 2_000 for letter in "abc"), "short"]
    waiting = asyncio.ensure_future(stage.hear()) if waits else None
    await idle()
    stage.bring(b"".join(map(compressed, words)))
    assert stage.calls == ["pause_reading"]
    assert len(stage.protocol._decoder.messages) == 1
    heard = [await waiting] if waiting is not None else []
    while len(heard) < 4:
        heard.append(await stage.hear())
        assert len(stage.protocol._decoder.messages) <= 1
    assert heard == words
    assert stage.calls == ["pause_reading", "resume_reading"]


@pytest.mark.parametrize("behind", [b"", PEERS_CLOSE, BROKEN], ids=["nothing", "close", "wrong"])
async def test_what_waits_to_be_inflated_is_received_after_a_loss(behind: bytes) -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=1_000)).opened(DEFLATE)
    words = [letter * 2_000 for letter in "abcd"]
    stage.bring(b"".join(map(compressed, words)) + behind)
    stage.transport.lose()
    assert [await stage.hear() for _ in range(6)] == [*words, 1006, 1006]
    await idle()
    assert stage.written == b""
    assert stage.calls == ["pause_reading"]


@pytest.mark.parametrize(("last", "code"), LAST_WORDS)
async def test_last_words_behind_what_waits_to_be_inflated(last: bytes, code: int) -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=1_000)).opened(DEFLATE)
    words = [letter * 2_000 for letter in "abcd"]
    stage.bring(b"".join(map(compressed, words)) + last)
    assert [await stage.hear() for _ in range(5)] == [*words, code]
    assert stage.sent[0][1][:2] == code.to_bytes(2)


# What the application sends.


class Word(str):
    """A string of the application's own kind."""

    __slots__ = ()


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        ({"text": "é"}, (codec.TEXT, "é".encode())),
        ({"text": "é", "bytes": None}, (codec.TEXT, "é".encode())),
        ({"text": Word("é")}, (codec.TEXT, "é".encode())),
        ({"text": None, "bytes": b"a"}, (codec.BINARY, b"a")),
        ({"bytes": b""}, (codec.BINARY, b"")),
        ({"bytes": bytearray(b"ab")}, (codec.BINARY, b"ab")),
        ({"bytes": memoryview(b"abc")[1:]}, (codec.BINARY, b"bc")),
        ({"bytes": bytes(codec.LONG)}, (codec.BINARY, bytes(codec.LONG))),
        ({"text": "a" * 70_000}, (codec.TEXT, b"a" * 70_000)),
    ],
    ids=range(9),
)
async def test_a_message_leaves_in_a_write(event: Message, sent: tuple[int, bytes]) -> None:
    stage = await Stage().opened()
    await stage.send({"type": SEND, **event})
    assert stage.sent == [sent]
    assert len(stage.transport.writes) == 1


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({}, ValueError),
        ({"text": "a", "bytes": b"a"}, ValueError),
        ({"text": b"a"}, TypeError),
        ({"text": "\ud800"}, ValueError),
        ({"bytes": "a"}, TypeError),
        ({"bytes": [1]}, TypeError),
    ],
    ids=range(6),
)
async def test_what_cannot_be_sent_is_refused(event: Message, error: type[Exception]) -> None:
    stage = await Stage().opened()
    with pytest.raises(error):
        await stage.send({"type": SEND, **event})
    await stage.say("a")
    assert stage.words == ["a"]


@pytest.mark.parametrize(
    "event",
    [{"code": 999}, {"code": "1000"}, {"code": 1000, "reason": "x" * 124}, {"reason": b"a"}],
    ids=range(4),
)
async def test_a_close_that_cannot_be_sent_has_not_happened(event: Message) -> None:
    stage = await Stage().opened()
    with pytest.raises((ValueError, TypeError)):
        await stage.send({"type": CLOSE, **event})
    await stage.say("a")
    await stage.send({"type": CLOSE, "code": 4000, "reason": "é"})
    assert stage.sent == [(codec.TEXT, b"a"), (codec.CLOSE, b"\x0f\xa0" + "é".encode())]


async def test_only_what_shrinks_goes_compressed() -> None:
    stage = await Stage(settings=HASTY.but(compress_from=10)).opened(DEFLATE)
    random = bytes(range(256))
    await stage.say("a" * 9, "a" * 10)
    await stage.send({"type": SEND, "bytes": random})
    first, second, third = stage.sent
    assert first == (codec.TEXT, b"a" * 9)
    assert second[0] == codec.TEXT | codec.RSV1
    assert third == (codec.BINARY, random)


async def test_answers_to_what_came_together_leave_together() -> None:
    """As many as are gathered in a write; the loop takes what the application leaves."""
    stage = Stage(echo)
    stage.bring(HANDSHAKE + b"\r\n")
    await idle()
    stage.transport.writes.clear()
    words = [str(number) for number in range(2 * MOST_GATHERED)]
    stage.bring(text(*words))
    await idle()
    assert stage.words == words
    assert len(stage.transport.writes) == 2
    assert len(frames(stage.transport.writes[0])) == MOST_GATHERED


async def test_an_answer_is_not_kept_when_the_application_stops_answering() -> None:
    stage = await Stage().opened()
    stage.bring(text("one", "two", "three"))
    assert await stage.hear() == "one"
    await stage.say("a", "b")
    assert stage.written == b""
    await asyncio.sleep(0)
    assert stage.words == ["a", "b"]
    await stage.hear()
    await stage.hear()
    await stage.say("c")
    assert stage.words == ["a", "b", "c"]


async def test_what_is_sent_while_another_task_receives_leaves_together() -> None:
    stage = await Stage().opened()
    waiting = asyncio.ensure_future(stage.hear())
    await idle()
    words = [str(number) for number in range(MOST_GATHERED + 2)]
    await stage.say(*words)
    assert len(stage.transport.writes) == 1
    await asyncio.sleep(0)
    assert stage.words == words
    assert len(stage.transport.writes) == 2
    stage.bring(text("a"))
    assert await waiting == "a"
    await stage.say("at once")
    assert stage.words[-1] == "at once"


async def gathered() -> Stage:
    """A connection on which an answer waits for more of them."""
    stage = await Stage().opened()
    stage.bring(text("one", "two"))
    await stage.hear()
    await stage.say("kept")
    assert stage.written == b""
    return stage


@pytest.mark.parametrize("size", [3, codec.LONG - 1, codec.LONG, 70_000])
async def test_nothing_overtakes_an_answer_that_is_kept(size: int) -> None:
    stage = await gathered()
    await stage.hear()
    await stage.say("a" * size, "last")
    assert stage.words == ["kept", "a" * size, "last"]
    await idle()
    assert len(stage.sent) == 3


async def test_one_answer_is_kept_for_no_longer_than_a_turn() -> None:
    stage = await gathered()
    await asyncio.sleep(0)
    assert stage.words == ["kept"]


@pytest.mark.parametrize("pauses", [True, False])
async def test_a_long_payload_is_copied_only_where_writelines_would_not_pause(
    monkeypatch: pytest.MonkeyPatch, *, pauses: bool
) -> None:
    monkeypatch.setattr(protocol, "WRITELINES_PAUSES", pauses)
    stage = await Stage().opened()
    payload = bytes(codec.LONG)
    given: list[object] = []
    monkeypatch.setattr(stage.transport, "writelines", given.extend)
    monkeypatch.setattr(stage.transport, "write", given.append)
    await stage.send({"type": SEND, "bytes": payload})
    head = codec.head(codec.BINARY, len(payload))
    assert given == ([head, payload] if pauses else [head + payload])


async def test_a_pong_does_not_overtake_an_answer() -> None:
    stage = await gathered()
    stage.bring(frame(codec.PING, b"x"))
    assert stage.sent == [(codec.TEXT, b"kept"), (codec.PONG, b"x")]
    assert len(stage.transport.writes) == 1


@pytest.mark.parametrize("way", ["close", "return", "raise", "shutdown", "peer", "wrong"])
async def test_a_close_does_not_overtake_an_answer(way: str) -> None:
    stage = await gathered()
    if way == "close":
        await stage.send(WHAT[CLOSE])
    elif way == "shutdown":
        stage.protocol.shutdown()
    elif way == "peer":
        stage.bring(PEERS_CLOSE)
    elif way == "wrong":
        stage.bring(BROKEN)
    else:
        stage.ended.set_result(None) if way == "return" else stage.ended.set_exception(KeyError())
    await idle()
    assert [opcode for opcode, _ in stage.sent] == [codec.TEXT, codec.CLOSE]


async def test_an_answer_that_is_kept_leaves_when_the_peer_hangs_up() -> None:
    stage = await gathered()
    await stage.hang_up()
    assert stage.words == ["kept"]
    assert stage.calls == ["close"]


async def test_an_answer_that_is_kept_when_all_is_lost() -> None:
    stage = await gathered()
    stage.transport.lose()
    await idle()
    assert stage.written == b""


async def test_who_sends_very_much_gives_the_others_a_turn() -> None:
    stage = await Stage().opened()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await asyncio.sleep(0)
    turns = 0
    for _ in range(4):
        await stage.say("a" * (MOST_IN_A_ROW // 4 - 64))
    assert turns == 0
    await stage.say("")
    assert turns == 1
    await stage.say("a" * (MOST_IN_A_ROW // 2))
    stage.bring(frame(codec.PONG))  # the loop has had its turn
    await stage.say("a" * (MOST_IN_A_ROW // 2))
    assert turns == 1
    counting.cancel()


@pytest.mark.parametrize("way", ["at once", "in turn"])
async def test_a_transport_that_closes_is_a_loss(way: str) -> None:
    """A failed write says nothing, and who only sends would never give the loop its turn."""
    stage = await Stage().opened()
    if way == "in turn":
        stage.transport.stuck = True
        await stage.say("a")
    sending = [asyncio.ensure_future(stage.say("lost")) for _ in range(3 * (way == "in turn"))]
    await idle()
    stage.transport.closing = True
    if way == "in turn":
        stage.transport.drain()
    else:
        sending.append(asyncio.ensure_future(stage.say("lost")))
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ClientDisconnected}
    assert "lost" not in stage.words
    stage.transport.lose()
    assert await stage.hear() == 1006


async def test_what_was_read_of_the_end_counts_before_what_a_write_finds() -> None:
    stage = await Stage().opened()
    stage.bring(PEERS_CLOSE)
    stage.transport.closing = True
    with pytest.raises(ClientDisconnected):
        await stage.say("lost")
    assert await stage.hear() == 4001


# While the peer does not read.


async def blocked(**keys: Any) -> Stage:
    """A connection whose transport is full."""
    stage = await Stage(**keys).opened()
    stage.transport.stuck = True
    await stage.say("first")
    return stage


async def test_who_sends_waits_for_its_turn() -> None:
    stage = await blocked()
    sending = [asyncio.ensure_future(stage.say(word)) for word in "abcd"]
    await idle()
    assert stage.words == ["first"]
    sending[1].cancel()
    stage.transport.drain()
    late = asyncio.ensure_future(stage.say("late"))
    await asyncio.gather(*sending, late, return_exceptions=True)
    assert stage.words == ["first", "a", "c", "d", "late"]
    await stage.say("at once")
    assert stage.words[-1] == "at once"


async def test_who_fills_the_transport_lets_the_others_wait() -> None:
    stage = await blocked()
    sending = [asyncio.ensure_future(stage.say(word)) for word in "ab"]
    await idle()
    for count in (2, 3):
        stage.transport.drain()
        stage.transport.stuck = True
        await idle()
        assert len(stage.words) == count
    await asyncio.gather(*sending)


async def test_a_turn_that_comes_as_its_sender_gives_up_is_the_next_ones() -> None:
    stage = await blocked()
    first, second = (asyncio.ensure_future(stage.say(word)) for word in "ab")
    await idle()
    stage.transport.drain()
    first.cancel()
    await second
    assert stage.words == ["first", "b"]


async def test_a_turn_that_is_given_up_does_not_open_a_full_transport() -> None:
    stage = await blocked()
    sending = asyncio.ensure_future(stage.say("a"))
    await idle()
    stage.transport.drain()
    stage.transport.stuck = True
    stage.bring(frame(codec.PING))  # its answer fills the transport again
    sending.cancel()
    await idle()
    late = asyncio.ensure_future(stage.say("late"))
    await idle()
    assert not late.done()
    stage.transport.drain()
    await late
    assert stage.words == ["first", "late"]


async def test_a_mistake_gives_its_turn_to_the_next() -> None:
    stage = await blocked()
    wrong = asyncio.ensure_future(stage.send({"type": SEND}))
    right = asyncio.ensure_future(stage.say("right"))
    await idle()
    stage.transport.drain()
    with pytest.raises(ArgumentError):
        await wrong
    await right
    assert stage.words == ["first", "right"]


async def test_only_the_last_ping_is_answered_when_nobody_read_the_answers() -> None:
    stage = await blocked()
    stage.bring(frame(codec.PING, b"1") + frame(codec.PING, b"2"))
    stage.bring(frame(codec.PING, b"3"))
    assert stage.words == ["first"]
    stage.transport.drain()
    assert stage.sent[1:] == [(codec.PONG, b"3")]
    stage.bring(frame(codec.PING, b"4") + frame(codec.PING, b"5"))
    assert stage.sent[2:] == [(codec.PONG, b"4"), (codec.PONG, b"5")]


async def test_a_pong_that_fills_the_transport_keeps_the_turn() -> None:
    stage = await blocked()
    stage.bring(frame(codec.PING, b"1"))
    sending = asyncio.ensure_future(stage.say("a"))
    await idle()
    stage.transport.heed = lambda _: stage.protocol.pause_writing()
    stage.transport.drain()
    await idle()
    assert stage.sent[1:] == [(codec.PONG, b"1")]
    stage.transport.heed = len
    stage.transport.drain()
    await sending
    assert stage.words == ["first", "a"]


@pytest.mark.parametrize("end", ["close", "return"])
async def test_no_ping_is_answered_behind_our_close(end: str) -> None:
    stage = await blocked()
    stage.bring(frame(codec.PING, b"1"))
    await stage.end()
    stage.bring(frame(codec.PING, b"2"))
    stage.transport.drain()
    assert stage.sent[1:] == [CLOSE_1000]


@pytest.mark.parametrize("end", ["loss", "hang up", "peer", "wrong", "shutdown"])
async def test_who_waits_to_send_is_told_of_the_end(end: str) -> None:
    stage = await blocked()
    sending = [asyncio.ensure_future(stage.say(word)) for word in "abc"]
    await idle()
    if end == "loss":
        stage.transport.lose()
    elif end == "hang up":
        await stage.hang_up()
    elif end == "shutdown":
        stage.protocol.shutdown()
    else:
        stage.bring(PEERS_CLOSE if end == "peer" else BROKEN)
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ClientDisconnected}
    assert stage.words == ["first"]
    with pytest.raises(ClientDisconnected):
        await stage.say("late")


@pytest.mark.parametrize("end", ["hang up", "peer", "wrong", "shutdown"])
async def test_nobody_waits_after_the_end_though_the_last_words_filled_the_transport(
    end: str,
) -> None:
    stage = await gathered()
    stage.transport.stuck = True
    if end == "hang up":
        await stage.hang_up()
    elif end == "shutdown":
        stage.protocol.shutdown()
    else:
        stage.bring(PEERS_CLOSE if end == "peer" else BROKEN)
    await idle()
    sending = asyncio.ensure_future(stage.say("late"))
    await idle()
    stage.transport.lose()
    await idle()
    assert sending.done()
    with pytest.raises(ClientDisconnected):
        await sending


@in_no_time
async def test_a_close_behind_what_was_sent_waits_so_long_and_no_longer() -> None:
    stage = await blocked()
    sending = [asyncio.ensure_future(stage.say(word)) for word in "ab"]
    closing = asyncio.ensure_future(stage.send(WHAT[CLOSE]))
    await asyncio.sleep(2.9)
    assert stage.calls == []
    await asyncio.sleep(0.2)
    assert stage.calls == ["abort"]
    stage.transport.lose()
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ClientDisconnected}
    await closing
    assert stage.state is State.GONE
    assert await stage.hear() == 1006


@in_no_time
async def test_a_close_behind_what_was_sent_goes_out_after_it() -> None:
    stage = await blocked()
    sending = asyncio.ensure_future(stage.say("a"))
    closing = asyncio.ensure_future(stage.send(WHAT[CLOSE]))
    await asyncio.sleep(2)
    stage.transport.drain()
    await asyncio.gather(sending, closing)
    assert stage.sent[1:] == [(codec.TEXT, b"a"), CLOSE_1000]
    await asyncio.sleep(2)
    assert stage.calls == []
    await asyncio.sleep(1.1)
    assert stage.calls == ["abort"]


@in_no_time
async def test_a_close_that_is_a_mistake_cuts_nothing() -> None:
    stage = await blocked(ws_ping_interval=5, ws_ping_timeout=None)
    closing = asyncio.ensure_future(stage.send({"type": CLOSE, "code": 999}))
    await asyncio.sleep(1)
    stage.transport.drain()
    with pytest.raises(ArgumentError):
        await closing
    await asyncio.sleep(10)
    assert stage.calls == []
    assert stage.sent[1:] == [(codec.PING, b"")] * 2


# How it ends.


async def test_answers_go_before_the_answer_to_a_close() -> None:
    stage = Stage(echo)
    stage.bring(HANDSHAKE + b"\r\n")
    await idle()
    stage.transport.writes.clear()
    stage.bring(text("one", "two") + PEERS_CLOSE)
    await idle()
    assert stage.sent == [
        (codec.TEXT, b"one"),
        (codec.TEXT, b"two"),
        (codec.CLOSE, b"\x0f\xa1"),
    ]
    assert stage.calls == ["close"]
    assert stage.server.tasks == set()


@pytest.mark.parametrize("can_write_eof", [True, False])
async def test_answers_go_before_a_failure(*, can_write_eof: bool) -> None:
    """Over TLS nobody can half close."""
    stage = Stage(echo, can_write_eof=can_write_eof)
    stage.bring(HANDSHAKE + b"\r\n")
    await idle()
    stage.transport.writes.clear()
    stage.bring(text("one", "two") + BROKEN + text("not this"))
    await idle()
    assert stage.words == ["one", "two"]
    assert stage.sent[2][1][:2] == b"\x03\xea"
    assert stage.calls == ["write_eof" if can_write_eof else "close"]
    stage.bring(text("nor this"))
    await stage.hang_up()
    assert len(stage.sent) == 3
    assert stage.calls[1:] == ["close"] * can_write_eof  # a transport is closed but once


@pytest.mark.parametrize("last", [PEERS_CLOSE, BROKEN], ids=["close", "wrong"])
async def test_a_loss_between_the_last_words_and_their_answer(last: bytes) -> None:
    stage = await Stage().opened()
    waiting = asyncio.ensure_future(stage.hear())
    await idle()
    stage.bring(text("one") + last)
    assert stage.state is State.OPEN
    stage.transport.lose()
    assert await waiting == "one"
    await idle()
    assert await stage.hear() == 1006
    assert stage.written == b""
    assert stage.calls == []


@pytest.mark.parametrize(
    ("last", "code"),
    [(PEERS_CLOSE, 4001), (frame(codec.CLOSE), 1005), (BROKEN, 1006)],
    ids=["close", "bare close", "wrong"],
)
async def test_who_closes_is_answered(last: bytes, code: int) -> None:
    stage = await Stage().opened()
    await stage.send({"type": CLOSE, "code": 4000})
    stage.bring(text("in flight") + last)
    await idle()
    assert stage.sent == [(codec.CLOSE, b"\x0f\xa0")]
    assert stage.calls == ["write_eof" if last == BROKEN else "close"]
    assert stage.state is State.CLOSED
    assert [await stage.hear() for _ in range(3)] == ["in flight", code, code]


async def test_what_comes_behind_our_close_makes_way_for_its_answer() -> None:
    stage = await Stage(ws_max_queue=2).opened()
    await stage.send(WHAT[CLOSE])
    stage.bring(text("one", "two", "three"))
    assert stage.calls == []
    stage.bring(text("four") + PEERS_CLOSE)
    await idle()
    assert stage.calls == ["close"]
    assert [await stage.hear() for _ in range(2)] == ["four", 4001]


async def test_what_was_not_received_makes_way_for_the_answer_to_our_close() -> None:
    stage = await Stage(ws_max_queue=2).opened()
    stage.bring(text("one", "two", "three"))
    assert await stage.hear() == "one"
    await stage.send(WHAT[CLOSE])
    assert stage.calls == ["pause_reading", "resume_reading"]
    stage.bring(text("four") + PEERS_CLOSE)
    assert [await stage.hear() for _ in range(2)] == ["four", 4001]


@pytest.mark.parametrize("way", ["close", "return"])
async def test_reading_goes_on_behind_our_close(way: str) -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=1_000)).opened(DEFLATE)
    stage.bring(b"".join(compressed(letter * 2_000) for letter in "abc"))
    assert stage.calls == ["pause_reading"]
    if way == "close":
        await stage.send(WHAT[CLOSE])
    else:
        await stage.end()
    assert stage.calls == ["pause_reading", "resume_reading"]
    stage.bring(b"".join(compressed(letter * 2_000) for letter in "abc") + PEERS_CLOSE)
    await idle()
    assert stage.calls[2:] == ["close"]
    assert await stage.hear() == 4001


async def test_reading_goes_on_behind_a_failure() -> None:
    """The peer's FIN is waited for, and no reset may overtake our close frame."""
    stage = await Stage(ws_max_queue=1).opened()
    stage.bring(text("one") + BROKEN)
    await idle()
    stage.bring(text("more"))
    assert "write_eof" in stage.calls
    assert stage.calls.count("pause_reading") == stage.calls.count("resume_reading")


@pytest.mark.parametrize(
    ("error", "code", "logged"),
    [
        (None, CLOSE_1000, False),
        (LookupError(), CLOSE_1011, True),
        (WebSocketDisconnect(1006), CLOSE_1011, True),
        (asyncio.CancelledError(), CLOSE_1011, True),
    ],
)
async def test_a_close_when_the_application_ends(
    error: BaseException | None,
    code: tuple[int, bytes],
    *,
    logged: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = await Stage().opened()
    await stage.end(error)
    assert stage.sent == [code]
    assert stage.state is State.CLOSING
    assert caplog.messages == ["Exception in ASGI application\n"] * logged


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (None, False),
        (ClientDisconnected(), False),
        (WebSocketDisconnect(1006), False),
        (asyncio.CancelledError(), False),
        (LookupError(), True),
    ],
)
async def test_an_application_that_ends_after_the_end(
    error: BaseException | None, *, lost: bool, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A write may have found the loss before anybody was told of it."""
    stage = await Stage().opened()
    if lost:
        stage.transport.lose()
    stage.transport.closing = True
    await stage.end(error)
    if lost:
        assert stage.written == b""
    assert caplog.messages == ["Exception in ASGI application\n"] * logged


@in_no_time
async def test_a_close_that_nobody_answers_is_waited_for_so_long_and_no_longer() -> None:
    stage = await Stage().opened()
    await stage.send(WHAT[CLOSE])
    await asyncio.sleep(2.9)
    assert stage.calls == []
    await asyncio.sleep(0.2)
    assert stage.calls == ["abort"]
    stage.transport.lose()
    assert await stage.hear() == 1006
    assert stage.state is State.CLOSED


@pytest.mark.parametrize("end", ["refusal", "peer", "wrong", "wrong over TLS", "hang up"])
@in_no_time
async def test_who_does_not_go_is_cut(end: str) -> None:
    stage = Stage(can_write_eof=end != "wrong over TLS")
    await (stage.begun() if end == "refusal" else stage.opened())
    stage.transport.stuck = True
    if end in {"peer", "hang up"}:
        await stage.say("not read")
    match end:
        case "refusal":
            await stage.send(WHAT[CLOSE])
        case "peer":
            stage.bring(PEERS_CLOSE)
        case "hang up":
            await stage.hang_up()
        case _:
            stage.bring(BROKEN)
    first = ["write_eof" if end == "wrong" else "close"]
    await asyncio.sleep(2.9)
    assert stage.calls == first
    await asyncio.sleep(0.2)
    assert stage.calls == [*first, "abort"]
    stage.transport.lose()
    await asyncio.sleep(20)
    assert stage.calls == [*first, "abort"]


@pytest.mark.parametrize("end", ["refusal", "peer", "hang up"])
@in_no_time
async def test_nothing_is_waited_for_where_nothing_is_left_to_send(end: str) -> None:
    stage = Stage(ws_ping_interval=1)
    await (stage.begun() if end == "refusal" else stage.opened())
    match end:
        case "refusal":
            await stage.send(WHAT[CLOSE])
        case "peer":
            stage.bring(PEERS_CLOSE)
        case "hang up":
            await stage.hang_up()
    await asyncio.sleep(20)
    assert stage.calls == ["close"]
    assert (codec.PING, b"") not in frames(stage.written if end != "refusal" else b"")


# What is written when the server stops, what is asked of the transport, what the application is
# told, and which state follows.
STOPS = {
    State.CONNECTING: (b"", ["close"], None, State.CONNECTING),
    State.PENDING: (b"HTTP/1.1 503 ", ["close"], 1012, State.GONE),
    State.OPEN: (b"\x88\x02\x03\xf4", ["write_eof"], 1012, State.GONE),
    State.CLOSING: (b"", ["close"], 1012, State.CLOSED),
    State.GONE: (b"", [], 1006, State.GONE),
    State.CLOSED: (b"", [], 1006, State.CLOSED),
}


@pytest.mark.parametrize("state", STOPS)
async def test_the_server_stops_in_every_state(state: State) -> None:
    stage = await reached(state)
    stage.protocol.shutdown()
    written, calls, code, follows = STOPS[state]
    assert stage.written.startswith(written)
    assert bool(stage.written) is bool(written)
    assert stage.calls == calls
    assert stage.state is follows
    if code is not None:
        assert await stage.hear() == code
        stage.protocol.shutdown()  # once is enough
        assert stage.calls == calls
        assert stage.written.count(written) in {1, len(stage.written) + 1}


@pytest.mark.parametrize("begun", [True, False])
async def test_the_server_stops_while_a_handshake_is_denied(*, begun: bool) -> None:
    stage = await reached(State.DENYING)
    if begun:
        await stage.send(WHAT[RESPONSE_BODY])
    stage.protocol.shutdown()
    assert stage.calls == ["close"]
    assert await stage.hear() == 1012
    assert stage.written.startswith(b"HTTP/1.1 401 " if begun else b"HTTP/1.1 50")
    assert stage.written.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("can_write_eof", [True, False])
@pytest.mark.parametrize(("last", "code"), LAST_WORDS)
async def test_a_hang_up_right_behind_the_last_words(
    last: bytes, code: int, *, can_write_eof: bool, answers: bool
) -> None:
    """TLS tells of both in one go, and the code is not lost."""
    stage = await Stage(can_write_eof=can_write_eof).opened()
    waiting = asyncio.ensure_future(stage.hear()) if answers else None
    await idle()
    stage.bring(text("one") + last)
    await stage.hang_up()
    heard = [await (waiting or stage.hear()), await stage.hear()]
    assert heard == ["one", code]
    assert stage.sent[-1][1][:2] == code.to_bytes(2)


@pytest.mark.parametrize("state", State)
async def test_the_peer_hangs_up_in_every_state(state: State) -> None:
    stage = await reached(state)
    await stage.hang_up()
    assert stage.written == b""
    assert stage.calls == ["close"] * (state not in {State.GONE, State.CLOSED})  # those are lost
    follows = {State.CONNECTING: state, State.CLOSING: State.CLOSED, State.CLOSED: state}
    assert stage.state is follows.get(state, State.GONE)
    if state is not State.CONNECTING:
        assert await stage.hear() == 1006
    stage.transport.lose()
    assert stage.connections == []


async def test_what_was_said_before_the_peer_hung_up_is_received() -> None:
    stage = await Stage().opened()
    stage.bring(text("one", "two"))
    await stage.hear()
    stage.bring(text("three"))
    await stage.hang_up()
    assert [await stage.hear() for _ in range(3)] == ["two", "three", 1006]


# Whether the peer is there.


async def life(
    interval: float | None, patience: float | None, answers_after: float | None, *, until: float
) -> list[tuple[float, str]]:
    """Return what happens when on a quiet connection: pings, our close, and what ends it."""
    stage = await Stage(ws_ping_interval=interval, ws_ping_timeout=patience).opened()
    begin = now()
    happened: list[tuple[float, str]] = []

    def note(data: bytes) -> None:
        ((opcode, payload),) = frames(data)
        happened.append((now() - begin, "ping" if opcode == codec.PING else payload[2:].decode()))
        if opcode == codec.PING and answers_after is not None:
            pong = frame(codec.PONG)
            asyncio.get_running_loop().call_later(answers_after, stage.bring, pong)

    stage.transport.heed = note
    await asyncio.sleep(until)
    return happened + [(0, call) for call in stage.calls]


TIMEOUT = "keepalive ping timeout"


@pytest.mark.parametrize(
    ("interval", "patience", "answers_after", "happens"),
    [
        (20, 20, None, [(20, "ping"), (40, TIMEOUT), (0, "close")]),
        (20, 5, None, [(20, "ping"), (25, TIMEOUT), (0, "close")]),
        (5, 12, None, [(5, "ping"), (17, TIMEOUT), (0, "close")]),
        (5, 20, None, [(5, "ping"), (25, TIMEOUT), (0, "close")]),
        (20, 20, 1, [(20, "ping"), (40, "ping")]),
        (20, 5, 1, [(20, "ping"), (40, "ping")]),
        (20, 5, 6, [(20, "ping"), (25, TIMEOUT), (0, "close")]),
        (15, 30, 1, [(15, "ping"), (30, "ping"), (45, "ping")]),
        (15, 30, 20, [(15, "ping"), (45, "ping")]),
        (15, None, None, [(15, "ping"), (30, "ping"), (45, "ping")]),
        (15, 0, None, [(15, "ping"), (30, "ping"), (45, "ping")]),
        (15, None, 1, [(15, "ping"), (30, "ping"), (45, "ping")]),
        (None, 5, None, []),
        (0, 5, None, []),
        (None, None, None, []),
    ],
)
@in_no_time
async def test_when_a_ping_goes_out_and_when_silence_is_an_end(
    interval: float | None,
    patience: float | None,
    answers_after: float | None,
    happens: list[tuple[float, str]],
) -> None:
    assert await life(interval, patience, answers_after, until=50) == happens


@in_no_time
async def test_an_application_that_does_not_receive_is_no_silence() -> None:
    stage = await Stage(ws_ping_interval=20, ws_ping_timeout=20, ws_max_queue=1).opened()
    stage.bring(text("one"))
    assert stage.calls == ["pause_reading"]
    await asyncio.sleep(90)
    assert stage.sent == [(codec.PING, b"")] * 4
    assert await stage.hear() == "one"
    await asyncio.sleep(25)
    assert stage.sent[4:] == [(codec.PING, b"")]
    await asyncio.sleep(20)
    assert stage.sent[-1][0] == codec.CLOSE
    assert await stage.receive() == {"type": DISCONNECT, "code": 1006, "reason": TIMEOUT}


@in_no_time
async def test_no_ping_behind_the_end() -> None:
    stage = await Stage(ws_ping_interval=1, ws_ping_timeout=1).opened()
    stage.transport.lose()
    await asyncio.sleep(10)
    assert stage.written == b""
    assert stage.calls == []


@in_no_time
async def test_no_ping_behind_our_close() -> None:
    stage = await Stage(ws_ping_interval=1, ws_ping_timeout=1).opened()
    await stage.send(WHAT[CLOSE])
    await asyncio.sleep(2.9)
    assert stage.sent == [CLOSE_1000]


# The wire extension: what leaves without waiting.


def in_text(word: str) -> Frame:
    return Frame("text", word)


def deflates(window: int) -> bytes:
    """What a client asks for that knows only so large a window."""
    return DEFLATE.replace(b"\r\n", b"; server_max_window_bits=%d\r\n" % window)


def inflated(sent: tuple[int, bytes], window: int = 15) -> tuple[int, bytes]:
    """Read a frame as a client does that agreed on this window."""
    opcode, payload = sent
    if not opcode & codec.RSV1:
        return sent
    inflater = zlib.decompressobj(-max(window, 9))
    return opcode - codec.RSV1, inflater.decompress(payload + b"\0\0\xff\xff")


async def test_the_scope_offers_the_connections_own_ways() -> None:
    stage = await Stage().begun()
    wire = stage.given["extensions"]["yaat.wire"]
    assert wire["version"] == 1
    assert wire["send"] == stage.send
    for name in ("write", "buffered", "on_room", "on_loss"):
        assert wire[name] == getattr(stage.protocol, name)


async def test_what_is_written_in_a_turn_leaves_together_at_its_end() -> None:
    stage = await Stage().opened()
    assert stage.protocol.write(in_text("é"))
    assert stage.protocol.write(Frame("bytes", b"two"))
    assert stage.written == b""
    await asyncio.sleep(0)
    assert stage.sent == [(codec.TEXT, "é".encode()), (codec.BINARY, b"two")]
    assert len(stage.transport.writes) == 1
    stage.protocol.write(in_text("three"))
    await asyncio.sleep(0)
    assert stage.words == ["é", "three"]


async def test_all_connections_hand_over_what_they_gathered() -> None:
    stages = [await Stage().opened() for _ in range(3)]
    for word in "ab":
        for stage in stages:
            assert stage.protocol.write(in_text(word))
    await asyncio.sleep(0)
    assert [stage.words for stage in stages] == [["a", "b"]] * 3
    assert [len(stage.transport.writes) for stage in stages] == [1] * 3


async def test_no_more_than_so_many_messages_are_gathered() -> None:
    stage = await Stage().opened()
    words = [str(number) for number in range(2 * MOST_GATHERED + 1)]
    for count, word in enumerate(words, 1):
        assert stage.protocol.write(in_text(word))
        assert len(stage.transport.writes) == count // MOST_GATHERED
    await asyncio.sleep(0)
    assert stage.words == words
    assert [len(frames(data)) for data in stage.transport.writes] == [16, 16, 1]


@pytest.mark.parametrize("size", [codec.LONG - 4, codec.LONG, 70_000])
async def test_a_long_message_is_not_kept(size: int) -> None:
    stage = await Stage().opened()
    stage.protocol.write(in_text("short"))
    stage.protocol.write(in_text("a" * size))
    assert stage.words == ["short", "a" * size]
    assert len(stage.transport.writes) == 1


async def test_the_longest_message_that_is_kept() -> None:
    stage = await Stage().opened()
    stage.protocol.write(in_text("a" * (codec.LONG - 5)))
    assert stage.written == b""


@pytest.mark.parametrize("size", [3, codec.LONG])
async def test_what_is_sent_does_not_overtake_what_was_written(size: int) -> None:
    stage = await Stage().opened()
    stage.protocol.write(in_text("first"))
    await stage.say("a" * size)
    assert stage.words == ["first", "a" * size]
    stage.protocol.write(in_text("last"))
    await asyncio.sleep(0)
    assert stage.words[2:] == ["last"]


async def test_what_is_written_does_not_overtake_an_answer_that_is_kept() -> None:
    stage = await gathered()
    assert stage.protocol.write(in_text("written"))
    assert stage.written == b""
    await stage.say("third")
    assert stage.written == b""
    await idle()
    assert stage.words == ["kept", "written", "third"]
    assert len(stage.transport.writes) == 1


async def test_a_ping_does_not_overtake_what_was_written() -> None:
    stage = await Stage(ws_ping_interval=1).opened()
    stage.protocol.write(in_text("a"))
    stage.protocol._send_ping()
    assert stage.sent == [(codec.TEXT, b"a"), (codec.PING, b"")]


async def test_a_frame_is_made_once_for_all_connections() -> None:
    plain, other, deflating = [
        await Stage(settings=HASTY.but(compress_from=1)).opened(headers)
        for headers in (b"", b"", DEFLATE)
    ]
    shared = in_text("a" * 100)
    for stage in (plain, other, deflating):
        assert stage.protocol.write(shared)
    assert plain.protocol._gathered[0] is other.protocol._gathered[0]
    assert shared.encodings.keys() == {0, 15}
    await asyncio.sleep(0)
    assert plain.sent == other.sent == [(codec.TEXT, b"a" * 100)]
    assert deflating.sent[0][0] == codec.TEXT | codec.RSV1
    assert len(deflating.written) < 20


@pytest.mark.parametrize("kind", ["text", "bytes"])
async def test_each_window_has_an_encoding_of_its_own(kind: Literal["text", "bytes"]) -> None:
    data = "".join(map(chr, range(32, 127))) * 20
    shared = Frame(kind, data if kind == "text" else data.encode())
    windows = {}
    for window in range(9, 16):
        stage = await Stage().opened(deflates(window))
        assert stage.protocol.write(shared)
        await asyncio.sleep(0)
        opcode = codec.TEXT if kind == "text" else codec.BINARY
        assert stage.sent[0][0] == opcode | codec.RSV1
        assert inflated(stage.sent[0], window) == (opcode, data.encode())
        windows[window] = stage.written
    assert shared.encodings == windows


@pytest.mark.parametrize(
    ("data", "goes_compressed"),
    [(b"a" * 9, False), (b"a" * 10, True), (bytes(range(256)), False), (b"", False)],
)
async def test_only_what_shrinks_is_written_compressed(
    data: bytes, *, goes_compressed: bool
) -> None:
    stage = await Stage(settings=HASTY.but(compress_from=10)).opened(DEFLATE)
    stage.protocol.write(Frame("bytes", data))
    await asyncio.sleep(0)
    assert bool(stage.sent[0][0] & codec.RSV1) is goes_compressed
    assert inflated(stage.sent[0]) == (codec.BINARY, data)


@pytest.mark.parametrize("state", [each for each in State if each is not State.OPEN])
async def test_nothing_is_written_on_what_is_not_open(state: State) -> None:
    stage = await reached(state)
    assert stage.protocol.write(in_text("a")) is False
    await idle()
    assert stage.written == b""
    assert stage.protocol.buffered() == 0


async def test_what_is_written_as_the_connection_is_lost_is_lost_with_it() -> None:
    stage = await Stage().opened()
    told = told_of_loss(stage)
    assert stage.protocol.write(in_text("a"))
    stage.transport.lose()
    assert stage.protocol.write(in_text("b")) is False
    assert stage.protocol.buffered() == 0
    await idle()
    assert stage.written == b""
    assert told == [(1006, "")]


async def test_nothing_is_written_while_the_peer_does_not_read() -> None:
    stage = await blocked()
    assert stage.protocol.write(in_text("a")) is False
    stage.transport.drain()
    assert stage.protocol.write(in_text("b")) is True
    await idle()
    assert stage.words == ["first", "b"]


async def test_nothing_is_written_while_somebody_waits_to_send() -> None:
    stage = await blocked()
    sending = [asyncio.ensure_future(stage.say(word)) for word in "ab"]
    await idle()
    stage.transport.drain()
    assert stage.protocol.write(in_text("overtakes")) is False
    await asyncio.gather(*sending)
    assert stage.protocol.write(in_text("c")) is True
    await idle()
    assert stage.words == ["first", "a", "b", "c"]


async def test_who_writes_fills_the_transport() -> None:
    stage = await Stage().opened()
    stage.transport.stuck = True
    for word in ("one", "two"):
        assert stage.protocol.write(in_text(word)) is True
    await asyncio.sleep(0)
    assert stage.protocol.write(in_text("three")) is False
    sending = asyncio.ensure_future(stage.say("four"))
    await idle()
    assert not sending.done()
    stage.transport.drain()
    await sending
    assert stage.words == ["one", "two", "four"]


async def test_what_is_buffered_is_counted_until_the_kernel_has_it() -> None:
    stage = await Stage().opened()
    assert stage.protocol.buffered() == 0
    stage.protocol.write(in_text("abc"))
    stage.protocol.write(in_text("é"))
    assert stage.protocol.buffered() == 9
    stage.transport.stuck = True
    await asyncio.sleep(0)
    assert stage.protocol.buffered() == 9
    stage.transport.drain()
    assert stage.protocol.buffered() == 0


@pytest.mark.parametrize("way", ["close", "return", "shutdown", "peer", "wrong", "hang up"])
async def test_a_close_does_not_overtake_what_was_written(way: str) -> None:
    stage = await Stage().opened()
    assert stage.protocol.write(in_text("written"))
    match way:
        case "close":
            await stage.send(WHAT[CLOSE])
        case "return":
            await stage.end()
        case "shutdown":
            stage.protocol.shutdown()
        case "hang up":
            await stage.hang_up()
        case _:
            stage.bring(PEERS_CLOSE if way == "peer" else BROKEN)
    await idle()
    closes = [] if way == "hang up" else [codec.CLOSE]
    assert [opcode for opcode, _ in stage.sent] == [codec.TEXT, *closes]
    assert stage.protocol.write(in_text("late")) is False


class Moves:
    """Whatever may happen to a connection, in any order; and what has to come out of it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.sending: list[tuple[int, asyncio.Future[None]]] = []
        self.accepted: dict[int, bytes] = {}
        self.calls = 0
        self.asked = self.told = 0

    def _data(self, size: int) -> bytes:
        self.calls += 1
        return b"%d:" % self.calls + b"a" * size

    async def write(self, size: int) -> None:
        protocol, data = self.stage.protocol, self._data(size)
        before = protocol.buffered(), len(self.stage.written)
        if protocol.write(Frame("bytes", data)):
            self.accepted[self.calls] = data
        else:
            assert before == (protocol.buffered(), len(self.stage.written))
        assert len(protocol._gathered) < MOST_GATHERED
        assert len(data) < codec.LONG or not any(
            len(each) > codec.LONG for each in protocol._gathered
        )

    async def send(self, size: int) -> None:
        await self._send({"type": SEND, "bytes": self._data(size)})

    async def close(self, _: int) -> None:
        self.calls += 1
        await self._send(WHAT[CLOSE])

    async def _send(self, message: Message) -> None:
        """At once where that is possible, so that all of it happens in one turn of the loop."""
        call = self.calls
        sending: asyncio.Future[None]
        if self.stage.protocol._turns.taken:
            sending = asyncio.ensure_future(self.stage.send(message))
            await asyncio.sleep(0)
        else:
            sending = asyncio.get_running_loop().create_future()
            try:
                await self.stage.send(message)
                sending.set_result(None)
            except StateError as error:
                sending.set_exception(error)
        if message["type"] == SEND:
            sending.add_done_callback(lambda _: self._sent(call, sending, message["bytes"]))
        self.sending.append((call, sending))

    def _sent(self, call: int, sending: asyncio.Future[None], data: bytes) -> None:
        if not sending.cancelled() and sending.exception() is None:
            self.accepted[call] = data

    async def give_up(self, which: int) -> None:
        if self.sending:
            self.sending[which % len(self.sending)][1].cancel()

    async def fill(self, _: int) -> None:
        self.stage.transport.stuck = True

    async def drain(self, _: int) -> None:
        if self.stage.transport._full:
            self.stage.transport.drain()

    async def turn(self, _: int) -> None:
        await asyncio.sleep(0)

    async def ask(self, _: int) -> None:
        """Let the application have messages to answer: then what it sends is gathered."""
        self.stage.bring(text("one", "two", "three"))

    async def hear(self, _: int) -> None:
        if self.stage.protocol._ready or self.stage.protocol._decoder.messages:
            await self.stage.receive()

    async def wait(self, _: int) -> None:
        """Let somebody wait for messages: then, too, what others send is gathered."""
        waiting = asyncio.ensure_future(self.stage.receive())
        waiting.add_done_callback(lambda _: waiting.cancelled() or waiting.exception())
        await asyncio.sleep(0)

    async def ping(self, _: int) -> None:
        self.stage.bring(frame(codec.PING))

    async def want_room(self, _: int) -> None:
        self.asked += 1
        self.stage.protocol.on_room(self._room)

    def _room(self) -> None:
        self.told += 1
        assert self.stage.state is State.OPEN

    async def end(self) -> None:
        while not all(sending.done() for _, sending in self.sending):
            self.stage.transport.drain()
            await idle()
        self.stage.transport.drain()
        await idle()
        await asyncio.gather(*(sending for _, sending in self.sending), return_exceptions=True)


WAYS = ["write", "write", "send", "send", "fill", "drain", "turn", "ask", "hear", "wait"]
WAYS += ["ping", "give_up", "want_room", "close"]
SIZES = [0, 1, 40, codec.LONG - 10, codec.LONG, 70_000]
MOVES = st.tuples(st.sampled_from(WAYS), st.sampled_from(SIZES))


@settings(deadline=None)
@given(st.lists(MOVES, max_size=40), st.booleans())
def test_what_leaves_is_what_was_accepted_in_the_order_of_the_calls(
    moves: list[tuple[str, int]],
    deflate: bool,  # noqa: FBT001 - as hypothesis gives it
) -> None:
    async def play() -> None:
        stage = await Stage(settings=HASTY.but(compress_from=30)).opened(DEFLATE * deflate)
        all_that = Moves(stage)
        for move, size in moves:
            await getattr(all_that, move)(size)
        await all_that.end()
        sent = [inflated(each) for each in stage.sent]
        data = [payload for opcode, payload in sent if opcode == codec.BINARY]
        accepted = sorted(all_that.accepted.items())
        assert data == [payload for _, payload in accepted]
        if stage.state is State.OPEN:
            assert all_that.told == all_that.asked
            assert codec.CLOSE not in dict(sent)
        else:
            assert [opcode for opcode, _ in sent].index(codec.CLOSE) == len(sent) - 1
        await stage.end()

    asyncio.run(play())


# Room.


def told_of_room(stage: Stage) -> list[State]:
    """Ask to be told of room; return a list of what the state is when that happens."""
    told: list[State] = []
    stage.protocol.on_room(lambda: told.append(stage.state))
    return told


async def test_where_there_is_room_it_is_told_in_a_turn_to_come() -> None:
    stage = await Stage().opened()
    told = told_of_room(stage)
    assert told == []
    await idle()
    assert told == [State.OPEN]
    stage.transport.stuck = True
    await stage.say("a")
    stage.transport.drain()
    await idle()
    assert told == [State.OPEN]  # but once


async def test_who_waits_for_room_is_told_when_the_peer_reads() -> None:
    stage = await blocked()
    told = [told_of_room(stage) for _ in range(3)]
    await idle()
    assert told == [[], [], []]
    stage.transport.drain()
    await idle()
    assert told == [[State.OPEN]] * 3


async def test_there_is_no_room_while_somebody_waits_to_send() -> None:
    stage = await blocked()
    sending = asyncio.ensure_future(stage.say("a"))
    await idle()
    told = told_of_room(stage)
    stage.transport.drain()
    stage.transport.stuck = True  # what is sent fills it again
    await sending
    await idle()
    assert told == []
    stage.transport.drain()
    await idle()
    assert told == [State.OPEN]


async def test_there_is_room_when_the_last_who_waited_has_sent() -> None:
    stage = await blocked()
    order: list[str] = []
    sending = [asyncio.ensure_future(stage.say(word)) for word in "ab"]
    await idle()
    stage.protocol.on_room(lambda: order.extend(stage.words))
    stage.transport.drain()
    await asyncio.gather(*sending)
    await idle()
    assert order == ["first", "a", "b"]


@pytest.mark.parametrize("moment", ["while it waits", "as its turn comes"])
async def test_there_is_room_when_who_waited_has_given_up(moment: str) -> None:
    stage = await blocked()
    told = told_of_room(stage)
    sending = asyncio.ensure_future(stage.say("a"))
    await idle()
    if moment == "as its turn comes":
        stage.transport.drain()
    sending.cancel()
    await idle()
    if moment == "while it waits":
        assert told == []
        stage.transport.drain()
        await idle()
    assert told == [State.OPEN]


async def test_there_is_room_when_all_who_waited_gave_up_as_their_turn_came() -> None:
    stage = await blocked()
    told = told_of_room(stage)
    first, second = (asyncio.ensure_future(stage.say(word)) for word in "ab")
    await idle()
    stage.transport.drain()
    first.cancel()
    await asyncio.sleep(0)
    second.cancel()  # which had just been given the turn of the first
    await idle()
    assert told == [State.OPEN]
    assert stage.words == ["first"]


async def test_there_is_room_behind_a_mistake() -> None:
    stage = await blocked()
    told = told_of_room(stage)
    wrong = asyncio.ensure_future(stage.send({"type": SEND}))
    await idle()
    stage.transport.drain()
    with pytest.raises(ArgumentError):
        await wrong
    await idle()
    assert told == [State.OPEN]


async def test_there_is_no_room_when_a_pong_fills_the_transport() -> None:
    stage = await blocked()
    told = told_of_room(stage)
    stage.bring(frame(codec.PING))
    stage.transport.heed = lambda _: stage.protocol.pause_writing()
    stage.transport.drain()
    await idle()
    assert told == []
    stage.transport.heed = len
    stage.transport.drain()
    await idle()
    assert told == [State.OPEN]


@pytest.mark.parametrize("state", list(State)[1:])
async def test_room_in_every_state(state: State) -> None:
    stage = await reached(state)
    told = told_of_room(stage)
    await idle()
    assert told == [State.OPEN] * (state is State.OPEN)
    if state is State.PENDING:
        await stage.send(WHAT[ACCEPT])
        assert told == []
        await idle()
        assert told == [State.OPEN]
    stage.transport.lose()
    await idle()
    assert len(told) == (state in {State.PENDING, State.OPEN})


async def test_there_is_no_room_where_the_accept_fills_the_transport() -> None:
    stage = await Stage().begun()
    told = told_of_room(stage)
    stage.transport.stuck = True
    await stage.send(WHAT[ACCEPT])
    await idle()
    assert told == []
    stage.transport.drain()
    await idle()
    assert told == [State.OPEN]


@pytest.mark.parametrize("state", [State.PENDING, State.DENYING, State.CLOSING])
async def test_who_asks_again_and_again_is_not_kept_busy(state: State) -> None:
    stage = await reached(state)
    tries = 0

    def try_again() -> None:
        nonlocal tries
        tries += 1
        if not stage.protocol.write(in_text("a")):
            stage.protocol.on_room(try_again)

    try_again()
    await idle()
    assert tries == 1
    if state is State.PENDING:
        await stage.send(WHAT[ACCEPT])
        await idle()
        assert tries == 2


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("end", ["loss", "close", "peer", "wrong", "shutdown", "hang up"])
async def test_nobody_is_told_of_room_after_the_end(end: str, *, room: bool) -> None:
    stage = await (Stage().opened() if room else blocked())
    told = told_of_room(stage)
    match end:
        case "loss":
            stage.transport.lose()
        case "close" if room:
            await stage.send(WHAT[CLOSE])
        case "close":
            closing = asyncio.ensure_future(stage.send(WHAT[CLOSE]))
            await idle()
            closing.cancel()
            stage.transport.lose()
        case "shutdown":
            stage.protocol.shutdown()
        case "hang up":
            await stage.hang_up()
        case _:
            stage.bring(PEERS_CLOSE if end == "peer" else BROKEN)
    await idle()
    stage.transport.drain()
    await idle()
    # What came in is heeded in the next turn: there may be room until then, and never after it.
    assert told in ([], [State.OPEN] * (room and end in {"hang up", "peer", "wrong"}))


# Loss.


def told_of_loss(stage: Stage) -> list[tuple[int, str]]:
    """Ask to be told of the loss; return a list of what is told."""
    told: list[tuple[int, str]] = []
    stage.protocol.on_loss(lambda code, reason: told.append((code, reason)))
    return told


LOSSES = {
    "loss": (1006, ""),
    "hang up": (1006, ""),
    "peer": (4001, "bye"),
    "bare close": (1005, ""),
    "wrong": (1002, "a reserved bit is set"),
    "shutdown": (1012, ""),
    "answer": (4001, "bye"),
}


async def lost(stage: Stage, way: str) -> None:
    match way:
        case "loss":
            stage.transport.lose()
        case "hang up":
            await stage.hang_up()
        case "shutdown":
            stage.protocol.shutdown()
        case "answer":
            await stage.send(WHAT[CLOSE])
            stage.bring(PEERS_CLOSE)
        case "bare close":
            stage.bring(frame(codec.CLOSE))
        case _:
            stage.bring(PEERS_CLOSE if way == "peer" else BROKEN)
    await idle()


@pytest.mark.parametrize("way", LOSSES)
async def test_who_asks_is_told_of_the_end_once_and_before_what_came_in_is_received(
    way: str,
) -> None:
    stage = await Stage().opened()
    stage.bring(text("one", "two"))
    told = told_of_loss(stage)
    await idle()
    assert told == []
    await lost(stage, way)
    assert told == [LOSSES[way]]
    assert [await stage.hear() for _ in range(2)] == ["one", "two"]
    end = await stage.receive()
    assert (end["code"], end["reason"]) == LOSSES[way]
    stage.transport.lose()
    stage.protocol.shutdown()
    await idle()
    assert told == [LOSSES[way]]


async def test_it_is_told_in_a_turn_to_come() -> None:
    stage = await Stage().opened()
    told = told_of_loss(stage)
    stage.transport.lose()
    assert told == []
    late = told_of_loss(stage)
    assert late == []
    await asyncio.sleep(0)
    assert told == late == [(1006, "")]


@pytest.mark.parametrize("state", [State.GONE, State.CLOSED])
async def test_who_asks_after_the_end_is_told_too(state: State) -> None:
    stage = await reached(state)
    both = [told_of_loss(stage) for _ in range(2)]
    await idle()
    assert both == [[(1006, "")]] * 2


@pytest.mark.parametrize("state", [State.PENDING, State.DENYING, State.OPEN, State.CLOSING])
async def test_who_asks_in_any_state_is_told(state: State) -> None:
    stage = await reached(state)
    both = [told_of_loss(stage) for _ in range(2)]
    await idle()
    assert both == [[], []]
    stage.transport.lose()
    await idle()
    assert both == [[(1006, "")]] * 2


async def test_they_are_told_in_their_order() -> None:
    stage = await Stage().opened()
    order: list[int] = []
    for number in range(3):
        stage.protocol.on_loss(lambda *_, number=number: order.append(number))
    await lost(stage, "peer")
    assert order == [0, 1, 2]


@pytest.mark.parametrize("asks", ["before", "after"])
async def test_who_asked_is_let_go_at_the_end(asks: str) -> None:
    class Listener:
        def listen(self, *_: object) -> None: ...

    listener = Listener()
    reference = weakref.ref(listener)
    stage = await blocked()
    if asks == "after":
        stage.transport.lose()
    stage.protocol.on_room(listener.listen)
    stage.protocol.on_loss(listener.listen)
    if asks == "before":
        stage.transport.lose()
    del listener
    await idle()
    assert reference() is None


@in_no_time
async def test_a_keepalive_that_fails_is_told() -> None:
    stage = await Stage(ws_ping_interval=5, ws_ping_timeout=5).opened()
    told = told_of_loss(stage)
    await asyncio.sleep(11)
    assert told == [(1006, TIMEOUT)]


async def test_for_who_asks_many_short_messages_are_read() -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=2_000), ws_max_queue=2).opened()
    told = told_of_loss(stage)
    stage.bring(text(*"abcdefgh"))
    assert stage.calls == []
    stage.bring(text("x" * 1_900))
    assert stage.calls == []
    stage.bring(text("y" * 100))
    assert stage.calls == ["pause_reading"]
    words = [*"abcdefgh", "x" * 1_900, "y" * 100]
    assert [await stage.hear() for _ in words] == words
    assert stage.calls == ["pause_reading", "resume_reading"]
    stage.bring(text("last") + PEERS_CLOSE)
    await idle()
    assert told == [(4001, "bye")]


@pytest.mark.parametrize("too_many", ["messages", "bytes", "to inflate"])
async def test_who_asks_while_reading_pauses(too_many: str) -> None:
    """How many messages there are is no matter any more; how many bytes is."""
    most = 2 if too_many == "messages" else 100
    stage = await Stage(settings=HASTY.but(read_buffer=1_000), ws_max_queue=most).opened(DEFLATE)
    match too_many:
        case "messages":
            stage.bring(text("one", "two"))
        case "bytes":
            stage.bring(text("x" * 1_000))
        case _:
            stage.bring(b"".join(compressed(letter * 2_000) for letter in "abc"))
    assert stage.calls == ["pause_reading"]
    told_of_loss(stage)
    resumes = ["resume_reading"] * (too_many == "messages")
    assert stage.calls == ["pause_reading", *resumes]


async def test_who_asks_before_the_answer_does_not_let_more_in() -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=40)).begun()
    stage.bring(text("x" * 60))
    assert stage.calls == ["pause_reading"]
    told_of_loss(stage)
    assert stage.calls == ["pause_reading"]
    await stage.send(WHAT[ACCEPT])
    assert await stage.hear() == "x" * 60
    assert stage.calls == ["pause_reading", "resume_reading"]


# The idle timeout.

IDLE = HASTY.but(idle_timeout=8.0)
IDLE_CLOSE = (codec.CLOSE, b"\x03\xe9idle timeout")


@pytest.mark.parametrize("at", [0, 0.1, 1.9, 2, 2.1, 5, 7.9])
@pytest.mark.parametrize("way", ["received", "sent", "written"])
@in_no_time
async def test_a_connection_without_messages_is_closed(way: str, at: float) -> None:
    stage = await Stage(settings=IDLE, ws_ping_interval=None).opened()
    told = told_of_loss(stage)
    await asyncio.sleep(at)
    match way:
        case "received":
            stage.bring(text("a"))
            assert await stage.hear() == "a"
        case "sent":
            await stage.say("a")
        case _:
            assert stage.protocol.write(in_text("a"))
    await asyncio.sleep(7.99)
    stage.transport.writes.clear()
    await asyncio.sleep(2.02)
    assert stage.sent == [IDLE_CLOSE]
    assert stage.calls == ["write_eof"]
    assert told == [(1001, "idle timeout")]
    assert await stage.hear() == 1001
    with pytest.raises(ClientDisconnected):
        await stage.say("late")
    await asyncio.sleep(3.1)
    assert stage.calls == ["write_eof", "abort"]


@in_no_time
async def test_messages_now_and_then_keep_a_connection() -> None:
    stage = await Stage(settings=IDLE, ws_ping_interval=None).opened()
    for _ in range(20):
        await asyncio.sleep(7.9)
        stage.bring(text("a"))
        await stage.hear()
    assert stage.written == b""
    assert stage.calls == []


@in_no_time
async def test_pings_and_pongs_are_no_messages() -> None:
    stage = await Stage(settings=IDLE, ws_ping_interval=3).opened()
    for _ in range(7):
        await asyncio.sleep(1)
        stage.bring(frame(codec.PING) + frame(codec.PONG))
    assert codec.CLOSE not in dict(stage.sent)
    await asyncio.sleep(1.1)
    assert stage.sent[-1] == IDLE_CLOSE


@in_no_time
async def test_who_did_not_answer_the_handshake_yet_is_not_idle() -> None:
    stage = await Stage(settings=IDLE).begun()
    await asyncio.sleep(50)
    assert stage.calls == []
    await stage.send(WHAT[ACCEPT])
    await asyncio.sleep(7.9)
    assert stage.calls == []


@in_no_time
async def test_no_idle_timeout_behind_our_close() -> None:
    stage = await Stage(settings=IDLE.but(idle_timeout=1.0)).opened()
    await stage.send(WHAT[CLOSE])
    await asyncio.sleep(2)
    assert stage.calls == []
    stage.bring(PEERS_CLOSE)
    await idle()
    assert stage.calls == ["close"]
    assert await stage.hear() == 4001


@pytest.mark.parametrize("way", ["loss", "peer", "wrong", "shutdown"])
@in_no_time
async def test_no_idle_timeout_behind_the_end(way: str) -> None:
    stage = await Stage(settings=IDLE).opened()
    await lost(stage, way)
    written, calls = stage.written, stage.calls[:1]
    await asyncio.sleep(20)
    assert stage.written == written
    assert stage.calls[:1] == calls
    assert stage.state is State.GONE


# Its settings.


async def test_the_settings_are_those_of_the_configuration_or_else_of_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(settings=HASTY.but(write_buffer=123))
    assert stage.transport.limits == (123, None)
    monkeypatch.setattr(stage.config, "settings", HASTY.but(write_buffer=456), raising=False)
    protocol = type(stage.protocol)(stage.config, stage.server, {})
    protocol.connection_made(stage.transport)
    assert stage.transport.limits == (456, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"write_buffer": 1, "read_buffer": 1, "max_tiny_fragments": 1, "close_timeout": 1.0},
        {"compress_from": 1, "idle_timeout": 1.0},
        {},
    ],
    ids=range(3),
)
def test_a_class_may_set_what_it_keeps_to(changes: dict[str, Any]) -> None:
    class Derived(WebSocketProtocol):
        settings = ServerSettings(**changes)

    class Further(Derived):
        pass

    assert Further.settings == ServerSettings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 1},
        {"max_message_bytes": 1},
        {"ping_interval": None},
        {"drain": 1.0},
        {"handler_timeout": 5.0},
        {"max_connections": 1},
        {"handshake_timeout": 1.0},
        {"compression": False},
        {"workers": 2},
        {"shutdown_timeout": 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_class_may_not_set_what_it_cannot_keep_to(changes: dict[str, Any]) -> None:
    name = next(iter(changes))
    kept = "close_timeout, compress_from, idle_timeout, max_tiny_fragments, read_buffer"
    with pytest.raises(ArgumentError, match=rf"^ServerSettings\.{name} is for `yaat run`.*{kept}"):
        type("Derived", (WebSocketProtocol,), {"settings": ServerSettings(**changes)})


# How it is opened by whoever reads the handshake, and left.


def read_handshake(headers: bytes = b"") -> opening.Request:
    return opening.parsed(HANDSHAKE.removesuffix(b"\r\n") + b"\r\n" + headers)


async def test_a_handshake_that_somebody_else_has_read() -> None:
    stage = Stage()
    stage.protocol.open(read_handshake, text("one", "two")[:-1])
    await idle()
    assert await stage.receive() == {"type": CONNECT}
    assert stage.given["path"] == "/café"
    stage.bring(text("two")[-1:])
    await stage.send(WHAT[ACCEPT])
    assert [await stage.hear() for _ in range(2)] == ["one", "two"]


@pytest.mark.parametrize(
    "way", ["accepted", "refused", "denied", "wrong", "left", "stopped", "returned"]
)
async def test_it_is_left_once_and_not_before_it_is_over(way: str) -> None:
    left: list[bool] = []
    stage = Stage()

    def read() -> opening.Request:
        return read_handshake(b"Sec-WebSocket-Version: 8\r\n" if way == "wrong" else b"")

    stage.protocol.open(read, b"", lambda: left.append(stage.protocol in stage.connections))
    await idle()
    match way:
        case "accepted":
            await stage.send(WHAT[ACCEPT])
            stage.bring(PEERS_CLOSE)
        case "refused":
            await stage.send(WHAT[CLOSE])
        case "denied":
            await stage.send(WHAT[RESPONSE_START])
            await stage.send(WHAT["the last body"])
        case "stopped":
            stage.protocol.shutdown()
        case "returned":
            stage.ended.set_result(None)
    await idle()
    assert stage.calls == (["close"] if way != "left" else [])
    assert left == []
    stage.transport.lose()
    await idle()
    assert left == [False]
    stage.protocol.connection_lost(None)
    assert left == [False]


# Behind a proxy.


async def test_what_a_proxy_says_is_believed_and_its_middleware_does_not_stay() -> None:
    seen: list[Scope] = []
    modules: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        modules.extend(each.frame.f_globals["__name__"] for each in inspect.stack())

    stage = Stage(app, proxy_headers=True, forwarded_allow_ips="127.0.0.1")
    assert type(stage.config.loaded_app) is ProxyHeadersMiddleware
    stage.bring(HANDSHAKE + b"X-Forwarded-For: 9.8.7.6\r\nX-Forwarded-Proto: https\r\n\r\n")
    await idle()
    (scope,) = seen
    assert scope["client"] == ("9.8.7.6", 0)
    assert scope["scheme"] == "wss"
    assert "yaat.server.protocol" in modules
    assert ProxyHeadersMiddleware.__module__ not in modules


# Behind the end.


@in_no_time
async def test_a_peer_has_a_while_to_hang_up_when_the_server_stops() -> None:
    stage = await Stage().opened()
    stage.protocol.shutdown()
    assert stage.sent == [CLOSE_1012]
    await asyncio.sleep(FAREWELL - 0.1)
    assert stage.calls == ["write_eof"]
    stage.protocol.shutdown()  # which begins nothing anew
    await asyncio.sleep(0.2)
    assert stage.calls == ["write_eof", "abort"]
    stage.transport.lose()
    await asyncio.sleep(20)
    assert stage.calls == ["write_eof", "abort"]
    assert await stage.hear() == 1012


@pytest.mark.parametrize(
    ("settings", "can_write_eof", "patience"),
    [(HASTY, False, FAREWELL), (HASTY.but(close_timeout=0.5), True, 0.5)],
    ids=["TLS", "less patience"],
)
@in_no_time
async def test_who_does_not_go_when_the_server_stops_is_cut(
    settings: ServerSettings, patience: float, *, can_write_eof: bool
) -> None:
    stage = await Stage(settings=settings, can_write_eof=can_write_eof).opened()
    stage.transport.stuck = True
    await stage.say("not read")
    stage.protocol.shutdown()
    first = ["write_eof"] * can_write_eof
    await asyncio.sleep(patience - 0.1)
    assert stage.calls == first
    await asyncio.sleep(0.2)
    assert stage.calls == [*first, "abort"]


@pytest.mark.parametrize("can_write_eof", [True, False])
@pytest.mark.parametrize("way", ["close", "close in pieces", "hang up", "garbage"])
@in_no_time
async def test_the_peer_goes_when_the_server_stops(way: str, *, can_write_eof: bool) -> None:
    stage = await Stage(can_write_eof=can_write_eof, ws_ping_interval=1).opened()
    stage.protocol.shutdown()
    await asyncio.sleep(0.5)
    stage.bring(text("late") + frame(codec.PING))
    match way:
        case "hang up":
            await stage.hang_up()
        case "garbage":
            stage.bring(BROKEN)
        case _:
            cut = len(PEERS_CLOSE) if way == "close" else 3
            stage.bring(PEERS_CLOSE[:cut])
            stage.bring(PEERS_CLOSE[cut:] or frame(codec.PING))
    assert stage.calls == [*["write_eof"] * can_write_eof, "close"]
    assert await stage.hear() == 1012
    await asyncio.sleep(20)
    # Over TLS the peer has a part in closing.
    assert stage.calls[2 if can_write_eof else 1 :] == ["abort"] * (not can_write_eof)
    assert stage.sent == [CLOSE_1012]


async def test_what_came_before_the_end_is_received_and_what_came_behind_is_not() -> None:
    stage = await Stage(ws_max_queue=2).opened()
    stage.bring(text("one", "two", "three"))
    assert await stage.hear() == "one"
    stage.bring(text("four"))
    stage.protocol.shutdown()
    assert stage.calls == ["pause_reading", "write_eof", "resume_reading"]
    stage.bring(text("five"))
    stage.bring(text("six") + PEERS_CLOSE)
    assert stage.calls[3:] == ["close"]
    assert [await stage.hear() for _ in range(4)] == ["two", "three", "four", 1012]


async def test_what_comes_compressed_behind_the_end_is_discarded() -> None:
    stage = await Stage(settings=HASTY.but(read_buffer=1_000)).opened(DEFLATE)
    stage.bring(text("before"))
    stage.protocol.shutdown()
    for _ in range(2):
        stage.bring(b"".join(compressed(letter * 2_000) for letter in "abc"))
    assert len(stage.protocol._decoder.messages) == 1
    assert stage.calls == ["write_eof"]
    stage.bring(compressed("d" * 2_000) + PEERS_CLOSE)
    assert stage.calls == ["write_eof", "close"]
    assert [await stage.hear() for _ in range(2)] == ["before", 1012]


@pytest.mark.parametrize("way", ["stop", "idle"])
@in_no_time
async def test_what_waits_to_be_inflated_is_received_after_a_stop(way: str) -> None:
    stage = await Stage(settings=IDLE.but(read_buffer=1_000)).opened(DEFLATE)
    words = [letter * 2_000 for letter in "abcd"]
    stage.bring(b"".join(map(compressed, words)))
    if way == "stop":
        stage.protocol.shutdown()
    else:
        await asyncio.sleep(10)
    stage.bring(text("late"))
    code = 1012 if way == "stop" else 1001
    assert [await stage.hear() for _ in range(5)] == [*words, code]


async def test_what_comes_compressed_behind_the_end_is_read_in_large_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To copy the rest of a read for each of its frames would cost half a second a read."""
    stage = await Stage().opened(DEFLATE)
    stage.protocol.shutdown()
    feeds = 0
    decoder = stage.protocol._decoder
    feed = Decoder.feed

    def count(self: Decoder, data: bytes) -> None:
        nonlocal feeds
        feeds += 1
        feed(self, data)

    monkeypatch.setattr(Decoder, "feed", count)
    for _ in range(4):
        stage.bring(compressed("") * 10_000)
    assert decoder.messages == []
    assert feeds < 100


async def test_a_handler_that_the_stop_cancels_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = await Stage().opened()
    (handler,) = stage.server.tasks
    assert handler.get_name() == HANDLER
    stage.protocol.shutdown()
    handler.cancel("the server stops")
    await idle()
    assert stage.server.tasks == set()
    assert caplog.messages == []
    assert stage.sent == [CLOSE_1012]


# The other loop.


@pytest.mark.parametrize(
    "test",
    [
        test_two_who_receive_share_what_comes,
        test_who_has_given_up_is_not_woken,
        test_answers_to_what_came_together_leave_together,
        test_an_answer_is_not_kept_when_the_application_stops_answering,
        test_who_sends_very_much_gives_the_others_a_turn,
        test_who_sends_waits_for_its_turn,
        test_who_fills_the_transport_lets_the_others_wait,
        test_a_turn_that_comes_as_its_sender_gives_up_is_the_next_ones,
        test_answers_go_before_the_answer_to_a_close,
        test_what_is_written_in_a_turn_leaves_together_at_its_end,
        test_all_connections_hand_over_what_they_gathered,
        test_who_waits_for_room_is_told_when_the_peer_reads,
        test_it_is_told_in_a_turn_to_come,
    ],
)
def test_the_same_under_uvloop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())
