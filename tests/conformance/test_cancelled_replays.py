"""What is asked of a real consumer group before another replay goes into the same table."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from confluent_kafka import Consumer, TopicPartition
from waiting import until

from consumers.batch import Partition, Span
from consumers.intent import FRESH_S, Intent
from consumers.replay.job import Job, State
from consumers.replay.standing import AtWork, at_work
from headrace.stack import Endpoints
from ingest.streams import BUILT_IN
from ingest.topics import ensure


def test_a_cancelled_replay_is_at_work_while_it_is_in_its_group_or_has_announced_an_insert(
    endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    kafka = {"bootstrap.servers": endpoints.kafka}
    stream = replace(BUILT_IN["device_state"], topic=unique("topic"))
    ensure(kafka, {stream.topic: 2})
    job = Job(
        unique("job"), "clickhouse://ch/logs", stream.name, "t", 1, 9, 0.0,
        # Also of a partition that the topic has not got: it was made anew since.
        {n: Span(0, 9) for n in range(3)}, 1, state=State.CANCELLED,
    )  # fmt: skip
    never_ran = replace(job, id="never-ran")
    now_s = time.time()

    def asked() -> AtWork | None:
        return at_work(kafka, stream, [never_ran, job], now_s)

    assert asked() is None
    at = Partition(stream.topic, 1)
    intent = Intent("t", {at: Span(5, 7)}, round(now_s * 1000))
    with closing(Consumer({**kafka, "group.id": job.group, "enable.auto.commit": False})) as member:
        member.subscribe([stream.topic])
        until(lambda: member.poll(0.1) is None and len(member.assignment()) == 2, "all partitions")
        member.commit(offsets=[TopicPartition(*at, 5, intent.note())], asynchronous=False)
        assert asked() == AtWork(job, None)
        until_s = intent.at_ms / 1000 + FRESH_S
        member.unsubscribe()
        until(lambda: member.poll(0.1) is None and asked() == AtWork(job, until_s), "it is gone")
        assert at_work(kafka, stream, [job], until_s) is None, "long ago"
    with closing(Consumer({**kafka, "group.id": job.group})) as other:
        other.commit(
            offsets=[TopicPartition(*at, 7, Intent.at_rest("t").note())], asynchronous=False
        )
    assert asked() is None
