"""The application: its life, its layers, and how it gets on with others of its kind."""

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import fastapi
import pytest
import starlette.applications
import starlette.exceptions
import starlette.responses
import starlette.routing
import starlette.websockets
from asgiref.compatibility import is_double_callable
from starlette.middleware import Middleware

from yaat import processes
from yaat.app import Yaat
from yaat.brokers import Broker
from yaat.brokers.memory import MemoryBroker
from yaat.channels import ChannelOptions, Channels
from yaat.exceptions import (
    ArgumentError,
    BrokerUnavailable,
    ChannelNameError,
    HTTPException,
    Refused,
    UsageError,
)
from yaat.observer import Observer
from yaat.policy import Policy
from yaat.requests import Request
from yaat.responses import TextResponse
from yaat.routing import Router, WebSocketRoute
from yaat.testing import HandshakeRefused, TestClient
from yaat.types import ASGIApp, Message, Receive, Scope, Send
from yaat.websockets import WebSocket


async def hello(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"hello from {websocket.url.path}")


async def page(request: Request) -> TextResponse:
    return TextResponse(f"a page at {request.url.path}")


async def told(app: ASGIApp, path: str) -> str:
    async with TestClient(app).websocket(path) as session:
        return await session.receive_text()


async def got(app: ASGIApp, path: str) -> tuple[int, str]:
    response = await TestClient(app).get(path)
    return response.status_code, response.text


# Its life


class Log(list[str]):
    """What happened, in its order."""

    def hook(self, word: str) -> Callable[[], None]:
        return functools.partial(self.append, word)

    def async_hook(self, word: str) -> Callable[[], Any]:
        async def note() -> None:
            self.append(word)

        return note

    def failing(self, word: str) -> Callable[[], Any]:
        def fail() -> None:
            self.append(word)
            raise LookupError(word)

        return fail

    def lifespan(self, *, fails: str = "") -> Callable[[Any], Any]:
        @contextlib.asynccontextmanager
        async def live(app: Any) -> AsyncIterator[dict[str, Any]]:
            self.append("enter")
            if fails == "enter":
                raise LookupError("enter")
            yield {"of": type(app).__name__}
            self.append("exit")
            if fails == "exit":
                raise LookupError("exit")

        return live


@pytest.fixture
def log() -> Log:
    return Log()


ALL = ["first", "second", "event", "enter", "up", "exit", "last", "async", "end"]


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("lifespan", [False, True])
async def test_startup_lifespan_and_shutdown_in_all_combinations(
    log: Log,
    hooks: bool,  # noqa: FBT001
    events: bool,  # noqa: FBT001
    lifespan: bool,  # noqa: FBT001
) -> None:
    app = Yaat(
        lifespan=log.lifespan() if lifespan else None,
        on_startup=[log.hook("first"), log.async_hook("second")] if hooks else None,
        on_shutdown=[log.hook("last"), log.async_hook("async")] if hooks else None,
    )
    if events:
        for event, word in (("startup", "event"), ("shutdown", "end")):
            hook = log.hook(word)
            assert app.on_event(event)(hook) is hook  # type: ignore[arg-type]
    async with app.test_client():
        log.append("up")
    unwanted = {
        *([] if hooks else ["first", "second", "last", "async"]),
        *([] if events else ["event", "end"]),
        *([] if lifespan else ["enter", "exit"]),
    }
    assert log == [word for word in ALL if word not in unwanted]


async def test_a_hook_that_returns_an_awaitable(log: Log) -> None:
    app = Yaat(on_startup=[functools.partial(log.async_hook("first"))])
    async with app.test_client():
        assert log == ["first"]


async def test_what_startup_raises_ends_it(log: Log) -> None:
    app = Yaat(
        on_startup=[log.hook("first"), log.failing("second"), log.hook("third")],
        lifespan=log.lifespan(),
        on_shutdown=[log.hook("last")],
    )
    with pytest.raises(LookupError, match="second"):
        await app.test_client().__aenter__()
    assert log == ["first", "second"]


async def test_what_was_started_is_stopped_if_the_lifespan_does_not_begin(log: Log) -> None:
    app = Yaat(
        on_startup=[log.hook("first")],
        lifespan=log.lifespan(fails="enter"),
        on_shutdown=[log.hook("last")],
    )
    with pytest.raises(LookupError, match="enter"):
        await app.test_client().__aenter__()
    assert log == ["first", "enter", "last"]


