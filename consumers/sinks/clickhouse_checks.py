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
            "SELECT name, type, is_in_sorting_key FROM system.columns "
            "WHERE database = currentDatabase() AND table = {table:String}",
            parameters={"table": stream.table},
        ).result_rows
        found = {str(name): str(kind) for name, kind, _ in rows}
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
        _check_engine(client, stream, {str(name) for name, _, in_key in rows if in_key})
    if not client.query("EXISTS TABLE headrace_ledger").result_rows[0][0]:
        raise Systemic(
            "the table headrace_ledger does not exist; create it with `headrace migrate --to URL`"
        )


def _check_engine(client: Client, stream: Stream, in_key: set[str]) -> None:
    """Of a table whose rows merge; `in_key` are the columns that its sorting key is made of."""
    rows = client.query(
        "SELECT engine, create_table_query, sorting_key FROM system.tables "
        "WHERE database = currentDatabase() AND name = {table:String}",
        parameters={"table": stream.table},
    ).result_rows
    for name, made_by, key in rows:
        engine = str(name)
        if not engine.endswith("MergeTree"):
            continue
        _check_copies(stream, engine, str(key), in_key)
        # One that somebody else has made may forget tokens at once: ClickHouse's own default, but
        # for those that are replicated.
        plain = not engine.startswith(("Replicated", "Shared"))
        setting = f"{'non_' if plain else ''}replicated_deduplication_window"
        window = re.search(rf"\b{setting} = (\d+)", str(made_by))
        if (plain and window is None) or (window is not None and int(window[1]) == 0):
            raise Systemic(
                f"the table {stream.table} does not remember inserts, so that a late one could "
                f"land twice: ALTER TABLE {stream.table} MODIFY SETTING "
                f"{setting} = {DEDUPLICATION_WINDOW}"
            )


def _check_copies(stream: Stream, engine: str, key: str, in_key: set[str]) -> None:
    """Whether just those rows are merged into one that are copies by the stream's `dedupe`."""
    replaces = "Replacing" in engine
    merges = engine not in ("MergeTree", "ReplicatedMergeTree", "SharedMergeTree")
    # A column counts where it stands by itself: of those in toDate(…) many have the same day.
    alone = key
    while alone != (alone := re.sub(r"\w+\([^()]*\)", "", alone)):
        pass
    plain = {re.sub(r" (ASC|DESC)$", "", part.strip("() ")).strip("`") for part in alone.split(",")}
    wanted = {stream.column(field) for field in stream.dedupe}
    if wanted:
        right = replaces and in_key == wanted <= plain
    else:
        # Where a row came from is its own: nothing merges then.
        right = not merges or (replaces and {"_topic_id", "_partition", "_offset"} <= plain)
    if right:
        return
    is_so = f"{engine} ORDER BY ({key})"
    if wanted:
        needed = f"ReplacingMergeTree ORDER BY ({', '.join(map(stream.column, stream.dedupe))})"
        does = f"the stream {stream.name} has dedupe = {list(stream.dedupe)}, which needs {needed}"
    else:
        does = f"the stream {stream.name} has no dedupe, so that no row may replace another"
    raise Systemic(
        f"the table {stream.table} is {is_so}, but {does}. No table can be changed in that: "
        f"give dedupe its former value, or name another `table` under [streams.{stream.name}] and "
        f"run `headrace migrate --to URL --stream {stream.name}`"
    )
