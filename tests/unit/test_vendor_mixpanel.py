"""Mixpanel's peculiarities: A5 of the project's facts about vendors."""

from __future__ import annotations

import uuid
from base64 import b64encode
from typing import Any

import pytest
from vendors_under_test import (
    NOW_US,
    SECRET,
    UNDER,
    an_event,
    answer,
    document,
    query,
    refusal,
    request_of,
)

from consumers.trace.event import Event
from consumers.vendors import (
    Accepted,
    PartlyRejected,
    RetryAfter,
    Split,
    Stop,
    Vendor,
    VendorError,
    account,
    vendor,
)
from headrace.vendors.mixpanel_rules import event_of, wrong_with
from ingest.units import DAY_US, HOUR_US


def mixpanel(**settings: Any) -> Vendor:
    return UNDER["mixpanel"].make("mixpanel", **settings)


def sent_as(v: Vendor, event: Event) -> dict[str, Any]:
    (found,) = document(request_of(v, event))
    properties: dict[str, Any] = found["properties"]
    return properties


def test_import_is_strict_and_regions_are_hosts() -> None:
    """Without strict=1 a bad event is not said to be one."""
    assert request_of(mixpanel()).url == "https://api.mixpanel.com/import?strict=1"
    assert request_of(mixpanel(region="eu")).url.startswith("https://api-eu.mixpanel.com/import")
    assert request_of(mixpanel(region="in")).url.startswith("https://api-in.mixpanel.com/import")


def test_a_token_is_a_user_without_a_password() -> None:
    basic = b64encode(f"{SECRET}:".encode()).decode()
    assert request_of(mixpanel()).headers["Authorization"] == f"Basic {basic}"


def test_a_service_account_has_a_password_and_a_project() -> None:
    environ = {"USER_OF_IT": "robot.1", "SECRET_OF_IT": SECRET}
    table = {"username_env": "USER_OF_IT", "secret_env": "SECRET_OF_IT", "project_id": "77"}
    request = request_of(vendor("mixpanel", table, environ))
    basic = b64encode(f"robot.1:{SECRET}".encode()).decode()
    assert request.headers["Authorization"] == f"Basic {basic}"
    assert query(request) == {"strict": ["1"], "project_id": ["77"]}
    assert basic not in repr(request.shown())
    with pytest.raises(VendorError, match="project_id"):
        vendor("mixpanel", {k: v for k, v in table.items() if k != "project_id"}, environ)
    with pytest.raises(VendorError, match="give one of both"):
        vendor("mixpanel", {"username_env": "USER_OF_IT"}, environ)
    with pytest.raises(VendorError, match="give one of both"):
        vendor("mixpanel", {**table, "token_env": "SECRET_OF_IT"}, environ)


@pytest.mark.parametrize("key", ["0191e1a0-0000-7000-8000-000000000001", "Order-17"])
def test_a_key_of_mixpanels_form_is_the_insert_id(key: str) -> None:
    assert sent_as(mixpanel(), an_event(key=key))["$insert_id"] == key


@pytest.mark.parametrize("key", ["k" * 37, "a_b", "größe", "0", "NULL", "a b", "key\n"])
def test_another_key_becomes_a_uuid_and_always_the_same(key: str) -> None:
    """At most 36 letters, digits and dashes, and none of the placeholders."""
    first = sent_as(mixpanel(), an_event(key=key))["$insert_id"]
    assert str(uuid.UUID(first)) == first
    assert sent_as(mixpanel(region="eu"), an_event(key=key, name="x"))["$insert_id"] == first


def test_a_key_that_was_made_stays_the_same_from_version_to_version() -> None:
    """Or what was sent before an update would be there twice after it."""
    made = sent_as(mixpanel(), an_event(key="order 17"))["$insert_id"]
    assert made == "17125a1b-cc89-5356-ab11-e37f6e3d2db3"


def test_ids_are_those_of_both_ways_to_merge_users() -> None:
    both = sent_as(mixpanel(), an_event())
    assert (both["distinct_id"], both["$user_id"], both["$device_id"]) == (
        "user-1", "user-1", "device-1",
    )  # fmt: skip
    device = sent_as(mixpanel(), an_event(user_id=None))
    assert device["distinct_id"] == "device-1"
    assert "$user_id" not in device


def test_an_event_of_nobody_has_an_empty_id() -> None:
    """Left out, Mixpanel would make one user of all that our address sends."""
    assert sent_as(mixpanel(), an_event(user_id=None, device_id=None))["distinct_id"] == ""


@pytest.mark.parametrize("bad", ["anon", "Undefined", "-1", "[]", "<nil>", "u" * 256])
def test_placeholders_are_refused_before(bad: str) -> None:
    assert refusal(mixpanel(), an_event(user_id=bad)) == "id_invalid"
    assert refusal(mixpanel(), an_event(device_id=bad)) == "id_invalid"


def test_times_are_from_1971_on() -> None:
    v = mixpanel()
    assert refusal(v, an_event(time_us=365 * DAY_US)) is None
    assert refusal(v, an_event(time_us=365 * DAY_US - 1)) == "time_invalid"
    assert refusal(v, an_event(time_us=NOW_US, received_us=0)) == "time_invalid"


