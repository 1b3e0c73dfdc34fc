"""A call that may not come back: it is waited for within bounds, and its own errors are kept."""

from __future__ import annotations

import threading
import time

import pytest

from ingest.spool.patience import Hung, beside, within


def test_a_call_is_made_and_what_it_raises_is_raised() -> None:
    done: list[int] = []
    within(10, lambda: done.append(1), lambda: False)
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 / 0, lambda: False)


@pytest.mark.parametrize(("seconds", "stopping"), [(0.05, False), (60.0, True)])
def test_a_call_that_does_not_come_back_is_left_behind(seconds: float, stopping: bool) -> None:
    """After its time, and soon when there is no time to wait for it."""
    gate = threading.Event()
    began = time.monotonic()
    try:
        with pytest.raises(Hung):
            within(seconds, gate.wait, lambda: stopping)
    finally:
        gate.set()
    assert time.monotonic() - began < 10


def test_a_call_beside_others_is_waited_for_where_its_result_is_asked_for() -> None:
    gate = threading.Event()
    result = beside(lambda: gate.wait(60))
    gate.set()
    assert result() is True
    failed = beside(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failed()
