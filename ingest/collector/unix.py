"""The unix socket: services on this host send frames, and hear of each one when it is on disk.

The protocol is ingest/socket_protocol.py's; this is its collector's side on an event loop. What a
connection does is in unix_connection.py, what is taken in unix_judge.py.

* A record's id is `unix:<session>:<seq>`. So a frame that is sent again after a lost connection is
  stored once; and since a session has one connection, the newest, its order stays.
* Who may connect is a matter of the file's mode, 0660. A key, where a client gives one, narrows
  the streams; keys' rates are for clients from elsewhere.

Measured on 2 cores, records of 134 bytes: one publisher has 53,000 to 68,000 records/s acknowledged
and 0.7 ms an answer when it waits for each; a bare Spool that is given ids takes 110,000 to 120,000
in the same run. What lies between is parsing each record to judge it, and its frame: 4 µs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ingest.collector.judge import Limits
from ingest.collector.unix_connection import Connection, Store
from ingest.collector.unix_file import SocketFile
from ingest.collector.unix_judge import Allowed, Judge
from ingest.socket_protocol import LARGEST
from ingest.spool.errors import SpoolError
from ingest.streams import Stream

__all__ = ["UnixDoor"]

_log = logging.getLogger("headrace.collect")

# While the spool takes nothing: between two lines in the log.
_WARN_EVERY_S = 30.0


class UnixDoor:
    """One socket on one event loop: `await start()`, `await close()`.

    `find_key` tells a key from its secret, see ingest/collector/keys.py; without it nobody's is
    asked for. While `stalled` answers with an error nothing is taken, for nobody would send it.
    """

    def __init__(
        self,
        path: Path,
        acks: Store,
        streams: Mapping[str, Stream],
        *,
        limits: Limits | None = None,
        find_key: Callable[[str], Allowed | None] | None = None,
        stalled: Callable[[], SpoolError | None] = lambda: None,
        max_connections: int = 128,
    ) -> None:
        self.path = path
        self.acks = acks
        record_bytes = (limits or Limits()).record_bytes
        self.judge = Judge(streams, record_bytes)
        # One that is too large is refused alone, so there must be room for it in a frame.
        self.largest = max(LARGEST, 2 * record_bytes)
        self.find_key = find_key
        self.stalled = stalled
        self.max_connections = max_connections
        self.connections: set[Connection] = set()
        self.sessions: dict[bytes, Connection] = {}
        self._all_gone = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._file: SocketFile | None = None
        self._warned = -_WARN_EVERY_S

    async def start(self) -> None:
        """Listen. Raises CollectError where that is not possible."""
        self._file = SocketFile(self.path)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self), sock=self._file.socket
            )
        except BaseException:
            self._file.socket.close()
            self._file.remove()
            raise

    async def close(self, grace_s: float = 5.0) -> None:
        """Take nothing more, answer what is on its way to the disk, remove the file."""
        if self._server is None or self._file is None:
            return
        self._server.close()
        self._file.remove()
        for connection in list(self.connections):
            connection.leave("closing", "the collector stops")
        # Each ends by itself once its append is answered; what is not in time has no answer.
        if self.connections:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), grace_s)
        for connection in list(self.connections):
            connection.abort()
        self._server = None

    # -- what its connections say

    def joined(self, connection: Connection) -> bool:
        """There is one more; whether there may be."""
        self.connections.add(connection)
        return len(self.connections) <= self.max_connections

    def greeted(self, session: bytes, connection: Connection) -> None:
        """It is the session's newest, and so its only one."""
        before = self.sessions.get(session)
        self.sessions[session] = connection
        if before is not None:
            # Its client has lost it; what it still holds is sent again over this one.
            before.abort()

    def gone(self, session: bytes, connection: Connection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._all_gone.set()
        if self.sessions.get(session) is connection:
            del self.sessions[session]

    def warn(self, error: SpoolError) -> None:
        """Say that clients wait, not too often."""
        if time.monotonic() - self._warned >= _WARN_EVERY_S:
            self._warned = time.monotonic()
            _log.warning("what clients of %s send has to wait: %s", self.path, error)
