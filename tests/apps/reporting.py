"""How an application tells the test what happened inside: one JSON line for each event.

The lines go to the file that an environment variable names, keyed by what the test put into the
query string. That works across processes and in one.
"""

import json
import logging
import os
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from servers import RECORDS

KEY: ContextVar[str | None] = ContextVar("key", default=None)

# What a server may leave out (ASGI, "Websocket Connection Scope"); daphne leaves out six of these.
OPTIONAL = {
    *("asgi", "http_version", "scheme", "raw_path", "query_string", "root_path"),
    *("client", "server", "subprotocols", "state", "extensions"),
}


def report(event: str, **facts: Any) -> None:
    """Tell the test that `event` happened on the connection whose handler runs."""
    line = json.dumps({"key": KEY.get(), "event": event, **facts})
    # One write of a file opened to append: lines of two processes do not mix.
    with open(os.environ[RECORDS], "a") as records:  # noqa: PTH123 - called very often
        records.write(f"{line}\n")


class Reporting:
    """Middleware that reports how the application left a WebSocket, and what was logged meanwhile.

    With `bare` in the query string the application does not see the keys that are optional.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        record_logs()
        query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
        KEY.set(query["key"][0])
        if "bare" in query:
            scope = {key: value for key, value in scope.items() if key not in OPTIONAL}
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            report("escaped", error=repr(error))
            raise
        finally:
            report("ended")


class LogRecorder(logging.Handler):
    """Reports each log record with the key of the connection in whose context it was made."""

    def emit(self, record: logging.LogRecord) -> None:
        if RECORDS not in os.environ:  # another test of this process logs
            return
        error = record.exc_info[1] if record.exc_info else None
        report(
            "log",
            logger=record.name,
            level=record.levelname,
            message=record.getMessage(),
            error=error and repr(error),
        )


RECORDER = LogRecorder(logging.INFO)


def record_logs() -> None:
    """Listen to every logger, also to those of the servers, which do not propagate to the root."""
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for logger in loggers:
        if (logger is logging.root or not logger.propagate) and RECORDER not in logger.handlers:
            logger.addHandler(RECORDER)
