"""Admission: each thing that no destination can hold is refused, with the field that holds it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from declared import declare, everything
from google.protobuf.message import Message

from ingest.admission import END_S, FIRST_S, Admission, Refused
from ingest.streams import BUILT_IN, MAX_TIME_US, MIN_TIME_US, Stream

STATE = BUILT_IN["device_state"]
EVERYTHING = everything()
HEAD = 'import "google/protobuf/timestamp.proto";'


def good(stream: Stream) -> Any:
    made = stream.message()
    setattr(made, stream.key, "k")
    getattr(made, stream.time).seconds = 1_750_000_000
    return made


def refusal(stream: Stream, message: Message) -> tuple[str, str]:
    with pytest.raises(Refused) as raised:
        Admission(stream).admit(message)
    return raised.value.field, raised.value.reason


def changed(change: Callable[[Any], object]) -> Any:
    made = good(EVERYTHING)
    change(made)
    return made


def test_a_good_message_goes_as_its_bytes_under_its_key() -> None:
    made = good(STATE)
    assert Admission(STATE).admit(made) == (b"k", made.SerializeToString())


@pytest.mark.parametrize(
    ("type_", "value", "key"),
    [
        ("string", "ü", "ü".encode()), ("bytes", b"\xff", b"\xff"), ("int64", -7, b"-7"),
        ("uint64", 2**64 - 1, b"18446744073709551615"), ("bool", False, b"false"),
        ("bool", True, b"true"), ("int32", 0, b"0"), ("double", 1.5, b"1.5"),
        ("optional int32", 0, b"0"),
    ],
)  # fmt: skip
def test_a_key_is_its_text(type_: str, value: Any, key: bytes) -> None:
    stream = declare(
        f'syntax = "proto3"; {HEAD} '
        f"message M {{ {type_} id = 1; google.protobuf.Timestamp seen_at = 2; }}",
        "M",
    )
    made: Any = stream.message(id=value)
    made.seen_at.seconds = 5
    assert Admission(stream).admit(made)[0] == key


@pytest.mark.parametrize("type_", ["string", "bytes"])
def test_an_empty_key_is_refused(type_: str) -> None:
    stream = declare(
        f'syntax = "proto3"; {HEAD} '
        f"message M {{ {type_} id = 1; google.protobuf.Timestamp seen_at = 2; }}",
        "M",
    )
    made: Any = stream.message()
    made.seen_at.seconds = 5
    assert refusal(stream, made) == ("id", "is empty; the key must be set in every record")


def test_a_key_that_may_be_unset_must_be_set() -> None:
    stream = declare(
        f'syntax = "proto3"; {HEAD} '
        "message M { optional int32 id = 1; google.protobuf.Timestamp seen_at = 2; }",
        "M",
    )
    made: Any = stream.message()
    made.seen_at.seconds = 5
    assert refusal(stream, made) == ("id", "is not set; the key must be set in every record")


def test_the_time_must_be_set_and_the_epoch_is_a_time() -> None:
    made = good(STATE)
    made.ClearField("timestamp")
    assert refusal(STATE, made) == (
        "timestamp", "is not set; the time must be set in every record",
    )  # fmt: skip
    made.timestamp.SetInParent()
    assert Admission(STATE).admit(made)[0] == b"k"


@pytest.mark.parametrize("field", ["seen_at", "other"])
@pytest.mark.parametrize(
    ("seconds", "nanos", "why"),
    [
        (FIRST_S, 0, None), (END_S - 1, 999_999_999, None),
        (FIRST_S - 1, 999_999_999, "outside the years 1900..2299"),
        (END_S, 0, "outside the years 1900..2299"),
        (5, -1, "has nanos outside 0..999999999"),
        (5, 1_000_000_000, "has nanos outside 0..999999999"),
    ],
)  # fmt: skip
def test_times_are_those_that_both_databases_hold(
    field: str, seconds: int, nanos: int, why: str | None
) -> None:
    stream = declare(
        f'syntax = "proto3"; {HEAD} message M {{ string id = 1; '
        "google.protobuf.Timestamp seen_at = 2; google.protobuf.Timestamp other = 3; }",
        "M",
    )
    made = good(stream)
    getattr(made, field).seconds = seconds
    getattr(made, field).nanos = nanos
    if why is None:
        assert Admission(stream).admit(made)
    else:
        found = refusal(stream, made)
        assert found[0] == field
        assert why in found[1]


def edges(bits: int, *more: int) -> list[int]:
    """Integers of so many bits, about `more` and about where a varint's last byte changes."""
    found = {0, -1, *(i << shift for shift in range(0, bits, 7) for i in range(1, 128)), *more}
    return sorted(n for at in found for n in (at - 1, at) if -(1 << bits - 1) <= n < 1 << bits - 1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_time_is_judged_alike_wherever_its_field_stands(number: int) -> None:
    stream = declare(
        f'syntax = "proto3"; {HEAD} '
        f"message M {{ google.protobuf.Timestamp seen_at = {number}; string id = {3 - number}; }}",
        "M",
    )
    admit, made = Admission(stream).admit, good(stream)
    for seconds, nanos in [
        *product(edges(64, FIRST_S, END_S), (0, 1, -1, 10**9)),
        *product((1, 2**28 - 1, 2**28, 1_750_000_000, END_S), edges(32, 10**9)),
    ]:
        made.seen_at.seconds, made.seen_at.nanos = seconds, nanos
        try:
            admit(made)
            taken = True
        except Refused:
            taken = False
        assert taken == (FIRST_S <= seconds < END_S and 0 <= nanos < 10**9), (seconds, nanos)


def test_the_bounds_are_those_of_the_decoder() -> None:
    assert (FIRST_S * 10**6, END_S * 10**6 - 1) == (MIN_TIME_US, MAX_TIME_US)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("text", lambda m: setattr(m, "text", "a\0b")),
        ("maybe_text", lambda m: setattr(m, "maybe_text", "\0")),
        ("texts[1]", lambda m: m.texts.extend(["a", "\0"])),
        ("text_w.value", lambda m: setattr(m.text_w, "value", "\0")),
        ("part.name", lambda m: setattr(m.part, "name", "\0")),
        ("parts[1].name", lambda m: (m.parts.add(), m.parts.add(name="\0"))),
        ("part.tags['\\x00']", lambda m: m.part.tags.update({"\0": 1})),
        ("names[7]", lambda m: m.names.update({7: "\0"})),
        ("counts['\\x00']", lambda m: m.counts.update({"\0": 1})),
        ("parts_by_name['p'].name", lambda m: setattr(m.parts_by_name["p"], "name", "\0")),
        ("left", lambda m: setattr(m, "left", "\0")),
        ("tree.below[0].name", lambda m: m.tree.below.add(name="\0")),
        ("mask.paths[0]", lambda m: m.mask.paths.append("\0")),
        ("properties.fields['a'].string_value", lambda m: m.properties.update({"a": "\0"})),
        ("list.values[0].string_value", lambda m: m.list.append("\0")),
        ("structs[0].fields['\\x00']", lambda m: m.structs.add().update({"\0": 1})),
    ],
)  # fmt: skip
def test_a_nul_in_any_text_is_refused_where_it_is(
    field: str, change: Callable[[Any], object]
) -> None:
    assert refusal(EVERYTHING, changed(change)) == (
        field, "holds a NUL character, which PostgreSQL can't store",
    )  # fmt: skip


