"""Spool: appends of many threads, one writer thread, one fsync for all that came meanwhile.

    ticket = spool.append([Record(...), ...])     # returns at once
    ticket.result()                               # on disk, or SpoolFull

Whatever was appended while the writer was at its last commit goes into the next one. An append is
whole or not at all. In order: write, fsync (COMMIT), then the tickets are answered; what a crash
leaves unanswered may or may not be there, and its sender tries again under the same id.

The queue has no limit of its own: whoever appends waits for the answer before it takes more.

A thread that has nothing better to do than wait may commit by itself, `append_now`, while the
writer is idle: the way to another thread and back costs more than the commit, where threads share
one interpreter's lock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol, Self

from ingest.spool.errors import SpoolError, SpoolFull
from ingest.spool.frames import Record
from ingest.spool.lock import Lock
from ingest.spool.reader import Reader, State
from ingest.spool.store import Limits, Store, check

__all__ = ["Spool", "Ticket"]

_log = logging.getLogger("headrace.spool")

# Records in one transaction, so that the first of them need not wait for a whole backlog.
_GROUP = 10_000
# Appends in callers' own threads, until the writer is woken to forget old ids and free pages.
_HOUSEKEEPING = 256


class Ticket:
    """The answer to one append, for any thread."""

    __slots__ = ("_done", "_gate", "_on_done", "elsewhere", "error", "records", "stored")

    def __init__(
        self, records: Sequence[Record], on_done: Callable[[Ticket], object] | None
    ) -> None:
        self.records: Sequence[Record] = records
        # How many of them were new; the others' ids were taken before.
        self.stored = 0
        # Other spools of the node that hold one of them, and the position behind it there.
        self.elsewhere: Mapping[Path, int] = {}
        self.error: SpoolError | None = None
        self._on_done = on_done
        self._done = False
        # A bare lock: a tenth of the price of an Event, and there is one for each request.
        self._gate = threading.Lock()
        self._gate.acquire()

    def done(self) -> bool:
        """Whether it is answered."""
        return self._done

    def result(self, timeout: float | None = None) -> int:
        """Wait until the records are on disk; how many were new.

        Raises SpoolFull or another SpoolError when they are not stored, TimeoutError while there is
        no answer.
        """
        if not self._done:
            if not self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                raise TimeoutError("the spool has not answered yet")
            self._gate.release()
        if self.error is not None:
            raise self.error
        return self.stored

    def answer(self, outcome: int | SpoolError) -> None:
        """The writer's word; once."""
        if isinstance(outcome, int):
            self.stored = outcome
        else:
            self.error = outcome
        self.records = ()
        self._done = True
        self._gate.release()
        if self._on_done is not None:
            try:
                self._on_done(self)
            except Exception:
                _log.exception("what was to be called after an append raised")


class _Journal(Protocol):
    """What the writer needs of a Store; tests put a crash in between."""

    state: State

    @property
    def has_peers(self) -> bool: ...
    @property
    def elsewhere(self) -> Mapping[Path, int]: ...
    def append(self, batches: Sequence[Sequence[Record]]) -> Sequence[int | SpoolFull]: ...
    def release(self, position: int) -> None: ...
    def tidy(self) -> bool: ...
    def close(self) -> None: ...


