"""The gate: what leaves is what [trace] lists, and all else is counted with its reason."""

from __future__ import annotations

import json
import uuid
from base64 import b64decode
from contextlib import suppress
from dataclasses import fields
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from vendors_under_test import UNDER, document

from consumers.trace.allowlist import TraceError, from_table
from consumers.trace.event import Event, make
from consumers.trace.gate import Dropped, Gate, Note, hidden_key
from consumers.vendors import VENDORS, Request, Sending, Validating
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

RECEIVED_US = 1_750_114_212_226_001
UUID = "0197a1b2-4111-4111-8111-411111111111"
TABLE: dict[str, Any] = {
    "events": {
        "purchase product": {
            "names": {"ga4": "purchase", "amplitude": "Product Purchase Success"},
            "properties": {
                "category": "string",
                "price": {"type": "number", "vendors": ["ga4"], "rename": {"ga4": "value"}},
                "count": "integer", "gift": "boolean",
                "plan": {"type": "string", "one_of": ["free", "pro"]},
                "version": {"type": "string", "keep": ["ip"]},
            },
        },
        "page": {"vendors": ["heap"], "properties": {"name": "string", "category": "string"}},
        "identify": {"properties": {"plan": "string"}},
    }
}  # fmt: skip


def raw(data: object, event_id: str = "id-1", kind: str = "application/json") -> RawEvent:
    text = data if isinstance(data, str) else json.dumps(data)
    made = RawEvent(event_id=event_id, source="web", content_type=kind, data=text)
    made.received_at.FromMicroseconds(RECEIVED_US)
    return made


def gate(vendor: str = "ga4", **table: Any) -> Gate:
    return Gate(from_table(TABLE | table, VENDORS, "a secret"), vendor)


def purchase(**more: Any) -> dict[str, Any]:
    return {"event": "purchase product", "deviceId": "d1", **more}


def leaves(data: object, vendor: str = "ga4", **table: Any) -> Event:
    found = gate(vendor, **table).judge(raw(data))
    assert isinstance(found, Event)
    return found


def properties(said: Any, vendor: str = "ga4") -> dict[str, Any]:
    return dict(leaves(purchase(properties=said), vendor).properties)


def test_an_event_leaves_under_each_vendors_names() -> None:
    said = purchase(userId="u1", properties={"category": "billing", "price": 5})
    found = [leaves(said, vendor) for vendor in ("ga4", "amplitude", "heap")]
    assert [(e.name, e.properties) for e in found] == [
        ("purchase", {"category": "billing", "value": 5}),
        ("Product Purchase Success", {"category": "billing"}),
        ("purchase product", {"category": "billing"}),
    ]
    assert {(e.event_id, e.key, e.user_id, e.device_id) for e in found} == {
        ("id-1", "id-1", "u1", "d1")
    }


def test_it_knows_where_it_stands_and_is_made_as_the_class_makes_it() -> None:
    found = gate().judge(raw(purchase()), "raw_events", 3, 7)
    assert isinstance(found, Event)
    assert (found.topic, found.partition, found.offset) == ("raw_events", 3, 7)
    values = [getattr(found, field.name) for field in fields(Event)]
    assert found == Event(*values) == make(*values)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"event": "other", "deviceId": "d"}, "not_listed"),
        ({"type": "page"}, "not_for_vendor"),
        ({"deviceId": "d"}, "no_name"),
        ({"event": ["purchase product"]}, "no_name"),
        ("{", "unreadable"), ("[]", "unreadable"), ("", "unreadable"),
        ("[" * 100_000, "unreadable"), ('{"a":' * 100_000, "unreadable"),
    ],
)  # fmt: skip
def test_what_may_not_leave_is_dropped_and_counted_with_its_reason(data: Any, reason: str) -> None:
    here = gate()
    found = here.judge(raw(data))
    assert isinstance(found, Dropped)
    assert found.reason == reason
    assert [(why, n) for (_, _, why), n in here.counts.items()] == [(reason, 1)]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ({"category": 5}, {}), ({"category": ["a"]}, {}), ({"category": {"a": "b"}}, {}),
        ({"category": None}, {"category": None}),
        ({"price": "5"}, {}), ({"price": 5}, {"value": 5}), ({"price": 0.5}, {"value": 0.5}),
        ({"price": True}, {}), ({"count": 1.0}, {}), ({"count": True}, {}),
        ({"gift": 1}, {}), ({"gift": False}, {"gift": False}),
        ({"plan": "pro"}, {"plan": "pro"}), ({"plan": "other"}, {}), ({"plan": 1}, {}),
        ({"price": 4111111111111111}, {}), ({"price": 4111111111111111.0}, {}),
        ({"price": 4111111111111112}, {"value": 4111111111111112}),
        ({"category": "x" * 10_001}, {}), ({"Category": "x"}, {}), ({"value": 3}, {}),
        ({"version": "1.2.3.4"}, {"version": "1.2.3.4"}),
        ({"category": "1.2.3.4"}, {"category": "[ip]"}),
        ("text", {}), ([1], {}), (None, {}),
    ],
)  # fmt: skip
def test_a_property_leaves_only_with_its_type(said: Any, left: dict[str, Any]) -> None:
    assert properties(said) == left


