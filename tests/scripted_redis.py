"""A scripted network: servers of Redis's protocol that answer what the test says, in scripted time.

For what no real server does on demand: a wrong answer, half of one, none at all; an error at a
given moment; a sentinel that lies; fifty nodes that reconnect.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import hiredis

from scripted import ScriptedLoop
from yaat.brokers.redis.settings import Address

Words = tuple[bytes, ...]
Answer = bytes | Callable[["Peer", Words], bytes]

LONGEST: Final = 100_000.0
"""How long a play may take, in scripted seconds: whoever waits for longer waits for ever."""

OK: Final = b"+OK\r\n"
SILENCE: Final = b""
RUN_ID: Final = "a" * 40


def bulk(data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n%s" % (len(items), b"".join(items))


def push(*items: bytes) -> bytes:
    return b">%d\r\n%s" % (len(items), b"".join(items))


def number(value: int) -> bytes:
    return b":%d\r\n" % value


def error(text: str) -> bytes:
    return b"-%s\r\n" % text.encode()


def info(run_id: str = RUN_ID, version: str = "7.2.4", mode: str = "standalone") -> bytes:
    lines = ("# Server", f"redis_version:{version}", f"redis_mode:{mode}", f"run_id:{run_id}", "")
    return bulk("\r\n".join(lines))


def slots(*ranges: tuple[int, int, list[tuple[str, int]]]) -> bytes:
    """Return what CLUSTER SLOTS answers: first, last, and the servers, the master first."""
    return array(
        *(
            array(
                number(first),
                number(last),
                *(array(bulk(host), number(port), bulk("id")) for host, port in servers),
            )
            for first, last, servers in ranges
        )
    )


class Peer(asyncio.Transport):
    """One connection to a server, as its end there sees it.

    Attributes:
        heard: The commands that came, in order.
        names: What is subscribed to.
        is_lost: Whether it is over.
    """

    def __init__(self, server: "Server", protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.server: Final = server
        self.protocol: Final = protocol
        self.heard: list[Words] = []
        self.names: set[bytes] = set()
        self.is_lost = False
        self._loop: Final = asyncio.get_running_loop()
        self._reader: Final = hiredis.Reader()

    # What the test does

    def say(self, data: bytes) -> None:
        """Let `data` come; nothing, if it is over."""
        if data:
            self._loop.call_soon(self._say, data)

    def hang_up(self, why: Exception | None = None) -> None:
        """End it, after what was said."""
        self._loop.call_soon(self._lose, why)

    def _say(self, data: bytes) -> None:
        if not self.is_lost:
            self.protocol.data_received(data)

    def _lose(self, why: Exception | None) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.server.peers.remove(self)
            self.protocol.connection_lost(why)

    # What asyncio's transports do

    def write(self, data: Any) -> None:
        self._loop.call_soon(self._hear, bytes(data))

    def _hear(self, data: bytes) -> None:
        self._reader.feed(data)
        while not self.is_lost and (words := self._reader.gets()) is not False:
            self.heard.append(tuple(words))
            self.say(self.server.answer(self, tuple(words)))

    def abort(self) -> None:
        self.hang_up()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Server:
    """A server that answers what the test says.

    Attributes:
        answers: By command: what to say, or what returns it. What is not here is done as a server
            does it, as far as it is done at all.
        peers: The connections that there are, the oldest first.
        times: When there was a connection.
        heard: All commands that came.
        takes: Whether connections are taken: else they are refused, or (None) wait for ever.
        greeting: What is said unasked when somebody comes.
    """

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.peers: list[Peer] = []
        self.times: list[float] = []
        self.heard: list[Words] = []
        self.takes: bool | None = True
        self.greeting = b""

    def answer(self, peer: Peer, words: Words) -> bytes:
        self.heard.append(words)
        name = words[0].decode()
        answer = self.answers[name] if name in self.answers else _usual[name]
        return answer if isinstance(answer, bytes) else answer(peer, words)

    def names(self, command: str) -> list[bytes]:
        """Return the first arguments of all commands of a kind, in order."""
        return [words[1] for words in self.heard if words[0] == command.encode()]

    def count(self, command: str) -> int:
        return sum(words[0] == command.encode() for words in self.heard)

    def hang_up(self) -> None:
        """End all connections."""
        for peer in self.peers:
            peer.hang_up()

    def publish(self, name: bytes, data: bytes, kind: str = "message") -> int:
        """Send something to all that are subscribed to `name`."""
        to = [peer for peer in self.peers if name in peer.names]
        for peer in to:
            peer.say(push(bulk(kind), bulk(name), bulk(data)))
        return len(to)


def _subscribe(peer: Peer, words: Words) -> bytes:
    (name,) = words[1:]
    if b"UN" in words[0]:
        peer.names.discard(name)
    else:
        peer.names.add(name)
    return push(bulk(words[0].lower()), bulk(name), number(len(peer.names)))


def _publish(peer: Peer, words: Words) -> bytes:
    kind = "smessage" if words[0] == b"SPUBLISH" else "message"
    return number(peer.server.publish(words[1], words[2], kind))


_usual: Final[dict[str, Answer]] = {
    "HELLO": b"%1\r\n" + bulk("proto") + number(3),
    "PING": b"+PONG\r\n",
    "SELECT": OK,
    "INFO": info(),
    "ROLE": array(bulk("master"), number(0), array()),
    "ASKING": OK,
    "SCRIPT": bulk("sha"),
    "PUBLISH": _publish,
    "SPUBLISH": _publish,
    **dict.fromkeys(("SUBSCRIBE", "UNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE"), _subscribe),
}


class NetworkLoop(ScriptedLoop):
    """An event loop in scripted time with a network of scripted servers.

    Attributes:
        servers: By address. Nobody answers at any other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.servers: defaultdict[Address, Server] = defaultdict(Server)
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    async def create_connection(  # type: ignore[override]
        self, make: Any, *where: Any, **_: Any
    ) -> Any:
        return await self._connect(make, Address(*where))

    async def create_unix_connection(  # type: ignore[override]
        self, make: Any, path: Any = None, **_: Any
    ) -> Any:
        return await self._connect(make, Address(path, 0))

    async def _connect(self, make: Callable[[], asyncio.Protocol], address: Address) -> Any:
        if address not in self.servers:
            raise ConnectionRefusedError(111, f"Connect call failed {address}")
        server = self.servers[address]
        server.times.append(self.time())
        await asyncio.sleep(0)
        if server.takes is None:
            await self.create_future()
        if not server.takes:
            raise ConnectionRefusedError(111, f"Connect call failed {address}")
        protocol = make()
        peer = Peer(server, protocol)
        server.peers.append(peer)
        protocol.connection_made(peer)
        peer.say(server.greeting)
        return peer, protocol


def server_at(host: str = "h", port: int = 6379, /, **answers: Answer) -> Server:
    """Return the server at an address of the network that a play is in, made if there is none."""
    server = cast(NetworkLoop, asyncio.get_running_loop()).servers[Address(host, port)]
    server.answers |= answers
    return server


def in_network(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `play` in a network of its own. Nothing may be left of it: no task, no failure."""

    async def whole() -> None:
        async with asyncio.timeout(LONGEST):
            await play()
        for _ in range(8):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left over: {left}"

    with asyncio.Runner(loop_factory=NetworkLoop) as runner:
        loop = cast(NetworkLoop, runner.get_loop())
        runner.run(whole())
        assert not loop.failures, loop.failures


def now() -> float:
    return asyncio.get_running_loop().time()
