"""Replays on real Kafka, to the stand-in vendors: exactly the range, resumed, paused, cancelled."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from random import Random

import pytest
from replaying import Replaying


@pytest.fixture
def scene(replaying: Replaying) -> Replaying:
    return replaying


def test_a_range_is_replayed_exactly_though_records_are_out_of_order(scene: Replaying) -> None:
    scene.past(6000)
    said = scene.replay("--to", "amplitude", *scene.hour(1)).finish()
    assert sorted(scene.vendors.keys("amplitude")) == sorted(scene.within(1))
    assert f"replayed {len(scene.within(1)):,} records to amplitude" in said
    statuses = scene.statuses("amplitude")
    assert {r.status for r in statuses.values()} == {"accepted"}
    assert statuses.keys() == set(scene.within(1))
    assert all(r.repeated for r in statuses.values()), "it may have been sent before"


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_replay_that_is_killed_goes_on_where_it_was(scene: Replaying, kills: int) -> None:
    """By the same command each time; what was under way is sent again under its own key."""
    scene.past(9000)
    command = ["--to", "mixpanel", *scene.hour(0.5, 2), "--rate", f"{3000 // kills}/s"]
    wanted, random = set(scene.within(0.5, 2)), Random(kills)
    ids = set()
    before = 0
    for n in range(kills):
        process = scene.replay(*command)
        most = max(before, len(wanted) * n // (kills + 2))
        scene.until(lambda m=most: scene.vendors.stored("mixpanel")["keys"] > m, "more events", 60)
        # What is stored before its position is committed is sent once more: that comes afterwards.
        scene.until(lambda p=process: scene.has_position(scene.id_of(p)), "a position", 60)
        moment = time.monotonic() + random.uniform(0, 0.3)
        scene.until(lambda m=moment: time.monotonic() >= m, "the moment of the kill")
        assert process.alive, process.output
        process.kill()
        ids.add(scene.id_of(process))
        before = scene.vendors.stored("mixpanel")["keys"]
    process = scene.replay(*command)
    process.finish(90)
    ids.add(scene.id_of(process))
    keys = Counter(scene.vendors.keys("mixpanel"))
    assert keys.keys() == wanted
    assert max(keys.values()) == 1
    assert len(ids) == 1, "it is one replay"
    assert before < len(wanted)
    last = int(process.output.split("replayed ")[1].split()[0].replace(",", ""))
    assert last < len(wanted), "it did not begin anew"
    job_id = ids.pop()
    shown = json.loads(scene.headrace("replay", "show", job_id))
    assert (shown["state"], shown["done"]) == ("done", 1)


@pytest.mark.slow
def test_a_replay_is_paused_resumed_and_cancelled_from_elsewhere(scene: Replaying) -> None:
    scene.past(6000)
    process = scene.replay("--to", "heap", *scene.hour(0, 3), "--rate", "400/s")
    scene.until(lambda: scene.vendors.stored("heap")["keys"] > 100, "the first events")
    job_id = scene.id_of(process)
    scene.headrace("replay", "pause", job_id)
    assert f"headrace replay resume {job_id}" in process.finish()
    stored = scene.vendors.stored("heap")["keys"]
    assert stored < 6000
    assert "paused" in _line(scene.headrace("replay", "ls"), job_id)
    process = scene.replay("resume", job_id)
    scene.until(lambda: scene.vendors.stored("heap")["keys"] > stored + 100, "more events")
    scene.headrace("replay", "cancel", job_id)
    assert "it was cancelled" in process.finish()
    assert scene.vendors.stored("heap")["keys"] < 6000
    assert job_id not in scene.headrace("replay", "ls")
    assert "cancelled" in _line(scene.headrace("replay", "ls", "--all"), job_id)
    assert "that is final" in scene.headrace("replay", "resume", job_id, code=1)


@pytest.mark.slow
def test_only_events_of_the_name_are_replayed_and_only_once_each(scene: Replaying) -> None:
    scene.past(900, names=("checkout", "secret", "checkout"))
    scene.replay("--to", "posthog", *scene.hour(0, 3), "--event", "checkout").finish()
    assert scene.vendors.stored("posthog")["keys"] == 600
    scene.replay("--to", "posthog", *scene.hour(0, 3), "--event", "checkout").finish()
    assert scene.vendors.stored("posthog")["keys"] == 600, "the keys are the same"
    assert len(scene.receipts()) == 1200, "what is not meant has no receipt"


def test_only_what_is_missing_is_sent_and_not_what_is_still_to_be_forwarded(
    scene: Replaying,
) -> None:
    """One event in fifty was not allowed; then it is. By the receipts just these are missing."""
    scene.past(1000, names=("refund", *["checkout"] * 49))
    scene.forward("--vendor", "amplitude", "--drain").finish(60)
    assert scene.vendors.stored("amplitude")["keys"] == 980
    had = set(scene.vendors.keys("amplitude"))
    scene.vendors.forget("amplitude")
    scene.config.write_text(scene.config.read_text() + "[trace.events.refund]\n")
    # Nobody has forwarded these yet.
    scene.send(40)
    said = scene.replay("--to", "amplitude", *scene.hour(0, 9), "--only-missing").finish()
    missing = scene.times.keys() - had
    assert len(missing) == 20
    assert sorted(scene.vendors.keys("amplitude")) == sorted(missing)
    assert "replayed 20 records" in said
    said = scene.replay("--to", "amplitude", *scene.hour(0, 9), "--only-missing").finish()
    assert "replayed 0 records" in said, "nothing is missing any more"


def test_what_a_vendor_lost_silently_is_missing_by_its_own_export(scene: Replaying) -> None:
    """It answers yes and stores 2 % less; its export says so, receipts can't."""
    scene.past(3000)
    scene.vendors.break_("mixpanel", drop=0.02, seed=7)
    scene.forward("--vendor", "mixpanel", "--drain").finish(60)
    had = scene.vendors.keys("mixpanel")
    lost = scene.times.keys() - set(had)
    assert 20 < len(lost) < 120
    assert len(scene.vendors.keys("mixpanel")) + len(lost) == 3000
    scene.vendors.mend("mixpanel")
    scene.vendors.forget("mixpanel")
    export = scene.folder / "export.json"
    export.write_text(
        "".join(json.dumps({"properties": {"$insert_id": key}}) + "\n" for key in had)
    )
    against = ["--only-missing", "--against", str(scene.config)]
    assert scene.replay("--to", "mixpanel", *scene.hour(0, 9), *against).wait() == 1
    assert "no replay is open" in scene.replay("ls").finish(), "no export, and so no replay"
    against = ["--only-missing", "--against", str(export)]
    scene.replay("--to", "mixpanel", *scene.hour(0, 9), *against).finish()
    assert sorted(scene.vendors.keys("mixpanel")) == sorted(lost)


