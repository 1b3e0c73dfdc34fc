"""What passes between the polling thread and its lanes: work one way, outcomes the other.

A `Cursor` is a partition that this process owns. Whatever voids what is under way for it (it was
revoked, or a writer elsewhere was first) raises its `epoch`. Work remembers the epoch that its
cursors were placed in; once one of them has moved on, the work is dropped before its next attempt
and moves the epoch of the others on too: behind a hole nothing may land.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from consumers.batch import Batch, Partition
from consumers.deadletters import DeadLetter
from ingest.streams import Stream

__all__ = [
    "Claims", "Cursor", "Dropped", "Failed", "Landed", "Outcome", "Place", "Placed", "Work",
    "give_up", "stale",
]  # fmt: skip


class Place(NamedTuple):
    """Where to go on with a partition: all below `position` has landed; `read` is at or above it."""  # noqa: E501

    position: int
    read: int


@dataclass(slots=True, eq=False)
class Cursor:
    """A partition that this process owns."""

    partition: Partition
    stream: Stream
    # The number of its lane.
    lane: int
    # The offset to read next, and the one that all below of has landed.
    next: int = -1
    landed: int = -1
    # Kafka's timestamp of the last record read, and of the last one landed; 0 before the first.
    read_ms: int = 0
    landed_ms: int = 0
    epoch: int = 0
    # The epochs in which the sink was last asked where to go on, and in which its answer was taken.
    asked: int = -1
    placed: int = -1
    # Its answer and the epoch that it is for, until the consumer has gone there.
    answer: tuple[int, Place] | None = None
    # An epoch, and where the next batch of it has to begin; the lane's own.
    behind: tuple[int, int] = (-1, -1)

    @property
    def reading(self) -> bool:
        """Records of it are wanted."""
        return self.placed == self.epoch


# Cursors, each with the epoch in which it was claimed.
Claims = Mapping[Cursor, int]


def stale(claims: Claims) -> bool:
    """Whether one of the partitions is no longer ours, or has to be placed anew."""
    return any(cursor.epoch != epoch for cursor, epoch in claims.items())


def give_up(claims: Claims) -> None:
    """Have all of them placed anew: what was claimed will not land."""
    for cursor, epoch in claims.items():
        if cursor.epoch == epoch:
            cursor.epoch += 1


@dataclass(slots=True, eq=False)
class Work:
    """A batch to land, or, without one, cursors to place; all of one lane."""

    lane: int
    claims: Claims
    batch: Batch | None = None
    # Records that could not be decoded; to be sent before the batch is written.
    letters: Sequence[DeadLetter] = ()
    # Records of the batch, bad ones included.
    records: int = 0
    # Kafka's timestamp of the last record of each partition.
    read_ms: Mapping[Cursor, int] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        """It must not be begun any more."""
        return stale(self.claims)


@dataclass(frozen=True, slots=True)
class Placed:
    """The sink says where to go on."""

    work: Work
    places: dict[Partition, Place]


@dataclass(frozen=True, slots=True)
class Landed:
    """A batch is durable. `rows` landed, `letters` went to the dead letters."""

    work: Work
    rows: int
    letters: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """Work was void, or a writer elsewhere was first; its cursors' epochs have moved on."""

    work: Work


@dataclass(frozen=True, slots=True)
class Failed:
    """The process has to stop."""

    error: BaseException


Outcome = Placed | Landed | Dropped | Failed
