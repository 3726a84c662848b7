"""The checker finds what is planted in a log, and nothing in a log without it."""

import random
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

import pytest
from chaos.checker import Kind, Verdict, Window, check, explain
from chaos.log import Event, What, in_order
from hypothesis import given
from hypothesis import strategies as st

WINDOW = Window(5, 100.0)


@dataclass
class Script:
    """A log, written event by event, one each second unless a time is said."""

    events: list[Event] = field(default_factory=list)
    now: float = 0.0

    def add(self, what: What, who: str = "", message: str = "", text: str = "") -> "Script":
        self.now += 1.0
        self.events.append(Event(self.now, what, who, message, text))
        return self

    def began(self, *messages: str) -> "Script":
        for message in messages:
            self.add("began", message[0], message)
        return self

    def acked(self, *messages: str) -> "Script":
        for message in messages:
            self.add("acked", message[0], message)
        return self

    def published(self, *messages: str) -> "Script":
        for message in messages:
            self.began(message).acked(message)
        return self

    def seen(self, subscriber: str, *messages: str) -> "Script":
        for message in messages:
            self.add("seen", subscriber, message)
        return self

    def told(self, subscriber: str) -> "Script":
        return self.add("told", subscriber, text="position lost")

    def anew(self, subscriber: str) -> "Script":
        return self.add("anew", subscriber)

    def check(self, window: Window | None = WINDOW, subscribers: tuple[str, ...] = ()) -> Verdict:
        random.shuffle(self.events)  # a log of several processes comes in any order
        return check(self.events, window, subscribers)


def found(verdict: Verdict) -> list[tuple[Kind, str, str]]:
    return [(each.kind, each.subscriber, each.message) for each in verdict.violations]


def begun() -> Script:
    """Both have seen something, so both listen."""
    return Script().published("p0").seen("a/0", "p0").seen("b/0", "p0")


def both(script: Script, *messages: str) -> Script:
    return script.seen("a/0", *messages).seen("b/0", *messages)


def test_a_log_without_anything() -> None:
    assert check([]) == Verdict()


def test_all_is_well() -> None:
    verdict = both(begun().published("p1", "q1"), "p1", "q1").check()
    assert found(verdict) == []
    assert (verdict.acknowledged, verdict.due, verdict.delivered) == (3, 4, 4)


# Lost


def test_lost_in_silence() -> None:
    script = begun().published("p1", "p2").seen("a/0", "p1", "p2").seen("b/0", "p2")
    verdict = script.check()
    assert found(verdict) == [("silent", "b/0", "p1")]
    assert (verdict.due, verdict.delivered, verdict.told) == (4, 3, 0)
    assert "went on with p2" in verdict.violations[0].text


def test_the_last_is_lost() -> None:
    verdict = begun().published("p1").seen("a/0", "p1").check()
    assert found(verdict) == [("silent", "b/0", "p1")]
    assert "saw nothing more" in verdict.violations[0].text


def test_who_saw_nothing_at_all() -> None:
    verdict = Script().published("p1").seen("a/0", "p1").check(subscribers=("a/0", "b/0"))
    assert found(verdict) == [("silent", "b/0", "p1")]


def test_what_was_published_before_anything_was_seen_is_not_lost() -> None:
    assert found(Script().published("p0", "p1").seen("a/0", "p1").check()) == []


def test_what_was_not_acknowledged_may_be_lost() -> None:
    script = begun().began("p1").add("unsure", "p", "p1").began("q1").published("p2")
    assert found(both(script, "p2").check()) == []


def test_lost_and_told() -> None:
    script = begun().add("wiped").published("p1", "p2").seen("a/0", "p1", "p2")
    verdict = script.add("wiped").told("b/0").anew("b/0").seen("b/0", "p2").check()
    assert found(verdict) == []
    assert (verdict.told, verdict.alarms, verdict.delivered) == (1, 1, 3)


