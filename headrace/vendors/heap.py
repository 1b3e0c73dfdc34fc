"""Heap: server-side track, single and bulk.

developers.heap.io/reference: track-1, bulk-track.

`idempotency_key` is known for ever. What a bad request is answered with is documented nowhere:
here it is 400 with a text, and a request is taken whole or not at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from headrace.vendors.model import Call, Event, Judge, Judged, Reply, iso_us, json_reply, text_reply
from headrace.vendors.rates import Rolling
from ingest.units import MINUTE_US, SECOND_US

__all__ = ["Heap"]

_MOST_EVENTS = 1000
_TEXT = 1024
_IDENTITY = 255
_USER_ID = re.compile(r"\d{1,16}")


class Heap:
    name = "heap"
    # Nothing is written about compression.
    gzip = False
    window_us: int | None = None

    def __init__(self) -> None:
        self._single = Rolling(30, 30 * SECOND_US)
        self._bulk = Rolling(1000, MINUTE_US)
        self._project = Rolling(15_000, MINUTE_US)

    def paths(self) -> Mapping[str, Judge]:
        return {"/api/track": self._judge}

    def throttled(self) -> Reply:
        return text_reply(429, "Too Many Requests")

    def revoked(self) -> Reply:
        return text_reply(401, "app_id is not known")

    def _judge(self, call: Call) -> Judged:
        try:
            body = call.document()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return _bad("the body is no JSON object")
        app = body.get("app_id")
        if not isinstance(app, str) or not app:
            return _bad("app_id is missing")
        bulk = "events" in body
        given = body["events"] if bulk else [body]
        if not isinstance(given, list) or not 1 <= len(given) <= _MOST_EVENTS:
            return _bad(f"events must be a list of 1 to {_MOST_EVENTS}")
        events = []
        for index, event in enumerate(given):
            taken = _event(app, event, call.now_us)
            if isinstance(taken, str):
                return _bad(f"event {index}: {taken}")
            events.append(taken)
        now = call.now_us
        asked = Counter(f"{app}\0{event.user}" for event in events)
        rate = self._bulk if bulk else self._single
        if rate.over(asked, now) or (bulk and self._project.over({app: len(events)}, now)):
            return Judged(self.throttled())
        rate.add(asked, now)
        if bulk:
            self._project.add({app: len(events)}, now)
        return Judged(json_reply(200, {}), events)


def _event(app: str, event: Any, now_us: int) -> Event | str:  # noqa: PLR0911 (one for each rule)
    """What is taken of it, or what is wrong with it."""
    if not isinstance(event, dict):
        return "it is no object"
    name, identity, user_id = event.get("event"), event.get("identity"), event.get("user_id")
    if not isinstance(name, str) or not 1 <= len(name) <= _TEXT:
        return f"event must be text of 1 to {_TEXT} characters"
    if (identity is None) == (user_id is None):
        return "exactly one of identity and user_id must be given"
    if identity is not None:
        if not isinstance(identity, str) or not 1 <= len(identity) <= _IDENTITY:
            return f"identity must be text of 1 to {_IDENTITY} characters"
    elif not isinstance(user_id, str) or not _USER_ID.fullmatch(user_id) or int(user_id) >= 2**53:
        return "user_id must be a decimal number below 2^53, as text"
    time_us = iso_us(event["timestamp"]) if "timestamp" in event else now_us
    if time_us is None:
        return "timestamp is not ISO 8601"
    if (wrong := _properties(event.get("properties", {}))) is not None:
        return wrong
    key = event.get("idempotency_key", "")
    if not isinstance(key, str):
        return "idempotency_key must be text"
    return Event(key, name, str(identity or user_id), time_us, f"{app}\0{key}" if key else "")


def _properties(properties: Any) -> str | None:
    if not isinstance(properties, dict):
        return "properties must be an object"
    for name, value in properties.items():
        if len(name) >= _TEXT:
            return "a property's name is too long"
        if isinstance(value, str):
            if len(value) >= _TEXT:
                return f"property {name[:40]} is too long"
        # A list is joined and cut by Heap itself.
        elif isinstance(value, bool) or not isinstance(value, int | float | list):
            return f"property {name[:40]} must be a number or text"
    return None


def _bad(text: str) -> Judged:
    return Judged(text_reply(400, text))
