"""From a protobuf field to a column: the one table of types that every destination follows.

    protobuf                          PostgreSQL          ClickHouse
    double, float                     double precision,   Float64, Float32
                                      real
    int32 sint32 sfixed32             integer             Int32
    int64 sint64 sfixed64             bigint              Int64
    uint32 fixed32                    bigint              UInt32
    uint64 fixed64                    numeric(20)         UInt64
    bool                              boolean             Bool
    string                            text                String
    bytes                             bytea               String
    enum (its name; a number          text                LowCardinality(String)
      unknown to the .proto as "7")
    Timestamp (microseconds, UTC)     timestamptz         DateTime64(6, 'UTC')
    Duration (microseconds)           interval            Int64
    optional T, wrappers, oneof       T, null when unset  Nullable(T)
    repeated T                        T[]                 Array(T)
    repeated Timestamp (UTC)          timestamp without   Array(DateTime64(6, 'UTC'))
                                      time zone[]
    message                           jsonb               Tuple(…), defaults when unset
    repeated message                  jsonb               Array(Tuple(…))
    map<K, V>                         jsonb               Map(K, V)
    Struct, Value, ListValue, and     jsonb               String, holding JSON
      messages that hold one of them,
      that recurse, have no fields or
      are groups of proto2

A field without presence is stored with protobuf's default (0, "", false) when it is unset, because
proto3 can't tell the two apart; declare it `optional` for null.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

import pyarrow as pa
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from ingest.streams import Stream

__all__ = ["Column", "Kind", "columns", "holds", "values_of"]


class Kind(Enum):
    """What a value is, whatever its destination."""

    DOUBLE = "double"
    FLOAT = "float"
    INT32 = "int32"
    INT64 = "int64"
    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"
    STRING = "string"
    BYTES = "bytes"
    ENUM = "enum"
    TIMESTAMP = "timestamp"
    DURATION = "duration"
    MESSAGE = "message"
    MAP = "map"
    JSON = "json"  # rendered to JSON text when decoded; see decode.py


_SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: Kind.DOUBLE,
    FieldDescriptor.TYPE_FLOAT: Kind.FLOAT,
    FieldDescriptor.TYPE_INT32: Kind.INT32,
    FieldDescriptor.TYPE_SINT32: Kind.INT32,
    FieldDescriptor.TYPE_SFIXED32: Kind.INT32,
    FieldDescriptor.TYPE_INT64: Kind.INT64,
    FieldDescriptor.TYPE_SINT64: Kind.INT64,
    FieldDescriptor.TYPE_SFIXED64: Kind.INT64,
    FieldDescriptor.TYPE_UINT32: Kind.UINT32,
    FieldDescriptor.TYPE_FIXED32: Kind.UINT32,
    FieldDescriptor.TYPE_UINT64: Kind.UINT64,
    FieldDescriptor.TYPE_FIXED64: Kind.UINT64,
    FieldDescriptor.TYPE_BOOL: Kind.BOOL,
    FieldDescriptor.TYPE_STRING: Kind.STRING,
    FieldDescriptor.TYPE_BYTES: Kind.BYTES,
    FieldDescriptor.TYPE_ENUM: Kind.ENUM,
}

_WELL_KNOWN = {
    "google.protobuf.Timestamp": Kind.TIMESTAMP,
    "google.protobuf.Duration": Kind.DURATION,
    "google.protobuf.DoubleValue": Kind.DOUBLE,
    "google.protobuf.FloatValue": Kind.FLOAT,
    "google.protobuf.Int32Value": Kind.INT32,
    "google.protobuf.Int64Value": Kind.INT64,
    "google.protobuf.UInt32Value": Kind.UINT32,
    "google.protobuf.UInt64Value": Kind.UINT64,
    "google.protobuf.BoolValue": Kind.BOOL,
    "google.protobuf.StringValue": Kind.STRING,
    "google.protobuf.BytesValue": Kind.BYTES,
}

_DYNAMIC = {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `fields` are the columns of a MESSAGE, or the key and value of a MAP.

    `name` is the table's, `field` the message's; a stream may tell them apart.
    """

    name: str
    kind: Kind
    repeated: bool = False
    # Null when unset; never for repeated fields and maps, which are empty instead.
    nullable: bool = False
    fields: tuple[Column, ...] = ()
    field: str = ""


@lru_cache(maxsize=256)
def columns(stream: Stream) -> tuple[Column, ...]:
    """The columns of a stream, in the order of its message's fields."""
    return tuple(
        replace(_column(field), name=stream.column(field.name), field=field.name)
        for field in stream.descriptor.fields
    )


def holds(column: Column, kinds: Collection[Kind]) -> bool:
    """Whether a column has values of these kinds, at any depth."""
    return column.kind in kinds or any(holds(c, kinds) for c in column.fields)


def values_of(
    column: Column, values: pa.Array, kinds: Collection[Kind]
) -> Iterator[tuple[str, Kind, pa.Array]]:
    """All values of these kinds in a column, at any depth: flat, with the path of their field."""
    if column.kind is Kind.MAP:
        _key, value = column.fields
        if len(values) and holds(value, kinds):
            first, last = values.offsets[0].as_py(), values.offsets[-1].as_py()
            for name, kind, found in values_of(
                value, values.items.slice(first, last - first), kinds
            ):
                yield f"{column.name}.{name}", kind, found
        return
    if column.repeated:
        values = values.flatten()
    if column.kind in kinds:
        yield column.name, column.kind, values
    elif column.fields:
        # What is under a message that is not set is null here. In Arrow they are in the order of
        # their numbers.
        below = {field.name: v for field, v in zip(values.type, values.flatten(), strict=True)}
        for field in column.fields:
            if holds(field, kinds):
                for name, kind, found in values_of(field, below[field.name], kinds):
                    yield f"{column.name}.{name}", kind, found


def _column(field: FieldDescriptor) -> Column:
    message = field.message_type
    if message is None:
        return Column(field.name, _SCALARS[field.type], field.is_repeated, field.has_presence)
    if message.full_name in _WELL_KNOWN:
        return Column(
            field.name, _WELL_KNOWN[message.full_name], field.is_repeated, not field.is_repeated
        )
    # ptars reads no groups: without a word they would be null.
    if field.type == FieldDescriptor.TYPE_GROUP or _opaque(message):
        return Column(field.name, Kind.JSON, nullable=not field.is_repeated)
    inner = tuple(_column(f) for f in message.fields)
    if message.GetOptions().map_entry:
        return Column(field.name, Kind.MAP, fields=inner)
    return Column(field.name, Kind.MESSAGE, field.is_repeated, not field.is_repeated, inner)


def _opaque(message: Descriptor, above: frozenset[str] = frozenset()) -> bool:
    """Whether no fixed set of columns can hold it."""
    if message.full_name in _WELL_KNOWN:
        return False
    if message.full_name in _DYNAMIC or message.full_name in above or not message.fields:
        return True
    above = above | {message.full_name}
    return any(
        f.type == FieldDescriptor.TYPE_GROUP or (f.message_type and _opaque(f.message_type, above))
        for f in message.fields
    )
