"""The report: a table a row, one of all ratios, and whether the aims are reached."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import plot
from benchmarks.figures import figure, table
from benchmarks.servers import memory
from benchmarks.servers.peers import BASE, OURS_STARLETTE, OURS_YAAT, Kind, Served
from benchmarks.servers.rows import ECHOES, SATURATED, SHORT, Results

STARLETTE_AIM = 1.8
BEHIND = 1.25  # a peer that is ahead of us by less is within the noise
MEASURED = (
    "uvicorn",
    "uvloop",
    "httptools",
    "wsproto",
    "granian",
    "hypercorn",
    "aiohttp",
    "websockets",
    "picows",
    "sanic",
    "tornado",
    "socketify",
)
CHANNELS = (
    "uvicorn",
    "uvloop",
    "starlette",
    "fastapi",
    "litestar",
    "channels",
    "aiohttp",
    "websockets",
    "picows",
    "socketify",
)


def versions(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def where(*, pinned: bool) -> str:
    if pinned:
        return "the load on one processor, the servers on another"
    return "ONE PROCESSOR FOR ALL: only the CPU per message says anything"


def heading(rounds: int, seconds: float, *, pinned: bool) -> str:
    return (
        f"\n## The server\n\n{versions(MEASURED)}; "
        f"no permessage-deflate; {where(pinned=pinned)}; {rounds} interleaved rounds, "
        f"{seconds} s each turn. Median (10th to 90th percentile) of the ratios round by round, "
        "above 1 where it is better: more in a second, or less CPU."
    )


def whole(results: Sequence[Results], sizes: memory.Sizes) -> None:
    tables(results, BASE)
    memory.report(sizes)
    if OURS_YAAT in results[0].turns:
        print("\n### Yaat on our class ÷ the others\n")
        print(table(["", *(result.row.title for result in results)], ours(results)))
        print(
            "\nBy messages a second where both servers used at least 90% of their processor, else "
            "(marked *) by the servers' CPU time for a message.\n\n### Aims\n"
        )
        for said in (*verdicts(results), *memory.verdicts(sizes)):
            print(f"- {said}")


def tables(results: Sequence[Results], base: Served) -> None:
    """One a row, and whether they can be believed."""
    for result in results:
        print(f"\n### {result.row.title}\n")
        print(table(head(result, base), lines(result, base)))
        for peer, why in result.lost.items():
            print(f"\n{peer.name} IS NOT IN THE TABLE: {why}")
    print("\n" + busy(results))


def busy(results: Sequence[Results]) -> str:
    """Tell whether something else than the servers was measured."""
    turns = [turn for result in results for turns in result.turns.values() for turn in turns]
    servers = figure(turn.server_share for turn in turns)
    load = figure(turn.load_share for turn in turns)
    said = f"Of their processors the servers used {servers:.0%}, the load {load:.0%}."
    if servers.middle < SATURATED:
        said += " SOMETHING ELSE RAN ON THIS MACHINE: only the CPU per message says anything."
    return said


def draw(results: Sequence[Results], base: Served, file: Path, title: str) -> None:
    """One panel a row, without the limits, which are far off the scale."""
    panels = {
        result.row.title: {
            peer.name: result.ratio(peer, base).deciding
            for peer in result.turns
            if peer.kind is not Kind.LIMIT
        }
        for result in results
    }
    unit = f"times as fast as {base.name} (more is better)"
    plot.draw(file, title, unit, panels, floor=1.0, spec=".2f")


def head(result: Results, base: Served) -> list[str]:
    unit = result.row.unit
    one = "delivery" if unit == "deliveries" else unit[:-1]
    return [
        "",
        f"{unit}/s",
        f"÷ {base.name}",
        f"CPU µs/{one}",
        f"CPU: {base.name} ÷ it",
        "server busy",
        "load busy",
        "p50 µs",
        "p99 µs",
    ]


def lines(result: Results, base: Served) -> Iterator[list[str]]:
    for peer, turns in result.turns.items():
        ratio = result.ratio(peer, base)
        yield [
            f"{peer.name} (limit)" if peer.kind is Kind.LIMIT else peer.name,
            f"{figure(result.rates(peer)).middle:,.0f}",
            f"{ratio.throughput:.2f}",
            f"{figure(result.cpus(peer)).middle / 1000:.1f}",
            f"{ratio.cpu:.2f}",
            f"{result.busy(peer):.0%}",
            f"{figure(turn.load_share for turn in turns).middle:.0%}",
            f"{figure(turn.p50 for turn in turns).middle / 1000:,.0f}",
            f"{figure(turn.p99 for turn in turns).middle / 1000:,.0f}",
        ]


def ours(results: Sequence[Results]) -> Iterator[list[str]]:
    for peer in results[0].turns:
        if peer is not OURS_YAAT:
            yield [peer.name, *(cell(result, peer) for result in results)]


def cell(result: Results, peer: Served) -> str:
    ratio = result.ratio(OURS_YAAT, peer)
    return f"{ratio.middle:.2f}" + ("" if ratio.saturated else "*")


def verdicts(results: Sequence[Results]) -> Iterator[str]:
    for result in results:
        if result.row.aim is not None:
            yield verdict(result, OURS_YAAT, BASE, result.row.aim)
        if result.row is SHORT and OURS_STARLETTE in result.turns:
            yield verdict(result, OURS_STARLETTE, BASE, STARLETTE_AIM)
    for result in results:
        if result.row in ECHOES:
            yield from ahead(result)


def verdict(result: Results, peer: Served, base: Served, aim: float) -> str:
    ratio = result.ratio(peer, base)
    said = "reached" if ratio.middle >= aim else "MISSED"
    return (
        f"{said}: {result.row.title}: {peer.name} ÷ {base.name} is "
        f"{ratio.deciding:.2f} by {ratio.by}, wanted ≥ {aim}"
    )


def ahead(result: Results, ours: Served = OURS_YAAT) -> Iterator[str]:
    """Who is ahead of us by more than noise, limits aside."""
    rivals = [peer for peer in result.turns if peer.kind in {Kind.ASGI, Kind.ASYNCIO}]
    ratios = {peer: result.ratio(ours, peer).middle for peer in rivals}
    faster = [peer for peer, ratio in ratios.items() if ratio * BEHIND < 1]
    for peer in faster:
        yield f"MISSED: {result.row.title}: behind {peer.name}, ours ÷ it is {ratios[peer]:.2f}"
    if not faster:
        nearest = min(rivals, key=ratios.__getitem__)
        yield (
            f"reached: {result.row.title}: behind nobody by more than 25%; "
            f"closest is {nearest.name}, where ours ÷ it is {ratios[nearest]:.2f}"
        )
