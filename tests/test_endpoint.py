"""Endpoint: how every connection ends, on the wire, in the log and for the observers."""

import asyncio
import functools
import gc
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import fastapi
import pytest
import starlette.endpoints
import starlette.websockets

import yaat.endpoint
from yaat.endpoint import Endpoint, WebSocketEndpoint, conclude
from yaat.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ChannelError,
    ChannelNameError,
    HTTPException,
    MalformedError,
    MessageError,
    PositionLost,
    Refused,
    RouteError,
    StateError,
    TooBigError,
    UsageError,
    WebSocketDisconnect,
    WebSocketException,
    WrongKindError,
)
from yaat.frames import Frame
from yaat.observer import Observer
from yaat.outbox import Share
from yaat.policy import Policy
from yaat.responses import TextResponse
from yaat.types import ASGIApp, Message, Receive, Scope, Send
from yaat.websockets import WebSocket

Handler = Callable[[WebSocket], Awaitable[None]]
Word = tuple[Any, ...]

SECRET = "hunter" + "2"
"""What no log record may hold: it stands in every query string, and in some payloads."""

ACCEPT: Word = ("accept",)
PLAIN_403: Word = ("close", 1000, "")
GONE: Message = {"type": "websocket.disconnect", "code": 1001, "reason": "bye"}


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Word] = []

    def opened(self, scope: Scope) -> None:
        self.heard.append(("opened",))

    def refused(self, scope: Scope, status: int, reason: str) -> None:
        self.heard.append(("refused", status, reason))

    def closed(self, scope: Scope, code: int, reason: str) -> None:
        self.heard.append(("closed", code, reason))

    def failed(self, scope: Scope, error: BaseException) -> None:
        self.heard.append(("failed", error))


class Wire:
    """The server's side of one connection: it brings `incoming` and keeps what it is sent."""

    def __init__(self, *incoming: Message, denies: bool = True, **scope: Any) -> None:
        self.incoming = deque[Message]([{"type": "websocket.connect"}, *incoming])
        self.sent: list[Message] = []
        self.recorder = Recorder()
        self.scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "path": "/",
            "query_string": f"token={SECRET}".encode(),
            "headers": [],
            "extensions": {"websocket.http.response": {}} if denies else {},
            "yaat.observers": (self.recorder,),
            **scope,
        }

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.popleft()
        await asyncio.Event().wait()
        raise AssertionError  # never

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def serve(self, endpoint: Any, seconds: float = 10) -> "Wire":
        """Run an application on this connection."""
        async with asyncio.timeout(seconds):
            await endpoint(self.scope, self.receive, self.send)
        return self

    @property
    def words(self) -> list[Word]:
        """What was sent, in short; of an HTTP response the headers that are not about its body."""
        return [_word(message) for message in self.sent]

    @property
    def heard(self) -> list[Word]:
        """What the observer was told."""
        return self.recorder.heard


def _word(message: Message) -> Word:
    kind = message["type"].removeprefix("websocket.")
    if kind == "close":
        return kind, message["code"], message["reason"]
    if kind == "http.response.start":
        headers = {name.decode(): value.decode() for name, value in message["headers"]}
        headers.pop("content-length", None)
        assert headers.pop("content-type", "text/plain").startswith("text/plain")
        return "http", message["status"], headers
    if kind == "http.response.body":
        return "body", message["body"].decode()
    if kind == "send":
        return (kind, message.get("text") or message.get("bytes"))
    return (kind,)


def http(status: int, text: str, **headers: str) -> list[Word]:
    return [("http", status, {k.replace("_", "-"): v for k, v in headers.items()}), ("body", text)]


def text(data: str) -> Message:
    return {"type": "websocket.receive", "text": data}


def binary(data: bytes) -> Message:
    return {"type": "websocket.receive", "bytes": data}


async def answering(websocket: WebSocket) -> None:
    """Accept, and send what is received."""
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


def raising(make: Callable[[], BaseException] | None, *, accept: bool = False) -> Endpoint:
    """Return the endpoint of a handler that raises, or returns."""

    async def handler(websocket: WebSocket) -> None:
        if accept:
            await websocket.accept()
        if make is not None:
            raise make()

    return Endpoint(handler)


