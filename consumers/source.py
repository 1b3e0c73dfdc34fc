"""What the run loop reads from, and what it is told by it.

A source has partitions, which come and go, and their records. Its methods are for the thread that
polls, except those that lanes use: `known`, `unchanged`, and what a sink may ask (consumers.sinks.Log).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import Message

from consumers.batch import Partition
from consumers.sinks import Known, Log

__all__ = ["Listener", "Runs", "Source"]

# Records of each partition, in order; none without any.
Runs = Mapping[Partition, Sequence[Message]]


class Listener(Protocol):
    """Told of rebalances from within `poll`."""

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """They are ours; nothing of them is read before `seek`."""
        ...

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what is under way for them: they move when this returns."""
        ...

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """They have moved already: drop what is under way."""
        ...


class Source(Log, Protocol):
    """See the module's comment."""

    # Partition -> offset at which its end was last seen; older than what is read since.
    ends: dict[Partition, int]
    # Partitions whose next offset Kafka has removed; the run loop takes them out.
    replace: set[Partition]

    @property
    def away(self) -> bool:
        """Whether Kafka has been out of reach for all that was heard lately."""
        ...

    def poll(self, n: int, timeout_s: float) -> Runs:
        """Up to `n` records; serves rebalances.

        Raises what a listener raised, and Systemic for what a person has to mend.
        """
        ...

    def serve(self) -> None:
        """Do what other threads have queued; also within a listener's methods."""
        ...

    def seek(self, partition: Partition, offset: int) -> bool:
        """Read this partition from here on; False when it is not ready yet, then call again."""
        ...

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Read nothing of them until `resume` or `seek`."""
        ...

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Go on where `pause` stopped."""
        ...

    def latest(self, partition: Partition) -> int:
        """The end of the partition as of the last fetch, -1 if not yet known; does not block."""
        ...

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        """What Kafka knows of these partitions. Raises Unavailable, Systemic.

        Positions that follow from the answer are committed only as long as the partition stays
        ours; what was found before it went and came back is Fenced.
        """
        ...

    def unchanged(self, partitions: Collection[Partition]) -> None:
        """The topics are those that they were when the partitions were last placed by `known`.

        What was read before this returns is then of that topic, too: ids do not come back. Raises
        Fenced when it has been deleted since, whether or not it was made anew; Unavailable.
        """
        ...

    def all_ends(self) -> dict[Partition, int]:
        """The end of every partition of the topics, asked now. Raises Unavailable, Systemic."""
        ...

    def owned(self) -> set[Partition]:
        """Ours now, and placed by `known` since they were given to us; from any thread."""
        ...

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The committed positions, whoever owns the partitions; -1 where there is none.

        Raises Unavailable.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
