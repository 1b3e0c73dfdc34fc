"""When `--drain` has reached its goal: all has landed, of ours and of others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from consumers import drain
from consumers.batch import Partition
from consumers.drain import Goal
from consumers.errors import Systemic, Unavailable
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
