"""The account of a vendor, from the receipts: what became of each event, held against `raw_events`.

Receipts are its ledger. They are at least once, and a replay adds others, so each event's are put together:
accepted once is accepted, otherwise the last one counts. Accepted has landed; what [trace] does not let leave
is dropped; rejected and expired are its dead letters. An event without a receipt is in flight where a replay that
is not over has still to send it: its selection takes it, and its position has not passed it.

In this order: the forwarders' positions and notes, the jobs, the jobs' positions, the receipts. A position moves
behind receipts only, so what a position has passed has its receipt among those that are read; and whatever a
forwarder has left out below its position is a note's or a job's.

Of an event that was published before the first receipt that is left, where some have expired, nobody can tell what
became of it: its hour is not judged.

A few bytes are kept for each event that Kafka still has, whatever the number of receipts; and eight for each that
came from the table of raw events, which gives also what Kafka has (by_row.py), and for each receipt of an offset that
has one of another event, as behind a topic that was deleted and made anew.
"""  # noqa: E501

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.client import Settings
from consumers.errors import Unavailable
from consumers.forward.delivery import Status
from consumers.forward.live import forwarder_group
from consumers.ledger.account import Account, PlaceUnknown, known_of
from consumers.ledger.coming import Coming, coming_of
from consumers.ledger.finding import Finding
from consumers.ledger.scan import Whole, marks, scan, whole_since
from consumers.ledger.tally import NOTHING, Bucket, Entry, Sum, entries_of
from consumers.replay.by_row import ByRow, is_number
from consumers.replay.job import Job
from consumers.trace.read import read_row
from ingest.streams import Stream
from ingest.topics import TopicError, topic_ids
from ingest.units import HOUR_US

__all__ = ["Acknowledged", "Receipted"]

_NONE, _DROPPED, _DEAD, _ACCEPTED = range(4)
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
    # What became of another event that has a receipt of the same offset: one is an older topic's.
    others: dict[int, ByRow]

    @classmethod
    def of(cls, span: Span) -> _Range:
        size = span.end - span.start
        others = {status: ByRow() for status in (_ACCEPTED, _DEAD, _DROPPED)}
        return cls(span.start, bytearray(size), array("I", bytes(4 * size)), others)

    def note(self, offset: int, status: int, event_id: str) -> None:
        at = offset - self.first
        if status == _NONE or not 0 <= at < len(self.status):
            return
        mark = zlib.crc32(event_id.encode())
        if self.status[at] == _NONE or self.checksum[at] == mark:
            if self.status[at] != _ACCEPTED:
                self.status[at], self.checksum[at] = status, mark
        else:
            self.others[status].add(f"{offset} {event_id}")

    def find(self, offset: int, event_id: str) -> int:
        at = offset - self.first
        if self.checksum[at] == zlib.crc32(event_id.encode()):
            return self.status[at]
        name = f"{offset} {event_id}"
        return next((status for status, them in self.others.items() if name in them), _NONE)


