"""What a connection to PostgreSQL is opened with: how soon a peer that has vanished is noticed."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from consumers.sinks.postgres_client import connect


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What libpq is given, by its own rule: a keyword goes before the URL."""
    found: dict[str, Any] = {}

    def note(url: str, **how: Any) -> None:
        how.pop("prepare_threshold")
        found.update(psycopg.conninfo.conninfo_to_dict(url, **how))

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
