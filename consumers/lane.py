"""A lane: one thread with one sink, and the partitions that are its own.

Batches of one partition land in order because they share a lane, and one that does not begin where
the last one ended never lands. Whatever waits, waits here: the thread that polls Kafka never does.
The lane has the answer to each kind of failure:

    Unavailable   the same work again, backing off, for as long as it takes (attempts.py)
    Rejected      dead-letter the rows at fault; halve the batch until they are known (landing.py)
    Fenced        drop the work and all that is queued behind it for the same partitions
    anything else hand it to the run loop, which stops
"""

from __future__ import annotations

import logging
import queue
import threading

from consumers import metrics
from consumers.attempts import Attempts
from consumers.errors import Fenced, Moved
from consumers.landing import Landing
from consumers.placing import Placing
from consumers.work import Dropped, Failed, Outcome, Work, give_up

__all__ = ["Lane"]

log = logging.getLogger(__name__)


class Lane:
    """Runs work in order on a thread of its own and puts an Outcome for each into `outcomes`."""

    def __init__(
        self,
        number: int,
        attempts: Attempts,
        placing: Placing,
        landing: Landing,
        outcomes: queue.SimpleQueue[Outcome],
        *,
        destination: str,
    ) -> None:
        self._attempts = attempts
        self._placing = placing
        self._landing = landing
        self._outcomes = outcomes
        self._destination = destination
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"lane-{number}", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue work; does not wait."""
        self._inbox.put(work)

    def wake(self) -> None:
        """Look again whether the work under way is void."""
        self._attempts.wake()

    def stop(self) -> None:
        """Void what is left, give the sink back and end the thread; does not wait.

        An attempt that is under way ends soon where the sink is Stoppable, else when it is done.
        """
        self._attempts.stop()
        self._inbox.put(None)

    @property
    def busy_since(self) -> float | None:
        """Since when an attempt is under way, on the monotonic clock; None between attempts."""
        return self._attempts.busy_since

    @property
    def away_since(self) -> float | None:
        """Since when attempts fail, on the monotonic clock; None while they succeed."""
        return self._attempts.away_since

    @property
    def running(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._thread.is_alive()

    # -- on the lane's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._inbox.get()) is not None:
            try:
                outcome = self._outcome(work)
            except Fenced as fenced:
                outcome = self._drop(work, fenced)
            except BaseException as error:
                outcome = Failed(error)
            self._outcomes.put(outcome)
            if isinstance(outcome, Failed):
                break
        self._attempts.close()

    def _outcome(self, work: Work) -> Outcome:
        if work.batch is None:
            placed = self._placing.place(work)
            for cursor, epoch in work.claims.items():
                cursor.behind = (epoch, placed.places[cursor.partition].position)
            return placed
        # PostgreSQL would notice a hole by itself; the others' positions are just set.
        for cursor, epoch in work.claims.items():
            span = work.batch.spans[cursor.partition]
            if cursor.behind != (epoch, span.start):
                raise Moved(f"a batch of {cursor.partition} does not begin where the last ended")
        landed = self._landing.land(work, work.batch)
        for cursor, epoch in work.claims.items():
            cursor.behind = (epoch, work.batch.spans[cursor.partition].end)
        return landed

    def _drop(self, work: Work, fenced: Fenced) -> Dropped:
        own = isinstance(fenced, Moved)
        if not (own or work.void or self._attempts.stopped):
            log.warning("another writer was first, asking again where to go on: %s", fenced)
            metrics.FENCED.labels(self._destination).inc()
        give_up(work.claims)
        if self._inbox.empty():
            self._attempts.away_since = None  # whether it is back, the next attempt says
        return Dropped(work)
