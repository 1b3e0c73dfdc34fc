"""Records that come in at a door: from the request's key to the answer, in the order of app.py.

A request's body, and what it unpacks to, is counted from before it is read until the answer, so
that what is in memory has a bound; one of unknown length counts as the largest while it is read.
What the spool refuses is given back to the key's quota. A retry of what it holds is paid for again,
for an append of many requests does not tell whose records it knew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from ingest.collector import answers, cors, metrics
from ingest.collector.acks import Acks, Place
from ingest.collector.answers import Answer, Refused
from ingest.collector.bodies import Bodies
from ingest.collector.body import Receive, unpack
from ingest.collector.doors import Door
from ingest.collector.judge import BadBody, Judged, values
from ingest.collector.keys import Key, Keys, presented_key, write_key
from ingest.collector.quota import Quota, Wait
from ingest.collector.sender import Senders
from ingest.collector.settings import CollectSettings
from ingest.spool.errors import SpoolError, SpoolFull

__all__ = ["Intake"]

# The source of who sends without a key, from this machine.
_LOCAL = "local"
# A larger body, unpacked, is unpacked, searched for its key and judged in a thread, so that the
# others' answers need not wait for it.
_LARGE = 256 * 1024
_LARGE_PACKED = 32 * 1024
# The most that a value of JSON takes while a large body is judged: a slice of it, or a dict.
_BYTES_A_VALUE = 160
_LONGEST_IDEMPOTENCY_KEY = 200
_SWEEP_S = 0.5
# When to come again: the disk may be full for long, memory for an instant.
_FULL_S = b"10"
_BUSY_S = b"1"


class _Request:
    """What of a request's headers matters. Raises Refused."""

    __slots__ = (
        "content_type", "encoding", "headers", "idempotency_key", "kafka", "length", "origin",
    )  # fmt: skip

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        found = dict(self.headers).get
        self.length = int(found(b"content-length", b"-1"))
        self.content_type = found(b"content-type", b"").decode("latin-1")
        self.encoding = found(b"content-encoding", b"").decode("latin-1")
        self.origin = found(b"origin", b"").decode("latin-1")
        key = found(b"idempotency-key")
        self.idempotency_key = "" if key is None else _idempotency_key(key)
        query = scope["query_string"]
        self.kafka = bool(query) and _waits_for_kafka(query)


