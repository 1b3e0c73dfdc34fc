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

from consumers.batch import Batch, Chunk, Partition
from consumers.errors import Fenced, Rejected, SinkError
from consumers.intent import FRESH_S, Intent, Newest
from consumers.ledger.owed import Owed, owed_of
from consumers.metrics import Step, step_timer
from consumers.sinks import Known, Log
from consumers.sinks.clickhouse_checks import check_tables
from consumers.sinks.clickhouse_client import connect, require_chdb
from consumers.sinks.clickhouse_errors import talking
from consumers.sinks.clickhouse_newest import AT_ONCE, LookBack, accounted, newest_of
from consumers.sinks.clickhouse_recovery import Recovery
from consumers.sinks.clickhouse_screen import screen
from consumers.sinks.clickhouse_table import Tables
from ingest.streams import Stream

__all__ = ["ClickHouseSink"]

log = logging.getLogger(__name__)


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
        self._recovery = Recovery(kafka, self._streams, self._tables, self._back, step)

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
        places = self._recovery.places(known)
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

    def _newest(self, partition: Partition) -> Newest | None:
        """What has landed last, by the last commit."""
        rest = self._rest.get(partition)
        return rest.newest if rest else None

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


def _then(owed: Mapping[Partition, Owed], more: Mapping[Partition, Owed]) -> dict[Partition, Owed]:
    """What is owed once more comes to it."""
    return {**owed, **{p: owed[p].then(one) if p in owed else one for p, one in more.items()}}
