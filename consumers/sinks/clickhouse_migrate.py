"""Makes what a ClickHouse database needs: tables and views.

A view of ours holds no data, so an older one gives way to today's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from clickhouse_connect.driver.client import Client

from consumers.sinks import raw_normalized
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_ledger import LEDGER_DDL
from consumers.sinks.clickhouse_types import ddl, keeps_retention, quote, ttl, ttl_of
from ingest.streams import Stream

__all__ = ["migrate"]

log = logging.getLogger(__name__)

# What a TTL does to rows besides deleting them, or which of them it deletes, is its owner's affair.
_OWN = re.compile(r" (TO (DISK|VOLUME)|RECOMPRESS|GROUP BY|WHERE) ")


def migrate(url: str, streams: Sequence[Stream]) -> list[str]:
    """Make the tables and views that are missing; answer which. Raises Unavailable, Systemic.

    A table that keeps its rows for another time than its stream says is warned of.
    """
    client = connect(url)
    made = []
    try:
        with talking(url):
            client.command(LEDGER_DDL.rstrip(";\n"))
            for stream in streams:
                if not client.command(f"EXISTS TABLE {quote(stream.table)}"):
                    made.append(f"table {stream.table}")
                client.command(ddl(stream).rstrip(";\n"))
                view = raw_normalized.clickhouse(stream)
                if view is not None and _make_view(client, view):
                    made.append(f"view {view.name}")
            check_tables(client, streams)
            for stream in streams:
                _say_retention(client, stream)
    finally:
        client.close()
    return made


def _make_view(client: Client, view: raw_normalized.View) -> bool:
    """Make a view, or put it in place of an older one of ours; whether there was anything to do."""
    found = client.query(
        "SELECT comment FROM system.tables "
        "WHERE database = currentDatabase() AND name = {name:String}",
        parameters={"name": view.name},
    ).result_rows
    if found and (
        found[0][0] == view.comment or not str(found[0][0]).startswith(raw_normalized.MARK)
    ):
        return False
    client.command(view.sql.rstrip(";\n"))
    return True


def _say_retention(client: Client, stream: Stream) -> None:
    """Warn of a table whose TTL is not the stream's retention: nothing else would tell."""
    rows = client.query(
        "SELECT engine_full FROM system.tables "
        "WHERE database = currentDatabase() AND name = {table:String} AND engine LIKE '%MergeTree'",
        parameters={"table": stream.table},
    ).result_rows
    for (engine,) in rows:
        has = ttl_of(str(engine))
        table = quote(stream.table)
        if stream.retention:
            if has is None or not keeps_retention(has, stream):
                kept = f"its TTL is {has}" if has else "it keeps them for ever"
                log.warning(
                    "the stream %s has retention = %r, but the table %s was made otherwise: %s. To "
                    "change it: ALTER TABLE %s MODIFY TTL %s",
                    stream.name, stream.retention, stream.table, kept, table, ttl(stream),
                )  # fmt: skip
        elif has is not None and not _OWN.search(f"{has} "):
            log.warning(
                "the stream %s has no retention, but rows of the table %s go: its TTL is %s. "
                "To keep them for ever: ALTER TABLE %s REMOVE TTL",
                stream.name, stream.table, has, table,
            )  # fmt: skip
