"""Names, values and times as vendors want them; what they would spoil without a word is refused.

Helpers for the vendors' files. Each raises Unfit, whose text names the property but never shows its
value: receipts are read by more people than the events are.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson

from consumers.trace.event import Event, Value
from consumers.vendors.request import Code, Unfit

__all__ = ["as_text", "moment", "no_longer_than", "not_reserved", "to_json", "uuid_of", "who"]

_EPOCH = datetime(1970, 1, 1)  # naive: to_json writes it as UTC
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Never to change: what was sent under a key made with it must be known again.
_KEYS = uuid.UUID("6f1e5c0a-8a3b-5d57-9b56-2f1f0f4e7c11")
_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def to_json(document: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8; naive datetimes as ISO 8601 in UTC. Raises Unfit."""
    try:
        return orjson.dumps(document, option=_OPTIONS)
    except TypeError as error:
        # Whole numbers beyond 64 bits: most vendors read numbers as doubles.
        raise Unfit(Code.VALUE_INVALID, f"it can't be written as JSON: {error}") from None


def moment(time_us: int) -> datetime:
    """A time for `to_json`, to the microsecond. Raises Unfit outside of the years 1 to 9999."""
    try:
        return _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        raise Unfit(Code.TIME_INVALID, "its time is not in the years 1 to 9999") from None


def who(event: Event, longest: int) -> str:
    """The one id of vendors that have one: the user's, else the device's. Raises Unfit."""
    found = event.user_id or event.device_id
    if not found:
        raise Unfit(Code.ID_MISSING, "it has neither a user nor a device")
    if len(found) > longest:
        raise Unfit(Code.ID_INVALID, f"its user or device id is longer than {longest} characters")
    return found


def uuid_of(key: str) -> str:
    """The key itself if it is a UUID, else a UUID that is made from it, always the same."""
    return key if _UUID.fullmatch(key) else str(uuid.uuid5(_KEYS, key))


def not_reserved(properties: Mapping[str, Value], reserved: Collection[str], vendor: str) -> None:
    """Raises Unfit for a property under a name that the vendor uses itself."""
    for name in reserved:
        if name in properties:
            text = f"property {name!r} is {vendor}'s own; rename it in [trace]"
            raise Unfit(Code.PROPERTY_RESERVED, text)


def no_longer_than(
    properties: Mapping[str, Value], most: int, *, cut: bool, vendor: str
) -> Mapping[str, Value]:
    """The properties with text of at most so many characters: cut, or else Unfit."""
    long = [n for n, v in properties.items() if isinstance(v, str) and len(v) > most]
    if not long:
        return properties
    if not cut:
        text = f"property {long[0]!r} is longer than {most} characters; {vendor} would cut it"
        raise Unfit(Code.VALUE_TOO_LONG, f"{text} (cut_long_text = true cuts it here)")
    shorter = dict(properties)
    for name in long:
        shorter[name] = str(properties[name])[:most]
    return shorter


def as_text(properties: Mapping[str, Value]) -> dict[str, str | int | float]:
    """For vendors that know only text and numbers: true and false as words, without nulls."""
    return {
        name: ("true" if value else "false") if isinstance(value, bool) else value
        for name, value in properties.items()
        if value is not None
    }
