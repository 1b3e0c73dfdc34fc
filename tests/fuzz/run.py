"""The fuzzer: inputs until there are enough, each one made of the seed and its number alone.

    cd tests
    python -m fuzz.run --inputs 1000000 --seed 7
    python -m fuzz.run --seed 7 --only 123456          # one failure again
    python -m fuzz.run --wires 20000 --seed 7          # over sockets, to a real collector

A failure prints its seed, its number and the input, and ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import logging
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzz.bodies import Bodies
from fuzz.calls import Call, make
from fuzz.frames import Conversation, Socket, converse
from fuzz.target import SMALL, STREAMS, Failure, Target, Watch

__all__ = ["Report", "fuzz", "resident_bytes"]

# In a row, of one application.
_ROUND = 2_000
_SOCKET_SHARE = 0.15
# Of a processor, for one step: a small input that takes longer takes too long for its size.
_CPU_S = 1.0
# By the clock, where a machine is shared: then it hangs.
_HANG_S = 60
# What may come of parsers' and allocators' own pools.
_GROWTH_BYTES = 48 * 1024**2


class Report:
    """What was seen."""

    def __init__(self) -> None:
        self.inputs = 0
        self.statuses: collections.Counter[int] = collections.Counter()
        self.slowest_s = 0.0
        # Behind the first tenth, and at the end.
        self.resident = (0, 0)

    def __str__(self) -> str:
        statuses = ", ".join(f"{s}: {n:,}" for s, n in sorted(self.statuses.items()))
        first, last = (n / 1e6 for n in self.resident)
        return (
            f"{self.inputs:,} inputs; {statuses}; slowest {self.slowest_s * 1000:.0f} ms; memory "
            f"{first:.0f} MB, {last:.0f} MB at the end"
        )


def resident_bytes() -> int:
    """The memory of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


def fuzz(inputs: int, seed: int, only: int | None = None) -> Report:
    """So many inputs, or step `only` of them. Raises Failure."""
    report = Report()
    watch = Watch()
    root = logging.getLogger()
    root.addHandler(watch)
    before = signal.signal(signal.SIGALRM, _hangs)
    try:
        step = 0 if only is None else only
        while report.inputs < inputs:
            step = asyncio.run(_round(report, watch, inputs, seed, step, only))
            gc.collect()
            if only is not None:
                break
            if not report.resident[0] and report.inputs >= inputs / 10:
                report.resident = (resident_bytes(), 0)
        report.resident = (report.resident[0], resident_bytes())
        if only is None and report.resident[1] - report.resident[0] > _GROWTH_BYTES:
            raise Failure(f"memory grows: {report}")
        return report
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        root.removeHandler(watch)


async def _round(
    report: Report, watch: Watch, inputs: int, seed: int, step: int, only: int | None
) -> int:
    """A new application and some steps; the number of the next step."""
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder), **SMALL)
        socket = Socket(target)
        streams = [(name, stream.descriptor) for name, stream in STREAMS.items()]
        until = min(inputs, report.inputs + _ROUND)
        while report.inputs < until:
            rng = random.Random(seed << 40 | step)
            bodies = Bodies(rng, streams)
            what: Any = _plan(rng, bodies, target)
            spool = rng.choices(("", "full", "damaged"), (40, 1, 1))[0]
            target.full(spool)
            signal.setitimer(signal.ITIMER_REAL, _HANG_S)
            begun = time.process_time()
            try:
                if isinstance(what, Conversation):
                    await socket.talk(what)
                    report.inputs += 1
                else:
                    report.statuses.update(await target.together(what))
                    report.inputs += len(what)
                took = time.process_time() - begun
                report.slowest_s = max(report.slowest_s, took)
                if took > _CPU_S:
                    raise Failure(f"it took {took:.1f} s")
                said = [line for line in watch.said if not (spool and "has to wait" in line)]
                if said:
                    raise Failure(f"it logged: {said}")
                watch.said.clear()
            except Exception as error:
                again = f"cd tests; python -m fuzz.run --seed {seed} --only {step}"
                raise Failure(
                    f"{type(error).__name__}: {error}\nspool {spool or 'good'}; again: {again}\n"
                    f"{_shown(what)}"
                ) from error
            step += 1
            if only is not None:
                break
    return step


def _plan(rng: random.Random, bodies: Bodies, target: Target) -> Conversation | list[Call]:
    if rng.random() < _SOCKET_SHARE:
        return converse(rng, bodies)
    many = rng.choice((1, 1, 1, 2, 6))
    return [make(rng, bodies, target.paths) for _ in range(many)]


def _shown(what: Any) -> str:
    text = "\n".join(map(repr, what)) if isinstance(what, list) else repr(what)
    return text if len(text) < 20_000 else f"{text[:20_000]}… ({len(text):,} characters)"


def _hangs(*_: object) -> None:
    raise Failure(f"no end after {_HANG_S} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=0, help="how many, without sockets")
    parser.add_argument("--wires", type=int, default=0, help="how many, over sockets")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9)
    parser.add_argument("--only", type=int, help="this step alone")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    try:
        if given.only is not None or given.inputs:
            begun = time.monotonic()
            report = fuzz(max(1, given.inputs), given.seed, given.only)
            print(f"{report}; {time.monotonic() - begun:.0f} s")
        if given.wires:
            from fuzz.wires import send_all

            print(send_all(given.wires, given.seed))
    except Failure as failure:
        print(failure)
        sys.exit(1)


if __name__ == "__main__":
    main()
