"""Ctrl-C while `headrace publish` waits for standard input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

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
