"""Landing: a batch into the sink, its bad records to the dead letters, on a lane's thread.

Rejected rows are dead-lettered alone. A destination that does not say which rows it refuses gets
the batch in halves until they are known. Batches keep no messages, only rows: the records behind
rejected rows are read from Kafka again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from confluent_kafka import Message

from consumers.attempts import Attempts
from consumers.batch import Batch, Partition, Span
from consumers.deadletters import DeadLetter, Guard, Letters
from consumers.errors import Rejected, Systemic
from consumers.limits import Limits
from consumers.sinks import Sink
from consumers.source import Source
from consumers.work import Landed, Work
from ingest.streams import Stream

__all__ = ["Landing"]

# How many offsets are read again at once: whole messages, of which a few are kept.
_PIECE = 10_000


class Landing:
    """A lane's answer to a batch."""

    def __init__(
        self, attempts: Attempts, source: Source, letters: Letters, limits: Limits
    ) -> None:
        self._attempts = attempts
        self._source = source
        self._letters = letters
        self._guard = Guard(limits.max_dead_share, limits.dead_window)
        self._min_interval_s = limits.min_interval_s
        self._max_partitions = limits.max_partitions
        self._last_write: dict[str, float] = {}

    def land(self, work: Work, batch: Batch) -> Landed:
        """Land the batch of this work, in this order:

        1. its undecodable records are acknowledged by the dead-letter topic
        2. its topic is still the one that it was read from
        3. the sink lands rows and positions together; its own steps are numbered there

        What the sink rejects is acknowledged by the dead-letter topic before the rest is written.
        Raises Fenced, with nothing written of what is left, and Systemic.
        """
        bad = self._bury(work, batch.stream, work.letters, 0)  # 1
        rows, dead = 0, len(work.letters)
        todo = batch.of_partitions(self._max_partitions)[::-1]
        # Not for each part: the other streams of this lane would wait as well.
        self._pause(batch.stream)
        while todo:
            part = todo.pop()
            try:
                self._write(work, part)  # 2 and 3
                rows += part.count
            except Rejected as refused:
                self._pause(batch.stream)
                halves = None if refused.rows else part.halves()
                if halves is not None:
                    todo += reversed(halves)
                    continue
                at_fault = _at_fault(part, refused)
                bad += self._bury_rows(work, part, at_fault, bad)
                dead += len(at_fault)
                todo.append(part.without(list(at_fault)))
        self._guard.add(batch.stream, work.records, bad)
        return Landed(work, rows, dead)

    def _pause(self, stream: Stream) -> None:
        """Wait until the stream's table may be written to again."""
        last = self._last_write.get(stream.table)
        if last is not None and (pause_s := last + self._min_interval_s - time.monotonic()) > 0:
            self._attempts.wait(pause_s)

    def _write(self, work: Work, batch: Batch) -> None:
        self._last_write[batch.stream.table] = time.monotonic()
        self._attempts.until_done(work, lambda sink: self._write_of_its_topic(sink, batch))

    def _write_of_its_topic(self, sink: Sink, batch: Batch) -> None:
        # librdkafka reads on in a topic that was deleted and made anew as if it were the same.
        self._source.unchanged(batch.spans)
        sink.write(batch)

    # -- dead letters ------------------------------------------------------------------------------

    def _bury(self, work: Work, stream: Stream, letters: Sequence[DeadLetter], before: int) -> int:
        """Send letters of a batch of which so many count already; how many of these count."""
        reasons = [letter.reason for letter in letters if not letter.again]
        self._guard.check(stream, work.records, reasons, before)
        if letters:
            self._attempts.until_done(work, lambda _: self._letters.send(stream, letters))
        return len(reasons)

    def _bury_rows(self, work: Work, batch: Batch, at_fault: Mapping[int, str], before: int) -> int:
        """The same for rows of a batch, given by index and reason."""
        wanted = dict(zip(batch.coordinates(list(at_fault)), at_fault.values(), strict=True))
        return self._bury(work, batch.stream, self._fetch(work, wanted), before)

    def _fetch(self, work: Work, wanted: Mapping[tuple[Partition, int], str]) -> list[DeadLetter]:
        """The records behind rejected rows, read again."""
        letters = []
        for partition in dict.fromkeys(p for p, _ in wanted):
            for span in _pieces(sorted(offset for p, offset in wanted if p == partition)):
                found = self._attempts.until_done(work, partial(self._read, partition, span))
                letters += [
                    DeadLetter(m, "rejected", reason)
                    for m in found
                    if (reason := wanted.get((partition, m.offset()))) is not None
                ]
        if len(letters) != len(wanted):
            raise Systemic(
                f"{len(wanted) - len(letters)} rejected records are no longer in Kafka and can't "
                "be kept as dead letters; lengthen the topic's retention"
            )
        return letters

    def _read(self, partition: Partition, span: Span, _sink: Sink) -> Sequence[Message]:
        return self._source.read(partition, span)


def _pieces(offsets: Sequence[int]) -> Iterator[Span]:
    """Spans that have these offsets in them, each from one of them to another one."""
    start = end = offsets[0]
    for offset in offsets:
        if offset - start >= _PIECE:
            yield Span(start, end + 1)
            start = offset
        end = offset
    yield Span(start, end + 1)


def _at_fault(batch: Batch, refused: Rejected) -> Mapping[int, str]:
    """The rows that a batch was refused for: those it says, or the only one."""
    if refused.rows:
        return refused.rows
    if batch.count == 0:
        raise Systemic(f"the destination refuses an empty batch: {refused.reason}")
    return {0: refused.reason}
