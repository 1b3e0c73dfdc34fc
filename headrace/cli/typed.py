"""Commands that are printed, to be typed: they mean the installation that was asked about."""

from __future__ import annotations

import shlex

import click

__all__ = ["as_given"]

# The options that say which installation is meant, by their names in click.
_WHICH = {"config_path": "--config", "kafka": "--kafka", "group": "--group"}


def as_given(command: str) -> str:
    """The command with --config, --kafka and --group as the running one was called, if it takes them.

    What is no command of ours, or has them already, is left alone.
    """  # noqa: E501
    typed, gap, remark = command.partition("    #")
    words = typed.split()
    context = click.get_current_context(silent=True)
    if context is None or words[:1] != ["headrace"]:
        return command
    takes = {parameter.name for parameter in _meant(words[1:], context).params}
    more = [
        f" {option} {shlex.quote(str(context.params[name]))}"
        for name, option in _WHICH.items()
        if name in takes and context.params.get(name) is not None and option not in words
    ]
    return typed + "".join(more) + gap + remark


def _meant(words: list[str], context: click.Context) -> click.Command:
    """The command that these words call, as far as they name one."""
    command = context.find_root().command
    for word in words:
        if not isinstance(command, click.Group):
            break
        called = command.get_command(context, word)
        if called is None:
            break
        command = called
    return command