async def test_what_was_started_is_stopped_if_the_lifespan_ends_badly(log: Log) -> None:
    app = Yaat(lifespan=log.lifespan(fails="exit"), on_shutdown=[log.hook("last")])
    with pytest.raises(LookupError, match="exit"):
        async with app.test_client():
            pass
    assert log == ["enter", "exit", "last"]


async def test_what_shutdown_raises(log: Log) -> None:
    app = Yaat(on_shutdown=[log.failing("last"), log.hook("never")])
    with pytest.raises(LookupError, match="last"):
        async with app.test_client():
            pass
    assert log == ["last"]


async def test_the_state_of_the_lifespan_is_everywhere(log: Log) -> None:
    inner, app = Yaat(), Yaat(lifespan=log.lifespan())

    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.of)

    async def answer(request: Request) -> TextResponse:
        return TextResponse(request.state.of)

    for table in (inner, app):
        table.add_websocket_route("/ws", tell)
        table.add_route("/page", answer)
    app.mount("/inner", inner)
    async with app.test_client() as client:
        for prefix in ("", "/inner"):
            assert (await client.get(f"{prefix}/page")).text == "Yaat"
            async with client.websocket(f"{prefix}/ws") as session:
                assert await session.receive_text() == "Yaat"


async def test_a_mounted_application_has_no_life_of_its_own(log: Log) -> None:
    inner, app = Yaat(lifespan=log.lifespan(), on_startup=[log.hook("inner")]), Yaat()
    app.mount("/inner", inner)
    async with app.test_client():
        pass
    assert log == []


async def test_a_lifespan_as_a_generator_is_deprecated_as_in_starlette(log: Log) -> None:
    async def live(_: Any) -> AsyncIterator[None]:
        log.append("enter")
        yield
        log.append("exit")

    def live_in_step(_: Any) -> Iterator[None]:
        log.append("enter")
        yield
        log.append("exit")

    for generator in (live, live_in_step):
        log.clear()
        lifespan: Any = generator
        with pytest.warns(starlette.exceptions.StarletteDeprecationWarning):
            app = Yaat(lifespan=lifespan)
        async with app.test_client():
            assert log == ["enter"]
        assert log == ["enter", "exit"]


# Its layers


class Layer:
    """A pure ASGI middleware; it counts how often it was made."""

    made: list[str] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, app: ASGIApp, name: str = "plain") -> None:
        self.app, self.name = app, name
        Layer.made.append(name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["layers"] = [*scope.get("layers", []), self.name]
        await self.app(scope, receive, send)


class Outer(Layer):
    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, "outer")


def layered(**options: Any) -> Yaat:
    """Return an application that says through which layers a connection came."""
    app = Yaat(**options)

    @app.websocket_route("/")
    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(" ".join(websocket.scope.get("layers", [])))

    @app.route("/")
    async def answer(request: Request) -> TextResponse:
        return TextResponse(" ".join(request.scope.get("layers", [])))

    return app


ORDERS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"middleware": [Middleware(Layer, "a"), Middleware(Layer, name="b")]}, "a b"),
    ({"middlewares": [Layer, Outer]}, "outer plain"),
    ({"middlewares": [Middleware(Layer, "a"), Outer, Middleware(Layer, "c")]}, "c outer a"),
    ({"middleware": [Middleware(Layer, "a")], "middlewares": [Layer, Outer]}, "outer plain a"),
    ({"middleware": (), "middlewares": ()}, ""),
]


@pytest.mark.parametrize(("options", "order"), ORDERS)
async def test_the_order_of_middleware(options: dict[str, Any], order: str) -> None:
    app = layered(**options)
    assert await told(app, "/") == order
    assert await got(app, "/") == (200, order)
    app = layered(**options)
    app.add_middleware(Layer, "x")
    app.add_middleware(Layer, name="y")
    expected = f"y x {order}".strip()
    assert await told(app, "/") == expected
    assert await got(app, "/") == (200, expected)


