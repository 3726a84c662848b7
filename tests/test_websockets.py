"""WebSocket over a server that a test scripts: every state, every shape, every way to end."""

import asyncio
import dataclasses
import enum
import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from yaat.constants import WebSocketCloseEvent as WsClose
from yaat.exceptions import (
    ArgumentError,
    DenialUnsupported,
    MalformedError,
    StateError,
    TooBigError,
    UsageError,
    WebSocketDisconnect,
    WrongKindError,
)
from yaat.frames import Frame
from yaat.outbox import Share
from yaat.policy import Policy
from yaat.types import Message
from yaat.websockets import FOREVER, PATIENCE, WebSocket, WebSocketState

SHORT = 0.05
HASTY = Policy(close_timeout=SHORT)
AHEAD = pytest.mark.parametrize("ahead", [False, True], ids=["short way", "read ahead"])
CONNECT = {"type": "websocket.connect"}
DENIAL: dict[str, Any] = {"extensions": {"websocket.http.response": {}}}


def text(data: str) -> Message:
    return {"type": "websocket.receive", "text": data}


def blob(data: bytes) -> Message:
    return {"type": "websocket.receive", "bytes": data}


def left(code: int | None = 4321, reason: str | None = "bye") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def sends(data: str) -> Message:
    return {"type": "websocket.send", "text": data}


ACCEPT: Message = {"type": "websocket.accept", "subprotocol": None, "headers": []}


class Server:
    """An ASGI server of one connection, as a test scripts it.

    It swallows what is sent after the peer has left, as several servers do, unless told otherwise.

    Args:
        incoming: What `receive` brings after the `connect`; then it waits for `feed`.
        connect: Whether the `connect` is there from the beginning.
        scope: Added to the scope.
    """

    def __init__(self, *incoming: Message, connect: bool = True, **scope: Any) -> None:
        self.sent: list[Message] = []
        self.faults: list[str] = []
        self.over = False  # from here on a pending receive may be cancelled
        self.received = 0
        self.reading = False
        self.receive_error: Exception | None = None
        self.send_error: Exception | None = None
        self.hold: asyncio.Event | None = None  # a send waits for it
        self.held = asyncio.Event()  # a send is waiting
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "path": "/ws",
            "headers": [(b"host", b"testserver")],
            **scope,
        }
        self.feed(*([CONNECT] if connect else []), *incoming)
        self.websocket = Connection(self)

    def feed(self, *messages: Message) -> None:
        for message in messages:
            self._incoming.put_nowait(message)

    async def receive(self) -> Message:
        if self.reading:
            self.faults.append("two calls of receive at once")
        self.reading = True
        try:
            if self.receive_error is not None and self._incoming.empty():
                raise self.receive_error
            message = await self._incoming.get()
        except asyncio.CancelledError:
            if not self.over:
                self.faults.append("a pending receive was cancelled")
            raise
        finally:
            self.reading = False
        self.received += 1
        return message

    async def send(self, message: Message) -> None:
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(message)

    @property
    def data(self) -> list[Any]:
        """What was sent in data messages."""
        return [
            message["text"] if "text" in message else message["bytes"]
            for message in self.sent
            if message["type"] == "websocket.send"
        ]


