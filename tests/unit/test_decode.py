"""Bytes to rows: every kind of field as a column, and bad payloads told apart from good ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from declared import declare, everything
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.columns import Kind, columns
from consumers.decode import Decoder
from consumers.errors import Systemic
from ingest.streams import BUILT_IN, MAX_TIME_US, MIN_TIME_US, Stream

EVERYTHING = everything()
decoder = Decoder(EVERYTHING)
STATE = BUILT_IN["device_state"]
states = Decoder(STATE)
HEAD = 'syntax = "proto3"; import "google/protobuf/timestamp.proto"; '


def made(**values: Any) -> Any:
    """A message with its key and time, and these."""
    message: Any = EVERYTHING.message(id="k", **values)
    message.seen_at.seconds = 1_750_000_000
    return message


def row(message: Any) -> dict[str, Any]:
    """The one row that the message becomes."""
    rows, bad = decoder.decode([message.SerializeToString()])
    assert bad == {}
    (found,) = rows.to_pylist(maps_as_pydicts="strict")
    return dict(found)


def state(i: int = 0) -> bytes:
    message: Any = STATE.message(device_id=f"d{i}", colo="SJC")
    message.timestamp.seconds = 1_750_000_000 + i
    return bytes(message.SerializeToString())


# --- columns


def test_rows_have_the_names_of_columns_and_reasons_those_of_fields() -> None:
    text = HEAD + 'import "google/protobuf/struct.proto"; message M { string id = 1; ' + (
        "google.protobuf.Timestamp seen_at = 2; google.protobuf.Struct more = 3; }"
    )  # fmt: skip
    names = (("id", "seen_at"), ("seen_at", "id"), ("more", "rest"))  # two change places
    stream = declare(text, "M", columns=names)
    message: Any = stream.message(id="k", more={"a": 1})
    message.seen_at.seconds = 1
    rows, bad = Decoder(stream).decode([message.SerializeToString(), b""])
    assert rows.to_pylist() == [
        {"seen_at": "k", "id": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "rest": '{"a":1}'}
    ]
    assert bad[1] in ("id is not set", "seen_at is not set")
    assert Decoder(stream).schema.names == [c.name for c in columns(stream)]
    assert [c.field for c in columns(stream)] == ["id", "seen_at", "more"]


def test_a_stream_has_a_column_for_each_field_in_order() -> None:
    names = [column.name for column in columns(EVERYTHING)]
    assert names == [field.name for field in EVERYTHING.descriptor.fields]
    assert decoder.schema.names == names


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("double_v maybe_double double_w doubles", Kind.DOUBLE), ("float_v float_w", Kind.FLOAT),
        ("int32_v sint32_v sfixed32_v maybe_int int32_w", Kind.INT32),
        ("int64_v sint64_v sfixed64_v int64_w right", Kind.INT64),
        ("uint32_v fixed32_v uint32_w", Kind.UINT32),
        ("uint64_v fixed64_v uint64_w numbers", Kind.UINT64),
        ("bool_v maybe_bool bool_w", Kind.BOOL), ("text maybe_text text_w texts left", Kind.STRING),
        ("raw raw_w", Kind.BYTES), ("colour maybe_colour colours", Kind.ENUM),
        ("seen_at times", Kind.TIMESTAMP), ("took", Kind.DURATION),
        ("part parts middle mask", Kind.MESSAGE), ("counts names shares parts_by_name", Kind.MAP),
        ("properties value list structs tree nothing", Kind.JSON),
    ],
)  # fmt: skip
def test_a_field_is_of_one_kind_whatever_its_destination(names: str, kind: Kind) -> None:
    found = {c.name: c for c in columns(EVERYTHING)}
    for name in names.split():
        assert found[name].kind is kind
        field = EVERYTHING.descriptor.fields_by_name[name]
        is_map = kind is Kind.MAP
        assert found[name].nullable == (field.has_presence and not field.is_repeated)
        assert found[name].repeated == (field.is_repeated and not is_map and kind is not Kind.JSON)
        assert bool(found[name].fields) == (kind in (Kind.MESSAGE, Kind.MAP))


def test_a_message_that_holds_something_opaque_is_opaque_as_a_whole() -> None:
    stream = declare(
        HEAD + 'import "google/protobuf/struct.proto"; '
        "message Deep { message In { google.protobuf.Struct s = 1; } In in = 1; } "
        "message M { string id = 1; google.protobuf.Timestamp seen_at = 2; Deep deep = 3; "
        "map<string, Deep> deeps = 4; }",
        "M",
    )
    kinds = {c.name: c.kind for c in columns(stream)}
    assert kinds["deep"] is Kind.JSON
    assert kinds["deeps"] is Kind.JSON


# --- values


def test_each_value_is_in_its_own_column_whatever_the_fields_numbers() -> None:
    """At any depth: a new field takes a new number, and may stand anywhere in the .proto."""
    fields = "string note = 9; string colo = 4; google.protobuf.Timestamp made_at = 3; "
    stream = declare(
        f"{HEAD}message P {{ {fields} }} "
        "message M { P p = 8; string id = 1; string note = 7; string colo = 5; "
        "google.protobuf.Timestamp seen_at = 2; map<string, P> by_name = 6; repeated P all = 3; }",
        "M",
    )
    message: Any = stream.message(id="i", note="n", colo="c")
    message.seen_at.FromSeconds(1)
    for part in (message.p, message.all.add(), message.by_name["k"]):
        part.note, part.colo = "inner n", "inner c"
        part.made_at.FromSeconds(2)
    found, bad = Decoder(stream).decode([message.SerializeToString()])
    assert bad == {}
    assert found.schema.names == [column.name for column in columns(stream)]
    (whole,) = found.to_pylist(maps_as_pydicts="strict")
    assert (whole["note"], whole["colo"]) == ("n", "c")
    assert whole["p"] == whole["all"][0] == whole["by_name"]["k"]
    assert (whole["p"]["note"], whole["p"]["colo"]) == ("inner n", "inner c")


def test_unset_is_null_with_presence_and_a_default_without() -> None:
    found = row(made())
    for field in EVERYTHING.descriptor.fields:
        value = found[field.name]
        if field.name in ("id", "seen_at"):
            continue
        if field.is_repeated:
            assert value in ([], {}, "[]")
        elif field.has_presence:
            assert value is None, field.name
        else:
            assert value in (0, "", b"", False, "COLOUR_UNSPECIFIED"), field.name


def test_set_to_the_default_is_not_unset() -> None:
    message = made(maybe_int=0, maybe_text="", maybe_bool=False, left="")
    message.int64_w.SetInParent()
    message.raw_w.SetInParent()
    message.took.SetInParent()
    found = row(message)
    assert [found[n] for n in ("maybe_int", "maybe_text", "maybe_bool", "left", "int64_w", "raw_w",
                               "took")] == [0, "", False, "", 0, b"", timedelta(0)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int32_v", -(2**31)), ("int64_v", -(2**63)), ("uint32_v", 2**32 - 1),
        ("uint64_v", 2**64 - 1), ("sint64_v", -(2**63)), ("fixed64_v", 2**64 - 1),
        ("sfixed32_v", -(2**31)), ("double_v", 1.7976931348623157e308), ("float_v", 0.5),
        ("text", "naïve ☃\n"), ("raw", bytes(range(256))), ("numbers", [0, 2**64 - 1]),
        ("texts", ["", "a"]), ("counts", {"": -(2**63)}), ("names", {-(2**31): "x"}),
        ("shares", {True: 0.5, False: 1.0}),
    ],
)  # fmt: skip
def test_values_arrive_whole(name: str, value: Any) -> None:
    assert row(made(**{name: value}))[name] == value


def test_enums_are_names_and_numbers_that_nobody_knows_are_text() -> None:
    found = row(made(colour=99, maybe_colour=-5, colours=[1, -7]))
    assert (found["colour"], found["maybe_colour"], found["colours"]) == (
        "99", "COLOUR_BLUE", ["COLOUR_RED", "-7"],
    )  # fmt: skip


def test_times_and_durations_have_microseconds() -> None:
    message = made()
    message.seen_at.nanos = 226_001_999
    message.took.seconds, message.took.nanos = -2, -500_000_000
    message.times.add(seconds=-1, nanos=999_999_000)
    found = row(message)
    assert found["seen_at"] == datetime.fromtimestamp(1_750_000_000, UTC).replace(
        microsecond=226_001
    )
    assert found["took"] == timedelta(seconds=-2.5)
    assert found["times"] == [datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)]


def test_messages_lists_and_maps_of_them_are_structs() -> None:
    message = made()
    message.part.name = "p"
    message.part.tags["a"] = 1
    message.parts.add(sizes=[1, 2])
    message.parts_by_name["x"].good = True
    found = row(message)
    assert found["part"]["name"] == "p"
    assert found["part"]["tags"] == {"a": 1}
    assert found["parts"][0]["sizes"] == [1, 2]
    assert found["parts"][0]["made_at"] is None
    assert found["parts_by_name"]["x"]["good"] is True
    assert found["middle"] is None


def test_what_has_no_fixed_columns_is_json_text() -> None:
    message = made()
    message.properties.update({"a": [1, None, {"b": "ü"}]})
    message.value.number_value = 2.5
    message.list.append("x")
    message.structs.add().update({"k": True})
    message.tree.below.add(name="leaf")
    message.nothing.SetInParent()
    found = row(message)
    assert json.loads(found["properties"]) == {"a": [1, None, {"b": "ü"}]}
    assert json.loads(found["value"]) == 2.5
    assert json.loads(found["list"]) == ["x"]
    assert json.loads(found["structs"]) == [{"k": True}]
    assert json.loads(found["tree"]) == {"name": "", "below": [{"name": "leaf", "below": []}]}
    assert json.loads(found["nothing"]) == {}


PROTO2 = 'syntax = "proto2"; import "google/protobuf/timestamp.proto"; ' + (
    "message M { optional string id = 1; optional google.protobuf.Timestamp seen_at = 2; "
)  # fmt: skip


def test_groups_of_proto2_are_json_wherever_they_are() -> None:
    stream = declare(
        PROTO2 + "optional group Grp = 3 { optional string a = 4; } "
        "repeated group Rep = 5 { optional int32 b = 6; } optional group None = 7 {} "
        "optional In in = 8; message In { optional group Deep = 1 { optional int32 c = 2; } } }",
        "M",
    )
    message: Any = stream.message(id="k")
    message.seen_at.seconds = 5
    message.grp.a = "x"
    message.rep.add(b=3)
    message.rep.add(b=4)
    getattr(message, "in").deep.c = 5
    rows, bad = Decoder(stream).decode([message.SerializeToString()])
    assert bad == {}
    (found,) = rows.to_pylist()
    assert (found["grp"], found["rep"], found["none"], found["in"]) == (
        '{"a":"x"}', '[{"b":3},{"b":4}]', None, '{"deep":{"c":5}}',
    )  # fmt: skip


ANY = declare(
    HEAD + 'import "google/protobuf/any.proto"; import "google/protobuf/struct.proto"; '
    "message Mine { int32 n = 1; } "
    "message Box { google.protobuf.Any any = 1; repeated Box in = 2; } "
    "message M { string id = 1; google.protobuf.Timestamp seen_at = 2; "
    "google.protobuf.Any any = 3; google.protobuf.Struct more = 4; "
    "map<string, google.protobuf.Struct> each = 5; Box box = 6; "
    "map<bool, google.protobuf.Struct> flags = 7; map<int64, Box> boxes = 8; }",
    "M",
)


def test_a_field_is_rendered_whatever_another_one_holds() -> None:
    message: Any = ANY.message(id="k", more={"a": 1})
    message.seen_at.seconds = 5
    message.any.type_url = "type.googleapis.com/nobody.knows.This"
    message.each["x"].update({"b": "c"})
    message.flags[True].update({"b": 2})
    message.boxes[-1].SetInParent()
    rows, bad = Decoder(ANY).decode([message.SerializeToString()])
    assert bad == {}
    (found,) = rows.to_pylist()
    assert (found["more"], found["each"]) == ('{"a":1}', '{"x":{"b":"c"}}')
    assert (found["flags"], found["boxes"]) == ('{"true":{"b":2}}', '{"-1":{"in":[]}}')
    assert found["any"]["type_url"].endswith("This")


def test_an_any_of_a_message_that_the_proto_declares_is_rendered() -> None:
    message: Any = ANY.message(id="k")
    message.seen_at.seconds = 5
    message.box.any.type_url = "type.googleapis.com/Mine"
    message.box.any.value = b"\x08\x07"
    rows, bad = Decoder(ANY).decode([message.SerializeToString()])
    assert bad == {}
    assert json.loads(rows.to_pylist()[0]["box"])["any"]["n"] == 7


def test_a_number_of_a_struct_is_what_it_was_in_json() -> None:
    def text(*numbers: float) -> str:
        message = made()
        message.properties.update({"n": list(numbers)})
        return str(row(message)["properties"])

    assert text(1, -3, 2.5, 0) == '{"n":[1,-3,2.5,0]}'
    assert text(2**53 - 1, 1 - 2**53) == '{"n":[9007199254740991,-9007199254740991]}'
    # Which whole number these were nobody knows.
    assert text(2.0**53, 1e300) == '{"n":[9007199254740992.0,1e+300]}'


# --- messages that ptars can't be taught


@pytest.mark.parametrize(
    "text",
    [
        'edition = "2023"; import "google/protobuf/timestamp.proto"; message M { ',
        HEAD + "message Other { int32 Name = 1; int32 name = 2; } message M { ",
    ],
    ids=["edition", "alike"],
)
def test_a_message_that_ptars_panics_at_is_systemic(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream does not take those that are known: these stand for what is not."""
    monkeypatch.setattr(Stream, "_check_files", lambda _self: None)
    stream = declare(text + "string id = 1; google.protobuf.Timestamp seen_at = 2; }", "M")
    with pytest.raises(Systemic, match=r"^stream test: inserters can't decode M, so .*test\.proto"):
        Decoder(stream)


