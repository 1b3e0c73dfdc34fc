"""The file of a spool: its tables, and the settings of the connection that writes."""

from __future__ import annotations

import sqlite3
import time
import uuid
from pathlib import Path

from ingest.spool import seen
from ingest.spool.errors import SpoolError
from ingest.spool.reader import NODE

__all__ = ["prepare"]

_VERSION = 3
# The WAL is cut back to this size after a checkpoint. What is left of it is also what deletions
# are written to when the disk is full.
_WAL_BYTES = 8 * 1024 * 1024
# A checkpoint at each MiB of WAL. Appends wait for it: 10 ms at SQLite's 1,000 pages, 3 ms at
# these, for the same throughput.
_CHECKPOINT_PAGES = 250

_SCHEMA = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), node TEXT NOT NULL, created_us INTEGER NOT NULL,
    next_seq INTEGER NOT NULL, position INTEGER NOT NULL, bytes INTEGER NOT NULL
);
CREATE TABLE blocks (
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, at_us INTEGER NOT NULL,
    crc INTEGER NOT NULL, data BLOB NOT NULL
);
"""

# One append as one statement, which is a transaction of its own. Between statements Python hands
# the interpreter's lock to whoever waits for it and waits for it in turn: with BEGIN, two INSERTs,
# an UPDATE and COMMIT that took longer than the fsync, in a busy server.
_APPENDED = """
CREATE TEMP VIEW appended AS SELECT 0 first, 0 count, 0 at_us, 0 crc, x'' data, 0 segment,
    x'' ids, 0 next_seq, 0 bytes;
CREATE TEMP TRIGGER append INSTEAD OF INSERT ON appended BEGIN
    INSERT INTO blocks VALUES (new.first, new.count, new.at_us, new.crc, new.data);
    INSERT INTO ids (segment, at_us, data)
        SELECT new.segment, new.at_us, new.ids WHERE length(new.ids);
    UPDATE state SET next_seq = new.next_seq, bytes = new.bytes;
END;
"""


def prepare(db: sqlite3.Connection, path: Path, node: str | None) -> None:
    """Make a connection the one that writes; a new file gets its tables and its node's name.

    Raises SpoolError for a file of another version or a name that none can have.
    """
    run = db.execute
    (version,) = run("PRAGMA user_version").fetchone()
    if version == 0:
        if node is not None and not NODE.fullmatch(node):
            raise SpoolError(f"{node!r} is no name for a node: letters, digits, . _ - only")
        run("PRAGMA auto_vacuum = INCREMENTAL")
    elif version != _VERSION:
        raise SpoolError(
            f"{path} is of version {version}; this program reads {_VERSION}. Send what it holds "
            "with the headrace that wrote it (`headrace spool drain`), then take another directory"
        )
    run("PRAGMA journal_mode = WAL")
    run("PRAGMA synchronous = FULL")
    # On macOS fsync leaves the data in the drive's cache.
    run("PRAGMA fullfsync = ON")
    run("PRAGMA checkpoint_fullfsync = ON")
    run(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    run(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    run("PRAGMA cache_size = -16384")
    if version == 0:
        run("BEGIN IMMEDIATE")
        for statement in (_SCHEMA + seen.SCHEMA).split(";"):
            run(statement)
        run(
            "INSERT INTO state VALUES (1, ?, ?, 0, 0, 0)",
            (node or uuid.uuid4().hex, time.time_ns() // 1000),
        )
        run(f"PRAGMA user_version = {_VERSION}")
        run("COMMIT")
    db.executescript(_APPENDED)
