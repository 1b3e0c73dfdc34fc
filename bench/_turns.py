"""An inserter into ClickHouse that keeps its ledger in turns; for `_runs.py in-turns`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from consumers.batch import Batch
from consumers.ledger.owed import BATCHES
from consumers.sinks import Sink, clickhouse

__all__ = ["Turns"]

# Batches: two rows of the ledger, each for half of so many.
_COUNTED = range(8, 8 + 4 * BATCHES)


class Turns:
    """Of each two batches one with it and one without, in an order that is drawn.

    What has a rhythm of its own can't be on one side then, and a drift is on both. A row of the ledger
    speaks for as many batches as ever, of those with it. The first batches are not counted, since
    reading is ahead then, nor are the last ones, when it has ended.
    """  # noqa: E501

    def __init__(self, seed: int) -> None:
        self.rows, self.took = {True: 0, False: 0}, {True: 0.0, False: 0.0}
        self._turns = enumerate(_pairs(random.Random(seed)))
        self._owed_of = clickhouse.owed_of
        self._newest_of = clickhouse.newest_of
        self._ended = 0.0

    def timed(self, sink: Sink) -> Sink:
        """The sink, of which each batch is timed from the end of the one before."""
        assert isinstance(sink, clickhouse.ClickHouseSink)
        write = sink.write

        def write_timed(batch: Batch) -> None:
            number, kept = next(self._turns)
            clickhouse.owed_of = self._owed_of if kept else lambda _: {}
            # Which is made of what is owed.
            clickhouse.newest_of = self._newest_of if kept else lambda *_: {}
            # Nor does a commit without it say what is owed of those before.
            owed = sink._rest
            if not kept:
                sink._rest = {}
            write(batch)
            ended = time.monotonic()
            if not kept:
                sink._rest = owed
            if number in _COUNTED:
                self.rows[kept] += batch.count
                self.took[kept] += ended - self._ended
            self._ended = ended

        sink.write = write_timed  # type: ignore[method-assign]
        return sink


def _pairs(draw: random.Random) -> Iterator[bool]:
    while True:
        first = draw.random() < 0.5
        yield first
        yield not first
