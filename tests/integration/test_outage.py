"""A vendor is away for longer than it may be: fresh events first, the rest by a job beside them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from forwarding import Forwarding
from inserter import Inserter
from targets import PostgresTarget

from consumers.forward.live import forwarder_group
from consumers.replay.job import Origin, State
from consumers.replay.jobs import Jobs
from headrace.stack import Endpoints
from headrace.vendors.client import Vendors
from headrace.vendors.place import WEBHOOK_SECRET
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

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


def settled(scene: Forwarding) -> int:
    """What the broken one has, once nothing more comes: a lane may end behind its loop."""
    found = -1
    while found != (found := has(scene, BROKEN)):
        time.sleep(2.5)
    return found


def inserter(scene: Forwarding, target: PostgresTarget, *streams: str) -> Inserter:
    """One that runs on."""
    argv = ["insert", "--to", target.url, "--config", str(scene.config), "--kafka", scene.kafka]
    for stream in streams:
        argv += ["--stream", stream]
    log = scene.folder / f"insert-{len(scene.inserters)}.log"
    scene.inserters.append(Inserter(scene._start(argv, log), log, argv))
    return scene.inserters[-1]


def after_an_outage(scene: Forwarding, missed: int) -> tuple[Inserter, str]:
    """A forwarder that has just leapt over so many events, and its replay of them."""
    scene.vendors.break_(BROKEN, down="reset")
    scene.send(50, users=50)
    process = scene.forward(metrics=True)
    scene.until(lambda: process.says(f"{BROKEN} waits, trying again"), "an outage")
    since = time.monotonic()
    scene.send(missed, users=missed)
    for vendor in OTHERS:
        scene.until(lambda v=vendor: has(scene, v) == len(scene.allowed), f"all in {vendor}")
    scene.until(lambda: time.monotonic() - since > SLOW["outage_s"], "the outage's length")
    scene.vendors.mend(BROKEN)
    scene.until(lambda: process.says("going on with fresh events"), "a leap")
    return process, process.output.split("from the outage are the replay ")[1][:8]


def earlier(scene: Forwarding, count: int, hours: float) -> None:
    """Publish so many events so long ago, by their own time and by Kafka's."""
    at_us = time.time_ns() // 1000 - round(hours * 3_600_000_000)
    producer = Producer({"bootstrap.servers": scene.kafka, "enable.idempotence": True})
    for n in range(count):
        event_id = str(uuid.uuid4())
        scene.allowed.append(event_id)
        data = {"event": "checkout", "userId": f"user-{n:05}", "timestamp": at_us / 1e6}
        raw = RawEvent(event_id=event_id, content_type="application/json", data=json.dumps(data))
        raw.received_at.FromMicroseconds(at_us + n)
        producer.produce(
            scene.topic, raw.SerializeToString(), event_id.encode(), timestamp=at_us // 1000
        )
    assert producer.flush(30) == 0


def expire(scene: Forwarding, job_id: str) -> None:
    """Retention: of the replay's ranges one is gone, and of the others all but five offsets."""
    spans = Jobs({"bootstrap.servers": scene.kafka}).get(job_id).spans
    gone = {n: span.end - (5 if n else 0) for n, span in spans.items()}
    client: Any = AdminClient({"bootstrap.servers": scene.kafka})
    places = [TopicPartition(scene.topic, n, offset) for n, offset in gone.items()]
    for done in client.delete_records(places).values():
        done.result(30)


def test_fresh_events_come_before_those_of_the_outage_which_a_killed_forwarder_loses_nothing_of(
    scene: Forwarding,
) -> None:
    process, job_id = after_an_outage(scene, missed=500)
    scene.send(20)
    fresh = set(scene.allowed[-20:])
    scene.until(lambda: fresh <= set(scene.vendors.keys(BROKEN)), "fresh events")
    process.kill()
    assert has(scene, BROKEN) < len(scene.allowed), "fresh ones come before the old ones"
    scene.write((BROKEN, *OTHERS))
    scene.forward("--drain").finish(90)
    for vendor in (BROKEN, *OTHERS):
        scene.once(vendor)
    job = Jobs({"bootstrap.servers": scene.kafka}).get(job_id)
    assert (job.to, job.origin, job.state) == (BROKEN, Origin.OUTAGE, State.DONE)


def test_fresh_events_go_on_also_where_retention_has_taken_what_came_in_the_outage(
    scene: Forwarding,
) -> None:
    """Nobody can say any more when the replay's first record was published."""
    scene.vendors.break_(BROKEN, down="reset")
    scene.send(50)
    process = scene.forward()
    scene.until(lambda: process.says(f"{BROKEN} waits, trying again"), "an outage")
    since = time.monotonic()
    scene.send(400)
    scene.until(lambda: has(scene, OTHERS[0]) == len(scene.allowed), "all elsewhere")
    scene.until(lambda: time.monotonic() - since > SLOW["outage_s"], "the outage's length")
    client: Any = AdminClient({"bootstrap.servers": scene.kafka})
    places = [TopicPartition(scene.topic, n, -1) for n in range(4)]
    for done in client.delete_records(places).values():
        done.result(30)
    scene.vendors.mend(BROKEN)
    scene.until(lambda: process.says("going on with fresh events"), "a leap")
    scene.send(20)
    fresh = set(scene.allowed[-20:])
    scene.until(lambda: fresh <= set(scene.vendors.keys(BROKEN)), "fresh events")
    scene.until(lambda: process.says("stays open"), "what is lost")
    job_id = process.output.split("from the outage are the replay ")[1][:8]
    scene.headrace("replay", "cancel", job_id)


