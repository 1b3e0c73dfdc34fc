"""What an open transaction holds back: it is in Kafka, and nobody reads it before that is over."""

from __future__ import annotations

import time
from collections.abc import Collection

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from consumers.batch import Partition
from consumers.client import QUIET, Settings, text
from consumers.errors import Unavailable

__all__ = ["held"]

_ASK_S = 10.0
_AGAIN_S = 0.5


def held(kafka: Settings, topics: Collection[str], patience_s: float) -> dict[Partition, int]:
    """How many offsets of a partition wait for a transaction that has not ended within this time.

    Answers at once where none is open. Raises Unavailable.
    """
    admin = AdminClient({**QUIET, **kafka})
    deadline = time.monotonic() + patience_s
    try:
        listed = admin.list_topics(timeout=_ASK_S).topics
        partitions = [Partition(t, n) for t in topics if t in listed for n in listed[t].partitions]
        readable = _ends(admin, partitions, IsolationLevel.READ_COMMITTED)
        written = _ends(admin, partitions, IsolationLevel.READ_UNCOMMITTED)
        stuck = {p: at for p, at in readable.items() if written[p] > at}
        while stuck and time.monotonic() < deadline:
            time.sleep(_AGAIN_S)
            now = _ends(admin, stuck, IsolationLevel.READ_COMMITTED)
            stuck = {p: at for p, at in stuck.items() if now[p] == at}
    except (KafkaException, TimeoutError) as error:
        raise Unavailable(f"Kafka does not say where its topics end: {text(error)}") from error
    return {partition: written[partition] - at for partition, at in stuck.items()}


def _ends(
    admin: AdminClient, partitions: Collection[Partition], level: IsolationLevel
) -> dict[Partition, int]:
    if not partitions:
        return {}
    asked = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
    answers = admin.list_offsets(asked, isolation_level=level, request_timeout=_ASK_S)
    return {
        Partition(at.topic, at.partition): int(answer.result(_ASK_S + 1).offset)
        for at, answer in answers.items()
    }
