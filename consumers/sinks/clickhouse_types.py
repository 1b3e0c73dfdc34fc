"""From columns to ClickHouse: types, DDL, and the bytes of an insert.

The type of every column is in the table of `consumers.columns`. Beside them every row keeps where it
came from (`_topic`, `_topic_id`, `_partition`, `_offset`): that is how a recovery asks the table what
has landed. The skip index on `_offset` makes that question cheap: old parts lie wholly below it.

There is no PARTITION BY, so that an insert is one part, all or nothing. Whoever needs partitions may
make the table with them before `headrace migrate`; recovery copes with half an insert too.
"""  # noqa: E501

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import pyarrow as pa

from consumers.batch import Chunk
from consumers.columns import Column, Kind, columns
from consumers.errors import Systemic
from ingest.streams import Stream

__all__ = [
    "DEDUPLICATION_WINDOW", "ORIGIN", "ArrowStream", "column_types", "ddl", "fits",
    "keeps_retention", "quote", "ttl", "ttl_of",
]  # fmt: skip

_TYPES = {
    Kind.DOUBLE: "Float64",
    Kind.FLOAT: "Float32",
    Kind.INT32: "Int32",
    Kind.INT64: "Int64",
    Kind.UINT32: "UInt32",
    Kind.UINT64: "UInt64",
    Kind.BOOL: "Bool",
    Kind.STRING: "String",
    Kind.BYTES: "String",
    Kind.ENUM: "LowCardinality(String)",
    Kind.TIMESTAMP: "DateTime64(6, 'UTC')",
    Kind.DURATION: "Int64",
    Kind.JSON: "String",
}

# Where a row came from.
ORIGIN = {
    "_topic": "LowCardinality(String)",
    "_topic_id": "LowCardinality(String)",
    "_partition": "Int32",
    "_offset": "Int64",
}

# How many of the latest inserts a plain MergeTree remembers by their token; ClickHouse's default is
# none. Replicated tables remember 10,000 for an hour.
DEDUPLICATION_WINDOW = 10_000


def _type(column: Column) -> str:
    if column.kind is Kind.MAP:
        key, value = column.fields
        return f"Map({_type(key)}, {_type(value)})"
    if column.kind is Kind.MESSAGE:
        inner = f"Tuple({', '.join(f'{quote(f.name)} {_type(f)}' for f in column.fields)})"
        return f"Array({inner})" if column.repeated else inner
    plain = _TYPES[column.kind]
    if column.repeated:
        return f"Array({plain})"
    if column.nullable:
        low = re.fullmatch(r"LowCardinality\((\w+)\)", plain)
        return f"LowCardinality(Nullable({low[1]}))" if low else f"Nullable({plain})"
    return plain


def column_types(stream: Stream) -> dict[str, str]:
    """Column name to type, in order, those of `ORIGIN` last."""
    needed = {stream.column(field) for field in stream.required}
    types = {}
    for c in columns(stream):
        plain = _type(c)
        if c.name in needed and plain.startswith("Nullable("):
            plain = plain[len("Nullable(") : -1]
        types[c.name] = plain
    return types | ORIGIN


def fits(found: str, wanted: str) -> bool:
    """Whether a column of type `found` takes what is meant for `wanted`.

    LowCardinality stores the same values in another way, so it is the table's own affair.
    """

    def plain(name: str) -> str:
        bare = re.sub(r"LowCardinality\(((?:Nullable\(\w+\))|\w+)\)", r"\1", name)
        return bare.replace("`", "").replace(" ", "")

    return plain(found) == plain(wanted)


def ddl(stream: Stream) -> str:
    """The statement that makes the stream's table; it may be run again."""
    types = column_types(stream)
    width = max(len(quote(name)) for name in types)
    lines = [f"    {quote(name):{width}} {kind}" for name, kind in types.items()]
    lines.append("    INDEX _offset_range _offset TYPE minmax GRANULARITY 1")
    engine = "MergeTree"
    order: Sequence[str] = (stream.key, stream.time)
    if stream.dedupe:
        # Clients' retries go when parts are merged; queries that can't wait say FINAL.
        engine, order = "ReplacingMergeTree", stream.dedupe
    elif stream.indexes:
        order = stream.indexes[0]
    order = list(dict.fromkeys(map(stream.column, order)))
    # Without it ClickHouse refuses a sorting key that may be null.
    nullable = ", allow_nullable_key = 1" if any("Nullable(" in types[n] for n in order) else ""
    expires = f"TTL {ttl(stream)}\n" if stream.retention else ""
    return (
        f"CREATE TABLE IF NOT EXISTS {quote(stream.table)} (\n"
        + ",\n".join(lines)
        + f"\n)\nENGINE = {engine}\nORDER BY ({', '.join(map(quote, order))})\n{expires}"
        + f"SETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}{nullable};\n"
    )


