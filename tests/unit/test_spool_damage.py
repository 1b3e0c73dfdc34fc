"""A spool with wrong bits: fsck ends, says so, and leaves one that can be used."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace.cli import cli
from ingest.spool import Limits, Record, SpoolDamaged, SpoolError, SpoolInUse
from ingest.spool import mend as mend_module
from ingest.spool import verify as verify_module
from ingest.spool.care import fsck, look
from ingest.spool.frames import HEADER_BYTES
from ingest.spool.reader import DATABASE, Reader
from ingest.spool.store import Store
from ingest.spool.verify import verify

# Ids in segments of ten, so that few of them are sealed.
LIMITS = Limits(window_ids=80)


def fill(folder: Path, *, blocks: int = 6, each: int = 5) -> None:
    """Blocks of records whose values are their numbers."""
    folder.mkdir(exist_ok=True)
    with closing(Store(folder, LIMITS)) as store:
        for b in range(blocks):
            numbers = range(b * each, (b + 1) * each)
            store.append([[Record("t", b"k", b"%d" % n, f"id-{n}", "x") for n in numbers]])
        while store.tidy():
            pass


def contents(folder: Path) -> list[int]:
    """The numbers of all records, each of which is whole, as a relay reads them."""
    found: list[int] = []
    with closing(Store(folder, LIMITS)), closing(Reader(folder)) as reader:
        start = 0
        while batch := reader.batch(start, 10**6, 100):
            values = [int(row["value"]) for rows in batch.rows.values() for row in rows]
            assert values[-1] == batch.end - 1
            found += values
            start = batch.end
    return found


def change(folder: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as db, db:
        db.execute(sql, values)


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["spool", *map(str, args)])


class Endless(Exception):
    """What a call that does not end is stopped with."""


@contextmanager
def ending(within_s: float = 5.0) -> Iterator[None]:
    """The block ends within the time."""

    def stop(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, within_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- any bit


def page_of(folder: Path, table: str) -> int:
    """Where the page that a small table has begins in the file."""
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return (int(db.execute(sql, (table,)).fetchone()[0]) - 1) * 4096


def structure_of(page: bytes) -> list[int]:
    """Places of SQLite's own bytes in a leaf: its header, and the beginning of each row."""
    rows = int.from_bytes(page[3:5], "big")
    found = list(range(8 + 2 * rows))
    for n in range(rows):
        row = int.from_bytes(page[8 + 2 * n : 10 + 2 * n], "big")
        found += range(row, min(row + 12, 4096))
    return sorted(set(found))


@pytest.mark.parametrize("table", ["state", "blocks", "ids", "sealed"])
def test_whatever_bit_is_wrong_fsck_ends_and_what_it_calls_sound_is_there(
    tmp_path: Path, table: str
) -> None:
    """A wrong bit in SQLite's own bytes leads it astray, and nothing in its file says so. Every
    50th is repaired, too, which takes a while."""
    fill(tmp_path / "was", blocks=3)
    page = page_of(tmp_path / "was", table)
    sound = (tmp_path / "was" / DATABASE).read_bytes()
    folder = tmp_path / "is"
    repaired = tried = 0
    for place in structure_of(sound[page : page + 4096]):
        for bit in range(8):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            spoiled = bytearray(sound)
            spoiled[page + place] ^= 1 << bit
            (folder / DATABASE).write_bytes(spoiled)
            tried += 1
            with ending():
                try:
                    found = verify(folder)
                    assert not found.sound or found.records == 15, (place, bit)
                    if found.sound and table in ("ids", "sealed"):
                        Store(folder, LIMITS).close()
                    if found.sound or tried % 50:
                        continue
                    found = fsck(folder, mend=True)
                except SpoolDamaged:
                    assert table == "state", (place, bit)
                    continue
                assert verify(folder).sound, (place, bit)
                lost = {n for d in found.damaged for n in range(d.first, d.last + 1)}
                assert {*contents(folder), *lost} >= set(range(15)), (place, bit)
                repaired += 1
    assert tried > 150
    assert repaired or table == "state"


