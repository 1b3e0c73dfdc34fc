"""Streams: what a declaration may say, and each thing that is wrong with one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from declared import EVERYTHING_PROTO, declare, everything

from ingest.stream_settings import from_table
from ingest.streams import BUILT_IN, Stream, StreamError

TABLE: dict[str, Any] = {
    "proto": EVERYTHING_PROTO.name, "message": "test.v1.Everything", "key": "id", "time": "seen_at",
}  # fmt: skip
HEAD = 'syntax = "proto3"; import "google/protobuf/timestamp.proto"; '


def from_settings(name: str = "mine", **changes: Any) -> Stream:
    table = {k: v for k, v in {**TABLE, **changes}.items() if v is not None}
    return from_table(name, table, EVERYTHING_PROTO.parent)


def test_a_declaration_of_four_lines_has_the_documented_defaults() -> None:
    stream = from_settings()
    assert (stream.name, stream.topic, stream.table, stream.dlq) == (
        "mine", "mine", "mine", "mine.dlq",
    )  # fmt: skip
    assert (stream.dedupe, stream.indexes, stream.partitions) == ((), (), 4)
    assert (stream.chunk_interval, stream.segment_by, stream.retention) == ("1 day", None, None)
    assert stream.required == ("id", "seen_at")
    assert stream.message.DESCRIPTOR.full_name == "test.v1.Everything"


def test_every_setting_of_a_table_gets_into_its_stream() -> None:
    settings: dict[str, Any] = {
        "topic": "a.b-c_d", "table": "t1", "dedupe": ["id", "seen_at"],
        "indexes": [["id", "seen_at"], ["colour"]], "partitions": 12, "chunk_interval": "12 hours",
        "segment_by": "id", "retention": "7 days", "columns": {"seen_at": "at", "text": "words"},
    }  # fmt: skip
    stream = from_settings(**settings)
    assert stream.indexes == (("id", "seen_at"), ("colour",))
    assert stream.dedupe == ("id", "seen_at")
    assert [stream.column(name) for name in ("seen_at", "text", "id")] == ["at", "words", "id"]
    for name in set(settings) - {"indexes", "dedupe", "columns"}:
        assert getattr(stream, name) == settings[name]


@pytest.mark.parametrize("interval", ["1 second", "90 minutes", "1 hour", "7 days", "2 weeks",
                                      "3 months", "1 year"])  # fmt: skip
def test_an_interval_is_what_both_databases_read(interval: str) -> None:
    stream = from_settings(retention=interval, chunk_interval=interval)
    assert stream.retention == stream.chunk_interval == interval


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tpoic": "x"}, "unknown setting 'tpoic'; known: chunk_interval, columns, "),
        ({"message": None}, 'message = "…" is missing'),
        ({"key": None}, 'key = "…" is missing'),
        ({"time": 5}, 'time = "…" is missing'),
        ({"proto": None}, 'give either proto = "FILE.proto" or descriptor_set = "FILE"'),
        ({"descriptor_set": "x"}, 'give either proto = "FILE.proto" or descriptor_set = "FILE"'),
        ({"proto": 5}, 'give either proto = "FILE.proto" or descriptor_set = "FILE"'),
        ({"proto": "nowhere.proto"}, "nowhere.proto does not exist"),
        ({"proto": None, "descriptor_set": "nowhere"}, "nowhere can't be read: No such file"),
        ({"message": "Nope"}, "message 'Nope' is not there; there are: test.v1.Part"),
        ({"key": "nope"}, "key names 'nope', which test.v1.Everything does not have; it has: id"),
        ({"key": "part"}, "key = 'part' must be a singular scalar field"),
        ({"key": "texts"}, "key = 'texts' must be a singular scalar field"),
        ({"key": "text_w"}, "key = 'text_w' must be a singular scalar field"),
        ({"time": "id"}, "time = 'id' must be a google.protobuf.Timestamp field"),
        ({"time": "times"}, "time = 'times' must be a google.protobuf.Timestamp field"),
        ({"time": "took"}, "time = 'took' must be a google.protobuf.Timestamp field"),
        ({"topic": "a b"}, "topic 'a b' is not a topic name"),
        # As both are the stream's name unless they are given.
        ({"topic": "a b"}, 'name another with topic = "…"'),
        ({"table": "my.orders"}, 'name another with table = "…"'),
        ({"topic": ".."}, "topic '..' is not a topic name"),
        ({"topic": "x" * 246}, "is not a topic name (A-Z a-z 0-9 . _ -, at most 245 characters)"),
        ({"topic": "headrace_spool"}, "topic 'headrace_spool' is one that Headrace keeps its own"),
        ({"topic": "__consumer_offsets"}, "is one that Kafka keeps its own things in"),
        ({"topic": 5}, "topic = 5 must be text"),
        ({"table": "a-b"}, "table 'a-b' is not a plain table name"),
        ({"table": "x" * 64}, "is not a plain table name"),
        ({"table": "headrace_offsets"}, "headrace_offsets is where positions are kept"),
        ({"partitions": 0}, "partitions must be 1 or more"),
        ({"partitions": 10_001}, "partitions must be 1 or more, and 10,000 at most"),
        ({"partitions": 2**63}, "which Kafka makes in one request"),
        ({"partitions": "4"}, "partitions = '4' must be a whole number"),
        ({"partitions": True}, "partitions = True must be a whole number"),
        ({"dedupe": "id"}, 'dedupe must be a list of fields: ["device_id", "time"]'),
        ({"dedupe": [1]}, "dedupe must be a list of fields"),
        ({"dedupe": ["nope", "seen_at"]}, "dedupe names 'nope', which"),
        ({"dedupe": ["id"]}, "dedupe must include the time field 'seen_at'"),
        ({"dedupe": ["parts", "seen_at"]}, "dedupe can't have 'parts', which is repeated or a"),
        ({"indexes": ["id"]}, 'indexes must be lists of fields: [["account_id", "time"]]'),
        ({"indexes": "id"}, "indexes must be lists of fields"),
        ({"indexes": [[]]}, "indexes must be lists of fields"),
        ({"indexes": [["nope"]]}, "indexes names 'nope', which"),
        ({"indexes": [["properties"]]}, "indexes can't have 'properties', which is repeated or a"),
        ({"segment_by": "nope"}, "segment_by names 'nope', which"),
        ({"segment_by": "texts"}, "segment_by can't have 'texts', which is repeated"),
        ({"retention": "7 dayz"}, "retention = '7 dayz' is not an interval such as \"12 hours\""),
        ({"retention": "7 days; DROP TABLE x"}, "is not an interval"),
        ({"chunk_interval": "0 days"}, "chunk_interval = '0 days' is not an interval"),
        ({"chunk_interval": 5}, "chunk_interval = 5 must be text"),
        ({"columns": ["id"]}, 'columns must be like { time_hour = "hour" }'),
        ({"columns": {"id": 1}}, 'columns must be like { time_hour = "hour" }'),
        ({"columns": {"nope": "x"}}, "columns names 'nope', which"),
        ({"columns": {"id": "a b"}}, "columns: 'a b' is not a plain name"),
        ({"columns": {"id": "text"}}, "columns: 'id' and 'text' can't both be 'text'"),
        ({"columns": {"id": "x", "text": "x"}}, "columns: 'id' and 'text' can't both be 'x'"),
        ({"columns": {"id": "_offset"}}, "a column can't be called '_offset': "),
        ({"columns": {"id": "at"}, "indexes": [["at"]]}, "indexes names 'at', which"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_declaration_is_said_with_its_stream(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(StreamError) as raised:
        from_settings(**changes)
    assert str(raised.value).startswith("stream mine: ")
    assert said in str(raised.value)


@pytest.mark.parametrize("name", ["_offset", "_topic_id", "ctid", "x" * 64])
def test_a_field_that_a_database_has_no_column_for_is_refused(name: str) -> None:
    text = f"{HEAD} message M {{ string id = 1; google.protobuf.Timestamp seen_at = 2; "
    with pytest.raises(StreamError, match=f"a column can't be called '{name}': "):
        declare(text + f"int32 {name} = 3; }}", "M")


def test_a_field_with_a_name_that_no_column_may_have_can_have_another_column() -> None:
    text = f"{HEAD} message M {{ string ctid = 1; google.protobuf.Timestamp seen_at = 2; }}"
    stream = declare(text, "M", key="ctid", columns=(("ctid", "id"), ("seen_at", "ctime")))
    assert stream.column("ctid") == "id"


OTHERS = {
    "edition.proto": 'edition = "2023"; message O { int32 n = 1; }',
    "alike.proto": 'syntax = "proto3"; message O { message P { int32 Name = 1; int32 name = 2; } }',
    "far.proto": 'syntax = "proto3"; import "edition.proto"; message F { O o = 1; }',
    "proto2.proto": 'syntax = "proto2"; message O { optional int32 N = 1; optional int32 n = 2; }',
}
FIELDS = "string id = 1; google.protobuf.Timestamp seen_at = 2; "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'edition = "2023"; import "google/protobuf/timestamp.proto"; message M { %s }',
            "mine.proto is written in an edition of protobuf, which inserters can't read",
        ),
        (HEAD + 'import "edition.proto"; message M { %s O o = 3; }', "edition.proto is written in"),
        (
            HEAD + 'import "far.proto"; message M { %s F f = 3; }',
            "edition.proto is written in an e",
        ),
        (
            HEAD + "message M { %s int32 a_b = 3; int32 ab = 4; }",
            "can't read mine.proto, where the fields M.a_b and ab differ in capitals and undersco",
        ),
        (HEAD + 'import "alike.proto"; message M { %s }', "alike.proto, where the fields O.P.Name"),
        (HEAD + "message N { int32 _a = 1; int32 a = 2; } message M { %s }", "the fields N._a and"),
        (HEAD + 'import "proto2.proto"; message M { %s }', None),
    ],
    ids=["edition", "imported edition", "import of an import", "alike", "below", "far", "proto2"],
)
def test_a_message_that_no_inserter_could_read_is_refused_before_anything_is_published(
    tmp_path: Path, text: str, said: str | None
) -> None:
    for name, other in {**OTHERS, "mine.proto": text.replace("%s", FIELDS)}.items():
        (tmp_path / name).write_text(other)
    table = {"proto": "mine.proto", "message": "M", "key": "id", "time": "seen_at"}
    if said is None:
        assert from_table("mine", table, tmp_path).key == "id"
        return
    with pytest.raises(StreamError, match=r"^stream mine: ") as raised:
        from_table("mine", table, tmp_path)
    assert said in str(raised.value)


def test_columns_may_change_places() -> None:
    stream = from_settings(columns={"id": "text", "text": "id"})
    assert (stream.column("id"), stream.column("text")) == ("text", "id")


def test_the_table_of_raw_events_is_that_of_the_post() -> None:
    stream = BUILT_IN["raw_events"]
    assert (stream.topic, stream.table) == ("raw_events", "raw")
    names = [stream.column(field.name) for field in stream.descriptor.fields]
    assert [name for name in names if name in ("event_id", "timestamp", "data")] == [
        "event_id", "timestamp", "data",
    ]  # fmt: skip
    changed = from_table("raw_events", {"columns": {"data": "json"}}, Path())
    assert (changed.column("data"), changed.column("received_at")) == ("json", "timestamp")


def test_a_built_in_streams_settings_may_be_changed_but_not_its_message() -> None:
    changed = from_table("device_state", {"topic": "t", "retention": "7 days"}, Path())
    assert changed == dataclasses.replace(BUILT_IN["device_state"], topic="t", retention="7 days")
    for setting in ("message", "proto", "descriptor_set"):
        with pytest.raises(StreamError, match="is built in: its message can't be replaced"):
            from_table("device_state", {setting: "x"}, Path())


def test_the_built_in_streams_are_those_of_the_post_and_what_vendors_say() -> None:
    assert set(BUILT_IN) == {
        "device_state", "http_test", "traceroute_test", "raw_events", "receipts",
    }  # fmt: skip
    fields = [f.json_name for f in BUILT_IN["device_state"].descriptor.fields]
    assert fields == [
        "timestamp", "accountId", "deviceId", "colo", "status", "mode", "clientVersion",
        "clientPlatform",
    ]  # fmt: skip


def test_a_stream_can_be_used_as_a_key_and_does_not_change() -> None:
    stream = everything()
    assert {stream: 1}[dataclasses.replace(stream)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        stream.topic = "x"  # type: ignore[misc]
