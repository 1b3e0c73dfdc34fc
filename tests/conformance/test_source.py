"""What sinks rely on when they ask Kafka: consumers.sinks.Log, on a real consumer group."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from tcp_proxy import Proxy
from waiting import until

from consumers.batch import Partition
from consumers.errors import Fenced, Systemic, Unavailable
from consumers.group import GroupSource
from consumers.lookup import Lookup
from consumers.source import Listener
from headrace.stack import Endpoints
from ingest.topics import ensure


class Member:
    """A member of the group, and what it was told."""

    def __init__(
        self, endpoints: Endpoints, group: str, topic: str, protocol: str = "consumer"
    ) -> None:
        self.owned: set[Partition] = set()
        self.group = group
        kafka = {"bootstrap.servers": endpoints.kafka, "group.protocol": protocol}
        self.source = GroupSource(kafka, group, [topic], self)
        self._closed = False

    def close(self) -> None:
        """Leave the group, once."""
        if not self._closed:
            self._closed = True
            self.source.close()

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        self.owned |= set(partitions)

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        self.owned -= set(partitions)

    on_lost = on_revoked

    def commit(self, partition: Partition, offset: int, note: str) -> None:
        """As a lane does: from another thread, while this one polls."""
        raised: list[BaseException] = []

        def lane() -> None:
            try:
                self.source.commit({partition: offset}, note)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=lane)
        thread.start()
        while thread.is_alive():
            self.source.poll(1, 0.02)
        for error in raised:
            raise error


def settle(*members: Member, share: int) -> None:
    """Poll until each has as many partitions."""
    deadline = time.monotonic() + 60
    while any(len(member.owned) != share for member in members):
        assert time.monotonic() < deadline, "the group does not settle"
        for member in members:
            member.source.poll(10, 0.05)


@pytest.fixture
def two(endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[tuple[Member, Member]]:
    """Two members that share a topic's partitions; the second came later."""
    topic = unique("topic")
    admin = AdminClient({"bootstrap.servers": endpoints.kafka})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    group = unique("group")
    with ExitStack() as stack:
        members: list[Member] = []
        for share in (2, 1):
            members.append(Member(endpoints, group, topic))
            stack.callback(members[-1].close)
            settle(*members, share=share)
        yield members[0], members[1]


def test_a_member_that_gave_a_partition_back_can_not_move_its_position(
    two: tuple[Member, Member],
) -> None:
    """Kafka itself asks only whether it is still a member, and would take it."""
    first, second = two
    (moved,) = second.owned
    for member in two:
        member.source.known([moved])
    second.commit(moved, 5, "the new owner's intent")
    with pytest.raises(Fenced):
        first.commit(moved, 3, "")
    found = second.source.known([moved])[moved]
    assert (found.committed, found.note) == (5, "the new owner's intent")


def test_a_partition_that_went_and_came_back_has_to_be_asked_for_again(
    two: tuple[Member, Member],
) -> None:
    """What was under way for it belongs to the time before: another one has moved its position."""
    first, second = two
    (moved,) = second.owned
    # As long as it was the first one's, too.
    first.source.known([moved])
    second.source.known([moved])
    second.commit(moved, 5, "")
    second.close()
    deadline = time.monotonic() + 60
    while moved not in first.owned:
        assert time.monotonic() < deadline, "it does not come back"
        first.source.poll(10, 0.05)
    assert moved not in first.source.owned()
    with pytest.raises(Fenced):
        first.commit(moved, 3, "")
    assert first.source.known([moved])[moved].committed == 5
    assert moved in first.source.owned()
    first.commit(moved, 6, "")
    assert first.source.known([moved])[moved].committed == 6


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_partition_whose_next_offset_kafka_has_removed_can_be_placed_anew(
    endpoints: Endpoints, unique: Callable[[str], str], protocol: str
) -> None:
    """librdkafka ends its fetching then, and refuses every seek from there on."""
    topic = unique("topic")
    partition = Partition(topic, 0)
    kafka = {"bootstrap.servers": endpoints.kafka}
    admin = AdminClient(kafka)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    producer = Producer(kafka)
    for i in range(100):
        producer.produce(topic, str(i).encode())
    assert producer.flush(30) == 0
    [removed] = admin.delete_records([TopicPartition(topic, 0, 50)]).values()
    removed.result(30)
    with closing(Member(endpoints, unique("group"), topic, protocol)) as member:
        deadline = time.monotonic() + 60

        def poll_until(condition: Callable[[], bool], what: str) -> list[Message]:
            found: list[Message] = []
            while not condition():
                assert time.monotonic() < deadline, what
                found += member.source.poll(100, 0.05).get(partition, [])
            return found

        poll_until(lambda: partition in member.owned, "it is not given to us")
        for _ in range(2):
            poll_until(lambda: member.source.seek(partition, 0), "it can't be placed")
            poll_until(lambda: partition in member.source.replace, "nobody says that 0 is gone")
            # As the run loop does before it asks the sink.
            member.source.replace.discard(partition)
            member.source.pause([partition])
            poll_until(lambda: member.source.seek(partition, 60), "it can't be placed anew")
            found = poll_until(lambda: member.source.ends.get(partition) == 100, "it is not read")
            assert [message.offset() for message in found] == list(range(60, 100))
        # It is a member like any other: partitions still move.
        other = Member(endpoints, member.group, topic, protocol)
        member.close()
        try:
            while partition not in other.owned:
                assert time.monotonic() < deadline, "it does not move"
                other.source.poll(10, 0.05)
        finally:
            other.close()


