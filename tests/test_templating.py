"""Jinja2 templates, in the shapes of 2020 and of Starlette."""

import importlib
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yaat.templating import Jinja2Template, Jinja2Templates


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "hello.html").write_text("Hello {{ name }}!")
    (tmp_path / "hello.jinja").write_text("Hello {{ name }}, {{ note|safe }}")
    (tmp_path / "where.html").write_text("{{ url_for('home') }} {{ request.method }} {{ extra }}")
    return tmp_path


@pytest.fixture
def request_() -> Request:
    async def home(_: Request) -> Response:
        return Response()

    app = Starlette(routes=[Route("/home", home)])
    headers = [(b"host", b"example.com")]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers, "app": app})


def test_the_name_and_the_context_are_enough(directory: Path) -> None:
    response = Jinja2Template(directory).TemplateResponse("hello.html", {"name": "you"})
    assert response.body == b"Hello you!"
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_the_context_may_be_left_out(directory: Path) -> None:
    assert Jinja2Template(str(directory)).TemplateResponse("hello.html").body == b"Hello !"


def test_everything_else_of_the_response_may_be_given(directory: Path) -> None:
    task = BackgroundTask(int)
    response = Jinja2Template(directory).TemplateResponse(
        "hello.html", {"name": "you"}, 404, {"x-tag": "1"}, media_type="text/plain", background=task
    )
    assert response.status_code == 404
    assert response.headers["x-tag"] == "1"
    assert response.headers["content-type"].startswith("text/plain")
    assert response.background is task


@pytest.mark.parametrize("name", ["hello.html", "hello.jinja"])
def test_values_are_escaped_whatever_the_name(directory: Path, name: str) -> None:
    context = {"name": "<script>", "note": "<b>"}
    body = bytes(Jinja2Template(directory).TemplateResponse(name, context).body)
    assert b"Hello &lt;script&gt;" in body
    assert b"&lt;b&gt;" not in body


def extra(request: Request) -> dict[str, Any]:
    return {"extra": request.url.path}


def test_a_request_comes_first_as_in_starlette(directory: Path, request_: Request) -> None:
    templates = Jinja2Templates([directory], context_processors=[extra])
    expected = b"http://example.com/home GET /"
    assert templates.TemplateResponse(request_, "where.html").body == expected
    assert templates.TemplateResponse(request=request_, name="where.html").body == expected
    context = {"request": request_}
    assert templates.TemplateResponse("where.html", context, 201).body == expected
    assert context == {"request": request_}


def test_an_environment_of_ones_own_decides_what_is_escaped() -> None:
    env = jinja2.Environment(loader=jinja2.DictLoader({"a": "{{ b }}"}))
    response = Jinja2Template(env=env).TemplateResponse("a", {"b": "<b>"})
    assert response.body == b"<b>"


def test_there_must_be_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        Jinja2Template(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        Jinja2Template([tmp_path, str(tmp_path / "none")])
    with pytest.raises(TypeError, match="directory"):
        Jinja2Template()


def test_without_jinja2_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "starlette.templating")
    monkeypatch.delitem(sys.modules, "yaat.templating")
    with pytest.raises(ImportError, match=r"yaat\[templates\]"):
        importlib.import_module("yaat.templating")
