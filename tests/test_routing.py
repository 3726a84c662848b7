"""Which handler takes a connection, in every way to say so."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import starlette.endpoints
import starlette.responses
import starlette.routing
import starlette.staticfiles
import starlette.websockets
from starlette.middleware import Middleware

from yaat.app import Yaat
from yaat.endpoint import Endpoint
from yaat.exceptions import HTTPException, RouteError, UsageError
from yaat.policy import Policy
from yaat.requests import Request
from yaat.responses import JSONResponse, TextResponse
from yaat.routing import (
    Mount,
    NoMatchFound,
    Responder,
    Route,
    Router,
    Routes,
    WebSocketEndpoint,
    WebSocketRoute,
)
from yaat.staticfiles import StaticFiles
from yaat.testing import HandshakeRefused, TestClient
from yaat.types import ASGIApp, Receive, Scope, Send
from yaat.websockets import WebSocket

Handler = Callable[..., Any]
Table = Yaat | Router


async def hello(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("Hello")
    await websocket.close()


def saying(word: str) -> Handler:
    """Return a handler that says a word."""

    async def say(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(word)

    return say


async def told(app: ASGIApp, path: str) -> str:
    """Connect and return what is said there."""
    async with TestClient(app).websocket(path) as session:
        return await session.receive_text()


async def refused(app: ASGIApp, path: str) -> int:
    """Connect and return the status with which that is refused."""
    with pytest.raises(HandshakeRefused) as refusal:
        await TestClient(app).websocket(path).__aenter__()
    return refusal.value.status


async def got(app: ASGIApp, path: str, method: str = "GET") -> tuple[int, str]:
    """Request and return the status and the text of the answer."""
    response = await TestClient(app).request(method, path, follow_redirects=False)
    return response.status_code, response.text


@pytest.fixture(params=[Yaat, Router])
def table(request: pytest.FixtureRequest) -> Table:
    """An application and a router: what adds routes is the same for both."""
    table: Table = request.param()
    return table


# Handlers of sockets


async def test_the_decorator_passes_a_websocket_and_leaves_the_function(table: Table) -> None:
    seen = []

    async def ws_handler(websocket: WebSocket) -> None:
        seen.append(websocket)
        await hello(websocket)

    assert table.websocket_route("/ws")(ws_handler) is ws_handler
    assert await told(table, "/ws") == "Hello"
    assert type(seen[0]) is WebSocket


@pytest.mark.parametrize("path", ["/ws", "ws"])
async def test_every_spelling_of_add_websocket_route(path: str) -> None:
    for add in SPELLINGS:
        app = Yaat()
        add(app, path)
        assert await told(app, "/ws") == "Hello"
        assert await refused(app, "/elsewhere") == 404


SPELLINGS: list[Callable[[Routes, str], None]] = [
    lambda app, path: app.add_websocket_route(path, hello),
    lambda app, path: app.add_websocket_route(path, hello, "name"),
    lambda app, path: app.add_websocket_route(path, endpoint=hello, name="name"),
    lambda app, path: app.add_websocket_route(path=path, endpoint=hello),
    lambda app, path: app.add_websocket_route(path, handler=hello),
    lambda app, path: app.add_websocket_route(path=path, handler=hello, name="name"),
    lambda app, path: app.add_websocket_route(path, hello, policy=Policy()),
    lambda app, path: app.add_websocket_route(path, handler=hello, policy=Policy()),
    lambda app, path: app.table.routes.append(WebSocketRoute(path, hello)),
]


DEFAULTS: list[Callable[[Routes], None]] = [
    lambda app: app.add_websocket_route(hello),
    lambda app: app.add_websocket_route(hello, policy=Policy()),
    lambda app: app.add_websocket_route(handler=hello),
    lambda app: app.add_websocket_route(handler=hello, policy=Policy()),
]


@pytest.mark.parametrize("add", DEFAULTS)
@pytest.mark.parametrize("path", ["/", "/any", "/any/where/", "/other%20place?x=1"])
async def test_a_handler_alone_takes_every_path(add: Callable[[Routes], None], path: str) -> None:
    for table in (Yaat(), Router()):
        add(table)
        assert await told(table, path) == "Hello"
        assert (await got(table, path))[0] == 404, "it takes no requests"


async def test_the_default_comes_after_all_other_routes() -> None:
    app = Yaat()
    app.add_websocket_route(hello)
    app.add_websocket_route("/ws", saying("a route"))
    app.mount("/mounted", Router([WebSocketRoute("/in", saying("inside"))]))
    assert await told(app, "/ws") == "a route"
    assert await told(app, "/mounted/in") == "inside"
    assert await told(app, "/mountedness") == "Hello"
    assert await refused(app, "/mounted/other") == 404, "a mount takes its whole prefix"


async def test_inside_a_mount_its_own_default_counts() -> None:
    inner, app = Router(), Yaat()
    inner.add_websocket_route(saying("inner"))
    app.add_websocket_route(saying("outer"))
    app.mount("/inner", inner)
    assert await told(app, "/inner/any") == "inner"
    assert await told(app, "/inner") == "inner"
    assert await told(app, "/other") == "outer"


async def test_a_default_of_starlettes_own_kind() -> None:
    router = Router(default=Endpoint(hello))
    assert await told(router, "/any") == "Hello"


class Chat(WebSocketEndpoint):
    encoding = "text"

    async def on_connect(self, websocket: WebSocket, room: str = "?", floor: int = 0) -> None:
        self.place = f"{room}:{floor!r}"
        await websocket.accept()

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_json([self.place, data])

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        DEPARTURES.append((self.place, close_code))


class Plain:
    """No base class: the methods say what it is."""

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_json([type(self).__name__, str(data)])


class OnlyConnects:
    async def on_connect(self, websocket: WebSocket) -> None:
        await hello(websocket)


class Refuses:
    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.close()

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        DEPARTURES.append(("refused", close_code))


DEPARTURES: list[tuple[str, int]] = []


async def test_a_class_is_a_handler_with_an_instance_for_each_connection(table: Table) -> None:
    DEPARTURES.clear()
    assert table.websocket_route("/{room}/{floor}")(Chat) is Chat
    client = TestClient(table)
    async with client.websocket("/a/1") as one, client.websocket("/b/x") as two:
        await one.send_text("hi")
        await two.send_text("ho")
        assert await one.receive_json() == ["a:1", "hi"]
        assert await two.receive_json() == ["b:'x'", "ho"]
        await one.close(4001)
        await one.ended()
    assert DEPARTURES == [("a:1", 4001), ("b:'x'", 1000)]


async def test_a_plain_class_with_methods_for_events() -> None:
    DEPARTURES.clear()
    app = Yaat()
    for cls in (Plain, OnlyConnects, Refuses):
        app.add_websocket_route(f"/{cls.__name__}", cls)
    async with TestClient(app).websocket("/Plain") as session:
        await session.send_text("text")
        assert await session.receive_json() == ["Plain", "text"]
        await session.send_bytes(b"bytes")
        assert await session.receive_json() == ["Plain", "b'bytes'"]
    assert await told(app, "/OnlyConnects") == "Hello"
    assert await refused(app, "/Refuses") == 403
    assert DEPARTURES == [], "a connection that never was has no departure"


ENCODINGS: list[tuple[str | None, list[str | bytes], list[Any], int]] = [
    (None, ["text", b"bytes"], ["'text'", "b'bytes'"], 1000),
    ("text", ["text", b"bytes"], ["'text'"], 1003),
    ("bytes", [b"bytes", "text"], ["b'bytes'"], 1003),
    ("json", ['{"a":1}', b"[2]", "{"], ["{'a': 1}", "[2]"], 1007),
]


@pytest.mark.parametrize(("kind", "sent", "answers", "code"), ENCODINGS)
async def test_what_a_class_is_given(
    kind: Any, sent: list[str | bytes], answers: list[str], code: int
) -> None:
    codes = []

    class Echo(WebSocketEndpoint):
        encoding = kind

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await websocket.send_text(repr(data))

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            codes.append(close_code)

    app = Yaat()
    app.add_websocket_route("/", Echo)
    client = app.test_client(raise_app_exceptions=False)
    async with client.websocket("/") as session:
        for data in sent:
            send: Any = session.send_text if isinstance(data, str) else session.send_bytes
            await send(data)
        assert [await session.receive_text() for _ in answers] == answers
        if code == 1000:
            await session.close()
        with pytest.raises(starlette.websockets.WebSocketDisconnect) as departure:
            await session.receive()
    assert departure.value.code == code
    assert codes == [1000 if code == 1000 else 1011]


class Foreign(starlette.endpoints.WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket: starlette.websockets.WebSocket, data: str) -> None:
        await websocket.send_text(f"foreign {data} of {websocket.path_params['room']}")


async def test_starlettes_own_endpoint_is_an_application(table: Table) -> None:
    table.add_websocket_route("/{room}", Foreign)
    async with TestClient(table, raise_app_exceptions=False).websocket("/hall") as session:
        await session.send_text("hi")
        assert await session.receive_text() == "foreign hi of hall"
        await session.send_bytes(b"not text")
        with pytest.raises(starlette.websockets.WebSocketDisconnect) as departure:
            await session.receive()
    assert departure.value.code == 1003


class Application:
    """An ASGI application that is no function."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": f"raw {scope['path']}"})

    async def method(self, websocket: WebSocket, room: int) -> None:
        await websocket.accept()
        await websocket.send_text(f"method {room + 1}")


