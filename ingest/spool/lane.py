"""A Publisher's lane that leads into a spool: accepted means on disk, and a relay sends.

It has the methods of ingest/lane.py that a Publisher uses. What differs:

* `produce` and `batch` return when the records are on disk; SpoolFull (a PublishError) when they
  can't be put there.
* A Delivery is done when publish returns. Where in Kafka the record will be is not known then: its
  coordinates have -1 for partition and offset.
* `flush` waits for Kafka, and raises PublishError after its time; what it did not wait for is safe.
* `close` gives Kafka as long as it is told, 5 s without a word, and is content with the disk: what
  is left is sent by the next process that opens the directory, or by `headrace spool drain`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from ingest.delivery import Callbacks, CallingDelivery, Coordinates, Delivery, PublishError
from ingest.settings import Settings
from ingest.spool.errors import SpoolError
from ingest.spool.frames import Record
from ingest.spool.relay import Relay
from ingest.spool.transactions import FRAMING_BYTES, Transactions
from ingest.spool.writer import Spool

__all__ = ["CallingSpooledDelivery", "SpoolLane", "SpooledDelivery"]

_log = logging.getLogger("headrace.spool")

# How long close() waits for Kafka when it is not told, in seconds.
_GRACE_S = 5.0
# How long the relay may take to notice that it is to stop, beyond that.
_STOP_S = 5.0


class SpooledDelivery(Delivery):
    """The delivery of a record that is on disk. `result` does not wait for Kafka."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> Coordinates:
        """Topic, -1, -1: the record is safe, and not in Kafka yet."""
        return Coordinates(self.topic, -1, -1)

    def done(self) -> bool:
        """Always."""
        return True

    def exception(self) -> PublishError | None:
        """None: what could not be stored was raised by publish."""
        return None


class CallingSpooledDelivery(SpooledDelivery, CallingDelivery):
    """The same with a callback, which is run before publish returns."""

    __slots__ = ()


class SpoolLane:
    """A Spool and its Relay; `settings` are a Publisher's. Threads may share it."""

    def __init__(self, folder: Path | str, settings: Settings) -> None:
        # Of value and key: what is larger the relay could never send, nor anything behind it.
        self._largest = int(settings["message.max.bytes"]) - FRAMING_BYTES
        self._bootstrap = settings.get("bootstrap.servers")
        self.ready = Callbacks()
        self.queued = 0
        self.failed = 0
        self._reasons: Counter[str] = Counter()
        self._closed = False
        self.spool = Spool(folder)
        try:
            self._reader = self.spool.reader()
            producer = Transactions(settings, self.spool.node, stopping=self._is_stopping)
            self.relay = Relay(self.spool, self._reader, producer)
        except BaseException:
            self.spool.close()
            raise
        self._thread = threading.Thread(target=self.relay.run, name="headrace-relay", daemon=True)
        self._thread.start()

    def produce(
        self, topic: str, value: bytes, key: bytes, partition: int, delivery: Delivery
    ) -> None:
        """Put one record on disk."""
        if len(value) + len(key) > self._largest:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        self._store([Record(topic, key, value)])
        if isinstance(delivery, CallingDelivery):
            self.ready.add(delivery)

    def batch(
        self, topic: str, records: Sequence[dict[str, Any]], partition: int, report: Any
    ) -> int:
        """Put records on disk together; one that is too large gets an `_error`, as in librdkafka.

        Returns how many there were of the others. Raises TypeError for what is no bytes; nothing of
        this call is stored then.
        """
        good = []
        for record in records:
            if len(record["value"]) + len(record["key"]) > self._largest:
                record["_error"] = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
            else:
                good.append(Record(topic, record["key"], record["value"]))
        if good:
            self._store(good)
        return len(good)

    def poll(self, timeout_s: float) -> None:
        """Run the callbacks that are due; not one at a time: each before its publish returns."""
        while self.ready:
            with contextlib.suppress(IndexError):  # another thread was first
                self.ready.take().call_back()

    def attend(self) -> None:
        """See poll."""
        self.poll(0)

    def wait_for_room(self) -> None:
        """There is no queue that could be full."""

    def outstanding(self) -> int:
        """Records of the spool that are not in Kafka, at most."""
        state = self.spool.state
        return state.next_seq - max(state.position, self.relay.position)

    def unanswered(self) -> int:
        """Records that would be lost: none, they are on disk."""
        return 0

    def report(self, error: KafkaError | None, message: Any) -> None:
        """The spool reports nothing later."""

    def count_failure(self, topic: str, error: KafkaError) -> None:
        """A record will not be stored."""
        self.failed += 1
        self._reasons[f"{error.str()} (topic {topic!r})"] += 1

    def explain(self, topic: str, error: KafkaError) -> PublishError:
        """The sentence for an operator."""
        return PublishError(f"a record was not stored: {error.str()} (topic {topic!r})", error)

    def fatal_error(self) -> PublishError:
        """There is none in a spool but the relay's own."""
        return self.relay.error or SpoolError("the spool has failed; see its log")

    def translate(self, topic: str, error: KafkaException) -> PublishError:
        """What produce raised, as a PublishError."""
        return self.explain(topic, error.args[0])

    def flush(self, timeout_s: float | None) -> None:
        """Wait until all that is in the spool now is in Kafka.

        Raises PublishError after the time, when the relay has stopped for good, and for what was
        too large for Kafka since the last flush.
        """
        until = self.spool.state.next_seq
        if not self.relay.wait(until, timeout_s):
            why = f": {self.relay.trouble}" if self.relay.trouble else ""
            raise PublishError(
                f"up to {self.outstanding():,} records wait in the spool {self.spool.folder} for "
                f"Kafka at {self._bootstrap}" + (f" after {timeout_s:g} s" if timeout_s else "")
                + f"{why}. They are safe on disk"
            )  # fmt: skip
        reasons, self._reasons = self._reasons, Counter()
        if reasons:
            why = "; ".join(f"{n:,}: {reason}" for reason, n in reasons.most_common(5))
            raise PublishError(f"{reasons.total():,} records not stored: {why}")

    def close(self, timeout_s: float | None) -> None:
        """Let Kafka have what it takes within the time, then close the spool.

        Raises PublishError for what was not stored, not for what waits on disk.
        """
        if self._closed:
            return
        try:
            try:
                self.relay.wait(
                    self.spool.state.next_seq, _GRACE_S if timeout_s is None else timeout_s
                )
            except SpoolError as error:
                _log.warning("the spool is closed, but was not sent: %s", error)
            if waiting := self.outstanding():
                _log.info(
                    "up to %d records stay in the spool %s; the next process that opens it, or "
                    "`headrace spool drain`, sends them", waiting, self.spool.folder,
                )  # fmt: skip
            if self._reasons:
                self.flush(0)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop sending and let go of the directory; nothing is lost. Twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.relay.stop()
        self.spool.wake()
        deadline = time.monotonic() + _STOP_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self.spool.wake()
            self._thread.join(0.05)
        if not self._thread.is_alive():
            # Otherwise it is in a call into librdkafka, and ends when that returns.
            self._reader.close()
        self.spool.close()

    # -- inside

    def _store(self, records: Sequence[Record]) -> None:
        if self._closed:
            raise PublishError("the publisher is closed")
        if self.relay.error is not None:
            # Accepting what nobody will send would be a promise without an end.
            # One for each call, see Relay.wait().
            raise copy(self.relay.error)
        self.spool.append(records).result()

    def _is_stopping(self) -> bool:
        return self._closed
