"""The processes of the vendors' act, and its waits, in which none of them may end by itself."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from headrace.demo.model import DemoError
from headrace.demo.place import Place, end
from headrace.demo.traffic import Background

__all__ = ["StoppedError", "VendorCrew"]

_PATIENCE_S, _POLL_S = 60.0, 0.05


class StoppedError(Exception):
    """The demo ends before this is over."""


class VendorCrew:
    """`headrace` processes with the headrace.toml `config`. `stopped` ends every wait."""

    def __init__(self, place: Place, config: str, stopped: threading.Event) -> None:
        self._place, self._config, self._stopped = place, config, stopped
        self._running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._count = 0
        # Work on another thread that may not fail meanwhile.
        self.beside: Background | None = None

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """Start `headrace` so."""
        self._count += 1
        log = self._place.folder / f"vendors-{self._count}-{args[0]}.log"
        process = self._place.start(list(args), log, self._config)
        self._running.append((args[0], process, log))
        return process

    def address(self, collector: subprocess.Popen[bytes]) -> str:
        """Where it listens, once it does. Raises DemoError, StoppedError."""
        pattern = r"listening at (http://\S+)"
        return self.until_said("the collector does not listen", collector, pattern)

    def until_said(self, trouble: str, process: subprocess.Popen[bytes], pattern: str) -> str:
        """Wait until its log matches; the pattern's group. Raises DemoError, StoppedError."""
        log = next(log for _name, one, log in self._running if one is process)

        def said() -> re.Match[str] | None:
            return re.search(pattern, log.read_text(errors="replace"))

        self.until(trouble, lambda: said() is not None)
        found = said()
        return found[1] if found else ""

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL; gone when this returns."""
        self._running = [one for one in self._running if one[1] is not process]
        end(process)

    def end_in_order(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and the exit code 0. Raises DemoError, StoppedError."""
        process.send_signal(signal.SIGTERM)
        self.finish(process)

    def finish(self, process: subprocess.Popen[bytes]) -> Path:
        """Wait for its end; its log. Raises DemoError, StoppedError."""
        one = next(one for one in self._running if one[1] is process)
        name, _process, log = one
        self._running.remove(one)
        try:
            self.until(f"`headrace {name}` does not come to its end",
                       lambda: process.poll() is not None)  # fmt: skip
        finally:
            end(process)
        if process.returncode != 0:
            raise DemoError(f"`headrace {name}` ended with {process.returncode}:\n{_tail(log)}")
        return log

    def end_all(self) -> None:
        """At once, whatever they do."""
        for _name, process, _log in self._running:
            end(process)
        self._running.clear()

    def until(self, trouble: str, what: Callable[[], bool]) -> None:
        """Wait for that. Raises DemoError, StoppedError."""
        give_up = time.monotonic() + _PATIENCE_S
        while not what():
            self.sleep(_POLL_S)
            if time.monotonic() > give_up:
                logs = "\n".join(f"{name}: {_tail(log)}" for name, _, log in self._running)
                raise DemoError(f"{trouble} within {_PATIENCE_S:.0f} s\n{logs}")

    def sleep(self, seconds: float) -> None:
        """Meanwhile everything has to go on. Raises DemoError, StoppedError."""
        if self._stopped.wait(seconds):
            raise StoppedError
        for name, process, log in self._running:
            code = process.poll()
            if code is not None:
                raise DemoError(f"`headrace {name}` ended by itself with {code}:\n{_tail(log)}")
        if self.beside is not None:
            self.beside.check()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])
