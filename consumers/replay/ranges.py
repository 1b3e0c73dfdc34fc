"""From a range of time to ranges of offsets, and back.

Kafka finds offsets by the time at which a record was published; a replay is by event time, the
stream's time field (of raw events: when the collector took them; a client's own clock may say
anything). The two are related like this, and so the bounds are safe:

- Published before it happened: only by clocks that differ. Reading begins AHEAD_MS before the
  range.
- Published after it happened: as late as a spool was cut off, or a record overtaken. Reading ends
  at the first record that was published `lateness_s` after the range. What came later still is not
  found. A record with a publishing time ahead of the clock ends reading that much earlier.

Back: no record of a range was published before its first one, but for clocks that differ. Retention
removes that record, and with it the way back; so `Since` asks while it is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from consumers.batch import Partition, Span
from consumers.bounds import Bounds, bounds, firsts
from consumers.client import Settings
from consumers.lookup import Lookup

__all__ = ["AHEAD_MS", "Since", "find"]

# How far clocks may differ, in milliseconds.
AHEAD_MS = 10 * 60 * 1000


def find(kafka: Settings, topic: str, begin_us: int, end_us: int, lateness_s: float) -> Bounds:
    """Where the records of [begin_us, end_us) are. Raises Unavailable, Systemic."""
    return bounds(
        kafka, topic, begin_us // 1000 - AHEAD_MS, -(-end_us // 1000) + round(lateness_s * 1000)
    )


class Since:
    """Since when a group lacks what is behind its positions. From any thread.

    Whoever calls `look` while the group stands still is told by `of` also when Kafka has removed
    the records that say so.
    """

    def __init__(self, kafka: Settings, group: str, topic: str) -> None:
        self._kafka = kafka
        self._group = group
        self._topic = topic
        self._lock = threading.Lock()
        # Of a partition and an offset: from there on nothing was published before this (Unix ms).
        # Once true, always true; it is of use as long as it is the nearest one.
        self._dates: dict[tuple[int, int], int] = {}

    def look(self) -> None:
        """Date the positions at which the group is now. Raises Unavailable, Systemic."""
        there = bounds(self._kafka, self._topic).spans
        lookup = Lookup(self._kafka, self._group, [self._topic])
        try:
            at = lookup.committed([Partition(self._topic, n) for n in there])
        finally:
            lookup.close()
        # Without a position it is where the log begins.
        starts = {p.number: n if n >= 0 else there[p.number].start for p, n in at.items()}
        self._date({n: Span(start, there[n].end) for n, start in starts.items()})

    def of(self, spans: Mapping[int, Span]) -> int:
        """No record of these was published before, in Unix milliseconds; 0 if that is not known.

        Raises Unavailable, Systemic.
        """
        self._date(spans)
        with self._lock:
            dates = list(self._dates.items())
        found = [
            max((ms for (number, at), ms in dates if number == n and at <= span.start), default=0)
            for n, span in spans.items()
        ]
        return min(found, default=0)

    def _date(self, spans: Mapping[int, Span]) -> None:
        """Note when each of them begins, as far as Kafka has that."""
        with self._lock:
            left = {n: span for n, span in spans.items() if (n, span.start) not in self._dates}
        if not left:
            return
        now_ms = time.time_ns() // 1_000_000
        first = firsts(self._kafka, self._topic, left)
        # Asked for last: where the beginning is gone by now, what was read may not be the first.
        there = bounds(self._kafka, self._topic).spans
        with self._lock:
            for n, span in left.items():
                if n in there and there[n].start <= span.start:
                    self._dates[n, span.start] = first.get(n, now_ms)
