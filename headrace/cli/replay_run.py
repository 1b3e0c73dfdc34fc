"""A replay from its ranges to its end; what `headrace replay` and `replay resume` share."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from headrace.cli import signals
from headrace.cli.places import Place
from headrace.cli.replay_dry import with_other_values
from headrace.cli.replay_progress import Progress
from headrace.cli.replay_raw import behind_kafka, open_raw
from headrace.cli.replay_to import target, within
from headrace.cli.typed import as_given
from headrace.config import Config
from headrace.words import counted, printable

if TYPE_CHECKING:
    from consumers.replay.job import Job, State
    from consumers.replay.jobs import Jobs
    from consumers.replay.run import OpenTable
    from consumers.run import Runner
    from consumers.vendors.exported import Exported

__all__ = ["found", "run", "share_done"]

# A range that ends so near to when it is asked for, in seconds, ends now: whoever says so does not
# expect what is still to come.
_NOW_S = 60.0


def found(config: Config, where: Place, job: Job) -> Job:
    """The job with its ranges. Raises VendorError, too."""
    from consumers.replay.ranges import find

    _check_vendor(config, where, job)
    topic = config.stream(job.stream).topic
    at = find(config.kafka, topic, job.begin_us, job.end_us, job.lateness_s)
    job = replace(job, spans=at.spans)
    if at.cut:
        job = behind_kafka(config, where, job)
    ended_s = (job.created_us - job.end_us) / 1e6
    if ended_s < job.lateness_s and abs(ended_s) > _NOW_S:
        click.echo(
            "headrace: the range ended less than --lateness ago: what is published from now on is "
            "no part of this replay",
            err=True,
        )
    job = within(config, where, job)
    if not job.offsets and job.table_until_us is None:
        click.echo(
            f"headrace: nothing of {topic} was published from --from until --lateness after "
            "--until that could be replayed; if it was published later, give a longer --lateness",
            err=True,
        )
    return job


def run(config: Config, jobs: Jobs, where: Place, job: Job, *, skip_lost: bool) -> None:
    """Replay until it is done, paused, cancelled or told to stop; ends the process.

    Raises VendorError, and Unavailable and Systemic, from when it is noted with what to type then.
    """
    from consumers.errors import Lost, Systemic, Unavailable
    from consumers.fetch import calm_gc
    from consumers.vendors.exported import Exported

    # Before the replay is noted: a file that is no export, and a credential that is missing, leave
    # none behind that can't go on.
    _check_vendor(config, where, job)
    exported = None
    if job.against is not None:
        exported = Exported(job.against, config.trace.hash_key, config.vendors[job.to].table)
    session = _Session(config, jobs, where, exported, skip_lost=skip_lost)
    session.note(job)
    calm_gc()
    signals.stop_by(session.stop)
    try:
        job = _run_legs(config, where, session, job)
    except (Systemic, Unavailable) as error:
        said = str(error).rstrip(".")
        in_table = job.table_until_us is not None or config.raw is not None
        if isinstance(error, Lost) and in_table and where.url is None:
            # Its line to the table stands since it began, also where it had no need of one.
            cancel = as_given(f"headrace replay cancel {job.id}")
            said += (
                ". Another replay finds them in the table, to which this one does not go back: "
                f"{cancel}, and the same command with --only-missing, which sends no event that "
                "is accepted"
            )
        go_on = as_given(f"headrace replay resume {job.id}")
        raise type(error)(f"{said}. To go on then: {go_on}") from error
    _end(config, jobs, job, session.result())


def _check_vendor(config: Config, where: Place, job: Job) -> None:
    """Raises VendorError where the vendor can't be made, also for want of its credentials."""
    if where.url is None:
        target(config, where, job)


def _run_legs(config: Config, where: Place, session: _Session, job: Job) -> Job:
    """The table's leg, then Kafka's; the job as it is noted at the end."""
    from consumers.replay.legs import legs

    while True:
        first, last = legs(job)
        if first is None or (last.offsets and _share(config, last) > 0):
            break
        table = open_raw(config, job)
        if not session.run(job, first, table) or session.stopped:
            break
        # Kafka went on to remove records meanwhile.
        moved = behind_kafka(config, where, job)
        if moved.table_until_us == job.table_until_us:
            break
        moved = within(config, where, moved)
        if not session.wanted(job):
            break
        job = moved
        session.note(job)
    if not session.stopped:
        session.run(job, last)
    return job


