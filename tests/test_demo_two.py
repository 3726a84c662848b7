"""The chat by two workers on two ports, with nothing between them but a broker."""

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from websockets.exceptions import InvalidStatus

from browser import chromium
from demo import BACK, EXAMPLE, Demo, fetch, heard, say, tab
from redis_servers import RedisServer
from servers import Port

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRESENT = 4  # seconds for which somebody is present who is not refreshed
LOOK = "app.LOOK = 0.5"
# Not the usual ones: who else is started here would take what one of them leaves.
ANY_PORTS = "import asyncio, sys, two; two.PORTS = (0, 0); sys.exit(asyncio.run(two.main()))"
HASTE = "const wait = setTimeout; setTimeout = (work, time) => wait(work, time / 10)"
ENDED = 20.0  # seconds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@asynccontextmanager
async def workers(valkey: RedisServer) -> AsyncIterator[list[Demo]]:
    """Run two that have nothing in common but a broker."""
    ports = [Port(), Port()]
    environment = {
        "BROKER": valkey.url(path=f"?presence_ttl={PRESENT}"),
        "WORKERS": " ".join(f"http://127.0.0.1:{port.number}" for port in ports),
    }
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Demo("--port", str(port.number), before=LOOK, **environment)
            )
            for port in ports
        ]
    for port in ports:
        port.release()


def host(demo: Demo) -> str:
    return demo.address.removeprefix("http://").removesuffix("/")


async def test_a_tab_goes_on_at_the_other_worker(browser: Browser, valkey: RedisServer) -> None:
    texts = [f"No. {number}" for number in range(40)]
    async with (
        workers(valkey) as [first, second],
        tab(browser, first) as ada,
        tab(browser, second) as grace,
        first.member("Zed", "tea"),
        second.member("Linus", "tea") as linus,
    ):
        await ada.enter("Ada", "tea")
        await grace.enter("Grace", "tea")
        await expect(ada.here).to_have_text(["Ada (you)", "Grace", "Linus", "Zed"])
        await expect(grace.here).to_have_text(["Ada", "Grace (you)", "Linus", "Zed"])
        await ada.say("Is anybody there?")
        await expect(grace.line("Is anybody there?")).to_be_visible()
        await grace.say("At the other one.")
        await expect(ada.line("At the other one.")).to_be_visible()

        talk = asyncio.create_task(say(linus, *texts))
        await expect(ada.line("No. 5")).to_be_visible()
        first.process.send_signal(signal.SIGSTOP)  # from here on Ada hears nothing of it
        await expect(grace.line("No. 15")).to_be_visible()
        await first.end(signal.SIGKILL)
        await expect(ada.status).to_have_text(f"Connected to {host(second)}", timeout=BACK)
        await talk

        said = ["Is anybody there?", "At the other one.", *texts]
        await expect(ada.said).to_have_text(said)
        await expect(ada.log.get_by_text(re.compile("^You are back. You had missed"))).to_have_text(
            re.compile(r"missed \d+ messages\.$")
        )
        await ada.say("Here I am.")
        await expect(grace.said).to_have_text([*said, "Here I am."])
        await expect(ada.said).to_have_text([*said, "Here I am."])
        # Who was there by the worker that is dead is present until its time is over: Zed, and Ada
        # as she was before.
        await expect(grace.here).to_have_text(["Ada", "Grace (you)", "Linus"], timeout=BACK)
        await expect(ada.here).to_have_text(["Ada (you)", "Grace", "Linus"], timeout=BACK)


async def test_a_tab_does_not_wait_for_a_worker_that_is_frozen(
    browser: Browser, valkey: RedisServer
) -> None:
    async with workers(valkey) as [first, second], tab(browser, first) as ada:
        await ada.page.context.add_init_script(HASTE)
        await ada.page.reload()
        await ada.enter("Ada", "attic")
        await ada.press("Cut the line")
        first.process.send_signal(signal.SIGSTOP)
        await ada.press("Reconnect")
        await expect(ada.status).to_have_text(f"Connected to {host(second)}", timeout=BACK)
        await ada.say("Through the other one.")
        await expect(ada.said).to_have_text(["Through the other one."])