class Connection(WebSocket):
    """A WebSocket that tells its server when its scope ends."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.scope, server.receive, server.send)
        self._server = server

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.over = True
        await super().__aexit__(kind, error, traceback)


class Serving:
    """Makes servers, and sees in the end that they were treated well."""

    def __init__(self) -> None:
        self.made: list[Server] = []
        self.complaints: list[str] = []  # of the event loop

    def complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append(context["message"])

    def __call__(self, *incoming: Message, **options: Any) -> Server:
        policy = options.pop("policy", None)
        if policy is not None:
            options["yaat.policy"] = policy
        server = Server(*incoming, **options)
        self.made.append(server)
        return server

    async def open(self, *incoming: Message, **options: Any) -> tuple[Server, WebSocket]:
        """Return a server and its accepted connection; the accept is not in `sent` any more."""
        server = self(*incoming, **options)
        await server.websocket.accept()
        server.sent.clear()
        return server, server.websocket

    async def end(self) -> None:
        """Leave nothing behind, however the test has ended."""
        for server in self.made:
            server.over = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.made:
            with suppress(Exception):  # the failure of a child comes out every time
                await server.websocket.__aexit__(None, None, None)


@pytest.fixture
async def serve() -> AsyncIterator[Serving]:
    serving = Serving()
    # What the loop complains of while it collects garbage must not format a traceback: in some
    # versions of Python that breaks a parser that is interrupted by it.
    asyncio.get_running_loop().set_exception_handler(serving.complain)
    yield serving
    faults = [fault for server in serving.made for fault in server.faults]
    await serving.end()
    assert faults == []


async def settled() -> None:
    """Let every task run until it waits for what is not there yet."""
    for _ in range(20):
        await asyncio.sleep(0)


async def paused() -> None:
    """Wait until a send would look whether the peer is still there."""
    await asyncio.sleep(PATIENCE * 1.5)


async def for_ever() -> None:
    await asyncio.Event().wait()


# What it is


@pytest.mark.parametrize("kind", ["http", "lifespan", None])
async def test_a_scope_of_another_type_is_refused(kind: str | None) -> None:
    server = Server()
    with pytest.raises(UsageError, match="websocket"):
        WebSocket({"type": kind, "path": "/"}, server.receive, server.send)
    with pytest.raises(UsageError):
        WebSocket({"path": "/"}, server.receive, server.send)


async def test_it_has_what_a_request_has(serve: Serving) -> None:
    websocket = serve(query_string=b"a=1", client=["peer", 5]).websocket
    assert websocket.url == "ws://testserver/ws?a=1"
    assert websocket.headers["Host"] == "testserver"
    assert dict(websocket.query_params) == {"a": "1"}
    assert websocket.client == ("peer", 5)
    assert websocket["path"] == websocket.path == "/ws"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [({}, []), ({"subprotocols": None}, []), ({"subprotocols": ("a", "b")}, ["a", "b"])],
)
async def test_subprotocols(serve: Serving, scope: dict[str, Any], expected: list[str]) -> None:
    assert serve(**scope).websocket.subprotocols == expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [({}, False), ({"extensions": None}, False), ({"extensions": {}}, False), (DENIAL, True)],
)
async def test_can_deny(serve: Serving, scope: dict[str, Any], expected: object) -> None:
    assert serve(**scope).websocket.can_deny is expected


Reach = Callable[[Server], Awaitable[object]]


async def stay(server: Server) -> None:
    assert server.sent == []


async def pend(server: Server) -> None:
    assert await server.websocket.receive() == CONNECT


async def accept(server: Server) -> None:
    await server.websocket.accept()


async def start_denial(server: Server) -> None:
    await server.websocket.send(START)


async def deny(server: Server) -> None:
    await server.websocket.send_denial_response(Response("no", 401))


async def close(server: Server) -> None:
    await server.websocket.accept()
    await server.websocket.close(3000, "enough")


async def refuse(server: Server) -> None:
    await server.websocket.close(3000, "enough")


async def lose(server: Server) -> None:
    await server.websocket.accept()
    server.feed(left())
    assert await server.websocket.receive() == left()


async def lose_early(server: Server) -> None:
    await pend(server)
    server.feed(left())
    assert await server.websocket.receive() == left()


async def lose_in_denial(server: Server) -> None:
    await start_denial(server)
    server.feed(left())
    assert await server.websocket.receive() == left()


async def lose_unread(server: Server) -> None:
    """Lose the connection; the disconnect waits to be received."""
    await server.websocket.accept()
    server.feed(left())
    await paused()
    with pytest.raises(WebSocketDisconnect):
        await server.websocket.send_text("")


async def end(server: Server) -> None:
    await close(server)
    server.feed(left(3000, "enough"))
    assert await server.websocket.receive() == left(3000, "enough")


START = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"A", b"b")]}
BODY = {"type": "websocket.http.response.body", "body": b"x"}
STATES: dict[str, Reach] = {
    "connecting": stay,
    "pending": pend,
    "open": accept,
    "denying": start_denial,
    "denied": deny,
    "closing": close,
    "refused": refuse,
    "gone": lose,
    "gone early": lose_early,
    "gone while denying": lose_in_denial,
    "gone, not read": lose_unread,
    "closed": end,
}
IN, UP, OUT, ANSWER = (
    WebSocketState.CONNECTING,
    WebSocketState.CONNECTED,
    WebSocketState.DISCONNECTED,
    WebSocketState.RESPONSE,
)
Seen = tuple[WebSocketState, WebSocketState, int | None, str, int | None]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("connecting", (IN, IN, None, "", None)),
        ("pending", (UP, IN, None, "", None)),
        ("open", (UP, UP, None, "", None)),
        ("denying", (UP, ANSWER, None, "", 401)),
        ("denied", (UP, OUT, None, "", 401)),
        ("closing", (UP, OUT, 3000, "enough", None)),
        ("refused", (UP, OUT, 3000, "enough", 403)),
        ("gone", (OUT, UP, 4321, "bye", None)),
        ("gone early", (OUT, IN, 4321, "bye", None)),
        ("gone while denying", (OUT, IN, 4321, "bye", 401)),
        ("gone, not read", (OUT, UP, 4321, "bye", None)),
        ("closed", (OUT, OUT, 3000, "enough", None)),
    ],
)
async def test_what_is_derived_in_every_state(serve: Serving, state: str, expected: Seen) -> None:
    server = serve(**DENIAL)
    await STATES[state](server)
    websocket = server.websocket
    seen = (
        websocket.client_state,
        websocket.application_state,
        websocket.close_code,
        websocket.close_reason,
        websocket.denial_status,
    )
    assert seen == expected
    assert websocket.server_state is websocket.application_state


@pytest.mark.parametrize("name", ["client_state", "application_state", "server_state"])
async def test_states_follow_from_messages_and_cannot_be_set(serve: Serving, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be set"):
        setattr(serve().websocket, name, WebSocketState.CONNECTED)


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (left(), 4321, "bye"),
        (left(None, None), 1005, ""),
        ({"type": "websocket.disconnect"}, 1005, ""),
        (left(1006, ""), 1006, ""),
    ],
)
@pytest.mark.parametrize("name", ["receive_text", "receive_bytes", "receive_json", "receive_data"])
async def test_every_shape_of_disconnect(
    serve: Serving, message: Message, code: int, reason: str, name: str
) -> None:
    _, websocket = await serve.open(message)
    with pytest.raises(WebSocketDisconnect) as error:
        await getattr(websocket, name)()
    assert (error.value.code, error.value.reason) == (code, reason)
    assert (websocket.close_code, websocket.close_reason) == (code, reason)


# The handshake


@pytest.mark.parametrize(
    ("wanted", "chosen"), [(None, None), ("b", "b"), (["z", "b", "a"], "b"), (["z"], None)]
)
async def test_accept_chooses_a_subprotocol(
    serve: Serving, wanted: str | list[str] | None, chosen: str | None
) -> None:
    server = serve(subprotocols=["a", "b"])
    assert await server.websocket.accept(wanted) == chosen
    assert server.sent == [{**ACCEPT, "subprotocol": chosen}]


async def test_accept_sends_headers(serve: Serving) -> None:
    server = serve()
    await server.websocket.accept(headers={"X-One": "1"})
    assert server.sent == [{**ACCEPT, "headers": [(b"x-one", b"1")]}]


@pytest.mark.parametrize(
    "arguments",
    [
        {"subprotocol": "never offered"},
        {"subprotocol": "z"},
        {"headers": {"a": "\r\n"}},
        {"headers": {"sec-websocket-protocol": "a"}},
    ],
)
async def test_accept_refuses_before_anything_is_sent(
    serve: Serving, arguments: dict[str, Any]
) -> None:
    server = serve()
    with pytest.raises(ArgumentError):
        await server.websocket.accept(**arguments)
    assert server.sent == []
    await server.websocket.accept()
    assert server.sent == [ACCEPT]


async def test_accept_when_the_peer_has_left_before(serve: Serving) -> None:
    server = serve()
    await lose_early(server)
    with pytest.raises(WebSocketDisconnect) as error:
        await server.websocket.accept()
    assert (error.value.code, server.sent) == (4321, [])


async def test_accept_when_the_server_says_so(serve: Serving) -> None:
    server = serve()
    server.send_error = ConnectionResetError("gone")
    with pytest.raises(WebSocketDisconnect) as error:
        await server.websocket.accept()
    assert error.value.code == 1006
    assert error.value.__cause__ is None
    assert server.websocket.client_state is OUT


async def test_accept_passes_on_what_else_the_server_raises(serve: Serving) -> None:
    server = serve()
    server.send_error = LookupError("a bug")
    with pytest.raises(LookupError, match="a bug"):
        await server.websocket.accept()


async def test_a_bad_first_message_of_the_server(serve: Serving) -> None:
    server = serve(text("too early"), connect=False)
    with pytest.raises(StateError, match=r"websocket\.receive is not legal while connecting"):
        await server.websocket.accept()


# Raw messages, in every state

SENT: Literal["sent"] = "sent"
QUIET: Literal["quiet"] = "quiet"
Outcome = Literal["sent", "quiet"] | type[StateError] | type[WebSocketDisconnect]
RAW: list[Message] = [
    ACCEPT,
    sends("x"),
    {"type": "websocket.close", "code": 1000, "reason": ""},
    START,
    BODY,
    {"type": "websocket.nonsense"},
]
OUTCOMES: dict[str, tuple[Outcome, ...]] = {
    #             accept, send, close, response.start, response.body, nonsense
    "connecting": (SENT, StateError, SENT, QUIET, StateError, StateError),
    "pending": (SENT, StateError, SENT, QUIET, StateError, StateError),
    "open": (StateError, SENT, SENT, StateError, StateError, StateError),
    "denying": (StateError, StateError, StateError, StateError, SENT, StateError),
    "denied": (StateError, StateError, QUIET, StateError, StateError, StateError),
    "closing": (StateError, StateError, QUIET, StateError, StateError, StateError),
    "refused": (StateError, StateError, QUIET, StateError, StateError, StateError),
    "gone": (*[WebSocketDisconnect] * 2, QUIET, *[WebSocketDisconnect] * 2, StateError),
    "gone early": (*[WebSocketDisconnect] * 2, QUIET, *[WebSocketDisconnect] * 2, StateError),
    "gone, not read": (*[WebSocketDisconnect] * 2, QUIET, *[WebSocketDisconnect] * 2, StateError),
}


@pytest.mark.parametrize(
    ("state", "message", "outcome"),
    [
        pytest.param(state, message, outcome, id=f"{state}-{message['type']}")
        for state, outcomes in OUTCOMES.items()
        for message, outcome in zip(RAW, outcomes, strict=True)
    ],
)
async def test_a_raw_message_in_every_state(
    serve: Serving, state: str, message: Message, outcome: Outcome
) -> None:
    server = serve(**DENIAL)
    await STATES[state](server)
    server.sent.clear()
    if isinstance(outcome, str):
        await server.websocket.send(message)
    else:
        with pytest.raises(outcome) as error:
            await server.websocket.send(message)
        if isinstance(error.value, WebSocketDisconnect):
            assert (error.value.code, error.value.reason) == (4321, "bye")
        elif message is not RAW[-1]:
            assert message["type"] in str(error.value)
    types = [sent["type"] for sent in server.sent]
    if outcome != SENT:
        assert types == []
    elif message is BODY:
        assert types == [START["type"], BODY["type"]]
    else:
        assert server.sent == [message]


@pytest.mark.parametrize("message", RAW[:2] + RAW[3:], ids=lambda message: message["type"])
async def test_nothing_but_a_close_is_taken_when_closed(serve: Serving, message: Message) -> None:
    server = serve(**DENIAL)
    await end(server)
    server.sent.clear()
    with pytest.raises((StateError, WebSocketDisconnect)):
        await server.websocket.send(message)
    await server.websocket.send(RAW[2])
    assert server.sent == []


@pytest.mark.parametrize("kind", [None, "", "websocket.receive", 5])
async def test_an_unknown_type(serve: Serving, kind: object) -> None:
    _, websocket = await serve.open()
    with pytest.raises(StateError, match=r"legal here: websocket\.send, websocket\.close"):
        await websocket.send({"type": kind})
    with pytest.raises(StateError):
        await websocket.send({})


@pytest.mark.parametrize("state", ["gone", "gone early", "closed"])
async def test_the_disconnect_is_handed_over_once(serve: Serving, state: str) -> None:
    server = serve()
    await STATES[state](server)
    with pytest.raises(StateError, match=r"legal here: nothing"):
        await server.websocket.receive()
    for receive in RECEIVERS:
        with pytest.raises(WebSocketDisconnect):
            await receive(server.websocket)


async def test_the_disconnect_is_handed_over_after_a_send_has_told_of_it(serve: Serving) -> None:
    server = serve()
    await lose_unread(server)
    assert await server.websocket.receive() == left()
    with pytest.raises(StateError):
        await server.websocket.receive()


async def test_an_incoming_message_at_the_wrong_time(serve: Serving) -> None:
    server = serve(text("too early"))
    await pend(server)
    with pytest.raises(StateError, match=r"websocket\.receive is not legal while pending"):
        await server.websocket.receive()


@pytest.mark.parametrize("name", ["receive", "receive_text", "receive_data"])
async def test_a_second_connect_is_illegal(serve: Serving, name: str) -> None:
    _, websocket = await serve.open(CONNECT)
    with pytest.raises(StateError, match=r"websocket\.connect is not legal while open"):
        await getattr(websocket, name)()


# Receiving

Receiver = Callable[[WebSocket], Awaitable[Any]]
RECEIVERS: list[Receiver] = [
    WebSocket.receive_text,
    WebSocket.receive_bytes,
    WebSocket.receive_json,
    WebSocket.receive_data,
]


async def readahead(server: Server, websocket: WebSocket) -> None:
    """Have the connection read ahead, so that the next message does not come by the short way."""
    await paused()
    await websocket.send_text("")
    server.sent.clear()


@AHEAD
@pytest.mark.parametrize(
    ("message", "name", "expected"),
    [
        (text("é"), "receive_text", "é"),
        (text(""), "receive_text", ""),
        ({**text("a"), "bytes": None}, "receive_text", "a"),
        (blob(b"\x00"), "receive_bytes", b"\x00"),
        (blob(b""), "receive_bytes", b""),
        ({**blob(b"a"), "text": None}, "receive_bytes", b"a"),
        (text('{"a":1}'), "receive_json", {"a": 1}),
        (text("a"), "receive_data", "a"),
        (text(""), "receive_data", ""),
        ({**text("a"), "bytes": None}, "receive_data", "a"),
        (blob(b""), "receive_data", b""),
        ({**blob(b"a"), "text": None}, "receive_data", b"a"),
    ],
)
async def test_every_shape_of_message(
    serve: Serving,
    ahead: object,
    message: Message,
    name: str,
    expected: object,
) -> None:
    server, websocket = await serve.open()
    if ahead:
        await readahead(server, websocket)
    server.feed(message)
    assert await getattr(websocket, name)() == expected


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (blob(b"a"), "receive_text"),
        (text("a"), "receive_bytes"),
        (blob(b"1"), "receive_json"),
        ({**blob(b""), "text": None}, "receive_text"),
    ],
)
async def test_the_other_kind(serve: Serving, message: Message, name: str) -> None:
    _, websocket = await serve.open(message, text("1"), blob(b"1"))
    with pytest.raises(WrongKindError) as error:
        await getattr(websocket, name)()
    assert error.value.close_code == 1003
    assert isinstance(error.value, ValueError)
    assert await websocket.receive_text() == "1"


@pytest.mark.parametrize("message", [{}, {"text": None}, {"text": None, "bytes": None}])
@pytest.mark.parametrize("name", ["receive_text", "receive_bytes", "receive_data"])
async def test_neither_kind(serve: Serving, message: Message, name: str) -> None:
    _, websocket = await serve.open({"type": "websocket.receive", **message})
    with pytest.raises(UsageError, match="neither text nor bytes"):
        await getattr(websocket, name)()


@pytest.mark.parametrize("receive", RECEIVERS)
@pytest.mark.parametrize("state", ["connecting", "pending", "denying"])
async def test_data_before_accept(serve: Serving, state: str, receive: Receiver) -> None:
    server = serve(**DENIAL)
    await STATES[state](server)
    with pytest.raises(StateError, match="is not legal while"):
        await receive(server.websocket)


LIMITED = Policy(max_message_bytes=8)


@AHEAD
@pytest.mark.parametrize("name", ["receive", "receive_data", "receive_text", "receive_bytes"])
@pytest.mark.parametrize("data", ["12345678", "ÄÖÜß", "\U0001f600\U0001f600", b"12345678"])
async def test_sizes_at_the_limit(
    serve: Serving,
    ahead: object,
    name: str,
    data: str | bytes,
) -> None:
    if name == f"receive_{'bytes' if isinstance(data, str) else 'text'}":
        return
    server, websocket = await serve.open(policy=LIMITED)
    if ahead:
        await readahead(server, websocket)
    message, longer = (
        (text(data), text(data + "1")) if isinstance(data, str) else (blob(data), blob(data + b"1"))
    )
    server.feed(message, longer)
    expected = message if name == "receive" else data
    assert await getattr(websocket, name)() == expected
    with pytest.raises(TooBigError, match="9 bytes") as error:
        await getattr(websocket, name)()
    assert error.value.close_code == 1009


async def test_a_lone_surrogate_can_be_received_and_measured(serve: Serving) -> None:
    _, websocket = await serve.open(text("\ud800"), text("\ud800" * 3), policy=LIMITED)
    assert await websocket.receive_text() == "\ud800"
    with pytest.raises(TooBigError):
        await websocket.receive_text()


@pytest.mark.parametrize("value", [{"a": [1, None, "é"]}, [], "x", 1, 1.5, True, None])
@pytest.mark.parametrize("mode", ["text", "bytes", "binary"])
async def test_json_comes_in(serve: Serving, mode: Any, value: Any) -> None:
    data = json.dumps(value)
    message = text(data) if mode == "text" else blob(data.encode())
    _, websocket = await serve.open(message)
    assert await websocket.receive_json(mode) == value


@pytest.mark.parametrize(
    "message", [text(""), text("{"), text("[" * 100_000), text('"\ud800"'), text("NaN")]
)
async def test_malformed_json(serve: Serving, message: Message) -> None:
    _, websocket = await serve.open(message)
    with pytest.raises(MalformedError) as error:
        await websocket.receive_json()
    assert error.value.close_code == 1007
    assert isinstance(error.value, ValueError)


async def test_malformed_utf8(serve: Serving) -> None:
    _, websocket = await serve.open(blob(b'"\xff"'))
    with pytest.raises(MalformedError):
        await websocket.receive_json("bytes")


async def test_another_mode(serve: Serving) -> None:
    server, websocket = await serve.open(text("1"))
    mode: Any = "json"
    with pytest.raises(ValueError, match="json") as error:
        await websocket.receive_json(mode)
    assert isinstance(error.value, UsageError)
    with pytest.raises(ArgumentError):
        await websocket.send_json(1, mode)
    with pytest.raises(ArgumentError):
        [each async for each in websocket.iter_json(mode)]
    assert (server.sent, await websocket.receive_json()) == ([], 1)


async def test_iteration_ends_when_the_peer_leaves(serve: Serving) -> None:
    _, websocket = await serve.open(text("1"), text("2"), left())
    assert [each async for each in websocket.iter_text()] == ["1", "2"]
    assert [each async for each in websocket.iter_text()] == []
    _, websocket = await serve.open(blob(b"1"), blob(b"2"), left())
    assert [each async for each in websocket.iter_bytes()] == [b"1", b"2"]
    _, websocket = await serve.open(text("1"), text("[2]"), left())
    assert [each async for each in websocket.iter_json()] == [1, [2]]
    _, websocket = await serve.open(blob(b"1"), left())
    assert [each async for each in websocket.iter_json("bytes")] == [1]


@pytest.mark.parametrize("name", ["iter_text", "iter_bytes", "iter_json"])
async def test_iteration_passes_on_what_is_wrong(serve: Serving, name: str) -> None:
    message = text("1") if name == "iter_bytes" else blob(b"1")
    _, websocket = await serve.open(message)
    async with aclosing(getattr(websocket, name)()) as items:
        with pytest.raises(WrongKindError):
            await anext(items)


@AHEAD
async def test_what_the_servers_receive_raises_is_passed_on(
    serve: Serving,
    ahead: object,
) -> None:
    server, websocket = await serve.open()
    server.receive_error = TimeoutError("of the server's own")
    if ahead:
        await readahead(server, websocket)
    with pytest.raises(TimeoutError, match="own"):
        await websocket.receive_text()
    with pytest.raises(TimeoutError, match="own"):
        await websocket.receive()


async def test_it_is_passed_on_while_the_end_is_waited_for(serve: Serving) -> None:
    server, websocket = await serve.open()
    await websocket.close()
    server.receive_error = TimeoutError("of the server's own")
    with pytest.raises(TimeoutError, match="own"):
        await websocket.receive()


# Sending


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Struct(msgspec.Struct):
    y: int


@pytest.mark.parametrize("data", ["", "a", "é", "\U0001f600"])
async def test_text_goes_out(serve: Serving, data: str) -> None:
    server, websocket = await serve.open()
    await websocket.send_text(data)
    assert server.sent == [sends(data)]


@pytest.mark.parametrize("data", [b"", b"\x00", bytearray(b"a"), memoryview(b"a")])
async def test_bytes_go_out(serve: Serving, data: bytes) -> None:
    server, websocket = await serve.open()
    await websocket.send_bytes(data)
    await websocket.send({"type": "websocket.send", "bytes": data})
    assert server.sent == [{"type": "websocket.send", "bytes": bytes(data)}] * 2
    assert all(type(message["bytes"]) is bytes for message in server.sent)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
        ([], "[]"),
        ("x", '"x"'),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        (Point(1), '{"x":1}'),
        (Struct(2), '{"y":2}'),
        (datetime(2026, 1, 2, tzinfo=UTC), '"2026-01-02T00:00:00Z"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Colour.RED, '"red"'),
        (WsClose.GOING_AWAY, "1001"),
    ],
)
async def test_json_goes_out(serve: Serving, value: object, expected: str) -> None:
    server, websocket = await serve.open()
    await websocket.send_json(value)
    await websocket.send_json(value, mode="bytes")
    await websocket.send_json(value, mode="binary")
    assert server.data == [expected, expected.encode(), expected.encode()]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("send_text", b"a"),
        ("send_text", None),
        ("send_bytes", "a"),
        ("send_bytes", None),
        ("send_bytes", [1]),
        ("send_json", object()),
        ("send", {"type": "websocket.send", "text": b"a"}),
        ("send", {"type": "websocket.send", "bytes": "a"}),
    ],
)
async def test_what_is_of_the_wrong_type(serve: Serving, name: str, data: object) -> None:
    server, websocket = await serve.open()
    with pytest.raises(TypeError):
        await getattr(websocket, name)(data)
    assert server.sent == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("send_text", "\ud800"),
        ("send_json", "\ud800"),
        ("send", {"type": "websocket.send", "text": "\ud800"}),
        ("send", {"type": "websocket.send"}),
        ("send", {"type": "websocket.send", "text": None, "bytes": None}),
        ("send", {"type": "websocket.send", "text": "a", "bytes": b"a"}),
    ],
)
async def test_what_cannot_travel(serve: Serving, name: str, data: object) -> None:
    server, websocket = await serve.open()
    with pytest.raises(ValueError):  # noqa: PT011 - what each says is told where it is raised
        await getattr(websocket, name)(data)
    assert server.sent == []


@pytest.mark.parametrize("state", ["connecting", "pending", "denying", "closing"])
async def test_sending_at_the_wrong_time(serve: Serving, state: str) -> None:
    server = serve(**DENIAL)
    await STATES[state](server)
    server.sent.clear()
    with pytest.raises(StateError, match=r"websocket\.send is not legal while"):
        await server.websocket.send_text("a")
    assert server.data == []


@pytest.mark.parametrize("state", ["gone", "gone early", "gone, not read"])
async def test_sending_after_the_peer_has_left(serve: Serving, state: str) -> None:
    server = serve()
    await STATES[state](server)
    server.sent.clear()
    for _ in range(2):
        for send in (server.websocket.send_text("a"), server.websocket.send_json(1)):
            with pytest.raises(WebSocketDisconnect) as error:
                await send
            assert (error.value.code, error.value.reason) == (4321, "bye")
    assert server.sent == []


@pytest.mark.parametrize(
    "ahead",
    [pytest.param(False, id="short way"), pytest.param(True, id="read ahead")],
)
async def test_a_server_that_tells_of_the_loss(
    serve: Serving,
    ahead: object,
) -> None:
    server, websocket = await serve.open()
    if ahead:
        await readahead(server, websocket)
    server.send_error = ConnectionResetError("gone")
    with pytest.raises(WebSocketDisconnect) as error:
        await websocket.send_text("a")
    assert (error.value.code, websocket.close_code) == (1006, 1006)
    assert error.value.__suppress_context__


@pytest.mark.parametrize("failure", [ConnectionResetError("gone"), RuntimeError("closed")])
@AHEAD
async def test_a_loss_has_the_true_code(
    serve: Serving,
    failure: Exception,
    ahead: object,
) -> None:
    server, websocket = await serve.open()
    if ahead:
        await readahead(server, websocket)
    server.send_error = failure
    server.feed(left())
    with pytest.raises(WebSocketDisconnect) as error:
        await websocket.send_text("a")
    assert (error.value.code, error.value.reason) == (4321, "bye")


@AHEAD
async def test_what_else_the_server_raises_is_passed_on(
    serve: Serving,
    ahead: object,
) -> None:
    server, websocket = await serve.open()
    if ahead:
        await readahead(server, websocket)
    server.send_error = LookupError("a bug")
    with pytest.raises(LookupError, match="a bug"):
        await websocket.send_text("a")
    server.send_error = None
    await websocket.send_text("b")
    assert server.data == ["b"]


async def test_a_server_that_raises_while_somebody_receives(serve: Serving) -> None:
    server, websocket = await serve.open()
    receiving = asyncio.create_task(websocket.receive_text())
    await settled()
    server.send_error = RuntimeError("closed")
    server.feed(left())
    with pytest.raises(WebSocketDisconnect) as error:
        await websocket.send_text("a")
    assert error.value.code == 4321
    with pytest.raises(WebSocketDisconnect):
        await receiving


async def test_a_send_that_fails_after_the_loss_was_received(serve: Serving) -> None:
    server, websocket = await serve.open()
    server.hold = asyncio.Event()
    sending = asyncio.create_task(websocket.send_text("a"))
    await server.held.wait()
    server.feed(left())
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()
    server.send_error = RuntimeError("closed")
    server.hold.set()
    with pytest.raises(WebSocketDisconnect) as error:
        await sending
    assert error.value.code == 4321


@pytest.mark.parametrize("failure", [ConnectionResetError("gone"), RuntimeError("closed")])
async def test_a_loss_that_comes_a_moment_after_the_send_has_failed(
    serve: Serving, failure: Exception
) -> None:
    server, websocket = await serve.open()
    await readahead(server, websocket)
    server.send_error = failure
    asyncio.get_running_loop().call_later(0.001, server.feed, left())
    with pytest.raises(WebSocketDisconnect) as error:
        await websocket.send_text("a")
    assert error.value.code == 4321


async def test_such_a_loss_does_not_break_the_reading_ahead(serve: Serving) -> None:
    server, websocket = await serve.open()
    await readahead(server, websocket)
    server.send_error = RuntimeError("closed")
    asyncio.get_running_loop().call_later(0.001, server.feed, text("a"), left())
    with pytest.raises(WebSocketDisconnect):
        await websocket.send_text("a")
    async with asyncio.timeout(1):
        assert await websocket.receive_text() == "a"
        assert await websocket.receive() == left()
    gc.collect()
    assert serve.complaints == []


@pytest.mark.parametrize("spec_version", [None, "2.3", "2.4"])
@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_the_first_send_after_a_pause_looks(
    serve: Serving, spec_version: str | None, http_version: str
) -> None:
    scope: dict[str, Any] = {"http_version": http_version}
    if spec_version:
        scope["asgi"] = {"version": "3.0", "spec_version": spec_version}
    server, websocket = await serve.open(**scope)
    await websocket.send_text("a")
    server.feed(left())
    await paused()
    with pytest.raises(WebSocketDisconnect) as error:
        await websocket.send_text("b")
    assert (error.value.code, server.data) == (4321, ["a"])


@pytest.mark.parametrize("pause", [0, PATIENCE / 4])
async def test_a_handler_that_only_sends_learns_of_the_loss(serve: Serving, pause: float) -> None:
    server, websocket = await serve.open()

    async def send_only() -> None:
        while True:
            await websocket.send_text("a")
            await asyncio.sleep(pause)

    async with asyncio.timeout(5):
        sending = asyncio.create_task(send_only())
        await asyncio.sleep(PATIENCE)
        server.feed(text("kept"), left())
        with pytest.raises(WebSocketDisconnect) as error:
            await sending
    assert error.value.code == 4321
    assert await websocket.receive_text() == "kept"
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


async def test_a_handler_that_answers_is_not_read_ahead_of(serve: Serving) -> None:
    server, websocket = await serve.open(*[text(str(n)) for n in range(50)])
    for n in range(50):
        assert await websocket.receive_text() == str(n)
        await websocket.send_text(str(n))
        assert server.received == 2 + n
    assert server.data == [str(n) for n in range(50)]


async def test_a_server_whose_receive_fails_is_not_complained_of_by_the_loop(
    serve: Serving,
) -> None:
    server, websocket = await serve.open()
    server.receive_error = LookupError("a bug")
    for _ in range(2):
        await readahead(server, websocket)
    with pytest.raises(LookupError, match="a bug"):
        await websocket.receive_text()
    await websocket.__aexit__(None, None, None)
    gc.collect()
    assert serve.complaints == []


# Order, and who has which turn


@pytest.mark.parametrize("http_version", ["1.1", "2"])
@AHEAD
async def test_concurrent_senders_keep_the_order_of_their_calls(
    serve: Serving,
    ahead: object,
    http_version: str,
) -> None:
    server, websocket = await serve.open(http_version=http_version)
    if ahead:
        await readahead(server, websocket)
    server.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(websocket.send_text("a"))
        await server.held.wait()
        group.create_task(websocket.send_json("b"))
        cancelled = group.create_task(websocket.send_text("never"))
        group.create_task(websocket.send(sends("c")))
        group.create_task(websocket.send_bytes(b"d"))
        await settled()
        cancelled.cancel()
        assert server.sent == []
        server.hold.set()
    await websocket.send_text("e")
    assert server.data == ["a", '"b"', "c", b"d", "e"]


async def test_a_close_queues_behind_what_was_sent_before(serve: Serving) -> None:
    server, websocket = await serve.open()
    server.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(websocket.send_text("a"))
        await server.held.wait()
        group.create_task(websocket.send_text("b"))
        group.create_task(websocket.close())
        await settled()
        server.hold.set()
    assert [message["type"] for message in server.sent] == [
        "websocket.send",
        "websocket.send",
        "websocket.close",
    ]


async def test_a_send_that_is_cancelled_gives_its_turn_away(serve: Serving) -> None:
    server, websocket = await serve.open()
    for _ in range(2):  # by the short way, and by the other
        server.hold, server.held = asyncio.Event(), asyncio.Event()
        blocked = asyncio.create_task(websocket.send_text("never"))
        await server.held.wait()
        queued = asyncio.create_task(websocket.send_text("a"))
        await settled()
        blocked.cancel()
        server.hold.set()
        await queued
        with pytest.raises(asyncio.CancelledError):
            await blocked
        await readahead(server, websocket)


@AHEAD
async def test_concurrent_receivers_get_a_message_each(
    serve: Serving,
    ahead: object,
) -> None:
    server, websocket = await serve.open()
    if ahead:
        await readahead(server, websocket)
    tasks = [
        asyncio.create_task(receive())
        for receive in (websocket.receive_text, websocket.receive_data, websocket.receive_text)
    ]
    await settled()
    server.feed(text("a"), text("b"), text("c"), left())
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


async def test_concurrent_receivers_all_learn_of_the_end(serve: Serving) -> None:
    server, websocket = await serve.open()
    tasks = [asyncio.create_task(websocket.receive_text()) for _ in range(3)]
    await settled()
    server.feed(left())
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in ended] == [WebSocketDisconnect] * 3


async def test_a_cancelled_receive_loses_nothing_that_is_read_ahead(serve: Serving) -> None:
    server, websocket = await serve.open()
    await readahead(server, websocket)
    for message in ("a", "b"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await websocket.receive_text()
        server.feed(text(message))
        assert await websocket.receive_text() == message
        await readahead(server, websocket)


async def test_a_cancelled_receiver_in_the_queue(serve: Serving) -> None:
    server, websocket = await serve.open()
    first, second, third = (asyncio.create_task(websocket.receive_text()) for _ in range(3))
    await settled()
    second.cancel()
    server.feed(text("a"), text("b"))
    assert (await first, await third) == ("a", "b")


async def test_a_receive_that_is_given_up_is_not_cancelled_where_that_loses_a_message(
    serve: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "granian", sys)
    server, websocket = await serve.open()
    for text_ahead in ("a", "b"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await websocket.receive_text()
        assert server.reading
        server.feed(text(text_ahead))
        assert await websocket.receive_text() == text_ahead
        await websocket.send_text("and so on")
    server.feed(left())
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


async def test_a_receive_cancelled_in_the_moment_its_message_comes(serve: Serving) -> None:
    server, websocket = await serve.open()
    await readahead(server, websocket)
    receiving = asyncio.create_task(websocket.receive_text())
    await settled()
    server.feed(text("a"))
    got: list[str] = []
    for _ in range(20):
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            got.append(await receiving)
            break
        receiving = asyncio.create_task(websocket.receive_text())
        await asyncio.sleep(0)
    assert (got or [await websocket.receive_text()]) == ["a"]


# Reading ahead


async def test_what_is_read_ahead_is_received_in_order(serve: Serving) -> None:
    server, websocket = await serve.open()
    await readahead(server, websocket)
    server.feed(text("a"), blob(b"b"), text("[3]"))
    await settled()
    assert server.received == 4
    server.feed(text("d"), left())
    assert await websocket.receive_text() == "a"
    assert await websocket.receive() == blob(b"b")
    assert await websocket.receive_json() == [3]
    await websocket.send_text("still there, as far as the handler has read")
    assert await websocket.receive_data() == "d"
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


async def test_it_reads_ahead_no_more_than_the_policy_allows(serve: Serving) -> None:
    server, websocket = await serve.open(policy=Policy(read_ahead=25_000))
    sizes = [text(f"{n:010000}") for n in range(8)]
    waiting = asyncio.create_task(websocket.wait_closed())
    await settled()
    server.feed(*sizes, left())
    await settled()
    assert server.received == 4  # the connect, and three messages: the third crosses the line
    assert not waiting.done()
    for n, message in enumerate(sizes):
        assert await websocket.receive_text() == message["text"]
        await settled()
        assert server.received == min(5 + n, 10)
    await waiting
    assert websocket.close_code == 4321


async def test_one_message_is_always_held(serve: Serving) -> None:
    server, websocket = await serve.open(policy=Policy(read_ahead=1))
    await readahead(server, websocket)
    server.feed(text("a" * 1000), left())
    await settled()
    assert server.received == 2
    await websocket.send_text("x")
    assert await websocket.receive_text() == "a" * 1000
    await paused()
    with pytest.raises(WebSocketDisconnect):
        await websocket.send_text("x")


async def test_after_a_pause_the_handler_reads_by_itself_again(serve: Serving) -> None:
    server, websocket = await serve.open()
    for n in range(3):
        await readahead(server, websocket)
        server.feed(text("a"), text("b"))
        assert await websocket.receive_text() == "a"
        await websocket.send_text("c")
        assert await websocket.receive_text() == "b"
        await websocket.send_text("d")
        assert server.data == ["c", "d"]
        assert server.received == 3 + 2 * n


# A send that is stuck


@pytest.mark.parametrize("http_version", ["1.1", "2"])
async def test_a_send_ends_when_the_loss_is_read(serve: Serving, http_version: str) -> None:
    server, websocket = await serve.open(http_version=http_version)
    await readahead(server, websocket)
    server.hold = asyncio.Event()
    sending = asyncio.create_task(websocket.send_text("a"))
    queued = asyncio.create_task(websocket.send_text("b"))
    await server.held.wait()
    server.feed(text("first"), left())
    for each in (sending, queued):
        with pytest.raises(WebSocketDisconnect) as error:
            await each
        assert error.value.code == 4321
    assert server.sent == []
    assert await websocket.receive_text() == "first"


async def test_a_send_ends_when_the_loss_comes_just_after_a_message(serve: Serving) -> None:
    server, websocket = await serve.open(text("a"), http_version="2")
    assert await websocket.receive_text() == "a"
    server.hold = asyncio.Event()
    sending = asyncio.create_task(websocket.send_text("b"))
    await server.held.wait()
    server.feed(left())
    async with asyncio.timeout(1):
        with pytest.raises(WebSocketDisconnect):
            await sending


async def test_a_send_ends_when_a_receiver_reads_the_loss(serve: Serving) -> None:
    server, websocket = await serve.open(http_version="2")
    receiving = asyncio.create_task(websocket.receive_text())
    await settled()
    server.hold = asyncio.Event()
    sending = asyncio.create_task(websocket.send_text("a"))
    await server.held.wait()
    server.feed(left())
    for each in (sending, receiving):
        with pytest.raises(WebSocketDisconnect):
            await each


# Denial


async def test_a_denial_leaves_as_one(serve: Serving) -> None:
    server = serve(**DENIAL)

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"a", b"b", b"c"):
            yield part

    response = StreamingResponse(parts(), 418, {"x-a": "b"})
    await server.websocket.send_denial_response(response)
    start, body = server.sent
    assert start == {
        "type": "websocket.http.response.start",
        "status": 418,
        "headers": [(b"x-a", b"b")],
    }
    assert body == {"type": "websocket.http.response.body", "body": b"abc"}
    assert server.websocket.denial_status == 418


async def test_a_denial_in_raw_parts(serve: Serving) -> None:
    server = serve(**DENIAL)
    await server.websocket.send(START)
    await server.websocket.send({**BODY, "more_body": True})
    await server.websocket.send({"type": BODY["type"], "more_body": True})
    assert server.sent == []
    await server.websocket.send(BODY)
    assert server.sent == [{**START, "headers": [(b"a", b"b")]}, {**BODY, "body": b"xx"}]


async def test_a_denial_that_the_server_cannot_send(serve: Serving) -> None:
    server = serve()
    with pytest.raises(DenialUnsupported, match="extension"):
        await server.websocket.send_denial_response(PlainTextResponse("no"))
    with pytest.raises(DenialUnsupported):
        await server.websocket.send(START)
    assert server.sent == []
    await server.websocket.accept()


@pytest.mark.parametrize(
    "change",
    [
        {"status": 200},
        {"status": 101},
        {"status": 499},
        {"headers": [(b"a\n", b"b")]},
        {"headers": [(b"a", b"\r\nb")]},
    ],
)
async def test_a_denial_that_cannot_be(serve: Serving, change: dict[str, Any]) -> None:
    server = serve(**DENIAL)
    with pytest.raises(ArgumentError):
        await server.websocket.send({**START, **change})
    assert (server.sent, server.websocket.denial_status) == ([], None)
    await server.websocket.accept()


async def test_a_denial_without_a_status(serve: Serving) -> None:
    server = serve(**DENIAL)
    with pytest.raises(ArgumentError):
        await server.websocket.send({"type": START["type"], "headers": []})


async def test_a_denial_when_the_server_tells_of_the_loss(serve: Serving) -> None:
    server = serve(**DENIAL)
    server.send_error = ConnectionResetError("gone")
    with pytest.raises(WebSocketDisconnect):
        await server.websocket.send_denial_response(Response("no", 403))
    assert server.websocket.client_state is OUT


async def test_a_denial_that_is_too_long(serve: Serving) -> None:
    server = serve(policy=LIMITED, **DENIAL)
    await server.websocket.send(START)
    await server.websocket.send({**BODY, "body": b"1234", "more_body": True})
    with pytest.raises(ArgumentError, match="max_message_bytes"):
        await server.websocket.send({**BODY, "body": b"56789"})
    assert server.sent == []


async def test_a_denial_of_exactly_the_limit(serve: Serving) -> None:
    server = serve(policy=LIMITED, **DENIAL)
    await server.websocket.send_denial_response(Response("12345678", 403))
    assert server.sent[-1]["body"] == b"12345678"


async def test_a_denial_when_the_peer_has_left(serve: Serving) -> None:
    server = serve(**DENIAL)
    await lose_early(server)
    with pytest.raises(WebSocketDisconnect):
        await server.websocket.send_denial_response(Response("no", 403))
    server = serve(**DENIAL)
    await lose_in_denial(server)
    with pytest.raises(WebSocketDisconnect):
        await server.websocket.send(BODY)
    assert server.sent == []


# Closing


@pytest.mark.parametrize(
    ("code", "travels"),
    [
        *[(code, code) for code in (1000, 1001, 1003, 1014, 3000, 4999)],
        (WsClose.GOING_AWAY, 1001),
        (WsClose.NO_STATUS_RECEIVED, 1000),
        (WsClose.ABNORMAL_CLOSURE, 1011),
        (WsClose.TLS_HANDSHAKE, 1011),
    ],
)
async def test_which_code_travels(serve: Serving, code: int, travels: int) -> None:
    server, websocket = await serve.open()
    await websocket.close(code)
    assert server.sent == [{"type": "websocket.close", "code": travels, "reason": ""}]
    assert type(server.sent[0]["code"]) is int
    assert websocket.close_code == travels


WARNINGS = """
import asyncio, logging
from yaat.websockets import WebSocket

