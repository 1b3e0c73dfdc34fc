"""What has to be sent once more: as it was, in parts, or apart from users who have to rest.

A request that fails again and again, by a 5xx or without an answer in time, may do so for one event that
the vendor trips over, or because it is too much at once; in halves the rest of it is taken. Of a vendor
that is away only what asks for it is halved, and each half later than the whole: so a long outage leaves
little more to send than a short one.
"""  # noqa: E501

from __future__ import annotations

import random
from collections.abc import Sequence

from consumers.forward.lines import Unit, apart
from consumers.trace.event import Event
from consumers.vendors import RetryAfter, SlowDown, Split, Vendor, Verdict

__all__ = ["jitter", "units_again"]

# Between attempts, doubling, in seconds.
_BACKOFF_S, _MOST_BACKOFF_S = 0.2, 30.0
# Failures in a row, with others taken in between, behind which a unit is halved.
_DOUBTFUL = 3


def jitter() -> float:
    """0.5 to 1."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


def units_again(
    vendor: Vendor, unit: Unit, verdict: Verdict, left: Sequence[Event], now: float, *,
    away: bool, asked: bool,
) -> list[Unit]:  # fmt: skip
    """Units of what is `left` of one, in the order in which they have to go.

    `away`: the vendor is taken to be, and `asked`: this was the request that should find out.
    """
    if isinstance(verdict, Split) and len(left) > 1:
        return _halves(vendor, unit, left)
    if isinstance(verdict, SlowDown):
        rest_s = max(verdict.users.values(), default=0.0)
        others, theirs = apart(vendor, left, verdict.users)
        found = [unit.part(vendor, others)] if others else []
        return [*found, unit.part(vendor, theirs, now + rest_s)] if theirs else found
    again = unit.part(vendor, left)
    if isinstance(verdict, RetryAfter):
        if verdict.unknown and not again.repeated:
            again.repeated, again.first_us = True, again.sent_us
        # One that is busy, or says when to come again, does not mean the request.
        meant = verdict.unknown and verdict.seconds is None and len(left) > 1
        if _failed(again, now, away=away, asked=asked and meant) and meant:
            # A half that fails once more is halved at once.
            again.failures = _DOUBTFUL
            return _halves(vendor, again, left)
    return [again]


def _failed(unit: Unit, now: float, *, away: bool, asked: bool) -> bool:
    """Note it; whether it may be the unit's fault."""
    if away:
        # Which says nothing of the others, and the breaker has the pauses.
        unit.asked += asked
        if unit.asked < unit.patience:
            return False
        unit.asked, unit.patience = 0, unit.patience * 2
        return True
    unit.failures += 1
    backoff_s = min(_BACKOFF_S * 2 ** min(unit.failures - 1, 20), _MOST_BACKOFF_S)
    unit.not_before = now + backoff_s * jitter()
    return unit.failures > _DOUBTFUL


def _halves(vendor: Vendor, unit: Unit, left: Sequence[Event]) -> list[Unit]:
    first, second = _by_users(vendor, left)
    if not second:
        half = len(left) // 2
        first, second = left[:half], left[half:]
    return [unit.part(vendor, first), unit.part(vendor, second)]


def _by_users(vendor: Vendor, left: Sequence[Event]) -> tuple[Sequence[Event], Sequence[Event]]:
    """Two parts that have no user in common, so that neither waits for the other one.

    The second is empty where there are none.
    """
    first: list[Event] = []
    second: list[Event] = []
    of_first: set[str] = set()
    of_second: set[str] = set()
    for event in left:
        users = vendor.users(event)
        in_first, in_second = not of_first.isdisjoint(users), not of_second.isdisjoint(users)
        if in_first and in_second:
            return left, ()
        if in_first or (not in_second and len(first) <= len(second)):
            first.append(event)
            of_first.update(users)
        else:
            second.append(event)
            of_second.update(users)
    return first, second