@pytest.mark.parametrize("when", ["before it was published", "after it went on"])
def test_told_at_the_wrong_time_is_silence(when: str) -> None:
    script = begun().add("wiped")
    if when == "before it was published":
        script.told("b/0")
    script.published("p1", "p2").seen("a/0", "p1", "p2").seen("b/0", "p2").add("wiped")
    if when == "after it went on":
        script.told("b/0")
    assert found(script.check()) == [("silent", "b/0", "p1")]


def test_somebody_else_was_told() -> None:
    script = begun().published("p1").add("wiped").told("a/0").published("p2")
    verdict = both(script, "p2").check()
    assert found(verdict) == [("silent", "b/0", "p1")]
    assert verdict.told == 1


def test_to_see_what_overlaps_is_not_to_go_on() -> None:
    script = begun().began("p1", "q1").acked("p1", "q1").seen("b/0", "q1").add("wiped").told("b/0")
    verdict = script.seen("a/0", "p1", "q1").check()
    assert found(verdict) == []
    assert verdict.told == 1


def test_to_begin_anew_tells_too() -> None:
    script = begun().add("wiped").told("b/0").published("p1", "p2").anew("b/0")
    verdict = script.seen("b/0", "p2").seen("a/0", "p1", "p2").check(None)
    assert found(verdict) == []
    assert (verdict.told, verdict.alarms) == (1, 1)


# Doubled


def test_doubled() -> None:
    script = begun().published("p1", "p2")
    verdict = both(script, "p1", "p2").seen("b/0", "p2").check()
    assert found(verdict) == [("doubled", "b/0", "p2")]


def test_doubled_later() -> None:
    script = both(both(begun().published("p1"), "p1").published("p2"), "p2")
    verdict = script.seen("b/0", "p1").check()
    assert found(verdict) == [("doubled", "b/0", "p1")]  # and that is all there is to say of it


def test_what_is_brought_anew_is_not_doubled() -> None:
    script = both(begun().published("p1", "p2"), "p1", "p2").add("wiped").told("b/0").anew("b/0")
    assert found(script.seen("b/0", "p1", "p2").check()) == []


# Out of order


def test_out_of_order() -> None:
    script = begun().published("p1", "p2").seen("a/0", "p1", "p2").seen("b/0", "p2", "p1")
    assert found(script.check()) == [("disordered", "b/0", "p1")]


def test_out_of_order_between_publishers() -> None:
    script = begun().published("p1", "q1").seen("a/0", "q1", "p1").seen("b/0", "q1", "p1")
    assert found(script.check()) == [("disordered", "a/0", "p1"), ("disordered", "b/0", "p1")]


def test_what_overlaps_has_any_order() -> None:
    script = begun().began("p1", "q1").acked("p1", "q1")
    assert found(both(script, "q1", "p1").check()) == []


def test_but_the_same_for_all() -> None:
    script = begun().began("p1", "q1").acked("p1", "q1")
    verdict = script.seen("a/0", "q1", "p1").seen("b/0", "p1", "q1").check()
    assert [kind for kind, _, _ in found(verdict)] == ["disordered"]


def test_even_the_very_first() -> None:
    script = Script().began("p0", "q0").acked("p0", "q0")
    verdict = script.seen("a/0", "p0", "q0").seen("b/0", "q0", "p0").check()
    assert found(verdict) == [("disordered", "b/0", "p0")]


def test_what_nobody_knew_may_come_later() -> None:
    script = begun().began("p1").add("unsure", "p", "p1").published("p2")
    assert found(both(script, "p2", "p1").check()) == []


def test_who_begins_anew_may_go_back() -> None:
    script = both(begun().published("p1", "p2"), "p1", "p2").add("wiped").told("b/0")
    assert found(script.seen("b/0", "p0", "p1", "p2").check()) == []


# Phantoms


