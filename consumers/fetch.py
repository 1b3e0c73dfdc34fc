"""Records from a source, as many at once as Python and librdkafka are fast with."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import Message

from consumers.batch import Partition
from consumers.source import Runs, Source

__all__ = ["Fetched", "by_partition", "calm_gc", "fetch"]

# Records a poll asks for: small slices stay in the processor's cache. Against 1,000 and 250 the
# processor time of a record is a fifth to a third less (bench/consume.py).
_SLICE = 500
# Records that are decoded in one call, when that many are there: per record ptars, the checks and
# pgpq cost half of what they do for 500.
_DECODE = 4000
# And no more bytes than that, but for the last slice: what a batch may exceed its `max_bytes` by.
_DECODE_BYTES = 4 * 1024 * 1024


class Fetched(NamedTuple):
    """Records, in order for each partition, and how many bytes their values are together."""

    runs: dict[Partition, list[Message]]
    bytes: int


def fetch(source: Source, patience_s: float) -> Fetched:
    """What is there now; waits for the first of it."""
    found: dict[Partition, list[Message]] = {}
    size = 0
    for _ in range(_DECODE // _SLICE):
        came = 0
        for partition, run in source.poll(_SLICE, patience_s).items():
            found.setdefault(partition, []).extend(run)
            came += len(run)
            size += sum(map(len, run))
        if came < _SLICE or size >= _DECODE_BYTES:
            break
        patience_s = 0.0
    return Fetched(found, size)


def by_partition(messages: Sequence[Message], topic: str | None = None) -> Runs:
    """The messages of each partition, in order. Mostly a slice is of one partition.

    `topic` is that of all of them, where that is known: to ask each takes as long as all the rest.
    """
    if not messages:
        return {}
    numbers = list(map(Message.partition, messages))
    topics = [topic] * len(messages) if topic else list(map(Message.topic, messages))
    if numbers.count(numbers[0]) == len(numbers) == topics.count(topics[0]):
        return {Partition(topics[0], numbers[0]): messages}
    found: dict[Partition, list[Message]] = {}
    for name, number, message in zip(topics, numbers, messages, strict=True):
        found.setdefault(Partition(name, number), []).append(message)
    return found


def calm_gc() -> None:
    """Make Python's cycle collector rare; for a process that does little else than run the loop.

    It runs once in 700 new objects, messages count, and there are no cycles among them: a tenth of
    the loop's processor time (perf).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
