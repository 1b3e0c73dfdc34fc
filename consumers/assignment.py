"""The partitions that the group has given to this process, and where to read each of them.

A position is taken from the sink, never from here: when a partition is given to us, and again
whenever something that was under way for it was dropped (its cursor's epoch has moved on).
Belongs to the polling thread; the listener's methods are called within `Source.poll`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from consumers import lag
from consumers.batch import Partition
from consumers.collect import Collector
from consumers.lanes import Lanes
from consumers.source import Source
from consumers.work import Cursor, Work
from ingest.streams import Stream

__all__ = ["Assignment"]

log = logging.getLogger(__name__)

# How long a revoked partition's work may take, and then the attempts under way, in seconds.
_REVOKE_S = 30.0


class Assignment:
    """A cursor for each partition that is ours."""

    def __init__(
        self,
        streams: Sequence[Stream],
        source: Source,
        collector: Collector,
        lanes: Lanes,
    ) -> None:
        self._streams = {stream.topic: stream for stream in streams}
        self._source = source
        self._collector = collector
        self._lanes = lanes
        self.cursors: dict[Partition, Cursor] = {}

    def reading(self, partition: Partition) -> Cursor | None:
        """The cursor of a partition of ours whose records are wanted now."""
        cursor = self.cursors.get(partition)
        return cursor if cursor is not None and cursor.reading else None

    def read_again(self, partitions: Iterable[Partition]) -> None:
        """Have these placed anew: a record of theirs was passed over."""
        for partition in partitions:
            if partition in self.cursors:
                self.cursors[partition].epoch += 1

    @property
    def placed(self) -> bool:
        """Whether all of them are being read; from any thread."""
        return all(cursor.reading for cursor in list(self.cursors.values()))

    # -- where to read -----------------------------------------------------------------------------

    def place(self) -> None:
        """Ask the sink where to go on with cursors whose epoch has moved, and go there."""
        if self._source.replace or any(c.asked != c.epoch for c in self.cursors.values()):
            self._replace_removed()
            # Before stale batches are dropped: a lane may raise an epoch at any moment, and who is
            # asked about now must have no open batch of before.
            asked = [c for c in self.cursors.values() if c.asked != c.epoch]
            self._collector.forget_stale()
            self._ask(asked)
        for cursor in self.cursors.values():
            self._seek(cursor)

    def _replace_removed(self) -> None:
        """Have partitions placed anew whose next offset Kafka has removed."""
        for partition in list(self._source.replace):
            cursor = self.reading(partition)
            if cursor is not None:
                # What was fetched before Kafka removed it can still land; only then is it asked for
                # what comes next.
                if self._collector.of([cursor]) or self._lanes.have([cursor]):
                    continue
                cursor.epoch += 1
            self._source.replace.discard(partition)

    def _ask(self, cursors: Sequence[Cursor]) -> None:
        if cursors:
            self._source.pause(cursor.partition for cursor in cursors)
        for lane in dict.fromkeys(cursor.lane for cursor in cursors):
            claims = {cursor: cursor.epoch for cursor in cursors if cursor.lane == lane}
            for cursor, epoch in claims.items():
                cursor.asked = epoch
            self._lanes.submit(Work(lane, claims))

    def _seek(self, cursor: Cursor) -> None:
        """Go where the sink has said, if it has and that still counts."""
        if cursor.answer is None:
            return
        epoch, place = cursor.answer
        if cursor.epoch != epoch:
            cursor.answer = None
        elif self._source.seek(cursor.partition, place.read):
            cursor.answer = None
            cursor.next = cursor.landed = place.position
            cursor.placed = epoch

    # -- consumers.source.Listener -----------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Begin with partitions at the next turn."""
        for partition in partitions:
            self.cursors[partition] = Cursor(
                partition, self._streams[partition.topic], self._lanes.of(partition)
            )
        if partitions:
            log.info("given %s", _listed(partitions))

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what is under way for them; what does not finish is void and lands elsewhere.

        1. what is collected of them is handed over
        2. what their lanes have of them lands, unless the destination is away
        3. what is left is void: no attempt at it begins any more
        4. an attempt that is under way may still land; none may be once they have moved
        """
        leaving = {self.cursors[p] for p in partitions if p in self.cursors}
        deadline = time.monotonic() + _REVOKE_S
        for key in self._collector.of(leaving):
            self._lanes.submit(self._collector.close(key))
        self._lanes.finish(leaving, deadline)
        self.on_lost(partitions)
        self._lanes.settle(leaving, deadline + _REVOKE_S)
        if partitions:
            log.info("gave back %s", _listed(partitions))

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Drop what is under way for them."""
        for partition in partitions:
            cursor = self.cursors.pop(partition, None)
            if cursor is not None:
                cursor.epoch += 1
                self._lanes.wake(cursor.lane)
                lag.forget(partition)


def _listed(partitions: Iterable[Partition]) -> str:
    """For a line of the log, `a[0-31], b[2], b[5]`: one by one 2,000 are more than the 16 KiB at
    which Docker cuts a line in two."""
    runs: list[tuple[Partition, int]] = []
    for partition in sorted(partitions):
        if runs and runs[-1][0].topic == partition.topic and runs[-1][1] + 1 == partition.number:
            runs[-1] = (runs[-1][0], partition.number)
        else:
            runs.append((partition, partition.number))
    return ", ".join(
        str(first) if first.number == last else f"{first.topic}[{first.number}-{last}]"
        for first, last in runs
    )