async def close(code):
    incoming = iter([{"type": "websocket.connect"}])
    async def receive(): return next(incoming)
    async def send(message): pass
    websocket = WebSocket({"type": "websocket", "path": "/"}, receive, send)
    await websocket.accept()
    await websocket.close(code)

logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
for code in (1006, 1006, 1005, 1015, 1000, 1006, 1005):
    asyncio.run(close(code))
"""


async def test_a_reserved_code_is_warned_of_once_per_process_and_code() -> None:
    script = (sys.executable, "-c", WARNINGS)
    ran = await asyncio.to_thread(
        subprocess.run, script, capture_output=True, text=True, check=True
    )
    assert ran.stderr.splitlines() == [
        "yaat.websocket WARNING close code 1006 must not travel; 1011 goes instead",
        "yaat.websocket WARNING close code 1005 must not travel; 1000 goes instead",
        "yaat.websocket WARNING close code 1015 must not travel; 1011 goes instead",
    ]


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1016, 2999, 5000])
async def test_which_code_cannot_be(serve: Serving, code: int) -> None:
    server, websocket = await serve.open()
    with pytest.raises(ValueError, match=str(code)):
        await websocket.close(code)
    assert server.sent == []
    await websocket.send_text("it is still open")


@pytest.mark.parametrize("reason", ["", "a" * 123, "é" * 61 + "a", None])
async def test_a_reason_that_fits(serve: Serving, reason: str | None) -> None:
    server, websocket = await serve.open()
    await websocket.close(3000, reason)
    assert server.sent == [{"type": "websocket.close", "code": 3000, "reason": reason or ""}]
    assert websocket.close_reason == (reason or "")


@pytest.mark.parametrize("reason", ["a" * 124, "é" * 62, "\ud800"])
async def test_a_reason_that_does_not(serve: Serving, reason: str) -> None:
    server, websocket = await serve.open()
    with pytest.raises(ValueError, match="reason"):
        await websocket.close(3000, reason)
    assert server.sent == []


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ({}, 1000, ""),
        ({"code": None, "reason": None}, 1000, ""),
        ({"code": 1006, "reason": "a"}, 1011, "a"),
    ],
)
async def test_every_shape_of_raw_close(
    serve: Serving, message: Message, code: int, reason: str
) -> None:
    server, websocket = await serve.open()
    await websocket.send({"type": "websocket.close", **message})
    assert server.sent == [{"type": "websocket.close", "code": code, "reason": reason}]


async def test_a_second_close_does_nothing(serve: Serving) -> None:
    server, websocket = await serve.open()
    await websocket.close(3000)
    await websocket.close(3001)
    await asyncio.gather(*[websocket.close(3002) for _ in range(3)])
    assert [message["code"] for message in server.sent] == [3000]
    assert websocket.close_code == 3000


async def test_concurrent_closes(serve: Serving) -> None:
    server, websocket = await serve.open()
    await asyncio.gather(*[websocket.close(code) for code in (3000, 3001, 3002)])
    assert [message["code"] for message in server.sent] == [3000]


@pytest.mark.parametrize("state", ["gone", "gone early", "gone, not read"])
async def test_a_close_after_the_loss_does_nothing(serve: Serving, state: str) -> None:
    server = serve()
    await STATES[state](server)
    server.sent.clear()
    await server.websocket.close(3000)
    assert server.sent == []
    assert server.websocket.close_code == 4321
    assert server.websocket.denial_status is None


async def test_a_close_before_accept_refuses(serve: Serving) -> None:
    server = serve()
    await server.websocket.close()
    assert server.sent == [{"type": "websocket.close", "code": 1000, "reason": ""}]
    assert server.websocket.denial_status == 403


async def test_a_close_while_a_denial_is_under_way(serve: Serving) -> None:
    server = serve(**DENIAL)
    await start_denial(server)
    with pytest.raises(StateError, match=r"websocket\.close is not legal while denying"):
        await server.websocket.close()


@pytest.mark.parametrize("failure", [ConnectionResetError("gone"), LookupError("a bug")])
async def test_closing_does_not_fail(serve: Serving, failure: Exception) -> None:
    server, websocket = await serve.open(policy=HASTY)
    server.send_error, server.over = failure, True
    await websocket.close(3000)
    await websocket.close()
    assert (websocket.application_state, websocket.close_code) == (OUT, 3000)
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


@pytest.mark.parametrize("stuck", ["close", "send"])
async def test_a_close_is_bounded(
    serve: Serving, stuck: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, websocket = await serve.open(policy=HASTY)
    server.hold = asyncio.Event()
    sending = None
    if stuck == "send":
        sending = asyncio.create_task(websocket.send_text("a"))
        await server.held.wait()
    await websocket.close(3000)
    assert websocket.application_state is OUT
    assert "did not let our close through" in caplog.text
    await websocket.close()
    if sending is not None:
        sending.cancel()
    server.over = True


async def test_the_end_is_known_after_a_close_that_was_stuck_behind_a_send(
    serve: Serving,
) -> None:
    server, websocket = await serve.open(policy=HASTY)
    server.hold = asyncio.Event()
    sending = asyncio.create_task(websocket.send_text("a"))
    await server.held.wait()
    await websocket.close(3000)
    server.over = True
    async with asyncio.timeout(1):
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
    sending.cancel()


async def test_the_code_is_known_after_a_close_that_was_stuck_behind_a_send(
    serve: Serving,
) -> None:
    server, websocket = await serve.open(policy=HASTY)
    server.hold = asyncio.Event()
    sending = asyncio.create_task(websocket.send_text("a"))
    await server.held.wait()
    await websocket.close(3000, "enough")
    assert (websocket.close_code, websocket.close_reason) == (3000, "enough")
    sending.cancel()


async def test_receiving_what_was_in_flight_after_our_close(serve: Serving) -> None:
    server, websocket = await serve.open()
    await websocket.close(3000, "enough")
    server.feed(text("a"), blob(b"b"), text("c"), left(3000, "enough"))
    assert await websocket.receive_text() == "a"
    assert await websocket.receive() == blob(b"b")
    assert await websocket.receive_data() == "c"
    with pytest.raises(WebSocketDisconnect) as error:
        await websocket.receive_text()
    assert (error.value.code, error.value.reason) == (3000, "enough")


@pytest.mark.parametrize("receive", RECEIVERS)
async def test_receiving_after_our_close_is_bounded(serve: Serving, receive: Receiver) -> None:
    server, websocket = await serve.open(policy=HASTY)
    await websocket.close(3000)
    server.over = True
    with pytest.raises(WebSocketDisconnect) as error:
        await receive(websocket)
    assert error.value.code == 1006
    assert websocket.close_code == 3000


async def test_raw_receiving_after_our_close_is_bounded(serve: Serving) -> None:
    server, websocket = await serve.open(policy=HASTY)
    await websocket.close(3000)
    server.over = True
    assert await websocket.receive() == left(1006, "")
    with pytest.raises(StateError):
        await websocket.receive()


async def test_what_is_received_while_we_close(serve: Serving) -> None:
    server, websocket = await serve.open()
    receiving = asyncio.create_task(websocket.receive_text())
    await settled()
    await websocket.close(3000)
    server.feed(text("in flight"), left(3000, ""))
    assert await receiving == "in flight"
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


@pytest.fixture
def on_granian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "granian", sys)


async def granians(serve: Serving) -> tuple[Server, WebSocket, list[bool]]:
    """A connection of granian's; and at each send whether somebody receives."""
    server = serve()
    receiving: list[bool] = []

    async def send(message: Message) -> None:
        receiving.append(server.reading)
        await server.send(message)

    websocket = WebSocket.attach(server.scope, server.receive, send)
    await websocket.accept()
    server.over = True  # here a receive may be cancelled
    return server, websocket, receiving


