"""Outbox: what waits to be sent on one connection, of all the channels that it is in.

What nobody has to wait for is not here: a publication goes straight to the server as long as the
connection keeps up. What does wait stands in the same queue as the calls of `send_text` and its
like (`Turns`), so that everything leaves in the order in which it was given. Each member of a
channel has its own `Share` of the outbox, with a budget in bytes; a connection that is in many
channels has many shares and one outbox.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import Context
from functools import partial
from typing import Any, Final

from yaat.exceptions import UsageError, WebSocketDisconnect
from yaat.frames import Frame
from yaat.tasks import cancel, failure_of
from yaat.turns import Turns
from yaat.types import Message

logger = logging.getLogger("yaat.channel")

OVERHEAD: Final = 400
"""What an entry takes besides the payload, in bytes: itself, its frame, and its places in two
queues. Measured: 381 on CPython 3.11."""


class _Entry:
    """A frame that waits."""

    __slots__ = ("frame", "key", "segment", "share", "size")

    def __init__(self, frame: Frame, key: str | None, share: "Share", segment: "_Segment") -> None:
        self.frame = frame.to_keep()
        self.key = key
        self.size = len(frame.payload) + OVERHEAD
        self.share = share
        self.segment = segment


class _Segment:
    """Frames that wait one behind the other. In the queue of the turns it has one place.

    It stands there like the future of somebody who waits to send.
    """

    __slots__ = ("_outbox", "entries")

    def __init__(self, outbox: "Outbox") -> None:
        self._outbox = outbox
        self.entries: OrderedDict[_Entry, None] = OrderedDict()

    def done(self) -> bool:
        """Tell whether there is no need of a turn any more."""
        return not self.entries

    def set_result(self, _: None) -> None:
        """Take the turn."""
        self._outbox.take_turn(self)


class _Begun:
    """A coroutine that has made its first step, to be gone on with by awaiting this."""

    __slots__ = ("_coroutine", "_yielded")

    def __init__(self, coroutine: Coroutine[Any, Any, None], yielded: Any) -> None:
        self._coroutine = coroutine
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, None]:
        yielded = self._yielded
        while True:
            try:
                answer = yield yielded
            except BaseException as error:  # noqa: BLE001 - it is thrown on, whatever it is
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, answer)
            try:
                yielded = step()
            except StopIteration:
                return


class Outbox:
    """What waits on one connection.

    Args:
        turns: Who may send on the connection.
        wire: The server's `yaat.wire`, if nobody stands between; else None: then one task writes.
        step: The server's `send`, if it neither waits nor needs a task unless it is full.
        carry: Sends a message, where there is no wire; who calls it has the turn.
        is_open: Tells whether data can still be sent.
        close: Begins to close the connection.
    """

    __slots__ = (
        "_begun",
        "_carry",
        "_close",
        "_current",
        "_has_turn",
        "_has_wire",
        "_idle",
        "_is_draining",
        "_is_open",
        "_is_over",
        "_on_room",
        "_shares",
        "_step",
        "_writer",
        "left_behind",
        "turns",
        "write",
    )

    def __init__(
        self,
        turns: Turns,
        wire: Mapping[str, Any] | None,
        *,
        step: Callable[[Message], Coroutine[Any, Any, None]] | None,
        carry: Callable[[Message], Coroutine[Any, Any, None]],
        is_open: Callable[[], bool],
        close: Callable[[int, str], object],
    ) -> None:
        self.turns: Final = turns
        self.write: Final[Callable[[Frame], bool]] = wire["write"] if wire else self._write_by_step
        self._has_wire = bool(wire)
        self._on_room: Callable[[Callable[[], None]], object] = wire["on_room"] if wire else _refuse
        self._step = step
        self._carry = carry
        self._close = close
        self._is_open = is_open
        self._shares: dict[str, Share] = {}
        self._current: _Segment | None = None  # the one that has the turn
        self._is_draining = False
        self._is_over = False
        self.left_behind = 0  # how many bytes wait for members that have left
        self._has_turn = False
        self._writer: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # what the writer waits for
        self._begun: _Begun | None = None  # a send that it is to finish

    @property
    def is_open(self) -> bool:
        """Whether it takes anything more."""
        return not self._is_over and self._is_open()

    def segment(self) -> _Segment:
        """Return the one at the end of the queue, so that nobody is overtaken."""
        queue = self.turns.queue
        if queue:
            if isinstance(queue[-1], _Segment):
                return queue[-1]
        elif self._current is not None:
            return self._current
        return _Segment(self)

    def start(self, segment: _Segment) -> None:
        """Let the frames of a segment leave as soon as it is their turn."""
        if segment is self._current:
            return
        if not self.turns.taken:
            self.turns.taken = True
            self._begin(segment)
        elif not (self.turns.queue and self.turns.queue[-1] is segment):
            self.turns.mind().append(segment)

    def _begin(self, segment: _Segment) -> None:
        """Begin with a segment when the server has just said that it takes no more."""
        if not self._has_wire:
            self.take_turn(segment)
        else:
            self._current = segment
            self._has_turn = True
            self._on_room(self._drain)

    def take_turn(self, segment: _Segment) -> None:
        """Send the frames of a segment, which has the turn."""
        self._current = segment
        self._has_turn = True
        if not self._has_wire:
            self._wake()
        elif not self._is_draining:
            self._drain()

    # With the wire: without a task

    def _drain(self) -> None:
        self._is_draining = True  # who gets the turn from us may be a segment of ours
        while self._current is not None and self._has_written(self._current):
            self._give_turn()
        self._is_draining = False

    def _has_written(self, segment: _Segment) -> bool:
        """Hand over what the server takes; tell whether that was all."""
        while segment.entries:
            entry = next(iter(segment.entries))
            if not self.write(entry.frame):
                self._on_room(self._drain)
                return False
            entry.share.forget(entry)
        return True

    def _give_turn(self) -> None:
        self._current = None
        self._has_turn = False
        self.turns.give()

    # Without: one task writes

    def _write_by_step(self, frame: Frame) -> bool:
        """Send a frame without a task, where the server's `send` runs through unless it is full.

        To wake a task takes as long as the rest of it. If it does not run through, the writer goes
        on with it.
        """
        if self._step is None or not self.is_open:
            return False
        sending = self._step(frame.event())
        try:
            yielded = sending.send(None)
        except StopIteration:
            return True
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as in `_run`
            self._fail(error)
            return False
        self._begun = _Begun(sending, yielded)
        self.turns.taken = self._has_turn = True
        self._wake()
        return True

    def _wake(self) -> None:
        """See to it that the writer writes."""
        if self._idle is not None:
            _set(self._idle)
        elif self._writer is None:
            # It outlives who happens to publish first: nothing of that one's context is kept.
            self._writer = asyncio.create_task(self._run(), name="yaat outbox", context=Context())
            self._writer.add_done_callback(self._writer_ended)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        failure_of(writer)
        if self._writer is writer:  # it was cancelled, perhaps before its first step
            self._writer = None
            if self._has_turn and not self._is_over:  # and not by us
                self._fail(asyncio.CancelledError("the writer was cancelled"))
            if self._has_turn:
                self._give_turn()

    async def _run(self) -> None:
        """Send segment after segment, as long as there is a member."""
        writer = asyncio.current_task()
        while self._is_due or await self._more():
            try:
                begun, self._begun = self._begun, None
                if begun is not None:
                    if self._is_over and writer is not None:
                        cancel(writer)  # where it waits, so that it can clean up
                    await begun
                await self._send_all(self._current)
            except Exception as error:  # noqa: BLE001 - it must never die in silence
                self._fail(error)
            self._give_turn()

    @property
    def _is_due(self) -> bool:
        """Whether there is something for the writer."""
        return self._current is not None or self._begun is not None

    async def _more(self) -> bool:
        """Wait for the next segment; tell whether there is one."""
        while not self._is_due and self._shares and not self._is_over:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                await self._idle
            finally:
                self._idle = None
        if not self._is_due:
            self._writer = None  # who has something from now on needs another
        return self._is_due

    async def _send_all(self, segment: _Segment | None) -> None:
        while segment is not None and segment.entries:
            entry = next(iter(segment.entries))
            entry.share.forget(entry)
            await self._carry(entry.frame.event())

    def _fail(self, error: BaseException) -> None:
        if self.is_open and not isinstance(error, (OSError, WebSocketDisconnect)):
            logger.error("a connection took no more publications", exc_info=error)
            self.end(1011, "")
        self.lose()

    # The end

    def join(self, share: "Share") -> None:
        """Note a share.

        Raises:
            UsageError: There is one of its name.
        """
        if share.name in self._shares:
            raise UsageError(f"this connection is a member of {share.name!r} already")
        self._shares[share.name] = share
        share.write = _refuse if self._is_over else self.write

    def leave(self, share: "Share") -> None:
        """Give up a share. What waits still leaves; with the last one the writer then ends."""
        del self._shares[share.name]
        self.left_behind += share.waiting
        if not self._shares and self._idle is not None:
            _set(self._idle)

    def lose(self) -> None:
        """Drop all that waits, and take no more: the connection has ended, or will."""
        self._is_over = True
        for share in self._shares.values():
            share.write = _refuse
        for place in (self._current, *(self.turns.queue or ())):
            if isinstance(place, _Segment):
                for entry in tuple(place.entries):
                    entry.share.forget(entry)
        if self._begun is not None:
            return  # the writer has been told, and will end that first
        if self._idle is not None:
            _set(self._idle)
        elif self._writer is None:
            if self._has_turn:
                self._give_turn()
        elif asyncio.current_task() is not self._writer:
            cancel(self._writer)

    def end(self, code: int, reason: str) -> None:
        """Close the connection, and send nothing more of what waits."""
        if not self._is_over:
            self.lose()
            self._close(code, reason)


class Share:
    """The part that one member has in the outbox of its connection.

    Args:
        outbox: The connection's.
        name: The channel; a connection is a member of it once.
        slow: What happens when more would wait than `max_waiting`: see `ChannelOptions`.
        max_waiting: How many bytes may wait for this member.

    Raises:
        UsageError: The connection is a member already.
    """

    __slots__ = (
        "_entries",
        "_has_left",
        "_keys",
        "_max_waiting",
        "_outbox",
        "_slow",
        "_turns",
        "name",
        "waiting",
        "write",
    )

    def __init__(self, outbox: Outbox, name: str, slow: str, max_waiting: int) -> None:
        self._outbox = outbox
        self._turns = outbox.turns
        self.write: Callable[[Frame], bool]
        self._slow = slow
        self._max_waiting = max_waiting
        self._entries: OrderedDict[_Entry, None] = OrderedDict()
        self._keys: dict[str, _Entry] = {}
        self._has_left = False
        self.waiting = 0
        self.name = name
        outbox.join(self)

    def offer(self, frame: Frame, key: str | None = None) -> bool:
        """Send a frame, now or when there is room. It never blocks, waits or raises.

        Returns:
            Whether it was taken. False: the connection has ended, or this frame is dropped.
        """
        if not self._turns.taken and self.write(frame):
            return True
        return self._outbox.is_open and self._wait(frame, key)

    def _wait(self, frame: Frame, key: str | None) -> bool:
        if self._slow == "latest" and key in self._keys and self._supersede(self._keys[key], frame):
            return True
        size = len(frame.payload) + OVERHEAD
        while self._entries and self.waiting + size > self._max_waiting:
            if self._slow == "cut":
                self.on_cut()
                self._outbox.end(1013, "reads too slowly")
                return False
            self.on_drop()
            if self._slow == "drop_newest":
                return False
            self.forget(next(iter(self._entries)))
        self._append(frame, key)
        return True

    def _append(self, frame: Frame, key: str | None) -> None:
        segment = self._outbox.segment()
        entry = _Entry(frame, key, self, segment)
        segment.entries[entry] = self._entries[entry] = None
        self.waiting += entry.size
        if key is not None:
            self._keys[key] = entry
        self._outbox.start(segment)

    def _supersede(self, entry: _Entry, frame: Frame) -> bool:
        """Let a newer frame take the place of one that waits; tell whether there is room for it.

        Its place and not one at the end: there, a key that changes all the time would wait for
        ever.
        """
        self.on_drop()
        size = len(frame.payload) + OVERHEAD
        if self.waiting - entry.size + size > self._max_waiting:
            self.forget(entry)
            return False
        self.waiting += size - entry.size
        entry.frame, entry.size = frame.to_keep(), size
        return True

    def forget(self, entry: _Entry) -> None:
        """Take out an entry: it is on its way, or dropped."""
        del entry.segment.entries[entry]
        del self._entries[entry]
        self.waiting -= entry.size
        if self._has_left:
            self._outbox.left_behind -= entry.size
        if entry.key is not None and self._keys.get(entry.key) is entry:
            del self._keys[entry.key]

    def leave(self) -> None:
        """Offer no more. What waits still leaves, in its order.

        A connection whose members that have left leave more behind than this one's budget is cut:
        who comes and goes and reads nothing would not be bounded by any.
        """
        if not self._has_left:
            self._outbox.leave(self)
            self._has_left = True
            if self.waiting < self._outbox.left_behind > self._max_waiting:
                self.on_cut()
                self._outbox.end(1013, "reads too slowly")

    def on_drop(self) -> None:
        """Be told that a frame is dropped."""

    def on_cut(self) -> None:
        """Be told that the connection is cut."""


def _refuse(_: object) -> bool:
    return False


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
