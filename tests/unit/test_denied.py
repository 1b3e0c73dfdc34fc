"""A Kafka with ACLs: what is refused is said to be, with the ACL; it is not away, nor empty."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

from consumers import bounds, deadletters, lookup, members
from consumers.batch import Partition, Span
from consumers.client import denied
from consumers.deadletters import DeadLetter, DeadLetters
from consumers.errors import Systemic, Unavailable
from consumers.forward import receipts
from consumers.forward.receipts import Receipts
from consumers.lookup import Lookup
from consumers.replay import jobs_topic
from consumers.replay.jobs import Jobs
from ingest.collector import node
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN
from ingest.topics import TopicError

TOPIC, GROUP = KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED
RECEIPTS = BUILT_IN["receipts"]
P = Partition("t", 0)


class Refused:
    """A client of somebody who has no ACL at all; `code` is of an error among its records."""

    def __init__(self, code: int = GROUP) -> None:
        self.code = code

    def list_topics(self, topic: str | None = None, *_: object, **__: object) -> Any:
        one = SimpleNamespace(error=KafkaError(TOPIC), partitions={})
        return SimpleNamespace(topics={topic: one} if topic else {})

    def get_watermark_offsets(self, *_: object, **__: object) -> Any:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))

    def committed(self, *_: object, **__: object) -> Any:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def consume(self, *_: object) -> list[Message]:
        return [Message(error=KafkaError(self.code), partition=0)]

    def assign(self, _: object) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "Consumer", lambda _: Refused(TOPIC))
    monkeypatch.setattr(jobs_topic, "Consumer", lambda _: Refused(TOPIC))
    monkeypatch.setattr(lookup, "Consumer", lambda _: Refused())


def test_a_topic_that_we_may_not_see_is_not_said_to_be_missing() -> None:
    with pytest.raises(Systemic, match=r"refuses: .*needs DESCRIBE on the topic t\."):
        bounds.bounds({}, "t")
    with pytest.raises(Systemic, match=r"refuses: .*needs READ on the topic t\."):
        list(bounds.read({}, "t", {0: Span(0, 1)}))
    with pytest.raises(Systemic, match=r"refuses: .*needs DESCRIBE on the topic t\."):
        Lookup({}, "g", ["t"]).all_ends()


def test_replays_that_we_may_not_see_are_not_said_to_be_none() -> None:
    with pytest.raises(Systemic, match=r"READ on the topic headrace_replays\."):
        Jobs({}, look=True).all()


def test_a_group_that_we_may_not_see_has_not_timed_out() -> None:
    with pytest.raises(Systemic, match=r"refuses: .*needs DESCRIBE on the consumer group g\."):
        Lookup({}, "g", ["t"]).committed([P])


def test_a_refusal_that_is_over_does_not_explain_a_kafka_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour later it stopped the process, for which Kafka was only away."""
    said = [Message(error=KafkaError(GROUP), partition=0)]
    client = SimpleNamespace(
        committed=lambda *_, **__: [SimpleNamespace(topic="t", partition=0, offset=7, error=None)],
        consume=lambda *_: [said.pop() for _ in list(said)],
        close=lambda: None,
    )
    monkeypatch.setattr(lookup, "Consumer", lambda _: client)
    asking = Lookup({}, "g", ["t"])
    assert asking.committed([P]) == {P: 7}
    client.committed = Refused().committed
    with pytest.raises(Unavailable):
        asking.committed([P])


def test_a_position_that_we_may_not_see_is_not_said_to_be_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`headrace replay ls` said of a replay that it had done 0%."""
    at = SimpleNamespace(topic="t", partition=0, offset=-1001, error=KafkaError(TOPIC))
    client = SimpleNamespace(committed=lambda *_, **__: [at])
    monkeypatch.setattr(lookup, "Consumer", lambda _: client)
    with pytest.raises(Systemic, match=r"needs DESCRIBE on the topic t\."):
        Lookup({}, "g", ["t"]).committed([P])


def test_who_reads_is_not_asked_again_where_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise KafkaException(KafkaError(GROUP))

    monkeypatch.setattr(members, "AdminClient", lambda _: None)
    monkeypatch.setattr(members, "_ask", refuse)
    with pytest.raises(Systemic, match=r"needs DESCRIBE on the consumer group g\."):
        members.members({}, ["g"])


def test_positions_are_asked_for_again_while_their_coordinator_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a restart of a broker: the doctor asks it of each group, and called that a FAIL."""
    at = SimpleNamespace(topic="t", partition=0, offset=7)
    moving = KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))
    answer = Mock(side_effect=[moving, SimpleNamespace(topic_partitions=[at])])
    asked = Mock(**{"list_consumer_group_offsets.return_value": {"g": Mock(result=answer)}})
    monkeypatch.setattr(members, "AdminClient", lambda _: asked)
    assert members.all_committed({}, "g") == {P: 7}


class Powerless:
    """A producer of whom no topic may be written to. librdkafka's client raises that from flush
    and poll, as fatal, and not in a report; what is produced is refused without a reason."""

    def __init__(self, *_: object) -> None: ...

    def produce(self, *_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL))

    produce_batch = produce

    def poll(self, _timeout_s: float) -> int:
        raise KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, fatal=True))

    flush = poll


def test_who_may_write_to_no_topic_is_told_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended with a traceback."""
    monkeypatch.setattr(deadletters, "Producer", Powerless)
    monkeypatch.setattr(receipts, "Producer", Powerless)
    with pytest.raises(Systemic, match=r"WRITE on the topic receipts\.dlq\."):
        letter = DeadLetter(Message(topic="receipts", partition=0, offset=0), "rejected", "why")
        DeadLetters({}, "postgres").send(RECEIPTS, [letter])
    with pytest.raises(Systemic, match=r"WRITE on the topic receipts\."):
        Receipts({}, RECEIPTS).send([Receipt()])


def test_a_wrong_password_is_not_an_acl() -> None:
    wrong = denied(KafkaError(KafkaError._AUTHENTICATION), "t", group="g")
    assert "needs a valid user and password (sasl.username" in str(wrong)


def test_a_collector_says_what_it_may_not_write_to_and_looks_at_the_other_topics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With an ACL for one stream it never heard that this one's topic was missing."""

    def topic_ids(_kafka: object, names: Sequence[str]) -> dict[str, str]:
        if "hidden" in names:
            raise TopicError("needs DESCRIBE on the topic hidden", denied=True, topics=["hidden"])
        return {}

    one = object.__new__(node.Node)
    one._stop, one._kafka, one.missing_topics = threading.Event(), {}, ()
    one._topics = ["hidden", "gone"]
    monkeypatch.setattr(node, "topic_ids", topic_ids)
    monkeypatch.setattr(one._stop, "wait", lambda _: one._stop.set())
    one._look_for_topics()
    assert one.missing_topics == ("gone",)
    refused, missing = (record.getMessage() for record in caplog.records)
    assert refused.startswith("needs DESCRIBE on the topic hidden; what is for them waits in the")
    assert missing.startswith("topics that do not exist: gone.")
