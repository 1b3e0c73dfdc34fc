"""Notices a vendor that refuses most of what it is sent: that is a setting, not the events.

A wrong address, plan or project is not always a 401. Without this each event would be rejected by
its own, for good, in as many requests. Of a replay nothing is concluded: it may be of just the
events that were refused before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from consumers.errors import Systemic
from consumers.vendors import Reason

__all__ = ["Refusals"]

# More than this share, of the latest events of which so many are decided; fewer count as so many,
# so that some bad events alone stop nothing. As of dead letters (consumers.deadletters).
_SHARE = 0.5
_WINDOW = 200


class _Decided(NamedTuple):
    """Of one delivery."""

    events: int
    refused: int


class Refusals:
    """What one vendor has refused lately. Belongs to one thread."""

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        self._latest: deque[_Decided] = deque()
        self._open = False

    def begin(self) -> None:
        """A delivery begins; one that was given up before its end comes again as another."""
        if self._open:
            self._latest.pop()
        total = sum(one.events for one in self._latest)
        while self._latest and total - self._latest[0].events >= _WINDOW:
            total -= self._latest.popleft().events
        self._latest.append(_Decided(0, 0))
        self._open = True

    def end(self) -> None:
        """All of its events are final."""
        self._open = False

    def add(self, accepted: int, reasons: Sequence[Reason]) -> None:
        """So many more of the delivery's are accepted, and refused for these. Raises Systemic."""
        events, refused = self._latest.pop()
        self._latest.append(_Decided(events + accepted + len(reasons), refused + len(reasons)))
        refused = sum(one.refused for one in self._latest)
        total = sum(one.events for one in self._latest)
        if reasons and refused > _SHARE * max(total, _WINDOW):
            raise Systemic(
                f"{self._vendor} refuses most of what it is sent: {refused} of the last {total} "
                f"events, the latest because: {reasons[-1].text}. This looks like a wrong setting, "
                "not like bad events. Check address, credentials and plan in "
                f"[vendors.{self._vendor}], or take these events out of [trace] for it; then start "
                "again: nothing of this batch is committed, and it is sent anew"
            )
