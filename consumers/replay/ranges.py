"""From a range of time to ranges of offsets.

Kafka finds offsets by the time at which a record was published; a replay is by event time, the
stream's time field (of raw events: when the collector took them; a client's own clock may say
anything). The two are related like this, and so the bounds are safe:

- Published before it happened: only by clocks that differ. Reading begins AHEAD_MS before the
  range.
- Published after it happened: as late as a spool was cut off, or a record overtaken. Reading ends
  at the first record that was published `lateness_s` after the range. What came later still is not
  found. A record with a publishing time ahead of the clock ends reading that much earlier.
"""

from __future__ import annotations

from consumers.bounds import Bounds, bounds
from consumers.client import Settings

__all__ = ["AHEAD_MS", "find"]

# How far clocks may differ, in milliseconds.
AHEAD_MS = 10 * 60 * 1000


def find(kafka: Settings, topic: str, begin_us: int, end_us: int, lateness_s: float) -> Bounds:
    """Where the records of [begin_us, end_us) are. Raises Unavailable, Systemic."""
    return bounds(
        kafka, topic, begin_us // 1000 - AHEAD_MS, -(-end_us // 1000) + round(lateness_s * 1000)
    )
