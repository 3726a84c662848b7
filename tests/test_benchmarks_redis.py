"""The benchmark of channels by way of Redis: everybody has a turn, and losses are counted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Whole processes, one after the other, each with a library to import and a server to talk to.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
KEEPING = ["Yaat", "Yaat's RedisBroker alone"]
STREAMING = ["Litestar, streams", "Litestar's stream backend alone"]
DRIVERS = [
    "our script, hiredis alone",
    "our script, redis-py's Connection",
    "our script, redis-py",
]
FORGETFUL = [
    "Yaat, no history",
    "Litestar, pub/sub",
    "Litestar's pub/sub backend alone",
    "channels_redis, core",
    "channels_redis, pub/sub",
    "broadcaster",
]
# Brings what ANSWERS makes of what is published, of what was before it, and of its number among
# those of its publisher.
LIAR = """
from contextlib import asynccontextmanager

from benchmarks.network.ends import Ends
from benchmarks.network.turn import payload_of

@asynccontextmanager
async def opened(url, came):
    before, kept = {}, []

    async def publish(payload):
        publisher, number = int(payload[:8]), int(payload[9:17])
        for each in ANSWERS(payload, before.get(publisher, payload), number):
            came(each)
            kept.append(each)
        before[publisher] = payload
        await asyncio.sleep(0.001)

    async def history():
        return KEPT(kept)

    yield Ends(publish, history)
"""


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: PLW1510 - what it exits with is what is tested
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def lines_of(section: str) -> dict[str, list[str]]:
    """The cells of a table by the first one of their line."""
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[2:]}


def test_everybody_has_a_turn(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- redis begins -->\n<!-- redis ends -->\n")
    short = ["--rounds", "1", "--seconds", "0.02", "--row", "Valkey"]
    written = ["--output", str(tmp_path), "--page", str(page), "--mark", "redis"]
    done = run("benchmarks", "redis", *short, *written)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    table = lines_of(done.stdout.partition("### Valkey ")[2])
    assert sorted(table) == sorted([*KEEPING, *STREAMING, *DRIVERS, *FORGETFUL])
    for peer in [*KEEPING, *DRIVERS]:
        assert table[peer][-2:] == ["100", "none"]
    assert table["Yaat, no history"][-2:] == ["nothing", "none"]
    assert all(table[peer][-2] != "nothing" for peer in STREAMING)
    assert all(table[peer][-2] == "nothing" for peer in FORGETFUL)
    assert "is the fastest library: Yaat ÷ it is " in done.stdout
    assert "our script, redis-py is the driver that was not chosen" in done.stdout
    assert done.stdout.strip() in page.read_text()
    assert "Yaat" in (tmp_path / "bench-redis.svg").read_text()


def test_the_other_server(tmp_path: Path) -> None:
    asked = ["--row", "Redis", "--only", "RedisBroker alone", "--output", str(tmp_path)]
    done = run("benchmarks", "redis", "--rounds", "1", "--seconds", "0.02", *asked)
    assert done.returncode == 0, done.stderr
    table = lines_of(done.stdout.partition("### Redis ")[2])
    assert list(table) == KEEPING
    assert all(cells[-2:] == ["100", "none"] for cells in table.values())


def test_an_unknown_server_is_refused() -> None:
    done = run("benchmarks", "redis", "--row", "Memcached")
    assert done.returncode == 1
    assert "no such row: Memcached" in done.stderr


def turn(place: Path, answers: str, kept: str = "kept[-100:]") -> subprocess.CompletedProcess[str]:
    lie = f"import asyncio\ndef ANSWERS(payload, before, number):\n    return {answers}\n"
    (place / "liar.py").write_text(f"{lie}\ndef KEPT(kept):\n    return {kept}\n{LIAR}")
    path = f"{place}{os.pathsep}{ROOT}"
    told = ["liar:opened", "redis://nowhere", str(os.getpid()), "0.5"]
    return run("benchmarks.network.turn", *told, PYTHONPATH=path)


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ("[payload]", {}),
        ("[] if number == 7 else [payload]", {"lost": 64}),
        ("[payload, payload] if number == 7 else [payload]", {"twice": 64}),
        (
            "{7: [], 8: [payload, before]}.get(number, [payload])",
            {"late": 64},
        ),
    ],
    ids=["nothing", "lost", "twice", "swapped"],
)
def test_what_goes_wrong_is_counted(tmp_path: Path, answers: str, found: dict[str, int]) -> None:
    done = turn(tmp_path, answers)
    assert done.returncode == 0, done.stderr
    counted: dict[str, Any] = json.loads(done.stdout)
    assert counted["published"] > 64 * 8
    assert counted["published"] - counted["came"] == found.get("lost", 0)
    assert counted["twice"] == found.get("twice", 0)
    assert counted["late"] == found.get("late", 0)
    assert counted["kept"] == 100


@pytest.mark.parametrize(
    ("answers", "kept", "found"),
    [
        ("[payload if number < 20 else payload[:-1] + b'!']", "kept", "was not published"),
        ("[payload, payload[:-1] + b'!']", "kept", "was not published"),
        ("[payload]", "kept[:100]", "what is kept is not what came last"),
    ],
    ids=["another", "one more", "the oldest"],
)
def test_what_was_not_published_is_found(
    tmp_path: Path, answers: str, kept: str, found: str
) -> None:
    done = turn(tmp_path, answers, kept)
    assert done.returncode == 1
    assert found in done.stderr
