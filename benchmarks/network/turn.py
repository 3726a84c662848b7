"""A turn of one peer. `python -m benchmarks.network.turn` is the process in which it is taken.

It publishes for some time with many in flight, then for some time one after the other; and prints
what that came to.
"""

import asyncio
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module

import uvloop

from benchmarks import processors
from benchmarks.exchange import WORDS, WrongAnswerError
from benchmarks.network.ends import Ends, Opened

IN_FLIGHT = 64
SIZE = 100
WARM = 10  # publications by each that publishes
QUIET = 1.0  # seconds: what has not come until nothing has come for so long is lost
SOON = 0.1
PATIENCE = 20.0
DIGITS = 8
REST = (WORDS * 3)[: SIZE - 2 * (DIGITS + 1)]


@dataclass(frozen=True)
class Turn:
    """What came of it.

    Args:
        published: How many publications, with many in flight.
        sent: Seconds until the server had all of them.
        came: How many of them came.
        seconds: Until the last of them had.
        twice: How many more came that had come before.
        late: How many came after one that their publisher published after them.
        kept: How many are in the history.
        own: Seconds of the processor, of the process.
        server: And of the server.
        times: Seconds from a publication to its coming, one after the other.
        gone: How many of those did not come.
    """

    published: int
    sent: float
    came: int
    seconds: float
    twice: int
    late: int
    kept: int
    own: float
    server: float
    times: list[float]
    gone: int

    @property
    def lost(self) -> int:
        return self.published - self.came + self.gone


class Inbox:
    """What has come."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.last = 0.0
        self.awaited = b""
        self.has_come = asyncio.Event()

    def take(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self.last = time.perf_counter()
        if payload == self.awaited:
            self.has_come.set()

    def expect(self, payload: bytes) -> None:
        self.awaited = payload
        self.has_come.clear()

    async def until(self, count: int) -> None:
        """Until so many have come, or nothing has for a while."""
        before, since = -1, time.perf_counter()
        while len(self.payloads) < count and time.perf_counter() - since < QUIET:
            if len(self.payloads) > before:
                before, since = len(self.payloads), time.perf_counter()
            await asyncio.sleep(0.001)


def payload_of(publisher: int, number: int) -> bytes:
    return b"%0*d %0*d " % (DIGITS, publisher, DIGITS, number) + REST


async def publishing(ends: Ends, publisher: int, until: float, least: int = 0) -> int:
    """One after the other until then; return how many."""
    number = 0
    while number < least or time.perf_counter() < until:
        await ends.publish(payload_of(publisher, number))
        number += 1
    return number


async def warmed(ends: Ends, inbox: Inbox) -> None:
    """Until what is published comes, and all connections are there."""
    until = time.monotonic() + PATIENCE
    inbox.expect(payload_of(0, 0))
    while not inbox.has_come.is_set():
        if time.monotonic() > until:
            raise WrongAnswerError("nothing comes")
        await ends.publish(inbox.awaited)
        await asyncio.wait([asyncio.create_task(inbox.has_come.wait())], timeout=SOON)
    await asyncio.gather(*(publishing(ends, each, 0, WARM) for each in range(IN_FLIGHT)))
    await asyncio.sleep(SOON)
    before = -1
    while len(inbox.payloads) > before:  # what is still on its way
        before = len(inbox.payloads)
        await asyncio.sleep(SOON)
    inbox.payloads.clear()


async def timed(ends: Ends, inbox: Inbox, seconds: float) -> tuple[list[float], int]:
    """How long a publication takes that is alone, and how many do not come."""
    times, gone, until, number = [], 0, time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        payload, number = payload_of(0, number), number + 1
        inbox.expect(payload)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(QUIET):
                await ends.publish(payload)
                await inbox.has_come.wait()
        except TimeoutError:
            gone += 1
        else:
            times.append(inbox.last - began)
    return times, gone


def judged(counts: Sequence[int], payloads: Sequence[bytes]) -> tuple[int, int, int]:
    """How many of what was published came, how many more came twice, and how many late.

    Raises:
        WrongAnswerError: Something came that was not published.
    """
    seen: list[set[int]] = [set() for _ in counts]
    newest = [-1] * len(counts)
    twice = late = 0
    for payload in payloads:
        publisher, number = int(payload[:DIGITS]), int(payload[DIGITS + 1 : 2 * DIGITS + 1])
        if payload != payload_of(publisher, number) or number >= counts[publisher]:
            raise WrongAnswerError(f"{payload!r} was not published")
        twice += number in seen[publisher]
        late += number < newest[publisher] and number not in seen[publisher]
        seen[publisher].add(number)
        newest[publisher] = max(newest[publisher], number)
    return sum(map(len, seen)), twice, late


async def kept(ends: Ends, payloads: Sequence[bytes], *, whole: bool) -> int:
    """How many are kept: the last that came, if all did.

    Raises:
        WrongAnswerError: Others are kept.
    """
    history = [] if ends.history is None else list(await ends.history())
    both = min(len(history), len(payloads))  # a short turn leaves some of the time before it
    if whole and history[len(history) - both :] != list(payloads[len(payloads) - both :]):
        raise WrongAnswerError("what is kept is not what came last")
    return len(history)


async def taken(ends: Ends, inbox: Inbox, server: int, seconds: float) -> Turn:
    """Take a turn."""
    await warmed(ends, inbox)
    gc.collect()
    gc.freeze()
    used, own, began = processors.used_by(server), time.process_time(), time.perf_counter()
    until = began + seconds
    counts = await asyncio.gather(*(publishing(ends, each, until) for each in range(IN_FLIGHT)))
    sent = time.perf_counter() - began
    await inbox.until(sum(counts))
    own, used = time.process_time() - own, processors.used_by(server) - used
    took = max(sent, inbox.last - began)
    came, twice, late = judged(counts, inbox.payloads)
    is_whole = (came, twice, late) == (sum(counts), 0, 0)
    left = await kept(ends, inbox.payloads, whole=is_whole)
    times, gone = await timed(ends, inbox, seconds)
    return Turn(sum(counts), sent, came, took, twice, late, left, own, used / 1e9, times, gone)


async def main() -> None:
    """Take a turn, and end at once: Litestar and redis-py do not always come to an end."""
    program, _, name = sys.argv[1].partition(":")
    opened: Opened = getattr(import_module(program), name)
    url, server, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    inbox, failed = Inbox(), 0
    async with opened(url, inbox.take) as ends:
        try:
            print(json.dumps(asdict(await taken(ends, inbox, server, seconds))), flush=True)
        except Exception:  # noqa: BLE001 - whatever it is, it is printed
            traceback.print_exc()
            failed = 1
        os._exit(failed)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
