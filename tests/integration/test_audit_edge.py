"""The audit between spools and Kafka: what was acknowledged is there, and what is not is seen."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from running import Scene
from spool_kafka import begin
from waiting import until

from consumers.batch import Partition, Span
from consumers.bounds import bounds
from consumers.ledger import accepted, edge
from consumers.ledger.accepted import Book
from consumers.ledger.edge import Edge
from headrace.stack import Endpoints
from ingest.publisher import Publisher
from ingest.spool import Record, Spool, transactions
from ingest.spool.relay import Relay
from ingest.spool.transactions import Transactions
from ingest.streams import BUILT_IN, Stream
from ingest.topics import Retention, TopicIds
from ingest.units import HOUR_US


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """The topic device_state of this test."""
    with Scene.open(tmp_path, endpoints.kafka, unique("edge"), 2) as scene:
        scene.migrate()
        yield scene


@pytest.fixture
def stream(scene: Scene) -> Stream:
    return replace(BUILT_IN["device_state"], topic=scene.topic)


@pytest.fixture
def notes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> str:
    """Notes and a book of this test's own: what it does to them would be seen by others."""
    topic = f"{scene.topic}_notes"
    for module in (edge, transactions):
        monkeypatch.setattr(module, "EDGE", topic)
    monkeypatch.setattr(accepted, "_TOPIC", f"{scene.topic}_book")
    return topic


def publish(scene: Scene, stream: Stream, numbers: Sequence[int], spool: Path | None) -> None:
    with Publisher(scene.kafka, spool=spool) as publisher:
        for n in numbers:
            publisher.publish(
                stream, {"deviceId": "d", "timestamp": "2025-06-16T22:50:12Z", "colo": f"c{n}"}
            )
        publisher.flush(60)


def audited(scene: Scene, *args: str, code: int = 0) -> dict[str, int]:
    """The hours of the stream, added up: a test may see an hour end."""
    asked = ["audit", "--to", "kafka", "--stream", "device_state", "--json", *args]
    said = scene.headrace(*asked, code=code)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    hours = [line for line in lines if line.get("destination") == "kafka"]
    terms = ("accepted", "entered", "direct", "difference")
    return {term: sum(line[term] for line in hours) for term in terms}


def crossed(scene: Scene, stream: Stream, *, recount: bool = False) -> list[int | bool]:
    """The same without a process: accepted, entered, and whether it holds."""
    kafka = {"bootstrap.servers": scene.kafka}
    lines = Edge(kafka, Book(kafka)).audit([stream], recount=recount)
    return [
        sum(line.accepted.records for line in lines),
        sum(line.entered.records for line in lines),
        all(line.holds for line in lines),
    ]


def test_what_came_through_a_spool_is_in_kafka_and_what_came_past_it_is_told_apart(
    scene: Scene, stream: Stream, tmp_path: Path
) -> None:
    publish(scene, stream, range(300), tmp_path / "spool")
    assert audited(scene) == {"accepted": 300, "entered": 300, "direct": 0, "difference": 0}
    publish(scene, stream, range(20), None)
    publish(scene, stream, range(300, 310), tmp_path / "spool")
    expected = {"accepted": 310, "entered": 330, "direct": 20, "difference": 0}
    assert audited(scene) == audited(scene, "--deep") == expected


def leave_out(monkeypatch: pytest.MonkeyPatch, topic: str, needle: bytes) -> None:
    """Relays leave out the records of this topic that have it in them, and say nothing of it."""
    queue = Transactions._queue

    def without(self: Transactions, producer: Any, to: str, rows: list[dict[str, Any]]) -> None:
        if to == topic:
            rows = [row for row in rows if needle not in row["value"]]
        queue(self, producer, to, rows)

    monkeypatch.setattr(Transactions, "_queue", without)


def expire(scene: Scene, topic: str, number: int, below: int = -1) -> None:
    """As Kafka's retention does; -1 is all that there is."""
    place = TopicPartition(topic, number, below)
    scene.admin.delete_records([place])[place].result(20)


