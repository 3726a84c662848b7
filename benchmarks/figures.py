"""From many measurements to one figure with its spread, and tables of them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A median, and between what the middle eight of ten measurements lay."""

    low: float
    middle: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.middle:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def figure(values: Iterable[float]) -> Figure:
    ordered = sorted(values)
    if len(ordered) < 2:
        return Figure(ordered[0], ordered[0], ordered[0])
    tenths = statistics.quantiles(ordered, n=10, method="inclusive")
    return Figure(tenths[0], statistics.median(ordered), tenths[-1])


def ratios(values: Sequence[float], bases: Sequence[float]) -> Figure:
    """Round by round, because the two of one round met the machine in one mood."""
    return figure(value / base for value, base in zip(values, bases, strict=True))


def differences(values: Sequence[float], bases: Sequence[float]) -> Figure:
    return figure(value - base for value, base in zip(values, bases, strict=True))


def shares(values: Sequence[float], others: Sequence[float], floors: Sequence[float]) -> Figure:
    """How much of what the others add to the floor the values add to it, round by round."""
    rounds = zip(values, others, floors, strict=True)
    return figure((value - floor) / (other - floor) for value, other, floor in rounds)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns stand straight in a terminal too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in ruled)
