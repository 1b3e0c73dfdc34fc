"""What Kafka holds, read back from the first offset to the last: the truth that tables are held to.

Records are decoded here by protobuf's own parser and not by the inserters' decoder, and counted one
by one: offsets are never subtracted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, TopicPartition
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from consumers.dlq.letters import SETTLED
from headrace.demo.model import DemoError
from headrace.demo.traffic import Tally
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import Stream

__all__ = ["DeadLetters", "Published", "dead_letters", "fields", "published", "receipts"]

TEXT = pa.dictionary(pa.int32(), pa.string())
_TYPES = {
    FieldDescriptor.CPPTYPE_STRING: TEXT,
    FieldDescriptor.CPPTYPE_DOUBLE: pa.float64(),
    FieldDescriptor.CPPTYPE_INT32: pa.int64(),
    FieldDescriptor.CPPTYPE_MESSAGE: pa.int64(),  # a Timestamp, as microseconds since 1970
}
_PATIENCE_S = 30.0
Coordinates = tuple[int, int]  # partition, offset


@dataclass(slots=True)
class Published:
    """One topic: its good records as rows with `_partition` and `_offset`, its rubbish."""

    rows: pa.Table
    tally: Tally = field(default_factory=Tally)
    rubbish: dict[Coordinates, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class DeadLetters:
    """One dead-letter topic: original bytes by the coordinates they came from; each counts once."""

    letters: dict[Coordinates, bytes] = field(default_factory=dict)
    # Two destinations each send theirs, and a killed inserter may have sent some twice.
    records: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def fields(stream: Stream) -> dict[str, pa.DataType]:
    """The stream's columns that are plain values; a traceroute's list of hops is not among them."""
    return {
        f.name: _TYPES[f.cpp_type]
        for f in stream.descriptor.fields
        if not f.is_repeated and f.cpp_type in _TYPES
    }


def published(bootstrap: str, stream: Stream, rubbish: Collection[bytes] = ()) -> Published:
    """Read the stream's topic. `rubbish` are the values that no table can take."""
    types = fields(stream)
    schema = pa.schema([*types.items(), ("_partition", pa.int64()), ("_offset", pa.int64())])
    getters = {name: _getter(stream, name) for name in types}
    found = Published(schema.empty_table())
    batches = []
    for records in _records(bootstrap, stream.topic, stream.partitions):
        found.tally.add([record.value() for record in records])
        good = []
        for record in records:
            if rubbish and record.value() in rubbish:
                found.rubbish[record.partition(), record.offset()] = record.value()
            else:
                good.append(record)
        messages = [stream.message.FromString(record.value()) for record in good]
        columns: dict[str, list[Any]] = {
            name: [get(message) for message in messages] for name, get in getters.items()
        }
        columns["_partition"] = [record.partition() for record in good]
        columns["_offset"] = [record.offset() for record in good]
        batches.append(pa.record_batch(
            [pa.array(columns[f.name], pa.string()).dictionary_encode() if f.type == TEXT
             else pa.array(columns[f.name], f.type) for f in schema], schema=schema))  # fmt: skip
    found.rows = pa.Table.from_batches(batches, schema)
    return found


def dead_letters(bootstrap: str, stream: Stream) -> DeadLetters:
    """Read the stream's dead-letter topic. Raises DemoError for one without coordinates."""
    found = DeadLetters()
    for records in _records(bootstrap, stream.dlq, 1):
        for record in records:
            headers: Mapping[str, bytes] = dict(record.headers() or ())
            if SETTLED in headers:  # says what was redriven, and is no letter
                continue
            try:
                place = int(headers["headrace.partition"]), int(headers["headrace.offset"])
                kind, topic = headers["headrace.kind"].decode(), headers["headrace.topic"].decode()
            except KeyError as missing:
                raise DemoError(f"a dead letter in {stream.dlq} has no header {missing}") from None
            if topic != stream.topic:
                raise DemoError(f"a dead letter in {stream.dlq} says that it is from {topic}")
            found.records += 1
            if place not in found.letters:
                found.letters[place] = record.value()
                found.reasons[kind] = found.reasons.get(kind, 0) + 1
            elif found.letters[place] != record.value():
                raise DemoError(f"two dead letters in {stream.dlq} for {place} differ")
    return found


def receipts(bootstrap: str, stream: Stream) -> dict[str, dict[str, str]]:
    """What became of each event: the status of its last receipt, by vendor and event id."""
    found: dict[str, dict[str, str]] = {}
    for records in _records(bootstrap, stream.topic, stream.partitions):
        for record in records:
            receipt = Receipt.FromString(record.value())
            found.setdefault(receipt.vendor, {})[receipt.event_id] = receipt.status
    return found


def _records(bootstrap: str, topic: str, partitions: int) -> Iterator[list[Any]]:
    """All records of a topic, some thousands at a time."""
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": "demo-read", "enable.auto.commit": False,
        "auto.offset.reset": "error", "enable.partition.eof": True,
        "isolation.level": "read_committed", "fetch.queue.backoff.ms": 5, "fetch.wait.max.ms": 10,
    })  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        ended: set[int] = set()
        heard = time.monotonic()
        while len(ended) < partitions:
            records = []
            for record in consumer.consume(5_000, 0.05):
                error = record.error()
                if error is None:
                    records.append(record)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(record.partition())
                else:
                    raise DemoError(f"{topic} can't be read back: {error.str()}")
                heard = time.monotonic()
            if records:
                yield records
            if time.monotonic() - heard > _PATIENCE_S:
                raise DemoError(f"{topic} can't be read back: Kafka says nothing")
    finally:
        consumer.close()


def _getter(stream: Stream, name: str) -> Callable[[Message], Any]:
    """One field of a message as a table has it: None for an optional one that is not set."""
    if name == stream.time:

        def time_us(message: Any) -> int:
            time = getattr(message, name)
            seconds, nanos = time.seconds, time.nanos
            return int(seconds * 1_000_000 + nanos // 1000)

        return time_us
    if stream.descriptor.fields_by_name[name].has_presence:
        return lambda message: getattr(message, name) if message.HasField(name) else None
    return lambda message: getattr(message, name)
