"""Values that one part takes and another can't: each is one bad record, never the end of all."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from consumers.columns import columns
from consumers.decode import MAX_RECORD_BYTES, Decoder
from consumers.destinations import destination, group_of
from consumers.errors import Systemic
from consumers.sinks.postgres_copy import _refused
from consumers.sinks.postgres_types import Encoder
from ingest.streams import Stream, from_table

PROTO = """
syntax = "proto3";
package hostile;
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
message Inner { google.protobuf.Timestamp at = 1; string text = 2; }
message Hostile {
  string key = 1;
  google.protobuf.Timestamp time = 2;
  google.protobuf.Struct anything = 3;
  Inner inner = 4;
  map<string, int32> counts = 5;
}
"""


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    (tmp_path / "hostile.proto").write_text(PROTO)
    table = {"proto": "hostile.proto", "message": "Hostile", "key": "key", "time": "time"}
    return from_table("hostile", table, tmp_path)


def message(stream: Stream) -> object:
    made = stream.message(key="k")
    made.time.seconds = 1_700_000_000
    return made


def test_a_number_that_json_has_not_makes_one_bad_record(stream: Stream) -> None:
    good, bad = message(stream), message(stream)
    good.anything["n"] = 1.0
    bad.anything["n"] = math.nan
    payloads = [m.SerializeToString() for m in (good, bad, good)]
    rows, reasons = Decoder(stream).decode(payloads)
    assert list(reasons) == [1]
    assert "JSON" in reasons[1]
    assert rows.column("anything").to_pylist() == ['{"n":1.0}'] * 2


def test_a_key_that_is_there_twice_is_refused_with_its_column(stream: Stream) -> None:
    first, last = message(stream), message(stream)
    first.counts["a"] = 1
    last.counts["a"] = 2
    twice = first.SerializeToString() + last.SerializeToString()
    decoder = Decoder(stream)
    rows = decoder.decode([twice]).rows
    with pytest.raises(ValueError, match="counts"):
        Encoder(stream, decoder.schema).flat(rows)


def test_a_nested_time_beyond_all_years_is_refused_with_its_column(stream: Stream) -> None:
    made = message(stream)
    # Milliseconds where seconds are meant.
    made.inner.at.seconds = 1_700_000_000_000
    decoder = Decoder(stream)
    rows = decoder.decode([made.SerializeToString()]).rows
    with pytest.raises(ValueError, match="inner"):
        Encoder(stream, decoder.schema).flat(rows)


def test_six_letters_that_look_like_an_escaped_nul_are_text(stream: Stream) -> None:
    (inner,) = [c for c in columns(stream) if c.name == "inner"]
    values = pa.array([r'{"text":"a\\u0000"}', r'{"text":"a\u0000"}', r'{"text":"a\\\u0000"}'])
    assert _refused(inner, values) == [1, 2]


def test_a_record_over_the_limit_is_bad_whoever_decodes_it(stream: Stream) -> None:
    made = message(stream)
    made.inner.text = "x" * MAX_RECORD_BYTES
    payloads = [message(stream).SerializeToString(), made.SerializeToString()]
    rows, reasons = Decoder(stream).decode(payloads)
    assert rows.num_rows == 1
    assert "limit" in reasons[1]


@pytest.mark.parametrize(
    "url",
    ["postgres://bob:s3c/ret@db:5432/logs", "clickhouse://bob:s3c/ret@db:8123/logs"],
)
def test_a_password_that_breaks_the_url_is_in_no_message_and_no_group(url: str) -> None:
    with pytest.raises(Systemic) as refused:
        group_of(destination(url))
    assert "s3c" not in str(refused.value)
    assert "%2F" in str(refused.value)
