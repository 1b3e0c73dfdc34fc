"""Amplitude: HTTP API V2 for what has just come in, Batch Event Upload for backfill.

amplitude.com/docs/apis/analytics: http-v2, batch-event-upload, http-api-batching-retries; and
data-backfill of its documents.

`key` is `insert_id`: on one device Amplitude drops a second event with
it for 7 days, not longer. A request is taken whole or not at all, and a refusal names positions;
HTTP V2 names only the first bad one of each kind, so a request may take several rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, Packed, Rate, outgoing
from consumers.vendors.request import (
    Answer,
    Code,
    Outgoing,
    Reason,
    Request,
    Sending,
    Unfit,
    json_post,
)
from consumers.vendors.settings import Secret, VendorError, base_url, one_of
from consumers.vendors.values import no_longer_than, to_json
from consumers.vendors.verdicts import (
    Accepted,
    PartlyRejected,
    RetryAfter,
    SlowDown,
    Stop,
    Verdict,
    by_status,
    indexes,
    json_object,
    names,
    retry_after,
    said,
    split,
)
from ingest.units import DAY_US

__all__ = ["Amplitude"]

_HOSTS = {"us": "https://api2.amplitude.com", "eu": "https://api.eu.amplitude.com"}
# What a 400 lists, by field, as positions in the request.
_LISTS = "events_with_"
_LIVE, _BATCH = "/2/httpapi", "/batch"
_DEDUP_US = 7 * DAY_US
_TEXT = 1024
# A request with one of these as an id is refused with 400.
_NO_ID = {
    "anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "", "{}", "lmy47d",
    "0", "-1", "00000000-0000-0000-0000-000000000000",
}  # fmt: skip
# A daily quota of a user or device, over a rolling 24 hours, at both endpoints.
_DAILY = Rate(500_000, 86_400, "user")
# Of a plan for a second a request takes one of so many parts: behind one of a replay live events
# do not wait long, and requests of unlike sizes fill a second.
_PARTS = 10
# How long a throttled user or device has to rest: HTTP V2, batch.
_REST_S, _REST_BATCH_S = 30.0, 15.0


@dataclass(frozen=True, slots=True)
class Amplitude:
    """[vendors.amplitude]"""

    api_key: Secret
    # "us" or "eu".
    region: str = "us"
    endpoint: str = ""
    gzip: bool = True
    # Shorter ids Amplitude takes away from an event; 5 is what it does by itself.
    min_id_length: int = 5
    # The plan's events a second for the whole project (Starter: 1000); 0 for no such limit.
    events_per_s: int = 0
    cut_long_text: bool = False

    def __post_init__(self) -> None:
        one_of("region", self.region, _HOSTS)
        if self.endpoint:
            base_url("endpoint", self.endpoint)
        if self.min_id_length < 1 or self.events_per_s < 0:
            raise VendorError("min_id_length must be 1 at least, events_per_s 0 at least")

    def limits(self, *, backfill: bool) -> Limits:
        # A batch's 1000 events/s and user are measured over 30 s; 300 are what is recommended.
        of_user = Rate(9000, 30, "user") if backfill else Rate(30, 1, "user")
        plan = (Rate(self.events_per_s, 1),) if self.events_per_s else ()
        return Limits(
            max_events=min(2000, max(1, self.events_per_s // _PARTS)) if plan else 2000,
            max_bytes=20_000_000 if backfill else 1_000_000,
            max_event_bytes=1_000_000,
            max_user_events=1000 if backfill else 30,
            rates=(of_user, _DAILY, *plan),
        )

    def users(self, event: Event) -> tuple[str, ...]:
        user, device = event.user_id, event.device_id
        if not device:
            return (f"user:{user}",)
        return (f"device:{device}", f"user:{user}") if user else (f"device:{device}",)

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing:
        # Old values must not overwrite a user's newer ones.
        extra = {"$skip_user_properties_sync": True} if sending.backfill else {}
        oldest_us = None
        if sending.repeated and not sending.allow_duplicates:
            oldest_us = sending.now_us - _DEDUP_US

        def encode(event: Event) -> bytes:
            # The first copy can't have come there before the collector had it, or before it left.
            if oldest_us is not None and max(event.received_us, sending.first_us) < oldest_us:
                text = "it may be there already, and Amplitude knows a copy for 7 days only"
                raise Unfit(Code.DUPLICATE_POSSIBLE, text)
            return self._encode(event, extra)

        head = to_json({
            "api_key": self.api_key.reveal(),
            "options": {"min_id_length": self.min_id_length},
            "events": [],
        })[:-2]  # fmt: skip
        url = self._base() + (_BATCH if sending.backfill else _LIVE)

        def request(packed: Packed) -> Request:
            return json_post(url, packed.body, packed.events, (self.api_key,), pack=self.gzip)

        return outgoing(
            events, encode, self.limits(backfill=sending.backfill),
            head=head, tail=b"]}", request=request, users=self.users,
        )  # fmt: skip

    def _base(self) -> str:
        return self.endpoint.rstrip("/") or _HOSTS[self.region]

    def _encode(self, event: Event, extra: Mapping[str, Any]) -> bytes:
        if event.time_us < 0:
            raise Unfit(Code.TIME_INVALID, "its time is before 1970")
        document: dict[str, Any] = {
            "event_type": event.name,
            "time": event.time_us // 1000,
            "insert_id": event.key,
            "event_properties": event.properties,
            **extra,
        }
        if event.user_id:
            document["user_id"] = self._id(event.user_id)
        if event.device_id:
            document["device_id"] = self._id(event.device_id)
        elif not event.user_id:
            raise Unfit(Code.ID_MISSING, "it has neither a user nor a device")
        data = to_json(document)
        if len(data) > _TEXT:
            # Only then can text of it be too long.
            if len(event.name) > _TEXT:
                raise Unfit(Code.NAME_INVALID, f"its name is longer than {_TEXT} characters")
            shorter = no_longer_than(
                event.properties, _TEXT, cut=self.cut_long_text, vendor="Amplitude"
            )
            if shorter is not event.properties:
                data = to_json({**document, "event_properties": shorter})
        return data

    def _id(self, found: str) -> str:
        if found.lower() in _NO_ID:
            raise Unfit(Code.ID_INVALID, "its user or device id is one that Amplitude refuses")
        if not self.min_id_length <= len(found) <= _TEXT:
            text = (
                f"its user or device id must have {self.min_id_length} to {_TEXT} characters "
                "(min_id_length changes that)"
            )
            raise Unfit(Code.ID_INVALID, text)
        return found

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict:
        body = json_object(answer.body)
        match answer.status:
            case 200 if body is not None and body.get("code") == 200:
                return Accepted()
            case status if 200 <= status < 300:
                # Not Amplitude's; sent again, insert_id keeps it single.
                return RetryAfter(None, said(request, answer), unknown=True)
            case 400 if body is not None:
                return self._refused(request, answer, body)
            case 403:
                # Its firewall, mostly for something in the body: found by halving.
                return split(request, said(request, answer))
            case 429 if body is not None:
                return self._throttled(request, answer, body, now_us)
            case _:
                return by_status(request, answer, now_us)

    def _refused(self, request: Request, answer: Answer, body: Mapping[str, Any]) -> Verdict:
        error = body.get("error")
        error = error if isinstance(error, str) else ""
        why = said(request, answer, detail=error)
        if error.startswith("Invalid API key") or body.get("missing_field") == "api_key":
            return Stop(why)
        count = len(request.events)
        rejected: dict[int, Reason] = {}
        # …_invalid_fields, …_missing_fields, and …_invalid_id_lengths, which the SDKs know.
        for kind in (key for key in body if key.startswith(_LISTS)):
            fields = body[kind]
            for name, found in fields.items() if isinstance(fields, dict) else ():
                bad = set(indexes(found, count)).difference(rejected)
                if bad:
                    what = kind.removeprefix(_LISTS).replace("_", " ")
                    text = said(request, answer, detail=f"{error or 'refused'}: {what}: {name}")
                    rejected.update(dict.fromkeys(bad, Reason(Code.REJECTED, text)))
        silenced = set(indexes(body.get("silenced_events"), count))
        devices = names(body.get("silenced_devices"))
        silenced.update(n for n, e in enumerate(request.events) if e.device_id in devices)
        rejected.update((n, Reason(Code.SILENCED, why)) for n in silenced)
        if not rejected:
            return split(request, why)
        return PartlyRejected(rejected, frozenset(range(count)).difference(rejected))

    def _throttled(
        self, request: Request, answer: Answer, body: Mapping[str, Any], now_us: int
    ) -> Verdict:
        error = body.get("error")
        why = said(request, answer, detail=error if isinstance(error, str) else "")
        over = {f"user:{name}" for name in names(body.get("exceeded_daily_quota_users"))}
        over |= {f"device:{name}" for name in names(body.get("exceeded_daily_quota_devices"))}
        slow = {f"user:{name}" for name in names(body.get("throttled_users"))}
        slow |= {f"device:{name}" for name in names(body.get("throttled_devices"))}
        # Others than those asked about would not make the next attempt any smaller.
        slow &= {user for event in request.events for user in self.users(event)}
        for n in indexes(body.get("throttled_events"), len(request.events)):
            who = self.users(request.events[n])
            if not (slow | over).intersection(who):
                slow.update(who)
        rejected = {
            n: Reason(Code.DAILY_QUOTA, f"its user or device is over the daily quota; {why}")
            for n, event in enumerate(request.events)
            if over and over.intersection(self.users(event))
        }
        rest = _REST_BATCH_S if request.url.endswith(_BATCH) else _REST_S
        pause = retry_after(answer, now_us)
        if slow - over:
            rest = max(rest, pause or 0.0)
            return SlowDown(dict.fromkeys(sorted(slow - over), rest), why, rejected)
        if rejected:
            every = frozenset(range(len(request.events)))
            return PartlyRejected(rejected, every.difference(rejected))
        return RetryAfter(pause, why)
