"""ClickHouse, exactly once; also its engine in this process (chDB), through the same client.

ClickHouse has no transaction that could hold rows and a position. Instead:

1. `account` what became of the records of the batches before, into the ledger: one row for several
2. `intent`  the spans of the batch are committed as metadata of the group's offsets, which stay at
             the batch's start. Only a member that still owns the partitions can do that.
3. `insert`  one insert, with a deduplication token made of the spans
4. `commit`  the group's offsets move to the batch's end; their metadata says what became of its records

Whoever is given a partition whose offset carries an intent settles it first: it reads exactly those
spans again, asks the table which of their offsets are there, and inserts the whole intent with the
same token if they are not. A stopped writer that wakes up and inserts late is recognised by that
token. Tokens are forgotten (after an hour, or 10,000 inserts): so the table is asked, and an intent
that is older than `FRESH_S` is settled by its missing rows alone, and not begun by its own writer.

An intent covers all partitions of its insert, so that one insert a second is enough for all of them,
and every new owner can rebuild the same insert.

The metadata also names the newest rows that have landed. Where the table does not have them any more
it has gone back, and nothing lands behind what is missing (clickhouse_newest.py).
"""  # noqa: E501

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from consumers.batch import Batch, Chunk, Dead, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Fenced, Rejected, SinkError
from consumers.intent import FRESH_S, Intent, Newest
from consumers.metrics import Step, step_timer
from consumers.sinks import Known, Log
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_newest import AT_ONCE, LookBack, accounted, newest_of
from consumers.sinks.clickhouse_owed import Owed, owed_of
from consumers.sinks.clickhouse_screen import screen
from consumers.sinks.clickhouse_table import Tables
from ingest.streams import Stream

__all__ = ["ClickHouseSink"]

log = logging.getLogger(__name__)

# Offsets: what BATCHES full batches have. More was landed by something that kept no ledger.
_MOST_OWED = 16_000_000
# Read again at once.
_PIECE = 100_000