async def test_other_things_that_are_handlers(table: Table) -> None:
    async def greet(word: str, websocket: WebSocket, room: int, *, mark: str) -> None:
        await websocket.accept()
        await websocket.send_text(f"{word} {room + 1}{mark}")

    table.add_websocket_route("/app", Application())
    table.add_websocket_route("/method/{room}", Application().method)
    table.add_websocket_route("/partial/{room}", functools.partial(greet, "hi", mark="!"))
    assert await told(table, "/app") == "raw /app"
    assert await told(table, "/method/7") == "method 8"
    assert await told(table, "/partial/7") == "hi 8!"


# Path parameters


async def test_path_parameters_arrive_as_they_are_annotated(table: Table) -> None:
    @table.websocket_route("/rooms/{room}/{share}/{user}")
    async def tell(websocket: WebSocket, user: str, room: int, share: float) -> None:
        await websocket.accept()
        assert websocket.path_params["user"] == user
        await websocket.send_text(repr((room, share, user)))

    @table.route("/rooms/{room}/{share}/{user}")
    async def answer(request: Request, user: str, room: int, share: float) -> TextResponse:
        return TextResponse(repr((room, share, user)))

    for path, expected in [
        ("/rooms/7/1.5/ada", "(7, 1.5, 'ada')"),
        ("/rooms/x/y/1", "('x', 'y', '1')"),
        ("/rooms/-1/1e3/%C3%A9", "(-1, 1000.0, 'é')"),
        ("/rooms/1.5/2/a%20b", "('1.5', 2.0, 'a b')"),
    ]:
        assert await told(table, path) == expected
        assert await got(table, path) == (200, expected)