def test_what_nobody_published() -> None:
    assert found(begun().seen("b/0", "q7").check()) == [("phantom", "b/0", "q7")]


def test_what_was_refused() -> None:
    script = begun().began("p1").add("refused", "p", "p1", "not published")
    assert found(script.seen("b/0", "p1").check()) == [("phantom", "b/0", "p1")]


def test_what_was_refused_and_not_seen() -> None:
    assert found(begun().began("p1").add("refused", "p", "p1").check()) == []


def test_what_was_seen_too_early() -> None:
    script = begun().seen("b/0", "p1").published("p1").seen("a/0", "p1")
    assert ("phantom", "b/0", "p1") in found(script.check())


def test_what_nobody_knew_may_be_seen() -> None:
    script = begun().began("p1").add("unsure", "p", "p1").began("q1")
    assert found(both(script, "p1", "q1").check()) == []


# Whether it had to be told


def test_lost_though_the_history_had_it() -> None:
    script = begun().published("p1", "p2").seen("a/0", "p1", "p2").told("b/0").seen("b/0", "p2")
    assert found(script.check()) == [("needless", "b/0", ""), ("within", "b/0", "p1")]


def missed(count: int) -> Script:
    """One misses that many, is told, and is brought the last of them."""
    names = [f"p{number}" for number in range(1, count + 1)]
    script = begun().published(*names).seen("a/0", *names)
    return script.told("b/0").anew("b/0").seen("b/0", names[-1])


def test_beyond_the_window() -> None:
    verdict = missed(7).check()
    # All but the last are gone for b; it should have been brought the last five.
    assert found(verdict) == [("within", "b/0", f"p{number}") for number in (3, 4, 5, 6)]
    assert verdict.told == 6


def test_beyond_the_window_by_time() -> None:
    assert found(missed(2).check(Window(5, 3.0))) == []


def test_without_a_window_nothing_is_said_of_it() -> None:
    assert found(missed(2).check(None)) == []


def test_told_of_nothing() -> None:
    script = both(begun().published("p1"), "p1").told("b/0").anew("b/0").published("p2")
    assert found(both(script, "p2").check()) == [("needless", "b/0", "")]


def test_told_since_the_server_forgot() -> None:
    script = both(begun().published("p1"), "p1").add("wiped").told("b/0").published("p2")
    assert found(both(script, "p2").check()) == []


def test_what_nobody_knew_counts_for_the_window() -> None:
    script = begun()
    for number in range(1, 7):
        script.began(f"p{number}").add("unsure", "p", f"p{number}")
    assert found(script.told("b/0").check()) == []


@pytest.mark.parametrize("what", ["back", "note"])
def test_but_when_a_fault_is_over_it_is_over(what: What) -> None:
    script = begun()
    for number in range(1, 7):
        script.began(f"p{number}").add("unsure", "p", f"p{number}")
    script.add(what).add("note").add("note").published("q1")
    needless = [("needless", "b/0", "")] if what == "back" else []
    assert found(both(script, "q1").told("b/0").check()) == needless


# How long it took


def outage(script: Script, who: str = "") -> Script:
    return script.add("hit", who, text="kill").add("back", who, text="kill")


def times(verdict: Verdict) -> dict[str, list[float]]:
    resumed: dict[str, list[float]] = {}
    for each in verdict.resumed:
        resumed.setdefault(each.subscriber, []).append(each.seconds)
    return resumed


def test_time_to_resume() -> None:
    script = outage(begun().published("p1")).seen("a/0", "p1").seen("b/0", "p1")
    verdict = both(script.published("p2"), "p2").check()
    # What was published before does not count: it may have waited somewhere.
    assert times(verdict) == {"a/0": [5.0], "b/0": [6.0]}
    assert {each.kind for each in verdict.resumed} == {"kill"}


def test_never_resumed() -> None:
    script = outage(outage(begun()).published("p1").seen("a/0", "p1")).published("p2")
    verdict = script.seen("a/0", "p2").check()
    assert times(verdict)["b/0"] == [inf, inf]


