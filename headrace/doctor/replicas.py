"""Replicas: whether Kafka takes and gives out the records of the streams' topics, and of those
that everything else goes by: ours, and Kafka's own of positions and transactions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from confluent_kafka.admin import AdminClient, TopicMetadata

from consumers.client import QUIET, Settings
from consumers.replay.jobs_topic import TOPIC as REPLAYS
from headrace.config import Config
from headrace.doctor.check import Check, fail, ok, warn
from headrace.words import counted
from ingest.spool.entry import EDGE
from ingest.spool.transactions import MARKER
from ingest.topics import TopicError, least_in_sync

__all__ = ["judge_replicas", "replicas"]

_ASK_S = 10.0
# A spool sends nothing without the first, whatever becomes of the streams' topics.
_BESIDE = (MARKER, EDGE, REPLAYS, "headrace_ledger", "__consumer_offsets", "__transaction_state")
# Partitions that are named.
_MOST = 4
_SHOW = "kafka-topics.sh --bootstrap-server HOST:PORT --describe"
_WAITS = "collectors keep on disk what they acknowledge, and publishers wait"


def replicas(config: Config, found: Collection[str]) -> list[Check]:
    """Whether each partition has a leader, and as many replicas in sync as it is to have."""
    seen = AdminClient({**QUIET, **config.kafka}).list_topics(timeout=_ASK_S)
    beside = [name for name in _BESIDE if name in seen.topics]
    least = least_in_sync(config.kafka, found) | _least_beside(config.kafka, beside)
    return [judge_replicas({name: seen.topics[name] for name in least}, least, seen.brokers)]


def _least_beside(kafka: Settings, names: Sequence[str]) -> dict[str, int]:
    """Of topics whose settings we may not see it is known only whether they have a leader."""
    try:
        return least_in_sync(kafka, names)
    except TopicError as error:
        if not error.denied:
            raise
        return dict.fromkeys(names, 1)


def judge_replicas(
    listed: Mapping[str, TopicMetadata], least: Mapping[str, int], up: Collection[int]
) -> Check:
    """The worst that is to be said: `least` is each topic's `min.insync.replicas`, `up` brokers."""
    headless, few, behind = [], [], []
    away: set[int] = set()
    for topic, metadata in sorted(listed.items()):
        for number, one in sorted(metadata.partitions.items()):
            name = f"{topic}[{number}]"
            # The last one in sync stays so, also while it is down.
            away |= set(one.replicas) - (set(one.isrs) & set(up))
            if one.leader < 0:
                headless.append(name)
            elif len(one.isrs) < least[topic]:
                few.append(f"{name} ({len(one.isrs)} of {least[topic]})")
            elif len(one.isrs) < len(one.replicas):
                behind.append(name)
    start = f"; brokers that are away or not in sync: {', '.join(map(str, sorted(away)))}"
    if headless:
        text = f"nobody can write to or read {_some(headless)}: without a leader{start}"
        safe = f"yes, on the disks of those brokers, which are to be started; {_WAITS}"
        return fail("replicas", text, f"{_SHOW} --unavailable-partitions", safe)
    if few:
        text = f"Kafka takes nothing for {_some(few)}: too few replicas for min.insync.replicas"
        text += start if away else "; there are no more, so lower it"
        do = f"{_SHOW} --under-min-isr-partitions"
        return fail("replicas", text, do, f"yes, {_WAITS}")
    if behind:
        less = counted(len(behind), "partition has a replica", "partitions have replicas")
        safe = "yes, and Kafka takes records; with one more broker away it may not"
        do = f"{_SHOW} --under-replicated-partitions"
        return warn("replicas", f"{less} behind the leader{start}", do, safe)
    return ok("replicas", "all are in sync")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
