"""One run: a real server, a proxy before it for each node, the nodes, and the faults in their time.

It stands on what the tests have for that: `PYTHONPATH=tests`.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

from benchmarks.network.elder import folder

from chaos.faults import AGE, Fault, Scenario, schedule
from chaos.log import Event, What
from chaos.node import CLOSE, QUIET, Orders
from chaos.systems import Options
from proxy import Proxy
from redis_servers import VALKEY, RedisServer

ROOT: Final = Path(__file__).parents[1]
NODES: Final = 2
PUBLISHERS: Final = 2
SUBSCRIBERS: Final = 2
"""Of each node."""

RATE: Final = 20.0
"""Publications a second, by all."""

HISTORY: Final = 50
TTL: Final = 300.0
CHANNEL: Final = "room"

READY: Final = 60.0
"""How long, in seconds, it may take until everybody has seen something."""

CALM: Final = 4.0
"""How long, in seconds, is published after the last fault."""

SETTLE: Final = 5.0
"""How long, in seconds, what is published may take then."""

MOST: Final = 4000
SUBSCRIBE: Final = b"SUBSCRIBE"
"""By this word the connection for what comes live is known."""


class NotReadyError(Exception):
    """A node has ended, or never saw anything."""


@dataclass(frozen=True)
class Contender:
    """A system as it is put to the proof.

    Args:
        name: For the report and the command line.
        module: In `chaos.systems`.
        of: The packages that it is made of.
        durable: What follows its URL where the server writes everything down.
        volatile: What follows it where the server forgets.
        history: How many publications it keeps.
        is_ours: Whether a violation is a failure.
        needs: What is to be installed for it alone, since the others have another version.
    """

    name: str
    module: str
    of: tuple[str, ...]
    durable: str = ""
    volatile: str = ""
    history: int = HISTORY
    is_ours: bool = False
    needs: str = ""


class NodeProcess:
    """A node, from outside."""

    def __init__(
        self, orders: Orders, process: asyncio.subprocess.Process, output: IO[bytes]
    ) -> None:
        self.orders = orders
        self.events: list[Event] = []
        self._process = process
        self._output = output
        self._waiting = {f"{orders.name}/{number}" for number in range(orders.subscribers)}
        self._has_seen = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event = Event.parse(line)
            self.events.append(event)
            if self._waiting and event.what == "seen":
                self._waiting.discard(event.who)
                if not self._waiting:
                    self._has_seen.set()
        self._has_seen.set()

    async def ready(self) -> None:
        """Wait until all its subscribers have seen something."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_seen.wait(), READY)
        if self._waiting or self._process.returncode is not None:
            raise NotReadyError(f"{sorted(self._waiting)} never saw anything\n{self.printed()}")

    def order(self, line: str) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def end(self) -> None:
        """Let it end, and read all that it has written."""
        with suppress(OSError):
            self.order("end")
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE + 2.0)
        except TimeoutError:
            self._process.kill()
        await self._reading
        await self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(OSError):  # it has ended first
            await self._process.stdin.wait_closed()

    def printed(self) -> str:
        """Return the last that it wrote to stderr."""
        self._output.seek(0)
        return self._output.read()[-MOST:].decode(errors="replace")


@asynccontextmanager
async def node(orders: Orders, packages: Path | str) -> AsyncIterator[NodeProcess]:
    path = os.pathsep.join(str(part) for part in (packages, ROOT) if part)
    with TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chaos.node", orders.line()),
            env={**os.environ, "PYTHONPATH": path},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
        )
        there = NodeProcess(orders, process, output)
        try:
            yield there
        finally:
            await there.end()


