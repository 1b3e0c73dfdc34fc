"""What a worker has behind its doors: one spool, and the relay that sends it to Kafka.

The relay's thread connects by itself and tries again for ever, so a node starts and accepts while
Kafka is away. `close` gives the relay a little time, and is content with the disk.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ingest.collector import metrics
from ingest.settings import SettingError, Settings, for_publisher
from ingest.spool.errors import SpoolError, SpoolFull, SpoolInUse
from ingest.spool.frames import Record
from ingest.spool.peers import Peers
from ingest.spool.reader import DATABASE, Reader, State
from ingest.spool.relay import Relay
from ingest.spool.store import Limits, Store
from ingest.spool.transactions import FRAMING_BYTES, Transactions
from ingest.spool.writer import Spool
from ingest.topics import TopicError, largest_messages, topic_ids

__all__ = ["Node", "folder_of", "left_over", "open_free"]

_log = logging.getLogger("headrace.collect")

# Beyond its grace, how long the relay may take to come back from a call into librdkafka.
_STOP_S = 5.0
_ASK_TOPICS_EVERY_S = 10.0


class _TimedStore(Store):
    """A Store whose transactions are timed."""

    def append(self, batches: Sequence[Sequence[Record]]) -> list[int | SpoolFull]:
        with metrics.COMMIT_SECONDS.time():
            return super().append(batches)


def folder_of(spool: Path, worker: int) -> Path:
    """Where a worker's spool is."""
    return spool / str(worker)


def open_free(spool: Path, workers: int, limits: Limits) -> tuple[int, Spool]:
    """The first worker's spool that no process has, and its number. Raises SpoolError.

    So a worker that takes the place of a dead one finds that one's directory.
    """
    busy: SpoolInUse | None = None
    for worker in range(workers):
        try:
            return worker, Spool(
                folder_of(spool, worker), limits, open_store=partial(_open, workers)
            )
        except SpoolInUse as error:
            busy = busy or error
    assert busy is not None  # noqa: S101 (there is one worker at least)
    raise busy


def _open(workers: int, folder: Path, limits: Limits | None, node: str | None) -> Store:
    """A worker's store. Where there are others, or were, it knows what they took."""
    numbers = {str(worker) for worker in range(workers)}
    numbers |= {
        p.parent.name for p in folder.parent.glob(f"*/{DATABASE}") if p.parent.name.isdigit()
    }
    others = [folder.parent / number for number in sorted(numbers - {folder.name}, key=int)]
    window_ids = (limits or Limits()).window_ids
    peers = Peers(folder.parent / "ids.lock", others, window_ids) if others else None
    return _TimedStore(folder, limits, node, peers)


def left_over(spool: Path, workers: int) -> dict[Path, int]:
    """Spools beside the workers' own that hold records nobody sends, and how many."""
    found = {}
    for folder in sorted(path.parent for path in spool.glob(f"*/{DATABASE}")):
        name = folder.name
        if name.isdigit() and int(name) >= workers:
            # What can't be read is none of this process's business: fsck will tell.
            with contextlib.suppress(SpoolError):
                reader = Reader(folder)
                try:
                    state = reader.state()
                finally:
                    reader.close()
                if state.next_seq > state.position:
                    found[folder] = state.next_seq - state.position
    return found


