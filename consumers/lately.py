"""How many of what came lately was bad, and whether that is too many."""

from __future__ import annotations

from collections import deque

__all__ = ["Lately"]


class Lately:
    """The latest batches that together hold at least `window` records.

    Fewer records count as a full window, so that one bad record alone is not more than the `share`
    that may be bad. Belongs to one thread.
    """

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._window = window
        self._batches: deque[tuple[int, int]] = deque()

    def too_many(self, count: int, bad: int) -> tuple[int, int] | None:
        """How many are bad, of how many, were a batch of `count` to come; None if few enough."""
        batches = self._batches.copy()
        batches.append((count, bad))
        self._trim(batches)
        total, bad = sum(n for n, _ in batches), sum(n for _, n in batches)
        return (bad, total) if bad > self._share * max(total, self._window) else None

    def add(self, count: int, bad: int) -> None:
        """A batch of `count` has come, of which some were bad."""
        if count:
            self._batches.append((count, bad))
            self._trim(self._batches)

    def _trim(self, batches: deque[tuple[int, int]]) -> None:
        total = sum(n for n, _ in batches)
        while batches and total - batches[0][0] >= self._window:
            total -= batches.popleft()[0]
