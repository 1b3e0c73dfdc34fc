"""What of the ranges is meant: rows by their event time, their event's name, and what is missing.

It stands in front of a sink. What is not meant is as though it had never been there: the batch
covers the same spans with fewer rows, so positions move over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import pyarrow as pa
import pyarrow.compute as pc

from consumers.batch import Batch, Chunk, Partition
from consumers.sinks import Known, Sink
from consumers.trace.read import Unreadable, read
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["Selected", "Selection"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Event time in [begin_us, end_us); the other two are for raw events."""

    begin_us: int
    end_us: int
    event: str | None = None
    # Whether the record at this place, with this event_id, is wanted.
    wanted: Callable[[Partition, int, str], bool] | None = None

    def of(self, batch: Batch) -> Batch:
        """The batch with only the rows that are meant; the same spans."""
        chunks = tuple(kept for chunk in batch.chunks if (kept := self._kept(batch, chunk)))
        return Batch(batch.stream, batch.spans, chunks)

    def _kept(self, batch: Batch, chunk: Chunk) -> Chunk | None:
        stream = batch.stream
        times = chunk.rows.column(stream.column(stream.time)).view(pa.int64())
        within = pc.and_(
            pc.greater_equal(times, pa.scalar(self.begin_us, pa.int64())),
            pc.less(times, pa.scalar(self.end_us, pa.int64())),
        )
        keep: list[bool] = pc.fill_null(within, False).to_pylist()
        if self.event is not None:
            types, texts = self._columns(batch, chunk, ("content_type", "data"))
            keep = [k and self._named(t, d) for k, t, d in zip(keep, types, texts, strict=True)]
        if self.wanted is not None:
            (ids,) = self._columns(batch, chunk, ("event_id",))
            wanted, at = self.wanted, chunk.partition
            keep = [
                k and wanted(at, offset, event_id)
                for k, offset, event_id in zip(keep, chunk.offsets, ids, strict=True)
            ]
        if all(keep):
            return chunk
        if not any(keep):
            return None
        return Chunk(
            chunk.partition, list(compress(chunk.offsets, keep)), chunk.rows.filter(pa.array(keep))
        )

    @staticmethod
    def _columns(batch: Batch, chunk: Chunk, fields: Sequence[str]) -> list[list[str]]:
        return [chunk.rows.column(batch.stream.column(f)).to_pylist() for f in fields]

    def _named(self, content_type: str, data: str) -> bool:
        try:
            return read(RawEvent(content_type=content_type, data=data))[0] == self.event
        except Unreadable:
            return False


class Selected:
    """A sink that is given only what is meant; `count` is told of it once it has landed."""

    def __init__(self, sink: Sink, selection: Selection, count: Callable[[int], None]) -> None:
        self._sink = sink
        self._selection = selection
        self._count = count

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        return self._sink.resume(known)

    def write(self, batch: Batch) -> None:
        chosen = self._selection.of(batch)
        self._sink.write(chosen)
        self._count(chosen.count)

    def close(self) -> None:
        self._sink.close()
