"""SIGTERM and Ctrl-C: a long command finishes what is under way, and leaves within 10 s.

In this order: `end_at_once` while there is nothing to finish, `stop_by` once a loop runs, and
`no_more` when it has ended. What these commands end with is 0, unless a person has to act.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

__all__ = ["end_at_once", "no_more", "stop_by"]

_BOTH = (signal.SIGTERM, signal.SIGINT)
# A stop takes 10 s at most.
_MOST_S = 9.5


def end_at_once() -> None:
    """Until the loop runs there is nothing to finish; and from now on no signal takes too long."""
    _leave_in_time()
    for number in _BOTH:
        # Not by SystemExit: that would be swallowed where the signal comes in the middle of a
        # destructor.
        signal.signal(number, lambda _signal, _frame: os._exit(0))


def stop_by(stop: Callable[[], object]) -> None:
    """A signal calls this."""
    for number in _BOTH:
        signal.signal(number, lambda _signal, _frame: stop())


def no_more() -> None:
    """All is committed. While the interpreter ends a signal would end it with another exit code."""
    for number in _BOTH:
        signal.signal(number, signal.SIG_IGN)


def _leave_in_time() -> None:
    """End the process 9.5 s after a signal, whatever holds the main thread up then.

    librdkafka's calls have no deadline when Kafka is gone, and Python's handlers wait for them to
    return. Ending at any point is safe: what is not committed lands at the next start.
    """
    heard, wake = socket.socketpair()
    wake.setblocking(False)
    # Written to in C, at once.
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def leave() -> None:
        with heard, wake:
            heard.recv(1)
            time.sleep(_MOST_S)
            os._exit(0)

    threading.Thread(target=leave, name="leave-in-time", daemon=True).start()
