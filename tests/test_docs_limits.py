"""What docs/how-to/limits.md says of file descriptors and of the kernel, seen on a real server."""

import asyncio
import re
import resource
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from clients import Closed, Refused, SocketClient, Violation, connect
from debian import program
from documents import DOCS, blocks, commands, tables
from nginx import EVENTS, Nginx
from servers import OURS, Server, ServerSpec, uvicorn, yaat_run
from yaat.server import ServerSettings

PAGE = DOCS / "how-to" / "limits.md"
TEXT = " ".join(PAGE.read_text().split())
IN_A_NETWORK_OF_ITS_OWN = ("unshare", "--user", "--map-root-user", "--net", "--")
APP = """
from yaat import WebSocket, Yaat

app = Yaat()


@app.websocket_route("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
"""


FILES = 160


class Limited(ServerSpec):
    """`yaat run` with only so many files."""

    def command(self, app: str, port: int) -> tuple[str, ...]:
        return ("prlimit", f"--nofile={FILES}", "--", *super().command(app, port))


def serving(directory: Path, *options: str, loop: str = "uvloop", limited: bool = False) -> Server:
    kind = Limited if limited else ServerSpec
    spec = kind("yaat", yaat_run(loop)).but(*options)
    return Server(spec, "app:app", directory, application(directory))


def application(directory: Path) -> dict[str, str]:
    """Write the application; return the environment in which it is found."""
    (directory / "app.py").write_text(APP)
    return {"PYTHONPATH": str(directory)}


@asynccontextmanager
async def opened(server: Server, count: int) -> AsyncIterator[list[SocketClient]]:
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(await stack.enter_async_context(connect(server.url("/echo"))))
            await clients[-1].send_text("hello")
            await clients[-1].receive()
        yield clients


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def said(*words: str) -> list[str]:
    """The command line of the page that begins with these words."""
    [found] = [each for each in commands(PAGE) if tuple(each[: len(words)]) == words]
    return found


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# Open files


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_connection_is_a_descriptor(loop: str, tmp_path: Path) -> None:
    with serving(tmp_path, loop=loop) as server:
        before = descriptors(server)
        assert before <= 20
        async with opened(server, 30):
            # The connection of the probe that saw it start may have gone in the meantime.
            assert before + 29 <= descriptors(server) <= before + 30


async def refusal(server: Server) -> Refused:
    with pytest.raises(Refused) as refused:
        async with connect(server.url("/echo")):
            pass
    return refused.value


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_some_descriptors_are_kept_back(loop: str, tmp_path: Path) -> None:
    [spared] = re.findall(r"keeps (\d+) descriptors back", TEXT)
    room = FILES - int(spared)
    with serving(tmp_path, loop=loop, limited=True) as server:
        async with opened(server, room):
            answer = await refusal(server)
            assert answer.status == 503
            assert int(dict(answer.headers)["retry-after"]) > 0
        output = server.written_since()
    assert "refused a handshake" in output
    assert "Too many open files" not in output


async def test_when_they_are_gone_too(tmp_path: Path) -> None:
    said = re.findall(r"log says `(no more .+?)`", TEXT)[0]
    with serving(tmp_path, limited=True) as server:
        async with AsyncExitStack() as stack:
            for _ in range(FILES):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                stack.push_async_callback(writer.wait_closed)
                stack.callback(writer.close)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            async with asyncio.timeout(5):  # sooner than its handshake would time out
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert server.written_since().count(said) == 1


