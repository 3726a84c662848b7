"""The page it began with: its blocks run verbatim, and every name on it means what it says.

The blocks run in a real server process and talk to a real client. What the page leaves open is
settled in 22 rows, each with a test (or several) of its name below; those run in process, where a
server adds nothing. That it is the same on every server is the matter of test_behaviours.py.
"""

import ast
import dataclasses
import datetime as dt
import enum
import hashlib
import inspect
import json
import logging
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clients import Closed, Refused, connect
from documents import SEED, blocks
from servers import SPECS, Server
from yaat import websockets
from yaat.app import Yaat
from yaat.constants import WebSocketCloseEvent, travelling_code
from yaat.exceptions import (
    MalformedError,
    StateError,
    UsageError,
    WebSocketDisconnect,
    WrongKindError,
)
from yaat.observer import Observer
from yaat.requests import HTTPConnection, Request
from yaat.responses import TextResponse
from yaat.routing import Router
from yaat.staticfiles import StaticFiles
from yaat.testing import HandshakeRefused, TestClient, WebSocketSession
from yaat.websockets import WebSocket

DIGEST = "32740ce08b7517fe3bd750eb2da3c970ae6ece4bef61abaee8fba938325ebcdf"

CLOSE, CODES, ROUTE, ADD, MOUNT = blocks(SEED, "python")


def test_the_page_is_the_users_own_byte_for_byte() -> None:
    assert hashlib.sha256(SEED.read_bytes()).hexdigest() == DIGEST


# The blocks, verbatim

HEAD = "from yaat import Yaat\n\napp = Yaat()\n"


def program(block: str, before: str = HEAD, after: str = "") -> str:
    """A module that holds a block as it is printed."""
    whole = f"{before}\n\n{block}\n\n{after}"
    assert block in whole
    return whole


def elided(block: str, before: str, within: str) -> str:
    """Fill in what a block leaves out: each `...` stands for some of the program."""
    first, second, *_ = block.split("...\n")
    whole = f"{before}\n\n{first}\n{within}{second}"
    for line in block.splitlines():
        assert line == "..." or f"{line}\n" in whole
    return whole


HANDLER = """
@app.websocket_route("/ws")
async def handler(websocket):
    await websocket.accept()
"""

EACH_CODE = """
@app.websocket_route("/{name}")
async def close_with(websocket, name):
    await websocket.accept()
    await websocket.close(getattr(WebSocketCloseEvent, name))
"""

A_ROUTER = """
from yaat.routing import Router

WebSocketRouter = Router()


@WebSocketRouter.websocket_route("/hello")
async def hello(websocket):
    await websocket.accept()
    await websocket.send_text("Hello")
    await websocket.close()
"""

A_ROUTER_CLASS = """
from starlette.routing import BaseRoute
from yaat.routing import Router, WebSocketRoute


async def hello(websocket):
    await websocket.accept()
    await websocket.send_text("Hello")
    await websocket.close()


class WebSocketRouter(Router):
    def __init__(self):
        super().__init__([WebSocketRoute("/hello", hello)])
"""

