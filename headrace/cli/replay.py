"""`headrace replay`: a range of time once more; and the replays there are."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.forward import prepare
from headrace.cli.options import config_options, require_topics
from headrace.cli.replay_run import done, found, run, show_dry_run
from headrace.cli.replay_to import place
from headrace.cli.when import DURATION, TIME
from headrace.config import Config, load

if TYPE_CHECKING:
    from consumers.replay.jobs import Jobs, State

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
@click.option(
    "--to", metavar="VENDOR|URL",
    help="A vendor of [vendors.NAME]; or postgres, postgres://user:password@host/database.",
)  # fmt: skip
@click.option(
    "--stream", "stream_name", metavar="NAME",
    help="What is put back into a database; a vendor gets raw_events.",
)  # fmt: skip
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
    stream_name: str | None,
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
    """Send a range of time once more: to a vendor, or what is missing of it to PostgreSQL.

    It goes through the same loop as what is live. A vendor gets the events with a receipt for each;
    a table gets the rows that are no longer in it, and keeps one copy of those that are.

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
      headrace replay --to postgres --stream device_state --from 2025-06-16 --until 2025-06-17
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
    prepare()
    from consumers.replay.jobs import Job, Jobs, State
    from ingest.topics import topic_ids

    config = load(config_path, kafka=kafka)
    where = place(config, to)
    if where.url is not None:
        _check_database(dry_run, only_missing, allow_redate, allow_duplicates, event, stream_name)
    elif stream_name not in (None, "raw_events"):
        raise click.UsageError("vendors get raw_events and no other stream")
    stream = config.stream(stream_name or "raw_events")
    needed = [stream] if where.url is not None else [stream, config.stream("receipts")]
    require_topics(config, needed)
    asked = Job(
        id=secrets.token_hex(4), to=where.name, stream=stream.name,
        topic_id=topic_ids(config.kafka, [stream.topic])[stream.topic],
        begin_us=begin_us, end_us=end_us, lateness_s=lateness_s, spans={},
        created_us=time.time_ns() // 1000, event=event, only_missing=only_missing, rate=rate,
        allow_redate=allow_redate, allow_duplicates=allow_duplicates,
    )  # fmt: skip
    if dry_run:
        show_dry_run(config, found(config, where, asked))
        return
    jobs = Jobs(config.kafka)
    unfinished = [j for j in jobs.all().values() if not j.state.over and j.asks_the_same(asked)]
    if unfinished:
        job = replace(unfinished[-1], rate=rate, state=State.OPEN)
        click.echo(f"replay {job.id} goes on")
    else:
        job = found(config, where, asked)
        click.echo(f"replay {job.id}: {job.offsets:,} records at most")
    run(config, jobs, where, job, skip_lost=skip_lost)


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
    prepare()
    config, jobs = _jobs(config_path, kafka)
    from consumers.replay.jobs import State

    job = jobs.get(job_id).moved(State.OPEN)
    if rate is not None:
        job = replace(job, rate=rate)
    run(config, jobs, place(config, job.to), job, skip_lost=skip_lost)


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
            share = f"{done(config, job) / job.offsets:.0%}" if job.offsets else "100%"
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
    known |= {"offsets": job.offsets, "done": done(config, job), "group": job.group}
    click.echo(json.dumps(known, indent=2))


# -- what they share -------------------------------------------------------------------------------


def _jobs(config_path: Path | None, kafka: str | None) -> tuple[Config, Jobs]:
    from consumers.replay.jobs import Jobs

    config = load(config_path, kafka=kafka)
    return config, Jobs(config.kafka)


def _check_database(
    dry_run: bool,
    only_missing: bool,
    allow_redate: bool,
    allow_duplicates: bool,
    event: str | None,
    stream_name: str | None,
) -> None:
    """Raises UsageError for what only vendors know."""
    if only_missing:
        raise click.UsageError("a table always gets only what is missing; leave out --only-missing")
    if dry_run or allow_redate or allow_duplicates:
        raise click.UsageError("--dry-run, --allow-redate and --allow-duplicates are for vendors")
    if stream_name is None:
        raise click.UsageError("say what to put back: --stream NAME")
    if event is not None and stream_name != "raw_events":
        raise click.UsageError("--event is for raw_events: other streams have no events' names")


def _move(config_path: Path | None, kafka: str | None, job_id: str, state: State) -> None:
    _config, jobs = _jobs(config_path, kafka)
    jobs.put(jobs.get(job_id).moved(state))
    click.echo(f"replay {job_id}: {state}")


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")
