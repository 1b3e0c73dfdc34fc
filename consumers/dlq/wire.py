"""A message's bytes as far as they decode, field by field; and the field at which they don't.

protobuf's own parser says yes or no. This one is for looking at what it refuses: it walks the wire
format along the message's descriptor and stops at the first thing that can't be.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["Broken", "Field", "walk"]

_VARINT, _I64, _LEN, _START, _END, _I32 = range(6)
_NAMES = {
    _VARINT: "a varint", _I64: "8 bytes", _LEN: "a length and so many bytes",
    _START: "a group", _END: "the end of a group", _I32: "4 bytes",
}  # fmt: skip
# protobuf's own limit is 100.
_DEEPEST = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_F = FieldDescriptor
_FIXED = {
    _F.TYPE_DOUBLE: (_I64, "<d"), _F.TYPE_FIXED64: (_I64, "<Q"), _F.TYPE_SFIXED64: (_I64, "<q"),
    _F.TYPE_FLOAT: (_I32, "<f"), _F.TYPE_FIXED32: (_I32, "<I"), _F.TYPE_SFIXED32: (_I32, "<i"),
}  # fmt: skip
_BY_LENGTH = {_F.TYPE_STRING, _F.TYPE_BYTES, _F.TYPE_MESSAGE}


class Field(NamedTuple):
    """One value; `path` is like `hops[2].address`, or `?15` for a number that the message lacks."""

    path: str
    value: str


class Broken(Exception):
    """Where it ends: the field, and the byte of the message at which that begins."""

    def __init__(self, path: str, at: int, reason: str) -> None:
        super().__init__(f"{path or 'a tag'} at byte {at}: {reason}")
        self.path, self.at, self.reason = path, at, reason


class _Short(Exception):
    """The text says what is wrong with the bytes."""


def walk(data: bytes, descriptor: Descriptor) -> Iterator[Field]:
    """The fields, in the order of the bytes. Raises Broken behind the last that is whole."""
    yield from _message(data, 0, len(data), descriptor, "", 0)


def _message(
    data: bytes, at: int, end: int, descriptor: Descriptor, above: str, depth: int
) -> Iterator[Field]:
    counts: dict[int, int] = {}
    while at < end:
        began, path = at, above.rstrip(".")
        try:
            tag, at = _varint(data, at, end)
            number, kind = tag >> 3, tag & 7
            field = descriptor.fields_by_number.get(number)
            path = f"{above}{field.name if field else f'?{number}'}"
            if field is not None and field.is_repeated:
                n = counts[number] = counts.get(number, -1) + 1
                path += f"[{n}]"
            if number == 0 or kind not in _NAMES:
                raise _Short(f"{tag} is no tag of protobuf")
            start, at = _extent(data, at, end, kind)
            if field is None:
                yield Field(path, f"{at - start} bytes of {_NAMES[kind]}")
            elif kind == _LEN and field.message_type is not None:
                time = _time(data[start:at], field.message_type)
                if time is not None:
                    yield Field(path, time)
                elif start == at:
                    yield Field(path, "{}")
                elif depth == _DEEPEST:
                    raise _Short("nested deeper than protobuf takes")
                else:
                    yield from _message(data, start, at, field.message_type, f"{path}.", depth + 1)
            else:
                yield Field(path, _value(data[start:at], kind, field))
        except _Short as error:
            raise Broken(path, began, str(error)) from None


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        if shift >= 70:
            raise _Short("a varint of more than ten bytes")
    raise _Short("it ends in the middle of a varint")


def _extent(data: bytes, at: int, end: int, kind: int) -> tuple[int, int]:
    """Where the content is."""
    if kind == _VARINT:
        return at, _varint(data, at, end)[1]
    if kind in (_START, _END):
        raise _Short("groups are not known here")
    size = 8 if kind == _I64 else 4
    if kind == _LEN:
        size, at = _varint(data, at, end)
    if size > end - at:
        raise _Short(f"it says {size:,} bytes, and {end - at:,} are left")
    return at, at + size


def _value(content: bytes, kind: int, field: FieldDescriptor) -> str:
    if field.type in _BY_LENGTH:
        if kind != _LEN:
            raise _Short(f"it is {_NAMES[kind]}, and should be {_NAMES[_LEN]}")
        if field.type == _F.TYPE_BYTES:
            return repr(content)
        try:
            return repr(content.decode())
        except UnicodeDecodeError as error:
            raise _Short(f"not UTF-8 from its byte {error.start}: {content!r}") from None
    expected, form = _FIXED.get(field.type, (_VARINT, ""))
    if kind == expected:
        return _scalar(content, field, form)
    if kind == _LEN and field.is_repeated:
        return "[" + ", ".join(_packed(content, field, form)) + "]"
    raise _Short(f"it is {_NAMES[kind]}, and should be {_NAMES[expected]}")


def _packed(content: bytes, field: FieldDescriptor, form: str) -> Iterator[str]:
    at = 0
    while at < len(content):
        begin = at
        at = at + struct.calcsize(form) if form else _varint(content, at, len(content))[1]
        if at > len(content):
            raise _Short("it ends in the middle of a number")
        yield _scalar(content[begin:at], field, form)


def _scalar(content: bytes, field: FieldDescriptor, form: str) -> str:
    if form:
        return str(struct.unpack(form, content)[0])
    number, _ = _varint(content, 0, len(content))
    if field.enum_type is None:
        return _VARINTS.get(field.type, str)(number)
    known = field.enum_type.values_by_number.get(_signed(number, 32))
    return known.name if known else str(_signed(number, 32))


def _signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (1 << bits) if number >> (bits - 1) else number


_VARINTS: dict[int, Callable[[int], str]] = {
    _F.TYPE_BOOL: lambda n: str(bool(n)).lower(),
    _F.TYPE_INT32: lambda n: str(_signed(n, 32)),
    _F.TYPE_INT64: lambda n: str(_signed(n, 64)),
    _F.TYPE_UINT32: lambda n: str(n & 0xFFFF_FFFF),
    _F.TYPE_SINT32: lambda n: str((n >> 1) ^ -(n & 1)),
    _F.TYPE_SINT64: lambda n: str((n >> 1) ^ -(n & 1)),
}


def _time(content: bytes, descriptor: Descriptor) -> str | None:
    """A Timestamp as people write it; None for what is none, or is broken or beyond the years."""
    if descriptor.full_name != "google.protobuf.Timestamp":
        return None
    try:
        found = {f.path: int(f.value) for f in walk(content, descriptor)}
        at = _EPOCH + timedelta(
            seconds=found.get("seconds", 0), microseconds=found.get("nanos", 0) / 1000
        )
    except (Broken, OverflowError, ValueError):
        return None
    return at.isoformat().replace("+00:00", "Z")
