"""What `--drain` waits for: all partitions, ours or not, have landed up to where they ended."""

from __future__ import annotations

import time
from collections.abc import Mapping

from consumers.batch import Partition
from consumers.errors import Unavailable
from consumers.source import Source
from consumers.work import Cursor

__all__ = ["Goal"]

# Between two questions how far others are, in seconds.
_ASK_EVERY_S = 0.5


class Goal:
    """An offset for each partition to land up to."""

    def __init__(self, source: Source, ends: Mapping[Partition, int]) -> None:
        self._source = source
        self._ends = ends
        self._ask_at = 0.0

    def read(self, cursors: Mapping[Partition, Cursor]) -> bool:
        """Whether nothing more is to be read of ours: no batch needs to wait for more."""
        return all(c.next >= self._ends[p] for p, c in cursors.items() if p in self._ends)

    def landed(self, cursors: Mapping[Partition, Cursor]) -> bool:
        """Whether ours and, by what the group has committed, those of others have landed."""
        if any(c.landed < self._ends[p] for p, c in cursors.items() if p in self._ends):
            return False
        others = [partition for partition in self._ends if partition not in cursors]
        if not others:
            return True
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + _ASK_EVERY_S
        try:
            committed = self._source.committed(others)
        except Unavailable:
            return False
        return all(at >= self._ends[partition] for partition, at in committed.items())
