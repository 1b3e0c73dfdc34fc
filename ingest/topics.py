"""Topics: made where they are missing, and known by their id.

A topic that was deleted and made anew has the same name and another id; whoever keeps offsets keeps
the id beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from ingest.settings import Settings, refused

__all__ = [
    "Retention", "TopicError", "TopicIds", "ensure", "largest_messages", "least_in_sync",
    "retentions", "topic_ids",
]  # fmt: skip

# How long one answer of the broker may take, in seconds.
_TIMEOUT_S = 15.0


_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError._AUTHENTICATION,
}
# What a topic is to be made with is refused: managed Kafkas have bounds, and settings of their own.
_UNFIT = {KafkaError.INVALID_CONFIG, KafkaError.INVALID_REQUEST, KafkaError.POLICY_VIOLATION}


class TopicError(Exception):
    """Kafka refused, or does not answer; the text says what to do.

    `denied`: it refuses who we are or what we may, so that waiting will not help. `topics` are
    those that it refuses, where others may not be refused.
    """

    def __init__(self, text: str, *, denied: bool = False, topics: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.denied = denied
        self.topics = frozenset(topics)


@dataclass(frozen=True, slots=True)
class Retention:
    """What a topic keeps of what is in it; without limits all, for ever."""

    # How long, by a record's own time: `retention.ms`.
    seconds: float | None = None
    # How many bytes of a partition; the oldest beyond them go before their time: `retention.bytes`.
    size: int | None = None
    # Whether of the records of one key only the newest stays: `cleanup.policy`.
    compacted: bool = False


def ensure(
    kafka: Settings,
    topics: Mapping[str, int],
    config: Mapping[str, str] | None = None,
    *,
    better: Sequence[Mapping[str, str]] = (),
) -> list[str]:
    """Create the topics that are missing, each with its number of partitions; return their names.

    `kafka` is librdkafka's settings, `config` the topics' own (`max.message.bytes`, …); for what it
    does not name, and for replication, the broker's defaults hold. `better` are more of them, in
    the order in which they are tried: where Kafka takes none, a topic is made without. One that is
    there is left as it is. Raises TopicError, and SettingError for what librdkafka does not know.
    """
    asking = _Asking(kafka)
    created = []
    # Who may not make topics is refused also for those that exist, so they are not asked for; who
    # may only make them finds out so.
    there = asking.ids(topics, passing=_DENIED)
    wanted = [
        NewTopic(name, num_partitions=n, config={**(config or {}), **(better[0] if better else {})})
        for name, n in topics.items()
        if name not in there
    ]
    if not wanted:
        return []
    try:
        # Refused topics answer each for itself.
        answers = asking.admin.create_topics(
            wanted, operation_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S
        )
    except KafkaException as error:
        raise asking.failed(error) from error
    refused, unfit = [], {}
    for name, answer in answers.items():
        why = _why(answer)
        if why is None:
            created.append(name)
        elif better and _code(why) in _UNFIT:
            unfit[name] = topics[name]
        elif _code(why) == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            refused.append(name)
        elif _code(why) != KafkaError.TOPIC_ALREADY_EXISTS:
            raise asking.failed(why) from why
    asking.allowed("CREATE, or DESCRIBE where it is there,", refused)
    return created + (ensure(kafka, unfit, config, better=better[1:]) if unfit else [])


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


def least_in_sync(kafka: Settings, names: Iterable[str]) -> dict[str, int]:
    """`min.insync.replicas` of each topic: with fewer in sync it takes nothing. Raises the same."""
    return {name: int(found["min.insync.replicas"]) for name, found in _settings(kafka, names)}


def retentions(kafka: Settings, names: Iterable[str]) -> dict[str, Retention]:
    """What each topic keeps, the broker's defaults included. Raises as `largest_messages`."""
    return {name: _retention(found) for name, found in _settings(kafka, names)}


def _retention(found: Mapping[str, str]) -> Retention:
    policy = found["cleanup.policy"]
    if "delete" not in policy:
        return Retention(compacted="compact" in policy)
    kept_ms, size = int(found["retention.ms"]), int(found["retention.bytes"])
    return Retention(
        None if kept_ms < 0 else kept_ms / 1000,
        None if size < 0 else size,
        compacted="compact" in policy,
    )