# -- rows that nobody wrote


@pytest.mark.parametrize(
    ("column", "value", "lost"),
    [
        ("count", "'x'", {5, 6, 7, 8, 9}),
        ("at_us", "'x'", {5, 6, 7, 8, 9}),
        ("data", "CAST(data AS TEXT)", {5, 6, 7, 8, 9}),
        ("data", "17", {5, 6, 7, 8, 9}),
        ("data", "x''", {5, 6, 7, 8, 9}),
        ("count", "0", set()),
        ("count", "-1", set()),
        ("count", "4", set()),
        ("count", str(2**40), set()),
    ],
)
def test_a_row_of_blocks_that_nobody_wrote_is_damage_and_costs_what_it_held_at_most(
    tmp_path: Path, column: str, value: str, lost: set[int]
) -> None:
    """Where the bytes are as they were written, they say how many records they are."""
    fill(tmp_path)
    change(tmp_path, f"UPDATE blocks SET {column} = {value} WHERE first = 5")
    with ending():
        if column != "at_us" or value == "'x'":
            with pytest.raises(SpoolDamaged, match="fsck"):
                contents(tmp_path)
        assert not fsck(tmp_path, mend=False).sound
        fsck(tmp_path, mend=True)
        assert fsck(tmp_path, mend=False).sound
    assert contents(tmp_path) == [n for n in range(30) if n not in lost]
    assert look(tmp_path).records == 30 - len(lost)


@pytest.mark.parametrize("command", ["ls", "export"])
def test_who_walks_through_a_damaged_file_comes_to_an_end(tmp_path: Path, command: str) -> None:
    fill(tmp_path)
    change(tmp_path, "UPDATE blocks SET data = CAST(data AS TEXT) WHERE first = 5")
    with ending():
        done = invoke(command, tmp_path, *(["--to", "-"] * (command == "export")))
    assert isinstance(done.exception, SpoolDamaged)


@pytest.mark.parametrize(
    "change_of",
    ["node = CAST(node AS BLOB)", "next_seq = x'07'", "position = 'x'", "created_us = x''"],
)
def test_a_state_of_other_types_is_said_by_everybody(tmp_path: Path, change_of: str) -> None:
    fill(tmp_path)
    change(tmp_path, f"UPDATE state SET {change_of}")
    for ask in (Store, look, lambda folder: fsck(folder, mend=True)):
        with pytest.raises(SpoolDamaged, match="state"):
            ask(tmp_path)


def cut_short(folder: Path) -> None:
    change(folder, "UPDATE ids SET data = substr(data, 1, length(data) - 4)")


def other_type(folder: Path) -> None:
    change(folder, "UPDATE ids SET segment = 'x'")


def of_a_sealed_one(folder: Path) -> None:
    change(folder, "UPDATE ids SET segment = (SELECT max(segment) FROM sealed)")


def last_segment(folder: Path) -> None:
    change(folder, f"UPDATE ids SET segment = {2**63 - 1}")


def odd_table(folder: Path) -> None:
    change(folder, "UPDATE sealed SET slots = substr(slots, 1, length(slots) - 8)")


def full_table(folder: Path) -> None:
    """In which known() would look for an empty place for ever."""
    change(folder, "UPDATE sealed SET slots = CAST(replace(hex(slots), '00', '01') AS BLOB)")


def no_table(folder: Path) -> None:
    change(folder, "UPDATE sealed SET slots = 'x'")


SPOILED_IDS = [
    cut_short,
    other_type,
    of_a_sealed_one,
    last_segment,
    odd_table,
    full_table,
    no_table,
]


