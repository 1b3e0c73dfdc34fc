"""Destinations, as an inserter is told of them and as a test looks at them."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg

__all__ = ["ChdbTarget", "ClickHouseTarget", "PostgresTarget", "Target"]

# chDB takes one path per process, and that one is not the test's.
_ASK_CHDB = """
import sys
from chdb.session import Session
print(Session(sys.argv[1]).query(sys.argv[2], "TabSeparated"), end="")
"""


class Target(Protocol):
    """A destination, as an inserter is told of it and as a test looks at it."""

    url: str
    # How many inserters may use it at the same time.
    processes: int

    def ask(self, query: str) -> tuple[int, ...]:
        """One row of numbers."""
        ...

    def rows(self, table: str) -> int:
        """How many; 0 where the table can't be asked now."""
        ...

    def distinct(self, table: str) -> tuple[int, int]:
        """Rows, and different (device_id, timestamp) among them."""
        ...


@dataclass
class PostgresTarget:
    """A PostgreSQL database. `through` is the URL for inserters where it is another (a proxy)."""

    database: str
    through: str | None = None
    processes: int = 4

    @property
    def url(self) -> str:
        return self.through or self.database

    def ask(self, query: str) -> tuple[int, ...]:
        with psycopg.connect(self.database, connect_timeout=5) as connection:
            row = connection.execute(query).fetchone()  # type: ignore[call-overload]
        assert row is not None
        return tuple(row)

    def rows(self, table: str) -> int:
        try:
            return self.ask(f"SELECT count(*) FROM {table}")[0]
        except psycopg.OperationalError:
            return 0

    def distinct(self, table: str) -> tuple[int, int]:
        # count(DISTINCT (a, b)) would sort them all: 9 s for a million, this takes one.
        rows, unique = self.ask(
            "SELECT coalesce(sum(n), 0)::bigint, count(*) FROM (SELECT count(*) AS n "
            f"FROM {table} GROUP BY device_id, timestamp) AS each"
        )
        return rows, unique


@dataclass
class ChdbTarget:
    """ClickHouse's engine in the inserter; only one process at a time may look."""

    path: Path
    processes: int = 1

    @property
    def url(self) -> str:
        return f"chdb:{self.path}"

    def ask(self, query: str) -> tuple[int, ...]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ASK_CHDB, str(self.path), query],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return tuple(map(int, done.stdout.split()))

    def rows(self, table: str) -> int:
        return self.ask(f"SELECT count() FROM {table}")[0]

    def distinct(self, table: str) -> tuple[int, int]:
        rows, unique = self.ask(f"SELECT count(), uniqExact(device_id, timestamp) FROM {table}")
        return rows, unique


@dataclass
class ClickHouseTarget:
    """A database behind ClickHouse's HTTP interface at `port`, no password."""

    port: int
    database: str = "default"
    processes: int = 4

    @property
    def url(self) -> str:
        return f"clickhouse://default@127.0.0.1:{self.port}/{self.database}"

    def ask(self, query: str) -> tuple[int, ...]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/?user=default&database={self.database}", query.encode()
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return tuple(map(int, answer.read().split()))

    def rows(self, table: str) -> int:
        try:
            return self.ask(f"SELECT count() FROM {table}")[0]
        except OSError:
            return 0

    def distinct(self, table: str) -> tuple[int, int]:
        rows, unique = self.ask(f"SELECT count(), uniqExact(device_id, timestamp) FROM {table}")
        return rows, unique
