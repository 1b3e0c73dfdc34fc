"""From columns to PostgreSQL: types, DDL, and the bytes of a binary COPY.

The type of every column is in the table of `consumers.columns`. Binary COPY does not cast: column
types must be these exactly, and `PostgresSink` compares them before it writes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringEncoderBuilder
from pgpq.schema import Jsonb
from psycopg import sql

from consumers.columns import Column, Kind, columns, holds, values_of
from ingest.streams import Stream

__all__ = [
    "OFFSETS_DDL",
    "Encoder",
    "Index",
    "column_types",
    "ddl",
    "default",
    "indexes",
    "short",
]

_TYPES = {
    Kind.DOUBLE: "double precision",
    Kind.FLOAT: "real",
    Kind.INT32: "integer",
    Kind.INT64: "bigint",
    Kind.UINT32: "bigint",
    Kind.UINT64: "numeric(20)",
    Kind.BOOL: "boolean",
    Kind.STRING: "text",
    Kind.BYTES: "bytea",
    Kind.ENUM: "text",
    Kind.TIMESTAMP: "timestamptz",
    Kind.DURATION: "interval",
}

# Positions live beside the rows and move in the same transaction; see postgres.py.
OFFSETS_DDL = """\
CREATE TABLE IF NOT EXISTS headrace_offsets (
    table_name  text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    topic_id    text        NOT NULL,  -- changes when the topic is deleted and made anew
    next_offset bigint      NOT NULL,  -- everything below has landed in table_name, exactly once
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, topic, partition)
);
"""


def _is_json(column: Column) -> bool:
    return column.kind in (Kind.MESSAGE, Kind.MAP, Kind.JSON)


def _type(column: Column) -> str:
    if _is_json(column):
        return "jsonb"
    if column.repeated and column.kind is Kind.TIMESTAMP:
        # pgpq gives the elements of every array of times the type of those without a zone, and
        # PostgreSQL compares it with the column's. The values are UTC either way.
        return "timestamp without time zone[]"
    return _TYPES[column.kind] + ("[]" if column.repeated else "")


def column_types(stream: Stream) -> dict[str, str]:
    """Column name to type, in order."""
    return {column.name: _type(column) for column in columns(stream)}


def default(stream: Stream, column: Column) -> str | None:
    """As SQL what a record reads as that lacks the field: so rows of before are as their records.

    None is null: for fields with presence, and for those that no record lacks.
    """
    if column.nullable or column.field in stream.required:
        return None
    field = stream.descriptor.fields_by_name[column.field]
    message, enum = field.message_type, field.enum_type
    if _is_json(column) and not (message and message.GetOptions().map_entry):
        return "'[]'"
    if column.repeated or _is_json(column):
        return "'{}'"
    if enum is not None:
        return _text(enum.values_by_number[0].name)
    return {Kind.STRING: "''", Kind.BYTES: "''", Kind.BOOL: "false"}.get(column.kind, "0")


class Index(NamedTuple):
    """An index of a stream; `other` is its name where something else is called `name`."""

    name: str
    other: str
    unique: bool
    columns: tuple[str, ...]


def ddl(stream: Stream, *, timescale: bool, taken: Collection[str] = ()) -> str:
    """The statements that make the stream's table; each may be run again.

    `taken` are names that none of its indexes may have.

    Columns that the stream needs in every record are NOT NULL. With `timescale` the table, which
    must be new or one already, becomes a hypertable; columnstore and retention policy where the
    stream names them, which needs TimescaleDB's Community edition.
    """
    table = _name(stream.table)
    time = stream.column(stream.time)
    needed = {stream.column(field) for field in (*stream.required, *stream.dedupe)}
    width = max(len(_name(c.name)) for c in columns(stream))
    lines = [
        f"    {_name(c.name):{width}} {_type(c)}{' NOT NULL' if c.name in needed else ''}"
        for c in columns(stream)
    ]
    parts = [f"CREATE TABLE IF NOT EXISTS {table} (\n" + ",\n".join(lines) + "\n);\n"]
    if timescale:
        parts.append(
            f"SELECT create_hypertable({_text(table)}, "
            f"by_range({_text(time)}, INTERVAL {_text(stream.chunk_interval)}), "
            # Each index costs every insert; those that are wanted are named in the stream.
            "create_default_indexes => false, if_not_exists => true);\n"
        )
    for index in indexes(stream):
        kind = "UNIQUE INDEX" if index.unique else "INDEX"
        name = index.other if index.name in taken else index.name
        on = ", ".join(map(_name, index.columns))
        parts.append(f"CREATE {kind} IF NOT EXISTS {_name(name)} ON {table} ({on});\n")
    if timescale and stream.segment_by:
        by = stream.column(stream.segment_by)
        parts.append(
            f"ALTER TABLE {table} SET (timescaledb.enable_columnstore, "
            f"timescaledb.segmentby = {_text(_name(by))}, "
            f"timescaledb.orderby = {_text(_name(time) + ' DESC')});\n"
            f"CALL add_columnstore_policy({_text(table)}, "
            f"after => 2 * INTERVAL {_text(stream.chunk_interval)}, if_not_exists => true);\n"
        )
    if timescale and stream.retention:
        parts.append(
            f"SELECT add_retention_policy({_text(table)}, INTERVAL {_text(stream.retention)}, "
            "if_not_exists => true);\n"
        )
    return "".join(parts)


def indexes(stream: Stream) -> list[Index]:
    """Its indexes, each of a name of its own.

    Where there is something of that name, IF NOT EXISTS makes nothing and says nothing. PostgreSQL
    cuts names at 63 bytes, and ["a_b", "c"] and ["a", "b_c"] read alike: those get a hash.
    """
    wanted = [(True, stream.dedupe, "key")] if stream.dedupe else []
    wanted += [(False, i, "_".join(map(stream.column, i))) for i in dict.fromkeys(stream.indexes)]
    found: list[Index] = []
    for unique, fields, suffix in wanted:
        name = f"{stream.table}_{suffix}"
        on = tuple(map(stream.column, fields))
        kind = "UNIQUE INDEX" if unique else "INDEX"
        other = _hashed(name, f"{kind} {stream.table} {', '.join(map(_name, on))}")
        if len(name) > 63 or name in {index.name for index in found}:
            name = other
        found.append(Index(name, other, unique, on))
    return found


def short(name: str) -> str:
    """A name that PostgreSQL does not cut: beyond 63 bytes two might be the same."""
    return name if len(name) <= 63 else _hashed(name, name)


def _hashed(name: str, whole: str) -> str:
    return f"{name[:54]}_{sha256(whole.encode()).hexdigest()[:8]}"


def _name(name: str) -> str:
    return sql.Identifier(name).as_string()


def _text(value: str) -> str:
    return sql.Literal(value).as_string()


class Encoder:
    """Turns Arrow rows of one stream into binary COPY."""

    def __init__(self, stream: Stream, schema: pa.Schema) -> None:
        self._json = [(i, c) for i, c in enumerate(columns(stream)) if _is_json(c)]
        for i, _column in self._json:
            schema = schema.set(i, pa.field(schema.field(i).name, pa.string()))
        as_text = {i for i, _column in self._json}
        self._encoders = {
            field.name: StringEncoderBuilder.new_with_output(field, Jsonb())
            if i in as_text
            else ArrowToPostgresBinaryEncoder.infer_encoder(field)
            for i, field in enumerate(schema)
        }
        self._schema = schema

    def encode(self, batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
        """The bytes to send, in pieces. Raises ValueError for a value that has no JSON form."""
        encoder = ArrowToPostgresBinaryEncoder.new_with_encoders(self._schema, self._encoders)
        yield encoder.write_header()
        for batch in batches:
            yield encoder.write_batch(self.flat(batch))
        yield encoder.finish()

    def flat(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with every jsonb column as JSON text."""
        if not self._json:
            return rows
        arrays = list(rows.columns)
        for i, column in self._json:
            if column.kind is not Kind.JSON:
                try:
                    # "strict": a key that is there twice is legal on the wire, but not in JSON.
                    values = arrays[i].to_pylist(maps_as_pydicts="strict")
                    if _has_odd_numbers(column, arrays[i]):
                        values = list(map(_with_words, values))
                    arrays[i] = pa.array(map(_to_json, values), pa.string())
                except (KeyError, OverflowError, TypeError) as error:
                    name = self._schema.field(i).name
                    raise ValueError(f"{name} has no JSON form: {error}") from error
        return pa.record_batch(arrays, schema=self._schema)


def _to_json(value: Any) -> str | None:
    if value is None:
        return None
    return orjson.dumps(value, _json_default, orjson.OPT_NON_STR_KEYS).decode()


_FLOATS = (Kind.DOUBLE, Kind.FLOAT)


def _has_odd_numbers(column: Column, values: pa.Array) -> bool:
    """Whether it holds NaN or an infinity, which orjson would write as null."""
    return holds(column, _FLOATS) and any(
        pc.all(pc.is_finite(found)).as_py() is False
        for _name, _kind, found in values_of(column, values, _FLOATS)
    )


def _with_words(value: Any) -> Any:
    """With "NaN", "Infinity" and "-Infinity" for numbers that JSON has not, as protobuf's JSON."""
    if isinstance(value, dict):
        return {k: _with_words(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_words(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _json_default(value: Any) -> Any:
    import base64
    import datetime

    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.timedelta):
        # total_seconds() is a float: beyond 285 years it has no microseconds left.
        seconds, us = divmod(abs(value) // datetime.timedelta(microseconds=1), 1_000_000)
        return f"{'-' if value.days < 0 else ''}{seconds}.{us:06d}s"
    raise TypeError(type(value).__name__)
