"""WebSocket: one connection, as an application sees it on every ASGI server."""

import asyncio
import logging
import sys
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, TypeVarTuple, Unpack

from starlette.responses import Response
from starlette.websockets import WebSocketState

from yaat import policy
from yaat.constants import checked_reason, travelling_code
from yaat.exceptions import (
    ArgumentError,
    DenialUnsupported,
    TooBigError,
    UsageError,
    WebSocketDisconnect,
    WebSocketDisconnected,
    WrongKindError,
)
from yaat.handshake import Header, checked_headers, checked_status, chosen_subprotocol
from yaat.lifecycle import (
    ACCEPT,
    CLOSE,
    DISCONNECT,
    OUTGOING,
    RECEIVE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    SEND,
    State,
    can_receive,
    illegal,
    is_silent,
    move,
)
from yaat.outbox import Outbox
from yaat.payload import Mode, check_encodable, decode, encode, kind_of
from yaat.readahead import ReadAhead, StoppedError
from yaat.requests import HTTPConnection
from yaat.tasks import TaskScope, cancelled, failure_of
from yaat.turns import Turns
from yaat.types import Message, Receive, Scope, Send

__all__ = [
    "WebSocket",
    "WebSocketDisconnect",
    "WebSocketDisconnected",
    "WebSocketState",
    "WebSocketStates",
]

