"""From raw events in Kafka to the vendors: each event once by its key, with a receipt for each.

The vendors are the stand-ins over HTTP, which know nothing of what sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forwarding import ALL, Forwarding

from headrace.stack import Endpoints
from headrace.vendors.app import WEBHOOK_SECRET
from headrace.vendors.client import Vendors

pytest_plugins = ["vendors_standin"]


@pytest.fixture
def scene(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    stand_ins: Vendors,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Forwarding]:
    """A topic of raw events, and all vendors."""
    monkeypatch.setenv("STANDIN_KEY", WEBHOOK_SECRET)
    with Forwarding.start(tmp_path, endpoints.kafka, unique("events"), stand_ins) as scene:
        yield scene


def test_every_allowed_event_is_in_each_vendor_once_though_requests_fail(
    scene: Forwarding,
) -> None:
    """Ten times the failures of a bad day; half of them after the vendor has taken it all."""
    for vendor in ALL:
        scene.vendors.break_(vendor, fail=0.25, fail_after=0.25 if vendor != "ga4" else 0, seed=3)
    scene.send(800, others=100)
    scene.forward("--drain").finish(90)
    for vendor in ALL:
        scene.once(vendor)
    failed = [v for v in ALL if scene.vendors.stored(v)["answers"].get("500", 0)]
    assert len(failed) >= 4, "requests have failed"
