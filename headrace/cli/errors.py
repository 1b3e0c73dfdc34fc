"""The errors that are written for an operator: one sentence, no traceback, exit code 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import requires

from consumers.errors import Systemic, Unavailable
from consumers.trace.allowlist import TraceError
from consumers.vendors import VendorError
from headrace.config import ConfigError
from headrace.words import printable, printable_lines
from ingest.collector.key import KeyFileError
from ingest.collector.settings import CollectError
from ingest.extras import missing
from ingest.publisher import PublishError, SettingError
from ingest.topics import TopicError

__all__ = ["EXPECTED", "not_installed", "said"]

# As the metadata of a package has it: httpx[http2]>=0.28; extra == "vendors"
_OF_AN_EXTRA = re.compile(r"([\w.-]+).*; extra == [\"'](\w+)[\"']")


def not_installed(error: ModuleNotFoundError, command: Sequence[str]) -> str | None:
    """What to install for a module that an extra brings; None for any other.

    Of two extras with the same package the one that is named as the command is, else the last.
    """
    module = (error.name or "").partition(".")[0]
    package = module.replace("_", "-")
    asked = (_OF_AN_EXTRA.match(requirement) for requirement in requires("headrace") or ())
    extras = [found[2] for found in asked if found and found[1] == package and found[2] != "dev"]
    if not extras:
        return None
    extra = next((extra for extra in extras if extra in command), extras[-1])
    return missing(module, extra)


def _stack_error() -> tuple[type[Exception], ...]:
    try:
        from headrace.stack import StackError
    except ImportError:  # without the extra local
        return ()
    return (StackError,)


def said(error: Exception) -> str:
    """What it says, as a terminal may be given it; the stack's errors have lines of their own."""
    return (printable_lines if isinstance(error, _stack_error()) else printable)(str(error))


EXPECTED: tuple[type[Exception], ...] = (
    CollectError,
    ConfigError,
    KeyFileError,
    PublishError,
    SettingError,
    Systemic,
    TopicError,
    TraceError,
    Unavailable,
    VendorError,
    *_stack_error(),
)
