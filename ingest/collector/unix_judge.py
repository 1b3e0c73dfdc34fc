"""What the socket says of a frame: it is a record for the spool, or refused by its number.

The stream's own rules decide what is good (ingest/admission.py). A record's Kafka key is taken from
the message. Product events are no logs: of a RawEvent the collector itself says who sent it and
when it came, so that nobody can send one ready-made; they have doors of their own over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from google.protobuf.message import Message

from ingest.admission import Admission
from ingest.collector.doors import EVENTS, NOT_LOGS
from ingest.scalars import RecordError
from ingest.socket_protocol import Frame, Refusal
from ingest.spool.frames import Record
from ingest.streams import Stream

__all__ = ["Allowed", "Judge"]

# The source of who sends without a key.
_LOCAL = "unix"


class Allowed(Protocol):
    """What is needed of a Key."""

    @property
    def source(self) -> str: ...
    def allows_stream(self, stream: str) -> bool: ...


class _Route(NamedTuple):
    topic: str
    parse: Callable[[bytes], Message]
    admit: Callable[[Message], tuple[bytes, bytes]]


class Judge:
    """For all connections; a record may have `record_bytes` with its key."""

    def __init__(self, streams: Mapping[str, Stream], record_bytes: int) -> None:
        self._record_bytes = record_bytes
        self._routes: dict[str, _Route] = {}
        for name, stream in streams.items():
            if name not in NOT_LOGS:
                admission = Admission(stream)
                self._routes[name] = _Route(stream.topic, admission.parse, admission.admit)

    def judge(self, frame: Frame, prefix: str, key: Allowed | None) -> Record | Refusal:
        """The frame as a record whose id is `prefix` and its number; `key` is its sender's."""
        seq, name, value = frame
        route = self._routes.get(name)
        if route is None:
            return self._unknown(seq, name)
        if key is not None and not key.allows_stream(name):
            return Refusal(seq, "stream_not_allowed", f"the key is not for stream {name}")
        try:
            kafka_key, _ = route.admit(route.parse(value))
        except RecordError as error:
            return Refusal(seq, "invalid", str(error))
        size, most = len(kafka_key) + len(value), self._record_bytes
        if size > most:
            return Refusal(seq, "too_large", f"has {size:,} bytes with its key; {most:,} are taken")
        source = _LOCAL if key is None else key.source
        return Record(route.topic, kafka_key, value, f"{prefix}{seq}", source)

    def _unknown(self, seq: int, name: str) -> Refusal:
        if name == EVENTS:
            return Refusal(
                seq, "not_logs", f"{EVENTS} holds product events, and the collector itself says "
                "who sent one and when it came: send the event over HTTP, with Sparrow or to "
                "/v1/events",
            )  # fmt: skip
        streams = ", ".join(self._routes)
        return Refusal(
            seq, "unknown_stream", f"the collector has no stream {name!r}; it has: {streams}"
        )
