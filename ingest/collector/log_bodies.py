"""A body of logs, cut into its records by what its Content-Type says.

    application/json, text/plain          an object; an array of objects; or objects, one a line
    application/x-ndjson (and the like)   objects, one a line
    application/x-protobuf; delimited=true, application/vnd.google.protobuf
                                          messages, each behind its length as a varint

What is wrong with a record stands in its place; what is wrong with the body is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

from ingest.collector.events import too_deep
from ingest.collector.judge import BadBody, Limits, check_values

__all__ = ["JSON_TYPES", "LINES_TYPES", "PROTOBUF_TYPES", "Wrong", "split", "too_large"]

JSON_TYPES = ("application/json", "text/plain")
LINES_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
PROTOBUF_TYPES = ("application/x-protobuf; delimited=true", "application/vnd.google.protobuf")

_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
# A line that is not blank, from its first character on.
_LINE = re.compile(rb"[^ \t\r\n][^\n]*")
# A varint of a length: 2 GiB is protobuf's own limit for a message.
_LONGEST_VARINT = 5


class Wrong:
    """In the place of a record: why there is none."""

    __slots__ = ("code", "reason")

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason


def split(body: bytes, content_type: str, limits: Limits) -> tuple[Iterator[Any], bool]:
    """The records of a body as they come: values of JSON, or bytes of messages, and which of them.

    In the place of one that is none stands Wrong. Raises BadBody.
    """
    kind, delimited = _kind(content_type)
    if kind in JSON_TYPES or kind in LINES_TYPES:
        if not body.isascii():
            _require_utf8(body)
        check_values(body, limits)
        deep = _most_levels(body) > limits.depth
        opens = body.lstrip(b" \t\r\n")[:1]
        if kind in LINES_TYPES or (opens == b"{" and _is_lines(body)):
            return _lines(body, limits, check_depth=deep), False
        return _document(body, opens, limits, check_depth=deep), False
    if delimited:
        return _delimited(body, limits), True
    if kind == "application/x-protobuf":
        raise BadBody(
            415,
            "media_type",
            "a body of protobuf must say delimited=true in its Content-Type, and have each "
            "message behind its length as a varint",
        )
    raise BadBody(
        415, "media_type",
        f"the Content-Type must be one of {', '.join(JSON_TYPES + LINES_TYPES)}, "
        f"{', '.join(PROTOBUF_TYPES)}",
    )  # fmt: skip


def too_large(limits: Limits) -> Wrong:
    return Wrong("too_large", f"a record may have {limits.record_bytes} bytes")


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
            yield Wrong("not_json", f"is not JSON: {error.msg}")


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


def _too_deep(limits: Limits) -> Wrong:
    return Wrong("too_deep", f"a record may have {limits.depth} levels")


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
        body[first:last] if last - first <= most else too_large(limits) for first, last in spans
    )
