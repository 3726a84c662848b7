"""The page on notifications: who publishes from another process is heard by those who watch."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from clients import Client, connect
from documents import DOCS, commands, write
from redis_servers import RedisServer
from running import run_once
from servers import Server, ServerSpec, yaat_run

NOTIFY = DOCS / "how-to" / "notify.md"
WORKERS = ServerSpec("shop", yaat_run("asyncio")).but("--workers", "2")
# What serves a WSGI application in as many forks as are asked for, each for one request.
FORKING = """
import os
import socketserver
import sys
from wsgiref.simple_server import WSGIServer, make_server

from accounts import application, broker

if sys.argv[2] == "used":
    broker.channel("orders").history()


class Forking(socketserver.ForkingMixIn, WSGIServer):
    pass


make_server("127.0.0.1", int(sys.argv[1]), application, Forking).serve_forever()
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A broker, and where the programs of the page are."""
    write(NOTIFY, tmp_path)
    (tmp_path / "forking.py").write_text(FORKING)
    with RedisServer() as server:
        yield {"BROKER": server.url(), "PYTHONPATH": str(tmp_path)}


@pytest.fixture
def shop(environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with Server(WORKERS, "shop:app", tmp_path, environment) as server:
        yield server


async def heard(client: Client) -> Any:
    message = await client.receive_json()
    return message.get("data", "the place")


async def test_it_is_heard_from_a_shell_and_from_a_program(
    shop: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    [words] = [words for words in commands(NOTIFY) if words[0] == "yaat"]
    program = [sys.executable, str(tmp_path / "ships.py")]
    async with connect(shop.url("/orders")) as one, connect(shop.url("/orders")) as other:
        for client in (one, other):
            assert await heard(client) == "the place"
        asked = await asyncio.to_thread(run_once, *words[1:], environment=environment, cwd=tmp_path)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert [await heard(client) for client in (one, other)] == [{"checked": True}] * 2
        for _ in range(2):  # the second time it has been published already
            ran = await asyncio.to_thread(
                subprocess.run,
                program,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("2-")
        assert [await heard(client) for client in (one, other)] == [{"shipped": 7}] * 2
    async with connect(shop.url(f"/orders?since={asked.stdout.strip()}")) as client:
        assert [await heard(client) for _ in range(2)] == [{"shipped": 7}, "the place"]


@pytest.mark.parametrize("before", ["used", "unused"])
async def test_it_is_heard_from_the_children_of_a_wsgi_server(
    before: str, shop: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    with Forked(environment, tmp_path, before) as forked:
        async with connect(shop.url("/orders")) as client, httpx2.AsyncClient() as http:
            assert await heard(client) == "the place"
            for number in range(3):
                answer = await http.get(f"http://127.0.0.1:{forked.port}/?{number}")
                assert answer.status_code == 204
                assert await heard(client) == {"paid": str(number)}


class Forked(Server):
    """A WSGI server that forks for each request."""

    def __init__(self, environment: dict[str, str], directory: Path, before: str) -> None:
        def arguments(_: str, port: int) -> list[str]:
            return ["forking", str(port), before]

        (directory / "wsgi").mkdir()
        super().__init__(ServerSpec("forked", arguments), "", directory / "wsgi", environment)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False
