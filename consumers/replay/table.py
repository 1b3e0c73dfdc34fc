"""Raw events out of a database's table, for a range of time that Kafka no longer has.

In order of time and event_id. A row has a number in the place of an offset: its millisecond times
_IN_A_MS, and which row of this millisecond it is. So a number grows with time, is the same whenever
the table is read, and says where to go on.

What is read has landed long ago: rows that land between others while a replay rests could shift
those of the same millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from consumers.destinations import destination
from consumers.errors import Systemic
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.streams import Stream

__all__ = ["RawTable", "Reader", "Row", "number_at", "open_table"]

# 2,000 rows a microsecond, until the year 2109.
_IN_A_MS = 1 << 21
# How many rows are asked for at once, and how many of their receipts.
_PAGE = 5000
_IDS = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

# For ClickHouse; what is in double braces are its own parameters.
_PAGE_OF = (
    "SELECT {columns} FROM {table} WHERE {time} >= {begin} AND {time} < {end} "
    "AND ({time}, {id}) >= ({begin}, {{id:String}}) ORDER BY {time}, {id} LIMIT {{n:UInt32}}"
)
_ACCEPTED_OF = (
    "SELECT {event_id} FROM {table} WHERE {vendor} = %(vendor)s AND {status} = 'accepted' "
    "AND {event_id} IN %(ids)s"
)


class Row(NamedTuple):
    """One raw event, at its number."""

    number: int
    event: RawEvent


class RawTable(Protocol):
    """The tables of raw events and of receipts. Raises Unavailable, Systemic. For one thread."""

    # Where they are, and whose the receipts are.
    url: str
    receipts: Stream

    def page(self, time_us: int, event_id: str, end_us: int, n: int) -> list[RawEvent]:
        """The first n before `end_us`, in order, from this time and id on."""
        ...

    def accepted(self, vendor: str, ids: Sequence[str]) -> set[str]:
        """Which of these events have an accepted receipt of this vendor."""
        ...

    def close(self) -> None: ...


def number_at(time_us: int) -> int:
    """The number below which all rows of an earlier millisecond are."""
    return max(time_us, 0) // 1000 * _IN_A_MS


def open_table(url: str, streams: Mapping[str, Stream]) -> RawTable:
    """Raises Unavailable, and Systemic where the table is not as it must be."""
    raw, receipts = streams["raw_events"], streams["receipts"]
    if destination(url).kind == "postgres":
        return _Postgres(url, raw, receipts)
    return _ClickHouse(url, raw, receipts)


class Reader:
    """Rows before `end_us`, from one number on."""

    def __init__(self, table: RawTable, end_us: int) -> None:
        self._table = table
        self._end_us = end_us
        self.seek(0)

    def seek(self, number: int) -> None:
        """Go on at this number."""
        self._least = number
        # The row that was read last: its time and id, how many such there were, and its number.
        self._time_us, self._event_id, self._same = number // _IN_A_MS * 1000, "", 0
        self._number = -1
        self._ready: list[Row] = []

    def next(self, n: int = _PAGE) -> list[Row]:
        """The next rows, n at most; none is the end. Raises Unavailable, Systemic."""
        while not self._ready:
            page = self._table.page(self._time_us, self._event_id, self._end_us, self._same + _PAGE)
            fresh = page[self._same :]
            if not fresh:
                return []
            self._ready = [row for row in map(self._numbered, fresh) if row.number >= self._least]
        found, self._ready = self._ready[:n], self._ready[n:]
        return found

    def _numbered(self, event: RawEvent) -> Row:
        at = (event.received_at.ToMicroseconds(), event.event_id)
        self._same = self._same + 1 if at == (self._time_us, self._event_id) else 1
        self._time_us, self._event_id = at
        self._number = max(self._number + 1, number_at(at[0]))
        if self._number >= number_at(at[0] + 1000):
            raise Systemic(
                f"more than {_IN_A_MS:,} raw events of one millisecond can't be replayed"
            )
        return Row(self._number, event)


class _Postgres:
    def __init__(self, url: str, raw: Stream, receipts: Stream) -> None:
        import psycopg
        from psycopg import sql

        from consumers.sinks.postgres_checks import check_tables
        from consumers.sinks.postgres_client import connect
        from consumers.sinks.postgres_errors import explain

        self.url, self.receipts = url, receipts
        self._explain, self._error = explain, psycopg.Error
        names = {field: sql.Identifier(raw.column(field)) for field in _fields(raw)}
        self._page = sql.SQL(
            "SELECT {columns} FROM {table} WHERE {time} >= %s AND {time} < %s "
            "AND ({time}, {id}) >= (%s, %s) ORDER BY {time}, {id} LIMIT %s"
        ).format(
            columns=sql.SQL(", ").join(names.values()), table=sql.Identifier(raw.table),
            time=names["received_at"], id=names["event_id"],
        )  # fmt: skip
        self._accepted = sql.SQL(
            "SELECT {id} FROM {table} WHERE {vendor} = %s AND {status} = 'accepted' "
            "AND {id} = ANY(%s)"
        ).format(
            table=sql.Identifier(receipts.table),
            id=sql.Identifier(receipts.column("event_id")),
            vendor=sql.Identifier(receipts.column("vendor")),
            status=sql.Identifier(receipts.column("status")),
        )
        try:
            self._connection = connect(url, sees_all=True)
            self._connection.autocommit = True
            check_tables(self._connection, [raw])
        except psycopg.Error as error:
            raise explain(error, url) from error
        self._fields = list(names)

    def page(self, time_us: int, event_id: str, end_us: int, n: int) -> list[RawEvent]:
        begin, end = (_EPOCH + timedelta(microseconds=us) for us in (time_us, end_us))
        rows = self._ask(self._page, (begin, end, begin, event_id, n))
        return [_event(dict(zip(self._fields, row, strict=True))) for row in rows]

    def accepted(self, vendor: str, ids: Sequence[str]) -> set[str]:
        return {row[0] for row in self._ask(self._accepted, (vendor, list(ids)))}

    def _ask(self, query: Any, parameters: tuple[Any, ...]) -> list[Any]:
        try:
            return self._connection.execute(query, parameters).fetchall()
        except self._error as error:
            raise self._explain(error, self.url) from error

    def close(self) -> None:
        self._connection.close()


class _ClickHouse:
    def __init__(self, url: str, raw: Stream, receipts: Stream) -> None:
        from consumers.sinks.clickhouse_checks import check_tables
        from consumers.sinks.clickhouse_client import connect, require_chdb
        from consumers.sinks.clickhouse_errors import talking
        from consumers.sinks.clickhouse_types import quote

        self.url, self.receipts = url, receipts
        self._talking: Callable[[], AbstractContextManager[None]] = lambda: talking(url)
        names = {field: quote(raw.column(field)) for field in _fields(raw)}
        time, event_id = names["received_at"], names["event_id"]
        columns = {**names, "received_at": f"toUnixTimestamp64Micro({time})"}
        self._page = _PAGE_OF.format(
            columns=", ".join(columns.values()), table=quote(raw.table), time=time, id=event_id,
            begin="fromUnixTimestamp64Micro({a:Int64}, 'UTC')",
            end="fromUnixTimestamp64Micro({z:Int64}, 'UTC')",
        )  # fmt: skip
        of = {name: quote(receipts.column(name)) for name in ("event_id", "vendor", "status")}
        self._accepted = _ACCEPTED_OF.format(table=quote(receipts.table), **of)
        self._fields = list(names)
        require_chdb(url)
        self._client = connect(url)
        try:
            with talking(url):
                check_tables(self._client, [raw])
        except BaseException:
            self._client.close()
            raise

    def page(self, time_us: int, event_id: str, end_us: int, n: int) -> list[RawEvent]:
        asked = {"a": time_us, "z": end_us, "id": event_id, "n": n}
        with self._talking():
            rows = self._client.query(self._page, parameters=asked).result_rows
        return [_event(dict(zip(self._fields, row, strict=True))) for row in rows]

    def accepted(self, vendor: str, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for i in range(0, len(ids), _IDS):
            asked = {"vendor": vendor, "ids": tuple(ids[i : i + _IDS])}
            with self._talking():
                rows = self._client.query(self._accepted, parameters=asked).result_rows
            found.update(row[0] for row in rows)
        return found

    def close(self) -> None:
        self._client.close()


def _fields(raw: Stream) -> list[str]:
    return list(raw.descriptor.fields_by_name)


def _event(row: dict[str, Any]) -> RawEvent:
    at = row.pop("received_at")
    event = RawEvent(**{name: value for name, value in row.items() if value is not None})
    event.received_at.FromMicroseconds((at - _EPOCH) // _US if isinstance(at, datetime) else at)
    return event
