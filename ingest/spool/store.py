"""The spool on disk: records that are acknowledged and not yet in Kafka, in one SQLite file.

Invariants

1. An append is on disk, synced, before anybody hears of it: WAL, `synchronous=FULL`, one COMMIT for
   many appends. The ids that it took are in the same transaction.
2. One connection writes and checkpoints, and one thread uses it (ingest/spool/writer.py). So the
   standard library's SQLite serves, although before 3.51.3 it can corrupt a WAL database that *two*
   connections write or checkpoint at the same instant. Others may only read (`mode=ro`), and a lock
   on DIR/lock keeps a second process out.
3. Sequence numbers grow by one a record, across restarts, and are never given twice: `next_seq` is
   kept in the transaction that uses it, also when nothing is left.
4. Only what lies below `position` is deleted, in the transaction that moves it; it moves up only.
   So no block lies below it whole: where one does, the position is wrong (reader.py).
5. Each record has a checksum of its own (ingest/spool/frames.py), and each block, for speed.
6. The space of what was deleted is used again, and given back once more than half of the file is
   empty.
7. Its files are its user's only (0600), also in a directory that others may read.

Layout: DIR/spool.db (and -wal, -shm), DIR/lock, and what fsck set aside, DIR/damaged-*.

    state   one row: node, created_us, next_seq, position, bytes (of all blocks)
    blocks  first (the number of its first record), count, at_us, crc (CRC-32 of what follows), data
            (frames, one after the other)
    ids, sealed   the ids that were taken, see ingest/spool/seen.py

A block is what came together, up to 256 KiB. A row a record would be easier to look into, but costs
a call into SQLite for each, and each such call hands the interpreter's lock to whoever waits for
it: in a busy server that is 5 ms a record. `headrace spool export` looks into it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.spool.blocks import Row, cut
from ingest.spool.errors import Malformed, SpoolDamaged, SpoolError, SpoolFull
from ingest.spool.frames import Record, front, place
from ingest.spool.reader import DATABASE, State, checked_state, is_cut_off, translated
from ingest.spool.schema import prepare
from ingest.spool.seen import Seen, digest

if TYPE_CHECKING:  # it locks files, which Windows does another way
    from ingest.spool.peers import Peers

__all__ = ["Limits", "Store", "check", "make_private", "sync"]

_log = logging.getLogger("headrace.spool")

_LONGEST_ID = 1000
_LONGEST_TOPIC = 249
# Free pages that are kept for reuse, whatever their share: 4 MiB.
_SPARE_PAGES = 1024
# Each is a step of SQLite's that may wait for the interpreter's lock, and appends wait meanwhile.
_VACUUM_PAGES = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_bytes` of records and their headers; the file is a little larger, and holds ids too.

    An id is known for `window_s` seconds or `window_ids` further ids, whichever ends first.
    """

    max_bytes: int = 10 * 1024**3
    window_s: float = 24 * 3600.0
    window_ids: int = 10_000_000


@dataclass(slots=True)
class _Change:
    """What a transaction makes of the state."""

    state: State