class Stage:
    """The server, the proxies and the nodes of one run; and what happens to them."""

    def __init__(
        self,
        contender: Contender,
        server: RedisServer,
        proxies: Sequence[Proxy],
        nodes: Sequence[NodeProcess],
    ) -> None:
        self.contender = contender
        self.server = server
        self.proxies = proxies
        self.nodes = nodes
        self.events: list[Event] = []

    def note(self, what: What, who: str = "", text: str = "") -> None:
        self.events.append(Event(time.monotonic(), what, who, text=text))

    async def strike(self, faults: Iterable[Fault]) -> None:
        """Let the faults happen, each in its time."""
        acts: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "kill apart": self._kill_apart,
            "stale": self._stale,
            "stale apart": self._stale,
            "freeze": self._freeze,
            "half-open": self._half_open,
            "partition": self._partition,
            "absence": self._partition,
            "reset": self._reset,
            "slow": self._slow,
        }
        began = time.monotonic()
        for fault in faults:
            await asyncio.sleep(began + fault.at - time.monotonic())
            await acts[fault.kind](fault)

    async def _kill(self, fault: Fault) -> None:
        again = self.server.start if self.server.durable else self.server.restart_empty
        await self._crash(fault, again)

    async def _kill_apart(self, fault: Fault) -> None:
        self._cut_off(fault)
        await asyncio.sleep(_age(fault))
        await self._kill(fault)

    async def _stale(self, fault: Fault) -> None:
        await asyncio.to_thread(self.server.snapshot)
        self.note("note", text="a snapshot")
        if fault.kind == "stale apart":
            self._cut_off(fault)
        await asyncio.sleep(_age(fault))
        await self._crash(fault, self.server.restart_from_snapshot)

    def _cut_off(self, fault: Fault) -> None:
        self.note("hit", self.nodes[fault.node].orders.name, "cut off")
        self.proxies[fault.node].pause()

    async def _crash(self, fault: Fault, again: Callable[[], None]) -> None:
        self.note("hit", text=str(fault))
        self.server.kill()
        if not self.server.durable:
            self.note("wiped")
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(again)
        if fault.kind.endswith("apart"):
            self.proxies[fault.node].reset()  # what was on its way to the node is lost
            self.proxies[fault.node].resume()
        self.note("back", text=fault.kind)

    async def _freeze(self, fault: Fault) -> None:
        self.note("hit", text=str(fault))
        self.server.freeze()
        await asyncio.sleep(fault.seconds)
        self.server.thaw()
        self.note("back", text=fault.kind)

    async def _half_open(self, fault: Fault) -> None:
        proxy, name = self.proxies[fault.node], self.nodes[fault.node].orders.name
        only = SUBSCRIBE if fault.chance < 0.5 and proxy.found(SUBSCRIBE) else None
        which = "what comes live" if only else "all connections"
        self.note("hit", name, f"{fault}: {which}")
        proxy.half_open(said=only)
        self.note("back", name, fault.kind)

    async def _partition(self, fault: Fault) -> None:
        proxy, name = self.proxies[fault.node], self.nodes[fault.node].orders.name
        is_cut = fault.chance < 0.5  # else what was on its way arrives, late
        self.note("hit", name, f"{fault}, and the connections end" if is_cut else str(fault))
        proxy.pause()
        await asyncio.sleep(fault.seconds)
        if is_cut:
            proxy.reset()
        proxy.resume()
        self.note("back", name, fault.kind)

    async def _reset(self, fault: Fault) -> None:
        name = self.nodes[fault.node].orders.name
        self.note("hit", name, str(fault))
        self.proxies[fault.node].reset()
        self.note("back", name, fault.kind)

    async def _slow(self, fault: Fault) -> None:
        there = self.nodes[fault.node]
        number = int(fault.chance * there.orders.subscribers)
        self.note("hit", f"{there.orders.name}/{number}", str(fault))
        there.order(f"slow {number} {fault.seconds}")
        await asyncio.sleep(fault.seconds)
        self.note("back", f"{there.orders.name}/{number}", fault.kind)

    async def finish(self, calm: float = CALM, settle: float = SETTLE) -> list[Event]:
        """Publish for a while without faults, wait until all has come, and return the log.

        Args:
            calm: For how many seconds is published, at least.
            settle: For how many seconds, at most, is waited until everybody sees what is published;
                and then until everybody has seen all of it.
        """
        since = time.monotonic()
        await asyncio.sleep(calm)
        await self._wait(lambda: self._has_resumed(since), settle)
        for there in self.nodes:
            there.order("quiet")
        await self._wait(self._is_level, settle)
        for there in self.nodes:
            await there.end()
        return self.log()

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - it is in other processes
                    await asyncio.sleep(0.1)

    def _has_resumed(self, since: float) -> bool:
        """Whether everybody saw something that was published after a time."""
        log = self.log()
        began = {event.message for event in log if event.what == "began" and event.time >= since}
        seen = {event.who for event in log if event.what == "seen" and event.message in began}
        return seen.issuperset(subscribers())

    def log(self) -> list[Event]:
        """Return what happened so far."""
        return [*self.events, *(event for there in self.nodes for event in there.events)]

    def _is_level(self) -> bool:
        """Whether all publishers have ended, and everybody saw the last publication of each."""
        last: dict[str, str] = {}
        quiet: set[str] = set()
        seen: dict[str, set[str]] = {name: set() for name in subscribers()}
        for event in self.log():
            match event.what:
                case "acked":
                    last[event.who] = event.message
                case "seen":
                    seen[event.who].add(event.message)
                case "note" if event.text == QUIET:
                    quiet.add(event.who)
        is_over = len(quiet) == NODES * PUBLISHERS
        return is_over and all(each.issuperset(last.values()) for each in seen.values())


def _age(fault: Fault) -> float:
    shortest, longest = AGE
    return shortest + fault.chance * (longest - shortest)


@asynccontextmanager
async def staged(
    contender: Contender, *, is_durable: bool, build: str = VALKEY
) -> AsyncIterator[Stage]:
    """Start it all; when this is entered, every subscriber has seen something."""
    query = contender.durable if is_durable else contender.volatile
    packages = await asyncio.to_thread(folder, contender.needs) if contender.needs else ""
    async with AsyncExitStack() as stack:
        server = RedisServer(build, durable=is_durable)
        stack.callback(server.close)
        server.launch()
        await asyncio.to_thread(server.wait)
        proxies = [
            await stack.enter_async_context(Proxy(server.port, watch=[SUBSCRIBE]))
            for _ in range(NODES)
        ]
        nodes = []
        for number, proxy in enumerate(proxies):
            url = server.url(path=query, port=proxy.port)
            orders = Orders(
                f"node{number}",
                contender.module,
                Options(url, CHANNEL, contender.history, TTL),
                PUBLISHERS,
                RATE / NODES,
                SUBSCRIBERS,
            )
            nodes.append(await stack.enter_async_context(node(orders, packages)))
        for there in nodes:
            await there.ready()
        yield Stage(contender, server, proxies, nodes)


async def play(
    contender: Contender, scenario: Scenario, seconds: float, seed: int, build: str = VALKEY
) -> list[Event]:
    """Let a system go through a scenario, and return the log.

    Raises:
        NotReadyError: It does not work even without a fault.
    """
    async with staged(contender, is_durable=scenario.is_durable, build=build) as stage:
        await stage.strike(schedule(seed, seconds, scenario.kinds, NODES))
        return await stage.finish()


def subscribers() -> list[str]:
    """Return the names of those that listen in every run."""
    return [f"node{node}/{number}" for node in range(NODES) for number in range(SUBSCRIBERS)]
