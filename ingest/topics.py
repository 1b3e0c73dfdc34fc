"""Topics: made where they are missing, and known by their id.

A topic that was deleted and made anew has the same name and another id; whoever keeps offsets keeps
the id beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from ingest.settings import Settings, refused

__all__ = [
    "Retention", "TopicError", "TopicIds", "ensure", "largest_messages", "retentions", "topic_ids",
]  # fmt: skip

# How long one answer of the broker may take, in seconds.
_TIMEOUT_S = 15.0


_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
}


class TopicError(Exception):
    """Kafka refused, or does not answer; the text says what to do.

    `denied`: it refuses who we are or what we may, so that waiting will not help.
    """

    def __init__(self, text: str, *, denied: bool = False) -> None:
        super().__init__(text)
        self.denied = denied


@dataclass(frozen=True, slots=True)
class Retention:
    """What a topic keeps of what is in it; without limits all, for ever."""

    # How long, by a record's own time: `retention.ms`.
    seconds: float | None = None
    # How many bytes of a partition; the oldest beyond them go before their time: `retention.bytes`.
    size: int | None = None


def ensure(
    kafka: Settings, topics: Mapping[str, int], config: Mapping[str, str] | None = None
) -> list[str]:
    """Create the topics that are missing, each with its number of partitions; return their names.

    `kafka` is librdkafka's settings, `config` the topics' own (`max.message.bytes`, …); for what it
    does not name, and for replication, the broker's defaults hold. A topic that is there is left
    as it is. Raises TopicError, and SettingError for what librdkafka does not know.
    """
    asking = _Asking(kafka)
    created = []
    try:
        wanted = [
            NewTopic(name, num_partitions=n, config=dict(config or {}))
            for name, n in topics.items()
        ]
        # Refused topics answer each for itself, so those that exist cost nothing.
        answers = asking.admin.create_topics(
            wanted, operation_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S
        )
        for name, answer in answers.items():
            try:
                answer.result(_TIMEOUT_S)
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    except (KafkaException, TimeoutError) as error:
        raise asking.failed(error) from error
    return created


def topic_ids(kafka: Settings, names: Iterable[str]) -> dict[str, str]:
    """The id of each topic that exists, as text; names that don't exist are left out.

    Raises TopicError when Kafka does not answer, SettingError for what librdkafka does not know.
    """
    return TopicIds(kafka)(names)


def largest_messages(kafka: Settings, names: Iterable[str]) -> dict[str, int]:
    """`max.message.bytes` of each topic: the most bytes of a batch, compressed, that it takes.

    Raises TopicError: also for a topic that does not exist, or whose settings may not be read.
    """
    return {name: int(found["max.message.bytes"]) for name, found in _settings(kafka, names)}


def retentions(kafka: Settings, names: Iterable[str]) -> dict[str, Retention]:
    """What each topic keeps, the broker's defaults included. Raises as `largest_messages`."""
    return {name: _retention(found) for name, found in _settings(kafka, names)}


def _retention(found: Mapping[str, str]) -> Retention:
    if "delete" not in found["cleanup.policy"]:
        return Retention()
    kept_ms, size = int(found["retention.ms"]), int(found["retention.bytes"])
    return Retention(None if kept_ms < 0 else kept_ms / 1000, None if size < 0 else size)


def _settings(kafka: Settings, names: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """All settings of each topic."""
    asking = _Asking(kafka)
    asked = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    try:
        answers = asking.admin.describe_configs(asked, request_timeout=_TIMEOUT_S)
        return [
            (resource.name, {k: v.value for k, v in answer.result(_TIMEOUT_S).items()})
            for resource, answer in answers.items()
        ]
    except (KafkaException, TimeoutError) as error:
        raise asking.failed(error) from error


class TopicIds:
    """`topic_ids` over one connection, for those who ask again and again; from any thread.

    Each failure is the end of its client: a broker that has just come back may answer that there
    are no brokers, and librdkafka (2.16) then has nobody left to ask, for good.
    """

    def __init__(self, kafka: Settings) -> None:
        self._kafka = kafka
        self._asking = _Asking(kafka)

    def __call__(self, names: Iterable[str]) -> dict[str, str]:
        """As `topic_ids`."""
        asking = self._asking
        answers = asking.admin.describe_topics(
            TopicCollection(list(names)), request_timeout=_TIMEOUT_S
        )
        found = {}
        for name, answer in answers.items():
            try:
                found[name] = str(answer.result(_TIMEOUT_S).topic_id)
            except (KafkaException, TimeoutError) as error:
                code = error.args[0].code() if isinstance(error, KafkaException) else None
                if code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._asking = _Asking(self._kafka)
                    raise asking.failed(error) from error
        return found


class _Asking:
    """An admin client, and why its connection fails where it does."""

    def __init__(self, kafka: Settings) -> None:
        self._bootstrap = kafka.get("bootstrap.servers")
        self._trouble = ""
        self._denied = False
        # What goes wrong is in the error that is raised; librdkafka would print it twenty times a
        # second while it tries to connect.
        settings = {"log_level": 2, **kafka, "error_cb": self._on_error}
        try:
            self.admin = AdminClient(settings)
        except KafkaException as error:
            raise refused(error) from error

    def _on_error(self, error: KafkaError) -> None:
        # "1/1 brokers are down" follows each reason, and says less.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._trouble = error.str()
            self._denied = error.code() in _DENIED

    def failed(self, error: KafkaException | TimeoutError) -> TopicError:
        """The sentence for an operator."""
        # The reason why there is no connection is given to the callback in a poll, not before.
        self.admin.poll(0)
        cause = error.args[0] if isinstance(error, KafkaException) else None
        if cause is not None and cause.code() not in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
            return TopicError(
                f"Kafka at {self._bootstrap} refuses: {cause.str()}", denied=cause.code() in _DENIED
            )
        if self._denied:
            return TopicError(
                f"Kafka at {self._bootstrap} refuses: {self._trouble}; check user and password "
                '("sasl.username", "sasl.password", "security.protocol" under [kafka])',
                denied=True,
            )
        trouble = f" ({self._trouble})" if self._trouble else ""
        return TopicError(
            f"Kafka at {self._bootstrap} does not answer{trouble}. Is it running, and is that its "
            "address? It is set by --kafka, HEADRACE_KAFKA or headrace.toml; `headrace status` "
            "shows the local stack"
        )
