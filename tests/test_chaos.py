"""Faults meet two nodes and a real server: nothing is lost in silence, and a loss would be seen."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from chaos.checker import Verdict, Window, check, explain
from chaos.contenders import YAAT
from chaos.faults import Fault, Kind
from chaos.log import Event
from chaos.stage import NODES, SUBSCRIBERS, TTL, Contender, staged, subscribers

# Processes start, die and come back; on a busy machine each of them takes its time.
pytestmark = pytest.mark.timeout(180)

FAULTS = (
    Fault(0.3, "kill", 0.2, 0, 0.0),
    Fault(1.5, "partition", 0.5, 1, 0.1),
    Fault(2.5, "freeze", 0.4, 0, 0.0),
    Fault(3.0, "slow", 1.0, 0, 0.9),
    Fault(4.2, "half-open", 0.0, 0, 0.9),
    Fault(4.4, "kill", 0.1, 0, 0.0),
)
INSTEAD: dict[Kind, Kind] = {"kill": "stale apart"}
"""What happens to a server that forgets."""

# More than is published in all: however slow the machine is, the history reaches back.
OURS = replace(YAAT, history=1000)


async def struck(contender: Contender, faults: Sequence[Fault], *, is_durable: bool) -> list[Event]:
    async with staged(contender, is_durable=is_durable) as stage:
        await stage.strike(faults)
        return await stage.finish(calm=1.0, settle=30.0)


def judged(events: Sequence[Event], contender: Contender) -> Verdict:
    return check(events, Window(contender.history, TTL), subscribers())


def assert_well(events: Sequence[Event], verdict: Verdict) -> None:
    assert not verdict.violations, explain(events, verdict.violations[0])
    assert verdict.due == verdict.delivered + verdict.told
    assert {each.subscriber for each in verdict.resumed} == set(subscribers())
    assert all(each.seconds < 60 for each in verdict.resumed)


async def test_nothing_is_lost_in_silence() -> None:
    stale = [fault._replace(kind=INSTEAD.get(fault.kind, fault.kind)) for fault in FAULTS]
    durable, volatile, nothing_kept = await asyncio.gather(
        struck(OURS, FAULTS, is_durable=True),
        struck(OURS, stale, is_durable=False),
        struck(replace(OURS, history=0), FAULTS[:2], is_durable=True),
    )
    verdict = judged(durable, OURS)
    assert_well(durable, verdict)
    assert (verdict.told, verdict.alarms) == (0, 0)  # the server had it all, and is trusted
    verdict = judged(volatile, OURS)
    assert_well(volatile, verdict)
    assert verdict.alarms >= NODES * SUBSCRIBERS  # everybody was told that the epoch has ended
    verdict = check(nothing_kept, None, subscribers())
    # A channel without a history is brought nothing of what was published meanwhile.
    assert verdict.count("silent") == len(verdict.violations) > 0
