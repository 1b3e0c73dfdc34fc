"""What an audit says of what it can't look at."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest

from consumers.ledger.account import Account
from headrace.cli.audit_run import Audit
from ingest.streams import BUILT_IN


@pytest.mark.parametrize(
    ("url", "dedupe", "said"),
    [
        ("chdb:data", True, True),
        ("clickhouse://ch/logs", True, True),
        ("chdb:data", False, False),
        ("postgres://db/logs", True, False),
    ],
)
def test_rows_that_are_not_compared_are_named(
    monkeypatch: pytest.MonkeyPatch, url: str, dedupe: bool, said: bool
) -> None:
    key = ("device_id", "account_id", "timestamp")
    stream = replace(BUILT_IN["device_state"], dedupe=key if dedupe else ())
    audit = Audit(
        Mock(), {"there": url}, None, None, None, edge=False, deep=True, explain=False, named=False
    )
    asked: list[str] = []
    monkeypatch.setattr(audit, "_comparable_us", lambda _stream: 0)
    monkeypatch.setattr(audit, "_found", lambda *_: asked.append(url) or [])
    assert audit._looked_at(stream, "t", {"there": Account({}, {})}, []) == []
    assert ["the rows in there are not compared" in line for line in audit.warnings] == [
        True
    ] * said
    assert bool(asked) != said
