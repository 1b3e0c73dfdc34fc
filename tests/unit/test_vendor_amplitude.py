"""Amplitude's peculiarities: A3 of the project's facts about vendors."""

from __future__ import annotations

from typing import Any

import pytest
from vendors_under_test import (
    NOW_US,
    UNDER,
    an_event,
    answer,
    document,
    many_of,
    refusal,
    request_of,
)

from consumers.trace.event import Event
from consumers.vendors import (
    Accepted,
    PartlyRejected,
    Request,
    RetryAfter,
    Sending,
    SlowDown,
    Split,
    Stop,
    Verdict,
    account,
)
from consumers.vendors.amplitude import Amplitude
from ingest.units import DAY_US


def amplitude(**settings: Any) -> Amplitude:
    found = UNDER["amplitude"].make("amplitude", **settings)
    assert isinstance(found, Amplitude)
    return found


def verdict(request: Request, status: int, body: Any = b"", **headers: str) -> Verdict:
    return amplitude().verdict(request, answer(status, body, **headers), NOW_US)


def test_fresh_events_go_to_http_v2_and_backfill_to_batch() -> None:
    assert request_of(amplitude()).url == "https://api2.amplitude.com/2/httpapi"
    assert request_of(amplitude(), backfill=True).url == "https://api2.amplitude.com/batch"
    assert request_of(amplitude(region="eu")).url == "https://api.eu.amplitude.com/2/httpapi"
    local = amplitude(endpoint="http://127.0.0.1:9/amplitude/")
    assert request_of(local, backfill=True).url == "http://127.0.0.1:9/amplitude/batch"


def test_backfill_leaves_the_properties_of_users_as_they_are() -> None:
    """Old values would overwrite newer ones."""
    (old,) = document(request_of(amplitude(), backfill=True))["events"]
    (fresh,) = document(request_of(amplitude()))["events"]
    assert old["$skip_user_properties_sync"] is True
    assert "$skip_user_properties_sync" not in fresh


def test_time_is_in_milliseconds_since_1970() -> None:
    (sent,) = document(request_of(amplitude(), an_event(time_us=1_790_000_000_123_999)))["events"]
    assert sent["time"] == 1_790_000_000_123
    assert refusal(amplitude(), an_event(time_us=-1)) == "time_invalid"


def test_a_request_holds_at_most_thirty_events_of_a_user_or_a_device() -> None:
    """HTTP V2 takes 30 a second of each, so 31 at once would be refused, all of them."""
    one_user = [an_event(key=f"k{n}", device_id=f"device-{n}") for n in range(61)]
    one_device = [an_event(key=f"k{n}", user_id=f"user-{n}") for n in range(61)]
    for sent in (one_user, one_device):
        out = amplitude().requests(sent, Sending(NOW_US))
        assert [len(r.events) for r in out.requests] == [30, 30, 1]
        out = amplitude().requests(sent, Sending(NOW_US, backfill=True))
        assert [len(r.events) for r in out.requests] == [61]


def test_other_users_fill_up_the_requests_that_one_user_spreads_over() -> None:
    hot = [an_event(key=f"k{n}", user_id="hot-user", device_id=None) for n in range(90)]
    others = [an_event(key=f"o{n}", user_id=f"user-{n}", device_id=None) for n in range(2500)]
    out = amplitude().requests(hot + others, Sending(NOW_US))
    assert [len(r.events) for r in out.requests] == [2000, 560, 30]


@pytest.mark.parametrize("bad", ["anonymous", "N/A", "undefined", "unknown", "lmy47d", "1234"])
def test_ids_that_amplitude_refuses_or_takes_away_are_refused_before(bad: str) -> None:
    """A placeholder is a 400 for the whole request; an id below five characters is removed."""
    assert refusal(amplitude(), an_event(user_id=bad)) == "id_invalid"
    assert refusal(amplitude(), an_event(device_id=bad)) == "id_invalid"


