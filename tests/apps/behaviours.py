"""One small handler for each behaviour that has to be the same on every server."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from apps.reporting import Reporting, report
from yaat.app import Yaat
from yaat.exceptions import HTTPException, Refused, WebSocketDisconnect, WebSocketException
from yaat.middleware import Middleware
from yaat.policy import Policy
from yaat.responses import Response, StreamResponse
from yaat.websockets import WebSocket

SECRET = "the detail that nobody may see"

app = Yaat(middleware=[Middleware(Reporting)])


@contextmanager
def reported(event: str) -> Iterator[None]:
    """Report what the block raises, and go on behind it; report `nothing` if it raises nothing."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - which one it is, is the question
        kinds = [kind.__name__ for kind in type(error).__mro__]
        facts = {"code": getattr(error, "code", None), "reason": getattr(error, "reason", None)}
        report(event, error=kinds[0], kinds=kinds, text=str(error), at=time.monotonic(), **facts)
    else:
        report(event, error="nothing", kinds=[])


async def until_gone(websocket: WebSocket) -> list[Any]:
    """Receive until the peer has left; report how it did, and return what it had sent."""
    messages: list[Any] = []
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                report("left", code=message["code"], reason=message.get("reason"))
                return messages
            text = message.get("text")
            messages.append(message["bytes"].hex() if text is None else text)
    finally:
        report("received", messages=messages)


# How a connection begins


