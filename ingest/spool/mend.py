"""Saving what a damaged spool holds (verify.py says what that is).

Three kinds of damage. A record whose checksum is wrong lies in a sound file: it is cut out of its
block, and a block whose own is wrong is written again. A page of SQLite's own that is wrong makes
rows unreadable: they are read from both ends towards it, then number by number in between, and what
was found becomes a new file. Where the first page is wrong, or the file ends before it should,
SQLite reads nothing at all: a copy gets the first page of a new spool, and then it is the second
kind. The row of state has no checksum: where the blocks contradict it, they are believed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ingest.spool.blocks import Row, block
from ingest.spool.errors import SpoolDamaged, SpoolError, SpoolInUse
from ingest.spool.frames import Damage, Stored, front, place
from ingest.spool.reader import DATABASE, State, read_state, translated
from ingest.spool.seen import TABLES, stored
from ingest.spool.store import Limits, Store, make_private, sync
from ingest.spool.verify import (
    Findings,
    blocks_of,
    connect,
    end_of,
    looked_at,
    records_of,
    verify,
)

__all__ = ["block_of", "repair"]

# SQLite's own choice.
_PAGE_BYTES = 4096
# Where SQLite locks a file that is open, a byte of these: https://sqlite.org/fileformat.html
_SHARED_FIRST, _SHARED_BYTES = 0x40000002, 510
# A position above the oldest block would delete records that were never sent. Where one below it
# is too low Kafka's own counts, which is higher.
_SETTLE = """
UPDATE state SET
    bytes = (SELECT total(length(data)) FROM blocks),
    next_seq = max(next_seq, (SELECT coalesce(max(first + count), 0) FROM blocks)),
    position = CASE
        WHEN (SELECT first + count FROM blocks ORDER BY first LIMIT 1) <= position
        THEN (SELECT min(first) FROM blocks) ELSE position
    END
