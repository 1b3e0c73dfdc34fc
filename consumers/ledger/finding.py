"""What a look at the data asks, and finds: a record that is missing, or there too often."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from consumers.batch import Batch, Partition, Span
from consumers.replay.select import Selection
from ingest.streams import Stream

__all__ = ["MOST", "Finding", "Question", "label"]

# Findings of one look that are named; who has more wants the table anew, not a list.
MOST = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """A record, and how many rows of it there are too many; -1 means that it is missing."""

    hour: int
    surplus: int
    # What people know it by: its event_id, or its key.
    name: str
    # Where it stands in Kafka; None where that can't be said.
    place: tuple[Partition, int] | None
    # SQL that takes out what is too much; "" where a replay does it.
    removal: str = ""
    # Whether the destination has said that it has it.
    acknowledged: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be compared: records of [begin_us, end_us), as far as they have landed."""

    stream: Stream
    topic_id: str
    begin_us: int
    end_us: int
    # Up to where the destination's account is, and from where Kafka still has records.
    positions: Mapping[Partition, int]
    earliest: Mapping[Partition, int]
    # Reads spans from Kafka; may be called again.
    read: Callable[[Mapping[Partition, Span]], Iterator[Batch]]
    # Reads where the records that are among the dead letters stood.
    refused: Callable[[], Collection[tuple[Partition, int]]]

    def spans(self, positions: Mapping[Partition, int]) -> dict[Partition, Span]:
        """What Kafka has of each partition below these positions."""
        return {
            p: Span(start, max(start, positions.get(p, start)))
            for p, start in self.earliest.items()
        }

    def meant(self, spans: Mapping[Partition, Span]) -> Iterator[Batch]:
        """The records of that time in these spans."""
        selection = Selection(self.begin_us, self.end_us)
        for batch in self.read(spans):
            yield selection.of(batch)


def label(stream: Stream) -> str:
    """The column that people know a record by."""
    known = "event_id" in stream.descriptor.fields_by_name
    return stream.column("event_id" if known else stream.key)
