"""Values that one part takes and another can't: each is one bad record, never the end of all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from google.protobuf import json_format

from consumers.columns import columns
from consumers.decode import MAX_RECORD_BYTES, Decoder
from consumers.destinations import destination, inserter_group
from consumers.errors import Systemic
from consumers.sinks.postgres_copy import _refused
from consumers.sinks.postgres_types import Encoder
from ingest.stream_settings import from_table
from ingest.streams import Stream

PROTO = """
syntax = "proto3";
package hostile;
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
message Inner {
  google.protobuf.Timestamp at = 1;
  string text = 2;
  double weight = 3;
  repeated float sizes = 4;
  google.protobuf.Duration took = 5;
}
message Hostile {
  string key = 1;
  google.protobuf.Timestamp time = 2;
  google.protobuf.Struct anything = 3;
  Inner inner = 4;
  map<string, int32> counts = 5;
  map<string, double> shares = 6;
}
"""


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    (tmp_path / "hostile.proto").write_text(PROTO)
    table = {"proto": "hostile.proto", "message": "Hostile", "key": "key", "time": "time"}
    return from_table("hostile", table, tmp_path)


def message(stream: Stream) -> Any:
    made: Any = stream.message(key="k")
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
    assert rows.column("anything").to_pylist() == ['{"n":1}'] * 2


def test_a_key_that_is_there_twice_is_refused_with_its_column(stream: Stream) -> None:
    first, last = message(stream), message(stream)
    first.counts["a"] = 1
    last.counts["a"] = 2
    twice = first.SerializeToString() + last.SerializeToString()
    decoder = Decoder(stream)
    rows = decoder.decode([twice]).rows
    with pytest.raises(ValueError, match="counts"):
        Encoder(stream, decoder.schema).flat(rows)


def test_a_nested_time_beyond_all_years_is_bad_with_its_field(stream: Stream) -> None:
    made = message(stream)
    # Milliseconds where seconds are meant.
    made.inner.at.seconds = 1_700_000_000_000
    rows, reasons = Decoder(stream).decode([made.SerializeToString()])
    assert (rows.num_rows, reasons) == (0, {0: "inner.at is outside protobuf's range"})


def in_jsonb(stream: Stream, *made: Any) -> list[tuple[Any, Any]]:
    """What PostgreSQL gets for `inner` and `shares` of these messages."""
    decoder = Decoder(stream)
    rows, bad = decoder.decode([m.SerializeToString() for m in made])
    assert bad == {}
    flat = Encoder(stream, decoder.schema).flat(rows)
    inner, shares = (flat.column(name).to_pylist() for name in ("inner", "shares"))
    return [(i and orjson.loads(i), orjson.loads(s)) for i, s in zip(inner, shares, strict=True)]


def test_numbers_that_json_has_not_are_words_in_jsonb_as_in_protobufs_json(stream: Stream) -> None:
    odd, usual = message(stream), message(stream)
    odd.inner.weight = math.nan
    odd.inner.sizes.extend([1.5, math.inf])
    odd.shares["low"] = -math.inf
    usual.inner.weight = 0.5
    (inner, shares), (plain, none) = in_jsonb(stream, odd, usual)
    assert (inner["weight"], inner["sizes"], shares) == (
        "NaN", [1.5, "Infinity"], {"low": "-Infinity"},
    )  # fmt: skip
    assert (plain["weight"], plain["sizes"], none) == (0.5, [], {})
    theirs = json_format.MessageToDict(odd)
    assert (inner["weight"], inner["sizes"]) == (
        theirs["inner"]["weight"], theirs["inner"]["sizes"],
    )  # fmt: skip
    assert shares == theirs["shares"]


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "0.000000s"), (1, 500_000_000, "1.500000s"), (-1, -500_000_000, "-1.500000s"),
        (0, -1_000, "-0.000001s"), (315_575_999_999, 123_457_000, "315575999999.123457s"),
        (-315_575_999_999, -999_999_000, "-315575999999.999999s"),
    ],
)  # fmt: skip
def test_durations_keep_their_microseconds_in_jsonb(
    stream: Stream, seconds: int, nanos: int, text: str
) -> None:
    made = message(stream)
    made.inner.took.seconds, made.inner.took.nanos = seconds, nanos
    ((inner, _shares),) = in_jsonb(stream, made)
    assert inner["took"] == text


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
        inserter_group(destination(url))
    assert "s3c" not in str(refused.value)
    assert "%2F" in str(refused.value)
