"""Dead letters on real Kafka: listed, shown, sent back exactly once whoever is killed, removed."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from inserter import Inserter
from running import Scene
from targets import PostgresTarget

from consumers.dlq import redrive as redriving
from consumers.dlq.letters import Letters, Wanted
from headrace.cli import cli
from headrace.config import load
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState

MEND = """
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState


def without_nul(value):
    state = DeviceState.FromString(value)
    if state.mode == "keep":
        return None
    state.mode = state.mode.replace("\\0", "")
    return state.SerializeToString()
"""


def redrive(scene: Scene, *args: str) -> Inserter:
    """Start a process; does not wait for it."""
    argv = ["dlq", "redrive", "device_state", *args, "--config", str(scene.config),
            "--kafka", scene.kafka]  # fmt: skip
    log = scene.folder / f"redrive-{len(scene.inserters)}.log"
    scene.inserters.append(Inserter(scene._start(argv, log), log, argv))
    return scene.inserters[-1]


def spoiled(scene: Scene, n: int, mode: str = "war\0p") -> list[tuple[bytes, bytes]]:
    """Records that PostgreSQL refuses."""
    found = []
    for key, value in scene.records(n):
        state = DeviceState.FromString(value)
        state.mode = mode
        found.append((key, state.SerializeToString()))
    return found


def header(message: Message, name: str) -> str | None:
    found = [v for n, v in message.headers() or () if n == name]
    assert len(found) < 2, message.headers()
    return found[0].decode() if found else None


def dlq(scene: Scene, *args: str, code: int = 0) -> str:
    """Run a command here, to its end; what it writes."""
    argv = ["dlq", *args, "--config", str(scene.config), "--kafka", scene.kafka]
    done = CliRunner().invoke(cli, argv)
    assert done.exit_code == code, done.output
    return done.output


def listed(scene: Scene, *args: str) -> list[dict[str, object]]:
    out = dlq(scene, "ls", "device_state", "--json", *args)
    return [json.loads(line) for line in out.splitlines()]


def test_letters_are_listed_shown_mended_sent_back_and_removed(
    scene: Scene, postgres: PostgresTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.migrate(postgres)
    (scene.folder / "mend.py").write_text(MEND)
    monkeypatch.chdir(scene.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    good, bad = scene.records(300), spoiled(scene, 12)
    broken = [(key, value[: len(value) // 2]) for key, value in scene.records(3)]
    scene.publish(good)
    places = scene.publish([*bad, *broken], headers=[("trace", b"\0own")])
    scene.inserter(postgres, "--drain", "--max-dead-share", "1").finish()

    found = listed(scene)
    assert [(g["kind"], g["records"], g["again"]) for g in found] == [
        ("rejected", 12, 0), ("undecodable", 3, 0),
    ]  # fmt: skip
    assert found[0]["destinations"] == ["postgres"]
    at = f"{places[13][0]}:{places[13][1]}"
    table = dlq(scene, "ls")
    assert "headrace dlq show device_state --at" in table
    shown = dlq(scene, "show", "device_state", "--at", at, "--hex")
    assert f"{scene.topic} {at}, published" in shown
    assert "✗" in shown
    assert "timestamp: 2025-" in shown
    assert re.search(r"^  00000000: ([0-9a-f]{4} ){8} ", shown, re.MULTILINE)

    # As things are these three can't be decoded: they are not sent round in a circle.
    said = dlq(scene, "redrive", "device_state", "--reason", "undecodable", code=1)
    assert "redrove 0 records" in said
    assert "left 3, such as" in said
    # What is not mended comes back, and stops no inserter, though it is all there is to read.
    said = dlq(scene, "redrive", "device_state", "--reason", "NUL")
    assert "redrove 12 records" in said
    scene.inserter(postgres, "--drain", "--max-dead-share", "0").finish()
    assert [(g["kind"], g["records"], g["again"]) for g in listed(scene)] == [
        ("rejected", 12, 12), ("undecodable", 3, 0),
    ]  # fmt: skip

    edit = ("--reason", "rejected", "--through", "python mend:without_nul")
    said = dlq(scene, "redrive", "device_state", *edit, "--dry-run")
    assert "would redrive 12 records" in said
    said = dlq(scene, "redrive", "device_state", *edit)
    assert "redrove 12 records" in said
    scene.inserter(postgres, "--drain").finish()
    rows = len(good) + len(bad)
    assert postgres.distinct(scene.table) == (rows, rows)
    assert [(g["kind"], g["records"]) for g in listed(scene)] == [("undecodable", 3)]
    sent = [m for m in scene.read(scene.topic) if header(m, "headrace.redriven") == "2"]
    assert Counter((m.key(), m.partition()) for m in sent) == Counter(
        (key, number) for (key, _), (number, _) in zip(bad, places, strict=False)
    )
    for message in sent:
        assert (message.headers() or [])[0] == ("trace", b"\0own")
        assert header(message, "headrace.redriven_through") == "python mend:without_nul"
        assert int(header(message, "headrace.published_ms") or 0) < message.timestamp()[1]
        assert header(message, "headrace.reason") is None

    said = dlq(scene, "purge", "device_state", code=2)
    assert "27 letters" in said
    assert "3 records not redriven" in said
    assert "removed 27 letters" in dlq(scene, "purge", "device_state", "--yes")
    assert listed(scene) == []


SLOW = """
import time
from pathlib import Path


def slow(value):
    Path(__file__).with_name("begun").touch()
    time.sleep(0.002)
    return value
