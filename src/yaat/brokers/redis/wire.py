"""Wire: one connection to a server. Commands go out together, answers come back in order.

All commands of one turn of the event loop leave in one write, and nobody waits for another's
answer: with 64 publications in flight that is three to four times the rate of a pool of connections
that carry one command each.
"""

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

import hiredis

from yaat.brokers.redis.settings import Address, Settings
from yaat.exceptions import BrokerError, BrokerRefused, BrokerTimeout, BrokerUnavailable

NAME: Final = "yaat"
"""How our connections are called in CLIENT LIST."""

SOME: Final = 16
"""How much is read in a turn of the loop. Who is answered asks again, and the server works on that
while the rest is read; if all were read at once, the two would take turns. 64 publications in
flight: 53,000 a second with no bound, 75,000 with 8, 79,000 with 16, 71,000 with 32."""

BACKLOG: Final = 262_144
"""When so many bytes have come that are yet to be read, all are read: who sends waits for that."""

OnPush = Callable[[list[Any]], object]
Argument = bytes | str | int
Expected = tuple[bytes, Argument]

_INCOMPLETE: Final = object()
_ACKNOWLEDGED: Final = (b"subscribe", b"ssubscribe", b"unsubscribe", b"sunsubscribe")
_TO_SUBSCRIBE: Final[dict[Any, bytes]] = {push.decode().upper(): push for push in _ACKNOWLEDGED}
_CLOSED: Final = "the broker is not started, or closed"


class AnswerError(Exception):
    """The server answered with an error."""

    @property
    def code(self) -> str:
        """Its first word: `"NOSCRIPT"`. Redis 6.2 has that of an error in a script further in."""
        within = re.match(r"ERR Error running script .*: -([A-Z]+) ", str(self))
        return within[1] if within else str(self).partition(" ")[0]


