"""The run loop of a job."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from consumers.batch import Batch, Partition, Span
from consumers.bounds import bounds
from consumers.client import Settings
from consumers.deadletters import DeadLetter, DeadLetters
from consumers.destinations import destination
from consumers.errors import Systemic, Unavailable
from consumers.forward.budget import Budget
from consumers.forward.delivery import Terms
from consumers.forward.live import limits_of, open_sink
from consumers.forward.settings import VendorSettings
from consumers.group import GroupSource
from consumers.lag import Look
from consumers.limits import Limits
from consumers.replay.job import Job, Origin
from consumers.replay.missing import Accepted, check_receipts, left_to_outages, without
from consumers.replay.select import Counted, Selection, Wanted, not_in
from consumers.replay.source import RangeSource
from consumers.replay.table import RawTable
from consumers.replay.table_source import TableSource
from consumers.run import Runner
from consumers.sinks import Log, Sink
from consumers.source import Listener, Source
from consumers.trace.allowlist import TraceSettings
from ingest.streams import Stream
from ingest.topics import TopicError, topic_ids

if TYPE_CHECKING:
    from consumers.vendors.exported import Exported

__all__ = [
    "OpenTable",
    "ReceiptsLanded",
    "TableReplay",
    "Target",
    "database_sink",
    "database_target",
    "landed",
    "not_landed",
    "runner",
    "selection_of",
    "spans_of",
    "vendor_target",
]  # fmt: skip

log = logging.getLogger(__name__)

_ALWAYS = (-(2**62), 2**62)


class Target(NamedTuple):
    """Where a job goes. `kind` is for metrics and messages."""

    kind: str
    limits: Limits
    open: Callable[[Log], Sink]
    # Whether what is replayed counts as sent before, see source.py.
    repeated: bool = False
    # Whether some may have been where there is no position.
    forgotten: bool = False


class OpenTable(NamedTuple):
    """The table of raw events as a source. With `lacking` without what this vendor has accepted."""

    open: Callable[[], RawTable]
    lacking: str | None


class _Known:
    """Dead letters of a replay: whoever read these records first has sent them already."""

    def send(self, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        log.warning(
            "records of %s that can't be replayed: %d, the last because: %s; they are those of %s",
            stream.topic, len(letters), letters[-1].reason, stream.dlq,
        )  # fmt: skip


def spans_of(job: Job, stream: Stream) -> dict[Partition, Span]:
    """The job's ranges."""
    return {Partition(stream.topic, n): span for n, span in job.spans.items()}


def selection_of(
    kafka: Settings, streams: Mapping[str, Stream], job: Job, exported: Exported | None = None
) -> Selection:
    """What of the ranges is meant, `exported` being what the job is held against.

    Reads receipts where they say it. Raises Unavailable, Systemic.
    """
    wanted: Wanted | None = None if exported is None else not_in(exported)
    if job.origin is Origin.OUTAGE:
        if job.only_missing:
            wanted = _accepted(kafka, streams, job).lacks
        if job.table_until_us is None:
            return Selection(*_ALWAYS, wanted=wanted)
        # The others the table has given, or found to be accepted.
        return Selection(job.begin_us, job.table_until_us, wanted=wanted, outside=True)
    if job.only_missing:
        others = left_to_outages(kafka, streams[job.stream].topic, job)
        if wanted is None:
            wanted = _accepted(kafka, streams, job, job.end_us).lacks
            # Behind that: what expires while they are read may be among them, or not.
            check_receipts(kafka, streams[job.stream], streams["receipts"], job)
        wanted = without(wanted, others)
    return Selection(job.begin_us, job.end_us, job.event, wanted)


def _accepted(
    kafka: Settings, streams: Mapping[str, Stream], job: Job, end_us: int | None = None
) -> Accepted:
    """What of its ranges the vendor has accepted. Raises Unavailable, Systemic."""
    try:
        accepted = Accepted(spans_of(job, streams[job.stream]))
    except Systemic as error:
        if job.origin is not Origin.OUTAGE:
            raise
        raise Systemic(
            f"{error}. That nobody can say of this one: cancel it by `headrace replay cancel "
            f"{job.id}`, and send its range in parts by `headrace replay --to {job.to} --from TIME "
            "--until TIME --only-missing`"
        ) from error
    accepted.load(kafka, streams["receipts"].topic, job.to, job.begin_us, end_us)
    return accepted


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


class ReceiptsLanded:
    """Whether a table has the receipts that there were when it was first asked.

    What the vendor has accepted counts as lacking where its receipt has not landed. Later receipts
    are of what this replay sends, or of what is live.
    """

    def __init__(self, kafka: Settings) -> None:
        self._kafka = kafka
        # The topic's id, and what of it is needed.
        self._needed: tuple[str, dict[int, Span]] | None = None

    def __call__(self, table: RawTable) -> None:
        """Raises Unavailable until it has, Systemic."""
        url, stream = table.url, table.receipts
        if self._needed is None:
            spans = bounds(self._kafka, stream.topic).spans
            try:
                topic_id = topic_ids(self._kafka, [stream.topic])[stream.topic]
            except TopicError as error:
                raise Unavailable(str(error)) from error
            self._needed = topic_id, {n: span for n, span in spans.items() if span.start < span.end}
        topic_id, needed = self._needed
        if not needed:
            return
        if behind := not_landed(self._kafka, url, stream, topic_id, needed):
            raise Unavailable(
                f"{stream.table} at {destination(url).where} has not landed yet all receipts that "
                f"there are (partition {behind[0]} of {stream.topic}): let `headrace insert` catch "
                "up with them"
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
        spans = {} if of_rows else spans_of(job, stream)
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


def runner(
    kafka: Settings,
    stream: Stream,
    job: Job,
    selection: Selection,
    target: Target,
    *,
    count: Callable[[int], None],
    look: Look,
    skip_lost: bool = False,
    table: OpenTable | None = None,
) -> Runner:
    """Replays the job; `run(drain=True)` returns once it is done, or told to stop.

    `count` is told how many records are through, from a lane's thread; `look` of the partitions.
    With `table` its rows are read, and the job is the first of its legs.
    """
    spans = spans_of(job, stream)

    def join(listener: Listener) -> Source:
        return GroupSource(kafka, job.group, [stream.topic], listener)

    def source(listener: Listener) -> Source:
        if table is None:
            return join(listener)
        return TableSource(
            join, listener, table.open, stream.topic, job.spans[0], job.end_us, table.lacking,
            ready=None if table.lacking is None else ReceiptsLanded(kafka),
        )  # fmt: skip

    return Runner(
        lambda listener: RangeSource(
            source(listener),
            spans,
            job.topic_id,
            job.rate,
            repeated=target.repeated,
            forgotten=target.forgotten,
            skim=selection.skim if selection.event else None,
        ),
        DeadLetters(kafka, "forward") if job.origin is Origin.OUTAGE else _Known(),
        [stream],
        lambda log: Counted(target.open(log), count),
        destination=target.kind,
        limits=target.limits,
        skip_lost=skip_lost,
        lag=lambda _source: look,
        select=selection,
    )
