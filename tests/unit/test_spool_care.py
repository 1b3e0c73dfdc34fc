"""Looking after a spool: what ls says, what fsck finds and saves, what export writes."""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headrace.cli import cli
from ingest.spool import Limits, Record, Spool, SpoolDamaged, SpoolError, SpoolInUse
from ingest.spool import care as care_module
from ingest.spool.care import export, fsck, glance, look
from ingest.spool.frames import HEADER_BYTES
from ingest.spool.reader import Reader
from ingest.spool.store import Store


def fill(folder: Path, *, blocks: int = 6, each: int = 5, size: int = 20) -> None:
    folder.mkdir(exist_ok=True)
    with closing(Store(folder)) as store:
        for b in range(blocks):
            store.append(
                [[Record(f"t{b % 2}", b"k%d" % n, b"%0*d" % (size, b * each + n), f"{b}-{n}")
                  for n in range(each)]]
            )  # fmt: skip


def contents(folder: Path) -> list[tuple[int, int]]:
    with Spool(folder), closing(Reader(folder)) as reader:
        return [(r.seq, int(r.value)) for r in reader.read(0, 10**6, 10**9)]


def spoil(folder: Path, first: int, at: int) -> None:
    """One wrong byte in a block."""
    with closing(Store(folder)) as store:
        (data,) = store._db.execute("SELECT data FROM blocks WHERE first = ?", (first,)).fetchone()
        wrong = bytearray(data)
        wrong[at] ^= 0xFF
        store._db.execute("UPDATE blocks SET data = ? WHERE first = ?", (bytes(wrong), first))


def misjudge(folder: Path, first: int) -> None:
    """A sound block's own checksum is wrong."""
    with closing(Store(folder)) as store:
        store._db.execute("UPDATE blocks SET crc = crc + 1 WHERE first = ?", (first,))


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["spool", *map(str, args)])


# -- ls


def test_ls_says_what_waits_since_when_and_whose_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    with closing(Store(tmp_path)) as store:
        store.release(12)
        node = store.state.node
    found = look(tmp_path)
    assert found.records == 18
    assert {t: line.records for t, line in found.topics.items()} == {"t0": 8, "t1": 10}
    done = invoke("ls", tmp_path)
    assert done.exit_code == 0, done.output
    assert f"node        {node}, since 20" in done.output
    assert "position    12: all below is in Kafka; next is 30" in done.output
    assert "waiting     18 records, the oldest since 20" in done.output
    assert "  t1: 10 records, 220 bytes, 20" in done.output
    assert "not in use" in done.output


