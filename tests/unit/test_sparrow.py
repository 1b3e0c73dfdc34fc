"""Sparrow: an event that was taken reaches the collector once, whatever the network does."""

from __future__ import annotations

import copy
import fcntl
import functools
import gzip
import itertools
import json
import logging
import os
import resource
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from waiting import until

from headrace import Sparrow
from ingest import sparrow_exit, sparrow_queue
from ingest import sparrow_sender as module
from ingest.collector.judge import Caller, Limits
from ingest.collector.sparrow import judge
from ingest.sparrow import Stats
from ingest.sparrow_http import Client, Outcome, _is_over, verdict
from ingest.sparrow_json import encode
from ingest.sparrow_queue import Disk, Memory
from ingest.spool import Record, Spool, SpoolDamaged, SpoolError, SpoolFull
from ingest.spool.reader import Reader
from ingest.spool.store import Store

PATIENCE_S = 20.0
KEY = "hr_0123456789"
# A fault: what is done instead of an answer, or before it.
Fault = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """The collector's part: takes events by their id, as a spool does, and has faults."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append((time.monotonic(), self.path, dict(self.headers), body))
            fault = server.faults.pop(0) if server.faults else server.fault
        if fault is not None and fault(self):
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        judged = judge(body, "application/json", Caller("s"), Limits(), 0)
        assert not judged.refused
        with server.lock:
            for event in json.loads(body):
                server.times[event["eventId"]] = server.times.get(event["eventId"], 0) + 1
                if server.times[event["eventId"]] == 1:
                    server.events.append((number, event))
        self.answer(202, {"accepted": len(judged.records), "refused": []})

    def answer(self, status: int, said: Any, **headers: str) -> bool:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        return True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[tuple[float, str, dict[str, str], bytes]] = []
        # Each event that is new, with the number of its request; how often each came.
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.times: dict[str, int] = {}
        # One after the other, and then the one for ever.
        self.faults: list[Fault | None] = []
        self.fault: Fault | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def names(self) -> list[str]:
        return [event["event"] for _, event in self.events]

    def handle_error(self, *_: Any) -> None:
        pass


def status(code: int, **headers: str) -> Fault:
    said = {"error": {"code": "x", "reason": "because"}}
    return lambda handler: handler.answer(code, said, **headers)


def reset(handler: Handler) -> bool:
    """RST instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    return True


