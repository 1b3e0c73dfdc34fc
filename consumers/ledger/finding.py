"""What a look at the data asks, and finds: a record that is missing, or there too often."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from consumers.batch import Batch, Partition, Span
from consumers.ledger.tally import Bucket, Entry, sum_of
from consumers.replay.select import Selection
from ingest.streams import Stream

__all__ = ["MOST", "Finding", "Question", "label"]

# Findings of one look that are named; who has more wants the table anew, not a list.
MOST = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """A record, and how many rows of it there are too many; -1 means that it is missing.

    Or, with `changed`, all rows of an hour that are neither.
    """

    hour: int
    surplus: int
    # What people know it by: its event_id, or its key; "" where it can't be said which they are.
    name: str
    # Where it stands in Kafka; None where that can't be said.
    place: tuple[Partition, int] | None
    # SQL that takes out what is too much; "" where a replay does it, if its place is known.
    removal: str = ""
    # Whether the destination has said that it has it.
    acknowledged: bool = False
    # Of a row too many: whether Kafka has a record of its values, so that it is one more of that.
    known: bool = True
    # How many rows have their record's key and time, and other values than that gives now.
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be compared: records of [begin_us, end_us), as far as they have landed."""

    stream: Stream
    topic_id: str
    begin_us: int
    end_us: int
    # Up to where the destination's account is, what its ledger says below, and from where Kafka
    # still has records.
    positions: Mapping[Partition, int]
    entries: Mapping[Bucket, Entry]
    earliest: Mapping[Partition, int]
    # Reads spans from Kafka; may be called again.
    read: Callable[[Mapping[Partition, Span]], Iterator[Batch]]
    # Reads where the records that are among the dead letters stood, of all destinations, and of
    # older topics of this name.
    refused: Callable[[], Collection[tuple[Partition, int]]]

    def spans(self, positions: Mapping[Partition, int]) -> dict[Partition, Span]:
        """What Kafka has of each partition below these positions."""
        return {
            p: Span(start, max(start, positions.get(p, start)))
            for p, start in self.earliest.items()
        }

    def dead(self, bucket: Bucket) -> int:
        """How many records of it the destination has refused, by its ledger."""
        return self.entries.get(bucket, Entry()).dead.records

    def excused(
        self, missing: Mapping[Bucket, Sequence[int]], entries: Mapping[Bucket, Entry]
    ) -> set[tuple[Partition, int]]:
        """Of ascending offsets those that this destination has refused, by its ledger's `entries`.

        They are its dead letters if they are all that it has refused, by count and hash, or stand
        among the letters and are no more than that. A letter alone says nothing: another
        destination may have sent it, or it is of an older topic.
        """
        found: set[tuple[Partition, int]] = set()
        letters: Collection[tuple[Partition, int]] | None = None
        for bucket, offsets in missing.items():
            dead = entries.get(bucket, Entry()).dead
            if not dead.records:
                continue
            if sum_of(offsets) != dead:
                letters = self.refused() if letters is None else letters
                offsets = [o for o in offsets if (bucket.partition, o) in letters]  # noqa: PLW2901
            if len(offsets) <= dead.records:
                found.update((bucket.partition, offset) for offset in offsets)
        return found

    def meant(self, spans: Mapping[Partition, Span]) -> Iterator[Batch]:
        """The records of that time in these spans."""
        selection = Selection(self.begin_us, self.end_us)
        for batch in self.read(spans):
            yield selection.of(batch)


def label(stream: Stream) -> str:
    """The column that people know a record by."""
    known = "event_id" in stream.descriptor.fields_by_name
    return stream.column("event_id" if known else stream.key)
