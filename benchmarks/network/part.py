"""Publications by way of Redis or Valkey: every peer has a turn in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryFile

from benchmarks import plot, processors
from benchmarks.figures import Figure, figure, ratios, table
from benchmarks.network import elder
from benchmarks.network.ends import KEPT
from benchmarks.network.peers import OURS, PEERS, PROGRAMS, REDIS_PY, Kind, Peer
from benchmarks.network.server import SERVERS, Listening, Server, listening
from benchmarks.network.turn import IN_FLIGHT, SIZE, Turn
from benchmarks.servers.report import versions, where
from benchmarks.settings import Settings

ROUNDS = 5
LONGER = 5  # than a turn of the others: a connection is made, and warmed, for each
PATIENCE = 120.0
AIM = 2.0
MEASURED = ("litestar", "channels-redis", "broadcaster", "redis", "hiredis", "uvloop")
HEAD = (
    "",
    "publications/s",
    "ours ÷ it",
    "p50 µs",
    "it ÷ ours",
    "p99 µs",
    "CPU µs, its + the server's",
    "keeps",
    "lost",
)


@dataclass
class Results:
    """What came of everybody on one server, round by round.

    Args:
        server: Which.
        turns: Of whom.
        version: Of the server.
    """

    server: Server
    turns: dict[Peer, list[Turn]]
    version: str = ""

    def rates(self, peer: Peer) -> list[float]:
        return [turn.came / turn.seconds for turn in self.turns[peer]]

    def times(self, peer: Peer, percent: int = 50) -> list[float]:
        """Microseconds, of those that came."""
        return [percentile(turn.times, percent) * 1e6 for turn in self.turns[peer]]

    def spent(self, peer: Peer) -> list[float]:
        """Microseconds of both processors for a publication."""
        return [(turn.own + turn.server) / turn.published * 1e6 for turn in self.turns[peer]]

    def ahead(self, peer: Peer) -> Figure:
        """How often our rate is the peer's."""
        return ratios(self.rates(OURS), self.rates(peer))

    def sooner(self, peer: Peer) -> Figure:
        """How often the time until it comes with us is the time with the peer."""
        return ratios(self.times(peer), self.times(OURS))

    def cheaper(self, peer: Peer) -> Figure:
        """How often our CPU time is the peer's: that hardly depends on what else runs."""
        return ratios(self.spent(peer), self.spent(OURS))

    def whole(self, peer: Peer) -> bool:
        """Whether all came, once, in order, and was kept."""
        return all(
            turn.kept >= KEPT and not (turn.lost or turn.twice or turn.late)
            for turn in self.turns[peer]
        )

    def best(self, peers: Sequence[Peer]) -> Peer:
        return max(peers, key=lambda peer: figure(self.rates(peer)).middle)


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


def run(settings: Settings) -> None:
    """Measure and report."""
    peers = chosen(settings.names)
    results = [Results(each, {peer: [] for peer in peers}) for each in asked(settings.rows)]
    pair = processors.split()
    print(heading(settings, pinned=pair is not None))
    load, servers = pair or (None, None)
    with ExitStack() as stack:
        running = [
            (result, stack.enter_context(listening(result.server, servers))) for result in results
        ]
        for _ in range(settings.rounds or ROUNDS):
            for result, server in running:
                result.version = server.version
                with processors.pinned(load):
                    one_round(result, server, LONGER * settings.seconds)
    for result in results:
        print("\n".join(section(result)))
    panels = {f"{each.server.name} {each.version}": bars(each) for each in results}
    plot.draw(
        settings.output / "bench-redis.svg",
        "Channels by way of Redis",
        "thousands of publications a second (more is better)",
        panels,
        floor=0,
        spec=".1f",
    )


def chosen(names: Sequence[str]) -> list[Peer]:
    """Ours, and who is called so or has that in the name; all if none is called."""
    wanted = [name.lower() for name in names]
    return [
        peer
        for peer in PEERS
        if peer is OURS or not wanted or any(name in peer.name.lower() for name in wanted)
    ]


