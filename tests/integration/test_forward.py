"""From raw events in Kafka to the vendors: each event once by its key, with a receipt for each.

The vendors are the stand-ins over HTTP, which know nothing of what sends.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from forwarding import ALL, Forwarding

from headrace.stack import Endpoints
from headrace.vendors.client import Vendors
from headrace.vendors.faults import Dice, Faults
from headrace.vendors.place import WEBHOOK_SECRET


@pytest.fixture
def scene(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    stand_ins: Vendors,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Forwarding]:
    """A topic of raw events, and all vendors."""
    monkeypatch.setenv("STANDIN_KEY", WEBHOOK_SECRET)
    with Forwarding.start(tmp_path, endpoints.kafka, unique("events"), stand_ins) as scene:
        yield scene


def unlucky(vendor: str) -> dict[str, float]:
    """Faults of which the first two requests are among: half of the failures are after the taking.

    GA4, which has no keys, would have what it took and did not acknowledge twice: rightly so.
    """
    shares = {"fail": 0.25, "fail_after": 0.0 if vendor == "ga4" else 0.25}
    wanted = ["fail", "fail"] if vendor == "ga4" else ["fail_after", "fail"]
    for seed in range(1000):
        dice = Dice(Faults(seed=seed, **shares), vendor)
        if [dice.lot(), dice.lot()] == wanted:
            return {**shares, "seed": seed}
    raise AssertionError("no such seed")


@pytest.mark.slow
def test_every_allowed_event_is_in_each_vendor_once_though_requests_fail(
    scene: Forwarding,
) -> None:
    """Ten times the failures of a bad day."""
    for vendor in ALL:
        scene.vendors.break_(vendor, **unlucky(vendor))
    scene.send(500, others=100)
    scene.forward("--drain").finish(90)
    for vendor in ALL:
        scene.once(vendor)
        found = scene.vendors.stored(vendor)
        assert found["answers"]["500"] >= 2
        assert vendor == "ga4" or found["repeated"] > 0, "sent again under the same keys"


@pytest.mark.parametrize(
    ("kills", "events"),
    [
        (2, 150),
        pytest.param(20, 2000, marks=(pytest.mark.slow, pytest.mark.timeout(1800))),
    ],
)
def test_kills_lose_nothing_and_double_nothing_where_there_are_keys(
    scene: Forwarding, kills: int, events: int
) -> None:
    """GA4 has no keys: what it has twice was under way at a kill, and its receipts say so."""
    for vendor in ALL:
        scene.vendors.break_(vendor, slow_s=0.05, fail=0.025, fail_after=0.025, seed=5)
    random = Random(4)
    for _ in range(kills):
        scene.send(events)
        process = scene.forward()
        scene.until(lambda p=process: p.output.count("given ") >= len(ALL), "all partitions")
        moment = time.monotonic() + random.uniform(0.2, 1.5)
        scene.until(lambda m=moment: time.monotonic() >= m, "the moment of the kill")
        assert process.alive, process.output
        process.kill()
    scene.forward("--drain").finish(90 + kills * events / 150)
    for vendor in ALL:
        if vendor != "ga4":
            scene.once(vendor)
    keys = Counter(scene.vendors.keys("ga4"))
    assert keys.keys() == set(scene.allowed)
    doubled = {key for key, count in keys.items() if count > 1}
    repeated = {event_id for event_id, r in scene.statuses("ga4").items() if r.repeated}
    assert doubled <= repeated
    scene.accounted("ga4")


@pytest.mark.slow
def test_a_vendor_that_is_down_holds_up_no_other_and_catches_up_within_seconds(
    scene: Forwarding,
) -> None:
    scene.vendors.break_("heap", down="reset")
    process = scene.forward(metrics=True)
    scene.send(300)
    others = [vendor for vendor in ALL if vendor != "heap"]
    for vendor in others:
        scene.until(lambda v=vendor: scene.vendors.stored(v)["keys"] == 300, f"all in {vendor}")
    scene.until(lambda: process.metric("headrace_vendor_breaker") > 0, "an open breaker")
    scene.until(lambda: process.ready() == 503, "a forwarder that says so")
    assert scene.vendors.stored("heap")["count"] == 0
    scene.send(100)
    for vendor in others:
        scene.until(lambda v=vendor: scene.vendors.stored(v)["keys"] == 400, f"more in {vendor}")
    scene.vendors.mend("heap")
    began = time.monotonic()
    scene.until(lambda: scene.vendors.stored("heap")["keys"] == 400, "all in heap")
    assert time.monotonic() - began < 15
    scene.until(lambda: process.ready() == 200, "all is well")
    process.terminate()
    process.finish()
    scene.forward("--drain").finish(60)
    for vendor in ALL:
        scene.once(vendor)


def test_a_revoked_key_stops_that_vendor_alone_with_a_sentence(scene: Forwarding) -> None:
    scene.vendors.break_("amplitude", revoked=True)
    scene.send(200)
    process = scene.forward("--drain")
    assert process.wait(60) == 1
    assert "amplitude refuses us: HTTP 400: Invalid API key" in process.output
    assert "Check its credentials" in process.output
    assert WEBHOOK_SECRET not in process.output, "no credential is in the log"
    for vendor in ALL:
        if vendor != "amplitude":
            scene.once(vendor)
    assert not scene.statuses("amplitude"), "nothing is final that was not sent"
    scene.vendors.mend("amplitude")
    scene.forward("--vendor", "amplitude", "--drain").finish(60)
    scene.once("amplitude")


def test_a_vendor_that_throttles_gets_all_of_it_more_slowly(scene: Forwarding) -> None:
    scene.vendors.break_("webhook", throttle=0.3, retry_after_s=0.1, seed=1)
    scene.send(200, users=200)
    process = scene.forward("--vendor", "webhook", "--drain")
    process.finish(60)
    scene.once("webhook")
    assert scene.vendors.stored("webhook")["answers"]["429"] > 0
    assert '"status": "429"' in process.output, "what is not 2xx is in the log"


def test_what_googles_validation_finds_is_rejected_though_it_answers_204(
    scene: Forwarding,
) -> None:
    """The parameter `step` is sent under a name that the stand-in knows to be wrong."""
    scene.write(["ga4"], ga4={"validate_share": 1.0, "value_chars": 500})
    long = "x" * 300
    scene.send(20, plan=long)
    scene.send(20)
    process = scene.forward("--drain", metrics=True)
    process.finish(60)
    found = Counter(r.status for r in scene.statuses("ga4").values())
    assert found == {"accepted": 20, "rejected": 20}
    assert scene.vendors.stored("ga4")["keys"] == 20, "the vendor has dropped what it found"


def test_receipts_are_shown_as_a_table_and_as_json(scene: Forwarding) -> None:
    scene.send(30, others=5)
    scene.forward("--vendor", "webhook", "--drain").finish(60)
    lines = scene.headrace("receipts", "--vendor", "webhook").splitlines()
    assert lines[-1] == "webhook accepted 30, webhook dropped 5"
    assert lines[0].split() == [
        "answered", "vendor", "status", "reason", "tries", "event", "detail",
    ]  # fmt: skip
    assert len(lines) == 1 + 35 + 1
    one = scene.headrace("receipts", "--event-id", scene.allowed[3], "--json").splitlines()
    found = json.loads(one[0])
    assert (found["event_id"], found["status"]) == (scene.allowed[3], "accepted")
    assert (found["attempts"], found["source_topic"]) == (1, scene.topic)
    assert scene.headrace("receipts", "--failed").splitlines() == ["no such receipts"]
    assert scene.headrace("receipts", "--until", "-30m").splitlines() == ["no such receipts"]


@pytest.mark.parametrize(
    ("toml", "args", "said"),
    [
        ("", (), "no vendor is configured: add a section such as [vendors.amplitude]"),
        ('[vendors.heap]\napp_id_env = "STANDIN_KEY"', (), "[trace] lets no event leave for heap"),
        (
            '[vendors.heap]\napp_id_env = "STANDIN_KEY"',
            ("--vendor", "ga4"),
            "--vendor ga4: there is no [vendors.ga4]; there are: heap",
        ),
        (
            '[vendors.heap]\napp_id_env = "NOT_THERE"\n[trace.events.checkout]',
            (),
            "the environment variable NOT_THERE is not set",
        ),
        ("[vendors.heap]\nconcurrency = 0", (), "concurrency = 0 must be a whole number"),
        ("[vendors.hype]\nx = 1", (), "'hype' is no vendor; give kind = one of"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(
    scene: Forwarding, toml: str, args: tuple[str, ...], said: str
) -> None:
    streams = scene.config.read_text().split("[vendors.")[0]
    scene.config.write_text(streams + toml + "\n")
    process = scene.forward(*args)
    assert process.wait() == 1
    assert said in process.output
    assert "Traceback" not in process.output
