"""The same paths in a Starlette application, with Starlette's own words."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from apps.plain import (
    ACCEPT_HEADERS,
    BIG,
    DENIALS,
    MESSAGES,
    SECRET,
    SOME,
    TASKS,
    gate,
    numbered,
    parts_of,
    streamed,
    told,
)
from apps.reporting import Reporting, report

routes: list[BaseRoute] = []


def at(path: str) -> Callable[[Any], Any]:
    def decorate(handler: Any) -> Any:
        routes.append(WebSocketRoute(path, handler))
        return handler

    return decorate


@at("/open-the-gate")
async def open_the_gate(websocket: WebSocket) -> None:
    gate().set()
    await websocket.accept()


@at("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    while (message := await websocket.receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])


@at("/echo-json")
async def echo_json(websocket: WebSocket) -> None:
    await websocket.accept()
    async for value in websocket.iter_json():
        await websocket.send_json(value)


@at("/return")
async def return_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("bye")


@at("/raise")
async def raise_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("oh")
    raise ValueError(SECRET)


@at("/raise-later")
async def raise_later(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()
    raise ValueError(SECRET)


@at("/echo-some")
async def echo_some(websocket: WebSocket) -> None:
    await websocket.accept()
    for _ in range(SOME):
        await websocket.send_text(await websocket.receive_text())
    if websocket.query_params["then"] == "raise":
        raise ValueError(SECRET)
    if websocket.query_params["then"] == "close":
        await websocket.close(4001, "enough")


@at("/raise-before")
async def raise_before(websocket: WebSocket) -> None:
    raise ValueError(SECRET)


@at("/return-before")
async def return_before(websocket: WebSocket) -> None:
    pass


@at("/close-before")
async def close_before(websocket: WebSocket) -> None:
    await websocket.close(4001, "no entry")


@at("/deny/{denial}")
async def deny(websocket: WebSocket) -> None:
    denial = websocket.path_params["denial"]
    parts, headers = DENIALS[denial]
    fields = {name.decode(): value.decode() for name, value in headers}
    response = (
        Response(parts[0], 418, fields)
        if len(parts) == 1
        else StreamingResponse(parts_of(denial), 418, fields)
    )
    with told("denial"):
        await websocket.send_denial_response(response)


@at("/deny-streamed")
async def deny_streamed(websocket: WebSocket) -> None:
    report("streaming")
    response = StreamingResponse(streamed(), 503, media_type="text/plain")
    await websocket.send_denial_response(response)


@at("/http-exception")
async def http_exception(websocket: WebSocket) -> None:
    raise HTTPException(401, "who are you", {"www-authenticate": "Bearer"})


@at("/websocket-exception")
async def websocket_exception(websocket: WebSocket) -> None:
    await websocket.accept()
    raise WebSocketException(4003, "mine")


@at("/choose")
async def choose(websocket: WebSocket) -> None:
    offered = websocket.scope["subprotocols"]
    chosen = next((name for name in offered if name in {"graphql", "chat"}), None)
    await websocket.accept(chosen, ACCEPT_HEADERS)


@at("/close")
async def close(websocket: WebSocket) -> None:
    await websocket.accept()
    with told("close"):
        query = websocket.query_params
        await websocket.close(int(query["code"]), query.get("reason"))
        await until_gone(websocket)


@at("/close-uncaught")
async def close_uncaught(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close(int(websocket.query_params["code"]), websocket.query_params["reason"])


async def until_gone(websocket: WebSocket) -> None:
    while (message := await websocket.receive())["type"] == "websocket.receive":
        pass
    report("left", **message)


@at("/learn")
async def learn(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    await until_gone(websocket)
    with told("send"):
        await websocket.send_text("anybody there?")


@at("/leave-uncaught")
async def leave_uncaught(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    while True:
        await websocket.receive_text()


@at("/only-send")
async def only_send(websocket: WebSocket) -> None:
    await websocket.accept()
    with told("end"):
        while True:
            await websocket.send_text("tick")
            await asyncio.sleep(0.005)


@at("/only-send-uncaught")
async def only_send_uncaught(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text("tick")
        await asyncio.sleep(0.005)


@at("/flood-uncaught")
async def flood_uncaught(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text("x" * BIG)


async def texts(websocket: WebSocket) -> list[str]:
    received = []
    while (text := await websocket.receive_text()) != "end":
        received.append(text)
    return received


@at("/two-receivers")
async def two_receivers(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    report("received", by=await asyncio.gather(texts(websocket), texts(websocket)))


@at("/senders")
async def senders(websocket: WebSocket) -> None:
    await websocket.accept()
    calls = iter(range(TASKS * MESSAGES))

    async def sender(task: int) -> None:
        for number in range(MESSAGES):
            data = numbered(next(calls), task, number)
            await (websocket.send_text(data) if number % 2 else websocket.send_bytes(data.encode()))

    report("sending")
    await asyncio.gather(*map(sender, range(TASKS)))
    await until_gone(websocket)


@at("/background")
async def background(websocket: WebSocket) -> None:
    await websocket.accept()

    async def sender() -> None:
        with told("end"):
            while True:
                await websocket.send_text("x" * BIG)

    tasks = [asyncio.create_task(sender()) for _ in range(TASKS)]
    report("sending")
    await until_gone(websocket)
    await asyncio.gather(*tasks)


@at("/stubborn")
async def stubborn(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        report("cancelled")
        raise


async def page(request: Request) -> Response:
    return PlainTextResponse("a page")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    report("startup")
    yield
    report("shutdown")


app = Reporting(Starlette(routes=[*routes, Route("/page", page)], lifespan=lifespan))
