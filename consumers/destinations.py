"""The registry of destinations: a URL's scheme names one, and one entry here makes it known.

insert, migrate, audit and lag know no more of a destination than this. What puts back rows
into a table, or reads raw events from one, is of one kind each (consumers/replay/).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import urlsplit

from consumers.batch import Partition
from consumers.client import Settings
from consumers.drain import Ask, without_waiting
from consumers.errors import Systemic, Unavailable
from consumers.ledger.account import Account, Emptied, positions_of
from consumers.ledger.finding import Finding, Question
from consumers.limits import Limits
from consumers.sinks import Log, Sink
from ingest.streams import Stream
from ingest.topics import TopicError, TopicIds

__all__ = ["Destination", "asked_itself", "destination", "inserter_group", "place_of"]


class Destination(Protocol):
    """A place to land streams in."""

    @property
    def kind(self) -> str:
        """For metrics and messages: never the address."""
        ...

    @property
    def where(self) -> str:
        """Host, port and database, or the directory; without user and password."""
        ...

    @property
    def limits(self) -> Limits: ...

    @property
    def own_positions(self) -> bool:
        """Whether it knows itself up to where all has landed; the group's offsets then follow."""
        ...

    @property
    def one_process(self) -> bool:
        """Whether it is open in one process at a time: who is second can't even ask it."""
        ...

    def open(self, streams: Sequence[Stream], kafka: Log) -> Sink:
        """A sink of its own. Raises Unavailable, or Systemic if the tables are not as needed."""
        ...

    def migrate(self, streams: Sequence[Stream]) -> list[str]:
        """Make the tables that are missing; say what was done. May be run again."""
        ...

    def check(self, streams: Sequence[Stream]) -> None:
        """It answers, and its tables are as needed. Raises Unavailable, Systemic if not."""
        ...

    def positions(
        self, kafka: Settings, stream: Stream, topic_id: str, group: str | None = None
    ) -> dict[Partition, int]:
        """Up to where this topic has landed, as far as it was begun with; `group` as below.

        Asked where the truth is: PostgreSQL itself, of ClickHouse the group's offsets in Kafka.
        Raises Unavailable, Systemic.
        """
        ...

    def account(
        self, kafka: Settings, stream: Stream, topic_id: str, group: str | None = None
    ) -> Account | None:
        """What its ledger says of a stream; None where it has nothing of any topic of this name.

        `group` is that of its inserters, if it is not the default. Raises Unavailable, Systemic,
        PlaceUnknown where something has landed that this group does not know of, and CantBeJudged
        where something that it knows to have landed is gone.
        """
        ...

    def compare(self, asked: Question) -> list[Finding]:
        """Its rows against Kafka's records, one by one. Raises Unavailable, Systemic."""
        ...


@dataclass(frozen=True, slots=True)
class _Postgres:
    url: str
    kind: str = "postgres"
    # Two connections write different partitions at the same time: with an index the work of one
    # backend is what limits (bench/insert.py).
    limits: Limits = Limits(lanes=2)  # noqa: RUF009 - frozen, so it may be shared
    own_positions: bool = True
    one_process: bool = False

    @property
    def where(self) -> str:
        from consumers.sinks.postgres_client import where

        return where(self.url)

    def open(self, streams: Sequence[Stream], kafka: Log) -> Sink:
        from consumers.sinks.postgres import PostgresSink

        return PostgresSink(self.url, streams, kafka)

    def migrate(self, streams: Sequence[Stream]) -> list[str]:
        from consumers.sinks.postgres_migrate import migrate

        return migrate(self.url, streams)

    def check(self, streams: Sequence[Stream]) -> None:
        from consumers.sinks.postgres_checks import check

        check(self.url, streams)

    def positions(
        self, kafka: Settings, stream: Stream, topic_id: str, group: str | None = None
    ) -> dict[Partition, int]:
        from consumers.sinks.postgres_positions import positions

        return positions(self.url, stream, topic_id)

    def account(
        self, kafka: Settings, stream: Stream, topic_id: str, group: str | None = None
    ) -> Account | None:
        from consumers.sinks.postgres_ledger import account

        found = account(self.url, stream, topic_id)
        # A `group` that is given is ClickHouse's.
        own = inserter_group(self)
        if found is None and any(positions_of(kafka, own, stream, topic_id).values()):
            raise Emptied(stream.topic, own)
        return found

    def compare(self, asked: Question) -> list[Finding]:
        from consumers.sinks.postgres_compare import compare

        return compare(self.url, asked)


# ClickHouse's users live by less than one insert a second and table; so a batch is what a second
# brings, and up to ten times as large as elsewhere. An intent is metadata of an offset: Kafka takes
# 4096 bytes of it (offset.metadata.max.bytes), and a partition needs 60; what the ledger is owed
# may take 1200 besides (consumers.ledger.owed).
_CLICKHOUSE = Limits(
    max_rows=500_000,
    max_bytes=128 * 1024 * 1024,
    max_age_s=1.0,
    min_interval_s=1.0,
    max_partitions=40,
    lanes=1,
)
# chDB has no other users, since a directory takes one process: a full batch does not wait for its
# second. (Others are a second old when they are closed.) And it is half as large, so that the first
# insert begins sooner, and less is left to insert when all is read.
_CHDB = replace(_CLICKHOUSE, max_rows=250_000, min_interval_s=0.0)


