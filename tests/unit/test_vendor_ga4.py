"""Google Analytics 4's peculiarities: A1 of the project's facts about vendors."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from vendors_standin import Standing
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

from consumers.forward.delivery import Delivery, Status
from consumers.forward.engine import Engine
from consumers.forward.engine_settings import EngineSettings
from consumers.forward.tell import Teller
from consumers.metrics import VENDOR_VALIDATED
from consumers.trace.allowlist import from_table
from consumers.trace.event import Event
from consumers.trace.gate import Gate
from consumers.trace.scrub import Scrubber
from consumers.vendors import Accepted, RetryAfter, Sending, Split, Stop, Validating, VendorError
from consumers.vendors.ga4 import Ga4
from consumers.vendors.values import uuid_of
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.units import HOUR_US


def ga4(**settings: Any) -> Ga4:
    found = UNDER["ga4"].make("ga4", **settings)
    assert isinstance(found, Ga4)
    return found


def parameters(v: Ga4, **given: Any) -> dict[str, Any]:
    (sent,) = document(request_of(v, an_event(**given)))["events"]
    found: dict[str, Any] = sent["params"]
    return found


def test_the_address_has_the_stream_and_the_secret() -> None:
    request = request_of(ga4())
    assert request.url.startswith("https://www.google-analytics.com/mp/collect?")
    assert query(request) == {"measurement_id": ["G-1"], "api_secret": [SECRET]}
    eu = request_of(ga4(region="eu"))
    assert eu.url.startswith("https://region1.google-analytics.com/mp/collect?")


def test_a_request_is_about_one_client_and_holds_25_events() -> None:
    sent = [an_event(key=f"k{n}", device_id=f"device-{n % 2}") for n in range(60)]
    out = ga4().requests(sent, Sending(NOW_US))
    assert sorted(len(r.events) for r in out.requests) == [5, 5, 25, 25]
    for request in out.requests:
        (device,) = {event.device_id for event in request.events}
        assert document(request)["client_id"] == device


def test_events_of_one_request_keep_their_own_times() -> None:
    sent = [an_event(key="a", time_us=NOW_US - HOUR_US), an_event(key="b", time_us=NOW_US - 5)]
    body = document(request_of(ga4(), *sent))
    assert [e["timestamp_micros"] for e in body["events"]] == [NOW_US - HOUR_US, NOW_US - 5]
    assert "timestamp_micros" not in body


def test_an_event_older_than_72_hours_is_refused_unless_the_operator_says_so() -> None:
    """Google accepts it and writes "72 hours ago" over its time."""
    old = an_event(time_us=NOW_US - 72 * HOUR_US - 1)
    assert refusal(ga4(), an_event(time_us=NOW_US - 72 * HOUR_US)) is None
    assert refusal(ga4(), old) == "too_old"
    assert refusal(ga4(), old, backfill=True, repeated=True) == "too_old"
    assert refusal(ga4(), old, allow_redate=True) is None


def test_a_purchase_is_known_by_its_transaction_or_by_the_key() -> None:
    """Google takes all purchases with an empty transaction_id for one."""
    assert parameters(ga4(), name="purchase", properties={})["transaction_id"] == "key-1"
    empty = parameters(ga4(), name="purchase", properties={"transaction_id": ""})
    assert empty["transaction_id"] == "key-1"
    own = parameters(ga4(), name="purchase", properties={"transaction_id": "order-9"})
    assert own["transaction_id"] == "order-9"
    assert "transaction_id" not in parameters(ga4(), name="page_view")
    long = parameters(ga4(key_parameter=""), name="purchase", key="k" * 101, properties={})
    assert long == {"transaction_id": uuid_of("k" * 101)}, "it would be cut"


def test_purchases_whose_numbers_the_scrubber_has_made_the_same_are_not_the_same() -> None:
    """Google takes all purchases of one `transaction_id` for the same, and so all of [card]."""
    allowed = {"properties": {"order": {"type": "string", "rename": {"ga4": "transaction_id"}}}}
    gate = Gate(from_table({"events": {"purchase": allowed}}, ["ga4"]), "ga4")
    letters = "q7Xv2Lk9Zp4Rt8Wm3Bn6Hs1Jd5Gf0Cy2Ua9Ee7"
    ids = [str(6_000_000_000_000 + n) for n in range(200)]
    ids += [letters[n:] + letters[:n] for n in range(20)]
    ids += [f"https://example.com/order?number={n}" for n in range(20)]
    sent: list[Event] = []
    for n, order in enumerate(ids):
        raw = RawEvent(event_id=f"event-{n}", content_type="application/json")
        raw.data = json.dumps({
            "event": "purchase", "deviceId": "d", "properties": {"order": order}
        })  # fmt: skip
        raw.received_at.FromMicroseconds(NOW_US)
        found = gate.judge(raw)
        assert isinstance(found, Event)
        sent.append(found)
    assert sum("[card]" in str(e.properties["transaction_id"]) for e in sent) == 20
    requests = ga4().requests(sent, Sending(NOW_US)).requests
    found_ids = [e["params"]["transaction_id"] for r in requests for e in document(r)["events"]]
    assert len(set(found_ids)) == len(ids)
    as_they_are = {event.key for event in sent}.symmetric_difference(found_ids) & set(ids)
    assert len(as_they_are) == 180, "the others are known by the event's key"


def test_a_transaction_is_never_cut_for_two_of_them_might_be_one() -> None:
    """Not on the operator's word for other text, and not of a refund, which names a purchase."""
    v = ga4(cut_long_text=True)
    for name in ("purchase", "refund"):
        long = an_event(name=name, properties={"transaction_id": "t" * 101})
        assert refusal(v, long) == "value_too_long"
    scrubbed = an_event(
        name="purchase", properties={"transaction_id": "t" * 101}, scrubbed=("transaction_id",)
    )
    assert refusal(v, scrubbed) is None


