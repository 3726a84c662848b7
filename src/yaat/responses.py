"""The responses: Starlette's, under the names Yaat has, and with a `body` that may be set again."""

import asyncio
import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette import responses as starlette
from starlette.background import BackgroundTask

from yaat.background import RunAfterResponse
from yaat.types import Receive, Scope, Send

__all__ = [
    "FileResponse",
    "HTMLResponse",
    "JSONResponse",
    "PlainTextResponse",
    "RedirectResponse",
    "Response",
    "RunAfterResponse",
    "StreamResponse",
    "StreamingResponse",
    "TextResponse",
]


class Response(starlette.Response):
    """A response whose content is known: bytes or text.

    Guarantees: `body` may be set until the response is sent; its content-length follows.
    """

    _body: bytes | memoryview

    @property
    def body(self) -> bytes | memoryview:
        """What is sent; set it to bytes or text to send something else."""
        try:
            return self._body
        except AttributeError:
            raise AttributeError("a streamed response has no body until one is set") from None

    @body.setter
    def body(self, content: Any) -> None:
        self._body = starlette.Response.render(self, content)
        # Not there yet: __init__ sets the body first and makes the headers from it.
        if hasattr(self, "raw_headers") and self._says_length():
            self.headers["content-length"] = str(len(self._body))

    def _says_length(self) -> bool:
        # RFC 9110, section 8.6: no Content-Length with a 1xx or 204; a 304's is not its own body's.
        bodiless = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        return self.status_code >= HTTPStatus.OK and self.status_code not in bodiless


class TextResponse(Response, starlette.PlainTextResponse):
    """Plain text."""


PlainTextResponse = TextResponse


class HTMLResponse(Response, starlette.HTMLResponse):
    """HTML."""


class JSONResponse(Response, starlette.JSONResponse):
    """Any JSON value; without one, `null`."""

    def __init__(
        self,
        content: Any = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type, background)


class RedirectResponse(Response, starlette.RedirectResponse):
    """Sends the client to another URL; it repeats its method and body there (307) by default."""


class _Streamed(Response):
    """A response whose content is not at hand; a `body` that is set is sent in its place."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if hasattr(self, "_body"):
            await starlette.Response.__call__(self, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class StreamResponse(_Streamed, starlette.StreamingResponse):
    """What a generator, plain or asynchronous, yields: each piece is sent as it comes."""


StreamingResponse = StreamResponse


class FileResponse(_Streamed, starlette.FileResponse):
    """A file, read piece by piece; where there is none, a 404.

    Args:
        path: The file.
        filename: The name under which the client is to save it.
        method: `"HEAD"` for the headers alone. They alone are sent to a HEAD request anyway.
        stat_result: The file's `os.stat`, if it is known already.
    """

    def __init__(  # noqa: PLR0913 - Starlette's parameters and one more
        self,
        path: str | os.PathLike[str],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
        filename: str | None = None,
        stat_result: os.stat_result | None = None,
        content_disposition_type: str = "attachment",
        *,
        method: str = "",
    ) -> None:
        super().__init__(
            path,
            status_code,
            headers,
            media_type,
            background,
            filename,
            stat_result,
            content_disposition_type,
        )
        self._headers_only = method.upper() == "HEAD"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if self.stat_result is None and not await asyncio.to_thread(os.path.exists, self.path):
            await TextResponse("file not found", status_code=404)(scope, receive, send)
        elif self._headers_only:
            await super().__call__({**scope, "method": "HEAD"}, receive, send)
        else:
            await super().__call__(scope, receive, send)
