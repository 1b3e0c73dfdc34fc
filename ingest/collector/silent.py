"""Connections at which nothing has come for too long, closed by what the kernel knows of them.

And such as take nothing: who asks for pages and reads no answer keeps his connection too, for the
server waits to send without an end. The kernel itself ends these (TCP_USER_TIMEOUT).

Where a connection may be HTTP/2 the server waits without an end for its first bytes, and for the
rest of what HTTP/2 begins with; granian has no setting for that. (It has 10 seconds for a handshake
of TLS, a time for the headers of HTTP/1, and PINGs for HTTP/2 once it has begun.) So whoever opened
`max_connections` and said nothing would shut the door for ever.

Nobody who means well is silent for long: over HTTP/1 the body and the answer have their times, and
an HTTP/2 client answers PINGs by itself. The limit has to be beyond all of these.

Whoever has spoken and was not listened to yet is not silent. With all of `max_connections` taken,
others wait in the kernel, and with TLS in the server too: nothing of what they have sent is read,
and it may be long ago. Their time begins when they are let in, as far as it is seen from here.

The sockets are in Rust, so they are found among this process's files: those at the port of one that
listens. Each is looked at and closed through a duplicate, so its number can't become another's in
between. On Linux (TCP_INFO); elsewhere none is closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

__all__ = ["Silent", "end_unread", "listening"]

_FILES = Path("/proc/self/fd")
# Of struct tcp_info: tcpi_last_data_recv, ms since data came, or since the connection was made; and
# tcpi_bytes_received.
_INFO = struct.Struct("=52xI72xQ")


class Silent:
    """Closes the connections to this process that were silent for `limit_s`."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        # Since when each is let in, by its inode: a number among the files is soon another's.
        self._since: dict[int, float] = {}

    def close(self) -> int:
        """To be called again and again; how many it closed.

        Takes 20 ms for a thousand: not for an event loop. Raises OSError while no more files can be
        opened.
        """
        if not hasattr(socket, "TCP_INFO") or not _FILES.is_dir():
            return 0
        now, known = self._clock(), self._since
        ports = {found.getsockname()[1] for found in _sockets() if _listens(found)}
        closed = 0
        self._since = {}
        for found in _sockets():
            if found.getsockname()[1] not in ports or _listens(found):
                continue
            silent_s, unread = _look(found)
            inode = os.fstat(found.fileno()).st_ino
            self._since[inode] = since = now if unread else known.get(inode, now)
            if min(silent_s, now - since) > self._limit_s:
                with contextlib.suppress(OSError):  # it was closed by the other side just now
                    found.shutdown(socket.SHUT_RDWR)
                    closed += 1
        return closed


def listening() -> set[int]:
    """The sockets of this process that listen, by inode. Raises OSError as end_unread()."""
    if not _FILES.is_dir():
        return set()
    return {os.fstat(found.fileno()).st_ino for found in _sockets() if _listens(found)}


def end_unread(limit_s: float, others: Collection[int] = ()) -> bool:
    """Have connections end whose other side takes nothing of what is sent, for `limit_s`.

    Those that are accepted from now on inherit it of the socket that listens; the first ones may be
    there already. False while none listens but `others`, as of listening(). On Linux; nothing
    elsewhere. Raises OSError while no more files can be opened.
    """
    if not hasattr(socket, "TCP_USER_TIMEOUT") or not _FILES.is_dir():
        return True
    ports = set()
    done = False
    for found in _sockets():
        if _listens(found):
            _end(found, limit_s)
            ports.add(found.getsockname()[1])
            done = done or os.fstat(found.fileno()).st_ino not in others
    for found in _sockets() if done else ():
        if found.getsockname()[1] in ports:
            _end(found, limit_s)
    return done


def _end(found: socket.socket, limit_s: float) -> None:
    with contextlib.suppress(OSError):  # it was closed by the other side just now
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limit_s * 1000))


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


def _look(found: socket.socket) -> tuple[float, bool]:
    """For how long nothing has come, in seconds; whether something has, and none of it is read."""
    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    silent_ms, received = _INFO.unpack(info)
    unread = int.from_bytes(fcntl.ioctl(found, termios.FIONREAD, bytes(4)), sys.byteorder)
    return silent_ms / 1000, 0 < received <= unread
