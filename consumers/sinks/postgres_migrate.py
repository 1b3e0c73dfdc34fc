"""Makes what a PostgreSQL database needs: tables, indexes, positions; hypertables where it can."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from consumers.sinks.postgres import check_tables, connect, explain
from consumers.sinks.postgres_types import OFFSETS_DDL, ddl
from ingest.streams import Stream

__all__ = ["migrate"]

# So that two migrations at once wait for each other instead of failing half-way.
_LOCK = 7_236_459_102


def migrate(url: str, streams: Sequence[Stream]) -> list[str]:
    """Make what is missing, in one transaction; answer which tables are new.

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
            for stream in streams:
                name = sql.Identifier(stream.table).as_string()
                found = connection.execute("SELECT to_regclass(%s)", (name,)).fetchone()
                connection.execute(ddl(stream, timescale=timescale), prepare=False)
                if found is None or found[0] is None:
                    kind = "hypertable" if timescale else "table"
                    made.append(f"{kind} {stream.table}")
            connection.commit()
            check_tables(connection, streams)
    except psycopg.Error as error:
        raise explain(error, url) from error
    return made


def _has_timescale(connection: psycopg.Connection) -> bool:
    row = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
    return row is not None
