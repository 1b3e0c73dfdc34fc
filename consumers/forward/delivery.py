"""What becomes of the events of one batch: those that are final, and those still on their way.

It outlives an outage: what a vendor has accepted is not sent again when the rest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from consumers.forward.lines import Lines, Unit
from consumers.trace.event import Event
from consumers.vendors import Code, Reason

__all__ = ["Delivery", "Final", "Status", "Terms"]

# The vendor would take it, and make something else of it: it came too late.
_LATE = {Code.TOO_OLD, Code.DUPLICATE_POSSIBLE}


class Status(StrEnum):
    """As receipts have it."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DROPPED = "dropped"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all events of a delivery: live ones, or those of a replay."""

    backfill: bool = False
    allow_redate: bool = False
    allow_duplicates: bool = False
    # Of a replay: the vendor has refused none of them before, for they are what an outage left out.
    unjudged: bool = False


class Final(NamedTuple):
    """One event, and what became of it. Times in microseconds since 1970, 0 for none."""

    event: Event
    status: Status
    reason: Reason | None
    attempts: int
    sent_us: int
    answered_us: int
    repeated: bool


class Delivery:
    """Events in their order; those of `repeated` may have been sent before by somebody else."""

    def __init__(
        self, repeated: Sequence[Event], fresh: Sequence[Event], terms: Terms | None = None
    ) -> None:
        self.terms = terms or Terms()
        # Not yet made into requests; they come before the others.
        self.begun = False
        self.repeated = repeated
        self.fresh = fresh
        self.lines = Lines()
        self.finals: list[Final] = []
        # Whether it was told on which event a vendor fails.
        self.told = False

    @property
    def done(self) -> bool:
        """Whether all are final."""
        return self.begun and not self.lines

    @property
    def stands_still(self) -> bool:
        """Whether all that could go has gone, and nobody was told."""
        return bool(self.finals) and self.lines.due() is None and not self.told

    def accept(self, unit: Unit, events: Sequence[Event], answered_us: int) -> None:
        """The vendor has these."""
        attempts, sent_us, repeated = unit.attempts, unit.sent_us, unit.repeated
        self.finals += [
            Final(e, Status.ACCEPTED, None, attempts, sent_us, answered_us, repeated)
            for e in events
        ]

    def refuse(self, unit: Unit, event: Event, reason: Reason, at_us: int) -> None:
        """The vendor won't take it, or would spoil it."""
        status = Status.EXPIRED if reason.code in _LATE else Status.REJECTED
        self.finals.append(
            Final(event, status, reason, unit.attempts, unit.sent_us, at_us, unit.repeated)
        )