@pytest.mark.usefixtures("on_granian")
async def test_a_close_waits_for_nobody_who_reads_ahead(serve: Serving) -> None:
    """A close is held back there while somebody receives."""
    server, websocket, receiving = await granians(serve)
    await websocket.send_text("a")
    await settled()
    assert server.reading
    server.feed(text("one"))
    await settled()
    await websocket.close(4000)
    assert server.sent[-1]["type"] == "websocket.close"
    assert receiving[-1] is False
    server.feed(text("two"), left(4000, ""))
    messages = [await websocket.receive() for _ in range(3)]
    assert [message.get("text") for message in messages] == ["one", "two", None]


@pytest.mark.usefixtures("on_granian")
async def test_who_receives_while_another_task_closes_hears_of_the_end(serve: Serving) -> None:
    server, websocket, receiving = await granians(serve)
    listening = asyncio.create_task(websocket.receive_text())
    await settled()
    closing = asyncio.create_task(websocket.close(4000))
    await settled()
    server.feed(left(4000, ""))
    await closing
    with pytest.raises(WebSocketDisconnect) as end:
        await listening
    assert end.value.code == 4000
    assert receiving[-1] is False


@pytest.mark.usefixtures("on_granian")
async def test_who_is_cut_there_is_not_listened_to(serve: Serving) -> None:
    """Not until its close has left."""
    server, websocket, receiving = await granians(serve)
    websocket.outbox.end(1013, "reads too slowly")
    await settled()
    assert server.sent[-1] == {
        "type": "websocket.close",
        "code": 1013,
        "reason": "reads too slowly",
    }
    assert (receiving[-1], server.reading) == (False, False)
    await websocket._end_outbox()