def test_a_refund_of_a_number_that_the_scrubber_has_changed_is_refused() -> None:
    """Google would know no such purchase, and says nothing."""
    refund = {"transaction_id": "[card]"}
    assert refusal(ga4(), an_event(name="refund", properties=refund)) is None
    for changed, code in ((("transaction_id",), "value_invalid"), (("category",), None)):
        one = an_event(name="refund", properties=refund, scrubbed=changed)
        assert refusal(ga4(), one) == code


def test_the_key_is_a_parameter_of_the_operators_choice() -> None:
    assert parameters(ga4())["event_id"] == "key-1"
    assert parameters(ga4(key_parameter="hr_key"))["hr_key"] == "key-1"
    assert "event_id" not in parameters(ga4(key_parameter=""))
    assert refusal(ga4(), an_event(properties={"event_id": "mine"})) == "property_reserved"
    assert refusal(ga4(key_parameter=""), an_event(properties={"event_id": "mine"})) is None


def test_a_key_that_is_too_long_for_a_value_is_a_uuid_made_from_it() -> None:
    """A collector takes ids of 200 characters; an export is read with the UUID as well."""
    assert parameters(ga4(), key="k" * 100)["event_id"] == "k" * 100
    assert parameters(ga4(), key="k" * 101)["event_id"] == uuid_of("k" * 101)
    assert parameters(ga4(value_chars=36), key="k" * 37)["event_id"] == uuid_of("k" * 37)
    assert refusal(ga4(value_chars=35), an_event(key="k" * 36)) == "value_too_long"
    assert refusal(ga4(value_chars=35), an_event(key="k" * 35, properties={})) is None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Purchase Workers", "name_invalid"), ("1st", "name_invalid"), ("größe", "name_invalid"),
        ("n" * 41, "name_invalid"), ("page_view\n", "name_invalid"), ("n" * 40, None),
        ("_private", "name_reserved"), ("firebase_x", "name_reserved"),
        ("google_x", "name_reserved"), ("ga_x", "name_reserved"), ("gtag.x", "name_reserved"),
        ("session_start", "name_reserved"), ("error", "name_reserved"),
        ("notification_open", "name_reserved"), ("purchase", None),
    ],
)  # fmt: skip
def test_names_are_held_to_googles_rules(name: str, code: str | None) -> None:
    assert refusal(ga4(), an_event(name=name)) == code


@pytest.mark.parametrize(
    ("name", "code"),
    [("product name", "property_invalid"), ("ga_x", "property_reserved"), ("", "property_invalid"),
     ("p" * 41, "property_invalid"), ("error", None)],
)  # fmt: skip
def test_names_of_parameters_too(name: str, code: str | None) -> None:
    assert refusal(ga4(), an_event(properties={name: 1})) == code


