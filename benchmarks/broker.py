"""Publications within one process, no sockets: the broker in memory, and channels over it."""

import asyncio
import gc
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop
from broadcaster import Broadcast
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend

from benchmarks.exchange import WORDS, WrongAnswerError
from benchmarks.figures import figure, ratios, table
from benchmarks.settings import Settings
from yaat import ChannelOptions, Channels, Yaat
from yaat.brokers.contract import Content
from yaat.brokers.memory import MemoryBroker

ROUNDS = 25
COUNT = 10_000  # publications a turn
BLOCK = 100  # of them, until who subscribes has read them
PATIENCE = 20.0
AIM = 1_000_000
NAME, KEPT, TTL = "room:1", 100, 300.0
TEXT = (WORDS * 3)[:128].decode()

Publish = Callable[[], Awaitable[object]]
Turn = Callable[[int], Awaitable[None]]
Opened = Callable[[int], AbstractAsyncContextManager[Turn]]


class Readers:
    """So many who read what is published."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.missing = 0
        self.all_came = asyncio.Event()

    async def read(self, publications: AsyncIterable[Any]) -> None:
        number = len(self.came)
        self.came.append(0)
        async for _ in publications:
            self.came[number] += 1
            self.missing -= 1
            if not self.missing:
                self.all_came.set()

    async def publishing(self, publish: Publish, count: int) -> None:
        """Publish; everybody has everything when this returns."""
        for _ in range(count // BLOCK):
            self.missing = BLOCK * len(self.came)
            self.all_came.clear()
            for _ in range(BLOCK):
                await publish()
            if self.came:
                await self.all_came.wait()
            await asyncio.sleep(0)

    async def settled(self, publish: Publish, number: int) -> None:
        """Publish until all of them have begun to read."""
        while len(self.came) < number or not all(self.came):
            await publish()
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        self.came = [0] * number

    def check(self, count: int) -> None:
        if any(came != count for came in self.came):
            raise WrongAnswerError(f"{count} were published, and {self.came} came")


@asynccontextmanager
async def reading(
    publish: Publish, publications: Callable[[], AsyncIterable[Any]], number: int
) -> AsyncIterator[Turn]:
    """Let so many read."""
    readers = Readers()

    async def turn(count: int) -> None:
        readers.came = [0] * number
        async with asyncio.timeout(PATIENCE):
            await readers.publishing(publish, count)
        readers.check(count)

    tasks = [asyncio.create_task(readers.read(publications())) for _ in range(number)]
    try:
        await readers.settled(publish, number)
        yield turn
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def yaat_broker(_number: int) -> AsyncIterator[Turn]:
    """The broker alone; who subscribes is called."""
    broker, came = MemoryBroker(), 0

    def take(_channel: str, _publication: object) -> None:
        nonlocal came
        came += 1

    async def turn(count: int) -> None:
        nonlocal came
        came = 0
        for _ in range(count):
            await broker.publish(NAME, content, size=KEPT, ttl=TTL)
        if came != count:
            raise WrongAnswerError(f"{count} were published, {came} came")

    content = Content("text", TEXT.encode())
    await broker.start(take, lambda _state: None, lambda _channels: None)
    await broker.subscribe(NAME)
    yield turn
    await broker.close()


@asynccontextmanager
async def yaat(number: int) -> AsyncIterator[Turn]:
    """A channel."""
    app = Yaat(channels=Channels({NAME: ChannelOptions(history=KEPT, ttl=TTL)}))
    channel = app.channel(NAME)
    async with reading(lambda: channel.publish(TEXT), channel.subscribe, number) as turn:
        yield turn
    await app.hub.close()


@asynccontextmanager
async def broadcaster(number: int) -> AsyncIterator[Turn]:
    """broadcaster, which has no history."""
    async with Broadcast("memory://") as broadcast, AsyncExitStack() as stack:
        subscribers = [
            await stack.enter_async_context(broadcast.subscribe(NAME)) for _ in range(number)
        ]
        left: Iterator[Any] = iter(subscribers)
        publish = lambda: broadcast.publish(NAME, TEXT)  # noqa: E731 - a call of one line
        yield await stack.enter_async_context(reading(publish, lambda: next(left), number))


@asynccontextmanager
async def litestar_backend(_number: int) -> AsyncIterator[Turn]:
    """Litestar's backend alone."""
    backend, data = MemoryChannelsBackend(history=KEPT), TEXT.encode()
    await backend.on_startup()
    await backend.subscribe([NAME])
    publish = lambda: backend.publish(data, [NAME])  # noqa: E731
    async with reading(publish, backend.stream_events, 1) as turn:
        yield turn
    await backend.on_shutdown()


