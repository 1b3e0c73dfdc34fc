"""A lane: one idempotent librdkafka producer, how it is polled, and what it has promised.

Who polls. The publishing thread does, every POLL_EVERY records and whenever the queue is full;
`result()` and `flush()` poll while they wait. There is no thread that polls all the time: each
report takes the interpreter's lock, and a second thread that serves reports while the first one
publishes gets it only every 5 ms (the switch interval). Where a record has a callback and its
publisher may fall idle, an *attendant* thread looks every TICK_S whether nobody has polled since,
and polls in its place; so callbacks are served within TICK_S and the busy case has one poller.

What is counted. Only records queued and failed; acknowledged is what remains after librdkafka's own
count of what it still holds. So nothing is counted per acknowledgement, and a lane with
`delivery.report.only.error` knows as much as one with reports.

librdkafka's count holds pending events too, so `acknowledged` may lag, never lead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from ingest.delivery import Callbacks, PublishError

__all__ = ["POLL_EVERY", "KafkaLane"]

_log = logging.getLogger("headrace.publisher")

# Records between two polls of the publishing thread: a poll costs 0.2 µs, a report 1 µs.
POLL_EVERY = 256
# How late a callback may be when the publisher is idle, in seconds; fifty looks a second cost less
# than 0.1 % of a core.
TICK_S = 0.02
# A waiting publisher says so in the log this often, in seconds.
WARN_EVERY_S = 10.0
# How long an error of the connection explains a missing acknowledgement, in seconds.
_TROUBLE_S = 60.0

_UNKNOWN_TOPIC = {
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
}
# The second is of a producer of whom no topic at all may be written to.
_NOT_ALLOWED = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}


class KafkaLane:
    """One producer. Its `produce` and `batch` are librdkafka's own until it is closed or fatal."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._bootstrap = config.get("bootstrap.servers")
        # Raises KafkaException for a setting that librdkafka refuses.
        self._producer: Producer | None = Producer({**config, "error_cb": self._on_error})
        self.produce = self._producer.produce
        self.batch = self._producer.produce_batch
        self.ready = Callbacks()
        # `+=` on these is one step as long as there is an interpreter lock: since 3.10 CPython
        # switches threads only at calls and backward jumps.
        self.queued = 0
        self.failed = 0
        self._failed_before_flush = 0
        self._reasons: Counter[str] = Counter()
        self._first_error: KafkaError | None = None
        self._fatal: KafkaError | None = None
        self._trouble = (0.0, "")
        self._polled = False
        self._attendant: threading.Thread | None = None
        self._closing = threading.Event()

    # -- polling

    def poll(self, timeout_s: float) -> None:
        """Serve reports, waiting at most `timeout_s` for the first, then run callbacks."""
        self._polled = True
        producer = self._producer
        if producer is not None:
            self._serve(producer.poll, timeout_s)
        if self.ready:
            self.ready.run()

    def _serve(self, call: Callable[[float], object], timeout_s: float) -> None:
        try:
            call(timeout_s)
        except KafkaException as error:
            # Confluent's client (2.16) raises what is fatal, once, and gives it to no callback.
            # Reports come all the same.
            if not error.args[0].fatal():
                raise
            self._fatal = error.args[0]

    def attend(self) -> None:
        """Make sure that callbacks are served although nobody polls."""
        if self._attendant is None:
            self._attendant = threading.Thread(
                target=self._attend, name="headrace-publisher", daemon=True
            )
            self._attendant.start()

    def _attend(self) -> None:
        while not self._closing.wait(TICK_S):
            if self._polled:
                self._polled = False
            elif self.outstanding() or self.ready:
                try:
                    self.poll(0)
                except BaseException:
                    # SystemExit of a callback, for one: there is nobody else for those that follow.
                    _log.exception("an on_delivery callback raised what ends a program")
                self._polled = False

    def wait_for_room(self) -> None:
        """The queue is full: serve reports until there was one. The caller then tries again.

        Raises PublishError when the lane can't recover.
        """
        since = warned = time.monotonic()
        held = self.outstanding()
        while self.outstanding() >= held:
            self.poll(0.1)
            self._raise_if_fatal()
            now = time.monotonic()
            if now - warned > WARN_EVERY_S:
                warned = now
                _log.warning("waiting %.0f s for room: %s", now - since, self._unacknowledged())

    # -- accounting

    def outstanding(self) -> int:
        """Records (and events) whose report has not been served."""
        return 0 if self._producer is None else len(self._producer)

    def unanswered(self) -> int:
        """Records that Kafka has not answered for: never more than were given to it."""
        return min(self.outstanding(), self.queued - self.failed)

    def count_failure(self, topic: str, error: KafkaError) -> None:
        """A record failed for good."""
        self.failed += 1
        self._failed_before_flush += 1
        self._reasons[self._reason(topic, error)] += 1
        if self._first_error is None:
            self._first_error = error

    def report(self, error: KafkaError | None, message: Any) -> None:
        """The report of a record that nobody holds a Delivery of."""
        if error is not None:
            self.count_failure(message.topic(), error)

    def explain(self, topic: str, error: KafkaError) -> PublishError:
        """The sentence for an operator."""
        return PublishError(f"a record was not acknowledged: {self._reason(topic, error)}", error)

    def flush(self, timeout_s: float | None, since: float | None = None) -> None:
        """Wait until every record is answered for. Raises PublishError, naming how many are not.

        The time began at `since`, on the monotonic clock, or begins now. Failures are raised once:
        the next flush tells of later ones.
        """
        warned = time.monotonic()
        since = warned if since is None else since
        self.poll(0)  # what is there counts, however little time there is
        while self.outstanding():
            now = time.monotonic()
            left = 0.1 if timeout_s is None else timeout_s - (now - since)
            if left <= 0:
                raise PublishError(f"{self._unacknowledged()} after {timeout_s:g} s")
            if now - warned > WARN_EVERY_S:
                warned = now
                _log.warning("waiting %.0f s: %s", now - since, self._unacknowledged())
            self._polled = True
            if self._producer is not None:
                # Unlike poll, flush does not wait for linger.ms.
                self._serve(self._producer.flush, min(0.1, left))
            self.ready.run()
        self.ready.run()
        failed, self._failed_before_flush = self._failed_before_flush, 0
        reasons, self._reasons = self._reasons, Counter()
        first, self._first_error = self._first_error, None
        if failed:
            why = "; ".join(f"{n:,}: {reason}" for reason, n in reasons.most_common(5))
            raise PublishError(
                f"{failed:,} of {self.queued:,} records not acknowledged: {why}", first
            )
        self._raise_if_fatal()

    def close(self, timeout_s: float | None, since: float | None = None) -> None:
        """Flush and let go of the producer, whether or not that succeeds. Raises as flush does."""
        try:
            self.flush(timeout_s, since)
        except PublishError:
            # Whoever holds a Delivery of what is left gets an answer.
            if self._producer is not None and self.outstanding():
                self._producer.purge()
                self._serve(self._producer.flush, 1.0)
                self.ready.run()
            self.abandon()
            raise
        # Not after Ctrl-C: then the records are still on their way, and close may be tried again.
        self.abandon()

    def abandon(self) -> None:
        """Let go of the producer; what it holds is gone, and counted as failed."""
        self._closing.set()
        self.failed += self.unanswered()
        # Not Producer.close(): another thread may be in poll(), and then keeps the producer alive.
        self._producer = None
        self.produce = self.batch = _closed

    # -- reasons

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error
        elif error.code() != KafkaError._ALL_BROKERS_DOWN or not self._recent_trouble():
            self._trouble = (time.monotonic(), error.str())

    def _raise_if_fatal(self) -> None:
        if self._fatal is not None:
            raise self.fatal_error()

    def fatal_error(self) -> PublishError:
        """What to say when librdkafka refuses everything from now on."""
        reason = self._fatal.str() if self._fatal else "unknown"
        return PublishError(
            f"Kafka's idempotent producer met a fatal error: {reason}. Make a new Publisher; look "
            "up what is in the log before publishing anything of this one again",
            self._fatal,
        )

    def translate(self, topic: str, error: KafkaException) -> PublishError:
        """What produce() raised, as a PublishError."""
        cause: KafkaError = error.args[0]
        if cause.fatal() or cause.code() == KafkaError._FATAL:
            if self._fatal is None and self._producer is not None:
                self._serve(self._producer.poll, 0)  # which says why; produce does not
            if self._fatal is not None and self._fatal.code() in _NOT_ALLOWED:
                return self.explain(topic, self._fatal)
            return self.fatal_error()
        return self.explain(topic, cause)

    def _recent_trouble(self) -> str:
        when, text = self._trouble
        return text if text and time.monotonic() - when < _TROUBLE_S else ""

    def _unacknowledged(self) -> str:
        trouble = self._recent_trouble()
        return (
            f"{self.unanswered():,} of {self.queued:,} records are not acknowledged by Kafka at "
            f"{self._bootstrap}" + (f" ({trouble})" if trouble else "")
        )

    def _reason(self, topic: str, error: KafkaError) -> str:
        # After a fatal error librdkafka purges what is queued.
        if self._fatal is not None and error.code() in (KafkaError._FATAL, *_PURGED):
            error = self._fatal
        code = error.code()
        if code in _NOT_ALLOWED:
            return f"Kafka refuses: {error.str()}. This needs WRITE on the topic {topic!r}"
        if code in _UNKNOWN_TOPIC:
            return f"topic {topic!r} does not exist; create it with `headrace migrate`"
        if code == KafkaError._MSG_TIMED_OUT:
            return ("no answer within delivery.timeout.ms; it may or may not be in the log, so do "
                    "not publish it again by hand")  # fmt: skip
        if code in _PURGED:
            return "the publisher was closed before Kafka answered"
        return f"{error.str()} (topic {topic!r})"


def _closed(*_: Any, **__: Any) -> Any:
    raise PublishError("the publisher is closed")
