"""A circuit breaker: a vendor that fails again and again is left alone, then asked just once.

    closed     requests go
    open       none goes until `due`
    half open  one request goes, alone; its answer closes or opens

It opens at the fifth failure in a row: of requests of which one in twenty fails, that is one in
three million. The pauses are short, 0.5 s to 2 s, so that a vendor that is back is known to be so
within seconds; one that says when to come again is believed. Times are in seconds on any clock that
does not go back. From any thread: one breaker is for all that sends to a vendor from this process.
"""

from __future__ import annotations

import threading
from enum import IntEnum

__all__ = ["Breaker", "State"]

_FAILURES = 5
_PAUSE_S, _MOST_S = 0.5, 2.0


class State(IntEnum):
    """As the metric has it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """See the module's comment. `jitter` is 0.5 to 1, a new one for each pause."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.due = 0.0
        self._failures = 0
        self._pause_s = _PAUSE_S
        self._probing = False
        self._question = 0
        self._lock = threading.Lock()

    def may_send(self, now: float) -> bool:
        """Whether a request may go now. Half open, one may, until it is answered."""
        with self._lock:
            if self.state is State.OPEN and now >= self.due:
                self.state = State.HALF_OPEN
                self._probing = False
            half = self.state is State.HALF_OPEN
            return self.state is State.CLOSED or (half and not self._probing)

    def sent(self) -> int:
        """A request goes; the number of its question if it is the one that asks, otherwise 0."""
        with self._lock:
            self._probing = self.state is State.HALF_OPEN
            self._question += self._probing
            return self._question if self._probing else 0

    def answered(self) -> None:
        """The vendor answers, whatever it says of the events."""
        with self._lock:
            self.state = State.CLOSED
            self._failures = 0
            self._pause_s = _PAUSE_S
            self._probing = False

    def failed(self, now: float, jitter: float, retry_after_s: float | None = None) -> None:
        """A request had no answer that helps: no connection, a time-out, a 5xx."""
        with self._lock:
            self._failures += 1
            again = self.state is State.HALF_OPEN
            if self.state is State.OPEN:
                # What was under way when it opened; it says nothing new but when to come again.
                self.due = max(self.due, now + (retry_after_s or 0.0))
            elif again or self._failures >= _FAILURES or retry_after_s:
                self.state = State.OPEN
                self.due = now + max(self._pause_s * jitter, retry_after_s or 0.0)
                self._pause_s = min(self._pause_s * 2, _MOST_S)
            self._probing = False

    def gave_up(self, question: int) -> None:
        """The request that asked was abandoned: another one may ask, unless one does already."""
        with self._lock:
            if question == self._question:
                self._probing = False
