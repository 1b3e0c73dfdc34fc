"""One process at a time has a spool: an advisory lock, let go of by the system when it dies."""

from __future__ import annotations

import os
from pathlib import Path

from ingest.spool.errors import SpoolInUse

__all__ = ["Lock", "user_of"]


class Lock:
    """DIR/lock, held by one process; the system lets go of it when that dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        # Here and not at the top: there is none on Windows, where the rest of ingest works.
        import fcntl

        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(self._file, 20).decode(errors="replace").strip()
            os.close(self._file)
            raise SpoolInUse(
                f"the spool {folder} is in use by process {who or '(unknown)'}; it sends what is "
                "in it. Stop that process first, or leave it alone"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go; twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


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