async def test_middleware_is_made_once_for_sockets_requests_and_the_lifespan() -> None:
    Layer.made.clear()
    seen = []

    class Lives(Layer):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append((id(self), scope["type"]))
            await self.app(scope, receive, send)

    app = layered(middleware=[Middleware(Lives, "a"), Middleware(Layer, "b")])
    async with app.test_client() as client:
        for _ in range(2):
            await client.get("/")
            async with client.websocket("/") as session:
                await session.receive_text()
    assert sorted(Layer.made) == ["a", "b"]
    assert len({which for which, _ in seen}) == 1
    assert {kind for _, kind in seen} == {"http", "websocket", "lifespan"}


def test_building_the_stack_changes_nothing() -> None:
    Layer.made.clear()
    app = layered(middleware=[Middleware(Layer, "a")])
    app.add_middleware(Layer, "b")
    own = list(app.user_middleware)
    first, second = app.build_middleware_stack(), app.build_middleware_stack()
    assert app.user_middleware == own
    assert first is not second
    assert sorted(Layer.made) == ["a", "a", "b", "b"]
    assert app.middleware_stack is None


async def test_a_middleware_that_cannot_be_made() -> None:
    def failing(app: ASGIApp) -> ASGIApp:
        raise LookupError("not today")

    app = layered(middleware=[Middleware(failing)])
    for _ in range(2):
        with pytest.raises(LookupError):
            app.build_middleware_stack()
        assert len(app.user_middleware) == 1


async def test_middleware_comes_before_the_first_connection() -> None:
    app = layered()
    await told(app, "/")
    with pytest.raises(RuntimeError, match="after an application has started"):
        app.add_middleware(Layer)


async def test_nothing_of_starlettes_stands_around_a_socket() -> None:
    files: dict[str, set[str]] = {}
    app = Yaat()

    def note(kind: str) -> None:
        frame, files[kind] = sys._getframe(), set()
        while frame.f_back is not None:
            frame = frame.f_back
            files[kind].add(frame.f_globals["__name__"])

    @app.websocket_route("/")
    async def tell(websocket: WebSocket) -> None:
        note("socket")
        await hello(websocket)

    @app.route("/")
    async def answer(request: Request) -> TextResponse:
        note("request")
        return TextResponse("x")

    await told(app, "/")
    await got(app, "/")
    layers = {"starlette.middleware.errors", "starlette.middleware.exceptions"}
    assert layers <= files["request"]
    assert not layers & files["socket"]


def test_every_layer_is_known_for_an_application() -> None:
    """Middleware built on asgiref takes what it does not know for an application of ASGI 2."""
    seen: list[Any] = []

    def look(app: ASGIApp) -> ASGIApp:
        seen.append(app)
        return app

    app = layered(middleware=[Middleware(look)])
    seen += [app, app.router, app.build_middleware_stack()]
    assert len(seen) == 4
    assert not any(is_double_callable(layer) for layer in seen)  # type: ignore[no-untyped-call]


async def test_a_middleware_may_answer_by_itself() -> None:
    class Closed:
        def __init__(self, app: ASGIApp) -> None:
            pass

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await TextResponse("closed", status_code=503)(scope, receive, send)
            else:
                await send({"type": "websocket.close"})

    app = layered(middlewares=[Closed])
    assert await got(app, "/") == (503, "closed")
    with pytest.raises(HandshakeRefused) as refusal:
        await told(app, "/")
    assert refusal.value.status == 403


# Exception handlers


async def test_exception_handlers_for_requests() -> None:
    app = Yaat(exception_handlers={404: lambda request, error: TextResponse("nowhere", 404)})

    @app.exception_handler(LookupError)
    async def lost(request: Request, error: Exception) -> TextResponse:
        return TextResponse(f"lost {error}", status_code=410)

    @app.exception_handler(418)
    def tea(request: Request, error: Exception) -> TextResponse:
        return TextResponse("tea", status_code=418)

    @app.exception_handler(Exception)
    async def whatever(request: Request, error: Exception) -> TextResponse:
        return TextResponse("whatever", status_code=500)

    errors = {"key": KeyError("k"), "tea": HTTPException(418), "other": OSError("o")}

    @app.route("/{name}")
    async def raising(request: Request, name: str) -> TextResponse:
        raise errors[name]

    assert lost.__name__ == "lost"
    assert await got(app, "/key") == (410, "lost 'k'")
    assert await got(app, "/tea") == (418, "tea")
    assert await got(app, "/no/where") == (404, "nowhere")
    answer = await app.test_client(raise_app_exceptions=False).get("/other")
    assert (answer.status_code, answer.text) == (500, "whatever")