async def test_max_connections(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-connections", "3") as server:
        async with opened(server, 3):
            assert (await refusal(server)).status == 503


async def test_uvicorn_keeps_none_back(tmp_path: Path) -> None:
    spec = Limited("uvicorn", uvicorn(OURS, "uvloop", "httptools"))
    with Server(spec, "app:app", tmp_path, application(tmp_path)) as server:
        with pytest.raises((Violation, ConnectionError)):
            async with opened(server, FILES):
                pass
        assert "Too many open files" not in server.written_since()


def test_the_limit_of_a_shell_and_of_a_process(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    line = " ".join(said("ulimit", "-n")).replace("65536", str(min(65536, hard)))
    shell = f"{line} && {' '.join(said('prlimit')).replace('MAINPID', '$')}"
    assert f" {min(65536, hard)} " in " ".join(run(["sh", "-c", shell]).split())
    listing = [" ".join(words).replace("MAINPID", "$") for words in commands(PAGE)]
    [count] = [line for line in listing if line.startswith("ls ")]
    assert int(run(["sh", "-c", count])) > 2


def test_defaults_of_this_kernel() -> None:
    settings = {re.split("[`,]", row[0])[1]: row for row in tables(PAGE)[0] if "`fs" in row[0]}
    assert all(Path("/proc/sys", name.replace(".", "/")).exists() for name in settings)
    first, last = map(int, ["32768", "60999"])
    assert f"{last - first + 1:,}" in TEXT


# Kernel settings


def test_kernel_settings_exist_and_take_these_values(tmp_path: Path) -> None:
    [block] = blocks(PAGE, "ini")
    block.write(tmp_path)
    settings = dict(re.split(" = ", line) for line in block.code.splitlines())
    assert all(Path("/proc/sys", name.replace(".", "/")).exists() for name in settings)
    # What belongs to a network namespace can be set in one, and says nothing to this machine.
    lines = [line for line in block.code.splitlines() if line.startswith("net.")]
    assert len(lines) == 3
    file = tmp_path / block.title
    file.write_text("\n".join(lines) + "\n")
    words = [str(file) if word.endswith(".conf") else word for word in said("sysctl", "-p")]
    words[0] = program("sysctl", "procps")
    assert run([*IN_A_NETWORK_OF_ITS_OWN, *words]).splitlines() == lines


async def test_the_backlog_is_cut_by_somaxconn(tmp_path: Path) -> None:
    most = int(run([program("sysctl", "procps"), "-n", "net.core.somaxconn"]))
    for backlog in (100, most + 1):
        with serving(tmp_path, "--backlog", str(backlog)) as server:
            words = " ".join(said("ss", "-ltn")).replace("8000", str(server.port)).split()
            _, row = run([program("ss", "iproute2"), *words[1:]]).splitlines()
            assert int(row.split()[2]) == min(backlog, most)
    assert f"`--backlog` ({ServerSettings().backlog:,})" in TEXT


def test_the_counters_are_there() -> None:
    words = said("nstat")
    shown = run([program("nstat", "iproute2"), *words[1:]])
    assert all(name in shown for name in words[2:])


PORTS = """
import errno, socket, subprocess, sys
subprocess.run([sys.argv[1], "link", "set", "lo", "up"], check=True)
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
    file.write("40001 40010")
listener = socket.create_server(("0.0.0.0", 8000), backlog=100)
def dial(address, source=None):
    peer = socket.socket()
    if source is not None:
        peer.bind((source, 0))
    peer.connect((address, 8000))
    return peer
peers = [dial("127.0.0.1") for _ in range(10)]
try:
    dial("127.0.0.1")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
MORE = """
peers += [dial("127.0.0.2") for _ in range(10)]
peers += [dial("127.0.0.1", "127.0.0.3") for _ in range(10)]
print(len(peers))
"""


def test_ports_are_used_up_for_each_address() -> None:
    command = ["python3", "-W", "ignore", "-c", PORTS + MORE, program("ip", "iproute2")]
    assert run([*IN_A_NETWORK_OF_ITS_OWN, *command]).split() == ["EADDRNOTAVAIL", "30"]


THROUGH_NGINX = """
import socket, subprocess, sys, time
nginx, number = subprocess.Popen(sys.argv[3:]), int(sys.argv[2])
def ask():
    with socket.create_connection(("127.0.0.1", number), timeout=10) as peer:
        peer.sendall(b"GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
        return peer.recv(100).split()[1].decode()
while True:
    try:
        print(ask())
        break
    except ConnectionRefusedError:
        time.sleep(0.01)
nginx.terminate()
nginx.wait()
"""


def test_nginx_without_ports(tmp_path: Path) -> None:
    proxy = "server { listen 80; location / { proxy_pass http://127.0.0.1:8000; } }"
    nginx = Nginx(proxy, tmp_path, main=f"user root; {EVENTS}")  # root of the namespace
    words = ["python3", "-W", "ignore", "-c", PORTS + THROUGH_NGINX, program("ip", "iproute2")]
    port = nginx.host.partition(":")[2]
    done = subprocess.run(
        [*IN_A_NETWORK_OF_ITS_OWN, *words, port, *nginx.command()],
        capture_output=True,
        text=True,
        check=False,
    )
    nginx.release()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "502"
    assert "Cannot assign requested address" in done.stderr


def test_reserved_ports_hold_what_the_pages_listen_on() -> None:
    [block] = blocks(PAGE, "ini")
    first, last = re.findall(r"reserved_ports = (\d+)-(\d+)", block.code)[0]
    assert int(first) <= ServerSettings().port <= int(last)


# The life of a connection


def test_how_long_a_dead_connection_stays() -> None:
    settings = ServerSettings()
    assert (settings.ping_interval, settings.ping_timeout) == (20, 20)
    assert "for 40 seconds at most" in TEXT


async def test_time_wait_is_the_servers_and_hinders_nobody(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with opened(server, 5) as clients:
            server.terminate()
            for client in clients:
                with pytest.raises(Closed) as end:
                    await client.receive()
                assert end.value.code == 1012
        assert server.wait() == 0
        words = " ".join(said("ss", "-tn")).replace("8000", str(server.port)).split()
        command = [program("ss", "iproute2"), *words[1:]]
        waiting = await asyncio.to_thread(run, command)
        assert len(waiting.splitlines()) > 3
        server.start()
        async with opened(server, 1):
            pass