def test_values_have_100_characters_and_those_of_pages_more() -> None:
    for name, most in (("x", 100), ("page_title", 300), ("page_referrer", 420),
                       ("page_location", 1000)):  # fmt: skip
        assert refusal(ga4(), an_event(properties={name: "ü" * most})) is None
        assert refusal(ga4(), an_event(properties={name: "ü" * (most + 1)})) == "value_too_long"
        cut = parameters(ga4(cut_long_text=True), properties={name: "ü" * 2000})
        assert cut[name] == "ü" * most
    assert refusal(ga4(value_chars=500), an_event(properties={"x": "ü" * 500})) is None


def test_an_event_has_25_parameters_ours_included() -> None:
    assert refusal(ga4(), an_event(properties={f"p{n}": n for n in range(24)})) is None
    full = an_event(properties={f"p{n}": n for n in range(25)})
    assert refusal(ga4(), full) == "too_many_properties"
    assert refusal(ga4(key_parameter=""), full) is None


def test_true_and_false_are_words_and_nulls_are_left_out() -> None:
    """Parameters are text and numbers."""
    found = parameters(ga4(), properties={"a": True, "b": False, "c": None, "d": 1, "e": 1.5})
    assert found == {"a": "true", "b": "false", "d": 1, "e": 1.5, "event_id": "key-1"}


def test_engagement_is_given_to_events_without_it() -> None:
    v = ga4(engagement_time_msec=1)
    assert parameters(v)["engagement_time_msec"] == 1
    assert parameters(v, properties={"engagement_time_msec": 900})["engagement_time_msec"] == 900


def test_the_client_is_the_device_or_else_the_user() -> None:
    body = document(request_of(ga4()))
    assert (body["client_id"], body["user_id"]) == ("device-1", "user-1")
    assert document(request_of(ga4(), an_event(device_id=None)))["client_id"] == "user-1"
    assert "user_id" not in document(request_of(ga4(), an_event(user_id=None)))
    assert refusal(ga4(), an_event(user_id=None, device_id=None)) == "id_missing"


def test_an_apps_stream_wants_an_instance() -> None:
    app = ga4(measurement_id="", firebase_app_id="1:2:android:3")
    request = request_of(app, an_event(device_id="0123456789abcdef" * 2))
    assert document(request)["app_instance_id"] == "0123456789abcdef" * 2
    assert query(request)["firebase_app_id"] == ["1:2:android:3"]
    assert refusal(app, an_event()) == "id_invalid"


def test_a_stream_is_a_web_stream_or_an_apps() -> None:
    with pytest.raises(VendorError, match="give one of them"):
        ga4(firebase_app_id="1:2:android:3")
    with pytest.raises(VendorError, match="give one of them"):
        ga4(measurement_id="")


def test_a_body_stays_below_130_kb() -> None:
    wide = {f"p{n}": "🚰" * 100 for n in range(24)}
    sent = [an_event(key=f"k{n}", properties=wide) for n in range(25)]
    out = ga4().requests(sent, Sending(NOW_US))
    assert len(out.requests) == 2
    assert max(len(r.body) for r in out.requests) < 130_000


def test_204_says_nothing_and_is_taken_for_all() -> None:
    request = request_of(ga4())
    assert ga4().verdict(request, answer(204), NOW_US) == Accepted()
    assert isinstance(ga4().verdict(request, answer(500), NOW_US), RetryAfter)
    two = request_of(ga4(), an_event(), an_event(key="key-2"))
    assert isinstance(ga4().verdict(two, answer(413), NOW_US), Split)


def test_of_an_endpoint_that_has_something_to_say_there_is_one_copy_and_a_person_looks() -> None:
    """A server-side tag manager that answers "ok" has stored it; sent again, it stores it again."""
    v = ga4(endpoint="https://tags.example.com")
    verdict = v.verdict(request_of(v), answer(200, {"ok": True}), NOW_US)
    assert verdict == Stop('HTTP 200: {"ok": true}')


