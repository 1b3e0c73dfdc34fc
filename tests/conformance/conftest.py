"""The four sinks of the conformance suite, and a scene for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import psycopg
import pytest
from chdb_door import Door, running_door
from scene import Scene
from sinks_under_test import ClickHouseSubject, MemorySubject, PostgresSubject, Subject

from consumers.ledger import owed
from headrace.stack import Stack

NAMES = ("memory", "postgres", "chdb", "clickhouse")


@pytest.fixture(scope="module")
def postgres(stack: Stack) -> Iterator[str]:
    """The URL of a PostgreSQL database for the tests of one module."""
    url = stack.up(progress=False).postgres
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE conformance")
    yield url.rsplit("/", 1)[0] + "/conformance"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP DATABASE conformance WITH (FORCE)")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """ClickHouse's HTTP interface, for the tests of one module."""
    with running_door(tmp_path_factory.mktemp("door") / "chdb") as door:
        yield door


@pytest.fixture(scope="module", params=NAMES)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """Every sink in turn. chDB takes one path per process: it is let go of at the module's end."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    made: dict[str, Callable[[], Subject]] = {
        "memory": lambda: MemorySubject(folder),
        "postgres": lambda: PostgresSubject(folder, request.getfixturevalue("postgres")),
        "chdb": lambda: ClickHouseSubject("chdb", folder, f"chdb:{folder / 'chdb'}"),
        "clickhouse": lambda: ClickHouseSubject(
            "clickhouse", folder, f"clickhouse://127.0.0.1:{request.getfixturevalue('door').port}"
        ),
    }
    subject = made[request.param]()
    # So that a second batch goes into chDB's ledger with the first; one over HTTP is owed.
    batches = 2 if request.param == "chdb" else owed.BATCHES
    with mock.patch.object(owed, "BATCHES", batches):
        yield subject
    subject.close()


@pytest.fixture
def new_scene(subject: Subject) -> Iterator[Callable[..., Scene]]:
    """Makes scenes: a stream and a Kafka of their own, in the same destination."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(Scene(subject, **how))


@pytest.fixture
def scene(new_scene: Callable[..., Scene]) -> Scene:
    """One scene of two partitions, empty."""
    return new_scene()