@dataclass(frozen=True, slots=True)
class _ClickHouse:
    url: str
    kind: str
    limits: Limits
    one_process: bool
    own_positions: bool = False

    @property
    def where(self) -> str:
        from consumers.sinks.clickhouse_url import where

        return where(self.url)

    def open(self, streams: Sequence[Stream], kafka: Log) -> Sink:
        from consumers.sinks.clickhouse import ClickHouseSink

        return ClickHouseSink(self.url, streams, kafka)

    def migrate(self, streams: Sequence[Stream]) -> list[str]:
        from consumers.sinks.clickhouse_migrate import migrate

        return migrate(self.url, streams)

    def check(self, streams: Sequence[Stream]) -> None:
        from consumers.sinks.clickhouse_checks import check

        check(self.url, streams)

    def positions(
        self, kafka: Settings, stream: Stream, topic_id: str, group: str | None = None
    ) -> dict[Partition, int]:
        return positions_of(kafka, group or inserter_group(self), stream, topic_id)

    def account(
        self, kafka: Settings, stream: Stream, topic_id: str, group: str | None = None
    ) -> Account | None:
        from consumers.sinks.clickhouse_ledger import account

        return account(self.url, kafka, group or inserter_group(self), stream, topic_id)

    def compare(self, asked: Question) -> list[Finding]:
        from consumers.sinks.clickhouse_compare import compare

        return compare(self.url, asked)


_GROUP = "headrace-insert-"


def inserter_group(destination: Destination) -> str:
    """The consumer group of the inserters of one destination.

    One for each place, not for each kind: who shares a group shares the partitions, and the
    positions of ClickHouse are those of the group.
    """
    return f"{_GROUP}{destination.kind}:{destination.where}"


def place_of(group: str) -> str | None:
    """KIND:WHERE of the destination that a group of this name is of; None for another group."""
    return group.removeprefix(_GROUP) if group.startswith(_GROUP) else None


def asked_itself(
    destination: Destination, kafka: Settings, streams: Sequence[Stream]
) -> Ask | None:
    """For `--drain`: how far it is by its own positions; None where the group's offsets are those."""  # noqa: E501
    if not destination.own_positions:
        return None
    ids_of = TopicIds(kafka)

    def ask(partitions: Collection[Partition]) -> dict[Partition, int]:
        try:
            ids = ids_of({partition.topic for partition in partitions})
        except TopicError as error:
            raise Unavailable(str(error)) from error
        found: dict[Partition, int] = {}
        for stream in streams:
            if stream.topic in ids:
                found |= destination.positions(kafka, stream, ids[stream.topic])
        return found

    return without_waiting(ask)


_SCHEMES: Mapping[str, str] = {
    "postgres": "postgres",
    "postgresql": "postgres",
    "clickhouse": "clickhouse",
    "clickhouses": "clickhouse",
    "chdb": "chdb",
}


_UNUSABLE = (
    "the URL of the database can't be used: write postgres://user:password@host:5432/name or "
    "clickhouse://user:password@host:8123/name, with what is special in user, password and options "
    "as %2F (/), %40 (@), %3A (:), %23 (#), %3F (?), %5B ([), %5D (])"
)


def destination(url: str) -> Destination:
    """The destination that a URL names. Raises Systemic for what can't be one."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        # What it says may be the password.
        raise Systemic(_UNUSABLE) from None
    kind = _SCHEMES.get(scheme)
    if kind in ("postgres", "clickhouse"):
        _refuse_ambiguous(url)
    match kind:
        case "postgres":
            return _Postgres(url)
        case "clickhouse":
            return _ClickHouse(url, "clickhouse", _CLICKHOUSE, one_process=False)
        case "chdb":
            return _ClickHouse(url, "chdb", _CHDB, one_process=True)
        case _:
            # A word is no password; libpq's `password=…` has no colon either.
            named = url if re.fullmatch(r"[\w.-]{1,40}", url) else scheme or "that"
            raise Systemic(
                f"{named} is not a destination; give postgres://user:password@host/db, "
                "clickhouse://user:password@host:8123/db (clickhouses:// for TLS) or "
                "chdb:DIRECTORY; or postgres or chdb, for those of the local stack or of "
                "HEADRACE_POSTGRES and HEADRACE_CHDB"
            )


def _refuse_ambiguous(url: str) -> None:
    """Raise Systemic for what libpq and urllib take for different users, passwords and hosts: a
    part of the password would be shown as the place."""
    _, slashes, rest = url.partition("://")
    if "@" not in rest.partition("/")[0]:
        rest = rest.partition("?")[0]  # no user and no password, so an option may hold an @
    user, _, place = rest.rpartition("@")
    if not slashes or "#" in place or any(special in user for special in "#?/[]"):
        raise Systemic(_UNUSABLE)
