"""The public types, used as a user uses them. The type checkers read it, no test runs it.

What has to be an error stands behind a `type: ignore` with its code: mypy complains if it is none.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, assert_type

import fastapi
import httpx2
import starlette.applications
import starlette.routing

from yaat import (
    POSITIONED,
    RAW,
    BrokerError,
    BrokerUnavailable,
    Channel,
    ChannelError,
    ChannelOptions,
    Channels,
    Endpoint,
    HTTPException,
    MalformedError,
    Observer,
    Policy,
    Position,
    PositionLost,
    Present,
    Publication,
    Refused,
    Request,
    Router,
    UsageError,
    WebSocket,
    WebSocketCloseEvent,
    WebSocketDisconnect,
    WebSocketEndpoint,
    WebSocketException,
    Yaat,
    connect,
    connect_blocking,
)
from yaat.brokers import Broker, open_broker
from yaat.brokers.memory import MemoryBroker
from yaat.channels import (
    BlockingChannel,
    BlockingHub,
    Format,
    History,
    Hub,
    PresenceEvent,
    PresenceStats,
    Published,
)
from yaat.constants import WebSocketCloseEvent as WsClose
from yaat.frames import Frame
from yaat.middleware import BaseMiddleware, CORSMiddleware, Middleware
from yaat.requests import URL, Address, Headers, QueryParams
from yaat.responses import JSONResponse, Response, TextResponse
from yaat.routing import Mount, Route, WebSocketRoute
from yaat.server import ServerSettings, WebSocketProtocol, run
from yaat.staticfiles import StaticFiles
from yaat.testing import HandshakeRefused, TestClient, WebSocketSession
from yaat.types import ASGIApp, Message, Receive, Scope, Send
from yaat.websockets import WebSocketState

# An application


@asynccontextmanager
async def lifespan(app: Yaat) -> AsyncIterator[dict[str, int]]:
    yield {"started": 1}


async def start() -> None: ...
def stop() -> None: ...


class Metrics(Observer):
    def opened(self, scope: Scope) -> None:
        assert_type(scope["path"], Any)

    def closed(self, scope: Scope, code: int, reason: str) -> None: ...
    def dropped(self, scope: Scope, channel: str, slow: str) -> None: ...
    def cut(self, scope: Scope, channel: str) -> None: ...


class Tracing:
    def __init__(self, app: ASGIApp, name: str = "trace") -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Login(BaseMiddleware):
    async def handle_websocket(self, websocket: WebSocket) -> None:
        if "token" not in websocket.cookies:
            raise Refused("log in", status=401, headers={"www-authenticate": "Bearer"})
        await super().handle_websocket(websocket)


app = Yaat(
    middleware=[Middleware(Tracing, name="outer"), Middleware(CORSMiddleware, allow_origins=["*"])],
    middlewares=[Tracing, Login],
    lifespan=lifespan,
    on_startup=[start, stop],
    on_shutdown=[stop],
    policy=Policy(origins=["https://*.example.com"], max_message_bytes=2**16),
    observers=[Metrics()],
)
starlette_app: starlette.applications.Starlette = app
asgi_app: ASGIApp = app
app.add_middleware(Tracing, name="inner")
app.add_middleware(Tracing, nam="inner")  # type: ignore[call-arg]


@app.on_event("startup")
async def started() -> None: ...


@app.exception_handler(404)
async def lost(request: Request, error: Exception) -> Response:
    return TextResponse("lost", status_code=404)


# Handlers


@app.websocket_route("/rooms/{room}", policy=Policy(origins="*"))
async def room_handler(websocket: WebSocket, room: int) -> None:
    assert_type(await websocket.accept(), str | None)
    await websocket.accept("chat")
    await websocket.accept(["chat", "soap"], headers={"x-a": "1"})
    await websocket.accept(headers=[(b"x-a", b"1"), ("x-b", "2")])

    assert_type(await websocket.receive_text(), str)
    assert_type(await websocket.receive_bytes(), bytes)
    assert_type(await websocket.receive_data(), str | bytes)
    assert_type(await websocket.receive_json(), Any)
    assert_type(await websocket.receive_json(mode="binary"), Any)
    assert_type(await websocket.receive(), Message)
    async for text in websocket.iter_text():
        assert_type(text, str)
    async for data in websocket.iter_bytes():
        assert_type(data, bytes)
    async for value in websocket.iter_json("bytes"):
        assert_type(value, Any)

    await websocket.send_text("text")
    await websocket.send_bytes(memoryview(b"bytes"))
    await websocket.send_json({"a": [1, None]}, mode="bytes")
    await websocket.send({"type": "websocket.send", "text": "raw"})
    await websocket.send_denial_response(JSONResponse({"a": 1}, status_code=401))
    await websocket.close()
    await websocket.close(WsClose.ABNORMAL_CLOSURE)
    await websocket.close(4001, reason="bye")

    await websocket.send_text(b"bytes")  # type: ignore[arg-type]
    await websocket.send_bytes("text")  # type: ignore[arg-type]
    await websocket.send_json(1, mode="other")  # type: ignore[arg-type]
    await websocket.close("1000")  # type: ignore[arg-type]
    await websocket.accept(1)  # type: ignore[arg-type]


@app.websocket_route("/feed")
async def feed_handler(websocket: WebSocket) -> None:
    task = websocket.start_soon(count_to, 3, "x")
    assert_type(task, asyncio.Task[int])
    websocket.start_soon(count_to, "3")  # type: ignore[arg-type]
    await websocket.stream(numbers())
    await websocket.wait_closed()
    async with websocket as same:
        assert_type(same, WebSocket)
    assert_type(websocket.close_code, int | None)
    assert_type(websocket.close_reason, str)
    assert_type(websocket.client_state, WebSocketState)
    assert_type(websocket.application_state, WebSocketState)


async def count_to(number: int, word: str) -> int:
    return number


async def numbers() -> AsyncIterator[int]:
    yield 1


def looks_at(websocket: WebSocket) -> None:
    assert_type(websocket.url, URL)
    url: str = websocket.url
    assert_type(url.startswith("ws"), bool)
    assert_type(websocket.url.hostname, str | None)
    assert_type(websocket.url.port, int | None)
    assert_type(websocket.url.path, str)
    assert_type(websocket.headers, Headers)
    assert_type(websocket.headers["x-a"], str)
    assert_type(websocket.headers.getlist("x-a"), list[str])
    assert_type(websocket.query_params, QueryParams)
    assert_type(websocket.query_params["a"], str)
    assert_type(dict(websocket.query_params), dict[str, str])
    assert_type(websocket.path_params, dict[str, Any])
    assert_type(websocket.cookies, dict[str, str])
    assert_type(websocket.client, Address | None)
    assert_type(websocket.subprotocols, list[str])
    assert_type(websocket.path, str)
    assert_type(websocket["path"], Any)


# What a decorator returns is what it was given.
handler_of_rooms: Callable[[WebSocket, int], Awaitable[None]] = room_handler
wrong_handler: Callable[[str], Awaitable[None]] = room_handler  # type: ignore[assignment]


@app.websocket_route("/class")
class Chat(WebSocketEndpoint):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_json(data)


assert_type(Chat(), Chat)


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    websocket = WebSocket(scope, receive, send)
    await websocket.accept()


# Every way to add a route


async def ws_handler(websocket: WebSocket) -> None: ...


app.add_websocket_route(ws_handler)
app.add_websocket_route(handler=ws_handler)
app.add_websocket_route(ws_handler, policy=Policy())
app.add_websocket_route("/ws", ws_handler)
app.add_websocket_route("/ws", ws_handler, "name")
app.add_websocket_route(path="/ws", handler=ws_handler)
app.add_websocket_route("/ws", handler=ws_handler, name="name", policy=Policy())
app.add_websocket_route("/ws", endpoint=Chat)
app.add_websocket_route("/ws", bare)
app.add_websocket_route("/ws")  # type: ignore[call-overload]
app.add_websocket_route()  # type: ignore[call-overload]
app.add_websocket_route("/ws", ws_handler, handler=ws_handler)  # type: ignore[call-overload]
app.add_websocket_route(ws_handler, name="default")  # type: ignore[call-overload]


class WebSocketRouter(Router): ...


router = Router(
    [WebSocketRoute("/ws", ws_handler), Route("/", lambda request: TextResponse("x"))],
    policy=Policy(),
)
app.mount("/ws", router)
app.mount("/ws", router, "name", websocket=True)
app.mount(path="/ws", app=WebSocketRouter)
app.mount(prefix="ws", router=WebSocketRouter, websocket=True)
app.mount(prefix="ws", router=router, name="name")
app.mount("/fastapi", fastapi.FastAPI())
app.mount("/starlette", starlette.applications.Starlette())
app.mount("/router", starlette.routing.Router())
app.mount("/bare", bare)
app.mount("/static", StaticFiles("static"))
app.mount("/yaat", Yaat())
app.mount("/ws")  # type: ignore[call-overload]
app.mount(router=router)  # type: ignore[call-overload]
fastapi.FastAPI().mount("/yaat", app)
starlette.applications.Starlette(routes=[Mount("/yaat", app), Mount("/router", router)])
starlette.routing.WebSocketRoute("/ws", Endpoint(ws_handler))


@app.route("/posts/{post_id}", methods=["GET", "POST"])
async def post_handler(request: Request, post_id: int) -> JSONResponse:
    assert_type(request.url, URL)
    assert_type(await request.json(), Any)
    assert_type(request.query_params["a"], str)
    return JSONResponse({"id": post_id})


@router.route("/sync")
def sync_handler(request: Request) -> TextResponse:
    return TextResponse(str(request.url_for("post_handler", post_id=1)))


app.add_route("/also", post_handler)
app.add_route(path="/also", handler=post_handler, methods=["GET"])
assert_type(app.paths, list[str])

# Policies and errors

strict = Policy(max_message_bytes=10)
assert_type(strict.but(read_ahead=1), Policy)
assert_type(strict.allows_origin("https://example.com", None), bool)
Policy(["https://example.com"])  # type: ignore[call-arg]
Policy(colour="red")  # type: ignore[call-arg]
strict.read_ahead = 1  # type: ignore[misc]


# Channels

CHANNELS = Channels(
    {
        "room:{id}": ChannelOptions(history=100, ttl=600, presence=True),
        "log:{rest:path}": ChannelOptions(slow="latest", max_waiting=2**16),
    }
)
assert_type(CHANNELS.options("room:1"), ChannelOptions)
ChannelOptions(100)  # type: ignore[call-arg]
ChannelOptions(slow="drop")  # type: ignore[arg-type]
Channels({"room": 100})  # type: ignore[dict-item]
CHANNELS.options("room:1").history = 1  # type: ignore[misc]

talking = Yaat(broker="memory://", channels=CHANNELS)
Yaat(broker=MemoryBroker("space", max_channels=1000))
Yaat(broker=None, channels=None)
Yaat(broker=5)  # type: ignore[arg-type]
Yaat(channels={"room": ChannelOptions()})  # type: ignore[arg-type]
assert_type(talking.hub, Hub)
assert_type(talking.hub.dropped, int)
assert_type(talking.hub.cut, int)
assert_type(talking.channel("room:1"), Channel)
assert_type(Hub("memory://", CHANNELS).channel("room:1"), Channel)
assert_type(open_broker("memory://"), Broker)


@talking.websocket_route("/chat/{room}")
async def chat(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    channel = websocket.channel(f"room:{room}")
    async with channel.join(websocket, user="me", info={"a": 1}) as same:
        assert_type(same, Channel)
        async for text in websocket.iter_text():
            await same.publish(text, skip=websocket)
    since = websocket.query_params.get("since")
    async with channel.join(websocket, since=since, last=5, format=POSITIONED, on_lost=noted):
        pass
    async with channel.join(websocket, since=Position(1, "e"), format=RAW, on_lost=waited):
        pass
    channel.join()  # type: ignore[call-arg]
    channel.join(websocket, 5)  # type: ignore[call-arg, arg-type]
    channel.join(websocket, on_lost=5)  # type: ignore[arg-type]
    channel.join(websocket, format="raw")  # type: ignore[arg-type]


def noted(error: PositionLost) -> None:
    assert_type(error.channel, str)


async def waited(error: PositionLost) -> None: ...


@talking.route("/notify", methods=["POST"])
async def notify(request: Request) -> TextResponse:
    published = await request.channel("room:1").publish({"n": 1}, once="k", key="n")
    assert_type(published, Published)
    assert_type(published.position, Position)
    assert_type(published.duplicate, bool)
    return TextResponse(str(published.position))


async def listens(channel: Channel) -> None:
    async for publication in channel.subscribe(since=None, last=5):
        assert_type(publication, Publication)
        assert_type(publication.data, Any)
        assert_type(publication.position, Position)
        assert_type(publication.time, float)
    await channel.subscribe().aclose()
    history = await channel.history(since="1-e", limit=5, reverse=True)
    assert_type(history, History)
    assert_type(history.publications, list[Publication])
    assert_type(history.top, Position)
    assert_type(history.complete, bool)
    await channel.remove_history()
    assert_type(await channel.presence(), list[Present])
    assert_type(await channel.presence_stats(), PresenceStats)
    async for event in channel.presence_events():
        assert_type(event, PresenceEvent)
        assert_type(event.present, Present)
        assert_type(event.present.user, str | None)
    assert_type(channel.name, str)
    assert_type(channel.options, ChannelOptions)
    channel.name = "other"  # type: ignore[misc]
    await channel.publish("x", 5)  # type: ignore[call-arg, arg-type]
    await channel.publish("x", skip="me")  # type: ignore[arg-type]
    await channel.publish("x", once=5)  # type: ignore[arg-type]
    await channel.publish("x", ttl=5)  # type: ignore[call-arg]


async def publishes_from_outside() -> None:
    async with connect("redis://localhost", channels=CHANNELS) as broker:
        assert_type(broker, Hub)
        assert_type(await broker.channel("room:1").publish({"n": 1}), Published)
    async with connect(MemoryBroker("space")) as broker:
        assert_type(broker.channel("room:1"), Channel)
    connect()  # type: ignore[call-arg]
    connect(None)  # type: ignore[arg-type]
    connect("redis://localhost", CHANNELS)  # type: ignore[call-arg]


def publishes_from_a_thread() -> None:
    with connect_blocking("redis://localhost", channels=CHANNELS) as broker:
        assert_type(broker, BlockingHub)
        assert_type(broker.channels, Channels)
        channel = broker.channel("room:1")
        assert_type(channel, BlockingChannel)
        assert_type(channel.name, str)
        assert_type(channel.options, ChannelOptions)
        assert_type(channel.publish({"n": 1}, once="k", key="n"), Published)
        assert_type(channel.history(since="1-e", limit=5, reverse=True), History)
        assert_type(channel.presence(), list[Present])
        assert_type(channel.presence_stats(), PresenceStats)
        for publication in channel.subscribe(since=Position(1, "e"), last=5):
            assert_type(publication, Publication)
        channel.subscribe().close()
        channel.remove_history()
        channel.publish("x", skip=None)  # type: ignore[call-arg]
        channel.join()  # type: ignore[attr-defined]
    broker.close()
    connect_blocking(MemoryBroker())  # type: ignore[arg-type]
    connect_blocking("redis://localhost", CHANNELS)  # type: ignore[call-arg]


class Loud:
    """A format of an application's own."""

    def encode(self, channel: str, publication: Publication) -> Frame | None:
        return Frame("text", f"{channel}: {publication.data}!")

    def stand(self, channel: str, position: Position) -> Frame | None:
        return None


