"""One frame to many sockets: every server is running, and they are measured in turn."""

from collections.abc import Iterator, Sequence

from benchmarks import processors
from benchmarks.fanout.peers import BASE, OURS_BARE, PEERS, RUN_YAAT
from benchmarks.fanout.rows import deflate, plain
from benchmarks.servers import report
from benchmarks.servers.part import loaded, one_round
from benchmarks.servers.peers import Served, chosen
from benchmarks.servers.processes import serving
from benchmarks.servers.rows import Results
from benchmarks.settings import Settings

ROUNDS = 5
RECEIVERS = 1000
LONGER = 2  # a publication is a thousand messages


def run(settings: Settings) -> None:
    """Measure and report."""
    loaded("Fan-out", measure, settings)


def measure(settings: Settings) -> None:
    peers = chosen(settings.names, settings.apps, settings.websockets, PEERS)
    pair = processors.split()
    rounds, seconds = settings.rounds or ROUNDS, LONGER * settings.seconds
    receivers = settings.connections or RECEIVERS
    print(heading(rounds, seconds, receivers, pinned=pair is not None))
    results = asked(peers, receivers)
    load, servers = pair or (None, None)
    with serving(peers, servers) as running, processors.pinned(load):
        for _ in range(rounds):
            one_round(running, results, seconds)
    report.tables(results, BASE)
    if said := list(verdicts(results)):
        print("\n### Aims of the fan-out\n")
        print("\n".join(f"- {each}" for each in said))
    report.draw(results, BASE, settings.output / "bench-fanout.svg", "Fan-out")


def asked(peers: Sequence[Served], receivers: int) -> list[Results]:
    compressing = [peer for peer in peers if peer.deflates]
    return [
        *(Results(row, {peer: [] for peer in peers}) for row in plain(receivers)),
        *(Results(row, {peer: [] for peer in compressing}) for row in deflate(receivers)),
    ]


def heading(rounds: int, seconds: float, receivers: int, *, pinned: bool) -> str:
    return (
        f"\n## Fan-out\n\nOne connection publishes, {receivers:,} receive; "
        f"{report.where(pinned=pinned)}; {rounds} interleaved rounds, {seconds} s each turn. "
        "Median (10th to 90th percentile) of the ratios round by round, above 1 where it is better."
        " p50 and p99 are the time until the last receiver has it."
    )


def verdicts(results: Sequence[Results]) -> Iterator[str]:
    for result in results:
        for peer in (OURS_BARE, RUN_YAAT):
            if result.row.aim is not None and peer in result.turns:
                yield report.verdict(result, peer, BASE, result.row.aim)
