"""The breaker opens on failures in a row, asks with one request, and believes the vendor."""

from __future__ import annotations

from consumers.forward.breaker import Breaker, State


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        breaker.sent()
        breaker.failed(at, 1.0)
    return breaker


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0, 1.0)
    assert breaker.may_send(0.0)
    breaker.answered()
    for _ in range(4):
        breaker.failed(0.0, 1.0)
    assert breaker.may_send(0.0)
    breaker.failed(0.0, 1.0)
    assert (breaker.state, breaker.may_send(0.0)) == (State.OPEN, False)


def test_after_its_pause_one_request_asks_and_its_answer_closes() -> None:
    breaker = opened()
    assert not breaker.may_send(0.49)
    assert breaker.may_send(0.5)
    breaker.sent()
    assert not breaker.may_send(0.5)
    breaker.answered()
    assert (breaker.state, breaker.may_send(0.5)) == (State.CLOSED, True)


def test_pauses_grow_to_two_seconds_while_it_stays_away() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(5):
        pauses.append(breaker.due - now)
        now = breaker.due
        assert breaker.may_send(now)
        breaker.sent()
        breaker.failed(now, 1.0)
    assert pauses == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_a_vendor_that_says_when_to_come_again_is_believed_at_once() -> None:
    breaker = Breaker()
    breaker.failed(10.0, 0.5, 30.0)
    assert not breaker.may_send(39.9)
    assert breaker.may_send(40.0)


def test_what_was_under_way_when_it_opened_does_not_lengthen_the_pause() -> None:
    breaker = opened()
    breaker.failed(0.4, 1.0)
    assert breaker.due == 0.5


def test_a_question_that_was_abandoned_may_be_asked_again() -> None:
    breaker = opened()
    assert breaker.may_send(1.0)
    question = breaker.sent()
    breaker.gave_up(question)
    assert breaker.may_send(1.0)


def test_who_gives_up_late_gives_up_no_question_of_another() -> None:
    breaker = opened()
    assert breaker.may_send(1.0)
    question = breaker.sent()
    breaker.failed(1.0, 1.0)
    assert breaker.may_send(breaker.due)
    assert breaker.sent() != question
    breaker.gave_up(question)
    assert not breaker.may_send(breaker.due)
