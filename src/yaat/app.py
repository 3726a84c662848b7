"""Yaat: an application."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from yaat import processes
from yaat.brokers import Broker
from yaat.channels import Channel, Channels, Hub
from yaat.exceptions import UsageError
from yaat.observer import Observer
from yaat.policy import Policy
from yaat.routing import Router, Routes
from yaat.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from yaat.testing import TestClient

__all__ = ["Yaat"]

H = TypeVar("H", bound=Callable[..., Any])
Hook = Callable[[], Any]


class Yaat(Routes, Starlette):  # pyright: ignore[reportIncompatibleMethodOverride] # names
    """An application: a Starlette application with sockets that are safe, clear and quick.

    Args:
        middleware: `Middleware(Class, ...)` objects, outermost first.
        middlewares: Classes (or `Middleware`), outermost last, as `add_middleware` adds them.
        lifespan: An async context manager around the life of the application.
        on_startup: Functions, sync or async, called before it; `on_shutdown` after it.
        policy: For all its sockets, where no router or route gives its own.
        observers: Told what happens to its sockets.
        broker: What carries its channels: a URL (`"memory://"`), or a `Broker`. None: the channels
            are those of the nearest `Yaat` around this one; if there is none, memory of its own.
        channels: The options of its channels, by patterns of names.
        debug, routes, exception_handlers, max_body_size: As Starlette has them, for requests.
    """

    router: Router

    def __init__(  # noqa: PLR0913 - an application is where everything comes together
        self,
        *,
        debug: bool = False,
        routes: Sequence[BaseRoute] | None = None,
        middleware: Sequence[Middleware] | None = None,
        middlewares: Sequence[Callable[[ASGIApp], ASGIApp] | Middleware] | None = None,
        exception_handlers: Mapping[Any, Any] | None = None,
        lifespan: Callable[[Any], contextlib.AbstractAsyncContextManager[Any]] | None = None,
        on_startup: Sequence[Hook] | None = None,
        on_shutdown: Sequence[Hook] | None = None,
        policy: Policy | None = None,
        observers: Sequence[Observer] = (),
        broker: Broker | str | None = None,
        channels: Channels | None = None,
        max_body_size: int | None = None,
    ) -> None:
        super().__init__(
            debug,
            middleware=middleware,
            exception_handlers=exception_handlers,
            max_body_size=max_body_size,
        )
        self.on_startup = list(on_startup or ())
        self.on_shutdown = list(on_shutdown or ())
        self.observers = tuple(observers)
        self.hub = self._own_hub = _hub(broker, channels)
        self._shares_hub = broker is None
        self._lifespan = Router(lifespan=lifespan).lifespan_context
        self.router = Router(routes, policy=policy, lifespan=self._live)
        for each in middlewares or ():
            if isinstance(each, Middleware):
                self.user_middleware.insert(0, each)
            else:
                self.add_middleware(each)

    def build_middleware_stack(self) -> ASGIApp:
        """Build what stands around the router: the user's middleware around everything.

        Starlette's own two stand around requests alone: what they do for a socket its endpoint
        does, and they cost 1.8 KiB and two coroutines per connection.
        """
        own = self.user_middleware
        outermost: list[ASGIApp] = []

        def note(app: ASGIApp) -> ASGIApp:
            outermost.append(app)
            return app

        def fork(requests: ASGIApp) -> ASGIApp:
            # Not the router itself: its `__call__` would only pass the connection on.
            return _Fork(requests, self.router.middleware_stack)

        self.user_middleware = [Middleware(note), *own, Middleware(fork)]
        try:
            stack = super().build_middleware_stack()
        finally:
            self.user_middleware = own
        return _Entered(_Fork(stack, outermost[0]), self)

    @contextlib.asynccontextmanager
    async def _live(self, app: Any) -> AsyncIterator[Any]:
        for hook in self.on_startup:
            await _call(hook)
        try:
            await self._own_hub.start()
            async with self._lifespan(app) as state:
                yield state
        finally:  # what was started is stopped, also if the lifespan fails
            try:
                for hook in self.on_shutdown:
                    await _call(hook)
            finally:
                await self._own_hub.close()

    def test_client(self, base_url: str = "http://testserver", **options: Any) -> "TestClient":
        """Return a client that talks to this application in process; see `yaat.testing`.

        Raises:
            UsageError: The extra `yaat[test]` is not installed.
        """
        try:
            from yaat.testing import TestClient
        except ModuleNotFoundError as error:
            raise UsageError("the test client needs an extra: pip install 'yaat[test]'") from error
        return TestClient(self, base_url=base_url, **options)

    def channel(self, name: str) -> Channel:
        """Return a channel, where there is no connection or request at hand.

        In an application that is mounted in another `Yaat` and has no broker of its own it is the
        other's, as soon as a connection or a request has come that way.

        Raises:
            ChannelNameError: No channel can have this name. It is a `ValueError`.
        """
        return self.hub.channel(name)

    def enter(self, scope: Scope) -> None:
        """Put into a scope what the application has for its handlers: observers and channels.

        Raises:
            UsageError: The channels are those of another application, and this one has patterns.
        """
        if self.observers:
            scope["yaat.observers"] = (*scope.get("yaat.observers", ()), *self.observers)
        hub: Hub | None = scope.get("yaat.hub")
        if hub is None or not self._shares_hub:
            scope["yaat.hub"] = self.hub = self._own_hub
        elif hub is not self.hub:
            if self._own_hub.channels.patterns:
                raise UsageError(
                    "a mounted Yaat has the channels of the one around it: "
                    "give the patterns there, or give this one a broker of its own"
                )
            self.hub = hub

    @property
    def table(self) -> Router:
        """The router of the application."""
        return self.router

    # The decorators that Starlette 1.0 took away

    def exception_handler(self, error: int | type[Exception]) -> Callable[[H], H]:
        """Return a decorator for a function `(request, error) -> response`, for requests."""

        def add(function: H) -> H:
            self.add_exception_handler(error, function)
            return function

        return add

    def on_event(self, event: Literal["startup", "shutdown"]) -> Callable[[H], H]:
        """Return a decorator for a function that is called at startup or shutdown."""
        hooks = {"startup": self.on_startup, "shutdown": self.on_shutdown}

        def add(function: H) -> H:
            hooks[event].append(function)
            return function

        return add


class _LoneHub(Hub):
    """The channels of an application without a broker, where it is served by several processes.

    It may have none, or only those of the application around it.
    """

    def channel(self, name: str) -> Channel:
        """Raise a `UsageError`: who listens in another process would hear nothing."""
        raise UsageError(_apart(f"without a broker the channel {name!r}"))


def _hub(broker: Broker | str | None, channels: Channels | None) -> Hub:
    hub = Hub(broker, channels)
    if processes.count() == 1 or hub.broker.is_shared:
        return hub
    if broker is not None:
        raise UsageError(_apart("memory://"))
    return _LoneHub(None, channels)


def _apart(what: str) -> str:
    return (
        f"{what} is of one process: what one of the {processes.count()} workers publishes the "
        "others would not hear. Give a broker that they share, as "
        "Yaat(broker='redis://localhost'), or serve with one worker"
    )


class _Fork:
    """Sends sockets one way and all else another, at the cost of no coroutine."""

    __slots__ = ("_others", "_sockets")

    _asgi_single_callable = True  # for asgiref, which looks for a coroutine function

    def __init__(self, others: ASGIApp, sockets: ASGIApp) -> None:
        self._others = others
        self._sockets = sockets

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._sockets if scope["type"] == "websocket" else self._others
        return app(scope, receive, send)


class _Entered:
    """Puts what an application has for its handlers into the scope, at the cost of no coroutine."""

    __slots__ = ("_owner", "_stack")

    _asgi_single_callable = True  # for asgiref, as above

    def __init__(self, stack: ASGIApp, owner: Yaat) -> None:
        self._stack = stack
        self._owner = owner

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "lifespan":
            self._owner.enter(scope)
        return self._stack(scope, receive, send)


async def _call(hook: Hook) -> None:
    result = hook()
    if inspect.isawaitable(result):
        await result
