"""A stream, a group and a destination of each test's own, on the session's stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chdb_door import Door, running_door
from replaying import Replaying
from running import Scene
from targets import ClickHouseTarget, PostgresTarget

from headrace.stack import Endpoints
from headrace.vendors.client import Vendors, serve
from headrace.vendors.place import WEBHOOK_SECRET


@pytest.fixture
def scene(tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[Scene]:
    """One stream with 4 partitions and its processes, gone afterwards."""
    with Scene.open(tmp_path, endpoints.kafka, unique("states")) as scene:
        yield scene


@pytest.fixture
def postgres(database: str) -> PostgresTarget:
    """An empty database."""
    return PostgresTarget(database)


@pytest.fixture
def door(chdb_path: Path) -> Iterator[Door]:
    """ClickHouse's HTTP interface over an empty chDB."""
    with running_door(chdb_path) as door:
        yield door


@pytest.fixture
def clickhouse(door: Door) -> ClickHouseTarget:
    """That door as a destination."""
    return ClickHouseTarget(door.port)


@pytest.fixture(scope="module")
def _stand_ins() -> Iterator[Vendors]:
    with serve() as vendors:
        yield vendors


@pytest.fixture
def stand_ins(_stand_ins: Vendors) -> Vendors:
    """The stand-in vendors as a process, one for the module; whole and empty."""
    for vendor in ("ga4", "amplitude", "heap", "mixpanel", "posthog", "webhook"):
        _stand_ins.mend(vendor)
        _stand_ins.forget(vendor)
    return _stand_ins


@pytest.fixture
def replaying(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    stand_ins: Vendors,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Replaying]:
    """A topic of raw events, and all vendors."""
    monkeypatch.setenv("STANDIN_KEY", WEBHOOK_SECRET)
    with Replaying.start(tmp_path, endpoints.kafka, unique("replay"), stand_ins) as scene:
        assert isinstance(scene, Replaying)
        yield scene
