"""A real collector, real Kafka: what came by the socket, or from Sparrow, is in the topic once."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from collecting import Collector, committed
from confluent_kafka import Message
from waiting import until

from headrace import Publisher, Sparrow
from headrace.stack import Endpoints
from ingest.publisher import PublishError
from ingest.streams import BUILT_IN
from ingest.topics import ensure

PATIENCE_S = 60.0
TIME = "2025-06-16T22:50:12.226Z"


def read(kafka: str, topic: str, enough: int) -> list[tuple[int, bytes, bytes]]:
    """All that is committed, once there is as much as that: partition, key, value."""
    found: list[Message] = []

    def are_there() -> bool:
        found[:] = committed(kafka, topic)
        return len(found) >= enough

    until(are_there, f"{enough} records")
    return [(message.partition(), message.key(), message.value()) for message in found]


@pytest.fixture
def topic(endpoints: Endpoints, unique: Callable[[str], str]) -> str:
    """A topic of two partitions of the test's own."""
    found = unique("socket")
    ensure({"bootstrap.servers": endpoints.kafka}, {found: 2})
    return found


def start(folder: Path, kafka: str, stream: str, topic: str) -> Collector:
    """A collector with a socket, whose stream of that name has the topic."""
    toml = f"[streams.{stream}]\ntopic = '{topic}'\n"
    return Collector(folder, kafka=kafka, toml=toml, socket="s")


def test_100_000_records_are_there_once_and_in_order_though_the_collector_is_killed(
    endpoints: Endpoints, topic: str, tmp_path: Path
) -> None:
    """SIGKILL and a new start, twice, while four keys' records are on their way."""
    count, keys = 100_000, 4
    parse: Any = BUILT_IN["device_state"].message.FromString
    with (
        start(tmp_path, endpoints.kafka, "device_state", topic) as collector,
        Publisher(f"unix:{tmp_path / 's'}") as publisher,
    ):
        ready = []
        make = BUILT_IN["device_state"].message
        for i in range(count):
            message: Any = make(device_id=f"d{i % keys}", colo=str(i))
            message.timestamp.FromJsonString(TIME)
            ready.append(message)

        killed = threading.Event()

        def publish() -> None:
            for i, message in enumerate(ready):
                if i == count * 9 // 10:
                    # So that there is something to acknowledge then, however fast it is.
                    killed.wait()
                publisher.publish("device_state", message)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            for share in (0.2, 0.6):
                until(lambda share=share: publisher.acknowledged > share * count, "progress")
                collector.kill()
                assert publisher.acknowledged < count
                collector.start()
        finally:
            killed.set()
        thread.join()
        publisher.flush(PATIENCE_S)
        assert (publisher.acknowledged, publisher.failed) == (count, 0)
        found = [
            (partition, key, int(parse(value).colo))
            for partition, key, value in read(endpoints.kafka, topic, count)
        ]
    times = Counter(number for _, _, number in found)
    assert len(times) == count
    assert set(times.values()) == {1}
    for key in {key for _, key, _ in found}:
        mine = [(partition, number) for partition, k, number in found if k == key]
        assert len({partition for partition, _ in mine}) == 1
        assert [number for _, number in mine] == sorted(number for _, number in mine)
        assert {f"d{number % keys}".encode() for _, number in mine} == {key}