@pytest.mark.parametrize(("kept_s", "holds"), [(7 * 86_400.0, False), (0.0, True)])
def test_a_partition_that_has_nothing_left_excuses_what_is_older_than_the_topic_keeps(
    scene: Scene,
    stream: Stream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept_s: float,
    holds: bool,
) -> None:
    leave_out(monkeypatch, stream.topic, b"c7")
    monkeypatch.setattr(edge, "retentions", lambda *_: {stream.topic: Retention(kept_s)})
    publish(scene, stream, range(10), tmp_path / "spool")
    spans = bounds({"bootstrap.servers": scene.kafka}, stream.topic).spans
    quiet = next(number for number, span in spans.items() if span.end == 0)
    producer = Producer({"bootstrap.servers": scene.kafka})
    producer.produce(stream.topic, b"long ago", partition=quiet)
    assert producer.flush(30) == 0
    expire(scene, stream.topic, quiet)
    assert crossed(scene, stream, recount=True) == [10, 9, holds]


def test_notes_that_expired_unheard_make_nobody_a_direct_publisher(
    scene: Scene, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: str
) -> None:
    """Also at the first audit, and at all that follow."""
    kafka = {"bootstrap.servers": scene.kafka}
    publish(scene, stream, range(50), tmp_path / "spool")
    heard = bounds(kafka, notes).spans[0].end
    publish(scene, stream, range(50, 60), tmp_path / "spool")
    expire(scene, notes, 0, heard)
    for lost in ({Partition(notes, 0): Span(0, heard)}, {}):
        ledger = Edge(kafka, Book(kafka))
        lines = ledger.audit([stream])
        assert sum(line.accepted.records for line in lines) == 10
        assert not any(line.judged or line.direct for line in lines)
        assert all(line.holds for line in lines)
        assert ledger.lost == lost
    # What is known to have been sent is missed all the same.
    leave_out(monkeypatch, stream.topic, b"c")
    publish(scene, stream, range(51), tmp_path / "spool")
    accepted_now, _, holds = crossed(scene, stream)
    assert (accepted_now, holds) == (61, False)


