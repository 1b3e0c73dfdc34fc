"""`headrace replay`: a range of time once more, to a vendor; and the replays there are."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.insert import leave_in_time
from headrace.cli.options import config_options
from headrace.cli.replay_progress import Progress
from headrace.cli.when import DURATION, TIME
from headrace.config import Config, ConfigError, load

if TYPE_CHECKING:
    from consumers.replay.jobs import Job, Jobs, State
    from consumers.replay.run import Target

__all__ = ["replay"]


class Rate(click.ParamType[float]):
    """ "500/s" or "500": records a second."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            found = float(str(value).removesuffix("/s"))
        except ValueError:
            found = 0.0
        if not 1 <= found < float("inf"):
            self.fail(f"{value!r} is not a rate: write 500/s; at least 1/s", param, ctx)
        return found


_skip_lost = click.option(
    "--skip-lost",
    is_flag=True,
    help="Go on behind records that Kafka's retention removed before they were replayed.",
)


@click.group(invoke_without_command=True)
@click.option("--to", metavar="VENDOR", help="A vendor of [vendors.NAME].")
@click.option("--from", "begin_us", type=TIME, metavar="TIME", help="Since when.")
@click.option(
    "--until", "end_us", type=TIME, metavar="TIME", default="now", show_default=True,
    help="Until when, that moment excluded.",
)  # fmt: skip
@click.option("--event", metavar="NAME", help="Only events of this name, as they were sent.")
@click.option(
    "--only-missing", is_flag=True, help="Only events without an accepted receipt of the vendor."
)
@click.option("--rate", type=Rate(), metavar="N/s", help="Read no more records a second.")
@click.option(
    "--lateness", "lateness_s", type=DURATION, default="1h", show_default=True, metavar="SPAN",
    help="How long after its time a record may have been published.",
)  # fmt: skip
@click.option(
    "--allow-redate", is_flag=True,
    help="Send also what the vendor will give another date because it is old.",
)  # fmt: skip
@click.option(
    "--allow-duplicates", is_flag=True,
    help="Send also what the vendor may count twice because it has forgotten its key.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show hour by hour what would be sent.")
