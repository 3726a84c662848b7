"""Endpoint: runs a handler over a connection and ends it the same way on every server."""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar, Final, Literal

from starlette.responses import PlainTextResponse

from yaat.constants import MAX_REASON_BYTES
from yaat.exceptions import (
    ArgumentError,
    BrokerError,
    ChannelError,
    HTTPException,
    MessageError,
    Refused,
    RouteError,
    UsageError,
    WebSocketDisconnect,
    WebSocketException,
)
from yaat.handshake import checked_headers, checked_status
from yaat.lifecycle import RESPONSE_BODY
from yaat.observer import tell
from yaat.parameters import Parameters
from yaat.payload import decode, encode
from yaat.policy import DEFAULT, Policy
from yaat.types import Receive, Scope, Send
from yaat.websockets import WebSocket, WebSocketState

__all__ = ["Endpoint", "WebSocketEndpoint", "conclude"]

logger = logging.getLogger("yaat.error")
refusals = logging.getLogger("yaat.refused")

Run = Callable[[WebSocket], Awaitable[None]]

FAREWELL: Final = 1.0
"""How long, in seconds, saying goodbye may take when the server cancels the handler."""

_CODES: Final[Mapping[int, int]] = {
    HTTPStatus.SERVICE_UNAVAILABLE: 1013,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: 1009,
}
"""The close codes that say what an HTTP status says; others become 1008 (4xx) or 1011 (5xx)."""

EVENTS: Final = ("on_connect", "on_receive", "on_disconnect")


class WebSocketEndpoint:
    """A handler as a class: a method for each event, an instance for each connection.

    A plain class with some of these methods is a handler as well. What a method raises ends the
    connection as what a handler function raises does.
    """

    encoding: ClassVar[Literal["text", "bytes", "json"] | None] = None
    """What `on_receive` is given; None: text and bytes, as they come."""

    async def on_connect(self, websocket: WebSocket) -> None:
        """Answer the handshake. It may name path parameters as a handler function does."""
        await websocket.accept()

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        """Take a message."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Clean up an accepted connection: the peer left, or something failed (1011)."""


class Endpoint:
    """An ASGI application that runs one WebSocket handler.

    It checks the origin, runs the handler as a scope for `start_soon`, and ends the connection:
    that the handler returns, or what it raises, becomes the same close code or HTTP status on
    every server. Nothing is raised further: a failure is logged once, with its traceback, on
    `yaat.error`, and the observers are told. It also serves as a route of Starlette or FastAPI.

    Args:
        handler: A coroutine function, a class with methods for events, or an ASGI application.
        policy: The policy of this endpoint; None: the nearest one given around it.

    Raises:
        RouteError: The handler is a function that is not async.
    """

    __slots__ = ("_policy", "_run", "handler")

    def __init__(self, handler: Any, policy: Policy | None = None) -> None:
        self.handler = handler
        self._policy = policy
        self._run = _runner(handler)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the handler over one connection.

        Raises:
            UsageError: There is no asyncio event loop.
        """
        _require_asyncio()
        if self._policy is not None:
            scope["yaat.policy"] = self._policy
        websocket = WebSocket.attach(scope, receive, send)
        failure: Exception | None = None
        try:
            try:
                async with websocket:
                    _tell_opened(websocket)
                    _check_origin(websocket.scope)
                    await self._run(websocket)
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    await _say_goodbye(websocket)
                    raise
                failure = RuntimeError("a CancelledError left the handler; nobody cancelled it")
                failure.__cause__ = error
            except Exception as error:  # noqa: BLE001 - where every failure of a handler ends
                failure = error
            await conclude(websocket, failure)
            failure, websocket._unclosed = websocket._unclosed, None
            if failure is not None:
                raise failure  # so that the server, which closed nothing, does it now
        finally:
            failure = None  # its traceback holds this frame
            await websocket._end_outbox()
            websocket.scope.pop("yaat.websocket", None)  # each holds the other


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("Yaat runs on asyncio: start the server without trio") from None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# Before the handler


def _check_origin(scope: Scope) -> None:
    """Refuse a browser that shows somebody else's page (RFC 6455, section 10.2)."""
    headers = scope.get("headers") or ()
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if not origins:
        return
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    policy: Policy = scope.get("yaat.policy", DEFAULT)
    if not all(policy.allows_origin(origin, hosts[0] if hosts else None) for origin in origins):
        refusals.warning(
            "refused a handshake from a page of %.200r: that is not the host %.200r; "
            "to allow it, give Policy(origins=[...])",
            ", ".join(origins),
            ", ".join(hosts),
        )
        raise Refused  # plainly: one server logs an error for every other answer