# --- bad ones


BAD = {
    b"\xff": "",
    b"\x1a\x05ab": "",  # cut off
    b"\x1a\x01\xff": "",  # not UTF-8
    b"": "",  # neither key nor time
    b"\x1a\x01d": "timestamp is not set",
    b"\x0a\x02\x08\x01": "device_id is not set",
    None: "it has no value (a tombstone)",
}


@given(st.lists(st.sampled_from([*BAD, b"good"]), max_size=40))
@settings(max_examples=150, deadline=None)
def test_good_rows_stay_in_order_and_each_bad_one_has_its_reason(
    kinds: list[bytes | None],
) -> None:
    payloads = [state(i) if kind == b"good" else kind for i, kind in enumerate(kinds)]
    rows, bad = states.decode(payloads)
    assert rows.schema == states.schema
    assert rows.column("device_id").to_pylist() == [
        f"d{i}" for i, kind in enumerate(kinds) if kind == b"good"
    ]
    assert bad.keys() == {i for i, kind in enumerate(kinds) if kind != b"good"}
    for i, reason in bad.items():
        assert reason
        assert reason.startswith(BAD[kinds[i]])


@given(st.lists(st.binary(max_size=30), max_size=10))
@settings(max_examples=80, deadline=None)
def test_no_bytes_make_decoding_raise_and_the_verdict_does_not_depend_on_neighbours(
    payloads: list[bytes],
) -> None:
    rows, bad = decoder.decode(payloads)
    assert rows.num_rows + len(bad) == len(payloads)
    for i, payload in enumerate(payloads):
        assert (i in bad) == bool(decoder.decode([payload]).bad)


