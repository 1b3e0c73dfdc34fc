"""The table of raw events as a source of the run loop: one partition, whose offsets are the numbers
of its rows (table.py).

It is the partition 0 of the topic, to a consumer group of its own: whoever is given it reads the
table, and commits there. Nothing is read from Kafka.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from confluent_kafka import Message

from consumers.batch import Partition, Span
from consumers.errors import Unavailable
from consumers.replay.source import Around
from consumers.replay.table import RawTable, Reader, Row
from consumers.sinks import Known
from consumers.source import Listener, Runs, Source

__all__ = ["TableSource", "message"]

log = logging.getLogger(__name__)

# How long a database that is away is left alone, and how often that is worth a line, in seconds.
_AGAIN_S = 2.0
_SAY_EVERY_S = 30.0


def message(topic: str, row: Row) -> Message:
    """The row as the record that it was."""
    event = row.event
    return Message(
        topic=topic, partition=0, offset=row.number, key=event.event_id.encode(),
        value=event.SerializeToString(), timestamp=(1, event.received_at.ToMilliseconds()),
    )  # fmt: skip


class TableSource(Around):
    """`consumers.source.Source` says what a method does.

    `join` makes the group; `span` is of rows' numbers, before `end_us`. With `lacking` only rows
    that this vendor has not accepted. `ready` raises Unavailable until the table may be read.
    """

    def __init__(
        self,
        join: Callable[[Listener], Source],
        listener: Listener,
        open_: Callable[[], RawTable],
        topic: str,
        span: Span,
        end_us: int,
        lacking: str | None = None,
        *,
        ready: Callable[[RawTable], None] | None = None,
    ) -> None:
        self._listener = listener
        self._open = open_
        self._partition = Partition(topic, 0)
        self._span = span
        self._end_us = end_us
        self._lacking = lacking
        self._ready = ready
        self._table: RawTable | None = None
        self._reader: Reader | None = None
        # Where to go on, None while the partition is not ours; and whether it is paused.
        self._at: int | None = None
        self._paused = False
        # On the monotonic clock: when the database may be asked again, and when we said that it is
        # waited for.
        self._again_at = 0.0
        self._said_at = float("-inf")
        self.ends: dict[Partition, int] = {}
        self.replace: set[Partition] = set()
        self._inner = join(self)

    # -- whose partition it is ---------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        self._listener.on_assigned(partitions)

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        self._leave(partitions)
        self._listener.on_revoked(partitions)

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        self._leave(partitions)
        self._listener.on_lost(partitions)

    def _leave(self, partitions: Sequence[Partition]) -> None:
        if self._partition in partitions:
            self._at = None
            self.ends.clear()

    # -- reading -----------------------------------------------------------------------------------

    def poll(self, n: int, timeout_s: float) -> Runs:
        wait_s = self._again_at - time.monotonic()
        idle = self._at is None or self._paused or self.ends or wait_s > 0
        self._inner.poll(1, timeout_s if idle else 0.0)  # to stay in the group
        if self._at is None or idle:
            return {}
        try:
            rows = self._next(self._at, n)
        except Unavailable as away:
            self._forget()
            now = time.monotonic()
            self._again_at = now + _AGAIN_S
            if now - self._said_at > _SAY_EVERY_S:
                self._said_at = now
                log.warning("waiting for the table: %s", away)
            return {}
        if not rows:
            return {}
        return {self._partition: [message(self._partition.topic, row) for row in rows]}

    def _next(self, at: int, n: int) -> list[Row]:
        if self._table is None:
            self._table = self._open()
        if self._ready is not None:
            self._ready(self._table)
            self._ready = None
        if self._reader is None:
            self._reader = Reader(self._table, self._end_us)
            self._reader.seek(at)
        rows = self._reader.next(n)
        if not rows:
            self.ends[self._partition] = self._span.end
            return []
        found = rows
        if self._lacking is not None:
            accepted = self._table.accepted(self._lacking, [row.event.event_id for row in rows])
            found = [row for row in rows if row.event.event_id not in accepted]
        # Only now: where the question had no answer, these rows are read again.
        self._at = rows[-1].number + 1
        return found

    def _forget(self) -> None:
        if self._table is not None:
            self._table.close()
        self._table = self._reader = None

    def seek(self, partition: Partition, offset: int) -> bool:
        if partition == self._partition:
            self._at, self._reader, self._paused = offset, None, False
            self.ends.clear()
        return True

    def pause(self, partitions: Iterable[Partition]) -> None:
        self._paused = self._paused or self._partition in set(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._paused = self._paused and self._partition not in set(partitions)

    def read(self, partition: Partition, span: Span) -> list[Message]:
        table = self._open()
        try:
            reader = Reader(table, self._end_us)
            reader.seek(span.start)
            found: list[Message] = []
            while rows := reader.next():
                found += [message(partition.topic, row) for row in rows if row.number < span.end]
                if rows[-1].number >= span.end - 1:
                    break
        finally:
            table.close()
        return found

    def latest(self, partition: Partition) -> int:
        return self._span.end if partition == self._partition else 0

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        found = {}
        for partition, known in self._inner.known(partitions).items():
            end = self.latest(partition)
            at = known.committed if partition == self._partition else 0
            found[partition] = replace(known, earliest=0, latest=end, committed=at)
        return found

    def all_ends(self) -> dict[Partition, int]:
        return {self._partition: self._span.end}

    @property
    def away(self) -> bool:
        return self._inner.away or self._again_at > time.monotonic()

    def close(self) -> None:
        self._inner.close()
        self._forget()
