"""A vendor's export: whichever form its lines have, and that nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from consumers.errors import Systemic
from consumers.forward.settings import from_tables
from consumers.trace.allowlist import TraceSettings
from consumers.trace.gate import hidden_key
from consumers.vendors.exported import Exported
from consumers.vendors.values import uuid_of
from headrace.cli import replay_dry, replay_run
from headrace.cli.audit_data import Data

_ID = "0197a3b2-1111-7000-8000-0000000000AB"


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"$insert_id": "evt-1", "uuid": "amplitude's own"}),
        json.dumps({"event": "x", "properties": {"$insert_id": "evt-1"}}),
        json.dumps({"idempotency_key": "evt-1"}),
        json.dumps({"uuid": uuid_of("evt-1")}),
        json.dumps({"insert_id": hidden_key("evt-1")}),
        json.dumps({"insert_id": hidden_key("evt-1", b"a secret")}),
        json.dumps(
            {
                "event_name": "purchase",
                "event_params": [
                    {"key": "engagement_time_msec", "value": {"int_value": "1"}},
                    {"key": "event_id", "value": {"string_value": "evt-1"}},
                ],
            }
        ),
        "evt-1",
        '"evt-1"',
        "\n\n  evt-1\r",
    ],
)
def test_an_event_is_found_in_an_export_under_whichever_key(tmp_path: Path, line: str) -> None:
    path = tmp_path / "export"
    path.write_text(f"{line}\n{_ID.lower()}\n")
    exported = Exported(str(path), "a secret")
    assert exported.count == 2
    assert [exported.holds(i) for i in ("evt-1", "evt-2", _ID, "")] == [True, False, True, False]


def test_what_ga4_collects_by_itself_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "export"
    own = {"event_name": "session_start", "event_params": [{"key": "ga_session_id"}]}
    ours = {"event_params": [{"key": "event_id", "value": {"string_value": "evt-1"}}]}
    path.write_text(f"{json.dumps(own)}\n{json.dumps(ours)}\n")
    exported = Exported(str(path))
    assert (exported.count, exported.holds("evt-1")) == (1, True)


def test_the_parameter_of_ga4s_export_is_the_operators_choice(tmp_path: Path) -> None:
    path = tmp_path / "export"
    ours = {"event_params": [
        {"key": "event_id", "value": {"string_value": "another tag's"}},
        {"key": "hr_key", "value": {"string_value": "evt-1"}},
    ]}  # fmt: skip
    path.write_text(f"{json.dumps(ours)}\n{json.dumps({'hr_key': 'evt-2'})}\n")
    exported = Exported(str(path), settings={"key_parameter": "hr_key"})
    assert [exported.holds(i) for i in ("evt-1", "evt-2", "another tag's")] == [True, True, False]
    with pytest.raises(Systemic, match="is sent no id of an event"):
        Exported(str(path), settings={"key_parameter": ""})


@pytest.mark.parametrize(
    "read",
    [
        lambda config, job: replay_run.run(
            config, Mock(), Mock(url="not a vendor's"), job, skip_lost=False
        ),
        lambda config, job: list(replay_dry._to_vendor(config, job)),
        lambda config, job: Data._lost(
            Mock(_config=config, _against=job.against), "web", Mock(acknowledged=Mock), 0, 1
        ),
    ],
    ids=["replay", "dry run", "audit"],
)
def test_whoever_reads_an_export_knows_the_vendors_parameter(
    read: Callable[[Any, Any], object], tmp_path: Path
) -> None:
    """Else an event that is there is not found, and is sent again."""
    path = tmp_path / "export"
    ours = {"event_params": [{"key": "event_id", "value": {"string_value": "another tag's"}}]}
    path.write_text(f"{json.dumps(ours)}\n")
    table = {
        "kind": "ga4", "api_secret_env": "K", "measurement_id": "G-1", "key_parameter": "hr_key",
    }  # fmt: skip
    config = Mock(vendors=from_tables({"web": table}, {"K": "k"}), trace=TraceSettings())
    with pytest.raises(Systemic, match="holds no event"):
        read(config, Mock(to="web", against=str(path)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n{}\n", "line 2 of"),
        ('{"$insert_id": ""}\n', "line 1 of"),
        ('[{"$insert_id": "a"}]\n', "line 1 of"),
        ("{\n", "line 1 of"),
        ("event,time,$insert_id\ncheckout,1796060579,evt-1\n", "line 1 of .* is this CSV"),
        ("evt-1\nevt-2;7\n", "line 2 of .* is this CSV"),
        ("evt-1\t7\n", "line 1 of .* is this CSV"),
        ('"event","$insert_id"\n"checkout","evt-1"\n', "line 1 of"),
        ("\n \n", "holds no event"),
        ('{"event_params": []}\n', "holds no event"),
    ],
)
def test_what_is_no_export_stops_with_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    """Else all would be missing, and be sent again."""
    path = tmp_path / "export"
    path.write_text(text)
    with pytest.raises(Systemic, match=says):
        Exported(str(path))


def test_an_id_with_a_comma_is_one_between_quotes(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_text('"a,b"\n{"insert_id": "c;d"}\n')
    exported = Exported(str(path))
    assert (exported.holds("a,b"), exported.holds("c;d"), exported.count) == (True, True, 2)
