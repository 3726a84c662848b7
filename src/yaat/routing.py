"""Router: which handler takes a connection, for sockets and requests alike."""

import functools
import inspect
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from types import CoroutineType
from typing import Any, Final, TypeVar, cast, overload

from starlette._exception_handler import wrap_app_handling_exceptions
from starlette._utils import is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute, Match, NoMatchFound, compile_path, get_name
from starlette.routing import Mount as _Mount
from starlette.routing import Route as _Route
from starlette.routing import Router as _Router
from starlette.routing import WebSocketRoute as _WebSocketRoute
from starlette.staticfiles import StaticFiles

from yaat.endpoint import Endpoint, WebSocketEndpoint
from yaat.exceptions import HTTPException, RouteError
from yaat.parameters import Parameters
from yaat.policy import Policy
from yaat.requests import Request
from yaat.types import ASGIApp, Receive, Scope, Send
from yaat.websockets import WebSocket

__all__ = ["Mount", "NoMatchFound", "Route", "Router", "WebSocketEndpoint", "WebSocketRoute"]

H = TypeVar("H", bound=Callable[..., Any])

METHODS: Final[tuple[str, ...]] = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "QUERY",
    "TRACE",
)


class Responder:
    """An ASGI application that answers a request with what a handler returns.

    Args:
        handler: A function of the request and of path parameters, sync or async, or a class with
            methods `get`, `post`, ..., of which every request gets an instance.
        methods: Those of the requests that come here.

    Raises:
        RouteError: The class has no method for one of them.
    """

    def __init__(self, handler: Callable[..., Any], methods: Iterable[str]) -> None:
        self._handler = handler
        self._is_class = inspect.isclass(handler)
        if self._is_class:
            self._names = {method: _method_name(handler, method) for method in methods}
            functions = {method: getattr(handler, name) for method, name in self._names.items()}
            self._parameters = {m: Parameters(f, skip=2) for m, f in functions.items()}
        else:
            self._parameters = dict.fromkeys(methods, Parameters(handler))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what the handler raises finds the application's exception handlers.

        Raises:
            RouteError: The handler returned no response.
        """
        request = Request(scope, receive, send)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            response = await self._response(request)
            await response(scope, receive, send)

        await wrap_app_handling_exceptions(respond, request)(scope, receive, send)

    async def _response(self, request: Request) -> ASGIApp:
        function = self._handler
        if self._is_class:
            function = getattr(function(), self._names[request.method])
        arguments = self._parameters[request.method].bind(request.path_params)
        if is_async_callable(function):
            response: Any = await function(request, **arguments)
        else:
            response = await run_in_threadpool(function, request, **arguments)
        if not callable(response):
            name = get_name(function)
            raise RouteError(f"{name}() returned {type(response).__name__}, not a response")
        return cast(ASGIApp, response)


class Route(_Route):
    """An HTTP route. Its handler gets the path parameters that it names.

    Args:
        path: Such as `"/posts/{post_id}"`.
        handler: What a `Responder` takes; anything else is an ASGI application.
        methods: Those that are taken. If not given: GET (and HEAD); all that a class has; all.
        options: As Starlette's route has them: `name`, `include_in_schema`, `middleware`, ...

    Raises:
        RouteError: The path cannot be.
    """

    def __init__(
        self,
        path: str,
        handler: Callable[..., Any],
        *,
        methods: Collection[str] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        is_class = inspect.isclass(handler) and not hasattr(handler, "__await__")
        app: Any = _checked(handler)
        if is_class or inspect.isroutine(_unwrapped(handler)):
            methods = _methods(handler, methods)
            app = Responder(handler, methods)
        name = name or get_name(handler)
        super().__init__(_checked_path(path), app, methods=methods, name=name, **options)
        self.endpoint = handler


class WebSocketRoute(_WebSocketRoute):
    """A WebSocket route. Its handler gets the path parameters that it names.

    Args:
        path: Such as `"/rooms/{room}"`.
        handler: What an `Endpoint` takes.
        policy: The policy of this route; None: the nearest one given around it.
        options: As Starlette's route has them: `name`, `middleware`.

    Raises:
        RouteError: The path or the handler cannot be.
    """

    def __init__(
        self,
        path: str,
        handler: Callable[..., Any],
        *,
        policy: Policy | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        name = name or get_name(handler)
        endpoint = Endpoint(_checked(handler), policy)
        super().__init__(_checked_path(path), endpoint, name=name, **options)
        self.endpoint = handler

    def handle(self, scope: Scope, receive: Receive, send: Send) -> "CoroutineType[Any, Any, None]":
        """Pass the connection on, at the cost of no coroutine."""
        return cast("CoroutineType[Any, Any, None]", self.app(scope, receive, send))


class Mount(_Mount):
    """A whole application under a prefix.

    Args:
        prefix: Slashes around it do not matter.
        app: An ASGI application.
        websocket: Whether only WebSocket connections enter. `StaticFiles` take only requests.
        options: As Starlette's mount has them: `name`, `middleware`, ...
    """

    def __init__(
        self, prefix: str, app: ASGIApp, *, websocket: bool = False, **options: Any
    ) -> None:
        prefix = prefix.strip("/")
        _checked_path(f"{prefix}/{{path:path}}")
        super().__init__(f"/{prefix}" if prefix else "", _checked(app), **options)
        self._enter = ("websocket",) if websocket else ("http", "websocket")
        if isinstance(app, StaticFiles):
            self._enter = ("http",)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match what is under the prefix; for a socket also the bare prefix, as its root."""
        if scope["type"] not in self._enter:
            return Match.NONE, {}
        match, child_scope = super().matches(scope)
        if match is Match.NONE and scope["type"] == "websocket":
            root = {"path": scope["path"] + "/"}  # a request would be redirected there
            match, child_scope = super().matches({**scope, **root})
            child_scope = {**root, **child_scope}
        return match, child_scope


