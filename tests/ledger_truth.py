"""What a ledger must say, computed one record after the other, with no code of the product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Found", "mixed", "truth"]

# (partition's number, hour since 1970) -> how many records, and the hash of which.
Found = Mapping[tuple[int, int], tuple[int, int]]

_WORD = 2**64


def mixed(offset: int) -> int:
    """splitmix64 of a number."""
    z = (offset + 0x9E3779B97F4A7C15) % _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % _WORD
    return z ^ (z >> 31)


def truth(records: Iterable[tuple[int, int, float]]) -> Found:
    """Of (partition's number, offset, event time in seconds)."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for number, offset, seconds in records:
        at = (number, int(seconds // 3600))
        count, sum_ = found.get(at, (0, 0))
        found[at] = (count + 1, (sum_ + mixed(offset)) % _WORD)
    return found
