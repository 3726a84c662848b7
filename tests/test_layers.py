"""The contracts on who may import whom: kept, and broken by what is to break them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def linted(folder: Path) -> tuple[int, str]:
    """Run the contracts over the package in a folder; return the exit status and the output."""
    run = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--config", ROOT / "pyproject.toml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def test_the_contracts_are_kept() -> None:
    status, output = linted(ROOT / "src")
    assert status == 0, output
    assert "0 broken" in output


# Under TYPE_CHECKING and inside of a function an import is an import.
HIDDEN = "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n"
LOCAL = "\ndef local():\n    {}\n"

WRONG = [
    ("exceptions", "{}\n", "import yaat.constants", "yaat.constants"),
    ("types", HIDDEN, "from yaat.policy import Policy", "yaat.policy"),
    ("constants", "{}\n", "import yaat.lifecycle", "yaat.lifecycle"),
    ("lifecycle", LOCAL, "from yaat import websockets", "yaat.websockets"),
    ("policy", "{}\n", "import yaat.observer", "yaat.observer"),
    ("observer", HIDDEN, "from starlette.types import Scope", "starlette"),
    ("handshake", LOCAL, "import msgspec", "msgspec"),
    ("readahead", "{}\n", "import yaat.background", "yaat.background"),
    ("requests", "{}\n", "import yaat.responses", "yaat.responses"),
    ("websockets", HIDDEN, "from yaat.endpoint import Endpoint", "yaat.endpoint"),
    ("endpoint", LOCAL, "from yaat.routing import Router", "yaat.routing"),
    ("routing", LOCAL, "import yaat.app", "yaat.app"),
    ("app", LOCAL, "import uvicorn", "uvicorn"),
    ("turns", LOCAL, "import anyio", "anyio"),
    ("responses", LOCAL, "import jinja2", "jinja2"),
    ("middleware", LOCAL, "import httpx2", "httpx2"),
    ("testing", HIDDEN, "from yaat.app import Yaat", "yaat.app"),
    ("testing", LOCAL, "from yaat.requests import Request", "yaat.requests"),
    ("testing", LOCAL, "import yaat.turns", "yaat.turns"),
    ("testing", LOCAL, "import starlette.testclient", "starlette"),
    ("frames", HIDDEN, "from yaat.websockets import WebSocket", "yaat.websockets"),
    ("frames", LOCAL, "import yaat.server.codec", "yaat.server.codec"),
    ("websockets", LOCAL, "from yaat.server.wire import Wire", "yaat.server.wire"),
    ("app", HIDDEN, "from yaat.server import ServerSettings", "yaat.server"),
    ("app", LOCAL, "import yaat.cli", "yaat.cli"),
    ("cli", LOCAL, "import uvicorn", "uvicorn"),
    ("cli", HIDDEN, "import yaat.__main__", "yaat.__main__"),
    ("server.protocol", HIDDEN, "from yaat.websockets import WebSocket", "yaat.websockets"),
    ("server.serving", LOCAL, "from yaat.app import Yaat", "yaat.app"),
    ("server.http", LOCAL, "from starlette.types import Scope", "starlette"),
    ("server.serving", LOCAL, "import websockets", "websockets"),
    ("server.settings", LOCAL, "import uvicorn", "uvicorn"),
    ("server.admission", HIDDEN, "import uvicorn", "uvicorn"),
    ("server.codec", LOCAL, "import uvicorn", "uvicorn"),
    ("server.opening", HIDDEN, "import yaat.server.settings", "yaat.server.settings"),
    ("server.settings", LOCAL, "import yaat.server.protocol", "yaat.server.protocol"),
    ("server.deflate", HIDDEN, "import yaat.server.codec", "yaat.server.codec"),
    ("server.codec", LOCAL, "import yaat.server.protocol", "yaat.server.protocol"),
    ("server.admission", LOCAL, "import yaat.server.http", "yaat.server.http"),
    ("server.protocol", LOCAL, "import yaat.server.http", "yaat.server.http"),
    ("server.codec", HIDDEN, "import yaat.server.admission", "yaat.server.admission"),
    ("server.http", HIDDEN, "import yaat.server.serving", "yaat.server.serving"),
]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is said of a copy in which everything is wrong at once."""
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(ROOT / "src" / "yaat", folder / "yaat")
    for module, place, line, _ in WRONG:
        path = folder / "yaat" / f"{module.replace('.', '/')}.py"
        path.write_text(path.read_text() + place.format(line))
    status, output = linted(folder)
    assert status == 1, output
    return output


@pytest.mark.parametrize(("module", "place", "line", "imported"), WRONG)
def test_an_import_that_is_not_allowed(
    spoilt: str, module: str, place: str, line: str, imported: str
) -> None:
    assert f"yaat.{module} -> {imported} " in spoilt, line + place


@pytest.mark.parametrize("room", ["yaat", "yaat/server"])
def test_a_module_needs_a_place(room: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "yaat", tmp_path / "yaat")
    (tmp_path / room / "newcomer.py").write_text("")
    status, output = linted(tmp_path)
    assert status != 0
    assert "newcomer" in output