def vanish(handler: Handler) -> bool:
    """The events are taken, and the answer gets lost."""
    body = handler.server.requests[-1][3]
    if handler.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    for event in json.loads(body):
        handler.server.times[event["eventId"]] = 1
        handler.server.events.append((0, event))
    handler.close_connection = True
    return True


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts at once."""
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., Sparrow]]:
    """Makes Sparrows for the server, closed at the end."""
    made: list[Sparrow] = []

    def make(**settings: Any) -> Sparrow:
        made.append(Sparrow(server.address, KEY, **{"delay_s": 0.01, **settings}))
        return made[-1]

    yield make
    for sparrow in made:
        sparrow.close(0)


# -- what is sent


def test_an_event_is_what_the_collector_takes(server: Server, make: Callable[..., Sparrow]) -> None:
    sparrow = make(device_id="desktop1", user_id="michelle1")
    assert sparrow.track("purchase product", {"category": "billing"})
    assert sparrow.pageview("/pricing", user_id="other", device_id="phone")
    assert sparrow.identify("arthur", {"plan": "free"})
    assert sparrow.track("later")
    assert sparrow.track("another's", device_id="phone")
    assert sparrow.flush(PATIENCE_S)
    events = [event for _, event in server.events]
    for event in events:
        uuid.UUID(event.pop("eventId"))
        sent = datetime.fromisoformat(event.pop("timestamp"))
        assert abs((datetime.now(UTC) - sent).total_seconds()) < 60
    assert events == [
        {"event": "purchase product", "deviceId": "desktop1", "userId": "michelle1",
         "properties": {"category": "billing"}},
        {"event": "pageview", "deviceId": "phone", "userId": "other",
         "properties": {"pathname": "/pricing"}},
        {"event": "identify", "deviceId": "desktop1", "userId": "arthur",
         "properties": {"plan": "free"}},
        {"event": "later", "deviceId": "desktop1", "userId": "arthur"},
        {"event": "another's", "deviceId": "phone"},
    ]  # fmt: skip
    _, path, headers, _ = server.requests[0]
    assert path == "/v1/events"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert sparrow.stats == Stats(0, 5, 0, 0)


def test_a_sparrow_is_not_copied_for_the_end_of_the_copy_would_be_its_own(
    make: Callable[..., Sparrow],
) -> None:
    sparrow = make()
    with pytest.raises(TypeError, match="can't be copied"):
        copy.copy(sparrow)
    assert sparrow.track("e")


def test_the_end_of_a_program_closes_all_also_where_one_ends_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    sender = SimpleNamespace(
        begin_close=lambda: calls.append("begin"), await_close=lambda: calls.append("await"),
        close=lambda: calls.append("close"),
    )  # fmt: skip

    class Changing:
        """A set that a thread changes while it is looked through for the first time."""

        looks = 0

        def __iter__(self) -> Iterator[Any]:
            self.looks += 1
            if self.looks == 1:
                raise RuntimeError("Set changed size during iteration")
            return iter([sender])

    monkeypatch.setattr(sparrow_exit, "_open", Changing())
    sparrow_exit._at_exit()
    assert calls == ["begin", "await", "close"]


def test_identify_with_nobody_forgets_the_user(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    sparrow = make(user_id="michelle1")
    assert sparrow.identify(None)
    assert sparrow.track("e")
    assert sparrow.flush(PATIENCE_S)
    assert [("userId" in event, event["event"]) for _, event in server.events] == [(False, "e")]


@dataclass
class Order:
    text: str
    when: date
    _cache: int = 0


def test_what_an_end_user_has_typed_is_no_mistake_of_the_caller(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    """Half of an emoji, an integer beyond 64 bits: the collector takes them, and json.loads() gives
    them. All else of such an event is written as without them."""
    number = 2**64
    half, nested = json.loads('"caf\xe9 \\ud83d"'), functools.reduce(
        lambda inner, _: {"a": inner}, range(50), number
    )  # fmt: skip
    plain = {"d": date(2025, 6, 16), "u": uuid.UUID(int=1), "f": float("nan"), "t": (1, True, None)}
    sparrow = make()
    assert sparrow.track(half, {half: Order(half, date(2025, 6, 16)), "n": [-number, 1.5], **plain})
    assert sparrow.track("plain", plain)
    assert sparrow.track("nested", nested, user_id=half)
    assert sparrow.flush(PATIENCE_S)
    assert sparrow.stats == Stats(0, 3, 0, 0)
    (_, first), (_, second), (_, third) = server.events
    held = first["properties"]
    assert first["event"] == half
    assert held.pop(half) == {"text": half, "when": "2025-06-16"}
    assert held.pop("n") == [-number, 1.5]
    assert held == second["properties"]
    assert (third["userId"], third["properties"]) == (half, nested)


@dataclass
class Grown:
    """With a field that need not be set, in an object that may have more than its fields."""

    a: int
    b: int = field(init=False)


@dataclass(slots=True)
class Slotted:
    a: int
    _hidden: int = 2


def test_a_dataclass_is_the_same_whatever_stands_beside_it() -> None:
    """orjson has what it holds; so has what writes an event that orjson does not."""
    grown = Grown(1)
    grown.more = 3  # type: ignore[attr-defined]  # as cached properties do
    for value in (grown, Slotted(1)):
        alone = json.loads(encode({"x": value}))["x"]
        beside = json.loads(encode({"n": 2**64, "x": value}))["x"]
        assert alone == beside
    assert beside == {"a": 1}


def test_what_is_no_json_stays_a_mistake_beside_what_is(make: Callable[..., Sparrow]) -> None:
    sparrow = make()
    nested = functools.reduce(lambda inner, _: {"a": inner}, range(300), 2**64)
    for wrong in (Decimal(1), nested, {1: 2}, object(), 10**5000):
        with pytest.raises(TypeError, match="can't be written as JSON"):
            sparrow.track("e", {"n": 2**64, "x": wrong})
    with pytest.raises(ValueError, match="less than 500,000"):
        sparrow.track("e", {"n": 2**64, "x": "x" * 500_000})
    assert sparrow.stats == Stats(0, 0, 0, 0)


def test_an_id_that_is_an_int_or_a_uuid_is_its_text(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    """As on a page; the collector would refuse an int for good, after track() had said True."""
    sparrow = make(device_id=7, user_id=42)
    assert sparrow.device_id == "7"
    assert sparrow.track("e")
    assert sparrow.track("e", user_id=0, device_id=8)
    assert sparrow.track("e", device_id=7)
    assert sparrow.identify(43, device_id=7)
    assert sparrow.pageview("/")
    assert sparrow.track("e", user_id=uuid.UUID(int=7))
    assert sparrow.flush(PATIENCE_S)
    assert [(event["deviceId"], event["userId"]) for _, event in server.events] == [
        ("7", "42"), ("8", "0"), ("7", "42"), ("7", "43"), ("7", "43"),
        ("7", "00000000-0000-0000-0000-000000000007"),
    ]  # fmt: skip


def test_what_is_no_id_is_a_mistake_of_the_caller(make: Callable[..., Sparrow]) -> None:
    sparrow = make()
    wrong: Any
    for wrong in (True, 4.2, b"x", ["u"]):
        for call in (
            lambda wrong: sparrow.track("e", user_id=wrong),
            lambda wrong: sparrow.track("e", device_id=wrong),
            lambda wrong: sparrow.pageview("/", user_id=wrong),
            sparrow.identify,
            lambda wrong: sparrow.identify("u", device_id=wrong),
            lambda wrong: make(user_id=wrong),
            lambda wrong: make(device_id=wrong),
        ):
            with pytest.raises(TypeError, match="_id is text, an int or a UUID, not a"):
                call(wrong)
    assert sparrow.stats == Stats(0, 0, 0, 0)


def test_events_travel_together_packed_and_in_their_order(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    """Batches of at most 100 events and 500 kB."""
    sparrow = make(delay_s=60)
    for i in range(250):
        sparrow.track(f"e{i}")
    for i in range(250, 256):
        sparrow.track(f"e{i}", {"text": os.urandom(50_000).hex()})
    assert sparrow.flush(PATIENCE_S)
    assert server.names() == [f"e{i}" for i in range(256)]
    sizes: dict[int, int] = {}
    for number, event in server.events:
        sizes[number] = sizes.get(number, 0) + len(json.dumps(event))
    assert max(sizes.values()) <= 520_000  # json.dumps writes spaces
    counts = [sum(n == number for n, _ in server.events) for number in sizes]
    assert counts[:2] == [100, 100]
    assert max(counts) == 100
    assert len(counts) <= 5
    assert all(headers["Content-Encoding"] == "gzip" for _, _, headers, _ in server.requests)


def test_a_full_batch_is_not_kept_waiting(server: Server, make: Callable[..., Sparrow]) -> None:
    sparrow = make(delay_s=60)
    for i in range(100):
        sparrow.track(f"e{i}")
    until(lambda: len(server.events) == 100, "the batch")


@pytest.fixture(params=["http", "https"])
def speaking(request: pytest.FixtureRequest, server: Server) -> tuple[str, ssl.SSLContext]:
    """The server's address, and who trusts it."""
    trusting = ssl.create_default_context()
    if request.param == "http":
        return server.address, trusting
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server.address.replace("http:", "https:"), trusting


