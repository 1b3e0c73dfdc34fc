"""The other spools of one node: which ids they took, so that a retry is known whoever gets it.

A collector with several workers has a spool for each, side by side, and a retry may come to another
worker than the first try did. So an append that has ids happens in turn:

    1 the lock of the node, DIR/ids.lock
    2 what the others have written since the last look
    3 the append, with its COMMIT
    4 the lock is let go of

Nobody writes to another's file; whoever dies, the system lets go of its lock. Costs a commit of two
workers some 50 us, and a worker the memory of all workers' ids (ingest/spool/seen.py).
"""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType

from ingest.spool.errors import SpoolDamaged, SpoolError
from ingest.spool.reader import DATABASE, Reader, read_state
from ingest.spool.seen import Ids

__all__ = ["Peers"]

_log = logging.getLogger("headrace.spool")


class Peers:
    """Entered for the time of an append; not for two threads at a time."""

    def __init__(self, lock: Path, folders: list[Path], window_ids: int) -> None:
        """`folders` are the other spools, those too that are still to come.

        Raises SpoolError where there can be no such lock.
        """
        self._peers = [_Peer(folder, window_ids) for folder in folders]
        # Who holds what known() was asked for since the lock was taken, and the position behind it.
        self.elsewhere: dict[Path, int] = {}
        try:
            self._file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"{lock} can't be opened: {error.strerror}") from error

    def __enter__(self) -> Peers:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self.elsewhere = {}
            for peer in self._peers:
                peer.look()
        except BaseException:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def known(self, key: bytes) -> bool:
        """Whether one of them took an id of this digest."""
        for peer in self._peers:
            if peer.ids.known(key):
                self.elsewhere[peer.folder] = peer.next_seq
                return True
        return False

    def close(self) -> None:
        """Let go of the files; closing twice is harmless."""
        for peer in self._peers:
            peer.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class _Peer:
    def __init__(self, folder: Path, window_ids: int) -> None:
        self.folder = folder
        self.ids = Ids(window_ids)
        self.next_seq = 0
        self._window_ids = window_ids
        self._path = folder / DATABASE
        # The file that is read, by device and number: a repair puts another in its place.
        self._file: tuple[int, int] | None = None
        self._reader: Reader | None = None
        self._version = -1
        # The version that is damaged: to read it again with each append would hold them all up.
        self._damaged = -1
        self._failing = False

    def look(self) -> None:
        """What was written since the last time.

        A file that can't be read keeps nobody from accepting: what is known of it stays known.
        """
        try:
            there = _file(self._path)
            if there is not None and there != self._file:
                reader = Reader(self.folder)
                self.close()
                self._reader, self._file, self._version = reader, there, -1
                self._damaged = -1
            if self._reader is None:
                return
            # SQLite's count of the others' commits, as this connection sees them.
            ((version,),) = self._reader.rows("PRAGMA data_version")
            if version == self._damaged:
                return
            if version != self._version:
                ids = Ids(self._window_ids) if self._version < 0 else self.ids
                try:
                    with self._reader.snapshot() as db:
                        ids.read(db)
                        next_seq = read_state(db, self._path).next_seq
                except SpoolDamaged:
                    self._damaged = version
                    raise
                self.ids, self.next_seq = ids, next_seq
                self._version = version
        except SpoolError as error:
            if not self._failing:
                _log.error("what %s took is not known, so a retry may be stored twice: %s",
                           self.folder, error)  # fmt: skip
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _file(path: Path) -> tuple[int, int] | None:
    """Which file is there, by device and number; None while there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
