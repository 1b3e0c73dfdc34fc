"""Mixpanel: /import, and /track as its SDK uses it.

docs.mixpanel.com/reference/import-events, and openapi/ingestion.openapi.yaml of mixpanel/docs.

/import is the only one of the six that takes part of a request: 400 names the bad events, the
others are in. A copy has the same event, time, distinct_id and $insert_id, without an end to it.
Text of more than 255 characters is cut, which `lost` counts as "text cut". /track says 1 and drops
what is older than five days. /engage and /groups take profiles, of which nothing is kept. A form is
what the SDK sends, at /import too, and is answered in its way.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson

from headrace.vendors.mixpanel_rules import event_of, wrong_with
from headrace.vendors.model import Call, Event, Judge, Judged, Reply, cut, json_reply, text_reply
from headrace.vendors.rates import Rolling
from ingest.units import DAY_US, MINUTE_US

__all__ = ["Mixpanel"]

_MOST_EVENTS = 2000
_MAX_BYTES = 10_000_000
_EVENT_BYTES = 1_000_000
_TEXT = 255
_TRACK_AGE_US = 5 * DAY_US
_STATUS = {
    400: "Bad Request", 401: "Unauthorized", 413: "Request Entity Too Large",
    429: "Too Many Requests",
}  # fmt: skip


class Mixpanel:
    name = "mixpanel"
    gzip = True
    window_us: int | None = None

    def __init__(self) -> None:
        # Per project; here there is one.
        self._events = Rolling(30_000 * 60, MINUTE_US)
        self._bytes = Rolling(2_000_000_000, MINUTE_US)

    def paths(self) -> Mapping[str, Judge]:
        return {
            "/import": self._import,
            "/track": self._track,
            "/engage": _profiles,
            "/groups": _profiles,
        }

    def throttled(self) -> Reply:
        return _error(429, "project exceeded rate limits; retry with exponential backoff").reply

    def revoked(self) -> Reply:
        return _error(401, "invalid credentials").reply

    def _import(self, call: Call) -> Judged:  # noqa: PLR0911 (one for each rule)
        if (refused := _credentials(call)) is not None:
            return refused
        if len(call.body) > _MAX_BYTES:
            return _error(413, f"request exceeds max limit of {_MAX_BYTES} bytes")
        form = _form(call)
        try:
            records = _records(call, form)
        except ValueError:
            return _error(400, "the body is neither a JSON array nor lines of JSON")
        if len(records) > _MOST_EVENTS:
            return _error(413, f"request exceeds max limit of {_MOST_EVENTS} events")
        now = call.now_us
        events_asked, bytes_asked = {"": len(records)}, {"": len(call.body)}
        if self._events.over(events_asked, now) or self._bytes.over(bytes_asked, now):
            return Judged(self.throttled())
        # What is refused counts too.
        self._events.add(events_asked, now)
        self._bytes.add(bytes_asked, now)
        events: list[Event] = []
        taken: list[Any] = []
        failed: list[dict[str, Any]] = []
        for index, record in enumerate(records):
            wrong = wrong_with(record, now)
            if wrong is None and len(call.body) > _EVENT_BYTES:
                # In a smaller body none can be larger.
                wrong = _too_large(record)
            if wrong is None:
                events.append(event_of(record, now))
                taken.append(record)
                continue
            field, message = wrong
            properties = record.get("properties") if isinstance(record, dict) else None
            key = properties.get("$insert_id") if isinstance(properties, dict) else None
            failed.append({
                "index": index, "insert_id": key if isinstance(key, str) else "",
                "field": field, "message": message,
            })  # fmt: skip
        lost = cut(taken, _TEXT)
        if form is not None:
            return _form_answer(form, len(failed))._replace(events=events, lost=lost)
        if call.query.get("strict", "1") == "0":
            lost |= {"invalid": len(failed)} if failed else {}
            return Judged(_imported(len(events)), events, lost)
        if failed:
            reply = json_reply(400, {
                "code": 400,
                "error": "some data points in the request failed validation",
                "status": "Bad Request",
                "num_records_imported": len(events),
                "failed_records": failed,
            })  # fmt: skip
            return Judged(reply, events, lost)
        return Judged(_imported(len(events)), events, lost)

    def _track(self, call: Call) -> Judged:
        form = _form(call) or {}
        try:
            records = _records(call, form or None)
        except ValueError:
            return _verbosely(form, "data, missing or empty")
        events: list[Event] = []
        taken: list[Any] = []
        lost = 0
        for record in records:
            properties = record.get("properties") if isinstance(record, dict) else None
            if not isinstance(properties, dict) or not record.get("event"):
                return _verbosely(form, "event or properties are missing")
            if not properties.get("token"):
                return _verbosely(form, "token, missing or empty")
            event = event_of(record, call.now_us)
            if event.time_us < call.now_us - _TRACK_AGE_US:
                lost += 1
            else:
                events.append(event)
                taken.append(record)
        answer = _verbosely(form, None)
        old = {"older than five days": lost} if lost else {}
        return answer._replace(events=events, lost=old | cut(taken, _TEXT))


def _credentials(call: Call) -> Judged | None:
    """Basic: a token without a password, or a service account and its project."""
    kind, _, value = call.headers.get("authorization", "").partition(" ")
    try:
        user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        user = password = ""
    if kind.lower() != "basic" or not user:
        return _error(401, "credentials are missing")
    if password and not call.query.get("project_id"):
        return _error(401, "a service account needs project_id")
    return None


def _form(call: Call) -> Mapping[str, str] | None:
    if not call.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return None
    try:
        given = parse_qs(call.body.decode(), max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[0] for name, values in given.items()}


def _records(call: Call, form: Mapping[str, str] | None) -> list[Any]:
    """The events of the body. Raises ValueError."""
    if form is not None:
        data = form.get("data", "")
        try:
            found = orjson.loads(data)
        except ValueError:
            try:
                found = orjson.loads(base64.b64decode(data, validate=True))
            except binascii.Error as error:
                raise ValueError("data is neither JSON nor base64 of it") from error
    elif call.headers.get("content-type", "").startswith("application/x-ndjson"):
        return [orjson.loads(line) for line in call.body.splitlines() if line.strip()]
    else:
        found = call.document()
    return found if isinstance(found, list) else [found]


def _too_large(record: Any) -> tuple[str, str] | None:
    return ("event", "is larger than 1 MB") if len(orjson.dumps(record)) > _EVENT_BYTES else None


def _imported(count: int) -> Reply:
    return json_reply(200, {"code": 200, "num_records_imported": count, "status": "OK"})


def _error(status: int, text: str) -> Judged:
    return Judged(json_reply(status, {"code": status, "error": text, "status": _STATUS[status]}))


def _verbosely(form: Mapping[str, str], error: str | None) -> Judged:
    """As /track answers: 1 or 0, or with verbose=1 an object."""
    if form.get("verbose") == "1":
        return Judged(json_reply(200, {"status": int(error is None), "error": error}))
    return Judged(text_reply(200, str(int(error is None))))


def _form_answer(form: Mapping[str, str], failed: int) -> Judged:
    return _verbosely(form, f"{failed} data points failed validation" if failed else None)


def _profiles(call: Call) -> Judged:
    return _verbosely(_form(call) or {}, None)
