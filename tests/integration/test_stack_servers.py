"""The local stack with its real servers: found again, recovered, and gone in the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from headrace.cli import stack as cli
from headrace.stack import Endpoints, Stack, StackError, process
from headrace.stack.ports import HOST

PATIENCE_S = 60.0


def servers(state_dir: Path) -> list[psutil.Process]:
    """Every Java and PostgreSQL process that names the state directory or works in it."""
    found = []
    for p in psutil.process_iter():
        try:
            if p.name() not in ("java", "postgres") or p.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(str(state_dir) in a for a in p.cmdline()) or str(state_dir) in p.cwd():
                found.append(p)
        except psutil.Error:
            continue
    return found


def gone(state_dir: Path) -> bool:
    trouble = process.wait_until(lambda: "some live" if servers(state_dir) else None, PATIENCE_S)
    return trouble is None


@pytest.fixture(scope="module")
def _stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack") / "state") as stack:
        yield stack
    stack.delete()
    assert not stack.state_dir.exists()
    assert gone(stack.state_dir)


@pytest.fixture
def stack(_stack: Stack) -> Stack:
    """A running stack, whatever the test before did to it."""
    _stack.up(progress=False)
    return _stack


def running(stack: Stack) -> Endpoints:
    endpoints = stack.endpoints()
    assert endpoints is not None
    return endpoints


def create_topic(kafka: str, topic: str, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()


def publish(kafka: str, topic: str, value: bytes) -> None:
    """Returns when it is acknowledged."""
    producer = Producer({"bootstrap.servers": kafka, "acks": "all"})
    producer.produce(topic, value)
    assert producer.flush(PATIENCE_S) == 0


def consume(consumer: Consumer, n: int) -> list[Message]:
    found: list[Message] = []

    def missing() -> str | None:
        found.extend(m for m in consumer.consume(n, 0.5) if m.error() is None)
        return None if len(found) >= n else f"{len(found)} of {n}"

    assert process.wait_until(missing, PATIENCE_S) is None
    return found


def everything(kafka: str, topic: str) -> list[bytes | None]:
    """All values of partition 0, up to its high watermark."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "reader"})
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE_S)
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [m.value() for m in consume(consumer, end)]
    finally:
        consumer.close()


def test_a_second_up_finds_the_first(stack: Stack) -> None:
    pids = (stack.kafka.pid, stack.postgres.pid)
    assert Stack(stack.state_dir).up(progress=False) == running(stack)
    assert (stack.kafka.pid, stack.postgres.pid) == pids


def test_a_lost_pid_file_does_not_lose_the_server(stack: Stack) -> None:
    pids = (stack.kafka.pid, stack.postgres.pid)
    for name in ("kafka", "postgres"):
        (stack.state_dir / f"{name}.pid").unlink()
    stack.up(progress=False)
    assert (stack.kafka.pid, stack.postgres.pid) == pids


@pytest.mark.parametrize(
    "victims", [("kafka",), ("postgres",), ("kafka", "postgres")], ids="+".join
)
def test_what_was_acknowledged_survives_kill_9(stack: Stack, victims: tuple[str, ...]) -> None:
    endpoints, name = running(stack), "survivor_" + "_".join(victims)
    create_topic(endpoints.kafka, name)
    publish(endpoints.kafka, name, b"kept")
    with psycopg.connect(endpoints.postgres) as c:
        c.execute(f"CREATE TABLE {name} AS SELECT 'kept' AS value")
    for victim in victims:
        getattr(stack, victim).kill()
    found = stack.status()
    assert {s.name for s in found.services if s.state == "crashed"} == set(victims)
    assert stack.endpoints() is None

    assert stack.up(progress=False) == endpoints
    assert everything(endpoints.kafka, name) == [b"kept"]
    with psycopg.connect(endpoints.postgres) as c:
        assert c.execute(f"SELECT value FROM {name}").fetchall() == [("kept",)]