def test_what_somebodys_open_transaction_holds_back_is_not_missing(
    scene: Scene, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = {"bootstrap.servers": scene.kafka}
    somebody = Producer(
        {**kafka, "transactional.id": scene.topic, "transaction.timeout.ms": 600_000}
    )
    somebody.init_transactions(30)
    somebody.begin_transaction()
    for number in range(scene.partitions):
        somebody.produce(stream.topic, b"not yet", partition=number)
    assert somebody.flush(30) == 0
    publish(scene, stream, range(10), tmp_path / "spool")
    settle_s = edge._SETTLE_S
    monkeypatch.setattr(edge, "_SETTLE_S", 0.0)
    lines = Edge(kafka, Book(kafka)).audit([stream])
    assert all(line.holds and not line.judged for line in lines)
    # It hides nothing of hours that were over before it began.
    with monkeypatch.context() as later:
        later.setattr(edge, "_OPEN_US", -2 * HOUR_US)
        assert crossed(scene, stream) == [10, 0, False]
    # It ends while the audit waits.
    monkeypatch.setattr(edge, "_SETTLE_S", settle_s)
    ends = [somebody.abort_transaction]

    def sleep(seconds: float) -> None:
        if ends:
            ends.pop()(30)
        time.sleep(seconds)

    clock = SimpleNamespace(monotonic=time.monotonic, time_ns=time.time_ns, sleep=sleep)
    monkeypatch.setattr(edge, "time", clock)
    lines = Edge(kafka, Book(kafka)).audit([stream])
    assert not ends
    assert sum(line.entered.records for line in lines) == 10
    assert all(line.holds and line.judged for line in lines)


@pytest.mark.parametrize("change", ["dropped", "another"])
def test_a_record_that_is_lost_or_changed_between_spool_and_kafka_is_found(
    scene: Scene, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    queue = Transactions._queue

    def tampered(self: Transactions, producer: Any, topic: str, rows: list[dict[str, Any]]) -> None:
        if topic == stream.topic and any(b"c7" in row["value"] for row in rows):
            rows = [row for row in rows if b"c7" not in row["value"]]
            if change == "another":
                rows.append({"value": b"forged", "key": None})
        queue(self, producer, topic, rows)

    monkeypatch.setattr(Transactions, "_queue", tampered)
    publish(scene, stream, range(10), tmp_path / "spool")
    entered = 9 if change == "dropped" else 10
    assert crossed(scene, stream) == [10, entered, False]
    assert crossed(scene, stream, recount=True) == [10, entered, False]
    if change == "dropped":
        assert audited(scene, code=1)["difference"] == 1


def test_a_topic_that_was_deleted_is_not_all_well(
    scene: Scene, stream: Stream, tmp_path: Path
) -> None:
    publish(scene, stream, range(10), tmp_path / "spool")
    assert crossed(scene, stream) == [10, 10, True]
    scene.admin.delete_topics([stream.topic])[stream.topic].result(20)
    ids = TopicIds({"bootstrap.servers": scene.kafka})
    until(lambda: stream.topic not in ids([stream.topic]), "the topic's end")
    said = scene.headrace("audit", "--to", "kafka", code=1)
    assert f"kafka has no topic {stream.topic}, into which spools have sent" in said
    assert "all 10" not in said
    assert "nothing has come" not in said
    assert "has no topic" not in scene.headrace("audit", "--to", "kafka", "--until", "2020-01-01")


@pytest.mark.parametrize("of", ["topic", "notes"])
def test_a_kafka_that_lost_what_was_counted_is_not_all_well(
    scene: Scene, stream: Stream, tmp_path: Path, notes: str, of: str
) -> None:
    publish(scene, stream, range(10), tmp_path / "spool")
    kafka = {"bootstrap.servers": scene.kafka}
    book = Book(kafka)
    Edge(kafka, book).audit([stream])
    if of == "topic":
        (key, (end, since_us)) = next(
            (k, v) for k, v in book.kept("crossed").items() if k[0] == stream.topic and v[0]
        )
        place = f"{Partition(stream.topic, int(key[2]))}"
        book.keep({"crossed": {key: [end + 1, since_us]}})
    else:
        ((key, (end,)),) = [one for one in book.kept("heard").items() if len(one[0]) == 1]
        place = f"{Partition(notes, 0)}"
        book.keep({"heard": {key: [end + 1]}})
    ledger = Edge(kafka, book)
    ledger.audit([stream])
    (doubt,) = ledger.doubts
    assert f"{place} was counted up to {end + 1}, but its log ends at {end}" in doubt.why
    assert doubt.hours is None
    again = Edge(kafka, book)
    lines = again.audit([stream], recount=True)
    assert not again.doubts, "and what is counted anew does not need the book"
    assert all(line.holds for line in lines)
    assert any(line.judged for line in lines) == (of == "topic")


def test_a_transaction_that_is_not_committed_leaves_no_entry(
    scene: Scene, stream: Stream, tmp_path: Path
) -> None:
    """Its records are sent again, and counted once."""
    with Spool(tmp_path / "spool") as spool, closing(spool.reader()) as reader:
        spool.append(
            [Record(stream.topic, b"d", b"%d" % n, None, "web") for n in range(5)]
        ).result()
        dying = Transactions({"bootstrap.servers": scene.kafka}, spool.node)
        begin(Relay(spool, reader, dying))
        batch = reader.batch(0, 10, 1000)
        assert batch is not None
        assert batch.sums[stream.topic, "web"].hash == sum(zlib.crc32(b"%d" % n) for n in range(5))
        dying.send(batch, 5)
        assert dying._producer is not None
        dying._producer.flush(30)
        door = Transactions({"bootstrap.servers": scene.kafka}, spool.node)
        relay = Relay(spool, reader, door)
        begin(relay)
        assert relay.step()
        door.close()
        dying.close()
    assert crossed(scene, stream) == [5, 5, True]