def test_it_says_of_which_properties_the_text_was_changed() -> None:
    """By the vendor's names; of what is left out nothing is left to be said."""
    said = {"category": "of jo@example.com", "version": "1.2.3.4", "count": "a", "price": 5}
    assert leaves(purchase(properties=said)).scrubbed == ("category",)
    assert leaves(purchase(properties={"category": "billing"})).scrubbed == ()


def test_numbers_beyond_measure_and_halves_of_pairs_do_not_keep_the_event_inside() -> None:
    text = (
        '{"event": "purchase product", "deviceId": "d", "x": 1e999, "properties": '
        '{"price": 1e999, "count": 123456789012345678901234567890, "category": "a\\ud83d"}}'
    )
    found = gate().judge(raw(text))
    assert isinstance(found, Event)
    assert found.properties["category"] == "a�"
    assert "value" not in found.properties
    assert found.device_id == "d"


def test_text_that_no_vendor_could_encode_never_leaves() -> None:
    """Halves of surrogate pairs are mended up to a number of escapes; beyond, the event stays."""
    many = "\\u0061" * 200_001
    text = (
        '{"event": "purchase product", "properties": {"category": "\\ud83d", "x": "' + many + '"}}'
    )
    found = gate().judge(raw(text))
    assert isinstance(found, Dropped)
    assert found.reason == "unreadable"


def test_what_was_left_out_and_changed_is_counted_and_told() -> None:
    here = gate("amplitude")
    notes: list[Note] = []
    said = purchase(
        userId="jo@example.com",
        properties={"category": "at jo@example.com", "x": 1, "y": {"z": 2}, "price": 5,
                    "count": "a"},
    )  # fmt: skip
    here.judge(raw(said), notes=notes)
    assert notes == [
        ("user_id", "mail", "jo@example.com", None),
        ("properties.category", "mail", "at jo@example.com", "at [mail]"),
        ("properties.x", "not_listed", 1, None),
        ("properties.y", "not_listed", {"z": 2}, None),
        ("properties.price", "not_for_vendor", 5, None),
        ("properties.count", "type", "a", None),
    ]
    event = "purchase product"
    assert here.counts == {
        (event, "user_id", "mail"): 1,
        (event, "properties.category", "mail"): 1,
        (event, "properties", "not_listed"): 2,
        (event, "properties.price", "not_for_vendor"): 1,
        (event, "properties.count", "type"): 1,
        (event, "", "allowed"): 1,
    }


def test_names_that_are_not_listed_are_in_no_metric() -> None:
    here = gate("posthog")
    here.judge(raw({"event": "planted name"}))
    here.judge(raw(purchase(properties={"planted key": 1})))
    here.report()
    assert not here.counts
    found = [
        sample
        for metric in REGISTRY.collect()
        if metric.name == "headrace_trace"
        for sample in metric.samples
        if sample.labels["vendor"] == "posthog"
    ]
    assert any(s.labels["reason"] == "not_listed" and s.value >= 1 for s in found)
    assert "planted" not in str(found)


@pytest.mark.parametrize("rule", ["keep", "hash", "drop"])
def test_ids_are_kept_hashed_or_dropped_as_the_operator_says(rule: str) -> None:
    found = leaves(purchase(userId="u1"), user_id=rule, device_id=rule)
    if rule == "keep":
        assert (found.user_id, found.device_id) == ("u1", "d1")
    elif rule == "drop":
        assert (found.user_id, found.device_id) == (None, None)
    else:
        again = leaves(purchase(userId="u1"), "heap", user_id=rule)
        assert again.user_id == found.user_id != "u1"
        assert len(str(found.user_id)) == 64


