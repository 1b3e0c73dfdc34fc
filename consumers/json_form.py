"""The JSON form of a message's field: what a column of Kind.JSON holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf import json_format
from google.protobuf.message import Message

__all__ = ["to_json"]

# Beyond it a float no longer says which whole number was meant.
_WHOLE = 2**53


def to_json(message: Message, name: str) -> str | None:
    """One field as JSON text, by protobuf's JSON mapping with the names of the .proto."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.has_presence and not message.HasField(name):
        return None
    # By itself: what another field holds (an Any of an unknown type) may have no JSON form.
    value = getattr(message, name)
    if not field.is_repeated:
        made = _json_of(value)
    elif isinstance(value, Mapping):
        made = {key: _json_of(item) for key, item in value.items()}
    else:
        made = [_json_of(item) for item in value]
    return orjson.dumps(made, option=orjson.OPT_NON_STR_KEYS).decode()


def _json_of(message: Message) -> Any:
    return _whole(
        json_format.MessageToDict(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            # Its own types, for an Any that names one. (Both kinds of pool are one to protobuf.)
            descriptor_pool=message.DESCRIPTOR.file.pool,  # type: ignore[arg-type]
        )
    )


def _whole(value: Any) -> Any:
    """With 1 for 1.0: all numbers of a Struct are floats, whatever was sent."""
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        return int(value)
    return value
