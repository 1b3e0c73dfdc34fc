"""How far what has landed is behind the end of each partition, as metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from consumers import metrics
from consumers.batch import Partition
from consumers.source import Source
from consumers.work import Cursor

__all__ = ["Lag", "Look", "forget"]

# Between two looks, in seconds.
_EVERY_S = 1.0


class Look(Protocol):
    """What is told of the partitions that are ours, at each turn of the loop and while a lane is
    waited for; does not wait.

    Then partitions are paused, and the ends that are known stand still. What is behind stays
    behind, and its age is that of the last record that has landed: it goes on.
    """

    def look(self, cursors: Iterable[Cursor]) -> None: ...


class Lag:
    """Sets the gauges, once a second."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._due_at = 0.0

    def look(self, cursors: Iterable[Cursor]) -> None:
        """Set the gauges of these, if it is time; does not wait."""
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + _EVERY_S
        for cursor in cursors:
            end = self._source.latest(cursor.partition)
            if cursor.landed < 0 or end < 0:
                continue
            behind = max(0, end - cursor.landed)
            since_ms = cursor.landed_ms or cursor.read_ms
            age_s = max(0.0, time.time() - since_ms / 1000) if behind and since_ms else 0.0
            metrics.LAG_MESSAGES.labels(*cursor.partition).set(behind)
            metrics.LAG_SECONDS.labels(*cursor.partition).set(age_s)


def forget(partition: Partition) -> None:
    """It is not ours any more: whoever has it now says how far behind it is."""
    for gauge in (metrics.LAG_MESSAGES, metrics.LAG_SECONDS):
        with suppress(KeyError):  # it had not been set yet
            gauge.remove(partition.topic, str(partition.number))