def test_a_committed_transaction_survives_kill_9(stack: Stack) -> None:
    """Kafka 4.3 and 4.4 forget one whose markers were still to be written (KAFKA-20734).

    With many partitions they are not yet written when the commit returns.
    """
    endpoints, partitions = running(stack), 40
    create_topic(endpoints.kafka, "committed", partitions)
    producer = Producer(
        {"bootstrap.servers": endpoints.kafka, "transactional.id": "killed", "log_level": 0}
    )
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    for partition in range(partitions):
        producer.produce("committed", b"kept", partition=partition)
    pid = stack.kafka.pid
    assert pid is not None
    producer.commit_transaction(PATIENCE_S)
    os.kill(pid, signal.SIGKILL)
    stack.up(progress=False)
    consumer = Consumer(
        {
            "bootstrap.servers": endpoints.kafka, "group.id": "reader",
            "isolation.level": "read_committed", "auto.offset.reset": "earliest",
        }
    )  # fmt: skip
    try:
        consumer.assign([TopicPartition("committed", n, 0) for n in range(partitions)])
        assert {m.partition() for m in consume(consumer, partitions)} == set(range(partitions))
    finally:
        consumer.close()
    # Whether that hides records is a race; that markers were left out, it says each time.
    assert "can be skipped" not in (stack.state_dir / "kafka.log").read_text()


def test_a_pid_that_was_reused_by_a_foreign_process_is_left_alone(stack: Stack) -> None:
    data = stack.state_dir / "postgres" / "data"
    lines = (data / "postmaster.pid").read_text().splitlines()
    stack.kafka.kill()
    stack.postgres.kill()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as foreign:
        (data / "postmaster.pid").write_text("\n".join([str(foreign.pid), *lines[1:]]))
        for name in ("kafka", "postgres"):
            (stack.state_dir / f"{name}.pid").write_text(str(foreign.pid))
        stack.up(progress=False)
        assert foreign.poll() is None
        assert foreign.pid not in (stack.kafka.pid, stack.postgres.pid)
        stack.down()
        assert foreign.poll() is None
        foreign.kill()


def test_an_immediate_stop_of_postgres_keeps_what_was_committed(stack: Stack) -> None:
    url = running(stack).postgres
    with psycopg.connect(url) as c:
        c.execute("CREATE TABLE immediate AS SELECT 1 AS value")
    stack.postgres.stop(mode="immediate")
    stack.postgres.start()
    with psycopg.connect(url) as c:
        assert c.execute("SELECT value FROM immediate").fetchall() == [(1,)]


def test_commits_are_durable(stack: Stack) -> None:
    with psycopg.connect(running(stack).postgres) as c:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert c.execute(f"SHOW {setting}").fetchone() == ("on",)


def test_postgres_wants_the_password(stack: Stack) -> None:
    url = running(stack).postgres
    user, _, address = url.rpartition("@")
    wrong = user.rpartition(":")[0] + ":wrong@" + address
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(wrong)


def test_servers_listen_on_loopback_only(stack: Stack) -> None:
    for service in (stack.kafka, stack.postgres):
        connections = psutil.Process(service.pid).net_connections("inet")
        listening = {c.laddr[0] for c in connections if c.status == psutil.CONN_LISTEN}
        assert {a.removeprefix("::ffff:") for a in listening} == {HOST}


def test_a_remembered_port_that_is_taken_is_replaced(stack: Stack) -> None:
    before = running(stack)
    stack.down()
    taken = [int(before.kafka.rpartition(":")[2]), psycopg_port(before.postgres)]
    with socket.create_server((HOST, taken[0])), socket.create_server((HOST, taken[1])):
        after = stack.up(progress=False)
    assert after.kafka != before.kafka
    assert after.postgres != before.postgres
    create_topic(after.kafka, "on_the_new_port")
    publish(after.kafka, "on_the_new_port", b"x")
    assert everything(after.kafka, "on_the_new_port") == [b"x"]


def psycopg_port(url: str) -> int:
    return int(psycopg.conninfo.conninfo_to_dict(url)["port"])  # type: ignore[arg-type]


def test_a_fixed_port_that_is_taken_is_refused_and_its_holder_named(stack: Stack) -> None:
    stack.down()
    with socket.create_server((HOST, 0)) as s:
        port = s.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port}: pid {os.getpid()}"):
            Stack(stack.state_dir, kafka_port=port).up(progress=False)
    assert stack.kafka.pid is None
    assert stack.postgres.pid is None


