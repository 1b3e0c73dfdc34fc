"""What one vendor has stored, and what it knows a copy by.

Of each event five things are kept and nothing else, as columns: key, name, user, its time, when it
came; some 300 bytes each. An identity is kept as 16 bytes of its hash, for as long as the vendor
remembers it.

    count      events stored
    keys       different keys among them; `doubled` is how many of them were stored again
    repeated   copies that the vendor recognised and did not store
    dropped    lost by the fault `drop`, with no word in the answer
    lost       lost by the vendor's own rules, with no word in the answer, by reason
    answers    answers by status; `reset` for a connection that was cut instead
    waiting    requests that are held just now, by the fault `slow_s`
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from headrace.vendors.model import Event

__all__ = ["Shelf", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events; all that is given has to hold. Times in microseconds, `until` is not in."""

    key: str | None = None
    name: str | None = None
    user: str | None = None
    time_from: int | None = None
    time_until: int | None = None
    came_from: int | None = None
    came_until: int | None = None


class Shelf:
    """One vendor's. `window_us` is how long an identity is remembered, None for ever."""

    def __init__(self, window_us: int | None) -> None:
        self._window_us = window_us
        # Requests that are held because the vendor is slow.
        self.waiting = 0
        self.clear()

    def clear(self) -> None:
        """Forget all, identities too."""
        self._keys: list[str] = []
        self._names: list[str] = []
        self._users: list[str] = []
        self._times = array("q")
        self._came = array("q")
        # In the order of arrival, so that the oldest is in front.
        self._known: dict[bytes, int] = {}
        self._answers: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._repeated = 0
        self._dropped = 0

    def answered(self, how: str) -> None:
        """A request was answered with this status, or `reset`."""
        self._answers[how] += 1

    def keep(
        self,
        events: Sequence[Event],
        now_us: int,
        lost: Mapping[str, int] | None = None,
        drop: Callable[[], bool] | None = None,
    ) -> None:
        """Store what is new. `drop` says of each event in turn whether it is lost before that."""
        self._lost.update(lost or {})
        self._forget(now_us)
        for event in events:
            if drop is not None and drop():
                self._dropped += 1
                continue
            if event.identity:
                mark = blake2b(event.identity.encode(errors="replace"), digest_size=16).digest()
                if mark in self._known:
                    self._repeated += 1
                    continue
                self._known[mark] = now_us
            self._keys.append(event.key)
            self._names.append(sys.intern(event.name))
            self._users.append(sys.intern(event.user))
            self._times.append(event.time_us)
            self._came.append(now_us)

    def _forget(self, now_us: int) -> None:
        if self._window_us is None:
            return
        oldest = now_us - self._window_us
        gone = []
        for mark, came in self._known.items():
            if came > oldest:
                break
            gone.append(mark)
        for mark in gone:
            del self._known[mark]

    def summary(self, wanted: Wanted | None = None) -> dict[str, Any]:
        """Counts and times of the events that are wanted; repeated, dropped … are of all."""
        every = wanted is None or wanted == Wanted()
        found = range(len(self._keys)) if every else list(self._find(wanted or Wanted()))
        with_key = [self._keys[n] for n in found if self._keys[n]]
        keys = len(set(with_key))

        def span(column: array[int]) -> list[int] | None:
            if not found:
                return None
            return [min(column[n] for n in found), max(column[n] for n in found)]

        return {
            "count": len(found),
            "keys": keys,
            "doubled": len(with_key) - keys,
            "repeated": self._repeated,
            "dropped": self._dropped,
            "lost": dict(self._lost),
            "answers": dict(self._answers),
            "waiting": self.waiting,
            "time_us": span(self._times),
            "came_us": span(self._came),
        }

    def rows(self, wanted: Wanted, offset: int, limit: int) -> list[dict[str, Any]]:
        """Events in the order in which they came."""
        return [
            {
                "key": self._keys[n], "name": self._names[n], "user": self._users[n],
                "time_us": self._times[n], "came_us": self._came[n],
            }
            for n in self._part(wanted, offset, limit)
        ]  # fmt: skip

    def keys(self, wanted: Wanted, offset: int, limit: int) -> list[str]:
        """Their keys, one for each event."""
        return [self._keys[n] for n in self._part(wanted, offset, limit)]

    def _part(self, wanted: Wanted, offset: int, limit: int) -> Iterator[int]:
        for number, n in enumerate(self._find(wanted)):
            if number >= offset + limit:
                return
            if number >= offset:
                yield n

    def _find(self, wanted: Wanted) -> Iterator[int]:
        for n in range(len(self._keys)):
            if (
                _is(self._keys[n], wanted.key)
                and _is(self._names[n], wanted.name)
                and _is(self._users[n], wanted.user)
                and _within(self._times[n], wanted.time_from, wanted.time_until)
                and _within(self._came[n], wanted.came_from, wanted.came_until)
            ):
                yield n


def _is(value: str, wanted: str | None) -> bool:
    return wanted is None or value == wanted


def _within(value: int, start: int | None, end: int | None) -> bool:
    return (start is None or value >= start) and (end is None or value < end)
