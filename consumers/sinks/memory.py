"""A sink in memory: what the contract means, in the fewest lines; tests and examples use it.

`Store` is the destination, shared by all sinks that write to it and outliving them, as a database
outlives its clients. Rows and positions change together or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from consumers.batch import Batch, Partition
from consumers.errors import Fenced, Unavailable
from consumers.ledger.tally import Bucket, Entry, entries_of
from consumers.metrics import Step, step_timer
from consumers.sinks import Known

__all__ = ["MemorySink", "Store"]


class Store:
    """Tables and positions. `rows[table]` is a list of (partition, offset, row as a dict)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: dict[str, list[tuple[Partition, int, dict[str, Any]]]] = {}
        self.positions: dict[Partition, tuple[str, int]] = {}
        self.ledger: dict[Bucket, Entry] = {}
        # Topic ids that something has landed of; they do not come back.
        self.known: set[tuple[Partition, str]] = set()


class MemorySink:
    """Writes to a Store."""

    def __init__(self, store: Store, step: Step = step_timer) -> None:
        self._store = store
        self._step = step
        self._ids: dict[Partition, str] = {}

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        with self._store.lock:
            for partition, k in known.items():
                self._ids[partition] = k.topic_id
                if self._store.positions.get(partition, ("", 0))[0] != k.topic_id:
                    if (partition, k.topic_id) in self._store.known:
                        raise Unavailable(f"what Kafka said of {partition} is of an older topic")
                    self._store.positions[partition] = (k.topic_id, k.earliest)
            return {partition: self._store.positions[partition][1] for partition in known}

    def write(self, batch: Batch) -> None:
        with self._step("copy"):
            rows = [
                (chunk.partition, offset, row)
                for chunk in batch.chunks
                for offset, row in zip(chunk.offsets, chunk.rows.to_pylist(), strict=True)
            ]
        with self._store.lock:
            with self._step("move"):
                for partition, span in batch.spans.items():
                    if self._store.positions[partition] != (self._ids[partition], span.start):
                        raise Fenced(f"{partition} is no longer at {span.start}")
            with self._step("commit"):
                for partition, span in batch.spans.items():
                    self._store.positions[partition] = (self._ids[partition], span.end)
                    self._store.known.add((partition, self._ids[partition]))
                self._store.rows.setdefault(batch.stream.table, []).extend(rows)
                for bucket, entry in entries_of(batch).items():
                    known = self._store.ledger.get(bucket, Entry())
                    self._store.ledger[bucket] = known.plus(entry)

    def close(self) -> None:
        pass