# Waiting for the end


async def test_wait_closed_before_the_handshake(serve: Serving) -> None:
    server = serve(connect=False)
    waiting = asyncio.create_task(server.websocket.wait_closed())
    await settled()
    server.feed(CONNECT)
    await settled()
    assert not waiting.done()
    server.feed(left())
    await waiting
    assert server.websocket.client_state is OUT


@pytest.mark.parametrize("state", ["pending", "open", "denying"])
async def test_wait_closed_waits_for_the_peer(serve: Serving, state: str) -> None:
    server = serve(**DENIAL)
    await STATES[state](server)
    tasks = [asyncio.create_task(server.websocket.wait_closed()) for _ in range(2)]
    await settled()
    assert not any(task.done() for task in tasks)
    server.feed(left())
    await asyncio.gather(*tasks)
    assert server.websocket.close_code == 4321


@pytest.mark.parametrize("state", ["gone", "gone early", "gone, not read", "closed"])
async def test_wait_closed_returns_when_it_has_ended(serve: Serving, state: str) -> None:
    server = serve()
    await STATES[state](server)
    await server.websocket.wait_closed()
    await server.websocket.wait_closed()


@pytest.mark.parametrize("state", ["closing", "refused", "denied"])
async def test_wait_closed_after_our_end(serve: Serving, state: str) -> None:
    server = serve(**DENIAL)
    await STATES[state](server)
    waiting = asyncio.create_task(server.websocket.wait_closed())
    await settled()
    server.feed(left(3000, "enough"))
    await waiting
    assert server.websocket.client_state is OUT


async def test_wait_closed_after_our_close_is_bounded(serve: Serving) -> None:
    _, websocket = await serve.open(policy=HASTY)
    await websocket.close(3000)
    async with asyncio.timeout(5):
        await websocket.wait_closed()
    assert websocket.close_code == 3000


async def test_wait_closed_beside_a_receiver(serve: Serving) -> None:
    server, websocket = await serve.open()
    receiving = asyncio.create_task(websocket.receive_text())
    await settled()
    waiting = asyncio.create_task(websocket.wait_closed())
    await settled()
    server.feed(text("a"))
    assert await receiving == "a"
    server.feed(text("b"))
    await settled()
    assert not waiting.done()
    server.feed(left())
    await waiting
    assert await websocket.receive_text() == "b"


