"""What is said of the hop from spools into Kafka, of each hour and of each spool; see edge.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ingest.spool.entry import RelaySum

__all__ = ["Crossing", "Doubt", "Node"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """One hour (since 1970) of a stream: what relays sent into Kafka, and what is there."""

    stream: str
    hour: int
    sources: Mapping[str, int]
    accepted: RelaySum
    entered: RelaySum
    # What of `entered` no relay has sent.
    direct: int
    # Not all that is in Kafka of this hour could be counted.
    partial: bool
    # Notes of this hour may have expired before they were heard: relays may have sent more.
    unheard: bool = False

    @property
    def difference(self) -> int:
        """Records that relays have sent and that are not in Kafka."""
        return max(0, self.accepted.records - self.entered.records)

    @property
    def judged(self) -> bool:
        """Both sides were counted in full."""
        return not (self.partial or self.unheard)

    @property
    def holds(self) -> bool:
        """With direct publishers in the same hour, hashes can't be compared, nor where relays may
        have sent more; but what they are known to have sent must be there.
        """
        if self.unheard and not self.partial:
            return not self.difference
        more = self.entered.records > self.accepted.records
        return self.partial or more or self.entered == self.accepted


class Doubt(NamedTuple):
    """What can't be judged, and why; "kafka" stands before the text."""

    # Or "all".
    stream: str
    # Those in which spools have sent; None where any of them may be in doubt.
    hours: frozenset[int] | None
    why: str


@dataclass(frozen=True, slots=True)
class Node:
    """A spool, as its last transaction left it, and what went wrong in the hours asked for."""

    node: str
    sent: int
    # Acknowledged by then, and not sent yet.
    waiting: int
    # Acknowledged and left out, or sent once more.
    missing: int
    twice: int
    # The hour of its last note, where it is known.
    heard: int | None = None

    @property
    def holds(self) -> bool:
        return not (self.missing or self.twice)
