"""The test client: it talks to an application as a server does, and never hangs."""

import asyncio
import contextlib
import inspect
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import fastapi
import httpx2
import pytest
import starlette.applications
import starlette.endpoints

from yaat.app import Yaat
from yaat.exceptions import (
    ArgumentError,
    HTTPException,
    MalformedError,
    Refused,
    StateError,
    UsageError,
    WebSocketDisconnect,
    WrongKindError,
)
from yaat.middleware import BaseMiddleware
from yaat.observer import Observer
from yaat.requests import Request
from yaat.responses import JSONResponse, RedirectResponse, TextResponse
from yaat.testing import HIGH_WATER, HandshakeRefused, TestClient, WebSocketSession
from yaat.types import ASGIApp, Message, Receive, Scope, Send
from yaat.websockets import WebSocket

BLINK = 0.05
"""A timeout, in seconds, of what is meant to time out."""


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    """Hold every test here to it."""
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


def serving(handler: Callable[..., Any], **options: Any) -> Yaat:
    """Return an application with one handler, at every path."""
    app = Yaat(**options)
    app.add_websocket_route(handler)
    return app


def session(handler: Callable[..., Any], **options: Any) -> WebSocketSession:
    """Return a connection to a handler."""
    return TestClient(serving(handler), **options).websocket("/")


def bare(app: ASGIApp, **options: Any) -> WebSocketSession:
    """Return a connection to an ASGI application without Yaat."""
    return TestClient(app, **options).websocket("/")


async def spin() -> None:
    """Let everything happen that can."""
    for _ in range(100):
        await asyncio.sleep(0)


def line_of(function: Callable[..., Any], text: str) -> str:
    """Return where a line of a function is, as a traceback says it."""
    lines, first = inspect.getsourcelines(function)
    [place] = [first + number for number, line in enumerate(lines) if text in line]
    return f'File "{__file__}", line {place}, in {function.__name__}'


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        data = await websocket.receive_data()
        if isinstance(data, str):
            await websocket.send_text(data)
        else:
            await websocket.send_bytes(data)


# A connection


async def test_messages_go_to_and_fro() -> None:
    async with session(echo) as ws:
        await ws.send_text("tëxt")
        assert await ws.receive() == "tëxt"
        await ws.send_bytes(b"\x00\xff")
        assert await ws.receive() == b"\x00\xff"
        await ws.send_text("")
        assert await ws.receive_text() == ""
        await ws.send_bytes(b"")
        assert await ws.receive_bytes() == b""
        await ws.send_json({"é": [1, None]})
        assert await ws.receive_text() == '{"é":[1,null]}'
        await ws.send_json({"a": 1}, mode="bytes")
        assert await ws.receive_bytes() == b'{"a":1}'
        await ws.send_json([2], mode="binary")
        assert await ws.receive_json() == [2]
        await ws.send_json([3])
        assert await ws.receive_json() == [3]


async def test_a_message_of_another_kind() -> None:
    async with session(echo) as ws:
        await ws.send_text("text")
        with pytest.raises(WrongKindError, match="expected a bytes message, got one of text"):
            await ws.receive_bytes()
        await ws.send_bytes(b"bytes")
        with pytest.raises(WrongKindError, match="expected a text message, got one of bytes"):
            await ws.receive_text()
        await ws.send_text("{")
        with pytest.raises(MalformedError):
            await ws.receive_json()
        with pytest.raises(ArgumentError):
            await ws.send_json(1, mode="other")  # type: ignore[arg-type]


async def test_it_is_iterated_until_the_application_closes() -> None:
    async def count(websocket: WebSocket) -> None:
        await websocket.accept()
        for number in range(3):
            await websocket.send_json(number)
        await websocket.send_bytes(b"end")

    async with session(count) as ws:
        assert [message async for message in ws] == ["0", "1", "2", b"end"]
        assert [message async for message in ws] == []


async def test_the_scope_is_that_of_a_server() -> None:
    seen: list[Scope] = []

    async def note(websocket: WebSocket) -> None:
        seen.append(websocket.scope)
        await websocket.accept()

    client = TestClient(
        serving(note),
        base_url="https://chat.example:8443",
        headers={"X-Client": "1"},
        cookies={"token": "abc"},
    )
    url = "/rooms/caf%C3%A9%20x?a=1&b=%26"
    headers = {"X-Own": "2", "origin": "https://chat.example:8443"}
    async with client.websocket(url, subprotocols=["one", "two"], headers=headers):
        pass
    [scope] = seen
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert (scope["http_version"], scope["scheme"]) == ("1.1", "wss")
    assert (scope["path"], scope["raw_path"]) == ("/rooms/café x", b"/rooms/caf%C3%A9%20x")
    assert (scope["query_string"], scope["root_path"]) == (b"a=1&b=%26", "")
    assert scope["server"] == ("chat.example", 8443)
    assert scope["client"] == ("127.0.0.1", 123)
    assert scope["subprotocols"] == ["one", "two"]
    assert "websocket.http.response" in scope["extensions"]
    assert scope["state"] == {}
    pairs = dict(scope["headers"])
    expected = {
        b"host": b"chat.example:8443",
        b"x-client": b"1",
        b"x-own": b"2",
        b"cookie": b"token=abc",
        b"upgrade": b"websocket",
        b"sec-websocket-version": b"13",
        b"sec-websocket-protocol": b"one, two",
    }
    assert expected.items() <= pairs.items()
    assert all(name == name.lower() for name in pairs)