@pytest.mark.parametrize(
    "rules", [("keep", "hash"), ("hash", "keep"), ("keep", "drop"), ("drop", "keep")]
)
@pytest.mark.parametrize("ids", [("u1", "d1"), (UUID, UUID)])
def test_each_id_has_a_rule_of_its_own(rules: tuple[str, str], ids: tuple[str, str]) -> None:
    event = leaves(purchase(userId=ids[0], deviceId=ids[1]), user_id=rules[0], device_id=rules[1])
    for rule, said, left in zip(rules, ids, (event.user_id, event.device_id), strict=True):
        assert (left == said) == (rule == "keep")
        assert (left is None) == (rule == "drop")


def test_an_operators_pattern_is_looked_for_in_ids_that_are_uuids() -> None:
    """But not in the event's own: by that a vendor knows a copy."""
    for patterns, left in (({}, UUID), ({"customer": UUID[:9] + "[0-9a-f-]{27}"}, None)):
        said = raw(purchase(userId=UUID, deviceId=UUID), event_id=UUID)
        event = gate(patterns=patterns).judge(said)
        assert isinstance(event, Event)
        assert (event.user_id, event.device_id) == (left, left)
        assert event.key == UUID


def test_without_a_key_nothing_is_hashed() -> None:
    with pytest.raises(TraceError, match="HEADRACE_TRACE_KEY"):
        Gate(from_table(TABLE | {"user_id": "hash"}, VENDORS), "ga4")


def test_an_event_id_with_personal_data_becomes_a_key_without_the_same_each_time() -> None:
    said = raw(purchase(), event_id="jo@example.com-1")
    found, again = gate().judge(said), gate("heap").judge(said)
    assert isinstance(found, Event)
    assert isinstance(again, Event)
    assert found.event_id == "jo@example.com-1"
    assert found.key == again.key
    assert str(uuid.UUID(found.key)) == found.key


def test_where_there_is_a_secret_that_key_can_not_be_guessed_from_a_list() -> None:
    said = raw(purchase(), event_id="jo@example.com-1")
    kept = Gate(from_table(TABLE, VENDORS), "ga4").judge(said)
    found = [Gate(from_table(TABLE, VENDORS, s), "ga4").judge(said) for s in ("one", "two", "one")]
    keys = [event.key for event in [kept, *found] if isinstance(event, Event)]
    assert keys[1] == keys[3] == hidden_key("jo@example.com-1", b"one")
    assert len(set(keys)) == 3
    assert all(str(uuid.UUID(key)) == key for key in keys)
    # It never changes: what was sent under it must be known again.
    assert keys[0] == "cb22c3b0-1e31-52c4-bd40-302db0a8cddc"


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        ({"type": "page", "anonymousId": "a", "name": "Home", "category": "docs"}, "",
         ("page", None, "a", {"name": "Home", "category": "docs"})),
        ({"type": "page", "userId": 7, "name": "N", "properties": {"name": "P"}}, "",
         ("page", "7", None, {"name": "P"})),
        ({"userId": "u", "traits": {"plan": "x"}}, "application/json; segment=identify",
         ("identify", "u", None, {"plan": "x"})),
        ({"event": "", "type": "page", "deviceId": "", "context": {"device": {"id": "phone"}}}, "",
         ("page", None, "phone", {})),
        ({"type": "page", "context": 5, "anonymousId": ["x"]}, "", ("page", None, None, {})),
    ],
)  # fmt: skip
def test_segments_shapes_are_read_as_the_view_reads_them(
    data: dict[str, Any], kind: str, expected: tuple[Any, ...]
) -> None:
    found = gate("heap").judge(raw(data, kind=kind or "application/json"))
    assert isinstance(found, Event)
    assert (found.name, found.user_id, found.device_id, found.properties) == expected


@pytest.mark.parametrize(
    ("said", "time_us"),
    [
        ("2025-06-16T22:50:12.226001Z", RECEIVED_US),
        ("2025-06-17T00:50:12.226001+02:00", RECEIVED_US),
        ("2025-06-16T22:50:12.226001", RECEIVED_US),
        ("1969-12-31T23:59:59.5Z", -500_000),
        (1_750_114_212, 1_750_114_212_000_000), (1_750_114_212_226, 1_750_114_212_226_000),
        (5, 5_000_000),
        ("1970-01-01t00:00:05z", 5_000_000), ("1970-01-01T00:00:05.5z", 5_500_000),
        # Text of digits is the number that it says; eight are a date, fewer are nothing.
        ("1795101232345", 1_795_101_232_345_000), ("1750114212", 1_750_114_212_000_000),
        ("1750114212226001", RECEIVED_US), ("20250616", 1_750_032_000_000_000),
        ("5", RECEIVED_US), ("9" * 30, RECEIVED_US), ("²" * 13, RECEIVED_US),
        ("yesterday", RECEIVED_US), ("", RECEIVED_US), ([], RECEIVED_US), (True, RECEIVED_US),
        (10**30, RECEIVED_US), ("0001-01-01T00:00:00+23:59", -62_135_683_140_000_000),
    ],
)  # fmt: skip
def test_an_event_has_its_senders_time_else_the_collectors(said: Any, time_us: int) -> None:
    found = leaves(purchase(timestamp=said))
    assert (found.time_us, found.received_us) == (time_us, RECEIVED_US)


