"""The table of raw events behind Kafka: where it is, for replays that reach back beyond retention."""  # noqa: E501

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from headrace.cli.options import destination_url
from headrace.cli.places import Place
from headrace.cli.when import rfc3339
from headrace.config import Config, ConfigError

if TYPE_CHECKING:
    from consumers.replay.job import Job
    from consumers.replay.run import OpenTable
    from ingest.streams import Stream

__all__ = ["behind_kafka", "named", "open_raw"]


def behind_kafka(config: Config, where: Place, job: Job) -> Job:
    """The job whose beginning comes from the table, where Kafka's retention has removed it.

    Where there is no such table a line says what that means. Raises Unavailable, Systemic.
    """
    from consumers.destinations import destination
    from consumers.errors import Systemic
    from consumers.replay.legs import fall_through

    stream = config.stream(job.stream)
    url = _url(config)
    place = destination(url) if url is not None else None
    if job.stream != "raw_events" or url is None or place is None:
        why = "name the database with the table of raw events: raw = URL under [replay]"
    elif where.url is not None and place.where == destination(where.url).where:
        why = "what is put back into a database can't come from itself"
    else:
        try:
            found = fall_through(config.kafka, url, stream, job, time.time_ns() // 1000)
        except Systemic as error:
            if config.raw is not None:
                raise
            return _gone(stream, str(error), job)
        if found.table_until_us not in (None, job.table_until_us):
            click.echo(
                f"headrace: what was taken before {rfc3339(found.table_until_us)} comes from the "
                f"table {stream.table} at {place.where}",
                err=True,
            )
        return found
    return _gone(stream, why if job.stream == "raw_events" else "", job)


def _gone(stream: Stream, why: str, job: Job) -> Job:
    click.echo(
        f"headrace: Kafka's retention has removed the beginning of {stream.topic}: older records "
        f"of this range may be gone from there{'; ' if why else ''}{why}",
        err=True,
    )
    return job


def open_raw(config: Config, job: Job) -> OpenTable:
    """The table as a source for this job. Raises ConfigError where none is named any more."""
    from consumers.replay.run import OpenTable
    from consumers.replay.table import open_table

    url = _url(config)
    if url is None:
        raise ConfigError(
            f"replay {job.id} reads what Kafka no longer has from a database, and none is named: "
            "set raw = URL under [replay], or HEADRACE_RAW"
        )
    open_table(
        url, config.streams
    ).close()  # what is wrong with it is said before a group is joined
    return OpenTable(
        lambda: open_table(url, config.streams),
        job.to if job.only_missing and not job.against else None,
    )


def named(config: Config) -> str | None:
    """The database that [replay] or HEADRACE_RAW names. Raises ConfigError."""
    from consumers.destinations import destination
    from consumers.errors import Systemic

    if config.raw is None:
        return None
    url = destination_url(config, config.raw)
    try:
        destination(url)
    except Systemic as error:
        raise ConfigError(f"raw of [replay], or HEADRACE_RAW: {error}") from error
    return url


def _url(config: Config) -> str | None:
    return named(config) or config.postgres or (f"chdb:{config.chdb}" if config.chdb else None)