async def test_a_socket_is_not_answered_by_them() -> None:
    """They make responses to requests; what a socket handler raises its endpoint answers."""
    app = Yaat(exception_handlers={Exception: page, 401: page, LookupError: page})

    @app.websocket_route("/{name}")
    async def raising(websocket: WebSocket, name: str) -> None:
        raise LookupError if name == "error" else HTTPException(401, "log in")

    client = app.test_client(raise_app_exceptions=False)
    answers = []
    for name in ("error", "refused"):
        with pytest.raises(HandshakeRefused) as refusal:
            await client.websocket(f"/{name}").__aenter__()
        answers.append((refusal.value.status, refusal.value.text))
    assert answers == [(500, "Internal Server Error"), (401, "log in")]


async def test_debug_shows_a_request_what_it_shows_no_socket() -> None:
    app = Yaat(debug=True)
    secret = "the detail"

    @app.route("/")
    async def fail(request: Request) -> TextResponse:
        raise LookupError(secret)

    app.add_websocket_route("/", fail)
    client = app.test_client(raise_app_exceptions=False)
    assert secret in (await client.get("/")).text
    with pytest.raises(HandshakeRefused) as refusal:
        await client.websocket("/").__aenter__()
    assert refusal.value.text == "Internal Server Error"


async def test_the_body_of_a_request_may_be_bounded() -> None:
    app = Yaat(max_body_size=10)

    @app.route("/", methods=["POST"])
    async def take(request: Request) -> TextResponse:
        return TextResponse(str(len(await request.body())))

    app.add_websocket_route("/", hello)
    client = app.test_client()
    assert (await client.post("/", content=b"x" * 10)).text == "10"
    assert (await client.post("/", content=b"x" * 11)).status_code == 413
    assert await told(app, "/") == "hello from /"


# Observers


class Notes(Observer):
    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    def opened(self, scope: Scope) -> None:
        self.log.append(f"{self.name} opened {scope['path']}")

    def refused(self, scope: Scope, status: int, reason: str) -> None:
        self.log.append(f"{self.name} refused {status}")

    def closed(self, scope: Scope, code: int, reason: str) -> None:
        self.log.append(f"{self.name} closed {code}")

    def failed(self, scope: Scope, error: BaseException) -> None:
        self.log.append(f"{self.name} failed {type(error).__name__}")


async def test_observers_of_nested_applications_are_all_told(log: Log) -> None:
    inner = Yaat(observers=[Notes("inner", log)])
    app = Yaat(observers=[Notes("one", log), Notes("two", log)])
    for table in (inner, app):
        table.add_websocket_route("/ws", hello)
        table.add_route("/page", page)
    app.mount("/inner", inner)
    await told(app, "/ws")
    assert log == ["one opened /ws", "two opened /ws", "one closed 1000", "two closed 1000"]
    log.clear()
    await told(app, "/inner/ws")
    names = ("one", "two", "inner")
    opened = [f"{name} opened /inner/ws" for name in names]
    assert log == [*opened, *(f"{name} closed 1000" for name in names)]
    log.clear()
    await got(app, "/page")
    assert log == [], "requests are not their concern"


async def test_observers_are_told_of_what_no_route_takes(log: Log) -> None:
    app = Yaat(observers=[Notes("app", log)])
    with pytest.raises(HandshakeRefused):
        await told(app, "/nowhere")
    assert log == ["app opened /nowhere", "app refused 404"]


async def test_observers_are_told_of_failures_and_refusals(log: Log) -> None:
    app = Yaat(observers=[Notes("app", log)])

    @app.websocket_route("/{what}")
    async def end(websocket: WebSocket, what: str) -> None:
        raise Refused(status=401) if what == "refused" else LookupError

    client = app.test_client(raise_app_exceptions=False)
    for what in ("refused", "failed"):
        with pytest.raises(HandshakeRefused):
            await client.websocket(f"/{what}").__aenter__()
    assert log == [
        "app opened /refused",
        "app refused 401",
        "app opened /failed",
        "app failed LookupError",
        "app refused 500",
    ]


