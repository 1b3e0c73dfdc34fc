"""Jobs that outages make: noted once, known from others, the oldest first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from consumers.batch import Partition, Span
from consumers.forward.gap import Gap
from consumers.lanes import Totals
from consumers.replay.beside import Beside
from consumers.replay.jobs import Job, Origin, State
from consumers.replay.outage import Board, Keeper
from ingest.streams import BUILT_IN

GAP = Gap("3f9c01d2", "topic", {Partition("raw_events", 2): Span(5, 9)}, 1000, 61_000, begun=True)


class Topic:
    """The topic of jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.puts = 0

    def all(self) -> dict[str, Job]:
        return dict(self.jobs)

    def put(self, job: Job) -> int:
        self.jobs[job.id] = job
        self.puts += 1
        return 0


def keep(topic: Any) -> Job:
    Keeper(topic, "heap", BUILT_IN["raw_events"])(GAP)
    job: Job = topic.jobs[GAP.job_id]
    return job


def test_a_gap_is_a_job_with_its_ranges_and_the_times_of_the_outage() -> None:
    job = keep(Topic())
    assert (job.to, job.stream, job.topic_id, job.spans) == (
        "heap", "raw_events", "topic", {2: Span(5, 9)},
    )  # fmt: skip
    assert (job.begin_us, job.end_us) == (1_000_000, 61_000_000)
    assert (job.origin, job.repeated, job.state) == (Origin.OUTAGE, True, State.OPEN)
    assert Job.read(job.value()) == job


def test_a_job_that_there_is_already_is_left_as_it_is() -> None:
    topic = Topic()
    topic.jobs[GAP.job_id] = done = keep(topic).moved(State.DONE)
    assert keep(topic) == done
    assert topic.puts == 1


def test_a_job_of_an_older_record_came_of_a_command() -> None:
    value = keep(Topic()).value().replace(b',"origin":"outage","repeated":true', b"")
    assert b"origin" not in value
    job = Job.read(value)
    assert (job.origin, job.repeated) == (Origin.COMMAND, True)


def test_outages_jobs_come_oldest_first_and_commands_jobs_are_others_business() -> None:
    first = keep(Topic())
    later = replace(first, id="later", begin_us=first.begin_us + 1)
    paused = replace(first, id="paused", begin_us=first.begin_us + 2, state=State.PAUSED)
    others = [
        replace(first, id="command", origin=Origin.COMMAND),
        replace(first, id="other", to="ga4"),
        first.moved(State.CANCELLED),
    ]
    board = Board(Topic())  # type: ignore[arg-type] # as much as it needs
    for job in (paused, later, replace(first, id="first"), *others):
        board.tell(job)
    assert [job.id for job in board.of("heap")] == ["first", "later", "paused"]


def test_a_job_goes_on_as_long_as_nobody_notes_it_otherwise() -> None:
    job = keep(Topic())
    board = Board(Topic())  # type: ignore[arg-type] # as much as it needs
    assert board.stands(job), "nothing else is known"
    board.tell(Job.read(job.value()))
    assert board.stands(job), "noted once more"
    board.tell(replace(job, rate=100.0))
    assert not board.stands(job)
    board.tell(job.moved(State.PAUSED))
    assert not board.stands(job)


def test_a_job_that_is_noted_once_more_is_news_and_one_that_is_only_read_is_not() -> None:
    topic = Topic()
    job = keep(topic)
    board = Board(topic)  # type: ignore[arg-type] # as much as it needs
    board.tell(job)
    topic.jobs[job.id] = again = Job.read(job.value())
    board.read()
    assert board.of("heap")[0] is job
    board.tell(again)
    assert board.of("heap")[0] is again


class Live:
    """A vendor's live loop that is well, until it is stopped."""

    away_s = 0.0
    problem = None

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile

    def run(self, *, drain: bool) -> Totals:
        self.meanwhile()
        return Totals()


class Broken:
    """Replays that a bug, or a job that can't be read, has ended."""

    rows = 0
    error = None

    def __init__(self) -> None:
        self.ended = threading.Event()

    def run(self) -> None:
        self.ended.set()
        raise RuntimeError("the topic is gone")

    def finish(self) -> None: ...


def test_replays_that_have_ended_by_themselves_are_a_problem_that_readyz_shows() -> None:
    filling, seen = Broken(), []

    def meanwhile() -> None:
        deadline = time.monotonic() + 10
        while both.problem is None and time.monotonic() < deadline:
            filling.ended.wait(0.01)
        seen.append(both.problem)

    both = Beside("heap", Live(meanwhile), filling)  # type: ignore[arg-type] # as much as it needs
    both.run()
    assert seen == ["its replays have stopped, start the forwarder again: the topic is gone"]
