"""The run loop of a job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from consumers.batch import Partition, Span
from consumers.client import Settings
from consumers.deadletters import DeadLetter
from consumers.forward.delivery import Terms
from consumers.forward.live import limits_of, open_sink
from consumers.forward.settings import VendorSettings
from consumers.group import GroupSource
from consumers.lag import Look
from consumers.limits import Limits
from consumers.replay.jobs import Job
from consumers.replay.missing import Accepted
from consumers.replay.select import Counted, Selection
from consumers.replay.source import RangeSource
from consumers.run import Runner
from consumers.sinks import Log, Sink
from consumers.trace.allowlist import TraceSettings
from consumers.trace.gate import Gate
from ingest.streams import Stream

__all__ = [
    "Target", "postgres_target", "runner", "selection_of", "spans_of", "vendor_target",
]  # fmt: skip

log = logging.getLogger(__name__)


class Target(NamedTuple):
    """Where a job goes. `kind` is for metrics and messages."""

    kind: str
    limits: Limits
    open: Callable[[Log], Sink]


class _Known:
    """Dead letters of a replay: whoever read these records first has sent them already."""

    def send(self, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        log.warning(
            "%d records of %s can't be replayed, the last because: %s; they are those of %s",
            len(letters), stream.topic, letters[-1].reason, stream.dlq,
        )  # fmt: skip


def spans_of(job: Job, stream: Stream) -> dict[Partition, Span]:
    """The job's ranges."""
    return {Partition(stream.topic, n): span for n, span in job.spans.items()}


def selection_of(kafka: Settings, streams: Mapping[str, Stream], job: Job) -> Selection:
    """What of the ranges is meant; reads receipts where they say it. Raises Unavailable, Systemic."""  # noqa: E501
    wanted = None
    if job.only_missing:
        accepted = Accepted(spans_of(job, streams[job.stream]))
        accepted.load(kafka, streams["receipts"].topic, job.to, job.begin_us)
        wanted = accepted.lacks
    return Selection(job.begin_us, job.end_us, job.event, wanted)


def vendor_target(
    kafka: Settings,
    streams: Mapping[str, Stream],
    trace: TraceSettings,
    settings: VendorSettings,
    job: Job,
) -> Target:
    """A vendor. Raises VendorError, TraceError."""
    vendor = settings.vendor()
    Gate(trace, settings.name)  # what is wrong with it is said before a group is joined
    terms = Terms(
        backfill=True, allow_redate=job.allow_redate, allow_duplicates=job.allow_duplicates
    )
    return Target(
        settings.name,
        limits_of(vendor),
        lambda log: open_sink(kafka, streams, trace, settings, vendor, log, terms),
    )


def postgres_target(url: str, stream: Stream, job: Job) -> Target:
    """A PostgreSQL table. One lane: replays into a table go one after the other."""
    from consumers.replay.postgres import PostgresReplay

    spans = spans_of(job, stream)
    return Target("postgres", Limits(), lambda log: PostgresReplay(url, stream, spans, log))


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
) -> Runner:
    """Replays the job; `run(drain=True)` returns once it is done, or told to stop.

    `count` is told how many records have landed, from a lane's thread; `look` of the partitions.
    """
    spans = spans_of(job, stream)
    return Runner(
        lambda listener: RangeSource(
            GroupSource(kafka, job.group, [stream.topic], listener), spans, job.topic_id, job.rate
        ),
        _Known(),
        [stream],
        lambda log: Counted(target.open(log), count),
        destination=target.kind,
        limits=target.limits,
        skip_lost=skip_lost,
        lag=lambda _source: look,
        select=selection,
    )
