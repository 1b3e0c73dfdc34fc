"""Connections at which nothing has come for too long, closed by what the kernel knows of them.

Where a connection may be HTTP/2 the server waits without an end for its first bytes, and for the
rest of what HTTP/2 begins with; granian has no setting for that. (It has 10 seconds for a handshake
of TLS, a time for the headers of HTTP/1, and PINGs for HTTP/2 once it has begun.) So whoever opened
`max_connections` and said nothing would shut the door for ever.

Nobody who means well is silent for long: over HTTP/1 the body and the answer have their times, and
an HTTP/2 client answers PINGs by itself. The limit has to be beyond all of these.

The sockets are in Rust, so they are found among this process's files: those at the port of one that
listens. Each is looked at and closed through a duplicate, so its number can't become another's in
between. On Linux (TCP_INFO); elsewhere none is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["close_silent"]

_FILES = Path("/proc/self/fd")
# tcpi_last_data_recv of struct tcp_info: ms since data came, or since the connection was made.
_LAST_DATA_RECV = struct.Struct("=52xI")


def close_silent(limit_s: float) -> int:
    """Close each connection to this process that was silent for so long; how many were.

    Takes 20 ms for a thousand: not for an event loop. Raises OSError while no more files can be
    opened.
    """
    if not hasattr(socket, "TCP_INFO") or not _FILES.is_dir():
        return 0
    ports = {found.getsockname()[1] for found in _sockets() if _listens(found)}
    closed = 0
    for found in _sockets():
        if found.getsockname()[1] in ports and not _listens(found) and _silent_s(found) > limit_s:
            with contextlib.suppress(OSError):  # it was closed by the other side just now
                found.shutdown(socket.SHUT_RDWR)
                closed += 1
    return closed


def _sockets() -> Iterator[socket.socket]:
    """A duplicate of each TCP socket of this process, open until the next one is asked for."""
    for file in list(_FILES.iterdir()):
        try:
            if not stat.S_ISSOCK(os.fstat(int(file.name)).st_mode):
                continue
            duplicate = os.dup(int(file.name))
        except OSError as error:
            if error.errno != errno.EBADF:  # closed since it was listed
                raise
            continue
        if not stat.S_ISSOCK(os.fstat(duplicate).st_mode):  # another's since it was looked at
            os.close(duplicate)
            continue
        with socket.socket(fileno=duplicate) as found:
            if (
                found.family in (socket.AF_INET, socket.AF_INET6)
                and found.type == socket.SOCK_STREAM
            ):
                yield found


def _listens(found: socket.socket) -> bool:
    return found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0


def _silent_s(found: socket.socket) -> float:
    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV.size)
    return float(_LAST_DATA_RECV.unpack(info)[0]) / 1000
