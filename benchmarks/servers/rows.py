"""What is measured, how far ahead our class has to be, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.exchange import EXCHANGES
from benchmarks.figures import Figure, figure, ratios
from benchmarks.servers import load
from benchmarks.servers.load import Counted, Target
from benchmarks.servers.peers import Served

SATURATED = 0.9  # from this share of its processor on, a server was the bottleneck
AT_ONCE = 16
Turn = Callable[[Target, float], Counted]


@dataclass(frozen=True)
class Row:
    """One thing that is measured of everybody.

    Args:
        title: In the report.
        unit: What is counted.
        aim: The least ratio of ours to the base, if there is one to reach.
        turn: Measures one peer for so many seconds.
    """

    title: str
    unit: str
    aim: float | None
    turn: Turn = field(repr=False, compare=False)


def echo(name: str, connections: int, window: int, aim: float) -> Row:
    exchange = next(exchange for exchange in EXCHANGES if exchange.name == name)

    def turn(target: Target, seconds: float) -> Counted:
        return load.echo(target, exchange, (connections, window), seconds)

    return Row(f"{name}, {connections}x{window}", "msgs", aim, turn)


def handshakes(target: Target, seconds: float) -> Counted:
    return load.handshakes(target, AT_ONCE, seconds)


SHORT = echo("text 32 B", 64, 1, 2.2)
ECHOES = (
    SHORT,
    echo("text 32 B", 16, 16, 4.0),
    echo("text 1 KiB", 64, 1, 1.8),
    echo("binary 64 KiB", 64, 1, 1.4),
    echo("JSON 100 B", 64, 1, 2.0),
)
HANDSHAKES = Row(f"handshakes, {AT_ONCE} at once", "handshakes", 2.0, handshakes)
ROWS = (*ECHOES, HANDSHAKES)


@dataclass(frozen=True)
class Ratio:
    """How many times one peer is ahead of another: above 1 it is."""

    throughput: Figure
    cpu: Figure
    saturated: bool

    @property
    def deciding(self) -> Figure:
        """What was done in a second, if both had no time left; else the CPU that it took."""
        return self.throughput if self.saturated else self.cpu

    @property
    def middle(self) -> float:
        return self.deciding.middle

    @property
    def by(self) -> str:
        return "throughput" if self.saturated else "CPU"


@dataclass(frozen=True)
class Results:
    """All turns of all peers at one row, and why some have none."""

    row: Row
    turns: dict[Served, list[Counted]]
    lost: dict[Served, str] = field(default_factory=dict)

    def rates(self, peer: Served) -> list[float]:
        return [turn.rate for turn in self.turns[peer]]

    def cpus(self, peer: Served) -> list[float]:
        return [turn.cpu for turn in self.turns[peer]]

    def busy(self, peer: Served) -> float:
        """The share of its processor that the server used."""
        return figure(turn.server_share for turn in self.turns[peer]).middle

    def ratio(self, peer: Served, other: Served) -> Ratio:
        return Ratio(
            ratios(self.rates(peer), self.rates(other)),
            ratios(self.cpus(other), self.cpus(peer)),
            min(self.busy(peer), self.busy(other)) >= SATURATED,
        )
