"""The brokers that the contract is held against: one server and its nodes, of each kind.

A kind plugs in by a class of its own below, with no change to the tests.
"""

import asyncio
import atexit
import contextlib
import itertools
import re
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, Self, TypeVar

from redis_servers import VALKEY, OneNodeCluster, RedisServer, builds
from scripted import Clock
from yaat.brokers.contract import (
    Broker,
    Content,
    OnMissed,
    OnPublication,
    OnState,
    Position,
    Present,
    Publication,
    Published,
)
from yaat.brokers.memory import SWEEP, MemoryBroker
from yaat.channels import Channel
from yaat.exceptions import BrokerUnavailable, PositionLost

T = TypeVar("T")

AFTER: Final = 1e-6
"""What comes after something else does so much later, in seconds."""

PATIENCE: Final = 10.0
"""How long, in seconds, what has to come may take; nothing that is as it should waits for it."""


def text(value: object, **extra: Any) -> Content:
    return Content("text", str(value).encode(), **extra)


class Server(ABC):
    """One server, which all of its nodes share, as the tests of the contract need it."""

    share: float = 1.0
    """How much of what is to be done often is done here: what is done in full by one kind of server
    need not be by its likes."""

    def some(self, count: int) -> int:
        """Return how often something is done here that could be done so often."""
        return max(1, int(count * self.share))

    @abstractmethod
    def node(self, **options: Any) -> Broker:
        """Return a broker that is connected to this server once it is started.

        Args:
            options: What every broker takes: `position_ttl`, `presence_ttl`, `once_ttl`,
                `max_payload`.
        """

    @abstractmethod
    async def upstream(self, channel: str) -> int:
        """Return how many of the nodes are subscribed to `channel`, as the server knows it."""

    @abstractmethod
    async def all_upstream(self) -> int:
        """Return how many subscriptions the server knows of, of all nodes and channels."""

    @abstractmethod
    def now(self) -> float:
        """Return the time by which this server lets things expire."""

    @abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Return when so much time has passed for the server."""

    @abstractmethod
    async def close(self) -> None:
        """Stop the server."""


class MemoryServer(Server):
    """A space of memory brokers; its time passes when the test says so."""

    made = 0

    def __init__(self) -> None:
        MemoryServer.made += 1
        self.space = f"contract {MemoryServer.made}"
        self.clock = Clock()
        self.clock.now = time.time()
        self.nodes: list[MemoryBroker] = []

    def node(self, **options: Any) -> Broker:
        broker = MemoryBroker(self.space, clock=self.clock, **options)
        self.nodes.append(broker)
        return broker

    async def upstream(self, channel: str) -> int:
        return len(self.nodes[0]._space.listeners.get(channel, ()))

    async def all_upstream(self) -> int:
        return sum(map(len, self.nodes[0]._space.listeners.values()))

    def now(self) -> float:
        return self.clock.now

    async def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        if seconds >= SWEEP and self.nodes:
            self.nodes[0]._space._sweep()  # as its timer does by then

    async def close(self) -> None:
        pass


class SharedServers:
    """Servers that are started once and serve many tests; they end with this process."""

    def __init__(self) -> None:
        self._servers: dict[str, RedisServer] = {}
        self._uses: Counter[str] = Counter()

    def enter(self, name: str, make: Callable[[], RedisServer]) -> RedisServer:
        """Return a server; who enters has to `leave` it."""
        if name not in self._servers:
            self._servers[name] = make()
            atexit.register(self._servers[name].close)
            self._servers[name].start()
        self._uses[name] += 1
        return self._servers[name]

    def leave(self, name: str) -> None:
        """Need it no more; when nobody does, it forgets everything."""
        self._uses[name] -= 1
        if not self._uses[name]:
            self._servers[name].call("FLUSHALL")


_shared: Final = SharedServers()
_numbers: Final = itertools.count()


class RealServer(Server):
    """A process that speaks Redis's protocol, with keys that nobody else uses there."""

    def __init__(
        self, name: str, make: Callable[[], RedisServer], share: float, scheme: str = "redis"
    ) -> None:
        self.share = share
        self.scheme = scheme
        self.name = name
        self.prefix = f"t{next(_numbers)}"
        self.server = _shared.enter(name, make)

    def node(self, **options: Any) -> Broker:
        from yaat.brokers.redis import RedisBroker

        return RedisBroker(self.server.url(self.scheme), prefix=self.prefix, **options)

    def _live(self) -> dict[bytes, int]:
        """Return by how many each channel is subscribed to."""
        live = re.compile(rb"%s:\{\d+\}:c0:(.*)" % self.prefix.encode(), re.DOTALL)
        found = self.server.subscriptions(f"{self.prefix}:")
        return {is_live[1]: count for name, count in found.items() if (is_live := live.match(name))}

    async def upstream(self, channel: str) -> int:
        return self._live().get(channel.encode(), 0)

    async def all_upstream(self) -> int:
        return sum(self._live().values())

    def now(self) -> float:
        return time.time()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        _shared.leave(self.name)


