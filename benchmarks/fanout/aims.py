"""How far ahead channels have to be, and whether they are."""

from collections.abc import Iterator, Sequence

from benchmarks.fanout.peers import AIOHTTP, BASE, OURS_BARE, RUN_YAAT, SANSIO_YAAT
from benchmarks.servers import report
from benchmarks.servers.peers import Served
from benchmarks.servers.rows import Results

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
    (f"{MANY}, deflate", RUN_YAAT, BASE, 5.0),
)


def verdicts(results: Sequence[Results]) -> Iterator[str]:
    by_title = {result.row.title: result for result in results}
    for title, ours, other, aim in AIMS:
        if {ours, other} <= by_title[title].turns.keys():
            yield report.verdict(by_title[title], ours, other, aim)
    for title in (ALONE, MANY):
        if RUN_YAAT in by_title[title].turns:
            yield from report.ahead(by_title[title], RUN_YAAT)
