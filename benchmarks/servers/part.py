"""Our class beside other servers: every server is running, and they are measured in turn."""

from collections.abc import Callable

from benchmarks import processors
from benchmarks.server import raise_file_limit
from benchmarks.servers import memory, report
from benchmarks.servers.compiled import NoCompilerError, compiled
from benchmarks.servers.load import Counted, LoadFailedError
from benchmarks.servers.peers import BASE, chosen
from benchmarks.servers.processes import NotStartedError, Running, serving
from benchmarks.servers.rows import ROWS, Results
from benchmarks.settings import Settings

ROUNDS = 7


def run(settings: Settings) -> None:
    """Measure and report."""
    loaded("The server", measure, settings)


def loaded(title: str, measure: Callable[[Settings], None], settings: Settings) -> None:
    """Measure, if the load can be compiled."""
    try:
        compiled("load")
    except NoCompilerError as error:
        print(f"\n## {title}\n\nLeft out: {error}, and the load of this part is written in C.")
        return
    raise_file_limit()
    try:
        measure(settings)
    except NotStartedError as error:
        raise SystemExit(str(error)) from error


def measure(settings: Settings) -> None:
    peers = chosen(settings.names, settings.apps, settings.websockets)
    pair = processors.split()
    rounds = settings.rounds or ROUNDS
    print(report.heading(rounds, settings.seconds, pinned=pair is not None))
    results = [Results(row, {peer: [] for peer in peers}) for row in ROWS]
    load, servers = pair or (None, None)
    with serving(peers, servers) as running, processors.pinned(load):
        for _ in range(rounds):
            one_round(running, results, settings.seconds)
    sizes = memory.measured(peers, settings, settings.rounds or 1)
    report.whole(results, sizes)
    report.draw(results, BASE, settings.output / "bench-server.svg", "Servers")


def one_round(running: list[Running], results: list[Results], seconds: float) -> None:
    for result in results:
        for server in running:
            if server.peer in result.turns:
                result.turns[server.peer].append(turn(server, result, seconds))


def turn(server: Running, result: Results, seconds: float) -> Counted:
    try:
        return result.row.turn(server.target, seconds)
    except LoadFailedError as error:
        raise server.failed(result.row.title, error) from error
