"""A Publisher with a spool: what it takes, its relay can send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from spool_kafka import FakeKafka, FakeProducer

from headrace import Publisher
from ingest.publisher import PublishError, Refused
from ingest.spool import lane as lane_module
from ingest.spool import transactions
from ingest.spool.errors import SpoolTaken
from ingest.spool.lane import SpooledDelivery, SpoolLane
from ingest.spool.transactions import FRAMING_BYTES, Transactions
from ingest.streams import BUILT_IN

PATIENCE_S = 30.0
STREAM = BUILT_IN["device_state"]
# librdkafka's message.max.bytes, and that of a Publisher, unless it is set.
MOST = 1_000_000


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    """Behind the relay of every lane."""
    found = FakeKafka()
    monkeypatch.setattr(lane_module, "Transactions", lambda *_, **__: FakeProducer(found, {}))
    return found


@pytest.fixture
def publisher(kafka: FakeKafka, tmp_path: Path) -> Iterator[Publisher]:
    with Publisher("127.0.0.1:1", spool=tmp_path) as publisher:
        yield publisher


@pytest.fixture
def produce(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Gives a record to a producer with the settings of a relay's, but for the transaction."""
    settings: dict[str, Any] = {}
    monkeypatch.setattr(transactions, "Producer", settings.update)
    made: list[Producer] = []

    def produce(value: bytes, key: bytes, **kafka: int) -> None:
        Transactions({k.replace("_", "."): n for k, n in kafka.items()}, "n")._make_producer()
        alone = {k: v for k, v in settings.items() if not k.startswith("transaction")}
        made.append(Producer(alone))
        made[-1].produce("t", value, key)

    yield produce
    for producer in made:
        producer.purge()
        producer.flush(1.0)


def sized(size: int) -> dict[str, str]:
    """A message that takes so many bytes with its key."""
    found = {"deviceId": "d", "timestamp": "2025-06-16T22:50:12.226Z", "mode": "x" * (size // 2)}
    message = STREAM.message(device_id="d", mode=found["mode"])
    message.timestamp.FromJsonString(found["timestamp"])
    found["mode"] += "x" * (size - len(message.SerializeToString()) - len("d"))
    return found


def test_what_has_no_room_for_its_framing_is_refused_before_it_is_stored(
    publisher: Publisher, kafka: FakeKafka
) -> None:
    """librdkafka would refuse it to the relay, again and again, and all behind it would wait."""
    with pytest.raises(Refused, match=r"takes 999,980 bytes .* is 1,000,000, and .* counts too"):
        publisher.publish(STREAM, sized(MOST - 20))
    with pytest.raises(Refused, match=r"takes 1,000,001 bytes with its key; .* is 1,000,000$"):
        publisher.publish(STREAM, sized(MOST + 1))
    publisher.publish_many(STREAM, [b"1", b"x" * (MOST - 20), b"2"], [b"d"] * 3)
    with pytest.raises(PublishError, match=r"1 records not stored: 1: .*Message size too large"):
        publisher.flush(PATIENCE_S)
    assert [record.value for record in kafka.log] == [b"1", b"2"]


@pytest.mark.parametrize(("value", "key"), [("text", b"d"), (b"1", "text")])
def test_what_is_no_bytes_is_the_callers_mistake_and_ends_nothing(
    publisher: Publisher, kafka: FakeKafka, value: Any, key: Any
) -> None:
    """It would have failed the spool's writer, and with it everything that came later."""
    publisher.publish_many(STREAM, [b"1"], [b"d"])
    with pytest.raises(TypeError, match="bytes, not str"):
        publisher.publish_many(STREAM, [b"with it", value], [b"d", key])
    publisher.publish_many(STREAM, [b"2"], [b"d"])
    publisher.flush(PATIENCE_S)
    assert [record.value for record in kafka.log] == [b"1", b"2"]
    assert publisher.published == 2


def test_a_relay_that_has_stopped_keeps_nothing_of_those_who_are_told(publisher: Publisher) -> None:
    """The error was one for all, and its trace had the frames of every call, with their records."""
    lane = publisher._lanes.first
    assert isinstance(lane, SpoolLane)
    lane.relay.error = error = SpoolTaken("another process has taken over")
    lane.relay.stop()
    for _ in range(2):
        with pytest.raises(SpoolTaken, match="another process"):
            publisher.publish(STREAM, sized(100))
        with pytest.raises(SpoolTaken, match="another process"):
            lane.relay.wait(1, 0)
    assert error.__traceback__ is None


@pytest.mark.parametrize("most", [2000, MOST])
def test_the_largest_record_that_is_taken_can_be_sent(
    kafka: FakeKafka, tmp_path: Path, produce: Callable[..., None], most: int
) -> None:
    lane = SpoolLane(tmp_path, {"message.max.bytes": most})
    try:
        value, key = b"x" * (most - FRAMING_BYTES - 10), b"k" * 10
        lane.produce("t", value, key, -1, SpooledDelivery())
        with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
            lane.produce("t", value + b"x", key, -1, SpooledDelivery())
        lane.flush(PATIENCE_S)
        assert [record.value for record in kafka.log] == [value]
    finally:
        lane.abandon()
    produce(value, key, message_max_bytes=most)


@pytest.mark.parametrize("kafka_settings", [{}, {"message_max_bytes": 2000}])
def test_a_spool_that_holds_a_record_without_room_for_its_framing_is_sent(
    produce: Callable[..., None], kafka_settings: dict[str, int]
) -> None:
    """Such were taken until November 2026."""
    size = kafka_settings.get("message_max_bytes", MOST)
    produce(b"x" * (size - 10), b"k" * 10, **kafka_settings)
    with pytest.raises(KafkaException, match="MSG_SIZE_TOO_LARGE"):
        produce(b"x" * (size + FRAMING_BYTES), b"", **kafka_settings)
