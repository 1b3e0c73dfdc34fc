"""Apache Kafka as a service of the local stack: start, recover, stop.

A killed broker loses nothing that it acknowledged: the records are in the page cache, and the next
start reads the last segments again. (A power cut may lose what was not flushed: one node has no
second replica.)
"""

from __future__ import annotations

import signal
from dataclasses import replace

import psutil

from . import jars, warmstart
from .kafka_node import READY_S, Node
from .model import ServiceStatus, StackError
from .ports import port_is_free, who_listens
from .process import end, find, recorded, size, spawn, wait_ready
from .state import Home, Say, Settings
from .status import service_status

STOP_S = 30.0


def _silent(_: str) -> None:
    pass


class Kafka:
    """See `model.Service`. Ports and cluster id come from the state file."""

    name = "kafka"

    def __init__(self, home: Home) -> None:
        self._home = home
        self._mine = Node(home.path / "kafka", 0, 0).mine()

    @property
    def pid(self) -> int | None:
        """Of the running broker, None when there is none."""
        p = self.recorded()
        return None if p is None else p.pid

    def recorded(self) -> psutil.Process | None:
        return recorded(self._home.pid_file(self.name), self._mine)

    def find(self) -> psutil.Process | None:
        """Also when the pid file was lost; slower than `recorded` by one look at all processes."""
        return find(self._home.pid_file(self.name), self._mine)

    def install(self, say: Say, *, progress: bool) -> None:
        """Makes sure that the jars and the start-up cache are there; half a minute when not."""
        found = jars.ensure_jars(say, progress=progress)
        warmstart.ensure_cache(tuple(found), say)

    def start(self) -> None:
        """Returns when the broker answers; StackError (with the end of its log) otherwise."""
        settings = known(self._home)
        node = Node(self._home.path / "kafka", settings.kafka_port, settings.controller_port)
        log = self._home.log(self.name)
        before = size(log)
        p = self.find()
        if p is None:
            # 1. the software
            found = tuple(jars.ensure_jars(_silent, progress=False))
            node = replace(node, jars=found, aot_cache=warmstart.ensure_cache(found, _silent))
            # 2. the data directory
            node.write_config()
            if not (node.data / "meta.properties").exists():
                node.format(settings.cluster_id)
            # 3. the server
            for port in (node.port, node.controller_port):
                claim(port, "Kafka")
            p = spawn(
                node.command(), log=log, pid_file=self._home.pid_file(self.name), cwd=node.dir
            )
        wait_ready("Kafka", p, node.problem, log=log, log_start=before, deadline_s=READY_S)

    def stop(self) -> None:
        """A clean shutdown; SIGKILL when it takes longer than 30 s."""
        p = self.find()
        if p is not None:
            end(p, signal.SIGTERM, STOP_S)
        self._home.pid_file(self.name).unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, as an operating system out of memory would. `status` then says crashed."""
        p = self.find()
        if p is not None:
            end(p, signal.SIGKILL, STOP_S)

    def status(self) -> ServiceStatus:
        settings = self._home.load()
        version = jars.kafka_version()
        installed, note = jars.present(), ""
        if not installed:
            note = "its jars are not in the cache: `headrace up` downloads them (45 MB)"
        port = settings.kafka_port if settings else None
        return service_status(
            self, self._home, version=version, installed=installed, port=port, note=note
        )


def known(home: Home) -> Settings:
    settings = home.load()
    if settings is None:
        raise StackError(f"there is no stack in {home.path} yet: `headrace up` makes it.")
    return settings


def claim(port: int, name: str) -> None:
    """StackError unless `port` is free."""
    if not port_is_free(port):
        raise StackError(
            f"{name} cannot use port {port}: {who_listens(port)} does. End that, or run "
            "`headrace up` again: it chooses another port unless you fixed it."
        )
