"""What an answer means for the events of its request: six verdicts, and how to reach one.

A verdict accounts for each event of the request exactly once (`account`): the vendor has it, the
vendor refuses it, or it has to be sent again. Whatever comes back, be it a proxy's error page,
gives a verdict, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import orjson

from consumers.vendors.request import Answer, Code, Reason, Request

__all__ = [
    "Accepted", "Account", "PartlyRejected", "RetryAfter", "SlowDown", "Split", "Stop", "Verdict",
    "account", "by_status", "indexes", "json_object", "names", "retry_after", "said", "split",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accepted:
    """The vendor has all events."""


@dataclass(frozen=True, slots=True)
class PartlyRejected:
    """The vendor refuses these, by their position in the request; it has the rest."""

    rejected: Mapping[int, Reason]
    # But for these. Nothing is wrong with them, they were not taken: send them again.
    again: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """All of them again, in `seconds`; None is the sender's own backoff."""

    seconds: float | None
    why: str
    # The vendor may have taken them all the same: a 500 after the commit, an answer cut short.
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """Something in it, or its size, is refused: again in two halves. Never of a single event."""

    why: str


@dataclass(frozen=True, slots=True)
class SlowDown:
    """Too many events of these users: nothing was taken. Theirs after their seconds, others now."""

    # As `Vendor.users` calls them.
    users: Mapping[str, float]
    why: str
    rejected: Mapping[int, Reason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """No retry will help: credentials or address are wrong. Nothing was taken, or nobody knows."""

    why: str


Verdict = Accepted | PartlyRejected | RetryAfter | Split | SlowDown | Stop


class Account(NamedTuple):
    """Positions in the request; together each of them once."""

    accepted: frozenset[int]
    rejected: Mapping[int, Reason]
    again: frozenset[int]


def account(verdict: Verdict, count: int) -> Account:
    """What a verdict means for each of a request's `count` events."""
    every = frozenset(range(count))
    match verdict:
        case Accepted():
            return Account(every, {}, frozenset())
        case PartlyRejected(rejected, again):
            return Account(every.difference(rejected, again), rejected, again)
        case SlowDown(rejected=rejected):
            return Account(frozenset(), rejected, every.difference(rejected))
        case RetryAfter() | Split() | Stop():
            return Account(frozenset(), {}, every)


# A person has to change credentials, address or plan. A redirect is one: following it would carry
# credentials elsewhere.
_OF_US = {401, 402, 403, 404, 405, 407, 410}
# Or what stands between: all requests have it in common (headers, their size, the address, gzip,
# HTTP's version, the law), so halves would be refused alike.
_OF_ALL = {406, 411, 414, 415, 426, 431, 451, 505}
_STOP = _OF_US | _OF_ALL
# 421 is of the connection: RFC 9110 has it tried again on another one.
_BUSY = {408, 421, 425, 429}
# These come before anything is taken.
_NOT_TAKEN = {421, 425, 429, 503}
# Nobody waits longer on a vendor's word; then it is asked again.
_LONGEST_WAIT_S = 3600.0
_MOST_SAID = 300
# Of an answer, or a part of it, so many characters are looked through for credentials; of what
# that leaves so many for 300 that can be shown.
_MOST_READ, _MOST_SEEN = 65_536, 3000


def by_status(request: Request, answer: Answer, now_us: int) -> Verdict:
    """The verdict where the vendor says no more than a status."""
    status = answer.status
    why = said(request, answer)
    if 200 <= status < 300:
        return Accepted()
    if status in _STOP or 300 <= status < 400:
        return Stop(why)
    if 400 <= status < 500 and status not in _BUSY:
        return split(request, why)
    return RetryAfter(retry_after(answer, now_us), why, unknown=status not in _NOT_TAKEN)


def split(request: Request, why: str) -> Verdict:
    """In halves; a single event that is refused is rejected."""
    if len(request.events) > 1:
        return Split(why)
    return PartlyRejected({n: Reason(Code.REJECTED, why) for n in range(len(request.events))})


def said(request: Request, answer: Answer, *, detail: str = "") -> str:
    """Status and the beginning of the answer (or `detail` of it), without credentials."""
    told = detail[:_MOST_READ] or answer.body[:_MOST_READ].decode(errors="replace")
    words = request.masked(told)[:_MOST_SEEN]
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())[:_MOST_SAID]
    return f"HTTP {answer.status}: {words}" if words else f"HTTP {answer.status}"


def json_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def indexes(found: object, count: int) -> list[int]:
    """Positions in a list of them; what is none is left out."""
    if not isinstance(found, list):
        return []
    return [n for n in found if type(n) is int and 0 <= n < count]


def names(found: object) -> set[str]:
    """Names in a list of them, or those that an object has."""
    if not isinstance(found, dict | list):
        return set()
    return {name for name in found if isinstance(name, str)}


def retry_after(answer: Answer, now_us: int) -> float | None:
    """Retry-After in seconds, whether a number or a date; None where it says nothing useful."""
    text = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.fromtimestamp(now_us / 1e6, UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT_S) if math.isfinite(seconds) else None
