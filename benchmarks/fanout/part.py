"""One publication to a thousand sockets."""

from collections.abc import Iterator, Sequence

from benchmarks.fanout import turns
from benchmarks.fanout.peers import AIOHTTP, BASE, OURS_BARE, PEERS, RUN_YAAT, SANSIO_YAAT
from benchmarks.fanout.rows import deflate, plain
from benchmarks.servers import report
from benchmarks.servers.part import loaded
from benchmarks.servers.peers import Served, chosen
from benchmarks.servers.rows import Results
from benchmarks.settings import Settings

ALONE, MANY = "128 B, one at a time", "128 B, 8 in flight"
AIMS: tuple[tuple[str, Served, Served, float], ...] = (
    (ALONE, RUN_YAAT, BASE, 2.0),
    (ALONE, OURS_BARE, BASE, 2.0),
    (ALONE, SANSIO_YAAT, BASE, 1.2),
    (MANY, RUN_YAAT, BASE, 5.0),
    (MANY, RUN_YAAT, AIOHTTP, 2.0),
    (MANY, OURS_BARE, BASE, 5.0),
    (MANY, SANSIO_YAAT, BASE, 1.2),
    (f"{ALONE}, deflate", RUN_YAAT, BASE, 2.0),
    ("1 KiB, 8 in flight, deflate", RUN_YAAT, BASE, 5.0),
)


def run(settings: Settings) -> None:
    """Measure and report."""
    loaded("Fan-out", measure, settings)


def measure(settings: Settings) -> None:
    peers = chosen(settings.names, settings.apps, settings.websockets, PEERS)
    receivers = settings.connections or turns.RECEIVERS
    print(turns.heading("Fan-out", f"One connection publishes, {receivers:,} receive", settings))
    results = asked(peers, receivers, settings.rows)
    turns.take(peers, results, settings)
    report.tables(results, BASE)
    if said := list(verdicts(results)):
        print("\n### Aims of the fan-out\n")
        print("\n".join(f"- {each}" for each in said))
    report.draw(results, BASE, settings.output / "bench-fanout.svg", "Fan-out")


def asked(peers: Sequence[Served], receivers: int, titles: Sequence[str]) -> list[Results]:
    compressing = [peer for peer in peers if peer.deflates]
    results = [
        *(Results(row, {peer: [] for peer in peers}) for row in plain(receivers)),
        *(Results(row, {peer: [] for peer in compressing}) for row in deflate(receivers)),
    ]
    if unknown := set(titles) - {result.row.title for result in results}:
        raise SystemExit(f"no such row: {', '.join(sorted(unknown))}")
    return [result for result in results if not titles or result.row.title in titles]


def verdicts(results: Sequence[Results]) -> Iterator[str]:
    by_title = {result.row.title: result for result in results}
    for title, ours, other, aim in AIMS:
        if title in by_title and {ours, other} <= by_title[title].turns.keys():
            yield report.verdict(by_title[title], ours, other, aim)
    for title in (ALONE, MANY):
        if title in by_title and RUN_YAAT in by_title[title].turns:
            yield from report.ahead(by_title[title], RUN_YAAT)