@app.websocket_route("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket_route("/echo-bytes", policy=Policy(max_message_bytes=4 * 2**20))
async def echo_bytes(websocket: WebSocket) -> None:
    await websocket.accept()
    async for data in websocket.iter_bytes():
        await websocket.send_bytes(data)


@app.websocket_route("/echo-json")
async def echo_json(websocket: WebSocket) -> None:
    await websocket.accept()
    async for value in websocket.iter_json():
        await websocket.send_json(value)


@app.websocket_route("/echo-raw")
async def echo_raw(websocket: WebSocket) -> None:
    await websocket.accept()
    while (message := await websocket.receive())["type"] == "websocket.receive":
        await websocket.send({**message, "type": "websocket.send"})


@app.websocket_route("/scope/{name}")
async def scope(websocket: WebSocket, name: str) -> None:
    """Tell what the handshake was, also where the server leaves out what is optional."""
    await websocket.accept()
    client = websocket.client
    await websocket.send_json(
        {
            "url": str(websocket.url),
            "path": websocket.url.path,
            "name": name,
            "query": dict(websocket.query_params),
            "header": websocket.headers.get("x-harness"),
            "cookies": websocket.cookies,
            "client": [client.host, client.port] if client else None,
            "subprotocols": list(websocket.scope.get("subprotocols") or []),
            "http_version": websocket.scope.get("http_version"),
        }
    )


@app.websocket_route("/choose")
async def choose(websocket: WebSocket) -> None:
    headers = [(b"x-one", b"1"), (b"x-two", b"a"), (b"x-two", b"b")]
    await websocket.accept(["soap", "graphql", "chat"], headers=headers)


BAD_ACCEPTS: dict[str, dict[str, Any]] = {
    "subprotocol-crlf": {"subprotocol": "chat\r\nx-evil: 1"},
    "subprotocol-control": {"subprotocol": "ch\x01at"},
    "subprotocol-space": {"subprotocol": "chat room"},
    "subprotocol-empty": {"subprotocol": ""},
    "subprotocol-not-ascii": {"subprotocol": "chät"},
    "subprotocol-never-offered": {"subprotocol": "bogus"},
    "subprotocol-of-another-type": {"subprotocol": 1},
    "header-value-crlf": {"headers": [(b"x-a", b"1\r\nx-evil: 1")]},
    "header-value-nul": {"headers": [(b"x-a", b"1\x00")]},
    "header-value-control": {"headers": [(b"x-a", b"\x01")]},
    "header-name-space": {"headers": [(b"x a", b"1")]},
    "header-name-colon": {"headers": [(b":status", b"200")]},
    "header-name-empty": {"headers": [(b"", b"1")]},
    "header-name-crlf": {"headers": [(b"x-a\r\nx-evil", b"1")]},
    "header-subprotocol": {"headers": [(b"sec-websocket-protocol", b"chat")]},
    "header-accept": {"headers": [(b"Sec-WebSocket-Accept", b"x")]},
    "header-of-another-type": {"headers": [(b"x-a", 1)]},
}


@app.websocket_route("/bad-accept/{case}")
async def bad_accept(websocket: WebSocket, case: str) -> None:
    with reported("accept"):
        await websocket.accept(**BAD_ACCEPTS[case])
    await websocket.accept("chat")
    await websocket.send_text("still here")


@app.websocket_route("/bad-raw-accept/{case}")
async def bad_raw_accept(websocket: WebSocket, case: str) -> None:
    await websocket.receive()
    with reported("accept"):
        await websocket.send({"type": "websocket.accept", **BAD_ACCEPTS[case]})
    await websocket.accept("chat")
    await websocket.send_text("still here")


# How it is refused


@app.websocket_route("/return-before-accept")
async def return_before_accept(websocket: WebSocket) -> None:
    pass


@app.websocket_route("/close-before-accept")
async def close_before_accept(websocket: WebSocket) -> None:
    await websocket.close(4001, "not today")


@app.websocket_route("/raise-before-accept")
async def raise_before_accept(websocket: WebSocket) -> None:
    raise ValueError(SECRET)


@app.websocket_route("/http-exception")
async def http_exception(websocket: WebSocket) -> None:
    raise HTTPException(401, "who are you", headers={"www-authenticate": "Bearer"})


@app.websocket_route("/refused-before")
async def refused_before(websocket: WebSocket) -> None:
    raise Refused("no entry", status=429, headers={"retry-after": "7"})


@app.websocket_route("/websocket-exception-before")
async def websocket_exception_before(websocket: WebSocket) -> None:
    raise WebSocketException(4003, "mine")


async def parts() -> AsyncIterator[bytes]:
    for part in (b"one ", b"two ", b"three"):
        yield part


@app.websocket_route("/deny")
async def deny(websocket: WebSocket) -> None:
    response = Response("full", 418, headers={"x-reason": "tea"})
    with reported("denial"):
        await websocket.send_denial_response(response)


@app.websocket_route("/deny-in-parts")
async def deny_in_parts(websocket: WebSocket) -> None:
    with reported("denial"):
        await websocket.send_denial_response(StreamResponse(parts(), 503))


@app.websocket_route("/deny-raw")
async def deny_raw(websocket: WebSocket) -> None:
    await websocket.receive()
    with reported("denial"):
        start = {"type": "websocket.http.response.start", "status": 418, "headers": []}
        await websocket.send(start)
        for part, more in ((b"one ", True), (b"two", False)):
            body = {"type": "websocket.http.response.body", "body": part, "more_body": more}
            await websocket.send(body)


@app.websocket_route("/deny-uncaught")
async def deny_uncaught(websocket: WebSocket) -> None:
    await websocket.send_denial_response(Response("full", 418))


@app.websocket_route("/listed", policy=Policy(origins=["https://*.example.com"]))
async def listed(websocket: WebSocket) -> None:
    await websocket.accept()


@app.websocket_route("/open", policy=Policy(origins="*"))
async def open_to_all(websocket: WebSocket) -> None:
    await websocket.accept()


# How it ends


@app.websocket_route("/return")
async def return_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("bye")


@app.websocket_route("/raise")
async def raise_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("oh")
    raise ValueError(SECRET)


@app.websocket_route("/cancel")
async def cancel(websocket: WebSocket) -> None:
    """A library's stray CancelledError is an error of the handler like any other."""
    await websocket.accept()
    raise asyncio.CancelledError


@app.websocket_route("/close/{code}")
async def close(websocket: WebSocket, code: int) -> None:
    await websocket.accept()
    with reported("close"):
        await websocket.close(code, websocket.query_params.get("reason", ""))


@app.websocket_route("/send-and-close")
async def send_and_close(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("last")
    await websocket.close(4001)
    await websocket.wait_closed()  # the close has to leave before the handler ends


@app.websocket_route("/close-twice")
async def close_twice(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close(4001, "first")
    with reported("close"):
        await websocket.close(4002, "second")
    with reported("send"):
        await websocket.send_text("too late")


@app.websocket_route("/refused-after")
async def refused_after(websocket: WebSocket) -> None:
    await websocket.accept()
    raise Refused("no entry")


@app.websocket_route("/websocket-exception/{code}")
async def websocket_exception(websocket: WebSocket, code: int) -> None:
    await websocket.accept()
    raise WebSocketException(code, "mine")


@app.websocket_route("/http-exception-after")
async def http_exception_after(websocket: WebSocket) -> None:
    await websocket.accept()
    raise HTTPException(401, "who are you")


@app.websocket_route("/want/{kind}", policy=Policy(max_message_bytes=1000))
async def want(websocket: WebSocket, kind: str) -> None:
    await websocket.accept()
    value = await getattr(websocket, f"receive_{kind}")()
    report("got", value=value.hex() if isinstance(value, bytes) else value)


@app.websocket_route("/want-json-bytes")
async def want_json_bytes(websocket: WebSocket) -> None:
    await websocket.accept()
    report("got", value=await websocket.receive_json("bytes"))


@app.websocket_route("/forgive")
async def forgive(websocket: WebSocket) -> None:
    """What the peer sends wrongly is an error that the handler may catch."""
    await websocket.accept()
    with reported("forgiven"):
        await websocket.receive_bytes()
    with reported("forgiven"):
        await websocket.receive_json()
    await websocket.send_text("all forgiven")


# What the handler learns when the peer leaves


@app.websocket_route("/learn")
async def learn(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    with reported("end"):
        while True:
            await websocket.receive_text()
    with reported("receive again"):
        await websocket.receive_text()
    with reported("send"):
        await websocket.send_text("anybody there?")
    with reported("close"):
        await websocket.close()


@app.websocket_route("/learn-raw")
async def learn_raw(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    await until_gone(websocket)
    with reported("receive again"):
        await websocket.receive()


@app.websocket_route("/learn-uncaught")
async def learn_uncaught(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    await websocket.receive_text()


@app.websocket_route("/iterate/{kind}")
async def iterate(websocket: WebSocket, kind: str) -> None:
    await websocket.accept()
    values = [value async for value in getattr(websocket, f"iter_{kind}")()]
    report("received", messages=[v.hex() if isinstance(v, bytes) else v for v in values])


GATES: dict[str, asyncio.Event] = {}


def gate(websocket: WebSocket) -> asyncio.Event:
    return GATES.setdefault(websocket.query_params["key"], asyncio.Event())


@app.websocket_route("/open-the-gate")
async def open_the_gate(websocket: WebSocket) -> None:
    """Let another handler of the same test go on."""
    gate(websocket).set()
    await websocket.accept()


@app.websocket_route("/pending")
async def pending(websocket: WebSocket) -> None:
    """The peer may leave before it was answered."""
    report("pending")
    await gate(websocket).wait()
    with reported("accept"):
        await websocket.accept()
        await websocket.send_text("welcome")
        await websocket.receive_text()


@app.websocket_route("/first-send")
async def first_send(websocket: WebSocket) -> None:
    """Busy elsewhere while the peer leaves; the very next send has to raise."""
    await websocket.accept()
    await websocket.send_text("welcome")
    report("busy")
    await gate(websocket).wait()
    # The loss has reached the server by now; this is longer than what Yaat needs to notice it.
    await asyncio.sleep(0.2)
    with reported("send"):
        await websocket.send_text("anybody there?")
    with reported("send again"):
        await websocket.send_bytes(b"anybody there?")


@app.websocket_route("/first-send-after-receiving")
async def first_send_after_receiving(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()
    await websocket.send_text("welcome")
    report("busy")
    await gate(websocket).wait()
    await asyncio.sleep(0.2)
    with reported("send"):
        await websocket.send_text("anybody there?")


@app.websocket_route("/only-send")
async def only_send(websocket: WebSocket) -> None:
    await websocket.accept()
    with reported("end"):
        while True:
            await websocket.send_text("tick")
            await asyncio.sleep(0.005)


@app.websocket_route("/only-send-uncaught")
async def only_send_uncaught(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text("tick")
        await asyncio.sleep(0.005)


@app.websocket_route("/flood")
async def flood(websocket: WebSocket) -> None:
    """Send without a pause to a peer that does not read, and leaves."""
    await websocket.accept()
    data = bytes(4096)
    report("flooding")
    give_up_at = time.monotonic() + 4
    with reported("end"):
        while time.monotonic() < give_up_at:
            await websocket.send_bytes(data)


# A connection is a scope


async def ticks(name: str = "source") -> AsyncIterator[str]:
    try:
        while True:
            yield "tick"
            await asyncio.sleep(0.005)
    finally:
        report(f"{name} closed")


async def silence() -> AsyncIterator[str]:
    try:
        await asyncio.Event().wait()
        yield "never"
    finally:
        report("source closed")


async def three() -> AsyncIterator[Any]:
    try:
        yield "text"
        yield b"bytes"
        yield {"json": [1]}
    finally:
        report("source closed")


async def broken() -> AsyncIterator[str]:
    yield "one"
    raise ValueError(SECRET)


SOURCES = {"ticks": ticks, "silence": silence, "three": three, "broken": broken}


@app.websocket_route("/stream/{source}")
async def stream(websocket: WebSocket, source: str) -> None:
    await websocket.accept()
    try:
        await websocket.stream(SOURCES[source]())
    finally:
        report("stream ended")


@app.websocket_route("/wait-closed")
async def wait_closed(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("welcome")
    with reported("end"):
        await websocket.wait_closed()
    with reported("send"):
        await websocket.send_text("anybody there?")


async def child(name: str) -> None:
    report(f"{name} began")
    try:
        await asyncio.Event().wait()
    finally:
        # Clean-up may take its time: it is awaited.
        await asyncio.sleep(0.01)
        report(f"{name} ended")


@app.websocket_route("/children")
async def children(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.start_soon(child, "first")
    websocket.start_soon(child, "second")
    await websocket.send_text("welcome")
    await websocket.receive_text()


@app.websocket_route("/children-of-a-busy-handler")
async def children_of_a_busy_handler(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.start_soon(child, "first")
    await websocket.send_text("welcome")
    await gate(websocket).wait()


async def fail(websocket: WebSocket) -> None:
    await websocket.send_text("oh")
    raise ValueError(SECRET)


@app.websocket_route("/child-raises")
async def child_raises(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.start_soon(child, "sibling")
    websocket.start_soon(fail, websocket)
    try:
        await websocket.receive_text()
    finally:
        report("handler left")


async def refuse(websocket: WebSocket) -> None:
    raise Refused("no entry", code=4007)


@app.websocket_route("/child-refuses")
async def child_refuses(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.start_soon(refuse, websocket)
    await websocket.receive_text()


# Order and size


@app.websocket_route("/tasks")
async def tasks(websocket: WebSocket) -> None:
    """Three tasks send 64 KiB messages, each numbered in the order of the calls."""
    await websocket.accept()
    calls = 0

    async def send(task: int) -> None:
        nonlocal calls
        for number in range(20):
            head = f"{calls} {task} {number} "
            calls += 1
            await (
                websocket.send_text(head.ljust(2**16))
                if number % 2
                else websocket.send_bytes(head.encode().ljust(2**16))
            )

    report("sending")
    await asyncio.gather(*map(send, range(3)))
    await websocket.receive_text()  # not every server lets the client finish after a close


@app.websocket_route("/late-reader")
async def late_reader(websocket: WebSocket) -> None:
    """Only send for a while; then read what came in meanwhile."""
    await websocket.accept()
    while not gate(websocket).is_set():
        await websocket.send_text("tick")
        await asyncio.sleep(0.005)
    await websocket.send_text("now")
    await until_gone(websocket)


@app.websocket_route("/late-counter")
async def late_counter(websocket: WebSocket) -> None:
    """Only send for a while; then read numbers."""
    await websocket.accept()
    while not gate(websocket).is_set():
        await websocket.send_text("tick")
        await asyncio.sleep(0.005)
    numbers = [0]
    while numbers[-1] >= 0:
        numbers.append(int(await websocket.receive_bytes()))
    report("counted", numbers=numbers[1:])


@app.websocket_route("/wrong-values")
async def wrong_values(websocket: WebSocket) -> None:
    """What no connection could take is refused before it reaches the server."""
    await websocket.accept()
    calls: list[tuple[Any, Any]] = [
        (websocket.send_text, b"bytes"),
        (websocket.send_text, None),
        (websocket.send_text, "\ud800"),
        (websocket.send_bytes, "text"),
        (websocket.send_bytes, 3),
        (websocket.send_json, object()),
    ]
    for call, value in calls:
        with reported("call"):
            await call(value)
    await websocket.send_text("still here")


BAD_EVENTS: dict[str, Any] = {
    "neither": {"type": "websocket.send"},
    "neither-but-keys": {"type": "websocket.send", "text": None, "bytes": None},
    "both": {"type": "websocket.send", "text": "a", "bytes": b"a"},
    "text-of-bytes": {"type": "websocket.send", "text": b"a"},
    "bytes-of-text": {"type": "websocket.send", "bytes": "a"},
    "text-of-int": {"type": "websocket.send", "text": 1},
    "surrogate": {"type": "websocket.send", "text": "\ud800"},
    "unknown": {"type": "websocket.ping"},
    "http": {"type": "http.response.start", "status": 200, "headers": []},
    "no-type": {"text": "a"},
    "incoming": {"type": "websocket.receive", "text": "a"},
    "accept-again": {"type": "websocket.accept"},
    "close-999": {"type": "websocket.close", "code": 999},
    "close-text": {"type": "websocket.close", "code": "1000"},
    "close-long": {"type": "websocket.close", "reason": "x" * 124},
    "denial-too-late": {"type": "websocket.http.response.start", "status": 403, "headers": []},
}


@app.websocket_route("/bad-event/{case}")
async def bad_event(websocket: WebSocket, case: str) -> None:
    await websocket.accept()
    with reported("event"):
        await websocket.send(BAD_EVENTS[case])
    await websocket.send_text("still here")


BAD_FIRST_EVENTS: dict[str, Any] = {
    "send": {"type": "websocket.send", "text": "a"},
    "body": {"type": "websocket.http.response.body", "body": b""},
    "unknown": {"type": "websocket.ping"},
    "status": {"type": "websocket.http.response.start", "status": "no", "headers": []},
    "header": {
        "type": "websocket.http.response.start",
        "status": 403,
        "headers": [(b"x-a", b"1\r\nx-evil: 1")],
    },
}


@app.websocket_route("/bad-first-event/{case}")
async def bad_first_event(websocket: WebSocket, case: str) -> None:
    await websocket.receive()
    with reported("event"):
        await websocket.send(BAD_FIRST_EVENTS[case])
    await websocket.accept()
    await websocket.send_text("still here")


@app.websocket_route("/disconnect-type")
async def disconnect_type(websocket: WebSocket) -> None:
    """Starlette's users catch Starlette's class."""
    await websocket.accept()
    try:
        await websocket.receive_text()
    except WebSocketDisconnect as left:
        report("left", code=left.code, reason=left.reason)