@pytest.mark.parametrize(
    ("us", "good"),
    [(MIN_TIME_US, True), (MAX_TIME_US, True), (MIN_TIME_US - 1, False), (MAX_TIME_US + 1, False)],
)
def test_the_time_of_a_record_is_one_that_every_destination_holds(us: int, good: bool) -> None:
    message: Any = STATE.message(device_id="d")
    message.timestamp.seconds, rest = divmod(us, 1_000_000)
    message.timestamp.nanos = rest * 1000
    rows, bad = states.decode([message.SerializeToString(), state()])
    assert rows.num_rows == (2 if good else 1)
    assert bad == ({} if good else {0: "timestamp is outside the years 1900 to 2299"})


def test_durations_beyond_protobufs_range_are_bad_and_not_clamped() -> None:
    message = made()
    message.took.seconds = 315_576_000_001
    rows, bad = decoder.decode([made().SerializeToString(), message.SerializeToString()])
    assert (rows.num_rows, bad) == (1, {1: "took is outside protobuf's range"})


RICH = declare(
    HEAD + '''import "google/protobuf/duration.proto"; import "google/protobuf/struct.proto";
    import "google/protobuf/wrappers.proto";
    message Part {
      string name = 1; google.protobuf.Timestamp at = 2;
      repeated google.protobuf.Duration waits = 3; map<string, google.protobuf.Timestamp> marks = 4;
    }
    message M {
      string id = 1; google.protobuf.Timestamp seen_at = 2;
      map<string, google.protobuf.Timestamp> times = 3;
      map<string, google.protobuf.Duration> durations = 4;
      map<string, google.protobuf.Int32Value> numbers = 5;
      map<string, Part> parts = 6;
      map<string, google.protobuf.Struct> structs = 7;
      repeated google.protobuf.Timestamp at = 8;
      repeated google.protobuf.Duration took = 9;
      Part part = 10;
      repeated Part list = 11;
    }''',
    "M",
    columns=(("at", "moments"),),
)  # fmt: skip
rich = Decoder(RICH)


