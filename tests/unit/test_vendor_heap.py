"""Heap's peculiarities: A4 of the project's facts about vendors."""

from __future__ import annotations

import pytest
from vendors_under_test import NOW_US, UNDER, an_event, answer, document, refusal, request_of

from consumers.vendors import Accepted, PartlyRejected, RetryAfter, Sending, Split, Vendor
from consumers.vendors.packing import Rate


def heap(**settings: object) -> Vendor:
    return UNDER["heap"].make("heap", **settings)


def test_europe_has_a_host_of_another_name() -> None:
    """heapanalytics.com does not know an app_id of the EU data centre."""
    assert request_of(heap()).url == "https://heapanalytics.com/api/track"
    assert request_of(heap(region="eu")).url == "https://c.eu.heap-api.com/api/track"


def test_an_event_is_in_bulk_tracks_form() -> None:
    event = an_event(time_us=1_790_000_000_120_000, properties={"a": True, "b": None, "n": 2})
    (sent,) = document(request_of(heap(), event))["events"]
    assert sent == {
        "identity": "user-1",
        "event": "page_view",
        "timestamp": "2026-09-21T14:13:20.120000Z",
        "properties": {"a": "true", "n": 2},
        "idempotency_key": "key-1",
    }


def test_the_identity_is_the_user_or_else_the_device() -> None:
    (sent,) = document(request_of(heap(), an_event(user_id=None)))["events"]
    assert sent["identity"] == "device-1"
    assert refusal(heap(), an_event(user_id=None, device_id=None)) == "id_missing"
    assert refusal(heap(), an_event(user_id="u" * 256)) == "id_invalid"
    assert refusal(heap(), an_event(user_id="u" * 255)) is None


def test_a_request_holds_1000_events_and_rates_are_those_of_bulk() -> None:
    sent = [an_event(key=f"k{n}") for n in range(2001)]
    out = heap().requests(sent, Sending(NOW_US))
    assert [len(r.events) for r in out.requests] == [1000, 1000, 1]
    assert heap().limits(backfill=True).rates == (Rate(1000, 60, "user"), Rate(15_000, 60))


def test_names_and_values_have_less_than_1024_characters() -> None:
    assert refusal(heap(), an_event(name="n" * 1024)) is None
    assert refusal(heap(), an_event(name="n" * 1025)) == "name_invalid"
    assert refusal(heap(), an_event(properties={"p" * 1024: 1})) == "property_invalid"
    assert refusal(heap(), an_event(properties={"p": "v" * 1023})) is None
    assert refusal(heap(), an_event(properties={"p": "v" * 1024})) == "value_too_long"
    cut = document(request_of(heap(cut_long_text=True), an_event(properties={"p": "v" * 2000})))
    assert cut["events"][0]["properties"] == {"p": "v" * 1023}


def test_a_time_that_iso_8601_cant_write_is_refused() -> None:
    assert refusal(heap(), an_event(time_us=10**18)) == "time_invalid"
    assert refusal(heap(), an_event(time_us=-(10**18))) == "time_invalid"


@pytest.mark.parametrize("status", [200, 201, 204])
def test_any_2xx_is_for_all_whatever_the_body(status: int) -> None:
    """What it answers is not documented."""
    assert heap().verdict(request_of(heap()), answer(status, b"ok"), NOW_US) == Accepted()


def test_a_refusal_is_halved_and_429_and_5xx_wait() -> None:
    two = request_of(heap(), an_event(), an_event(key="key-2"))
    assert isinstance(heap().verdict(two, answer(400, b"bad"), NOW_US), Split)
    alone = heap().verdict(request_of(heap()), answer(422, b"bad"), NOW_US)
    assert isinstance(alone, PartlyRejected)
    for status in (429, 500, 503):
        assert isinstance(heap().verdict(two, answer(status), NOW_US), RetryAfter)