def test_what_kafka_wants_back_in_an_answer_that_comes_too_late_is_given_all_the_same(
    endpoints: Endpoints, unique: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """librdkafka gives a heartbeat up after a second here, and Kafka does not say it again."""
    topic, group = unique("topic"), unique("group")
    ensure({"bootstrap.servers": endpoints.kafka}, {topic: 2})
    host, port = endpoints.kafka.split(":")
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(host, int(port)))
        # A broker's address in the protocol: the host, and behind it the port in four bytes.
        proxy.rewrite(*(host.encode() + struct.pack(">i", p) for p in (int(port), proxy.port)))
        far = Member(replace(endpoints, kafka=f"{host}:{proxy.port}"), group, topic)
        stack.callback(far.close)
        settle(far, share=2)
        proxy.hold("down")
        near = Member(endpoints, group, topic)
        stack.callback(near.close)
        # Longer than a heartbeat and the time after which it is given up; Kafka keeps us for 6 s.
        late = time.monotonic() + 3.0
        while time.monotonic() < late:
            near.source.poll(10, 0.05)
        proxy.release()
        settle(far, near, share=1)
    # It was the answer that was lost, and nothing else.
    assert "joining anew" in caplog.text


def test_a_client_that_does_not_find_its_group_is_followed_by_another(
    two: tuple[Member, Member], caplog: pytest.LogCaptureFixture
) -> None:
    """A coordinator that has just come back may not know the group: who joins makes it known."""
    first, second = two
    was = first.source._consumer
    reason = f"Fatal error: {KafkaError(KafkaError.GROUP_ID_NOT_FOUND).str()}: and so on"
    first.source._judge(Mock(spec=Message), KafkaError(KafkaError._FATAL, reason))
    deadline = time.monotonic() + 60
    while first.source._consumer is was or len(first.owned) != 1 or len(second.owned) != 1:
        assert time.monotonic() < deadline, "it does not join anew"
        first.source.poll(10, 0.05)
        second.source.poll(10, 0.05)
    assert reason in caplog.text


def test_a_client_that_can_not_go_on_for_good_is_for_a_person(
    endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    topic = unique("topic")
    ensure({"bootstrap.servers": endpoints.kafka}, {topic: 1})
    kafka = {"bootstrap.servers": endpoints.kafka, "group.remote.assignor": "nobody-has-this-one"}
    with closing(GroupSource(kafka, unique("group"), [topic], Mock(spec=Listener))) as source:
        deadline = time.monotonic() + 60
        with pytest.raises(Systemic, match="assignor"):
            while time.monotonic() < deadline:
                source.poll(10, 0.05)


def test_an_owner_moves_its_position_and_says_why(two: tuple[Member, Member]) -> None:
    first, second = two
    for member, offset in ((first, 3), (second, 4)):
        (partition,) = member.owned
        member.source.known([partition])
        member.commit(partition, offset, f"note {offset}")
        found = member.source.known([partition])[partition]
        assert (found.committed, found.note, found.earliest) == (offset, f"note {offset}", 0)
        assert found.topic_id == member.source.topic_id(partition)


def test_a_partition_that_was_added_is_known_at_once(
    endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    """What a client knows of a topic may be five minutes old."""
    topic = unique("topic")
    admin = AdminClient({"bootstrap.servers": endpoints.kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    with closing(Lookup({"bootstrap.servers": endpoints.kafka}, unique("group"), [topic])) as ask:
        first, second = Partition(topic, 0), Partition(topic, 1)
        assert ask.known([first])[first].latest == 0
        admin.create_partitions([NewPartitions(topic, 2)])[topic].result(30)

        def known() -> bool:
            try:
                found = ask.known([first, second])
            except Unavailable:  # it has no leader yet; whoever asks asks again
                return False
            return (found[second].earliest, found[second].latest) == (0, 0)

        until(known, "the new partition", 30.0)


class Leaving:
    """A consumer that notes that it is being closed."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def close(self) -> None:
        """Close it."""
        self.closing = True
        self._consumer.close()


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_what_comes_while_a_member_leaves_is_given_back_before_it_closes(
    endpoints: Endpoints, unique: Callable[[str], str], protocol: str
) -> None:
    """Within close() librdkafka may not answer what a rebalance calls, and hang."""
    topic, group = unique("topic"), unique("group")
    admin = AdminClient({"bootstrap.servers": endpoints.kafka})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    told: list[tuple[str, bool]] = []

    class Told(Member):
        def on_assigned(self, partitions: Sequence[Partition]) -> None:
            told.append(("given", leaving.closing))

        def on_revoked(self, partitions: Sequence[Partition]) -> None:
            told.append(("gave back", leaving.closing))

        on_lost = on_revoked

    member = Told(endpoints, group, topic, protocol)
    leaving = Leaving(member.source._consumer)
    member.source._consumer = leaving  # type: ignore[assignment]

    def given() -> bool:
        try:
            found = admin.describe_consumer_groups([group])[group].result(30).members
        except KafkaException:  # the coordinator of a fresh Kafka is still loading
            return False
        return any(m.assignment and m.assignment.topic_partitions for m in found)

    # By Kafka; it has not polled, so it does not know.
    until(given, "partitions that it is given", 60.0)
    member.close()
    assert told in ([], [("given", False), ("gave back", False)])
    assert not given()
