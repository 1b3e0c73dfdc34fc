"""What the ledger costs at the edge: where records are accepted, and in the relay that sends them.

Each with it and without it, in turn. The difference that is asked for, 2 %, is less than two runs of
the same thing differ by. So there are many turns, a round of them with two collectors that are up
together, half a second each, and of the relay with the same backlog:

    single      one event a request, 64 connections        against  a collector that makes no checksum of
                                                                    a value alone, in a frame's own only
    batches     100 events a request, 16 connections       against  the same
    relay       transactions with the ledger's entry, and  against  four others of the same backlog, with
                the sums of their records; four at once             nothing added up and no entry

Of four transactions the first is not counted: it was read while the one before was sent.
"""  # noqa: E501

from __future__ import annotations

import inspect
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from _measure import HERE, ROUNDS, Row, compare, in_turn, report, stack
from edge import BATCH_CONNECTIONS, COLLECT, CONNECTIONS, EACH, collector, load
from spool import TOPIC, TRANSACTION, bare_transactions, filled, records, relay

from ingest.spool import batch, frames, store
from ingest.spool.entry import EDGE
from ingest.spool.relay import Relay
from ingest.spool.transactions import Transactions
from ingest.topics import ensure

TURNS = 2 * ROUNDS
PAIRS = 2
# How fast a collector is changes from one half second to the next by an eighth, as its threads and
# the load find the two cores. So the two sides change as often.
SHORT_TURNS = 16
SHORT_S, SHORT_WARM_S = 0.5, 0.2
SENT = 4_000_000
BACKLOGS = 3
AT_ONCE = 4
AT_FIRST = 300_000
# The collector's workers are forked, and what their parent has replaced is replaced in them.
WITHOUT = (
    f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    f"import edge_ledger; edge_ledger.accept_without(); {COLLECT}"
)


def accept_without() -> None:
    """From here on frames have one checksum, over everything, and none of the value alone."""
    # To begin the one with the other is slower than to join the two.
    changes = {"crc32(value)": "0", "crc32(head)": "crc32(head + value)"}
    store.front = _but(frames, frames.front, changes)  # type: ignore[attr-defined]


def _but(module: ModuleType, function: Callable[..., Any], changes: Mapping[str, str]) -> Any:
    """A function of that module with some of its text replaced."""
    text = textwrap.dedent(inspect.getsource(function))
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    names: dict[str, Any] = {}
    exec(text, vars(module), names)
    return names[function.__name__]


class Pairs:
    """Two collectors, with the ledger and without it, new each time; so many such pairs a round."""

    def __init__(self, connections: int, each: int = 1) -> None:
        self.rates: dict[bool, float] = {}
        self._connections = connections
        self._each = each

    def run(self) -> float:
        """Load one, twice the other, and the one twice again; events a second with the ledger."""
        self.rates = {True: 0.0, False: 0.0}
        for _ in range(PAIRS):
            with collector() as one, collector(program=WITHOUT) as other:
                ports = {True: one, False: other}
                for turn in range(2 * SHORT_TURNS):
                    which = turn % 4 in (0, 3)
                    took = load(
                        ports[which], connections=self._connections, each=self._each,
                        seconds=SHORT_S, warm_s=SHORT_WARM_S,
                    )  # fmt: skip
                    # Of runs that are as long: so many events in so much time.
                    self.rates[which] += took["events_per_s"] / (SHORT_TURNS * PAIRS)
        return self.rates[True]


class Turns:
    """A relay whose transactions are with the ledger and without it, four by four."""

    def __init__(self) -> None:
        self.rates: dict[bool, float] = {}
        self._with = True
        adds = batch.Batch.add
        self._adds = {True: adds, False: _but(batch, adds, {"hashed += summed": "pass"})}

    def run(self, kafka: str, folder: Path) -> float:
        """Send what is in the folder, thrice; records a second with the ledger."""
        sent, took = {True: 0, False: 0}, {True: 0.0, False: 0.0}
        number = 0
        step, queue = Relay.step, Transactions._queue

        def stepped(self_: Relay) -> bool:
            nonlocal number
            turn, place = divmod(number, AT_ONCE)
            # With, without, without, with: a drift within a run is on both sides.
            self._with = turn % 4 in (0, 3)
            batch.Batch.add = self._adds[self._with]  # type: ignore[method-assign]
            position, begun = self_.position, time.perf_counter()
            moved = step(self_)
            ended = time.perf_counter()
            # Only whole ones: at first they are small, and the last is what is left.
            if moved and self_.position - position == TRANSACTION:
                number += 1
                if place:
                    sent[self._with] += TRANSACTION
                    took[self._with] += ended - begun
            return moved

        def queued(door: Transactions, producer: Any, topic: str, rows: Any) -> None:
            if self._with or topic != EDGE:
                queue(door, producer, topic, rows)

        with (
            mock.patch.object(Relay, "step", stepped),
            mock.patch.object(Transactions, "_queue", queued),
            mock.patch.object(batch.Batch, "add", batch.Batch.add),
        ):
            for _ in range(BACKLOGS):
                relay(kafka, folder, SENT)
        self.rates = {which: sent[which] / took[which] for which in took}
        return self.rates[True]


def main() -> None:
    """Measure, print, write."""
    turns = Turns()
    single, batches = Pairs(CONNECTIONS), Pairs(BATCH_CONNECTIONS, EACH)
    with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        ensure({"bootstrap.servers": ends.kafka}, {TOPIC: 4, "headrace_spool": 1})
        backlog = filled(Path(folder) / "filled", SENT)
        # A broker that has just started gets three times as fast while its code is compiled.
        for _ in range(3):
            bare_transactions(ends.kafka, records(AT_FIRST, ids=False))
        samples = in_turn(
            {
                "single": single.run,
                "single without": lambda: single.rates[False],
                "batches": batches.run,
                "batches without": lambda: batches.rates[False],
                "relay": lambda: turns.run(ends.kafka, backlog),
                "relay without": lambda: turns.rates[False],
            },
            TURNS,
        )
    rows: list[Row] = [
        compare(f"{what}, with the ledger", samples, name, f"{name} without", target=0.98,
                unit=f"{unit}/s")
        for name, what, unit in (
            ("single", "single events, 64 connections", "events"),
            ("batches", "batches of 100, 16 connections", "events"),
            ("relay", "relay to Kafka", "records"),
        )
    ]  # fmt: skip
    report("edge_ledger", rows)


if __name__ == "__main__":
    main()
