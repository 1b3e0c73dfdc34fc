"""Records on their way to Kafka, in the shape in which librdkafka takes them.

A backlog is sent at the speed of the loop in `add`: it makes the rows of `Producer.produce_batch`
out of a block's bytes, and nothing in between. A tuple for each record, as `unpack` makes them, and
a second loop over the tuples cost as much again. So do checksums one by one, which take longer to
be called than to run: a block has its own (schema.py), which the reader has verified, and each
frame the one of its value, for the ledger.
"""

from __future__ import annotations

import struct
from typing import Any

from ingest.spool.entry import RelaySum
from ingest.spool.frames import HEADER, HEADER_BYTES, LENGTHS, NO_ID, NO_KEY, placed

__all__ = ["Batch", "head"]


class Batch:
    """What a spool has of the numbers [`first`, `end`); one topic's records are in their order.

    Fewer records than numbers are what fsck has left. `crc` is the last one's checksum, `size`
    their bytes in the spool, `rows` what `produce_batch` takes, for each topic, `sums` what the
    ledger says of them, for each topic and source.
    """

    __slots__ = ("crc", "end", "first", "records", "rows", "size", "sums")

    def __init__(self, first: int) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.sums: dict[tuple[str, str], RelaySum] = {}
        self.first = self.end = first
        self.records = 0
        self.size = 0
        self.crc = 0

    def __len__(self) -> int:
        return self.records

    def add(self, data: bytes, first: int, count: int, start: int = 0) -> bool:
        """Take a sound block's records from number `start` on; False, and none, where it is none.

        The block's checksum has been looked at, so no frame's is, nor the numbers between the ends.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        sums: dict[tuple[str, str], RelaySum] = {}
        lengths = LENGTHS.unpack_from
        # What belongs to `place` from number `since` on is in `hashed`, and not in `sums` yet.
        place, since, hashed = b"", max(first, start), 0
        topic = source = ""
        rows: list[dict[str, Any]] = []
        put = rows.append
        at = 0
        try:
            for _ in range(first, start):
                at += lengths(data, at)[0]
            skipped = last = at
            for seq in range(since, first + count):
                last = at
                size, topic_size, id_size, key_size, summed = lengths(data, at)
                end = at + size
                at += HEADER_BYTES
                field = at + topic_size
                if data[at:field] != place:
                    if seq > since:
                        _add(sums, (topic, source), RelaySum(seq - since, hashed))
                    place, since, hashed = data[at:field], seq, 0
                    topic, source = placed(place)
                    put = found.setdefault(topic, []).append
                if id_size != NO_ID:
                    field += id_size
                if key_size == NO_KEY:
                    put({"value": data[field:end], "key": None})
                else:
                    at = field + key_size
                    put({"value": data[at:end], "key": data[field:at]})
                hashed += summed
                at = end
            crc, _, number, *_ = HEADER.unpack_from(data, last)
        except (struct.error, UnicodeDecodeError):
            return False
        if at != len(data) or number != first + count - 1:
            return False
        if first + count > since:
            _add(sums, (topic, source), RelaySum(first + count - since, hashed))
        for name, rows in found.items():
            self.rows.setdefault(name, []).extend(rows)
        for whose, one in sums.items():
            _add(self.sums, whose, one)
        self.records += first + count - max(first, start)
        self.size += len(data) - skipped
        self.end, self.crc = first + count, crc
        return True


def _add(sums: dict[tuple[str, str], RelaySum], whose: tuple[str, str], one: RelaySum) -> None:
    known = sums.get(whose)
    sums[whose] = one if known is None else known.plus(one)


def head(
    data: bytes, first: int, count: int, start: int, max_records: int, max_bytes: int
) -> tuple[int, bytes] | None:
    """The front of a block: of its records from number `start` on those that fit, at least one.

    How many records it has, with those before `start`, and its bytes. Of a block whose checksum is
    right; None where `count`, which that is not about, is found to be wrong.
    """
    start = max(first, start)
    stop = min(first + count, start + max_records)
    number, at, room = first, 0, max_bytes
    while number < stop:
        if at + HEADER_BYTES > len(data):
            return None
        size = LENGTHS.unpack_from(data, at)[0]
        if number >= start:
            room -= size
            if room < 0 and number > start:
                break
        at += size
        number += 1
    if number == first + count and at != len(data):
        return None
    return number - first, data[:at]
