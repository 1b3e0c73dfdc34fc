"""The door for logs, POST /v1/logs/{stream}: a body as records of a stream, each judged by itself.

    application/json, text/plain          an object; an array of objects; or objects, one a line
    application/x-ndjson (and the like)   objects, one a line
    application/x-protobuf; delimited=true, application/vnd.google.protobuf
                                          messages, each behind its length as a varint

JSON is mapped as ingest/mapping.py says, and what no destination could hold is refused, as
ingest/admission.py says: the same rules as a Publisher's. Indexes count records, from 0; blank
lines are none.

A log has no id of its own. Where the request has an Idempotency-Key, a record's id is the stream,
that key, a digest of the body and the record's index: so the same request again is stored once, and
another body under the same key, a client's mistake, is stored too and not taken for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson

from ingest.admission import Admission
from ingest.collector.crowd import Count, counter
from ingest.collector.events import too_deep
from ingest.collector.judge import (
    BadBody,
    Caller,
    Judged,
    Limits,
    Refusal,
    check_values,
    too_many_values,
)
from ingest.mapping import mapper
from ingest.scalars import RecordError
from ingest.spool.frames import Record
from ingest.streams import Stream

__all__ = ["JSON_TYPES", "LINES_TYPES", "PROTOBUF_TYPES", "Logs"]

JSON_TYPES = ("application/json", "text/plain")
LINES_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
PROTOBUF_TYPES = ("application/x-protobuf; delimited=true", "application/vnd.google.protobuf")

_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
# A line that is not blank, from its first character on.
_LINE = re.compile(rb"[^ \t\r\n][^\n]*")
_LONGEST_REASON = 300
# Of a body, in an id.
_DIGEST_BYTES = 16
# A varint of a length: 2 GiB is protobuf's own limit for a message.
_LONGEST_VARINT = 5

# What a record is as it comes: its JSON, or the bytes of its message.
_Make = Callable[[Any], tuple[bytes, bytes]]


class Logs:
    """The door of one stream; `judge` is pure."""

    def __init__(self, stream: Stream) -> None:
        self._topic = stream.topic
        self._name = stream.name
        admission = Admission(stream)
        convert, admit, parse = mapper(stream.descriptor), admission.admit, admission.parse
        self._of_json: _Make = lambda value: admit(convert(value))
        self._of_message: _Make = lambda data: admit(parse(data))
        self._admission = admission
        self._count = counter(stream.descriptor)

    def judge(
        self,
        body: bytes,
        content_type: str,
        caller: Caller,
        limits: Limits,
        now_us: int,
        idempotency_key: str = "",
    ) -> Judged:
        """A body as records of the stream's topic. Raises BadBody."""
        kind, delimited = _kind(content_type)
        make = self._of_json
        items: Iterator[Any]
        if kind in JSON_TYPES or kind in LINES_TYPES:
            if not body.isascii():
                _require_utf8(body)
            check_values(body, limits)
            deep = _most_levels(body) > limits.depth
            opens = body.lstrip(b" \t\r\n")[:1]
            if kind in LINES_TYPES or (opens == b"{" and _is_lines(body)):
                items = _lines(body, limits, check_depth=deep)
            else:
                items = _document(body, opens, limits, check_depth=deep)
        elif delimited:
            make, items = self._of_message, _delimited(body, limits)
            # Each takes two bytes at least.
            if self._count is not None and len(body) > 2 * limits.values:
                make = self._counted(self._count, limits)
        elif kind == "application/x-protobuf":
            raise BadBody(
                415,
                "media_type",
                "a body of protobuf must say delimited=true in its Content-Type, and have each "
                "message behind its length as a varint",
            )
        else:
            raise BadBody(
                415, "media_type",
                f"the Content-Type must be one of {', '.join(JSON_TYPES + LINES_TYPES)}, "
                f"{', '.join(PROTOBUF_TYPES)}",
            )  # fmt: skip
        prefix = ""
        if idempotency_key:
            # A stream's name has no colon, and what stands behind the key is of a fixed form: two
            # ids are the same only where all their parts are. Events have `:e:` (events.py).
            digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()
            prefix = f"{caller.source}:l:{self._name}:{idempotency_key}:{digest}:"
        return self._each(items, make, limits, prefix, caller.source)

    def _counted(self, count: Count, limits: Limits) -> _Make:
        """Of a message, for one body: raises BadBody at the record with which it holds too much."""
        admission, left = self._admission, limits.values

        def make(data: bytes) -> tuple[bytes, bytes]:
            nonlocal left
            message = admission.parse(data)
            left -= count(message)
            if left < 0:
                raise too_many_values(limits)
            return admission.admit(message)

        return make

    def _each(
        self, items: Iterator[Any], make: _Make, limits: Limits, prefix: str, source: str
    ) -> Judged:
        topic, most = self._topic, limits.record_bytes
        records: list[Record] = []
        refused: list[Refusal] = []
        for index, item in enumerate(items):
            if index >= limits.records:
                raise BadBody(
                    413,
                    "too_many",
                    f"a request may have {limits.records} records; send less at once",
                )
            if isinstance(item, _Wrong):
                refused.append(Refusal(index, item.code, item.reason))
                continue
            try:
                key, value = make(item)
            except RecordError as error:
                refused.append(Refusal(index, "invalid", _said(error)))
                continue
            if len(value) + len(key) > most:
                wrong = _too_large(limits)
                refused.append(Refusal(index, wrong.code, wrong.reason))
                continue
            name = f"{prefix}{index}" if prefix else None
            records.append(Record(topic, key, value, name, source))
        return Judged(records, refused)


