"""librdkafka's settings: what a Publisher's must be, what they are unless changed, what is refused.

Keys keep librdkafka's spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException

from ingest.socket_protocol import LARGEST

__all__ = ["ONCE", "SettingError", "Settings", "check_for_socket", "for_publisher", "refused"]

Settings = Mapping[str, str | int | float | bool]


class SettingError(ValueError):
    """A setting of librdkafka can't be used; the text names it and says why.

    Settings stand under [kafka] in headrace.toml, or are the `config` of a Publisher.
    """


# What a producer needs so that a record that is acknowledged is in Kafka, and once.
ONCE: Settings = {
    "acks": "all",
    "enable.idempotence": True,
    # With more, a broker that comes back answers one partition's second batch with "out of order",
    # where its first was only refused; librdkafka begins another epoch then, in which it sends what
    # other partitions may have already (librdkafka 4953; found by `make chaos`). No slower: 543,000
    # records/s beside 519,000 with five (median of five in turn, a broker on the same machine).
    "max.in.flight.requests.per.connection": 1,
}
# The promise: what these must be, and what another value would break.
_FIXED = {
    "acks": ({"all", "-1"}, "acks=all: what is acknowledged must survive the loss of a broker"),
    "enable.idempotence": ({"true"}, "enable.idempotence=true: a retry must not double a record"),
    "max.in.flight.requests.per.connection": (
        {"1"},
        "max.in.flight.requests.per.connection=1: a broker that comes back must not get again what "
        "it has",
    ),
}
# What a Publisher does differently, or by itself.
_FOREIGN = {
    "transactional.id": "a Publisher is not transactional",
    "delivery.report.only.error": "the Publisher sets it itself",
}
# Defaults, which may be changed.
_DEFAULTS: Settings = {
    "compression.type": "lz4",
    "partitioner": "murmur2_random",
    "delivery.timeout.ms": 0,
    # 64 MiB or 100,000 records a lane, whichever comes first; librdkafka's default is 1 GiB.
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 65_536,
    "message.max.bytes": 1_000_000,
    # How long a topic may be unknown, for its metadata to spread; librdkafka's 30 s keep the
    # operator with a typing error waiting.
    "topic.metadata.propagation.max.ms": 10_000,
    # Errors come back through reports and flush(); librdkafka would print them to stderr as well.
    "log_level": 2,
}
# What also means something to a collector's socket.
_OF_A_SOCKET = ("message.max.bytes", "queue.buffering.max.kbytes", "queue.buffering.max.messages")
# Of a frame there, beside its value: more than the longest name of a stream.
_OVERHEAD = 1024
_ALIASES = {
    "compression.codec": "compression.type",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "message.timeout.ms": "delivery.timeout.ms",
    "request.required.acks": "acks",
}


def for_publisher(bootstrap_servers: str, given: Settings) -> dict[str, Any]:
    """All settings of a Publisher's producers; raises SettingError where one breaks a promise."""
    settings = {_ALIASES.get(key, key): value for key, value in given.items()}
    for key, (allowed, why) in _FIXED.items():
        if key in settings and str(settings[key]).lower() not in allowed:
            raise SettingError(f"{key}={settings[key]} is refused; a Publisher always has {why}")
    for key, why in _FOREIGN.items():
        if key in settings:
            raise SettingError(f"{key} can't be set: {why}")
    return {
        **_DEFAULTS,
        **settings,
        "bootstrap.servers": bootstrap_servers,
        **ONCE,
    }


def check_for_socket(given: Settings) -> None:
    """Raise SettingError for what only a Kafka producer has, or no frame of a socket can hold."""
    for key, value in given.items():
        if key not in _OF_A_SOCKET:
            raise SettingError(
                f"{key} is a setting for Kafka; a collector's socket knows "
                f"{', '.join(_OF_A_SOCKET)}"
            )
        if key == "message.max.bytes" and int(value) > LARGEST - _OVERHEAD:
            raise SettingError(f"{key}={value} is more than a socket's {LARGEST - _OVERHEAD:,}")


def refused(error: KafkaException) -> SettingError:
    """What to say when librdkafka takes a setting for none of its own, or its value for wrong."""
    said = error.args[0].str().strip()
    return SettingError(
        f"librdkafka refuses a setting: {said}. Look at [kafka] in headrace.toml; "
        "https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md lists all"
    )
