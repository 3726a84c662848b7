"""The protocol class between a transport that does as it is told and an application.

What real sockets show is shown elsewhere. Here is what they show only by chance: a transport that
is full at this very message, a loss between two turns of the loop, twenty seconds of silence.
"""

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec

import pytest
import uvloop
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from fuzz.frames import deflated, frame
from scripted import idle, in_scripted_time
from yaat.exceptions import ArgumentError, StateError, WebSocketDisconnect
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
from yaat.server import ServerSettings, WebSocketProtocol, codec, protocol
from yaat.server.protocol import MOST_GATHERED, MOST_IN_A_ROW
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
        "extensions": {"websocket.http.response": {}},
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
    assert stage.calls[1:] == ["close"]


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


@pytest.mark.parametrize("end", ["refusal", "peer", "wrong", "wrong over TLS", "hang up", "stop"])
@in_no_time
async def test_who_does_not_go_is_cut(end: str) -> None:
    stage = Stage(can_write_eof=end != "wrong over TLS")
    await (stage.begun() if end == "refusal" else stage.opened())
    stage.transport.stuck = True
    if end in {"peer", "hang up", "stop"}:
        await stage.say("not read")
    match end:
        case "refusal":
            await stage.send(WHAT[CLOSE])
        case "peer":
            stage.bring(PEERS_CLOSE)
        case "hang up":
            await stage.hang_up()
        case "stop":
            stage.protocol.shutdown()
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


@pytest.mark.parametrize("end", ["refusal", "peer", "hang up", "stop"])
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
        case "stop":
            stage.protocol.shutdown()
    await asyncio.sleep(20)
    assert stage.calls == ["close"]
    assert (codec.PING, b"") not in frames(stage.written if end != "refusal" else b"")


# What is written when the server stops, what the application is told, and which state follows.
STOPS = {
    State.CONNECTING: (b"", None, State.CONNECTING),
    State.PENDING: (b"HTTP/1.1 503 ", 1012, State.GONE),
    State.OPEN: (b"\x88\x02\x03\xf4", 1012, State.GONE),
    State.CLOSING: (b"", 1012, State.CLOSED),
    State.GONE: (b"", 1006, State.GONE),
    State.CLOSED: (b"", 1006, State.CLOSED),
}


@pytest.mark.parametrize("state", STOPS)
async def test_the_server_stops_in_every_state(state: State) -> None:
    stage = await reached(state)
    stage.protocol.shutdown()
    written, code, follows = STOPS[state]
    assert stage.written.startswith(written)
    assert bool(stage.written) is bool(written)
    assert stage.calls == ["close"]
    assert stage.state is follows
    if code is not None:
        assert await stage.hear() == code


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
    ],
)
def test_the_same_under_uvloop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())
