"""What became of a partition's last batches, as long as the ledger of its ClickHouse database does not say it.

It stands in the metadata of the group's offset, so one commit holds it and the position. One row of the
ledger then speaks for several batches, where each would be one more statement, and one more part.

A row says what a commit has said before, and is known by where it starts. So whoever writes it, and
however late, writes the same: the process itself when it gets full, whoever is given the partition,
and a process that ends.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consumers.batch import Batch, Partition, Span
from consumers.ledger.tally import Entry, Sum, entries_of

__all__ = ["BATCHES", "Owed", "owed_of"]

# A row of the ledger speaks for so many batches, or for fewer with more hours than these: of 4096
# bytes of metadata an hour takes 70, and the spans of an intent 60 for each partition
# (consumers.destinations).
BATCHES = 32
_HOURS = 16


@dataclass(frozen=True, slots=True)
class Owed:
    """Of the records of a span, by the hours of their event times (since 1970)."""

    span: Span
    batches: int
    entries: Mapping[int, Entry]

    @property
    def full(self) -> bool:
        """Whether it is more than one row of the ledger speaks for."""
        return self.batches > BATCHES or len(self.entries) > _HOURS

    def then(self, later: Owed) -> Owed:
        """Both."""
        entries = dict(self.entries)
        for hour, entry in later.entries.items():
            entries[hour] = entries.get(hour, Entry()).plus(entry)
        return Owed(Span(self.span.start, later.span.end), self.batches + later.batches, entries)

    def body(self) -> list[object]:
        """For metadata."""
        hours = [[hour, *e.rows, *e.dead] for hour, e in self.entries.items()]
        return [*self.span, self.batches, hours]

    @staticmethod
    def of(body: list[Any]) -> Owed:
        """What metadata says. Raises ValueError or TypeError where it says something else."""
        start, stop, batches, hours = body
        entries = {
            hour: Entry(Sum(landed, row_hash), 0, Sum(dead, dead_hash))
            for hour, landed, row_hash, dead, dead_hash in hours
        }
        return Owed(Span(start, stop), batches, entries)


def owed_of(batch: Batch) -> dict[Partition, Owed]:
    """What a batch adds; of each of its partitions."""
    found: dict[Partition, dict[int, Entry]] = {partition: {} for partition in batch.spans}
    for (partition, hour), entry in entries_of(batch).items():
        found[partition][hour] = entry
    return {
        partition: Owed(batch.spans[partition], 1, entries) for partition, entries in found.items()
    }
