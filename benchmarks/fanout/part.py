"""Channels and their fan-out: every server is running, and they are measured in turn."""

from collections.abc import Iterator, Sequence

from benchmarks import processors
from benchmarks.fanout import aims, stalls
from benchmarks.fanout.peers import BASE, PEERS, SANSIO_DROPPING, YAAT_DROPPING
from benchmarks.fanout.rows import deflate, plain, rooms
from benchmarks.servers import report
from benchmarks.servers.load import LoadFailedError
from benchmarks.servers.part import loaded
from benchmarks.servers.peers import Kind, Served, chosen
from benchmarks.servers.processes import Running, serving
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
    report.draw(results, BASE, settings.output / "bench-fanout.svg", "Fan-out")
    stalled = stalls.measured(slow_ones(peers, settings), pair, rounds, settings.seconds, receivers)
    stalls.report(stalled)
    if said := [*aims.verdicts(results), *stalls.verdicts(stalled)]:
        print("\n### Aims of the fan-out\n")
        print("\n".join(f"- {each}" for each in said))


def asked(peers: Sequence[Served], receivers: int) -> list[Results]:
    compressing = [peer for peer in peers if peer.deflates]
    return [
        *(Results(row, {peer: [] for peer in peers}) for row in plain(receivers)),
        Results(rooms(receivers), {peer: [] for peer in peers}),
        *(Results(row, {peer: [] for peer in compressing}) for row in deflate(receivers)),
    ]


def slow_ones(peers: Sequence[Served], settings: Settings) -> Iterator[Served]:
    wanted = {name.lower() for name in settings.names}
    for peer in (*peers, YAAT_DROPPING, SANSIO_DROPPING):
        if peer in peers or not wanted or peer.called(wanted):
            yield peer


def one_round(running: Sequence[Running], results: Sequence[Results], seconds: float) -> None:
    for result in results:
        for server in running:
            if server.peer in result.turns:
                turn(server, result, seconds)


def turn(server: Running, result: Results, seconds: float) -> None:
    """Measure; who is not ours and gives not what was published is told of, and out of this row."""
    try:
        result.turns[server.peer].append(result.row.turn(server.target, seconds))
    except LoadFailedError as error:
        if server.peer is BASE or server.peer.kind is Kind.OURS:
            raise server.failed(result.row.title, error) from error
        del result.turns[server.peer]
        result.lost[server.peer] = str(error)


def heading(rounds: int, seconds: float, receivers: int, *, pinned: bool) -> str:
    return (
        f"\n## Fan-out\n\n{report.versions(report.CHANNELS)}; one connection publishes, "
        f"{receivers:,} receive; {report.where(pinned=pinned)}; {rounds} interleaved rounds, "
        f"{seconds} s each turn. Median (10th to 90th percentile) of the ratios round by round, "
        "above 1 where it is better. p50 and p99 are the time until the last receiver has it."
    )
