"""Publisher and `headrace publish` against real Kafka: what is accepted is there, once, or named.

An outage is Kafka's process stopped (SIGSTOP: it answers nobody, and nothing is lost) or killed
(SIGKILL, and started again with its data).
"""

from __future__ import annotations

import gc
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from declared import declare
from waiting import until

from headrace.stack import Endpoints, Stack
from ingest.publisher import (
    Coordinates,
    Delivery,
    Publisher,
    PublishError,
    RecordError,
    Refused,
)
from ingest.streams import BUILT_IN, Stream
from ingest.topics import ensure

PATIENCE_S = 60.0
TIME = "2025-06-16T22:50:12.226Z"
# The log of the post that this project rebuilds, as it stands there.
POST = (
    '{"timestamp": "2025-06-16T22:50:12.226Z", "accountId": "025779fde8cd4ab8a3e5138f870584a7", '
    '"deviceId": "07dfde77-3f8a-4431-89f7-acfcf4ead4fc", "colo": "SJC", "status": "connected", '
    '"mode": "warp+doh", "clientVersion": "2024.3.409.0", "clientPlatform": "windows"}'
)


def state(number: int, device: str = "d") -> dict[str, Any]:
    return {"deviceId": device, "timestamp": TIME, "colo": str(number)}


@pytest.fixture
def stream(endpoints: Endpoints, unique: Callable[[str], str]) -> Stream:
    """device_state with a topic of two partitions of the test's own."""
    found = replace(BUILT_IN["device_state"], topic=unique("states"))
    ensure({"bootstrap.servers": endpoints.kafka}, {found.topic: 2})
    return found


@pytest.fixture
def connect(endpoints: Endpoints) -> Iterator[Callable[..., Publisher]]:
    """Makes publishers, closed at the end."""
    made: list[Publisher] = []

    def connect(**config: Any) -> Publisher:
        made.append(Publisher(endpoints.kafka, config={"linger.ms": 1, **config}))
        return made[-1]

    yield connect
    for publisher in made:
        with suppress(PublishError):
            publisher.close(0)


@contextmanager
def frozen(stack: Stack) -> Iterator[Callable[[], None]]:
    """Kafka answers nobody; what is given thaws it early."""
    kafka = psutil.Process(stack.status().kafka.pid)
    kafka.suspend()
    try:
        # The signal stops one thread after the other.
        until(lambda: _states(kafka.pid) == {"T"}, "a stopped Kafka")
        yield kafka.resume
    finally:
        kafka.resume()


def _states(pid: int) -> set[str]:
    """The states of a process's threads, as letters of /proc."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


def read(kafka: str, topic: str) -> list[tuple[int, bytes, Any]]:
    """All of a topic: partition, key, message."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "look"})
    try:
        numbers = consumer.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions
        places = [TopicPartition(topic, number, 0) for number in numbers]
        total = sum(_end(consumer, place) for place in places)
        consumer.assign(places)
        found: list[Any] = []
        give_up = time.monotonic() + PATIENCE_S
        while len(found) < total:
            assert time.monotonic() < give_up
            found += consumer.consume(total - len(found), 1.0)
    finally:
        consumer.close()
    assert not any(m.error() for m in found)
    parse = BUILT_IN["device_state"].message.FromString
    return [(m.partition(), m.key(), parse(m.value())) for m in found]


