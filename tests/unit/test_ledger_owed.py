"""What ClickHouse's ledger is owed travels in the metadata of offsets, of which Kafka takes 4096 bytes."""  # noqa: E501

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_truth import owed_in

from consumers.batch import Partition, Span
from consumers.destinations import destination
from consumers.errors import Systemic
from consumers.intent import Intent, Newest
from consumers.ledger.owed import BATCHES, Owed
from consumers.ledger.tally import MODULUS, Entry, Sum
from ingest.streams import MAX_TIME_US, MIN_TIME_US

SUMS = st.builds(Sum, st.integers(0, 500_000), st.integers(0, MODULUS - 1))
HOURS = st.integers(MIN_TIME_US // 3_600_000_000, MAX_TIME_US // 3_600_000_000)
BATCH = st.builds(
    lambda entries, size: (entries, size),
    st.dictionaries(HOURS, st.builds(Entry, SUMS, st.just(0), SUMS), max_size=20),
    st.integers(0, 500_000),
)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**62), st.lists(BATCH, min_size=1, max_size=20))
def test_what_is_owed_and_the_largest_intent_fit_into_metadata(
    start: int, batches: list[tuple[dict[int, Entry], int]]
) -> None:
    most = destination("clickhouse://h").limits.max_partitions
    assert most is not None
    # The longest name that Kafka allows a topic.
    spans = {Partition("t" * 249, n): Span(2**63 - 9, 2**63 - 1) for n in range(1000, 1000 + most)}
    newest = Newest(Span(2**63 - 9, 2**63 - 1), MIN_TIME_US // 3_600_000_000, 2**32 - 1)
    intent = Intent("A" * 22, spans, 2**41, newest=newest)
    owed: Owed | None = None
    for entries, size in batches:
        one = Owed(Span(start, start + size), 1, entries)
        owed = owed.then(one) if owed else one
        start += size
        if owed.full:
            owed = None
            continue
        for said in (replace(intent, owed=owed), Intent("A" * 22, {}, 0, owed, newest)):
            assert len(said.note()) <= 4096
            assert Intent.read(said.note()) == said
            assert owed_in(said.note())[0] == owed.span.start


def test_it_is_full_after_some_batches_or_many_hours() -> None:
    owed = Owed(Span(0, 1), 1, {7: Entry(Sum(1, 5))})
    for number in range(1, BATCHES):
        owed = owed.then(Owed(Span(number, number + 1), 1, {7: Entry(Sum(1, 5))}))
        assert not owed.full
    owed = owed.then(Owed(Span(BATCHES, 99), 1, {8: Entry(dead=Sum(1, 6))}))
    entries = {7: Entry(Sum(BATCHES, 5 * BATCHES)), 8: Entry(dead=Sum(1, 6))}
    assert owed == Owed(Span(0, 99), BATCHES + 1, entries)
    assert owed.full
    assert Owed(Span(0, 99), 1, {hour: Entry(Sum(1, 5)) for hour in range(17)}).full
    assert not Owed(Span(0, 99), 1, {hour: Entry(Sum(1, 5)) for hour in range(16)}).full


@pytest.mark.parametrize("owed", [7, [1, 2, 3], [1, 2, 3, [[1, 2]]]])
def test_metadata_of_another_program_is_said_to_be_that(owed: object) -> None:
    note = orjson.dumps({**orjson.loads(Intent.at_rest("t").note()), "owed": owed}).decode()
    with pytest.raises(Systemic, match="metadata that is not ours"):
        Intent.read(note)
