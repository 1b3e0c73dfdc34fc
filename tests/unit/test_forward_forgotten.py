"""Whether a vendor whose position Kafka has forgotten has had events: its receipts say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message

from consumers.batch import Partition, Span
from consumers.bounds import Bounds
from consumers.client import denied
from consumers.errors import Systemic, Unavailable
from consumers.forward import forgotten
from consumers.forward.forgotten import sent_before
from ingest.gen.headrace.v1.receipt_pb2 import Receipt

TOPIC = "receipts"
DAY_MS = 86_400_000
A, B = Partition("raw_events", 0), Partition("raw_events", 1)
SPANS = {A: Span(10, 20), B: Span(0, 5)}


def receipt(
    vendor: str = "heap", status: str = "accepted", at: Partition = A, offset: int = 12
) -> bytes:
    one = Receipt(
        vendor=vendor, status=status, event_id="e", source_topic=at.topic,
        source_partition=at.number, source_offset=offset,
    )  # fmt: skip
    return one.SerializeToString()


@pytest.fixture
def receipts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is in the topic, each read by itself; empty ones are errors of the test."""
    values: list[bytes] = []

    def read(_kafka: Any, topic: str, spans: Mapping[int, Span]) -> Iterator[tuple[Partition, Any]]:
        assert spans == {0: Span(0, len(values))}
        for offset, value in enumerate(values):
            assert value, "more is read than is needed"
            yield Partition(topic, 0), [Message(topic, 0, offset, value=value)]

    def bounds(_kafka: Any, topic: str, since_ms: int) -> Bounds:
        assert (topic, since_ms) == (TOPIC, DAY_MS - 2 * 3_600_000)
        return Bounds({0: Span(0, len(values))}, ())

    monkeypatch.setattr(forgotten, "firsts", lambda *_: {0: DAY_MS + 5, 1: DAY_MS})
    monkeypatch.setattr(forgotten, "bounds", bounds)
    monkeypatch.setattr(forgotten, "read", read)
    return values


def test_only_accepted_receipts_of_this_vendor_and_of_what_is_still_there_say_so(
    receipts: list[bytes],
) -> None:
    receipts += [
        receipt("heap2"), receipt(status="dropped"), receipt(status="rejected"), b"heap",
        receipt(at=Partition("of older", 0)), receipt(offset=9), receipt(offset=20),
        receipt(at=Partition("raw_events", 7)),
    ]  # fmt: skip
    assert sent_before({}, TOPIC, "heap", SPANS) == set()
    receipts.append(receipt(offset=19))
    assert sent_before({}, TOPIC, "heap", SPANS) == {A}


def test_it_is_read_until_all_are_known(receipts: list[bytes]) -> None:
    receipts += [receipt(), receipt(at=B, offset=0), b""]
    assert sent_before({}, TOPIC, "heap", SPANS) == {A, B}


def test_no_receipts_are_read_for_partitions_that_hold_markers_only(
    receipts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts.append(b"")
    monkeypatch.setattr(forgotten, "firsts", lambda *_: {})
    assert sent_before({}, TOPIC, "heap", SPANS) == set()


def test_who_may_not_read_receipts_is_told_so_instead_of_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(error: Exception) -> Any:
        def bounds(*_: object) -> Bounds:
            raise error

        return bounds

    monkeypatch.setattr(forgotten, "firsts", lambda *_: {0: DAY_MS})
    refused = denied(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), TOPIC)
    monkeypatch.setattr(forgotten, "bounds", refuse(refused))
    with pytest.raises(Systemic, match=r"what heap has had .* READ on the topic receipts"):
        sent_before({}, TOPIC, "heap", SPANS)
    monkeypatch.setattr(forgotten, "bounds", refuse(Unavailable("it does not answer")))
    with pytest.raises(Unavailable):
        sent_before({}, TOPIC, "heap", SPANS)
