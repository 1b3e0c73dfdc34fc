"""JSON objects and CSV cells to messages; protobuf's json_format is the oracle."""

from __future__ import annotations

import base64
import difflib
import math
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from declared import everything, message
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.mapping import RecordError, column_setters, mapper
from ingest.streams import BUILT_IN

STREAM = everything()
DESCRIPTOR = STREAM.descriptor
convert = mapper(DESCRIPTOR)
cells = column_setters(DESCRIPTOR)

_F = FieldDescriptor
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
RANGES = {
    _F.TYPE_INT32: (-(2**31), 2**31 - 1), _F.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _F.TYPE_SFIXED32: (-(2**31), 2**31 - 1), _F.TYPE_INT64: (-(2**63), 2**63 - 1),
    _F.TYPE_SINT64: (-(2**63), 2**63 - 1), _F.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    _F.TYPE_UINT32: (0, 2**32 - 1), _F.TYPE_FIXED32: (0, 2**32 - 1),
    _F.TYPE_UINT64: (0, 2**64 - 1), _F.TYPE_FIXED64: (0, 2**64 - 1),
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=5,
)  # fmt: skip


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """A value that a field of that type holds."""
    if field.type in RANGES:
        return st.integers(*RANGES[field.type])
    match field.type:
        case _F.TYPE_DOUBLE | _F.TYPE_FLOAT:
            return st.floats(width=64 if field.type == _F.TYPE_DOUBLE else 32)
        case _F.TYPE_BOOL:
            return st.booleans()
        case _F.TYPE_STRING:
            return TEXT
        case _F.TYPE_BYTES:
            return st.binary(max_size=8)
        case _F.TYPE_ENUM:
            return st.sampled_from([0, 1, -5, 99])
    raise AssertionError(field.type)


def json_of(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Any]:
    """What a message field of that type may be given as."""
    match descriptor.full_name:
        case "google.protobuf.Timestamp":
            return st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)).map(
                lambda t: t.isoformat() + "Z"
            )
        case "google.protobuf.Duration":
            return st.tuples(st.integers(-1000, 1000), st.integers(0, 999_999_999)).map(
                lambda d: f"{d[0]}.{d[1]:09}s"
            )
        case "google.protobuf.Struct":
            return st.dictionaries(TEXT, JSON, max_size=3)
        case "google.protobuf.Value":
            return JSON
        case "google.protobuf.ListValue":
            return st.lists(JSON, max_size=3)
        case "google.protobuf.FieldMask":
            return st.sampled_from(["", "a", "a.b,cD"])
        case name if name.startswith("google.protobuf."):
            return json_value(descriptor.fields_by_name["value"])
    if depth > 1:
        return st.just({})
    fields = [f for f in descriptor.fields if f.containing_oneof is None or f.has_presence]
    return st.fixed_dictionaries(
        {}, optional={f.json_name: json_value(f, depth + 1) for f in fields}
    )


def json_value(field: FieldDescriptor, depth: int = 0) -> st.SearchStrategy[Any]:
    """JSON that fits the field, in one of the forms that protobuf's JSON mapping allows."""
    child = field.message_type
    if child is not None and child.GetOptions().map_entry:
        key, value = child.fields_by_name["key"], child.fields_by_name["value"]
        names = scalar(key).map(lambda k: str(k).lower() if isinstance(k, bool) else str(k))
        return st.dictionaries(names, json_value(value, depth), max_size=2)
    one = json_scalar(field) if child is None else json_of(child, depth)
    return st.lists(one, max_size=2) if field.is_repeated else one


def json_scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    plain = scalar(field)
    if field.type in RANGES:
        return plain | plain.map(str)
    match field.type:
        case _F.TYPE_DOUBLE | _F.TYPE_FLOAT:
            return plain.map(_number)
        case _F.TYPE_BYTES:
            encoders = st.sampled_from([base64.b64encode, base64.urlsafe_b64encode])
            return st.tuples(plain, encoders).map(lambda p: p[1](p[0]).decode())
        case _F.TYPE_ENUM:
            return plain | st.sampled_from(["COLOUR_RED", "COLOUR_BLUE"])
    return plain


