"""The application without a socket and with a spool in memory, and what must hold after each call.

What is looked for: an answer of 5xx that nobody stated, an exception in the log, an answer that the
interface does not know, a record that was kept of a request that was refused, one that no reader
could read, and an event that is not byte for byte what was sent.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import zstandard
from declared import everything
from fuzz.calls import Call
from google.protobuf import message_factory

from ingest.collector.acks import Acks
from ingest.collector.app import App
from ingest.collector.doors import doors
from ingest.collector.intake import Intake
from ingest.collector.key import digest
from ingest.collector.keys import Keys
from ingest.collector.openapi import describe
from ingest.collector.settings import CollectSettings
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.spool.errors import SpoolDamaged, SpoolError, SpoolFull
from ingest.spool.frames import Record, front, unpack
from ingest.spool.reader import State
from ingest.spool.writer import Ticket
from ingest.spool.writer import check as check_record
from ingest.streams import BUILT_IN

__all__ = ["SECRETS", "SMALL", "STREAMS", "Failure", "MemorySpool", "Target", "Watch", "write_keys"]

STREAMS = {**BUILT_IN, "test": everything()}

# Small, so that small inputs reach every one of them.
SMALL = {
    "max_body_bytes": 64 * 1024,
    "max_decoded_bytes": 256 * 1024,
    "max_record_bytes": 8 * 1024,
    "max_records": 100,
    "max_depth": 16,
}

# What calls.py presents. Far too weak for keyfile.add, but nothing else reads them.
SECRETS = {
    "KEY-A": {"source": "services"},
    "KEY-B": {"source": "web", "streams": ["raw_events"], "origins": ["https://a.example"]},
    "KEY-C": {"source": "slow", "rate": 0.001, "burst": 5, "daily": 50},
    "KEY-R": {"source": "gone", "revoked_at": "2025-06-16T22:50:00Z"},
}


class Failure(AssertionError):
    """A law that does not hold."""


def write_keys(path: Path) -> None:
    """A file of keys with the secrets above."""
    keys = [
        {"id": f"k_{n}", "sha256": digest(secret).hex(), **entry}
        for n, (secret, entry) in enumerate(SECRETS.items())
    ]
    path.write_text(json.dumps({"version": 1, "keys": keys}))


class MemorySpool:
    """What Acks needs of a Spool; it forgets what `taken` is asked for."""

    def __init__(self) -> None:
        self.refuses: SpoolError | None = None
        self._taken: list[Record] = []
        self._next = 0

    @property
    def state(self) -> State:
        return State("node", 0, self._next, 0, 0)

    def append(self, records: Sequence[Record], on_done: Any = None) -> Ticket:
        for record in records:
            check_record(record)
        ticket = Ticket(records, on_done)
        if self.refuses is not None:
            ticket.answer(self.refuses)
        else:
            self._taken += records
            self._next += len(records)
            ticket.answer(len(records))
        return ticket

    def append_now(self, records: Sequence[Record]) -> int | None:
        return self.append(records).result()

    def taken(self) -> list[Record]:
        """Since the last time."""
        found, self._taken = self._taken, []
        return found


class Watch(logging.Handler):
    """Everything that is logged from WARNING on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.levelname} {record.name}: {record.getMessage()}")


