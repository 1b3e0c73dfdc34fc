"""Where a replay goes: a vendor, or a PostgreSQL database; and what only one of them takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from headrace.cli.options import destination_url
from headrace.config import Config, ConfigError

if TYPE_CHECKING:
    from consumers.replay.jobs import Job
    from consumers.replay.run import Target

__all__ = ["Place", "place", "target", "within", "without_password"]


@dataclass(frozen=True, slots=True)
class Place:
    """`name` is what a job's record says, without a password; `url` is None for a vendor."""

    name: str
    url: str | None = None


def place(config: Config, to: str) -> Place:
    """What --to means. Raises ConfigError."""
    from consumers.destinations import destination
    from consumers.forward.live import allowed
    from consumers.vendors import VENDORS

    if to in config.vendors:
        if not allowed(config.trace, to):
            raise ConfigError(
                f"[trace] lets no event leave for {to}, so there is nothing to replay"
            )
        return Place(to)
    if to in VENDORS or (to not in ("postgres", "chdb") and ":" not in to):
        known = ", ".join(config.vendors) or "none"
        raise ConfigError(
            f"--to {to}: there is no [vendors.{to}]; there are: {known}. Or give a database: "
            "postgres, or postgres://user:password@host/database"
        )
    url = destination_url(config, to)
    kind = destination(url).kind
    if kind != "postgres":
        raise ConfigError(
            f"--to {without_password(to)}: a replay to {kind} would double rows, so there is none; "
            "it goes to a vendor, or to PostgreSQL"
        )
    return Place(to if to == "postgres" else without_password(url), url)


def without_password(url: str) -> str:
    """The URL as it may be kept and shown; libpq asks PGPASSWORD and ~/.pgpass for the rest."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("password", "sslpassword")]
    netloc = user.partition(":")[0] + at + host
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()


def within(config: Config, where: Place, job: Job) -> Job:
    """The job without what somebody else will bring there anyway. Raises Unavailable, Systemic."""
    stream = config.stream(job.stream)
    if where.url is not None:
        from consumers.replay.postgres import landed

        return replace(job, spans=landed(where.url, stream, job.topic_id, job.spans))
    if job.only_missing:
        from consumers.forward.live import group_of
        from consumers.replay.missing import seen_by

        spans = seen_by(config.kafka, group_of(job.to), stream.topic, job.spans)
        return replace(job, spans=spans)
    return job


def target(config: Config, where: Place, job: Job) -> Target:
    """What the run loop lands in."""
    if where.url is None:
        from consumers.replay.run import vendor_target

        settings = config.vendors[job.to]
        return vendor_target(config.kafka, config.streams, config.trace, settings, job)
    from consumers.replay.run import postgres_target

    return postgres_target(where.url, config.stream(job.stream), job)
