"""A fixed range of offsets for each partition, as a source of the run loop.

It is a consumer group, one for each job, of which only the ranges are seen: so positions, fencing,
rebalances and several processes for one job are those of the group. What it adds:

- A partition without a committed position begins where its range does, and ends where that ends;
  from there on it is paused.
- With `repeated` all of it may have been sent before, and the position's note says so (the intent
  of consumers/forward/sink.py): to a vendor events of a replay are repeated ones. With `forgotten`
  that holds for partitions without a position: they may have had one.
- With `rate`, no more records a second than that.
- With `skim`, what can't be meant is left out here, slice by slice while it is in the processor's
  cache, and many slices a poll: nothing is done for a record that is not meant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from confluent_kafka import KafkaException, Message

from consumers.batch import Partition, Span
from consumers.errors import Systemic
from consumers.intent import Intent
from consumers.sinks import Known, Notes
from consumers.source import Runs, Source

__all__ = ["Around", "RangeSource", "Skim"]

# Of a second's records at most this share comes at once.
_SLICE_S = 0.1
# Slices that one poll looks through for what may be meant: 32,000 records, for which the run loop
# waits some 20 ms.
_SLICES = 64

# Which of these payloads may be meant, by their bytes.
Skim = Callable[[Sequence[bytes | None]], Sequence[int]]


class Around:
    """A source around another one, `_inner`: what it does not change is that one's."""

    _inner: Source

    @property
    def away(self) -> bool:
        return self._inner.away

    def serve(self) -> None:
        self._inner.serve()

    def pause(self, partitions: Iterable[Partition]) -> None:
        self._inner.pause(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self._inner.resume(partitions)

    def unchanged(self, partitions: Collection[Partition]) -> None:
        self._inner.unchanged(partitions)

    def owned(self) -> set[Partition]:
        return self._inner.owned()

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return self._inner.committed(partitions)

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        self._inner.commit(positions, notes)

    def report(self, positions: Mapping[Partition, int]) -> None:
        self._inner.report(positions)

    def read(self, partition: Partition, span: Span) -> Sequence[Message]:
        return self._inner.read(partition, span)

    def topic_id(self, partition: Partition) -> str:
        return self._inner.topic_id(partition)

    def close(self) -> None:
        self._inner.close()


class RangeSource(Around):
    """`consumers.source.Source` says what a method does. `topic_id` is that of the offsets."""

    def __init__(
        self,
        inner: Source,
        spans: Mapping[Partition, Span],
        topic_id: str,
        rate: float | None = None,
        *,
        repeated: bool = False,
        forgotten: bool = False,
        skim: Skim | None = None,
    ) -> None:
        self._inner = inner
        self._spans = dict(spans)
        self._topic_id = topic_id
        self._rate = rate
        self._repeated = repeated
        self._forgotten = forgotten
        self._skim = skim
        # On the monotonic clock: when the next record may come.
        self._next_at = 0.0
        self.ends: dict[Partition, int] = {}
        self.replace = inner.replace

    def poll(self, n: int, timeout_s: float) -> Runs:
        if self._rate is None:
            return self._poll(n, timeout_s)[0]
        wait_s = self._next_at - time.monotonic()
        if wait_s > 0:
            self._inner.serve()
            time.sleep(min(wait_s, timeout_s))
            return {}
        n = max(1, min(n, int(self._rate * _SLICE_S)))
        found, read = self._poll(n, timeout_s, slices=1)
        self._next_at = time.monotonic() + read / self._rate
        return found

    def _poll(self, n: int, timeout_s: float, slices: int = _SLICES) -> tuple[Runs, int]:
        """Up to `n` records that may be meant; and how many of the ranges were read for them."""
        found: dict[Partition, Sequence[Message]] = {}
        kept = read = 0
        for _ in range(slices):
            asked = n - kept
            runs = self._inner.poll(asked, timeout_s)
            timeout_s = 0.0
            for partition, run in self._within(runs).items():
                read += len(run)
                if some := self._skimmed(partition, run):
                    kept += len(some)
                    found[partition] = [*found[partition], *some] if partition in found else some
            if sum(map(len, runs.values())) < asked or kept > n // 2:
                break
        for partition, at in self._inner.ends.items():
            self._passed(partition, min(at, self._end(partition)))
        return found, read

    def _skimmed(self, partition: Partition, run: Sequence[Message]) -> Sequence[Message]:
        """Those that may be meant."""
        if self._skim is None:
            return run
        some = self._skim(list(map(Message.value, run)))
        if len(some) == len(run):
            return run
        self._passed(partition, int(run[-1].offset() or 0) + 1)
        return [run[i] for i in some]

    def _within(self, runs: Runs) -> Runs:
        """Those below the ends of their ranges; a partition that is at its end is paused."""
        found: dict[Partition, Sequence[Message]] = {}
        for partition, run in runs.items():
            end = self._end(partition)
            if int(run[-1].offset() or 0) < end:
                found[partition] = run
                continue
            if below := [m for m in run if int(m.offset() or 0) < end]:
                found[partition] = below
            self._passed(partition, end)
            self._rest(partition)
        return found

    def _passed(self, partition: Partition, at: int) -> None:
        """There is nothing more below this offset than what has been given out."""
        self.ends[partition] = max(at, self.ends.get(partition, -1))

    def _rest(self, partition: Partition) -> None:
        # It may have been given back in the poll that brought its last records.
        with suppress(KafkaException):
            self._inner.pause([partition])

    def _end(self, partition: Partition) -> int:
        """0 for a partition that was made after the job."""
        span = self._spans.get(partition)
        return 0 if span is None else span.end

    def seek(self, partition: Partition, offset: int) -> bool:
        if not self._inner.seek(partition, offset):
            return False
        self.ends.pop(partition, None)
        end = self._end(partition)
        if offset >= end:
            # Nothing will come that says so: what is left of its range may all have been removed.
            self._passed(partition, end)
            self._rest(partition)
        return True

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        found = {}
        for partition, known in self._inner.known(partitions).items():
            if known.topic_id != self._topic_id:
                raise Systemic(
                    f"the topic {partition.topic} was deleted and made anew since this replay was "
                    "started: its offsets mean other records now. Cancel it and start another."
                )
            start, end = self._spans.get(partition) or Span(known.latest, known.latest)
            at = start if known.committed is None else known.committed
            begun = Intent(known.topic_id, {partition: Span(at, end)}, 0)
            repeated = self._repeated or (self._forgotten and known.committed is None)
            note = begun.note() if repeated else known.note
            if at >= end:
                # Nothing of it is left, so what retention removes behind it is not missed.
                at = max(at, known.earliest)
            found[partition] = replace(known, committed=at, note=note)
        return found

    def latest(self, partition: Partition) -> int:
        return min(self._inner.latest(partition), self._end(partition))

    def all_ends(self) -> dict[Partition, int]:
        """Of ranges that are not empty: nothing is ever committed for the others."""
        return {p: span.end for p, span in self._spans.items() if span.start < span.end}
