"""Makes what a PostgreSQL database needs: tables, indexes, positions, views; hypertables where it can.

A view of ours holds no data, so an older one gives way to today's. One that is as it should be is not
touched: replacing it would wait for every query that reads it.
"""  # noqa: E501

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import errors, sql

from consumers.errors import Rejected, Systemic
from consumers.sinks.postgres_checks import check_tables, has_unique
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_ledger import LEDGER_DDL
from consumers.sinks.postgres_types import OFFSETS_DDL, Index, ddl, indexes
from consumers.sinks.raw_normalized import MARK, View
from consumers.sinks.raw_normalized import postgres as view_of
from ingest.streams import Stream

__all__ = ["migrate"]

log = logging.getLogger(__name__)

# So that two migrations at once wait for each other instead of failing half-way.
_LOCK = 7_236_459_102


def migrate(url: str, streams: Sequence[Stream]) -> list[str]:
    """Make what is missing, in one transaction; answer which tables, indexes and views are new.

    A table that is there is not changed, but must be what its stream needs; of another retention
    than its stream's is warned. Raises Unavailable, or Systemic naming the column that differs.
    """
    made = []
    grant = "grant what it takes to make tables"
    try:
        with connect(url) as connection:
            grant = _grant(connection)
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            timescale = _has_timescale(connection)
            _require_first(connection, streams)
            connection.execute("SET LOCAL client_min_messages = warning")
            connection.execute(OFFSETS_DDL, prepare=False)
            connection.execute(LEDGER_DDL, prepare=False)
            for stream in streams:
                name = sql.Identifier(stream.table).as_string()
                found = connection.execute("SELECT to_regclass(%s)", (name,)).fetchone()
                new = found is None or found[0] is None
                # A plain table stays one: TimescaleDB makes no hypertable of one with rows.
                hyper = timescale and (new or _is_hypertable(connection, name))
                made += _make_table(connection, stream, new=new, hyper=hyper)
                if hyper and not new:
                    _say_retention(connection, stream)
                view = view_of(stream)
                if view is not None and _make_view(connection, view):
                    made.append(f"view {view.name}")
            connection.commit()
            check_tables(connection, streams)
    except psycopg.Error as error:
        why = explain(error, url, grant)
        # Of a batch that is rejected the rows would be found; this is for a person.
        raise Systemic(str(why)) if isinstance(why, Rejected) else why from error
    return made


def _require_first(connection: psycopg.Connection, streams: Sequence[Stream]) -> None:
    """Raises Systemic where first tables of ours would be made in front of some, and hide them.

    Inserters would go to the new ones, from the oldest record on. Once we are at home in a schema,
    what another one has is not ours.
    """
    names = ["headrace_offsets", "headrace_ledger", *(stream.table for stream in streams)]
    found = connection.execute(
        """SELECT c.relname::text, n.nspname::text, current_schema()::text
           FROM unnest(%s::text[]) AS name
           JOIN pg_class c ON c.oid = to_regclass(quote_ident(name))
           JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname <> current_schema() AND NOT EXISTS (
               SELECT FROM pg_class o WHERE o.relname = 'headrace_offsets'
               AND o.relnamespace = to_regnamespace(quote_ident(current_schema())))
           LIMIT 1""",
        (names,),
    ).fetchone()
    if found is not None:
        raise Systemic(
            "the table {} is in the schema {}, but the first of the search_path is {}, where new "
            "tables would hide it: put {} first; or, if they are to be new, leave it out".format(
                *found, found[1]
            )
        )


def _make_table(
    connection: psycopg.Connection, stream: Stream, *, new: bool, hyper: bool
) -> list[str]:
    """Its table and its indexes; answers what was made, a table with all of its own."""
    before = _named(connection, stream)
    taken = set()
    for index in indexes(stream):
        there = before.get(index.name)
        # One of another name may serve for `dedupe`; this one is its owner's then.
        serves = there is not None and (
            there.serves(index) or (index.unique and has_unique(connection, stream))
        )
        if there is not None and not serves and there.unique and index.unique:
            raise Systemic(
                f"the index {index.name} of the table {stream.table} is that of a former dedupe: "
                f"({', '.join(there.columns)}); remove it (that of a constraint by ALTER TABLE … "
                "DROP CONSTRAINT) and run `headrace migrate` again: "
                f"DROP INDEX {sql.Identifier(index.name).as_string()};"
            )
        # Under the other name it may have been made before, when this one was not free.
        if index.other in before or (index.name in before and not serves):
            taken.add(index.name)
    try:
        connection.execute(ddl(stream, timescale=hyper, taken=taken), prepare=False)
    except errors.UniqueViolation as error:
        if not stream.dedupe:
            raise
        find = sql.SQL(
            "SELECT {by}, count(*) FROM {table} GROUP BY {by} HAVING count(*) > 1;"
        ).format(
            by=sql.SQL(", ").join(sql.Identifier(stream.column(f)) for f in stream.dedupe),
            table=sql.Identifier(stream.table),
        )
        raise Systemic(
            f"the stream {stream.name} has dedupe = {list(stream.dedupe)}, but the table "
            f"{stream.table} holds copies by it: delete them, all but one of each, and run "
            f"`headrace migrate` again. They are found by: {find.as_string()}"
        ) from error
    if new:
        return [f"{'hypertable' if hyper else 'table'} {stream.table}"]
    after = _named(connection, stream)
    return [f"index {name}" for name in after if name not in before]