"""


def post(scene: Scene, count: int, first: int = 0) -> list[tuple[int, int]]:
    """Letters of records that would land, each twice as if two destinations had refused it."""
    # Letters are sent back in their order: of a new topic the first may have to be tried again.
    producer = Producer(
        {"bootstrap.servers": scene.kafka, "linger.ms": 5, "enable.idempotence": True}
    )
    origins = []
    for n, (key, value) in enumerate(scene.records(count), first):
        origins.append((n % scene.partitions, n // scene.partitions))
        for destination in ("postgres", "clickhouse"):
            headers = {
                "topic": scene.topic, "partition": n % scene.partitions,
                "offset": n // scene.partitions, "kind": "rejected", "reason": f"value {n}",
                "destination": destination, "timestamp_ms": n, "attempted_ms": 1000 + n,
            }  # fmt: skip
            producer.produce(
                scene.dlq, value, key,
                headers=[(f"headrace.{name}", str(v).encode()) for name, v in headers.items()],
            )  # fmt: skip
            producer.poll(0)
    assert producer.flush(30) == 0
    return origins


@pytest.fixture
def end(scene: Scene) -> Iterator[object]:
    """Asks how far the topic goes: offsets of all partitions, markers included."""
    consumer = Consumer({"bootstrap.servers": scene.kafka, "group.id": "look"})
    yield lambda: sum(
        consumer.get_watermark_offsets(TopicPartition(scene.topic, n), timeout=15)[1]
        for n in range(scene.partitions)
    )
    consumer.close()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_each_record_is_sent_once_though_redrives_are_killed_and_overtake_each_other(
    scene: Scene, kills: int, end: object
) -> None:
    assert callable(end)
    scene.migrate()
    random = Random(kills)
    origins: list[tuple[int, int]] = []
    for _ in range(kills):
        origins += post(scene, 4000, len(origins))
        before, process = end(), redrive(scene)
        scene.until(lambda m=before, p=process: end() > m or not p.alive, "records that are sent")
        moment = time.monotonic() + random.uniform(0, 0.15)
        scene.until(lambda m=moment: time.monotonic() >= m, "the moment")
        process.kill()
    # The last one is held up, and another begins: from then on it sends nothing more.
    (scene.folder / "slow.py").write_text(SLOW)
    origins += post(scene, 4000, len(origins))
    process = redrive(scene, "--through", "python slow:slow")
    scene.until((scene.folder / "begun").exists, "a redrive that knows what it will send")
    process.pause()
    redrive(scene).finish()
    process.resume()
    assert process.wait() == 1, process.output
    assert process.says("another redrive of device_state has begun")
    assert "Traceback" not in process.output
    assert "redrove 0 records" in redrive(scene).finish()

    sent = scene.read(scene.topic)
    assert sorted(str(header(m, "headrace.redriven_from")) for m in sent) == sorted(
        f"{partition}:{offset}" for partition, offset in origins
    )
    for number in range(scene.partitions):
        of = [int(str(header(m, "headrace.redriven_from")).partition(":")[2])
              for m in sent if m.partition() == number]  # fmt: skip
        assert of == [offset for partition, offset in origins if partition == number]


class Died(Exception):
    """By the test."""


def test_a_redrive_that_dies_at_any_step_sends_all_of_a_transaction_or_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each call to the producer from the first record on, and behind the last."""
    scene.migrate()
    origins = post(scene, 2)
    left: list[Producer] = []
    steps = 0

    class Dying:
        def __init__(self, settings: dict[str, object], **kwargs: object) -> None:
            self.producer = Producer(settings, **kwargs)
            left.append(self.producer)

        def __getattr__(self, name: str) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal steps
                steps -= 1
                if steps == 0:
                    raise Died
                found = getattr(self.producer, name)(*args, **kwargs)
                if name == "commit_transaction" and steps == 1:
                    raise Died
                return found

            return call

    monkeypatch.setattr(redriving, "Producer", Dying)
    stream = load(scene.config, kafka=scene.kafka, environ={}).stream("device_state")
    kafka = {"bootstrap.servers": scene.kafka}
    deaths = 0
    while not (sent := scene.read(scene.topic)):
        steps = deaths + 5  # those before: init, list, begin, a record
        try:
            exchange = redriving.Exchange(kafka, stream)
            redriving.redrive(Letters(kafka, stream), stream, Wanted(), None, exchange.send)
        except Died:
            deaths += 1
    assert len(sent) == len(origins)
    assert list(Letters(kafka, stream).open(Wanted())) == []
    assert deaths == 4, "before a record, the settlement and the commit, and behind it"


@pytest.mark.slow  # the short run asks it of every sink: tests/conformance/test_lanes.py
def test_when_a_letter_can_not_be_written_nothing_of_its_batch_is_committed(
    scene: Scene, postgres: PostgresTarget
) -> None:
    scene.migrate(postgres)

    def largest(size: int) -> None:
        resource = ConfigResource(ConfigResource.Type.TOPIC, scene.dlq)
        resource.add_incremental_config(
            ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
        )
        for answer in scene.admin.incremental_alter_configs([resource]).values():
            answer.result(15)

    largest(100)
    scene.publish([*scene.records(50), *spoiled(scene, 1), *scene.records(50)])
    process = scene.inserter(postgres, "--drain", "--max-rows", "1000", "--lanes", "1")
    assert process.wait() == 1, process.output
    assert process.says("raise that topic's max.message.bytes")
    assert set(scene.committed().values()) <= {-1, 0}
    assert postgres.rows(scene.table) == 0
    assert scene.read(scene.dlq) == []
    largest(1_000_000)
    assert "landed 100 rows" in scene.inserter(postgres, "--drain").finish()
    assert len(scene.read(scene.dlq)) == 1
