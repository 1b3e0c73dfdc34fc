"""The guard over dead letters: a few are records, many are a mistake of ours."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from confluent_kafka import Message

from consumers import deadletters
from consumers.deadletters import DeadLetter, Guard, Lines
from consumers.errors import Systemic
from ingest.streams import BUILT_IN, Stream

STATE = BUILT_IN["device_state"]
OTHER = dataclasses.replace(STATE, name="other", topic="other")


def feed(guard: Guard, *batches: tuple[int, int]) -> None:
    """Batches that land."""
    for records, dead in batches:
        guard.check(STATE, records, ["why"] * dead)
        guard.add(STATE, records, dead)


def test_the_share_is_of_a_whole_window_so_that_one_bad_record_alone_stops_nothing() -> None:
    feed(Guard(0.1, 1000), (1, 1))
    feed(Guard(0.1, 1000), (100, 100))
    with pytest.raises(Systemic):
        feed(Guard(0.1, 1000), (101, 101))


def test_a_steady_share_below_the_limit_never_stops() -> None:
    feed(Guard(0.1, 1000), *[(50, 5)] * 1000)


def test_bad_records_add_up_over_batches_until_they_leave_the_window() -> None:
    guard = Guard(0.1, 1000)
    feed(guard, (500, 60), (500, 40))
    with pytest.raises(Systemic, match="101 of the last 1000 records"):
        guard.check(STATE, 0, ["why"])
    guard = Guard(0.1, 1000)
    feed(guard, (1000, 100), (1000, 0), (1000, 100))


def test_a_good_batch_is_never_to_blame() -> None:
    guard = Guard(0.1, 1000)
    with pytest.raises(Systemic):
        feed(guard, (1000, 500))
    guard.add(STATE, 1000, 500)
    feed(guard, (10, 0))


def test_a_batch_counts_when_it_has_landed_however_often_it_was_tried() -> None:
    guard = Guard(0.1, 1000)
    for _ in range(100):
        guard.check(STATE, 500, ["why"] * 60)
    guard.add(STATE, 500, 60)
    guard.check(STATE, 500, ["why"] * 40)
    with pytest.raises(Systemic, match="101 of the last 1000 records"):
        guard.check(STATE, 500, ["why"] * 41)


def test_what_is_refused_of_a_batch_counts_together_with_what_was_before() -> None:
    guard = Guard(0.1, 1000)
    guard.check(STATE, 500, ["why"] * 60)
    guard.check(STATE, 500, ["why"] * 40, before=60)
    with pytest.raises(Systemic, match=r"101 of the last 500 .* The last 41 of them were not sent"):
        guard.check(STATE, 500, ["why"] * 41, before=60)


def test_streams_do_not_count_for_each_other() -> None:
    guard = Guard(0.1, 1000)
    guard.add(STATE, 1000, 100)
    guard.check(OTHER, 1000, ["why"] * 100)


def test_a_share_of_one_lets_everything_pass() -> None:
    feed(Guard(1.0, 10), (1000, 1000))


def test_the_message_names_the_topic_the_last_reason_and_what_to_do() -> None:
    with pytest.raises(Systemic) as raised:
        Guard(0.1, 10).check(STATE, 100, ["first", "device_id is not set"])
        Guard(0.1, 10).check(STATE, 4, ["device_id is not set"] * 4)
    for text in ("4 of the last 4 records of device_state", "the limit is 10%",
                 "device_id is not set", "not sent to device_state.dlq", "headrace.v1.DeviceState",
                 "--max-dead-share"):  # fmt: skip
        assert text in str(raised.value)


def test_rubbish_from_the_start_is_stopped_before_a_share_of_the_window_has_been_sent() -> None:
    """However small its batches are: only what passed the guard is sent."""
    for size in (1, 6, 99, 100, 101, 5000):
        guard, sent = Guard(0.1, 1000), 0
        with pytest.raises(Systemic):
            for _ in range(1000):
                feed(guard, (size, size))
                sent += size
        assert sent <= 100


def test_dead_letters_are_one_line_a_topic_and_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(deadletters.time, "monotonic", lambda: now)
    lines = Lines()

    def note(count: int, reason: str, stream: Stream = STATE) -> None:
        lines.note(stream, [DeadLetter(Message(), "undecodable", reason)] * count)

    with caplog.at_level(logging.WARNING, "consumers.deadletters"):
        note(1, "the first")
        note(5, "unsaid")
        note(2, "of the other", OTHER)
        now += 61
        note(1, "the latest")
    first, other, later = [record.getMessage() for record in caplog.records]
    assert first.startswith("1 record of device_state can't")
    assert "went to device_state.dlq, see `headrace dlq ls device_state`; " in first
    assert first.endswith("the latest because: the first")
    assert other.startswith("2 records of other ")
    assert later.startswith("6 records of device_state ")
    assert later.endswith("the latest because: the latest")
