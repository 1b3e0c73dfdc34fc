"""Attempts at a destination that is away: what is said of it, and how often."""

from __future__ import annotations

import itertools
from unittest.mock import Mock

import pytest

from consumers import attempts as module
from consumers.attempts import Attempts
from consumers.errors import Fenced, Unavailable
from consumers.replay.select import Counted
from consumers.sinks import Sink
from consumers.work import Work


def test_an_outage_is_said_at_its_beginning_now_and_then_and_at_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason of then: it may be another one.

    Of an outage of Kafka's it said that PostgreSQL is away.
    """
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "_BACKOFF_FIRST_S", 0.0)
    kafka = "Kafka does not say where to go on: Broker: Not coordinator"
    reasons = iter([kafka, kafka, "starting up", None])

    def act(_sink: Sink) -> int:
        if (reason := next(reasons)) is not None:
            raise Unavailable(reason)
        return 7

    attempts = Attempts(lambda: Sink.__new__(Sink), "postgres")
    assert attempts.until_done(Work(0, {}), act) == 7
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" after")[0] for line in said] == [
        f"landing in postgres waits, trying again: {kafka}",
        "landing in postgres still waits",
        "landing in postgres goes on",
    ]
    assert said[1].endswith(": starting up")


def test_a_stop_reaches_the_attempt_that_is_under_way_whenever_it_comes() -> None:
    """Also of a replay's sink, and of one that is opened just then."""

    class Inner(Mock):
        # From Python 3.12 on a protocol's methods are looked for here, and not among a Mock's own.
        stop = Mock()

    inner = Inner()
    attempts = Attempts(lambda: Counted(inner, Mock()), "ga4")

    def act(_sink: Sink) -> None:
        attempts.stop()
        inner.stop.assert_called_once_with()
        raise Fenced("it was told to stop")

    with pytest.raises(Fenced):
        attempts.until_done(Work(0, {}), act)

    def open_sink() -> Sink:
        attempts.stop()
        return Counted(inner, Mock())

    attempts = Attempts(open_sink, "ga4")
    with pytest.raises(Fenced):
        attempts.until_done(Work(0, {}), lambda _: pytest.fail("it was told to stop"))


def test_a_sink_without_a_stop_is_left_to_end_what_it_does() -> None:
    attempts = Attempts(lambda: Counted(Mock(spec=Sink), Mock()), "postgres")
    attempts.until_done(Work(0, {}), lambda _: attempts.stop())
