"""How `yaat run` stops: every socket is told, every handler ends, lifespan shuts down after them.

Real processes get real signals. What happened inside is in the records that `apps.drain` writes,
in their order; what a client saw is an `End`.
"""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import websockets
from websockets.asyncio.client import connect as connect_compressing
from websockets.frames import Opcode

from apps.drain import GATE, SHUTDOWN, STARTUP
from clients import NO_CLOSE, Refused, connect
from crowd import (
    PATIENCE,
    End,
    Visitor,
    crowd,
    ends_of,
    histogram,
    raise_file_limit,
    returning,
)
from servers import OURS, TESTS, Server, ServerSpec, uvicorn, yaat_run
from wires import TlsServer

T = TypeVar("T")
Record = dict[str, Any]

LOOPS = ("uvloop", "asyncio")
APPS = ("bare", "starlette", "yaat")
MANY = 1_000
RESTART = 1012
CLEAN = (RESTART, True)
LONG = ("--drain", "60", "--handler-timeout", "60", "--shutdown-timeout", "60")
"""Far longer than a test waits: only a second signal ends it."""
ASKING = "asking"
"""Who only wants to know whether it is let in."""


class Stoppable(Server):
    """A server that is told to stop, and what it tells of that."""

    def launch(self) -> None:
        """Start the process, and do not wait for it."""
        self._wait_until_it_answers = lambda: None  # type: ignore[method-assign]
        self.start()

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to its children too if it is for the group as Ctrl-C is."""
        if group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    async def exit_code(self) -> int:
        """Wait until the process has ended by itself."""
        process = self._process
        assert process is not None
        try:
            return await asyncio.to_thread(process.wait, PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.story()}") from None

    def stop(self) -> None:
        """End what a test has left, its children too."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        super().stop()

    def open_gate(self) -> None:
        Path(f"{self.records}{GATE}").touch()

    def told(self, event: str | None = None, **facts: Any) -> list[Record]:
        """What the application told so far: all of it, or of one event with these facts."""
        text = self.records.read_text() if self.records.exists() else ""
        records: list[Record] = list(map(json.loads, text.rpartition("\n")[0].splitlines()))
        if event is None:
            return records
        wanted = {"event": event, **facts}.items()
        return [record for record in records if wanted <= record.items()]

    async def tells(self, event: str, count: int = 1, **facts: Any) -> list[Record]:
        """Wait until it told an event so often."""

        def told() -> list[Record] | None:
            records = self.told(event, **facts)
            return records if len(records) >= count else None

        return await until(told, self.story)

    def story(self) -> str:
        """What to show when a test fails."""
        told = self.records.read_text()[-4_000:] if self.records.exists() else "nothing told"
        lines = self.written_since().splitlines(keepends=True)
        return f"{told}\n{''.join(line for line in lines if '[accepted]' not in line)}"

    async def stops(self) -> None:
        """Wait until it is seen that it stops: a handshake is refused."""
        async with asyncio.timeout(PATIENCE):
            while not await self.refuses():  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.01)

    async def refuses(self) -> bool:
        """Whether a handshake is refused."""
        visitor = Visitor(self.url(f"/echo?name={ASKING}"))
        try:
            await visitor.open()
        except Refused:
            return True
        else:
            visitor.send(Opcode.CLOSE, b"")
            await visitor.ended
            return False


class StoppableTls(Stoppable, TlsServer):
    """The same over TLS."""


async def until(condition: Callable[[], T | None], story: Callable[[], str]) -> T:
    """Wait until there is something true, and return it."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not (value := condition()):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE} s in vain:\n{story()}") from None
    return value


@pytest.fixture(scope="module", autouse=True)
def _files() -> None:
    raise_file_limit()


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop in turn."""
    return str(request.param)


