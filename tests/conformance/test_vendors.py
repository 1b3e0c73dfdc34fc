"""The contract of consumers/vendors/__init__.py, held to every vendor of the registry."""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vendor_events import HOLD, HOLD_LARGE, OURS, events, many, sendings, some
from vendors_under_test import NOW_US, SECRET, UNDER, Seen, Under, document, seen

from consumers.trace.event import Event
from consumers.vendors import (
    VENDORS,
    Accepted,
    Answer,
    Outgoing,
    PartlyRejected,
    Request,
    RetryAfter,
    SlowDown,
    Split,
    Stop,
    Vendor,
    account,
)
from consumers.vendors import Sending as Terms

vendors = pytest.mark.parametrize("name", UNDER)


def every_event(out: Outgoing) -> Iterator[Event]:
    for request in out.requests:
        yield from request.events
    for refused in out.refused:
        yield refused.event


def laws_of_requests(under: Under, v: Vendor, sent: list[Event], terms: Terms) -> Outgoing:
    """What holds for any events; answers them as they go out."""
    out = v.requests(sent, terms)
    assert Counter(map(id, every_event(out))) == Counter(map(id, sent))
    limits = v.limits(backfill=terms.backfill)
    place = {id(event): n for n, event in enumerate(sent)}
    last: dict[str, int] = {}
    for request in out.requests:
        body = document(request)
        size = len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
        # Floats are written shorter by one than by the other.
        plain = request.headers.get("Content-Encoding") is None
        assert (len(request.body) if plain else size - 64 * len(request.events)) <= limits.max_bytes
        assert 1 <= len(request.events) <= limits.max_events
        of_user: Counter[str] = Counter()
        for event in request.events:
            for user in v.users(event):
                of_user[user] += 1
                assert last.get(user, -1) <= place[id(event)], "events of a user overtake"
                last[user] = place[id(event)]
        assert max(of_user.values()) <= limits.max_user_events
        assert len(under.read(body)) == len(request.events)
    return out


def distinct(sent: list[Event]) -> list[Event]:
    """Each with an identity of its own, also where the strategy gave the same object twice."""
    return [replace(event) for event in sent]


def test_every_vendor_of_the_registry_is_held_to_the_suite() -> None:
    """A new line in the registry needs settings and a reader here."""
    assert set(VENDORS) == set(UNDER), "give it an entry in tests/vendors_under_test.py"


@vendors
@HOLD
@given(sent=some, terms=sendings)
def test_each_event_is_in_one_request_or_refused_and_within_the_limits(
    name: str, sent: list[Event], terms: Terms
) -> None:
    under = UNDER[name]
    laws_of_requests(under, under.make(name), distinct(sent), terms)


@vendors
@HOLD_LARGE
@given(sent=many(), backfill=st.booleans())
def test_thousands_of_events_are_within_the_limits(
    name: str, sent: list[Event], backfill: bool
) -> None:
    """Of count, of bytes, of one user; the bytes that count are those before gzip."""
    under = UNDER[name]
    v = under.make(name)
    out = laws_of_requests(under, v, sent, Terms(NOW_US, backfill=backfill))
    limits = v.limits(backfill=backfill)
    shown = [len(request.shown().body.encode()) for request in out.requests]
    assert max(shown, default=0) <= limits.max_bytes
    assert sum(len(r.events) for r in out.requests) + len(out.refused) == len(sent)


@vendors
@pytest.mark.parametrize("backfill", [False, True])
def test_a_request_never_holds_more_than_a_rate_allows_at_once(name: str, backfill: bool) -> None:
    """Otherwise a sender that keeps to the rate could never send it."""
    limits = UNDER[name].make(name).limits(backfill=backfill)
    assert limits.max_event_bytes <= limits.max_bytes
    for rate in limits.rates:
        at_once = limits.max_user_events if rate.scope == "user" else limits.max_events
        assert at_once <= rate.events


