"""What a raw event's JSON says: Sparrow's shape and Segment's, read as `raw_normalized` reads them.

    name         event; for Segment's other calls their type: page, identify, …
    device_id    deviceId, else anonymousId, else context.device.id
    user_id      userId
    properties   properties; of identify and group traits. Of page and screen also name and category
    time_us      timestamp (RFC 3339, or a number, also as text), else when the collector took the
                 event

Nothing here judges: who sent it may have put anything into any of these.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from ingest.collector.events import without_halves
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["Found", "Unreadable", "read", "read_row", "taken_us"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A number is seconds below this, milliseconds below the next, else microseconds: the year 5138.
_SECONDS, _MILLISECONDS = 1e11, 1e14
_FAR = 2**62
# Text of so many digits is a date; of more it is a number.
_DATE_DIGITS = 8


class Unreadable(Exception):
    """The data of a raw event is no JSON object that can be read."""


# What a raw event says: its name (None where none is text), user_id, device_id, time_us,
# and its properties as they were sent, which need not be an object.
Found = tuple[str | None, str | None, str | None, int, Any]


# Fields are named as they are on the wire.
class _Data(msgspec.Struct, gc=False):
    event: Any = None
    type: Any = None
    name: Any = None
    category: Any = None
    deviceId: Any = None
    anonymousId: Any = None
    userId: Any = None
    timestamp: Any = None
    properties: Any = None
    traits: Any = None
    context: msgspec.Raw | None = None


class _Device(msgspec.Struct):
    id: Any = None


class _Context(msgspec.Struct):
    device: _Device | None = None


_decode = msgspec.json.Decoder(_Data).decode
_context = msgspec.json.Decoder(_Context).decode


def read(raw: RawEvent) -> Found:
    """What `raw` says. Raises Unreadable."""
    return read_row(raw.content_type, raw.data, taken_us(raw))


def taken_us(raw: RawEvent) -> int:
    """When the collector took it."""
    at = raw.received_at
    return at.seconds * 1_000_000 + at.nanos // 1000


def read_row(content_type: str, data: str, received_us: int) -> Found:
    """The same of a raw event's fields. Raises Unreadable."""
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        found = _mended(data)
    properties = found.properties
    name = found.event
    if type(name) is not str or not name:
        name = _call(content_type, found)
        properties = _of_call(name, found)
    user, device = found.userId, found.deviceId
    if user is not None and type(user) is not str:
        user = _text(user)
    if type(device) is not str or not device:
        device = _text(device) or _text(found.anonymousId)
        if device is None and found.context is not None:
            device = _of_context(found.context)
    time_us = received_us
    if found.timestamp is not None:
        time_us = _time(found.timestamp, received_us)
    return name, user or None, device, time_us, properties


def _mended(data: str) -> _Data:
    """The same by a reader that takes numbers beyond measure and halves of surrogate pairs."""
    try:
        known = json.loads(without_halves(data.encode()))
        # Raises where halves are left: too many of them are not mended.
        json.dumps(known, ensure_ascii=False).encode()
        if not isinstance(known, dict):
            raise Unreadable("its data is JSON, but not an object")
        fields = {name: known.get(name) for name in _Data.__struct_fields__}
        context = fields.pop("context")
        return _Data(**fields, context=None if context is None else _raw(context))
    except (ValueError, RecursionError, UnicodeError) as error:
        raise Unreadable(f"its data is not JSON: {error}") from None


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _call(content_type: str, found: _Data) -> str | None:
    """The kind of Segment's call; /v1/identify needs no `type`, its door has kept the name."""
    kind = _text(found.type) or content_type.rpartition("segment=")[2]
    return None if kind == content_type else kind or None


def _of_call(name: str | None, found: _Data) -> Any:
    properties = found.properties
    if name in ("identify", "group"):
        return found.traits if properties is None else properties
    if name in ("page", "screen") and (properties is None or isinstance(properties, dict)):
        top = {"name": found.name, "category": found.category}
        return {k: v for k, v in top.items() if v is not None} | (properties or {})
    return properties


def _text(value: Any) -> str | None:
    """An id: text that is not empty, or a whole number."""
    if type(value) is str:
        return value or None
    return str(value) if type(value) is int else None


def _of_context(context: msgspec.Raw) -> str | None:
    try:
        device = _context(context).device
    except (msgspec.MsgspecError, RecursionError):
        return None
    return None if device is None else _text(device.id)


def _time(said: Any, received_us: int) -> int:
    """Microseconds since 1970; without an offset it is UTC; what can't be read is `received_us`."""
    try:
        if type(said) is str and said.isdigit() and len(said) > _DATE_DIGITS:
            # fromisoformat would read milliseconds of 2026 as a day in 1795.
            said = int(said)
        if type(said) is str:
            try:
                moment = datetime.fromisoformat(said)
            except ValueError:
                # RFC 3339 has a small z too.
                moment = datetime.fromisoformat(said.upper())
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            since = moment - _EPOCH
            # Half the time of a division by a timedelta.
            return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        if type(said) is int or (type(said) is float and math.isfinite(said)):
            size = abs(said)
            if size < _FAR:
                unit = 1_000_000 if size < _SECONDS else 1_000 if size < _MILLISECONDS else 1
                return int(said * unit)
    except (ValueError, OverflowError):
        pass
    return received_us
