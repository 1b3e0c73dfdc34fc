"""Real `headrace replay` processes: events of several hours, out of order, and the stand-ins.

with Replaying.start(tmp_path, endpoints.kafka, unique("events"), stand_ins) as scene:
    scene.past(6000, hours=3)
    scene.replay("--to", "amplitude", *scene.hour(1)).finish()
    assert sorted(scene.vendors.keys("amplitude")) == sorted(scene.within(1))
"""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

from confluent_kafka import Consumer, Producer, TopicPartition
from forwarding import Forwarding
from inserter import Inserter

from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.units import HOUR_US

__all__ = ["Replaying"]

_LATE_US = 600_000_000


@dataclass
class Replaying(Forwarding):
    """See the module's comment; `times` is when each event was taken, by its id."""

    times: dict[str, int] = field(default_factory=dict)
    begin_us: int = 0

    def past(self, count: int, hours: int = 3, names: tuple[str, ...] = ("checkout",)) -> None:
        """Publish events of the last hours; one in a hundred up to ten minutes out of order.

        Kafka's timestamps are the events' own, so that they are out of order as well.
        """
        random = Random(count)
        self.begin_us = time.time_ns() // 1000 - (hours + 2) * HOUR_US
        events = []
        for n in range(count):
            at_us = self.begin_us + n * hours * HOUR_US // count
            place_us = at_us + (random.randint(-_LATE_US, _LATE_US) if n % 100 == 50 else 0)
            events.append((place_us, at_us, n))
        # A batch that is tried again (a topic just made may have no leader yet) stays in its place.
        producer = Producer({"bootstrap.servers": self.kafka, "enable.idempotence": True})
        failed: list[object] = []
        for _, at_us, n in sorted(events):
            event_id = str(uuid.UUID(int=random.getrandbits(128), version=4))
            self.times[event_id] = at_us
            data = {
                "event": names[n % len(names)], "userId": f"user-{n % 97:05}",
                "timestamp": at_us / 1e6, "properties": {"step": n, "plan": "pro"},
            }  # fmt: skip
            raw = RawEvent(
                event_id=event_id, content_type="application/json", data=json.dumps(data)
            )
            raw.received_at.FromMicroseconds(at_us)
            producer.produce(
                self.topic, raw.SerializeToString(), event_id.encode(), timestamp=at_us // 1000,
                on_delivery=lambda error, _: error and failed.append(error),
            )  # fmt: skip
        assert producer.flush(30) == 0
        assert not failed

    def hour(self, first: float, hours: float = 1) -> list[str]:
        """--from and --until of so many hours."""
        begin = self.begin_us + round(first * HOUR_US)
        return ["--from", _text(begin), "--until", _text(begin + round(hours * HOUR_US))]

    def within(self, first: float, hours: float = 1) -> list[str]:
        """Ids of the events of these hours."""
        begin = self.begin_us + round(first * HOUR_US)
        end = begin + round(hours * HOUR_US)
        return [event_id for event_id, at in self.times.items() if begin <= at < end]

    def replay(self, *args: str) -> Inserter:
        """Start a process; does not wait for it."""
        argv = ["replay", *args, "--config", str(self.config), "--kafka", self.kafka]
        log = self.folder / f"replay-{len(self.inserters)}.log"
        self.inserters.append(Inserter(self._start(argv, log), log, argv))
        return self.inserters[-1]

    @staticmethod
    def id_of(process: Inserter) -> str:
        """Which replay it is, by what it says."""
        found = re.search(r"^replay ([0-9a-f]{8})", process.output, re.MULTILINE)
        assert found is not None, process.output
        return found[1]

    def has_position(self, job_id: str) -> bool:
        """Whether the replay has committed how far it has come, in any partition."""
        asker = Consumer({"bootstrap.servers": self.kafka, "group.id": f"headrace-replay-{job_id}"})
        try:
            numbers = asker.list_topics(self.topic, 15).topics[self.topic].partitions
            asked = [TopicPartition(self.topic, number) for number in numbers]
            return any(found.offset >= 0 for found in asker.committed(asked, timeout=15))
        finally:
            asker.close()


def _text(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="microseconds")
