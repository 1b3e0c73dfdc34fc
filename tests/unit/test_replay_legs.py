"""The legs of a replay: the table gives nothing that it has not landed yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from consumers.batch import Span
from consumers.bounds import Bounds
from consumers.errors import Systemic, Unavailable
from consumers.replay import legs
from consumers.replay.job import Job, Origin
from ingest.streams import BUILT_IN
from ingest.units import HOUR_MS, HOUR_US

STREAM = BUILT_IN["raw_events"]
URL = "postgres://db/prod"
JOB = Job(
    "3f9c01d2", "heap", "raw_events", "topic", 5 * HOUR_US, 90 * HOUR_US, 0.0, {2: Span(5, 9)}, 11
)


class Table:
    """The partitions of which it has not landed all that it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behind: list[int] = []
        self.asked: list[Mapping[int, Span]] = []
        monkeypatch.setattr(legs, "not_landed", self._not_landed)
        # Of Kafka: what it has begins at the hour 50, and is cut there.
        found = Bounds({2: Span(5, 9)}, (2,))
        monkeypatch.setattr(legs, "find", lambda *_: found)
        monkeypatch.setattr(legs, "bounds", lambda *_: found)
        monkeypatch.setattr(legs, "firsts", lambda *_: {2: 50 * HOUR_MS})

    def _not_landed(
        self, _kafka: object, url: str, _stream: object, topic_id: str, spans: Mapping[int, Span]
    ) -> list[int]:
        assert (url, topic_id) == (URL, "topic")
        self.asked.append(spans)
        return self.behind


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(monkeypatch)


def test_a_replay_by_way_of_the_table_does_not_begin_before_it_has_landed_its_part(
    table: Table,
) -> None:
    table.behind = [2]
    with pytest.raises(Systemic, match=r"has not landed yet .* \(partition 2\)"):
        legs.fall_through({}, URL, STREAM, JOB, 90 * HOUR_US)
    table.behind = []
    found = legs.fall_through({}, URL, STREAM, JOB, 90 * HOUR_US)
    assert found.table_until_us is not None
    assert found.table_until_us > 50 * HOUR_US
    assert table.asked == [{2: Span(5, 9)}] * 2


def test_what_an_outage_left_out_waits_until_the_table_has_landed_it(table: Table) -> None:
    job = replace(JOB, origin=Origin.OUTAGE)
    table.behind = [2]
    with pytest.raises(Unavailable, match=r"has not landed all of it yet \(partition 2\)"):
        legs.from_table({}, URL, STREAM, job)
    table.behind = []
    assert legs.from_table({}, URL, STREAM, job).table_until_us == job.end_us
    assert table.asked == [job.spans] * 2
