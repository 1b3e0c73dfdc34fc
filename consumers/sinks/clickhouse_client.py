"""A client for a ClickHouse server, or for its engine in this process (chDB)."""

from __future__ import annotations

import fcntl
from pathlib import Path
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from consumers.errors import Systemic
from consumers.sinks.clickhouse_errors import explain
from consumers.sinks.clickhouse_url import database, directory, port, where
from ingest.extras import missing

__all__ = ["connect", "is_there", "require_chdb"]

_CONNECT_TIMEOUT_S = 10
_ANSWER_TIMEOUT_S = 120
# How long a session waits for the next question: as long as a server allows unless told otherwise
# (max_session_timeout). Its default, a minute, is less than a topic may take to be read.
_SESSION_S = 3600
# What the settings profile of a user may have otherwise, and would spoil our questions. All of them
# are ClickHouse's defaults, so that a user who may set nothing is none to refuse.
_SETTINGS = {
    # Answers of before: rows that are there by now would be put in once more.
    "use_query_cache": 0,
    # A limit is an error, and not a part of the answer.
    **dict.fromkeys(
        (
            f"{what}_overflow_mode"
            for what in ("read", "result", "timeout", "set", "distinct", "group_by")
        ),
        "throw",
    ),
    "skip_unavailable_shards": 0,
    "limit": 0,
    "offset": 0,
    "aggregate_functions_null_for_empty": 0,
    "empty_result_for_aggregation_by_empty_set": 0,
}
# Without it tokens are nothing, whatever insert_deduplicate says; older servers do not know it.
_NEWER = ("deduplicate_insert", "enable")


def is_there(url: str) -> bool:
    """Whether there is a chDB in its directory; of a server's URL nothing is asked."""
    return urlsplit(url).scheme != "chdb" or (directory(url) / "metadata").is_dir()


def require_chdb(url: str) -> None:
    """Raises Systemic where no chDB is: it would make what a mistyped path names."""
    if not is_there(url):
        raise Systemic(
            f"there is no chDB in {where(url)}; make it with `headrace migrate --to {url}`, or "
            "correct the path"
        )


def connect(url: str, *, session: bool = False) -> Client:
    """A client for a server or for chDB. Raises Unavailable, Systemic.

    With `session` its temporary tables are there from one question to the next.
    """
    parts = urlsplit(url)
    if parts.scheme != "chdb" and not parts.hostname:
        raise Systemic(
            "the URL of ClickHouse names no host; write clickhouse://user:password@host:8123/database"
        )
    try:
        if parts.scheme == "chdb":
            return clickhouse_connect.get_client(interface="chdb", path=str(directory(url)))
        client = clickhouse_connect.get_client(
            host=parts.hostname or "localhost",
            port=port(parts),
            username=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            database=database(parts),
            secure=parts.scheme == "clickhouses",
            connect_timeout=_CONNECT_TIMEOUT_S,
            send_receive_timeout=_ANSWER_TIMEOUT_S,
            autogenerate_session_id=session,
            settings={**_SETTINGS, **({"session_timeout": _SESSION_S} if session else {})},
            client_name="headrace",
        )
        # Who may set nothing inserts nothing.
        known = client.server_settings
        if _NEWER[0] in known and known["readonly"].value != "1":
            client.set_client_setting(*_NEWER)
    except ImportError as error:
        raise Systemic(f"{missing('chdb', 'local')} ({error})") from error
    except (ClickHouseError, OSError) as error:
        if parts.scheme == "chdb" and _in_use(directory(url)):
            raise Systemic(
                f"another process has {directory(url)} open: chDB takes one process a directory"
            ) from error
        raise explain(error, url) from error
    return client


def _in_use(place: Path) -> bool:
    """Whether a chDB has this directory open; it takes one process."""
    status = place / "status"
    if not status.exists():
        return False
    with status.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
