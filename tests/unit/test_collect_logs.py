"""The door for logs: every format gives the same records, each is judged by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from declared import everything
from hypothesis import given
from hypothesis import strategies as st

from ingest.collector.judge import BadBody, Caller, Judged, Limits
from ingest.collector.logs import Logs
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
LIMITS = Limits(record_bytes=2000, records=100, depth=6)
DOOR = Logs(STREAM)
TIME = "2025-06-16T22:50:12.226Z"
DELIMITED = "application/x-protobuf; delimited=true"


def log(n: int, **more: Any) -> dict[str, Any]:
    return {"deviceId": f"d{n}", "timestamp": TIME, **more}


def judge(body: bytes | str | Any, content_type: str = "application/json", key: str = "") -> Judged:
    data = (
        body
        if isinstance(body, bytes)
        else (body.encode() if isinstance(body, str) else json.dumps(body).encode())
    )
    return DOOR.judge(data, content_type, Caller("web"), LIMITS, 0, key)


def refused(body: bytes | str | Any, content_type: str = "application/json") -> BadBody:
    with pytest.raises(BadBody) as raised:
        judge(body, content_type)
    return raised.value


def varint(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


def delimited(*messages: bytes) -> bytes:
    return b"".join(varint(len(m)) + m for m in messages)


def ids(judged: Judged) -> list[bytes | None]:
    return [record.key for record in judged.records]


def test_every_format_gives_the_same_records() -> None:
    logs = [log(n) for n in range(3)]
    lines = "\n".join(map(json.dumps, logs))
    expected = judge(logs)
    assert ids(expected) == [b"d0", b"d1", b"d2"]
    messages = delimited(*(record.value for record in expected.records))
    for body, kind in (
        (lines, "application/x-ndjson"),
        (lines + "\n\n \r\n", "application/jsonl"),
        (lines, "application/json"),
        (lines, "text/plain;charset=UTF-8"),
        (lines, ""),
        (json.dumps(logs, indent=2), "application/json; charset=utf-8"),
        (messages, DELIMITED),
        (messages, 'Application/X-Protobuf ; Delimited="true"'),
        (messages, "application/vnd.google.protobuf"),
    ):
        assert judge(body, kind) == expected, kind


def test_one_object_is_one_record_also_over_several_lines() -> None:
    assert ids(judge(json.dumps(log(1), indent=1))) == [b"d1"]


def test_records_go_to_the_topic_of_the_stream_with_its_key() -> None:
    (record,) = judge(log(7)).records
    assert (record.topic, record.key, record.id) == (STREAM.topic, b"d7", None)
    message = STREAM.message.FromString(record.value)
    assert message.device_id == "d7"


def test_a_bad_record_is_refused_with_its_index_and_the_others_go_on() -> None:
    judged = judge([log(0), {"deviceId": "d1"}, log(2), 5, log(4, nonsense=1)])
    assert ids(judged) == [b"d0", b"d2"]
    assert [r.index for r in judged.refused] == [1, 3, 4]
    assert "timestamp" in judged.refused[0].reason
    assert "not a JSON object" in judged.refused[1].reason
    assert "nonsense" in judged.refused[2].reason


def test_a_bad_line_is_refused_with_its_index_and_the_others_go_on() -> None:
    body = f"{json.dumps(log(0))}\n\n{{oops\n{json.dumps(log(2))}"
    judged = judge(body, "application/x-ndjson")
    assert ids(judged) == [b"d0", b"d2"]
    assert [(r.index, r.code) for r in judged.refused] == [(1, "not_json")]


def test_a_bad_message_is_refused_with_its_index_and_the_others_go_on() -> None:
    good = judge(log(0)).records[0].value
    judged = judge(delimited(good, b"\xff\xff", good, b""), DELIMITED)
    assert len(judged.records) == 2
    assert [r.index for r in judged.refused] == [1, 3]


def test_a_refusal_names_the_field_and_never_the_value() -> None:
    secret = "tell-nobody"
    judged = judge([log(0, timestamp=secret), log(1, deviceId=[secret])])
    assert len(judged.refused) == 2
    for refusal in judged.refused:
        assert secret not in refusal.reason
    assert judged.refused[0].reason.startswith("timestamp")
    year = judge(log(0, timestamp="1800-01-01T00:00:00Z")).refused
    nanos = STREAM.message(device_id="d", timestamp={"seconds": 1, "nanos": -77})
    for refusal in (*year, *judge(delimited(nanos.SerializeToString()), DELIMITED).refused):
        assert refusal.reason.startswith("timestamp: ")
        assert not re.search("5364|77", refusal.reason)


def test_a_record_that_is_too_large_is_refused_alone() -> None:
    judged = judge([log(0), log(1, colo="x" * LIMITS.record_bytes), log(2)])
    assert ids(judged) == [b"d0", b"d2"]
    assert [(r.index, r.code) for r in judged.refused] == [(1, "too_large")]


def test_a_message_that_is_too_large_is_refused_before_it_is_parsed() -> None:
    """Two bytes may be a message inside of it: 2 MiB of them are 2 kB of gzip."""
    good = judge(log(0)).records[0].value
    large = b"\xff" * (LIMITS.record_bytes + 1)
    judged = judge(delimited(good, large, large[1:], good), DELIMITED)
    assert len(judged.records) == 2
    assert [(r.index, r.code) for r in judged.refused] == [(1, "too_large"), (2, "invalid")]


CROWDS: dict[str, Callable[[Any], object]] = {
    "messages": lambda m: m.parts.extend([type(m.part)()] * 20),
    "messages in a map": lambda m: [m.parts_by_name[str(n)].SetInParent() for n in range(20)],
    "texts": lambda m: m.texts.extend([""] * 20),
    "entries of a map": lambda m: m.counts.update({str(n): n for n in range(20)}),
    "a list in a message": lambda m: m.part.tags.update({str(n): n for n in range(19)}),
    "lists in a list": lambda m: [
        part.tags.update({str(n): n for n in range(4)}) for part in (m.parts.add() for _ in "1234")
    ],
    "lists in a map": lambda m: [
        m.parts_by_name[name].tags.update({str(n): n for n in range(4)}) for name in "1234"
    ],
    "a message that holds itself": lambda m: [m.tree.below.add() for _ in range(19)],
    "a tree": lambda m: (
        [branch.below.add() for branch in (m.tree.below.add() for _ in range(4)) for _ in "123"]
        + [m.tree.below.add() for _ in "123"]
    ),
    "JSON": lambda m: m.properties.update({"a": [0] * 16, "b": None}),
}


@pytest.mark.parametrize("crowd", CROWDS)
def test_a_body_of_protobuf_holds_only_so_many_values(crowd: str) -> None:
    """Also where no record is too large: as in JSON it is what they hold in all."""
    stream = everything()
    made: Any = stream.message(id="k")
    made.seen_at.seconds = 1_750_000_000
    CROWDS[crowd](made)
    body = delimited(*[made.SerializeToString()] * 10)
    holds = 10 * 20
    assert len(body) > 2 * holds
    judged = Logs(stream).judge(body, DELIMITED, Caller("web"), Limits(values=holds), 0)
    assert len(judged.records) == 10
    with pytest.raises(BadBody) as raised:
        Logs(stream).judge(body, DELIMITED, Caller("web"), Limits(values=holds - 1), 0)
    assert (raised.value.status, raised.value.code) == (413, "too_many")


@pytest.mark.parametrize("levels", [LIMITS.depth, 800, 200_000])
def test_a_record_that_is_too_deep_is_refused_alone(levels: int) -> None:
    deep = '{"colo":' + "[" * levels + "]" * levels + "}"
    good = json.dumps(log(0))
    for body in (f"[{good},{deep},{good}]", f"{good}\n{deep}\n{good}"):
        try:
            judged = judge(body)
        except BadBody as error:
            # Deeper than the parser goes into (1,000 levels in Python 3.11, some 10,000 in 3.13, as
            # many as the stack takes in 3.14): where the record ends is not known.
            assert (error.status, body[0], levels > 1000) == (400, "[", True)
            continue
        assert len(judged.records) == 2
        assert [(r.index, r.code) for r in judged.refused] == [(1, "too_deep")]


def test_brackets_in_text_are_no_levels() -> None:
    assert not judge(log(0, colo="[" * 50 + "{" * 50)).refused


def test_more_records_than_allowed_is_413() -> None:
    logs = [log(n) for n in range(LIMITS.records + 1)]
    assert len(judge(logs[1:]).records) == LIMITS.records
    lines = "\n".join(map(json.dumps, logs))
    message = judge(log(0)).records[0].value
    for body, kind in (
        (json.dumps(logs), "application/json"),
        (lines, "application/x-ndjson"),
        (delimited(*[message] * len(logs)), DELIMITED),
    ):
        assert refused(body, kind).status == 413


@pytest.mark.parametrize("body", [b"", b" ", b"5", b'"x"', b"null", b"[1", b"{", b"nope", b"[NaN]"])
def test_what_is_no_json_object_or_array_is_400(body: bytes) -> None:
    assert refused(body).status == 400


@pytest.mark.parametrize("body", [b'{"deviceId":"\xff"}', b'\xef\xbb\xbf{"deviceId":"d"}'])
def test_what_is_not_plain_utf8_is_400(body: bytes) -> None:
    assert refused(body).status == 400
    assert refused(body, "application/x-ndjson").status == 400


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "text/csv", "application/x-protobuf",
     "application/x-protobuf; delimited=false", "application/json; charset=latin-1"],
)  # fmt: skip
def test_another_content_type_is_415(kind: str) -> None:
    assert refused(b"{}", kind).status == 415


@pytest.mark.parametrize("cut", range(1, 12))
def test_protobuf_that_breaks_off_is_400_and_nothing_of_it_is_taken(cut: int) -> None:
    good = delimited(judge(log(0)).records[0].value)
    assert refused(good + good[:-cut], DELIMITED).status == 400


@pytest.mark.parametrize("body", [b"\xff" * 5, b"\xff" * 10 + b"\x01", b"\x80"])
def test_a_length_that_is_no_varint_is_400(body: bytes) -> None:
    assert refused(body, DELIMITED).status == 400


def test_an_empty_array_and_an_empty_stream_of_messages_are_no_records() -> None:
    assert judge([]) == Judged([], [])
    assert judge(b"", DELIMITED) == Judged([], [])


def test_an_idempotency_key_names_each_record_by_its_place_in_the_body() -> None:
    judged = judge([log(0), {}, log(2)], key="abc")
    again = judge([log(0), {}, log(2)], key="abc")
    ids = [record.id or "" for record in judged.records]
    assert ids == [record.id for record in again.records]
    assert [name.rpartition(":")[2] for name in ids] == ["0", "2"]
    assert all(name.startswith("web:l:device_state:abc:") for name in ids)


def test_the_same_idempotency_key_names_other_records_in_another_body_or_stream() -> None:
    ids = {judge(body, key=key).records[0].id for key in ("a", "a:b") for body in (log(0), log(1))}
    body = json.dumps(log(0)).encode()
    other = Logs(BUILT_IN["http_test"])
    (record,) = other.judge(body, "", Caller("web"), LIMITS, 0, "a").records
    assert len({*ids, record.id}) == 5


@given(
    st.binary(max_size=200),
    st.sampled_from(["application/json", "application/x-ndjson", DELIMITED, "text/plain"]),
)
def test_any_body_is_judged_or_refused_and_never_a_crash(body: bytes, kind: str) -> None:
    try:
        judged = judge(body, kind)
    except BadBody as bad:
        assert bad.status in (400, 413, 415)
    else:
        indexes = [r.index for r in judged.refused]
        assert indexes == sorted(set(indexes))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=20)
       | st.dictionaries(st.text(), st.text()))  # fmt: skip
def test_any_json_is_judged_record_by_record(value: Any) -> None:
    judged = judge(json.dumps([value, log(1)], allow_nan=False) if _plain(value) else [log(1)])
    assert ids(judged)[-1] == b"d1"


def _plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return False
    return True
