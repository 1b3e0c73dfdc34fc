"""The account of a vendor, from the receipts: what became of each event, held against `raw_events`.

Receipts are its ledger. They are at least once, and a replay adds others, so each event's are put together:
accepted once is accepted, otherwise the last one counts. Accepted has landed; what [trace] does not let leave
is dropped; rejected and expired are its dead letters. An event without a receipt in the range of a replay that
is still open is in flight.

A few bytes are kept for each event that Kafka still has, whatever the number of receipts.
"""  # noqa: E501

from __future__ import annotations

import zlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.client import Settings
from consumers.forward.delivery import Status
from consumers.forward.gap import Gap
from consumers.forward.live import group_of
from consumers.ledger.account import Account, known_of
from consumers.ledger.finding import Finding
from consumers.ledger.scan import marks, scan
from consumers.ledger.tally import HOUR_US, NOTHING, Bucket, Entry, Sum, entries_of
from consumers.replay.jobs import Job
from consumers.trace.read import read_row
from ingest.streams import Stream

__all__ = ["Acknowledged", "Receipted"]

_NONE, _DROPPED, _DEAD, _ACCEPTED, _WAITING = range(5)
_MEANING = {
    Status.ACCEPTED.value: _ACCEPTED,
    Status.DROPPED.value: _DROPPED,
    Status.REJECTED.value: _DEAD,
    Status.EXPIRED.value: _DEAD,
}


class Acknowledged(NamedTuple):
    """An event that a vendor has accepted: when the collector took it, and when it happened."""

    taken_us: int
    happened_us: int
    event_id: str
    event: str
    place: tuple[Partition, int]


@dataclass(slots=True)
class _Range:
    """What is known of the events of one partition, by offset from `first` on."""

    first: int
    status: bytearray
    # Of the event's id: a receipt of another topic of this name does not count.
    checksum: array[int]

    @classmethod
    def of(cls, span: Span) -> _Range:
        size = span.end - span.start
        return cls(span.start, bytearray(size), array("I", bytes(4 * size)))

    def note(self, offset: int, status: int, event_id: str) -> None:
        at = offset - self.first
        if 0 <= at < len(self.status) and self.status[at] != _ACCEPTED:
            self.status[at] = status
            self.checksum[at] = zlib.crc32(event_id.encode())

    def find(self, offset: int, event_id: str) -> int:
        at = offset - self.first
        known = self.checksum[at] == zlib.crc32(event_id.encode())
        return self.status[at] if known else _NONE


