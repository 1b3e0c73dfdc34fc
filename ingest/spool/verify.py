"""What a spool holds, sound or damaged: every block that can be read, every record that is whole.

Nothing is changed here, and a block at a time is in memory. Nothing that is read is trusted: SQLite
has no checksums, so a wrong bit may lead it to another page, make an integer NULL, or give a row
the number of the one before. Such a row counts as one that can't be read.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from zlib import crc32

from ingest.spool.blocks import MOST_RECORDS, Row, is_row
from ingest.spool.errors import SpoolDamaged
from ingest.spool.frames import Damage, Stored, frames_in, salvage, unpack
from ingest.spool.reader import DATABASE, State, is_cut_off, read_state, translated
from ingest.spool.seen import TABLES, stored

__all__ = ["Findings", "blocks_of", "connect", "end_of", "looked_at", "records_of", "verify"]

_LEAST = -(2**63)


@dataclass
class Findings:
    """What fsck found; `set_aside` are the files that a repair has left."""

    records: int = 0
    # Records that are lost to the spool, by number; their bytes are not kept here.
    damaged: list[Damage] = field(default_factory=list)
    # What SQLite's own check complains of, or which rows are none.
    structure: list[str] = field(default_factory=list)
    # What the row of state says and the blocks do not.
    contradicted: list[str] = field(default_factory=list)
    # Numbers that no block has, first and last, where nothing is damaged: an earlier repair took
    # them out.
    missing: list[tuple[int, int]] = field(default_factory=list)
    # SQLite can't open the file, so nothing in it was looked at.
    unopened: bool = False
    # Whether ids could not be read; they are then forgotten.
    ids_lost: bool = False
    set_aside: list[Path] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing to repair."""
        return not (
            self.damaged or self.structure or self.contradicted or self.unopened or self.ids_lost
        )

    @property
    def lost(self) -> int:
        """How many records are damaged."""
        return sum(d.last - d.first + 1 for d in self.damaged)


def verify(folder: Path) -> Findings:
    """Look at everything and change nothing. The caller holds the lock."""
    findings = Findings()
    if is_cut_off(folder / DATABASE):
        findings.unopened = True
        return findings
    with closing(connect(folder)) as db:
        findings.structure = _structure(db)
        try:
            with translated(folder / DATABASE):
                state = read_state(db, folder / DATABASE)
        except SpoolDamaged as error:
            if error.__cause__ is None:  # the row could be read, and is wrong
                raise
            findings.unopened = True
            return findings
        _walk(db, state, findings)
        findings.ids_lost = not _ids_can_be_read(db)
    return findings


def blocks_of(
    db: sqlite3.Connection, state: State, trouble: list[str] | None = None
) -> Iterator[Row]:
    """Every block that can be read, in order; what keeps others from being read is added."""
    low = _LEAST
    try:
        while row := _one(db, "first > ? ORDER BY first", low):
            if row[0] <= low:
                raise sqlite3.DatabaseError("the rows of its table blocks are out of order")
            low = row[0]
            yield row
    except sqlite3.DatabaseError as error:
        if trouble is not None:
            trouble.append(str(error))
        yield from _around_hole(db, low, state)


def _around_hole(db: sqlite3.Connection, low: int, state: State) -> Iterator[Row]:
    """Blocks behind the one of number `low`, after which SQLite can't read on."""
    # Their numbers only, from the last one down: all of their data may not fit into memory.
    behind = array("q")
    high = state.next_seq
    try:
        while row := _one(db, "first < ? AND first > ? ORDER BY first DESC", high, low):
            if not low < row[0] < high:
                break
            high = row[0]
            behind.append(high)
    except sqlite3.DatabaseError:
        pass
    # A block that ends below the position is deleted in the transaction that moves it, so where a
    # block may begin is known also when none before the hole could be read.
    start = max(0, low + 1, state.position - MOST_RECORDS)
    for number in chain(range(start, high), reversed(behind)):
        try:
            row = _one(db, "first = ?", number)
        except sqlite3.DatabaseError:
            continue
        if row is not None and row[0] == number:
            yield row