@_skip_lost
@config_options
@click.pass_context
def replay(
    ctx: click.Context,
    to: str | None,
    begin_us: int | None,
    end_us: int,
    event: str | None,
    only_missing: bool,
    rate: float | None,
    lateness_s: float,
    allow_redate: bool,
    allow_duplicates: bool,
    dry_run: bool,
    skip_lost: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Send a range of time once more, through the same loop, with a receipt for each event.

    The time is the stream's time field: of raw events, when the collector took them. Records that
    are out of order are found as long as they were published within --lateness. TIME is RFC 3339,
    now, or relative: -2h.

    A replay that was stopped or killed goes on where it was: by the same command (with times that
    are not relative), or by `headrace replay resume ID`. Every event keeps its key, so a vendor
    that knows keys stores it once; what a vendor would spoil is refused with a receipt that says
    so. See docs/replay.md.

    \b
    Examples:
      headrace replay --to amplitude --from 2025-06-16T22:00:00Z --until 2025-06-16T23:00:00Z
      headrace replay --to mixpanel --from -2d --only-missing --rate 500/s
      headrace replay --to ga4 --from -3d --dry-run
      headrace replay ls
    """
    if ctx.invoked_subcommand is not None:
        if to is not None or begin_us is not None:
            raise click.UsageError(f"--to and --from start a replay; {ctx.invoked_subcommand} does"
                                   " not take them")  # fmt: skip
        return
    if to is None or begin_us is None:
        raise click.UsageError("give --to and --from, or one of: ls, show, pause, resume, cancel")
    if end_us <= begin_us:
        raise click.UsageError("--until is not behind --from")
    _prepare()
    from consumers.replay.jobs import Job, Jobs, State
    from ingest.topics import topic_ids

    config = load(config_path, kafka=kafka)
    _check_vendor(config, to)
    stream = config.stream("raw_events")
    from headrace.cli.options import require_topics

    require_topics(config, [stream, config.stream("receipts")])
    asked = Job(
        id=secrets.token_hex(4), to=to, stream=stream.name,
        topic_id=topic_ids(config.kafka, [stream.topic])[stream.topic],
        begin_us=begin_us, end_us=end_us, lateness_s=lateness_s, spans={},
        created_us=time.time_ns() // 1000, event=event, only_missing=only_missing, rate=rate,
        allow_redate=allow_redate, allow_duplicates=allow_duplicates,
    )  # fmt: skip
    if dry_run:
        _show_dry_run(config, _found(config, asked))
        return
    jobs = Jobs(config.kafka)
    unfinished = [j for j in jobs.all().values() if not j.state.over and j.asks_the_same(asked)]
    if unfinished:
        job = replace(unfinished[-1], rate=rate, state=State.OPEN)
        click.echo(f"replay {job.id} goes on")
    else:
        job = _found(config, asked)
        click.echo(f"replay {job.id}: {job.offsets:,} records at most")
    _run(config, jobs, job, skip_lost=skip_lost)


@replay.command()
@click.argument("job_id", metavar="ID")
@click.option("--rate", type=Rate(), metavar="N/s", help="From now on; without it, as before.")
@_skip_lost
@config_options
def resume(
    job_id: str,
    rate: float | None,
    skip_lost: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Go on with a replay that was paused, stopped or killed.

    Where it is still running in another process, the two share its partitions.

    \b
    Example:
      headrace replay resume 3f9c01d2
    """
    _prepare()
    config, jobs = _jobs(config_path, kafka)
    from consumers.replay.jobs import State

    job = jobs.get(job_id).moved(State.OPEN)
    _check_vendor(config, job.to)
    _run(config, jobs, job if rate is None else replace(job, rate=rate), skip_lost=skip_lost)


@replay.command()
@click.argument("job_id", metavar="ID")
@config_options
def pause(job_id: str, config_path: Path | None, kafka: str | None) -> None:
    """Stop a replay for now, wherever it runs; `headrace replay resume` goes on with it.

    \b
    Example:
      headrace replay pause 3f9c01d2
    """
    from consumers.replay.jobs import State

    _move(config_path, kafka, job_id, State.PAUSED)


@replay.command()
@click.argument("job_id", metavar="ID")
@config_options
def cancel(job_id: str, config_path: Path | None, kafka: str | None) -> None:
    """Stop a replay for good, wherever it runs. What it has sent stays sent.

    \b
    Example:
      headrace replay cancel 3f9c01d2
    """
    from consumers.replay.jobs import State

    _move(config_path, kafka, job_id, State.CANCELLED)


@replay.command("ls")
@click.option("--all", "all_", is_flag=True, help="Also those that are done or cancelled.")
@config_options
def list_(all_: bool, config_path: Path | None, kafka: str | None) -> None:
    """List the replays: state, how far each has come, its range and where it goes.

    \b
    Example:
      headrace replay ls --all
    """
    config, jobs = _jobs(config_path, kafka)
    for job in jobs.all().values():
        if all_ or not job.state.over:
            done = _done(config, job)
            share = f"{done / job.offsets:.0%}" if job.offsets else "100%"
            click.echo(
                f"{job.id}  {job.state:9}  {share:>4}  {_moment(job.begin_us)}  "
                f"{_moment(job.end_us)}  {job.to}"
            )


@replay.command()
@click.argument("job_id", metavar="ID")
@config_options
def show(job_id: str, config_path: Path | None, kafka: str | None) -> None:
    """Show all that is known of a replay, as JSON.

    \b
    Example:
      headrace replay show 3f9c01d2
    """
    config, jobs = _jobs(config_path, kafka)
    job = jobs.get(job_id)
    known: dict[str, Any] = json.loads(job.value())
    for name in ("begin", "end", "created"):
        known[name] = _moment(known.pop(f"{name}_us"))
    known |= {"offsets": job.offsets, "done": _done(config, job), "group": job.group}
    click.echo(json.dumps(known, indent=2))


# -- what they share -------------------------------------------------------------------------------


def _prepare() -> None:
    """Logs and signals, as `headrace forward` has them."""
    try:
        import httpx  # noqa: F401 - here, so that its absence is said at once
        import msgspec  # noqa: F401 - the same
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: pip install 'headrace[vendors]'"
        ) from error
    from headrace.logs import configure

    configure()
    leave_in_time()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: os._exit(0))


