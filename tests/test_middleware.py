"""Middleware: Yaat's four hooks over everything that is ASGI, CORS, Starlette's and others'."""

import asyncio
import importlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import Response as StarletteResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from starlette_exporter import PrometheusMiddleware

import yaat.middleware
from yaat import Observer, Policy, Request, WebSocket, Yaat
from yaat.background import BackgroundTask
from yaat.exceptions import Refused, StateError, WebSocketDisconnect
from yaat.middleware import BaseMiddleware, CORSMiddleware, Middleware
from yaat.responses import JSONResponse, Response, StreamResponse, TextResponse
from yaat.testing import HandshakeRefused, TestClient
from yaat.types import ASGIApp, Message, Receive, Scope, Send

HTTP: dict[str, Any] = {
    "type": "http",
    "asgi": {"spec_version": "2.4"},
    "method": "GET",
    "path": "/",
    "headers": [],
    "query_string": b"",
}


@pytest.fixture
def app() -> Yaat:
    app = Yaat()

    @app.route("/")
    async def home(_: Request) -> TextResponse:
        return TextResponse("home", headers={"x-app": "yes"})

    @app.route("/echo", methods=["POST"])
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


@pytest.fixture
def log() -> list[str]:
    return []


async def never() -> Message:
    """Receive from a client that neither sends nor leaves."""
    return await asyncio.Event().wait()  # type: ignore[return-value]


def plain(sent: list[Message]) -> Send:
    async def send(message: Message) -> None:
        sent.append(message)

    return send


class Noting(BaseMiddleware):
    """Notes the hooks that are called."""

    def __init__(self, app: ASGIApp, name: str, log: list[str]) -> None:
        super().__init__(app)
        self.name, self.log = name, log

    async def process_request(self, request: Request) -> None:
        self.log.append(f"{self.name} request {request.path}")

    async def process_response(self, response: Response) -> None:
        self.log.append(f"{self.name} response {response.status_code}")

    async def handle_websocket(self, websocket: WebSocket) -> None:
        self.log.append(f"{self.name} websocket {websocket.path}")
        await super().handle_websocket(websocket)
        self.log.append(f"{self.name} websocket end")


class Wrapper:
    """A pure ASGI middleware that copies the scope and wraps both directions."""

    def __init__(self, app: ASGIApp, log: list[str]) -> None:
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wrapped_receive() -> Message:
            message = await receive()
            self.log.append(message["type"])
            return message

        async def wrapped_send(message: Message) -> None:
            self.log.append(message["type"])
            await send(message)

        await self.app({**scope, "wrapped": True}, wrapped_receive, wrapped_send)


class Greeting(BaseMiddleware):
    """Changes every part of a response."""

    async def process_response(self, response: Response) -> None:
        response.status_code = 203
        response.headers["x-greeting"] = "hello"
        response.body = bytes(response.body).upper()


# Requests


async def test_without_a_hook_nothing_changes(app: Yaat) -> None:
    app.add_middleware(BaseMiddleware)
    client = app.test_client()
    response = await client.get("/")
    assert (response.status_code, response.text) == (200, "home")
    assert response.headers["x-app"] == "yes"
    assert (await client.get("/none")).status_code == 404
    assert (await client.post("/echo", content=b"x" * 100_000)).content == b"x" * 100_000


async def test_a_response_can_be_changed(app: Yaat) -> None:
    app.add_middleware(Greeting)
    response = await app.test_client().get("/")
    assert (response.status_code, response.text) == (203, "HOME")
    assert response.headers["x-greeting"] == "hello"
    assert response.headers["content-length"] == "4"


async def test_a_change_does_not_outlive_the_request(log: list[str]) -> None:
    once = TextResponse("kept", headers={"x-app": "yes"})

    async def handler(_: Request) -> StarletteResponse:
        return once

    class Adding(BaseMiddleware):
        async def process_response(self, response: Response) -> None:
            response.headers.append("x-added", "1")

    client = TestClient(Adding(Starlette(routes=[Route("/", handler)])))
    for _ in range(2):
        assert (await client.get("/")).headers.get_list("x-added") == ["1"]
    assert "x-added" not in once.headers