@dataclass(slots=True)
class Receipted:
    """The events of one vendor below its group's positions. Reads all receipts when it is made."""

    kafka: Settings
    stream: Stream
    name: str
    positions: Mapping[Partition, int]
    # Ranges of replays to this vendor that are not over.
    waiting: Sequence[Mapping[Partition, Span]]
    _spans: dict[Partition, Span] = field(default_factory=dict)
    _ranges: dict[Partition, _Range] = field(default_factory=dict)

    @classmethod
    def read(
        cls, kafka: Settings, streams: Mapping[str, Stream], name: str, topic_id: str,
        jobs: Collection[Job],
    ) -> Receipted | None:  # fmt: skip
        """None where nothing was forwarded yet. Raises Unavailable, Systemic."""
        stream = streams["raw_events"]
        known = known_of(kafka, group_of(name), stream, topic_id)
        at = {p: k.committed for p, k in known.items() if k.committed is not None}
        if not at:
            return None
        left = {
            job.id: {Partition(stream.topic, n): span for n, span in job.spans.items()}
            for job in jobs
            if job.to == name and job.topic_id == topic_id
        }
        over = {job.id for job in jobs if job.state.over}
        # A forwarder that leapt over an outage says so before the replay of it is noted.
        gaps = filter(None, (Gap.read(k.note) for k in known.values()))
        left = {gap.job_id: dict(gap.spans) for gap in gaps} | left
        found = cls(kafka, stream, name, at, [s for id_, s in left.items() if id_ not in over])
        for partition, (low, _) in marks(kafka, stream.topic).items():
            span = Span(low, max(low, at.get(partition, low)))
            found._spans[partition] = span
            found._ranges[partition] = _Range.of(span)
        receipts = streams["receipts"]
        for batch, _, _ in scan(kafka, receipts, marks(kafka, receipts.topic)):
            for chunk in batch.chunks:
                found._take(chunk.rows)
        return found

    def _take(self, rows: pa.RecordBatch) -> None:
        mine = pc.and_(
            pc.equal(rows.column("vendor"), self.name),
            pc.equal(rows.column("source_topic"), self.stream.topic),
        )
        names = ("source_partition", "source_offset", "status", "event_id")
        columns = (rows.column(name).filter(mine).to_pylist() for name in names)
        for number, offset, status, event_id in zip(*columns, strict=True):
            known = self._ranges.get(Partition(self.stream.topic, number))
            if known is not None:
                known.note(offset, _MEANING.get(status, _NONE), event_id)

    def account(self) -> Account:
        """What became of the events of each hour."""
        entries: dict[Bucket, Entry] = {}
        waiting: dict[Bucket, Sum] = {}
        since_us: dict[Partition, int] = {}
        for batch, first_ms, _ in scan(self.kafka, self.stream, self._spans):
            for partition in batch.spans:
                begun = self._spans[partition].start
                since_us.setdefault(partition, first_ms * 1000 if begun and first_ms >= 0 else 0)
            for bucket, entry in self._entries(batch):
                entries[bucket] = entries.get(bucket, Entry()).plus(entry)
            for bucket, entry in entries_of(self._only(batch, _WAITING)).items():
                waiting[bucket] = waiting.get(bucket, NOTHING).plus(entry.rows)
        return Account(self.positions, entries, waiting, since_us)

    def acknowledged(self, begin_us: int, end_us: int) -> Iterator[Acknowledged]:
        """Events of [begin_us, end_us) that the vendor has accepted, by its receipts."""
        fields = ("event_id", "content_type", "data")
        time, *others = (self.stream.column(f) for f in (self.stream.time, *fields))
        for batch, _, _ in scan(self.kafka, self.stream, self._spans):
            for chunk in self._only(batch, _ACCEPTED).chunks:
                times = chunk.rows.column(time).view("int64").to_pylist()
                texts = (chunk.rows.column(name).to_pylist() for name in others)
                for at_us, event_id, kind, data, offset in zip(
                    times, *texts, chunk.offsets, strict=True
                ):
                    if begin_us <= at_us < end_us:
                        name, _, _, happened_us, _ = read_row(kind, data, at_us)
                        place = (chunk.partition, offset)
                        yield Acknowledged(at_us, happened_us, event_id, name or "", place)

    def missing(self, begin_us: int, end_us: int) -> Iterator[Finding]:
        """Events of [begin_us, end_us) without a receipt, which no open replay is about to send."""
        time, event_id = self.stream.column(self.stream.time), self.stream.column("event_id")
        for batch, _, _ in scan(self.kafka, self.stream, self._spans):
            for chunk in self._only(batch, _NONE).chunks:
                times = chunk.rows.column(time).view("int64").to_pylist()
                names = chunk.rows.column(event_id).to_pylist()
                for at_us, name, offset in zip(times, names, chunk.offsets, strict=True):
                    if begin_us <= at_us < end_us:
                        place = (chunk.partition, offset)
                        yield Finding(at_us // HOUR_US, -1, f"{event_id} {name}", place)

    def _entries(self, batch: Batch) -> Iterator[tuple[Bucket, Entry]]:
        """Those that are done with; undecodable records went to the dead letters."""
        for bucket, entry in entries_of(Batch(self.stream, batch.spans, (), batch.dead)).items():
            yield bucket, entry
        for bucket, entry in entries_of(self._only(batch, _ACCEPTED)).items():
            yield bucket, entry
        for bucket, entry in entries_of(self._only(batch, _DROPPED)).items():
            yield bucket, Entry(entry.rows, dropped=entry.rows.records)
        for bucket, entry in entries_of(self._only(batch, _DEAD)).items():
            yield bucket, Entry(dead=entry.rows)

    def _only(self, batch: Batch, status: int) -> Batch:
        """The events that have come to this."""
        column = self.stream.column("event_id")
        chunks = []
        for chunk in batch.chunks:
            known = self._ranges[chunk.partition]
            ids = chunk.rows.column(column).to_pylist()
            keep = [
                (known.find(offset, event_id) or self._waits(chunk.partition, offset)) == status
                for offset, event_id in zip(chunk.offsets, ids, strict=True)
            ]
            if any(keep):
                offsets = list(compress(chunk.offsets, keep))
                chunks.append(Chunk(chunk.partition, offsets, chunk.rows.filter(pa.array(keep))))
        return Batch(self.stream, batch.spans, tuple(chunks))

    def _waits(self, partition: Partition, offset: int) -> int:
        nowhere = Span(0, 0)
        for spans in self.waiting:
            span = spans.get(partition, nowhere)
            if span.start <= offset < span.end:
                return _WAITING
        return _NONE
