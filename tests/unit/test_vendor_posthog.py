"""PostHog's peculiarities: A6 of the project's facts about vendors."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from vendors_under_test import NOW_US, UNDER, an_event, answer, document, refusal, request_of

from consumers.vendors import Accepted, RetryAfter, Sending, Split, Stop, Vendor
from consumers.vendors.packing import Rate
from ingest.units import HOUR_US


def posthog(**settings: Any) -> Vendor:
    return UNDER["posthog"].make("posthog", **settings)


def test_the_address_ends_with_a_slash_in_the_cloud_and_at_home() -> None:
    assert request_of(posthog()).url == "https://us.i.posthog.com/batch/"
    assert request_of(posthog(region="eu")).url == "https://eu.i.posthog.com/batch/"
    home = posthog(endpoint="https://posthog.example.com")
    assert request_of(home).url == "https://posthog.example.com/batch/"


def test_an_event_is_in_the_form_of_batch() -> None:
    (sent,) = document(request_of(posthog(), an_event(time_us=1_790_000_000_123_456)))["batch"]
    assert sent == {
        "event": "page_view",
        "distinct_id": "user-1",
        "uuid": str(uuid.UUID(sent["uuid"])),
        "timestamp": "2026-09-21T14:13:20.123456Z",
        "properties": {"category": "billing", "$device_id": "device-1"},
    }


def test_a_key_that_is_a_uuid_is_the_uuid_in_its_own_letters() -> None:
    for key in ("0191e1a0-0000-7000-8000-000000000001", "0191E1A0-0000-7000-8000-00000000000F"):
        (sent,) = document(request_of(posthog(), an_event(key=key)))["batch"]
        assert sent["uuid"] == key


def test_a_migration_is_marked_when_all_of_it_is_older_than_48_hours() -> None:
    """Older than that, and sent as backfill: else events are watched for spikes."""
    old = an_event(time_us=NOW_US - 48 * HOUR_US - 1)
    young = an_event(time_us=NOW_US - 48 * HOUR_US, key="key-2")
    for sent, terms, marked in (
        ([old], {"backfill": True}, True),
        ([old, young], {"backfill": True}, False),
        ([old], {}, False),
    ):
        body = document(request_of(posthog(), *sent, **terms))
        assert body["historical_migration"] is marked
        assert len(body["batch"]) == len(sent)


def test_a_backfill_is_as_slow_as_posthog_asks_unless_told() -> None:
    assert posthog().limits(backfill=True).rates == (Rate(10_000, 60),)
    assert posthog().limits(backfill=False).rates == ()
    assert posthog(backfill_per_minute=0).limits(backfill=True).rates == ()
    slow = posthog(backfill_per_minute=100)
    sent = [an_event(key=f"k{n}") for n in range(250)]
    out = slow.requests(sent, Sending(NOW_US, backfill=True))
    assert [len(r.events) for r in out.requests] == [100, 100, 50]


def test_an_event_is_900_kib_at_most() -> None:
    assert refusal(posthog(), an_event(properties={"x": "x" * 900_000})) is None
    assert refusal(posthog(), an_event(properties={"x": "x" * 921_600})) == "event_too_large"


@pytest.mark.parametrize("name", ["distinct_id", "token", "$device_id"])
def test_properties_that_posthog_reads_itself_are_refused(name: str) -> None:
    assert refusal(posthog(), an_event(properties={name: "x"})) == "property_reserved"


def test_an_id_that_would_be_cut_or_is_missing_is_refused() -> None:
    """Without one the event is dropped, or the whole batch refused."""
    assert refusal(posthog(), an_event(user_id="u" * 200)) is None
    assert refusal(posthog(), an_event(user_id="u" * 201)) == "id_invalid"
    assert refusal(posthog(), an_event(user_id=None, device_id=None)) == "id_missing"


@pytest.mark.parametrize("yes", [1, "Ok"])
def test_a_200_may_say_that_everything_is_dropped(yes: int | str) -> None:
    """1 is what the documents say, "Ok" what the capture service writes."""
    v, request = posthog(), request_of(posthog())
    assert v.verdict(request, answer(200, {"status": yes}), NOW_US) == Accepted()
    recordings = {"status": yes, "quota_limited": ["recordings"]}
    assert v.verdict(request, answer(200, recordings), NOW_US) == Accepted()
    limited = v.verdict(request, answer(200, {"status": yes, "quota_limited": ["events"]}), NOW_US)
    assert isinstance(limited, RetryAfter)
    assert limited.seconds == 60
    assert not limited.unknown


@pytest.mark.parametrize("body", [b"Ok", {"status": 0}, {"status": "Error"}, {"status": ["Ok"]}])
def test_a_200_that_says_anything_else_is_no_yes(body: object) -> None:
    strange = posthog().verdict(request_of(posthog()), answer(200, body), NOW_US)
    assert isinstance(strange, RetryAfter)
    assert strange.unknown


def test_plain_text_400_401_429_and_503() -> None:
    v = posthog()
    two = request_of(v, an_event(), an_event(key="key-2"))
    empty = answer(400, b"event submitted with an empty distinct_id")
    assert v.verdict(two, empty, NOW_US) == Split(
        "HTTP 400: event submitted with an empty distinct_id"
    )
    assert isinstance(v.verdict(two, answer(401, b"API key is not valid"), NOW_US), Stop)
    billing = v.verdict(two, answer(429, b"billing limit reached", retry_after="12"), NOW_US)
    assert billing == RetryAfter(12.0, "HTTP 429: billing limit reached")
    later = v.verdict(two, answer(503, b"transient error, please retry"), NOW_US)
    assert isinstance(later, RetryAfter)
    assert not later.unknown
