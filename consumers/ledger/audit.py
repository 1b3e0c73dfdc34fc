"""The audit: accepted = landed + dead-lettered + dropped + in flight, for each hour and destination.

In this order: destinations are asked for their accounts, Kafka is counted up to its end, and what is
between a destination's position and that end is read and counted as in flight. So both sides of the
equation are counted, and nothing can have landed that was not accepted.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consumers.batch import Partition, Span
from consumers.client import Settings
from consumers.ledger.accepted import Book, Read
from consumers.ledger.account import Account
from consumers.ledger.finding import Finding, Question
from consumers.ledger.refused import refused
from consumers.ledger.scan import marks, scan
from consumers.ledger.tally import NOTHING, Bucket, Entry, Sum, entries_of
from consumers.replay.ranges import AHEAD_MS
from ingest.streams import Stream
from ingest.units import HOUR_US

__all__ = ["Line", "audit", "equation", "question"]


@dataclass(frozen=True, slots=True)
class Line:
    """One hour (since 1970) of a stream at one destination: the equation's terms."""

    stream: str
    destination: str
    hour: int
    accepted: int
    landed: int
    dropped: int
    dead: int
    in_flight: int
    # Partitions whose sums do not agree.
    differing: tuple[Partition, ...] = ()
    # They differ only by records that had expired before they were counted.
    partial: bool = False
    # Records that a look at the data found to be missing or too many.
    findings: Sequence[Finding] = ()
    # These partitions have all of their records, and just those, but in other hours.
    moved: bool = False

    @property
    def difference(self) -> int:
        """Records that are missing, if positive, or too many."""
        return self.accepted - self.landed - self.dropped - self.dead - self.in_flight

    @property
    def holds(self) -> bool:
        return not self.findings and (self.partial or not self.differing)


def audit(
    kafka: Settings,
    book: Book,
    stream: Stream,
    topic_id: str,
    accounts: Mapping[str, Account],
    *,
    recount: bool = False,
    as_counted: bool = False,
) -> tuple[list[Line], dict[Partition, Span]]:
    """The lines of a stream, and what of it expired uncounted.

    With `recount` what Kafka still has is counted once more, whatever the book says. With
    `as_counted` only as far as the book went before, for it can't be counted on. Raises
    Unavailable, Systemic, Truncated.
    """
    lost = {} if as_counted else book.count(stream, topic_id)
    totals, read = book.totals(topic_id), book.read(topic_id)
    if recount:
        totals = _recounted(kafka, stream, totals, read)
    waiting = _in_flight(kafka, stream, read, accounts)
    lines: list[Line] = []
    for name, account in accounts.items():
        lines += equation(stream, name, account, totals, waiting[name], read)
    return sorted(lines, key=lambda line: (line.hour, line.destination)), lost


def question(
    kafka: Settings, stream: Stream, topic_id: str, account: Account, begin_us: int, end_us: int
) -> Question:
    """What to compare a destination with: the records of [begin_us, end_us) that Kafka has."""
    return Question(
        stream,
        topic_id,
        begin_us,
        end_us,
        account.positions,
        account.entries,
        {partition: span.start for partition, span in marks(kafka, stream.topic).items()},
        lambda spans: (piece.batch for piece in scan(kafka, stream, spans)),
        lambda: refused(kafka, stream),
    )


def _recounted(
    kafka: Settings,
    stream: Stream,
    totals: Mapping[Bucket, Sum],
    read: Mapping[Partition, Read],
) -> dict[Bucket, Sum]:
    """Totals as Kafka's records are now; where retention has begun to remove them, as before.

    It goes by the time of publishing. So an hour that begins later may lack some all the same:
    those of a clock that was ahead.
    """
    spans = {
        p: Span(low, read[p].next)
        for p, (low, _) in marks(kafka, stream.topic).items()
        if p in read
    }
    found: dict[Bucket, Sum] = {}
    whole_from = {p: 0 if span.start == 0 else None for p, span in spans.items()}
    for batch, first_ms, _ in scan(kafka, stream, spans):
        for partition in batch.spans:
            if whole_from[partition] is None and first_ms >= 0:
                whole_from[partition] = first_ms * 1000
        for bucket, entry in entries_of(batch).items():
            found[bucket] = found.get(bucket, NOTHING).plus(entry.settled)
    kept = {}
    for bucket in {**totals, **found}:
        since_us = whole_from.get(bucket.partition)
        now, before = found.get(bucket, NOTHING), totals.get(bucket, NOTHING)
        whole = since_us == 0 or (
            since_us is not None
            and bucket.hour * HOUR_US >= since_us
            and now.records >= before.records
        )
        kept[bucket] = now if whole else before
    return kept


