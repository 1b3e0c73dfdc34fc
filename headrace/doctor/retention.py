"""How long Kafka still keeps what is in a topic: how that is said, and the command for longer.

By its time that can be said. By its size (`retention.bytes`) it can't: as much as a topic may hold
can come within the hour. So wherever a time is promised, such a limit is named.
"""

from __future__ import annotations

from headrace.words import lasting
from ingest.topics import Retention

__all__ = ["as_long", "in_danger", "kept", "left", "lengthen", "uncompacted"]

# Of the time that a topic keeps a record: what has waited for longer is in danger.
_IN_DANGER = 0.75
# What a topic is to keep at least, once somebody has to make it more: in seconds, and in bytes.
_LONG_S, _LARGE_BYTES = 14 * 24 * 3600, 2**30
_COMMAND = "kafka-configs.sh --bootstrap-server HOST:PORT {} --entity-type topics --entity-name "


def kept(limits: Retention) -> str:
    """How long a record is kept, to be said after "for"."""
    if limits.seconds is None:
        return "ever" if limits.size is None else "as long as retention.bytes allows"
    return lasting(limits.seconds) + _by_size(limits)


def left(limits: Retention, age_s: float, more: str = "") -> str:
    """How long one of this age still is; `more` is a word behind the time, where there is one."""
    if limits.seconds is None:
        return kept(limits)
    return lasting(limits.seconds - age_s) + more + _by_size(limits)


def in_danger(limits: Retention, age_s: float) -> bool:
    """Whether the time of one of this age is about to be over."""
    return limits.seconds is not None and age_s > limits.seconds * _IN_DANGER


def lengthen(topic: str, limits: Retention, other: tuple[str, Retention] | None = None) -> str:
    """The command that has a topic keep more: never less than it keeps now of any one limit.

    The `other` one is to keep what it has for as long then, at least.
    """
    wanted = []
    if limits.seconds is not None:
        wanted.append(f"retention.ms={round(max(_LONG_S, 2 * limits.seconds) * 1000)}")
    if limits.size is not None:
        wanted.append(f"retention.bytes={max(_LARGE_BYTES, 2 * limits.size)}")
    if not wanted:
        return _COMMAND.format("--describe --all") + topic
    longer = _alter(topic, ",".join(wanted))
    if other is None or limits.seconds is None:
        return longer
    more = as_long(*other, Retention(max(_LONG_S, 2 * limits.seconds)))
    return f"{longer} && {more}" if more else longer


def as_long(topic: str, limits: Retention, wanted: Retention) -> str:
    """The command that has a topic keep what is in it for as long; "" where it does."""
    if limits.seconds is None or (wanted.seconds is not None and wanted.seconds <= limits.seconds):
        return ""
    kept_ms = -1 if wanted.seconds is None else round(wanted.seconds * 1000)
    return _alter(topic, f"retention.ms={kept_ms}")


def uncompacted(topic: str) -> str:
    """The command that has a topic keep all records of a key, for its time."""
    return _alter(topic, "cleanup.policy=delete")


def _alter(topic: str, settings: str) -> str:
    return f"{_COMMAND.format('--alter')}{topic} --add-config {settings}"


def _by_size(limits: Retention) -> str:
    return "" if limits.size is None else " (or less, by retention.bytes)"