class Store:
    """The one connection that writes. Not for two threads at a time.

    Raises SpoolDamaged for a file that is not a sound spool, SpoolError for one of another version.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        node: str | None = None,
        peers: Peers | None = None,
    ) -> None:
        """`peers` are the node's other spools, whose ids count as taken."""
        self.path = folder / DATABASE
        self._peers = peers
        self._limits = limits or Limits()
        # Whether pages may have become free since it was last looked how many are.
        self._freed = True
        is_new = not self.path.exists()
        was_empty = not is_new and not self.path.stat().st_size
        if was_empty and is_cut_off(self.path):
            raise SpoolDamaged(
                f"{self.path} is empty, and what it held last is in {self.path.name}-wal beside "
                f"it; `headrace spool fsck {folder} --repair` saves that"
            )
        make_private(self.path)
        with translated(self.path):
            self._db = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=30.0
            )
        try:
            with translated(self.path):
                prepare(self._db, self.path, node)
            self.state = self._read_state()
            with translated(self.path):
                self._seen = Seen(self._db, self._limits.window_s, self._limits.window_ids)
            if node is not None and node != self.state.node:
                raise SpoolError(
                    f"{folder} is the spool of node {self.state.node}, not of {node}; a spool "
                    "keeps its node, because Kafka knows its position by it"
                )
        except BaseException:
            self.close()
            raise
        if was_empty:
            # A crash right behind its creation leaves such a file; so does a copy that failed.
            _log.error(
                "%s was there and empty, so a new spool was begun in it. If it is a copy, or has "
                "held records before, stop this process and bring the whole one here", self.path,
            )  # fmt: skip
        if is_new:
            for directory in (folder, folder.parent):
                sync(directory)

    @property
    def has_peers(self) -> bool:
        """Whether an append may have to wait for another process."""
        return self._peers is not None

    @property
    def elsewhere(self) -> Mapping[Path, int]:
        """Other spools that held a record of the last append, and the position behind it there."""
        return self._peers.elsewhere if self._peers is not None else {}

    def append(self, batches: Sequence[Sequence[Record]]) -> list[int | SpoolFull]:
        """Store batches in one transaction, each whole or not at all; for each how many were new.

        A record whose id was taken before is not stored again. A batch that goes beyond the limit
        is answered with SpoolFull. When this returns the rest is on disk. When it raises (SpoolFull
        for a full disk, SpoolDamaged), nothing of it is. An empty batch asks whether the disk takes
        anything: where nothing else is new, a page is written and synced for it.
        """
        peers = self._peers
        if peers is None:
            return self._append(batches, self._seen.known)
        with peers:
            return self._append(batches, lambda key: self._seen.known(key) or peers.known(key))

    def release(self, position: int) -> None:
        """Move the position, and delete blocks that lie below it whole. Going back is ignored."""
        if position <= self.state.position:
            return
        if position > self.state.next_seq:
            raise ValueError(f"position {position} is beyond {self.state.next_seq}")
        with self._transaction() as change:
            gone, low = self._db.execute(
                "SELECT total(length(data)), max(first) FROM blocks WHERE first + count <= :at "
                "AND first < :at",
                {"at": position},
            ).fetchone()
            if low is not None:
                self._db.execute("DELETE FROM blocks WHERE first <= ?", (low,))
            change.state = change.state._replace(
                position=position, bytes=change.state.bytes - int(gone)
            )
        self._freed = True

    def tidy(self) -> bool:
        """Forget old ids, give back a little of the empty space; whether there is more to do."""
        now_us = time.time_ns() // 1000
        if self._seen.due(now_us):
            with self._transaction():
                self._seen.settle(now_us)
            self._seen.settled(now_us)
            self._freed = True
            return True
        if not self._freed:
            return False
        with translated(self.path):
            (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            if free <= max(_SPARE_PAGES, pages // 2):
                self._freed = False
                return False
            # Each page that is freed is a row of this pragma.
            self._db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return True

    def close(self) -> None:
        """Checkpoint and close; closing twice is harmless."""
        self._db.close()
        if self._peers is not None:
            self._peers.close()

    # -- inside

    def _append(
        self, batches: Sequence[Sequence[Record]], known: Callable[[bytes], bool]
    ) -> list[int | SpoolFull]:
        state = self.state
        now_us = time.time_ns() // 1000
        answers: list[int | SpoolFull] = []
        # Front, value, front, value.
        frames: list[bytes] = []
        seq, used = state.next_seq, state.bytes
        fresh: dict[bytes, None] = {}
        whose: tuple[str, str] | None = None
        at = b""
        for batch in batches:
            new: list[bytes] = []
            ids: dict[bytes, None] = {}
            size, end = 0, seq
            for topic, key, value, name, source in batch:
                ident = None
                if name is not None:
                    ident = name.encode()
                    hashed = digest(ident)
                    if hashed in fresh or hashed in ids or known(hashed):
                        continue
                    ids[hashed] = None
                if whose != (topic, source):
                    whose, at = (topic, source), place(topic, source)
                head = front(end, now_us, at, key, value, ident)
                end += 1
                size += len(head) + len(value)
                new += (head, value)
            if used + size > self._limits.max_bytes:
                answers.append(self._full(used))
                continue
            frames += new
            fresh |= ids
            used += size
            answers.append(end - seq)
            seq = end
        if frames:
            blocks = cut(state.next_seq, now_us, frames, used - state.bytes)
            taken = list(fresh)
            self._write(blocks, taken, now_us, state._replace(next_seq=seq, bytes=used))
            self._seen.add(taken, now_us)
        elif not all(batches):
            with self._transaction():
                # Which sets it back. SQLite writes no page for an UPDATE that changes nothing.
                self._db.execute("UPDATE state SET bytes = -1")
        return answers

    def _write(
        self,
        blocks: Sequence[Row],
        taken: Sequence[bytes],
        now_us: int,
        state: State,
    ) -> None:
        """Blocks, the ids in them and the state that they make, in one transaction."""
        if len(blocks) == 1:
            segment, _, ids = self._seen.row(taken, now_us)
            with translated(self.path):
                self._db.execute(
                    "INSERT INTO appended VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*blocks[0], segment, ids, state.next_seq, state.bytes),
                )
            self.state = state
            return
        with self._transaction() as change:
            for row in blocks:
                self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", row)
            self._seen.write(taken, now_us)
            change.state = state

    def _read_state(self) -> State:
        with translated(self.path):
            state = checked_state(self._db, self.path)
            newest = self._db.execute(
                "SELECT first + count FROM blocks ORDER BY first DESC LIMIT 1"
            ).fetchone()
            if newest is not None and isinstance(newest[0], int) and newest[0] > state.next_seq:
                raise Malformed(
                    f"its table state says that {state.next_seq} comes next, which is there already"
                )
            return state

    @contextmanager
    def _transaction(self) -> Iterator[_Change]:
        """BEGIN to COMMIT, with the row of state written last; all or nothing, also in memory.

        `state` changes behind the COMMIT, not before: other threads take it for what is on disk.
        """
        change = _Change(self.state)
        try:
            with translated(self.path):
                self._db.execute("BEGIN IMMEDIATE")
                yield change
                self._db.execute(
                    "UPDATE state SET next_seq = ?, position = ?, bytes = ?", change.state[2:]
                )
                self._db.execute("COMMIT")
        except BaseException:
            # Some errors of SQLite have rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.state = change.state

    def _full(self, used: int) -> SpoolFull:
        return SpoolFull(
            f"the spool {self.path.parent} is at its limit of {self._limits.max_bytes:,} bytes "
            f"({used:,} wait for Kafka); nothing of this was stored, try again later"
        )


def check(record: Record) -> None:
    """Raise ValueError for what no spool can hold, TypeError for what is no bytes.

    In the caller: what a commit can't be made of would end the writer, for everybody.
    """
    topic, name = record.topic, record.id
    key: object = record.key  # whatever its type says
    value: object = record.value
    if not (isinstance(value, bytes) and (key is None or isinstance(key, bytes))):
        wrong = key if isinstance(value, bytes) else value
        raise TypeError(f"key and value of a record must be bytes, not {type(wrong).__name__}")
    if not 0 < len(topic) <= _LONGEST_TOPIC:
        raise ValueError(f"{topic!r} is no name of a topic")
    if name is not None and len(name.encode()) > _LONGEST_ID:
        raise ValueError(f"an id has at most {_LONGEST_ID:,} bytes")


def make_private(path: Path) -> None:
    """A database for its user only, made where there is none: SQLite takes the umask for it, and
    the database's mode for -wal and -shm. No connection of this process may have it open, for its
    locks would go with our handle.

    What goes wrong SQLite meets too, and says.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return
    # Of a version before this one.
    for file in (path, *(path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))):
        with suppress(OSError):
            if _is_open_to_others(file.lstat()):
                # Never through a link: in another user's directory it may lead anywhere.
                handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    found = os.fstat(handle)
                    if _is_open_to_others(found):
                        os.fchmod(handle, found.st_mode & 0o700)
                finally:
                    os.close(handle)


def _is_open_to_others(found: os.stat_result) -> bool:
    """Whether it is a file of ours, under this name only, that others may use."""
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
    return ours and bool(found.st_mode & 0o077)


def sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