async def test_a_request_can_be_changed() -> None:
    app = Yaat()

    class Naming(BaseMiddleware):
        async def process_request(self, request: Request) -> None:
            request.state.name = "you"
            request.scope["server"] = "somewhere"

    @app.route("/")
    async def home(request: Request) -> JSONResponse:
        return JSONResponse([request.state.name, request.scope["server"], request.url])

    app.add_middleware(Naming)
    answer = (await app.test_client().get("/")).json()
    assert answer == ["you", "somewhere", "http://testserver/"]


class Reading(BaseMiddleware):
    """Reads the body of every request, in one of the ways there are."""

    def __init__(self, app: ASGIApp, how: str, log: list[str]) -> None:
        super().__init__(app)
        self.how, self.log = how, log

    async def process_request(self, request: Request) -> None:
        if self.how == "body":
            self.log.append((await request.body()).decode())
        elif self.how == "stream":
            self.log.append("".join([piece.decode() async for piece in request.stream()]))
        else:
            stream = request.stream()
            self.log.append((await anext(stream)).decode())
            await stream.aclose()


async def pieces() -> AsyncIterator[bytes]:
    yield b"one "
    yield b"two"


@pytest.mark.parametrize(
    ("how", "read", "left"),
    [("body", "one two", b"one two"), ("stream", "one two", b""), ("a piece", "one ", b"two")],
)
async def test_a_body_may_be_read(
    app: Yaat, log: list[str], how: str, read: str, left: bytes
) -> None:
    app.add_middleware(Reading, how, log)
    response = await app.test_client().post("/echo", content=pieces())
    assert log == [read]
    assert response.content == left


async def test_after_a_body_that_was_read_comes_the_disconnect(log: list[str]) -> None:
    async def raw(_: Scope, receive: Receive, send: Send) -> None:
        log.extend([(await receive())["type"], (await receive())["type"]])
        await Response()(HTTP, receive, send)

    messages = iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    await Reading(raw, "body", log)(dict(HTTP), receive, plain([]))
    assert log == ["", "http.request", "http.disconnect"]


async def test_the_last_added_is_the_outermost(app: Yaat, log: list[str]) -> None:
    app.add_middleware(Noting, "inner", log)
    app.add_middleware(Noting, "outer", log)
    await app.test_client().get("/")
    assert log == [
        "outer request /",
        "inner request /",
        "inner response 200",
        "outer response 200",
    ]


