"""The ASGI callables: the same shapes as Starlette's, so that types of both mix."""

import collections.abc
import typing

import pytest
import starlette.types

from yaat import types


@pytest.mark.parametrize("name", ["Scope", "Message", "Receive", "Send", "ASGIApp"])
def test_it_is_the_shape_that_starlette_has(name: str) -> None:
    assert getattr(types, name) == getattr(starlette.types, name)


def test_a_scope_and_a_message_can_be_changed() -> None:
    """Middleware adds to a scope, servers hand over plain dictionaries."""
    assert typing.get_origin(types.Scope) is collections.abc.MutableMapping
    assert typing.get_args(types.Message)[0] is str


async def test_a_bare_function_is_an_application() -> None:
    sent: list[types.Message] = []

    async def app(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        await send({**await receive(), "path": scope["path"]})

    async def receive() -> types.Message:
        return {"type": "websocket.connect"}

    async def send(message: types.Message) -> None:
        sent.append(message)

    application: types.ASGIApp = app
    await application({"path": "/"}, receive, send)
    assert sent == [{"type": "websocket.connect", "path": "/"}]
