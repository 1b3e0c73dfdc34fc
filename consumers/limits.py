"""What bounds an inserter: its batches, its connections, its dead letters."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch closes (whichever is first), and what else is bounded."""

    max_rows: int = 50_000
    max_bytes: int = 16 * 1024 * 1024
    max_age_s: float = 1.0
    # Between the batches of one lane and table; ClickHouse's users live by one insert a second.
    min_interval_s: float = 0.0
    # Of one write; a batch of more is landed in parts. None: whatever there is.
    max_partitions: int | None = None
    # Connections that write at the same time, each for its share of the partitions.
    lanes: int = 1
    # Between two attempts while the destination is away, in seconds: what it takes to notice that
    # it is back.
    max_backoff_s: float = 10.0
    # More dead letters than this share of a window of records: stop.
    max_dead_share: float = 0.1
    dead_window: int = 1000
