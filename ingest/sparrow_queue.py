"""Where events wait until a collector has answered for them: in memory, or on disk.

Events are numbered as they come. `begin` is the oldest without an answer, `end` the next to come.
Many threads put; one takes a batch, and says how much of it is done.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # see Disk
    from ingest.spool import Ticket

__all__ = ["Damaged", "Disk", "Memory", "Queue"]

# Bytes of events in one request.
BATCH_BYTES = 500_000
# How long track() waits for a slow disk. The event gets there all the same, or is said to be lost.
_DISK_S = 1.0


class Damaged(Exception):
    """What lies on disk is not what was written: to read it again gives the same."""


class Queue(Protocol):
    """See above."""

    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...

    # What was taken and has no number yet: the disk has not answered.
    @property
    def late(self) -> frozenset[Ticket]: ...

    # Whether what is left in it at the end is lost.
    forgets: bool

    def put(self, event: bytes) -> bool:
        """Take an event; False when there is no room."""

    def batch(self, most: int) -> Sequence[bytes]:
        """The oldest, at most so many and 500 kB; the same again until they are done.

        Raises Damaged, and what passes: a disk that can't be read just now.
        """

    def done(self, count: int) -> None:
        """So many of the last batch are answered for."""

    def close(self) -> None:
        """Take nothing more."""


class Memory:
    """At most `max_events` and `max_bytes`."""

    forgets = True
    late: frozenset[Ticket] = frozenset()

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        # A signal handler may come by here in the middle, in the same thread. It does so at calls
        # and jumps backward only, and put() has none between its last look and what it changes: all
        # that it can do is to fill the queue by what it puts itself beyond its limit. It never sees
        # batch() or done() half-way: they are the sending thread's, or close()'s, when nothing is
        # taken any more.
        self._lock = threading.RLock()
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self.begin = 0

    @property
    def end(self) -> int:
        """The number of the next event."""
        return self.begin + len(self._events)

    def put(self, event: bytes) -> bool:
        """Take an event; False when there is no room."""
        size = len(event)
        with self._lock:
            is_full = len(self._events) >= self._max_events
            # No calls from here on, see above.
            if self._closed or is_full or self._bytes + size > self._max_bytes:
                return False
            self._events += (event,)
            self._bytes += size
            return True

    def batch(self, most: int) -> Sequence[bytes]:
        """The oldest events."""
        size = 0
        found: list[bytes] = []
        with self._lock:
            for event in islice(self._events, most):
                # A comma for each, and the brackets.
                size += len(event) + 1
                if found and size > BATCH_BYTES:
                    break
                found.append(event)
        return found

    def done(self, count: int) -> None:
        """Forget the oldest."""
        with self._lock:
            for _ in range(count):
                self._bytes -= len(self._events.popleft())
            self.begin += count

    def close(self) -> None:
        """Take nothing more; what is left can still be had."""
        with self._lock:
            self._closed = True


class Disk:
    """The spool of ingest/spool, without its relay: events are on disk before they are sent.

    Of it come group commit, checksums, the lock against a second process, and `headrace spool ls`
    and `fsck`. Raises SpoolError as Spool does.
    """

    forgets = False

    def __init__(self, folder: Path, max_bytes: int) -> None:
        # Not at the top: with Kafka's client they take a tenth of a second, and most have no spool.
        from ingest.spool import Limits, Record, Spool, SpoolDamaged, SpoolError

        self._record, self._error, self._damaged = Record, SpoolError, SpoolDamaged
        # Ids are the collector's affair.
        self._spool = Spool(folder, Limits(max_bytes=max_bytes, window_ids=1))
        self._reader = self._spool.reader()
        self._numbers: list[int] = []
        # Called for an event that put() did not wait for: whether it is on disk. By the spool's
        # writer.
        self.on_late: Callable[[bool], object] = lambda _: None
        self._lock = threading.RLock()  # a signal handler may flush in the middle of a put
        self._late: set[Ticket] = set()
        self.begin = self._spool.state.position

    @property
    def end(self) -> int:
        """The number of the next event."""
        return self._spool.state.next_seq

    @property
    def late(self) -> frozenset[Ticket]:
        """Of events that put() did not wait for, and that are not on disk yet."""
        with self._lock:
            return frozenset(self._late)

    def put(self, event: bytes) -> bool:
        """Put an event on disk; False when that is not possible.

        It waits for 1 s; True then means that the event is queued for the disk, see `on_late`.
        """
        try:
            ticket = self._spool.append([self._record("sparrow", None, event)], self._answered)
            ticket.result(_DISK_S)
        except TimeoutError:
            with self._lock:
                if not ticket.done():
                    self._late.add(ticket)
                    return True
            return ticket.error is None
        except self._error:
            return False
        return True

    def batch(self, most: int) -> Sequence[bytes]:
        """The oldest events. Raises Damaged, SpoolError."""
        end = self.end
        try:
            found = self._reader.read(self.begin, most, BATCH_BYTES)
        except self._damaged as error:
            raise Damaged(str(error)) from error
        # It reads whole blocks.
        del found[most:]
        if not found and end > self.begin:
            # fsck has cut out what was there.
            self._release(end)
        size = 0
        for count, stored in enumerate(found):
            size += len(stored.value) + 1
            if count and size > BATCH_BYTES:
                del found[count:]
                break
        self._numbers = [stored.seq for stored in found]
        return [stored.value for stored in found]

    def done(self, count: int) -> None:
        """Delete the oldest."""
        self._release(self._numbers[count - 1] + 1)

    def close(self) -> None:
        """What is left is sent by whoever opens the directory next."""
        self._reader.close()
        self._spool.close()

    def _answered(self, ticket: Ticket) -> None:
        with self._lock:
            was_late = ticket in self._late
            self._late.discard(ticket)
        if was_late:
            self.on_late(ticket.error is None)

    def _release(self, position: int) -> None:
        self.begin = position
        self._spool.release(position)
