"""How much one user, device or project has sent over a rolling span."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

__all__ = ["Rolling"]


class Rolling:
    """At most `most` within `span_us`, for each name by itself.

    Counted in `slots` parts of the span, each of which is forgotten as a whole: a count leaves the
    span up to a slot late, never early. So a name that is silent for a span is forgotten too.
    """

    def __init__(self, most: int, span_us: int, slots: int = 30) -> None:
        self.most = most
        self._slot_us = max(1, span_us // slots)
        self._slots = slots
        # The oldest in front; what a name has in all of them is its sum.
        self._parts: deque[tuple[int, dict[str, int]]] = deque()
        self._sums: dict[str, int] = {}

    def over(self, asked: Mapping[str, int], now_us: int) -> dict[str, int]:
        """The names for which so many more would be too many, and what they would come to."""
        self._forget(now_us)
        sums, most = self._sums, self.most
        return {
            name: total
            for name, count in asked.items()
            if (total := sums.get(name, 0) + count) > most
        }

    def add(self, asked: Mapping[str, int], now_us: int) -> None:
        """Count these."""
        self._forget(now_us)
        slot = now_us // self._slot_us
        if not self._parts or self._parts[-1][0] < slot:
            self._parts.append((slot, {}))
        part, sums = self._parts[-1][1], self._sums
        for name, count in asked.items():
            part[name] = part.get(name, 0) + count
            sums[name] = sums.get(name, 0) + count

    def _forget(self, now_us: int) -> None:
        oldest = now_us // self._slot_us - self._slots
        while self._parts and self._parts[0][0] < oldest:
            for name, count in self._parts.popleft()[1].items():
                left = self._sums[name] - count
                if left:
                    self._sums[name] = left
                else:
                    del self._sums[name]
