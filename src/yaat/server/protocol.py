"""The protocol class that uvicorn loads: between a transport, the codec and an ASGI application."""

import asyncio
import contextvars
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeVarTuple, Unpack, cast

from uvicorn._types import WebSocketScope
from uvicorn.config import Config
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_client_addr,
    get_local_addr,
    get_path_with_query_string,
    get_remote_addr,
    is_ssl,
)
from uvicorn.server import ServerState

from yaat.constants import WebSocketCloseEvent, checked_reason, travelling_code
from yaat.exceptions import ArgumentError, StateError, WebSocketDisconnect
from yaat.frames import Frame
from yaat.handshake import checked_headers, chosen_subprotocol
from yaat.lifecycle import (
    ACCEPT,
    CLOSE,
    CONNECT,
    DISCONNECT,
    OUTGOING,
    RECEIVE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    SEND,
    State,
    illegal,
    is_silent,
    move,
)
from yaat.server import codec, opening
from yaat.server.codec import LONG, Close, Decoder, FrameError, Ping
from yaat.server.deflate import Deflate, negotiated
from yaat.server.gathering import Gathering, gathering
from yaat.server.opening import Denial, HandshakeError, Request
from yaat.server.proxies import behind_proxy
from yaat.server.settings import ServerSettings
from yaat.server.sweep import Sweep, Swept, leave, sweep
from yaat.server.wire import NAME as WIRE
from yaat.server.wire import LossCallback, RoomCallback, Wire
from yaat.turns import Turns
from yaat.types import Message, Scope

SPEC_VERSION: Final = "2.5"
HANDLER: Final = "websocket"
"""The name of the task that runs the application over one connection."""
FAREWELL: Final = 1.0
"""How long, in seconds, a peer has to hang up when the server stops."""
# So many short messages, of less than `codec.LONG` bytes, are handed over in one write.
MOST_GATHERED: Final = 16
# Who sends more than this, and 64 bytes a message, while nobody else had a turn, gives one: the
# kernel may take it all, and over TLS a lost connection takes everything.
MOST_IN_A_ROW: Final = 262_144

# asyncio's writelines() did not call pause_writing() in 3.12.0 to 3.12.8, 3.13.0 and 3.13.1: what a
# peer does not read would have been buffered without a bound (CVE-2024-12254).
WRITELINES_PAUSES: Final = not (
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)
)

# glibc gives the top of the heap back as soon as 128 KiB there are free; then each turn of the loop
# that handles a few long messages takes its pages anew: 68 µs for an echo of 64 KiB, not 42. To
# free a block of this size raises that mark to twice as much (malloc's "dynamic mmap threshold").
bytes(8 << 20)

