"""A TCP proxy between a client and a real server, for what happens to networks.

It knows no protocol. `watch` tells connections apart by what was said on them, `drop` and `alter`
look at the bytes.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from typing import Final, Self

from servers import Port

CHUNK: Final = 65_536

Alter = Callable[["Link", bytes], bytes]


class Link:
    """One connection through the proxy.

    Attributes:
        number: It is the so many-th, from 0.
        said: Which of the words that the proxy watches for its client has said.
        heard: How many bytes the server has sent to it.
        swallows: Whether what the server sends comes no more: the connection is half open.
    """

    def __init__(
        self, number: int, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        self.number: Final = number
        self.said: Final[set[bytes]] = set()
        self.heard = 0
        self.swallows = False
        self._writers: Final = (client, server)
        self._tail = b""

    def __repr__(self) -> str:
        return f"<Link {self.number} {self.said or ''}>"

    def note(self, words: Iterable[bytes], data: bytes) -> None:
        """Note what its client says; a word may come in two parts."""
        text = self._tail + data
        self.said.update(word for word in words if word in text)
        self._tail = text[-64:]

    def reset(self) -> None:
        """End it with RST to both sides."""
        for writer in self._writers:
            _reset(writer)

    def close(self) -> None:
        """End it with FIN to both sides, after what is on its way."""
        for writer in self._writers:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST: SO_LINGER with a time of zero."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it has ended
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """A port of its own before another one: use it with `async with`.

    Args:
        target: The port of the server, on loopback.
        watch: The words to be noted in `Link.said`.
        tls: What the proxy speaks TLS with to its clients; to the server it speaks plainly.

    Attributes:
        port: Where it listens. Nobody else is given that port.
        made: How many connections there were so far.
        links: Those that there are.
        delay: How long, in seconds, each piece waits, either way.
        rate: How many bytes in a second get through on each connection, either way; 0: all.
        alter: What makes of the bytes of a server what its client gets.
    """

    def __init__(
        self, target: int, *, watch: Iterable[bytes] = (), tls: ssl.SSLContext | None = None
    ) -> None:
        self.target = target
        self.made = 0
        self.links: Final[list[Link]] = []
        self.delay = 0.0
        self.rate = 0.0
        self.alter: Alter = lambda _, data: data
        self._watch: Final = tuple(watch)
        self._tls: Final = tls
        self._port: Final = Port()
        self.port: Final = self._port.number
        self._server: asyncio.Server | None = None
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._flows: Final = asyncio.Event()
        self._flows.set()
        self._to_drop: Final[list[tuple[bytes, asyncio.Event]]] = []

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # What happens to all connections

    async def listen(self) -> None:
        """Let connections be made."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls, reuse_address=True
        )

    async def refuse(self) -> None:
        """Let no more connections be made; those that there are stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def pause(self) -> None:
        """Let nothing through, either way, until `resume`: nothing of it gets lost."""
        self._flows.clear()

    def resume(self) -> None:
        """Let through what has waited, and what comes."""
        self._flows.set()

    def reset(self, *, said: bytes | None = None) -> None:
        """End the connections, all or those on which a word was said, with RST."""
        for link in self.found(said):
            link.reset()

    def half_open(self, *, said: bytes | None = None) -> None:
        """Let nothing come from the server any more on these connections."""
        for link in self.found(said):
            link.swallows = True

    def found(self, said: bytes | None = None) -> list[Link]:
        """Return the connections, all or those on which a word was said."""
        return [link for link in self.links if said is None or said in link.said]

    def drop(self, word: bytes) -> asyncio.Event:
        """Drop the next piece in which the server says this; the event tells when it has come."""
        dropped = asyncio.Event()
        self._to_drop.append((word, dropped))
        return dropped

    async def close(self) -> None:
        """End all there is of it."""
        await self.refuse()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._port.release()

    # One connection

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        link = Link(self.made, writer, server)
        self.made += 1
        self.links.append(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(link, reader, server, self._asked))
                group.create_task(self._pass_on(link, answers, writer, self._answered))
        except* OSError:
            link.reset()
        finally:
            self.links.remove(link)
            link.close()

    async def _pass_on(
        self,
        link: Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        look: Alter,
    ) -> None:
        while data := await reader.read(CHUNK):
            await self._flows.wait()
            if self.delay or self.rate:
                await asyncio.sleep(self.delay + (len(data) / self.rate if self.rate else 0))
            if data := look(link, data):
                writer.write(data)
                await writer.drain()
        link.close()  # half a connection is none, for the clients and servers here

    def _asked(self, link: Link, data: bytes) -> bytes:
        link.note(self._watch, data)
        return data

    def _answered(self, link: Link, data: bytes) -> bytes:
        link.heard += len(data)
        for each in self._to_drop:
            word, dropped = each
            if word in data:
                self._to_drop.remove(each)
                dropped.set()
                return b""
        return b"" if link.swallows else self.alter(link, data)
