"""A vendor's export: whichever form its lines have, and that nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consumers.errors import Systemic
from consumers.trace.gate import hidden_key
from consumers.vendors.exported import Exported
from consumers.vendors.values import uuid_of

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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n{}\n", "line 2 of"),
        ('{"$insert_id": ""}\n', "line 1 of"),
        ('[{"$insert_id": "a"}]\n', "line 1 of"),
        ("{\n", "line 1 of"),
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
