"""The run loop of a job, and what of its ranges is meant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from consumers.batch import Span
from consumers.bounds import bounds
from consumers.client import Settings
from consumers.deadletters import DeadLetter, DeadLetters
from consumers.destinations import destination
from consumers.errors import Systemic, Unavailable
from consumers.group import GroupSource
from consumers.lag import Look
from consumers.replay.job import Job, Origin
from consumers.replay.missing import Accepted, check_receipts, left_to_outages, without
from consumers.replay.select import Counted, Selection, Wanted, not_in
from consumers.replay.source import RangeSource
from consumers.replay.table import RawTable
from consumers.replay.table_source import TableSource
from consumers.replay.target import Target, not_landed
from consumers.run import Runner
from consumers.source import Listener, Source
from ingest.streams import Stream
from ingest.topics import TopicError, topic_ids

if TYPE_CHECKING:
    from consumers.vendors.exported import Exported

__all__ = ["OpenTable", "ReceiptsLanded", "runner", "selection_of"]

log = logging.getLogger(__name__)

_ALWAYS = (-(2**62), 2**62)


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
        accepted = Accepted(job.spans_of(streams[job.stream].topic))
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
    spans = job.spans_of(stream.topic)

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
