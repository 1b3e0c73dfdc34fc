"""The lanes of a process: work is handed to them here, and what they answer is taken back.

Partitions are shared among lanes by their number. Belongs to the polling thread, except `problem`
and `away_s`, which any thread may ask.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from consumers import metrics
from consumers.attempts import Attempts
from consumers.batch import Batch, Partition
from consumers.deadletters import Letters
from consumers.landing import Landing
from consumers.lane import Lane
from consumers.limits import Limits
from consumers.placing import Placing
from consumers.sinks import Sink
from consumers.source import Source
from consumers.work import Cursor, Failed, Landed, Outcome, Placed, Work

__all__ = ["WAIT_S", "Lanes", "Totals"]

# The longest wait while lanes have work, in seconds: they may need a commit from this thread.
WAIT_S = 0.01
# An attempt that takes longer without an error is reported as not ready, in seconds: a destination
# that hangs says nothing.
_SLOW_S = 5.0
# How long attempts that are under way may take after a stop, in seconds.
_CLOSE_S = 1.0


@dataclass(slots=True)
class Totals:
    """What one run has done."""

    rows: int = 0
    dead_letters: int = 0
    batches: int = 0


class Lanes:
    """See the module's comment."""

    def __init__(
        self,
        open_sink: Callable[[], Sink],
        source: Source,
        letters: Letters,
        limits: Limits,
        *,
        destination: str,
        skip_lost: bool,
    ) -> None:
        self._source = source
        self._destination = destination
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        # What they have and have not answered.
        self._pending: set[Work] = set()
        self.totals = Totals()
        self._lanes: list[Lane] = []
        for number in range(limits.lanes):
            attempts = Attempts(open_sink, destination, limits.max_backoff_s)
            placing = Placing(attempts, source, destination=destination, skip_lost=skip_lost)
            landing = Landing(attempts, source, letters, limits)
            self._lanes.append(
                Lane(number, attempts, placing, landing, self._outcomes, destination=destination)
            )

    def of(self, partition: Partition) -> int:
        """The number of a partition's lane."""
        return partition.number % len(self._lanes)

    # -- handing over ------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Queue work for its lane; does not wait."""
        self._pending.add(work)
        self._lanes[work.lane].submit(work)

    def wake(self, lane: int) -> None:
        """Have a lane look again whether its work is void."""
        self._lanes[lane].wake()

    @property
    def idle(self) -> bool:
        """Whether all that was submitted is answered."""
        return not self._pending

    @property
    def records(self) -> int:
        """How many records are under way."""
        return sum(work.records for work in self._pending)

    def batches(self, lane: int) -> int:
        """How many batches a lane has, the one that it is landing included."""
        return sum(work.batch is not None and work.lane == lane for work in self._pending)

    def have(self, cursors: Collection[Cursor]) -> bool:
        """Whether something is under way for one of these, and will be answered."""
        wanted = set(cursors)
        return any(
            wanted & work.claims.keys() for work in self._pending if self._lanes[work.lane].running
        )

    # -- taking back -------------------------------------------------------------------------------

    def reap(self, timeout_s: float = 0.0) -> None:
        """Take what they have answered; wait for the first answer up to `timeout_s`.

        Raises what a lane failed with: the process has to stop.
        """
        self._source.serve()
        while True:
            try:
                outcome = self._outcomes.get(timeout_s > 0, timeout_s)
            except queue.Empty:
                return
            timeout_s = 0.0
            if isinstance(outcome, Failed):
                metrics.LAST_ERROR.labels("systemic").set_to_current_time()
                raise outcome.error
            work = outcome.work
            self._pending.discard(work)
            if isinstance(outcome, Placed):
                for cursor, epoch in work.claims.items():
                    cursor.answer = (epoch, outcome.places[cursor.partition])
            elif isinstance(outcome, Landed) and work.batch is not None:
                self._count(outcome, work.batch)

    def _count(self, landed: Landed, batch: Batch) -> None:
        labels = (batch.stream.name, self._destination)
        metrics.ROWS.labels(*labels).inc(landed.rows)
        metrics.BYTES.labels(*labels).inc(sum(c.rows.nbytes for c in batch.chunks))
        metrics.BATCHES.labels(*labels).inc()
        self.totals.rows += landed.rows
        self.totals.dead_letters += landed.letters
        self.totals.batches += 1
        for cursor, epoch in landed.work.claims.items():
            if cursor.epoch == epoch:
                cursor.landed = batch.spans[cursor.partition].end
                cursor.landed_ms = landed.work.read_ms[cursor]

    # -- before partitions move, and at the end ----------------------------------------------------

    def finish(self, cursors: Collection[Cursor], deadline: float) -> None:
        """Wait until nothing is under way for these; not while a destination of theirs is away.

        `deadline` is on the monotonic clock.
        """
        lanes = [self._lanes[number] for number in {cursor.lane for cursor in cursors}]
        while self.have(cursors) and not any(lane.away_since for lane in lanes):
            if time.monotonic() >= deadline:
                return
            self.reap(timeout_s=WAIT_S)

    def settle(self, cursors: Collection[Cursor], deadline: float) -> None:
        """Wait until no attempt is under way in their lanes; their work must be void."""
        numbers = {cursor.lane for cursor in cursors}
        while any(self._lanes[n].busy_since is not None for n in numbers if self.batches(n)):
            if time.monotonic() >= deadline:
                return
            self.reap(timeout_s=WAIT_S)

    def close(self) -> None:
        """Void what is left and end the lanes; what is under way may take a second longer.

        What takes even longer goes on by itself, until `ended`.
        """
        for lane in self._lanes:
            lane.stop()
        deadline = time.monotonic() + _CLOSE_S
        while not self.ended and time.monotonic() < deadline:
            # A lane may be waiting for a commit that only this thread can do.
            self._source.serve()
            time.sleep(WAIT_S)

    # -- asked by any thread -----------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether nothing is under way any more, after `close`."""
        return not any(lane.running for lane in self._lanes)

    @property
    def away_s(self) -> float:
        """How long the destination has not answered; 0 when it does."""
        now = time.monotonic()
        return max((now - at for lane in self._lanes if (at := lane.away_since)), default=0.0)

    @property
    def problem(self) -> str | None:
        """What is wrong with the destination, for people; None when it answers."""
        if away_s := self.away_s:
            return f"nothing has got through to the destination for {away_s:.0f} s"
        now = time.monotonic()
        slow_s = max((now - at for lane in self._lanes if (at := lane.busy_since)), default=0.0)
        if slow_s > _SLOW_S:
            return f"the destination has not answered the last attempt for {slow_s:.0f} s"
        return None
