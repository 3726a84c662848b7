"""The package of the server: what it exports, and what it says without its extra."""

import importlib
import sys

import pytest

import yaat.server
from yaat.server import protocol, serving, settings


def test_the_public_names() -> None:
    assert yaat.server.WebSocketProtocol is protocol.WebSocketProtocol
    assert yaat.server.ServerSettings is settings.ServerSettings
    assert yaat.server.run is serving.run
    assert yaat.server.__all__ == ["ServerSettings", "WebSocketProtocol", "run"]


@pytest.mark.parametrize("missing", ["httptools", "uvicorn", "websockets"])
def test_without_the_extra_the_error_names_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("yaat.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*yaat\[server\]"):
        importlib.import_module("yaat.server")