Serve = Callable[[str], Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve a program in a process of its own."""
    servers: list[Server] = []

    def start(source: str) -> Server:
        (tmp_path / "seed.py").write_text(source, encoding="utf-8")
        path = {"PYTHONPATH": str(tmp_path)}
        servers.append(Server(SPECS["uvicorn-sansio"], "seed:app", tmp_path, path))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


async def heard(url: str) -> tuple[list[str | bytes], int]:
    """What a client hears of a connection to its end, and the code of that."""
    messages = []
    async with connect(url) as client:
        try:
            while True:
                messages.append(await client.receive())
        except Closed as end:
            return messages, end.code


async def test_block_of_close_codes_by_name(serve: Serve) -> None:
    server = serve(elided(CLOSE.code, HEAD, HANDLER))
    assert await heard(server.url("/ws")) == ([], 1011)
    assert await heard(server.url("/ws")) == ([], 1011)
    # It never travels, which one warning says; nothing crashed.
    assert server.written_since().count("close code 1006 must not travel") == 1
    assert "Traceback" not in server.written_since()


async def test_block_of_the_class_of_close_codes(serve: Serve) -> None:
    server = serve(program(CODES.code, after=EACH_CODE))
    names: dict[str, Any] = {}
    exec(CODES.code, names)
    printed = names["WebSocketCloseEvent"]
    codes = {name: code for name, code in vars(printed).items() if name.isupper()}
    assert codes == {each.name: each.value for each in WebSocketCloseEvent}
    for name, code in codes.items():
        assert await heard(server.url(f"/{name}")) == ([], travelling_code(code))


async def test_block_of_the_decorator(serve: Serve) -> None:
    assert await heard(serve(program(ROUTE.code)).url("/ws")) == (["Hello"], 1000)


async def test_block_of_add_websocket_route(serve: Serve) -> None:
    server = serve(program(ADD.code))
    for path in ("/", "/ws", "/any/where"):
        assert await heard(server.url(path)) == (["Hello"], 1000)


@pytest.mark.parametrize("router", [A_ROUTER, A_ROUTER_CLASS])
async def test_block_of_mount(serve: Serve, router: str) -> None:
    server = serve(program(MOUNT.code, before=HEAD + router))
    assert await heard(server.url("/ws/hello")) == (["Hello"], 1000)
    with pytest.raises(Refused) as refused:
        await heard(server.url("/hello"))
    assert refused.value.status == 404


# The signatures, as printed

SIGNATURES = [
    line.strip(" -`")
    for line in SEED.read_text(encoding="utf-8").splitlines()
    if line.strip(" -").startswith(("`await websocket.", "`WebSocket(", "`add_websocket_route("))
]


@pytest.mark.parametrize("printed", SIGNATURES)
def test_signatures_are_as_printed(printed: str) -> None:
    call = ast.parse(printed.removeprefix("await "), mode="eval").body
    assert isinstance(call, ast.Call)
    function = ast.unparse(call.func)
    owner = {"WebSocket": WebSocket, "add_websocket_route": Yaat.add_websocket_route}.get(function)
    target: Any = owner or getattr(WebSocket, function.removeprefix("websocket."))
    parameters = inspect.signature(target).parameters
    positional = [name for name in parameters if name != "self"]
    named = [ast.unparse(argument) for argument in call.args]
    for name in named:
        assert name in positional
    if function != "add_websocket_route":
        assert positional[: len(named)] == named
    for keyword in call.keywords:
        assert keyword.arg is not None
        assert parameters[keyword.arg].default == ast.literal_eval(keyword.value)


def test_there_is_a_signature_of_everything() -> None:
    named = {signature.split("(")[0].split(".")[-1] for signature in SIGNATURES}
    sending = {"send_text", "send_bytes", "send_json", "send"}
    receiving = {"receive_text", "receive_bytes", "receive_json", "receive"}
    others = {"WebSocket", "accept", "close", "add_websocket_route"}
    assert named == sending | receiving | others


# The 22 rows

Handler = Callable[[WebSocket], Awaitable[Any]]


def talk(handler: Handler, url: str = "/", **options: Any) -> WebSocketSession:
    """A connection to an application of one handler."""
    app = Yaat()
    app.add_websocket_route(handler)
    return TestClient(app, raise_app_exceptions=False).websocket(url, **options)


async def ending(session: WebSocketSession) -> tuple[int, str]:
    """The close code and the reason of a connection that the application ends."""
    async with session as ws:
        return await end_of(ws)


async def end_of(ws: WebSocketSession) -> tuple[int, str]:
    try:
        while True:
            await ws.receive()
    except WebSocketDisconnect as end:
        return end.code, end.reason


async def refusal(session: WebSocketSession) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as refused:
        async with session:
            pass
    return refused.value


async def looked_at(url: str, look: Callable[[WebSocket], Any], **options: Any) -> Any:
    """What a look at the WebSocket of a connection shows."""
    seen: list[Any] = []

    async def handler(websocket: WebSocket) -> None:
        seen.append(look(websocket))
        await websocket.accept()

    async with talk(handler, url, **options):
        return seen[0]


class Script:
    """A server that brings what is written, and remembers what is sent."""

    def __init__(self, *messages: dict[str, Any], **scope: Any) -> None:
        self.messages = [{"type": "websocket.connect"}, *messages]
        self.sent: list[Any] = []
        self.scope = {"type": "websocket", "path": "/", "headers": [], **scope}

    async def receive(self) -> Any:
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def websocket(self) -> WebSocket:
        return WebSocket(self.scope, self.receive, self.send)


async def opened(*messages: dict[str, Any]) -> tuple[WebSocket, Script]:
    script = Script(*messages)
    websocket = script.websocket()
    await websocket.accept()
    script.sent.clear()
    return websocket, script


def came(**data: Any) -> dict[str, Any]:
    return {"type": "websocket.receive", **data}


LEFT = {"type": "websocket.disconnect", "code": 4000, "reason": "bye"}


async def test_row_01_a_websocket_of_ones_own() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    async with TestClient(app).websocket("/") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"
        assert await end_of(ws) == (1000, "")


def test_row_01_another_scope() -> None:
    statement = "from yaat import *; WebSocket({'type': 'http'}, None, None)"
    for options in ([], ["-O"]):
        command = [sys.executable, *options, "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "yaat.exceptions.UsageError: the scope is one of 'http'" in done.stderr


async def test_row_02_similar_properties_as_request() -> None:
    shared = {
        *("url", "headers", "query_params", "path_params", "cookies", "client", "app", "state"),
        *("session", "user", "auth", "path"),
    }
    for name in shared:
        assert hasattr(HTTPConnection, name)
        own = name in vars(WebSocket) or name in vars(Request)
        assert not own
    assert issubclass(WebSocket, HTTPConnection)
    assert issubclass(Request, HTTPConnection)
    scope = {"session": {"a": 1}, "user": "ada", "auth": ["in"], "client": ("10.0.0.1", 5)}
    seen = await looked_at(
        "/here?a=1",
        lambda ws: (
            *(ws.path, ws["path"], ws.session, ws.user, ws.auth, ws.subprotocols, ws.cookies),
            *(tuple(ws.client or ()), ws.path_params, isinstance(ws.app, Yaat)),
        ),
        scope=scope,
        subprotocols=["v1"],
        headers={"cookie": "c=d"},
    )
    expected = ("/here", "/here", {"a": 1}, "ada", ["in"], ["v1"], {"c": "d"})
    assert seen == (*expected, ("10.0.0.1", 5), {}, True)


async def test_row_03_url_is_a_string_with_its_parts() -> None:
    address = "http://ada.example:8080/b/c?d=e"
    url = await looked_at(address, lambda ws: ws.url)
    assert isinstance(url, str)
    assert url == "ws://ada.example:8080/b/c?d=e"
    assert "ada" in url
    assert url.startswith("ws:")
    assert [f"{url}", json.loads(json.dumps(url))] == [str(url)] * 2
    parts = {
        "scheme": "ws",
        "host": "ada.example",
        "hostname": "ada.example",
        "port": 8080,
        "netloc": "ada.example:8080",
        "path": "/b/c",
        "query": "d=e",
        "fragment": "",
        "server": ("ada.example", 8080),
        "host_header": "ada.example:8080",
    }
    assert {name: getattr(url, name) for name in parts} == parts
    for address, secure in (("http://ada.example/", False), ("https://ada.example/", True)):
        assert await looked_at(address, lambda ws: ws.url.is_secure()) is secure


async def test_row_03_root_path_is_not_added_twice() -> None:
    inner, outer = Router(), Yaat()
    seen: list[Any] = []

    @inner.websocket_route("/in")
    async def handler(websocket: WebSocket) -> None:
        seen.append((websocket.url.path, websocket["root_path"]))

    outer.mount("/out", inner)
    scope = {"root_path": "/proxy", "path": "/proxy/out/in"}
    await refusal(TestClient(outer).websocket("/proxy/out/in", scope=scope))
    assert seen == [("/proxy/out/in", "/proxy/out")]


async def test_row_04_headers() -> None:
    pairs = [(b"host", b"a"), (b"x-one", b"1"), (b"x-two", b"a"), (b"x-two", b"b")]
    headers = await looked_at("/", lambda ws: ws.headers, scope={"headers": pairs})
    assert headers["X-One"] == headers["x-one"] == "1"
    assert headers.getlist("x-two") == ["a", "b"]
    with pytest.raises(TypeError):
        headers["x-one"] = "2"


async def test_row_05_query_params() -> None:
    query = await looked_at("/?a=1&a=2&b=%C3%A4&c", lambda ws: ws.query_params)
    assert dict(query) == {"a": "2", "b": "ä", "c": ""}
    assert query["a"] == "2"
    assert query.getlist("a") == ["1", "2"]


@pytest.mark.parametrize(
    ("subprotocol", "chosen"),
    [(None, None), ("v1", "v1"), (["v3", "v2", "v1"], "v2"), (("v1", "v2"), "v1"), (["v3"], None)],
)
async def test_row_06_accept_chooses_a_subprotocol(subprotocol: Any, chosen: str | None) -> None:
    async def handler(websocket: WebSocket) -> None:
        assert await websocket.accept(subprotocol) == chosen

    async with talk(handler, subprotocols=["v1", "v2"]) as ws:
        assert ws.subprotocol == chosen


async def test_row_06_accept_refuses_what_was_not_offered_and_a_second_time() -> None:
    async def handler(websocket: WebSocket) -> None:
        with pytest.raises(UsageError):
            await websocket.accept("v2")
        await websocket.accept(headers=[(b"x-a", b"1"), (b"x-a", b"2")])
        with pytest.raises(StateError):
            await websocket.accept()
        await websocket.close(4000)

    async with talk(handler, subprotocols=["v1"]) as ws:
        assert ws.headers.get_list("x-a") == ["1", "2"]
        assert await end_of(ws) == (4000, "")


async def test_row_07_sending_the_wrong_type_sends_nothing() -> None:
    websocket, script = await opened()
    for text in (b"bytes", None, 1, bytearray()):
        with pytest.raises(TypeError):
            await websocket.send_text(text)  # type: ignore[arg-type]
    for data in ("text", None, 1, [1]):
        with pytest.raises(TypeError):
            await websocket.send_bytes(data)  # type: ignore[arg-type]
    assert script.sent == []


async def test_row_07_bytes_are_bytes_of_every_kind() -> None:
    websocket, script = await opened()
    for data in (b"one", bytearray(b"one"), memoryview(b"one")):
        await websocket.send_bytes(data)
    assert script.sent == [{"type": "websocket.send", "bytes": b"one"}] * 3
    assert {type(message["bytes"]) for message in script.sent} == {bytes}


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    colour: Colour


class Line(msgspec.Struct):
    length: float


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None, True]}, '{"a":[1,null,true]}'),
        ("ä", '"ä"'),
        (None, "null"),
        (Point(1, Colour.RED), '{"x":1,"colour":"red"}'),
        (Line(1.5), '{"length":1.5}'),
        (dt.datetime(2020, 1, 2, tzinfo=dt.UTC), '"2020-01-02T00:00:00Z"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (WebSocketCloseEvent.GOING_AWAY, "1001"),
    ],
)
async def test_row_08_send_json_takes_any_value(value: Any, text: str) -> None:
    websocket, script = await opened()
    await websocket.send_json(value)
    await websocket.send_json(value, mode="bytes")
    await websocket.send_json(value, mode="binary")
    kinds = {"type": "websocket.send"}
    data = {**kinds, "bytes": text.encode()}
    assert script.sent == [{**kinds, "text": text}, data, data]


async def test_row_08_send_json_in_another_mode() -> None:
    websocket, script = await opened()
    for error in (UsageError, ValueError):
        with pytest.raises(error):
            await websocket.send_json({}, mode="json")  # type: ignore[arg-type]
    assert script.sent == []


@pytest.mark.parametrize(
    ("call", "message", "value"),
    [
        ("receive_text", came(text="a"), "a"),
        ("receive_text", came(text="", bytes=None), ""),
        ("receive_bytes", came(bytes=b"a"), b"a"),
        ("receive_bytes", came(text=None, bytes=b""), b""),
    ],
)
async def test_row_09_every_shape_of_a_message(
    call: str, message: dict[str, Any], value: str | bytes
) -> None:
    websocket, _ = await opened(message)
    assert await getattr(websocket, call)() == value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("receive_text", came(bytes=b"a")),
        ("receive_text", came(bytes=b"", text=None)),
        ("receive_bytes", came(text="a")),
        ("receive_json", came(bytes=b"1")),
    ],
)
async def test_row_09_the_other_kind(call: str, message: dict[str, Any]) -> None:
    websocket, _ = await opened(message)
    with pytest.raises(WrongKindError):
        await getattr(websocket, call)()


async def test_row_09_the_other_kind_uncaught_closes_1003() -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_bytes()

    async with talk(handler) as ws:
        await ws.send_text("text")
        assert (await end_of(ws))[0] == 1003


async def test_row_09_before_accept() -> None:
    for call in ("receive_text", "receive_bytes", "receive_json"):
        with pytest.raises(StateError):
            await getattr(Script().websocket(), call)()


@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], "text", 1.5, None, True])
async def test_row_10_receive_json_returns_any_value(value: Any) -> None:
    text = json.dumps(value)
    modes = {"text": came(text=text), "bytes": came(bytes=text.encode())}
    for mode, message in {**modes, "binary": modes["bytes"]}.items():
        websocket, _ = await opened(message)
        assert await websocket.receive_json(mode) == value  # type: ignore[arg-type]


async def test_row_10_malformed_is_a_value_error_and_1007() -> None:
    assert issubclass(MalformedError, ValueError)

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        with pytest.raises(ValueError, match="not valid JSON"):
            await websocket.receive_json("bytes")
        await websocket.receive_json()

    async with talk(handler) as ws:
        await ws.send_bytes(b'"\xff"')
        await ws.send_text("{")
        assert (await end_of(ws))[0] == 1007


async def test_row_11_raw_messages_move_the_state() -> None:
    script = Script(came(text="a"), LEFT)
    websocket = script.websocket()
    assert await websocket.receive() == {"type": "websocket.connect"}
    await websocket.send({"type": "websocket.accept"})
    await websocket.send_text("hello")
    assert await websocket.receive() == came(text="a")
    assert await websocket.receive() == LEFT
    with pytest.raises(StateError):
        await websocket.receive()
    with pytest.raises(WebSocketDisconnect) as left:
        await websocket.send_text("anybody there?")
    assert (left.value.code, left.value.reason) == (4000, "bye")
    assert [message["type"] for message in script.sent] == ["websocket.accept", "websocket.send"]


async def test_row_11_an_illegal_message_names_what_would_be_legal() -> None:
    websocket, script = await opened()
    await websocket.send({"type": "websocket.close", "code": 4000})
    with pytest.raises(StateError) as mistake:
        await websocket.send({"type": "websocket.send", "text": "late"})
    assert "websocket.send is not legal while closing" in str(mistake.value)
    assert "legal here: websocket.close" in str(mistake.value)
    assert len(script.sent) == 1


async def test_row_12_close_with_a_reason_and_twice() -> None:
    reason = "ä" * 61 + "x"
    websocket, script = await opened()
    for wrong in (f"{reason}x", "x" * 124):
        with pytest.raises(ValueError, match="at most 123 bytes"):
            await websocket.close(4000, wrong)
    await websocket.close(4000, reason)
    await websocket.close(4001)
    assert script.sent == [{"type": "websocket.close", "code": 4000, "reason": reason}]


async def test_row_12_close_after_the_peer_left() -> None:
    websocket, script = await opened(LEFT)
    with pytest.raises(WebSocketDisconnect):
        await websocket.receive_text()
    await websocket.close()
    assert script.sent == []


async def test_row_12_close_before_accept_refuses_with_403() -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.close(4000)

    assert (await refusal(talk(handler))).status == 403


@pytest.mark.parametrize(("code", "travels"), [(1005, 1000), (1006, 1011), (1015, 1011)])
async def test_row_13_what_never_travels_has_a_stand_in(
    code: int, travels: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websockets, "_warned", set())
    for _ in range(2):
        websocket, script = await opened()
        await websocket.close(code)
        assert script.sent[0]["code"] == travels
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(code) in warning.getMessage()


@pytest.mark.parametrize("code", [0, 999, 1004, 1016, 2999, 5000, -1])
async def test_row_13_other_codes_are_value_errors(code: int) -> None:
    websocket, script = await opened()
    with pytest.raises(ValueError, match="no close code"):
        await websocket.close(code)
    assert script.sent == []


def test_row_14_close_codes() -> None:
    assert issubclass(WebSocketCloseEvent, enum.IntEnum)
    assert len(WebSocketCloseEvent) == 15
    number: int = WebSocketCloseEvent.ABNORMAL_CLOSURE
    assert number == 1006
    assert json.dumps(WebSocketCloseEvent.ABNORMAL_CLOSURE) == "1006"


async def test_row_15_the_decorator_passes_an_instance_and_path_parameters() -> None:
    seen: list[Any] = []
    app, router = Yaat(), Router()

    async def handler(websocket: WebSocket, number: int, ratio: float, name: str) -> None:
        seen.append((type(websocket), number, ratio, name))

    for owner in (app, router):
        assert owner.websocket_route("/{number}/{ratio}/{name}")(handler) is handler
    app.mount("/in", router)
    for url in ("/7/0.5/8", "/in/7/0.5/8", "/x/y/8"):
        await refusal(TestClient(app).websocket(url))
    assert seen == [(WebSocket, 7, 0.5, "8")] * 2 + [(WebSocket, "x", "y", "8")]


async def test_row_15_a_class_with_a_method_for_each_event() -> None:
    app = Yaat()
    left: list[int] = []

    @app.websocket_route("/{name}")
    class Greeter:
        async def on_connect(self, websocket: WebSocket, name: str) -> None:
            self.name = name
            await websocket.accept()

        async def on_receive(self, websocket: WebSocket, data: str) -> None:
            await websocket.send_text(f"{data} {self.name}")

        async def on_disconnect(self, _: WebSocket, close_code: int) -> None:
            left.append(close_code)

    async with TestClient(app).websocket("/ada") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello ada"
        await ws.close(4000)
        await ws.ended()
    assert left == [4000]


def saying(word: str) -> Handler:
    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(word)

    return handler


async def word_at(app: Any, url: str) -> str | int:
    """What is said at a URL, or the status of its refusal."""
    try:
        async with TestClient(app).websocket(url) as ws:
            return await ws.receive_text()
    except HandshakeRefused as refused:
        return refused.status


async def test_row_16_with_a_path_and_without(tmp_path: Path) -> None:
    app, inner = Yaat(), Router()
    app.add_websocket_route("/positional", saying("positional"))
    app.add_websocket_route(path="/named", handler=saying("named"))
    app.add_websocket_route(saying("default"))
    inner.add_websocket_route("/known", saying("known"))
    app.mount("/inner", inner)
    app.mount("/static", StaticFiles(tmp_path))
    words = {
        "/positional": "positional",
        "/named": "named",
        "/": "default",
        "/any/where": "default",
        "/inner/known": "known",
        "/inner/unknown": 404,
        "/static/file": "default",
    }
    assert {url: await word_at(app, url) for url in words} == words
    inner.add_websocket_route(saying("default within"))
    assert await word_at(app, "/inner/unknown") == "default within"


@pytest.mark.parametrize("prefix", ["ws", "/ws", "ws/", "/ws/"])
async def test_row_17_slashes_around_the_prefix(prefix: str) -> None:
    app, router = Yaat(), Router()
    router.add_websocket_route("/hello", saying("hello"))
    app.mount(prefix=prefix, router=router, websocket=True)
    assert await word_at(app, "/ws/hello") == "hello"


class Hello(Router):
    def __init__(self) -> None:
        super().__init__()
        self.add_websocket_route("/hello", saying("hello"))


async def test_row_17_what_may_be_mounted() -> None:
    yaat = Yaat()
    yaat.mount("", Hello())

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await Hello()(scope, receive, send)

    for mounted in (Hello(), yaat, bare, Hello):
        app = Yaat()
        app.mount(prefix="outer/ws", router=mounted)
        assert await word_at(app, "/outer/ws/hello") == "hello"


async def test_row_17_websocket_alone_or_both() -> None:
    async def page(_: Request) -> TextResponse:
        return TextResponse("outside")

    async def within(_: Request) -> TextResponse:
        return TextResponse("within")

    pages = {}
    for websocket in (True, False):
        app, router = Yaat(), Hello()
        router.add_route("/hello", within)
        app.mount(prefix="ws", router=router, websocket=websocket)
        app.add_route("/ws/hello", page)
        assert await word_at(app, "/ws/hello") == "hello"
        pages[websocket] = (await TestClient(app).get("/ws/hello")).text
    assert pages == {True: "outside", False: "within"}


async def test_row_17_as_starlettes_extensions_call_it() -> None:
    app = Yaat()
    app.mount("/ws", Hello(), "mounted")
    app.add_websocket_route("/other", saying("other"), "named")
    app.add_websocket_route("/third", sayer)
    assert await word_at(app, "/ws/hello") == "hello"
    assert app.url_path_for("named") == "/other"
    assert app.url_path_for("sayer") == "/third"
    assert app.url_path_for("mounted", path="/hello") == "/ws/hello"


async def sayer(websocket: WebSocket) -> None:
    await websocket.accept()


async def test_row_18_one_path_for_both() -> None:
    app = Yaat()
    app.add_websocket_route("/both", saying("over a socket"))

    @app.route("/both")
    async def both(_: Request) -> TextResponse:
        return TextResponse("over a request")

    assert await word_at(app, "/both") == "over a socket"
    assert (await TestClient(app).get("/both")).text == "over a request"


async def test_row_19_no_route() -> None:
    client = TestClient(Yaat())
    assert (await refusal(client.websocket("/"))).status == 404
    unable = client.websocket("/", scope={"extensions": {}})
    assert (await refusal(unable)).status == 403


class Told(Observer):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def failed(self, _: Any, error: BaseException) -> None:
        self.errors.append(error)


async def test_row_20_an_uncaught_exception(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    app = Yaat(observers=[told])
    mistake = LookupError("secret")

    @app.websocket_route("/{accepted}")
    async def handler(websocket: WebSocket, accepted: str) -> None:
        if accepted == "yes":
            await websocket.accept()
        raise mistake

    client = TestClient(app, raise_app_exceptions=False)
    assert await ending(client.websocket("/yes")) == (1011, "")
    refused = await refusal(client.websocket("/no"))
    assert refused.status == 500
    assert b"secret" not in refused.body
    unable = client.websocket("/no", scope={"extensions": None})
    assert (await refusal(unable)).status == 403
    assert told.errors == [mistake] * 3
    assert [record.name for record in caplog.records] == ["yaat.error"] * 3
    assert all(record.exc_info and record.exc_info[1] is mistake for record in caplog.records)


async def test_row_20_the_test_client_gets_the_exception() -> None:
    app = Yaat()

    @app.websocket_route("/")
    async def handler(_: WebSocket) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        async with app.test_client() as client, client.websocket("/"):
            pass


async def test_row_20_a_handler_that_returns() -> None:
    async def accepts(websocket: WebSocket) -> None:
        await websocket.accept()

    async def returns(_: WebSocket) -> None: ...

    assert await ending(talk(accepts)) == (1000, "")
    assert (await refusal(talk(returns))).status == 403


async def test_row_21_the_peer_leaves(caplog: pytest.LogCaptureFixture) -> None:
    learned: list[tuple[int, str]] = []

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        for attempt in (websocket.receive_text, lambda: websocket.send_text("anybody?")):
            try:
                await attempt()
            except WebSocketDisconnect as left:
                learned.append((left.code, left.reason))
        await websocket.send_text("uncaught")

    async with talk(handler) as ws:
        await ws.close(4000, "bye")
        await ws.ended()
    async with talk(handler) as ws:
        await ws.cut()
        await ws.ended()
    assert learned == [(4000, "bye")] * 2 + [(1006, "")] * 2
    assert not caplog.records


@pytest.mark.parametrize(
    ("call", "messages", "values"),
    [
        ("iter_text", [came(text="a"), came(text="")], ["a", ""]),
        ("iter_bytes", [came(bytes=b"a"), came(bytes=b"")], [b"a", b""]),
        ("iter_json", [came(text="[1]"), came(text="null")], [[1], None]),
    ],
)
async def test_row_22_iteration(call: str, messages: list[Any], values: list[Any]) -> None:
    websocket, _ = await opened(*messages, LEFT)
    iterator: AsyncIterator[Any] = getattr(websocket, call)()
    assert [value async for value in iterator] == values