def _runner(handler: Any) -> Run:
    """Return what runs `handler` over a connection."""
    if _is_event_class(handler):
        return _event_runner(handler)
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isfunction(function) or inspect.ismethod(function):
        if not inspect.iscoroutinefunction(function):
            raise RouteError(f"the WebSocket handler {function.__name__}() has to be async")
        return _bound(handler)
    return lambda websocket: handler(_lent(websocket), websocket.receive, websocket.send)


def _lent(websocket: WebSocket) -> Scope:
    """Return the scope for an application over `websocket`, which is its server."""
    return {key: value for key, value in websocket.scope.items() if key != "yaat.websocket"}


def _bound(function: Callable[..., Awaitable[None]]) -> Run:
    """Pass the path parameters that `function` names; if it names none, it runs as it is."""
    parameters = Parameters(function)
    if parameters.is_empty:
        return function
    return lambda websocket: function(websocket, **parameters.bind(websocket.path_params))


def _is_event_class(handler: Any) -> bool:
    # Starlette's own endpoints are awaitable ASGI applications.
    return (
        inspect.isclass(handler)
        and any(hasattr(handler, event) for event in EVENTS)
        and not hasattr(handler, "__await__")
    )


def _event_runner(cls: type) -> Run:
    defaults = {"encoding": None} | {event: getattr(WebSocketEndpoint, event) for event in EVENTS}
    missing = {name: value for name, value in defaults.items() if not hasattr(cls, name)}
    complete: Any = type(cls.__name__, (cls,), missing) if missing else cls
    parameters = Parameters(complete.on_connect, skip=2)

    async def run_events(websocket: WebSocket) -> None:
        events = complete()
        await events.on_connect(websocket, **parameters.bind(websocket.path_params))
        if websocket.application_state is WebSocketState.CONNECTED:
            await _dispatch(events, websocket)

    return run_events


async def _dispatch(events: Any, websocket: WebSocket) -> None:
    """Hand every message to `on_receive` until the connection ends, then `on_disconnect`."""
    close_code = 1011
    try:
        while True:
            data = await _receive_as(events.encoding, websocket)
            await events.on_receive(websocket, data)
    except WebSocketDisconnect as departure:
        if not _is_departure(departure, websocket):
            raise
        close_code = departure.code
    finally:
        await events.on_disconnect(websocket, close_code)


async def _receive_as(encoding: str | None, websocket: WebSocket) -> Any:
    if encoding == "text":
        return await websocket.receive_text()
    if encoding == "bytes":
        return await websocket.receive_bytes()
    data = await websocket.receive_data()
    return decode(data) if encoding == "json" else data


# After the handler


@dataclass(frozen=True, slots=True)
class _Ending:
    """What goes on the wire when a handler has ended: as a close, or before accept as a status."""

    code: int = 1000
    reason: str = ""
    status: int = 403
    headers: Mapping[str, str] = field(default_factory=dict)
    failure: Exception | None = None


_NORMAL = _Ending()


def _cause(error: Exception, websocket: WebSocket) -> Exception | None:
    """Return what a handler failed of; None if only the peer left, which is ordinary life.

    Tasks in a group may fail all at once because the peer left; what else failed counts.
    """
    leaves = [leaf for leaf in _leaves(error) if not _is_departure(leaf, websocket)]
    if not leaves:
        return None
    return leaves[0] if len(leaves) == 1 else error


def _is_departure(error: Exception, websocket: WebSocket) -> bool:
    # That another connection was lost, which the handler was sending to, is a failure of this one.
    gone = websocket._cut_with is not None or websocket.client_state is WebSocketState.DISCONNECTED
    return gone and isinstance(error, WebSocketDisconnect)


def _leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


