"""Requests around bodies: paths, methods, headers, encodings and lies about them.

What a server refuses by itself (a header with a line break, a Content-Length that is no number) is
not made here: tests/fuzz/wires.py sends that to a real one.
"""

from __future__ import annotations

import base64
import gzip
import random
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import zstandard
from fuzz.bodies import Bodies, mutated

__all__ = ["Call", "make"]

_TYPES = (
    "application/json", "text/plain", "text/plain;charset=UTF-8", "application/x-ndjson", "",
    "application/x-protobuf", "application/x-protobuf; delimited=true", "application/octet-stream",
    "application/vnd.google.protobuf", "application/json; charset=utf-16", "APPLICATION/JSON",
    "application/json; charset=\"utf-8\"", "multipart/form-data; boundary=x", ";", ";;=", "\xff",
    "application/cloudevents+json", "application/json;charset", "a" * 5000,
)  # fmt: skip
_PATHS = (
    "/", "", "/v1/logs/", "/v1/logs/none", "/v1/logs/raw_events", "/v1", "/v1/track/",
    "//v1/events", "/healthz", "/readyz", "/openapi.json", "/sparrow.js",
    "/v1/projects/k/settings", "/v1/projects/", "/v1/projects//settings", "/v1/m", "*",
    "/v1/logs/device_state/x", "/\x00", "/ключ", "/\ufffd",
    "/v1/projects/" + "x" * 3000 + "/settings", "/metrics",
)  # fmt: skip
_ORIGINS = (
    "https://a.example",
    "https://b.example",
    "null",
    "HTTPS://A.EXAMPLE",
    "",
    "\xff",
    "x" * 900,
)
_QUERIES = (
    b"ack=kafka", b"ack=disk", b"ack=", b"ack", b"ack=kafka&ack=disk", b"ack=no", b"%", b"%ff=%00",
    b"&&&=", b"a=" + b"b" * 2000, b"ack=%6bafka", b"\xff=\xff", b";",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "post", "X")


