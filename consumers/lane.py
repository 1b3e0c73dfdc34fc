"""A lane: one thread, one sink, and the partitions that are written through it.

Batches of one partition land in order because they share a lane. Whatever waits, waits here: the
thread that polls Kafka never does. The lane owns the answer to each kind of failure:

    Unavailable   the same work again, with exponential backoff and jitter, for as long as it takes
    Rejected      dead-letter the rows at fault; halve the batch until they are known
    Fenced        drop the work and all that is queued behind it for the same partitions
    anything else hand it to the run loop, which stops

A `Cursor` says who a partition belongs to. Whatever voids what is under way for it (it was revoked,
or a writer elsewhere was first) raises its `epoch`. Work remembers the epoch that its cursors were
placed in; once one of them has moved on, the work is dropped before its next attempt and moves the
epoch of the others on too: behind a hole nothing may land.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from confluent_kafka import Message

from consumers import metrics
from consumers.batch import Batch, Partition, Span
from consumers.deadletters import DeadLetter, Guard, Letters
from consumers.errors import Fenced, Rejected, Systemic, Unavailable
from consumers.sinks import Known, Sink
from consumers.source import Source
from ingest.streams import Stream

__all__ = ["Cursor", "Dropped", "Failed", "Landed", "Lane", "Place", "Placed", "Work"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Between attempts while the destination is away, in seconds.
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MOST_S = 10.0


@dataclass(slots=True, eq=False)
class Cursor:
    """A partition that this process owns."""

    partition: Partition
    stream: Stream
    lane: Lane
    # The offset to read next, and the one that all below of has landed.
    next: int = -1
    landed: int = -1
    # Kafka's timestamp of the last record read, and of the last one landed; 0 before the first.
    read_ms: int = 0
    landed_ms: int = 0
    epoch: int = 0
    # The epochs in which the sink was last asked where to go on, and in which its answer was taken.
    asked: int = -1
    placed: int = -1

    @property
    def reading(self) -> bool:
        """Records of it are wanted."""
        return self.placed == self.epoch


@dataclass(slots=True, eq=False)
class Work:
    """A batch to land, or, without one, cursors to place. `claims` are cursors and their epochs."""

    claims: dict[Cursor, int]
    batch: Batch | None = None
    # Records that could not be decoded; to be sent before the batch is written.
    letters: Sequence[DeadLetter] = ()
    # Records of the batch, bad ones included.
    records: int = 0
    # Kafka's timestamp of the last record of each partition.
    read_ms: Mapping[Cursor, int] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        """Whether a partition of it is no longer ours, or has to be placed anew."""
        return any(cursor.epoch != epoch for cursor, epoch in self.claims.items())


class Place(NamedTuple):
    """Where to go on with a partition: all below `position` has landed; `read` is at or above it."""  # noqa: E501

    position: int
    read: int


@dataclass(frozen=True, slots=True)
class Placed:
    """The sink says where to go on."""

    work: Work
    places: dict[Partition, Place]


@dataclass(frozen=True, slots=True)
class Landed:
    """A batch is durable. `rows` landed, `letters` went to the dead letters."""

    work: Work
    rows: int
    letters: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Work was void, or a writer elsewhere was first; its cursors' epochs have moved on."""

    work: Work


@dataclass(frozen=True, slots=True)
class Failed:
    """The process has to stop."""

    error: BaseException


Outcome = Placed | Landed | Dropped | Failed