class Spool:
    """A directory that is open for this process. Threads share it.

    `folder` is made where it is missing. Raises SpoolInUse while another process has it,
    SpoolDamaged and SpoolError as Store does.
    """

    def __init__(
        self,
        folder: Path | str,
        limits: Limits | None = None,
        *,
        node: str | None = None,
        open_store: Callable[[Path, Limits | None, str | None], _Journal] = Store,
    ) -> None:
        self.folder = Path(folder)
        self._lock = Lock(self.folder)
        try:
            self._store = open_store(self.folder, limits, node)
        except BaseException:
            self._lock.release()
            raise
        self.node = self._store.state.node
        self._queue: SimpleQueue[Ticket | None] = SimpleQueue()
        self._due = self._store.state.position
        self._closed = False
        self._entrance = threading.Lock()
        # Tickets without an answer; whoever uses the store holds the turn.
        self._pending = 0
        self._turn = threading.Lock()
        self._unkept = 0
        self._arrived = threading.Event()
        self._thread = threading.Thread(target=self._write, name="headrace-spool", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """What is on disk: all below `next_seq` is committed, all below `position` in Kafka."""
        return self._store.state

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more: close() was called, or the writer has failed."""
        return self._closed

    def append(
        self, records: Sequence[Record], on_done: Callable[[Ticket], object] | None = None
    ) -> Ticket:
        """Queue records for the next commit. `on_done` is called by the writer's thread. No records
        ask whether the disk takes anything, as in Store.

        Raises SpoolError when the spool is closed, ValueError for a topic or id that is too long,
        TypeError for what is no bytes.
        """
        for record in records:
            check(record)
        ticket = Ticket(records, on_done)
        # Nothing may come behind the one that ends the writer.
        with self._entrance:
            if self._closed:
                raise SpoolError("the spool is closed")
            self._pending += 1
            self._queue.put(ticket)
        return ticket

    def append_now(self, records: Sequence[Record]) -> int | None:
        """Commit records in the caller's thread; how many were new. On disk when this returns.

        None, and nothing is done, while anything is queued or the writer is at work, or where other
        processes have a say: then append().
        Raises SpoolFull or another SpoolError when they are not stored, and as append().
        """
        for record in records:
            check(record)
        if self._pending or self._store.has_peers or not self._turn.acquire(blocking=False):
            return None
        try:
            if self._closed:
                raise SpoolError("the spool is closed")
            (outcome,) = self._store.append([records])
        except SpoolError:
            raise
        except BaseException:
            _log.exception("an append has failed; nothing is accepted any more")
            self._closed = True
            self._queue.put(None)
            raise
        finally:
            self._turn.release()
        self._arrived.set()
        self._unkept += 1
        if self._unkept >= _HOUSEKEEPING:
            self._unkept = 0
            self._queue.put(None)
        if isinstance(outcome, SpoolFull):
            raise outcome
        return outcome

    def release(self, position: int) -> None:
        """All below is in Kafka and may be deleted; it happens with the next commit."""
        if position > self._due:
            self._due = position
            self._queue.put(None)

    def reader(self) -> Reader:
        """A connection to read with; to be closed before the spool."""
        return Reader(self.folder)

    def wait(self, seq: int, timeout_s: float) -> bool:
        """Wait until the record of this number is on disk; for one thread.

        False after the time, or when one that is closed is woken: who asks again does not spin.
        """
        deadline = time.monotonic() + timeout_s
        while self.state.next_seq <= seq:
            self._arrived.clear()
            if self.state.next_seq > seq:
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._arrived.wait(left)
            if self._closed and self.state.next_seq <= seq:
                return False
        return True

    def wake(self) -> None:
        """Let wait() look again."""
        self._arrived.set()

    def close(self) -> None:
        """Write what was appended, checkpoint, let go of the directory. Twice is harmless."""
        with self._entrance:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._arrived.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the writer's thread

    def _write(self) -> None:
        untidy = False
        try:
            while True:
                group, ending = self._next(block=not untidy)
                if group:
                    self._commit(group)
                untidy = self._housekeeping() and not group
                if ending and self._queue.empty():
                    break
        except BaseException:
            _log.exception("the spool's writer has failed; nothing is accepted any more")
            raise
        finally:
            with self._entrance:
                self._closed = True
            self._refuse_rest()
            with self._turn, contextlib.suppress(Exception):
                self._store.close()
            self._lock.release()

    def _next(self, *, block: bool) -> tuple[list[Ticket], bool]:
        """All tickets that wait, up to a group; and whether the spool is being closed."""
        group: list[Ticket] = []
        records = 0
        try:
            ticket = self._queue.get(block)
            while True:
                if ticket is not None:
                    group.append(ticket)
                    records += len(ticket.records)
                    if records >= _GROUP:
                        break
                ticket = self._queue.get_nowait()
        except Empty:
            pass
        return group, self._closed

    def _commit(self, group: list[Ticket]) -> None:
        outcomes: Sequence[int | SpoolError]
        try:
            with self._turn:
                outcomes = self._store.append([ticket.records for ticket in group])
                elsewhere = self._store.elsewhere
        except SpoolError as error:
            outcomes, elsewhere = [error] * len(group), {}
        except BaseException:
            failed = SpoolError("the spool's writer has failed; see its log")
            for ticket in group:
                ticket.answer(failed)
            raise
        self._arrived.set()
        with self._entrance:
            self._pending -= len(group)
        for ticket, outcome in zip(group, outcomes, strict=True):
            ticket.elsewhere = elsewhere
            ticket.answer(outcome)

    def _housekeeping(self) -> bool:
        """Delete what is in Kafka, give back space; whether there is more to give back."""
        try:
            with self._turn:
                self._store.release(self._due)
                return self._store.tidy()
        except SpoolError as error:
            # The records are in Kafka and the position too: deleting can wait for the next time.
            _log.warning("what is in Kafka could not be deleted yet: %s", error)
            return False

    def _refuse_rest(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                ticket = self._queue.get_nowait()
                if ticket is not None:
                    ticket.answer(SpoolError("the spool is closed"))