class Routes:
    """Adds routes to a table; what a `Router` and an application have in common."""

    @property
    def table(self) -> "Router":
        """The router whose routes they are."""
        raise NotImplementedError

    @property
    def paths(self) -> list[str]:
        """The paths of all routes, those of mounted routers included."""
        return list(_paths(self.table.routes))

    def route(
        self, path: str, methods: Collection[str] | None = None, **options: Any
    ) -> Callable[[H], H]:
        """Return a decorator that adds an HTTP route; see `Route`."""

        def add(handler: H) -> H:
            self.table.routes.append(Route(path, handler, methods=methods, **options))
            return handler

        return add

    def add_route(
        self,
        path: str,
        endpoint: Callable[..., Any] | None = None,
        methods: Collection[str] | None = None,
        name: str | None = None,
        include_in_schema: bool = True,  # noqa: FBT001, FBT002 - Starlette's signature
        *,
        handler: Callable[..., Any] | None = None,
    ) -> None:
        """Add an HTTP route; see `Route`. `handler` is another name for `endpoint`."""
        taken = _one_of(endpoint, handler)
        self.table.routes.append(
            Route(path, taken, methods=methods, name=name, include_in_schema=include_in_schema)
        )

    def websocket_route(
        self, path: str, name: str | None = None, *, policy: Policy | None = None
    ) -> Callable[[H], H]:
        """Return a decorator that adds a WebSocket route; see `WebSocketRoute`."""

        def add(handler: H) -> H:
            self.table.routes.append(WebSocketRoute(path, handler, policy=policy, name=name))
            return handler

        return add

    @overload
    def add_websocket_route(
        self,
        path: str,
        endpoint: Callable[..., Any],
        name: str | None = None,
        *,
        policy: Policy | None = None,
    ) -> None: ...
    @overload
    def add_websocket_route(
        self,
        path: str,
        *,
        handler: Callable[..., Any],
        name: str | None = None,
        policy: Policy | None = None,
    ) -> None: ...
    @overload
    def add_websocket_route(
        self, handler: Callable[..., Any], /, *, policy: Policy | None = None
    ) -> None: ...
    @overload
    def add_websocket_route(
        self, *, handler: Callable[..., Any], policy: Policy | None = None
    ) -> None: ...
    def add_websocket_route(
        self,
        path: str | Callable[..., Any] | None = None,
        endpoint: Callable[..., Any] | None = None,
        name: str | None = None,
        *,
        handler: Callable[..., Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        """Add a WebSocket route; see `WebSocketRoute`. `handler` is another name for `endpoint`.

        A callable as the only argument has no path: it is the default route and takes every
        socket that no other route took.

        Raises:
            RouteError: No handler, or two; a path or handler that cannot be; a second default.
        """
        if isinstance(path, str):
            taken = _one_of(endpoint, handler)
            self.table.routes.append(WebSocketRoute(path, taken, policy=policy, name=name))
        elif endpoint is not None or name is not None:
            raise RouteError("without a path, give a handler and nothing else")
        elif self.table.default_socket is not _NO_ROUTE:
            raise RouteError("this router has a default route already")
        else:
            self.table.default_socket = Endpoint(_checked(_one_of(path, handler)), policy)

    @overload
    def mount(
        self,
        path: str,
        app: ASGIApp | type[_Router],
        name: str | None = None,
        *,
        websocket: bool = False,
    ) -> None: ...
    @overload
    def mount(
        self,
        *,
        prefix: str,
        router: ASGIApp | type[_Router],
        name: str | None = None,
        websocket: bool = False,
    ) -> None: ...
    @overload
    def mount(self, router: ASGIApp | type[_Router], prefix: str, /) -> None: ...
    def mount(
        self,
        path: Any = None,
        app: Any = None,
        name: str | None = None,
        *,
        prefix: str | None = None,
        router: Any = None,
        websocket: bool = False,
    ) -> None:
        """Mount an application, which then takes all that is under the prefix; see `Mount`.

        Args:
            path: The prefix, such as `"/ws"`; slashes around it do not matter. (The 2020 Yaat had
                the router first and then the prefix: that works too.)
            app: A `Router`, a `Yaat`, any ASGI application; a subclass of `Router` is instantiated.
            name: Of the mount, for `url_for`.
            prefix: Another name for `path`.
            router: Another name for `app`.
            websocket: Whether only WebSocket connections enter.

        Raises:
            RouteError: The prefix or the application is missing, or given twice.
        """
        if path is not None and not isinstance(path, str):
            path, app = app, path
        mounted = _made(_one_of(app, router))
        mount = Mount(_one_of(path, prefix), mounted, name=name, websocket=websocket)
        self.table.routes.append(mount)


class Router(Routes, _Router):
    """A table of routes, sockets and requests side by side.

    Args:
        routes: To begin with.
        policy: For the sockets of this router; None: the nearest one given around it.
        options: As Starlette's router has them: `redirect_slashes`, `default`, `lifespan`, ...
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute] | None = None,
        *,
        policy: Policy | None = None,
        **options: Any,
    ) -> None:
        self.default_socket: ASGIApp = _NO_ROUTE
        super().__init__(routes, **options)
        if policy is not None:
            self.middleware_stack = WithScope(self.middleware_stack, {"yaat.policy": policy})

    @property
    def table(self) -> "Router":
        """Itself."""
        return self

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what no route took: a socket goes to the default route, if there is one."""
        if scope["type"] == "websocket":
            await self.default_socket(scope, receive, send)
        else:
            await super().not_found(scope, receive, send)


class WithScope:
    """Adds items to the scope of a connection, at the cost of no coroutine."""

    __slots__ = ("_app", "_items")

    _asgi_single_callable = True  # for asgiref, which looks for a coroutine function

    def __init__(
        self, app: Callable[..., Coroutine[Any, Any, None]], items: dict[str, Any]
    ) -> None:
        self._app = app
        self._items = items

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Pass the connection on."""
        scope.update(self._items)
        return self._app(scope, receive, send)


async def _no_route(_: WebSocket) -> None:
    raise HTTPException(404)


_NO_ROUTE: Final = Endpoint(_no_route)


def _one_of(first: Any, second: Any) -> Any:
    if (first is None) is (second is None):
        raise RouteError("give a path and a handler, an application to mount; each once")
    return second if first is None else first


def _checked_path(path: str) -> str:
    """Return an absolute path; say what Starlette asserts of it also under `python -O`."""
    path = path if path.startswith("/") else f"/{path}"
    try:
        compile_path(path)
    except (AssertionError, KeyError, ValueError) as error:
        raise RouteError(f"{path!r} cannot be the path of a route: {error}") from None
    return path


def _checked(handler: Any) -> Any:
    if not callable(handler):
        raise RouteError(f"{handler!r} can take no connection: it is not callable")
    return handler


def _made(app: Any) -> Any:
    return app() if inspect.isclass(app) and issubclass(app, _Router) else app


def _unwrapped(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def _methods(handler: Any, given: Collection[str] | None) -> list[str]:
    """Return the HTTP methods that a function or a class takes."""
    if given is None and inspect.isclass(handler):
        given = [method for method in METHODS if hasattr(handler, method.lower())]
    methods = ["GET"] if given is None else [method.upper() for method in given]
    if not methods:
        raise RouteError(f"{get_name(handler)} takes no HTTP method: give it get(), post(), ...")
    return [*methods, "HEAD"] if "GET" in methods else methods


def _method_name(cls: Any, method: str) -> str:
    name = method.lower()
    if method == "HEAD" and not hasattr(cls, name):
        name = "get"  # RFC 9110, 9.3.2: HEAD is GET without the content, which the server omits
    if not hasattr(cls, name):
        raise RouteError(f"{get_name(cls)} is to take {method}, but has no method {name}()")
    return name


def _paths(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[str]:
    for route in routes:
        if isinstance(route, _Mount):
            yield from _paths(route.routes, prefix + route.path)
        elif isinstance(route, (_Route, _WebSocketRoute)):
            yield prefix + route.path
