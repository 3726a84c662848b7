"""The HTTP class of `yaat run`: uvicorn's on httptools, with bounds on the head of a request."""

import asyncio
import logging
import math
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Self
from weakref import WeakSet

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from yaat.server import opening
from yaat.server.admission import Admission, retry_after
from yaat.server.protocol import FAREWELL, WebSocketProtocol
from yaat.server.proxies import behind_proxy
from yaat.server.settings import ServerSettings

_logger = logging.getLogger("uvicorn.error")
_COLON_AND_LINE_END: Final = 4
# A head is parsed in pieces of so many bytes, so that one without a line end is seen in time.
_PIECE: Final = 4_096
# A whole head may be so many times as long as one line.
_LINES: Final = 8
# So many files a process may open besides connections.
_SPARE_FILES: Final = 64


class State(ServerState):
    """What the connections of one server share.

    Attributes:
        admission: Who may become a WebSocket connection.
        stopping: Whether the server stops, so that a request is the last of its connection.
        unheard: Who has come and has not asked for anything yet; over TLS from its beginning.
    """

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__()
        self._settings = settings
        self.admission = Admission(settings)
        self.stopping = False
        # Weak, as nobody tells when TLS fails.
        self.unheard: WeakSet[HTTPProtocol] = WeakSet()
        self._most_files = _most_files()
        self._was_full = False

    def __reduce__(self) -> tuple[type[Self], tuple[ServerSettings]]:
        """Begin anew in another process: who reloads gives its server to that."""
        return type(self), (self._settings,)

    def is_crowded(self, connections: int) -> bool:
        """Tell whether so many connections, of any kind, leave few files that may be opened."""
        return connections > self._most_files - _SPARE_FILES

    def has_room(self, connections: int) -> bool:
        """Tell whether with so many there is any file left; log it once if there is not.

        Without one nothing can be accepted, and asyncio would log that again and again.
        """
        is_full = connections > self._most_files - _SPARE_FILES // 2
        if is_full and not self._was_full:
            _logger.error("no more files may be opened (ulimit -n): further connections are cut")
        self._was_full = is_full
        return not is_full


def _most_files() -> float:
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else max(2 * _SPARE_FILES, limit)


class TooLargeError(Exception):
    """The head of a request is beyond the limits."""


