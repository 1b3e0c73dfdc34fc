"""Records as a source gives them, by their partitions."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from consumers.batch import Partition
from consumers.fetch import by_partition


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=9))
def test_each_message_stands_under_its_own_partition_in_order(
    places: Sequence[tuple[str, int]],
) -> None:
    messages = [
        Message(topic=topic, partition=number, offset=n) for n, (topic, number) in enumerate(places)
    ]
    runs = by_partition(messages)
    assert {p: [m.offset() for m in run] for p, run in runs.items()} == {
        Partition(*place): [n for n, other in enumerate(places) if other == place]
        for place in places
    }
    if len({topic for topic, _ in places}) == 1:
        assert by_partition(messages, places[0][0]) == runs
