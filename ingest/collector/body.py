"""A request's body: read within limits, unpacked within limits.

* A body that says it is too long is refused before any of it is read, one that turns out to be when
  it reaches the limit. So that its sender hears of it the rest is read, and dropped.
* gzip and zstd. What comes out is bounded while it comes out: a bomb costs at most the limit.
* A body that breaks off, or goes on behind its end, is refused: what was meant is not known.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import zstandard

from ingest.collector.judge import BadBody, Limits

__all__ = ["ENCODINGS", "Gone", "Receive", "drop", "read", "unpack"]

ENCODINGS = ("gzip", "zstd")

Receive = Callable[[], Awaitable[dict[str, Any]]]

_MOST_MEMBERS = 1_000
# What a zstd frame may ask a reader to keep in memory: what RFC 8878 tells every reader to allow.
_ZSTD_WINDOW = 8 * 1024**2


class Gone(Exception):
    """The client went away before its body was here."""


async def read(receive: Receive, length: int, limits: Limits) -> bytes:
    """The body as it came. `length` is its Content-Length, -1 without one.

    Raises BadBody(413), Gone.
    """
    if length > limits.body_bytes:
        raise _too_large(limits.body_bytes, unread=True)
    message = await receive()
    body: bytes = message.get("body", b"")
    # The usual case. To ask for the end of what has all come costs another turn of the loop.
    if len(body) == length and message["type"] == "http.request":
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body"):
        # The first part may be as much already: who sent it may wait for its answer.
        if size > limits.body_bytes:
            raise _too_large(limits.body_bytes, unread=True)
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if 0 <= length < size:
            raise Gone  # more than was counted for it
        parts.append(part)
    if message["type"] == "http.disconnect" or 0 <= length != size:
        raise Gone
    if size > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    return b"".join(parts)


async def drop(receive: Receive, most: int) -> None:
    """Read what is left of a body and keep nothing of it, until it ends or so much has come."""
    more = True
    while more and most > 0:
        message = await receive()
        most -= len(message.get("body", b""))
        more = message.get("more_body", False)


def unpack(encoding: str, body: bytes, limits: Limits) -> bytes:
    """The body behind a Content-Encoding. Raises BadBody: 415, 413, 400."""
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _gunzip(body, limits.decoded_bytes)
        case "zstd":
            return _unzstd(body, limits.decoded_bytes)
    raise BadBody(
        415, "encoding", f"the Content-Encoding must be {' or '.join(ENCODINGS)}, or none"
    )


def _gunzip(body: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    # A gzip file may have several members, one behind the other. What is behind each is copied, so
    # 4 MiB of empty ones would be 400 GB of copies.
    for _ in range(_MOST_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        try:
            part = member.decompress(body, limit - size + 1)
        except zlib.error:
            raise BadBody(400, "not_gzip", "the body is not gzip, or damaged") from None
        size += len(part)
        if size > limit:
            raise _bomb(limit)
        if not member.eof:
            raise BadBody(400, "truncated", "the body breaks off: its gzip has no end")
        parts.append(part)
        body = member.unused_data
        if not body:
            return b"".join(parts)
    raise BadBody(400, "not_gzip", f"a body of gzip may have {_MOST_MEMBERS} members")


def _unzstd(body: bytes, limit: int) -> bytes:
    unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        with unpacker.stream_reader(body) as stream:
            if len(stream.read(limit + 1)) > limit:
                raise _bomb(limit)
        # Unpacked a second time, now that its size is known to be no trouble: this one has no limit
        # of its own, but says whether the frame came to its end and what is behind it.
        frame = unpacker.decompressobj()
        found = frame.decompress(body)
    except zstandard.ZstdError:
        raise BadBody(
            400, "not_zstd", "the body is not zstd with a window of at most 8 MiB, or damaged"
        ) from None
    if not frame.eof:
        raise BadBody(400, "truncated", "the body breaks off: its zstd has no end")
    if frame.unused_data:
        raise BadBody(400, "not_zstd", "the body goes on behind the end of its zstd frame")
    return found


def _too_large(limit: int, *, unread: bool = False) -> BadBody:
    return BadBody(
        413,
        "body_too_large",
        f"the body is larger than {limit:,} bytes; send less at once",
        unread=unread,
    )


def _bomb(limit: int) -> BadBody:
    return BadBody(
        413,
        "decoded_too_large",
        f"the body unpacks to more than {limit:,} bytes; send less at once",
    )
