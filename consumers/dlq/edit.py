"""What `--through` names: from a letter's value to the one that is sent back.

    python module:function   called here with the bytes: the new bytes, or None to leave the letter
    COMMAND                  run by the shell for each letter: the bytes on standard input, the new
                             ones on standard output; another exit code than 0 leaves the letter

Whatever goes wrong leaves its letter, never the others.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from consumers.errors import Systemic

__all__ = ["Edit", "Left", "edit_of"]

# How long a command may take for one letter, in seconds.
_PATIENCE_S = 60.0

# Raises Left.
Edit = Callable[[bytes], bytes]


class Left(Exception):
    """The letter stays where it is; the text says why. `meant`: the function said so itself."""

    def __init__(self, text: str, *, meant: bool = False) -> None:
        super().__init__(text)
        self.meant = meant


def edit_of(through: str) -> Edit:
    """What it says, ready to be called. Raises Systemic where there is no such function."""
    named = re.fullmatch(r"python\s+([\w.]+:\w+)", through.strip())
    if named is not None:
        return _function(named[1])
    return _command(through)


def _function(named: str) -> Edit:
    module, _, name = named.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is loaded
        raise Systemic(
            f"--through 'python {named}' can't be loaded: {type(error).__name__}: {error}; give a "
            "module of this directory or of PYTHONPATH, and a function in it"
        ) from error

    def edit(value: bytes) -> bytes:
        try:
            found = function(value)
        except Exception as error:
            raise Left(f"{named} raised {type(error).__name__}: {error}") from error
        if found is None:
            raise Left(f"{named} returned None", meant=True)
        if not isinstance(found, bytes):
            raise Left(f"{named} returned {type(found).__name__}, not bytes")
        return found

    return edit


def _command(command: str) -> Edit:
    def edit(value: bytes) -> bytes:
        try:
            # A pipeline is what people write here; it is the operator's own command line.
            done = subprocess.run(  # noqa: S602
                command, shell=True, input=value, capture_output=True, timeout=_PATIENCE_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Left(f"the command took longer than {_PATIENCE_S:g} s") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise Left(f"the command ended with {done.returncode}" + (f": {said}" if said else ""))
        return done.stdout

    return edit
