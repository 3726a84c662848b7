"""`python -m benchmarks [PART ...]`: all parts, or some."""

import argparse
from pathlib import Path
from types import ModuleType

from benchmarks import broker, check, echo, memory, overhead, page, startup
from benchmarks.fanout import part as fanout
from benchmarks.fanout import rooms, stalls
from benchmarks.network import part as redis
from benchmarks.peers import PEERS, Peer, chosen
from benchmarks.servers import part as server
from benchmarks.settings import Settings

PARTS: dict[str, ModuleType] = {
    "check": check,
    "startup": startup,
    "overhead": overhead,
    "memory": memory,
    "echo": echo,
    "server": server,
    "fanout": fanout,
    "rooms": rooms,
    "stalled": stalls,
    "broker": broker,
    "redis": redis,
}


def shape(text: str) -> tuple[int, int]:
    connections, _, window = text.partition("x")
    return int(connections), int(window)


def peer(text: str) -> Peer:
    name, _, app = text.partition("=")
    return Peer(name, app)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, help="how often everybody has a turn")
    parser.add_argument("--seconds", type=float, default=0.15, help="length of a turn")
    parser.add_argument("--only", default="", help="peers by name, with commas; bare always")
    parser.add_argument("--app", type=peer, action="append", default=[], metavar="NAME=MODULE:APP")
    parser.add_argument("--shape", type=shape, action="append", metavar="CONNECTIONSxIN_FLIGHT")
    parser.add_argument(
        "--connections", type=int, help="how many idle ones memory opens, and who listen in fanout"
    )
    parser.add_argument(
        "--row", action="append", default=[], help="of fanout or redis, by its title"
    )
    parser.add_argument("--ws", default="websockets-sansio", help="uvicorn's WebSocket class")
    parser.add_argument("--instructions", action="store_true", help="count them with valgrind")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="where plots go")
    parser.add_argument("--page", type=Path, help="a page to put the report into, between marks")
    parser.add_argument("--mark", default="a run", help="which marks of the page")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return given


def settings(given: argparse.Namespace) -> Settings:
    names = [name for name in given.only.split(",") if name]
    return Settings(
        peers=tuple(chosen(names, [*PEERS, *given.app])),
        names=tuple(names),
        apps=tuple(given.app),
        rounds=given.rounds,
        seconds=given.seconds,
        rows=tuple(given.row),
        shapes=tuple(given.shape or [(64, 1)]),
        connections=given.connections,
        websockets=given.ws,
        instructions=given.instructions,
        output=given.output,
    )


def main() -> None:
    given = arguments()
    asked = settings(given)
    with page.written(given.page, given.mark):
        for part in given.parts or PARTS:
            PARTS[part].run(asked)


main()
