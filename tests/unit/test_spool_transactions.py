"""Transactions: what becomes of a transaction when something goes wrong in it."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

from ingest.settings import SettingError
from ingest.spool import transactions
from ingest.spool.batch import Batch
from ingest.spool.entry import EDGE
from ingest.spool.transactions import Aborted, Broken, Transactions


class Producer:
    """Notes what it is called for, and the values that it has queued."""

    def __init__(self, room: int = 1000, answer: KafkaError | None = None) -> None:
        self._room, self._free = room, room
        # What the commit is answered with.
        self._answer = answer
        self.calls: list[str] = []
        self.queued: dict[str, list[bytes]] = {}
        self.partitions: dict[str, int] = {}

    def begin_transaction(self) -> None:
        self.calls.append("begin")

    def produce_batch(
        self, topic: str, rows: list[dict[str, Any]], partition: int, *_watched: object
    ) -> int:
        self.partitions[topic] = partition
        taken, self._free = rows[: self._free], max(self._free - len(rows), 0)
        self.queued.setdefault(topic, []).extend(row["value"] for row in taken)
        for row in rows[len(taken) :]:
            row["_error"] = KafkaError(KafkaError._QUEUE_FULL)
        return len(taken)

    def poll(self, _timeout_s: float) -> int:
        self._free = self._room
        return 0

    def send_offsets_to_transaction(self, *_: object) -> None:
        self.calls.append("position")

    def commit_transaction(self, _timeout_s: float) -> None:
        self.calls.append("commit")
        if self._answer is not None:
            raise KafkaException(self._answer)

    def abort_transaction(self, _timeout_s: float) -> None:
        self.calls.append("abort")


def over(producer: Producer) -> Transactions:
    """It is being stopped, so that nothing is tried for long."""
    found = Transactions({"bootstrap.servers": "127.0.0.1:1"}, "n", stopping=lambda: True)
    found._producer = producer  # type: ignore[assignment] # as much as it needs
    return found


def batch(count: int) -> Batch:
    made = Batch(0)
    made.end = count
    made.rows = {"t": [{"value": b"%d" % n, "key": None} for n in range(count)]}
    return made


def test_records_of_a_transaction_are_of_one_hour_as_its_entry_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hours = [7, 8, 8, 8]
    monkeypatch.setattr(transactions, "_hour", lambda: hours.pop(0))
    producer = Producer()
    one = over(producer)
    with pytest.raises(Aborted, match="an hour ended"):
        one.send(batch(1), 1)
    assert producer.calls == ["begin", "abort"]
    one.send(batch(1), 1)
    assert producer.calls == ["begin", "abort", "begin"]


@pytest.mark.parametrize("watching", [False, True])
def test_records_that_the_queue_has_no_room_for_are_sent_too(watching: bool) -> None:
    producer = Producer(room=3)
    one = over(producer)
    one._watching = watching
    one.send(batch(10), 10)
    assert len(producer.queued[EDGE]) == 1
    assert producer.queued["t"] == [b"%d" % n for n in range(10)]


def test_a_commit_that_takes_too_long_is_never_followed_by_an_abort() -> None:
    """It may be under way."""
    late = KafkaError(KafkaError._TIMED_OUT, "late", False, True, False)
    producer = Producer(answer=late)
    with pytest.raises(Broken, match="takes too long to commit"):
        over(producer).commit(5, "note")
    assert producer.calls == ["begin", "position", "commit"]


@pytest.mark.parametrize("name", ["batch.size", "message.max.bytes"])
def test_a_size_that_is_no_number_is_a_setting_to_mend(name: str) -> None:
    """And no fault of ours, which the relay would try again for ever."""
    made = Transactions({"bootstrap.servers": "127.0.0.1:1", name: "1k"}, "n")
    with pytest.raises(SettingError, match=f"{name} = '1k' must be a whole number"):
        made._make_producer()


def test_an_entry_goes_to_the_partition_that_the_audit_reads() -> None:
    """Somebody had made headrace_edge with six: the audit heard of one spool of three, and said
    that all of them were there."""
    producer = Producer()
    over(producer).send(batch(1), 1)
    assert producer.partitions == {EDGE: 0, "t": -1}


def test_the_position_is_asked_for_with_all_settings_that_records_are_sent_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the certificate was not to be looked at, nothing was ever sent, for this one client
    did, and said that it timed out."""
    asked: dict[str, Any] = {}

    def consumer(settings: dict[str, Any]) -> Any:
        asked.update(settings)
        raise SettingError("enough")

    monkeypatch.setattr(transactions, "Consumer", consumer)
    kafka = {"enable.ssl.certificate.verification": False, "client.dns.lookup": "use_all_dns_ips"}
    with pytest.raises(SettingError, match="enough"):
        Transactions({"bootstrap.servers": "k:1", **kafka}, "n").look()
    assert asked.items() >= kafka.items()


def test_an_acl_that_is_missing_is_named() -> None:
    """What another's refusal had purged was said to be the trouble, and of its topic."""
    code = KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    one = over(Producer(answer=KafkaError(code)))
    one._report(KafkaError(KafkaError._PURGE_QUEUE), Message(topic="t"))
    with pytest.raises(Broken, match=r"failed; .* WRITE on the transactional id headrace-spool-n$"):
        one.commit(1, "")


def test_the_acl_that_is_missing_is_named_where_the_client_raises_it_from_a_poll_too() -> None:
    """What is fatal it raises once from any call: the relay "has failed", with a traceback."""
    denied = KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, fatal=True)

    class Refused(Producer):
        def poll(self, _timeout_s: float) -> int:
            raise KafkaException(denied)

    with pytest.raises(Broken, match=r"needs WRITE on the transactional id headrace-spool-n$"):
        over(Refused(answer=denied)).commit(7, "")
