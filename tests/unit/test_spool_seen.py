"""Ids that were taken: known for the window, across restarts, and forgotten after it."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ingest.spool import seen as seen_module
from ingest.spool.errors import Malformed
from ingest.spool.seen import SCHEMA, Seen, digest
from ingest.units import HOUR_US


class Ids:
    """A file of ids, opened again and again."""

    def __init__(self, path: Path, window_s: float = 24 * 3600, window_ids: int = 800) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        if not self.db.execute("SELECT * FROM sqlite_master").fetchall():
            self.db.executescript(SCHEMA)
        self.seen = Seen(self.db, window_s, window_ids)

    def take(self, names: range, now_us: int = 0) -> None:
        keys = [digest(b"%d" % n) for n in names]
        self.db.execute("BEGIN")
        self.seen.write(keys, now_us)
        self.db.execute("COMMIT")
        self.seen.add(keys, now_us)

    def settle(self, now_us: int = 0) -> None:
        while self.seen.due(now_us):
            self.db.execute("BEGIN")
            self.seen.settle(now_us)
            self.db.execute("COMMIT")
            self.seen.settled(now_us)

    def known(self, names: range) -> list[bool]:
        return [self.seen.known(digest(b"%d" % n)) for n in names]

    def close(self) -> None:
        self.db.close()


def test_what_was_taken_is_known_and_nothing_else(tmp_path: Path) -> None:
    ids = Ids(tmp_path / "a", window_ids=10_000)
    for start in range(0, 3000, 100):
        ids.take(range(start, start + 100))
    assert all(ids.known(range(3000)))
    assert not any(ids.known(range(3000, 6000)))
    assert len(ids.seen) == 3000
    ids.close()


@pytest.mark.parametrize("settled", [False, True])
def test_they_are_known_after_a_restart_sealed_or_not(tmp_path: Path, settled: bool) -> None:
    for start in range(0, 700, 70):
        ids = Ids(tmp_path / "a")
        ids.take(range(start, start + 70))
        if settled:
            ids.settle()
        ids.close()
    ids = Ids(tmp_path / "a")
    (sealed,) = ids.db.execute("SELECT count(*) FROM sealed").fetchone()
    assert (sealed > 3) == settled
    assert all(ids.known(range(700)))
    assert not any(ids.known(range(700, 1400)))
    ids.close()


def test_as_many_as_the_window_says_are_known_and_older_ones_forgotten(tmp_path: Path) -> None:
    ids = Ids(tmp_path / "a", window_ids=800)
    for start in range(0, 5000, 50):
        ids.take(range(start, start + 50))
        ids.settle()
        assert all(ids.known(range(max(0, start + 50 - 800), start + 50)))
    assert len(ids.seen) <= 800 + 2 * 100
    assert not any(ids.known(range(3500)))
    rows = ids.db.execute("SELECT count(*) FROM sealed").fetchone()
    assert rows[0] <= 10
    ids.close()


def test_an_id_is_known_for_the_hours_of_the_window_and_then_forgotten(tmp_path: Path) -> None:
    ids = Ids(tmp_path / "a", window_s=24 * 3600)
    for hour in range(60):
        ids.take(range(hour, hour + 1), hour * HOUR_US)
        ids.settle(hour * HOUR_US)
        assert all(ids.known(range(max(0, hour - 24), hour + 1)))
    assert not any(ids.known(range(60 - 24 - 5)))
    ids.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_the_window_counts_from_the_last_id_of_a_segment_also_across_restarts(
    tmp_path: Path, sealed: bool
) -> None:
    each = 30 if sealed else 1
    for hour in range(60):
        ids = Ids(tmp_path / "a", window_ids=1024)
        ids.take(range(hour * each, (hour + 1) * each), hour * HOUR_US)
        ids.settle(hour * HOUR_US)
        assert all(ids.known(range(max(0, hour - 24) * each, (hour + 1) * each))), hour
        (found,) = ids.db.execute("SELECT count(*) FROM sealed").fetchone()
        ids.close()
    assert bool(found) == sealed


def test_a_transaction_that_is_rolled_back_leaves_nothing(tmp_path: Path) -> None:
    ids = Ids(tmp_path / "a")
    ids.db.execute("BEGIN")
    ids.seen.write([digest(b"0")], 0)
    ids.db.execute("ROLLBACK")
    assert ids.known(range(1)) == [False]
    ids.take(range(1))
    assert ids.known(range(1)) == [True]
    ids.close()


def test_more_at_once_than_a_segment_holds(tmp_path: Path) -> None:
    ids = Ids(tmp_path / "a", window_ids=80)
    ids.take(range(500))
    ids.take(range(500, 510))
    ids.settle()
    assert all(ids.known(range(510)))
    ids.close()
    ids = Ids(tmp_path / "a", window_ids=80)
    assert all(ids.known(range(510)))
    ids.close()


class Failing:
    """A connection of which one step fails: a question, or a row of the answer to one."""

    def __init__(self, db: sqlite3.Connection, step: int) -> None:
        self._db = db
        self._left = step

    def execute(self, sql: str, *values: Any) -> Failing | sqlite3.Cursor:
        self._count()
        self._cursor = self._db.execute(sql, *values)
        # The one of many rows is asked for them one by one.
        return self if sql.startswith("SELECT part") else self._cursor

    def __iter__(self) -> Iterator[Any]:
        for row in self._cursor:
            self._count()
            yield row

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise sqlite3.OperationalError("disk I/O error")


def test_a_read_that_fails_half_way_forgets_nothing_and_takes_nothing_twice(
    tmp_path: Path,
) -> None:
    """At each of its steps: of a segment that was read in part, of new ones, of sealed ones."""
    failures = 0
    for step in itertools.count():
        ids = Ids(tmp_path / str(step), window_ids=800)
        ids.take(range(60))
        other = seen_module.Ids(800)
        other.read(ids.db)
        for start in range(60, 260, 20):
            ids.take(range(start, start + 20))
            ids.settle()
        failing = cast("sqlite3.Connection", Failing(ids.db, step))
        try:
            other.read(failing)
        except sqlite3.OperationalError:
            failures += 1
            assert len(other) == 60
            other.read(ids.db)
        else:
            break
        finally:
            ids.close()
        assert all(other.known(digest(b"%d" % n)) for n in range(260))
        assert len(other) == 260
    assert failures > 6


def test_a_segment_is_never_more_than_half_full() -> None:
    """A full one would be searched for ever."""
    for capacity in (1, 2, 3, 100, 1_000_000):
        assert seen_module._Segment(1, capacity, 0).mask + 1 >= 2 * capacity


def test_a_segment_that_rows_would_overfill_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    """In one that is full known() would look for an empty place for ever."""
    ids = Ids(tmp_path / "a")
    ids.take(range(50))
    other = seen_module.Ids(800)
    other.read(ids.db)
    keys = b"".join(digest(b"%d" % n) for n in range(50, 1000))
    ids.db.execute("INSERT INTO ids (segment, at_us, data) VALUES (1, 0, ?)", (keys,))
    with pytest.raises(Malformed):
        other.read(ids.db)
    assert len(other) == 50
    assert not other.known(digest(b"x"))
    ids.close()
