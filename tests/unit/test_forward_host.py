"""Several run loops in a process: one that ends, or never does, is nobody else's matter."""

from __future__ import annotations

import threading

import pytest

from consumers.errors import Systemic
from consumers.forward.host import Host
from consumers.lanes import Totals


class Loop:
    """A run loop that ends when it is told to, or at once with an error."""

    def __init__(self, error: Exception | None = None, problem: str | None = None) -> None:
        self.error = error
        self.problem = problem
        self.away_s = 7.0 if problem else 0.0
        self._end = threading.Event()

    def stop(self) -> None:
        self._end.set()

    def run(self, *, drain: bool = False) -> Totals:
        if self.error is not None:
            raise self.error
        assert drain or self._end.wait(10), "it was told to stop"
        return Totals(rows=3)


def test_one_that_a_person_has_to_mend_ends_alone() -> None:
    good, bad = Loop(), Loop(Systemic("heap refuses us"))
    host = Host({"ga4": good, "heap": bad})
    running = threading.Thread(target=host.run)
    running.start()
    try:
        give_up = threading.Event()
        while "heap" not in host.failed:
            assert not give_up.wait(0.01)
        assert running.is_alive()
        assert host.problem == "heap has stopped: heap refuses us"
    finally:
        host.stop()
        running.join(10)
    assert host.totals["ga4"].rows == 3
    assert list(host.failed) == ["heap"]


def test_what_is_wrong_is_said_vendor_by_vendor() -> None:
    host = Host({"ga4": Loop(problem="away"), "heap": Loop(), "posthog": Loop(problem="placing")})
    assert host.problem == "ga4: away; posthog: placing"
    assert host.away_s == 7.0
    assert Host({"heap": Loop()}).problem is None


def test_a_bug_in_one_is_an_error_of_that_one(caplog: pytest.LogCaptureFixture) -> None:
    host = Host({"ga4": Loop(KeyError("x")), "heap": Loop()})
    host.run(drain=True)
    assert isinstance(host.failed["ga4"], KeyError)
    assert host.totals["heap"].rows == 3
    assert "has stopped by a bug" in caplog.text