def test_what_is_acknowledged_is_in_the_topic_though_the_client_gives_up(
    endpoints: Endpoints, topic: str, tmp_path: Path
) -> None:
    """The collector is killed and stays away; what it has acknowledged it sends when it is back."""
    parse: Any = BUILT_IN["device_state"].message.FromString
    with start(tmp_path, endpoints.kafka, "device_state", topic) as collector:
        publisher = Publisher(f"unix:{tmp_path / 's'}")

        def publish(first: int, end: int) -> list[Any]:
            return [
                publisher.publish(
                    "device_state", {"deviceId": "d", "timestamp": TIME, "colo": str(i)}
                )
                for i in range(first, end)
            ]

        deliveries = publish(0, 10_000)
        until(lambda: publisher.acknowledged > 1000, "progress")
        collector.kill()
        # Nobody is there for these, however fast the collector was.
        deliveries += publish(10_000, 20_000)
        with pytest.raises(PublishError, match="nobody listens there"):
            publisher.flush(0.5)
        with pytest.raises(PublishError):
            publisher.close(0)
        acknowledged = {i for i, delivery in enumerate(deliveries) if delivery.exception() is None}
        assert 1000 < len(acknowledged) < 20_000
        collector.start()
        found = [
            int(parse(value).colo)
            for _, _, value in read(endpoints.kafka, topic, len(acknowledged))
        ]
    assert found == list(range(len(found)))
    assert acknowledged <= set(found)


def test_who_sent_an_event_and_when_it_came_is_the_collectors_word(
    endpoints: Endpoints, topic: str, tmp_path: Path
) -> None:
    """A ready RawEvent is refused at the socket; the same event over HTTP is not."""
    parse: Any = BUILT_IN["raw_events"].message.FromString
    data = '{"event": "purchase product", "deviceId": "desktop1"}'
    forged = {"eventId": "e1", "receivedAt": TIME, "source": "billing", "data": data}
    with start(tmp_path, endpoints.kafka, "raw_events", topic) as collector:
        with Publisher(f"unix:{tmp_path / 's'}") as publisher:
            refused = publisher.publish("raw_events", forged)
            with pytest.raises(PublishError, match="send the event over HTTP, with Sparrow"):
                refused.result(PATIENCE_S)
            with pytest.raises(PublishError, match="1 of 1 records not acknowledged"):
                publisher.flush(PATIENCE_S)
        with Sparrow(collector.url, "", device_id="desktop1") as sparrow:
            sparrow.track("purchase product")
            assert sparrow.flush(PATIENCE_S)
        ((_, key, value),) = read(endpoints.kafka, topic, 1)
    event = parse(value)
    assert (key, event.source) == (b"desktop1", "local")
    assert abs(event.received_at.seconds - time.time()) < 2 * PATIENCE_S


def test_the_topic_is_the_collectors_whatever_the_client_takes_it_for(
    endpoints: Endpoints, topic: str, tmp_path: Path
) -> None:
    """A frame names a stream. Which topic that is stands in the collector's headrace.toml."""
    mine = replace(BUILT_IN["http_test"], topic="of_no_matter")
    with (
        start(tmp_path, endpoints.kafka, "http_test", topic) as collector,
        Publisher(f"unix:{tmp_path / 's'}") as publisher,
    ):
        publisher.publish(mine, {"deviceId": "d", "timestamp": TIME}).result(PATIENCE_S)
        assert [key for _, key, _ in read(endpoints.kafka, topic, 1)] == [b"d"]
        assert collector.metric("headrace_collect_accepted_total") == 1
        assert collector.stop() == 0
    assert not (tmp_path / "s").exists()


def test_sparrows_events_are_there_once_though_the_collector_is_killed(
    endpoints: Endpoints, topic: str, tmp_path: Path
) -> None:
    parse: Any = BUILT_IN["raw_events"].message.FromString
    with start(tmp_path, endpoints.kafka, "raw_events", topic) as collector:
        with Sparrow(collector.url, "", device_id="desktop1", delay_s=0.01) as sparrow:
            for i in range(2000):
                assert sparrow.track("purchase product", {"number": i})
                if i == 1000:
                    until(lambda: sparrow.stats.sent > 100, "progress")
                    collector.kill()
            collector.start()
            assert sparrow.flush(PATIENCE_S)
            assert sparrow.stats[1:] == (2000, 0, 0)
        found = [parse(value) for _, _, value in read(endpoints.kafka, topic, 2000)]
    events = [json.loads(event.data) for event in found]
    assert [event["properties"]["number"] for event in events] == list(range(2000))
    assert [event["eventId"] for event in events] == [event.event_id for event in found]
    assert {event["deviceId"] for event in events} == {"desktop1"}
