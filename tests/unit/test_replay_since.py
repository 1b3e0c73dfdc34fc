"""Since when a vendor lacks events: what Kafka says while it can, and what is remembered of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import Partition, Span
from consumers.bounds import Bounds
from consumers.errors import Unavailable
from consumers.replay import keeper
from consumers.replay.keeper import Since

TOPIC = "raw_events"


class Log:
    """Records by their offsets, published at these times (ms); `committed` is the group's."""

    def __init__(self, *partitions: Mapping[int, int]) -> None:
        self.records = list(partitions)
        self.low = [0] * len(partitions)
        self.committed = [-1] * len(partitions)
        self.reads: list[dict[int, Span]] = []
        self.expire_at_read: int | None = None
        self.away = False

    def bounds(self, *_: object) -> Bounds:
        if self.away:
            raise Unavailable("away, by the test")
        spans = {
            n: Span(low, max([low, *(at + 1 for at in records)]))
            for n, (low, records) in enumerate(zip(self.low, self.records, strict=True))
        }
        return Bounds(spans, ())

    def read(
        self, _kafka: object, topic: str, spans: Mapping[int, Span]
    ) -> Iterator[tuple[Partition, list[Message]]]:
        self.reads.append(dict(spans))
        if self.expire_at_read is not None:
            self.low[0] = self.expire_at_read
        for n, span in spans.items():
            for at, ms in self.records[n].items():
                if max(span.start, self.low[n]) <= at < span.end:
                    record = Message(topic=topic, partition=n, offset=at, timestamp=(1, ms))
                    yield Partition(topic, n), [record]

    def since(self, monkeypatch: pytest.MonkeyPatch) -> Since:
        monkeypatch.setattr(keeper, "bounds", self.bounds)
        monkeypatch.setattr("consumers.bounds.read", self.read)
        monkeypatch.setattr(keeper, "Lookup", lambda *_: _Group(self.committed))
        return Since({}, "headrace-forward-heap", TOPIC)


class _Group:
    def __init__(self, committed: list[int]) -> None:
        self._at = committed

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return {p: self._at[p.number] for p in partitions}

    def close(self) -> None: ...


def test_it_is_the_first_record_of_all_ranges_also_behind_a_marker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log({0: 100, 3: 900, 4: 950}, {7: 800, 8: 850})
    since = log.since(monkeypatch)
    assert since.of({0: Span(1, 5), 1: Span(8, 9)}) == 850
    assert since.of({0: Span(1, 5)}) == 900
    assert since.of({0: Span(1, 5), 1: Span(7, 9)}) == 800
    assert log.reads == [{0: Span(1, 5), 1: Span(8, 9)}, {1: Span(7, 9)}], "nothing twice"


def test_what_retention_removes_is_known_from_the_time_when_it_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On day 7 the forwarder is started, on day 8 the vendor is back, and day 0 is gone."""
    log = Log({10: 5, 11: 6, 20: 7000, 21: 8000})
    log.committed = [10]
    since = log.since(monkeypatch)
    since.look()
    log.low = [20]
    assert since.of({0: Span(10, 22)}) == 5
    assert since.of({0: Span(12, 22)}) == 5, "the batch that was held is done by then"
    assert since.of({0: Span(21, 22)}) == 8000


def test_of_what_was_gone_before_it_was_looked_at_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log({10: 500, 20: 7000}, {0: 100})
    log.low = [20, 0]
    log.committed = [10, 0]
    since = log.since(monkeypatch)
    since.look()
    assert since.of({0: Span(10, 21), 1: Span(0, 1)}) == 0
    assert since.of({0: Span(20, 21), 1: Span(0, 1)}) == 100


def test_a_beginning_that_goes_while_it_is_read_is_not_dated_by_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log({10: 500, 20: 7000})
    log.expire_at_read = 20
    since = log.since(monkeypatch)
    assert since.of({0: Span(10, 21)}) == 0


def test_where_nothing_is_waiting_yet_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log({10: 500}, {})
    log.committed = [11, -1]
    since = log.since(monkeypatch)
    before_ms = time.time_ns() // 1_000_000
    since.look()
    log.records = [{10: 500, 11: before_ms + 50}, {0: before_ms + 60, 1: before_ms + 70}]
    log.low = [12, 1]
    assert before_ms <= since.of({0: Span(11, 12), 1: Span(0, 2)}) <= time.time_ns() // 1_000_000


def test_while_kafka_is_away_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log({10: 500})
    since = log.since(monkeypatch)
    log.away = True
    with pytest.raises(Unavailable):
        since.look()
    log.away = False
    assert since.of({0: Span(10, 11)}) == 500


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5),
    st.integers(0, 30), st.integers(0, 30),
)  # fmt: skip
def test_no_record_is_older_than_it_says_whenever_one_looks_and_whatever_goes(
    steps: list[int], looks: list[tuple[int, int]], start: int, low: int
) -> None:
    times = [1000 + sum(steps[: n + 1]) for n in range(len(steps))]
    with pytest.MonkeyPatch.context() as monkeypatch:
        log = Log(dict(enumerate(times)))
        since = log.since(monkeypatch)
        for position, gone in sorted(looks):
            log.committed = [min(position, len(times))]
            log.low = [max(log.low[0], min(gone, len(times)))]
            since.look()
        start = max(min(start, len(times) - 1), log.committed[0] if log.committed[0] >= 0 else 0)
        log.low = [max(log.low[0], min(low, len(times)))]
        if start < len(times):
            found = since.of({0: Span(start, len(times))})
            assert found <= times[start]
            if log.low[0] <= start:
                assert found == times[start], "as long as Kafka knows, it is exact"
