"""How far a job has come, by the committed offsets of its group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from consumers.batch import Partition
from consumers.client import Settings
from consumers.intent import FRESH_S, Intent
from consumers.lookup import Lookup
from consumers.members import groups, members
from consumers.replay.job import Job, State
from consumers.replay.jobs import Jobs
from consumers.replay.legs import legs
from consumers.work import Cursor
from ingest.streams import Stream

__all__ = ["AtWork", "Standing", "at_work", "conclude", "passed"]


class AtWork(NamedTuple):
    """A job that may still insert rows: until when (Unix time), None while a process runs it."""

    job: Job
    until_s: float | None


def passed(kafka: Settings, stream: Stream, job: Job) -> dict[Partition, int]:
    """Of each partition how many offsets of its range are done. Raises Unavailable."""
    spans = job.spans_of(stream.topic)
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


def at_work(kafka: Settings, stream: Stream, jobs: Sequence[Job], now_s: float) -> AtWork | None:
    """One of these, replays into ClickHouse, of which rows may still come. Raises Unavailable.

    Its process ends a moment after it is told to, and an insert may outlive that in the server. Of
    a process that has no partition just now nothing is known.
    """
    # Kafka forgets the offsets of a group a week after its last member has left.
    there = set(groups(kafka)) if jobs else set()
    asked = [(job, leg) for job in jobs for leg in legs(job) if leg and leg.group in there]
    # In this order: whoever is gone by now has announced all that it ever will.
    present = members(kafka, [leg.group for _, leg in asked])
    for job, leg in asked:
        if present[leg.group]:
            return AtWork(job, None)
    for job, leg in asked:
        for intent in _announced(kafka, stream, leg):
            if intent.fresh(now_s):
                return AtWork(job, intent.at_ms / 1000 + FRESH_S)
    return None


def _announced(kafka: Settings, stream: Stream, leg: Job) -> list[Intent]:
    """The inserts that its offsets announce; those of a topic that is gone went with it."""
    lookup = Lookup(kafka, leg.group, [stream.topic])
    try:
        there = lookup.all_ends()
        known = lookup.known([p for p in leg.spans_of(stream.topic) if p in there])
    finally:
        lookup.close()
    intents = (Intent.read(k.note) for k in known.values())
    return [intent for intent in intents if intent is not None and intent.spans]


class Standing:
    """The same from within the run loop (a `Look`), without asking anybody."""

    def __init__(self, job: Job, stream: Stream, before: Mapping[Partition, int]) -> None:
        """`before` is what was done when the loop began."""
        self._spans = job.spans_of(stream.topic)
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
