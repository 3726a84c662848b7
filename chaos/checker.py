"""What a log proves: of each subscriber what it lost, and whether it was told; no I/O, no clock.

When is one publication *after* another? If it began after the other was acknowledged; of those that
overlap nobody knows, and either order is right. Of what got no answer it is never known.

A **life** of a subscriber ends when it is told that it may have lost something, or begins anew
after that: it may be brought again what it has seen.

- **lost**: it was acknowledged, after this subscriber had begun to listen, and never seen by it.
  The loss is *told*, if a life of the subscriber ended after that publication began and before it
  saw one that is after it; else it is *silent*: it went on as if nothing was missing.

Within one life:

- **doubled**: seen twice.
- **disordered**: seen behind one that is after it; or two subscribers saw two of them in different
  orders.
- **phantom**: seen, though nobody ever published it, or the publisher was told that it was not.

And of what was told, whether it had to be:

- **within**: lost and told, though the history had it when the subscriber began anew.
- **needless**: told, though the history had all that it had not seen.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from math import inf
from typing import Literal, NamedTuple

from chaos.log import Event, in_order

Kind = Literal["silent", "doubled", "disordered", "phantom", "within", "needless"]

AROUND = 1.0
"""How many seconds before and after a violation are shown."""

LINES = 60
"""How many lines of them."""

LATE = 1.0
"""How long, in seconds, after a fault what waited for its end may still be carried out."""


class Window(NamedTuple):
    """How far a history reaches back. Without one, nobody can be brought what they missed."""

    size: int = 0
    ttl: float = inf


class Violation(NamedTuple):
    """Something that must not happen."""

    time: float
    kind: Kind
    subscriber: str
    message: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subscriber}, {self.message or 'told'}: {self.text}"


class Resumed(NamedTuple):
    """How long, after the broker was back, until a subscriber saw what was published since.

    Attributes:
        kind: Of the fault.
        subscriber: Who saw it.
        seconds: `inf`: it never saw anything again.
    """

    kind: str
    subscriber: str
    seconds: float


@dataclass
class Verdict:
    """What a log proves.

    Attributes:
        acknowledged: How many publications.
        due: How many times one of them was to be seen by one of the subscribers.
        delivered: How many times it was.
        told: How many times it was not, and that was told.
        alarms: How many times a subscriber was told anything.
        violations: By time.
        resumed: Of each fault and each subscriber that it concerned; not of a fault that was
            followed by another before anything could be seen.
    """

    acknowledged: int = 0
    due: int = 0
    delivered: int = 0
    told: int = 0
    alarms: int = 0
    violations: list[Violation] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)

    def count(self, kind: Kind) -> int:
        """Return how many violations are of a kind."""
        return sum(violation.kind == kind for violation in self.violations)


class Message:
    """What its publisher knows of a message.

    Attributes:
        name: Its own.
        began: When it was begun to be published.
        ended: When its publisher had an answer; inf: never.
        answer: What that was.
        settled: When it had its place in the channel, at the latest, whatever its publisher knew.
    """

    def __init__(self, name: str, began: float) -> None:
        self.name = name
        self.began = began
        self.ended = inf
        self.answer = "unsure"
        self.settled = inf

    @property
    def is_acked(self) -> bool:
        return self.answer == "acked"

    def is_before(self, other: "Message") -> bool:
        """Whether it has to be seen before another one."""
        return self.is_acked and self.ended < other.began


class Log:
    """A log with what is looked up in it.

    Args:
        events: In any order.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = in_order(events)
        self.messages: dict[str, Message] = {}
        self.by_subscriber: dict[str, list[Event]] = {}
        for event in self.events:
            self._note(event)
        self.end = self.events[-1].time if self.events else 0.0
        self.wiped = [event.time for event in self.events if event.what == "wiped"]
        self._settle()

    def _note(self, event: Event) -> None:
        match event.what:
            case "began":
                self.messages[event.message] = Message(event.message, event.time)
            case "acked" | "refused" | "unsure" if event.message in self.messages:
                message = self.messages[event.message]
                message.ended, message.answer = event.time, event.what
            case "seen" | "told" | "anew":
                self.by_subscriber.setdefault(event.who, []).append(event)

    def _settle(self) -> None:
        """Find out by when each had its place: it was answered, or seen, or a fault was over."""
        over = [event.time for event in self.events if event.what == "back"]
        for message in self.messages.values():
            place = bisect_left(over, message.ended)
            late = over[place] + LATE if place < len(over) else inf
            message.settled = message.ended if message.is_acked else late
        for event in self.events:
            if event.what == "seen" and event.message in self.messages:
                message = self.messages[event.message]
                message.settled = min(message.settled, event.time)

    @cached_property
    def acked(self) -> list[Message]:
        return [message for message in self.messages.values() if message.is_acked]

    @cached_property
    def _begun(self) -> list[float]:
        return sorted(m.began for m in self.messages.values() if m.answer != "refused")

    @cached_property
    def _placed(self) -> list[float]:
        return sorted(m.settled for m in self.messages.values() if m.answer != "refused")

    def may_lie_between(self, since: float, until: float) -> int:
        """Return how many publications may have got their place between two times, at most."""
        return bisect_left(self._begun, until) - bisect_right(self._placed, since)

    def was_wiped(self, since: float, until: float) -> bool:
        """Whether the broker lost what it had between two times."""
        return bisect_right(self.wiped, until) > bisect_left(self.wiped, since)


