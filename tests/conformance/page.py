"""The page of the documentation that shows what came of the cases."""

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from conformance.explained import EXPLAINED, Explanation
from conformance.others import OTHERS
from conformance.outcome import Outcome, Verdict, compresses, group, grouped
from conformance.serving import OURS, options

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
BEGIN, END = "<!-- a run begins -->", "<!-- a run ends -->"

GROUPS = {
    "1": "Framing: text and binary of every length",
    "2": "Ping and pong",
    "3": "Reserved bits",
    "4": "Reserved opcodes",
    "5": "Fragments",
    "6": "UTF-8",
    "7": "Closing",
    "9": "Large messages, many fragments, 1,000 round trips",
    "10": "A message sent in parts",
    "12.1": "Compression of JSON",
    "12.2": "Compression of a picture",
    "12.3": "Compression of German prose",
    "12.4": "Compression of HTML",
    "12.5": "Compression of a PDF",
    "13.1": "The offer without parameters",
    "13.2": "`server_no_context_takeover`",
    "13.3": "`server_max_window_bits=9`",
    "13.4": "`server_max_window_bits=15`",
    "13.5": "Both, 9 bits",
    "13.6": "Both, 15 bits",
    "13.7": "Three offers, from the strictest to none",
}
OTHERS_SETTING = (
    "Measured with kosoku 0.1.0, a bare echo on each, and a limit of 64 MiB for a message. Where "
    "96 were tried it was eight of each of the twelve groups. From run to run a few cases go from "
    "NON-STRICT to OK or back: they hang on what comes in one read."
)
SHOWN = (Verdict.OK, Verdict.NON_STRICT, Verdict.INFORMATIONAL, Verdict.FAILED)


def report(runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Return what came of the cases, by the event loop that they ran on."""
    first = next(iter(runs.values()))
    parts = (
        [setting()],
        summary(runs),
        ["## By group"],
        by_group(first),
        ["## What is not plain OK"],
        explanations(),
        ["## Beside other servers"],
        [OTHERS_SETTING],
        beside(first),
    )
    return "\n\n".join("\n".join(part) for part in parts)


def setting() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "kosoku"))
    command = f"uvicorn {' '.join(options(OURS))}"
    return f"`{command}`, Python {platform.python_version()}, {versions}."


def summary(runs: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    yield from head("", *(f"on {loop}" for loop in runs))
    for verdict in Verdict:
        yield row(verdict, *(str(count(outcomes)[verdict]) for outcomes in runs.values()))


def by_group(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield from head("Group", "What it tries", "Cases", *SHOWN)
    for name, cases in grouped(each.case for each in outcomes):
        members = [each for each in outcomes if group(each.case) == name]
        counts = count(members)
        yield row(name, GROUPS[name], str(len(cases)), *(str(counts[each]) for each in SHOWN))


def explanations() -> Iterator[str]:
    yield from head("Case", "Verdict", "It sends", "What comes back", "Why")
    yield from (explained(case, each) for case, each in EXPLAINED.items())


def beside(outcomes: Sequence[Outcome]) -> Iterator[str]:
    core = count(each for each in outcomes if not compresses(each.case))
    packed = count(each for each in outcomes if compresses(each.case))
    yield from head("Without compression", *SHOWN, "With it, OK", "What fails")
    ours = f"{packed[Verdict.OK]} of {packed.total()}"
    yield row(f"`{OURS}`", *(str(core[verdict]) for verdict in SHOWN), ours, "")
    yield from (row(*map(str, other)) for other in OTHERS)


def explained(case: str, each: Explanation) -> str:
    """Return the line of a case that is not plain OK."""
    return row(case, each.verdict, each.does, each.came, each.why)


def count(outcomes: Iterable[Outcome]) -> Counter[Verdict]:
    return Counter(each.verdict for each in outcomes)


def head(*cells: str) -> tuple[str, str]:
    return row(*cells), "|" + "---|" * len(cells)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def generated(text: str) -> tuple[str, str, str]:
    """Return the page's text before a run's report, the report, and the text behind it."""
    before, begun, rest = text.partition(BEGIN)
    inside, ended, after = rest.partition(END)
    if not (begun and ended):
        raise SystemExit(f"the page has no {BEGIN} and {END}")
    return before, inside.strip(), after


def write(runs: Mapping[str, Sequence[Outcome]]) -> None:
    """Put what came of the cases between the two marks of the page."""
    before, _, after = generated(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{BEGIN}\n\n{report(runs)}\n\n{END}{after}", encoding="utf-8")
