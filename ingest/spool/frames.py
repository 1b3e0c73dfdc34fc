"""A record as bytes in the spool, and back; damage in one record does not reach the next.

A frame is a header and four fields one after the other, all integers little-endian:

    crc u32 | size u32 | seq u64 | at u64 | topic u16 | id u16 | key u32 | sum u32
    topic, id, key, value

`size` is the whole frame, `at` the time of arrival in µs since 1970; `topic`, `id` and `key` are
the lengths of those fields, all ones for none. What is left is the value. Behind the topic's name
and a NUL stands the record's source, where it has one.

`sum` is the value's CRC-32 (zlib's), made once, when it comes: what the ledger says of it is that
(entry.py). `crc` is CRC-32 over everything between itself and the value, so over `sum`, too. CRC-32
finds every error of up to 32 bits in a row, and misses one in 4 billion of the others; it is in the
standard library. It is there for disks that lie, not for people who do.

Sequence numbers within a block follow each other, so the frame behind a damaged one is found again
by its number, although the damaged length can't be trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

__all__ = [
    "HEADER", "HEADER_BYTES", "LENGTHS", "NO_ID", "NO_KEY", "Damage", "Record", "Stored",
    "frames_in", "front", "place", "placed", "salvage", "unpack",
]  # fmt: skip

HEADER = struct.Struct("<IIQQHHII")
HEADER_BYTES = HEADER.size
# Of a header: size, lengths of topic, id and key, sum. Numbers that nobody looks at cost, too.
LENGTHS = struct.Struct("<4xI16xHHII")
_BEHIND_CRC = struct.Struct("<IQQHHII")
_CRC = struct.Struct("<I")
_SEQ = struct.Struct("<Q")
_SEQ_AT = 8  # where the number stands in a frame
NO_ID = 0xFFFF
NO_KEY = 0xFFFFFFFF


class Record(NamedTuple):
    """What is given to a spool. `id` is the sender's: the same one again is stored once.

    Ids of all topics are one set; a caller whose senders may choose the same ones puts the sender's
    name in front. `source` is whose records these are, for the ledger: it is not sent to Kafka.
    `topic` takes at most 249 bytes in Kafka, `id` 1,000 in a spool; a source is short.
    """

    topic: str
    key: bytes | None
    value: bytes
    id: str | None = None
    source: str = ""


class Stored(NamedTuple):
    """A record of the spool. `at_us` is when it came; `crc` its frame's, which no other one has."""

    seq: int
    at_us: int
    crc: int
    topic: str
    key: bytes | None
    value: bytes
    id: str | None
    source: str = ""


class Damage(NamedTuple):
    """Bytes of a block that hold no valid frame; `first` to `last` are the records they held."""

    first: int
    last: int
    data: bytes


def place(topic: str, source: str) -> bytes:
    """What a frame has for its topic."""
    return f"{topic}\0{source}".encode() if source else topic.encode()


def placed(field: bytes) -> tuple[str, str]:
    """Topic and source of what a frame has there."""
    topic, _, source = field.decode().partition("\0")
    return topic, source


def front(
    seq: int, at_us: int, topic: bytes, key: bytes | None, value: bytes, ident: bytes | None
) -> bytes:
    """A frame but for the value, which follows it; `topic` as place() makes it.

    The value is not copied into it: that is done once, for a whole block.
    """
    id_size, key_size, fields = NO_ID, NO_KEY, topic
    if ident is not None:
        id_size = len(ident)
        fields += ident
    if key is not None:
        key_size = len(key)
        fields += key
    size = HEADER_BYTES + len(fields) + len(value)
    head = _BEHIND_CRC.pack(size, seq, at_us, len(topic), id_size, key_size, crc32(value)) + fields
    return _CRC.pack(crc32(head)) + head


def unpack(data: bytes, first: int, count: int, start: int = 0) -> list[Stored] | None:
    """All records of a block from number `start` on; None when anything in it is damaged."""
    found: list[Stored] = []
    places: dict[bytes, tuple[str, str]] = {}
    header, check, make = HEADER.unpack_from, crc32, tuple.__new__
    at = 0
    try:
        for seq in range(first, first + count):
            crc, size, number, at_us, topic_size, id_size, key_size, summed = header(data, at)
            end, begin = at + size, at + 4
            fields = at + HEADER_BYTES
            behind_id = fields + topic_size + (0 if id_size == NO_ID else id_size)
            at = behind_id + (0 if key_size == NO_KEY else key_size)
            value = data[at:end]
            # A slice beyond the end is shorter, and has another checksum.
            if number != seq or check(data[begin:at]) != crc or check(value) != summed:
                return None
            if seq >= start:
                name = data[fields : fields + topic_size]
                found_at = places.get(name)
                if found_at is None:
                    found_at = places[name] = placed(name)
                topic, source = found_at
                ident = data[fields + topic_size : behind_id].decode() if id_size != NO_ID else None
                key = data[behind_id:at] if key_size != NO_KEY else None
                # Stored(…) itself takes twice as long, a fifth of this loop.
                found.append(make(Stored, (seq, at_us, crc, topic, key, value, ident, source)))
            at = end
    except (struct.error, UnicodeDecodeError):
        return None
    return found if at == len(data) else None


def frames_in(data: bytes) -> int:
    """How many frames there are, by their sizes; of bytes that are as they were written."""
    count = at = 0
    while at + HEADER_BYTES <= len(data):
        at += max(_size(data, at), HEADER_BYTES)
        count += 1
    return count


def salvage(data: bytes, first: int, count: int) -> tuple[list[Stored], list[Damage]]:
    """The good records of a block, and what lies between them."""
    good: list[Stored] = []
    damaged: list[Damage] = []
    at, seq, last = 0, first, first + count
    while seq < last:
        following = _next_frame(data, at, seq, last)
        if following is None:
            damaged.append(Damage(seq, last - 1, data[at:]))
            return good, damaged
        start, record = following
        if record.seq > seq:
            damaged.append(Damage(seq, record.seq - 1, data[at:start]))
        good.append(record)
        at, seq = start + _size(data, start), record.seq + 1
    if at < len(data):
        # Nothing is missing, but there is more than was written.
        damaged.append(Damage(last, last - 1, data[at:]))
    return good, damaged


def _next_frame(data: bytes, at: int, seq: int, last: int) -> tuple[int, Stored] | None:
    """The first valid frame from `at` on with a number in [seq, last)."""
    for number in range(seq, last):
        for start in _places(data, at, number):
            end = start + _size(data, start)
            if end > start + HEADER_BYTES - 1:
                found = unpack(data[start:end], number, 1)
                if found:
                    return start, found[0]
    return None


def _places(data: bytes, at: int, seq: int) -> Iterator[int]:
    """Where a frame of that number may begin."""
    wanted = _SEQ.pack(seq)
    place = data.find(wanted, at + _SEQ_AT)
    while place >= 0:
        yield place - _SEQ_AT
        place = data.find(wanted, place + 1)


def _size(data: bytes, start: int) -> int:
    return int.from_bytes(data[start + 4 : start + 8], "little")
