"""Amplitude: HTTP V2 and Batch Event Upload.

amplitude.com/docs/apis/analytics: http-v2, batch-event-upload, http-api-batching-retries.

A request is taken whole or not at all. `insert_id` on one device, or on one user where there is no
device, is known for seven days. Text of more than 1,024 characters is cut, which `lost` counts as
"text cut"; an id that is too short is removed from an event that has another, which it counts as
"id removed". Documented elsewhere: where none is left they are named in
`events_with_invalid_id_lengths` (Amplitude-TypeScript #81), and the text of a bad key is what its
Python SDK looks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from headrace.vendors.model import Call, Event, Judge, Judged, Reply, cut, json_reply
from headrace.vendors.rates import Rolling
from ingest.units import DAY_US, SECOND_US

__all__ = ["Amplitude"]

_MOST_EVENTS = 2000
_MIN_ID = 5
_TEXT = 1024
_NO_ID = frozenset({
    "anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown", "",
    "00000000-0000-0000-0000-000000000000", "{}", "lmy47d", "0", "-1",
})  # fmt: skip
_DAILY = 500_000
_ID_FIELDS = ("user_id", "device_id")


@dataclass(frozen=True, slots=True)
class _Endpoint:
    max_bytes: int
    # Events a second of one user or device.
    eps: int
    rates: Mapping[str, Rolling]
    # HTTP V2 names the first bad event of each kind, Batch all of them.
    names_all: bool


def _rates(most: int, span_us: int, slots: int) -> Mapping[str, Rolling]:
    """Users and devices are counted each by themselves."""
    return {field: Rolling(most, span_us, slots) for field in _ID_FIELDS}


class Amplitude:
    name = "amplitude"
    gzip = True
    window_us: int | None = 7 * DAY_US

    def __init__(self) -> None:
        self._live = _Endpoint(1_000_000, 30, _rates(30, SECOND_US, 10), names_all=False)
        # Its thousand a second are an average over 30 seconds.
        self._batch = _Endpoint(
            20_000_000, 1000, _rates(30_000, 30 * SECOND_US, 30), names_all=True
        )
        self._daily = _rates(_DAILY, DAY_US, 48)

    def paths(self) -> Mapping[str, Judge]:
        return {
            "/2/httpapi": partial(self._judge, self._live),
            "/batch": partial(self._judge, self._batch),
        }

    def throttled(self) -> Reply:
        return _throttled(30, {}, {}, [], {}, {})

    def revoked(self) -> Reply:
        return json_reply(400, {"code": 400, "error": "Invalid API key: it was revoked"})

    def _judge(self, endpoint: _Endpoint, call: Call) -> Judged:  # noqa: PLR0911 (one for each rule)
        if len(call.body) > endpoint.max_bytes:
            return _too_large(f"{len(call.body)} bytes")
        try:
            body = call.document()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return _bad("Invalid JSON request body")
        if not isinstance(body.get("api_key"), str) or not body["api_key"]:
            return _bad("Request missing required field", missing_field="api_key")
        events = body.get("events")
        if not isinstance(events, list) or not events:
            return _bad("Request missing required field", missing_field="events")
        if len(events) > _MOST_EVENTS:
            return _too_large(f"{len(events)} events")
        options = body.get("options")
        least = options.get("min_id_length", _MIN_ID) if isinstance(options, dict) else _MIN_ID
        if not isinstance(least, int):
            return _bad("Invalid option min_id_length")
        bad = _Bad()
        taken = [bad.check(n, event, least, call.now_us) for n, event in enumerate(events)]
        if bad.found:
            return bad.judged(names_all=endpoint.names_all)
        whole = [event for event in taken if event is not None]
        throttled = self._throttle(endpoint, whole, call.now_us)
        if throttled is not None:
            return Judged(throttled)
        reply = json_reply(200, {
            "code": 200,
            "events_ingested": len(whole),
            "payload_size_bytes": len(call.body),
            "server_upload_time": call.now_us // 1000,
        })  # fmt: skip
        lost = cut(events, _TEXT)
        if removed := sum(event.id_removed for event in whole):
            lost["id removed"] = removed
        return Judged(reply, [event.stored for event in whole], lost)

    def _throttle(self, endpoint: _Endpoint, events: Sequence[_Taken], now: int) -> Reply | None:
        """429 if a user or device sends too much, with nothing taken; else all is counted."""
        asked = {
            field: Counter(event.ids[field] for event in events if field in event.ids)
            for field in _ID_FIELDS
        }
        fast = {f: endpoint.rates[f].over(counts, now) for f, counts in asked.items()}
        spent = {f: self._daily[f].over(counts, now) for f, counts in asked.items()}
        if not any((*fast.values(), *spent.values())):
            for field, counts in asked.items():
                endpoint.rates[field].add(counts, now)
                self._daily[field].add(counts, now)
            return None
        indexes = [
            n
            for n, event in enumerate(events)
            if any(w in fast[field] or w in spent[field] for field, w in event.ids.items())
        ]
        return _throttled(
            endpoint.eps, fast["device_id"], fast["user_id"], indexes,
            spent["device_id"], spent["user_id"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Taken:
    ids: Mapping[str, str]
    stored: Event
    id_removed: bool


class _Bad:
    """The events of a request that are not as they must be."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[int]]] = {}

    def _add(self, kind: str, field: str, index: int) -> None:
        self.found.setdefault(kind, {}).setdefault(field, []).append(index)

    def check(self, n: int, event: Any, least: int, now_us: int) -> _Taken | None:
        """What is taken of it, or None: it is bad, and noted."""
        if not isinstance(event, dict):
            self._add("events_with_missing_fields", "event_type", n)
            return None
        good = True
        name = event.get("event_type")
        if not isinstance(name, str) or not name:
            self._add("events_with_missing_fields", "event_type", n)
            good = False
        ids: dict[str, str] = {}
        short: list[str] = []
        for field in _ID_FIELDS:
            value = event.get(field)
            if value is None:
                continue
            text = str(value)
            if text.lower() in _NO_ID:
                self._add("events_with_invalid_fields", field, n)
                good = False
            elif len(text) < least:
                short.append(field)
            else:
                ids[field] = text
        if good and not ids:
            # An id that is too short is removed; none is left.
            for field in short:
                self._add("events_with_invalid_id_lengths", field, n)
            if not short:
                self._add("events_with_missing_fields", "user_id", n)
            good = False
        time_ms = event.get("time")
        if time_ms is not None and (
            not isinstance(time_ms, int) or isinstance(time_ms, bool) or time_ms < 0
        ):
            self._add("events_with_invalid_fields", "time", n)
            good = False
        if not good:
            return None
        key = event.get("insert_id")
        key = key if isinstance(key, str) else ""
        device, user = ids.get("device_id"), ids.get("user_id")
        # Without a device, Amplitude makes one of the user.
        identity = f"{device or 'user ' + (user or '')}\0{key}" if key else ""
        time_us = now_us if time_ms is None else time_ms * 1000
        stored = Event(key, str(name), user or device or "", time_us, identity)
        return _Taken(ids, stored, bool(short))

    def judged(self, *, names_all: bool) -> Judged:
        short = "events_with_invalid_id_lengths"
        only_short = set(self.found) == {short}
        error = "Invalid id length for user_id or device_id" if only_short else "Invalid events"
        shown = {
            kind: {f: (all_ if names_all else all_[:1]) for f, all_ in by_field.items()}
            for kind, by_field in self.found.items()
        }
        empty: dict[str, Any] = {
            "events_with_invalid_fields": {}, "events_with_missing_fields": {},
        }  # fmt: skip
        return _bad(error, **{**empty, **shown})


def _bad(error: str, **more: Any) -> Judged:
    return Judged(json_reply(400, {"code": 400, "error": error, "missing_field": None, **more}))


def _too_large(what: str) -> Judged:
    return Judged(json_reply(413, {"code": 413, "error": f"Payload too large: {what}"}))


def _throttled(
    eps: int, devices: Mapping[str, int], users: Mapping[str, int], indexes: Sequence[int],
    spent_devices: Mapping[str, int], spent_users: Mapping[str, int],
) -> Reply:  # fmt: skip
    return json_reply(429, {
        "code": 429,
        "error": "Too many requests for some devices and users",
        "eps_threshold": eps,
        "throttled_devices": devices,
        "throttled_users": users,
        "throttled_events": indexes,
        "exceeded_daily_quota_devices": spent_devices,
        "exceeded_daily_quota_users": spent_users,
    })  # fmt: skip
