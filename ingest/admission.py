"""Admission: a message that its stream can't hold is refused before it reaches Kafka.

A record that no destination can store would travel to the dead letters of each of them; here its
sender still knows where it came from. Rules, each with the field that breaks it:

* the key is set (text and bytes: not empty) and so is the time;
* the time and every other Timestamp column is within 1900..2299, what ClickHouse's DateTime64(6)
  and PostgreSQL's timestamptz both hold, and its nanos are within 0..999,999,999;
* no text holds a NUL, which PostgreSQL's text and jsonb can't hold; all text is UTF-8.

It is cheap for nearly every message, because it looks at the *serialised* bytes first. Where they
begin with the time, one expression knows a usual one: the object that protobuf makes of a Timestamp
costs three times as much. Text is looked at only where they hold a zero byte at all (one memchr).
Only then are the text fields walked, by a walker made once for the message type. proto3 parsers and
setters enforce UTF-8 themselves, so only messages with proto2 or editions syntax are always walked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message

from ingest.scalars import RecordError
from ingest.streams import TIMESTAMP, Stream

__all__ = ["Admission", "Refused"]

# 1900-01-01T00:00:00Z and 2300-01-01T00:00:00Z in seconds since 1970: DateTime64(6)'s range.
# https://clickhouse.com/docs/en/sql-reference/data-types/datetime64
FIRST_S = -2_208_988_800
END_S = 10_413_792_000

_ANY = "google.protobuf.Any"

# A Timestamp as it is written from 1978 to 2293, behind its tag: its length, seconds of five bytes
# (7 bits each, the lowest first), and nanos: none, of up to four bytes, or of five and below 10^9.
_USUAL_TIME = rb"""
    (?= \x06 | [\x08-\x0b] .{6} \x10 | \x0c .{6} \x10 (?: .{4} [\x01\x02] | .{3} [\x80-\xdb] \x03))
    . \x08 [\x80-\xff]{4} [\x01-\x25]
"""


class Refused(RecordError):
    """A message that its stream can't hold; `field` and `reason` as in RecordError."""


