"""The servers of all schedules, and the processes of one.

`World` is Kafka, PostgreSQL, ClickHouse's engine behind its HTTP interface, and the stand-in
vendors: started once. `Installation` is what one schedule plays with: a topic and tables of its
own, the product's processes, a proxy at each link, and a supervisor that starts again what has
ended.
"""

from __future__ import annotations

import resource
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from chaos.checker import Places
from chaos.process import Process
from chaos.schedule import LINKS, Schedule
from chdb_door import Door, running_door
from inserter import free_port
from tcp_proxy import Proxy

from headrace.stack import Stack
from headrace.vendors.client import Vendors, serve

__all__ = ["Installation", "World"]

# For what was told to end; the product promises 10 s, on a machine that is not busy with others.
_PATIENCE_S = 40.0
_VENDORS = {
    "amplitude": 'api_key_env = "STANDIN_KEY"\nendpoint',
    "webhook": 'secret_env = "STANDIN_KEY"\nmax_events = 50\nurl',
    "posthog": 'api_key_env = "STANDIN_KEY"\nendpoint',
}
# Live ones; the third gets all that it has by replays.
_LIVE = ("amplitude", "webhook")
_CONFIG = """
[trace.events.checkout.properties]
step = "integer"
plan = "string"
"""


@dataclass
class World:
    """What stays up from schedule to schedule."""

    stack: Stack
    kafka: str
    postgres: str
    clickhouse: Door
    vendors: Vendors

    @classmethod
    @contextmanager
    def open(cls, stack: Stack, folder: Path) -> Iterator[World]:
        """On a stack that is up."""
        at = stack.up(progress=False)
        with running_door(folder / "chdb") as door, serve() as vendors:
            yield cls(stack, at.kafka, at.postgres, door, vendors)

    def away(self, server: str) -> None:
        """SIGKILL; PostgreSQL `immediate`."""
        if server == "kafka":
            self.stack.kafka.kill()
        elif server == "postgres":
            self.stack.postgres.stop("immediate")
        else:
            self.clickhouse.kill()

    def back(self, server: str) -> None:
        """Up again, and answering."""
        if server == "kafka":
            self.stack.kafka.start()
        elif server == "postgres":
            self.stack.postgres.start()
        else:
            self.clickhouse.start()


