"""What a person has to mend stops the inserter: exit code 1, one sentence, nothing committed.

All cases of a destination start at the same time, each with a stream and a group of its own: they
spend most of their time waiting for Kafka.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from chdb_door import Door
from inserter import Inserter
from running import Scene
from targets import ClickHouseTarget, PostgresTarget, Target

from headrace.stack import Endpoints


@dataclass
class Case:
    """`prepare` spoils what is there and may return another URL; `says` stands in the sentence."""

    name: str
    prepare: Callable[[Scene, Target], str | None]
    says: tuple[str, ...]


def sql(*statements: str) -> Callable[[Scene, Target], str | None]:
    def prepare(scene: Scene, target: Target) -> None:
        with psycopg.connect(target.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.format(table=scene.table))

    return prepare


def clickhouse_sql(statement: str) -> Callable[[Scene, Target], str | None]:
    def prepare(scene: Scene, target: Target) -> None:
        target.ask(statement.format(table=scene.table))

    return prepare


def reader(scene: Scene, target: Target) -> str:
    """A user that may keep positions and read, but not insert."""
    user, password = scene.topic, "reads"
    sql(
        f"CREATE ROLE {user} LOGIN PASSWORD '{password}'",
        f"GRANT SELECT ON {{table}} TO {user}",
        f"GRANT SELECT, INSERT, UPDATE ON headrace_offsets, headrace_ledger TO {user}",
    )(scene, target)
    return f"postgresql://{user}:{password}@{target.url.split('@')[1]}"


def wrong_password(_scene: Scene, target: Target) -> str:
    parts = urlsplit(target.url)
    return f"{parts.scheme}://{parts.username}:wrong@{parts.hostname}:{parts.port}{parts.path}"


def deleted(which: str) -> Callable[[Scene, Target], str | None]:
    def prepare(scene: Scene, _target: Target) -> None:
        name = getattr(scene, which)
        scene.admin.delete_topics([name], operation_timeout=20)[name].result(20)

    return prepare


POSTGRES = [
    Case("a wrong password", wrong_password, ("password authentication failed", "check user and")),
    Case("a database that is not there", lambda _, t: t.url + "x", ("does not exist", "create")),
    Case("a missing table", sql("DROP TABLE {table}"), ("device_state does not exist", "migrate")),
    Case("no table of positions", sql("DROP TABLE headrace_offsets"), ("headrace_offsets",)),
    Case(
        "a column of another type",
        sql("ALTER TABLE {table} ALTER COLUMN status TYPE integer USING 0"),
        ("device_state.status is integer and must be text", "headrace schema sql"),
    ),
    Case("a missing column", sql("ALTER TABLE {table} DROP COLUMN colo"), ("ADD COLUMN",)),
    Case("a user that may not insert", reader, ("permission denied", "grant INSERT")),
    Case("an unknown topic", deleted("topic"), ("does not exist", "headrace migrate")),
    Case("no topic for dead letters", deleted("dlq"), (".dlq does not exist", "headrace migrate")),
]
CLICKHOUSE = [
    Case("a wrong password", wrong_password, ("check user and password",)),
    Case(
        "a missing table",
        clickhouse_sql("DROP TABLE {table}"),
        ("device_state does not exist", "headrace migrate"),
    ),
    Case(
        "a column of another type",
        clickhouse_sql("ALTER TABLE {table} MODIFY COLUMN client_version Int32"),
        ("device_state.client_version is Int32", "headrace schema sql"),
    ),
]


@contextlib.contextmanager
def started(
    case: Case, target: Target, folder: Path, endpoints: Endpoints, name: str
) -> Iterator[tuple[Scene, Inserter]]:
    folder.mkdir()
    with Scene.open(folder, endpoints.kafka, name) as scene:
        scene.migrate(target)
        scene.load(100)
        url = case.prepare(scene, target)
        yield scene, scene.inserter(url or target.url, "--drain")


def check(case: Case, scene: Scene, inserter: Inserter) -> None:
    assert inserter.wait() == 1, f"{case.name}: {inserter.output}"
    output = inserter.output
    for words in case.says:
        assert words in output, f"{case.name}: {output}"
    assert "Traceback" not in output, f"{case.name}: {output}"
    # One sentence for the operator; what else is there is the log.
    sentences = [line for line in output.splitlines() if line.startswith(("Error", "headrace"))]
    assert len(sentences) == 1, f"{case.name}: {output}"
    if case.name != "an unknown topic":
        assert set(scene.committed().values()) <= {-1, 0}, case.name


@pytest.fixture
def databases(endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[list[PostgresTarget]]:
    """An empty database for each case."""
    names = [unique("broken") for _ in POSTGRES]
    with psycopg.connect(endpoints.postgres, autocommit=True) as connection:
        for name in names:
            connection.execute(f"CREATE DATABASE {name}")
        base = endpoints.postgres.rsplit("/", 1)[0]
        yield [PostgresTarget(f"{base}/{name}") for name in names]
        for name in names:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def test_what_a_person_has_to_mend_in_postgres_or_kafka_is_said_and_nothing_is_committed(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    databases: list[PostgresTarget],
) -> None:
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                started(case, target, tmp_path / str(n), endpoints, unique("broken"))
            )
            for n, (case, target) in enumerate(zip(POSTGRES, databases, strict=True))
        ]
        for case, target, (scene, inserter) in zip(POSTGRES, databases, running, strict=True):
            check(case, scene, inserter)
            if case.name != "a missing table":
                with contextlib.suppress(AttributeError):
                    assert target.rows(scene.table) == 0


def test_what_a_person_has_to_mend_in_clickhouse_is_said_and_nothing_is_committed(
    tmp_path: Path,
    endpoints: Endpoints,
    unique: Callable[[str], str],
    door: Door,
    clickhouse: ClickHouseTarget,
) -> None:
    for n, case in enumerate(CLICKHOUSE):
        with started(case, clickhouse, tmp_path / str(n), endpoints, unique("broken")) as (
            scene,
            inserter,
        ):
            check(case, scene, inserter)
            clickhouse.ask("DROP TABLE IF EXISTS device_state")


def test_a_user_that_may_not_insert_into_clickhouse_is_told_so_at_once(
    scene: Scene, door: Door, clickhouse: ClickHouseTarget
) -> None:
    scene.migrate(clickhouse)
    scene.load(100)
    door.cut("error", match="INSERT INTO", code=497, times=9)
    inserter = scene.inserter(clickhouse, "--drain")
    inserter.wait()
    check(Case("no permission", lambda *_: None, ("grant SELECT and INSERT",)), scene, inserter)
    assert clickhouse.rows(scene.table) == 0


def test_a_mistyped_directory_of_chdb_is_not_made(scene: Scene) -> None:
    """What `migrate` has made is there; everything else is a mistake."""
    scene.migrate()
    path = scene.folder / "typo"
    inserter = scene.inserter(f"chdb:{path}", "--drain")
    assert inserter.wait() == 1, inserter.output
    assert inserter.says(f"there is no chDB in {path}")
    assert inserter.says("headrace migrate")
    assert "Traceback" not in inserter.output
    assert not path.exists()
