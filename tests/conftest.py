"""Fixtures shared by all tests: one real local stack for the session, fresh topics and databases."""  # noqa: E501

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings

from headrace.stack import Endpoints, Stack

# How long an example takes is the machine's affair.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka and PostgreSQL, up; gone at the end."""
    with Stack(tmp_path_factory.mktemp("stack") / "state") as running:
        yield running


@pytest.fixture
def endpoints(stack: Stack) -> Endpoints:
    """Where the stack listens; up again if a test before this one took it down."""
    return stack.up(progress=False)


@pytest.fixture
def unique() -> Callable[[str], str]:
    """A name that no other test uses."""
    return lambda prefix: f"{prefix}_{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def database(endpoints: Endpoints, unique: Callable[[str], str]) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    name = unique("test")
    with psycopg.connect(endpoints.postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield endpoints.postgres.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(endpoints.postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def chdb_path(tmp_path: Path) -> Path:
    """A directory for chDB; one process at a time may open it."""
    return tmp_path / "chdb"