class Target:
    """One application on the running loop; `folder` is for its keys."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        file = folder / "keys.json"
        write_keys(file)
        self.settings = CollectSettings(
            spool=folder, keys=file, store_network=True, store_headers=("user-agent",),
            forwarded=("127.0.0.0/8",), origins=("https://b.example",), **settings,
        )  # fmt: skip
        self.keys = Keys(file)
        self.spool = MemorySpool()
        self.acks = Acks(self.spool, asyncio.get_running_loop())
        # All is in Kafka as soon as it is on disk.
        self.acks.position = 2**62
        self.doors = doors(STREAMS)
        self._statuses = _stated(describe(self.doors, STREAMS, self.settings, with_keys=True))
        self.intake = Intake(self.settings, self.doors, self.acks, keys=self.keys)
        self._app = App(self.doors, self.intake, {})
        self._classes = {
            stream.topic: message_factory.GetMessageClass(stream.descriptor)
            for stream in STREAMS.values()
        }
        self.paths = {
            path: f"segment:{path.rpartition('/')[2]}" if door.kind == "segment"
            else f"logs:{door.stream}" if door.kind == "logs"
            else "sparrow"
            for path, door in self.doors.items()
        }  # fmt: skip

    def full(self, what: str) -> None:
        """From now on the spool says this: "", "full" or "damaged"."""
        self.spool.refuses = {
            "": None,
            "full": SpoolFull("the spool is at its limit"),
            "damaged": SpoolDamaged("what is on disk is not what was written"),
        }[what]

    async def together(self, calls: Sequence[Call]) -> list[int]:
        """All of them at once, and the laws of each; the statuses. Raises Failure."""
        answers = await asyncio.gather(*map(self.ask, calls))
        taken = self.spool.taken()
        accepted = [self._check(call, *said) for call, said in zip(calls, answers, strict=True)]
        if sum(accepted) != len(taken):
            raise Failure(f"{accepted} records were accepted, {len(taken)} were stored")
        if self.intake.inflight or self.intake.requests:
            raise Failure(f"{self.intake.inflight} bytes are held after the answers")
        self._readable(taken, [call for call, n in zip(calls, accepted, strict=True) if n])
        return [status for status, _, _ in answers]

    async def ask(self, call: Call) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """The answer to one call: status, headers, body."""
        said: list[dict[str, Any]] = []
        parts = list(call.parts)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts) or call.gone}
            if call.gone:
                return {"type": "http.disconnect"}
            raise Failure("it reads on behind the end of the body")

        async def send(event: dict[str, Any]) -> None:
            said.append(event)

        scope = {
            "type": "http", "method": call.method, "path": call.path, "headers": call.headers,
            "query_string": call.query, "scheme": "http", "client": ("127.0.0.1", 9),
            "http_version": "1.1",
        }  # fmt: skip
        await self._app(scope, receive, send)
        if not said:
            raise Failure("there is no answer")
        start, *rest = said
        return start["status"], start["headers"], b"".join(event["body"] for event in rest)

    def _check(
        self, call: Call, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> int:
        """The answer's own laws; how many records it says were accepted."""
        unstated = status >= 500 and not (status == 503 and self.spool.refuses is not None)
        stated = self._statuses.get(call.path) if call.method == "POST" else None
        if unstated or (stated is not None and status not in stated):
            raise Failure(f"the status {status} is not stated: {body[:300]!r}")
        for name, value in headers:
            if not re.fullmatch(rb"[a-z-]+", name) or re.search(rb"[\r\n\0]", value):
                raise Failure(f"the header {name!r} has the value {value!r}")
        if call.method == "HEAD" or status in (204, 304):
            return 0
        if dict(headers)[b"content-length"] != b"%d" % len(body):
            raise Failure("the Content-Length is another than the body's")
        if re.search(rb"KEY-[ABCR]", body):
            raise Failure("the answer holds a key")
        said = json.loads(body)
        if status in (429, 503) and int(dict(headers)[b"retry-after"]) < 1:
            raise Failure("Retry-After is no time")
        if "error" in said:
            if status < 400 or not (said["error"]["code"] and said["error"]["reason"]):
                raise Failure(f"the error is none: {said}")
            return 0
        if call.path not in self.doors:
            return 0
        refused = said.get("refused", [])
        indexes = [r["index"] for r in refused]
        if indexes != sorted(set(indexes)) or not all(r["code"] and r["reason"] for r in refused):
            raise Failure(f"refusals are not in order, or without a reason: {refused}")
        if "accepted" in said:
            if (status == 422) != (bool(refused) and not said["accepted"]):
                raise Failure(f"status {status} for {said}")
            return int(said["accepted"])
        # Segment's answer has no count: it is all that are not refused, and none with a 400.
        return self._segments(call, status, refused)

    def _segments(self, call: Call, status: int, refused: list[Any]) -> int:
        if status == 400 or call.path == "/v1/m":
            return 0
        if not call.path.endswith(("/batch", "/b", "/import")):
            return 1
        # The last of two, as parsers take it.
        batch = _parsed(_decoded(call))["batch"]
        return len(batch) - len(refused)

    def _readable(self, taken: Iterable[Record], calls: Sequence[Call]) -> None:
        bodies: list[bytes] | None = None
        for record in taken:
            ident = None if record.id is None else record.id.encode()
            head = front(7, 1, record.topic.encode(), record.key, record.value, ident)
            if (found := unpack(head + record.value, 7, 1)) is None or found[0].id != record.id:
                raise Failure(f"the spool can't read its record again: {record}")
            if len(record.value) > self.settings.max_record_bytes:
                raise Failure(f"a record has {len(record.value)} bytes")
            message = self._classes[record.topic].FromString(record.value)
            if isinstance(message, RawEvent):
                bodies = bodies or [_decoded(call) for call in calls]
                data = message.data.encode()
                if not any(data in body for body in bodies):
                    raise Failure(f"an event is not what was sent: {data!r}")
                if not isinstance(_parsed(data), dict) or not message.event_id:
                    raise Failure(f"an event is no object, or has no id: {message}")


def _stated(document: dict[str, Any]) -> dict[str, set[int]]:
    """Of each path the statuses of a POST."""
    return {
        path: {int(status) for status in item["post"]["responses"]}
        for path, item in document["paths"].items()
        if "post" in item
    }


def _decoded(call: Call) -> bytes:
    """What the body is, by other means than the collector's."""
    named = b"".join(v for k, v in call.headers if k == b"content-encoding").strip().lower()
    match named:
        case b"gzip" | b"x-gzip":
            return gzip.decompress(call.body)
        case b"zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(call.body)
    return call.body


def _parsed(data: bytes) -> Any:
    """By the strictest parser that the standard library has."""

    def none(name: str) -> None:
        raise Failure(f"{name} is no JSON: {data[:300]!r}")

    # Numbers of any length are JSON.
    return json.loads(
        data.decode(), parse_constant=none, parse_int=lambda _: 0, parse_float=lambda _: 0.0
    )
