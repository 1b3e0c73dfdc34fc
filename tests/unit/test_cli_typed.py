"""Commands that a command prints mean the installation that it was asked about."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from command_lines import complaint

from headrace.cli import cli
from headrace.cli.typed import as_given


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


def test_what_is_no_command_of_ours_or_says_it_already_is_left_alone() -> None:
    for command in ("psql x -c 'DELETE'", "in ch: DELETE", "", "headrace lag --kafka other:1"):
        assert printed(command, kafka="k:1") == command
