"""What comes together on one connection: a loss and a wait, a close and a send, two of a kind."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from scripted import Clock, PeerGoneError, ScriptedServer, idle
from yaat.exceptions import UsageError, WebSocketDisconnect
from yaat.lifecycle import RECEIVE
from yaat.policy import Policy
from yaat.websockets import PATIENCE, WebSocket, WebSocketState

TINY = Policy(close_timeout=0.03, read_ahead=300)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """By which a WebSocket knows how long there was no word of its peer."""
    clock = Clock()
    monkeypatch.setattr("yaat.websockets.monotonic", clock)
    return clock


@asynccontextmanager
async def accepted(**keys: object) -> AsyncIterator[tuple[ScriptedServer, WebSocket]]:
    server = ScriptedServer(**{"yaat.policy": TINY, **keys})
    websocket = server.websocket()
    async with websocket:
        await websocket.accept()
        server.sent.clear()
        yield server, websocket
    assert server.most_pending == 1


async def lost_code(work: asyncio.Task[object]) -> int:
    with pytest.raises(WebSocketDisconnect) as error:
        await work
    return error.value.code


# The peer leaves


async def test_the_server_is_asked_nothing_after_a_receiver_beside_a_watcher_was_told() -> None:
    async with accepted() as (server, websocket):
        server.after_disconnect = "repeat"
        receiving = asyncio.create_task(websocket.receive_text())
        await idle()
        waiting = asyncio.create_task(websocket.wait_closed())
        await idle()
        server.leave(4001)
        assert await lost_code(receiving) == 4001
        await waiting
        await idle()
        assert len(server.given) == 2


async def test_a_failed_send_and_the_disconnect_in_one_moment() -> None:
    """The read-ahead brings the disconnect while the send still asks for the reason."""
    async with accepted() as (server, websocket):
        await websocket.send_text("nobody has listened yet")
        waiting = asyncio.create_task(websocket.wait_closed())
        await idle()
        server.failure = PeerGoneError
        sending = asyncio.create_task(websocket.send_text("a"))
        await idle(2)
        server.leave(4001, "bye")
        assert await lost_code(sending) == 4001
        await waiting
        assert (websocket.close_code, websocket.close_reason) == (4001, "bye")


async def test_an_accept_that_fails_learns_why() -> None:
    server = ScriptedServer()
    websocket = server.websocket()
    assert (await websocket.receive())["type"] == "websocket.connect"
    server.leave(1001)
    assert await lost_code(asyncio.create_task(websocket.accept())) == 1001
    assert websocket.client_state is WebSocketState.DISCONNECTED


@pytest.mark.parametrize("connect", ["before", "after"])
async def test_a_loss_while_the_handshake_was_thought_over_is_found_by_the_first_send(
    clock: Clock, connect: str
) -> None:
    server = ScriptedServer()
    server.after_loss = "swallow"
    websocket = server.websocket()
    if connect == "before":
        assert (await websocket.receive())["type"] == "websocket.connect"
    server.leave(1001)
    clock.now += 1.0
    async with websocket:
        await websocket.accept()
        assert await lost_code(asyncio.create_task(websocket.send_text("a"))) == 1001
    assert server.texts == []


async def test_no_send_takes_the_short_way_once_the_loss_is_known() -> None:
    """A message that was in flight is word of the peer, but no sign that it is still there."""
    async with accepted() as (server, websocket):
        receiving = asyncio.create_task(websocket.receive_text())
        await idle()
        server.failure = PeerGoneError
        with pytest.raises(WebSocketDisconnect):
            await websocket.send_text("a")
        server.failure = None
        server.text("in flight")
        assert await receiving == "in flight"
        with pytest.raises(WebSocketDisconnect):
            await websocket.send_text("b")
        assert server.texts == []


async def test_what_has_come_in_is_there_however_late_it_is_received() -> None:
    async with accepted() as (server, websocket):
        server.suspends = True
        server.text("a", "b", "c")
        server.leave()
        with pytest.raises(WebSocketDisconnect):
            await websocket.send_text("d")
        await asyncio.sleep(2 * TINY.close_timeout)
        assert [text async for text in websocket.iter_text()] == ["a", "b", "c"]


async def test_who_waits_for_the_end_is_told_beside_receivers_that_take_turns() -> None:
    async with accepted() as (server, websocket):
        receivers = [asyncio.create_task(websocket.receive_text()) for _ in range(2)]
        await idle()
        waiting = asyncio.create_task(websocket.wait_closed())
        await idle()
        server.text("a", "b")
        assert await asyncio.gather(*receivers) == ["a", "b"]
        server.leave()
        async with asyncio.timeout(1):
            await waiting


# We close


async def test_who_waits_for_the_end_waits_no_longer_than_a_close_may_take() -> None:
    """Though what the peer has sent leaves no room to read its end, and there is none."""
    async with accepted() as (server, websocket):
        server.answers_close = False
        waiting = asyncio.create_task(websocket.wait_closed())
        server.text("x" * 1000, "y")
        await idle()
        await websocket.close()
        async with asyncio.timeout(1):
            await waiting
        assert await websocket.receive_text() == "x" * 1000


async def test_who_begins_to_wait_after_a_close_does_so_too() -> None:
    async with accepted() as (server, websocket):
        server.answers_close = False
        await websocket.close(4001)
        async with asyncio.timeout(1):
            await websocket.wait_closed()
            await websocket.wait_closed()
        assert websocket.close_code == 4001


async def test_a_close_that_is_stuck_behind_a_send() -> None:
    async with accepted() as (server, websocket):
        server.gate.clear()
        sending = asyncio.create_task(websocket.send_text("a"))
        await idle()
        await websocket.close(4001, "enough")
        assert (websocket.close_code, websocket.close_reason) == (4001, "enough")
        assert websocket.application_state is WebSocketState.DISCONNECTED
        async with asyncio.timeout(1):
            with pytest.raises(WebSocketDisconnect):
                await websocket.receive_text()
        sending.cancel()
        with suppress(asyncio.CancelledError, WebSocketDisconnect):
            await sending
        assert server.sent == []


async def test_a_denial_that_the_peer_does_not_take_is_bounded() -> None:
    server = ScriptedServer(**{"yaat.policy": TINY})
    websocket = server.websocket()
    await websocket.send({"type": "websocket.http.response.start", "status": 401})
    server.gate.clear()
    async with asyncio.timeout(1):
        with pytest.raises(WebSocketDisconnect):
            await websocket.send({"type": "websocket.http.response.body", "body": b"no"})
    assert websocket.client_state is WebSocketState.DISCONNECTED


# Two of a kind


@pytest.mark.parametrize("first", ["accept", "wait_closed"])
async def test_two_that_need_the_connect_take_no_message_for_it(first: str) -> None:
    server = ScriptedServer()
    server.suspends = True
    websocket = server.websocket()
    async with websocket:
        calls: list[Coroutine[Any, Any, Any]] = [websocket.accept(), websocket.wait_closed()]
        if first == "wait_closed":
            calls.reverse()
        tasks = [asyncio.create_task(call) for call in calls]
        await idle()
        server.text("a")
        assert await websocket.receive_text() == "a"
        server.leave()
        await asyncio.gather(*tasks)


async def test_a_watcher_that_leaves_takes_nothing_from_the_next() -> None:
    async with accepted() as (server, websocket):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await websocket.wait_closed()
        server.text("a")
        await idle()
        assert await websocket.receive_text() == "a"
        receiving = asyncio.create_task(websocket.receive_text())
        await idle()
        assert server.pending == 1
        server.text("b")
        assert await receiving == "b"
        assert server.pending == 0
        assert server.cancelled == 0


async def test_work_that_has_ended_watches_no_longer() -> None:
    async with accepted() as (server, websocket):
        await websocket.start_soon(idle)
        server.text("a")
        assert await websocket.receive_text() == "a"
        await idle()
        assert server.pending == 0


async def test_a_message_of_no_kind_is_not_taken_for_one() -> None:
    async with accepted() as (server, websocket):
        waiting = asyncio.create_task(websocket.wait_closed())
        server.bring({"type": RECEIVE, "text": None, "bytes": None})
        server.leave()
        await waiting
        with pytest.raises(UsageError, match="neither"):
            await websocket.receive_data()
        with pytest.raises(WebSocketDisconnect):
            await websocket.receive_data()


async def test_a_look_takes_no_message_away(clock: Clock) -> None:
    async with accepted() as (server, websocket):
        for number in range(3):
            clock.now += 2 * PATIENCE
            server.text(str(number))
            await websocket.send_text("look")
        assert [await websocket.receive_text() for _ in range(3)] == ["0", "1", "2"]
        assert server.cancelled == 0
