"""When a batch that is being collected is full."""

from __future__ import annotations

from confluent_kafka import Message

from consumers.batch import Partition
from consumers.collect import Collector
from consumers.limits import Limits
from consumers.work import Cursor
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
P = Partition(STREAM.topic, 0)


def test_records_that_are_bad_fill_a_batch_as_good_ones_do() -> None:
    """They are held until it has landed, too."""
    bad = [
        Message(topic=P.topic, partition=0, offset=n, value=b"\xff" * 100, timestamp=(1, 0))
        for n in range(10)
    ]
    for limits in (Limits(max_rows=10), Limits(max_bytes=1000)):
        for count in (9, 10):
            full = Collector([STREAM], limits).add(
                Cursor(P, STREAM, 0, next=0), bad[:count], 100 * count
            )
            assert (full is not None) == (count == 10)
