"""What a connection to PostgreSQL is opened with; how soon a peer that has vanished is noticed."""

from __future__ import annotations

from typing import Any
from unittest import mock

import psycopg
import pytest

from consumers.errors import Systemic
from consumers.sinks.postgres_client import connect
from consumers.sinks.postgres_errors import explain


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What libpq is given, by its own rule: a keyword goes before the URL."""
    found: dict[str, Any] = {}

    def note(url: str, *, prepare_threshold: int, autocommit: bool, **how: Any) -> mock.Mock:
        found.update(psycopg.conninfo.conninfo_to_dict(url, **how))
        connection = mock.Mock()
        connection.execute.return_value.fetchone.return_value = ("30s",)
        return connection

    monkeypatch.setattr(psycopg, "connect", note)
    return found


def test_a_host_that_vanishes_is_noticed_also_in_the_middle_of_a_copy(
    given: dict[str, Any],
) -> None:
    connect("postgresql://u:p@db:5432/logs")
    assert int(given["tcp_user_timeout"]) == 30_000
    idle, interval, count = (int(given[f"keepalives_{k}"]) for k in ("idle", "interval", "count"))
    assert idle + interval * count == 25


def test_the_url_may_say_otherwise(given: dict[str, Any]) -> None:
    connect("postgresql://u:p@db/logs?tcp_user_timeout=5000&keepalives_idle=60")
    assert int(given["tcp_user_timeout"]) == 5000
    assert int(given["keepalives_idle"]) == 60
    assert int(given["keepalives_count"]) == 3


def test_what_the_url_sets_for_the_session_stays_beside_what_we_set(given: dict[str, Any]) -> None:
    connect("postgresql://u:p@db/logs?options=-csearch_path%3Dapp%20-clock_timeout%3D0")
    assert given["options"].startswith("-csearch_path=app -clock_timeout=0 -c ")
    assert "-c lock_timeout=30s" in given["options"]


@pytest.mark.parametrize(
    "said",
    [
        "unsupported startup parameter in options: lock_timeout",
        "Feature not supported: RDS Proxy currently doesn\u2019t support command-line options.",
    ],
)
def test_a_pooler_that_refuses_our_settings_is_no_outage(said: str) -> None:
    error = psycopg.OperationalError(f"connection failed: port 5432 failed: FATAL:  {said}")
    why = explain(error, "postgresql://u:p@db/logs")
    assert isinstance(why, Systemic)
    assert "name PostgreSQL itself" in str(why)


def test_of_several_servers_it_is_said_what_is_wrong_with_each() -> None:
    """That the standby is read-only was all that was said, and not that the primary is away."""
    each = ("connection refused\n\tIs the server running", "session is read-only")
    failed = [f'connection to server at "{h}" failed: {e}' for h, e in zip("ab", each, strict=True)]
    hosts = [
        f"- host: '{h}', port: None, hostaddr: '1': connection failed: {e}"
        for h, e in zip("ab", failed, strict=True)
    ]
    error = psycopg.OperationalError(
        f"connection failed: {failed[1]}\nMultiple connection attempts failed. "
        f"All failures were:\n{chr(10).join(hosts)}"
    )
    why = str(explain(error, "postgresql://u:p@a,b/logs?target_session_attrs=read-write"))
    assert why.endswith(
        '/logs: connection to server at "a" failed: connection refused; '
        'connection to server at "b" failed: session is read-only'
    )
