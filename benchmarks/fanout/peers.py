"""Who is measured. One more is a program and a line."""

from collections.abc import Callable

from benchmarks.fanout.node import node_ws
from benchmarks.servers.peers import OURS, SANSIO, Kind, Served, in_c, python, uvicorn, yaat_run

PROGRAMS = "benchmarks.fanout.programs"


def program(name: str) -> Callable[[int], list[str]]:
    return lambda port: python(f"{PROGRAMS}.{name}", str(port))


def app(name: str) -> str:
    return f"{PROGRAMS}.{name}:app"


DROPPING = f"{PROGRAMS}.yaat:dropping"

BASE = Served("sansio + Starlette", Kind.ASGI, uvicorn(SANSIO, app("starlette")))
RUN_YAAT = Served("yaat run + Yaat", Kind.OURS, yaat_run(app("yaat")))
SANSIO_YAAT = Served("sansio + Yaat", Kind.OURS, uvicorn(SANSIO, app("yaat")))
LEGACY_YAAT = Served("legacy + Yaat", Kind.OURS, uvicorn("websockets", app("yaat")))
OURS_BARE = Served("ours + bare", Kind.OURS, uvicorn(OURS, app("bare")))
OURS_STARLETTE = Served("ours + Starlette", Kind.OURS, uvicorn(OURS, app("starlette")))
AIOHTTP = Served("aiohttp", Kind.ASYNCIO, program("aiohttp"))
PEERS = (
    BASE,
    RUN_YAAT,
    SANSIO_YAAT,
    LEGACY_YAAT,
    OURS_BARE,
    OURS_STARLETTE,
    Served("sansio + FastAPI", Kind.ASGI, uvicorn(SANSIO, app("fastapi"))),
    Served("sansio + Litestar", Kind.ASGI, uvicorn(SANSIO, app("litestar"))),
    Served("sansio + Django", Kind.ASGI, uvicorn(SANSIO, app("django"))),
    AIOHTTP,
    Served("websockets", Kind.ASYNCIO, program("websockets")),
    Served("picows.websockets", Kind.ASYNCIO, program("picows_websockets"), deflates=False),
    Served("picows raw", Kind.ASYNCIO, program("picows_raw"), deflates=False),
    Served("Node ws", Kind.ELSE, node_ws, deflates=False),
    Served("socketify", Kind.LIMIT, program("socketify"), deflates=False),
    Served("C epoll", Kind.LIMIT, in_c, deflates=False),
)
# With a reader that stalls: there is one more way to be slow.
YAAT_DROPPING = Served("yaat run + Yaat + drop_oldest", Kind.OURS, yaat_run(DROPPING))
SANSIO_DROPPING = Served("sansio + Yaat + drop_oldest", Kind.OURS, uvicorn(SANSIO, DROPPING))
