"""The schedule of faults is a function of its seed, and leaves none of them out."""

import pytest
from chaos.faults import LENGTHS, SCENARIOS, START, Fault, Scenario, schedule
from hypothesis import given
from hypothesis import strategies as st

MINUTE = 60.0
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
seeds = st.integers(0, 2**32)


def test_the_same_seed_gives_the_same_faults() -> None:
    kinds = SCENARIOS[1].kinds
    assert schedule(7, MINUTE, kinds, 2) == schedule(7, MINUTE, kinds, 2)
    assert schedule(7, MINUTE, kinds, 2) != schedule(8, MINUTE, kinds, 2)


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    kinds = SCENARIOS[1].kinds
    short, long = schedule(7, 20.0, kinds, 2), schedule(7, MINUTE, kinds, 2)
    assert 0 < len(short) < len(long)
    assert long[: len(short)] == short


@every_scenario
@given(seed=seeds)
def test_every_kind_comes(scenario: Scenario, seed: int) -> None:
    faults = schedule(seed, 2 * MINUTE, scenario.kinds, 2)
    assert {fault.kind for fault in faults} == set(scenario.kinds)


@every_scenario
@given(seed=seeds, nodes=st.integers(1, 5))
def test_one_after_the_other_in_their_time(scenario: Scenario, seed: int, nodes: int) -> None:
    faults = schedule(seed, MINUTE, scenario.kinds, nodes)
    over = START
    for fault in faults:
        shortest, longest = LENGTHS[fault.kind]
        assert fault.at >= over
        assert shortest <= fault.seconds <= longest
        assert fault.node in range(nodes)
        assert 0 <= fault.chance < 1
        over = fault.at + fault.seconds
    assert over <= MINUTE


def test_a_fault_says_what_it_is() -> None:
    assert str(Fault(1.0, "kill", 0.5, 0, 0.0)) == "kill for 0.50 s"
    assert str(Fault(1.0, "reset", 0.0, 0, 0.0)) == "reset"
