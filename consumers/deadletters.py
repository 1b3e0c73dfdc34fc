"""Dead letters: what can't land goes to `<topic>.dlq`, whole and with the reason.

Rules:
- A batch is written only after its dead letters are acknowledged by Kafka. When that fails, nothing
  is committed: dropping silently is not a way out.
- The record keeps its value, key and headers; `headrace.…` headers say where it came from and why.
- The key of the coordinates (`headrace.topic`, `.partition`, `.offset`) is unique: after a crash
  between dead letter and commit the same record may be there twice, and readers count it once.
- `headrace dlq redrive` sends them back (consumers/dlq). One that fails again comes back as another
  letter, with other coordinates; `headrace.redriven` in its headers says how often it was sent.
- Too many of them in a window mean that the stream is misconfigured, not that records are bad: stop
  as systemic instead, before those of the last batch are sent. So a stream of nothing but rubbish
  gets `share * window` dead letters at most, 100 by default. What was redriven and fails again does
  not count: it is old news, and must not stop the process at night. A batch counts once it has
  landed: one that was dropped is read again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumers import metrics
from consumers.client import DENIED, denied
from consumers.errors import Systemic, Unavailable
from consumers.lately import Lately
from ingest.settings import ONCE
from ingest.streams import Stream

__all__ = ["KINDS", "OURS", "REDRIVEN", "DeadLetter", "DeadLetters", "Guard", "Letters", "Lines"]

log = logging.getLogger(__name__)

# The headers that make a record a letter, as `headrace.…`.
OURS = frozenset(
    f"headrace.{name}"
    for name in ("topic", "partition", "offset", "kind", "reason", "destination", "timestamp_ms",
                 "attempted_ms")
)  # fmt: skip
# What a letter may be for, by `headrace.kind`.
KINDS = ("undecodable", "over_size", "rejected")
# A header of the record itself: how often it was redriven.
REDRIVEN = "headrace.redriven"

# Of a reason so much is kept, in characters: it may quote what a stranger has sent.
_REASON = 1000
# Between two lines in the log about the dead letters of one topic, in seconds.
_LINE_EVERY_S = 60.0
# How long a send may take before the batch is retried as a whole, in seconds.
_SEND_TIMEOUT_S = 60.0


class DeadLetter(NamedTuple):
    """A record that can't land. `kind` is a short constant, `reason` is for people."""

    message: Message
    kind: str
    reason: str

    @property
    def again(self) -> bool:
        """It was redriven, and fails once more."""
        return any(name == REDRIVEN for name, _ in self.message.headers() or ())


class Guard:
    """Notices when more than `share` of a stream's window of records would be dead letters.

    See consumers.lately. Belongs to one thread.
    """

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._lately: defaultdict[str, Lately] = defaultdict(lambda: Lately(share, window))

    def check(self, stream: Stream, records: int, dead: Sequence[str], before: int = 0) -> None:
        """Whether these of a batch of `records` may be dead letters, too, for these reasons.

        `before` of the batch are already. Raises Systemic where they are too many.
        """
        if not dead:
            return
        found = self._lately[stream.name].too_many(records, before + len(dead))
        if found is not None:
            bad, total = found
            raise Systemic(
                f"{bad} of the last {total} records of {stream.topic} can't be landed (the limit "
                f"is {self._share:.0%}), the latest because: {dead[-1]}. This looks like the wrong "
                f"message type or table, not like bad records. The last {len(dead)} of them were "
                f"not sent to {stream.dlq}, and their batch is not committed. Compare the stream's "
                f"message ({stream.descriptor.full_name}) with its producers, or raise "
                "--max-dead-share."
            )

    def add(self, stream: Stream, records: int, dead: int) -> None:
        """A batch of `records` has landed, but for the `dead` ones."""
        self._lately[stream.name].add(records, dead)


