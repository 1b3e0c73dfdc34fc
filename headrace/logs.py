"""Logs: for a person on a terminal, JSON lines otherwise.

Both on stderr, both through `logging`.
"""

from __future__ import annotations

import logging
import sys

import structlog

from headrace.words import printable, printable_lines

__all__ = ["configure"]


def configure() -> None:
    """Set up the root logger; call it once, in `main`."""
    terminal = sys.stderr.isatty()
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        # What the vendors' answers are told with, each a field of its own.
        structlog.stdlib.ExtraAdder(
            allow=("vendor", "status", "attempt", "events", "request", "response")
        ),
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
    ]
    renderers: list[structlog.types.Processor] = (
        [_printable, structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Each attempt's warnings; what fails is raised, and said once by whoever tries again. By the
    # loggers themselves: clickhouse_connect sets the level of `urllib3` anew when it is imported.
    for noisy in ("urllib3.connectionpool", "clickhouse_connect"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _printable(
    _logger: structlog.types.WrappedLogger, _method: str, fields: structlog.types.EventDict
) -> structlog.types.EventDict:
    """The fields, without what a vendor or a sender could do to the terminal with them.

    A traceback has lines of its own; in its last one there may be a stranger's line ends still.
    """
    return {
        name: (printable_lines if name in ("exception", "stack") else printable)(value)
        if isinstance(value, str)
        else value
        for name, value in fields.items()
    }
