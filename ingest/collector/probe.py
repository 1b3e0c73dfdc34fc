"""How long the disk of a spool takes to make a page durable, asked now and then.

A commit is one call into SQLite, which writes, fsyncs and computes in it, and waits for a processor
and for Python's lock besides. When commits are slow the question is whether the disk is: this
answers it, on the same file system, with the call that SQLite makes. It is a sample, not SQLite's
own fsync.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from ingest.collector import metrics

__all__ = ["Probe"]

# A page, as SQLite writes them.
_PAGE = bytes(4096)
_sync = getattr(os, "fdatasync", os.fsync)


class Probe:
    """A file of one page in the spool's directory, written over each time; gone when closed.

    For two threads: whoever stops does not know whether a sync is under way, and a number that was
    closed may be another file's by the time a page is written to it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "probe"
        self._file = -1
        self._closed = False
        self._turn = threading.Lock()

    def sync(self) -> None:
        """Write and sync it, and count how long the sync took; on a full disk, nothing."""
        with self._turn:
            if not self._closed:
                self._sync()

    def close(self) -> None:
        """Remove it, behind a sync that is under way: not for an event loop. Twice is harmless."""
        with self._turn:
            self._closed = True
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                with contextlib.suppress(OSError):
                    self._path.unlink()

    def _sync(self) -> None:
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
