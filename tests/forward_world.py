"""Kafka and a vendor in memory, around one sink of a vendor; and a process that dies at a step.

world = World()
world.sink(crashing("receipts", after=False)).write(batch)      # raises Crash
world.sink().write(batch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from consumers.batch import Partition, Span
from consumers.errors import Unavailable
from consumers.forward.delivery import Delivery, Final, Status
from consumers.forward.lines import Lines
from consumers.forward.sink import VendorSink
from consumers.sinks import Known, Notes
from consumers.trace.allowlist import from_table
from consumers.trace.gate import Gate
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN

__all__ = ["AT", "STREAM", "TRACE", "Crash", "World", "crashing"]

STREAM = BUILT_IN["raw_events"]
AT = Partition("raw_events", 0)
TRACE = from_table({"events": {"seen": {}}}, ["heap"])


class Crash(Exception):
    """The process dies here."""


class World:
    """Kafka and the vendor, which outlive a sink."""

    def __init__(self) -> None:
        self.committed: dict[Partition, tuple[int, str]] = {}
        self.receipts: list[Receipt] = []
        # Each delivery's events: (event_id, repeated).
        self.sent: list[tuple[str, bool]] = []
        self.away = False
        self.id = "topic-1"

    # consumers.sinks.Log

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        assert isinstance(notes, str)
        self.committed |= {p: (at, notes) for p, at in positions.items()}

    def report(self, positions: Mapping[Partition, int]) -> None: ...

    def read(self, partition: Partition, span: Span) -> Sequence[Any]:
        raise AssertionError

    def topic_id(self, partition: Partition) -> str:
        return self.id

    # the engine

    def deliver(self, delivery: Delivery) -> None:
        if self.away:
            raise Unavailable("away")
        delivery.begun = True
        for events, repeated in ((delivery.repeated, True), (delivery.fresh, False)):
            self.sent += [(e.event_id, repeated) for e in events]
            delivery.finals += [Final(e, Status.ACCEPTED, None, 1, 5, 6, repeated) for e in events]
        delivery.lines = Lines()

    def stop(self) -> None: ...

    def close(self) -> None: ...

    # the receipts' topic

    def send(self, receipts: Sequence[Receipt]) -> None:
        self.receipts += receipts

    def known(self) -> dict[Partition, Known]:
        at, note = self.committed.get(AT, (None, ""))
        return {AT: Known(self.id, 0, 100, at, note)}

    def sink(self, step: Callable[[str], Any] | None = None) -> VendorSink:
        more = {} if step is None else {"step": step}
        sink = VendorSink("heap", Gate(TRACE, "heap"), self, self, self, **more)
        sink.resume(self.known())
        return sink


def crashing(at: str, *, after: bool) -> Callable[[str], Any]:
    @contextmanager
    def step(name: str) -> Iterator[None]:
        if name == at and not after:
            raise Crash
        yield
        if name == at:
            raise Crash

    return step
