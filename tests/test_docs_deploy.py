"""The commands that start servers, as the documents print them."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from clients import connect
from documents import DOCS, ROOT, commands, pages, write
from servers import Server, ServerSpec

OTHERS = ("uvicorn", "hypercorn", "granian", "daphne")
SERVERS = ("yaat", *OTHERS)
# Each of these has a file of tests that bears its name.
APART = {"nginx", "restart", "systemd", "containers", "limits", "tls", "wire", "scale"}
STARTS = [
    (page, words)
    for page in pages()
    if page.stem not in APART
    for words in commands(page)
    if words[0] in SERVERS and words[1] != "publish"
]


def test_every_server_is_told_how_to_start() -> None:
    told = [words[0] for page, words in STARTS if page.stem == "deploy"]
    assert told == list(SERVERS)
    readme = {words[0] for page, words in STARTS if page.stem == "README"}
    assert readme >= set(OTHERS)


def test_pages_apart_have_tests_of_their_own() -> None:
    assert all((ROOT / "tests" / f"test_docs_{page}.py").exists() for page in APART)


@pytest.mark.parametrize(
    ("page", "words"), STARTS, ids=[f"{page.stem}-{words[0]}" for page, words in STARTS]
)
async def test_commands_serve_the_pages_program(
    page: Path, words: list[str], tmp_path: Path
) -> None:
    write(page, tmp_path)
    with Server(spec(words), application(words), tmp_path, {"PYTHONPATH": str(tmp_path)}) as server:
        if page.stem == "rooms":
            async with connect(server.url("/rooms/tea?name=Ada")) as client:
                await client.send_json({"text": "hello"})
                told: dict[str, Any] = {}
                while "data" not in told:  # until then it is told where it stands, and who is here
                    told = await client.receive_json()
                assert told["data"] == {"name": "Ada", "text": "hello"}
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


async def test_how_to_see_that_it_works(tmp_path: Path) -> None:
    page = DOCS / "how-to" / "deploy.md"
    [(_, words)] = [start for start in STARTS if start[0] == page and start[1][0] == "yaat"]
    write(page, tmp_path)
    with Server(spec(words), "app:app", tmp_path, {"PYTHONPATH": str(tmp_path)}) as server:
        said = "python -m websockets ws://127.0.0.1:8000/echo"
        assert f"`{said}`" in page.read_text()
        await talk(said.replace("8000", str(server.port)))


async def talk(command: str) -> None:
    """Type a word into a client of the page, and see it come back."""
    client = await asyncio.create_subprocess_exec(
        sys.executable, *command.split()[1:], stdin=PIPE, stdout=PIPE
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(b"hello\n")
    async with asyncio.timeout(20):
        await client.stdout.readuntil(b"< hello")
        client.stdin.close()  # Ctrl-D
        await client.stdout.read()
    assert await client.wait() == 0
