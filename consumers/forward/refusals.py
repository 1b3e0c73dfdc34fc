"""Notices a vendor that refuses most of what it is sent: that is a setting, not the events.

A wrong address, plan or project is not always a 401. Without this each event would be rejected by
its own, for good, in as many requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from consumers.errors import Systemic
from consumers.forward.delivery import Delivery
from consumers.vendors import Reason

__all__ = ["Refusals"]

# More than this share, of the latest deliveries that have so many events together; fewer count as
# so many, so that some bad events alone stop nothing. As of dead letters (consumers.deadletters).
_SHARE = 0.5
_WINDOW = 200


@dataclass(slots=True)
class _Sent:
    delivery: Delivery
    events: int
    refused: int = 0


class Refusals:
    """What one vendor has refused lately. Belongs to one thread."""

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        self._latest: deque[_Sent] = deque()

    def begin(self, delivery: Delivery) -> None:
        """A delivery begins; one that was not ended comes again as another."""
        if self._latest and not self._latest[-1].delivery.done:
            self._latest.pop()
        total = sum(one.events for one in self._latest)
        while self._latest and total - self._latest[0].events >= _WINDOW:
            total -= self._latest.popleft().events
        self._latest.append(_Sent(delivery, len(delivery.repeated) + len(delivery.fresh)))

    def add(self, reasons: Sequence[Reason]) -> None:
        """So many more are refused, of the delivery that began last. Raises Systemic."""
        if not reasons:
            return
        self._latest[-1].refused += len(reasons)
        refused = sum(one.refused for one in self._latest)
        total = sum(one.events for one in self._latest)
        if refused > _SHARE * max(total, _WINDOW):
            raise Systemic(
                f"{self._vendor} refuses most of what it is sent: {refused} of the last {total} "
                f"events, the latest because: {reasons[-1].text}. This looks like a wrong setting, "
                "not like bad events. Check address, credentials and plan in "
                f"[vendors.{self._vendor}], or take these events out of [trace] for it; then start "
                "again: nothing of this batch is committed, and it is sent anew"
            )
