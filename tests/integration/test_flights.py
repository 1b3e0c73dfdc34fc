"""The flights example as its README runs it, and every column against the file read by `csv`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import psycopg
import pytest

from headrace.stack import Stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
TEXT = ("carrier", "tailnum", "origin", "dest")
TIME = "time_hour"


@dataclass(frozen=True)
class Facts:
    """What must be the same in the file and in a table."""

    rows: int
    sums: dict[str, int]
    nulls: dict[str, int]
    carriers: dict[str, int]
    first: datetime
    last: datetime


@dataclass(frozen=True)
class Place:
    """A running stack and the file; `headrace()` runs a command against them."""

    kafka: str
    postgres: str
    folder: Path

    def headrace(self, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from headrace.cli import main; main()", *args,
             "--config", str(EXAMPLE / "headrace.toml"), "--kafka", self.kafka],
            cwd=self.folder, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"headrace {' '.join(args)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def flights() -> Path:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "fetch.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def facts(flights: Path) -> Facts:
    # How often each value is in each column: of 6 million fields few thousand are different.
    columns: dict[str, Counter[str]] = {}
    rows = 0
    with flights.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        names = next(lines)
        while some := list(islice(lines, 10_000)):
            rows += len(some)
            for name, column in zip(names, zip(*some, strict=True), strict=True):
                columns.setdefault(name, Counter()).update(column)
    times = sorted(map(datetime.fromisoformat, columns[TIME]))
    return Facts(
        rows=rows,
        sums={
            name: sum(int(value) * count for value, count in column.items() if value != "NA")
            for name, column in columns.items()
            if name not in (*TEXT, TIME)
        },
        nulls={name: column["NA"] for name, column in columns.items()},
        carriers=dict(columns["carrier"]),
        first=times[0],
        last=times[-1],
    )


@pytest.fixture(scope="module")
def place(stack: Stack, flights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The topic is the example's own; no other test uses it. The database is this module's."""
    ends = stack.up(progress=False)
    with psycopg.connect(ends.postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE flights")
        database = ends.postgres.rsplit("/", 1)[0] + "/flights"
        place = Place(ends.kafka, database, tmp_path_factory.mktemp("flights"))
        place.headrace("migrate", "--to", place.postgres, "--stream", "flights")
        place.headrace("publish", "flights", str(flights), "--null", "NA")
        yield place
        connection.execute("DROP DATABASE flights WITH (FORCE)")


def questions(facts: Facts, count_null: str) -> dict[str, str]:
    """One SQL expression for each fact; the same in both databases but for counting NULLs."""
    return {
        "rows": "count(*)",
        **{f"sum {n}": f"sum({n})" for n in facts.sums},
        **{f"null {n}": count_null.format(n) for n in facts.nulls},
        **{f"carrier {c}": count_null.format(f"nullif(carrier, '{c}')") for c in facts.carriers},
    }


def answers(facts: Facts) -> dict[str, int]:
    return {
        "rows": facts.rows,
        **{f"sum {n}": total for n, total in facts.sums.items()},
        **{f"null {n}": nulls for n, nulls in facts.nulls.items()},
        **{f"carrier {c}": count for c, count in facts.carriers.items()},
    }


@pytest.mark.timeout(600)
def test_the_file_is_the_one_everybody_knows(facts: Facts) -> None:
    assert facts.rows == 336_776
    assert facts.nulls["dep_time"] == 8_255
    assert facts.nulls["air_time"] == 9_430
    assert len(facts.nulls) == 19


@pytest.mark.timeout(600)
def test_postgres_holds_each_flight_once_and_each_gap_as_null(place: Place, facts: Facts) -> None:
    # Drained twice: the second run finds nothing left to do.
    for _ in range(2):
        place.headrace("insert", "--to", place.postgres, "--stream", "flights", "--drain")
    asked = questions(facts, "count(*) FILTER (WHERE {0} IS NULL)")
    with psycopg.connect(place.postgres) as connection:
        row = connection.execute(
            f"SELECT min({TIME}), max({TIME}), {', '.join(asked.values())} FROM flights"
        ).fetchone()
    assert row is not None
    assert row[:2] == (facts.first, facts.last)
    assert dict(zip(asked, map(int, row[2:]), strict=True)) == answers(facts)


@pytest.mark.timeout(600)
def test_clickhouse_holds_each_flight_once_and_each_gap_as_null(place: Place, facts: Facts) -> None:
    path = place.folder / "chdb"
    place.headrace("migrate", "--to", f"chdb:{path}", "--stream", "flights")
    for _ in range(2):
        place.headrace("insert", "--to", f"chdb:{path}", "--stream", "flights", "--drain")
    asked = questions(facts, "countIf(isNull({0}))")
    sql = (
        f"SELECT toUnixTimestamp(min({TIME})), toUnixTimestamp(max({TIME})), "
        f"{', '.join(asked.values())} FROM flights"
    )
    # In a process of its own: chDB takes one path per process.
    done = subprocess.run(
        [sys.executable, "-c",
         "import os; from chdb.session import Session\n"
         "with Session(os.environ['CHDB']) as session:\n"
         "    print(session.query(os.environ['SQL'], 'JSONCompact').bytes().decode())"],
        env={**os.environ, "CHDB": str(path), "SQL": sql},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["data"]
    ends = tuple(datetime.fromtimestamp(int(second), UTC) for second in row[:2])
    assert ends == (facts.first, facts.last)
    assert dict(zip(asked, map(int, row[2:]), strict=True)) == answers(facts)