def test_a_zero_byte_that_is_no_text_is_admitted() -> None:
    made = changed(lambda m: setattr(m, "raw", b"\0\0"))
    made.fixed64_v = 1  # seven zero bytes on the wire
    made.maybe_int = 0
    assert b"\0" in Admission(EVERYTHING).admit(made)[1]


def test_proto2_text_that_is_not_utf_8_and_fields_that_are_missing_are_refused() -> None:
    stream = declare(
        f'syntax = "proto2"; {HEAD} message M {{ optional string id = 1; '
        "optional google.protobuf.Timestamp seen_at = 2; optional string note = 3; "
        "required int32 must = 4; }",
        "M",
    )
    time = b"\x12\x02\x08\x05"
    admit = Admission(stream).admit

    def parsed(data: bytes) -> Message:
        return stream.message.FromString(data)

    assert admit(parsed(b"\x0a\x01k" + time + b"\x20\x01"))[0] == b"k"
    assert refusal(stream, parsed(b"\x0a\x01\xff" + time + b"\x20\x01")) == ("id", "is not UTF-8")
    assert refusal(stream, parsed(b"\x0a\x01k" + time + b"\x1a\x01\xff\x20\x01")) == (
        "note", "is not UTF-8",
    )  # fmt: skip
    missing = stream.message(id="k")
    missing.seen_at.seconds = 5  # type: ignore[attr-defined]
    field, reason = refusal(stream, missing)
    assert field == ""
    assert "must" in reason


def test_ready_bytes_are_checked_by_parsing_them() -> None:
    admission = Admission(STATE)
    assert admission.parse(good(STATE).SerializeToString()) == good(STATE)
    for data in (b"\xff", b"\x1a\x01\xff"):
        with pytest.raises(Refused, match=r"are not a headrace\.v1.DeviceState, or hold text"):
            admission.parse(data)
