"""How far the inserters are, asked while they work.

What is asked are positions, because that is cheap and disturbs nobody: those that PostgreSQL keeps
beside its rows, and for ClickHouse those of the consumer group (chDB's directory is open in its
inserter). They say when to look, and no more: every figure that the demo reports is counted in the
data itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from headrace.demo.crew import GROUPS
from headrace.demo.model import CLICKHOUSE, POSTGRES, DemoError
from headrace.demo.place import Place
from ingest.streams import Stream

__all__ = ["Watch"]

_ASK_S = 15.0
_NOT_YET = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.GROUP_ID_NOT_FOUND,
}
_POSITIONS = (
    "SELECT coalesce(sum(next_offset), 0)::bigint FROM headrace_offsets WHERE topic = ANY(%s)"
)


class Watch:
    """Looks at some streams."""

    def __init__(self, place: Place, streams: Sequence[Stream]) -> None:
        self._topics = [stream.topic for stream in streams]
        self._partitions = [
            TopicPartition(stream.topic, number)
            for stream in streams
            for number in range(stream.partitions)
        ]
        kafka = {"bootstrap.servers": place.bootstrap, "log_level": 2}
        self._admin = AdminClient(kafka)
        # Asks for the group's positions and never joins it.
        self._asker = Consumer({**kafka, "group.id": GROUPS[CLICKHOUSE]})
        self._postgres = psycopg.connect(place.endpoints.postgres, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._asker.close()
        self._postgres.close()

    def landed(self) -> dict[str, int]:
        """Records behind the position of each destination."""
        row = self._postgres.execute(_POSITIONS, (self._topics,)).fetchone()
        committed = self._asker.committed(self._partitions, _ASK_S)
        return {
            POSTGRES: 0 if row is None else int(row[0]),
            CLICKHOUSE: sum(max(p.offset, 0) for p in committed),
        }

    def count(self, table: str) -> int:
        """Rows of a table in PostgreSQL, counted."""
        row = self._postgres.execute(f'SELECT count(*) FROM "{table}"').fetchone()  # noqa: S608 - ours
        return 0 if row is None else int(row[0])

    def ready(self, members: dict[str, int]) -> bool:
        """Whether so many members of each destination's group share all partitions."""
        names = [GROUPS[to] for to in members]
        answers = self._admin.describe_consumer_groups(names, request_timeout=_ASK_S)
        for to, wanted in members.items():
            try:
                group = answers[GROUPS[to]].result(_ASK_S)
            except KafkaException as error:
                # A new broker makes its topic of groups when the first member comes.
                if error.args[0].code() in _NOT_YET:
                    return False
                raise DemoError(
                    f"Kafka does not describe a group: {error.args[0].str()}"
                ) from error
            shares = [len(m.assignment.topic_partitions) for m in group.members]
            if len(shares) != wanted or not all(shares) or sum(shares) != len(self._partitions):
                return False
        return True
