"""How much at once and how fast: what a vendor's 429s teach, and the rates that it states.

    Window   requests under way. One more for each round without 429, half as many after one (AIMD).
    Rate     events over time for the whole project: evenly, and any window of time keeps to it.
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
# A user's window is filled at once, and one request may be longer on its way than the next: what
# left more than a second apart must not arrive within one. A 429 there costs 30 s of rest.
_LATE_S = 0.25
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


class _Rolling:
    """At most `events` in any `seconds`, which may be filled at once. More than that goes alone."""

    __slots__ = ("_count", "_events", "_seconds", "_sent")

    def __init__(self, events: int, seconds: float) -> None:
        self._events = events
        self._seconds = seconds / _SHARE
        # When requests left, oldest first, with their events; and these in all.
        self._sent: deque[tuple[float, int]] = deque()
        self._count = 0

    def wait_s(self, now: float, count: int) -> float:
        """How long a request with so many events has to wait."""
        sent = self._sent
        while sent and sent[0][0] <= now - self._seconds:
            self._count -= sent.popleft()[1]
        over = self._count + count - self._events
        until = now
        for at, n in sent:
            if over <= 0:
                break
            over -= n
            until = at + self._seconds
        return until - now

    def sent(self, now: float, count: int) -> None:
        """So many events leave."""
        self._sent.append((now, count))
        self._count += count

    def is_silent(self, now: float) -> bool:
        """Whether nothing of it counts any more."""
        return not self._sent or self._sent[-1][0] <= now - self._seconds


class Rate:
    """At most `events` in any `seconds`, evenly."""

    def __init__(self, events: int, seconds: float) -> None:
        self._each_s = seconds / (events * _SHARE)
        self._ahead_s = seconds * _BURST
        self._used_until = 0.0
        # Behind small requests a large one is even by the mean, and yet too much for a window.
        self._rolling = _Rolling(events, seconds)

    def wait_s(self, now: float, count: int) -> float:
        """How long a request with so many events has to wait."""
        needs_s = count * self._each_s
        evenly_s = self._used_until + needs_s - max(self._ahead_s, needs_s) - now
        return max(0.0, evenly_s, self._rolling.wait_s(now, count))

    def sent(self, now: float, count: int) -> None:
        """So many events leave."""
        self._used_until = max(self._used_until, now) + count * self._each_s
        self._rolling.sent(now, count)


class Users:
    """At most `events` in any `seconds` for each user."""

    def __init__(self, events: int, seconds: float) -> None:
        self._events = events
        # A _Rolling's span is a little longer by itself.
        self._seconds = max(seconds, (seconds + _LATE_S) * _SHARE)
        self._users: dict[str, _Rolling] = {}

    def wait_s(self, now: float, asked: Mapping[str, int]) -> float:
        """How long a request with so many events of these users has to wait."""
        users = self._users
        return max((users[u].wait_s(now, n) for u, n in asked.items() if u in users), default=0.0)

    def sent(self, now: float, asked: Mapping[str, int]) -> None:
        """They leave."""
        if len(self._users) > _MANY_USERS:
            self._users = {u: r for u, r in self._users.items() if not r.is_silent(now)}
        for user, count in asked.items():
            rolling = self._users.get(user)
            if rolling is None:
                rolling = self._users[user] = _Rolling(self._events, self._seconds)
            rolling.sent(now, count)