# Beside Starlette and FastAPI


def small(**options: Any) -> Yaat:
    app = Yaat(**options)
    app.add_websocket_route("/ws", hello)
    app.add_route("/page", page)
    return app


def small_starlette() -> starlette.applications.Starlette:
    async def answer(request: Any) -> starlette.responses.Response:
        return starlette.responses.PlainTextResponse(f"a page at {request.url.path}")

    async def socket(websocket: starlette.websockets.WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"hello from {websocket.url.path}")
        await websocket.close()

    return starlette.applications.Starlette(
        routes=[
            starlette.routing.Route("/page", answer),
            starlette.routing.WebSocketRoute("/ws", socket),
        ]
    )


def small_fastapi() -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    @app.get("/page", response_class=fastapi.responses.PlainTextResponse)
    async def answer(request: fastapi.Request) -> str:
        return f"a page at {request.url.path}"

    async def word() -> str:
        return "hello"

    @app.websocket("/ws")
    async def socket(websocket: fastapi.WebSocket, said: str = fastapi.Depends(word)) -> None:
        await websocket.accept()
        await websocket.send_text(f"{said} from {websocket.url.path}")
        await websocket.close()

    return app


@pytest.mark.parametrize("outer", [fastapi.FastAPI, starlette.applications.Starlette, Yaat])
async def test_it_is_mounted_into_others(outer: Callable[[], Any]) -> None:
    app = outer()
    app.mount("/yaat", small(middlewares=[Layer]))
    app.mount("/router", Router([WebSocketRoute("/ws", hello)]))
    assert await got(app, "/yaat/page") == (200, "a page at /yaat/page")
    assert await told(app, "/yaat/ws") == "hello from /yaat/ws"
    assert await told(app, "/router/ws") == "hello from /router/ws"
    assert (await got(app, "/yaat/nowhere"))[0] == 404
    with pytest.raises(HandshakeRefused) as refusal:
        await told(app, "/yaat/nowhere")
    assert refusal.value.status == 404


@pytest.mark.parametrize("inner", [small_fastapi, small_starlette, small])
async def test_others_are_mounted_into_it(inner: Callable[[], ASGIApp]) -> None:
    app = Yaat(middlewares=[Layer])
    app.mount("/other", inner())
    assert await got(app, "/other/page") == (200, "a page at /other/page")
    assert await told(app, "/other/ws") == "hello from /other/ws"
    assert (await got(app, "/other/nowhere"))[0] == 404
    with pytest.raises(HandshakeRefused):
        await told(app, "/other/nowhere")


@pytest.mark.parametrize("outer", [fastapi.FastAPI, starlette.applications.Starlette])
async def test_what_a_mounted_application_raises(outer: Callable[[], Any]) -> None:
    """The test sees it, and the application around it is not bothered."""
    inner, app = Yaat(), outer()

    @inner.websocket_route("/ws")
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise LookupError("lost")

    app.mount("/yaat", inner)
    async with TestClient(app).websocket("/yaat/ws") as session:
        with pytest.raises(LookupError, match="lost"):
            await session.receive()
    async with TestClient(app, raise_app_exceptions=False).websocket("/yaat/ws") as session:
        with pytest.raises(starlette.websockets.WebSocketDisconnect) as departure:
            await session.receive()
    assert departure.value.code == 1011


REASONS: list[tuple[Exception, int, int]] = [
    (fastapi.HTTPException(401, detail={"hint": ["log in"]}), 401, 1008),
    (fastapi.HTTPException(429, detail=["too", "many"]), 429, 1008),
    (Refused("half of a pair: \ud83d", status=401), 401, 1008),
    (fastapi.WebSocketException(4001, "half of a pair: \ud83d"), 403, 4001),
]


