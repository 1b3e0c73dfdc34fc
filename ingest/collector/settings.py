"""The collector's settings: [collect] in headrace.toml, and what the command line changes of it.

    [collect]
    spool = "spool"                  # directory; each worker has one of its own in it
    listen = "127.0.0.1:8080"
    workers = 1
    keys = "keys.json"               # without it only this machine may send
    origins = []                     # web pages that may send without a key, as in "http://localhost:3000"
    socket = "headrace.sock"         # without it, no unix socket
    tls_cert = "cert.pem"            # certificate chain and key; without them, no TLS
    tls_key = "key.pem"
    http2 = "tls"                    # beside HTTP/1.1: only over TLS; "always"; "never"
    metrics = "127.0.0.1:9464"       # without it /metrics is at `listen`, for this machine
    store_network = false            # keep senders' addresses with events, truncated to /24 and /48
    store_headers = []               # keep these headers with events, as in ["user-agent"]
    forwarded = []                   # networks of proxies whose X-Forwarded-For is believed

and the figures of `CollectSettings`, under their names. Paths are relative to the file.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ingest.collector import judge
from ingest.collector.key import plain_origin
from ingest.spool.store import Limits as SpoolLimits

__all__ = ["CollectError", "CollectSettings", "from_table", "host_and_port", "nearby"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_SPOOL = SpoolLimits()
# When HTTP/2 is spoken.
HTTP2 = ("tls", "always", "never")
_BYTES = (1024, 2**50)
_COUNT = (1, 10**9)
_TIME = (0.1, 3600)
_RANGES: Mapping[str, tuple[float, float]] = {
    "workers": (1, 64),
    "max_body_bytes": _BYTES,
    "max_decoded_bytes": _BYTES,
    "max_record_bytes": _BYTES,
    "max_spool_bytes": _BYTES,
    "max_records": _COUNT,
    "max_depth": _COUNT,
    "max_connections": _COUNT,
    "ids_window": _COUNT,
    "ids_window_s": (1, 10**9),
    "header_timeout_s": _TIME,
    "body_timeout_s": _TIME,
    "kafka_timeout_s": _TIME,
    "stop_timeout_s": _TIME,
}
# These hold keys, or as good as: never kept.
_SECRET_HEADERS = {"authorization", "cookie", "proxy-authorization"}


class CollectError(Exception):
    """The collector can't start with these settings, or at this place; the text says what to do."""


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """What a collector needs to know but for Kafka and the streams. Sizes in bytes."""

    spool: Path | None = None
    listen: str = "127.0.0.1:8080"
    workers: int = 1
    keys: Path | None = None
    origins: tuple[str, ...] = ()
    socket: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # One of HTTP2.
    http2: str = "tls"
    metrics: str | None = None
    store_network: bool = False
    store_headers: tuple[str, ...] = ()
    forwarded: tuple[str, ...] = ()
    # A request: as it comes, unpacked; one record of it; how many; how deep its JSON.
    max_body_bytes: int = 4 * 1024**2
    max_decoded_bytes: int = 16 * 1024**2
    max_record_bytes: int = 900_000
    max_records: int = 10_000
    max_depth: int = 64
    # All requests of a worker that are being read or wait for the disk.
    max_inflight_bytes: int = 128 * 1024**2
    # Connections of a worker; more wait until one is closed.
    max_connections: int = 1024
    # A client that takes longer to send its headers, its body.
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    # How long ?ack=kafka waits.
    kafka_timeout_s: float = 10.0
    # A stop: requests under way, and then the relay, have so long each.
    stop_timeout_s: float = 5.0
    # A worker's spool, and how long, or for how many further ids, an id is known.
    max_spool_bytes: int = _SPOOL.max_bytes
    ids_window_s: float = _SPOOL.window_s
    ids_window: int = _SPOOL.window_ids

    @property
    def limits(self) -> judge.Limits:
        """What the doors need of it."""
        return judge.Limits(
            self.max_body_bytes, self.max_decoded_bytes, self.max_record_bytes, self.max_records,
            self.max_depth,
        )  # fmt: skip

    @property
    def spool_limits(self) -> SpoolLimits:
        """What a spool needs of it."""
        return SpoolLimits(self.max_spool_bytes, self.ids_window_s, self.ids_window)

    @property
    def speaks_http2(self) -> bool:
        """Whether a connection may be HTTP/2."""
        return self.http2 == "always" or (self.http2 == "tls" and self.tls_cert is not None)

    @property
    def silence_s(self) -> float:
        """What no client needs that means well: a request waits for its headers, then its body,
        then Kafka."""
        return self.header_timeout_s + self.body_timeout_s + self.kafka_timeout_s

    @property
    def proxies(self) -> tuple[Network, ...]:
        """`forwarded`, as networks."""
        return tuple(ipaddress.ip_network(text) for text in self.forwarded)

    def with_options(self, **given: Any) -> CollectSettings:
        """The same with what is not None of `given`, checked. Raises CollectError."""
        return _checked(replace(self, **{k: v for k, v in given.items() if v is not None}))


