"""What rows must hold beyond the wire format, asked of whole columns.

Its key, and a time that every destination can hold; and no time or duration outside protobuf's
range, which ptars would change. (Random bytes are often valid protobuf with unknown fields only.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from consumers.columns import Column, Kind, holds, values_of
from ingest.streams import MAX_TIME_US, MIN_TIME_US, Stream

__all__ = ["InRange", "check_of"]

# What protobuf allows: years 1 to 9999, and a Duration of 10,000 years either way, in microseconds.
# ptars turns what is beyond into the largest int64 without saying so.
_RANGES = {
    Kind.TIMESTAMP: (-62_135_596_800_000_000, 253_402_300_799_999_999),
    Kind.DURATION: (-315_576_000_000_000_000, 315_576_000_000_000_000),
}


class InRange:
    """Whether a column of times or durations is within what every destination can hold."""

    def __init__(self, name: str, kind: Kind, required: bool, *, is_time: bool) -> None:
        self._name, self._required = name, required
        self.is_time = is_time
        self._low, self._high = _RANGES[kind]
        if is_time:
            self._low, self._high = MIN_TIME_US, MAX_TIME_US
        self._span = "the years 1900 to 2299" if is_time else "protobuf's range"
        # The least and the most of the rows that it was last asked about.
        self.least: int | None = None
        self.most: int | None = None

    def __call__(self, rows: pa.RecordBatch) -> dict[int, str]:
        """The rows that are not, with the reason."""
        values = rows.column(self._name).view(pa.int64())
        found = pc.min_max(values)
        self.least, self.most = found["min"].as_py(), found["max"].as_py()
        if (values.null_count == 0 or not self._required) and (
            self.least is None or (self.least >= self._low and self.most <= self._high)
        ):
            return {}
        return {
            i: f"{self._name} is not set" if v is None else f"{self._name} is outside {self._span}"
            for i, v in enumerate(values.to_pylist())
            if (v is None and self._required)
            or (v is not None and not self._low <= v <= self._high)
        }


class _AllInRange:
    """Whether all times and durations in a list, a map or a message are within protobuf's range."""

    def __init__(self, column: Column) -> None:
        self._column = replace(column, name=column.field)

    def __call__(self, rows: pa.RecordBatch) -> dict[int, str]:
        """The rows where one is not, with the reason."""
        values = rows.column(self._column.field)
        found = {}
        # Halved until the rows are known: almost always the first look is the last.
        todo = [(0, rows.num_rows)]
        while todo:
            start, n = todo.pop()
            name = self._outside(values.slice(start, n))
            if name is None:
                continue
            if n == 1:
                found[start] = f"{name} is outside protobuf's range"
            else:
                todo += [(start + n // 2, n - n // 2), (start, n // 2)]
        return found

    def _outside(self, values: pa.Array) -> str | None:
        for name, kind, found in values_of(self._column, values, _RANGES):
            low, high = _RANGES[kind]
            extremes = pc.min_max(found.view(pa.int64()))
            least, most = extremes["min"].as_py(), extremes["max"].as_py()
            if least is not None and (least < low or most > high):
                return name
        return None


def check_of(column: Column, stream: Stream) -> Callable[[pa.RecordBatch], dict[int, str]] | None:
    """What must hold for this column: returns the rows that break it, with the reason."""
    name, required = column.field, column.field in stream.required
    if column.repeated or column.fields:
        return _AllInRange(column) if holds(column, _RANGES) else None
    if column.kind in _RANGES:
        return InRange(name, column.kind, required, is_time=name == stream.time)
    if required and column.kind in (Kind.STRING, Kind.BYTES):

        def not_empty(rows: pa.RecordBatch) -> dict[int, str]:
            lengths = pc.binary_length(rows.column(name))
            if not lengths.null_count and (pc.min(lengths).as_py() or not rows.num_rows):
                return {}
            return {i: f"{name} is not set" for i, n in enumerate(lengths.to_pylist()) if not n}

        return not_empty
    return None
