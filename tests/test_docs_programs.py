"""The programs of the documents do what the text around them says."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import fastapi
import pytest
from starlette.routing import WebSocketRoute as StarlettesRoute
from starlette.websockets import WebSocket as StarlettesWebSocket

from clients import Closed, connect
from documents import DOCS, ROOT, Reading, write
from servers import SPECS, Server
from yaat.app import Yaat
from yaat.exceptions import WebSocketDisconnect
from yaat.observer import Observer
from yaat.requests import Request
from yaat.responses import JSONResponse, TextResponse
from yaat.testing import HandshakeRefused, TestClient

File = Callable[..., ModuleType]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> File:
    """Import one of the files that a page consists of."""

    def imported(page: str, title: str) -> ModuleType:
        return Reading(ROOT / page, tmp_path, monkeypatch).file(title)

    return imported


async def refusal(client: TestClient, url: str, **options: Any) -> HandshakeRefused:
    """Open a connection that is refused, and return how."""
    with pytest.raises(HandshakeRefused) as refused:
        async with client.websocket(url, **options):
            pass
    return refused.value


async def closing(ws: Any) -> tuple[int, str]:
    """Receive to the end; return the code and the reason."""
    try:
        while True:
            await ws.receive()
    except WebSocketDisconnect as end:
        return end.code, end.reason


# README and tutorial


async def test_readme_echo(file: File) -> None:
    app = file("README.md", "echo.py").app
    async with app.test_client() as client, client.websocket("/echo") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"


async def test_tutorial_client_talks_to_the_tutorial_echo(tmp_path: Path) -> None:
    with tutorial("echo", tmp_path) as server:
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "websockets", server.url("/echo")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"hello\n")
        async with asyncio.timeout(20):
            assert b"< hello" in await client.stdout.readuntil(b"< hello")
            client.stdin.close()  # Ctrl-D
            said = await client.stdout.read()
        assert b"1000 (OK)" in said
        assert await client.wait() == 0


async def test_tutorial_mistakes(tmp_path: Path) -> None:
    with tutorial("echo", tmp_path) as server:
        mark = server.mark()
        async with connect(server.url("/echo")) as client:
            await client.send_bytes(b"bytes")
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1003
        async with connect(server.url("/echo")) as client:
            await client.vanish()
        assert "rror" not in server.written_since(mark)
        async with connect(server.url("/divide/0")) as client:
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1011
        written = server.written_since(mark)
        assert written.count("Traceback") == 1
        assert "ZeroDivisionError" in written
        async with connect(server.url("/divide/4")) as client:
            assert await client.receive_json() == {"result": 25.0}


def tutorial(page: str, directory: Path) -> Server:
    """Serve what the reader of a tutorial has at its end."""
    write(DOCS / "tutorial" / f"{page}.md", directory)
    path = {"PYTHONPATH": str(directory)}
    return Server(SPECS["uvicorn-sansio"], "app:app", directory, path)


# How to authenticate

AUTHENTICATE = "docs/how-to/authenticate.md"
HELLO = "hello ada"


async def greeting(client: TestClient, **options: Any) -> Any:
    async with client.websocket("/me", **options) as ws:
        return await ws.receive(), ws.subprotocol


async def test_session(file: File) -> None:
    async with file(AUTHENTICATE, "session.py").app.test_client() as client:
        refused = await refusal(client, "/me")
        assert (refused.status, refused.text) == (401, "log in first")
        await client.post("/login")
        assert await greeting(client) == (HELLO, None)


async def test_session_without_denial_responses(file: File) -> None:
    async with file(AUTHENTICATE, "session.py").app.test_client() as client:
        assert (await refusal(client, "/me", scope={"extensions": None})).status == 403


async def test_token_in_a_header(file: File) -> None:
    async with file(AUTHENTICATE, "header.py").app.test_client() as client:
        for value in ("", "Bearer wrong", "Basic token-of-ada"):
            refused = await refusal(client, "/me", headers={"authorization": value})
            assert refused.status == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        headers = {"authorization": "bearer token-of-ada"}
        assert await greeting(client, headers=headers) == (HELLO, None)


async def test_token_among_the_subprotocols(file: File) -> None:
    async with file(AUTHENTICATE, "subprotocol.py").app.test_client() as client:
        for offered in ([], ["chat"], ["chat", "bearer.wrong"]):
            assert (await refusal(client, "/me", subprotocols=offered)).status == 401
        offered = ["chat", "bearer.token-of-ada"]
        assert await greeting(client, subprotocols=offered) == (HELLO, "chat")


async def test_token_in_the_first_message(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    module = file(AUTHENTICATE, "message.py")
    async with module.app.test_client() as client:
        async with client.websocket("/me") as ws:
            await ws.send_json({"token": "token-of-ada"})
            assert await ws.receive_text() == HELLO
        for wrong in ('{"token": "wrong"}', "[]", '{"token": 1}'):
            async with client.websocket("/me") as ws:
                await ws.send_text(wrong)
                assert await closing(ws) == (4401, "a token is needed")
        limits: list[float] = []
        at_once = asyncio.timeout(0)

        def timeout(delay: float) -> asyncio.Timeout:
            limits.append(delay)
            return at_once

        monkeypatch.setattr(module, "asyncio", ModuleType("asyncio"))
        monkeypatch.setattr(module.asyncio, "timeout", timeout, raising=False)
        async with client.websocket("/me") as ws:
            assert await closing(ws) == (4408, "no token in time")
        assert limits == [5]


async def test_token_for_many_routes(file: File) -> None:
    async with file(AUTHENTICATE, "middleware.py").app.test_client() as client:
        assert (await refusal(client, "/me")).status == 401
        assert await greeting(client, headers={"x-token": "token-of-ada"}) == (HELLO, None)


# How to let other pages connect

ORIGINS = "docs/how-to/origins.md"


async def may_connect(client: TestClient, url: str, origin: str) -> bool:
    try:
        async with client.websocket(url, headers={"origin": origin}):
            return True
    except HandshakeRefused as refused:
        return refused.status != 403


async def test_named_origins(file: File, caplog: pytest.LogCaptureFixture) -> None:
    allowed = [
        "http://testserver",
        "https://testserver",
        "https://example.com",
        "https://a.example.com",
        "https://a.b.example.com",
        "https://pr-12.preview.example",
    ]
    refused = [
        "https://evil.example",
        "http://example.com",
        "https://example.com:8443",
        "https://example.com.evil.example",
        "https://evilexample.com",
        "https://pr-12.preview.example.evil.example",
        "https://pr-x.preview.example",
        "null",
    ]
    async with file(ORIGINS, "named.py").app.test_client() as client:
        assert [each for each in allowed if not await may_connect(client, "/feed", each)] == []
        assert not caplog.records
        assert [each for each in refused if await may_connect(client, "/feed", each)] == []
        async with client.websocket("/feed"):
            pass
    assert [record.name for record in caplog.records] == ["yaat.refused"] * len(refused)
    message = caplog.records[0].getMessage()
    assert "evil.example" in message
    assert "Policy(origins=[...])" in message


async def test_a_star_needs_a_letter(file: File) -> None:
    module = file(ORIGINS, "named.py")
    policy = module.Policy(origins=["https://*.example.com"])
    assert policy.allows_origin("https://a.example.com", "testserver")
    assert not policy.allows_origin("https://example.com", "testserver")
    assert not policy.allows_origin("https://.example.com", "testserver")


async def test_one_open_route(file: File) -> None:
    module = file(ORIGINS, "open.py")
    async with module.app.test_client(raise_app_exceptions=False) as client:
        assert not await may_connect(client, "/mine", "https://evil.example")
        assert await may_connect(client, "/ticker", "https://evil.example")
    assert module.POLICY.but(origins="*").max_message_bytes == 4096


async def test_another_port_is_another_origin(file: File) -> None:
    async with file(ORIGINS, "open.py").app.test_client() as client:
        base = {"host": "localhost:8000", "origin": "http://localhost:5173"}
        assert (await refusal(client, "/mine", headers=base)).status == 403


# How to work beside the handler

BACKGROUND = "docs/how-to/background.md"


async def test_stream_closes_its_source_when_the_client_leaves(file: File) -> None:
    module = file(BACKGROUND, "clock.py")
    async with module.app.test_client() as client, client.websocket("/clocks/utc") as ws:
        assert await ws.receive_json() == {"zone": "utc", "tick": 0}
        assert module.open_clocks == {"utc"}
        await ws.cut()
        await ws.ended()
        assert module.open_clocks == set()


async def test_stream_sends_every_kind_and_ends(file: File) -> None:
    module = file(BACKGROUND, "clock.py")

    async def three(_: str) -> Any:
        for item in ("text", b"bytes", [1]):
            yield item

    vars(module)["ticks"] = three
    async with module.app.test_client() as client, client.websocket("/clocks/utc") as ws:
        assert [await ws.receive() for _ in range(3)] == ["text", b"bytes", "[1]"]
        assert await closing(ws) == (1000, "")


async def test_receive_and_send_at_the_same_time(file: File) -> None:
    module = file(BACKGROUND, "counter.py")
    async with module.app.test_client() as client, client.websocket("/counter") as ws:
        assert await ws.receive_json() == 1
        await ws.send_text("100")
        numbers = [await ws.receive_json()]
        while numbers[-1] < 200:
            numbers.append(await ws.receive_json())
        assert {later - sooner for sooner, later in pairwise(numbers)} <= {
            1,
            100,
        }
        await ws.cut()
        await ws.ended()
    assert not [task for task in asyncio.all_tasks() if "count" in repr(task.get_coro())]


@pytest.mark.parametrize("culprit", ["handler", "task"])
async def test_a_mistake_beside_the_handler(
    file: File, culprit: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = file(BACKGROUND, "counter.py")
    if culprit == "task":

        async def count(*_: object) -> None:
            raise ValueError

        vars(module)["count"] = count
    app = module.app
    async with (
        app.test_client(raise_app_exceptions=False) as client,
        client.websocket("/counter") as ws,
    ):
        if culprit == "handler":
            await ws.send_text("no number")
        assert (await closing(ws))[0] == 1011
    assert [record.name for record in caplog.records] == ["yaat.error"]


async def test_wait_closed(file: File) -> None:
    module = file(BACKGROUND, "lease.py")
    async with module.app.test_client() as client, client.websocket("/present/ada") as ws:
        assert module.present == {"ada"}
        await ws.send_text("kept for who receives it")
        await ws.cut()
        await ws.ended()
        assert module.present == set()


# How to report errors

REPORT = "docs/how-to/report-errors.md"


async def test_an_observer_counts(file: File, caplog: pytest.LogCaptureFixture) -> None:
    module = file(REPORT, "counted.py")
    async with module.app.test_client(raise_app_exceptions=False) as client:
        for number in (4, 0):
            async with client.websocket(f"/divide/{number}") as ws:
                await closing(ws)
        await refusal(client, "/divide/4", headers={"origin": "https://evil.example"})
    assert module.counted.open == 0
    assert module.counted.endings == {
        "closed 1000": 1,
        "closed 1011": 1,
        "failed ZeroDivisionError": 1,
        "refused 403": 1,
    }
    assert [record.name for record in caplog.records] == ["yaat.error", "yaat.refused"]


# How to mount

MOUNT = "docs/how-to/mount.md"


async def hears(client: TestClient, url: str) -> Any:
    async with client.websocket(url) as ws:
        return await ws.receive()


async def test_router_in_an_application(file: File) -> None:
    app: Yaat = file(MOUNT, "routers.py").app

    @app.websocket_route("/feeds/later")
    async def later(websocket: Any) -> None:
        await websocket.accept()

    async with app.test_client() as client:
        assert await hears(client, "/feeds/prices/xyz") == "prices of xyz"
        assert (await refusal(client, "/feeds/later")).status == 404


async def test_prefix_for_both(file: File) -> None:
    async with file(MOUNT, "both.py").app.test_client() as client:
        assert await hears(client, "/live/news") == "over a socket"
        assert (await client.get("/live/news")).text == "over a request"


async def test_default_route(file: File) -> None:
    async with file(MOUNT, "default.py").app.test_client() as client:
        assert await hears(client, "/any/where") == "/any/where"


async def test_yaat_in_fastapi(file: File) -> None:
    async with TestClient(file(MOUNT, "in_fastapi.py").app) as client:
        async with client.websocket("/live/echo") as ws:
            await ws.send_text("hello")
            assert await ws.receive_text() == "hello"
        assert (await client.get("/items/3")).json() == {"item_id": 3}
        assert not await may_connect(client, "/live/echo", "https://evil.example")


async def test_one_route_in_fastapi(file: File) -> None:
    app = file(MOUNT, "one_route.py").app
    async with TestClient(app) as client, client.websocket("/echo/tea") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "tea: hello"
        await ws.send_text("x" * 4097)
        assert (await closing(ws))[0] == 1009


async def test_fastapi_in_yaat(file: File) -> None:
    async with file(MOUNT, "fastapi_in_yaat.py").app.test_client() as client:
        assert await hears(client, "/live") == "live"
        assert (await client.get("/api/items/3")).json() == {"item_id": 3}


async def test_only_the_outermost_lifespan_runs(file: File) -> None:
    begun: list[str] = []
    inner = Yaat(on_startup=[lambda: begun.append("inner")])
    outer = Yaat(on_startup=[lambda: begun.append("outer")])
    outer.mount("/inner", inner)
    around = file(MOUNT, "in_fastapi.py").app
    around.mount("/outer", outer)
    for app in (outer, around):
        async with TestClient(app):
            pass
    assert begun == ["outer"]


async def test_websockets_of_fastapi_in_yaat(file: File) -> None:
    module = file(MOUNT, "fastapi_in_yaat.py")

    async def theirs(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(type(websocket).__module__)

    module.api.websocket("/theirs")(theirs)
    async with module.app.test_client() as client:
        assert await hears(client, "/api/theirs") == "starlette.websockets"


# The HTTP half

HTTP = "docs/how-to/http.md"


async def test_routes(file: File) -> None:
    async with file(HTTP, "routes.py").app.test_client() as client:
        assert (await client.get("/")).text == "home"
        assert (await client.get("/posts/1")).json() == {"text": "first"}
        missing = await client.get("/posts/9")
        assert (missing.status_code, missing.json()) == (404, {"error": "no such post"})
        added = await client.post("/posts", json={"text": "third"})
        assert (added.status_code, added.json()) == (201, {"posts": 3})
        assert (await client.get("/posts")).status_code == 405
        assert (await client.get("/names/ada")).text == "ada"
        assert (await client.delete("/names/ada")).text == "ada is gone"
        assert (await client.put("/names/ada")).status_code == 405


async def test_templates(file: File) -> None:
    async with file(HTTP, "templated.py").app.test_client() as client:
        assert (await client.get("/hello/<b>")).text == "<h1>Hello &lt;b&gt;</h1>"


async def test_static_files(file: File) -> None:
    async with file(HTTP, "static_files.py").app.test_client() as client:
        assert (await client.get("/static/style.css")).text == "h1 { color: teal }\n"
        assert (await refusal(client, "/static/style.css")).status == 404


async def test_middleware(file: File) -> None:
    async with file(HTTP, "middleware.py").app.test_client() as client:
        answer = await client.get("/long", headers={"origin": "https://example.com"})
        assert answer.headers["x-powered-by"] == "yaat"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["access-control-allow-origin"] == "https://example.com"


async def test_background_task(file: File) -> None:
    module = file(HTTP, "background.py")
    async with module.app.test_client() as client:
        assert (await client.get("/register/ada")).text == "welcome"
    assert module.sent == ["ada"]


async def test_lifespan(file: File) -> None:
    async with file(HTTP, "lifespan.py").app.test_client() as client:
        assert (await client.get("/log")).text == "started"


# How to move here


@pytest.mark.parametrize("title", ["before.py", "after.py"])
async def test_from_starlette(file: File, title: str) -> None:
    app = file("docs/how-to/from-starlette.md", title).app
    async with TestClient(app) as client, client.websocket("/echo") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"


async def test_a_route_of_starlettes_class_keeps_starlettes_websocket() -> None:
    async def handler(websocket: StarlettesWebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(type(websocket).__module__)

    app = Yaat(routes=[StarlettesRoute("/", handler)])
    assert await hears(app.test_client(), "/") == "starlette.websockets"


async def test_exception_handlers_are_for_requests_only() -> None:
    async def answer(_: Request, __: Exception) -> TextResponse:
        return TextResponse("answered", 418)

    app = Yaat(exception_handlers={LookupError: answer})

    @app.websocket_route("/")
    @app.route("/")
    async def handler(_: object) -> None:
        raise LookupError

    client = app.test_client(raise_app_exceptions=False)
    assert (await client.get("/")).status_code == 418
    assert (await refusal(client, "/")).status == 500


async def test_from_the_yaat_of_2020(file: File) -> None:
    app = file("docs/how-to/from-yaat-2020.md", "app.py").app
    async with app.test_client() as client:
        answer = await client.get("/users/7")
        assert answer.json() == {"user": 7}
        assert answer.headers["x-polite"] == "yes"
        assert (await client.get("/items")).text == "items"
        assert (await client.post("/items")).text == "added"
        assert await hears(client, "/ws") == "hello"


async def test_what_is_gone_since_2020() -> None:
    for gone in ("openapi", "components"):
        with pytest.raises(ModuleNotFoundError):
            __import__(f"yaat.{gone}")
    for gone in ("ExceptionMiddleware", "LifespanMiddleware"):
        with pytest.raises(ImportError):
            exec(f"from yaat.middleware import {gone}")
    app = Yaat()
    for option in ("has_schema", "tags"):
        with pytest.raises(TypeError):
            app.route("/", **{option: None})(lambda _: None)
    assert app.test_client() is not app.test_client()


async def test_what_is_different_since_2020() -> None:
    app = Yaat()

    @app.route("/numbers/{number:int}", methods=["POST"])
    async def number(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    async with app.test_client() as client:
        assert (await client.post("/numbers/1", json=[])).json() == []
        assert (await client.post("/numbers/one", json=[])).status_code == 404
        with pytest.raises(json.JSONDecodeError):
            await client.post("/numbers/1")


# Topics and reference


async def test_observers_around_and_within_are_told() -> None:
    told: list[str] = []

    class Names(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def opened(self, _: Any) -> None:
            told.append(self.name)

    inner, outer = Yaat(observers=[Names("inner")]), Yaat(observers=[Names("outer")])
    outer.mount("/inner", inner)
    await refusal(outer.test_client(), "/inner/nowhere")
    assert sorted(told) == ["inner", "outer"]


async def test_who_reads_too_slowly_is_cut(file: File) -> None:
    module = file("docs/topics/backpressure.md", "cut.py")
    vars(module)["PATIENCE"] = 0.05
    async with module.app.test_client() as client, client.websocket("/feed") as ws:
        await ws.ended()
        assert await closing(ws) == (1013, "you read too slowly")


async def test_nearest_policy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(DOCS / "reference" / "policy.md", tmp_path, monkeypatch)
    await reading.follow()
    async with reading.names["app"].test_client() as client:
        async with client.websocket("/uploads/photo") as ws:
            await ws.send_bytes(bytes(2000))
            assert await ws.receive_json() == 2000
        async with client.websocket("/note") as ws:
            await ws.send_text("x" * 2000)
            assert (await closing(ws))[0] == 1009


async def test_websocket_made_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(DOCS / "reference" / "websocket.md", tmp_path, monkeypatch)
    await reading.follow()
    client = TestClient(reading.names["app"])
    assert await hears(client, "/?name=ada") == "hello ada"


async def test_program_of_the_first_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(DOCS / "index.md", tmp_path, monkeypatch)
    await reading.follow()
    async with reading.names["app"].test_client() as client, client.websocket("/echo") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"