_logger = logging.getLogger("uvicorn.error")
Ts = TypeVarTuple("Ts")
_Code = WebSocketCloseEvent
_OPEN: Final = State.OPEN  # on Python 3.11 to look a member up costs 50 ns, many times a message
_BEFORE = (State.CONNECTING, State.PENDING, State.DENYING)
_OF_APPLICATIONS = OUTGOING - {RESPONSE_END}
_CONNECT = object()  # what stands in the queue for websocket.connect
_PING_FRAME = codec.head(codec.PING, 0)
# The idle timeout is looked at so many times; a time stamp for each message would cost more.
_QUARTERS = 4
# A ping may be late by this part of its interval, or of its timeout: a second, by default.
_STEPS = 20
# What a class keeps to by itself, without `yaat run`.
_OWN = frozenset(
    {
        "write_buffer",
        "read_buffer",
        "max_tiny_fragments",
        "close_timeout",
        "compress_from",
        "idle_timeout",
    }
)
# What is about the connection itself, of which the server alone decides (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class WebSocketProtocol(asyncio.Protocol):
    """One WebSocket connection under uvicorn.

    The application's side of it moves along the table of `yaat.lifecycle`: PENDING while the
    application considers the handshake, GONE when the peer has ended the connection, has left, or
    has broken the protocol, CLOSING while we wait for its answer to our close.

    Guarantees:
        - What is sent leaves in the order of the calls, each message whole.
        - `send()` waits while more than `write_buffer` bytes wait for the peer; reading pauses
          while more than `read_buffer` bytes (or uvicorn's `ws_max_queue` messages) wait for the
          application.
        - An accepted connection never ends without a close frame of ours, as long as the peer is
          there: 1000 when the application returns, 1011 when it raises, 1012 when uvicorn stops.
        - After its end `send()` raises uvicorn's `ClientDisconnected`, an `OSError`, and
          `receive()` gives the disconnect, again and again.

    `yaat run` gives it its settings. With `uvicorn --ws`, uvicorn's `ws_max_size`, `ws_max_queue`,
    `ws_ping_interval`, `ws_ping_timeout` and `ws_per_message_deflate` are obeyed as given; for the
    bounds that uvicorn has no option for, derive a class:

        class Patient(WebSocketProtocol):
            settings = ServerSettings(close_timeout=60.0)

    `scope["extensions"]["yaat.wire"]` offers `write`, `buffered`, `on_room`, `on_loss` and `send`.

    Spec: RFC 6455; RFC 7692; ASGI, "WebSocket" 2.5 and "Websocket Denial Response".
    """

    settings: ClassVar[ServerSettings] = ServerSettings()
    """The bounds that uvicorn has no option for."""

    __slots__ = (
        "_app_state",
        "_blocked",
        "_bucket",
        "_config",
        "_connections",
        "_decoder",
        "_deflate",
        "_denial",
        "_early",
        "_ending",
        "_gathered",
        "_gathering",
        "_heard",
        "_idle",
        "_in_a_row",
        "_leave",
        "_loop",
        "_on_loss",
        "_on_room",
        "_paused",
        "_ping",
        "_quiet",
        "_ready",
        "_request",
        "_scope",
        "_server_state",
        "_settings",
        "_state",
        "_sweep",
        "_timer",
        "_transport",
        "_turns",
        "_waited",
        "_waiter",
        "_window",
    )

    _transport: asyncio.Transport
    _decoder: Decoder

    def __init_subclass__(cls) -> None:
        """Check the settings of a subclass.

        Raises:
            ArgumentError: It sets what it cannot keep to.
        """
        for option in fields(ServerSettings):
            if option.name not in _OWN and getattr(cls.settings, option.name) != option.default:
                raise ArgumentError(
                    f"ServerSettings.{option.name} is for `yaat run`: a class that uvicorn loads "
                    f"cannot keep to it, but only to {', '.join(sorted(_OWN))}"
                )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._config = config
        self._settings: ServerSettings = getattr(config, "settings", self.settings)
        self._server_state = server_state
        self._connections = cast(set[asyncio.Protocol], server_state.connections)
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._state = State.CONNECTING
        # The handshake, until it is answered.
        self._request: Request | None = None
        self._scope: Scope | None = None
        self._deflate: Deflate | None = None
        self._window = 0
        self._denial: Denial | None = None
        self._early = b""
        # Reading.
        self._ready: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._ending: tuple[int, str] | None = None
        # Writing. While the transport is full it has the turn.
        self._gathering: Gathering = gathering(self._loop)
        self._gathered: list[bytes] = []
        self._in_a_row = 0
        self._turns = Turns()
        self._blocked = False
        self._ping: Ping | None = None
        self._on_room: list[RoomCallback] | None = None
        # How it ends.
        self._on_loss: list[LossCallback] | None = None
        self._leave: Callable[[], None] | None = None
        # The one end that is waited for; until then it is looked after the peer: for how long we
        # have waited for a sign of life (None: we have not asked), and whether there was one.
        self._timer: asyncio.TimerHandle | None = None
        self._sweep: Sweep | None = None
        self._bucket: set[Swept] | None = None
        self._waited: float | None = None
        self._heard = False
        # And for how many quarters of the idle timeout there has been no message.
        self._idle: asyncio.TimerHandle | None = None
        self._quiet = 0

    # What the transport and uvicorn tell.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a connection on which a handshake has begun."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._settings.write_buffer)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Take what the peer sent: first the head of the handshake, whole, as uvicorn gives it."""
        if self._state is not _OPEN and self._takes_otherwise(data):
            return
        decoder = self._decoder
        self._heard = True
        self._in_a_row = 0
        failure = None
        try:
            decoder.feed(data)
            while self._state is State.CLOSING and self._is_full(decoder):
                # Make way for the answer to our close; nobody needs to ask for these any more.
                decoder.messages.clear()
                self._ready.clear()
                decoder.unread = 0
                decoder.feed(b"")
        except FrameError as error:
            failure = error
        if decoder.messages:
            self._quiet = 0
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            if (waiter is None or decoder.held_back) and self._is_full(decoder):
                self._pause()
        if decoder.controls:
            self._heed(decoder)
        if failure is not None:
            self._loop.call_soon(self._fail, failure.code, failure.reason)  # as a close is answered

    def _takes_otherwise(self, data: bytes) -> bool:
        """Take what comes before the connection is open, or behind its end; tell if it was that."""
        if self._state in _BEFORE:
            self._receive_early(data)
            return True
        if self._ending is not None and data:
            self._receive_late(data)
            return True
        return False

    def _receive_early(self, data: bytes) -> None:
        """Take what comes when the connection is not yet open."""
        if self._state is State.CONNECTING and not self._transport.is_closing():
            head, _, early = data.partition(b"\r\n\r\n")
            self.open(lambda: opening.parsed(head), early)
        elif self._state is State.PENDING:
            # It should have waited for our answer (4.1). What it sent is kept, and bounded.
            self._early += data
            if len(self._early) > self._settings.read_buffer:
                self._pause()

    def _receive_late(self, data: bytes) -> None:
        """Discard what comes behind the end, but for the answer to our close."""
        decoder = self._decoder
        if decoder.held_back:
            return  # that is the application's still
        count = len(decoder.messages)
        decoder.unread = 0
        try:
            decoder.feed(data)
            while decoder.held_back:
                del decoder.messages[count:]
                decoder.unread = 0
                decoder.feed(b"")
        except FrameError:
            self._hang_up()
        del decoder.messages[count:]
        if any(isinstance(control, Close) for control in decoder.controls):
            self._hang_up()
        decoder.controls.clear()

    def eof_received(self) -> bool:
        """Hang up too, behind what was read in the same turn: that may have been a close frame.

        Returns:
            Whether the transport is to stay open until then; on TLS it cannot.
        """
        self._loop.call_soon(self._miss)
        return self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the application."""
        self._connections.discard(self)
        self._end(_Code.ABNORMAL_CLOSURE)
        self._disarm()
        self._gathered.clear()
        if self._leave is not None:
            self._leave()
            self._leave = None

    def pause_writing(self) -> None:
        """Let whoever sends wait: more than `write_buffer` bytes are buffered."""
        if self._ending is None:
            self._blocked = self._turns.taken = True

    def resume_writing(self) -> None:
        """Let the first who waits send."""
        self._blocked = False
        if self._ping is not None and self._state is _OPEN:
            self._write(codec.pong_frame(self._ping))
        self._ping = None
        self._yield_turn()

    def shutdown(self) -> None:
        """End the connection because the server stops."""
        if self._ending is not None:
            return  # it is about to be over
        if self._state is not _OPEN:
            if self.is_unanswered:
                self._respond(HTTPStatus.SERVICE_UNAVAILABLE)
            self._end(_Code.SERVICE_RESTART)
            self._hang_up()
            return
        self._write(codec.close_frame(_Code.SERVICE_RESTART))
        self._end(_Code.SERVICE_RESTART)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._listen_on()
        self._arm(min(FAREWELL, self._settings.close_timeout), self._transport.abort)

    # The handshake.

    def open(
        self, read: Callable[[], Request], early: bytes, leave: Callable[[], None] | None = None
    ) -> None:
        """Read the handshake and start the application.

        Args:
            read: Reads it; what it raises is answered.
            early: What came behind it already.
            leave: Called when the connection is over.
        """
        self._early = early
        self._leave = leave
        try:
            self._request = read()
            if self._config.ws_per_message_deflate and self._request.extensions:
                self._deflate = negotiated(self._request.extensions)
                self._window = self._deflate.window if self._deflate else 0
        except HandshakeError as error:
            _logger.warning("Invalid WebSocket handshake: %s", error)
            self._respond(error.status, str(error), error.headers)
            self._hang_up()
            return
        self._scope = self._described(self._request)
        self._decoder = self._new_decoder()
        self._ready.append(_CONNECT)
        self._state = move(self._state, CONNECT)
        context = contextvars.Context() if self._config.reset_contextvars else None
        task = self._loop.create_task(self._run(self._scope), name=HANDLER, context=context)
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _new_decoder(self) -> Decoder:
        return Decoder(
            max_message_bytes=self._config.ws_max_size,
            max_tiny_fragments=self._settings.max_tiny_fragments,
            max_unread=self._settings.read_buffer,
            deflate=self._deflate,
        )

    def _described(self, request: Request) -> Scope:
        """Return the scope (ASGI, "Websocket Connection Scope")."""
        root_path = self._config.root_path
        server, client = _addresses(self._transport)
        return {
            "type": "websocket",
            "asgi": {"version": self._config.asgi_version, "spec_version": SPEC_VERSION},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(self._transport) else "ws",
            "server": server,
            "client": client,
            "root_path": root_path,
            "path": root_path + request.path,
            "raw_path": root_path.encode("ascii") + request.raw_path,
            "query_string": request.query_string,
            "headers": request.headers,
            "subprotocols": request.subprotocols,
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, WIRE: Wire(self)},
        }

    async def _run(self, scope: Scope) -> None:
        """Run the application, and end what it leaves open."""
        code = _Code.NORMAL_CLOSURE
        try:
            app = behind_proxy(self._config.loaded_app, scope)
            await app(scope, self.receive, self.send)
        except BaseException as error:
            # ASGI, "Disconnected Client": that the peer has gone is no error, nor is what Starlette
            # makes of it; nor that a server which stops cancels who did not notice.
            is_departure = isinstance(
                error, ClientDisconnected | WebSocketDisconnect | asyncio.CancelledError
            )
            has_gone = self._ending is not None or self._transport.is_closing()
            if not (is_departure and has_gone):
                _logger.exception("Exception in ASGI application\n")
            code = _Code.INTERNAL_ERROR
        if self._state is _OPEN:
            self._state = move(self._state, CLOSE)
            self._close({"code": code})
        elif self._state is State.PENDING or self._state is State.DENYING:
            self._abandon(returned=code == _Code.NORMAL_CLOSURE)

    def _abandon(self, *, returned: bool) -> None:
        """Answer a handshake that the application has not."""
        if returned:
            _logger.error("ASGI callable returned without completing handshake.")
        if self.is_unanswered:
            self._respond(HTTPStatus.INTERNAL_SERVER_ERROR)
        self._end(_Code.ABNORMAL_CLOSURE)
        self._hang_up()

    @property
    def is_unanswered(self) -> bool:
        """Whether the application has still to answer the handshake."""
        if self._state is State.DENYING and self._denial is not None:
            return not self._denial.has_begun
        return self._state is State.PENDING

    # What the application receives.

    async def receive(self) -> Message:
        """Give the next event: connect, then messages, then the disconnect again and again."""
        while not self._ready:
            decoder = self._decoder
            if decoder.messages:
                # Two lists are the smallest queue and the fastest; the one at hand has its last
                # message first.
                ready, decoder.messages = decoder.messages, self._ready
                ready.reverse()
                self._ready = ready
                decoder.unread = 0
            elif self._ending is not None:
                code, reason = self._ending
                return {"type": DISCONNECT, "code": code, "reason": reason}
            elif self._waiter is None:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            else:  # another task is waiting already, and neither may end the other's wait
                await asyncio.wait([self._waiter])
        payload = self._ready.pop()
        if self._paused and not (self._ready or self._decoder.messages):
            self._read_on()
        if payload.__class__ is str:
            return {"type": RECEIVE, "text": payload}
        if payload.__class__ is bytes:
            return {"type": RECEIVE, "bytes": payload}
        return {"type": CONNECT}

    def _is_full(self, decoder: Decoder) -> bool:
        return (
            decoder.held_back
            or decoder.unread > self._settings.read_buffer
            or (
                self._on_loss is None
                and len(decoder.messages) + len(self._ready) >= max(1, self._config.ws_max_queue)
            )
        )

    def _read_on(self) -> None:
        """Read what was kept waiting: the application has received everything else."""
        if self._decoder.held_back:
            self.data_received(b"")
            if self._decoder.messages and self._is_full(self._decoder):
                return
        self._resume()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _pause(self) -> None:
        is_over = self._ending is not None or self._transport.is_closing()
        if not self._paused and not is_over:
            self._paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the application sends.

    async def send(self, message: Message) -> None:
        """Send an event of the application's; wait while more than `write_buffer` is buffered.

        Raises:
            ClientDisconnected: The connection has ended. It is an `OSError`.
            StateError: The event is not legal now. It is a `RuntimeError`.
            ArgumentError: A value that must not be sent. It is a `ValueError`.
            TypeError: A value of another type than ASGI says.
        """
        if not self._turns.taken:
            if self._state is _OPEN and message.get("type") == SEND:
                self._send(message)
            else:
                self._hand_over(message)
            if self._in_a_row > MOST_IN_A_ROW:
                self._in_a_row = 0
                await asyncio.sleep(0)
            return
        if message.get("type") == CLOSE and self._state is _OPEN:
            await self._take_turn_to_close()
        else:
            await self._take_turn()
        try:
            self._hand_over(message)
        finally:
            self._yield_turn()

    async def _take_turn(self) -> None:
        try:
            await self._turns.take()
        except asyncio.CancelledError:
            # The turn that we had been given was given on, though the transport may be full again.
            self._turns.taken = self._turns.taken or self._blocked
            self._tell_room()
            raise

    async def _take_turn_to_close(self) -> None:
        """Let what was sent before go first, but not for ever."""
        deadline = self._loop.call_later(self._settings.close_timeout, self._transport.abort)
        try:
            await self._take_turn()
        finally:
            deadline.cancel()

    def _yield_turn(self) -> None:
        if not self._blocked:
            self._turns.give()
            self._tell_room()

    def _hand_over(self, message: Message) -> None:
        """Do what an event says, if the table says that it is legal."""
        kind, before = message.get("type"), self._state
        if kind == SEND and before is _OPEN:
            self._send(message)
            return
        if kind not in _OF_APPLICATIONS:
            raise illegal(before, str(kind), OUTGOING)
        is_last = kind == RESPONSE_BODY and not message.get("more_body", False)
        event = RESPONSE_END if is_last else kind
        try:
            self._state = move(before, event)
        except WebSocketDisconnect:
            raise ClientDisconnected from None
        except StateError:
            raise illegal(before, kind, OUTGOING) from None
        if not is_silent(before, event):
            try:
                _ACTIONS[before, event](self, message)
            except Exception:  # a value that must not be sent: nothing has happened
                self._state = before
                raise

    def _send(self, message: Message) -> None:
        text = message.get("text")
        if type(text) is str and message.get("bytes") is None:
            opcode, payload = codec.TEXT, text.encode()
        else:
            opcode, payload = _content(message)
        # A write that failed says nothing, and who never waits would not hear of the loss either.
        if self._transport.is_closing():
            raise ClientDisconnected
        self._in_a_row += len(payload) + 64
        self._quiet = 0
        if self._deflate is not None and len(payload) >= self._settings.compress_from:
            opcode, payload = self._compressed(self._deflate, opcode, payload)
        head = codec.head(opcode, len(payload))
        if len(payload) >= LONG:
            self.flush()
            if WRITELINES_PAUSES:
                self._transport.writelines((head, payload))
            else:
                self._transport.write(head + payload)
        elif (self._ready or self._waiter is not None) and len(self._gathered) < MOST_GATHERED - 1:
            # The application has more to answer, or while it waits to receive, another task sends,
            # as who sends to many does: one write for all of it. A write for each is a system call
            # for each, which is most of what an answer costs.
            if not self._gathered:
                self._gathering.add(self, self._loop)
            self._gathered.append(head + payload)
        elif self._gathered:
            self._write(head + payload)
        else:
            self._transport.write(head + payload)

    def _compressed(self, deflate: Deflate, opcode: int, payload: bytes) -> tuple[int, bytes]:
        compressed = deflate.compress(payload)
        if len(compressed) < len(payload):
            return opcode | codec.RSV1, compressed
        return opcode, payload

    def _write(self, data: bytes) -> None:
        """Write `data` behind what was gathered."""
        if self._gathered:
            self._gathered.append(data)
            self.flush()
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Hand over what was gathered."""
        gathered = self._gathered
        if len(gathered) == 1:
            self._transport.write(gathered.pop())
        elif gathered:
            data = b"".join(gathered)
            gathered.clear()
            self._transport.write(data)

    # The extension `yaat.wire`.

    def write(self, frame: Frame) -> bool:
        """Send a frame without waiting.

        Returns:
            True: it was taken whole, and leaves in order with what `send()` is given. False:
            nothing was taken, as the connection is not open, more than `write_buffer` bytes wait
            for the peer, or a `send()` waits for its turn.
        """
        if self._turns.taken or self._state is not _OPEN:
            return False
        data = frame.encodings.get(self._window) or self._encoded(frame)
        self._quiet = 0
        gathered = self._gathered
        if not gathered:
            self._gathering.add(self, self._loop)
        gathered.append(data)
        if len(data) >= LONG or len(gathered) >= MOST_GATHERED:
            self.flush()
        return True

    def _encoded(self, frame: Frame) -> bytes:
        """Frame and compress what nobody with our window was sent yet."""
        opcode = codec.TEXT if frame.kind == "text" else codec.BINARY
        payload = frame.payload
        if self._deflate is not None and len(payload) >= self._settings.compress_from:
            opcode, payload = self._compressed(self._deflate, opcode, payload)
        data = frame.encodings[self._window] = codec.head(opcode, len(payload)) + payload
        return data

    def buffered(self) -> int:
        """Return how many bytes were taken and have not been handed over to the kernel."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._gathered))

    def on_room(self, callback: RoomCallback) -> None:
        """Call `callback()` once, in a turn of the loop to come, when `write` may take a frame.

        That is when less than a quarter of `write_buffer` is left and no `send()` waits for its
        turn. If the connection ends before that, it is not called.
        """
        if self._ending is None:
            self._on_room = [*(self._on_room or ()), callback]
            self._tell_room()

    def _tell_room(self) -> None:
        for _ in self._on_room or ():
            self._loop.call_soon(self._call_room)

    def _call_room(self) -> None:
        # In between, the room may be gone: whoever gives the turn back tells once more.
        if self._on_room and self._state is _OPEN and not self._turns.taken:
            callback, *others = self._on_room
            self._on_room = others or None
            callback()

    def on_loss(self, callback: LossCallback) -> None:
        """Call `callback(code, reason)` once, in a turn of the loop to come, at the end.

        It is told what `websocket.disconnect` says, as soon as that is known: before the
        application has received what came in before it. So that this is soon, messages that nobody
        receives are read up to `read_buffer` bytes, however many they are.
        """
        if self._ending is not None:
            self._loop.call_soon(callback, *self._ending)
            return
        self._on_loss = [*(self._on_loss or ()), callback]
        if self._state is _OPEN and self._paused and not self._is_full(self._decoder):
            self._resume()

    # What the events of an application do.

    def _accept(self, message: Message) -> None:
        request = self._request
        assert request is not None
        subprotocol = chosen_subprotocol(message.get("subprotocol"), request.subprotocols)
        headers = checked_headers(message.get("headers"))
        self._log("[accepted]")
        extensions = self._deflate and self._deflate.response
        headers = [*self._server_state.default_headers, *headers]
        self._write(opening.accepted(request, subprotocol, extensions, headers))
        self._request = self._scope = None
        if self._config.ws_ping_interval:
            self._look_after(self._config.ws_ping_interval, self._config.ws_ping_timeout)
        if self._settings.idle_timeout is not None:
            self._look_idle(self._settings.idle_timeout)
        self._tell_room()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)
            if not self._decoder.messages:
                self._resume()

    def _refuse(self, _message: Message) -> None:
        self._log(HTTPStatus.FORBIDDEN)
        self._respond(HTTPStatus.FORBIDDEN)
        self._hang_up()

    def _close(self, message: Message) -> None:
        code = message.get("code")
        code = travelling_code(_Code.NORMAL_CLOSURE if code is None else code)
        self._write(codec.close_frame(code, checked_reason(message.get("reason"))))
        self._arm(self._settings.close_timeout, self._transport.abort)
        if self._paused:
            self.data_received(b"")
            self._resume()

    def _deny(self, message: Message) -> None:
        status = message.get("status")
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ArgumentError(f"a response has a status from 200 to 599, not {status!r}")
        headers = [
            header
            for header in checked_headers(message.get("headers"), accept=False)
            if header[0] not in _HOP_BY_HOP
        ]
        self._log(status)
        self._denial = Denial(status, [*self._server_state.default_headers, *headers])

    def _deny_part(self, message: Message) -> None:
        assert self._denial is not None
        body, more = _as_bytes(message.get("body", b"")), message.get("more_body", False)
        self._write(self._denial.part(body, more=more))
        if not more:
            self._hang_up()

    def _respond(self, status: HTTPStatus, text: str = "", headers: opening.Headers = ()) -> None:
        headers = [*self._server_state.default_headers, *headers]
        self._write(opening.response(status, text or status.phrase, headers))

    def _log(self, outcome: object) -> None:
        """Say what became of a handshake, in uvicorn's words."""
        if _logger.isEnabledFor(logging.INFO):
            scope = cast(WebSocketScope, self._scope)
            path = get_path_with_query_string(scope)
            _logger.info('%s - "WebSocket %s" %s', get_client_addr(scope), path, outcome)

    # How it ends.

    def _heed(self, decoder: Decoder) -> None:
        """Answer pings, and the peer's close."""
        pings = [control for control in decoder.controls if isinstance(control, Ping)]
        last = decoder.controls[-1]
        decoder.controls.clear()
        if pings and self._state is _OPEN:
            self._pong(pings)
        if isinstance(last, Close):
            # An application that waits for messages first answers those that came before. 5.5.1:
            # "An endpoint MAY delay sending a Close frame until its current message is sent".
            self._loop.call_soon(self._return_close, last)

    def _return_close(self, close: Close) -> None:
        # 5.5.1: "If an endpoint receives a Close frame and did not previously send a Close frame,
        # the endpoint MUST send a Close frame in response", which "typically echoes the status
        # code it received".
        if self._ending is not None:  # it was lost meanwhile
            return
        if self._state is _OPEN:
            self._write(codec.close_frame(close.code))
        self._end(close.code, close.reason)
        self._hang_up()

    def _pong(self, pings: list[Ping]) -> None:
        # 5.5.3: who "has not yet sent Pong frame(s) in response to previous Ping frame(s)" may
        # "send a Pong frame for only the most recently processed Ping frame".
        if self._blocked:
            self._ping = pings[-1]
        else:
            self._write(b"".join(map(codec.pong_frame, pings)))

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (7.1.7): say why, hear no more, and hang up."""
        if self._ending is not None:  # it was lost before it could fail
            return
        if self._state is _OPEN:
            self._write(codec.close_frame(code, reason))
            self._end(code, reason)
        else:
            self._end(_Code.ABNORMAL_CLOSURE)
        if not self._transport.can_write_eof():
            self._hang_up()
            return
        # With a FIN the peer hangs up. If we did while it sends, a reset might overtake our close.
        self._transport.write_eof()
        self._listen_on()
        self._arm(self._settings.close_timeout, self._transport.abort)

    def _listen_on(self) -> None:
        """Read until the peer hangs up, though the application may have more to ask for."""
        self._resume()
        self._paused = self._decoder.held_back

    def _miss(self) -> None:
        """End the connection: the peer has closed its half, without a close frame or behind it."""
        self._end(_Code.ABNORMAL_CLOSURE)
        if self in self._connections:
            self._hang_up()

    def _end(self, code: int, reason: str = "") -> None:
        """Tell the application the first end there is."""
        if self._ending is None and self._state is not State.CONNECTING:
            self._state = move(self._state, DISCONNECT)
            self._ending = (int(code), reason)
            self._request = self._scope = None
            self._early = b""
            for callback in self._on_loss or ():
                self._loop.call_soon(callback, *self._ending)
            self._on_loss = self._on_room = None
            self._wake()
            self._blocked = False
            self._turns.give()

    def _hang_up(self) -> None:
        """Close the transport; it has a while to hand over what is buffered."""
        if not self._transport.is_closing():  # asyncio's on TLS cannot be closed twice
            self.flush()
            self._transport.close()
        self._disarm()
        # On TLS the peer's part in closing is waited for even if nothing is.
        if self._transport.get_write_buffer_size() or not self._transport.can_write_eof():
            self._arm(self._settings.close_timeout, self._transport.abort)

    # What is waited for.

    def _arm(self, seconds: float, callback: Callable[[Unpack[Ts]], None], *arguments: *Ts) -> None:
        """Wait for this, and for nothing else any more."""
        self._disarm()
        self._timer = self._loop.call_later(seconds, callback, *arguments)

    def _disarm(self) -> None:
        for timer in (self._timer, self._idle):
            if timer is not None:
                timer.cancel()
        self._timer = self._idle = None
        if self._bucket is not None:
            leave(self._bucket, self)
            self._bucket = None

    def _look_idle(self, timeout: float) -> None:
        """End the connection if no message went either way for `timeout` seconds."""
        if self._quiet >= _QUARTERS:
            self._fail(_Code.GOING_AWAY, "idle timeout")
            return
        self._quiet += 1
        self._idle = self._loop.call_later(timeout / _QUARTERS, self._look_idle, timeout)

    def _look_after(self, interval: float, timeout: float | None) -> None:
        """Begin to ask whether the peer is there."""
        self._sweep = sweep(self._loop, min(interval, timeout or interval) / _STEPS)
        self._look_in(interval, None)

    def _look_in(self, seconds: float, waited: float | None) -> None:
        assert self._sweep is not None
        self._waited = waited
        self._bucket = self._sweep.put(self, seconds, self._loop)

    def look(self) -> None:
        """Ask whether the peer is there, or see whether it has answered."""
        if self._waited is None:
            self._send_ping()
        else:
            self._await_sign_of_life(self._waited)

    def _send_ping(self) -> None:
        self._heard = False
        self._write(_PING_FRAME)
        self._await_sign_of_life(0.0)

    def _await_sign_of_life(self, waited: float) -> None:
        """Send the next ping an interval after the last, if anything was heard since then.

        Args:
            waited: For how many seconds.
        """
        interval = self._config.ws_ping_interval or math.inf
        timeout = self._config.ws_ping_timeout or math.inf
        # While reading is paused, nothing can be heard.
        if self._heard or self._paused or (waited >= interval and timeout == math.inf):
            if waited < interval:
                self._look_in(interval - waited, None)
            else:
                self._send_ping()
        elif waited < timeout:
            step = min(interval, timeout - waited)
            self._look_in(step, waited + step)
        else:
            reason = "keepalive ping timeout"
            self._write(codec.close_frame(_Code.INTERNAL_ERROR, reason))
            self._end(_Code.ABNORMAL_CLOSURE, reason)
            self._hang_up()


def _addresses(transport: asyncio.Transport) -> tuple[object, object]:
    """Return our address and the peer's.

    uvicorn's HTTP class, which was here before, has asked the kernel for them already.
    """
    before: Any = transport.get_protocol()
    try:
        return _shared(before.server), before.client
    except AttributeError:
        return _shared(get_local_addr(transport)), get_remote_addr(transport)


@lru_cache(maxsize=64)
def _shared(address: object) -> object:
    return address  # one object for all connections to it


def _content(message: Message) -> tuple[int, bytes]:
    """Return the opcode and the payload of a `websocket.send` (ASGI, "Send - send event")."""
    text, data = message.get("text"), message.get("bytes")
    if (text is None) == (data is None):
        raise ArgumentError("websocket.send has either text or bytes, and one of them")
    if text is None:
        return codec.BINARY, _as_bytes(data)
    if not isinstance(text, str):
        raise TypeError(f"text is a str, not {type(text).__name__}")
    return codec.TEXT, text.encode()


def _as_bytes(payload: object) -> bytes:
    if type(payload) is bytes:
        return payload
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise TypeError(f"bytes are bytes, not {type(payload).__name__}")
    return bytes(payload)


_ACTIONS: Mapping[tuple[State, str], Callable[[WebSocketProtocol, Message], None]] = {
    (State.PENDING, ACCEPT): WebSocketProtocol._accept,
    (State.PENDING, CLOSE): WebSocketProtocol._refuse,
    (State.PENDING, RESPONSE_START): WebSocketProtocol._deny,
    (State.DENYING, RESPONSE_BODY): WebSocketProtocol._deny_part,
    (State.DENYING, RESPONSE_END): WebSocketProtocol._deny_part,
    (State.OPEN, CLOSE): WebSocketProtocol._close,
}
