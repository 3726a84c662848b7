"""A scripted ASGI server: a test decides what comes in, what becomes of what is sent, and when.

For what no real server does on demand: an `OSError` out of `send` at a given moment, a `receive`
that hangs or repeats itself, ten seconds that pass at once.
"""

import asyncio
import selectors
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from yaat.lifecycle import CLOSE, CONNECT, DISCONNECT, RECEIVE, SEND
from yaat.policy import Policy
from yaat.types import Message, Scope
from yaat.websockets import WebSocket

HASTY: Final = Policy(close_timeout=0.05)
"""The default policy for those who have no time to wait."""


class PeerGoneError(OSError):
    """What a server raises out of `send` after the peer has left (ASGI 2.4)."""


def scope_of(**keys: Any) -> Scope:
    """Return the scope of a connection; an item that is None is left out."""
    scope = {
        "type": "websocket",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
        "yaat.policy": HASTY,
        **keys,
    }
    return {name: value for name, value in scope.items() if value is not None}


class ScriptedServer:
    """One connection, seen from the server.

    Attributes:
        scope: Of the connection.
        sent: What the application sent and the server took, in order.
        after_loss: What becomes of a message sent after the peer left: an `OSError` or nothing.
        after_disconnect: What a `receive` gets after the disconnect was given: it again or nothing.
        answers_close: Whether our close is followed by a disconnect.
        gate: While it is clear, `send` waits before it takes anything.
        failure: What `send` raises.
        suspends: Whether `receive` always gives way to other tasks first, as some servers do.
        given: What `receive` gave, in order.
        pending: How many calls of `receive` wait; `most_pending` is the most there ever were.
        cancelled: How many calls of `receive` were cancelled.
    """

    def __init__(self, **keys: Any) -> None:
        self.scope = scope_of(**keys)
        self.sent: list[Message] = []
        self.after_loss: Literal["raise", "swallow"] = "raise"
        self.after_disconnect: Literal["hang", "repeat"] = "hang"
        self.answers_close = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: type[BaseException] | None = None
        self.suspends = False
        self.given: list[Message] = []
        self.pending = self.most_pending = self.cancelled = 0
        self.has_left = False
        self._coming: deque[Message] = deque([{"type": CONNECT}])
        self._news = asyncio.Event()

    def websocket(self) -> WebSocket:
        """Return a WebSocket over this connection."""
        return WebSocket(self.scope, self.receive, self.send)

    # The peer's side

    def bring(self, message: Message) -> None:
        """Give `message` to the next call of `receive`."""
        self._coming.append(message)
        self._news.set()

    def text(self, *texts: str) -> None:
        for text in texts:
            self.bring({"type": RECEIVE, "text": text})

    def bytes(self, data: bytes) -> None:
        self.bring({"type": RECEIVE, "bytes": data})

    def leave(self, code: int | None = 1001, reason: str | None = "") -> None:
        """Let the peer leave."""
        self.has_left = True
        self.bring({"type": DISCONNECT, "code": code, "reason": reason})

    @property
    def texts(self) -> list[Any]:
        """What was sent as text or bytes, in order."""
        messages = [message for message in self.sent if message["type"] == SEND]
        return [message.get("text", message.get("bytes")) for message in messages]

    @property
    def types(self) -> list[str]:
        """The types of what was sent, without their common beginning."""
        return [message["type"].removeprefix("websocket.") for message in self.sent]

    # The application's side

    async def receive(self) -> Message:
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        try:
            if self.suspends:
                await asyncio.sleep(0)
            while not self._coming:
                self._news.clear()
                await self._news.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.pending -= 1
        message = self._coming.popleft()
        self.given.append(message)
        if message["type"] == DISCONNECT and self.after_disconnect == "repeat":
            self._coming.append(message)
        return message

    async def send(self, message: Message) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if self.has_left:
            if self.after_loss == "raise":
                raise PeerGoneError("the peer has left")
            return
        self.sent.append(message)
        if message["type"] == CLOSE and self.answers_close:
            self.leave(message["code"], message["reason"])


@asynccontextmanager
async def accepted(**keys: Any) -> AsyncIterator[tuple[ScriptedServer, WebSocket]]:
    """Accept a connection, as a scope for `start_soon`; `keys` are items of its ASGI scope."""
    server = ScriptedServer(**keys)
    websocket = server.websocket()
    async with websocket:
        await websocket.accept()
        server.sent.clear()
        yield server, websocket


async def idle(turns: int = 12) -> None:
    """Let everybody else do what they can do now."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Clock:
    """A clock that is set by hand; call it for the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _NoWait(selectors.DefaultSelector):
    """Does not wait for the time to pass, but moves it on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing will ever happen")
        self._clock.now += timeout
        return super().select(0)


class ScriptedLoop(asyncio.SelectorEventLoop):
    """An event loop in which time passes when, and only when, there is nothing left to do."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(_NoWait(self.clock))

    def time(self) -> float:
        """Return the scripted time."""
        return self.clock.now


def in_scripted_time(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `play` in an event loop of its own; waiting takes no time."""
    with asyncio.Runner(loop_factory=ScriptedLoop) as runner:
        runner.run(play())
