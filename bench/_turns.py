"""An inserter into ClickHouse that keeps its ledger in turns; for `_runs.py in-turns`."""

from __future__ import annotations

import time

from consumers.batch import Batch
from consumers.sinks import Sink, clickhouse, clickhouse_owed

__all__ = ["Turns"]


# Batches. Longer turns differ by what the machine does meanwhile.
_TURN = 4
_COUNTED = range(8, 8 + 4 * clickhouse_owed.BATCHES)


class Turns:
    """A few batches with it, without, without, with, and so on; or the other way round, unless `first`.

    A row of the ledger speaks for as many batches as ever, of those with it; two rows are counted. The first
    batches are not, since reading is ahead then, nor are the last ones, when it has ended.
    """  # noqa: E501

    def __init__(self, first: bool) -> None:
        self.rows, self.took = {True: 0, False: 0}, {True: 0.0, False: 0.0}
        self._first = first
        self._owed_of = clickhouse.owed_of
        self._writes = 0
        self._ended = 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Rows a second, `with` it and `without`."""
        return {
            word: self.rows[kept] / self.took[kept]
            for word, kept in (("with", True), ("without", False))
        }

    def timed(self, sink: Sink) -> Sink:
        """The sink, of which each batch is timed from the end of the one before."""
        write = sink.write

        def write_timed(batch: Batch) -> None:
            # A drift is on both sides.
            kept = (self._writes // _TURN % 4 in (0, 3)) == self._first
            clickhouse.owed_of = self._owed_of if kept else lambda _: {}
            write(batch)
            ended = time.monotonic()
            if self._writes in _COUNTED:
                self.rows[kept] += batch.count
                self.took[kept] += ended - self._ended
            self._writes += 1
            self._ended = ended

        sink.write = write_timed  # type: ignore[method-assign]
        return sink
