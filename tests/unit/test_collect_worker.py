"""A worker without a server: what it says when it does not serve, or not any more."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from ingest.collector import worker as module
from ingest.collector.settings import CollectSettings
from ingest.collector.worker import Worker
from ingest.streams import BUILT_IN


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    interval = sys.getswitchinterval()
    found = Worker(
        CollectSettings(spool=tmp_path, stop_timeout_s=0.1),
        {"bootstrap.servers": "127.0.0.1:1"},
        BUILT_IN,
    )
    try:
        yield found
    finally:
        found.close(0)
        sys.setswitchinterval(interval)


def test_a_worker_whose_spool_takes_nothing_any_more_is_dead(worker: Worker) -> None:
    assert not worker._node.dead
    worker._node.spool.close()
    assert worker._node.dead


def test_a_worker_whose_spool_takes_nothing_any_more_ends_to_be_started_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Ended(Exception):
        """In place of the process."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("os._exit", end)
    worker._node.spool.close()
    with pytest.raises(Ended, match="1"):
        asyncio.run(asyncio.wait_for(worker._end_with_spool(), 30))
    assert "this worker ends" in caplog.text


def test_what_has_failed_beside_the_requests_keeps_no_spool_from_being_closed(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    async def test() -> None:
        worker._tasks = [asyncio.create_task(failing())]
        await asyncio.sleep(0)
        await worker.stop(0)

    asyncio.run(asyncio.wait_for(test(), 30))
    assert worker._node.spool.closed
    assert "ZeroDivisionError" in caplog.text


def test_too_many_open_files_keep_nobody_from_being_cut_off_later(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool | OSError] = [OSError(errno.EMFILE, "Too many open files"), False, True]

    def end_unread(limit_s: float, others: set[int]) -> bool:
        match said.pop(0):
            case OSError() as error:
                raise error
            case done:
                return done

    monkeypatch.setattr(module, "end_unread", end_unread)
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0)
    asyncio.run(asyncio.wait_for(worker._end_unread(), 30))
    assert not said


def test_a_request_that_comes_when_the_stop_has_begun_is_503_and_starts_nothing(
    worker: Worker,
) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def test() -> None:
        await worker.stop(0)
        await worker.stop(0)
        await worker({"type": "http", "method": "POST", "path": "/v1/events"}, receive, send)

    asyncio.run(asyncio.wait_for(test(), 30))
    start, body = sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert orjson.loads(body["body"])["error"]["code"] == "stopping"
