"""What only a vendor or only a database takes of a replay."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from headrace.cli.options import destination_url
from headrace.cli.places import Place
from headrace.cli.typed import as_given
from headrace.config import Config, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from consumers.replay.job import Job
    from consumers.replay.jobs import Jobs
    from consumers.replay.standing import AtWork
    from consumers.replay.target import Target

__all__ = ["claim", "target", "within"]


def within(config: Config, where: Place, job: Job) -> Job:
    """The job without what somebody else will bring there anyway. Raises Unavailable, Systemic."""
    stream = config.stream(job.stream)
    if where.url is not None:
        from consumers.replay.target import landed

        spans = landed(config.kafka, where.url, stream, job.topic_id, job.spans)
        return replace(job, spans=spans)
    if job.only_missing:
        from consumers.forward.live import forwarder_group
        from consumers.replay.legs import legs
        from consumers.replay.missing import check_receipts, left_to_outages, seen_by

        # Asked for in this order: what the forwarders leap over meanwhile is behind these ranges.
        spans = seen_by(config.kafka, forwarder_group(job.to), stream.topic, job.spans)
        job = replace(job, spans=spans)
        if job.against is None:
            check_receipts(config.kafka, stream, config.stream("receipts"), legs(job).kafka)
        for other in left_to_outages(config.kafka, stream.topic, job):
            click.echo(
                f"headrace: a part of this range is left to replay {other}, which an outage of "
                f"{job.to} has made and which is not over: what Kafka has of it is no part of "
                "this one",
                err=True,
            )
    return job


def claim(config: Config, jobs: Jobs, where: Place, job: Job) -> None:
    """Note a new job, unless another one may still write into the same table.

    Two would put back the same rows into ClickHouse; PostgreSQL has locks for that. Raises
    ConfigError, Unavailable.
    """
    from consumers.destinations import destination
    from consumers.replay.job import State

    if where.url is None or destination(where.url).kind == "postgres":
        return
    jobs.put(job)
    try:
        _check_alone(config, jobs, where.url, job)
    except BaseException:
        jobs.put(job.moved(State.CANCELLED))
        raise


def _check_alone(config: Config, jobs: Jobs, url: str, job: Job) -> None:
    """Raises ConfigError where another job may still write into the same table, Unavailable."""
    from consumers.destinations import destination
    from consumers.replay.job import State
    from consumers.replay.standing import at_work

    others = [
        other
        for other in jobs.all().values()
        if other.id != job.id
        and other.stream == job.stream
        and other.to not in config.vendors
        and _same(config, other.to, url)
    ]
    for other in others:
        if not other.state.over:
            go_on = as_given(f"headrace replay resume {other.id}")
            raise ConfigError(
                f"replay {other.id} puts rows back into the same table and is not over: go on with "
                f"it ({go_on}), or cancel it"
            )
    if destination(url).one_process:
        return  # no insert outlives that
    # What is done has no insert under way: all of its offsets are committed.
    cancelled = [other for other in others if other.state is State.CANCELLED]
    busy = at_work(config.kafka, config.stream(job.stream), cancelled, time.time())
    if busy is not None:
        raise ConfigError(_wait_for(busy))


def _wait_for(busy: AtWork) -> str:
    of = f"replay {busy.job.id} into the same table was cancelled"
    if busy.until_s is None:
        return (
            f"{of}, and a process of it is still there: start this again when that has ended, "
            "which Kafka notices within a minute if it was killed"
        )
    until = datetime.fromtimestamp(math.ceil(busy.until_s), UTC)
    return (
        f"{of} in the middle of an insert, which may still come and would double rows: start this "
        f"again after {until:%Y-%m-%dT%H:%M:%SZ}"
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


def target(
    config: Config,
    where: Place,
    job: Job,
    *,
    of_rows: bool = False,
    on_back: Callable[[int, int], object] | None = None,
) -> Target:
    """What the run loop lands in; for `of_rows` and `on_back` see consumers/replay/target.py."""
    if where.url is None:
        from consumers.replay.target import vendor_target

        settings = config.vendors[job.to]
        return vendor_target(config.kafka, config.streams, config.trace, settings, job)
    from consumers.replay.target import database_target

    stream = config.stream(job.stream)
    return database_target(where.url, stream, job, of_rows=of_rows, on_back=on_back)
