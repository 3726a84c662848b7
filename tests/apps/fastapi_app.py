"""The same paths in a FastAPI application; where FastAPI adds nothing, Starlette's handler."""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, WebSocket, WebSocketException
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from apps import starlette_app
from apps.plain import DENIALS, SECRET, gate, parts_of, told
from apps.reporting import Reporting, report

api = FastAPI(lifespan=starlette_app.lifespan)


@api.get("/page")
async def page() -> PlainTextResponse:
    return PlainTextResponse("a page")


@api.websocket("/open-the-gate")
async def open_the_gate(websocket: WebSocket) -> None:
    gate().set()
    await websocket.accept()


@api.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await starlette_app.echo(websocket)


@api.websocket("/echo-json")
async def echo_json(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_json(await websocket.receive_json())


@api.websocket("/return")
async def return_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("bye")


def fails() -> None:
    raise ValueError(SECRET)


@api.websocket("/raise")
async def raise_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("oh")
    fails()


@api.websocket("/raise-before")
async def raise_before(websocket: WebSocket, failed: Annotated[None, Depends(fails)]) -> None:
    await websocket.accept()


@api.websocket("/return-before")
async def return_before(websocket: WebSocket) -> None:
    pass


def nobody() -> None:
    raise WebSocketException(4001, "no entry")


@api.websocket("/close-before")
async def close_before(websocket: WebSocket, user: Annotated[None, Depends(nobody)]) -> None:
    await websocket.accept()


@api.websocket("/close-before-by-validation")
async def by_validation(websocket: WebSocket, number: Annotated[int, Query()]) -> None:
    await websocket.accept()


@api.websocket("/deny/{denial}")
async def deny(websocket: WebSocket, denial: str) -> None:
    parts, headers = DENIALS[denial]
    fields = {name.decode(): value.decode() for name, value in headers}
    response = (
        Response(parts[0], 418, fields)
        if len(parts) == 1
        else StreamingResponse(parts_of(denial), 418, fields)
    )
    with told("denial"):
        await websocket.send_denial_response(response)


@api.websocket("/http-exception")
async def http_exception(websocket: WebSocket) -> None:
    raise HTTPException(401, "who are you", {"www-authenticate": "Bearer"})


@api.websocket("/websocket-exception")
async def websocket_exception(websocket: WebSocket) -> None:
    await websocket.accept()
    raise WebSocketException(4003, "mine")


@api.websocket("/stubborn")
async def stubborn(websocket: WebSocket) -> None:
    await starlette_app.stubborn(websocket)


@api.websocket("/learn")
async def learn(websocket: WebSocket) -> None:
    await starlette_app.learn(websocket)
    report("learnt")


for path, handler in {
    "/raise-later": starlette_app.raise_later,
    "/echo-some": starlette_app.echo_some,
    "/deny-streamed": starlette_app.deny_streamed,
    "/choose": starlette_app.choose,
    "/close": starlette_app.close,
    "/close-uncaught": starlette_app.close_uncaught,
    "/leave-uncaught": starlette_app.leave_uncaught,
    "/only-send": starlette_app.only_send,
    "/only-send-uncaught": starlette_app.only_send_uncaught,
    "/flood-uncaught": starlette_app.flood_uncaught,
    "/two-receivers": starlette_app.two_receivers,
    "/senders": starlette_app.senders,
    "/background": starlette_app.background,
}.items():
    api.add_api_websocket_route(path, handler)

app = Reporting(api)
