"""Makes what a PostgreSQL database needs: tables, indexes, positions, views; hypertables where it can.

A view of ours holds no data, so an older one gives way to today's. One that is as it should be is not
touched: replacing it would wait for every query that reads it.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import errors, sql

from consumers.errors import Systemic
from consumers.sinks.postgres_checks import check_tables
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain
from consumers.sinks.postgres_ledger import LEDGER_DDL
from consumers.sinks.postgres_types import OFFSETS_DDL, ddl
from consumers.sinks.raw_normalized import MARK, View
from consumers.sinks.raw_normalized import postgres as view_of
from ingest.streams import Stream

__all__ = ["migrate"]

# So that two migrations at once wait for each other instead of failing half-way.
_LOCK = 7_236_459_102


def migrate(url: str, streams: Sequence[Stream]) -> list[str]:
    """Make what is missing, in one transaction; answer which tables and views are new.

    A table that is there is not changed, but must be what its stream needs. Raises Unavailable, or
    Systemic naming the column that differs.
    """
    made = []
    try:
        with connect(url) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            timescale = _has_timescale(connection)
            connection.execute("SET LOCAL client_min_messages = warning")
            connection.execute(OFFSETS_DDL, prepare=False)
            connection.execute(LEDGER_DDL, prepare=False)
            for stream in streams:
                name = sql.Identifier(stream.table).as_string()
                found = connection.execute("SELECT to_regclass(%s)", (name,)).fetchone()
                new = found is None or found[0] is None
                # A plain table stays one: TimescaleDB makes no hypertable of one with rows.
                hyper = timescale and (new or _is_hypertable(connection, name))
                connection.execute(ddl(stream, timescale=hyper), prepare=False)
                if new:
                    kind = "hypertable" if hyper else "table"
                    made.append(f"{kind} {stream.table}")
                view = view_of(stream)
                if view is not None and _make_view(connection, view):
                    made.append(f"view {view.name}")
            connection.commit()
            check_tables(connection, streams)
    except psycopg.Error as error:
        raise explain(error, url) from error
    return made


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