def test_a_vendor_of_which_kafka_has_forgotten_the_position_gets_nothing_twice(
    scene: Forwarding,
) -> None:
    scene.send(60)
    scene.forward("--drain").finish(60)
    client: Any = AdminClient({"bootstrap.servers": scene.kafka})

    def forgotten() -> bool:
        [found] = client.delete_consumer_groups([forwarder_group(BROKEN)]).values()
        try:
            found.result(30)
        except KafkaException as error:
            # A forwarder that another test has killed is missed only when its session is over.
            assert error.args[0].code() == KafkaError.NON_EMPTY_GROUP
            return False
        return True

    scene.until(forgotten, "a group without members")
    scene.send(40)
    process = scene.forward("--drain")
    process.finish(60)
    assert f"{scene.topic}" in process.output.split("Kafka has forgotten up to where")[1]
    for vendor in (BROKEN, *OTHERS):
        scene.once(vendor)


@pytest.mark.slow
def test_an_operator_pauses_an_outages_replay_and_goes_on_behind_what_kafka_has_lost(
    scene: Forwarding,
) -> None:
    process, job_id = after_an_outage(scene, missed=1000)
    scene.until(lambda: has(scene, BROKEN) > 50, "its first events")
    assert scene.headrace("replay", "pause", job_id) == f"replay {job_id}: paused\n"
    scene.until(lambda: process.says("gave back"), "a pause")
    before = settled(scene)
    scene.send(20)
    fresh = set(scene.allowed[-20:])
    scene.until(lambda: fresh <= set(scene.vendors.keys(BROKEN)), "fresh events")
    assert has(scene, BROKEN) == before + 20 < len(scene.allowed)
    assert f"{job_id}  paused" in scene.headrace("replay", "ls")

    expire(scene, job_id)
    assert "go on with it" in scene.headrace("replay", "resume", job_id)
    scene.until(lambda: process.says("stays open"), "a message")
    assert "removed by the topic's retention" in process.output
    assert process.metric("headrace_vendor_gap_messages") > 0
    assert f"{job_id}  open" in scene.headrace("replay", "ls")

    scene.headrace("replay", "resume", job_id, "--skip-lost", "--rate", "100/s")
    scene.until(lambda: process.says(f"the replay {job_id} of {BROKEN} is done"), "its end")
    assert set(scene.allowed[-20:]) | fresh <= set(scene.vendors.keys(BROKEN))
    assert job_id not in scene.headrace("replay", "ls")


@pytest.mark.slow
def test_what_retention_took_of_an_outages_replay_comes_from_the_table(
    scene: Forwarding, postgres: PostgresTarget
) -> None:
    with scene.config.open("a") as file:
        file.write(f"[replay]\nraw = {json.dumps(postgres.url)}\n")
    process, job_id = after_an_outage(scene, missed=1000)
    scene.until(lambda: has(scene, BROKEN) > 50, "its first events")
    scene.headrace("replay", "pause", job_id)
    scene.until(lambda: process.says("gave back"), "a pause")
    settled(scene)
    streams = ["--to", postgres.url, "--stream", "raw_events", "--stream", "receipts"]
    scene.headrace("migrate", *streams)
    scene.headrace("insert", *streams, "--drain")
    inserter(scene, postgres, "raw_events", "receipts")
    expire(scene, job_id)
    scene.headrace("replay", "resume", job_id)
    scene.until(lambda: process.says("it comes from the table"), "the table")
    scene.until(lambda: process.says(f"the replay {job_id} of {BROKEN} is done"), "its end")
    scene.once(BROKEN)
    assert f"{job_id}  done" in scene.headrace("replay", "ls", "--all")


@pytest.mark.slow
def test_a_forwarder_that_is_started_in_an_outage_replays_from_the_table_what_is_older(
    scene: Forwarding, postgres: PostgresTarget
) -> None:
    """And not what the vendor has accepted, though that has not landed when it begins."""
    with scene.config.open("a") as file:
        file.write(f"[replay]\nraw = {json.dumps(postgres.url)}\n")
    earlier(scene, 600, hours=5)
    process, job_id = after_an_outage(scene, missed=100)
    scene.until(lambda: process.says(f"the replay {job_id} of {BROKEN} begins"), "its beginning")
    scene.headrace("replay", "pause", job_id)
    scene.until(lambda: process.says("gave back"), "a pause")
    settled(scene)
    for stream in ("raw_events", "receipts"):
        scene.headrace("migrate", "--to", postgres.url, "--stream", stream)
        scene.headrace("insert", "--to", postgres.url, "--stream", stream, "--drain")
    scene.send(20)
    scene.until(lambda: set(scene.allowed[-20:]) <= set(scene.vendors.keys(BROKEN)), "fresh events")
    inserter(scene, postgres, "raw_events")
    expire(scene, job_id)
    scene.headrace("replay", "resume", job_id)
    scene.until(lambda: process.says("has not landed yet all receipts"), "a wait for receipts")
    inserter(scene, postgres, "receipts")
    scene.until(lambda: process.says(f"the replay {job_id} of {BROKEN} is done"), "its end")
    scene.once(BROKEN)