class Subscriber:
    """What one subscriber saw, life by life."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self.log = log
        self.events = log.by_subscriber.get(name, [])
        self.seen = [event for event in self.events if event.what == "seen"]
        self.ends = [event.time for event in self.events if event.what != "seen"]
        self.lives: list[list[Event]] = [[]]
        for event in self.events:
            if event.what == "seen":
                self.lives[-1].append(event)
            else:
                self.lives.append([])

    def violation(self, kind: Kind, event: Event, text: str) -> Violation:
        return Violation(event.time, kind, self.name, event.message, text)

    # What it saw

    def phantoms(self) -> Iterator[Violation]:
        for event in self.seen:
            message = self.log.messages.get(event.message)
            if message is None:
                yield self.violation("phantom", event, "nobody ever published it")
            elif event.time < message.began:
                yield self.violation("phantom", event, "seen before it was published")
            elif message.answer == "refused":
                yield self.violation("phantom", event, "its publisher was told it is not published")

    def doubled(self) -> Iterator[Violation]:
        for life in self.lives:
            times: dict[str, float] = {}
            for event in life:
                if event.message in times:
                    first = times[event.message]
                    yield self.violation("doubled", event, f"already seen at {first:.3f}")
                times.setdefault(event.message, event.time)

    def disordered(self) -> Iterator[Violation]:
        for life in self.lives:
            latest: Message | None = None
            for event, message in self._first(life):
                if latest is not None and message.is_before(latest):
                    yield self.violation("disordered", event, f"seen behind {latest.name}")
                if latest is None or message.began > latest.began:
                    latest = message

    def _first(self, life: Sequence[Event]) -> Iterator[tuple[Event, Message]]:
        """Iterate over what was seen for the first time, and published."""
        names = set()
        for event in life:
            message = self.log.messages.get(event.message)
            if message is not None and event.message not in names:
                names.add(event.message)
                yield event, message

    def disagreeing(self, ranks: dict[str, int]) -> Iterator[Violation]:
        """Iterate over what it saw in another order than another subscriber."""
        for life in self.lives:
            highest, name = -1, ""
            for event, message in self._first(life):
                rank = ranks.get(message.name, -1)
                if 0 <= rank < highest:
                    text = f"seen behind {name}; by another subscriber, before it"
                    yield self.violation("disordered", event, text)
                elif rank > highest:
                    highest, name = rank, message.name

    # What it did not see

    @cached_property
    def due(self) -> list[Message]:
        """What it was to see: all that was acknowledged and began after it had seen anything.

        Who never saw anything was to see everything.
        """
        since = self.seen[0].time if self.seen else -inf
        return [message for message in self.log.acked if message.began > since]

    @cached_property
    def lost(self) -> list[Message]:
        seen = {event.message for event in self.seen}
        return [message for message in self.due if message.name not in seen]

    def told_of(self, message: Message, since: float) -> float | None:
        """Return when it was last told, after `since`, before it went on without a message.

        None: it never was.
        """
        later = bisect_left(self.ends, self._went_on(message).time)
        return self.ends[later - 1] if later and self.ends[later - 1] > since else None

    def _went_on(self, message: Message) -> Event:
        """Return when it saw one that is after this message."""
        for event in self.seen[bisect_left(self._times, message.began) :]:
            other = self.log.messages.get(event.message)
            if other is not None and message.is_before(other):
                return event
        return Event(inf, "note", text="the end")

    @cached_property
    def _times(self) -> list[float]:
        return [event.time for event in self.seen]

    def silent(self) -> Iterator[Violation]:
        for message in self.lost:
            if self.told_of(message, message.began) is None:
                after = self._went_on(message)
                how = f"went on with {after.message}" if after.message else "saw nothing more"
                text = f"acknowledged at {message.ended:.3f}, never seen; {how}"
                at = min(after.time, self.log.end)
                yield Violation(at, "silent", self.name, message.name, text)

    # Whether it had to be told

    def within(self, window: Window) -> Iterator[Violation]:
        for message in self.lost:
            told = self.told_of(message, message.ended)
            if told is not None and self._is_kept(message.began, self._next(told), window):
                text = f"told at {told:.3f}, though the history had it"
                yield Violation(told, "within", self.name, message.name, text)

    def _next(self, time: float) -> float:
        """Return when it saw something next: what it was brought was read before that."""
        place = bisect_right(self._times, time)
        return self._times[place] if place < len(self._times) else self.log.end

    def _is_kept(self, since: float, until: float, window: Window) -> bool:
        """Whether what got its place after `since` was all there at `until`, surely."""
        return (
            not self.log.was_wiped(since, until)
            and until - since < window.ttl
            and self.log.may_lie_between(since, until) <= window.size
        )

    def needless(self, window: Window) -> Iterator[Violation]:
        stood = -inf  # when what it has seen last began, at the earliest
        for event in self.events:
            message = self.log.messages.get(event.message)
            if message is not None:
                stood = message.began
            elif event.what == "told" and self._is_kept(stood, event.time, window):
                text = "told that it lost something, though the history had all of it"
                yield self.violation("needless", event, text)

    # How long it took

    def resumed(self) -> Iterator[Resumed]:
        faults = [e for e in self.log.events if e.what in ("hit", "back") and e.concerns(self.name)]
        for event, following in pairwise([*faults, Event(inf, "note")]):
            if event.what != "back":
                continue
            seen = self._first_published_after(event.time)
            if seen == inf or seen < following.time:
                yield Resumed(event.text, self.name, seen - event.time)

    def _first_published_after(self, time: float) -> float:
        for event in self.seen[bisect_right(self._times, time) :]:
            message = self.log.messages.get(event.message)
            if message is not None and message.began >= time:
                return event.time
        return inf


def check(
    events: Iterable[Event], window: Window | None = None, subscribers: Iterable[str] = ()
) -> Verdict:
    """Tell what a log proves.

    Args:
        events: In any order.
        window: The history; without one, nothing is said of what was told.
        subscribers: Those that listened; who saw nothing is in no log.
    """
    log = Log(events)
    names = sorted({*subscribers, *log.by_subscriber})
    everyone = [Subscriber(name, log) for name in names]
    ranks = _ranks(everyone)
    verdict = Verdict(acknowledged=len(log.acked))
    for subscriber in everyone:
        _judge(verdict, subscriber, ranks, window)
    verdict.violations.sort()
    return verdict


def _judge(
    verdict: Verdict, subscriber: Subscriber, ranks: dict[str, int], window: Window | None
) -> None:
    lost = len(subscriber.lost)
    silent = list(subscriber.silent())
    verdict.due += len(subscriber.due)
    verdict.delivered += len(subscriber.due) - lost
    verdict.told += lost - len(silent)
    verdict.alarms += sum(event.what == "told" for event in subscriber.events)
    verdict.resumed += subscriber.resumed()
    verdict.violations += silent
    verdict.violations += subscriber.phantoms()
    verdict.violations += subscriber.doubled()
    verdict.violations += _once([*subscriber.disordered(), *subscriber.disagreeing(ranks)])
    if window is not None:
        verdict.violations += subscriber.within(window)
        verdict.violations += subscriber.needless(window)


def _ranks(everyone: Iterable[Subscriber]) -> dict[str, int]:
    """Return the places of messages in the order in which who saw most of them saw them."""
    most = max(everyone, key=lambda subscriber: len(subscriber.seen), default=None)
    names = dict.fromkeys(event.message for event in most.seen) if most else {}
    return {name: rank for rank, name in enumerate(names)}


def _once(violations: Iterable[Violation]) -> Iterator[Violation]:
    """Leave out what was said already of the same event."""
    key: Callable[[Violation], tuple[float, str]] = lambda each: (each.time, each.message)  # noqa: E731
    for _, same in groupby(sorted(violations, key=key), key):
        yield next(same)


def explain(events: Iterable[Event], violation: Violation) -> str:
    """Return a violation with what happened around it.

    That is: all that concerns its message, and the faults and what its subscriber saw around that
    and around the violation.
    """
    ordered = in_order(events)
    own = [event for event in ordered if event.message and event.message == violation.message]
    times = [violation.time, *(event.time for event in own if event.what != "seen")]
    others = [
        event
        for event in ordered
        if event not in own and _is_seen_by(event, violation.subscriber) and _is_near(event, times)
    ]
    lines = [str(violation)]
    if len(others) > LINES:
        lines.append(f"  ({len(others) - LINES} earlier ones are left out)")
    shown = in_order([*own, *others[-LINES:]])
    return "\n".join([*lines, *(f"{'>' if event in own else ' '} {event}" for event in shown)])


def _is_seen_by(event: Event, subscriber: str) -> bool:
    if event.what in ("seen", "told", "anew"):
        return event.who == subscriber
    return event.what in ("hit", "back", "wiped", "note")


def _is_near(event: Event, times: Iterable[float]) -> bool:
    return any(abs(event.time - time) <= AROUND for time in times)
