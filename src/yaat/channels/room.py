"""Room: one channel on this node: where it stands, and who listens."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from math import inf
from typing import Any, Final, NamedTuple

from yaat.brokers.contract import NOWHERE, Broker, Position, Publication, is_complete
from yaat.channels.formats import Format
from yaat.channels.members import Member, OnLost, called
from yaat.channels.options import ChannelOptions
from yaat.exceptions import BrokerUnavailable, PositionLost
from yaat.frames import Frame

logger = logging.getLogger("yaat.channel")

HELD: Final = 1000
HELD_BYTES: Final = 4_194_304
"""How many publications are held while the history is read, and of how many bytes. When they are
more it is read again: the first that is still held shows that some are missing."""

RETRY: Final = 0.5
"""How long, in seconds, until the history is asked for again that could not be read; on average."""

TRIES: Final = 3
"""How often a history is asked for what has come in live and is not in it; then that is lost."""

READERS: Final = 32
"""How many rooms of a node look into the history at a time."""

_tuple: Final[Any] = tuple.__new__
"""Makes a named tuple in a third of the time that its own constructor takes."""

Offer = Callable[[Frame, str | None], bool]
Start = Callable[[Coroutine[Any, Any, None]], object]


class Held:
    """What comes in live while the history is read."""

    __slots__ = ("_bytes", "_publications")

    def __init__(self) -> None:
        self._publications: Final[deque[Publication]] = deque()
        self._bytes = 0

    def hold(self, publication: Publication) -> None:
        """Hold a publication."""
        if len(self._publications) >= HELD or self._bytes >= HELD_BYTES:
            self._clear()
        self._publications.append(publication)
        self._bytes += len(publication.content.payload)

    def append(self, later: "Held | None") -> None:
        """Hold what another one held."""
        for publication in later.take() if later is not None else ():
            self.hold(publication)

    def take(self) -> list[Publication]:
        """Take out all."""
        held = list(self._publications)
        self._clear()
        return held

    def keep(self, condition: Callable[[Publication], bool]) -> None:
        """Hold only what meets the condition."""
        for publication in self.take():
            if condition(publication):
                self.hold(publication)

    @property
    def is_ahead(self) -> bool:
        """Whether it holds anything that has a position."""
        return any(publication.offset for publication in self._publications)

    def __iter__(self) -> Iterator[Publication]:
        return iter(self._publications)

    def _clear(self) -> None:
        self._publications.clear()
        self._bytes = 0

    def beyond(self, position: Position) -> list[Publication]:
        """Take out all but what was seen by who stands at `position`."""
        return [p for p in self.take() if not _is_seen(p, position)]

    def following(self, position: Position) -> list[Publication] | None:
        """Take out what follows `position`; None: something is missing between."""
        if not position.epoch:  # the channel keeps nothing, and counts nothing
            return self.take()
        following = [p for p in self.beyond(position) if p.offset]
        for publication in following:
            if (publication.prev, publication.epoch) != position:
                return None
            position = publication.position
        return following


class Reached(NamedTuple):
    """How far a member has read; and when the last that it read was published, if it read any."""

    position: Position
    time: float


class Missed(NamedTuple):
    """What a member is to be brought first, and where it stands before that."""

    since: Position
    publications: list[Publication]


class Room:
    """One channel on this node.

    Whatever changes who is a member, or where the channel stands, does so without an `await`
    between looking and acting.

    Args:
        name: The channel.
        options: What it is like.
        broker: What carries it.
        heal_soon: Is called with a room that is to be healed when it has its turn.

    Attributes:
        doubts: How often it was said that something may be missing, since it last was level.
    """

    __slots__ = (
        "_broker",
        "_checked",
        "_early",
        "_groups",
        "_heal_soon",
        "_held",
        "_is_closed",
        "_is_read",
        "_is_reading",
        "_joining",
        "_time",
        "_tries",
        "doubts",
        "name",
        "opening",
        "options",
        "position",
        "unused_since",
        "uses",
    )

    def __init__(
        self,
        name: str,
        options: ChannelOptions,
        broker: Broker,
        heal_soon: "Callable[[Room], object]",
    ) -> None:
        self.name: Final = name
        self.options: Final = options
        self.position = NOWHERE
        self.opening: asyncio.Task[None] | None = None
        self.uses = 0  # how many have joined, or are about to
        self.unused_since = 0.0
        self.doubts = 0
        self._broker = broker
        self._heal_soon = heal_soon
        self._groups: dict[Format, dict[Member, Offer]] = {}
        self._early: dict[Member, Reached] = {}  # who has read on, beyond what has come in live
        self._joining: set[Held] = set()
        self._held: Held | None = None
        # When it was published what stands at the position, if that is known; and whether it was
        # read and not heard, so that it may still come in live, as nothing new.
        self._time = inf
        self._is_read = False
        self._is_reading = True  # the first time is in `open`
        self._tries = 0
        self._checked = NOWHERE
        self._is_closed = False

    async def open(self) -> None:
        """Subscribe, and learn where the channel stands.

        Raises:
            BrokerError: It cannot be done.
        """
        self._held = Held()
        self.doubts = 0
        await self._broker.subscribe(self.name)
        if self.options.history:
            last, self.position = await self._broker.history(self.name, limit=1, reverse=True)
            self._note_read(last)
        self._is_reading = False
        self._release()
        if self.doubts:  # of what is later than the answer, maybe
            self.look()

    # What comes in

    def take(self, publication: Publication) -> None:
        """Take a publication from the broker, and tell the members."""
        if self._held is not None:
            self._held.hold(publication)
            return
        if publication.offset and self.options.history:
            if (publication.prev, publication.epoch) != self.position:
                self._take_stray(publication)
                return
            self.position = _tuple(Position, publication[1:3])  # as `publication.position`
            self._time = publication.time
            self._is_read = False
        self._tell(publication)

    def _take_stray(self, publication: Publication) -> None:
        """Take what does not follow upon what came last."""
        if self._is_later(publication):
            self._lose(Position(publication.prev, publication.epoch))
            self.take(publication)
        elif not (self._is_read and _is_seen(publication, self.position)):
            self._miss(publication)

    def _is_later(self, publication: Publication) -> bool:
        """Tell whether it has a place that was taken already when it was published.

        So it does if the server has gone back in time, as from a snapshot, and kept its epoch: what
        it publishes then is not what was told from here. (By the broker's clock. If that has gone
        back too, what was heard is asked for, and what was read only is taken for late.)
        """
        return _is_seen(publication, self.position) and publication.time > self._time

    def _tell(self, publication: Publication) -> None:
        for held in self._joining:
            held.hold(publication)
        if self._early:
            self._promote(publication)
        _, _, key, sender = publication.content
        for format, members in self._groups.items():  # noqa: A001 - one word for the idea
            frame = self._encoded(format, publication)
            if frame is None:
                continue
            if sender is None:
                for offer in tuple(members.values()):
                    offer(frame, key)
            else:
                for member, offer in tuple(members.items()):
                    if member.client != sender:
                        offer(frame, key)
        if self._early:
            self._admit_level()

    def _encoded(self, format: Format, publication: Publication) -> Frame | None:  # noqa: A002
        try:
            return format.encode(self.name, publication)
        except Exception:
            logger.exception("%r could not encode a publication", format)
            return None

    # Something is missing

    def doubt(self) -> None:
        """Note that something may not have come, of which no history has been asked yet."""
        if self.options.history:
            self.doubts += 1

    def check(self) -> None:
        """Look into the history, if nothing has come since this was called last."""
        if self.position == self._checked:
            self.look()
        self._checked = self.position

    def look(self) -> None:
        """Look into the history, unless that is being done."""
        if not self._is_reading:
            self._heal_soon(self)

    def _miss(self, publication: Publication) -> None:
        """Bring what is missing before this publication; meanwhile all that comes in waits."""
        if not self.uses:  # nobody has missed it
            self.position, self._time, self._is_read = publication.position, publication.time, False
            return
        self._held = Held()
        self._held.hold(publication)
        self._heal_soon(self)

    async def heal(self) -> bool:
        """Read what is missing until the history has it, or has it no more.

        Returns:
            Whether nothing is missing. Else it is to be called again after a while.
        """
        while self.uses:
            doubts = self.doubts
            before, self._held = self._held or Held(), Held()
            self._is_reading = True
            is_read = await self._read_past(before)
            self._is_reading = False
            before.append(self._held)
            self._held = before
            if not is_read or self._tries > 1:
                return False
            if not self._tries and self.doubts == doubts:
                break
        self._tries = self.doubts = 0
        self._release()
        return True

    async def _read_past(self, held: Held) -> bool:
        """Read on, and hold no more what that has brought; tell whether it could be read.

        What came in before it was asked is in its answer, or is of an epoch that has ended; or the
        history lags behind, and is asked again a few times. So each answer is a step forward.
        """
        position = self.position
        top = await self._read_on(held)
        if top is None:
            return False
        held.keep(lambda p: not p.offset or _is_ahead(p, self.position))
        if not held.is_ahead:
            self._tries = 0
        else:
            self._tries = 1 if self.position != position else self._tries + 1
        if self._tries == TRIES:
            self._lose(top)
            held.keep(lambda p: not p.offset)
            self._tries = 0
        return True

    async def _read_on(self, held: Held) -> Position | None:
        """Tell the members what they missed, or that it is lost.

        Returns:
            Where the channel stands; None: it could not be read.
        """
        try:
            publications, top = await self._broker.history(self.name, since=self.position)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody else will try again
            # That the broker is away is for the broker to say, once.
            level = logging.DEBUG if isinstance(error, BrokerUnavailable) else logging.WARNING
            logger.log(level, "what is missing in %.300r cannot be read yet: %r", self.name, error)
            return None
        came = [*held, *(self._held or ())]
        if is_complete(self.position, publications, top) and not any(map(self._is_later, came)):
            for publication in publications:
                self.position = publication.position
                self._tell(publication)
        else:
            self._lose(top)
        self._note_read(publications)
        return top

    def _note_read(self, publications: list[Publication]) -> None:
        """Note that what comes live need not be new: these were read, and stand no further."""
        if publications:
            self._time = max(publication.time for publication in publications)
            self._is_read = True

    def _release(self) -> None:
        """Go on with what waited, but for what the history has brought."""
        held, self._held = self._held, None
        for publication in held.beyond(self.position) if held is not None else ():
            self.take(publication)  # the next gap holds the rest back

    def _lose(self, top: Position) -> None:
        """Begin anew at `top`, and tell who stood before that."""
        self.position, self._time, self._is_read = top, inf, False
        for members in tuple(self._groups.values()):
            for member in tuple(members):
                self._lose_one(member)
        for member, (position, _) in tuple(self._early.items()):
            if position.epoch != top.epoch or position.offset <= top.offset:
                del self._early[member]
                self._admit(member)
                if position != top:
                    self._lose_one(member)

    def _lose_one(self, member: Member) -> None:
        member.lose(PositionLost(self.name))
        self._show(member, self.position)

    # Who listens

    async def catch_up(
        self, member: Member, since: Position | None, last: int, on_lost: OnLost | None = None
    ) -> Position:
        """Bring a member what it missed, then let it listen: nothing between, nothing twice.

        Args:
            member: Who is to listen.
            since: Where it stands; None: nowhere.
            last: How many publications to begin with, if it stands nowhere.
            on_lost: Called when not all is there any more. What is published meanwhile is brought
                after that.

        Returns:
            Where it stood before it was brought anything.

        Raises:
            PositionLost: Not all is there any more, and there is no `on_lost`.
            BrokerError: The history cannot be read.
        """
        held = Held()
        self._joining.add(held)
        try:
            missed: Missed | None = None
            while True:
                try:
                    missed = missed or await self._missed(since, last)
                    await self._follow(member, held, missed)
                except PositionLost as error:
                    if on_lost is None:
                        raise
                    missed = await self._missed(None, last)
                    await called(on_lost, error)
                else:
                    return missed.since
        finally:
            self._joining.discard(held)

    async def _missed(self, since: Position | None, last: int) -> Missed:
        """Return what a member is to be brought first."""
        if since is not None:
            return Missed(since, await self._after(since))
        if not (last and self.options.history):
            return Missed(self.position, [])
        publications, top = await self._broker.history(self.name, limit=last, reverse=True)
        if not publications:
            return Missed(top, [])
        publications.reverse()
        return Missed(Position(publications[0].prev, top.epoch), publications)

    async def _after(self, since: Position) -> list[Publication]:
        publications, top = await self._broker.history(self.name, since=since)
        if not is_complete(since, publications, top):
            raise PositionLost(self.name)
        return publications

    async def _follow(self, member: Member, held: Held, missed: Missed) -> None:
        """Bring a member what it missed, and what came in meanwhile, and let it listen."""
        position, publications = missed
        time = inf
        is_checked = False  # whether the history has nothing more, though the channel seemed to
        while True:
            for publication in publications:
                position = publication.position
                sender = publication.content.sender
                if sender is None or sender != member.client:
                    await member.bring(publication)
            time = max((publication.time for publication in publications), default=time)
            following = held.following(position)
            if following:
                publications = following
            elif following is None or (self._is_beyond(position) and not is_checked):
                publications = await self._after(position)
                is_checked = not publications
            else:
                break
        if self._is_closed:
            raise BrokerUnavailable("the channels have been closed")
        self._add(member, Reached(position, time))

    def _is_beyond(self, position: Position) -> bool:
        """Tell whether the channel seems to stand elsewhere than `position`, and not before it."""
        return position.epoch != self.position.epoch or position.offset < self.position.offset

    def _add(self, member: Member, reached: Reached) -> None:
        self._show(member, reached.position)
        if reached.position == self.position:
            self._admit(member)
        else:
            self._early[member] = reached

    def _show(self, member: Member, position: Position) -> None:
        frame = member.format.stand(self.name, position)
        if frame is not None:
            member.offer(frame)

    def _admit(self, member: Member) -> None:
        self._groups.setdefault(member.format, {})[member] = member.offer

    def _admit_level(self) -> None:
        """Let those listen who have read as far as has come in live by now."""
        for member, (position, _) in tuple(self._early.items()):
            if position == self.position:
                del self._early[member]
                self._admit(member)

    def _promote(self, publication: Publication) -> None:
        """Let those listen who have not read this publication yet."""
        for member, (position, time) in tuple(self._early.items()):
            if not publication.offset:  # it has no place in their order
                frame = self._encoded(member.format, publication)
                if frame is not None:
                    member.offer(frame)
            elif not _is_seen(publication, position) or publication.time > time:
                del self._early[member]
                self._admit(member)
                self._lose_one(member)  # had it stood right before this, it would listen already

    def remove(self, member: Member) -> None:
        """Let a member listen no more. Who is none is none."""
        self._early.pop(member, None)
        members = self._groups.get(member.format, {})
        members.pop(member, None)
        if not members:
            self._groups.pop(member.format, None)

    def close(self) -> None:
        """Tell all who listen that nothing more will come; nobody is let in any more."""
        self._is_closed = True
        for member in self.members:
            member.close()

    @property
    def members(self) -> list[Member]:
        """All who listen."""
        return [*self._early, *(each for members in self._groups.values() for each in members)]


def _is_ahead(publication: Publication, position: Position) -> bool:
    return publication.epoch == position.epoch and publication.offset > position.offset


def _is_seen(publication: Publication, position: Position) -> bool:
    return publication.epoch == position.epoch and publication.offset <= position.offset


class Healing:
    """The rooms of a node that are to be healed: so many at a time, by as many tasks at most.

    Args:
        start: Runs a coroutine in a task that somebody looks after.

    Attributes:
        is_away: Whether nothing need be tried again, since the broker cannot be reached.
    """

    def __init__(self, start: Start) -> None:
        self.is_away = False
        self._start = start
        self._due: dict[Room, None] = {}  # in their order, each once
        self._failed: dict[Room, None] = {}
        self._readers = 0

    def add(self, room: Room) -> None:
        """Heal a room when it has its turn."""
        self._failed.pop(room, None)
        self._due[room] = None
        if self._readers < READERS:
            self._readers += 1
            self._start(self._read())

    def retry(self) -> None:
        """Try again what failed."""
        for room in tuple(self._failed):
            self.add(room)

    async def _read(self) -> None:
        try:
            while self._due:
                room = next(iter(self._due))
                del self._due[room]
                if not await room.heal():
                    self._put_off(room)
                await asyncio.sleep(0)  # a broker that answers at once leaves nobody else a turn
        finally:
            self._readers -= 1

    def _put_off(self, room: Room) -> None:
        if not self._failed:
            self._start(self._retry_later())
        self._failed[room] = None

    async def _retry_later(self) -> None:
        await asyncio.sleep(RETRY * random.uniform(0.5, 1.5))  # noqa: S311 - only jitter
        if not self.is_away:
            self.retry()
