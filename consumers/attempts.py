"""A sink of a lane's own, and attempts at it until one succeeds.

Unavailable is the one failure that is answered here: the same again, with exponential back-off and
jitter, for as long as it takes. Anything else is the caller's. A back-off ends early when the work
has become void or the process stops.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from consumers import metrics
from consumers.errors import Fenced, Unavailable
from consumers.sinks import Sink, Stoppable
from consumers.work import Work

__all__ = ["Attempts"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Between the first two attempts while the destination is away, in seconds.
_BACKOFF_FIRST_S = 0.1
# The same trouble is said again after so long, in seconds: its reason may be another one by then.
_SAY_EVERY_S = 30.0


class Attempts:
    """Opens the sink at the first attempt. `wake` and `stop` are for other threads."""

    def __init__(
        self, open_sink: Callable[[], Sink], destination: str, max_backoff_s: float = 10.0
    ) -> None:
        self._open = open_sink
        self._sink: Sink | None = None
        self._destination = destination
        self._max_backoff_s = max_backoff_s
        self._stop = threading.Event()
        self._wake = threading.Event()
        # Since when an attempt is under way, on the monotonic clock; None between attempts.
        self.busy_since: float | None = None
        # Since when attempts fail, on the monotonic clock; None while they succeed.
        self.away_since: float | None = None
        self._said_at = 0.0

    def wake(self) -> None:
        """Look again whether the work under way is void."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no attempt any more, and end the one under way if the sink can."""
        self._stop.set()
        self._wake.set()
        sink = self._sink
        if sink is not None and isinstance(sink, Stoppable):
            sink.stop()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def until_done(self, work: Work, act: Callable[[Sink], T]) -> T:
        """Do it until it is done. Raises Fenced once the work is void or `stop` was called."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            self._wake.clear()
            # Before the look at the epochs: who raises one and then sees us idle knows that no
            # attempt will follow.
            self.busy_since = time.monotonic()
            try:
                if work.void or self.stopped:
                    raise Fenced("the work is void")
                if self._sink is None:
                    self._sink = self._open()
                    if self._stop.is_set():  # it was not there to be told
                        raise Fenced("the work is void")
                done = act(self._sink)
            except Unavailable as away:
                self._failed(away)
                self.busy_since = None
                self._wake.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff_s = min(backoff_s * 2, self._max_backoff_s)
            else:
                self._succeeded()
                return done
            finally:
                self.busy_since = None

    def _failed(self, away: Unavailable) -> None:
        now = time.monotonic()
        if self.away_since is None:
            self.away_since = self._said_at = now
            # Who is away, it or Kafka, the reason says.
            log.warning("landing in %s waits, trying again: %s", self._destination, away)
        elif now - self._said_at > _SAY_EVERY_S:
            self._said_at = now
            away_s = now - self.away_since
            log.warning(
                "landing in %s still waits after %.0f s: %s", self._destination, away_s, away
            )
        metrics.RETRIES.labels(self._destination).inc()
        metrics.LAST_ERROR.labels("unavailable").set_to_current_time()

    def _succeeded(self) -> None:
        if self.away_since is not None:
            away_s = time.monotonic() - self.away_since
            log.warning("landing in %s goes on after %.1f s", self._destination, away_s)
            self.away_since = None

    def wait(self, seconds: float) -> None:
        """Wait between attempts; ends early with `stop`."""
        self._stop.wait(seconds)

    def close(self) -> None:
        """Give the sink back."""
        if self._sink is not None:
            self._sink.close()