class _There(NamedTuple):
    """An index of a table."""

    unique: bool
    columns: tuple[str, ...]

    def serves(self, wanted: Index) -> bool:
        """For `dedupe` the order of its columns is nothing."""
        if wanted.unique:
            return self.unique and set(self.columns) == set(wanted.columns)
        return self.columns == wanted.columns


def _named(connection: psycopg.Connection, stream: Stream) -> dict[str, _There | None]:
    """What is called as its indexes may be; None for what is no index of its table."""
    names = [name for index in indexes(stream) for name in (index.name, index.other)]
    rows = connection.execute(
        """SELECT c.relname::text, i.indrelid = to_regclass(%(table)s),
               i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL,
               ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(number, at)
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
                   WHERE k.at <= i.indnkeyatts ORDER BY k.at)
           FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
           WHERE c.relname = ANY(%(names)s) AND c.relnamespace = coalesce(
               (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(%(table)s)),
               to_regnamespace(quote_ident(current_schema())))""",
        {"table": sql.Identifier(stream.table).as_string(), "names": names},
    ).fetchall()
    return {
        name: _There(unique, tuple(on)) if is_ours else None for name, is_ours, unique, on in rows
    }


def _grant(connection: psycopg.Connection) -> str:
    """What a role needs that may not make tables."""
    row = connection.execute("SELECT current_schema(), current_user").fetchone()
    schema, role = row if row is not None else (None, None)
    grant = sql.SQL("GRANT CREATE ON SCHEMA {} TO {};").format(
        sql.Identifier(schema or "public"), sql.Identifier(role or "")
    )
    return f"to make tables it needs: {grant.as_string()} A table that is there must be its own"


def _say_retention(connection: psycopg.Connection, stream: Stream) -> None:
    """Warn of a hypertable whose policy is not the stream's retention: TimescaleDB keeps it."""
    table = sql.Identifier(stream.table).as_string()
    rows = connection.execute(
        """SELECT config ->> 'drop_after' FROM timescaledb_information.jobs, pg_class c,
               pg_namespace n
           WHERE c.oid = to_regclass(%s) AND n.oid = c.relnamespace
           AND hypertable_schema = n.nspname AND hypertable_name = c.relname
           AND proc_name = 'policy_retention'
           AND (config ->> 'drop_after')::interval IS DISTINCT FROM %s::interval""",
        (table, stream.retention),
    ).fetchall()
    for (kept,) in rows:
        remove = f"SELECT remove_retention_policy({sql.Literal(table).as_string()});"
        log.warning(
            "the stream %s has %s, but rows of the hypertable %s go after %s. To change it: %s%s",
            stream.name,
            f"retention = {stream.retention!r}" if stream.retention else "no retention",
            stream.table,
            kept,
            remove,
            " and run `headrace migrate` again" if stream.retention else "",
        )


def _make_view(connection: psycopg.Connection, view: View) -> bool:
    """Make a view, or put it in place of an older one; whether there was anything to do.

    Raises Systemic where others depend on the older one.
    """
    name = sql.Identifier(view.name)
    found = connection.execute(
        "SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE oid = to_regclass(%s)",
        (name.as_string(),),
    ).fetchone()
    if found is not None and (found[0] == view.comment or not str(found[0]).startswith(MARK)):
        return False
    try:
        try:
            with connection.transaction():
                connection.execute(view.sql, prepare=False)
        except errors.InvalidTableDefinition:
            # REPLACE can only add columns, behind those that are there.
            connection.execute(sql.SQL("DROP VIEW {}").format(name))
            connection.execute(view.sql, prepare=False)
    except errors.DependentObjectsStillExist as error:
        raise Systemic(
            f"the view {view.name} is an older one and can't be made anew: drop what depends on it "
            f"and run `headrace migrate` again ({error.diag.message_detail})"
        ) from error
    return True


def _has_timescale(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    return row is not None


def _is_hypertable(connection: psycopg.Connection, name: str) -> bool:
    row = connection.execute(
        """SELECT 1 FROM timescaledb_information.hypertables, pg_class c, pg_namespace n
           WHERE c.oid = to_regclass(%s) AND n.oid = c.relnamespace
           AND hypertable_schema = n.nspname AND hypertable_name = c.relname""",
        (name,),
    ).fetchone()
    return row is not None
