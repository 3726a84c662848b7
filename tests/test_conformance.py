"""The protocol class does what Autobahn's cases ask; `make conformance` runs all of them.

Here are the quick ones: all cases without compression, and of each group with compression the
messages of 16 bytes, those of 256, and those of 8 KiB in fragments of 256.
"""

from collections.abc import Sequence

import pytest

from conformance.driver import all_cases, run
from conformance.explained import EXPLAINED, FEWEST_OK, complaints, incomplete
from conformance.outcome import PASSING, Outcome, Verdict, compresses, grouped
from conformance.page import GROUPS, PAGE, by_group, explanations, generated
from conformance.serving import APP, EAGER, LOOPS, OURS, served
from servers import SPECS, ServerPool, ServerSpec

# On a busy machine: hundreds of cases stand in one test.
pytestmark = pytest.mark.timeout(180)

AT_ONCE = 8
# Of each group with compression. The class sends short messages as they are, unless told not to.
QUICK = {OURS: ("1", "11"), EAGER: ("3",)}


def core() -> list[str]:
    return [case for case in all_cases() if not compresses(case)]


def compression(quick: Sequence[str]) -> list[str]:
    return [case for case in all_cases() if compresses(case) and case.split(".")[2] in quick]


def check(servers: ServerPool, spec: ServerSpec, cases: list[str]) -> None:
    """Run the cases against a server; nothing may be wrong, nor may it log anything."""
    server = servers.get(spec, APP)
    mark = server.mark()
    outcomes = run(server.url(), cases, AT_ONCE)
    assert [each.case for each in outcomes] == cases
    assert "\n".join(complaints(outcomes)) == ""
    assert server.written_since(mark) == ""


@pytest.mark.parametrize("loop", LOOPS)
def test_core(loop: str, servers: ServerPool) -> None:
    check(servers, served(loop), core())


@pytest.mark.parametrize("websocket_class", [OURS, EAGER])
def test_compression(websocket_class: str, servers: ServerPool) -> None:
    check(servers, served("asyncio", websocket_class), compression(QUICK[websocket_class]))


def test_what_is_wrong_is_found(servers: ServerPool) -> None:
    # It sends no empty message, does not compress, and answers 1.1.2 and 7.13.1 as others do.
    server = servers.get(SPECS["daphne"], APP)
    outcomes = run(server.url(), ["1.1.1", "1.1.2", "7.13.1", "12.1.1"], AT_ONCE)
    assert [each.verdict for each in outcomes] == [
        Verdict.FAILED,
        Verdict.OK,
        Verdict.INFORMATIONAL,
        Verdict.UNIMPLEMENTED,
    ]
    empty, uncompressed = complaints(outcomes)
    assert empty.startswith("1.1.1 FAILED: received nothing; ")
    assert "Actual events differ from any expected." in empty
    assert uncompressed.startswith("12.1.1 UNIMPLEMENTED: ")


def outcome(case: str, verdict: Verdict = Verdict.OK) -> Outcome:
    return Outcome(case, verdict, received="", end="closed with 1000")


def test_what_is_not_explained_is_wrong() -> None:
    case, explanation = next(iter(EXPLAINED.items()))
    strange = next(each for each in PASSING[1:] if each != explanation.verdict)
    assert complaints([outcome(case, explanation.verdict), outcome("1.1.1")]) == []
    assert complaints([outcome(case, strange)]) == [
        f"{case} {strange}: received nothing; closed with 1000"
    ]
    assert len(complaints([outcome("1.1.1", verdict) for verdict in Verdict])) == len(Verdict) - 1


def test_a_whole_run_lacks_nothing() -> None:
    cases = [f"1.1.{number}" for number in range(FEWEST_OK)]
    outcomes = [outcome(case) for case in cases]
    assert incomplete(outcomes, cases) == []
    assert incomplete(outcomes[1:], cases) == ["1.1.0 did not run", "499 are OK, fewer than 500"]


def test_what_is_explained_is_a_case_that_passes_but_is_not_ok() -> None:
    assert EXPLAINED.keys() <= set(all_cases())
    assert {each.verdict for each in EXPLAINED.values()} <= set(PASSING[1:])


def test_every_group_has_its_line() -> None:
    groups = {name: str(len(cases)) for name, cases in grouped(all_cases())}
    assert groups.keys() == GROUPS.keys()
    lines = list(by_group([outcome(case) for case in all_cases()]))
    assert [line.split(" | ")[2] for line in lines[2:]] == list(groups.values())


def test_the_page_is_of_a_whole_run_that_passed() -> None:
    _, inside, _ = generated(PAGE.read_text(encoding="utf-8"))
    counts = {line.split(" | ")[0]: line.split(" | ")[1:] for line in inside.splitlines()[3:9]}
    passed = [[int(cell.strip("| ")) for cell in counts[f"| {each}"]] for each in PASSING]
    assert [sum(column) for column in zip(*passed, strict=True)] == [len(all_cases())] * len(LOOPS)
    assert min(passed[0]) >= FEWEST_OK


def test_the_page_explains_what_the_table_explains() -> None:
    _, inside, _ = generated(PAGE.read_text(encoding="utf-8"))
    section = inside.partition("## What is not plain OK\n\n")[2].partition("\n\n")[0]
    assert section.splitlines() == list(explanations())
