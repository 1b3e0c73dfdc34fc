"""Notices a vendor that refuses most of what it is sent: that is a setting, not the events.

A wrong address, plan or project is not always a 401. Without this each event would be rejected by
its own, for good, in as many requests. Of a replay that somebody asks for nothing is concluded: it
may be of just the events that were refused before. What an outage left out was refused by nobody,
but for what the table of raw events gives of it (consumers/replay/legs.py).

A vendor that takes a request whole or not names what is bad before it takes the rest. So long the
rest counts as not refused: else some bad events of 2,000 would be all that it has said of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from consumers.errors import Systemic
from consumers.lately import Lately
from consumers.vendors import Reason

__all__ = ["Refusals"]

# As of dead letters: more than this share, of so many events that are decided.
_SHARE = 0.5
_WINDOW = 200


class Refusals:
    """What one vendor has refused lately. Belongs to one thread."""

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        self._lately = Lately(_SHARE, _WINDOW)
        # Of the delivery that is under way; `left` are not decided, and were not named as bad.
        self._decided = self._refused = self._left = 0

    def begin(self) -> None:
        """A delivery begins; one that was given up before its end comes again as another."""
        self._decided = self._refused = self._left = 0

    def end(self) -> None:
        """All of its events are final."""
        self._lately.add(self._decided, self._refused)

    def add(self, accepted: int, reasons: Sequence[Reason], left: int = 0) -> None:
        """So many more of the delivery's are accepted, and refused for these. Raises Systemic.

        `left`: by how many those have become more (or less) that a refusal has left unnamed.
        """
        self._decided += accepted + len(reasons)
        self._refused += len(reasons)
        self._left += left
        known = self._decided + self._left
        found = self._lately.too_many(known, self._refused) if reasons else None
        if found is not None:
            refused, total = found
            raise Systemic(
                f"{self._vendor} refuses most of what it is sent: {refused} of the last {total} "
                f"events, the latest because: {reasons[-1].text}. This looks like a wrong setting, "
                "not like bad events. Check address, credentials and plan in "
                f"[vendors.{self._vendor}], or take these events out of [trace] for it; then start "
                "again: nothing of this batch is committed, and it is sent anew"
            )
