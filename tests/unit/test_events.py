"""Sparrow's door and Segment's: untouched bytes in, records of RawEvent out."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.collector import segment, sparrow
from ingest.collector.events import judge_each, too_deep, uuid7
from ingest.collector.judge import BadBody, Caller, Judged, Limits
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.spool.frames import Record

NOW_US = 1_750_114_212_226_001
WEB = Caller("web")
PURCHASE = (
    b'{"event": "purchase product", "deviceId": "desktop1", "userId": "michelle1", '
    b'"properties": {"category": "billing", "productName": "workers"}}'
)
Door = Callable[[bytes, str, Caller, Limits, int], Judged]
DOORS: dict[str, Door] = {
    "sparrow": sparrow.judge,
    **{call: partial(segment.judge, call) for call in sorted(set(segment.CALLS.values()))},
}


def events(body: bytes, content_type: str = "application/json", **limits: int) -> Judged:
    return sparrow.judge(body, content_type, WEB, Limits(**limits), NOW_US)


def call(name: str, body: bytes, content_type: str = "application/json") -> Judged:
    return segment.judge(name, body, content_type, WEB, Limits(), NOW_US)


def parsed(record: Record) -> RawEvent:
    return RawEvent.FromString(record.value)


def data(judged: Judged) -> list[bytes]:
    return [parsed(record).data.encode() for record in judged.records]


def codes(judged: Judged) -> list[tuple[int, str]]:
    return [(refusal.index, refusal.code) for refusal in judged.refused]


# -- what an event becomes -----------------------------------------------------------------------


def test_the_event_of_the_post_is_one_record_with_its_own_bytes() -> None:
    (record,), refused = events(PURCHASE)
    assert (record.topic, record.key, record.id, refused) == ("raw_events", b"desktop1", None, [])
    event = parsed(record)
    assert event.data.encode() == PURCHASE
    assert event.received_at.ToMicroseconds() == NOW_US
    assert (event.source, event.content_type) == ("web", "application/json")
    assert not event.HasField("network")
    assert not event.headers
    made = uuid.UUID(event.event_id)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == NOW_US // 1000


def test_an_object_an_array_and_an_envelope_hold_the_same_events() -> None:
    both = b" [ %b ,\n%b\t] \r\n" % (PURCHASE, PURCHASE)
    assert data(events(b"\n " + PURCHASE + b" ")) == [PURCHASE]
    assert data(events(both)) == [PURCHASE] * 2
    assert data(events(b'{"writeKey": "k", "events":%b, "sentAt": 0}' % both)) == [PURCHASE] * 2
    assert events(b"[]") == events(b'{"events": []}') == Judged([], [])


def test_an_object_that_has_an_event_is_an_event_whatever_else_it_has() -> None:
    body = b'{"event": "a", "deviceId": "d", "writeKey": "k", "events": []}'
    assert data(events(body)) == [body]


def test_the_senders_id_names_the_event_for_its_source() -> None:
    body = b'{"event": "a", "deviceId": "d", "eventId": "e-1"}'
    (record,), _ = events(body)
    assert (record.id, parsed(record).event_id) == ("web:e:e-1", "e-1")
    two = events(b"[%b,%b]" % (body, body))
    assert [record.id for record in two.records] == ["web:e:e-1"] * 2  # the spool stores one


def test_ids_of_ours_are_new_each_time_and_in_order_within_a_request() -> None:
    records = [*events(b"[" + b",".join([PURCHASE] * 300) + b"]").records,
               *events(PURCHASE).records]  # fmt: skip
    ids = [parsed(record).event_id for record in records]
    assert len(set(ids)) == 301
    assert ids[:300] == sorted(ids[:300])
    assert {record.id for record in records} == {None}


@given(st.integers(0, 2**48 * 1000 - 1))
def test_an_id_of_ours_is_a_uuid_of_version_7_with_the_time_in_front(now_us: int) -> None:
    ids = uuid7(now_us)
    for text in (next(ids), next(ids)):
        made = uuid.UUID(text)
        assert str(made) == text
        assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, now_us // 1000)


def test_a_key_is_the_device_else_the_anonymous_id_else_the_user_else_the_id() -> None:
    assert sorted(segment.CALLS.values()).count("track") == 2
    ids: dict[str, Any] = {"deviceId": "d", "anonymousId": "a", "userId": 7, "messageId": "m"}
    for wanted in (b"d", b"a", b"7", b"m"):
        (record,), _ = call("track", json.dumps(ids).encode())
        assert record.key == wanted
        ids[next(iter(ids))] = None  # the first one, as some SDKs write it
        del ids[next(iter(ids))]
    (record,), _ = call("track", b'{"userId": {"odd": true}}')
    assert record.key == parsed(record).event_id.encode()


def test_a_key_that_is_very_long_is_cut() -> None:
    body = json.dumps({"event": "a", "deviceId": "ä" * 5000}).encode()
    (record,), _ = events(body)
    assert record.key == ("ä" * 128).encode()[:255]
    assert data(events(body)) == [body]


def test_network_and_headers_are_kept_where_the_operator_asked_for_them() -> None:
    caller = Caller("web", "203.0.113.0/24", (("user-agent", "Zürich/1"), ("accept", "")))
    (record,), _ = sparrow.judge(PURCHASE, "", caller, Limits(), NOW_US)
    event = parsed(record)
    assert event.network == "203.0.113.0/24"
    assert dict(event.headers) == {"user-agent": "Zürich/1", "accept": ""}


texts = st.text(st.characters(codec="utf-8"), max_size=300)


@given(
    source=texts, content_type=st.sampled_from(["application/json", "application/json; segment=t"]),
    network=texts, headers=st.dictionaries(texts, texts, max_size=3),
    now_us=st.integers(0, 10_413_791_999_999_999), event_id=st.text(
        st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200),
    text=st.one_of(texts, st.sampled_from(["x" * n for n in (127, 128, 4095, 4096, 70_000)])),
)  # fmt: skip
def test_the_bytes_put_together_are_those_that_protobuf_writes(
    source: str, content_type: str, network: str, headers: dict[str, str], now_us: int,
    event_id: str, text: str,
) -> None:  # fmt: skip
    caller = Caller(source, network, tuple(headers.items()))
    (record,), _ = judge_each(
        [(text.encode(), b"{}")], lambda _: (event_id, None), content_type, caller, Limits(),
        now_us, "t",
    )  # fmt: skip
    wanted = RawEvent(event_id=event_id, source=source, content_type=content_type, data=text,
                      network=network or None, headers=headers)  # fmt: skip
    wanted.received_at.FromMicroseconds(now_us)
    made = RawEvent.FromString(record.value)
    assert made == wanted
    if len(headers) < 2 and text:  # protobuf writes no field that is empty, and a map in any order
        assert record.value == wanted.SerializeToString(deterministic=True)


# -- untouched -----------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
objects = st.dictionaries(st.text(), values, max_size=5)
written = st.builds(
    lambda value, ascii, indent: json.dumps(value, ensure_ascii=ascii, indent=indent),
    objects.map(lambda o: {**o, "event": "e", "deviceId": "d", "userId": None, "eventId": None,
                           "properties": o, "type": "track", "messageId": None}),
    st.booleans(), st.sampled_from([None, 1]),
)  # fmt: skip


def utf8(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None  # a half of a surrogate pair, not escaped: no UTF-8 has it


encoded = written.map(utf8).filter(lambda b: b is not None)


@given(st.lists(encoded, min_size=1, max_size=4))
def test_every_event_comes_out_byte_for_byte(sent: list[bytes]) -> None:
    """Also those with halves of surrogate pairs, which Hypothesis writes escaped."""
    array = b"[" + b" , ".join(sent) + b"]"
    assert data(events(array)) == sent
    assert data(events(b'{"events": %b}' % array)) == sent
    assert data(call("batch", b'{"batch": %b, "writeKey": "k"}' % array)) == sent
    assert data(events(sent[0])) == data(call("track", sent[0])) == sent[:1]


@pytest.mark.parametrize(
    "text",
    [
        r"\ud83d", r"\udc00", r"\uD83D x", r"\udc00\ud83d", r"\ud83d\ud83d\ude00", r"\ud83d\u0041",
        r"\\\ud83d", r"\\\\\udfff", r"\ude00\ude00", r"\ud83d\\ude00",
    ],
)  # fmt: skip
def test_half_of_a_surrogate_pair_is_let_through_untouched(text: str) -> None:
    one = b'{"event": "%b", "deviceId": "d"}' % text.encode()
    other = b'{"event":"\\ufffd","deviceId":"d"}'
    assert data(events(one)) == [one]
    assert data(events(b"[%b , %b]" % (other, one))) == [other, one]
    assert data(events(b'{"x": "%b", "events": [%b , %b]}' % (text.encode(), other, one))) == [
        other, one,
    ]  # fmt: skip


def test_an_id_with_a_nul_or_half_a_pair_is_refused() -> None:
    for text in (r"\u0000", r"a\u0000", r"\ud83d", r"x\udc00"):
        body = b'{"event": "a", "deviceId": "d", "eventId": "%b"}' % text.encode()
        assert codes(events(body)) == [(0, "invalid")]
    # Text that only looks like it, and a replacement character of the sender's own.
    for text in (r"\\u0000", r"\\ud83d", r"\ufffd", r"\ud83d\ude00"):
        body = b'{"event": "a", "deviceId": "d", "eventId": "%b"}' % text.encode()
        assert events(body).records[0].id == "web:e:" + json.loads(f'"{text}"')


def test_the_same_events_twice_in_a_body_are_not_confused_by_halves_of_pairs() -> None:
    array = b'[{"event":"%b","deviceId":"d"}]'
    body = b'{"x": %b, "events": %b}' % (array % rb"\ud83d", array % rb"\ud83e")
    with pytest.raises(BadBody, match="surrogate"):
        events(body)


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  ", b"{", b"[", b"nonsense", b"1", b'"text"', b"null", b"true", PURCHASE + b"x",
        PURCHASE + PURCHASE, PURCHASE + b"\0", b"[%b,]" % PURCHASE, b"[%b" % PURCHASE,
        b'{"event": NaN, "deviceId": "d"}', b'[{"event": "a", "deviceId": "d", "x": Infinity}]',
        b'{"event": "a", "deviceId": "d", "x": -NaN}', b"{'event': 'a'}",
        b'{"event": "a\nb", "deviceId": "d"}', b'{"event": "a\0b", "deviceId": "d"}',
        b'{"event": "\\x41", "deviceId": "d"}', b'{"event": "a", "deviceId": "d", "x": 01}',
        b'{"event": "a" "deviceId": "d"}', b'{"event": "a", /* c */ "deviceId": "d"}',
        b'{"event": "\\ud83d", "deviceId": "d"', b"\xef\xbb\xbf" + PURCHASE,
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(BadBody) as refusal:
        events(body)
    assert (refusal.value.status, refusal.value.code) == (400, "not_json")
    with pytest.raises(BadBody):
        call("track", body)
    with pytest.raises(BadBody):
        call("batch", body)


@pytest.mark.parametrize(
    "bytes_", [b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xf5\x80\x80\x80", b"\xc0\x80"]
)
def test_what_is_not_utf8_is_refused_as_a_whole(bytes_: bytes) -> None:
    with pytest.raises(BadBody) as refusal:
        events(b'[{"event": "%b", "deviceId": "d"}]' % bytes_)
    assert (refusal.value.status, refusal.value.code) == (400, "not_utf8")


def test_the_good_ones_are_taken_and_the_others_named() -> None:
    bad = [
        b"1", b"[]", b'"x"', b"null", b"{}", b'{"event": ""}', b'{"event": "", "deviceId": "d"}',
        b'{"event": "a"}', b'{"event": "a", "deviceId": ""}', b'{"event": "a", "deviceId": 1}',
        b'{"event": 1, "deviceId": "d"}', b'{"event": "a", "deviceId": "d", "userId": 1}',
        b'{"event": "a", "deviceId": "d", "properties": []}',
        b'{"event": "a", "deviceId": "d", "properties": "x"}',
        b'{"event": "a", "deviceId": "d", "eventId": ""}',
        b'{"event": "a", "deviceId": "d", "eventId": 1}',
        b'{"event": "a", "deviceId": "d", "eventId": "%b"}' % (b"x" * 201),
    ]  # fmt: skip
    good = b'{"event": "a", "deviceId": "d", "eventId": "%b"}' % ("ü" * 200).encode()
    judged = events(b"[" + b",".join([*bad, good]) + b"]")
    assert data(judged) == [good]
    assert [index for index, _ in codes(judged)] == list(range(len(bad)))
    assert {code for _, code in codes(judged)} == {"not_an_object", "invalid"}
    assert "deviceId" in judged.refused[7].reason


def test_no_reason_holds_anything_of_a_value() -> None:
    secret = "s3cret"
    for field in ("event", "deviceId", "userId", "eventId", "properties", "other"):
        for value in ({secret: secret}, [secret], secret * 100, secret):
            body = json.dumps([{"event": "a", "deviceId": "d", field: value}]).encode()
            try:
                said = [refusal.reason for refusal in events(body).refused]
            except BadBody as error:
                said = [error.reason]
            assert secret not in str(said)


def test_what_is_too_large_is_refused_with_its_index() -> None:
    large = b'{"event":"a","deviceId":"d","x":"%b"}' % (b"x" * 900)
    assert codes(events(b"[%b,%b]" % (large, PURCHASE), record_bytes=500)) == [(0, "too_large")]
    # What RawEvent adds counts too: it is the record that has to fit into Kafka.
    size = len(events(large).records[0].value)
    assert codes(events(large, record_bytes=size)) == []
    assert codes(events(large, record_bytes=size - 1)) == [(0, "too_large")]


def test_too_many_events_are_refused_as_a_whole() -> None:
    body = b"[" + b",".join([PURCHASE] * 11) + b"]"
    assert len(events(body, records=11).records) == 11
    with pytest.raises(BadBody) as refusal:
        events(body, records=10)
    assert (refusal.value.status, refusal.value.code) == (413, "too_many")


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    inner = opening * (levels - 1) + "1" + closing * (levels - 1)
    return b'{"event": "a", "deviceId": "d", "x": %b}' % inner.encode()


def test_what_is_too_deep_is_refused_with_its_index() -> None:
    both = b"[%b,%b,%b]" % (nested(64), nested(65), nested(65, '{"a":', "}"))
    assert codes(events(both)) == [(1, "too_deep"), (2, "too_deep")]
    with pytest.raises(BadBody) as refusal:
        events(nested(400_000))
    assert refusal.value.code == "too_deep"


def test_brackets_beside_each_other_and_in_text_are_not_deep() -> None:
    wide = b'{"event": "a", "deviceId": "d", "x": [%b]}' % b",".join([b"[{}]"] * 500)
    text = b'{"event": "a", "deviceId": "d", "x": "%b\\\\", "y": "\\"%b"}' % (
        b"[" * 500,
        b"{" * 500,
    )
    for body in (wide, text):
        assert data(events(body)) == [body]


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(encoded)
def test_depth_is_that_of_the_parsed_value(text: bytes) -> None:
    levels = depth(json.loads(text))
    assert not too_deep(text, levels)
    assert too_deep(text, levels - 1)


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        ("", True), ("application/json", True), ("Application/JSON; charset=UTF-8", True),
        ("text/plain;charset=utf-8", True), ('text/plain; charset="utf-8"', True),
        ("application/vnd.x+json", True), ("application/json; charset=latin-1", False),
        ("application/x-www-form-urlencoded", False), ("multipart/form-data; boundary=x", False),
        ("application/x-protobuf", False),
    ],
)  # fmt: skip
def test_json_and_what_browsers_send_without_a_preflight_is_read(
    content_type: str, taken: bool
) -> None:
    for door in (events, partial(call, "track")):
        if taken:
            assert data(door(PURCHASE, content_type)) == [PURCHASE]
        else:
            with pytest.raises(BadBody) as refusal:
                door(PURCHASE, content_type)
            assert refusal.value.status == 415


# -- Segment -------------------------------------------------------------------------------------


def test_segments_paths_are_its_calls_and_their_first_letters() -> None:
    assert {segment.CALLS[name] for name in "tpsigab"} == {
        "track", "page", "screen", "identify", "group", "alias", "batch",
    }  # fmt: skip
    assert all(segment.CALLS[call] == call for call in set(segment.CALLS.values()))
    assert segment.CALLS["import"] == "batch"
    assert segment.METRICS not in segment.CALLS


def test_a_batch_is_its_messages_without_the_envelope() -> None:
    one = b'{"type":"track","messageId":"m-1","anonymousId":"a"}'
    two = b'{"messageId":"m-2",  "type":"identify", "userId":"u"}'
    body = b'{"batch":[%b,%b],"context":{"ip":"1.2.3.4"},"sentAt":"now","writeKey":"k"}' % (
        one,
        two,
    )
    judged = call("batch", body)
    assert data(judged) == [one, two]
    assert [record.id for record in judged.records] == ["web:e:m-1", "web:e:m-2"]
    assert [record.key for record in judged.records] == [b"a", b"u"]
    assert {parsed(r).content_type for r in judged.records} == {"application/json; segment=batch"}


def test_a_single_message_needs_no_type_because_its_path_says_it() -> None:
    judged = call("identify", b'{"userId": "u", "traits": {}}')
    assert parsed(judged.records[0]).content_type == "application/json; segment=identify"
    assert codes(call("batch", b'{"batch": [{"userId": "u"}, {"type": ""}, {"type": 1}]}')) == [
        (0, "invalid"), (1, "invalid"), (2, "invalid"),
    ]  # fmt: skip


@pytest.mark.parametrize("body", [b"{}", b'{"batch": {}}', b'{"batch": "x"}', b'{"batch": null}'])
def test_a_batch_without_its_array_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody) as refusal:
        call("batch", body)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid")


def test_segments_answer_is_success_unless_everything_is_refused() -> None:
    good, bad = b'{"type": "track"}', b'{"type": 1}'
    assert segment.answer(call("batch", b'{"batch": [%b]}' % good)) == (200, {"success": True})
    assert segment.answer(call("batch", b'{"batch": []}')) == (200, {"success": True})
    status, said = segment.answer(call("batch", b'{"batch": [%b, %b]}' % (good, bad)))
    assert (status, said["success"], said["refused"][0]["index"]) == (200, True, 1)
    status, said = segment.answer(call("batch", b'{"batch": [%b]}' % bad))
    assert (status, said["success"], said["refused"][0]["code"]) == (400, False, "invalid")


def test_the_browser_librarys_settings_lead_back_to_the_collector() -> None:
    said = segment.settings("k", "https://collect.example.com:8443")
    assert said["integrations"]["Segment.io"] == {
        "apiKey": "k", "apiHost": "collect.example.com:8443/v1", "protocol": "https",
    }  # fmt: skip


# -- hostile -------------------------------------------------------------------------------------

pieces = st.lists(
    st.sampled_from([
        b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"\\ud83d", b"\\ude00", b"\\u0000", b"\0",
        b"\xff", b"\xc3", b" ", b"1e999", b"-", b"null", b'"event"', b'"deviceId"', b'"events"',
        b'"batch"', b'"type"', b'"messageId"', b'"eventId"', PURCHASE, b'"' + b"x" * 300 + b'"',
    ]),
    max_size=30,
).map(b"".join)  # fmt: skip


def mutated(body: bytes, at: int, what: bytes) -> bytes:
    at %= len(body) + 1
    return body[:at] + what + body[at + len(what) :]


spoilt = st.builds(
    mutated,
    st.sampled_from([PURCHASE, b"[%b]" % PURCHASE, b'{"events": [%b]}' % PURCHASE,
                     b'{"batch": [{"type": "track", "messageId": "m"}]}']),
    st.integers(0, 1000), st.binary(min_size=1, max_size=3) | pieces,
)  # fmt: skip


@settings(max_examples=500)
@given(st.binary(max_size=100) | pieces | spoilt, st.sampled_from(sorted(DOORS)))
def test_no_door_raises_anything_but_bad_body_and_all_it_takes_is_in_the_body(
    body: bytes, name: str
) -> None:
    try:
        judged = DOORS[name](body, "", WEB, Limits(record_bytes=400, records=5), NOW_US)
    except BadBody as error:
        assert error.status in (400, 413, 415)
        assert re.fullmatch("[a-z0-9_]+", error.code)
        return
    at = 0
    for record in judged.records:
        event = parsed(record)
        text = event.data.encode()
        at = body.index(text, at) + len(text)
        assert isinstance(json.loads(text), dict)
        assert "\0" not in event.data + event.event_id
    assert all(0 <= refusal.index < 10_000 for refusal in judged.refused)


def test_a_body_of_backslashes_or_halves_takes_time_in_proportion_to_its_size() -> None:
    """Each is 4 MiB: in proportion it takes some 0.1 s, with its square hours."""
    for text in (b"\\\\", b"\\ud83d", b"\\u0041", b"[", b"{", b'""'):
        body = b'[{"event": "\\ud83d%b' % (text * (4 * 1024 * 1024 // len(text)))
        began = time.process_time()
        with pytest.raises(BadBody):
            events(body)
        assert time.process_time() - began < 20
