"""What a ledger must say, computed one record after the other, with no code of the product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Found", "hash_of", "mixed", "truth"]

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