def as_sent(under: Under, event: Event, got: Seen) -> None:
    """What the vendor sees is the event."""
    assert got.name == event.name
    assert abs(got.time_us - under.at_us(event)) < under.exact_us
    assert under.key(got.key)
    who = {event.user_id or None, event.device_id or None, None, ""}
    assert {got.user, got.device} <= who
    assert got.user or got.device or not (event.user_id or event.device_id)
    for name, value in got.properties.items():
        if name == "transaction_id" and event.name == "purchase" and value == got.key:
            was = event.properties.get(name)
            assert was in (None, "", got.key) or name in event.scrubbed
            continue
        mine = event.properties[name]
        if under.only_text and isinstance(mine, bool):
            mine = "true" if mine else "false"
        assert value == mine
        assert isinstance(value, bool) == isinstance(mine, bool)
    gone = event.properties.keys() - got.properties.keys()
    assert all(under.only_text and event.properties[name] is None for name in gone)


@vendors
@HOLD
@given(sent=some, terms=sendings)
def test_a_vendor_sees_the_event_under_its_key_at_its_time(
    name: str, sent: list[Event], terms: Terms
) -> None:
    """The key is the event's, or is made from it alone where the vendor's have a form."""
    under = UNDER[name]
    found: dict[str, str] = {}
    for request in under.make(name).requests(sent, terms).requests:
        for event, got in zip(request.events, seen(under, request), strict=True):
            as_sent(under, event, got)
            assert found.setdefault(event.key, got.key) == got.key
            if under.key(event.key):
                assert got.key == event.key
    assert len(set(found.values())) == len(found), "two keys became one"


@vendors
@HOLD
@given(sent=some, other=some, backfill=st.booleans())
def test_an_event_is_the_same_whenever_it_is_sent_again(
    name: str, sent: list[Event], other: list[Event], backfill: bool
) -> None:
    """Vendors know a copy by key, name, time and ids: none may depend on clock or company."""
    under = UNDER[name]
    v = under.make(name)
    whole: dict[int, Seen] = {}
    terms = (Terms(NOW_US), Terms(NOW_US + 3600 * 10**6, backfill=backfill))
    sent = distinct(sent)
    for batch, at in ((sent, terms[0]), (other + sent[::-1], terms[1])):
        for request in v.requests(batch, at).requests:
            for event, got in zip(request.events, seen(under, request), strict=True):
                assert whole.setdefault(id(event), got) == got


def leaves(found: Any) -> Iterator[Any]:
    if isinstance(found, dict):
        for name, value in found.items():
            yield ("name", name)
            yield from leaves(value)
    elif isinstance(found, list):
        for value in found:
            yield from leaves(value)
    else:
        yield ("value", found)


