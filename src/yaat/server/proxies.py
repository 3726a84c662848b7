"""What uvicorn's middleware for proxies says of a connection, without staying around it."""

import contextlib
import copy
from functools import lru_cache
from typing import Any, cast

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from yaat.types import ASGIApp, Scope


def behind_proxy(app: Any, scope: Scope) -> ASGIApp:
    """Let the middleware change `scope`, and return the application behind it.

    It does no more than that; its coroutine need not stay for as long as the connection lives.

    Args:
        app: The application that uvicorn has loaded, which has the middleware around it, if proxy
            headers are believed at all.
        scope: Of a request or a WebSocket; at least its type, client and headers.
    """
    if type(app) is not ProxyHeadersMiddleware:
        return cast(ASGIApp, app)
    with contextlib.suppress(StopIteration):
        _alone(app)(cast(Any, scope), _nothing, _nothing).send(None)
    return cast(ASGIApp, app.app)


@lru_cache(maxsize=16)
def _alone(middleware: ProxyHeadersMiddleware) -> ProxyHeadersMiddleware:
    alone = copy.copy(middleware)
    alone.app = _nothing
    return alone


async def _nothing(*_: object) -> Any:
    """Be an application that does nothing."""
