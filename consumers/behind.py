"""How far behind who reads a topic is, asked from outside: of anybody, without being in a group.

The end is that of what can be read: what an open transaction holds back comes when it is committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consumers.batch import Partition, Span
from consumers.bounds import bounds, firsts
from consumers.client import Settings

__all__ = ["Waiting", "waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of one partition for one who reads it."""

    partition: Partition
    # The offset to read next; None where nobody has begun.
    position: int | None
    # What is to be read and is still in Kafka.
    there: Span
    # When the first record that waits was published, in Unix milliseconds; None: none does.
    oldest_ms: int | None

    @property
    def behind(self) -> int:
        """Offsets up to the end, markers of transactions included; 0 where no record is left."""
        if self.oldest_ms is None:
            return 0
        return self.there.end - max(self.there.start, self.position or 0)

    @property
    def lost(self) -> int:
        """Offsets that retention removed before they were read."""
        return 0 if self.position is None else max(0, self.there.start - self.position)

    @property
    def beyond(self) -> int:
        """Offsets that were read and are no longer in the log, which ends below: it was cut."""
        return 0 if self.position is None else max(0, self.position - self.there.end)


def waiting(
    kafka: Settings,
    topic: str,
    positions: Mapping[Partition, int],
    ends: Mapping[Partition, int] | None = None,
) -> list[Waiting]:
    """Of each partition what waits behind these positions, which were asked for before.

    With `ends` only of those partitions, and below these offsets. Raises Unavailable, Systemic.
    """
    there = {}
    for number, (start, end) in bounds(kafka, topic).spans.items():
        partition = Partition(topic, number)
        if ends is None:
            there[partition] = Span(start, end)
        elif partition in ends:
            there[partition] = Span(min(start, ends[partition]), min(end, ends[partition]))
    left = {
        p.number: Span(max(span.start, positions.get(p, 0)), span.end) for p, span in there.items()
    }
    oldest = firsts(kafka, topic, left)
    return [
        Waiting(p, positions.get(p), span, oldest.get(p.number))
        for p, span in sorted(there.items())
    ]