def test_another_fault_came_before() -> None:
    script = outage(outage(begun())).published("p1")
    assert times(both(script, "p1").check()) == {"a/0": [3.0], "b/0": [4.0]}


@pytest.mark.parametrize("who", ["b", "b/0"])
def test_whom_a_fault_concerns(who: str) -> None:
    script = outage(begun(), who).published("p1")
    assert times(both(script, "p1").check()) == {"b/0": [4.0]}


# Explaining


def test_explained() -> None:
    script = begun().published("p1", "p2").seen("a/0", "p1").add("hit", text="kill for 1 s")
    script.seen("b/0", "p2").published("p3")
    (violation,) = (each for each in script.check().violations if each.message == "p1")
    text = explain(script.events, violation)
    assert text.startswith("silent: b/0, p1: acknowledged at")
    lines = text.splitlines()[1:]
    assert [line.split()[1:] for line in lines if line.startswith(">")] == [
        ["5.000", "began", "p", "p1"],
        ["6.000", "acked", "p", "p1"],
        ["9.000", "seen", "a/0", "p1"],
    ]
    assert any("kill for 1 s" in line for line in lines)
    assert any("seen" in line and "b/0 p2" in line for line in lines)
    assert not any("p3" in line for line in lines)


def test_explained_in_a_page() -> None:
    events = [Event(index / 1000, "note", text=str(index)) for index in range(500)]
    script = Script(events, 0.25).seen("b/0", "p1")
    lines = explain(script.events, script.check().violations[0]).splitlines()
    assert len(lines) == 1 + 1 + 60 + 1  # it says what, that it is not all, and what is nearest
    assert lines[1].strip() == "(190 earlier ones are left out)"
    assert lines[-1].startswith("> ")


def test_explained_by_what_happened_when_it_got_lost() -> None:
    script = begun().began("p1").add("hit", text="kill for 1 s").acked("p1").seen("a/0", "p1")
    script.now += 100
    script.published("p2").seen("b/0", "p2").seen("a/0", "p2")
    (violation,) = script.check().violations
    text = explain(script.events, violation)
    assert "went on with p2" in text
    assert "kill for 1 s" in text


# Whatever happens


@dataclass
class World:
    """A faithful channel: one order, a history, subscribers that are away and are brought the rest.

    Args:
        size: Of its history.
    """

    chances: random.Random
    size: int
    script: Script = field(default_factory=Script)
    order: list[str] = field(default_factory=list)
    stood: dict[str, int] = field(default_factory=lambda: {"a/0": 0, "b/0": 0, "b/1": 0})
    flying: list[str] = field(default_factory=list)
    count: int = 0

    def begin(self) -> None:
        self.count += 1
        self.flying.append(f"p{self.count}")
        self.script.began(self.flying[-1])

    def land(self) -> None:
        if not self.flying:
            return
        message = self.flying.pop(self.chances.randrange(len(self.flying)))
        answer = self.chances.choice(["acked", "acked", "acked", "unsure", "refused"])
        if answer == "acked" or (answer == "unsure" and self.chances.random() < 0.5):
            self.order.append(message)
        self.script.add(answer, "p", message)  # type: ignore[arg-type]

    def read(self) -> None:
        subscriber = self.chances.choice(list(self.stood))
        stood = self.stood[subscriber]
        oldest = max(0, len(self.order) - self.size)
        if stood < oldest:
            self.script.told(subscriber).anew(subscriber)
            stood = oldest
        until = self.chances.randint(stood, len(self.order))
        if self.chances.random() < 0.7:
            until = len(self.order)
        self.script.seen(subscriber, *self.order[stood:until])
        self.stood[subscriber] = until

    def run(self, steps: int) -> Script:
        self.begin()
        self.order.append(self.flying.pop())
        self.script.acked(self.order[0])
        for subscriber in self.stood:
            self.script.seen(subscriber, self.order[0])
            self.stood[subscriber] = 1
        for _ in range(steps):
            self.chances.choice([self.begin, self.land, self.land, self.read])()
        while self.flying:
            self.land()
        for subscriber in self.stood:
            while self.stood[subscriber] < len(self.order):
                self.read()
        return self.script


