"""A Publisher's lane to a collector on this host, through its unix socket.

It has the methods of ingest/lane.py that a Publisher uses. What differs:

* A Delivery is done when the collector has the record on disk. Where in Kafka it will be is not
  known then: its coordinates have -1 for partition and offset.
* What the collector does not take (a stream that it does not have, or that a key is not for) fails
  that Delivery, and is counted for flush(); the others go on.
* The collector takes Kafka's key from the message; the `keys` of publish_many are not sent.
* While the collector is away records wait here, within the queue's bounds (ingest/socket_outbox.py),
  and are sent again when it is back (ingest/socket_link.py); it stores each once. So there is no
  fatal error, but for a fault of ours that ends the link's thread.
"""  # noqa: E501 (a path)

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from ingest.delivery import Callbacks, Delivery, PublishError
from ingest.settings import SettingError, Settings
from ingest.socket_delivery import SocketDelivery
from ingest.socket_link import Link
from ingest.socket_outbox import Outbox
from ingest.socket_protocol import Refusal, heading
from ingest.streams import Stream

__all__ = ["PREFIX", "SocketLane"]

_log = logging.getLogger("headrace.publisher")

# What the address of a collector's socket begins with.
PREFIX = "unix:"
# A waiting publisher says so in the log this often, in seconds.
WARN_EVERY_S = 10.0


