"""What replays to a vendor that are not over have still to send: events that are in flight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from consumers.batch import Chunk, Partition, Span
from consumers.client import Settings
from consumers.forward.gap import Gap
from consumers.ledger.account import positions_of
from consumers.replay.job import Job
from consumers.replay.legs import legs
from consumers.replay.run import selection_of
from consumers.replay.select import Selection
from consumers.replay.table import number_at
from consumers.sinks import Known
from ingest.streams import MAX_TIME_US, MIN_TIME_US, Stream

__all__ = ["Coming", "coming_of"]


@dataclass(frozen=True, slots=True)
class Coming:
    """What a replay has still to send: events of these spans that are meant."""

    meant: Selection
    spans: Mapping[Partition, Span]

    def of(self, stream: Stream, chunk: Chunk) -> Sequence[int]:
        """The offsets of those of a chunk."""
        start, end = self.spans.get(chunk.partition, Span(0, 0))
        within = [i for i, offset in enumerate(chunk.offsets) if start <= offset < end]
        return self.meant.kept(stream, chunk.only(within)).offsets if within else ()


def coming_of(
    kafka: Settings,
    stream: Stream,
    name: str,
    topic_id: str,
    known: Iterable[Known],
    jobs: Mapping[str, Job],
    there: Mapping[Partition, Span],
) -> list[Coming]:
    """Of all replays to a vendor; `there` is what Kafka has. Raises Unavailable, Systemic."""
    # A forwarder that leapt over an outage says so before the replay of it is noted. All is meant.
    gaps = {gap.job_id: gap for gap in (Gap.read(k.note) for k in known) if gap is not None}
    every = Selection(MIN_TIME_US, MAX_TIME_US + 1)
    found = [Coming(every, gap.spans) for id_, gap in gaps.items() if id_ not in jobs]
    for job in jobs.values():
        # What an export lacks only its file says: that a replay against it is about to send an
        # event nobody can promise.
        if job.to == name and job.topic_id == topic_id and not job.state.over and not job.against:
            found += _left(kafka, stream, job, there)
    return found


def _left(
    kafka: Settings, stream: Stream, job: Job, there: Mapping[Partition, Span]
) -> Iterator[Coming]:
    """What a job has still to send, leg by leg."""
    first, last = legs(job)
    if first is not None:
        # Its positions are numbers of rows, which grow with time: wherever those are in Kafka.
        at = positions_of(kafka, first.group, stream, job.topic_id)
        reached = at.get(Partition(stream.topic, 0), 0) // number_at(1000) * 1000
        meant = Selection(max(first.begin_us, reached), first.end_us, job.event)
        yield Coming(meant, there)
    at = positions_of(kafka, last.group, stream, job.topic_id)
    whole = last.spans_of(stream.topic)
    spans = {p: Span(max(s.start, at.get(p, 0)), s.end) for p, s in whole.items()}
    # What is missing by the receipts is all that is asked about.
    yield Coming(selection_of(kafka, {}, replace(last, only_missing=False)), spans)