class Node:
    """A spool that is open, and its relay."""

    def __init__(
        self,
        spool: Spool,
        limits: Limits,
        kafka: Settings,
        topics: Sequence[str],
        record_bytes: int,
    ) -> None:
        """`kafka` is librdkafka's settings, `record_bytes` what a record may have.

        Raises SettingError.
        """
        self.spool = spool
        self.limits = limits
        self._topics = topics
        self._record_bytes = record_bytes
        self.missing_topics: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._kafka = kafka
        self._reader = spool.reader()
        settings = for_publisher(str(kafka["bootstrap.servers"]), kafka)
        door = Transactions(settings, spool.node, stopping=self._stop.is_set)
        self.relay = Relay(spool, self._reader, door)
        self._threads = [
            threading.Thread(target=self.relay.run, name="headrace-relay", daemon=True),
            threading.Thread(target=self._look_for_topics, name="headrace-topics", daemon=True),
        ]

    @property
    def state(self) -> State:
        """The spool's."""
        return self.spool.state

    @property
    def dead(self) -> bool:
        """Whether the writer or the relay has ended for good; only another process mends that."""
        return self.relay.error is not None or self.spool.closed

    def start(self, on_moved: Callable[[int], object]) -> None:
        """Begin to send; `on_moved` as in Relay."""
        self.relay.on_moved = on_moved
        for thread in self._threads:
            thread.start()

    def oldest_s(self) -> float:
        """Age of the oldest record that waits; 0 without one. Reads a row: not in an event loop."""
        reader = self.spool.reader()
        try:
            at_us = reader.oldest_us(max(self.relay.position, self.state.position))
        finally:
            reader.close()
        return 0.0 if at_us is None else max(0.0, time.time() - at_us / 1e6)

    def waiting(self) -> int:
        """Records that are not in Kafka, as far as is known."""
        state = self.state
        return state.next_seq - max(state.position, self.relay.position)

    def close(self, grace_s: float) -> None:
        """Let the relay send what it can within the time, then close the spool."""
        with contextlib.suppress(SpoolError):  # said already, by the relay
            self.relay.wait(self.state.next_seq, grace_s)
        self.relay.stop()
        self._stop.set()
        deadline = time.monotonic() + _STOP_S
        # The other one reads and writes nothing here, and may sit in a call to a Kafka that is
        # away.
        thread = self._threads[0]
        while thread.is_alive() and time.monotonic() < deadline:
            self.spool.wake()
            thread.join(0.05)
        if not thread.is_alive():
            self._reader.close()
        if waiting := self.waiting():
            _log.info(
                "up to %d records stay in %s; the next start sends them, or `headrace spool drain`",
                waiting, self.spool.folder,
            )  # fmt: skip
        self.spool.close()

    def _look_for_topics(self) -> None:
        """Say which topics are missing. The relay finds it out too, but only after some seconds,
        and only for a topic that a record is for."""
        said = False
        while not self._stop.is_set():
            try:
                found = topic_ids(self._kafka, self._topics)
            except TopicError as error:
                # That Kafka is away is the relay's to say.
                if error.denied and not said:
                    said = True
                    waits = "; what is for them waits in the spool, and what came later behind it"
                    _log.error("%s%s", error, waits if error.topics else "")
                if error.topics:
                    # Of the others it is said whether they are there.
                    self._topics = [name for name in self._topics if name not in error.topics]
                    if not self._topics:
                        return
                    continue
            except SettingError as error:
                _log.error("%s", error)
                return
            else:
                missing = tuple(sorted(set(self._topics) - found.keys()))
                if missing and missing != self.missing_topics:
                    _log.error(
                        "topics that do not exist: %s. What is for them waits in the spool, and "
                        "what came later behind it; create them with `headrace migrate`",
                        ", ".join(missing),
                    )
                self.missing_topics = missing
                if not missing:
                    self._look_for_sizes()
                    return
            self._stop.wait(_ASK_TOPICS_EVERY_S)

    def _look_for_sizes(self) -> None:
        """Say which topics take no record of the size that is accepted here: it would be sent again
        and again, and what is behind it would wait."""
        try:
            most = largest_messages(self._kafka, self._topics)
        except TopicError as error:
            _log.info("whether the topics take the largest records is not known: %s", error)
            return
        for topic, size in sorted(most.items()):
            if size < self._record_bytes + FRAMING_BYTES:
                _log.error(
                    "the topic %s takes messages of %d bytes (max.message.bytes), and records of "
                    "%d are accepted here (max_record_bytes): raise the one or lower the other; a "
                    "record that is too large holds up all behind it",
                    topic, size, self._record_bytes,
                )  # fmt: skip