def rich_one(**values: Any) -> Any:
    made: Any = RICH.message(id="k", **values)
    made.seen_at.seconds = 5
    return made


@pytest.mark.parametrize(
    ("number", "name", "default"),
    [
        (3, "times", datetime(1970, 1, 1, tzinfo=UTC)), (4, "durations", timedelta(0)),
        (5, "numbers", 0), (6, "parts", {"name": "", "at": None, "waits": [], "marks": []}),
    ],
)  # fmt: skip
def test_what_an_entry_of_a_map_leaves_out_is_the_default(
    number: int, name: str, default: Any
) -> None:
    """As protobuf means it, and as some writers save bytes. ptars panics."""
    good = rich_one().SerializeToString()
    entry = bytes([number << 3 | 2, 3]) + b"\x0a\x01a"
    # Keys that are there twice make it no longer when it is written anew.
    payloads = [good, good + entry, b"\xff", good + entry * 3, good]
    rows, bad = rich.decode(payloads)
    assert bad.keys() == {2}
    assert rows.column(name).to_pylist() == [[], [("a", default)], [("a", default)], []]
    assert rows.schema == rich.schema
    assert rich.decode([good]).bad == {}


def test_a_map_of_what_has_no_fixed_columns_may_leave_its_values_out() -> None:
    payload = rich_one().SerializeToString() + b"\x3a\x03\x0a\x01a"
    rows, bad = rich.decode([payload])
    assert (rows.column("structs").to_pylist(), bad) == (['{"a":{}}'], {})


