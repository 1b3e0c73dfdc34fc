"""Makes what a ClickHouse database needs: tables and views.

A view of ours holds no data, so an older one gives way to today's.
"""

from __future__ import annotations

from collections.abc import Sequence

from clickhouse_connect.driver.client import Client

from consumers.sinks import raw_normalized
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_ledger import LEDGER_DDL
from consumers.sinks.clickhouse_types import ddl, quote
from ingest.streams import Stream

__all__ = ["migrate"]


def migrate(url: str, streams: Sequence[Stream]) -> list[str]:
    """Make the tables and views that are missing; answer which. Raises Unavailable, Systemic."""
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
