"""Times and durations as people type them, for every command that takes a range of time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import cache

import click

__all__ = ["DURATION", "TIME", "Duration", "Time", "check_range"]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


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
        if said == "now" or said[:1] in ("-", "+"):
            now_us = _now_us()
            if said == "now":
                return now_us
            span = _DURATION.fullmatch(said[1:])
            if span is not None:
                us = round(float(span[1]) * _UNITS_S[span[2]] * 1e6)
                return now_us - us if said[0] == "-" else now_us + us
        else:
            try:
                moment = datetime.fromisoformat(said)
            except ValueError:
                pass
            else:
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                whole = round(moment.replace(microsecond=0).timestamp())
                return whole * 1_000_000 + moment.microsecond
        known = "2025-06-16T22:50:00Z, now, -2h or +10m"
        return self.fail(f"{said!r} is not a time: write {known}", param, ctx)


def check_range(begin_us: int | None, end_us: int | None) -> None:
    """Raises UsageError for a range of nothing, which found empty would look like news."""
    if begin_us is not None and end_us is not None and end_us <= begin_us:
        raise click.UsageError("--until is not behind --from")


DURATION = Duration()
TIME = Time()
