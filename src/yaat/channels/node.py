"""Node: what one process has of the channels: its rooms, and who is there by it."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from yaat.brokers import open_broker
from yaat.brokers.contract import Broker, Content, Present, Publication, Published
from yaat.channels.members import Counts
from yaat.channels.options import ChannelOptions, Channels
from yaat.channels.room import Healing, Room
from yaat.exceptions import BrokerError, BrokerUnavailable, UsageError
from yaat.payload import encode
from yaat.tasks import cancelled, failure_of

logger = logging.getLogger("yaat.channel")

LINGER: Final = 1.0
"""How long, in seconds, a channel stays subscribed after its last member has left; at least."""

REFRESH: Final = 3
"""How often the broker is told who is still there, within the time for which it remembers that;
give or take a fifth."""

CHECK: Final = (25.0, 40.0)
"""How often, in seconds, the channels of which nothing came meanwhile are compared with their
histories: what got lost last of all shows in nothing else. Between these: not all nodes at once."""

SPREAD: Final = 0.25
"""Within what time, in seconds, the nodes begin to look for what an outage has cost them."""

CLOSE: Final = 5.0
"""How long, in seconds, closing may take."""

BREATH: Final = 16
"""After so many publications the event loop gets its turn: who publishes without end to memory
would leave nobody the time to read."""


class Node:
    """What one process has of the channels. It starts by itself, in the event loop of its use."""

    def __init__(self, broker: Broker | str | None, channels: Channels | None) -> None:
        if not isinstance(broker, Broker | str | None):
            raise TypeError(f"a broker is a URL or a Broker, not {broker!r}")
        if not isinstance(channels, Channels | None):
            raise TypeError(f"channels is Channels({{...}}), not a {type(channels).__name__}")
        self.broker: Final = (
            broker
            if isinstance(broker, Broker)
            else open_broker("memory://" if broker is None else broker)
        )
        self.channels: Final = channels or Channels()
        self.counts: Final = Counts()
        self._rooms: dict[str, Room] = {}
        self._present: dict[tuple[str, str], Present] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up_in: asyncio.AbstractEventLoop | None = None  # the same, once it is connected
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._breath = BREATH
        self._state = "down"
        self._healing = Healing(self.run)
        self._left: list[str] = []  # the channels that are to be given up

    # Its life

    @property
    def is_up(self) -> bool:
        """Whether what is published comes here: for health checks.

        It does not while the broker is away, nor until all that an outage has cost is brought, or
        told to be lost; nor before the start.
        """
        return self._state == "up" and not any(room.doubts for room in self._rooms.values())

    async def start(self) -> None:
        """Connect, unless it is connected.

        Raises:
            BrokerUnavailable: The broker cannot be reached; the next use tries it again.
            UsageError: Another event loop has it.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            if not self._loop.is_closed():
                raise UsageError("channels belong to one event loop; another has these already")
            self._forget()
        self._loop = loop
        if self._starting is None or _has_failed(self._starting):
            self._starting = self._begin(
                self.broker.start(self._deliver, self._note_state, self._note_missed)
            )
        starting = self._starting
        await _outcome(starting)
        if self._starting is starting:  # else it has been closed meanwhile
            self._up_in = loop

    async def close(self) -> None:
        """End all there is of it: subscriptions end, members get nothing more.

        Once more does nothing; its next use starts it again.
        """
        if self._loop is None:
            return
        for room in self._rooms.values():
            room.close()
        await self._depart_all()
        await cancelled(set(self._tasks), CLOSE)
        self._forget()
        await self.broker.close()

    def _forget(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._tasks.clear()
        self._rooms.clear()
        self._present.clear()
        self._left.clear()
        self._loop = self._up_in = self._starting = None
        self._state = "down"
        self._healing = Healing(self.run)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task that outlives who waits for it; what it raises is for these."""
        task = asyncio.create_task(work, name="yaat channels")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(failure_of)
        return task

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task that nobody need wait for; what it raises is logged."""
        task = self._begin(work)
        task.add_done_callback(self._log_failure)
        return task

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        error = failure_of(task)
        if isinstance(error, BrokerError):
            self._log_refusal("the broker did not do it: %s", error)
        elif error is not None:
            logger.error("a task of the channels failed", exc_info=error)

    def _log_refusal(self, message: str, *values: object) -> None:
        """Log what the broker did not do. That it is away is for the broker to say, once."""
        logger.log(logging.WARNING if self._state == "up" else logging.DEBUG, message, *values)

    def _after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, however often this is asked for until then."""
        if callback not in self._timers and self._loop is not None:
            self._timers[callback] = self._loop.call_later(seconds, self._call, callback)

    def _call(self, callback: Callable[[], None]) -> None:
        del self._timers[callback]
        callback()

    # Publishing, and what comes in

    async def publish(
        self, channel: str, options: ChannelOptions, content: Content, once: str | None
    ) -> Published:
        """Publish; see `Channel.publish`."""
        if self._up_in is not asyncio.get_running_loop():
            await self.start()
        published = await self.broker.publish(
            channel, content, size=options.history, ttl=options.ttl, once=once
        )
        self._breath -= not self.broker.is_shared  # a broker elsewhere has let others have theirs
        if not self._breath:
            self._breath = BREATH
            await asyncio.sleep(0)
        return published

    def _deliver(self, channel: str, publication: Publication) -> None:
        room = self._rooms.get(channel)
        if room is not None:
            room.take(publication)

    def _note_state(self, state: str) -> None:
        logger.debug("the broker is %s", state)
        self._state = state
        self._healing.is_away = state != "up"
        if state == "up":
            self._healing.retry()
            self._refresh()  # it may have forgotten them
            self._give_up()

    def _note_missed(self, channels: Collection[str]) -> None:
        logger.debug("something may be missing in %d channels", len(channels))
        for channel in channels:
            if channel in self._rooms:
                self._rooms[channel].doubt()
        self._after(random.uniform(0, SPREAD), self._look)  # noqa: S311 - only jitter

    def _look(self) -> None:
        for room in self._rooms.values():
            if room.doubts:
                room.look()

    def _check(self) -> None:
        """Let the channels be compared with their histories of which nothing came for a while."""
        kept = [room for room in self._rooms.values() if room.options.history]
        if kept:
            self._check_later()
        if self._state == "up":
            for room in kept:
                room.check()

    def _check_later(self) -> None:
        self._after(random.uniform(*CHECK), self._check)  # noqa: S311 - only jitter

    # Rooms

    async def enter(self, channel: str, options: ChannelOptions) -> Room:
        """Return the room of a channel, subscribed. Who enters has to `leave` it.

        Raises:
            BrokerError: It cannot be subscribed to.
        """
        await self.start()
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = Room(channel, options, self.broker, self._healing.add)
            self._check_later()
        room.uses += 1
        try:
            if room.opening is None or _has_failed(room.opening):
                room.opening = self._begin(room.open())
            await _outcome(room.opening)
        except BaseException:
            self.leave(room)
            raise
        return room

    def leave(self, room: Room) -> None:
        """Need a room no more."""
        room.uses -= 1
        if not room.uses and self._loop is not None:
            room.unused_since = self._loop.time()
            self._after(LINGER, self._tidy)

    def _tidy(self) -> None:
        """Give up the rooms that nobody has needed for a while."""
        until = asyncio.get_running_loop().time() - LINGER
        unused = [room for room in self._rooms.values() if not room.uses]
        given_up = [room.name for room in unused if room.unused_since <= until]
        for name in given_up:
            del self._rooms[name]
        self._left += given_up
        self._give_up()
        if len(unused) > len(given_up):
            self._after(LINGER, self._tidy)

    def _give_up(self) -> None:
        """Unsubscribe from the channels that have been left, if nobody came back meanwhile."""
        left, self._left = self._left, []
        if left:
            self.run(self._unsubscribe(left))

    async def _unsubscribe(self, channels: list[str]) -> None:
        for channel in channels:
            try:
                if channel not in self._rooms:  # the last call counts, and who comes subscribes
                    await self.broker.unsubscribe(channel)
            except BrokerError as error:
                self._log_refusal("%.300r stays subscribed for now: %s", channel, error)
                self._left.append(channel)
                if self._state == "up":  # else it is tried again when it is
                    self._after(LINGER, self._give_up)

    # Who is there

    async def arrive(self, channel: str, present: Present) -> None:
        """Let it be known that somebody is there. Who arrives has to `depart`."""
        self._present[channel, present.client] = present
        self._refresh_later()
        if await self.broker.presence_add(channel, present):
            await self._tell(channel, "join", present)

    async def depart(self, channel: str, present: Present) -> None:
        """Let it be known that somebody is there no more, whatever happens to who calls this."""
        if self._present.pop((channel, present.client), None) is not None:  # or it was closed
            with contextlib.suppress(BrokerError):  # it is logged where it is raised
                await _outcome(self.run(self._depart(channel, present)))

    async def _depart(self, channel: str, present: Present) -> None:
        if await self.broker.presence_remove(channel, present.client):
            await self._tell(channel, "leave", present)

    async def _depart_all(self) -> None:
        """Take along all who are there by this node: others would see them until they expire."""
        present, self._present = self._present, {}
        try:
            async with asyncio.timeout(CLOSE):
                for (channel, _), each in present.items():
                    await self._depart(channel, each)
        except (BrokerError, TimeoutError) as error:
            logger.warning("some seem to be present for a while yet: %s", error or "no time")

    async def _tell(self, channel: str, kind: Any, present: Present) -> None:
        content = Content(kind, encode(present))
        await self.broker.publish(channel, content, size=0, ttl=0)

    def _refresh(self) -> None:
        entries = [(channel, present) for (channel, _), present in self._present.items()]
        if entries:  # also while it is down: some of its servers may be there
            self._refresh_later()
            self.run(self.broker.presence_refresh(entries))

    def _refresh_later(self) -> None:
        seconds = self.broker.presence_ttl / REFRESH
        self._after(seconds * random.uniform(0.8, 1.2), self._refresh)  # noqa: S311 - only jitter


async def _outcome(task: asyncio.Task[None]) -> None:
    """Wait for a task that others wait for as well: who is cancelled does not take it along.

    Raises:
        BrokerUnavailable: It was cancelled itself.
        Exception: What it raised.
    """
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        waiting = asyncio.current_task()
        if task.cancelled() and not (waiting and waiting.cancelling()):
            raise BrokerUnavailable("the channels have been closed") from None
        raise


def _has_failed(task: asyncio.Task[None]) -> bool:
    """Tell whether it is to be tried again by who comes next."""
    return task.done() and (task.cancelled() or task.exception() is not None)
