"""From a gap that an outage has left to the job that replays it, and since when that lacks events.

No record of a range was published before its first one, but for clocks that differ. Retention
removes that record, and with it what it says; so `Since` asks while it is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from consumers.batch import Partition, Span
from consumers.bounds import bounds, firsts
from consumers.client import Settings
from consumers.forward.gap import Gap
from consumers.lookup import Lookup
from consumers.replay.job import Job, Origin
from consumers.replay.jobs import Jobs
from ingest.streams import Stream

__all__ = ["Keeper", "Since"]


class Keeper:
    """Notes the gaps of one vendor as jobs, each once; for `Gaps`.

    A gap knows since when this process has found the vendor away. What it leaves out may be older:
    another process was before this one, or the forwarder was behind. So `since` says when the first
    of it was published, see `Since.of`.
    """

    def __init__(
        self,
        jobs: Jobs,
        vendor: str,
        stream: Stream,
        since: Callable[[Mapping[int, Span]], int],
    ) -> None:
        self._jobs = jobs
        self._vendor = vendor
        self._stream = stream
        self._since = since
        self._noted: set[str] = set()

    def __call__(self, gap: Gap) -> None:
        """Return when there is a job for it. Raises Unavailable, Systemic."""
        if gap.job_id in self._noted:
            return
        if gap.job_id not in self._jobs.ids():
            spans = {partition.number: span for partition, span in gap.spans.items()}
            since_ms = min(gap.since_ms, self._since(spans))
            job = Job(
                gap.job_id, self._vendor, self._stream.name, gap.topic_id, since_ms * 1000,
                gap.until_ms * 1000, 0.0, spans, time.time_ns() // 1000,
                origin=Origin.OUTAGE, repeated=gap.begun, only_missing=gap.only_missing,
            )  # fmt: skip
            self._jobs.put(job)
        self._noted.add(gap.job_id)


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
