"""Chaos at the edge: a collector under load, killed again and again, and its Kafka with it.

    make edge-chaos KILLS=50 KAFKA_KILLS=10 SEED=7 MINUTES=10

`storm`  senders write down each id that was acknowledged, and send again under the same id what got
         no answer; the collector (its server, its worker, or both) and Kafka are killed with SIGKILL
         at random moments.
`away`   Kafka is killed and stays away, at a steady load that does without ids and retries.

Behind both, `check` reads the topic as any consumer would (read_committed): every acknowledged
event is there, none twice, and each device's in the order in which they were acknowledged. And
`headrace audit`, which shares no code with it, counts as many.
"""  # noqa: E501

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from confluent_kafka import Consumer, TopicPartition

from headrace.stack import Stack
from headrace.stack.ports import free_ports
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.spool.lock import user_of
from ingest.spool.reader import Reader
from ingest.topics import ensure

__all__ = [
    "PROGRAM", "Collector", "Figures", "Ledger", "away", "check", "free_port", "storm",
]  # fmt: skip

PATIENCE_S = 90.0
TOPIC = "raw_events"
SENDERS = 16
# Events a second while Kafka is away.
RATE = 2000
# Events of one request, for a sender that sends several together.
TOGETHER = 7

# The command line, dying with whoever started it.
PROGRAM = """
import ctypes, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass  # not Linux
from headrace.cli import main
sys.exit(main())
"""