async def test_pages_of_strangers_are_refused(valkey: RedisServer) -> None:
    async with workers(valkey) as [first, second]:
        async with second.member("Ada", origin=first.address.removesuffix("/")) as ada:
            await heard(ada, "here")
        with pytest.raises(InvalidStatus, match="403"):
            await second.member("Eve", origin="http://127.0.0.1:1")


class Two:
    """`two.py` as a process, until the end of a block."""

    def __init__(
        self, temporary: Path, broker: str = "", command: tuple[str, ...] = ("-c", ANY_PORTS)
    ) -> None:
        self.command = command
        self.environment = {**os.environ, "BROKER": broker, "TMPDIR": str(temporary)}

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self.command),
            cwd=EXAMPLE,
            env=self.environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        said = [await self.line() for _ in range(3)]
        found = [re.match(r"Chat: (http://\S+)  \(process (\d+)\)$", each) for each in said[:2]]
        self.addresses = [match[1] for match in found if match]
        self.workers = [int(match[2]) for match in found if match]
        assert len(self.workers) == 2, said
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            await self.end(signal.SIGTERM)

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(ENDED):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def end(self, how: signal.Signals) -> tuple[int | None, str, str]:
        """Signal it; return its exit code and what else it wrote."""
        self.process.send_signal(how)
        return await self.ended()

    async def ended(self) -> tuple[int | None, str, str]:
        async with asyncio.timeout(ENDED):
            output, complaints = await self.process.communicate()
        return self.process.returncode, output.decode(), complaints.decode()

    def member(self, number: int, name: str) -> Any:
        """Return the connection of a member at one of the workers."""
        demo = Demo()
        demo.address = self.addresses[number]
        return demo.member(name)


def process_of(path: Path) -> int:
    """Return the process of the server that listens there."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(b"INFO server\r\n")
        answer = b""
        while b"process_id" not in answer or not answer.endswith(b"\r\n"):
            answer += peer.recv(65_536)
    found = re.search(rb"process_id:(\d+)", answer)
    assert found
    return int(found[1])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_one_command_starts_all_and_ends_it(tmp_path: Path, how: signal.Signals) -> None:
    async with Two(tmp_path) as two:
        assert {"Yaat chat" in await fetch(each) for each in two.addresses} == {True}
        async with two.member(0, "Ada") as ada, two.member(1, "Grace") as grace:
            await heard(ada, "here")
            await heard(grace, "here")
            await say(ada, "Hello")
            assert (await heard(grace))["data"] == {"name": "Ada", "text": "Hello"}
        [directory] = left_in(tmp_path)
        started = [*two.workers, process_of(directory / "valkey")]
        assert all(map(is_alive, started))
        assert await two.end(how) == (0, "", "")
        assert not any(map(is_alive, started))
        assert left_in(tmp_path) == []


async def test_the_other_goes_on_and_nothing_is_left_when_both_are_gone(tmp_path: Path) -> None:
    async with Two(tmp_path) as two:
        os.kill(two.workers[0], signal.SIGKILL)
        assert await two.line() == f"{two.addresses[0]} has ended (-9)."
        async with two.member(1, "Grace") as grace:
            await say(grace, "Still here")
        with pytest.raises(URLError, match="refused"):  # nobody listens
            await fetch(two.addresses[0])
        os.kill(two.workers[1], signal.SIGKILL)
        assert await two.ended() == (1, f"{two.addresses[1]} has ended (-9).\n", "")
        assert left_in(tmp_path) == []


async def test_the_broker_may_be_another(tmp_path: Path, valkey: RedisServer) -> None:
    async with Two(tmp_path, valkey.url(path="?prefix=chat"), ("two.py",)) as two:
        async with two.member(0, "Ada") as ada, two.member(1, "Grace") as grace:
            await heard(ada, "here")
            await heard(grace, "here")
            assert list(valkey.subscriptions("chat").values()) == [2]
        assert left_in(tmp_path) == []
