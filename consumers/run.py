"""The run loop: from a consumer group to a sink, in batches, exactly once.

    poll -> decode -> collect a batch -> lane (dead letters, sink) -> commit

One thread, the caller's, polls Kafka, decodes and collects (collect.py); lanes land what is
collected, each on its own thread (lane.py). A partition belongs to one lane, so its batches land
in order. While a lane writes one batch the next one is fetched and decoded; a third is not begun
before the first has landed. That is all the memory there is, besides librdkafka's queue.

A position is taken from the sink, never from here: on assignment, and again whenever a batch was
dropped. The group's committed offsets follow behind for others to see.
"""

from __future__ import annotations

import gc
import logging
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from confluent_kafka import Message

from consumers import metrics
from consumers.batch import Partition
from consumers.collect import Collector, Key, Limits
from consumers.deadletters import Guard, Letters
from consumers.errors import Unavailable
from consumers.lane import Cursor, Dropped, Failed, Landed, Lane, Outcome, Place, Placed, Work
from consumers.sinks import Log, Sink
from consumers.source import Listener, Source
from ingest.streams import Stream

__all__ = ["Limits", "Runner", "Totals", "calm_collector"]

log = logging.getLogger(__name__)

# Records a poll asks for: small slices stay in the processor's cache. Against 1,000 and 250 the
# processor time of a record is a fifth to a third less (bench/consume.py).
_SLICE = 500
# Records that are decoded in one call, when that many are there: per record ptars, the checks and
# pgpq cost half of what they do for 500.
_DECODE = 4000
# And no more bytes than that, but for the last slice: what a batch may exceed its `max_bytes` by.
_DECODE_BYTES = 4 * 1024 * 1024
# How long a full lane is waited for before the partitions are paused and the group is polled, so
# that it keeps us, in seconds. librdkafka drops its queue on a pause: not for a short wait.
_PATIENCE_S = 2.0
# The longest wait while lanes have work, in seconds: they may need a commit from this thread.
_WAIT_S = 0.01
# An attempt that takes longer without an error is reported as not ready, in seconds: a destination
# that hangs says nothing.
_SLOW_S = 5.0
# Between two looks at the lag, in seconds.
_LAG_EVERY_S = 1.0
# How long a revoked partition's work may take; and after a stop all work, and then the attempts
# under way, in seconds. A stop takes 10 s at most.
_REVOKE_S = 30.0
_STOP_S = 7.0
_LANES_S = 1.0


_DEFAULT_LIMITS = Limits()


@dataclass(slots=True)
class Totals:
    """What one run has done."""

    rows: int = 0
    dead_letters: int = 0
    batches: int = 0