URLS = [
    ("/ws", "http://testserver", "ws", "/ws", ("testserver", 80)),
    ("ws", "http://testserver", "ws", "/ws", ("testserver", 80)),
    ("/ws", "https://secure.example", "wss", "/ws", ("secure.example", 443)),
    ("ws://other.example:81/x", "http://testserver", "ws", "/x", ("other.example", 81)),
    ("wss://other.example/x", "http://testserver", "wss", "/x", ("other.example", 443)),
    ("/ws", "http://testserver/api", "ws", "/api/ws", ("testserver", 80)),
]


@pytest.mark.parametrize(("url", "base", "scheme", "path", "server"), URLS)
async def test_where_a_url_leads(
    url: str, base: str, scheme: str, path: str, server: tuple[str, int]
) -> None:
    scope = TestClient(serving(echo), base_url=base).websocket(url).scope
    assert (scope["scheme"], scope["path"], scope["server"]) == (scheme, path, server)
    assert scope["subprotocols"] == []
    assert not any(name == b"sec-websocket-protocol" for name, _ in scope["headers"])


async def test_items_of_the_scope_can_be_replaced_and_left_out() -> None:
    client = TestClient(serving(echo))
    changes = {"client": ("192.0.2.7", 7), "extensions": None, "asgi": None, "x.own": 1}
    ws = client.websocket("/", scope=changes)
    assert ws.scope["client"] == ("192.0.2.7", 7)
    assert ws.scope["x.own"] == 1
    assert not {"extensions", "asgi"} & ws.scope.keys()
    everything = dict.fromkeys(["http_version", "scheme", "raw_path", "root_path", "state"])
    everything |= dict.fromkeys(["query_string", "server", "subprotocols", *changes])
    async with client.websocket("/", scope=everything) as ws:
        assert ws.scope.keys() <= {"type", "path", "headers", "yaat.observers", *ADDED}
        await ws.send_text("it works without")
        assert await ws.receive_text() == "it works without"


ADDED = {"app", "router", "path_params", "yaat.hub", "yaat.websocket", "state"}


async def test_what_was_agreed_on() -> None:
    async def agree(websocket: WebSocket) -> None:
        await websocket.accept(["two", "one"], headers={"X-Server": "yes", "set-cookie": "a=1"})

    async with TestClient(serving(agree)).websocket("/", subprotocols=["one", "two"]) as ws:
        assert ws.subprotocol == "two"
        assert ws.headers["x-server"] == "yes"
        assert ws.headers["set-cookie"] == "a=1"
    async with session(echo) as ws:
        assert ws.subprotocol is None
        assert not ws.headers


async def test_several_connections_at_once() -> None:
    client = TestClient(serving(echo))
    async with client.websocket("/") as one, client.websocket("/") as two:
        await one.send_text("one")
        await two.send_text("two")
        assert (await two.receive(), await one.receive()) == ("two", "one")


@pytest.mark.parametrize("use", ["send_text", "send_bytes", "send_json", "receive", "ended"])
async def test_a_connection_that_was_not_opened(use: str) -> None:
    arguments: dict[str, list[Any]] = {"send_text": ["x"], "send_bytes": [b"x"], "send_json": [1]}
    with pytest.raises(UsageError, match=r"async with client\.websocket"):
        await getattr(session(echo), use)(*arguments.get(use, []))


# How it is refused


async def test_a_refusal_has_a_status_headers_and_a_body() -> None:
    async def refuse(websocket: WebSocket) -> None:
        raise Refused("log in first", status=401, headers={"www-authenticate": "Bearer"})

    with pytest.raises(HandshakeRefused) as refused:
        async with session(refuse):
            pytest.fail("it was accepted")
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"
    assert refused.value.body == b"log in first"
    assert refused.value.text == "log in first"
    assert "401 b'log in first'" in str(refused.value)


async def test_a_denial_response_of_any_kind() -> None:
    async def deny(websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse({"é": 1}, status_code=429))

    with pytest.raises(HandshakeRefused) as refused:
        await session(deny).__aenter__()
    assert (refused.value.status, refused.value.text) == (429, '{"é":1}')


async def test_a_denial_in_parts_by_a_bare_application() -> None:
    async def deny(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 503, "headers": []})
        await asyncio.sleep(0)
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "websocket.http.response.body", "body": b"now\xff"})

    with pytest.raises(HandshakeRefused) as refused:
        await bare(deny).__aenter__()
    assert (refused.value.status, refused.value.body) == (503, b"not now\xff")
    assert refused.value.text == "not now\N{REPLACEMENT CHARACTER}"


