"""A stream: one declaration from protobuf message to topic to table.

    message -> topic -> key field, time field -> table

Everything else (publishing, tables, inserting, replay, dead letters) follows from it. Built in are
the three streams of the device-monitoring post, the collector's product events and the forwarder's
receipts; users add their own in `headrace.toml` with a `.proto` file or a descriptor set, see
stream_settings.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ingest.descriptors import unreadable
from ingest.gen.headrace.v1 import (
    device_state_pb2,
    http_test_pb2,
    raw_event_pb2,
    receipt_pb2,
    traceroute_test_pb2,
)

__all__ = ["BUILT_IN", "MAX_TIME_US", "MIN_TIME_US", "TIMESTAMP", "Stream", "StreamError"]

TIMESTAMP = "google.protobuf.Timestamp"

# Messages that become one plain column, see consumers/columns.py.
_PLAIN = {
    f"google.protobuf.{name}"
    for name in (
        "Timestamp", "Duration", "DoubleValue", "FloatValue", "Int32Value", "Int64Value",
        "UInt32Value", "UInt64Value", "BoolValue", "StringValue", "BytesValue",
    )
}  # fmt: skip

# Event time that every destination can hold, in microseconds since 1970, both ends included:
# 1900-01-01 to 2299-12-31, the range of ClickHouse's DateTime64(6), the narrowest of them. Outside
# of it ClickHouse would store another time without saying so.
MIN_TIME_US = -2_208_988_800_000_000
MAX_TIME_US = 10_413_791_999_999_999

# Kafka's own rule for topic names; 249 is its limit, less the room for ".dlq".
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,245}")
# MAX_PARTITIONS_PER_BATCH of Kafka's ReplicationControlManager.
_MOST_PARTITIONS = 10_000
# What is an identifier in both databases without surprises; 63 is PostgreSQL's limit.
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")

_OUR_TOPICS = ("headrace_spool", "headrace_edge", "headrace_ledger", "headrace_replays")
_OUR_TABLES = ("headrace_offsets", "headrace_ledger")

# A span of time as PostgreSQL, TimescaleDB and ClickHouse all read it; it ends up in their SQL.
_INTERVAL = re.compile(r"[1-9][0-9]{0,5} (?:second|minute|hour|day|week|month|year)s?")

# ClickHouse's tables keep where a row came from; PostgreSQL's have columns of the system.
_RESERVED_COLUMNS = {
    **dict.fromkeys(("_topic", "_topic_id", "_partition", "_offset"), "ClickHouse's tables keep "
                    "there where a row came from"),
    **dict.fromkeys(("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"), "it is a column of "
                    "PostgreSQL's own in every table"),
}  # fmt: skip


class StreamError(Exception):
    """A stream's declaration is wrong; the text names the stream, the setting and the remedy."""