@dataclass
class Installation:
    """What one schedule plays with; closed, nothing of it runs."""

    world: World
    schedule: Schedule
    folder: Path
    name: str
    port: int = field(default_factory=free_port)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    began_us: int = field(default_factory=lambda: time.time_ns() // 1000)

    @classmethod
    @contextmanager
    def open(
        cls, world: World, schedule: Schedule, folder: Path, name: str
    ) -> Iterator[Installation]:
        """With topics, tables and all processes started; they may not listen yet."""
        here = cls(world, schedule, folder, name)
        with ExitStack() as stack:
            stack.callback(here.close)
            for link in LINKS:
                here._connect(link, stack)
            here._configure()
            for vendor in _VENDORS:
                world.vendors.mend(vendor)
                world.vendors.forget(vendor)
            here.run(
                "migrate", "--to", world.postgres, "--to", _clickhouse(world.clickhouse.port),
                "--stream", "raw_events", "--stream", "receipts", "--kafka", world.kafka,
            )  # fmt: skip
            here._start()
            yield here

    def close(self) -> None:
        for process in self.processes.values():
            if process.process is not None:
                process.signal(signal.SIGKILL)
                process.process.wait()

    @property
    def places(self) -> Places:
        """For the checker."""
        return Places(
            kafka=self.world.kafka, topic=self.name, postgres=self.world.postgres,
            clickhouse=f"http://127.0.0.1:{self.world.clickhouse.port}/?user=default",
            table=self.name, vendors=self.world.vendors.url, vendor_names=tuple(_VENDORS),
        )  # fmt: skip

    def workers(self) -> list[psutil.Process]:
        """The collector's."""
        return self.processes["collector"].children()

    def limit_files(self, size: int) -> None:
        """No worker may write beyond so many bytes of a file: a disk that is full."""
        for worker in self.workers():
            with suppress(ProcessLookupError, PermissionError):
                _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size, most))

    def run(self, *argv: str) -> None:
        """A command to its end."""
        process = Process(argv[0], [*argv, "--config", str(self._config)], self.folder)
        process.start()
        assert process.process is not None
        code = process.process.wait(60)
        assert code == 0, f"headrace {' '.join(argv)} ended with {code}, see {process.log}"

    def audit(self) -> str:
        """What `headrace audit` says when it says no; "" where all adds up."""
        to = [self.world.postgres, _clickhouse(self.world.clickhouse.port), *_LIVE, "kafka"]
        argv = ["audit", "--stream", "raw_events", "--group", f"{self.name}-clickhouse"]
        argv += [word for name in to for word in ("--to", name)]
        argv += ["--kafka", self.world.kafka, "--config", str(self._config)]
        process = Process("audit", argv, self.folder)
        process.start()
        assert process.process is not None
        code = process.process.wait(120)
        said = process.log.read_text().strip()
        return f"the audit ended with {code}: {said[-3000:]}" if code else ""

    def replay(self) -> bool:
        """Send all that came so far to the vendor that gets it by replays only.

        False while one that was begun before is not done.
        """
        running = self.processes.get("replay")
        if running is not None and not running.done:
            return False
        until = datetime.now(UTC).isoformat()
        since = datetime.fromtimestamp(self.began_us / 1e6 - 13 * 3600, UTC).isoformat()
        argv = ["replay", "--to", "posthog", "--from", since, "--until", until]
        self._add("replay", [*argv, *self._kafka("forward-kafka")], for_ever=False)
        return True

    def supervise(self) -> None:
        for process in self.processes.values():
            process.supervise()

    def stop(self) -> None:
        """SIGTERM for all of them, and wait until they have ended."""
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(_PATIENCE_S)

    # -- inside

    @property
    def _config(self) -> Path:
        return self.folder / "headrace.toml"

    def _connect(self, link: str, stack: ExitStack) -> None:
        port = {
            "clients-collector": self.port,
            "insert-postgres": int(self.world.postgres.rpartition(":")[2].partition("/")[0]),
            "insert-clickhouse": self.world.clickhouse.port,
            "forward-vendors": int(self.world.vendors.url.rpartition(":")[2]),
        }.get(link, int(self.world.kafka.rpartition(":")[2]))
        proxy = self.proxies[link] = stack.enter_context(Proxy("127.0.0.1", port))
        if link.endswith("-kafka"):
            # A broker's address in the protocol: the host, and behind it the port in four bytes.
            old, new = (b"127.0.0.1" + struct.pack(">i", p) for p in (port, proxy.port))
            proxy.rewrite(old, new)

    def _configure(self) -> None:
        vendors = self.proxies["forward-vendors"].port
        lines = [
            f'[streams.raw_events]\ntopic = "{self.name}"\ntable = "{self.name}"',
            f'[streams.receipts]\ntopic = "{self.name}.receipts"\ntable = "{self.name}_receipts"',
            *(f'[vendors.{name}]\ntimeout_s = 3\n{rest} = "http://127.0.0.1:{vendors}/{name}"'
              for name, rest in _VENDORS.items()),
        ]  # fmt: skip
        self._config.write_text("\n".join(lines) + _CONFIG)

    def _kafka(self, link: str) -> list[str]:
        port = self.proxies[link].port
        return ["--kafka", f"127.0.0.1:{port}", "--config", str(self._config)]

    def _start(self) -> None:
        postgres = self.world.postgres.replace(
            self.world.postgres.rpartition(":")[2],
            f"{self.proxies['insert-postgres'].port}/headrace",
        )
        clickhouse = _clickhouse(self.proxies["insert-clickhouse"].port)
        insert = ["insert", "--stream", "raw_events", "--max-age", "0.3", "--max-rows", "500"]
        for number in (1, 2) if self.schedule.twins else (1,):
            for name, url in (("postgres", postgres), ("clickhouse", clickhouse)):
                group = ["--to", url, "--group", f"{self.name}-{name}"]
                self._add(f"{name}-{number}", [*insert, *group, *self._kafka(f"{name}-kafka")])
            vendors = [word for name in _LIVE for word in ("--vendor", name)]
            self._add(f"forward-{number}", ["forward", *vendors, *self._kafka("forward-kafka")])
        self._add("collector", [
            "collect", "--spool", str(self.folder / "spool"), "--listen", f"127.0.0.1:{self.port}",
            "--workers", str(self.schedule.workers), *self._kafka("collector-kafka"),
        ])  # fmt: skip

    def _add(self, name: str, argv: list[str], *, for_ever: bool = True) -> None:
        self.processes[name] = Process(name, argv, self.folder, for_ever)
        self.processes[name].start()


def _clickhouse(port: int) -> str:
    return f"clickhouse://default@127.0.0.1:{port}/default"
