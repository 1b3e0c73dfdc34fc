"""From a decoded JSON object to a protobuf message, compiled once for each message type.

protobuf's own `json_format` walks descriptors for every value: 22 µs for a device_state log on the
project's machine, against 3 µs here, where each field is a closure that knows its type. The mapping
is protobuf's JSON mapping (https://protobuf.dev/programming-guides/json/), and json_format is the
oracle of the property tests. Rules:

* A field answers to its JSON name (accountId) and its .proto name (account_id), not to both in one
  record. An unknown name is an error, never ignored: a typing error would lose data.
* null means unset. A value of the wrong type or out of range is an error that names its field.
* Where json_format is lax this is strict: true is no number, text after a number, base64 or time is
  an error, an infinite double is written "Infinity".

Struct, Value, ListValue, FieldMask and Any are rare and left to json_format.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ingest import scalars
from ingest.scalars import RecordError, shown

__all__ = ["RecordError", "column_setters", "mapper"]

Setter = Callable[[Any, Any], None]

_WRAPPERS = {
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}
_DELEGATED = {
    f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "FieldMask", "Any")
}
# Of each message type so many unknown names, of so many characters at most, are compared with the
# known ones, and no more as long as the process lives: it takes 40 µs each, strangers send other
# names each time, and a collector's loop waits for it.
_HINTS = 200
_LONGEST_HINTED = 64
_TIMESTAMP = "google.protobuf.Timestamp"
_DURATION = "google.protobuf.Duration"


def mapper(descriptor: Descriptor) -> Callable[[Mapping[str, Any]], Any]:
    """A function that makes a message of a mapping in JSON names, or raises RecordError."""
    cls = message_factory.GetMessageClass(descriptor)
    fill = _filler(descriptor, {})

    def convert(record: Mapping[str, Any]) -> Message:
        message = cls()
        try:
            fill(message, record)
        except RecursionError:
            raise RecordError("", "is nested too deeply") from None
        return message

    return convert


def column_setters(descriptor: Descriptor) -> dict[str, tuple[str, Setter]]:
    """For CSV: by each name of a field, its .proto name and a setter that takes a cell's text.

    Numbers, names of enums and base64 are read as in JSON; a bool may also be 1 or 0, a time may
    have a space for its T and no zone (UTC). Repeated fields, maps and messages hold JSON.
    """
    made: dict[str, Setter] = {}
    setters = {}
    for field in descriptor.fields:
        setter = _text_setter(field, made)
        setters[field.name] = (field.name, setter)
    for field in descriptor.fields:
        setters[field.json_name] = setters[field.name]
    return setters


def _filler(descriptor: Descriptor, made: dict[str, Setter]) -> Setter:
    """A function (message, mapping) that sets fields; the closures of a type that holds itself
    find each other through `made`."""
    if descriptor.full_name in made:
        return made[descriptor.full_name]
    by_json_name: dict[str, Setter] = {}
    by_proto_name: dict[str, tuple[str, Setter]] = {}
    # Fields for which null is a value: google.protobuf.Value.
    takes_null: set[str] = set()
    hints: dict[str, str] = {}

    def hint(name: str) -> str:
        if name not in hints:
            if len(name) > _LONGEST_HINTED or len(hints) >= _HINTS:
                return ""
            near = difflib.get_close_matches(name, [*by_json_name, *by_proto_name], 1)
            hints[name] = f"; did you mean {near[0]}?" if near else ""
        return hints[name]

    def other_name(message: Any, record: Mapping[str, Any], name: Any, value: Any) -> None:
        if name not in by_proto_name:
            raise RecordError("", f"is not a field of {descriptor.full_name}{hint(str(name))}")
        json_name, setter = by_proto_name[name]
        if json_name in record:
            raise RecordError("", f"is given twice, also as {json_name}")
        if value is not None or name in takes_null:
            setter(message, value)

    def fill(message: Any, record: Any) -> None:
        if not isinstance(record, Mapping):
            raise RecordError("", f"is not a JSON object: {shown(record)}")
        name: Any = ""
        try:
            for name, value in record.items():
                setter = by_json_name.get(name)
                if setter is None:
                    other_name(message, record, name, value)
                elif value is not None:
                    setter(message, value)
                elif name in takes_null:
                    setter(message, None)
        except RecordError as error:
            raise error.below(str(name)) from None
        except (ValueError, TypeError) as error:
            # What protobuf itself refuses: text with a lone surrogate.
            raise RecordError(str(name), str(error)) from error

    made[descriptor.full_name] = fill
    for field in descriptor.fields:
        setter = _setter(field, made)
        by_json_name[field.json_name] = setter
        if _full_name(field) == "google.protobuf.Value" and not field.is_repeated:
            takes_null |= {field.json_name, field.name}
    for field in descriptor.fields:
        if field.name not in by_json_name:
            by_proto_name[field.name] = (field.json_name, by_json_name[field.json_name])
    return fill


def _setter(field: FieldDescriptor, made: dict[str, Setter]) -> Setter:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map_setter(field, made)
    if field.is_repeated:
        return _list_setter(field, made)
    setter = _singular_setter(field, made)
    oneof = field.containing_oneof
    if oneof is None or len(oneof.fields) == 1:
        return setter

    def set_one(message: Any, value: Any) -> None:
        other = message.WhichOneof(oneof.name)
        if other is not None:
            raise RecordError("", f"can't be set beside {other}: only one of {oneof.name} can")
        setter(message, value)

    return set_one


def _singular_setter(field: FieldDescriptor, made: dict[str, Setter]) -> Setter:
    name = field.name
    if field.message_type is not None:
        fill = _message_filler(field.message_type, made)

        def set_message(message: Any, value: Any) -> None:
            child = getattr(message, name)
            child.SetInParent()
            fill(child, value)

        return set_message
    if field.type == FieldDescriptor.TYPE_STRING:

        def set_text(message: Any, value: Any) -> None:
            # The commonest field by far: the check stands here to save a call.
            if type(value) is not str:
                raise RecordError("", f"is not text: {shown(value)}")
            setattr(message, name, value)

        return set_text
    convert = scalars.converter(field)

    def set_scalar(message: Any, value: Any) -> None:
        setattr(message, name, convert(value))

    return set_scalar


def _message_filler(descriptor: Descriptor, made: dict[str, Setter]) -> Setter:
    name = descriptor.full_name
    if name == _TIMESTAMP:
        return scalars.fill_timestamp
    if name == _DURATION:
        return scalars.fill_duration
    if name in _WRAPPERS:
        convert = scalars.converter(descriptor.fields_by_name["value"])

        def fill_wrapper(message: Any, value: Any) -> None:
            message.value = convert(value)

        return fill_wrapper
    if name in _DELEGATED:
        pool = descriptor.file.pool

        def fill_delegated(message: Any, value: Any) -> None:
            try:
                json_format.ParseDict(value, message, descriptor_pool=pool)
            except RecordError:
                raise
            except Exception as error:
                # ParseError for most, but a wrong shape also meets TypeError and AttributeError.
                raise RecordError("", f"is not a {name}: {error}") from error

        return fill_delegated
    return _filler(descriptor, made)


def _list_setter(field: FieldDescriptor, made: dict[str, Setter]) -> Setter:
    name = field.name
    fill = None if field.message_type is None else _message_filler(field.message_type, made)
    null_is_value = _full_name(field) == "google.protobuf.Value"
    convert = scalars.converter(field) if fill is None else None

    def set_list(message: Any, value: Any) -> None:
        if not isinstance(value, list | tuple):
            raise RecordError("", f"is not a list: {shown(value)}")
        target = getattr(message, name)
        i = 0
        try:
            for item in value:
                if item is None and not null_is_value:
                    raise RecordError("", "is null, which a list can't hold")
                if convert is not None:
                    target.append(convert(item))
                elif fill is not None:
                    fill(target.add(), item)
                i += 1
        except RecordError as error:
            raise error.below(f"[{i}]") from None

    return set_list


def _map_setter(field: FieldDescriptor, made: dict[str, Setter]) -> Setter:
    name = field.name
    assert field.message_type is not None  # noqa: S101 (a map's entry is a message)
    entry = field.message_type.fields_by_name
    key_of = scalars.key_converter(entry["key"])
    value_type = entry["value"].message_type
    fill = None if value_type is None else _message_filler(value_type, made)
    null_is_value = value_type is not None and value_type.full_name == "google.protobuf.Value"
    convert = scalars.converter(entry["value"]) if fill is None else None

    def set_map(message: Any, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise RecordError("", f"is not a JSON object: {shown(value)}")
        target = getattr(message, name)
        key: Any = ""
        try:
            for key, item in value.items():
                made_key = key_of(key)
                if made_key in target:  # 1, 01 and +1 are one key
                    raise RecordError("", "is given twice, also in another form")
                if item is None and not null_is_value:
                    raise RecordError("", "is null, which a map can't hold")
                if convert is not None:
                    target[made_key] = convert(item)
                elif fill is not None:
                    fill(target[made_key], item)
        except RecordError as error:
            raise error.below(f"[{key!r}]") from None

    return set_map


def _text_setter(field: FieldDescriptor, made: dict[str, Setter]) -> Setter:
    setter = _setter(field, made)
    kind = _full_name(field)
    read: Callable[[str], Any]
    if field.is_repeated or (kind is not None and kind not in (_TIMESTAMP, _DURATION, *_WRAPPERS)):
        read = scalars.json_cell
    elif kind == _TIMESTAMP:
        read = scalars.time_cell
    elif field.type == FieldDescriptor.TYPE_BOOL or kind == "google.protobuf.BoolValue":
        read = scalars.bool_cell
    elif field.type in scalars.TEXTS or kind in scalars.TEXT_WRAPPERS:
        return setter
    else:
        read = str.strip

    def set_cell(message: Any, text: str) -> None:
        setter(message, read(text))

    return set_cell


def _full_name(field: FieldDescriptor) -> str | None:
    return None if field.message_type is None else str(field.message_type.full_name)