class Collector:
    """`headrace collect` with one worker, at one port for all its lives."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.spool = folder / "spool"
        self.port = free_port()
        self._said = folder / "collector.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, *argv: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, *argv, "--kafka", self.kafka]

    def start(self) -> None:
        """Returns at once; senders find out when it listens."""
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                self._run("collect", "--spool", str(self.spool), "--listen",
                          f"127.0.0.1:{self.port}"),
                cwd=self.folder, stdout=said, stderr=said,
            )  # fmt: skip

    def worker(self) -> int | None:
        """The process that has the spool open."""
        return user_of(self.spool / "0")

    def is_alive(self) -> bool:
        """Whether the server runs, which starts its worker again."""
        return self._process is not None and self._process.poll() is None

    def kill(self, whom: str) -> None:
        """SIGKILL for `server`, `worker` or `both`; a server that was killed is started again."""
        assert self._process is not None
        worker = self.worker()
        if whom != "server" and worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        if whom != "worker":
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self.start()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)

    def drain(self) -> None:
        """What is left goes to Kafka."""
        subprocess.run(self._run("spool", "drain", str(self.spool / "0")), check=True,
                       cwd=self.folder, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)  # fmt: skip

    def audit(self) -> int:
        """How many events came through spools by `headrace audit`; AssertionError if it says no."""
        asked = self._run("audit", "--to", "kafka", "--stream", TOPIC, "--json")
        done = subprocess.run(asked, check=False, cwd=self.folder, capture_output=True, text=True,
                              timeout=PATIENCE_S)  # fmt: skip
        assert done.returncode == 0, f"the audit says no: {done.stdout}{done.stderr}"
        lines = map(json.loads, done.stdout.splitlines())
        return sum(line["accepted"] for line in lines if "hour" in line)

    def said(self) -> str:
        """The end of its log."""
        return self._said.read_text()[-3000:] if self._said.exists() else ""


@dataclass
class Ledger:
    """What was acknowledged: a line for each event, written when its answer came."""

    path: Path
    lines: int = 0
    retries: int = 0
    refusals: Counter[int] = field(default_factory=Counter)

    def acknowledged(self, key: str, numbers: Sequence[int]) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{key} {number}\n" for number in numbers)
        self.lines += len(numbers)

    def read(self) -> list[tuple[str, int]]:
        """All of it, from the file."""
        rows = (line.split() for line in self.path.read_text().splitlines())
        return [(key, int(number)) for key, number in rows]


class Connection:
    """HTTP/1.1 with keep-alive; OSError and EOFError (IncompleteReadError) when it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, timeout_s: float = 30.0) -> int:
        """The status of the answer, read whole."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = self._streams
                writer.write(
                    b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
                )
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                (length,) = (int(i[15:]) for i in lines if i.startswith(b"content-length:"))
                await reader.readexactly(length)
                return int(lines[0].split()[1])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.close()
        await asyncio.sleep(0)  # the transport lets go of its socket in the next turn


def _events(key: str, numbers: Sequence[int], *, ids: bool) -> bytes:
    events = [
        {"event": "n", "deviceId": key, "properties": {"n": n}}
        | ({"eventId": f"{key}-{n}"} if ids else {})
        for n in numbers
    ]
    return json.dumps(events if len(events) > 1 else events[0]).encode()


async def _sender(index: int, key: str, port: int, ledger: Ledger, stop: asyncio.Event) -> None:
    """One device: the next event only when the one before is acknowledged."""
    # Most send single events; some several in a request, some wait for Kafka.
    count = TOGETHER if index % 4 == 0 else 1
    path = "/v1/events?ack=kafka" if index % 8 == 1 else "/v1/events"
    number = 0
    async with Connection(port) as connection:
        while not stop.is_set():
            numbers = range(number, number + count)
            number += count
            await _acknowledged(connection, path, _events(key, numbers, ids=True), ledger)
            ledger.acknowledged(key, numbers)


async def _acknowledged(connection: Connection, path: str, body: bytes, ledger: Ledger) -> None:
    """Send it until it is acknowledged."""
    while True:
        try:
            status = await connection.post(path, body)
        except (OSError, EOFError, TimeoutError):
            # No answer: it may be there or not.
            ledger.retries += 1
            await asyncio.sleep(0.02)
            continue
        if status == 202:
            return
        # Not stored (503), or not in Kafka in time (504): the same again.
        assert status in (503, 504), status
        ledger.refusals[status] += 1
        await asyncio.sleep(0.05)


@dataclass
class Figures:
    """What a run has measured."""

    acknowledged: int
    retries: int
    seconds: float
    kills: int = 0
    kafka_kills: int = 0
    refusals: dict[int, int] = field(default_factory=dict)
    # Of away(): the most that waited, the worker's memory early and late while Kafka was away, in
    # bytes, and how fast the spool was empty, in records a second.
    backlog: int = 0
    memory_early: int = 0
    memory_late: int = 0
    drained_per_s: float = 0.0


async def storm(
    stack: Stack,
    collector: Collector,
    ledger: Ledger,
    *,
    run: str,
    kills: int,
    kafka_kills: int,
    chance: random.Random,
) -> Figures:
    """Load, kills, and at the end all that was acknowledged in Kafka."""  # fmt: skip
    begun = time.monotonic()
    events = ["collector"] * kills + ["kafka"] * kafka_kills
    chance.shuffle(events)
    stop = asyncio.Event()
    back: asyncio.Task[Any] | None = None
    collector.start()
    async with _all(
        _sender(i, f"{run}-{i}", collector.port, ledger, stop) for i in range(SENDERS)
    ) as senders:
        for event in events:
            # Each kill under load: some were acknowledged since the one before.
            await _until(collector, senders, lambda n=ledger.lines: ledger.lines >= n + 20)
            await asyncio.sleep(chance.random() * 0.5)
            if event == "collector":
                whom = chance.choice(["server", "worker", "both"])
                await asyncio.to_thread(collector.kill, whom)
            else:
                if back is not None:
                    await back
                os.kill(stack.status().kafka.pid or 0, signal.SIGKILL)
                back = asyncio.create_task(_later(chance.random() * 2, stack))
        if back is not None:
            await back
        await _until(collector, senders, lambda n=ledger.lines: ledger.lines >= n + 20)
        stop.set()
    await asyncio.to_thread(collector.stop)
    await asyncio.to_thread(collector.drain)
    return Figures(
        ledger.lines, ledger.retries, time.monotonic() - begun, kills, kafka_kills,
        dict(ledger.refusals),
    )  # fmt: skip


async def away(
    stack: Stack,
    collector: Collector,
    ledger: Ledger,
    *,
    run: str,
    seconds: float,
    per_second: int,
    together: int = 10,
) -> Figures:
    """A steady load while Kafka is away for so long, and until all of it is there."""  # fmt: skip
    begun = time.monotonic()
    stop = asyncio.Event()
    folder = collector.spool / "0"
    collector.start()
    await asyncio.to_thread(_wait_for, collector)
    every_s = SENDERS * together / per_second
    memory: list[int] = []
    async with _all(
        _steady(i, f"{run}-{i}", collector.port, ledger, stop, together, every_s)
        for i in range(SENDERS)
    ) as senders:
        await _until(collector, senders, lambda: _position(folder)[0] > 0)
        os.kill(stack.status().kafka.pid or 0, signal.SIGKILL)
        worker = psutil.Process(collector.worker() or 0)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            _raise_first(senders)
            memory.append(worker.memory_info().rss)
            await asyncio.sleep(seconds / 100)
        stuck, most = _position(folder)
        await asyncio.to_thread(stack.up, progress=False)
        # From the first step on: how long a broker takes to start is not the spool's affair.
        await _until(collector, senders, lambda: _position(folder)[0] > stuck)
        first, clock = _position(folder)[0], time.monotonic()
        await _until(collector, senders, lambda: _position(folder)[0] >= most)
        rate = (_position(folder)[0] - first) / (time.monotonic() - clock)
        stop.set()
    assert worker.is_running(), "the worker was another one at the end"
    await asyncio.to_thread(collector.stop)
    await asyncio.to_thread(collector.drain)
    return Figures(
        ledger.lines, ledger.retries, time.monotonic() - begun, refusals=dict(ledger.refusals),
        backlog=most - stuck, memory_early=memory[len(memory) // 4], memory_late=max(memory[-10:]),
        drained_per_s=rate,
    )  # fmt: skip


async def _steady(
    index: int, key: str, port: int, ledger: Ledger, stop: asyncio.Event, count: int, every_s: float
) -> None:
    """One device at a steady rate, each request answered with 202 at the first attempt."""
    due = time.monotonic() + every_s * index / SENDERS
    number = 0
    async with Connection(port) as connection:
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += every_s
            numbers = range(number, number + count)
            number += count
            status = await connection.post("/v1/events", _events(key, numbers, ids=False))
            assert status == 202, f"refused with {status}"
            ledger.acknowledged(key, numbers)


def check(kafka: str, ledger: Ledger, run: str) -> int:
    """Read the topic; AssertionError says what is wrong with it. How many events of the run."""
    found: list[tuple[int, str, int, str]] = []
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": f"check-{run}", "auto.offset.reset": "earliest",
         "isolation.level": "read_committed", "enable.partition.eof": True}
    )  # fmt: skip
    try:
        partitions = consumer.list_topics(TOPIC, timeout=PATIENCE_S).topics[TOPIC].partitions
        consumer.assign([TopicPartition(TOPIC, number, 0) for number in partitions])
        reading = set(partitions)
        give_up = time.monotonic() + PATIENCE_S
        while reading:
            assert time.monotonic() < give_up, "the topic could not be read to its end"
            for message in consumer.consume(10_000, 0.5):
                if message.error():
                    reading.discard(message.partition())
                elif message.key().startswith(f"{run}-".encode()):
                    raw = RawEvent.FromString(message.value())
                    event = json.loads(raw.data)
                    number = event["properties"]["n"]
                    assert event["deviceId"] == message.key().decode()
                    found.append((message.partition(), event["deviceId"], number, raw.event_id))
    finally:
        consumer.close()
    acknowledged = ledger.read()
    times = Counter((key, number) for _, key, number, _ in found)
    missing = sorted(set(acknowledged) - times.keys())
    assert not missing, f"{len(missing)} acknowledged events are missing: {missing[:5]}"
    double = [what for what, count in times.items() if count > 1]
    assert not double, f"{len(double)} events are there more than once: {double[:5]}"
    assert len({ident for *_, ident in found}) == len(found), "ids are there twice"
    for key in {key for key, _ in acknowledged}:
        mine = [(partition, number) for partition, k, number, _ in found if k == key]
        assert len({partition for partition, _ in mine}) == 1
        order = {number: place for place, (_, number) in enumerate(mine)}
        places = [order[number] for k, number in acknowledged if k == key]
        assert places == sorted(places), f"{key} is in another order than it was acknowledged"
    return len(found)


# -- inside


@asynccontextmanager
async def _all(work: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks for as long as the block; they end by themselves, or with the block's failure."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield tasks
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_first(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _until(
    collector: Collector, tasks: Sequence[asyncio.Task[None]], condition: Callable[[], bool]
) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        _raise_first(tasks)
        assert time.monotonic() < give_up, f"nothing moves: {collector.said()}"
        if not collector.is_alive():
            # Its worker died twice within seconds, and it gave up: what a supervisor is for.
            collector.start()
        await asyncio.sleep(0.005)


async def _later(seconds: float, stack: Stack) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(stack.up, progress=False)


def _wait_for(collector: Collector) -> None:
    import socket

    give_up = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < give_up and collector.is_alive(), collector.said()
        with contextlib.suppress(OSError), closing(socket.create_connection(
            ("127.0.0.1", collector.port), 1
        )):  # fmt: skip
            return
        time.sleep(0.05)


def _position(folder: Path) -> tuple[int, int]:
    """Of a spool that is in use: all below is in Kafka; all below is stored."""
    with closing(Reader(folder)) as reader:
        state = reader.state()
    return state.position, state.next_seq


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection is given meanwhile."""
    return free_ports(1)[0]


