"""The broker in this process: nothing to install, nothing to run, nothing that outlives it."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from heapq import heappop, heappush
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakValueDictionary

from yaat.brokers.contract import (
    MAX_PAYLOAD,
    NOWHERE,
    Broker,
    Content,
    OnMissed,
    OnPublication,
    OnState,
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
    check_name,
    check_open,
    check_payload,
    check_positive,
)
from yaat.exceptions import ArgumentError, UsageError

logger = logging.getLogger("yaat.broker")

OVERHEAD: Final = 400
"""What a publication takes besides its payload, in bytes; measured: 390 on CPython 3.11."""

SWEEP: Final = 1.0
"""How long, in seconds, what has expired may still take memory. It is never returned."""

_tuple: Final[Any] = tuple.__new__
"""Makes a named tuple in a third of the time that its own constructor takes: 0.1 us, not 0.3."""

FAILED: Final = "a publication could not be delivered"

CROWDED: Final = 16
"""How many channels are looked at for one that nobody listens to, when there are too many."""


class MemoryBroker(Broker):
    """Carries publications within one process.

    Args:
        space: Two brokers with the same name are two nodes of one space; without a name it is
            alone. The bounds of a space are those of the first.
        max_channels: How many channels are remembered; beyond that the ones are forgotten that
            nobody listens to and that were used least recently: their epoch changes.
        max_bytes: How many bytes of history are kept in all; beyond that the history of the
            channels is dropped that were used least recently.
        position_ttl: How long, in seconds, the position of a channel is remembered after the last
            publication or look at it.
        presence_ttl: How long, in seconds, somebody is present who is not refreshed.
        once_ttl: How long, in seconds, an idempotency key is remembered; `max_once`: how many.
        max_payload: The longest publication, in bytes.
        clock: What tells the time, in seconds since whenever.

    Raises:
        ArgumentError: A bound that is not above 0.
    """

    is_shared = False

    def __init__(  # noqa: PLR0913 - each is one bound
        self,
        space: str = "",
        *,
        max_channels: int = 100_000,
        max_bytes: int = 268_435_456,
        position_ttl: float = 86_400.0,
        presence_ttl: float = 60.0,
        once_ttl: float = 300.0,
        max_once: int = 100_000,
        max_payload: int = MAX_PAYLOAD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_positive(max_channels=max_channels, max_bytes=max_bytes, position_ttl=position_ttl)
        check_positive(presence_ttl=presence_ttl, once_ttl=once_ttl, max_once=max_once)
        check_positive(max_payload=max_payload)
        found = _spaces.get(space) if space else None
        if found is None:
            found = _Space(
                _Histories(max_channels, max_bytes, position_ttl),
                _Presence(presence_ttl),
                _Once(once_ttl, max_once),
                clock,
            )
            if space:
                _spaces[space] = found
        self._space: Final = found
        self.presence_ttl = found.presence.ttl
        self._max_payload: Final = max_payload
        self.deliver: OnPublication | None = None  # for the space; None while it is not started

    async def start(
        self,
        on_publication: OnPublication,
        on_state: OnState,
        on_missed: OnMissed,  # noqa: ARG002 - nothing is ever missed
    ) -> None:
        """Join the space. What is published there comes by the loop that calls this.

        Raises:
            UsageError: Another event loop has the space, or the broker is started already.
        """
        self._space.join(asyncio.get_running_loop(), self)
        self.deliver = on_publication
        on_state("up")

    async def close(self) -> None:
        """Leave the space. With the last node all that is in it goes."""
        if self.deliver is not None:
            self.deliver = None
            self._space.leave(self)

    async def publish(
        self, channel: str, content: Content, *, size: int, ttl: float, once: str | None = None
    ) -> Published:
        """Publish; see `Broker.publish`."""
        if self.deliver is None:
            check_open(self.deliver)
        if len(content.payload) > self._max_payload:
            check_payload(content.payload, self._max_payload)
        if once is None:
            return self._space.publish(channel, content, size, ttl)
        return self._space.publish_once(channel, content, size, ttl, once)

    async def subscribe(self, channel: str) -> None:
        """Subscribe; see `Broker.subscribe`."""
        check_name(channel)
        check_open(self.deliver)
        listeners = self._space.listeners.get(channel, ())
        if self not in listeners:
            self._space.listeners[channel] = (*listeners, self)

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe; see `Broker.unsubscribe`."""
        check_name(channel)
        self._space.unsubscribe(channel, self)

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> tuple[list[Publication], Position]:
        """Return what is kept; see `Broker.history`."""
        check_open(self.deliver)
        history = self._space.history(channel)
        if limit == 0:
            kept: list[Publication] = []
        elif reverse:
            kept = history.before(since.offset if since else history.offset + 1, history.used)
        else:
            kept = history.after(since.offset if since else 0, history.used)
        return kept[:limit], Position(history.offset, history.epoch)

    async def remove_history(self, channel: str) -> None:
        """Drop what is kept; see `Broker.remove_history`."""
        check_open(self.deliver)
        self._space.histories.drop(self._space.history(channel))

    async def presence_add(self, channel: str, present: Present) -> bool:
        """Note who is there; see `Broker.presence_add`."""
        check_name(channel)
        check_open(self.deliver)
        is_news = self._space.presence.add(channel, present, self._space.now)
        self._space.expect_presence(channel)
        return is_news

    async def presence_refresh(self, entries: Iterable[tuple[str, Present]]) -> None:
        """Note who is still there; see `Broker.presence_refresh`."""
        for channel, present in entries:
            await self.presence_add(channel, present)

    async def presence_remove(self, channel: str, client: str) -> bool:
        """Note who is there no more; see `Broker.presence_remove`."""
        check_name(channel)
        check_open(self.deliver)
        return self._space.presence.remove(channel, client, self._space.now)

    async def presence_get(self, channel: str) -> list[Present]:
        """Return who is there; see `Broker.presence_get`."""
        check_name(channel)
        check_open(self.deliver)
        return self._space.presence.get(channel, self._space.now)

    async def presence_stats(self, channel: str) -> PresenceStats:
        """Return how many are there; see `Broker.presence_stats`."""
        present = await self.presence_get(channel)
        return PresenceStats(len(present), len({each.user for each in present} - {None}))


