"""Every vendor as the conformance suite needs it: settings, and a reader of what it sends.

A reader is written from the vendor's documents, not from our module: it finds in a body what the
vendor would find there.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from consumers.trace.event import Event
from consumers.vendors import Answer, Request, Sending, Vendor, vendor

SECRET = "s3cr3t-Xy_7.Zq~9+/="
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Seen:
    """One event, as the vendor reads it."""

    key: str
    name: str
    time_us: int
    user: str | None
    device: str | None
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class Under:
    """One vendor under test."""

    table: Mapping[str, Any]
    read: Callable[[Any], list[Seen]]
    # What else the body may say: names of fields, and values that are the same for all events.
    fields: frozenset[str]
    values: tuple[Any, ...] = ()
    # To what its times are exact.
    exact_us: int = 1
    # It knows only text and numbers.
    only_text: bool = False
    # At which time it is to see an event.
    at_us: Callable[[Event], int] = field(default=lambda event: event.time_us)
    # Its keys must have a form of their own: UUIDs, mostly.
    key: Callable[[str], bool] = field(default=lambda key: True)
    # What it says when it has taken all; None where any 2xx says so.
    yes: Answer | None = None
    # Whether a key keeps a copy single. If not, after an answer that is odd a person has to look.
    keyed: bool = True

    def make(self, name: str, **settings: Any) -> Vendor:
        return vendor(name, {**self.table, **settings}, {"A_KEY": SECRET})


NOW_US = 1_790_000_000_123_456


def an_event(**given: Any) -> Event:
    """An event that every vendor takes, with what is given of it."""
    usual = Event(
        "e-1",
        "key-1",
        "page_view",
        NOW_US - 1,
        NOW_US,
        "user-1",
        "device-1",
        {"category": "billing"},
    )
    return replace(usual, **given)


def refusal(v: Vendor, event: Event, **terms: Any) -> str | None:
    """The code of why an event is not sent, None if it is."""
    out = v.requests([event], Sending(**{"now_us": NOW_US, **terms}))
    return str(out.refused[0].reason.code) if out.refused else None


def request_of(v: Vendor, *sent: Event, **terms: Any) -> Request:
    """The only request of these events."""
    (request,) = v.requests(sent or [an_event()], Sending(**{"now_us": NOW_US, **terms})).requests
    return request


def many_of(count: int) -> list[Event]:
    """Of as many users and devices."""
    return [
        an_event(key=f"key-{n}", user_id=f"user-{n}", device_id=f"device-{n}") for n in range(count)
    ]


def answer(status: int, body: Any = b"", **headers: str) -> Answer:
    """An answer; what is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): text for name, text in headers.items()}, data)


def document(request: Request) -> Any:
    """The body as the vendor parses it."""
    body = request.body
    if request.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return json.loads(body)


def seen(under: Under, request: Request) -> list[Seen]:
    return under.read(document(request))


def iso_us(text: str) -> int:
    return (datetime.fromisoformat(text.replace("Z", "+00:00")) - EPOCH) // timedelta(
        microseconds=1
    )


def without(properties: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if name not in names}


def amplitude(body: Any) -> list[Seen]:
    assert body["api_key"] == SECRET
    return [
        Seen(
            e["insert_id"],
            e["event_type"],
            e["time"] * 1000,
            e.get("user_id"),
            e.get("device_id"),
            e["event_properties"],
        )
        for e in body["events"]
    ]


def ga4(body: Any) -> list[Seen]:
    return [
        Seen(
            e["params"]["event_id"],
            e["name"],
            e["timestamp_micros"],
            body.get("user_id"),
            body["client_id"],
            without(e["params"], "event_id"),
        )
        for e in body["events"]
    ]


def heap(body: Any) -> list[Seen]:
    assert body["app_id"] == SECRET
    return [
        Seen(
            e["idempotency_key"],
            e["event"],
            iso_us(e["timestamp"]),
            e["identity"],
            None,
            e["properties"],
        )
        for e in body["events"]
    ]


