"""Frames that have no answer yet: numbered, bounded, gathered to batches, sent again when need be.

    put      a record gets its number, and its place behind all before it
    take     a batch that is worth sending now
    answer   everything up to a number is answered for, and makes room
    again    after a lost connection: what was sent and has no answer goes back to the front

take() gives something when nothing is on its way or when 64 KiB have come together, as Nagle's
algorithm does: alone, a record goes out at once; under load, one answer is worth a batch. put()
says when that makes a difference, so that a sleeping sender is woken for a batch and not for each
record: a system call costs more than a record.

Many threads put, one takes and answers. Nothing here waits or knows a socket.

A signal handler that publishes may come into the middle of a put() of its own thread, at calls and
jumps backward only. So what put() changes it changes without a call in between, and before that it
looks whether another frame has come meanwhile. One more than `most_records` is then possible.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from ingest.socket_protocol import behind

__all__ = ["Outbox", "Waiting"]

# Enough that a system call, and a commit of the collector's, are little beside it.
BATCH_BYTES = 64 * 1024
# size and number of a frame; `size` does not count itself.
_HEAD = struct.Struct("<IQ")
_NUMBER_BYTES = 8


class Waiting(Protocol):
    """Who waits for the answer to a frame."""

    calls_back: bool

    def number(self, seq: int) -> None:
        """The frame's number; called before the frame can be answered."""


class _Batch:
    """Frames that are sent together, `first` to `last`."""

    __slots__ = ("callers", "data", "first", "frames", "last", "refused", "size", "waiting")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self.size = 0
        # In pieces; joined into `data` when they are taken.
        self.frames: list[bytes] = []
        self.data = b""
        # By number less `first`; None for a record that nobody asks for.
        self.waiting: list[Waiting | None] = []
        # Those of them with a callback, and their numbers.
        self.callers: deque[tuple[int, Waiting]] = deque()
        self.refused: set[int] = set()


class Outbox:
    """At most `most_records`, and about `most_bytes` bytes, without an answer."""

    def __init__(self, most_records: int, most_bytes: int) -> None:
        self._most_records = most_records
        self._most_bytes = most_bytes
        # Every number up to this is answered for.
        self.answered = 0
        self.last = 0
        self._lock = threading.RLock()
        self._bytes = 0
        self._gathering = _Batch(1)
        self._gathered: deque[_Batch] = deque()
        self._sent: deque[_Batch] = deque()
        self._asleep = False

    def __len__(self) -> int:
        return self.last - self.answered

    def full(self) -> bool:
        """Whether put() would raise. One record always fits."""
        held = self.last - self.answered
        return held >= self._most_records or (held > 0 and self._bytes >= self._most_bytes)

    def put(self, head: bytes, value: bytes, waiting: Waiting | None) -> bool:
        """Take one record; `head` is heading() of its stream. BufferError when full.

        True when the sender sleeps and now has something to send.
        """
        size = len(head) + len(value) + _NUMBER_BYTES
        with self._lock:
            if self.full():
                raise BufferError
            while True:
                seq = self.last + 1
                number = _HEAD.pack(size, seq)
                if waiting is not None:
                    waiting.number(seq)
                # No calls from here on, see above.
                if self.last == seq - 1:
                    break
            batch = self._gathering
            batch.frames += (number, head, value)
            batch.waiting += (waiting,)
            if waiting is not None and waiting.calls_back:
                batch.callers += ((seq, waiting),)
            batch.last = self.last = seq
            batch.size += size
            self._bytes += size
            if batch.size >= BATCH_BYTES:
                following = _Batch(seq + 1)
                # Or somebody else has seen so.
                if self._gathering is batch:
                    self._gathered += (batch,)
                    self._gathering = following
            if self._asleep and (self._gathered or not self._sent):
                self._asleep = False
                return True
        return False

    def take(self) -> bytes:
        """What is worth sending now; b"" when there is nothing, and the sender may sleep."""
        with self._lock:
            if not self._gathered:
                if self._sent or not self._gathering.frames:
                    self._asleep = True
                    return b""
                self._gathered.append(self._gathering)
                self._gathering = _Batch(self.last + 1)
            batch = self._gathered.popleft()
            self._sent.append(batch)
        if batch.frames:
            batch.data = b"".join(batch.frames)
            batch.frames = []
        return batch.data

    def again(self) -> None:
        """The connection is lost: what was taken and has no answer is to be sent again."""
        with self._lock:
            self._asleep = False
            while self._sent:
                batch = self._sent.pop()
                # What is answered for may be older than the collector remembers ids.
                batch.data = behind(batch.data, self.answered)
                self._gathered.appendleft(batch)

    def answer(self, seq: int) -> list[Waiting]:
        """All that was sent up to `seq` is answered for; those of them with a callback."""
        callers: list[Waiting] = []
        done: list[_Batch] = []
        with self._lock:
            sent = self._sent
            while sent and sent[0].last <= seq:
                batch = sent.popleft()
                self._bytes -= batch.size
                done.append(batch)
            if sent and sent[0].first <= seq:
                done.append(sent[0])
            if done:
                self.answered = max(self.answered, min(seq, done[-1].last))
        for batch in done:
            while batch.callers and batch.callers[0][0] <= seq:
                callers.append(batch.callers.popleft()[1])
        return callers

    def refuse(self, seq: int) -> tuple[bool, Waiting | None]:
        """A frame is refused; answer() follows. Whether that is news, and who waits for it."""
        with self._lock:
            for batch in self._sent:
                if batch.first <= seq <= batch.last:
                    is_new = seq not in batch.refused and seq > self.answered
                    batch.refused.add(seq)
                    return is_new, batch.waiting[seq - batch.first]
        return False, None

    def left(self) -> Iterator[Waiting]:
        """At the end: who waits for an answer that won't come."""
        for batch in (*self._sent, *self._gathered, self._gathering):
            for seq, waiting in enumerate(batch.waiting, batch.first):
                if waiting is not None and seq > self.answered and seq not in batch.refused:
                    yield waiting

    def callers_left(self) -> Iterator[Waiting]:
        """At the end: whose callback has not been due."""
        for batch in (*self._sent, *self._gathered, self._gathering):
            while batch.callers:
                yield batch.callers.popleft()[1]
