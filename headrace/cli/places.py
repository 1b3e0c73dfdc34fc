"""What --to means where it may be a vendor or a database; and where it is not given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.cli.options import destination_url
from headrace.config import Config, ConfigError
from headrace.words import without_password

__all__ = ["Place", "place", "places"]


@dataclass(frozen=True, slots=True)
class Place:
    """`name` is what a job's record says, without the password; `url` is None for a vendor."""

    name: str
    url: str | None = None


def place(config: Config, to: str) -> Place:
    """What --to means. Raises ConfigError, and Systemic for what is no URL."""
    from consumers.destinations import destination
    from consumers.forward.live import allowed
    from consumers.vendors import VENDORS

    if to in config.vendors:
        if not allowed(config.trace, to):
            raise ConfigError(f"[trace] lets no event leave for {to}, so there is nothing to send")
        return Place(to)
    if to in VENDORS or (to not in ("postgres", "chdb") and ":" not in to):
        known = ", ".join(config.vendors) or "none"
        raise ConfigError(
            f"--to {to}: there is no [vendors.{to}]; there are: {known}. Or give a database: "
            "postgres, chdb, postgres://user:password@host/database, "
            "clickhouse://user:password@host:8123/database, chdb:DIRECTORY"
        )
    url = destination_url(config, to)
    found = destination(url)
    # Before anything of the URL is shown or kept: it raises where libpq would read it otherwise.
    where = found.where
    if to in ("postgres", "chdb"):
        return Place(to, url)
    return Place(f"chdb:{where}" if found.kind == "chdb" else without_password(url), url)


def places(config: Config, to: Sequence[str]) -> dict[str, str | None]:
    """URLs of these destinations by their names, None for a vendor; without any, of all known.

    Known are postgres and chdb of the environment or the local stack, and the vendors that [trace]
    lets events leave for. Raises ConfigError, Systemic.
    """
    from consumers.forward.live import allowed

    if not to:
        known = {"postgres": config.postgres, "chdb": config.chdb}
        named = [name for name, url in known.items() if url is not None]
        to = [*named, *(name for name in config.vendors if allowed(config.trace, name))]
    return {where.name: where.url for where in (place(config, name) for name in to)}