async def test_a_handler_that_names_none_gets_none(table: Table) -> None:
    table.add_websocket_route("/rooms/{room}", hello)
    assert await told(table, "/rooms/7") == "Hello"


async def test_parameters_of_a_mount_arrive_too() -> None:
    async def tell(websocket: WebSocket, **names: Any) -> None:
        await websocket.accept()
        await websocket.send_text(repr(names))

    app = Yaat()
    app.mount("/{tenant}/rooms", Router([WebSocketRoute("/{room:int}", tell)]))
    assert await told(app, "/acme/rooms/7") == "{'tenant': 'acme', 'room': 7}"


async def test_a_parameter_that_the_path_does_not_have(table: Table) -> None:
    async def wants(websocket: WebSocket, room: str) -> None: ...

    table.add_websocket_route("/rooms", wants)
    with pytest.raises(RouteError, match="wants 'room'"):
        await TestClient(table).websocket("/rooms").__aenter__()


# Mounts

MOUNTS: list[Callable[[Routes, str, Any], None]] = [
    lambda app, prefix, router: app.mount(prefix, router),
    lambda app, prefix, router: app.mount(prefix, router, "name"),
    lambda app, prefix, router: app.mount(prefix, app=router, name="name"),
    lambda app, prefix, router: app.mount(path=prefix, app=router),
    lambda app, prefix, router: app.mount(prefix=prefix, router=router),
    lambda app, prefix, router: app.mount(prefix=prefix, router=router, name="name"),
    lambda app, prefix, router: app.mount(router, prefix),
]

SOCKETS_ONLY: list[Callable[[Routes, str, Any], None]] = [
    lambda app, prefix, router: app.mount(prefix, router, websocket=True),
    lambda app, prefix, router: app.mount(prefix, router, "name", websocket=True),
    lambda app, prefix, router: app.mount(prefix=prefix, router=router, websocket=True),
]


def chat() -> Router:
    """Return a router with a socket and a request at the same path."""
    router = Router()
    router.add_websocket_route("/room", hello)
    router.add_websocket_route("/", saying("root"))

    @router.route("/room")
    async def page(request: Request) -> TextResponse:
        return TextResponse("a page")

    return router


class ChatRouter(Router):
    """Made by `mount`, once."""

    made = 0

    def __init__(self) -> None:
        super().__init__(chat().routes)
        ChatRouter.made += 1


class StarletteRouter(starlette.routing.Router):
    """One of Starlette's, made by `mount` as well."""

    def __init__(self) -> None:
        super().__init__(chat().routes)


def chat_app() -> Yaat:
    return Yaat(routes=chat().routes)


