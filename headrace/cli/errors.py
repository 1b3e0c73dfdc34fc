"""The errors that are written for an operator: one sentence, no traceback, exit code 1.

They are named, not imported: what nobody has loaded raises nothing, and a command would load all of
them (a database's, a vendor's, the stack's) before it began.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

from headrace.words import printable, printable_lines
from ingest.extras import missing

__all__ = ["EXPECTED", "expected", "not_installed", "said"]

# The module that defines it, and its name.
EXPECTED: Mapping[str, Sequence[str]] = {
    "consumers.errors": ("Systemic", "Unavailable"),
    "consumers.trace.allowlist": ("TraceError",),
    "consumers.vendors.settings": ("VendorError",),
    "headrace.config": ("ConfigError",),
    "headrace.stack.model": ("StackError",),
    "ingest.collector.key": ("KeyFileError",),
    "ingest.collector.settings": ("CollectError",),
    "ingest.delivery": ("PublishError",),
    "ingest.settings": ("SettingError",),
    "ingest.topics": ("TopicError",),
}
_STACK = "headrace.stack.model"

# As the metadata of a package has it: httpx[http2]>=0.28; extra == "vendors"
_OF_AN_EXTRA = re.compile(r"([\w.-]+).*; extra == [\"'](\w+)[\"']")


def not_installed(error: ModuleNotFoundError, command: Sequence[str]) -> str | None:
    """What to install for a module that an extra brings; None for any other.

    Of two extras with the same package the one that is named as the command is, else the last.
    """
    from importlib.metadata import requires  # takes 40 ms, of a start's 150

    module = (error.name or "").partition(".")[0]
    package = module.replace("_", "-")
    asked = (_OF_AN_EXTRA.match(requirement) for requirement in requires("headrace") or ())
    extras = [found[2] for found in asked if found and found[1] == package and found[2] != "dev"]
    if not extras:
        return None
    extra = next((extra for extra in extras if extra in command), extras[-1])
    return missing(module, extra)


def expected() -> tuple[type[Exception], ...]:
    """Those that something in this process can have raised."""
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in EXPECTED.items()
        if module in sys.modules
        for name in names
        # One that is still being imported may not have come as far.
        if hasattr(sys.modules[module], name)
    )


def said(error: Exception) -> str:
    """What it says, as a terminal may be given it; the stack's errors have lines of their own."""
    of_the_stack = type(error).__module__ == _STACK
    return (printable_lines if of_the_stack else printable)(str(error))
