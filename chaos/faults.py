"""Which faults come when: a schedule that a seed decides. Pure."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

Kind = Literal[
    "kill",
    "kill apart",
    "stale",
    "stale apart",
    "freeze",
    "half-open",
    "partition",
    "absence",
    "reset",
    "slow",
]

LENGTHS: Final[Mapping[Kind, tuple[float, float]]] = MappingProxyType(
    {
        "kill": (0.05, 1.5),  # kill -9, and started again with what it has, which may be nothing
        "kill apart": (0.05, 1.5),  # the same, and one node was cut off a while before
        "stale": (0.05, 1.5),  # the same as kill, but started with what it had a while before
        "stale apart": (0.05, 1.5),  # and one node was cut off since then
        "freeze": (0.3, 3.5),  # SIGSTOP, SIGCONT
        "half-open": (0.0, 0.0),  # nothing comes from the server any more on these connections
        "partition": (0.3, 3.5),  # nothing goes through between the server and one node
        "absence": (7.0, 8.0),  # the same, for longer than the history reaches back
        "reset": (0.0, 0.0),  # all connections of one node end
        "slow": (0.5, 3.0),  # one subscriber does not read
    }
)
"""How long, in seconds, each takes."""

START: Final = 1.0
"""When the first comes."""

SOON: Final = 0.2
"""How often a fault meets those that have not recovered from the last."""

SOON_AFTER: Final = (0.1, 0.8)
LATER: Final = (2.5, 4.0)
"""How long, in seconds, after a fault the next comes."""

NOTICED: Final = 4.0
"""How long, in seconds, longer it takes until what nobody tells is noticed."""

AGE: Final = (0.3, 1.0)
"""How long, in seconds, that while is."""


class Fault(NamedTuple):
    """One fault.

    Attributes:
        at: When, in seconds from the start.
        kind: What happens.
        seconds: For how long.
        node: To which, if it happens to one.
        chance: A number from 0 to 1 that decides what else there is to decide.
    """

    at: float
    kind: Kind
    seconds: float
    node: int
    chance: float

    def __str__(self) -> str:
        return f"{self.kind} for {self.seconds:.2f} s" if self.seconds else self.kind


@dataclass(frozen=True)
class Scenario:
    """What a system goes through.

    Args:
        name: For the command line.
        title: For the report.
        kinds: Which faults.
        is_durable: Whether the server writes everything down before it answers.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    is_durable: bool


_BOTH: Final[tuple[Kind, ...]] = (
    *("kill", "kill apart", "freeze", "half-open", "partition", "reset", "slow", "absence"),
)

SCENARIOS: Final = (
    Scenario("kill", "kill -9 and restart; the server writes everything down", ("kill",), True),
    Scenario("durable", "All faults; the server writes everything down", _BOTH, True),
    Scenario("volatile", "All faults; the server forgets", (*_BOTH, "stale", "stale apart"), False),
)


def schedule(seed: int, seconds: float, kinds: Iterable[Kind], nodes: int) -> list[Fault]:
    """Return faults for so many seconds: each kind once before any comes again.

    The same arguments give the same faults.
    """
    return list(_faults(random.Random(seed), seconds, tuple(kinds), nodes))


def _faults(
    chances: random.Random, seconds: float, kinds: tuple[Kind, ...], nodes: int
) -> Iterator[Fault]:
    at, deck = START, list[Kind]()
    while True:
        if not deck:
            deck = chances.sample(kinds, len(kinds))
        kind = deck.pop()
        length = chances.uniform(*LENGTHS[kind])
        fault = Fault(at, kind, length, chances.randrange(nodes), chances.random())
        if at + length > seconds:
            return
        yield fault
        is_soon = chances.random() < SOON
        at += length + chances.uniform(*(SOON_AFTER if is_soon else LATER))
        at += NOTICED if kind == "half-open" and not is_soon else 0.0
