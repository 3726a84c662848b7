"""The configurations of docs/how-to/nginx.md, loaded by a real nginx in front of `yaat run`."""

import asyncio
import re
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clients import Closed, Headers, Http1, Refused, Response, SocketClient, connect
from documents import DOCS, blocks, commands, tables
from nginx import EVENTS, Nginx
from servers import Server, ServerSpec, yaat_run
from wires import TlsWire, UnixServer, certificate, connect_over
from yaat.server import ServerSettings

PAGE = DOCS / "how-to" / "nginx.md"
CONNECTIONS = 10
"""So many that a drain of 8 seconds closes the first within two, and the last in the end."""

TOLD = """
import os
from yaat import Request, WebSocket, Yaat
from yaat.responses import TextResponse

app = Yaat()


@app.route("/")
async def home(request: Request) -> TextResponse:
    return TextResponse("home")


@app.websocket_route("/{what:path}")
async def told(websocket: WebSocket, what: str) -> None:
    await websocket.accept()
    host = websocket.client.host if websocket.client else ""
    await websocket.send_json([str(websocket.url), host, os.getpid()])
    async for text in websocket.iter_text():
        await websocket.send_text(text)
"""


def configuration(title: str) -> str:
    [block] = [each for each in blocks(PAGE, "nginx") if each.title == title]
    return block.code


SPEC = ServerSpec("yaat", yaat_run("uvloop"))


def serving(directory: Path, *options: str) -> Server:
    directory.mkdir(exist_ok=True)
    (directory / "told.py").write_text(TOLD)
    return Server(SPEC.but(*options), "told:app", directory, {"PYTHONPATH": str(directory)})


def instead(*servers: Server) -> dict[str, str]:
    """Where the servers of a configuration really are."""
    said = ("127.0.0.1:8000", "127.0.0.1:8001")
    return {name: f"127.0.0.1:{server.port}" for name, server in zip(said, servers, strict=False)}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "yaat-proxy.conf").write_text(configuration("yaat-proxy.conf"))
    return tmp_path


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    with serving(directory) as server:
        yield server


@pytest.fixture
def pair(directory: Path) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        one, two = (serving(directory / name, "--drain", "8") for name in ("one", "two"))
        yield stack.enter_context(one), stack.enter_context(two)


class Elsewhere(Http1):
    """A client that has another address of this machine."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    async def open(self, url: str, headers: Headers, receive_buffer: int | None) -> Response:
        host, path = url.removeprefix("ws://").split("/", 1)
        name, port = host.split(":")
        self.reader, self.writer = await asyncio.open_connection(
            name, int(port), local_addr=(self._address, 0)
        )
        return await self.handshake(host, f"/{path}", headers)


async def told(url: str, wire: Http1 | None = None, **options: Any) -> tuple[str, str, int]:
    """What the application tells of the connection: its URL, the client's address, the process."""
    async with connect_over(wire or Http1Plain(), url, **options) as client:
        url, host, process = await client.receive_json()
        return url, host, process


class Http1Plain(Elsewhere):
    def __init__(self) -> None:
        super().__init__("127.0.0.1")


async def refused(url: str, **options: Any) -> Refused:
    with pytest.raises(Refused) as refusal:
        async with connect(url, **options):
            pass
    return refusal.value