def _ending(error: Exception | None) -> _Ending:
    """Choose how a connection ends whose handler raised `error`, or nothing."""
    if error is None:
        return _NORMAL
    if isinstance(error, Refused):
        return _Ending(error.close_code, _text(error.reason), error.status, error.headers)
    if isinstance(error, (MessageError, ChannelError, BrokerError)):
        return _Ending(error.close_code, error.reason, error.status)
    if isinstance(error, WebSocketException):
        return _Ending(error.code, _text(error.reason))
    if isinstance(error, HTTPException):
        status = error.status_code
        code = _CODES.get(status, 1008 if status < HTTPStatus.INTERNAL_SERVER_ERROR else 1011)
        return _Ending(code, _text(error.detail), status, error.headers or {})
    return _Ending(1011, "", 500, failure=error)


def _text(reason: Any) -> str:
    """Return `reason` as text that can travel; FastAPI's `detail` may be any JSON value."""
    try:
        text = reason if isinstance(reason, str) else encode(reason).decode()
    except (TypeError, ValueError):
        return ""
    return text.encode(errors="replace").decode()


async def conclude(websocket: WebSocket, error: Exception | None = None) -> None:
    """End `websocket` as it ends when a handler raises `error`, or returns (None).

    What has ended stays as it is; a failure is logged and told all the same. For a middleware that
    does not pass a connection on.
    """
    await _conclude(websocket, _ending(error and _cause(error, websocket)))


async def _conclude(websocket: WebSocket, ending: _Ending) -> None:
    _tell_opened(websocket)
    if ending.failure is not None:
        logger.error("a WebSocket handler failed", exc_info=ending.failure)
        tell(websocket.scope, "failed", ending.failure)
    try:
        await _end(websocket, ending)
    except (ArgumentError, TypeError) as error:
        logger.exception("a connection cannot end with the code or headers that were raised")
        tell(websocket.scope, "failed", error)
        await _end(websocket, _Ending(1011, status=500))
    finally:
        _tell_ended(websocket, ending.reason)


def _tell_opened(websocket: WebSocket) -> None:
    if websocket._told is None:
        websocket._told = "opened"
        tell(websocket.scope, "opened")


def _tell_ended(websocket: WebSocket, reason: str) -> None:
    if websocket._told == "ended":
        return
    websocket._told = "ended"
    if websocket.denial_status is not None:
        tell(websocket.scope, "refused", websocket.denial_status, reason)
    else:
        # None: it is cancelled before our close could be handed over.
        tell(websocket.scope, "closed", websocket.close_code or 1006, websocket.close_reason)


async def _end(websocket: WebSocket, ending: _Ending) -> None:
    state = websocket.application_state
    is_cut = websocket._cut_with is not None
    if (is_cut or state is WebSocketState.CONNECTED) and websocket._lost is not None:
        return  # the usual end: the peer closed, and there is nobody to close to
    with contextlib.suppress(WebSocketDisconnect):
        # Of a cut the close may be on its way, and a server that we leave before it has taken it
        # closes by itself (granian, with 1005): this one waits for its turn behind it.
        if is_cut or state is WebSocketState.CONNECTED:
            await websocket.close(ending.code, _cut(ending.reason))
        elif state is WebSocketState.RESPONSE:
            await websocket.send({"type": RESPONSE_BODY})
        elif state is WebSocketState.CONNECTING:
            await _refuse(websocket, ending)


async def _refuse(websocket: WebSocket, ending: _Ending) -> None:
    is_plain = ending.status == HTTPStatus.FORBIDDEN and not (ending.reason or ending.headers)
    if is_plain or not websocket.can_deny:
        await websocket.close()  # the server makes a 403 of it
        return
    text = ending.reason or HTTPStatus(checked_status(ending.status)).phrase
    checked_headers(ending.headers, accept=False)
    headers = dict(ending.headers)
    await websocket.send_denial_response(PlainTextResponse(text, ending.status, headers))


async def _say_goodbye(websocket: WebSocket) -> None:
    """The server cancels the handler, as some do when they stop: tell the peer to come back."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL):
            await _conclude(websocket, _Ending(1012, status=503))


def _cut(reason: str) -> str:
    """Cut `reason` to what a close frame holds, between two characters."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
