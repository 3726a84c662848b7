"""Middleware: Yaat's with its four hooks, CORS, and Starlette's own.

Any ASGI middleware works with Yaat. `BaseMiddleware` is for those who would rather write methods
that take a request, a response or a WebSocket.
"""

import asyncio
from contextlib import AsyncExitStack
from contextvars import ContextVar
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from starlette.background import BackgroundTask
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware as _CORSMiddleware
from starlette.requests import Request as _Request
from starlette.responses import Response as _Response

from yaat.endpoint import conclude
from yaat.requests import Request
from yaat.responses import Response
from yaat.types import ASGIApp, Message, Receive, Scope, Send
from yaat.websockets import WebSocket, WebSocketState

if TYPE_CHECKING:
    from starlette.middleware.authentication import AuthenticationMiddleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
    from starlette.middleware.sessions import SessionMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

__all__ = [
    "AuthenticationMiddleware",
    "BaseHTTPMiddleware",
    "BaseMiddleware",
    "CORSMiddleware",
    "GZipMiddleware",
    "HTTPSRedirectMiddleware",
    "Middleware",
    "SessionMiddleware",
    "TrustedHostMiddleware",
]

_PASSED_ON: Final = "yaat.passed_on"
"""In the scope of a WebSocket: whether a `BaseMiddleware` has called the next layer."""

_STARLETTE: Final = {
    "AuthenticationMiddleware": "authentication",
    "BaseHTTPMiddleware": "base",
    "GZipMiddleware": "gzip",
    "HTTPSRedirectMiddleware": "httpsredirect",
    "SessionMiddleware": "sessions",
    "TrustedHostMiddleware": "trustedhost",
}


def __getattr__(name: str) -> Any:
    """Import Starlette's middleware when it is asked for: most applications need none of it."""
    if name not in _STARLETTE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"starlette.middleware.{_STARLETTE[name]}")
    except ModuleNotFoundError as missing:
        if missing.name != "itsdangerous":
            raise
        raise ImportError("sessions need itsdangerous: pip install 'yaat[sessions]'") from missing
    return getattr(module, name)


