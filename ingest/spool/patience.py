"""Calls in a thread of their own: one that may not come back, and one beside others.

A call into librdkafka may not come back, although it was given a time-out:
`send_offsets_to_transaction` ignores its own while the group's coordinator is unreachable, and may
wait for as long as no broker's state changes: for ever after the wrong moment of a broker's death
(librdkafka issues 5456 and 5511, open in 2.16). So it is made in a thread of its own, which is left
behind when it takes too long. Whatever it does later does not count: the producer that follows has
fenced its producer, and the coordinator has aborted its transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Hung", "beside", "within"]

T = TypeVar("T")

# How often it is looked whether to stop.
_LOOK_S = 0.2


class Hung(Exception):
    """The call has not come back in time; it may do so at any later time."""


def within(seconds: float, call: Callable[[], object], stopping: Callable[[], bool]) -> None:
    """Make the call and wait for it. Raises what it raises, and Hung when time is up or to stop."""
    raised: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="headrace-call", daemon=True).start()
    deadline = time.monotonic() + seconds
    while not done.wait(min(_LOOK_S, max(0.0, deadline - time.monotonic()))):
        if stopping() or time.monotonic() >= deadline:
            waited_s = seconds - max(0.0, deadline - time.monotonic())
            raise Hung(f"a call into librdkafka has not come back within {waited_s:.1f} s")
    if raised:
        raise raised[0]


def beside(call: Callable[[], T]) -> Callable[[], T]:
    """Begin a call. What this returns waits for it, and gives or raises what it gave or raised."""
    outcome: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="headrace-relay-reads", daemon=True)
    thread.start()

    def result() -> T:
        thread.join()
        if raised:
            raise raised[0]
        return outcome[0]

    return result
