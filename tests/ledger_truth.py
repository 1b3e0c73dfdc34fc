"""What a ledger must say, computed one record after the other, with no code of the product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import orjson

__all__ = ["Found", "hash_of", "mixed", "owed_in", "truth"]

# (partition's number, hour since 1970) -> how many records, and the hash of which.
Found = Mapping[tuple[int, int], tuple[int, int]]

_PRIME, _BASE = 2**61 - 1, 2_113_714_168_260_792_373


def mixed(offset: int) -> int:
    """The hash of one record."""
    return pow(_BASE, offset, _PRIME)


def truth(records: Iterable[tuple[int, int, float]]) -> Found:
    """Of (partition's number, offset, event time in seconds)."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for number, offset, seconds in records:
        at = (number, int(seconds // 3600))
        count, sum_ = found.get(at, (0, 0))
        found[at] = (count + 1, (sum_ + mixed(offset)) % _PRIME)
    return found


def hash_of(offsets: Iterable[int]) -> int:
    """The hash of several."""
    return sum(map(mixed, offsets)) % _PRIME


def owed_in(note: str) -> tuple[int | None, list[tuple[int, tuple[int, int], tuple[int, int]]]]:
    """What ClickHouse's ledger does not say yet, by the metadata of an offset.

    From which offset on, and of each hour the count and hash of rows and of dead letters.
    """
    start, _, _, hours = (orjson.loads(note) if note else {}).get("owed", (None, None, 0, ()))
    return start, [(hour, (n, rows), (m, dead)) for hour, n, rows, m, dead in hours]