class Runner:
    """Lands streams in one destination until it is told to stop, or has caught up.

    `join` makes the source, given whom to tell of rebalances (`GroupSource`, or a test's own).
    `open_sink` makes one sink for each lane, given what the sink may ask of Kafka; it may raise
    Unavailable, and is then called again. With `skip_lost` it goes on behind records that Kafka's
    retention removed before they landed; without, it stops as Systemic.
    """

    def __init__(
        self,
        join: Callable[[Listener], Source],
        letters: Letters,
        streams: Sequence[Stream],
        open_sink: Callable[[Log], Sink],
        *,
        destination: str,
        limits: Limits = _DEFAULT_LIMITS,
        skip_lost: bool = False,
    ) -> None:
        self._streams = {stream.topic: stream for stream in streams}
        self._collector = Collector(streams, limits)
        self._destination = destination
        self._cursors: dict[Partition, Cursor] = {}
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # What the lanes have and have not answered, and which lane has it.
        self._pending: dict[Work, Lane] = {}
        # Placed by the sink in this epoch, at this offset; not yet taken over by the consumer.
        self._seeking: dict[Cursor, tuple[int, Place]] = {}
        self._stopping = False
        self._ask_others_at = 0.0
        self._lag_at = 0.0
        self.totals = Totals()
        self._source = join(self)
        self._letters = letters
        self._lanes = [
            Lane(
                str(number),
                lambda: open_sink(self._source),
                self._source,
                self._letters,
                Guard(limits.max_dead_share, limits.dead_window),
                self._outcomes,
                destination=destination,
                min_interval_s=limits.min_interval_s,
                max_partitions=limits.max_partitions,
                skip_lost=skip_lost,
            )
            for number in range(limits.lanes)
        ]

    def stop(self) -> None:
        """Finish what is collected, commit, and return from `run`; for signal handlers."""
        self._stopping = True

    @property
    def away_s(self) -> float:
        """How long the destination has not answered; 0 when it does."""
        now = time.monotonic()
        return max((now - at for lane in self._lanes if (at := lane.away_since)), default=0.0)

    @property
    def problem(self) -> str | None:
        """Why records do not land now, for people; None when they do."""
        away_s = self.away_s
        if away_s:
            return f"the destination has not answered for {away_s:.0f} s"
        now = time.monotonic()
        since = [at for lane in self._lanes if (at := lane.busy_since) is not None]
        if since and now - min(since) > _SLOW_S:
            return f"the destination has not answered the last attempt for {now - min(since):.0f} s"
        if self._source.away:
            return "Kafka is out of reach"
        if not all(cursor.reading for cursor in list(self._cursors.values())):
            return "partitions are being placed"
        return None

    def run(self, *, drain: bool = False) -> Totals:
        """Run until `stop`, or with `drain` until all that was there at the start has landed.

        Raises Systemic for what a person has to mend; nothing unfinished is committed then.
        """
        try:
            ends = self._first_ends()
            goal = ends if drain else None
            while not self._stopping and (goal is None or not self._reached(goal)):
                self._turn()
                if goal is not None and self._all_read(goal):
                    self._hand_over_due(all_=True)
            self._finish()
        finally:
            for lane in self._lanes:
                lane.stop()
            deadline = time.monotonic() + _LANES_S
            while any(lane.running for lane in self._lanes) and time.monotonic() < deadline:
                # A lane may be waiting for a commit that only this thread can do.
                self._source.serve()
                time.sleep(0.01)
            # Leaving the group must not wait for what nobody will answer any more.
            self._cursors.clear()
            self._source.close()
        return self.totals

    def _turn(self) -> None:
        self._place()
        self._collect(self._gather())
        self._hand_over_due()
        self._reap()
        self._look_at_lag()

    def _gather(self) -> dict[Partition, list[Message]]:
        """What Kafka has for us now, in order for each partition; waits for the first of it."""
        found: dict[Partition, list[Message]] = {}
        patience_s = self._collector.patience_s()
        if self._pending:
            patience_s = min(patience_s, _WAIT_S)
        size = 0
        for _ in range(_DECODE // _SLICE):
            messages = self._source.poll(_SLICE, patience_s)
            size += sum(map(len, messages))
            for partition, run in _by_partition(messages):
                found.setdefault(partition, []).extend(run)
            if len(messages) < _SLICE or size >= _DECODE_BYTES:
                break
            patience_s = 0.0
        return found

    def _collect(self, found: Mapping[Partition, list[Message]]) -> None:
        """Add records to the open batches, and move past what holds none at the end."""
        for partition, run in found.items():
            # Asked for here: while one batch was handed over, partitions may have moved.
            cursor = self._cursors.get(partition)
            if cursor is None or not cursor.reading:
                continue
            if run[0].offset() < cursor.next:
                run = [m for m in run if m.offset() >= cursor.next]  # noqa: PLW2901 - the rest of it
            if run and (full := self._collector.add(cursor, run)):
                self._hand_over(full)
        for partition, end in self._source.ends.items():
            cursor = self._cursors.get(partition)
            if cursor is not None and cursor.reading and end > cursor.next:
                self._collector.move(cursor, end)

    def _hand_over_due(self, *, all_: bool = False) -> None:
        for key in self._collector.due(all_=all_):
            self._hand_over(key)

    def _hand_over(self, key: Key) -> None:
        """Give an open batch to its lane; while that has two, wait, then keep polling."""
        since = time.monotonic()
        paused: list[Partition] = []
        while key in self._collector and self._waiting(key.lane) >= 2 and not self._stopping:
            self._reap(timeout_s=_WAIT_S)
            if not paused and time.monotonic() - since > _PATIENCE_S:
                paused = [p for p, cursor in self._cursors.items() if cursor.reading]
                self._source.pause(paused)
            if paused:
                # Only to stay in the group; nothing comes from paused partitions. What came all the
                # same would leave a hole, so it is read again.
                for partition, _ in _by_partition(self._source.poll(1, 0.2)):
                    if partition in self._cursors:
                        self._cursors[partition].epoch += 1
        if paused:
            self._source.resume(p for p in paused if p in self._cursors)
        self._submit_batch(key)

    def _submit_batch(self, key: Key) -> None:
        work = self._collector.close(key)
        if work is not None:
            self._submit(key.lane, work)

    def _submit(self, lane: Lane, work: Work) -> None:
        self._pending[work] = lane
        lane.submit(work)

    def _waiting(self, lane: Lane) -> int:
        return sum(1 for work, at in self._pending.items() if at is lane and work.batch is not None)

    # -- what comes back ---------------------------------------------------------------------------

    def _reap(self, timeout_s: float = 0.0) -> None:
        """Take what the lanes have finished; wait for the first up to `timeout_s`."""
        self._source.serve()
        while True:
            try:
                outcome = (
                    self._outcomes.get(timeout=timeout_s)
                    if timeout_s
                    else (self._outcomes.get_nowait())
                )
            except queue.Empty:
                return
            timeout_s = 0.0
            match outcome:
                case Failed(error):
                    metrics.LAST_ERROR.labels("systemic").set_to_current_time()
                    raise error
                case Landed(work, rows, letters):
                    self._pending.pop(work, None)
                    self._count(work, rows, letters)
                case Placed(work, places):
                    self._pending.pop(work, None)
                    self._seeking.update(
                        {c: (e, places[c.partition]) for c, e in work.claims.items()}
                    )
                case Dropped(work):
                    self._pending.pop(work, None)

    def _count(self, work: Work, rows: int, letters: int) -> None:
        batch = work.batch
        assert batch is not None  # noqa: S101
        labels = (batch.stream.name, self._destination)
        metrics.ROWS.labels(*labels).inc(rows)
        metrics.BYTES.labels(*labels).inc(sum(c.rows.nbytes for c in batch.chunks))
        metrics.BATCHES.labels(*labels).inc()
        self.totals.rows += rows
        self.totals.dead_letters += letters
        self.totals.batches += 1
        for cursor, epoch in work.claims.items():
            if cursor.epoch == epoch:
                cursor.landed = batch.spans[cursor.partition].end
                cursor.landed_ms = work.read_ms[cursor]

    def _look_at_lag(self) -> None:
        """Set the lag gauges, once a second."""
        now = time.monotonic()
        if now < self._lag_at:
            return
        self._lag_at = now + _LAG_EVERY_S
        for partition, cursor in self._cursors.items():
            end = self._source.latest(partition)
            if cursor.landed < 0 or end < 0:
                continue
            behind = max(0, end - cursor.landed)
            since_ms = cursor.landed_ms or cursor.read_ms
            age_s = max(0.0, time.time() - since_ms / 1000) if behind and since_ms else 0.0
            metrics.LAG_MESSAGES.labels(*partition).set(behind)
            metrics.LAG_SECONDS.labels(*partition).set(age_s)

    # -- whose partitions, and where to read -------------------------------------------------------

    def _place(self) -> None:
        """Ask the sink where to go on with cursors whose epoch has moved, and go there."""
        if any(cursor.asked != cursor.epoch for cursor in self._cursors.values()) or (
            self._source.replace
        ):
            self._ask()
        for cursor, (epoch, place) in list(self._seeking.items()):
            if cursor.epoch != epoch:
                del self._seeking[cursor]
            elif self._source.seek(cursor.partition, place.read):
                del self._seeking[cursor]
                cursor.next = cursor.landed = place.position
                cursor.placed = epoch

    def _ask(self) -> None:
        for partition in list(self._source.replace):
            cursor = self._cursors.get(partition)
            if cursor is not None and cursor.reading:
                # What was fetched before Kafka removed it can still land; only then is it asked for
                # what comes next.
                if self._collector.of([cursor]) or any(cursor in w.claims for w in self._pending):
                    continue
                cursor.epoch += 1
            self._source.replace.discard(partition)
        self._collector.forget_stale()
        stale = [cursor for cursor in self._cursors.values() if cursor.asked != cursor.epoch]
        if stale:
            self._source.pause(cursor.partition for cursor in stale)
        for lane in self._lanes:
            claims = {cursor: cursor.epoch for cursor in stale if cursor.lane is lane}
            for cursor, epoch in claims.items():
                cursor.asked = epoch
            if claims:
                self._submit(lane, Work(claims))

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Begin with partitions at the next turn."""
        for partition in partitions:
            lane = self._lanes[partition.number % len(self._lanes)]
            self._cursors[partition] = Cursor(partition, self._streams[partition.topic], lane)
        if partitions:
            log.info("given %s", ", ".join(map(str, partitions)))

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what is under way for them; what does not finish is void and lands elsewhere."""
        leaving = {self._cursors[p] for p in partitions if p in self._cursors}
        for key in self._collector.of(leaving):
            self._submit_batch(key)
        lanes = {cursor.lane for cursor in leaving}
        deadline = time.monotonic() + _REVOKE_S
        while (
            any(leaving & w.claims.keys() for w, lane in self._pending.items() if lane.running)
            and not any(lane.away_since for lane in lanes)
            and time.monotonic() < deadline
        ):
            self._reap(timeout_s=_WAIT_S)
        self.on_lost(partitions)
        # An attempt that is under way may still land; none may begin once they have moved.
        while any(lane.busy for lane in lanes if self._waiting(lane)) and (
            time.monotonic() < deadline + _REVOKE_S
        ):
            self._reap(timeout_s=_WAIT_S)
        if partitions:
            log.info("gave back %s", ", ".join(map(str, partitions)))

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Drop what is under way for them."""
        for partition in partitions:
            cursor = self._cursors.pop(partition, None)
            if cursor is not None:
                cursor.epoch += 1
                cursor.lane.wake()
                for gauge in (metrics.LAG_MESSAGES, metrics.LAG_SECONDS):
                    with suppress(KeyError):  # it had not been set yet
                        gauge.remove(partition.topic, str(partition.number))

    # -- beginning and end -------------------------------------------------------------------------

    def _first_ends(self) -> dict[Partition, int]:
        """Where every partition ends now; waits for Kafka if it is away."""
        while True:
            try:
                return self._source.all_ends()
            except Unavailable as away:
                log.warning("waiting for Kafka: %s", away)
                self._source.poll(1, 1.0)
                if self._stopping:
                    return {}

    def _all_read(self, goal: dict[Partition, int]) -> bool:
        """Whether nothing more is to be read of our partitions: no batch needs to wait for more."""
        return all(c.next >= goal[p] for p, c in self._cursors.items() if p in goal)

    def _reached(self, goal: dict[Partition, int]) -> bool:
        """Whether every partition, ours or not, has landed up to the goal."""
        for partition, end in goal.items():
            cursor = self._cursors.get(partition)
            if cursor is not None and cursor.landed < end:
                return False
        others = [p for p in goal if p not in self._cursors]
        if not others:
            return True
        now = time.monotonic()
        if now < self._ask_others_at:
            return False
        self._ask_others_at = now + 0.5
        try:
            return all(at >= goal[p] for p, at in self._source.committed(others).items())
        except Unavailable:
            return False

    def _finish(self) -> None:
        """Land what is collected, for as long as a stop may take."""
        for key in self._collector.due(all_=True):
            self._submit_batch(key)
        deadline = time.monotonic() + _STOP_S
        while self._pending and time.monotonic() < deadline:
            self._reap(timeout_s=_WAIT_S)
        left = sum(work.records for work in self._pending)
        if left:
            log.warning("stopped with %d records under way; they land at the next start", left)


def calm_collector() -> None:
    """Make Python's cycle collector rare; for a process that does little else than run the loop.

    It runs once in 700 new objects, messages count, and there are no cycles among them: a tenth of
    the loop's processor time (perf).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def _by_partition(messages: Sequence[Message]) -> Iterable[tuple[Partition, Sequence[Message]]]:
    """The messages of each partition, in order. Mostly a slice is of one partition."""
    if not messages:
        return ()
    numbers = list(map(Message.partition, messages))
    topics = list(map(Message.topic, messages))
    if numbers.count(numbers[0]) == len(numbers) == topics.count(topics[0]):
        return [(Partition(topics[0], numbers[0]), messages)]
    found: dict[Partition, list[Message]] = {}
    for topic, number, message in zip(topics, numbers, messages, strict=True):
        found.setdefault(Partition(topic, number), []).append(message)
    return found.items()
