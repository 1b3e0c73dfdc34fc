"""The spool on disk: what it answers for is there, in order, numbered once, within its limit."""

from __future__ import annotations

import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from waiting import until

from ingest.spool import Limits, Record, Spool, SpoolError, SpoolFull, SpoolInUse
from ingest.spool.errors import SpoolDamaged
from ingest.spool.frames import HEADER_BYTES
from ingest.spool.lock import user_of
from ingest.spool.reader import Reader
from ingest.spool.store import Store

PATIENCE_S = 30.0


def records(count: int, size: int = 10, *, first: int = 0, ids: bool = False) -> list[Record]:
    return [
        Record("t", b"k", b"%0*d" % (size, n), f"id-{n}" if ids else None)
        for n in range(first, first + count)
    ]


def contents(folder: Path) -> list[tuple[int, bytes]]:
    with closing(Reader(folder)) as reader:
        return [(r.seq, r.value) for r in reader.read(0, 10**7, 10**10)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path)) as store:
        yield store


# -- whose it is


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_its_files_are_its_users_only_also_in_a_directory_that_was_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with Spool(tmp_path) as spool:
        spool.append(records(3)).result(PATIENCE_S)
        names = ("lock", "spool.db", "spool.db-wal", "spool.db-shm")
        assert modes(tmp_path) == dict.fromkeys(names, 0o600)


