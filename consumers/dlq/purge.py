"""Removing letters: Kafka removes from the beginning of a log up to an offset, and nothing else.

So what can be said is until when; a letter in the middle stays until those before it go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from consumers.client import QUIET, Settings
from consumers.dlq.letters import Letters, Origin
from consumers.errors import Systemic, Unavailable
from ingest.streams import Stream

__all__ = ["Cut", "cut", "remove"]

_ASK_S = 15.0


@dataclass(slots=True)
class Cut:
    """Where each partition of the dead-letter topic would begin, and what is before that."""

    starts: dict[int, int] = field(default_factory=dict)
    # Records that are open, and letters there are in all.
    open: set[Origin] = field(default_factory=set)
    letters: int = 0


def cut(letters: Letters, until_us: int | None) -> Cut:
    """Up to the first letter of that time or later; without it, all there are."""
    found = Cut({number: span.end for number, span in letters.spans.items()})
    over: set[int] = set()
    for letter in letters.all():
        if letter.partition in over:
            continue
        if until_us is not None and letter.attempted_ms * 1000 >= until_us:
            over.add(letter.partition)
            found.starts[letter.partition] = letter.offset
            continue
        found.letters += 1
        if letter.origin not in letters.settled:
            found.open.add(letter.origin)
    return found


def remove(kafka: Settings, stream: Stream, found: Cut) -> None:
    """Have Kafka remove what is before the cut, for good. Raises Unavailable, Systemic."""
    admin = AdminClient({**QUIET, **kafka})
    asked = [TopicPartition(stream.dlq, number, at) for number, at in found.starts.items()]
    try:
        for answer in admin.delete_records(asked, request_timeout=_ASK_S).values():
            answer.result(_ASK_S)
    except KafkaException as error:
        cause: KafkaError = error.args[0]
        if cause.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise Systemic(f"no permission for {stream.dlq}: grant DELETE on it") from error
        if cause.code() == KafkaError.POLICY_VIOLATION:
            raise Systemic(
                f"Kafka removes nothing from {stream.dlq}: its cleanup.policy is not delete"
            ) from error
        raise Unavailable(f"Kafka does not remove the letters: {cause.str()}") from error
