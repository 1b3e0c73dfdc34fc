"""A vendor is away for longer than it may be: fresh events first, the rest by a job beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forwarding import Forwarding

from consumers.replay.jobs import Jobs, Origin, State
from headrace.stack import Endpoints
from headrace.vendors.app import WEBHOOK_SECRET
from headrace.vendors.client import Vendors

# It goes down; the others do not.
BROKEN, OTHERS = "amplitude", ("posthog", "webhook")
# A plan under which what it missed takes a while, so that the kill is in the middle of it.
SLOW = {"outage_s": 0.5, "events_per_s": 60}


@pytest.fixture
def scene(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    stand_ins: Vendors,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Forwarding]:
    """A topic of raw events, and three vendors, of which one soon counts as away."""
    monkeypatch.setenv("STANDIN_KEY", WEBHOOK_SECRET)
    with Forwarding.start(
        tmp_path, endpoints.kafka, unique("outage"), stand_ins, (BROKEN, *OTHERS),
        amplitude=SLOW,
    ) as scene:  # fmt: skip
        yield scene


def has(scene: Forwarding, vendor: str) -> int:
    found: int = scene.vendors.stored(vendor)["keys"]
    return found


def test_fresh_events_come_before_those_of_the_outage_which_a_killed_forwarder_loses_nothing_of(
    scene: Forwarding,
) -> None:
    scene.vendors.break_(BROKEN, down="reset")
    scene.send(50, users=50)
    process = scene.forward()
    scene.until(lambda: process.says(f"{BROKEN} is away"), "an outage")
    since = time.monotonic()
    scene.send(500, users=500)
    for vendor in OTHERS:
        scene.until(lambda v=vendor: has(scene, v) == 550, f"all in {vendor}")
    scene.until(lambda: time.monotonic() - since > SLOW["outage_s"], "the outage's length")
    scene.vendors.mend(BROKEN)
    scene.until(lambda: process.says("going on with fresh events"), "a leap")
    scene.send(20)
    fresh = set(scene.allowed[-20:])
    scene.until(lambda: fresh <= set(scene.vendors.keys(BROKEN)), "fresh events")
    process.kill()
    assert has(scene, BROKEN) < len(scene.allowed), "fresh ones come before the old ones"
    scene.write((BROKEN, *OTHERS))
    scene.forward("--drain").finish(90)
    for vendor in (BROKEN, *OTHERS):
        scene.once(vendor)
    job_id = process.output.split("from the outage are the replay ")[1][:8]
    job = Jobs({"bootstrap.servers": scene.kafka}).get(job_id)
    assert (job.to, job.origin, job.state) == (BROKEN, Origin.OUTAGE, State.DONE)
