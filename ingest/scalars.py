"""One JSON value, or one cell of CSV, as a protobuf value; or a RecordError that says why not.

Reasons have the form `what is wrong: the value`, so that a report can count them by what is wrong.
"""

from __future__ import annotations

import binascii
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson
from google.protobuf.descriptor import FieldDescriptor

__all__ = [
    "TEXTS", "TEXT_WRAPPERS", "RecordError", "bool_cell", "converter", "fill_duration",
    "fill_timestamp", "json_cell", "key_converter", "shown", "time_cell",
]  # fmt: skip

Converter = Callable[[Any], Any]


class RecordError(ValueError):
    """A record does not fit its message.

    `field` is dotted, with [index] or ['key'], and "" for the record as a whole; `reason` and the
    text are for people.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason

    def below(self, parent: str) -> RecordError:
        """The same, seen from the message that holds it."""
        dot = "." if self.field and not self.field.startswith("[") else ""
        return RecordError(f"{parent}{dot}{self.field}", self.reason)


def shown(value: Any) -> str:
    """A value for a message: as JSON writes it, cut at 60 characters."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


_T = FieldDescriptor
TEXTS = {_T.TYPE_STRING, _T.TYPE_BYTES}
TEXT_WRAPPERS = {"google.protobuf.StringValue", "google.protobuf.BytesValue"}

