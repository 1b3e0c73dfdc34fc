"""What a damaged spool holds: every block that can be read, every record that is whole.

Three kinds of damage. A record whose checksum is wrong lies in a sound file: it is cut out of its
block, and a block whose own is wrong is written again. A page of SQLite's own that is wrong makes
rows unreadable: they are read from both ends towards it, then number by number in between, and what
was found becomes a new file. Where the first page is wrong, or the file ends before it should,
SQLite reads nothing at all: a copy gets the first page of a new spool, and then it is the second
kind.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

from ingest.spool.blocks import Row, block
from ingest.spool.errors import SpoolDamaged, SpoolError
from ingest.spool.frames import Damage, Stored, front, place, salvage, unpack
from ingest.spool.reader import DATABASE, State, is_cut_off, read_state, translated
from ingest.spool.store import Limits, Store, make_private, sync

__all__ = ["Findings", "block_of", "blocks_of", "records_of", "repair", "verify"]

# SQLite's own choice.
_PAGE_BYTES = 4096


@dataclass
class Findings:
    """What fsck found; `set_aside` are the files that a repair has left."""

    records: int = 0
    # Records that are lost to the spool, by number.
    damaged: list[Damage] = field(default_factory=list)
    # What SQLite's own check complains of.
    structure: list[str] = field(default_factory=list)
    # SQLite can't open the file, so nothing in it was looked at.
    unopened: bool = False
    # Whether ids could not be read; they are then forgotten.
    ids_lost: bool = False
    set_aside: list[Path] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing to repair."""
        return not (self.damaged or self.structure or self.unopened or self.ids_lost)

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
    with closing(_connect(folder)) as db:
        findings.structure = _structure(db)
        try:
            with translated(folder / DATABASE):
                state = read_state(db, folder / DATABASE)
        except SpoolDamaged as error:
            if error.__cause__ is None:  # the row could be read, and is wrong
                raise
            findings.unopened = True
            return findings
        for row in blocks_of(db, state, findings.damaged):
            good, damaged = records_of(row)
            findings.records += len(good)
            findings.damaged += damaged
        findings.ids_lost = not _ids_can_be_read(db)
    return findings


def repair(folder: Path) -> Findings:
    """Set damaged records aside in DIR/damaged-TIME.ndjson, and keep everything else.

    Where the file itself is damaged it is kept as DIR/damaged-TIME.db and written anew. The caller
    holds the lock. Killed in the middle, the spool is as it was or as it is to be.
    """
    findings = verify(folder)
    if findings.sound:
        return findings
    make_private(folder / DATABASE)  # it may become what is set aside
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if findings.unopened:
        said = findings.structure
        _give_head(folder, stamp)
        findings = verify(folder)
        findings.structure[:0] = said
    if findings.damaged:
        findings.set_aside.append(_set_aside(folder, stamp, findings.damaged))
    if findings.structure or findings.ids_lost:
        findings.set_aside.append(_write_anew(folder, stamp))
    else:
        _cut_out(folder)
    return findings


def blocks_of(
    db: sqlite3.Connection, state: State, unreadable: list[Damage] | None = None
) -> Iterator[Row]:
    """Every block that SQLite can read, in order; numbers of the others are added."""
    low = -1
    try:
        while row := _one(db, "first > ?1 ORDER BY first", low):
            low = row[0]
            yield row
    except sqlite3.DatabaseError:
        yield from _around_hole(db, low, state, unreadable)


def _around_hole(
    db: sqlite3.Connection, low: int, state: State, unreadable: list[Damage] | None
) -> Iterator[Row]:
    """Blocks behind the one of number `low`, after which SQLite can't read on."""
    behind: list[Row] = []
    high = state.next_seq
    try:
        while row := _one(db, "first < ?1 AND first > ?2 ORDER BY first DESC", high, low):
            high = row[0]
            behind.append(row)
    except sqlite3.DatabaseError:
        pass
    for number in range(low + 1, high):
        try:
            row = _one(db, "first = ?1", number)
        except sqlite3.DatabaseError:
            continue
        if row is not None:
            behind.append(row)
    yield from sorted(behind)
    if unreadable is not None:
        have = sorted((row[0], row[0] + row[1]) for row in behind)
        following = _end_of(db, low, state)
        for first, end in [*have, (state.next_seq, state.next_seq)]:
            if first > following:
                unreadable.append(Damage(following, first - 1, b""))
            following = max(following, end)


def records_of(row: Row) -> tuple[list[Stored], list[Damage]]:
    """The whole records of a block, and what is between them; damage of no record is the sum's."""
    first, count, _, crc, data = row
    found = unpack(data, first, count)
    if found is None:
        return salvage(data, first, count)
    return found, [] if crc32(data) == crc else [Damage(first, first - 1, b"")]


def block_of(records: Sequence[Stored]) -> Row:
    """Records that follow each other as a block."""
    frames: list[bytes] = []
    for r in records:
        ident = None if r.id is None else r.id.encode()
        at = place(r.topic, r.source)
        frames += (front(r.seq, r.at_us, at, r.key, r.value, ident), r.value)
    return block(records[0].seq, records[0].at_us, frames)


# -- inside


def _connect(folder: Path) -> sqlite3.Connection:
    with translated(folder / DATABASE):
        return sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=30.0)