class HTTPProtocol(HttpToolsProtocol):
    """One connection until it becomes a WebSocket, if it does.

    Guarantees:
        - The head of a request is whole within `handshake_timeout`, or the connection is cut; what
          is kept of a head is bounded by `max_headers` lines of `max_header_bytes`.
        - What is too large, too late or too much is answered, and the answer can be read.
        - What came behind a handshake is not lost.

    Spec: RFC 9112, section 2; RFC 6585, section 5; RFC 9110, sections 7.8 and 15.5.9.
    """

    server_state: State
    parser: Any  # uvicorn sets it to None when the connection is lost

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings: ServerSettings = config.settings  # type: ignore[attr-defined]
        server_state.unheard.add(self)
        self._deadline: asyncio.TimerHandle | None = None
        # Of the head that is read: whether it has begun, how long it is so far, and how much came
        # since the parser last told of something.
        self._has_begun = False
        self._size = 0
        self._unparsed = 0
        self._is_handshake = False
        self._answered = False
        # The request that is being answered; more may be queued behind it.
        self._running: RequestResponseCycle | None = None
        # What came behind requests that wait to be answered, or behind a handshake that does.
        self._behind: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the head of a request."""
        super().connection_made(transport)
        if self.server_state.has_room(len(self.connections)):
            self._bound_wait()
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request of it."""
        self._met()
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _bound_wait(self) -> None:
        """Bound the wait for a head; it begins when the request before is answered."""
        if self._deadline is None and not self._is_answering:
            timeout = self._settings.handshake_timeout
            self._deadline = self.loop.call_later(timeout, self._time_out)

    def _met(self) -> None:
        self.server_state.unheard.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        if self._has_begun:
            self._answer(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        self.server_state.unheard.discard(self)
        self.transport.close()
        # On TLS the peer's part in closing is waited for.
        self._deadline = self.loop.call_later(FAREWELL, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._answered:
            return
        if self._behind is not None:
            self._keep(self._behind + data)
            return
        self._unset_keepalive_if_required()
        try:
            early = self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse_head(is_large=isinstance(error.__context__, TooLargeError))
        except TooLargeError:
            self._refuse_head(is_large=True)
        else:
            if early is None:
                self._bound_wait()
            else:
                self._upgrade(early)

    def _keep(self, behind: bytes) -> None:
        """Keep what has to wait; a request that is being answered may ask for more."""
        self._behind = behind
        if len(behind) > self._settings.read_buffer:
            self.flow.pause_reading()

    def _parse(self, data: bytes) -> bytes | None:
        """Parse what came; return what is behind a handshake."""
        at = 0
        while at < len(data):
            if self.pipeline:
                self._keep(data[at:])
                return None
            in_body = self.cycle is not None and self.cycle.more_body and not self._has_begun
            piece = data[at:] if in_body else data[at : at + _PIECE]
            self._unparsed += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._is_handshake:
                    return data[at + upgrade.args[0] :]
                self._unsupported_upgrade_warning()
                at += upgrade.args[0]
                continue
            if self._unparsed > self._settings.max_header_bytes:
                raise TooLargeError
            at += len(piece)
        return None

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._has_begun = True
        self._size = 0

    def on_url(self, url: bytes) -> None:
        """Take the target, or a piece of it."""
        super().on_url(url)
        self._measure(len(url), len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        # RFC 9112, 5.1: the white space around a value "is excluded" from it.
        super().on_header(name, value.rstrip(b" \t"))
        line = len(name) + len(value) + _COLON_AND_LINE_END
        self._measure(line, line)
        if len(self.headers) > self._settings.max_headers:
            raise TooLargeError

    def _measure(self, more: int, line: int) -> None:
        self._unparsed = 0
        self._size += more
        most = self._settings.max_header_bytes
        if line > most or self._size > _LINES * most:
            raise TooLargeError

    def on_headers_complete(self) -> None:
        """Answer the request, unless it is a handshake."""
        self._has_begun = False
        self._unparsed = 0
        self._met()
        self._is_handshake = (
            # RFC 9110, 7.8: "A server MUST ignore an Upgrade header field that is received in an
            # HTTP/1.0 request."
            self.parser.get_http_version() == "1.1"
            and self.parser.should_upgrade()
            and super()._should_upgrade()
        )
        super().on_headers_complete()
        if self.server_state.stopping and not self._is_handshake:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._unparsed = 0
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    # How it goes on.

    def _upgrade(self, early: bytes) -> None:
        """Hand the connection over, when requests before have been answered."""
        if self._is_answering:
            self._keep(early)
            return
        address = self._address()
        refusal = self._refusal(address)
        if refusal:
            # While the server stops that is in order, and as many come as there were clients.
            level = logging.INFO if self.server_state.admission.draining else logging.WARNING
            _logger.log(level, "refused a handshake of %s: %s", address or "a client", refusal)
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, [retry_after()])
            return
        admission = self.server_state.admission
        leave = partial(admission.leave, address) if admission.counts else None
        self.connections.discard(self)
        protocol = WebSocketProtocol(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        handshake = partial(opening.requested, self.parser.get_method(), self.url, self.headers)
        protocol.open(handshake, early, leave)
        if self.flow.write_paused:  # the transport says so once
            protocol.pause_writing()
        self.transport.set_protocol(protocol)
        self.parser = None  # each holds the other

    def _refusal(self, address: str) -> str | None:
        admission = self.server_state.admission
        if admission.draining:
            return "the server stops"
        if self.server_state.is_crowded(len(self.connections)):
            return "the process has too many files open (ulimit -n)"
        return admission.enter(address) if admission.counts else None

    def _address(self) -> str:
        """Return the peer's address, as a proxy that is trusted tells it; empty if it has none."""
        scope = {"type": "websocket", "client": self.client, "headers": self.headers}
        behind_proxy(self.config.loaded_app, scope)
        client: Any = scope["client"]
        return client[0] if client else ""

    def on_response_complete(self) -> None:
        """Go on with the next request, or with a handshake that waited for this one."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._behind is not None and not self.pipeline:
            self._unset_keepalive_if_required()
            behind, self._behind = self._behind, None
            if self._is_handshake:
                self._upgrade(behind)
            else:
                self.data_received(behind)
        elif self._has_begun:
            self._unset_keepalive_if_required()
            self._bound_wait()

    def _refuse_head(self, *, is_large: bool) -> None:
        if is_large:
            _logger.warning("refused a request: its head is too large")
            self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            _logger.warning("Invalid HTTP request received.")
            self._answer(HTTPStatus.BAD_REQUEST)

    def _answer(self, status: HTTPStatus, headers: opening.Headers = ()) -> None:
        """Answer by ourselves, and let the peer hang up: a reset might overtake the answer."""
        self._answered = True
        self._met()
        if self._is_answering and not self._abandons():
            return
        headers = [*self.server_state.default_headers, *headers]
        self.transport.write(opening.response(status, status.phrase, headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._deadline = self.loop.call_later(FAREWELL, self.transport.abort)
        else:
            self._hang_up()

    def _abandons(self) -> bool:
        """End the request that is broken; tell whether an answer of ours may follow."""
        broken = self.cycle
        last: RequestResponseCycle | None = broken
        if broken.more_body and self.pipeline:  # it waits for its turn, and will not have it
            self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None and (last is not broken or not broken.more_body):
            last.keep_alive = False  # what is wrong came behind it
            return False
        broken.disconnected = True
        broken.waiting_for_100_continue = False
        broken.message_event.set()
        if broken.response_started:
            self.transport.close()
        return not broken.response_started