# What a server says that cannot do it now, though there is nothing wrong with what was asked.
_NOT_NOW: Final = frozenset(
    (
        *("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "BUSY", "ASK", "MOVED"),
        *("NOREPLICAS", "MISCONF", "NOSCRIPT"),
    )
)


def as_broker_error(error: AnswerError) -> BrokerError:
    """Return what an answer means to who uses the broker. Nothing was published."""
    if error.code in _NOT_NOW:
        return BrokerUnavailable(f"the server says {error}")
    if error.code == "OOM":
        return BrokerRefused(f"the server is full: give it more memory, or less to keep ({error})")
    if error.code in ("NOPERM", "NOAUTH", "WRONGPASS"):
        return BrokerRefused(f"the server does not let this user do that: {error}")
    return BrokerRefused(f"the server says {error}")


class Identity(NamedTuple):
    """Which server process is at the other end.

    Attributes:
        run_id: Of the process; another one may have lost what this one knew.
        version: Of Redis, or of the one that Valkey is compatible with: `(7, 2)`.
        is_cluster: Whether it is one of a cluster.
    """

    run_id: str
    version: tuple[int, int]
    is_cluster: bool


class Wire(asyncio.Protocol):
    """One connection. Made by `connect`.

    Attributes:
        identity: Which server process it leads to.
        ended: Done when it is over, with the reason as its result.
        received: How often something has come.

    Guarantees:
        - Commands are executed in the order of the calls.
        - Each call ends: with the answer, or with an error at the latest after `timeout`; then the
          connection is over, as a late answer would be taken for the next one's.
        - What waits is bounded by `max_pending` and `write_buffer`; who calls then waits.
    """

    identity: Identity

    def __init__(self, address: Address, settings: Settings, on_push: OnPush | None) -> None:
        self.address: Final = address
        self._loop: Final = asyncio.get_running_loop()
        self.ended: Final[asyncio.Future[BrokerUnavailable]] = self._loop.create_future()
        self._timeout: Final = settings.timeout
        self._most: Final = settings.max_pending
        self._high: Final = settings.write_buffer
        self._on_push: Final = on_push
        self._reader: Final = hiredis.Reader(replyError=AnswerError, notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        # Who waits for an answer, until when, and for which push if one answers.
        self._pending: Final[deque[tuple[asyncio.Future[Any], float, Expected | None]]] = deque()
        self._unsent: Final[list[bytes]] = []
        self._unsent_bytes = 0
        self.received = 0
        self._is_paused = False
        # Who waits for room, with how many bytes; how many have been let in and have not come yet.
        self._waiting: Final[deque[tuple[asyncio.Future[None], int]]] = deque()
        self._coming = 0
        self._coming_bytes = 0
        self._watch: asyncio.TimerHandle | None = None
        self._backlog = 0  # how many bytes have come since all was read
        self._reading: asyncio.Handle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.set_write_buffer_limits(high=self._high)

    def data_received(self, data: bytes) -> None:
        """Take answers and pushes."""
        self.received += 1
        self._reader.feed(data)
        self._backlog += len(data)
        if self._reading is None:
            self._read_on()
        elif self._backlog > BACKLOG:
            self._read_all()

    def _read_on(self) -> None:
        """Take some of what has come, and the rest after the loop's other work."""
        self._reading = None
        if self._has_more():
            self._reading = self._loop.call_soon(self._read_on)

    def _read_all(self) -> None:
        """Take all that has come."""
        while self._has_more():
            pass

    def _has_more(self) -> bool:
        """Take some of what has come; tell whether there is more."""
        try:
            for _ in range(SOME):
                if self.ended.done() or (answer := self._reader.gets()) is _INCOMPLETE:
                    self._backlog = 0
                    return False
                if isinstance(answer, hiredis.PushNotification) and not self._is_expected(answer):
                    if self._on_push is not None:
                        self._on_push(answer)
                else:
                    self._take(answer)
        except (hiredis.ProtocolError, IndexError) as error:  # or a push of nothing
            self.end(f"{self.address} does not speak the protocol of Redis: {error}")
        finally:
            self._let_in()
        return True

    def _is_expected(self, push: list[Any]) -> bool:
        """Tell whether a push answers a command: that to subscribe, or to unsubscribe."""
        return (
            push[0] in _ACKNOWLEDGED and bool(self._pending) and self._pending[0][2] == (*push[:2],)
        )

    def _take(self, answer: Any) -> None:
        if not self._pending:  # as a server does that lets nobody in
            self.end(f"{self.address} says without being asked: {answer}")
            return
        future = self._pending.popleft()[0]
        if future.done():  # nobody waits for it any more
            return
        if isinstance(answer, AnswerError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def pause_writing(self) -> None:
        """Let callers wait."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Let them go on."""
        self._is_paused = False
        self._let_in()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over; what has come by then counts."""
        self._read_all()
        self._end(
            BrokerUnavailable(f"the connection to {self.address} was lost: {exc or 'closed'}")
        )

    # What we call

    @property
    def _is_full(self) -> bool:
        return (
            self._is_paused
            or len(self._pending) + self._coming >= self._most
            or self._unsent_bytes + self._coming_bytes > self._high
        )

    async def call(self, *command: Argument) -> Any:
        """Have a command executed.

        Raises:
            AnswerError: The server says that it was not.
            BrokerTimeout: There was no answer in time.
            BrokerUnavailable: The connection is over, or was lost meanwhile.
        """
        packed = hiredis.pack_command(cast(Any, command))  # of any length; it may raise
        if (self._waiting or self._coming or self._is_full) and not self.ended.done():
            await self._wait_for_room(len(packed))
        return await self._send(command, packed)

    async def _wait_for_room(self, size: int) -> None:
        """Wait for a turn, in the order of coming."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((turn, size))
        try:
            async with asyncio.timeout(self._timeout):
                await turn
        except TimeoutError:
            raise BrokerTimeout(f"{self.address} takes no more: too much waits for it") from None
        finally:
            if not turn.cancelled():  # it was let in, and now sends or gives its place to another
                self._coming -= 1
                self._coming_bytes -= size
                self._loop.call_soon(self._let_in)

    def _let_in(self) -> None:
        """Let in as many as there is room for; all, when it is over: they are told."""
        while self._waiting and (self.ended.done() or not self._is_full):
            turn, size = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._coming += 1
                self._coming_bytes += size

    def send(self, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        """Send a command at the end of this turn, and return who waits for its answer.

        To subscribe and to unsubscribe takes one channel, so that there is one answer.
        """
        return self._send(command, hiredis.pack_command(cast(Any, command)))

    def _send(self, command: tuple[Argument, ...], packed: bytes) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.ended.done():
            future.set_exception(BrokerUnavailable(str(self.ended.result())))
            return future
        push = _TO_SUBSCRIBE.get(command[0])
        expected = None if push is None else (push, command[1])
        self._pending.append((future, self._loop.time() + self._timeout, expected))
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        self._unsent_bytes += len(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._look)
        return future

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        self._unsent_bytes = 0
        self._let_in()

    def _look(self) -> None:
        """End it if the oldest answer is overdue; one timer serves all calls."""
        self._watch = None
        self._read_all()  # what has come is not overdue
        if not self._pending:
            return
        until = self._pending[0][1]
        if until <= self._loop.time():
            self._end(
                BrokerTimeout(f"{self.address} has not answered for {self._timeout:g} seconds")
            )
        else:
            self._watch = self._loop.call_at(until, self._look)

    def end(self, reason: str = _CLOSED) -> None:
        """End it at once."""
        self._end(BrokerUnavailable(reason))

    def _end(self, reason: BrokerUnavailable) -> None:
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._pending:
            future = self._pending.popleft()[0]
            if not future.done():
                future.set_exception(type(reason)(str(reason), maybe_published=True))
        self._let_in()


async def connect(
    address: Address,
    settings: Settings,
    context: ssl.SSLContext | None = None,
    on_push: OnPush | None = None,
) -> Wire:
    """Connect to a server of data and learn who it is.

    Raises:
        BrokerUnavailable: It cannot be reached, or cannot do anything now.
        BrokerRefused: It does not let us in.
    """
    wire = await dial(address, settings, context, on_push)
    try:
        async with asyncio.timeout(settings.connect_timeout):
            await _introduce(wire, settings)
    except BaseException as error:  # noqa: BLE001 - it is raised, as what it means
        wire.end()
        raise _refusal(address, error) from None
    return wire


async def dial(
    address: Address,
    settings: Settings,
    context: ssl.SSLContext | None = None,
    on_push: OnPush | None = None,
) -> Wire:
    """Connect to a server of whatever kind, and say nothing yet.

    Raises:
        BrokerUnavailable: It cannot be reached.
    """
    loop = asyncio.get_running_loop()

    def make() -> Wire:
        return Wire(address, settings, on_push)

    try:
        async with asyncio.timeout(settings.connect_timeout):
            if address.port:
                _, wire = await loop.create_connection(make, *address, ssl=context)
            else:
                _, wire = await loop.create_unix_connection(make, address.host)
    except (OSError, TimeoutError) as error:
        raise _refusal(address, error) from None
    return wire


def _refusal(address: Address, error: BaseException) -> BaseException:
    if isinstance(error, AnswerError):
        refused = as_broker_error(error)
        return type(refused)(f"{address}: {refused}")
    if isinstance(error, TimeoutError) and not isinstance(error, BrokerError):
        error = OSError("it does not answer") if not str(error) else error
    if isinstance(error, OSError):
        return BrokerUnavailable(f"{address} cannot be reached: {error}")
    return error


async def log_in(wire: Wire, username: str | None, password: str | None) -> None:
    """Say who we are. From here on the server pushes (RESP3).

    Raises:
        AnswerError: It does not let us in.
    """
    login: tuple[str, ...] = ()
    if password is not None or username is not None:
        login = ("AUTH", username or "default", password or "")
    try:
        await wire.call("HELLO", 3, *login, "SETNAME", NAME)
    except AnswerError as error:
        refusal = error
    else:
        return
    # Not from within the `except`: a server that does not know HELLO quotes all of it.
    if "HELLO" in str(refusal) and refusal.code == "ERR":
        raise AnswerError("NOPROTO it does not speak RESP3: Redis 6.2 or later does, and Valkey")
    if password and password in str(refusal):
        raise AnswerError(f"{refusal.code} it does not let us in")
    raise refusal


async def _introduce(wire: Wire, settings: Settings) -> None:
    await log_in(wire, settings.username, settings.password)
    await wire.call("PING")  # refused while a server loads what it kept
    if settings.db:
        await wire.call("SELECT", settings.db)
    wire.identity = await identify(wire, settings)
    with contextlib.suppress(AnswerError):  # not every user may ask
        role, *_ = await wire.call("ROLE")
        if role != b"master":
            what = "replica" if role == b"slave" else role.decode("latin-1")
            raise BrokerUnavailable(f"{wire.address} is a {what}: it takes no publications")


async def identify(wire: Wire, settings: Settings) -> Identity:
    """Return which server process is at the other end.

    Raises:
        BrokerRefused: It does not tell, and we have to know.
    """
    told = ""
    why = "it names no run_id"
    try:
        answer = await wire.call("INFO", "server")
        told = answer.decode("latin-1") if isinstance(answer, bytes) else str(answer)
    except AnswerError as error:
        why = str(error)
    identity = identity_of(told)
    if settings.epochs == "strict" and not identity.run_id:
        raise BrokerRefused(
            f"{wire.address} does not tell which process it is, so that nobody would see that it "
            f"was started anew: let the user call INFO, or say epochs=trust ({why})"
        )
    return identity


def identity_of(info: str) -> Identity:
    """Read what INFO says of the server."""
    told = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    version = re.match(r"(\d+)\.(\d+)", told.get("redis_version", "") + ".0") or (0, 6, 2)
    return Identity(
        told.get("run_id", ""),
        (int(version[1]), int(version[2])),
        "cluster" in (told.get("redis_mode"), told.get("server_mode")),  # Valkey 9 has the second
    )