class Lane:
    """Runs work in order on a thread of its own and puts an Outcome for each into `outcomes`."""

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        source: Source,
        letters: Letters,
        guard: Guard,
        outcomes: queue.SimpleQueue[Outcome],
        *,
        destination: str,
        min_interval_s: float = 0.0,
        max_partitions: int | None = None,
        skip_lost: bool = False,
    ) -> None:
        self._skip_lost = skip_lost
        self._max_partitions = max_partitions
        self._open = open_sink
        self._sink: Sink | None = None
        self._source = source
        self._letters = letters
        self._guard = guard
        self._outcomes = outcomes
        self._destination = destination
        self._min_interval_s = min_interval_s
        self._last_write: dict[str, float] = {}
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        # Woken when work becomes void or the process stops, so that no back-off outlasts either.
        self._wake = threading.Event()
        self._dead = 0
        # Since when an attempt is under way, on the monotonic clock; None between attempts.
        self.busy_since: float | None = None
        # Since when attempts fail, on the monotonic clock; None while they succeed.
        self.away_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue work; does not wait."""
        self._inbox.put(work)

    def wake(self) -> None:
        """Look again whether the work under way is void."""
        self._wake.set()

    def stop(self) -> None:
        """Void what is left, give the sink back and end the thread; does not wait."""
        self._stop.set()
        self._wake.set()
        self._inbox.put(None)

    @property
    def busy(self) -> bool:
        """Whether an attempt is under way."""
        return self.busy_since is not None

    @property
    def running(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._thread.is_alive()

    # -- on the lane's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._inbox.get()) is not None:
            try:
                outcome: Outcome = self._place(work) if work.batch is None else self._land(work)
            except Fenced as fenced:
                if not work.void and not self._stop.is_set():
                    log.warning("another writer was first, asking again where to go on: %s", fenced)
                    metrics.FENCED.labels(self._destination).inc()
                for cursor, epoch in work.claims.items():
                    if cursor.epoch == epoch:
                        cursor.epoch += 1
                if self._inbox.empty():
                    self.away_since = None  # whether it is back, the next attempt says
                outcome = Dropped(work)
            except BaseException as error:
                outcome = Failed(error)
            self._outcomes.put(outcome)
            if isinstance(outcome, Failed):
                break
        if self._sink is not None:
            self._sink.close()

    def _place(self, work: Work) -> Outcome:
        partitions = [cursor.partition for cursor in work.claims]
        return Placed(work, self._persist(work, lambda sink: self._ask(sink, partitions)))

    def _ask(self, sink: Sink, partitions: Sequence[Partition]) -> dict[Partition, Place]:
        known = self._source.known(partitions)
        positions = sink.resume(known)
        if any(at > known[p].latest for p, at in positions.items()):
            # Written and landed since Kafka was asked, or else gone from Kafka: ask once more.
            known = self._source.known(partitions)
        return {p: self._checked(p, at, known[p]) for p, at in positions.items()}

    def _checked(self, partition: Partition, position: int, known: Known) -> Place:
        """The place, if Kafka still has what comes next. Raises Systemic."""
        if position > known.latest:
            raise Systemic(
                f"{partition} has landed up to {position}, but its log ends at {known.latest}: "
                "Kafka has lost records that it had acknowledged (an unclean leader election, a "
                "restore from a backup?). What is written there now would be taken for landed. "
                "Delete the topic and make it anew with `headrace migrate`: that is noticed, and "
                "read from its start."
            )
        if position < known.earliest:
            lost = (
                f"the records of {partition} from {position} to {known.earliest} were removed by "
                f"the topic's retention before they landed in {self._destination}"
            )
            if not self._skip_lost:
                raise Systemic(
                    f"{lost}. Lengthen retention.ms of {partition.topic}, find the records "
                    "elsewhere if you can, and go on without them with --skip-lost."
                )
            log.warning("%s; skipped, as told by --skip-lost", lost)
            metrics.SKIPPED.labels(partition.topic, str(partition.number)).inc(
                known.earliest - position
            )
        return Place(position, max(position, known.earliest))

    def _land(self, work: Work) -> Outcome:
        """Land a batch, in this order:

        1. its undecodable records are acknowledged by the dead-letter topic
        2. its topic is still the one that it was read from
        3. the sink lands rows and positions together; its own steps are numbered there
        """
        assert work.batch is not None  # noqa: S101
        stream = work.batch.stream
        self._dead = 0
        self._guard.check(stream, work.records, [letter.reason for letter in work.letters])
        self._bury(work, stream, work.letters)
        rows = 0
        todo = work.batch.of_partitions(self._max_partitions)[::-1]
        while todo:
            batch = todo.pop()
            try:
                self._write(work, batch)
                rows += batch.count
            except Rejected as refused:
                todo += self._part(work, batch, refused)
        return Landed(work, rows, self._dead)

    def _write(self, work: Work, batch: Batch) -> None:
        table = batch.stream.table
        if table in self._last_write:
            pause = self._last_write[table] + self._min_interval_s - time.monotonic()
            if pause > 0:
                self._stop.wait(pause)
        self._last_write[table] = time.monotonic()
        self._persist(work, lambda sink: self._write_of_its_topic(sink, batch))

    def _write_of_its_topic(self, sink: Sink, batch: Batch) -> None:
        # librdkafka reads on in a topic that was deleted and made anew as if it were the same.
        self._source.unchanged(batch.spans)
        sink.write(batch)

    def _part(self, work: Work, batch: Batch, refused: Rejected) -> list[Batch]:
        """What to write instead of a refused batch, last first."""
        rows = refused.rows
        if not rows:
            halves = batch.halves()
            if halves is not None:
                return [halves[1], halves[0]]
            if batch.count == 0:
                raise Systemic(f"the destination refuses an empty batch: {refused.reason}")
            rows = {0: refused.reason}
        indexes = list(rows)
        self._guard.check(batch.stream, 0, list(rows.values()))
        wanted = dict(zip(batch.coordinates(indexes), rows.values(), strict=True))
        self._bury(work, batch.stream, self._fetch(work, wanted))
        return [batch.without(indexes)]

    def _fetch(self, work: Work, wanted: dict[tuple[Partition, int], str]) -> list[DeadLetter]:
        """The records behind rejected rows, read again: batches keep no messages, only rows."""
        letters = []
        for partition in dict.fromkeys(p for p, _ in wanted):
            offsets = [offset for p, offset in wanted if p == partition]
            span = Span(min(offsets), max(offsets) + 1)
            found = self._persist(work, partial(self._read, partition, span))
            letters += [
                DeadLetter(m, "rejected", reason)
                for m in found
                if (reason := wanted.get((partition, m.offset()))) is not None
            ]
        if len(letters) != len(wanted):
            raise Systemic(
                f"{len(wanted) - len(letters)} rejected records are no longer in Kafka and can't "
                "be kept as dead letters; lengthen the topic's retention"
            )
        return letters

    def _read(self, partition: Partition, span: Span, _sink: Sink) -> Sequence[Message]:
        return self._source.read(partition, span)

    def _bury(self, work: Work, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        if letters:
            self._persist(work, lambda _: self._letters.send(stream, letters))
            self._dead += len(letters)

    def _persist(self, work: Work, act: Callable[[Sink], T]) -> T:
        """Do it until it is done; raises Fenced as soon as the work is void."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            self._wake.clear()
            # Before the look at the epochs: who raises one and then sees us idle knows that no
            # attempt will follow.
            self.busy_since = time.monotonic()
            try:
                if work.void or self._stop.is_set():
                    raise Fenced("the work is void")
                if self._sink is None:
                    self._sink = self._open()
                done = act(self._sink)
            except Unavailable as away:
                if self.away_since is None:
                    self.away_since = time.monotonic()
                    log.warning("%s is away, trying again until it is back: %s",
                                self._destination, away)  # fmt: skip
                metrics.RETRIES.labels(self._destination).inc()
                metrics.LAST_ERROR.labels("unavailable").set_to_current_time()
                self.busy_since = None
                self._wake.wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff_s = min(backoff_s * 2, _BACKOFF_MOST_S)
            else:
                if self.away_since is not None:
                    log.warning("%s is back after %.1f s", self._destination,
                                time.monotonic() - self.away_since)  # fmt: skip
                    self.away_since = None
                return done
            finally:
                self.busy_since = None