class _Wrong:
    """In the place of a record: why there is none."""

    __slots__ = ("code", "reason")

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason


def _kind(content_type: str) -> tuple[str, bool]:
    """The media type without its parameters, and whether it is delimited protobuf."""
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip() or "application/json"
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]*)", parameters)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise BadBody(415, "media_type", "the body must be UTF-8")
    delimited = kind == "application/vnd.google.protobuf" or (
        kind == "application/x-protobuf"
        and re.search(r"delimited\s*=\s*\"?true\b", parameters) is not None
    )
    return kind, delimited


def _require_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadBody(400, "not_utf8", f"the body is not UTF-8 (byte {error.start})") from None
    if body.startswith(b"\xef\xbb\xbf"):
        raise BadBody(400, "not_json", "the body begins with a byte order mark")


def _most_levels(body: bytes) -> int:
    """No JSON in the body has more levels than that: how many brackets open."""
    return len(body) - len(body.replace(b"{", b"").replace(b"[", b""))


def _is_lines(body: bytes) -> bool:
    """Whether a body that opens with a brace is objects, one a line: its first line is one."""
    first, newline, rest = body.lstrip(b" \t\r\n").partition(b"\n")
    if not newline or not rest.strip(b" \t\r\n"):
        return False
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return True


def _lines(body: bytes, limits: Limits, *, check_depth: bool) -> Iterator[Any]:
    # Found one by one: a body may be nothing but empty lines.
    for found in _LINE.finditer(body):
        line = found[0]
        if check_depth and too_deep(line, limits.depth):
            yield _too_deep(limits)
            continue
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield _Wrong("not_json", f"is not JSON: {error.msg}")


def _document(body: bytes, opens: bytes, limits: Limits, *, check_depth: bool) -> Iterator[Any]:
    """An object or an array; what is wrong with the document is raised before the first record."""
    if opens not in (b"{", b"["):
        raise BadBody(
            400,
            "not_json",
            "the body must be a JSON object, an array of objects, or one object a line",
        )
    if check_depth and too_deep(body, limits.depth + (opens == b"[")):
        return _deep_document(body, opens, limits)
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadBody(400, "not_json", f"the body is not JSON: {error.msg}") from None
    return iter(found) if opens == b"[" else iter((found,))


def _deep_document(body: bytes, opens: bytes, limits: Limits) -> Iterator[Any]:
    """The same, where something in it is too deep: for a parser too, perhaps."""
    parts: list[bytes] = [body]
    if opens == b"[":
        try:
            parts = list(map(bytes, _raw_list(body)))
        except (msgspec.DecodeError, RecursionError):
            raise BadBody(400, "not_json", "the body is not JSON, or far too deep") from None

    def each() -> Iterator[Any]:
        for part in parts:
            yield from _lines(part.replace(b"\n", b" "), limits, check_depth=True)

    return each()


def _too_deep(limits: Limits) -> _Wrong:
    return _Wrong("too_deep", f"a record may have {limits.depth} levels")


def _delimited(body: bytes, limits: Limits) -> Iterator[Any]:
    """Messages behind their lengths; a body that breaks off is refused as a whole.

    One that is too large is not even parsed: two bytes may be a message inside of it.
    """
    spans: list[tuple[int, int]] = []
    at, end = 0, len(body)
    while at < end:
        size = shift = 0
        for place in range(at, min(at + _LONGEST_VARINT, end)):
            size |= (body[place] & 0x7F) << shift
            shift += 7
            if body[place] < 0x80:
                at = place + 1
                break
        else:
            raise BadBody(400, "truncated", "a length in the body is no varint, or breaks off")
        if size > end - at:
            raise BadBody(400, "truncated", "the body breaks off within a message")
        if len(spans) == limits.records:
            raise BadBody(
                413, "too_many", f"a request may have {limits.records} records; send less at once"
            )
        spans.append((at, at + size))
        at += size
    most = limits.record_bytes
    return (
        body[first:last] if last - first <= most else _too_large(limits) for first, last in spans
    )


def _too_large(limits: Limits) -> _Wrong:
    return _Wrong("too_large", f"a record may have {limits.record_bytes} bytes")


def _said(error: RecordError) -> str:
    """What is wrong, without the value: a reason's form is `what: value` (ingest/scalars.py)."""
    what = error.reason.partition(": ")[0]
    # A name that is none of ours may be as long as a record.
    return (f"{error.field}: {what}" if error.field else what)[:_LONGEST_REASON]
