"""What each peer adds to the bare function, thing by thing: as tables, a verdict, a picture."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plot
from benchmarks.figures import Figure, differences, figure, shares, table
from benchmarks.peers import AGAIN, BARE, STARLETTE, YAAT, Peer

COMPARED = (BARE, AGAIN, YAAT, STARLETTE)


@dataclass(frozen=True)
class Costs:
    """One kind of cost.

    Args:
        unit: Of every figure.
        turns: What was measured, by its title and whom it was measured of, round by round.
    """

    unit: str
    turns: dict[tuple[str, Peer], list[float]]

    @classmethod
    def none(cls, unit: str, titles: Iterable[str], peers: Iterable[Peer]) -> "Costs":
        compared = [peer for peer in peers if peer in COMPARED]
        return cls(unit, {(title, peer): [] for title in titles for peer in compared})

    def one_round(self, turn: Callable[[str, Peer], float]) -> None:
        """Give everybody a turn at everything."""
        for (title, peer), results in self.turns.items():
            results.append(turn(title, peer))

    def added(self, title: str, peer: Peer) -> Figure:
        return differences(self.turns[title, peer], self.turns[title, BARE])

    def panels(self) -> dict[str, dict[str, Figure]]:
        """What is added, by title and name."""
        panels: dict[str, dict[str, Figure]] = {}
        for title, peer in self.turns:
            panels.setdefault(title, {})[peer.name] = self.added(title, peer)
        return panels

    def report(self) -> None:
        for title in self.panels():
            print(f"\n### {title}\n")
            print(table(["", self.unit, "added to bare"], self.lines(title)))
            if {(title, YAAT), (title, STARLETTE)} <= self.turns.keys():
                print("\n" + self.verdict(title))

    def lines(self, asked: str) -> Iterator[list[str]]:
        for title, peer in self.turns:
            if title == asked:
                whole = figure(self.turns[title, peer])
                yield [peer.name, f"{whole:,.0f}", f"{self.added(title, peer):+,.0f}"]

    def verdict(self, title: str) -> str:
        rounds = (self.turns[title, peer] for peer in (YAAT, STARLETTE, BARE))
        return f"Yaat adds {shares(*rounds):.2f} of what Starlette adds."

    def draw(self, path: Path, title: str) -> None:
        unit = f"{self.unit}, added to a bare ASGI function (less is better)"
        plot.draw(path, title, unit, self.panels(), floor=0.0, spec=",.0f")