def test_ls_looks_into_a_spool_in_use_and_names_the_process(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append([Record("t", None, b"x")]).result()
        done = invoke("ls", tmp_path)
        assert spool.append([Record("t", None, b"y")]).result(10) == 1
    assert f"in use by process {os.getpid()}" in done.output
    assert "waiting     1 record, the oldest since 20" in done.output
    assert "  t: 1 record, 1 byte, 20" in done.output


def test_who_starts_while_an_idle_spool_is_looked_into_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one is looked into for minutes, and a collector waits for seconds."""
    fill(tmp_path)
    walk = care_module._look

    def start(folder: Path, user: int | None, reader: Reader) -> care_module.Overview:
        with Spool(folder) as spool:
            spool.append([Record("t", None, b"x")]).result(10)
            return walk(folder, user, reader)

    with monkeypatch.context() as patch:
        patch.setattr(care_module, "_look", start)
        assert look(tmp_path).records == 31
    for _ in range(2):
        assert look(tmp_path).records == 31
        assert glance(tmp_path).waiting == 31
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "spool.db"}


def test_ls_shows_what_a_killed_process_left(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from ingest.spool import Record, Spool\n"
        "spool = Spool(sys.argv[1])\n"
        "spool.append([Record('t', None, b'x')] * 7).result()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert look(tmp_path).records == 7


def test_an_empty_spool_and_none_at_all_are_two_things(tmp_path: Path) -> None:
    Spool(tmp_path / "empty").close()
    assert "waiting     0 records\n" in invoke("ls", tmp_path / "empty").output
    for command in ("ls", "fsck"):
        done = invoke(command, tmp_path / "none")
        assert isinstance(done.exception, SpoolError)
        assert "there is no spool in" in str(done.exception)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["ls", "fsck"])
def test_a_spool_of_another_user_is_not_taken_for_none(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it a traceback. Tests may run as root, who may look into all."""
    Spool(tmp_path / "0").close()
    real = Path.stat

    def may_stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.parent == tmp_path / "0":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", may_stat)
    done = invoke(command, tmp_path / "0")
    assert isinstance(done.exception, SpoolError)
    assert str(done.exception) == (
        f"{tmp_path / '0'} can't be looked into: Permission denied. Run this as the user whose "
        "spool it is, which is the collector's, or as root"
    )


@pytest.mark.parametrize("command", [["ls"], ["fsck"], ["export", "--to", "-"]])
def test_a_file_of_no_bytes_is_no_new_spool_and_stays_as_it_is(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "spool.db").touch()
    done = invoke(command[0], tmp_path, *command[1:])
    assert isinstance(done.exception, SpoolError)
    assert "is empty: nothing was stored, or the copy is not whole" in str(done.exception)
    assert (tmp_path / "spool.db").stat().st_size == 0


def test_a_file_of_no_bytes_is_taken_by_who_stores_and_not_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash right behind its creation leaves one."""
    (tmp_path / "spool.db").touch()
    fill(tmp_path)
    (said,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert f"{tmp_path / 'spool.db'} was there and empty" in said.getMessage()
    caplog.clear()
    fill(tmp_path)
    Spool(tmp_path / "new").close()
    assert not caplog.records


# -- fsck


def test_a_sound_spool_is_sound_and_stays_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    for mend in (False, True):
        found = fsck(tmp_path, mend=mend)
        assert found.sound
        assert found.records == 30
    assert len(contents(tmp_path)) == 30
    assert not list(tmp_path.glob("damaged*"))


def test_one_damaged_record_is_found_named_set_aside_and_nothing_else_lost(tmp_path: Path) -> None:
    fill(tmp_path)
    size = HEADER_BYTES + len("t0k0") + 20 + len("2-0")
    spoil(tmp_path, 10, 2 * size + 40)
    done = invoke("fsck", tmp_path)
    assert done.exit_code == 1
    assert done.output.splitlines() == ["29 records are sound", "damaged: record 12"]
    assert not list(tmp_path.glob("damaged*"))
    done = invoke("fsck", tmp_path, "--repair")
    assert done.exit_code == 0, done.output
    (kept,) = tmp_path.glob("damaged-*.ndjson")
    assert f"set aside: {kept}" in done.output
    line = json.loads(kept.read_text())
    assert (line["first"], line["last"]) == (12, 12)
    assert len(base64.b64decode(line["data"])) == size
    assert contents(tmp_path) == [(n, n) for n in range(30) if n != 12]
    assert invoke("fsck", tmp_path).exit_code == 0
    # Numbers and bytes go on as if nothing had been.
    with closing(Store(tmp_path)) as store:
        assert store.state.next_seq == 30
        assert store.state.bytes == 29 * size
        assert store.append([[Record("t", None, b"1", "0-0")]]) == [0]
        store.release(30)
        assert store.state.bytes == 0


def test_a_block_whose_own_checksum_is_wrong_is_found_and_costs_no_record(tmp_path: Path) -> None:
    fill(tmp_path)
    misjudge(tmp_path, 10)
    with Spool(tmp_path) as spool, closing(spool.reader()) as reader:
        batch = reader.batch(0, 10**6, 10**9)
        assert batch is not None
        assert (batch.first, batch.end) == (0, 10)
        with pytest.raises(SpoolDamaged, match="fsck"):
            reader.batch(10, 10**6, 10**9)
    done = invoke("fsck", tmp_path)
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "30 records are sound", "damaged: no record, but what belongs to those around 10",
    ]  # fmt: skip
    assert invoke("fsck", tmp_path, "--repair").exit_code == 0
    assert contents(tmp_path) == [(n, n) for n in range(30)]
    assert invoke("fsck", tmp_path).exit_code == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_file_with_spoiled_pages_is_written_anew_with_all_that_can_be_read(
    tmp_path: Path, seed: int
) -> None:
    """Whole pages are overwritten; the first one, without which it is no database, is left."""
    fill(tmp_path, blocks=120, each=10, size=60)
    path = tmp_path / "spool.db"
    chance = random.Random(seed)
    with closing(Store(tmp_path)) as store:
        node, before = store.state.node, store.state
        roots = {
            row[0] for row in store._db.execute("SELECT rootpage FROM sqlite_master").fetchall()
        }
    raw = bytearray(path.read_bytes())
    spoiled = chance.sample([p for p in range(3, len(raw) // 4096 + 1) if p not in roots], 2)
    for page in spoiled:
        raw[(page - 1) * 4096 : page * 4096] = chance.randbytes(4096)
    path.write_bytes(raw)
    found = fsck(tmp_path, mend=False)
    assert not found.sound
    found = fsck(tmp_path, mend=True)
    assert fsck(tmp_path, mend=False).sound
    kept = contents(tmp_path)
    assert kept == [(n, n) for n, _ in kept]
    missing = set(range(1200)) - {n for n, _ in kept}
    named = {n for d in found.damaged for n in range(d.first, d.last + 1)}
    assert missing == named
    # Two pages of 4 KiB hold no more than this many blocks of 10 records of 1,000 bytes.
    assert len(missing) <= 2 * 5 * 10
    with closing(Store(tmp_path)) as store:
        assert store.state.node == node
        assert (store.state.next_seq, store.state.position) == (before.next_seq, before.position)
    assert any(p.suffix == ".db" for p in found.set_aside)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_file_that_is_written_anew_keeps_its_ids_and_its_position(
    tmp_path: Path, sealed: bool
) -> None:
    """What is sent to it a second time is no news, and what is in Kafka is not sent again."""
    limits = Limits(window_ids=800) if sealed else Limits()
    ids = [Record("t", b"k", b"%0100d" % n, f"id-{n}") for n in range(600)]
    with closing(Store(tmp_path, limits)) as store:
        for n in range(0, 600, 20):
            store.append([ids[n : n + 20]])
        while sealed and store.tidy():
            pass
        assert bool(store._db.execute("SELECT count(*) FROM sealed").fetchone()[0]) == sealed
        store.release(40)
        before = store.state
        blocks = store._db.execute("SELECT data FROM blocks ORDER BY first").fetchall()
    path = tmp_path / "spool.db"
    raw = bytearray(path.read_bytes())
    page = raw.find(blocks[10][0][:60]) // 4096
    raw[page * 4096 : (page + 1) * 4096] = random.Random(1).randbytes(4096)
    path.write_bytes(raw)
    assert any(p.suffix == ".db" for p in fsck(tmp_path, mend=True).set_aside)
    with closing(Store(tmp_path, limits)) as store:
        assert (store.state.next_seq, store.state.position) == (before.next_seq, before.position)
        assert store.append([ids]) == [0]


def head_of_text(raw: bytearray) -> None:
    raw[:100] = b"no database".ljust(100)


def head_of_zeros(raw: bytearray) -> None:
    raw[:4096] = bytes(4096)


def head_of_noise(raw: bytearray) -> None:
    raw[100:4096] = random.Random(1).randbytes(3996)


def no_tail(raw: bytearray) -> None:
    del raw[len(raw) // 2 + 17 :]


@pytest.mark.parametrize("spoil", [head_of_text, head_of_zeros, head_of_noise, no_tail])
@pytest.mark.parametrize("killed", [False, True])
def test_a_file_that_sqlite_can_not_open_is_given_a_head_and_mended(
    tmp_path: Path, spoil: Callable[[bytearray], None], *, killed: bool
) -> None:
    """Also where what came last is in the WAL, as a killed process leaves it."""
    (tmp_path / "was").mkdir()
    fill(tmp_path / "was", blocks=60, each=10, size=60)
    with closing(Store(tmp_path / "was")) as store:
        node = store.state.node
        if killed:
            store.append([[Record("t", None, b"%d" % n) for n in range(600, 610)]])
        shutil.copytree(tmp_path / "was", tmp_path / "is")
    folder = tmp_path / "is"
    raw = bytearray((folder / "spool.db").read_bytes())
    spoil(raw)
    (folder / "spool.db").write_bytes(raw)
    done = invoke("fsck", folder)
    assert done.exit_code == 1, done.output
    if not (killed and spoil is no_tail):  # the WAL has another first page, and a later end
        assert "can't be opened" in done.output
        assert "--repair" in done.output
    assert not list(folder.glob("damaged*"))
    done = invoke("fsck", folder, "--repair")
    assert done.exit_code == 0, done.output
    assert invoke("fsck", folder).exit_code == 0
    (kept,) = folder.glob("damaged-*.db")
    # SQLite has written the WAL into it, whatever it is.
    assert killed or kept.read_bytes() == raw
    found = contents(folder)
    assert found == [(n, n) for n, _ in found]
    last = 610 if killed else 600
    if spoil is no_tail:
        assert len(found) > 200
        assert "damaged: records " in done.output
    else:
        assert len(found) == last
    with closing(Store(folder)) as store:
        assert (store.state.node, store.state.next_seq) == (node, last)


@pytest.mark.parametrize("command", ["ls", "export", "open"])
def test_an_empty_file_beside_records_in_the_wal_is_left_to_fsck(
    tmp_path: Path, command: str
) -> None:
    """SQLite would delete that WAL."""
    (tmp_path / "was").mkdir()
    with closing(Store(tmp_path / "was")) as store:
        store.append([[Record("t", None, b"%d" % n) for n in range(5)]])
        shutil.copytree(tmp_path / "was", tmp_path / "is")
    folder = tmp_path / "is"
    (folder / "spool.db").write_bytes(b"")
    with pytest.raises(SpoolDamaged, match=r"is empty, .*-wal beside it; `headrace spool fsck"):
        if command == "open":
            Store(folder)
        else:
            raise invoke(command, folder, *(["--to", "-"] * (command == "export"))).exception
    assert invoke("fsck", folder).exit_code == 1
    done = invoke("fsck", folder, "--repair")
    assert done.exit_code == 0, done.output
    assert contents(folder) == [(n, n) for n in range(5)]


def test_what_fsck_can_not_mend_it_does_not_send_to_fsck(tmp_path: Path) -> None:
    fill(tmp_path)
    raw = bytes(random.Random(2).randbytes((tmp_path / "spool.db").stat().st_size))
    (tmp_path / "spool.db").write_bytes(raw)
    done = invoke("fsck", tmp_path, "--repair")
    assert isinstance(done.exception, SpoolDamaged)
    assert "nothing changed" in str(done.exception)
    assert "spool fsck" not in str(done.exception)
    assert [path.name for path in tmp_path.iterdir() if path.name != "lock"] == ["spool.db"]
    assert (tmp_path / "spool.db").read_bytes() == raw


def test_a_spoiled_state_is_said_and_not_guessed(tmp_path: Path) -> None:
    fill(tmp_path)
    with closing(Store(tmp_path)) as store:
        store._db.execute("UPDATE state SET node = '../etc'")
    with pytest.raises(SpoolDamaged, match="state"):
        fsck(tmp_path, mend=True)


# -- export


def test_ndjson_has_every_field_of_every_record_that_waits(tmp_path: Path) -> None:
    fill(tmp_path, blocks=2)
    with closing(Store(tmp_path)) as store:
        store.append([[Record("t", None, b"\xff\x00")]])
        store.release(3)
    target = tmp_path / "out.ndjson"
    done = invoke("export", tmp_path, "--to", target)
    assert done.exit_code == 0, done.output
    assert done.output == "wrote 8 records\n"
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(3, 11))
    assert base64.b64decode(lines[0]["key"]) == b"k3"
    assert (lines[0]["topic"], lines[0]["id"]) == ("t0", "0-3")
    assert (lines[-1]["key"], lines[-1]["id"]) == (None, None)
    assert base64.b64decode(lines[-1]["value"]) == b"\xff\x00"
    assert lines[-1]["received_at"].endswith("Z")


def test_protobuf_is_values_behind_their_lengths_of_one_topic(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.append([[Record("a", None, b"x" * n) for n in (0, 1, 127, 128, 300)]])
    out = io.BytesIO()
    assert export(tmp_path, out, form="protobuf") == (5, 0)
    assert out.getvalue() == (
        b"\x00" b"\x01x" b"\x7f" + b"x" * 127 + b"\x80\x01" + b"x" * 128 + b"\xac\x02" + b"x" * 300
    )  # fmt: skip
    with closing(Store(tmp_path)) as store:
        store.append([[Record("b", None, b"y")]])
    with pytest.raises(SpoolError, match="--topic"):
        export(tmp_path, out, form="protobuf")
    out = io.BytesIO()
    assert export(tmp_path, out, form="protobuf", topic="b") == (1, 0)
    assert out.getvalue() == b"\x01y"


def test_export_leaves_damaged_records_out_and_says_so(tmp_path: Path) -> None:
    fill(tmp_path, blocks=2)
    spoil(tmp_path, 0, 40)
    done = invoke("export", tmp_path, "--to", "-")
    assert done.exit_code == 1
    assert "1 record is damaged and was left out" in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("{")]) == 9


def test_an_export_is_on_disk_before_anybody_deletes_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "spool")
    synced: dict[int, int] = {}
    fsync = os.fsync

    def seen(file: int) -> None:
        fsync(file)
        found = os.fstat(file)
        synced[found.st_ino] = found.st_size

    monkeypatch.setattr(os, "fsync", seen)
    target = tmp_path / "out"
    assert invoke("export", tmp_path / "spool", "--to", target).exit_code == 0
    assert synced[target.stat().st_ino] == target.stat().st_size > 0
    assert tmp_path.stat().st_ino in synced


def test_an_export_goes_where_directories_can_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a share of SMB: fsync of a directory is EINVAL there."""
    fill(tmp_path / "spool")
    fsync = os.fsync

    def of_files(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(file)

    monkeypatch.setattr(os, "fsync", of_files)
    target = tmp_path / "out"
    done = invoke("export", tmp_path / "spool", "--to", target)
    assert (done.exit_code, done.output) == (0, "wrote 30 records\n")
    assert target.stat().st_size > 0


def test_an_export_that_fails_leaves_no_file_that_would_stop_the_next(tmp_path: Path) -> None:
    fill(tmp_path)
    target = tmp_path / "out"
    done = invoke("export", tmp_path, "--to", target, "--format", "protobuf")
    assert "--topic" in str(done.exception)
    assert not target.exists()
    with Spool(tmp_path):
        assert isinstance(invoke("export", tmp_path, "--to", target).exception, SpoolInUse)
    assert invoke("export", tmp_path, "--to", target).exit_code == 0


def test_export_overwrites_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "there").write_text("mine")
    done = invoke("export", tmp_path, "--to", tmp_path / "there")
    assert "exists" in str(done.exception)
    assert (tmp_path / "there").read_text() == "mine"


def test_what_is_written_out_or_set_aside_is_for_this_user_only(tmp_path: Path) -> None:
    """Also the file that was damaged, as a version before this one left it."""
    fill(tmp_path, blocks=120, each=10, size=60)
    spoil(tmp_path, 10, HEADER_BYTES + 3)
    raw = bytearray((tmp_path / "spool.db").read_bytes())
    raw[:4096] = random.Random(1).randbytes(4096)
    (tmp_path / "spool.db").write_bytes(raw)
    (tmp_path / "spool.db").chmod(0o644)
    assert invoke("fsck", tmp_path, "--repair").exit_code == 0
    aside = [path for path in tmp_path.iterdir() if path.name.startswith("damaged-")]
    assert {path.suffix for path in aside} == {".db", ".ndjson"}
    assert invoke("export", tmp_path, "--to", tmp_path / "out").exit_code == 0
    for path in (*aside, tmp_path / "out", tmp_path / "spool.db"):
        assert path.stat().st_mode & 0o777 == 0o600, path


@pytest.mark.parametrize("command", [["fsck"], ["fsck", "--repair"], ["export", "--to", "-"]])
def test_a_spool_in_use_is_left_alone(tmp_path: Path, command: list[str]) -> None:
    with Spool(tmp_path, Limits()):
        done = invoke(command[0], tmp_path, *command[1:])
        assert isinstance(done.exception, SpoolInUse)
        assert f"in use by process {os.getpid()}" in str(done.exception)


@pytest.mark.parametrize("command", [["fsck"], ["export", "--to", "-"], ["drain"]])
def test_a_collectors_directory_says_where_its_spools_are(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what `headrace collect --spool` was given."""
    monkeypatch.setenv("HEADRACE_KAFKA", "127.0.0.1:1")
    for worker in ("0", "1", "10"):
        (tmp_path / worker).mkdir()
        fill(tmp_path / worker, blocks=1)
    done = invoke(command[0], tmp_path, *command[1:])
    folders = ", ".join(str(tmp_path / worker) for worker in ("0", "1", "10"))
    assert str(done.exception) == (
        f"{tmp_path} is a collector's: its spools are {folders}; name one"
    )
    with pytest.raises(SpoolError, match="there is no spool in"):
        look(tmp_path / "2")


def test_all_spools_of_a_collector_are_shown(tmp_path: Path) -> None:
    """Also beside one that can't be read."""
    for worker in ("0", "1", "2"):
        (tmp_path / worker).mkdir()
        fill(tmp_path / worker, blocks=1)
    done = invoke("ls", tmp_path)
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if line.startswith("/")] == [
        str(tmp_path / worker) for worker in ("0", "1", "2")
    ]
    (tmp_path / "1" / "spool.db").write_bytes(b"rubbish" * 1000)
    done = invoke("ls", tmp_path)
    assert done.exit_code == 1
    assert done.output.count("waiting ") == 2
    assert f"headrace: {tmp_path / '1' / 'spool.db'}" in done.output
