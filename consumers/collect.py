"""Collecting: from records to batches that are ready to be landed.

A batch is of one stream and one lane, and closes at so many records, so many bytes or such an age,
whichever is first. Undecodable records ride with it as dead letters. Nothing here waits or talks to
anybody.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from confluent_kafka import Message

from consumers.batch import Batch, Chunk, Dead, Span
from consumers.deadletters import DeadLetter
from consumers.decode import MAX_RECORD_BYTES, Decoder
from consumers.limits import Limits
from consumers.work import Cursor, Work, give_up, stale
from ingest.streams import Stream

__all__ = ["Collector", "Key", "Select"]


class Select(Protocol):
    """Which records are meant. The others count as read, and fill no batch."""

    def kept(self, stream: Stream, chunk: Chunk) -> Chunk:
        """The chunk with only the rows that are meant; it may be empty."""


class Key(NamedTuple):
    """What an open batch is for: a lane, by its number, and a stream, by its topic."""

    lane: int
    topic: str


@dataclass(slots=True)
class _Open:
    """A batch that is being collected."""

    lane: int
    stream: Stream
    since: float
    claims: dict[Cursor, int] = field(default_factory=dict)
    starts: dict[Cursor, int] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    records: int = 0
    rows: int = 0
    bytes: int = 0

    def close(self) -> Work:
        """What the lane gets; each span ends where its cursor is now."""
        spans = {c.partition: Span(start, c.next) for c, start in self.starts.items()}
        return Work(
            self.lane,
            self.claims,
            Batch(
                self.stream,
                spans,
                tuple(self.chunks),
                tuple(Dead.of(letter.message) for letter in self.letters),
            ),
            self.letters,
            self.records,
            {c: c.read_ms for c in self.starts},
        )


class Collector:
    """The open batches. Belongs to the polling thread."""

    def __init__(
        self, streams: Sequence[Stream], limits: Limits, select: Select | None = None
    ) -> None:
        self._select = select
        self._decoders = {stream.topic: Decoder(stream) for stream in streams}
        self._limits = limits
        self._open: dict[Key, _Open] = {}

    def add(self, cursor: Cursor, run: Sequence[Message], at_most: int) -> Key | None:
        """Decode records that begin at or after the cursor's `next`, and move it behind them.

        Their values are `at_most` so many bytes together. Returns the key of their batch when that
        is full.
        """
        key, batch = self._opened(cursor)
        cursor.next = run[-1].offset() + 1
        cursor.read_ms = run[-1].timestamp()[1]
        batch.records += len(run)
        decoder = self._decoders[key.topic]
        rows, bad = decoder.decode(list(map(Message.value, run)), at_most)
        for i, reason in bad.items():
            # The length of a message is that of its value.
            kind = "over_size" if len(run[i]) > MAX_RECORD_BYTES else "undecodable"
            batch.letters.append(DeadLetter(run[i], kind, reason))
            batch.bytes += len(run[i])
        offsets: Sequence[int] = range(run[0].offset(), run[-1].offset() + 1)
        if bad or len(offsets) != len(run):
            offsets = [message.offset() for i, message in enumerate(run) if i not in bad]
        chunk = Chunk(cursor.partition, offsets, rows, decoder.times_us)
        if self._select is not None:
            chunk = self._select.kept(batch.stream, chunk)
        if chunk.offsets:
            batch.chunks.append(chunk)
        batch.rows += len(chunk.offsets) + len(bad)
        batch.bytes += chunk.rows.nbytes
        full = batch.rows >= self._limits.max_rows or batch.bytes >= self._limits.max_bytes
        return key if full else None

    def move(self, cursor: Cursor, end: int) -> None:
        """Move past what holds no records (transaction markers) up to where the partition ends."""
        self._opened(cursor)
        cursor.next = end

    def _opened(self, cursor: Cursor) -> tuple[Key, _Open]:
        """The open batch for this cursor, which begins in it at its `next`."""
        key = Key(cursor.lane, cursor.stream.topic)
        batch = self._open.get(key)
        if batch is None:
            batch = self._open[key] = _Open(cursor.lane, cursor.stream, time.monotonic())
        if cursor not in batch.claims:
            batch.claims[cursor] = cursor.placed
            batch.starts[cursor] = cursor.next
        return key, batch

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def patience_s(self) -> float:
        """How long a poll may wait: until the oldest open batch is due, 100 ms at most."""
        if not self._open:
            return 0.1
        oldest = min(batch.since for batch in self._open.values())
        return min(max(oldest + self._limits.max_age_s - time.monotonic(), 0.0), 0.1)

    def due(self, *, all_: bool = False) -> list[Key]:
        """The batches that are old enough, or all there are."""
        since = time.monotonic() - self._limits.max_age_s
        return [key for key, batch in self._open.items() if all_ or batch.since <= since]

    def of(self, cursors: Iterable[Cursor]) -> list[Key]:
        """The batches that hold something of these."""
        wanted = set(cursors)
        return [key for key, batch in self._open.items() if wanted & batch.claims.keys()]

    def close(self, key: Key) -> Work:
        """An open batch as work for its lane."""
        return self._open.pop(key).close()

    def forget_stale(self) -> None:
        """Drop batches with a hole: what one lost of its partitions has to be read again whole."""
        for key, batch in list(self._open.items()):
            if stale(batch.claims):
                del self._open[key]
                give_up(batch.claims)
