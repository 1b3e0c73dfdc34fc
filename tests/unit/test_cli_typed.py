"""Commands that a command prints mean the installation that it was asked about."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import pytest
from click.testing import CliRunner
from command_lines import complaint

from consumers.batch import Partition, Span
from consumers.behind import Waiting
from headrace.cli import cli, dlq, doctor, lag
from headrace.cli.typed import as_given
from headrace.doctor.check import ok
from headrace.readers import Reader, Standing
from ingest.streams import BUILT_IN

STATE = BUILT_IN["device_state"]
# As it may have been called.
CALLED = ["--config", "/etc/my events.toml", "--kafka", "k:1"]


def printed(command: str, **params: Any) -> str:
    """What `headrace audit`, called with these options, prints for that command."""
    root = click.Context(cli)
    audit = cli.get_command(root, "audit")
    assert audit is not None
    with click.Context(audit, parent=root) as context:
        context.params = {"config_path": None, "kafka": None, "group": None, **params}
        return as_given(command)


def test_without_options_a_command_is_printed_as_it_is() -> None:
    command = "headrace replay --to amplitude --only-missing --from -1h"
    assert printed(command) == command
    assert as_given(command) == command


def test_options_that_say_which_installation_are_repeated() -> None:
    said = printed("headrace lag --watch", config_path=Path("/etc/my events.toml"), group="g")
    assert shlex.split(said) == [
        "headrace", "lag", "--watch", "--config", "/etc/my events.toml", "--group", "g",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["headrace replay resume 0199", "headrace replay --to chdb --from -1h", "headrace dlq ls a",
     "headrace insert --to chdb", "headrace audit", "headrace doctor", "headrace migrate",
     "headrace forward --vendor ga4", "headrace trace suggest --from -1h", "headrace collect",
     "headrace spool fsck /x", "headrace status", "headrace up"],
)  # fmt: skip
def test_what_is_printed_is_a_command_that_the_program_takes(command: str) -> None:
    said = printed(command, config_path=Path("a.toml"), kafka="k:1", group="g")
    assert said.startswith(command)
    assert complaint(shlex.split(said)[1:]) is None


def test_a_remark_stays_behind_the_command() -> None:
    said = printed("headrace migrate    # once it is mended", kafka="k:1")
    assert said == "headrace migrate --kafka k:1    # once it is mended"


def test_a_quoted_text_that_looks_like_a_remark_is_none() -> None:
    command = "headrace dlq redrive a --reason 'x    # y' --all"
    assert printed(command, kafka="k:1") == f"{command} --kafka k:1"
    said = printed(f"{command}    # 'tis", kafka="k:1")
    assert said == f"{command} --kafka k:1    # 'tis"
    assert printed("headrace dlq ls 'a", kafka="k:1") == "headrace dlq ls 'a", "nobody's command"


def test_an_option_within_a_quoted_text_was_not_given() -> None:
    command = "headrace dlq redrive a --reason 'say --kafka other'"
    assert printed(command, kafka="k:1") == f"{command} --kafka k:1"


def test_what_is_no_command_of_ours_or_says_it_already_is_left_alone() -> None:
    for command in ("psql x -c 'DELETE'", "in ch: DELETE", "", "headrace lag --kafka other:1"):
        assert printed(command, kafka="k:1") == command


# -- who prints them -------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["client_version: text", "a    # --config b --kafka"])
def test_what_dlq_ls_prints_to_be_typed_is_for_the_same_kafka(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    one = dlq.Group("device_state", "rejected", reason, [], 1, 0, 2000, 2000, "0:1")
    monkeypatch.setattr(dlq, "load", lambda *_, **__: Mock())
    monkeypatch.setattr(dlq, "streams_of", lambda *_: [STATE])
    monkeypatch.setattr(dlq, "_groups", lambda *_: [one])
    done = CliRunner().invoke(cli, ["dlq", "ls", *CALLED])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()[-3:]
    typed = [shlex.split(line[line.index("headrace ") :], comments=True) for line in lines]
    what = ["device_state", "--at", "0:1"]
    assert typed == [
        ["headrace", "dlq", "show", *what, "--hex", *CALLED],
        ["headrace", "dlq", "redrive", *what, *CALLED],
        ["headrace", "dlq", "redrive", "device_state", *CALLED, "--reason", reason],
    ]
    assert lines[1].endswith("    # one first")
    assert all(complaint(words[1:]) is None for words in typed)


def test_of_many_reasons_dlq_ls_shows_the_most_frequent_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hundred thousand letters whose reasons name the record were as many lines, at night."""
    monkeypatch.setattr(dlq, "load", lambda *_, **__: Mock())
    monkeypatch.setattr(dlq, "streams_of", lambda *_: [STATE])

    def groups(*_: object) -> list[dlq.Group]:
        return [
            dlq.Group(name, "rejected", f"no device d{n}x", [], 70 - n, 0, 1, 1, f"0:{n}")
            for name, many in (("device_state", 60), ("http_test", 50)) for n in range(many)
        ]  # fmt: skip

    monkeypatch.setattr(dlq, "_groups", groups)
    said = CliRunner().invoke(cli, ["dlq", "ls"]).stdout.splitlines()
    assert len([line for line in said if "no device" in line and "rejected" in line]) == 100
    rest = "and 155 records of device_state for 10 other reasons; --json has all of them"
    assert said[101] == rest
    assert not any("of http_test" in line for line in said)
    whole = CliRunner().invoke(cli, ["dlq", "ls", "--json"]).stdout.splitlines()
    assert len(whole) == 110


def test_what_doctor_says_within_its_text_is_for_the_same_kafka(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = "headrace insert --to ch --stream NAME"
    text = f"not landed here; `{start}` would, and `psql x` would not"
    monkeypatch.setattr(doctor, "load", lambda *_, **__: Mock())
    monkeypatch.setattr(doctor, "places", lambda *_: {})
    monkeypatch.setattr("headrace.doctor.edge.configuration", lambda _: ok("ch", text))
    monkeypatch.setattr("headrace.doctor.run.checks", lambda *_: [])
    done = CliRunner().invoke(cli, ["doctor", *CALLED])
    assert done.exit_code == 0, done.output
    assert f"; `{start} {shlex.join(CALLED)}` would, and `psql x` would not\n" in done.stdout


def test_what_lag_prints_to_be_typed_is_for_the_same_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    start = "headrace insert --to postgres --stream device_state"
    reader = Reader("postgres", STATE, ("g",), start, lambda _: {})
    there = [Waiting(Partition(STATE.topic, 0), at, Span(0, 9), 1) for at in (3, None)]
    monkeypatch.setattr(lag, "load", lambda *_, **__: Mock(streams=BUILT_IN))
    monkeypatch.setattr(lag, "streams_of", lambda *_: [STATE])
    monkeypatch.setattr(lag, "places", lambda *_: {"postgres": "postgres://db/x"})
    more = shlex.join(CALLED)
    for part, said in ((there[0], f"{start} {more}\n"), (there[1], f"--to … {more}`\n")):
        monkeypatch.setattr(
            "headrace.readers.standings", Mock(return_value=[Standing(reader, [part])])
        )
        done = CliRunner().invoke(cli, ["lag", *CALLED])
        assert done.exit_code == 0, done.output
        assert said in done.stdout
