"""A worker: one process with one event loop, one spool, one relay; number 0 has the unix socket.

    start   keys, the spool (of the first free directory), the relay; then the doors are open
    serve   ASGI requests go to App
    stop    the server has stopped taking requests; those under way are answered, the relay gets a
            few seconds, the spool is closed. What is in it by then is sent at the next start

The server says so once its last connection is closed, and a client may keep one for ever, with half
a body or nothing in it. So the signal counts: `stop_timeout_s` behind it whoever still sends is cut
off, and when all is closed the process ends, whoever is still connected.

A worker whose parent has died ends at once, as though it had been killed too: nobody would start it
again, and its spool would stay locked. One whose spool's writer has failed ends too, and is started
again. What was acknowledged is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

from ingest.collector import answers
from ingest.collector.acks import Acks
from ingest.collector.app import App, start_of
from ingest.collector.doors import doors
from ingest.collector.intake import Intake
from ingest.collector.keys import Keys
from ingest.collector.node import Node, folder_of, left_over, open_free
from ingest.collector.openapi import describe
from ingest.collector.pages import Fresh, Readiness, pages
from ingest.collector.probe import Probe
from ingest.collector.quota import DailyFile, Quota
from ingest.collector.settings import CollectError, CollectSettings, host_and_port
from ingest.collector.silent import Silent, end_unread, listening
from ingest.collector.unix import UnixDoor
from ingest.settings import Settings
from ingest.streams import Stream

__all__ = ["Worker"]

_log = logging.getLogger("headrace.collect")

_SAVE_EVERY_S = 1.0
_UNTIL_IT_LISTENS_S = 0.05
_PROBE_EVERY_S = 10.0
_LOOK_EVERY_S = 5.0
# The interpreter's lock changes hands between the loop and the spool's writer. 5 ms, its default,
# is longer than a commit: the writer would sit in front of it five times in each.
_SWITCH_S = 0.000_5
_GC_OBJECTS = 20_000
# What was cut off gets its answer, and the answers get on their way.
_LAST_WORDS_S = 0.5
_STOPPING = answers.error(
    503, "stopping", "the collector stops; nothing of this was stored", (b"retry-after", b"1"),
    (b"connection", b"close"),
)  # fmt: skip


class Worker:
    """The ASGI application of one process, lifespan included. Made in that process.

    `on_up` is called once it has started. Raises SpoolError, KeyFileError, CollectError,
    SettingError.
    """

    def __init__(
        self,
        settings: CollectSettings,
        kafka: Settings,
        streams: Mapping[str, Stream],
        on_up: Callable[[], None] = lambda: None,
    ) -> None:
        assert settings.spool is not None  # noqa: S101 (server.py sees to it)
        sys.setswitchinterval(_SWITCH_S)
        self._settings = settings
        self._streams = streams
        self._on_up = on_up
        self._keys = Keys(settings.keys) if settings.keys is not None else None
        self.number, spool = open_free(settings.spool, settings.workers, settings.spool_limits)
        try:
            topics = [stream.topic for stream in streams.values()]
            self._node = Node(
                spool, settings.spool_limits, kafka, topics, settings.max_record_bytes
            )
        except BaseException:
            spool.close()
            raise
        self._daily = DailyFile(folder_of(settings.spool, self.number) / "quota.json")
        self._quota = Quota(self._daily.load())
        self._unix: UnixDoor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._intake: Intake | None = None
        self._acks: Acks | None = None
        self._app: App | None = None
        # What listens here and is not the server.
        self._others: set[int] = set()
        self._server_is_done = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> Awaitable[None]:
        """ASGI."""
        if scope["type"] == "http":
            return (self._app or _refuse)(scope, receive, send)
        return self._lifespan(receive, send)

    async def start(self) -> None:
        """In the event loop that is to serve. Raises CollectError."""
        settings, node = self._settings, self._node
        loop = asyncio.get_running_loop()
        acks = self._acks = Acks(node.spool, loop)
        found = doors(self._streams)
        relay = node.relay
        self._intake = Intake(
            settings, found, acks,
            keys=self._keys, quota=self._quota, relay_error=lambda: relay.error,
        )  # fmt: skip
        others: dict[Any, int] = {}
        if self.number == 0 and settings.spool is not None:
            others = dict(left_over(settings.spool, settings.workers))
            for folder, records in others.items():
                _log.warning(
                    "%s holds %d records that none of the %d workers sends: send them with "
                    "`headrace spool drain %s`", folder, records, settings.workers, folder,
                )  # fmt: skip
        ready = Readiness(node, acks, self.number, others, self._keys)
        described = describe(found, self._streams, settings, self._keys is not None)
        read = pages(
            ready, node, self._intake.tally, described,
            with_metrics=settings.metrics is None and settings.workers == 1,
        )  # fmt: skip
        self._serve_metrics(node)
        # Such as that of the metrics. The server's own listens only when this has started.
        with contextlib.suppress(OSError):
            self._others = listening()
        node.start(acks.moved)
        if settings.socket is not None and self.number == 0:
            self._unix = UnixDoor(
                settings.socket, acks, self._streams, limits=settings.limits,
                find_key=self._keys.find if self._keys is not None else None,
                stalled=lambda: relay.error,
            )  # fmt: skip
            await self._unix.start()
        self._tasks = [
            loop.create_task(work)
            for work in (
                self._intake.sweep(),
                self._save(),
                self._time_the_disk(),
                self._end_with_spool(),
                self._end_unread(),
            )
        ]
        if settings.speaks_http2:
            self._tasks.append(loop.create_task(self._close_silent()))
        if (parent := multiprocessing.parent_process()) is not None:
            loop.add_reader(parent.sentinel, _parent_is_gone)
        # What is here by now stays: the collector of cycles need not look at it each time, nor
        # after every few requests for new ones.
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS, 20, 50)
        self._app = App(found, self._intake, read)
        # Beside the server's own, which it has given to the loop: both are called.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._on_signal))

    async def stop(self, grace_s: float) -> None:
        """Answer what is under way, for so long; close everything. Whoever asks again waits too."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        intake, self._app = self._intake, None
        if self._unix is not None:
            await self._unix.close(grace)
        # Counted and not signalled: a request is the hot path.
        while intake is not None and intake.requests and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for task in self._tasks:
            task.cancel()
        # One that has failed must not keep the spool from being closed.
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                _log.error("something beside the requests has failed: %r", ended)
        await asyncio.to_thread(self.close, self._settings.stop_timeout_s)

    def close(self, grace_s: float) -> None:
        """Keep the quota's counts, let the relay send for so long, close the spool."""
        if (used := self._quota.due(float("inf"))) is not None:
            self._daily.write(used)
        self._node.close(grace_s)

    # -- inside

    def _on_signal(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end_in_time())

    async def _end_in_time(self) -> None:
        """What the server does not do by itself: an end to the waiting for clients."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server_is_done.wait(), self._settings.stop_timeout_s)
            return
        if self._intake is not None and self._acks is not None:
            self._intake.cut()
            self._acks.give_up()
        await self.stop(_LAST_WORDS_S)
        await asyncio.sleep(_LAST_WORDS_S)
        # All is closed and on disk. The server would still wait.
        os._exit(0)

    async def _lifespan(
        self,
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        await receive()
        try:
            await self.start()
        except CollectError as error:
            _log.error("%s", error)
            await asyncio.to_thread(self.close, 0)
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        await send({"type": "lifespan.startup.complete"})
        self._on_up()
        await receive()
        self._server_is_done.set()
        await self.stop(self._settings.stop_timeout_s)
        await send({"type": "lifespan.shutdown.complete"})

    async def _end_with_spool(self) -> None:
        """Its writer does not fail of what is foreseen. Has it, then a new process finds what was
        acknowledged, as behind a crash; this one would refuse all for as long as it is up."""
        while not self._node.spool.closed:  # noqa: ASYNC110 (a thread's word, and nobody hurries)
            await asyncio.sleep(_LOOK_EVERY_S)
        _log.error("the spool takes nothing any more, see above: this worker ends")
        os._exit(1)

    async def _save(self) -> None:
        """Daily counts, now and then."""
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            if (used := self._quota.due(time.time())) is not None:
                await asyncio.to_thread(self._daily.write, used)

    async def _time_the_disk(self) -> None:
        """What the disk takes by itself, beside what a commit takes."""
        probe = Probe(folder_of(self._settings.spool or Path(), self.number))
        try:
            while True:
                await asyncio.to_thread(probe.sync)
                await asyncio.sleep(_PROBE_EVERY_S)
        finally:
            await asyncio.to_thread(probe.close)

    async def _end_unread(self) -> None:
        """An end to connections whose other side takes nothing, once the server listens."""
        while True:
            try:
                if end_unread(self._settings.silence_s, self._others):
                    return
            except OSError:  # too many open files: it is looked again
                await asyncio.sleep(_LOOK_EVERY_S)
            await asyncio.sleep(_UNTIL_IT_LISTENS_S)

    async def _close_silent(self) -> None:
        """An end to connections that the server would wait for for ever."""
        limit = self._settings.silence_s
        silent = Silent(limit)
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, limit / 4))
            try:
                closed = await asyncio.to_thread(silent.close)
            except OSError as error:  # such as too many open files; it is looked again
                _log.warning("connections that say nothing can't be looked for: %s", error)
            else:
                if closed:
                    _log.info("%d connections closed that said nothing for %g s", closed, limit)

    def _serve_metrics(self, node: Node) -> None:
        if self._settings.metrics is None:
            return
        host, port = host_and_port(self._settings.metrics, "metrics")
        try:
            start_http_server(port + self.number, host, Fresh(node))
        except OSError as error:
            raise CollectError(
                f"metrics {host}:{port + self.number}: {error.strerror}; choose another port"
            ) from error


async def _refuse(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """The answer to what comes in when the stop has begun."""
    await send(start_of(_STOPPING))
    await send({"type": "http.response.body", "body": _STOPPING.body})


def _parent_is_gone() -> None:
    os._exit(1)