def _number(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def oracle(record: Any) -> Message:
    """What json_format makes of it."""
    return json_format.ParseDict(record, STREAM.message(), descriptor_pool=DESCRIPTOR.file.pool)


def same(a: Message, b: Message) -> bool:
    """Equal, also where they hold NaN."""
    return a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


def fields() -> st.SearchStrategy[tuple[str, Any]]:
    """A field of Everything by its JSON name, and JSON that fits it."""
    return st.sampled_from(list(DESCRIPTOR.fields)).flatmap(
        lambda f: st.tuples(st.just(f.json_name), json_value(f))
    )


@given(st.lists(fields(), max_size=6))
@settings(max_examples=300)
def test_json_that_fits_makes_the_message_that_json_format_makes(
    given_fields: list[tuple[str, Any]],
) -> None:
    record = dict(given_fields)
    if sum(name in record for name in ("left", "right", "middle")) > 1:
        with pytest.raises(RecordError, match="only one of choice can"):
            convert(record)
        return
    assert same(convert(record), oracle(record))


@given(st.lists(fields(), max_size=6))
@settings(max_examples=100)
def test_what_json_format_writes_is_read_back_as_the_same_message_under_either_name(
    given_fields: list[tuple[str, Any]],
) -> None:
    record = dict(given_fields)
    for name in ("left", "middle"):
        record.pop(name, None)
    before = oracle(record)
    for original in (False, True):
        written = json_format.MessageToDict(before, preserving_proto_field_name=original)
        assert same(convert(written), before)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("9007199254740993.0", 2**53 + 1), ("1234567890123456789e0", 1234567890123456789),
        ("-9223372036854775808.00", -(2**63)), ("9.223372036854775807E18", 2**63 - 1),
        (2.0**53 - 1, 2**53 - 1), (-0.0, 0), ("1e3", 1000), ("10e-1", 1), ("0e-7", 0), ("0e50", 0),
    ],
)  # fmt: skip
def test_an_integer_is_what_was_written_or_refused(value: Any, number: int) -> None:
    assert same(convert({"int64V": value}), STREAM.message(int64_v=number))
    if isinstance(value, str):
        assert same(cell("int64V", f" {value} "), STREAM.message(int64_v=number))


def test_the_largest_float_is_read_as_protobuf_writes_it() -> None:
    largest = (2 - 2**-23) * 2.0**127
    before = convert({"floatW": largest})
    written = json_format.MessageToDict(before)
    assert written["floatW"] > largest
    assert same(convert(written), before)
    with pytest.raises(RecordError, match="too large"):
        convert({"floatW": 3.4028236e38})


@given(st.sampled_from(list(DESCRIPTOR.fields)), JSON)
@settings(max_examples=600)
def test_what_is_accepted_means_what_json_format_takes_it_for(
    field: FieldDescriptor, value: Any
) -> None:
    record = {field.json_name: value}
    try:
        made = convert(record)
    except RecordError as error:
        assert error.field == field.json_name or error.field.startswith(
            (field.json_name + ".", field.json_name + "[")
        )
        return
    assert same(made, oracle(record))


def test_the_log_of_the_post_is_the_message_it_looks_like() -> None:
    log = (
        '{"timestamp": "2025-06-16T22:50:12.226Z", "accountId": "025779fde8cd4ab8a3e5138f870584a7",'
        ' "deviceId": "07dfde77-3f8a-4431-89f7-acfcf4ead4fc", "colo": "SJC", "status": "connected",'
        ' "mode": "warp+doh", "clientVersion": "2024.3.409.0", "clientPlatform": "windows"}'
    )
    state = BUILT_IN["device_state"]
    made = mapper(state.descriptor)(orjson.loads(log))
    assert same(made, json_format.Parse(log, state.message()))
    assert made.timestamp.ToDatetime(UTC) == datetime(2025, 6, 16, 22, 50, 12, 226000, UTC)
    assert (made.colo, made.client_version) == ("SJC", "2024.3.409.0")


