"""Commands that are printed, to be typed: they mean the installation that was asked about."""

from __future__ import annotations

import re
import shlex

import click

__all__ = ["as_given", "within_as_given"]

_QUOTED = re.compile(r"`(headrace [^`]+)`")
_REMARK = "    #"
# The options that say which installation is meant, by their names in click.
_WHICH = {"config_path": "--config", "kafka": "--kafka", "group": "--group"}


def as_given(command: str) -> str:
    """The command with --config, --kafka and --group as the running one was called, if it takes them.

    What is no command of ours, or has them already, is left alone.
    """  # noqa: E501
    context = click.get_current_context(silent=True)
    if context is None or not command.startswith("headrace "):
        return command
    typed, remark = _without_remark(command)
    try:
        words = shlex.split(typed)
    except ValueError:
        return command
    takes = {parameter.name for parameter in _meant(words[1:], context).params}
    more = [
        f" {option} {shlex.quote(str(context.params[name]))}"
        for name, option in _WHICH.items()
        if name in takes and context.params.get(name) is not None and option not in words
    ]
    return typed + "".join(more) + remark


def within_as_given(text: str) -> str:
    """Text of which each command between backticks is as_given."""
    return _QUOTED.sub(lambda found: f"`{as_given(found[1])}`", text)


def _without_remark(command: str) -> tuple[str, str]:
    """The command, and the remark behind it with the gap; within quotes it is none."""
    at = -1
    while (at := command.find(_REMARK, at + 1)) >= 0:
        try:
            shlex.split(command[:at])
        except ValueError:
            continue  # within quotes
        return command[:at], command[at:]
    return command, ""


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
