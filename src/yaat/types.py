"""The ASGI messages and callables, the same shapes as Starlette's (ASGI 3.0, "Applications")."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
"""What a connection is: its type, path, headers and so on."""

Message = MutableMapping[str, Any]
"""One event between server and application; `message["type"]` says which."""

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
