"""A state machine drives a `WebSocket` against a scripted server, in scripted time.

Each rule is something that the peer, the server or the application may do at any moment. Then
everybody does what there is to do, and all that the `WebSocket` promises has to hold.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scripted import PeerGoneError, ScriptedLoop, ScriptedServer
from yaat.exceptions import StateError, WebSocketDisconnect, WrongKindError
from yaat.lifecycle import ACCEPT, CLOSE, DISCONNECT, RECEIVE, RESPONSE_BODY, RESPONSE_START, SEND
from yaat.policy import Policy
from yaat.types import Message
from yaat.websockets import WebSocket, WebSocketState

POLICY = Policy(read_ahead=1000, close_timeout=10.0)
AT_LEAST = 100
"""No message costs less to hold, in bytes."""
AT_MOST = 400
"""No small message costs more."""

INSTANT = 1e-6
"""In scripted time it lasts until nobody has anything left to do."""

A_LOOK = 0.01
"""How long it may take to learn from the server why a send failed."""

NOTICED = 0.05
"""How long after a loss a send may still seem to succeed."""


class WatchedServer(ScriptedServer):
    """A server that notes what it was asked for, and when."""

    def __init__(self) -> None:
        super().__init__(**{"yaat.policy": POLICY})
        self.accepted = self.told = self.closed = self.denied = False
        self.raised_at: float | None = None
        self.sending = self.most_sending = 0
        self.asked_after_the_end = False
        self.late: list[Message] = []
        self.knows_of_loss: Callable[[], bool] = lambda: False

    async def receive(self) -> Message:
        self.asked_after_the_end = self.asked_after_the_end or self.told
        message = await super().receive()
        self.told = self.told or message["type"] == DISCONNECT
        return message

    async def send(self, message: Message) -> None:
        # A denial's two messages are one response.
        if self.knows_of_loss() and message["type"] != RESPONSE_BODY:
            self.late.append(message)
        self.sending += 1
        self.most_sending = max(self.most_sending, self.sending)
        try:
            await super().send(message)
        except PeerGoneError:
            self.raised_at = self.raised_at or asyncio.get_running_loop().time()
            raise
        finally:
            self.sending -= 1
            self.accepted = self.accepted or message["type"] == ACCEPT
            self.closed = self.closed or message["type"] == CLOSE
            self.denied = self.denied or message["type"] == RESPONSE_BODY


@dataclass
class Call:
    """What the application has begun; it may still be under way.

    Attributes:
        must_raise: The peer is known to have left, or has left long enough ago.
        takes_connect: It takes the server's `connect`, if nobody has.
    """

    name: str
    task: asyncio.Task[Any]
    must_raise: bool
    takes_connect: bool
    over_at: float | None = None

    @property
    def is_over(self) -> bool:
        return self.task.done()


class Connection(RuleBasedStateMachine):
    """A connection: its peer, its server, and an application of many tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=ScriptedLoop)
        self.loop = self.runner.get_loop()
        self.time = patch("yaat.websockets.monotonic", self.loop.time)
        self.time.start()
        self.server = WatchedServer()
        self.websocket: WebSocket = self.server.websocket()
        self.server.knows_of_loss = lambda: self.is_known_as_lost
        self.brought: list[bool] = []  # whether each message of the peer was a small one
        self.handed: list[int | None] = []
        self.sends = 0
        self.left_at: float | None = None
        self.calls: list[Call] = []
        self.children = 0
        self.may_cancel = 0
        self.at_once_with = 0
        self.over = asyncio.Event()
        self.handler = self.loop.create_task(self.handle())

    async def handle(self) -> None:
        async with self.websocket:
            await self.over.wait()

    def play(self, seconds: float = INSTANT) -> None:
        self.runner.run(asyncio.sleep(seconds))
        for call in self.calls:
            if call.is_over and call.over_at is None:
                call.over_at = self.loop.time()

    def call(
        self,
        name: str,
        work: Coroutine[Any, Any, Any],
        *,
        connects: bool = False,
        must_raise: bool = False,
    ) -> Call:
        task = self.loop.create_task(work)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        call = Call(name, task, must_raise, connects)
        self.calls.append(call)
        return call

    def count(self, *names: str) -> int:
        return sum(call.name in names for call in self.calls)

    def pending(self, *names: str) -> list[Call]:
        return [each for each in self.calls if each.name in names and not each.is_over]

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.time.stop()
            self.runner.close()

    # How this server is

    @initialize(
        after_loss=st.sampled_from(["raise", "swallow"]),
        after_disconnect=st.sampled_from(["hang", "repeat"]),
        answers_close=st.booleans(),
        suspends=st.booleans(),
        accept=st.sampled_from([True, True, False]),
    )
    def begin(
        self,
        after_loss: Literal["raise", "swallow"],
        after_disconnect: Literal["hang", "repeat"],
        answers_close: bool,  # noqa: FBT001
        suspends: bool,  # noqa: FBT001
        accept: bool,  # noqa: FBT001
    ) -> None:
        self.server.after_loss = after_loss
        self.server.after_disconnect = after_disconnect
        self.server.answers_close = answers_close
        self.server.suspends = suspends
        self.play()
        if accept:
            self.accept()

    # The peer and the server

    @property
    def is_lost_for_good(self) -> bool:
        """Whether nobody waits any longer for what the peer may still send."""
        since = self.server.raised_at
        return since is not None and self.loop.time() >= since + POLICY.close_timeout

    @precondition(lambda self: self.server.accepted and not self.server.has_left)
    @precondition(lambda self: not self.is_lost_for_good)
    @rule(size=st.sampled_from([0, 0, 0, 0, 2000]), text=st.booleans(), count=st.integers(1, 3))
    def the_peer_sends(self, size: int, text: bool, count: int) -> None:  # noqa: FBT001
        for _ in range(count):
            data = str(len(self.brought)).ljust(size)
            self.brought.append(size == 0)
            kind, value = ("text", data) if text else ("bytes", data.encode())
            self.server.bring({"type": RECEIVE, kind: value})

    @precondition(lambda self: not self.server.has_left)
    @rule(code=st.sampled_from([None, 1000, 1006, 4001]), seconds=st.sampled_from([0.0, 0.1]))
    def the_peer_leaves(self, code: int | None, seconds: float) -> None:
        self.left_at = self.loop.time()
        self.server.leave(code, None)
        self.server.gate.set()  # to whom nobody listens any more, nobody waits
        if seconds:
            self.play(seconds)

    @precondition(lambda self: self.server.accepted and not self.server.has_left)
    @rule()
    def the_way_to_the_peer_breaks(self) -> None:
        self.server.failure = PeerGoneError
        self.server.gate.set()

    @precondition(lambda self: self.server.gate.is_set() and not self.server.has_left)
    @rule()
    def the_peer_stops_reading(self) -> None:
        self.server.gate.clear()

    @precondition(lambda self: not self.server.gate.is_set())
    @rule()
    def the_peer_reads_again(self) -> None:
        self.server.gate.set()

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.1, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.play(seconds)

    # The application

    @precondition(lambda self: self.count("accept") < 2)
    @rule()
    def accept(self) -> None:
        self.call("accept", self.websocket.accept(), connects=True)

    @precondition(lambda self: self.count("close") < 2)
    @rule(code=st.sampled_from([1000, 4000]))
    def close(self, code: int) -> None:
        self.call("close", self.websocket.close(code), connects=True)

    @precondition(lambda self: not self.count("deny") and not self.server.accepted)
    @rule(parts=st.integers(1, 2))
    def deny(self, parts: int) -> None:
        async def work() -> None:
            await self.websocket.send({"type": RESPONSE_START, "status": 418, "headers": []})
            for part in range(parts):
                more = part + 1 < parts
                await self.websocket.send({"type": RESPONSE_BODY, "body": b"x", "more_body": more})

        self.call("deny", work(), connects=True)

    def numbered(self) -> str:
        self.sends += 1
        return str(self.sends)

    @property
    def can_be_read_ahead(self) -> bool:
        """Whether there is room for all that the peer has sent, and so for the end."""
        unread = self.brought[len(self.handed) :]
        has_room = all(unread) and len(unread) * AT_MOST < POLICY.read_ahead
        return has_room and self.has_lost_no_message

    @property
    def must_know(self) -> bool:
        """Whether a send has to know that the peer has left."""
        long_ago = self.left_at is not None and self.loop.time() > self.left_at + NOTICED
        return self.is_known_as_lost or (long_ago and self.can_be_read_ahead)

    @rule(how=st.sampled_from(["text", "bytes", "json", "raw"]))
    def send(self, how: str) -> None:
        ways: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "text": self.websocket.send_text,
            "bytes": lambda text: self.websocket.send_bytes(text.encode()),
            "json": lambda text: self.websocket.send_json(int(text)),
            "raw": lambda text: self.websocket.send({"type": SEND, "text": text}),
        }

        async def work() -> None:
            await ways[how](self.numbered())  # numbered when it is called, not when it is planned

        self.call("send", work(), connects=True, must_raise=self.must_know)

    @precondition(lambda self: len(self.pending("stream")) < 2)
    @rule(count=st.integers(0, 3), waits=st.booleans())
    def stream(self, count: int, waits: bool) -> None:  # noqa: FBT001
        async def source() -> AsyncIterator[str]:
            for _ in range(count):
                yield self.numbered()
            if waits:
                await asyncio.Event().wait()

        self.call("stream", self.websocket.stream(source()), connects=count > 0)

    @precondition(lambda self: len(self.pending("wait_closed")) < 2)
    @rule()
    def wait_closed(self) -> None:
        self.call("wait_closed", self.websocket.wait_closed(), connects=True)

    @precondition(lambda self: self.count("child") < 2)
    @rule()
    def start_a_child(self) -> None:
        async def child() -> None:
            self.children += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.children -= 1

        async def start() -> None:
            self.websocket.start_soon(child)

        self.call("child", start())

    @precondition(lambda self: len(self.pending("receive")) < 3)
    @rule(how=st.sampled_from(["text", "bytes", "data", "raw"]))
    def receive(self, how: str) -> None:
        receive: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "text": self.websocket.receive_text,
            "bytes": self.websocket.receive_bytes,
            "data": self.websocket.receive_data,
            "raw": self.receive_raw,
        }

        async def work() -> None:
            try:
                data = await receive[how]()
            except WrongKindError:
                self.handed.append(None)
            else:
                self.handed.append(int(data))

        self.call("receive", work(), connects=how == "raw")

    async def receive_raw(self) -> Any:
        message = await self.websocket.receive()
        while message["type"] not in (RECEIVE, DISCONNECT):
            message = await self.websocket.receive()
        if message["type"] == DISCONNECT:
            raise WebSocketDisconnect(message["code"])
        return message.get("text") or message["bytes"]

    @precondition(lambda self: any(not call.is_over for call in self.calls))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        pending = [call for call in self.calls if not call.is_over]
        call = data.draw(st.sampled_from(pending), label="the call to cancel")
        before = self.server.cancelled
        call.task.cancel()
        self.play()
        self.may_cancel += self.server.cancelled - before
        # A receive of the application may be the server's; whatever else waits is not.
        assert call.name == "receive" or self.server.cancelled == before or self.is_ending

    # What has to hold

    @rule(count=st.integers(1, 3))
    def at_once(self, count: int) -> None:
        """Let the next few rules be something that happens in the same moment."""
        self.at_once_with = count

    @invariant()
    def every_promise_is_kept(self) -> None:
        if self.at_once_with:
            self.at_once_with -= 1
            return
        self.play()
        if self.server.sending or self.server.raised_at is not None:
            self.play(A_LOOK)
        self.each_message_is_handed_over_once_and_in_order()
        self.the_server_is_used_as_it_should_be()
        self.what_is_sent_leaves_in_the_order_of_the_calls()
        self.nothing_is_sent_after_a_known_loss()
        self.errors_are_those_of_ordinary_life()
        self.no_more_is_read_ahead_than_the_policy_allows()
        self.what_follows_from_a_loss_has_followed()
        self.the_states_follow()

    def each_message_is_handed_over_once_and_in_order(self) -> None:
        for expected, number in enumerate(self.handed):
            assert number in (expected, None)
        assert len(self.handed) <= len(self.brought)

    def the_server_is_used_as_it_should_be(self) -> None:
        """One call at a time, no pending one cancelled, none after the end."""
        assert self.server.most_pending <= 1
        assert self.server.most_sending <= 1
        assert not self.server.asked_after_the_end
        assert self.server.cancelled == self.may_cancel or self.is_ending

    def what_is_sent_leaves_in_the_order_of_the_calls(self) -> None:
        numbers = [int(text) for text in self.server.texts]
        assert all(first < second for first, second in pairwise(numbers))

    def nothing_is_sent_after_a_known_loss(self) -> None:
        assert not self.server.late
        for call in self.calls:
            if call.must_raise and call.is_over and not call.task.cancelled():
                assert isinstance(call.task.exception(), (WebSocketDisconnect, StateError))

    def errors_are_those_of_ordinary_life(self) -> None:
        for call in self.calls:
            error = call.is_over and not call.task.cancelled() and call.task.exception()
            if error and not isinstance(error, (WebSocketDisconnect, StateError)):
                raise error

    def no_more_is_read_ahead_than_the_policy_allows(self) -> None:
        read = [each for each in self.server.given if each["type"] == RECEIVE]
        held = read[len(self.handed) :]
        sizes = [len(each.get("text") or each["bytes"]) + AT_LEAST for each in held]
        # Who waits for a message may have it in his hands.
        assert sum(sizes[1:-1]) < POLICY.read_ahead or not self.has_lost_no_message

    def what_follows_from_a_loss_has_followed(self) -> None:
        if self.server.told or self.server.raised_at is not None:
            assert self.websocket.client_state is WebSocketState.DISCONNECTED
            assert self.children == 0
            assert not self.pending("wait_closed", "stream") or self.server.sending
        if self.server.has_left and self.can_be_read_ahead:
            assert not self.pending("wait_closed") or self.server.sending
        closed = [each.over_at for each in self.calls if each.name == "close" and each.over_at]
        if closed and self.loop.time() > min(closed) + POLICY.close_timeout:
            assert not self.pending("wait_closed")

    def the_states_follow(self) -> None:
        server, websocket = self.server, self.websocket
        if not self.is_ending:
            done = [each for each in self.calls if not each.task.cancelled()]
            connected = any(each.takes_connect for each in done)
            expected = WebSocketState.CONNECTED if connected else WebSocketState.CONNECTING
            assert websocket.client_state is expected or len(done) < len(self.calls)
        if server.closed or server.denied:
            assert websocket.application_state is WebSocketState.DISCONNECTED
        elif server.accepted and not self.count("close", "deny"):
            assert websocket.application_state is WebSocketState.CONNECTED

    @property
    def is_known_as_lost(self) -> bool:
        return self.websocket.client_state is WebSocketState.DISCONNECTED

    @property
    def is_ending(self) -> bool:
        lost = self.server.told or self.server.raised_at is not None
        given_up = any(call.is_over for call in self.calls if call.name in ("close", "deny"))
        return lost or given_up or self.server.closed or self.server.denied

    @property
    def has_lost_no_message(self) -> bool:
        """A message may get lost with a receive that the application itself cancels."""
        return not any(call.task.cancelled() for call in self.calls if call.name == "receive")

    # The end

    def finish(self) -> None:
        """End it: nobody may be left waiting, nothing may have been lost."""
        self.server.gate.set()
        if not self.server.has_left:
            self.server.leave()
        self.play()
        if self.websocket.application_state is WebSocketState.CONNECTED:
            self.drain()
        self.play(2 * POLICY.close_timeout)
        assert [call.name for call in self.calls if not call.is_over] == []
        self.over.set()
        self.play()
        assert self.handler.done()
        self.handler.result()
        assert self.children == 0
        assert asyncio.all_tasks(self.loop) == set()
        self.errors_are_those_of_ordinary_life()

    def drain(self) -> None:
        """Receive until the end: all that the peer has sent is there."""
        while True:
            call = self.call("receive", self.websocket.receive_data())
            self.play()
            error = call.task.exception()
            if error is not None:
                assert isinstance(error, WebSocketDisconnect)
                break
            self.handed.append(int(call.task.result()))
        self.each_message_is_handed_over_once_and_in_order()
        assert len(self.handed) == len(self.brought) or not self.has_lost_no_message


def test_a_connection_keeps_its_promises() -> None:
    run_state_machine_as_test(
        Connection,
        settings=settings(
            max_examples=300,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
