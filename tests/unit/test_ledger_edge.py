"""What relays say of their transactions, added up; and when the way into Kafka adds up."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from confluent_kafka import Message

from consumers.batch import Span
from consumers.bounds import Bounds
from consumers.ledger import edge
from consumers.ledger.accepted import Book, Key
from consumers.ledger.crossing import Crossing, Node
from consumers.ledger.edge import Edge, _heard, _sums
from consumers.ledger.sent import folded
from ingest.spool.entry import EDGE, RelayEntry, RelaySum
from ingest.spool.frames import Record
from ingest.spool.reader import Reader
from ingest.spool.store import Store

IDS = {"t": "id"}


def entry(first: int, end: int, *, records: int = -1, hour: int = 7, stored: int = 0) -> RelayEntry:
    """A transaction of node n with the numbers [first, end)."""
    count = end - first if records < 0 else records
    return RelayEntry("n", first, end, stored or end, hour, {("t", "web"): RelaySum(count, count)})


def gaps(
    entries: Sequence[RelayEntry], known: Mapping[Key, Sequence[int]] | None = None
) -> list[list[int]]:
    """Never sent and sent twice, by the hour."""
    return [list(v) for v in folded(entries, IDS, known or {}, {}, {})["gap"].values()]


def test_an_entry_is_read_as_it_was_written() -> None:
    one = RelayEntry(
        "n", 3, 9, 12, 480_000, {("t", ""): RelaySum(5, 2**40), ("t", "ünd\n"): RelaySum(1, 7)}
    )
    assert RelayEntry.read(one.pack()) == one


@pytest.mark.parametrize("value", [b"{}", b"[]", b'"n"', b'{"node": 1}'])
def test_what_is_no_entry_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="no entry"):
        RelayEntry.read(value)


def test_numbers_that_follow_each_other_leave_no_gap() -> None:
    assert gaps([entry(0, 5), entry(5, 9), entry(9, 10)]) == []
    assert gaps([entry(5, 9)], {("n",): [5, 5]}) == []


def test_a_node_that_is_met_in_the_middle_begins_there() -> None:
    assert gaps([entry(1000, 1010), entry(1010, 1020)]) == []


def test_numbers_left_out_and_sent_again_are_counted() -> None:
    assert gaps([entry(0, 5), entry(7, 9)]) == [[2, 0]]
    assert gaps([entry(0, 5, records=4)]) == [[1, 0]], "cut out of a batch"
    assert gaps([entry(0, 5), entry(3, 8)]) == [[0, 2]]
    assert gaps([entry(0, 5), entry(0, 3), entry(5, 6)]) == [[0, 3]], "nothing is missing behind"
    assert gaps([entry(6, 9)], {("n",): [4, 4]}) == [[2, 0]]


def test_sums_are_added_to_those_before_for_each_hour_and_source() -> None:
    before: dict[Key, Sequence[int]] = {("t", "id", 7, "web"): (10, 10)}
    found = folded([entry(0, 5), entry(5, 6), entry(6, 8, hour=8)], IDS, {}, before, {})
    assert found["sent"] == {
        ("t", "id", 7, "web"): RelaySum(16, 16), ("t", "id", 8, "web"): RelaySum(2, 2)
    }  # fmt: skip
    assert found["node"] == {("n",): [8, 8]}
    assert found["heard"] == {("hour", "n"): [8]}


def test_what_waits_is_what_was_stored_and_is_in_no_entry() -> None:
    assert folded([entry(0, 5, stored=12)], IDS, {}, {}, {})["node"] == {("n",): [5, 12]}
    assert folded([entry(0, 5, stored=3)], IDS, {}, {}, {})["node"] == {("n",): [5, 5]}


def test_a_book_is_read_by_a_headrace_from_before_and_one_from_before_is_read() -> None:
    """That one takes just one number for how far it has heard, and two for a node."""
    kept = folded([entry(0, 5, stored=12)], IDS, {}, {}, {})
    kept["heard"] |= _heard("an id", 9, 77)
    (at,) = kept["heard"]["an id",]
    for (_,), (following, stored) in kept["node"].items():
        assert (at, following, stored) == (9, 5, 12)
    book = SimpleNamespace(kept=lambda kind: kept.get(kind, {}))
    ledger = Edge({"bootstrap.servers": "nowhere"}, cast(Book, book))
    assert ledger.nodes(0, 9) == [Node("n", 5, 7, 0, 0, 7)]
    kept["heard"] = {("an id",): [9]}
    assert ledger.nodes(0, 9) == [Node("n", 5, 7, 0, 0, None)]


@pytest.mark.parametrize(
    ("accepted", "entered", "holds"),
    [
        (RelaySum(3, 30), RelaySum(3, 30), True),
        (RelaySum(3, 30), RelaySum(3, 31), False),
        (RelaySum(3, 30), RelaySum(2, 30), False),
        # Published past the edge, too: which those are nobody knows.
        (RelaySum(3, 30), RelaySum(4, 99), True),
    ],
)
def test_an_hour_holds_where_all_that_was_sent_is_there(
    accepted: RelaySum, entered: RelaySum, holds: bool
) -> None:
    line = Crossing("s", 7, {"web": 3}, accepted, entered, 0, partial=False)
    assert line.holds is holds


def test_what_could_not_be_counted_excuses_what_it_can_explain() -> None:
    """Expired records are fewer in the topic; notes that were not heard are fewer accepted."""
    more, other, fewer = RelaySum(4, 40), RelaySum(3, 31), RelaySum(2, 20)
    line = Crossing("s", 7, {"web": 3}, RelaySum(3, 30), RelaySum(3, 30), 0, partial=False)
    for entered in (more, other, fewer):
        assert replace(line, entered=entered, partial=True).holds
    for entered, holds in ((more, True), (other, True), (fewer, False)):
        assert replace(line, entered=entered, unheard=True).holds is holds
    assert not replace(line, partial=True).judged
    assert not replace(line, unheard=True).judged


def test_a_batch_adds_up_each_source_wherever_it_is_cut(tmp_path: Path) -> None:
    records = [
        Record(f"t{n % 2}", None, b"value %d" % n, None, ("web", "", "ios")[n % 3])
        for n in range(50)
    ]
    store = Store(tmp_path)
    store.append([records[:30], records[30:]])
    reader = Reader(tmp_path)
    for most in (1, 7, 50):
        found: dict[tuple[str, str], RelaySum] = {}
        following = 0
        while (batch := reader.batch(following, most, 10**6)) is not None:
            assert batch.first == following
            following = batch.end
            for whose, one in batch.sums.items():
                found[whose] = found.get(whose, RelaySum(0, 0)).plus(one)
        for (topic, source), one in found.items():
            mine = [r.value for r in records if (r.topic, r.source) == (topic, source)]
            assert one == RelaySum(len(mine), sum(map(zlib.crc32, mine)))
        assert sum(one.records for one in found.values()) == len(records)
    assert [r.source for r in reader.read(0, 50, 10**6)] == [r.source for r in records]
    reader.close()
    store.close()


def test_what_a_topic_holds_is_summed_up_by_the_hour_of_each_record() -> None:
    def record(hour: int, value: bytes) -> Message:
        return Message(topic="t", partition=0, value=value, timestamp=(1, hour * 3_600_000 + 5))

    found = _sums([record(7, b"a"), record(7, b"b"), record(8, b"c")])
    assert found == {
        7: RelaySum(2, zlib.crc32(b"a") + zlib.crc32(b"b")),
        8: RelaySum(1, zlib.crc32(b"c")),
    }


@pytest.mark.parametrize(
    ("spans", "doubted"), [([(0, 5), (0, 0)], False), ([(0, 5), (0, 2)], True)]
)
def test_what_relays_have_said_in_partitions_that_are_not_read_is_a_doubt(
    spans: list[tuple[int, int]], doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three spools the audit had heard of one, and said that all were there, each once."""
    there = Bounds({n: Span(*span) for n, span in enumerate(spans)}, ())
    monkeypatch.setattr(edge, "bounds", lambda *_, **__: there)
    monkeypatch.setattr(edge, "pieces", lambda *_: [])
    book = SimpleNamespace(kept=lambda _kind: {}, keep=lambda _changed: None)
    ledger = Edge({"bootstrap.servers": "nowhere"}, cast(Book, book))
    monkeypatch.setattr(ledger, "_ids", lambda _names: {EDGE: "id"})
    ledger._hear()
    assert bool(ledger.doubts) is doubted
