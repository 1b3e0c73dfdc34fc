"""The unix socket: services on this host send frames, and hear of each one when it is on disk.

The protocol is ingest/collector/wire.py's; this is its collector's side on an event loop.

* A connection has one append under way. What it reads meanwhile is judged and waits for the next,
  so frames are stored in the order of their numbers whatever the spool answers, and each commit
  takes all that came during the one before.
* When much waits, it is not read on: the client's own queue fills, and its publish blocks. Nobody
  hears of a full spool; the same append is tried again until there is room.
* A record's id is `unix:<session>:<seq>`. So a frame that is sent again after a lost connection is
  stored once; and since a session has one connection, the newest, its order stays.
* The stream's own rules decide what is good (ingest/admission.py); what is not is refused by its
  number, with the reason, and the others go on. A record's Kafka key is taken from the message.
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
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from google.protobuf.message import Message

from ingest.admission import Admission
from ingest.collector import metrics
from ingest.collector.judge import Limits
from ingest.collector.unix_file import SocketFile
from ingest.collector.wire import (
    LARGEST,
    Ack,
    Frame,
    Frames,
    Goodbye,
    Hello,
    ProtocolError,
    Refusal,
    Welcome,
    encode,
)
from ingest.scalars import RecordError
from ingest.spool.errors import SpoolError
from ingest.spool.frames import Record
from ingest.streams import Stream

__all__ = ["UnixDoor"]

_log = logging.getLogger("headrace.collect")

_KIND = "socket"
_ACCEPTED = metrics.ACCEPTED.labels(_KIND)
# One read: half a thousand small records, so that no other door waits long for this one.
_READ_BYTES = 64 * 1024
# What of a connection waits for its next append before it is not read on.
_WAITING_BYTES = 1024 * 1024
# A client that has connected and says nothing; one that does not read its last answers.
_HELLO_S = 10.0
_GOODBYE_S = 5.0
# While the spool takes nothing: between two attempts, and between two lines in the log.
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0
_WARN_EVERY_S = 30.0


class Store(Protocol):
    """What is needed of ingest/collector/acks.py."""

    def store(self, records: list[Record]) -> asyncio.Future[int]: ...


class Allowed(Protocol):
    """What is needed of a Key."""

    def allows_stream(self, stream: str) -> bool: ...


class _Route(NamedTuple):
    topic: str
    parse: Callable[[bytes], Message]
    admit: Callable[[Message], tuple[bytes, bytes]]


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
        self.record_bytes = (limits or Limits()).record_bytes
        # One that is too large is refused alone, so there must be room for it in a frame.
        self.largest = max(LARGEST, 2 * self.record_bytes)
        self.find_key = find_key
        self.stalled = stalled
        self.routes: dict[str, _Route] = {}
        for name, stream in streams.items():
            admission = Admission(stream)
            self.routes[name] = _Route(stream.topic, admission.parse, admission.admit)
        self.max_connections = max_connections
        self.connections: set[_Connection] = set()
        self.sessions: dict[bytes, _Connection] = {}
        self.all_gone = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._file: SocketFile | None = None
        self._warned = -_WARN_EVERY_S

    async def start(self) -> None:
        """Listen. Raises CollectError where that is not possible."""
        self._file = SocketFile(self.path)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Connection(self), sock=self._file.socket
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
            self.all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.all_gone.wait(), grace_s)
        for connection in list(self.connections):
            connection.abort()
        self._server = None

    def warn(self, error: SpoolError) -> None:
        """Say that clients wait, not too often."""
        if time.monotonic() - self._warned >= _WARN_EVERY_S:
            self._warned = time.monotonic()
            _log.warning("what clients of %s send has to wait: %s", self.path, error)


class _Batch(NamedTuple):
    records: list[Record]
    # What is said once the records are on disk, the ack last.
    answer: bytes


class _Connection(asyncio.BufferedProtocol):
    """One client."""

    _transport: asyncio.Transport

    def __init__(self, door: UnixDoor) -> None:
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._frames = Frames(door.largest)
        self._session = b""
        self._prefix = ""
        # The key as it was found last, and its secret: it may be revoked at any time.
        self._key: Allowed | None = None
        self._secret = ""
        # Judged, and not yet given to the spool.
        self._records: list[Record] = []
        self._refusals: list[bytes] = []
        self._bytes = 0
        self._seq = 0
        self._storing = False
        self._wait_s = _FIRST_WAIT_S
        self._clogged = False
        self._reading = True
        self._goodbye: bytes | None = None
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked: uvloop's is of a class of its own.
        self._transport = cast("asyncio.Transport", transport)
        self._door.connections.add(self)
        self._timer = self._loop.call_later(
            _HELLO_S, self.leave, "protocol", f"no hello within {_HELLO_S:g} s"
        )
        if len(self._door.connections) > self._door.max_connections:
            self.leave("busy", f"there are {self._door.max_connections} connections")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._goodbye is not None or not self._is_allowed():
            return
        try:
            for event in self._frames.receive(bytes(self._buffer[:nbytes])):
                if type(event) is Frame:
                    self._take(event)
                elif isinstance(event, Hello) and not self._greet(event):
                    return
        except ProtocolError as error:
            self.leave("protocol", str(error))
        self._pump()

    def eof_received(self) -> bool:
        """The client sends no more, but may still listen."""
        try:
            self._frames.end()
            self._end(b"")
        except ProtocolError as error:
            self.leave("protocol", str(error))
        return True

    def pause_writing(self) -> None:
        self._clogged = True
        self._regulate()

    def resume_writing(self) -> None:
        self._clogged = False
        self._regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._records.clear()
        self._stop_timer()
        self._door.connections.discard(self)
        if not self._door.connections:
            self._door.all_gone.set()
        if self._door.sessions.get(self._session) is self:
            del self._door.sessions[self._session]

    # -- ends

    def leave(self, code: str, reason: str) -> None:
        """Read no more, store and answer what was read, say goodbye."""
        self._end(encode(Goodbye(code, reason)))

    def abort(self) -> None:
        """Now, without a word; what is on its way to the disk gets there, and has no answer."""
        if not self._gone:
            self._transport.abort()

    def _end(self, goodbye: bytes) -> None:
        if self._goodbye is None and not self._gone:
            self._goodbye = goodbye
            self._regulate()
            self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- judging

    def _greet(self, hello: Hello) -> bool:
        self._stop_timer()
        door = self._door
        if hello.key and door.find_key is not None:
            self._secret = hello.key
            if not self._is_allowed():
                return False
        self._session = hello.session
        self._prefix = f"unix:{hello.session.hex()}:"
        before = door.sessions.get(hello.session)
        door.sessions[hello.session] = self
        if before is not None:
            # Its client has lost it; what it still holds is sent again over this one.
            before.abort()
        self._transport.write(encode(Welcome(door.largest)))
        return True

    def _is_allowed(self) -> bool:
        """Whether a key that was shown holds still; else the connection ends."""
        if not self._secret or self._door.find_key is None:
            return True
        self._key = self._door.find_key(self._secret)
        if self._key is None:
            self.leave("key", "the collector does not know this key, or it was revoked")
        return self._key is not None

    def _take(self, frame: Frame) -> None:
        seq, name, value = frame
        self._seq = seq
        route = self._door.routes.get(name)
        if route is None:
            streams = ", ".join(self._door.routes)
            self._refuse(seq, "unknown_stream", f"the collector has no stream {name!r}; it has: "
                         f"{streams}")  # fmt: skip
            return
        if self._key is not None and not self._key.allows_stream(name):
            self._refuse(seq, "stream_not_allowed", f"the key is not for stream {name}")
            return
        try:
            key, _ = route.admit(route.parse(value))
        except RecordError as error:
            self._refuse(seq, "invalid", str(error))
            return
        size = len(key) + len(value)
        if size > self._door.record_bytes:
            most = self._door.record_bytes
            self._refuse(seq, "too_large", f"has {size:,} bytes with its key; {most:,} are taken")
            return
        self._records.append(Record(route.topic, key, value, f"{self._prefix}{seq}"))
        self._bytes += size

    def _refuse(self, seq: int, code: str, reason: str) -> None:
        metrics.REFUSED.labels(_KIND, code).inc()
        said = encode(Refusal(seq, code, reason))
        self._refusals.append(said)
        self._bytes += len(said)

    # -- storing

    def _pump(self) -> None:
        """Give the spool what waits, unless something is under way; end when all is said."""
        if self._storing or self._gone:
            self._regulate()
            return
        if self._seq:
            answer = b"".join(self._refusals) + encode(Ack(self._seq))
            batch = _Batch(self._records, answer)
            self._records, self._refusals, self._bytes, self._seq = [], [], 0, 0
            if batch.records:
                self._storing = True
                self._regulate()
                self._store(batch)
                return
            self._transport.write(batch.answer)
        if self._goodbye is not None:
            self._transport.write(self._goodbye)
            self._transport.close()
            self._stop_timer()
            self._timer = self._loop.call_later(_GOODBYE_S, self.abort)
            return
        self._regulate()

    def _store(self, batch: _Batch) -> None:
        if self._gone:
            return
        error = self._door.stalled()
        if error is not None:
            self._later(batch, error)
            return
        self._door.acks.store(batch.records).add_done_callback(partial(self._stored, batch))

    def _stored(self, batch: _Batch, done: asyncio.Future[int]) -> None:
        error = None if done.cancelled() else done.exception()
        if self._gone or done.cancelled():
            return
        if error is None:
            _ACCEPTED.inc(len(batch.records))
            self._storing, self._wait_s = False, _FIRST_WAIT_S
            self._transport.write(batch.answer)
            self._pump()
        elif isinstance(error, SpoolError):
            self._later(batch, error)
        else:
            _log.error("a connection of %s ends: %r", self._door.path, error)
            self.abort()

    def _later(self, batch: _Batch, error: SpoolError) -> None:
        """The same append again; nothing that came behind it may be stored before."""
        self._door.warn(error)
        self._loop.call_later(self._wait_s, self._store, batch)
        self._wait_s = min(_LONGEST_WAIT_S, 2 * self._wait_s)

    def _regulate(self) -> None:
        """Read, or not."""
        wanted = (
            not self._clogged and self._goodbye is None
            and not (self._storing and self._bytes > _WAITING_BYTES)
        )  # fmt: skip
        if wanted != self._reading and not self._gone:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
