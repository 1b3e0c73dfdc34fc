"""Spools side by side: an id that one of them took is known to all, whoever gets the retry."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from ingest.spool import Limits, Record, Spool
from ingest.spool import seen as seen_module
from ingest.spool.peers import Peers
from ingest.spool.reader import DATABASE, Reader
from ingest.spool.seen import Ids, Seen
from ingest.spool.store import Store

PATIENCE_S = 30.0
Open = Callable[..., Store]


def record(name: str) -> Record:
    return Record("t", b"k", name.encode(), name)


def peers(root: Path, number: int, count: int, limits: Limits) -> Peers:
    others = [root / str(n) for n in range(count) if n != number]
    return Peers(root / "ids.lock", others, limits.window_ids)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """Opens the store of a worker, by its number."""
    with ExitStack() as stack:

        def begin(number: int, count: int = 3, limits: Limits | None = None) -> Store:
            folder = tmp_path / str(number)
            folder.mkdir(exist_ok=True)
            limits = limits or Limits()
            beside = peers(tmp_path, number, count, limits)
            return stack.enter_context(closing(Store(folder, limits, None, beside)))

        yield begin


def values(root: Path) -> list[str]:
    """Of all records in all spools."""
    found = []
    for path in sorted(root.glob(f"*/{DATABASE}")):
        with closing(Reader(path.parent)) as reader:
            found += [r.value.decode() for r in reader.read(0, 10**7, 10**10)]
    return found


def test_what_one_took_no_other_stores_again(open_store: Open, tmp_path: Path) -> None:
    one, two = open_store(0), open_store(1)
    assert one.append([[record("a"), record("b")]]) == [2]
    assert two.append([[record("b"), record("c")], [record("c"), record("a")]]) == [1, 0]
    assert one.append([[record("c"), record("d")]]) == [1]
    three = open_store(2)  # it was not there when the others began
    assert three.append([[record(name) for name in "abcde"]]) == [1]
    assert one.append([[record("e")]]) == [0]
    assert sorted(values(tmp_path)) == ["a", "b", "c", "d", "e"]


def test_it_is_said_which_spool_holds_it_and_the_position_behind_it(open_store: Open) -> None:
    one, two = open_store(0), open_store(1)
    one.append([[record(name) for name in "abc"]])
    two.append([[record("x")]])
    assert two.elsewhere == {}
    two.append([[record("y"), record("b")]])
    assert two.elsewhere == {one.path.parent: 3}
    two.append([[record("z")]])
    assert two.elsewhere == {}


def test_it_is_known_across_restarts_and_while_the_other_is_gone(open_store: Open) -> None:
    one = open_store(0)
    one.append([[record("a")]])
    one.close()
    two = open_store(1)
    assert two.append([[record("a")]]) == [0]
    two.close()
    assert open_store(1).append([[record("a")]]) == [0]


def test_segments_that_are_sealed_or_forgotten_meanwhile_are_so_for_the_others_too(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of 800 ids is eight segments of 100."""
    monkeypatch.setattr(seen_module, "_SEGMENT_IDS", 100)
    limits = Limits(window_ids=800)
    one, two = open_store(0, limits=limits), open_store(1, limits=limits)
    chance = random.Random(7)
    taken: list[str] = []
    while len(taken) < 3000:
        store = chance.choice([one, two])
        names = [f"id-{len(taken) + n}" for n in range(chance.randint(1, 60))]
        assert store.append([[record(name) for name in names]]) == [len(names)]
        taken += names
        while chance.random() < 0.7 and store.tidy():
            pass
        # Of the last 800 that each of them took, half are the others': all of these are known.
        known = [record(name) for name in taken[-700:]]
        assert chance.choice([one, two]).append([known]) == [0]
    while one.tidy() or two.tidy():
        pass
    assert one.append([[record(name) for name in taken[:500]]]) == [500], "they were forgotten"


