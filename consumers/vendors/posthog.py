"""PostHog: /batch/, its cloud or one's own.

posthog.com/docs/api/capture, posthog.com/docs/migrate, rust/capture of PostHog/posthog.

`key` is `uuid`, itself if it is one, else made from it. PostHog knows an event by uuid, name,
distinct_id and the day of its time together, and removes a copy when it merges, so none of them
may change between two attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, Packed, Rate, outgoing
from consumers.vendors.request import Answer, Outgoing, Request, Sending, json_post
from consumers.vendors.settings import Secret, VendorError, base_url, one_of
from consumers.vendors.values import moment, not_reserved, to_json, uuid_of, who
from consumers.vendors.verdicts import (
    Accepted,
    RetryAfter,
    Verdict,
    by_status,
    json_object,
    names,
    said,
)
from ingest.units import HOUR_US

__all__ = ["PostHog"]

_HOSTS = {"us": "https://us.i.posthog.com", "eu": "https://eu.i.posthog.com"}
_PATH = "/batch/"
# Beyond it PostHog asks its users to come and talk first.
_BACKFILL = Rate(10_000, 60)
# Migrated events are to be older.
_HISTORICAL_US = 48 * HOUR_US
# Also read from the properties.
_OWN = ("distinct_id", "token", "$device_id")
# Its documents, and Django before, have {"status": 1}. The capture service serialises the enum
# `CaptureResponseCode { Ok = 1 }` by serde's derive, which writes the name: {"status": "Ok"}
# (rust/capture/src/api.rs, PostHog/posthog at 0185795).
_OK = (1, "Ok")
# A project over its quota answers 200 and drops: asked again so rarely, until it no longer is.
_QUOTA_WAIT_S = 60.0
# Of an id: of a longer one the capture service keeps the beginning.
_IDENTITY = 200


@dataclass(frozen=True, slots=True)
class PostHog:
    """[vendors.posthog]"""

    # The project's.
    api_key: Secret
    # "us" or "eu"; one's own server is an `endpoint`.
    region: str = "us"
    endpoint: str = ""
    gzip: bool = True
    # How fast a backfill may go, events a minute; 0 for no such limit.
    backfill_per_minute: int = _BACKFILL.events

    def __post_init__(self) -> None:
        one_of("region", self.region, _HOSTS)
        if self.endpoint:
            base_url("endpoint", self.endpoint)
        if self.backfill_per_minute < 0:
            raise VendorError("backfill_per_minute must be 0 at least")

    def limits(self, *, backfill: bool) -> Limits:
        slow = backfill and self.backfill_per_minute > 0
        most = min(2000, self.backfill_per_minute) if slow else 2000
        return Limits(
            # Any number is taken; 20 MB, and 5 MiB and 900 KiB by PostHog's own SDK.
            max_events=most,
            max_bytes=5 * 1024 * 1024,
            max_event_bytes=900 * 1024,
            max_user_events=most,
            rates=(Rate(self.backfill_per_minute, 60),) if slow else (),
        )

    def users(self, event: Event) -> tuple[str, ...]:
        return (event.user_id or event.device_id or "",)

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing:
        url = (self.endpoint.rstrip("/") or _HOSTS[self.region]) + _PATH
        old_us = sending.now_us - _HISTORICAL_US
        head = to_json({"api_key": self.api_key.reveal(), "batch": []})[:-2]
        # Without the mark of a migration, events are watched for spikes; written last, for it
        # depends on what has come together.
        tail = b'],"historical_migration":false}'

        def request(packed: Packed) -> Request:
            body = packed.body
            if sending.backfill and all(event.time_us < old_us for event in packed.events):
                body = body[: -len(tail)] + tail.replace(b"false", b"true")
            return json_post(url, body, packed.events, (self.api_key,), pack=self.gzip)

        return outgoing(
            events, _encode, self.limits(backfill=sending.backfill),
            head=head, tail=tail, request=request,
        )  # fmt: skip

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict:
        if not 200 <= answer.status < 300:
            return by_status(request, answer, now_us)
        body = json_object(answer.body)
        if answer.status != 200 or body is None or body.get("status") not in _OK:
            # Not PostHog's; sent again, the uuid keeps it single.
            return RetryAfter(None, said(request, answer), unknown=True)
        if "events" in names(body.get("quota_limited")):
            return RetryAfter(_QUOTA_WAIT_S, "HTTP 200, but over quota: PostHog drops the events")
        return Accepted()


def _encode(event: Event) -> bytes:
    not_reserved(event.properties, _OWN, "PostHog")
    properties = dict(event.properties)
    if event.device_id:
        properties["$device_id"] = event.device_id
    return to_json({
        "event": event.name,
        "distinct_id": who(event, _IDENTITY),
        "uuid": uuid_of(event.key),
        "timestamp": moment(event.time_us),
        "properties": properties,
    })  # fmt: skip
