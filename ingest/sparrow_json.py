"""An event as JSON. It holds what end users have typed: what the collector takes is no error here.

orjson refuses two things that are JSON and that json.loads() gives: half of a surrogate pair, as of
an emoji that was cut in two, and integers beyond 64 bits. An event with such is written by `json`,
slower, and by orjson's rules otherwise: names are text, what is not finite is null, and Decimal or
a nesting of more than 254 levels is an error.
"""

from __future__ import annotations

import dataclasses
import json
import math
from enum import Enum
from typing import Any

import orjson

__all__ = ["encode"]

# orjson's; the collector takes 64.
_LEVELS = 254


def encode(event: dict[str, Any]) -> bytes:
    """UTF-8, where a half is its escape, as browsers write it. Raises TypeError for others."""
    try:
        return orjson.dumps(event)
    except orjson.JSONEncodeError as error:
        try:
            text = json.dumps(
                _plain(event, _LEVELS), ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
        except (AttributeError, TypeError, ValueError, RecursionError):
            # A field that was never set; an integer of more digits than Python writes (4,300).
            raise TypeError(f"an event can't be written as JSON: {error}") from None
    # Of text only a half of a pair is not UTF-8, and Python's escape of it is JSON's.
    return text.encode("utf-8", "backslashreplace")


def _plain(value: Any, levels: int) -> Any:
    """The same of nothing but what `json` writes as orjson would."""
    if levels < 0:
        raise TypeError("nested too deeply")
    if isinstance(value, Enum):
        return _plain(value.value, levels)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What it holds, also beyond its fields, and not what it does not.
        fields = (field.name for field in dataclasses.fields(value))
        names = fields if "__slots__" in vars(type(value)) else vars(value)
        value = {name: getattr(value, name) for name in names if not name.startswith("_")}
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise TypeError("a name that is no text")
        return {name: _plain(held, levels - 1) for name, held in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return [_plain(held, levels - 1) for held in value]
    # Dates, times, UUIDs; a TypeError for anything else.
    return orjson.loads(orjson.dumps(value))