@pytest.mark.parametrize(("error", "status", "code"), REASONS)
async def test_whatever_the_reason_is_it_ends_in_the_same_way(
    error: Exception, status: int, code: int
) -> None:
    """What FastAPI's users raise has a detail of any JSON; and a text may be cut from anywhere."""
    app = Yaat()

    @app.websocket_route("/{answer}")
    async def refuse(websocket: WebSocket, answer: str) -> None:
        if answer == "accept":
            await websocket.accept()
        raise error

    client = app.test_client()
    with pytest.raises(HandshakeRefused) as refusal:
        await client.websocket("/deny").__aenter__()
    assert refusal.value.status == status
    async with client.websocket("/accept") as session:
        with pytest.raises(starlette.websockets.WebSocketDisconnect) as departure:
            await session.receive()
    assert departure.value.code == code


async def test_an_endpoint_is_a_route_of_fastapi() -> None:
    app = fastapi.FastAPI()
    app.router.routes.append(WebSocketRoute("/rooms/{room}", hello))
    assert await told(app, "/rooms/7") == "hello from /rooms/7"


def test_it_is_a_starlette_application() -> None:
    app = small()
    assert isinstance(app, starlette.applications.Starlette)
    assert isinstance(app.router, Router)
    assert isinstance(app.router, starlette.routing.Router)
    assert app.table is app.router
    assert app.routes is app.router.routes
    assert [route.path for route in app.routes] == ["/ws", "/page"]  # type: ignore[attr-defined]
    assert app.paths == ["/ws", "/page"]
    assert app.url_path_for("hello") == "/ws"
    assert (app.debug, app.max_body_size, app.exception_handlers) == (False, None, {})
    app.state.number = 7
    assert app.state.number == 7


async def test_a_handler_knows_its_application() -> None:
    inner, app = Yaat(), Yaat()
    inner.state.name, app.state.name = "inner", "outer"

    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.app.state.name)

    for table in (inner, app):
        table.add_websocket_route("/ws", tell)
    app.mount("/inner", inner)
    assert await told(app, "/ws") == "outer"
    assert await told(app, "/inner/ws") == "inner"


async def test_the_policy_of_an_application_is_that_of_its_sockets() -> None:
    app = small(policy=Policy(origins=["http://friend.example"]))
    headers = {"origin": "http://friend.example"}
    async with app.test_client().websocket("/ws", headers=headers) as session:
        assert await session.receive_text() == "hello from /ws"
    headers = {"origin": "http://stranger.example"}
    with pytest.raises(HandshakeRefused):
        await app.test_client().websocket("/ws", headers=headers).__aenter__()


def test_without_asyncio_a_connection_says_so() -> None:
    """Under trio, say: there is no running loop of asyncio's, as there is none here."""

    async def receive() -> Message:
        raise AssertionError("nothing is received")

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        async with WebSocket(scope, receive, send) as websocket:
            await websocket.accept()

    for app in (small(), bare):
        scope = {"type": "websocket", "path": "/ws", "headers": []}
        connection: Any = app(scope, receive, send)
        with pytest.raises(UsageError, match="asyncio"):
            connection.send(None)


# The test client


async def test_its_test_client() -> None:
    app = small()
    client = app.test_client("https://chat.example:8443", timeout=1, headers={"x-a": "1"})
    assert isinstance(client, TestClient)
    response = await client.get("/page")
    assert str(response.url) == "https://chat.example:8443/page"
    assert response.request.headers["x-a"] == "1"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "yaat.testing")
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UsageError, match=r"pip install 'yaat\[test\]'"):
        Yaat().test_client()


# Its channels

KEPT = ChannelOptions(history=10)
ROOMS = Channels({"room:{id}": KEPT})


async def publishes(request: Request) -> TextResponse:
    published = await request.channel("room:1").publish(request.url.path)
    return TextResponse(str(published.offset))


async def lists(websocket: WebSocket) -> None:
    await websocket.accept()
    publications = (await websocket.channel("room:1").history()).publications
    await websocket.send_json([publication.data for publication in publications])


def talking(**options: Any) -> Yaat:
    app = Yaat(**options)
    app.add_route("/say", publishes)
    app.add_websocket_route("/list", lists)
    return app


async def history(app: Yaat) -> list[str]:
    publications = (await app.channel("room:1").history()).publications
    return [publication.data for publication in publications]


