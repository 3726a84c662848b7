"""The chat of `make demo`, as its user meets it: a server process and tabs of a real Chromium.

With YAAT_SCREENSHOT set to a path, the picture of two tabs is written there (docs/images/demo.png).
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import urlopen
from uuid import uuid4

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from browser import chromium
from servers import Port

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLE = Path(__file__).parents[1] / "examples" / "chat"
BACK = 30_000  # milliseconds that the page may take to be in its room again


class Demo:
    """`serve.py` as a process, begun and ended as often as a test likes.

    Args:
        arguments: Of the command line.
        before: Python that changes the modules `app` and `serve` before they serve.
    """

    def __init__(self, *arguments: str, before: str = "") -> None:
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
            sys.executable, *self.command, cwd=EXAMPLE, stdout=PIPE, stderr=PIPE
        )

    async def end(self, how: signal.Signals) -> tuple[int | None, str]:
        """Signal the process; return its exit code and what it complained of."""
        self.process.send_signal(how)
        async with asyncio.timeout(10):
            _, complaints = await self.process.communicate()
        return self.process.returncode, complaints.decode()

    def member(self, name: str, room: str = "lobby", **options: Any) -> connect:
        """Return the connection of a member that is no browser."""
        address = self.address.replace("http", "ws", 1)
        return connect(f"{address}rooms/{room}?name={name}", proxy=None, **options)


class Tab:
    """One browser tab in the chat, spoken of as its reader sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.log = page.get_by_role("log", name="Conversation")
        self.status = page.get_by_role("status")
        self.here = page.get_by_role("complementary").get_by_role("listitem")

    def line(self, text: str) -> Locator:
        return self.log.get_by_text(text, exact=True)

    async def enter(self, name: str, room: str) -> None:
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_label("Room").fill(room)
        await self.page.get_by_label("Room").press("Enter")
        await expect(self.status).to_have_text("Connected")

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo() -> AsyncIterator[Demo]:
    async with Demo("--port", "0") as demo:
        yield demo


async def fetch(address: str) -> str:
    """Return what stands at an address."""
    with await asyncio.to_thread(urlopen, address, timeout=20) as answer:
        body: bytes = answer.read()
    return body.decode()


@pytest.fixture
def room() -> str:
    """Return the name of a room that no other test enters."""
    return uuid4().hex


@contextlib.asynccontextmanager
async def tab(browser: Browser, demo: Demo, **options: Any) -> AsyncIterator[Tab]:
    """Open the demo's first page in a context of its own; no script in it may fail."""
    async with await browser.new_context(**options) as context:
        page = await context.new_page()
        page.set_default_timeout(BACK)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(demo.address)
        yield Tab(page)
        assert errors == []


async def heard(member: ClientConnection) -> dict[str, Any]:
    """Return the next event that a member hears."""
    event: dict[str, Any] = json.loads(await member.recv())
    return event


async def closed(member: ClientConnection) -> tuple[int, str]:
    """Return the code and reason with which the server ended a connection."""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await member.recv()
    assert member.close_code is not None
    assert member.close_reason is not None
    return member.close_code, member.close_reason


async def test_two_tabs_talk_and_another_room_hears_nothing(browser: Browser, demo: Demo) -> None:
    async with (
        tab(browser, demo) as ada,
        tab(browser, demo) as grace,
        tab(browser, demo) as linus,
    ):
        await ada.enter("Ada", "tea room")
        await expect(ada.page).to_have_url(f"{demo.address}rooms/tea%20room")
        await grace.enter("Grace", "tea room")
        await linus.enter("Linus", "attic")

        await ada.say("Is anybody here?")
        await expect(grace.line("Is anybody here?")).to_be_visible()
        await grace.say("Yes, in another tab.")
        await expect(ada.line("Yes, in another tab.")).to_be_visible()
        await linus.say("Only me.")

        await expect(linus.line("Only me.")).to_be_visible()
        await expect(linus.log.locator("p")).to_have_text(["You are in, as Linus", "LinusOnly me."])
        await expect(linus.here).to_have_text(["Linus (you)"])


async def test_names_come_and_go(browser: Browser, demo: Demo) -> None:
    async with tab(browser, demo) as ada:
        await ada.enter("Ada", "hall")
        async with tab(browser, demo) as twin, demo.member("Zed", "hall") as vanishing:
            await twin.enter("Ada", "hall")
            await expect(ada.here).to_have_text(["Ada (you)", "Ada 2", "Zed"])
            await expect(twin.here).to_have_text(["Ada", "Ada 2 (you)", "Zed"])
            vanishing.transport.abort()
            await expect(ada.here).to_have_text(["Ada (you)", "Ada 2"])
        await expect(ada.here).to_have_text(["Ada (you)"])
        assert set(await ada.log.locator("p").all_inner_texts()) == {
            "You are in, as Ada",
            "Ada 2 joined",
            "Zed joined",
            "Zed left",
            "Ada 2 left",
        }


