"""Servers as processes: started detached, recognised by their command line, waited for.

Rules:
* A pid alone proves nothing: it may have been given to a foreign process since. A process is ours
  only when its *command line* says so (`Mine`), and only then is it ever signalled.
* The pid file is the fast way to find it. Where that fails, all processes are looked through: so
  a server is found even when its starter died before it could write the pid down.
* A zombie is dead. Our own zombies are reaped here.
* Waiting means asking the real question again until a deadline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import psutil

from .model import StackError

Mine = Callable[[Sequence[str]], bool]
"""Whether this command line (argv) is the server in question."""

POLL_S = 0.05
LOG_KEEP_BYTES = 10_000_000  # a larger log is moved to `.log.1` at the next start
_TOLD_LINES = 15


class PopenArgs(TypedDict, total=False):
    """Arguments of subprocess.Popen and subprocess.run."""

    user: int
    group: int | None
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class RunAs:
    """How to run a command as somebody else: by `user`/`group` ids, or through a wrapper."""

    user: int | None = None
    group: int | None = None
    wrapper: tuple[str, ...] = ()

    def popen_args(self) -> PopenArgs:
        if self.user is None or self.wrapper:
            return {}
        return {"user": self.user, "group": self.group, "extra_groups": []}

    def bare(self) -> RunAs:
        """The same user, without what a wrapper lets him keep."""
        return RunAs(self.user, self.group)


MYSELF = RunAs()


def alive(pid: int, mine: Mine) -> psutil.Process | None:
    """The process with this pid if it is ours and no zombie."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        p = psutil.Process(pid)
        return p if p.status() != psutil.STATUS_ZOMBIE and mine(p.cmdline()) else None
    except psutil.Error:
        return None


def recorded(pid_file: Path, mine: Mine) -> psutil.Process | None:
    """Our server according to its pid file. Costs well under a millisecond."""
    try:
        return alive(int(pid_file.read_text()), mine)
    except (OSError, ValueError):
        return None


def find(pid_file: Path, mine: Mine) -> psutil.Process | None:
    """Our server, also when the pid file does not know it (then the pid file is mended)."""
    known = recorded(pid_file, mine)
    if known is not None:
        return known
    for p in psutil.process_iter():
        with suppress(psutil.Error):
            if mine(p.cmdline()) and p.status() != psutil.STATUS_ZOMBIE:
                with suppress(OSError):  # only a hint: on a full disk `down` goes on without
                    pid_file.write_text(f"{p.pid}\n")
                return p
    return None


def spawn(
    argv: Sequence[str], *, log: Path, pid_file: Path, cwd: Path, run_as: RunAs = MYSELF
) -> psutil.Process:
    """Starts a server in a session of its own, so that it outlives us and our terminal. Its log is
    for our user only: PostgreSQL writes the statements that failed into it, values and all."""
    if log.exists() and log.stat().st_size > LOG_KEEP_BYTES:
        log.replace(log.with_name(log.name + ".1"))
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        child = subprocess.Popen(
            [*run_as.wrapper, *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            **run_as.popen_args(),
        )
    pid: int = child.pid
    child.returncode = 0  # it outlives us on purpose: no ResourceWarning; `alive` reaps it
    pid_file.write_text(f"{pid}\n")
    return psutil.Process(pid)


def wait_until(problem: Callable[[], str | None], deadline_s: float) -> str | None:
    """Asks `problem` until it answers None, which is returned; else its last answer."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        trouble = problem()
        if trouble is None or time.monotonic() > give_up_at:
            return trouble
        time.sleep(POLL_S)


def wait_ready(
    name: str,
    p: psutil.Process,
    problem: Callable[[], str | None],
    *,
    log: Path,
    log_start: int,
    deadline_s: float,
) -> None:
    """Returns when `problem` is None; StackError with the end of the log when the process ends
    before that or the deadline passes. `log_start` is the size of the log before this start."""

    def ask() -> str | None:
        if not p.is_running() or p.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(p.pid)
        return problem()

    try:
        trouble = wait_until(ask, deadline_s)
    except psutil.NoSuchProcess:
        raise StackError(f"{name} ended while it was starting.\n{tail(log, log_start)}") from None
    if trouble is not None:
        raise StackError(
            f"{name} (pid {p.pid}) is not ready after {deadline_s:.0f} s: {trouble}\n"
            f"{tail(log, log_start)}"
        )


def end(p: psutil.Process, sig: signal.Signals, patience_s: float) -> None:
    """Signals and waits until it is gone; after `patience_s` SIGKILL. psutil refuses to signal a
    pid that was given to another process meanwhile."""
    with suppress(psutil.NoSuchProcess):
        p.send_signal(sig)
    try:
        p.wait(patience_s)
    except psutil.TimeoutExpired:
        with suppress(psutil.NoSuchProcess):
            p.kill()
        p.wait(30)


def size(log: Path) -> int:
    """Bytes in the log now: what is written later belongs to the next start."""
    return log.stat().st_size if log.exists() and log.stat().st_size <= LOG_KEEP_BYTES else 0


def tail(log: Path, start: int) -> str:
    """The last lines that were written after offset `start`, with the path, for an error."""
    try:
        with log.open("rb") as f:
            f.seek(max(start, log.stat().st_size - 20_000))
            last = f.read().decode(errors="replace").splitlines()[-_TOLD_LINES:]
    except OSError:
        last = []
    body = "\n".join(f"  | {line}" for line in last) or "  | (nothing was written)"
    return f"The log is {log}; it ends with\n{body}"