def test_many_threads_of_many_spools_store_each_id_once(tmp_path: Path) -> None:
    """As many workers get the same retries, all at once."""
    names = [f"id-{n}" for n in range(400)]
    limits = Limits()

    def begin(folder: Path, *_: object) -> Store:
        return Store(folder, limits, None, peers(tmp_path, int(folder.name), 4, limits))

    def send(spool: Spool, seed: int) -> None:
        chance = random.Random(seed)
        mine = chance.sample(names, len(names))
        while mine:
            batch = [mine.pop() for _ in range(min(len(mine), chance.randint(1, 7)))]
            assert spool.append_now([record(name) for name in batch]) is None, "it may have to wait"
            spool.append([record(name) for name in batch]).result(PATIENCE_S)

    with ExitStack() as stack:
        spools = [
            stack.enter_context(Spool(tmp_path / str(n), limits, open_store=begin))
            for n in range(4)
        ]
        threads = [
            threading.Thread(target=send, args=(spool, seed))
            for seed, spool in enumerate(spools * 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(values(tmp_path)) == dict.fromkeys(names, 1)


_HOLDS_AND_DIES = """
import os, sys
from pathlib import Path
from ingest.spool.peers import Peers
with Peers(Path(sys.argv[1]), [], 800):
    os.kill(os.getpid(), 9)
"""


def test_one_that_is_killed_in_its_turn_holds_up_nobody(open_store: Open, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLDS_AND_DIES, str(tmp_path / "ids.lock")]
    assert subprocess.run(command, check=False).returncode == -9
    assert open_store(0).append([[record("a")]]) == [1]


def test_of_a_file_that_a_repair_has_put_in_place_the_ids_are_read_anew(
    open_store: Open, tmp_path: Path
) -> None:
    """The other workers go on while one is repaired."""
    zero, one = open_store(0, count=2), open_store(1, count=2)
    assert one.append([[record("a")]]) == [1]
    assert zero.append([[record("a")]]) == [0]
    one.close()
    shutil.copytree(tmp_path / "1", tmp_path / "mended")
    Store(tmp_path / "mended").close()
    for ending in ("-wal", "-shm"):
        (tmp_path / "1" / (DATABASE + ending)).unlink(missing_ok=True)
    (tmp_path / "mended" / DATABASE).replace(tmp_path / "1" / DATABASE)
    assert open_store(1, count=2).append([[record("b")]]) == [1]
    assert zero.append([[record("a")], [record("b")], [record("c")]]) == [0, 0, 1]


def test_one_that_can_not_be_read_is_named_and_holds_up_nobody(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / DATABASE).write_bytes(b"rubbish, and more than one page of it" * 1000)
    store = open_store(0, count=2)
    with caplog.at_level(logging.ERROR):
        assert store.append([[record("a")]]) == [1]
        assert store.append([[record("b")]]) == [1]
    (said,) = caplog.messages
    assert "may be stored twice" in said and str(tmp_path / "1") in said


@pytest.mark.parametrize(
    "wrong", ["data = substr(data, 1, 12)", "data = 7", "segment = 'x'", "at_us = 'x'"]
)
def test_one_whose_ids_nobody_wrote_is_read_once_and_ends_no_other(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, wrong: str,
) -> None:  # fmt: skip
    bad = open_store(1, count=2)
    bad.append([[record("a")]])
    bad._db.execute(f"UPDATE ids SET {wrong}")
    reads = 0
    read = Ids.read

    def counted(ids: Ids, db: sqlite3.Connection) -> None:
        nonlocal reads
        reads += not isinstance(ids, Seen)
        read(ids, db)

    monkeypatch.setattr(Ids, "read", counted)
    store = open_store(0, count=2)
    with caplog.at_level(logging.ERROR):
        assert [store.append([[record(name)]]) for name in "bcb"] == [[1], [1], [0]]
    (said,) = caplog.messages
    assert "may be stored twice" in said and "fsck" in said
    assert reads == 1, "with each append it would hold them all up"