def test_the_clone_for_validation_is_the_request_at_the_other_address() -> None:
    v = ga4(validate_share=0.01)
    assert isinstance(v, Validating)
    request = request_of(v)
    clone = v.validation(request)
    assert clone.url == request.url.replace("/mp/", "/debug/mp/")
    assert (clone.body, clone.events) == (request.body, request.events)
    assert SECRET not in repr(clone)
    assert SECRET not in repr(clone.shown())


def test_findings_are_by_event_where_the_path_says_which() -> None:
    v = ga4()
    request = request_of(v, an_event(), an_event(key="key-2"))
    body = {
        "validationMessages": [
            {"fieldPath": "events[1].params.x", "validationCode": "VALUE_INVALID",
             "description": f"too long, {SECRET}"},
            {"fieldPath": "events.params", "validationCode": "NAME_INVALID",
             "description": "Event at index: [0] has invalid param name [a b]."},
            {"fieldPath": "events", "validationCode": "NAME_INVALID", "description": "bad"},
            {"fieldPath": "events[7].name", "validationCode": "NAME_RESERVED"},
            "rubbish",
        ]
    }  # fmt: skip
    found = v.findings(request, answer(200, body))
    assert found is not None
    assert found.keys() == {0, 1, -2}
    assert "invalid param name" in found[0].text
    assert "VALUE_INVALID events[1].params.x: too long" in found[1].text
    assert SECRET not in found[1].text
    assert "NAME_INVALID" in found[-2].text
    assert v.findings(request, answer(200, {"validationMessages": []})) == {}


@pytest.mark.parametrize(
    ("path", "code", "whole"),
    [
        ("client_id", "VALUE_REQUIRED", True), ("app_instance_id", "VALUE_INVALID", True),
        ("user_id", "VALUE_INVALID", True), ("events", "EXCEEDED_MAX_ENTITIES", True),
        ("", "VALUE_OUT_OF_BOUNDS", True), ("", "VALUE_INVALID", True), ("", "", False),
        ("events", "NAME_INVALID", False), ("events.params", "VALUE_OUT_OF_BOUNDS", False),
        ("events.params", "EXCEEDED_MAX_ENTITIES", False), ("params.x", "VALUE_INVALID", False),
        ("events[9].name", "EXCEEDED_MAX_ENTITIES", False),
        ("timestamp_micros", "VALUE_INVALID", False),
    ],
)  # fmt: skip
def test_only_what_is_said_of_the_request_is_said_of_all_its_events(
    path: str, code: str, whole: bool
) -> None:
    """Google has the others: rejected, a replay would send them again, and they count twice."""
    v = ga4()
    request = request_of(v, an_event(), an_event(key="key-2"))
    message = {"fieldPath": path, "validationCode": code, "description": "something is wrong"}
    found = v.findings(request, answer(200, {"validationMessages": [message]}))
    assert found is not None
    assert found.keys() == {-1 if whole else -2}


def test_what_is_said_of_no_event_that_is_known_rejects_none() -> None:
    """It is counted and told; the stand-in has lost the one, of which it does not say which."""
    standing = Standing()
    standing.break_("ga4", vague=True)

    async def google(request: httpx.Request) -> httpx.Response:
        path = f"/ga4{request.url.path}?{request.url.query.decode()}"
        found = await asyncio.to_thread(standing.post, path, request.content)
        return httpx.Response(found.status, content=found.body)

    v = ga4(validate_share=1.0, value_chars=500)
    teller = Teller("vague", Scrubber(()))
    running = Engine(
        "vague", v, EngineSettings(1, 5.0), teller, transport=httpx.MockTransport(google)
    )
    now_us = time.time_ns() // 1000
    good = [an_event(key=f"k{n}", time_us=now_us) for n in range(24)]
    delivery = Delivery(
        (), [*good, an_event(key="long", time_us=now_us, properties={"x": "x" * 101})]
    )
    running.deliver(delivery)
    running.close()
    assert {outcome.status for outcome in delivery.finals} == {Status.ACCEPTED}
    assert standing.stored("ga4")["count"] == 24
    assert VENDOR_VALIDATED.labels("vague", "findings")._value.get() == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"validationMessages": 3}'])
def test_a_validation_server_that_says_nothing_has_found_nothing_out(body: bytes) -> None:
    request = request_of(ga4())
    assert ga4().findings(request, answer(200, body)) is None
    assert ga4().findings(request, answer(503, {"validationMessages": []})) is None