def looked_at(
    db: sqlite3.Connection, state: State, trouble: list[str] | None = None
) -> Iterator[tuple[Row, list[Stored], list[Damage]]]:
    """The same, and the records_of() each; where a count is wrong none reaches into the next."""
    before: Row | None = None
    for row in blocks_of(db, state, trouble):
        if before is not None:
            yield before, *records_of(before, row[0])
        before = row
    if before is not None:
        yield before, *records_of(before, state.next_seq)


def records_of(row: Row, following: int = -1) -> tuple[list[Stored], list[Damage]]:
    """The whole records of a block, and what is between them; damage of no record is the sum's, or
    the count's. A block that holds no record is damaged.

    `following` is what the next one begins with, where that is known.
    """
    first, count, _, crc, data = row
    of_no_record = [Damage(first, first - 1, b"")]
    is_as_written = crc32(data) == crc
    found = unpack(data, first, count)
    if found:
        return found, [] if is_as_written else of_no_record
    if is_as_written and (found := unpack(data, first, frames_in(data))):
        return found, of_no_record
    most = following - first if following > first else MOST_RECORDS
    good, damaged = salvage(data, first, min(count, most, MOST_RECORDS))
    return good, damaged or of_no_record


def end_of(row: Row, good: Sequence[Stored], damaged: Sequence[Damage]) -> int:
    """What follows the last record of a block, whole or not; of what looked_at() says of it."""
    return max(row[0], *(r.seq + 1 for r in good[-1:]), *(d.last + 1 for d in damaged[-1:]))


# -- inside


def connect(folder: Path) -> sqlite3.Connection:
    """A connection that may write."""
    with translated(folder / DATABASE):
        return sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=30.0)


def _walk(db: sqlite3.Connection, state: State, findings: Findings) -> None:
    """All blocks, and whether the row of state is true of them: it has no checksum."""
    trouble: list[str] = []
    gaps: list[tuple[int, int]] = []
    following, size, newest = state.position, 0, -1
    for row, good, damaged in looked_at(db, state, trouble):
        findings.records += len(good)
        findings.damaged += [d._replace(data=b"") for d in damaged]
        size += len(row[4])
        end = end_of(row, good, damaged)
        if good:
            if newest < 0 and end <= state.position:
                findings.contradicted.append(
                    f"position is {state.position:,}, but record {good[0].seq:,} is still there"
                )
            newest = good[-1].seq
        if following < row[0] < state.next_seq:
            gaps.append((following, row[0] - 1))
        if row[0] < state.next_seq:
            following = max(following, end)
    if following < state.next_seq:
        gaps.append((following, state.next_seq - 1))
    if newest >= state.next_seq:
        findings.contradicted.append(
            f"next_seq is {state.next_seq:,}, but record {newest:,} is there"
        )
    findings.structure = findings.structure or trouble
    if findings.structure:
        # What an earlier repair took out is among them, and is named again.
        findings.damaged += [Damage(first, last, b"") for first, last in gaps]
        findings.damaged.sort()
        return
    findings.missing = gaps
    if size != state.bytes:
        findings.contradicted.append(f"bytes is {state.bytes:,}, but the blocks have {size:,}")


def _one(db: sqlite3.Connection, where: str, *values: int) -> Row | None:
    found = db.execute(
        f"SELECT first, count, at_us, crc, data FROM blocks WHERE {where} LIMIT 1",  # noqa: S608 (ours)
        values,
    ).fetchone()
    if found is not None and not is_row(found):
        raise sqlite3.DatabaseError("a row of its table blocks is none")
    row: Row | None = found
    return row


def _structure(db: sqlite3.Connection) -> list[str]:
    try:
        said = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if said == ["ok"] else said


def _ids_can_be_read(db: sqlite3.Connection) -> bool:
    try:
        return (
            all(row is not None for table in TABLES for row in stored(db, table))
            and not db.execute(
                "SELECT 1 FROM ids WHERE segment IN (SELECT segment FROM sealed) LIMIT 1"
            ).fetchone()
        )
    except sqlite3.DatabaseError:
        return False
