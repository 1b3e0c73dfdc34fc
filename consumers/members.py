"""Who is in consumer groups now, asked from outside."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from consumers.batch import Partition
from consumers.client import DENIED, QUIET, Settings, denied, text
from consumers.errors import Unavailable

__all__ = ["MOVING", "all_committed", "groups", "members"]

T = TypeVar("T")

_ASK_S = 10.0
_AGAIN_S = 0.1
# The group's coordinator moves, or is just being made: librdkafka asks it once and gives up.
MOVING = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}


def members(kafka: Settings, groups: Collection[str]) -> dict[str, Counter[str]]:
    """Of each group, by topic, how many processes have partitions of it.

    A group that nobody is in is empty, also where there never was one. Raises Unavailable,
    Systemic.
    """
    if not groups:
        return {}
    admin = AdminClient({**QUIET, **kafka})
    try:
        return _settled(lambda: _ask(admin, list(groups)))
    except (KafkaException, TimeoutError) as error:
        if isinstance(error, KafkaException) and error.args[0].code() in DENIED:
            needed = " and ".join(groups)
            raise denied(error.args[0], group=needed, act="DESCRIBE") from error
        raise Unavailable(f"Kafka does not say who reads: {text(error)}") from error


def groups(kafka: Settings) -> list[str]:
    """The groups that Kafka knows, also those that nobody is in now. Raises Unavailable."""
    admin = AdminClient({**QUIET, **kafka})
    try:
        found = admin.list_consumer_groups(request_timeout=_ASK_S).result(_ASK_S + 1)
    except (KafkaException, TimeoutError) as error:
        raise Unavailable(f"Kafka does not list its groups: {text(error)}") from error
    return sorted(group.group_id for group in found.valid)


def all_committed(kafka: Settings, group: str) -> dict[Partition, int]:
    """The offsets that a group has committed, of whatever topics. Raises Unavailable."""
    admin = AdminClient({**QUIET, **kafka})

    def ask() -> Sequence[TopicPartition]:
        asked = admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group)], request_timeout=_ASK_S
        )
        return asked[group].result(_ASK_S + 1).topic_partitions or []

    try:
        found = _settled(ask)
    except (KafkaException, TimeoutError) as error:
        raise Unavailable(f"Kafka does not say where {group} is: {text(error)}") from error
    return {Partition(p.topic, p.partition): p.offset for p in found if p.offset >= 0}


def _settled(ask: Callable[[], T]) -> T:
    """The answer, asked for again while the group's coordinator moves."""
    deadline = time.monotonic() + _ASK_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in MOVING or time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN_S)


def _ask(admin: AdminClient, groups: list[str]) -> dict[str, Counter[str]]:
    asked = admin.describe_consumer_groups(groups, request_timeout=_ASK_S)
    return {
        name: Counter(
            topic
            for member in answer.result(_ASK_S + 1).members
            for topic in {p.topic for p in member.assignment.topic_partitions}
        )
        for name, answer in asked.items()
    }
