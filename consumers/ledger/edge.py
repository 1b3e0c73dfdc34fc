"""The hop from a spool into Kafka: what relays say that they sent, and what the topics hold.

A relay notes each transaction in it (ingest/spool/entry.py). Here the notes are added up, and so are the
values of the topics' records, each by the hour in which they entered Kafka:

    accepted at the edge = in Kafka through the edge + still in a spool

The first two by count and hash for each topic and hour, the third by the numbers of each node, which
follow each other: a number that was left out was acknowledged and never sent. What a topic holds beyond
what relays sent was published to it directly, and is counted where it entered.

In this order: notes are read to their end; then topics at least up to where they end behind that, so
that of each noted transaction the records are counted; then notes once more, for what came meanwhile
is no direct publisher's.

    ["sent", topic, topic id, hour, source]     [records, hash]            from the notes
    ["entered", topic, topic id, hour]          [records, hash]            from the topic
    ["crossed", topic, topic id, partition]     [next offset, since when, in µs]
    ["node", node]                              [next number, stored]
    ["gap", node, hour]                         [never sent, sent twice]
    ["heard", id of the notes' topic]           [next offset]
    ["heard", the same, "since"]                [since when, in µs]
    ["heard", "hour", node]                     [hour of its last note]

A headrace from before the last two passes them over: it takes no other number of values than these
for the others, and no other kinds.
"""  # noqa: E501

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

from confluent_kafka import Message

from consumers.batch import Partition, Span
from consumers.bounds import bounds, pieces
from consumers.client import Settings
from consumers.ledger.accepted import Book, Key, Read
from consumers.ledger.crossing import Crossing, Doubt, Node
from consumers.ledger.sent import entry_of, folded, total
from consumers.ledger.truncated import Truncated
from ingest.spool.entry import EDGE, NOTHING, RelaySum
from ingest.streams import MAX_TIME_US, Stream
from ingest.topics import TopicError, TopicIds, retentions
from ingest.units import HOUR_MS, HOUR_US

__all__ = ["Edge"]

# A relay's transaction is over by then, and what it has sent can be read.
_SETTLE_S = 12.0
_LOOK_AGAIN_S = 0.1
# A transaction that holds others back is younger: Kafka ends it after transaction.max.timeout.ms,
# which is 15 minutes unless somebody has changed it.
_OPEN_US = HOUR_US
# A transaction of the book holds what so many records have changed.
_COMMIT_EVERY = 500_000
_NOT_JUDGED = "Hours before now are not judged at the edge any more"


_ELSEWHERE = Doubt(
    "all", None,
    f"has notes of spools outside the first partition of {EDGE}, which alone is read: an older "
    "headrace sent them, and what is in them can't be judged before they have expired",
)  # fmt: skip


class _Counted(NamedTuple):
    """What is there of each hour; of hours outside of [since, until) there may be more."""

    entered: dict[int, RelaySum]
    since_us: int
    until_us: int


