"""Echo over real sockets: every peer a uvicorn process, measured in turn, round after round."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plot, processors
from benchmarks.exchange import EXCHANGES, Exchange
from benchmarks.figures import Figure, figure, ratios, table
from benchmarks.load import Load
from benchmarks.peers import AGAIN, BARE, YAAT, Peer
from benchmarks.server import Server, serving
from benchmarks.settings import Settings

ROUNDS = 25
WARM = 0.05  # seconds before the clocks are read
SATURATED = 0.9  # from this share of its processor on, a server was the bottleneck
Shape = tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """What one turn of one peer gave."""

    rate: float
    cpu: float
    load_share: float
    server_share: float


@dataclass(frozen=True)
class Row:
    """All turns of all peers at one exchange in one shape."""

    exchange: Exchange
    shape: Shape
    samples: dict[Peer, list[Sample]]

    def rates(self, peer: Peer) -> list[float]:
        return [sample.rate for sample in self.samples[peer]]

    def cpus(self, peer: Peer) -> list[float]:
        return [sample.cpu for sample in self.samples[peer]]

    def cpu_ratio(self, peer: Peer, base: Peer = BARE) -> Figure:
        return ratios(self.cpus(peer), self.cpus(base))

    def rate_ratio(self, peer: Peer, base: Peer = BARE) -> Figure:
        return ratios(self.rates(peer), self.rates(base))


def run(settings: Settings) -> None:
    """Measure, report, and draw."""
    rows = [
        Row(exchange, shape, {peer: [] for peer in settings.peers})
        for shape in settings.shapes
        for exchange in EXCHANGES
    ]
    pair = processors.split()
    gc.disable()  # a collection in the load would be taken for the server's slowness
    processor = () if pair is None else (pair[1],)
    with serving(settings.peers, settings.websockets, *processor) as servers:
        print(heading(servers, settings, pinned=pair is not None))
        if pair is not None:
            processors.pin(pair[0])
        for _ in range(settings.rounds or ROUNDS):
            one_round(servers, rows, settings.seconds)
    report(rows)
    for shape in settings.shapes:
        draw(rows, shape, settings.output)


def one_round(servers: list[Server], rows: list[Row], seconds: float) -> None:
    for row in rows:
        for server in servers:
            row.samples[server.peer].append(turn(server, row, seconds))


def turn(server: Server, row: Row, seconds: float) -> Sample:
    """One peer's turn; the servers of all others are idle."""
    with Load(server.port, row.exchange, *row.shape) as load:
        load.run(WARM)
        server_before, load_before = processors.used_by(server.pid), time.process_time_ns()
        began = time.perf_counter_ns()
        count = load.run(seconds)
        server_used = processors.used_by(server.pid) - server_before
        load_used = time.process_time_ns() - load_before
        took = time.perf_counter_ns() - began
    return Sample(count / took * 1e9, server_used / count, load_used / took, server_used / took)


def heading(servers: list[Server], settings: Settings, *, pinned: bool) -> str:
    rounds = settings.rounds or ROUNDS
    where = (
        "the load on one processor, the servers on another"
        if pinned
        else ("ONE PROCESSOR FOR ALL: only the CPU per message says anything")
    )
    return (
        f"\n## Echo\n\n{servers[0].parts}; no permessage-deflate; {where}; "
        f"{rounds} rounds, {settings.seconds} s each turn. "
        "Median (10th to 90th percentile) of the ratios round by round."
    )


def report(rows: list[Row]) -> None:
    for row in rows:
        connections, window = row.shape
        print(f"\n### {row.exchange.name}, {connections} connections, {window} in flight each\n")
        print(table(head(row), lines(row)))
        if YAAT in row.samples:
            print("\n" + verdict(row))
    print("\n" + busy(rows))


def head(row: Row) -> list[str]:
    yaat = ["CPU: Yaat ÷ it", "msgs/s: Yaat ÷ it"] if YAAT in row.samples else []
    return ["", "msgs/s", "msgs/s ÷ bare", "CPU µs/msg", "CPU ÷ bare", *yaat]


def lines(row: Row) -> Iterator[list[str]]:
    for peer in row.samples:
        line = [
            peer.name,
            f"{figure(row.rates(peer)).middle:,.0f}",
            f"{row.rate_ratio(peer):.2f}",
            f"{figure(row.cpus(peer)).middle / 1000:.1f}",
            f"{row.cpu_ratio(peer):.2f}",
        ]
        if YAAT in row.samples:
            line += [f"{row.cpu_ratio(YAAT, peer):.2f}", f"{row.rate_ratio(YAAT, peer):.2f}"]
        yield line


def verdict(row: Row) -> str:
    """Whether Yaat is slower than bare by more than bare is slower than itself.

    In noise nearly everything is within the spread. The rounds that were lost do not hide in it: of
    two equal programs each loses about half of them.
    """
    yaat = row.cpu_ratio(YAAT).middle
    said = f"Yaat's CPU per message is {yaat:.3f} of bare's, more in {lost(row, YAAT)}"
    if AGAIN not in row.samples:
        return f"{said}."
    spread = row.cpu_ratio(AGAIN)
    where = "within" if yaat <= spread.high else "BEYOND"
    return (
        f"{said}; {where} the spread of bare against itself, "
        f"{spread.low:.3f} to {spread.high:.3f}, which is more in {lost(row, AGAIN)}."
    )


def lost(row: Row, peer: Peer) -> str:
    rounds = list(zip(row.cpus(peer), row.cpus(BARE), strict=True))
    return f"{sum(cpu > bare for cpu, bare in rounds)} of {len(rounds)} rounds"


def draw(rows: list[Row], shape: Shape, output: Path) -> None:
    panels = {
        row.exchange.name: {peer.name: row.cpu_ratio(peer) for peer in row.samples}
        for row in rows
        if row.shape == shape
    }
    connections, window = shape
    plot.draw(
        output / f"bench-echo-{connections}x{window}.svg",
        f"Echo on uvicorn, {connections} connections, {window} in flight each",
        "server CPU per message ÷ bare ASGI function (less is better)",
        panels,
        floor=1.0,
        spec=".2f",
    )


def busy(rows: list[Row]) -> str:
    """Tell whether it is the server that was measured, and not the load or somebody else."""
    samples = [sample for row in rows for turns in row.samples.values() for sample in turns]
    load = figure(sample.load_share for sample in samples)
    server = figure(sample.server_share for sample in samples)
    said = f"Of their processors the server used {server:.0%}, the load {load:.0%}."
    if server.middle < SATURATED:
        said += (
            " THE SERVER WAS NOT THE BOTTLENECK: something else ran on this machine, or the load "
            "was too slow. Do not trust the messages per second, and the rest only as far as bare "
            "agrees with itself."
        )
    return said
