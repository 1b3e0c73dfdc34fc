"""Real servers in containers, of the versions in docker-compose.yml: TimescaleDB and ClickHouse.

They see what the local stack can't show: hypertables, their columnstore and policies, and a
ClickHouse server that is killed. Kafka is the local stack's.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from inserter import free_port
from running import Scene
from targets import ClickHouseTarget, PostgresTarget
from waiting import until

ROOT = Path(__file__).parents[2]
READY_S = 120.0
ROWS = 60_000


def engine_answers() -> bool:
    """Whether a Docker engine is there; asked without its client, which leaves its socket open."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        return True
    try:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.settimeout(5)
            engine.connect(address.removeprefix("unix://"))
            engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in engine.recv(100)
    except OSError:
        return False


pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine"),
    # What testcontainers and the client of Docker leave open is theirs; the first run also pulls.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(600),
]


def image(repository: str) -> str:
    """The image, with the version that docker-compose.yml pins."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    found = re.search(rf"image: ({re.escape(repository)}:\S+)", text)
    assert found is not None, f"docker-compose.yml has no {repository}"
    return found[1]


@contextmanager
def container(repository: str, port: int, **env: str) -> Iterator[tuple[Any, int]]:
    """A server's container and its port on this machine, the same after a restart."""
    from testcontainers.core.container import DockerContainer

    here = free_port()
    starting = DockerContainer(image(repository)).with_bind_ports(port, here)
    for name, value in env.items():
        starting = starting.with_env(name, value)
    with starting as started:
        yield started.get_wrapped_container(), here


def answers(ask: Callable[[], object], *away: type[Exception]) -> bool:
    """Whether it can be asked."""
    try:
        ask()
    except away:
        return False
    return True


# -- TimescaleDB -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a TimescaleDB server, without a database."""
    with container("timescale/timescaledb", 5432, POSTGRES_PASSWORD="pw") as (_, port):
        url = f"postgresql://postgres:pw@127.0.0.1:{port}"
        until(
            lambda: answers(
                lambda: psycopg.connect(f"{url}/postgres", connect_timeout=5).close(),
                psycopg.OperationalError,
            ),
            "TimescaleDB",
            READY_S,
        )
        yield url


