"""`python -m chaos`: put systems to the proof, print what became of them; 1 if ours failed."""

import argparse
import asyncio
from collections.abc import Iterable
from pathlib import Path

from benchmarks import page

from chaos.contenders import CONTENDERS
from chaos.faults import SCENARIOS, Scenario
from chaos.log import Event
from chaos.report import Outcome, conditions, judged, kinds_table, scenario_table
from chaos.stage import Contender, play
from redis_servers import VALKEY, builds

SECONDS = 40.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="which faults come when")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long they go on")
    parser.add_argument("--system", action="append", help="one whose name begins so; several times")
    parser.add_argument("--scenario", action="append", choices=[each.name for each in SCENARIOS])
    parser.add_argument("--server", default=VALKEY, choices=builds(), help="over which server")
    parser.add_argument("--logs", type=Path, help="a folder to keep the logs in")
    parser.add_argument("--page", type=Path, help="a page to put the report into, between marks")
    given = parser.parse_args()
    names = tuple(name.lower() for name in given.system or [""])
    given.contenders = [each for each in CONTENDERS if each.name.lower().startswith(names)]
    if not given.contenders:
        parser.error(f"there are: {', '.join(each.name for each in CONTENDERS)}")
    given.scenarios = [each for each in SCENARIOS if each.name in (given.scenario or [each.name])]
    return given


async def tried(contender: Contender, scenario: Scenario, given: argparse.Namespace) -> Outcome:
    events = await play(contender, scenario, given.seconds, given.seed, given.server)
    if given.logs:
        keep(given.logs / f"{contender.module}-{scenario.name}.log", events)
    return judged(contender, scenario, events)


def keep(path: Path, events: Iterable[Event]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{event.line()}\n" for event in sorted(events)))


async def all_tried(given: argparse.Namespace) -> list[list[Outcome]]:
    """Try them: ours in all scenarios at once, then the others in one scenario at a time.

    So there is next to nothing to do for the machine.
    """
    ours = [each for each in given.contenders if each.is_ours]
    others = [each for each in given.contenders if not each.is_ours]
    batches = [[(each, scenario) for scenario in given.scenarios for each in ours]]
    batches += [[(each, scenario) for each in others] for scenario in given.scenarios]
    done = []
    for batch in batches:
        done += await asyncio.gather(*(tried(*pair, given) for pair in batch))
    return [
        [outcome for outcome in done if outcome.scenario is scenario]
        for scenario in given.scenarios
    ]


def main() -> None:
    given = arguments()
    with page.written(given.page):
        tries = asyncio.run(all_tried(given))
        ours = [each for outcomes in tries for each in outcomes if each.contender.is_ours]
        print(f"\n## A run: seed {given.seed}, faults for {given.seconds:g} s\n")
        print(f"{conditions(given.contenders, given.server)}\n")
        for outcomes in tries:
            print(scenario_table(outcomes))
        for outcome in ours:
            print(kinds_table(outcome))
        for outcome in ours:
            print("".join(f"{failure}\n" for failure in outcome.failures()), end="")
    raise SystemExit(any(outcome.has_failed for outcome in ours))


main()
