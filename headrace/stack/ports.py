"""Loopback ports: which are free, and who has one that is not.

They are chosen below 32768, outside the range from which Linux and macOS take the source ports of
outgoing connections, so that a remembered port is still free at the next start.
"""

from __future__ import annotations

import random
import socket
import time
from contextlib import suppress

import psutil

from .model import StackError

HOST = "127.0.0.1"
PORT_RANGE = range(15_000, 32_000)
# A killed JVM has been seen to hold its port while the system takes its memory apart.
_DYING_S = 3.0
_NOBODY_KNOWN = "another process"


def free_ports(n: int) -> list[int]:
    """`n` different loopback ports that nobody listens on."""
    found: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        if port_is_free(port):
            found.append(port)
            if len(found) == n:
                return found
    raise StackError(f"no free port on {HOST} between {PORT_RANGE.start} and {PORT_RANGE.stop}.")


def port_is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is no obstacle
        try:
            s.bind((HOST, port))
        except OSError:
            return False
    return True


def becomes_free(port: int) -> bool:
    """port_is_free, after the moment that a killed server may take to let go of its sockets."""
    deadline = time.monotonic() + _DYING_S
    while not port_is_free(port):
        # A living process that listens will not go away by itself.
        if who_listens(port) != _NOBODY_KNOWN or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def who_listens(port: int) -> str:
    """'pid 12 (nginx)', or 'another process' where the system does not tell."""
    with suppress(psutil.Error):
        for c in psutil.net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr[1:] == (port,) and c.pid:
                return f"pid {c.pid} ({psutil.Process(c.pid).name()})"
    return _NOBODY_KNOWN