class _History:
    """What one channel keeps."""

    __slots__ = ("epoch", "kept", "offset", "ttl", "used")

    def __init__(self) -> None:
        self.offset = 0
        self.epoch = secrets.token_urlsafe(8)
        self.kept: deque[Publication] = deque()
        self.ttl = 0.0
        self.used = 0.0

    def after(self, offset: int, now: float) -> list[Publication]:
        return [p for p in self.kept if p.offset > offset and p.time + self.ttl > now]

    def before(self, offset: int, now: float) -> list[Publication]:
        return [p for p in self.kept if p.offset < offset and p.time + self.ttl > now][::-1]


class _Histories:
    """The histories of all channels, those used least recently first."""

    __slots__ = ("_bytes", "_max_bytes", "_max_channels", "_position_ttl", "channels")

    def __init__(self, max_channels: int, max_bytes: int, position_ttl: float) -> None:
        self.channels: OrderedDict[str, _History] = OrderedDict()
        self._position_ttl = position_ttl
        self._max_channels = max_channels
        self._max_bytes = max_bytes
        self._bytes = 0

    def keep(self, history: _History, publication: Publication, size: int, ttl: float) -> None:
        """Keep a publication, and no more than `size`."""
        kept = history.kept
        kept.append(publication)
        self._bytes += OVERHEAD + len(publication.content.payload)
        history.ttl = ttl
        oldest = publication.time - ttl
        while kept and (len(kept) > size or kept[0].time <= oldest):
            self._bytes -= OVERHEAD + len(kept.popleft().content.payload)
        if self._bytes > self._max_bytes:
            self._free_bytes()

    def drop(self, history: _History, now: float = float("inf")) -> None:
        """Drop what has expired by `now`, or all of it."""
        kept = history.kept
        while kept and kept[0].time + history.ttl <= now:
            self._bytes -= OVERHEAD + len(kept.popleft().content.payload)

    def _free_bytes(self) -> None:
        """Make room, and for more than one publication: this looks at many channels."""
        for history in self.channels.values():
            if self._bytes <= self._max_bytes * 0.9:
                return
            self.drop(history)

    def make_room(self, listeners: Container[str]) -> None:
        """Forget a channel that nobody listens to, if there is no room for one more."""
        for _ in range(CROWDED if len(self.channels) >= self._max_channels else 0):
            channel = next(iter(self.channels))
            if channel not in listeners:
                self.drop(self.channels.pop(channel))
                return
            self.channels.move_to_end(channel)

    def forget(self, now: float, listeners: Container[str]) -> None:
        """Forget the channels that have not been used for too long."""
        for _ in range(len(self.channels)):
            channel, history = next(iter(self.channels.items()))
            if history.used + self._position_ttl > now:
                return
            if channel in listeners or history.kept:
                history.used = now
                self.channels.move_to_end(channel)
            else:
                del self.channels[channel]

    def clear(self) -> None:
        self.channels.clear()
        self._bytes = 0