@asynccontextmanager
async def opened(url: str, count: int) -> AsyncIterator[list[tuple[SocketClient, int]]]:
    """Open connections one after the other; yield them, each with the process that has it."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            client = await stack.enter_async_context(connect(url))
            clients.append((client, (await client.receive_json())[2]))
        yield clients


# One server


async def test_a_websocket_is_passed_on(server: Server, directory: Path) -> None:
    with Nginx(configuration("one.conf"), directory, instead(server)) as nginx:
        url = nginx.url("/echo")
        headers = [("origin", f"http://{nginx.host}")]
        assert (await told(url, headers=headers))[:2] == (url, "127.0.0.1")
        assert (await refused(url, headers=[("origin", "https://evil.example")])).status == 403


async def test_the_clients_address_is_told_and_cannot_be_forged(
    server: Server, directory: Path
) -> None:
    with Nginx(configuration("one.conf"), directory, instead(server)) as nginx:
        forged = [("x-forwarded-for", "192.0.2.7")]
        _, host, _ = await told(nginx.url("/echo"), Elsewhere("127.0.0.9"), headers=forged)
        assert host == "127.0.0.9"


async def test_how_to_see_that_it_works(server: Server, directory: Path) -> None:
    [said] = re.findall(r"`python (-m websockets ws://127.0.0.1/echo)`", PAGE.read_text())
    with Nginx(configuration("one.conf"), directory, instead(server)) as nginx:
        module = said.replace("127.0.0.1", nginx.host).split()
        client = await asyncio.create_subprocess_exec(
            sys.executable, *module, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"hello\n")
        async with asyncio.timeout(20):
            await client.stdout.readuntil(b"< hello")
            client.stdin.close()
            await client.wait()


@pytest.mark.parametrize(("line", "status"), [("Host ", 403), ("Upgrade ", 404)])
async def test_without_a_line(line: str, status: int, server: Server, directory: Path) -> None:
    proxy = directory / "yaat-proxy.conf"
    without, count = re.subn(rf"proxy_set_header {line}.*\n", "", proxy.read_text())
    assert count == 1
    proxy.write_text(without)
    with Nginx(configuration("one.conf"), directory, instead(server)) as nginx:
        headers = [("origin", f"http://{nginx.host}")]
        assert (await refused(nginx.url("/echo"), headers=headers)).status == status
    row = next(row for row in tables(PAGE)[1] if row[0].startswith(str(status)))
    assert f"`{line.strip()}`" in row[1]


async def test_silence_longer_than_the_read_timeout_is_cut(directory: Path) -> None:
    proxy = directory / "yaat-proxy.conf"
    proxy.write_text(proxy.read_text().replace("proxy_read_timeout 75s", "proxy_read_timeout 1s"))
    with (
        serving(directory, "--ping-interval", "3600") as server,
        Nginx(configuration("one.conf"), directory, instead(server)) as nginx,
    ):
        async with opened(nginx.url("/echo"), 1) as [(client, _)]:
            with pytest.raises(Closed) as end:
                await client.receive()
            assert end.value.code == 1006


def test_pings_come_more_often_than_nginx_waits() -> None:
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", configuration("yaat-proxy.conf"))
    interval = ServerSettings().ping_interval
    assert interval is not None
    assert interval * 2 < int(seconds)


# TLS


async def test_tls(server: Server, directory: Path) -> None:
    paths = certificate(directory)
    names = ("fullchain.pem", "privkey.pem")
    said = [f"/etc/ssl/example.com/{name}" for name in names]
    files = dict(zip(said, map(str, paths), strict=True))
    with Nginx(configuration("tls.conf"), directory, instead(server) | files) as nginx:
        context = ssl.create_default_context(cafile=paths[0])
        url = f"wss://{nginx.tls_host}/echo"
        origin = [("origin", f"https://{nginx.tls_host}")]
        assert (await told(url, TlsWire(context), headers=origin))[0] == url
        moved = await refused(nginx.url("/echo"))
        assert (moved.status, dict(moved.headers)["location"]) == (301, "https://127.0.0.1/echo")


# Several servers


async def test_least_conn(pair: tuple[Server, Server], directory: Path) -> None:
    with Nginx(configuration("several.conf"), directory, instead(*pair)) as nginx:
        url = nginx.url("/echo")
        async with opened(url, 6) as clients:
            assert Counter(pid for _, pid in clients) == {server.pid: 3 for server in pair}
            for client, pid in clients:
                if pid == pair[0].pid:
                    await client.close()
                    await client.wire.read()
            # Not in turn: the server that has become empty gets all of the next.
            async with opened(url, 3) as more:
                assert Counter(pid for _, pid in more) == {pair[0].pid: 3}


def balanced(line: str) -> str:
    """The configuration with another first line of `upstream`, one that the page's table has."""
    assert f"`{line}`" in [row[0] for row in tables(PAGE)[0]]
    return configuration("several.conf").replace("least_conn;", line)


async def test_ip_hash(pair: tuple[Server, Server], directory: Path) -> None:
    with Nginx(balanced("ip_hash;"), directory, instead(*pair)) as nginx:
        url = nginx.url("/echo")
        networks = []
        for network in range(8):
            addresses = [f"127.0.{network}.{last}" for last in (2, 99)]
            networks.append({(await told(url, Elsewhere(each)))[2] for each in addresses})
        assert all(len(processes) == 1 for processes in networks)
        assert set.union(*networks) == {server.pid for server in pair}


