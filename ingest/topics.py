"""Topics: made where they are missing, and known by their id.

A topic that was deleted and made anew has the same name and another id; whoever keeps offsets keeps
the id beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

__all__ = ["TopicError", "ensure", "topic_ids"]

Settings = Mapping[str, str | int | float | bool]

# How long one answer of the broker may take, in seconds.
_TIMEOUT_S = 15.0


class TopicError(Exception):
    """Kafka refused, or does not answer; the text says what to do."""


def ensure(
    kafka: Settings, topics: Mapping[str, int], config: Mapping[str, str] | None = None
) -> list[str]:
    """Create the topics that are missing, each with its number of partitions; return their names.

    `kafka` is librdkafka's settings, `config` the topics' own (`max.message.bytes`, …); for what it
    does not name, and for replication, the broker's defaults hold. A topic that is there is left as it is. Raises TopicError.
    """  # noqa: E501
    admin = AdminClient(dict(kafka))
    created = []
    try:
        wanted = [
            NewTopic(name, num_partitions=n, config=dict(config or {}))
            for name, n in topics.items()
        ]
        # Refused topics answer each for itself, so those that exist cost nothing.
        for name, answer in admin.create_topics(wanted, operation_timeout=_TIMEOUT_S).items():
            try:
                answer.result(_TIMEOUT_S)
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    except (KafkaException, TimeoutError) as error:
        raise TopicError(_explain(error, kafka)) from error
    return created


def topic_ids(kafka: Settings, names: Iterable[str]) -> dict[str, str]:
    """The id of each topic that exists, as text; names that don't exist are left out.

    Raises TopicError when Kafka does not answer.
    """
    admin = AdminClient(dict(kafka))
    answers = admin.describe_topics(TopicCollection(list(names)), request_timeout=_TIMEOUT_S)
    found = {}
    for name, answer in answers.items():
        try:
            found[name] = str(answer.result(_TIMEOUT_S).topic_id)
        except (KafkaException, TimeoutError) as error:
            code = error.args[0].code() if isinstance(error, KafkaException) else None
            if code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicError(_explain(error, kafka)) from error
    return found


def _explain(error: Exception, kafka: Settings) -> str:
    reason = error.args[0].str() if isinstance(error, KafkaException) else "no answer"
    return f"Kafka at {kafka.get('bootstrap.servers')} refuses: {reason}"