class Start:
    """Starts servers, in one directory, and ends what is left of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: list[Stoppable] = []

    def __call__(self, loop: str, *options: str, **others: Any) -> Stoppable:
        server = self.prepared(loop, *options, **others)
        server.start()
        return server

    def prepared(
        self,
        loop: str,
        *options: str,
        app: str = "bare",
        spec: ServerSpec | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Stoppable:
        """Return a server that is not yet started.

        Args:
            loop: The event loop.
            options: Of `yaat run`.
            app: Which of the applications in `apps.drain`.
            spec: Another server.
            environment: Added to ours.
        """
        spec = (spec or ServerSpec(f"run-{loop}", yaat_run(loop))).but(*options)
        return self._kept(Stoppable(spec, f"apps.drain:{app}_app", self._place(), environment))

    def tls(self, loop: str, *options: str, app: str = "bare") -> StoppableTls:
        spec = ServerSpec(f"run-{loop}", yaat_run(loop)).but(*options)
        server = StoppableTls(spec, f"apps.drain:{app}_app", self._place())
        self._kept(server)
        server.start()
        return server

    def _place(self) -> Path:
        place = self._directory / str(len(self._servers))
        place.mkdir()
        return place

    def _kept(self, server: Stoppable) -> Stoppable:
        self._servers.append(server)
        return server

    def stop(self) -> None:
        for server in self._servers:
            server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path)
    yield start
    start.stop()


def assert_all_told(ends: list[End]) -> None:
    """Assert that all saw 1012, and hardly anybody a reset: who is busy may answer too late."""
    assert Counter(end.code for end in ends) == {RESTART: MANY}
    assert sum(end.clean for end in ends) >= MANY * 9 // 10


def seen(ends: list[End]) -> Counter[tuple[int, bool]]:
    """How often each code was seen, and whether TCP ended well behind it."""
    return Counter((end.code, end.clean) for end in ends)


def assert_order(server: Stoppable, handlers: int, workers: int = 1) -> None:
    """Assert that in each process handlers ended first, and lifespan shut down behind the last."""
    records = server.told()
    processes = {record["pid"] for record in records}
    assert len(processes) == workers, server.story()
    for process in processes:
        events = [record["event"] for record in records if record["pid"] == process]
        assert events[-2:] == ["stopping", "stopped"], server.story()
        assert events.count("stopping") == 1
    opened, ended = (
        Counter((each["kind"], each["name"]) for each in server.told(event))
        for event in ("opened", "ended")
    )
    assert opened == ended
    assert opened.total() - opened["echo", ASKING] == handlers


def assert_quiet(server: Server) -> None:
    """Assert that nothing went wrong by the server's own account."""
    written = server.written_since()
    assert "Traceback" not in written, written
    assert "ERROR" not in written, written


# A thousand


@pytest.mark.parametrize("app", ["bare", "yaat"])
async def test_everybody_is_told_and_every_handler_ends(loop: str, app: str, start: Start) -> None:
    server = start(loop, app=app)
    # They take their time to answer: who hung up at once, or behind its own frame, would be seen.
    async with crowd(server.url("/wait"), MANY, answer_after=0.1) as visitors:
        server.signal(signal.SIGTERM)
        assert_all_told(await ends_of(visitors))
        assert await server.exit_code() == 0
    assert_order(server, MANY)
    assert_quiet(server)


async def test_under_uvicorn_alone_everybody_is_told_too(loop: str, start: Start) -> None:
    """There the server hangs up at once, and ends by the signal that it got."""
    server = start(loop, spec=ServerSpec("uvicorn", uvicorn(OURS, loop, "httptools")))
    async with crowd(server.url("/wait"), MANY) as visitors:
        server.signal(signal.SIGTERM)
        ends = await ends_of(visitors)
        assert {end.code for end in ends} == {RESTART}
        assert await server.exit_code() == -signal.SIGTERM
    assert_order(server, MANY)
    assert_quiet(server)


async def test_while_it_drains_it_answers_and_the_closes_are_spread(
    loop: str, start: Start
) -> None:
    window = 3.0
    server = start(loop, "--drain", str(window))
    async with crowd(server.url("/echo"), MANY) as visitors:
        server.signal(signal.SIGTERM)
        await server.stops()
        begin = time.monotonic()
        echoed = rounds = 0
        while sum(each.told is None for each in visitors) > MANY // 5:
            untold = [each for each in visitors if each.told is None]
            for visitor in untold[:10]:
                visitor.send(Opcode.TEXT, b"still there?")
            assert await answer(server, "/hello") == (200, "hello")
            await assert_refused_for_a_while(server)
            for visitor in untold[:10]:
                echoed += "still there?" in await visitor.hears(1)
            rounds += 1
            await asyncio.sleep(0.1)
        ends = await ends_of(visitors)
        assert_all_told(ends)
        assert await server.exit_code() == 0
    # Those of the ten who were told in that moment have no answer.
    assert echoed > 5 * rounds > 0
    assert_spread([end.at for end in ends], begin, begin + window)
    assert_order(server, MANY)
    assert_quiet(server)