def main() -> None:
    """Both, long; a line of figures for each."""
    parser = argparse.ArgumentParser(description="kill a collector and its Kafka under load")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kafka-kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long Kafka is away")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder,
        Stack(Path(folder) / "state") as stack,
    ):
        kafka = stack.up(progress=False).kafka
        ensure({"bootstrap.servers": kafka}, {TOPIC: 4})

        def go(name: str, work: Callable[..., Any], **options: Any) -> Figures:
            home = Path(folder) / name
            home.mkdir()
            collector, ledger = Collector(kafka, home), Ledger(home / "acknowledged")
            figures: Figures
            try:
                before = collector.audit()
                figures = asyncio.run(work(stack, collector, ledger, run=name, **options))
                found = check(kafka, ledger, name)
                assert collector.audit() - before == found
            except BaseException:
                print(collector.said(), file=sys.stderr)
                raise
            finally:
                collector.stop()
            print(name, json.dumps(vars(figures) | {"in_topic": found}), flush=True)
            return figures

        if args.kills or args.kafka_kills:
            go("storm", storm, kills=args.kills, kafka_kills=args.kafka_kills,
               chance=random.Random(args.seed))  # fmt: skip
        if args.minutes:
            figures = go("away", away, seconds=args.minutes * 60, per_second=RATE)
            assert figures.drained_per_s >= 10 * RATE
            assert figures.memory_late - figures.memory_early < 16 * 1024**2


if __name__ == "__main__":
    main()
