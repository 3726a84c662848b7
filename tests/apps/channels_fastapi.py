"""Channels inside FastAPI: of a mounted Yaat, of one within another, of one within Starlette.

The lifespan of what is mounted never runs. `app` is all of it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Body, FastAPI
from fastapi import WebSocket as StarletteWebSocket
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute

from apps.reporting import Reporting, report
from yaat import ChannelOptions, Channels, Endpoint, WebSocket, Yaat
from yaat.requests import Request
from yaat.responses import JSONResponse, Response

CHANNELS = Channels({"room:{id}": ChannelOptions(history=100, presence=True)})
LIFE: list[str] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    LIFE.append("began")
    yield


async def join(websocket: WebSocket) -> None:
    """Join the room of the test, and publish there what comes in."""
    await websocket.accept()
    query = websocket.query_params
    room = websocket.channel(f"room:{query['key']}")
    async with room.join(websocket, last=int(query.get("last", "0"))) as channel:
        await websocket.send_text("joined")
        async for text in websocket.iter_text():
            await channel.publish(text)


async def publish(request: Request) -> Response:
    channel = request.channel(f"room:{request.query_params['key']}")
    published = await channel.publish(await request.json())
    return JSONResponse([published.offset])


def rooms(**options: Any) -> Yaat:
    """Make an application with rooms."""
    app = Yaat(**options)
    app.add_websocket_route("/join", join)
    app.add_route("/publish", publish, methods=["POST"])
    return app


live = rooms(broker="memory://", channels=CHANNELS)
without_options = rooms()

# One within another
inner = rooms()
own = rooms(broker="memory://", channels=CHANNELS)
outer = rooms(broker="memory://", channels=CHANNELS)
outer.mount("/inner", inner)
outer.mount("/own", own)
wrong = rooms(channels=CHANNELS)
outer.mount("/wrong", wrong)

# One within Starlette
within = rooms(broker="memory://", channels=CHANNELS)
starlette = Starlette(routes=[Mount("/live", within)])

api = FastAPI(lifespan=lifespan)
api.mount("/live", live)
api.mount("/without-options", without_options)
api.mount("/outer", outer)
api.mount("/starlette", starlette)


@api.get("/life")
async def life() -> list[str]:
    return LIFE


@api.post("/notify")
async def notify(key: str, value: Annotated[Any, Body()]) -> list[int]:
    """Publish from FastAPI's own route."""
    published = await live.channel(f"room:{key}").publish(value)
    return [published.offset]


@api.post("/notify-later")
async def notify_later(
    key: str, tasks: BackgroundTasks, value: Annotated[Any, Body()]
) -> list[int]:
    tasks.add_task(live.channel(f"room:{key}").publish, value)
    return []


@api.post("/notify-inner")
async def notify_inner(key: str, value: Annotated[Any, Body()]) -> list[int]:
    """Publish by way of an application that has its channels from the one around it."""
    published = await inner.channel(f"room:{key}").publish(value)
    return [published.offset]


@api.get("/who")
async def who(key: str) -> int:
    return len(await live.channel(f"room:{key}").presence())


@api.get("/history")
async def history(key: str) -> list[Any]:
    found = await live.channel(f"room:{key}").history()
    return [each.data for each in found.publications]


@api.websocket("/native")
async def native(websocket: StarletteWebSocket, key: str) -> None:
    """A WebSocket of Starlette can be no member; the error says what can."""
    await websocket.accept()
    try:
        async with live.channel(f"room:{key}").join(websocket):  # type: ignore[arg-type]
            pass
    except Exception as error:  # noqa: BLE001 - which one it is, is the question
        kinds = [kind.__name__ for kind in type(error).__mro__]
        report("join", error=str(error), kinds=kinds)
    await websocket.send_text("still here")
    await websocket.close()


async def by_endpoint(websocket: WebSocket) -> None:
    """A handler of Yaat as a route of FastAPI: the channels are those of an application."""
    await websocket.accept()
    room = live.channel(f"room:{websocket.query_params['key']}")
    async with room.join(websocket) as channel:
        await websocket.send_text("joined")
        async for text in websocket.iter_text():
            await channel.publish(text)


api.router.routes.append(WebSocketRoute("/endpoint", Endpoint(by_endpoint)))

app = Reporting(api)
