"""The responses, each as a client gets it."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette import responses as starlette

from yaat.background import BackgroundTask
from yaat.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
    StreamResponse,
    TextResponse,
)
from yaat.types import ASGIApp, Message


async def answer(app: ASGIApp, method: str = "GET", **options: Any) -> httpx2.Response:
    """Return what a client gets that requests ``app``."""
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        return await client.request(method, "/", **options)


async def numbers() -> AsyncIterator[str]:
    for number in "123":
        yield number


@pytest.mark.parametrize(
    ("response", "content", "content_type"),
    [
        (Response(), b"", None),
        (Response(b"\x00", media_type="image/png"), b"\x00", "image/png"),
        (Response(memoryview(b"ab")), b"ab", None),
        (TextResponse("grüß"), "grüß".encode(), "text/plain; charset=utf-8"),
        (HTMLResponse("<p>"), b"<p>", "text/html; charset=utf-8"),
        (JSONResponse({"a": "ü"}), '{"a":"ü"}'.encode(), "application/json"),
        (JSONResponse(), b"null", "application/json"),
        (JSONResponse(content=None), b"null", "application/json"),
    ],
)
async def test_content_and_its_type(
    response: Response, content: bytes, content_type: str | None
) -> None:
    got = await answer(response)
    assert got.status_code == 200
    assert got.content == response.body == content
    assert got.headers.get("content-type") == content_type
    assert got.headers["content-length"] == str(len(content))


def test_they_are_starlettes() -> None:
    assert isinstance(TextResponse(), starlette.PlainTextResponse)
    assert isinstance(HTMLResponse(), starlette.HTMLResponse)
    assert isinstance(JSONResponse(), starlette.JSONResponse)
    assert isinstance(RedirectResponse("/"), starlette.RedirectResponse)
    assert isinstance(StreamResponse(numbers()), starlette.StreamingResponse)
    assert isinstance(FileResponse("a"), starlette.FileResponse)
    assert PlainTextResponse is TextResponse
    assert StreamingResponse is StreamResponse


async def test_the_status_headers_and_cookies() -> None:
    response = TextResponse("no", 404, {"X-One": "1", "X-Two": "2"}, "text/csv", None)
    response.headers["x-two"] = "two"
    response.set_cookie("a", "b", max_age=60, samesite="none", secure=True)
    response.delete_cookie("c")
    got = await answer(response)
    assert got.status_code == 404
    assert (got.headers["x-one"], got.headers["x-two"]) == ("1", "two")
    assert got.headers["content-type"] == "text/csv; charset=utf-8"
    assert dict(got.cookies) == {"a": "b"}


@pytest.mark.parametrize("body", [b"replaced", "replaced", memoryview(b"replaced")])
@pytest.mark.parametrize(
    "response", [Response("x"), TextResponse(), JSONResponse({"a": 1}), HTMLResponse("a" * 99)]
)
async def test_a_body_may_be_set_again(response: Response, body: Any) -> None:
    response.body = body
    got = await answer(response)
    assert got.content == response.body == b"replaced"
    assert got.headers["content-length"] == "8"


async def test_the_length_that_was_given_does_not_outlive_the_body() -> None:
    response = Response("12345", headers={"Content-Length": "5"})
    response.body = b"1"
    assert (await answer(response)).headers["content-length"] == "1"


@pytest.mark.parametrize("status", [199, 204, 304])
def test_no_length_is_added_where_none_may_be(status: int) -> None:
    response = Response(status_code=status)
    response.body = b""
    assert "content-length" not in response.headers


async def test_a_redirect() -> None:
    got = await answer(RedirectResponse("/a b"))
    assert (got.status_code, got.headers["location"]) == (307, "/a%20b")
    assert (await answer(RedirectResponse("/", 303))).status_code == 303


def letters() -> Iterator[bytes]:
    yield b"a"
    yield b"b"


async def test_a_stream() -> None:
    got = await answer(StreamResponse(numbers(), 201, {"x-tag": "1"}, "text/plain"))
    assert (got.status_code, got.text, got.headers["x-tag"]) == (201, "123", "1")
    assert "content-length" not in got.headers
    assert (await answer(StreamResponse(letters()))).content == b"ab"


async def test_a_stream_sends_each_piece_as_it_comes() -> None:
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))

    async def receive() -> Message:
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/", "asgi": {"spec_version": "2.4"}}
    await StreamResponse(numbers())(scope, receive, send)
    assert bodies == [b"", b"1", b"2", b"3", b""]


async def test_a_body_that_is_set_is_sent_in_place_of_the_stream() -> None:
    response = StreamResponse(numbers())
    assert not hasattr(response, "body")
    with pytest.raises(AttributeError, match="streamed"):
        response.body  # noqa: B018
    response.body = b"whole"
    got = await answer(response)
    assert (got.content, got.headers["content-length"]) == (b"whole", "5")


async def test_a_body_that_is_set_is_sent_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from the file")
    response = FileResponse(tmp_path / "a.txt", stat_result=(tmp_path / "a.txt").stat())
    response.body = "instead"
    assert (await answer(response)).text == "instead"


async def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"png")
    ran: list[str] = []
    task = BackgroundTask(ran.append, "after")
    got = await answer(FileResponse(str(path), 203, {"x-tag": "1"}, background=task))
    assert (got.status_code, got.content) == (203, b"png")
    assert (got.headers["content-type"], got.headers["x-tag"]) == ("image/png", "1")
    assert got.headers["content-length"] == "3"
    assert ran == ["after"]


async def test_a_file_to_be_saved_under_a_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1,2")
    got = await answer(FileResponse(tmp_path / "a", filename="table.csv", media_type="text/csv"))
    assert got.headers["content-disposition"] == 'attachment; filename="table.csv"'
    response = FileResponse(tmp_path / "a", filename="a", content_disposition_type="inline")
    assert (await answer(response)).headers["content-disposition"] == 'inline; filename="a"'


@pytest.mark.parametrize(("asked", "method"), [("HEAD", ""), ("GET", "head")])
async def test_the_headers_of_a_file_alone(tmp_path: Path, asked: str, method: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    got = await answer(FileResponse(tmp_path / "a.txt", method=method), asked)
    assert (got.content, got.headers["content-length"]) == (b"", "4")


async def test_a_file_that_is_not_there_is_a_404(tmp_path: Path) -> None:
    got = await answer(FileResponse(tmp_path / "none" / "a.txt"))
    assert (got.status_code, got.text) == (404, "file not found")
    assert got.headers["content-type"].startswith("text/plain")


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not a file"):
        await answer(FileResponse(tmp_path))
    assert os.fspath(FileResponse(tmp_path).path) == str(tmp_path)
