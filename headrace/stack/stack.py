"""The stack: both servers, their ports, and one lock.

Rules: `up` and `down` are idempotent and hold the state directory's lock. `up` finds what runs,
recovers what crashed, and starts the rest, both servers at once; when one of them fails, what this
call started is stopped again. `endpoints` and `status` take no lock and change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from .guard import Guard
from .kafka import Kafka
from .model import Endpoints, StackError, Status
from .ports import HOST, becomes_free, free_ports, who_listens
from .postgres import Postgres
from .state import Home, Say, Settings, default_state_dir, new_settings

_log = logging.getLogger(__name__)


class Stack:
    """Kafka, PostgreSQL and a place for chDB in one state directory.

    `state_dir` defaults to $HEADRACE_STATE or ./.headrace. A port of 0 means: the remembered one,
    at first a free one. As a context manager the stack is up inside the block and shut down after
    it, even when this process is killed; the data stays until `delete`.
    """

    def __init__(
        self, state_dir: Path | None = None, *, kafka_port: int = 0, postgres_port: int = 0
    ) -> None:
        self._home = Home((state_dir or default_state_dir()).resolve())
        self._fixed = {"kafka_port": kafka_port, "postgres_port": postgres_port}
        self._guard: Guard | None = None
        self.kafka = Kafka(self._home)
        self.postgres = Postgres(self._home)

    @property
    def state_dir(self) -> Path:
        return self._home.path

    def up(self, progress: bool = True) -> Endpoints:
        """Returns when both servers answer. `progress` writes what happens to stderr."""
        say = _teller(progress)
        try:
            with self._home.locked(say, create=True):
                self._home.keep_private()
                # 1. Kafka's software, in this thread, so that Ctrl-C ends a download at once
                self.kafka.install(say, progress=progress)
                # 2. the ports
                settings = self._settle(say)
                # 3. the servers
                self._start_both()
        except OSError as e:
            raise StackError(f"the local stack cannot use {self._home.path}: {e}") from e
        return self._endpoints(settings)

    def down(self) -> None:
        """Shuts both servers down cleanly and returns when they are gone."""
        self._down(delete=False)

    def delete(self) -> None:
        """`down`, then removes what the stack ever wrote into its state directory."""
        self._down(delete=True)

    def _down(self, *, delete: bool) -> None:
        if not self._home.used():
            return
        try:
            with self._home.locked(_teller(True)):
                _both(self.kafka.stop, self.postgres.stop)
                if delete:
                    self._home.delete()
        except OSError as e:
            if not self._home.used():  # another `down --delete` was first
                return
            raise StackError(f"the local stack cannot use {self._home.path}: {e}") from e

    def endpoints(self) -> Endpoints | None:
        """None unless both servers run. Takes a millisecond and asks nobody."""
        if self.kafka.pid is None or self.postgres.pid is None:
            return None
        settings = self._home.load()
        return None if settings is None else self._endpoints(settings)

    def status(self) -> Status:
        return Status(self._home.path, self.kafka.status(), self.postgres.status())

    def __enter__(self) -> Self:
        self._guard = Guard(self._home.path)
        try:
            self.up(progress=False)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()
        self._release()

    def _release(self) -> None:
        if self._guard is not None:
            self._guard.release()
            self._guard = None

    def _endpoints(self, settings: Settings) -> Endpoints:
        return Endpoints(
            kafka=f"{HOST}:{settings.kafka_port}",
            postgres=self.postgres.url(settings),
            chdb=self._home.chdb,
        )

    def _settle(self, say: Say) -> Settings:
        """The ports of this start: fixed ones, else remembered ones, else free ones; saved."""
        old = self._home.load()
        ports = asdict(old or new_settings())
        running = {"kafka": self.kafka.find(), "postgres": self.postgres.find()}
        given: dict[int, str] = {}
        for field, service in (
            ("kafka_port", "kafka"), ("controller_port", "kafka"), ("postgres_port", "postgres"),
        ):  # fmt: skip
            port, fixed = ports[field], self._fixed.get(field, 0)
            if running[service] is not None:
                if fixed not in (0, port):
                    raise StackError(
                        f"{service} already runs on port {port}. To move it to {fixed}, run "
                        "`headrace down` first."
                    )
            elif fixed:
                if fixed in given:
                    raise StackError(
                        f"{service} cannot use port {fixed}: it is given to {given[fixed]}. Choose "
                        "another port."
                    )
                if not becomes_free(fixed):
                    raise StackError(
                        f"{service} cannot use port {fixed}: {who_listens(fixed)} does. End that, "
                        "or choose another port."
                    )
                ports[field] = fixed
            elif port in given or port in self._fixed.values() or not becomes_free(port):
                avoid = {*given, *self._fixed.values()}
                free = next(p for p in free_ports(len(avoid) + 1) if p not in avoid)
                taker = given.get(port) or who_listens(port)
                say(f"port {port} of {service} is taken by {taker}; now {free}")
                ports[field] = free
            given[ports[field]] = service
        settings = Settings(**ports)
        if settings != old:
            self._home.save(settings)
        return settings

    def _start_both(self) -> None:
        ours = [s for s in (self.kafka, self.postgres) if s.find() is None]
        try:
            _both(self.kafka.start, self.postgres.start)
        except BaseException:
            for service in ours:
                service.stop()
            raise


def _both(one: Callable[[], None], other: Callable[[], None]) -> None:
    """Runs both at once, waits for both, raises what failed (the messages of both, if both)."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(one), pool.submit(other)]
        errors = [e for e in (job.exception() for job in jobs) if e is not None]
    if len(errors) > 1 and all(isinstance(e, StackError) for e in errors):
        raise StackError("\n\n".join(map(str, errors)))
    if errors:
        raise errors[0]


def _teller(progress: bool) -> Say:
    def say(line: str) -> None:
        _log.info(line)
        if progress:
            click.echo(line, err=True)

    return say
