"""Command lines as they stand in documents: found, and parsed by click without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click

from headrace.cli import cli

__all__ = ["complaint", "in_markdown", "in_shell"]

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMPOSE_RUN = ["docker", "compose", "run", "--rm", "migrate"]


def complaint(args: Sequence[str]) -> str | None:
    """What click has against `headrace ARGS`; None when it takes them.

    A file that is not there is no mistake of a document.
    """
    rest = list(args)
    command: click.Command = cli
    context: click.Context | None = None
    try:
        # Our groups have no options but --help and --version: a name comes first.
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            context = command.make_context(command.name, rest[:1], parent=context)
            found = command.get_command(context, rest[0])
            if found is None:
                return f"there is no command {rest[0]!r}"
            command, rest = found, rest[1:]
        command.make_context(command.name, rest, parent=context)
        return None
    except click.exceptions.Exit:  # --help, --version
        return None
    except click.exceptions.NoArgsIsHelpError:
        return "no command"
    except click.BadParameter as error:
        return None if "does not exist" in error.message else error.format_message()
    except click.UsageError as error:
        return error.format_message()


def in_markdown(text: str) -> Iterator[list[str]]:
    """The arguments of every headrace command in a document's shell blocks."""
    for language, body in _FENCE.findall(text):
        if language in ("", "sh", "bash", "console", "shell"):
            yield from in_shell(body)


def in_shell(text: str) -> Iterator[list[str]]:
    """The arguments of every headrace command in lines of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        bare = line.strip().removeprefix("$ ")
        if "headrace" not in bare and "compose run" not in bare:
            continue
        # What $(…) holds is a command of its own; outside, it is one word.
        for inner in re.findall(r"\$\(([^()]*)\)", bare):
            yield from in_shell(inner)
        bare = re.sub(r"\$\([^()]*\)", "WORD", bare)
        words: list[str] = []
        for token in [*_tokens(bare), ";"]:
            if token and set(token) <= set(";|&()<>"):
                yield from _arguments(words)
                words = []
            else:
                words.append(token)


def _tokens(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError:  # prose, an open quote
        return []


def _arguments(words: Sequence[str]) -> Iterator[list[str]]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if list(words[:5]) == _COMPOSE_RUN:
        yield list(words[5:])
    elif words and words[0].rpartition("/")[2] == "headrace":
        yield list(words[1:])