def _jobs(config_path: Path | None, kafka: str | None) -> tuple[Config, Jobs]:
    from consumers.replay.jobs import Jobs

    config = load(config_path, kafka=kafka)
    return config, Jobs(config.kafka)


def _check_vendor(config: Config, to: str) -> None:
    """Raises ConfigError."""
    from consumers.forward.live import allowed

    if to not in config.vendors:
        known = ", ".join(config.vendors) or "none"
        raise ConfigError(f"--to {to}: there is no [vendors.{to}]; there are: {known}")
    if not allowed(config.trace, to):
        raise ConfigError(f"[trace] lets no event leave for {to}, so there is nothing to replay")


def _found(config: Config, job: Job) -> Job:
    """The job with its ranges."""
    from consumers.replay.ranges import find

    topic = config.stream(job.stream).topic
    found = find(config.kafka, topic, job.begin_us, job.end_us, job.lateness_s)
    if found.cut:
        click.echo(
            f"headrace: Kafka's retention has removed the beginning of {topic} in "
            f"{len(found.cut)} partitions: older records of this range may be gone from there",
            err=True,
        )
    if job.end_us + job.lateness_s * 1e6 > job.created_us:
        click.echo(
            "headrace: the range ended less than --lateness ago: what is published from now on is "
            "no part of this replay",
            err=True,
        )
    spans = found.spans
    if job.only_missing:
        from consumers.forward.live import group_of
        from consumers.replay.missing import seen_by

        spans = seen_by(config.kafka, group_of(job.to), topic, spans)
    return replace(job, spans=spans)


def _target(config: Config, job: Job) -> Target:
    from consumers.replay.run import vendor_target

    return vendor_target(config.kafka, config.streams, config.trace, config.vendors[job.to], job)


def _run(config: Config, jobs: Jobs, job: Job, *, skip_lost: bool) -> None:
    """Replay until it is done, paused, cancelled or told to stop; ends the process."""
    from consumers.fetch import calm_gc
    from consumers.replay.run import runner, selection_of
    from consumers.replay.standing import Standing, passed

    stream = config.stream(job.stream)
    target = _target(config, job)
    since = jobs.put(job)
    standing = Standing(job, stream, passed(config.kafka, stream, job))
    selection = selection_of(config.kafka, config.streams, job)
    sent = 0

    def count(rows: int) -> None:
        nonlocal sent
        sent += rows

    loop = runner(
        config.kafka, stream, job, selection, target,
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

    done = _done(config, job)
    now = jobs.get(job.id)
    if done >= job.offsets and not now.state.over:
        jobs.put(now.moved(State.DONE))
    # All is committed. While the interpreter ends a signal would end it with another exit code.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    click.echo(f"replayed {sent:,} records to {job.to}")
    if now.state is State.CANCELLED:
        click.echo("it was cancelled")
    elif done < job.offsets:
        click.echo(f"{done / job.offsets:.0%} done; to go on: headrace replay resume {job.id}")
    sys.exit(0)


def _show_dry_run(config: Config, job: Job) -> None:
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


def _move(config_path: Path | None, kafka: str | None, job_id: str, state: State) -> None:
    _config, jobs = _jobs(config_path, kafka)
    jobs.put(jobs.get(job_id).moved(state))
    click.echo(f"replay {job_id}: {state}")


def _done(config: Config, job: Job) -> int:
    from consumers.replay.standing import passed

    return sum(passed(config.kafka, config.stream(job.stream), job).values())


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")