async def test_each_application_has_channels_of_its_own() -> None:
    app, other = talking(channels=ROOMS), talking(broker="memory://", channels=ROOMS)
    assert app.hub is not other.hub
    assert app.channel("room:1").options is KEPT
    with pytest.raises(ChannelNameError):
        app.channel("")
    async with app.test_client() as client, other.test_client():
        assert (await client.get("/say")).text == "1"
        assert await told(app, "/list") == '["/say"]'
        assert await history(app) == ["/say"]
        assert await history(other) == []


async def test_they_need_no_lifespan_but_end_with_it() -> None:
    app = talking(channels=ROOMS)
    assert await got(app, "/say") == (200, "1")
    assert await history(app) == ["/say"]
    async with app.test_client():
        assert await history(app) == ["/say"]
    assert await history(app) == [], "memory lasts no longer"
    await app.hub.close()


class Door(MemoryBroker):
    """Notes when it is opened and closed."""

    def __init__(self, log: Log, *, fails: bool = False) -> None:
        super().__init__()
        self._log = log
        self._fails = fails

    async def start(self, on_publication: Any, on_state: Any, on_missed: Any) -> None:
        self._log.append("open")
        if self._fails:
            raise BrokerUnavailable("nobody is there")
        await super().start(on_publication, on_state, on_missed)

    async def close(self) -> None:
        self._log.append("close")
        await super().close()


async def test_the_channels_are_around_the_lifespan(log: Log) -> None:
    """A startup hook that publishes opens them; what shuts down may still publish."""
    app = Yaat(
        broker=Door(log),
        lifespan=log.lifespan(),
        on_startup=[log.hook("first")],
        on_shutdown=[log.hook("last")],
    )

    @app.on_event("shutdown")
    async def farewell() -> None:
        await app.channel("room:1").publish("bye")

    async with app.test_client():
        log.append("up")
    assert log == ["first", "open", "enter", "up", "exit", "last", "close"]


@pytest.mark.parametrize("fails", ["enter", "exit", "shutdown"])
async def test_the_channels_end_though_the_lifespan_fails(log: Log, fails: str) -> None:
    app = Yaat(
        broker=Door(log),
        lifespan=log.lifespan(fails=fails),
        on_shutdown=[log.failing("shutdown")] if fails == "shutdown" else [],
    )
    with pytest.raises(LookupError, match=fails):
        async with app.test_client():
            pass
    assert log[0] == "open"
    assert log[-1] == "close"


async def test_a_broker_that_is_not_there_ends_the_startup(log: Log) -> None:
    app = Yaat(
        broker=Door(log, fails=True), lifespan=log.lifespan(), on_shutdown=[log.hook("last")]
    )
    with pytest.raises(BrokerUnavailable, match="nobody is there"):
        async with app.test_client():
            raise AssertionError
    assert log == ["open", "last", "close"]


@pytest.mark.parametrize("between", [None, Router, starlette.applications.Starlette])
async def test_a_mounted_application_has_the_channels_of_the_one_around_it(
    between: Callable[[], Any] | None,
) -> None:
    app, inner = talking(channels=ROOMS), talking()
    place = app
    if between is not None:
        place = between()
        app.mount("/between", place)
    place.mount("/inner", inner)
    path = "/inner" if between is None else "/between/inner"
    async with app.test_client() as client:
        assert (await client.get("/say")).text == "1"
        assert (await client.get(f"{path}/say")).text == "2"
        assert await told(app, f"{path}/list") == f'["/say","{path}/say"]'
        assert await told(app, "/list") == f'["/say","{path}/say"]'
        assert inner.hub is app.hub
        assert await history(inner) == ["/say", f"{path}/say"]


async def test_a_socket_may_come_first() -> None:
    app, inner = talking(channels=ROOMS), talking()
    app.mount("/inner", inner)
    async with app.test_client() as client:
        assert await told(app, "/inner/list") == "[]"
        assert inner.channel("room:1").options is KEPT
        await inner.channel("room:1").publish("from inside")
        assert (await client.get("/say")).text == "2"


async def test_with_a_broker_it_has_channels_of_its_own() -> None:
    app, inner = talking(channels=ROOMS), talking(broker="memory://", channels=ROOMS)
    innermost = talking()
    app.mount("/inner", inner)
    inner.mount("/innermost", innermost)
    async with app.test_client() as client:
        for number in (1, 2):
            assert (await client.get("/inner/say")).text == str(number)
        assert (await client.get("/inner/innermost/say")).text == "3"
        assert (await client.get("/say")).text == "1"
        assert await told(app, "/inner/list") == await told(app, "/inner/innermost/list")
        assert await history(app) == ["/say"]
        assert innermost.hub is inner.hub is not app.hub
    await inner.hub.close()


