"""A state machine drives two hubs over one space, in scripted time, against what really happened.

A witness stands beside the brokers and sees everything at once, in its order. The hubs are some way
off: what they ask takes time there and back, and on its way to them a publication may get lost. Now
and then they are cut off for a while, and the server may have forgotten everything by then. Who is
a member has to see what the witness saw, from one place on: in order, nothing twice, nothing
missing; or is told.
"""

import asyncio
import base64
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from brokers import DistantBroker
from scripted import ScriptedLoop, ScriptedServer
from yaat.brokers.contract import (
    Content,
    OnMissed,
    OnPublication,
    OnState,
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
)
from yaat.brokers.memory import MemoryBroker
from yaat.channels import POSITIONED, RAW, ChannelOptions, Channels
from yaat.channels.hub import Hub
from yaat.channels.node import CHECK
from yaat.exceptions import BrokerUnavailable, PositionLost, WebSocketDisconnect
from yaat.outbox import OVERHEAD
from yaat.policy import Policy
from yaat.websockets import WebSocket, WebSocketState

T = TypeVar("T")
Kind = Literal["text", "bytes", "json"]

SIZE = 4
TTL = 50.0
ONCE_TTL = 300.0
CHANNELS = Channels(
    {
        "kept:{id}": ChannelOptions(history=SIZE, ttl=TTL, presence=True),
        "bare:{id}": ChannelOptions(presence=True),
        "narrow:{id}": ChannelOptions(
            history=SIZE, ttl=TTL, slow="drop_oldest", max_waiting=3 * (OVERHEAD + 10)
        ),
    }
)
NAMES = ("kept:a", "kept:b", "bare:a", "narrow:a")
KEPT_NAMES = tuple(name for name in NAMES if CHANNELS.options(name).history)
OFTEN = ("kept:a",) * 6 + NAMES
"""Most of it happens in one channel, so that much comes together."""

NONSENSE = "what?"
"""What a client sent that is no position."""

LAGS = st.sampled_from([0.0, 0.01, 0.03])
"""How long anything takes, there, back or live."""

POLICY = Policy(close_timeout=5.0)

INSTANT = 1e-6
"""In scripted time it lasts until nobody has anything left to do."""

SETTLED = 2.0
"""How long it may take until everything has arrived, and what got lost has been brought."""

LATER = 40.0
"""How long it may take until nothing is left of who has gone."""


def value_of(number: int, kind: Kind) -> Any:
    return {"text": str(number), "bytes": b"%d" % number, "json": {"n": number}}[kind]


def raw_of(number: int, kind: Kind) -> str | bytes:
    return (
        b"%d" % number
        if kind == "bytes"
        else str(number)
        if kind == "text"
        else f'{{"n":{number}}}'
    )


def number_of(value: Any) -> int:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    return int(value["n"] if isinstance(value, dict) else value)


