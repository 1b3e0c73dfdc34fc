"""When a member has lost touch, by what librdkafka's statistics say."""

from __future__ import annotations

import json
from typing import Any

from consumers.membership import Membership


def told(
    member: Membership, given_up: int = 0, answers: int = 0, brokers: tuple[str, ...] = ("learned",)
) -> str:
    """What it says after one more of librdkafka's reports."""
    found: dict[str, Any] = {f"{i}": {"source": source} for i, source in enumerate(brokers)}
    found["GroupCoordinator"] = {"source": "logical", "req_timeouts": given_up, "rx": answers}
    member.told(json.dumps({"brokers": found}))
    return member.trouble


def test_it_joins_anew_once_kafka_answers_again() -> None:
    member = Membership(said_once=True)
    assert told(member, 0, 5) == ""
    assert told(member, 1, 6) == "", "it has just missed one"
    assert told(member, 2, 6) == "", "and one more"
    assert told(member, 2, 6) == "", "Kafka is silent"
    assert "heartbeat" in told(member, 2, 7)


def test_who_was_put_out_has_missed_nothing() -> None:
    member = Membership(said_once=True)
    told(member, 1, 5)
    member.fenced()
    assert told(member, 1, 6) == ""


def test_a_client_that_can_not_go_on_takes_its_partitions_with_it_and_joins_nothing() -> None:
    member = Membership(said_once=True)
    member.ended("it can't go on")
    member.fenced()
    assert told(member) == "it can't go on"


def test_with_the_classic_protocol_a_late_answer_costs_nothing() -> None:
    member = Membership(said_once=False)
    told(member, 1, 5)
    assert told(member, 1, 6) == ""


def test_a_client_that_has_forgotten_every_broker_is_given_up() -> None:
    member = Membership(said_once=False)
    assert told(member, brokers=("configured",)) == "", "it has not found any yet"
    assert told(member, brokers=()) == "", "it may be about to"
    assert told(member, brokers=("learned",)) == ""
    assert told(member, brokers=()) == ""
    assert "broker" in told(member, brokers=())
