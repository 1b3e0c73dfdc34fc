"""The file of a unix socket: made for its group only, found free, and removed at the end.

A killed process leaves its file behind, and bind() refuses a path that is there. So a socket's file
at which nobody listens is removed; one at which somebody does, or any other file, is an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ingest.collector.settings import CollectError

__all__ = ["SocketFile"]

_MODE = 0o660


class SocketFile:
    """`socket` listens at the path. Raises CollectError where it can't."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = _bind(path)
        self._inode = _inode(path)

    def remove(self) -> None:
        """Remove our file, not one that another has put there since."""
        with contextlib.suppress(OSError):
            if _inode(self.path) == self._inode:
                self.path.unlink()


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _bind(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone(path.parent):
            _remove_stale(path)
            # On Linux the file gets the socket's mode, so it is never open to more; elsewhere for
            # the moment until chmod.
            with contextlib.suppress(OSError):
                os.fchmod(bound.fileno(), _MODE)
            bound.bind(str(path))
            path.chmod(_MODE)
            # Before another may look: one that does not listen is taken for left behind.
            bound.listen(128)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        why = error.strerror or str(error)
        raise CollectError(f"the socket {path} can't be made: {why}") from error
    except BaseException:
        bound.close()
        raise
    return bound


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One collector at a time looks and binds: a second would remove what the first has made."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CollectError(f"{path} is there and is no socket; name another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        # One whose queue is full does not answer, but somebody is there.
        asking.settimeout(1.0)
        found = asking.connect_ex(str(path))
    if found not in (errno.ECONNREFUSED, errno.ENOENT):
        raise CollectError(
            f"somebody listens at {path}: another collector; stop it, or name another path"
        )
    path.unlink(missing_ok=True)
