"""Mixpanel's rules for one event: what is refused, and what is made of the rest."""

from __future__ import annotations

import re
from typing import Any

from headrace.vendors.model import Event
from ingest.units import DAY_US, HOUR_US

__all__ = ["event_of", "wrong_with"]

_EARLIEST_US = 365 * DAY_US
_INSERT_ID = re.compile(r"[A-Za-z0-9-]{1,36}")
# A number of seconds as large as this is the year 5138: it is milliseconds.
_MILLISECONDS_FROM = 10**11
_MOST = 255
_DEPTH = 3
# docs.mixpanel.com, 400-bad-request; "" is allowed: an event of nobody.
_NO_ID = frozenset({
    "anon", "anonymous", "nil", "none", "null", "n/a", "00000000-0000-0000-0000-000000000000",
})  # fmt: skip


def wrong_with(record: Any, now_us: int) -> tuple[str, str] | None:  # noqa: PLR0911 (one for each rule)
    """The field and what is wrong with it, of an event for /import; None for a good one."""
    if not isinstance(record, dict):
        return "event", "is no object"
    name, properties = record.get("event"), record.get("properties")
    if not isinstance(name, str) or not name:
        return "event", "'event' is missing or empty"
    if not isinstance(properties, dict):
        return "properties", "'properties' is missing"
    time_us = _time_us(properties.get("time"))
    if time_us is None or time_us < _EARLIEST_US:
        text = "'properties.time' is invalid: must be specified as seconds since epoch"
        return "properties.time", text
    if time_us > now_us + HOUR_US:
        return "properties.time", "'properties.time' is more than an hour in the future"
    user = properties.get("distinct_id")
    if not isinstance(user, str) or user.lower() in _NO_ID:
        return "properties.distinct_id", "'properties.distinct_id' is missing or a placeholder"
    key = properties.get("$insert_id")
    if not isinstance(key, str) or not _INSERT_ID.fullmatch(key):
        return "properties.$insert_id", "'properties.$insert_id' is missing or malformed"
    if _too_much(properties, _DEPTH):
        return "properties", f"{_MOST} properties, keys or elements, or nested too deeply"
    return None


def event_of(record: dict[str, Any], now_us: int) -> Event:
    """What is stored of an event that is good enough for its endpoint."""
    properties = record["properties"]
    given_us = _time_us(properties.get("time"))
    # A time to come is overwritten.
    time_us = now_us if given_us is None else min(given_us, now_us)
    name, user = str(record["event"]), str(properties.get("distinct_id", ""))
    key = str(properties.get("$insert_id") or "")
    # By the time that it is stored with: who sends one to come twice has two.
    identity = f"{name}\0{time_us}\0{user}\0{key}" if key else ""
    return Event(key, name, user, time_us, identity)


def _time_us(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return round(value * (1000 if value >= _MILLISECONDS_FROM else 1_000_000))
    except OverflowError:  # 1e308: there is no such time
        return None


def _too_much(value: Any, depth: int) -> bool:
    """Whether it has too many parts at some place, or is nested more than so deep."""
    if not isinstance(value, dict | list):
        return False
    if depth < 0 or len(value) >= _MOST:
        return True
    parts = value.values() if isinstance(value, dict) else value
    return any(_too_much(part, depth - 1) for part in parts)
