"""Runs the cases: `python -m conformance [--loop LOOP]… [--ws CLASS] [CASE…]`.

Without a case all are run, against our class on every loop, and the page is written. A case is
a number or a pattern: `6.4.1`, `13.*`.
"""

# ruff: noqa: T201 - what it prints is what it is for

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from conformance.driver import all_cases, run
from conformance.explained import complaints, incomplete
from conformance.outcome import Outcome, Verdict, grouped
from conformance.page import count, write
from conformance.serving import APP, LOOPS, OURS, served
from servers import Server

AT_ONCE = 2


def arguments() -> Namespace:
    parser = ArgumentParser("conformance", description="All cases of the Autobahn test suite.")
    parser.add_argument("cases", nargs="*", help="numbers or patterns; without them, all")
    parser.add_argument("--loop", action="append", choices=LOOPS, help="without it, on both")
    parser.add_argument("--ws", default=OURS, help="what uvicorn speaks WebSocket with")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="cases at a time")
    return parser.parse_args()


def chosen(patterns: Sequence[str]) -> list[str]:
    """Return the cases that one of the patterns means."""
    wanted = patterns or ["*"]
    cases = [case for case in all_cases() if any(fnmatch(case, pattern) for pattern in wanted)]
    if not cases:
        raise SystemExit(f"no case is {' or '.join(patterns)}")
    return cases


def run_on(loop: str, options: Namespace, directory: Path) -> tuple[list[Outcome], list[str]]:
    """Run the cases on a loop; return what came of them, and what is wrong."""
    print(f"\n{options.ws} on {loop}", flush=True)
    with Server(served(loop, options.ws), APP, directory) as server:
        mark = server.mark()
        outcomes = in_groups(server.url(), chosen(options.cases), options.at_once)
        logged = server.written_since(mark)
    return outcomes, complaints(outcomes) + ([f"the server logged: {logged}"] if logged else [])


def in_groups(url: str, cases: Sequence[str], at_once: int) -> list[Outcome]:
    """Run the cases group by group, and print each group when it is done."""
    outcomes: list[Outcome] = []
    for name, members in grouped(cases):
        start = time.monotonic()
        group = run(url, members, at_once)
        print(f"{name:>5} {told(group)}, {time.monotonic() - start:.1f} s", flush=True)
        outcomes += group
    return outcomes


def told(outcomes: Sequence[Outcome]) -> str:
    counts = count(outcomes)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])


def finish(runs: Mapping[str, list[Outcome]], wrong: Sequence[str]) -> None:
    """Print the verdicts and what is wrong, and end with 1 if something is."""
    for loop, outcomes in runs.items():
        print(f"\nOn {loop}, of {len(outcomes)} cases: {told(outcomes)}")
        for each in outcomes:
            if each.verdict != Verdict.OK:
                print(f"  {each}")
    if wrong:
        raise SystemExit("\n".join(("", *wrong)))


def main() -> None:
    options = arguments()
    runs, wrong = {}, []
    with tempfile.TemporaryDirectory() as directory:
        for loop in options.loop or LOOPS:
            runs[loop], found = run_on(loop, options, Path(directory))
            wrong += [f"on {loop}: {each}" for each in found]
    if not options.cases:
        wrong += [each for outcomes in runs.values() for each in incomplete(outcomes, all_cases())]
    if not (wrong or options.cases or options.loop) and options.ws == OURS:
        write(runs)
    finish(runs, wrong)


if __name__ == "__main__":
    main()