def test_one_connection_serves_many_requests(
    server: Server, speaking: tuple[str, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tickets of TLS, which nobody has asked for, are no end."""
    made = []
    connect = Client._connect
    monkeypatch.setattr(Client, "_connect", lambda *a: made.append(1) or connect(*a))
    address, trusting = speaking
    with Sparrow(address, KEY, delay_s=0, context=trusting) as sparrow:
        for i in range(5):
            sparrow.track(f"e{i}")
            assert sparrow.flush(PATIENCE_S)
    assert len(server.requests) == 5
    assert len(made) == 1


def hang_up(handler: Handler) -> bool:
    """What a collector does to a connection that was silent for 10 s."""
    handler.close_connection = True
    return False


def test_a_kept_connection_that_has_ended_is_made_anew_without_a_word(
    server: Server, speaking: tuple[str, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    """Else each event of a quiet service would wait, and have a warning."""
    address, trusting = speaking
    server.fault = hang_up
    with Sparrow(address, KEY, delay_s=0, context=trusting) as sparrow:
        for i in range(3):
            sparrow.track(f"e{i}")
            assert sparrow.flush(PATIENCE_S)
            kept = sparrow._sender._client._connection
            assert kept is not None
            assert kept.sock is not None
            assert select.select([kept.sock], [], [], PATIENCE_S)[0], "its end"
    assert server.names() == ["e0", "e1", "e2"]
    assert len(server.requests) == 3
    assert not caplog.records


def test_a_kept_connection_that_breaks_has_a_second_attempt_at_once_and_a_new_one_has_none(
    server: Server, make: Callable[..., Sparrow], caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = [None, reset, None, reset, reset]
    sparrow = make()
    for i in range(2):
        sparrow.track(f"e{i}")
        assert sparrow.flush(PATIENCE_S)
    assert len(server.requests) == 3
    assert not caplog.records
    sparrow.track("e2")
    until(lambda: sparrow.stats.sent == 3, "the event")
    assert server.names() == ["e0", "e1", "e2"]
    assert len(caplog.records) == 1


def test_a_request_that_was_broken_off_has_no_second_attempt(server: Server) -> None:
    """Its Sparrow is closed, and the time is over."""
    client = Client(server.address, KEY)
    assert client.post([b'{"event":"a","deviceId":"d","eventId":"1"}'], PATIENCE_S).outcome is (
        Outcome.DONE
    )
    server.fault = lambda _: client.abort() or True
    assert client.post([b'{"event":"b","deviceId":"d","eventId":"2"}'], PATIENCE_S).outcome is (
        Outcome.AGAIN
    )
    assert len(server.requests) == 2
    client.close()


def test_a_connection_is_looked_at_also_in_a_process_with_many_files() -> None:
    """More than the 1,024 that select() knows."""
    many = 1100
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(many + 10, limits[0]), limits[1]))
    here, there = socket.socketpair()
    with here, there, socket.socket(fileno=fcntl.fcntl(here, fcntl.F_DUPFD, many)) as high:
        assert not _is_over(high)
        there.close()
        assert _is_over(high)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_no_event_is_a_mistake_of_the_caller(make: Callable[..., Sparrow]) -> None:
    sparrow = make()
    for wrong in ("", None, 5):
        with pytest.raises(ValueError, match="an event needs a name"):
            sparrow.track(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="properties are a mapping, not a list"):
        sparrow.track("e", [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="can't be written as JSON"):
        sparrow.track("e", {"x": object()})
    with pytest.raises(ValueError, match="less than 500,000"):
        sparrow.track("e", {"x": "x" * 500_000})
    for host in ("ftp://x", "", "https://", "https://x?y", "https://c..example.com", "x/caf\xe9",
                 "https://a b", "https://x/a b"):  # fmt: skip
        with pytest.raises(ValueError, match="is no address"):
            Sparrow(host, KEY)
    with pytest.raises(ValueError, match="what no key does"):
        Sparrow("x", "a\nb")
    assert sparrow.stats == Stats(0, 0, 0, 0)


# -- what goes wrong


@pytest.mark.parametrize(
    "faults",
    [[status(500), status(503), status(502)], [status(429, Retry_After="0")], [reset, reset],
     [vanish], [status(500), vanish, reset]],
    ids=["500", "429", "reset", "no answer", "mixed"],
)  # fmt: skip
def test_what_fails_is_sent_again_under_the_same_ids(
    server: Server, make: Callable[..., Sparrow], faults: list[Fault]
) -> None:
    server.faults = list(faults)
    sparrow = make()
    for i in range(20):
        assert sparrow.track(f"e{i}")
    until(lambda: sparrow.stats.sent == 20, "all answers")
    assert server.names() == [f"e{i}" for i in range(20)]
    assert sparrow.stats == Stats(0, 20, 0, 0)


def test_a_collector_that_is_busy_is_left_alone_for_as_long_as_it_asks(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    """Also by a flush."""
    server.faults = [status(429, Retry_After="1"), status(503, Retry_After="1")]
    sparrow = make()
    sparrow.track("e")
    until(lambda: server.requests, "a request")
    assert sparrow.flush(PATIENCE_S)
    times = [when for when, *_ in server.requests]
    assert len(times) == 3
    assert min(b - a for a, b in itertools.pairwise(times)) >= 1.0


def test_a_flush_does_not_wait_out_a_pause_of_our_own(
    server: Server, make: Callable[..., Sparrow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCKED_WAIT_S", 1000.0)
    server.faults = [status(401)]
    sparrow = make()
    sparrow.track("e")
    until(lambda: server.requests, "a request")
    assert sparrow.flush(PATIENCE_S)


def test_a_slow_collector_holds_up_neither_callers_nor_events(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    """An answer that does not come in time is asked for again; track() notices nothing."""
    let_go = threading.Event()
    server.faults = [lambda handler: let_go.wait(PATIENCE_S) and False]
    sparrow = make(timeout_s=1.0)
    sparrow.track("e0")
    until(lambda: server.requests, "a request")
    begun = time.monotonic()
    for i in range(1, 100):
        sparrow.track(f"e{i}")
    assert time.monotonic() - begun < 1.0
    assert sparrow.flush(PATIENCE_S)
    let_go.set()
    assert server.names() == [f"e{i}" for i in range(100)]


@pytest.mark.parametrize("code", [401, 403, 404, 301, 200])
def test_a_wrong_key_or_address_loses_nothing_and_is_said(
    server: Server, make: Callable[..., Sparrow], caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """200 is not a collector's answer either: somebody else's page must not swallow events."""
    server.fault = status(code)
    sparrow = make()
    sparrow.track("secret event")
    until(lambda: caplog.records, "a line in the log")
    assert f"HTTP status {code}" in caplog.text
    assert "look at the address and the key" in caplog.text
    assert KEY not in caplog.text
    assert "secret event" not in caplog.text
    server.fault = None
    assert sparrow.flush(PATIENCE_S)
    assert sparrow.stats == Stats(0, 1, 0, 0)


@pytest.mark.parametrize("where", ["client", "spool"])
def test_what_nobody_has_foreseen_is_said_once_and_tried_again(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    where: str,
) -> None:
    """Else track() would answer True for as long as the process lives, and nothing be sent."""
    monkeypatch.setattr(module, "_LONGEST_WAIT_S", 0.01)
    owner, name, error = {
        "client": (Client, "post", UnicodeError("label too long")),
        "spool": (Reader, "read", SpoolError("unable to open database file")),
    }[where]
    work, failed = getattr(owner, name), []

    def fail(*args: Any) -> Any:
        if len(failed) < 3:
            failed.append(1)
            raise error
        return work(*args)

    monkeypatch.setattr(owner, name, fail)
    with Sparrow(server.address, KEY, spool=tmp_path, delay_s=0) as sparrow:
        for i in range(6):
            assert sparrow.track(f"e{i}")
        assert sparrow.flush(PATIENCE_S)
        assert sparrow.stats == Stats(0, 6, 0, 0)
    assert len(failed) == 3
    assert caplog.text.count(f"{type(error).__name__}: {error}; tried again") == 1


def test_a_spool_that_is_damaged_ends_sending_and_nobody_waits_for_it(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def read(*_: Any) -> Any:
        raise SpoolDamaged("a record of 0 to 0 is damaged")

    monkeypatch.setattr(Reader, "read", read)
    with Sparrow(server.address, KEY, spool=tmp_path, delay_s=0) as sparrow:
        assert sparrow.track("e")
        assert not sparrow.flush(PATIENCE_S)
        assert "sending events has failed for good" in caplog.text
        assert sparrow.stats == Stats(1, 0, 0, 0)


def test_a_batch_that_is_not_taken_is_halved_until_the_bad_event_stands_alone(
    server: Server, make: Callable[..., Sparrow], caplog: pytest.LogCaptureFixture
) -> None:
    def no_e37(handler: Handler) -> bool:
        body = server.requests[-1][3]
        body = gzip.decompress(body) if "Content-Encoding" in handler.headers else body
        return b'"e37"' in body and status(413)(handler)

    server.fault = no_e37
    sparrow = make(delay_s=60)
    for i in range(100):
        sparrow.track(f"e{i}")
    assert sparrow.flush(PATIENCE_S)
    assert server.names() == [f"e{i}" for i in range(100) if i != 37]
    assert sparrow.stats == Stats(0, 99, 1, 0)
    assert "1 events were refused: HTTP status 413" in caplog.text


def page(code: int) -> Fault:
    """Somebody else's answer: a proxy's, a firewall's."""
    return lambda handler: handler.answer(code, "The plain HTTP request was sent to HTTPS port")


@pytest.mark.parametrize(
    ("code", "look_at"), [(400, "look at the address"), (413, "look at the proxy's limit")]
)
def test_only_a_collectors_own_answer_settles_an_event(
    server: Server,
    make: Callable[..., Sparrow],
    caplog: pytest.LogCaptureFixture,
    code: int,
    look_at: str,
) -> None:
    """A 413 of a proxy is a reason to send less at once, none to give an event up."""
    server.fault = page(code)
    sparrow = make(delay_s=60)
    for i in range(8):
        sparrow.track(f"e{i}")
    assert not sparrow.flush(0.3)
    line = f"HTTP status {code}, but not a collector's answer: {look_at}"
    until(lambda: line in caplog.text, "a line in the log")
    assert sparrow.stats == Stats(8, 0, 0, 0)
    server.fault = None
    assert sparrow.flush(PATIENCE_S)
    assert sparrow.stats == Stats(0, 8, 0, 0)
    assert server.names() == [f"e{i}" for i in range(8)]


def test_a_proxy_that_takes_little_at_once_gets_little_at_once(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    server.fault = lambda handler: (
        int(handler.headers["Content-Length"]) > 1000 and page(413)(handler)
    )
    sparrow = make(delay_s=60)
    for i in range(50):
        sparrow.track(f"e{i}", {"x": uuid.uuid4().hex})
    assert sparrow.flush(PATIENCE_S)
    assert sparrow.stats == Stats(0, 50, 0, 0)
    assert server.names() == [f"e{i}" for i in range(50)]


def test_what_the_collector_refuses_is_counted_and_said(
    server: Server, make: Callable[..., Sparrow], caplog: pytest.LogCaptureFixture
) -> None:
    refused = [{"index": 1, "code": "too_deep", "reason": "an event may have 64 levels"}]
    server.fault = lambda handler: handler.answer(202, {"accepted": 2, "refused": refused})
    sparrow = make(delay_s=60)
    for i in range(3):
        sparrow.track(f"e{i}")
    assert sparrow.flush(PATIENCE_S)
    assert sparrow.stats == Stats(0, 2, 1, 0)
    assert "1 events were refused: an event may have 64 levels (too_deep)" in caplog.text


def test_a_full_queue_drops_the_new_event_and_says_so(
    server: Server, make: Callable[..., Sparrow], caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = status(503, Retry_After="60")
    sparrow = make(max_events=5)
    taken = [sparrow.track(f"e{i}") for i in range(8)]
    assert taken == [True] * 5 + [False] * 3
    assert sparrow.stats == Stats(5, 0, 0, 3)
    assert caplog.text.count("events were dropped: the queue is full") == 1
    assert not make(max_bytes=10).track("e")


def test_memory_is_bounded_by_events_and_by_bytes() -> None:
    queue = Memory(3, 10)
    assert [queue.put(b"1234"), queue.put(b"1234"), queue.put(b"1234")] == [True, True, False]
    queue.done(1)
    assert (queue.begin, queue.end) == (1, 2)
    assert [queue.put(b"1"), queue.put(b"1"), queue.put(b"1")] == [True, True, False]
    assert queue.batch(2) == [b"1234", b"1"]


NOW = datetime(2025, 6, 16, 22, 50, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("code", "after", "body", "outcome", "pause_s"),
    [
        (202, None, b'{"accepted":1,"refused":[]}', Outcome.DONE, None),
        (422, None, b'{"accepted":0,"refused":[{}]}', Outcome.DONE, None),
        (202, None, b"", Outcome.BLOCKED, None),
        (422, None, b"[]", Outcome.BLOCKED, None),
        (429, "7", b"", Outcome.AGAIN, 7.0),
        (503, "999999", b"", Outcome.AGAIN, 300.0),
        (503, "Mon, 16 Jun 2025 22:51:12 GMT", b"{}", Outcome.AGAIN, 60.0),
        (503, "Mon, 16 Jun 2025 22:50:00 GMT", b"{}", Outcome.AGAIN, 0.0),
        (503, "soon", b'{"error":"x"}', Outcome.AGAIN, None),
        (400, None, b'{"error":{"code":"x","reason":"y"}}', Outcome.HALVE, None),
        (413, None, b'{"error":{"code":"x","reason":"y"}}', Outcome.HALVE, None),
        (400, None, b'{"error":{"code":"gone","reason":"y"}}', Outcome.AGAIN, None),
        (400, None, b"{", Outcome.BLOCKED, None),
        (400, None, b'{"error":{"code":400,"reason":"y"}}', Outcome.BLOCKED, None),
        (400, None, b'{"error":"x"}', Outcome.BLOCKED, None),
        (413, None, b"\xff", Outcome.TOO_LARGE, None),
    ],
)
def test_an_answer_has_one_meaning(
    code: int, after: str | None, body: bytes, outcome: Outcome, pause_s: float | None
) -> None:
    found = verdict(code, after, body, NOW)
    assert (found.outcome, found.pause_s) == (outcome, pause_s)


def test_a_certificate_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        address = server.address.replace("http:", "https:")
        with Sparrow(address, KEY, delay_s=0, exit_s=0) as stranger:
            stranger.track("e")
            until(lambda: caplog.records, "a line in the log")
        assert not server.events
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        with Sparrow(address, KEY, context=trusting) as sparrow:
            sparrow.track("e")
            assert sparrow.flush(PATIENCE_S)
        assert server.names() == ["e"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- the end


def test_closing_sends_what_is_queued(server: Server, make: Callable[..., Sparrow]) -> None:
    sparrow = make(delay_s=60)
    sparrow.track("e")
    sparrow.close(PATIENCE_S)
    assert server.names() == ["e"]
    assert not sparrow.track("too late")
    assert sparrow.stats == Stats(0, 1, 0, 1)
    sparrow.close()


def test_an_event_that_comes_while_the_sparrow_is_closed_is_not_taken(
    server: Server, make: Callable[..., Sparrow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor lost without a word: another thread closes between the look and the queue."""
    sparrow = make()
    put = Memory.put

    def late(queue: Memory, event: bytes) -> bool:
        sparrow.close(0)
        return put(queue, event)

    monkeypatch.setattr(Memory, "put", late)
    assert not sparrow.track("e")
    assert sparrow.stats == Stats(0, 0, 0, 1)


def test_closing_has_an_end_though_the_collector_has_none(
    server: Server, make: Callable[..., Sparrow], caplog: pytest.LogCaptureFixture
) -> None:
    let_go = threading.Event()
    server.fault = lambda handler: let_go.wait(PATIENCE_S)
    sparrow = make()
    sparrow.track("e")
    until(lambda: server.requests, "a request")
    begun = time.monotonic()
    sparrow.close(0.1)
    assert time.monotonic() - begun < 2.0
    let_go.set()
    assert sparrow.stats.dropped == 1
    assert "1 events were not sent, and are lost" in caplog.text


def test_what_is_lost_is_said_without_a_lock_that_a_logging_handler_may_need(
    server: Server, make: Callable[..., Sparrow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that tracks has a lock itself, which another thread may hold, in track: neither ended."""
    server.fault = status(503)
    sparrow = make(delay_s=60)
    sparrow.track("e")
    is_free = []

    def warning(*_: object) -> None:
        other = threading.Thread(target=sparrow.track, args=("of a handler",), daemon=True)
        other.start()
        other.join(1.0)
        is_free.append(not other.is_alive())

    monkeypatch.setattr(module._log, "warning", warning)
    monkeypatch.setattr(sparrow._sender, "_say_dropped", lambda: None)
    sparrow.close(0)
    assert is_free == [True]
    assert sparrow.stats.dropped == 2


def test_closing_does_not_wait_for_a_pause_that_is_longer_than_it_may(
    server: Server, make: Callable[..., Sparrow]
) -> None:
    server.fault = status(503, Retry_After="100")
    sparrow = make()
    sparrow.track("e")
    until(lambda: server.requests, "a request")
    begun = time.monotonic()
    sparrow.close(10)
    assert time.monotonic() - begun < 5.0
    assert len(server.requests) == 1


@pytest.mark.parametrize("handler", ["track", "close"])
@pytest.mark.parametrize("moment", ["before", "meanwhile", "after"])
def test_a_signal_handler_in_the_middle_of_the_threads_start_starts_no_second_one(
    server: Server,
    make: Callable[..., Sparrow],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    handler: str,
) -> None:
    """Two would send the same events at once, and one delete what the other had not sent."""
    started: list[Thread] = []

    class Thread(threading.Thread):
        starting = False

        def start(self) -> None:
            started.append(self)
            if moment == "before":
                handle()
            super().start()
            if moment == "after":
                handle()
            elif moment == "meanwhile":
                # It runs, and whoever starts it has not heard so yet.
                self.starting = True
                handle()
                self.starting = False

        def is_alive(self) -> bool:
            return not self.starting and super().is_alive()

    def handle() -> None:
        if len(started) == 1:
            assert (sparrow.track("handler") if handler == "track" else sparrow.close(5)) in (
                True, None,
            )  # fmt: skip

    sparrow = make(delay_s=60)
    patched = SimpleNamespace(**{**vars(threading), "Thread": Thread})
    monkeypatch.setattr(module, "threading", patched)
    assert sparrow.track("main")
    sparrow.close(PATIENCE_S)
    names = ["main", "handler"] if handler == "track" else ["main"]
    assert server.names() == names
    assert set(server.times.values()) == {1}
    assert sparrow.stats == Stats(0, len(names), 0, 0)
    assert len(started) == 1


def run(server: Server, program: str, *args: str) -> subprocess.CompletedProcess[str]:
    head = "import os, sys\nfrom headrace import Sparrow\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", head + program, server.address, *args],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_a_program_that_ends_has_sent_its_events(server: Server) -> None:
    done = run(server, "Sparrow(sys.argv[1], '', delay_s=60).track('e')")
    assert (done.returncode, done.stderr) == (0, "")
    assert server.names() == ["e"]
    assert "Authorization" not in server.requests[0][2]


def test_a_program_ends_in_time_where_nobody_answers(server: Server) -> None:
    server.fault = status(500)
    begun = time.monotonic()
    done = run(server, "Sparrow(sys.argv[1], 'k', exit_s=0.5).track('e')")
    assert done.returncode == 0
    assert "1 events were not sent, and are lost" in done.stderr
    assert time.monotonic() - begun < 10


def test_at_the_end_of_a_program_all_have_the_same_time(
    server: Server, make: Callable[..., Sparrow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no thread can be started any more, as since Python 3.12."""

    class Late(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

    # Each is answered once all have come.
    barrier = threading.Barrier(3)
    server.fault = lambda _: barrier.wait(PATIENCE_S) < 0
    sparrows = [make(delay_s=60, exit_s=2) for _ in range(3)]
    for sparrow in sparrows:
        assert sparrow.track("e")
    mine = weakref.WeakSet(sparrow._sender for sparrow in sparrows)
    monkeypatch.setattr(sparrow_exit, "_open", mine)
    monkeypatch.setattr(sparrow_exit, "threading", SimpleNamespace(Thread=Late), raising=False)
    try:
        sparrow_exit._at_exit()
    finally:
        barrier.abort()
    assert [sparrow.stats for sparrow in sparrows] == [Stats(0, 1, 0, 0)] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_doubles_no_event_and_has_a_queue_of_its_own(server: Server, tmp_path: Path) -> None:
    program = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: what this is about
memory = Sparrow(sys.argv[1], "k", delay_s=0.3)
disk = Sparrow(sys.argv[1], "k", delay_s=0.3, spool=sys.argv[2])
for sparrow, name in (memory, "memory"), (disk, "disk"):
    sparrow.track(name + " before")
child = os.fork()
for sparrow, name in (memory, "memory"), (disk, "disk"):
    assert sparrow.track(name + (" parent" if child else " child"))
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = run(server, program, str(tmp_path / "spool"))
    assert done.returncode == 0, done.stderr
    assert sorted(server.names()) == sorted(
        f"{queue} {when}" for queue in ("memory", "disk") for when in ("before", "parent", "child")
    )
    assert set(server.times.values()) == {1}
    assert "the spool stays with the parent" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_of_multiprocessing_has_sent_its_events_when_it_ends(server: Server) -> None:
    """It ends with os._exit, and atexit is not asked: neither for the parent's, nor for its own."""
    program = """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: what this is about
inherited = Sparrow(sys.argv[1], "k", delay_s=60)
inherited.track("parent")

def work():
    assert inherited.track("inherited")
    assert Sparrow(sys.argv[1], "k", delay_s=60).track("own")

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
assert child.exitcode == 0
"""
    done = run(server, program)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(server.names()) == ["inherited", "own", "parent"]
    assert set(server.times.values()) == {1}


@pytest.mark.parametrize("has_spool", [False, True])
def test_a_sparrow_that_nobody_holds_sends_what_it_has_and_leaves_no_thread(
    server: Server, tmp_path: Path, has_spool: bool
) -> None:
    """Nor keeps its spool; one in each request would be a thread for each."""
    for name in ("a", "b"):
        server.faults = [status(500)]
        sparrow = Sparrow(
            server.address, KEY, delay_s=60, spool=tmp_path / "s" if has_spool else None
        )
        assert sparrow.track(name)
        sender = sparrow._sender
        del sparrow
        assert sender._thread is not None
        sender._thread.join(PATIENCE_S)
        assert not sender._thread.is_alive()
        assert sender.stats == Stats(0, 1, 0, 0)
        assert not sender.take(b"{}")
    assert server.names() == ["a", "b"]


def test_a_spool_that_nobody_holds_any_more_is_free(tmp_path: Path) -> None:
    """Though nothing was tracked."""
    for _ in range(2):
        sparrow = Sparrow("http://127.0.0.1:1", KEY, spool=tmp_path)
        sender = sparrow._sender
        del sparrow
        assert sender._thread is not None
        sender._thread.join(PATIENCE_S)


def test_a_sparrow_that_nobody_holds_has_its_time_at_exit_and_no_more(server: Server) -> None:
    server.fault = status(503, Retry_After="60")
    sparrow = Sparrow(server.address, KEY, delay_s=0, exit_s=0)
    sparrow.track("e")
    until(lambda: server.requests, "a request")
    sender = sparrow._sender
    del sparrow
    assert sender in sparrow_exit._open
    sender.close()
    assert sender.stats == Stats(1, 0, 0, 1)
    assert sender not in sparrow_exit._open


# -- a spool


class Slow:
    """A disk that answers when it is told to, with success or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.error: SpoolFull | None = None
        append = Store.append

        def slow(store: Store, batches: Any) -> Any:
            assert self.answers.wait(PATIENCE_S)
            if self.error is not None:
                raise self.error
            return append(store, batches)

        monkeypatch.setattr(Store, "append", slow)
        monkeypatch.setattr(sparrow_queue, "_DISK_S", 0.01)


def test_an_event_that_was_queued_for_a_slow_disk_is_sent_once_it_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no other comes behind it; and a flush waits for it."""
    disk = Slow(monkeypatch)
    with Sparrow(server.address, KEY, spool=tmp_path / "s", delay_s=0) as sparrow:
        assert sparrow.track("e")
        assert not sparrow.flush(0.05)
        disk.answers.set()
        until(lambda: sparrow.stats.sent == 1, "the event")
        assert sparrow.flush(PATIENCE_S)
        assert sparrow.stats == Stats(0, 1, 0, 0)


def test_a_flush_does_not_wait_for_what_comes_after_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the disk is: there may always be another one on its way to it."""
    answers = threading.Semaphore(0)
    append = Store.append

    def slow(store: Store, batches: Any) -> Any:
        assert answers.acquire(timeout=PATIENCE_S)
        return append(store, batches)

    monkeypatch.setattr(Store, "append", slow)
    monkeypatch.setattr(sparrow_queue, "_DISK_S", 0.01)
    with (
        Sparrow(server.address, KEY, spool=tmp_path / "s", delay_s=60) as sparrow,
        ThreadPoolExecutor(1) as pool,
    ):
        assert sparrow.track("a")
        calls = sparrow._sender._calls
        flushed = pool.submit(sparrow.flush, PATIENCE_S)
        until(lambda: sparrow._sender._calls > calls, "a flush under way")
        assert sparrow.track("b")
        answers.release()
        assert flushed.result(PATIENCE_S)
        assert server.names() == ["a"]
        answers.release()


def test_an_event_that_a_slow_disk_did_not_take_after_all_is_counted_and_said(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Slow(monkeypatch)
    disk.error = SpoolFull("the disk is full")
    with Sparrow(server.address, KEY, spool=tmp_path / "s", delay_s=0) as sparrow:
        assert sparrow.track("e"), "it is queued for the disk"
        assert sparrow.stats.dropped == 0
        disk.answers.set()
        until(lambda: "1 events were dropped: " in caplog.text, "a line in the log")
        assert sparrow.stats == Stats(0, 0, 0, 1)
        monkeypatch.setattr(sparrow_queue, "_DISK_S", PATIENCE_S)
        assert not sparrow.track("f"), "the disk's answer in time is the answer"
        assert sparrow.stats == Stats(0, 0, 0, 2)
    assert not server.events


def test_a_batch_from_disk_is_no_larger_than_was_asked_for(tmp_path: Path) -> None:
    """Though events that came together are one block there."""
    disk = Disk(tmp_path, 10**6)
    disk._spool.append([Record("sparrow", None, b"%d" % i) for i in range(14)]).result()
    assert disk.batch(3) == [b"0", b"1", b"2"]
    disk.done(2)
    assert disk.batch(3) == [b"2", b"3", b"4"]
    disk.done(3)
    assert disk.batch(100) == [b"%d" % i for i in range(5, 14)]
    disk.done(9)
    assert disk.batch(100) == []
    assert (disk.begin, disk.end) == (14, 14)
    disk.close()


def test_a_batch_from_disk_is_halved_until_the_bad_event_stands_alone(
    server: Server, tmp_path: Path
) -> None:
    """Also where it has one block with others."""
    events = [b'{"event": "e%d", "deviceId": "d", "eventId": "%d"}' % (i, i) for i in range(14)]
    with Spool(tmp_path) as spool:
        spool.append([Record("sparrow", None, event) for event in events]).result()
    server.fault = lambda handler: b'"e5"' in server.requests[-1][3] and status(413)(handler)
    with Sparrow(server.address, KEY, spool=tmp_path, delay_s=0) as sparrow:
        assert sparrow.flush(PATIENCE_S)
        assert sparrow.stats == Stats(0, 13, 1, 0)
    assert server.names() == [f"e{i}" for i in range(14) if i != 5]
    assert len(server.requests) < 20


def test_what_is_in_the_spool_survives_a_kill_and_is_sent_once(
    server: Server, tmp_path: Path
) -> None:
    """Killed while nobody answers; the next process sends it, and then the spool is empty."""
    server.fault = status(500)
    program = """
import signal
sparrow = Sparrow(sys.argv[1], "k", spool=sys.argv[2])
for i in range(10):
    assert sparrow.track(f"e{i}")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(server, program, str(tmp_path / "spool")).returncode == -signal.SIGKILL
    server.fault = None
    with Sparrow(server.address, KEY, spool=tmp_path / "spool", delay_s=0) as sparrow:
        device = sparrow.device_id
        assert sparrow.flush(PATIENCE_S)
        assert sparrow.stats == Stats(0, 10, 0, 0)
    assert server.names() == [f"e{i}" for i in range(10)]
    assert {event["deviceId"] for _, event in server.events} == {device}
    assert set(server.times.values()) == {1}
    with Sparrow(server.address, KEY, spool=tmp_path / "spool") as sparrow:
        assert sparrow.stats == Stats(0, 0, 0, 0)
        assert sparrow.device_id == device


def test_an_empty_file_of_the_devices_id_is_made_anew_once(server: Server, tmp_path: Path) -> None:
    """A full disk or a power cut may have left it; each start would be another device."""
    (tmp_path / "device_id").touch()
    devices = set()
    for _ in range(2):
        with Sparrow(server.address, KEY, spool=tmp_path) as sparrow:
            devices.add(sparrow.device_id)
    assert devices == {(tmp_path / "device_id").read_text(encoding="ascii").strip()}
    assert not list(tmp_path.glob("device_id?*"))


def test_a_devices_id_that_cannot_be_read_is_said_and_keeps_nobody_from_the_spool(
    server: Server, tmp_path: Path
) -> None:
    """The second attempt heard that the spool was in use, by this very process."""
    file = tmp_path / "device_id"
    file.write_bytes(b"\xff\n")
    for _ in range(2):
        with pytest.raises(SpoolError, match=r"device_id holds .* give device_id="):
            Sparrow(server.address, KEY, spool=tmp_path)
    file.unlink()
    Sparrow(server.address, KEY, spool=tmp_path).close(0)


def test_what_is_not_sent_stays_in_the_spool(server: Server, tmp_path: Path) -> None:
    server.fault = status(500)
    with Sparrow(server.address, KEY, spool=tmp_path / "spool", exit_s=0) as sparrow:
        sparrow.track("e")
    assert sparrow.stats == Stats(1, 0, 0, 0)


def test_a_full_spool_drops_the_new_event(server: Server, tmp_path: Path) -> None:
    server.fault = status(500)
    with Sparrow(server.address, KEY, spool=tmp_path / "s", max_bytes=2000, exit_s=0) as sparrow:
        taken = [sparrow.track("e") for _ in range(20)]
    assert taken[0]
    assert not taken[-1]
    assert sparrow.stats.dropped == taken.count(False)


def test_threads_may_share_a_sparrow(server: Server, make: Callable[..., Sparrow]) -> None:
    sparrow = make()

    def track(thread: int) -> None:
        for i in range(200):
            sparrow.track(f"{thread} {i}")

    threads = [threading.Thread(target=track, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sparrow.flush(PATIENCE_S)
    assert sparrow.stats == Stats(0, 800, 0, 0)
    for n in range(4):
        mine = [name for name in server.names() if name.startswith(f"{n} ")]
        assert mine == [f"{n} {i}" for i in range(200)]


logging.getLogger("headrace.sparrow").setLevel(logging.INFO)
