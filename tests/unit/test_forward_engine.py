"""The engine against a vendor that answers as a test says, without a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from vendors_under_test import NOW_US, UNDER, an_event, request_of

from consumers.errors import Fenced, Systemic, Unavailable
from consumers.forward import again, pace
from consumers.forward import engine as engine_
from consumers.forward.budget import Budget
from consumers.forward.delivery import Delivery, Status, Terms
from consumers.forward.engine import Engine
from consumers.forward.engine_settings import EngineSettings
from consumers.forward.lines import Unit, users_of
from consumers.forward.tell import Teller
from consumers.trace.event import Event
from consumers.trace.scrub import Scrubber
from consumers.vendors import Answer, Code, RetryAfter, Split, Validating, vendor
from ingest.units import DAY_US

SECRET = "s3cr3t-Xy_7"
Handle = Callable[[list[dict[str, Any]]], httpx.Response]
# What an outage left out.
LEFT_OUT = Terms(backfill=True, unjudged=True)


class Vendor:
    """A webhook's server: what it was sent, and answers by `handle`."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.seen: list[list[str]] = []
        self.taken: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        events = json.loads(request.content)["events"]
        self.seen.append([e["id"] for e in events])
        answer = self.handle(events)
        if answer.is_success:
            self.taken += [e["id"] for e in events]
        return answer


@contextmanager
def engine(
    server: Vendor,
    *,
    backfill: bool = False,
    unjudged: bool = False,
    budget: Budget | None = None,
    **settings: Any,
) -> Iterator[Engine]:
    table = {"url": "https://example.com/events", "secret_env": "K", **settings}
    running = Engine(
        "webhook", vendor("webhook", table, {"K": SECRET}), EngineSettings(4, 5.0),
        Teller("webhook", Scrubber({"mail"})), transport=httpx.MockTransport(server),
        backfill=backfill, unjudged=unjudged, budget=budget,
    )  # fmt: skip
    try:
        yield running
    finally:
        running.close()


def events(count: int, users: int = 1000) -> list[Event]:
    return [
        an_event(event_id=f"e-{n}", key=f"key-{n}", user_id=f"user-{n % users}")
        for n in range(count)
    ]


def ok(_: object) -> httpx.Response:
    return httpx.Response(200)


def in_turn(*answers: int | Exception, then: Handle = ok) -> Handle:
    """These answers, one after the other, and then others."""
    left = list(answers)

    def handle(sent: list[dict[str, Any]]) -> httpx.Response:
        if not left:
            return then(sent)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)

    return handle


def statuses(delivery: Delivery) -> dict[str, Status]:
    assert delivery.done
    return {final.event.key: final.status for final in delivery.finals}


def test_each_event_is_final_once_and_has_left_once() -> None:
    server, sent = Vendor(ok), Delivery((), events(95))
    with engine(server, max_events=10) as running:
        running.deliver(sent)
    assert statuses(sent) == dict.fromkeys((e.key for e in events(95)), Status.ACCEPTED)
    assert len(sent.finals) == len(server.taken) == 95
    assert all(f.attempts == 1 and not f.repeated for f in sent.finals)
    assert all(0 < f.sent_us <= f.answered_us for f in sent.finals)


def test_one_bad_event_is_found_by_halving_and_the_others_are_taken() -> None:
    def handle(sent: list[dict[str, Any]]) -> httpx.Response:
        return httpx.Response(400 if any(e["id"] == "key-13" for e in sent) else 200)

    server, sent = Vendor(handle), Delivery((), events(40))
    with engine(server) as running:
        running.deliver(sent)
    found = Counter(statuses(sent).values())
    assert found == {Status.ACCEPTED: 39, Status.REJECTED: 1}
    (bad,) = [f for f in sent.finals if f.status is Status.REJECTED]
    assert bad.event.key == "key-13"
    assert bad.reason is not None
    assert bad.reason.code is Code.REJECTED
    assert bad.attempts in (6, 7), "40, 20, 10, 5, 3 or 2, 1 …"
    assert sorted(server.taken) == sorted(e.key for e in events(40) if e.key != "key-13")