@pytest.mark.parametrize("mount", [*MOUNTS, *SOCKETS_ONLY])
@pytest.mark.parametrize("prefix", ["ws", "/ws", "ws/", "/ws/", "//ws//"])
async def test_every_spelling_of_mount(
    mount: Callable[[Routes, str, Any], None], prefix: str, table: Any
) -> None:
    mount(table, prefix, chat())
    assert await told(table, "/ws/room") == "Hello"
    assert await told(table, "/ws/") == "root"
    assert await told(table, "/ws") == "root", "a socket is not redirected: it is there"
    assert await refused(table, "/ws/other") == 404
    assert await refused(table, "/wsroom") == 404
    assert await refused(table, "/room") == 404
    expected = (404, "Not Found") if mount in SOCKETS_ONLY else (200, "a page")
    assert await got(table, "/ws/room") == expected


async def test_a_mount_made_by_itself_takes_both() -> None:
    router = Router([Mount("ws/", chat())])
    assert await told(router, "/ws/room") == "Hello"
    assert await got(router, "/ws/room") == (200, "a page")
    only = Router([Mount("ws/", chat(), websocket=True)])
    assert await told(only, "/ws/room") == "Hello"
    assert (await got(only, "/ws/room"))[0] == 404


@pytest.mark.parametrize(
    "router",
    [chat(), chat_app(), ChatRouter, StarletteRouter, starlette.routing.Router(chat().routes)],
)
async def test_what_can_be_mounted(router: Any) -> None:
    app = Yaat()
    app.mount(prefix="ws", router=router, websocket=True)
    assert await told(app, "/ws/room") == "Hello"
    assert await told(app, "/ws/room") == "Hello"


async def test_a_router_class_is_made_once() -> None:
    app, before = Yaat(), ChatRouter.made
    app.mount("/ws", ChatRouter)
    assert ChatRouter.made == before + 1
    for _ in range(2):
        assert await told(app, "/ws/room") == "Hello"
    assert ChatRouter.made == before + 1


async def test_any_application_can_be_mounted() -> None:
    app = Yaat()
    app.mount("/app", Application())
    assert await told(app, "/app/any/where") == "raw /app/any/where"


async def test_with_websocket_true_requests_go_on_to_other_routes() -> None:
    app = Yaat()
    app.mount(prefix="ws", router=chat(), websocket=True)

    @app.route("/ws/room")
    async def page(request: Request) -> TextResponse:
        return TextResponse("after the mount")

    assert await got(app, "/ws/room") == (200, "after the mount")
    assert await told(app, "/ws/room") == "Hello"


async def test_a_mount_for_sockets_and_one_for_requests_at_one_prefix() -> None:
    app, pages = Yaat(), Router()
    pages.add_route("/", lambda request: TextResponse("a page"))
    app.mount("/ws", chat(), websocket=True)
    app.mount("/ws", pages)
    assert await told(app, "/ws/") == "root"
    assert await got(app, "/ws/") == (200, "a page")
    assert (await got(app, "/ws"))[0] == 307, "a request is redirected to it"


async def test_mounts_nest() -> None:
    innermost, inner, app = Router(), Router(), Yaat()
    innermost.add_websocket_route("/room", saying("deep"))
    innermost.add_websocket_route("/", saying("bare"))
    inner.mount("b", innermost)
    inner.add_websocket_route("/c", saying("beside"))
    app.mount(prefix="a", router=inner, websocket=True)
    assert await told(app, "/a/b/room") == "deep"
    assert await told(app, "/a/b/") == "bare"
    assert await told(app, "/a/b") == "bare"
    assert await told(app, "/a/c") == "beside"
    assert await refused(app, "/a") == 404
    assert app.paths == ["/a/b/room", "/a/b/", "/a/c"]


async def test_a_mount_at_the_root() -> None:
    for prefix in ("", "/"):
        app = Yaat()
        app.add_websocket_route("/first", saying("first"))
        app.mount(prefix, chat())
        assert await told(app, "/first") == "first"
        assert await told(app, "/room") == "Hello"
        assert await told(app, "/") == "root"


async def test_the_url_of_a_mounted_socket_is_the_whole_one() -> None:
    app, inner = Yaat(), Router()

    @inner.websocket_route("/room")
    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"{websocket.url} {websocket.scope['root_path']}")

    app.mount("/ws", inner)
    assert await told(app, "/ws/room?a=1") == "ws://testserver/ws/room?a=1 /ws"


