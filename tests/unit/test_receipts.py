"""Receipts on their way to Kafka: all of them are acknowledged, or whoever sends them hears it."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError

from consumers.errors import Unavailable
from consumers.forward import receipts
from consumers.forward.receipts import Receipts
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN


class Kafka:
    """What producers deal with."""

    def __init__(self) -> None:
        # How many records a producer's queue takes, and how many flushes fail.
        self.room = 1000
        self.failing = 0
        self.keys: list[bytes] = []

    def producer(self, settings: dict[str, Any]) -> Producer:
        return Producer(self, settings)


class Producer:
    """Sends what it has queued when it is polled or flushed."""

    def __init__(self, kafka: Kafka, settings: dict[str, Any]) -> None:
        self._kafka, self._settings = kafka, settings
        self._queued: list[bytes] = []

    def produce_batch(self, _topic: str, records: list[dict[str, Any]]) -> int:
        free = max(self._kafka.room - len(self._queued), 0)
        self._queued += [record["key"] for record in records[:free]]
        for record in records[free:]:
            record["_error"] = KafkaError(KafkaError._QUEUE_FULL)
        return min(free, len(records))

    def poll(self, _timeout_s: float) -> int:
        self._kafka.keys += self._queued
        self._queued = []
        return 0

    def flush(self, timeout_s: float) -> int:
        if self._kafka.failing:
            self._kafka.failing -= 1
            self._settings["on_delivery"](KafkaError(KafkaError._MSG_TIMED_OUT), None)
            self._queued = []
        return self.poll(timeout_s)

    def purge(self) -> None:
        self._queued = []


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    kafka = Kafka()
    monkeypatch.setattr(receipts, "Producer", kafka.producer)
    return kafka


def some(count: int) -> list[Receipt]:
    return [Receipt(vendor="heap", event_id=f"e{n}") for n in range(count)]


def test_receipts_that_the_queue_has_no_room_for_are_sent_too(kafka: Kafka) -> None:
    kafka.room = 4
    Receipts({}, BUILT_IN["receipts"]).send(some(10))
    assert kafka.keys == [b"e%d" % n for n in range(10)]


def test_a_failed_delivery_is_of_that_attempt_alone(kafka: Kafka) -> None:
    kafka.failing = 1
    book = Receipts({}, BUILT_IN["receipts"])
    with pytest.raises(Unavailable):
        book.send(some(2))
    assert not kafka.keys
    book.send(some(2))
    assert kafka.keys == [b"e0", b"e1"]
