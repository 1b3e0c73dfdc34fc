"""Times and durations as people type them, and times as they are shown."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from functools import cache

import click

__all__ = ["DURATION", "TIME", "Duration", "Time", "check_range", "rfc3339", "utc"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
# Between date and time Python takes any character: of a number of milliseconds, one digit in it,
# it makes a moment of the year 1764.
_RUN_OF_DIGITS = re.compile(r"\d{9,}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@cache
def _now_us() -> int:
    """One moment for the whole command, so that "-1h" to "now" is an hour to the microsecond."""
    return time.time_ns() // 1000


class Duration(click.ParamType[float]):
    """ "90s", "2m", "1.5h", "7d": seconds, as a float."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not a duration: write 90s, 2m, 1.5h, 7d", param, ctx)
        return float(found[1]) * _UNITS_S[found[2]]


class Time(click.ParamType[int]):
    """RFC 3339, "now", or relative to now ("-2h", "+10m"): microseconds since 1970.

    A time without an offset is UTC; a date alone is its midnight.
    """

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        said = str(value)
        try:
            us = _us(said)
            _EPOCH + timedelta(microseconds=us)  # no year that can't be shown, or stored
        except (ValueError, OverflowError):
            known = "2025-06-16T22:50:00Z, now, -2h or +10m"
            return self.fail(f"{said!r} is not a time: write {known}", param, ctx)
        return us


def _us(said: str) -> int:
    """Raises ValueError for what is not a time, OverflowError for one that is far too long ago."""
    if said == "now" or said[:1] in ("-", "+"):
        if said == "now":
            return _now_us()
        span = _DURATION.fullmatch(said[1:])
        if span is None:
            raise ValueError(said)
        us = round(float(span[1]) * _UNITS_S[span[2]] * 1e6)
        return _now_us() - us if said[0] == "-" else _now_us() + us
    if _RUN_OF_DIGITS.match(said):
        raise ValueError(said)
    moment = datetime.fromisoformat(said)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole = round(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + moment.microsecond


def check_range(begin_us: int | None, end_us: int | None) -> None:
    """Raises UsageError for a range of nothing, which found empty would look like news."""
    if begin_us is not None and end_us is not None and end_us <= begin_us:
        raise click.UsageError("--until is not behind --from")


def rfc3339(us: int, timespec: str = "seconds") -> str:
    """ "2025-06-16T22:50:00+00:00", which `Time` takes; for JSON, too."""
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec=timespec)


def utc(us: int, timespec: str = "seconds") -> str:
    """ "2025-06-16 22:50:00Z", in tables."""
    return rfc3339(us, timespec).replace("T", " ").replace("+00:00", "Z")


DURATION = Duration()
TIME = Time()