def test_what_protobuf_takes_and_ptars_does_not_is_bad_also_when_it_is_alone() -> None:
    text = HEAD.replace("proto3", "proto2") + (
        "message M { optional string id = 1; optional google.protobuf.Timestamp seen_at = 2; }"
    )
    proto2 = Decoder(declare(text, "M"))
    good, broken = b"\x0a\x01k\x12\x02\x08\x05", b"\x0a\x01\xff\x12\x02\x08\x05"
    for payloads in ([broken], [broken] * 3, [broken, good, broken], [None, broken]):
        rows, bad = proto2.decode(payloads)
        assert rows.num_rows == payloads.count(good)
        assert bad.keys() == {i for i, p in enumerate(payloads) if p != good}
        assert rows.schema == proto2.schema


def test_the_end_of_the_program_is_nothing_that_a_message_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_payloads: object) -> None:
        raise KeyboardInterrupt

    ended = Decoder(STATE)
    monkeypatch.setattr(ended, "_parse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ended.decode([state()])


# Microseconds where seconds are meant, and more than protobuf allows.
FAR = {"seconds": 1_718_577_012_226_000}
LONG = {"seconds": -315_576_000_001}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"at": [{"seconds": 1}, FAR]}, "at"), ({"took": [{}, LONG]}, "took"),
        ({"times": {"a": FAR}}, "times.value"), ({"durations": {"a": LONG}}, "durations.value"),
        ({"part": {"at": FAR}}, "part.at"), ({"part": {"waits": [LONG]}}, "part.waits"),
        ({"part": {"marks": {"a": FAR}}}, "part.marks.value"),
        ({"list": [{}, {"waits": [{}, LONG]}]}, "list.waits"),
        ({"parts": {"a": {}, "b": {"marks": {"c": FAR}}}}, "parts.value.marks.value"),
    ],
)  # fmt: skip
def test_a_time_or_duration_that_ptars_would_change_is_bad_at_any_depth(
    values: dict[str, Any], field: str
) -> None:
    fine = rich_one(
        at=[{"seconds": -62_135_596_800}, {"seconds": 253_402_300_799, "nanos": 999_999_999}],
        took=[{"seconds": 315_576_000_000}, {"seconds": -315_576_000_000}],
        part={"at": {"seconds": 1}, "waits": [{"seconds": 1}]}, list=[{}],
    ).SerializeToString()  # fmt: skip
    payloads = [fine] * 7
    payloads[2] = payloads[5] = rich_one(**values).SerializeToString()
    rows, bad = rich.decode(payloads)
    assert bad == dict.fromkeys((2, 5), f"{field} is outside protobuf's range")
    assert rows.equals(rich.decode([fine] * 5).rows)


def test_a_key_that_is_a_number_may_be_zero_but_an_optional_one_must_be_set() -> None:
    def stream(type_: str) -> Stream:
        text = f"message M {{ {type_} id = 1; google.protobuf.Timestamp seen_at = 2; }}"
        return declare(HEAD + text, "M")

    time = b"\x12\x02\x08\x05"
    assert Decoder(stream("int32")).decode([time]).bad == {}
    assert Decoder(stream("bytes")).decode([time]).bad == {0: "id is not set"}


def test_fields_that_the_stream_does_not_know_are_left_out() -> None:
    """A producer may be newer than the inserter."""
    rows, bad = states.decode([state() + b"\xf8\x3f\x01"])
    assert (rows.num_rows, bad) == (1, {})


def test_an_empty_batch_has_the_schema() -> None:
    rows, bad = decoder.decode([])
    assert (rows.num_rows, bad, rows.schema) == (0, {}, decoder.schema)
    assert decoder.schema.field("seen_at").type == pa.timestamp("us", tz="UTC")
