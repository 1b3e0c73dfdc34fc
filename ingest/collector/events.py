"""A product event on its way into the spool: untouched bytes, an id, a key, and RawEvent around it.

What both doors for events (sparrow.py, segment.py) share. Rules:

* `data` is the slice of the body that holds the event, byte for byte. Nothing is parsed and written
  anew.
* A body is JSON (RFC 8259) and UTF-8, or nothing of it is taken. NaN, trailing bytes and a byte order
  mark are not JSON.
* One half of a surrogate pair, escaped ("\\ud83d"), is let through: browsers write it for text that
  was cut inside an emoji. It is ASCII in `data`, so every database holds it.
* An id that the sender gave names the event for the spool, so that a retry is stored once. An id of
  ours is new each time, and the spool need not remember it.
"""  # noqa: E501

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

import msgspec

from ingest.collector.judge import BadBody, Caller, Judged, Limits, Refusal
from ingest.spool.frames import Record
from ingest.varint import varint

__all__ = [
    "MAX_ID", "TOPIC", "Body", "check_content_type", "judge_each", "too_deep", "uuid7",
    "without_halves",
]  # fmt: skip

TOPIC = "raw_events"

# An id's most characters: with a source in front it fits the spool's 1,000 bytes in any script.
MAX_ID = 200

# A Kafka key's most bytes. A longer one is cut: its events still share a partition, in order.
_MAX_KEY = 255

T = TypeVar("T")

_make = tuple.__new__

