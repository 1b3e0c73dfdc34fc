"""Reading a spool's file: a connection that never writes, what SQLite says, the row of state."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from ingest.spool.batch import Batch, head
from ingest.spool.blocks import Row, is_row
from ingest.spool.errors import Malformed, SpoolDamaged, SpoolError, SpoolFull
from ingest.spool.frames import Stored, unpack

__all__ = [
    "DATABASE", "NODE", "Reader", "State", "checked_state", "is_cut_off", "read_state",
    "translated",
]  # fmt: skip

DATABASE = "spool.db"
# The other workers have the file open, too, and a file that is written anew is another one.
_MEND = (
    "stop this process, of a collector the whole of it, and run `headrace spool fsck {} --repair`"
)
# What a node may be called: it is part of Kafka's transactional id.
NODE = re.compile(r"[A-Za-z0-9._-]{1,100}")


def is_cut_off(path: Path) -> bool:
    """Whether a database is empty beside a WAL that is not: SQLite would delete that, records and
    all, as soon as it opens the file."""
    wal = path.with_name(f"{path.name}-wal")
    return not path.stat().st_size and wal.is_file() and wal.stat().st_size > 0


class State(NamedTuple):
    """The row of `state`: what a spool knows about itself."""

    node: str
    created_us: int
    next_seq: int
    position: int
    bytes: int


class Reader:
    """A connection that only reads; one thread at a time. Close it before the Store."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DATABASE
        with translated(self._path):
            self._db = sqlite3.connect(
                f"{self._path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None,
                check_same_thread=False, timeout=30.0,
            )  # fmt: skip

    def read(self, start: int, max_records: int, max_bytes: int) -> list[Stored]:
        """Records from number `start` on, in order; empty at the end.

        It stops with the block that reaches a limit. Raises SpoolDamaged, naming the block, where a
        checksum is wrong; what lies before it is given first.
        """
        found: list[Stored] = []
        size = 0
        following = start
        while len(found) < max_records and size < max_bytes:
            row = self._block(following)
            if row is None:
                break
            first, count, _, data = row
            records = unpack(data, first, count, following)
            if records is None:
                if found:
                    break
                raise self._damaged(first, count)
            found += records
            size += len(data)
            following = first + count
        return found

    def batch(self, start: int, max_records: int, max_bytes: int) -> Batch | None:
        """The same records, for Kafka; None at the end.

        It begins at `start`, also where that record is not there: the ledger is to know of it.
        Never beyond a limit, but for a single record that is: a block that does not fit is left for
        the next batch, or cut where it is the first.
        """
        found = Batch(start)
        following = start
        while found.records < max_records and found.size < max_bytes:
            row = self._block(following)
            if row is None:
                break
            first, count, crc, data = row
            if crc32(data) != crc:
                if found.records:
                    break
                raise self._damaged(first, count)
            records = first + count - max(first, following)
            if found.records + records > max_records or found.size + len(data) > max_bytes:
                if found.records:
                    break
                front = head(data, first, count, following, max_records, max_bytes)
                if front is None:
                    raise self._damaged(first, count)
                count, data = front
            if not found.add(data, first, count, following):
                if found.records:
                    break
                raise self._damaged(first, count)
            following = found.end
        return found if found.records else None

    def following(self, first: int) -> Row | None:
        """The first block behind that of a number, sound or not. Raises SpoolDamaged where SQLite
        has none there but another one."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT first, count, at_us, crc, data FROM blocks WHERE first > ? "
                "ORDER BY first LIMIT 1",
                (first,),
            ).fetchone()
            if row is None:
                return None
            if not is_row(row) or row[0] <= first:
                raise Malformed("a row of its table blocks is none")
        first, count, at_us, crc, data = row
        return first, count, at_us, crc, data

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a question."""
        with translated(self._path):
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """The file as it is now, for several questions."""
        with translated(self._path):
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("ROLLBACK")

    def state(self) -> State:
        """What the spool knows about itself now. Raises SpoolDamaged as checked_state()."""
        with translated(self._path):
            return checked_state(self._db, self._path)

    def oldest_us(self, position: int) -> int | None:
        """When the oldest record from a position on came, to the block."""
        found = self.rows(
            "SELECT at_us FROM blocks WHERE first + count > ? ORDER BY first LIMIT 1", (position,)
        )
        return int(found[0][0]) if found else None

    def close(self) -> None:
        """Let go of the file; closing twice is harmless."""
        self._db.close()

    def _block(self, start: int) -> tuple[int, int, int, bytes] | None:
        """The block that number `start` is in, or the next one: first, count, crc, data."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT first, count, at_us, crc, data FROM blocks WHERE first >= coalesce("
                "(SELECT first FROM blocks WHERE first <= :at AND first + count > :at "
                "ORDER BY first DESC LIMIT 1), :at) ORDER BY first LIMIT 1",
                {"at": start},
            ).fetchone()
            if row is None:
                return None
            if not is_row(row):
                raise Malformed("a row of its table blocks is none")
        first, count, _, crc, data = row
        return first, count, crc, data

    def _damaged(self, first: int, count: int) -> SpoolDamaged:
        return SpoolDamaged(
            f"{self._path}: a record of {first} to {first + count - 1} is damaged. Nothing "
            "behind it is sent before it is set aside: " + _MEND.format(self._path.parent)
        )


def read_state(db: sqlite3.Connection, path: Path) -> State:
    """The row of state, checked: a wrong node would be another one's position."""
    columns = ", ".join(State._fields)
    row = db.execute(f"SELECT {columns} FROM state").fetchone()  # noqa: S608 (names of fields)
    is_state = row is not None and [type(field) for field in row] == [str, int, int, int, int]
    if not is_state or not NODE.fullmatch(row[0]) or not 0 <= row[3] <= row[2]:
        raise SpoolDamaged(f"{path}: its table state is damaged; restore that row by hand")
    return State(*row)


def checked_state(db: sqlite3.Connection, path: Path) -> State:
    """The same, and what lies below its position is deleted, as it is in the transaction that moves
    it: a position that is wrong would be the loss of records that were never sent."""
    state = read_state(db, path)
    row = db.execute("SELECT first, first + count FROM blocks ORDER BY first LIMIT 1").fetchone()
    if row is not None and isinstance(row[1], int) and row[1] <= state.position:
        raise SpoolDamaged(
            f"{path}: its table state says that all below {state.position} is in Kafka, but record "
            f"{row[0]} was never deleted, so that is wrong. Nothing is sent or deleted: "
            f"{_MEND.format(path.parent)}, which goes back to that record"
        )
    return state


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except Malformed as error:
        raise _unsound(path, error) from error
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        if name == "SQLITE_FULL" or name in ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC"):
            # A quota and a limit on the size of files are IOERR_WRITE: SQLite tells only ENOSPC.
            raise SpoolFull(
                f"the disk of the spool {path.parent} is full or can't be written ({error}); "
                "nothing of this was stored"
            ) from error
        # What Python says of text that is none has no name.
        is_no_text = str(error).startswith("Could not decode")
        if name.startswith("SQLITE_CORRUPT") or name == "SQLITE_NOTADB" or is_no_text:
            raise _unsound(path, error) from error
        raise SpoolError(f"{path} can't be used: {error} ({name})") from error


def _unsound(path: Path, error: Exception) -> SpoolDamaged:
    return SpoolDamaged(
        f"{path} is damaged ({error}). What can be read of it can be saved: "
        f"{_MEND.format(path.parent)}"
    )