WebSocketStates = WebSocketState
"""The 2020 Yaat's name for it."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Kind = Literal["text", "bytes"]

logger = logging.getLogger("yaat.websocket")

PATIENCE: Final = 0.02
"""How long, in seconds, nobody has to have listened before a send first looks whether the peer is
still there. A handler that answers what it receives is faster and never pays for the look."""

LOOK: Final = 0.005
"""How long, in seconds, such a look takes at the most: one server reads its socket only then. A
server of ASGI 2.4 raises by itself when the peer has left and is not waited for."""

NEVER: Final = float("-inf")
FOREVER: Final = float("inf")

WIRE: Final = "yaat.wire"
"""The extension of a server that tells when the connection is lost, without being asked."""

READ_AHEAD: Final = policy.DEFAULT.read_ahead
"""What such a server holds by itself, in bytes; who asks for more than this has it read ahead."""

OPEN: Final = State.OPEN

_KEY: Final = "yaat.websocket"
_warned: Final[set[int]] = set()
_cuttings: Final[set[asyncio.Task[None]]] = set()  # the event loop holds tasks only weakly


class WebSocket(HTTPConnection):
    """One WebSocket connection.

    Usable on its own in a bare ASGI application; `async with` makes it a scope for the work begun
    with `start_soon`. What it has in common with a request (`url`, `headers`, `query_params`,
    `path_params`, `cookies`, `client`, `app`, `state`, ...) comes from `HTTPConnection`.

    Guarantees:
        What is sent leaves in the order of the calls, whichever tasks make them.
        What the peer sent is handed over once, in order, before the end of the connection is.
        After the peer has left, sending raises `WebSocketDisconnect`, whatever the server does.

    Raises:
        UsageError: The scope is none of a WebSocket.

    Spec: ASGI, "WebSocket".
    """

    # Most connections never need these, so they cost nothing until set.
    _accepted = False
    _ahead: ReadAhead | None = None
    _denied: int | None = None
    _denial: tuple[dict[str, Any], bytearray] | None = None
    _end: asyncio.Future[None] | None = None
    _end_by: float | None = None
    _cut_with: tuple[int, str] | None = None  # what a channel has closed it with
    _cutting: asyncio.Task[None] | None = None
    _is_told = False  # whether the server tells of the loss by itself
    _lost: tuple[int, str] | None = None
    _outbox: Outbox | None = None
    _said: tuple[int, str] | None = None
    _sending: asyncio.Timeout | None = None
    _tasks: TaskScope | None = None
    # For the endpoint: what the observers have been told so far, and what the server raised
    # instead of closing (one sends no code from 1001 to 2999).
    _told: Literal["opened", "ended"] | None = None
    _unclosed: Exception | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("type") != "websocket":
            raise UsageError(f"the scope is one of {scope.get('type')!r}, not of a websocket")
        super().__init__(scope)
        self._receive = receive
        self._send = send
        self._life = State.CONNECTING
        self._in = Turns()
        self._out = Turns()
        # Until when a send takes the short way. After that it looks whether the peer is there, and
        # while it is read ahead, once in a while; NEVER is for all that is not open and simple, and
        # FOREVER for where the server tells.
        self._trusted_until = NEVER
        self._look_at = monotonic() + PATIENCE
        self._set_policy()

    @classmethod
    def attach(cls, scope: Scope, receive: Receive, send: Send) -> Self:
        """Return the connection's one WebSocket, which lives in its scope.

        What a middleware wrapped around `receive` and `send` is used from here on, and the scope
        that it passed.
        """
        websocket: Self | None = scope.get(_KEY)
        if websocket is None:
            websocket = scope[_KEY] = cls(scope, receive, send)
            return websocket
        if scope is not websocket.scope:
            for cached in ("_url", "_base_url", "_headers", "_query_params", "_cookies", "_state"):
                websocket.__dict__.pop(cached, None)
        websocket.scope, websocket._receive, websocket._send = scope, receive, send
        websocket._is_told = False
        websocket._trusted_until = min(websocket._trusted_until, websocket._look_at)
        websocket._set_policy()
        return websocket

    def _set_policy(self) -> None:
        self._policy: policy.Policy = self.scope.get("yaat.policy", policy.DEFAULT)
        # No character has more than four bytes in UTF-8: up to here a text need not be measured.
        self._surely_small = self._policy.max_message_bytes // 4

    # What it is

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offered, in its order of preference."""
        return list(self.scope.get("subprotocols") or ())

    @property
    def client_state(self) -> WebSocketState:
        """What the client has done, in Starlette's terms; derived from the life so far."""
        if self._lost is not None or self._life in (State.GONE, State.CLOSED):
            return WebSocketState.DISCONNECTED
        if self._life is State.CONNECTING:
            return WebSocketState.CONNECTING
        return WebSocketState.CONNECTED

    @client_state.setter
    def client_state(self, _: WebSocketState) -> None:
        raise UsageError("client_state follows from what was sent and received: it cannot be set")

    @property
    def application_state(self) -> WebSocketState:
        """What the application has done, in Starlette's terms; derived likewise."""
        if self._life is State.DENYING:
            return WebSocketState.RESPONSE
        if self._life in (State.CLOSING, State.CLOSED):
            return WebSocketState.DISCONNECTED
        return WebSocketState.CONNECTED if self._accepted else WebSocketState.CONNECTING

    @application_state.setter
    def application_state(self, _: WebSocketState) -> None:
        raise UsageError("application_state follows from what was sent: it cannot be set")

    server_state = application_state
    """The 2020 Yaat's name for `application_state`."""

    @property
    def close_code(self) -> int | None:
        """The close code of whoever ended the connection first, we or the peer; None until then.

        It is what the server tells: 1005 for a close without a code, 1006 for a lost connection.
        """
        return (self._said or self._lost or (None, ""))[0]

    @property
    def close_reason(self) -> str:
        """The reason that goes with `close_code`."""
        return (self._said or self._lost or (None, ""))[1]

    @property
    def denial_status(self) -> int | None:
        """The HTTP status with which we refused the handshake; None if we did not."""
        return self._denied

    # The handshake

    async def accept(
        self,
        subprotocol: str | Sequence[str] | None = None,
        headers: Iterable[Header] | Mapping[str, str] | None = None,
    ) -> str | None:
        """Accept the connection.

        Args:
            subprotocol: The one to speak, or several in the order of preference: the first that
                the client offered is chosen, none if it offered none of them.
            headers: Added to the handshake's response.

        Returns:
            The subprotocol that was chosen.

        Raises:
            ArgumentError: A subprotocol that the client never offered, or a header that cannot be.
            StateError: It has been answered already.
            WebSocketDisconnect: The peer left before the answer.

        Spec: RFC 6455, section 4.2.2; ASGI, "Accept - send event".
        """
        chosen = chosen_subprotocol(subprotocol, self.subprotocols)
        message = {"type": ACCEPT, "subprotocol": chosen, "headers": checked_headers(headers)}
        await self._connected()
        await self._out.take()
        try:
            self._advance(ACCEPT)
            self._accepted = True
            self._open_short_way()
            await self._send(message)
        except OSError as error:
            await self._is_loss(error)
            raise self._departure() from None
        finally:
            self._out.give()
        return chosen

    async def send_denial_response(self, response: Response) -> None:
        """Answer the handshake with an HTTP response instead of accepting it.

        Raises:
            DenialUnsupported: The server cannot; uncaught, it becomes a 403.
            StateError: It has been answered already.

        Spec: ASGI, extension "Websocket Denial Response".
        """
        self._require_denial()
        await self._connected()
        await response(self.scope, self.receive, self.send)

    def _require_denial(self) -> None:
        if not self.can_deny:
            raise DenialUnsupported(
                "The server doesn't support the Websocket Denial Response extension."
            )

    @property
    def can_deny(self) -> bool:
        """Whether the server can answer the handshake with an HTTP response of our own."""
        return "websocket.http.response" in (self.scope.get("extensions") or ())

    # Sending

    # These are no coroutine functions, they return one: a coroutine of its own for every message
    # would only pass on what the other one does.

    def send_text(self, data: str) -> Coroutine[Any, Any, None]:
        """Send a text message.

        Raises:
            TypeError: `data` is no str.
            ArgumentError: It has no form in UTF-8: it holds half of a surrogate pair.
            StateError: The connection is not open.
            WebSocketDisconnect: The peer has left.
        """
        if not isinstance(data, str):
            raise TypeError(f"a text message is a str, not {type(data).__name__}")
        if not data.isascii():
            check_encodable(data)
        return self._transmit({"type": SEND, "text": data})

    def send_bytes(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send a bytes message.

        Raises:
            TypeError: `data` is not bytes, bytearray or memoryview.
            StateError: The connection is not open.
            WebSocketDisconnect: The peer has left.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a bytes message is bytes, not {type(data).__name__}")
        return self._transmit({"type": SEND, "bytes": bytes(data)})

    def send_json(self, data: Any, mode: Mode = "text") -> Coroutine[Any, Any, None]:
        """Send a value as compact JSON.

        Args:
            data: Any JSON value; also dataclasses, `msgspec.Struct`, `datetime`, `UUID`, enums.
            mode: In a `"text"` or a `"bytes"` message.

        Raises:
            ArgumentError: Another mode.
            TypeError: `data` holds what has no form in JSON.
            StateError: The connection is not open.
            WebSocketDisconnect: The peer has left.
        """
        encoded = encode(data)
        if kind_of(mode) == "text":
            return self._transmit({"type": SEND, "text": encoded.decode()})
        return self._transmit({"type": SEND, "bytes": encoded})

    async def send(self, message: Message) -> None:
        """Send a raw ASGI message. The state of the connection follows it.

        The parts of a denial response are put together and leave as one, since not every server
        takes several.

        Raises:
            StateError: The message is not legal now.
            ArgumentError: It does not hold what its type needs.
            TypeError: It holds something of the wrong type.
            WebSocketDisconnect: The peer has left.
        """
        await self._connected()
        kind = message.get("type")
        if kind == SEND:
            await self._transmit(_checked(message))
        elif kind == CLOSE:
            code = message.get("code")
            await self.close(1000 if code is None else code, message.get("reason"))
        elif kind == ACCEPT:
            await self.accept(message.get("subprotocol"), message.get("headers"))
        elif kind in (RESPONSE_START, RESPONSE_BODY):
            await self._deny(message)
        else:
            raise illegal(self._life, str(kind), OUTGOING)

    async def _transmit(self, message: Message) -> None:
        """Send a data message. The short way is for an open connection that nobody shares."""
        turns = self._out
        if turns.taken or monotonic() > self._trusted_until:
            await self._transmit_watchfully(message)
            return
        turns.taken = True
        try:
            await self._send(message)
        except Exception as error:
            if await self._is_loss(error):
                raise self._departure() from None
            raise
        finally:
            turns.taken = False
            if turns.queue is not None:
                turns.give()

    async def _transmit_watchfully(self, message: Message) -> None:
        """Send a data message when its turn has come and while the peer is there."""
        await self._connected()
        await self._out.take()
        try:
            await self._look()
            self._advance(SEND)
            await self._send_if_there(message)
        finally:
            self._out.give()

    async def _send_if_there(self, message: Message) -> None:
        """Send, but no longer than the peer is there: not every server lets go of it by itself."""
        self._listen()
        self._sending = sending = asyncio.timeout(None)
        try:
            async with sending:
                await self._send(message)
        except Exception as error:
            self._sending = None  # it has ended: a loss that is learnt now must leave it alone
            if sending.expired() or await self._is_loss(error):
                raise self._departure() from None
            raise
        finally:
            self._sending = None

    # Publications, which the channels send

    @property
    def outbox(self) -> Outbox:
        """What waits to be sent of the channels that the connection is in. It is for these.

        Raises:
            StateError: The connection is not open.
            WebSocketDisconnect: The peer has left.
        """
        self._advance(SEND)
        if self._outbox is None:
            self._ask_to_be_told()
            send: Any = self._send
            wire = (self.scope.get("extensions") or {}).get(WIRE)
            self._outbox = Outbox(
                self._out,
                wire if wire is not None and self._send == wire["send"] else None,
                step=send if _is_of_uvicorn(send) else None,
                carry=self._carry,
                is_open=self._is_open,
                close=self._cut,
            )
        return self._outbox

    def _is_open(self) -> bool:
        return self._life is OPEN and self._lost is None

    async def _carry(self, message: Message) -> None:
        """Send a publication; who calls this has the turn. A loss cancels who waits here."""
        self._advance(SEND)
        try:
            await self._send(message)
        except Exception as error:
            if await self._is_loss(error):
                raise self._departure() from None
            raise

    def _cut(self, code: int, reason: str) -> None:
        """Close for a channel. Whoever closes from now on, this is what the close says.

        It is not the handler that closed: what it sends finds that the peer has left.
        """
        self._cut_with = code, reason
        self._cutting = asyncio.create_task(self._cut_off(code, reason), name="yaat cut")
        _cuttings.add(self._cutting)
        self._cutting.add_done_callback(_cuttings.discard)

    async def _cut_off(self, code: int, reason: str) -> None:
        """Close, and end a handler that waits for a peer which does not answer."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._policy.close_timeout
        await self.close(code, reason)
        rest = max(0, until - loop.time())
        if _cancelling_loses():
            await asyncio.sleep(rest)  # granian holds the close back while somebody receives
        else:
            with self._watching() as end:
                await asyncio.wait((end,), timeout=rest)
        if self._lost is None:
            self._lose(1006, "")
            if self._tasks is not None:
                self._tasks.interrupt(self._departure())

    async def _end_outbox(self) -> None:
        """Let go of what still waits, and of what waits for it."""
        self._drop_outbox()
        if self._cutting is not None:
            await cancelled({self._cutting}, self._policy.close_timeout)
            await self._stop_reading()

    def _drop_outbox(self) -> None:
        if self._outbox is not None:
            self._outbox.lose()
            self._outbox = None

    async def _look(self) -> None:
        """Let in what the server knows of the peer, when there has been no word for a while."""
        if self._life is not OPEN or self._lost is not None:
            return
        if monotonic() <= max(self._look_at, self._trusted_until):
            return
        if self._ahead is not None or self._in.taken or self._server_raises:
            self._listen()
            await asyncio.sleep(0)
        else:
            await self._hear()
        self._trust()

    async def _hear(self) -> None:
        """Let in what the server knows of the peer: give its end a moment to come."""
        with self._watching() as end:
            await asyncio.wait((end,), timeout=LOOK)

    @property
    def _server_raises(self) -> bool:
        """Whether `send` raises when the peer has left (ASGI 2.4, "Disconnected Client")."""
        return (self.scope.get("asgi") or {}).get("spec_version", "2.0") >= "2.4"  # type: ignore[no-any-return]

    async def _is_loss(self, error: Exception) -> bool:
        """Tell whether `send` raised `error` because the peer has left.

        The code and reason come with the server's disconnect, if that is at hand.
        """
        if self._lost is None:
            await self._hear()
        if isinstance(error, (OSError, WebSocketDisconnect)):
            self._lose(1006, "")
        return self._lost is not None

    def _advance(self, message_type: str) -> None:
        """Move the state by a message that is about to be sent."""
        ended_by_us = self._life in (State.CLOSING, State.CLOSED)
        if self._cut_with is not None or (self._lost is not None and not ended_by_us):
            raise self._departure()
        self._life = move(self._life, message_type)

    async def _deny(self, message: Message) -> None:
        if message["type"] == RESPONSE_START:
            self._require_denial()
            headers = checked_headers(message.get("headers"), accept=False)
            status = checked_status(message.get("status", 0))
            self._advance(RESPONSE_START)
            self._denied = status
            self._denial = {"status": status, "headers": headers}, bytearray()
            return
        self._advance(RESPONSE_BODY)
        assert self._denial is not None  # noqa: S101 - a body is legal only after a start
        start, body = self._denial
        part = message.get("body", b"")
        if len(body) + len(part) > self._policy.max_message_bytes:
            raise ArgumentError("a denial response is longer than Policy.max_message_bytes")
        body += part
        if message.get("more_body"):
            return
        self._advance(RESPONSE_END)
        self._end_soon()
        try:
            async with asyncio.timeout(self._policy.close_timeout):
                await self._send({"type": RESPONSE_START, **start})
                await self._send({"type": RESPONSE_BODY, "body": bytes(body)})
        except OSError:  # a TimeoutError is one: the peer does not take the response
            self._lose(1006, "")
            raise self._departure() from None

    # Closing

    async def close(self, code: int = 1000, reason: str | None = "") -> None:
        """Close the connection; before `accept`, refuse it (HTTP 403).

        A second close, or one after the peer has left, does nothing.

        Args:
            code: A `WebSocketCloseEvent` or any code from 1000 to 1014 and from 3000 to 4999.
                Those that must not travel are replaced: 1005 by 1000, 1006 and 1015 by 1011.
            reason: At most 123 bytes of UTF-8.

        Raises:
            ArgumentError: A code or a reason that cannot be; it is a `ValueError` too.
            StateError: A denial response is under way.

        Guarantees: It returns within `Policy.close_timeout` seconds.

        Spec: RFC 6455, sections 5.5.1 and 7.4.
        """
        code, reason = self._cut_with or (code, reason)
        travelling = travelling_code(code)
        if travelling != code and code not in _warned:
            _warned.add(code)
            logger.warning("close code %d must not travel; %d goes instead", code, travelling)
        message = {"type": CLOSE, "code": travelling, "reason": checked_reason(reason)}
        await self._connected()
        try:
            async with asyncio.timeout(self._policy.close_timeout):
                await self._close(message)
        except TimeoutError:
            self._begin_close(message)
            self._drop_outbox()
            logger.warning("the peer did not let our close through; the server is left to end it")

    async def _close(self, message: Message) -> None:
        await self._out.take()
        try:
            if self._begin_close(message):
                await self._send_close(message)
        finally:
            self._out.give()

    def _begin_close(self, message: Message) -> bool:
        """Move the state by our close; tell whether that is news for the server."""
        if self._lost is not None or is_silent(self._life, CLOSE):
            return False
        was_pending = self._life is State.PENDING
        self._life = move(self._life, CLOSE)
        if was_pending:
            self._denied = 403
        self._said = (message["code"], message["reason"])
        self._distrust()
        self._end_soon()
        return True

    async def _send_close(self, message: Message) -> None:
        if _cancelling_loses():
            await self._stop_reading()  # granian holds a close back while somebody receives
        try:
            await self._send(message)
        except OSError:
            self._lose(1006, "")
        except Exception as error:  # noqa: BLE001 - whatever it is, closing does not fail
            self._unclosed = error

    # Receiving

    def receive_text(self) -> Coroutine[Any, Any, str]:
        """Receive a text message.

        Raises:
            WrongKindError: A bytes message came; uncaught, it closes with 1003.
            TooBigError: It is longer than the policy allows; uncaught, it closes with 1009.
            StateError: The connection has not been accepted.
            WebSocketDisconnect: The connection has ended.
        """
        return self._take("text")

    def receive_bytes(self) -> Coroutine[Any, Any, bytes]:
        """Receive a bytes message. It raises as `receive_text` does."""
        return self._take("bytes")

    async def receive_json(self, mode: Mode = "text") -> Any:
        """Receive a JSON value, in a `"text"` or a `"bytes"` message.

        Raises:
            MalformedError: It is not JSON; uncaught, it closes with 1007. A `ValueError` too.
            ArgumentError: Another mode. For the rest it raises as `receive_text` does.
        """
        return decode(await self._take(kind_of(mode)))

    async def iter_text(self) -> AsyncIterator[str]:
        """Iterate over text messages until the peer leaves."""
        with suppress(WebSocketDisconnect):
            while True:
                yield await self._take("text")

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """Iterate over bytes messages until the peer leaves."""
        with suppress(WebSocketDisconnect):
            while True:
                yield await self._take("bytes")

    async def iter_json(self, mode: Mode = "text") -> AsyncIterator[Any]:
        """Iterate over JSON values until the peer leaves."""
        kind = kind_of(mode)
        with suppress(WebSocketDisconnect):
            while True:
                yield decode(await self._take(kind))

    async def receive_data(self) -> str | bytes:
        """Receive a message of either kind. It raises as `receive_text` does."""
        self._expect_data()
        message = await self._pull()
        text = message.get("text")
        data: str | bytes | None = message.get("bytes") if text is None else text
        if data is None:
            raise self._instead(message, "text")
        self._check_size(data)
        return data

    async def receive(self) -> Message:
        """Receive a raw ASGI message. The state of the connection follows it.

        Raises:
            StateError: Nothing more can come: the disconnect has been handed over.
            TooBigError: The message is longer than the policy allows.
        """
        if not can_receive(self._life):
            move(self._life, RECEIVE)
        message = await self._pull()
        self._handed_over(message)
        if message["type"] == DISCONNECT and self._lost is not None:
            return {"type": DISCONNECT, "code": self._lost[0], "reason": self._lost[1]}
        data = message.get("text") or message.get("bytes")
        if data is not None and len(data) > self._surely_small:
            self._check_size(data)
        return message

    async def _take(self, kind: Kind) -> Any:
        """Receive what is in the next message. The short way is as in `_transmit`."""
        turns = self._in
        if turns.taken or self._trusted_until is NEVER:
            self._expect_data()
            message = await self._pull()
        else:
            turns.taken = True
            try:
                message = await self._receive()
            except BaseException:
                self._done_receiving()
                raise
            turns.taken = False
            if not self._is_told:
                self._trusted_until = monotonic() + PATIENCE
            if turns.queue is not None:
                self._note_end(message)
                self._done_receiving()
        data = message.get(kind)
        if data is None:
            raise self._instead(message, kind)
        if len(data) > self._surely_small:
            self._check_size(data)
        return data

    def _expect_data(self) -> None:
        if not can_receive(self._life):
            raise self._departure()
        move(self._life, RECEIVE)

    async def _pull(self) -> Message:
        """Return the next message: one that was read ahead, or else the server's next."""
        await self._in.take()
        try:
            return await self._next()
        finally:
            self._done_receiving()

    async def _next(self) -> Message:
        if not can_receive(self._life):
            raise self._departure()
        if self._life is OPEN and _cancelling_loses():
            self._require_ahead().start(self._fetch)
        ahead = self._ahead
        if ahead is None or ahead.is_empty:
            return await self._bounded(self._fetch())
        try:
            return await self._bounded(ahead.next())
        except StoppedError:
            await self._out.take()  # our close is on its way, and has to leave first
            self._out.give()
            return await self._bounded(self._fetch())

    async def _bounded(self, following: Awaitable[Message]) -> Message:
        """Wait without end, unless the end is known: then the server gets `close_timeout`."""
        if self._end_by is None:
            return await following
        # However late: what has come in by then, some servers need a moment to hand over.
        soon = asyncio.get_running_loop().time() + PATIENCE
        bound = asyncio.timeout_at(max(soon, self._end_by))
        try:
            async with bound:
                return await following
        except TimeoutError:
            if not bound.expired():
                raise
        self._lose(1006, "")
        code, reason = self._lost or (1006, "")
        return {"type": DISCONNECT, "code": code, "reason": reason}

    async def _fetch(self) -> Message:
        message = await self._receive()
        self._note_end(message)
        return message

    def _note_end(self, message: Message) -> None:
        if message["type"] == DISCONNECT:
            self._lose(message.get("code"), message.get("reason"))

    def _instead(self, message: Message, kind: Kind) -> Exception:
        """Return what to raise for a message without the `kind` of data that was asked for."""
        self._handed_over(message)
        if message["type"] == DISCONNECT:
            return self._departure()
        other = "bytes" if kind == "text" else "text"
        if message.get(other) is None:
            return UsageError("the server brought a message with neither text nor bytes")
        return WrongKindError(f"expected a {kind} message, got one of {other}")

    def _handed_over(self, message: Message) -> None:
        """Move the state by a message that the application is given."""
        self._note_end(message)
        self._life = move(self._life, message["type"])

    def _check_size(self, data: str | bytes) -> None:
        limit = self._policy.max_message_bytes
        size = len(data.encode(errors="surrogatepass") if isinstance(data, str) else data)
        if size > limit:
            raise TooBigError(f"a message of {size} bytes; Policy.max_message_bytes is {limit}")

    async def _connected(self) -> None:
        """Take the server's `connect`, if nobody has."""
        if self._life is not State.CONNECTING:
            return
        await self._in.take()
        try:
            if self._life is State.CONNECTING:  # else another task took it meanwhile
                self._handed_over(await self._next())
        finally:
            self._done_receiving()

    # The end of the connection

    def _departure(self) -> WebSocketDisconnect:
        return WebSocketDisconnect(*(self._lost or self._cut_with or (1006, "")))

    def _lose(self, code: int | None, reason: str | None) -> None:
        """Note that the connection is lost; what it was lost of is what was said first."""
        self._distrust()
        if self._lost is not None:
            return
        self._lost = (1005 if code is None else code, reason or "")
        self._end_soon()
        if self._sending is not None:
            self._sending.reschedule(NEVER)
        if self._end is not None:
            _set(self._end)
        if self._outbox is not None:
            self._outbox.lose()
        if self._tasks is not None:
            self._tasks.lose()

    def _end_soon(self) -> None:
        """Bound the wait for what may still come."""
        if self._end_by is None:
            loop = asyncio.get_running_loop()
            self._end_by = loop.time() + self._policy.close_timeout
            if self._end is not None:
                loop.call_at(self._end_by, _set, self._end)

    def _listen(self) -> ReadAhead | None:
        """See to it that the end is noticed: the server tells it, or else we read ahead."""
        if self._is_told or self._ask_to_be_told():
            return None
        ahead = self._require_ahead()
        self._distrust()
        if self._lost is None and not self._in.taken:
            ahead.start(self._fetch)
        return ahead

    def _ask_to_be_told(self) -> bool:
        """Let the server tell of the loss, if it can; it holds what comes in meanwhile."""
        wire = self._wire
        if wire is None or self._ahead is not None or self._policy.read_ahead > READ_AHEAD:
            return False
        wire["on_loss"](self._lose)
        self._is_told = True
        return True

    @property
    def _wire(self) -> Mapping[str, Any] | None:
        """The server's own ways, if no middleware stands in ours."""
        wire: Mapping[str, Any] | None = (self.scope.get("extensions") or {}).get(WIRE)
        if wire is None or self._send != wire["send"]:
            return None
        server = getattr(wire["send"], "__self__", None)
        return wire if getattr(self._receive, "__self__", wire) is server else None

    def _require_ahead(self) -> ReadAhead:
        if self._ahead is None:
            self._ahead = ReadAhead(self._policy.read_ahead)
        return self._ahead

    def _trust(self) -> None:
        """There has been word of the peer: trust for a while that it is there."""
        if self._life is OPEN:  # a connect is as old as the connection, whenever it is taken
            self._look_at = monotonic() + PATIENCE
        self._open_short_way()

    def _open_short_way(self) -> None:
        is_simple = self._life is OPEN and self._lost is None and self._ahead is None
        # Over HTTP/2 a send may wait for room that never comes when the peer has left.
        is_simple = is_simple and self.scope.get("http_version") != "2"
        is_simple = is_simple and not _cancelling_loses()
        until = FOREVER if self._is_told else self._look_at
        self._trusted_until = until if is_simple else NEVER

    def _distrust(self) -> None:
        """Let no send take the short way, and no receiver that is at it open it again."""
        self._trusted_until = NEVER
        if self._in.taken:
            self._in.mind()

    def _done_receiving(self) -> None:
        """Give the turn to receive; read ahead for those who watch, or else trust for a while."""
        self._in.give()
        ahead = self._ahead
        if ahead is not None and ahead.watchers:
            self._listen()
        elif ahead is not None and ahead.is_empty:
            self._ahead = None
        self._trust()

    def _watch(self) -> Callable[[object], None]:
        """Listen whether or not somebody receives, until what is returned is called."""
        ahead = self._listen()
        if ahead is None:
            return _unwatch_nothing
        ahead.watchers += 1
        return ahead.unwatch

    @contextmanager
    def _watching(self) -> Iterator[asyncio.Future[None]]:
        """Listen as long as this is entered; the future is done when the connection is lost."""
        if self._end is None:
            loop = asyncio.get_running_loop()
            self._end = loop.create_future()
            if self._lost is not None:
                _set(self._end)
            elif self._end_by is not None:
                loop.call_at(self._end_by, _set, self._end)
        unwatch = self._watch()
        try:
            yield self._end
        finally:
            unwatch(None)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, by whichever side.

        It listens by itself; messages that come in meanwhile are kept for who receives them, up
        to `Policy.read_ahead` bytes. Beyond that the end is noticed only when they are received.
        """
        await self._connected()
        if can_receive(self._life):
            with self._watching() as end:
                await asyncio.wait((end,))

    async def stream(self, source: AsyncIterable[Any]) -> None:
        """Send every item of `source` until it ends or the peer leaves; then close the source.

        Args:
            source: Its items travel as text (str), as bytes (bytes, bytearray, memoryview), or
                else as JSON. If it has `aclose`, that is awaited at the end, however it comes.

        Raises:
            Exception: What `source` raised.
            StateError: The connection is not open.

        Guarantees: It returns when the peer leaves, also while `source` is waiting. Messages that
            come in meanwhile are kept as in `wait_closed`.
        """
        items = aiter(source)
        pump = asyncio.create_task(self._pump(items), name="yaat stream")
        try:
            with self._watching() as end:
                await asyncio.wait((pump, end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled({pump}, self._policy.close_timeout)
            # By us, not by the pump: a cancellation of that must not break the clean-up.
            aclose = getattr(items, "aclose", None) or getattr(source, "aclose", None)
            if aclose is not None and pump.done():
                await aclose()
        error = failure_of(pump) if pump.done() else None
        try:
            if error is not None and not (self._lost and isinstance(error, WebSocketDisconnect)):
                raise error
        finally:
            del pump, error  # the traceback holds this frame

    async def _pump(self, items: AsyncIterator[Any]) -> None:
        async for item in items:
            await self._send_item(item)

    def _send_item(self, item: Any) -> Coroutine[Any, Any, None]:
        if isinstance(item, str):
            return self.send_text(item)
        if isinstance(item, (bytes, bytearray, memoryview)):
            return self.send_bytes(item)
        return self.send_json(item)

    def start_soon(
        self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts
    ) -> asyncio.Task[T]:
        """Run `function(*args)` beside the handler, no longer than the connection lives.

        It is cancelled and awaited when the peer leaves or the handler ends. What it raises ends
        the connection as what the handler raises does: the handler is cancelled.

        Raises:
            UsageError: The connection is not a scope: outside a route, use `async with websocket`.
            WebSocketDisconnect: The peer has left already.
        """
        if self._tasks is None:
            raise UsageError("start_soon() needs a route, or `async with websocket:` around it")
        if self._lost is not None:
            raise self._departure()
        task = self._tasks.start(function, *args)
        task.add_done_callback(self._watch())
        return task

    async def __aenter__(self) -> Self:
        """Make the connection a scope for the work begun with `start_soon`.

        Raises:
            UsageError: There is no asyncio event loop.
        """
        try:
            owner = asyncio.current_task()
        except RuntimeError:
            owner = None
        if owner is None:
            raise UsageError("Yaat runs on asyncio; start the server without trio")
        self._tasks = TaskScope(owner, self._tasks)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End that work and stop listening. The connection is not closed by this.

        Raises:
            Exception: What ended the work begun with `start_soon`, instead of the cancellation
                that it caused.
        """
        tasks, timeout = self._tasks, self._policy.close_timeout
        try:
            if tasks is not None:
                await tasks.end(timeout)
        finally:
            self._tasks = tasks and tasks.outer
            if self._tasks is None:
                await self._stop_reading()

    async def _stop_reading(self) -> None:
        """Read ahead no more; what has been read can still be received."""
        if self._ahead is not None:
            reading = self._ahead.stop()
            await cancelled({reading} if reading else set(), self._policy.close_timeout)


def _cancelling_loses() -> bool:
    """Tell whether a message may be lost with a call of the server's `receive` that is cancelled.

    Granian's is: what it has taken from the socket by then it drops (measured: 30 of 400 messages
    where they came as often as a timeout cancelled). There a task of its own makes every call.
    """
    return "granian" in sys.modules


def _is_of_uvicorn(send: Send) -> bool:
    """Tell whether `send` is uvicorn's own, with nothing around it.

    It runs through without waiting unless the peer does not read, and needs no task of its own.
    """
    owner: object = getattr(send, "__self__", None)
    return type(owner).__module__.startswith("uvicorn.protocols.websockets.")


def _unwatch_nothing(_: object) -> None:
    """Do nothing: where the server tells, nobody reads ahead for who watches."""


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _checked(message: Message) -> Message:
    """Return a `websocket.send` as every server takes it (ASGI, "Send - send event")."""
    text, data = message.get("text"), message.get("bytes")
    if (text is None) is (data is None):
        raise ArgumentError("a websocket.send holds either text or bytes")
    if text is None:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"bytes of a websocket.send is bytes, not {type(data).__name__}")
        return {"type": SEND, "bytes": bytes(data)}
    if not isinstance(text, str):
        raise TypeError(f"text of a websocket.send is a str, not {type(text).__name__}")
    check_encodable(text)
    return {"type": SEND, "text": text}
