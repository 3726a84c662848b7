"""What users of the Yaat of 2020 wrote still works: its names, its shapes, its answers."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from yaat import Yaat
from yaat.background import BackgroundTask, BackgroundTasks, RunAfterResponse
from yaat.constants import WebSocketCloseEvent
from yaat.exceptions import HTTPException, WebSocketException
from yaat.middleware import BaseMiddleware, CORSMiddleware
from yaat.requests import Request
from yaat.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamResponse,
    TextResponse,
)
from yaat.routing import Router
from yaat.staticfiles import StaticFiles
from yaat.templating import Jinja2Template
from yaat.testing import TestClient
from yaat.types import Message
from yaat.websockets import WebSocket, WebSocketDisconnect, WebSocketStates


@pytest.fixture
def app() -> Yaat:
    return Yaat()


@pytest.fixture
def client(app: Yaat) -> TestClient:
    return app.test_client()


def test_the_names_are_where_they_were() -> None:
    names = {HTTPException, WebSocketDisconnect, WebSocketException, WebSocketStates}
    assert len(names) == 4
    assert WebSocketCloseEvent(1000) is WebSocketCloseEvent.NORMAL_CLOSURE


# Routes


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_a_route_takes_the_methods_it_is_given(
    app: Yaat, client: TestClient, method: str
) -> None:
    @app.route("/", methods=[method])
    async def handler(request: Request) -> TextResponse:
        return TextResponse(request.method)

    assert (await client.request(method, "/")).text == method
    other = "POST" if method == "GET" else "GET"
    assert (await client.request(other, "/")).status_code == 405


async def test_a_route_takes_get_and_head_if_no_method_is_given(
    app: Yaat, client: TestClient
) -> None:
    @app.route("/")
    async def handler(_: Request) -> TextResponse:
        return TextResponse("hello")

    assert (await client.get("/")).text == "hello"
    head = await client.head("/")
    assert (head.text, head.headers["content-length"]) == ("", "5")
    assert (await client.post("/")).status_code == 405


async def test_a_route_takes_several_methods(app: Yaat, client: TestClient) -> None:
    @app.route("/both", methods=["GET", "POST"])
    async def handler(request: Request) -> TextResponse:
        return TextResponse(request.method)

    assert (await client.get("/both")).text == "GET"
    assert (await client.post("/both")).text == "POST"


async def test_a_path_parameter_is_an_argument(app: Yaat, client: TestClient) -> None:
    @app.route("/{name}")
    async def handler(_: Request, name: str) -> TextResponse:
        return TextResponse(unquote(name))

    assert (await client.get("/Jane Doe")).text == "Jane Doe"


class View:
    async def get(self, _: Request) -> TextResponse:
        return TextResponse("got")

    async def post(self, _: Request) -> TextResponse:
        return TextResponse("posted")


def decorate(app: Yaat) -> None:
    app.route("/")(View)


def register(app: Yaat) -> None:
    app.add_route(path="/", handler=View)


@pytest.mark.parametrize("add", [decorate, register])
async def test_a_class_has_a_method_for_each_method(
    app: Yaat, client: TestClient, add: Callable[[Yaat], None]
) -> None:
    add(app)
    assert (await client.get("/")).text == "got"
    assert (await client.post("/")).text == "posted"
    assert (await client.delete("/")).status_code == 405


async def test_a_function_is_registered_by_keywords(app: Yaat, client: TestClient) -> None:
    async def handler(_: Request) -> TextResponse:
        return TextResponse("registered")

    app.add_route(path="/", handler=handler, methods=["GET"])
    assert (await client.get("/")).text == "registered"


async def test_a_router_is_mounted(app: Yaat, client: TestClient) -> None:
    blog = Router()

    @app.route("/")
    async def home(_: Request) -> TextResponse:
        return TextResponse("home")

    @blog.route("/")
    async def blog_home(_: Request) -> TextResponse:
        return TextResponse("blog")

    @blog.route("/posts/{post_id}")
    async def post(_: Request, post_id: int) -> JSONResponse:
        return JSONResponse(post_id + 1)

    app.mount(prefix="blog", router=blog)
    assert (await client.get("/")).text == "home"
    assert (await client.get("/blog")).text == "blog"
    assert (await client.get("/blog/posts/41")).json() == 42


async def test_the_paths_are_listed(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def home(_: Request) -> TextResponse:
        return TextResponse("home")

    @app.route("/paths")
    async def paths(_: Request) -> JSONResponse:
        return JSONResponse({"paths": app.router.paths})

    listed = (await client.get("/paths")).json()["paths"]
    assert {"/", "/paths"} <= set(listed)


# Requests


async def test_the_url_of_a_request(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def handler(request: Request) -> JSONResponse:
        url = request.url
        return JSONResponse([request.method, str(url), url.path, url.is_secure(), url.host_header])

    answer = (await client.get("/#part")).json()
    assert answer == ["GET", "http://testserver/", "/", False, "testserver"]


async def test_the_query_of_a_request(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def handler(request: Request) -> JSONResponse:
        return JSONResponse(dict(request.query_params))

    assert (await client.get("/?word=你好世界")).json() == {"word": "你好世界"}


async def test_the_headers_of_a_request(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def handler(request: Request) -> JSONResponse:
        return JSONResponse(headers=dict(request.headers))

    response = await client.get("/", headers={"host": "example.com"})
    assert response.headers["host"] == "example.com"
    assert response.json() is None


async def test_the_client_of_a_request(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def handler(request: Request) -> JSONResponse:
        assert request.client is not None
        return JSONResponse({"host": request.client.host, "port": request.client.port})

    assert (await client.get("/")).json() == {"host": "127.0.0.1", "port": 123}


async def test_the_body_of_a_request(app: Yaat, client: TestClient) -> None:
    @app.route("/body", methods=["POST"])
    async def body(request: Request) -> JSONResponse:
        return JSONResponse({"body": (await request.body()).decode()})

    @app.route("/json", methods=["POST"])
    async def json(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    @app.route("/form", methods=["POST"])
    async def form(request: Request) -> JSONResponse:
        return JSONResponse(dict(await request.form()))

    data = {"hello": "world", "chinese": "世界"}
    response = await client.post("/body", data={"hello": "world"})
    assert response.content == b'{"body":"hello=world"}'
    assert (await client.post("/json", json=data)).json() == data
    assert (await client.post("/form", data=data)).json() == data


async def test_the_cookies_of_a_request(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def handler(request: Request) -> TextResponse:
        response = TextResponse(request.cookies.get("note", "nothing"))
        response.set_cookie("note", "A note!")
        return response

    assert (await client.get("/")).text == "nothing"
    assert (await client.get("/")).text == "A note!"


# Responses


@pytest.mark.parametrize(
    ("make", "content", "media_type"),
    [
        (lambda: TextResponse(content="text"), b"text", "text/plain"),
        (lambda: HTMLResponse(content="<p>"), b"<p>", "text/html"),
        (lambda: Response(content=b"bytes", media_type="image/jpg"), b"bytes", "image/jpg"),
        (lambda: JSONResponse(content={"a": 1}), b'{"a":1}', "application/json"),
        (lambda: JSONResponse(content=None), b"null", "application/json"),
        (lambda: Response("x", headers={}, media_type="text/html"), b"x", "text/html"),
    ],
)
async def test_a_response(
    app: Yaat, client: TestClient, make: Callable[[], Response], content: bytes, media_type: str
) -> None:
    @app.route("/")
    async def handler(_: Request) -> Response:
        return make()

    response = await client.get("/")
    assert response.content == content
    assert response.headers["content-type"].startswith(media_type)
    assert response.headers["content-length"] == str(len(content))


async def test_the_status_headers_and_cookies_of_a_response(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def handler(_: Request) -> Response:
        response = Response(status_code=204, headers={"header-1": "abc", "header-2": "def"})
        response.headers["header-2"] = "xyz"
        return response

    @app.route("/cookies")
    async def cookies(_: Request) -> Response:
        response = Response(content="x")
        options: dict[str, Any] = {"max_age": 9, "expires": 9, "path": "/", "domain": "localhost"}
        response.set_cookie(key="kept", value="v", samesite="none", secure=False, **options)
        response.delete_cookie(key="gone")
        return response

    response = await client.get("/")
    assert response.status_code == 204
    assert (response.headers["header-1"], response.headers["header-2"]) == ("abc", "xyz")
    response = await client.get("/cookies")
    assert "kept=v" in response.headers["set-cookie"]
    assert "gone=" in response.headers["set-cookie"]
    assert response.cookies.get("gone") is None


async def test_a_redirect_is_followed(app: Yaat, client: TestClient) -> None:
    @app.route("/")
    async def there(_: Request) -> RedirectResponse:
        return RedirectResponse("/here")

    @app.route("/here")
    async def here(_: Request) -> TextResponse:
        return TextResponse("arrived")

    response = await client.get("/")
    assert str(response.url).endswith("/here")
    assert response.text == "arrived"


async def test_a_file_and_a_missing_one(app: Yaat, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")

    @app.route("/there")
    async def there(_: Request) -> FileResponse:
        return FileResponse(path=str(tmp_path / "a.png"))

    @app.route("/none")
    async def none(_: Request) -> FileResponse:
        return FileResponse(path="404.txt")

    @app.route("/nowhere")
    async def nowhere(_: Request) -> FileResponse:
        return FileResponse(path=f"{tmp_path}/none/a.txt")

    response = await client.get("/there")
    assert (response.content, response.headers["content-type"]) == (b"image", "image/png")
    assert (await client.get("/none")).status_code == 404
    assert (await client.get("/nowhere")).status_code == 404


async def test_a_stream(app: Yaat, client: TestClient) -> None:
    async def count() -> AsyncIterator[str]:
        for number in range(1, 4):
            yield f"{number} "

    @app.route("/")
    async def handler(_: Request) -> StreamResponse:
        return StreamResponse(count(), media_type="text/plain")

    assert (await client.get("/")).text == "1 2 3 "


@pytest.mark.parametrize("status", [304, 404, 405, 406])
async def test_an_http_exception_is_a_response(app: Yaat, client: TestClient, status: int) -> None:
    @app.route("/")
    async def handler(_: Request) -> Response:
        raise HTTPException(status_code=status)

    assert (await client.get("/")).status_code == status


# Work after the response


async def test_background_tasks(app: Yaat, client: TestClient) -> None:
    done: list[str] = []

    async def in_the_loop(name: str, *, message: str) -> None:
        done.append(f"{name}: {message}")

    def in_a_thread() -> None:
        done.append("thread")

    @app.route("/one")
    async def one(_: Request) -> RunAfterResponse:
        task = BackgroundTask(in_the_loop, "Yaat", message="one")
        return RunAfterResponse(Response(), task)

    @app.route("/two")
    async def two(_: Request) -> RunAfterResponse:
        background = BackgroundTasks()
        background.add(in_a_thread)
        background.add(in_the_loop, "Yaat", message="two")
        return RunAfterResponse(response=TextResponse("sent"), background=background)

    assert (await client.get("/one")).status_code == 200
    assert (await client.get("/two")).text == "sent"
    assert done == ["Yaat: one", "thread", "Yaat: two"]


# Files and templates


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "page.html").write_text("<h1>page</h1>")
    (tmp_path / "index.html").write_text("<h1>index</h1>")
    return tmp_path


async def test_static_files(app: Yaat, client: TestClient, directory: Path) -> None:
    app.mount(StaticFiles(directory=f"/{directory}"), "/static")
    response = await client.get("/static/a.png")
    assert (response.status_code, response.content) == (200, b"image")
    etag = {"if-none-match": response.headers["etag"]}
    head = await client.head("/static/a.png")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "5")
    again = await client.get("/static/a.png", headers=etag)
    assert (again.status_code, again.content) == (304, b"")
    assert (await client.post("/static/a.png")).status_code == 405
    assert (await client.get("/static/404.png")).status_code == 404
    assert (await client.get("/static/sub/404.png")).status_code == 404


@pytest.mark.parametrize(
    ("since", "status"),
    [("Mon, 03 Feb 2020 12:00:00 GMT", 304), ("Sat, 01 Feb 2020 04:00:00 GMT", 200)],
)
async def test_static_files_that_were_changed_are_sent(
    app: Yaat, client: TestClient, directory: Path, since: str, status: int
) -> None:
    os.utime(directory / "a.png", (1580605200, 1580605200))  # 2 February 2020
    app.mount(StaticFiles(directory=str(directory)), "/static")
    response = await client.get("/static/a.png", headers={"if-modified-since": since})
    assert response.status_code == status
    assert response.content == (b"image" if status == 200 else b"")


async def test_static_pages(app: Yaat, client: TestClient, directory: Path) -> None:
    app.mount(StaticFiles(directory=str(directory), html=True), "/")
    assert (await client.get("/page.html")).text == "<h1>page</h1>"
    assert (await client.get("/")).text == "<h1>index</h1>"
    assert (await client.get("/none.html")).status_code == 404


def test_static_files_need_a_directory(directory: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        StaticFiles(directory=str(directory / "a.png"))
    assert "is not a directory" in str(refused.value)


async def test_templates(app: Yaat, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "hello.html").write_text("<p>{{ name }}</p>")
    templates = Jinja2Template(directory=str(tmp_path))

    @app.route("/")
    async def handler(_: Request) -> Any:
        return templates.TemplateResponse("hello.html", {"name": "Stranger"})

    assert (await client.get("/")).text == "<p>Stranger</p>"
    with pytest.raises(FileNotFoundError):
        Jinja2Template(directory=str(tmp_path / "none"))


# Middleware


async def test_hooks_around_a_request(app: Yaat, client: TestClient) -> None:
    class Changing(BaseMiddleware):
        async def process_request(self, request: Request) -> None:
            request.scope["server"] = "changed"

        async def process_response(self, response: Response) -> None:
            response.body = b"changed as well"

    app.add_middleware(Changing)
    seen: list[str] = []

    @app.route("/")
    async def handler(request: Request) -> TextResponse:
        seen.append(request.scope["server"])
        return TextResponse("home")

    assert (await client.get("/")).text == "changed as well"
    assert seen == ["changed"]


async def test_middlewares_are_given_to_the_application() -> None:
    order: list[str] = []

    class First(BaseMiddleware):
        async def handle_request(self, request: Request) -> Response:
            order.append("first")
            return await self.app.handle_request(request)

    class Second(BaseMiddleware):
        async def process_request(self, request: Request) -> None:
            order.append("second")

        async def handle_websocket(self, websocket: WebSocket) -> None:
            order.append("socket")
            await self.app.handle_websocket(websocket)

    app = Yaat(middlewares=[First, Second])

    @app.route("/")
    async def home(_: Request) -> TextResponse:
        return TextResponse("home")

    @app.websocket_route("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(WebSocketCloseEvent.GOING_AWAY)

    client = app.test_client()
    assert (await client.get("/")).text == "home"
    async with client.websocket("/ws") as websocket:
        with pytest.raises(WebSocketDisconnect) as left:
            await websocket.receive()
    assert left.value.code == 1001
    assert order == ["second", "first", "socket"]


async def test_cors(app: Yaat, client: TestClient) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=["http://a.example"], allow_headers=["X-Tag"])

    @app.route("/")
    async def home(_: Request) -> TextResponse:
        return TextResponse("home", headers={"Vary": "User-Agent"})

    asked = {
        "Origin": "http://a.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "X-Tag",
    }
    allowed = await client.options("/", headers=asked)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (
        200,
        "http://a.example",
    )
    assert "X-Tag" in allowed.headers["access-control-allow-headers"].split(", ")
    asked |= {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-Other"}
    refused = await client.options("/", headers=asked | {"Origin": "http://b.example"})
    assert (refused.status_code, refused.text) == (400, "Disallowed cors Origin, Method, Headers")
    simple = await client.get("/", headers={"Origin": "http://a.example"})
    assert simple.headers["access-control-allow-origin"] == "http://a.example"
    assert simple.headers["vary"] == "User-Agent, Origin"
    assert "access-control-allow-origin" not in (await client.get("/")).headers
    other = await client.get("/", headers={"Origin": "http://b.example"})
    assert (other.text, "access-control-allow-origin" in other.headers) == ("home", False)


async def test_cors_for_all(app: Yaat, client: TestClient) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=["*"])

    @app.route("/")
    async def home(_: Request) -> TextResponse:
        return TextResponse("home")

    headers = {"Origin": "http://a.example", "Cookie": "a=b"}
    response = await client.get("/", headers=headers)
    assert response.headers["access-control-allow-origin"] == "http://a.example"


# The life of the application


async def live(app: Yaat, ran: list[str]) -> list[str]:
    """Drive the lifespan by hand, as servers do; return what the application answered."""
    answers: list[str] = []

    async def receive() -> Message:
        return {"type": "lifespan.shutdown" if "startup" in ran else "lifespan.startup"}

    async def send(message: Message) -> None:
        answers.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    return answers


@pytest.mark.parametrize("is_async", [False, True])
async def test_startup_and_shutdown(is_async: bool) -> None:  # noqa: FBT001
    ran: list[str] = []

    def note(name: str) -> Callable[[], Any]:
        async def in_the_loop() -> None:
            ran.append(name)

        return in_the_loop if is_async else lambda: ran.append(name)

    app = Yaat(on_startup=[note("startup")], on_shutdown=[note("shutdown")])
    assert await live(app, ran) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert ran == ["startup", "shutdown"]


@pytest.mark.parametrize("which", ["startup", "shutdown"])
async def test_a_failure_at_startup_and_shutdown(which: str) -> None:
    ran: list[str] = []

    def fail() -> None:
        ran.append("failed")
        raise LookupError(which)

    hooks: dict[str, Any] = {"on_startup": [lambda: ran.append("startup")], "on_shutdown": []}
    hooks[f"on_{which}"].append(fail)
    with pytest.raises(LookupError, match=which):
        await live(Yaat(**hooks), ran)
    assert ran == ["startup", "failed"]