async def test_hash_by_path(pair: tuple[Server, Server], directory: Path) -> None:
    with Nginx(balanced("hash $uri consistent;"), directory, instead(*pair)) as nginx:
        urls = [nginx.url(f"/rooms/{number}") for number in range(12)]
        rooms = [{(await told(f"{url}?name={name}"))[2] for name in "abc"} for url in urls]
        assert all(len(processes) == 1 for processes in rooms)
        assert set.union(*rooms) == {server.pid for server in pair}


async def test_in_turn_and_a_shared_count(pair: tuple[Server, Server], directory: Path) -> None:
    in_turn = configuration("several.conf").replace("least_conn;", "zone yaat 64k;")
    with Nginx(in_turn, directory, instead(*pair)) as nginx:
        processes = [(await told(nginx.url("/echo")))[2] for _ in range(4)]
        assert processes == processes[:2] * 2
        assert len(set(processes)) == 2


# A unix socket


async def test_unix_socket(directory: Path) -> None:
    [words] = [words for words in commands(PAGE) if "--uds" in words]
    options = words[words.index("--forwarded-allow-ips") :]
    (directory / "told.py").write_text(TOLD)
    server = UnixServer(SPEC.but(*options), "told:app", directory)
    server._environment["PYTHONPATH"] = str(directory)
    where = {"/run/yaat/yaat.sock": server.path}
    with server, Nginx(configuration("socket.conf"), directory, where) as nginx:
        url = nginx.url("/echo")
        forged = [("x-forwarded-for", "192.0.2.7")]
        wire = Elsewhere("127.0.0.9")
        assert (await told(url, wire, headers=forged))[:2] == (url, "127.0.0.9")


async def test_unix_socket_with_the_other_variable_can_be_forged(directory: Path) -> None:
    proxy = directory / "yaat-proxy.conf"
    other = proxy.read_text().replace("$remote_addr", "$proxy_add_x_forwarded_for")
    proxy.write_text(other)
    server = serving(directory, "--forwarded-allow-ips", "*")
    with server, Nginx(configuration("one.conf"), directory, instead(server)) as nginx:
        forged = [("x-forwarded-for", "192.0.2.7")]
        assert (await told(nginx.url("/echo"), headers=forged))[1] == "192.0.2.7"


# Limits


async def test_connections_of_one_address(server: Server, directory: Path) -> None:
    with Nginx(configuration("limits.conf"), directory, instead(server)) as nginx:
        url = nginx.url("/echo")
        async with opened(url, 20):
            assert (await refused(url)).status == 429
            assert (await told(url, Elsewhere("127.0.0.9")))[1] == "127.0.0.9"


async def test_handshakes_of_one_address(server: Server, directory: Path) -> None:
    with Nginx(configuration("limits.conf"), directory, instead(server)) as nginx:
        answers = Counter([await status(nginx.url("/echo")) for _ in range(40)])
        assert answers[101] >= 21
        assert answers[429] >= 1


async def status(url: str) -> int:
    try:
        async with connect(url):
            return 101
    except Refused as answer:
        return answer.status


async def test_a_head_that_does_not_come(server: Server, directory: Path) -> None:
    soon = configuration("limits.conf").replace("timeout 10s", "timeout 1s")
    with Nginx(soon, directory, instead(server)) as nginx:
        host, port = nginx.host.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_two_connections_of_a_worker_each(server: Server, directory: Path) -> None:
    few = EVENTS.replace("{}", "{ worker_connections 16; }")
    with Nginx(configuration("one.conf"), directory, instead(server), main=few) as nginx:
        async with AsyncExitStack() as stack:
            count = 0
            try:
                while count < 16:
                    client = await stack.enter_async_context(connect(nginx.url("/echo")))
                    await client.receive()
                    count += 1
            except (Closed, Refused, ConnectionError):
                pass
        assert 5 <= count < 8
        assert "worker_connections are not enough" in nginx.output.read_text()


async def test_nginx_conf(server: Server, directory: Path) -> None:
    main = configuration("nginx.conf")
    with Nginx(configuration("one.conf"), directory, instead(server), main=main) as nginx:
        await told(nginx.url("/echo"))


