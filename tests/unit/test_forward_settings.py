"""[vendors.NAME]: what is wrong is said with its place; credentials are asked for when needed."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.forward import live
from consumers.forward.engine_settings import EngineSettings
from consumers.forward.settings import from_tables
from consumers.trace.allowlist import from_table as trace_settings
from consumers.vendors import VENDORS, VendorError


def test_how_it_is_sent_to_is_apart_from_the_vendors_own_settings() -> None:
    table = {
        "api_key_env": "K", "region": "eu", "concurrency": 3, "timeout_s": 5,
        "proxy": "http://p:3128",
    }  # fmt: skip
    found = from_tables({"amplitude": table}, {"K": "key", "OTHER": "x"})["amplitude"]
    assert found.engine == EngineSettings(3, 5.0, "http://p:3128")
    assert found.credentials == {"K": "key"}
    assert "key" not in repr(found).replace("api_key_env", "")
    assert found.vendor().limits(backfill=False).max_events == 2000


def test_a_vendor_may_have_a_name_of_its_own() -> None:
    table = {"kind": "webhook", "url": "https://example.com", "secret_env": "K"}
    found = from_tables({"orders": table}, {"K": "key"})["orders"]
    assert type(found.vendor()).__name__ == "Webhook"


def test_a_missing_credential_is_said_when_the_vendor_is_made_not_before() -> None:
    found = from_tables({"heap": {"app_id_env": "NOT_THERE"}}, {})["heap"]
    with pytest.raises(VendorError, match="NOT_THERE is not set"):
        found.vendor()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"heap": 3}, r"vendors\.heap must be a section"),
        ({"hype": {}}, "'hype' is no vendor; give kind = one of"),
        ({"heap": {"kind": ["heap"]}}, r"vendors\.heap: \['heap'\] is no vendor; give kind = one"),
        ({"heap": {"kind": {"a": 1}}}, "{'a': 1} is no vendor; give kind = one of"),
        ({"Heap": {}}, "the name must be a-z"),
        ({"x y": {"kind": "heap"}}, "the name must be a-z"),
        ({"heap": {"concurrency": 0}}, "concurrency = 0 must be a whole number"),
        ({"heap": {"concurrency": True}}, "concurrency = True must be"),
        ({"heap": {"timeout_s": "1"}}, "timeout_s = '1' must be seconds"),
        ({"heap": {"timeout_s": 0}}, "timeout_s = 0 must be seconds"),
        (
            {"heap": {"proxy": "socks://me:password@p"}},
            r"^vendors\.heap\.proxy must be an address, [^@]*$",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(VendorError, match=said):
        from_tables(tables, {})


def test_a_batch_takes_seconds_at_a_vendors_own_rate() -> None:
    heap = from_tables({"heap": {"app_id_env": "K"}}, {"K": "key"})["heap"].vendor()
    assert live.limits_of(heap).max_rows == 500, "15,000 a minute, two seconds of them"
    webhook = {"url": "https://example.com", "secret_env": "K"}
    found = from_tables({"webhook": webhook}, {"K": "key"})["webhook"].vendor()
    assert live.limits_of(found).max_rows == 10_000


def test_a_vendor_without_an_event_that_may_leave_is_not_allowed() -> None:
    trace = trace_settings({"events": {"a": {"vendors": ["heap"]}}}, VENDORS)
    assert live.allowed(trace, "heap")
    assert not live.allowed(trace, "ga4")


@pytest.mark.parametrize("variable", [["K"], {"a": "K"}])
def test_what_is_no_name_of_a_variable_is_said_when_the_vendor_is_made_not_before(
    variable: object,
) -> None:
    """Other commands read the same file."""
    found = from_tables({"heap": {"app_id_env": variable}}, {"K": "key"})["heap"]
    assert not found.credentials
    with pytest.raises(VendorError, match="app_id_env must be the name of an environment variable"):
        found.vendor()
