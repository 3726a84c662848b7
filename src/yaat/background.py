"""Work that is done after the response has been sent. Starlette's, with the names Yaat has."""

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as _BackgroundTasks

from yaat.types import ASGIApp, Receive, Scope, Send

__all__ = ["BackgroundTask", "BackgroundTasks", "RunAfterResponse"]

P = ParamSpec("P")


class BackgroundTasks(_BackgroundTasks):
    """Several tasks, run one after the other; the first that raises ends the row."""

    def add(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add a task: a coroutine function, or a plain function, which is run in a thread."""
        self.add_task(function, *args, **kwargs)


class RunAfterResponse:
    """A response and what is to be done once it has been sent; return it from a handler.

    Args:
        response: The response; any ASGI application will do.
        background: A `BackgroundTask`, some `BackgroundTasks`, or any coroutine function.
    """

    def __init__(self, response: ASGIApp, background: Callable[[], Awaitable[Any]]) -> None:
        self.response = response
        self.background = background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then do the work."""
        await self.response(scope, receive, send)
        await self.background()
