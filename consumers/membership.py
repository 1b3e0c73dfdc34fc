"""Whether Kafka and we agree on which partitions are ours; it heals what an answer that was lost leaves.

With `group.protocol=consumer` the coordinator says once what a member's partitions are, in its
answer to a heartbeat, and again only when they change. librdkafka (2.16.1) gives a heartbeat up
after one heartbeat interval, and does not ask for everything with the next one, as it does when the
connection breaks and as Kafka's own client always does. So an answer that takes longer, from a
broker that stood still for some seconds, is lost with what it said:
- of partitions that it gave us nobody reads a record, for good: Kafka hears us, and waits
- what it wants back we keep, and nobody else gets, until max.poll.interval.ms has passed
What Kafka believes can be asked, so it is; who leaves the group and joins anew is told everything.
"""  # noqa: E501

from __future__ import annotations

import time
from collections.abc import Callable, Set
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumers.batch import Partition
from consumers.client import QUIET, Settings

__all__ = ["Membership"]

# How often Kafka is asked, and how long it may take to answer, in seconds.
_EVERY_S = 5.0
# How long we have to differ over the same, in seconds: longer than any rebalance is under way
# between an answer to a heartbeat and the callback that is served by the next poll. It doubles each
# time that joining anew has not helped.
_PATIENCE_S = 10.0
_MOST_S = 600.0


class Membership:
    """Of one member of a group; for its polling thread, and nothing here waits."""

    def __init__(self, kafka: Settings, group: str) -> None:
        self._kafka, self._group = kafka, group
        self._admin: AdminClient | None = None
        self._asked: tuple[Set[Partition], str, Future[Any]] | None = None
        self._due_at = 0.0
        # What we had and what Kafka says that we have, and since when.
        self._differ: tuple[Set[Partition], Set[Partition]] | None = None
        self._since = 0.0
        self._patience_s = _PATIENCE_S

    def differs(self, ours: Set[Partition], member: Callable[[], str | None]) -> Set[Partition]:
        """On which partitions we have differed for long; to be called at each turn, then join anew.

        `member` tells our id in the group.
        """
        now = time.monotonic()
        if self._asked is None:
            if now >= self._due_at:
                self._due_at = now + _EVERY_S
                self._ask(frozenset(ours), member())
            return frozenset()
        asked_of, name, answer = self._asked
        if not answer.done():
            return frozenset()
        self._asked = None
        theirs = _assigned(answer, name)
        # What was rebalanced while we asked says nothing.
        if theirs is None or asked_of != ours:
            self._differ = None
        elif theirs == ours:
            self._differ, self._patience_s = None, _PATIENCE_S
        elif self._differ != (asked_of, theirs):
            self._differ, self._since = (asked_of, theirs), now
        elif now - self._since >= self._patience_s:
            self._differ = None
            self._patience_s = min(2 * self._patience_s, _MOST_S)
            return theirs ^ asked_of
        return frozenset()

    def _ask(self, ours: Set[Partition], name: str | None) -> None:
        if not name:
            return
        if self._admin is None:
            self._admin = AdminClient({**QUIET, **self._kafka})
        asked = self._admin.describe_consumer_groups([self._group], request_timeout=_EVERY_S)
        self._asked = ours, name, asked[self._group]


def _assigned(answer: Future[Any], name: str) -> Set[Partition] | None:
    """The member's partitions; None where Kafka does not say, or has no such member."""
    try:
        members = answer.result().members
    except (KafkaException, ValueError):
        return None
    for member in members:
        if member.member_id == name:
            return frozenset(
                Partition(p.topic, p.partition) for p in member.assignment.topic_partitions
            )
    return None