async def test_what_others_write_stays_text(browser: Browser, demo: Demo) -> None:
    attack = "<img src=x onerror=\"document.title='taken'\">"
    async with tab(browser, demo) as ada:
        await ada.enter("Ada", "xss")
        async with demo.member("<b>Eve</b>", "xss") as eve:
            await eve.send(json.dumps({"text": attack}))
            await expect(ada.line(attack)).to_be_visible()
            await expect(ada.here).to_have_text(["<b>Eve</b>", "Ada (you)"])
        await expect(ada.log.locator("img, b")).to_have_count(0)
        await expect(ada.page).to_have_title("#xss · Yaat chat")


async def test_a_refusal_is_told_at_the_door(browser: Browser, demo: Demo) -> None:
    async with tab(browser, demo) as ada:
        await ada.page.get_by_label("Your name").fill("\N{RIGHT-TO-LEFT OVERRIDE}adA")
        await ada.page.get_by_role("button", name="Enter").click()
        await expect(ada.page.get_by_role("alert")).to_have_text("This name will not do")
        await ada.enter("Ada", "lobby")


async def test_a_phone_needs_no_sideways_scrolling(browser: Browser, demo: Demo) -> None:
    async with tab(browser, demo, viewport={"width": 320, "height": 568}) as ada:
        await ada.enter("Ada", "a" * 40)
        await ada.say("w" * 500)
        await expect(ada.line("w" * 500)).to_be_visible()
        await expect(ada.page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
        for each in (ada.page.locator("html"), ada.log):
            assert await each.evaluate("element => element.scrollWidth - element.clientWidth") == 0


async def test_tabs_come_back_by_themselves_after_a_restart(browser: Browser) -> None:
    port = Port()
    async with (
        Demo("--port", str(port.number)) as demo,
        tab(browser, demo) as ada,
        tab(browser, demo) as grace,
    ):
        await ada.enter("Ada", "lobby")
        await grace.enter("Grace", "lobby")
        await demo.end(signal.SIGKILL)
        await expect(ada.status).to_have_text("Reconnecting…")
        await expect(grace.status).to_have_text("Reconnecting…")
        await grace.page.get_by_label("Message").fill("written while it was away")
        await expect(grace.page.get_by_role("button", name="Send")).to_be_disabled()

        await grace.page.evaluate("document.getElementById('say').requestSubmit()")

        await demo.start()
        for each in (ada, grace):
            await expect(each.status).to_have_text("Connected", timeout=BACK)
            await expect(each.here).to_have_count(2, timeout=BACK)
        await grace.page.get_by_label("Message").press("Enter")
        await expect(ada.line("written while it was away")).to_be_visible()
        await ada.say("Welcome back.")
        await expect(grace.line("Welcome back.")).to_be_visible()
    port.release()


async def test_ctrl_c_ends_it_without_a_word(browser: Browser) -> None:
    async with Demo("--port", "0") as demo, tab(browser, demo) as ada:
        await ada.enter("Ada", "lobby")
        assert await demo.end(signal.SIGINT) == (0, "")
        await expect(ada.status).to_have_text("Reconnecting…")


async def test_picture_of_two_tabs(browser: Browser, demo: Demo, tmp_path: Path) -> None:
    look = {"viewport": {"width": 560, "height": 500}, "device_scale_factor": 1.5}
    async with (
        tab(browser, demo, color_scheme="light", **look) as ada,
        tab(browser, demo, color_scheme="dark", **look) as grace,
    ):
        await ada.enter("Ada", "lobby")
        await grace.enter("Grace", "lobby")
        for speaker, text in (
            (ada, "Is anybody here?"),
            (grace, "Yes! In another tab."),
            (grace, "And when the server restarts?"),
            (ada, "Both tabs come back by themselves."),
            (grace, "<b>And nobody</b> gets to write HTML."),
        ):
            await speaker.say(text)
            await expect(ada.line(text)).to_be_visible()
            await expect(grace.line(text)).to_be_visible()
        images = [
            base64.b64encode(await each.page.screenshot(caret="hide")).decode()
            for each in (ada, grace)
        ]
        await ada.page.set_viewport_size({"width": 1240, "height": 580})
        await ada.page.set_content(
            "<style>body { display: flex; justify-content: space-around; margin: 0; padding: 32px"
            " 24px; background: none } img { width: 560px; border-radius: 14px; box-shadow: 0 0 0"
            " 1px #8886, 0 8px 24px #0004 }</style>"
            + "".join(f'<img src="data:image/png;base64,{image}">' for image in images)
        )
        path = Path(os.environ.get("YAAT_SCREENSHOT", tmp_path / "demo.png"))
        await ada.page.screenshot(path=path, omit_background=True)
    assert path.stat().st_size > 10_000  # noqa: ASYNC240  # one look at one file


async def test_a_port_that_is_taken(demo: Demo) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    number = taken.getsockname()[1]
    with contextlib.closing(taken):
        async with Demo(before=f"serve.PORT = {number}") as other:
            assert other.address != f"http://127.0.0.1:{number}/"
            async with other.member("Ada"):
                pass
        process = await Demo("--port", str(number)).run()
        output, complaint = await process.communicate()
    assert (process.returncode, output) == (1, b"")
    assert complaint.startswith(b"Cannot listen on 127.0.0.1, port %d: " % number)
    assert b"Traceback" not in complaint


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 1007),
        ('{"text": "\\ud800"}', 1007),  # half of a surrogate pair: no UTF-8 can carry it on
        ("[]", 1008),
        ('{"text": 1}', 1008),
        ('{"text": ""}', 1008),
        (json.dumps({"text": "x" * 1001}), 1008),
        (json.dumps({"text": "x" * 20_000}), 1009),
        (b'{"text": "bytes"}', 1003),
    ],
)
async def test_a_broken_message_ends_its_sender_alone(
    demo: Demo, room: str, message: str | bytes, code: int
) -> None:
    async with demo.member("Ada", room) as ada:
        async with demo.member("Eve", room) as eve:
            await eve.send(message)
            assert (await closed(eve))[0] == code
        await ada.send('{"text": "Still here"}')
        events = [await heard(ada) for _ in range(4)]
    assert [event["type"] for event in events] == ["joined", "joined", "left", "said"]
    assert events[-1] == {"type": "said", "name": "Ada", "text": "Still here"}