class SocketLane:
    """A session with the collector at `address`, "unix:PATH"; `settings` are a Publisher's.

    Threads may share it. The collector need not be there.
    """

    def __init__(self, address: str, settings: Settings, key: str = "") -> None:
        path = address.removeprefix(PREFIX)
        if not path:
            raise SettingError("unix: names no socket; write unix:/run/headrace.sock")
        self._largest = int(settings["message.max.bytes"])
        self.ready = Callbacks()
        self.queued = 0
        self.failed = 0
        self._heads: dict[str, bytes] = {}
        self._closed = False
        # Why nothing more will be sent, nor answered.
        self._fatal: PublishError | None = None
        # Guards the count of failures; a signal handler may flush in the middle.
        self._lock = threading.RLock()
        self._reasons: Counter[str] = Counter()
        # For those who wait for answers; the link's thread passes by where nobody does.
        self._answered = threading.Condition()
        self._waiters = 0
        self._called = threading.Event()
        self._attendant: threading.Thread | None = None
        self.outbox = Outbox(
            int(settings["queue.buffering.max.messages"]),
            int(settings["queue.buffering.max.kbytes"]) * 1024,
        )
        try:
            self._link = Link(path, key, self.outbox, self._acked, self._refused, self._failed)
        except ValueError as error:
            raise SettingError(f"the key can't be used: {error}") from error

    # -- what a Publisher calls

    def declare(self, stream: Stream) -> None:
        """Records of its topic are for this stream; which topic that is over there is not ours."""
        head = heading(stream.name)
        if self._heads.setdefault(stream.topic, head) != head:
            raise SettingError(
                f"two streams share the topic {stream.topic}; over a socket each needs its own"
            )

    def produce(
        self, topic: str, value: bytes, key: bytes, partition: int, delivery: Delivery
    ) -> None:
        """Queue one record. Raises BufferError while there is no room."""
        if len(value) + len(key) > self._largest:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self._closed or self._fatal is not None:
            raise self.fatal_error()
        assert isinstance(delivery, SocketDelivery)  # noqa: S101 (for mypy)
        if self.outbox.put(self._heads[topic], value, delivery):
            self._link.wake()

    def batch(
        self, topic: str, records: Sequence[dict[str, Any]], partition: int, report: Any
    ) -> int:
        """Queue records; one that is not queued gets an `_error`, as in librdkafka.

        Returns how many there were of the others. Raises TypeError for what is no bytes; nothing of
        this call is queued then.
        """
        if self._closed or self._fatal is not None:
            raise self.fatal_error()
        for record in records:
            # Once queued it could be neither sent nor passed by.
            if not (isinstance(record["value"], bytes) and isinstance(record["key"], bytes)):
                wrong = record["key"] if isinstance(record["value"], bytes) else record["value"]
                raise TypeError(
                    f"values and keys of records must be bytes, not {type(wrong).__name__}"
                )
        head, put = self._heads[topic], self.outbox.put
        queued = 0
        full = wake = False
        for record in records:
            value = record["value"]
            if len(value) + len(record["key"]) > self._largest:
                record["_error"] = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
                continue
            try:
                # Behind one that had no room nothing is queued: their order is kept.
                if not full:
                    wake |= put(head, value, None)
                    queued += 1
            except BufferError:
                full = True
            if full:
                record["_error"] = KafkaError(KafkaError._QUEUE_FULL)
        if wake:
            self._link.wake()
        return queued

    def poll(self, timeout_s: float) -> None:
        """Run the callbacks that are due; one at a time, also where several threads poll."""
        self.ready.run()

    def attend(self) -> None:
        """Make sure that callbacks are run although nobody polls."""
        if self._attendant is None:
            self._attendant = threading.Thread(
                target=self._attend, name="headrace-callbacks", daemon=True
            )
            self._attendant.start()

    def wait_for_room(self) -> None:
        """The queue is full: wait until there is room. The caller then tries again."""
        self.wait_until(lambda: not self.outbox.full(), None)

    def outstanding(self) -> int:
        """Records without an answer."""
        return 0 if self._closed else len(self.outbox)

    def unanswered(self) -> int:
        """The same: never more than were given to it."""
        return max(0, min(self.outstanding(), self.queued - self.failed))

    def report(self, error: KafkaError | None, message: Any) -> None:
        """A refusal is counted where it is heard."""

    def count_failure(self, topic: str, error: KafkaError) -> None:
        """A record failed for good."""
        with self._lock:
            self.failed += 1
            self._reasons[error.str()] += 1

    def explain(self, topic: str, error: KafkaError) -> PublishError:
        """The sentence for an operator."""
        return PublishError(
            f"a record was not acknowledged: {error.str()} (topic {topic!r})", error
        )

    def fatal_error(self) -> PublishError:
        """Why nothing is taken any more."""
        if self._closed or self._fatal is None:
            return PublishError("the publisher is closed")
        # Each who hears of it raises one of its own.
        return PublishError(str(self._fatal))

    def translate(self, topic: str, error: KafkaException) -> PublishError:
        """What produce raised, as a PublishError."""
        return self.explain(topic, error.args[0])

    def flush(self, timeout_s: float | None) -> None:
        """Wait until the collector has answered for every record queued until now.

        Raises PublishError after the time, and for what was refused since the last flush.
        """
        until = self.outbox.last
        if not self.wait_until(lambda: self.outbox.answered >= until, timeout_s):
            raise PublishError(f"{self._unacknowledged()} after {timeout_s:g} s")
        self.poll(0)
        fresh: Counter[str] = Counter()
        with self._lock:
            reasons, self._reasons = self._reasons, fresh
        if reasons:
            why = "; ".join(f"{n:,}: {reason}" for reason, n in reasons.most_common(5))
            raise PublishError(
                f"{reasons.total():,} of {self.queued:,} records not acknowledged: {why}"
            )

    def close(self, timeout_s: float | None) -> None:
        """Flush and let go of the connection, whether or not that succeeds. Raises as flush."""
        if self._closed:
            return
        try:
            self.flush(timeout_s)
        except PublishError:
            self.abandon()
            raise
        # Not after Ctrl-C: then the records are still on their way, and close may be tried again.
        self.abandon()

    def abandon(self) -> None:
        """Let go of the connection; what has no answer is counted as failed. Twice is harmless."""
        if self._closed:
            return
        self._link.close()
        # Counted when no more answers come.
        lost = self.unanswered()
        self._closed = True
        self._give_up(
            lost,
            str(self._fatal)
            if self._fatal is not None
            else "the publisher was closed before the collector answered; it may be stored",
        )
        self.poll(0)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait for answers until the condition holds; False after the time.

        Raises PublishError when the lane is closed, or no answers come any more. Says every 10 s in
        the log that it waits.
        """
        since = warned = time.monotonic()
        with self._answered:
            self._waiters += 1
            try:
                while not condition():
                    if self._closed or self._fatal is not None:
                        raise self.fatal_error()
                    now = time.monotonic()
                    if now - warned >= WARN_EVERY_S:
                        warned = now
                        # Without the lock: a logging handler has one of its own, and may publish.
                        self._answered.release()
                        try:
                            _log.warning("waiting %.0f s: %s", now - since, self._unacknowledged())
                        finally:
                            self._answered.acquire()
                        continue
                    left = WARN_EVERY_S if timeout_s is None else timeout_s - (now - since)
                    if left <= 0:
                        return False
                    self._answered.wait(min(left, WARN_EVERY_S))
            finally:
                self._waiters -= 1
        return True

    # -- what the link's thread calls

    def _acked(self, seq: int) -> None:
        callers = self.outbox.answer(seq)
        if callers:
            self._call(callers)
            self._called.set()
        # Read without its lock: who has counted itself in looks at the condition after that.
        if self._waiters:
            with self._answered:
                self._answered.notify_all()

    def _refused(self, refusal: Refusal) -> None:
        is_new, waiting = self.outbox.refuse(refusal.seq)
        if is_new:
            reason = f"{refusal.reason} ({refusal.code})"
            if waiting is not None:
                assert isinstance(waiting, SocketDelivery)  # noqa: S101 (for mypy)
                waiting.fail(reason)
            self.count_failure("", KafkaError(KafkaError._FAIL, reason))

    def _failed(self, error: BaseException) -> None:
        with self._answered:
            self._fatal = PublishError(
                f"the connection to the collector has failed for good ({error!r}; the log has "
                "more); what has no answer may be stored or not. Make another Publisher"
            )
        # Nothing more is queued.
        self._give_up(self.unanswered(), str(self._fatal))

    # -- inside

    def _give_up(self, lost: int, reason: str) -> None:
        """What has no answer counts as failed, and its callbacks are called."""
        with self._lock:
            self.failed += lost
        for waiting in self.outbox.left():
            assert isinstance(waiting, SocketDelivery)  # noqa: S101 (for mypy)
            waiting.fail(reason)
        self._call(self.outbox.callers_left())
        with self._answered:
            self._answered.notify_all()
        self._called.set()

    def _call(self, callers: Any) -> None:
        self.ready.extend(callers)

    def _attend(self) -> None:
        while not self._closed:
            self._called.wait()
            self._called.clear()
            try:
                self.poll(0)
            except BaseException:
                # SystemExit of a callback, for one: there is nobody else for those that follow.
                _log.exception("an on_delivery callback raised what ends a program")
                self._called.set()

    def _unacknowledged(self) -> str:
        trouble = self._link.trouble
        return (
            f"{self.unanswered():,} of {self.queued:,} records are not acknowledged by the "
            f"collector at {self._link.path}" + (f" ({trouble})" if trouble else "")
        )
