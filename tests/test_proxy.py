"""The proxy: what it lets through, and what it does not."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy import Proxy
from wires import certificate

LONG = 10.0


class Dialled:
    """A client of the server that says everything twice."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, text: str) -> None:
        self.writer.write(text.encode())

    async def hear(self, text: str) -> None:
        async with asyncio.timeout(LONG):
            assert await self.reader.readexactly(len(text)) == text.encode()

    async def hears_nothing(self) -> bool:
        """Whether nothing comes within the time in which all that comes has come."""
        try:
            async with asyncio.timeout(0.05):
                return not await self.reader.read(1)
        except TimeoutError:
            return True

    async def end(self) -> bytes:
        async with asyncio.timeout(LONG):
            return await self.reader.read()


@pytest.fixture
async def target() -> AsyncIterator[int]:
    """The port of a server that says everything twice."""

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data * 2)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(twice, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def dialled(proxy: Proxy, tls: ssl.SSLContext | None = None) -> AsyncIterator[Dialled]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=tls)
    try:
        yield Dialled(reader, writer)
    finally:
        writer.transport.abort()


async def test_it_passes_on_what_is_said_and_counts(target: int) -> None:
    async with Proxy(target) as proxy, dialled(proxy) as first, dialled(proxy) as second:
        first.say("a")
        second.say("b")
        await first.hear("aa")
        await second.hear("bb")
        assert proxy.made == len(proxy.links) == 2
        first.writer.close()
        async with asyncio.timeout(LONG):
            while len(proxy.links) > 1:  # noqa: ASYNC110 - the end comes by the loop
                await asyncio.sleep(0)
        second.say("c")
        await second.hear("cc")
        assert [link.heard for link in proxy.links] == [4]


async def test_a_pause_loses_nothing(target: int) -> None:
    async with Proxy(target) as proxy, dialled(proxy) as client:
        client.say("a")
        await client.hear("aa")
        proxy.pause()
        client.say("b")
        assert await client.hears_nothing()
        proxy.resume()
        await client.hear("bb")


async def test_what_is_delayed_or_slow_comes(target: int) -> None:
    loop = asyncio.get_running_loop()
    async with Proxy(target) as proxy, dialled(proxy) as client:
        proxy.delay = 0.05
        begin = loop.time()
        client.say("a")
        await client.hear("aa")
        assert loop.time() - begin >= 0.1 - 0.01  # there and back
        proxy.delay, proxy.rate = 0.0, 10_000.0
        begin = loop.time()
        client.say("x" * 1000)
        await client.hear("x" * 2000)
        assert loop.time() - begin >= 0.3 - 0.01


async def test_one_connection_is_half_open(target: int) -> None:
    watched = Proxy(target, watch=[b"feed"])
    async with watched as proxy, dialled(proxy) as feed, dialled(proxy) as other:
        feed.say("fe")
        await feed.hear("fefe")
        feed.say("ed")
        await feed.hear("eded")
        other.say("a")
        await other.hear("aa")
        assert [len(link.said) for link in proxy.links] == [1, 0]
        proxy.half_open(said=b"feed")
        other.say("b")
        feed.say("b")
        await other.hear("bb")
        assert await feed.hears_nothing()
        assert proxy.found(b"feed")[0].heard == 10  # the server has answered


async def test_one_piece_is_dropped(target: int) -> None:
    async with Proxy(target) as proxy, dialled(proxy) as client:
        dropped = proxy.drop(b"secret")
        client.say("a")
        await client.hear("aa")
        assert not dropped.is_set()
        client.say("secret")
        async with asyncio.timeout(LONG):
            await dropped.wait()
        client.say("secret")
        await client.hear("secretsecret")


async def test_what_the_server_says_may_be_altered(target: int) -> None:
    async with Proxy(target) as proxy, dialled(proxy) as client:
        proxy.alter = lambda link, data: data.replace(b"a", str(link.number).encode())
        client.say("abc")
        await client.hear("0bc0bc")


async def test_connections_are_reset_and_refused(target: int) -> None:
    async with Proxy(target, watch=[b"feed"]) as proxy:
        async with dialled(proxy) as feed, dialled(proxy) as other:
            for client in (feed, other):
                client.say("feed" if client is feed else "-")
                await client.reader.readexactly(2)
            proxy.reset(said=b"feed")
            with pytest.raises(ConnectionResetError):
                await feed.end()
            await proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)
            other.say("a")
            await other.hear("aa")
        await proxy.listen()
        async with dialled(proxy) as client:
            client.say("a")
            await client.hear("aa")


async def test_without_a_server_there_is_no_connection(target: int) -> None:
    async with Proxy(target) as proxy:
        proxy.target = 1  # nobody listens on tcpmux
        async with dialled(proxy) as client:
            with pytest.raises(ConnectionResetError):
                await client.end()
        assert proxy.made == 0


async def test_it_speaks_tls(target: int, tmp_path: Path) -> None:
    paths = certificate(tmp_path)
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(*paths)
    context = ssl.create_default_context(cafile=paths[0])
    async with Proxy(target, tls=own) as proxy, dialled(proxy, context) as client:
        client.say("a")
        await client.hear("aa")
