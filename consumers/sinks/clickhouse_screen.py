"""Rows that ClickHouse would change without saying so: they are refused before an insert begins.

DateTime64(6) holds the years 1900 to 2299, and stores another time for what is outside: in a column
of its own as well as in an array, a map or a message within a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from consumers.batch import Batch
from consumers.columns import Column, Kind, columns, holds, values_of
from ingest.streams import MAX_TIME_US, MIN_TIME_US, Stream

__all__ = ["screen"]

_TIMES = (Kind.TIMESTAMP,)


def screen(batch: Batch) -> dict[int, str]:
    """The rows to refuse, by their index in the batch, with the reason."""
    wanted = _with_times(batch.stream)
    refused: dict[int, str] = {}
    base = 0
    for chunk in batch.chunks:
        rows = [(column, chunk.rows.column(i)) for i, column in wanted]
        # Halved until the rows are known: almost always the first look is the last.
        todo = [(0, chunk.rows.num_rows)]
        while todo:
            start, n = todo.pop()
            name = _outside([(column, values.slice(start, n)) for column, values in rows])
            if name is None:
                continue
            if n == 1:
                refused[base + start] = f"{name} is outside the years 1900 to 2299"
            else:
                todo += [(start + n // 2, n - n // 2), (start, n // 2)]
        base += chunk.rows.num_rows
    return refused


@lru_cache(maxsize=256)
def _with_times(stream: Stream) -> tuple[tuple[int, Column], ...]:
    """The columns that hold times, at any depth, and where they are."""
    return tuple((i, c) for i, c in enumerate(columns(stream)) if holds(c, _TIMES))


def _outside(rows: Sequence[tuple[Column, pa.Array]]) -> str | None:
    """The first field with a time that can't be held."""
    for column, values in rows:
        for name, _kind, times in values_of(column, values, _TIMES):
            found = pc.min_max(times.view(pa.int64()))
            least, most = found["min"].as_py(), found["max"].as_py()
            if least is not None and (least < MIN_TIME_US or most > MAX_TIME_US):
                return name
    return None
