"""What a destination says of a stream: how far it is, and what it did with the records below."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaException

from consumers.batch import Partition
from consumers.client import Settings
from consumers.errors import Unavailable
from consumers.intent import Intent
from consumers.ledger.tally import Bucket, Entry, Sum
from consumers.lookup import Lookup
from consumers.members import MOVING
from consumers.sinks import Known
from ingest.streams import Stream

__all__ = ["Account", "CantBeJudged", "Emptied", "PlaceUnknown", "known_of", "positions_of"]

_PATIENCE_S = 10.0
_AGAIN_S = 0.1


class CantBeJudged(Exception):
    """What a destination says of a stream is not to be believed: the text says why."""


class PlaceUnknown(CantBeJudged):
    """A destination has something of a topic, and its consumer group no position: see the text."""

    def __init__(self, topic: str, group: str, do: str) -> None:
        super().__init__(
            f"has records of {topic}, and the consumer group {group} no position there, so they "
            "can't be judged: Kafka forgets a group seven days after its last member left. "
            f"{do}, and it has one again"
        )


class Emptied(PlaceUnknown):
    """A destination has nothing of a topic that its inserters' group has landed: see the text."""

    def __init__(self, topic: str, group: str) -> None:
        Exception.__init__(
            self,
            f"has nothing of {topic}, where its inserters' group {group} had landed records: "
            "it was lost, or made anew. Restore it from a backup, or start `headrace insert`, "
            "which lands again what Kafka still has",
        )


@dataclass(frozen=True, slots=True)
class Account:
    """Positions, and the ledger below them; both of one moment."""

    positions: Mapping[Partition, int]
    entries: Mapping[Bucket, Entry]
    # What of it is still to be done by an open replay.
    waiting: Mapping[Bucket, Sum] = field(default_factory=dict)
    # Hours that began before may lack records that have expired, or what became of them.
    since_us: Mapping[Partition, int] = field(default_factory=dict)


def known_of(kafka: Settings, group: str, stream: Stream, topic_id: str) -> dict[Partition, Known]:
    """What a group has committed of just this topic, where it has. Raises Unavailable."""
    return {
        partition: k
        for partition, k in _known(kafka, group, stream).items()
        if k.committed is not None
        and ((intent := Intent.read(k.note)) is None or intent.topic_id == topic_id)
    }


def _known(kafka: Settings, group: str, stream: Stream) -> dict[Partition, Known]:
    """Waits for a coordinator: a Kafka that has never had a group makes one when asked."""
    lookup = Lookup(kafka, group, [stream.topic])
    give_up = time.monotonic() + _PATIENCE_S
    try:
        while True:
            try:
                return lookup.known(list(lookup.all_ends()))
            except Unavailable as away:
                cause = away.__cause__
                moving = isinstance(cause, KafkaException) and cause.args[0].code() in MOVING
                if not moving or time.monotonic() > give_up:
                    raise
            time.sleep(_AGAIN_S)
    finally:
        lookup.close()


def positions_of(
    kafka: Settings, group: str, stream: Stream, topic_id: str
) -> dict[Partition, int]:
    """Up to where a group is through with each partition. Raises Unavailable."""
    known = known_of(kafka, group, stream, topic_id)
    return {partition: k.committed for partition, k in known.items() if k.committed is not None}