# A high surrogate without its low one, or a low one without its high one; for text in which every
# backslash begins an escape.
_HALVES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
# Beyond it halves are refused like any other that is not JSON: to replace them takes memory each.
_MOST_ESCAPES = 200_000
_BETWEEN = re.compile(rb"[ \t\n\r,]*")
_STRINGS = re.compile(rb'"[^"]*"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")


@lru_cache(maxsize=256)
def check_content_type(content_type: str) -> None:
    """JSON, or what browsers send without a preflight. Raises BadBody(415)."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    if kind not in ("", "application/json", "text/plain") and not kind.endswith("+json"):
        raise BadBody(415, "media_type", "the body must be application/json or text/plain")
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]*)", parameters)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise BadBody(415, "media_type", "the body must be UTF-8")


class Body:
    """A body that is UTF-8 text, and the events in it.

    Raises BadBody where it is not. `opens` is its first character that is not space.
    """

    __slots__ = ("_data", "_shown", "opens")

    def __init__(self, data: bytes) -> None:
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError as error:
                raise BadBody(
                    400, "not_utf8", f"the body is not UTF-8 (byte {error.start})"
                ) from None
            if data.startswith(b"\xef\xbb\xbf"):
                raise BadBody(400, "not_json", "the body begins with a byte order mark")
        self._data = data
        # What is parsed: the body itself, or of the same length without halves of pairs.
        self._shown = data
        self.opens = data[:64].lstrip(b" \t\n\r")[:1] or data.lstrip(b" \t\n\r")[:1]

    def decode(self, decode: Callable[[bytes], T]) -> T:
        """The body, by a decoder of msgspec. Raises BadBody if it is not JSON or does not fit."""
        try:
            try:
                return decode(self._shown)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                # A decoder takes no half of a pair.
                self._shown = without_halves(self._data)
                if self._shown is self._data:
                    raise
                return decode(self._shown)
        except msgspec.ValidationError as error:
            raise BadBody(400, "invalid", str(error)) from None
        except msgspec.DecodeError as error:
            raise BadBody(400, "not_json", f"the body is not JSON: {error}") from None
        except RecursionError:
            raise BadBody(400, "too_deep", "the body is nested too deeply") from None

    def whole(self) -> tuple[bytes, bytes]:
        """The body as one event, without the space around it: its bytes, and the same to parse."""
        data = self._data.strip(b" \t\n\r")
        return data, data if self._shown is self._data else self._shown.strip(b" \t\n\r")

    def elements(
        self, slices: Sequence[msgspec.Raw], array: Callable[[bytes], msgspec.Raw] | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Of each element of an array: its bytes, and the same to parse.

        The array is the body, or what `array` finds in it. Raises BadBody.
        """
        if self._shown is self._data:
            return [(data, data) for data in map(bytes, slices)]
        inner = self._shown.strip(b" \t\n\r") if array is None else bytes(array(self._shown))
        at = self._shown.find(inner) + 1
        if self._shown.find(inner, at) >= 0:
            # It stands in the body a second time, and there it may have had other halves.
            raise BadBody(400, "not_json", "the body holds halves of surrogate pairs")
        found = []
        for part in map(bytes, slices):
            between = _BETWEEN.match(self._shown, at)
            at = between.end() if between else at
            found.append((self._data[at : at + len(part)], part))
            at += len(part)
        return found


def without_halves(data: bytes) -> bytes:
    """The same with U+FFFD, as long, for each half of a surrogate pair; itself if there is none."""
    if b"\\u" not in data or b"\0" in data or data.count(b"\\u") > _MOST_ESCAPES:
        return data
    # Escaped backslashes out of the way: pairs from the left, as a parser reads them.
    apart = data.replace(b"\\\\", b"\0\0")
    whole = _HALVES.sub(rb"\\ufffd", apart)
    return data if whole == apart else whole.replace(b"\0\0", b"\\\\")


def judge_each(
    events: Sequence[tuple[bytes, bytes]],
    read: Callable[[bytes], tuple[str | None, str | None]],
    content_type: str,
    caller: Caller,
    limits: Limits,
    now_us: int,
    topic: str,
) -> Judged:
    """Events one by one; `read` tells the sender's id and the key, or raises msgspec's error.

    A record's value is a RawEvent, whose bytes are put together here: all but the id and the data
    are the same for a whole request, and setting the fields of a message takes four times as long.
    Raises BadBody when there are too many of them.
    """
    if len(events) > limits.records:
        raise BadBody(413, "too_many", f"a request may have {limits.records} events")
    records: list[Record] = []
    refused: list[Refusal] = []
    depth, most = limits.depth, limits.record_bytes
    prefix, source, tail = _same_for_all(caller, content_type)
    # Fields in the order of their numbers, as protobuf itself writes them.
    middle = _received_at(now_us) + source
    ids: Iterator[str] | None = None
    for index, (data, shown) in enumerate(events):
        if shown[0] != 0x7B:  # {
            refused.append(Refusal(index, "not_an_object", "an event must be a JSON object"))
            continue
        if len(shown) > most:
            refused.append(_too_large(index, most))
            continue
        if _brackets(shown) > depth and too_deep(shown, depth):
            refused.append(Refusal(index, "too_deep", f"an event may have {depth} levels"))
            continue
        try:
            given, key = read(shown)
        except (msgspec.DecodeError, RecursionError) as error:
            refused.append(Refusal(index, "invalid", str(error)))
            continue
        if given:
            if "\0" in given or (data is not shown and "\ufffd" in given):
                # A NUL is not for PostgreSQL, and ids that differ in halves would be taken for one.
                refused.append(Refusal(index, "invalid", "the event's id holds no valid text"))
                continue
            ident, name = given.encode(), prefix + given
        else:
            ids = ids or uuid7(now_us)
            ident, name = next(ids).encode(), None
        value = b"".join((_EVENT_ID, _length(ident), ident, middle, _length(data), data, tail))
        if len(value) > most:
            refused.append(_too_large(index, most))
            continue
        kafka_key = (key.encode() if key else ident)[:_MAX_KEY]
        # Record(…) itself takes twice as long.
        records.append(_make(Record, (topic, kafka_key, value, name, caller.source)))
    return Judged(records, refused)


def _too_large(index: int, most: int) -> Refusal:
    return Refusal(index, "too_large", f"an event may have {most} bytes, RawEvent's own among them")


def _brackets(data: bytes) -> int:
    """How many open, those in text too: by far the most have too few to be too deep.

    bytes.replace() searches with memchr; count() takes twice as long, and it was a tenth of all.
    """
    return len(data) - len(data.replace(b"{", b"").replace(b"[", b""))


def too_deep(data: bytes, depth: int) -> bool:
    """Whether JSON has more levels of objects and arrays than that; brackets in text don't count."""  # noqa: E501
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRINGS.sub(b"", plain).translate(_STEPS, _NOT_BRACKETS)
    # An opening bracket is +1 and a closing one -1, as signed bytes.
    return max(accumulate(memoryview(brackets).cast("b")), default=0) > depth


def uuid7(now_us: int) -> Iterator[str]:
    """UUIDs of version 7 (RFC 9562, 5.7) of one millisecond, each above the one before.

    74 random bits, the lowest 62 of which are then counted up (6.2, method 2).
    """
    random = int.from_bytes(os.urandom(10), "big")
    high = f"{now_us // 1000 & 0xFFFF_FFFF_FFFF:012x}7{random >> 62 & 0xFFF:03x}"
    head = f"{high[:8]}-{high[8:12]}-{high[12:]}-"
    low = random & 0x3FFF_FFFF_FFFF_FFFF
    while True:
        text = f"{low | 1 << 63:016x}"
        yield f"{head}{text[:4]}-{text[4:]}"
        low = low + 1 & 0x3FFF_FFFF_FFFF_FFFF


@lru_cache(maxsize=256)
def _same_for_all(caller: Caller, content_type: str) -> tuple[str, bytes, bytes]:
    """What stands in front of ids, between the time and the data, and behind the data."""
    headers = sorted(dict(caller.headers).items())
    entries = (_field(1, name.encode()) + _field(2, text.encode()) for name, text in headers)
    network = _field(6, caller.network.encode()) if caller.network else b""
    return (
        # Logs have `:l:` there (logs.py): ids of the two never meet.
        f"{caller.source}:e:",
        (_field(3, caller.source.encode()) if caller.source else b"")
        + _field(4, content_type.encode())
        + _DATA,
        network + b"".join(_field(7, entry) for entry in entries),
    )


def _received_at(now_us: int) -> bytes:
    """The field of that name, a Timestamp; by protobuf it takes half as long again."""
    second, micros = divmod(now_us, 1_000_000)
    time = _second(second) + (b"\x10" + varint(micros * 1000) if micros else b"")
    return b"\x12" + _LENGTHS[len(time)] + time


@lru_cache(maxsize=4)
def _second(second: int) -> bytes:
    return b"\x08" + varint(second) if second else b""


# RawEvent's fields, see proto/headrace/v1/raw_event.proto.
_EVENT_ID = b"\x0a"
_DATA = b"\x2a"


# Of nearly every event's size.
_LENGTHS = tuple(map(varint, range(4096)))


def _length(data: bytes) -> bytes:
    size = len(data)
    return _LENGTHS[size] if size < len(_LENGTHS) else varint(size)


def _field(number: int, data: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(data)) + data