def test_a_running_server_is_not_moved_to_another_port(stack: Stack) -> None:
    pid = stack.postgres.pid
    with pytest.raises(StackError, match="already runs"):
        Stack(stack.state_dir, postgres_port=14_999).up(progress=False)
    assert stack.postgres.pid == pid


def test_down_twice_is_as_good_as_once(stack: Stack) -> None:
    stack.down()
    stack.down()
    assert [s.state for s in stack.status().services] == ["stopped", "stopped"]
    assert gone(stack.state_dir)


def test_a_failed_start_shows_the_end_of_the_log_and_leaves_nothing_running(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.down()
    monkeypatch.setenv("KAFKA_HEAP", "nonsense")
    with pytest.raises(StackError, match="Invalid initial heap size") as e:
        stack.up(progress=False)
    assert str(stack.state_dir / "kafka.log") in str(e.value)
    assert gone(stack.state_dir)


def test_many_ups_at_once_start_one_stack(stack: Stack) -> None:
    stack.down()
    argv = [sys.executable, "-c", f"{PRELUDE}; print(stack.up(progress=False))"]
    argv.append(str(stack.state_dir))
    ups = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {p.communicate(timeout=PATIENCE_S)[0].strip() for p in ups}
    assert said == {str(running(stack))}
    named = [p.name() for p in servers(stack.state_dir)]
    assert named.count("java") == 1


PRELUDE = (
    "import sys, pathlib, headrace.stack; stack = headrace.stack.Stack(pathlib.Path(sys.argv[1]))"
)


def test_a_stack_goes_with_the_process_that_entered_it_even_by_kill_9(tmp_path: Path) -> None:
    code = f"{PRELUDE}\nwith stack:\n print('up', flush=True)\n sys.stdin.read()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert len(servers(tmp_path / "s")) > 2
        owner.send_signal(signal.SIGKILL)
    assert gone(tmp_path / "s")

    def unclean() -> str | None:
        return next((s.name for s in Stack(tmp_path / "s").status().services if s.note), None)

    assert process.wait_until(unclean, PATIENCE_S) is None


def test_transactions_and_the_consumer_protocol_work(stack: Stack) -> None:
    kafka = running(stack).kafka
    create_topic(kafka, "orders")
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": "t"})
    producer.init_transactions(PATIENCE_S)
    for value, commit in ((b"aborted", False), (b"committed", True)):
        producer.begin_transaction()
        producer.produce("orders", value)
        producer.flush(PATIENCE_S)
        (producer.commit_transaction if commit else producer.abort_transaction)(PATIENCE_S)
    config = {
        "bootstrap.servers": kafka, "group.id": "g", "group.protocol": "consumer",
        "isolation.level": "read_committed", "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }  # fmt: skip
    consumer = Consumer(config)
    consumer.subscribe(["orders"])
    try:
        [message] = consume(consumer, 1)
        assert message.value() == b"committed"
        # the position, moved by the producer's own transaction
        offset = message.offset()
        assert offset is not None
        position = TopicPartition("orders", 0, offset + 1, metadata="by transaction")
        producer.begin_transaction()
        producer.send_offsets_to_transaction(
            [position], consumer.consumer_group_metadata(), PATIENCE_S
        )
        producer.commit_transaction(PATIENCE_S)
        [committed] = consumer.committed([TopicPartition("orders", 0)], PATIENCE_S)
        assert (committed.offset, committed.metadata) == (position.offset, "by transaction")
    finally:
        consumer.close()


def test_the_command_line_starts_shows_and_removes(tmp_path: Path) -> None:
    run, where = CliRunner(), ["--state-dir", str(tmp_path / "s")]
    try:
        up = run.invoke(cli.up, [*where, "--quiet"])
        assert up.exit_code == 0, up.output
        exports = dict(
            line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines()
        )
        assert list(exports) == ["HEADRACE_KAFKA", "HEADRACE_POSTGRES", "HEADRACE_CHDB"]
        status = run.invoke(cli.status, [*where, "--json"])
        assert status.exit_code == 0
        assert json.loads(status.stdout)["kafka"]["state"] == "running"
        assert "running" in run.invoke(cli.status, where).stdout
    finally:
        down = run.invoke(cli.down, [*where, "--delete"])
    assert down.exit_code == 0
    assert not (tmp_path / "s").exists()
    assert gone(tmp_path / "s")