def from_table(table: Mapping[str, Any], base: Path) -> CollectSettings:
    """[collect] of headrace.toml; paths are relative to `base`. Raises CollectError."""
    known = {field.name: field for field in fields(CollectSettings)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise CollectError(f"collect.{name} is no setting; known: {', '.join(sorted(known))}")
        kind = str(known[name].type)
        if kind.startswith("Path"):
            right, values[name] = isinstance(value, str), base / str(value)
        elif kind.startswith("tuple"):
            right = isinstance(value, list) and all(isinstance(v, str) for v in value)
            values[name] = tuple(value) if right else ()
        elif kind == "float":
            right = isinstance(value, int | float) and not isinstance(value, bool)
            values[name] = value
        else:
            wanted: type = {"int": int, "bool": bool}.get(kind, str)
            right = type(value) is wanted
            values[name] = value
        if not right:
            words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
            what = words.get(kind, "a list of text" if kind.startswith("tuple") else "text")
            raise CollectError(f"collect.{name} = {value!r} must be {what}")
    return _checked(CollectSettings(**values))


def host_and_port(address: str, setting: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT or :PORT (all interfaces). Raises CollectError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CollectError(f"{setting} {address!r} must be HOST:PORT, e.g. 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)  # noqa: S104 (meant)


def nearby(host: str) -> str:
    """Where this machine itself reaches who listens at a host, or at all of them."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (looked up, not bound)


def _checked(found: CollectSettings) -> CollectSettings:
    host_and_port(found.listen, "listen")
    if found.metrics is not None:
        host_and_port(found.metrics, "metrics")
    if (found.tls_cert is None) != (found.tls_key is None):
        raise CollectError("tls_cert and tls_key go together: give both, or none")
    for name, (least, most) in _RANGES.items():
        if not least <= getattr(found, name) <= most:
            raise CollectError(
                f"{name} = {getattr(found, name)} must be {least:,} at least and {most:,} at most"
            )
    # As browsers and ASGI write them.
    found = replace(
        found,
        origins=tuple(map(plain_origin, found.origins)),
        store_headers=tuple(name.lower() for name in found.store_headers),
    )
    if found.max_inflight_bytes < max(found.max_decoded_bytes, found.max_body_bytes):
        raise CollectError(
            "max_inflight_bytes must have room for one request: max_body_bytes, max_decoded_bytes"
        )
    if found.http2 not in HTTP2:
        raise CollectError(f"http2 = {found.http2!r} must be one of {', '.join(HTTP2)}")
    for origin in found.origins:
        if not _ORIGIN.fullmatch(origin):
            raise CollectError(f"origins: {origin!r} must be http(s)://host or with :port, no path")
    for name in found.store_headers:
        if not _HEADER.fullmatch(name) or name in _SECRET_HEADERS:
            raise CollectError(
                f"store_headers: {name!r} can't be kept: no name of a header, or it holds a key"
            )
    try:
        found.proxies  # noqa: B018 (for what it raises)
    except ValueError as error:
        raise CollectError(f"forwarded: {error}") from error
    return found