async def test_patterns_without_a_broker_are_refused_inside() -> None:
    """They would count in a test of the application alone, and not where it is mounted."""
    app, inner = Yaat(), talking(channels=ROOMS)
    app.mount("/inner", inner)
    why = "give the patterns there, or give this one a broker of its own"
    client = TestClient(app)
    with pytest.raises(UsageError, match=why):
        await client.get("/inner/say")
    with pytest.raises(UsageError, match=why):
        await told(app, "/inner/list")
    assert await got(inner, "/say") == (200, "1"), "alone it has them"
    await inner.hub.close()


async def test_it_may_be_mounted_into_one_after_the_other() -> None:
    """As by a factory, for each test anew."""
    inner = talking()
    for _ in range(2):
        app = talking(channels=ROOMS)
        app.mount("/inner", inner)
        async with app.test_client() as client:
            assert (await client.get("/inner/say")).text == "1"
            assert inner.hub is app.hub


async def test_alone_again_it_has_its_own_channels() -> None:
    app, inner = talking(channels=ROOMS), talking()
    app.mount("/inner", inner)
    async with app.test_client() as client:
        await client.get("/inner/say")
    async with inner.test_client() as client:
        assert (await client.get("/say")).text == "0", "without a history"
        assert inner.channel("room:1").options == ChannelOptions()
        assert inner.hub is not app.hub


async def test_its_lifespan_alone_does_not_end_the_channels_of_another() -> None:
    app, inner = talking(channels=ROOMS), talking()
    app.mount("/inner", inner)
    async with app.test_client() as client:
        await client.get("/inner/say")
        async with inner.test_client():
            pass
        assert await history(app) == ["/inner/say"]


@pytest.mark.parametrize("outer", [fastapi.FastAPI, starlette.applications.Starlette])
async def test_mounted_into_others_it_has_its_channels(outer: Callable[[], Any]) -> None:
    app, inner = outer(), talking(channels=ROOMS)
    app.mount("/inner", inner)
    assert await got(app, "/inner/say") == (200, "1")
    assert await told(app, "/inner/list") == '["/inner/say"]'
    await inner.hub.close()


@pytest.mark.parametrize("broker", ["", "smoke://", "memory://?nonsense=1"])
def test_a_broker_that_cannot_be(broker: str) -> None:
    with pytest.raises(ArgumentError):
        Yaat(broker=broker)


# Several processes


class Elsewhere(MemoryBroker):
    """A broker that other processes hear."""

    is_shared = True


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker beside another."""
    monkeypatch.setattr(processes, "_count", 2)


@pytest.mark.parametrize("broker", ["memory://", "memory://named?max_channels=10", MemoryBroker()])
def test_memory_is_refused_where_there_are_several(two: None, broker: str | Broker) -> None:
    why = "^memory:// is of one process: what one of the 2 workers .*redis://.* or .*one worker$"
    with pytest.raises(UsageError, match=why):
        Yaat(broker=broker)


async def test_without_a_broker_it_is_the_first_channel_that_is_refused(two: None) -> None:
    """One that has none is served by as many as there may be."""
    app = talking()
    why = "^without a broker the channel 'room:1' is of one process"
    async with app.test_client() as client:
        assert (await client.get("/nowhere")).status_code == 404
        with pytest.raises(UsageError, match=why):
            app.channel("room:1")
        with pytest.raises(UsageError, match=why):
            await got(app, "/say")


async def test_who_is_inside_of_a_broker_that_is_shared_needs_none(two: None) -> None:
    app, inner = Yaat(broker=Elsewhere()), talking()
    app.mount("/inner", inner)
    with pytest.raises(UsageError):
        inner.channel("room:1")
    inner.enter({"yaat.hub": app.hub})
    assert inner.channel("room:1").name == "room:1"


def test_starlettes_words_for_what_went_wrong() -> None:
    assert issubclass(HTTPException, starlette.exceptions.HTTPException)