loud: Format = Loud()
raw: Format = RAW


async def fails(channel: Channel) -> None:
    try:
        await channel.publish("x")
    except BrokerUnavailable as error:
        assert_type(error.maybe_published, bool)
        assert_type(error.retry_in, float | None)
    except (BrokerError, ChannelError) as error:
        assert_type(error.close_code, int)
        assert_type(error.status, int)


# The server, and what it offers

settings = ServerSettings(host="::", port=0, reload_dirs=("src",), idle_timeout=60.0)
assert_type(settings.but(drain=5.0), ServerSettings)
assert_type(settings.ping_interval, float | None)
ServerSettings("127.0.0.1")  # type: ignore[call-arg]
ServerSettings(port="80")  # type: ignore[arg-type]
ServerSettings(colour="red")  # type: ignore[call-arg]
settings.port = 1  # type: ignore[misc]


class Patient(WebSocketProtocol):
    settings = ServerSettings(close_timeout=60.0)


class Wrong(WebSocketProtocol):
    settings = 60.0  # type: ignore[assignment]


def starts() -> None:
    run("app:app")
    run(app, settings)
    run(asgi_app, ServerSettings())
    run(1)  # type: ignore[arg-type]


text_frame = Frame("text", "a")
assert_type(text_frame.data, str | bytes)
assert_type(text_frame.payload, bytes)
assert_type(text_frame.event(), Message)
Frame("binary", b"a")  # type: ignore[arg-type]
Frame("bytes", bytearray())  # type: ignore[arg-type]
text_frame.data = "b"  # type: ignore[misc]


