"""A replay from its ranges to its end; what `headrace replay` and `replay resume` share."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

import click

from headrace.cli.replay_progress import Progress
from headrace.cli.replay_to import Place, target, within
from headrace.config import Config

if TYPE_CHECKING:
    from consumers.replay.jobs import Job, Jobs, State

__all__ = ["done", "found", "run", "show_dry_run"]


def found(config: Config, where: Place, job: Job) -> Job:
    """The job with its ranges."""
    from consumers.replay.ranges import find

    topic = config.stream(job.stream).topic
    at = find(config.kafka, topic, job.begin_us, job.end_us, job.lateness_s)
    if at.cut:
        click.echo(
            f"headrace: Kafka's retention has removed the beginning of {topic} in "
            f"{len(at.cut)} partitions: older records of this range may be gone from there",
            err=True,
        )
    if job.end_us + job.lateness_s * 1e6 > job.created_us:
        click.echo(
            "headrace: the range ended less than --lateness ago: what is published from now on is "
            "no part of this replay",
            err=True,
        )
    job = within(config, where, replace(job, spans=at.spans))
    if not job.offsets:
        click.echo(
            f"headrace: nothing of {topic} was published from --from until --lateness after "
            "--until that could be replayed; if it was published later, give a longer --lateness",
            err=True,
        )
    return job


def run(config: Config, jobs: Jobs, where: Place, job: Job, *, skip_lost: bool) -> None:
    """Replay until it is done, paused, cancelled or told to stop; ends the process."""
    from consumers.fetch import calm_gc
    from consumers.replay.run import runner, selection_of
    from consumers.replay.standing import Standing, passed
    from headrace.sentry import attach

    attach(config.sentry_dsn)
    stream = config.stream(job.stream)
    into = target(config, where, job)
    since = jobs.put(job)
    standing = Standing(job, stream, passed(config.kafka, stream, job))
    selection = selection_of(config.kafka, config.streams, job)
    sent = 0

    def count(rows: int) -> None:
        nonlocal sent
        sent += rows

    loop = runner(
        config.kafka, stream, job, selection, into,
        count=count, look=standing, skip_lost=skip_lost,
    )  # fmt: skip

    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.stop()

    def told(state: State) -> None:
        if state != job.state:
            loop.stop()

    calm_gc()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with jobs.watch(job, since, told), Progress(job.to, job.offsets, lambda: standing.done):
        loop.run(drain=True)
    _end(config, jobs, job, sent)


def _end(config: Config, jobs: Jobs, job: Job, sent: int) -> None:
    """Note that it is done, if it is; say where it stands, and end the process."""
    from consumers.replay.jobs import State

    so_far = done(config, job)
    now = jobs.get(job.id)
    if so_far >= job.offsets and not now.state.over:
        jobs.put(now.moved(State.DONE))
    # All is committed. While the interpreter ends a signal would end it with another exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    click.echo(f"replayed {sent:,} records to {job.to}")
    if now.state is State.CANCELLED:
        click.echo("it was cancelled")
    elif so_far < job.offsets:
        click.echo(f"{so_far / job.offsets:.0%} done; to go on: headrace replay resume {job.id}")
    sys.exit(0)


def show_dry_run(config: Config, job: Job) -> None:
    from consumers.forward.live import limits_of
    from consumers.replay.dry import dry_run
    from consumers.replay.missing import Accepted
    from consumers.replay.run import spans_of
    from headrace.cli.replay_dry import lines

    stream, vendor = config.stream(job.stream), config.vendors[job.to].vendor()
    accepted = Accepted(spans_of(job, stream))
    accepted.load(config.kafka, config.stream("receipts").topic, job.to, job.begin_us)
    figures = dry_run(
        config.kafka, stream, config.trace, vendor, job, accepted, limits_of(vendor).max_rows
    )
    for line in lines(figures, figures.seconds(vendor, job.rate, job.offsets)):
        click.echo(line)


def done(config: Config, job: Job) -> int:
    from consumers.replay.standing import passed

    return sum(passed(config.kafka, config.stream(job.stream), job).values())
