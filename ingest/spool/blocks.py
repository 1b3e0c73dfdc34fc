"""Frames that came together, as rows of the table `blocks`."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from ingest.spool.frames import HEADER_BYTES

__all__ = ["MOST_RECORDS", "Row", "block", "cut", "is_row"]

# first, count, at_us, crc, data
Row = tuple[int, int, int, int, bytes]

# Bytes of a block: large enough that SQLite's own work does not count, small enough that one
# damaged page spoils little.
_BLOCK_BYTES = 256 * 1024
# No block has more; one that is larger is a single record.
MOST_RECORDS = _BLOCK_BYTES // HEADER_BYTES


def is_row(row: Sequence[object]) -> bool:
    """Whether first, count, at_us, crc and data are what was written there, by their types: in a
    file with a wrong bit any of them may be another."""
    *numbers, data = row
    first = numbers[0]
    return (
        all(type(number) is int for number in numbers)
        and type(first) is int
        and first >= 0
        and type(data) is bytes
    )


def block(first: int, at_us: int, frames: Sequence[bytes]) -> Row:
    """The row of blocks that holds these frames, front and value of each in turn.

    `first` is the number of the first one.
    """
    data = b"".join(frames)
    return first, len(frames) // 2, at_us, crc32(data), data


def cut(first: int, at_us: int, frames: Sequence[bytes], size: int) -> list[Row]:
    """Frames of so many bytes in as few blocks as hold them."""
    if size <= _BLOCK_BYTES:
        return [block(first, at_us, frames)]
    rows: list[Row] = []
    begin = held = 0
    for at in range(0, len(frames), 2):
        frame = len(frames[at]) + len(frames[at + 1])
        if held and held + frame > _BLOCK_BYTES:
            rows.append(block(first + begin // 2, at_us, frames[begin:at]))
            begin, held = at, 0
        held += frame
    rows.append(block(first + begin // 2, at_us, frames[begin:]))
    return rows