async def test_a_cancelled_wait_closed_loses_nothing(serve: Serving) -> None:
    server, websocket = await serve.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await websocket.wait_closed()
    server.feed(text("a"), left())
    assert await websocket.receive_text() == "a"
    await websocket.wait_closed()


async def test_accept_beside_wait_closed(serve: Serving) -> None:
    server = serve(connect=False)
    waiting = asyncio.create_task(server.websocket.wait_closed())
    await settled()
    accepting = asyncio.create_task(server.websocket.accept())
    await settled()
    server.feed(CONNECT)
    await settled()
    assert server.sent == [ACCEPT]
    await accepting
    server.feed(left())
    await waiting


# Streaming


class Source:
    """An asynchronous source that tells of its end.

    Args:
        items: What it yields.
        then: What it does after that: it ends, it fails, or it hangs.
    """

    def __init__(self, *items: Any, then: Literal["end", "fail", "hang"] = "end") -> None:
        self.items = items
        self.then = then
        self.closed = 0
        self.hanging = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            for item in self.items:
                yield item
            if self.then == "hang":
                self.hanging.set()
                await for_ever()
            if self.then == "fail":
                raise LookupError("of the source")
        finally:
            await asyncio.sleep(0.001)
            self.closed += 1


async def test_a_stream_ends_with_its_source(serve: Serving) -> None:
    server, websocket = await serve.open()
    source = Source("a", b"b", bytearray(b"c"), memoryview(b"d"), {"e": 1}, 2)
    await websocket.stream(source)
    assert server.data == ["a", b"b", b"c", b"d", '{"e":1}', "2"]
    assert source.closed == 1
    await websocket.send_text("it is still open")
    assert websocket.client_state is UP


async def test_a_stream_fails_with_its_source(serve: Serving) -> None:
    server, websocket = await serve.open()
    source = Source("a", then="fail")
    with pytest.raises(LookupError, match="of the source"):
        await websocket.stream(source)
    assert (server.data, source.closed) == (["a"], 1)


@pytest.mark.parametrize("item", ["\ud800", object()])
async def test_a_stream_of_what_cannot_travel(serve: Serving, item: object) -> None:
    _, websocket = await serve.open()
    source = Source(item, then="hang")
    with pytest.raises((ValueError, TypeError)):
        await websocket.stream(source)
    assert source.closed == 1


async def test_a_stream_ends_when_the_peer_leaves_while_the_source_waits(serve: Serving) -> None:
    server, websocket = await serve.open()
    source = Source("a", then="hang")
    streaming = asyncio.create_task(websocket.stream(source))
    await source.hanging.wait()
    server.feed(text("kept"), left())
    await streaming
    assert (server.data, source.closed) == (["a"], 1)
    assert await websocket.receive_text() == "kept"


async def test_a_stream_ends_when_the_peer_leaves_while_a_send_is_stuck(serve: Serving) -> None:
    server, websocket = await serve.open()
    server.hold = asyncio.Event()
    source = Source("a", "b")
    streaming = asyncio.create_task(websocket.stream(source))
    await server.held.wait()
    server.feed(left())
    await streaming
    assert server.sent == []
    assert source.closed == 1


async def test_a_stream_ends_when_a_send_finds_the_peer_gone(serve: Serving) -> None:
    server, websocket = await serve.open()
    server.send_error = ConnectionResetError("gone")
    source = Source("a", then="hang")
    await websocket.stream(source)
    assert source.closed == 1
    assert websocket.close_code == 1006


async def test_a_stream_to_a_peer_that_has_left(serve: Serving) -> None:
    server = serve()
    await lose(server)
    server.sent.clear()
    source = Source("a", then="hang")
    await server.websocket.stream(source)
    assert server.sent == []


@pytest.mark.parametrize("state", ["pending", "closing"])
async def test_a_stream_at_the_wrong_time(serve: Serving, state: str) -> None:
    server = serve(policy=HASTY)
    await STATES[state](server)
    server.sent.clear()
    source = Source("a", then="hang")
    with pytest.raises(StateError, match=r"websocket\.send is not legal while"):
        await server.websocket.stream(source)
    assert (server.sent, source.closed) == ([], 1)
    server.over = True


async def test_a_stream_before_the_handshake(serve: Serving) -> None:
    server = serve()
    source = Source("a")
    with pytest.raises(StateError, match="pending"):
        await server.websocket.stream(source)
    await server.websocket.accept()
    assert source.closed == 1


async def test_a_cancelled_stream_closes_its_source(serve: Serving) -> None:
    _, websocket = await serve.open()
    source = Source("a", then="hang")
    streaming = asyncio.create_task(websocket.stream(source))
    await source.hanging.wait()
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    assert source.closed == 1


class Iterator:
    """An asynchronous iterator that is no generator: nothing needs to be closed."""

    def __init__(self) -> None:
        self.items = iter("ab")

    def __aiter__(self) -> "Iterator":
        return self

    async def __anext__(self) -> str:
        try:
            return next(self.items)
        except StopIteration:
            raise StopAsyncIteration from None


class Subscription:
    """An iterable that is to be closed itself, not its iterator."""

    def __init__(self) -> None:
        self.closed = 0

    def __aiter__(self) -> Iterator:
        return Iterator()

    async def aclose(self) -> None:
        self.closed += 1


async def test_a_source_without_aclose(serve: Serving) -> None:
    server, websocket = await serve.open()
    await websocket.stream(Iterator())
    assert server.data == ["a", "b"]


async def test_a_source_that_is_closed_itself(serve: Serving) -> None:
    server, websocket = await serve.open()
    source = Subscription()
    await websocket.stream(source)
    assert (server.data, source.closed) == (["a", "b"], 1)


async def test_a_source_that_is_none(serve: Serving) -> None:
    _, websocket = await serve.open()
    source: Any = ["a"]
    with pytest.raises(TypeError):
        await websocket.stream(source)


