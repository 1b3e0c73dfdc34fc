"""What of the ranges is meant: rows by their event time, their event's name, and what is missing.

The source asks by a record's bytes (`skim`), the run loop before it puts a chunk into a batch. What
is not meant is as though it had never been there: a batch covers the same spans with fewer rows, so
positions move over it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, compress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from consumers.batch import Batch, Chunk, Partition
from consumers.sinks import Known, Sink, Stoppable
from ingest.streams import Stream

if TYPE_CHECKING:
    from consumers.vendors.exported import Exported

__all__ = ["Counted", "Selection", "Wanted", "not_in"]

# Of a chunk that does not say between which times its rows lie.
_UNKNOWN = (-(2**63), 2**63)
# Whether the record at this place, with this event_id, is wanted.
Wanted = Callable[[Partition, int, str], bool]


def not_in(exported: Exported) -> Wanted:
    """What a vendor does not hold by its own export."""
    return lambda _partition, _offset, event_id: not exported.holds(event_id)


@dataclass(frozen=True, slots=True)
class Selection:
    """Event time in [begin_us, end_us), or with `outside` at any other; two are for raw events."""

    begin_us: int
    end_us: int
    event: str | None = None
    wanted: Wanted | None = None
    outside: bool = False
    _begin: pa.Int64Scalar = field(init=False, repr=False, compare=False)
    _end: pa.Int64Scalar = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Of the first value pyarrow imports pandas, 0.3 s: not while the first records wait.
        object.__setattr__(self, "_begin", pa.scalar(self.begin_us, pa.int64()))
        object.__setattr__(self, "_end", pa.scalar(self.end_us, pa.int64()))

    def of(self, batch: Batch) -> Batch:
        """The batch with only the rows that are meant; the same spans."""
        chunks = (self.kept(batch.stream, chunk) for chunk in batch.chunks)
        return Batch(batch.stream, batch.spans, tuple(chunk for chunk in chunks if chunk.offsets))

    def skim(self, payloads: Sequence[bytes | None]) -> Sequence[int]:
        """Which may be meant: in which the name stands, or JSON's escapes, behind which it may.

        All of them are searched at once: with one find for each it takes longer than to decode.
        """
        if not self.event:
            return range(len(payloads))
        known = [payload or b"" for payload in payloads]
        whole, ends = b"".join(known), list(accumulate(map(len, known)))
        found: set[int] = set()
        for part in (self.event.encode(), b"\\"):
            at = whole.find(part)
            while at >= 0:
                index = bisect_right(ends, at)
                found.add(index)
                at = whole.find(part, ends[index])
        return sorted(found)

    def kept(self, stream: Stream, chunk: Chunk) -> Chunk:
        """The chunk with only the rows that are meant; it may be empty."""
        # Mostly all of them are meant, which the decoder knows already.
        first, last = chunk.times_us or _UNKNOWN
        within = self.begin_us <= first and last < self.end_us
        without = last < self.begin_us or self.end_us <= first
        if not (without if self.outside else within):
            times = chunk.rows.column(stream.column(stream.time)).view(pa.int64())
            meant = pc.and_(pc.greater_equal(times, self._begin), pc.less(times, self._end))
            meant = pc.fill_null(meant, False)
            chunk = _only(chunk, pc.invert(meant) if self.outside else meant)
        if self.event is not None:
            types, texts = (_texts(stream, chunk, field) for field in ("content_type", "data"))
            named = map(_named(self.event), types, texts)
            chunk = _only(chunk, pa.array(named, pa.bool_()))
        if self.wanted is not None:
            ids = _texts(stream, chunk, "event_id")
            lacking = map(partial(self.wanted, chunk.partition), chunk.offsets, ids)
            chunk = _only(chunk, pa.array(lacking, pa.bool_()))
        return chunk


def _only(chunk: Chunk, keep: pa.BooleanArray) -> Chunk:
    if keep.true_count == len(keep):
        return chunk
    offsets = list(compress(chunk.offsets, keep.to_pylist()))
    return Chunk(chunk.partition, offsets, chunk.rows.filter(keep))


def _texts(stream: Stream, chunk: Chunk, field: str) -> list[str]:
    found: list[str] = chunk.rows.column(stream.column(field)).to_pylist()
    return found


def _named(name: str) -> Callable[[str, str], bool]:
    """Whether a raw event of this type and data has that name."""
    # Not at the top: msgspec comes with vendors, and every look at a database imports this.
    from consumers.trace.read import Unreadable, read_row

    def is_named(content_type: str, data: str) -> bool:
        # To look for it takes a tenth of reading the JSON.
        if name not in data and "\\" not in data and name not in content_type:
            return False
        try:
            return read_row(content_type, data, 0)[0] == name
        except Unreadable:
            return False

    return is_named


class Counted:
    """A sink that tells `count` how many rows have landed."""

    def __init__(self, sink: Sink, count: Callable[[int], None]) -> None:
        self._sink = sink
        self._count = count

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        return self._sink.resume(known)

    def write(self, batch: Batch) -> None:
        self._sink.write(batch)
        self._count(batch.count)

    def stop(self) -> None:
        if isinstance(self._sink, Stoppable):
            self._sink.stop()

    def close(self) -> None:
        self._sink.close()