_RANGES = {
    **dict.fromkeys((_T.TYPE_INT32, _T.TYPE_SINT32, _T.TYPE_SFIXED32), (-(2**31), 2**31 - 1)),
    **dict.fromkeys((_T.TYPE_INT64, _T.TYPE_SINT64, _T.TYPE_SFIXED64), (-(2**63), 2**63 - 1)),
    **dict.fromkeys((_T.TYPE_UINT32, _T.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((_T.TYPE_UINT64, _T.TYPE_FIXED64), (0, 2**64 - 1)),
}
# What is below is rounded to a float, the largest at most; protobuf's own JSON writes that one as
# 3.4028235e+38, which is a little more than it is (and which its reader refuses).
_FLOAT_MAX = math.nextafter((2 - 2**-24) * 2.0**127, 0)
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

# 40 digits: far more than any integer has, and int() of endless text takes quadratic time.
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}").fullmatch
# No digit is given back once it is taken: 40,000 of them and a letter took half a minute.
_NUMBER = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?").fullmatch
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}").fullmatch
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})T((?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
).fullmatch
_DURATION = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s").fullmatch
_DURATION_MAX_S = 315_576_000_000  # ±10,000 years, protobuf's limit
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def converter(field: FieldDescriptor) -> Converter:
    """What turns a JSON value into a value of a scalar field (or of one item of a repeated one)."""
    if field.type in _RANGES:
        return _integer(*_RANGES[field.type])
    if field.type in (_T.TYPE_DOUBLE, _T.TYPE_FLOAT):
        return _floating(_FLOAT_MAX if field.type == _T.TYPE_FLOAT else math.inf)
    if field.type == _T.TYPE_ENUM:
        return _enum(field)
    return {_T.TYPE_BOOL: _bool, _T.TYPE_STRING: _text, _T.TYPE_BYTES: _bytes}[field.type]


def key_converter(field: FieldDescriptor) -> Converter:
    """What turns a name of a JSON object into a key of a map field."""
    if field.type == _T.TYPE_BOOL:
        return _bool_key
    return converter(field)


def _integer(low: int, high: int) -> Converter:
    def convert(value: Any) -> int:
        if type(value) is not int:
            value = _as_integer(value)
        if not low <= value <= high:
            raise RecordError("", f"is outside {low}..{high}: {value}")
        return int(value)

    return convert


def _as_integer(value: Any) -> int:
    if isinstance(value, str):
        if _INTEGER(value):
            return int(value)
        if _NUMBER(value) and (number := _whole(value)) is not None:
            return number
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        # From 2**53 on a double may stand for a neighbour; orjson also makes one of an integer that
        # has more than 64 bits.
        if abs(value) >= 2**53:
            raise RecordError("", f"is not exact; write it as text: {shown(value)}")
        return int(value)
    raise RecordError("", f"is not an integer: {shown(value)}")


def _whole(text: str) -> int | None:
    """A number such as 7.0 or 1e3, exactly; None where it has a fraction."""
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None
    if number and number.adjusted() > 40:
        raise RecordError("", f"is too large: {shown(text)}")
    return int(number) if number == number.to_integral_value() else None


def _floating(limit: float) -> Converter:
    def convert(value: Any) -> float:
        if type(value) is str:
            if value in _SPECIAL:
                return _SPECIAL[value]
            if not _NUMBER(value):
                raise RecordError("", f"is not a number: {shown(value)}")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise RecordError("", f"is not a number: {shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= limit or math.isinf(number):
            why = "is NaN; write it as text" if math.isnan(number) else "is too large"
            raise RecordError("", f"{why}: {shown(value)}")
        return number

    return convert


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecordError("", f"is not true or false: {shown(value)}")
    return value


def _bool_key(value: Any) -> bool:
    if value not in ("true", "false"):
        raise RecordError("", "is not true or false, as the key of this map must be")
    return bool(value == "true")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RecordError("", f"is not text: {shown(value)}")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):  # not from JSON: a mapping that was made in Python
        return value
    if isinstance(value, str):
        # protobuf takes both alphabets, with and without padding.
        text = value.replace("-", "+").replace("_", "/").rstrip("=")
        padding = "=" * (-len(text) % 4)
        if _BASE64(value.replace("-", "+").replace("_", "/")):
            try:
                return binascii.a2b_base64(text + padding)
            except binascii.Error:
                pass
    raise RecordError("", f"is not base64: {shown(value)}")


def _enum(field: FieldDescriptor) -> Converter:
    enum = field.enum_type
    assert enum is not None  # noqa: S101 (its type says so)
    numbers = {v.name: v.number for v in enum.values}
    known = set(enum.values_by_number)
    names = ", ".join(list(numbers)[:8]) + (", …" if len(numbers) > 8 else "")

    def convert(value: Any) -> int:
        number = numbers.get(value) if isinstance(value, str) else None
        if number is None:
            try:
                number = _as_integer(value)
            except RecordError:
                raise RecordError("", f"is not one of {names}: {shown(value)}") from None
            if number not in known and (enum.is_closed or not -(2**31) <= number < 2**31):
                raise RecordError("", f"is not one of {names}: {shown(value)}")
        return number

    return convert


def fill_timestamp(message: Any, value: Any) -> None:
    """Set a Timestamp from RFC 3339 text (or, from Python, a datetime that knows its zone)."""
    # The usual form, 2025-06-16T22:50:12.226Z or .226000Z: fromisoformat is three times faster
    # than a pattern, but alone would also take week dates, commas, missing colons, and since
    # Python 3.14 the hour 24.
    if (
        type(value) is str
        and len(value) in (20, 24, 27)
        and value[-1] == "Z"
        and value[10] == "T"
        and value[11:13] < "24"
        and value[7] == "-"
        and value[13] == ":"
        and value[19] in ".Z"
        and value.isascii()
    ):
        try:
            since = datetime.fromisoformat(value) - _EPOCH
        except ValueError as error:
            raise RecordError("", f"is not a time ({error}): {shown(value)}") from None
        message.seconds = since.days * 86_400 + since.seconds
        message.nanos = since.microseconds * 1_000
    else:
        message.seconds, message.nanos = _time(value)


def _time(value: Any) -> tuple[int, int]:
    if isinstance(value, datetime) and value.tzinfo is not None:
        since = value - _EPOCH
        return since.days * 86_400 + since.seconds, since.microseconds * 1_000
    match = _TIME(value) if isinstance(value, str) else None
    if match is None:
        raise RecordError("", f"is not a time such as 2025-06-16T22:50:12.226Z: {shown(value)}")
    date, clock, fraction, sign, hours, minutes = match.groups()
    try:
        since = datetime.fromisoformat(f"{date}T{clock}Z") - _EPOCH
    except ValueError as error:
        raise RecordError("", f"is not a time ({error}): {shown(value)}") from None
    seconds = since.days * 86_400 + since.seconds
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            raise RecordError("", f"is not a time (zone out of range): {shown(value)}")
        offset = int(hours) * 3_600 + int(minutes) * 60
        seconds += offset if sign == "-" else -offset
    # protobuf's own limits: the years 1 to 9999, in UTC.
    if not -62_135_596_800 <= seconds <= 253_402_300_799:
        raise RecordError("", f"is outside the years 1..9999: {shown(value)}")
    return seconds, int(fraction.ljust(9, "0")) if fraction else 0


def fill_duration(message: Any, value: Any) -> None:
    """Set a Duration from text such as "1.5s"."""
    match = _DURATION(value) if isinstance(value, str) else None
    if match is None:
        raise RecordError("", f"is not a duration such as 1.5s: {shown(value)}")
    sign = -1 if match[1] else 1
    seconds, nanos = int(match[2]), int((match[3] or "").ljust(9, "0"))
    if seconds > _DURATION_MAX_S or (seconds == _DURATION_MAX_S and nanos):
        raise RecordError("", f"is longer than 10,000 years: {shown(value)}")
    message.seconds, message.nanos = sign * seconds, sign * nanos


def json_cell(text: str) -> Any:
    """A cell that holds JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RecordError("", f"is not JSON ({error}): {shown(text)}") from None


_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def bool_cell(text: str) -> bool:
    """true, false, 1 or 0, in any case."""
    try:
        return _BOOLS[text.strip().lower()]
    except KeyError:
        raise RecordError("", f"is not true, false, 1 or 0: {shown(text)}") from None


def time_cell(text: str) -> str:
    """A time whose T may be a space and whose zone may be missing, as RFC 3339 text."""
    text = text.strip()
    if len(text) > 10 and text[10] == " ":
        text = text[:10] + "T" + text[11:]
    if len(text) > 18 and text[-1] not in "Zz" and "+" not in text[19:] and "-" not in text[19:]:
        text += "Z"
    return text
