"""Our script by three drivers: what the choice of the driver is worth.

They are no brokers: none of them heals, times out or notices anything.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import Connection

from benchmarks.network.ends import KEPT, NAME, TTL, Came, Ends, reading
from yaat.brokers.contract import Content
from yaat.brokers.envelope import pack as enveloped
from yaat.brokers.redis.keys import Keys
from yaat.brokers.redis.scripts import PUBLISH

DAY = b"86400000"  # in ms
EPOCH = b"kD3fQ9xx"
KEYS = Keys("yaat", 0, 1)
STREAM, POSITION = KEYS.history(0, NAME.encode())
LIVE = KEYS.live(0, NAME.encode())
BEFORE = (b"", EPOCH, DAY, b"%d" % KEPT, b"%d" % (TTL * 1000))  # the payload comes here
AFTER = (b"PUBLISH", LIVE, DAY)
ENVELOPE = len(enveloped(Content("bytes", b"")))
HEAD = 1 + 8 + 8 + 1 + len(EPOCH) + ENVELOPE  # version, offset, time, epoch
RANGE = (b"XRANGE", STREAM, b"-", b"+")

Call = Callable[..., Awaitable[Any]]
pack: Any = hiredis.pack_command  # its annotations know commands of one word only


async def ends(call: Call) -> Ends:
    """What is the same whoever calls."""
    sha = await call(b"SCRIPT", b"LOAD", PUBLISH.text.encode())

    def publish(payload: bytes) -> Awaitable[Any]:
        envelope = enveloped(Content("bytes", payload))
        return call(b"EVALSHA", sha, b"2", STREAM, POSITION, *BEFORE, envelope, *AFTER)

    async def history() -> list[bytes]:
        return [fields[1][ENVELOPE:] for _, fields in await call(*RANGE)]

    return Ends(publish, history)


# redis-py: a connection for each call in flight


@asynccontextmanager
async def redis_py(url: str, came: Came) -> AsyncIterator[Ends]:
    """Its client: a call has a connection for as long as it takes."""
    async with Redis.from_url(url, protocol=3, retry=None) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe(LIVE)

        async def payloads() -> AsyncIterator[bytes]:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    yield message["data"][HEAD:]

        async with reading(payloads(), came):
            made = await ends(redis.execute_command)

            async def history() -> list[bytes]:
                entries: Any = await redis.xrange(STREAM)
                return [fields[b"d"][ENVELOPE:] for _, fields in entries]

            yield Ends(made.publish, history)


# redis-py's Connection: one for all calls, written once a turn of the loop


class Gathering:
    """Calls share a connection: what is asked in one turn of the loop is written at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: list[tuple[Sequence[Any], asyncio.Future[Any]]] = []
        self._owed: deque[asyncio.Future[Any]] = deque()
        self._is_asked = asyncio.Event()
        self._is_owed = asyncio.Event()

    def call(self, *words: Any) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        self._asked.append((words, answer))
        self._is_asked.set()
        return answer

    async def write(self) -> None:
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            asked, self._asked = self._asked, []
            self._owed.extend(answer for _, answer in asked)
            self._is_owed.set()
            packed = self._connection.pack_commands([words for words, _ in asked])
            await self._connection.send_packed_command(packed, check_health=False)

    async def read(self) -> None:
        while True:
            await self._is_owed.wait()
            self._is_owed.clear()
            while self._owed:
                answer = await self._connection.read_response(disconnect_on_error=False)
                self._owed.popleft().set_result(answer)


@asynccontextmanager
async def connection(url: str, came: Came) -> AsyncIterator[Ends]:
    """A connection of redis-py for all calls, and one for what comes."""
    place: dict[str, Any] = {"host": urlsplit(url).hostname, "port": urlsplit(url).port}
    calls: Any = Connection(**place, protocol=3)
    pushes: Any = Connection(**place, protocol=2)
    gathering = Gathering(calls)

    async def listen() -> None:
        while True:
            pushed: Any = await pushes.read_response(disconnect_on_error=False)
            if pushed[0] == b"message":
                came(pushed[2][HEAD:])

    await calls.connect()
    await pushes.connect()
    await pushes.send_command(b"SUBSCRIBE", LIVE)
    tasks = [asyncio.create_task(work) for work in (gathering.write(), gathering.read(), listen())]
    try:
        yield await ends(gathering.call)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await calls.disconnect()
        await pushes.disconnect()


# hiredis alone: a protocol of asyncio, and no task


class Spoken(asyncio.Protocol):
    """RESP3 on one connection, written once a turn of the loop."""

    def __init__(self, came: Came) -> None:
        self._came = came
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._asked: list[bytes] = []
        self._owed: deque[asyncio.Future[Any]] = deque()

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if not isinstance(answer, hiredis.PushNotification):
                self._owed.popleft().set_result(answer)
            elif answer[0] == b"message":
                self._came(answer[2][HEAD:])

    def call(self, *words: bytes) -> asyncio.Future[Any]:
        answer = self._loop.create_future()
        self._owed.append(answer)
        self.say(*words)
        return answer

    def say(self, *words: bytes) -> None:
        if not self._asked:
            self._loop.call_soon(self._flush)
        self._asked.append(pack(words))

    def _flush(self) -> None:
        self.transport.write(b"".join(self._asked))
        self._asked.clear()


@asynccontextmanager
async def hiredis_alone(url: str, came: Came) -> AsyncIterator[Ends]:
    """A connection for all calls, and one for what comes."""
    place, loop = urlsplit(url), asyncio.get_running_loop()
    assert place.hostname
    assert place.port
    made = [
        await loop.create_connection(lambda: Spoken(came), place.hostname, place.port)
        for _ in range(2)
    ]
    calls, pushes = [protocol for _, protocol in made]
    try:
        await calls.call(b"HELLO", b"3")
        await pushes.call(b"HELLO", b"3")
        pushes.say(b"SUBSCRIBE", LIVE)
        yield await ends(calls.call)
    finally:
        calls.transport.close()
        pushes.transport.close()
