"""Bare ASGI: one small handler for each thing that the server class has to do by itself.

The Starlette and the FastAPI application of the tests have the same paths, each in its own words.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Message, Receive, Scope, Send

from apps import mistakes
from apps.reporting import KEY, Reporting, report

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

SECRET = "the detail that nobody may see"
ACCEPT: Message = {"type": "websocket.accept"}
ACCEPT_HEADERS = [(b"x-one", b"1"), (b"x-two", b"a"), (b"x-two", b"b")]
# What is told a denial to be: the parts of its body, and its headers.
PLAIN = (b"content-type", b"text/plain")
DENIALS: Mapping[str, tuple[list[bytes], list[tuple[bytes, bytes]]]] = {
    "one-part": ([b"full"], [PLAIN]),
    "several-parts": ([b"one ", b"two ", b"", b"three"], [PLAIN]),
    "given-length": ([b"one ", b"two"], [PLAIN, (b"content-length", b"7")]),
    "empty": ([b""], []),
}
TASKS = 3
MESSAGES = 20
BIG = 2**16
SOME = 5

HANDLERS: dict[str, Handler] = {}
GATES: dict[str | None, asyncio.Event] = {}
# What outlives its handler, kept from the garbage collector.
TASKS_LEFT: list[asyncio.Task[None]] = []


def gate() -> asyncio.Event:
    """What a handler of this test waits at until another connection opens it."""
    return GATES.setdefault(KEY.get(), asyncio.Event())


def at(path: str) -> Callable[[Handler], Handler]:
    """Serve `path` with the decorated handler, which `connect` has already been sent to."""

    def decorate(handler: Handler) -> Handler:
        HANDLERS[path] = handler
        return handler

    return decorate


def query(scope: Scope, name: str, default: str = "") -> str:
    values = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
    return str(values.get(name, [default])[0])


def steps(scope: Scope) -> list[str]:
    """The steps of the path, the first of which says what is asked for."""
    path: str = scope["path"].removeprefix(scope["root_path"])
    return path.split("/")[1:]


@contextmanager
def told(event: str) -> Iterator[None]:
    """Report what the block raises, and go on behind it; report `nothing` if it raises nothing."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - which one it is, is the question
        tell(event, error)
    else:
        report(event, error="nothing", kinds=[], text="")


def tell(event: str, error: Exception) -> None:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    report(event, error=kinds[0], kinds=kinds, text=str(error), code=getattr(error, "code", None))


def text(data: str) -> Message:
    return {"type": "websocket.send", "text": data}


def close(code: int = 1000, reason: str = "") -> Message:
    return {"type": "websocket.close", "code": code, "reason": reason}


async def until_gone(receive: Receive) -> Message:
    """Read until the disconnect, report it and return it."""
    while (message := await receive())["type"] == "websocket.receive":
        pass
    report("left", **message)
    return message


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"].update(STATE)
    for event in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{event}"
        report(event)
        await send({"type": f"lifespan.{event}.complete"})


# What the lifespan shares with every connection; the list is one for all, the number is not.
STATE: dict[str, Any] = {"number": 1, "list": []}


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [PLAIN]})
        await send({"type": "http.response.body", "body": b"a page"})
    else:
        handler = HANDLERS["/" + steps(scope)[0]]
        connect = await receive()
        assert connect == {"type": "websocket.connect"}, connect
        await handler(scope, receive, send)


app = Reporting(bare)


# What every application of the tests has


@at("/open-the-gate")
async def open_the_gate(scope: Scope, receive: Receive, send: Send) -> None:
    gate().set()
    await send(ACCEPT)


