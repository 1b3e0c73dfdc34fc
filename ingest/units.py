"""How many microseconds or milliseconds: names end with `_us` or `_ms` to say which they are in."""

from __future__ import annotations

__all__ = ["DAY_US", "HOUR_MS", "HOUR_US", "MINUTE_US", "SECOND_US"]

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

HOUR_MS = 3_600_000
