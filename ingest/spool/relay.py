"""The relay: what is in the spool goes to Kafka, in order, exactly once.

One batch, in commit order:

    1. read      records from the position on; each checksum is verified
    2. send      them, in a Kafka transaction, and what the ledger is to say of them (entry.py)
    3. commit    that transaction; the new position is in it
    4. release   what lies below the position is deleted from the spool

At the start, and whenever it is not known how a transaction ended: fence whoever had this node's
id before (a dead process's transaction is aborted with that), read the position back from Kafka,
release what lies below, go on from there. So a crash before 3 sends the batch again after nothing
of it counted; a crash behind 3 finds the position moved.

The spool keeps a position of its own (4), for Kafka forgets a group's after 7 days without a
commit. The higher one counts.

The note beside the position is this relay's token and the checksum of the last record below it:

* Who is fenced looks at the token. Another's means that another process has taken the node over: it
  stops for good (SpoolTaken). Its own, or none, means that a transaction took too long, for the
  broker answers both with the same error: it goes on with a new producer.
* A checksum that is not the record's means that this directory is not the one that the position is
  about, but for instance an older copy: it stops, before anything that was never sent is deleted.

While Kafka is away one batch is in memory, and attempts are 0.1 to 10 s apart, with jitter.

It stops only for what a person has to mend. Whatever else goes wrong here (a thread that can't be
started, a read that fails, a fault of ours) is taken as a crash: said, and followed by a new start
as above, up to 30 s apart. What was under way in Kafka is fenced with that.

A transaction has 10 s. What a slow line does not carry in that time would fail again and again: so
the first batch is small, behind a commit that took little of the time twice as much is tried, and
behind a batch that failed half of it, down to one record.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from copy import copy
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException

from ingest.settings import SettingError
from ingest.spool.batch import Batch
from ingest.spool.errors import SpoolDamaged, SpoolError, SpoolTaken
from ingest.spool.frames import Stored
from ingest.spool.patience import beside
from ingest.spool.reader import State
from ingest.spool.transactions import Aborted, Broken, Committed, Fenced, TransactionalProducer

__all__ = ["Relay", "Source"]

_log = logging.getLogger("headrace.spool")

# One Kafka transaction at most: what it costs by itself, its entry in the ledger included, is then
# little beside its records (bench/README.md). Two are in memory, the one that is sent and the next.
_BATCH_RECORDS = 50_000
_BATCH_BYTES = 16 * 1024 * 1024
# The first one: a line of 30 kB/s carries it in time.
_FIRST_BYTES = 256 * 1024
# Twice the records of a commit that took no longer than this are far from a transaction's 10 s.
_QUICK_S = 2.5
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
# The same behind what nobody has foreseen: it may come each time.
_LONGEST_DOUBT_S = 30.0
# The same trouble is said again after so long.
_WARN_EVERY_S = 30.0
_IDLE_S = 1.0


class _Final(SpoolError):
    """A person has to mend it: an older copy, settings that librdkafka does not take."""


class Source(Protocol):
    """What a relay needs of a Spool. Its `state` follows behind what is on disk."""

    node: str

    @property
    def state(self) -> State: ...
    def release(self, position: int) -> None: ...
    def wait(self, seq: int, timeout_s: float) -> bool: ...


class Contents(Protocol):
    """What a relay needs of a Reader."""

    def read(self, start: int, max_records: int, max_bytes: int) -> list[Stored]: ...
    def batch(self, start: int, max_records: int, max_bytes: int) -> Batch | None: ...
    def state(self) -> State: ...


class Relay:
    """Sends one spool; `run` in a thread of the caller's, `stop` from any other.

    `error` says why it has stopped for good: SpoolTaken, SpoolDamaged, or another SpoolError that a
    person has to act on; None while it runs and after stop(). `trouble` says why nothing moves,
    until records have moved again or none wait.

    `on_moved`, where it is set, is called in the relay's thread with each new position: every
    record below it is in Kafka, committed. It may be called with the same position again, never
    with a lower one. It must be quick; what it raises is logged and does not stop the relay.
    """

    def __init__(self, spool: Source, contents: Contents, producer: TransactionalProducer) -> None:
        self._spool = spool
        self._contents = contents
        self._producer = producer
        self._token = uuid.uuid4().hex[:16]
        self._stop = threading.Event()
        self._moved = threading.Condition()
        # What is next to be sent; everything below is in Kafka. -1 until Kafka was asked.
        self.position = -1
        self.sent = 0
        self.trouble = ""
        self.error: SpoolError | None = None
        self.on_moved: Callable[[int], object] | None = None
        self._since = self._warned = 0.0
        self._warned_of = ""
        # Whether the log says that there is trouble.
        self._told = False
        # The batch that was read while Kafka took the one before.
        self._ahead: Batch | None = None
        # Whether Kafka was asked for the position since it was last in doubt.
        self._is_open = False
        # What the next one holds at most.
        self._records, self._bytes = _BATCH_RECORDS, _FIRST_BYTES

    def run(self) -> None:
        """Send until stop(), or until a person has to act: see `error`."""
        wait_s = _FIRST_WAIT_S
        try:
            while not self._stop.is_set():
                before, longest_s = self.position, _LONGEST_WAIT_S
                try:
                    self._go_on()
                except (SpoolTaken, SpoolDamaged, _Final):
                    raise
                except Exception as error:
                    # How far it came is not known: to be settled as after a crash.
                    self._is_open = False
                    longest_s = _LONGEST_DOUBT_S
                    if isinstance(error, SpoolError):
                        self._say(str(error))
                    else:
                        self._say(f"the relay has failed and begins anew: {error!r}", error)
                if self.position > before:
                    wait_s = _FIRST_WAIT_S
                self._stop.wait(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
                wait_s = min(longest_s, wait_s * 2)
        except SpoolError as error:
            _log.error("nothing more is sent: %s", error)
            self.error = error
        except BaseException as error:
            _log.exception("the relay has failed")
            self.error = SpoolError(f"the relay has failed: {error!r}")
        finally:
            self._producer.close()
            with self._moved:
                self._moved.notify_all()

    def stop(self) -> None:
        """Let run() end after the batch under way, or at once where Kafka does not answer."""
        self._stop.set()

    def wait(self, seq: int, timeout_s: float | None) -> bool:
        """Wait until all below `seq` is in Kafka; False after the time. Raises `error`."""
        with self._moved:
            self._moved.wait_for(
                lambda: self.position >= seq or self.error or self._stop.is_set(), timeout_s
            )
        if self.position >= seq:
            return True
        if self.error is not None:
            # Each has one of its own: one that is raised anew keeps every caller's frames.
            raise copy(self.error)
        return False

    # -- the steps

    def _go_on(self) -> None:
        """Open if need be and send, until stop() or trouble of a kind that is known."""
        try:
            if not self._is_open:
                self._recover_or_refuse()
                self._is_open = True
            self._pump()
        except Aborted as aborted:
            self._say(str(aborted))
        except Broken as broken:
            self._is_open = False
            self._say(str(broken))
        except Fenced as fenced:
            self._is_open = False
            self._say(str(fenced))
            self._stop_if_taken()

    def _recover_or_refuse(self) -> None:
        try:
            self.recover()
        except SettingError as error:
            # Settings that have served before are not wrong all of a sudden, and librdkafka says
            # alike that there was no thread for it.
            if self.position >= 0 or _is_want(error):
                raise
            raise _Final(str(error)) from error

    def step(self) -> bool:
        """Send one batch, and read the next one while Kafka takes it; False without one."""
        batch, self._ahead = self._ahead, None
        if batch is None:
            # In this order: what is below was on disk before the file is looked into.
            end = self._spool.state.next_seq
            batch = self._read(self.position)
            if batch is None:
                # What was read is on disk, but `state` may not know it yet.
                if end <= self.position:
                    self._is_well()
                    return False
                # fsck has cut out what was there, and the ledger is told so.
                nothing = Batch(self.position)
                nothing.end = end
                self._producer.send(nothing, end)
                self._producer.commit(end, self._note(0))
                self._is_well()
                self._advance(end)
                return True
        self._ahead = self._transact(batch)
        self._is_well()
        self.sent += batch.records
        self._advance(batch.end)
        return True

    def _transact(self, batch: Batch) -> Batch | None:
        """Send and commit a batch; the next one, which was read meanwhile."""
        began = time.monotonic()
        try:
            # What was read is on disk, but `state` may not know it yet.
            self._producer.send(batch, max(batch.end, self._spool.state.next_seq))
            # A commit is waiting: for the rest of the batch to arrive, and for three answers.
            reading = beside(lambda: self._read_on(batch.end))
            try:
                self._producer.commit(batch.end, self._note(batch.crc))
            finally:
                ahead = reading()
        except Exception:
            # Half of what was tried, not of what was allowed: the next attempt is smaller.
            self._records, self._bytes = max(1, batch.records // 2), batch.size // 2
            raise
        if time.monotonic() - began <= _QUICK_S:
            # Only what a commit has shown to be possible: few records say nothing about many.
            self._records = min(_BATCH_RECORDS, max(self._records, batch.records * 2))
            self._bytes = min(_BATCH_BYTES, max(self._bytes, batch.size * 2))
        return ahead

    def recover(self) -> None:
        """Ask Kafka where to go on, delete what lies below, and put our token there."""
        self._ahead = None
        committed = self._producer.open()
        state = self._contents.state()
        position, crc = state.position, 0
        if committed is not None and committed.position >= position:
            crc = _crc_of(committed.note)
            if committed.position > position:
                self._check(committed, state)
                position = committed.position
        # A transaction of its own: from here on whoever is fenced by us can know it.
        self._producer.commit(position, self._note(crc))
        self._advance(position)

    def _check(self, committed: Committed, state: State) -> None:
        """Kafka's position is about this spool, or SpoolError."""
        last = committed.position - 1
        known = committed.position <= state.next_seq
        if known and (expected := _crc_of(committed.note)):
            found = self._contents.read(last, 1, 1)
            # Above the spool's position nothing is deleted: where this one is missing, fsck has cut
            # it out, and there is nothing to compare.
            is_there = bool(found) and found[0].seq == last
            known = not is_there or found[0].crc == expected
        if not known:
            raise _Final(
                f"Kafka has records of node {self._spool.node} up to {last:,}, but this spool's "
                "record of that number is another one or not there yet: it is an older copy of the "
                "directory. Nothing was deleted. Use the newest copy; what only this one holds can "
                "be written out with `headrace spool export`"
            )

    def _pump(self) -> None:
        """Batch after batch, until stop()."""
        while not self._stop.is_set():
            if not self.step():
                self._spool.wait(self.position, _IDLE_S)

    def _read(self, start: int) -> Batch | None:
        return self._contents.batch(start, self._records, self._bytes)

    def _read_on(self, start: int) -> Batch | None:
        # Whatever is wrong further on is met again, when what lies before it is in Kafka.
        with contextlib.suppress(Exception):
            return self._read(start)
        return None

    def _advance(self, position: int) -> None:
        with self._moved:
            self.position = position
            self._moved.notify_all()
        if self.on_moved is not None:
            try:
                self.on_moved(position)
            except Exception:
                _log.exception("what was to be called after a commit raised")
        self._spool.release(position)

    # -- trouble

    def _stop_if_taken(self) -> None:
        """Raise SpoolTaken where the token in Kafka is another's."""
        try:
            found = self._producer.look()
        except (Aborted, Broken, Fenced) as unknown:
            # Asked again before anything is sent: recover() would fence the other, which then
            # finds our token and stops. One of the two goes on, whichever.
            self._say(str(unknown))
            return
        if found is not None and _token_of(found.note) not in ("", self._token):
            raise SpoolTaken(
                f"another process has taken over the spool of node {self._spool.node} and sends "
                "it to Kafka; this one sends nothing more. Stop one of the two: each needs a "
                "directory of its own"
            )

    def _note(self, crc: int) -> str:
        return f"{self._token} {crc:08x}"

    def _say(self, trouble: str, unforeseen: Exception | None = None) -> None:
        now = time.monotonic()
        if not self.trouble:
            self._since = now
        self.trouble = trouble
        if trouble != self._warned_of or now - self._warned > _WARN_EVERY_S:
            self._warned, self._warned_of, self._told = now, trouble, True
            waiting = self._spool.state.next_seq - max(0, self.position)
            _log.warning(
                "up to %d records wait in the spool: %s", waiting, trouble, exc_info=unforeseen
            )

    def _is_well(self) -> None:
        if self._told:
            away_s = time.monotonic() - self._since
            _log.warning("the spool is sent to Kafka again, after %.1f s", away_s)
        self.trouble, self._told = "", False


def _is_want(error: SettingError) -> bool:
    """Whether librdkafka had no thread or memory, and nothing against a setting."""
    cause = error.__cause__
    return (
        isinstance(cause, KafkaException) and cause.args[0].code() == KafkaError._CRIT_SYS_RESOURCE
    )


def _token_of(note: str) -> str:
    return note.partition(" ")[0]


def _crc_of(note: str) -> int:
    text = note.partition(" ")[2]
    try:
        return int(text, 16)
    except ValueError:
        return 0
