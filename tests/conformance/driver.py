"""Runs cases against a server: `python -m conformance.driver URL AT_ONCE CASE…`.

A process of its own, because the cases are of the days of Python 2: to import them kosoku puts
stand-ins for `autobahn` and `pkg_resources` on `sys.path`, and replaces `binascii.b2a_hex`.
"""

# ruff: noqa: T201 - what it prints is read by whoever started it

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.outcome import Outcome, Verdict, compresses

if TYPE_CHECKING:
    from kosoku._kosoku import CaseResult

TESTS = Path(__file__).parents[1]
SHOWN = 40  # characters of a message
# kosoku waits for ever for a handshake that nobody answers.
PATIENCE = 60.0  # seconds a case


def run(url: str, cases: Sequence[str], at_once: int) -> list[Outcome]:
    """Run cases against a server, some of them at once, and return what came of each."""
    told = call(url, str(at_once), *cases)
    return [Outcome(**{**row, "verdict": Verdict(row["verdict"])}) for row in told]


@cache
def all_cases() -> tuple[str, ...]:
    """Return the numbers of all cases that there are."""
    return tuple(call())


def call(*arguments: str) -> list[Any]:
    command = [sys.executable, "-m", "conformance.driver", *arguments]
    patience = PATIENCE * max(1, len(arguments))
    done = subprocess.run(command, cwd=TESTS, stdout=subprocess.PIPE, check=True, timeout=patience)
    answer: list[Any] = json.loads(done.stdout)
    return answer


async def results(url: str, at_once: int, cases: Sequence[str]) -> "list[CaseResult]":
    from kosoku import FailureError, run_fuzzingclient

    give_bytes()
    try:
        return await run_fuzzingclient(url, cases, concurrency=at_once)
    except FailureError as failure:
        return failure.results  # all of them, also those that passed


def give_bytes() -> None:
    """Give the cases of compression a message as bytes, whether it came compressed or not.

    They hash it, as Autobahn's own driver lets them. kosoku gives bytes for what came compressed
    and a str for the rest, so that to hash it raises.
    """
    from kosoku.cases import CASES

    for name, case in CASES.items():
        if compresses(name):
            case.onMessage = encoded(case.onMessage)  # type: ignore[attr-defined]


def encoded(on_message: Callable[..., None]) -> Callable[..., None]:
    def taking_both(case: object, message: str | bytes, binary: bool) -> None:  # noqa: FBT001
        if isinstance(message, str):
            message = message.encode("latin-1" if binary else "utf-8")
        on_message(case, message, binary)

    return taking_both


def outcome(result: "CaseResult") -> Outcome:
    return Outcome(
        case=result.case_id,
        verdict=verdict(result),
        received=", ".join(map(shown, result.received or ())),
        end=end(result),
    )


def verdict(result: "CaseResult") -> Verdict:
    """Return one verdict for the two that a case has: what came, and how it ended."""
    if not result.passed:
        unimplemented = result.behavior.value == Verdict.UNIMPLEMENTED
        return Verdict.UNIMPLEMENTED if unimplemented else Verdict.FAILED
    parts = {result.behavior.value, result.behavior_close.value}
    return next((Verdict(part) for part in parts if part != Verdict.OK), Verdict.OK)


def shown(event: Sequence[Any]) -> str:
    kind, payload, *_ = event
    text = payload if isinstance(payload, str) else bytes(payload).decode(errors="backslashreplace")
    more = f"… ({len(text)} characters)" if len(text) > SHOWN else ""
    return f"{kind} {text[:SHOWN]!r}{more}"


def end(result: "CaseResult") -> str:
    """Return how the connection ended, and what the case says of that."""
    code = result.remote_close_code
    came = "no close frame came" if code is None else f"closed with {code}"
    first = "the client closed first" if result.closed_by_me else "the server closed first"
    return f"{came}, {first}; {result.result} {result.result_close}"


def main(arguments: Sequence[str]) -> None:
    if not arguments:
        from kosoku.cases import CASES

        print(json.dumps(list(CASES)))
        return
    url, at_once, *cases = arguments
    outcomes = map(outcome, asyncio.run(results(url, int(at_once), cases)))
    print(json.dumps([asdict(each) for each in outcomes]))


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    # The threads of kosoku abort the process, now and then, while the interpreter takes it apart.
    os._exit(0)
