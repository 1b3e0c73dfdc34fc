"""A webhook: signed batches of events to a server of one's own.

    [vendors.webhook]
    url = "https://example.com/events"
    secret_env = "WEBHOOK_SECRET"

The body is {"events": [{"id", "name", "time", "user_id", "device_id", "properties"}, …]}, `time`
in microseconds since 1970. `Headrace-Signature: t=SECONDS,v1=HEX` is HMAC-SHA256, keyed with the
secret, of SECONDS, a full stop and the body. A receiver makes HEX anew and compares it in
constant time, refuses a SECONDS that is not of the last five minutes, and remembers each `id`: it
may come twice. 2xx takes all, 413 wants less at once, 429 and 5xx later, 401 and the like stop;
another 4xx refuses something in it, which is found by halving.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, Packed, outgoing
from consumers.vendors.request import Answer, Outgoing, Request, Sending, json_post
from consumers.vendors.settings import Secret, VendorError, base_url
from consumers.vendors.values import to_json
from consumers.vendors.verdicts import Verdict, by_status

__all__ = ["Webhook"]


@dataclass(frozen=True, slots=True)
class Webhook:
    url: str
    secret: Secret
    max_events: int = 500
    max_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        base_url("url", self.url)
        if self.max_events < 1 or self.max_bytes < 1000:
            raise VendorError("max_events must be 1 at least, max_bytes 1000 at least")

    def limits(self, *, backfill: bool) -> Limits:
        return Limits(self.max_events, self.max_bytes, self.max_bytes, self.max_events)

    def users(self, event: Event) -> tuple[str, ...]:
        return (event.user_id or event.device_id or "",)

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing:
        seconds = str(sending.now_us // 1_000_000)

        def request(packed: Packed) -> Request:
            signed = seconds.encode() + b"." + packed.body
            mac = hmac.new(self.secret.reveal().encode(), signed, hashlib.sha256).hexdigest()
            headers = {"Headrace-Signature": f"t={seconds},v1={mac}"}
            secrets = (self.secret, Secret(mac))
            return json_post(self.url, packed.body, packed.events, secrets, headers=headers)

        limits = self.limits(backfill=sending.backfill)
        return outgoing(events, _encode, limits, head=b'{"events":[', tail=b"]}", request=request)

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict:
        return by_status(request, answer, now_us)


def _encode(event: Event) -> bytes:
    return to_json({
        "id": event.key, "name": event.name, "time": event.time_us, "user_id": event.user_id,
        "device_id": event.device_id, "properties": event.properties,
    })  # fmt: skip