class Admission:
    """The checks of one stream, compiled once.

    `admit(message)` takes a message of the stream's class and returns its (key, value) for Kafka,
    or raises Refused. A text key is its UTF-8 bytes, a bytes key itself, any other is written as
    decimal text.
    """

    __slots__ = ("admit", "cls", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.cls = stream.message
        self.admit: Callable[[Any], tuple[bytes, bytes]] = _compile(stream)

    def parse(self, data: bytes) -> Message:
        """Ready bytes as a message. Raises Refused when they are not one of the stream."""
        try:
            return self.cls.FromString(data)
        except DecodeError as error:
            # upb says only "Error parsing message"; broken UTF-8 in text ends here too.
            raise Refused(
                "", f"the bytes are not a {self.cls.DESCRIPTOR.full_name}, or hold text that is "
                "not UTF-8"
            ) from error  # fmt: skip


def _compile(stream: Stream) -> Callable[[Any], tuple[bytes, bytes]]:
    key_field = stream.descriptor.fields_by_name[stream.key]
    key_name, time_name = stream.key, stream.time
    key_is_text = key_field.type == FieldDescriptor.TYPE_STRING
    key_is_sized = key_is_text or key_field.type == FieldDescriptor.TYPE_BYTES
    key_has_presence = key_field.has_presence
    key_is_bool = key_field.type == FieldDescriptor.TYPE_BOOL
    other_times = tuple(
        f.name
        for f in stream.descriptor.fields
        if f.name != time_name and not f.is_repeated and _is_timestamp(f)
    )
    # From the class: found on a message, it costs a look-up among its fields first, 0.2 µs.
    serialize: Callable[[Any], bytes] = stream.message.SerializeToString
    usual_time = _usual_time(stream)
    walk = _walker(stream.descriptor, {})
    always_walk = not _all_proto3(stream.descriptor, set())

    def key_of(message: Any) -> bytes:
        value = getattr(message, key_name)
        if key_is_sized:
            if not value:
                raise Refused(key_name, "is empty; the key must be set in every record")
            return value.encode() if key_is_text else bytes(value)
        if key_has_presence and not message.HasField(key_name):
            raise Refused(key_name, "is not set; the key must be set in every record")
        return (str(value).lower() if key_is_bool else str(value)).encode()

    def admit(message: Any) -> tuple[bytes, bytes]:
        # The one place where text may be undecodable is a proto2 field: upb reads it as bytes.
        try:
            key = getattr(message, key_name).encode() if key_is_text else b""
        except AttributeError:
            raise Refused(key_name, "is not UTF-8") from None
        if not key:
            key = key_of(message)
        try:
            data = serialize(message)
        except (EncodeError, ValueError) as error:  # proto2: a required field is missing
            raise Refused("", str(error)) from error
        if usual_time is None or not usual_time(data):
            time = getattr(message, time_name)
            seconds = time.seconds
            # An unset time reads as second 0: only then is it worth asking whether it is set.
            if not seconds and not message.HasField(time_name):
                raise Refused(time_name, "is not set; the time must be set in every record")
            if not FIRST_S <= seconds < END_S or not 0 <= time.nanos < 1_000_000_000:
                _refuse_time(time_name, time)
        for name in other_times:
            if message.HasField(name):
                other = getattr(message, name)
                if not FIRST_S <= other.seconds < END_S or not 0 <= other.nanos < 1_000_000_000:
                    _refuse_time(name, other)
        # `0 in`, an integer, is a memchr; `b"\0" in` first raises a TypeError inside, 0.9 µs.
        if always_walk or 0 in data:
            walk(message, "")
        return key, data

    return admit


def _usual_time(stream: Stream) -> Callable[[bytes], object] | None:
    """Whether bytes of a message begin with a usual time; None where the time is not first."""
    number = stream.descriptor.fields_by_name[stream.time].number
    # Fields are written in the order of their numbers, the tags of the first 15 in one byte.
    if number > 15 or number > min(field.number for field in stream.descriptor.fields):
        return None
    tag = re.escape(bytes([number << 3 | 2]))
    return re.compile(tag + _USUAL_TIME, re.DOTALL | re.VERBOSE).match


def _refuse_time(name: str, time: Any) -> None:
    # Without the number: a collector's reason holds no value (docs/collecting.md).
    if not 0 <= time.nanos < 1_000_000_000:
        raise Refused(name, "has nanos outside 0..999999999")
    raise Refused(name, "is outside the years 1900..2299 that databases hold")


def _is_timestamp(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == TIMESTAMP


_Walk = Callable[[Any, str], None]


def _walker(descriptor: Descriptor, made: dict[str, _Walk]) -> _Walk:
    """A function that raises Refused for text at or below a message that databases can't hold."""
    if descriptor.full_name in made:
        return made[descriptor.full_name]
    texts: list[str] = []
    text_lists: list[str] = []
    children: list[tuple[FieldDescriptor, _Walk]] = []
    maps: list[tuple[FieldDescriptor, bool, bool, _Walk | None]] = []

    def walk(message: Any, path: str) -> None:
        for name in texts:
            _check_text(path + name, getattr(message, name))
        for name in text_lists:
            for i, text in enumerate(getattr(message, name)):
                _check_text(f"{path}{name}[{i}]", text)
        for field, below in children:
            if field.is_repeated:
                for i, child in enumerate(getattr(message, field.name)):
                    below(child, f"{path}{field.name}[{i}].")
            elif message.HasField(field.name):
                below(getattr(message, field.name), f"{path}{field.name}.")
        for field, key_is_text, value_is_text, value_walk in maps:
            for key, value in getattr(message, field.name).items():
                where = f"{path}{field.name}[{key!r}]"
                _check_text(where, key if key_is_text else "")
                _check_text(where, value if value_is_text else "")
                if value_walk is not None:
                    value_walk(value, f"{where}.")

    # Known before its fields are, so that a message may hold itself.
    made[descriptor.full_name] = walk
    for field in descriptor.fields:
        child = field.message_type
        if child is not None and child.GetOptions().map_entry:
            key, value = child.fields_by_name["key"], child.fields_by_name["value"]
            below = _walker(value.message_type, made) if value.message_type else None
            is_text = FieldDescriptor.TYPE_STRING
            maps.append((field, key.type == is_text, value.type == is_text, below))
        elif child is not None:
            if child.full_name not in (TIMESTAMP, _ANY):
                children.append((field, _walker(child, made)))
        elif field.type == FieldDescriptor.TYPE_STRING:
            (text_lists if field.is_repeated else texts).append(field.name)
    return walk


def _check_text(path: str, text: str | bytes) -> None:
    if isinstance(text, bytes):  # proto2, see admit
        raise Refused(path, "is not UTF-8")
    if "\0" in text:
        raise Refused(path, "holds a NUL character, which PostgreSQL can't store")


def _all_proto3(descriptor: Descriptor, seen: set[str]) -> bool:
    """Whether every message at or below is of a proto3 file, whose text is always UTF-8."""
    if descriptor.full_name in seen:
        return True
    seen.add(descriptor.full_name)
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.file.CopyToProto(file)
    return file.syntax == "proto3" and all(
        _all_proto3(f.message_type, seen) for f in descriptor.fields if f.message_type is not None
    )