"""


def repair(folder: Path) -> Findings:
    """Set damaged records aside in DIR/damaged-TIME.ndjson, and keep everything else.

    Where the file itself is damaged it is kept as DIR/damaged-TIME.db and written anew. The caller
    holds the lock. Killed in the middle, the spool is as it was or as it is to be.
    """
    findings = verify(folder)
    if findings.sound:
        return findings
    if findings.unopened or findings.structure or findings.ids_lost:
        _require_alone(folder / DATABASE)
    make_private(folder / DATABASE)  # it may become what is set aside
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if findings.unopened:
        said = findings.structure
        _give_head(folder, stamp)
        findings = verify(folder)
        findings.structure[:0] = said
    aside = _set_aside(folder, stamp, findings.damaged) if findings.damaged else None
    try:
        if findings.structure or findings.ids_lost:
            findings.set_aside.append(_write_anew(folder, stamp))
        else:
            _cut_out(folder)
    except SpoolError:  # nothing was taken out
        if aside is not None:
            aside.unlink()
        raise
    if aside is not None:
        findings.set_aside.insert(0, aside)
    return findings


def block_of(records: Sequence[Stored]) -> Row:
    """Records that follow each other as a block."""
    frames: list[bytes] = []
    for r in records:
        ident = None if r.id is None else r.id.encode()
        at = place(r.topic, r.source)
        frames += (front(r.seq, r.at_us, at, r.key, r.value, ident), r.value)
    return block(records[0].seq, records[0].at_us, frames)


# -- inside


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


def _require_alone(path: Path) -> None:
    """Raise SpoolInUse while another process has the file open, for it would have the WAL of the
    old one open, too. A collector's workers read each other's spools (peers.py), without the lock.

    No connection of this process may have it open, for its locks would go with our handle.
    """
    import fcntl

    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_FIRST)
        except (BlockingIOError, PermissionError):
            raise SpoolInUse(
                f"another process has {path} open, as all workers of a collector have, and it is "
                "to be written anew; nothing changed. Stop the whole collector, then repair it"
            ) from None


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A directory for the new file; also what a repair that was killed has left in it is gone."""
    fresh = folder / "mended"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _set_aside(folder: Path, stamp: str, damaged: Sequence[Damage]) -> Path:
    """One line for each damaged stretch, synced; `data` is what was there, in base64."""
    path = folder / f"damaged-{stamp}.ndjson"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        # What they held is read once more: all of it may not fit into memory.
        unread = set(damaged)
        with closing(connect(folder)) as db, translated(folder / DATABASE):
            for _, _, found in looked_at(db, read_state(db, folder / DATABASE)):
                for d in found:
                    data = base64.b64encode(d.data).decode()
                    file.write(json.dumps({"first": d.first, "last": d.last, "data": data}) + "\n")
                    unread.discard(d._replace(data=b""))
        for d in sorted(unread):
            file.write(json.dumps({"first": d.first, "last": d.last, "data": ""}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
    return path


def _cut_out(folder: Path) -> None:
    """Replace blocks with damaged records by blocks of their good ones, in one transaction."""
    path = folder / DATABASE
    with closing(connect(folder)) as db, translated(path):
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        state = read_state(db, path)
        is_true = _is_true(db, state)
        # Before any is changed, and their numbers only: all blocks may not fit into memory.
        for first in [row[0] for row in blocks_of(db, state) if records_of(row)[1]]:
            row = db.execute("SELECT * FROM blocks WHERE first = ?", (first,)).fetchone()
            good, _ = records_of(row)
            db.execute("DELETE FROM blocks WHERE first = ?", (first,))
            for run in _runs(good):
                db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", block_of(run))
        _settle(db, is_true)
        db.execute("COMMIT")


def _is_true(db: sqlite3.Connection, state: State) -> bool:
    """Whether the position can be: the oldest block, whole or not, reaches beyond it."""
    oldest = next(looked_at(db, state), None)
    return oldest is None or end_of(*oldest) > state.position


def _settle(db: sqlite3.Connection, is_true: bool) -> None:
    """Make the row of state agree with the blocks."""
    if is_true:
        # What is in Kafka of a block that was cut in two, or the position would go back to it.
        db.execute("DELETE FROM blocks WHERE first + count <= (SELECT position FROM state)")
    db.execute(_SETTLE)


def _give_head(folder: Path, stamp: str) -> None:
    """Replace the file by a copy with the first page of a new spool; _write_anew() does the rest.

    It holds where each table begins, which is the same in every spool of this version. Raises
    SpoolDamaged, and changes nothing, where the copy can't be read either.
    """
    path = folder / DATABASE
    with _scratch(folder) as fresh:
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
            with closing(connect(fresh)) as db, translated(copy):
                read_state(db, copy)
        except SpoolError as error:
            raise SpoolDamaged(
                f"{path} can't be read, not even with a new first page; nothing changed. Keep it, "
                "and put a whole copy in its place or go on with another directory than "
                f"{folder}"
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
    with _scratch(folder) as fresh:
        with closing(connect(folder)) as db:
            state = read_state(db, path)
            Store(fresh, Limits(), state.node).close()
            with closing(connect(fresh)) as new, translated(path):
                new.execute("PRAGMA synchronous = FULL")
                new.execute("BEGIN IMMEDIATE")
                for row in blocks_of(db, state):
                    good, _ = records_of(row)
                    for run in _runs(good):
                        new.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", block_of(run))
                for table in TABLES:
                    _copy_rows(db, new, table)
                new.execute("DELETE FROM ids WHERE segment IN (SELECT segment FROM sealed)")
                new.execute(
                    "UPDATE state SET created_us = ?, next_seq = ?, position = ?",
                    (state.created_us, state.next_seq, state.position),
                )
                _settle(new, _is_true(db, state))
                new.execute("COMMIT")
        for left in (f"{DATABASE}-wal", f"{DATABASE}-shm"):
            if (folder / left).exists():
                # The last connection writes it back when it closes.
                raise SpoolDamaged(
                    f"{folder / left} can't be written back into {path}; nothing changed. Another "
                    "process has begun to read it: stop the whole collector, then repair it"
                )
        kept = _kept(folder, stamp)
        if not kept.exists():
            kept.hardlink_to(path)
        (fresh / DATABASE).replace(path)
        sync(folder)
    return kept


def _copy_rows(db: sqlite3.Connection, new: sqlite3.Connection, table: str) -> None:
    """What can be read of a table of ids, from its beginning."""
    rows = stored(db, table)
    while True:
        try:
            row = next(rows)
        except (StopIteration, sqlite3.DatabaseError):
            return
        if row is not None:
            marks = ", ".join("?" * len(row))
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608 (marks)
