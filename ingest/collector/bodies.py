"""The bodies that are being read: each has its time, and at a stop none has any left.

One clock for all of them, which whoever sweeps sets: a timer for each request costs more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ingest.collector.answers import Refused
from ingest.collector.body import Receive, drop, read
from ingest.collector.judge import Limits

__all__ = ["Bodies"]


class Bodies:
    """Those of one event loop. Made in it."""

    def __init__(self, limits: Limits, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._timeout_s = timeout_s
        self._tick = time.monotonic()
        # By task since when one is being read.
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._cut: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def sweep(self) -> None:
        """Cut off those that take too long; to be called every now and then."""
        self._tick = time.monotonic()
        since = self._tick - self._timeout_s
        for task, begun in list(self._reading.items()):
            if begun < since:
                self._end(task)

    def stop(self) -> None:
        """Read none any further: whoever sends one has had its time."""
        self._stopping = True
        for task in self._reading:
            self._end(task)

    async def read(self, receive: Receive, length: int) -> bytes:
        """As `body.read`. Raises also Refused: 408, 503."""
        task = self._begin()
        try:
            return await read(receive, length, self._limits)
        except asyncio.CancelledError:
            if not self._is_cut(task):
                raise
            if self._stopping:
                raise Refused(
                    503, "stopping", "the collector stops; nothing of this was stored",
                    (b"retry-after", b"1"), (b"connection", b"close"),
                ) from None  # fmt: skip
            raise Refused(
                408, "too_slow", f"the body did not come within {self._timeout_s:g} s",
                (b"connection", b"close"),
            ) from None  # fmt: skip
        finally:
            del self._reading[task]

    async def drop(self, headers: Mapping[bytes, bytes], receive: Receive) -> None:
        """Let the sender of a body that nobody wants come to its end, so that it hears the answer.

        At most twice what a body may have, for as long as one may take. More than that is not worth
        the reading, and whoever expects a word before it sends (curl) gets it at once.
        """
        most = 2 * self._limits.body_bytes
        length = int(headers.get(b"content-length", b"0"))
        if self._stopping or b"expect" in headers or length > most:
            return
        task = self._begin()
        try:
            await drop(receive, most)
        except asyncio.CancelledError:
            if not self._is_cut(task):
                raise
        finally:
            del self._reading[task]

    def _begin(self) -> asyncio.Task[Any]:
        # To look for the loop itself asks the system for the process's number, up to Python 3.11.
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 (for mypy: this is called in a coroutine)
        self._reading[task] = self._tick
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        if task not in self._cut:
            self._cut.add(task)
            task.cancel()

    def _is_cut(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was cancelled here; it goes on then, with its answer."""
        if task not in self._cut:
            return False
        task.uncancel()
        self._cut.discard(task)
        return True
