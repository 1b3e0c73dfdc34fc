"""Signals that end `headrace publish` while it waits for standard input."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from headrace.cli.publish_progress import Progress
from headrace.cli.publish_run import Interrupts

ROUNDS = 3000
# Sends its parent SIGINT for each byte.
SENDER = """
import os, signal
while os.read(0, 1):
    os.kill(os.getppid(), signal.SIGINT)
"""
# How long that takes, in turns of an empty loop, at most.
LATENCY = 4000
PATIENCE_S = 30.0


@pytest.fixture
def silent() -> Iterator[int]:
    """A pipe in which there is nothing, until a wait that nothing else ends would fail."""
    readable, writable = os.pipe()
    watchdog = threading.Timer(PATIENCE_S, os.write, (writable, b"nobody was interrupted"))
    watchdog.start()
    yield readable
    watchdog.cancel()
    watchdog.join()
    os.close(readable)
    os.close(writable)


def test_a_ctrl_c_at_any_moment_ends_a_wait(silent: int) -> None:
    """Also one that comes between Python's last look for signals and the call that waits.

    Another process sends it, which takes its time: the wait begins a little later each time.
    """
    with subprocess.Popen([sys.executable, "-c", SENDER], stdin=subprocess.PIPE) as sender:
        assert sender.stdin is not None
        asked = sender.stdin.fileno()
        for n in range(ROUNDS):
            interrupted = False
            with Interrupts() as interrupts:
                try:
                    os.write(asked, b"!")
                    for _ in range(7 * n % LATENCY):
                        pass
                    interrupts.wait(silent)
                except KeyboardInterrupt:
                    interrupted = True
            assert interrupted


def test_one_that_was_counted_before_does_not_end_the_next_wait(silent: int) -> None:
    readable, writable = os.pipe()
    with Interrupts() as interrupts:
        interrupts.busy = True
        signal.raise_signal(signal.SIGINT)
        interrupts.busy = False
        os.write(writable, b"x")
        interrupts.wait(readable)
        assert interrupts.asked == 1
        assert os.read(readable, 9) == b"x"
        # What told of it has been taken out: this waits for the next one.
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            interrupts.wait(silent)
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_it_is_heard_and_the_first_is_the_one_that_counts(
    silent: int, number: signal.Signals
) -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        interrupts.busy = True
        signal.raise_signal(number)
        assert (interrupts.asked, interrupts.signal) == (1, number)
        # The kernel and the shell both send it when a terminal is closed.
        signal.raise_signal(signal.SIGHUP)
        assert interrupts.asked == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert (interrupts.asked, interrupts.signal) == (2, number)
    assert signal.getsignal(number) == before
    signal.signal(signal.SIGHUP, ignored)


def test_under_nohup_the_end_of_the_terminal_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert interrupts.asked == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_that_nobody_can_read_stops_nothing(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGHUP, when the terminal is gone: acknowledgements are still to be waited for."""

    class Terminal(io.StringIO):
        gone = False

        def isatty(self) -> bool:
            return terminal

        def write(self, text: str, /) -> int:
            if self.gone:
                raise OSError(errno.EIO, "gone")
            return super().write(text)

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with Progress([], on=terminal) as show:
        stderr.gone = True
        show.say("interrupted")
    assert "interrupted" not in stderr.getvalue()
