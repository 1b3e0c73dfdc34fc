"""Sums of records: counted, and hashed by their offsets in any order.

The hash of a set is the sum of splitmix64(offset) modulo 2^64. It is additive, so that parts can be put
together and taken away, and the same in Arrow (25,000 records in 0.4 ms) and in ClickHouse (`MIX_SQL`).
"""  # noqa: E501

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from consumers.batch import Batch, Partition

__all__ = [
    "HOUR_US", "MIX_SQL", "NOTHING", "Bucket", "Entry", "Sum", "add_up", "entries_of", "sums",
]  # fmt: skip

HOUR_US = 3_600_000_000
_MASK = 2**64 - 1
# Division rounds towards 0, so hours are counted from long before every event.
_EARLY_H = 1_000_000

# The constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# The same in ClickHouse, where UInt64 wraps, too: `WITH MIX_SQL SELECT sum(mixed) …`.
MIX_SQL = (
    f"toUInt64(_offset) + toUInt64('{_GAMMA}') AS m0, "
    f"bitXor(m0, bitShiftRight(m0, 30)) * toUInt64('{_FIRST}') AS m1, "
    f"bitXor(m1, bitShiftRight(m1, 27)) * toUInt64('{_SECOND}') AS m2, "
    "bitXor(m2, bitShiftRight(m2, 31)) AS mixed"
)


class Bucket(NamedTuple):
    """One partition, and one hour of event time: hours since 1970."""

    partition: Partition
    hour: int


class Sum(NamedTuple):
    """How many records, and the hash of which."""

    records: int
    hash: int

    def plus(self, other: Sum) -> Sum:
        return Sum(self.records + other.records, (self.hash + other.hash) & _MASK)

    def minus(self, other: Sum) -> Sum:
        return Sum(self.records - other.records, (self.hash - other.hash) & _MASK)


NOTHING = Sum(0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a bucket's records at one destination.

    `rows` are those that were to land; `dropped` of them were in the table already (`dedupe`).
    """

    rows: Sum = NOTHING
    dropped: int = 0
    dead: Sum = NOTHING

    @property
    def landed(self) -> int:
        return self.rows.records - self.dropped

    @property
    def settled(self) -> Sum:
        """All that this destination is done with."""
        return self.rows.plus(self.dead)

    def plus(self, other: Entry) -> Entry:
        return Entry(
            self.rows.plus(other.rows), self.dropped + other.dropped, self.dead.plus(other.dead)
        )


def entries_of(batch: Batch, new: Mapping[int, int] | None = None) -> dict[Bucket, Entry]:
    """What a batch adds to the ledger.

    `new` says how many of its rows of an hour the table did not have; without it, all of them.
    Which partition those came from nobody knows: the first gets as many as it brought.
    """
    time = batch.stream.column(batch.stream.time)
    found: dict[Bucket, Entry] = {}
    left = None if new is None else dict(new)
    for partition in batch.spans:
        chunks = [c for c in batch.chunks if c.partition == partition]
        if chunks:
            # A stream's time is never null.
            times = pa.concat_arrays([c.rows.column(time).view(pa.int64()) for c in chunks])
            offsets = array("q")
            for chunk in chunks:
                offsets.extend(chunk.offsets)
            rows = sums(times, offsets)
            for hour, one in rows.items():
                landed = one.records if left is None else min(one.records, left.get(hour, 0))
                if left is not None:
                    left[hour] = left.get(hour, 0) - landed
                found[Bucket(partition, hour)] = Entry(one, one.records - landed)
        dead = [d for d in batch.dead if d.partition == partition]
        if dead:
            times = pa.array([d.time_us for d in dead], pa.int64())
            for hour, one in sums(times, array("q", (d.offset for d in dead))).items():
                bucket = Bucket(partition, hour)
                found[bucket] = found.get(bucket, Entry()).plus(Entry(dead=one))
    return found


def sums(times_us: pa.Array, offsets: array[int]) -> dict[int, Sum]:
    """Records of one partition, by their hours; all times are set."""
    first = pa.scalar(_EARLY_H * HOUR_US, pa.int64())
    hours = pc.divide(pc.add(times_us, first), pa.scalar(HOUR_US, pa.int64()))
    raw = pa.Array.from_buffers(pa.uint64(), len(offsets), [None, pa.py_buffer(offsets)])
    found = (
        pa.table({"hour": hours, "mixed": _mix(raw)})
        .group_by("hour", use_threads=False)
        .aggregate([("mixed", "count"), ("mixed", "sum")])
    )
    columns = (found.column(n).to_pylist() for n in ("hour", "mixed_count", "mixed_sum"))
    return {h - _EARLY_H: Sum(n, hash_) for h, n, hash_ in zip(*columns, strict=True)}


def add_up(into: dict[Bucket, Sum], partition: Partition, found: Mapping[int, Sum]) -> None:
    """Add sums by hour to those that are known."""
    for hour, one in found.items():
        bucket = Bucket(partition, hour)
        into[bucket] = into.get(bucket, NOTHING).plus(one)


def _mix(z: pa.Array) -> pa.Array:
    z = pc.add(z, _number(_GAMMA))
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        z = pc.multiply(pc.bit_wise_xor(z, pc.shift_right(z, _number(shift))), _number(factor))
    return pc.bit_wise_xor(z, pc.shift_right(z, _number(31)))


def _number(value: int) -> pa.Scalar:
    return pa.scalar(value, pa.uint64())
