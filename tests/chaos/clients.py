"""Clients of a schedule: they write down each id before they send it and after its answer.

Devices send events to the collector, one request after the other, again under the same ids until
they are acknowledged. Some requests are sent twice on purpose, behind or beside each other; one in
a hundred holds an event that must be refused. Publishers write to Kafka themselves, one record in a
hundred of them poison. The clock of some is off by hours.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chaos.edge import Connection
from chaos.schedule import Schedule
from confluent_kafka import Producer

from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["Clients"]

_TOGETHER = 5
_POISON = _REFUSED = 0.01
_DOUBLE = 0.03
# Between two requests of a device; Amplitude takes 30 events a second of one, and no more.
_PAUSE_S = (0.1, 0.5)
# Users: vendors count how much each one sends.
_USERS = 400
# A record of each direct publisher, every so often.
_EVERY_S = 0.05


class Clients:
    """All of them, in threads of their own; told to stop, each ends with its last answer."""

    def __init__(self, schedule: Schedule, port: int, kafka: str, topic: str, path: Path) -> None:
        self._schedule, self._port, self._kafka, self._topic = schedule, port, kafka, topic
        self._lock = threading.Lock()
        self._path = path
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        work = [self._devices, *(self._publisher(n) for n in range(len(schedule.publishers)))]
        self._threads = [
            threading.Thread(target=self._kept, args=(each,), name="client", daemon=True)
            for each in work
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Nothing new; does not wait."""
        self._stop.set()

    @property
    def waiting(self) -> bool:
        """Whether one of them still has no answer. Raises what went wrong with one of them."""
        if self._failed:
            raise self._failed[0]
        return any(thread.is_alive() for thread in self._threads)

    def _kept(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            self._failed.append(error)

    def _note(self, what: str, key: str, ids: Sequence[str]) -> None:
        line = json.dumps({"what": what, "key": key, "ids": list(ids)}) + "\n"
        with self._lock, self._path.open("a") as file:
            file.write(line)

    # -- over HTTP

    def _devices(self) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self._device(n) for n in range(len(self._schedule.devices))))

        asyncio.run(all_of_them())

    async def _device(self, number: int) -> None:
        key = f"device-{number}"
        chance = random.Random(f"{self._schedule.seed} {key}")
        path = "/v1/events?ack=kafka" if number % 6 == 1 else "/v1/events"
        async with Connection(self._port) as one, Connection(self._port) as other:
            while not self._stop.is_set():
                count = chance.choice([1, 1, _TOGETHER])
                events = [self._event(chance, key, number) for _ in range(count)]
                ids = [event["eventId"] for event in events]
                bad = []
                if chance.random() < _REFUSED:
                    bad = [self._event(chance, key, number) | {"event": ""}]
                    self._note("refused", key, [bad[0]["eventId"]])
                self._note("private", key, [e["eventId"] for e in events if e["event"] == "secret"])
                self._note("sent", key, ids)
                body = json.dumps(events + bad).encode()
                lot = chance.random()
                both = (one, other) if lot < _DOUBLE else (one,)
                await asyncio.gather(*(_until_taken(each, path, body) for each in both))
                # Several workers keep no order between connections, and a kill makes new ones.
                self._note("acked", key if self._schedule.workers == 1 else "", ids)
                if _DOUBLE <= lot < 2 * _DOUBLE:
                    await _until_taken(one, path, body)
                await asyncio.sleep(chance.uniform(*_PAUSE_S))

    def _event(self, chance: random.Random, key: str, number: int) -> dict[str, Any]:
        user = chance.randrange(_USERS)
        return {
            "event": "secret" if chance.random() < 0.05 else "checkout",
            "eventId": str(uuid.uuid4()),
            "deviceId": key,
            "userId": f"user-{user:05}",
            "timestamp": time.time() + self._schedule.devices[number],
            "properties": {"step": user, "plan": "pro", "not_listed": "x"},
        }

    # -- to Kafka itself

    def _publisher(self, number: int) -> Any:
        return lambda: self._publish(f"publisher-{number}", self._schedule.publishers[number])

    def _publish(self, key: str, off_s: int) -> None:
        chance = random.Random(f"{self._schedule.seed} {key}")
        producer = Producer(
            {"bootstrap.servers": self._kafka, "acks": "all", "enable.idempotence": True,
             # With more, librdkafka doubles records when a broker comes back (its issue 4953).
             "max.in.flight.requests.per.connection": 1,
             "message.timeout.ms": 0, "partitioner": "murmur2_random", "log_level": 0,
             "reconnect.backoff.max.ms": 500, "topic.metadata.refresh.interval.ms": 2000}
        )  # fmt: skip
        refused: list[Any] = []

        def answered(ident: str) -> Any:
            def note(error: Any, _message: Any) -> None:
                if error is None:
                    self._note("acked", key, [ident])
                else:
                    refused.append(error)

            return note

        while not self._stop.wait(_EVERY_S * chance.uniform(0.5, 1.5)):
            now = time.time() + off_s
            ident = str(uuid.uuid4())
            if chance.random() < _POISON:
                ident = f"poison-{ident}"
                value = ident.encode()
                self._note("poison", key, [ident])
            else:
                # Of many devices, although all have one key: 30 a second of each, see above.
                device = f"{key}-{chance.randrange(20)}"
                event = self._event(chance, device, 0) | {"eventId": ident, "event": "checkout"}
                raw = RawEvent(
                    event_id=ident, content_type="application/json", data=json.dumps(event)
                )
                raw.received_at.FromMicroseconds(int(min(now, time.time()) * 1e6))
                value = raw.SerializeToString()
            self._note("sent", key, [ident])
            producer.produce(
                self._topic, value, key, timestamp=int(now * 1000), on_delivery=answered(ident)
            )
            producer.poll(0)
        left = producer.flush(60)
        assert not left and not refused, (left, refused[:1])


async def _until_taken(connection: Connection, path: str, body: bytes) -> None:
    """Again and again, until it is acknowledged."""
    while True:
        try:
            status = await connection.post(path, body, timeout_s=5.0)
        except (OSError, EOFError, TimeoutError):
            await asyncio.sleep(0.05)
            continue
        if status == 202:
            return
        assert status in (503, 504), f"the collector answers {status}"
        await asyncio.sleep(0.1)