@pytest.mark.parametrize("spoil", SPOILED_IDS)
def test_ids_that_nobody_wrote_are_damage_and_a_repair_forgets_them_only(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    fill(tmp_path)
    spoil(tmp_path)
    with ending():
        with pytest.raises(SpoolDamaged, match="fsck"):
            Store(tmp_path, LIMITS)
        done = invoke("fsck", tmp_path)
        assert done.exit_code == 1, done.output
        assert "ids that were taken can't all be read" in done.output
        assert invoke("fsck", tmp_path, "--repair").exit_code == 0
        assert invoke("fsck", tmp_path).exit_code == 0
        assert contents(tmp_path) == list(range(30))


# -- the row of state


def test_a_position_above_a_record_that_is_there_is_refused_and_set_back(tmp_path: Path) -> None:
    """It would have this record deleted, and those behind it, which were never sent."""
    fill(tmp_path)
    with closing(Store(tmp_path, LIMITS)) as store:
        store.release(12)
    change(tmp_path, "UPDATE state SET position = 30")
    for ask in (Store, look):
        with pytest.raises(
            SpoolDamaged, match=r"all below 30 is in Kafka, but record 10 was never"
        ):
            ask(tmp_path)
    done = invoke("fsck", tmp_path)
    assert done.exit_code == 1
    assert "the table state: position is 30, but record 10 is still there\n" in done.output
    assert invoke("fsck", tmp_path, "--repair").exit_code == 0
    assert look(tmp_path).state.position == 10
    assert contents(tmp_path) == list(range(10, 30))
    assert invoke("fsck", tmp_path).output == "20 records are sound\n"


@pytest.mark.parametrize("anew", [False, True], ids=["cut out", "written anew"])
@pytest.mark.parametrize("wrong", [[10], [11], [13], [12, 13, 14]], ids=str)
def test_a_repair_never_goes_back_behind_a_position_in_the_middle_of_a_block(
    tmp_path: Path, wrong: list[int], *, anew: bool
) -> None:
    """What lies below is in Kafka, and would be sent again where Kafka has forgotten so."""
    fill(tmp_path)
    with closing(Store(tmp_path, LIMITS)) as store:
        store.release(12)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db, db:
        ((data,),) = db.execute("SELECT data FROM blocks WHERE first = 10").fetchall()
        spoiled = bytearray(data)
        for number in wrong:
            spoiled[(number - 9) * len(data) // 5 - 1] ^= 1
        db.execute("UPDATE blocks SET data = ? WHERE first = 10", (bytes(spoiled),))
    if anew:
        change(tmp_path, "UPDATE ids SET data = x'00'")
    assert "the table state" not in invoke("fsck", tmp_path).output
    assert invoke("fsck", tmp_path, "--repair").exit_code == 0
    assert look(tmp_path).state.position == 12
    waiting = {number for number in contents(tmp_path) if number >= 12}
    assert waiting == set(range(12, 30)).difference(wrong)
    assert verify(tmp_path).sound


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("bytes = bytes + 1024", "bytes is 2,"),
        ("next_seq = 17", "next_seq is 17, but record 29 is there"),
    ],
)
def test_what_the_state_says_and_the_blocks_do_not_is_damage(
    tmp_path: Path, wrong: str, said: str
) -> None:
    fill(tmp_path)
    before = look(tmp_path).state
    change(tmp_path, f"UPDATE state SET {wrong}")
    if wrong == "next_seq = 17":
        with pytest.raises(SpoolDamaged, match="17 comes next, which is there already"):
            Store(tmp_path)
    done = invoke("fsck", tmp_path)
    assert done.exit_code == 1
    assert f"the table state: {said}" in done.output
    assert invoke("fsck", tmp_path, "--repair").exit_code == 0
    assert look(tmp_path).state == before