def test_shorter_ids_are_taken_where_the_operator_says_so_and_amplitude_is_told() -> None:
    short = amplitude(min_id_length=1)
    request = request_of(short, an_event(user_id="42"))
    assert document(request)["options"] == {"min_id_length": 1}
    assert refusal(short, an_event(user_id="0")) == "id_invalid"


def test_an_event_without_user_and_device_is_refused() -> None:
    assert refusal(amplitude(), an_event(user_id=None, device_id="")) == "id_missing"
    assert refusal(amplitude(), an_event(user_id=None)) is None


def test_text_of_more_than_1024_characters_is_refused_or_cut_on_the_operators_word() -> None:
    long = an_event(properties={"text": "🚰" * 1025, "n": 1})
    assert refusal(amplitude(), an_event(properties={"text": "🚰" * 1024})) is None
    assert refusal(amplitude(), long) == "value_too_long"
    (sent,) = document(request_of(amplitude(cut_long_text=True), long))["events"]
    assert sent["event_properties"] == {"text": "🚰" * 1024, "n": 1}
    assert refusal(amplitude(cut_long_text=True), an_event(name="n" * 1025)) == "name_invalid"


def test_a_number_that_json_parsers_would_change_is_refused() -> None:
    assert refusal(amplitude(), an_event(properties={"n": 2**64})) == "value_invalid"


def test_beyond_the_window_of_seven_days_what_may_be_there_already_is_refused() -> None:
    """Amplitude knows an insert_id for 7 days. The first copy came after the collector had it."""
    old = an_event(received_us=NOW_US - 7 * DAY_US - 1)
    known = an_event(received_us=NOW_US - 7 * DAY_US, time_us=NOW_US - 30 * DAY_US)
    assert refusal(amplitude(), old, repeated=True) == "duplicate_possible"
    assert refusal(amplitude(), old, repeated=False) is None
    assert refusal(amplitude(), old, repeated=True, allow_duplicates=True) is None
    assert refusal(amplitude(), known, repeated=True) is None
    for first_us, code in ((NOW_US - 7 * DAY_US, None), (1, "duplicate_possible")):
        assert refusal(amplitude(), old, repeated=True, first_us=first_us) == code


def test_gzip_is_the_same_request_in_less() -> None:
    sent = many_of(200)
    packed, plain = request_of(amplitude(), *sent), request_of(amplitude(gzip=False), *sent)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert packed.shown().body == plain.shown().body
    assert len(packed.body) < len(plain.body) / 5
    assert packed.body == request_of(amplitude(), *sent).body


def test_a_small_plan_bounds_a_request_too() -> None:
    """Starter: 1000 events a second, so that a replay's requests leave room for live ones."""
    out = amplitude(events_per_s=1000).requests(many_device(250), Sending(NOW_US))
    assert [len(r.events) for r in out.requests] == [100, 100, 50]


def many_device(count: int) -> list[Event]:
    return [an_event(key=f"k{n}", device_id=f"device-{n}", user_id=None) for n in range(count)]


def five() -> Request:
    return request_of(amplitude(), *many_device(5))


def test_a_200_is_amplitudes_own_or_nobody_knows() -> None:
    assert verdict(five(), 200, {"code": 200, "events_ingested": 5}) == Accepted()
    strange = verdict(five(), 200, b"<html>hotel wifi</html>")
    assert isinstance(strange, RetryAfter)
    assert strange.unknown


def test_a_400_rejects_what_it_lists_and_sends_the_rest_again() -> None:
    """Nothing of a refused request is ingested."""
    body = {
        "code": 400,
        "error": "Request missing required field",
        "events_with_invalid_fields": {"time": [1]},
        "events_with_missing_fields": {"event_type": [3], "x": [7, -1, True, "2"]},
    }
    found = verdict(five(), 400, body)
    assert isinstance(found, PartlyRejected)
    assert found.rejected.keys() == {1, 3}
    assert "invalid fields: time" in found.rejected[1].text
    assert "missing fields: event_type" in found.rejected[3].text
    assert account(found, 5).again == {0, 2, 4}
    assert not account(found, 5).accepted