async def test_a_plain_close_is_a_403() -> None:
    async def close(websocket: WebSocket) -> None:
        await websocket.close(1008)

    with pytest.raises(HandshakeRefused) as refused:
        await session(close).__aenter__()
    assert (refused.value.status, refused.value.body, dict(refused.value.headers)) == (403, b"", {})


async def test_the_application_ends_before_the_refusal_is_told() -> None:
    log: list[str] = []

    async def close(websocket: WebSocket) -> None:
        await websocket.close()
        await asyncio.sleep(0)
        log.append("cleaned up")

    with pytest.raises(HandshakeRefused):
        await session(close).__aenter__()
    assert log == ["cleaned up"]


UNANSWERED: list[Callable[[Send], Any]] = [
    lambda send: asyncio.sleep(0),
    lambda send: send({"type": "websocket.http.response.start", "status": 200}),
]


@pytest.mark.parametrize("answer", UNANSWERED)
async def test_a_bare_application_that_returns_without_an_answer(
    answer: Callable[[Send], Any],
) -> None:
    async def forget(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    with pytest.raises(HandshakeRefused) as refused:
        await bare(forget).__aenter__()
    assert refused.value.status == 500


# How it ends


async def test_the_application_closes() -> None:
    async def close(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("last")
        await websocket.close(4001, "bye")

    async with session(close) as ws:
        assert await ws.receive_text() == "last"
        for _ in range(2):
            with pytest.raises(WebSocketDisconnect) as departure:
                await ws.receive()
            assert (departure.value.code, departure.value.reason) == (4001, "bye")
        with pytest.raises(WebSocketDisconnect) as departure:
            await ws.send_text("too late")
        assert departure.value.code == 4001
        await ws.close()  # nothing to do any more
        await ws.cut()


async def test_the_end_is_told_while_the_application_goes_on() -> None:
    """A client sees the close frame, whatever the handler has to do after it."""
    done = asyncio.Event()

    async def close(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()
        await done.wait()

    async with session(close) as ws:
        with pytest.raises(WebSocketDisconnect):
            await ws.receive()
        done.set()


ENDS: list[tuple[Callable[[WebSocketSession], Any], int, str]] = [
    (lambda ws: ws.close(), 1000, ""),
    (lambda ws: ws.close(4001, "my reason"), 4001, "my reason"),
    (lambda ws: ws.close(None), 1005, ""),
    (lambda ws: ws.close(1006), 1011, ""),
    (lambda ws: ws.cut(), 1006, ""),
    (lambda ws: ws.__aexit__(None, None, None), 1000, ""),
]


@pytest.mark.parametrize(("end", "code", "reason"), ENDS)
async def test_the_client_closes(
    end: Callable[[WebSocketSession], Any], code: int, reason: str
) -> None:
    heard: list[tuple[int, str]] = []

    async def listen(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("before")
        try:
            await websocket.receive()
            await websocket.receive_text()
        except WebSocketDisconnect as departure:
            heard.append((departure.code, departure.reason))
            with pytest.raises(WebSocketDisconnect):
                await websocket.send_text("after")

    async with session(listen) as ws:
        await ws.send_text("first")
        await end(ws)
        await ws.ended()
        assert heard == [(code, reason)]
        assert await ws.receive_text() == "before", "what had been sent is still there"
        with pytest.raises(WebSocketDisconnect) as departure:
            await ws.receive()
        assert departure.value.code == code
        with pytest.raises(WebSocketDisconnect):
            await ws.send_text("x")


@pytest.mark.parametrize("code", [0, 999, 1004, 2999, 5000])
async def test_a_code_that_no_client_may_send(code: int) -> None:
    async with session(echo) as ws:
        with pytest.raises(ArgumentError):
            await ws.close(code)
        with pytest.raises(ArgumentError):
            await ws.close(1000, "x" * 124)
        await ws.send_text("still open")
        assert await ws.receive_text() == "still open"


async def test_what_a_bare_application_sees_of_a_departure() -> None:
    """As of a server of ASGI 2.4 and later: an OSError, and the disconnect again and again."""
    log: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        log.extend([await receive(), await receive()])
        for message in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.accept"}):
            with pytest.raises(OSError, match="the peer has left"):
                await send(message)
        await send({"type": "websocket.close"})

    async with bare(app) as ws:
        await ws.close(1001, "away")
    assert log == [{"type": "websocket.disconnect", "code": 1001, "reason": "away"}] * 2


async def test_what_was_in_flight_when_the_application_closed() -> None:
    log: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await ready.wait()
        await send({"type": "websocket.close", "code": 4000})
        await send({"type": "websocket.close", "code": 4001})  # says nothing new
        while not log or log[-1]["type"] != "websocket.disconnect":
            log.append(await receive())

    ready = asyncio.Event()
    async with bare(app) as ws:
        await ws.send_text("in flight")
        ready.set()
        await ws.ended()
    assert log == [
        {"type": "websocket.receive", "text": "in flight"},
        {"type": "websocket.disconnect", "code": 4000, "reason": ""},
    ]


async def test_a_bare_application_that_returns_is_cut_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async with bare(app) as ws:
        with pytest.raises(WebSocketDisconnect) as departure:
            await ws.receive()
        assert departure.value.code == 1006


async def test_leaving_during_the_handshake() -> None:
    log: list[str] = []

    async def slow(websocket: WebSocket) -> None:
        connected.set()
        try:
            await websocket.wait_closed()
            await websocket.accept()
        except WebSocketDisconnect as departure:
            log.append(str(departure.code))

    connected = asyncio.Event()
    ws = session(slow)
    handshake = asyncio.create_task(ws.__aenter__())
    await connected.wait()
    await ws.cut()
    await handshake
    await ws.ended()
    assert log == ["1006"]


@pytest.mark.parametrize("status", [403, None])
async def test_giving_up_a_handshake(status: int | None) -> None:
    """Whoever waits for the handshake is cancelled: so is the application."""
    log: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if status:
            await send({"type": "websocket.http.response.start", "status": status})
        try:
            connected.set()
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    connected = asyncio.Event()
    handshake = asyncio.create_task(bare(slow).__aenter__())
    await connected.wait()
    handshake.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handshake
    assert log == ["cancelled"]


async def test_a_test_that_fails_cancels_the_application() -> None:
    log: list[str] = []

    async def wait(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    with pytest.raises(LookupError, match="the test's own"):
        async with session(wait):
            raise LookupError("the test's own")
    assert log == ["cancelled"]


# What the handler raises


async def fail(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("first")
    if await websocket.receive_text() == "fail":
        raise LookupError("in the handler")


async def fail_at_once(websocket: WebSocket) -> None:
    raise LookupError("in the handler")


async def fail_bare(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    raise LookupError("in the handler")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def test_it_is_raised_where_the_test_receives() -> None:
    async with session(fail) as ws:
        await ws.send_text("fail")
        assert await ws.receive() == "first", "what had been sent comes first"
        with pytest.raises(LookupError, match="in the handler") as caught:
            await ws.receive()
        assert line_of(fail, 'raise LookupError("in') in shown(caught.value)
        with pytest.raises(WebSocketDisconnect) as departure:
            await ws.receive()
        assert departure.value.code == 1011


async def test_or_where_it_sends() -> None:
    async with session(fail) as ws:
        await ws.send_text("fail")
        await spin()
        with pytest.raises(LookupError, match="in the handler"):
            await ws.send_text("more")


async def test_or_where_it_waits_for_the_end() -> None:
    async with session(fail) as ws:
        await ws.send_text("fail")
        with pytest.raises(LookupError, match="in the handler"):
            await ws.ended()
        await ws.ended()


async def test_or_at_the_end_of_the_connection() -> None:
    ws = await session(fail).__aenter__()
    await ws.send_text("fail")
    with pytest.raises(LookupError, match="in the handler") as caught:
        await ws.__aexit__(None, None, None)
    assert line_of(fail, 'raise LookupError("in') in shown(caught.value)


async def test_or_in_the_handshake() -> None:
    with pytest.raises(LookupError, match="in the handler") as caught:
        await session(fail_at_once).__aenter__()
    assert line_of(fail_at_once, 'raise LookupError("in') in shown(caught.value)


async def test_what_is_iterated_raises_it_too() -> None:
    async with session(fail) as ws:
        await ws.send_text("fail")
        with pytest.raises(LookupError):
            assert [message async for message in ws] == ["first"]


async def test_a_bare_application_that_raises() -> None:
    async with bare(fail_bare) as ws:
        with pytest.raises(LookupError, match="in the handler"):
            await ws.receive()


async def test_a_connection_without_a_client() -> None:
    scope = {"type": "websocket", "path": "/", "headers": []}
    async with WebSocketSession(fail_bare, scope) as ws:
        with pytest.raises(LookupError, match="in the handler"):
            await ws.receive()


async def test_what_a_child_of_the_handler_raises() -> None:
    async def child() -> None:
        raise LookupError("in the child")

    async def parent(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.start_soon(child)
        await websocket.receive()

    async with session(parent) as ws:
        with pytest.raises(LookupError, match="in the child"):
            await ws.receive()


async def test_or_the_connection_ends_as_on_a_server() -> None:
    async with session(fail, raise_app_exceptions=False) as ws:
        await ws.send_text("fail")
        assert await ws.receive() == "first"
        with pytest.raises(WebSocketDisconnect) as departure:
            await ws.receive()
        assert (departure.value.code, departure.value.reason) == (1011, "")
    async with bare(fail_bare, raise_app_exceptions=False) as ws:
        with pytest.raises(WebSocketDisconnect) as departure:
            await ws.receive()
        assert departure.value.code == 1006
    with pytest.raises(HandshakeRefused) as refused:
        await session(fail_at_once, raise_app_exceptions=False).__aenter__()
    assert refused.value.status == 500


async def test_the_observers_of_the_application_hear_of_it_too() -> None:
    class Notes(Observer):
        def failed(self, scope: Scope, error: BaseException) -> None:
            log.append(type(error).__name__)

    log: list[str] = []
    client = TestClient(serving(fail_at_once, observers=[Notes()]))
    own = {"yaat.observers": (Notes(),)}
    with pytest.raises(LookupError):
        await client.websocket("/", scope=own).__aenter__()
    assert log == ["LookupError", "LookupError"]


MISTAKES: list[tuple[Message, type[Exception]]] = [
    ({"type": "websocket.send", "text": "too early"}, StateError),
    ({"type": "websocket.receive"}, StateError),
    ({"type": "websocket.http.response.body"}, StateError),
    ({"type": "http.response.start"}, StateError),
    ({"type": "websocket.accept", "subprotocol": "never offered"}, ArgumentError),
    ({"type": "websocket.accept", "headers": [(b"x", b"a\r\nb")]}, ArgumentError),
    ({"type": "websocket.accept", "headers": [(b"sec-websocket-protocol", b"x")]}, ArgumentError),
]


@pytest.mark.parametrize(("message", "error"), MISTAKES)
async def test_a_mistake_of_a_bare_application(message: Message, error: type[Exception]) -> None:
    """ASGI: a server raises out of `send` if the event is wrong."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(message)

    with pytest.raises(error):
        await bare(app).__aenter__()


@pytest.mark.parametrize("data", [{}, {"text": None}, {"text": "a", "bytes": b"a"}])
async def test_a_message_that_is_none(data: dict[str, Any]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", **data})

    async with bare(app) as ws:
        with pytest.raises(ArgumentError, match="either text or bytes"):
            await ws.receive()


async def test_either_key_of_a_message_may_be_there_as_none() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept", "subprotocol": None})
        await send({"type": "websocket.send", "text": None, "bytes": b""})
        await send({"type": "websocket.send", "text": "", "bytes": None})
        await send({"type": "websocket.close", "reason": None})

    async with bare(app) as ws:
        assert [message async for message in ws] == [b"", ""]


# Waiting, with a bound


async def never_answers(websocket: WebSocket) -> None:
    await asyncio.Event().wait()  # for ever


async def never_sends(websocket: WebSocket) -> None:
    await websocket.accept()
    await inner()


async def inner() -> None:
    await asyncio.Event().wait()  # for ever


async def never_ends(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.wait_closed()
    await asyncio.Event().wait()  # for ever


async def half_denies(websocket: WebSocket) -> None:
    await websocket.send({"type": "websocket.http.response.start", "status": 401})
    await asyncio.Event().wait()  # for ever


HERE = "Event().wait()  # for ever"


async def test_the_handshake_is_not_answered() -> None:
    with pytest.raises(TimeoutError) as caught:
        await session(never_answers, timeout=BLINK).__aenter__()
    assert str(caught.value).startswith("waited 0.05 s for the handshake's answer; the applic")
    assert line_of(never_answers, HERE) in str(caught.value)
    assert "await asyncio.Event().wait()" in str(caught.value), "the line itself is shown"


async def test_the_handshake_is_answered_by_half() -> None:
    with pytest.raises(TimeoutError) as caught:
        await session(half_denies, timeout=BLINK).__aenter__()
    assert line_of(half_denies, HERE) in str(caught.value)


async def test_nothing_comes() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with session(never_sends, timeout=BLINK) as ws:
            await ws.receive()
    text = str(caught.value)
    assert text.startswith("waited 0.05 s for a message")
    outer, deeper = line_of(never_sends, "await inner()"), line_of(inner, HERE)
    assert outer in text
    assert deeper in text
    assert text.index(outer) < text.index(deeper), "outermost first, as a traceback has it"


async def test_the_handler_does_not_end() -> None:
    ws = await session(never_ends, timeout=BLINK).__aenter__()
    with pytest.raises(TimeoutError) as caught:
        await ws.__aexit__(None, None, None)
    assert str(caught.value).startswith("waited 0.05 s for the application to end")
    assert line_of(never_ends, HERE) in str(caught.value)


async def test_the_handler_does_not_receive() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with session(never_sends, timeout=BLINK) as ws:
            await asyncio.gather(*(ws.send_bytes(bytes(HIGH_WATER // 2)) for _ in range(3)))
    assert str(caught.value).startswith("waited 0.05 s for the application to receive")
    assert line_of(inner, HERE) in str(caught.value)


async def test_a_task_of_the_handler_is_shown_as_well() -> None:
    async def tells(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.start_soon(inner)
        await websocket.receive()

    with pytest.raises(TimeoutError) as caught:
        async with session(tells, timeout=BLINK) as ws:
            await ws.receive()
    assert line_of(tells, "websocket.receive()") in str(caught.value)
    assert line_of(inner, HERE) in str(caught.value)


class StarlettesPage(starlette.endpoints.HTTPEndpoint):
    async def get(self, request: Any) -> Any:
        await inner()


class StarlettesSocket(starlette.endpoints.WebSocketEndpoint):
    async def on_connect(self, websocket: Any) -> None:
        await inner()


async def test_a_class_of_starlettes_is_awaited_by_a_wrapper() -> None:
    client = TestClient(serving(StarlettesSocket), timeout=BLINK)
    with pytest.raises(TimeoutError) as caught:
        await client.websocket("/").__aenter__()
    assert "in on_connect" in str(caught.value)
    assert line_of(inner, HERE) in str(caught.value)
    app = Yaat()
    app.add_route("/", StarlettesPage)
    with pytest.raises(TimeoutError) as caught:
        await app.test_client(timeout=BLINK).get("/")
    assert "in get" in str(caught.value)
    assert line_of(inner, HERE) in str(caught.value)


async def test_what_a_generator_waits_for() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        await inner()

    def old() -> Any:
        yield from inner().__await__()

    class Old:
        def __await__(self) -> Any:
            return old()

    async def counts(websocket: WebSocket) -> None:
        async for _ in source():
            pass

    async def waits(websocket: WebSocket) -> None:
        await Old()

    for handler, step in ((counts, "await inner()"), (waits, "yield from inner()")):
        with pytest.raises(TimeoutError) as caught:
            await session(handler, timeout=BLINK).__aenter__()
        assert step in str(caught.value)
        assert line_of(inner, HERE) in str(caught.value)


async def test_an_application_that_has_ended_is_at_its_end() -> None:
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()

    async with session(greet) as ws:
        await ws.ended()
        assert ws._application.where() == "its end"


async def test_a_bound_of_the_tests_own_stays_what_it_is() -> None:
    async with session(echo) as ws:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(BLINK):
                await ws.receive()
        assert str(caught.value) == ""
        await ws.send_text("nothing was lost")
        assert await ws.receive() == "nothing was lost"


async def test_an_application_that_cannot_be_cancelled_does_not_hang_the_test() -> None:
    release = asyncio.Event()

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        raise LookupError("seen by nobody")

    with pytest.raises(TimeoutError, match="in stubborn"):
        await bare(stubborn, timeout=BLINK).__aenter__()
    release.set()
    await spin()


# Backpressure


async def test_the_application_waits_for_a_test_that_does_not_receive() -> None:
    sent: list[int] = []
    chunk = HIGH_WATER // 16

    async def pour(websocket: WebSocket) -> None:
        await websocket.accept()
        for number in range(64):
            await websocket.send_bytes(bytes(chunk))
            sent.append(number)

    async with session(pour) as ws:
        await spin()
        held = len(sent)
        assert 16 <= held <= 17
        await ws.receive()
        await ws.receive()
        await spin()
        assert held < len(sent) <= held + 2
        assert len([message async for message in ws]) == 62
        assert len(sent) == 64


async def test_an_application_that_waits_learns_that_the_test_has_left() -> None:
    async def pour(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "x" * HIGH_WATER})
        with pytest.raises(OSError, match="the peer has left"):
            await send({"type": "websocket.send", "text": "one too many"})
        ended.set()

    ended = asyncio.Event()
    async with bare(pour) as ws:
        await spin()
        await ws.cut()
        await ended.wait()


async def test_the_test_waits_for_an_application_that_does_not_receive() -> None:
    taken: list[int] = []
    go = asyncio.Event()

    async def sip(websocket: WebSocket) -> None:
        await websocket.accept()
        await go.wait()
        taken.extend([len(data) async for data in websocket.iter_bytes()])

    async with session(sip) as ws:
        for _ in range(4):
            await ws.send_bytes(bytes(HIGH_WATER // 4))
        fifth = asyncio.create_task(ws.send_text("one too many"))
        await spin()
        assert not fifth.done()
        fifth.cancel()
        go.set()
        await ws.send_bytes(b"x")
    assert taken == [HIGH_WATER // 4] * 4 + [1]


async def test_a_test_that_waits_learns_that_the_application_has_closed() -> None:
    async def leave(websocket: WebSocket) -> None:
        await websocket.accept()
        await go.wait()
        await websocket.close(4000)

    go = asyncio.Event()
    async with session(leave) as ws:
        await ws.send_bytes(bytes(HIGH_WATER))
        waiting = asyncio.create_task(ws.send_text("x"))
        await spin()
        go.set()
        with pytest.raises(WebSocketDisconnect) as departure:
            await waiting
        assert departure.value.code == 4000


# Requests


@pytest.fixture
def pages() -> Yaat:
    app = Yaat()

    @app.route("/echo", methods=["GET", "POST"])
    async def echo_page(request: Request) -> JSONResponse:
        body = await request.body()
        facts = {"query": dict(request.query_params), "cookies": request.cookies}
        return JSONResponse({"body": body.decode(), **facts, "x": request.headers.get("x-a")})

    @app.route("/away")
    async def away(request: Request) -> RedirectResponse:
        return RedirectResponse("/echo?redirected=1")

    @app.route("/cookie")
    async def cookie(request: Request) -> TextResponse:
        response = TextResponse("set")
        response.set_cookie("token", "abc")
        return response

    @app.route("/fail")
    async def fail_page(request: Request) -> TextResponse:
        raise LookupError("in the page")

    @app.route("/hang")
    async def hang(request: Request) -> TextResponse:
        await asyncio.Event().wait()  # for ever
        return TextResponse("never")

    @app.route("/timeout")
    async def own_timeout(request: Request) -> TextResponse:
        raise TimeoutError("the page's own")

    app.add_websocket_route("/cookie", cookie_socket)
    return app


async def cookie_socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(websocket.cookies)


async def test_it_is_a_client_of_httpx(pages: Yaat) -> None:
    client = pages.test_client(headers={"x-a": "1"})
    assert isinstance(client, httpx2.AsyncClient)
    response = await client.post("/echo?a=1", content="tëxt", headers={"cookie": "b=2"})
    assert response.json() == {
        "body": "tëxt",
        "query": {"a": "1"},
        "cookies": {"b": "2"},
        "x": "1",
    }
    assert (await client.get("/away")).json()["query"] == {"redirected": "1"}
    assert (await client.get("/away", follow_redirects=False)).status_code == 307
    assert (await client.get("/nowhere")).status_code == 404


async def test_a_cookie_of_a_page_goes_with_a_handshake(pages: Yaat) -> None:
    client = pages.test_client()
    await client.get("/cookie")
    async with client.websocket("/cookie") as ws:
        assert await ws.receive_json() == {"token": "abc"}


async def test_what_a_page_raises(pages: Yaat) -> None:
    with pytest.raises(LookupError, match="in the page") as caught:
        await pages.test_client().get("/fail")
    assert "in fail_page" in shown(caught.value)
    response = await pages.test_client(raise_app_exceptions=False).get("/fail")
    assert (response.status_code, response.text) == (500, "Internal Server Error")


class Patience(BaseMiddleware):
    """Runs what is under it in a task of its own."""


@pytest.mark.parametrize("middlewares", [[], [Patience]])
async def test_a_page_that_does_not_come(pages: Yaat, middlewares: list[Any]) -> None:
    for middleware in middlewares:
        pages.add_middleware(middleware)
    with pytest.raises(TimeoutError) as caught:
        await pages.test_client(timeout=BLINK).get("/hang")
    text = str(caught.value)
    assert text.startswith("GET http://testserver/hang was not answered within 0.05 s; the app")
    assert f'File "{__file__}"' in text
    assert "in hang\n    await asyncio.Event().wait()  # for ever" in text


async def test_a_timeout_of_the_pages_own(pages: Yaat) -> None:
    with pytest.raises(TimeoutError, match=r"^the page's own$"):
        await pages.test_client().get("/timeout")


async def test_a_request_that_is_given_up(pages: Yaat) -> None:
    request = asyncio.create_task(pages.test_client().get("/hang"))
    await spin()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


# The lifespan


Ways = dict[str, tuple[str, str]]
"""Of a phase: what is answered (complete, failed, or nothing), and what is done then."""


def living(events: list[str], ways: Ways | None = None) -> ASGIApp:
    """Return a bare application with a lifespan that may go wrong."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        for phase in ("startup", "shutdown"):
            assert await receive() == {"type": f"lifespan.{phase}"}
            events.append(phase)
            answer, then = (ways or {}).get(phase, ("complete", ""))
            if answer:
                word, *message = answer.split(": ")
                why = {"message": message[0]} if message else {}
                await send({"type": f"lifespan.{phase}.{word}", **why})
            if then == "hang":
                await asyncio.Event().wait()  # for ever
            if then == "raise":
                raise LookupError(phase)
            if then == "return":
                return

    return app


async def test_it_runs_the_lifespan() -> None:
    events: list[str] = []
    async with TestClient(living(events)) as client:
        assert events == ["startup"]
    assert events == ["startup", "shutdown"]
    assert client.is_closed


async def test_without_async_with_there_is_none(pages: Yaat) -> None:
    events: list[str] = []
    pages.on_startup.append(lambda: events.append("startup"))
    assert (await pages.test_client().get("/echo")).status_code == 200
    assert events == []


FAILURES: list[tuple[Ways, type[Exception], str]] = [
    ({"startup": ("failed: no database", "return")}, UsageError, "startup failed: no database"),
    ({"startup": ("failed", "return")}, UsageError, "startup failed: it does not say why"),
    ({"startup": ("failed: no database", "raise")}, LookupError, "startup"),
    ({"startup": ("complete", "raise")}, LookupError, "startup"),
    ({"shutdown": ("", "raise")}, LookupError, "shutdown"),
    ({"shutdown": ("failed: no database", "return")}, UsageError, "shutdown failed: no database"),
    ({"shutdown": ("failed", "return")}, UsageError, "shutdown failed: it does not say why"),
    ({"shutdown": ("failed: no database", "raise")}, LookupError, "shutdown"),
    ({"shutdown": ("complete", "raise")}, LookupError, "shutdown"),
]


@pytest.mark.parametrize(("ways", "error", "text"), FAILURES)
async def test_what_fails_in_a_lifespan_fails_in_the_test(
    ways: Ways, error: type[Exception], text: str
) -> None:
    events: list[str] = []
    with pytest.raises(error, match=f"^{text}$"):
        async with TestClient(living(events, ways)):
            events.append("up")
    starts = ways.get("startup", ("complete", ""))[0] == "complete"
    assert ("up" in events) is starts


HANGS: list[tuple[str, Ways]] = [
    ("startup", {"startup": ("", "hang")}),
    ("startup", {"startup": ("failed: no database", "hang")}),
    ("shutdown", {"startup": ("complete", "hang")}),
    ("shutdown", {"shutdown": ("", "hang")}),
    ("shutdown", {"shutdown": ("failed: no database", "hang")}),
    ("shutdown", {"shutdown": ("complete", "hang")}),
]


@pytest.mark.parametrize(("phase", "ways"), HANGS)
async def test_what_hangs_in_a_lifespan_says_where(phase: str, ways: Ways) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with TestClient(living([], ways), timeout=BLINK):
            pass
    text = str(caught.value)
    assert text.startswith(f"{phase} took more than 0.05 s; the application is at")
    assert "in app\n    await asyncio.Event().wait()  # for ever" in text


async def test_a_startup_that_raises_without_an_answer_is_no_lifespan() -> None:
    async with TestClient(living([], {"startup": ("", "raise")})):
        pass


async def unsupported(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError("no such thing")
    await TextResponse("a page")(scope, receive, send)


async def ignorant(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        await TextResponse("a page")(scope, receive, send)


@pytest.mark.parametrize("app", [unsupported, ignorant])
async def test_an_application_without_a_lifespan(app: ASGIApp) -> None:
    """ASGI, "Lifespan Protocol": "the server must continue but not send any lifespan events"."""
    async with TestClient(app) as client:
        assert (await client.get("/")).text == "a page"


async def test_a_startup_that_is_given_up() -> None:
    events: list[str] = []
    starting = asyncio.create_task(
        TestClient(living(events, {"startup": ("", "hang")})).__aenter__()
    )
    await spin()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert events == ["startup"]


async def test_shutdown_also_comes_after_a_test_that_fails() -> None:
    events: list[str] = []
    with pytest.raises(ZeroDivisionError):
        async with TestClient(living(events)):
            raise ZeroDivisionError
    assert events == ["startup", "shutdown"]


async def test_leaving_what_was_never_entered(pages: Yaat) -> None:
    await pages.test_client().__aexit__()


async def test_every_connection_gets_a_copy_of_the_state() -> None:
    @contextlib.asynccontextmanager
    async def live(app: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"shared": ["x"], "word": "hi"}

    app = Yaat(lifespan=live)

    @app.route("/")
    async def change(request: Request) -> TextResponse:
        request.state.word += "!"
        request.state.shared.append("y")
        return TextResponse(request.state.word)

    @app.websocket_route("/")
    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json([websocket.state.word, websocket.state.shared])

    async with app.test_client() as client:
        for _ in range(2):
            assert (await client.get("/")).text == "hi!"
        async with client.websocket("/") as ws:
            assert await ws.receive_json() == ["hi", ["x", "y", "y"]]


# Other applications


@pytest.mark.parametrize("make", [fastapi.FastAPI, starlette.applications.Starlette, Yaat])
async def test_it_tests_any_application(make: Callable[[], Any]) -> None:
    app = make()
    app.mount("/ws", serving(echo))
    async with TestClient(app) as client:
        assert (await client.get("/nowhere")).status_code == 404
        async with client.websocket("/ws/") as ws:
            await ws.send_text("hi")
            assert await ws.receive_text() == "hi"


async def test_what_fastapis_own_socket_raises() -> None:
    app = fastapi.FastAPI()

    @app.websocket("/ws")
    async def socket(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        raise LookupError("in fastapi")

    async with TestClient(app).websocket("/ws") as ws:
        with pytest.raises(LookupError, match="in fastapi"):
            await ws.receive()


def test_pytest_takes_it_for_no_test_case() -> None:
    assert TestClient.__test__ is False


async def test_an_http_exception_is_no_failure() -> None:
    async def nowhere(websocket: WebSocket) -> None:
        raise HTTPException(404)

    with pytest.raises(HandshakeRefused) as refused:
        await session(nowhere).__aenter__()
    assert refused.value.status == 404