class Call(NamedTuple):
    """One request, as ASGI has it."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    # The body in pieces, and whether the client goes away behind them.
    parts: list[bytes]
    gone: bool
    # What the body was before it was packed, where that is known.
    plain: bytes

    @property
    def body(self) -> bytes:
        """All pieces."""
        return b"".join(self.parts)


def make(rng: random.Random, bodies: Bodies, paths: Mapping[str, str]) -> Call:
    """A request; `paths` are those of the doors, with what each is for."""
    door = rng.choice(("logs", "logs", "sparrow", "segment"))
    path, kind = rng.choice([pair for pair in paths.items() if pair[1].startswith(door)])
    content_type = "application/json"
    if kind == "sparrow":
        body = bodies.sparrow()
    elif kind.startswith("segment:"):
        body = bodies.segment(kind.removeprefix("segment:"))
    else:
        body, content_type = bodies.logs(kind.removeprefix("logs:"))
    dice = rng.random()
    if dice < 0.20:
        body = mutated(body, rng)
    elif dice < 0.22:
        body = bodies.deep()
    elif dice < 0.24:
        body = bodies.wide()
    elif dice < 0.25:
        body = rng.randbytes(rng.choice((0, 1, 3, 40, 400)))
    if rng.random() < 0.05:
        content_type = rng.choice(_TYPES)
    method = "POST"
    if rng.random() < 0.02:
        method = rng.choice(_METHODS)
    if rng.random() < 0.02:
        path = rng.choice(_PATHS)
        method = rng.choice(("GET", "GET", "POST", method))
    headers: list[tuple[bytes, bytes]] = [(b"host", b"collect.example.com")]
    if content_type:
        headers.append((b"content-type", content_type.encode("latin-1")))
    packed, encoding = _packed(rng, body) if rng.random() < 0.25 else (body, None)
    if encoding is not None:
        headers.append((b"content-encoding", encoding))
    if rng.random() < 0.85:
        said = len(packed)
        if rng.random() < 0.01:
            said = rng.choice((0, said + 1, max(0, said - 1), 10**12))
        headers.append((b"content-length", b"%d" % said))
    _more_headers(rng, headers)
    if rng.random() < 0.03:
        rng.shuffle(headers)
    query = rng.choice(_QUERIES) if rng.random() < 0.05 else b""
    gone = rng.random() < 0.01
    return Call(method, path, query, headers, _parts(rng, packed), gone, body)


def _more_headers(rng: random.Random, headers: list[tuple[bytes, bytes]]) -> None:
    dice = rng.random()
    if dice < 0.75:
        headers.append((b"authorization", b"Bearer KEY-A"))
    elif dice < 0.88:
        headers.append((b"authorization", b"Basic " + base64.b64encode(b"KEY-B:")))
    elif dice < 0.95:
        headers.append((b"authorization", rng.choice((
            b"Bearer KEY-C", b"Bearer KEY-R", b"Bearer wrong", b"Bearer", b"", b"Basic", b"Basic !",
            b"Basic " + base64.b64encode(b":"), b"\xff\xff", b"Bearer " + b"x" * 5000, b"Digest a",
            b"Basic " + base64.b64encode(b"\xff:\x00"), b"Bearer \xc3\xa9", b"bearer KEY-A",
        ))))  # fmt: skip
    if rng.random() < 0.02:
        headers.append((b"authorization", b"Bearer KEY-A"))
    if rng.random() < 0.06:
        headers.append((b"origin", rng.choice(_ORIGINS).encode("latin-1")))
    if rng.random() < 0.05:
        headers.append((b"access-control-request-method", b"POST"))
        headers.append((b"access-control-request-private-network", b"true"))
    if rng.random() < 0.08:
        headers.append((b"idempotency-key", rng.choice((
            b"a", b"0197-aa", b"x" * 200, b"x" * 201, b"", b" ", b"\xff", b"a:b:c",
        ))))  # fmt: skip
    if rng.random() < 0.05:
        headers.append((b"x-forwarded-for", rng.choice((
            b"203.0.113.9", b"1.2.3.4, 127.0.0.1", b"::ffff:1.2.3.4", b"", b",,,", b"\xff",
            b"fe80::1%eth0", b"999.1.1.1", b"1.2.3.4," * 400,
        ))))  # fmt: skip
    if rng.random() < 0.1:
        headers.append((b"user-agent", rng.choice((b"curl/8", b"\xff\xfe", b"", b"x" * 3000))))
    if rng.random() < 0.02:
        headers.append((b"if-none-match", rng.choice((b"*", b'"a"', b"", b"\xff"))))


def _packed(rng: random.Random, body: bytes) -> tuple[bytes, bytes]:
    """The body in some encoding, or not in the one that is named."""
    names = (b"gzip", b"zstd", b"x-gzip", b"identity", b"GZIP", b" gzip ", b"br", b"gzip, gzip",
             b"", b"deflate", b"\xff")  # fmt: skip
    packers: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
        (b"gzip", lambda b: gzip.compress(b, 1)),
        (b"gzip", lambda b: gzip.compress(b[:9], 1) + gzip.compress(b[9:], 1)),
        (
            b"gzip",
            lambda b: gzip.compress(b"", 1) * rng.choice((1, 50, 1200)) + gzip.compress(b, 1),
        ),
        (b"zstd", _ZSTD.compress),
        (b"zstd", _UNSIZED.compress),
        (b"zstd", lambda b: _CHECKED.compress(b) + rng.choice((b"", _ZSTD.compress(b)))),
        (b"deflate", lambda b: zlib.compress(b, 1)),
        (b"gzip", lambda b: gzip.compress(gzip.compress(b, 1), 1)),
        # Bombs: what no limit of ours lets through.
        (b"gzip", lambda _: _BOMB_GZIP),
        (b"zstd", lambda _: _BOMB_ZSTD),
        # A skippable frame, and a window that nobody gives.
        (b"zstd", lambda b: b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + _ZSTD.compress(b)),
        (b"zstd", lambda b: b"\x28\xb5\x2f\xfd\x00\xf8" + _ZSTD.compress(b)[6:]),
    )
    weights = (8, 3, 1, 8, 4, 2, 1, 1, 1, 1, 1, 1)
    name, pack = rng.choices(packers, weights)[0]
    packed = pack(body)
    if rng.random() < 0.2:
        packed = mutated(packed, rng)
    if rng.random() < 0.15:
        name = rng.choice(names)
    return packed, name


_ZSTD = zstandard.ZstdCompressor(level=1)
_UNSIZED = zstandard.ZstdCompressor(level=1, write_content_size=False)
_CHECKED = zstandard.ZstdCompressor(level=1, write_checksum=True)
_BOMB_GZIP = gzip.compress(b" " * 2_000_000, 9)
_BOMB_ZSTD = _UNSIZED.compress(b" " * 2_000_000)


def _parts(rng: random.Random, body: bytes) -> list[bytes]:
    if rng.random() < 0.8:
        return [body]
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(1, 5)))
    return [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