class _Presence:
    """Who is in which channel, and until when."""

    __slots__ = ("channels", "ttl")

    def __init__(self, ttl: float) -> None:
        self.channels: dict[str, dict[str, tuple[float, Present]]] = {}
        self.ttl: Final = ttl

    def add(self, channel: str, present: Present, now: float) -> bool:
        is_news = not self._is_there(channel, present.client, now)
        clients = self.channels.setdefault(channel, {})
        if is_news:
            clients.pop(present.client, None)  # who comes back comes last
        clients[present.client] = (now + self.ttl, present)
        return is_news

    def remove(self, channel: str, client: str, now: float) -> bool:
        is_news = self._is_there(channel, client, now)
        clients = self.channels.get(channel, {})
        clients.pop(client, None)
        if not clients:
            self.channels.pop(channel, None)
        return is_news

    def _is_there(self, channel: str, client: str, now: float) -> bool:
        entry = self.channels.get(channel, {}).get(client)
        return entry is not None and entry[0] > now

    def get(self, channel: str, now: float) -> list[Present]:
        return [each for until, each in self.channels.get(channel, {}).values() if until > now]

    def sweep(self, channel: str, now: float) -> bool:
        """Drop who has expired; tell whether somebody is left."""
        clients = self.channels.get(channel, {})
        for client in [client for client, (until, _) in clients.items() if until <= now]:
            self.remove(channel, client, now)
        return channel in self.channels


class _Once:
    """What was published under which idempotency key, the oldest first."""

    __slots__ = ("_known", "_most", "_ttl")

    def __init__(self, ttl: float, most: int) -> None:
        self._known: OrderedDict[tuple[str, str], tuple[float, Published]] = OrderedDict()
        self._ttl = ttl
        self._most = most

    def get(self, channel: str, once: str, now: float) -> Published | None:
        self.sweep(now)
        until, published = self._known.get((channel, once), (now, None))
        return published if until > now else None

    def add(self, channel: str, once: str, published: Published, now: float) -> None:
        self._known[channel, once] = (now + self._ttl, published)
        self._known.move_to_end((channel, once))
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def sweep(self, now: float) -> None:
        while self._known and next(iter(self._known.values()))[0] <= now:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


