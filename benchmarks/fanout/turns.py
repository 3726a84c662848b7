"""Every server is running, and they are measured in turn."""

from collections.abc import Sequence

from benchmarks import processors
from benchmarks.fanout.peers import BASE
from benchmarks.servers import report
from benchmarks.servers.load import LoadFailedError
from benchmarks.servers.peers import Kind, Served
from benchmarks.servers.processes import Running, serving
from benchmarks.servers.rows import Results
from benchmarks.settings import Settings

ROUNDS = 5
RECEIVERS = 1000
LONGER = 2  # a publication is a thousand messages


def take(peers: Sequence[Served], results: Sequence[Results], settings: Settings) -> None:
    """Measure all peers at all rows, round by round."""
    load, servers = processors.split() or (None, None)
    with serving(peers, servers) as running, processors.pinned(load):
        for _ in range(settings.rounds or ROUNDS):
            for result in results:
                for server in running:
                    if server.peer in result.turns:
                        turn(server, result, LONGER * settings.seconds)


def turn(server: Running, result: Results, seconds: float) -> None:
    """Measure; who is not ours and gives not what was published is told of, and out of this row."""
    try:
        result.turns[server.peer].append(result.row.turn(server.target, seconds))
    except LoadFailedError as error:
        if server.peer is BASE or server.peer.kind is Kind.OURS:
            raise server.failed(result.row.title, error) from error
        del result.turns[server.peer]
        result.lost[server.peer] = str(error)


def heading(title: str, what: str, settings: Settings) -> str:
    where = report.where(pinned=processors.split() is not None)
    return (
        f"\n## {title}\n\n{report.versions(report.CHANNELS)}. {what}; {where}; "
        f"{settings.rounds or ROUNDS} interleaved rounds, {LONGER * settings.seconds} s each turn. "
        "Median (10th to 90th percentile) of the ratios round by round, above 1 where it is better."
        " p50 and p99 are the time until the last receiver has it."
    )
