"""How long the disk of a spool takes to make a page durable, asked now and then.

A commit is one call into SQLite, which writes, fsyncs and computes in it, and waits for a processor
and for Python's lock besides. When commits are slow the question is whether the disk is: this
answers it, on the same file system, with the call that SQLite makes. It is a sample, not SQLite's
own fsync.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ingest.collector import metrics

__all__ = ["Probe"]

# A page, as SQLite writes them.
_PAGE = bytes(4096)
_sync = getattr(os, "fdatasync", os.fsync)


class Probe:
    """A file of one page in the spool's directory, written over each time; gone when closed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "probe"
        self._file = -1

    def sync(self) -> None:
        """Write and sync it, and count how long the sync took; on a full disk, nothing."""
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                # Its length and its block are there from now on: not the disk's time for a page.
                os.pwrite(self._file, _PAGE, 0)
                os.fsync(self._file)
            os.pwrite(self._file, _PAGE, 0)
            begun = time.perf_counter()
            _sync(self._file)
        except OSError:  # the spool says so itself, to those who send
            return
        metrics.FSYNC_SECONDS.observe(time.perf_counter() - begun)

    def close(self) -> None:
        """Remove it; twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._path.unlink(missing_ok=True)