class _Space:
    """What the nodes of one name share."""

    __slots__ = (
        "__weakref__",
        "_due",
        "_loop",
        "_nodes",
        "_once",
        "_since_1970",
        "_timer",
        "_timetable",
        "clock",
        "histories",
        "listeners",
        "presence",
    )

    def __init__(
        self,
        histories: _Histories,
        presence: _Presence,
        once: _Once,
        clock: Callable[[], float],
    ) -> None:
        self.histories: Final = histories
        self.presence: Final = presence
        self._once: Final = once
        self.clock: Final = clock
        # So that a publication bears the time of day, and a clock that is set expires nothing.
        self._since_1970: Final = time.time() - clock()
        self.listeners: dict[str, tuple[MemoryBroker, ...]] = {}
        self._nodes: set[MemoryBroker] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # What is to be looked at and when, each channel once; histories and presence apart.
        self._timetable: list[tuple[float, str, bool]] = []
        self._due: set[tuple[str, bool]] = set()

    @property
    def now(self) -> float:
        """The time, in seconds since 1970."""
        return self.clock() + self._since_1970

    # Who shares it

    def join(self, loop: asyncio.AbstractEventLoop, node: "MemoryBroker") -> None:
        if self._loop is not None and self._loop.is_closed():
            self._clear()  # whoever was there has gone with the loop, without a word
        if self._loop not in (None, loop):
            raise UsageError("a memory broker has one event loop; another has it already")
        if node in self._nodes:
            raise UsageError(
                "a memory broker is of one application; give each of them the same URL, "
                "as 'memory://name'"
            )
        self._loop = loop
        self._nodes.add(node)

    def leave(self, node: "MemoryBroker") -> None:
        for channel in [name for name, nodes in self.listeners.items() if node in nodes]:
            self.unsubscribe(channel, node)
        self._nodes.discard(node)
        if not self._nodes:
            self._clear()

    def unsubscribe(self, channel: str, node: "MemoryBroker") -> None:
        left = tuple(each for each in self.listeners.get(channel, ()) if each is not node)
        if left:
            self.listeners[channel] = left
        else:
            self.listeners.pop(channel, None)

    def _clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop = None
        self._timetable.clear()
        self._due.clear()
        self._nodes.clear()
        self.listeners.clear()
        self.presence.channels.clear()
        self._once.sweep(float("inf"))
        self.histories.clear()

    # Publishing

    def publish(self, channel: str, content: Content, size: int, ttl: float) -> Published:
        if size <= 0 or ttl <= 0:
            check_name(channel)
            self._send_out(channel, Publication(content, 0, "", 0, self.now))
            return Published(*NOWHERE)
        histories = self.histories
        history = histories.channels.get(channel)
        if history is None or not history.kept:
            history = self.history(channel)
            self._expect(history.used + ttl, channel, is_presence=False)
        else:  # the same as `history` does, without a call
            histories.channels.move_to_end(channel)
            history.used = self.clock() + self._since_1970
        prev, epoch = history.offset, history.epoch
        history.offset = offset = prev + 1
        publication = _tuple(Publication, (content, offset, epoch, prev, history.used))
        histories.keep(history, publication, size, ttl)
        for node in self.listeners.get(channel, ()):  # as `_send_out`, without a call
            try:
                node.deliver(channel, publication)  # type: ignore[misc] # who listens has started
            except Exception:
                logger.exception(FAILED)
        published: Published = _tuple(Published, (offset, epoch, False))
        return published

    def publish_once(
        self, channel: str, content: Content, size: int, ttl: float, once: str
    ) -> Published:
        now = self.now
        first = self._once.get(channel, once, now)
        history = self.histories.channels.get(channel)
        epoch = history.epoch if history is not None else ""
        if first is not None and first.epoch in ("", epoch):
            return first._replace(duplicate=True)
        published = self.publish(channel, content, size, ttl)
        self._once.add(channel, once, published, now)
        self._wake()
        return published

    def _send_out(self, channel: str, publication: Publication) -> None:
        for node in self.listeners.get(channel, ()):
            try:
                node.deliver(channel, publication)  # type: ignore[misc] # who listens has started
            except Exception:
                logger.exception(FAILED)

    # What is remembered, and for how long

    def history(self, channel: str) -> _History:
        """Return the history of a channel, which is used by this."""
        channels = self.histories.channels
        history = channels.get(channel)
        if history is None:
            check_name(channel)
            self.histories.make_room(self.listeners)
            history = channels[channel] = _History()
            self._wake()
        else:
            channels.move_to_end(channel)
        history.used = self.now
        return history

    def expect_presence(self, channel: str) -> None:
        self._expect(self.now + self.presence.ttl, channel, is_presence=True)

    def _expect(self, due: float, channel: str, *, is_presence: bool) -> None:
        """Look at a channel when something in it may have expired."""
        if (channel, is_presence) not in self._due:
            self._due.add((channel, is_presence))
            heappush(self._timetable, (due, channel, is_presence))
            self._wake()
            if len(self._timetable) > 2 * (self._count + CROWDED):
                self._rewrite()

    @property
    def _count(self) -> int:
        return len(self.histories.channels) + len(self.presence.channels)

    def _rewrite(self) -> None:
        """Leave out of the timetable the channels that are forgotten."""
        left = [
            (due, channel, is_presence)
            for due, channel, is_presence in self._timetable
            if channel in (self.presence if is_presence else self.histories).channels
        ]
        self._timetable = sorted(left)
        self._due = {entry[1:] for entry in left}

    def _wake(self) -> None:
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Drop what has expired. One timer serves all channels, as long as there are any."""
        self._timer = None
        now = self.now
        self._once.sweep(now)
        while self._timetable and self._timetable[0][0] <= now:
            _, channel, is_presence = heappop(self._timetable)
            self._due.discard((channel, is_presence))
            if is_presence:
                self._sweep_presence(channel, now)
            else:
                self._sweep_history(channel, now)
        self.histories.forget(now, self.listeners)
        if self._timetable or self.histories.channels or self._once:
            self._wake()

    def _sweep_presence(self, channel: str, now: float) -> None:
        if self.presence.sweep(channel, now):
            self._expect(now + self.presence.ttl, channel, is_presence=True)

    def _sweep_history(self, channel: str, now: float) -> None:
        history = self.histories.channels.get(channel)
        if history is not None:
            self.histories.drop(history, now)
            if history.kept:
                due = max(history.kept[0].time + history.ttl, now + SWEEP)
                self._expect(due, channel, is_presence=False)


_spaces: WeakValueDictionary[str, _Space] = WeakValueDictionary()


def from_url(url: str) -> MemoryBroker:
    """Return the broker of `memory://`, or of `memory://space?max_channels=1000`.

    Raises:
        ArgumentError: An option that it has not, or a value that it cannot have.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ArgumentError(f"{url!r} is no URL: {error}") from None
    if parts.path or parts.fragment or not url.startswith("memory://"):
        raise ArgumentError(f"{url!r} is neither 'memory://' nor 'memory://name'")
    options: dict[str, float] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ArgumentError(f"{name!r} is no option of memory://; it has {', '.join(_OPTIONS)}")
        try:
            options[name] = _OPTIONS[name](value)
        except ValueError:
            raise ArgumentError(f"{name} of memory:// is a number, not {value!r}") from None
    return MemoryBroker(parts.netloc, **options)  # type: ignore[arg-type] # as _OPTIONS says


_OPTIONS: Final[dict[str, type[int] | type[float]]] = {
    "max_channels": int,
    "max_bytes": int,
    "position_ttl": float,
    "presence_ttl": float,
    "once_ttl": float,
    "max_once": int,
    "max_payload": int,
}
