"""Each stand-in does what its vendor's documents say; headrace/vendors/ names them."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import orjson
import pytest
from vendors_standin import NOW_US, Answer, Standing

from headrace.vendors.place import WEBHOOK_SECRET
from headrace.vendors.rates import Rolling
from ingest.units import DAY_US, HOUR_US, MINUTE_US, SECOND_US

NOW_MS = NOW_US // 1000
GA4 = "/ga4/mp/collect?measurement_id=G-1&api_secret=s"
GA4_APP = GA4.replace("measurement_id", "firebase_app_id")
BASIC = {"authorization": "Basic " + base64.b64encode(b"token:").decode()}


@pytest.fixture
def at() -> Standing:
    return Standing()


# -- Google Analytics 4 ----------------------------------------------------------------------------


def ga4(*events: Any, **more: Any) -> dict[str, Any]:
    return {"client_id": "c.1", "events": list(events), **more}


def hit(name: str = "sign_up", **params: Any) -> dict[str, Any]:
    return {"name": name, "params": params}


@pytest.mark.parametrize(
    "body", [b"no json", ga4(), ga4(hit("_bad")), ga4(*[hit()] * 26), {"events": [hit()]}]
)
def test_ga4_answers_204_to_anything_and_stores_what_is_good(at: Standing, body: Any) -> None:
    answer = at.post(GA4, body)
    assert (answer.status, answer.body) == (204, b"")
    assert at.stored("ga4")["count"] == 0
    assert at.post(GA4, ga4(hit(event_id="e1"))).status == 204
    assert at.keys("ga4") == ["e1"]


@pytest.mark.parametrize("query", ["", "?measurement_id=G-1", "?api_secret=s"])
def test_ga4_says_nothing_of_missing_credentials(at: Standing, query: str) -> None:
    assert at.post("/ga4/mp/collect" + query, ga4(hit())).status == 204
    assert at.stored("ga4")["lost"] == {"credentials": 1}


def test_ga4_loses_a_bad_event_alone(at: Standing) -> None:
    at.post(GA4, ga4(hit(event_id="a"), hit("ga_x"), hit("session_start"), hit(event_id="b")))
    assert at.keys("ga4") == ["a", "b"]
    assert at.stored("ga4")["lost"] == {"NAME_RESERVED": 2}


@pytest.mark.parametrize(
    ("path", "field", "other"),
    [(GA4, "client_id", "app_instance_id"), (GA4_APP, "app_instance_id", "client_id")],
)
def test_ga4_knows_a_page_and_an_app_by_ids_of_their_own(
    at: Standing, path: str, field: str, other: str
) -> None:
    at.post(path, {other: "x", "events": [hit()]})
    assert at.stored("ga4")["lost"] == {"VALUE_REQUIRED": 1}
    at.post(path, {field: "x", "events": [hit()]})
    assert at.stored("ga4")["count"] == 1
    said = at.post(path.replace("/mp", "/debug/mp"), {other: "x", "events": [hit()]}).json
    assert [m["fieldPath"] for m in said["validationMessages"]] == [field]


def test_ga4_counts_requests_of_an_hour_and_says_nothing_of_too_many(
    at: Standing, monkeypatch: Any
) -> None:
    monkeypatch.setattr(at.app.vendors.places["ga4"].rules, "_hourly", Rolling(2, HOUR_US, 1))
    for _ in range(3):
        assert at.post(GA4, ga4(hit(), hit())).status == 204
    assert at.stored("ga4")["count"] == 4
    assert at.stored("ga4")["lost"] == {"over quota": 2}
    at.now_us += 2 * HOUR_US
    at.post(GA4, ga4(hit()))
    assert at.stored("ga4")["count"] == 5


def test_ga4_dates_anew_what_is_older_than_72_hours(at: Standing) -> None:
    old = {**hit(event_id="old"), "timestamp_micros": NOW_US - 80 * HOUR_US}
    fresh = {**hit(event_id="fresh"), "timestamp_micros": str(NOW_US - HOUR_US)}
    at.post(GA4, ga4(old, fresh, hit(event_id="request"), timestamp_micros=NOW_US - 5))
    rows = at.stored("ga4", list="events")["list"]
    assert {row["key"]: NOW_US - row["time_us"] for row in rows} == {
        "old": 72 * HOUR_US, "fresh": HOUR_US, "request": 5,
    }  # fmt: skip
    at.post(GA4, ga4(old, validation_behavior="ENFORCE_RECOMMENDATIONS"))
    assert at.stored("ga4")["count"] == 3


def test_ga4_has_no_key_but_for_purchases_on_the_web(at: Standing) -> None:
    for _ in range(2):
        at.post(GA4, ga4(hit(event_id="twice")))
        at.post(GA4, ga4(hit("purchase", event_id="p", transaction_id="t1")))
        app = hit("purchase", event_id="app", transaction_id="t1")
        at.post(GA4_APP, {"app_instance_id": "i1", "events": [app]})
    assert sorted(at.keys("ga4")) == ["app", "app", "p", "twice", "twice"]
    for n in range(3):
        at.post(GA4, ga4(hit("purchase", event_id=f"empty{n}", transaction_id="")))
    assert at.stored("ga4", name="purchase")["count"] == 4


def test_ga4_takes_a_purchase_once_however_old(at: Standing) -> None:
    at.post(GA4, ga4(hit("purchase", transaction_id="t1")))
    at.now_us += 400 * DAY_US
    at.post(GA4, ga4(hit("purchase", transaction_id="t1")))
    assert at.stored("ga4")["count"] == 1


def test_ga4_validation_may_be_vague_about_which_event_it_is(at: Standing) -> None:
    at.break_("ga4", vague=True)
    wrong = ga4(hit("good"), hit("_bad"), hit(text="x" * 101))
    messages = at.post("/ga4/debug/mp/collect", wrong).json["validationMessages"]
    assert [m["fieldPath"] for m in messages] == ["events", "events.params"]
    assert not any("index" in m["description"] for m in messages)
    del wrong["client_id"]
    messages = at.post("/ga4/debug/mp/collect", wrong).json["validationMessages"]
    assert messages[0]["fieldPath"] == "client_id"


def test_ga4_validation_names_the_fault_and_keeps_nothing(at: Standing) -> None:
    wrong = ga4(hit("good"), hit("_badEventName"))
    answer = at.post("/ga4/debug/mp/collect", wrong)
    assert answer.status == 200
    assert answer.json == {"validationMessages": [{
        "fieldPath": "events",
        "description": "Event at index: [1] has invalid name [_badEventName]. "
        "Names must start with an alphabetic character.",
        "validationCode": "NAME_INVALID",
    }]}  # fmt: skip
    assert at.post("/ga4/debug/mp/collect", ga4(hit())).json == {"validationMessages": []}
    assert at.stored("ga4")["count"] == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (ga4(*[hit()] * 26), "EXCEEDED_MAX_ENTITIES"),
        (ga4(hit(**{f"p{n}": 1 for n in range(26)})), "EXCEEDED_MAX_ENTITIES"),
        (ga4(hit(text="x" * 101)), "VALUE_OUT_OF_BOUNDS"),
        (ga4(hit(page_title="x" * 301)), "VALUE_OUT_OF_BOUNDS"),
        (ga4(hit("n" * 41)), "NAME_INVALID"),
        (ga4(hit("with-dash")), "NAME_INVALID"),
        (ga4(hit(google_x=1)), "NAME_RESERVED"),
        (ga4(hit("app_remove")), "NAME_RESERVED"),
        ({"events": [hit()]}, "VALUE_REQUIRED"),
        (ga4(hit(), user_properties={"n" * 25: {"value": 1}}), "VALUE_OUT_OF_BOUNDS"),
        (ga4(hit(), user_properties={"n": {"value": "v" * 37}}), "VALUE_OUT_OF_BOUNDS"),
        (ga4(hit(), filler="x" * 130_000), "VALUE_OUT_OF_BOUNDS"),
    ],
)
def test_ga4_validation_knows_the_limits(at: Standing, body: Any, code: str) -> None:
    messages = at.post("/ga4/debug/mp/collect", body).json["validationMessages"]
    assert {message["validationCode"] for message in messages} == {code}


def test_ga4_takes_what_is_just_within_the_limits(at: Standing) -> None:
    params = {f"p{n}": "x" * 100 for n in range(24)} | {"page_title": "x" * 300}
    body = ga4(*[hit("n" * 40, **params)] * 25)
    assert at.post("/ga4/debug/mp/collect", body).json == {"validationMessages": []}
    at.post(GA4, body)
    assert at.stored("ga4")["count"] == 25


# -- Amplitude -------------------------------------------------------------------------------------


def amplitude(*events: Any, **more: Any) -> dict[str, Any]:
    return {"api_key": "k", "events": list(events), **more}


def step(key: str, user: str | None = "michelle", **more: Any) -> dict[str, Any]:
    event = {"event_type": "step", "user_id": user, "insert_id": key, "time": NOW_MS, **more}
    return {name: value for name, value in event.items() if value is not None}


both = pytest.mark.parametrize("path", ["/amplitude/2/httpapi", "/amplitude/batch"])


@both
def test_amplitude_says_what_it_took_also_out_of_gzip(at: Standing, path: str) -> None:
    answer = at.post(path, amplitude(step("a"), step("b", time=None)), packed=True)
    assert answer.json == {
        "code": 200, "events_ingested": 2, "server_upload_time": NOW_MS,
        "payload_size_bytes": len(orjson.dumps(amplitude(step("a"), step("b", time=None)))),
    }  # fmt: skip
    assert at.keys("amplitude") == ["a", "b"]


@both
def test_amplitude_knows_an_insert_id_on_a_device_for_seven_days(at: Standing, path: str) -> None:
    first = amplitude(step("a", device_id="device1"))
    at.post(path, first)
    at.post(path, amplitude(step("a", device_id="device2")))
    at.now_us += 7 * DAY_US - 1
    at.post(path, first)
    assert (at.stored("amplitude")["count"], at.stored("amplitude")["repeated"]) == (2, 1)
    at.now_us += 1
    at.post(path, first)
    found = at.stored("amplitude")
    assert (found["count"], found["repeated"], found["doubled"]) == (3, 1, 2)


def test_amplitude_knows_an_insert_id_without_a_device_by_its_user(at: Standing) -> None:
    at.post(
        "/amplitude/batch", amplitude(step("a", "user1"), step("a", "user2"), step("a", "user1"))
    )
    assert at.stored("amplitude")["count"] == 2


BAD = amplitude(
    step("ok"), step("a", event_type=None), step("b", user="none"), step("c", time="soon"),
    step("d", time=1.5), step("e", None), step("f", event_type=None),
)  # fmt: skip


def test_amplitude_batch_names_every_bad_event_and_takes_none(at: Standing) -> None:
    answer = at.post("/amplitude/batch", BAD)
    assert answer.status == answer.json["code"] == 400
    assert answer.json["events_with_missing_fields"] == {"event_type": [1, 6], "user_id": [5]}
    assert answer.json["events_with_invalid_fields"] == {"user_id": [2], "time": [3, 4]}
    assert at.stored("amplitude")["count"] == 0


def test_amplitude_http_v2_names_the_first_bad_event_of_each_kind(at: Standing) -> None:
    answer = at.post("/amplitude/2/httpapi", BAD)
    assert answer.json["events_with_missing_fields"] == {"event_type": [1], "user_id": [5]}
    assert answer.json["events_with_invalid_fields"] == {"user_id": [2], "time": [3]}


def test_amplitude_removes_an_id_that_is_too_short(at: Standing) -> None:
    answer = at.post("/amplitude/batch", amplitude(step("a", "abcd")))
    assert answer.json["events_with_invalid_id_lengths"] == {"user_id": [0]}
    at.post("/amplitude/batch", amplitude(step("b", "abcd", device_id="device1")))
    assert at.stored("amplitude", user="device1")["count"] == 1
    assert at.stored("amplitude")["lost"] == {"id removed": 1}, "nothing in its answer says so"
    at.post("/amplitude/batch", amplitude(step("c", "abcd"), options={"min_id_length": 1}))
    assert at.stored("amplitude", user="abcd")["count"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [(amplitude(), "events"), ({"events": [step("a")]}, "api_key"), (b"[", None), (b"[]", None)],
)
def test_amplitude_refuses_a_request_that_is_none(at: Standing, body: Any, field: Any) -> None:
    answer = at.post("/amplitude/batch", body)
    assert (answer.status, answer.json["missing_field"]) == (400, field)


@pytest.mark.parametrize(
    ("path", "most"), [("/amplitude/2/httpapi", 1_000_000), ("/amplitude/batch", 20_000_000)]
)
def test_amplitude_takes_so_many_bytes_out_of_gzip_and_2000_events(
    at: Standing, path: str, most: int
) -> None:
    def of(size: int) -> bytes:
        body = orjson.dumps(amplitude(step("a"), filler=""))
        return body.replace(b'"filler":""', b'"filler":"%s"' % (b"x" * (size - len(body))))

    assert at.post(path, of(most + 1), packed=True).status == 413
    assert at.post(path, of(most), packed=True).status == 200
    many = [step(f"k{n}", f"user{n}") for n in range(2001)]
    assert at.post(path, amplitude(*many)).json["code"] == 413
    assert at.post(path, amplitude(*many[:2000])).status == 200


@both
def test_amplitude_cuts_text_at_1024_characters_without_a_word(at: Standing, path: str) -> None:
    at.post(path, amplitude(
        step("a", event_properties={"t": "x" * 1024}),
        step("b", event_properties={"t": "x" * 1025, "u": "x" * 1025}),
        step("c", user_properties={"t": {"u": ["x" * 1025]}}),
    ))  # fmt: skip
    found = at.stored("amplitude")
    assert (found["count"], found["lost"]) == (3, {"text cut": 2})


def test_amplitude_http_v2_takes_30_events_a_second_of_one_user(at: Standing) -> None:
    def send(count: int) -> Answer:
        steps = [step(f"k{n}") for n in range(count)]
        return at.post("/amplitude/2/httpapi", amplitude(step("x", "other"), *steps))

    refused = send(31)
    assert (refused.status, refused.json["code"]) == (429, 429)
    assert refused.json["throttled_users"] == {"michelle": 31}
    assert refused.json["throttled_events"] == list(range(1, 32))
    assert (refused.json["throttled_devices"], refused.json["eps_threshold"]) == ({}, 30)
    assert at.stored("amplitude")["count"] == 0
    assert send(30).status == 200
    assert send(1).status == 429
    at.now_us += 2 * SECOND_US
    assert send(30).status == 200


def test_amplitude_batch_takes_1000_a_second_as_an_average_of_30_seconds(at: Standing) -> None:
    def send(count: int) -> int:
        events = [step(f"k{n}", None, device_id="device1") for n in range(count)]
        return at.post("/amplitude/batch", amplitude(*events)).status

    assert [send(2000) for _ in range(15)] == [200] * 15
    assert send(1) == 429
    at.now_us += 32 * SECOND_US
    assert send(2000) == 200


def test_amplitude_has_a_daily_quota_for_a_user(at: Standing, monkeypatch: Any) -> None:
    daily = {field: Rolling(3, DAY_US, 48) for field in ("user_id", "device_id")}
    monkeypatch.setattr(at.app.vendors.places["amplitude"].rules, "_daily", daily)
    at.post("/amplitude/batch", amplitude(step("a"), step("b")))
    refused = at.post("/amplitude/batch", amplitude(step("c"), step("d")))
    assert refused.json["exceeded_daily_quota_users"] == {"michelle": 4}
    assert refused.json["throttled_events"] == [0, 1]
    at.now_us += DAY_US + HOUR_US
    assert at.post("/amplitude/batch", amplitude(step("c"), step("d"))).status == 200


# -- Heap ------------------------------------------------------------------------------------------


def heap(*events: Any) -> dict[str, Any]:
    return {"app_id": "11", "events": list(events)}


def track(key: str, user: str = "alice", **more: Any) -> dict[str, Any]:
    event = {"event": "buy", "identity": user, "idempotency_key": key,
             "timestamp": "2025-06-15T15:06:40Z", **more}  # fmt: skip
    return {name: value for name, value in event.items() if value is not None}


def test_heap_takes_one_event_or_many_and_a_key_once_for_ever(at: Standing) -> None:
    assert at.post("/heap/api/track", {"app_id": "11", **track("a")}).status == 200
    at.now_us += 1000 * DAY_US
    assert at.post("/heap/api/track", heap(track("a"), track("b"))).status == 200
    assert at.keys("heap") == ["a", "b"]
    assert at.stored("heap")["time_us"] == [NOW_US, NOW_US]


@pytest.mark.parametrize(
    "bad",
    [
        track("x", event=None), track("x", event="e" * 1025), track("x", user="u" * 256),
        track("x", identity=None), track("x", user_id="7"),
        track("x", identity=None, user_id=str(2**53)), track("x", timestamp="today"),
        track("x", properties={"p": "v" * 1024}), track("x", properties={"p": {"q": 1}}),
        track("x", properties={"p": True}), 7,
    ],
)  # fmt: skip
def test_heap_refuses_a_request_with_a_bad_event_as_a_whole(at: Standing, bad: Any) -> None:
    assert at.post("/heap/api/track", heap(track("good"), bad)).status == 400
    assert at.stored("heap")["count"] == 0


def test_heap_takes_1000_events_at_once(at: Standing) -> None:
    many = [track(f"k{n}", f"u{n}") for n in range(1001)]
    assert at.post("/heap/api/track", heap(*many)).status == 400
    assert at.post("/heap/api/track", heap(*many[:1000])).status == 200
    assert at.post("/heap/api/track", {"events": many[:1]}).status == 400


def test_heap_takes_1000_events_a_minute_of_one_user_and_15000_of_all(at: Standing) -> None:
    assert at.post("/heap/api/track", heap(*[track(f"a{n}") for n in range(1000)])).status == 200
    assert at.post("/heap/api/track", heap(track("one more"))).status == 429
    for m in range(14):
        others = heap(*[track(f"{m} {n}", f"user {m} {n}") for n in range(1000)])
        assert at.post("/heap/api/track", others).status == 200
    assert at.post("/heap/api/track", heap(track("y", "y"))).status == 429
    at.now_us += MINUTE_US + 3 * SECOND_US
    assert at.post("/heap/api/track", heap(track("y", "y"))).status == 200


def test_heap_takes_30_single_events_in_30_seconds_of_one_user(at: Standing) -> None:
    def single(n: int) -> int:
        return at.post("/heap/api/track", {"app_id": "11", **track(f"k{n}")}).status

    assert [single(n) for n in range(31)] == [200] * 30 + [429]


# -- Mixpanel --------------------------------------------------------------------------------------


def view(key: str, name: str = "view", **more: Any) -> dict[str, Any]:
    properties = {"time": NOW_MS, "distinct_id": "d1", "$insert_id": key, **more}
    properties = {name: value for name, value in properties.items() if value is not None}
    return {"event": name, "properties": properties}


def imports(at: Standing, body: Any, query: str = "strict=1", **more: Any) -> Answer:
    return at.post(f"/mixpanel/import?{query}", body, {**BASIC, **more.pop("headers", {})}, **more)


def test_mixpanel_imports_arrays_and_lines_also_out_of_gzip(at: Standing) -> None:
    answer = imports(at, [view("a"), view("b", time=NOW_US // SECOND_US)], packed=True)
    assert answer.json == {"code": 200, "num_records_imported": 2, "status": "OK"}
    lines = orjson.dumps(view("c")) + b"\n" + orjson.dumps(view("d")) + b"\n"
    assert imports(at, lines, headers={"content-type": "application/x-ndjson"}).status == 200
    assert at.keys("mixpanel") == ["a", "b", "c", "d"]
    assert at.stored("mixpanel")["time_us"] == [NOW_US, NOW_US]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (view("x", name=""), "event"), (view("x", time=None), "properties.time"),
        (view("x", time=31_535_999), "properties.time"),
        (view("x", time=NOW_MS + 3_600_001), "properties.time"),
        (view("x", time=1e308), "properties.time"), (view("x", time=-1e308), "properties.time"),
        (view("x", distinct_id=None), "properties.distinct_id"),
        (view("x", distinct_id="Anonymous"), "properties.distinct_id"),
        (view("x" * 37), "properties.$insert_id"), (view("a_b"), "properties.$insert_id"),
        (view("x", **{f"p{n}": 1 for n in range(252)}), "properties"),
        (view("x", deep={"1": {"2": {"3": {}}}}), "properties"),
    ],
)  # fmt: skip
def test_mixpanel_takes_the_good_part_and_names_the_rest(
    at: Standing, bad: Any, field: str
) -> None:
    answer = imports(at, [view("a"), bad, view("b")])
    assert (answer.status, answer.json["num_records_imported"]) == (400, 2)
    (failed,) = answer.json["failed_records"]
    key = bad["properties"]["$insert_id"]
    assert (failed["index"], failed["insert_id"], failed["field"]) == (1, key, field)
    assert at.keys("mixpanel") == ["a", "b"]


def test_mixpanel_without_strict_says_nothing_of_the_rest(at: Standing) -> None:
    answer = imports(at, [view("a"), view("bad_key")], "strict=0")
    assert (answer.status, answer.json["num_records_imported"]) == (200, 1)
    assert at.stored("mixpanel")["lost"] == {"invalid": 1}


def test_mixpanel_knows_a_copy_by_four_things(at: Standing) -> None:
    imports(at, [view("a"), view("a"), view("a", time=NOW_MS - 1), view("a", distinct_id=""),
                 view("a", name="other"), view("b")])  # fmt: skip
    at.now_us += 900 * DAY_US
    imports(at, [view("a")])
    found = at.stored("mixpanel")
    assert (found["count"], found["repeated"], found["doubled"]) == (5, 2, 3)


def test_mixpanel_dates_the_next_hour_as_now(at: Standing) -> None:
    imports(at, [view("a", time=NOW_MS + 3_599_000), view("b", time=31_536_000)])
    assert at.stored("mixpanel")["time_us"] == [365 * DAY_US, NOW_US]


def test_mixpanel_does_not_know_a_copy_that_was_in_the_future_when_it_came(at: Standing) -> None:
    """It knows it by the time that it gave it: who sends such a time twice is seen to double."""
    ahead = view("a", time=NOW_MS + 60_000)
    imports(at, [ahead])
    at.now_us += SECOND_US
    imports(at, [ahead])
    at.now_us += MINUTE_US
    imports(at, [ahead, ahead])
    found = at.stored("mixpanel")
    assert (found["count"], found["doubled"], found["repeated"]) == (3, 2, 1)


def test_mixpanel_knows_a_time_in_seconds_and_in_milliseconds(at: Standing) -> None:
    imports(at, [view("a"), view("a", time=NOW_US // SECOND_US)])
    assert at.stored("mixpanel")["count"] == 1


def test_mixpanel_cuts_text_at_255_characters_without_a_word(at: Standing) -> None:
    long, nested = view("b", text="x" * 256), view("c", deep={"a": ["x", "y" * 256]})
    good = [view("a", text="x" * 255), long, nested, view("d", "n" * 256)]
    answer = imports(at, [*good, view("bad_key", text="x" * 256)])
    assert answer.json["num_records_imported"] == 4
    assert at.stored("mixpanel")["lost"] == {"text cut": 3}
    at.post("/mixpanel/track", [view("e", token="t", text="x" * 256)])
    assert imports(at, [view("f", text="x" * 256)], "strict=0").status == 200
    assert at.stored("mixpanel")["lost"] == {"text cut": 5}


def test_mixpanel_takes_2000_events_and_10_mb(at: Standing) -> None:
    many = [view(f"k{n}") for n in range(2001)]
    assert imports(at, many).json["code"] == 413
    assert imports(at, many[:2000]).status == 200
    large = [view(f"l{n}", text="x" * 990_000) for n in range(11)]
    assert imports(at, large, packed=True).status == 413
    assert imports(at, large[:10], packed=True).status == 200
    failed = imports(at, [view("m", text="x" * 1_000_000)]).json["failed_records"]
    assert failed[0]["message"] == "is larger than 1 MB"


@pytest.mark.parametrize(
    ("login", "query", "status"),
    [
        ("token:", "", 200), ("user:secret", "project_id=7", 200), ("user:secret", "", 401),
        (":", "", 401), (None, "", 401),
    ],
)  # fmt: skip
def test_mixpanel_wants_a_token_or_an_account_with_its_project(
    at: Standing, login: str | None, query: str, status: int
) -> None:
    basic = "" if login is None else "Basic " + base64.b64encode(login.encode()).decode()
    assert imports(at, [view("a")], query, headers={"authorization": basic}).status == status


def test_mixpanel_limits_a_projects_minute_and_counts_what_it_refuses(
    at: Standing, monkeypatch: Any
) -> None:
    monkeypatch.setattr(at.app.vendors.places["mixpanel"].rules, "_events", Rolling(3, MINUTE_US))
    assert imports(at, [view("a"), view("bad_key")]).status == 400
    answer = imports(at, [view("b"), view("c")])
    assert (answer.status, answer.json["status"]) == (429, "Too Many Requests")
    at.now_us += MINUTE_US + 4 * SECOND_US
    assert imports(at, [view("b"), view("c")]).status == 200


def test_mixpanel_track_says_1_and_drops_what_is_older_than_five_days(at: Standing) -> None:
    old, young = view("a", time=NOW_MS - 432_000_001, token="t"), view("b", token="t")
    for event in (old, young):
        assert at.post("/mixpanel/track", [event]).body == b"1"
    assert at.post("/mixpanel/track", [view("c")]).body == b"0"
    assert (at.keys("mixpanel"), at.stored("mixpanel")["lost"]) == (
        ["b"], {"older than five days": 1},
    )  # fmt: skip


# -- PostHog ---------------------------------------------------------------------------------------

UUIDS = [f"01890000-0000-7000-8000-00000000000{n}" for n in range(10)]


def posthog(*events: Any, **more: Any) -> dict[str, Any]:
    return {"api_key": "phc", "batch": list(events), **more}


def capture(uuid: str | None = UUIDS[0], **more: Any) -> dict[str, Any]:
    event = {"event": "see", "distinct_id": "d1", "uuid": uuid,
             "timestamp": "2025-06-15T15:06:40+00:00", "properties": {}, **more}  # fmt: skip
    return {name: value for name, value in event.items() if value is not None}


def test_posthog_takes_a_batch_also_out_of_gzip(at: Standing) -> None:
    of_properties = capture(UUIDS[1], distinct_id=None, properties={"distinct_id": "d2"})
    answer = at.post("/posthog/batch/", posthog(capture(), of_properties), packed=True)
    assert (answer.status, answer.json) == (200, {"status": 1})
    assert at.keys("posthog") == UUIDS[:2]
    assert at.stored("posthog", user="d2")["time_us"] == [NOW_US, NOW_US]


def test_posthog_knows_a_copy_by_uuid_name_person_and_day(at: Standing) -> None:
    at.post("/posthog/batch/", posthog(
        capture(), capture(timestamp="2025-06-15T23:59:59Z"), capture(event="other"),
        capture(distinct_id="d2"), capture(timestamp="2025-06-16T00:00:00Z"), capture(UUIDS[1]),
    ))  # fmt: skip
    found = at.stored("posthog")
    assert (found["count"], found["repeated"], found["keys"], found["doubled"]) == (5, 1, 2, 3)


@pytest.mark.parametrize(
    "bad", [capture(event=None), capture(distinct_id=None), capture(distinct_id=""),
            capture("no-uuid"), 7],
)  # fmt: skip
def test_posthog_refuses_the_batch_or_is_quiet_about_a_bad_event(at: Standing, bad: Any) -> None:
    """Its service does the one, its documentation says the other."""
    assert at.post("/posthog/batch/", posthog(capture(), bad)).status == 400
    assert at.stored("posthog")["count"] == 0
    at.break_("posthog", quiet=True)
    assert at.post("/posthog/batch/", posthog(capture(), bad)).json == {"status": 1}
    found = at.stored("posthog")
    assert (found["count"], found["lost"]) == (1, {"invalid": 1})


def test_posthog_refuses_an_event_that_is_larger_than_900_kib(at: Standing) -> None:
    def of(size: int) -> dict[str, Any]:
        event = capture(UUIDS[1], properties={"text": ""})
        event["properties"]["text"] = "x" * (size - len(orjson.dumps(event)))
        return event

    assert at.post("/posthog/batch/", posthog(capture(), of(900 * 1024 + 1))).status == 400
    assert at.stored("posthog")["count"] == 0
    assert at.post("/posthog/batch/", posthog(capture(), of(900 * 1024))).status == 200
    assert at.stored("posthog")["count"] == 2
    at.break_("posthog", quiet=True)
    assert at.post("/posthog/batch/", posthog(of(2_000_000))).status == 200
    assert at.stored("posthog")["lost"] == {"invalid": 1}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (posthog(), 400), (b"x", 400), ({"batch": [capture()]}, 401),
        (posthog(capture(api_key="other")), 401), (posthog(capture(), x="x" * 20_000_000), 413),
    ],
)  # fmt: skip
def test_posthog_refuses_a_request_that_is_none(at: Standing, body: Any, status: int) -> None:
    assert at.post("/posthog/batch/", body).status == status


def test_posthog_over_quota_answers_200_and_drops(at: Standing) -> None:
    at.break_("posthog", over_quota=True)
    answer = at.post("/posthog/batch/", posthog(capture()))
    assert (answer.status, answer.json) == (200, {"status": 1, "quota_limited": ["events"]})
    assert at.stored("posthog")["lost"] == {"over quota": 1}


# -- the webhook: docs of the wire form ------------------------------------------------------------


def signed(
    at: Standing, body: Any, *, secret: str = WEBHOOK_SECRET, seconds: int = NOW_US // SECOND_US
) -> Answer:
    data = orjson.dumps(body)
    mac = hmac.new(secret.encode(), b"%d." % seconds + data, "sha256").hexdigest()
    return at.post("/webhook", data, {"headrace-signature": f"t={seconds},v1={mac}"})


def sent(key: str) -> dict[str, Any]:
    return {"id": key, "name": "buy", "time": NOW_US, "user_id": "u1", "properties": {}}


def test_the_webhook_takes_what_is_signed_with_its_secret_now(at: Standing) -> None:
    body = {"events": [sent("a"), sent("b"), sent("a")]}
    now_s = NOW_US // SECOND_US
    assert signed(at, body, secret="other").status == 401
    assert signed(at, body, seconds=now_s - 301).status == 401
    assert signed(at, body, seconds=now_s + 301).status == 401
    assert at.post("/webhook", body).status == 401
    assert at.stored("webhook")["count"] == 0
    assert signed(at, body, seconds=now_s - 300).status == 200
    assert (at.keys("webhook"), at.stored("webhook")["repeated"]) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"events": [{"id": "a"}]}, 400), ({"events": [], "x": "x" * 10**6}, 413)],
)
def test_the_webhook_refuses_what_is_not_its_form(at: Standing, body: Any, status: int) -> None:
    assert signed(at, body).status == status