# Restarts


async def test_one_drains_the_other_serves(pair: tuple[Server, Server], directory: Path) -> None:
    one, two = pair
    with Nginx(configuration("several.conf"), directory, instead(*pair)) as nginx:
        url = nginx.url("/echo")
        async with opened(url, CONNECTIONS) as clients:
            ends = endings(clients, one)
            one.terminate()
            await asyncio.wait(ends, return_when="FIRST_COMPLETED")
            assert (await refused(one.url("/echo"))).status == 503
            assert {(await told(url))[2] for _ in range(4)} == {two.pid}
            assert one.alive
            assert set(await asyncio.gather(*ends)) == {1012}
        assert one.wait() == 0
        # Nobody listens any more.
        assert {(await told(url))[2] for _ in range(4)} == {two.pid}


def endings(clients: list[tuple[SocketClient, int]], *servers: Server) -> list[asyncio.Task[int]]:
    """With which code each connection of these servers will end."""
    pids = {server.pid for server in servers}
    return [asyncio.create_task(ending(client)) for client, pid in clients if pid in pids]


async def ending(client: SocketClient) -> int:
    client.timeout = 30
    with pytest.raises(Closed) as end:
        await client.receive()
    return end.value.code


async def all_drain(pair: tuple[Server, Server], nginx: Nginx) -> list[Refused]:
    """What some handshakes are answered with while both servers drain."""
    url = nginx.url("/echo")
    async with opened(url, CONNECTIONS) as clients:
        ends = endings(clients, *pair)
        for server in pair:
            server.terminate()
        await asyncio.wait(ends, return_when="FIRST_COMPLETED")
        answers = [await refused(url) for _ in range(3)]
        assert all(server.alive for server in pair)
        assert set(await asyncio.gather(*ends)) == {1012}
    return answers


async def test_all_drain(pair: tuple[Server, Server], directory: Path) -> None:
    with Nginx(configuration("several.conf"), directory, instead(*pair)) as nginx:
        for answer in await all_drain(pair, nginx):
            assert answer.status == 503
            assert int(dict(answer.headers)["retry-after"]) > 0


async def test_all_drain_without_max_fails(pair: tuple[Server, Server], directory: Path) -> None:
    without = configuration("several.conf").replace(" max_fails=0", "")
    with Nginx(without, directory, instead(*pair)) as nginx:
        assert (await all_drain(pair, nginx))[-1].status == 502
        assert "no live upstreams" in nginx.output.read_text()


async def test_the_default_hands_the_503_on(pair: tuple[Server, Server], directory: Path) -> None:
    default = re.sub(r"proxy_next_upstream .*\n", "", configuration("several.conf"))
    in_turn = default.replace("least_conn;", "")
    with Nginx(in_turn, directory, instead(*pair)) as nginx:
        url = nginx.url("/echo")
        async with opened(url, CONNECTIONS) as clients:
            one = pair[0]
            ends = endings(clients, one)
            one.terminate()
            await asyncio.wait(ends, return_when="FIRST_COMPLETED")
            assert sorted([await status(url) for _ in range(2)]) == [101, 503]
            await asyncio.gather(*ends)


async def test_one_server_restarts(server: Server, directory: Path) -> None:
    with Nginx(configuration("one.conf"), directory, instead(server)) as nginx:
        async with opened(nginx.url("/echo"), 1) as [(client, _)]:
            server.terminate()
            assert await ending(client) == 1012
        assert server.wait() == 0
        assert (await refused(nginx.url("/echo"))).status == 502
        server.start()
        await told(nginx.url("/echo"))


async def test_reload_of_nginx(server: Server, directory: Path) -> None:
    main = re.sub(r"worker_rlimit.*\n", "", configuration("nginx.conf"))
    main = main.replace("auto", "1").replace("65536", "512").replace("timeout 60s", "timeout 2s")
    with Nginx(
        configuration("one.conf"), directory, instead(server), main=main, master=True
    ) as nginx:
        async with opened(nginx.url("/echo"), 1) as [(client, _)]:
            nginx.reload()
            await client.send_text("still here")
            assert await client.receive() == "still here"
            assert await ending(client) == 1006
            await told(nginx.url("/echo"))