@pytest.mark.parametrize("mounted", [False, True])
async def test_behind_a_proxy_that_takes_a_prefix_away(mounted: bool) -> None:  # noqa: FBT001
    """ASGI: `path` has the `root_path` in it. It is never there twice."""

    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.url)

    app, inner = Yaat(), Router([WebSocketRoute("/room", tell)])
    if mounted:
        app.mount("/ws", inner)
    else:
        app.add_websocket_route("/ws/room", tell)
    scope = {"root_path": "/api", "path": "/api/ws/room"}
    async with app.test_client().websocket("/", scope=scope) as session:
        assert await session.receive_text() == "ws://testserver/api/ws/room"


@pytest.fixture(params=[StaticFiles, starlette.staticfiles.StaticFiles])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    (tmp_path / "index.html").write_text("a file")
    return request.param(directory=str(tmp_path), html=True)


@pytest.mark.parametrize("prefix", ["/", "/static"])
async def test_files_never_swallow_a_socket(files: Any, prefix: str) -> None:
    app = Yaat()
    app.mount(prefix, files)
    app.add_websocket_route("/static/ws", hello)
    assert await told(app, "/static/ws") == "Hello"
    assert await refused(app, "/static/index.html") == 404
    assert await got(app, f"{prefix.rstrip('/')}/index.html") == (200, "a file")
    app.add_websocket_route(saying("the default"))
    assert await told(app, "/static/index.html") == "the default"


# Sockets and requests side by side


@pytest.mark.parametrize("request_first", [False, True])
async def test_one_path_for_a_request_and_a_socket(
    table: Table,
    request_first: bool,  # noqa: FBT001
) -> None:
    async def page(request: Request) -> TextResponse:
        return TextResponse("a page")

    if request_first:
        table.add_route("/chat", page)
    table.add_websocket_route("/chat", hello)
    if not request_first:
        table.add_route("/chat", page)
    assert await told(table, "/chat") == "Hello"
    assert await got(table, "/chat") == (200, "a page")
    assert (await got(table, "/chat", "POST"))[0] == 405


async def test_no_route_is_404_or_403_where_the_server_cannot_say_so(table: Table) -> None:
    assert await refused(table, "/nowhere") == 404
    plain: dict[str, Any] = {"extensions": None}
    with pytest.raises(HandshakeRefused) as refusal:
        await TestClient(table).websocket("/nowhere", scope=plain).__aenter__()
    assert refusal.value.status == 403
    assert await got(table, "/nowhere") == (404, "Not Found")


# Requests


async def test_the_methods_of_a_function(table: Table) -> None:
    @table.route("/get")
    async def get(request: Request) -> TextResponse:
        assert type(request) is Request
        return TextResponse(request.method)

    @table.route("/some", methods=["post", "PURGE"])
    def some(request: Request) -> TextResponse:
        return TextResponse(request.method)

    assert await got(table, "/get") == (200, "GET")
    assert await got(table, "/get", "HEAD") == (200, "")
    assert (await got(table, "/get", "POST"))[0] == 405
    assert await got(table, "/some", "POST") == (200, "POST")
    assert await got(table, "/some", "PURGE") == (200, "PURGE")
    assert (await got(table, "/some"))[0] == 405


class Post:
    made = 0

    def __init__(self) -> None:
        Post.made += 1

    async def get(self, request: Request, post_id: int) -> TextResponse:
        return TextResponse(f"get {post_id!r}")

    def post(self, request: Request) -> TextResponse:
        return TextResponse("post")

    async def delete(self, request: Request, post_id: str) -> TextResponse:
        return TextResponse(f"delete {post_id!r}")


class Head(Post):
    async def head(self, request: Request) -> TextResponse:
        return TextResponse("", headers={"x-head": "own"})


async def test_a_class_has_a_method_for_each_method(table: Table) -> None:
    table.route("/posts/{post_id}")(Post)
    table.add_route(path="/some/{post_id}", handler=Post, methods=["get"])
    made = Post.made
    assert await got(table, "/posts/7") == (200, "get 7")
    assert await got(table, "/posts/x") == (200, "get 'x'")
    assert await got(table, "/posts/7", "HEAD") == (200, "")
    assert await got(table, "/posts/7", "POST") == (200, "post")
    assert await got(table, "/posts/7", "DELETE") == (200, "delete '7'")
    assert (await got(table, "/posts/7", "PUT"))[0] == 405
    assert Post.made == made + 5, "every request has its own"
    assert await got(table, "/some/7") == (200, "get 7")
    assert (await got(table, "/some/7", "POST"))[0] == 405


async def test_a_class_may_have_a_head_of_its_own(table: Table) -> None:
    table.add_route("/{post_id}", Head)
    response = await TestClient(table).head("/7")
    assert response.headers["x-head"] == "own"