async def test_a_layer_of_ones_own_kind_is_called_by_its_method() -> None:
    class Answering(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            return TextResponse("mine")

    seen: list[Response] = []

    class Seeing(BaseMiddleware):
        async def process_response(self, response: Response) -> None:
            seen.append(response)

    response = await TestClient(Seeing(Answering(Yaat()))).get("/")
    assert response.text == "mine"
    assert isinstance(seen[0], TextResponse)


async def test_what_stands_between_two_layers_is_not_skipped(app: Yaat, log: list[str]) -> None:
    app.add_middleware(Noting, "inner", log)
    app.add_middleware(Wrapper, log)
    app.add_middleware(Noting, "outer", log)
    await app.test_client().get("/")
    assert log == [
        "outer request /",
        "inner request /",
        "inner response 200",
        "http.response.start",
        "http.response.body",
        "outer response 200",
    ]


async def test_a_call_of_ones_own_is_not_skipped(log: list[str]) -> None:
    class Calling(BaseMiddleware):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            log.append("called")
            await super().__call__(scope, receive, send)

    assert (await TestClient(BaseMiddleware(Calling(TextResponse("x")))).get("/")).text == "x"
    assert log == ["called"]


async def test_everything_else_passes_by(log: list[str]) -> None:
    async def raw(scope: Scope, _: Receive, __: Send) -> None:
        log.append(scope["type"])

    await BaseMiddleware(raw)({"type": "lifespan"}, never, plain([]))
    assert log == ["lifespan"]


async def test_the_lifespan_runs_under_it(log: list[str]) -> None:
    app = Yaat(on_startup=[lambda: log.append("up")], on_shutdown=[lambda: log.append("down")])
    async with TestClient(BaseMiddleware(app)):
        assert log == ["up"]
    assert log == ["up", "down"]


async def fastapi_home() -> dict[str, str]:
    return {"from": "fastapi"}


async def starlette_home(_: Any) -> StarletteResponse:
    return JSONResponse({"from": "starlette"})


def fastapi() -> ASGIApp:
    app = FastAPI()
    app.get("/")(fastapi_home)
    app.add_middleware(Greeting)
    return app


def starlette() -> ASGIApp:
    return Greeting(Starlette(routes=[Route("/", starlette_home)]))


def mounted() -> ASGIApp:
    return Greeting(Starlette(routes=[Mount("/", FastAPI(routes=[Route("/", starlette_home)]))]))


@pytest.mark.parametrize("make", [fastapi, starlette, mounted])
async def test_it_works_over_other_frameworks(make: Callable[[], ASGIApp]) -> None:
    response = await TestClient(make()).get("/")
    assert response.status_code == 203
    assert response.text.startswith('{"FROM":')
    assert response.headers["x-greeting"] == "hello"


# Streams


class Stream:
    """An application that streams one piece whenever it is told to."""

    def __init__(self) -> None:
        self.next = asyncio.Event()
        self.ended = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while True:
                await self.next.wait()
                self.next.clear()
                yield b"piece"
        finally:
            self.ended.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        source = self.pieces()
        try:
            await StreamResponse(source)(scope, receive, send)
        finally:
            await source.aclose()  # type: ignore[attr-defined]


async def test_a_stream_passes_piece_by_piece() -> None:
    sent: asyncio.Queue[Message] = asyncio.Queue()
    stream = Stream()
    app = BaseMiddleware(BaseMiddleware(Wrapper(BaseMiddleware(stream), [])))
    task = asyncio.create_task(app(dict(HTTP), never, sent.put))
    assert (await sent.get())["type"] == "http.response.start"  # before there is any piece
    for _ in range(3):
        assert sent.empty()
        stream.next.set()
        assert (await sent.get())["body"] == b"piece"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.ended.is_set()


async def test_a_client_that_leaves_ends_the_stream() -> None:
    stream = Stream()
    stream.next.set()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    with pytest.raises(ClientDisconnect):
        await BaseMiddleware(stream)(dict(HTTP), never, send)
    assert stream.ended.is_set()


async def test_a_client_that_leaves_ends_the_stream_of_an_older_server() -> None:
    stream = Stream()
    begun = asyncio.Event()

    async def receive() -> Message:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        begun.set()

    await BaseMiddleware(stream)({**HTTP, "asgi": {"spec_version": "2.0"}}, receive, send)
    assert stream.ended.is_set()


async def test_backpressure_reaches_the_stream() -> None:
    let_through = asyncio.Event()
    made: list[int] = []

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    async def send(_: Message) -> None:
        await let_through.wait()

    app = BaseMiddleware(StreamResponse(numbers()))
    task = asyncio.create_task(app(dict(HTTP), never, send))
    for _ in range(9):
        await asyncio.sleep(0)
    assert made == []
    let_through.set()
    await task
    assert made == [0, 1, 2]


async def test_a_stream_has_no_body_until_one_replaces_it() -> None:
    class Replacing(BaseMiddleware):
        async def process_response(self, response: Response) -> None:
            assert not hasattr(response, "body")
            response.body = b"whole"

    stream = Stream()
    sent: list[Message] = []
    await Replacing(stream)(dict(HTTP), never, plain(sent))
    assert (b"content-length", b"5") in sent[0]["headers"]
    assert [message.get("body") for message in sent] == [None, b"whole"]


async def test_an_endless_stream_that_nobody_wants_is_ended() -> None:
    stream = Stream()
    reached = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        reached.set()  # never: it is held until somebody wants it
        await stream(scope, receive, send)

    class Other(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            await super().handle_request(request)
            return TextResponse("other")

    assert (await TestClient(Other(slow)).get("/")).text == "other"
    assert not reached.is_set()


# What comes before, after and instead of a response


async def test_background_work_is_done_after_the_response(log: list[str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await TextResponse("x", background=BackgroundTask(log.append, "work"))(scope, receive, send)

    await Noting(Wrapper(app, log), "it", log)(dict(HTTP), never, plain([]))
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])
        assert log.count("work") == 1

    assert log[-1] == "work"
    await BaseMiddleware(app)(dict(HTTP), never, send)
    assert (sent, log.count("work")) == (["http.response.start", "http.response.body"], 2)


async def test_background_work_is_done_when_another_response_is_sent(log: list[str]) -> None:
    class Other(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            await super().handle_request(request)
            assert log == []
            return TextResponse("other")

    app = Other(TextResponse("x", background=BackgroundTask(log.append, "work")))
    assert (await TestClient(app).get("/")).text == "other"
    assert log == ["work"]


async def test_what_background_work_raises_is_raised() -> None:
    def fail() -> None:
        raise LookupError("in the background")

    class Other(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            await super().handle_request(request)
            return TextResponse("other")

    for layer in (BaseMiddleware, Other):
        sent: list[Message] = []
        app = layer(TextResponse("x", background=BackgroundTask(fail)))
        with pytest.raises(LookupError, match="in the background"):
            await app(dict(HTTP), never, plain(sent))
        assert len(sent) == 2


async def test_background_work_can_be_added(log: list[str]) -> None:
    class Adding(BaseMiddleware):
        async def process_response(self, response: Response) -> None:
            response.background = BackgroundTask(log.append, "added")

    app = Adding(TextResponse("x", background=BackgroundTask(log.append, "own")))
    assert (await TestClient(app).get("/")).text == "x"
    assert log == ["own", "added"]


async def test_what_the_application_raises_can_be_caught(log: list[str]) -> None:
    async def failing(*_: Any) -> None:
        raise LookupError("inside")

    class Catching(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            try:
                return await super().handle_request(request)
            except LookupError as error:
                return TextResponse(str(error), status_code=503)

    response = await TestClient(Catching(failing)).get("/")
    assert (response.status_code, response.text) == (503, "'inside'".strip("'"))
    with pytest.raises(LookupError, match="inside"):
        await TestClient(BaseMiddleware(BaseMiddleware(failing))).get("/")


async def test_what_is_raised_after_the_response_began_is_raised() -> None:
    async def failing(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError("too late")

    sent: list[Message] = []
    with pytest.raises(LookupError, match="too late"):
        await BaseMiddleware(failing)(dict(HTTP), never, plain(sent))
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_what_is_raised_before_the_body_that_was_announced_comes_in_its_place() -> None:
    async def failing(_: Scope, __: Receive, send: Send) -> None:
        headers = [(b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        raise LookupError("no body")

    sent: list[Message] = []
    with pytest.raises(LookupError, match="no body"):
        await BaseMiddleware(failing)(dict(HTTP), never, plain(sent))
    assert sent == []


@pytest.mark.parametrize("start", [[], [{"type": "http.response.start", "status": 204}]])
async def test_an_application_has_to_respond(start: list[Message]) -> None:
    async def silent(_: Scope, __: Receive, send: Send) -> None:
        for message in start:
            await send(message)

    with pytest.raises(RuntimeError, match="without a response"):
        await BaseMiddleware(silent)(dict(HTTP), never, plain([]))


async def test_a_response_without_a_body_passes(app: Yaat) -> None:
    class Seeing(BaseMiddleware):
        async def process_response(self, response: Response) -> None:
            assert response.body == b""

    response = await TestClient(Seeing(Response(status_code=204))).get("/")
    assert response.status_code == 204
    assert "content-length" not in response.headers


async def test_messages_before_the_response_pass() -> None:
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>"]}

    async def hinting(scope: Scope, receive: Receive, send: Send) -> None:
        await send(hint)
        await TextResponse("x")(scope, receive, send)

    sent: list[Message] = []
    await BaseMiddleware(hinting)(dict(HTTP), never, plain(sent))
    assert sent[0] == hint
    assert [message["type"] for message in sent[1:]] == [
        "http.response.start",
        "http.response.body",
    ]


async def test_messages_that_only_some_servers_know_pass() -> None:
    async def by_path(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/a"})

    sent: list[Message] = []
    await BaseMiddleware(by_path)(dict(HTTP), never, plain(sent))
    assert sent[1] == {"type": "http.response.pathsend", "path": "/a"}


@pytest.mark.parametrize("response", [TextResponse("x"), StreamResponse(iter([b"x"]))])
async def test_a_hook_that_fails_ends_the_application(
    response: StarletteResponse, log: list[str]
) -> None:
    response.background = BackgroundTask(log.append, "work")

    class Failing(BaseMiddleware):
        async def process_response(self, response: Response) -> None:
            raise LookupError("in the hook")

    with pytest.raises(LookupError, match="in the hook"):
        await Failing(response)(dict(HTTP), never, plain([]))
    assert log == []


async def test_an_application_that_takes_too_long_can_be_given_up(log: list[str]) -> None:
    async def slow(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # a clean-up that is not to be interrupted again
            log.append("ended")

    class Impatient(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            try:
                async with asyncio.timeout(0):
                    return await super().handle_request(request)
            except TimeoutError:
                return TextResponse("too slow", status_code=504)

    assert (await TestClient(Impatient(slow)).get("/")).status_code == 504
    assert log == ["ended"]


async def test_a_request_that_the_server_cancels_cancels_the_application(log: list[str]) -> None:
    begun = asyncio.Event()

    async def slow(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            log.append("ended")

    task = asyncio.create_task(BaseMiddleware(slow)(dict(HTTP), never, plain([])))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["ended"]


async def test_a_layer_may_be_asked_without_a_server() -> None:
    response = await BaseMiddleware(TextResponse("x")).handle_request(Request(dict(HTTP)))
    sent: list[Message] = []
    await response(dict(HTTP), never, plain(sent))
    assert sent[1]["body"] == b"x"


async def test_an_answer_may_be_asked_for_again() -> None:
    answers = iter([TextResponse("no", status_code=503), TextResponse("yes")])

    async def flaky(scope: Scope, receive: Receive, send: Send) -> None:
        await next(answers)(scope, receive, send)

    class Retrying(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            response = await super().handle_request(request)
            if response.status_code == 503:
                response = await super().handle_request(request)
            return response

    assert (await TestClient(Retrying(flaky)).get("/")).text == "yes"


# WebSockets


async def test_a_websocket_passes(app: Yaat, log: list[str]) -> None:
    app.add_middleware(BaseMiddleware)
    app.add_middleware(Noting, "inner", log)
    app.add_middleware(Noting, "outer", log)
    async with app.test_client().websocket("/ws") as websocket:
        await websocket.send_text("hello")
        assert await websocket.receive_text() == "hello"
    assert log == [
        "outer websocket /ws",
        "inner websocket /ws",
        "inner websocket end",
        "outer websocket end",
    ]


async def test_a_connection_has_one_websocket() -> None:
    app = Yaat()
    seen: list[WebSocket] = []

    class Seeing(BaseMiddleware):
        async def handle_websocket(self, websocket: WebSocket) -> None:
            seen.append(websocket)
            await super().handle_websocket(websocket)

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        seen.append(websocket)
        await websocket.accept()

    app.add_middleware(Seeing)
    app.add_middleware(Wrapper, [])
    app.add_middleware(Seeing)
    async with app.test_client().websocket("/ws"):
        pass
    assert len(seen) == 3
    assert len({id(websocket) for websocket in seen}) == 1


class Counting:
    """A pure ASGI middleware that counts and alters every message of a socket."""

    def __init__(self, app: ASGIApp, counts: dict[str, int]) -> None:
        self.app, self.counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted_receive() -> Message:
            return self.altered(await receive(), "<")

        async def counted_send(message: Message) -> None:
            await send(self.altered(message, ">"))

        await self.app(scope, counted_receive, counted_send)

    def altered(self, message: Message, mark: str) -> Message:
        self.counts[message["type"]] = self.counts.get(message["type"], 0) + 1
        if message.get("text") is not None:
            return {**message, "text": mark + message["text"]}
        return message


async def test_every_message_passes_what_stands_between_two_layers(app: Yaat) -> None:
    counts: dict[str, int] = {}
    app.add_middleware(BaseMiddleware)
    app.add_middleware(Counting, counts)
    app.add_middleware(BaseMiddleware)
    async with app.test_client().websocket("/ws") as websocket:
        for number in range(50):
            await websocket.send_text(f"{number}")
            assert await websocket.receive_text() == f"><{number}"
    assert counts == {
        "websocket.connect": 1,
        "websocket.accept": 1,
        "websocket.receive": 50,
        "websocket.send": 50,
        "websocket.disconnect": 1,
    }


async def test_what_changes_the_scope_is_not_undone() -> None:
    app = Yaat()

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(websocket.scope["wrapped"])

    app.add_middleware(BaseMiddleware)
    app.add_middleware(Wrapper, [])
    app.add_middleware(BaseMiddleware)
    async with app.test_client().websocket("/ws") as websocket:
        assert await websocket.receive_json() is True


@pytest.fixture
def failures(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was logged as an error."""
    with caplog.at_level(logging.ERROR):
        yield lambda: [record.name for record in caplog.records]


Failures = Callable[[], list[str]]


class Refusing(BaseMiddleware):
    async def handle_websocket(self, websocket: WebSocket) -> None:
        if "authorization" not in websocket.headers:
            raise Refused("who are you?", status=401)
        await super().handle_websocket(websocket)


async def test_a_websocket_can_be_refused(app: Yaat, failures: Failures) -> None:
    app.add_middleware(Refusing)
    client = app.test_client(headers={})
    with pytest.raises(HandshakeRefused) as refused:
        await client.websocket("/ws").__aenter__()
    assert (refused.value.status, refused.value.text) == (401, "who are you?")
    async with client.websocket("/ws", headers={"authorization": "me"}) as websocket:
        await websocket.send_text("hello")
        assert await websocket.receive_text() == "hello"
    assert failures() == []


async def test_a_websocket_can_be_closed(app: Yaat) -> None:
    class Closing(BaseMiddleware):
        async def handle_websocket(self, websocket: WebSocket) -> None:
            await websocket.close()

    app.add_middleware(Closing)
    app.add_middleware(Wrapper, [])
    app.add_middleware(BaseMiddleware)
    with pytest.raises(HandshakeRefused) as refused:
        await app.test_client().websocket("/ws").__aenter__()
    assert refused.value.status == 403


async def test_a_websocket_that_nobody_takes_is_refused(app: Yaat) -> None:
    class Ignoring(BaseMiddleware):
        async def handle_websocket(self, websocket: WebSocket) -> None:
            pass

    app.add_middleware(Ignoring)
    with pytest.raises(HandshakeRefused) as refused:
        await app.test_client().websocket("/ws").__aenter__()
    assert refused.value.status == 403


async def test_a_layer_may_be_the_handler_itself(app: Yaat) -> None:
    class Handling(BaseMiddleware):
        async def handle_websocket(self, websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text("from the middleware")

    app.add_middleware(Handling)
    async with app.test_client().websocket("/ws") as websocket:
        assert await websocket.receive_text() == "from the middleware"
        with pytest.raises(WebSocketDisconnect) as ended:
            await websocket.receive()
    assert ended.value.code == 1000


async def test_a_layer_that_has_accepted_may_pass_on(failures: Failures) -> None:
    app = Yaat()

    class Accepting(BaseMiddleware):
        async def handle_websocket(self, websocket: WebSocket) -> None:
            await websocket.accept()
            await super().handle_websocket(websocket)

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        with pytest.raises(StateError):
            await websocket.accept()
        await websocket.send_text("accepted once")

    app.add_middleware(Accepting)
    async with app.test_client().websocket("/ws") as websocket:
        assert await websocket.receive_text() == "accepted once"
    assert failures() == []


class Broken(BaseMiddleware):
    """Fails at the moment that it is told to."""

    def __init__(self, app: ASGIApp, when: str) -> None:
        super().__init__(app)
        self.when = when

    async def handle_websocket(self, websocket: WebSocket) -> None:
        if self.when == "accepted":
            await websocket.accept()
        if self.when in ("first", "accepted"):
            raise LookupError(self.when)
        await super().handle_websocket(websocket)
        raise LookupError(self.when)


@pytest.mark.parametrize("when", ["first", "accepted", "last"])
async def test_a_layer_that_fails_ends_the_connection(
    app: Yaat, when: str, failures: Failures
) -> None:
    app.add_middleware(Broken, when)
    client = app.test_client(raise_app_exceptions=False)
    if when == "first":
        with pytest.raises(HandshakeRefused) as refused:
            await client.websocket("/ws").__aenter__()
        assert refused.value.status == 500
    else:
        async with client.websocket("/ws") as websocket:
            if when == "accepted":
                with pytest.raises(WebSocketDisconnect) as ended:
                    await websocket.receive()
                assert ended.value.code == 1011
    assert failures() == ["yaat.error"]


async def test_a_layer_tells_the_observers_as_an_endpoint_does(log: list[str]) -> None:
    class Told(Observer):
        def opened(self, scope: Scope) -> None:
            log.append("opened")

        def refused(self, scope: Scope, status: int, reason: str) -> None:
            log.append(f"refused {status} {reason}")

        def closed(self, scope: Scope, code: int, reason: str) -> None:
            log.append(f"closed {code}")

    app = Yaat(observers=[Told()])

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()

    app.add_middleware(Refusing)
    with pytest.raises(HandshakeRefused):
        await app.test_client().websocket("/ws").__aenter__()
    assert log == ["opened", "refused 401 who are you?"]
    log.clear()
    async with app.test_client().websocket("/ws", headers={"authorization": "me"}):
        pass
    assert log == ["opened", "closed 1000"]


async def foreign_echo(websocket: StarletteWebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close(3001)


async def foreign_failure(_: StarletteWebSocket) -> None:
    raise LookupError("in the other framework")


def foreign(framework: type[Starlette]) -> ASGIApp:
    routes = [WebSocketRoute("/ws", foreign_echo), WebSocketRoute("/fail", foreign_failure)]
    return framework(routes=routes)


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_a_websocket_passes_to_another_framework(
    framework: type[Starlette], log: list[str], failures: Failures
) -> None:
    app = Noting(foreign(framework), "it", log)
    async with TestClient(app).websocket("/ws") as websocket:
        await websocket.send_text("hello")
        assert await websocket.receive_text() == "hello"
        with pytest.raises(WebSocketDisconnect) as ended:
            await websocket.receive()
        assert ended.value.code == 3001
    assert log == ["it websocket /ws", "it websocket end"]
    assert failures() == []


@pytest.mark.parametrize("path", ["/fail", "/none"])
async def test_what_another_framework_does_is_left_to_it(path: str, failures: Failures) -> None:
    sent: dict[bool, list[str]] = {}
    for app in (foreign(Starlette), BaseMiddleware(foreign(Starlette))):
        types = sent.setdefault(isinstance(app, BaseMiddleware), [])
        with pytest.raises((LookupError, HandshakeRefused)) as caught:
            await TestClient(Wrapper(app, types)).websocket(path).__aenter__()
        types.append(repr(caught.value))
    assert sent[True] == sent[False]
    assert failures() == []


async def test_a_layer_passes_on_by_calling_the_next_as_asgi() -> None:
    class Calling(BaseMiddleware):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)

    async with TestClient(Calling(foreign(Starlette))).websocket("/ws") as websocket:
        await websocket.send_text("hello")
        assert await websocket.receive_text() == "hello"


# CORS


def cors_client(app: Yaat, **options: Any) -> httpx2.AsyncClient:
    app.add_middleware(CORSMiddleware, **options)
    return app.test_client()


def preflight(origin: str, method: str = "GET", headers: str = "") -> dict[str, str]:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    return asked | ({"Access-Control-Request-Headers": headers} if headers else {})


ORIGIN = "https://page.example"


@pytest.mark.parametrize("credentials", [False, True])
async def test_cors_for_all_origins_never_names_one_with_credentials(
    app: Yaat,
    credentials: bool,  # noqa: FBT001
) -> None:
    client = cors_client(
        app,
        allow_origins=["*"],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["x-app"],
        allow_credentials=credentials,
    )
    response = await client.options("/", headers=preflight(ORIGIN, "PUT", "x-tag"))
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-allow-headers"] == "x-tag"
    response = await client.get("/", headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["access-control-expose-headers"] == "x-app"
    assert response.headers["vary"] == "Origin"
    with_cookie = await client.get("/", headers={"Origin": ORIGIN, "Cookie": "a=b"})
    named = with_cookie.headers["access-control-allow-origin"] == ORIGIN
    assert named is not credentials
    assert ("access-control-allow-credentials" in with_cookie.headers) is credentials


async def test_cors_for_some_origins(app: Yaat) -> None:
    client = cors_client(app, allow_origins=[ORIGIN], allow_credentials=True)
    response = await client.options("/", headers=preflight(ORIGIN))
    assert response.headers["access-control-allow-origin"] == ORIGIN
    response = await client.get("/", headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in (await client.get("/")).headers


async def test_cors_says_what_it_disallows(app: Yaat) -> None:
    client = cors_client(app, allow_origins=[ORIGIN])
    asked = preflight("https://evil.example", "PUT", "x-tag")
    response = await client.options("/", headers=asked)
    assert (response.status_code, response.text) == (
        400,
        "Disallowed cors Origin, Method, Headers",
    )
    assert "access-control-allow-origin" not in response.headers


async def test_cors_for_origins_of_a_pattern(app: Yaat) -> None:
    client = cors_client(app, allow_origin_regex=r"https://.*\.example")
    response = await client.options("/", headers=preflight("https://page.test"))
    assert response.text == "Disallowed cors Origin"
    assert (await client.options("/", headers=preflight(ORIGIN))).status_code == 200


async def test_cors_without_headers_in_the_response() -> None:
    async def bare(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    sent: list[Message] = []
    scope = {**HTTP, "headers": [(b"origin", ORIGIN.encode())]}
    await CORSMiddleware(bare, allow_origins=["*"])(scope, never, plain(sent))
    assert (b"access-control-allow-origin", b"*") in sent[0]["headers"]


async def test_cors_is_not_for_websockets() -> None:
    app = Yaat(policy=Policy(origins="*"))

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()

    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN])
    headers = {"origin": "https://evil.example"}
    async with app.test_client().websocket("/ws", headers=headers) as websocket:
        assert "access-control-allow-origin" not in websocket.headers


# Others' middleware, over requests and sockets


async def echoes(client: TestClient) -> None:
    """See that a socket and its end are as they are without any middleware."""
    async with client.websocket("/ws") as websocket:
        for number in range(20):
            await websocket.send_text(f"{number}")
            assert await websocket.receive_text() == f"{number}"
        await websocket.close(3000, "enough")
        await websocket.ended()
    with pytest.raises(HandshakeRefused) as refused:
        await client.websocket("/none").__aenter__()
    assert refused.value.status == 404


async def test_sessions() -> None:
    app = Yaat()

    @app.route("/")
    async def home(request: Request) -> JSONResponse:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return JSONResponse(request.session["visits"])

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(websocket.session)
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    app.add_middleware(yaat.middleware.SessionMiddleware, secret_key="a secret", https_only=False)
    client = app.test_client()
    assert [(await client.get("/")).json() for _ in range(2)] == [1, 2]
    async with client.websocket("/ws") as websocket:
        assert await websocket.receive_json() == {"visits": 2}
        await websocket.send_text("hello")
        assert await websocket.receive_text() == "hello"


async def test_gzip(app: Yaat) -> None:
    @app.route("/long")
    async def long(_: Request) -> TextResponse:
        return TextResponse("a" * 5000)

    app.add_middleware(BaseMiddleware)
    app.add_middleware(yaat.middleware.GZipMiddleware)
    app.add_middleware(BaseMiddleware)
    client = app.test_client()
    response = await client.get("/long", headers={"accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert response.text == "a" * 5000
    await echoes(client)


async def test_opentelemetry(app: Yaat) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider)
    client = app.test_client()
    assert (await client.get("/")).text == "home"
    await echoes(client)
    names = [span.name for span in exporter.get_finished_spans()]
    assert "GET /" in names
    assert names.count("HTTP /ws websocket send") == 21  # the accept and the echoes
    assert names.count("HTTP /ws websocket receive") == 22  # connect, the messages, disconnect


async def test_prometheus(app: Yaat) -> None:
    app.add_middleware(PrometheusMiddleware, app_name="chat", prefix="yaat_test")
    client = app.test_client()
    assert (await client.get("/")).text == "home"
    await echoes(client)
    labels = {"method": "GET", "path": "/", "status_code": "200", "app_name": "chat"}
    assert REGISTRY.get_sample_value("yaat_test_requests_total", labels) == 1.0


# The names


@pytest.mark.parametrize("name", sorted(set(yaat.middleware.__all__) - {"BaseMiddleware"}))
def test_starlettes_middleware_is_found_by_its_name(name: str) -> None:
    assert getattr(yaat.middleware, name).__name__ == name
    assert name == "Middleware" or callable(getattr(yaat.middleware, name))
    assert isinstance(Middleware(getattr(yaat.middleware, name)), Middleware)


def test_what_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="NoMiddleware"):
        yaat.middleware.NoMiddleware  # noqa: B018


def test_without_itsdangerous_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "itsdangerous"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    monkeypatch.delitem(sys.modules, "starlette.middleware.sessions", raising=False)
    with pytest.raises(ImportError, match=r"yaat\[sessions\]"):
        yaat.middleware.SessionMiddleware  # noqa: B018


def test_another_module_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette.middleware.gzip", None)
    with pytest.raises(ModuleNotFoundError, match="gzip"):
        yaat.middleware.GZipMiddleware  # noqa: B018
    monkeypatch.undo()
    assert importlib.import_module("starlette.middleware.gzip")