@dataclass(frozen=True)
class Stream:
    """One stream. Construction checks it and raises StreamError.

    `key` is a singular scalar field: records with the same key stay in order. `time` is a singular
    Timestamp field: event time. Both must be set in every record. `dedupe` names the columns that
    make a record unique when clients retry without ids (empty: no unique index). `indexes` are
    further indexes of the PostgreSQL table. Everywhere fields go by the message's own names;
    `columns` are (field, column) for those whose column is called something else.
    """

    name: str
    descriptor: Descriptor
    key: str
    time: str
    topic: str
    table: str
    dedupe: tuple[str, ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    # Partitions that `headrace migrate` gives a new topic: the most inserters that can share it.
    partitions: int = 4
    # TimescaleDB: the span of one chunk, the column a columnstore batch shares, how long rows stay.
    chunk_interval: str = "1 day"
    segment_by: str | None = None
    retention: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    required: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._check_files()
        self._check_fields()
        self._check_names()
        object.__setattr__(self, "required", tuple(dict.fromkeys((self.key, self.time))))

    def _check_files(self) -> None:
        """What inserters can't read must not be published."""
        why = unreadable(self.descriptor.file)
        if why is not None:
            raise self._wrong(why)

    def _check_fields(self) -> None:
        key = self._field("key", self.key)
        if key.is_repeated or key.message_type is not None:
            raise self._wrong(f"key = {self.key!r} must be a singular scalar field")
        time = self._field("time", self.time)
        kind = time.message_type
        if time.is_repeated or kind is None or kind.full_name != TIMESTAMP:
            raise self._wrong(f"time = {self.time!r} must be a {TIMESTAMP} field")
        for setting, names in (
            ("dedupe", self.dedupe),
            ("segment_by", (self.segment_by,) if self.segment_by else ()),
            *(("indexes", columns) for columns in self.indexes),
        ):
            for name in names:
                column = self._field(setting, name)
                kind = column.message_type
                if column.is_repeated or (kind is not None and kind.full_name not in _PLAIN):
                    raise self._wrong(
                        f"{setting} can't have {name!r}, which is repeated or a message; it takes "
                        "scalars, times and durations"
                    )
        if self.dedupe and self.time not in self.dedupe:
            # TimescaleDB: a unique index must hold the partitioning column.
            raise self._wrong(
                f"dedupe must include the time field {self.time!r} (a unique index of a hypertable "
                "holds its time column)"
            )

    def _check_names(self) -> None:
        if not _TOPIC.fullmatch(self.topic) or self.topic in (".", ".."):
            raise self._wrong(
                f"topic {self.topic!r} is not a topic name (A-Z a-z 0-9 . _ -, at most 245 "
                'characters); name another with topic = "…"'
            )
        if self.topic in _OUR_TOPICS or self.topic.startswith("__"):
            owner = "Headrace" if self.topic in _OUR_TOPICS else "Kafka"
            raise self._wrong(
                f"topic {self.topic!r} is one that {owner} keeps its own things in; name another "
                'with topic = "…"'
            )
        if not _TABLE.fullmatch(self.table) or self.table in _OUR_TABLES:
            raise self._wrong(
                f"table {self.table!r} is not a plain table name (letters, digits, _, at most 63; "
                "headrace_offsets is where positions are kept, headrace_ledger what has landed); "
                'name another with table = "…"'
            )
        if not 1 <= self.partitions <= _MOST_PARTITIONS:
            raise self._wrong(
                f"partitions must be 1 or more, and {_MOST_PARTITIONS:,} at most, which Kafka "
                "makes in one request"
            )
        for setting in ("chunk_interval", "retention"):
            interval = getattr(self, setting)
            if interval is not None and not _INTERVAL.fullmatch(interval):
                raise self._wrong(
                    f'{setting} = {interval!r} is not an interval such as "12 hours" or "7 days"'
                )
        self._check_columns()

    def _check_columns(self) -> None:
        for name, column in self.columns:
            self._field("columns", name)
            if not _TABLE.fullmatch(column):
                raise self._wrong(
                    f"columns: {column!r} is not a plain name (letters, digits, _, at most 63)"
                )
        taken: dict[str, str] = {}
        for name in self.descriptor.fields_by_name:
            column = self.column(name)
            why = _RESERVED_COLUMNS.get(column) or (
                "PostgreSQL's names have at most 63 letters" if len(column) > 63 else ""
            )
            if why:
                raise self._wrong(
                    f"a column can't be called {column!r}: {why}; "
                    f'call it something else with columns = {{ {name} = "…" }}'
                )
            if column in taken:
                raise self._wrong(
                    f"columns: {taken[column]!r} and {name!r} can't both be {column!r}"
                )
            taken[column] = name

    def _wrong(self, text: str) -> StreamError:
        return StreamError(f"stream {self.name}: {text}")

    def _field(self, setting: str, name: str) -> FieldDescriptor:
        found = self.descriptor.fields_by_name.get(name)
        if found is None:
            raise self._wrong(
                f"{setting} names {name!r}, which {self.descriptor.full_name} does not have; it "
                f"has: {', '.join(self.descriptor.fields_by_name)}"
            )
        return found

    def column(self, name: str) -> str:
        """What the column of a field is called."""
        return dict(self.columns).get(name, name)

    @property
    def dlq(self) -> str:
        """The topic of its dead letters."""
        return f"{self.topic}.dlq"

    @cached_property
    def message(self) -> type[Message]:
        """The message class."""
        return message_factory.GetMessageClass(self.descriptor)


BUILT_IN: Mapping[str, Stream] = {
    stream.name: stream
    for stream in (
        Stream(
            name="device_state",
            descriptor=device_state_pb2.DESCRIPTOR.message_types_by_name["DeviceState"],
            key="device_id",
            time="timestamp",
            topic="device_state",
            table="device_state",
            indexes=(("account_id", "timestamp"),),
            chunk_interval="1 hour",
            segment_by="account_id",
        ),
        Stream(
            name="http_test",
            descriptor=http_test_pb2.DESCRIPTOR.message_types_by_name["HttpTest"],
            key="device_id",
            time="timestamp",
            topic="http_test",
            table="http_test",
            indexes=(("account_id", "timestamp"),),
            segment_by="account_id",
        ),
        Stream(
            name="traceroute_test",
            descriptor=traceroute_test_pb2.DESCRIPTOR.message_types_by_name["TracerouteTest"],
            key="device_id",
            time="timestamp",
            topic="traceroute_test",
            table="traceroute_test",
            indexes=(("account_id", "timestamp"),),
            segment_by="account_id",
        ),
        # Product events as the collector took them: the `raw` table of the post.
        Stream(
            name="raw_events",
            descriptor=raw_event_pb2.DESCRIPTOR.message_types_by_name["RawEvent"],
            key="event_id",
            time="received_at",
            topic="raw_events",
            table="raw",
            indexes=(("received_at",), ("event_id",)),
            segment_by="source",
            columns=(("received_at", "timestamp"),),
        ),
        # What became of each event at each vendor, by `headrace forward`.
        Stream(
            name="receipts",
            descriptor=receipt_pb2.DESCRIPTOR.message_types_by_name["Receipt"],
            key="event_id",
            time="answered_at",
            topic="receipts",
            table="receipts",
            indexes=(("event_id",), ("vendor", "answered_at")),
            segment_by="vendor",
        ),
    )
}