class ForeignPage(starlette.endpoints.HTTPEndpoint):
    async def get(self, request: Any) -> starlette.responses.Response:
        return starlette.responses.PlainTextResponse(f"foreign {request.path_params['name']}")


async def test_other_things_that_answer_requests(table: Table) -> None:
    class Pages:
        async def page(self, request: Request, name: str) -> TextResponse:
            return TextResponse(f"method {name}")

    def page(word: str, request: Request, number: int) -> TextResponse:
        return TextResponse(f"{word} {number + 1}")

    table.add_route("/method/{name}", Pages().page)
    table.add_route("/partial/{number}", functools.partial(page, "partial"))
    table.add_route("/app", starlette.responses.PlainTextResponse("an application"))
    table.add_route("/foreign/{name}", ForeignPage)
    table.add_route("/json", endpoint=lambda request: JSONResponse({"a": 1}), name="json")
    assert await got(table, "/method/x") == (200, "method x")
    assert await got(table, "/partial/7") == (200, "partial 8")
    assert await got(table, "/app") == (200, "an application")
    assert await got(table, "/app", "PATCH") == (200, "an application")
    assert await got(table, "/foreign/x") == (200, "foreign x")
    assert (await got(table, "/foreign/x", "POST"))[0] == 405
    assert await got(table, "/json") == (200, '{"a":1}')


class Responding:
    """Not a partial, though it has a `func`: an ASGI application."""

    func = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await TextResponse("mine")(scope, receive, send)


async def test_an_application_that_only_looks_like_a_partial(table: Table) -> None:
    table.add_route("/", Responding())
    assert await got(table, "/") == (200, "mine")


async def test_what_a_handler_raises_finds_its_exception_handler() -> None:
    app = Yaat()

    @app.exception_handler(LookupError)
    async def lost(request: Request, error: Exception) -> TextResponse:
        return TextResponse(f"lost {request.path_params['name']}", status_code=410)

    @app.route("/{name}")
    async def raising(request: Request, name: str) -> TextResponse:
        raise HTTPException(418) if name == "tea" else KeyError(name)

    assert await got(app, "/x") == (410, "lost x")
    assert await got(app, "/tea") == (418, "I'm a Teapot")


@pytest.mark.parametrize("nothing", [None, "text", {"a": 1}])
async def test_a_handler_that_returns_no_response(nothing: Any) -> None:
    app = Yaat()

    @app.route("/")
    def forgetful(request: Request) -> Any:
        return nothing

    with pytest.raises(RouteError) as caught:
        await app.test_client().get("/")
    assert str(caught.value) == (f"forgetful() returned {type(nothing).__name__}, not a response")
    answer = await app.test_client(raise_app_exceptions=False).get("/")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


# Names


async def test_a_route_is_named_after_its_handler() -> None:
    app, rooms = Yaat(), Router()

    @app.websocket_route("/ws/{number}")
    async def socket(websocket: WebSocket, number: int) -> None:
        await websocket.accept()
        await websocket.send_text(
            f"{websocket.url_for('page', name='x')} {websocket.url_for('rooms:Chat', room=1)} "
            f"{websocket.url_for('socket', number=number + 1)}"
        )

    @app.route("/pages/{name}")
    async def page(request: Request, name: str) -> TextResponse:
        return TextResponse(str(request.url_for("socket", number=7)))

    rooms.add_websocket_route("/{room}", Chat)
    app.add_websocket_route("/own", hello, "own-name")
    app.websocket_route("/decorated", name="decorated-name")(hello)
    app.add_route("/also", page, name="another")
    app.mount("/rooms", rooms, "rooms")
    assert app.url_path_for("socket", number="7") == "/ws/7"
    assert app.url_path_for("page", name="x") == "/pages/x"
    assert app.url_path_for("own-name") == "/own"
    assert app.url_path_for("decorated-name") == "/decorated"
    assert app.url_path_for("another") == "/also"
    assert app.url_path_for("rooms:Chat", room="7") == "/rooms/7"
    assert app.url_path_for("rooms", path="/any") == "/rooms/any"
    for name in ("hello", "Chat", "nobody"):
        with pytest.raises(NoMatchFound):
            app.url_path_for(name)
    assert await got(app, "/pages/x") == (200, "ws://testserver/ws/7")
    assert await told(app, "/ws/1") == (
        "http://testserver/pages/x ws://testserver/rooms/1 ws://testserver/ws/2"
    )


def test_a_route_knows_its_handler() -> None:
    assert WebSocketRoute("/", hello).endpoint is hello
    assert Route("/", hello).endpoint is hello
    assert (WebSocketRoute("/", Chat).name, WebSocketRoute("x", hello).path) == ("Chat", "/x")
    assert Route("/", Post).methods == {"GET", "HEAD", "POST", "DELETE"}


