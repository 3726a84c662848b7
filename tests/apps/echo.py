"""Bare ASGI applications without Yaat: what the servers do by themselves."""

from typing import Any

Message = dict[str, Any]


async def app(scope: Message, receive: Any, send: Any) -> None:
    """Echo at `/echo`, refuse at `/refuse`, deny at `/deny`, tell the scope at `/scope`.

    At `/bye` the application closes with 4001 and a reason.
    """
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await HANDLERS[scope["path"]](scope, receive, send)


async def lifespan(receive: Any, send: Any) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


async def accept(scope: Message, send: Any) -> None:
    subprotocol = next(iter(scope.get("subprotocols", [])), None)
    headers = [(b"x-harness", b"yes"), (b"x-harness", b"again")]
    await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})


async def echo(scope: Message, receive: Any, send: Any) -> None:
    await accept(scope, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def bye(scope: Message, receive: Any, send: Any) -> None:
    await accept(scope, send)
    await send({"type": "websocket.close", "code": 4001, "reason": "so long"})


async def tell_scope(scope: Message, receive: Any, send: Any) -> None:
    await accept(scope, send)
    extensions = ",".join(scope.get("extensions") or {})
    await send({"type": "websocket.send", "text": scope.get("http_version", "1.1")})
    await send({"type": "websocket.send", "text": f"extensions {extensions}"})
    await receive()


async def refuse(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "websocket.close"})


async def deny(scope: Message, receive: Any, send: Any) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        # daphne does not know these messages and would wait for an answer for ever.
        await refuse(scope, receive, send)
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"4")]
    start = {"type": "websocket.http.response.start", "status": 418, "headers": headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": b"full"})


HANDLERS = {
    "/echo": echo,
    "/bye": bye,
    "/scope": tell_scope,
    "/refuse": refuse,
    "/deny": deny,
}