def test_a_400_for_ids_that_are_too_short_lists_them_under_a_name_of_its_own() -> None:
    body = {"code": 400, "events_with_invalid_id_lengths": {"user_id": [2]}}
    found = verdict(five(), 400, body)
    assert account(found, 5).rejected.keys() == {2}
    assert account(found, 5).again == {0, 1, 3, 4}


def test_silenced_devices_are_rejected_as_such() -> None:
    body = {"code": 400, "error": "Events silenced for device_id", "silenced_events": [0],
            "silenced_devices": {"device-2": 7}, "throttled_events": []}  # fmt: skip
    found = verdict(five(), 400, body)
    assert isinstance(found, PartlyRejected)
    assert {n: str(reason.code) for n, reason in found.rejected.items()} == {
        0: "silenced",
        2: "silenced",
    }


def test_a_400_for_the_key_stops_and_rejects_nothing() -> None:
    """Amplitude has no 401."""
    assert isinstance(verdict(five(), 400, {"code": 400, "error": "Invalid API key: x"}), Stop)
    assert isinstance(verdict(five(), 400, {"code": 400, "missing_field": "api_key"}), Stop)


def test_a_413_or_the_firewalls_403_is_halved() -> None:
    for status in (413, 403):
        assert isinstance(verdict(five(), status, b"no"), Split)
        alone = verdict(request_of(amplitude()), status, b"no")
        assert isinstance(alone, PartlyRejected)


def test_throttled_users_rest_and_the_others_go_at_once() -> None:
    """30 s at HTTP V2, 15 s at batch, and nothing of it was taken."""
    body = {"code": 429, "error": "Too many requests for some devices and users",
            "throttled_devices": {"device-1": 31}, "throttled_users": {"stranger": 99},
            "throttled_events": [1, 4]}  # fmt: skip
    found = verdict(five(), 429, body)
    assert isinstance(found, SlowDown)
    assert found.users == {"device:device-1": 30.0, "device:device-4": 30.0}
    assert account(found, 5).again == {0, 1, 2, 3, 4}
    batch = request_of(amplitude(), *many_device(5), backfill=True)
    slow = verdict(batch, 429, body)
    assert isinstance(slow, SlowDown)
    assert set(slow.users.values()) == {15.0}


def test_a_daily_quota_rejects_instead_of_holding_everything_up_for_a_day() -> None:
    body = {"code": 429, "throttled_devices": {"device-1": 31, "device-3": 40},
            "exceeded_daily_quota_devices": {"device-3": 500_001}}  # fmt: skip
    found = verdict(five(), 429, body)
    assert isinstance(found, SlowDown)
    assert found.users == {"device:device-1": 30.0}
    assert {n: str(r.code) for n, r in found.rejected.items()} == {3: "daily_quota"}
    only = {"code": 429, "exceeded_daily_quota_devices": {"device-3": 500_001}}
    rejected = verdict(five(), 429, only)
    assert isinstance(rejected, PartlyRejected)
    assert account(rejected, 5).again == {0, 1, 2, 4}


def test_a_429_that_names_nobody_of_the_request_is_for_all() -> None:
    error = {"code": 429, "error": "slow down"}
    found = verdict(five(), 429, error, retry_after="7")
    assert found == RetryAfter(7.0, "HTTP 429: slow down")
    strangers = verdict(five(), 429, {"throttled_users": {"stranger": 99}})
    assert isinstance(strangers, RetryAfter)


def test_after_a_500_or_502_nobody_knows_and_after_a_503_nothing_was_taken() -> None:
    for status, unknown in ((500, True), (502, True), (504, True), (503, False)):
        found = verdict(five(), status)
        assert isinstance(found, RetryAfter)
        assert found.unknown is unknown
