"""Connections that do nothing, in a process of their own that imports nothing else.

`python -m benchmarks.idle APP CONNECTIONS METER` opens them and prints the bytes of one.
"""

import asyncio
import gc
import os
import sys
import tracemalloc
from typing import Any

from benchmarks import processors
from benchmarks.scripted import App, Message, application, scope

WARM = 100  # connections that fill every cache before the first measurement
PATH = "/text"


class Idle:
    """Connections that were accepted and now wait in `receive()` for ever."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.waiting = self.wanted = 0
        self.all_wait = asyncio.Event()
        self.tasks: list[asyncio.Task[Any]] = []

    async def open(self, connections: int) -> None:
        """Open as many more, and return when all of them wait."""
        loop = asyncio.get_running_loop()
        self.wanted += connections
        self.all_wait.clear()
        for _ in range(connections):
            callables = Callables(self)
            connection = self.app(scope(PATH), callables.receive, callables.send)
            self.tasks.append(loop.create_task(connection))  # type: ignore[arg-type]
        await self.all_wait.wait()

    async def wait(self) -> Message:
        self.waiting += 1
        if self.waiting == self.wanted:
            self.all_wait.set()
        return await asyncio.Future()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Callables:
    """The server's side of one such connection."""

    def __init__(self, idle: Idle) -> None:
        self.idle = idle
        self.connected = False

    async def receive(self) -> Message:
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        return await self.idle.wait()

    async def send(self, message: Message) -> None:
        assert message["type"] == "websocket.accept"


async def in_process(app: App, connections: int, meter: str) -> float:
    """Bytes a connection: of live objects if traced, else of resident memory."""
    if meter == "traced":
        tracemalloc.start()
    idle = Idle(app)
    await idle.open(WARM)
    before = taken(meter)
    await idle.open(connections)
    used = taken(meter) - before
    await idle.close()
    return used / connections


def taken(meter: str) -> int:
    gc.collect()
    if meter == "traced":
        return tracemalloc.get_traced_memory()[0]
    return processors.resident(os.getpid())


if __name__ == "__main__":
    location, number, measured = sys.argv[1:]
    print(asyncio.run(in_process(application(location), int(number), measured)))