def mixpanel(body: Any) -> list[Seen]:
    found = []
    for e in body:
        p = e["properties"]
        assert p["distinct_id"] == p.get("$user_id", p.get("$device_id", ""))
        own = ("time", "distinct_id", "$insert_id", "$user_id", "$device_id")
        found.append(
            Seen(
                p["$insert_id"],
                e["event"],
                p["time"] * (1000 if p["time"] >= 10**11 else 1_000_000),
                p.get("$user_id"),
                p.get("$device_id"),
                without(p, *own),
            )
        )
    return found


def mixpanel_at_us(event: Event) -> int:
    """Whole seconds before 3 March 1973: it reads no milliseconds that early."""
    at_us = min(event.time_us, event.received_us)
    return at_us if at_us >= 10**14 else at_us // 1_000_000 * 1_000_000


def posthog(body: Any) -> list[Seen]:
    assert body["api_key"] == SECRET
    return [
        Seen(
            e["uuid"],
            e["event"],
            iso_us(e["timestamp"]),
            e["distinct_id"],
            e["properties"].get("$device_id"),
            without(e["properties"], "$device_id"),
        )
        for e in body["batch"]
    ]


def webhook(body: Any) -> list[Seen]:
    return [
        Seen(e["id"], e["name"], e["time"], e["user_id"], e["device_id"], e["properties"])
        for e in body["events"]
    ]


def a_uuid(key: str) -> bool:
    return len(key) == 36 and key.count("-") == 4


def an_insert_id(key: str) -> bool:
    refused = (
        "00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "na",
        "undefined", "unknown", "0", "-1", "true", "false",
    )  # fmt: skip
    return (
        0 < len(key) <= 36
        and key.isascii()
        and key.replace("-", "a").isalnum()
        and key.lower() not in refused
    )


# Names of fields, as the vendors' documents have them.
AMPLITUDE = frozenset({
    "api_key", "options", "min_id_length", "events", "event_type", "time", "insert_id",
    "event_properties", "user_id", "device_id", "$skip_user_properties_sync",
})  # fmt: skip
GA4 = frozenset({
    "client_id", "user_id", "events", "name", "timestamp_micros", "params", "event_id",
    "transaction_id",
})  # fmt: skip
HEAP = frozenset({
    "app_id", "events", "identity", "event", "timestamp", "properties", "idempotency_key",
})  # fmt: skip
MIXPANEL = frozenset({
    "event", "properties", "time", "distinct_id", "$insert_id", "$user_id", "$device_id",
})  # fmt: skip
POSTHOG = frozenset({
    "api_key", "batch", "historical_migration", "event", "distinct_id", "uuid", "timestamp",
    "properties", "$device_id",
})  # fmt: skip
WEBHOOK = frozenset({"events", "id", "name", "time", "user_id", "device_id", "properties"})

UNDER: Mapping[str, Under] = {
    "amplitude": Under(
        {"api_key_env": "A_KEY"},
        amplitude,
        AMPLITUDE,
        (SECRET, 5, True),
        exact_us=1000,
        yes=Answer(200, {}, b'{"code": 200, "events_ingested": 1}'),
    ),
    "ga4": Under(
        {"api_secret_env": "A_KEY", "measurement_id": "G-1"},
        ga4,
        GA4,
        only_text=True,
        key=lambda key: len(key) <= 100,
        yes=Answer(204, {}, b""),
        keyed=False,
    ),
    "heap": Under(
        {"app_id_env": "A_KEY"},
        heap,
        HEAP,
        (SECRET,),
        only_text=True,
    ),
    "mixpanel": Under(
        {"token_env": "A_KEY"},
        mixpanel,
        MIXPANEL,
        exact_us=1000,
        at_us=mixpanel_at_us,
        key=an_insert_id,
        yes=Answer(200, {}, b'{"code": 200, "num_records_imported": 1, "status": "OK"}'),
    ),
    "posthog": Under(
        {"api_key_env": "A_KEY"},
        posthog,
        POSTHOG,
        (SECRET, True, False),
        key=a_uuid,
        yes=Answer(200, {}, b'{"status": "Ok"}'),
    ),
    "webhook": Under(
        {"url": "https://example.com/events", "secret_env": "A_KEY"},
        webhook,
        WEBHOOK,
    ),
}


def query(request: Request) -> dict[str, list[str]]:
    return parse_qs(urlsplit(request.url).query)
