"""What the databases hold: every row and column, and the fleet's figures, asked in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from pyarrow import csv

from headrace.demo.chdb_look import look
from headrace.demo.published import TEXT, fields
from ingest.streams import Stream

__all__ = ["Figures", "clickhouse", "postgres_figures", "postgres_rows"]


@dataclass(frozen=True, slots=True)
class Figures:
    """The fleet in figures; equal when two databases say the same.

    `latest` counts devices by (colo, status) of their newest report, `history` counts reports by
    (start of the interval in seconds since 1970, status).
    """

    latest: dict[tuple[str, str], int]
    history: dict[tuple[int, str], int]


_LATEST = """
SELECT colo, status, count(*) FROM (
    SELECT DISTINCT ON (device_id) colo, status FROM device_state
    ORDER BY device_id, "timestamp" DESC) AS newest
GROUP BY colo, status"""
_HISTORY = """
SELECT floor(extract(epoch FROM "timestamp") / {step_s})::bigint * {step_s} AS begin_s,
    status, count(*)
FROM device_state GROUP BY begin_s, status"""

_LATEST_CLICKHOUSE = """
SELECT newest.1, newest.2, count() FROM (
    SELECT argMax((colo, status), timestamp) AS newest FROM device_state GROUP BY device_id)
GROUP BY newest"""
_HISTORY_CLICKHOUSE = """
SELECT intDiv(toUnixTimestamp(timestamp), {step_s}) * {step_s} AS begin_s, status, count()
FROM device_state GROUP BY begin_s, status"""


def postgres_figures(url: str, step_s: int) -> Figures:
    """The figures, from PostgreSQL."""
    with psycopg.connect(url) as connection:
        connection.execute("SET LOCAL work_mem = '128MB'")
        latest = connection.execute(_LATEST).fetchall()
        history = connection.execute(
            sql.SQL(_HISTORY).format(step_s=sql.Literal(step_s))
        ).fetchall()
    return _figures(latest, history)


def postgres_rows(url: str, stream: Stream, folder: Path) -> pa.Table:
    """The stream's whole table, copied out."""
    types = fields(stream)
    columns = [
        sql.SQL("(extract(epoch FROM {}) * 1000000)::bigint AS {}").format(*[sql.Identifier(n)] * 2)
        if name == stream.time
        else sql.Identifier(name)
        for name in types
        for n in (name,)
    ]
    file = folder / f"{stream.table}.csv"
    copy = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT csv, HEADER)").format(
        sql.SQL(", ").join(columns), sql.Identifier(stream.table)
    )
    with (
        psycopg.connect(url) as connection,
        connection.cursor().copy(copy) as data,
        file.open("wb") as out,
    ):
        for piece in data:
            out.write(piece)
    options = csv.ConvertOptions(
        # An empty text is quoted, a NULL is not.
        column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False,
        null_values=[""],
    )  # fmt: skip
    try:
        return csv.read_csv(file, convert_options=options)
    finally:
        file.unlink()


def clickhouse(
    directory: Path, streams: Sequence[Stream], folder: Path, step_s: int
) -> tuple[Figures, dict[str, pa.Table]]:
    """The figures, and each stream's whole table with `_partition` and `_offset`.

    A row that says that it is from another topic keeps neither, and so is none of ours.
    """
    queries = [_LATEST_CLICKHOUSE, _HISTORY_CLICKHOUSE.format(step_s=step_s)]
    for stream in streams:
        columns = ", ".join(
            f"toUnixTimestamp64Micro(`{name}`) AS `{name}`" if name == stream.time else f"`{name}`"
            for name in fields(stream)
        )
        ours = f"_topic = '{stream.topic}'"
        queries.append(
            f"SELECT {columns}, if({ours}, _partition, -1) AS _partition, "  # noqa: S608 - ours
            f"if({ours}, _offset, -1) AS _offset FROM `{stream.table}` "
            f"INTO OUTFILE {_quoted(_file(folder, stream))} FORMAT ArrowStream "
            "SETTINGS output_format_arrow_string_as_string = 1"
        )
    latest, history, *_files = look(directory, queries)
    return _figures(latest, history), {s.name: _read(_file(folder, s), s) for s in streams}


def _file(folder: Path, stream: Stream) -> Path:
    return folder / f"{stream.table}.arrow"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _read(file: Path, stream: Stream) -> pa.Table:
    types = {**fields(stream), "_partition": pa.int64(), "_offset": pa.int64()}
    with pa.ipc.open_stream(file) as reader:
        pieces = [
            pa.record_batch([_cast(piece.column(name), kind) for name, kind in types.items()],
                            names=list(types))
            for piece in reader
        ]  # fmt: skip
    file.unlink()
    return pa.Table.from_batches(pieces, pa.schema(list(types.items())))


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column.cast(pa.string()).dictionary_encode() if kind == TEXT else column.cast(kind)


def _figures(latest: Sequence[Sequence[Any]], history: Sequence[Sequence[Any]]) -> Figures:
    return Figures(
        {(colo, status): int(n) for colo, status, n in latest},
        {(int(begin_s), status): int(n) for begin_s, status, n in history},
    )