def ttl(stream: Stream) -> str:
    """When a row of a stream with `retention` goes.

    A TTL is a DateTime, which begins in 1970, ends in 2106, and wraps silently. Rows from before go
    as if they were of 1970, and none that would outlast 2106 goes earlier.
    """
    time = quote(stream.column(stream.time))
    return (
        f"toDateTime(least(greatest({time}, toDateTime64(0, 6, 'UTC')) + "
        f"INTERVAL {stream.retention}, "
        "toDateTime64('2106-02-07 06:28:15', 6, 'UTC')))"
    )


def ttl_of(engine: str) -> str | None:
    """What a table's `engine_full` says of when rows go."""
    found = re.search(r" TTL (.+?)(?: SETTINGS |$)", engine)
    return found[1] if found else None


def keeps_retention(found: str, stream: Stream) -> bool:
    """Whether a table's TTL is that of its stream."""
    if not stream.retention:
        return False
    number, unit = stream.retention.rstrip("s").split()
    # As ClickHouse writes INTERVAL 7 days.
    return f"toInterval{unit.capitalize()}({number})" in found


def quote(name: str) -> str:
    """An identifier. Names come from .proto files and checked settings; raises Systemic if not."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Systemic(f"{name!r} can't be a name in ClickHouse")
    return f"`{name}`"


class ArrowStream:
    """Writes rows, and where each came from, as Arrow IPC into memory that it keeps.

    Fresh memory costs more than the copying: 400,000 rows take 0.15 s into pages that are there and
    up to 1 s into new ones (bench/insert.py, on a virtual machine).
    """

    def __init__(self) -> None:
        self._memory = bytearray()
        # Of the first value pyarrow imports pandas, 0.3 s: not while the first batch waits.
        pa.scalar("")

    def __call__(self, chunks: Sequence[Chunk], topic_id: str) -> memoryview:
        """The stream; it holds until the next call."""
        # One block: small ones cost ClickHouse more than the copy costs us.
        rows = pa.Table.from_batches([chunk.rows for chunk in chunks]).combine_chunks()
        table = pa.Table.from_batches([_with_origin(rows.to_batches()[0], chunks, topic_id)])
        measure = pa.MockOutputStream()
        _write(table, measure)
        size = measure.size()
        if size > len(self._memory):
            self._memory = bytearray(size + size // 4)
        _write(table, pa.FixedSizeBufferWriter(pa.py_buffer(self._memory)))
        return memoryview(self._memory)[:size]


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _with_origin(rows: pa.RecordBatch, chunks: Sequence[Chunk], topic_id: str) -> pa.RecordBatch:
    """The rows of chunks of one topic, and where each came from.

    Made for all of them at once: nearly each call of pyarrow lets go of the interpreter's lock, and
    beside the busy polling thread waits up to 5 ms to have it back.
    """
    partitions, offsets = array("i"), array("q")
    for chunk in chunks:
        partitions.extend(array("i", [chunk.partition.number]) * chunk.rows.num_rows)
        offsets.extend(chunk.offsets)
    zeros = _plain(pa.int8(), bytes(rows.num_rows))
    origin = {
        "_topic": pa.DictionaryArray.from_arrays(zeros, [chunks[0].partition.topic]),
        "_topic_id": pa.DictionaryArray.from_arrays(zeros, [topic_id]),
        "_partition": _plain(pa.int32(), partitions),
        "_offset": _plain(pa.int64(), offsets),
    }
    arrays = [*map(_storable, rows.columns), *origin.values()]
    return pa.record_batch(arrays, names=[*rows.schema.names, *origin])


def _plain(kind: pa.DataType, values: bytes | array[int]) -> pa.Array:
    """An array over memory that is as Arrow wants it."""
    buffer = pa.py_buffer(values)
    return pa.Array.from_buffers(kind, buffer.size // kind.byte_width, [None, buffer])


def _storable(values: pa.Array) -> pa.Array:
    """Durations as their microseconds, and an unset message as one that holds defaults.

    ClickHouse's Tuple has no null. At any depth: in lists, maps and other messages.
    """
    kind = values.type
    if pa.types.is_duration(kind):
        return values.view(pa.int64())
    if pa.types.is_map(kind):
        items = _storable(values.items)
        return pa.MapArray.from_arrays(values.offsets, values.keys, items)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(values.offsets, _storable(values.values))
    if not pa.types.is_struct(kind):
        return values
    children = []
    for i, field in enumerate(kind):
        # Under an unset message ptars leaves lists empty and the rest at its default; what may be
        # null there must be so.
        child = values.flatten()[i] if field.nullable else values.field(i)
        children.append(_storable(child))
    fields = [pa.field(f.name, c.type, f.nullable) for f, c in zip(kind, children, strict=True)]
    return pa.StructArray.from_arrays(children, fields=fields)
