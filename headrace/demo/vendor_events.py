"""Product events, sent to the collector at a steady pace by a thread; all are acknowledged."""

from __future__ import annotations

import http.client
import threading
import time
import uuid
from random import Random
from urllib.parse import urlsplit

import orjson

from headrace.demo.model import DemoError
from headrace.demo.vendor_count import Sent
from headrace.demo.vendor_setup import event
from headrace.fleet import seeded

__all__ = ["Events"]

_EVERY_S, _BATCH = 0.1, 20
_PATIENCE_S = 30.0
_ACCEPTED = 202


class Events:
    """Sends to the collector at `url` until it is stopped. `sent` grows as it acknowledges."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._stopped = threading.Event()
        self._random: Random = seeded(1, "product events")
        self.sent: list[Sent] = []

    def run(self) -> None:
        """On a thread of its own. Raises DemoError for what is not acknowledged.

        The last batch is acknowledged by Kafka, and so are those before it: the collector's relay
        keeps their order.
        """
        door = http.client.HTTPConnection(self._host, timeout=_PATIENCE_S)
        try:
            due = time.monotonic()
            while not self._stopped.is_set():
                self._send(door, "/v1/events")
                due = max(due + _EVERY_S, time.monotonic())
                self._stopped.wait(due - time.monotonic())
            self._send(door, "/v1/events?ack=kafka")
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"the collector does not answer: {error}") from error
        finally:
            door.close()

    def stop(self) -> None:
        """One last batch, and `run` ends."""
        self._stopped.set()

    def _send(self, door: http.client.HTTPConnection, path: str) -> None:
        at_us = time.time_ns() // 1000
        first = len(self.sent)
        events = [
            event(first + n, str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
                  at_us + n, self._random)
            for n in range(_BATCH)
        ]  # fmt: skip
        door.request("POST", path, orjson.dumps(events), {"content-type": "application/json"})
        answer = door.getresponse()
        said = answer.read()
        if answer.status != _ACCEPTED or orjson.loads(said)["accepted"] != _BATCH:
            raise DemoError(f"the collector answered {answer.status}: {said[:500]!r}")
        self.sent += [Sent(e["eventId"], e["event"], at_us + n) for n, e in enumerate(events)]
