"""What a Publisher costs over bare librdkafka, and the JSON mapper over protobuf's own.

Each figure is a ratio of two loops that take turns in one run (the machine drifts by ±20 %), five
times, with the same librdkafka settings, to a topic of 4 partitions of a real Kafka:

    ready bytes      publish_many     against  produce_batch of the same dicts, no reports
    typed messages   publish          against  SerializeToString, produce with key and callback
    records          mapper           against  json_format.ParseDict, both after orjson; no Kafka

Run it with `python -m bench.publisher [BOOTSTRAP]` (default: the running local stack).
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import orjson
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
ROUNDS = 5
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


def _compare(
    name: str,
    ours: Callable[[], None],
    bare: Callable[[], None],
    *,
    counts: tuple[int, int],
    target: float,
) -> dict[str, Any]:
    mine, theirs = [], []
    for _ in range(ROUNDS):
        for run, count, rates in ((bare, counts[1], theirs), (ours, counts[0], mine)):
            gc.collect()
            start = time.perf_counter()
            run()
            rates.append(count / (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "name": name,
        "value": statistics.median(mine),
        "limit": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "target": target,
        "unit": "records/s",
        "samples": mine,
        "limit_samples": theirs,
        "ratio_samples": ratios,
    }


def run(bootstrap: str) -> list[dict[str, Any]]:
    """All rows; `value` is ours and `limit` the bare loop's, `ratio` is to be ≥ `target`."""
    settings = for_publisher(bootstrap, {})
    ensure({"bootstrap.servers": bootstrap}, {STREAM.topic: 4})
    messages = _messages()
    values = [m.SerializeToString() for m in messages]
    keys = [m.device_id.encode() for m in messages]
    lines = [json_format.MessageToJson(m, indent=None).encode() for m in messages]
    return [
        _compare(
            "publish_many, ready bytes / bare produce_batch",
            lambda: _our_bytes(settings, values, keys),
            lambda: _bare_bytes(settings, values, keys),
            counts=(MESSAGES, MESSAGES),
            target=0.9,
        ),
        _compare(
            "publish, typed messages with results / bare produce with callback",
            lambda: _our_typed(settings, messages),
            lambda: _bare_typed(settings, messages),
            counts=(MESSAGES, MESSAGES),
            target=0.8,
        ),
        _compare(
            "JSON line to message / json_format.ParseDict",
            lambda: _mapped(lines * 5),
            lambda: _json_format(lines),
            counts=(5 * len(lines), len(lines)),
            target=3.0,
        ),
    ]


def main() -> None:
    """Print one line for each row, then the rows as JSON."""
    if len(sys.argv) > 1:
        bootstrap = sys.argv[1]
    else:
        from headrace.config import load

        bootstrap = str(load().kafka["bootstrap.servers"])
    rows = run(bootstrap)
    for row in rows:
        low, high = min(row["ratio_samples"]), max(row["ratio_samples"])
        print(
            f"{row['name']}: {row['value']:,.0f} {row['unit']} against {row['limit']:,.0f}, "
            f"ratio {row['ratio']:.2f} ({low:.2f}..{high:.2f}), target {row['target']}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
