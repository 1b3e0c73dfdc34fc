"""Chaos over the whole path: random schedules of faults, and an independent look at what is there.

    make chaos SCHEDULES=200 SEED=7

    clients ─► collector ─► Kafka ─► inserters ─► PostgreSQL, ClickHouse
                              └────► forwarders, replays ─► stand-in vendors

Each schedule (schedule.py) is played with processes, a topic and tables of its own on servers that
all share. Then what is broken is mended, all is given time to arrive, and checker.py compares; in a
long run `headrace audit` must find, too, that nothing is missing. One that fails leaves its
directory: the schedule, the clients' ledger, the verdict, every log; and it is played again with
fewer of its faults as long as it still fails, so that it shows what matters.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.checker import Ledger, Places, Verdict, check, is_flowing
from chaos.clients import Clients
from chaos.faults import Faults
from chaos.schedule import KINDS, Schedule, draw
from chaos.world import Installation, World

from headrace.stack import Stack

__all__ = ["Outcome", "play", "shrink", "table"]

_STEP_S = 0.05
# Between two looks at the destinations, which cost more than a look at a process.
_LOOK_S = 0.5
# Without anything that arrives, when nothing is broken any more.
_PATIENCE_S = 90.0
# And a schedule for all that is on its way, in seconds.
_LONGEST_S = 600.0
_SHRINKS = 12


@dataclass
class Outcome:
    """What became of one schedule."""

    schedule: Schedule
    # Where it was played; what is there stays.
    places: Places | None = None
    verdict: Verdict = field(default_factory=Verdict)
    faults: Counter[str] = field(default_factory=Counter)
    # Ends of processes with an exit code of their own choice; a supervisor started them again.
    gave_up: Counter[str] = field(default_factory=Counter)
    acked: int = 0
    seconds: float = 0.0
    drain_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        return self.verdict.problems

    def figures(self) -> dict[str, Any]:
        """As a line of JSON has it."""
        return {
            "seed": self.schedule.seed, "problems": self.problems, "acked": self.acked,
            "faults": self.faults, "gave_up": +self.gave_up, "figures": self.verdict.figures,
            "seconds": round(self.seconds, 1), "drain_s": round(self.drain_s, 1),
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"seed {self.schedule.seed}: {'FAILED' if self.problems else 'ok'}, "
            f"{self.faults.total()} faults, {self.acked} acknowledged, "
            f"{self.seconds:.0f} s of which {self.drain_s:.0f} s to drain"
        )


def play(
    world: World, schedule: Schedule, folder: Path, name: str, *, audit: bool = False
) -> Outcome:
    """Play it, wait until all is there, and check. What goes wrong is a problem in the outcome.

    With `audit`, `headrace audit` must agree with the checker that nothing is missing.
    """
    folder.mkdir(parents=True)
    (folder / "schedule").write_text(f"{schedule}\n")
    outcome, began = Outcome(schedule), time.monotonic()
    try:
        with Installation.open(world, schedule, folder, name) as here:
            outcome.places = here.places
            _play(here, outcome)
            if audit and not outcome.problems and (said := here.audit()):
                outcome.problems.append(said)
            for process in here.processes.values():
                outcome.gave_up[process.name] += process.gave_up
    except Exception as error:
        (folder / "error").write_text(traceback.format_exc())
        outcome.problems.append(f"{type(error).__name__}: {error}")
    outcome.seconds = time.monotonic() - began
    (folder / "verdict").write_text(json.dumps(outcome.figures(), indent=2) + "\n")
    return outcome


def _play(here: Installation, outcome: Outcome) -> None:
    ledger = here.folder / "ledger"
    clients = Clients(
        here.schedule, here.proxies["clients-collector"].port,
        f"127.0.0.1:{here.proxies['publisher-kafka'].port}", here.name, ledger,
    )  # fmt: skip
    # 1. the faults, under load, as soon as records arrive everywhere
    give_up = time.monotonic() + _PATIENCE_S
    while not is_flowing(here.places):
        here.supervise()
        assert time.monotonic() < give_up, f"nothing arrives within {_PATIENCE_S:g} s"
        time.sleep(_LOOK_S)
    faults = Faults(here)
    try:
        end = time.monotonic() + here.schedule.seconds
        while time.monotonic() < end:
            here.supervise()
            faults.step()
            time.sleep(_STEP_S)
    finally:
        # 2. all is mended; each client waits for its last answer
        faults.settle()
        clients.stop()
    outcome.faults = faults.done
    mended = time.monotonic()
    give_up = mended + _PATIENCE_S
    while clients.waiting:
        here.supervise()
        assert time.monotonic() < give_up, f"a client has no answer after {_PATIENCE_S:g} s"
        time.sleep(_STEP_S)
    told = Ledger.read(ledger)
    outcome.acked = len(told.acked)
    # 3. what is on its way arrives; a last replay, begun when the topic has all of it. It is waited
    # for as long as more arrives: PostHog's plan takes 10,000 replayed events a minute.
    replayed = False
    least = math.inf
    while True:
        here.supervise()
        outcome.verdict = check(told, here.places)
        left = sum(outcome.verdict.total(what) for what in ("lost", "without receipt"))
        if left < least:
            least = left
            give_up = min(time.monotonic() + _PATIENCE_S, mended + _LONGEST_S)
        if not replayed and not outcome.verdict.figures["kafka"]["lost"]:
            replayed = here.replay()
        elif not outcome.problems:
            break
        for_good = outcome.verdict.total("doubled") + outcome.verdict.total("reordered")
        if for_good or time.monotonic() > give_up:
            break
        time.sleep(_LOOK_S)
    outcome.drain_s = time.monotonic() - mended
    # 4. the end of all processes, and the verdict
    here.stop()
    outcome.verdict = check(told, here.places)


def shrink(again: Callable[[Schedule], Outcome], failed: Outcome, most: int = _SHRINKS) -> Outcome:
    """The failure with the fewest faults that so many plays find: halves go, then single ones."""
    best, size = failed, len(failed.schedule.faults) // 2
    while size:
        numbers = [fault.number for fault in best.schedule.faults]
        for start in range(0, len(numbers), size):
            if not most:
                return best
            most -= 1
            outcome = again(best.schedule.only(numbers[:start] + numbers[start + size :]))
            if outcome.problems:
                best = outcome
                break
        else:
            size //= 2
    return best


def table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """The sums over many, as docs/reliability.md has them."""
    faults: Counter[str] = sum((Counter(o["faults"]) for o in outcomes), Counter())

    def total(what: str) -> int:
        return sum(place.get(what, 0) for o in outcomes for place in o["figures"].values())

    rows = [
        ("schedules", len(outcomes)),
        ("schedules that failed", sum(bool(o["problems"]) for o in outcomes)),
        ("faults", faults.total()),
        *((f"- {kind}", faults[kind]) for kind in KINDS),
        ("records acknowledged", sum(o["acked"] for o in outcomes)),
        *((what, total(what)) for what in ("lost", "doubled", "invented", "reordered")),
        ("processes that ended by themselves", sum(sum(o["gave_up"].values()) for o in outcomes)),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {n:,} |" for what, n in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the first; the next ones follow it")
    parser.add_argument("--faults", type=int, default=14, help="in each schedule")
    parser.add_argument("--only", default="", help="only these faults of it: 0,3,7")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin none after so long")
    parser.add_argument("--logs", type=Path, default=Path("chaos-logs"),
                        help="of what failed; what became of all is in its file `outcomes`, which "
                        "is added to, and the table is of that")  # fmt: skip
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    outcomes, began, failed = args.logs / "outcomes", time.monotonic(), False
    with (
        tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder,
        Stack(Path(folder) / "state") as stack,
        World.open(stack, Path(folder)) as world,
    ):
        numbers = itertools.count()

        def played(schedule: Schedule) -> Outcome:
            name = f"seed_{schedule.seed}_{os.getpid()}_{next(numbers)}"
            outcome = play(world, schedule, args.logs / name, name, audit=True)
            # Why a process gave up is only in its log.
            if not outcome.problems and not +outcome.gave_up:
                shutil.rmtree(args.logs / name)
            return outcome

        for seed in range(args.seed, args.seed + args.schedules):
            if time.monotonic() - began > args.minutes * 60:
                break
            schedule = draw(seed, faults=args.faults)
            if args.only:
                schedule = schedule.only(map(int, args.only.split(",")))
            outcome = played(schedule)
            with outcomes.open("a") as file:
                file.write(json.dumps(outcome.figures()) + "\n")
            print(outcome, flush=True)
            if outcome.problems:
                failed = True
                print(schedule, *outcome.problems, sep="\n", flush=True)
                if not args.only:
                    least = shrink(played, outcome)
                    print(f"with fewer faults: {least.schedule}", *least.problems, sep="\n")
    print(table([json.loads(line) for line in outcomes.read_text().splitlines()]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