def assert_spread(moments: list[float], begin: float, end: float) -> None:
    """Assert that each fifth of the time has some, none most, and the order is not theirs."""
    fifths = histogram(moments, begin, end, 5)
    assert all(fifths), fifths
    assert max(fifths) < len(moments) / 2, fifths
    # In random order every second is before the one that connected before it.
    earlier = sum(after < before for before, after in pairwise(moments))
    assert len(moments) / 4 < earlier < len(moments) * 3 / 4, earlier


async def answer(server: Server, path: str) -> tuple[int, str]:
    """Ask over HTTP, and return the status and the body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()
    finally:
        writer.transport.abort()


async def assert_refused_for_a_while(server: Server) -> None:
    with pytest.raises(Refused) as refused:
        await Visitor(server.url("/wait?name=late")).open()
    headers = dict(refused.value.headers)
    assert refused.value.status == 503
    assert int(headers["retry-after"]) > 0
    assert headers["connection"].lower() == "close"


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_who_leaves_by_himself_meanwhile_is_not_missed(
    loop: str, transport: str, start: Start
) -> None:
    server = (start.tls if transport == "tls" else start)(loop, "--drain", "1")
    context = server.context() if isinstance(server, StoppableTls) else None
    async with crowd(server.url("/wait"), 60, context) as visitors:
        server.signal(signal.SIGTERM)
        await until(lambda: any(each.told for each in visitors), server.story)
        for number, visitor in enumerate(visitors):
            if visitor.told is None and number % 3 == 0:
                visitor.leave()
            elif visitor.told is None and number % 3 == 1:
                visitor.send(Opcode.CLOSE, struct.pack("!H", 1001))
        ends = await ends_of(visitors)
        assert await server.exit_code() == 0
    assert {end.code for end in ends} == {RESTART, 1001, NO_CLOSE}
    assert seen(ends[2::3]) == {CLEAN: 20}
    assert_order(server, 60)
    assert_quiet(server)


async def test_connections_without_a_request_hold_up_nothing(loop: str, start: Start) -> None:
    server = start(loop)
    async with AsyncExitStack() as stack:
        for beginning in (b"", b"GET /wait HTTP/1.1\r\nHost: he", b"GET /hello HTTP/1.1\r\n\r\n"):
            peer = socket.create_connection(("127.0.0.1", server.port))
            stack.callback(peer.close)
            peer.sendall(beginning)
        assert await answer(server, "/hello") == (200, "hello")
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
    assert_quiet(server)


# Handlers and clients of every kind


HASTY = ("--handler-timeout", "0.3", "--close-timeout", "1", "--shutdown-timeout", "5")
OPEN = ("wait", "echo", "pour", "tick", "sleep", "go-on", "work", "stream")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("app", APPS)
async def test_handlers_of_every_kind_end(
    loop: str, app: str, transport: str, start: Start
) -> None:
    server = (start.tls if transport == "tls" else start)(loop, *HASTY, app=app)
    context = server.context() if isinstance(server, StoppableTls) else None
    visitors = {kind: Visitor(server.url(f"/{kind}?name=x")) for kind in OPEN}
    unanswered = Visitor(server.url("/pending?name=x"))
    denied = Visitor(server.url("/half-deny?name=x"))
    for visitor in visitors.values():
        await visitor.open(context)
    late = [asyncio.create_task(each.open(context)) for each in (unanswered, denied)]
    await server.tells("opened", len(OPEN) + len(late))
    await visitors["tick"].hears(2)
    await visitors["stream"].hears(2)
    if app != "yaat":  # which hands over a denial when it is whole
        await until(lambda: b"half" in denied._head, server.story)
    server.signal(signal.SIGTERM)

    ends = dict(zip(visitors, await ends_of(visitors.values()), strict=True))
    assert {kind: (end.code, end.clean) for kind, end in ends.items()} == dict.fromkeys(OPEN, CLEAN)
    assert await status_of(late[0]) == 503
    assert await status_of(late[1]) == (503 if app == "yaat" else 418)
    assert await server.exit_code() == 0, server.story()
    assert_order(server, len(OPEN) + len(late))
    for event in ("left", "worked", "streamed"):
        assert len(server.told(event)) == 1, event
    cancelled = {each["kind"] for each in server.told("ended", how="CancelledError")}
    assert cancelled == {"sleep", "go-on", "pending", "half-deny"}
    assert "Traceback" not in server.written_since(), server.written_since()


async def status_of(late: asyncio.Task[Visitor]) -> int:
    with pytest.raises(Refused) as refused:
        await late
    return refused.value.status


async def test_a_handler_that_swallows_cancellation_is_given_up(loop: str, start: Start) -> None:
    server = start(loop, "--handler-timeout", "0.1", "--shutdown-timeout", "0.5")
    async with crowd(server.url("/stubborn"), 3) as stubborn, crowd(server.url("/wait"), 3):
        server.signal(signal.SIGTERM)
        assert seen(await ends_of(stubborn)) == {CLEAN: 3}
        assert await server.exit_code() == 1
    assert {each["name"] for each in server.told("swallowed")} == {"0", "1", "2"}
    assert len(server.told("ended", kind="wait")) == 3
    assert len(server.told("stopped")) == 1, server.story()


async def test_a_handler_may_take_its_time_to_finish(loop: str, start: Start) -> None:
    server = start(loop, "--handler-timeout", "60")
    async with crowd(server.url("/finish"), 1) as visitors:
        server.signal(signal.SIGTERM)
        assert seen(await ends_of(visitors)) == {CLEAN: 1}
        assert server.told("ended") == []
        server.open_gate()
        assert await server.exit_code() == 0
    assert [each["how"] for each in server.told("ended")] != ["CancelledError"]
    assert_order(server, 1)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_clients_that_do_not_go_along_hold_up_nothing(
    loop: str, transport: str, start: Start
) -> None:
    """Each takes `--close-timeout` at most."""
    server = (start.tls if transport == "tls" else start)(loop, *HASTY)
    context = server.context() if isinstance(server, StoppableTls) else None
    url = server.url()
    async with AsyncExitStack() as stack:
        mute = Visitor(f"{url}wait?name=mute", answer_after=None)
        await mute.open(context)
        if context is None:
            await stack.enter_async_context(connect(f"{url}pour?name=deaf", receive_buffer=4_096))
        else:
            await stack.enter_async_context(not_reading(f"{url}pour?name=deaf", context))
        talkers = [
            await stack.enter_async_context(talking(f"{url}{kind}?name=talker", context))
            for kind in ("echo", "sleep")
        ]
        await server.tells("opened", 4)
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert (await mute.ended).code == RESTART
        assert [(await each.ended).code for each in talkers] == [RESTART] * 2
    assert_order(server, 4)
    assert "Traceback" not in server.written_since(), server.written_since()


@asynccontextmanager
async def not_reading(url: str, context: Any) -> AsyncIterator[None]:
    """Open a connection whose client never reads again."""
    visitor = Visitor(url)
    await visitor.open(context)
    visitor.pause()
    yield
    visitor.leave()


@asynccontextmanager
async def talking(url: str, context: Any) -> AsyncIterator[Visitor]:
    """Open a connection whose client sends all the time until it is closed."""
    visitor = Visitor(url)
    await visitor.open(context)

    async def talk() -> None:
        while visitor.told is None and not visitor.ended.done():
            visitor.send(Opcode.TEXT, b"and another thing " * 100)
            await visitor.room()
            await asyncio.sleep(0)

    task = asyncio.create_task(talk())
    try:
        yield visitor
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        visitor.leave()


async def test_a_frozen_client_process_holds_up_nothing(loop: str, start: Start) -> None:
    server = start(loop, *HASTY)
    with frozen(server.url("/tick?name=frozen"), server.url("/wait?name=frozen")):
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
    assert_order(server, 2)


@contextmanager
def frozen(*urls: str) -> Iterator[None]:
    """Have another process open connections, and freeze it."""
    command = (sys.executable, "-m", "crowd", *urls)
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"open\n"
            process.send_signal(signal.SIGSTOP)
            yield
        finally:
            process.kill()


async def test_compressed_connections_are_told(loop: str, start: Start) -> None:
    server = start(loop, app="yaat")
    async with connect_compressing(server.url("/echo?name=x")) as client:
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        await client.send("la " * 1_000)
        assert await client.recv() == "la " * 1_000
        server.signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosed) as end:
            await client.recv()
    assert end.value.rcvd is not None
    assert end.value.rcvd.code == RESTART
    assert await server.exit_code() == 0
    assert_order(server, 1)


async def test_over_tls_everybody_is_told(loop: str, start: Start) -> None:
    server = start.tls(loop)
    async with crowd(server.url("/wait"), 100, server.context(), answer_after=0.1) as visitors:
        server.signal(signal.SIGTERM)
        assert seen(await ends_of(visitors)) == {CLEAN: 100}
        assert await server.exit_code() == 0
    assert_order(server, 100)
    assert_quiet(server)


# HTTP


async def test_a_request_in_flight_is_answered_in_whole(loop: str, start: Start) -> None:
    server = start(loop)
    request = asyncio.create_task(answer(server, "/slow"))
    await server.tells("begun")
    async with crowd(server.url("/wait"), 1) as visitors:
        server.signal(signal.SIGTERM)
        await ends_of(visitors)
        assert not request.done()
        server.open_gate()
        status, body = await request
        assert status == 200
        assert body.split() == ["4", "one", "3", "two", "0"]
        assert await server.exit_code() == 0
    assert_order(server, 1)
    assert_quiet(server)


async def test_a_request_that_has_no_end_is_given_up(loop: str, start: Start) -> None:
    server = start(loop, "--shutdown-timeout", "0.3")
    request = asyncio.create_task(answer(server, "/stuck"))
    await server.tells("begun")
    server.signal(signal.SIGTERM)
    assert await server.exit_code() == 0
    request.cancel()
    events = [each["event"] for each in server.told()]
    assert events == ["starting", "started", "begun", "ended", "stopping", "stopped"]


# Signals


async def test_with_nobody_there_it_stops_too(loop: str, start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start(loop)
        server.signal(number)
        assert await server.exit_code() == 0
        events = [each["event"] for each in server.told()]
        assert events == ["starting", "started", "stopping", "stopped"]
        assert_quiet(server)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM),
    ],
)
async def test_a_second_signal_ends_it_at_once(
    first: signal.Signals, second: signal.Signals, loop: str, start: Start
) -> None:
    server = start(loop, *LONG)
    async with crowd(server.url("/sleep"), 1), crowd(server.url("/wait"), 10):
        server.signal(first)
        await server.stops()
        server.signal(second)
        assert await server.exit_code() == -second
    assert server.told("stopping") == []


async def test_a_second_signal_ends_the_wait_for_handlers(loop: str, start: Start) -> None:
    server = start(loop, *LONG, "--drain", "0")
    async with crowd(server.url("/sleep"), 1) as visitors:
        server.signal(signal.SIGTERM)
        assert seen(await ends_of(visitors)) == {CLEAN: 1}
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == -signal.SIGTERM


async def test_a_second_signal_ends_the_wait_for_requests(loop: str, start: Start) -> None:
    server = start(loop, *LONG, "--drain", "0")
    request = asyncio.create_task(answer(server, "/stuck"))
    await server.tells("begun")
    async with crowd(server.url("/wait"), 1) as visitors:
        server.signal(signal.SIGTERM)
        await ends_of(visitors)
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == -signal.SIGTERM
    request.cancel()


async def test_a_second_signal_ends_a_long_shutdown(loop: str, start: Start) -> None:
    server = start(loop, environment={SHUTDOWN: "gate"})
    server.signal(signal.SIGTERM)
    await server.tells("stopping")
    server.signal(signal.SIGINT)
    assert await server.exit_code() == -signal.SIGINT
    assert server.told("stopped") == []


async def test_a_second_signal_ends_it_though_the_loop_is_blocked(loop: str, start: Start) -> None:
    server = start(loop)
    async with crowd(server.url("/block"), 1) as visitors:
        visitors[0].send(Opcode.TEXT, b"go")
        await server.tells("blocking")
        server.signal(signal.SIGTERM)
        await until(lambda: not is_pending(server.pid), server.story)
        await asyncio.sleep(0.3)  # nothing tells that Python has run its handler
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == -signal.SIGTERM


def is_pending(process: int) -> bool:
    """Whether a signal was not yet delivered (proc(5), SigPnd and ShdPnd)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return any(int(each.split()[1], 16) for each in lines if each.startswith(("SigPnd", "ShdPnd")))


