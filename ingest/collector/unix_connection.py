"""One connection of the unix socket: frames in, judged, stored in their order, answered.

* One append is under way. What is read meanwhile is judged and waits for the next, so frames are
  stored in the order of their numbers whatever the spool answers, and each commit takes all that
  came during the one before.
* When much waits, it is not read on: the client's own queue fills, and its publish blocks. Nobody
  hears of a full spool; the same append is tried again until there is room.
* What is not good is refused by its number, with the reason, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from ingest.collector import metrics
from ingest.collector.acks import Place
from ingest.collector.unix_judge import Allowed, Judge
from ingest.socket_protocol import (
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
from ingest.spool.errors import SpoolError
from ingest.spool.frames import Record

__all__ = ["Connection", "Store"]

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
# While the spool takes nothing: between two attempts.
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0


class Store(Protocol):
    """What is needed of ingest/collector/acks.py."""

    def store(self, records: list[Record]) -> asyncio.Future[Place]: ...


class Door(Protocol):
    """What is needed of a UnixDoor, all of whose connections share it."""

    path: Path
    acks: Store
    judge: Judge
    largest: int
    max_connections: int
    find_key: Callable[[str], Allowed | None] | None
    stalled: Callable[[], SpoolError | None]

    def joined(self, connection: Connection) -> bool: ...
    def greeted(self, session: bytes, connection: Connection) -> None: ...
    def gone(self, session: bytes, connection: Connection) -> None: ...
    def warn(self, error: SpoolError) -> None: ...


class _Batch(NamedTuple):
    records: list[Record]
    # What is said once the records are on disk, the ack last.
    answer: bytes


class Connection(asyncio.BufferedProtocol):
    """One client."""

    _transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
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
        fits = self._door.joined(self)
        self._timer = self._loop.call_later(
            _HELLO_S, self.leave, "protocol", f"no hello within {_HELLO_S:g} s"
        )
        if not fits:
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
        self._door.gone(self._session, self)

    # -- ends

    def leave(self, code: str, reason: str) -> None:
        """Read no more, store and answer what was read, say goodbye."""
        self._end(encode(Goodbye(code, reason)))

    def abort(self) -> None:
        """Now, without a word; what is on its way to the disk gets there, and has no answer."""
        if not self._gone:
            # At once: connection_lost comes a turn later, and what was to be tried again must not
            # get between what the session's next connection sends.
            self._gone = True
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
        door.greeted(hello.session, self)
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
        self._seq = frame.seq
        found = self._door.judge.judge(frame, self._prefix, self._key)
        if isinstance(found, Refusal):
            metrics.REFUSED.labels(_KIND, found.code).inc()
            said = encode(found)
            self._refusals.append(said)
            self._bytes += len(said)
        else:
            self._records.append(found)
            self._bytes += len(found.key or b"") + len(found.value)

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

    def _stored(self, batch: _Batch, done: asyncio.Future[Place]) -> None:
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