class DistantBroker(MemoryBroker):
    """A memory broker some way off: what is asked of it takes time, and not all succeeds.

    Args:
        space: That of the memory broker.
        there, back: How long, in seconds, each way takes. What is asked first comes first.
        live: How long it takes until a publication arrives.

    Attributes:
        to_lose: How many of the next publications get lost on their way here.
        lost: How many got lost, by channel, since the last that arrived.
        losses: How many got lost in all, by channel.
        failing: How many of the next calls of an operation fail, by its name.
        calls: How many calls there were, by the name of the operation.
    """

    def __init__(
        self,
        space: str = "",
        there: float = 0.0,
        back: float = 0.0,
        live: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(space, **options)
        self.there, self.back, self.live = there, back, live
        self.to_lose = 0
        self.lost: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._begun = 0.0
        self._coming: deque[tuple[str, Publication]] = deque()

    async def start(
        self, on_publication: OnPublication, on_state: OnState, on_missed: OnMissed
    ) -> None:
        loop = asyncio.get_running_loop()

        def arrive() -> None:
            on_publication(*self._coming.popleft())

        def deliver(channel: str, publication: Publication) -> None:
            if self.to_lose and publication.offset:
                self.to_lose -= 1
                self.lost[channel] += 1
                self.losses[channel] += 1
                return
            if publication.offset:
                self.lost[channel] = 0
            self._coming.append((channel, publication))
            if self.live:
                loop.call_later(self.live, arrive)
            else:
                arrive()

        await self._far("start", lambda: MemoryBroker.start(self, deliver, on_state, on_missed))

    async def _far(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self.calls[name] += 1
        loop = asyncio.get_running_loop()
        self._begun = max(loop.time() + self.there, self._begun + AFTER)
        await asyncio.sleep(self._begun - loop.time())
        if self.failing[name]:
            self.failing[name] -= 1
            raise BrokerUnavailable("a cable was cut")
        result = await work()
        if self.back:
            await asyncio.sleep(self.back)
        return result

    async def publish(self, *args: Any, **options: Any) -> Published:
        return await self._far("publish", lambda: MemoryBroker.publish(self, *args, **options))

    async def subscribe(self, *args: Any) -> None:
        await self._far("subscribe", lambda: MemoryBroker.subscribe(self, *args))

    async def unsubscribe(self, *args: Any) -> None:
        await self._far("unsubscribe", lambda: MemoryBroker.unsubscribe(self, *args))

    async def history(self, *args: Any, **options: Any) -> tuple[list[Publication], Position]:
        return await self._far("history", lambda: MemoryBroker.history(self, *args, **options))

    async def remove_history(self, *args: Any) -> None:
        await self._far("remove_history", lambda: MemoryBroker.remove_history(self, *args))

    async def presence_add(self, *args: Any) -> bool:
        return await self._far("presence_add", lambda: MemoryBroker.presence_add(self, *args))

    async def presence_refresh(self, entries: Iterable[tuple[str, Present]]) -> None:
        entries = list(entries)

        async def refresh() -> None:
            for channel, present in entries:
                await MemoryBroker.presence_add(self, channel, present)

        await self._far("presence_refresh", refresh)

    async def presence_remove(self, *args: Any) -> bool:
        return await self._far("presence_remove", lambda: MemoryBroker.presence_remove(self, *args))

    async def presence_get(self, *args: Any) -> list[Present]:
        return await self._far("presence_get", lambda: MemoryBroker.presence_get(self, *args))


def _real() -> dict[str, Callable[[], Server]]:
    """Return the kinds that are processes; the first is made to do everything in full."""
    kinds: dict[str, Callable[[], Server]] = {}
    for build in builds():
        name, share = ("redis", 1.0) if build == VALKEY else (build, 0.1)
        kinds[name] = partial(RealServer, name, partial(RedisServer, build), share)
    name = "redis-cluster-1"
    return {**kinds, name: partial(RealServer, name, OneNodeCluster, 0.1, "redis+cluster")}


KINDS: Final[dict[str, Callable[[], Server]]] = {"memory": MemoryServer, **_real()}
"""Every kind of broker, by the name under which its tests run."""


class Node:
    """A broker that is started, and what it has told so far.

    Attributes:
        heard: The publications that came live, by channel, in order.
        states: What `on_state` was told, in order.
        missed: What `on_missed` was told, in order.
        listener: Called with each publication after it was noted.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker: Final = broker
        self.heard: defaultdict[str, list[Publication]] = defaultdict(list)
        self.states: list[str] = []
        self.missed: list[set[str]] = []
        self.listener: Callable[[str, Publication], object] = lambda *_: None
        self._news = asyncio.Event()

    async def start(self) -> None:
        await self.broker.start(
            self._on_publication,
            self.states.append,
            lambda channels: self.missed.append(set(channels)),
        )

    def _on_publication(self, channel: str, publication: Publication) -> None:
        self.heard[channel].append(publication)
        self._news.set()
        self.listener(channel, publication)

    async def until(self, channel: str, count: int) -> list[Publication]:
        """Wait until so many publications of `channel` have come, and return them all."""
        try:
            async with asyncio.timeout(PATIENCE):
                while len(self.heard[channel]) < count:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            offsets = [publication.offset for publication in self.heard[channel]]
            raise AssertionError(f"{channel!r}: {count} expected, came {offsets}") from None
        return self.heard[channel]

    async def publish(
        self,
        channel: str,
        content: object,
        *,
        size: int = 100,
        ttl: float = 60.0,
        once: str | None = None,
    ) -> Published:
        """Publish with a history of some length; what is no `Content` goes as text."""
        if not isinstance(content, Content):
            content = text(content)
        return await self.broker.publish(channel, content, size=size, ttl=ttl, once=once)

    async def texts(self, channel: str, **options: Any) -> list[str]:
        """Return the texts that `history` with these options gives."""
        publications, _ = await self.broker.history(channel, **options)
        return [publication.content.payload.decode() for publication in publications]

    async def top(self, channel: str) -> Position:
        publications, top = await self.broker.history(channel, limit=0)
        assert publications == []
        return top


class Nodes:
    """Makes nodes of one server, and closes them in the end."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.made = AsyncExitStack()

    async def __call__(self, **options: Any) -> Node:
        node = Node(self.server.node(**options))
        await node.start()
        self.made.push_async_callback(node.broker.close)
        return node

    async def two(self, **options: Any) -> tuple[Node, Node]:
        return await self(**options), await self(**options)


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[Server]:
    """Run a server of `kind` and yield it."""
    server = KINDS[kind]()
    try:
        yield server
    finally:
        await server.close()


async def until(
    condition: Callable[[], Any],
    what: Callable[[], object] = lambda: "",
    within: float = PATIENCE,
) -> None:
    """Wait until something is true that comes by itself; `what` is told if it does not."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {within} s in vain: {what()}") from None


class Told:
    """What stands in a log where a reader was told that something is missing."""

    def __repr__(self) -> str:
        return "TOLD"


TOLD: Final = Told()


class Writer:
    """Publishes the numbers from 0 to a channel, one after another, whatever happens.

    One of its calls at a time: else nobody knows in which order the numbers are.

    Attributes:
        accepted: The numbers that were published, as the broker says.
        unknown: Those of which it does not know.
        refused: Those that were not published.
        epochs: The epochs in which they were.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.accepted: list[int] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self.epochs: set[str] = set()
        self._numbers = itertools.count()

    async def write(self, count: int = 1) -> None:
        """Publish until so many more have been accepted."""
        wanted = len(self.accepted) + count
        while len(self.accepted) < wanted:
            await self._try(next(self._numbers))
            await asyncio.sleep(0)

    async def write_until(self, condition: Callable[[], Any]) -> None:
        """Publish until something is true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.write()

    async def _try(self, number: int) -> None:
        try:
            self.epochs.add((await self.channel.publish(number)).epoch)
        except BrokerUnavailable as error:
            (self.unknown if error.maybe_published else self.refused).append(number)
            await asyncio.sleep(0.01)
        else:
            self.accepted.append(number)


class Reader:
    """Reads a channel from its position at the beginning, and begins anew where that is lost.

    Use it with `async with`.

    Attributes:
        log: The numbers that came, and `TOLD` where something was said to be missing.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.log: list[Any] = []
        self._since: Position | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._since = (await self.channel.history(limit=0)).top
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _read(self) -> None:
        while True:
            try:
                await self._read_on()
            except PositionLost:
                self.log.append(TOLD)
                self._since = None
            except BrokerUnavailable:
                await asyncio.sleep(0.01)

    async def _read_on(self) -> None:
        if self._since is None:
            self._since = (await self.channel.history(limit=0)).top
        async with aclosing(self.channel.subscribe(since=self._since)) as source:
            async for publication in source:
                self.log.append(publication.data)
                self._since = publication.position

    async def heard(self, number: int, within: float = PATIENCE) -> None:
        """Wait until a number has come."""
        await until(lambda: number in self.log, lambda: self.log[-20:], within)

    def check(self, writer: Writer) -> None:
        """Assert the promise: each number once and in order; where one is missing it was told."""
        last, is_told = -1, False
        for entry in self.log:
            if entry is TOLD:
                is_told = True
                continue
            assert entry > last, f"{entry} after {last}: {self.log}"
            assert entry not in writer.refused, f"{entry} was not published: {self.log}"
            if not is_told:
                missing = [each for each in writer.accepted if last < each < entry]
                assert not missing, f"{missing} are missing: {self.log}"
            last, is_told = entry, False
        missing = [each for each in writer.accepted if each > last]
        assert not missing or is_told, f"{missing} are missing in the end: {self.log}"


async def settled(writer: Writer, *readers: Reader) -> None:
    """Publish until all readers hear it.

    Who was told that something is missing begins anew; what is published meanwhile is part of what
    is missing.
    """
    async with asyncio.timeout(PATIENCE):
        while not all(writer.accepted[-1:] == reader.log[-1:] for reader in readers):
            await writer.write()
            with contextlib.suppress(AssertionError):
                for reader in readers:
                    await reader.heard(writer.accepted[-1], 0.2)


async def gone(count: Callable[[], Any]) -> None:
    """Wait until nothing is counted: a node may take up to 5 seconds to unsubscribe."""
    try:
        async with asyncio.timeout(5):
            while await count():  # noqa: ASYNC110 - no server tells when a count changes
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"still {await count()} upstream after 5 seconds") from None
