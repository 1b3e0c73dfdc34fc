"""Following the topic of jobs: through outages of Kafka, and through what goes wrong in the thread."""  # noqa: E501

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from waiting import until

from consumers.batch import Span
from consumers.errors import Systemic, Unavailable
from consumers.replay import jobs as jobs_
from consumers.replay import jobs_topic
from consumers.replay.job import Job, Origin, State
from consumers.replay.jobs import Jobs
from consumers.replay.outage import Board
from ingest.topics import TopicError


def job(id_: str, **changes: Any) -> Job:
    known: dict[str, Any] = {
        "id": id_, "to": "heap", "stream": "raw_events", "topic_id": "t", "begin_us": 1,
        "end_us": 9, "lateness_s": 0.0, "spans": {0: Span(3, 7)}, "created_us": 11,
        "origin": Origin.OUTAGE,
    }  # fmt: skip
    return Job(**known | changes)


class Kafka:
    """The topic, and the clients that read it: of those that are deaf none hears anything more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: list[bytes] = []
        # Of a record that does not say it by its value.
        self.keys: dict[int, bytes] = {}
        self.at_put: Callable[[], None] | None = None
        self.clients: list[Client] = []
        self.away = False
        monkeypatch.setattr(jobs_topic, "Consumer", self.client)
        monkeypatch.setattr(jobs_topic, "_LOOK_EVERY_S", 0.01)
        monkeypatch.setattr(jobs_, "_AGAIN_S", 0.01)
        monkeypatch.setattr(jobs_, "Producer", lambda _settings: self)

    def client(self, _settings: object) -> Client:
        self.clients.append(Client(self))
        return self.clients[-1]

    def put(self, *found: Job) -> None:
        self.values += [one.value() for one in found]

    def put_raw(self, id_: str, value: bytes) -> None:
        self.keys[len(self.values)] = id_.encode()
        self.values.append(value)

    # a Producer

    def produce(
        self, _topic: str, value: bytes, _id: str, partition: int, on_delivery: Callable[..., None]
    ) -> None:
        assert partition == 0, "which is the one that is read, however many there are"
        if (look := self.at_put) is not None:
            self.at_put = None
            look()
        self.values.append(value)
        on_delivery(None, Message(topic="headrace_replays", offset=len(self.values) - 1))

    def flush(self, _timeout_s: float) -> int:
        return 0

    def be_away_for_a_moment(self) -> None:
        """All brokers: whoever knew them has forgotten them by the time they are back."""
        for client in list(self.clients):
            client.deaf = True


class Client:
    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self.deaf = self.closed = False
        self.at = -1

    def assign(self, places: list[Any]) -> None:
        self.at = places[0].offset

    def get_watermark_offsets(self, *_: object) -> tuple[int, int]:
        if self.deaf or self.kafka.away:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return 0, len(self.kafka.values)

    def consume(self, n: int, timeout_s: float) -> list[Message]:
        if self.deaf or self.kafka.away or self.at >= len(self.kafka.values):
            time.sleep(min(timeout_s, 0.001))
            return []
        found = [
            Message(
                topic="headrace_replays",
                partition=0,
                offset=at,
                value=self.kafka.values[at],
                key=self.kafka.keys.get(at),
            )
            for at in range(self.at, min(self.at + n, len(self.kafka.values)))
        ]
        self.at += len(found)
        return found

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


@contextmanager
def following(tell: Callable[[Job], None], since: int = -1) -> Iterator[None]:
    with Jobs({}, look=True).follow(tell, since):
        yield


def test_a_client_that_has_gone_deaf_is_followed_by_another_that_reads_on(kafka: Kafka) -> None:
    told: list[Job] = []
    kafka.put(job("a"), job("b"))
    with following(told.append, since=0):
        until(lambda: told)
        kafka.be_away_for_a_moment()
        kafka.put(job("b", state=State.PAUSED), job("c"))
        until(lambda: len(told) == 3)
    assert [(one.id, one.state) for one in told] == [
        ("b", State.OPEN), ("b", State.PAUSED), ("c", State.OPEN),
    ]  # fmt: skip
    assert all(client.closed for client in kafka.clients)


def test_while_kafka_is_away_it_is_tried_on_and_said_once_in_a_while(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Job] = []
    kafka.away = True
    with following(told.append):
        until(lambda: len(kafka.clients) > 3)
        kafka.put(job("a"))
        kafka.away = False
        until(lambda: told)
    assert len([r for r in caplog.records if "can't be followed" in r.message]) == 1


def test_what_has_not_changed_is_no_news_behind_an_outage_of_kafka(kafka: Kafka) -> None:
    """For what is told again is tried again, see Filling."""
    board = Board(Jobs({}, look=True))
    kafka.put(job("a"))
    with board.following():
        until(lambda: board.of("heap"))
        (before,) = board.of("heap")
        kafka.be_away_for_a_moment()
        kafka.put(job("b"))
        until(lambda: len(board.of("heap")) == 2)
        assert board.of("heap")[0] is before


def test_an_exception_in_the_thread_is_said_and_followed_by_another_start(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Job] = []

    def tell(one: Job) -> None:
        told.append(one)
        if one.id == "a":
            raise RuntimeError("a bug, by the test")

    kafka.put(job("a"), job("b"))
    with following(tell):
        until(lambda: len(told) == 2)
    assert [one.id for one in told] == ["a", "b"], "it is not stopped by it for ever"
    (record,) = [r for r in caplog.records if r.exc_info is not None]
    assert "following replays failed" in record.message


def test_a_record_that_is_no_job_is_passed_over(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Job] = []
    kafka.values.append(b"{}")
    kafka.put(job("a"))
    with following(told.append):
        until(lambda: told)
    assert "passed over" in caplog.text
    assert len(kafka.clients) == 1


def test_it_ends_with_its_block(kafka: Kafka) -> None:
    with following(lambda _: None):
        until(lambda: kafka.clients)
    assert not [t for t in threading.enumerate() if t.name == "watch-replays"]


@pytest.mark.parametrize("denied", [False, True])
def test_a_topic_that_may_not_be_made_is_for_a_person_and_an_absent_kafka_is_not(
    denied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure(*_: object) -> None:
        raise TopicError("no", denied=denied)

    monkeypatch.setattr(jobs_, "ensure", ensure)
    with pytest.raises(Systemic if denied else Unavailable):
        Jobs({})


def test_a_topic_whose_partition_has_no_leader_is_not_one_without_replays(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage's job was noted once more then, and an audit heard of none."""
    kafka.put(job("a"))
    code = KafkaError._UNKNOWN_PARTITION
    asked = Client.get_watermark_offsets
    leaderless = [KafkaException(KafkaError(code))] * 2

    def get_watermark_offsets(client: Client, *_: object) -> tuple[int, int]:
        if leaderless:
            raise leaderless.pop()
        return asked(client)

    one = SimpleNamespace(error=None)
    listed = SimpleNamespace(topics={"headrace_replays": one})
    monkeypatch.setattr(Client, "get_watermark_offsets", get_watermark_offsets)
    monkeypatch.setattr(Client, "list_topics", lambda *_: listed, raising=False)
    monkeypatch.setattr(jobs_topic, "_AGAIN_S", 0.0)
    assert Jobs({}, look=True).ids() == {"a"}, "it is there as soon as there is one"
    monkeypatch.setattr(jobs_topic, "_ASK_S", 0.0)
    leaderless += [KafkaException(KafkaError(code))] * 9
    with pytest.raises(Unavailable, match="no leader"):
        Jobs({}, look=True).all()
    one.error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    assert Jobs({}, look=True).all() == {}, "without a topic there are none"


