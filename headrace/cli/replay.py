"""`headrace replay`: a range of time once more. What is done with those there are: replay_jobs.py."""  # noqa: E501

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from pathlib import Path

import click

from headrace.cli.forward import prepare
from headrace.cli.options import config_options, require_topics
from headrace.cli.places import place
from headrace.cli.replay_dry import show_dry_run
from headrace.cli.replay_jobs import cancel, list_, pause, resume, show
from headrace.cli.replay_options import RATE, skip_lost_option
from headrace.cli.replay_run import found, run
from headrace.cli.replay_to import claim
from headrace.cli.when import DURATION, TIME, check_range
from headrace.config import Config, ConfigError, load
from headrace.words import counted, without_password

__all__ = ["replay"]


@click.group(invoke_without_command=True)
@click.option(
    "--to", metavar="VENDOR|URL",
    help="A vendor of [vendors.NAME]; or a database, as `headrace insert --to` takes it.",
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
@click.option(
    "--against", metavar="FILE", type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="With --only-missing: events that are not in this export of the vendor.",
)  # fmt: skip
@click.option("--rate", type=RATE, metavar="N/s", help="Read no more records a second.")
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
@skip_lost_option
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
    against: str | None,
    rate: float | None,
    lateness_s: float,
    allow_redate: bool,
    allow_duplicates: bool,
    dry_run: bool,
    skip_lost: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Send a range of time once more: to a vendor, or what is missing of it to a database.

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
      headrace replay --to amplitude --from -2d --only-missing --against export.json.gz
      headrace replay --to ga4 --from -3d --dry-run
      headrace replay --to postgres --stream device_state --from 2025-06-16 --until 2025-06-17
      headrace replay --to clickhouse://default@ch/logs --stream http_test --from -2d
      headrace replay ls
    """
    if ctx.invoked_subcommand is not None:
        if to is not None or begin_us is not None:
            raise click.UsageError(f"--to and --from start a replay; {ctx.invoked_subcommand} does"
                                   " not take them")  # fmt: skip
        return
    if to is None or begin_us is None:
        raise click.UsageError("give --to and --from, or one of: ls, show, pause, resume, cancel")
    if against is not None and not only_missing:
        raise click.UsageError("--against says what is missing: give --only-missing with it")
    check_range(begin_us, end_us)
    prepare()
    from consumers.replay.job import Job, State
    from consumers.replay.jobs import Jobs
    from ingest.topics import topic_ids

    config = load(config_path, kafka=kafka)
    where = place(config, to)
    if where.url is not None:
        _check_database(only_missing, allow_redate, allow_duplicates, event, stream_name)
    elif stream_name not in (None, "raw_events"):
        raise click.UsageError("vendors get raw_events and no other stream")
    elif event is not None:
        _check_event(config, to, event)
    stream = config.stream(stream_name or "raw_events")
    needed = [stream] if where.url is not None else [stream, config.stream("receipts")]
    require_topics(config, needed)
    asked = Job(
        id=secrets.token_hex(4), to=where.name, stream=stream.name,
        topic_id=topic_ids(config.kafka, [stream.topic])[stream.topic],
        begin_us=begin_us, end_us=end_us, lateness_s=lateness_s, spans={},
        created_us=time.time_ns() // 1000, event=event, only_missing=only_missing,
        against=against, rate=rate,
        allow_redate=allow_redate, allow_duplicates=allow_duplicates,
    )  # fmt: skip
    if dry_run:
        show_dry_run(config, where, found(config, where, asked))
        return
    jobs = Jobs(config.kafka)
    # An older headrace may have noted more of its URL than is kept now.
    unfinished = [
        j
        for j in jobs.readable().values()
        if not j.state.over and replace(j, to=without_password(j.to)).asks_the_same(asked)
    ]
    if unfinished:
        job = replace(unfinished[-1], to=where.name, rate=rate, state=State.OPEN)
        click.echo(f"replay {job.id} goes on")
    else:
        job = found(config, where, asked)
        claim(config, jobs, where, job)
        more = "" if job.table_until_us is None else " from Kafka, and those of the table"
        click.echo(f"replay {job.id}: {counted(job.offsets, 'record')} at most{more}")
    run(config, jobs, where, job, skip_lost=skip_lost)


def _check_database(
    only_missing: bool,
    allow_redate: bool,
    allow_duplicates: bool,
    event: str | None,
    stream_name: str | None,
) -> None:
    """Raises UsageError for what only vendors know."""
    if only_missing:
        raise click.UsageError("a table always gets only what is missing; leave out --only-missing")
    if allow_redate or allow_duplicates:
        raise click.UsageError("--allow-redate and --allow-duplicates are for vendors")
    if stream_name is None:
        raise click.UsageError("say what to put back: --stream NAME")
    if event is not None and stream_name != "raw_events":
        raise click.UsageError("--event is for raw_events: other streams have no events' names")


def _check_event(config: Config, vendor: str, event: str) -> None:
    """Raises ConfigError for a name that is mistyped, or may not leave: nothing would be sent."""
    listed = [name for name, of in config.trace.events.items() if of.goes_to(vendor)]
    if event not in listed:
        raise ConfigError(
            f"--event {event!r}: [trace] lets no event of this name leave for {vendor}; those that "
            f"may are: {', '.join(map(repr, listed))}"
        )


for _command in (list_, show, pause, resume, cancel):
    replay.add_command(_command)
