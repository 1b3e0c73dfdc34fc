"""How far a job has come, by the committed offsets of its group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from consumers.batch import Partition
from consumers.client import Settings
from consumers.lookup import Lookup
from consumers.replay.jobs import Job, Jobs, State
from consumers.replay.run import spans_of
from consumers.work import Cursor
from ingest.streams import Stream

__all__ = ["Standing", "conclude", "passed"]


def passed(kafka: Settings, stream: Stream, job: Job) -> dict[Partition, int]:
    """Of each partition how many offsets of its range are done. Raises Unavailable."""
    spans = spans_of(job, stream)
    lookup = Lookup(kafka, job.group, [stream.topic])
    try:
        committed = lookup.committed(spans)
    finally:
        lookup.close()
    return {p: _done(spans[p], at) for p, at in committed.items()}


def conclude(kafka: Settings, stream: Stream, jobs: Jobs, job: Job) -> State:
    """Note that a job is done, if it is; its state then. Raises Unavailable, Systemic."""
    so_far = sum(passed(kafka, stream, job).values())
    now = jobs.get(job.id)
    if so_far >= job.offsets and not now.state.over:
        now = now.moved(State.DONE)
        jobs.put(now)
    return now.state


class Standing:
    """The same from within the run loop (a `Look`), without asking anybody."""

    def __init__(self, job: Job, stream: Stream, before: Mapping[Partition, int]) -> None:
        """`before` is what was done when the loop began."""
        self._spans = spans_of(job, stream)
        self._done = dict(before)

    def look(self, cursors: Iterable[Cursor]) -> None:
        for cursor in cursors:
            span = self._spans.get(cursor.partition)
            if span is not None and cursor.landed >= 0:
                self._done[cursor.partition] = _done(span, cursor.landed)

    @property
    def done(self) -> int:
        """Offsets, as far as this process knows; from any thread."""
        return sum(list(self._done.values()))


def _done(span: tuple[int, int], at: int) -> int:
    start, end = span
    return max(0, min(at, end) - start)
