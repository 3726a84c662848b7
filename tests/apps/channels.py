"""Channels for whoever tests them: rooms of every kind, and members that do as they are told.

`/join/{kind}` joins the channel `{kind}:{key}`, the key being that of the test, and then obeys the
orders that come in, one JSON object each, and tells when it has: `{"done": order}`. What it asks of
`join` is in the query string. HTTP asks for the rest.
"""

import asyncio
import gc
import itertools
import json
import os
import resource
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from apps.budgets import BUDGET, ROOMY
from apps.reporting import KEY, Reporting, report
from yaat import (
    POSITIONED,
    RAW,
    Channel,
    ChannelOptions,
    Channels,
    PositionLost,
    Present,
    Publication,
    Refused,
    WebSocket,
    Yaat,
)
from yaat.channels import node
from yaat.channels.members import SocketMember
from yaat.middleware import Middleware
from yaat.observer import Observer
from yaat.policy import Policy
from yaat.requests import Request
from yaat.responses import JSONResponse, Response
from yaat.types import ASGIApp, Message, Receive, Scope, Send

SECRET = "the detail that nobody may see"


# A room is given up soon, so that those who come are often the first again.
vars(node)["LINGER"] = 0.05

CHANNELS = Channels(
    {
        "room:{id}": ChannelOptions(history=100, ttl=600, presence=True),
        "kept:{id}": ChannelOptions(history=2_000),
        "short:{id}": ChannelOptions(history=5),
        "cut:{id}": ChannelOptions(presence=True, max_waiting=BUDGET),
        "resume:{id}": ChannelOptions(history=2_000, max_waiting=BUDGET),
        "oldest:{id}": ChannelOptions(slow="drop_oldest", max_waiting=BUDGET),
        "newest:{id}": ChannelOptions(slow="drop_newest", max_waiting=BUDGET),
        "latest:{id}": ChannelOptions(slow="latest", max_waiting=BUDGET),
        "roomy:{id}": ChannelOptions(presence=True, max_waiting=ROOMY),
    }
)

Orders = dict[str, Any]
TOLD: Counter[str] = Counter()
"""How often the observer was told of each policy, by `policy channel`."""


LIVE: Counter[str] = Counter()
"""How many handlers run, by the type of their scope."""


class Told(Observer):
    """Counts what it is told."""

    def dropped(self, scope: Scope, channel: str, policy: str) -> None:
        TOLD[f"{policy} {channel}"] += 1

    def cut(self, scope: Scope, channel: str) -> None:
        TOLD[f"cut {channel}"] += 1


