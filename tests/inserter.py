"""One `headrace insert` process: what it says, how it ends. Every wait has a deadline."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from waiting import DEADLINE_S, until

from headrace.stack.ports import free_ports

__all__ = ["Inserter", "free_port"]

POLL_S = 0.05


@dataclass
class Inserter:
    """One `headrace insert` process."""

    process: subprocess.Popen[bytes]
    log: Path
    argv: Sequence[str]
    metrics_port: int | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        """All that it has written, both streams."""
        return self.log.read_text(errors="replace")

    @property
    def rss(self) -> int:
        """Bytes of memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def full(self, still_s: float = 5.0, deadline_s: float = DEADLINE_S) -> int:
        """Its memory once it takes no more: not a MiB more for `still_s`."""
        most, since = self.rss, time.monotonic()
        give_up = since + deadline_s
        while time.monotonic() - since < still_s:
            assert time.monotonic() < give_up, f"it still grows after {deadline_s:g} s"
            time.sleep(POLL_S)
            if self.rss > most + 2**20:
                most, since = self.rss, time.monotonic()
        return most

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.process.kill()
        self.process.wait(30)

    def pause(self) -> None:
        """SIGSTOP; returns when it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        until(
            lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, "a stopped process"
        )

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code; fails with its output after the deadline."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{' '.join(self.argv)} runs on after {deadline_s:g} s:\n{self.output}"
            ) from None

    def finish(self, deadline_s: float = DEADLINE_S) -> str:
        """Its output, once it has ended with 0."""
        code = self.wait(deadline_s)
        assert code == 0, f"{' '.join(self.argv)} ended with {code}:\n{self.output}"
        return self.output

    def says(self, text: str) -> bool:
        """Whether that stands in its output."""
        return text in self.output

    def ready(self) -> int:
        """The status of /readyz; 0 without an answer."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        """The sum of a metric's values over its labels; 0 without an answer."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5
            ) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(v) for n, v in map(_sample, lines) if n.partition("{")[0] == name)


def _sample(line: str) -> tuple[str, str]:
    """Name with labels, and value, of a line of Prometheus' text."""
    name, _, value = line.rpartition(" ")
    return name, value


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection is given meanwhile."""
    return free_ports(1)[0]
