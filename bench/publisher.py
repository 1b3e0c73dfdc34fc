"""What a Publisher costs over bare librdkafka, and the JSON mapper over protobuf's own.

Each figure is a ratio of two loops that take turns in one run (the machine drifts by ±20 %), five
times, with the same librdkafka settings, to a topic of 4 partitions of a real Kafka:

    ready bytes      publish_many     against  produce_batch of the same dicts, no reports
    typed messages   publish          against  SerializeToString, produce with key and callback
    records          mapper           against  json_format.ParseDict, both after orjson; no Kafka
"""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable
from typing import Any

import orjson
from _measure import compare, in_turn, report, stack
from confluent_kafka import Producer
from google.protobuf import json_format

from ingest.mapping import mapper
from ingest.publisher import Publisher
from ingest.settings import for_publisher
from ingest.streams import BUILT_IN
from ingest.topics import ensure

STREAM = BUILT_IN["device_state"]
MESSAGES = 500_000
DISTINCT = 10_000
SLICE = 1_000


def _messages() -> list[Any]:
    """DISTINCT device states of 131 bytes or so."""
    convert = mapper(STREAM.descriptor)
    return [
        convert(
            {
                "timestamp": f"2025-06-16T22:{i // 60 % 60:02}:{i % 60:02}.226Z",
                "accountId": f"{i % 100:032x}",
                "deviceId": str(uuid.UUID(int=i * 0x9E3779B97F4A7C15 % 2**128)),
                "colo": "SJC",
                "status": "connected",
                "mode": "warp+doh",
                "clientVersion": "2024.3.409.0",
                "clientPlatform": "windows",
            }
        )
        for i in range(DISTINCT)
    ]


def _bare_bytes(settings: dict[str, Any], values: list[bytes], keys: list[bytes]) -> None:
    producer = Producer(settings)
    for start in range(0, MESSAGES, SLICE):
        at = start % DISTINCT
        records = [
            {"value": v, "key": k}
            for v, k in zip(values[at : at + SLICE], keys[at : at + SLICE], strict=True)
        ]
        while (queued := producer.produce_batch(STREAM.topic, records)) < len(records):
            records = records[queued:]
            producer.poll(0.1)
        producer.poll(0)
    assert producer.flush() == 0


def _our_bytes(settings: dict[str, Any], values: list[bytes], keys: list[bytes]) -> None:
    with Publisher(settings["bootstrap.servers"]) as publisher:
        for start in range(0, MESSAGES, DISTINCT):
            count = min(DISTINCT, MESSAGES - start)
            publisher.publish_many(STREAM, values[:count], keys[:count])
    assert publisher.acknowledged == MESSAGES


def _bare_typed(settings: dict[str, Any], messages: list[Any]) -> None:
    producer = Producer(settings)
    acknowledged = 0

    def report(error: Any, _message: Any) -> None:
        nonlocal acknowledged
        assert error is None
        acknowledged += 1

    for i in range(MESSAGES):
        message = messages[i % DISTINCT]
        value, key = message.SerializeToString(), message.device_id.encode()
        while True:
            try:
                producer.produce(STREAM.topic, value, key, on_delivery=report)
                break
            except BufferError:
                producer.poll(0.1)
        if i % 256 == 0:
            producer.poll(0)
    assert producer.flush() == 0
    assert acknowledged == MESSAGES


def _our_typed(settings: dict[str, Any], messages: list[Any]) -> None:
    with Publisher(settings["bootstrap.servers"]) as publisher:
        publish = publisher.publish
        for i in range(MESSAGES):
            last = publish("device_state", messages[i % DISTINCT])
    assert last.result(0).offset >= 0
    assert publisher.acknowledged == MESSAGES


def _mapped(lines: list[bytes]) -> None:
    convert = mapper(STREAM.descriptor)
    for line in lines:
        convert(orjson.loads(line))


def _json_format(lines: list[bytes]) -> None:
    for line in lines:
        json_format.ParseDict(orjson.loads(line), STREAM.message())


def _timed(loop: Callable[[], None], count: int) -> Callable[[], float]:
    def measure() -> float:
        gc.collect()
        start = time.perf_counter()
        loop()
        return count / (time.perf_counter() - start)

    return measure


def main() -> None:
    """Measure, print, write."""
    with stack() as ends:
        settings = for_publisher(ends.kafka, {})
        ensure({"bootstrap.servers": ends.kafka}, {STREAM.topic: 4})
        messages = _messages()
        values = [m.SerializeToString() for m in messages]
        keys = [m.device_id.encode() for m in messages]
        lines = [json_format.MessageToJson(m, indent=None).encode() for m in messages]
        loops: dict[str, tuple[Callable[[], None], int]] = {
            "bare produce_batch": (lambda: _bare_bytes(settings, values, keys), MESSAGES),
            "publish_many": (lambda: _our_bytes(settings, values, keys), MESSAGES),
            "bare produce with callback": (lambda: _bare_typed(settings, messages), MESSAGES),
            "publish": (lambda: _our_typed(settings, messages), MESSAGES),
            "json_format.ParseDict": (lambda: _json_format(lines), len(lines)),
            "mapper": (lambda: _mapped(lines * 5), 5 * len(lines)),
        }
        samples = in_turn({name: _timed(*loop) for name, loop in loops.items()})
    report(
        "publisher",
        [
            compare("ready bytes: publish_many", samples, "publish_many", "bare produce_batch",
                    target=0.9, unit="records/s"),
            compare("typed messages with results: publish", samples, "publish",
                    "bare produce with callback", target=0.8, unit="records/s"),
            compare("JSON line to message: mapper", samples, "mapper", "json_format.ParseDict",
                    target=3.0, unit="records/s"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
