"""Jobs that outages make: noted once, known from others, the oldest first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from consumers.batch import Partition, Span
from consumers.forward.gap import Gap
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
    assert board.is_open(later)
    assert not board.is_open(paused)
