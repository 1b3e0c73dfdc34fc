"""What only a vendor or only a database takes of a replay."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from headrace.cli.options import destination_url
from headrace.cli.places import Place
from headrace.cli.typed import as_given
from headrace.config import Config, ConfigError

if TYPE_CHECKING:
    from consumers.replay.jobs import Job, Jobs
    from consumers.replay.run import Target

__all__ = ["claim", "target", "within"]


def within(config: Config, where: Place, job: Job) -> Job:
    """The job without what somebody else will bring there anyway. Raises Unavailable, Systemic."""
    stream = config.stream(job.stream)
    if where.url is not None:
        from consumers.replay.run import landed

        spans = landed(config.kafka, where.url, stream, job.topic_id, job.spans)
        return replace(job, spans=spans)
    if job.only_missing:
        from consumers.forward.live import group_of
        from consumers.replay.missing import left_to_outages, seen_by

        # Asked for in this order: what the forwarders leap over meanwhile is behind these ranges.
        spans = seen_by(config.kafka, group_of(job.to), stream.topic, job.spans)
        job = replace(job, spans=spans)
        for other in left_to_outages(config.kafka, stream.topic, job):
            click.echo(
                f"headrace: a part of this range is left to replay {other}, which an outage of "
                f"{job.to} has made and which is not over: what Kafka has of it is no part of "
                "this one",
                err=True,
            )
    return job


def claim(config: Config, jobs: Jobs, where: Place, job: Job) -> None:
    """Note a new job, unless another one into the same table is not over. Raises ConfigError.

    Two would put back the same rows into ClickHouse; PostgreSQL has locks for that.
    """
    from consumers.destinations import destination
    from consumers.replay.jobs import State

    if where.url is None or destination(where.url).kind == "postgres":
        return
    jobs.put(job)
    for other in jobs.all().values():
        if (
            other.id != job.id
            and not other.state.over
            and other.stream == job.stream
            and other.to not in config.vendors
            and _same(config, other.to, where.url)
        ):
            jobs.put(job.moved(State.CANCELLED))
            go_on = as_given(f"headrace replay resume {other.id}")
            raise ConfigError(
                f"replay {other.id} puts rows back into the same table and is not over: go on with "
                f"it ({go_on}), or cancel it"
            )


def _same(config: Config, to: str, url: str) -> bool:
    from consumers.destinations import destination
    from consumers.errors import Systemic

    try:
        found = destination(destination_url(config, to))
    except (ConfigError, Systemic):
        return False  # a vendor that is not configured any more
    here = destination(url)
    return (found.kind, found.where) == (here.kind, here.where)


def target(config: Config, where: Place, job: Job, *, of_rows: bool = False) -> Target:
    """What the run loop lands in; `of_rows` see consumers/replay/run.py."""
    if where.url is None:
        from consumers.replay.run import vendor_target

        settings = config.vendors[job.to]
        return vendor_target(config.kafka, config.streams, config.trace, settings, job)
    from consumers.replay.run import database_target

    return database_target(where.url, config.stream(job.stream), job, of_rows=of_rows)
