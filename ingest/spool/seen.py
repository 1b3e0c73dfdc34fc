"""Which ids were taken within the window: known across restarts, cheap for random ids.

A table of ids with an index would dirty a page of 4 KiB for each random id: 400 KiB a commit of a
hundred. Instead ids are written one after the other, 16 bytes each, in the transaction of their
records, and looked up in memory.

They come in segments of up to a million ids or an eighth of the window. A segment in memory is a
hash table with open addressing, 16 bytes an id, 180 MB for the ten million that are kept by
default. The place and the tag in it are different bits of one BLAKE2b: to take a new id for an old
one takes the same 64 bits in the few places that are looked at, 1 in 10^18. A segment that is
complete is written as the table that it is, so that a restart reads it back at the disk's speed
(the last one is built again, half a second at most). Whole segments are forgotten, the oldest
first, once all of it is outside the window; so an id is known for the window at least.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

from ingest.spool.errors import Malformed

__all__ = ["SCHEMA", "TABLES", "Ids", "Seen", "digest", "stored"]

SCHEMA = """
CREATE TABLE ids (
    part INTEGER PRIMARY KEY, segment INTEGER NOT NULL, at_us INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE sealed (
    segment INTEGER PRIMARY KEY, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
    count INTEGER NOT NULL, slots BLOB NOT NULL
);
"""

TABLES = ("sealed", "ids")

_SEGMENT_IDS = 1_000_000
# Each is followed by the next one.
_LAST_SEGMENT = 2**62
# The window is forgotten in steps of this share of it.
_SHARE = 8
_DIGEST_BYTES = 16


def digest(ident: bytes) -> bytes:
    """What is kept of an id."""
    return blake2b(ident, digest_size=_DIGEST_BYTES).digest()


class _Segment:
    """A hash table of 64-bit tags, zero where it is empty; never more than half full."""

    __slots__ = ("count", "first_us", "last_us", "mask", "number", "slots")

    def __init__(self, number: int, capacity: int, now_us: int) -> None:
        self.number = number
        self.mask = (1 << (2 * capacity - 1).bit_length()) - 1
        # Zeroed by the system when a page is first used.
        self.slots = memoryview(bytearray(8 * (self.mask + 1))).cast("Q")
        self.count = 0
        self.first_us = self.last_us = now_us

    def add(self, digests: bytes | bytearray) -> None:
        slots, mask = self.slots, self.mask
        words = array("Q", digests)
        for place, tag in zip(words[::2], words[1::2], strict=True):
            at = place & mask
            while slots[at]:
                at = (at + 1) & mask
            slots[at] = tag or 1
        self.count += len(words) // 2


class Ids:
    """The ids that a spool has written, in memory; read() goes on where it stopped."""

    def __init__(self, window_ids: int) -> None:
        self._capacity = max(1, min(_SEGMENT_IDS, window_ids // _SHARE))
        # Oldest first.
        self._segments: list[_Segment] = []
        self._sealed: set[int] = set()
        self._part = 0

    def __len__(self) -> int:
        return sum(segment.count for segment in self._segments)

    def known(self, key: bytes) -> bool:
        """Whether an id of this digest was taken."""
        place, tag = memoryview(key).cast("Q")
        tag = tag or 1
        for segment in self._segments:
            slots, mask = segment.slots, segment.mask
            at = place & mask
            while found := slots[at]:
                if found == tag:
                    return True
                at = (at + 1) & mask
        return False

    def read(self, db: sqlite3.Connection) -> None:
        """What was written since the last time; in a transaction, or nobody else may write.

        When it raises nothing has changed: the next call reads the same again. Raises Malformed for
        rows that nobody wrote.
        """
        old = {segment.number: segment for segment in self._segments}
        found = old.copy()
        sealed, last = self._sealed.copy(), self._part
        # What goes into a segment that known() looks at already, and until when; added at the end.
        more: dict[int, bytearray] = {}
        until_us: dict[int, int] = {}
        for (number,) in db.execute("SELECT segment FROM sealed").fetchall():
            if number not in sealed:
                found[number] = _unsealed(db, number)
                sealed.add(number)
        sizes = dict(
            db.execute(
                "SELECT segment, total(length(data)) FROM ids WHERE part > ? GROUP BY segment",
                (self._part,),
            ).fetchall()
        )
        for row in db.execute(
            "SELECT part, segment, at_us, data FROM ids WHERE part > ? ORDER BY part",
            (self._part,),
        ):
            part, number, at_us, data = row
            if not _is_part(row) or part <= last or number in sealed:
                raise Malformed("a row of its table ids is none")
            segment = found.get(number)
            if segment is None:
                held = int(sizes[number]) // _DIGEST_BYTES
                segment = found[number] = _Segment(number, max(self._capacity, held), at_us)
            if segment is old.get(number):
                more.setdefault(number, bytearray()).extend(data)
                until_us[number] = at_us
            else:
                segment.add(data)
                segment.last_us = at_us
            last = part
        (oldest,) = db.execute(
            "SELECT min(segment) FROM (SELECT segment FROM sealed UNION ALL "
            "SELECT * FROM (SELECT segment FROM ids ORDER BY part LIMIT 1))"
        ).fetchone()
        for number, digests in more.items():
            if old[number].count + len(digests) // _DIGEST_BYTES > old[number].mask:
                raise Malformed("a segment of its table ids is larger than it can be")
        for number, digests in more.items():
            old[number].add(digests)
            old[number].last_us = until_us[number]
        self._segments = [found[n] for n in sorted(found) if oldest is not None and n >= oldest]
        self._sealed = {n for n in sealed if n in found and n >= (oldest or 0)}
        self._part = last


class Seen(Ids):
    """The ids of one spool. Calls in the middle of a transaction of `db` where it says so."""

    def __init__(self, db: sqlite3.Connection, window_s: float, window_ids: int) -> None:
        super().__init__(window_ids)
        self._db = db
        self._window_us = int(window_s * 1e6)
        self._window_ids = window_ids
        self.read(db)

    def row(self, keys: Sequence[bytes], now_us: int) -> tuple[int, int, bytes]:
        """What belongs into `ids` (segment, at_us, data), in the transaction of their records.

        They are known once add() was called. Between the two nothing is changed in memory, so a
        transaction may be rolled back.
        """
        return self._segment_for(len(keys), now_us), now_us, b"".join(keys)

    def write(self, keys: Sequence[bytes], now_us: int) -> None:
        """Within a transaction: make these durable with it; see row()."""
        if keys:
            self._db.execute(
                "INSERT INTO ids (segment, at_us, data) VALUES (?, ?, ?)", self.row(keys, now_us)
            )

    def add(self, keys: Sequence[bytes], now_us: int) -> None:
        """After the COMMIT of write(), with the same arguments."""
        if not keys:
            return
        number = self._segment_for(len(keys), now_us)
        if not self._segments or self._segments[-1].number != number:
            self._segments.append(_Segment(number, max(self._capacity, len(keys)), now_us))
        segment = self._segments[-1]
        segment.add(b"".join(keys))
        segment.last_us = max(segment.last_us, now_us)

    def due(self, now_us: int) -> bool:
        """Whether settle() has something to do."""
        return self._expired(now_us) > 0 or self._complete() is not None

    def settle(self, now_us: int) -> None:
        """In a transaction of its own: forget one old segment or seal one that is complete.

        Either may take some tens of ms, so it is not done before an answer.
        """
        if self._expired(now_us):
            number = self._segments[0].number
            self._db.execute("DELETE FROM ids WHERE segment = ?", (number,))
            self._db.execute("DELETE FROM sealed WHERE segment = ?", (number,))
        elif (segment := self._complete()) is not None:
            self._db.execute("DELETE FROM ids WHERE segment = ?", (segment.number,))
            self._db.execute(
                "INSERT INTO sealed VALUES (?, ?, ?, ?, ?)",
                (segment.number, segment.first_us, segment.last_us, segment.count,
                 segment.slots.cast("B")),
            )  # fmt: skip

    def settled(self, now_us: int) -> None:
        """After the COMMIT of settle(), with the same time."""
        if self._expired(now_us):
            self._sealed.discard(self._segments.pop(0).number)
        elif (segment := self._complete()) is not None:
            self._sealed.add(segment.number)

    # -- inside

    def _segment_for(self, count: int, now_us: int) -> int:
        """The number of the segment that takes so many more."""
        if not self._segments:
            return 1
        last = self._segments[-1]
        full = last.count + count > self._capacity
        old = now_us - last.first_us > self._window_us // _SHARE
        return last.number + 1 if full or old or last.number in self._sealed else last.number

    def _expired(self, now_us: int) -> int:
        """1 when the oldest segment lies outside the window, and is not the one that is filled."""
        if len(self._segments) < 2:
            return 0
        oldest = self._segments[0]
        aged = now_us - oldest.last_us > self._window_us
        return int(aged or len(self) - oldest.count >= self._window_ids)

    def _complete(self) -> _Segment | None:
        """A complete segment that is large enough to be worth a table of its own."""
        for segment in self._segments[:-1]:
            if segment.number not in self._sealed and 4 * segment.count > segment.mask + 1:
                return segment
        return None


def stored(db: sqlite3.Connection, table: str) -> Iterator[Sequence[Any] | None]:
    """Every row of one of the TABLES; None for one that nobody wrote. Raises sqlite3.Error."""
    is_one = _is_part if table == "ids" else _is_sealed
    for row in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 (two names)
        yield row if is_one(row) else None


def _is_part(row: Sequence[Any]) -> bool:
    *numbers, data = row
    return (
        all(type(number) is int for number in numbers)
        and 0 < numbers[1] < _LAST_SEGMENT
        and type(data) is bytes
        and len(data) % _DIGEST_BYTES == 0
    )


def _is_sealed(row: Sequence[Any]) -> bool:
    *numbers, slots = row
    if any(type(number) is not int for number in numbers) or type(slots) is not bytes:
        return False
    places, left = divmod(len(slots), 8)
    return (
        0 < numbers[0] < _LAST_SEGMENT
        and not left
        and places.bit_count() == 1
        and 0 <= numbers[3] < places
        # known() goes on until it finds one.
        and 0 in memoryview(slots).cast("Q")
    )


def _unsealed(db: sqlite3.Connection, number: int) -> _Segment:
    row = db.execute("SELECT * FROM sealed WHERE segment = ?", (number,)).fetchone()
    if row is None or not _is_sealed(row):
        raise Malformed("a row of its table sealed is none")
    _, first_us, last_us, count, slots = row
    segment = _Segment(number, 1, first_us)
    segment.slots, segment.mask = memoryview(slots).cast("Q"), len(slots) // 8 - 1
    segment.count, segment.last_us = count, last_us
    return segment
