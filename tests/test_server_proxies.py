"""What a proxy says of a connection: applied once, by uvicorn's own middleware."""

import copy
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from yaat.server.proxies import behind_proxy
from yaat.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("it is for the server to run")


def scope_of(kind: str = "websocket", client: object = ("127.0.0.1", 1)) -> dict[str, Any]:
    return {
        "type": kind,
        "scheme": "ws" if kind == "websocket" else "http",
        "client": client,
        "headers": [(b"x-forwarded-for", b"9.8.7.6"), (b"x-forwarded-proto", b"https")],
    }


@pytest.mark.parametrize(("kind", "scheme"), [("websocket", "wss"), ("http", "https")])
def test_what_a_trusted_proxy_says_is_in_the_scope(kind: str, scheme: str) -> None:
    middleware, scope = ProxyHeadersMiddleware(app, "127.0.0.1"), scope_of(kind)  # type: ignore[arg-type]
    assert behind_proxy(middleware, scope) is app
    assert scope["scheme"] == scheme
    assert scope["client"] == ("9.8.7.6", 0)
    assert middleware.app is app


@pytest.mark.parametrize("client", [("10.0.0.1", 1), None, ["10.0.0.1", 1]])
def test_what_others_say_is_not(client: object) -> None:
    scope = scope_of(client=client)
    before = copy.deepcopy(scope)
    assert behind_proxy(ProxyHeadersMiddleware(app, "127.0.0.1"), scope) is app  # type: ignore[arg-type]
    assert scope == before


def test_each_middleware_has_its_own_trust() -> None:
    for trusted, client in (("10.0.0.1", "127.0.0.1"), ("127.0.0.1", "9.8.7.6")):
        scope = scope_of()
        behind_proxy(ProxyHeadersMiddleware(app, trusted), scope)  # type: ignore[arg-type]
        assert scope["client"][0] == client


def test_an_application_without_it_is_left_alone() -> None:
    scope = scope_of()
    before = copy.deepcopy(scope)
    assert behind_proxy(app, scope) is app
    assert scope == before


def test_a_middleware_that_may_do_more_stays_around_the_application() -> None:
    class Derived(ProxyHeadersMiddleware):
        pass

    derived, scope = Derived(app, "*"), scope_of()  # type: ignore[arg-type]
    assert behind_proxy(derived, scope) is derived
    assert scope == scope_of()