class ClickHouseSink:
    """One client. Opening it checks that the tables are as the streams need them.

    `url`: `clickhouse://user:password@host:8123/database`, `clickhouses://…` for TLS, or
    `chdb:DIRECTORY`. Raises Unavailable when the server is away, Systemic when a person has to act.
    """

    def __init__(
        self, url: str, streams: Sequence[Stream], kafka: Log, step: Step = step_timer
    ) -> None:
        self._log = kafka
        self._step = step
        self._streams = {stream.topic: stream for stream in streams}
        self._decoders = {stream.topic: Decoder(stream) for stream in streams}
        # The token of an insert that has been tried and is not committed.
        self._unsure = ""
        # The metadata of each partition's last commit.
        self._rest: dict[Partition, Intent] = {}
        # Of these a commit has been tried since, and it is not known what the metadata is.
        self._begun: set[Partition] = set()
        require_chdb(url)
        self._client = connect(url)
        try:
            with talking(url):
                check_tables(self._client, streams)
        except BaseException:
            self._client.close()
            raise
        self._tables = Tables(self._client, url, self._streams)
        self._back = LookBack(self._streams, self._tables.gone)

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """Positions: the group's, once what was begun there is settled, and never below the table.

        Nothing is owed to the ledger then. What can be asked for all partitions of a topic at once
        is, and they are committed at once: nothing lands meanwhile, and there may be a thousand.
        """
        self._begun |= known.keys()
        positions: dict[Partition, int] = {}
        for topic in dict.fromkeys(partition.topic for partition in known):
            ours = [p for p in known if p.topic == topic]
            for i in range(0, len(ours), AT_ONCE):
                positions |= self._resume({p: known[p] for p in ours[i : i + AT_ONCE]})
        self._begun -= known.keys()
        return positions

    def _resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """The same for partitions of one topic."""
        topic_id = next(iter(known.values())).topic_id
        said = {p: self._said(p, k) for p, k in known.items()}
        self._back.look(topic_id, {p: i.newest if i else None for p, (_, i) in said.items()})
        starts = {
            p: start
            for p, (start, intent) in said.items()
            if intent is None or p not in intent.spans
        }
        stand = {p: Span(starts[p], at) for p, at in self._tables.after(topic_id, starts).items()}
        # What an intent announced, read once for all of its partitions.
        fetched: dict[str, dict[Partition, Batch]] = {}
        places = {p: self._place(p, k, said[p][1], stand, fetched) for p, k in known.items()}
        self._account({partition: rest for partition, (_, rest) in places.items()})
        rests = {partition: self._paid(partition, rest) for partition, (_, rest) in places.items()}
        positions = {partition: position for partition, (position, _) in places.items()}
        self._rest |= rests
        self._log.commit(positions, {partition: rest.note() for partition, rest in rests.items()})
        return positions

    def write(self, batch: Batch) -> None:
        """In commit order; see the module's comment.

        0. `screen`: rows that ClickHouse would change without saying so are refused
        1. `account`, if the metadata would be too much with this batch's
        2. `intent`
        3. `insert`; after an attempt without an answer, only what the table does not have
        4. `commit`
        """
        topic_id = self._log.topic_id(next(iter(batch.spans)))
        owed = {p: one.owed for p in batch.spans if (one := self._rest.get(p)) and one.owed}
        refused = screen(batch)
        if refused:
            raise Rejected("out of range", refused)
        more = owed_of(batch) if batch.chunks or batch.dead else {}
        if any(both.full for both in _then(owed, more).values()):
            # Not owed again if this batch is tried in halves: the statement may come late.
            self._account({p: self._rest[p] for p in owed})
            for partition in owed:
                self._rest[partition] = self._paid(partition, self._rest[partition])
            owed = {}
        newest = {p: self._newest(p) for p in batch.spans} | newest_of(batch, more)
        self._begun |= batch.spans.keys()
        if batch.chunks or batch.dead:
            self._land(batch, topic_id, owed)
        if any(new.full for new in more.values()):
            # Hours that metadata has no room for.
            self._account({p: Intent.at_rest(topic_id, new) for p, new in more.items()})
            newest |= {p: accounted(batch.stream, new, newest[p]) for p, new in more.items()}
            more = {}
        owed = _then(owed, more)
        rest = {p: Intent.at_rest(topic_id, owed.get(p), newest[p]) for p in batch.spans}
        with self._step("commit"):
            self._log.commit(
                {p: span.end for p, span in batch.spans.items()},
                {p: said.note() for p, said in rest.items()},
            )
        self._rest |= rest
        self._begun -= rest.keys()
        self._unsure = ""

    def _land(self, batch: Batch, topic_id: str, owed: Mapping[Partition, Owed]) -> None:
        intent = Intent(topic_id, batch.spans, int(time.time() * 1000))
        began = time.monotonic()
        with self._step("intent"):
            self._log.commit(
                {p: s.start for p, s in batch.spans.items()},
                {
                    p: replace(intent, owed=owed.get(p), newest=self._newest(p)).note()
                    for p in batch.spans
                },
            )
        with self._step("insert"):
            if time.monotonic() - began > FRESH_S:
                raise Fenced("stopped for too long between intent and insert")
            chunks: Sequence[Chunk] = batch.chunks
            if self._unsure == intent.token:
                # It was away: it may be another replica that answers, or what a backup had.
                self._back.look(topic_id, {p: self._newest(p) for p in batch.spans})
                chunks = self._tables.missing(chunks, batch.spans, topic_id)
            self._unsure = intent.token
            self._tables.insert(batch.stream, chunks, topic_id, intent.token)

    def _account(self, rests: Mapping[Partition, Intent]) -> None:
        """What is owed, into the ledger, with a statement for each topic; twice changes nothing."""
        for topic, topic_id in {(p.topic, rest.topic_id) for p, rest in rests.items()}:
            owed = {
                p: rest.owed
                for p, rest in rests.items()
                if rest.owed and (p.topic, rest.topic_id) == (topic, topic_id)
            }
            if owed:
                with self._step("account"):
                    self._tables.account(self._streams[topic], topic_id, owed)

    def _paid(self, partition: Partition, rest: Intent) -> Intent:
        """What is said of a position once the ledger has got what it was owed."""
        newest = accounted(self._streams[partition.topic], rest.owed, rest.newest)
        return replace(rest, owed=None, newest=newest)

    # -- recovery ------------------------------------------------------------------------------------  # noqa: E501

    def _said(self, partition: Partition, k: Known) -> tuple[int, Intent | None]:
        """Where the group goes on, and what its metadata says of just this topic."""
        if k.committed is None:
            return k.earliest, None
        intent = Intent.read(k.note)
        if intent is not None and intent.topic_id != k.topic_id:
            log.warning("the topic %s was deleted and made anew: beginning at its start",
                        partition.topic)  # fmt: skip
            return k.earliest, None
        return k.committed, intent

    def _place(
        self,
        partition: Partition,
        k: Known,
        intent: Intent | None,
        stand: Mapping[Partition, Span],
        fetched: dict[str, dict[Partition, Batch]],
    ) -> tuple[int, Intent]:
        """Where to go on with one partition; what its ledger is owed, and what the table has.

        Where nothing is announced, `stand` is from where the group goes on to behind what the table
        has.
        """
        owed = intent.owed if intent is not None else None
        newest = intent.newest if intent is not None else None
        span = intent.spans.get(partition) if intent is not None else None
        if intent is None or span is None:
            start, position = stand[partition]
            if intent is None or position > start:
                # The group has forgotten what it knew, or that is old.
                owed = self._forgotten(partition, k, owed, position)
            return position, Intent.at_rest(k.topic_id, owed, newest)
        rest = Intent.at_rest(k.topic_id, owed, newest)
        expired = Span(span.start, min(k.earliest, span.end))
        if expired.start < expired.end and not self._present(partition, expired, k.topic_id):
            # A part of it can't be read any more: it is for the lane to say, or to skip.
            return self._after(partition, k.topic_id, span.start), rest
        with self._step("settle"):
            if intent.token not in fetched:
                fetched[intent.token] = {p: self._fetch(p, s) for p, s in intent.spans.items()}
            batches = fetched[intent.token]
            if not self._settle(partition, intent, batches):
                return span.start, rest
        became = owed_of(batches[partition])
        more = became[partition]
        owed = owed.then(more) if owed else more
        newest = newest_of(batches[partition], became).get(partition, newest)
        return span.end, Intent.at_rest(k.topic_id, owed, newest)

    def _newest(self, partition: Partition) -> Newest | None:
        """What has landed last, by the last commit."""
        rest = self._rest.get(partition)
        return rest.newest if rest else None

    def _settle(
        self, partition: Partition, intent: Intent, fetched: Mapping[Partition, Batch]
    ) -> bool:
        """Bring an announced insert to its end; whether its rows are in the table now."""
        stream = self._streams[partition.topic]
        own = [c for c in fetched[partition].chunks if c.rows.num_rows]
        everything = [c for batch in fetched.values() for c in batch.chunks if c.rows.num_rows]
        span = {partition: intent.spans[partition]}
        try:
            # Whole and under its own token, so that a stopped writer's late insert is recognised;
            # unless something of it is there, which the token would not keep from landing twice, or
            # it is old: then retention may have taken a part of another partition, and what is left
            # of that is not ours to land.
            if intent.fresh(time.time()) and (
                _rows(self._tables.missing(everything, intent.spans, intent.topic_id))
                == _rows(everything)
            ):
                self._tables.insert(stream, everything, intent.topic_id, intent.token)
            missing = self._tables.missing(own, span, intent.topic_id)
            if missing:
                # Too old for its token, or only a part of it is there.
                token = f"{intent.token}-{partition.number}"
                self._tables.insert(stream, missing, intent.topic_id, token)
        except Rejected:
            # It was refused then, too: nothing of it landed, and it is read again.
            return False
        log.info("settled an insert that was announced for %s: %s", partition, span[partition])
        return True

    def _forgotten(
        self, partition: Partition, k: Known, owed: Owed | None, position: int
    ) -> Owed | None:
        """What the ledger lacks of what has landed below a position; as far as Kafka has it."""
        if owed is None and position <= k.earliest:
            return None  # nothing has landed of what Kafka has
        end = self._tables.accounted(partition, k.topic_id)
        if owed is not None and end > owed.span.start:
            owed = None
        begin = max(owed.span.end if owed else end, k.earliest)
        until = min(position, self._after(partition, k.topic_id, begin))
        if until - begin > _MOST_OWED:
            log.warning("the ledger says nothing of %s from %d to %d", partition, begin, until)
            return owed
        for start in range(begin, until, _PIECE):
            span = Span(start, min(start + _PIECE, until))
            batch = self._fetch(partition, span)
            if not batch.stream.dedupe:
                # What is not there may have been skipped by hand: that is for the audit to say.
                there = self._present(partition, span, k.topic_id)
                stay = [[i for i, o in enumerate(c.offsets) if o in there] for c in batch.chunks]
                chunks = [c.only(rows) for c, rows in zip(batch.chunks, stay, strict=True) if rows]
                batch = replace(batch, chunks=tuple(chunks))
            more = owed_of(batch)[partition]
            owed = owed.then(more) if owed else more
        return owed

    def _present(self, partition: Partition, span: Span, topic_id: str) -> set[int]:
        return self._tables.present({partition: span}, topic_id)[partition]

    def _after(self, partition: Partition, topic_id: str, start: int) -> int:
        return self._tables.after(topic_id, {partition: start})[partition]

    def _fetch(self, partition: Partition, span: Span) -> Batch:
        """A span as it was first decoded; its dead letters had been sent before."""
        stream = self._streams[partition.topic]
        messages = self._log.read(partition, span)
        if not messages:
            return Batch(stream, {partition: span}, ())
        rows, bad = self._decoders[partition.topic].decode([m.value() for m in messages])
        offsets = [m.offset() or 0 for i, m in enumerate(messages) if i not in bad]
        chunk = Chunk(partition, offsets, rows)
        dead = tuple(Dead.of(messages[i]) for i in bad)
        whole = Batch(stream, {partition: span}, (chunk,) if offsets else (), dead)
        return whole.without(list(screen(whole)))

    def close(self) -> None:
        """Close the client. The ledger gets what it is owed, if ClickHouse is there.

        Kafka forgets a group's metadata a week after its last member has left. A ledger that went
        back with its table is left as it is: rows that are gone will land, and be accounted, again.
        """
        try:
            if not self._back.lacking:
                self._account({p: rest for p, rest in self._rest.items() if p not in self._begun})
        except SinkError as error:
            log.debug("whoever comes next writes what the ledger is owed: %s", error)
        finally:
            self._client.close()


def _rows(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.rows.num_rows for chunk in chunks)


def _then(owed: Mapping[Partition, Owed], more: Mapping[Partition, Owed]) -> dict[Partition, Owed]:
    """What is owed once more comes to it."""
    return {**owed, **{p: owed[p].then(one) if p in owed else one for p, one in more.items()}}
