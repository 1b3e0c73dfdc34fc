"""The webhook: a receiver that checks the signature, as one of its users would write it.

Written from the wire form that the documentation gives: `Headrace-Signature: t=SECONDS,v1=HEX`,
HMAC-SHA256 of SECONDS, a full stop and the body. A time that is more than five minutes off is
refused. An `id` is known for ever.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from headrace.vendors.model import Call, Event, Judge, Judged, Reply, json_reply
from ingest.units import SECOND_US

__all__ = ["Webhook"]

_MAX_BYTES = 1_000_000
_OFF_S = 300


class Webhook:
    name = "webhook"
    gzip = False
    window_us: int | None = None

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def paths(self) -> Mapping[str, Judge]:
        return {"": self._judge, "/": self._judge, "/events": self._judge}

    def throttled(self) -> Reply:
        return json_reply(429, {"error": "too many requests"})

    def revoked(self) -> Reply:
        return json_reply(401, {"error": "the signature does not fit"})

    def _judge(self, call: Call) -> Judged:
        if not self._signed(call):
            return Judged(self.revoked())
        if len(call.body) > _MAX_BYTES:
            return Judged(json_reply(413, {"error": f"more than {_MAX_BYTES} bytes"}))
        try:
            body = call.document()
        except ValueError:
            body = None
        given = body.get("events") if isinstance(body, dict) else None
        if not isinstance(given, list):
            return Judged(json_reply(400, {"error": "events is missing"}))
        events = []
        for index, event in enumerate(given):
            found = event if isinstance(event, dict) else {}
            key, name, time_us = found.get("id"), found.get("name"), found.get("time")
            if not (
                isinstance(key, str) and key and isinstance(name, str) and isinstance(time_us, int)
            ):
                return Judged(json_reply(400, {"error": f"event {index}: id, name or time"}))
            user = str(found.get("user_id") or found.get("device_id") or "")
            events.append(Event(key, name, user, time_us, key))
        return Judged(json_reply(200, {}), events)

    def _signed(self, call: Call) -> bool:
        parts = dict(
            part.partition("=")[::2]
            for part in call.headers.get("headrace-signature", "").split(",")
        )
        seconds = parts.get("t", "")
        if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 12):
            return False
        mac = hmac.new(self._secret, seconds.encode() + b"." + call.body, "sha256").hexdigest()
        fresh = abs(call.now_us / SECOND_US - int(seconds)) <= _OFF_S
        return fresh and hmac.compare_digest(mac.encode(), parts.get("v1", "").encode())
