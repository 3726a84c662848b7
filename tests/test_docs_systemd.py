"""The units of docs/how-to/systemd.md: systemd's own checker reads them; what they start is run."""

import asyncio
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clients import Closed, SocketClient, connect
from debian import libraries, program
from documents import DOCS, blocks, commands
from servers import START_TIMEOUT, Port, Server, ServerSpec
from wires import UnixServer, UnixWire, connect_over
from yaat.server import ServerSettings

PAGE = DOCS / "how-to" / "systemd.md"
TEXT = PAGE.read_text()
SYSTEMD = ("systemd", "libsystemd-shared")
HOME = "/srv/chat"
DROP_INS = [each.title for each in blocks(PAGE, "ini") if each.title.startswith("chat.service.d/")]

APP = """
import os
from yaat import WebSocket, Yaat

app = Yaat()


@app.websocket_route("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(f"{text} {os.getpid()}")
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the page has in /srv/chat."""
    home = tmp_path / "chat"
    (home / "venv").mkdir(parents=True)
    (home / "venv" / "bin").symlink_to(Path(sys.executable).parent)
    (home / "app.py").write_text(APP)
    return home


def unit(title: str) -> dict[str, list[str]]:
    """The settings of a unit's file; an empty one resets what was before it."""
    settings: dict[str, list[str]] = {}
    code = next(block.code for block in blocks(PAGE, "ini") if block.title == title)
    for key, value in re.findall(r"^(\w+)=(.*)$", code, re.MULTILINE):
        settings[key] = [*settings.get(key, []), value] if value else []
    return settings


SERVICE = {key: values[-1] for key, values in unit("chat.service").items()}
STARTS = {title: unit(title)["ExecStart"] for title in ("chat.service", *DROP_INS)}


# What systemd says


def verified(directory: Path, home: Path, *titles: str) -> str:
    """What systemd complains of in these files."""
    for block in blocks(PAGE, "ini"):
        if block.title in titles:
            replace(block, code=block.code.replace(HOME, str(home))).write(directory)
    command = program("systemd-analyze", *SYSTEMD)
    done = subprocess.run(
        [command, "verify", "--man=no", *(title for title in titles if "/" not in title)],
        cwd=directory,
        env={**os.environ, **libraries(command)},
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "titles",
    [
        ("chat.service",),
        *[("chat.service", title) for title in DROP_INS if "activated" not in title],
        ("chat.service", "chat.service.d/activated.conf", "chat.socket"),
    ],
    ids=lambda titles: titles[1:2],
)
def test_systemd_finds_no_fault(titles: tuple[str, ...], tmp_path: Path, home: Path) -> None:
    assert verified(tmp_path, home, *titles) == ""


def test_systemd_would_find_faults(tmp_path: Path, home: Path) -> None:
    (home / "venv" / "bin").unlink()
    assert "is not executable" in verified(tmp_path, home, "chat.service")
    assert "is not executable" in verified(tmp_path, home, "chat.service", DROP_INS[0])


def test_every_unit_was_looked_at() -> None:
    titles = {block.title for block in blocks(PAGE, "ini")}
    assert titles == {"chat.service", "chat.socket", *DROP_INS}


def test_systemd_knows_the_verbs() -> None:
    assert {(words[0], words[1]) for words in commands(PAGE)} == {
        ("systemd-analyze", "verify"),
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable"),
        ("systemctl", "status"),
        ("systemctl", "restart"),
        ("journalctl", "-u"),
        ("systemd-socket-activate", "-l"),
    }


# What they start


class Unit(ServerSpec):
    """An ExecStart, with other paths and another port, under the limits of the service."""

    def command(self, app: str, port: int) -> tuple[str, ...]:
        return ("prlimit", f"--nofile={files()}", "--", *self.arguments(app, port))


