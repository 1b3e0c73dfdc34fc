"""One process of the product: started, killed, and started again by a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from chaos.edge import PROGRAM

from headrace.vendors.place import WEBHOOK_SECRET

__all__ = ["Process"]

# A supervisor waits so long before it starts again what has ended.
_RESTART_S = 0.3


@dataclass
class Process:
    """One process of the product, and how it came to its ends."""

    name: str
    argv: list[str]
    folder: Path
    # Started again, whatever it ends with; otherwise until it ends with 0.
    for_ever: bool = True
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    # Ends that nobody brought about, with something else than 0.
    gave_up: int = 0
    _ended_at: float | None = None
    _is_killed: bool = False

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def done(self) -> bool:
        return not self.for_ever and self.process is not None and self.process.poll() == 0

    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        env |= {"STANDIN_KEY": WEBHOOK_SECRET, "HEADRACE_STATE": str(self.folder / "no-stack")}
        self.starts += 1
        self._ended_at, self._is_killed = None, False
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *self.argv], cwd=self.folder, env=env,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """Harmless if it isn't running."""
        if self.process is not None and self.process.poll() is None:
            self._is_killed |= number in (signal.SIGKILL, signal.SIGTERM)
            self.process.send_signal(number)

    def supervise(self) -> None:
        """Start it again a moment after its end."""
        if self.process is None or self.alive or self.done:
            return
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now
            if self.process.returncode and not self._is_killed:
                self.gave_up += 1
                with self.log.open("a") as out:
                    out.write(f"-- ended by itself with {self.process.returncode}\n")
        elif now > self._ended_at + _RESTART_S:
            self.start()

    def wait(self, patience_s: float) -> None:
        """Until it has ended; SIGKILL and a failure if that takes longer."""
        if self.process is not None:
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(
                    f"{self.name} runs on {patience_s:g} s after SIGTERM"
                ) from None

    def children(self) -> list[psutil.Process]:
        if not self.alive or self.process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children())
        return []