@pytest.mark.parametrize("name", ["", "%20", "x" * 25, "a%00b", "a%0Ab", "%E2%80%AEadA"])
async def test_a_bad_name_is_refused(demo: Demo, name: str) -> None:
    async with demo.member(name) as eve:
        assert await closed(eve) == (1008, "This name will not do")


async def test_a_room_name_has_a_length(demo: Demo) -> None:
    async with demo.member("Eve", "x" * 41) as eve:
        assert (await closed(eve))[0] == 1008


@contextlib.asynccontextmanager
async def talker_and_mute(limits: str) -> AsyncIterator[tuple[ClientConnection, ClientConnection]]:
    """Let one talk until the other, who does not read, has more than the system buffers for it."""
    # Small buffers and no pause, so that it takes kilobytes and not megabytes.
    before = f"""
import socket
app.PAUSE = 0
{limits}
def listen(*arguments, listen=serve.listen):
    listener = listen(*arguments)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return listener
serve.listen = listen
"""
    async with Demo("--port", "0", before=before) as demo, demo.member("Ada") as ada:
        with socket.socket() as small:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            small.setblocking(False)
            address = urlsplit(demo.address)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(small, (address.hostname, address.port))
            async with demo.member("Mute", sock=small, compression=None) as mute:
                mute.transport.pause_reading()
                for _ in range(100):
                    await ada.send(json.dumps({"text": "€" * 1000}))
                    while (await heard(ada))["type"] != "said":
                        pass
                yield ada, mute


async def test_who_stops_reading_is_closed_and_delays_nobody() -> None:
    async with talker_and_mute("app.BACKLOG, app.PATIENCE = 1000, 0.5") as (ada, mute):
        async with asyncio.timeout(10):
            assert await heard(ada) == {"type": "left", "name": "Mute", "here": ["Ada"]}
        mute.transport.resume_reading()
        assert await closed(mute) == (1013, "You read too slowly")


async def test_who_falls_behind_is_closed_too() -> None:
    async with talker_and_mute("app.BACKLOG, app.PATIENCE = 20, 50") as (_, mute):
        mute.transport.resume_reading()
        assert await closed(mute) == (1013, "You read too slowly")


async def test_a_burst_that_does_not_fit_is_told() -> None:
    before = """
from yaat.responses import TextResponse
@app.app.route("/burst")
async def burst(request):
    for number in range(app.BACKLOG + 1):
        app.tell(app.rooms["lobby"], "said", name="Ada", text=str(number))
    return TextResponse("")
"""
    async with Demo("--port", "0", before=before) as demo, demo.member("Ada") as ada:
        assert await heard(ada) == {"type": "joined", "name": "Ada", "here": ["Ada"]}
        await fetch(f"{demo.address}burst")
        assert await closed(ada) == (1013, "You read too slowly")


async def quiet(demo: Demo, tasks: int) -> int:
    """Wait until no room is left, and no more tasks than these; return how many there are."""
    return int(await fetch(f"{demo.address}quiet?tasks={tasks}"))


async def test_nothing_is_left_of_tabs_that_vanish() -> None:
    before = """
import asyncio
from yaat.responses import TextResponse
@app.app.route("/quiet")
async def quiet(request):
    while app.rooms or len(asyncio.all_tasks()) > int(request.query_params["tasks"]):
        await asyncio.sleep(0.01)
    return TextResponse(str(len(asyncio.all_tasks())))
"""

    async with Demo("--port", "0", before=before) as demo:
        idle = await quiet(demo, 100)
        members = [await demo.member("Ada", f"room{number % 3}") for number in range(9)]
        for member in members:
            await member.send('{"text": "Goodbye"}')
            member.transport.abort()
        assert await quiet(demo, idle) == idle
