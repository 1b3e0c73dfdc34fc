"""How each kind of fault is done, and undone when its time is over.

Everything happens in the thread that calls `step`, but for servers, which take seconds to start:
theirs is another thread, and a server that is away is left alone until it is back.
"""

from __future__ import annotations

import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import psutil
from chaos.schedule import Fault
from chaos.world import Installation
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

__all__ = ["Faults"]

_LIMIT_BYTES = 4096
_SLOW_BYTES_PER_S = 20_000
_FAST_BYTES_PER_S = 1e12


class Faults:
    """Those of one schedule; `settle` undoes what is not undone yet."""

    def __init__(self, here: Installation) -> None:
        self._here = here
        self._began = time.monotonic()
        self._due = list(here.schedule.faults)
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._pool = ThreadPoolExecutor(8, "fault")
        # What goes on in other threads: servers on their way back, storms.
        self._busy: dict[str, Future[None]] = {}
        self._kinds: dict[str, Callable[[Fault], bool | None]] = {
            "kill": self._kill, "stop": self._stop, "away": self._away, "cut": self._cut,
            "refuse": self._refuse, "hold": self._hold, "slow": self._slow,
            "partitions": self._partitions, "storm": self._storm, "disk": self._disk,
            "vendor": self._vendor, "replay": self._replay,
        }  # fmt: skip
        # What was done, by kind; what found nothing to befall is not in it.
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        """Do and undo what is due."""
        now = time.monotonic() - self._began
        for entry in [entry for entry in self._undo if entry[0] <= now]:
            self._undo.remove(entry)
            entry[1]()
        while self._due and self._due[0].at <= now:
            fault = self._due.pop(0)
            if self._kinds[fault.kind](fault) is not False:
                self.done[fault.kind] += 1

    def settle(self) -> None:
        """Nothing is broken behind it."""
        for _, undo in self._undo:
            undo()
        for future in self._busy.values():
            future.result()
        self._pool.shutdown()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() - self._began + seconds, undo))

    # -- processes

    def _kill(self, fault: Fault) -> bool:
        if fault.target == "worker":
            workers = self._here.workers()
            for worker in workers[:1]:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            return bool(workers)
        process = self._here.processes.get(fault.target)
        if process is None or not process.alive:
            return False
        process.signal(signal.SIGKILL)
        return True

    def _stop(self, fault: Fault) -> bool:
        pid = self._pid(fault.target)
        if pid is None:
            return False
        # Of this process, not of another one that has got its number meanwhile.
        process = psutil.Process(pid)
        process.suspend()

        def resume() -> None:
            with suppress(psutil.NoSuchProcess):
                process.resume()

        self._later(fault.seconds, resume)
        return True

    def _pid(self, target: str) -> int | None:
        if target == "kafka":
            return None if self._is_away("kafka") else self._here.world.stack.kafka.pid
        if target == "worker":
            return next((w.pid for w in self._here.workers()), None)
        process = self._here.processes.get(target)
        return process.process.pid if process and process.process and process.alive else None

    # -- servers

    def _is_away(self, server: str) -> bool:
        return server in self._busy and not self._busy[server].done()

    def _away(self, fault: Fault) -> bool:
        def away() -> None:
            world.away(fault.target)
            time.sleep(fault.seconds)
            world.back(fault.target)

        world = self._here.world
        if self._is_away(fault.target):
            return False
        self._busy[fault.target] = self._pool.submit(away)
        return True

    def _partitions(self, _: Fault) -> bool:
        """One more of them."""
        admin = AdminClient({"bootstrap.servers": self._here.world.kafka, "log_level": 0})
        topic = self._here.name
        try:
            now = len(admin.list_topics(topic, timeout=2).topics[topic].partitions)
            admin.create_partitions([NewPartitions(topic, now + 1)])[topic].result(2)
        except (KafkaException, TimeoutError):
            return False
        return True

    def _storm(self, fault: Fault) -> bool:
        """Somebody joins the group and leaves it, again and again, and reads nothing."""
        name = self._here.name
        own = fault.target in ("postgres", "clickhouse")
        group = f"{name}-{fault.target}" if own else f"headrace-forward-{fault.target}"
        until = time.monotonic() + fault.seconds

        def storm() -> None:
            while time.monotonic() < until:
                member = Consumer(
                    {"bootstrap.servers": self._here.world.kafka, "group.id": group,
                     "group.protocol": "consumer", "enable.auto.commit": False, "log_level": 0}
                )  # fmt: skip
                member.subscribe([name])
                member.poll(0.4)
                member.close()

        self._busy[f"storm {len(self._busy)}"] = self._pool.submit(storm)
        return True

    # -- links, the disk, vendors, replays

    def _cut(self, fault: Fault) -> None:
        self._here.proxies[fault.target].cut_all()

    def _refuse(self, fault: Fault) -> None:
        proxy = self._here.proxies[fault.target]
        proxy.refuse()
        proxy.cut_all()
        self._later(fault.seconds, lambda: proxy.refuse(False))

    def _hold(self, fault: Fault) -> None:
        proxy = self._here.proxies[fault.target]
        proxy.hold()
        self._later(fault.seconds, proxy.release)

    def _slow(self, fault: Fault) -> None:
        def at(bytes_per_s: float) -> None:
            proxy.slow(bytes_per_s, "up")
            proxy.slow(bytes_per_s, "down")

        proxy = self._here.proxies[fault.target]
        at(_SLOW_BYTES_PER_S)
        self._later(fault.seconds, lambda: at(_FAST_BYTES_PER_S))

    def _disk(self, fault: Fault) -> bool:
        """Full: a worker that is started meanwhile has room again."""
        self._here.limit_files(_LIMIT_BYTES)
        self._later(fault.seconds, lambda: self._here.limit_files(resource.RLIM_INFINITY))
        return bool(self._here.workers())

    def _vendor(self, fault: Fault) -> None:
        vendors = self._here.world.vendors
        vendors.break_(fault.target, **dict(fault.misdeeds))
        self._later(fault.seconds, lambda: vendors.mend(fault.target))

    def _replay(self, _: Fault) -> bool:
        return self._here.replay()