worlds = st.builds(
    lambda seed, size, steps: World(random.Random(seed), size).run(steps),
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.integers(0, 60),
)


@given(worlds)
def test_a_faithful_channel_has_no_violations(script: Script) -> None:
    verdict = script.check(None)
    assert found(verdict) == []
    assert verdict.due == verdict.delivered + verdict.told


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 60))
def test_a_faithful_history_tells_only_what_it_must(seed: int, size: int, steps: int) -> None:
    verdict = World(random.Random(seed), size).run(steps).check(Window(size))
    assert found(verdict) == []


@given(worlds, st.data())
def test_what_is_taken_out_is_lost(script: Script, data: st.DataObject) -> None:
    acked = {event.message for event in script.events if event.what == "acked"}
    first = {"a/0", "b/0", "b/1"}
    seen = []
    for event in in_order(script.events):
        if event.what == "seen" and event.who in first:
            first.discard(event.who)  # by that it is known to listen
        elif event.what == "seen" and event.message in acked:
            seen.append(event)
    if not seen or any(event.what == "told" for event in script.events):
        return
    taken = data.draw(st.sampled_from(seen))
    script.events.remove(taken)
    assert found(script.check()) == [("silent", taken.who, taken.message)]


@given(worlds, st.data())
def test_what_is_said_twice_is_doubled(script: Script, data: st.DataObject) -> None:
    seen = [event for event in script.events if event.what == "seen"]
    taken = data.draw(st.sampled_from(seen))
    script.events.append(taken._replace(time=taken.time + 0.1))
    assert found(script.check(None)) == [("doubled", taken.who, taken.message)]


@given(worlds, st.data())
def test_what_is_exchanged_is_out_of_order(script: Script, data: st.DataObject) -> None:
    by: dict[str, list[Event]] = {}
    began, acked = dict[str, float](), dict[str, float]()
    for event in in_order(script.events):
        by.setdefault(event.who, []).append(event)
        if event.what in ("began", "acked"):
            (began if event.what == "began" else acked)[event.message] = event.time
    pairs = [
        (one, other)
        for events in by.values()
        for one, other in pairwise(events)
        if one.what == other.what == "seen"
        and acked.get(one.message, inf) < began[other.message]
        and one is not events[0]
    ]
    if not pairs:
        return
    one, other = data.draw(st.sampled_from(pairs))
    script.events.remove(one)
    script.events.remove(other)
    script.events += [one._replace(time=other.time), other._replace(time=one.time)]
    kinds = {kind for kind, who, _ in found(script.check(None)) if who == one.who}
    assert "disordered" in kinds
    assert kinds <= {"disordered", "phantom"}  # it may come before it was published, too


@given(worlds, st.sampled_from(["a/0", "b/0", "b/1"]), st.data())
def test_what_is_made_up_is_a_phantom(script: Script, who: str, data: st.DataObject) -> None:
    refused = [event.message for event in script.events if event.what == "refused"]
    message = data.draw(st.sampled_from(["q1", *refused]))
    script.seen(who, message)
    assert ("phantom", who, message) in found(script.check(None))


# The log


@given(st.floats(0, 1e9), st.sampled_from(["seen", "told", "hit"]), st.text(), st.text(), st.text())
def test_a_line_is_read_as_it_was_written(
    time: float, what: What, who: str, message: str, text: str
) -> None:
    event = Event(time, what, who, message, text)
    line = event.line()
    assert "\n" not in line
    assert Event.parse(line) == Event.parse(line.encode()) == event