def test_numbers_that_no_block_has_are_named_and_are_no_damage(tmp_path: Path) -> None:
    """An earlier repair leaves them."""
    fill(tmp_path)
    size = HEADER_BYTES + len("t\0xkid-10") + 2
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db, db:
        ((data,),) = db.execute("SELECT data FROM blocks WHERE first = 10").fetchall()
        wrong = bytearray(data)
        wrong[2 * size - 1] ^= 1
        db.execute("UPDATE blocks SET data = ? WHERE first = 10", (bytes(wrong),))
    assert invoke("fsck", tmp_path).output.splitlines() == [
        "29 records are sound", "damaged: record 11",
    ]  # fmt: skip
    assert invoke("fsck", tmp_path, "--repair").exit_code == 0
    done = invoke("fsck", tmp_path)
    assert done.exit_code == 0
    assert "missing: record 11; an earlier repair has set it aside" in done.output
    change(tmp_path, "DELETE FROM blocks WHERE first = 20")
    change(tmp_path, "UPDATE state SET bytes = (SELECT total(length(data)) FROM blocks)")
    assert "missing: records 20 to 24; an earlier" in invoke("fsck", tmp_path).output


# -- what it costs


def spoil_first_leaf(folder: Path) -> None:
    """The leaf with the first blocks can't be read."""
    place = page_of(folder, "blocks")
    with (folder / DATABASE).open("r+b") as file:
        file.seek(place)
        root = file.read(4096)
        assert root[0] == 5, "an interior page"
        cell = int.from_bytes(root[12:14], "big")
        leaf = int.from_bytes(root[cell : cell + 4], "big")
        file.seek((leaf - 1) * 4096)
        file.write(b"\xee" * 4096)


@pytest.mark.parametrize("spoil", ["sums", "a leaf"])
def test_the_memory_that_fsck_takes_is_not_that_of_the_spool(tmp_path: Path, spoil: str) -> None:
    with closing(Store(tmp_path)) as store:
        for _ in range(200):
            store.append([[Record("t", None, b"x" * 50_000)]])
    if spoil == "a leaf":
        spoil_first_leaf(tmp_path)
    else:
        change(tmp_path, "UPDATE blocks SET crc = crc + 1 WHERE first % 2 = 0")
    tracemalloc.start()
    try:
        found = fsck(tmp_path, mend=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not found.sound
    assert peak < 2_000_000
    assert fsck(tmp_path, mend=False).sound


def test_where_the_first_leaf_is_gone_numbers_are_not_tried_from_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, blocks=0)
    change(tmp_path, "UPDATE state SET next_seq = 100000000, position = 100000000")
    with closing(Store(tmp_path, LIMITS)) as store:
        for _ in range(60):
            store.append([[Record("t", None, b"x" * 300)]])
    spoil_first_leaf(tmp_path)
    tried = 0
    one = verify_module._one

    def counted(*args: object) -> object:
        nonlocal tried
        tried += 1
        assert tried < 10_000
        return one(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verify_module, "_one", counted)
    found = verify(tmp_path)
    assert 0 < found.records < 60
    assert found.records + found.lost == 60


# -- a repair that can't be


_HAS_IT_OPEN = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
db.execute("SELECT * FROM sqlite_master").fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_has_open_is_not_written_anew(tmp_path: Path) -> None:
    """As the other workers of a collector have it, without its lock."""
    fill(tmp_path)
    cut_short(tmp_path)
    command = [sys.executable, "-c", _HAS_IT_OPEN, str(tmp_path / DATABASE)]
    # A file that others only read is not opened where there is no WAL.
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("SELECT * FROM state").fetchall()
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
    try:
        with pytest.raises(SpoolInUse, match="Stop the whole collector, then repair it"):
            fsck(tmp_path, mend=True)
        names = {path.name for path in tmp_path.iterdir()}
        assert names <= {"lock", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}
    finally:
        other.communicate(timeout=30)
    assert not fsck(tmp_path, mend=True).sound
    assert fsck(tmp_path, mend=False).sound


def test_a_repair_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    cut_short(tmp_path)
    change(tmp_path, "UPDATE blocks SET data = zeroblob(60) WHERE first = 5")

    def fails(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(mend_module, "_copy_rows", fails)
        with pytest.raises(SpoolError, match="disk I/O error"):
            fsck(tmp_path, mend=True)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", DATABASE}
    assert fsck(tmp_path, mend=True).lost == 5