class Wrapping:
    """Middleware that stands in the way of what the query names: `wrap=send` or `wrap=receive`.

    It counts every message, and alters the data of those that are sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counted = 0

        async def count() -> Message:
            nonlocal counted
            counted += 1
            return await receive()

        async def alter(message: Message) -> None:
            nonlocal counted
            if message["type"] == "websocket.send":
                counted += 1
                text = message.get("text")
                data = {"bytes": b"!" + message["bytes"]} if text is None else {"text": f"!{text}"}
                message = {"type": "websocket.send", **data}
            await send(message)

        query = scope.get("query_string", b"")
        LIVE[scope["type"]] += 1
        try:
            if b"wrap=receive" in query:
                await self.app(scope, count, send)
            elif b"wrap=send" in query:
                await self.app(scope, receive, alter)
            else:
                await self.app(scope, receive, send)
        finally:
            LIVE[scope["type"]] -= 1
            if b"wrap=" in query:
                report("counted", count=counted)


app = Yaat(
    broker="memory://",
    channels=CHANNELS,
    middleware=[Middleware(Reporting), Middleware(Wrapping)],
    observers=[Told()],
)


# As it is printed


def room_user(websocket: WebSocket) -> str:
    return websocket.query_params["user"]


@app.websocket_route("/chat/{room}")
async def chat(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    async with websocket.channel(f"room:{room}").join(
        websocket, user=room_user(websocket)
    ) as channel:
        async for text in websocket.iter_text():
            await channel.publish(text)


@app.route("/notify", methods=["POST"])
async def notify(request: Request) -> Response:
    await request.channel("room:1").publish({"n": 1})
    return JSONResponse(None)


# A member that does as it is told


@app.websocket_route("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


def named(websocket: WebSocket | Request, kind: str) -> str:
    return f"{kind}:{websocket.query_params['key']}"


def shrink_buffers() -> None:
    """Let the kernel hold little for each connection, so that a slow reader is soon noticed."""
    for each in Path("/dev/fd").iterdir():
        descriptor = int(each.name)
        with suppress(OSError):  # the list itself was read by one of them
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as peer:
                    if not peer.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)


def asked(websocket: WebSocket) -> dict[str, Any]:
    """What of `join` the query asks for."""
    query = websocket.query_params
    options: dict[str, Any] = {}
    for name in ("since", "user"):
        if name in query:
            options[name] = query[name]
    if "last" in query:
        options["last"] = int(query["last"])
    if "info" in query:
        options["info"] = json.loads(query["info"])
    if "format" in query:
        options["format"] = {"raw": RAW, "positioned": POSITIONED}[query["format"]]
    if "on_lost" in query:
        options["on_lost"] = tell_lost if query["on_lost"] == "sync" else tell_lost_later
    return options


def tell_lost(error: PositionLost) -> None:
    report("lost", channel=error.channel, code=error.close_code)


async def tell_lost_later(error: PositionLost) -> None:
    await asyncio.sleep(0)
    tell_lost(error)


class Member:
    """A connection, the channel that it joined first, and those that it joined by order."""

    def __init__(self, websocket: WebSocket, channel: Channel) -> None:
        self.websocket = websocket
        self.channel = channel
        self.others: dict[str, AsyncExitStack] = {}

    async def obey(self) -> None:
        """Obey until the peer leaves, or an order ends it."""
        try:
            async for order in self.websocket.iter_json():
                answer = await getattr(self, order.pop("do"))(**order)
                if answer == "leave":
                    return
                await self.websocket.send_json({"done": answer})
        finally:
            for other in self.others.values():
                await other.aclose()

    async def publish(
        self, data: Any = None, *, skip: bool = False, binary: str | None = None, **how: Any
    ) -> list[Any]:
        data = data if binary is None else bytes.fromhex(binary)
        published = await self.channel.publish(data, skip=self.websocket if skip else None, **how)
        return [published.offset, published.duplicate]

    async def join(self, kind: str, **options: Any) -> str:
        other = self.others[kind] = AsyncExitStack()
        channel = self.websocket.channel(named(self.websocket, kind))
        await other.enter_async_context(channel.join(self.websocket, **options))
        return "joined"

    async def leave(self, kind: str) -> str:
        await self.others.pop(kind).aclose()
        return "left"

    async def come_and_go(self, rounds: int) -> str:
        """Join and leave several channels at once, again and again."""

        async def one(kind: str) -> None:
            for _ in range(rounds):
                async with self.websocket.channel(named(self.websocket, kind)).join(self.websocket):
                    await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(one(f"fleeting{number}"))
        return "gone"

    async def mix(self, count: int, size: int) -> str:
        """Send and publish from several tasks, each message numbered in the order of the calls."""
        numbers = itertools.count()

        async def some(task: int) -> None:
            for turn in range(count):
                data = f"{next(numbers)} ".ljust(size, ".")
                if (turn + task) % 3:
                    await self.channel.publish(data)
                elif turn % 2:
                    await self.websocket.send_text(data)
                else:
                    await self.websocket.send_bytes(data.encode())

        async with asyncio.TaskGroup() as group:
            for task in range(4):
                group.create_task(some(task))
        return "mixed"

    async def send(self, text: str) -> str:
        """Send behind whatever waits."""
        await self.websocket.send_text(text)
        report("sent")
        return "sent"

    async def flood(self, size: int) -> str:
        """Send without end."""
        while True:
            await self.websocket.send_bytes(bytes(size))

    async def refuse(self) -> None:
        raise Refused("no entry", code=4007)

    async def fail(self) -> None:
        raise ValueError(SECRET)

    async def stray(self) -> None:
        raise asyncio.CancelledError

    async def end(self) -> str:
        return "leave"


async def member(websocket: WebSocket, kind: str) -> None:
    """Join, say so, and obey."""
    try:
        async with websocket.channel(named(websocket, kind)).join(
            websocket, **asked(websocket)
        ) as channel:
            report("joined")
            if "silent" not in websocket.query_params:
                await websocket.send_json({"done": "joined"})
            await Member(websocket, channel).obey()
    finally:
        report("left")


@app.websocket_route("/join/{kind}")
async def join(websocket: WebSocket, kind: str) -> None:
    await websocket.accept()
    if "small" in websocket.query_params:
        shrink_buffers()
    await member(websocket, kind)


@app.websocket_route("/join-impatiently/{kind}", policy=Policy(close_timeout=0.3))
async def join_impatiently(websocket: WebSocket, kind: str) -> None:
    await join(websocket, kind)


MEMBERS: dict[str, asyncio.Task[None]] = {}


@app.websocket_route("/join-in-a-child/{kind}")
async def join_in_a_child(websocket: WebSocket, kind: str) -> None:
    """Join in a task that another connection may cancel."""
    await websocket.accept()
    key = websocket.query_params["key"]
    MEMBERS[key] = asyncio.create_task(member(websocket, kind))
    try:
        await asyncio.wait((MEMBERS[key],))
    finally:
        del MEMBERS[key]


@app.route("/cancel", methods=["POST"])
async def cancel(request: Request) -> Response:
    """Cancel that task."""
    return JSONResponse(MEMBERS[request.query_params["key"]].cancel())


@app.websocket_route("/join-before-accept/{kind}")
async def join_before_accept(websocket: WebSocket, kind: str) -> None:
    async with websocket.channel(named(websocket, kind)).join(websocket):
        report("joined")


@app.websocket_route("/any/{name:path}")
async def join_any(websocket: WebSocket, name: str) -> None:
    """Join what the peer names."""
    await websocket.accept()
    async with websocket.channel(name).join(websocket) as channel:
        async for text in websocket.iter_text():
            await channel.publish(text)


@app.websocket_route("/any")
async def join_any_of_the_query(websocket: WebSocket) -> None:
    """The same with a name that cannot be in a path."""
    await join_any(websocket, websocket.query_params["name"])


# Without a socket of its own


async def publications(channel: Channel, **where: Any) -> AsyncIterator[list[Any]]:
    try:
        async for publication in channel.subscribe(**where):
            yield told(publication)
    finally:
        report("unsubscribed")


def told(publication: Publication) -> list[Any]:
    data = publication.data
    return [publication.offset, data.hex() if isinstance(data, bytes) else data]


def present(each: Present) -> list[Any]:
    return [each.user, each.info]


@app.websocket_route("/subscribe/{kind}")
async def subscribe(websocket: WebSocket, kind: str) -> None:
    await websocket.accept()
    query = websocket.query_params
    where: dict[str, Any] = {"last": int(query.get("last", "0")), "since": query.get("since")}
    await websocket.stream(publications(websocket.channel(named(websocket, kind)), **where))


@app.websocket_route("/watch/{kind}")
async def watch(websocket: WebSocket, kind: str) -> None:
    """Tell who comes and goes."""
    await websocket.accept()

    async def events() -> AsyncIterator[list[Any]]:
        async for event in websocket.channel(named(websocket, kind)).presence_events():
            yield [event.kind, *present(event.present)]

    await websocket.stream(events())


# By HTTP


Handler = Callable[..., Awaitable[Response]]


@app.route("/publish/{kind}", methods=["POST"])
async def publish(request: Request, kind: str) -> Response:
    KEY.set(request.query_params["key"])
    order = await request.json()
    data = order.get("data") if "binary" not in order else bytes.fromhex(order["binary"])
    how = {name: order[name] for name in ("once", "key") if name in order}
    published = await request.channel(named(request, kind)).publish(data, **how)
    return JSONResponse(
        {
            "offset": published.offset,
            "epoch": published.epoch,
            "duplicate": published.duplicate,
            "position": str(published.position),
        }
    )


@app.route("/flow/{kind}", methods=["POST"])
async def flow(request: Request, kind: str) -> Response:
    """Publish numbers, and tell how much waited at the most."""
    KEY.set(request.query_params["key"])
    query = {"count": "100", "first": "0", "size": "0", "pause": "0", "keys": "0"}
    query |= dict(request.query_params)
    channel, waiting = request.channel(named(request, kind)), 0
    keys, size, pause = int(query["keys"]), int(query["size"]), float(query["pause"])
    first = int(query["first"])
    for number in range(first, first + int(query["count"])):
        key = f"key {number % keys}" if keys else None
        await channel.publish(f"{number} ".ljust(size, "."), key=key)
        await asyncio.sleep(pause)
        waiting = max(waiting, *(each.waiting for each in sockets(channel.name)), 0)
    return JSONResponse({"waiting": waiting})


@app.route("/history/{kind}")
async def history(request: Request, kind: str) -> Response:
    found = await request.channel(named(request, kind)).history()
    return JSONResponse([told(each) for each in found.publications])


@app.route("/presence/{kind}")
async def presence(request: Request, kind: str) -> Response:
    channel = request.channel(named(request, kind))
    stats = await channel.presence_stats()
    return JSONResponse(
        {
            "present": sorted(map(present, await channel.presence()), key=json.dumps),
            "clients": stats.clients,
            "users": stats.users,
        }
    )


# What is left


def sockets(name: str) -> list[SocketMember]:
    room = app.hub._rooms.get(name)
    return [each for each in (room.members if room else ()) if isinstance(each, SocketMember)]


@app.route("/inspect")
async def inspect(request: Request) -> Response:
    """Tell what is there of this test, and what is left of all."""
    gc.collect()  # what was thrown away unfinished says so now
    key, hub = request.query_params["key"], app.hub
    tasks = Counter(map(name_of, asyncio.all_tasks()))
    everybody = [each for room in hub._rooms.values() for each in room.members]
    return JSONResponse(
        {
            "members": {name: len(sockets(name)) for name in hub._rooms if key in name},
            "listeners": sum(not isinstance(each, SocketMember) for each in everybody),
            "dropped": hub.dropped,
            "cut": hub.cut,
            "told": {told: count for told, count in TOLD.items() if key in told},
            "memory": memory(),
            "left": {
                "members": len(everybody),
                "rooms": len(hub._rooms),
                "present": len(hub._present),
                "work": len(hub._tasks),
                "handlers": LIVE["websocket"],
                "tasks": {name: count for name, count in sorted(tasks.items()) if name},
            },
        }
    )


def name_of(task: asyncio.Task[Any]) -> str:
    """Name a task of ours; those of the servers have no name."""
    code: Any = getattr(task.get_coro(), "cr_code", None)
    is_ours = code is not None and {"yaat", "apps"} & set(Path(code.co_filename).parts)
    return str(code.co_qualname) if is_ours else ""


def memory() -> int:
    """How much of the machine's memory this process has, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmRSS:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
