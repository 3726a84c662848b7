"""Why a case does not end with a plain OK: the table that the documentation shows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from conformance.outcome import Outcome, Verdict

FEWEST_OK = 500


@dataclass(frozen=True)
class Explanation:
    """Why a case has its verdict.

    Args:
        verdict: The one it has.
        does: What the case sends.
        came: What came back.
        why: Which rule leaves that open, and why we use it so.
    """

    verdict: Verdict
    does: str
    came: str
    why: str


EXPLAINED: Mapping[str, Explanation] = {
    "7.1.6": Explanation(
        Verdict.INFORMATIONAL,
        "a text of 256 KiB, another text, a close frame, and a ping behind it",
        "close 1000",
        "The case accepts every answer. The close is answered without waiting for an application "
        "that is busy with what came before it, which RFC 6455 leaves open (5.5.1); the ping "
        "behind the close is not read (1.4).",
    ),
    "7.13.1": Explanation(
        Verdict.INFORMATIONAL,
        "a close frame with the code 5000",
        "close 1002",
        "The case accepts every answer. The codes that may be sent end with 4999 (RFC 6455, "
        "7.4.2); another one breaks the protocol.",
    ),
    "7.13.2": Explanation(
        Verdict.INFORMATIONAL,
        "a close frame with the code 65535",
        "close 1002",
        "As 7.13.1.",
    ),
}


def complaints(outcomes: Iterable[Outcome]) -> list[str]:
    """Return what is wrong with these cases: a failure, and what is not explained as it is."""
    return [str(each) for each in outcomes if not is_accounted_for(each)]


def is_accounted_for(outcome: Outcome) -> bool:
    explanation = EXPLAINED.get(outcome.case)
    return outcome.verdict == (explanation.verdict if explanation else Verdict.OK)


def incomplete(outcomes: Iterable[Outcome], cases: Iterable[str]) -> list[str]:
    """Return what a whole run must not be without: every case, and enough of plain OK."""
    verdicts = {each.case: each.verdict for each in outcomes}
    missing = [f"{case} did not run" for case in cases if case not in verdicts]
    ok = list(verdicts.values()).count(Verdict.OK)
    return missing + ([f"{ok} are OK, fewer than {FEWEST_OK}"] if ok < FEWEST_OK else [])
