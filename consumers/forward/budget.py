"""What one vendor takes, shared by all that sends to it from this process: live events and jobs.

They keep to the same rates together, and know of each other whether the vendor is away. Live events
go first: a job takes what they leave, and rests while they wait for a rate or were just throttled.
Other processes are not known; there the vendor's 429s are what divides.

From any thread. Times are in seconds on any clock that does not go back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from consumers.forward.breaker import Breaker
from consumers.forward.pace import LONGEST_S, Rate, Users
from consumers.vendors import Limits
from consumers.vendors.packing import Rate as Stated

__all__ = ["Budget", "Share"]

# Behind a moment for which live events wait, so that they are there before a job is.
_COURTESY_S = 0.05
# For which a job rests after live events were throttled.
_THROTTLED_S = 2.0


class Budget:
    """One for each vendor and process."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.lock = threading.Lock()
        self.rates: dict[Stated, Rate] = {}
        self.users: dict[Stated, Users] = {}
        # Until when jobs leave it to live events.
        self.reserved_until = float("-inf")

    def share(self, limits: Limits, *, last: bool) -> Share:
        """What a sender with these limits takes from; `last` for one that lets others go first.

        A rate that several of them have to keep to is one rate; those of another endpoint are apart.
        """  # noqa: E501
        rates, users = [], []
        for stated in limits.rates:
            if stated.seconds > LONGEST_S:
                continue
            if stated.scope == "project":
                rates.append(self.rates.setdefault(stated, Rate(stated.events, stated.seconds)))
            else:
                users.append(self.users.setdefault(stated, Users(stated.events, stated.seconds)))
        return Share(self, rates, users, last=last)


class Share:
    """One sender's part in it."""

    def __init__(
        self, budget: Budget, rates: list[Rate], users: list[Users], *, last: bool
    ) -> None:
        self.breaker = budget.breaker
        self._budget = budget
        self._rates, self._users = rates, users
        self._last = last

    def take(self, now: float, count: int, users: Mapping[str, int]) -> tuple[float, float]:
        """Zeros when a request may go, which then counts as sent.

        Otherwise how long everybody has to wait, or else these users.
        """
        budget = self._budget
        with budget.lock:
            wait_s = max((rate.wait_s(now, count) for rate in self._rates), default=0.0)
            if self._last:
                wait_s = max(wait_s, budget.reserved_until - now)
            elif wait_s > 0:
                self._reserve(now + wait_s + _COURTESY_S)
            if wait_s > 0:
                return wait_s, 0.0
            resting_s = max((u.wait_s(now, users) for u in self._users), default=0.0)
            if resting_s > 0:
                return 0.0, resting_s
            for rate in self._rates:
                rate.sent(now, count)
            for one in self._users:
                one.sent(now, users)
        return 0.0, 0.0

    def throttled(self, now: float) -> None:
        """The vendor has said 429 to this sender."""
        if not self._last:
            with self._budget.lock:
                self._reserve(now + _THROTTLED_S)

    def _reserve(self, until: float) -> None:
        self._budget.reserved_until = max(self._budget.reserved_until, until)