class Log:
    """The records of Yaat's loggers."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    @property
    def records(self) -> list[logging.LogRecord]:
        return [record for record in self._caplog.records if record.name.startswith("yaat")]

    @property
    def errors(self) -> list[BaseException | None]:
        """What the records show the tracebacks of, all of them on `yaat.error`."""
        assert all((r.name, r.levelname) == ("yaat.error", "ERROR") for r in self.records)
        return [record.exc_info[1] for record in self.records if record.exc_info]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """Log everything; and whatever happens, no secret is logged."""
    caplog.set_level(logging.DEBUG)
    yield Log(caplog)
    formatted = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    assert SECRET not in formatted


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    """Hold every test here to it."""
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


# What a handler does, and how its connection ends


class Ending(NamedTuple):
    """What a handler raises, and what comes of it."""

    raised: Callable[[], Exception] | None
    code: int
    reason: str = ""
    denial: list[Word] | None = None
    """None: a plain refusal, also where the server could send a response."""
    failure: bool = False


BEARER = {"www-authenticate": "Bearer"}
OOPS = http(500, "Internal Server Error")
BAD = http(400, "Bad Request")
DOWN = http(503, "Service Unavailable")
LONG = "ä" * 70  # 140 bytes: the 123rd is in the middle of a character

ENDINGS = {
    "return": Ending(None, 1000),
    "Refused": Ending(Refused, 1008),
    "Refused, reason": Ending(lambda: Refused("no"), 1008, "no", http(403, "no")),
    "Refused, all": Ending(
        lambda: Refused("no", status=401, code=4001, headers=BEARER),
        4001,
        "no",
        http(401, "no", www_authenticate="Bearer"),
    ),
    "Refused, status": Ending(
        lambda: Refused(status=429), 1008, "", http(429, "Too Many Requests")
    ),
    "Refused, headers": Ending(
        lambda: Refused(headers={"x-why": "it"}), 1008, "", http(403, "Forbidden", x_why="it")
    ),
    "Refused, no such code to travel": Ending(
        lambda: Refused("no", code=4999), 4999, "no", http(403, "no")
    ),
    "Refused, long": Ending(lambda: Refused(LONG), 1008, "ä" * 61, http(403, LONG)),
    "MessageError": Ending(lambda: MessageError(SECRET), 1003, "", BAD),
    "WrongKindError": Ending(lambda: WrongKindError(SECRET), 1003, "", BAD),
    "MalformedError": Ending(lambda: MalformedError(SECRET), 1007, "", BAD),
    "TooBigError": Ending(lambda: TooBigError(SECRET), 1009, "", BAD),
    "ChannelError": Ending(lambda: ChannelError(SECRET), 1008, "", BAD),
    "ChannelNameError": Ending(lambda: ChannelNameError(SECRET), 1008, "", BAD),
    "PositionLost": Ending(
        lambda: PositionLost(SECRET), 4010, "position lost", http(409, "position lost")
    ),
    "BrokerError": Ending(lambda: BrokerError(SECRET), 1013, "", DOWN),
    "BrokerUnavailable": Ending(
        lambda: BrokerUnavailable(SECRET, maybe_published=True, retry_in=1.0), 1013, "", DOWN
    ),
    "group of one lost position": Ending(
        lambda: ExceptionGroup("", [PositionLost(SECRET)]),
        4010,
        "position lost",
        http(409, "position lost"),
    ),
    "WebSocketException": Ending(lambda: WebSocketException(1008), 1008),
    "WebSocketException, reason": Ending(
        lambda: WebSocketException(4000, "why"), 4000, "why", http(403, "why")
    ),
    "WebSocketException, long": Ending(
        lambda: WebSocketException(1008, "€" * 42), 1008, "€" * 41, http(403, "€" * 42)
    ),
    "HTTP 403": Ending(lambda: HTTPException(403), 1008, "Forbidden", http(403, "Forbidden")),
    "HTTP 403, empty": Ending(lambda: HTTPException(403, ""), 1008),
    "HTTP 404": Ending(lambda: HTTPException(404), 1008, "Not Found", http(404, "Not Found")),
    "HTTP 401": Ending(
        lambda: HTTPException(401, "who?", BEARER),
        1008,
        "who?",
        http(401, "who?", www_authenticate="Bearer"),
    ),
    "HTTP 413": Ending(lambda: HTTPException(413, "big"), 1009, "big", http(413, "big")),
    "HTTP 500": Ending(lambda: HTTPException(500, "x"), 1011, "x", http(500, "x")),
    "HTTP 503": Ending(lambda: HTTPException(503, "later"), 1013, "later", http(503, "later")),
    "exception": Ending(lambda: KeyError("detail"), 1011, "", OOPS, failure=True),
    "TimeoutError": Ending(TimeoutError, 1011, "", OOPS, failure=True),
    "UsageError": Ending(lambda: UsageError("detail"), 1011, "", OOPS, failure=True),
    "StateError": Ending(lambda: StateError("detail"), 1011, "", OOPS, failure=True),
    "RouteError": Ending(lambda: RouteError("detail"), 1011, "", OOPS, failure=True),
    "another connection's departure": Ending(
        lambda: WebSocketDisconnect(1001), 1011, "", OOPS, failure=True
    ),
    "group of one refusal": Ending(
        lambda: ExceptionGroup("", [ExceptionGroup("", [Refused("no")])]),
        1008,
        "no",
        http(403, "no"),
    ),
    "group of two refusals": Ending(
        lambda: ExceptionGroup("", [Refused("no"), Refused("no")]), 1011, "", OOPS, failure=True
    ),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
async def test_ending_after_accept(ending: Ending, log: Log) -> None:
    wire = await Wire().serve(raising(ending.raised, accept=True))
    assert wire.words == [ACCEPT, ("close", ending.code, ending.reason)]
    _check_told(wire, log, ending, ("closed", ending.code, ending.reason))


@pytest.mark.parametrize("denies", [True, False])
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
async def test_ending_before_accept(ending: Ending, denies: bool, log: Log) -> None:  # noqa: FBT001
    denial = ending.denial if denies else None
    wire = await Wire(denies=denies).serve(raising(ending.raised))
    assert wire.words == (denial or [PLAIN_403])
    said = "" if ending.denial is None else ending.denial[1][1]
    status = denial[0][1] if denial else 403
    reason = said if ending.reason else ""
    _check_told(wire, log, ending, ("refused", status, reason))
    if denial:
        length = dict(wire.sent[0]["headers"])[b"content-length"]
        assert int(length) == len(wire.sent[1]["body"])


def _check_told(wire: Wire, log: Log, ending: Ending, last: Word) -> None:
    """One record and one call for a failure; none of either for ordinary life."""
    assert "yaat.websocket" not in wire.scope
    first, *failed, end = wire.heard
    assert first == ("opened",)
    assert end == last
    errors = [error for _, error in failed]
    assert log.errors == errors
    assert len(log.records) == len(errors) == ending.failure
    assert "detail" not in str(wire.words)
    if ending.failure and ending.raised is not None:
        assert type(errors[0]) is type(ending.raised())
        assert errors[0].__traceback__ is not None


async def test_code_that_must_not_travel() -> None:
    wire = await Wire().serve(raising(lambda: Refused(code=1005), accept=True))
    assert wire.words == [ACCEPT, ("close", 1000, "")]


@pytest.mark.parametrize(
    ("make", "accept"),
    [
        (lambda: Refused(code=999), True),
        (lambda: WebSocketException(1004), True),
        (lambda: Refused("no", status=200), False),
        (lambda: HTTPException(299, "x"), False),
        (lambda: HTTPException(599, "x"), False),
        (lambda: HTTPException(600, "x"), False),
        (lambda: Refused(status=799), False),
        (lambda: Refused(headers={"x": "a\r\nb: c"}), False),
        (lambda: HTTPException(401, headers={"bad name": "x"}), False),
    ],
)
async def test_what_cannot_be_sent_is_a_failure(
    make: Callable[[], Exception],
    accept: bool,  # noqa: FBT001
    log: Log,
) -> None:
    wire = await Wire().serve(raising(make, accept=accept))
    assert wire.words == ([ACCEPT, ("close", 1011, "")] if accept else OOPS)
    assert len(log.records) == 1
    (error,) = log.errors
    assert wire.heard[1:-1] == [("failed", error)]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("reason", "said"),
    [("a\ud800b", "a?b"), ({"any": ["JSON"]}, '{"any":["JSON"]}'), (object(), "")],
)
async def test_a_reason_of_any_kind(reason: Any, said: str, log: Log) -> None:
    """FastAPI lets `detail` be any JSON value."""

    def make() -> Exception:
        return fastapi.HTTPException(401, reason)

    wire = await Wire().serve(raising(make, accept=True))
    assert wire.words == [ACCEPT, ("close", 1008, said)]
    wire = await Wire().serve(raising(make))
    assert wire.words == http(401, said or "Unauthorized")
    assert not log.records


# The same mistake where it does not matter: a status after accept, a code before it.
@pytest.mark.parametrize(
    ("make", "accept", "words"),
    [
        (lambda: Refused("no", status=200), True, [ACCEPT, ("close", 1008, "no")]),
        (lambda: HTTPException(599, "x"), True, [ACCEPT, ("close", 1011, "x")]),
        (lambda: Refused("no", code=999), False, http(403, "no")),
    ],
)
async def test_what_does_not_matter(
    make: Callable[[], Exception],
    accept: bool,  # noqa: FBT001
    words: list[Word],
    log: Log,
) -> None:
    wire = await Wire().serve(raising(make, accept=accept))
    assert wire.words == words
    assert not log.records


@pytest.mark.parametrize("error", [None, KeyError("x"), Refused("no")])
async def test_a_response_under_way_is_completed(error: Exception | None, log: Log) -> None:
    async def handler(websocket: WebSocket) -> None:
        start = {"type": "websocket.http.response.start", "status": 402, "headers": []}
        await websocket.send(start)
        if error is not None:
            raise error

    wire = await Wire().serve(Endpoint(handler))
    assert wire.words == http(402, "")
    assert wire.heard[-1][:2] == ("refused", 402)
    assert len(log.records) == isinstance(error, KeyError)


async def test_the_handler_ended_it_itself(log: Log) -> None:
    async def closing(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(4000, "enough")

    async def refusing(websocket: WebSocket) -> None:
        await websocket.close()

    async def denying(websocket: WebSocket) -> None:
        await websocket.send_denial_response(TextResponse("pay", 402))

    for handler, words, heard in [
        (closing, [ACCEPT, ("close", 4000, "enough")], ("closed", 4000, "enough")),
        (refusing, [PLAIN_403], ("refused", 403, "")),
        (denying, http(402, "pay"), ("refused", 402, "")),
    ]:
        wire = await Wire().serve(Endpoint(handler))
        assert (wire.words, wire.heard) == (words, [("opened",), heard])
    assert not log.records


async def test_a_failure_after_the_end_is_logged_all_the_same(log: Log) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(4000)
        await websocket.send_text("too late")

    wire = await Wire().serve(Endpoint(handler))
    assert wire.words == [ACCEPT, ("close", 4000, "")]
    (error,) = log.errors
    assert isinstance(error, StateError)
    assert wire.heard == [("opened",), ("failed", error), ("closed", 4000, "")]


async def test_denial_where_the_server_cannot(log: Log) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.send_denial_response(TextResponse("pay", 402))

    wire = await Wire(denies=False).serve(Endpoint(handler))
    assert wire.words == [PLAIN_403]
    assert wire.heard[-1][:2] == ("refused", 403)
    assert not log.records


@pytest.mark.parametrize(
    ("message", "receive", "code"),
    [
        (binary(b"x"), WebSocket.receive_text, 1003),
        (text("x"), WebSocket.receive_bytes, 1003),
        (text("{" + SECRET), WebSocket.receive_json, 1007),
        (text(SECRET * 9), WebSocket.receive_text, 1009),
    ],
)
async def test_what_the_peer_sends_wrongly(
    message: Message, receive: Callable[[WebSocket], Awaitable[Any]], code: int, log: Log
) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await receive(websocket)

    wire = await Wire(message).serve(Endpoint(handler, Policy(max_message_bytes=32)))
    assert wire.words[1:] == [("close", code, "")]
    assert wire.heard == [("opened",), ("closed", code, "")]
    assert not log.records


# The peer leaves


async def _left(websocket: WebSocket) -> WebSocketDisconnect:
    """Receive until the peer has left."""
    await websocket.accept()
    with pytest.raises(WebSocketDisconnect) as caught:
        await websocket.receive_text()
    return caught.value


@pytest.mark.parametrize(
    ("wrap", "failure"),
    [
        (lambda departure: departure, None),
        (lambda departure: ExceptionGroup("", [departure]), None),
        (lambda departure: ExceptionGroup("", [departure, ExceptionGroup("", [departure])]), None),
        (lambda departure: ExceptionGroup("", [departure, KeyError()]), KeyError),
        (lambda departure: ExceptionGroup("", [departure, Refused()]), None),
        (lambda departure: ExceptionGroup("", [KeyError(), departure, OSError()]), ExceptionGroup),
        (lambda departure: KeyError(), KeyError),
    ],
)
async def test_the_peer_leaves(
    wrap: Callable[[Exception], Exception], failure: type[Exception] | None, log: Log
) -> None:
    async def handler(websocket: WebSocket) -> None:
        raise wrap(await _left(websocket))

    wire = await Wire(GONE).serve(Endpoint(handler))
    assert wire.words == [ACCEPT]
    assert [type(error) for error in log.errors] == ([failure] if failure else [])
    assert len(log.records) == len(log.errors)
    assert wire.heard[-1] == ("closed", 1001, "bye")


async def test_sending_to_who_has_left(log: Log) -> None:
    class Lost(Wire):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.send":
                raise ConnectionResetError
            await super().send(message)

    wire = await Lost(text("x"), GONE).serve(Endpoint(answering))
    assert wire.words == [ACCEPT]
    assert wire.heard == [("opened",), ("closed", 1001, "bye")]
    assert not log.records


@pytest.mark.parametrize("error", [None, KeyError("x"), Refused("no")])
async def test_the_peer_leaves_before_the_answer(error: Exception | None, log: Log) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.receive()
        await websocket.receive()
        if error is not None:
            raise error

    wire = await Wire(GONE).serve(Endpoint(handler))
    assert wire.words == []
    assert wire.heard[-1] == ("closed", 1001, "bye")
    assert len(log.records) == isinstance(error, KeyError)


# The server cancels; or does not close


async def _cancelled(wire: Wire, *, accept: bool) -> None:
    waiting = asyncio.Event()

    async def handler(websocket: WebSocket) -> None:
        if accept:
            await websocket.accept()
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(wire.serve(Endpoint(handler)))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("accept", "denies", "words", "heard"),
    [
        (True, True, [ACCEPT, ("close", 1012, "")], ("closed", 1012, "")),
        (False, True, http(503, "Service Unavailable"), ("refused", 503, "")),
        (False, False, [PLAIN_403], ("refused", 403, "")),
    ],
)
async def test_the_server_cancels(
    accept: bool,  # noqa: FBT001
    denies: bool,  # noqa: FBT001
    words: list[Word],
    heard: Word,
    log: Log,
) -> None:
    wire = Wire(denies=denies)
    await _cancelled(wire, accept=accept)
    assert wire.words == words
    assert wire.heard == [("opened",), heard]
    assert not log.records


async def test_the_server_cancels_and_takes_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck(Wire):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "websocket.close":
                await asyncio.Event().wait()

    monkeypatch.setattr(yaat.endpoint, "FAREWELL", 0.01)
    wire = Stuck()
    await _cancelled(wire, accept=True)
    assert wire.words == [ACCEPT, ("close", 1012, "")]


async def test_a_stray_cancellation_is_a_failure(log: Log) -> None:
    stray = asyncio.CancelledError()
    wire = await Wire().serve(raising(lambda: stray, accept=True))
    assert wire.words == [ACCEPT, ("close", 1011, "")]
    (error,) = log.errors
    assert isinstance(error, RuntimeError)
    assert error.__cause__ is stray
    assert wire.heard == [("opened",), ("failed", error), ("closed", 1011, "")]


async def test_work_begun_beside_the_handler_fails(log: Log) -> None:
    error = KeyError("x")

    async def work() -> None:
        raise error

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.start_soon(work)
        await asyncio.Event().wait()

    wire = await Wire().serve(Endpoint(handler))
    assert wire.words == [ACCEPT, ("close", 1011, "")]
    assert log.errors == [error]
    assert wire.heard == [("opened",), ("failed", error), ("closed", 1011, "")]


async def test_a_server_that_raises_instead_of_closing(log: Log) -> None:
    refusal = ValueError("no such code here")

    class Picky(Wire):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.close":
                raise refusal
            await super().send(message)

    wire = Picky()
    with pytest.raises(ValueError, match="no such code here") as caught:
        await wire.serve(raising(None, accept=True))
    assert caught.value is refusal
    assert wire.heard == [("opened",), ("closed", 1000, "")]
    assert "yaat.websocket" not in wire.scope
    assert not log.records


def test_without_asyncio() -> None:
    wire = Wire()
    coroutine = raising(None)(wire.scope, wire.receive, wire.send)
    with pytest.raises(UsageError, match="asyncio"):
        coroutine.send(None)
    assert not wire.words


async def test_another_scope() -> None:
    with pytest.raises(UsageError, match="http"):
        await Wire(type="http").serve(raising(None))


# Observers


@pytest.mark.parametrize("make", [None, KeyError])
@pytest.mark.parametrize("accept", [True, False])
async def test_an_observer_fails(
    make: Callable[[], Exception] | None,
    accept: bool,  # noqa: FBT001
    log: Log,
) -> None:
    class Failing(Observer):
        def __getattribute__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    plain = await Wire().serve(raising(make, accept=accept))
    before = len(log.records)
    wire = Wire()
    wire.scope["yaat.observers"] = (Failing(), wire.recorder)
    await wire.serve(raising(make, accept=accept))
    assert wire.words == plain.words
    assert [event[0] for event in wire.heard] == [event[0] for event in plain.heard]
    broken = [error for error in log.errors if isinstance(error, ZeroDivisionError)]
    assert [str(error) for error in broken] == [event[0] for event in wire.heard]
    assert len(log.records) == 2 * before + len(broken)


async def test_nobody_observes(log: Log) -> None:
    wire = Wire()
    del wire.scope["yaat.observers"]
    await wire.serve(raising(KeyError, accept=True))
    assert wire.words == [ACCEPT, ("close", 1011, "")]
    assert len(log.records) == 1


# The origin


def _headers(*origins: str, host: str | None = "here.example") -> list[tuple[bytes, bytes]]:
    hosts = [] if host is None else [(b"host", host.encode())]
    return [*hosts, *((b"origin", origin.encode()) for origin in origins)]


HERE, THERE = "https://here.example", "https://there.example"
ALLOWING = Policy(origins=[THERE])


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        (None, None),
        (_headers(), None),
        (_headers(host=None), None),
        (_headers(HERE), None),
        (_headers(HERE, HERE), None),
        (_headers(THERE), ALLOWING),
        (_headers(HERE, THERE), ALLOWING),
        (_headers(THERE, host=None), ALLOWING),
        (_headers("null"), Policy(origins="*")),
    ],
)
async def test_a_page_that_may_connect(
    headers: list[tuple[bytes, bytes]] | None, policy: Policy | None, log: Log
) -> None:
    wire = Wire(headers=headers)
    await wire.serve(Endpoint(raising(None, accept=True).handler, policy))
    assert wire.words[0] == ACCEPT
    assert not log.records


@pytest.mark.parametrize(
    ("headers", "policy", "named"),
    [
        (_headers(THERE), None, THERE),
        (_headers(HERE, THERE), None, f"{HERE}, {THERE}"),
        (_headers(THERE, HERE), None, f"{THERE}, {HERE}"),
        (_headers(HERE, host=None), None, HERE),
        (_headers("null"), ALLOWING, "null"),
        (_headers(""), ALLOWING, "''"),
        (_headers("https://" + "x" * 900), None, "x" * 190),
        (_headers("https://é.example\n"), None, "example\\n"),
    ],
)
async def test_a_page_that_may_not(
    headers: list[tuple[bytes, bytes]], policy: Policy | None, named: str, log: Log
) -> None:
    wire = Wire(headers=headers)
    entered: list[WebSocket] = []

    async def handler(websocket: WebSocket) -> None:
        entered.append(websocket)

    await wire.serve(Endpoint(handler, policy))
    assert not entered
    assert wire.words == [PLAIN_403]
    assert wire.heard == [("opened",), ("refused", 403, "")]
    (record,) = log.records
    assert (record.name, record.levelname) == ("yaat.refused", "WARNING")
    line = record.getMessage()
    assert "Policy(origins=[" in line
    assert named in line
    assert "\n" not in line
    assert len(line) < 700


# Policies


@pytest.mark.parametrize(
    ("own", "around", "nearest"),
    [(ALLOWING, None, ALLOWING), (ALLOWING, Policy(), ALLOWING), (None, ALLOWING, ALLOWING)],
)
async def test_the_nearest_policy(
    own: Policy | None, around: Policy | None, nearest: Policy
) -> None:
    found: list[Policy] = []

    async def handler(websocket: WebSocket) -> None:
        found.append(websocket["yaat.policy"])

    wire = Wire()
    if around is not None:
        wire.scope["yaat.policy"] = around
    await wire.serve(Endpoint(handler, own))
    assert found == [nearest]


# Handlers


def _noting(notes: list[Any]) -> Callable[..., Awaitable[None]]:
    async def handler(websocket: WebSocket, room: int, user: str = "nobody") -> None:
        notes.append((type(websocket), room, user))

    return handler


async def test_path_parameters() -> None:
    notes: list[Any] = []
    handler = _noting(notes)

    class Chat:
        async def enter(self, websocket: WebSocket, room: int) -> None:
            notes.append(room)

    for given, expected in [
        (handler, (WebSocket, 7, "nobody")),
        (functools.partial(functools.partial(handler), user="ada"), (WebSocket, 7, "ada")),
        (Chat().enter, 7),
    ]:
        await Wire(path_params={"room": "7", "more": "x"}).serve(Endpoint(given))
        assert notes.pop() == expected


async def test_a_path_without_the_parameter(log: Log) -> None:
    wire = await Wire().serve(Endpoint(_noting([])))
    assert wire.words == OOPS
    (error,) = log.errors
    assert isinstance(error, RouteError)


def test_the_handler_stays_at_hand() -> None:
    assert Endpoint(answering).handler is answering


def _not_async(websocket: WebSocket) -> None: ...


class _NotAsync:
    def method(self, websocket: WebSocket) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [_not_async, functools.partial(functools.partial(_not_async)), _NotAsync().method],
)
def test_a_handler_that_is_not_async(handler: Any) -> None:
    with pytest.raises(RouteError, match=r"(_not_async|method)\(\) has to be async"):
        Endpoint(handler)


async def test_an_asgi_application() -> None:
    class Application:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            assert await receive() == {"type": "websocket.connect"}
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": scope["path"]})

    wire = await Wire().serve(Endpoint(Application()))
    assert wire.words == [ACCEPT, ("send", "/"), ("close", 1000, "")]


async def test_an_endpoint_of_starlette() -> None:
    class Events(starlette.endpoints.WebSocketEndpoint):
        encoding = "text"

        async def on_receive(self, websocket: starlette.websockets.WebSocket, data: Any) -> None:
            await websocket.send_text(data)

    wire = await Wire(text("hello"), GONE).serve(Endpoint(Events))
    assert wire.words == [ACCEPT, ("send", "hello")]
    assert wire.heard == [("opened",), ("closed", 1001, "bye")]


# Classes with a method for each event


class Notes:
    """A plain class; what it is told is kept in a list of the class."""

    encoding: ClassVar[str | None] = None
    told: ClassVar[list[Any]] = []

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        self.told.append(data)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        self.told.append(close_code)


@pytest.fixture(autouse=True)
def told() -> list[Any]:
    """What objects of `Notes` were told; empty at first."""
    Notes.told = []
    return Notes.told


def _events(**members: Any) -> type[Notes]:
    return type("Events", (Notes,), members)


@pytest.mark.parametrize(
    ("encoding", "messages", "expected"),
    [
        (None, [text("a"), binary(b"b")], ["a", b"b", 1001]),
        ("text", [text("a")], ["a", 1001]),
        ("bytes", [binary(b"b")], [b"b", 1001]),
        ("json", [text("[1]"), binary(b"2")], [[1], 2, 1001]),
    ],
)
async def test_encodings(
    encoding: str | None, messages: list[Message], expected: list[Any], told: list[Any], log: Log
) -> None:
    wire = await Wire(*messages, GONE).serve(Endpoint(_events(encoding=encoding)))
    assert wire.words == [ACCEPT]
    assert told == expected
    assert not log.records


@pytest.mark.parametrize(
    ("encoding", "message", "code"),
    [
        ("text", binary(b"b"), 1003),
        ("bytes", text("a"), 1003),
        ("json", text("{" + SECRET), 1007),
    ],
)
async def test_what_events_do_not_take(
    encoding: str, message: Message, code: int, told: list[Any], log: Log
) -> None:
    wire = await Wire(message).serve(Endpoint(_events(encoding=encoding)))
    assert wire.words == [ACCEPT, ("close", code, "")]
    assert told == [1011]
    assert not log.records


async def test_an_event_fails(told: list[Any], log: Log) -> None:
    error = KeyError("x")

    async def on_receive(self: Notes, websocket: WebSocket, data: Any) -> None:
        raise error

    wire = await Wire(text("a")).serve(Endpoint(_events(on_receive=on_receive)))
    assert wire.words == [ACCEPT, ("close", 1011, "")]
    assert told == [1011]
    assert log.errors == [error]


async def test_an_event_closes(told: list[Any], log: Log) -> None:
    async def on_receive(self: Notes, websocket: WebSocket, data: Any) -> None:
        await websocket.close(4000)

    end = {"type": "websocket.disconnect", "code": 4000}
    wire = await Wire(text("a"), end).serve(Endpoint(_events(on_receive=on_receive)))
    assert wire.words == [ACCEPT, ("close", 4000, "")]
    assert told == [4000]
    assert not log.records


@pytest.mark.parametrize("error", [None, Refused(), KeyError()])
async def test_no_events_of_what_was_not_accepted(error: Exception | None, told: list[Any]) -> None:
    async def on_connect(self: Notes, websocket: WebSocket) -> None:
        if error is not None:
            raise error

    wire = await Wire(text("a"), GONE, denies=False).serve(Endpoint(_events(on_connect=on_connect)))
    assert wire.words == [PLAIN_403]
    assert not told


@pytest.mark.parametrize("base", [object, WebSocketEndpoint])
async def test_every_event_may_be_missing_but_one(base: type, log: Log) -> None:
    rooms: list[Any] = []

    async def on_connect(self: Any, websocket: WebSocket, room: int, **others: str) -> None:
        rooms.append((self, room, others))
        await websocket.accept()

    events = type("Events", (base,), {"on_connect": on_connect})
    endpoint = Endpoint(events)
    for room in (7, 8):
        path_params = {"room": str(room), "user": "ada"}
        wire = await Wire(text("a"), GONE, path_params=path_params).serve(endpoint)
        assert wire.words == [ACCEPT]
    (first, *one), (second, *two) = rooms
    assert (one, two) == ([7, {"user": "ada"}], [8, {"user": "ada"}])
    assert first is not second
    assert isinstance(first, events)
    assert not log.records


# A middleware that keeps a connection


@pytest.mark.parametrize("ending", [ENDINGS["return"], ENDINGS["Refused, all"]])
async def test_conclude(ending: Ending, log: Log) -> None:
    wire = Wire()
    websocket = WebSocket.attach(wire.scope, wire.receive, wire.send)
    await conclude(websocket, ending.raised and ending.raised())
    assert wire.words == (ending.denial or [PLAIN_403])
    assert [event[0] for event in wire.heard] == ["opened", "refused"]
    assert not log.records


async def test_conclude_twice(log: Log) -> None:
    """What has ended stays as it is; a failure is logged and told all the same."""
    wire = Wire()
    websocket = WebSocket.attach(wire.scope, wire.receive, wire.send)
    await websocket.accept()
    await conclude(websocket)
    error = KeyError("x")
    await conclude(websocket, error)
    await conclude(websocket, Refused("no"))
    assert wire.words == [ACCEPT, ("close", 1000, "")]
    assert wire.heard == [("opened",), ("closed", 1000, ""), ("failed", error)]
    assert log.errors == [error]


# Memory


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize(
    "name", ["return", "Refused", "Refused, reason", "exception", "StateError"]
)
async def test_freed_by_reference_counting(
    name: str,
    accept: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What captures the log keeps the traceback, and that keeps every frame.
    monkeypatch.setattr(logging.getLogger("yaat.error"), "disabled", True)
    found: list[weakref.ref[WebSocket]] = []
    make = ENDINGS[name].raised

    async def handler(websocket: WebSocket) -> None:
        found.append(weakref.ref(websocket))
        if accept:
            await websocket.accept()
        if make is not None:
            raise make()

    wire = Wire()
    del wire.scope["yaat.observers"]
    gc.disable()
    try:
        await wire.serve(Endpoint(handler))
        (reference,) = found
        assert reference() is None
    finally:
        gc.enable()


# Applications in one another, ends that are cut short


class Passing:
    """A middleware that wraps `receive` and `send`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wrapped_receive() -> Message:
            return await receive()

        async def wrapped_send(message: Message) -> None:
            await send(message)

        await self.app(scope, wrapped_receive, wrapped_send)


