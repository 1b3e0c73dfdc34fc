"""Which kind of failure an error of PostgreSQL is, by its SQLSTATE; what libpq says has none.

What is in no table here is taken for something that passes: the same batch again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg

from consumers.errors import Rejected, Systemic, Unavailable
from consumers.sinks.postgres_client import POOLER, where

__all__ = ["explain", "person_needed", "refusal"]

_GRANT = (
    "grant INSERT on the table (with dedupe, and for an audit or a replay, SELECT too), and "
    "SELECT, INSERT and UPDATE on headrace_offsets and headrace_ledger"
)

_ALL_ROWS = (
    "let the role past it by ALTER ROLE … BYPASSRLS: of rows that a policy hides nothing can be "
    "proved, and a replay would double them"
)

# In what PostgreSQL says, whatever its SQLSTATE -> what to do about it.
_SAID = {
    "row-level security": _ALL_ROWS,
    "create temporary tables": "grant TEMPORARY on the database",
}
# The same of what would be taken for something that passes, by its SQLSTATE.
_NEVER_PASSES = {
    "does not support deferrable unique constraints": "drop the DEFERRABLE constraint on the "
    "columns of dedupe: the index that `headrace migrate` has made keeps the same",
}
# SQLSTATE -> what to do about it. Classes by their first two characters.
# 54: too large for an index or for jsonb; P0, 38, 39, 44: a trigger, function or view refuses it.
_ROWS_AT_FAULT = ("22", "23", "54", "P0", "38", "39", "44")
_PERSON_NEEDED = {
    "28": "check user and password",
    "3D": "create the database, or correct its name in the URL",
    "3F": "create the schema, or correct the role's search_path",
    "42501": _GRANT,
    "42P01": "create it with `headrace migrate`",
    "42703": "compare the table with `headrace schema sql`",
    "42804": "compare the table with `headrace schema sql`",
    "22P04": "compare the table with `headrace schema sql`",
    "22P03": "compare the table with `headrace schema sql`",
    "25006": "connect to the primary: this server is read-only, or its role or database is set so",
    "0A": "see what the server says",
    "42": "see what the server says",
}

# In what PostgreSQL refuses rows with -> what to do about it.
_ROW_SAID = {
    "no partition of relation": "make the partition, or one by DEFAULT, and send what is a dead "
    "letter by then once more by `headrace dlq redrive`",
}

# How psycopg lists what each of several hosts has said.
_OF_HOST = re.compile(r"- host: .*?: connection failed: (.*)")

# What libpq says of a connection that no retry will open, for it has no SQLSTATE -> what to do.
_REFUSED = {
    "password authentication failed": "check user and password",
    "no password supplied": "check user and password",
    "unsupported startup parameter": POOLER,
    # Amazon's RDS Proxy.
    "support command-line options": POOLER,
    "no pg_hba.conf entry": "",
    "permission denied for database": "",
    "not permitted to log in": "",
    'FATAL:  role "': "check user and password",
    "does not exist": _PERSON_NEEDED["3D"],
}


def person_needed(error: psycopg.Error) -> bool:
    """Whether just this SQLSTATE needs a person, although those of its class are of the rows."""
    return error.sqlstate in _PERSON_NEEDED


def explain(error: psycopg.Error, url: str, grant: str = _GRANT) -> Exception:
    """The driver's error as one of the kinds of failure; `grant` is what a role without needs."""
    state = error.sqlstate or ""
    said = _first_line(error)
    place = where(url)
    if (never := _in(_NEVER_PASSES, said)) is not None:
        return Systemic(f"PostgreSQL at {place}: {said}; {never}")
    for code in (state, state[:2]):
        if code in _PERSON_NEEDED:
            what = grant if code == "42501" else _PERSON_NEEDED[code]
            return Systemic(f"PostgreSQL at {place}: {said}; {_in(_SAID, said) or what}")
    if state[:2] in _ROWS_AT_FAULT:
        return Rejected(refusal(error))
    if not state:
        advice = _in(_REFUSED, said)
        if advice is not None or isinstance(error, psycopg.ProgrammingError):
            return Systemic(
                f"PostgreSQL at {place}: {_tried(error)}{f'; {advice}' if advice else ''}"
            )
    return Unavailable(f"PostgreSQL at {place}: {_tried(error)}")


def refusal(error: psycopg.Error) -> str:
    """Why it refuses rows, and what to do where the table is at fault."""
    said = _first_line(error)
    advice = _in(_ROW_SAID, said)
    return said if advice is None else f"{said}: {advice}"


def _in(table: Mapping[str, str], said: str) -> str | None:
    return next((what for words, what in table.items() if words in said), None)


def _tried(error: psycopg.Error) -> str:
    """What each server has said where the URL names several: of the last one alone it may be that
    it is read-only, where the primary is away."""
    said = [found[1] for line in str(error).splitlines() if (found := _OF_HOST.match(line))]
    return "; ".join(said) or _first_line(error)


def _first_line(error: Exception) -> str:
    """What it says, without hints and context."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
