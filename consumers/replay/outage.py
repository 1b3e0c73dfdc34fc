"""What an outage left out is replayed by the forwarders themselves, beside fresh events.

A gap is noted as a job (keeper.py). Then:

    Board    the jobs as they stand, followed by one thread of the process
    Filling  runs one vendor's jobs of this kind, the oldest first

Every forwarder of a vendor runs the same job and they share its partitions, for it is a consumer
group as any replay is. Whoever finds all of it done says so. What retention has removed of it comes
from the table of raw events, where one is named (legs.py). A job that can't go on stays open and
visible, and those behind it go on; noted once more, it is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from consumers import metrics
from consumers.bounds import bounds
from consumers.client import Settings
from consumers.destinations import destination
from consumers.errors import SinkError, Systemic, Unavailable
from consumers.replay.job import Job, Origin, State
from consumers.replay.jobs import Jobs
from consumers.replay.legs import from_table, legs
from consumers.replay.run import OpenTable, runner, selection_of
from consumers.replay.standing import Standing, conclude, passed
from consumers.replay.table import RawTable
from consumers.replay.target import Target
from consumers.run import Runner
from consumers.work import Cursor
from ingest.streams import Stream

__all__ = ["Board", "Filling", "Raw"]

log = logging.getLogger(__name__)

_LOOK_S = 1.0
# Before a job is tried again that could not be run because Kafka was away, in seconds.
_AGAIN_S = 5.0
_SETTLE_S = 0.05


class Raw(NamedTuple):
    """The database with the table of raw events."""

    url: str
    open: Callable[[], RawTable]


class Board:
    """The jobs, as far as they have been read; from any thread."""

    def __init__(self, jobs: Jobs) -> None:
        self._source = jobs
        self._jobs: dict[str, Job] = {}
        self._news = threading.Condition()

    @contextmanager
    def following(self) -> Iterator[None]:
        """While the block runs it is kept up to date."""
        with self._source.follow(self.tell):
            yield

    def read(self) -> None:
        """Bring it up to date now; what is as it was, is no news. Raises Unavailable, Systemic."""
        for job in self._source.readable().values():
            with self._news:
                kept = self._jobs.get(job.id)
                if kept != job and not job.revives(kept):  # which it was told meanwhile
                    self._jobs[job.id] = job

    def tell(self, job: Job) -> None:
        """A job is like this now."""
        with self._news:
            if job.revives(self._jobs.get(job.id)):
                return
            self._jobs[job.id] = job
            self._news.notify_all()

    def of(self, vendor: str) -> list[Job]:
        """Its outages' jobs that are not over, oldest first."""
        with self._news:
            jobs = list(self._jobs.values())
        found = [
            j for j in jobs if j.to == vendor and j.origin is Origin.OUTAGE and not j.state.over
        ]
        return sorted(found, key=lambda job: job.begin_us)

    def stands(self, job: Job) -> bool:
        """Whether it may go on as it is."""
        with self._news:
            return self._jobs.get(job.id, job) == job

    def wait(self, seconds: float) -> None:
        """Until there is news, or so long."""
        with self._news:
            self._news.wait(seconds)


