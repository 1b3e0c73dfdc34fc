"""A client's connection, cut: what ASGI has no word for.

The server's sockets are in Rust, so the client's is found among this process's files by the
address at its other end, and cut through a duplicate.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["reset"]

_FOLDERS = (Path("/proc/self/fd"), Path("/dev/fd"))
_NO_ADDRESS = struct.pack("H14x", socket.AF_UNSPEC)


def reset(client: tuple[str, int | str]) -> bool:
    """Send a TCP reset to this client; whether its connection was found.

    granian gives the port as text.
    """
    for found in _sockets():
        with contextlib.suppress(OSError):  # it is not connected
            if found.getpeername()[:2] == (client[0], int(client[1])):
                # Undoing the connection is what sends a reset; elsewhere than on Linux a close.
                if ctypes.CDLL(None).connect(found.fileno(), _NO_ADDRESS, len(_NO_ADDRESS)) != 0:
                    found.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _sockets() -> Iterator[socket.socket]:
    """A duplicate of each TCP socket of this process, open until the next one is asked for."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    for file in list(folder.iterdir()) if folder else ():
        try:
            if not stat.S_ISSOCK(os.fstat(int(file.name)).st_mode):
                continue
            duplicate = os.dup(int(file.name))
        except OSError:  # closed since it was listed
            continue
        with socket.socket(fileno=duplicate) as found:
            if (
                found.family in (socket.AF_INET, socket.AF_INET6)
                and found.type == socket.SOCK_STREAM
            ):
                yield found
