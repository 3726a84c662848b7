"""The commands that start servers, and the configuration of nginx, as the documents print them."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from browser import only_one_process
from clients import Refused, connect
from documents import DOCS, ROOT, blocks, commands, pages, write
from servers import SPECS, Port, Server, ServerSpec

SERVERS = ("uvicorn", "hypercorn", "granian", "daphne")
STARTS = [(page, words) for page in pages() for words in commands(page) if words[0] in SERVERS]


def test_every_server_is_told_how_to_start() -> None:
    for page in (ROOT / "README.md", DOCS / "how-to" / "deploy.md"):
        told = {words[0] for where, words in STARTS if where == page}
        assert told == set(SERVERS)


@pytest.mark.parametrize(
    ("page", "words"), STARTS, ids=[f"{page.stem}-{words[0]}" for page, words in STARTS]
)
async def test_commands_serve_the_pages_program(
    page: Path, words: list[str], tmp_path: Path
) -> None:
    write(page, tmp_path)
    with Server(spec(words), application(words), tmp_path, {"PYTHONPATH": str(tmp_path)}) as server:
        if page.stem == "chat":
            async with connect(server.url("/rooms/tea?name=Ada")) as client:
                await client.send_json({"text": "hello"})
                assert await client.receive_json() == {"name": "Ada", "text": "hello"}
        else:
            async with connect(server.url("/echo")) as client:
                await client.send_text("hello")
                assert await client.receive() == "hello"


def spec(words: list[str]) -> ServerSpec:
    """The server of a command line, but on a port that is free."""
    if not any("8000" in word for word in words):
        words = [*words, "--port", "8000"]

    def arguments(_: str, port: int) -> list[str]:
        return [word.replace("8000", str(port)) for word in words]

    return ServerSpec(words[0], arguments)


def application(words: list[str]) -> str:
    return next(word for word in words if word.endswith(":app"))


# nginx

TOLD = """
from yaat import WebSocket, Yaat

app = Yaat()


@app.websocket_route("/told")
async def told(websocket: WebSocket) -> None:
    await websocket.accept()
    host = websocket.client.host if websocket.client else ""
    await websocket.send_json([str(websocket.url), host])
"""

AROUND = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {configuration}
}}
"""


class Nginx:
    """An nginx in front of a server, configured as the document says, with other ports."""

    def __init__(self, configuration: str, server: Server, directory: Path) -> None:
        self._port = Port()
        self.host = f"127.0.0.1:{self._port.number}"
        configuration = configuration.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        configuration = configuration.replace("listen 80;", f"listen {self.host};")
        text = AROUND.format(directory=directory, configuration=configuration)
        (directory / "nginx.conf").write_text(text)
        self._command = [nginx(), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + 10
        while not self._answers():
            assert self._process.poll() is None, "nginx ended"
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._port.release()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port.number)).close()
        except OSError:
            return False
        return True

    @property
    def url(self) -> str:
        return f"ws://{self.host}/told"


def nginx() -> str:
    """The path of an nginx; where there is none, that of Debian's package is unpacked."""
    if found := shutil.which("nginx"):
        return found
    with only_one_process():
        unpacked = ROOT / ".venv" / "nginx"
        if not unpacked.exists():
            unpack(unpacked)
    return str(unpacked / "usr" / "sbin" / "nginx")


def unpack(directory: Path) -> None:
    """Unpack Debian's nginx without installing it, which would start one."""
    parent = directory.parent
    for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", "nginx"]):
        done = subprocess.run(command, cwd=parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the tests need nginx: {done.stderr}"
    [package] = parent.glob("nginx_*.deb")
    subprocess.run(["dpkg", "-x", package, directory], check=True)
    package.unlink()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "told.py").write_text(TOLD)
    path = {"PYTHONPATH": str(tmp_path)}
    with Server(SPECS["uvicorn-sansio"], "told:app", tmp_path, path) as server:
        yield server


def configuration() -> str:
    [block] = blocks(DOCS / "how-to" / "deploy.md", "nginx")
    return block.code


async def test_nginx_passes_a_websocket_on(told: Server, tmp_path: Path) -> None:
    with Nginx(configuration(), told, tmp_path) as proxy:
        headers = [("origin", f"http://{proxy.host}")]
        async with connect(proxy.url, headers=headers) as client:
            assert await client.receive_json() == [proxy.url, "127.0.0.1"]
        with pytest.raises(Refused) as refused:
            async with connect(proxy.url, headers=[("origin", "https://evil.example")]):
                pass
        assert refused.value.status == 403


async def test_nginx_tells_of_the_client_and_of_tls(told: Server, tmp_path: Path) -> None:
    # As if nginx did TLS: then its $scheme is https.
    as_if = configuration().replace("$scheme", "https")
    with Nginx(as_if, told, tmp_path) as proxy:
        async with connect(proxy.url, headers=[("x-forwarded-for", "192.0.2.7")]) as client:
            url, host = await client.receive_json()
    assert url == proxy.url.replace("ws://", "wss://")
    assert host == "192.0.2.7"


@pytest.mark.parametrize(
    ("line", "status"),
    [("proxy_set_header Host ", 403), ("proxy_set_header Upgrade ", 404)],
)
async def test_nginx_without_a_line(line: str, status: int, told: Server, tmp_path: Path) -> None:
    without, count = re.subn(rf"^ *{line}.*\n", "", configuration(), flags=re.MULTILINE)
    assert count == 1
    with Nginx(without, told, tmp_path) as proxy, pytest.raises(Refused) as refused:
        async with connect(proxy.url, headers=[("origin", f"http://{proxy.host}")]):
            pass
    assert refused.value.status == status