def files() -> int:
    """The limit of the service, or as much of it as this machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(int(SERVICE["LimitNOFILE"]), hard)


def spec(title: str, home: Path) -> Unit:
    [line] = STARTS[title]

    def arguments(_: str, port: int) -> list[str]:
        return shlex.split(line.replace(HOME, str(home)).replace("8000", str(port)))

    return Unit(title.replace("/", "-"), arguments)


def serving(title: str, home: Path) -> Server:
    return Server(spec(title, home), "app:app", home, {"PYTHONPATH": str(home)})


async def process(client: SocketClient) -> int:
    """Who serves this connection."""
    await client.send_text("hello")
    return int(str(await client.receive()).split()[1])


async def ending(client: SocketClient) -> int:
    client.timeout = 45  # four workers take their time on a busy machine, and then the drain
    with pytest.raises(Closed) as end:
        await client.receive()
    return end.value.code


@pytest.mark.parametrize("title", ["chat.service", "chat.service.d/workers.conf"])
async def test_it_starts_and_stops(title: str, home: Path) -> None:
    with serving(title, home) as server:
        async with connect(server.url("/echo")) as client:
            assert open_files(await process(client)) == files()
            os.kill(server.pid, getattr(signal, SERVICE["KillSignal"]))
            assert await ending(client) == 1012
        assert await asyncio.to_thread(server._process.wait, stop_seconds()) == 0  # type: ignore[union-attr]


def open_files(pid: int) -> int:
    """How many files a process may have open: the soft limit."""
    soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return soft


def stop_seconds() -> float:
    return float(SERVICE["TimeoutStopSec"])


@pytest.mark.parametrize("title", ["chat.service", "chat.service.d/workers.conf"])
def test_the_time_to_stop_is_enough(title: str) -> None:
    [line] = STARTS[title]
    [drain] = re.findall(r"--drain (\d+)", line)
    settings = ServerSettings()
    longest = float(drain) + settings.handler_timeout + settings.shutdown_timeout
    assert longest < stop_seconds()


async def test_the_signal_to_all_does_no_harm(home: Path) -> None:
    with serving("chat.service.d/workers.conf", home) as server:
        async with connect(server.url("/echo")) as client:
            await process(client)
            os.killpg(server.pid, signal.SIGTERM)  # as with KillMode=control-group
            assert await ending(client) == 1012
        assert await asyncio.to_thread(server._process.wait, stop_seconds()) == 0  # type: ignore[union-attr]


async def test_reload_with_workers(home: Path) -> None:
    [line] = unit("chat.service.d/workers.conf")["ExecReload"]
    with serving("chat.service.d/workers.conf", home) as server:
        async with connect(server.url("/echo")) as client:
            old = await process(client)
            words = shlex.split(line.replace("$MAINPID", str(server.pid)))
            await (await asyncio.create_subprocess_exec(*words)).wait()
            assert await ending(client) == 1012
        async with connect(server.url("/echo")) as client:
            assert await process(client) != old
        assert server.alive


async def test_unix_socket(home: Path) -> None:
    title = "chat.service.d/socket.conf"
    server = UnixServer(ServerSpec("unix", lambda *_: []), "app:app", home)
    path = server.path

    def arguments(_: str, port: int) -> list[str]:
        line = STARTS[title][0].replace("/run/chat/chat.sock", path)
        return shlex.split(line.replace(HOME, str(home)))

    server.spec = Unit("unix", arguments)
    assert unit(title)["RuntimeDirectory"] == ["chat"]
    server._environment["PYTHONPATH"] = str(home)
    with server:
        assert mode(path) == 0o666  # "writable for everybody"
        async with connect_over(UnixWire(path), "ws://localhost/echo") as client:
            await process(client)


def mode(path: str) -> int:
    return Path(path).stat().st_mode & 0o777


# The socket is systemd's


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket as systemd makes it."""
    [address] = unit("chat.socket")["ListenStream"]
    with socket.create_server((address.split(":")[0], 0)) as listener:
        listener.listen(int(unit("chat.socket")["Backlog"][0]))
        yield listener


def activated(listener: socket.socket, home: Path) -> "subprocess.Popen[bytes]":
    """Start the service with the socket as file descriptor 3."""
    [line] = STARTS["chat.service.d/activated.conf"]
    start = line.replace(HOME, str(home))
    return subprocess.Popen(
        ["bash", "-c", f"exec 3<&{listener.fileno()}; exec {start}"],
        cwd=home,
        pass_fds=[listener.fileno()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def test_handshakes_wait_while_no_server_is_there(home: Path) -> None:
    with listening() as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/echo"
        server = activated(listener, home)
        try:
            async with connect(url, timeout=START_TIMEOUT) as client:
                old = await process(client)
                server.terminate()
                assert await ending(client) == 1012
            assert server.wait(stop_seconds()) == 0
            waiting = asyncio.create_task(visit(url))
            server = activated(listener, home)
            assert await waiting != old
        finally:
            server.terminate()
            server.wait(stop_seconds())


async def visit(url: str) -> int:
    async with connect(url, timeout=START_TIMEOUT) as client:
        return await process(client)


async def test_the_command_that_tries_it(home: Path) -> None:
    [words] = [words for words in commands(PAGE) if words[0] == "systemd-socket-activate"]
    port = Port()
    number = port.number
    port.release()  # it does not share a port
    words = [word.replace("8000", str(number)) for word in words]
    command = program(words[0], *SYSTEMD)
    path = f"{home}/venv/bin:{os.environ['PATH']}"
    server = await asyncio.create_subprocess_exec(
        command, *words[1:], cwd=home, env={**os.environ, **libraries(command), "PATH": path}
    )
    try:
        await listens(number)
        assert await visit(f"ws://127.0.0.1:{number}/echo") == server.pid
    finally:
        server.terminate()
        await server.wait()
    assert server.returncode == 0


async def listens(port: int) -> None:
    """Wait until somebody does."""
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return await writer.wait_closed()


# What the log says


def test_what_the_log_says(home: Path) -> None:
    [line] = STARTS["chat.service"]
    words = shlex.split(line.replace(HOME, str(home)))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = [word.replace("8000", str(taken.getsockname()[1])) for word in words]
        done = subprocess.run(there, cwd=home, capture_output=True, text=True, check=False)
    assert "Address already in use" in done.stderr
    done = subprocess.run(words, cwd=home.parent, capture_output=True, text=True, check=False)
    assert 'Could not import module "app"' in done.stderr
    assert done.returncode == 3


def test_what_the_log_says_when_it_is_ready(home: Path) -> None:
    with serving("chat.service", home) as server:
        output = server.written_since().replace(str(server.port), "8000")
    ready, listens = "Application startup complete.", "Uvicorn running on http://127.0.0.1:8000"
    assert all(f"`{said}`" in " ".join(TEXT.split()) for said in (ready, listens))
    assert output.index(ready) < output.index(listens)
