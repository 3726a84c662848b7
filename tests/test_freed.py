"""A connection is freed with its last reference, whatever has happened on it.

Nothing of it waits for the garbage collector: a million connections are no work for it.
"""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from scripted import PeerGoneError, ScriptedServer
from yaat.endpoint import Endpoint
from yaat.exceptions import HTTPException, Refused, WebSocketDisconnect, WebSocketException
from yaat.policy import Policy
from yaat.websockets import PATIENCE, WebSocket

HANDLERS: list[Callable[[WebSocket, ScriptedServer], Awaitable[object]]] = []
LATER = PATIENCE * 1.2


def handler(
    function: Callable[[WebSocket, ScriptedServer], Awaitable[object]],
) -> Callable[[WebSocket, ScriptedServer], Awaitable[object]]:
    HANDLERS.append(function)
    return function


async def fails() -> None:
    raise LookupError("of a task")


async def for_ever() -> None:
    await asyncio.Event().wait()


@handler
async def answers(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


@handler
async def only_sends(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    for __ in range(3):
        await asyncio.sleep(LATER)
        await websocket.send_text("a")


@handler
async def streams(websocket: WebSocket, _: ScriptedServer) -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"

    await websocket.accept()
    await websocket.stream(source())


@handler
async def streams_what_fails(websocket: WebSocket, _: ScriptedServer) -> None:
    async def source() -> AsyncIterator[str]:
        yield "a"
        await fails()

    await websocket.accept()
    await websocket.stream(source())


@handler
async def begins_work(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    websocket.start_soon(for_ever)
    await asyncio.sleep(0.001)


@handler
async def begins_work_at_once(websocket: WebSocket, _: ScriptedServer) -> None:
    websocket.start_soon(for_ever)


@handler
async def begins_work_that_fails(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    websocket.start_soon(fails)
    await for_ever()


@handler
async def begins_work_that_fails_at_the_end(websocket: WebSocket, _: ScriptedServer) -> None:
    async def cleans_up() -> None:
        try:
            await for_ever()
        finally:
            await fails()

    await websocket.accept()
    websocket.start_soon(cleans_up)
    await asyncio.sleep(0.001)


@handler
async def begins_work_that_receives(websocket: WebSocket, _: ScriptedServer) -> None:
    async def receives() -> None:
        async for __ in websocket.iter_text():
            pass

    await websocket.accept()
    websocket.start_soon(receives)
    await asyncio.sleep(0.001)


@handler
async def begins_a_send_that_is_stuck(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.gate.clear()
    await asyncio.sleep(LATER)
    websocket.start_soon(websocket.send_text, "a")
    await asyncio.sleep(0.001)


@handler
async def is_a_scope_in_a_scope(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    async with websocket:
        websocket.start_soon(for_ever)
    websocket.start_soon(for_ever)


@handler
async def waits_no_longer(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    await websocket.receive_text()
    for wait in (websocket.receive_text, websocket.wait_closed):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await wait()


@handler
async def receives_to_the_end(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.leave()
    while True:
        await websocket.receive_text()


@handler
async def waits_for_the_end(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.leave()
    websocket.start_soon(for_ever)
    await websocket.wait_closed()


@handler
async def sends_to_the_end(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.after_loss = "swallow"
    server.leave()
    while True:
        await asyncio.sleep(LATER)
        await websocket.send_text("a")


@handler
async def finds_the_peer_gone(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.failure = PeerGoneError
    await websocket.send_text("a")


@handler
async def finds_the_peer_gone_later(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    await asyncio.sleep(LATER)
    await websocket.send_text("a")
    server.failure = PeerGoneError
    with pytest.raises(WebSocketDisconnect):
        await websocket.send_text("a")


@handler
async def cannot_close(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.failure = LookupError


@handler
async def closes_in_vain(websocket: WebSocket, server: ScriptedServer) -> None:
    await websocket.accept()
    server.gate.clear()


@handler
async def closes_with_what_cannot_be(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    raise WebSocketException(999)


@handler
async def refuses(_: WebSocket, __: ScriptedServer) -> None:
    raise Refused("no", headers={"x-why": "not today"})


@handler
async def denies(_: WebSocket, __: ScriptedServer) -> None:
    raise HTTPException(401)


@handler
async def fails_later(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    await asyncio.sleep(LATER)
    await websocket.send_text("a")
    await fails()


@handler
async def awaits_what_was_cancelled(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    task = asyncio.create_task(for_ever())
    task.cancel()
    await task


@handler
async def is_cancelled(websocket: WebSocket, _: ScriptedServer) -> None:
    await websocket.accept()
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    del task
    await for_ever()


@pytest.fixture
def no_collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What captures the log keeps tracebacks, and those keep frames.
    monkeypatch.setattr(logging.getLogger("yaat.error"), "disabled", True)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("play", HANDLERS, ids=lambda function: function.__name__)
async def test_it_is_freed_and_nothing_is_left_running(
    play: Callable[[WebSocket, ScriptedServer], Awaitable[object]],
) -> None:
    server = ScriptedServer(**{"yaat.policy": Policy(close_timeout=0.02)})
    server.text("hello")
    seen: list[weakref.ref[WebSocket]] = []

    async def handler(websocket: WebSocket) -> None:
        seen.append(weakref.ref(websocket))
        await play(websocket, server)

    others = asyncio.all_tasks()
    task = asyncio.create_task(Endpoint(handler)(server.scope, server.receive, server.send))
    await asyncio.wait((task,))
    # What the server raises instead of closing it gets back; a cancellation is the server's own.
    assert task.cancelled() or isinstance(task.exception(), LookupError | None)
    del task
    assert seen[0]() is None
    assert asyncio.all_tasks() == others
