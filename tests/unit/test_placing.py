"""Placing: what Kafka has lost stops it, and what it has not lost does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from consumers.batch import Partition
from consumers.errors import Systemic
from consumers.placing import Placing
from consumers.sinks import Known
from consumers.work import Cursor, Place, Work
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
P = Partition(STREAM.topic, 0)


def placed(at: int, *logs: tuple[int, int], skip_lost: bool = False) -> Place:
    """Where it goes on with what has landed up to `at`; `logs` are Kafka's answers in turn."""
    answers = [Known("t", earliest, latest, at, "") for earliest, latest in logs]
    source: Any = SimpleNamespace(
        known=lambda _: {P: answers.pop(0) if len(answers) > 1 else answers[0]}
    )
    sink = SimpleNamespace(resume=lambda _: {P: at})
    attempts: Any = SimpleNamespace(until_done=lambda _work, act: act(sink))
    placing = Placing(attempts, source, destination="test", skip_lost=skip_lost)
    return placing.place(Work(0, {Cursor(P, STREAM, 0): 0})).places[P]


@pytest.mark.parametrize("skip_lost", [False, True])
def test_a_log_that_ends_below_what_has_landed_stops_it_whatever_it_is_told(
    skip_lost: bool,
) -> None:
    said = r"has landed up to 8, but its log ends at 7: .* so copy first what has not landed"
    with pytest.raises(Systemic, match=said):
        placed(8, (0, 7), skip_lost=skip_lost)
    assert placed(7, (0, 7), skip_lost=skip_lost) == (7, 7)


def test_what_has_landed_since_kafka_was_asked_is_no_lost_log() -> None:
    assert placed(8, (0, 7), (0, 9)) == (8, 8)


def test_one_record_that_retention_removed_is_not_passed_over() -> None:
    with pytest.raises(Systemic, match="from 4 to 5"):
        placed(4, (5, 9))
    assert placed(5, (5, 9)) == (5, 5)
    assert placed(4, (5, 9), skip_lost=True) == (4, 5)