class RemoteBroker(DistantBroker):
    """A broker some way off, to which the way may be cut."""

    is_down = False

    async def start(
        self, on_publication: OnPublication, on_state: OnState, on_missed: OnMissed
    ) -> None:
        def hear(channel: str, publication: Publication) -> None:
            if not self.is_down:
                on_publication(channel, publication)
            elif publication.offset:
                self.losses[channel] += 1

        self.on_state, self.on_missed = on_state, on_missed
        await super().start(hear, on_state, on_missed)

    async def _far(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self.is_down:
            raise BrokerUnavailable("the cable is cut")
        return await super()._far(name, work)

    async def go_down(self) -> None:
        self.is_down = True
        if self.deliver is not None:
            self.on_state("down")

    async def come_up(self, *, is_missed_first: bool) -> None:
        self.is_down = False
        if self.deliver is None:
            return
        if not is_missed_first:
            self.on_state("up")
        listeners = self._space.listeners
        self.on_missed([name for name, nodes in listeners.items() if self in nodes])
        if is_missed_first:
            self.on_state("up")
        self.lost.clear()  # what got lost before that is found as well


class Person:
    """Who has a connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.server = ScriptedServer(**{"yaat.policy": POLICY})
        self.websocket: WebSocket = self.server.websocket()
        self.over = asyncio.Event()
        self.channels: set[str] = set()

    async def live(self) -> None:
        # Who is closed for having lost its position, and does not even take the close, is lost.
        with suppress(WebSocketDisconnect):
            async with self.websocket:
                await self.websocket.accept()
                await self.over.wait()

    @property
    def user(self) -> str:
        return f"u{self.number}"

    @property
    def is_reading(self) -> bool:
        return self.server.gate.is_set() and not self.has_ended

    @property
    def has_ended(self) -> bool:
        states = (self.websocket.client_state, self.websocket.application_state)
        return self.server.has_left or WebSocketState.DISCONNECTED in states


@dataclass(eq=False)
class Member:
    """Who is in a channel, or is about to be, or was.

    Attributes:
        since, last: What it asked for.
        begun, begun_events: How much had been published when it began to join.
        begun_kept: From which publication on the history was kept then.
        entered, entered_events: How much had been published when it was in.
        lost, lost_at: What it was told that it lost; how much had been published by then.
        received: What came, of a subscriber in Python.
        leaves: How much was published when it began to leave.
        final: How many it had seen when it had left.
    """

    name: str
    hub: int
    how: Literal["raw", "positioned", "python"]
    person: Person | None
    since: str | Position | None
    last: int
    is_told: bool
    begun: int
    begun_events: int
    begun_kept: int
    entered: int | None = None
    entered_events: int | None = None
    entered_kept: int | None = None
    leaves: int | None = None
    final: int | None = None
    lost: list[PositionLost] = field(default_factory=list)
    lost_at: int = 0
    received: list[Publication] = field(default_factory=list)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] = field(init=False)

    @property
    def is_in(self) -> bool:
        return self.entered is not None and self.leaves is None and not self.task.done()

    @property
    def is_reading(self) -> bool:
        return self.gate.is_set() and (self.person is None or self.person.is_reading)


@dataclass(eq=False)
class Watcher:
    """Who looks on as others come and go.

    Attributes:
        begun, entered: How much had happened when it began, and when it surely was in.
    """

    name: str
    begun: int
    entered: int | None = None
    seen: list[tuple[str, str]] = field(default_factory=list)
    task: asyncio.Task[None] = field(init=False)


class Rooms(RuleBasedStateMachine):
    """Two hubs, who comes and goes there, and who publishes."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=ScriptedLoop)
        self.loop = self.runner.get_loop()
        self.time = patch("yaat.websockets.monotonic", self.loop.time)
        self.time.start()
        self.log: defaultdict[str, list[Publication]] = defaultdict(list)
        self.events: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self.forgotten: Counter[str] = Counter()  # up to where the history was removed
        self.wiped: Counter[str] = Counter()
        self.wiped_at: dict[str, int] = {}
        self.skips: dict[int, Person] = {}
        self.kinds: dict[int, Kind] = {}
        self.onces: dict[int, tuple[str, str]] = {}
        self.published: list[tuple[int, str, asyncio.Task[Published]]] = []
        self.present: dict[str, list[tuple[list[Present], PresenceStats]]] = {}
        self.people: list[Person] = []
        self.handlers: list[asyncio.Task[None]] = []
        self.members: list[Member] = []
        self.watchers: list[Watcher] = []
        self.at_once_with = 0

    @initialize(
        lags=st.lists(st.tuples(LAGS, LAGS, LAGS), min_size=2, max_size=2),
    )
    def begin(self, lags: list[tuple[float, float, float]]) -> None:
        Rooms.made += 1
        space = f"rooms {Rooms.made}"
        self.witness = MemoryBroker(space, clock=self.loop.time, once_ttl=ONCE_TTL)
        self.brokers = [
            RemoteBroker(space, *lag, clock=self.loop.time, once_ttl=ONCE_TTL) for lag in lags
        ]
        self.hubs = [Hub(broker, CHANNELS) for broker in self.brokers]
        self.loop.run_until_complete(self.witness.start(self.see, lambda _: None, lambda _: None))
        for name in NAMES:
            self.loop.run_until_complete(self.witness.subscribe(name))

    def see(self, channel: str, publication: Publication) -> None:
        kind = publication.content.kind
        if kind in ("join", "leave"):
            client = json.loads(publication.content.payload)
            self.events[channel].append((kind, client["user"]))
        else:
            self.log[channel].append(publication)

    def play(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @property
    def now(self) -> float:
        """The time by which publications are dated, and expire."""
        return self.witness._space.now

    def settle(self) -> None:
        """Let everything arrive, and ask who is there then."""

        async def ask() -> None:
            await asyncio.sleep(SETTLED)
            for name in NAMES:
                if CHANNELS.options(name).presence:
                    channels = [hub.channel(name) for hub in self.hubs]
                    self.present[name] = [
                        (await each.presence(), await each.presence_stats()) for each in channels
                    ]

        self.do(ask())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def numbers(self, name: str) -> list[int]:
        return [number_of(publication.data) for publication in self.log[name]]

    def kept(self, name: str) -> int:
        """Return from which of its publications on a channel has a history now."""
        log, size = self.log[name], CHANNELS.options(name).history
        fresh = [i for i, each in enumerate(log) if each.time + TTL > self.now]
        return max([self.forgotten[name], len(log) - size, fresh[0] if fresh else len(log)])

    # Publishing

    @rule(
        hub=st.integers(0, 1),
        name=st.sampled_from(OFTEN),
        kind=st.sampled_from(["text", "bytes", "json"]),
        once=st.sampled_from([None, None, None, "x", "y"]),
        skip=st.none() | st.integers(0, 5),
        count=st.sampled_from([1, 1, 1, 2, 6]),
    )
    def publish(
        self, hub: int, name: str, kind: Kind, once: str | None, skip: int | None, count: int
    ) -> None:
        for _ in range(count):
            self.publish_one(hub, name, kind, once, skip)

    def publish_one(
        self, hub: int, name: str, kind: Kind, once: str | None = None, skip: int | None = None
    ) -> None:
        number = len(self.kinds)
        self.kinds[number] = kind
        if once is not None:
            self.onces[number] = (name, once)
        socket: WebSocket | None = None
        able = [each for each in self.people if name in each.channels]
        if skip is not None and able:
            self.skips[number] = able[skip % len(able)]
            socket = self.skips[number].websocket
        channel = self.hubs[hub].channel(name)
        work = channel.publish(value_of(number, kind), once=once, skip=socket)
        self.published.append((number, name, self.loop.create_task(work)))

    @rule(name=st.sampled_from(OFTEN), hubs=st.lists(st.integers(0, 1), min_size=3, max_size=9))
    def publish_more(self, name: str, hubs: list[int]) -> None:
        for hub in hubs:
            self.publish_one(hub, name, "json")

    @rule(
        hub=st.integers(0, 1),
        name=st.sampled_from(OFTEN),
        how=st.sampled_from(["remove", "remove", "forget"]),
    )
    def the_history_goes(self, hub: int, name: str, how: str) -> None:
        """And with how="forget" the epoch, as if the server had lost its memory."""
        self.play(SETTLED)
        if how == "remove":
            self.do(self.hubs[hub].channel(name).remove_history())
            self.forgotten[name] = len(self.log[name])
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        histories = self.witness._space.histories
        if name in histories.channels:
            histories.drop(histories.channels.pop(name))
            self.wiped[name] += 1
            self.wiped_at[name] = len(self.log[name])
        self.forgotten[name] = len(self.log[name])

    @rule(hub=st.integers(0, 1), count=st.sampled_from([1, 1, 2, 5]))
    def publications_get_lost(self, hub: int, count: int) -> None:
        self.brokers[hub].to_lose += count

    @rule(
        hubs=st.sampled_from([(0,), (1,), (0, 1), (0, 1)]),
        before=st.lists(st.sampled_from(KEPT_NAMES), max_size=5),
        forgets=st.booleans(),
        after=st.lists(st.sampled_from(KEPT_NAMES), max_size=5),
        seconds=st.sampled_from([0.01, 5.0, 30.0, 70.0]),
        is_missed_first=st.booleans(),
        then=st.lists(st.sampled_from(KEPT_NAMES), max_size=3),
    )
    def an_outage(
        self,
        hubs: tuple[int, ...],
        before: list[str],
        forgets: bool,  # noqa: FBT001
        after: list[str],
        seconds: float,
        is_missed_first: bool,  # noqa: FBT001
        then: list[str],
    ) -> None:
        """Let hubs be cut off; if all are, the server may have been started anew, and empty."""
        self.play(SETTLED)
        for hub in hubs:
            self.do(self.brokers[hub].go_down())
        self.publish_at_the_server(before)
        if forgets and len(hubs) == len(self.hubs):
            for name in NAMES:
                self.forget(name)
            self.witness._space.presence.channels.clear()
        self.publish_at_the_server(after)
        self.play(seconds)
        for hub in hubs:
            self.do(self.brokers[hub].come_up(is_missed_first=is_missed_first))
        self.publish_at_the_server(then)

    def publish_at_the_server(self, names: list[str]) -> None:
        for name in names:
            number, options = len(self.kinds), CHANNELS.options(name)
            self.kinds[number] = "text"
            content = Content("text", str(number).encode())
            self.do(self.witness.publish(name, content, size=options.history, ttl=options.ttl))

    @rule(seconds=st.sampled_from([0.005, 0.02, 20.0, 55.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        """And what got lost last of all is found."""
        self.play(seconds)
        if seconds > 3 * CHECK[1]:
            for broker in self.brokers:
                broker.lost.clear()

    # Coming and going

    def someone(self, number: int, name: str) -> Person:
        """Return somebody whose connection has not been in that channel yet."""
        able = [each for each in self.people if name not in each.channels and not each.has_ended]
        if able and number % 3:
            return able[number % len(able)]
        person = Person(len(self.people))
        self.people.append(person)
        self.handlers.append(self.loop.create_task(person.live()))
        self.play(INSTANT)
        return person

    def position(self, name: str, back: int, flaw: str | None) -> Position:
        """Return a position of the channel, or what is wrong with it."""
        log = [each.position for each in self.log[name]]
        log = [Position(0, log[-1].epoch if log else "nothing"), *log]
        offset, epoch = log[-1 - back % len(log)]
        if flaw == "future":
            offset = log[-1].offset + 3
        return Position(offset, "another1" if flaw == "epoch" else epoch)

    @precondition(lambda self: sum(not each.task.done() for each in self.members) < 12)
    @rule(
        hub=st.integers(0, 1),
        name=st.sampled_from(OFTEN),
        how=st.sampled_from(["raw", "positioned", "positioned", "python"]),
        who=st.integers(0, 9),
        back=st.none() | st.integers(0, 9),
        flaw=st.sampled_from([None, None, None, "epoch", "future", "nonsense"]),
        written=st.booleans(),
        last=st.sampled_from([0, 0, 1, 3, 9]),
        is_told=st.sampled_from([True, True, False]),
        meanwhile=st.lists(
            st.tuples(st.sampled_from([0.0, 0.005, 0.012]), st.integers(0, 1)), max_size=8
        ),
    )
    def join(  # noqa: PLR0913, PLR0917 - all that can be asked of a channel
        self,
        hub: int,
        name: str,
        how: Literal["raw", "positioned", "python"],
        who: int,
        back: int | None,
        flaw: str | None,
        written: bool,  # noqa: FBT001
        last: int,
        is_told: bool,  # noqa: FBT001
        meanwhile: list[tuple[float, int]],
    ) -> None:
        """Let somebody join; `meanwhile` publications are made."""
        person = None if how == "python" else self.someone(who, name)
        since: str | Position | None = None
        if back is not None and (place := self.position(name, back, flaw)).epoch:
            since = str(place) if written and person is not None else place
            if flaw == "nonsense":
                since = NONSENSE
        member = Member(
            name,
            hub,
            how,
            person,
            since,
            last,
            is_told,
            begun=self.arrived(name, hub),
            begun_events=len(self.events[name]),
            begun_kept=self.kept(name),
        )
        member.gate.set()
        if person is not None:
            person.channels.add(name)
        self.members.append(member)
        work = self.listen(member) if person is None else self.sit(member, person)
        member.task = self.loop.create_task(work)
        member.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        for seconds, publisher in meanwhile:
            self.play(seconds)
            self.publish_one(publisher, name, "text")

    def arrived(self, name: str, hub: int) -> int:
        """Return how many publications have arrived at a hub; the others are live for it."""
        since = self.now - self.brokers[hub].live - INSTANT
        return sum(each.time < since for each in self.log[name])

    async def listen(self, member: Member) -> None:
        channel = self.hubs[member.hub].channel(member.name)
        async with aclosing(channel.subscribe(since=member.since, last=member.last)) as source:
            async for publication in source:
                member.received.append(publication)
                await member.gate.wait()

    async def sit(self, member: Member, person: Person) -> None:
        def be_told(error: PositionLost) -> None:
            member.lost.append(error)
            member.lost_at = len(self.log[member.name])

        async def be_told_later(error: PositionLost) -> None:
            await asyncio.sleep(0)
            be_told(error)

        has_presence = CHANNELS.options(member.name).presence
        tells = [be_told, be_told_later][person.number % 2]
        async with (
            self.hubs[member.hub]
            .channel(member.name)
            .join(
                person.websocket,
                since=member.since,
                last=member.last,
                format=RAW if member.how == "raw" else POSITIONED,
                user=person.user if has_presence else None,
                info={"of": person.number} if has_presence else None,
                on_lost=tells if member.is_told else None,
            )
        ):
            member.entered = len(self.log[member.name])
            member.entered_events = len(self.events[member.name])
            member.entered_kept = self.kept(member.name)
            await member.leaving.wait()

    def draw(self, data: st.DataObject, members: list[Any]) -> Any:
        return members[data.draw(st.integers(0, len(members) - 1), label="which one")]

    @precondition(lambda self: any(not each.task.done() for each in self.members))
    @rule(which=st.integers(0, 11), is_cancelled=st.booleans())
    def leave(self, which: int, is_cancelled: bool) -> None:  # noqa: FBT001
        members = [each for each in self.members if not each.task.done()]
        member = members[which % len(members)]
        self.let_go(member)
        if is_cancelled:
            member.task.cancel()

    def let_go(self, member: Member) -> None:
        if member.leaves is None:
            member.leaves = len(self.log[member.name])
        member.leaving.set()
        if member.person is None:
            member.task.cancel()

    @precondition(lambda self: any(not each.task.done() for each in self.members))
    @rule(which=st.integers(0, 11), is_gone=st.sampled_from([False, False, True]))
    def somebody_reads_no_more(self, which: int, is_gone: bool) -> None:  # noqa: FBT001
        members = [each for each in self.members if not each.task.done()]
        member = members[which % len(members)]
        if member.person is None:
            member.gate.clear()
        elif is_gone:
            member.person.server.leave()
        else:
            member.person.server.gate.clear()

    @precondition(lambda self: any(not each.is_reading for each in self.members))
    @rule()
    def all_read_again(self) -> None:
        for member in self.members:
            member.gate.set()
        for person in self.people:
            person.server.gate.set()

    @precondition(lambda self: len(self.watchers) < 4)
    @rule(hub=st.integers(0, 1), name=st.sampled_from(["kept:a", "kept:a", "bare:a"]))
    def watch(self, hub: int, name: str) -> None:
        watcher = Watcher(name, begun=len(self.events[name]))

        async def work() -> None:
            async with aclosing(self.hubs[hub].channel(name).presence_events()) as source:
                async for event in source:
                    watcher.seen.append((event.kind, event.present.user or ""))

        watcher.task = self.loop.create_task(work())
        self.watchers.append(watcher)

    # Looking

    @rule(
        hub=st.integers(0, 1),
        name=st.sampled_from(OFTEN),
        back=st.none() | st.integers(0, 9),
        flaw=st.sampled_from([None, None, "epoch", "future"]),
        limit=st.sampled_from([None, None, 0, 1, 3, 100]),
        reverse=st.booleans(),
    )
    def look(
        self,
        hub: int,
        name: str,
        back: int | None,
        flaw: str | None,
        limit: int | None,
        reverse: bool,  # noqa: FBT001
    ) -> None:
        self.play(SETTLED)
        since = None if back is None else self.position(name, back, flaw)
        since = since if since is not None and since.epoch else None
        before = self.kept(name)
        channel = self.hubs[hub].channel(name)
        history = self.do(channel.history(since=since, limit=limit, reverse=reverse))
        expected = []
        for kept in (before, self.kept(name)):
            found = self.log[name][kept:]
            if since is not None:
                found = [
                    each
                    for each in found
                    if (each.offset < since.offset if reverse else each.offset > since.offset)
                ]
            expected.append((found[::-1] if reverse else found)[:limit])
        assert list(history.publications) in expected, (history, expected)
        if CHANNELS.options(name).history and self.log[name] and not self.is_fresh(name):
            assert history.top == self.log[name][-1].position
        if since is not None and limit is None and not reverse:
            assert history.complete in {
                self.can_resume(name, since, before),
                self.can_resume(name, since, self.kept(name)),
            }

    def is_fresh(self, name: str) -> bool:
        """Whether nothing was published since the server forgot the channel."""
        return self.wiped_at.get(name) == len(self.log[name])

    def can_resume(self, name: str, since: Position, kept: int) -> bool:
        """Whether who stands there can have all that came after, if so much is kept."""
        log = self.log[name]
        if not CHANNELS.options(name).history:
            return False
        if since.offset == 0:
            first = [i for i, each in enumerate(log) if each.epoch == since.epoch][:1]
            return bool(first) and log[-1].epoch == since.epoch and kept <= first[0]
        at = [i for i, each in enumerate(log) if each.position == since]
        return (
            bool(at)
            and log[-1].epoch == since.epoch
            and kept <= at[0] + 1
            and not self.is_fresh(name)
        )

    # What has to hold

    @rule(count=st.integers(1, 5))
    def at_once(self, count: int) -> None:
        """Let the next few rules be something that happens in the same moment."""
        self.at_once_with = count

    @invariant()
    def every_promise_is_kept(self) -> None:
        if self.at_once_with:
            self.at_once_with -= 1
            return
        self.settle()
        assert all(hub.is_up for hub in self.hubs)
        for name in NAMES:
            self.what_is_published_is_a_chain(name)
            self.it_is_known_who_is_there(name)
        self.each_publication_is_made_once()
        for watcher in self.watchers:
            self.a_watcher_sees_who_comes_and_goes(watcher)
        for member in self.members:
            self.a_member_sees_what_the_witness_saw(member)
            self.a_member_is_told_no_lies(member)
            if member.how == "positioned":
                self.a_member_knows_where_it_stands(member)
                self.a_member_sees_who_comes_and_goes(member)

    def what_is_published_is_a_chain(self, name: str) -> None:
        kept = [each for each in self.log[name] if each.offset]
        assert (kept == self.log[name]) == bool(CHANNELS.options(name).history) or not self.log[
            name
        ]
        for before, after in pairwise(kept):
            if before.epoch == after.epoch:
                assert before.offset == after.prev == after.offset - 1
            else:
                assert (after.prev, after.offset) == (0, 1)
        assert len({each.epoch for each in kept}) <= self.wiped[name] + 1

    def each_publication_is_made_once(self) -> None:
        places: dict[int, Position] = {}
        onces: dict[tuple[str, str], float] = {}
        for name in NAMES:
            numbers = self.numbers(name)
            assert len(set(numbers)) == len(numbers)
            for number, publication in zip(numbers, self.log[name], strict=True):
                places[number] = publication.position
                assert publication.data == value_of(number, self.kinds[number])
                once = self.onces.get(number)
                if once is not None:
                    assert (
                        publication.time >= onces.get(once, -ONCE_TTL) + ONCE_TTL
                        or (self.wiped[name])
                    )
                    onces[once] = publication.time
        for number, name, task in self.published:
            result = task.result()
            assert result.duplicate == (number not in places)
            if result.duplicate:
                same = [n for n in places if self.onces.get(n) == (name, self.onces[number][1])]
                assert result.position in [places[n] for n in same]
            else:
                assert result.position == places[number]

    def it_is_known_who_is_there(self, name: str) -> None:
        here = [each for each in self.members if each.name == name and each.person and each.is_in]
        pending = [
            each
            for each in self.members
            if each.name == name and not each.task.done() and not each.is_in
        ]
        if not CHANNELS.options(name).presence:
            assert not self.events[name]
            return
        expected = sorted((each.person.user, each.person.number) for each in here if each.person)
        for present, stats in self.present[name]:
            found = sorted((each.user or "", each.info["of"]) for each in present)
            assert stats == PresenceStats(len(present), len(present))
            if not pending:
                assert found == expected
        there: set[str] = set()
        for kind, user in self.events[name]:
            # Who is cancelled in between is there before that is told, and then told to leave.
            assert kind == "leave" or user not in there
            (there.discard if kind == "leave" else there.add)(user)
        assert pending or there == {user for user, _ in expected}

    def told(self, member: Member) -> list[dict[str, Any]]:
        """Return what a member was sent in the channel, in the terms of `POSITIONED`."""
        assert member.person is not None
        messages = [json.loads(text) for text in member.person.server.texts if text[:1] == "{"]
        return [each for each in messages if each.get("channel") == member.name]

    def seen(self, member: Member) -> list[int]:
        """Return the numbers of the publications that a member has got."""
        if member.person is None:
            return [number_of(each.data) for each in member.received]
        texts = member.person.server.texts
        if member.how == "raw":
            own = set(self.numbers(member.name))
            raw = [text for text in texts if not str(text).startswith('{"channel"')]
            numbers = [number_of(text) for text in raw]
            assert raw == [raw_of(number, self.kinds[number]) for number in numbers]
            return [number for number in numbers if number in own]
        seen = []
        for message in self.told(member):
            if "data" not in message:
                continue
            data = message["data"]
            is_bytes = message.get("encoding") == "base64"
            number = number_of(base64.b64decode(data) if is_bytes else data)
            kind = self.kinds[number]
            expected = value_of(number, kind)
            assert is_bytes == (kind == "bytes")
            assert data == (base64.b64encode(expected).decode() if is_bytes else expected)
            place = next(e.position for e in self.log[member.name] if number_of(e.data) == number)
            assert (message["offset"], message["epoch"]) == place
            seen.append(number)
        return seen

    def is_visible(self, number: int, member: Member) -> bool:
        return member.person is None or self.skips.get(number) is not member.person

    def starts(self, member: Member) -> range:
        """Return with which of the publications a member may begin to see them."""
        hi = len(self.log[member.name]) if member.entered is None else member.entered
        hi_kept = self.kept(member.name) if member.entered_kept is None else member.entered_kept
        if member.since not in (None, NONSENSE) and not member.lost:
            since = member.since
            assert since is not None
            since = Position.parse(since) if isinstance(since, str) else since
            at = [i + 1 for i, e in enumerate(self.log[member.name]) if e.position == since]
            if since.offset == 0:
                at = [i for i, e in enumerate(self.log[member.name]) if e.epoch == since.epoch][:1]
            if at:
                return range(at[0], at[0] + 1)
        if not CHANNELS.options(member.name).history:
            return range(member.begun, hi + 1)
        lo = max(member.begun_kept, member.begun - member.last)
        hi = max(min(hi_kept, hi), hi - member.last)
        if self.brokers[member.hub].losses[member.name]:
            lo = 0  # what got lost on its way to the hub before that may have been brought then
        return range(min(lo, member.begun), hi + 1)

    def a_member_sees_what_the_witness_saw(self, member: Member) -> None:
        numbers, seen = self.numbers(member.name), self.seen(member)
        visible = [number for number in numbers if self.is_visible(number, member)]
        case = f"{member} {self.brokers[member.hub].lost} {numbers=} {visible=} {seen=}"
        assert set(seen) <= set(visible), case
        places = [visible.index(number) for number in seen]
        assert all(before < after for before, after in pairwise(places)), case
        if (member.task.done() and member.person is None) or member.is_reading:
            assert member.final in (None, len(seen)), case
            member.final = len(seen) if member.task.done() else None
        if member.task.done() and member.entered is None and member.person is not None:
            return
        firsts = {
            sum(self.is_visible(number, member) for number in numbers[:start])
            for start in self.starts(member)
        }
        may_drop = CHANNELS.options(member.name).slow == "drop_oldest" and member.person
        if may_drop:
            return
        gaps = sum(before + 1 != after for before, after in pairwise(places))
        assert gaps <= len(member.lost), case
        if places and not member.lost:
            assert places[0] in firsts, (case, firsts)
        if self.sees_all(member):
            # But for what got lost last of all, and for what was told to be lost.
            begin = max(*self.starts(member), member.lost_at)
            end = len(numbers) - self.brokers[member.hub].lost[member.name]
            due = [number for number in numbers[begin:end] if self.is_visible(number, member)]
            assert set(due) <= set(seen), (case, due)

    def sees_all(self, member: Member) -> bool:
        """Whether a member is in, and takes all there is."""
        if member.task.done() or not member.is_reading or member.leaves is not None:
            return False
        return member.person is None or member.entered is not None

    def a_member_is_told_no_lies(self, member: Member) -> None:
        error = None
        if member.task.done() and not member.task.cancelled():
            error = member.task.exception()
        if error is not None and not isinstance(error, PositionLost | WebSocketDisconnect):
            raise error
        told = len(member.lost) + isinstance(error, PositionLost)
        hub = self.brokers[member.hub]
        is_disturbed = hub.losses[member.name] or self.wiped[member.name]
        if member.since is None and not is_disturbed and self.is_ample(member):
            assert not told, member
        if isinstance(error, WebSocketDisconnect):
            assert member.person is not None
            assert member.person.has_ended

    def is_ample(self, member: Member) -> bool:
        """Whether a reader in Python need not go back to the history, however slow it is."""
        return member.person is not None or CHANNELS.options(member.name).max_waiting > 10_000

    def a_member_knows_where_it_stands(self, member: Member) -> None:
        stands = [each for each in self.told(member) if set(each) == {"channel", "offset", "epoch"}]
        if member.entered is None:
            return
        assert stands or not member.is_reading
        offset = 0
        for message in self.told(member):
            if "offset" in message and not self.wiped[member.name]:
                assert message["offset"] > offset or "data" not in message or not offset
                assert message["offset"] >= offset
                offset = message["offset"]

    def a_member_sees_who_comes_and_goes(self, member: Member) -> None:
        if member.entered_events is None:
            return
        events = self.events[member.name]
        told = [
            (kind, each[kind]["user"])
            for each in self.told(member)
            for kind in ("join", "leave")
            if kind in each
        ]
        starts = range(max(0, member.begun_events - 4), member.entered_events + 1)
        if self.brokers[member.hub].losses[member.name]:
            return
        lengths = [len(told)] if not (member.is_in and member.is_reading) else [len(events)]
        assert any(told == events[start:][:length] for start in starts for length in lengths), (
            member,
            told,
            events,
        )

    def a_watcher_sees_who_comes_and_goes(self, watcher: Watcher) -> None:
        events = self.events[watcher.name]
        watcher.entered = len(events) if watcher.entered is None else watcher.entered
        starts = range(max(0, watcher.begun - 4), watcher.entered + 1)
        assert any(watcher.seen == events[start:] for start in starts), (watcher, events)

    # The end

    def teardown(self) -> None:
        try:
            if hasattr(self, "hubs"):
                self.finish()
        finally:
            self.time.stop()
            self.runner.close()

    def finish(self) -> None:
        """Everybody leaves: nothing is left of them."""
        self.play(SETTLED)
        for member in self.members:
            self.let_go(member)
        for person in self.people:
            person.server.gate.set()
        self.play(SETTLED)
        for watcher in self.watchers:
            self.a_watcher_sees_who_comes_and_goes(watcher)
            watcher.task.cancel()
        for person in self.people:
            person.over.set()
        self.play(LATER)
        self.settle()
        assert [each for each in self.members if not each.task.done()] == []
        for task in self.handlers:
            task.result()
        for name in NAMES:
            self.it_is_known_who_is_there(name)
        listeners = self.witness._space.listeners
        self.play(LATER)
        assert {name: len(listeners[name]) for name in listeners} == dict.fromkeys(NAMES, 1)
        for hub in self.hubs:
            assert not hub._rooms
            self.do(hub.close())
        self.do(self.witness.close())
        left = asyncio.all_tasks(self.loop)
        assert not left, left


def test_rooms_keep_their_promises() -> None:
    run_state_machine_as_test(
        Rooms,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
