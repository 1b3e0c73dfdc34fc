"""Sparrow: product events to a collector, from any thread, without making anybody wait.

    sparrow = Sparrow("https://collect.example.com", "hr_…")
    sparrow.track("purchase product", {"category": "billing"})

Rules

* track() never waits for the network and never raises because of it. An event goes into a queue; a
  thread sends batches of 100 events or 500 kB, and sends the same batch again until it is answered.
* An event gets its `eventId` once, in track(). So however often it is sent, it is stored once.
* When the queue is full the new event is dropped: track() returns False, `stats.dropped` counts it,
  and the log says so. What is queued stays, and so does its order.
* With `spool=DIR` track() returns when the event is on disk, and a crash loses nothing of it.
* What the collector refuses is counted in `stats.refused`, with its reason in the log.
* A wrong key, or an address where no collector answers, is said in the log and tried again every
  minute: it may be mended over there.
* At exit what is queued has `exit_s` to get out.
* After a fork the parent's events are the parent's; the child has a queue of its own, in memory.

No key and nothing of an event is ever in the log.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import ssl
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from ingest.sparrow_http import Door, Outcome
from ingest.sparrow_queue import BATCH_BYTES, Disk, Memory, Queue

__all__ = ["Sparrow", "Stats"]

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


class Sparrow:
    """Events of one device to the collector at `host`, under `key` (empty: none is needed there).

    `host` is https://… unless it says http://. `device_id` names this device; without it there is a
    random one, kept in the spool's directory where there is a spool. `user_id` is whose events they
    are, as identify() sets it. A server that speaks for many gives both with each call.

    `spool` is a directory that one process at a time may use. `max_events` bounds the queue in
    memory, `max_bytes` either queue. `delay_s` is how long a first event waits for others.
    `timeout_s` is for each step of a request. `context` is for certificates of one's own.

    Raises ValueError for what is no address, SpoolError where the spool can't be opened. Threads
    share it. As a context manager it is closed when it is left.
    """

    def __init__(
        self,
        host: str,
        key: str,
        *,
        spool: Path | str | None = None,
        device_id: str | None = None,
        user_id: str | None = None,
        max_events: int = 10_000,
        max_bytes: int = 32 * 1024 * 1024,
        delay_s: float = 0.25,
        timeout_s: float = 10.0,
        exit_s: float = 5.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._door = Door(host, key, context)
        self._room = (max_events, max_bytes)
        self._queue: Queue
        if spool is None:
            self._queue = Memory(max_events, max_bytes)
            self.device_id = device_id or str(uuid.uuid4())
        else:
            self._queue = Disk(Path(spool), max_bytes)
            self.device_id = device_id or _kept_device_id(Path(spool) / "device_id")
        self._user_id = user_id
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._exit_s = exit_s
        self._reset()
        _open.add(self)

    def _reset(self) -> None:
        """What a process has for itself, in its beginning and after a fork."""
        # Guards the figures, and wakes up the thread and those who wait for it.
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sent = self._refused = self._dropped = 0
        self._closed = self._ended = False
        # When sending has to end, once it is closed.
        self._deadline = float("inf")
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

    # -- events

    def track(
        self,
        event: str,
        properties: Mapping[str, Any] | None = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
    ) -> bool:
        """Something happened. Whether it was taken: False where the queue is full, or closed.

        Raises ValueError for an event without a name, or more than 500 kB; TypeError for properties
        that are no JSON (dates, UUIDs and dataclasses are).
        """
        if not isinstance(event, str) or not event:
            raise ValueError("an event needs a name")
        if properties is not None and not isinstance(properties, Mapping):
            raise TypeError(f"properties are a mapping, not a {type(properties).__name__}")
        found: dict[str, Any] = {"event": event, "deviceId": device_id or self.device_id}
        if user_id is None and found["deviceId"] == self.device_id:
            user_id = self._user_id
        if user_id:
            found["userId"] = user_id
        if properties is not None:
            found["properties"] = dict(properties)
        found["eventId"] = str(uuid.uuid4())
        now = datetime.now(UTC)
        found["timestamp"] = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            data = orjson.dumps(found)
        except orjson.JSONEncodeError as error:
            raise TypeError(f"an event can't be written as JSON: {error}") from None
        if len(data) >= BATCH_BYTES:
            raise ValueError(f"an event has {len(data):,} bytes; less than {BATCH_BYTES:,} it may")
        return self._take(data)

    def pageview(
        self, path: str, *, user_id: str | None = None, device_id: str | None = None
    ) -> bool:
        """A page was seen: the event `pageview` with the property `pathname`, as sparrow.js has it.

        Returns and raises as track().
        """
        return self.track("pageview", {"pathname": path}, user_id=user_id, device_id=device_id)

    def identify(
        self,
        user_id: str | None,
        traits: Mapping[str, Any] | None = None,
        *,
        device_id: str | None = None,
    ) -> bool:
        """Whose the events are: the event `identify`, with the traits as its properties.

        Events from now on have this user, unless it is said of another `device_id` than this one.
        None forgets the user, and is no event. Returns and raises as track().
        """
        if device_id is None or device_id == self.device_id:
            self._user_id = user_id
        if not user_id:
            return True
        return self.track("identify", traits or {}, user_id=user_id, device_id=device_id)

    # -- the end

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was taken so far has its answer; False after `timeout` seconds.

        It does not wait out a pause of our own, but one that the collector has asked for.
        """
        with self._moved:
            target = self._queue.end
            self._hurry = max(self._hurry, target)
            self._calls += 1
            if target > self._queue.begin:
                self._start()
            self._moved.notify_all()
            self._moved.wait_for(
                lambda: self._queue.begin >= target or self._failed or self._ended, timeout
            )
            return self._queue.begin >= target

    def close(self, timeout: float | None = None) -> None:
        """Take no more events, send what is queued within `timeout` seconds (else `exit_s`).

        What is left then is lost, and counted as dropped, or stays in the spool. Never raises;
        closing twice is harmless.
        """
        limit = self._exit_s if timeout is None else timeout
        with self._moved:
            if self._closed:
                return
            self._closed = True
            self._deadline = time.monotonic() + limit
            self._hurry = self._queue.end
            self._calls += 1
            thread = self._thread
            self._moved.notify_all()
        if thread is not None and thread.is_alive():
            thread.join(limit)
            if thread.is_alive():
                self._door.abort()
                thread.join(_ABORT_S)
        else:
            # None was needed until now, or none can be started any more: the interpreter ends.
            self._run()
        with self._moved:
            self._ended = True
            self._moved.notify_all()
            left = self._queue.end - self._queue.begin
            if left and self._queue.forgets:
                self._dropped += left
                _log.warning("%d events were not sent, and are lost", left)
        _open.discard(self)

    @property
    def stats(self) -> Stats:
        """The figures of this process; `queued` are also those that a spool had from before."""
        with self._moved:
            queued = self._queue.end - self._queue.begin
            return Stats(queued, self._sent, self._refused, self._dropped)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside

    def _take(self, data: bytes) -> bool:
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

    def _start(self) -> None:
        """Have a thread, under the lock."""
        if self._thread is None and not self._closed:
            thread = threading.Thread(target=self._run, name="headrace-sparrow", daemon=True)
            # The interpreter ends: close() sends.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        """Send until closed, and then until nothing is left or the time is over."""
        queue, wait_s = self._queue, _FIRST_WAIT_S
        try:
            while self._wait_for_events():
                calls, before = self._calls, queue.begin
                pause_s, is_asked = self._attempt(wait_s)
                if queue.begin > before:
                    wait_s = _FIRST_WAIT_S
                elif pause_s:
                    wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
                if pause_s:
                    self._pause(pause_s, None if is_asked else calls)
        except Exception:
            # A damaged spool, for one.
            _log.exception("sending events has failed; what is queued stays there")
            with self._moved:
                self._failed = True
                self._moved.notify_all()
        finally:
            self._door.close()
            if self._closed:
                queue.close()

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
            return queue.end > queue.begin and time.monotonic() < self._deadline

    def _attempt(self, wait_s: float) -> tuple[float, bool]:
        """Send one batch. How long to wait before the next, and whether the collector asked so."""
        events = self._queue.batch(self._most)
        if not events:
            return 0.0, False
        timeout_s = max(0.01, min(self._timeout_s, self._deadline - time.monotonic()))
        found = self._door.post(events, timeout_s)
        outcome = found.outcome
        pause_s = random.uniform(0.0, wait_s)  # noqa: S311 (no secret)
        if outcome is Outcome.AGAIN:
            self._say(logging.WARNING, found.why)
            return pause_s + (found.pause_s or 0.001), found.pause_s is not None
        if outcome is Outcome.BLOCKED:
            self._say(logging.ERROR, f"{found.why}: look at the address and the key")
            return _BLOCKED_WAIT_S + pause_s, False
        if outcome is Outcome.DONE:
            self._settle(len(events), found.refused)
            self._most = min(_BATCH_EVENTS, 2 * self._most)
        elif len(events) > 1:
            self._most = len(events) // 2
        else:
            self._settle(1, (("not_taken", found.why),))
        return 0.0, False

    def _settle(self, count: int, refused: tuple[tuple[str, str], ...]) -> None:
        # Before anybody who waits for it goes on.
        for (code, reason), times in Counter(refused).items():
            self._say(logging.WARNING, f"{times} events were refused: {reason} ({code})")
        with self._moved:
            self._queue.done(count)
            self._refused += len(refused)
            self._sent += count - len(refused)
            self._moved.notify_all()

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

    def _say(self, level: int, what: str) -> None:
        """In the log, and the same again only after a minute."""
        now = time.monotonic()
        if now - self._warned.get(what, -_WARN_EVERY_S) >= _WARN_EVERY_S:
            if len(self._warned) > 100:
                self._warned.clear()
            self._warned[what] = now
            _log.log(level, "%s: %s", self._door.address, what)

    def _say_dropped(self) -> None:
        now = time.monotonic()
        if now - self._warned.get("", -_WARN_EVERY_S) >= _WARN_EVERY_S:
            self._warned[""] = now
            with self._moved:
                count, self._dropped_said = self._dropped - self._dropped_said, self._dropped
            _log.warning("%d events were dropped: the queue is full or closed", count)

    def _after_fork(self) -> None:
        """In the child."""
        self._door.forget()
        if isinstance(self._queue, Disk):
            # Its file has one writer, the parent, and even closing would be writing.
            _inherited.append(self._queue)
            _log.warning("after a fork the spool stays with the parent; a process needs its own")
        closed = self._closed
        self._queue = Memory(*self._room)
        self._reset()
        self._closed = closed


# Spools of the parent, which nothing here may close.
_inherited: list[Queue] = []
_open: weakref.WeakSet[Sparrow] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """All at once: the deadline is one for all."""
    threads = []
    for sparrow in list(_open):
        thread = threading.Thread(target=sparrow.close)
        try:
            thread.start()
            threads.append(thread)
        except RuntimeError:
            sparrow.close()
    for thread in threads:
        thread.join()


def _in_child() -> None:
    for sparrow in list(_open):
        sparrow._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _kept_device_id(path: Path) -> str:
    """The id in the file, which is made when it is missing."""
    try:
        return path.read_text(encoding="ascii").strip() or str(uuid.uuid4())
    except FileNotFoundError:
        made = str(uuid.uuid4())
        path.write_text(made + "\n", encoding="ascii")
        return made
