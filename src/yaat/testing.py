"""TestClient: talks to an ASGI application in process, without a port or a thread, and never hangs.

It needs the extra `yaat[test]`, for httpx2. Every wait has a bound; when it is reached, the error
shows where the application is.
"""

import asyncio
import gc
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote

import httpx2

from yaat.constants import checked_reason, travelling_code
from yaat.exceptions import (
    ArgumentError,
    UsageError,
    WebSocketDisconnect,
    WrongKindError,
    YaatError,
)
from yaat.handshake import checked_headers, chosen_subprotocol
from yaat.lifecycle import (
    ACCEPT,
    CLOSE,
    CONNECT,
    DISCONNECT,
    RECEIVE,
    RESPONSE_BODY,
    RESPONSE_END,
    RESPONSE_START,
    SEND,
    State,
    is_silent,
    move,
)
from yaat.observer import Observer
from yaat.payload import Mode, decode, encode, kind_of
from yaat.types import ASGIApp, Message, Scope

__all__ = ["HandshakeRefused", "TestClient", "WebSocketSession"]

TIMEOUT: Final = 5.0
"""How long, in seconds, a wait lasts by default."""

HIGH_WATER: Final = 1_048_576
"""From how many bytes on, not yet received by the test, the application's `send` waits."""

_AWAITABLES: Final = (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await"))

VERSIONS: Final = {"version": "3.0", "spec_version": "2.5"}


class HandshakeRefused(YaatError):  # noqa: N818 - the word for what happened
    """The application answered the handshake with an HTTP response instead of accepting it.

    Attributes:
        status: The HTTP status; 403 for a plain close.
        headers: The response's headers.
        body: The response's body.
    """

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"the handshake was refused: {status} {body[:200]!r}")
        self.status = status
        self.headers = httpx2.Headers(list(headers))
        self.body = body

    @property
    def text(self) -> str:
        """The body, as UTF-8."""
        return self.body.decode(errors="replace")


class _GoneError(OSError):
    """What `send` raises in the application after the peer has left (ASGI 2.4)."""


class _Run:
    """An application at work in a task of its own.

    Args:
        coroutine: What it does.
        timeout: How long, in seconds, it may take to end when it is cancelled.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], timeout: float) -> None:
        self._timeout = timeout
        self._others = asyncio.all_tasks()
        self.task = asyncio.create_task(coroutine, name="the application")

    def where(self) -> str:
        """Return the lines at which it waits, it and the tasks that were begun since."""
        begun = asyncio.all_tasks() - self._others - {self.task}
        places = [_lines(self.task.get_coro()) or "its end"]
        places += [f"and in {task.get_name()} at\n{_lines(task.get_coro())}" for task in begun]
        return "\n".join(places)

    async def cancel(self) -> None:
        """Cancel it, if it has not ended, and wait until it has."""
        self.task.cancel()
        await asyncio.wait((self.task,), timeout=self._timeout)
        if self.task.done() and not self.task.cancelled():
            self.task.exception()  # seen: who wants to know of it has asked before


class _Failures(Observer):
    """Keeps what a handler raised."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def failed(self, scope: Scope, error: BaseException) -> None:  # noqa: ARG002
        self.errors.append(error)