@pytest.mark.parametrize(
    ("record", "field", "reason"),
    [
        ({"deviceid": "x"}, "deviceid", "is not a field of test.v1.Everything"),
        ({"int32_V": 1}, "int32_V", "is not a field of test.v1.Everything; did you mean int32V?"),
        ({"int32V": 1, "int32_v": 1}, "int32_v", "is given twice, also as int32V"),
        ({"int32V": True}, "int32V", "is not an integer: true"),
        ({"int32V": 1.5}, "int32V", "is not an integer: 1.5"),
        ({"int32V": "1x"}, "int32V", 'is not an integer: "1x"'),
        ({"int32V": 2**31}, "int32V", "is outside -2147483648..2147483647: 2147483648"),
        ({"uint64V": -1}, "uint64V", "is outside 0..18446744073709551615: -1"),
        ({"uint32V": "1" * 41}, "uint32V", f'is outside 0..4294967295: {"1" * 41}'),
        ({"int64V": "1" * 42}, "int64V", f'is too large: "{"1" * 42}"'),
        ({"int64V": "1e999999999"}, "int64V", 'is too large: "1e999999999"'),
        ({"int64V": "1e99999999999999999999"}, "int64V", 'is not an integer: "1e99999999999999'),
        ({"int64V": "1e-999999999"}, "int64V", 'is not an integer: "1e-999999999"'),
        ({"int64V": "9007199254740993.5"}, "int64V", 'is not an integer: "9007199254740993.5"'),
        ({"int64V": 2.0**53}, "int64V", "is not exact; write it as text: 9007199254740992.0"),
        ({"int64V": orjson.loads("-9223372036854775809")}, "int64V", "is not exact; write it as"),
        ({"names": {"1": "a", "01": "b"}}, "names['01']", "is given twice, also in another form"),
        ({"names": {"1": "a", "+1": "b"}}, "names['+1']", "is given twice, also in another form"),
        ({"doubleV": True}, "doubleV", "is not a number: true"),
        ({"doubleV": "1 "}, "doubleV", 'is not a number: "1 "'),
        ({"doubleV": math.inf}, "doubleV", "is too large: null"),
        ({"doubleV": math.nan}, "doubleV", "is NaN; write it as text: null"),
        ({"doubleV": 10**400}, "doubleV", "is too large: "),
        ({"floatV": 3.5e38}, "floatV", "is too large: 3.5e"),
        ({"boolV": 1}, "boolV", "is not true or false: 1"),
        ({"boolV": "true"}, "boolV", 'is not true or false: "true"'),
        ({"text": 1}, "text", "is not text: 1"),
        ({"text": "\ud800"}, "text", ""),
        ({"raw": "a!"}, "raw", 'is not base64: "a!"'),
        ({"raw": "a"}, "raw", 'is not base64: "a"'),
        ({"colour": "GREEN"}, "colour",
         'is not one of COLOUR_UNSPECIFIED, COLOUR_RED, COLOUR_BLUE: "GREEN"'),
        ({"colour": 2**31}, "colour", "is not one of "),
        ({"seenAt": "yesterday"}, "seenAt", "is not a time such as 2025-06-16T22:50:12.226Z"),
        ({"seenAt": 5}, "seenAt", "is not a time such as"),
        ({"seenAt": "2025-02-29T00:00:00Z"}, "seenAt", "is not a time (day "),
        ({"seenAt": "2025-02-28T00:00:00+24:00"}, "seenAt", "is not a time (zone out of range)"),
        ({"seenAt": "0001-01-01T00:00:00+01:00"}, "seenAt", "is outside the years 1..9999"),
        ({"took": "1.5"}, "took", "is not a duration such as 1.5s"),
        ({"took": "315576000001s"}, "took", "is longer than 10,000 years"),
        ({"part": [1]}, "part", "is not a JSON object: [1]"),
        ({"part": {"sizes": [1, "x"]}}, "part.sizes[1]", "is not an integer"),
        ({"parts": [{}, {"madeAt": 1}]}, "parts[1].madeAt", "is not a time"),
        ({"partsByName": {"k": {"weight": "x"}}}, "partsByName['k'].weight", "is not a number"),
        ({"texts": "a"}, "texts", 'is not a list: "a"'),
        ({"texts": ["a", None]}, "texts[1]", "is null, which a list can't hold"),
        ({"counts": []}, "counts", "is not a JSON object: []"),
        ({"counts": {"a": None}}, "counts['a']", "is null, which a map can't hold"),
        ({"names": {"x": "y"}}, "names['x']", "is not an integer"),
        ({"shares": {"yes": 1}}, "shares['yes']", "is not true or false, as the key of this map"),
        ({"left": "a", "right": 1}, "right", "can't be set beside left: only one of choice can"),
        ({"properties": 1}, "properties", "is not a google.protobuf.Struct"),
        ({"int64W": "x"}, "int64W", "is not an integer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_field_and_reason(
    record: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(RecordError) as raised:
        convert(record)
    assert raised.value.field == field
    assert raised.value.reason.startswith(reason)
    assert str(raised.value) == f"{field}: {raised.value.reason}"


@pytest.mark.parametrize("field", [f for f in DESCRIPTOR.fields if f.name != "value"],
                         ids=lambda f: f.name)  # fmt: skip
def test_null_means_unset(field: FieldDescriptor) -> None:
    assert same(convert({field.json_name: None}), STREAM.message())
    assert same(convert({field.name: None}), STREAM.message())


def test_only_so_many_unknown_names_are_compared_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes long, and whoever sends names that nobody knows can send others each time."""
    compared: list[str] = []
    compare = difflib.get_close_matches

    def comparing(name: str, names: list[str], count: int) -> list[str]:
        compared.append(name)
        return compare(name, names, count)

    def said(name: str) -> str:
        with pytest.raises(RecordError) as raised:
            fresh({name: 1})
        return raised.value.reason

    monkeypatch.setattr(difflib, "get_close_matches", comparing)
    fresh = mapper(STREAM.descriptor)
    unknown = "is not a field of test.v1.Everything"
    for _ in range(1000):
        assert said("int32_V") == f"{unknown}; did you mean int32V?"
    assert compared == ["int32_V"]
    assert said("int32V" * 1000) == unknown
    assert compared == ["int32_V"]
    assert said("int32_VV") == f"{unknown}; did you mean int32V?"
    for number in range(1000):
        assert said(f"int32V{number}").startswith(unknown)
    assert len(compared) == len(set(compared)) == 200
    assert said("int32_V") == f"{unknown}; did you mean int32V?"


def test_null_is_a_value_where_the_field_is_a_value() -> None:
    assert convert({"value": None}).value.HasField("null_value")


def test_what_is_no_object_is_refused() -> None:
    for record in ([], 1, None, "x"):
        with pytest.raises(RecordError, match="is not a JSON object"):
            convert(record)  # type: ignore[arg-type]


def test_nesting_without_end_is_a_refusal_and_no_crash() -> None:
    record: dict[str, Any] = {}
    for _ in range(10_000):
        record = {"below": [record]}
    with pytest.raises(RecordError, match="is nested too deeply"):
        convert({"tree": record})


def test_mappings_made_in_python_may_hold_bytes_and_times_with_a_zone() -> None:
    seen = datetime(2025, 6, 16, 22, 50, 12, 226000, UTC)
    made = convert({"raw": b"\0\xff", "seenAt": seen, "rawW": b"", "doubleV": 3, "texts": ("a",)})
    assert (made.raw, made.raw_w.value, made.seen_at.ToDatetime(UTC)) == (b"\0\xff", b"", seen)
    with pytest.raises(RecordError, match="is not a time"):
        convert({"seenAt": seen.replace(tzinfo=None)})


def test_a_closed_enum_takes_only_its_own_numbers() -> None:
    text = 'syntax = "proto2"; message Old { optional Kind kind = 1; enum Kind { A = 1; B = 2; } }'
    old = mapper(message(text, "Old"))
    assert old({"kind": 2}).kind == 2
    with pytest.raises(RecordError, match="is not one of A, B: 3"):
        old({"kind": 3})


# --- cells of CSV


def cell(name: str, text: str) -> Message:
    made = STREAM.message()
    cells[name][1](made, text)
    return made


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("int32V", " 7 ", 7),
        ("uint64_v", "18446744073709551615", str(2**64 - 1)),
        ("doubleV", "1e3", 1000),
        ("boolV", "TRUE", True),
        ("boolW", "0", False),
        ("text", " a ", " a "),
        ("textW", " a ", " a "),
        ("raw", "AAH/", "AAH/"),
        ("colour", "COLOUR_RED", "COLOUR_RED"),
        ("seenAt", "2025-06-16 22:50:12", "2025-06-16T22:50:12Z"),
        ("seenAt", " 2025-06-16T22:50:12.5+02:00 ", "2025-06-16T20:50:12.500Z"),
        ("took", "1.5s", "1.500s"),
        ("int64W", "-3", "-3"),
        ("texts", '["a","b"]', ["a", "b"]),
        ("counts", '{"a": 1}', {"a": "1"}),
        ("part", '{"name": "x"}', {"name": "x"}),
        ("properties", '{"a": [1]}', {"a": [1]}),
        ("value", "3", 3),
    ],
)
def test_a_cell_is_read_as_its_field(name: str, text: str, value: Any) -> None:
    field = DESCRIPTOR.fields_by_name[cells[name][0]]
    assert same(cell(name, text), oracle({field.json_name: value}))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("int32V", "7.5", 'is not an integer: "7.5"'),
        ("boolV", "yes", 'is not true, false, 1 or 0: "yes"'),
        ("seenAt", "16.06.2025", "is not a time such as"),
        ("texts", "a", "is not JSON ("),
        ("part", "[1]", "is not a JSON object: [1]"),
    ],
)
def test_a_cell_that_does_not_fit_says_why(name: str, text: str, reason: str) -> None:
    with pytest.raises(RecordError) as raised:
        cell(name, text)
    assert raised.value.reason.startswith(reason)


def test_a_column_answers_to_both_names_of_its_field() -> None:
    assert cells["int32V"] == cells["int32_v"]
    assert {name for name, _ in cells.values()} == set(DESCRIPTOR.fields_by_name)
