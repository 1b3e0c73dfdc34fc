"""PostHog: /batch/, as its capture service answers; `quiet`, as its documents say.

posthog.com/docs/api/capture, and rust/capture of PostHog/posthog.

A copy has the same uuid, event, distinct_id and day. PostHog removes it when it merges, some time
later; here at once, so what is counted is what is left in the end. Another day is another event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from headrace.vendors.model import Call, Event, Judge, Judged, Reply, iso_us, json_reply, text_reply
from ingest.units import DAY_US

__all__ = ["PostHog"]

_MAX_BYTES = 20_000_000
# As its SDK has it; its service says "too big" and no number.
_EVENT_BYTES = 900 * 1024


class PostHog:
    name = "posthog"
    gzip = True
    window_us: int | None = None

    def paths(self) -> Mapping[str, Judge]:
        return {"/batch/": self._judge, "/batch": self._judge}

    def throttled(self) -> Reply:
        return text_reply(429, "rate limited")

    def revoked(self) -> Reply:
        return text_reply(401, "API key is not valid")

    def _judge(self, call: Call) -> Judged:  # noqa: PLR0911 (one for each rule)
        if len(call.body) >= _MAX_BYTES:
            return Judged(text_reply(413, "the body is too large"))
        try:
            body = call.document()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return Judged(text_reply(400, "failed to decode request"))
        key, batch = body.get("api_key"), body.get("batch")
        if not isinstance(key, str) or not key:
            return Judged(text_reply(401, "event submitted without an api_key"))
        if not isinstance(batch, list) or not batch:
            return Judged(text_reply(400, "empty batch"))
        if any(isinstance(e, dict) and e.get("api_key", key) != key for e in batch):
            return Judged(text_reply(401, "batch contains more than one api_key"))
        if call.over_quota:
            limited = {"status": 1, "quota_limited": ["events"]}
            return Judged(json_reply(200, limited), (), {"over quota": len(batch)})
        events: list[Event] = []
        lost = 0
        # In a smaller body none can be larger.
        large = len(call.body) > _EVENT_BYTES
        for event in batch:
            wrong = _too_big(event) if large else None
            taken = wrong or _event(event, call.now_us)
            if isinstance(taken, Event):
                events.append(taken)
            elif call.quiet:
                lost += 1
            else:
                return Judged(text_reply(400, taken))
        return Judged(json_reply(200, {"status": 1}), events, {"invalid": lost} if lost else {})


def _too_big(event: Any) -> str | None:
    return "event is too big" if len(orjson.dumps(event)) > _EVENT_BYTES else None


def _event(event: Any, now_us: int) -> Event | str:
    """What is taken of it, or what is wrong with it."""
    if not isinstance(event, dict):
        return "failed to decode request"
    name, properties = event.get("event"), event.get("properties")
    if not isinstance(name, str) or not name:
        return "event submitted with an empty event name"
    user = event.get("distinct_id")
    if user is None and isinstance(properties, dict):
        user = properties.get("distinct_id")
    if user is None or user == "":
        return "event submitted with an empty distinct_id"
    given = event.get("uuid")
    try:
        uuid = "" if given is None else str(UUID(given))
    except (ValueError, AttributeError, TypeError):
        return "failed to decode request: uuid"
    time_us = iso_us(event.get("timestamp"))
    time_us = now_us if time_us is None else time_us
    identity = f"{time_us // DAY_US}\0{name}\0{user}\0{uuid}" if uuid else ""
    return Event(uuid, name, str(user), time_us, identity)
