"""The process over the workers: it starts them, says when all are up, starts again what dies.

    before all are up   a worker that ends has said why, and trying again would not mend it: it
                        ends the others too, and the exit code is 1
    from then on        one that dies is started again, with the spool that it leaves: at once, and
                        while it dies again within a minute after 1, 2, 4 and up to 30 seconds. The
                        others go on. The parent never gives up by itself, so that one bad spool
                        does not close three good ones; what dies is in the log, with its signal
    a stop              is heard whenever it comes: also while a worker is made, and by it too;
                        who has not ended `workers_kill_timeout` behind it is killed

granian's own parent gives up when a worker dies twice within 5.5 seconds, and now and then kills
one that has ended. So its loop and its stop are replaced here: `_serve_loop`, `_spawn_workers`,
`_spawn_worker` and `_stop_workers` are not its interface, and a new version of it has to pass
tests/integration/test_collect.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

from granian.server.mp import MPServer

from ingest.collector.settings import nearby

__all__ = ["Bell", "Loader", "Parent", "Up", "pause_s"]

_log = logging.getLogger("headrace.collect")

# A worker that lived for so long was well: what killed it is taken for something new.
_WELL_S = 60.0
_LONGEST_PAUSE_S = 30.0
# All workers have started, and within milliseconds of it the port answers.
_ANSWERS_WITHIN_S = 5.0
_ASK_EVERY_S = 0.01
# What granian's parent has handlers for.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def pause_s(failures: int) -> float:
    """How long to wait before a worker is started that has died so many times in a row."""
    return 0.0 if failures < 2 else min(_LONGEST_PAUSE_S, 2.0 ** min(failures - 2, 30))


class Up:
    """How workers tell their parent that they have started. Made in the parent."""

    def __init__(self) -> None:
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)

    def tell(self) -> None:
        """In a worker: it has started. What is as short as this is written whole."""
        self._sender.send_bytes(b"%d" % os.getpid())

    def next(self) -> int:
        """In the parent: wait for the next one; its process."""
        return int(self._receiver.recv_bytes())


class Bell:
    """An Event that a signal's handler may set, whatever it interrupts.

    threading's own has a lock, and whoever is interrupted may be the one that holds it: then the
    handler waits for ever.
    """

    def __init__(self) -> None:
        self._end, self._button = os.pipe()
        os.set_blocking(self._end, False)
        os.set_blocking(self._button, False)
        self._poll = select.poll()
        self._poll.register(self._end, select.POLLIN)

    def set(self) -> None:
        """End the wait that is, or the next one."""
        with contextlib.suppress(BlockingIOError):  # it rings already
            os.write(self._button, b"!")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it is set; False after the time."""
        return bool(self._poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)))

    def clear(self) -> None:
        """Forget what was set."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._end, 4096):
                pass


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait meanwhile: for the parent until it is over, for a worker until Loader."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Loader:
    """Makes the application, in a worker.

    The parent's handlers of signals came along, and would keep a stop from a worker that is still
    starting. So signals were held back when it was made, until they mean something here. Ctrl-C
    reaches both; the parent has the last word on it.
    """

    def __init__(self, load: Callable[[], Callable[..., Any]]) -> None:
        self._load = load

    def __call__(self) -> Callable[..., Any]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return self._load()


class Parent(MPServer):
    """granian, with the rules above. `on_up` is called once, when the port answers."""

    def __init__(self, *args: Any, up: Up, on_up: Callable[[], object], **settings: Any) -> None:
        if multiprocessing.get_start_method() == "forkserver":
            # Python 3.14's choice on Linux: workers would be children of a third process.
            multiprocessing.set_start_method("fork", force=True)
        super().__init__(*args, **settings)
        self._up = up
        self._on_up = on_up
        self._answers = False
        self._failures = dict.fromkeys(range(self.workers), 0)
        self.reload_signal = False
        self.main_loop_interrupt: Any = Bell()
        self.on_shutdown(self._forgive)

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        try:
            with _held_back():
                super()._spawn_workers(spawn_target, target_loader)  # type: ignore[no-untyped-call]  # granian's has no types
        except (OSError, RuntimeError) as error:  # of a fork, of a thread
            _log.error("no worker can be made: %s", error)
            self._end()

    def _stop_workers(self) -> None:
        workers: list[Any] = self.wrks
        for worker in workers:
            worker.terminate()
        assert self.workers_kill_timeout is not None  # noqa: S101 (server.py gives it)
        until = time.monotonic() + self.workers_kill_timeout
        for worker in workers:
            # Not join() and is_alive(): a worker's thread here waits for it too, and whichever of
            # two that wait does not get the exit code is told that the process lives.
            if not wait([worker.inner.sentinel], max(0.0, until - time.monotonic())):
                _log.warning(
                    "a worker, process %d, has not ended %d s after it was told to stop: it is "
                    "killed. What it acknowledged is on disk, and sent at the next start",
                    worker.inner.pid, self.workers_kill_timeout,
                )  # fmt: skip
                worker.kill()
            worker.join()
        workers.clear()

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        try:
            self._watch_over(spawn_target, target_loader)
        except Exception:
            _log.exception("the parent of the workers has failed, and stops them")
            self._end()

    def _end(self) -> None:
        """Exit code 1, the workers first: else Python would wait for them, and nobody stop them."""
        self.shutdown(1)  # type: ignore[no-untyped-call]  # granian's has no types

    def _forgive(self) -> None:
        """Behind the workers' end: who ended while it was waited for is nobody's failure."""
        if self.interrupt_signal:
            self.interrupt_children.clear()

    def _watch_over(self, spawn_target: Any, target_loader: Any) -> None:
        threading.Thread(target=self._await_workers, name="headrace-up", daemon=True).start()
        is_up = False
        due: dict[int, float] = {}
        while True:
            now = time.monotonic()
            # Until something happens, or a pause is over.
            self.main_loop_interrupt.wait(max(0.0, min(due.values()) - now) if due else None)
            self.main_loop_interrupt.clear()
            if self.interrupt_signal:
                return
            if self.reload_signal:
                self.reload_signal = False
                _log.info("SIGHUP does nothing: keys are read again anyway, settings at a start")
            if self._answers and not is_up:
                is_up = True
                self._on_up()
            if self.interrupt_children and not is_up:
                worker = self.wrks[self.interrupt_children[0]]
                _log.error(
                    "a worker, process %d, has ended before all were up: %s",
                    worker.inner.pid, _how(worker.inner.exitcode),
                )  # fmt: skip
                return  # and shutdown() ends with exit code 1
            while self.interrupt_children:
                number = self.interrupt_children.pop()
                due[number] = time.monotonic() + self._pause(number)
            for number in [number for number, at in due.items() if at <= time.monotonic()]:
                del due[number]
                try:
                    self._start_again(number, spawn_target, target_loader)
                except (OSError, RuntimeError) as error:  # of a fork, of a thread
                    self._failures[number] += 1
                    pause = max(1.0, pause_s(self._failures[number]))
                    due[number] = time.monotonic() + pause
                    _log.error("no worker can be made: %s; it is tried again in %g s", error, pause)

    def _start_again(self, number: int, spawn_target: Any, target_loader: Any) -> None:
        """A worker in the place of one that has ended."""
        with _held_back():
            worker: Any = self._spawn_worker(
                idx=number, target=spawn_target, callback_loader=target_loader
            )
            try:
                worker.start()
            except BaseException:
                # There may be a process, and no thread that watches it.
                if worker.inner.pid is not None:
                    worker.kill()
                    worker.join()
                raise
            self.wrks[number] = worker

    def _pause(self, number: int) -> float:
        """How long to wait before this one is started again; says so."""
        worker = self.wrks[number]
        well = time.monotonic() - worker.birth > _WELL_S
        self._failures[number] = 1 if well else self._failures[number] + 1
        pause = pause_s(self._failures[number])
        _log.error(
            "a worker, process %d, has ended: %s; it is started again %s",
            worker.inner.pid, _how(worker.inner.exitcode), f"in {pause:g} s" if pause else "now",
        )  # fmt: skip
        return pause

    def _await_workers(self) -> None:
        """In a thread: until all have started and the port answers."""
        for _ in range(self.workers):
            self._up.next()
        until = time.monotonic() + _ANSWERS_WITHIN_S
        while time.monotonic() < until and not _answers(self.bind_addr, self.bind_port):
            time.sleep(_ASK_EVERY_S)
        self._answers = True
        self.main_loop_interrupt.set()
        while True:
            _log.info("a worker, process %d, has started", self._up.next())


def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((nearby(host), port), _ANSWERS_WITHIN_S).close()
    except OSError:
        return False
    return True


def _how(code: int | None) -> str:
    """An exit code of multiprocessing, in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
