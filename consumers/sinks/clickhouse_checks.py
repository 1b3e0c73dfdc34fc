"""Whether tables are as their streams need them. A person is told what differs, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clickhouse_connect.driver.client import Client

from consumers.errors import Systemic
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_types import DEDUPLICATION_WINDOW, column_types, fits, quote
from ingest.streams import Stream

__all__ = ["check", "check_tables"]


def check(url: str, streams: Sequence[Stream]) -> None:
    """See consumers.destinations.Destination."""
    require_chdb(url)
    client = connect(url)
    try:
        with talking(url):
            check_tables(client, streams)
    finally:
        client.close()


def check_tables(client: Client, streams: Sequence[Stream]) -> None:
    """Compare the tables with what the streams need. Raises Systemic, saying what to do."""
    for stream in streams:
        rows = client.query(
            "SELECT name, type FROM system.columns "
            "WHERE database = currentDatabase() AND table = {table:String}",
            parameters={"table": stream.table},
        ).result_rows
        found = {str(name): str(kind) for name, kind in rows}
        if not found:
            raise Systemic(
                f"the table {stream.table} does not exist; create it with "
                f"`headrace migrate --to URL --stream {stream.name}`"
            )
        for name, wanted in column_types(stream).items():
            if name not in found:
                raise Systemic(
                    f"the table {stream.table} has no column {name}; add it: "
                    f"ALTER TABLE {stream.table} ADD COLUMN {quote(name)} {wanted}"
                )
            if not fits(found[name], wanted):
                raise Systemic(
                    f"the column {stream.table}.{name} is {found[name]} and must be {wanted}; "
                    f"see `headrace schema sql {stream.name} --for clickhouse`"
                )
        _check_window(client, stream)
    if not client.query("EXISTS TABLE headrace_ledger").result_rows[0][0]:
        raise Systemic(
            "the table headrace_ledger does not exist; create it with `headrace migrate --to URL`"
        )


def _check_window(client: Client, stream: Stream) -> None:
    """A table that somebody else has made may forget tokens at once: ClickHouse's own default."""
    rows = client.query(
        "SELECT engine, create_table_query FROM system.tables "
        "WHERE database = currentDatabase() AND name = {table:String}",
        parameters={"table": stream.table},
    ).result_rows
    for engine, made_by in rows:
        window = re.search(r"non_replicated_deduplication_window = (\d+)", str(made_by))
        plain = str(engine).endswith("MergeTree") and not str(engine).startswith(
            ("Replicated", "Shared")
        )
        if plain and (window is None or int(window[1]) == 0):
            raise Systemic(
                f"the table {stream.table} does not remember inserts, so that a late one could "
                f"land twice: ALTER TABLE {stream.table} MODIFY SETTING "
                f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
            )
