"""`headrace trace check`, and what `headrace trace suggest` proposes."""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from consumers.trace.allowlist import from_table
from consumers.trace.gate import Dropped, Gate
from consumers.trace.lines import raw_events
from consumers.trace.scrub import Scrubber
from consumers.trace.suggest import MOST_EVENTS, MOST_PROPERTIES, Suggestion
from consumers.vendors import VENDORS, Sending, VendorError
from headrace.cli import cli
from headrace.config import load
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

NOW_US = time.time_ns() // 1000
ALLOWED = """
[trace.events."purchase product"]
names = { ga4 = "purchase" }
[trace.events."purchase product".properties]
category = "string"
"""
PURCHASE: dict[str, Any] = {
    "event": "purchase product", "deviceId": "desktop1", "eventId": "event-1",
    "properties": {"category": "billing, jo@example.com", "planted": "planted7"},
}  # fmt: skip


def check(
    folder: Path, *lines: object, toml: str = ALLOWED, options: tuple[str, ...] = ()
) -> Result:
    (folder / "headrace.toml").write_text(toml)
    text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    (folder / "events").write_text(text, encoding="utf-8")
    args = ["trace", "check", str(folder / "events"), "--config", str(folder / "headrace.toml")]
    return CliRunner().invoke(cli, [*args, *options])


def test_each_vendor_has_its_names_and_its_requests_and_what_was_taken_out(tmp_path: Path) -> None:
    done = check(tmp_path, PURCHASE)
    assert done.exit_code == 0, done.output
    for vendor in VENDORS:
        assert f"{vendor}: 1 event would leave" in done.output
    assert 'ga4        "purchase" {"category": "billing, [mail]"}' in done.output
    assert 'heap       "purchase product" {"category": "billing, [mail]"}' in done.output
    assert 'properties.planted: not_listed: "planted7" left out' in done.output
    assert "POST https://www.google-analytics.com/mp/collect?" in done.output
    assert done.output.count("  POST https://") == len(VENDORS)
    for line in done.output.splitlines():
        if line.strip().startswith(("{", "[")):
            assert "planted" not in line, "a request's body"


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_alone_shows_no_credential(vendor: str, tmp_path: Path) -> None:
    done = check(tmp_path, PURCHASE, options=("--vendor", vendor))
    assert done.exit_code == 0, done.output
    assert done.output.count("would leave") == done.output.count("  POST ") == 1
    assert "credential-is-not-shown" not in done.output
    assert "POST" not in check(tmp_path, PURCHASE, options=("--no-requests",)).output


CONFIGURED = (
    ALLOWED.replace("names = { ga4", "names = { orders")
    + """
[vendors.orders]
kind = "ga4"
api_secret_env = "ORDERS_SECRET"
measurement_id = "G-ORDERS"
region = "eu"
key_parameter = "ours"
validate_share = 0.5
concurrency = 3
[vendors.amplitude]
api_key_env = "AMPLITUDE_KEY"
gzip = false
min_id_length = 9
"""
)


def test_what_is_configured_is_shown_by_its_name_with_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_SECRET", "s3cr3t-of-orders")
    done = check(tmp_path, PURCHASE, toml=CONFIGURED)
    assert done.exit_code == 0, done.output
    assert done.output.count("would leave") == 2
    assert 'orders     "purchase" {"category": "billing, [mail]"}' in done.output
    query = "?measurement_id=G-ORDERS&api_secret=…"
    assert f"POST https://region1.google-analytics.com/mp/collect{query}" in done.output
    assert '"ours":"event-1"' in done.output
    assert "a share of 0.5 of requests also to https://region1" in done.output
    assert "amplitude: 1 event would leave" in done.output
    assert "not sent: event-1: its user or device id must have 9 to 1024" in done.output
    assert "s3cr3t" not in done.output
    assert "credential-is-not-shown" not in done.output


@pytest.mark.parametrize("name", ["orders", "amplitude", "heap"])
def test_a_request_is_byte_for_byte_what_the_forwarder_makes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ORDERS_SECRET", "AMPLITUDE_KEY", "HEAP_APP"):
        monkeypatch.setenv(variable, f"s3cr3t-{variable}")
    device = PURCHASE | {"deviceId": "desktop-100", "timestamp": time.time()}
    toml = CONFIGURED + '[vendors.heap]\napp_id_env = "HEAP_APP"\n'
    done = check(tmp_path, device, toml=toml, options=("--vendor", name))
    config = load(tmp_path / "headrace.toml", need_kafka=False)
    gate = Gate(config.trace, name)
    (raw,), _ = raw_events(json.dumps(device).encode(), NOW_US)
    event = gate.judge(raw)
    assert not isinstance(event, Dropped)
    (request,) = config.vendors[name].vendor().requests([event], Sending(NOW_US)).requests
    shown = request.shown()
    headers = "".join(f"  {k}: {v}\n" for k, v in shown.headers.items())
    assert f"  {shown.method} {shown.url}\n{headers}\n  {shown.body}\n" in done.output


def test_one_that_needs_settings_and_has_none_is_shown_without_its_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cli.trace._SETTINGS", {})
    done = check(tmp_path, PURCHASE)
    assert done.exit_code == 0, done.output
    assert "configure [vendors.webhook] to see them" in done.output
    assert done.output.count("would leave") == len(VENDORS)


