"""The brokers that the contract is held against: one server and its nodes, of each kind.

A kind plugs in by a class of its own below, with no change to the tests.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from scripted import Clock
from yaat.brokers.contract import Broker, Content, Position, Publication, Published
from yaat.brokers.memory import SWEEP, MemoryBroker

PATIENCE: Final = 10.0
"""How long, in seconds, what has to come may take; nothing that is as it should waits for it."""


def text(value: object, **extra: Any) -> Content:
    return Content("text", str(value).encode(), **extra)


class Server(ABC):
    """One server, which all of its nodes share, as the tests of the contract need it."""

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


KINDS: Final[dict[str, Callable[[], Server]]] = {"memory": MemoryServer}
"""Every kind of broker, by the name under which its tests run."""


class Node:
    """A broker that is started, and what it has told so far.

    Attributes:
        heard: The publications that came live, by channel, in order.
        states: What `on_state` was told, in order.
        listener: Called with each publication after it was noted.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.heard: defaultdict[str, list[Publication]] = defaultdict(list)
        self.states: list[str] = []
        self.listener: Callable[[str, Publication], object] = lambda *_: None
        self._news = asyncio.Event()

    async def start(self) -> None:
        await self.broker.start(self._on_publication, self.states.append)

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


async def gone(count: Callable[[], Any]) -> None:
    """Wait until nothing is counted: a node may take up to 5 seconds to unsubscribe."""
    try:
        async with asyncio.timeout(5):
            while await count():  # noqa: ASYNC110 - no server tells when a count changes
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"still {await count()} upstream after 5 seconds") from None
