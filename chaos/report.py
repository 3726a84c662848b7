"""What is printed: tables, and the first violation of ours with what happened around it."""

import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from platform import python_version
from typing import Final

from benchmarks.figures import table

from chaos.checker import Resumed, Verdict, Violation, Window, check, explain
from chaos.faults import Scenario
from chaos.log import Event
from chaos.stage import NODES, PUBLISHERS, RATE, SUBSCRIBERS, TTL, Contender, subscribers
from redis_servers import program

AIM: Final = 1.0
"""Within so many seconds of the broker's return after kill -9 delivery has to go on."""

QUIET: Final = ("half-open", "slow")
"""Faults after which the broker does not come back: it was there."""

HEAD: Final = (
    *("", "acknowledged", "due", "delivered", "lost in silence", "lost and told", "doubled"),
    *("out of order", "phantom", "median (s)", "worst (s)"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a system in a scenario."""

    contender: Contender
    scenario: Scenario
    events: list[Event]
    verdict: Verdict

    @property
    def outages(self) -> list[float]:
        return [each.seconds for each in self.verdict.resumed if each.kind not in QUIET]

    @property
    def slow(self) -> list[Resumed]:
        """Who took too long after kill -9."""
        is_asked = self.scenario.name == "kill"
        return [each for each in self.verdict.resumed if is_asked and each.seconds > AIM]

    @property
    def has_failed(self) -> bool:
        return self.contender.is_ours and bool(self.verdict.violations or self.slow)

    def line(self) -> list[str]:
        told = self.verdict
        return [
            self.contender.name,
            *(f"{number:,}" for number in (told.acknowledged, told.due, told.delivered)),
            *(f"{number:,}" for number in (told.count("silent"), told.told)),
            *(f"{told.count(kind):,}" for kind in ("doubled", "disordered", "phantom")),
            *seconds(self.outages),
        ]

    def kinds(self) -> Iterator[list[str]]:
        for kind in sorted({each.kind for each in self.verdict.resumed}):
            times = [each.seconds for each in self.verdict.resumed if each.kind == kind]
            yield [kind, str(len(times)), *seconds(times)]

    def failures(self) -> Iterator[str]:
        """Say what must not be, and explain the first."""
        name = f"{self.contender.name}, {self.scenario.name}"
        violations = self.verdict.violations
        if violations:
            yield f"{name}: {summary(violations)}. The first:\n\n{self.explained(violations[0])}"
        for each in self.slow:
            yield f"{name}: {each.subscriber} went on {each.seconds:.2f} s after the return"

    def explained(self, violation: Violation) -> str:
        return explain(self.events, violation)


def judged(contender: Contender, scenario: Scenario, events: list[Event]) -> Outcome:
    window = Window(contender.history, TTL) if contender.is_ours else None
    return Outcome(contender, scenario, events, check(events, window, subscribers()))


def conditions(contenders: Iterable[Contender], build: str) -> str:
    """Say what was measured, and what its figures count."""
    names = sorted({name for each in contenders for name in each.of})
    versions = [*(f"{name} {version(name)}" for name in names), f"Python {python_version()}"]
    return (
        f"{RATE:g} publications a second by {NODES * PUBLISHERS} publishers in {NODES} processes, "
        f"with {SUBSCRIBERS} subscribers each: what is due or lost counts for each of them. "
        f"{', '.join(versions)}; {served(build)}."
    )


def served(build: str) -> str:
    """Return the name and the version of a server."""
    command = [program(build), "--version"]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return f"{words[0]} {words[2].removeprefix('v=')}"


def seconds(times: Sequence[float]) -> list[str]:
    if not times:
        return ["", ""]
    return [
        "never" if value == inf else f"{value:.2f}"
        for value in (statistics.median_low(times), max(times))
    ]


def summary(violations: Iterable[Violation]) -> str:
    kinds = [violation.kind for violation in violations]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def scenario_table(outcomes: Sequence[Outcome]) -> str:
    title = outcomes[0].scenario.title
    return f"### {title}\n\n{table(HEAD, [each.line() for each in outcomes])}\n"


def kinds_table(outcome: Outcome) -> str:
    head = ("", "times", "median (s)", "worst (s)")
    title = f"### {outcome.contender.name}, {outcome.scenario.name}, by fault"
    return f"{title}\n\n{table(head, outcome.kinds())}\n"
