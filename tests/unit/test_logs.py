"""Logs: JSON lines where nobody looks, for a person on a terminal; always on stderr."""

from __future__ import annotations

import importlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
import structlog
import urllib3

from headrace.logs import configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """The root logger as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def logged(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    configure()
    logging.getLogger("headrace.test").debug("not shown")
    logging.getLogger("headrace.test").warning("%s of %d", "one", 2)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("headrace.test").exception("it failed")
    return stream.getvalue()


def test_without_a_terminal_each_log_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = map(json.loads, logged(monkeypatch, io.StringIO()).splitlines())
    assert first.keys() == {"event", "level", "logger", "timestamp"}
    assert (first["event"], first["level"], first["logger"]) == (
        "one of 2", "warning", "headrace.test",
    )  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first["timestamp"])
    assert second["level"] == "error"
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("ValueError: why")


def test_on_a_terminal_a_log_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", logged(monkeypatch, Terminal()))
    assert re.match(r"\d\d:\d\d:\d\d \[warning *\] one of 2 ", plain)
    assert "it failed" in plain
    assert "ValueError" in plain


def test_configuring_twice_says_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    configure()
    configure()
    logging.getLogger("x").warning("once")
    assert out.getvalue().count("once") == 1


def test_attempts_that_failed_inside_a_client_are_not_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    configure()
    # It sets the level of urllib3 when it is imported, which an inserter does after `configure`.
    for name in [n for n in sys.modules if n.startswith("clickhouse_connect")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("clickhouse_connect.driver.httputil")
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        urllib3.PoolManager().request("GET", "http://127.0.0.1:1/", retries=1)
    assert out.getvalue() == ""


def test_logging_leaves_structlogs_own_configuration_alone() -> None:
    before = structlog.get_config()
    configure()
    assert structlog.get_config() == before