def test_a_users_events_arrive_in_order_whatever_fails() -> None:
    failing = in_turn(500, 200, 503, httpx.ReadError("cut"), 200, 500, 429)
    server, sent = Vendor(failing), Delivery((), events(60, users=3))
    with engine(server, max_events=5) as running:
        running.deliver(sent)
    assert len(sent.finals) == 60
    for user in range(3):
        order = [int(k.removeprefix("key-")) for k in server.taken]
        theirs = [n for n in order if n % 3 == user]
        assert theirs == sorted(theirs)


@pytest.mark.parametrize(
    ("trouble", "unknown"),
    [
        (500, True),
        (503, False),
        (429, False),
        (httpx.ReadTimeout("slow"), True),
        (httpx.RemoteProtocolError("cut"), True),
        (httpx.ConnectError("refused"), False),
    ],
)
def test_receipts_say_where_an_event_may_be_there_twice(
    trouble: int | Exception, unknown: bool
) -> None:
    server, sent = Vendor(in_turn(trouble)), Delivery((), events(1))
    with engine(server) as running:
        running.deliver(sent)
    (final,) = sent.finals
    assert (final.status, final.attempts, final.repeated) == (Status.ACCEPTED, 2, unknown)


def test_what_was_begun_by_another_is_sent_as_repeated() -> None:
    server = Vendor(ok)
    sent = Delivery(events(3), [an_event(key="later")])
    with engine(server) as running:
        running.deliver(sent)
    assert Counter(f.repeated for f in sent.finals) == {True: 3, False: 1}


def test_a_vendor_that_is_away_is_asked_a_few_times_and_then_said_to_be() -> None:
    """And what it has taken is not sent again when it is back."""
    server = Vendor(in_turn(200))
    sent = Delivery((), events(30))
    server.handle = in_turn(200, then=lambda _: httpx.Response(502))
    with engine(server, max_events=5) as running:
        with pytest.raises(Unavailable, match="HTTP 502"):
            running.deliver(sent)
        assert len(server.seen) < 15
        assert len(sent.finals) == 5
        for _ in range(3):
            with pytest.raises(Unavailable):
                running.deliver(sent)
        server.handle = ok
        running.breaker.due = 0.0
        running.deliver(sent)
    assert len(server.taken) == 30
    assert len(set(server.taken)) == 30
    assert Counter(statuses(sent).values()) == {Status.ACCEPTED: 30}


