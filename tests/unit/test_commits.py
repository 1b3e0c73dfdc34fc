"""Commits: a lane hears whether all of its own is committed, and of what is in doubt nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from consumers import commits
from consumers.batch import Partition
from consumers.client import OWNERSHIP_LOST
from consumers.commits import Commits
from consumers.errors import Fenced, Unavailable

P, Q = Partition("t", 0), Partition("t", 1)
PATIENCE_S = 10.0


class Client:
    """The consumer: what the commit of each partition is answered with, and when."""

    def __init__(self, *codes: int | None) -> None:
        self._codes = codes
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.taken: list[dict[int, int]] = []

    def commit(self, offsets: Sequence[TopicPartition], asynchronous: bool) -> list[Any]:
        assert not asynchronous
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        self.taken.append({p.partition: p.offset for p in offsets})
        codes = self._codes or [None] * len(offsets)
        return [SimpleNamespace(error=None if code is None else KafkaError(code)) for code in codes]


class Lane:
    """Commits in a thread of its own; `ended` is how."""

    def __init__(self, owner: Commits, *partitions: Partition) -> None:
        self._owner, self._partitions = owner, partitions
        self.ended: list[Exception | None] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._owner.commit(dict.fromkeys(self._partitions, 5))
            self.ended.append(None)
        except Exception as error:
            self.ended.append(error)


def owned(*partitions: Partition) -> Commits:
    one = Commits()
    one.given(partitions)
    one.found(one.turns(partitions))
    return one


def outcome(owner: Commits, client: Client, *partitions: Partition) -> Exception | None:
    """What a lane hears whose commit the polling thread serves."""
    lane = Lane(owner, *partitions)
    while lane.thread.is_alive():
        owner.serve(client)  # type: ignore[arg-type] # as much as it needs
        lane.thread.join(0.005)
    (error,) = lane.ended
    return error


def test_a_commit_of_which_one_partition_is_refused_is_not_taken_for_done() -> None:
    assert outcome(owned(P, Q), Client(None, None), P, Q) is None
    loading = Client(None, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    assert isinstance(outcome(owned(P, Q), loading, P, Q), Unavailable)
    lost = Client(None, next(iter(OWNERSHIP_LOST)))
    assert isinstance(outcome(owned(P, Q), lost, P, Q), Fenced)


def test_a_commit_is_of_all_its_partitions_or_of_none() -> None:
    one, client = owned(P, Q), Client()
    one.gone([Q])
    assert isinstance(outcome(one, client, P, Q), Fenced)
    assert not client.taken


@pytest.mark.parametrize("code", [None, KafkaError.REQUEST_TIMED_OUT])
def test_a_commit_that_is_under_way_when_its_time_is_over_is_waited_for(
    code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is over nobody knows whether it counts."""
    one, client = owned(P), Client(code)
    client.go_on.clear()

    class Late(Future[None]):
        """Its time is over as soon as the commit has begun."""

        def result(self, timeout: float | None = None) -> None:
            if timeout is not None:
                assert client.begun.wait(PATIENCE_S)
                raise TimeoutError
            super().result()

    def poll() -> None:
        while not client.begun.wait(0.001):
            one.serve(client)  # type: ignore[arg-type] # as much as it needs

    monkeypatch.setattr(commits, "Future", Late)
    polling = threading.Thread(target=poll)
    polling.start()
    lane = Lane(one, P)
    try:
        assert client.begun.wait(PATIENCE_S)
        lane.thread.join(0.1)
        assert not lane.ended, "nobody knows yet"
    finally:
        client.begun.set()
        client.go_on.set()
        lane.thread.join(PATIENCE_S)
        polling.join(PATIENCE_S)
    (error,) = lane.ended
    assert (error is None) == (code is None)


def test_a_commit_that_was_not_begun_in_time_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_WAIT_S", 0.01)
    one, client = owned(P), Client()
    with pytest.raises(Unavailable):
        one.commit({P: 5})
    one.serve(client)  # type: ignore[arg-type] # as much as it needs
    assert not client.taken
