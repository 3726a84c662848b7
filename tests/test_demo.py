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
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from browser import chromium
from demo import BACK, Cable, Demo, closed, fetch, heard, rest, say, tab
from servers import Port

pytestmark = pytest.mark.asyncio(loop_scope="module")

AFRESH = "What you missed is no longer kept. The room begins afresh."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo() -> AsyncIterator[Demo]:
    async with Demo("--port", "0") as demo:
        yield demo


@pytest.fixture
def room() -> str:
    """Return the name of a room that no other test enters."""
    return uuid4().hex


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
        await expect(linus.lines).to_have_text(["You are in, as Linus", "LinusOnly me."])
        await expect(linus.here).to_have_text(["Linus (you)"])


async def test_who_enters_sees_the_last_fifty(browser: Browser, demo: Demo, room: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        members = [await stack.enter_async_context(demo.member(name, room)) for name in "ABCDEF"]
        for number in range(60):
            await members[number % 6].send(json.dumps({"text": f"No. {number}"}))
        texts = [(await heard(members[0]))["data"]["text"] for _ in range(60)]
        async with tab(browser, demo) as ada:
            await ada.enter("Ada", room)
            await expect(ada.said).to_have_text(texts[-50:])
            await expect(ada.lines.last).to_have_text("You are in, as Ada")
            await expect(ada.position).to_have_text(re.compile(r"^at 60-\S+$"))
            await expect(ada.log).to_have_attribute("aria-busy", "false")
            await say(members[0], "And one more.")
            await expect(ada.said).to_have_text([*texts[-50:], "And one more."])


async def test_names_come_and_go(browser: Browser, demo: Demo) -> None:
    async with tab(browser, demo) as ada:
        await ada.enter("Ada", "hall")
        async with demo.member("Zed", "hall") as vanishing:
            await expect(ada.here).to_have_text(["Ada (you)", "Zed"])
            vanishing.transport.abort()
            await expect(ada.here).to_have_text(["Ada (you)"])
        await expect(ada.page.get_by_role("heading", name="Here")).to_have_text("Here: 1")
        await expect(ada.lines).to_have_text(["You are in, as Ada", "Zed joined", "Zed left"])


async def test_two_tabs_of_one_name_are_one_person(browser: Browser, demo: Demo, room: str) -> None:
    async with tab(browser, demo) as ada, demo.member("Zed", room) as zed:
        await heard(zed, "here")
        await ada.enter("Ada", room)
        async with tab(browser, demo) as twin:
            await twin.enter("Ada", room)
            for each in (ada, twin):
                await expect(each.here).to_have_text(["Ada (you, 2 tabs)", "Zed"])
            await twin.say("From the second one.")
            await expect(ada.log.locator(".mine")).to_have_text(["AdaFrom the second one."])
        await expect(ada.here).to_have_text(["Ada (you)", "Zed"])
        await say(zed, "Bye")
        await expect(ada.lines).to_have_text(
            ["You are in, as Ada", "AdaFrom the second one.", "ZedBye"]
        )


async def test_a_cut_line_resumes_where_it_was(browser: Browser, demo: Demo, room: str) -> None:
    async with tab(browser, demo) as ada, demo.member("Grace", room) as grace:
        await heard(grace, "here")
        await ada.enter("Ada", room)
        await say(grace, "Before")
        await expect(ada.line("Before")).to_be_visible()

        await ada.press("Cut the line")
        await expect(ada.status).to_have_text("Cut off")
        await expect(ada.page.get_by_role("button", name="Send")).to_be_disabled()
        assert (await heard(grace, "leave"))["leave"]["user"] == "Ada"
        async with demo.member("Linus", room) as linus:
            await heard(linus, "here")
            await say(grace, "one", "two", "three")
            await expect(ada.lines.last).to_have_text("You cut the line.")

            await ada.press("Reconnect")
            await expect(ada.status).to_have_text("Connected")
            await expect(ada.here).to_have_text(["Ada (you)", "Grace", "Linus"])
            await say(grace, "After")
            await expect(ada.lines).to_have_text(
                [
                    "You are in, as Ada",
                    "GraceBefore",
                    "You cut the line.",
                    *("Graceone", "Gracetwo", "Gracethree"),
                    "You are back. You had missed 3 messages.",
                    "GraceAfter",
                ]
            )
            await expect(ada.log.locator(".missed > span")).to_have_text(["one", "two", "three"])

            await ada.press("Cut the line")
            await ada.press("Reconnect")
            await expect(ada.lines.last).to_have_text("You are back. You had missed nothing.")
            await expect(ada.position).to_have_text(re.compile("^at 5-"))


async def test_nothing_is_missed_or_doubled_when_the_cable_is_pulled(
    browser: Browser, demo: Demo, room: str
) -> None:
    texts = [f"No. {number}" for number in range(60)]
    async with (
        Cable(demo) as cable,
        tab(browser, cable) as ada,
        demo.member("Grace", room) as grace,
    ):
        await ada.enter("Ada", room)
        talk = asyncio.create_task(say(grace, *texts))
        for number in (5, 15, 25):
            await expect(ada.line(f"No. {number}")).to_be_visible()
            cable.pull()
            await expect(ada.status).to_have_text("Reconnecting…")
            cable.plug()
            await expect(ada.status).to_have_text("Connected")
        await talk
        await expect(ada.said).to_have_text(texts)
        await expect(ada.line("The line is lost.")).to_have_count(3)


async def test_who_leaves_while_the_list_is_on_its_way_is_not_in_it(browser: Browser) -> None:
    before = """
import asyncio
from yaat import Channel
async def presence(channel, presence=Channel.presence):
    found = await presence(channel)
    while len(found) == 3 and len(await presence(channel)) == 3:
        await asyncio.sleep(0.01)
    return found
Channel.presence = presence
"""
    async with (
        Demo("--port", "0", before=before) as demo,
        demo.member("Grace") as grace,
        demo.member("Zed") as zed,
        tab(browser, demo) as ada,
    ):
        for member in (grace, zed):
            await heard(member, "here")
        entering = asyncio.create_task(ada.enter("Ada", "lobby"))
        while (await heard(grace, "join"))["join"]["user"] != "Ada":
            pass
        zed.transport.abort()
        await entering
        await expect(ada.here).to_have_text(["Ada (you)", "Grace"])


async def test_rooms_are_links(browser: Browser, demo: Demo, room: str) -> None:
    async with tab(browser, demo) as ada, tab(browser, demo) as grace:
        await grace.enter("Grace", room)
        await ada.enter("Ada", room)
        await ada.say("Here")
        await expect(grace.here).to_have_text(["Ada", "Grace (you)"])

        await ada.rooms.get_by_role("link", name="Another…").click()
        await ada.enter("Ada", f"{room} 2")
        await ada.say("There")
        await expect(ada.said).to_have_text(["There"])
        await expect(ada.rooms.get_by_role("link")).to_have_text(
            ["#lobby", f"#{room}", f"#{room} 2", "Another…"]
        )
        await expect(grace.here).to_have_text(["Grace (you)"])

        await ada.rooms.get_by_role("link", name=f"#{room}", exact=True).click()
        await expect(ada.status).to_have_text("Connected")
        await expect(ada.said).to_have_text(["Here"])
        await expect(ada.page.locator("[aria-current=page]")).to_have_text(f"#{room}")
        await expect(grace.here).to_have_text(["Ada", "Grace (you)"])

        await ada.page.go_back()
        await expect(ada.status).to_have_text("Connected")
        await expect(ada.said).to_have_text(["There"])
        await expect(ada.page).to_have_title(f"#{room} 2 · Yaat chat")


async def test_what_others_write_stays_text(browser: Browser, demo: Demo) -> None:
    attack = "<img src=x onerror=\"document.title='taken'\">"
    async with tab(browser, demo) as ada:
        await ada.enter("Ada", "xss")
        async with demo.member("<b>Eve</b>", "xss") as eve:
            await say(eve, attack)
            await expect(ada.line(attack)).to_be_visible()
            await expect(ada.here).to_have_text(["<b>Eve</b>", "Ada (you)"])
        await ada.page.goto(f"{demo.address}rooms/%3Cimg src=x%3E")
        await expect(ada.rooms.get_by_role("link")).to_have_text(
            ["#lobby", "#xss", "#<img src=x>", "Another…"]
        )
        await ada.page.go_back()
        await expect(ada.said).to_have_text([attack])
        await expect(ada.page.locator("img, b")).to_have_count(0)
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


async def test_tabs_begin_afresh_after_a_restart(browser: Browser) -> None:
    port = Port()
    async with (
        Demo("--port", str(port.number)) as demo,
        tab(browser, demo) as ada,
        tab(browser, demo) as grace,
    ):
        await ada.enter("Ada", "lobby")
        await grace.enter("Grace", "lobby")
        await ada.say("Said before it.")
        await expect(grace.line("Said before it.")).to_be_visible()
        await demo.end(signal.SIGKILL)
        await expect(ada.status).to_have_text("Reconnecting…")
        await expect(grace.status).to_have_text("Reconnecting…")
        await expect(grace.lines.last).to_have_text("The line is lost.")
        await grace.page.get_by_label("Message").fill("written while it was away")
        await expect(grace.page.get_by_role("button", name="Send")).to_be_disabled()

        await grace.page.evaluate("document.getElementById('say').requestSubmit()")

        await demo.start()
        for each in (ada, grace):
            await expect(each.status).to_have_text("Connected", timeout=BACK)
            await expect(each.here).to_have_count(2, timeout=BACK)
            await expect(each.lines.first).to_have_text(AFRESH)
        await grace.page.get_by_label("Message").press("Enter")
        await expect(ada.line("written while it was away")).to_be_visible()
        await ada.say("Welcome back.")
        for each in (ada, grace):
            await expect(each.said).to_have_text(["written while it was away", "Welcome back."])
            await expect(each.position).to_have_text(re.compile("^at 2-"))
    port.release()


async def test_ctrl_c_ends_it_without_a_word(browser: Browser) -> None:
    async with Demo("--port", "0") as demo, tab(browser, demo) as ada:
        await ada.enter("Ada", "lobby")
        assert await demo.end(signal.SIGINT) == (0, "")
        await expect(ada.status).to_have_text("Reconnecting…")


async def test_picture_of_two_tabs(browser: Browser, demo: Demo, tmp_path: Path) -> None:
    look = {"viewport": {"width": 560, "height": 560}, "device_scale_factor": 1.5}
    async with (
        tab(browser, demo, color_scheme="light", **look) as ada,
        tab(browser, demo, color_scheme="dark", **look) as grace,
    ):
        await ada.enter("Ada", "lobby")
        await grace.enter("Grace", "lobby")
        await ada.say("I cut my line now.")
        await expect(grace.line("I cut my line now.")).to_be_visible()
        await ada.press("Cut the line")
        await grace.say("So you do not see this.")
        await grace.say("<b>Nor</b> this.")
        await expect(grace.line("<b>Nor</b> this.")).to_be_visible()
        await ada.press("Reconnect")
        await expect(ada.line("You are back. You had missed 2 messages.")).to_be_visible()
        await ada.say("Here they are.")
        for each in (ada, grace):
            await expect(each.line("Here they are.")).to_be_visible()
            await expect(each.here).to_have_count(2)
        images = [
            base64.b64encode(await each.page.screenshot(caret="hide")).decode()
            for each in (ada, grace)
        ]
        await ada.page.set_viewport_size({"width": 1240, "height": 640})
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
        assert (await heard(ada, "leave"))["leave"]["user"] == "Eve"
        await ada.send('{"text": "Still here"}')
        assert (await heard(ada))["data"] == {"name": "Ada", "text": "Still here"}


@pytest.mark.parametrize("name", ["", "%20", "x" * 25, "a%00b", "a%0Ab", "%E2%80%AEadA"])
async def test_a_bad_name_is_refused(demo: Demo, name: str) -> None:
    async with demo.member(name) as eve:
        assert await closed(eve) == (1008, "This name will not do")


async def test_a_room_name_has_a_length(demo: Demo) -> None:
    async with demo.member("Eve", "x" * 251) as eve:  # "room:" before it: a channel has 255 bytes
        assert (await closed(eve))[0] == 1008


@pytest.mark.parametrize("since", ["1-another", "nonsense"])
async def test_an_unknown_position_is_told(demo: Demo, room: str, since: str) -> None:
    async with demo.member("Ada", room) as ada, demo.member("Eve", room, since) as eve:
        await say(ada, "one")
        assert (await closed(eve))[0] == 4010


async def test_a_flood_waits_in_its_own_connection(room: str) -> None:
    async with (
        Demo("--port", "0", before="app.PAUSE = 3600") as demo,
        demo.member("Eve", room) as eve,
        demo.member("Ada", room) as ada,
    ):
        for number in range(10):
            await eve.send(json.dumps({"text": f"flood {number}"}))
        assert (await heard(ada))["data"]["text"] == "flood 0"
        await ada.send('{"text": "Let me speak"}')
        assert (await heard(ada))["data"]["text"] == "Let me speak"


async def test_who_stops_reading_is_cut_delays_nobody_and_misses_nothing() -> None:
    # Small buffers and no pause, so that it takes kilobytes and not megabytes.
    before = """
import socket
app.PAUSE = 0
def listen(*arguments, listen=serve.listen):
    listener = listen(*arguments)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return listener
serve.listen = listen
"""
    texts = [f"{number} {'€' * 900}" for number in range(150)]
    async with (
        Demo("--port", "0", before=before) as demo,
        demo.member("Ada") as ada,
        demo.member("Grace") as grace,
    ):
        with socket.socket() as small:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            small.setblocking(False)
            address = urlsplit(demo.address)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(small, (address.hostname, address.port))
            async with demo.member("Mute", sock=small, compression=None) as mute:
                await heard(mute, "here")
                mute.transport.pause_reading()
                await say(ada, *texts)
                assert "reads too slowly" in await demo.complaint()
                mute.transport.resume_reading()
                read = await rest(mute)
                assert (mute.close_code, mute.close_reason) == (1013, "reads too slowly")
                assert (await heard(grace, "leave"))["leave"]["user"] == "Mute"

        since = "{offset}-{epoch}".format(**read[-1])
        async with demo.member("Mute", since=since) as mute:
            while len(read) < len(texts):
                read.append(await heard(mute))
    assert [each["data"]["text"] for each in read] == texts


async def quiet(demo: Demo, tasks: int) -> int:
    """Wait until nobody is in a room, and no more tasks than these; return how many there are."""
    return int(await fetch(f"{demo.address}quiet?tasks={tasks}"))


async def test_nothing_is_left_of_tabs_that_vanish() -> None:
    before = """
import asyncio
from yaat.responses import TextResponse
@app.app.route("/quiet")
async def quiet(request):
    tasks = int(request.query_params["tasks"])
    rooms = [request.channel(f"room:room{number}") for number in range(3)]
    for room in rooms:
        while (await room.presence()) or len(asyncio.all_tasks()) > tasks:
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
