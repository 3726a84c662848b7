"""Who is measured. One more is a program and a line."""

from collections.abc import Callable

from benchmarks.servers.peers import OURS, SANSIO, Kind, Served, in_c, python, uvicorn, yaat_run

PROGRAMS = "benchmarks.fanout.programs"


def program(name: str) -> Callable[[int], list[str]]:
    return lambda port: python(f"{PROGRAMS}.{name}", str(port))


STARLETTE, BARE, YAAT = (f"{PROGRAMS}.{name}:app" for name in ("starlette", "bare", "yaat"))

BASE = Served("sansio + Starlette", Kind.ASGI, uvicorn(SANSIO, STARLETTE))
OURS_STARLETTE = Served("ours + Starlette", Kind.OURS, uvicorn(OURS, STARLETTE))
OURS_BARE = Served("ours + bare", Kind.OURS, uvicorn(OURS, BARE))
RUN_YAAT = Served("yaat run + Yaat", Kind.OURS, yaat_run(YAAT))
PEERS = (
    BASE,
    OURS_STARLETTE,
    OURS_BARE,
    RUN_YAAT,
    Served("aiohttp", Kind.ASYNCIO, program("aiohttp")),
    Served("websockets", Kind.ASYNCIO, program("websockets")),
    Served("picows raw", Kind.LIMIT, program("picows_raw"), deflates=False),
    Served("socketify", Kind.LIMIT, program("socketify"), deflates=False),
    Served("C epoll", Kind.LIMIT, in_c, deflates=False),
)