def test_a_dry_run_says_what_is_then_sent(scene: Replaying) -> None:
    """GA4 would date anew what is older than 72 hours, and [trace] does not list everything."""
    scene.past(1000, hours=100, names=("checkout", "secret", "checkout", "checkout"))
    command = ["--to", "ga4", *scene.hour(10, 80)]
    said = scene.replay(*command, "--dry-run").finish()
    assert scene.vendors.stored("ga4")["count"] == 0
    assert not scene.receipts()
    hours = [line.split()[2:6] for line in said.splitlines() if re.match(r"\d{4}-", line)]
    events, accepted, sent, refused = (
        sum(int(n.replace(",", "")) for n in column) for column in zip(*hours, strict=True)
    )
    assert (events, accepted) == (len(scene.within(10, 80)), 0)
    assert len(hours) >= 80
    scene.replay(*command).finish(60)
    statuses = Counter(r.status for r in scene.statuses("ga4").values())
    assert sent == statuses["accepted"] == scene.vendors.stored("ga4")["count"] > 0
    assert refused == statuses["expired"] + statuses["dropped"]
    for status in ("expired", "dropped"):
        counted = re.search(rf"^([\d,]+) × {status}: ", said, re.MULTILINE)
        assert counted is not None
        assert int(counted[1].replace(",", "")) == statuses[status] > 0
    said = scene.replay(*command, "--dry-run", "--only-missing").finish()
    assert re.search(rf"^all +{events:,} +{sent:,} +0 +{refused:,}$", said, re.MULTILINE), said


def _line(text: str, job_id: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(job_id))
