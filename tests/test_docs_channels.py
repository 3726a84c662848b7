"""The pages on channels: their programs, what they say of them, and the browser that comes back."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import httpx2
import pytest
from playwright.async_api import Dialog, Locator, Page, expect
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from browser import chromium
from clients import connect
from documents import DOCS, ROOT, Reading, blocks, code, commands, tables, write
from servers import SPECS, Server
from yaat import (
    POSITIONED,
    RAW,
    Channel,
    ChannelOptions,
    Channels,
    Endpoint,
    PositionLost,
    StateError,
    UsageError,
    WebSocket,
    WebSocketDisconnect,
    Yaat,
    outbox,
)
from yaat.brokers import memory
from yaat.brokers.memory import MemoryBroker, from_url
from yaat.exceptions import ChannelNameError
from yaat.testing import TestClient, WebSocketSession
from yaat.types import ASGIApp

HOW_TO = DOCS / "how-to"
TUTORIAL = DOCS / "tutorial" / "rooms.md"
REFERENCE = DOCS / "reference"
PATIENCE = 20.0  # seconds
BACK = 30_000  # milliseconds that a page may take to come back
# Pages wait some seconds before they come back, and in a test no longer than they must.
HASTE = "Math.random = () => 0.03"

File = Callable[[str, str], ModuleType]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> File:
    """Import one of the files that a page consists of."""

    def imported(page: str, title: str) -> ModuleType:
        return Reading(ROOT / page, tmp_path, monkeypatch).file(title)

    return imported


@asynccontextmanager
async def opened(
    app: ASGIApp, *urls: str
) -> AsyncIterator[tuple[TestClient, list[WebSocketSession]]]:
    """Open connections in process, one after the other."""
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        client = await stack.enter_async_context(TestClient(app, raise_app_exceptions=False))
        yield client, [await stack.enter_async_context(client.websocket(url)) for url in urls]


async def all_listen(channel: Channel, *sockets: WebSocketSession) -> None:
    """Return when each has joined, with nothing that it has not received."""
    for socket in sockets:
        while True:
            await channel.publish("?")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await socket.receive()
                    break
    await channel.publish("all are here")
    for socket in sockets:
        while await socket.receive() != "all are here":
            pass


async def next_of(ws: WebSocketSession, kind: str = "data") -> Any:
    """What comes next that has this field."""
    while kind not in (message := await ws.receive_json()):
        pass
    return message[kind]


async def closing(ws: WebSocketSession) -> tuple[int, str]:
    """Receive to the end; return the code and the reason."""
    try:
        while True:
            await ws.receive()
    except WebSocketDisconnect as end:
        return end.code, end.reason


class Line:
    """A line to a server, which can be cut and mended."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def cut(self) -> None:
        """Break all that goes over it; let nobody in until it is mended."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._server.port)
            self._writers.add(ours)
            await asyncio.gather(_pipe(reader, ours), _pipe(theirs, writer))
            self._writers -= {writer, ours}
        except OSError:
            writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def served(page: Path, directory: Path) -> AsyncIterator[Server]:
    """Serve what a page consists of, by the command that it names, or else by ours."""
    write(page, directory)
    path = {"PYTHONPATH": str(directory)}
    name = "uvicorn-sansio" if ["uvicorn", "app:app"] in commands(page) else "yaat-run-uvloop"
    with Server(SPECS[name], "app:app", directory, path) as server:
        yield server


def http(server: Server, path: str) -> str:
    return server.url(path).replace("ws:", "http:", 1)


@asynccontextmanager
async def browsing(page: Path, directory: Path) -> AsyncIterator[tuple[Server, Line, Page]]:
    """Serve what a page consists of, at the other end of a line that a browser has."""
    async with (
        served(page, directory) as server,
        Line(server) as line,
        chromium() as browser,
        await browser.new_context() as context,
    ):
        await context.add_init_script(HASTE)
        yield server, line, await context.new_page()


# Tutorial


async def test_the_first_room_of_the_tutorial() -> None:
    app = step(0)
    async with opened(app, *["/rooms/tea"] * 2, "/rooms/attic") as (_, [ada, grace, linus]):
        await all_listen(app.channel("room:tea"), ada, grace)
        await all_listen(app.channel("room:attic"), linus)
        await ada.send_text("hello")
        assert await ada.receive() == await grace.receive() == "hello"
        await linus.send_text("only me")
        assert await linus.receive() == "only me"
        await grace.cut()
        await grace.ended()
        await ada.send_text("alone")
        assert await ada.receive() == "alone"


async def test_the_history_of_the_tutorial() -> None:
    app = step(1)
    async with opened(app, "/rooms/a:b") as (client, [ada]):
        for number in range(60):
            await ada.send_text(str(number))
            assert await ada.receive() == str(number)
        async with client.websocket("/rooms/a:b") as grace:
            assert [await grace.receive() for _ in range(50)] == [str(n) for n in range(10, 60)]
            await ada.send_text("live")
            assert await grace.receive() == "live"


def step(number: int) -> Yaat:
    """What `app.py` is at some step of the tutorial."""
    steps = [block for block in blocks(TUTORIAL, "python") if block.title == "app.py"]
    names: dict[str, Any] = {"__file__": "app.py"}
    exec(steps[number].code, names)
    app: Yaat = names["app"]
    return app


async def test_the_page_of_the_tutorial(tmp_path: Path) -> None:
    async with browsing(TUTORIAL, tmp_path) as (server, line, ada):
        grace = await ada.context.new_page()
        await enter(ada, line.url("/rooms/tea"), "Ada")
        await enter(grace, http(server, "/rooms/tea"), "<b>Grace</b>")
        await expect(ada.locator("#here")).to_have_text("Ada, <b>Grace</b>")
        await say(grace, "<i>hi</i>")
        await expect(lines(ada)).to_have_text(["<b>Grace</b>: <i>hi</i>"])

        line.cut()
        await expect(ada.get_by_label("Message")).to_be_disabled()
        await expect(grace.locator("#here")).to_have_text("<b>Grace</b>")
        for text in ("one", "two"):
            await say(grace, text)
        line.mend()
        await expect(ada.get_by_label("Message")).to_be_enabled(timeout=BACK)
        await say(ada, "back")
        said = ["<i>hi</i>", "one", "two"]
        texts = [*(f"<b>Grace</b>: {each}" for each in said), "Ada: back"]
        await expect(lines(ada)).to_have_text(texts)
        await expect(lines(grace)).to_have_text(texts)
        await expect(grace.locator("#here")).to_have_text("<b>Grace</b>, Ada")

        server.restart()  # what it had in memory is gone
        await expect(lines(ada)).to_have_text([], timeout=BACK)
        await expect(ada.locator("#here")).to_have_text(BOTH, timeout=BACK)
        await expect(ada.get_by_label("Message")).to_be_enabled(timeout=BACK)
        await say(ada, "anew")
        await expect(lines(ada)).to_have_text(["Ada: anew"])


BOTH = re.compile(r"^(Ada, <b>Grace</b>|<b>Grace</b>, Ada)$")


def lines(page: Page) -> Locator:
    return page.get_by_role("listitem")


async def enter(page: Page, address: str, name: str) -> None:
    async def answer(dialog: Dialog) -> None:
        await dialog.accept(name)

    page.on("dialog", answer)
    await page.goto(address)
    await expect(page.get_by_label("Message")).to_be_enabled()


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.get_by_label("Message").press("Enter")


# README


async def test_readme_chat(file: File) -> None:
    app: Yaat = file("README.md", "chat.py").app
    async with opened(app, "/rooms/tea", "/rooms/attic") as (client, [ada, linus]):
        await all_listen(app.channel("room:attic"), linus)
        for number in range(12):
            await ada.send_text(str(number))
            assert await ada.receive() == str(number)
        await client.post("/rooms/tea", content="posted")
        assert await ada.receive() == "posted"
        async with client.websocket("/rooms/tea") as grace:
            late = [await grace.receive() for _ in range(10)]
            assert late == [*map(str, range(3, 12)), "posted"]
            await grace.send_text("live")
            assert await ada.receive() == await grace.receive() == "live"
        await linus.send_text("only me")
        assert await linus.receive() == "only me"


# How to have rooms

ROOMS = "docs/how-to/rooms.md"


async def test_join_and_leave(file: File) -> None:
    app: Yaat = file(ROOMS, "join.py").app
    async with opened(app, "/rooms/tea", "/rooms/tea") as (client, [ada, grace]):
        await all_listen(app.channel("room:tea"), ada, grace)
        values: list[Any] = ["text", b"bytes", [1, {"a": None}], None, 1.5, True]
        for value in values:
            await app.channel("room:tea").publish(value)
        sent = ["text", b"bytes", '[1,{"a":null}]', "null", "1.5", "true"]
        assert [await ada.receive() for _ in sent] == sent
        async with client.websocket(f"/rooms/{'x' * 251}") as long:
            assert (await closing(long))[0] == 1008


async def test_a_name_is_1_to_255_bytes() -> None:
    app = Yaat()
    for name in ("x" * 255, "é" * 127, "a\0 *>{}.:\r\n"):
        assert app.channel(name).name == name
    for name in ("", "x" * 256, "é" * 128, "\ud800"):
        with pytest.raises(ChannelNameError):
            app.channel(name)


async def test_join_needs_an_accepted_connection() -> None:
    app = Yaat()

    @app.websocket_route("/")
    async def early(websocket: WebSocket) -> None:
        async with websocket.channel("a").join(websocket):
            pass

    with pytest.raises(StateError):
        async with app.test_client() as client, client.websocket("/"):
            pass


async def test_skip_the_sender(file: File) -> None:
    app: Yaat = file(ROOMS, "skip.py").app
    async with opened(app, "/rooms/tea", "/rooms/tea") as (_, [ada, grace]):
        await all_listen(app.channel("room:tea"), ada, grace)
        await ada.send_text("from ada")
        assert await grace.receive() == "from ada"
        await grace.send_text("from grace")
        assert await ada.receive() == "from grace"


async def test_last_and_since(file: File) -> None:
    app: Yaat = file(ROOMS, "since.py").app
    async with opened(app) as (client, _):
        channel = app.channel("room:tea")
        published = [await channel.publish(str(number)) for number in range(20)]
        seen = published[16].position
        for query, first in (("", 10), ("?since=", 10), (f"?since={seen}", 17)):
            async with client.websocket(f"/rooms/tea{query}") as ws:
                for number in range(first, 20):
                    assert await next_of(ws) == str(number)
                assert "data" not in await ws.receive_json()
        async with client.websocket(f"/rooms/tea?since={published[-1].position}") as ws:
            assert "data" not in await ws.receive_json()
            await ws.send_text("live")
            assert await next_of(ws) == "live"
        for lost in ("nonsense", "1-other", str(seen._replace(epoch="x"))):
            async with client.websocket(f"/rooms/tea?since={lost}") as ws:
                assert (await closing(ws))[0] == 4010


async def test_several_rooms_that_are_known(file: File) -> None:
    app: Yaat = file(ROOMS, "both.py").app
    async with opened(app, "/feed/ada") as (_, [ada]):
        await all_listen(app.channel("user:ada"), ada)
        for number in range(3):
            await app.channel("news").publish(f"news {number}")
            await app.channel("user:ada").publish(f"own {number}")
        received = [await ada.receive() for _ in range(6)]
        assert received == [f"{what} {n}" for n in range(3) for what in ("news", "own")]


async def test_several_rooms_that_the_client_names(file: File) -> None:
    module = file(ROOMS, "many.py")
    async with opened(module.app, "/live") as (_, [ws]):
        for room in ("tea", "attic"):
            await ws.send_json({"join": room})
            assert (await ws.receive_json())["channel"] == f"room:{room}"
        await ws.send_json({"room": "attic", "text": "hello"})
        said = await ws.receive_json()
        assert (said["channel"], said["data"]) == ("room:attic", "hello")
        await ws.send_json({"leave": "attic"})
        await ws.send_json({"join": "attic", "since": f"0-{said['epoch']}"})
        assert await ws.receive_json() == said
        await ws.send_json({"leave": "tea"})
        await ws.send_json({"room": "tea", "text": "not in it"})
        assert await closing(ws) == (1008, "not so")
    async with opened(module.app, "/live") as (_, [ws]):
        for number in range(module.MOST + 1):
            await ws.send_json({"join": str(number)})
        assert await closing(ws) == (1008, "not so")


async def test_a_connection_is_in_a_channel_once() -> None:
    app = Yaat()

    @app.websocket_route("/")
    async def twice(websocket: WebSocket) -> None:
        await websocket.accept()
        channel = websocket.channel("a")
        async with channel.join(websocket):
            pass
        async with channel.join(websocket):
            with pytest.raises(UsageError):
                await channel.join(websocket).__aenter__()
            await channel.publish("hello")
            await websocket.wait_closed()

    async with opened(app, "/") as (_, [ws]):
        assert await ws.receive() == "hello"


async def test_listen_without_a_socket(file: File) -> None:
    module = file(ROOMS, "listen.py")
    async with opened(module.app):
        channel = module.app.channel("orders")
        first = await channel.publish("tea")
        assert await module.wait_for("tea") == f"tea at {first.position}"
        waiting = asyncio.create_task(module.wait_for("milk"))
        for data in ({"item": "milk"}, b"milk"):
            await channel.publish(data)
        second = await channel.publish("milk")
        assert await waiting == f"milk at {second.position}"
        waiting = asyncio.create_task(module.wait_for("nothing"))
        await asyncio.sleep(0.01)
    assert await waiting == "the application ends"


# How to resume

RESUME = HOW_TO / "resume.md"


async def post(server: Server, *texts: str) -> None:
    """Publish past the line."""
    async with httpx2.AsyncClient() as client:
        for text in texts:
            (await client.post(http(server, "/news"), json=text)).raise_for_status()


async def test_a_browser_comes_back_and_has_missed_nothing(tmp_path: Path) -> None:
    async with browsing(RESUME, tmp_path) as (server, line, page):
        async with page.expect_websocket() as opening:
            await page.goto(line.url("/"))
        await (await opening.value).wait_for_event("framereceived")  # where it stands: nowhere yet
        line.cut()
        await post(server, "one", "two")
        await expect(lines(page)).to_have_text([])
        line.mend()
        await expect(lines(page)).to_have_text(["one", "two"], timeout=BACK)

        await post(server, "three")
        await expect(lines(page)).to_have_text(["one", "two", "three"])
        for missed in (["four"], []):  # cut once more, and when nothing was missed
            line.cut()
            await post(server, *missed)
            async with page.expect_websocket(timeout=BACK):
                line.mend()
        await post(server, "five")
        said = ["one", "two", "three", "four", "five"]
        await expect(lines(page)).to_have_text(said, timeout=BACK)


async def test_a_browser_that_is_cut_again_and_again(tmp_path: Path) -> None:
    said = [str(number) for number in range(300)]
    async with browsing(RESUME, tmp_path) as (server, line, page):
        await page.goto(line.url("/"))
        await expect(lines(page)).to_have_text([])
        await post(server, said[0])
        await expect(lines(page)).to_have_text(said[:1])
        talking = asyncio.create_task(post(server, *said[1:]))
        for number in (40, 110, 200):
            await expect(lines(page).nth(number)).to_be_attached(timeout=BACK)
            line.cut()
            line.mend()
        await talking
        await expect(lines(page).last).to_have_text("299", timeout=BACK)
        assert await lines(page).all_text_contents() == said


async def test_a_browser_begins_anew_when_its_position_is_lost(tmp_path: Path) -> None:
    async with browsing(RESUME, tmp_path) as (server, line, page):
        await page.goto(line.url("/"))
        await post(server, "before")
        await expect(lines(page)).to_have_text(["before"])
        line.cut()
        server.restart()
        await post(server, "after", "the restart")
        line.mend()
        await expect(lines(page)).to_have_text(["after", "the restart"], timeout=BACK)
        await post(server, "live")
        await expect(lines(page)).to_have_text(["after", "the restart", "live"])


def test_the_script_has_ten_lines() -> None:
    [page] = blocks(RESUME, "html")
    script = page.code.partition("function listen")[2].partition("\n\n")[0]
    assert len(script.splitlines()) == 10


async def test_on_lost(file: File) -> None:
    module = file("docs/how-to/resume.md", "on_lost.py")
    app: Yaat = module.app
    async with opened(app, "/prices") as (client, [first]):
        assert await first.receive_json() == {"prices": module.PRICES}
        stands = await first.receive_json()
        await app.channel("prices").publish({"tea": 4})
        assert (await first.receive_json())["data"] == {"tea": 4}
        since = f"{stands['offset']}-{stands['epoch']}"
        async with client.websocket(f"/prices?since={since}") as second:
            assert (await second.receive_json())["data"] == {"tea": 4}
        async with client.websocket("/prices?since=1-gone") as third:
            assert await third.receive_json() == {"prices": module.PRICES}
            assert "data" not in await third.receive_json()


async def test_what_is_published_while_on_lost_runs_is_not_lost() -> None:
    app = Yaat(channels=Channels({"a": ChannelOptions(history=10)}))

    @app.websocket_route("/")
    async def handler(websocket: WebSocket) -> None:
        async def reload(_: PositionLost) -> None:
            await websocket.send_text("state")
            await websocket.channel("a").publish("meanwhile")
            await asyncio.sleep(0)

        await websocket.accept()
        async with websocket.channel("a").join(websocket, since="1-x", on_lost=reload):
            await websocket.wait_closed()

    async with opened(app, "/") as (_, [ws]):
        assert await ws.receive() == "state"
        assert await ws.receive() == "meanwhile"


REASONS = {
    "too many": ChannelOptions(history=2),
    "removed": ChannelOptions(history=10),
}


@pytest.mark.parametrize("reason", REASONS)
async def test_when_a_position_is_lost(reason: str) -> None:
    app = Yaat(channels=Channels({"a": REASONS[reason]}))
    channel = app.channel("a")
    position = (await channel.publish("0")).position
    for number in range(3):
        await channel.publish(str(number))
    if reason == "removed":
        await channel.remove_history()
    with pytest.raises(PositionLost):
        async for _ in channel.subscribe(since=position):
            pass
    await app.hub.close()


# How to notify

NOTIFY = "docs/how-to/notify.md"


async def test_notify_from_a_request(file: File) -> None:
    app: Yaat = file(NOTIFY, "orders.py").app
    async with opened(app, "/orders", "/orders") as (client, [ada, grace]):
        await all_listen(app.channel("orders"), ada, grace)
        assert (await client.post("/orders", json={"item": "tea"})).status_code == 201
        assert await ada.receive_json() == await grace.receive_json() == {"ordered": "tea"}


async def test_notify_one_user(file: File) -> None:
    app: Yaat = file(NOTIFY, "users.py").app
    async with opened(app, "/users/ada", "/users/ada", "/users/grace") as (client, tabs):
        await all_listen(app.channel("user:ada"), *tabs[:2])
        await all_listen(app.channel("user:grace"), tabs[2])
        assert (await client.post("/users/ada", content="for ada")).status_code == 204
        assert [await tab.receive() for tab in tabs[:2]] == ["for ada"] * 2
        await client.post("/users/grace", content="for grace")
        assert await tabs[2].receive() == "for grace"


async def test_notify_once(file: File) -> None:
    app: Yaat = file(NOTIFY, "once.py").app
    async with opened(app) as (client, _):
        answers = [
            (await client.post("/payments", json={"id": each})).json()
            for each in ("p1", "p1", "p2")
        ]
        assert [answer["again"] for answer in answers] == [False, True, False]
        assert answers[0]["position"] == answers[1]["position"] != answers[2]["position"]
        kept = (await app.channel("payments").history()).publications
        assert [each.data["id"] for each in kept] == ["p1", "p2"]


async def test_notify_from_anywhere(file: File) -> None:
    app: Yaat = file(NOTIFY, "ticker.py").app
    async with opened(app, "/ticks") as (_, [ws]):
        assert await ws.receive_json() in (0, 1, 2)
        loop = asyncio.get_running_loop()

        def publish() -> None:
            channel = app.channel("ticks")
            asyncio.run_coroutine_threadsafe(channel.publish("from a thread"), loop).result(5)

        await asyncio.to_thread(publish)
        while await ws.receive() != '"from a thread"'.strip('"'):
            pass


async def test_notify_from_fastapi(file: File) -> None:
    app = file(NOTIFY, "in_fastapi.py").app
    async with opened(app) as (client, _):
        assert (await client.post("/items/1")).json() == {"item_id": 1}
        async with client.websocket("/live/items") as ws:
            assert await ws.receive_json() == {"item": 1}
            await client.post("/items/2")
            assert await ws.receive_json() == {"item": 2}


async def test_notify_from_fastapi_on_a_server(tmp_path: Path) -> None:
    [program] = [b for b in blocks(ROOT / NOTIFY, "python") if b.title == "in_fastapi.py"]
    program.write(tmp_path)
    path = {"PYTHONPATH": str(tmp_path)}
    with Server(SPECS["uvicorn-sansio"], "in_fastapi:app", tmp_path, path) as server:
        async with httpx2.AsyncClient() as client, connect(server.url("/live/items")) as ws:
            await client.post(http(server, "/items/1"))
            assert await ws.receive_json() == {"item": 1}


async def test_a_channel_beside_a_route_of_fastapi(file: File) -> None:
    module = file("docs/how-to/mount.md", "channel_beside.py")
    async with opened(module.app, "/rooms/tea") as (client, [ws]):
        await all_listen(module.live.channel("room:tea"), ws)
        await client.post("/rooms/tea", params={"text": "hello"})
        assert await ws.receive() == "hello"
    await module.live.hub.close()


async def test_channels_need_a_yaat() -> None:
    async def alone(websocket: WebSocket) -> None:
        websocket.channel("a")

    app = Starlette(routes=[WebSocketRoute("/", Endpoint(alone))])
    with pytest.raises(UsageError, match="Yaat around"):
        async with TestClient(app) as client, client.websocket("/"):
            pass


async def test_a_yaat_in_a_yaat_shares_its_channels() -> None:
    inner, outer = Yaat(), Yaat()

    @inner.websocket_route("/listen")
    async def listen(websocket: WebSocket) -> None:
        await websocket.accept()
        async with websocket.channel("a").join(websocket):
            await websocket.wait_closed()

    outer.mount("/inner", inner)
    async with opened(outer, "/inner/listen") as (_, [ws]):
        await all_listen(outer.channel("a"), ws)
        await inner.channel("a").publish("from the inner one")
        assert await ws.receive() == "from the inner one"


async def test_a_mounted_yaat_has_no_patterns_of_its_own() -> None:
    outer, inner = Yaat(), Yaat(channels=Channels({"a": ChannelOptions(history=1)}))
    outer.mount("/inner", inner)
    with pytest.raises(UsageError, match="give the patterns there"):
        async with outer.test_client() as client, client.websocket("/inner/"):
            pass


# How to know who is here

PRESENCE = "docs/how-to/presence.md"


async def test_who_is_here(file: File) -> None:
    app: Yaat = file(PRESENCE, "app.py").app
    async with opened(app, "/rooms/tea/ada") as (client, [ada]):
        [own] = (await next_of(ada, "here")).items()
        assert own[1] == "ada"
        async with client.websocket("/rooms/tea/grace") as grace:
            here = await next_of(grace, "here")
            assert sorted(here.values()) == ["ada", "grace"]
            joined = await next_of(ada, "join")
            assert (joined["user"], joined["info"]) == ("grace", {"color": "teal"})
            assert here[joined["client"]] == "grace"
            async with client.websocket("/rooms/tea/ada") as second:
                await next_of(second, "here")
                answer = (await client.get("/rooms/tea")).json()
                assert answer == {"clients": 3, "users": 2, "names": ["ada", "grace"]}
            await grace.cut()
            await grace.ended()
        left = [await next_of(ada, "leave") for _ in range(2)]
        assert [each["user"] for each in left] == ["ada", "grace"]
        assert left[1]["client"] == joined["client"]
        answer = (await client.get("/rooms/tea")).json()
        assert answer == {"clients": 1, "users": 1, "names": ["ada"]}


async def test_presence_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: File) -> None:
    app: Yaat = file(PRESENCE, "app.py").app
    events = Reading(ROOT / PRESENCE, tmp_path, monkeypatch)._imported("events.py")
    vars(events)["app"] = app
    async with opened(app, "/rooms/tea/linus") as (client, [linus]):
        await next_of(linus, "here")
        waiting = asyncio.create_task(events.wait_until_gone("ada"))
        await asyncio.sleep(0.01)
        async with client.websocket("/rooms/tea/ada") as ada:
            await next_of(ada, "here")
            assert not waiting.done()
        await waiting


async def test_presence_has_to_be_wanted() -> None:
    channel = Yaat().channel("room")
    for asked in (channel.presence, channel.presence_stats):
        with pytest.raises(UsageError):
            await asked()


async def test_the_default_format_tells_nothing_of_presence(file: File) -> None:
    app: Yaat = file(PRESENCE, "app.py").app

    @app.websocket_route("/raw")
    async def raw(websocket: WebSocket) -> None:
        await websocket.accept()
        async with websocket.channel("room:tea").join(websocket):
            await websocket.wait_closed()

    async with opened(app, "/raw") as (client, [ws]):
        await all_listen(app.channel("room:tea"), ws)
        async with client.websocket("/rooms/tea/ada") as ada:
            await next_of(ada, "here")
        await app.channel("room:tea").publish("only this")
        assert await ws.receive() == "only this"


# How slow readers are treated

SLOW = HOW_TO / "slow-readers.md"
CHUNK = 100_000


def test_table_of_policies(file: File) -> None:
    [table, _] = tables(SLOW)
    policies = [code(row[0].partition(",")[0]).strip('"') for row in table]
    assert policies == ["cut", "drop_oldest", "drop_newest", "latest"]
    assert ChannelOptions().slow == "cut"
    assert ChannelOptions().max_waiting == 1_048_576
    for policy in policies:
        ChannelOptions(slow=policy)  # type: ignore[arg-type]
    assert file("docs/how-to/slow-readers.md", "app.py").CHANNELS.options("prices").slow == "latest"


@asynccontextmanager
async def stalled(
    app: Yaat, name: str
) -> AsyncIterator[tuple[WebSocketSession, WebSocketSession, Channel]]:
    """Have two members of a channel, of which the first does not read for now."""
    async with opened(app, f"/listen/{name}", f"/listen/{name}") as (_, [slow, quick]):
        channel = app.channel(name)
        await all_listen(channel, slow, quick)
        yield slow, quick, channel


async def numbers(ws: WebSocketSession) -> list[int]:
    """The numbers that come, up to the one that says that it is the last."""
    received = []
    while (message := await ws.receive()) != "end":
        assert isinstance(message, bytes)
        received.append(int.from_bytes(message[:4]))
    return received


def chunk(number: int) -> bytes:
    return number.to_bytes(4) + bytes(CHUNK - 4)


async def flood(channel: Channel, quick: WebSocketSession, count: int) -> None:
    """Publish more than anybody holds; who reads gets it all."""
    for number in range(count):
        await channel.publish(chunk(number))
        assert await quick.receive() == chunk(number)


async def test_who_is_cut(file: File, caplog: pytest.LogCaptureFixture) -> None:
    module = file("docs/how-to/slow-readers.md", "app.py")
    async with stalled(module.app, "chat:tea") as (slow, quick, channel):
        await flood(channel, quick, 40)
        await slow.ended()
        assert await closing(slow) == (1013, "reads too slowly")
    assert (module.counted.cuts, module.app.hub.cut) == (1, 1)
    assert module.counted.drops == module.app.hub.dropped == 0
    assert warnings(caplog) == 1


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    records = [each for each in caplog.records if each.name == "yaat.channel"]
    assert all(each.levelno == logging.WARNING for each in records)
    return len(records)


@pytest.mark.parametrize("name", ["log:app", "offers:x"])
async def test_what_is_left_out(name: str, file: File, caplog: pytest.LogCaptureFixture) -> None:
    module = file("docs/how-to/slow-readers.md", "app.py")
    async with stalled(module.app, name) as (slow, quick, channel):
        await flood(channel, quick, 40)
        drops = module.counted.drops
        received: list[int] = []
        while len(received) < 40 - drops:
            message = await slow.receive()
            assert isinstance(message, bytes)
            received.append(int.from_bytes(message[:4]))
        assert received == sorted(set(received))
        assert (39 in received) is (name == "log:app")
        assert received[:3] == [0, 1, 2]
        assert drops == module.app.hub.dropped > 10
    assert module.counted.cuts == 0
    assert warnings(caplog) == 1


async def test_only_the_latest_of_each_key(file: File) -> None:
    module = file("docs/how-to/slow-readers.md", "app.py")
    async with stalled(module.app, "prices") as (slow, quick, channel):
        await flood(channel, quick, 20)
        for price in range(50):
            for symbol in ("tea", "milk"):
                await channel.publish({"symbol": symbol, "price": price}, key=symbol)
        await channel.publish("end")
        told = []
        while (message := await slow.receive()) != "end":
            if isinstance(message, str):
                told.append(json.loads(message))
        assert told == [{"symbol": each, "price": 49} for each in ("tea", "milk")]


async def test_a_slow_reader_on_a_server(tmp_path: Path) -> None:
    async with served(SLOW, tmp_path) as server:
        slow_one = connect(server.url("/listen/prices"), receive_buffer=4_096)
        async with slow_one as slow, httpx2.AsyncClient() as client:
            for number in range(200):
                price = f"{number} {'x' * 50_000}"
                await client.post(http(server, "/prices/tea"), json=price)
            received = [-1]
            while received[-1] < 199:
                received.append(int((await slow.receive_json())["price"].split()[0]))
        assert received == sorted(set(received))
        assert 3 < len(received) < 200


# Reference


def test_table_of_patterns() -> None:
    table = tables(REFERENCE / "channels.md")[1]
    for pattern, matching, others in table:
        options = ChannelOptions(history=7)
        channels = Channels({code(pattern): options})
        for name in matching.split(", "):
            assert channels.options(code(name)) is options
        for name in others.split(", "):
            assert channels.options(code(name)) is not options


def test_table_of_urls() -> None:
    table = tables(REFERENCE / "brokers.md")[0]
    for url, *_ in table:
        assert Yaat(broker=code(url)).hub is not None


def test_table_of_bounds() -> None:
    values = {"256 MiB": 256 << 20, "a day": 86_400, "60 s": 60, "5 minutes": 300, "1 MiB": 1 << 20}
    parameters = dict(signature(MemoryBroker).parameters)
    for names, defaults, _ in tables(REFERENCE / "brokers.md")[2]:
        said = ["100,000"] if defaults == "100,000" else defaults.split(", ")
        for name, default in zip(names.split(", "), said, strict=True):
            value = values.get(default) or int(default.replace(",", ""))
            assert parameters.pop(code(name)).default == value
            assert from_url(f"memory://?{code(name)}=1000") is not None
    assert set(parameters) == {"space", "clock"}


def test_what_a_publication_counts() -> None:
    assert f"its payload and {memory.OVERHEAD} bytes" in (REFERENCE / "brokers.md").read_text()
    assert f"its payload and {outbox.OVERHEAD} bytes" in SLOW.read_text()


async def test_a_format_of_ones_own_is_hashable() -> None:
    assert len({RAW, POSITIONED}) == 2
    assert (repr(RAW), repr(POSITIONED)) == ("RAW", "POSITIONED")


# Moving here


@pytest.mark.parametrize("title", ["loop.py", "channel.py"])
async def test_a_loop_and_the_channel_in_its_place(title: str, file: File) -> None:
    module = file("docs/how-to/from-starlette.md", title)
    async with opened(module.app, "/chat/ada", "/chat/grace") as (client, [ada, grace]):
        if title == "channel.py":
            await all_listen(module.live.channel("chat"), ada, grace)
        await ada.send_text("hello")
        assert await ada.receive() == await grace.receive() == "ada: hello"
        await client.post("/announce", params={"text": "tea is ready"})
        assert await ada.receive() == await grace.receive() == "tea is ready"
        await grace.close()
        assert await ada.receive() == "grace has left"