def test_what_a_version_before_left_to_others_is_taken_from_them(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.append([records(3)])
        copied = tmp_path / "killed"
        copied.mkdir()
        for name in ("spool.db", "spool.db-wal"):
            shutil.copyfile(tmp_path / name, copied / name)
            (copied / name).chmod(0o644)
    with closing(Store(copied)):
        assert set(modes(copied).values()) == {0o600}
        assert len(contents(copied)) == 3


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_no_mode_is_changed_through_a_link(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    """Another user's directory, looked into by root, may have one to anything."""
    (tmp_path / "is").mkdir()
    Store(tmp_path / "is").close()
    theirs = tmp_path / "is" / "spool.db"
    theirs.chmod(0o644)
    (tmp_path / "looks").mkdir()
    link(tmp_path / "looks" / "spool.db", theirs)
    Store(tmp_path / "looks").close()
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o644


# -- appends in the caller's own thread


def test_an_append_in_the_callers_thread_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        assert spool.append_now(records(3, ids=True)) == 3
        assert [n for n, _ in contents(tmp_path)] == [0, 1, 2]
        assert spool.append_now(records(4, ids=True)) == 1, "three of these ids were taken"
        assert spool.state.next_seq == 4


def test_nobody_overtakes_what_is_queued(tmp_path: Path) -> None:
    """While the writer has something to do, the caller's own thread does not commit."""
    held, entered = threading.Event(), threading.Event()

    class Slow(Store):
        def append(self, batches: Sequence[Sequence[Record]]) -> list[int | SpoolFull]:
            entered.set()
            assert held.wait(PATIENCE_S)
            return super().append(batches)

    with Spool(tmp_path, open_store=Slow) as spool:
        first = spool.append(records(1))
        assert spool.append_now(records(1, first=1)) is None, "it is queued"
        assert entered.wait(PATIENCE_S)
        assert spool.append_now(records(1, first=1)) is None, "it is at the disk"
        held.set()
        first.result(PATIENCE_S)
        until(lambda: spool.append_now(records(1, first=1)) == 1, "a turn for the caller")
    assert [int(value) for _, value in contents(tmp_path)] == [0, 1]


def test_an_append_in_the_callers_thread_is_refused_as_any_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Limits(max_bytes=1000))
    with pytest.raises(SpoolFull, match="at its limit"):
        spool.append_now(records(1, size=2000))
    with pytest.raises(ValueError, match="no name of a topic"):
        spool.append_now([Record("", None, b"")])
    assert spool.append_now(records(1)) == 1
    spool.close()
    with pytest.raises(SpoolError, match="closed"):
        spool.append_now(records(1, first=1))
    assert len(contents(tmp_path)) == 1


def test_a_store_that_fails_in_the_callers_thread_ends_the_spool(tmp_path: Path) -> None:
    """As it does in the writer's: what state the store is in is not known."""

    class Broken(Store):
        def append(self, batches: Sequence[Sequence[Record]]) -> list[int | SpoolFull]:
            raise ZeroDivisionError

    with Spool(tmp_path, open_store=Broken) as spool:
        with pytest.raises(ZeroDivisionError):
            spool.append_now(records(1))
        assert spool.closed
        with pytest.raises(SpoolError, match="closed"):
            spool.append(records(1))


def test_old_ids_are_forgotten_also_when_only_callers_commit(tmp_path: Path) -> None:
    with Spool(tmp_path, Limits(window_ids=16)) as spool:
        for n in range(1000):
            while spool.append_now(records(1, first=n, ids=True)) is None:
                time.sleep(0.001)
        until(lambda: spool.append_now(records(1, ids=True)) == 1, "the first id forgotten")


# -- appends


def test_what_is_answered_for_is_there_after_a_crash(tmp_path: Path) -> None:
    """The process is killed without a word right after the answer."""
    code = (
        "import os, signal, sys\n"
        "from ingest.spool import Record, Spool\n"
        "spool = Spool(sys.argv[1])\n"
        "for n in range(30):\n"
        "    spool.append([Record('t', None, b'%d' % n)]).result()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with Spool(tmp_path):
        assert contents(tmp_path) == [(n, b"%d" % n) for n in range(30)]


def test_appends_of_many_threads_share_commits_and_keep_each_ones_order(tmp_path: Path) -> None:
    commits: list[int] = []

    class Counting(Store):
        def append(self, batches: Sequence[Sequence[Record]]) -> list[int | SpoolFull]:
            commits.append(len(batches))
            return super().append(batches)

    def append(name: bytes) -> None:
        for n in range(50):
            spool.append([Record("t", name, b"%d" % n)]).result(PATIENCE_S)

    with Spool(tmp_path, open_store=Counting) as spool:
        threads = [threading.Thread(target=append, args=(b"%d" % n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with closing(spool.reader()) as reader:
            found = reader.read(0, 10**6, 10**9)
    assert sum(commits) == 400
    assert len(commits) < 300
    assert [r.seq for r in found] == list(range(400))
    for n in range(8):
        mine = [int(r.value) for r in found if r.key == b"%d" % n]
        assert mine == list(range(50))


def test_the_callback_is_called_once_the_records_are_on_disk(tmp_path: Path) -> None:
    seen: list[object] = []
    called = threading.Event()
    with Spool(tmp_path) as spool:

        def done(ticket: object) -> None:
            seen.append((ticket, contents(tmp_path)))
            called.set()
            raise RuntimeError("what a callback raises stops nobody")

        ticket = spool.append(records(1), done)
        assert called.wait(PATIENCE_S)
        assert seen == [(ticket, [(0, b"0000000000")])]
        assert spool.append(records(1)).result(PATIENCE_S) == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
def test_write_then_fsync_then_answer(tmp_path: Path) -> None:
    """The order of the system calls of one append: the WAL is written, synced, and then answered.

    What a power cut leaves is what was synced; so acknowledged is a subset of recovered.
    """
    code = (
        "import os, sys\n"
        "from ingest.spool import Record, Spool\n"
        "spool = Spool(sys.argv[1])\n"
        "for n in range(3):\n"
        "    os.write(2, b'append')\n"
        "    spool.append([Record('t', None, b'x' * 100)]).result()\n"
        "    os.write(2, b'answer')\n"
        "spool.close()\n"
    )
    log = tmp_path / "calls"
    done = subprocess.run(
        ["strace", "-f", "-y", "-o", str(log), "-e", "trace=write,pwrite64,fsync,fdatasync",
         sys.executable, "-c", code, str(tmp_path / "spool")],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    lines = log.read_text().splitlines() if log.exists() else []
    if not any("append" in line for line in lines):
        pytest.skip(f"strace may not trace here: {done.stderr.decode()[-200:]}")
    assert done.returncode == 0, done.stderr
    story: list[str] = []
    for line in lines:
        if '"append"' in line:
            story.append("append")
        elif '"answer"' in line:
            story.append("answer")
        elif "spool.db-wal" in line:
            story.append("write" if "pwrite64" in line else "sync")
    for number in range(3):
        begin = [i for i, what in enumerate(story) if what == "append"][number]
        end = story.index("answer", begin)
        between = story[begin + 1 : end]
        assert between.count("write") >= 2, story
        assert between[-1] == "sync", story
        assert "write" not in between[between.index("sync") :], story


def test_the_settings_that_the_promise_rests_on(store: Store) -> None:
    asked = {
        name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "fullfsync", "auto_vacuum")
    }
    assert asked == {"journal_mode": "wal", "synchronous": 2, "fullfsync": 1, "auto_vacuum": 2}


def test_a_closed_spool_takes_nothing_and_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    tickets = [spool.append(records(1)) for _ in range(5)]
    spool.close()
    spool.close()
    assert [t.result(0) for t in tickets] == [1] * 5
    with pytest.raises(SpoolError, match="closed"):
        spool.append(records(1))


def test_who_waits_for_records_of_a_closed_spool_waits_and_can_be_woken(tmp_path: Path) -> None:
    """Who asks again and again would use up a processor."""
    spool = Spool(tmp_path)
    spool.close()
    begun = time.monotonic()
    assert not spool.wait(0, 0.05)
    assert time.monotonic() - begun >= 0.05
    waiting = threading.Thread(target=spool.wait, args=(0, 10 * PATIENCE_S))
    waiting.start()

    def woken() -> bool:
        spool.wake()
        return not waiting.is_alive()

    until(woken, "an end to the waiting")


@pytest.mark.parametrize("record", [Record("", None, b""), Record("t" * 250, None, b""),
                                    Record("t", None, b"", "i" * 1001)])  # fmt: skip
def test_what_no_spool_holds_is_refused_at_once(tmp_path: Path, record: Record) -> None:
    with Spool(tmp_path) as spool, pytest.raises(ValueError, match=r"topic|id"):
        spool.append([record])


def test_who_waits_for_a_writer_that_fails_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose append it was at, and who was queued behind it."""
    begun, go_on = threading.Event(), threading.Event()

    class Broken(Store):
        def append(self, batches: Sequence[Sequence[Record]]) -> list[int | SpoolFull]:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with Spool(tmp_path, open_store=Broken) as spool:
        first = spool.append(records(1))
        assert begun.wait(PATIENCE_S)
        behind = spool.append(records(1))
        go_on.set()
        for ticket in (first, behind):
            with pytest.raises(SpoolError):
                ticket.result(5)
    Spool(tmp_path).close()


# -- the directory


@pytest.mark.parametrize("place", ["file", "file/below", "nowhere"])
def test_where_no_directory_can_be_the_operator_hears_which_and_why(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "nowhere").symlink_to("nowhere")
    with pytest.raises(SpoolError, match=r"can't be the directory of a spool: .*give another one"):
        Spool(tmp_path / place)


def test_a_lock_that_is_a_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(SpoolError, match=r"Is a directory .*lock"):
        Spool(tmp_path)


# -- numbers, positions, deletion


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    """Not even when everything was deleted before the restart."""
    for round_ in range(3):
        with closing(Store(tmp_path)) as store:
            assert store.state.next_seq == 5 * round_
            store.append([records(5)])
            store.release(5 * (round_ + 1))
            assert contents(tmp_path) == []


def test_only_what_lies_below_the_position_is_deleted(store: Store, tmp_path: Path) -> None:
    store.append([records(10)])
    store.append([records(10, first=10)])
    for position in range(21):
        store.release(position)
        assert {seq for seq, _ in contents(tmp_path)} >= set(range(position, 20))
        with closing(Reader(tmp_path)) as reader:
            assert [r.seq for r in reader.read(position, 100, 10**6)] == list(range(position, 20))
    assert contents(tmp_path) == []
    assert store.state.bytes == 0


def test_a_position_moves_up_only_and_not_beyond_what_is_there(store: Store) -> None:
    store.append([records(3)])
    store.release(2)
    store.release(1)
    assert store.state.position == 2
    with pytest.raises(ValueError, match="beyond"):
        store.release(4)


def test_the_bytes_that_are_counted_are_those_of_the_records(store: Store) -> None:
    for n in range(5):
        store.append([records(10, first=10 * n)])
    assert store.state.bytes == 50 * (HEADER_BYTES + len("t") + len("k") + 10)
    store.release(20)
    assert store.state.bytes == 30 * (HEADER_BYTES + 12)


def test_space_is_used_again_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with closing(Store(tmp_path)) as store:
        for n in range(40):
            store.append([records(1000, 500, first=1000 * n)])
        full = store._db.execute("PRAGMA page_count").fetchone()[0]
        store.release(20_000)
        for n in range(20):
            store.append([records(1000, 500, first=1000 * n)])
            store.tidy()
        again = store._db.execute("PRAGMA page_count").fetchone()[0]
        assert again < full * 1.05
        store.release(60_000)
        while store.tidy():
            pass
    assert path.stat().st_size < full * 4096 / 4


# -- ids


def test_an_id_that_was_taken_is_acknowledged_and_stored_once(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        assert store.append([records(3, ids=True), records(4, ids=True)]) == [3, 1]
        assert store.append([records(5, ids=True)]) == [1]
        store.release(5)
    with closing(Store(tmp_path)) as store:
        assert store.append([[*records(5, ids=True), *records(2)]]) == [2]
        assert [seq for seq, _ in contents(tmp_path)] == [5, 6]


def test_the_same_id_twice_in_one_append_is_stored_once(store: Store) -> None:
    assert store.append([[*records(1, ids=True), *records(1, ids=True)]]) == [1]


def test_records_without_an_id_are_all_stored(store: Store) -> None:
    assert store.append([records(2), records(2)]) == [2, 2]


# -- limits


def test_a_full_spool_refuses_whole_appends_and_recovers(tmp_path: Path) -> None:
    each = HEADER_BYTES + len("tkid-0") + 10
    with Spool(tmp_path, Limits(max_bytes=10 * each)) as spool:
        assert spool.append(records(8, ids=True)).result(PATIENCE_S) == 8
        refused = spool.append(records(3, first=8, ids=True))
        with pytest.raises(SpoolFull, match="limit"):
            refused.result(PATIENCE_S)
        assert spool.append(records(2, first=8, ids=True)).result(PATIENCE_S) == 2
        # What was taken before is acknowledged again, full or not.
        assert spool.append(records(2, ids=True)).result(PATIENCE_S) == 0
        spool.release(8)
        until(lambda: spool.state.position == 8, "the release")
        # None of the refused ids was kept.
        assert spool.append(records(3, first=8, ids=True)).result(PATIENCE_S) == 1


def test_one_that_does_not_fit_leaves_the_others_of_its_commit_alone(tmp_path: Path) -> None:
    with closing(Store(tmp_path, Limits(max_bytes=500))) as store:
        small, large, after = store.append(
            [records(1, ids=True), records(100), records(1, first=1, ids=True)]
        )
        assert (small, after) == (1, 1)
        assert isinstance(large, SpoolFull)
        assert [seq for seq, _ in contents(tmp_path)] == [0, 1]


def test_a_full_disk_is_an_answer_and_passes_by_itself(tmp_path: Path) -> None:
    """SQLITE_FULL, by a limit on the pages of the file."""
    with closing(Store(tmp_path)) as store:
        store.append([records(100, ids=True)])
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 20}")
        before = store.state
        with pytest.raises(SpoolFull, match="full"):
            store.append([records(1000, 1000, first=100, ids=True)])
        assert store.state == before
        assert len(contents(tmp_path)) == 100
        # Deleting works where nothing can be added, and makes room.
        store.release(100)
        store._db.execute(f"PRAGMA max_page_count = {pages + 2000}")
        assert store.append([records(1000, 1000, first=100, ids=True)]) == [1000]


def test_one_block_that_a_full_disk_refused_leaves_no_trace(tmp_path: Path) -> None:
    """Neither its number nor its ids: it comes again."""
    with closing(Store(tmp_path)) as store:
        store.append([records(1, ids=True)])
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        before = store.state
        with pytest.raises(SpoolFull):
            store.append([records(100, 1000, first=1, ids=True)])
        assert store.state == before
        store._db.execute(f"PRAGMA max_page_count = {pages + 2000}")
        assert store.append([records(100, 1000, first=1, ids=True)]) == [100]
        assert store.state.next_seq == 101


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    """EFBIG instead of ENOSPC; acknowledged is what is there, also after a restart."""
    code = (
        "import resource, sys\n"
        "from ingest.spool import Record, Spool, SpoolFull\n"
        "spool = Spool(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))\n"
        "good = full = 0\n"
        "for n in range(100):\n"
        "    try:\n"
        "        good += spool.append([Record('t', None, b'%0*d' % (20_000, n))]).result()\n"
        "    except SpoolFull:\n"
        "        full += 1\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "again = spool.append([Record('t', None, b'again')]).result()\n"
        "spool.close()\n"
        "print(good, full, again)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    good, full, again = map(int, done.stdout.split())
    assert good > 5
    assert full > 5
    assert again == 1
    with Spool(tmp_path):
        assert len(contents(tmp_path)) == good + 1


# -- who may open it


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Spool(tmp_path):
        assert user_of(tmp_path) is not None
        code = "import sys; from ingest.spool import Spool; Spool(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "SpoolInUse" in done.stderr
        with pytest.raises(SpoolInUse, match="in use by process"):
            Spool(tmp_path)
    assert user_of(tmp_path) is None
    Spool(tmp_path).close()


def test_a_spool_keeps_its_node(tmp_path: Path) -> None:
    with Spool(tmp_path, node="edge-1") as spool:
        assert spool.node == "edge-1"
    with Spool(tmp_path) as spool:
        assert spool.node == "edge-1"
    with pytest.raises(SpoolError, match="of node edge-1"):
        Spool(tmp_path, node="edge-2")
    with pytest.raises(SpoolError, match="no name"):
        Spool(tmp_path / "other", node="edge 2")
    # A refused opening holds nothing back.
    Spool(tmp_path).close()


def test_what_is_no_spool_is_said_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spool.db").write_bytes(b"this is no database, and of some length" * 100)
    with pytest.raises(SpoolDamaged, match="damaged"):
        Spool(tmp_path)
    assert (tmp_path / "spool.db").read_bytes().startswith(b"this is no database")


def test_a_spool_of_another_version_is_said_and_left_alone(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store._db.execute("PRAGMA user_version = 2")
    with pytest.raises(SpoolError, match="version 2; this program reads 3"):
        Spool(tmp_path)


def test_damage_is_found_before_it_is_sent(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.append([records(3)])
        store.append([records(3, first=3)])
        (data,) = store._db.execute("SELECT data FROM blocks WHERE first = 3").fetchone()
        store._db.execute("UPDATE blocks SET data = ? WHERE first = 3", (data[:-1] + b"x",))
        with closing(Reader(tmp_path)) as reader:
            assert [r.seq for r in reader.read(0, 100, 10**6)] == [0, 1, 2]
            with pytest.raises(SpoolDamaged, match="fsck"):
                reader.read(3, 100, 10**6)
            batch = reader.batch(0, 100, 10**6)
            assert batch is not None
            assert batch.end == 3
            with pytest.raises(SpoolDamaged, match="fsck"):
                reader.batch(3, 100, 10**6)