def test_one_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    done = check(tmp_path, PURCHASE, toml=CONFIGURED.replace("G-ORDERS", ""))
    assert isinstance(done.exception, VendorError)
    assert "vendors.orders.measurement_id or firebase_app_id" in str(done.exception)


def test_a_line_that_can_not_be_read_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = check(tmp_path, "nonsense", "", PURCHASE, {"event": "e"}, 5)
    assert done.exit_code == 1
    assert "line 1: refused: not JSON" in done.output
    assert "line 3: event event-1" in done.output
    assert "line 5: refused" in done.output


def test_without_a_list_nothing_leaves_and_it_says_so(tmp_path: Path) -> None:
    done = check(tmp_path, PURCHASE, toml="")
    assert "[trace] lists no event" in done.output
    assert "POST" not in done.output


def test_an_unknown_vendor_is_refused(tmp_path: Path) -> None:
    done = check(tmp_path, PURCHASE, options=("--vendor", "ga5"))
    assert "there is no vendor 'ga5'" in str(done.exception)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (PURCHASE, 1), ([PURCHASE, PURCHASE | {"eventId": "2"}], 2),
        ({"writeKey": "k", "events": [PURCHASE]}, 1),
        ({"type": "track", "event": "e", "userId": "u"}, 1), ({"event": "e", "userId": "u"}, 1),
        ({"batch": [{"type": "page"}, {"type": "identify", "userId": "u"}]}, 2),
        ({"eventId": "a", "data": "{}"}, 1),
        ({"event_id": "a", "content_type": "application/json", "data": "{}"}, 1),
    ],
)  # fmt: skip
def test_a_line_is_what_a_door_takes_or_a_raw_event(line: object, count: int) -> None:
    found, refused = raw_events(json.dumps(line).encode(), NOW_US)
    assert (len(found), refused) == (count, [])
    assert all(raw.event_id and raw.data for raw in found)
    assert all(abs(raw.received_at.ToMicroseconds() - NOW_US) < 2 for raw in found)


# -- suggest ---------------------------------------------------------------------------------------


def raw(name: str, properties: object) -> RawEvent:
    return RawEvent(data=json.dumps({"event": name, "properties": properties}))


def suggested(*events: RawEvent, toml: str = "", least: int = 1) -> str:
    found = Suggestion(from_table(tomllib.loads(toml).get("trace", {}), VENDORS))
    for event in events:
        found.add(event)
    return found.toml(least)


def test_what_is_proposed_has_types_and_counts_and_is_taken_as_it_is() -> None:
    text = suggested(
        raw("a b", {"n": 1, "s": "x", "b": True}), raw("a b", {"n": 1.5, "o": {}, "m": 1}),
        raw("a b", {"m": "x", "s": "jo@example.com", "z": None}), raw("c", None),
        RawEvent(data="{"),
    )  # fmt: skip
    found = from_table(tomllib.loads(text)["trace"], VENDORS)
    types = {k: p.type for k, p in found.events["a b"].properties.items()}
    assert types == {"n": "number", "s": "string", "b": "boolean"}
    assert "c" in found.events
    assert "# 5 events, 2 names." in text
    assert "# 1 without a name, or that can't be read" in text
    assert '[trace.events."a b".properties]  # 3 events\n' in text
    assert 's = "string"  # 2; personal data: 1 mail' in text
    assert '# m = "?"  # 1 integer, 1 string' in text


def test_what_is_listed_already_is_said() -> None:
    text = suggested(raw("purchase product", {"category": "x", "new": 1}), toml=ALLOWED)
    assert "1 events, listed already" in text
    assert 'category = "string"  # 1; listed already' in text
    assert 'new = "integer"  # 1\n' in text


def test_rare_events_and_names_with_personal_data_are_not_proposed() -> None:
    text = suggested(raw("often", {}), raw("often", {}), raw("rare", {}), least=2)
    assert set(tomllib.loads(text)["trace"]["events"]) == {"often"}
    text = suggested(raw("saw jo@example.com", {"x": 1}), raw("e", {"jo@example.com": 1}))
    assert tomllib.loads(text) == {"trace": {"events": {"e": {"properties": {}}}}}


def test_memory_is_bounded_whatever_the_names() -> None:
    names = [raw(f"e{i}", {}) for i in range(MOST_EVENTS + 5)]
    keys = raw("e0", {f"k{i}": 1 for i in range(MOST_PROPERTIES + 7)})
    text = suggested(*names, keys)
    assert "# 5 of names beyond" in text
    assert "# 7 values of further properties" in text


@given(st.text(min_size=1, max_size=8), st.text(max_size=8), st.text(max_size=8))
@example("/?0", "key", "value")
@example("name", "/?0", "value")
def test_any_name_makes_toml_that_says_it(name: str, key: str, value: str) -> None:
    """One that looks like personal data, as an address with a query does, is only a comment."""
    settings = from_table({}, VENDORS)
    scrub = Scrubber(settings.scrub, settings.patterns, settings.url_parameters)
    found = tomllib.loads(suggested(raw(name, {key: value})))
    if scrub(name):
        assert not found
    else:
        properties = {} if scrub(key) else {key: "string"}
        assert found["trace"]["events"][name]["properties"] == properties