class Intake:
    """Takes the requests of all doors; one for each event loop.

    `keys` None lets everybody in as source "local": for loopback only, which server.py sees to.
    `relay_error` says why the relay has stopped for good.
    """

    def __init__(
        self,
        settings: CollectSettings,
        doors: Mapping[str, Door],
        acks: Acks,
        *,
        keys: Keys | None = None,
        quota: Quota | None = None,
        relay_error: Callable[[], SpoolError | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._small = replace(self._limits, decoded_bytes=min(_LARGE, self._limits.decoded_bytes))
        self._acks = acks
        self._keys = keys
        self._quota = quota or Quota()
        self._relay_error = relay_error
        self.senders = Senders(settings)
        self._origins = frozenset(origin.lower() for origin in settings.origins)
        # Not yet given to the metrics.
        self._accepted = {door.kind: 0 for door in doors.values()}
        self._bytes = 0
        # Requests under way, and the bytes of their bodies.
        self.requests = 0
        self.inflight = 0
        self._bodies = Bodies(settings.limits, settings.body_timeout_s)

    def origins(self) -> frozenset[str]:
        """Of which pages a request may come, whatever its key."""
        return self._origins if self._keys is None else self._origins | self._keys.origins()

    async def sweep(self) -> None:
        """Cut off clients whose bodies take too long; runs as long as the application does."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.tally()
            self._bodies.sweep()

    def cut(self) -> None:
        """Read no body any further: the collector stops."""
        self._bodies.stop()

    def tally(self) -> None:
        """Give to the metrics what was counted since; counting there costs a lock each time."""
        metrics.INFLIGHT_BYTES.set(self.inflight)
        metrics.BODY_BYTES.inc(self._bytes)
        self._bytes = 0
        for kind, count in self._accepted.items():
            metrics.ACCEPTED.labels(kind).inc(count)
            self._accepted[kind] = 0

    # -- 2. to 9.

    async def take(  # noqa: PLR0912, PLR0915 (the hot path, top to bottom: coroutines cost)
        self, door: Door, scope: Mapping[str, Any], receive: Receive
    ) -> Answer:
        """The answer to a POST. Raises Refused, BadBody, Gone."""
        held = 0
        self.requests += 1
        try:
            try:
                request = _Request(scope)
                key = self._before(door, request)
                if length := request.length:
                    # More than is allowed is refused for that, by read(), and not for want of
                    # memory. Who does not say how much will come may send as much as is allowed.
                    most = self._limits.body_bytes
                    self._hold(least := most if length < 0 else min(length, most))
                    held = least
            except Refused as early:
                early.unread = True
                raise
            body = await self._bodies.read(receive, length)
            size = len(body)
            self._bytes += size
            if size != held:
                self.inflight += size - held
                held = size
            if request.encoding:
                body = await self._unpacked(request.encoding, body)
                if (size := len(body)) > held:
                    self._hold(size - held, held)
                    held = size
            if key is None and self._keys is not None and door.needs_key:
                in_body = (
                    write_key(body) if size <= _LARGE else await asyncio.to_thread(write_key, body)
                )
                key = self._key(door, request, in_body or "")
            source = _LOCAL if key is None else key.source
            caller = self.senders.caller(source, scope["client"], request.headers)
            args: tuple[Any, ...] = (
                body, request.content_type, caller, self._limits, time.time_ns() // 1000,
            )  # fmt: skip
            if request.idempotency_key and door.takes_idempotency_key:
                args = (*args, request.idempotency_key)
            if size <= _LARGE:
                judged = door.judge(*args)
            else:
                # While it is judged each of its values is an object.
                found = await asyncio.to_thread(values, body)
                parsed = _BYTES_A_VALUE * min(found, self._limits.values)
                self._hold(parsed, held)
                held += parsed
                judged = await asyncio.to_thread(door.judge, *args)
            records, refused = judged
            for refusal in refused:
                metrics.REFUSED.labels(door.kind, refusal.code).inc()
            if records:
                if key is not None:
                    paid = time.time()
                    self._pay(key, len(records), paid)
                try:
                    place = await self._acks.store(records)
                except SpoolError as error:
                    if key is not None:
                        self._quota.give_back(key, len(records), time.time(), paid)
                    raise _not_stored(error) from None
                self._accepted[door.kind] += len(records)
                if request.kafka:
                    await self._until_in_kafka(place, judged)
            if request.origin:
                status, said = door.answer(judged)
                return answers.json(status, said, *cors.exposed(request.origin))
            if len(records) == 1 and not refused and door.answer is answers.of_records:
                return answers.ONE_ACCEPTED
            return answers.json(*door.answer(judged))
        finally:
            self.inflight -= held
            self.requests -= 1

    async def drop(self, scope: Mapping[str, Any], receive: Receive) -> None:
        """Have the sender of a body that nobody wants hear the answer, see Bodies."""
        self.requests += 1
        try:
            await self._bodies.drop(dict(scope["headers"]), receive)
        finally:
            self.requests -= 1

    def _before(self, door: Door, request: _Request) -> Key | None:
        """Whether to read the body at all, and the key where it is known by then."""
        if request.origin and not cors.allowed(request.origin, self.origins()):
            raise Refused(403, "origin", "pages of this origin may not send here")
        if self._relay_error() is not None:
            # To accept what nobody will send would be a promise without an end.
            raise _unavailable(
                "relay_stopped", "nothing is sent to Kafka any more; a person has to act", b"60"
            )
        if self._keys is None:
            return None
        key = self._key(door, request)
        if key is not None and (wait := self._quota.wait(key, time.time())) is not None:
            raise _over_quota(wait)
        return key

    def _hold(self, size: int, held: int = 0) -> None:
        """Memory for a body that has `held` already, or Refused; for one alone there always is."""
        if self.inflight > held and self.inflight + size > self._settings.max_inflight_bytes:
            raise _unavailable("busy", "too much is under way at the moment; try again", _BUSY_S)
        self.inflight += size

    async def _unpacked(self, encoding: str, body: bytes) -> bytes:
        if len(body) <= _LARGE_PACKED:
            # 2 kB may be 16 MiB: here only what is small when it is unpacked, too.
            try:
                return unpack(encoding, body, self._small)
            except BadBody as bad:
                if bad.code != "decoded_too_large":
                    raise
        return await asyncio.to_thread(unpack, encoding, body, self._limits)

    def _pay(self, key: Key, records: int, now: float) -> None:
        if key.daily and records > key.daily:
            # To come again would not help.
            raise Refused(
                413, "too_many", f"the key may send {key.daily:,} records a day; send less at once"
            )
        if (wait := self._quota.take(key, records, now)) is not None:
            raise _over_quota(wait)

    async def _until_in_kafka(self, place: Place, judged: Judged) -> None:
        timeout_s = self._settings.kafka_timeout_s
        if await self._acks.in_kafka(place, timeout_s):
            return
        again = (
            "the same request again is stored once"
            if all(record.id is not None for record in judged.records)
            else "to send it again would store it twice, for it has no ids"
        )
        raise Refused(
            504,
            "kafka",
            f"the {len(judged.records)} good records are safe on disk here and will reach Kafka, "
            f"but did not within {timeout_s:g} s; {again}",
            (b"retry-after", b"10"),
            more=answers.of_records(judged)[1],
        )

    def _key(self, door: Door, request: _Request, in_body: str | None = None) -> Key | None:
        """The key of a request, None where there are no keys, or where the body has to be read.

        `in_body` is the key that stands there, "" without one, None while that is not known.
        Raises Refused.
        """
        if self._keys is None or not door.needs_key:
            return None
        presented = presented_key(request.headers)
        if presented is None and door.key_in_body:
            if in_body is None:
                return None
            presented = in_body or None
        if presented is None:
            where = ", or as the body's writeKey" if door.key_in_body else ""
            raise _no_key(f"a key is needed: Authorization: Bearer KEY{where}")
        key = self._keys.find(presented)
        if key is None:
            raise _no_key("there is no such key, or it was revoked")
        if request.origin and not cors.allowed(request.origin, key.origins | self._origins):
            raise Refused(403, "origin", "pages of this origin may not use this key")
        if not key.allows_stream(door.stream):
            raise Refused(403, "forbidden", f"this key may not write to the stream {door.stream}")
        return key


def _idempotency_key(value: bytes) -> str:
    if not 0 < len(value) <= _LONGEST_IDEMPOTENCY_KEY or not all(0x20 < c < 0x7F for c in value):
        raise Refused(
            400, "idempotency_key",
            f"Idempotency-Key must be 1 to {_LONGEST_IDEMPOTENCY_KEY} visible ASCII characters",
        )  # fmt: skip
    return value.decode("ascii")


def _waits_for_kafka(query: bytes) -> bool:
    if not query:
        return False
    match parse_qs(query.decode("latin-1"), keep_blank_values=True).get("ack", ["disk"]):
        case ["disk"]:
            return False
        case ["kafka"]:
            return True
    raise Refused(400, "ack", "ack must be disk (the default) or kafka")


def _no_key(reason: str) -> Refused:
    return Refused(401, "key", reason, (b"www-authenticate", b'Bearer realm="headrace"'))


def _over_quota(wait: Wait) -> Refused:
    return Refused(429, wait.code, wait.reason, (b"retry-after", b"%d" % wait.seconds))


def _unavailable(code: str, reason: str, after: bytes) -> Refused:
    return Refused(503, code, reason, (b"retry-after", after))


def _not_stored(error: SpoolError) -> Refused:
    """What the spool says names directories: that is for the log and /readyz, not for senders."""
    if isinstance(error, SpoolFull):
        return _unavailable(
            "full",
            "the spool is at its limit, or the disk is full; nothing of this was stored",
            _FULL_S,
        )
    return _unavailable(
        "spool", "the spool can't store anything; nothing of this was stored", _FULL_S
    )