class TestClient(httpx2.AsyncClient):
    """A client of an ASGI application in the same process and event loop.

    Requests go as with any httpx2 client, redirects followed; `websocket` opens a connection;
    `async with` runs the application's lifespan around it all.

    Args:
        app: The application.
        base_url: What relative URLs are relative to.
        timeout: How long, in seconds, any wait lasts.
        raise_app_exceptions: Whether what a handler raises is raised in the test. If not, a
            request is answered as by a server, and a connection is closed as by one.
        options: As `httpx2.AsyncClient` has them: `headers`, `cookies`, `follow_redirects`, ...
    """

    __test__ = False  # no test case, whatever pytest may think

    def __init__(
        self,
        app: ASGIApp,
        *,
        base_url: str = "http://testserver",
        timeout: float = TIMEOUT,
        raise_app_exceptions: bool = True,
        **options: Any,
    ) -> None:
        self._app = app
        self._timeout_seconds = timeout
        self._raise = raise_app_exceptions
        self._shared_state: dict[str, Any] = {}
        self._lifespan: _Lifespan | None = None
        transport = _Transport(self._serve_request, raise_app_exceptions=raise_app_exceptions)
        transport.timeout = timeout
        options = {"follow_redirects": True} | options
        super().__init__(transport=transport, base_url=base_url, **options)

    async def _serve_request(self, scope: Scope, receive: Any, send: Any) -> None:
        await self._app({**scope, "state": self._shared_state.copy()}, receive, send)

    async def __aenter__(self) -> Self:
        """Start the application.

        Raises:
            Exception: What its startup raised.
            TimeoutError: It did not start in time.
        """
        lifespan = _Lifespan(self._app, self._timeout_seconds)
        self._shared_state = await lifespan.start()
        self._lifespan = lifespan
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Shut the application down.

        Raises:
            Exception: What its shutdown raised.
            TimeoutError: It did not shut down in time.
        """
        await super().__aexit__(kind, error, trace)
        if self._lifespan is not None:
            await self._lifespan.stop()

    def websocket(  # type: ignore[override]  # httpx2's own goes over a network
        self,
        url: str,
        *,
        subprotocols: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        scope: Mapping[str, Any] | None = None,
    ) -> "WebSocketSession":
        """Return a connection to open with `async with`.

        Args:
            url: Relative to the base URL, or absolute; the query string with it.
            subprotocols: What the client offers.
            headers: Added to the handshake, beside the client's own headers and cookies.
            scope: Replaces items of the ASGI scope; an item that is None is left out.
        """
        request = self.build_request("GET", url, headers=headers)
        own = {**_scope(request, subprotocols), "state": self._shared_state.copy(), **(scope or {})}
        own = {name: value for name, value in own.items() if value is not None}
        session = WebSocketSession(self._app, own, self._timeout_seconds)
        session.raise_app_exceptions = self._raise
        return session


class WebSocketSession:
    """The client's end of a connection in process.

    It behaves as a server of ASGI 2.5 does: `send` raises an `OSError` in the application after
    the peer has left, and waits while more than `HIGH_WATER` bytes have not been received.

    Attributes:
        subprotocol: What the application chose.
        headers: What it added to the handshake's response.
    """

    raise_app_exceptions = True

    def __init__(self, app: ASGIApp, scope: Scope, timeout: float = TIMEOUT) -> None:
        self.scope = scope
        self.subprotocol: str | None = None
        self.headers = httpx2.Headers()
        self._app = app
        self._timeout = timeout
        self._failures = _Failures()
        self._life = State.CONNECTING
        self._to_app: deque[Message] = deque()
        self._from_app: deque[Message] = deque()
        self._unread = 0
        self._refusal: HandshakeRefused | None = None
        self._response: tuple[int, Any, bytearray] = (500, (), bytearray())
        self._end: Message | None = None
        self._news = asyncio.Event()
        self._run: _Run | None = None

    async def __aenter__(self) -> Self:
        """Do the handshake.

        Raises:
            HandshakeRefused: The application refused it.
            TimeoutError: It did not answer in time.
            Exception: What the handler raised.
        """
        observers = (*self.scope.get("yaat.observers", ()), self._failures)
        self.scope["yaat.observers"] = observers
        self._put({"type": CONNECT})
        self._run = _Run(self._serve(), self._timeout)
        try:
            await self._until(lambda: self._life is not State.PENDING, "the handshake's answer")
            await self._until(lambda: self._life is not State.DENYING, "the rest of the response")
            if self._refusal is not None:
                await self._ended()
                raise self._refusal  # noqa: TRY301 - it gives up like the rest
        except BaseException:
            await self._application.cancel()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection, if it is open, and wait for the application to end.

        Raises:
            Exception: What the handler raised, if that has not been raised before.
            TimeoutError: The application did not end in time.
        """
        try:
            if error is None:
                self._leave(1000, "")
                await self._ended()
        finally:
            await self._application.cancel()

    # The test's side

    async def send_text(self, data: str) -> None:
        """Send a text message.

        Raises:
            WebSocketDisconnect: The connection has ended.
            TimeoutError: The application does not receive what was sent before.
            Exception: What the handler raised, if that ended the connection.
        """
        await self._send_data({"type": RECEIVE, "text": data})

    async def send_bytes(self, data: bytes) -> None:
        """Send a bytes message. It raises as `send_text` does."""
        await self._send_data({"type": RECEIVE, "bytes": data})

    async def send_json(self, data: Any, mode: Mode = "text") -> None:
        """Send a JSON value in a `"text"` or a `"bytes"` message. It raises as `send_text` does."""
        if kind_of(mode) == "text":
            await self.send_text(encode(data).decode())
        else:
            await self.send_bytes(encode(data))

    async def receive(self) -> str | bytes:
        """Receive the next message.

        Raises:
            WebSocketDisconnect: The connection has ended; with what code the application closed.
            TimeoutError: None came in time.
            Exception: What the handler raised, if that ended the connection.
        """
        await self._until(lambda: self._from_app or self._end is not None, "a message")
        if not self._from_app:
            raise self._departure()
        message = self._from_app.popleft()
        text = message.get("text")
        data: str | bytes = message["bytes"] if text is None else text
        self._unread -= len(data)
        self._news.set()
        return data

    async def receive_text(self) -> str:
        """Receive a text message; a bytes message is a `WrongKindError`."""
        data = await self.receive()
        if not isinstance(data, str):
            raise WrongKindError("expected a text message, got one of bytes")
        return data

    async def receive_bytes(self) -> bytes:
        """Receive a bytes message; a text message is a `WrongKindError`."""
        data = await self.receive()
        if isinstance(data, str):
            raise WrongKindError("expected a bytes message, got one of text")
        return data

    async def receive_json(self) -> Any:
        """Receive a JSON value, in a message of either kind."""
        return decode(await self.receive())

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Iterate over messages until the application closes."""
        with suppress(WebSocketDisconnect):
            while True:
                yield await self.receive()

    async def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Close as a client does and let the application learn of it.

        Args:
            code: None: the close frame is empty, and the application learns of 1005.
            reason: At most 123 bytes of UTF-8.
        """
        self._leave(1005 if code is None else travelling_code(code), checked_reason(reason))
        await asyncio.sleep(0)

    async def cut(self) -> None:
        """Cut the cable: vanish without a close frame. The application learns of 1006."""
        self._leave(1006, "")
        await asyncio.sleep(0)

    async def ended(self) -> None:
        """Wait until the application has ended.

        Raises:
            Exception: What the handler raised.
            TimeoutError: It did not end in time.
        """
        await self._ended()

    async def _send_data(self, message: Message) -> None:
        await self._until(self._can_send, "the application to receive")
        if self._life is not State.OPEN:
            raise self._departure()
        self._put(message)
        await asyncio.sleep(0)

    def _can_send(self) -> bool:
        return self._life is not State.OPEN or _bytes_in(self._to_app) < HIGH_WATER

    def _departure(self) -> BaseException:
        """Return what to raise at the end: what the handler raised, if it did, comes first."""
        end = self._end or {}
        return self._failure() or WebSocketDisconnect(end.get("code", 1006), end.get("reason"))

    def _failure(self) -> BaseException | None:
        failures, self._failures.errors = self._failures.errors, []
        return failures[0] if self.raise_app_exceptions and failures else None

    def _leave(self, code: int, reason: str) -> None:
        if self._life in (State.PENDING, State.OPEN, State.DENYING):
            self._end = {"type": DISCONNECT, "code": code, "reason": reason}
            self._put(self._end)

    async def _ended(self) -> None:
        await self._until(self._application.task.done, "the application to end")
        failure = self._failure()
        if failure is not None:
            raise failure

    @property
    def _application(self) -> _Run:
        if self._run is None:
            raise UsageError("open the connection first: async with client.websocket(...) as ws")
        return self._run

    async def _until(self, happened: Callable[[], Any], what: str) -> None:
        """Wait for something to happen."""
        run = self._application
        try:
            async with asyncio.timeout(self._timeout):
                while not happened():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(
                f"waited {self._timeout} s for {what}; the application is at\n{run.where()}"
            ) from None

    # The application's side

    async def _serve(self) -> None:
        try:
            await self._app(self.scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - the test gets it
            self._failures.errors.append(error)
        finally:
            if self._life in (State.PENDING, State.DENYING):
                self._refuse(500, (), b"")
            elif self._life is State.OPEN:  # as servers do that drop the connection
                self._leave(1006, "")
            self._news.set()

    def _put(self, message: Message) -> None:
        self._life = move(self._life, message["type"])
        self._to_app.append(message)
        self._news.set()

    async def _receive(self) -> Message:
        while not self._to_app:
            self._news.clear()
            await self._news.wait()
        message = self._to_app[0]
        if message["type"] != DISCONNECT:  # that one is the answer from now on
            self._to_app.popleft()
            self._news.set()
        return message

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == RESPONSE_BODY and not message.get("more_body"):
            kind = RESPONSE_END
        silent = is_silent(self._life, CLOSE) and kind == CLOSE
        try:
            life = move(self._life, kind)
        except WebSocketDisconnect:
            raise _GoneError("the peer has left") from None
        if not silent:
            self._take(message, kind, life)
            self._news.set()
        while self._unread > HIGH_WATER and self._life is State.OPEN:
            self._news.clear()
            await self._news.wait()
        if kind == SEND and self._life is not State.OPEN:
            raise _GoneError("the peer has left")

    def _take(self, message: Message, kind: str, life: State) -> None:
        if kind == ACCEPT:
            offered = self.scope.get("subprotocols", ())
            self.subprotocol = chosen_subprotocol(message.get("subprotocol"), offered)
            self.headers = httpx2.Headers(checked_headers(message.get("headers")))
        before, self._life = self._life, life
        if kind == SEND:
            if (message.get("bytes") is None) is (message.get("text") is None):
                raise ArgumentError("a websocket.send holds either text or bytes")
            self._from_app.append(message)
            self._unread += len(message.get("bytes") or message.get("text") or b"")
        elif kind == CLOSE and before is State.OPEN:
            self._answer_close(message.get("code", 1000), message.get("reason") or "")
        elif kind == CLOSE:
            self._refuse(403, (), b"")
        elif kind == RESPONSE_START:
            self._response = (message["status"], message.get("headers", ()), bytearray())
        elif kind in (RESPONSE_BODY, RESPONSE_END):
            self._response[2].extend(message.get("body", b""))
            if kind == RESPONSE_END:
                self._refuse(*self._response)

    def _answer_close(self, code: int, reason: str) -> None:
        self._end = {"type": DISCONNECT, "code": code, "reason": reason}
        self._put(self._end)

    def _refuse(self, status: int, headers: Any, body: bytes | bytearray) -> None:
        self._refusal = HandshakeRefused(status, headers, bytes(body))
        self._end = {"type": DISCONNECT, "code": 1006, "reason": ""}
        self._put(self._end)


class _Transport(httpx2.ASGITransport):
    """The transport of httpx2, with a bound."""

    timeout = TIMEOUT

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        run = _Run(super().handle_async_request(request), self.timeout)
        try:
            await asyncio.wait((run.task,), timeout=self.timeout)
            if run.task.done():
                response: httpx2.Response = run.task.result()
                return response
            raise TimeoutError(
                f"{request.method} {request.url} was not answered within {self.timeout} s; the "
                f"application is at\n{run.where()}"
            )
        finally:
            await run.cancel()


class _Lifespan:
    """Drives the lifespan of an application (ASGI, "Lifespan Protocol")."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout = timeout
        self._state: dict[str, Any] = {}
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: dict[str, Message] = {}
        self._answered = asyncio.Event()
        self._run = _Run(self._live(), timeout)

    async def start(self) -> dict[str, Any]:
        """Start the application; return the state that it wants to share."""
        try:
            await self._pass("startup")
        except BaseException:
            await self._run.cancel()
            raise
        return self._state

    async def stop(self) -> None:
        """Shut the application down."""
        try:
            if self._answers:  # else it has no lifespan
                await self._pass("shutdown")
                await self._ended("shutdown")
        finally:
            await self._run.cancel()

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self._state}
        try:
            await self._app(scope, self._events.get, self._send)
        except Exception:
            # "If an exception is raised when calling the application callable with a
            # lifespan.startup message [...] the server must continue", without a lifespan.
            if self._answers:
                raise
        finally:
            self._answered.set()

    async def _send(self, message: Message) -> None:
        phase, _, result = message["type"].removeprefix("lifespan.").partition(".")
        self._answers[phase] = {**message, "failed": result == "failed"}
        self._answered.set()

    async def _pass(self, phase: str) -> None:
        """Tell the application of a phase, and wait for its answer, or for its end."""
        self._events.put_nowait({"type": f"lifespan.{phase}"})
        await self._until(lambda: phase in self._answers or self._run.task.done(), phase)
        answer = self._answers.get(phase, {})
        if answer.get("failed"):
            await self._ended(phase)
            raise UsageError(f"{phase} failed: {answer.get('message') or 'it does not say why'}")

    async def _ended(self, phase: str) -> None:
        """Wait until the application has ended; raise what it raised."""
        await self._until(self._run.task.done, phase)
        self._run.task.result()

    async def _until(self, happened: Callable[[], bool], phase: str) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                while not happened():
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            raise TimeoutError(
                f"{phase} took more than {self._timeout} s; the application is at\n"
                f"{self._run.where()}"
            ) from None


def _scope(request: httpx2.Request, subprotocols: Sequence[str]) -> Scope:
    url = request.url
    secure = url.scheme in ("https", "wss")
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    headers += [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"sec-websocket-version", b"13"),
    ]
    if subprotocols:
        headers.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode()))
    return {
        "type": "websocket",
        "asgi": VERSIONS,
        "http_version": "1.1",
        "scheme": "wss" if secure else "ws",
        "path": unquote(url.raw_path.split(b"?")[0].decode("ascii")),
        "raw_path": url.raw_path.split(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 123),
        "server": (url.host, url.port or (443 if secure else 80)),
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}},
    }


def _bytes_in(messages: Iterable[Message]) -> int:
    return sum(len(each.get("bytes") or each.get("text") or b"") for each in messages)


def _lines(waiting: Any) -> str:
    """Return where a coroutine waits, outermost first, as a traceback shows it."""
    frames = []
    while waiting is not None:
        for prefix, following in _AWAITABLES:
            frame = getattr(waiting, f"{prefix}_frame", None)
            if frame is not None:
                frames.append((frame, frame.f_lineno))
                waiting = getattr(waiting, f"{prefix}_{following}")
                break
        else:
            waiting = _hidden_in(waiting)
    return "".join(traceback.StackSummary.extract(iter(frames)).format())


def _hidden_in(wrapper: Any) -> Any:
    """Return what runs in an object that has no frame itself.

    `__await__()` of a coroutine and `__anext__()` of an async generator return such ones, of types
    that let only the garbage collector see what is in them.
    """
    kinds = (CoroutineType, AsyncGeneratorType)
    return next((each for each in gc.get_referents(wrapper) if isinstance(each, kinds)), None)
