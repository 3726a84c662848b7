"""What an HTTP request and a WebSocket have in common, and the HTTP request.

Everything is Starlette's but for three things: `url` is a real `str`, `path` is there, and a scope
that lacks optional keys, or has them in an odd shape, is read all the same (servers differ).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, cast, overload

from starlette.datastructures import URL as _URL
from starlette.datastructures import Address, FormData, Headers, QueryParams, State, UploadFile
from starlette.requests import ClientDisconnect, StateT, empty_receive, empty_send
from starlette.requests import HTTPConnection as _HTTPConnection
from starlette.requests import Request as _Request

from yaat.channels import Channel, Hub
from yaat.exceptions import UsageError
from yaat.types import Receive, Scope, Send

__all__ = [
    "URL",
    "Address",
    "ClientDisconnect",
    "FormData",
    "HTTPConnection",
    "Headers",
    "QueryParams",
    "Request",
    "State",
    "UploadFile",
]


class _Truth(int):
    """A truth that may also be called: `is_secure` as Starlette has it, `is_secure()` as Yaat."""

    def __call__(self) -> bool:
        return bool(self)


class URL(_URL, str):  # noqa: SLOT000 - Starlette's URL has a __dict__
    """A URL: a real `str` that also knows its parts.

    It compares, hashes, formats and serialises as the string it is. Starlette's parts and methods
    are there (`scheme`, `netloc`, `path`, `query`, `fragment`, `hostname`, `port`, `username`,
    `password`, `components`, `include_query_params()`, `remove_query_params()`, ...), and beside
    them `host`, `server` and `host_header`.

    Args:
        url: The URL itself, or
        scope: the ASGI scope of the connection whose URL it is, or
        components: the parts, by name.
    """

    host_header: str | None
    """The Host header that the client sent; `None` if the URL does not come from a scope."""

    _server: tuple[str, int] | None

    if TYPE_CHECKING:

        def include_query_params(self, **kwargs: Any) -> "URL": ...
        def replace_query_params(self, **kwargs: Any) -> "URL": ...
        def remove_query_params(self, keys: str | Sequence[str]) -> "URL": ...

    def __new__(cls, url: str = "", scope: Scope | None = None, **components: Any) -> Self:
        """Compose the string first: a `str` is what it is when it is made."""
        readable = None if scope is None else _readable(scope)
        self = str.__new__(cls, str(_URL(url, readable, **components)))
        self.host_header = None if readable is None else Headers(scope=readable).get("host")
        self._server = None if readable is None else readable["server"]
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(str.__str__(self))

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)

    @property
    def host(self) -> str | None:
        """The host name, without its port."""
        return self.hostname

    @property
    def server(self) -> tuple[str, int | None] | None:
        """Where the server listens, as the scope says it; else what the URL says."""
        said = (self.hostname, self.port) if self.hostname else None
        return self._server or said

    @property
    def is_secure(self) -> _Truth:  # type: ignore[override]  # bool cannot be subclassed
        """Whether the connection is encrypted; `is_secure` and `is_secure()` say the same."""
        return _Truth(self.scheme in ("https", "wss"))

    @overload
    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str: ...

    @overload
    def replace(self, **components: Any) -> "URL": ...

    def replace(self, *text: Any, **components: Any) -> str:
        """Replace text, as of any `str`, or parts of the URL by their names, as Starlette does."""
        if text:
            return str.replace(self, *text)
        return cast("URL", super().replace(**components))


def _readable(scope: Scope) -> dict[str, Any]:
    """Copy ``scope`` with all that Starlette's URL reads present, and of the type it expects."""
    default_scheme = "ws" if scope.get("type") == "websocket" else "http"
    query: bytes = scope.get("query_string") or b""
    return {
        "scheme": scope.get("scheme") or default_scheme,
        "server": _host_and_port(scope.get("server")),
        "path": scope["path"],
        # Bytes that are no UTF-8 come from the peer: they must not raise here.
        "query_string": query.decode(errors="replace").encode(),
        "headers": scope.get("headers") or (),
    }


def _host_and_port(server: Any) -> tuple[str, int] | None:
    """Read ``server``: ASGI allows `None` and, for a unix socket, a path without a port."""
    match server:
        case [str(host), int() | str() as port]:
            return host, int(port)
        case _:
            return None


class HTTPConnection(_HTTPConnection[StateT]):
    """What is the same for a request and a WebSocket: Starlette's connection, and a little more.

    Guarantees: nothing is parsed or allocated before it is asked for. Any key of the scope that
    ASGI calls optional may be missing.
    """

    @property
    def path(self) -> str:
        """The path, decoded, with the prefixes of mounts."""
        return str(self.scope["path"])

    @property
    def url(self) -> URL:
        """The whole URL as a `str` that knows its parts."""
        if not hasattr(self, "_url"):
            self._url: URL = URL(scope=self.scope)
        return self._url

    @property
    def base_url(self) -> URL:
        """The URL of the application's root."""
        root = self.scope.get("app_root_path", self.scope.get("root_path", ""))
        return URL(scope={**self.scope, "path": root.rstrip("/") + "/", "query_string": b""})

    @property
    def headers(self) -> Headers:
        """The headers: case-insensitive, immutable, `getlist()` for repeated ones."""
        self.scope.setdefault("headers", [])
        return super().headers

    @property
    def query_params(self) -> QueryParams:
        """The query's parameters as strings, the last one if repeated; `getlist()` has all."""
        if not hasattr(self, "_query_params"):
            self._query_params = QueryParams(self.scope.get("query_string") or b"")
        return self._query_params

    @property
    def client(self) -> Address | None:
        """The peer's host and port, or `None` if the server does not know them."""
        client = self.scope.get("client")
        # granian gives the port as a string.
        return Address(client[0], int(client[1] or 0)) if client else None

    def channel(self, name: str) -> Channel:
        """Return a channel of the application around this.

        Raises:
            ChannelNameError: No channel can have this name. It is a `ValueError`.
            UsageError: There is no `Yaat` around this.
        """
        hub: Hub | None = self.scope.get("yaat.hub")
        if hub is None:
            raise UsageError(
                "channels need a Yaat around the handler; elsewhere there is app.channel(name)"
            )
        return hub.channel(name)


class Request(HTTPConnection[StateT], _Request[StateT]):
    """An HTTP request: Starlette's, with `path` and a `url` that is a `str`.

    Raises:
        UsageError: The scope is not of an HTTP request.
    """

    def __init__(
        self, scope: Scope, receive: Receive = empty_receive, send: Send = empty_send
    ) -> None:
        if scope["type"] != "http":
            raise UsageError(f"a Request needs a scope of type 'http', not {scope['type']!r}")
        super().__init__(scope, receive, send)