@pytest.mark.parametrize(
    ("time_us", "sent"),
    [
        (365 * DAY_US, 31_536_000),
        (10**14 - 1, 10**8 - 1),
        (10**14, 10**11),
        (10**14 + 1999, 10**11 + 1),
    ],
)
def test_times_before_3_march_1973_are_seconds(time_us: int, sent: int) -> None:
    """In milliseconds they are smaller than those of today in seconds, and read as such."""
    event = an_event(time_us=time_us)
    assert sent_as(mixpanel(), event)["time"] == sent
    (found,) = document(request_of(mixpanel(), event))
    assert wrong_with(found, NOW_US) is None
    assert 0 <= time_us - event_of(found, NOW_US).time_us < 1_000_000


def test_an_event_of_a_clock_that_is_ahead_has_the_collectors_time() -> None:
    """Half a second is common, and Mixpanel would date it anew: no event is lost for it."""
    v = mixpanel()
    half = an_event(time_us=NOW_US + 500_000, received_us=NOW_US - 5_000_000)
    assert sent_as(v, half)["time"] == (NOW_US - 5_000_000) // 1000
    ahead = an_event(time_us=NOW_US + 9 * HOUR_US, received_us=NOW_US - 5_000_000)
    assert sent_as(v, ahead)["time"] == (NOW_US - 5_000_000) // 1000
    behind = an_event(time_us=NOW_US - 9 * HOUR_US, received_us=NOW_US - 5_000_000)
    assert sent_as(v, behind)["time"] == (NOW_US - 9 * HOUR_US) // 1000


@pytest.mark.parametrize("ahead_us", [1000, 30_000_000, 9 * HOUR_US])
def test_an_event_that_was_ahead_has_the_same_time_once_that_has_come(ahead_us: int) -> None:
    """Mixpanel knows a copy by its time too: with another one it would be there twice."""
    v = mixpanel()
    ahead = an_event(time_us=NOW_US + ahead_us, received_us=NOW_US - 1000)
    stored: set[str] = set()
    for now_us in (NOW_US, NOW_US + ahead_us + 1):
        (found,) = document(request_of(v, ahead, now_us=now_us))
        assert wrong_with(found, now_us) is None
        stored.add(event_of(found, now_us).identity)
    assert len(stored) == 1


@pytest.mark.parametrize("name", ["time", "distinct_id", "$insert_id", "token", "$user_id"])
def test_properties_under_mixpanels_own_names_are_refused(name: str) -> None:
    assert refusal(mixpanel(), an_event(properties={name: 1})) == "property_reserved"


def test_text_of_more_than_255_characters_is_refused_or_cut_on_the_operators_word() -> None:
    """Mixpanel cuts it without saying so."""
    long = an_event(properties={"url": "u" * 256})
    assert refusal(mixpanel(), long) == "value_too_long"
    assert sent_as(mixpanel(cut_long_text=True), long)["url"] == "u" * 255
    assert refusal(mixpanel(), an_event(name="n" * 256)) == "name_invalid"


def test_an_event_has_fewer_than_255_properties_ours_included() -> None:
    full = sent_as(mixpanel(), an_event(properties={f"p{n}": n for n in range(248)}))
    assert len(full) < 255
    more = an_event(properties={f"p{n}": n for n in range(249)})
    assert refusal(mixpanel(), more) == "too_many_properties"


def three() -> Any:
    return request_of(mixpanel(), *(an_event(key=f"key-{n}") for n in range(3)))


def test_a_400_lists_what_failed_and_has_the_rest() -> None:
    body = {
        "code": 400, "error": "some data points in the request failed validation",
        "failed_records": [
            {"index": 1, "$insert_id": "key-1", "field": "properties.time", "message": "is invalid"}
        ],
        "num_records_imported": 2, "status": "Bad Request",
    }  # fmt: skip
    found = mixpanel().verdict(three(), answer(400, body), NOW_US)
    assert isinstance(found, PartlyRejected)
    assert found.rejected[1].text == "HTTP 400: properties.time: is invalid"
    assert account(found, 3).accepted == {0, 2}
    assert not account(found, 3).again


def test_the_rest_goes_again_where_the_count_is_another() -> None:
    """The key keeps it single."""
    body = {"failed_records": [{"index": 1}], "num_records_imported": 1}
    found = mixpanel().verdict(three(), answer(400, body), NOW_US)
    assert account(found, 3).again == {0, 2}


def test_a_failed_record_is_known_by_its_key_if_its_index_is_of_another() -> None:
    for record in ({"index": 0, "insert_id": "key-2"}, {"$insert_id": "key-2"}):
        found = mixpanel().verdict(three(), answer(400, {"failed_records": [record]}), NOW_US)
        assert account(found, 3).rejected.keys() == {2}


def test_a_400_without_a_list_is_halved() -> None:
    for body in ({"error": "cannot read"}, {"failed_records": [{"index": 9}]}, b"no"):
        assert isinstance(mixpanel().verdict(three(), answer(400, body), NOW_US), Split)


def test_200_401_and_429() -> None:
    v = mixpanel()
    good = {"code": 200, "num_records_imported": 3, "status": "OK"}
    assert v.verdict(three(), answer(200, good), NOW_US) == Accepted()
    strange = v.verdict(three(), answer(200, b"welcome"), NOW_US)
    assert isinstance(strange, RetryAfter)
    assert strange.unknown
    assert isinstance(v.verdict(three(), answer(401), NOW_US), Stop)
    assert v.verdict(three(), answer(429), NOW_US) == RetryAfter(None, "HTTP 429")
