"""Questions that are asked several at a time, and their answers."""

from __future__ import annotations

import threading

import pytest

from consumers.together import together

TIMEOUT_S = 10.0


def test_several_are_asked_at_a_time_and_answers_keep_their_order() -> None:
    both = threading.Barrier(2)

    def ask(n: int) -> int:
        both.wait(TIMEOUT_S)  # nobody passes it alone
        return n

    assert list(together(ask, range(20))) == list(range(20))


def test_no_more_than_four_are_ahead() -> None:
    asked: list[int] = []
    answers = together(lambda n: asked.append(n) or n, range(20))
    assert next(answers) == 0
    assert set(asked) <= set(range(4))
    answers.close()
    assert set(asked) <= set(range(4))


def test_who_fails_does_so_in_turn_and_those_behind_are_not_asked() -> None:
    asked: list[int] = []

    def ask(n: int) -> int:
        asked.append(n)
        if n == 3:
            raise LookupError
        return n

    answers = together(ask, range(100))
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError):
        next(answers)
    assert len(asked) <= 3 + 4


def test_who_stops_listening_waits_for_nobody() -> None:
    """A program that ends with Ctrl-C does not either: its threads are daemons."""
    over, begun = threading.Event(), threading.Event()
    daemons = []

    def ask(n: int) -> int:
        if n:
            daemons.append(threading.current_thread().daemon)
            begun.set()
            assert over.wait(TIMEOUT_S)
        return n

    answers = together(ask, range(8))
    assert next(answers) == 0
    assert begun.wait(TIMEOUT_S)
    answers.close()
    assert not over.is_set()
    assert all(daemons)
    over.set()
