"""When `--drain` has reached its goal: all has landed, of ours and of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from consumers import drain
from consumers.batch import Partition
from consumers.drain import Goal
from consumers.errors import SinkError, Systemic, Unavailable
from consumers.work import Cursor
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
P, Q, EMPTY = (Partition(STREAM.topic, number) for number in range(3))
ENDS = {P: 5, Q: 5, EMPTY: 0}


class Others:
    """How far others are, by the destination or by the group's offsets."""

    def __init__(self, by_destination: bool) -> None:
        self.at: dict[Partition, int] = {EMPTY: 0}
        self.fails: Exception | None = None
        source: Any = SimpleNamespace(committed=self._committed)
        self.goal = Goal(source, ENDS, self._landed if by_destination else None)

    def _landed(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        """Without those that nobody has begun."""
        if self.fails is not None:
            raise self.fails
        return {p: self.at[p] for p in partitions if p in self.at}

    def _committed(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, -1) | self._landed(partitions)


@pytest.fixture(params=["by the destination", "by the group"])
def others(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Others:
    monkeypatch.setattr(drain, "_ASK_EVERY_S", 0.0)
    return Others(request.param == "by the destination")


def ours(*partitions: Partition) -> dict[Partition, Cursor]:
    """Read and landed to the end."""
    return {p: Cursor(p, STREAM, 0, next=ENDS[p], landed=ENDS[p]) for p in partitions}


def test_a_drain_ends_when_all_has_landed_and_not_when_it_is_read(others: Others) -> None:
    mine = ours(P, Q, EMPTY)
    assert others.goal.landed(mine)
    mine[Q].landed = 4
    assert others.goal.read(mine)
    assert not others.goal.landed(mine)


@pytest.mark.parametrize("trouble", [Unavailable, Systemic])
def test_a_drain_waits_for_the_partitions_of_others(
    others: Others, trouble: type[Exception]
) -> None:
    mine = ours(EMPTY)
    others.at |= {P: 5}
    assert not others.goal.landed(mine), "nobody has begun with one"
    others.at |= {Q: 4}
    assert not others.goal.landed(mine)
    others.at |= {Q: 5}
    others.fails = trouble("by the test")
    assert not others.goal.landed(mine), "nobody knows"
    others.fails = None
    assert others.goal.landed(mine)


def test_a_database_that_thinks_for_long_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop has to stay in its group, and to hear a stop."""
    monkeypatch.setattr(drain, "_SAY_EVERY_S", -1.0)
    gate, asked = threading.Semaphore(0), 0
    answers: list[dict[Partition, int] | SinkError] = [Systemic("no such table"), {P: 3}]

    def ask(_: Collection[Partition]) -> dict[Partition, int]:
        nonlocal asked
        asked += 1
        assert gate.acquire(timeout=30)
        one = answers.pop(0)
        if isinstance(one, SinkError):
            raise one
        return one

    def after(answer: drain.Ask) -> Mapping[Partition, int]:
        """What is answered in the end, as the loop asks."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(Unavailable):
                return answer([P])
            time.sleep(0.001)
        raise AssertionError("no answer")

    answer = drain.without_waiting(ask)
    for _ in range(5):
        with pytest.raises(Unavailable):
            answer([P])
    assert asked == 1
    gate.release(2)
    assert after(answer) == {P: 3}
    assert "how far others have come is not known: no such table" in caplog.text