def test_the_paths_of_all_routes() -> None:
    app = Yaat(routes=[starlette.routing.WebSocketRoute("/foreign", hello)])
    app.add_websocket_route("/ws", hello)
    app.add_route("/page", ForeignPage)
    app.mount("/chat", chat())
    app.mount("/files", Application())
    app.host("example.com", chat())
    assert app.paths == ["/foreign", "/ws", "/page", "/chat/room", "/chat/", "/chat/room"]


# Policies


async def limit(websocket: WebSocket) -> None:
    await websocket.accept()
    text = await websocket.receive_text()
    await websocket.send_text(f"{len(text)} taken")


async def longest(app: ASGIApp, path: str) -> int:
    """Return how long a message is taken at a path, of those that the policies below name."""
    client, taken = TestClient(app, raise_app_exceptions=False), 0
    for length in (10, 20, 30, 40, 50):
        async with client.websocket(path) as session:
            await session.send_text("x" * length)
            answers = [answer async for answer in session]
        taken = length if answers == [f"{length} taken"] else taken
    return taken


def up_to(length: int) -> Policy:
    return Policy(max_message_bytes=length)


async def test_the_nearest_policy_counts() -> None:
    app, router, bare = Yaat(policy=up_to(10)), Router(policy=up_to(20)), Router()
    inner_app, plain_app = Yaat(policy=up_to(40)), Yaat()
    tables: list[Table] = [app, router, bare, inner_app, plain_app]
    for table in tables:
        table.add_websocket_route("/plain", limit)
        table.add_websocket_route("/own", limit, policy=up_to(30))
        table.websocket_route("/decorated", policy=up_to(30))(limit)
        table.add_websocket_route(limit, policy=up_to(50))
    router.mount("/bare", bare)
    router.mount("/app", plain_app)
    app.mount("/router", router)
    app.mount("/bare", bare)
    app.mount("/app", inner_app)
    expected = {
        "/plain": 10,
        "/own": 30,
        "/decorated": 30,
        "/any": 50,
        "/router/plain": 20,
        "/router/own": 30,
        "/router/any": 50,
        "/router/bare/plain": 20,
        "/router/bare/own": 30,
        "/router/app/plain": 20,
        "/bare/plain": 10,
        "/app/plain": 40,
        "/app/own": 30,
    }
    assert {path: await longest(app, path) for path in expected} == expected


async def test_a_policy_given_around_counts_where_none_is_nearer() -> None:
    app, plain = Yaat(policy=up_to(10)), starlette.routing.Router()
    plain.routes.append(WebSocketRoute("/plain", limit))
    plain.routes.append(starlette.routing.WebSocketRoute("/endpoint", Endpoint(limit)))
    app.mount("/starlette", plain)
    assert await longest(app, "/starlette/plain") == 10
    assert await longest(app, "/starlette/endpoint") == 10
    assert await longest(plain, "/plain") == 50, "the default takes more"


async def test_the_nearest_counts_whole() -> None:
    """What it does not say is the default, not what the one around it says."""
    app = Yaat(policy=up_to(10).but(origins=["http://friend.example"]))
    app.add_websocket_route("/ws", limit, policy=Policy(read_ahead=1))
    headers = {"origin": "http://friend.example"}
    with pytest.raises(HandshakeRefused):
        await app.test_client().websocket("/ws", headers=headers).__aenter__()
    assert await longest(app, "/ws") == 50


# What cannot be


def sync(websocket: WebSocket) -> None: ...


class NoMethods: ...


class WithPut:
    def put(self, request: Request) -> TextResponse:
        return TextResponse("put")