@asynccontextmanager
async def litestar(number: int) -> AsyncIterator[Turn]:
    """Litestar's plugin over its backend."""
    backend = MemoryChannelsBackend(history=KEPT)
    async with ChannelsPlugin(backend, channels=[NAME]) as channels:
        subscribers = [await channels.subscribe(NAME) for _ in range(number)]
        left = iter(subscribers)
        publish = lambda: channels.wait_published(TEXT, NAME)  # noqa: E731
        events = lambda: next(left).iter_events()  # noqa: E731
        async with reading(publish, events, number) as turn:
            yield turn


@dataclass(frozen=True)
class Row:
    """What is measured of whom.

    Args:
        title: In the report.
        subscribers: How many.
        peers: By name; ours is the first.
        times: Seconds of the processor for a turn, round by round.
    """

    title: str
    subscribers: int
    peers: dict[str, Opened]
    times: dict[str, list[float]] = field(default_factory=dict)

    def rates(self, name: str) -> list[float]:
        return [COUNT / time for time in self.times[name]]

    def lines(self) -> Iterator[list[str]]:
        ours = next(iter(self.peers))
        for name in self.peers:
            whole = figure(self.rates(name))
            ahead = ratios(self.times[name], self.times[ours])
            yield [name, f"{whole:,.0f}", f"{1e6 / whole.middle:.2f}", f"{ahead:.2f}"]


def rows() -> list[Row]:
    alone: dict[str, Opened] = {
        "MemoryBroker": yaat_broker,
        "broadcaster (no history)": broadcaster,
        "Litestar's MemoryChannelsBackend": litestar_backend,
    }
    whole: dict[str, Opened] = {
        "Yaat": yaat,
        "broadcaster (no history)": broadcaster,
        "Litestar": litestar,
    }
    return [
        Row("The broker alone, one subscriber", 1, alone),
        *(Row(f"A channel, subscribers: {number}", number, whole) for number in (0, 1, 10)),
    ]


def run(settings: Settings) -> None:
    """Measure and report."""
    rounds, asked = settings.rounds or ROUNDS, rows()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(asked, rounds))
    print(heading(rounds))
    for row in asked:
        print(f"\n### {row.title}\n")
        print(table(["", "publications/s", "µs each", "ours ÷ it"], row.lines()))
    print(f"\n{verdict(asked)}")


async def measure(asked: Sequence[Row], rounds: int) -> None:
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for row in asked:
            for name, opened in row.peers.items():
                async with opened(row.subscribers) as turn:
                    await turn(BLOCK)
                    row.times.setdefault(name, []).append(await timed(turn))


async def timed(turn: Turn) -> float:
    """Seconds of the processor: the one thread is all there is, and others may run beside it."""
    began = time.process_time()
    await turn(COUNT)
    return time.process_time() - began


def heading(rounds: int) -> str:
    return (
        f"\n## Publishing in process\n\nA text of {len(TEXT)} B published {COUNT:,} times to a "
        f"channel that keeps the last {KEPT}, on uvloop, until every subscriber has it; {rounds} "
        "interleaved rounds, by the time of the processor. Median (10th to 90th percentile)."
    )


def verdict(asked: Sequence[Row]) -> str:
    rate = figure(asked[0].rates("MemoryBroker"))
    said = "reached" if rate.middle >= AIM else "MISSED"
    return f"{said}: the broker alone takes {rate:,.0f} publications/s, wanted ≥ {AIM:,}"