@dataclass(slots=True)
class Receipted:
    """The events of one vendor below its group's positions. Reads all receipts when it is made."""

    kafka: Settings
    stream: Stream
    name: str
    positions: Mapping[Partition, int]
    # Of replays to this vendor that are not over.
    coming: Sequence[Coming]
    # Since when none of them has expired.
    receipts: Whole = field(default_factory=Whole)
    _spans: dict[Partition, Span] = field(default_factory=dict)
    _ranges: dict[Partition, _Range] = field(default_factory=dict)
    # By what became of them, the better ones first.
    _by_row: dict[int, ByRow] = field(
        default_factory=lambda: {status: ByRow() for status in (_ACCEPTED, _DEAD, _DROPPED)}
    )

    @classmethod
    def read(
        cls, kafka: Settings, streams: Mapping[str, Stream], name: str, topic_id: str,
        jobs: Callable[[], Mapping[str, Job]],
    ) -> Receipted | None:  # fmt: skip
        """None where nothing was sent yet of what Kafka has.

        `jobs` are all replays, asked for in their turn. Raises Unavailable, Systemic, and
        PlaceUnknown where something was, by forwarders or by replays, and no position says how far
        it is to be there. (That there was a replay says nothing: each outage leaves one.)
        """
        stream = streams["raw_events"]
        known = known_of(kafka, forwarder_group(name), stream, topic_id)
        at = {p: k.committed for p, k in known.items() if k.committed is not None}
        receipts = streams["receipts"]
        if not at and not _is_there(kafka, receipts.topic):
            return None
        spans = {
            p: Span(low, max(low, at.get(p, low) if at else high))
            for p, (low, high) in marks(kafka, stream.topic).items()
        }
        coming = coming_of(kafka, stream, name, topic_id, known.values(), jobs(), spans)
        found = cls(kafka, stream, name, at, coming, _spans=spans)
        found._ranges.update({p: _Range.of(span) for p, span in spans.items()})
        for batch, *_ in scan(kafka, receipts, marks(kafka, receipts.topic)):
            for chunk in batch.chunks:
                found._take(chunk.rows)
        # Behind that: what expires meanwhile may have been read, or not.
        found.receipts = whole_since(kafka, receipts, each=True)
        if at:
            return found
        if found._knows_any():
            raise PlaceUnknown(
                stream.topic, forwarder_group(name),
                f"Start `headrace forward --vendor {name}`, which sends none again that it has "
                "accepted",
            )  # fmt: skip
        return None

    def _knows_any(self) -> bool:
        """Whether an event has a receipt; not only by its place, which may be an older topic's."""
        return any(
            self._only(batch, status).chunks
            for batch, *_ in scan(self.kafka, self.stream, self._spans)
            for status in set(_MEANING.values())
        )

    def _take(self, rows: pa.RecordBatch) -> None:
        mine = pc.and_(
            pc.equal(rows.column("vendor"), self.name),
            pc.equal(rows.column("source_topic"), self.stream.topic),
        )
        names = ("source_partition", "source_offset", "status", "event_id")
        columns = (rows.column(name).filter(mine).to_pylist() for name in names)
        for number, offset, status, event_id in zip(*columns, strict=True):
            if is_number(offset):
                if status in _MEANING:
                    self._by_row[_MEANING[status]].add(event_id)
                continue
            known = self._ranges.get(Partition(self.stream.topic, number))
            if known is not None:
                known.note(offset, _MEANING.get(status, _NONE), event_id)

    def account(self) -> Account:
        """What became of the events of each hour."""
        entries: dict[Bucket, Entry] = {}
        waiting: dict[Bucket, Sum] = {}
        # Where Kafka has nothing any more, all that there was has expired by now.
        now_us = time.time_ns() // 1000
        # (Of what retention took before it was sent there is no account: that is missing.)
        cut = {p for p, s in self._spans.items() if 0 < s.start <= self.positions.get(p, 0)}
        since_us = dict.fromkeys(cut, now_us)
        for batch, first_ms, _ in scan(self.kafka, self.stream, self._spans):
            for partition in batch.spans:
                if partition in cut and first_ms >= 0:
                    since_us[partition] = first_ms * 1000
                    cut.remove(partition)
            for bucket, entry in self._entries(batch):
                entries[bucket] = entries.get(bucket, Entry()).plus(entry)
            for bucket, entry in entries_of(self._lacking(batch, coming=True)).items():
                waiting[bucket] = waiting.get(bucket, NOTHING).plus(entry.rows)
        if self.receipts.since_us:
            for partition in self._spans:
                since_us[partition] = max(since_us.get(partition, 0), self.receipts.since_us)
        return Account(self.positions, entries, waiting, since_us)

    def acknowledged(self, begin_us: int, end_us: int) -> Iterator[Acknowledged]:
        """Events of [begin_us, end_us) that the vendor has accepted, by its receipts."""
        fields = ("event_id", "content_type", "data")
        time, *others = (self.stream.column(f) for f in (self.stream.time, *fields))
        for batch, *_ in scan(self.kafka, self.stream, self._spans):
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
        """Events of [begin_us, end_us) without a receipt, which no replay has still to send.

        Of whole hours in which none can have expired.
        """
        begin_us = max(begin_us, -(-self.receipts.since_us // HOUR_US) * HOUR_US)
        time, event_id = self.stream.column(self.stream.time), self.stream.column("event_id")
        for batch, *_ in scan(self.kafka, self.stream, self._spans):
            for chunk in self._lacking(batch, coming=False).chunks:
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
                self._status(known, offset, event_id) == status
                for offset, event_id in zip(chunk.offsets, ids, strict=True)
            ]
            if any(keep):
                offsets = list(compress(chunk.offsets, keep))
                chunks.append(Chunk(chunk.partition, offsets, chunk.rows.filter(pa.array(keep))))
        return Batch(self.stream, batch.spans, tuple(chunks))

    def _status(self, known: _Range, offset: int, event_id: str) -> int:
        """What became of an event: accepted once is accepted."""
        found = known.find(offset, event_id)
        if found == _ACCEPTED or event_id in self._by_row[_ACCEPTED]:
            return _ACCEPTED
        of_row = (status for status, events in self._by_row.items() if event_id in events)
        return found or next(of_row, _NONE)

    def _lacking(self, batch: Batch, *, coming: bool) -> Batch:
        """The events without a receipt: those that a replay has still to send, or the others."""
        chunks = []
        for chunk in self._only(batch, _NONE).chunks:
            sent = {offset for one in self.coming for offset in one.of(self.stream, chunk)}
            stay = [i for i, offset in enumerate(chunk.offsets) if (offset in sent) is coming]
            if stay:
                chunks.append(chunk.only(stay))
        return Batch(self.stream, batch.spans, tuple(chunks))


def _is_there(kafka: Settings, topic: str) -> bool:
    try:
        return bool(topic_ids(kafka, [topic]))
    except TopicError as error:
        raise Unavailable(str(error)) from error
