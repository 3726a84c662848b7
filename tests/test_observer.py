"""The observer: it is told of every turn a connection takes, and changes nothing."""

import inspect
import logging
from typing import Any

import pytest

from yaat.app import Yaat
from yaat.exceptions import Refused
from yaat.observer import Observer
from yaat.testing import HandshakeRefused
from yaat.types import Scope
from yaat.websockets import WebSocket

EVENTS: dict[str, tuple[Any, ...]] = {
    "opened": (),
    "refused": (403, "no"),
    "closed": (1000, "bye"),
    "failed": (ValueError("x"),),
    "dropped": ("room:1", "drop_oldest"),
    "cut": ("room:1",),
}


class Notes(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def opened(self, scope: Scope) -> None:
        self.seen.append(("opened", scope["path"]))

    def refused(self, scope: Scope, status: int, reason: str) -> None:
        self.seen.append(("refused", scope["path"], status, reason))

    def closed(self, scope: Scope, code: int, reason: str) -> None:
        self.seen.append(("closed", scope["path"], code, reason))

    def failed(self, scope: Scope, error: BaseException) -> None:
        self.seen.append(("failed", scope["path"], type(error).__name__))


class Clumsy(Observer):
    """Fails whenever it is told something."""

    def opened(self, scope: Scope) -> None:
        raise LookupError("opened")

    def closed(self, scope: Scope, code: int, reason: str) -> None:
        raise LookupError("closed")


def observed(*observers: Observer) -> Yaat:
    app = Yaat(observers=observers)

    @app.websocket_route("/greet")
    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close(4000, "that was all")

    @app.websocket_route("/refuse")
    async def refuse(websocket: WebSocket) -> None:
        raise Refused("no entry", status=401)

    @app.websocket_route("/fail")
    async def fail(websocket: WebSocket) -> None:
        await websocket.accept()
        raise LookupError("lost")

    return app


@pytest.mark.parametrize("event", EVENTS)
def test_it_does_nothing_by_itself(event: str) -> None:
    assert getattr(Observer(), event)({"type": "websocket"}, *EVENTS[event]) is None


def test_there_are_no_other_events() -> None:
    methods = inspect.getmembers(Observer, inspect.isfunction)
    assert {name for name, _ in methods} == set(EVENTS)
    assert not any(inspect.iscoroutinefunction(function) for _, function in methods)


async def test_it_is_told_how_each_connection_went() -> None:
    notes = Notes()
    client = observed(notes).test_client(raise_app_exceptions=False)
    async with client.websocket("/greet") as session:
        await session.receive_text()
    with pytest.raises(HandshakeRefused):
        await client.websocket("/refuse").__aenter__()
    async with client.websocket("/fail"):
        pass
    assert notes.seen == [
        ("opened", "/greet"),
        ("closed", "/greet", 4000, "that was all"),
        ("opened", "/refuse"),
        ("refused", "/refuse", 401, "no entry"),
        ("opened", "/fail"),
        ("failed", "/fail", "LookupError"),
        ("closed", "/fail", 1011, ""),
    ]


async def test_what_it_raises_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes = Notes()
    client = observed(Clumsy(), notes).test_client()
    async with client.websocket("/greet") as session:
        assert await session.receive_text() == "hello"
    assert [event for event, *_ in notes.seen] == ["opened", "closed"]
    assert [record.name for record in caplog.records] == ["yaat.error", "yaat.error"]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
    assert "opened()" in caplog.records[0].getMessage()
    assert "closed()" in caplog.records[1].getMessage()