async def test_a_signal_during_a_long_startup(loop: str, start: Start) -> None:
    """What has begun is brought to its end, and then undone; nobody was served."""
    server = start.prepared(loop, environment={STARTUP: "gate"})
    server.launch()
    await server.tells("starting")
    server.signal(signal.SIGTERM)
    await until(lambda: not is_pending(server.pid), server.story)
    server.open_gate()
    assert await server.exit_code() == 0
    events = [each["event"] for each in server.told()]
    assert events == ["starting", "started", "stopping", "stopped"]


async def test_a_second_signal_ends_a_long_startup(loop: str, start: Start) -> None:
    server = start.prepared(loop, environment={STARTUP: "gate"})
    server.launch()
    await server.tells("starting")
    server.signal(signal.SIGINT)
    await until(lambda: not is_pending(server.pid), server.story)
    await asyncio.sleep(0.3)
    server.signal(signal.SIGINT)
    assert await server.exit_code() == -signal.SIGINT


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
async def test_a_signal_at_any_time_of_the_start_ends_it(
    options: tuple[str, ...], start: Start
) -> None:
    servers = [start.prepared("uvloop", *options) for _ in range(6)]
    for server in servers:
        server.launch()
    for server in servers:
        server.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
    codes = [await server.exit_code() for server in servers]
    assert set(codes) <= {0, -signal.SIGTERM}, codes
    for server in servers:
        await until(partial(has_gone, server), server.story)
        assert len(server.told("started")) == len(server.told("stopped")), server.story()


