"""A connection to PostgreSQL with the session settings that our promises need, and what its URL says."""  # noqa: E501

from __future__ import annotations

from typing import Any

import psycopg

from consumers.errors import Systemic

__all__ = ["POOLER", "connect", "where"]

# A pooler in transaction mode gives the next transaction another session, and none of them takes
# all settings.
POOLER = (
    "a pooler (pgbouncer) keeps no session: name PostgreSQL itself in the URL; an inserter needs "
    "two connections"
)

# For our session: a stopped writer gives its lock back, a dead peer is noticed, and no statement of
# ours waits for a lock for ever (somebody's ALTER TABLE): it is retried instead.
_SESSION = {
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "30s",
    # A role's own would end each COPY that takes longer, for ever.
    "statement_timeout": "0",
    # With another one, which a database or a role may have for its own, a statement that waited for
    # a lock does not see what was committed meanwhile: two replays at once would double rows.
    "default_transaction_isolation": "read committed",
    "application_name": "headrace",
    "TimeZone": "UTC",
    # The driver reads times in this style alone.
    "DateStyle": "ISO",
    # The audit holds rows against records by their text.
    "extra_float_digits": "1",
}
# Those that not every server knows, so that options must not name them. For a role's own again: it
# would end each long COPY, or the session between two batches.
_LATER = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('transaction_timeout', 'idle_session_timeout')"""
_TAKEN = "SELECT current_setting('lock_timeout')"
_CONNECT_TIMEOUT_S = 10
# How soon a peer that is gone is noticed; the URL may say otherwise.
_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Keepalives are for a line that is still. What was sent and is not acknowledged, a COPY's rows
    # to a host that has vanished, is sent again for a quarter of an hour; this ends it, in
    # milliseconds, as it does where the server takes nothing for so long: the batch is tried again.
    # libpq leaves it out where the system has none, and on a unix socket.
    "tcp_user_timeout": 30_000,
}


def connect(url: str, *, sees_all: bool = False) -> psycopg.Connection:
    """A connection with our session settings. Raises psycopg.Error, and Systemic without them.

    With `sees_all` it is an error, and not fewer rows, where row-level security hides some.
    """
    settings = {**_SESSION, "row_security": "off"} if sees_all else _SESSION
    ours = " ".join(
        "-c " + f"{k}={v}".replace(" ", r"\ ")
        for k, v in settings.items()
        if k != "application_name"
    )
    given = psycopg.conninfo.conninfo_to_dict(url)
    connection = psycopg.connect(
        url,
        connect_timeout=_CONNECT_TIMEOUT_S,
        # Behind the URL's, a search_path say: of two the later one counts.
        options=f"{given.get('options', '')} {ours}",
        application_name=_SESSION["application_name"],
        # Unless told, libpq speaks the database's: a LATIN1 one then takes each of our bytes for a
        # letter, and stores others than the record has without an error.
        client_encoding="utf8",
        autocommit=True,
        prepare_threshold=0,
        **{k: v for k, v in _KEEPALIVE.items() if k not in given},
    )
    try:
        if connection.execute(_TAKEN, prepare=False).fetchone() != (_SESSION["lock_timeout"],):
            raise Systemic(f"PostgreSQL at {where(url)}: our session settings are lost; {POOLER}")
        connection.execute(_LATER, prepare=False)
        connection.autocommit = False
    except BaseException:
        connection.close()
        raise
    return connection


def where(url: str) -> str:
    """Host, port and database, without the password."""
    parts: dict[str, Any] = {}
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        ports = str(parts.get("port", "5432"))
    except psycopg.Error:
        ports = ""
    # Of several hosts with the usual port it is just commas.
    if not (ports.replace(",", "") or "0").isdigit() or "@" in str(parts.get("host", "")):
        # What libpq says of it may hold a part of the password.
        raise Systemic(
            "the URL of PostgreSQL can't be used: write postgres://user:password@host:5432/name, "
            "with what is special in the password as %2F (/), %40 (@), %3A (:)"
        ) from None
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
