"""Which request may be sent next: each user has a line, and a request stands in those of its users.

A `Unit` is some events on their way together. It may go when it is first in all of its lines, so
that events of one user never overtake each other, whatever happens to those before them; users have
nothing else to do with each other. A unit that comes back in part is replaced, where it stood, by
units of what is left: halves, or those who have to rest and those who have not.

Times are in seconds on any clock that does not go back.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from consumers.trace.event import Event
from consumers.vendors import Request, Vendor

__all__ = ["Lines", "Unit", "apart"]


@dataclass(slots=True, eq=False)
class Unit:
    """Events in their order; `request` is what was made of just these, if it was."""

    events: Sequence[Event]
    # How many events of each user.
    users: Counter[str]
    request: Request | None = None
    # When the request was made.
    made_at: float = 0.0
    not_before: float = 0.0
    # Requests that had these events, and when the last one left (microseconds since 1970).
    attempts: int = 0
    sent_us: int = 0
    # Whether one of them may have been taken without our knowing, and when the first such one
    # left; 0 where others may have sent them before.
    repeated: bool = False
    first_us: int = 0
    # The rest of a request, of which the vendor has named what is bad.
    rest: bool = False
    # Attempts in a row that failed, for the back-off.
    failures: int = 0
    # How often it has asked in vain for a vendor that is away, and how often it does in one piece.
    asked: int = 0
    patience: int = 4
    # Lines in which another one is before it.
    behind: int = field(default=0, repr=False)

    def part(self, vendor: Vendor, events: Sequence[Event], not_before: float = 0.0) -> Unit:
        """Some of its events, with what has happened to them so far."""
        return Unit(
            events, users_of(vendor, events), not_before=not_before, attempts=self.attempts,
            sent_us=self.sent_us, repeated=self.repeated, first_us=self.first_us,
            rest=self.rest, failures=self.failures, asked=self.asked, patience=self.patience,
        )  # fmt: skip


def users_of(vendor: Vendor, events: Sequence[Event]) -> Counter[str]:
    """How many events of each user there are."""
    users = vendor.users
    return Counter([user for event in events for user in users(event)])


def apart(
    vendor: Vendor, events: Sequence[Event], resting: Collection[str]
) -> tuple[list[Event], list[Event]]:
    """Events that may go now, and those of users that rest, or that are behind one of theirs."""
    held = set(resting)
    now: list[Event] = []
    later: list[Event] = []
    for event in events:
        users = vendor.users(event)
        if held.isdisjoint(users):
            now.append(event)
        else:
            held.update(users)
            later.append(event)
    return now, later


class Lines:
    """All units that are not done, those under way included."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Unit]] = {}
        # First in all of their lines, and not under way: (not_before, number, unit).
        self._ready: list[tuple[float, int, Unit]] = []
        self._number = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, unit: Unit) -> None:
        """At the end of its lines."""
        self._count += 1
        for user in unit.users:
            line = self._lines.setdefault(user, deque())
            unit.behind += bool(line)
            line.append(unit)
        if not unit.behind:
            self._push(unit)

    def take(self, now: float) -> Unit | None:
        """One that may go; it is under way until `put_back`, `replace` or `done`."""
        if not self._ready or self._ready[0][0] > now:
            return None
        return heapq.heappop(self._ready)[2]

    def due(self) -> float | None:
        """When the next one may go; None while all wait for others, or there is none."""
        return self._ready[0][0] if self._ready else None

    def put_back(self, unit: Unit, not_before: float) -> None:
        """It goes later, as it is."""
        unit.not_before = not_before
        self._push(unit)

    def replace(self, unit: Unit, units: Sequence[Unit]) -> None:
        """These, in their order, take the place of one under way; all their users are its own."""
        self._count += len(units) - 1
        for user in unit.users:
            line = self._lines[user]
            line.popleft()
            theirs = [other for other in units if user in other.users]
            for other in theirs[1:]:
                other.behind += 1
            line.extendleft(reversed(theirs))
            if not line:
                del self._lines[user]
            elif not theirs:
                line[0].behind -= 1
                if not line[0].behind:
                    self._push(line[0])
        for other in units:
            if not other.behind:
                self._push(other)

    def done(self, unit: Unit) -> None:
        """Its events are final."""
        self.replace(unit, ())

    def _push(self, unit: Unit) -> None:
        self._number += 1
        heapq.heappush(self._ready, (unit.not_before, self._number, unit))
