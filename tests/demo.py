"""The chat of the examples as its user meets it: server processes and tabs of a real Chromium."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import urlopen

from playwright.async_api import Browser, Locator, Page, expect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

EXAMPLE = Path(__file__).parents[1] / "examples" / "chat"
BACK = 30_000  # milliseconds that the page may take to be in its room again


class Demo:
    """`serve.py` as a process, begun and ended as often as a test likes.

    Args:
        arguments: Of the command line.
        before: Python that changes the modules `app` and `serve` before they serve.
        environment: Added to this process's own.
    """

    def __init__(self, *arguments: str, before: str = "", **environment: str) -> None:
        self.environment = {**os.environ, "BROKER": "", "WORKERS": "", **environment}
        script = ("-c", f"import app, serve\n{before}\nserve.main()") if before else ("serve.py",)
        self.command = (*script, *arguments)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            await self.end(signal.SIGKILL)

    async def start(self) -> None:
        self.process = await self.run()
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            said = (await self.process.stdout.readline()).decode()
        found = re.search(r"http://\S+", said)
        assert found, said or (await self.process.communicate())[1].decode()
        self.address = found.group()

    async def run(self) -> Process:
        """Begin the process without waiting for its address."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *self.command,
            cwd=EXAMPLE,
            env=self.environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )

    async def complaint(self) -> str:
        """Return the next line that the process complains with."""
        assert self.process.stderr is not None
        async with asyncio.timeout(10):
            return (await self.process.stderr.readline()).decode()

    async def end(self, how: signal.Signals) -> tuple[int | None, str]:
        """Signal the process; return its exit code and what it complained of."""
        self.process.send_signal(how)
        async with asyncio.timeout(10):
            _, complaints = await self.process.communicate()
        return self.process.returncode, complaints.decode()

    def member(self, name: str, room: str = "lobby", since: str = "", **options: Any) -> connect:
        """Return the connection of a member that is no browser."""
        address = self.address.replace("http", "ws", 1)
        # Without a bound on its queue it reads even when nobody asks it: else it reads too slowly.
        options = {"proxy": None, "max_queue": None, **options}
        return connect(f"{address}rooms/{room}?name={name}&since={since}", **options)


class Cable:
    """What lies between a tab and the server. It can be pulled out and put in again."""

    def __init__(self, demo: Demo) -> None:
        self.port = urlsplit(demo.address).port
        self.is_plugged = True
        self.ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.pull()
        await self.server.wait_closed()

    def pull(self) -> None:
        self.is_plugged = False
        for end in self.ends:
            end.transport.abort()

    def plug(self) -> None:
        self.is_plugged = True

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_plugged:
            return writer.transport.abort()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.ends |= {writer, far_writer}
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        self.ends -= {writer, far_writer}
        return None

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()


class Tab:
    """One browser tab in the chat, spoken of as its reader sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.log = page.get_by_role("log", name="Conversation")
        self.lines = self.log.locator("p")
        self.said = self.log.locator(".said > span")
        self.status = page.get_by_role("status")
        self.here = page.get_by_role("list", name="Here").get_by_role("listitem")
        self.rooms = page.get_by_role("navigation", name="Rooms")
        self.position = page.locator("#position")

    def line(self, text: str) -> Locator:
        return self.log.get_by_text(text, exact=True)

    async def enter(self, name: str, room: str) -> None:
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_role("textbox", name="Room").fill(room)
        await self.page.get_by_role("textbox", name="Room").press("Enter")
        await expect(self.status).to_have_text("Connected")

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    async def press(self, button: str) -> None:
        await self.page.get_by_role("button", name=button).press("Enter")


async def fetch(address: str) -> str:
    """Return what stands at an address."""
    with await asyncio.to_thread(urlopen, address, timeout=20) as answer:
        body: bytes = answer.read()
    return body.decode()


@contextlib.asynccontextmanager
async def tab(browser: Browser, demo: Demo | Cable, **options: Any) -> AsyncIterator[Tab]:
    """Open the demo's first page in a context of its own.

    No script in it may fail, and it may ask for nothing from elsewhere.
    """
    async with await browser.new_context(**options) as context:
        page = await context.new_page()
        page.set_default_timeout(BACK)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(demo.address)
        yield Tab(page)
        assert errors == []
        assert [url for url in asked if not url.startswith((demo.address, "data:"))] == []


async def heard(member: ClientConnection, key: str = "data") -> dict[str, Any]:
    """Return the next event of a kind that a member hears, past all others."""
    while True:
        event: dict[str, Any] = json.loads(await member.recv())
        if key in event:
            return event


async def say(member: ClientConnection, *texts: str) -> None:
    """Speak as a member that is no browser, until it hears itself."""
    for text in texts:
        await member.send(json.dumps({"text": text}))
        while (await heard(member))["data"]["text"] != text:
            pass


async def rest(member: ClientConnection) -> list[dict[str, Any]]:
    """Return the publications that a member hears until the server ends its connection."""
    publications = []
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionClosed):
            while True:
                publications.append(await heard(member))
    return publications


async def closed(member: ClientConnection) -> tuple[int | None, str | None]:
    """Return the code and reason with which the server ends a connection."""
    await rest(member)
    return member.close_code, member.close_reason