def test_however_long_a_vendor_is_away_what_waits_for_it_may_go_when_it_is_asked_again() -> None:
    """The breaker has the pauses: with those of one request it would be back unnoticed for 30 s."""
    server, sent = Vendor(lambda _: httpx.Response(503)), Delivery((), events(1))
    with engine(server) as running:
        for _ in range(12):
            with pytest.raises(Unavailable):
                running.deliver(sent)
            due = sent.lines.due()
            assert due is not None
            assert due <= time.monotonic()
            running.breaker.due = 0.0
        assert len(server.seen) > 12


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are short."""
    monkeypatch.setattr(again, "_BACKOFF_S", 0.001)
    monkeypatch.setattr(again, "_MOST_BACKOFF_S", 0.01)
    monkeypatch.setattr(pace, "_REST_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("most", "users", "away"), [(40, 40, 0), (10, 40, 0), (40, 20, 0), (40, 40, 60)]
)
@pytest.mark.parametrize("answer", [500, httpx.ReadTimeout("slow")])
def test_an_event_on_which_a_vendor_fails_holds_up_no_other_user_and_is_named(
    most: int, users: int, away: int, answer: int | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    fails = in_turn(*[answer] * 1000)

    def handle(sent: list[dict[str, Any]]) -> httpx.Response:
        return fails(sent) if any(e["id"] == "key-13" for e in sent) else httpx.Response(200)

    # One who comes behind it is of the same user, where users have two events.
    waits = {"key-13"} if users == 40 else {"key-13", "key-33"}
    server, sent = Vendor(lambda _: httpx.Response(503)), Delivery((), events(40, users))
    with engine(server, max_events=most) as running:
        for _ in range(away):
            with pytest.raises(Unavailable):
                running.deliver(sent)
            running.breaker.due = 0.0
        server.handle = handle
        asked = 0
        while not sent.told:
            asked += 1
            assert asked < 120
            with suppress(Unavailable):
                running.deliver(sent)
            running.breaker.due = 0.0
        assert set(server.taken) == {e.key for e in events(40)} - waits
        for _ in range(5):
            with pytest.raises(Unavailable):
                running.deliver(sent)
            running.breaker.due = 0.0
        server.handle = ok
        running.deliver(sent)
    assert caplog.text.count("fails on one event, key-13") == 1
    assert len(sent.finals) == len(statuses(sent)) == 40


@pytest.mark.usefixtures("impatient")
def test_a_vendor_that_is_too_slow_for_a_request_gets_smaller_ones() -> None:
    def handle(sent: list[dict[str, Any]]) -> httpx.Response:
        if len(sent) > 12:
            raise httpx.ReadTimeout("no answer within 5 s")
        return httpx.Response(200)

    server, sent = Vendor(handle), Delivery((), events(100))
    with engine(server, max_events=100) as running:
        while not sent.done:
            with suppress(Unavailable):
                running.deliver(sent)
            running.breaker.due = 0.0
    assert Counter(statuses(sent).values()) == {Status.ACCEPTED: 100}
    assert len(server.taken) == 100


@pytest.mark.usefixtures("impatient")
def test_what_waits_for_a_vendor_that_is_away_stays_in_few_requests() -> None:
    server, sent = Vendor(lambda _: httpx.Response(500)), Delivery((), events(1000))
    with engine(server, max_events=100) as running:
        for _ in range(300):  # ten minutes
            with pytest.raises(Unavailable):
                running.deliver(sent)
            running.breaker.due = 0.0
        assert len(server.seen) >= 300
        assert len(sent.lines) <= 40


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_vendor_gets_the_requests_that_it_had(status: int) -> None:
    server = Vendor(in_turn(*[status] * 4))
    with engine(server, max_events=100) as running:
        running.deliver(Delivery((), events(20)))
    assert {len(seen) for seen in server.seen} == {20}


def test_of_a_replay_that_is_all_refused_nothing_is_concluded_but_of_an_outages() -> None:
    """Nobody has refused what an outage left out."""
    server, sent = Vendor(lambda _: httpx.Response(400)), Delivery((), events(150))
    with engine(server, backfill=True) as running:
        running.deliver(sent)
    assert Counter(statuses(sent).values()) == {Status.REJECTED: 150}
    sent = Delivery((), events(150))
    with (
        engine(server, backfill=True, unjudged=True) as running,
        pytest.raises(Systemic, match="refuses most of what it is sent"),
    ):
        running.deliver(sent)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(404, Systemic, id="is told to stop"),
        pytest.param(ZeroDivisionError(), ZeroDivisionError, id="breaks"),
    ],
)
def test_who_leaves_while_it_asks_for_a_vendor_that_was_away_lets_others_ask(
    answer: int | Exception, why: type[Exception]
) -> None:
    """A job's engine and the live one share what they know of a vendor."""
    server = Vendor(in_turn(*[500] * 5, answer))
    budget = Budget()
    with engine(server, budget=budget) as live, engine(server, budget=budget, backfill=True) as job:
        for running, raised in ((live, Unavailable), (job, why)):
            live.breaker.due = 0.0
            with pytest.raises(raised):
                running.deliver(Delivery((), events(1)))
        assert live.breaker.may_send(time.monotonic())
        live.deliver(Delivery((), events(1)))