def _settings(kafka: Settings, names: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """All settings of each topic."""
    asked = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    if not asked:  # which librdkafka's client does not take
        return []
    asking = _Asking(kafka)
    try:
        answers = asking.admin.describe_configs(asked, request_timeout=_TIMEOUT_S)
    except KafkaException as error:
        raise asking.failed(error) from error
    found, refused = [], []
    for resource, answer in answers.items():
        why = _why(answer)
        if _code(why) == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            refused.append(resource.name)
            continue
        if why is not None:
            raise asking.failed(why) from why
        found.append((resource.name, {k: v.value for k, v in answer.result().items()}))
    asking.allowed("DESCRIBE_CONFIGS", refused)
    return found


def _why(answer: Future[Any]) -> KafkaException | TimeoutError | None:
    """What an answer failed with, if it did; waits for it.

    It comes without the frames that it went through: they hold the answer, which holds it, and the
    client, until the cycle collector comes.
    """
    try:
        error = answer.exception(_TIMEOUT_S)
    except TimeoutError as late:
        return late.with_traceback(None)
    if error is None or isinstance(error, KafkaException):
        return error
    raise error


def _code(error: KafkaException | TimeoutError | None) -> int | None:
    """Kafka's code for it, if it has one."""
    return error.args[0].code() if isinstance(error, KafkaException) else None


class TopicIds:
    """`topic_ids` over one connection, for those who ask again and again; from any thread.

    The first question makes its client, and each failure is the end of it: a broker that has just
    come back may answer that there are no brokers, and librdkafka (2.16) then has nobody left to
    ask, for good.
    """

    def __init__(self, kafka: Settings) -> None:
        self._kafka = kafka
        # Of two threads that make one at the same time each asks its own, and one is kept.
        self._asking: _Asking | None = None

    def __call__(self, names: Iterable[str]) -> dict[str, str]:
        """As `topic_ids`."""
        asking = self._asking
        if asking is None:
            asking = self._asking = _Asking(self._kafka)
        try:
            return asking.ids(names)
        except TopicError:
            if self._asking is asking:  # another thread may have been first
                self._asking = None
            raise


class _Heard:
    """Why a client has no connection. It does not know the client: that holds its callback, and a
    circle of the two would keep threads and files until the cycle collector comes, which is rare.
    """

    def __init__(self) -> None:
        self.trouble = ""
        self.denied = False

    def on_error(self, error: KafkaError) -> None:
        """For `error_cb`."""
        # "1/1 brokers are down" follows each reason, and says less.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.trouble = error.str()
            self.denied = error.code() in _DENIED


class _Asking:
    """An admin client, and why its connection fails where it does."""

    def __init__(self, kafka: Settings) -> None:
        self._bootstrap = kafka.get("bootstrap.servers")
        self._heard = _Heard()
        # What goes wrong is in the error that is raised; librdkafka would print it twenty times a
        # second while it tries to connect.
        settings = {"log_level": 2, **kafka, "error_cb": self._heard.on_error}
        try:
            self.admin = AdminClient(settings)
        except KafkaException as error:
            raise refused(error) from error

    def ids(self, names: Iterable[str], passing: Collection[int] = ()) -> dict[str, str]:
        """As `topic_ids`; without those that were answered with one of these codes."""
        answers = self.admin.describe_topics(
            TopicCollection(list(names)), request_timeout=_TIMEOUT_S
        )
        found, refused = {}, []
        for name, answer in answers.items():
            why = _why(answer)
            if why is None:
                found[name] = str(answer.result().topic_id)
            elif _code(why) in (KafkaError.UNKNOWN_TOPIC_OR_PART, *passing):
                continue
            elif _code(why) == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                refused.append(name)
            else:
                raise self.failed(why) from why
        self.allowed("DESCRIBE", refused)
        return found

    def allowed(self, act: str, refused: Sequence[str]) -> None:
        """Raises TopicError where the ACL for `act` is missing on some topics."""
        if refused:
            names = ", ".join(sorted(refused))
            raise TopicError(
                f"Kafka at {self._bootstrap} refuses: this needs {act} on the "
                f"{'topic' if len(refused) == 1 else 'topics'} {names}",
                denied=True, topics=refused,
            )  # fmt: skip

    def failed(self, error: KafkaException | TimeoutError) -> TopicError:
        """The sentence for an operator."""
        # The reason why there is no connection is given to the callback in a poll, not before.
        self.admin.poll(0)
        cause = error.args[0] if isinstance(error, KafkaException) else None
        if cause is not None and cause.code() not in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
            return TopicError(
                f"Kafka at {self._bootstrap} refuses: {cause.str()}", denied=cause.code() in _DENIED
            )
        if self._heard.denied:
            return TopicError(
                f"Kafka at {self._bootstrap} refuses: {self._heard.trouble}; check user and "
                'password ("sasl.username", "sasl.password", "security.protocol" under [kafka])',
                denied=True,
            )
        trouble = f" ({self._heard.trouble})" if self._heard.trouble else ""
        return TopicError(
            f"Kafka at {self._bootstrap} does not answer{trouble}. Is it running, and is that its "
            "address? It is set by --kafka, HEADRACE_KAFKA or headrace.toml; `headrace status` "
            "shows the local stack"
        )
