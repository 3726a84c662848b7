"""Observer: what happened to the connections, told to whoever listens."""

import logging
from typing import Any

from yaat.types import Scope

logger = logging.getLogger("yaat.error")


class Observer:
    """Told what happens; does nothing by itself. Override what you want to know.

    Of every connection that reaches a handler, or that a middleware of Yaat keeps, `opened` is told
    first, and in the end either `refused` or `closed`.

    A method is called in the event loop, between two messages: it must neither block nor await.
    What it raises is logged on `yaat.error` and changes nothing for the connection.
    `scope` is the ASGI scope of the connection; it may hold secrets (query string, headers).
    """

    def opened(self, scope: Scope) -> None:
        """A connection has come in; the handshake has not been answered yet."""

    def refused(self, scope: Scope, status: int, reason: str) -> None:
        """The handshake was answered with `status`; a server without denial responses sent 403."""

    def closed(self, scope: Scope, code: int, reason: str) -> None:
        """An accepted connection ended: the close code that we sent, or that the peer sent."""

    def failed(self, scope: Scope, error: BaseException) -> None:
        """The handler, or work that it started, raised what nobody caught."""

    def dropped(self, scope: Scope, channel: str, slow: str) -> None:
        """A publication was left out for a member of `channel` that reads too slowly.

        `slow` is the policy by which it was: `ChannelOptions.slow`.
        """

    def cut(self, scope: Scope, channel: str) -> None:
        """A connection is closed since, as a member of `channel`, it reads too slowly."""


def tell(scope: Scope, event: str, *details: Any) -> None:
    """Tell the observers of a connection. What one raises is logged, and changes nothing."""
    observers: tuple[Observer, ...] = scope.get("yaat.observers", ())
    for observer in observers:
        try:
            getattr(observer, event)(scope, *details)
        except Exception:
            logger.exception("an observer failed in %s()", event)


__all__ = ["Observer"]
