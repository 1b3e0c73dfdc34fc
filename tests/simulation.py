"""Processes and threads that run one at a time, in an order and at a time that a seed decides.

    sim = Simulation(seed)
    with sim.patched(*fake_log.LOOP):
        process = sim.process("first", main)      # main() runs in it; the product's threads too
        sim.run(until=lambda: ..., limit_s=600)
        process.freeze(60); process.kill()        # SIGSTOP and SIGKILL

The product's own code runs, in real threads, but only one of them has the baton. It passes on where
a thread waits (queue, event, sleep) and at every `point`. Time is virtual: it moves by a millisecond
with each pass, and jumps when everyone waits; an hour of backing off costs nothing. The same seed
gives the same run, so a failure can be looked at again.

`patched` replaces the names `time`, `queue`, `threading` and `random` of the given modules.
"""  # noqa: E501

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

__all__ = ["Killed", "Lock", "Process", "Simulation"]

_START_S = 1_000.0
_EPOCH_S = 1_750_000_000.0
_TICK_S = 0.001
# Passes of the baton in one `run`: hundreds are usual, more are a loop without an end.
_MOST_STEPS = 50_000


class Killed(BaseException):
    """Unwinds the threads of a process that was killed; nothing they do has an effect any more."""


@dataclass(eq=False)
class _Task:
    """A thread of a process."""

    process: Process
    name: str
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    # What it waits for, and until when; without both it can go on.
    wants: Callable[[], bool] | None = None
    deadline: float | None = None
    done: bool = False

    def ready(self, now: float) -> bool:
        if not self.process.alive:
            return True
        if self.process.frozen_until > now:
            return False
        if self.wants is None or self.wants():
            return True
        return self.deadline is not None and self.deadline <= now


