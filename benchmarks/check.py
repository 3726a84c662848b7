"""Whether every peer answers right, before anything is measured."""

from benchmarks.exchange import EXCHANGES, Exchange, WrongAnswerError
from benchmarks.load import Load
from benchmarks.server import Server, serving
from benchmarks.settings import Settings


def run(settings: Settings) -> None:
    """Ask every peer for every exchange, with one message in flight and with four."""
    print("\n## Answers\n")
    with serving(settings.peers, settings.websockets) as servers:
        for server in servers:
            print(f"- {server.peer.name}: right at {', '.join(answers(server))}")


def answers(server: Server) -> list[str]:
    try:
        return [answer(server, exchange) for exchange in EXCHANGES]
    except WrongAnswerError as error:
        raise SystemExit(f"{server.peer.name} answers wrong: {error}") from error


def answer(server: Server, exchange: Exchange) -> str:
    for window in (1, 4):
        with Load(server.port, exchange, connections=2, window=window) as load:
            load.run(0)
    return exchange.name
