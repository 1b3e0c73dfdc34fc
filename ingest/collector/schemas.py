"""A stream's records as JSON Schema, for /openapi.json: what ingest/mapping.py takes.

A field stands under its JSON name; its .proto name is taken too, which a schema could only say by
naming each field twice. null means unset, but for the fields that must be set.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from ingest.streams import Stream

__all__ = ["Schema", "array_or_one", "of_stream"]

Schema = dict[str, Any]

_T = FieldDescriptor
# Text with a NUL is refused: PostgreSQL can't hold it.
_TEXT: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
_BYTES: Schema = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^(?:[A-Za-z0-9+/]{4})*$",
}
_FLOAT: Schema = {
    "anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]
}
_BOUNDS = {
    **dict.fromkeys((_T.TYPE_INT32, _T.TYPE_SINT32, _T.TYPE_SFIXED32), (-(2**31), 2**31 - 1)),
    **dict.fromkeys((_T.TYPE_INT64, _T.TYPE_SINT64, _T.TYPE_SFIXED64), (-(2**63), 2**63 - 1)),
    **dict.fromkeys((_T.TYPE_UINT32, _T.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((_T.TYPE_UINT64, _T.TYPE_FIXED64), (0, 2**64 - 1)),
}
_TIME = (
    r"^(?:19|20|21|22)[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?Z$"
)
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {
        "type": "string", "format": "date-time", "pattern": _TIME,
        "description": "RFC 3339, of the years 1900 to 2299",
    },
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,9}(?:\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Any": {"type": "object"},
    "google.protobuf.Empty": {"type": "object", "maxProperties": 0},
}  # fmt: skip


def of_stream(stream: Stream, made: dict[str, Schema]) -> Schema:
    """One record of the stream; the messages in it go to `made`, for components/schemas."""
    schema = _object(stream.descriptor, made, stream.required)
    fields = schema["properties"]
    key = stream.descriptor.fields_by_name[stream.key]
    if key.type in (_T.TYPE_STRING, _T.TYPE_BYTES):
        fields[key.json_name] = {**fields[key.json_name], "minLength": 1}
    return schema


def array_or_one(schema: Schema) -> Schema:
    """Of what may come alone or in an array."""
    return {"anyOf": [schema, {"type": "array", "items": schema}]}


def _object(descriptor: Descriptor, made: dict[str, Schema], required: tuple[str, ...]) -> Schema:
    properties = {}
    for field in descriptor.fields:
        schema = _field(field, made)
        must = field.name in required
        properties[field.json_name] = schema if must or not schema else _or_null(schema)
    names = descriptor.fields_by_name
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": [names[name].json_name for name in required]} if required else {}),
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _field(field: FieldDescriptor, made: dict[str, Schema]) -> Schema:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        value = _one(message.fields_by_name["value"], made)
        return {"type": "object", "additionalProperties": value}
    one = _one(field, made)
    return {"type": "array", "items": one} if field.is_repeated else one


_PLAIN = {_T.TYPE_BOOL: {"type": "boolean"}, _T.TYPE_STRING: _TEXT, _T.TYPE_BYTES: _BYTES}


def _one(field: FieldDescriptor, made: dict[str, Schema]) -> Schema:
    message = field.message_type
    if message is not None:
        return _message(message, made)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type in _BOUNDS:
        least, most = _BOUNDS[field.type]
        digits = "^-?[0-9]{1,9}$" if least else "^[0-9]{1,9}$"
        return {
            "anyOf": [
                {"type": "integer", "minimum": least, "maximum": most},
                {"type": "string", "pattern": digits},
            ]
        }
    return _PLAIN.get(field.type, _FLOAT)


def _message(message: Descriptor, made: dict[str, Schema]) -> Schema:
    name = message.full_name
    if name in _WELL_KNOWN:
        return _WELL_KNOWN[name]
    if name.startswith("google.protobuf.") and name.endswith("Value"):
        return _one(message.fields_by_name["value"], made)
    if name not in made:
        # Known before its fields are, so that a message may hold itself.
        made[name] = {}
        made[name] = _object(message, made, ())
    return {"$ref": f"#/components/schemas/{name}"}
