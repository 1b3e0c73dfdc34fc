"""The thread behind a Sparrow: batches out of the queue, until each has its answer.

What the rules of ingest/sparrow.py say about waiting and trying again, about the end and about a
fork, is here. One lock guards the figures; the queue and the client have their own.

A signal handler that tracks may come into the middle of anything here that its own thread does.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ingest.sparrow_exit import add, be_told, leave_to_parent, remove
from ingest.sparrow_http import Client, Outcome
from ingest.sparrow_queue import Damaged, Disk, Memory, Queue

__all__ = ["Sender", "Stats"]

_log = logging.getLogger("headrace.sparrow")

_BATCH_EVENTS = 100
# Between two attempts: up to twice as long each time, with full jitter, so that clients that were
# cut off together do not come back together.
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_BLOCKED_WAIT_S = 60.0
# The same trouble is said again after so long.
_WARN_EVERY_S = 60.0
# What a post that is broken off may still take.
_ABORT_S = 1.0


class Stats(NamedTuple):
    """Events: without an answer yet, acknowledged, refused by the collector, dropped here."""

    queued: int
    sent: int
    refused: int
    dropped: int


class Sender:
    """Sends what is in `queue` through `client`; the thread begins with the first event.

    `memory` makes the queue of a child after a fork. The seconds are a Sparrow's.
    """

    def __init__(
        self,
        client: Client,
        queue: Queue,
        memory: Callable[[], Memory],
        *,
        delay_s: float,
        timeout_s: float,
        exit_s: float,
    ) -> None:
        self._client = client
        self._queue = queue
        self._memory = memory
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._exit_s = exit_s
        if isinstance(queue, Disk):
            queue.on_late = self._on_late
        self._reset()
        add(self)

    def _reset(self) -> None:
        """What a process has for itself, in its beginning and after a fork."""
        # Guards the figures, and wakes up the thread and those who wait for it. Its lock may be
        # taken again by a signal handler.
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None
        # Whether somebody is in _run(); None until somebody has been.
        self._busy: bool | None = None
        self._sent = self._refused = self._dropped = 0
        self._closed = self._closing = self._ended = False
        # When sending has to end, once it is closed; and until when close() waits for that.
        self._deadline = self._patience = float("inf")
        # Up to this number nothing waits for company, or for the end of a pause of our own.
        self._hurry = 0
        # How often somebody has asked to hurry.
        self._calls = 0
        # The thread waits for a first event, and must be told of it.
        self._idle = False
        self._failed = False
        self._most = _BATCH_EVENTS
        self._warned: dict[str, float] = {}
        self._dropped_said = 0

    def take(self, data: bytes) -> bool:
        """Queue one event. False where the queue is full, or closed."""
        taken = not self._closed and self._queue.put(data)
        with self._moved:
            if taken:
                self._start()
                # While it waits for company it needs no word until a batch is full.
                if self._idle or self._queue.end - self._queue.begin >= _BATCH_EVENTS:
                    self._moved.notify_all()
            else:
                self._dropped += 1
        if not taken:
            self._say_dropped()
        return taken

    def flush(self, timeout: float | None = None) -> bool:
        """As Sparrow.flush()."""
        begun = time.monotonic()
        with self._moved:
            # What the disk has not answered for has no number yet; what comes later is not meant.
            late = self._queue.late
            target = self._hasten()
            if late:
                self._moved.wait_for(lambda: not late & self._queue.late or self._ended, timeout)
                target = self._hasten()
            left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
            self._moved.wait_for(
                lambda: self._queue.begin >= target or self._failed or self._ended, left
            )
            return self._queue.begin >= target and not late & self._queue.late

    def _hasten(self) -> int:
        """Have all that is queued sent without waiting for more, under the lock; where it ends."""
        target = self._queue.end
        self._hurry = max(self._hurry, target)
        self._calls += 1
        if target > self._queue.begin:
            self._start()
        self._moved.notify_all()
        return target

    def begin_close(self, timeout: float | None = None) -> None:
        """Take no more events and have the others sent within the time; does not wait for it."""
        with self._moved:
            if self._patience < float("inf"):
                return
            limit = self._exit_s if timeout is None else timeout
            self._deadline = self._patience = time.monotonic() + limit
            self._end()

    def let_go(self) -> None:
        """Nobody can track any more: have what is queued sent, however long it takes, and end then.

        Waits for nothing, and raises nothing: it may be called in the middle of anything.
        """
        if self._closed:
            # Also at the interpreter's end, where whoever holds the lock may never run again.
            return
        with self._moved:
            if not self._closed:
                if isinstance(self._queue, Disk) or self._queue.end > self._queue.begin:
                    # The spool has a thread and a lock of its own, which go with it.
                    self._start()
                self._end()

    def _end(self) -> None:
        """Take no more, under the lock."""
        self._closed = True
        self._hurry = self._queue.end
        self._calls += 1
        self._moved.notify_all()

    def await_close(self) -> None:
        """Wait for what begin_close() has begun; what hangs when the time is over is broken off."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            # None was needed until now, or none can be started any more: the interpreter ends.
            self._run()
        if not self._has_ended(self._patience):
            self._client.abort()

    def close(self, timeout: float | None = None) -> None:
        """As Sparrow.close()."""
        self.begin_close(timeout)
        with self._moved:
            if self._closing:
                return
            self._closing = True
        self.await_close()
        self._has_ended(self._patience + _ABORT_S)
        with self._moved:
            self._ended = True
            self._moved.notify_all()
            if self._queue.forgets:
                # Whoever was in take() meanwhile hears that it comes too late.
                self._queue.close()
            left = self._queue.end - self._queue.begin if self._queue.forgets else 0
            self._dropped += left
        if left:
            # Not under the lock: a logging handler has one of its own, and may track.
            _log.warning("%d events were not sent, and are lost", left)
        remove(self)

    @property
    def stats(self) -> Stats:
        """As Sparrow.stats."""
        with self._moved:
            queued = self._queue.end - self._queue.begin
            return Stats(queued, self._sent, self._refused, self._dropped)

    def after_fork(self) -> None:
        """In the child: a queue of its own."""
        self._client.forget()
        if isinstance(self._queue, Disk):
            # Its file has one writer, the parent, and even closing would be writing.
            leave_to_parent(self._queue)
            _log.warning("after a fork the spool stays with the parent; a process needs its own")
        closed = self._closed
        self._queue = self._memory()
        self._reset()
        self._closed = closed

    # -- inside

    def _start(self) -> None:
        """Have a thread, under the lock."""
        if self._thread is None and not self._closed:
            be_told()
            thread = threading.Thread(target=self._run, name="headrace-sparrow", daemon=True)
            # A signal handler that tracks may have been first, and must not come second.
            if self._thread is None:
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:
                    # The interpreter ends: close() sends.
                    self._thread = None
                except BaseException:
                    # A signal handler has raised, and who knows whether before or after the start.
                    self._thread = None
                    raise

    def _has_ended(self, until: float) -> bool:
        """Wait for it, once somebody is or has been in _run(): whether nobody sends any more.

        Not with join(): a signal handler may have this lock already, and the thread needs it. Nor
        is a thread alive that the handler finds in the middle of its start, and yet it may run.
        """
        with self._moved:
            left = max(0.0, until - time.monotonic())
            if not self._moved.wait_for(lambda: self._busy is False, left):
                return False
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(_ABORT_S)
        return True

    def _run(self) -> None:
        """Send until closed, and then until nothing is left or the time is over; one at a time."""
        with self._moved:
            if self._busy:
                return
            self._busy = True
        queue, wait_s = self._queue, _FIRST_WAIT_S
        try:
            while self._wait_for_events():
                calls, before = self._calls, queue.begin
                pause_s, is_asked = self._attempt_or_say(wait_s)
                if queue.begin > before:
                    wait_s = _FIRST_WAIT_S
                elif pause_s:
                    wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
                if pause_s:
                    self._pause(pause_s, None if is_asked else calls)
        except Damaged:
            # Everything else passes, or is mended elsewhere.
            _log.exception("sending events has failed for good; what is queued stays there")
            with self._moved:
                self._failed = True
                self._moved.notify_all()
        finally:
            self._client.close()
            if self._closed:
                queue.close()
                remove(self)
            with self._moved:
                self._busy = False
                self._moved.notify_all()

    def _wait_for_events(self) -> bool:
        """Wait for a batch that is worth sending; False at the end."""
        queue = self._queue
        with self._moved:
            self._idle = True
            self._moved.wait_for(lambda: queue.end > queue.begin or self._closed)
            self._idle = False
            self._moved.wait_for(
                lambda: queue.end - queue.begin >= _BATCH_EVENTS or self._hurry > queue.begin
                or self._closed,
                self._delay_s,
            )  # fmt: skip
            is_due = queue.end > queue.begin and time.monotonic() < self._deadline
            return is_due and not self._failed

    def _attempt_or_say(self, wait_s: float) -> tuple[float, bool]:
        """As _attempt(); what nobody has foreseen is no end, or track() would say True for nothing.

        A process that is out of files for a second can't read its spool, for one. Raises Damaged.
        """
        try:
            return self._attempt(wait_s)
        except Damaged:
            raise
        except Exception as error:
            # Whatever state it is in.
            self._client.close()
            self._say(logging.ERROR, f"{type(error).__name__}: {error}; tried again", error)
            return _LONGEST_WAIT_S, False

    def _attempt(self, wait_s: float) -> tuple[float, bool]:
        """Send one batch. How long to wait before the next, and whether the collector asked so."""
        events = self._queue.batch(self._most)
        if not events:
            return 0.0, False
        timeout_s = max(0.01, min(self._timeout_s, self._deadline - time.monotonic()))
        found = self._client.post(events, timeout_s)
        outcome = found.outcome
        pause_s = random.uniform(0.0, wait_s)  # noqa: S311 (no secret)
        if outcome is Outcome.AGAIN:
            self._say(logging.WARNING, found.why)
            return pause_s + (found.pause_s or 0.001), found.pause_s is not None
        if outcome is Outcome.DONE:
            self._settle(len(events), found.refused)
            self._most = min(_BATCH_EVENTS, 2 * self._most)
            return 0.0, False
        if outcome is not Outcome.BLOCKED and len(events) > 1:
            self._most = len(events) // 2
            return 0.0, False
        if outcome is Outcome.HALVE:
            self._settle(1, (("not_taken", found.why),))
            return 0.0, False
        # Only a collector's own answer counts: the events stay.
        look_at = "the address and the key"
        if outcome is Outcome.TOO_LARGE:
            look_at = "the proxy's limit for a request, which one event is above by itself"
        self._say(logging.ERROR, f"{found.why}: look at {look_at}")
        return _BLOCKED_WAIT_S + pause_s, False

    def _settle(self, count: int, refused: tuple[tuple[str, str], ...]) -> None:
        # Before anybody who waits for it goes on.
        for (code, reason), times in Counter(refused).items():
            self._say(logging.WARNING, f"{times} events were refused: {reason} ({code})")
        with self._moved:
            self._queue.done(count)
            self._refused += len(refused)
            self._sent += count - len(refused)
            self._moved.notify_all()

    def _on_late(self, is_stored: bool) -> None:
        """An event that take() did not wait for is on disk now, or never will be."""
        with self._moved:
            if not is_stored:
                self._dropped += 1
            self._moved.notify_all()
        if not is_stored:
            self._say_dropped()

    def _pause(self, pause_s: float, calls: int | None) -> None:
        """Wait. Where `calls` is given, a flush or a close since then is a reason to go on."""
        until = time.monotonic() + pause_s
        with self._moved:
            while (left := until - time.monotonic()) > 0:
                if calls is not None and self._calls > calls:
                    break
                if until > self._deadline:
                    # Nothing more is taken in time: nobody need wait for it.
                    self._deadline = 0.0
                    break
                self._moved.wait(left)

    def _say(self, level: int, what: str, error: Exception | None = None) -> None:
        """In the log, and the same again only after a minute."""
        now = time.monotonic()
        if now - self._warned.get(what, -_WARN_EVERY_S) >= _WARN_EVERY_S:
            if len(self._warned) > 100:
                self._warned.clear()
            self._warned[what] = now
            _log.log(level, "%s: %s", self._client.address, what, exc_info=error)

    def _say_dropped(self) -> None:
        now = time.monotonic()
        if now - self._warned.get("", -_WARN_EVERY_S) >= _WARN_EVERY_S:
            self._warned[""] = now
            with self._moved:
                count, self._dropped_said = self._dropped - self._dropped_said, self._dropped
            _log.warning(
                "%d events were dropped: the queue is full or closed, or its disk can't be written",
                count,
            )
