"""The collector's answers: what is said when, and never before it is true. No sockets, no disk."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import zstandard
from asgi_client import Collector, FakeSpool, Reply

from ingest.collector import acks, intake, keyfile, metrics, segment, sparrow
from ingest.collector.acks import Place
from ingest.collector.doors import doors
from ingest.collector.key import new_secret
from ingest.collector.keys import Keys
from ingest.collector.quota import Quota
from ingest.spool import Record
from ingest.spool.errors import SpoolError, SpoolFull, SpoolTaken
from ingest.spool.store import Store
from ingest.streams import BUILT_IN

EVENTS = "/v1/events"
LOGS = "/v1/logs/device_state"
EVENT = {"event": "click", "deviceId": "d1", "eventId": "e1"}
LOG = {"deviceId": "d1", "timestamp": "2025-06-16T22:50:12.226Z"}
PAGE = "https://www.example.com"
SECRET = "tell-nobody"
# Who wants a word before the body is sent: it shows what is decided before it is read.
ASKING = {"Expect": "100-continue"}


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test as a coroutine; its fixtures stay as they are."""

    @wraps(test)
    def running(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return running


async def turns(count: int = 10) -> None:
    """Let what can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def secret(tmp_path: Path) -> str:
    """Of a key for one page and the events, in tmp_path/keys.json; 2 records at once, 10 a day."""
    found = new_secret()
    keyfile.add(
        tmp_path / "keys.json",
        found,
        {
            "source": "web", "origins": [PAGE], "streams": ["raw_events"],
            "rate": 1, "burst": 2, "daily": 10,
        },
    )  # fmt: skip
    return found


# -- acknowledged means safe -----------------------------------------------------------------------


@run
async def test_the_answer_comes_after_the_commit_and_not_before() -> None:
    collector = Collector(FakeSpool(holds=True))
    request = asyncio.create_task(collector.post(EVENTS, EVENT))
    await turns()
    assert len(collector.spool.appends) == 1
    assert not request.done()
    collector.spool.commit()
    reply = await request
    assert (reply.status, reply.json) == (202, {"accepted": 1, "refused": []})
    assert [record.id for record in collector.spool.records] == ["local:e:e1"]


@run
async def test_requests_that_come_together_are_one_append_and_each_has_its_answer() -> None:
    collector = Collector(FakeSpool(holds=True))
    requests = [
        asyncio.create_task(collector.post(EVENTS, {**EVENT, "eventId": str(n)})) for n in range(50)
    ]
    await turns()
    assert [len(records) for records in collector.spool.appends] == [50]
    collector.spool.commit()
    assert {reply.status for reply in await asyncio.gather(*requests)} == {202}


@run
async def test_what_comes_while_an_append_is_under_way_is_the_next_one() -> None:
    collector = Collector(FakeSpool(holds=True))
    requests = []
    for n in range(6):
        requests.append(asyncio.create_task(collector.post(EVENTS, {**EVENT, "eventId": str(n)})))
        await turns()
    assert [len(records) for records in collector.spool.appends] == [1]
    collector.spool.commit()
    await turns()
    assert [len(records) for records in collector.spool.appends] == [1, 5]
    collector.spool.commit()
    assert {reply.status for reply in await asyncio.gather(*requests)} == {202}


@run
async def test_what_comes_turn_after_turn_is_one_append_that_ends_when_a_turn_brings_nothing() -> (
    None
):
    collector = Collector()
    stored = []
    for n in range(5):
        stored.append(collector.acks.store([Record("t", b"k", b"v", str(n))]))
        await turns(1)
    await asyncio.wait_for(asyncio.gather(*stored), 5)
    assert [len(records) for records in collector.spool.appends] == [5]


@run
async def test_nobody_waits_for_ever_because_more_comes() -> None:
    collector = Collector()
    first = collector.acks.store([Record("t", b"k", b"v", "0")])
    for n in range(1, 1000):
        if first.done():
            break
        collector.acks.store([Record("t", b"k", b"v", str(n))])
        await turns(1)
    assert first.done()


@run
async def test_small_appends_are_committed_in_the_loop_and_large_ones_beside_it() -> None:
    collector = Collector(FakeSpool())
    await collector.post(EVENTS, EVENT)
    assert (collector.spool.now, len(collector.spool.appends)) == (1, 1)
    reply = await collector.post(EVENTS, [{**EVENT, "eventId": str(n)} for n in range(1000)])
    assert reply.json["accepted"] == 1000
    assert (collector.spool.now, len(collector.spool.appends)) == (1, 2)


@run
async def test_a_slow_disk_is_waited_for_beside_the_loop_and_then_tried_again() -> None:
    collector = Collector(FakeSpool(disk_s=0.1))
    await collector.post(EVENTS, EVENT)
    for n in range(5):
        await collector.post(EVENTS, {**EVENT, "eventId": str(n)})
    assert collector.spool.now == 1
    collector.acks._slow_until = 0.0  # the time is over
    await collector.post(EVENTS, {**EVENT, "eventId": "later"})
    assert collector.spool.now == 2


@run
async def test_the_slower_the_disk_the_longer_the_loop_leaves_it_alone() -> None:
    collector = Collector(FakeSpool(disk_s=0.1))
    for n in range(20):
        await collector.post(EVENTS, {**EVENT, "eventId": str(n)})
        await asyncio.sleep(0.06)  # longer than a second in all, shorter than 100 commits
    assert collector.spool.now == 1


@run
async def test_one_slow_commit_makes_no_slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten times what it is: this machine may stand still for a while, too.
    monkeypatch.setattr(acks, "_SLOW_S", 0.1)
    collector = Collector(FakeSpool(disk_s=0.2))
    await collector.post(EVENTS, EVENT)
    collector.spool.disk_s = 0
    for n in range(20):
        await collector.post(EVENTS, {**EVENT, "eventId": str(n)})
    assert collector.spool.now == 21


@run
async def test_a_disk_that_fails_slowly_holds_up_the_loop_once_and_not_for_each_request() -> None:
    collector = Collector(FakeSpool(disk_s=0.1, refuse=lambda _: SpoolError("I/O error")))
    replies = await asyncio.gather(
        *(collector.post(EVENTS, {**EVENT, "eventId": str(n)}) for n in range(10))
    )
    assert {reply.status for reply in replies} == {503}
    assert collector.spool.now == 1


@run
async def test_what_goes_wrong_behind_a_commit_makes_no_second_one_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: int) -> None:
        raise ZeroDivisionError

    collector = Collector(FakeSpool())
    # The loop reports it; that is not what is looked at here.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    monkeypatch.setattr(metrics.STORED, "inc", broken)
    replies = await asyncio.gather(
        *(collector.post(EVENTS, {**EVENT, "eventId": str(n)}) for n in range(2))
    )
    assert {reply.status for reply in replies} == {202}
    assert len(collector.spool.appends) == 1


@run
async def test_an_append_that_is_refused_is_503_with_a_time_to_come_again() -> None:
    collector = Collector(FakeSpool(refuse=lambda _: SpoolFull("/var/spool is full")))
    reply = await collector.post(EVENTS, EVENT)
    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "full", "10")
    assert "/var/spool" not in reply.body.decode()
    assert isinstance(collector.acks.refusing, SpoolFull)
    collector.spool.refuse = lambda _: None
    assert (await collector.post(EVENTS, EVENT)).status == 202
    assert collector.acks.refusing is None


@run
async def test_one_request_that_does_not_fit_is_refused_and_those_beside_it_are_stored() -> None:
    spool = FakeSpool(refuse=lambda r: SpoolFull("full") if len(r) > 5 else None, holds=True)
    collector = Collector(spool)
    small = [
        asyncio.create_task(collector.post(EVENTS, {**EVENT, "eventId": f"s{n}"})) for n in range(2)
    ]
    large = asyncio.create_task(
        collector.post(EVENTS, [{**EVENT, "eventId": f"l{n}"} for n in range(6)])
    )
    await turns()
    spool.commit()
    spool.holds = False
    await turns()
    spool.commit()
    assert [reply.status for reply in await asyncio.gather(*small, large)] == [202, 202, 503]
    assert [record.id for record in spool.records] == ["local:e:s0", "local:e:s1"]


@run
async def test_a_spool_that_has_failed_is_503_and_not_the_fault_of_the_request() -> None:
    collector = Collector(FakeSpool(refuse=lambda _: SpoolError("the writer has failed")))
    reply = await collector.post(EVENTS, EVENT)
    assert (reply.status, reply.code) == (503, "spool")


@run
async def test_nothing_is_accepted_that_nobody_will_send() -> None:
    collector = Collector(relay_error=SpoolTaken("node-7 is sent by /var/spool"))
    reply = await collector.post(EVENTS, EVENT)
    assert (reply.status, reply.code) == (503, "relay_stopped")
    assert b"node-7" not in reply.body
    assert b"/var" not in reply.body
    assert not collector.spool.appends


@run
async def test_ack_kafka_waits_until_the_relay_has_passed_the_records() -> None:
    collector = Collector()
    request = asyncio.create_task(collector.post(EVENTS + "?ack=kafka", [EVENT, LOG | EVENT]))
    await turns()
    assert len(collector.spool.records) == 1  # the same id twice
    collector.acks.moved(0)
    await turns()
    assert not request.done()
    collector.acks.moved(1)
    reply = await request
    assert (reply.status, reply.json["accepted"]) == (202, 2)


@run
async def test_ack_kafka_says_after_its_time_that_the_records_are_safe_and_what_a_retry_does() -> (
    None
):
    collector = Collector(kafka_timeout_s=0.1)
    with_id = await collector.post(EVENTS + "?ack=kafka", EVENT)
    without = await collector.post(LOGS + "?ack=kafka", LOG)
    named = await collector.post(LOGS + "?ack=kafka", LOG, headers={"Idempotency-Key": "k"})
    for reply in (with_id, without, named):
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (504, "kafka", "10")
        assert "safe on disk" in reply.json["error"]["reason"]
    assert "stored once" in with_id.json["error"]["reason"]
    assert "stored once" in named.json["error"]["reason"]
    assert "twice" in without.json["error"]["reason"]
    assert len(collector.spool.records) == 3
    some = await collector.post(EVENTS + "?ack=kafka", [{"event": ""}, EVENT | {"eventId": "e2"}])
    assert some.json["accepted"] == 1
    assert [one["index"] for one in some.json["refused"]] == [0], "or nobody would send it again"


@run
async def test_requests_that_gave_up_waiting_for_kafka_leave_nothing_behind() -> None:
    collector = Collector()
    never = Place(10**9, {})
    assert not any(
        await asyncio.gather(*(collector.acks.in_kafka(never, 0.0) for _ in range(5000)))
    )
    assert not await collector.acks.in_kafka(never, 0.0)
    assert len(collector.acks._for_kafka) < 2500


@run
async def test_what_another_worker_holds_is_in_kafka_when_that_one_says_so(tmp_path: Path) -> None:
    waits = Collector().acks
    with closing(Store(tmp_path)) as other:
        other.append([[Record("t", None, b"%d" % n) for n in range(3)]])
        place = Place(0, {tmp_path: 2})
        waits.moved(0)
        await turns()
        other.release(1)
        assert not await waits.in_kafka(place, 0.1)
        waiting = asyncio.ensure_future(waits.in_kafka(place, 30.0))
        other.release(2)
        assert await waiting
    assert not await waits.in_kafka(Place(0, {tmp_path / "gone": 1}), 0.1)


# -- judged record by record -----------------------------------------------------------------------


@run
async def test_the_good_records_are_stored_and_the_bad_ones_are_named() -> None:
    collector = Collector()
    reply = await collector.post(LOGS, [LOG, {"deviceId": "d2"}, LOG])
    assert reply.status == 202
    assert reply.json["accepted"] == 2
    (refused,) = reply.json["refused"]
    assert refused["index"] == 1
    assert "timestamp" in refused["reason"]
    assert len(collector.spool.records) == 2


@run
async def test_a_request_without_a_good_record_is_422_and_reaches_no_disk() -> None:
    collector = Collector()
    reply = await collector.post(LOGS, [{}])
    assert (reply.status, reply.json["accepted"]) == (422, 0)
    assert not collector.spool.appends


@run
async def test_a_retry_with_an_idempotency_key_is_stored_once_and_answered_twice() -> None:
    collector = Collector()
    replies = [
        await collector.post(LOGS, [LOG, LOG], headers={"Idempotency-Key": "one"}) for _ in range(2)
    ]
    assert [reply.json["accepted"] for reply in replies] == [2, 2]
    assert len(collector.spool.records) == 2
    await collector.post(LOGS, [LOG], headers={"Idempotency-Key": "two"})
    assert len(collector.spool.records) == 3


@run
async def test_what_is_acknowledged_is_stored_whatever_another_door_or_body_has_under_its_id() -> (
    None
):
    collector = Collector()
    for path in (LOGS, "/v1/logs/http_test"):
        for log in (LOG, {**LOG, "colo": "LIS"}):
            reply = await collector.post(path, log, headers={"Idempotency-Key": "k9"})
            assert (reply.status, reply.json["accepted"]) == (202, 1)
    for given in ("k9:0", "l:device_state:k9:0", *(r.id or "" for r in collector.spool.records)):
        reply = await collector.post(EVENTS, {**EVENT, "eventId": given})
        assert reply.status == 202
    assert len(collector.spool.records) == 10


@run
@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb", "é"])
async def test_an_idempotency_key_that_is_none_is_400(key: str) -> None:
    reply = await Collector().post(LOGS, LOG, headers={"Idempotency-Key": key})
    assert (reply.status, reply.code) == (400, "idempotency_key")


@run
async def test_segment_is_answered_as_segment_does() -> None:
    collector = Collector()
    reply = await collector.post("/v1/track", {"event": "x", "userId": "u", "messageId": "m1"})
    assert (reply.status, reply.json) == (200, {"success": True})
    assert [record.id for record in collector.spool.records] == ["local:e:m1"]
    reply = await collector.post("/v1/batch", {"batch": [5]})
    assert (reply.status, reply.json["success"]) == (400, False)
    reply = await collector.post("/v1/m", b"not even json")
    assert (reply.status, reply.json) == (200, {"success": True})
    assert len(collector.spool.records) == 1


# -- limits ----------------------------------------------------------------------------------------


@run
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_packed_bodies_are_unpacked(encoding: str) -> None:
    collector = Collector()
    body = b'{"event":"click","deviceId":"d1"}'
    packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)
    reply = await collector.post(EVENTS, packed, headers={"Content-Encoding": encoding})
    assert reply.status == 202
    assert body in collector.spool.records[0].value


@run
async def test_an_unknown_encoding_is_415_and_says_what_is_taken() -> None:
    reply = await Collector().post(EVENTS, EVENT, headers={"Content-Encoding": "br"})
    assert (reply.status, reply.code) == (415, "encoding")
    assert reply.headers["accept-encoding"] == "gzip, zstd"


@run
async def test_a_body_beyond_the_limit_is_413_whether_it_says_so_or_not() -> None:
    collector = Collector(max_body_bytes=2000)
    for length in (-1, None):
        reply = await collector.post(EVENTS, b" " * 2001, length=length)
        assert (reply.status, reply.code) == (413, "body_too_large")
    assert (await collector.post(EVENTS, b"", length=10**15)).status == 413
    assert collector.intake.inflight == 0


@run
async def test_a_bomb_is_413() -> None:
    reply = await Collector(max_decoded_bytes=5000).post(
        EVENTS, gzip.compress(bytes(5001)), headers={"Content-Encoding": "gzip"}
    )
    assert (reply.status, reply.code) == (413, "decoded_too_large")


@run
async def test_a_large_body_is_judged_as_a_small_one_is() -> None:
    collector = Collector()
    events = [{**EVENT, "eventId": str(n), "properties": {"x": "y" * 500}} for n in range(1000)]
    reply = await collector.post(EVENTS, events)
    assert (reply.status, reply.json["accepted"]) == (202, 1000)
    assert len(collector.spool.records) == 1000


@run
async def test_what_is_in_flight_is_bounded_and_given_back() -> None:
    spool = FakeSpool(holds=True)
    collector = Collector(
        spool, max_body_bytes=4096, max_decoded_bytes=4096, max_inflight_bytes=8192
    )
    event = {**EVENT, "properties": {"x": "y" * 3000}}
    held = [asyncio.create_task(collector.post(EVENTS, event)) for _ in range(2)]
    await turns()
    reply = await collector.post(EVENTS, event)
    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "busy", "1")
    reply = await collector.post(EVENTS, event, length=None)
    assert (reply.status, reply.code) == (503, "busy")
    spool.commit()
    assert {reply.status for reply in await asyncio.gather(*held)} == {202}
    assert collector.intake.inflight == 0
    spool.holds = False
    assert (await collector.post(EVENTS, event)).status == 202


@run
async def test_a_body_of_unknown_length_counts_as_the_largest_while_it_is_read() -> None:
    collector = Collector(max_body_bytes=4096, max_decoded_bytes=4096, max_inflight_bytes=8192)
    reading = [
        asyncio.create_task(collector.post(EVENTS, b"{", length=None, never_ends=True))
        for _ in range(2)
    ]
    await turns()
    assert collector.intake.inflight == 8192
    reply = await collector.post(EVENTS, EVENT, length=None, headers=ASKING)
    assert (reply.status, reply.code) == (503, "busy")
    assert collector.received == 0
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    assert collector.intake.inflight == 0
    assert (await collector.post(EVENTS, EVENT, length=None)).status == 202
    assert collector.intake.inflight == 0


@run
@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_what_unpacks_to_much_is_unpacked_searched_and_judged_beside_the_loop(
    encoding: str, tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    here: list[int] = []

    def watched(module: Any, name: str) -> None:
        called = getattr(module, name)

        def calling(*args: Any) -> Any:
            found = called(*args)
            if threading.current_thread() is threading.main_thread():
                here.append(max(len(value) for value in (*args, found) if type(value) is bytes))
            return found

        monkeypatch.setattr(module, name, calling)

    for name in ("unpack", "write_key", "values"):
        watched(intake, name)
    for module in (sparrow, segment):
        watched(module, "check_values")
    text = b"x" * 8_000_000
    for key, status in ((b"hr_nobody", 401), (secret.encode(), 422)):
        body = b'{"event":"a","deviceId":"d","t":"%s","writeKey":"%s"}' % (text, key)
        packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)
        assert len(packed) < 10_000
        reply = await collector.post(EVENTS, packed, headers={"Content-Encoding": encoding})
        assert reply.status == status
    assert all(size < 300_000 for size in here)


@run
async def test_a_client_that_sends_too_slowly_is_cut_off() -> None:
    collector = Collector(body_timeout_s=0.1)
    sweeper = asyncio.create_task(collector.intake.sweep())
    reply = await collector.post(EVENTS, b'{"event"', length=100, never_ends=True)
    sweeper.cancel()
    assert (reply.status, reply.code) == (408, "too_slow")
    assert reply.headers["connection"] == "close"
    assert (collector.intake.inflight, collector.intake.requests) == (0, 0)


@run
async def test_a_client_whose_body_breaks_off_leaves_nothing() -> None:
    collector = Collector()
    reply = await collector.post(EVENTS, b'{"event"', length=100, gone=True)
    assert (reply.status, reply.code) == (400, "gone")
    assert (collector.intake.inflight, collector.intake.requests) == (0, 0)
    assert not collector.spool.appends


@run
@pytest.mark.parametrize("length", [-1, None])
async def test_a_sender_is_let_come_to_its_end_before_it_is_refused(length: int | None) -> None:
    collector = Collector(max_body_bytes=2000)
    for method, path, status in (("POST", "/nope", 404), ("PUT", EVENTS, 405)):
        reply = await collector.request(method, path, [b"x" * 500] * 4, length=length)
        assert (reply.status, collector.received) == (status, 4)
    # Also of what is too large by itself: it is for that answer that less is sent next time.
    reply = await collector.post(EVENTS, b"", length=3500)
    assert (reply.status, collector.received) == (413, 1)
    reply = await collector.request("POST", EVENTS, [b"x" * 500] * 7, length=length)
    assert (reply.status, collector.received) == (413, 7)
    assert (collector.intake.inflight, collector.intake.requests) == (0, 0)


@run
async def test_what_nobody_wants_is_read_within_limits_and_not_kept() -> None:
    collector = Collector(max_body_bytes=2000, body_timeout_s=0.1)
    reply = await collector.request("POST", "/nope", [b"x" * 500] * 100, length=None)
    assert (reply.status, collector.received) == (404, 8)
    reply = await collector.request("POST", "/nope", [b"x" * 500] * 100)
    assert (reply.status, collector.received) == (404, 0)
    reply = await collector.request("POST", "/nope", [b"x" * 500] * 4, gone=True)
    assert (reply.status, collector.received) == (404, 5)
    sweeper = asyncio.create_task(collector.intake.sweep())
    reply = await collector.request("POST", "/nope", b"x", length=100, never_ends=True)
    sweeper.cancel()
    assert (reply.status, reply.code) == (404, "path")
    waiting = asyncio.create_task(
        collector.request("POST", "/nope", b"x", length=100, never_ends=True)
    )
    await turns()
    assert (collector.intake.inflight, collector.intake.requests) == (0, 1)
    collector.intake.cut()
    assert (await waiting).status == 404
    assert (collector.intake.inflight, collector.intake.requests) == (0, 0)
    # Once it stops, nobody is waited for.
    assert (await collector.request("POST", "/nope", b"x", never_ends=True)).status == 404


@run
async def test_what_large_bodies_held_is_given_back() -> None:
    """What it unpacks to and what it is parsed to count while they are there, and no longer."""
    collector = Collector()
    body = b'{"event":"a","deviceId":"d","properties":{"x":[%s]}}' % b",".join([b"1"] * 200_000)
    for packed, headers in ((body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"})):
        assert (await collector.post(EVENTS, packed, headers=headers)).status == 202
        assert collector.intake.inflight == 0


# -- routes ----------------------------------------------------------------------------------------


@run
async def test_an_unknown_stream_is_404_and_says_which_there_are() -> None:
    reply = await Collector().post("/v1/logs/nope", LOG)
    assert (reply.status, reply.code) == (404, "stream")
    for name in ("device_state", "http_test", "traceroute_test"):
        assert name in reply.json["error"]["reason"]


@run
async def test_product_events_do_not_come_in_as_logs() -> None:
    assert (await Collector().post("/v1/logs/raw_events", LOG)).status == 404


@run
@pytest.mark.parametrize("path", ["/", "/v1", "/v1/events/", "/v1/logs/", "//v1/events"])
async def test_an_unknown_path_is_404_in_json(path: str) -> None:
    reply = await Collector().request("GET", path)
    assert (reply.status, reply.code) == (404, "path" if path != "/v1/logs/" else "stream")


@run
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE"])
async def test_another_method_is_405_and_says_which_are_taken(method: str) -> None:
    for path in (EVENTS, LOGS, "/v1/track"):
        reply = await Collector().request(method, path)
        assert (reply.status, reply.headers["allow"]) == (405, "POST, OPTIONS")


@run
async def test_every_door_takes_a_post() -> None:
    collector = Collector()
    for path in doors(BUILT_IN):
        reply = await collector.post(path, b"[}")
        assert reply.status in (200, 400), path


@run
@pytest.mark.parametrize("query", ["ack=none", "ack=", "ack=kafka&ack=disk"])
async def test_an_ack_that_there_is_not_is_400(query: str) -> None:
    reply = await Collector().post(f"{EVENTS}?{query}", EVENT)
    assert (reply.status, reply.code) == (400, "ack")


@run
async def test_a_fault_is_500_and_the_log_holds_nothing_of_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError(SECRET)

    collector = Collector(FakeSpool(refuse=fail))  # type: ignore[arg-type]  # it never returns
    with caplog.at_level(logging.DEBUG):
        reply = await collector.post(EVENTS, {**EVENT, "userId": SECRET})
    assert (reply.status, reply.code) == (500, "internal")
    assert "RuntimeError" in caplog.text
    assert SECRET not in caplog.text + reply.body.decode()
    assert (collector.intake.inflight, collector.intake.requests) == (0, 0)


# -- pages of the web ------------------------------------------------------------------------------


async def preflight(collector: Collector, origin: str, **more: str) -> Reply:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **more}
    return await collector.request("OPTIONS", EVENTS, headers=asked)


@run
async def test_a_page_that_is_allowed_may_send_and_read_the_answer() -> None:
    collector = Collector(origins=(PAGE,))
    asked = await preflight(collector, PAGE)
    assert asked.status == 204
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "POST" in asked.headers["access-control-allow-methods"]
    for name in ("authorization", "content-type", "content-encoding", "idempotency-key"):
        assert name in asked.headers["access-control-allow-headers"]
    for body, status in ((EVENT, 202), ({"event": 5}, 422)):
        reply = await collector.post(EVENTS, body, headers={"Origin": PAGE})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (status, PAGE)
        assert reply.headers["vary"] == "origin"
    reply = await collector.post(EVENTS, b"[", headers={"Origin": PAGE})
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (400, PAGE)


@run
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", PAGE + ":8443", "http://www.example.com"]
)
async def test_a_page_that_is_not_allowed_is_403_unread(origin: str) -> None:
    collector = Collector(origins=(PAGE,))
    asked = await preflight(collector, origin)
    assert (asked.status, asked.code) == (403, "origin")
    assert "access-control-allow-origin" not in asked.headers
    headers = {"Origin": origin, "Content-Type": "text/plain", **ASKING}
    reply = await collector.post(EVENTS, EVENT, headers=headers)
    assert (reply.status, reply.code) == (403, "origin")
    assert "access-control-allow-origin" not in reply.headers
    assert collector.received == 0


@run
async def test_a_page_of_the_public_web_may_ask_for_a_private_address() -> None:
    collector = Collector(origins=(PAGE,))
    asked = await preflight(collector, PAGE, **{"Access-Control-Request-Private-Network": "true"})
    assert asked.headers["access-control-allow-private-network"] == "true"


@run
async def test_options_without_an_origin_says_which_methods_there_are() -> None:
    reply = await Collector().request("OPTIONS", EVENTS)
    assert (reply.status, reply.headers["allow"], reply.body) == (204, "POST, OPTIONS", b"")


# -- keys ------------------------------------------------------------------------------------------

Post = Callable[..., Awaitable[Reply]]


@run
async def test_without_a_key_that_is_known_nothing_is_taken(tmp_path: Path, secret: str) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    for headers in ({}, {"Authorization": "Bearer " + new_secret()}, {"Authorization": secret}):
        reply = await collector.post(EVENTS, EVENT, headers=headers)
        assert (reply.status, reply.code) == (401, "key")
        assert "Bearer" in reply.headers["www-authenticate"]
    assert not collector.spool.appends


@run
async def test_a_key_may_stand_in_authorization_or_in_the_body(tmp_path: Path, secret: str) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    reply = await collector.post(EVENTS, EVENT, headers={"Authorization": f"Bearer {secret}"})
    assert reply.status == 202
    reply = await collector.post(
        EVENTS, {"writeKey": secret, "events": [{**EVENT, "eventId": "2"}]}
    )
    assert reply.status == 202
    assert [record.id for record in collector.spool.records] == ["web:e:e1", "web:e:2"]


@run
@pytest.mark.parametrize("path", [EVENTS, "/v1/t"])
async def test_a_text_that_was_cut_inside_an_emoji_hides_no_key(
    path: str, tmp_path: Path, secret: str
) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    event = rb'{"event": "click", "deviceId": "d", "t": "cut \ud83d", "write\u004bey": "%s"}'
    reply = await collector.post(path, event.replace(b"%s", secret.encode()))
    assert reply.status in (200, 202)
    assert len(collector.spool.records) == 1


@run
async def test_a_logs_key_is_asked_for_before_the_body_is_read(tmp_path: Path, secret: str) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    assert (await collector.post(LOGS, LOG, headers=ASKING)).status == 401
    assert collector.received == 0


@run
async def test_a_key_is_for_its_streams_and_its_pages(tmp_path: Path, secret: str) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    bearer = {"Authorization": f"Bearer {secret}"}
    reply = await collector.post(LOGS, LOG, headers=bearer)
    assert (reply.status, reply.code) == (403, "forbidden")
    assert (await preflight(collector, PAGE)).status == 204
    reply = await collector.post(EVENTS, EVENT, headers={**bearer, "Origin": PAGE})
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (202, PAGE)
    reply = await collector.post(
        EVENTS, EVENT, headers={**bearer, "Origin": "https://other.example"}
    )
    assert (reply.status, reply.code) == (403, "origin")


@run
async def test_a_key_of_one_page_is_no_key_for_another_keys_page(
    tmp_path: Path, secret: str
) -> None:
    other = new_secret()
    keyfile.add(
        tmp_path / "keys.json", other, {"source": "shop", "origins": ["https://shop.example"]}
    )
    collector = Collector(keys=Keys(tmp_path / "keys.json"))
    body = {"writeKey": other, "events": [EVENT]}
    reply = await collector.post(EVENTS, body, headers={"Origin": PAGE})
    assert (reply.status, reply.code) == (403, "origin")
    assert not collector.spool.appends


@run
async def test_a_key_that_is_used_up_is_429_with_a_time_to_come_again(
    tmp_path: Path, secret: str
) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"), quota=Quota())
    bearer = {"Authorization": f"Bearer {secret}"}
    assert (await collector.post(EVENTS, [EVENT, EVENT], headers=bearer)).status == 202
    reply = await collector.post(EVENTS, EVENT, headers={**bearer, **ASKING})
    assert (reply.status, reply.code) == (429, "rate")
    assert int(reply.headers["retry-after"]) >= 1
    assert collector.received == 0


@run
async def test_a_request_that_no_day_has_room_for_is_413_and_not_429_for_ever(
    tmp_path: Path, secret: str
) -> None:
    collector = Collector(keys=Keys(tmp_path / "keys.json"), quota=Quota())
    bearer = {"Authorization": f"Bearer {secret}"}
    reply = await collector.post(EVENTS, [EVENT] * 11, headers=bearer)
    assert (reply.status, reply.code) == (413, "too_many")
    assert (await collector.post(EVENTS, [EVENT] * 10, headers=bearer)).status == 202


@run
async def test_what_was_not_stored_is_given_back_to_the_quota(tmp_path: Path, secret: str) -> None:
    spool = FakeSpool(refuse=lambda _: SpoolFull("full"))
    collector = Collector(spool, keys=Keys(tmp_path / "keys.json"), quota=Quota())
    bearer = {"Authorization": f"Bearer {secret}"}
    for _ in range(20):
        assert (await collector.post(EVENTS, [EVENT, EVENT], headers=bearer)).status == 503
    spool.refuse = lambda _: None
    assert (await collector.post(EVENTS, [EVENT, EVENT], headers=bearer)).status == 202
