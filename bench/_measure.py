"""What all benchmarks share: a stack of their own, runs in turn, ratios, a table, a JSON file.

The machine drifts by ±20 %, so nothing here compares figures of different minutes: all runs of a
benchmark take turns, round after round, and a ratio is made of two runs of the same round. Each run
is a process of its own (`python bench/_runs.py …`), so that none inherits another's heap.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.stack import Endpoints, Stack
from ingest.spool import Record

__all__ = ["HERE", "ROUNDS", "Row", "bare_commits", "compare", "in_turn", "report", "run", "stack"]

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROUNDS = int(os.environ.get("ROUNDS", "5"))


@dataclass(frozen=True)
class Row:
    """One line of a benchmark. `ratio` is the median of value/limit of the rounds, one by one."""

    name: str
    value: float
    limit: float | None
    limit_name: str
    ratio: float | None
    target: float | None
    unit: str
    samples: Sequence[float]
    ratios: Sequence[float]
    # Whether a smaller ratio or value is the better one (memory, latency).
    lower_is_better: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        found = self.ratio if self.ratio is not None else self.value
        return found <= self.target if self.lower_is_better else found >= self.target


@contextmanager
def stack() -> Iterator[Endpoints]:
    """Kafka and PostgreSQL for this benchmark alone; gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        Stack(Path(folder) / "state") as running,
    ):
        ends = running.endpoints()
        assert ends is not None
        yield ends


def run(*argv: str) -> dict[str, Any]:
    """Run `bench/_runs.py` with these arguments; the JSON object of its last line."""
    done = subprocess.run(
        [sys.executable, str(HERE / "_runs.py"), *argv],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"bench: the run {' '.join(argv[:1])} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bare_commits(records: Sequence[Record], each: int) -> float:
    """Records a second of SQLite alone: BEGIN, executemany of `each`, COMMIT; WAL and FULL."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        db = sqlite3.connect(f"{folder}/bare.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(
            "CREATE TABLE r (seq INTEGER PRIMARY KEY, topic TEXT, key BLOB, value BLOB, id, source)"
        )
        start = time.perf_counter()
        for at in range(0, len(records), each):
            db.execute("BEGIN")
            db.executemany(
                "INSERT INTO r (topic, key, value, id, source) VALUES (?, ?, ?, ?, ?)",
                records[at : at + each],
            )
            db.execute("COMMIT")
        took = time.perf_counter() - start
        db.close()
    return len(records) / took


def in_turn(
    runs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS, *, back_and_forth: bool = False
) -> dict[str, list[float]]:
    """Each run once a round, in order; the figures of each by name.

    Back and forth, each second round is in the opposite order, so that none is always the first.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        order = list(runs)
        if back_and_forth and number % 2:
            order.reverse()
        for name in order:
            found = runs[name]()
            samples[name].append(found)
            print(f"  round {number + 1}: {name}: {found:,.0f}", file=sys.stderr, flush=True)
    return samples


def compare(
    name: str,
    samples: Mapping[str, Sequence[float]],
    ours: str,
    limit: str,
    *,
    target: float | None,
    unit: str = "rows/s",
) -> Row:
    """A row of two runs that took turns."""
    ratios = [a / b for a, b in zip(samples[ours], samples[limit], strict=True)]
    return Row(
        name=name,
        value=statistics.median(samples[ours]),
        limit=statistics.median(samples[limit]),
        limit_name=limit,
        ratio=statistics.median(ratios),
        target=target,
        unit=unit,
        samples=list(samples[ours]),
        ratios=ratios,
    )


def report(name: str, rows: Sequence[Row], notes: Mapping[str, Any] | None = None) -> None:
    """Print the table and write bench/results/NAME.json."""
    table = Table(title=f"{name}: median of {len(rows[0].samples)}", title_justify="left")
    for column in ("", "measured", "spread", "limit in the same run", "ratio", "spread", "target"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.value:,.0f} {row.unit}",
            _spread(row.samples, ",.0f"),
            "" if row.limit is None else f"{row.limit:,.0f} ({row.limit_name})",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            _spread(row.ratios, ".2f"),
            _target(row),
        )
    Console(width=160 if not sys.stdout.isatty() else None).print(table)
    RESULTS.mkdir(exist_ok=True)
    document = {
        "bench": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
            "librdkafka": version("confluent-kafka"),
        },
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        **(notes or {}),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def _spread(samples: Sequence[float], form: str) -> str:
    return f"{min(samples):{form}} – {max(samples):{form}}" if len(samples) > 1 else ""


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "≤" if row.lower_is_better else "≥"
    return f"{sign} {row.target:g} {'met' if row.met else 'MISSED'}"
