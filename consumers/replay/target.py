"""Where a replay goes, by the kind of its destination; and what of it a table may be given."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from consumers.batch import Batch, Span
from consumers.client import Settings
from consumers.destinations import destination
from consumers.forward.budget import Budget
from consumers.forward.delivery import Terms
from consumers.forward.live import limits_of, open_sink
from consumers.forward.settings import VendorSettings
from consumers.limits import Limits
from consumers.replay.job import Job, Origin
from consumers.replay.select import Selection
from consumers.sinks import Log, Sink
from consumers.trace.allowlist import TraceSettings
from ingest.streams import Stream

__all__ = [
    "TableReplay", "Target", "database_sink", "database_target", "landed", "not_landed",
    "vendor_target",
]  # fmt: skip


class Target(NamedTuple):
    """Where a job goes. `kind` is for metrics and messages."""

    kind: str
    limits: Limits
    open: Callable[[Log], Sink]
    # Whether what is replayed counts as sent before, see source.py.
    repeated: bool = False
    # Whether some may have been where there is no position.
    forgotten: bool = False


def vendor_target(
    kafka: Settings,
    streams: Mapping[str, Stream],
    trace: TraceSettings,
    settings: VendorSettings,
    job: Job,
    budget: Budget | None = None,
) -> Target:
    """A vendor; `budget` is shared with what is live. Raises VendorError, TraceError."""
    from consumers.trace.gate import Gate  # msgspec comes with vendors

    vendor = settings.vendor()
    Gate(trace, settings.name)  # what is wrong with it is said before a group is joined
    # The table gives what had no yes before the outage as well: what was refused, in one block. So
    # does what is left to a replay because Kafka has forgotten the position.
    unjudged = job.origin is Origin.OUTAGE and not (job.of_table or job.only_missing)
    terms = Terms(
        backfill=True, allow_redate=job.allow_redate, allow_duplicates=job.allow_duplicates,
        unjudged=unjudged,
    )  # fmt: skip
    return Target(
        settings.name,
        limits_of(vendor),
        lambda log: open_sink(kafka, streams, trace, settings, vendor, log, terms, budget),
        repeated=job.repeated,
        forgotten=job.may_be_forgotten(time.time_ns() // 1000),
    )


class TableReplay(Sink, Protocol):
    """A sink that puts back what is missing, and can also only say what that is.

    `on_back` is told how many rows are there again, once they are committed, and how many are there
    with other values than their records give, so that they are left; of `lacking` only these.
    """

    def lacking(self, batch: Batch) -> Counter[int]:
        """How many of these rows are not there, by the beginning of their hour (microseconds).

        Changes nothing. Raises Rejected, Unavailable, Systemic.
        """
        ...


def database_sink(
    url: str,
    stream: Stream,
    job: Job,
    log: Log,
    *,
    of_rows: bool = False,
    on_back: Callable[[int, int], object] | None = None,
) -> TableReplay:
    """The sink of a table. With `of_rows` the source is another database's, see table_source.py."""
    if destination(url).kind == "postgres":
        from consumers.replay.postgres import PostgresReplay

        # The positions of the table say nothing of rows.
        spans = {} if of_rows else job.spans_of(stream.topic)
        return PostgresReplay(url, stream, spans, log, on_back=on_back)
    from consumers.replay.clickhouse import ClickHouseReplay

    meant = Selection(job.begin_us, job.end_us, job.event)
    return ClickHouseReplay(url, stream, meant, log, of_rows=of_rows, on_back=on_back)


def database_target(
    url: str,
    stream: Stream,
    job: Job,
    *,
    of_rows: bool = False,
    on_back: Callable[[int, int], object] | None = None,
) -> Target:
    """A table. One lane: replays into a table go one after the other."""
    place = destination(url)
    return Target(
        place.kind,
        replace(place.limits, lanes=1),
        lambda log: database_sink(url, stream, job, log, of_rows=of_rows, on_back=on_back),
    )


def landed(
    kafka: Settings, url: str, stream: Stream, topic_id: str, spans: Mapping[int, Span]
) -> dict[int, Span]:
    """The part of the ranges that has landed in the table once. Raises Unavailable, Systemic.

    What is behind it an inserter will land, and would land a second time.
    """
    if destination(url).kind == "postgres":
        from consumers.replay import postgres

        return postgres.landed(url, stream, topic_id, spans)
    from consumers.replay import clickhouse

    return clickhouse.landed(kafka, url, stream, topic_id, spans)


def not_landed(
    kafka: Settings, url: str, stream: Stream, topic_id: str, spans: Mapping[int, Span]
) -> list[int]:
    """The partitions of which a part of the range has not landed. Raises Unavailable, Systemic."""
    there = landed(kafka, url, stream, topic_id, spans)
    return [n for n, span in spans.items() if there[n].end < span.end]
