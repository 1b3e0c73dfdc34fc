"""Google Analytics 4: the Measurement Protocol and its validation server.

developers.google.com/analytics/devguides/collection/protocol/ga4: reference, sending-events,
validating-events.

/mp/collect answers 204 to anything. What breaks a rule is lost without a word: the whole request
where it is the request's, else the event alone. What is older than 72 hours is dated anew. There
is no key, but for a `purchase` on the web: its transaction_id, and "" makes all of them one. A
sender's key is looked for in the parameter `event_id`, and is only kept, never compared.
/debug/mp/collect says what it thinks, in Google's words, and keeps nothing; `vague`, it does not
say of which event.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from headrace.vendors.model import Call, Event, Judge, Judged, Reply, json_reply, text_reply
from headrace.vendors.rates import Rolling
from ingest.units import HOUR_US

__all__ = ["Ga4"]

_MAX_BYTES = 130_000
_MOST_EVENTS = 25
_MOST_PARAMS = 25
_MOST_USER_PROPERTIES = 25
_NAME_LENGTH = 40
_VALUE_LENGTH = 100
_VALUE_LENGTHS = {"page_title": 300, "page_referrer": 420, "page_location": 1000}
_USER_PROPERTY = (24, 36)
_MAX_AGE_US = 72 * HOUR_US
# Requests of one property.
_HOURLY = 100_000_000
_AT = re.compile(r"^Event at index: \[\d+\]")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PREFIXES = ("_", "firebase_", "ga_", "google_", "gtag.")
_RESERVED = frozenset({
    "ad_activeview", "ad_click", "ad_exposure", "ad_impression", "ad_query", "adunit_exposure",
    "app_clear_data", "app_install", "app_update", "app_remove", "error", "first_open",
    "first_visit", "in_app_purchase", "notification_dismiss", "notification_foreground",
    "notification_open", "notification_receive", "os_update", "screen_view", "session_start",
    "user_engagement",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Message:
    """`index` of the event that it is about; None for the whole request."""

    index: int | None
    path: str
    code: str
    text: str


class Ga4:
    name = "ga4"
    gzip = False
    window_us: int | None = None

    def __init__(self) -> None:
        self._hourly = Rolling(_HOURLY, HOUR_US, 1)

    def paths(self) -> Mapping[str, Judge]:
        return {"/mp/collect": self._collect, "/debug/mp/collect": _validate}

    def throttled(self) -> Reply:
        # Google documents none; whatever stands in front of it may still say so.
        return text_reply(429, "")

    def revoked(self) -> Reply:
        return Reply(204)

    def _collect(self, call: Call) -> Judged:
        answer = Judged(Reply(204))
        messages, body = _check(call)
        events = body.get("events", []) if isinstance(body, dict) else []
        count = len(events) if isinstance(events, list) else 0
        for message in messages:
            if message.index is None:
                return answer._replace(lost={message.code: max(count, 1)})
        query = call.query
        web = bool(query.get("measurement_id"))
        if not query.get("api_secret") or not (web or query.get("firebase_app_id")):
            return answer._replace(lost={"credentials": count})
        stream = query.get("measurement_id") or query["firebase_app_id"]
        if call.over_quota or self._hourly.over({stream: 1}, call.now_us):
            return answer._replace(lost={"over quota": count})
        self._hourly.add({stream: 1}, call.now_us)
        lost: Counter[str] = Counter()
        bad: dict[int, str] = {}
        for message in messages:
            bad.setdefault(message.index or 0, message.code)
        lost.update(bad.values())
        taken = [
            _event(body, event, call.now_us, stream if web else "")
            for index, event in enumerate(events)
            if index not in bad
        ]
        return answer._replace(events=taken, lost=lost)


def _validate(call: Call) -> Judged:
    """Always 200; neither the secret nor the stream is looked at."""
    messages, _ = _check(call)
    if call.vague:
        messages = [replace(m, text=_AT.sub("An event", m.text)) for m in messages]
    return Judged(json_reply(200, {
        "validationMessages": [
            {"fieldPath": m.path, "description": m.text, "validationCode": m.code}
            for m in messages
        ]
    }))  # fmt: skip


def _check(call: Call) -> tuple[list[_Message], Any]:
    """What breaks a rule, and the body."""
    try:
        body = call.document()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return [_Message(None, "", "VALUE_INVALID", "Unable to parse the request.")], None
    return list(_of_request(call, body)), body


def _of_request(call: Call, body: Mapping[str, Any]) -> Iterator[_Message]:
    if len(call.body) >= _MAX_BYTES:
        yield _Message(None, "", "VALUE_OUT_OF_BOUNDS", "The request is too large.")
    whose = "app_instance_id" if call.query.get("firebase_app_id") else "client_id"
    user = body.get(whose)
    if not isinstance(user, str) or not user:
        yield _Message(None, whose, "VALUE_REQUIRED", f"Measurement requires {whose}.")
    properties = body.get("user_properties", {})
    if not isinstance(properties, dict):
        yield _Message(None, "user_properties", "VALUE_INVALID", "It must be an object.")
    elif len(properties) > _MOST_USER_PROPERTIES:
        yield _Message(None, "user_properties", "EXCEEDED_MAX_ENTITIES", "Too many properties.")
    else:
        longest, value_length = _USER_PROPERTY
        for name, held in properties.items():
            value = held.get("value") if isinstance(held, dict) else None
            if len(name) > longest or len(str(value)) > value_length:
                text = f"User property [{name}] is too long."
                yield _Message(None, "user_properties", "VALUE_OUT_OF_BOUNDS", text)
    events = body.get("events")
    if not isinstance(events, list) or not events:
        yield _Message(None, "events", "VALUE_REQUIRED", "At least one event is required.")
        return
    if len(events) > _MOST_EVENTS:
        text = f"Requests may contain up to {_MOST_EVENTS} events."
        yield _Message(None, "events", "EXCEEDED_MAX_ENTITIES", text)
    strict = body.get("validation_behavior") == "ENFORCE_RECOMMENDATIONS"
    for index, event in enumerate(events):
        yield from _of_event(index, event)
        time_us = _time_us(body, event)
        if strict and time_us is not None and time_us < call.now_us - _MAX_AGE_US:
            text = f"Event at index: [{index}] is older than 72 hours."
            yield _Message(index, "timestamp_micros", "VALUE_OUT_OF_BOUNDS", text)


def _of_event(n: int, event: Any) -> Iterator[_Message]:
    name = event.get("name") if isinstance(event, dict) else None
    at = f"Event at index: [{n}]"
    if not isinstance(name, str) or not name:
        yield _Message(n, "events", "VALUE_REQUIRED", f"{at} must have a name.")
        return
    if (wrong := _wrong_name(name)) is not None:
        yield _Message(n, "events", wrong[0], f"{at} has invalid name [{name}]. {wrong[1]}")
    elif name in _RESERVED:
        text = f"{at} has name [{name}] which is reserved."
        yield _Message(n, "events", "NAME_RESERVED", text)
    params = event.get("params", {})
    if not isinstance(params, dict):
        yield _Message(n, "events.params", "VALUE_INVALID", f"{at} has params that are no object.")
        return
    if len(params) > _MOST_PARAMS:
        text = f"{at} has more than {_MOST_PARAMS} params."
        yield _Message(n, "events.params", "EXCEEDED_MAX_ENTITIES", text)
    for key, value in params.items():
        if (wrong := _wrong_name(key)) is not None:
            text = f"{at} has invalid param name [{key}]. {wrong[1]}"
            yield _Message(n, "events.params", wrong[0], text)
        most = _VALUE_LENGTHS.get(key, _VALUE_LENGTH)
        if isinstance(value, str) and len(value) > most:
            text = f"{at} has param [{key}] with a value of more than {most} characters."
            yield _Message(n, "events.params", "VALUE_OUT_OF_BOUNDS", text)


def _wrong_name(name: str) -> tuple[str, str] | None:
    if name.startswith("_"):
        return "NAME_INVALID", "Names must start with an alphabetic character."
    if name.startswith(_PREFIXES):
        return "NAME_RESERVED", "Its prefix is reserved."
    if len(name) > _NAME_LENGTH:
        return "NAME_INVALID", f"Names must not be longer than {_NAME_LENGTH} characters."
    if not name[:1].isascii() or not name[:1].isalpha():
        return "NAME_INVALID", "Names must start with an alphabetic character."
    if not _NAME.fullmatch(name):
        return "NAME_INVALID", "Only alphanumeric characters and underscores are allowed."
    return None


def _time_us(body: Mapping[str, Any], event: Any) -> int | None:
    """The event's own time, else the request's."""
    for holder in (event, body):
        value = holder.get("timestamp_micros") if isinstance(holder, dict) else None
        if isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value[:18])
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _event(body: Mapping[str, Any], event: Mapping[str, Any], now_us: int, web: str) -> Event:
    params = event.get("params") or {}
    given = _time_us(body, event)
    time_us = now_us if given is None else max(given, now_us - _MAX_AGE_US)
    user = str(body.get("user_id") or body.get("client_id") or body.get("app_instance_id"))
    identity = ""
    transaction = params.get("transaction_id")
    if web and event["name"] == "purchase" and isinstance(transaction, str):
        identity = f"{web}\0{transaction}"
    return Event(str(params.get("event_id", "")), event["name"], user, time_us, identity)