class Filling:
    """See the module's comment; `run` is for a thread of its own."""

    def __init__(
        self,
        kafka: Settings,
        streams: Mapping[str, Stream],
        vendor: str,
        jobs: Jobs,
        board: Board,
        target: Callable[[Job], Target],
        *,
        skip_lost: bool = False,
        raw: Raw | None = None,
    ) -> None:
        self._kafka = kafka
        self._raw = raw
        self._streams = streams
        self._stream = streams["raw_events"]
        self._vendor = vendor
        self._jobs = jobs
        self._board = board
        self._target = target
        self._skip_lost = skip_lost
        # Jobs that a person has to look at, as they were, and why.
        self._stuck: dict[str, tuple[Job, SinkError]] = {}
        self._stopping = threading.Event()
        self._ending = False
        self.rows = 0

    def stop(self) -> None:
        """Finish what is under way and return from `run`."""
        self._stopping.set()

    def finish(self) -> None:
        """Return from `run` once no job is left that can be run."""
        self._ending = True

    @property
    def error(self) -> SinkError | None:
        """Why a job is left open, if one is."""
        open_ = {job.id for job in self._board.of(self._vendor) if job.state is State.OPEN}
        return next((error for id_, (_, error) in self._stuck.items() if id_ in open_), None)

    def run(self) -> None:
        """Run jobs until told otherwise."""
        while not self._stopping.is_set():
            ending = self._ending
            try:
                if ending:
                    self._board.read()
                job = self._next()
                if job is not None:
                    self._fill(job)
                elif ending:
                    return
                else:
                    self._show(None)
                    self._board.wait(_LOOK_S)
            except Unavailable as away:
                log.warning("the replays of %s wait: %s", self._vendor, away)
                self._stopping.wait(_AGAIN_S)

    def _next(self) -> Job | None:
        for job in self._board.of(self._vendor):
            known = self._stuck.get(job.id)
            # Who notes a job once more, as `headrace replay resume` does, wants it tried again.
            if job.state is State.OPEN and (known is None or known[0] is not job):
                return job
        return None

    def _fill(self, job: Job) -> None:
        log.info("the replay %s of %s begins or goes on", job.id, self._vendor)
        self._stuck.pop(job.id, None)  # it says itself whether it still is
        try:
            job = self._around_the_lost(job)
            first, last = legs(job)
            if first is None or self._run(job, first, of_table=True):
                self._run(job, last)
        except Systemic as error:
            self._stick(job, error)
        try:
            state = conclude(self._kafka, self._stream, self._jobs, job)
        except Systemic as error:  # its record is one that only a newer headrace can read
            self._stick(job, error)
            return
        if state is State.DONE:
            self._board.tell(job.moved(state))
            log.info("the replay %s of %s is done", job.id, self._vendor)

    def _stick(self, job: Job, error: Systemic) -> None:
        self._stuck[job.id] = job, error
        log.error(
            "the replay %s of %s stops and stays open: %s. It is tried again after `headrace "
            "replay resume %s`", job.id, self._vendor, str(error).rstrip("."), job.id,
        )  # fmt: skip

    def _around_the_lost(self, job: Job) -> Job:
        """The job as it is to be run; noted, if it goes by way of the table from now on."""
        if self._raw is None or job.table_until_us is not None:
            return job
        done = passed(self._kafka, self._stream, job)
        there = bounds(self._kafka, self._stream.topic).spans
        spans = job.spans_of(self._stream.topic)
        if not any(
            p.number in there and span.start + done[p] < min(span.end, there[p.number].start)
            for p, span in spans.items()
        ):
            return job
        if not job.begin_us and (self._skip_lost or job.skip_lost):
            return job  # nobody knows what to ask the table for, and we are told to go on
        found = from_table(self._kafka, self._raw.url, self._stream, job)
        if not self._board.stands(job):
            return job  # changed meanwhile, which its watch will see
        # The board is behind by a moment, or longer where the connection was lost.
        now = self._jobs.get(job.id)
        if now != job or self._jobs.go_on(found) is None:
            self._board.tell(self._jobs.get(job.id))
            return job
        log.warning(
            "Kafka no longer has all of the replay %s of %s: it comes from the table %s at %s",
            job.id, self._vendor, self._stream.table, destination(self._raw.url).where,
        )  # fmt: skip
        self._board.tell(found)
        return found

    def _run(self, job: Job, leg: Job, *, of_table: bool = False) -> bool:
        """One leg; whether it is done now. Raises Systemic."""
        before = passed(self._kafka, self._stream, leg)
        if sum(before.values()) >= leg.offsets:
            return True
        if not of_table and leg.may_be_forgotten(time.time_ns() // 1000) and 0 in before.values():
            # It may have been under way, and what it has sent has receipts.
            leg = replace(leg, only_missing=True)
        # Positions in the table are no offsets: until it is read all of the job is left.
        standing = None if of_table else Standing(leg, self._stream, before)
        loop = runner(
            self._kafka, self._stream, leg, selection_of(self._kafka, self._streams, leg),
            self._target(leg), count=self._count, look=_Look(self, standing),
            skip_lost=self._skip_lost or leg.skip_lost,
            table=self._table() if of_table else None,
        )  # fmt: skip
        over = threading.Event()
        watching = threading.Thread(
            target=self._watch, args=(job, loop, over), name=f"watch-{job.id}", daemon=True
        )
        watching.start()
        try:
            loop.run(drain=True)
        finally:
            over.set()
            watching.join()
            # One that was stopped may be at its last requests, which a loop begun anew would send
            # beside it. A process that ends takes it along.
            while not (loop.ended or self._stopping.wait(_SETTLE_S)):
                pass
        return sum(passed(self._kafka, self._stream, leg).values()) >= leg.offsets

    def _table(self) -> OpenTable:
        if self._raw is None:
            raise Systemic(
                "Kafka no longer has all of it, and the database that gives it is named no more: "
                "set raw = URL under [replay]."
            )
        return OpenTable(self._raw.open, self._vendor)

    def _watch(self, job: Job, loop: Runner, over: threading.Event) -> None:
        """Stop it when somebody else says so, also to go on with it at another rate."""
        while not over.is_set():
            if self._stopping.is_set() or not self._board.stands(job):
                loop.stop()
            self._board.wait(0.2)

    def _count(self, rows: int) -> None:
        self.rows += rows

    def _show(self, standing: Standing | None) -> None:
        jobs = self._board.of(self._vendor)
        left = sum(job.offsets for job in jobs) - (0 if standing is None else standing.done)
        since_us = min((job.begin_us or job.end_us for job in jobs), default=None)
        age_s = 0.0 if since_us is None else time.time() - since_us / 1e6
        metrics.VENDOR_GAP_MESSAGES.labels(self._vendor).set(max(left, 0))
        metrics.VENDOR_GAP_SECONDS.labels(self._vendor).set(max(age_s, 0.0))


class _Look:
    """What the run loop of a job tells of its partitions; shown once a second."""

    def __init__(self, filling: Filling, standing: Standing | None) -> None:
        self._filling, self._standing = filling, standing
        self._due_at = 0.0

    def look(self, cursors: Iterable[Cursor]) -> None:
        if self._standing is not None:
            self._standing.look(cursors)
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = now + _LOOK_S
            self._filling._show(self._standing)