async def writes(scope: Scope, receive: Receive, send: Send) -> None:
    wire = (scope.get("extensions") or {}).get("yaat.wire")
    if wire is not None and send == wire["send"]:
        taken: bool = wire["write"](text_frame)
        assert taken
    else:
        await send(text_frame.event())


async def catches(websocket: WebSocket) -> None:
    try:
        await websocket.receive_json()
    except WebSocketDisconnect as departure:
        assert_type(departure.code, int)
        assert_type(departure.reason, str)
    except MalformedError as error:
        assert_type(error.close_code, int)
    except UsageError:
        raise HTTPException(404) from None
    raise WebSocketException(WebSocketCloseEvent.POLICY_VIOLATION, "no")


# The test client


async def uses_the_client() -> None:
    async with app.test_client(timeout=1) as client:
        assert_type(client, TestClient)
        response = await client.get("/posts/1", params={"a": "1"})
        assert_type(response, httpx2.Response)
        options: dict[str, Any] = {"extensions": None}
        async with client.websocket("/ws", subprotocols=["chat"], scope=options) as session:
            assert_type(session, WebSocketSession)
            assert_type(session.subprotocol, str | None)
            await session.send_text("hi")
            assert_type(await session.receive(), str | bytes)
            assert_type(await session.receive_text(), str)
            assert_type(await session.receive_bytes(), bytes)
            assert_type(await session.receive_json(), Any)
            async for message in session:
                assert_type(message, str | bytes)
            await session.close(None)
            await session.cut()
    try:
        await TestClient(bare).websocket("/ws").__aenter__()
    except HandshakeRefused as refused:
        assert_type(refused.status, int)
        assert_type(refused.headers["x-a"], str)
        assert_type(refused.text, str)