def _end(consumer: Consumer, place: TopicPartition) -> int:
    """Its high watermark. A topic that has just been made may have no leader yet."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            return int(consumer.get_watermark_offsets(place, timeout=PATIENCE_S)[1])
        except KafkaException as error:
            no_leader = error.args[0].code() == KafkaError.NOT_LEADER_FOR_PARTITION
            if not no_leader or time.monotonic() > give_up:
                raise


# --- what is accepted is there


def test_every_record_is_there_once_and_in_the_order_of_its_key(
    endpoints: Endpoints, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    publisher = connect()

    def publish(device: str) -> None:
        for i in range(3000):
            publisher.publish(stream, state(i, device))

    threads = [threading.Thread(target=publish, args=(f"d{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    publisher.flush()
    assert (publisher.published, publisher.acknowledged, publisher.failed) == (12_000, 12_000, 0)
    found = read(endpoints.kafka, stream.topic)
    assert len(found) == 12_000
    for n in range(4):
        mine = [(p, m.colo) for p, key, m in found if key == f"d{n}".encode()]
        assert [colo for _, colo in mine] == [str(i) for i in range(3000)]
        assert len({p for p, _ in mine}) == 1


def test_a_delivery_says_where_its_record_is(
    endpoints: Endpoints, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    publisher = connect()
    for i in range(3):
        delivery = publisher.publish(stream, state(i))
        place = delivery.result(PATIENCE_S)
        assert place == Coordinates(stream.topic, place.partition, i)
        assert delivery.done()
        assert delivery.exception() is None
    assert {p for p, _, _ in read(endpoints.kafka, stream.topic)} == {place.partition}


def test_all_forms_of_a_message_are_the_same_record(
    endpoints: Endpoints, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    message: Any = stream.message(device_id="d", colo="1")
    message.timestamp.FromJsonString(TIME)
    # The same .proto compiled by somebody else is another class.
    foreign = declare(
        'syntax = "proto3"; package headrace.v1; import "google/protobuf/timestamp.proto"; '
        "message DeviceState { google.protobuf.Timestamp timestamp = 1; string device_id = 3; "
        "string colo = 4; }",
        "DeviceState",
        key="device_id",
        time="timestamp",
    ).message.FromString(message.SerializeToString())
    publisher = connect()
    for form in (message, message.SerializeToString(), state(1), foreign):
        publisher.publish(stream, form)
    publisher.publish_many(stream, [message.SerializeToString()], [b"d"])
    publisher.flush()
    assert [m for _, _, m in read(endpoints.kafka, stream.topic)] == [message] * 5


def test_callbacks_come_once_each_also_when_nobody_polls(
    stream: Stream, connect: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = connect()
    seen: Counter[Delivery] = Counter()
    again: list[Delivery] = []

    def note(delivery: Delivery) -> None:
        assert delivery.done()
        seen[delivery] += 1
        if len(again) < 5:  # a callback may publish
            again.append(publisher.publish(stream, state(0), on_delivery=note))
        if len(seen) == 7:
            raise RuntimeError("of the callback")

    with caplog.at_level(logging.ERROR, "headrace.publisher"):
        deliveries = [publisher.publish(stream, state(i), on_delivery=note) for i in range(10)]
        until(lambda: len(seen) == 15, "fifteen callbacks, with nobody polling")
    assert set(seen.values()) == {1}
    assert set(seen) == {*deliveries, *again}
    assert "callback of a record" in caplog.text
    publisher.flush()


# --- while Kafka does not answer


def test_a_flush_that_runs_out_of_time_counts_what_is_open_and_loses_nothing(
    endpoints: Endpoints, stack: Stack, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    publisher = connect()
    publisher.publish(stream, state(0)).result(PATIENCE_S)
    with frozen(stack) as thaw:
        deliveries = [publisher.publish(stream, state(i)) for i in range(1, 4)]
        with pytest.raises(PublishError, match="3 of 4 records are not acknowledged by Kafka at"):
            publisher.flush(0.3)
        with pytest.raises(TimeoutError, match="no answer about a record of topic"):
            deliveries[0].result(0.1)
        assert not deliveries[0].done()
        assert (publisher.published, publisher.acknowledged) == (4, 1)
        thaw()
        publisher.flush()
    assert [d.result(0).offset for d in deliveries] == [1, 2, 3]
    assert len(read(endpoints.kafka, stream.topic)) == 4


@pytest.mark.parametrize("many", [False, True], ids=["publish", "publish_many"])
def test_a_full_queue_holds_its_caller_back_and_drops_nothing(
    endpoints: Endpoints, stack: Stack, stream: Stream, connect: Callable[..., Publisher],
    many: bool,
) -> None:  # fmt: skip
    publisher = connect(**{"queue.buffering.max.messages": 10})
    publisher.publish(stream, state(0)).result(PATIENCE_S)
    message: Any = stream.message(device_id="d")
    message.timestamp.seconds = 5

    def publish() -> None:
        if many:
            publisher.publish_many(stream, [message.SerializeToString()] * 100, [b"d"] * 100)
        else:
            for i in range(100):
                publisher.publish(stream, state(i))

    with frozen(stack) as thaw:
        thread = threading.Thread(target=publish)
        thread.start()
        until(lambda: publisher.published >= 11, "a full queue")
        thread.join(0.5)
        assert thread.is_alive()
        # Of the one in the call, publish() has not decided yet.
        assert publisher.published - publisher.acknowledged <= 11
        thaw()
        thread.join(PATIENCE_S)
        publisher.flush()
    assert (publisher.published, publisher.acknowledged) == (101, 101)
    assert len(read(endpoints.kafka, stream.topic)) == 101


def test_closing_at_once_gives_up_what_is_open_and_answers_for_it(
    stack: Stack, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    publisher = connect()
    publisher.publish(stream, state(0)).result(PATIENCE_S)
    with frozen(stack):
        delivery = publisher.publish(stream, state(1))
        with pytest.raises(PublishError, match="1 of 2 records are not acknowledged"):
            publisher.close(0)
        assert delivery.done()
        with pytest.raises(PublishError, match="closed before Kafka answered"):
            delivery.result()
    assert (publisher.published, publisher.acknowledged, publisher.failed) == (2, 1, 1)


def test_dropping_a_publisher_that_still_has_records_is_said_aloud(
    endpoints: Endpoints, stack: Stack, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(endpoints.kafka)
    publisher.publish(stream, state(0)).result(PATIENCE_S)
    with frozen(stack), caplog.at_level(logging.ERROR, "headrace.publisher"):
        publisher.publish(stream, state(1))
        with pytest.warns(ResourceWarning, match="dropped without close.*1 records may be lost"):
            del publisher
            gc.collect()
    assert "1 records may be lost" in caplog.text


def test_dropping_a_publisher_that_has_nothing_is_fine(
    endpoints: Endpoints, stream: Stream
) -> None:
    publisher = Publisher(endpoints.kafka)
    publisher.publish(stream, state(0)).result(PATIENCE_S)
    del publisher  # a warning would be an error
    gc.collect()


def test_a_kafka_that_is_killed_and_comes_back_has_every_record_once(
    endpoints: Endpoints, stack: Stack, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    # By default it would look for Kafka again after up to 10 s.
    publisher = connect(**{"reconnect.backoff.max.ms": 500})
    publisher.publish(stream, state(0)).result(PATIENCE_S)
    stop = threading.Event()
    count = 1

    def publish() -> None:
        nonlocal count
        while not stop.is_set():
            publisher.publish(stream, state(count))
            count += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        until(lambda: publisher.acknowledged > 200, "records that Kafka has")
        broker = psutil.Process(stack.status().kafka.pid)
        broker.kill()
        broker.wait(30)  # gone with its port
        before = publisher.published
        until(lambda: publisher.published > before + 50, "records published into the outage")
        assert stack.up(progress=False) == endpoints
        after = publisher.acknowledged
        until(lambda: publisher.acknowledged > after + 200, "records after the outage")
    finally:
        stop.set()
        thread.join()
    publisher.flush()
    assert publisher.acknowledged == count
    assert [int(m.colo) for _, _, m in read(endpoints.kafka, stream.topic)] == list(range(count))


# --- what is not accepted is named


@pytest.mark.parametrize("many", [False, True], ids=["publish", "publish_many"])
def test_an_unknown_topic_fails_its_records_with_what_to_do(
    connect: Callable[..., Publisher], unique: Callable[[str], str], many: bool
) -> None:
    stream = replace(BUILT_IN["device_state"], topic=unique("nowhere"))
    publisher = connect(**{"topic.metadata.propagation.max.ms": 500})
    said = f"topic '{stream.topic}' does not exist; create it with `headrace migrate`"
    if many:
        publisher.publish_many(stream, [b""], [b"d"])
    else:
        delivery = publisher.publish(stream, state(0))
        with pytest.raises(PublishError, match=said):
            delivery.result(PATIENCE_S)
    with pytest.raises(PublishError, match=f"1 of 1 records not acknowledged: 1: {said}"):
        publisher.flush()
    publisher.flush()  # told once
    assert (publisher.acknowledged, publisher.failed) == (0, 1)


def test_what_does_not_fit_is_refused_and_never_sent(
    endpoints: Endpoints, stream: Stream, connect: Callable[..., Publisher]
) -> None:
    publisher = connect(**{"message.max.bytes": 2000})
    other: Any = BUILT_IN["http_test"].message()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({**state(0), "nope": 1}, RecordError, "nope: is not a field of"),
        ({**state(0), "deviceId": ""}, Refused, "device_id: is empty"),
        ({"deviceId": "d"}, Refused, "timestamp: is not set"),
        ({**state(0), "colo": "\0"}, Refused, "colo: holds a NUL"),
        ({**state(0), "colo": "x" * 2000}, Refused, "bytes with its key; message.max.bytes is 2,0"),
        (b"\xff", Refused, "the bytes are not a headrace.v1.DeviceState"),
        (other, Refused, "is a headrace.v1.HttpTest; stream device_state takes headrace.v1.Device"),
        ([1], Refused, "is a list; stream device_state takes a headrace.v1.DeviceState"),
    ]
    for message, error, said in wrong:
        with pytest.raises(error, match=said):
            publisher.publish(stream, message)
    with pytest.raises(KeyError, match="no stream 'nope'; declared are: device_state"):
        publisher.publish("nope", state(0))
    with pytest.raises(ValueError, match="2 values but 1 keys"):
        publisher.publish_many(stream, [b"", b""], [b""])
    assert publisher.published == 0
    # Ready bytes are not looked at: Kafka's own refusals are counted, the others arrive.
    publisher.publish_many(stream, [b"\x1a\x01d", b"x" * 3000, b"\x1a\x01d"], [b"d"] * 3)
    with pytest.raises(PublishError, match=r"1 of 3 records not acknowledged: 1: .*Message size"):
        publisher.flush()
    assert (publisher.acknowledged, publisher.failed) == (2, 1)
    assert len(read(endpoints.kafka, stream.topic)) == 2


def test_a_closed_publisher_takes_nothing_and_can_be_closed_again(
    stream: Stream, connect: Callable[..., Publisher]
) -> None:
    publisher = connect()
    publisher.publish(stream, state(0))
    publisher.close()
    publisher.close()
    with pytest.raises(PublishError, match="the publisher is closed"):
        publisher.publish(stream, state(1))
    with pytest.raises(PublishError, match="the publisher is closed"):
        publisher.publish_many(stream, [b""], [b""])
    assert (publisher.published, publisher.acknowledged) == (1, 1)


def test_leaving_a_publisher_by_an_exception_flushes_what_was_accepted(
    endpoints: Endpoints, stream: Stream
) -> None:
    with pytest.raises(ZeroDivisionError), Publisher(endpoints.kafka) as publisher:
        publisher.publish(stream, state(0))
        raise ZeroDivisionError
    assert len(read(endpoints.kafka, stream.topic)) == 1


def test_what_leaving_could_not_send_is_raised_beside_what_was_raised(
    endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    stream = replace(BUILT_IN["device_state"], topic=unique("nowhere"))
    config = {"topic.metadata.propagation.max.ms": 500}
    with pytest.raises(PublishError, match="does not exist") as raised, \
            Publisher(endpoints.kafka, config=config) as publisher:  # fmt: skip
        publisher.publish(stream, state(0))
        raise ZeroDivisionError
    assert isinstance(raised.value.__context__, ZeroDivisionError)
    with pytest.raises(KeyboardInterrupt) as interrupt, \
            Publisher(endpoints.kafka, config=config) as publisher:  # fmt: skip
        publisher.publish(stream, state(0))
        raise KeyboardInterrupt
    assert any("does not exist" in note for note in interrupt.value.__notes__)


# --- headrace publish

# A child of a test dies with it.
MAIN = """
import ctypes, signal
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass  # not Linux
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also when the tests run under nohup
from headrace.cli import main
main()
"""


class Shell:
    """A folder with a headrace.toml, in which `headrace publish device_state` runs."""

    def __init__(self, folder: Path, kafka: str, topic: str) -> None:
        self.folder = folder
        (folder / "headrace.toml").write_text(f'[streams.device_state]\ntopic = "{topic}"\n')
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self.env |= {"HEADRACE_KAFKA": kafka}

    def start(self, *args: str, stdin: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, "publish", "device_state", *args],
            cwd=self.folder, env=self.env, text=True,
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def publish(self, *args: str, stdin: str = "") -> tuple[int, str, list[str]]:
        """Exit code, standard output (the sums), the lines of standard error."""
        with self.start(*args) as process:
            out, err = process.communicate(stdin, timeout=PATIENCE_S)
        return process.returncode, out, err.splitlines()

    def file(self, name: str, *lines: str) -> str:
        (self.folder / name).write_text("".join(line + "\n" for line in lines))
        return name


@pytest.fixture
def shell(tmp_path: Path, endpoints: Endpoints, stream: Stream) -> Shell:
    return Shell(tmp_path, endpoints.kafka, stream.topic)


def lines(n: int, start: int = 0) -> list[str]:
    return [json.dumps(state(i)) for i in range(start, start + n)]


def test_the_log_of_the_post_publishes_as_it_stands(
    shell: Shell, endpoints: Endpoints, stream: Stream
) -> None:
    assert shell.publish(stdin=POST) == (0, "acknowledged 1 of 1 records\n", [])
    ((_, key, message),) = read(endpoints.kafka, stream.topic)
    assert key == b"07dfde77-3f8a-4431-89f7-acfcf4ead4fc"
    assert (message.mode, message.client_platform) == ("warp+doh", "windows")


def test_files_of_any_kind_are_published_together_and_in_order(
    shell: Shell, endpoints: Endpoints, stream: Stream
) -> None:
    (shell.folder / "b.gz").write_bytes(gzip.compress("\n".join(lines(3, 3)).encode()))
    csv = shell.file("c.csv", "device_id,timestamp,colo", f"d,{TIME},6", "d,2025-06-16 22:50:12,7")
    names = (shell.file("a.jsonl", *lines(3)), "b.gz", csv, "-")
    done = shell.publish(*names, stdin=lines(1, 8)[0])
    assert done == (0, "acknowledged 9 of 9 records\n", [])
    assert [m.colo for _, _, m in read(endpoints.kafka, stream.topic)] == list("012345678")


def test_a_bad_line_is_named_and_kept_and_stops_nothing(
    shell: Shell, endpoints: Endpoints, stream: Stream
) -> None:
    (shell.folder / "x.jsonl").write_bytes(
        b'{"deviceId": "d"}\n' + lines(1)[0].encode() + b'\n\n{"deviceId": "\xff"}\nnonsense\n'
        + json.dumps({**state(1), "colo": "x" * 1_010_000}).encode() + b"\n"
    )  # fmt: skip
    code, out, err = shell.publish("x.jsonl", "--rejects", "bad.jsonl")
    assert code == 1
    assert out == "acknowledged 1 of 5 records; 4 rejected (see bad.jsonl)\n"
    assert err[:2] == [
        "x.jsonl:1: timestamp: is not set; the time must be set in every record",
        "x.jsonl:4: is not UTF-8: byte 15 of the line",
    ]
    assert err[2].startswith("x.jsonl:5: is not JSON (")
    assert err[3].startswith("x.jsonl:6: takes 1,010,")
    rejects = [json.loads(line) for line in (shell.folder / "bad.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"]) for r in rejects] == [("x.jsonl", n) for n in (1, 4, 5, 6)]
    assert rejects[0]["raw"] == '{"deviceId": "d"}'
    assert rejects[1]["raw_base64"] == "eyJkZXZpY2VJZCI6ICL/In0="
    assert [f"x.jsonl:{r['line']}: {r['reason']}" for r in rejects] == err
    assert len(read(endpoints.kafka, stream.topic)) == 1
    # What was corrected can be published from what was kept.
    assert shell.publish(stdin=rejects[0]["raw"].replace("}", f', "timestamp": "{TIME}"}}'))[0] == 0


def test_strict_stops_at_the_first_bad_record(
    shell: Shell, endpoints: Endpoints, stream: Stream
) -> None:
    name = shell.file("x.jsonl", *lines(2), "{", *lines(100))
    code, out, err = shell.publish("--strict", name, name)
    assert (code, len(err)) == (1, 1)
    assert out == "acknowledged 2 of 3 records; 1 rejected; stopped at the first bad record\n"
    assert len(read(endpoints.kafka, stream.topic)) == 2


def test_many_bad_records_are_summed_up_by_reason(shell: Shell) -> None:
    bad = [json.dumps({**state(i), "colo": i}) for i in range(30)]
    name = shell.file("x.jsonl", *bad, *["{}"] * 5)
    code, out, err = shell.publish(name)
    assert (code, out) == (1, "acknowledged 0 of 35 records; 35 rejected\n")
    assert len(err) == 22
    assert err[19] == "x.jsonl:20: colo: is not text: 19"
    assert err[20:] == [
        "30 × colo: is not text",
        "5 × device_id: is empty; the key must be set in every record",
    ]
    assert shell.publish("--quiet", name) == (1, out, err[20:])


def test_a_source_that_breaks_is_named_and_the_next_one_is_read(shell: Shell) -> None:
    whole = gzip.compress("\n".join(lines(20_000)).encode())
    (shell.folder / "cut.gz").write_bytes(whole[: len(whole) // 2])
    wrong = shell.file("wrong.csv", "nope,deviceId", "1,2")
    code, out, err = shell.publish("cut.gz", wrong, shell.file("good.jsonl", *lines(2)))
    assert code == 1
    assert err[0].startswith("headrace: cut.gz is cut off: its gzip data ends after")
    assert err[1].startswith("headrace: wrong.csv: column 'nope' of the header is not a field")
    counts = [int(word.replace(",", "")) for word in out.split() if word[0].isdigit()]
    assert counts[0] == counts[1] > 1000


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["nowhere.jsonl"], 2, "'nowhere.jsonl' does not exist"),
        (["x.jsonl", "--rejects", "x.jsonl"], 2, "--rejects x.jsonl is also an input"),
        (["x.jsonl", "--rejects", "-"], 2, "--rejects takes a file"),
        (["x.jsonl", "--rejects", "no/folder"], 2, "--rejects no/folder can't be written: No such"),
        (["x.jsonl", "--config", "nowhere.toml"], 1, "headrace: nowhere.toml does not exist"),
        (["x.jsonl", "--config", "other.toml"], 1, "does not exist on Kafka at 127.0.0.1:"),
        (["x.jsonl", "--config", "acks.toml"], 1, "headrace: acks=1 is refused; a Publisher alwa"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_is_wrong_and_publishes_nothing(
    shell: Shell, endpoints: Endpoints, stream: Stream, args: list[str], code: int, said: str
) -> None:
    shell.file("x.jsonl", *lines(1))
    shell.file("other.toml", "[streams.device_state]", f'topic = "{stream.topic}.other"')
    shell.file("acks.toml", (shell.folder / "headrace.toml").read_text(), "[kafka]", "acks = 1")
    found, out, err = shell.publish(*args)
    assert (found, out) == (code, "")
    assert said in " ".join(err)
    assert "Traceback" not in " ".join(err)
    assert (shell.folder / "x.jsonl").read_text() == lines(1)[0] + "\n"
    assert read(endpoints.kafka, stream.topic) == []


def test_rejects_can_not_go_where_standard_input_comes_from(shell: Shell) -> None:
    """`--rejects x < x` would make the file empty before it is read."""
    shell.file("x.jsonl", *lines(1))
    for args in ((), ("-",)):
        with (
            (shell.folder / "x.jsonl").open() as stdin,
            shell.start("--rejects", "x.jsonl", *args, stdin=stdin) as process,
        ):
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (2, "")
        assert "--rejects x.jsonl is also an input" in err
        assert (shell.folder / "x.jsonl").read_text() == lines(1)[0] + "\n"


def test_what_was_kept_stays_until_nothing_is_wrong_with_the_call(shell: Shell) -> None:
    shell.file("x.jsonl", *lines(1))
    shell.file("kept.jsonl", "precious")
    shell.file("acks.toml", (shell.folder / "headrace.toml").read_text(), "[kafka]", "acks = 1")
    assert shell.publish("x.jsonl", "--rejects", "kept.jsonl", "--config", "acks.toml")[0] == 1
    assert (shell.folder / "kept.jsonl").read_text() == "precious\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
@pytest.mark.parametrize("size", [10, 500_000], ids=["at its end", "at a write"])
def test_rejects_that_can_not_be_written_lose_no_acknowledgement(
    shell: Shell, endpoints: Endpoints, stream: Stream, size: int
) -> None:
    name = shell.file("x.jsonl", *lines(23), "x" * size, *lines(1))
    code, out, err = shell.publish(name, "--rejects", "/dev/full")
    assert code == 1
    assert err[1:] == ["headrace: --rejects /dev/full can't be written: No space left on device"]
    if size == 10:
        assert out == "acknowledged 24 of 25 records; 1 rejected\n"
    else:
        where = "stopped where a reject could not be kept"
        assert out == f"acknowledged 23 of 24 records; 1 rejected; {where}\n"
    assert len(read(endpoints.kafka, stream.topic)) == (24 if size == 10 else 23)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_reading_waits_for_what_was_published(
    shell: Shell, endpoints: Endpoints, stream: Stream, number: signal.Signals
) -> None:
    with shell.start() as process:
        assert process.stdin is not None
        process.stdin.write("".join(line + "\n" for line in lines(500)))
        process.stdin.flush()
        # 500 records are in Kafka only once they are read; then it waits for more input.
        until(lambda: len(read(endpoints.kafka, stream.topic)) == 500, "500 records")
        process.send_signal(number)
        code = process.wait(PATIENCE_S)
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
    assert (code, out) == (128 + number, "acknowledged 500 of 500 records; interrupted\n")
    assert err.startswith("headrace: interrupted; waiting for Kafka to acknowledge")


def test_a_second_ctrl_c_gives_up_what_kafka_does_not_acknowledge(
    shell: Shell, endpoints: Endpoints, stack: Stack, stream: Stream
) -> None:
    with shell.start() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(lines(1)[0] + "\n")
        process.stdin.flush()
        until(lambda: len(read(endpoints.kafka, stream.topic)) == 1, "the first record")
        with frozen(stack):
            # The bad line's report says that the good one before it was published.
            process.stdin.write(lines(1)[0] + "\n{\n")
            process.stdin.flush()
            assert "<stdin>:3: is not JSON" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert "interrupted; waiting for Kafka" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE_S)
        out, err = process.stdout.read(), process.stderr.read()
    assert code == 130
    assert out == "acknowledged 1 of 3 records; 1 rejected; 1 failed; interrupted\n"
    assert "1 of 2 records are not acknowledged by Kafka" in err