class Edge:
    """Counts on from where the book stops; `lost` is what had expired by then."""

    def __init__(self, kafka: Settings, book: Book) -> None:
        self._kafka = kafka
        self._book = book
        self._ids = TopicIds(kafka)
        self.lost: dict[Partition, Span] = {}
        self.doubts: list[Doubt] = []
        # Of hours that began before it notes may be missing.
        self._heard_since_us = 0

    def audit(self, streams: Sequence[Stream], *, recount: bool = False) -> list[Crossing]:
        """The lines of these streams; with `recount` topics are read anew.

        Raises Unavailable, Systemic.
        """
        self._hear()
        before = self._sent()
        ids = self._ids([stream.topic for stream in streams])
        topics = {stream: (stream.topic, ids.get(stream.topic, "")) for stream in streams}
        self.doubts += [
            Doubt(
                stream.name, frozenset(hours),
                f"has no topic {topic}, into which spools have sent in that time: whether all of "
                "it was there can't be said any more. Where it was deleted on purpose, begin with "
                "--from behind that",
            )
            for stream, (topic, topic_id) in topics.items()
            if not topic_id
            and (hours := {hour for of, sums in before.items() if of[0] == topic for hour in sums})
        ]  # fmt: skip
        counted = {
            stream: self._count(stream.name, *topic, recount=recount)
            for stream, topic in topics.items()
            if topic[1] and topic in before
        }
        self._hear()
        after = self._sent()
        lines = []
        for stream, (there, since_us, until_us) in counted.items():
            for hour, sources in sorted(before[topics[stream]].items()):
                held = there.get(hour, NOTHING)
                sent = total(after[topics[stream]][hour].values())
                unheard = hour * HOUR_US < self._heard_since_us
                lines.append(
                    Crossing(
                        stream.name, hour, {name: one.records for name, one in sources.items()},
                        total(sources.values()), held,
                        0 if unheard else max(0, held.records - sent.records),
                        not since_us <= hour * HOUR_US <= until_us - HOUR_US, unheard,
                    )
                )  # fmt: skip
        return lines

    def nodes(self, first_hour: int, end_hour: int) -> list[Node]:
        """All that were heard of, with what went wrong in [first_hour, end_hour)."""
        found = []
        hours = self._book.kept("heard")
        for (node,), (following, stored, *_) in sorted(self._book.kept("node").items()):
            gaps = [
                gap
                for (whose, hour), gap in self._book.kept("gap").items()
                if whose == node and first_hour <= int(hour) < end_hour
            ]
            missing, twice = (sum(gap[i] for gap in gaps) for i in (0, 1))
            (last,) = hours.get(("hour", node), (None,))
            found.append(Node(str(node), following, stored - following, missing, twice, last))
        return found

    # -- what relays say

    def _hear(self) -> None:
        """Read their notes on to the end."""
        edge_id = self._ids([EDGE]).get(EDGE)
        if edge_id is None:
            return
        (low, high), *others = bounds(self._kafka, EDGE, uncommitted=True).spans.values()
        if any(start < end for start, end in others) and _ELSEWHERE not in self.doubts:
            self.doubts.append(_ELSEWHERE)
        # A book from before notes could be missed has no such time.
        at = self._book.kept("heard").get((edge_id,), (0,))[0]
        since_us = self._book.kept("heard").get((edge_id, "since"), (0,))[0]
        known = dict(self._book.kept("node"))
        cut = not low <= at <= high
        if cut:
            if at < low:
                self.lost[Partition(EDGE, 0)] = Span(at, low)
            else:
                self.doubts.append(
                    Doubt("all", None, str(Truncated(Partition(EDGE, 0), at, high, _NOT_JUDGED)))
                )
            # Between what was heard and what is heard now no gap can be judged.
            known = {}
            at, since_us = max(low, min(at, high)), time.time_ns() // 1000
        for _, run, span in pieces(self._kafka, EDGE, {0: Span(at, high)}):
            if cut and run:
                # Transactions beside each other are not in the order of their times.
                cut, since_us = False, int(run[0].timestamp()[1] * 1000 + _SETTLE_S * 1_000_000)
            entries = [entry_of(message) for message in run]
            ids = self._ids({topic for entry in entries for topic, _ in entry.sums})
            sent, gaps = self._book.kept("sent"), self._book.kept("gap")
            changed = folded(entries, ids, known, sent, gaps)
            known.update(changed["node"])
            at = span.end
            self._book.keep({**changed, "heard": changed["heard"] | _heard(edge_id, at, since_us)})
        if cut:
            self._book.keep({"heard": _heard(edge_id, at, since_us)})
        self._heard_since_us = since_us

    def _sent(self) -> dict[tuple[str, str], dict[int, dict[str, RelaySum]]]:
        """Of each topic and its id, by the hour and source."""
        found: dict[tuple[str, str], dict[int, dict[str, RelaySum]]] = {}
        for (topic, topic_id, hour, source), one in self._book.kept("sent").items():
            hours = found.setdefault((str(topic), str(topic_id)), {})
            hours.setdefault(int(hour), {})[str(source)] = RelaySum(*one)
        return found

    # -- what topics hold

    def _count(self, stream: str, topic: str, topic_id: str, *, recount: bool) -> _Counted:
        """Of each hour what is there, and from when until when that is all, in µs."""
        of_topic = (topic, topic_id)
        # What an open transaction holds back may be a relay's, and committed.
        marks = bounds(self._kafka, topic, uncommitted=True).spans
        entered, reads = ({}, {}) if recount else self._counted(of_topic)
        self.doubts += [
            Doubt(stream, None, str(Truncated(Partition(topic, n), read.next, marks[n].end)))
            for n, read in reads.items()
            if read.next > marks[n].end
        ]
        cut = self._placed(topic, marks, reads)
        give_up = time.monotonic() + _SETTLE_S
        while True:
            spans = {n: Span(reads[n].next, span.end) for n, span in marks.items()}
            changed: set[int] = set()
            records = 0
            for partition, run, span in pieces(self._kafka, topic, spans):
                number = partition.number
                if number in cut and run:
                    cut.remove(number)
                    reads[number] = Read(span.start, int(run[0].timestamp()[1]) * 1000)
                reads[number] = reads[number]._replace(next=span.end)
                for hour, one in _sums(run).items():
                    entered[hour] = entered.get(hour, NOTHING).plus(one)
                    changed.add(hour)
                records += len(run)
                if records >= _COMMIT_EVERY and not recount:
                    self._keep(of_topic, {h: entered[h] for h in changed}, reads)
                    changed, records = set(), 0
            if not recount:
                self._keep(of_topic, {h: entered[h] for h in changed}, reads)
            since_us = max((read.since_us for read in reads.values()), default=0)
            if all(reads[n].next >= span.end for n, span in marks.items()):
                return _Counted(entered, since_us, MAX_TIME_US)
            if time.monotonic() > give_up:
                return _Counted(entered, since_us, time.time_ns() // 1000 - _OPEN_US)
            # Somebody's open transaction hides what others have committed behind its beginning.
            time.sleep(_LOOK_AGAIN_S)

    def _counted(self, of_topic: tuple[str, str]) -> tuple[dict[int, RelaySum], dict[int, Read]]:
        """What the book has of a topic: sums by the hour, and how far each partition is."""
        entered, crossed = self._book.kept("entered"), self._book.kept("crossed")
        return (
            {
                int(key[2]): RelaySum(*value)
                for key, value in entered.items()
                if key[:2] == of_topic
            },
            {int(key[2]): Read(*value) for key, value in crossed.items() if key[:2] == of_topic},
        )

    def _placed(self, topic: str, marks: Mapping[int, Span], reads: dict[int, Read]) -> set[int]:
        """Where to go on; of the partitions that are answered older records have expired."""
        cut = set()
        for number, (low, _) in marks.items():
            read = reads.get(number)
            if read is not None and read.next >= low:
                continue
            if read is not None:
                self.lost[Partition(topic, number)] = Span(read.next, low)
            if low > 0:
                cut.add(number)
            reads[number] = Read(low, self._kept_since_us(topic) if low > 0 else 0)
        return cut

    def _kept_since_us(self, topic: str) -> int:
        """What has expired is older, also of a partition that has no record left to say so."""
        try:
            kept_s = retentions(self._kafka, [topic])[topic].seconds
        except TopicError as error:
            if not error.denied:
                raise
            kept_s = None
        return 0 if kept_s is None else time.time_ns() // 1000 - int(kept_s * 1_000_000)

    def _keep(
        self, of_topic: tuple[str, str], sums: Mapping[int, RelaySum], reads: Mapping[int, Read]
    ) -> None:
        self._book.keep(
            {
                "entered": {(*of_topic, hour): one for hour, one in sums.items()},
                "crossed": {(*of_topic, number): read[:2] for number, read in reads.items()},
            }
        )


def _heard(edge_id: str, at: int, since_us: int) -> dict[Key, Sequence[int]]:
    return {(edge_id,): [at], (edge_id, "since"): [since_us]}


def _sums(run: Sequence[Message]) -> dict[int, RelaySum]:
    """Of each hour of their timestamps how many, and which."""
    hours = [int(m.timestamp()[1]) // HOUR_MS for m in run]
    hashes = [crc32(m.value() or b"") for m in run]
    if hours and min(hours) == max(hours):
        return {hours[0]: RelaySum(len(run), sum(hashes))}
    found: dict[int, RelaySum] = {}
    for hour, one in zip(hours, hashes, strict=True):
        found[hour] = found.get(hour, NOTHING).plus(RelaySum(1, one))
    return found
