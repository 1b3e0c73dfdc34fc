"""What a vendor has not accepted yet, by its receipts.

For each offset of the ranges four bytes are kept, whatever the number of receipts: the checksum of
the accepted event's id, so that a receipt of another topic of this name does not count. Where both
topics have a receipt of an offset the second one is eight bytes more. A range is
refused where that would be more than MOST_OFFSETS; split it then. Of what came from the table
there are eight bytes an event of the range (by_row.py).

Receipts know what the vendor answered. What it took with a yes and lost is not missing by them. Of
what was published before the first one that is left they say nothing, if others have expired: a
replay that somebody asks for is refused then (`check_receipts`).

What will be sent anyway is not missing either: what the live forwarders have not come to yet, and
what outages have left to replays that are not over.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from consumers.batch import Partition, Span
from consumers.bounds import firsts
from consumers.client import Settings
from consumers.errors import Systemic
from consumers.forward.delivery import Status
from consumers.forward.gap import Gap
from consumers.forward.live import forwarder_group
from consumers.forward.look import receipts_between
from consumers.ledger.scan import whole_since
from consumers.lookup import Lookup
from consumers.replay.by_row import ByRow, is_number
from consumers.replay.job import Job, Origin
from consumers.replay.jobs import Jobs
from consumers.replay.select import Wanted
from consumers.replay.table import number_at
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import Stream
from ingest.units import DAY_US

__all__ = [
    "MOST_OFFSETS", "Accepted", "check_receipts", "left_to_outages", "seen_by", "without",
]  # fmt: skip

# 256 MiB.
MOST_OFFSETS = 64 * 1024 * 1024
# How far clocks may differ, in microseconds.
_AHEAD_US = 10 * 60 * 1_000_000


def seen_by(kafka: Settings, group: str, topic: str, spans: Mapping[int, Span]) -> dict[int, Span]:
    """The part of the ranges that the live forwarders of this group are through with.

    What is behind it they will send by themselves. All of a partition that they have never seen.
    Raises Unavailable.
    """
    lookup = Lookup(kafka, group, [topic])
    try:
        at = lookup.committed([Partition(topic, number) for number in spans])
    finally:
        lookup.close()
    return {
        number: Span(start, max(start, min(end, at[Partition(topic, number)])))
        if at[Partition(topic, number)] >= 0
        else Span(start, end)
        for number, (start, end) in spans.items()
    }


def left_to_outages(kafka: Settings, topic: str, job: Job) -> dict[str, dict[Partition, Span]]:
    """The replays that outages of the job's vendor have left, not over, with a part of its ranges.

    By their ids; of each all that it has. Ask for them before receipts are read: what is over by
    then has its receipts. Raises Unavailable, Systemic.
    """
    mine = job.spans_of(topic)
    lookup = Lookup(kafka, forwarder_group(job.to), [topic])
    try:
        known = lookup.known(list(mine))
    finally:
        lookup.close()
    # A forwarder says so in its position's note first, and in a job's record then.
    jobs = Jobs(kafka, look=True).all()
    gaps = [gap for k in known.values() if (gap := Gap.read(k.note)) is not None]
    found = {
        gap.job_id: dict(gap.spans)
        for gap in gaps
        if gap.job_id not in jobs and gap.topic_id == job.topic_id
    }
    for one in jobs.values():
        of_outage = one.origin is Origin.OUTAGE and not one.state.over
        if of_outage and one.to == job.to and one.topic_id == job.topic_id:
            found[one.id] = one.spans_of(topic)
    return {id_: spans for id_, spans in found.items() if _meet(spans, mine)}


def _meet(some: Mapping[Partition, Span], others: Mapping[Partition, Span]) -> bool:
    return any(
        max(some[p].start, others[p].start) < min(some[p].end, others[p].end)
        for p in some.keys() & others.keys()
    )


def without(wanted: Wanted, others: Mapping[str, Mapping[Partition, Span]]) -> Wanted:
    """What is wanted and not in the ranges of `left_to_outages`."""

    def found(partition: Partition, offset: int, event_id: str) -> bool:
        theirs = (spans[partition] for spans in others.values() if partition in spans)
        if any(span.start <= offset < span.end for span in theirs):
            return False
        return wanted(partition, offset, event_id)

    return found


def check_receipts(kafka: Settings, stream: Stream, receipts: Stream, job: Job) -> None:
    """Raises Systemic where Kafka may have had other receipts of the job's events, Unavailable."""
    since_us, emptied = whole_since(kafka, receipts, each=True)
    if since_us <= job.begin_us:
        return
    published_ms = firsts(kafka, stream.topic, job.spans)
    if not published_ms or since_us <= min(published_ms.values()) * 1000:
        return
    if emptied:
        # A later --from would be refused as well: that moment goes on with the clock.
        raise Systemic(
            f"a partition of {receipts.topic} has no receipts left, and had some: of this range "
            f"nobody can tell what {job.to} has accepted, nor of any other that begins before the "
            "next receipt there. Take --against FILE, an export of the vendor's, with "
            "--only-missing; without --only-missing all of it is sent again. See that "
            f"{receipts.topic} keeps receipts for as long as {stream.topic} keeps events"
        )
    since = datetime.fromtimestamp(-(-since_us // 1_000_000), UTC).isoformat()
    raise Systemic(
        f"receipts from before {since} have expired in {receipts.topic}, and this range has older "
        f"events: nobody can tell which of those {job.to} has accepted. Start it with --from "
        f"{since} or later; without --only-missing all of it is sent again. See that "
        f"{receipts.topic} keeps receipts for as long as {stream.topic} keeps events"
    )


class Accepted:
    """Which records of these ranges a vendor has accepted."""

    def __init__(self, spans: Mapping[Partition, Span]) -> None:
        """Raises Systemic for ranges that are too long."""
        total = sum(span.end - span.start for span in spans.values())
        if total > MOST_OFFSETS:
            raise Systemic(
                f"what is accepted (--only-missing, --dry-run) takes four bytes for each offset, "
                f"and there are {total:,} in this range; at most {MOST_OFFSETS:,} are possible: "
                "take a shorter one"
            )
        self._spans = dict(spans)
        self._sums = {p: array("I", bytes(4 * (s.end - s.start))) for p, s in spans.items()}
        self._topics = {p.topic for p in spans}
        self._by_row = ByRow()
        # Of an offset that had a receipt of another event: one of both is an older topic's.
        self._others = ByRow()
        self._numbers: range | None = None

    def load(
        self, kafka: Settings, topic: str, vendor: str, begin_us: int, end_us: int | None = None
    ) -> None:
        """Take in all receipts there are for records that were taken since. Raises Unavailable.

        With `end_us` only for those that were taken before it as well.
        """
        if end_us is not None:
            self._numbers = range(number_at(begin_us), number_at(end_us + 1000))
        until_us = time.time_ns() // 1000 + DAY_US
        self.add(vendor, receipts_between(kafka, topic, begin_us - _AHEAD_US, until_us))

    def add(self, vendor: str, receipts: Iterable[Receipt]) -> None:
        """Take in those of this vendor."""
        for one in receipts:
            if one.vendor != vendor or one.status != Status.ACCEPTED:
                continue
            partition = Partition(one.source_topic, one.source_partition)
            if is_number(one.source_offset):
                meant = self._numbers is None or one.source_offset in self._numbers
                if meant and one.source_topic in self._topics:
                    self._by_row.add(one.event_id)
                continue
            span = self._spans.get(partition)
            if span is not None and span.start <= one.source_offset < span.end:
                at, mark = one.source_offset - span.start, _sum(one.event_id)
                if self._sums[partition][at] in (0, mark):
                    self._sums[partition][at] = mark
                else:
                    self._others.add(f"{partition} {one.source_offset} {one.event_id}")

    def lacks(self, partition: Partition, offset: int, event_id: str) -> bool:
        """Whether there is no accepted receipt for it."""
        if event_id in self._by_row:
            return False
        span = self._spans.get(partition)
        if span is None or not span.start <= offset < span.end:
            return True
        return (
            self._sums[partition][offset - span.start] != _sum(event_id)
            and f"{partition} {offset} {event_id}" not in self._others
        )


def _sum(event_id: str) -> int:
    """Not 0, which stands for none."""
    return zlib.crc32(event_id.encode()) | 1
