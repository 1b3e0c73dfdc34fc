"""A real `headrace collect` for tests: a process on a free port, and gone at the end.

    with Collector(tmp_path, kafka=endpoints.kafka) as collector:
        httpx.post(collector.url + "/v1/events", ...)

Ready means that /readyz answered; it is asked again and again, nothing is slept over.

A collector of a whole module has a key for each test, made before it starts, for a file of keys is
looked at once a second only; and a test sees the events of its own source and of no other.

    with event_collector(folder, endpoints.kafka, topic="events", origin=site.origin) as sources:
        shop = next(sources)
        httpx.post(shop.url + "/v1/events", auth=(shop.key, ""), ...)
        assert [event.data for event in shop.events()] == [...]
"""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from ingest.collector.key import new_secret
from ingest.collector.keyfile import add
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.topics import ensure

__all__ = ["Collector", "Source", "committed", "event_collector"]

_PATIENCE_S = 30.0
_MAIN = "from headrace.cli import main; main()"
# What it says first, with the port that it has found.
_LISTENING = re.compile(r"^listening at (https?)://127\.0\.0\.1:(\d+) ", re.MULTILINE)


class Collector:
    """One process. `settings` become [collect] of its headrace.toml, `toml` goes behind them.

    `stop()` is SIGTERM, `kill()` is SIGKILL, `start()` starts it anew with the same spool.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kafka: str,
        toml: str = "",
        ca: ssl.SSLContext | None = None,
        options: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self.url = ""
        self.pid = 0
        self.client = httpx.Client(verify=ca or False, timeout=_PATIENCE_S, trust_env=False)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "collect.log"
        self._port = 0
        lines = [f"{name} = {_toml(value)}" for name, value in settings.items()]
        text = "[collect]\n" + "\n".join(lines) + f"\n\n[kafka]\n'bootstrap.servers' = '{kafka}'\n"
        (folder / "headrace.toml").write_text(text + toml, encoding="utf-8")

    def start(self, *, ready: bool = True) -> Self:
        """Start, at the same port as before if there was one, and wait for /readyz to answer.

        Not `ready`: wait only until it listens or ends.
        """
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-c", _MAIN, "collect", "--spool", str(self.spool),
                    "--listen", f"127.0.0.1:{self._port}", *self._options,
                ],
                cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=_environment(),
            )  # fmt: skip
        self.pid = self._process.pid
        self.wait_until_ready(ready=ready)
        if ready:
            assert self._process.poll() is None, self.log()
        return self

    def wait_until_ready(self, *, ready: bool = True) -> None:
        """Until /readyz answers, with 200 where it is to be `ready`, or the process has ended."""
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE_S
        while self._process.poll() is None:
            if not self.url and (found := _LISTENING.search(self.log())):
                self.url = f"{found[1]}://127.0.0.1:{found[2]}"
                self._port = int(found[2])
            if self.url:
                try:
                    answer = self.client.get(self.url + "/readyz")
                except httpx.TransportError:
                    pass
                else:
                    if not ready or answer.status_code == 200:
                        break
            assert time.monotonic() < deadline, f"the collector is not ready: {self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def workers(self) -> list[int]:
        """The pids of its workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split()]

    def wait(self) -> int:
        """Until it has ended; its exit code."""
        assert self._process is not None
        return self._process.wait(_PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL; its workers follow by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_PATIENCE_S)

    def until(self, what: str, found: Any) -> Any:
        """Ask `found()` until it is true; what it gave."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (answer := found()):
            assert time.monotonic() < deadline, f"never {what}: {self.log()}"
            time.sleep(0.02)
        return answer

    def until_sent(self) -> None:
        """Until all that it has taken is in Kafka."""

        def is_empty() -> bool:
            answer = self.client.get(self.url + "/readyz").json()
            return bool(answer["spool"]["records"] == 0)

        self.until("an empty spool", is_empty)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, as /metrics says it."""
        text = self.client.get(self.url + "/metrics").text
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.match(rf"{name}(\{{|\s)", line)
        )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gone, whatever happened."""
        self.client.close()
        if self._process is not None and self._process.poll() is None:
            self.kill()


@dataclass(frozen=True)
class Source:
    """One of a collector's sources: its key, and what of it is in Kafka."""

    collector: Collector
    name: str
    key: str
    topic: str
    kafka: str

    @property
    def url(self) -> str:
        return self.collector.url

    def events(self, enough: int = 0) -> list[RawEvent]:
        """All of it, when there is as much as that and the collector has sent all that it has."""
        found: list[RawEvent] = []

        def are_there() -> bool:
            self.collector.until_sent()
            values = [message.value() for message in committed(self.kafka, self.topic)]
            events = map(RawEvent.FromString, values)
            found[:] = [event for event in events if event.source == self.name]
            return len(found) >= enough

        self.collector.until(f"{enough} events of {self.name} in Kafka", are_there)
        return found


# More than any module has tests.
_SOURCES = 32


@contextmanager
def event_collector(
    folder: Path, kafka: str, *, topic: str, origin: str
) -> Iterator[Iterator[Source]]:
    """A collector whose events go to `topic`, made here; sources of it, each given once.

    Pages of `origin` may send with each of the keys.
    """
    ensure({"bootstrap.servers": kafka}, {topic: 1})
    keys = {f"{topic}-{number}": new_secret() for number in range(_SOURCES)}
    for name, key in keys.items():
        add(folder / "keys.json", key, {"source": name, "origins": [origin]})
    toml = f"[streams.raw_events]\ntopic = '{topic}'\n"
    with Collector(folder, kafka=kafka, toml=toml, keys="keys.json") as collector:
        yield (Source(collector, name, key, topic, kafka) for name, key in keys.items())


def committed(kafka: str, topic: str) -> list[Message]:
    """All messages that a reader of committed ones finds, each partition to its end."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "look", "isolation.level": "read_committed",
         "enable.auto.commit": False, "enable.partition.eof": True, "log_level": 0}
    )  # fmt: skip
    try:
        reading = set(consumer.list_topics(topic, _PATIENCE_S).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in reading])
        found: list[Message] = []
        deadline = time.monotonic() + _PATIENCE_S
        while reading:
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                reading.discard(message.partition())
            else:
                found.append(message)
        return found
    finally:
        consumer.close()


def _environment() -> dict[str, str]:
    """Ours, without what names a Kafka or a file of settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value) if isinstance(value, int | float) else f"'{value}'"
