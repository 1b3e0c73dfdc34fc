"""What a replay to a vendor would do, without doing it: the sink itself, with nobody behind it.

Records are read past the group, and the vendor's requests are made and thrown away. The vendor's
own answer is all that is not known: what it would reject counts as sent.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
from confluent_kafka import Message

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.bounds import read
from consumers.client import Settings
from consumers.decode import Decoder
from consumers.forward.delivery import Delivery, Status, Terms
from consumers.forward.lines import Unit, users_of
from consumers.forward.sink import VendorSink
from consumers.intent import Intent
from consumers.replay.job import Job
from consumers.replay.missing import Accepted, left_to_outages, without
from consumers.replay.select import Selection, Wanted, not_in
from consumers.replay.table import RawTable, Reader
from consumers.replay.table_source import message
from consumers.sinks import Known, Notes
from consumers.trace.allowlist import TraceSettings
from consumers.trace.gate import Gate
from consumers.vendors import Sending, Vendor
from consumers.vendors.exported import Exported
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import Stream
from ingest.units import HOUR_US

__all__ = ["Figures", "Hour", "KafkaRecords", "Records", "TableRecords", "dry_run"]


@dataclass(slots=True)
class Hour:
    """Events whose time is within one hour."""

    events: int = 0
    # By the receipts; sent again all the same, unless only what is missing is meant.
    accepted: int = 0
    sent: int = 0
    # Not sent: the receipt's status and reason, and how many.
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Figures:
    """Hours by their beginning (microseconds since 1970); requests if each batch were full."""

    hours: dict[int, Hour] = field(default_factory=dict)
    requests: int = 0
    # All that was read, and what of it can't be decoded.
    records: int = 0
    undecodable: int = 0

    def seconds(self, vendor: Vendor, rate: float | None) -> float:
        """How long the vendor's own rate, or that of the job, makes it last; 0 without one."""
        sent = sum(hour.sent for hour in self.hours.values())
        found = [
            sent * r.seconds / r.events
            for r in vendor.limits(backfill=True).rates
            if r.scope == "project"
        ]
        return max([*found, self.records / rate if rate else 0.0])


class Records(Protocol):
    """What a leg of a job reads, partition by partition as it comes, and what the vendor has of it.

    `lacks` is asked of what was read last; `others` see missing.py.
    """

    others: Mapping[str, Mapping[Partition, Span]]

    def __iter__(self) -> Iterator[tuple[Partition, Sequence[Message]]]: ...

    def lacks(self, partition: Partition, offset: int, event_id: str) -> bool:
        """Whether there is no accepted receipt for it."""
        ...


@dataclass(slots=True)
class KafkaRecords:
    """The ranges of a job. Raises Unavailable, Systemic."""

    kafka: Settings
    topic: str
    job: Job
    accepted: Accepted
    others: Mapping[str, Mapping[Partition, Span]] = field(init=False)

    def __post_init__(self) -> None:
        self.others = (
            left_to_outages(self.kafka, self.topic, self.job) if self.job.only_missing else {}
        )

    def __iter__(self) -> Iterator[tuple[Partition, Sequence[Message]]]:
        return read(self.kafka, self.topic, self.job.spans)

    def lacks(self, partition: Partition, offset: int, event_id: str) -> bool:
        return self.accepted.lacks(partition, offset, event_id)


class TableRecords:
    """The rows of a job's first leg, see legs.py. Raises Unavailable, Systemic."""

    def __init__(
        self, table: RawTable, topic: str, job: Job, *, with_receipts: bool = True
    ) -> None:
        self._table = table
        self._with_receipts = with_receipts
        self._topic = topic
        self._job = job
        # Ids of the last two pages: the one before may not be judged yet.
        self._accepted: deque[set[str]] = deque(maxlen=2)
        self.others: Mapping[str, Mapping[Partition, Span]] = {}

    def __iter__(self) -> Iterator[tuple[Partition, Sequence[Message]]]:
        reader = Reader(self._table, self._job.end_us)
        reader.seek(self._job.spans[0].start)
        while rows := reader.next():
            if self._with_receipts:
                ids = [row.event.event_id for row in rows]
                self._accepted.append(self._table.accepted(self._job.to, ids))
            yield Partition(self._topic, 0), [message(self._topic, row) for row in rows]

    def lacks(self, _partition: Partition, _offset: int, event_id: str) -> bool:
        return not any(event_id in ids for ids in self._accepted)


def dry_run(
    stream: Stream,
    trace: TraceSettings,
    vendor: Vendor,
    job: Job,
    records: Records,
    most: int,
    figures: Figures,
    exported: Exported | None = None,
) -> None:
    """Add to the figures what one leg of a job would do.

    `most` is how many events are judged together; `exported` is what the vendor holds by its own
    export, where that says what is missing. Raises what `records` does.
    """
    _Dry(stream, trace, vendor, job, records, figures, exported).run(most)