@vendors
@HOLD
@given(sent=some, terms=sendings)
def test_nothing_leaves_but_what_is_for_vendors(name: str, sent: list[Event], terms: Terms) -> None:
    """Every name and every value in a body is accounted for; our id and place are nowhere."""
    under = UNDER[name]
    for request in under.make(name).requests(sent, terms).requests:
        shown = request.shown()
        everything = " ".join((shown.url, str(dict(shown.headers)), shown.body))
        assert OURS not in everything
        assert "987654321" not in everything
        allowed: set[Any] = {repr(value) for value in under.values}
        names_allowed = set(under.fields)
        got = seen(under, request)
        for event, read in zip(request.events, got, strict=True):
            names_allowed |= event.properties.keys()
            stamps = (read.time_us, read.time_us // 1000, read.time_us // 1_000_000)
            words = (event.name, event.user_id, event.device_id, read.key)
            properties = tuple(event.properties.values())
            allowed |= {repr(x) for x in (*stamps, *words, *properties)}
            if under.only_text:
                allowed |= {repr("true"), repr("false")} & {
                    repr(str(x).lower()) for x in properties if isinstance(x, bool)
                }
        for kind, leaf in leaves(document(request)):
            if kind == "name":
                assert leaf in names_allowed
            elif isinstance(leaf, str) and leaf.endswith("Z") and repr(leaf) not in allowed:
                # A time, which the reader has read.
                assert "timestamp" in under.fields
            else:
                assert repr(leaf) in allowed or leaf == ""


def credentials(request: Request) -> list[str]:
    """In each form in which they stand in the request; at least in one."""
    wire = " ".join((request.url, *request.headers.values(), json.dumps(document(request))))
    forms = [SECRET, quote(SECRET, safe=""), b64encode(f"{SECRET}:".encode()).decode()]
    forms += [request.headers.get("Headrace-Signature", "=-").rpartition("=")[2]]
    found = [form for form in forms if form in wire and len(form) > 16]
    assert found
    return [SECRET, *found]


@vendors
@HOLD
@given(sent=some, terms=sendings)
def test_the_reason_of_a_refusal_shows_no_value(name: str, sent: list[Event], terms: Terms) -> None:
    """Receipts are read by more people than events are."""
    planted = "planted-value-" + "v" * 1200
    over = [
        replace(event, user_id=event.user_id and planted[:n], properties={"category": planted[:n]})
        for event in sent
        for n in (20, 1200)
    ]
    for refused in UNDER[name].make(name).requests(over, terms).refused:
        assert planted[:14] not in refused.reason.text
        assert refused.reason.text


@vendors
@HOLD
@given(event=events, terms=sendings, status=st.sampled_from([200, 400, 401, 403, 413, 429, 500]))
def test_credentials_are_sent_and_never_shown(
    name: str, event: Event, terms: Terms, status: int
) -> None:
    """Not by repr, not in what is shown of a request, not when the vendor's answer repeats them."""
    v = UNDER[name].make(name)
    assert SECRET not in repr(v)
    good = Event("e", "key-1", "page_view", NOW_US - 1, NOW_US, "user-1", "device-1", {})
    for request in v.requests([event, good], terms).requests:
        shown = request.shown()
        for word in credentials(request):
            assert word not in repr(request)
            assert word not in repr(shown)
            echo = json.dumps({"error": f"key {word}", "description": word}).encode()
            # PHP's JSON, and others', has a backslash before each slash.
            escaped = word.replace("/", "\\/")
            as_php = f"key {escaped}".encode()
            for body in (echo, echo.replace(b"/", b"\\/"), as_php, b" " * 290 + word.encode()):
                said = repr(v.verdict(request, Answer(status, {}, body), NOW_US))
                assert word not in said
                assert escaped not in said.replace("\\\\", "\\")


words = st.sampled_from([
    "code", "error", "status", "missing_field", "events_with_invalid_fields",
    "events_with_missing_fields", "events_with_invalid_id_lengths", "time", "silenced_events",
    "silenced_devices", "throttled_events", "throttled_users", "throttled_devices",
    "exceeded_daily_quota_users", "exceeded_daily_quota_devices", "failed_records", "index",
    "insert_id", "$insert_id", "field", "message", "num_records_imported", "quota_limited",
    "validationMessages", "fieldPath", "validationCode", "description", "user-1", "device-1",
    "key-0", "events",
])  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from([200, 400, 10**30]) | words
)
answers = st.recursive(
    scalars | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=20,
)
bodies = (
    answers.map(lambda found: json.dumps(found).encode())
    | st.binary(max_size=40)
    | st.sampled_from([b"", b"{", b"<html>Bad Gateway</html>", b"[" * 5000, b"\xff\xfe", b"1"])
)
statuses = st.integers(100, 599) | st.sampled_from([200, 400, 429, 413, 0, 999])
waits = st.sampled_from(
    ["", "3", "-1", "nan", "1e999", "soon", "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 99 Oct 0 GMT"]
) | st.text(max_size=8)


