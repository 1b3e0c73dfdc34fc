"""Mutations of the product: each breaks one promise, and the tests that attack it must notice.

A mutation replaces one piece of text, which is there exactly once; tests/unit/test_mutants.py asks
that of each of them, so whoever changes the code changes its mutation along. `tests` are to catch
it: models and conformance where there are any, for they know the promise and not the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTATIONS", "Mutation"]

POWER_CUT = "tests/model/test_power_cut.py"
SPOOL = "tests/model/test_spool.py"
PEERS = "tests/unit/test_spool_peers.py"
RUN = "tests/model/test_run.py"
FORWARD = "tests/model/test_forward.py"
OUTAGE = "tests/model/test_outage.py"
BUDGET = "tests/unit/test_forward_budget.py"
ENGINE = "tests/unit/test_forward_engine.py"
TABLE = "tests/unit/test_replay_table.py"
HOLES = "tests/unit/test_holes.py"
SINCE = "tests/unit/test_replay_outage.py"
OLDER = (
    "tests/conformance/test_laws.py"
    "::test_what_kafka_said_of_an_older_topic_takes_no_position_back[postgres]"
)
LAWS = "tests/conformance/test_laws.py"
CRASH = (
    "tests/conformance/test_crashes.py"
    "::test_a_crash_at_every_point_loses_and_doubles_nothing[postgres]"
)
GONE_BACK = "tests/conformance/test_gone_back.py"
GIVEN_UP = (
    "tests/conformance/test_crashes.py"
    "::test_a_batch_that_was_given_up_does_not_confuse_the_next_one[chdb]"
)
ZOMBIE = (
    "tests/conformance/test_crashes.py"
    "::test_a_zombie_that_wakes_at_any_point_lands_nothing_more[postgres]"
)
CUTS = (
    "tests/conformance/test_outages.py"
    "::test_a_connection_that_breaks_in_the_middle_lands_the_batch_once"
)
LANES = "tests/conformance/test_lanes.py"
UNACKNOWLEDGED = "tests/conformance/test_unacknowledged.py"
SOURCE = "tests/conformance/test_source.py"
REDRIVE = (
    "tests/integration/test_dlq.py"
    "::test_a_redrive_that_dies_at_any_step_sends_all_of_a_transaction_or_nothing"
)
REAL_SPOOL = "tests/integration/test_spool.py"
AUDIT_EDGE = (
    "tests/integration/test_audit_edge.py::test_a_transaction_that_is_not_committed_leaves_no_entry"
)
CARE = "tests/unit/test_spool_care.py"
RELAY = "tests/unit/test_spool_relay.py"
PUBLISHER = "tests/integration/test_publisher.py"


@dataclass(frozen=True)
class Mutation:
    """`breaks` says what is wrong then; `old` is in one place of the modules below `where`."""

    name: str
    breaks: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]

    def of(self, root: Path) -> tuple[Path, str]:
        """The module of the product in `root` that it breaks, and the text that it makes of it.

        Raises ValueError where it does not apply.
        """
        texts = {path: path.read_text() for path in sorted((root / self.where).rglob("*.py"))}
        found = [path for path, text in texts.items() for _ in range(text.count(self.old))]
        if len(found) != 1:
            raise ValueError(
                f"what {self.name} replaces is in {len(found)} places below {self.where}, not in "
                "one: the code has changed. Have tests/mutants/mutations.py break the same promise "
                "where it is kept now"
            )
        return found[0], texts[found[0]].replace(self.old, self.new)


MUTATIONS = (
    # -- the spool ---------------------------------------------------------------------------------
    Mutation(
        "spool-answers-first",
        "an append is acknowledged, then written",
        "ingest/spool",
        """\
                outcomes = self._store.append([ticket.records for ticket in group])
""",
        """\
                told, group = group, []
                batches = [ticket.records for ticket in told]
                for ticket in told:
                    ticket.answer(len(ticket.records))
                outcomes = self._store.append(batches)[:0]