class Letters(Protocol):
    """Where dead letters go."""

    def send(self, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        """Return when all are durable. Raises Unavailable or Systemic; some may be there then."""
        ...


class Lines:
    """One line a topic and minute in the log: the first at once, then how many came since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._due_at: dict[str, float] = {}

    def note(self, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        """These are durable now; from any thread."""
        now = time.monotonic()
        with self._lock:
            self._counts[stream.topic] += len(letters)
            if now < self._due_at.get(stream.topic, now):
                return
            self._due_at[stream.topic] = now + _LINE_EVERY_S
            count = self._counts.pop(stream.topic)
        log.warning("%d %s of %s can't be landed and went to %s, see `headrace dlq ls %s`; "
                    "the latest because: %s",
                    count, "record" if count == 1 else "records", stream.topic, stream.dlq,
                    stream.name, letters[-1].reason)  # fmt: skip


class DeadLetters:
    """Sends dead letters to Kafka; from any thread. `destination` is who could not land them."""

    def __init__(self, kafka: Mapping[str, str | int | float | bool], destination: str) -> None:
        self._destination = destination
        self._lines = Lines()
        self._settings: dict[str, str | int | float | bool] = {
            "log_level": 2,  # what matters is raised
            **kafka,
            **ONCE,
            "compression.type": "lz4",
            # A record that was just small enough for its topic grows by our headers.
            "message.max.bytes": 1_000_000_000,
            "delivery.timeout.ms": int(_SEND_TIMEOUT_S * 1000),
        }
        self._producer = Producer(self._settings)

    def send(self, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        """Return when all are acknowledged. Raises Unavailable or Systemic; some may be there then."""  # noqa: E501
        producer = self._producer
        try:
            self._send(producer, stream, letters)
        except KafkaException as error:  # fatal: librdkafka's client raises it from any call
            raise self._explain(stream, error.args[0]) from error
        except Unavailable:
            # It may have forgotten where Kafka is (membership.py), and has given these up.
            producer.purge()
            if self._producer is producer:  # another lane may have been first
                self._producer = Producer(self._settings)
            raise

    def _send(self, producer: Producer, stream: Stream, letters: Sequence[DeadLetter]) -> None:
        failures: list[KafkaError] = []
        delivered_count = 0

        def delivered(error: KafkaError | None, _message: Message) -> None:
            nonlocal delivered_count
            delivered_count += 1
            if error is not None:
                failures.append(error)

        producer.poll(0)  # which says why it is fatal, if it is; produce does not
        for letter in letters:
            message = letter.message
            headers = [
                *(message.headers() or ()),
                ("headrace.topic", str(message.topic()).encode()),
                ("headrace.partition", str(message.partition()).encode()),
                ("headrace.offset", str(message.offset()).encode()),
                ("headrace.kind", letter.kind.encode()),
                ("headrace.reason", letter.reason[:_REASON].encode()),
                ("headrace.destination", self._destination.encode()),
                ("headrace.timestamp_ms", str(message.timestamp()[1]).encode()),
                ("headrace.attempted_ms", str(int(time.time() * 1000)).encode()),
            ]
            while True:
                try:
                    producer.produce(
                        stream.dlq,
                        message.value(),
                        message.key(),
                        headers=headers,
                        on_delivery=delivered,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
                except KafkaException as error:
                    raise self._explain(stream, error.args[0]) from error
            producer.poll(0)
        deadline = time.monotonic() + _SEND_TIMEOUT_S + 5
        while delivered_count < len(letters) and time.monotonic() < deadline:
            producer.poll(0.1)
        if failures:
            raise self._explain(stream, failures[0])
        if delivered_count < len(letters):
            raise Unavailable(f"Kafka does not acknowledge dead letters to {stream.dlq}")
        for letter in letters:
            metrics.DEAD_LETTERS.labels(stream.name, letter.kind).inc()
        self._lines.note(stream, letters)

    @staticmethod
    def _explain(stream: Stream, error: KafkaError) -> Exception:
        unknown = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
        if error.code() in unknown:
            return Systemic(
                f"the dead-letter topic {stream.dlq} does not exist; create it with "
                f"`headrace migrate --stream {stream.name}`"
            )
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return Systemic(
                f"a dead letter is larger than {stream.dlq} accepts; raise that topic's "
                "max.message.bytes"
            )
        if error.code() in DENIED:
            return denied(error, stream.dlq, act="WRITE")
        if error.fatal() or error.code() == KafkaError._FATAL:
            return Systemic(
                f"the producer of dead letters met a fatal error: {error.str()}; start this "
                "process again"
            )
        return Unavailable(f"dead letters to {stream.dlq}: {error.str()}")
