"""What a destination must do: three methods, and this comment is their contract.

A sink belongs to one thread; several of them may serve one process, each for its own partitions.
Positions are offsets *next to read*. A sink raises only the errors of `consumers.errors`; anything
else is a bug and ends the process with nothing committed.

`resume(known)`  is called for partitions that this process has just been given, or must place again
    after `Fenced`. Answers, for each, the offset to read next: everything below has landed exactly
    once, nothing from there on has. It settles what a crashed owner left half done. What Kafka said
    may be of a topic that was deleted meanwhile: that takes no position back (`Unavailable`).

`write(batch)`  lands all rows of the batch and moves each of its partitions from `span.start` to
    `span.end`, or does neither. It returns when that is durable. After `Unavailable` the same batch
    is written again and must not land twice. A batch may have no rows and still move positions.
    What became of its records, dead letters included, is added to the sink's ledger with them. A
    writer whose position has been moved by another one gets `Fenced`, whenever it wakes up.

`close()`  gives back what the sink holds; moves no position, and never raises.

A sink whose `write` may take long has a fourth one, see `Stoppable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from confluent_kafka import Message

from consumers.batch import Batch, Partition, Span

__all__ = ["Known", "Log", "Notes", "Sink", "Stoppable"]

# Metadata of positions: the same for all of them, or each one's own.
Notes = str | Mapping[Partition, str]


@dataclass(frozen=True, slots=True)
class Known:
    """What Kafka knows of a partition."""

    # Changes when a topic is deleted and made anew.
    topic_id: str
    # The oldest offset that is still there.
    earliest: int
    # Behind the newest one.
    latest: int
    # The group's committed position and its metadata, None and "" without one.
    committed: int | None
    note: str


class Log(Protocol):
    """What a sink may ask of Kafka."""

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        """Commit the group's positions with this metadata, durably.

        Raises Fenced when this process no longer owns them, Unavailable when Kafka is away.
        """
        ...

    def report(self, positions: Mapping[Partition, int]) -> None:
        """Commit the group's positions in the background, for others to see; never raises."""
        ...

    def read(self, partition: Partition, span: Span) -> Sequence[Message]:
        """The records of a span that are still there. Raises Unavailable when Kafka is away."""
        ...

    def topic_id(self, partition: Partition) -> str:
        """The id of its topic as it was when the partition was last placed by this process."""
        ...


class Sink(Protocol):
    """See the module's comment."""

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]: ...

    def write(self, batch: Batch) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Stoppable(Protocol):
    """A sink that can be told to end the `write` that is under way.

    That raises Fenced soon, unless all has landed by then. From any thread, also behind `close`;
    nothing is written afterwards.
    """

    def stop(self) -> None: ...
