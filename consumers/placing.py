"""Placing: where to go on with partitions. The sink says so; Kafka must still have what comes next.

What Kafka has lost is for a person to judge, so it stops the process: a log that ends below what
has landed always, records that retention removed before they landed unless `skip_lost` is set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from consumers import metrics
from consumers.attempts import Attempts
from consumers.batch import Partition
from consumers.errors import Lost, Systemic
from consumers.sinks import Known, Sink
from consumers.source import Source
from consumers.work import Place, Placed, Work

__all__ = ["Placing"]

log = logging.getLogger(__name__)


class Placing:
    """A lane's answer to cursors without a position."""

    def __init__(
        self, attempts: Attempts, source: Source, *, destination: str, skip_lost: bool
    ) -> None:
        self._attempts = attempts
        self._source = source
        self._destination = destination
        self._skip_lost = skip_lost

    def place(self, work: Work) -> Placed:
        """Ask the sink until it answers. Raises Fenced, Systemic."""
        partitions = [cursor.partition for cursor in work.claims]
        places = self._attempts.until_done(work, lambda sink: self._ask(sink, partitions))
        return Placed(work, places)

    def _ask(self, sink: Sink, partitions: Sequence[Partition]) -> dict[Partition, Place]:
        known = self._source.known(partitions)
        positions = sink.resume(known)
        if any(at > known[p].latest for p, at in positions.items()):
            # Written and landed since Kafka was asked, or else gone from Kafka: ask once more.
            known = self._source.known(partitions)
        return {p: self._checked(p, at, known[p]) for p, at in positions.items()}

    def _checked(self, partition: Partition, position: int, known: Known) -> Place:
        if position > known.latest:
            raise Systemic(
                f"{partition} has landed up to {position}, but its log ends at {known.latest}: "
                "Kafka has lost records that it had acknowledged (an unclean leader election, a "
                "restore from a backup?). What is written there now would be taken for landed. "
                "Delete the topic and make it anew with `headrace migrate`: that is noticed, and "
                "read from its start. What it holds goes with it, so copy first what has not "
                "landed everywhere, and publish that again."
            )
        if position < known.earliest:
            lost = (
                f"the records of {partition} from {position} to {known.earliest} were removed by "
                f"the topic's retention before they landed in {self._destination}"
            )
            if not self._skip_lost:
                raise Lost(
                    f"{lost}. Lengthen retention.ms of {partition.topic}, find the records "
                    "elsewhere if you can, and go on without them with --skip-lost."
                )
            log.warning("%s; skipped, as told by --skip-lost", lost)
            metrics.SKIPPED.labels(partition.topic, str(partition.number)).inc(
                known.earliest - position
            )
        return Place(position, max(position, known.earliest))