async def test_a_source_that_does_not_close(
    serve: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server, websocket = await serve.open(policy=HASTY)
    hanging, go_on = asyncio.Event(), asyncio.Event()

    async def stubborn() -> AsyncIterator[str]:
        try:
            hanging.set()
            await for_ever()
            yield ""
        finally:
            await go_on.wait()

    streaming = asyncio.create_task(websocket.stream(stubborn()))
    await hanging.wait()
    server.feed(left())
    await streaming
    assert "did not end within 0.05 s" in caplog.text
    go_on.set()
    await settled()


# Work that belongs to the connection


class Work:
    """What a handler begins with `start_soon`."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = False
        self.arguments: tuple[Any, ...] = ()

    async def wait(self, *arguments: Any) -> None:
        self.arguments = arguments
        try:
            self.began.set()
            await for_ever()
        finally:
            await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)
            self.ended = True


async def fail() -> None:
    raise LookupError("of the child")


def undisturbed() -> bool:
    """Tell whether this task is not being cancelled any more."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() == 0


async def test_work_ends_with_the_scope(serve: Serving) -> None:
    _, websocket = await serve.open()
    work = Work()
    async with websocket as entered:
        assert entered is websocket
        websocket.start_soon(work.wait, 1, "two")
        await work.began.wait()
    assert (work.arguments, work.ended) == ((1, "two"), True)
    assert undisturbed()


async def test_work_returns_what_it_returns(serve: Serving) -> None:
    _, websocket = await serve.open()

    async def double(n: int) -> int:
        return 2 * n

    async with websocket:
        assert await websocket.start_soon(double, 2) == 4


async def test_work_ends_when_the_peer_leaves(serve: Serving) -> None:
    server, websocket = await serve.open()
    work = Work()
    async with websocket:
        task = websocket.start_soon(work.wait)
        await work.began.wait()
        server.feed(text("kept"), left())
        await asyncio.wait([task])
        assert (task.cancelled(), work.ended) == (True, True)
        assert await websocket.receive_text() == "kept"


async def test_work_is_cancelled_once(serve: Serving) -> None:
    server, websocket = await serve.open()
    work = Work()
    async with websocket:
        websocket.start_soon(work.wait)
        await work.began.wait()
        server.feed(left())
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
    assert work.ended


@pytest.mark.parametrize("stuck", [False, True])
async def test_work_whose_send_finds_the_loss_may_clean_up(serve: Serving, stuck: object) -> None:
    server, websocket = await serve.open()
    ended = False

    async def send_and_clean_up() -> None:
        nonlocal ended
        try:
            await websocket.send_text("a")
        finally:
            await asyncio.sleep(0.001)
            ended = True

    if stuck:
        server.hold = asyncio.Event()
    else:
        server.send_error = ConnectionResetError("gone")
    async with websocket:
        task = websocket.start_soon(send_and_clean_up)
        if stuck:
            await server.held.wait()
            server.feed(left())
        await asyncio.wait([task])
    assert ended


async def test_an_error_of_the_work_is_that_of_the_handler(serve: Serving) -> None:
    _, websocket = await serve.open()
    handler_ended = False

    async def handler() -> None:
        nonlocal handler_ended
        async with websocket:
            websocket.start_soon(fail)
            try:
                await for_ever()
            finally:
                handler_ended = True

    with pytest.raises(LookupError, match="of the child") as error:
        await handler()
    assert (handler_ended, undisturbed()) == (True, True)
    assert error.value.__suppress_context__
    await asyncio.sleep(0)


async def test_an_error_of_the_work_ends_the_other_work(serve: Serving) -> None:
    _, websocket = await serve.open()
    work = Work()

    async def handler() -> None:
        async with websocket:
            websocket.start_soon(work.wait)
            await work.began.wait()
            websocket.start_soon(fail)
            await for_ever()

    with pytest.raises(LookupError, match="of the child"):
        await handler()
    assert work.ended


async def test_the_handlers_own_error_comes_out(serve: Serving) -> None:
    _, websocket = await serve.open()
    work = Work()

    async def handler() -> None:
        async with websocket:
            websocket.start_soon(work.wait)
            await work.began.wait()
            raise ValueError("of the handler")

    with pytest.raises(ValueError, match="of the handler"):
        await handler()
    assert work.ended


async def test_work_that_finds_the_peer_gone_does_not_fail(serve: Serving) -> None:
    server, websocket = await serve.open()
    async with websocket:
        task = websocket.start_soon(websocket.receive_text)
        server.feed(left())
        await asyncio.wait([task])
        await settled()
        assert undisturbed()
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()


async def test_a_cancelled_handler_ends_its_work(serve: Serving) -> None:
    _, websocket = await serve.open()
    work = Work()

    async def handler() -> None:
        async with websocket:
            websocket.start_soon(work.wait)
            await for_ever()

    handling = asyncio.create_task(handler())
    await work.began.wait()
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling
    assert work.ended


async def test_work_that_does_not_end_is_told_of(
    serve: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    _, websocket = await serve.open(policy=HASTY)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        began.set()
        while not go_on.is_set():
            with suppress(asyncio.CancelledError):
                await go_on.wait()

    async with websocket:
        task = websocket.start_soon(stubborn)
        await began.wait()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("yaat.error", "ERROR")
    assert "did not end within 0.05 s" in record.getMessage()
    go_on.set()
    await task


@pytest.mark.parametrize("state", ["gone", "gone, not read"])
async def test_no_work_is_begun_after_the_loss(serve: Serving, state: str) -> None:
    server = serve()
    await STATES[state](server)
    async with server.websocket as websocket:
        with pytest.raises(WebSocketDisconnect) as error:
            websocket.start_soon(for_ever)
    assert error.value.code == 4321


async def test_no_work_is_begun_outside_of_the_scope(serve: Serving) -> None:
    _, websocket = await serve.open()
    with pytest.raises(UsageError, match="async with"):
        websocket.start_soon(for_ever)
    async with websocket:
        pass
    with pytest.raises(UsageError, match="async with"):
        websocket.start_soon(for_ever)


def test_without_asyncio_it_is_no_scope() -> None:
    server = Server()
    entering = server.websocket.__aenter__()
    with pytest.raises(UsageError, match="asyncio"):
        entering.send(None)


async def test_the_scope_ends_the_reading_ahead(serve: Serving) -> None:
    server, websocket = await serve.open()
    async with websocket:
        await readahead(server, websocket)
        await settled()
        assert server.reading
    assert not server.reading
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_scope_ends_the_reading_of_its_work(serve: Serving) -> None:
    server, websocket = await serve.open()
    async with websocket:
        websocket.start_soon(websocket.receive_text)
        await settled()
        assert server.reading
    await settled()
    assert not server.reading
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_scopes_may_be_nested(serve: Serving) -> None:
    server, websocket = await serve.open()
    inner, outer = Work(), Work()
    async with websocket:
        websocket.start_soon(outer.wait)
        await outer.began.wait()
        async with websocket:
            websocket.start_soon(inner.wait)
            await inner.began.wait()
        assert (inner.ended, outer.ended) == (True, False)
        server.over = False
        server.feed(left())
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()
    assert outer.ended


async def test_a_scope_that_was_never_entered_has_nothing_to_end(serve: Serving) -> None:
    _, websocket = await serve.open()
    await websocket.__aexit__(None, None, None)
    await websocket.send_text("a")


async def test_the_scope_does_not_close_the_connection(serve: Serving) -> None:
    server, websocket = await serve.open()
    async with websocket:
        await websocket.send_text("a")
    assert [message["type"] for message in server.sent] == ["websocket.send"]
    assert websocket.close_code is None


# Where the server tells of the loss


class Telling:
    """What a server has whose `yaat.wire` tells of the loss, and who asked for that."""

    def __init__(self, server: Server) -> None:
        self.asked: list[Callable[[int, str], object]] = []
        wire = {"version": 1, "on_loss": self.asked.append, "send": server.send}
        server.scope["extensions"] = {"yaat.wire": wire}

    def lose(self, code: int = 4321, reason: str = "bye") -> None:
        for callback in self.asked:
            callback(code, reason)


@pytest.fixture
async def told(serve: Serving) -> tuple[Server, WebSocket, Telling]:
    """A server that tells, and its accepted connection."""
    server = serve()
    telling = Telling(server)
    await server.websocket.accept()
    server.sent.clear()
    return server, server.websocket, telling


Told = tuple[Server, WebSocket, Telling]


async def never_ending() -> AsyncIterator[str]:
    yield "first"
    await for_ever()


async def waits(websocket: WebSocket) -> None:
    await websocket.wait_closed()


async def streams(websocket: WebSocket) -> None:
    await websocket.stream(never_ending())


async def works(websocket: WebSocket) -> None:
    async with websocket:
        await asyncio.wait((websocket.start_soon(for_ever),))


WATCHES = pytest.mark.parametrize("watches", [waits, streams, works])


@WATCHES
async def test_nobody_reads_ahead_where_the_server_tells(
    told: Told, watches: Callable[[WebSocket], Coroutine[Any, Any, None]]
) -> None:
    server, websocket, telling = told
    watching = asyncio.create_task(watches(websocket))
    await settled()
    server.feed(text("a"))
    await settled()
    assert not server.reading
    assert server.received == 1  # the connect
    assert len(telling.asked) == 1
    assert not watching.done()
    telling.lose()
    await asyncio.wait_for(watching, 1)
    assert (websocket.close_code, websocket.close_reason) == (4321, "bye")
    assert websocket.client_state is WebSocketState.DISCONNECTED
    # What came in before the end is received, and then the end, as the server tells it again.
    server.feed(left())
    assert await websocket.receive_text() == "a"
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect) as end:
            await websocket.receive_text()
        assert (end.value.code, end.value.reason) == (4321, "bye")


async def test_the_server_is_asked_once(told: Told) -> None:
    _, websocket, telling = told
    async with websocket:
        websocket.start_soon(for_ever)
        websocket.start_soon(for_ever)
        waiting = asyncio.create_task(websocket.wait_closed())
        await settled()
    waiting.cancel()
    again = asyncio.create_task(websocket.wait_closed())
    await settled()
    assert len(telling.asked) == 1
    telling.lose()
    await asyncio.wait_for(again, 1)


async def test_a_connection_that_nobody_watches_does_not_ask(told: Told) -> None:
    server, websocket, telling = told
    server.feed(text("a"))
    assert await websocket.receive_text() == "a"
    await websocket.send_text("b")
    await websocket.close()
    assert telling.asked == []
    assert server.data == ["b"]


@pytest.mark.parametrize("version", ["2.3", "2.4"])
async def test_who_only_sends_asks_once_and_looks_no_more(told: Told, version: str) -> None:
    server, websocket, telling = told
    server.scope["asgi"] = {"spec_version": version}
    for _ in range(3):
        await paused()
        await websocket.send_text("a")
    assert len(telling.asked) == 1
    assert (server.received, server.reading) == (1, False)
    assert websocket._trusted_until == FOREVER
    assert server.data == ["a"] * 3
    telling.lose()
    for _ in range(2):
        with pytest.raises(WebSocketDisconnect) as end:
            await websocket.send_text("late")
        assert (end.value.code, end.value.reason) == (4321, "bye")
    assert server.data == ["a"] * 3


async def test_who_answers_stays_trusted(told: Told) -> None:
    """A message is no younger word of the peer than what the server tells."""
    server, websocket, telling = told
    await paused()
    await websocket.send_text("asks")
    server.feed(text("a"))
    assert await websocket.receive_text() == "a"
    assert websocket._trusted_until == FOREVER
    await paused()
    await websocket.send_text("b")
    assert len(telling.asked) == 1
    assert server.received == 2
    telling.lose()
    with pytest.raises(WebSocketDisconnect):
        await websocket.send_text("late")


async def test_a_loss_that_is_told_while_somebody_receives(told: Told) -> None:
    """The receiver has what came in before, the sender hears of the loss at once."""
    server, websocket, telling = told
    await paused()
    await websocket.send_text("asks")
    receiving = asyncio.create_task(websocket.receive_text())
    await settled()
    telling.lose()
    server.feed(text("a"), left())
    assert await receiving == "a"
    with pytest.raises(WebSocketDisconnect):
        await websocket.send_text("late")
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()
    assert server.data == ["asks"]


async def test_a_send_that_is_stuck_ends_with_the_loss(told: Told) -> None:
    server, websocket, telling = told
    server.hold = asyncio.Event()
    await paused()
    sending = asyncio.create_task(websocket.send_text("a"))
    await server.held.wait()
    telling.lose()
    with pytest.raises(WebSocketDisconnect) as end:
        await asyncio.wait_for(sending, 1)
    assert end.value.code == 4321


async def test_a_handler_that_receives_is_not_read_ahead_of(told: Told) -> None:
    server, websocket, telling = told
    server.feed(text("a"), text("b"))
    async with websocket:
        websocket.start_soon(for_ever)
        assert await websocket.receive_text() == "a"
        await settled()
        assert (server.received, server.reading) == (2, False)
        assert await websocket.receive_text() == "b"
        telling.lose()
        server.feed(left())
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_text()


async def test_the_code_is_the_one_that_was_told_first(told: Told) -> None:
    server, websocket, telling = told
    waiting = asyncio.create_task(websocket.wait_closed())
    await settled()
    telling.lose(1012, "")
    telling.lose(1006, "other")
    await asyncio.wait_for(waiting, 1)
    server.feed(left())
    with pytest.raises(WebSocketDisconnect) as end:
        await websocket.receive_text()
    assert end.value.code == websocket.close_code == 1012


async def wrapped(server: Server, part: str) -> WebSocket:
    """A WebSocket of which a middleware has wrapped something."""

    async def receive() -> Message:
        return await server.receive()

    async def send(message: Message) -> None:
        await server.send(message)

    wraps = {"receive": server.receive, "send": server.send} | (
        {"receive": receive} if part == "receive" else {"send": send}
    )
    return WebSocket.attach(server.scope, **wraps)  # type: ignore[arg-type]


async def reads_ahead(server: Server, websocket: WebSocket) -> bool:
    """Tell whether the end is looked for by reading."""
    waiting = asyncio.create_task(websocket.wait_closed())
    await settled()
    reading = server.reading
    server.over = True
    waiting.cancel()
    return reading


@pytest.mark.parametrize("part", ["receive", "send"])
async def test_behind_a_middleware_the_server_is_not_asked(serve: Serving, part: str) -> None:
    server = serve()
    telling = Telling(server)
    websocket = await wrapped(server, part)
    await websocket.accept()
    assert await reads_ahead(server, websocket)
    assert telling.asked == []


@pytest.mark.parametrize(
    "extensions", [None, {}, {"websocket.http.response": {}}], ids=["None", "none", "others"]
)
async def test_without_the_extension_it_reads_ahead(serve: Serving, extensions: object) -> None:
    server, websocket = await serve.open(extensions=extensions)
    assert await reads_ahead(server, websocket)


@pytest.mark.parametrize("part", ["send", "both"])
async def test_ways_of_nobodys_own_are_not_used(serve: Serving, part: str) -> None:
    """Whose `send` is no method: nobody can tell whether `receive` belongs to it."""
    server = serve()
    telling = Telling(server)

    async def send(message: Message) -> None:
        await server.send(message)

    async def receive() -> Message:
        return await server.receive()

    server.scope["extensions"]["yaat.wire"]["send"] = send
    receives = receive if part == "both" else server.receive
    websocket = WebSocket.attach(server.scope, receives, send)
    await websocket.accept()
    assert await reads_ahead(server, websocket)
    assert telling.asked == []


@pytest.mark.parametrize(
    ("limit", "reads"), [(1, False), (65_536, False), (65_537, True)], ids=["less", "as", "more"]
)
async def test_who_wants_more_held_than_the_server_holds_has_it_read_ahead(
    serve: Serving, limit: int, *, reads: bool
) -> None:
    server = serve(policy=Policy(read_ahead=limit))
    telling = Telling(server)
    await server.websocket.accept()
    assert await reads_ahead(server, server.websocket) is reads
    assert len(telling.asked) == (not reads)


async def test_what_was_read_ahead_stays_in_order(serve: Serving) -> None:
    """Once something was read ahead the server, which does not hold it, is not asked."""
    server, websocket = await serve.open(text("a"), text("b"))
    waiting = asyncio.create_task(websocket.wait_closed())
    await settled()
    telling = Telling(server)
    server.feed(text("c"))
    async with websocket:
        websocket.start_soon(for_ever)
        assert [await websocket.receive_text() for _ in range(3)] == ["a", "b", "c"]
        await settled()
        assert telling.asked == []
        server.feed(left())
        await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("part", ["receive", "send", "nothing"])
async def test_attach_asks_anew(serve: Serving, part: str) -> None:
    """What a middleware wraps once the server was asked is used from then on."""
    server = serve()
    telling = Telling(server)
    websocket = WebSocket.attach(server.scope, server.receive, server.send)
    await websocket.accept()
    first = asyncio.create_task(websocket.wait_closed())
    await settled()
    assert len(telling.asked) == 1
    if part == "nothing":
        WebSocket.attach(server.scope, server.receive, server.send)
    else:
        await wrapped(server, part)
    second = asyncio.create_task(websocket.wait_closed())
    await settled()
    assert server.reading is (part != "nothing")
    telling.lose()
    server.over = True
    await asyncio.wait_for(asyncio.gather(first, second), 1)
    assert websocket.close_code == 4321


@pytest.mark.parametrize("way", ["send", "wait_closed", "start_soon"])
async def test_an_end_that_a_middleware_makes_is_noticed(serve: Serving, way: str) -> None:
    """Its `receive` tells of an end of which the server knows nothing."""
    server = serve()
    Telling(server)
    websocket = WebSocket.attach(server.scope, server.receive, server.send)
    await websocket.accept()
    await paused()
    await websocket.send_text("a")  # the server is asked

    async def receive() -> Message:
        return left(4000, "logged out")

    WebSocket.attach(server.scope, receive, server.send)
    await paused()
    if way == "send":
        with pytest.raises(WebSocketDisconnect):
            await websocket.send_text("late")
        assert server.data == ["a"]
    elif way == "wait_closed":
        await asyncio.wait_for(websocket.wait_closed(), 1)
    else:
        async with websocket:
            await asyncio.wait((websocket.start_soon(for_ever),), timeout=1)
    assert websocket.close_code == 4000


# One WebSocket for a connection


async def test_attach_makes_one_for_a_connection(serve: Serving) -> None:
    server = serve()
    first = WebSocket.attach(server.scope, server.receive, server.send)
    assert WebSocket.attach(server.scope, server.receive, server.send) is first
    await first.accept()
    assert server.sent == [ACCEPT]


async def test_attach_takes_what_a_middleware_wrapped(serve: Serving) -> None:
    server = serve(text("a"))
    first = WebSocket.attach(server.scope, server.receive, server.send)
    assert (first.url, first.path) == ("ws://testserver/ws", "/ws")
    await first.accept()

    async def receive() -> Message:
        message = await server.receive()
        return {**message, "text": message["text"] + "!"}

    async def send(message: Message) -> None:
        await server.send({**message, "text": message["text"] + "?"})

    changes = {"path": "/other", "query_string": b"b=2", "yaat.policy": LIMITED}
    changed = {**server.scope, **changes}
    second = WebSocket.attach(changed, receive, send)
    assert second is first
    assert (second.url, second.path) == ("ws://testserver/other?b=2", "/other")
    assert dict(second.query_params) == {"b": "2"}
    assert await second.receive_text() == "a!"
    await second.send_text("b")
    assert server.data == ["b?"]
    server.feed(text("12345678"))
    with pytest.raises(TooBigError):
        await second.receive_text()


async def test_attach_keeps_what_was_cached_for_the_same_scope(serve: Serving) -> None:
    server = serve()
    first = WebSocket.attach(server.scope, server.receive, server.send)
    url = first.url
    first.state.user = "me"
    second = WebSocket.attach(server.scope, server.receive, server.send)
    assert second.url is url
    assert second.state.user == "me"


# What the channels send


def frame(number: int = 0) -> Frame:
    return Frame("text", str(number))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)