def _one(db: sqlite3.Connection, where: str, *values: int) -> Row | None:
    found: Row | None = db.execute(
        f"SELECT first, count, at_us, crc, data FROM blocks WHERE {where} LIMIT 1",  # noqa: S608 (ours)
        values,
    ).fetchone()
    return found


def _end_of(db: sqlite3.Connection, first: int, state: State) -> int:
    """The number behind the last readable block before the hole; the position without one."""
    if first >= 0 and (row := _one(db, "first = ?1", first)):
        return row[0] + row[1]
    return state.position


def _structure(db: sqlite3.Connection) -> list[str]:
    try:
        said = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if said == ["ok"] else said


def _ids_can_be_read(db: sqlite3.Connection) -> bool:
    try:
        for table in ("ids", "sealed"):
            for _ in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 (two names)
                pass
    except sqlite3.DatabaseError:
        return False
    return True


def _runs(records: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Records in runs whose numbers follow each other."""
    run: list[Stored] = []
    for record in records:
        if run and record.seq != run[-1].seq + 1:
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def _set_aside(folder: Path, stamp: str, damaged: Sequence[Damage]) -> Path:
    """One line for each damaged stretch, synced; `data` is what was there, in base64."""
    path = folder / f"damaged-{stamp}.ndjson"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        for d in damaged:
            data = base64.b64encode(d.data).decode()
            file.write(json.dumps({"first": d.first, "last": d.last, "data": data}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
    return path


def _cut_out(folder: Path) -> None:
    """Replace blocks with damaged records by blocks of their good ones, in one transaction."""
    path = folder / DATABASE
    with closing(_connect(folder)) as db, translated(path):
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        state = read_state(db, path)
        for row in list(blocks_of(db, state)):
            good, damaged = records_of(row)
            if damaged:
                db.execute("DELETE FROM blocks WHERE first = ?", (row[0],))
                for run in _runs(good):
                    db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", block_of(run))
        db.execute("UPDATE state SET bytes = (SELECT total(length(data)) FROM blocks)")
        db.execute("COMMIT")


def _give_head(folder: Path, stamp: str) -> None:
    """Replace the file by a copy with the first page of a new spool; _write_anew() does the rest.

    It holds where each table begins, which is the same in every spool of this version. Raises
    SpoolDamaged, and changes nothing, where the copy can't be read either.
    """
    path, fresh = folder / DATABASE, folder / "mended"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    Store(fresh).close()
    copy, wal = fresh / DATABASE, folder / f"{DATABASE}-wal"
    head = bytearray(copy.read_bytes()[:_PAGE_BYTES])
    head[28:32] = bytes(4)  # how many pages there are: asked of the file system, then
    shutil.copyfile(path, copy)
    if wal.exists():
        shutil.copyfile(wal, fresh / wal.name)
    with copy.open("r+b") as file:
        file.write(head)
    try:
        with closing(_connect(fresh)) as db, translated(copy):
            read_state(db, copy)
    except SpoolError as error:
        shutil.rmtree(fresh)
        raise SpoolDamaged(
            f"{path} can't be read, not even with a new first page; nothing changed. Keep it, and "
            f"put a whole copy in its place or go on with another directory than {folder}"
        ) from error
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    # What is in the WAL is in the copy, too; to read it there once more changes nothing.
    _kept(folder, stamp).hardlink_to(path)
    copy.replace(path)
    sync(folder)


def _kept(folder: Path, stamp: str) -> Path:
    return folder / f"damaged-{stamp}.db"


def _write_anew(folder: Path, stamp: str) -> Path:
    """A new file of all that can be read, in place of the old one, which is kept beside it."""
    path = folder / DATABASE
    fresh = folder / "mended"
    # Left by a repair that was killed.
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    with closing(_connect(folder)) as db:
        state = read_state(db, path)
        Store(fresh, Limits(), state.node).close()
        with closing(_connect(fresh)) as new, translated(path):
            new.execute("PRAGMA synchronous = FULL")
            new.execute("BEGIN IMMEDIATE")
            for row in blocks_of(db, state):
                good, _ = records_of(row)
                for run in _runs(good):
                    new.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", block_of(run))
            for table in ("ids", "sealed"):
                _copy_rows(db, new, table)
            new.execute(
                "UPDATE state SET created_us = ?, next_seq = ?, position = ?, "
                "bytes = (SELECT total(length(data)) FROM blocks)",
                (state.created_us, state.next_seq, state.position),
            )
            new.execute("COMMIT")
    for left in (f"{DATABASE}-wal", f"{DATABASE}-shm"):
        if (folder / left).exists():
            # The last connection writes it back when it closes; a damaged file may prevent that.
            raise SpoolDamaged(
                f"{folder / left} can't be written back into {path}; nothing changed"
            )
    kept = _kept(folder, stamp)
    if not kept.exists():
        kept.hardlink_to(path)
    (fresh / DATABASE).replace(path)
    sync(folder)
    fresh.rmdir()
    return kept


def _copy_rows(db: sqlite3.Connection, new: sqlite3.Connection, table: str) -> None:
    """What can be read of a table of ids, from its beginning."""
    try:
        for row in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 (two names)
            marks = ", ".join("?" * len(row))
            new.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608 (marks)
    except sqlite3.DatabaseError:
        pass