@dataclass(eq=False)
class Process:
    """A process: it runs, is stopped for a while, or is gone for good."""

    sim: Simulation
    name: str
    alive: bool = True
    frozen_until: float = 0.0
    ended: bool = False
    # What its main function raised or returned.
    error: BaseException | None = None
    result: Any = None

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = False

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after some time."""
        self.frozen_until = max(self.frozen_until, self.sim.now + seconds)

    @property
    def running(self) -> bool:
        """Neither killed nor at its end."""
        return self.alive and not self.ended


class Simulation:
    """See the module's comment."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = _START_S
        self.steps = 0
        # Told of every pass of the baton, on the test's thread; may kill and freeze.
        self.on_step: Callable[[], None] = lambda: None
        self._tasks: list[_Task] = []
        self._back = threading.Semaphore(0)
        self._current: _Task | None = None

    # -- what a test says --------------------------------------------------------------------------

    def process(self, name: str, main: Callable[[], object]) -> Process:
        """Start a process."""
        process = Process(self, name)

        def body() -> None:
            try:
                process.result = main()
            except Killed:
                pass
            except BaseException as error:
                process.error = error
            finally:
                process.ended = True

        self._spawn(process, name, body)
        return process

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Let them run until something holds; fails after so much virtual time."""
        deadline = self.now + limit_s
        most = self.steps + _MOST_STEPS
        while not until():
            self._advance()
            assert self.steps < most, f"they turn in circles: {self._waiting()}"
            assert self.now < deadline, f"not reached within {limit_s} s: {self._waiting()}"

    def end(self) -> None:
        """Kill all that is left, and wait for its threads."""
        for task in self._tasks:
            task.process.kill()
        while any(not task.done for task in self._tasks):
            self._advance()

    @contextmanager
    def patched(self, *modules: ModuleType) -> Iterator[None]:
        """Give these modules our time, queues, threads and chance; ends all of them at the end."""
        ours = {
            "time": SimpleNamespace(
                monotonic=lambda: self.now,
                perf_counter=lambda: self.now,
                time=lambda: _EPOCH_S + self.now,
                sleep=lambda seconds: self.block(lambda: False, seconds),
            ),
            "queue": SimpleNamespace(SimpleQueue=lambda: _Queue(self), Empty=queue.Empty),
            "threading": SimpleNamespace(
                Thread=lambda **how: _Thread(self, **how),
                Event=lambda: _Event(self),
                Lock=lambda: Lock(self),
            ),
            "random": self.rng,
        }
        real = {"time": time, "queue": queue, "threading": threading}
        with ExitStack() as stack:
            for module in modules:
                for name, fake in ours.items():
                    there = getattr(module, name, None)
                    if there is real.get(name, there) and isinstance(there, ModuleType):
                        stack.enter_context(mock.patch.object(module, name, fake))
            try:
                yield
            finally:
                self.end()

    # -- what runs in a process says ---------------------------------------------------------------

    def point(self) -> None:
        """Pass the baton on."""
        self.block(None, None)

    def block(self, wants: Callable[[], bool] | None, timeout_s: float | None) -> bool:
        """Wait until something holds, or the time is over; whether it holds."""
        task = self._current
        if task is None:
            assert wants is None or wants() or timeout_s is not None, "the test itself would hang"
            return wants is None or wants()
        if not task.process.alive:
            raise Killed
        task.wants = wants
        task.deadline = None if timeout_s is None else self.now + timeout_s
        self._back.release()
        task.go.acquire()
        if not task.process.alive:
            raise Killed
        return wants is None or wants()

    @property
    def here(self) -> Process | None:
        """The process that has the baton."""
        return None if self._current is None else self._current.process

    # -- the baton ---------------------------------------------------------------------------------

    def _spawn(self, process: Process, name: str, body: Callable[[], None]) -> _Task:
        task = _Task(process, name)

        def run() -> None:
            task.go.acquire()
            try:
                if process.alive:
                    body()
            except Killed:
                pass
            except BaseException as error:
                process.error = process.error or error
            finally:
                task.done = True
                self._back.release()

        self._tasks.append(task)
        threading.Thread(target=run, name=f"sim-{process.name}-{name}", daemon=True).start()
        return task

    def _advance(self) -> None:
        """One pass of the baton."""
        assert self._current is None
        self.on_step()
        self._tasks = [task for task in self._tasks if not task.done]
        ready = [task for task in self._tasks if task.ready(self.now)]
        if not ready:
            self._jump()
            return
        task = self.rng.choice(ready)
        self.steps += 1
        self.now += _TICK_S
        self._current = task
        task.go.release()
        self._back.acquire()
        self._current = None

    def _jump(self) -> None:
        """Nobody can go on: it is later."""
        times = [t.process.frozen_until for t in self._tasks if t.process.frozen_until > self.now]
        times += [
            t.deadline
            for t in self._tasks
            if t.deadline is not None and t.process.frozen_until <= self.now
        ]
        self.now = max(self.now + _TICK_S, min(times, default=self.now + 1.0))

    def _waiting(self) -> str:
        return ", ".join(f"{t.process.name}/{t.name}" for t in self._tasks) or "nobody is left"


class Lock:
    """A lock between processes (a database's, say); given back when its holder is killed."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.held = False

    def __enter__(self) -> None:
        self._sim.block(lambda: not self.held, None)
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False


class _Queue:
    """queue.SimpleQueue."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._items: deque[Any] = deque()

    def put(self, item: object) -> None:
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            self._sim.block(lambda: bool(self._items), timeout)
        return self.get_nowait()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


class _Event:
    """threading.Event."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        return self._sim.block(lambda: self._set, timeout)


class _Thread:
    """threading.Thread, in the process that starts it."""

    def __init__(
        self, sim: Simulation, target: Callable[[], None], name: str = "", daemon: bool = True
    ) -> None:
        self._sim, self._target, self._name = sim, target, name
        self._task: _Task | None = None

    def start(self) -> None:
        process = self._sim.here
        assert process is not None, "threads start in a process"
        self._task = self._sim._spawn(process, self._name, self._target)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        self._sim.block(lambda: not self.is_alive(), timeout)
