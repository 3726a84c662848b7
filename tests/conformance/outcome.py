"""What came of a case."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby


class Verdict(StrEnum):
    """Autobahn's words. The first three pass."""

    OK = "OK"
    NON_STRICT = "NON-STRICT"
    INFORMATIONAL = "INFORMATIONAL"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    FAILED = "FAILED"


PASSING = (Verdict.OK, Verdict.NON_STRICT, Verdict.INFORMATIONAL)


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Args:
        case: Its number, as "6.4.1".
        verdict: On the messages and on the end of the connection together.
        received: The messages, pings, pongs and time-outs, shortened.
        end: The close code that came, who closed, and what is wrong with it.
    """

    case: str
    verdict: Verdict
    received: str
    end: str

    def __str__(self) -> str:
        return f"{self.case} {self.verdict}: received {self.received or 'nothing'}; {self.end}"


def order(case: str) -> tuple[int, ...]:
    """Return what cases are sorted by: 1.10 comes after 1.9."""
    return tuple(map(int, case.split(".")))


def compresses(case: str) -> bool:
    """Return whether a case is about compression."""
    return order(case) >= (12,)


def group(case: str) -> str:
    """Return the group that a case belongs to: of compression 12.1, 12.2 …, of the rest 1, 2 …."""
    major, minor, *_ = case.split(".")
    return f"{major}.{minor}" if compresses(case) else major


def grouped(cases: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each group with its cases, in order."""
    for name, members in groupby(sorted(cases, key=order), key=group):
        yield name, list(members)