def has_gone(server: Server) -> bool:
    """Whether no process of the server's group is left."""
    try:
        os.killpg(server.pid, 0)
    except ProcessLookupError:
        return True
    return False


# Several processes


@asynccontextmanager
async def on_both(server: Stoppable, path: str = "/wait") -> AsyncIterator[list[Visitor]]:
    """Open connections until each of the two workers has some."""
    async with AsyncExitStack() as stack:
        visitors: list[Visitor] = []
        while len({each["pid"] for each in server.told("opened")}) < 2:
            visitors += await stack.enter_async_context(crowd(server.url(path), 20))
            await server.tells("opened", len(visitors))
        yield visitors


def pids(server: Stoppable) -> set[int]:
    return {each["pid"] for each in server.told("started")}


@pytest.mark.parametrize("group", [True, False], ids=["ctrl-c", "term"])
async def test_workers_stop_once_and_together(group: bool, start: Start) -> None:  # noqa: FBT001
    server = start("uvloop", "--workers", "2", "--drain", "1")
    async with on_both(server) as visitors:
        server.signal(signal.SIGINT if group else signal.SIGTERM, group=group)
        assert seen(await ends_of(visitors)) == {CLEAN: len(visitors)}
        assert await server.exit_code() == 0
    assert_order(server, len(visitors), workers=2)
    assert_quiet(server)


