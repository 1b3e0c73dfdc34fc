"""The errors that are written for an operator: one sentence, no traceback, exit code 1."""

from __future__ import annotations

from consumers.errors import Systemic, Unavailable
from consumers.trace.allowlist import TraceError
from consumers.vendors import VendorError
from headrace.config import ConfigError
from ingest.collector.key import KeyFileError
from ingest.collector.settings import CollectError
from ingest.publisher import PublishError, SettingError
from ingest.topics import TopicError

__all__ = ["EXPECTED"]


def _stack_error() -> tuple[type[Exception], ...]:
    try:
        from headrace.stack import StackError
    except ImportError:  # headrace[local] is not installed
        return ()
    return (StackError,)


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