@at("/echo")
async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@at("/echo-json")
async def echo_json(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send(text(json.dumps(json.loads(message["text"]))))


@at("/return")
async def return_(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send(text("bye"))


@at("/raise")
async def raise_(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send(text("oh"))
    raise ValueError(SECRET)


@at("/raise-later")
async def raise_later(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail after a message, with more of them waiting."""
    await send(ACCEPT)
    await receive()
    raise ValueError(SECRET)


@at("/echo-some")
async def echo_some(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer some messages and end, with more of them waiting."""
    await send(ACCEPT)
    for _ in range(SOME):
        await send({**await receive(), "type": "websocket.send"})
    if query(scope, "then") == "raise":
        raise ValueError(SECRET)
    if query(scope, "then") == "close":
        await send(close(4001, "enough"))


@at("/raise-before")
async def raise_before(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError(SECRET)


@at("/return-before")
async def return_before(scope: Scope, receive: Receive, send: Send) -> None:
    pass


@at("/close-before")
async def close_before(scope: Scope, receive: Receive, send: Send) -> None:
    await send(close(4001, "no entry"))


async def respond(send: Send, parts: AsyncIterator[bytes], **start: Any) -> None:
    await send({"type": "websocket.http.response.start", **start})
    async for part in parts:
        await send({"type": "websocket.http.response.body", "body": part, "more_body": True})
    await send({"type": "websocket.http.response.body"})


async def parts_of(denial: str) -> AsyncIterator[bytes]:
    for part in DENIALS[denial][0]:
        yield part


@at("/deny")
async def deny(scope: Scope, receive: Receive, send: Send) -> None:
    denial = steps(scope)[1]
    parts, headers = DENIALS[denial]
    with told("denial"):
        if len(parts) > 1:
            await respond(send, parts_of(denial), status=418, headers=headers)
        else:
            await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": parts[0]})


async def streamed() -> AsyncIterator[bytes]:
    yield b"one "
    await gate().wait()
    yield b"two"


@at("/deny-streamed")
async def deny_streamed(scope: Scope, receive: Receive, send: Send) -> None:
    report("streaming")
    await respond(send, streamed(), status=503, headers=[PLAIN])


@at("/choose")
async def choose(scope: Scope, receive: Receive, send: Send) -> None:
    chosen = next((name for name in scope["subprotocols"] if name in {"graphql", "chat"}), None)
    await send({**ACCEPT, "subprotocol": chosen, "headers": map(list, ACCEPT_HEADERS)})


@at("/close")
async def close_with(scope: Scope, receive: Receive, send: Send) -> None:
    """Close with a code and a reason, and learn how that ended."""
    await send(ACCEPT)
    with told("close"):
        await send(close(int(query(scope, "code")), query(scope, "reason")))
        await until_gone(receive)


@at("/close-uncaught")
async def close_uncaught(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send(close(int(query(scope, "code")), query(scope, "reason")))


@at("/learn")
async def learn(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send(text("welcome"))
    await until_gone(receive)
    with told("send"):
        await send(text("anybody there?"))


@at("/leave-uncaught")
async def leave_uncaught(scope: Scope, receive: Receive, send: Send) -> None:
    """Send when the client has gone, and let out what that raises."""
    await send(ACCEPT)
    await send(text("welcome"))
    await until_gone(receive)
    await send(text("anybody there?"))


@at("/only-send")
async def only_send(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    with told("end"):
        while True:
            await send(text("tick"))
            await asyncio.sleep(0.005)


@at("/only-send-uncaught")
async def only_send_uncaught(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    while True:
        await send(text("tick"))
        await asyncio.sleep(0.005)


@at("/flood-uncaught")
async def flood_uncaught(scope: Scope, receive: Receive, send: Send) -> None:
    """Send without a pause, and let out what the end of the client raises."""
    await send(ACCEPT)
    while True:
        await send(text("x" * BIG))


async def texts(receive: Receive) -> list[str]:
    received = []
    while (message := await receive())["text"] != "end":
        received.append(message["text"])
    return received


@at("/two-receivers")
async def two_receivers(scope: Scope, receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send(text("welcome"))
    report("received", by=await asyncio.gather(texts(receive), texts(receive)))


def numbered(call: int, task: int, number: int) -> str:
    """A big message that says which it is."""
    return f"{call} {task} {number} ".ljust(BIG)


@at("/senders")
async def senders(scope: Scope, receive: Receive, send: Send) -> None:
    """Several tasks send big messages, text and bytes, numbered in the order of the calls."""
    await send(ACCEPT)
    calls = iter(range(TASKS * MESSAGES))

    async def sender(task: int) -> None:
        for number in range(MESSAGES):
            data = numbered(next(calls), task, number)
            kind = {"text": data} if number % 2 else {"bytes": data.encode()}
            await send({"type": "websocket.send", **kind})

    report("sending")
    await asyncio.gather(*map(sender, range(TASKS)))
    await until_gone(receive)


@at("/background")
async def background(scope: Scope, receive: Receive, send: Send) -> None:
    """Tasks beside the handler send for ever to a client that does not read."""
    await send(ACCEPT)

    async def sender() -> None:
        with told("end"):
            while True:
                await send(text("x" * BIG))

    tasks = [asyncio.create_task(sender()) for _ in range(TASKS)]
    report("sending")
    await until_gone(receive)
    await asyncio.gather(*tasks)


@at("/stubborn")
async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
    """Take no notice of the end of the connection."""
    await send(ACCEPT)
    await send(text("welcome"))
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        report("cancelled")
        raise


# What only a bare application can see or do


@at("/scope")
async def tell_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell the scope, each value as Python writes it."""
    await send({**ACCEPT, "subprotocol": next(iter(scope["subprotocols"]), None)})
    await send(text(json.dumps({key: repr(value) for key, value in scope.items()})))


@at("/state")
async def tell_state(scope: Scope, receive: Receive, send: Send) -> None:
    """Tell the state, and change what is this connection's own and what is shared."""
    await send(ACCEPT)
    await send(text(repr(scope["state"])))
    scope["state"]["number"] += 1
    scope["state"]["list"].append(len(scope["state"]["list"]))


@at("/messages")
async def messages(scope: Scope, receive: Receive, send: Send) -> None:
    """Report each message as Python writes it, and the end three times."""
    await send(ACCEPT)
    ends = 0
    while ends < 3:
        message = await receive()
        ends += message["type"] == "websocket.disconnect"
        report("message", message=repr(dict(message)), type=message["type"])


@at("/pending")
async def pending(scope: Scope, receive: Receive, send: Send) -> None:
    """Think over the handshake until the gate opens."""
    report("pending")
    await gate().wait()
    with told("accept"):
        await send(ACCEPT)
    with told("send"):
        await send(text("welcome"))
    await until_gone(receive)


@at("/pending-receive")
async def pending_receive(scope: Scope, receive: Receive, send: Send) -> None:
    """Wait for what comes before an answer to the handshake."""
    report("pending")
    await until_gone(receive)
    with told("accept"):
        await send(ACCEPT)


@at("/extra-keys")
async def extra_keys(scope: Scope, receive: Receive, send: Send) -> None:
    await send({**ACCEPT, "extra": 1})
    await send({**text("one"), "bytes": None, "extra": 1})
    await send({"type": "websocket.send", "bytes": b"two", "text": None})
    await send({**close(4001, "three"), "extra": 1})


@at("/short-close")
async def short_close(scope: Scope, receive: Receive, send: Send) -> None:
    """A code has a default, and so has a reason."""
    await send(ACCEPT)
    given: dict[str, Message] = {
        "nothing": {},
        "code": {"code": 4001},
        "none": {"code": 4001, "reason": None},
    }
    await send({"type": "websocket.close", **given[query(scope, "given")]})


@at("/ping-me")
async def ping_me(scope: Scope, receive: Receive, send: Send) -> None:
    """Be busy elsewhere while the client pings."""
    await send(ACCEPT)
    await send(text("welcome"))
    await gate().wait()


@at("/one-gives-up")
async def one_gives_up(scope: Scope, receive: Receive, send: Send) -> None:
    """Two tasks receive, and the one that came first is cancelled."""
    await send(ACCEPT)
    first, second = (asyncio.create_task(texts(receive)) for _ in range(2))
    await send(text("welcome"))
    await gate().wait()
    first.cancel()
    report("received", by=await second)


@at("/return-while-senders-wait")
async def return_while_senders_wait(scope: Scope, receive: Receive, send: Send) -> None:
    """End while tasks of the handler still wait for a client that does not read."""
    await send(ACCEPT)
    sent: list[int] = []

    async def sender() -> None:
        with told("end"):
            while True:
                number = len(sent)
                sent.append(number)
                await send(text(numbered(number, 0, 0)))

    TASKS_LEFT.extend(asyncio.create_task(sender()) for _ in range(TASKS))
    report("sending")
    await gate().wait()


@at("/given-up")
async def given_up(scope: Scope, receive: Receive, send: Send) -> None:
    """Count the messages in spite of many a receive that was given up."""
    await send(ACCEPT)
    received: list[str] = []
    impatience = 0
    while received[-1:] != ["end"]:
        try:
            async with asyncio.timeout(0.002):
                received.append((await receive())["text"])
        except TimeoutError:
            impatience += 1
    await send(text(json.dumps([received, impatience])))


@at("/sends-given-up")
async def sends_given_up(scope: Scope, receive: Receive, send: Send) -> None:
    """Send to a client that does not read, and give up what has to wait."""
    await send(ACCEPT)
    kept: list[int] = []
    given_up: list[int] = []
    number = 0
    while len(given_up) < MESSAGES:
        try:
            async with asyncio.timeout(0.005):
                await send(text(numbered(number, 0, 0)))
            kept.append(number)
        except TimeoutError:
            given_up.append(number)
        number += 1
    report("given up", kept=kept, given_up=given_up)
    await send(text("end"))


@at("/cancelled")
async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    """A library's stray CancelledError."""
    await send(ACCEPT)
    raise asyncio.CancelledError


@at("/send-late")
async def send_late(scope: Scope, receive: Receive, send: Send) -> None:
    """Busy elsewhere while the client leaves; the very next send has to raise."""
    await send(ACCEPT)
    await send(text("welcome"))
    report("busy")
    await gate().wait()
    for event in ("first send", "second send"):
        with told(event):
            await send(text("anybody there?"))
    with told("close"):
        await send(close())


@at("/close-and-stay")
async def close_and_stay(scope: Scope, receive: Receive, send: Send) -> None:
    """Close, and see what comes then: what was in flight does not, the end does."""
    await send(ACCEPT)
    await send(close(4001, "so long"))
    report("closing")
    received = []
    while (message := await receive())["type"] == "websocket.receive":
        received.append(message["text"])
    report("left", **message, received=received)


# The states of a connection, and every message in each of them


async def to_pending(receive: Receive, send: Send) -> None:
    pass


async def to_open(receive: Receive, send: Send) -> None:
    await send(ACCEPT)


async def to_denying(receive: Receive, send: Send) -> None:
    await send({"type": "websocket.http.response.start", "status": 418})


async def to_denied(receive: Receive, send: Send) -> None:
    await to_denying(receive, send)
    await send({"type": "websocket.http.response.body", "body": b"full"})


async def to_refused(receive: Receive, send: Send) -> None:
    await send(close())


async def to_closing(receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send(close(4001))


async def to_closed(receive: Receive, send: Send) -> None:
    await to_closing(receive, send)
    await until_gone(receive)


async def to_gone(receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await until_gone(receive)


STATES = {
    "pending": to_pending,
    "open": to_open,
    "denying": to_denying,
    "denied": to_denied,
    "refused": to_refused,
    "closing": to_closing,
    "closed": to_closed,
    "gone": to_gone,
}
OUTGOING: Mapping[str, Message] = {
    "accept": ACCEPT,
    "send": text("hello"),
    "close": close(4002),
    "http.response.start": {"type": "websocket.http.response.start", "status": 503},
    "http.response.body": {"type": "websocket.http.response.body", "more_body": True},
}


@at("/in")
async def in_state(scope: Scope, receive: Receive, send: Send) -> None:
    """`/in/STATE/MESSAGE`: send the message when the connection is in the state."""
    _, state, message = steps(scope)
    await STATES[state](receive, send)
    with told("event"):
        await send(OUTGOING[message])
    with suppress(Exception):  # a denial that was begun is ended
        await send({"type": "websocket.http.response.body"})


@at("/deny-unfinished")
async def deny_unfinished(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail when a denial has begun and nothing of it has left yet."""
    await send({"type": "websocket.http.response.start", "status": 418, "headers": [PLAIN]})
    raise ValueError(SECRET)


# Mistakes


@at("/mistake")
async def mistake(scope: Scope, receive: Receive, send: Send) -> None:
    """`/mistake/CASE`: send it after an accept, let the error out if `uncaught`; else go on."""
    case = steps(scope)[1]
    before = query(scope, "before")
    if not before:
        await send(ACCEPT)
    event = (mistakes.BEFORE if before else mistakes.AFTER)[case]
    with nullcontext() if query(scope, "uncaught") else told("event"):
        await send(event)
    if before:
        await send({**ACCEPT, "subprotocol": "chat"})
    await send(text("still here"))
