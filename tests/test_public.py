"""What is public: names, signatures, and what importing them costs."""

import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import yaat
from yaat.app import Yaat
from yaat.routing import Router
from yaat.websockets import WebSocket

ROOT = Path(__file__).parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(yaat.__path__, "yaat."))
MODULES.remove("yaat.__main__")  # to import it is to run it


def test_what_is_exported_is_exactly_what_is_there() -> None:
    there = {
        name
        for name, value in vars(yaat).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert there == set(yaat.__all__)
    assert yaat.__all__ == sorted(yaat.__all__, key=lambda name: (not name.isupper(), name))


def test_a_star_imports_it() -> None:
    names: dict[str, Any] = {}
    exec("from yaat import *", names)
    assert names.keys() - {"__builtins__"} == set(yaat.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_has_what_it_names(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public)


@pytest.mark.parametrize("name", yaat.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    value = getattr(yaat, name)
    if inspect.isfunction(value):
        assert value.__doc__
        return
    if not inspect.isclass(value):
        assert name.isupper(), "a class, a function or a constant"
        value = type(value)
    if value.__module__.startswith("yaat"):
        assert value.__doc__
        for method_name, method in vars(value).items():
            if not method_name.startswith("_") and inspect.isfunction(method):
                assert inspect.getdoc(getattr(value, method_name)), f"{name}.{method_name}"


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaat.__version__ == project["version"] == importlib.metadata.version("yaat")


def test_it_is_typed() -> None:
    assert (ROOT / "src" / "yaat" / "py.typed").exists()


# The signatures that the page on WebSockets prints, called in the way it prints them.
SIGNATURES: list[tuple[Callable[..., Any], str]] = [
    (WebSocket, "scope, receive, send"),
    (WebSocket.accept, "self, subprotocol=None"),
    (WebSocket.send_text, "self, data"),
    (WebSocket.send_bytes, "self, data"),
    (WebSocket.send_json, "self, data, mode='text'"),
    (WebSocket.receive_text, "self"),
    (WebSocket.receive_bytes, "self"),
    (WebSocket.receive_json, "self, mode='text'"),
    (WebSocket.send, "self, message"),
    (WebSocket.receive, "self"),
    (WebSocket.close, "self, code=1000"),
    (Yaat.websocket_route, "self, path"),
    (Router.websocket_route, "self, path"),
]


@pytest.mark.parametrize(("function", "printed"), SIGNATURES)
def test_the_signatures_begin_as_they_are_printed(
    function: Callable[..., Any], printed: str
) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    expected = printed.split(", ")
    for parameter, text in zip(parameters, expected, strict=False):
        assert str(parameter.replace(annotation=parameter.empty)) == text
    for parameter in parameters[len(expected) :]:
        assert parameter.default is not parameter.empty, "what the page does not say is optional"


def test_what_is_an_extra_is_imported_only_when_it_is_used() -> None:
    """Neither the test client nor what only some applications need, nor any server."""
    script = "import sys, yaat; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert {"yaat", "starlette", "msgspec"} <= loaded
    unwanted = {"httpx2", "jinja2", "itsdangerous", "uvicorn", "pytest"}
    assert not unwanted & loaded
    assert "yaat.testing" not in run.stdout.split()
    assert "yaat.brokers.memory" not in run.stdout.split(), "a URL chooses a broker"
    assert "yaat.templating" not in run.stdout.split()


def test_it_needs_no_asserts() -> None:
    """`python -O` removes them: what a user can do wrong is an error of its own all the same."""
    script = """
import asyncio, yaat
from yaat.routing import Router
for wrong in (
    lambda: yaat.WebSocket({"type": "http"}, None, None),
    lambda: yaat.Request({"type": "websocket"}),
    lambda: Router().add_route("/{a:nonsense}", lambda request: None),
    lambda: Router().add_websocket_route("/{a:nonsense}", wrong_handler),
    lambda: Router().mount("/x"),
    lambda: yaat.Policy(read_ahead=0),
    lambda: yaat.ChannelOptions(ttl=0),
    lambda: yaat.Channels({"{": yaat.ChannelOptions()}),
    lambda: yaat.Yaat(broker="nowhere://"),
):
    try:
        wrong()
    except yaat.UsageError:
        print("refused")
"""
    script = "async def wrong_handler(websocket): ...\n" + script
    run = subprocess.run(
        [sys.executable, "-O", "-c", script], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["refused"] * 9, run.stderr
