"""Sums of records: counted, and hashed by their offsets in any order.

The hash of a set is the sum of r^offset modulo p, for one r and a prime p: two sets of a billion have the
same by chance once in a billion times. It is additive, so that parts can be put together and taken away;
and of offsets that follow each other it is a geometric series, so that a chunk of one hour costs two
powers, whatever its size. (A hash of each offset in Arrow is as good, and cost 10 % of the speed into
PostgreSQL: each of its calls lets go of the interpreter's lock, and waits for the polling thread.)
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from consumers.batch import Batch, Chunk, Partition

__all__ = ["HOUR_US", "MODULUS", "NOTHING", "Bucket", "Entry", "Sum", "entries_of"]

HOUR_US = 3_600_000_000

# A Mersenne prime: two sums of hashes still fit into 64 bits with a sign.
MODULUS = 2**61 - 1
# A primitive root of it, so that no two offsets have the same power.
_BASE = 2_113_714_168_260_792_373
_OF_BASE_LESS_ONE = pow(_BASE - 1, -1, MODULUS)


class Bucket(NamedTuple):
    """One partition, and one hour of event time: hours since 1970."""

    partition: Partition
    hour: int


class Sum(NamedTuple):
    """How many records, and the hash of which."""

    records: int
    hash: int

    def plus(self, other: Sum) -> Sum:
        return Sum(self.records + other.records, (self.hash + other.hash) % MODULUS)

    def minus(self, other: Sum) -> Sum:
        return Sum(self.records - other.records, (self.hash - other.hash) % MODULUS)


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
        rows: dict[int, Sum] = {}
        for chunk in batch.chunks:
            if chunk.partition == partition:
                for hour, one in _by_hour(chunk, time):
                    rows[hour] = rows.get(hour, NOTHING).plus(one)
        for hour, one in rows.items():
            landed = one.records if left is None else min(one.records, left.get(hour, 0))
            if left is not None:
                left[hour] = left.get(hour, 0) - landed
            found[Bucket(partition, hour)] = Entry(one, one.records - landed)
    for dead in batch.dead:
        bucket = Bucket(dead.partition, dead.time_us // HOUR_US)
        one = Sum(1, pow(_BASE, dead.offset, MODULUS))
        found[bucket] = found.get(bucket, Entry()).plus(Entry(dead=one))
    return found


def _by_hour(chunk: Chunk, time: str) -> Iterator[tuple[int, Sum]]:
    """The rows of a chunk, in parts; mostly they are of one hour."""
    if chunk.times_us is not None:
        first, last = (at // HOUR_US for at in chunk.times_us)
        if first == last:
            yield first, Sum(len(chunk.offsets), _hash(chunk.offsets))
            return
    # A stream's time is never null.
    times = chunk.rows.column(time).view(pa.int64()).to_pylist()
    counts: dict[int, int] = {}
    hashes: dict[int, int] = {}
    before, power = -2, 0
    for at, offset in zip(times, chunk.offsets, strict=True):
        power = power * _BASE % MODULUS if offset == before + 1 else pow(_BASE, offset, MODULUS)
        before, hour = offset, at // HOUR_US
        counts[hour] = counts.get(hour, 0) + 1
        hashes[hour] = hashes.get(hour, 0) + power
    for hour, count in counts.items():
        yield hour, Sum(count, hashes[hour] % MODULUS)


def _hash(offsets: Sequence[int]) -> int:
    """Of ascending offsets: the sum of the series of each run of them."""
    total = 0
    todo = [(0, len(offsets))]
    while todo:
        start, end = todo.pop()
        first, last = offsets[start], offsets[end - 1]
        if last - first == end - 1 - start:
            series = pow(_BASE, last + 1, MODULUS) - pow(_BASE, first, MODULUS)
            total += series * _OF_BASE_LESS_ONE % MODULUS
        else:
            middle = (start + end) // 2
            todo += [(start, middle), (middle, end)]
    return total % MODULUS
