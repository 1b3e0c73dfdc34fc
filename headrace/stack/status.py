"""What a service looks like from outside: the shared part of both services' `status`."""

from __future__ import annotations

import socket
import time
from typing import Protocol

import psutil

from .model import ServiceStatus, State
from .ports import HOST
from .state import Home


class _Observed(Protocol):
    name: str

    def recorded(self) -> psutil.Process | None: ...


def service_status(
    service: _Observed,
    home: Home,
    *,
    version: str | None,
    installed: bool,
    port: int | None,
    note: str,
) -> ServiceStatus:
    """`note` is kept unless something more urgent is to be said."""
    p = service.recorded()
    log = home.log(service.name)
    state: State
    if p is not None:
        state = "running"
        note = "" if _listens(port) else f"the process lives, but port {port} does not answer yet"
    elif home.pid_file(service.name).exists():
        state, note = "crashed", f"gone without a shutdown; `headrace up` recovers it; see {log}"
    else:
        state = "stopped" if installed else "not installed"
    return ServiceStatus(
        name=service.name,
        state=state,
        pid=None if p is None else p.pid,
        port=port,
        uptime_s=None if p is None else time.time() - p.create_time(),
        version=version,
        log=log,
        note=note,
    )


def _listens(port: int | None) -> bool:
    if port is None:
        return False
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex((HOST, port)) == 0