def test_a_vendor_that_refuses_everything_is_a_setting_and_not_rejected_events() -> None:
    server, sent = (
        Vendor(lambda _: httpx.Response(400, text="no such app")),
        Delivery((), events(900)),
    )
    with (
        engine(server) as running,
        pytest.raises(Systemic, match=r"101 of the last 101 events.*no such app"),
    ):
        running.deliver(sent)
    assert not sent.done


def test_refusals_are_added_up_over_small_deliveries_and_each_of_them_once() -> None:
    server = Vendor(lambda _: httpx.Response(400))
    with engine(server) as running:
        for _ in range(9):
            running.deliver(Delivery((), events(10)))
        for _ in range(30):
            # One that is given up before its end, and comes again as another.
            server.handle = in_turn(400, 401)
            with pytest.raises(Systemic, match="refuses us"):
                running.deliver(Delivery((), events(2, users=1)))
        server.handle = lambda _: httpx.Response(400)
        running.deliver(Delivery((), events(10)))
        with pytest.raises(Systemic, match="101 of the last 101 events"):
            running.deliver(Delivery((), events(10)))


def test_bad_events_among_good_ones_stop_nothing() -> None:
    def handle(sent: list[dict[str, Any]]) -> httpx.Response:
        return httpx.Response(400 if any(int(e["id"][4:]) % 9 == 0 for e in sent) else 200)

    server = Vendor(handle)
    with engine(server) as running:
        for _ in range(3):
            sent = Delivery((), events(400))
            running.deliver(sent)
            assert Counter(statuses(sent).values())[Status.REJECTED] == 45


def amplitude_batch(bad: Callable[[int], bool]) -> Engine:
    """A request is taken whole or not at all, and all bad events are named."""

    async def batch(request: httpx.Request) -> httpx.Response:
        keys = [e["insert_id"] for e in json.loads(request.content)["events"]]
        found = [n for n, key in enumerate(keys) if bad(int(key.removeprefix("key-")))]
        if not found:
            return httpx.Response(200, json={"code": 200, "events_ingested": len(keys)})
        said = {"error": "Invalid field values", "events_with_invalid_fields": {"time": found}}
        return httpx.Response(400, json={"code": 400, **said})

    return Engine(
        "amplitude", vendor("amplitude", {"api_key_env": "K", "gzip": False}, {"K": SECRET}),
        EngineSettings(8, 5.0), Teller("amplitude", Scrubber(())), backfill=True, unjudged=True,
        transport=httpx.MockTransport(batch),
    )  # fmt: skip


def left_out(count: int) -> list[Event]:
    return [replace(event, device_id=None) for event in events(count, users=count)]


