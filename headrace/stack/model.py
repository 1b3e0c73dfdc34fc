"""What the local stack tells its callers: endpoints, status, and the one error it raises.

Rules: these are plain values without behaviour. Whatever goes wrong on the way to a running
stack arrives as a `StackError` whose text can be printed as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

State = Literal["running", "stopped", "crashed", "not installed"]


class StackError(Exception):
    """The local stack could not do what was asked; the message says why and what to do next."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients connect. Valid for as long as the stack runs."""

    kafka: str  # bootstrap servers, "127.0.0.1:PORT"
    postgres: str  # "postgresql://user:password@127.0.0.1:PORT/headrace"
    chdb: Path  # directory for chDB, which runs inside the process that opens it


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One server as it is now. `crashed` means: started by us, gone without a `down`."""

    name: str
    state: State
    pid: int | None
    port: int | None
    uptime_s: float | None
    version: str | None
    log: Path
    note: str  # empty, or one sentence for the operator


@dataclass(frozen=True, slots=True)
class Status:
    """Both servers and the directory that everything lives in."""

    state_dir: Path
    kafka: ServiceStatus
    postgres: ServiceStatus

    @property
    def services(self) -> tuple[ServiceStatus, ...]:
        return (self.kafka, self.postgres)

    @property
    def all_running(self) -> bool:
        return all(s.state == "running" for s in self.services)


class Service(Protocol):
    """One server of the stack, for tests that break it on purpose.

    `start` returns when the server answers (and at once when it already does), `stop` when it is
    gone after a clean shutdown, `kill` when it is gone after SIGKILL. All three are idempotent.
    """

    @property
    def pid(self) -> int | None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def status(self) -> ServiceStatus: ...