# -- nothing outside the allowlist survives --------------------------------------------------------

SECRET = "planted7"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from([SECRET, f"{SECRET}@example.com", f"/p?q={SECRET}", f"/p#a={SECRET}",
                       f"https://{SECRET}:x@h.example/?k={SECRET}", f"token={SECRET}",
                       f"https%3A%2F%2Fh.example%2F%3Fk%3D{SECRET}", f"ｔｏｋｅｎ＝{SECRET}"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5) | st.just(SECRET), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
# In text that may leave a secret stands only where the scrubber looks for it.
SCRUBBED = JSON.filter(lambda value: not isinstance(value, str) or value != SECRET)


@given(
    st.dictionaries(
        st.sampled_from([*TABLE["events"]["purchase product"]["properties"]]), SCRUBBED, max_size=4
    ),
    st.dictionaries(st.text(max_size=5) | st.just(SECRET), JSON, max_size=4),
    st.dictionaries(
        st.sampled_from(["context", "traits", "name", "type", "timestamp", SECRET]), JSON
    ),
    st.sampled_from([f"{SECRET}@example.com", f"{SECRET}%40example.com", "user-1"]),
    st.sampled_from([f"{SECRET}@example.com", f"id-{SECRET}@a.de", "id-1"]),
    st.sampled_from(sorted(VENDORS)),
    st.booleans(),
)
def test_nothing_outside_the_allowlist_is_in_any_request(
    listed: dict[str, Any], others: dict[str, Any], top: dict[str, Any], user: str, event_id: str,
    vendor: str, backfill: bool,
) -> None:  # fmt: skip
    """Planted in names, values, nested keys, addresses and ids, and in what is around an event.

    A request is looked at as it goes out: address, headers and body, in each as it may be encoded.
    """
    others = {k: v for k, v in others.items() if k not in listed}
    outside = others.keys() & TABLE["events"]["purchase product"]["properties"].keys()
    said = top | purchase(
        deviceId="device-1", userId=user,
        properties=listed | {k: v for k, v in others.items() if k not in outside},
    )  # fmt: skip
    sent = raw(said, event_id, f"application/json; {SECRET}")
    sent.source = SECRET
    found = gate(vendor).judge(sent, SECRET)
    assert isinstance(found, Event)
    left = [found.key, found.name, found.user_id, found.device_id, dict(found.properties)]
    assert SECRET not in repr(left)
    allowed = TABLE["events"]["purchase product"]["properties"].keys() | {"value"}
    assert found.properties.keys() <= allowed
    assert all(
        v is None or isinstance(v, str | int | float | bool) for v in found.properties.values()
    )
    v = UNDER[vendor].make(vendor)
    out = v.requests([found], Sending(RECEIVED_US, backfill=backfill, allow_redate=True))
    for request in out.requests:
        clones = [v.validation(request)] if isinstance(v, Validating) else []
        for leaving in (request, *clones):
            assert SECRET not in everything(leaving)
            assert event_id == "id-1" or event_id not in everything(leaving)
    assert SECRET not in repr([refused.reason for refused in out.refused])


def everything(request: Request) -> str:
    """All that goes out, and what is hidden in it by an encoding."""
    words = [request.url, *request.headers, *request.headers.values()]
    for value in request.headers.values():
        with suppress(ValueError):
            words.append(b64decode(value.rpartition(" ")[2]).decode("latin-1"))
    text = json.dumps(document(request), ensure_ascii=False)
    return " ".join([*words, *map(unquote, words), text, unquote(text)])


@given(st.text(max_size=12) | st.just(SECRET))
def test_an_event_whose_name_is_not_listed_never_leaves(name: str) -> None:
    if name not in TABLE["events"]:
        assert isinstance(gate().judge(raw({"event": name, "deviceId": "d"})), Dropped)