@pytest.mark.parametrize("group", [True, False], ids=["ctrl-c", "term"])
async def test_a_second_signal_ends_all_workers(group: bool, start: Start) -> None:  # noqa: FBT001
    number = signal.SIGINT if group else signal.SIGTERM
    server = start("uvloop", "--workers", "2", *LONG)
    async with on_both(server, "/sleep"):
        server.signal(number, group=group)
        await server.stops()
        server.signal(number, group=group)
        assert await server.exit_code() == -number
        await until(partial(has_gone, server), server.story)
    assert server.told("stopping") == []


async def test_a_worker_that_was_killed_is_replaced_but_not_when_all_stop(start: Start) -> None:
    server = start("uvloop", "--workers", "2", "--drain", "2")
    await server.tells("started", 2)
    os.kill(min(pids(server)), signal.SIGKILL)
    await server.tells("started", 3)
    async with on_both(server) as visitors:
        killed, left = sorted({each["pid"] for each in server.told("opened")})
        server.signal(signal.SIGTERM)
        await server.stops()
        os.kill(killed, signal.SIGKILL)
        ends = await ends_of(visitors)
        await server.exit_code()
    codes = Counter(end.code for end in ends)
    assert set(codes) <= {RESTART, NO_CLOSE}, codes
    assert len(server.told("started")) == 3
    opened = server.told("opened", pid=left)
    assert len(server.told("ended", pid=left)) == len(opened)
    assert server.told()[-1]["event"] == "stopped"