class _Dry:
    """The sink's sender, its receipts and its Kafka, all in one."""

    def __init__(
        self,
        stream: Stream,
        trace: TraceSettings,
        vendor: Vendor,
        job: Job,
        records: Records,
        figures: Figures,
        exported: Exported | None,
    ) -> None:
        self._stream = stream
        self._vendor = vendor
        self._job = job
        self._records = records
        self.figures = figures
        self._decoder = Decoder(stream)
        self._meant = Selection(job.begin_us, job.end_us, job.event)
        wanted: Wanted | None = records.lacks if job.only_missing else None
        if exported is not None:
            wanted = not_in(exported)
        if wanted is not None:
            wanted = without(wanted, records.others)
        self._missing = Selection(job.begin_us, job.end_us, None, wanted)
        self._spans = {Partition(stream.topic, n): s for n, s in job.spans.items()}
        terms = Terms(
            backfill=True, allow_redate=job.allow_redate, allow_duplicates=job.allow_duplicates
        )
        self._sink = VendorSink(job.to, Gate(trace, job.to), self, self, self, terms=terms)
        self._sink.resume(
            {
                p: Known(job.topic_id, 0, s.end, s.start, Intent(job.topic_id, {p: s}, 0).note())
                for p, s in self._spans.items()
            }
        )
        self._hour_of: dict[tuple[int, int], Hour] = {}

    def run(self, most: int) -> None:
        """All of it."""
        chunks: list[Chunk] = []
        for partition, run in self._records:
            self.figures.records += len(run)
            rows, bad = self._decoder.decode([m.value() for m in run])
            self.figures.undecodable += len(bad)
            offsets = [int(m.offset() or 0) for i, m in enumerate(run) if i not in bad]
            if offsets:
                chunks.append(Chunk(partition, offsets, rows))
            if sum(chunk.rows.num_rows for chunk in chunks) >= most:
                self._take(chunks)
                chunks = []
        self._take(chunks)
        self.figures.hours = dict(sorted(self.figures.hours.items()))

    def _take(self, chunks: Sequence[Chunk]) -> None:
        # Below the ends of the ranges, or their events would be fresh ones from there on.
        spans = {c.partition: Span(c.offsets[0], c.offsets[0]) for c in chunks}
        if not spans:
            return
        batch = self._meant.of(Batch(self._stream, spans, tuple(chunks)))
        self._hour_of = {}
        time_at = self._stream.column(self._stream.time)
        for chunk in batch.chunks:
            times = chunk.rows.column(time_at).view(pa.int64()).to_pylist()
            ids = chunk.rows.column(self._stream.column("event_id")).to_pylist()
            for at, event_id, offset in zip(times, ids, chunk.offsets, strict=True):
                begin = at - at % HOUR_US
                hour = self.figures.hours.setdefault(begin, Hour())
                hour.events += 1
                hour.accepted += not self._records.lacks(chunk.partition, offset, event_id)
                self._hour_of[chunk.partition.number, offset] = hour
        self._sink.write(self._missing.of(batch))

    # -- what the sink sends to --------------------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Make the requests; what is in them counts as accepted."""
        delivery.begun = True
        terms, now_us = delivery.terms, time.time_ns() // 1000
        for events, repeated in ((delivery.repeated, True), (delivery.fresh, False)):
            unit = Unit(events, users_of(self._vendor, ()), repeated=repeated)
            sending = Sending(
                now_us, backfill=terms.backfill, repeated=repeated,
                allow_redate=terms.allow_redate, allow_duplicates=terms.allow_duplicates,
            )  # fmt: skip
            requests, refused = self._vendor.requests(events, sending)
            for event, reason in refused:
                delivery.refuse(unit, event, reason, now_us)
            for request in requests:
                delivery.accept(unit, request.events, now_us)
            self.figures.requests += len(requests)

    def send(self, receipts: Sequence[Receipt]) -> None:
        """Count them."""
        for one in receipts:
            hour = self._hour_of[one.source_partition, one.source_offset]
            if one.status == Status.ACCEPTED:
                hour.sent += 1
            else:
                hour.refused[f"{one.status}: {one.reason}"] += 1

    def stop(self) -> None: ...

    def close(self) -> None: ...

    # -- its Kafka: nothing is committed -----------------------------------------------------------

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None: ...

    def report(self, positions: Mapping[Partition, int]) -> None: ...

    def read(self, partition: Partition, span: Span) -> Sequence[Message]:
        raise NotImplementedError("a vendor's sink reads nothing again")

    def topic_id(self, partition: Partition) -> str:
        return self._job.topic_id
