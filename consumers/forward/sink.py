"""The sink of one vendor: at least once, under its own keys, with a receipt for each event.

In commit order:

1. `gate`     each raw event is an event that may leave, or dropped with its reason
2. `intent`   the batch's spans are committed as metadata of the group's offsets, which stay at its
              start: whoever comes after a crash knows which events may have been sent before
3. `send`     the engine, until every event is final
4. `receipts` one for each event, acknowledged by Kafka
5. `commit`   the group's offsets move to the batch's end; what was begun behind it stays announced.
              After an outage they leap behind all that came meanwhile, with a note of the replay
              that this belongs to (gap.py)

While the vendor is away `write` raises Unavailable; what is final by then stays so at the next try.
A batch that ends before that (a stop, a refusal of all) has receipts of what was accepted; it is
sent anew by whoever comes next, if anybody does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import pyarrow as pa

from consumers import metrics
from consumers.batch import Batch, Partition, Span
from consumers.errors import SinkError, Unavailable
from consumers.forward.delivery import Delivery, Final, Status, Terms
from consumers.forward.gap import Gaps
from consumers.forward.receipts import receipt
from consumers.intent import Intent
from consumers.metrics import Step, step_timer
from consumers.sinks import Known, Log
from consumers.trace.event import Event, make
from consumers.trace.gate import Dropped, Gate
from consumers.vendors import Reason
from ingest.gen.headrace.v1.receipt_pb2 import Receipt

__all__ = ["Sender", "VendorSink"]

log = logging.getLogger(__name__)


class Sender(Protocol):
    """What sends: the engine."""

    def deliver(self, delivery: Delivery) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class ReceiptLog(Protocol):
    """Where receipts go."""

    def send(self, receipts: Sequence[Receipt]) -> None: ...


class _Judged(NamedTuple):
    """A batch behind the gate; `spans` tells it from others."""

    spans: Mapping[Partition, Span]
    delivery: Delivery
    dropped: Sequence[Receipt]


class VendorSink:
    """Sends raw events to one vendor, called `name` in its receipts."""

    def __init__(
        self,
        name: str,
        gate: Gate,
        sender: Sender,
        receipts: ReceiptLog,
        kafka: Log,
        step: Step = step_timer,
        *,
        terms: Terms | None = None,
        gaps: Gaps | None = None,
    ) -> None:
        """Without `gaps` all events are sent in turn, however long the vendor was away."""
        self._terms = terms
        self._gaps = gaps
        self._name = name
        self._gate = gate
        self._sender = sender
        self._receipts = receipts
        self._log = kafka
        self._step = step
        # What another process, or this one before a rebalance, had begun: its end, by partition.
        self._begun: dict[Partition, int] = {}
        self._judged: _Judged | None = None

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """Positions are the group's; the first time, where the topic begins.

        Of one that only Kafka has forgotten all there is is left to a replay.
        """
        found = {}
        if self._gaps is not None:
            known = {**known, **self._gaps.recalled(known)}
            self._gaps.settle(known)
        for partition, k in known.items():
            committed = k.committed
            intent = Intent.read(k.note) if committed is not None else None
            self._begun.pop(partition, None)
            if intent is not None and intent.topic_id != k.topic_id:
                log.warning("the topic %s was deleted and made anew: beginning at its start",
                            partition.topic)  # fmt: skip
                intent = committed = None
            if intent is not None and partition in intent.spans:
                self._begun[partition] = intent.spans[partition].end
            found[partition] = k.earliest if committed is None else committed
        self._judged = None
        if self._gaps is not None:
            self._gaps.placed(found)
        return found

    def write(self, batch: Batch) -> None:
        """In commit order; see the module's comment."""
        if self._gaps is not None:
            self._gaps.check(batch.spans)
        topic_id = self._log.topic_id(next(iter(batch.spans)))
        if self._judged is None or self._judged.spans != batch.spans:
            with self._step("gate"):
                self._judged = self._judge(batch)  # 1
        _, delivery, dropped = self._judged
        if not delivery.done:
            with self._step("intent"):
                spans = {
                    p: Span(s.start, self._begun_up_to(p, s.end)) for p, s in batch.spans.items()
                }
                intent = Intent(topic_id, spans, time.time_ns() // 1_000_000)
                self._log.commit({p: s.start for p, s in batch.spans.items()}, intent.note())  # 2
            with self._step("send"):
                self._deliver(delivery)  # 3
        with self._step("receipts"):
            receipts = [*dropped, *(receipt(self._name, final) for final in delivery.finals)]
            if receipts:
                self._receipts.send(receipts)  # 4
        ends = {partition: span.end for partition, span in batch.spans.items()}
        with self._step("commit"):
            self._commit(ends, topic_id)  # 5
        self._judged = None
        for partition, end in ends.items():
            if self._begun.get(partition, end + 1) <= end:
                del self._begun[partition]
        self._gate.report()
        self._count(receipts)

    def stop(self) -> None:
        """See consumers.sinks.Stoppable."""
        self._sender.stop()

    def close(self) -> None:
        """Receipts of what was accepted of a batch that is not done; then close the connections."""
        if self._judged is not None and not self._judged.delivery.done:
            # What was refused is not final before all of the batch is.
            finals = self._judged.delivery.finals
            accepted = [receipt(self._name, f) for f in finals if f.status is Status.ACCEPTED]
            if accepted:
                with suppress(SinkError):
                    self._receipts.send(accepted)
        self._sender.close()

    def _begun_up_to(self, partition: Partition, end: int) -> int:
        """The end of what may have been sent: whoever was here before may have had more at once."""
        return max(end, self._begun.get(partition, end))

    # -- 3 and 5 -----------------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        if self._gaps is not None:
            self._gaps.asked()
        try:
            self._sender.deliver(delivery)
        except Unavailable:
            if self._gaps is not None:
                self._gaps.away()
            raise

    def _commit(self, ends: Mapping[Partition, int], topic_id: str) -> None:
        gaps = [] if self._gaps is None else self._gaps.after(ends, topic_id, self._begun)
        staying = {p: end for p, end in ends.items() if not any(p in gap.spans for gap in gaps)}
        if staying:
            spans = {p: Span(end, self._begun_up_to(p, end)) for p, end in staying.items()}
            behind = {p: span for p, span in spans.items() if span.start < span.end}
            self._log.commit(staying, Intent(topic_id, behind, 0).note())
        if self._gaps is not None:
            for gap in gaps:
                self._log.commit({p: span.end for p, span in gap.spans.items()}, gap.note())
                self._gaps.leapt(gap)
            self._gaps.done(ends)

    # -- 1 -----------------------------------------------------------------------------------------

    def _judge(self, batch: Batch) -> _Judged:
        repeated: list[Event] = []
        fresh: list[Event] = []
        dropped: list[Receipt] = []
        now_us = time.time_ns() // 1000
        stream = batch.stream
        for chunk in batch.chunks:
            columns = chunk.rows
            times = columns.column(stream.column("received_at")).view(pa.int64()).to_pylist()
            texts = (
                columns.column(stream.column(field)).to_pylist()
                for field in ("event_id", "content_type", "data")
            )
            partition, begun = chunk.partition, self._begun.get(chunk.partition, -1)
            rows = zip(times, *texts, chunk.offsets, strict=True)
            for time_us, event_id, content_type, data, offset in rows:
                found = self._gate.judge_row(
                    event_id, content_type, data, time_us,
                    partition.topic, partition.number, offset,
                )  # fmt: skip
                if isinstance(found, Event):
                    (repeated if offset < begun else fresh).append(found)
                else:
                    dropped.append(self._dropped(found, event_id, partition, offset, now_us))
        # A user's events are spread over the partitions: in the order in which they were taken.
        for events in (repeated, fresh):
            events.sort(key=_taken)
        return _Judged(dict(batch.spans), Delivery(repeated, fresh, self._terms), dropped)

    def _dropped(
        self, why: Dropped, event_id: str, partition: Partition, offset: int, now_us: int
    ) -> Receipt:
        event = make(
            event_id, event_id, "", 0, 0, None, None, {},
            partition.topic, partition.number, offset, (),
        )  # fmt: skip
        reason = Reason(why.reason, why.detail)  # type: ignore[arg-type] # the gate has words of its own
        return receipt(
            self._name, Final(event, Status.DROPPED, reason, 0, 0, now_us, repeated=False)
        )

    def _count(self, receipts: Sequence[Receipt]) -> None:
        counts: dict[tuple[str, str], int] = {}
        for one in receipts:
            at = (one.status, one.reason)
            counts[at] = counts.get(at, 0) + 1
        for (status, reason), count in counts.items():
            metrics.VENDOR_EVENTS.labels(self._name, status, reason).inc(count)


def _taken(event: Event) -> tuple[int, int]:
    return event.received_us, event.time_us
