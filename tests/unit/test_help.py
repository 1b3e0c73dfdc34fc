"""Every command's help reads like a manual page: what it does, each option, and an example."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from command_lines import complaint, in_shell

from headrace.cli import cli


def commands(
    group: click.Group = cli, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its names from the top."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))


ALL = [((), cli), *commands()]
each = pytest.mark.parametrize(("names", "command"), ALL, ids=[" ".join(n) or "headrace"
                                                               for n, _ in ALL])  # fmt: skip


def page(*names: str) -> str:
    done = CliRunner().invoke(cli, [*names, "--help"], terminal_width=100)
    assert done.exit_code == 0
    return done.output


def examples(text: str) -> list[list[str]]:
    """The commands of a page's examples, each whole as in a shell."""
    return list(in_shell("\n".join(line for line in text.splitlines() if " headrace " in line)))


@each
def test_a_page_has_a_sentence_and_an_example_that_the_command_takes(
    names: tuple[str, ...], command: click.Command
) -> None:
    text = page(*names)
    assert text.startswith(f"Usage: cli {' '.join(names)}".rstrip())
    first = (command.help or "").strip().split("\n\n")[0]
    assert re.match(r"[A-Z].*[.:]$", first.replace("\n", " ")), first
    assert re.search(r"Examples?:|first run", text)
    found = examples(text)
    assert any(args[: len(names)] == list(names) for args in found)
    assert [(args, said) for args in found if (said := complaint(args))] == []


@each
def test_every_option_says_what_it_is_for(names: tuple[str, ...], command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(names)} {parameter.opts[0]}"


@each
def test_a_page_fits_a_terminal(names: tuple[str, ...], command: click.Command) -> None:
    done = CliRunner().invoke(cli, [*names, "--help"], terminal_width=80)
    assert max(map(len, done.output.splitlines())) <= 100  # examples may be wider than prose


def test_the_overview_names_every_command_and_a_whole_first_run() -> None:
    text = page()
    for names, _ in commands():
        assert re.search(rf"^  {names[0]} ", text, re.MULTILINE)
    assert [args[0] for args in examples(text)][:2] == ["up", "migrate"]


def test_help_needs_no_kafka_no_arrow_and_no_database() -> None:
    """It is what people type first, and again and again."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c",
         "from headrace.cli import cli; cli(['--help'])"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"confluent_kafka", "google.protobuf", "pyarrow", "psycopg", "chdb"}


def test_an_unknown_command_is_refused_with_exit_code_two() -> None:
    done = CliRunner().invoke(cli, ["instert"])
    assert done.exit_code == 2
    assert "No such command 'instert'" in done.output