@pytest.fixture
def timescale(server: str, unique: Callable[[str], str]) -> PostgresTarget:
    """An empty database with the extension."""
    name = unique("test")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    with psycopg.connect(f"{server}/{name}", autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    return PostgresTarget(f"{server}/{name}")


def to_columnstore(target: PostgresTarget, table: str) -> int:
    """Convert all chunks as the policy would; how many there are."""
    with psycopg.connect(target.database, autocommit=True) as connection:
        chunks = connection.execute("SELECT show_chunks(%s)::text", (table,)).fetchall()
        for (chunk,) in chunks:
            connection.execute("CALL convert_to_columnstore(%s)", (chunk,))
    return len(chunks)


def test_migrate_makes_a_hypertable_with_its_policies_and_may_be_run_again(
    scene: Scene, timescale: PostgresTarget
) -> None:
    scene.configure(stream={"retention": "30 years"})
    argv = ("migrate", "--to", timescale.url, "--stream", "device_state")
    assert f"hypertable {scene.table}" in scene.headrace(*argv)
    assert "nothing to do" in scene.headrace(*argv)
    assert timescale.ask(
        "SELECT count(*), bool_and(compression_enabled)::int"
        " FROM timescaledb_information.hypertables"
    ) == (1, 1)
    assert timescale.ask(
        "SELECT count(*) FILTER (WHERE proc_name IN ('policy_compression', 'policy_columnstore')),"
        " count(*) FILTER (WHERE proc_name = 'policy_retention')"
        f" FROM timescaledb_information.jobs WHERE hypertable_name = '{scene.table}'"
    ) == (1, 1)


def test_kills_neither_lose_nor_double_in_a_hypertable(
    scene: Scene, timescale: PostgresTarget
) -> None:
    scene.migrate(timescale)
    for _ in range(3):
        scene.load(ROWS // 3)
        before = timescale.rows(scene.table)
        inserter = scene.inserter(timescale, "--max-rows", "2000")
        scene.until(lambda b=before: timescale.rows(scene.table) > b, "the first rows of a portion")
        inserter.kill()
    scene.inserter(timescale, "--drain").finish()
    scene.exactly_once(timescale)


def test_late_rows_land_in_chunks_that_are_in_the_columnstore(
    scene: Scene, timescale: PostgresTarget
) -> None:
    scene.migrate(timescale)
    scene.load(ROWS)
    scene.inserter(timescale, "--drain").finish()
    assert to_columnstore(timescale, scene.table) > 0
    # The same span of time: these devices report again within the chunks that are there.
    again = scene.records(10_000)
    scene.publish(again)
    scene.loaded += len(again)
    scene.inserter(timescale, "--drain").finish()
    scene.exactly_once(timescale)
    scene.migrate(timescale)


def test_dedupe_removes_what_clients_send_twice_also_from_the_columnstore(
    scene: Scene, timescale: PostgresTarget
) -> None:
    scene.configure(stream={"dedupe": ["device_id", "account_id", "timestamp"]})
    scene.migrate(timescale)
    records = scene.records(20_000)
    scene.publish(records)
    scene.publish(records[:5_000])
    scene.inserter(timescale, "--drain").finish()
    assert timescale.distinct(scene.table) == (20_000, 20_000)
    to_columnstore(timescale, scene.table)
    scene.publish(records[5_000:12_000])
    scene.inserter(timescale, "--drain").finish()
    assert timescale.distinct(scene.table) == (20_000, 20_000)


# -- ClickHouse ------------------------------------------------------------------------------------


@dataclass
class Server:
    """A ClickHouse server that can be restarted."""

    container: Any
    target: ClickHouseTarget

    def wait(self) -> None:
        until(lambda: answers(lambda: self.target.ask("SELECT 1"), OSError), "ClickHouse", READY_S)

    def kill(self) -> None:
        """SIGKILL, and started again."""
        self.container.kill()
        self.container.wait()
        self.container.start()


@pytest.fixture(scope="module")
def clickhouse_server() -> Iterator[Server]:
    with container("clickhouse/clickhouse-server", 8123, CLICKHOUSE_SKIP_USER_SETUP="1") as (
        started,
        port,
    ):
        server = Server(started, ClickHouseTarget(port))
        server.wait()
        yield server


def test_kills_of_inserters_neither_lose_nor_double_in_clickhouse(
    scene: Scene, clickhouse_server: Server
) -> None:
    target = clickhouse_server.target
    scene.migrate(target)
    scene.load(ROWS)
    running = [scene.inserter(target, "--max-rows", "2000") for _ in range(2)]
    for i in range(4):
        before = target.rows(scene.table)
        scene.until(lambda b=before: target.rows(scene.table) > b, "more rows")
        running[i % 2].kill()
        running[i % 2] = scene.inserter(target, "--max-rows", "2000")
        scene.load(2_000)
    for inserter in running:
        inserter.terminate()
        inserter.wait()
    scene.inserter(target, "--drain").finish()
    scene.exactly_once(target)


def test_a_clickhouse_that_is_killed_neither_loses_nor_doubles(
    scene: Scene, clickhouse_server: Server
) -> None:
    target = clickhouse_server.target
    scene.migrate(target)
    scene.load(ROWS)
    inserter = scene.inserter(target, "--max-rows", "2000")
    scene.until(lambda: target.rows(scene.table) > 0, "the first rows")
    clickhouse_server.kill()
    scene.until(lambda: inserter.says("goes on after"), "the inserter finds it again", READY_S)
    clickhouse_server.wait()
    scene.landed(target, scene.loaded)
    inserter.terminate()
    inserter.finish()
    scene.exactly_once(target)


def test_the_table_remembers_tokens_and_the_server_is_the_pinned_one(
    scene: Scene, clickhouse_server: Server
) -> None:
    target = clickhouse_server.target
    scene.migrate(target)
    window = "%non_replicated_deduplication_window = 10000%"
    assert target.ask(
        f"SELECT count() FROM system.tables WHERE name = '{scene.table}'"
        f" AND create_table_query LIKE '{window}'"
    ) == (1,)
    version = image("clickhouse/clickhouse-server").partition(":")[2]
    assert target.ask(f"SELECT version() = '{version}'") == (1,)
