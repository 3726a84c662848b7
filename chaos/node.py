"""One node: `python -m chaos.node ORDERS`, as a process of its own.

It publishes and listens, and writes what happens to stdout, an `Event` a line. On stdin it is told
`slow NUMBER SECONDS` (that subscriber does not read for so long), `quiet` (publish no more) and
`end`.
"""

import asyncio
import json
import logging
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass

from chaos.log import Event, What
from chaos.systems import Options, System, load

PATIENCE = 10.0
"""How long, in seconds, a publisher waits for an answer."""

CLOSE = 3.0

QUIET = "publishes no more"
"""What a publisher notes."""


@dataclass(frozen=True)
class Orders:
    """What a node has to do.

    Args:
        name: Its own.
        system: The module of the system.
        options: What that is told.
        publishers: How many.
        rate: How many publications a second, by all of them together.
        subscribers: How many.
    """

    name: str
    system: str
    options: Options
    publishers: int
    rate: float
    subscribers: int

    def line(self) -> str:
        """Return it as it is given to a process."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, line: str) -> "Orders":
        """Read what `line` returned."""
        told = json.loads(line)
        return cls(**told | {"options": Options(**told["options"])})


def tell(what: What, who: str, message: str = "", text: str = "") -> None:
    """Write down what happened just now."""
    line = Event(time.monotonic(), what, who, message, text).line()
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Node:
    """Those who publish and listen in this process."""

    def __init__(self, orders: Orders, system: System) -> None:
        self.orders = orders
        self.system = system
        self.is_quiet = False
        self.may_read = [asyncio.Event() for _ in range(orders.subscribers)]
        for event in self.may_read:
            event.set()

    async def run(self) -> None:
        """Do it until there is no more to be done."""
        async with asyncio.TaskGroup() as group:
            workers = [
                *(group.create_task(self.subscribe(n)) for n in range(self.orders.subscribers)),
                *(group.create_task(self.publish(n)) for n in range(self.orders.publishers)),
            ]
            async for line in told():
                match line.split():
                    case ["slow", number, seconds]:
                        group.create_task(self.slow(int(number), float(seconds)))
                    case ["quiet"]:
                        self.is_quiet = True
                    case ["end"]:
                        break
            for worker in workers:
                worker.cancel()

    async def slow(self, number: int, seconds: float) -> None:
        self.may_read[number].clear()
        await asyncio.sleep(seconds)
        self.may_read[number].set()

    async def subscribe(self, number: int) -> None:
        name = f"{self.orders.name}/{number}"
        async with aclosing(self.system.listen()) as told:
            async for what, text in told:
                if what == "seen":
                    tell("seen", name, text.partition(" ")[0])
                else:
                    tell(what, name, text=text)
                await self.may_read[number].wait()

    async def publish(self, number: int) -> None:
        name, count = f"{self.orders.name}.{number}", 0
        pause = self.orders.publishers / self.orders.rate
        await asyncio.sleep(random.uniform(0, pause))
        while not self.is_quiet:
            count += 1
            due = time.monotonic() + pause * random.uniform(0.5, 1.5)
            await self.publish_one(name, f"{name}:{count}")
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        tell("note", name, text=QUIET)

    async def publish_one(self, name: str, message: str) -> None:
        tell("began", name, message)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.system.publish(f"{message} {'.' * 100}")
        except Exception as error:  # noqa: BLE001 - what it says is what is asked here
            what: What = "unsure" if self.system.is_unsure(error) else "refused"
            tell(what, name, message, repr(error)[:200])
        else:
            tell("acked", name, message)


async def told() -> AsyncIterator[str]:
    """Iterate over the lines of stdin."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await reader.readline():
        yield line.decode()


async def main(orders: Orders) -> None:
    async with load(orders.system).opened(orders.options) as system:
        await Node(orders, system).run()
        asyncio.get_running_loop().call_later(CLOSE, leave)


def leave() -> None:
    """End at once: some systems wait for ever, when they close, for what will never come."""
    sys.stderr.write(f"not closed after {CLOSE} s\n")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(main(Orders.parse(sys.argv[1])))