@pytest.mark.parametrize(("bad", "of"), [(125, 2000), (60, 2000), (250, 10_000), (4500, 10_000)])
def test_bad_events_that_a_vendor_names_before_it_takes_the_rest_stop_nothing(
    bad: int, of: int
) -> None:
    """In each request the same share of them, and all requests are under way at once."""
    running = amplitude_batch(lambda n: n * bad // of != (n + 1) * bad // of)
    sent = Delivery((), left_out(of), LEFT_OUT)
    running.deliver(sent)
    running.close()
    found = Counter(statuses(sent).values())
    assert found == {Status.REJECTED: bad, Status.ACCEPTED: of - bad}


@pytest.mark.parametrize(("bad", "of"), [(2000, 2000), (5500, 10_000)])
def test_a_vendor_that_names_most_of_what_it_gets_as_bad_is_a_setting(bad: int, of: int) -> None:
    running = amplitude_batch(lambda n: n * bad // of != (n + 1) * bad // of)
    with pytest.raises(Systemic, match="refuses most of what it is sent"):
        running.deliver(Delivery((), left_out(of), LEFT_OUT))
    running.close()


def test_what_a_refusal_has_left_counts_once_also_when_it_is_taken() -> None:
    running = amplitude_batch(lambda n: n < 100 or n >= 2000)
    sent = left_out(4000)
    # The second request waits until the rest of the first one is taken.
    sent[2000] = replace(sent[2000], user_id=sent[1999].user_id)
    with pytest.raises(Systemic, match="2100 of the last 4000 events"):
        running.deliver(Delivery((), sent, LEFT_OUT))
    running.close()


@pytest.mark.parametrize("status", [400, 401, 500])
def test_what_a_vendor_says_is_scrubbed_wherever_it_is_told(status: int) -> None:
    text = "account of jane@example.com is locked"
    server, sent = Vendor(lambda _: httpx.Response(status, text=text)), Delivery((), events(1))
    said = ""
    with engine(server) as running:
        try:
            running.deliver(sent)
        except (Systemic, Unavailable) as error:
            said = str(error)
    said += "".join(final.reason.text for final in sent.finals if final.reason)
    assert "account of [mail] is locked" in said
    assert "jane" not in said


def test_what_a_proxy_refused_has_not_left() -> None:
    server, sent = Vendor(in_turn(httpx.ProxyError("502 Bad Gateway"))), Delivery((), events(3))
    with engine(server) as running:
        running.deliver(sent)
    assert not any(final.repeated for final in sent.finals)


def test_a_refused_key_is_for_a_person_and_nothing_is_final_by_it() -> None:
    server, sent = Vendor(lambda _: httpx.Response(401, text="no")), Delivery((), events(10))
    with engine(server) as running, pytest.raises(Systemic, match="webhook refuses us: HTTP 401"):
        running.deliver(sent)
    assert not sent.finals


def test_a_long_list_of_what_is_refused_is_read_to_its_end() -> None:
    """Mixpanel has the others: in halves all of it would be sent once more."""
    asked: list[int] = []

    async def mixpanel(request: httpx.Request) -> httpx.Response:
        sent = json.loads(request.content)
        asked.append(len(sent))
        text = "'properties.distinct_id' is invalid: " + "must not be missing or a placeholder " * 3
        failed = [
            {"index": n, "insert_id": e["properties"]["$insert_id"],
             "field": "properties.distinct_id", "message": text}
            for n, e in enumerate(sent) if n % 3 != 0
        ]  # fmt: skip
        body = {
            "code": 400, "status": "Bad Request", "num_records_imported": len(sent) - len(failed),
            "failed_records": failed,
        }  # fmt: skip
        return httpx.Response(400, json=body)

    table = {"token_env": "K", "gzip": False}
    running = Engine(
        "mixpanel", vendor("mixpanel", table, {"K": SECRET}), EngineSettings(4, 5.0),
        Teller("mixpanel", Scrubber(())), backfill=True, transport=httpx.MockTransport(mixpanel),
    )  # fmt: skip
    sent = Delivery((), events(1800))
    running.deliver(sent)
    running.close()
    assert Counter(statuses(sent).values()) == {Status.ACCEPTED: 600, Status.REJECTED: 1200}
    assert asked == [1800]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("name", ["amplitude", "ga4", "mixpanel", "webhook"])
def test_of_a_long_answer_no_more_is_looked_through_than_is_told(name: str, status: int) -> None:
    """However much it says, and however often of the same event."""
    request = request_of(UNDER[name].make(name), *(an_event(key=f"k{n}") for n in range(3)))
    looked: list[int] = []

    def masked(text: str) -> str:
        looked.append(len(text))
        return text

    watched: Any = Mock(wraps=request, events=request.events, url=request.url, masked=masked)
    long = "long " * 20_000
    for said in (
        {"error": long, "events_with_invalid_fields": {f"f{n}": [0, 1] for n in range(5000)}},
        {"failed_records": [{"index": n % 3, "message": long[n:]} for n in range(300)]},
        {"validationMessages": [{"description": f"events[{n % 3}] {long}"} for n in range(300)]},
        {"error": long * 10},
    ):
        body = json.dumps(said).encode()
        Teller(name, Scrubber(())).answered(watched, Answer(status, {}, body), 1)
        v = UNDER[name].make(name)
        v.verdict(watched, Answer(status, {}, body), NOW_US)
        if isinstance(v, Validating):
            v.findings(watched, Answer(200, {}, body))
    assert max(looked) <= 65_536
    assert len(looked) < 40


def test_a_redirect_is_not_followed() -> None:
    def handle(_: object) -> httpx.Response:
        return httpx.Response(302, headers={"Location": "https://elsewhere.example"})

    server = Vendor(handle)
    with engine(server) as running, pytest.raises(Systemic):
        running.deliver(Delivery((), events(1)))
    assert len(server.seen) == 1


def test_a_long_retry_after_is_the_run_loops_to_wait_for() -> None:
    def handle(_: object) -> httpx.Response:
        return httpx.Response(429, headers={"Retry-After": "120"})

    with engine(Vendor(handle)) as running, pytest.raises(Unavailable, match=r"asks for 1\d\d s"):
        running.deliver(Delivery((), events(1)))


def test_what_the_vendor_would_not_take_never_leaves() -> None:
    server = Vendor(ok)
    large = an_event(key="large", properties={"x": "y" * 5000})
    with engine(server, max_bytes=1000) as running:
        sent = Delivery((), [large, an_event(key="small")])
        running.deliver(sent)
    assert statuses(sent) == {"large": Status.REJECTED, "small": Status.ACCEPTED}
    assert server.seen == [["small"]]


def test_every_answer_that_is_not_2xx_is_in_the_log_without_credentials_and_mail_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = f"who is jane@example.com? {SECRET}"
    server = Vendor(in_turn(then=lambda _: httpx.Response(400, text=text)))
    with engine(server) as running, caplog.at_level(logging.INFO):
        running.deliver(Delivery((), [an_event(properties={"note": "of jane@example.com"})]))
    (record,) = caplog.records
    said = vars(record)
    assert (said["vendor"], said["status"], said["attempt"], said["events"]) == (
        "webhook", "400", 1, 1,
    )  # fmt: skip
    assert said["request"].startswith("POST https://example.com/events {")
    assert "who is [" in said["response"]
    for told in (said["request"], said["response"], record.getMessage()):
        assert SECRET not in told
        assert "jane" not in told


def told_of(
    name: str, table: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> list[dict[str, Any]]:
    """What is in the log of a 200 that says this, and of the vendor's own after it."""
    yes = UNDER[name].yes
    assert yes is not None
    answers = [httpx.Response(200, text=said), httpx.Response(yes.status, content=yes.body)]

    async def answer(_: httpx.Request) -> httpx.Response:
        return answers.pop(0)

    running = Engine(
        name, vendor(name, table, {"K": SECRET}), EngineSettings(1, 5.0),
        Teller(name, Scrubber({"mail"})), transport=httpx.MockTransport(answer),
    )  # fmt: skip
    with caplog.at_level(logging.INFO), suppress(Systemic, Unavailable):
        running.deliver(Delivery((), [an_event(time_us=time.time_ns() // 1000)]))
    running.close()
    return [vars(record) for record in caplog.records]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("amplitude", {"api_key_env": "K"}),
        ("ga4", {"api_secret_env": "K", "measurement_id": "G-1"}),
        ("mixpanel", {"token_env": "K"}),
        ("posthog", {"api_key_env": "K"}),
    ],
)
def test_a_2xx_that_is_no_yes_is_in_the_log_once_and_one_that_is_is_not(
    name: str, table: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    page = f"<html>jane@example.com, log in: {SECRET}"
    (said,) = told_of(name, table, page, caplog)
    assert (said["vendor"], said["status"], said["attempt"]) == (name, "200", 1)
    assert said["response"] == "<html>[mail], log in: ..."
    assert SECRET not in said["request"]


def test_an_answer_that_all_is_dropped_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    over = '{"status": "Ok", "quota_limited": ["events"]}'
    (said,) = told_of("posthog", {"api_key_env": "K"}, over, caplog)
    assert (said["status"], said["response"]) == ("200", over)


class Google:
    """GA4's two endpoints: everything is taken, and every third event is found wrong."""

    def __init__(self) -> None:
        self.paths: Counter[str] = Counter()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths[request.url.path] += 1
        if request.url.path == "/mp/collect":
            return httpx.Response(204)
        text = "Event at index: [0] has a wrong name."
        message = {"fieldPath": "events", "description": text, "validationCode": "NAME_INVALID"}
        return httpx.Response(200, json={"validationMessages": [message]})


def test_a_share_of_googles_requests_is_validated_and_findings_are_final() -> None:
    google = Google()
    table = {"api_secret_env": "K", "measurement_id": "G-1", "validate_share": 0.25}
    running = Engine(
        "ga4", vendor("ga4", table, {"K": SECRET}), EngineSettings(4, 5.0),
        Teller("ga4", Scrubber(())), transport=httpx.MockTransport(google),
    )  # fmt: skip
    now_us = time.time_ns() // 1000
    many = [
        an_event(key=f"k-{n}", device_id=f"device-{n // 25}", user_id=None, time_us=now_us)
        for n in range(400)
    ]
    late = an_event(key="late", time_us=now_us - 73 * 3_600_000_000)
    sent = Delivery((), [*many, late])
    running.deliver(sent)
    running.close()
    assert google.paths == {"/mp/collect": 16, "/debug/mp/collect": 4}
    assert Counter(statuses(sent).values()) == {
        Status.ACCEPTED: 396, Status.REJECTED: 4, Status.EXPIRED: 1,
    }  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [False, True])
def test_a_copy_is_as_old_as_the_first_one_that_this_process_has_sent(begun: bool) -> None:
    """Amplitude knows one for 7 days from when it came, however long it had waited before."""
    lost = [httpx.RemoteProtocolError("cut")]
    taken: list[int] = []

    async def amplitude(request: httpx.Request) -> httpx.Response:
        if lost:
            raise lost.pop()
        taken.append(len(json.loads(request.content)["events"]))
        return httpx.Response(200, json={"code": 200, "events_ingested": taken[-1]})

    eight_days_ago_us = time.time_ns() // 1000 - 8 * DAY_US
    old = [replace(e, received_us=eight_days_ago_us, device_id=None) for e in events(200)]
    table = {"api_key_env": "K", "gzip": False}
    running = Engine(
        "amplitude", vendor("amplitude", table, {"K": SECRET}), EngineSettings(4, 5.0),
        Teller("amplitude", Scrubber(())), transport=httpx.MockTransport(amplitude),
    )  # fmt: skip
    sent = Delivery(old, ()) if begun else Delivery((), old)
    running.deliver(sent)
    running.close()
    if begun:
        # By another process, and when nobody knows.
        assert Counter(statuses(sent).values()) == {Status.EXPIRED: 200}
        assert not taken
    else:
        assert Counter(statuses(sent).values()) == {Status.ACCEPTED: 200}
        assert taken == [200]
        assert all(final.repeated for final in sent.finals)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("refusal", [httpx.ConnectError("no route"), 429, 503])
@pytest.mark.parametrize("next_", [200, 500])
def test_an_attempt_of_which_nothing_can_have_come_makes_no_copy_old(
    refusal: int | Exception, next_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch asks for as long as a vendor is away; then an answer is lost."""
    now = [time.time_ns()]
    clock = SimpleNamespace(time_ns=lambda: now[0], monotonic=time.monotonic)
    monkeypatch.setattr("consumers.forward.engine.time", clock)
    answers = [refusal, httpx.RemoteProtocolError("cut"), next_]
    day_ns = DAY_US * 1000

    async def amplitude(request: httpx.Request) -> httpx.Response:
        answer = answers.pop(0) if answers else 200
        now[0] += 8 * day_ns if answer is refusal else day_ns // 24
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={"code": answer} if answer == 200 else None)

    running = Engine(
        "amplitude", vendor("amplitude", {"api_key_env": "K", "gzip": False}, {"K": SECRET}),
        EngineSettings(1, 5.0), Teller("amplitude", Scrubber(())),
        transport=httpx.MockTransport(amplitude),
    )  # fmt: skip
    sent = Delivery((), [replace(e, received_us=now[0] // 1000) for e in left_out(8)])
    running.deliver(sent)
    running.close()
    assert Counter(statuses(sent).values()) == {Status.ACCEPTED: 8}
    assert all(final.repeated for final in sent.finals)


def test_what_has_become_of_a_copy_stays_with_its_parts() -> None:
    v = UNDER["webhook"].make("webhook")
    lost = RetryAfter(None, "cut", unknown=True)

    def again_of(unit: Unit) -> list[tuple[bool, int]]:
        found = again.units_again(v, unit, lost, unit.events, 0.0, away=False, asked=False)
        return [(one.repeated, one.first_us) for one in found]

    sent = events(4)
    fresh = Unit(sent, users_of(v, sent), sent_us=5)
    assert again_of(fresh) == [(True, 5)]
    later = Unit(sent, users_of(v, sent), sent_us=9, repeated=True, first_us=5, failures=9)
    assert again_of(later) == [(True, 5), (True, 5)]
    halves = again.units_again(v, later, Split("no"), sent, 0.0, away=False, asked=False)
    assert [(one.repeated, one.first_us) for one in halves] == [(True, 5), (True, 5)]
    # Who was killed has not said when: 0 stays.
    assert again_of(Unit(sent, users_of(v, sent), sent_us=9, repeated=True)) == [(True, 0)]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("begun", "answers"), [(True, (503, 200)), (False, (500, 503, 200))])
def test_what_may_be_there_twice_stays_so_whatever_is_answered_next(
    begun: bool, answers: tuple[int, ...]
) -> None:
    """By a 503 nothing was taken, but something may have been before."""
    server = Vendor(in_turn(*answers))
    sent = Delivery(events(1), ()) if begun else Delivery((), events(1))
    with engine(server) as running:
        running.deliver(sent)
    assert [final.repeated for final in sent.finals] == [True]


# -- a stop ----------------------------------------------------------------------------------------


def test_a_stop_sends_nothing_more_and_what_is_under_way_is_accounted_for() -> None:
    """Else the replay of an outage that was cancelled goes on to the end of its batch."""
    server, sent = Vendor(ok), Delivery((), events(400))
    with engine(server, max_events=10) as running:

        def handle(_: object) -> httpx.Response:
            running.stop()
            return httpx.Response(200)

        server.handle = handle
        with pytest.raises(Fenced):
            running.deliver(sent)
    assert not sent.done
    assert 0 < len(server.taken) <= 4 * 10, "those that had left with the first one"
    assert {f.event.key for f in sent.finals} == set(server.taken)


def test_a_stop_does_not_wait_for_a_vendor_that_asks_for_a_rest() -> None:
    server, sent = Vendor(ok), Delivery((), events(3))
    with engine(server) as running:

        def rest(_: object) -> httpx.Response:
            threading.Timer(0.05, running.stop).start()
            return httpx.Response(429, headers={"Retry-After": "4"})

        server.handle = rest
        since = time.monotonic()
        with pytest.raises(Fenced):
            running.deliver(sent)
        assert time.monotonic() - since < 3


def test_a_stop_does_not_wait_for_an_answer_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_, "_LAST_S", 0.01)
    server, sent = Vendor(ok), Delivery((), events(3))
    with engine(server) as running:

        async def silent(_: httpx.Request) -> httpx.Response:
            running.stop()
            await asyncio.sleep(60)
            raise AssertionError

        running._client._stand_in = httpx.MockTransport(silent)
        with pytest.raises(Fenced):
            running.deliver(sent)
    assert not sent.finals, "nobody knows whether it has them"


def test_a_stop_behind_the_last_answer_is_too_late_to_matter() -> None:
    server, sent = Vendor(ok), Delivery((), events(3))
    with engine(server) as running:
        server.handle = lambda _: (running.stop(), httpx.Response(200))[1]
        running.deliver(sent)
    assert sent.done
    running.stop()  # and behind its end, too
