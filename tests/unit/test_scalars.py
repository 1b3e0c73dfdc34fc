"""Single values: times, durations and numbers against Python's own reading of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ingest.gen.headrace.v1.http_test_pb2 import HttpTest
from ingest.scalars import (
    RecordError,
    bool_cell,
    converter,
    fill_duration,
    fill_timestamp,
    json_cell,
    shown,
    time_cell,
)

ZONES = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)).map(
    lambda d: timezone(timedelta(minutes=d // timedelta(minutes=1)))
)
TIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(value: Any) -> Timestamp:
    made = Timestamp()
    fill_timestamp(made, value)
    return made


def duration(value: Any) -> Duration:
    made = Duration()
    fill_duration(made, value)
    return made


@given(TIMES)
def test_a_time_is_the_same_moment_however_its_zone_and_fraction_are_written(
    moment: datetime,
) -> None:
    us = (moment - EPOCH) // timedelta(microseconds=1)
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    for text in (
        moment.isoformat(),
        moment.isoformat(timespec="microseconds"),
        utc.isoformat() + "Z",
        utc.isoformat(timespec="microseconds") + "000Z",
        moment,
    ):
        made = timestamp(text)
        assert made.seconds * 1_000_000 + made.nanos // 1000 == us
        assert made.nanos % 1000 == 0


@given(TIMES, st.integers(0, 999_999_999))
def test_a_time_keeps_its_nanoseconds(moment: datetime, nanos: int) -> None:
    text = moment.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat()
    assert timestamp(f"{text}.{nanos:09}Z").nanos == nanos


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2025-06-16", "2025-06-16T22:50Z", "2025-06-16 22:50:12Z",
        "2025-06-16T22:50:12", "2025-06-16T22:50:12,226Z", "2025-W25-1T22:50:12Z",
        "2025-06-16T22:50:12.Z", "2025-06-16T22:50:12.1234567890Z", "2025-06-16T22:50:60Z",
        "2025-06-16T24:00:00Z", "2025-06-16T22:50:12z", "2025-06-16T22:50:12+02",
        "2025-06-16T22:50:12+02:60", "٢٠٢٥-06-16T22:50:12Z", "2025-06-16T22:50:12.2 6Z",
        "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01",
    ],
)  # fmt: skip
def test_what_is_not_rfc_3339_or_not_protobufs_years_is_no_time(text: str) -> None:
    with pytest.raises(RecordError, match=r"is not a time|is outside the years"):
        timestamp(text)


@given(st.integers(-315_575_999_999, 315_575_999_999), st.integers(0, 999_999_999))
def test_a_duration_has_one_sign_and_keeps_its_nanoseconds(seconds: int, nanos: int) -> None:
    sign = "-" if seconds < 0 else ""
    made = duration(f"{sign}{abs(seconds)}.{nanos:09}s")
    assert made.seconds == seconds
    assert made.nanos == (-nanos if sign else nanos)
    reference = Duration()
    reference.FromJsonString(f"{sign}{abs(seconds)}.{nanos:09}s")
    assert made == reference


def test_the_longest_duration_is_ten_thousand_years_and_not_a_nanosecond_more() -> None:
    assert duration("-315576000000s").seconds == -315_576_000_000
    with pytest.raises(RecordError, match="longer than 10,000 years"):
        duration("315576000000.000000001s")
    for text in ("1", "1 s", "+1s", "1.s", "s", ".5s", "1.0000000001s", "1m", 5, None):
        with pytest.raises(RecordError, match=r"is not a duration such as 1\.5s"):
            duration(text)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("2025-06-16 22:50:12", "2025-06-16T22:50:12Z"),
        (" 2025-06-16T22:50:12.5 ", "2025-06-16T22:50:12.5Z"),
        ("2025-06-16 22:50:12Z", "2025-06-16T22:50:12Z"),
        ("2025-06-16 22:50:12-05:00", "2025-06-16T22:50:12-05:00"),
        ("2025-06-16 22:50:12.25+05:00", "2025-06-16T22:50:12.25+05:00"),
        ("2025-06-16", "2025-06-16"),
    ],
)
def test_a_cell_without_a_zone_is_utc(cell: str, text: str) -> None:
    assert time_cell(cell) == text


@pytest.mark.parametrize("head", ["1", "1.", ".1", "1e", "-1.1e+"])
def test_text_that_is_nearly_a_number_is_read_once(head: str) -> None:
    """Where each digit may be given back, this takes hours, and a collector answers nobody."""
    convert = converter(HttpTest.DESCRIPTOR.fields_by_name["dns_ms"])
    with pytest.raises(RecordError, match="is not a number"):
        convert(head + "1" * 800_000 + "x")


def test_a_cell_says_true_and_false_in_four_ways() -> None:
    assert [bool_cell(c) for c in ("true", " TRUE ", "1", "false", "False", "0")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    for text in ("yes", "", "2", "t"):
        with pytest.raises(RecordError, match="is not true, false, 1 or 0"):
            bool_cell(text)


def test_a_cell_of_json_that_is_none_says_what_is_wrong_with_it() -> None:
    assert json_cell('{"a": [1]}') == {"a": [1]}
    with pytest.raises(RecordError, match=r"is not JSON \(.*\): \"\{\""):
        json_cell("{")


@given(st.text() | st.integers() | st.lists(st.text(max_size=30)) | st.binary() | st.none())
def test_a_value_is_shown_in_sixty_characters_at_most(value: Any) -> None:
    assert len(shown(value)) <= 60


def test_an_error_knows_its_path_from_the_record_down() -> None:
    error = RecordError("", "is wrong").below("[2]").below("hops").below("trace")
    assert (error.field, error.reason) == ("trace.hops[2]", "is wrong")
    assert str(error) == "trace.hops[2]: is wrong"
    assert str(RecordError("", "is wrong")) == "is wrong"
    assert isinstance(error, ValueError)
