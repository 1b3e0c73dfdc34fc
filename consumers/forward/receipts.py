"""Receipts: for each event and vendor what became of it, to the topic of the stream `receipts`.

A batch is committed only after its receipts are acknowledged by Kafka. A process that dies between
the two leaves receipts of events that are sent, and receipted, again. Accepted once is accepted;
otherwise the later one counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from google.protobuf.timestamp_pb2 import Timestamp

from consumers.client import DENIED, QUIET, Settings, denied, unknown_topic
from consumers.errors import Systemic, Unavailable
from consumers.forward.delivery import Final
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.settings import ONCE
from ingest.streams import Stream

__all__ = ["Receipts", "receipt"]

# How long a send may take before the batch is tried again as a whole, in seconds.
_SEND_TIMEOUT_S = 60.0


def receipt(vendor: str, final: Final) -> Receipt:
    """What is kept of an event that is final."""
    event = final.event
    found = Receipt(
        vendor=vendor,
        event_id=event.event_id,
        status=final.status.value,
        attempts=final.attempts,
        repeated=final.repeated,
        source_topic=event.topic,
        source_partition=event.partition,
        source_offset=event.offset,
        sent_at=_timestamp(final.sent_us) if final.sent_us else None,
        answered_at=_timestamp(final.answered_us),
    )
    if final.reason is not None:
        found.reason, found.detail = final.reason
    return found


def _timestamp(us: int) -> Timestamp:
    """In a third of the time of FromMicroseconds."""
    seconds, micros = divmod(us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


class Receipts:
    """Sends receipts to Kafka. Belongs to one thread."""

    def __init__(self, kafka: Settings, stream: Stream) -> None:
        self._topic = stream.topic
        failed: list[KafkaError] = []
        self._failed = failed

        # It does not know us: the producer holds it, and a circle of the two would keep its threads
        # and files until the cycle collector comes, which is rare.
        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        self._settings: dict[str, Any] = {
            **QUIET,
            "linger.ms": 5,
            "compression.type": "lz4",
            **kafka,
            **ONCE,
            "delivery.timeout.ms": int(_SEND_TIMEOUT_S * 1000),
            "delivery.report.only.error": True,
            "on_delivery": on_delivery,
        }
        self._producer = Producer(self._settings)

    def send(self, receipts: Sequence[Receipt]) -> None:
        """Return when all are acknowledged. Raises Unavailable or Systemic; some may be there then."""  # noqa: E501
        try:
            self._send(receipts)
        except KafkaException as error:  # fatal: librdkafka's client raises it from any call
            raise self._explained(error.args[0]) from error
        except Unavailable:
            # It may have forgotten where Kafka is (membership.py), and has given these up.
            self._producer.purge()
            self._producer = Producer(self._settings)
            raise

    def _send(self, receipts: Sequence[Receipt]) -> None:
        self._failed.clear()
        self._producer.poll(0)  # which says why it is fatal, if it is; produce does not
        left: list[dict[str, Any]] = [
            {"key": r.event_id.encode(), "value": r.SerializeToString()} for r in receipts
        ]
        deadline = time.monotonic() + _SEND_TIMEOUT_S + 5
        while left:
            try:
                self._producer.produce_batch(self._topic, left)
            except KafkaException as error:
                raise self._explained(error.args[0]) from error
            refused = [record for record in left if "_error" in record]
            for record in refused:
                why = record.pop("_error")
                if why.code() != KafkaError._QUEUE_FULL:
                    raise self._explained(why)
            left = refused
            if left:
                self._producer.poll(0.1)
                if time.monotonic() > deadline:
                    raise Unavailable(f"Kafka takes no receipts to {self._topic}")
        waiting = self._producer.flush(max(deadline - time.monotonic(), 0.0))
        if self._failed:
            raise self._explained(self._failed[0])
        if waiting:
            raise Unavailable(f"Kafka does not acknowledge receipts to {self._topic}")

    def _explained(self, error: KafkaError) -> Exception:
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return Systemic(unknown_topic(self._topic))
        if error.code() in DENIED:
            return denied(error, self._topic, act="WRITE")
        if error.fatal() or error.code() == KafkaError._FATAL:
            return Systemic(
                f"the producer of receipts met a fatal error: {error.str()}; start this process "
                "again"
            )
        return Unavailable(f"receipts to {self._topic}: {error.str()}")