@pytest.mark.parametrize("wrap", [lambda endpoint: endpoint, Passing])
async def test_an_endpoint_as_handler(
    wrap: Callable[[ASGIApp], ASGIApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is an application of Yaat that is given as the handler of a route."""
    monkeypatch.setattr(yaat.endpoint, "FAREWELL", 0.01)
    wire = await Wire(text("hello")).serve(Endpoint(wrap(Endpoint(answering))), seconds=1)
    assert wire.words == [ACCEPT, ("send", "hello"), ("close", 1000, "")]


async def test_an_event_loses_another_connection(told: list[Any], log: Log) -> None:
    async def on_receive(self: Notes, websocket: WebSocket, data: Any) -> None:
        raise WebSocketDisconnect(1001)

    wire = await Wire(text("a")).serve(Endpoint(_events(on_receive=on_receive)))
    assert wire.words == [ACCEPT, ("close", 1011, "")]
    assert told == [1011]
    assert len(log.records) == 1


@pytest.mark.parametrize("value", ["€", 5])
async def test_a_header_that_cannot_be_encoded(value: Any, log: Log) -> None:
    wire = await Wire().serve(raising(lambda: Refused(headers={"x": value})))
    assert wire.words == OOPS
    assert len(log.records) == 1


@pytest.mark.parametrize("returns", [True, False])
async def test_the_end_is_told_though_the_close_is_stuck(
    returns: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing = asyncio.Event()

    class Stuck(Wire):
        async def send(self, message: Message) -> None:
            if message["type"] == "websocket.close":
                closing.set()
                await asyncio.Event().wait()

    monkeypatch.setattr(yaat.endpoint, "FAREWELL", 0.01)
    wire = Stuck()
    if returns:
        task = asyncio.create_task(wire.serve(raising(None, accept=True)))
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await _cancelled(wire, accept=True)
    assert [event[0] for event in wire.heard] == ["opened", "closed"]


async def test_a_cancelled_connection_leaves_its_scope() -> None:
    wire = Wire()
    await _cancelled(wire, accept=True)
    assert "yaat.websocket" not in wire.scope


# What its channels still had to send


class Reluctant(Wire):
    """A server that takes a publication when it is let."""

    holds = "websocket.send"

    def __init__(self, *incoming: Message, **scope: Any) -> None:
        super().__init__(*incoming, **scope)
        self.room = asyncio.Event()

    async def send(self, message: Message) -> None:
        if message["type"] == self.holds:
            await self.room.wait()
        await super().send(message)


FRAMES = [Frame("text", str(number)) for number in range(50)]


def sharing(shares: list[Share], error: Exception | None = None) -> Endpoint:
    """Return the endpoint of a handler that leaves much behind in its outbox."""

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 2**20)
        shares.append(share)
        for frame in FRAMES:
            assert share.offer(frame)
        await asyncio.sleep(0)
        share.leave()
        if error is not None:
            raise error

    return Endpoint(handler)


@pytest.mark.parametrize(
    ("error", "code"), [(None, 1000), (PositionLost("room"), 4010), (KeyError("detail"), 1011)]
)
async def test_what_waits_leaves_before_the_close(error: Exception | None, code: int) -> None:
    wire, shares = Reluctant(), list[Share]()
    serving = asyncio.create_task(wire.serve(sharing(shares, error)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert wire.words == [ACCEPT]
    wire.room.set()
    await serving
    reason = "position lost" if code == 4010 else ""
    sent = [("send", frame.data) for frame in FRAMES]
    assert wire.words == [ACCEPT, *sent, ("close", code, reason)]
    assert not shares[0].offer(FRAMES[0]), "the endpoint has let go of it"


async def test_what_cannot_leave_is_let_go(log: Log) -> None:
    wire, shares = Reluctant(**{"yaat.policy": Policy(close_timeout=0.05)}), list[Share]()
    await wire.serve(sharing(shares))
    assert wire.words == [ACCEPT]
    assert wire.heard == [("opened",), ("closed", 1000, "")]
    assert shares[0].waiting == 0
    assert not shares[0].offer(FRAMES[0])
    assert [record.levelname for record in log.records] == ["WARNING"]


async def test_what_waits_is_let_go_when_the_peer_leaves() -> None:
    wire, shares = Reluctant(GONE), list[Share]()

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 2**20)
        shares.append(share)
        for frame in FRAMES:
            assert share.offer(frame)
        await websocket.receive_text()

    await wire.serve(Endpoint(handler))
    assert wire.words == [ACCEPT]
    assert wire.heard[-1] == ("closed", 1001, "bye")
    assert shares[0].waiting == 0


async def test_a_channel_cuts_a_handler_that_does_something_else() -> None:
    """It is told by its next send, or else in the end by being cancelled: no failure of its own."""
    wire = Reluctant(**{"yaat.policy": Policy(close_timeout=0.05)})

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 1)
        assert [share.offer(frame) for frame in FRAMES[:2]] == [True, False]
        await asyncio.Event().wait()

    await wire.serve(Endpoint(handler))
    assert wire.words == [ACCEPT, ("close", 1013, "reads too slowly")]
    assert wire.heard == [("opened",), ("closed", 1013, "reads too slowly")]


async def test_a_channel_cuts_a_handler_that_sends() -> None:
    wire = Reluctant(**{"yaat.policy": Policy(close_timeout=0.05)})

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 1)
        assert [share.offer(frame) for frame in FRAMES[:2]] == [True, False]
        while True:
            await websocket.send_text("on and on")

    wire.room.set()
    await wire.serve(Endpoint(handler))
    assert wire.words[-1] == ("close", 1013, "reads too slowly")
    assert wire.heard == [("opened",), ("closed", 1013, "reads too slowly")]


class Withholding(Reluctant):
    """A server that takes a close when it is let."""

    holds = "websocket.close"


@pytest.mark.parametrize("end", ["returns", "sends", "is cancelled"])
async def test_the_close_of_a_cut_is_handed_over_before_the_application_returns(end: str) -> None:
    """A server that is left before closes by itself, with another code."""
    wire, is_cut = Withholding(), asyncio.Event()

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 1)
        assert [share.offer(frame) for frame in FRAMES[:2]] == [True, False]
        for _ in range(20):
            await asyncio.sleep(0)
        is_cut.set()
        if end == "sends":
            await websocket.send_text("too late")
        if end == "is cancelled":
            await asyncio.Event().wait()

    serving = asyncio.create_task(wire.serve(Endpoint(handler)))
    await is_cut.wait()
    if end == "is cancelled":
        serving.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not serving.done()
    wire.room.set()
    await asyncio.wait((serving,))
    assert serving.cancelled() is (end == "is cancelled")
    assert wire.words == [ACCEPT, ("close", 1013, "reads too slowly")]
    assert wire.heard == [("opened",), ("closed", 1013, "reads too slowly")]


async def test_the_close_of_a_cut_is_not_waited_for_without_end(log: Log) -> None:
    wire = Withholding(**{"yaat.policy": Policy(close_timeout=0.05)})

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 1)
        assert [share.offer(frame) for frame in FRAMES[:2]] == [True, False]
        for _ in range(20):
            await asyncio.sleep(0)

    await wire.serve(Endpoint(handler))
    assert wire.words == [ACCEPT]
    assert wire.heard == [("opened",), ("closed", 1013, "reads too slowly")]
    assert {record.levelname for record in log.records} == {"WARNING"}


async def test_the_close_of_a_cut_that_does_not_leave_does_not_hold_who_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yaat.endpoint, "FAREWELL", 0.01)
    wire = Withholding(**{"yaat.policy": Policy(close_timeout=3600)})
    is_cut = asyncio.Event()

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        share = Share(websocket.outbox, "room", "cut", 1)
        assert [share.offer(frame) for frame in FRAMES[:2]] == [True, False]
        for _ in range(20):
            await asyncio.sleep(0)
        is_cut.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(wire.serve(Endpoint(handler)))
    await is_cut.wait()
    serving.cancel()
    await asyncio.wait((serving,), timeout=20)
    assert serving.cancelled()
    assert wire.words == [ACCEPT]
