"""The files of a directory."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles as StarletteFiles

from yaat.exceptions import UsageError
from yaat.staticfiles import StaticFiles
from yaat.types import Message


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "logo.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text("<h1>home</h1>")
    return tmp_path


@pytest.fixture
async def client(directory: Path) -> AsyncIterator[httpx2.AsyncClient]:
    app = Starlette(
        routes=[
            Mount("/static", StaticFiles(directory)),
            Mount("/", StaticFiles(directory=str(directory), html=True)),
        ]
    )
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


async def test_it_serves_files(client: httpx2.AsyncClient) -> None:
    response = await client.get("/static/logo.svg")
    assert (response.status_code, response.text) == (200, "<svg/>")
    assert response.headers["content-type"] == "image/svg+xml"
    assert (await client.get("/static/none.svg")).status_code == 404
    assert (await client.get("/static/")).status_code == 404
    assert (await client.post("/static/logo.svg")).status_code == 405


async def test_it_serves_an_index(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/")).text == "<h1>home</h1>"


async def test_a_file_that_the_client_has_is_not_sent_again(client: httpx2.AsyncClient) -> None:
    etag = (await client.get("/static/logo.svg")).headers["etag"]
    again = await client.get("/static/logo.svg", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


def test_what_is_no_directory_is_refused(directory: Path) -> None:
    with pytest.raises(RuntimeError, match=r"logo\.svg' is not a directory"):
        StaticFiles(directory / "logo.svg")
    with pytest.raises(UsageError, match="is not a directory"):
        StaticFiles(str(directory / "none"))


def test_it_takes_what_starlettes_takes(directory: Path) -> None:
    unchecked = StaticFiles(directory / "none", check_dir=False, follow_symlink=True)
    assert isinstance(unchecked, StarletteFiles)
    assert unchecked.follow_symlink
    in_a_package = StaticFiles(packages=[("yaat", ".")])
    assert in_a_package.lookup_path("py.typed")[1] is not None


async def test_a_websocket_is_refused(directory: Path) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await StaticFiles(directory)({"type": "websocket", "path": "/logo.svg"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
