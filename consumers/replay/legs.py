"""The legs of a replay: what Kafka no longer has, from the table of raw events; then what it has.

The line between them is a time, `Job.table_until_us`. What was taken before comes from the table;
what was taken later Kafka has for certain, since a record is published no earlier than it is taken,
but for clocks that differ. Kafka goes on to remove records meanwhile, so the line is drawn well
behind the first one that it has; and it is drawn anew where the first leg has taken too long.

Of an outage's job the ranges are fixed. Once retention has removed a part of them, the table gives
what was taken from an hour before the first of them was published until the outage's end, and has
no accepted receipt there; and Kafka gives what it still has of them that was taken at other times.
So nothing is given by both, and what is neither was taken more than an hour before all of it was
published (by a collector that was cut off for so long) and is no longer in Kafka. What is at stake:

- To ask the table from earlier on finds more that had no yes before the outage and is not to be
  sent: what was refused, and what was accepted by a receipt that never landed in this table.
- To ask it from later on loses events. So it is not the time when somebody found the vendor away.
- Where nobody knows when the ranges begin, a person has to say so. All that the table ever had may
  be years, from before there was this vendor.
- The table knows rows by their time, not by their partition. Of an outage that has left several
  replays (one for each forwarder) one that asks it gives what is the others', too; they send that
  again, unless they ask it themselves: by then it is accepted.

The first leg is a job with another id, so that its positions, which are numbers of rows, are those
of a group of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from consumers.batch import Span
from consumers.bounds import bounds, firsts
from consumers.client import Settings
from consumers.destinations import destination
from consumers.errors import Systemic, Unavailable
from consumers.replay.job import Job, Origin
from consumers.replay.ranges import AHEAD_MS, find
from consumers.replay.table import number_at
from consumers.replay.target import not_landed
from ingest.streams import Stream
from ingest.units import HOUR_US

__all__ = ["Legs", "fall_through", "from_table", "legs"]

# Of the time that Kafka holds, what the table gives all the same.
_SPARE = 0.25
# How long before it was published what an outage left out may have been taken.
_EARLIER_US = HOUR_US


class Legs(NamedTuple):
    """What a job is made of; `table` is None where Kafka has all of its range."""

    table: Job | None
    kafka: Job


def legs(job: Job) -> Legs:
    """Take a job apart."""
    until_us = job.table_until_us
    if until_us is None:
        return Legs(None, job)
    span = Span(number_at(job.begin_us), number_at(until_us))
    first = job.from_table(span, min(job.end_us, until_us))
    # What the table has not given of an outage's job may also have been taken before.
    return Legs(first, job if job.origin is Origin.OUTAGE else replace(job, begin_us=until_us))


def fall_through(kafka: Settings, url: str, stream: Stream, job: Job, now_us: int) -> Job:
    """The job with the line drawn, and the ranges of Kafka behind it.

    The same job where Kafka has all of it, from the line that it has on. Raises Unavailable, and
    Systemic where the table has not landed yet what it is to give.
    """
    begin_us = job.begin_us if job.table_until_us is None else job.table_until_us
    if begin_us >= job.end_us or not find(kafka, stream.topic, begin_us, job.end_us, 0).cut:
        return job
    line_us = _line(kafka, stream.topic, now_us)
    if line_us <= begin_us:
        return job
    line_us = min(line_us, -(-job.end_us // 1000) * 1000)
    _check_landed(kafka, url, stream, job, line_us)
    found = find(kafka, stream.topic, line_us, max(line_us, job.end_us), job.lateness_s)
    spans = found.spans if line_us < job.end_us else {n: Span(0, 0) for n in found.spans}
    return replace(job, table_until_us=line_us, spans=spans)


def from_table(kafka: Settings, url: str, stream: Stream, job: Job) -> Job:
    """An outage's job, from the table. Raises Unavailable until it has landed there.

    Raises Systemic, also where it is not known when its ranges begin.
    """
    if not job.begin_us:
        raise Systemic(
            "Kafka no longer has its beginning, and nobody has noted when that was. Cancel it by "
            f"`headrace replay cancel {job.id}`, and send all that is missing by `headrace replay "
            f"--to {job.to} --from TIME --only-missing`, from before the outage on. To go on "
            f"without what Kafka has lost: `headrace replay resume {job.id} --skip-lost`."
        )
    if behind := not_landed(kafka, url, stream, job.topic_id, job.spans):
        raise Unavailable(
            f"a part of the replay {job.id} is no longer in Kafka, and the table {stream.table} at "
            f"{destination(url).where} has not landed all of it yet (partition {behind[0]})"
        )
    return replace(
        job, begin_us=job.begin_us - _EARLIER_US, table_until_us=job.end_us, skip_lost=True,
        repeated=True,
    )  # fmt: skip


def _line(kafka: Settings, topic: str, now_us: int) -> int:
    """From when on Kafka has all that was taken, and will have it for a while; whole ms."""
    # How old the first record of each partition is that lost its beginning.
    had = bounds(kafka, topic)
    left = {n: had.spans[n] for n in had.cut}
    published_ms = firsts(kafka, topic, left)
    oldest_ms = max((published_ms.get(n, now_us // 1000) for n in left), default=0)
    spare_ms = round(max(0, now_us // 1000 - oldest_ms) * _SPARE)
    return (oldest_ms + AHEAD_MS + spare_ms) * 1000


def _check_landed(kafka: Settings, url: str, stream: Stream, job: Job, line_us: int) -> None:
    """The table has all that was taken before the line, as far as Kafka knows of it."""
    needed = bounds(kafka, stream.topic, None, line_us // 1000 + round(job.lateness_s * 1000)).spans
    if behind := not_landed(kafka, url, stream, job.topic_id, needed):
        raise Systemic(
            f"a part of this range is no longer in Kafka, and the table {stream.table} at "
            f"{destination(url).where} has not landed yet all that it is to give instead "
            f"(partition {behind[0]}): let `headrace insert` catch up, and start this again; or "
            "give a shorter --lateness"
        )
