"""Receipts of events that came from the table of raw events, known by the event alone.

Their place is a row's number, which says nothing of offsets; and the table gives also what Kafka
still has. Eight bytes are kept for each: a hash, which holds within this process.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

import pyarrow as pa

__all__ = ["ByRow", "is_number"]

# Row numbers are beyond it since 1970-01-07 (`number_at` in table.py), and no partition has ever
# had so many records.
_LEAST = 1 << 50


def is_number(offset: int) -> bool:
    """Whether the `source_offset` of a receipt is the number of a row."""
    return offset >= _LEAST


class ByRow:
    """Events in any number, by any text; some are added, and then they are looked for."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._sorted = True

    def add(self, event_id: str) -> None:
        self._hashes.append(hash(event_id))
        self._sorted = False

    def __contains__(self, event_id: str) -> bool:
        if not self._hashes:
            return False
        if not self._sorted:
            self._sort()
        mark = hash(event_id)
        at = bisect_left(self._hashes, mark)
        return at < len(self._hashes) and self._hashes[at] == mark

    def _sort(self) -> None:
        # Without a Python object for each, which would be four times as much.
        count = len(self._hashes)
        found = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(self._hashes)])
        self._hashes = array("q", found.sort().buffers()[1].to_pybytes()[: 8 * count])
        self._sorted = True