IMPOSSIBLE: list[Callable[[Any], Any]] = [
    lambda table: table.add_websocket_route("/ws"),
    lambda table: table.add_websocket_route("/ws", hello, handler=hello),
    lambda table: table.add_websocket_route("/ws", "hello"),
    lambda table: table.add_websocket_route("/ws", sync),
    lambda table: table.add_websocket_route("/ws", functools.partial(sync)),
    lambda table: table.add_websocket_route("/ws", lambda websocket: None),
    lambda table: table.add_websocket_route(),
    lambda table: table.add_websocket_route(hello, hello),
    lambda table: table.add_websocket_route(hello, handler=hello),
    lambda table: table.add_websocket_route(hello, name="default"),
    lambda table: table.add_websocket_route(sync),
    lambda table: table.add_websocket_route(7),
    lambda table: [table.add_websocket_route(hello), table.add_websocket_route(hello)],
    lambda table: table.websocket_route("/ws")(sync),
    lambda table: table.websocket_route("/ws")(None),
    lambda table: table.websocket_route("/{a:nonsense}")(hello),
    lambda table: table.websocket_route("/{a}/{a}")(hello),
    lambda table: table.route("/{a:nonsense}")(hello),
    lambda table: table.route("/{a}/{a}")(hello),
    lambda table: table.route("/")(None),
    lambda table: table.route("/")(NoMethods),
    lambda table: table.route("/", methods=[])(hello),
    lambda table: table.route("/", methods=["GET"])(WithPut),
    lambda table: table.route("/", methods=["HEAD"])(WithPut),
    lambda table: table.add_route("/"),
    lambda table: table.add_route("/", hello, handler=hello),
    lambda table: table.add_route("/", "hello"),
    lambda table: table.mount("/ws"),
    lambda table: table.mount(prefix="/ws"),
    lambda table: table.mount(router=chat()),
    lambda table: table.mount(chat()),
    lambda table: table.mount(),
    lambda table: table.mount("/ws", chat(), router=chat()),
    lambda table: table.mount("/ws", prefix="/ws", app=chat()),
    lambda table: table.mount("/ws", "chat"),
    lambda table: table.mount("/{a:nonsense}", chat()),
    lambda table: table.mount("/{a}/{a}", chat()),
]


@pytest.mark.parametrize("add", IMPOSSIBLE)
def test_what_cannot_work_says_so_at_once(add: Callable[[Any], Any], table: Table) -> None:
    with pytest.raises(RouteError) as caught:
        add(table)
    assert isinstance(caught.value, UsageError)
    assert str(caught.value)


# What stands on Starlette


def test_its_routes_are_starlettes() -> None:
    assert issubclass(Router, starlette.routing.Router)
    assert isinstance(Route("/", hello), starlette.routing.Route)
    assert isinstance(WebSocketRoute("/", hello), starlette.routing.WebSocketRoute)
    assert isinstance(Mount("/", chat()), starlette.routing.Mount)
    assert Route("/a", hello) == Route("/a", hello) != Route("/b", hello)
    assert WebSocketRoute("/a", hello) == WebSocketRoute("/a", hello)
    assert "WebSocketRoute(path='/a'" in repr(WebSocketRoute("/a", hello))


async def test_starlettes_routes_work_here() -> None:
    async def page(request: Any) -> starlette.responses.Response:
        return starlette.responses.PlainTextResponse("a page")

    async def socket(websocket: starlette.websockets.WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("foreign")
        await websocket.close()

    router = Router(
        [
            starlette.routing.Route("/page", page),
            starlette.routing.WebSocketRoute("/ws", socket),
            starlette.routing.Mount("/mount", routes=[WebSocketRoute("/ws", hello)]),
        ]
    )
    assert await got(router, "/page") == (200, "a page")
    assert await told(router, "/ws") == "foreign"
    assert await told(router, "/mount/ws") == "Hello"
    assert await got(router, "/page/") == (307, "")


async def test_a_route_and_a_mount_may_have_middleware() -> None:
    class Naming:
        def __init__(self, app: ASGIApp, name: str) -> None:
            self.app, self.name = app, name

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            scope["names"] = [*scope.get("names", []), self.name]
            await self.app(scope, receive, send)

    async def names(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(" ".join(websocket.scope["names"]))

    def naming(name: str) -> list[Middleware]:
        return [Middleware(Naming, name)]

    inner = Router([WebSocketRoute("/ws", names, middleware=naming("route"))])
    mount = Mount("/in", inner, middleware=naming("mount"))
    router = Router([mount], middleware=naming("router"), policy=Policy())
    assert await told(router, "/in/ws") == "router mount route"


def test_a_middleware_that_cannot_be_made_says_why_itself() -> None:
    def failing(app: ASGIApp) -> ASGIApp:
        raise ValueError("its own")

    makes: list[Callable[..., Any]] = [Route, WebSocketRoute, Mount]
    for make in makes:
        with pytest.raises(ValueError, match=r"^its own$"):
            make("/", hello, middleware=[Middleware(failing)])


async def test_a_route_alone_is_an_application() -> None:
    assert await told(WebSocketRoute("/ws", hello), "/ws") == "Hello"
    assert await got(Route("/", Post, methods=["POST"]), "/", "POST") == (200, "post")


def test_a_table_has_to_be_somewhere() -> None:
    with pytest.raises(NotImplementedError):
        _ = Routes().table


def test_a_responder_needs_the_methods_it_answers() -> None:
    with pytest.raises(RouteError, match=r"WithPut is to take GET, but has no method get\(\)"):
        Responder(WithPut, ["PUT", "GET"])