class _Session:
    """What one process does of a job, leg by leg."""

    def __init__(
        self, config: Config, jobs: Jobs, where: Place, exported: Exported | None, *,
        skip_lost: bool,
    ) -> None:  # fmt: skip
        self._config = config
        self._jobs = jobs
        self._where = where
        self._exported = exported
        self._skip_lost = skip_lost
        self._since = 0
        self._loop: Runner | None = None
        self.stopped = False
        self._sent = 0
        self._put_back = 0
        self._left = 0

    def note(self, job: Job) -> None:
        """Keep the job as it is now; where somebody has ended it meanwhile, stop instead."""
        at = self._jobs.go_on(job)
        if at is None:
            self.stop()
        else:
            self._since = at

    def wanted(self, job: Job) -> bool:
        """Whether nobody has paused or cancelled it; else stop, and leave its record as it is.

        Between two legs nobody watches it.
        """
        from consumers.replay.job import State

        if self._jobs.get(job.id).state is not State.OPEN:
            self.stop()
        return not self.stopped

    def stop(self) -> None:
        """Finish what is under way, and begin nothing more."""
        self.stopped = True
        if self._loop is not None:
            self._loop.stop()

    def run(self, job: Job, leg: Job, table: OpenTable | None = None) -> bool:
        """One leg of the job, unless it is done; whether it is now."""
        from consumers.replay.run import runner, selection_of
        from consumers.replay.standing import Standing, passed

        if self.stopped:
            return False
        config = self._config
        stream = config.stream(job.stream)
        standing = Standing(leg, stream, passed(config.kafka, stream, leg))
        if standing.done >= leg.offsets:
            return True
        into = target(config, self._where, leg, of_rows=table is not None, on_back=self._count_back)
        selection = selection_of(config.kafka, config.streams, leg, self._exported)
        self._loop = runner(
            config.kafka, stream, leg, selection, into,
            count=self._count, look=standing, skip_lost=self._skip_lost, table=table,
        )  # fmt: skip

        def told(state: State) -> None:
            if state != job.state:
                self.stop()

        unit = leg.offsets // 1000 if table is not None else 1
        name = f"{job.to}, from {stream.table}" if table is not None else job.to
        with (
            self._jobs.watch(job, self._since, told),
            Progress(name, leg.offsets // unit, lambda: standing.done // unit),
        ):
            if not self.stopped:
                self._loop.run(drain=True)
        return sum(passed(config.kafka, stream, leg).values()) >= leg.offsets

    def _count(self, rows: int) -> None:
        self._sent += rows

    def _count_back(self, rows: int, left: int) -> None:
        self._put_back += rows
        self._left += left

    def result(self) -> str:
        """What this process has done, for its user; a vendor does not say what it had already."""
        said = f"replayed {counted(self._sent, 'record')} to {printable(self._where.name)}"
        if self._where.url is None:
            return said
        said = f"{said}: {counted(self._put_back, 'row')} put back, the others were there"
        return f"{said}; {with_other_values(self._left)}" if self._left else said


def _end(config: Config, jobs: Jobs, job: Job, result: str) -> None:
    """Note that it is done, if it is; say where it stands, and end the process."""
    from consumers.replay.job import State

    so_far = share_done(config, job)
    now = jobs.get(job.id)
    if so_far >= 1 and not now.state.over:
        jobs.put(now.moved(State.DONE))
    signals.no_more()
    click.echo(result)
    if now.state is State.CANCELLED:
        click.echo("it was cancelled")
    elif so_far < 1:
        paused = "it was paused, " if now.state is State.PAUSED else ""
        go_on = as_given(f"headrace replay resume {job.id}")
        click.echo(f"{paused}{so_far:.0%} done; to go on: {go_on}")
    sys.exit(0)


def share_done(config: Config, job: Job) -> float:
    """How much of a job is done, 1 for all; its legs by their time."""
    from consumers.replay.legs import legs

    first, last = legs(job)
    if first is None:
        return _share(config, last)
    spans_us = [leg.end_us - leg.begin_us for leg in (first, last)]
    weights = [max(us, 0) / max(job.end_us - job.begin_us, 1) for us in spans_us]
    shares = [_share(config, leg) for leg in (first, last)]
    if min(shares) >= 1:
        return 1.0
    return min(sum(w * s for w, s in zip(weights, shares, strict=True)), 0.99)


def _share(config: Config, leg: Job) -> float:
    from consumers.replay.standing import passed

    if not leg.offsets:
        return 1.0
    return sum(passed(config.kafka, config.stream(leg.stream), leg).values()) / leg.offsets
