"""Answers that are no yes, to a server that takes what Sentry's own SDK sends."""

from __future__ import annotations

import builtins
import gzip
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sentry_sdk
from vendors_under_test import an_event

from consumers.forward import tell
from consumers.forward.tell import Teller
from consumers.trace.allowlist import KINDS
from consumers.trace.scrub import Scrubber
from consumers.vendors import Answer, Request, Sending, vendor
from headrace.config import ConfigError, load
from headrace.sentry import EVERY_S, Sentry, attach

SECRET = "s3cr3t-Xy_7"
KEY = "0123456789abcdef0123456789abcdef"


class Server:
    """Keeps the events of the envelopes that it is sent."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.raw = b""
        self.paths: set[str] = set()
        # Without it no answer leaves.
        self.answers = threading.Event()
        self.answers.set()
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                kept.take(self.path, body)
                kept.answers.wait()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.dsn = f"http://{KEY}@127.0.0.1:{self._http.server_port}/7"

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        self.raw += body
        lines = body.split(b"\n")
        for header, payload in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(header)["type"] == "event":
                self.events.append(json.loads(payload))

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def attached(server: Server) -> Iterator[Sentry]:
    before = tell.log.handlers[:]
    attach(server.dsn)
    (handler,) = [h for h in tell.log.handlers if h not in before]
    assert isinstance(handler, Sentry)
    yield handler
    tell.log.removeHandler(handler)
    handler.close()


def a_request(**fields: Any) -> Request:
    table = {"url": "https://example.com/events", "secret_env": "K"}
    made = vendor("webhook", table, {"K": SECRET})
    return made.requests([an_event(**fields)], Sending(0)).requests[0]


def teller(name: str = "orders") -> Teller:
    return Teller(name, Scrubber(KINDS))


def test_what_is_told_has_request_response_and_attempt_and_no_secret(
    server: Server, attached: Sentry
) -> None:
    planted = {"note": "write to jo@example.com", "card": "4111 1111 1111 1111"}
    request = a_request(properties=planted, user_id="someone")
    said = f'{{"error": "{SECRET} is wrong", "seen": "jo@example.com"}}'
    local = "planted-in-a-variable"
    teller().answered(request, Answer(403, {}, said.encode()), 3)
    attached.close()
    (event,) = server.events
    assert server.paths == {"/api/7/envelope/"}
    assert event["message"] == "orders answers 403"
    assert event["level"] == "warning"
    assert event["tags"] == {"vendor": "orders", "status": "403"}
    answer = event["contexts"]["answer"]
    assert (answer["attempt"], answer["events"], answer["more_since_the_last"]) == (3, 1, 0)
    assert answer["request"].startswith("POST https://example.com/events {")
    assert "write to [mail]" in answer["request"]
    assert answer["response"] == '{"error": "... is wrong", "seen": "[mail]"}'
    for secret in (SECRET, "jo@example.com", "4111", local, "Headrace-Signature"):
        assert secret.encode() not in server.raw, secret


def test_it_is_told_nothing_but_the_answers(server: Server, attached: Sentry) -> None:
    """No other log, breadcrumb, variable, module or trace; the SDK is not set up for others."""
    logging.getLogger("consumers.forward.engine").error("planted-in-a-log")
    teller().no_answer(a_request(), "ReadTimeout", 1)
    attached.close()
    (event,) = server.events
    assert event["sdk"]["integrations"] == []
    known = {
        "event_id", "timestamp", "level", "logger", "message", "fingerprint", "tags", "contexts",
        "release", "environment", "server_name", "sdk", "platform",
    }  # fmt: skip
    assert event.keys() <= known
    assert event["contexts"].keys() == {"answer"}
    assert b"planted" not in server.raw
    assert not sentry_sdk.get_client().is_active()


def test_an_outage_is_an_event_a_minute_for_each_status_with_how_many_there_were(
    server: Server, attached: Sentry
) -> None:
    now = 1_750_000_000.0
    make = logging.LogRecord

    def at(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.created = now
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(at)
    try:
        for _ in range(5):
            for _ in range(1000):
                teller().answered(a_request(), Answer(503, {}, b""), 1)
                now += EVERY_S / 1000
            teller().answered(a_request(), Answer(500, {}, b""), 1)
            teller("other").answered(a_request(), Answer(503, {}, b""), 1)
    finally:
        logging.setLogRecordFactory(before)
    attached.close()
    told: dict[tuple[str, ...], list[int]] = {}
    for event in server.events:
        more = event["contexts"]["answer"]["more_since_the_last"]
        told.setdefault(tuple(event["fingerprint"]), []).append(more)
    assert told.keys() == {
        ("answer", "orders", "503"), ("answer", "orders", "500"), ("answer", "other", "503"),
    }  # fmt: skip
    outage = told["answer", "orders", "503"]
    assert outage[0] == 0
    assert 4 <= len(outage) <= 6
    assert all(990 <= more <= 1010 for more in outage[1:])


def test_a_sentry_that_does_not_answer_holds_up_nothing(server: Server, attached: Sentry) -> None:
    server.answers.clear()
    try:
        for status in range(300, 600):
            teller().answered(a_request(), Answer(status, {}, b""), 1)
        assert len(server.events) <= 1, "it has answered none, and we are here"
    finally:
        server.answers.set()
    attached.close()
    assert 1 < len(server.events) < 300, "what there is no room for is dropped"


def test_a_sentry_that_is_away_is_no_error(server: Server) -> None:
    server.close()
    handler = Sentry(server.dsn)
    tell.log.addHandler(handler)
    try:
        teller().answered(a_request(), Answer(503, {}, b""), 1)
    finally:
        tell.log.removeHandler(handler)
        handler.close()


def test_without_a_dsn_there_is_no_handler() -> None:
    before = tell.log.handlers[:]
    attach(load(need_kafka=False, environ={}).sentry_dsn)
    assert tell.log.handlers == before


@pytest.mark.parametrize(
    ("dsn", "why"),
    [
        (f"http://{KEY}@sentry.example.com/7", "must be https"),
        (f"https://{KEY}@sentry.example.com/", "."),
        ("https://sentry.example.com/7", "public key"),
        ("nonsense", "must be an address"),
        (f"https://{KEY}@[half/7", "."),
    ],
)
def test_a_dsn_that_can_not_be_used_is_refused_without_its_key(dsn: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"SENTRY_DSN is no DSN that can be used: .*{why}") as e:
        Sentry(dsn)
    assert KEY not in str(e.value)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "sentry_sdk":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"sentry_sdk is missing, of the extra sentry: "):
        Sentry(f"https://{KEY}@sentry.example.com/7")


def test_what_is_cut_off_from_what_is_shown_leaves_no_half_of_a_card(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for before in range(280, 300):
        said = "x" * (before - 1) + " 4111111111111111 and more than is shown of it"
        teller().answered(a_request(), Answer(400, {}, said.encode()), 1)
    assert caplog.records
    for record in caplog.records:
        assert "4111" not in record.__dict__["response"]
