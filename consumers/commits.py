"""Commits of a consumer group's positions, asked for by any thread and done by the polling one.

Kafka asks of a commit only whether the member is in the group, not whether the partition is its
own, still or again. So each time that we are given one counts as another turn, and a commit is
taken if its position was found in the turn that is now.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from consumers.batch import Partition
from consumers.client import OWNERSHIP_LOST, text
from consumers.errors import Fenced, Unavailable
from consumers.sinks import Notes

__all__ = ["Commits"]

log = logging.getLogger(__name__)

# How long a commit may wait for the polling thread, in seconds.
_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Request:
    """Positions to commit; `done` is None when nobody waits for it."""

    positions: Mapping[Partition, int]
    # In which ownership of each partition its position was found.
    turns: Mapping[Partition, int]
    notes: Mapping[Partition, str]
    done: Future[None] | None


class Commits:
    """The requests, and whose the partitions are. `given`, `gone` and `serve` are for the polling
    thread, the rest for any."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._turn = 0
        self._owned: dict[Partition, int] = {}
        self._found_in: dict[Partition, int] = {}

    def given(self, partitions: Iterable[Partition]) -> None:
        """They are ours from now on."""
        self._turn += 1
        self._owned.update(dict.fromkeys(partitions, self._turn))

    def gone(self, partitions: Iterable[Partition]) -> None:
        """They are not ours any more."""
        for partition in partitions:
            self._owned.pop(partition, None)

    def turns(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The turn that is now, of those that are ours; for `found`."""
        return {p: turn for p in partitions if (turn := self._owned.get(p)) is not None}

    def found(self, turns: Mapping[Partition, int]) -> None:
        """Positions that are committed from now on were found in these turns."""
        self._found_in.update(turns)

    def owned(self) -> set[Partition]:
        """Those of which a position that was found would be committed."""
        return {p for p, turn in dict(self._owned).items() if self._found_in.get(p) == turn}

    def commit(self, positions: Mapping[Partition, int], notes: Notes = "") -> None:
        """Commit positions with metadata, durably; from any thread. Raises Fenced, Unavailable.

        When it raises, the commit is not under way any more.
        """
        done: Future[None] = Future()
        each = dict.fromkeys(positions, notes) if isinstance(notes, str) else notes
        self._requests.put(_Request(positions, self._found(positions), each, done))
        try:
            done.result(_WAIT_S)
        except TimeoutError:
            if done.cancel():
                raise Unavailable("the polling thread does not come round to commit") from None
            done.result()

    def report(self, positions: Mapping[Partition, int]) -> None:
        """Commit positions in the background, for others to see; from any thread, never raises."""
        self._requests.put(_Request(positions, self._found(positions), {}, None))

    def _found(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        return {p: self._found_in[p] for p in positions if p in self._found_in}

    def serve(self, consumer: Consumer) -> None:
        """Do what has been queued; also within callbacks."""
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                return
            foreign = {
                p
                for p in request.positions
                if p not in self._owned or self._owned[p] != request.turns.get(p)
            }
            wanted = [
                TopicPartition(p.topic, p.number, offset, metadata=request.notes.get(p, ""))
                for p, offset in request.positions.items()
                if p not in foreign
            ]
            if request.done is None:
                try:
                    if wanted:
                        consumer.commit(offsets=wanted, asynchronous=True)
                except KafkaException as error:
                    log.debug("positions not reported: %s", text(error))
            elif request.done.set_running_or_notify_cancel():
                try:
                    if foreign:
                        raise Fenced(f"{next(iter(foreign))} was given back")
                    _commit(consumer, wanted)
                    request.done.set_result(None)
                except (Fenced, Unavailable) as error:
                    request.done.set_exception(error)


def _commit(consumer: Consumer, wanted: list[TopicPartition]) -> None:
    try:
        answer = consumer.commit(offsets=wanted, asynchronous=False)
        errors = [c.error for c in answer if c.error is not None]
    except KafkaException as error:
        errors = [error.args[0]]
    if any(error.code() in OWNERSHIP_LOST for error in errors):
        raise Fenced(f"the group has given the partitions away: {errors[0].str()}")
    if errors:
        raise Unavailable(f"Kafka does not take a commit: {errors[0].str()}")
