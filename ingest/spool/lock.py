"""One process at a time has a spool: an advisory lock, let go of by the system when it dies.

It belongs to the open file, which a forked child shares. So the child closes its handle at once:
otherwise the lock would outlive the process that has the spool, for as long as the child lives.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from ingest.spool.errors import SpoolError, SpoolInUse

__all__ = ["Lock", "user_of"]

_held: weakref.WeakSet[Lock] = weakref.WeakSet()
# Directories that were open in the parent when this process was forked.
_parents: set[Path] = set()


class Lock:
    """DIR/lock, held by one process; the system lets go of it when that dies, however it dies.

    The directory is made where it is missing. Raises SpoolInUse while another process holds it,
    SpoolError where there can be no such directory or file.
    """

    def __init__(self, folder: Path) -> None:
        # Here and not at the top: there is none on Windows, where the rest of ingest works.
        import fcntl

        self._file = -1
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._folder = folder.resolve()
            if self._folder in _parents:
                # SQLite takes the parent's locks in the file, which it remembers, for its own.
                self.release()
                raise SpoolInUse(
                    f"the spool {folder} was open in the process that this one was forked from, "
                    "and can't be opened in such a child; give it a directory of its own"
                )
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
            _held.add(self)
        except BlockingIOError:
            who = os.read(self._file, 20).decode(errors="replace").strip()
            self.release()
            raise SpoolInUse(
                f"the spool {folder} is in use by process {who or '(unknown)'}, which sends it or "
                "looks into it. Stop that process first, or leave it alone"
            ) from None
        except OSError as error:
            self.release()
            raise SpoolError(
                f"{folder} can't be the directory of a spool: {error.strerror} "
                f"({error.filename or folder / 'lock'}). This user must be able to make it and to "
                "write in it; give another one otherwise"
            ) from error

    def release(self) -> None:
        """Let go; twice is harmless."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def leave_to_parent(self) -> None:
        """In a forked child: the parent's lock stays, and no longer than the parent."""
        if self._file >= 0:
            _parents.add(self._folder)
            self.release()


def user_of(folder: Path) -> int | None:
    """The process that has a spool open; None when nobody has."""
    import fcntl

    try:
        with (folder / "lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20) or 0)
    except (OSError, ValueError):
        pass
    return None


def _in_child() -> None:
    for lock in list(_held):
        lock.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