def asked(titles: Sequence[str]) -> list[Server]:
    if unknown := set(titles) - {server.name for server in SERVERS}:
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}")
    return [
        server for server in SERVERS if server.name in titles or (not titles and server.program)
    ]


def one_round(result: Results, server: Listening, seconds: float) -> None:
    for peer in result.turns:
        server.clear()
        result.turns[peer].append(turn(peer, server, seconds))


def turn(peer: Peer, server: Listening, seconds: float) -> Turn:
    """Let one process take it."""
    program = f"{PROGRAMS}.{peer.program}"
    told = [program, server.url, str(server.pid), str(seconds)]
    with TemporaryFile("w+") as log:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.network.turn", *told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=elder.environment(peer.needs),
            timeout=PATIENCE,
            text=True,
            check=False,
        )
        log.seek(0)
        if done.returncode:
            raise SystemExit(f"{peer.name} fails:\n{log.read()}".strip())
    return Turn(**json.loads(done.stdout))


def heading(settings: Settings, *, pinned: bool) -> str:
    return (
        f"\n## Channels by way of Redis\n\n{versions(MEASURED)}; {SIZE} B; "
        f"publisher and subscriber are one process; {where(pinned=pinned)}; "
        f"{settings.rounds or ROUNDS} interleaved rounds. Publications a second with {IN_FLIGHT} "
        f"in flight, for {LONGER * settings.seconds} s, until the last has come; then for as long "
        "one at a time: p50 and p99 are from publishing to its coming. Median (10th to 90th "
        "percentile), and of the ratios round by round."
    )


def section(result: Results) -> Iterator[str]:
    yield f"\n### {result.server.name} {result.version}\n"
    yield table(HEAD, (line(result, peer) for peer in result.turns))
    yield ""
    yield from verdicts(result)


def line(result: Results, peer: Peer) -> list[str]:
    turns = result.turns[peer]
    own = figure(turn.own / turn.published * 1e6 for turn in turns)
    server = figure(turn.server / turn.published * 1e6 for turn in turns)
    return [
        peer.name,
        f"{figure(result.rates(peer)):,.0f}",
        f"{result.ahead(peer):.2f}",
        f"{figure(result.times(peer)).middle:,.0f}",
        f"{result.sooner(peer):.2f}",
        f"{figure(result.times(peer, 99)).middle:,.0f}",
        f"{own.middle:.1f} + {server.middle:.1f}",
        f"{min(turn.kept for turn in turns) or 'nothing'}",
        lost(turns),
    ]


def lost(turns: Sequence[Turn]) -> str:
    """What did not come, and what came as it should not."""
    counts = {
        "": sum(turn.lost for turn in turns),
        " twice": sum(turn.twice for turn in turns),
        " late": sum(turn.late for turn in turns),
    }
    said = [f"{count:,}{what}" for what, count in counts.items() if count]
    published = sum(turn.published + len(turn.times) + turn.gone for turn in turns)
    return f"{', '.join(said)} of {published:,}" if said else "none"


def verdicts(result: Results) -> Iterator[str]:
    libraries = [peer for peer in result.turns if peer.kind is Kind.LIBRARY]
    if whole := [peer for peer in libraries if result.whole(peer)]:
        yield verdict(result, result.best(whole), "keeps a history and loses nothing")
    elif libraries:
        yield "- no library keeps a history and loses nothing"
    if libraries:
        yield verdict(result, result.best(libraries), "is the fastest library")
    if REDIS_PY in result.turns:
        yield verdict(result, REDIS_PY, "is the driver that was not chosen")


def verdict(result: Results, peer: Peer, what: str) -> str:
    ahead = result.ahead(peer)
    said = "reached" if ahead.middle >= AIM else "MISSED"
    return (
        f"- {said}: {result.server.name}: {peer.name} {what}: {OURS.name} ÷ it is {ahead:.2f}, "
        f"wanted ≥ {AIM}; its p50 ÷ ours is {result.sooner(peer):.2f}, "
        f"its CPU ÷ ours {result.cheaper(peer):.2f}"
    )


def bars(result: Results) -> dict[str, Figure]:
    return {peer.name: figure(rate / 1000 for rate in result.rates(peer)) for peer in result.turns}
