"""Which kind of failure an error of ClickHouse is, by its code.

What is in neither table is taken for something that passes: the same batch again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from clickhouse_connect.driver.exceptions import (
    ClickHouseError,
    DatabaseError,
    OperationalError,
    ProgrammingError,
)

from consumers.errors import Rejected, SinkError, Systemic, Unavailable
from consumers.sinks.clickhouse_url import where

__all__ = ["explain", "talking"]

_ROWS_AT_FAULT = {
    6: "CANNOT_PARSE_TEXT",
    153: "ILLEGAL_DIVISION",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    395: "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO",
    407: "DECIMAL_OVERFLOW",
    69: "ARGUMENT_OUT_OF_BOUND",
    117: "INCORRECT_DATA",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    469: "VIOLATED_CONSTRAINT",
}
# A limit of rows is there for good; what is not ours to set, the client refuses by itself.
_PROFILE = "change the settings profile of this user, or take another user"
_PERSON_NEEDED = {
    **dict.fromkeys((158, 191, 307, 396, 452, 704, 719), _PROFILE),
    48: "see what the server says",
    344: "see what the server says",
    10: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    16: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    47: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    53: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    60: "create it with `headrace migrate`, or drop the materialized view that writes to it",
    76: "another process has this directory open: chDB takes one process a path",
    81: "create the database, or correct its name in the URL",
    115: "this server is too old: 24.8 or newer is needed",
    164: "this user may not write",
    192: "check user and password",
    193: "check user and password",
    194: "check user and password",
    497: "grant SELECT and INSERT on the table",
    516: "check user and password",
}
# Of views that feed each other the first one that is named is the one that fails.
_VIEW = re.compile(r"while pushing to view (\S+?)[.:]?(?:\s|$)")


@contextmanager
def talking(url: str) -> Iterator[None]:
    """The client's errors, and the network's, become the kinds of failure."""
    try:
        yield
    except (ClickHouseError, OSError) as error:
        raise explain(error, url) from error


def explain(error: Exception, url: str) -> SinkError:
    """The client's error as one of the kinds of failure."""
    parts = urlsplit(url)
    place = where(url)
    code = getattr(error, "code", None) if isinstance(error, DatabaseError) else None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0].replace(unquote(parts.password), "…") if parts.password else lines[0]
    view = _VIEW.search(str(error))
    if view and (code in _ROWS_AT_FAULT or code in _PERSON_NEEDED):
        # The table has these rows already: as rejected they would land a second time in halves.
        return Systemic(
            f"ClickHouse at {place}: {view[1]}, a materialized view, fails on rows that the table "
            f"takes: {said}; mend the view, or drop it. The table gets each row once all the same; "
            "what the view has missed it does not get"
        )
    if code in _ROWS_AT_FAULT:
        return Rejected(said)
    if code in _PERSON_NEEDED:
        return Systemic(f"ClickHouse at {place}: {said}; {_PERSON_NEEDED[code]}")
    if isinstance(error, ProgrammingError) and "is readonly" in said:
        return Systemic(f"ClickHouse at {place}: {said}; {_PROFILE}")
    if trouble := _trouble(error):
        return Unavailable(
            f"ClickHouse at {place} does not answer ({trouble}). Is it running, and is that the "
            "address of its HTTP interface?"
        )
    return Unavailable(f"ClickHouse at {place}: {said}")


def _trouble(error: Exception) -> str | None:
    """What the network says of a server that can't be asked: the first cause, which the client and
    urllib3 wrap in texts for programmers."""
    if not isinstance(error, OperationalError | OSError):
        return None
    found: OSError | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            found = cause
        cause = cause.__cause__ or cause.__context__
    if found is None:
        return None
    return found.strerror or str(found) or type(found).__name__
