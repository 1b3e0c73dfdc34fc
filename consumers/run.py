"""The run loop: from a consumer group to a sink, in batches, exactly once. In commit order:

1. place     a partition is read from where its sink says, never from what is remembered here
2. fetch     records, from there on
3. collect   they are decoded into open batches
4. hand over a batch that is full or old, to the lane of its partitions
5. land      dead letters are acknowledged, then rows and positions land together
6. reap      what has landed counts; what was dropped begins again at 1

One thread, the caller's, does all but the fifth, which each lane does on a thread of its own
(landing.py has its steps, and the sink those of the last). A partition belongs to one lane, so its
batches land in order. While a lane lands one batch the next one is fetched and decoded; a third is
not begun before the first has landed. That is all the memory there is, besides librdkafka's queue.

The group's committed offsets follow behind, for others to see.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from consumers import metrics
from consumers.assignment import Assignment
from consumers.batch import Partition
from consumers.collect import Collector, Key, Select
from consumers.deadletters import KINDS, Letters
from consumers.drain import Ask, Goal
from consumers.errors import Unavailable
from consumers.fetch import Fetched, fetch
from consumers.lag import Lag, Look
from consumers.lanes import WAIT_S, Lanes, Totals
from consumers.limits import Limits
from consumers.sinks import Sink
from consumers.source import Listener, Source
from ingest.streams import Stream

__all__ = ["Runner"]

log = logging.getLogger(__name__)

# How long a full lane is waited for before the partitions are paused and the group is polled, so
# that it keeps us, in seconds. librdkafka drops its queue on a pause: not for a short wait.
_PATIENCE_S = 2.0
# How long a stop may take until all that is collected has landed, in seconds; 10 s in all.
_STOP_S = 7.0

_DEFAULT_LIMITS = Limits()


class Runner:
    """Lands streams in one destination until it is told to stop, or has caught up.

    `join` makes the source, given whom to tell of rebalances (`GroupSource`, or a test's own).
    `open_sink` makes one sink for each lane, given what the sink may ask of Kafka; it may raise
    Unavailable, and is then called again. With `skip_lost` it goes on behind records that Kafka's
    retention removed before they landed; without, it stops as Systemic. `lag` makes what is told
    how far behind it is. `select` says which rows are meant, if not all. `landed` says how far the
    destination is, where the group's offsets do not.
    """

    def __init__(
        self,
        join: Callable[[Listener], Source],
        letters: Letters,
        streams: Sequence[Stream],
        open_sink: Callable[[Source], Sink],
        *,
        destination: str,
        limits: Limits = _DEFAULT_LIMITS,
        skip_lost: bool = False,
        lag: Callable[[Source], Look] = Lag,
        select: Select | None = None,
        landed: Ask | None = None,
    ) -> None:
        self._stopping = False
        for stream in streams:
            for kind in KINDS:
                # A counter that begins with its first letters has no increase for Prometheus.
                metrics.DEAD_LETTERS.labels(stream.name, kind)
        metrics.FENCED.labels(destination)
        self._collector = Collector(streams, limits, select)
        self._source = source = join(self)
        self._lanes = Lanes(
            lambda: open_sink(source),
            source,
            letters,
            limits,
            destination=destination,
            skip_lost=skip_lost,
        )
        self._assignment = Assignment(streams, source, self._collector, self._lanes)
        self._lag = lag(source)
        self._landed = landed

    def stop(self) -> None:
        """Finish what is collected, commit, and return from `run`; for signal handlers."""
        self._stopping = True

    @property
    def ended(self) -> bool:
        """Whether the destination gets nothing more; a lane may be at work when `run` returns."""
        return self._lanes.ended

    @property
    def away_s(self) -> float:
        """How long the destination has not answered; 0 when it does."""
        return self._lanes.away_s

    @property
    def problem(self) -> str | None:
        """Why records do not land now, for people; None when they do."""
        if problem := self._lanes.problem:
            return problem
        if self._source.away:
            return "Kafka is out of reach"
        return None if self._assignment.placed else "partitions are being placed"

    def run(self, *, drain: bool = False) -> Totals:
        """Run until `stop`, or with `drain` until all that was there at the start has landed.

        Raises Systemic for what a person has to mend; nothing unfinished is committed then.
        """
        cursors = self._assignment.cursors
        try:
            goal = Goal(self._source, self._first_ends(), self._landed)
            while not (self._stopping or (drain and goal.landed(cursors))):
                self._turn()
                if drain and goal.read(cursors):
                    self._hand_over_due(all_=True)
            self._finish()
        finally:
            self._lanes.close()
            # Leaving the group must not wait for what nobody will answer any more.
            cursors.clear()
            self._source.close()
        return self._lanes.totals

    def _turn(self) -> None:
        """The steps of the module's comment, but for the fifth."""
        self._assignment.place()  # 1
        patience_s = self._collector.patience_s()
        if not self._lanes.idle:
            patience_s = min(patience_s, WAIT_S)
        found = fetch(self._source, patience_s)  # 2
        self._collect(found)  # 3, and 4 for what is full
        self._hand_over_due()  # 4
        self._lanes.reap()  # 6
        self._lag.look(self._assignment.cursors.values())

    def _collect(self, found: Fetched) -> None:
        """Add records to the open batches, and move past what holds none at the end."""
        for partition, run in found.runs.items():
            # Asked for here: while one batch was handed over, partitions may have moved.
            cursor = self._assignment.reading(partition)
            if cursor is None:
                continue
            if run[0].offset() < cursor.next:
                run = [m for m in run if m.offset() >= cursor.next]  # noqa: PLW2901 - the rest of it
            if run and (full := self._collector.add(cursor, run, found.bytes)):
                self._hand_over(full)
        for partition, end in self._source.ends.items():
            cursor = self._assignment.reading(partition)
            if cursor is not None and end > cursor.next:
                self._collector.move(cursor, end)

    def _hand_over_due(self, *, all_: bool = False) -> None:
        for key in self._collector.due(all_=all_):
            self._hand_over(key)

    def _hand_over(self, key: Key) -> None:
        """Give an open batch to its lane; while that has two, wait, then keep polling."""
        since = time.monotonic()
        paused: list[Partition] = []
        while key in self._collector and self._lanes.batches(key.lane) >= 2 and not self._stopping:
            self._lanes.reap(timeout_s=WAIT_S)
            # In an outage this is where the time goes by.
            self._lag.look(self._assignment.cursors.values())
            if not paused and time.monotonic() - since > _PATIENCE_S:
                paused = [p for p, c in self._assignment.cursors.items() if c.reading]
                self._source.pause(paused)
            if paused:
                # Only to stay in the group; nothing comes from paused partitions. What came all the
                # same would leave a hole, so it is read again.
                self._assignment.read_again(self._source.poll(1, 0.2))
        if paused:
            self._source.resume(p for p in paused if p in self._assignment.cursors)
        if key in self._collector:  # its partitions may have moved while we polled
            self._lanes.submit(self._collector.close(key))

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

    def _finish(self) -> None:
        """Land what is collected, for as long as a stop may take."""
        for key in self._collector.due(all_=True):
            self._lanes.submit(self._collector.close(key))
        deadline = time.monotonic() + _STOP_S
        while not self._lanes.idle and time.monotonic() < deadline:
            self._lanes.reap(timeout_s=WAIT_S)
        if left := self._lanes.records:
            log.warning("stopped with %d records under way; they land at the next start", left)

    # -- consumers.source.Listener: `join` wants it before there is an assignment ------------------

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """See Assignment."""
        self._assignment.on_assigned(partitions)

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """See Assignment."""
        self._assignment.on_revoked(partitions)

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """See Assignment."""
        self._assignment.on_lost(partitions)
