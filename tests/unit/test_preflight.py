"""What is checked before an inserter joins its group."""

from __future__ import annotations

import pytest

from consumers import preflight
from consumers.errors import Systemic, Unavailable
from ingest.streams import BUILT_IN
from ingest.topics import TopicError

STREAMS = [BUILT_IN["device_state"]]


def test_a_kafka_that_is_away_is_waited_for_and_one_that_denies_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [TopicError("it does not answer"), TopicError("it refuses: who are you", denied=True)]

    def topic_ids(_kafka: object, _names: object) -> dict[str, str]:
        raise answers.pop(0)

    monkeypatch.setattr(preflight, "topic_ids", topic_ids)
    monkeypatch.setattr(preflight.time, "sleep", lambda _s: None)
    with pytest.raises(Systemic, match="who are you"):
        preflight.check_topics({}, STREAMS)
    assert answers == []


def test_what_else_is_asked_at_a_start_waits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka may go away right behind the first question; a supervisor saw forwarders end by it."""
    answers = [Unavailable("it does not answer"), Unavailable("it does not answer"), None]

    def ask() -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return "there"

    monkeypatch.setattr(preflight.time, "sleep", lambda _s: None)
    assert preflight.waited_for(ask) == "there"
    assert answers == []


def test_topics_that_are_missing_are_named_with_what_makes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "topic_ids", lambda _kafka, _names: {"device_state": "id"})
    with pytest.raises(Systemic, match=r"device_state\.dlq does not exist.*headrace migrate"):
        preflight.check_topics({}, STREAMS)