def _in_flight(
    kafka: Settings,
    stream: Stream,
    read: Mapping[Partition, Read],
    accounts: Mapping[str, Account],
) -> dict[str, dict[Bucket, Sum]]:
    """What each destination has still before it of what is counted; read once for all of them."""
    found: dict[str, dict[Bucket, Sum]] = {name: {} for name in accounts}
    places = {name: {p: a.positions.get(p, 0) for p in read} for name, a in accounts.items()}
    there = marks(kafka, stream.topic) if places else {}
    spans = {
        p: Span(max(low, min(at[p] for at in places.values())), read[p].next)
        for p, (low, _) in there.items()
        if p in read
    }
    for batch, *_ in scan(kafka, stream, spans):
        for name, at in places.items():
            for bucket, entry in entries_of(batch.since(at)).items():
                known = found[name].get(bucket, NOTHING)
                found[name][bucket] = known.plus(entry.settled)
    return found


def equation(
    stream: Stream,
    name: str,
    account: Account,
    totals: Mapping[Bucket, Sum],
    waiting: Mapping[Bucket, Sum],
    read: Mapping[Partition, Read],
) -> list[Line]:
    """The lines of one destination; `totals` are what was accepted, `waiting` what is before it."""
    hours: dict[int, list[Bucket]] = {}
    # Of all hours together: what was accepted, less what became of it.
    left: dict[Partition, Sum] = {}
    for bucket in {**totals, **account.entries}:
        hours.setdefault(bucket.hour, []).append(bucket)
        known = left.get(bucket.partition, NOTHING)
        became = account.entries.get(bucket, Entry()).settled
        for one in (waiting, account.waiting):
            became = became.plus(one.get(bucket, NOTHING))
        left[bucket.partition] = known.plus(totals.get(bucket, NOTHING)).minus(became)
    lines = []
    for hour, buckets in hours.items():
        entries = [account.entries.get(b, Entry()) for b in buckets]
        accepted = [totals.get(b, NOTHING) for b in buckets]
        ahead = [waiting.get(b, NOTHING).plus(account.waiting.get(b, NOTHING)) for b in buckets]
        differing = [
            (b.partition, _expired(b, a.records - there.records, account, read))
            for b, a, e, w in zip(buckets, accepted, entries, ahead, strict=True)
            if a != (there := e.settled.plus(w))
        ]
        # What has expired in one partition excuses nothing in another.
        wrong = [partition for partition, expired in differing if not expired]
        lines.append(
            Line(
                stream.name,
                name,
                hour,
                sum(a.records for a in accepted),
                sum(e.landed for e in entries),
                sum(e.dropped for e in entries),
                sum(e.dead.records for e in entries),
                sum(w.records for w in ahead),
                tuple(sorted(wrong or [partition for partition, _ in differing])),
                bool(differing) and not wrong,
                moved=bool(wrong) and all(left[p] == NOTHING for p in wrong),
            )
        )
    return lines


def _expired(
    bucket: Bucket, difference: int, account: Account, read: Mapping[Partition, Read]
) -> bool:
    """Whether a difference may be of records that had expired before they were counted.

    Each of the two sides can only lack them: what was accepted, or, of a vendor, what became of it.
    """
    counted = read.get(bucket.partition)
    if difference == 0 or counted is None:
        return False
    if difference > 0:
        late = account.since_us.get(bucket.partition, 0)
    else:
        # By the time of publishing, and clocks differ. It stays so, while a vendor's moves on.
        late = counted.since_us + AHEAD_MS * 1000 if counted.since_us else 0
    return bucket.hour * HOUR_US < late