async def test_workers_stop_when_their_parent_is_no_more(start: Start) -> None:
    server = start("uvloop", "--workers", "2")
    async with on_both(server) as visitors:
        server.signal(signal.SIGKILL)
        assert seen(await ends_of(visitors)) == {CLEAN: len(visitors)}
        assert await server.exit_code() == -signal.SIGKILL
        await until(partial(has_gone, server), server.story)
    assert_order(server, len(visitors), workers=2)


async def test_new_workers_take_over_without_a_break(start: Start) -> None:
    server = start("uvloop", "--workers", "2", "--drain", "1")
    newcomers = refused = 0
    async with on_both(server) as visitors:
        server.signal(signal.SIGHUP)
        begin = time.monotonic()
        while not all(each.ended.done() for each in visitors):
            assert time.monotonic() < begin + PATIENCE, server.story()
            newcomers += 1
            refused += await server.refuses()
            await asyncio.sleep(0.01)
        assert seen(await ends_of(visitors)) == {CLEAN: len(visitors)}
    # One that had been taken when its worker was told to retire may be sent away.
    assert refused < newcomers / 10
    assert len(server.told("started")) == 4
    server.signal(signal.SIGTERM)
    assert await server.exit_code() == 0
    assert len(server.told("stopped")) == 4


async def test_a_reload_lets_everybody_come_back(start: Start, tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.touch()
    server = start("uvloop", "--reload", "--reload-dir", str(tmp_path))
    async with crowd(server.url("/wait"), 10) as visitors:
        # What was changed before the first look is not noticed, and nothing tells of that look.
        while visitors[0].told is None:
            os.utime(source, (source.stat().st_mtime + 10,) * 2)
            await asyncio.wait([visitors[0].ended], timeout=1.0)
        assert seen(await ends_of(visitors)) == {CLEAN: 10}
        await server.tells("started", 2)
        async with crowd(server.url("/wait"), 10) as again:
            server.signal(signal.SIGINT, group=True)
            assert seen(await ends_of(again)) == {CLEAN: 10}
            assert await server.exit_code() == 0
    assert_order(server, 20, workers=2)


async def test_a_second_signal_ends_a_reloader(start: Start) -> None:
    server = start("uvloop", "--reload", *LONG)
    async with crowd(server.url("/sleep"), 1):
        server.signal(signal.SIGINT, group=True)
        await server.stops()
        server.signal(signal.SIGINT, group=True)
        assert await server.exit_code() == -signal.SIGINT
        await until(partial(has_gone, server), server.story)


# A restart


async def test_after_a_restart_all_are_back_and_not_all_at_once(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start("uvloop", "--drain", "2")
    async with returning(server.url("/wait"), MANY) as returners:
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        await asyncio.to_thread(server.start)
        await until(lambda: all(each.is_back for each in returners), server.story)
        returns = [each.returns[0] for each in returners]
        ends = [end for each in returners for end in each.ends]
    assert_all_told(ends)
    assert {status for each in returners for status in each.refusals} <= {0, 503}
    # Without the last, who tried before the server was there: their waits have doubled.
    first, *_, last = most = sorted(returns)[: MANY * 4 // 5]
    fifths = histogram(most, first, last, 5)
    with capsys.disabled():
        print(f"\n{len(most)} of {MANY} were back within {last - begin:.1f} s,")  # noqa: T201
        print(f"by fifths of the last {last - first:.1f} s of them: {fifths}")  # noqa: T201
    assert max(fifths) <= MANY * 2 / 3
    assert len({each["name"] for each in server.told("opened")}) == MANY
