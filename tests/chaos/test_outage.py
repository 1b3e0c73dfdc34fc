"""A vendor's outage under load, short; `make outage` is the same, long, and asks how fast."""

from __future__ import annotations

import pytest
from chaos.outage import day, outage, place


@pytest.mark.slow
def test_after_an_outage_under_load_each_vendor_has_each_event_once() -> None:
    with place() as (kafka, vendors, folder):
        figures = outage(kafka, vendors, folder, seconds=10, per_second=200)
    assert figures["missed"] > 1000
    assert figures["drain_per_s"] <= figures["plan"]


@pytest.mark.slow
def test_after_a_days_outage_what_google_would_date_anew_has_a_receipt_and_the_rest_is_there() -> (
    None
):
    with place() as (kafka, vendors, folder):
        figures = day(kafka, vendors, folder, events=13_000, seed=1)
    assert figures["expired"] > 0
    assert figures["fresh_before"] > 1000, "fresh events come before those of the outage"