@vendors
@settings(HOLD, max_examples=150)
@given(status=statuses, body=bodies, wait=waits, count=st.integers(1, 4), backfill=st.booleans())
def test_every_answer_is_a_verdict_on_each_event_once(
    name: str, status: int, body: bytes, wait: str, count: int, backfill: bool
) -> None:
    """Rubbish too; a single event is never split; nobody is told to wait for ever."""
    v = UNDER[name].make(name)
    (request,) = a_request(v, count, backfill=backfill)
    verdict = v.verdict(request, Answer(status, {"retry-after": wait}, body), NOW_US)
    found = account(verdict, count)
    positions = [*found.accepted, *found.rejected, *found.again]
    assert sorted(positions) == list(range(count))
    assert not (count == 1 and isinstance(verdict, Split))
    if isinstance(verdict, PartlyRejected):
        assert verdict.rejected, "else the request would never change"
    if isinstance(verdict, SlowDown):
        mine = {user for event in request.events for user in v.users(event)}
        assert verdict.users.keys() & mine, "else all would come again at once, and for ever"
        assert all(0 < seconds <= 3600 for seconds in verdict.users.values())
    if 400 <= status < 600 or 300 <= status < 400:
        assert not isinstance(verdict, Accepted)
    seconds = getattr(verdict, "seconds", None)
    assert seconds is None or 0 <= seconds <= 3600


def a_request(v: Vendor, count: int, *, backfill: bool = False) -> tuple[Request, ...]:
    sent = [
        Event(f"e{n}", f"key-{n}", "page_view", NOW_US - n, NOW_US, "user-1", "device-1", {})
        for n in range(count)
    ]
    return v.requests(sent, Terms(NOW_US, backfill=backfill)).requests


@vendors
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_bad_event_is_found_by_halving(name: str, status: int) -> None:
    """A vendor that says no more than "no" loses one event of eight, not eight."""
    v, yes = UNDER[name].make(name), UNDER[name].yes or Answer(200, {}, b"{}")
    accepted: set[str] = set()
    rejected: set[str] = set()
    waiting = list(a_request(v, 8))
    asked = 0
    while waiting:
        request = waiting.pop()
        asked += 1
        bad = any(event.key == "key-5" for event in request.events)
        answer = Answer(status, {}, b"no") if bad else yes
        verdict = v.verdict(request, answer, NOW_US)
        if isinstance(verdict, Split):
            half = len(request.events) // 2
            for part in (request.events[:half], request.events[half:]):
                waiting += v.requests(part, Terms(NOW_US)).requests
            continue
        found = account(verdict, len(request.events))
        assert not found.again
        accepted |= {request.events[n].key for n in found.accepted}
        rejected |= {request.events[n].key for n in found.rejected}
    assert rejected == {"key-5"}
    assert accepted == {f"key-{n}" for n in range(8)} - rejected
    assert asked <= 7


@vendors
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>hotel wifi</html>"), (202, b"<html>queued</html>"), (203, b""), (204, b""),
        (206, b'{"code": 20'), (200, b"{}"), (200, b'{"error": "nope"}'), (200, b"[]"), (200, b"1"),
    ],
)  # fmt: skip
def test_a_2xx_that_is_not_the_vendors_own_is_no_yes(name: str, status: int, body: bytes) -> None:
    """A login's page, a proxy's cache: the events go again, and may be there already.

    Where nothing knows a copy they do not: an endpoint of one's own that says "ok" has them.
    """
    v, yes = UNDER[name].make(name), UNDER[name].yes
    (request,) = a_request(v, 3)
    verdict = v.verdict(request, Answer(status, {}, body), NOW_US)
    if yes is None or body == yes.body:
        assert verdict == Accepted()
    else:
        assert v.verdict(request, yes, NOW_US) == Accepted()
        if UNDER[name].keyed:
            assert isinstance(verdict, RetryAfter)
            assert verdict.unknown
        else:
            assert isinstance(verdict, Stop)


@vendors
@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 404, 405, 415, 431, 505])
def test_a_wrong_key_or_address_stops_and_rejects_nothing(name: str, status: int) -> None:
    """A redirect too: following it would carry credentials elsewhere."""
    v = UNDER[name].make(name)
    (request,) = a_request(v, 3)
    verdict = v.verdict(request, Answer(status, {"location": "http://x/"}, b""), NOW_US)
    assert type(verdict).__name__ == "Stop"
    assert account(verdict, 3).again == {0, 1, 2}
