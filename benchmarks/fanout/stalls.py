"""One of many does not read: what does that cost the others, and the server?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import plot, processors
from benchmarks.fanout.peers import PEERS, SANSIO_DROPPING, YAAT_DROPPING
from benchmarks.fanout.rows import Fanout
from benchmarks.fanout.turns import RECEIVERS, ROUNDS
from benchmarks.figures import Figure, figure, table
from benchmarks.servers import load
from benchmarks.servers.load import Counted, LoadFailedError, Stalled
from benchmarks.servers.part import loaded
from benchmarks.servers.peers import Kind, Served, chosen
from benchmarks.servers.processes import Running, serving
from benchmarks.settings import Settings

SLOW = Fanout(4096, 8)
LEAST = 400  # publications while one does not read: more than may wait for it, and the kernel takes
LONGER = 10
LOSS = 0.05  # of throughput, and of p99
BUDGET = 2 << 20  # twice what may wait for one member


@dataclass
class Stall:
    """What came of it, round by round.

    Args:
        peer: Whose.
        turns: Without the stalled reader, with it, and what became of that one.
        alone: Turns without it that had no second half.
        why: There was none.
    """

    peer: Served
    turns: list[tuple[Counted, Counted, Stalled]] = field(default_factory=list)
    alone: list[Counted] = field(default_factory=list)
    why: str = ""

    def ratio(self, what: str) -> Figure:
        return figure(getattr(slow, what) / getattr(fast, what) for fast, slow, _ in self.turns)

    @property
    def grown(self) -> int:
        """Bytes that the server grew by, at most: what it once had it often keeps."""
        return max(stalled.after - stalled.before for _, _, stalled in self.turns)

    @property
    def fast(self) -> list[Counted]:
        return self.alone or [fast for fast, _, _ in self.turns]


def run(settings: Settings) -> None:
    """Measure and report."""
    loaded("One of them does not read", measure, settings)


def measure(settings: Settings) -> None:
    receivers = settings.connections or RECEIVERS
    print(heading(receivers, settings))
    load_on, servers = processors.split() or (None, None)
    with serving(chosen_ones(settings), servers) as running, processors.pinned(load_on):
        stalls = [Stall(server.peer) for server in running]
        for number in range(settings.rounds or ROUNDS):
            for server, stall in zip(running, stalls, strict=True):
                # What others do is told, how often they do it is not worth the time.
                if not stall.why and (number == 0 or stall.peer.kind is Kind.OURS):
                    turn(server, stall, LONGER * settings.seconds, receivers)
    head = ["", "deliveries/s", "with it ÷ without", "p99 µs", "with it ÷ without"]
    print(table([*head, "grew by KiB", "the stalled one"], map(line, stalls)))
    print("\n### Aims with a reader that stalls\n")
    print("\n".join(f"- {each}" for each in verdicts(stalls)))
    draw(stalls, settings.output / "bench-stalled.svg")


def chosen_ones(settings: Settings) -> list[Served]:
    everybody = (*PEERS, YAAT_DROPPING, SANSIO_DROPPING)
    return chosen(settings.names, settings.apps, settings.websockets, everybody)


def heading(receivers: int, settings: Settings) -> str:
    return (
        f"\n## One of them does not read\n\n{SLOW.size} B to {receivers:,} receivers, "
        f"{SLOW.window} in flight, for {LONGER * settings.seconds} s, and {LEAST} publications if "
        "they take less than 7 s; and then once more, with one that does not read. "
        f"{settings.rounds or ROUNDS} interleaved rounds; who is not ours has one. The ratios "
        "are those of the others, and the memory is that of the server's processes.\n"
    )


def turn(server: Running, stall: Stall, seconds: float, receivers: int) -> None:
    try:
        turns, end = load.stalling(server.target, SLOW.text, receivers, SLOW.window, seconds, LEAST)
    except LoadFailedError as error:
        raise server.failed("a stalled reader", error) from error
    if isinstance(end, Stalled):
        fast, slow = turns
        stall.turns.append((fast, slow, end))
    else:
        stall.alone, stall.why = turns[:1], str(end)


def line(stall: Stall) -> list[str]:
    name = stall.peer.name + (" (limit)" if stall.peer.kind is Kind.LIMIT else "")
    rate = f"{figure(fast.rate for fast in stall.fast).middle:,.0f}"
    p99 = f"{figure(fast.p99 for fast in stall.fast).middle / 1000:,.0f}"
    if stall.why:
        return [name, rate, "NOBODY GETS ANYTHING", p99, "", "", stall.why]
    ratios = (f"{stall.ratio(what):.2f}" for what in ("rate", "p99"))
    throughput, latency = ratios
    grown = f"{stall.grown / 1024:,.0f}"
    return [name, rate, throughput, p99, latency, grown, became(stall.turns[-1][2])]


def became(stalled: Stalled) -> str:
    said = f"{stalled.came:,} of {stalled.published:,}"
    if stalled.code:
        return f"closed with {stalled.code} after {said}"
    return f"gets {said} when it reads again"


def draw(stalls: Sequence[Stall], file: Path) -> None:
    """Without the limits, as elsewhere."""
    shown = [stall for stall in stalls if stall.peer.kind is not Kind.LIMIT]
    nothing = figure([0.0])
    panel = {stall.peer.name: nothing if stall.why else stall.ratio("rate") for stall in shown}
    unit = "times the deliveries to the others that there are without it (more is better)"
    panels = {f"{SLOW.size} B, {SLOW.window} in flight": panel}
    plot.draw(file, "One of them does not read", unit, panels, floor=1.0, spec=".2f")


def verdicts(stalls: Sequence[Stall]) -> Iterator[str]:
    for stall in stalls:
        if stall.peer.kind is Kind.OURS and "Yaat" in stall.peer.name:
            yield verdict(stall)


def verdict(stall: Stall) -> str:
    if stall.why:
        return f"MISSED: a reader that stalls: {stall.peer.name}: {stall.why}"
    rate, p99 = stall.ratio("rate"), stall.ratio("p99")
    holds = rate.middle >= 1 - LOSS and p99.middle <= 1 + LOSS and stall.grown <= BUDGET
    return (
        f"{'reached' if holds else 'MISSED'}: a reader that stalls: {stall.peer.name}: the others' "
        f"deliveries are {rate:.2f} of those without it, wanted ≥ {1 - LOSS}, p99 {p99:.2f}, "
        f"wanted ≤ {1 + LOSS}, the memory grew by {stall.grown / 1024:,.0f} KiB, "
        f"wanted ≤ {BUDGET >> 10:,}"
    )