""",
        (POWER_CUT,),
    ),
    Mutation(
        "spool-commits-unsynced",
        "an append is acknowledged before its fsync",
        "ingest/spool",
        """\
    run("PRAGMA synchronous = FULL")
    # On macOS""",
        """\
    run("PRAGMA synchronous = NORMAL")
    # On macOS""",
        (POWER_CUT,),
    ),
    Mutation(
        "spool-answers-failed-fsync",
        "an append that the disk refused is acknowledged",
        "ingest/spool",
        "[error] * len(group)",
        "[len(ticket.records) for ticket in group]",
        (POWER_CUT,),
    ),
    Mutation(
        "collector-answers-first",
        "a request is answered before its records are on disk",
        "ingest/collector",
        "        self._waiting.append((records, done))\n",
        """\
        self._waiting.append((records, done))
        done.set_result(Place(0, {}))
""",
        (POWER_CUT,),
    ),
    Mutation(
        "spool-stores-a-retry",
        "a record sent again under its id is stored again",
        "ingest/spool",
        " or known(hashed)",
        "",
        (SPOOL,),
    ),
    Mutation(
        "spool-forgets-ids",
        "ids are not known any more after a restart",
        "ingest/spool",
        "        self.read(db)\n",
        "",
        (SPOOL,),
    ),
    Mutation(
        "spool-notes-apart",
        "what the ledger says of a transaction is committed before it",
        "ingest/spool",
        """\
        self._queue(producer, EDGE, [{"value": entry.pack(), "key": self._node}])
""",
        """\
        self._queue(producer, EDGE, [{"value": entry.pack(), "key": self._node}])
        producer.commit_transaction()
        producer.begin_transaction()
""",
        (AUDIT_EDGE,),
    ),
    Mutation(
        "spool-notes-a-block-again",
        "the ledger counts once more what an earlier transaction has sent of a block",
        "ingest/spool",
        'place, since, hashed = b"", max(first, start), 0',
        'place, since, hashed = b"", first, 0',
        (SPOOL,),
    ),
    Mutation(
        "spool-goes-back",
        "a relay that is ahead of what the spool knows of its file goes back to that",
        "ingest",
        "if end <= self.position:",
        "if end == self.position:",
        (RELAY,),
    ),
    Mutation(
        "spool-deletes-early",
        "a batch is deleted before its position is read back from Kafka",
        "ingest/spool",
        """\
            self._producer.send(batch, max(batch.end, self._spool.state.next_seq))
""",
        """\
            self._producer.send(batch, max(batch.end, self._spool.state.next_seq))
            self._spool.release(batch.end)
""",
        (SPOOL,),
    ),
    Mutation(
        "spool-believes-its-disk",
        "what the disk gives back is sent without a look at its checksum",
        "ingest/spool",
        "if crc32(data) != crc:",
        "if False:",
        (CARE, RELAY),
    ),
    Mutation(
        "spool-deletes-half-a-block",
        "a block is deleted of which only the beginning is in Kafka",
        "ingest/spool",
        "WHERE first + count <= :at ",
        "WHERE first <= :at ",
        (SPOOL,),
    ),
    Mutation(
        "spool-ignores-kafkas-position",
        "the position is not read back: what a dead process committed is sent again",
        "ingest/spool",
        "if committed.position > position:",
        "if committed.position < position:",
        (SPOOL,),
    ),
    Mutation(
        "spool-position-apart",
        "records and position are two transactions",
        "ingest/spool",
        """\
        place = TopicPartition(MARKER, 0, position, note)
""",
        """\
        place = TopicPartition(MARKER, 0, position, note)
        self._retrying(producer.commit_transaction, "to commit the records")
        producer.begin_transaction()
""",
        (REAL_SPOOL,),
    ),
    Mutation(
        "worker-knows-only-its-own",
        "a retry that comes to another worker of the collector is stored again",
        "ingest/spool",
        " or peers.known(key)",
        "",
        (PEERS,),
    ),
    # -- PostgreSQL --------------------------------------------------------------------------------
    Mutation(
        "postgres-position-first",
        "positions are committed before the rows",
        "consumers/sinks",
        """\
                    new = None
                    if batch.chunks:
                        with self._step("copy"):
                            encoder = self._encoders[batch.stream.name]
                            new = copy_in(connection, batch, encoder)
                    with self._step("move"):
                        topic_ids = {p: self._log.topic_id(p) for p in batch.spans}
                        positions.move(connection, batch.stream.table, batch.spans, topic_ids)
""",
        """\
                    with self._step("move"):
                        topic_ids = {p: self._log.topic_id(p) for p in batch.spans}
                        positions.move(connection, batch.stream.table, batch.spans, topic_ids)
                        connection.commit()
                    new = None
                    if batch.chunks:
                        with self._step("copy"):
                            encoder = self._encoders[batch.stream.name]
                            new = copy_in(connection, batch, encoder)
""",
        (CRASH,),
    ),
    Mutation(
        "postgres-no-compare-and-set",
        "a position is moved wherever it was",
        "consumers/sinks",
        " AND o.next_offset = m.start",
        "",
        (ZOMBIE,),
    ),
    Mutation(
        "postgres-guesses-a-commit",
        "a connection lost in COMMIT is taken for a success, without a look",
        "consumers/sinks",
        "return all(p in stored and stored[p][1] == s.end for p, s in batch.spans.items())",
        "return True",
        (CUTS,),
    ),
    Mutation(
        "postgres-old-topic",
        "a topic that was deleted and made anew goes on where the old one was",
        "consumers/sinks",
        "if topic_id != k.topic_id:",
        "if False:",
        (LAWS,),
    ),
    # -- ClickHouse --------------------------------------------------------------------------------
    Mutation(
        "clickhouse-offsets-first",
        "the group's offsets are committed before the insert",
        "consumers/sinks",
        """\
        with self._step("insert"):
""",
        """\
        note = Intent.at_rest(topic_id).note()
        self._log.commit({p: s.end for p, s in batch.spans.items()}, note)
        with self._step("insert"):
""",
        (RUN,),
    ),
    Mutation(
        "clickhouse-no-intent",
        "an insert is not announced",
        "consumers/sinks",
        """\
            self._log.commit(
                {p: s.start for p, s in batch.spans.items()},
                {
                    p: replace(intent, owed=owed.get(p), newest=self._newest(p)).note()
                    for p in batch.spans
                },
            )
""",
        """\
            pass
""",
        (RUN,),
    ),
    Mutation(
        "clickhouse-no-probe",
        "an insert is repeated without asking the table what is there",
        "consumers/sinks",
        "present = self.present(spans, topic_id)",
        "present = {p: set[int]() for p in spans}",
        (RUN,),
    ),
    Mutation(
        "clickhouse-other-token",
        "a retry has another deduplication token",
        "consumers",
        "orjson.dumps([self.topic_id, spans])",
        "orjson.dumps([self.topic_id, spans, self.at_ms])",
        (RUN,),
    ),
    Mutation(
        "clickhouse-settles-otherwise",
        "who settles an insert of a stopped writer does so under another token",
        "consumers/sinks",
        "self._tables.insert(stream, everything, intent.topic_id, intent.token)",
        'self._tables.insert(stream, everything, intent.topic_id, intent.token + "-settled")',
        (RUN,),
    ),
    Mutation(
        "clickhouse-old-intent",
        "an insert that was announced so long ago that its token may be forgotten is begun",
        "consumers/sinks",
        "if time.monotonic() - began > FRESH_S:",
        "if False:",
        (RUN,),
    ),
    Mutation(
        "clickhouse-never-looks-back",
        "rows land behind what a restored backup has not any more",
        "consumers/sinks",
        "gone = self._gone(topic_id, known)",
        "gone: set[Partition] = set()",
        (GONE_BACK,),
    ),
    # -- the ledger --------------------------------------------------------------------------------
    Mutation(
        "ledger-behind-the-commit",
        "PostgreSQL's ledger is written in a transaction of its own, behind the rows",
        "consumers/sinks",
        """\
                    with self._step("account"):
                        entries = entries_of(batch, new)
""",
        """\
                    connection.commit()
                    with self._step("account"):
                        entries = entries_of(batch, new)
""",
        (CRASH,),
    ),
    Mutation(
        "ledger-not-settled",
        "who ends an insert of a dead writer in ClickHouse does not account for it",
        "consumers/sinks",
        "        owed = owed.then(more) if owed else more\n        newest = newest_of",
        "        newest = newest_of",
        (RUN,),
    ),
    Mutation(
        "ledger-owed-unannounced",
        "an intent does not say what ClickHouse's ledger is still owed of the batches before it",
        "consumers/sinks",
        "replace(intent, owed=owed.get(p), newest=self._newest(p)).note()",
        "intent.note()",
        (RUN,),
    ),
    Mutation(
        "ledger-owed-forgotten",
        "who is given a partition does not write what ClickHouse's ledger was owed of it",
        "consumers/sinks",
        "owed = intent.owed if intent is not None else None",
        "owed: Owed | None = None",
        (RUN,),
    ),
    Mutation(
        "ledger-paid-by-a-zombie",
        "who leaves writes what ClickHouse's ledger was owed before a commit without an answer",
        "consumers/sinks",
        "for p, rest in self._rest.items() if p not in self._begun",
        "for p, rest in self._rest.items()",
        (GIVEN_UP,),
    ),
    Mutation(
        "ledger-without-letters",
        "a position moves over dead letters that nobody accounts for",
        "consumers",
        "tuple(Dead.of(letter.message) for letter in self.letters)",
        "()",
        (RUN,),
    ),
    # -- the run loop ------------------------------------------------------------------------------
    Mutation(
        "hole-lands",
        "a batch lands though it does not begin where the last one of its partition ended",
        "consumers",
        "if cursor.behind != (epoch, span.start):",
        "if False:",
        (HOLES,),
    ),
    Mutation(
        "hole-made",
        "who is asked where to go on may have an open batch of before",
        "consumers",
        "self._ask(asked)",
        "self._ask([c for c in self.cursors.values() if c.asked != c.epoch])",
        (HOLES,),
    ),
    Mutation(
        "postgres-taken-back",
        "what Kafka said of a topic that was deleted since takes PostgreSQL's position back",
        "consumers/sinks",
        "if ledger.knows(connection, table, partition, k.topic_id):",
        "if False:",
        (OLDER,),
    ),
    Mutation(
        "letters-dropped",
        "a batch goes on although its dead letters were not taken",
        "consumers",
        """\
            self._attempts.until_done(work, lambda _: self._letters.send(stream, letters))
""",
        """\
            try:
                self._letters.send(stream, letters)
            except Exception:
                pass
""",
        (RUN,),
    ),
    Mutation(
        "redrive-settles-apart",
        "what a redrive sent and the word that it did are two transactions",
        "consumers/dlq",
        """\
        # Beside its letters, so that retention does not remove it before them.
""",
        """\
        self._call(self._producer.commit_transaction, "commit")
        self._call(lambda _: self._producer.begin_transaction(), "let it begin")
""",
        (REDRIVE,),
    ),
    Mutation(
        "letters-unacknowledged",
        "dead letters count as sent although Kafka has not taken them",
        "consumers",
        """\
        if failures:
            raise self._explain(stream, failures[0])
""",
        "",
        (UNACKNOWLEDGED,),
    ),
    Mutation(
        "zombie-commits",
        "a commit counts although its partition went away and came back meanwhile",
        "consumers",
        "if p not in self._owned or self._owned[p] != request.turns.get(p)",
        "if p not in self._owned",
        (SOURCE,),
    ),
    Mutation(
        "deaf-member",
        "what Kafka wanted back, in an answer that was lost, is kept",
        "consumers",
        "if self._membership.trouble and time.monotonic() - self._joined_at > _KEPT_S:",
        "if False:",
        (SOURCE,),
    ),
    Mutation(
        "dropped-batch-forgotten",
        "what was dropped because another writer was first is not read again",
        "consumers",
        """\
        if cursor.epoch == epoch:
            cursor.epoch += 1
""",
        """\
        pass
""",
        (RUN,),
    ),
    Mutation(
        "paused-records-forgotten",
        "records that come from a paused partition are forgotten",
        "consumers",
        "self._assignment.read_again(self._source.poll(1, 0.2))",
        "self._source.poll(1, 0.2)",
        (RUN,),
    ),
    Mutation(
        "lost-records-skipped",
        "what retention removed before it landed is passed over, unasked",
        "consumers",
        "if not self._skip_lost:",
        "if False:",
        (LANES,),
    ),
    # -- vendors and replays -----------------------------------------------------------------------
    Mutation(
        "receipt-before-answer",
        "a receipt says accepted before the vendor does",
        "consumers/forward",
        """\
            with self._step("send"):
""",
        """\
            self._book.send(
                receipt(self._name, Final(e, Status.ACCEPTED, None, 1, 1, 1, repeated=False))
                for e in (*delivery.repeated, *delivery.fresh)
            )
            with self._step("send"):
""",
        (FORWARD,),
    ),
    Mutation(
        "vendor-offsets-first",
        "the group's offsets are committed before the receipts",
        "consumers/forward",
        """\
        with self._step("receipts"):
""",
        """\
        self._log.commit({p: s.end for p, s in batch.spans.items()})
        with self._step("receipts"):
""",
        (FORWARD,),
    ),
    Mutation(
        "vendor-forgets-what-was-begun",
        "events that a dead process may have sent are not marked as repeated",
        "consumers/forward",
        "self._begun[partition] = intent.spans[partition].end",
        "pass",
        (FORWARD,),
    ),
    Mutation(
        "vendor-forgets-the-rest",
        "what a dead process had begun is forgotten behind a smaller batch of its successor",
        "consumers/forward",
        "Intent(topic_id, behind, 0).note()",
        "Intent(topic_id, {}, 0).note()",
        (FORWARD,),
    ),
    Mutation(
        "gap-without-its-job",
        "what an outage left out is noted in an offset only, and forgotten with it",
        "consumers/forward",
        "                self._keep(gap)\n",
        "                pass\n",
        (OUTAGE,),
    ),
    Mutation(
        "gap-since-this-process",
        "what an outage left out is looked for from when this process found the vendor away",
        "consumers/replay",
        "since_ms = min(gap.since_ms, self._since(spans))",
        "since_ms = gap.since_ms",
        (SINCE,),
    ),
    Mutation(
        "gap-sent-all-the-same",
        "what was fetched before the leap over a gap is sent, though it belongs to a replay",
        "consumers/forward",
        "            self._gaps.check(batch.spans)\n",
        "            pass\n",
        (OUTAGE,),
    ),
    Mutation(
        "rate-by-the-mean",
        "a vendor's rate is kept to by the mean, and not in each window of time",
        "consumers/forward",
        "max(0.0, evenly_s, self._rolling.wait_s(now, count))",
        "max(0.0, evenly_s)",
        (BUDGET,),
    ),
    Mutation(
        "receipts-unacknowledged",
        "receipts count as sent although Kafka has not taken them",
        "consumers/forward",
        """\
        if self._failed:
            raise self._explained(self._failed[0])
""",
        "",
        (UNACKNOWLEDGED,),
    ),
    Mutation(
        "replay-one-short",
        "a replay ends one record before its range does",
        "consumers/replay",
        "if int(m.offset() or 0) < end]",
        "if int(m.offset() or 0) < end - 1]",
        (FORWARD,),
    ),
    Mutation(
        "replay-in-order-only",
        "a replay ends with the first record that was published after its range",
        "consumers/replay",
        " + round(lateness_s * 1000)",
        "",
        (FORWARD,),
    ),
    Mutation(
        "replay-passes-a-page",
        "a page of the table is passed over when the question for its receipts has no answer",
        "consumers/replay",
        """\
        found = rows
        if self._lacking is not None:
""",
        """\
        found = rows
        self._at = rows[-1].number + 1
        if self._lacking is not None:
""",
        (TABLE,),
    ),
    Mutation(
        "vendor-fails-on-one",
        "one event on which a vendor fails holds up all that was to leave with it",
        "consumers/forward",
        "if _failed(again, now, away=away, asked=asked and meant) and meant:",
        "if _failed(again, now, away=away, asked=asked and meant) and False:",
        (ENGINE,),
    ),
    Mutation(
        "vendor-refuses-everything",
        "each event is rejected by its own where a vendor refuses everything",
        "consumers/forward",
        "found = self._lately.too_many(known, self._refused) if reasons else None",
        "found = None",
        (ENGINE,),
    ),
    # -- the publisher -----------------------------------------------------------------------------
    Mutation(
        "publisher-flushes-nothing",
        "flush() returns before Kafka has acknowledged",
        "ingest",
        "while self.outstanding():",
        "while False:",
        (PUBLISHER,),
    ),
    Mutation(
        "publisher-takes-refusals",
        "a record that Kafka refused counts as acknowledged",
        "ingest",
        """\
        if error is None:
            self._outcome = message.offset()
""",
        """\
        if True:
            self._outcome = message.offset()
""",
        (PUBLISHER,),
    ),
)
