"""How much at once and how fast: what a vendor's 429s teach, and the rates that it states.

    Window   requests under way. One more for each round without 429, half as many after one (AIMD).
    Rate     events over time for the whole project: evenly, so that any window of time keeps to it.
    Users    events over time for each user: a window may be filled at once.

Times are in seconds on any clock that does not go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

__all__ = ["LONGEST_S", "Rate", "Users", "Window"]

# Our clock sees requests leave, the vendor's sees them arrive: of a rate so much is used.
_SHARE = 0.95
# … of which at most this part at once.
_BURST = 0.05
# A longer span is not for the sender to keep to: an answer says when a day's quota is used up.
LONGEST_S = 3600.0
# Users that are remembered before the silent ones are forgotten.
_MANY_USERS = 50_000
# After a 429 that says nothing of when to come again, and while they go on; in seconds.
_REST_S, _MOST_REST_S = 0.5, 60.0


class Window:
    """How many requests may be under way, from 1 to `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = float(min(most, 4))
        # No request goes before.
        self.rests_until = 0.0
        self._cut_at = float("-inf")
        self._rest_s = _REST_S

    def taken(self, sent_at: float) -> None:
        """A request that left then was taken."""
        self.size = min(self.size + 1 / self.size, float(self._most))
        if sent_at > self._cut_at:
            self._rest_s = _REST_S

    def refused(self, now: float, sent_at: float, retry_after_s: float | None) -> None:
        """A request that left then was one too many. Those that left with it count once."""
        if sent_at > self._cut_at:
            rest_s, self._rest_s = self._rest_s, min(self._rest_s * 2, _MOST_REST_S)
            self.size = max(self.size / 2, 1.0)
            self._cut_at = now
            self.rests_until = max(self.rests_until, now + rest_s)
        if retry_after_s is not None:
            self.rests_until = max(self.rests_until, now + retry_after_s)


class Rate:
    """At most `events` in any `seconds`, evenly."""

    def __init__(self, events: int, seconds: float) -> None:
        self._each_s = seconds / (events * _SHARE)
        self._ahead_s = seconds * _BURST
        self._used_until = 0.0

    def wait_s(self, now: float, count: int) -> float:
        """How long a request with so many events has to wait."""
        needs_s = count * self._each_s
        return max(0.0, self._used_until + needs_s - max(self._ahead_s, needs_s) - now)

    def sent(self, now: float, count: int) -> None:
        """So many events leave."""
        self._used_until = max(self._used_until, now) + count * self._each_s


class Users:
    """At most `events` in any `seconds` for each user."""

    def __init__(self, events: int, seconds: float) -> None:
        self._events = events
        self._seconds = seconds / _SHARE
        self._sent: dict[str, deque[tuple[float, int]]] = {}

    def wait_s(self, now: float, asked: Mapping[str, int]) -> float:
        """How long a request with so many events of these users has to wait."""
        longest = 0.0
        for user, count in asked.items():
            sent = self._sent.get(user)
            if sent is None:
                continue
            while sent and sent[0][0] <= now - self._seconds:
                sent.popleft()
            over = sum(n for _, n in sent) + count - self._events
            for at, n in sent:
                if over <= 0:
                    break
                over -= n
                longest = max(longest, at + self._seconds - now)
        return longest

    def sent(self, now: float, asked: Mapping[str, int]) -> None:
        """They leave."""
        if len(self._sent) > _MANY_USERS:
            oldest = now - self._seconds
            self._sent = {u: s for u, s in self._sent.items() if s and s[-1][0] > oldest}
        for user, count in asked.items():
            self._sent.setdefault(user, deque()).append((now, count))
