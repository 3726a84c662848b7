"""The report says what the checker found, and fails for ours alone."""

import re
import subprocess
import sys
from math import inf
from pathlib import Path

import pytest
from chaos.contenders import CONTENDERS, YAAT
from chaos.faults import SCENARIOS, Scenario
from chaos.log import Event
from chaos.report import Outcome, conditions, judged, kinds_table, scenario_table
from chaos.stage import Contender, subscribers

from redis_servers import VALKEY

ROOT = Path(__file__).parents[1]
KILL, DURABLE, _ = SCENARIOS
OTHER = CONTENDERS[1]
EVERYBODY = subscribers()


def run(until: float = 0.5, *, lost: str = "", kind: str = "kill") -> list[Event]:
    """A log in which everybody sees all, but for one who does not see the second of four.

    Args:
        until: How many seconds after the fault delivery goes on.
        lost: Who.
        kind: Of the fault.
    """
    events = []
    for number, time in enumerate((1.0, 2.0, 10.0 + until, 13.0)):
        events.append(Event(time - 0.01, "began", "p", f"p:{number}"))
        events.append(Event(time, "acked", "p", f"p:{number}"))
        events += [
            Event(time, "seen", who, f"p:{number}")
            for who in EVERYBODY
            if (who, number) != (lost, 1)
        ]
    hit = Event(9.0, "hit", text=f"{kind} for 1 s")
    return [*events, hit, Event(10.0, "back", text=kind)]


def outcome(
    contender: Contender = YAAT, scenario: Scenario = KILL, events: list[Event] | None = None
) -> Outcome:
    return judged(contender, scenario, run() if events is None else events)


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_all_is_well() -> None:
    told = outcome()
    assert (told.has_failed, list(told.failures())) == (False, [])
    expected = ["Yaat", "4", "12", "12", *"00000", "0.50", "0.50"]
    assert cells(scenario_table([told])) == [expected]
    assert cells(kinds_table(told)) == [["kill", "4", "0.50", "0.50"]]


def test_what_ours_loses_is_a_failure() -> None:
    told = outcome(events=run(lost="node1/0"))
    assert told.has_failed
    (failure,) = told.failures()
    assert failure.startswith("Yaat, kill: 1 silent. The first:\n\nsilent: node1/0, p:1:")
    assert cells(scenario_table([told]))[0][3:6] == ["11", "1", "0"]


def test_what_others_lose_is_none() -> None:
    told = outcome(OTHER, events=run(lost="node1/0"))
    assert not told.has_failed
    assert cells(scenario_table([outcome(), told]))[1][:5] == [OTHER.name, "4", "12", "11", "1"]


@pytest.mark.parametrize("scenario", [KILL, DURABLE], ids=["kill", "durable"])
def test_to_go_on_too_late_is_a_failure_after_a_kill(scenario: Scenario) -> None:
    told = outcome(scenario=scenario, events=run(1.5))
    assert told.has_failed == (scenario is KILL)
    assert len(list(told.failures())) == (len(EVERYBODY) if scenario is KILL else 0)


def test_never() -> None:
    events = [each for each in run() if each.what != "seen" or each.time < 9]
    told = outcome(OTHER, events=events)
    assert told.outages == [inf] * len(EVERYBODY)
    assert cells(scenario_table([told]))[0][-2:] == ["never", "never"]


def test_what_was_there_all_the_time_does_not_come_back() -> None:
    told = outcome(scenario=DURABLE, events=run(kind="half-open"))
    assert cells(scenario_table([told]))[0][-2:] == ["", ""]
    assert cells(kinds_table(told)) == [["half-open", "4", "0.50", "0.50"]]


def test_a_needless_alarm_is_a_failure() -> None:
    alarm = Event(11.0, "told", "node0/0", text="position lost")
    told = outcome(events=[*run(), alarm])
    assert told.has_failed
    assert next(told.failures()).startswith("Yaat, kill: 1 needless.")
    assert not outcome(OTHER, events=[*run(), alarm]).has_failed


def test_conditions_name_the_versions() -> None:
    text = conditions(CONTENDERS, VALKEY)
    assert re.search(r"; Valkey \d+\.\d+\.\d+\.$", text)
    assert all(f"{name} " in text for each in CONTENDERS for name in each.of)


def test_a_system_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--system", "nobody"],
        cwd=ROOT,
        env={"PYTHONPATH": "tests", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "there are: Yaat, Litestar" in done.stderr
