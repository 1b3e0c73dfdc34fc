"""The most memory that an inserter takes over a backlog, and whether it grows with the backlog.

Peak resident memory (getrusage) of one process that drains into PostgreSQL with default settings.
The limit is 400 MiB, whatever the backlog.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from _measure import ROUNDS, Row, report, run, stack
from insert import empty, landed, publish

LIMIT_MIB = 400
BACKLOGS = (1_000_000, 5_000_000)


def main() -> None:
    """Measure, print, write."""
    rows = []
    for backlog in BACKLOGS:
        with stack() as ends, tempfile.TemporaryDirectory(prefix="headrace-bench-") as temp:
            config = Path(temp) / "headrace.toml"
            config.write_text("[streams.device_state]\n")
            publish(ends.kafka, backlog)
            peaks = []
            for _ in range(min(ROUNDS, 3)):
                empty(ends.postgres, config, ())
                peaks.append(run("insert", ends.kafka, str(config), ends.postgres)["rss_mib"])
                assert landed(ends.postgres) == backlog
        rows.append(
            Row(
                name=f"backlog of {backlog:,} logs",
                value=statistics.median(peaks),
                limit=None,
                limit_name="",
                ratio=None,
                target=LIMIT_MIB,
                unit="MiB",
                samples=peaks,
                ratios=[],
                lower_is_better=True,
            )
        )
    report("memory", rows)


if __name__ == "__main__":
    main()