# -- records of another headrace -------------------------------------------------------------------


def test_a_field_that_a_newer_headrace_has_added_is_passed_over(kafka: Kafka) -> None:
    """Else its first job would stop the older forwarders of a rolling upgrade."""
    kafka.values.append(job("a").value().replace(b'{"v":1,', b'{"v":1,"newer":true,'))
    assert Jobs({}, look=True).all() == {"a": job("a")}


def test_one_record_that_can_not_be_read_is_no_other_replays_trouble(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """But who has to know of all of them is told: else an audit would take it for done."""
    newer = job("b").value().replace(b'"v":1', b'"v":2')
    kafka.put(job("a"), job("b"))
    kafka.put_raw("b", newer)
    jobs = Jobs({}, look=True)
    assert jobs.readable() == {"a": job("a")}, "not as it was before"
    assert caplog.text.count("written by a newer headrace?") == 1
    assert jobs.ids() == {"a", "b"}, "so that no second job is made of its gap"
    assert jobs.get("a") == job("a")
    for asked in (jobs.all, lambda: jobs.get("b")):
        with pytest.raises(Systemic, match="newer headrace"):
            asked()
    kafka.put_raw("b", b"")
    assert jobs.all() == {"a": job("a")}, "a tombstone removes it"


# -- what is final ---------------------------------------------------------------------------------


def test_who_goes_on_with_a_job_does_not_undo_that_somebody_has_ended_it(kafka: Kafka) -> None:
    """A resume reads an export for minutes between its two looks at the job."""
    jobs, paused = Jobs({}, look=True), job("a", state=State.PAUSED)
    kafka.put(paused)
    assert jobs.go_on(job("a")) == 1
    assert jobs.get("a").state is State.OPEN
    kafka.put(job("a", state=State.CANCELLED))
    before = list(kafka.values)
    assert jobs.go_on(job("a")) is None
    assert kafka.values == before
    assert jobs.go_on(job("new")) == len(before), "one that there was not yet"


def test_a_cancel_that_comes_just_before_the_put_is_written_again_behind_it(kafka: Kafka) -> None:
    """For all readers it counts at once, and compaction keeps the last record."""
    jobs, cancelled = Jobs({}, look=True), job("a", state=State.CANCELLED)
    kafka.put(job("a", state=State.PAUSED))
    kafka.at_put = lambda: kafka.put(cancelled)
    assert jobs.go_on(job("a")) is None
    assert [Job.read(value).state for value in kafka.values] == [
        State.PAUSED, State.CANCELLED, State.OPEN, State.CANCELLED,
    ]  # fmt: skip
    kafka.put(job("a"))
    assert jobs.get("a") == cancelled, "as an older headrace would write it"