def member(websocket: WebSocket, name: str = "room", slow: str = "cut", most: int = 2**20) -> Share:
    return Share(websocket.outbox, name, slow, most)


async def test_the_outbox_is_one(serve: Serving) -> None:
    _, websocket = await serve.open()
    await websocket._end_outbox()  # there is none, and nothing to end
    assert websocket.outbox is websocket.outbox
    assert websocket.outbox.is_open


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (stay, StateError),
        (pend, StateError),
        (start_denial, StateError),
        (close, StateError),
        (refuse, StateError),
        (lose, WebSocketDisconnect),
    ],
)
async def test_there_is_no_outbox_of_what_is_not_open(
    serve: Serving,
    state: Callable[[Server], Coroutine[Any, Any, None]],
    error: type[Exception],
) -> None:
    server = serve(**DENIAL)
    await state(server)
    with pytest.raises(error):
        server.websocket.outbox  # noqa: B018 - a property


async def test_publications_leave_in_the_order_of_the_calls(serve: Serving) -> None:
    server, websocket = await serve.open()
    share = member(websocket)
    server.hold = asyncio.Event()
    sending = [asyncio.create_task(websocket.send_text("first"))]
    await settled()
    assert share.offer(frame(1))
    assert share.offer(frame(2))
    sending.append(asyncio.create_task(websocket.send_text("then")))
    await settled()
    assert share.offer(frame(3))
    assert server.data == []
    server.hold.set()
    await asyncio.gather(*sending)
    await settled()
    assert server.data == ["first", "1", "2", "then", "3"]
    share.leave()


async def test_a_close_queues_behind_what_waits(serve: Serving) -> None:
    server, websocket = await serve.open()
    share = member(websocket)
    server.hold = asyncio.Event()
    for number in range(100):
        assert share.offer(frame(number))
    closing = asyncio.create_task(websocket.close(4001))
    await settled()
    assert share.offer(frame(100)), "nobody has closed yet"
    server.hold.set()
    await closing
    await settled()
    assert server.data == [str(number) for number in range(100)]
    assert server.sent[-1] == {"type": "websocket.close", "code": 4001, "reason": ""}
    assert not share.offer(frame())


async def test_a_close_that_cannot_leave_lets_go_of_what_waits(
    serve: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server, websocket = await serve.open(policy=HASTY)
    share = member(websocket)
    server.hold = asyncio.Event()
    for number in range(100):
        assert share.offer(frame(number))
    await settled()
    assert share.waiting > 0
    await websocket.close(4001)
    assert share.waiting == 0
    assert not share.offer(frame())
    assert (websocket.close_code, websocket._outbox) == (4001, None)
    assert "did not let our close through" in caplog.text
    server.hold.set()
    await settled()
    assert server.data == []


async def test_a_loss_lets_go_of_what_waits(serve: Serving) -> None:
    server, websocket = await serve.open()
    share = member(websocket)
    server.hold = asyncio.Event()
    for number in range(100):
        assert share.offer(frame(number))
    await settled()
    server.feed(left())
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()
    await settled()
    assert share.waiting == 0
    assert not share.offer(frame())
    assert server.data == []
    with pytest.raises(WebSocketDisconnect):
        websocket.outbox  # noqa: B018


async def test_a_publication_finds_the_loss(
    serve: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    server, websocket = await serve.open()
    share = member(websocket)
    server.send_error = OSError("gone")
    assert share.offer(frame())
    await until(lambda: websocket.client_state is WebSocketState.DISCONNECTED)
    server.send_error = None
    assert websocket.close_code == 1006
    assert not share.offer(frame())
    assert caplog.records == []
    server.over = True


async def test_a_server_that_takes_no_publication(
    serve: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection does not stay open in silence."""
    server, websocket = await serve.open(policy=HASTY)
    share = member(websocket)
    server.send_error = LookupError("what is that")
    assert share.offer(frame())
    await until(lambda: websocket.close_code is not None)
    server.send_error = None
    assert not share.offer(frame())
    assert "a connection took no more publications" in caplog.text
    assert websocket.close_code == 1011
    server.over = True


async def test_who_is_too_slow_is_closed(serve: Serving) -> None:
    server, websocket = await serve.open(policy=HASTY)
    share = member(websocket, most=1)
    server.hold = asyncio.Event()
    taken = []
    for number in range(3):
        taken.append(share.offer(frame(number)))
        await settled()
    assert taken == [True, True, False], "one is on its way, one may wait"
    server.hold.set()
    await settled()
    assert server.data == [], "what was on its way is cancelled, what waited is dropped"
    assert (websocket.close_code, websocket.close_reason) == (1013, "reads too slowly")
    with pytest.raises(WebSocketDisconnect) as caught:
        await websocket.send_text("more")
    assert caught.value.code == 1013, "it was not the handler that closed"
    server.feed(left(1013))
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()


@pytest.mark.parametrize("is_scope", [False, True])
async def test_who_is_too_slow_and_never_answers(serve: Serving, *, is_scope: bool) -> None:
    """A handler that waits for something else is not left waiting."""
    server, websocket = await serve.open(policy=HASTY)
    server.hold = asyncio.Event()

    async def wait_inside() -> None:
        async with websocket:
            websocket.outbox.end(1013, "reads too slowly")
            await for_ever()

    if is_scope:
        with pytest.raises(WebSocketDisconnect) as caught:
            await wait_inside()
        assert caught.value.code == 1006
    else:
        websocket.outbox.end(1013, "reads too slowly")
        await websocket.wait_closed()
    assert websocket.close_code == 1013
    await until(lambda: websocket.client_state is WebSocketState.DISCONNECTED)
    server.over = True


class Wired:
    """A server with a `yaat.wire` that takes so many frames."""

    def __init__(self, server: Server, room: int) -> None:
        self.room = room
        self.waiting: list[Callable[[], None]] = []
        self.lost: list[Callable[[int, str], object]] = []
        self.sent = server.sent
        server.scope["extensions"] = {
            "yaat.wire": {
                "version": 1,
                "write": self.write,
                "on_room": self.waiting.append,
                "on_loss": self.lost.append,
                "send": server.send,
            }
        }

    def write(self, frame: Frame) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(frame.event())
        return True

    def give(self, room: int) -> None:
        self.room += room
        callbacks, self.waiting[:] = list(self.waiting), []
        for callback in callbacks:
            callback()


async def test_with_the_wire_there_is_no_task(serve: Serving) -> None:
    server = serve()
    wire = Wired(server, 2)
    websocket = server.websocket
    await websocket.accept()
    server.sent.clear()
    tasks = asyncio.all_tasks()
    share = member(websocket)
    for number in range(4):
        assert share.offer(frame(number))
    assert server.data == ["0", "1"], "at once"
    sending = asyncio.create_task(websocket.send_text("then"))
    await settled()
    assert share.offer(frame(4))
    assert asyncio.all_tasks() == {*tasks, sending}
    wire.give(10)
    await sending
    await settled()
    assert server.data == ["0", "1", "2", "3", "then", "4"]
    assert len(wire.lost) == 1, "the server tells of the loss"
    assert share.offer(frame(5))
    wire.lost[0](1001, "")
    assert not share.offer(frame(6))
    assert server.data[-1] == "5"


async def test_behind_a_middleware_the_wire_is_not_written_to(serve: Serving) -> None:
    server = serve()
    wire = Wired(server, 10)
    seen: list[Message] = []

    async def send(message: Message) -> None:
        seen.append(message)
        await server.send(message)

    websocket = WebSocket(server.scope, server.receive, send)
    await websocket.accept()
    share = member(websocket)
    share.offer(frame(1))
    await settled()
    assert wire.room == 10
    assert seen[1:] == [{"type": "websocket.send", "text": "1"}]
    server.over = True
    await websocket.__aexit__(None, None, None)
    websocket._drop_outbox()
    assert not share.offer(frame(2))
    websocket._drop_outbox()


async def test_uvicorns_own_send_needs_no_task(serve: Serving) -> None:
    """Whose `send` it is is seen by where its class comes from."""
    server = serve()
    uvicorns: Any = type("Protocol", (), {"send": lambda _, message: server.send(message)})
    uvicorns.__module__ = "uvicorn.protocols.websockets.some_impl"
    websocket = WebSocket(server.scope, server.receive, uvicorns().send)
    await websocket.accept()
    server.sent.clear()
    tasks = asyncio.all_tasks()
    share = member(websocket)
    assert share.offer(frame(1))
    assert server.data == ["1"], "at once"
    assert asyncio.all_tasks() == tasks
    server.hold = asyncio.Event()
    assert share.offer(frame(2))
    assert share.offer(frame(3))
    await settled()
    assert server.data == ["1"]
    server.hold.set()
    await settled()
    assert server.data == ["1", "2", "3"]
    share.leave()
    await settled()
    assert asyncio.all_tasks() == tasks
