"""Who is measured: servers, and the applications on them."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.peers import Peer
from benchmarks.servers.compiled import compiled

SANSIO = "websockets-sansio"
OURS = "yaat.server:WebSocketProtocol"


class Kind(StrEnum):
    """What it is to us."""

    OURS = "our class"
    ASGI = "ASGI"
    ASYNCIO = "asyncio"
    ELSE = "not Python"
    LIMIT = "a limit"


@dataclass(frozen=True)
class Served:
    """A server with an application on it.

    Args:
        name: What a report prints.
        kind: Limits are printed beside and compared with nobody.
        command: What starts it on a port of 127.0.0.1.
        deflates: It has permessage-deflate.
    """

    name: str
    kind: Kind
    command: Callable[[int], list[str]] = field(repr=False, compare=False)
    deflates: bool = True

    def called(self, names: Iterable[str]) -> bool:
        """Whether one of these is its name, or its server's or its application's."""
        own = self.name.lower()
        return not {own, *own.split(" + ")}.isdisjoint(names)


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def uvicorn(websockets: str, app: str) -> Callable[[int], list[str]]:
    """As it runs by itself (uvloop and httptools, which are here), but for its log."""
    options = ["--ws", websockets, "--no-access-log", "--log-level", "warning"]
    return lambda port: python("uvicorn", *options, "--port", str(port), app)


def yaat_run(app: str, *more: str) -> Callable[[int], list[str]]:
    """As it runs by itself, but for its log."""
    options = ["--no-access-log", "--log-level", "warning", *more]
    return lambda port: python("yaat", "run", *options, "--port", str(port), app)


def granian(app: str) -> Callable[[int], list[str]]:
    options = ["--interface", "asgi", "--log-level", "warning"]
    return lambda port: python("granian", *options, "--port", str(port), app)


def hypercorn(app: str) -> Callable[[int], list[str]]:
    options = ["--worker-class", "uvloop", "--log-level", "warning"]
    return lambda port: python("hypercorn", *options, "--bind", f"127.0.0.1:{port}", app)


def program(name: str) -> Callable[[int], list[str]]:
    return lambda port: python(f"benchmarks.servers.programs.{name}", str(port))


def in_c(port: int) -> list[str]:
    return [str(compiled("echo")), str(port)]


APPS = "benchmarks.apps"
BARE, STARLETTE, YAAT = (f"{APPS}.{name}:app" for name in ("bare", "starlette", "yaat"))

SANSIO_STARLETTE = Served("sansio + Starlette", Kind.ASGI, uvicorn(SANSIO, STARLETTE))
SANSIO_BARE = Served("sansio + bare", Kind.ASGI, uvicorn(SANSIO, BARE))
OURS_YAAT = Served("ours + Yaat", Kind.OURS, uvicorn(OURS, YAAT))
OURS_STARLETTE = Served("ours + Starlette", Kind.OURS, uvicorn(OURS, STARLETTE))
OURS_BARE = Served("ours + bare", Kind.OURS, uvicorn(OURS, BARE))
BASE = SANSIO_STARLETTE
PEERS = (
    SANSIO_STARLETTE,
    SANSIO_BARE,
    OURS_YAAT,
    OURS_STARLETTE,
    OURS_BARE,
    Served("wsproto + bare", Kind.ASGI, uvicorn("wsproto", BARE)),
    Served("granian + bare", Kind.ASGI, granian(BARE)),
    Served("hypercorn + bare", Kind.ASGI, hypercorn(BARE)),
    Served("aiohttp", Kind.ASYNCIO, program("aiohttp")),
    Served("websockets", Kind.ASYNCIO, program("websockets")),
    Served("picows.websockets", Kind.ASYNCIO, program("picows_websockets")),
    Served("sanic", Kind.ASYNCIO, program("sanic")),
    Served("tornado", Kind.ASYNCIO, program("tornado")),
    Served("picows raw", Kind.LIMIT, program("picows_raw")),
    Served("socketify", Kind.LIMIT, program("socketify")),
    Served("C epoll", Kind.LIMIT, in_c),
)


def chosen(
    names: Sequence[str],
    apps: Sequence[Peer],
    websockets: str,
    peers: Sequence[Served] = PEERS,
) -> list[Served]:
    """The first, the base of all ratios, and whom these names mean (all, if none is given).

    Args:
        names: Of peers, of servers or of applications.
        apps: More applications, to be served by uvicorn.
        websockets: uvicorn's WebSocket class for them.
        peers: Who is known.
    """
    own = [Served(app.name, Kind.ASGI, uvicorn(websockets, app.app)) for app in apps]
    wanted = {name.lower() for name in names}
    return [
        peer for peer in (*peers, *own) if peer is peers[0] or not wanted or peer.called(wanted)
    ]
