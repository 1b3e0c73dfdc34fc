"""What the command line says to who has to do something: to install, to correct, to go on."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from consumers.batch import Span
from consumers.bounds import Bounds
from consumers.errors import Systemic
from consumers.lanes import Totals
from consumers.replay.job import Job
from headrace.cli import cli, receipts, replay_run, schema
from headrace.cli.errors import EXPECTED, expected, not_installed, said
from headrace.cli.forward import done
from headrace.cli.replay_raw import open_raw
from headrace.config import ConfigError, load
from headrace.stack import StackError
from ingest.collector.keyfile import read
from ingest.extras import missing
from ingest.streams import Stream


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("httpx", ["forward"], "vendors"),
        ("msgspec", ["collect"], "collect"),
        ("msgspec", ["trace"], "vendors"),
        ("clickhouse_connect.driver", ["insert"], "clickhouse"),
        ("sentry_sdk", [], "sentry"),
    ],
)
def test_a_package_of_an_extra_is_named_with_that_extra(
    module: str, command: list[str], extra: str
) -> None:
    said = not_installed(ModuleNotFoundError("", name=module), command)
    assert said == missing(module.partition(".")[0], extra)


@pytest.mark.parametrize("module", ["pytest", "headrace.nothing", None])
def test_what_no_user_can_install_is_a_bug(module: str | None) -> None:
    assert not_installed(ModuleNotFoundError("", name=module), ["forward"]) is None


@pytest.mark.parametrize("module", EXPECTED)
def test_an_error_that_is_named_for_an_operator_is_defined_where_it_is_looked_for(
    module: str,
) -> None:
    found = import_module(module)
    for name in EXPECTED[module]:
        error = getattr(found, name)
        assert (error.__module__, error.__name__) == (module, name)
        assert error in expected()


def test_what_the_stack_says_keeps_its_lines_and_what_others_say_has_one() -> None:
    assert said(StackError("a\nb")) == "a\nb"
    assert said(Systemic("a\nb")) == "a\\nb"


def test_help_loads_neither_kafka_nor_a_stack_nor_what_the_errors_of_all_commands_would() -> None:
    program = "import atexit, sys; from headrace.cli import main\n"
    program += "atexit.register(lambda: print(*sys.modules)); sys.argv[1:] = ['--help']; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "headrace.cli.errors" in loaded
    assert not loaded & {"confluent_kafka", "google", "psutil", "asyncio", *EXPECTED}


@pytest.mark.parametrize(
    ("command", "lacks", "extra"),
    [
        (["forward"], "httpx", "vendors"),
        (["forward"], "msgspec", "vendors"),
        (["trace", "check", "/dev/null"], "msgspec", "vendors"),
        (["collect", "--spool", "spool"], "granian", "collect"),
        (["vendors", "serve"], "granian", "collect"),
    ],
)
def test_a_command_without_its_extra_says_so_in_one_sentence(
    tmp_path: Path, command: list[str], lacks: str, extra: str
) -> None:
    program = f"import sys; sys.modules[{lacks!r}] = None; from headrace.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=tmp_path, env=os.environ | {"HEADRACE_KAFKA": "127.0.0.1:1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == f"headrace: {missing(lacks, extra)}\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    "command",
    ["dlq ls", "dlq redrive device_state", "receipts", "trace suggest", "replay --to heap"],
)
def test_a_range_that_ends_before_it_begins_is_not_found_empty(command: str) -> None:
    done = CliRunner().invoke(cli, [*command.split(), "--from", "now", "--until", "-1h"])
    assert done.exit_code == 2
    assert "--until is not behind --from" in done.output


def test_a_forwarder_says_what_became_dead_letters_and_where_they_are_listed() -> None:
    assert done(Totals(rows=1)) == "1 event is final"
    assert done(Totals(rows=2000, dead_letters=1)) == (
        "2,000 events are final, 1 dead letter: headrace dlq ls raw_events"
    )
    assert done(Totals(dead_letters=3)) == (
        "0 events are final, 3 dead letters: headrace dlq ls raw_events"
    )


def test_a_replay_that_a_person_has_to_mend_says_how_to_go_on_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise Systemic("heap refuses us. Check its key.")

    monkeypatch.setattr(replay_run, "_run_legs", stop)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    job = Mock(id="3f9c01d2", against=None)
    with pytest.raises(Systemic) as said:
        replay_run.run(Mock(), Mock(), Mock(), job, skip_lost=False)
    assert str(said.value) == (
        "heap refuses us. Check its key. To go on then: headrace replay resume 3f9c01d2"
    )


@pytest.mark.parametrize(
    ("ended_s", "said"), [(3, False), (600, True), (-600, True), (3601, False)]
)
def test_that_a_range_is_not_over_is_said_of_one_that_does_not_end_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended_s: int, said: bool
) -> None:
    now_us = 1_700_000_000_000_000
    job = Job("j", "heap", "raw_events", "t", 0, now_us - ended_s * 1_000_000, 3600.0, {}, now_us)
    there = Bounds({0: Span(0, 9)}, ())
    monkeypatch.setattr("consumers.replay.ranges.find", lambda *_: there)
    monkeypatch.setattr(replay_run, "within", lambda _config, _where, job: job)
    assert replay_run.found(Mock(), Mock(), job).spans == there.spans
    assert ("the range ended less than --lateness ago" in capsys.readouterr().err) == said


def test_a_table_of_raw_events_that_is_no_database_is_named_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADRACE_RAW", "nonsense")
    with pytest.raises(ConfigError, match=r"^raw of \[replay\], or HEADRACE_RAW: "):
        open_raw(load(None, kafka="k:1"), Mock())


@pytest.mark.parametrize("command", ["migrate --to chdb:x --kafka k:1", "schema sql device_state"])
def test_what_no_inserter_could_decode_gets_neither_topic_nor_table(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_stream: Stream) -> None:
        raise Systemic("inserters can't decode it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("consumers.decode.Decoder", refuse)
    monkeypatch.setattr(schema, "ensure", Mock(side_effect=AssertionError))
    done = CliRunner().invoke(cli, command.split())
    assert str(done.exception) == "inserters can't decode it"
    assert done.output == ""


# -- standard output that takes nothing ------------------------------------------------------------


def into_full(
    folder: Path, *command: str, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command whose output goes to a disk that is full."""
    env = {"HEADRACE_STATE": str(folder / "state"), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        return subprocess.run(
            [sys.executable, "-c", "from headrace.cli import main; main()", *command],
            cwd=folder, env=os.environ | env, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip


full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@full_disk
@pytest.mark.parametrize("command", ["--help", "schema sql device_state", "status"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_said_in_a_sentence(
    command: str, unbuffered: str, tmp_path: Path
) -> None:
    done = into_full(tmp_path, *command.split(), unbuffered=unbuffered)
    assert done.stderr == (
        "headrace: standard output can't be written: No space left on device; make room there, or "
        "send it elsewhere\n"
    )
    assert done.returncode == 1


@full_disk
def test_an_error_is_the_last_word_also_where_standard_output_takes_nothing(tmp_path: Path) -> None:
    done = into_full(tmp_path, "schema", "sql", "nothing")
    assert done.stderr.startswith("headrace: there is no stream 'nothing'")
    assert (done.stderr.count("\n"), done.returncode) == (1, 1)


def test_an_error_is_said_also_where_standard_output_is_closed(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "from headrace.cli import main; main()" schema sql nothing >&-',
         sys.executable],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr.startswith("headrace: there is no stream 'nothing'")
    assert done.returncode == 1


@full_disk
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_key_whose_secret_nobody_saw_is_named_so_that_it_can_be_revoked(
    unbuffered: str, tmp_path: Path
) -> None:
    done = into_full(tmp_path, "keys", "add", "web", "--keys", "a b.json", unbuffered=unbuffered)
    (key,) = read(tmp_path / "a b.json")
    assert done.stderr.splitlines()[1] == (
        f"headrace: the secret of {key.id} could not be printed (No space left on device), and "
        f"can't be shown again: `headrace keys revoke {key.id} --keys 'a b.json'`, then add another"
    )
    assert (done.stderr.count("\n"), done.returncode) == (2, 1)


@pytest.mark.parametrize("file", ["'x.db'", "None"])
def test_an_error_of_a_file_that_is_not_standard_output_keeps_its_traceback(
    file: str, tmp_path: Path
) -> None:
    program = (
        "import errno, sys, headrace.cli\n"
        f"def fail(**_): raise OSError(errno.ENOSPC, 'No space left', {file})\n"
        "headrace.cli.cli = fail\n"
        "headrace.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert "Traceback" in done.stderr
    assert "standard output" not in done.stderr


# -- what else is said -----------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["x", "127.0.0.1:99999", "127.0.0.1:"])
def test_stand_ins_say_what_is_wrong_with_an_address_that_is_none(listen: str) -> None:
    done = CliRunner().invoke(cli, ["vendors", "serve", "--listen", listen])
    assert str(done.exception).startswith(f"--listen {listen!r} must be HOST:PORT")
    done = CliRunner().invoke(cli, ["vendors", "serve", "--listen", "0.0.0.0:0"])
    assert "only an address of this machine will do" in done.output


def test_whoever_has_named_no_destination_hears_of_all_ways_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HEADRACE_POSTGRES", "HEADRACE_CHDB", "HEADRACE_STATE"):
        monkeypatch.delenv(name, raising=False)
    none = "there is no local stack, no HEADRACE_POSTGRES, no HEADRACE_CHDB, no vendor"
    ways = f"{none}: say --to URL"
    done = CliRunner().invoke(cli, ["lag", "--kafka", "127.0.0.1:1"])
    assert str(done.exception) == ways
    # A collector's host may know no database.
    done = CliRunner().invoke(cli, ["audit", "--kafka", "127.0.0.1:1"])
    assert str(done.exception) == f"{ways}, or --to kafka for what came through collectors alone"


def test_no_receipts_of_a_vendor_that_there_is_not_are_not_read_as_no_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vendor that was taken out of headrace.toml may have some still, so it is asked for them."""
    monkeypatch.chdir(tmp_path)
    Path("headrace.toml").write_text('[vendors.heap]\napp_id_env = "HEAP"\n')
    monkeypatch.setattr(receipts, "require_topics", lambda *_: None)
    monkeypatch.setattr("consumers.forward.look.receipts_between", lambda *_: [])
    for options, text in (
        ([], "no such receipts\n"),
        (["--vendor", "heap"], "no such receipts\n"),
        (["--vendor", "heep"],
         "no such receipts, and no [vendors.heep] in headrace.toml; there are: heap\n"),
    ):  # fmt: skip
        result = CliRunner().invoke(cli, ["receipts", "--kafka", "127.0.0.1:1", *options])
        assert (result.exit_code, result.stderr) == (0, text)