class BaseMiddleware:
    """Middleware that is written as methods. Override what you need; each may be left alone.

    Args:
        app: The next layer: any ASGI application.

    Guarantees:
        A streamed response passes through piece by piece. Background work is done after the
        response has been sent. What the application raises reaches `handle_request`, if the
        response had not begun. An application whose response is not used is not left running.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app: BaseMiddleware | _Next = app if _is_layer(app) else _Next(app)

    async def process_request(self, request: Request) -> None:
        """Look at the request, or change its scope, before the next layer sees it.

        A body that is read here is there for the next layer too.
        """

    async def process_response(self, response: Response) -> None:
        """Look at the response, or change it, before it is sent.

        Its `status_code` and `headers` are those of the next layer. So is its `body`, unless the
        response is streamed: then it has no `body` before one is set, which replaces the stream.
        """

    async def handle_request(self, request: Request) -> Response:
        """Answer a request: call the two hooks around the next layer's `handle_request`."""
        await self.process_request(request)
        response = await self.app.handle_request(request)
        await self.process_response(response)
        return response

    async def handle_websocket(self, websocket: WebSocket) -> None:
        """Run a connection: pass it on to the next layer.

        To refuse it, raise `yaat.exceptions.Refused` or call `websocket.close()` instead.
        """
        await self.app.handle_websocket(websocket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as exchanges:
            token = _exchanges.set(exchanges)
            try:
                response = await self.handle_request(Request(scope, receive, send))
                await response(scope, receive, send)
            finally:
                _exchanges.reset(token)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket.attach(scope, receive, send)
        scope[_PASSED_ON] = False
        try:
            await self.handle_websocket(websocket)
        except Exception as error:
            if scope[_PASSED_ON] and websocket.application_state is WebSocketState.CONNECTING:
                raise  # whoever had it keeps a state of its own, unknown here
            await conclude(websocket, error)
        else:
            if not scope[_PASSED_ON]:
                await conclude(websocket)
        finally:
            scope.pop("yaat.websocket", None)  # each holds the other


def _is_layer(app: Any) -> TypeGuard[BaseMiddleware]:
    """Whether ``app`` may be called by its methods: one with a `__call__` of its own may not."""
    return isinstance(app, BaseMiddleware) and type(app).__call__ is BaseMiddleware.__call__


class _Next:
    """Gives any ASGI application the methods by which a `BaseMiddleware` calls the next layer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_PASSED_ON] = True
        await self.app(scope, receive, send)

    async def handle_request(self, request: Request) -> Response:
        exchange = _Exchange(self.app, request)
        exchanges = _exchanges.get()
        if exchanges is not None:
            exchanges.push_async_exit(exchange.end)
        return await exchange.response()

    async def handle_websocket(self, websocket: WebSocket) -> None:
        # Not the WebSocket's own receive() and send(): the layer below moves its state already.
        await self(websocket.scope, websocket._receive, websocket._send)  # noqa: SLF001


_exchanges: ContextVar[AsyncExitStack | None] = ContextVar("yaat.middleware", default=None)
"""What the outermost `BaseMiddleware` has to see ended before it returns."""


class _Exchange:
    """An ASGI application answering one request, held at the beginning of its response.

    The application runs in a task of its own, since it is to stand still while `process_response`
    runs: in the same task, its timeouts and task groups would end in the wrong order. It waits in
    its `send` until somebody says where the response goes; from then on it sends there itself, so
    backpressure and a disconnect reach it as they would without a middleware.
    """

    def __init__(self, app: ASGIApp, request: _Request) -> None:
        self._app = app
        self._begun = asyncio.Event()
        self._held: list[Message] = []
        self._out: Send = _nowhere
        self._passing = asyncio.Event()
        self._start: Message | None = None
        self._task = asyncio.create_task(self._run(request))
        self._task.add_done_callback(lambda _: self._begun.set())

    async def _run(self, request: _Request) -> None:
        await self._app(request.scope, _receive_again(request), self._send)

    async def response(self) -> "_Answer":
        """Wait until the response begins.

        Raises:
            Exception: What the application raised instead.
            RuntimeError: It returned without a response.
        """
        try:
            await self._begun.wait()
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self._task.done():
            await self._task
        if self._start is None or self._task.done():
            raise RuntimeError("the application returned without a response")
        return _Answer(self, self._start, self._whole_body())

    async def pass_on(self, send: Send) -> None:
        """Let the application send its response, and wait until it is done."""
        self._out = send
        self._passing.set()
        await self._task

    async def end(self, kind: type[BaseException] | None, *_: object) -> None:
        """See the application ended: let it finish if it has given a whole response."""
        if self._task.done():
            return
        if kind is None and self._whole_body() is not None:
            self._passing.set()
            await self._task
            return
        if not self._task.cancelling():
            self._task.cancel()
        await asyncio.wait((self._task,))

    async def _send(self, message: Message) -> None:
        if self._passing.is_set():
            await self._out(message)
        elif not self._hold(message):
            self._begun.set()
            await self._passing.wait()
            held, self._held = self._held, []
            for each in held:
                await self._out(each)

    def _hold(self, message: Message) -> bool:
        """Keep ``message``; say whether the next one belongs to the beginning too."""
        if message["type"] == "http.response.start":
            self._start = dict(message)
            self._held.append(self._start)
            return _says_length(message)
        self._held.append(message)
        return self._start is None

    def _whole_body(self) -> bytes | None:
        match self._held:
            case [*_, {"type": "http.response.body", **last}] if not last.get("more_body", False):
                return bytes(last.get("body", b""))
            case _:
                return None


def _says_length(start: Message) -> bool:
    """Whether the body is one that is known at the start, not one that may take for ever."""
    if start["status"] in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return True
    return any(name.lower() == b"content-length" for name, _ in start.get("headers", ()))


def _receive_again(request: _Request) -> Receive:
    """Give what ``request`` has read of its body to the layer below as well."""
    if not hasattr(request, "_body") and not request._stream_consumed:  # noqa: SLF001
        return request.receive
    read = {"type": "http.request", "body": getattr(request, "_body", b""), "more_body": False}
    again = [read]

    async def receive() -> Message:
        return again.pop() if again else await request.receive()

    return receive


async def _nowhere(_: Message) -> None:
    """Take a response that nobody wants."""


class _Answer(Response):
    """The response of an ASGI application: it has begun, and waits until it is to be sent."""

    def __init__(self, exchange: _Exchange, start: Message, body: bytes | None) -> None:
        self.background: BackgroundTask | None = None
        self.status_code = start["status"]
        self.raw_headers = [(name, value) for name, value in start.get("headers", ())]
        self._exchange = exchange
        self._start = start
        self._given = body
        if body is not None:
            self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if getattr(self, "_body", None) is not self._given:
            await super().__call__(scope, receive, send)
            return
        self._start.update(status=self.status_code, headers=self.raw_headers)
        await self._exchange.pass_on(send)
        if self.background is not None:
            await self.background()


class CORSMiddleware(_CORSMiddleware):
    """Lets the scripts of other origins in. Starlette's, stricter in one thing.

    If all origins are allowed, none of them is let in with credentials: a browser that sends
    cookies is answered `*`, which it does not take for a yes. Name the origins that may.

    It does not apply to WebSockets, which browsers do not ask about: see `Policy.origins`.

    Spec: Fetch, "CORS protocol and credentials".
    """

    def __init__(self, app: ASGIApp, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        if self.allow_all_origins:
            self.preflight_explicit_allow_origin = False
            self.preflight_headers["Access-Control-Allow-Origin"] = "*"

    def preflight_response(self, request_headers: Headers) -> _Response:
        """Answer a preflight request; a refusal says what was wrong."""
        response = super().preflight_response(request_headers)
        if response.status_code != HTTPStatus.OK:
            failures = bytes(response.body).decode().removeprefix("Disallowed CORS ")
            response.body = f"Disallowed cors {failures.title()}".encode()
            response.headers["content-length"] = str(len(response.body))
        return response

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Send a message of the response to a request that is no preflight."""
        origin = request_headers.get("origin")
        begins = message["type"] == "http.response.start"
        if origin is None or not begins or not self.allow_all_origins:
            await super().send(message, send, request_headers)
            return
        message.setdefault("headers", [])
        headers = MutableHeaders(scope=message)
        headers.update(self.simple_headers)
        if "cookie" in request_headers and not self.allow_credentials:
            headers["access-control-allow-origin"] = origin
        headers.add_vary_header("Origin")
        await send(message)
